//! The smallest program around the library: what tests start as server and as executor.
//!
//! `farcall-test-server cuda|soft|null [DEVICES [MEMORY_BYTES [DRIVER_PATIENCE_MS [GRACE_MS]]]]` serves on a free port of
//! the loopback interface and prints it. With the variable `TEST_MEASURE` it measures all sessions, and answers each line of its input
//! with a line of JSON: what its devices and sessions have had.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use farcall_gpu_exec::{
    EXECUTOR_COMMAND, ServeError, ServeOptions, Server, Signals, executor_main,
};

fn run(options: &ServeOptions) -> Result<(), ServeError> {
    let signals = Signals::block()?;
    let server = Server::bind(options)?;
    if options.measure {
        let sessions = server.sessions();
        std::thread::spawn(move || {
            for _ in std::io::stdin().lines().map_while(Result::ok) {
                let usage = sessions.usage(Duration::from_secs(30));
                println!("{}", serde_json::to_string(&usage).unwrap_or_default());
            }
        });
    }
    server.serve(signals, |address| {
        println!("listening on {address}");
        let _ = std::io::stdout().flush();
    })
}

fn main() -> ExitCode {
    env_logger::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|argument| argument == EXECUTOR_COMMAND)
    {
        return executor_main();
    }
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok());
    let defaults = ServeOptions::default();
    let options = ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: arguments
            .first()
            .and_then(|name| name.parse().ok())
            .unwrap_or_default(),
        device_count: number(1).and_then(|count: u64| u32::try_from(count).ok()),
        memory_bytes: number(2),
        driver_patience: number(3).map_or(defaults.driver_patience, Duration::from_millis),
        grace: number(4).map_or(defaults.grace, Duration::from_millis),
        cache_bytes_max: 0,
        measure: std::env::var_os("TEST_MEASURE").is_some(),
        ..defaults
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

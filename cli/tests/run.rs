//! `farcall run` as a process: environment, exit codes, signals, statistics.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Stdio;

use common::{Farcall, lines, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

#[test]
fn exits_as_the_command_does() {
    let farcall = Farcall::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 37", 37),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
    ] {
        assert_eq!(
            farcall.run_script(&[], script).status.code(),
            Some(code),
            "{script}"
        );
    }
}

#[test]
fn a_command_that_cannot_be_run() {
    let farcall = Farcall::new();
    let missing = farcall.output(&["run", "--no-check", "--", "no-such-command-here"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(
        stderr(&missing).starts_with("farcall: no-such-command-here: command not found\n  check"),
        "{}",
        stderr(&missing)
    );
    let file = farcall.home.path().join("data");
    fs::write(&file, "no program").unwrap();
    let unusable = farcall.output(&["run", "--no-check", "--", file.to_str().unwrap()]);
    assert_eq!(unusable.status.code(), Some(126));
    assert!(
        stderr(&unusable).contains("cannot run"),
        "{}",
        stderr(&unusable)
    );
}

#[test]
fn the_command_gets_its_arguments_and_streams_untouched() {
    let farcall = Farcall::new();
    let output = farcall.output(&[
        "run",
        "--no-check",
        "sh",
        "-c",
        "printf '%s|' \"$@\"; echo err >&2",
        "x",
        "-n",
        "--server",
        "a b",
    ]);
    assert_eq!(stdout(&output), "-n|--server|a b|");
    assert_eq!(stderr(&output), "err\n");
}

#[test]
fn environment() {
    let farcall = Farcall::new();
    let token = farcall.home.path().join("token");
    fs::write(&token, "s3cret").unwrap();
    let options = [
        "--server",
        "gpu1",
        "-n",
        "2",
        "-m",
        "1.5GiB",
        "--token-file",
        "token",
    ];
    let args: Vec<&str> = ["run", "--no-check"]
        .iter()
        .chain(&options)
        .chain(&["--", "env"])
        .copied()
        .collect();
    let mut command = farcall.command(&args);
    command
        .current_dir(farcall.home.path())
        .env("LD_LIBRARY_PATH", "/somewhere")
        .env("FARCALL_TOKEN", "other");
    let text = stdout(&command.output().unwrap());
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("{name}=")))
            .map(str::to_owned)
    };
    let libraries = farcall
        .home
        .path()
        .join("lib")
        .canonicalize()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        value("LD_LIBRARY_PATH"),
        Some(format!("{libraries}:/somewhere"))
    );
    assert_eq!(value("TRITON_LIBCUDA_PATH"), Some(libraries));
    assert_eq!(value("FARCALL_SERVER").as_deref(), Some("gpu1:7474"));
    assert_eq!(value("FARCALL_DEVICES").as_deref(), Some("2"));
    assert_eq!(value("FARCALL_MEMORY"), Some((3_u64 << 29).to_string()));
    assert_eq!(
        fs::canonicalize(value("FARCALL_TOKEN_FILE").unwrap()).unwrap(),
        token.canonicalize().unwrap()
    );
    assert_eq!(
        value("FARCALL_TOKEN"),
        None,
        "it would win over the file that was asked for"
    );
    assert!(
        !text.contains("s3cret"),
        "the token itself stays out of the environment"
    );
    for name in ["FARCALL_STATS", "FARCALL_TRACE"] {
        assert_eq!(value(name), None);
    }
}

#[test]
fn libraries_that_are_not_there() {
    let farcall = Farcall::new();
    fs::remove_file(farcall.home.path().join("lib/libcuda.so.1")).unwrap();
    let output = farcall.run_script(&[], "exit 0");
    assert_eq!(output.status.code(), Some(72));
    assert!(
        stderr(&output).contains("FARCALL_LIB_DIR"),
        "{}",
        stderr(&output)
    );
}

/// The shell says when its trap is set, and stays in `read` until the signal comes or its input ends.
const TRAPS: &str =
    "trap 'echo got; exit 5' INT TERM HUP QUIT USR1 USR2; echo ready; read x; echo ended";

/// Waits for a signal. A shell with a trap may miss one that comes just before it begins to read.
const WAITS: &str = "
import signal, sys
wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print('ready', flush=True)
print(signal.Signals(signal.sigwait(wanted)).name, flush=True)
sys.exit(5)";

#[test]
fn signals_are_forwarded() {
    let farcall = Farcall::new();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        let mut child = farcall
            .command(&["run", "--no-check", "--", "python3", "-c", WAITS])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = lines(child.stdout.take().unwrap());
        assert_eq!(lines.next().as_deref(), Some("ready"));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert_eq!(lines.next().as_deref(), Some(signal.as_str()));
        assert_eq!(child.wait().unwrap().code(), Some(5), "{signal}");
    }
}

#[test]
fn stops_and_goes_on_with_the_command() {
    let farcall = Farcall::new();
    let mut child = farcall
        .command(&["run", "--no-check", "--", "sh", "-c", TRAPS])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut lines = lines(child.stdout.take().unwrap());
    assert_eq!(lines.next().as_deref(), Some("ready"));
    kill(pid, Signal::SIGTSTP).unwrap();
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    kill(pid, Signal::SIGCONT).unwrap();
    drop(child.stdin.take());
    assert_eq!(
        lines.next().as_deref(),
        Some("ended"),
        "the command goes on"
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

const STATS: &str = r#"{"calls":3,"by_class":{"local":3},"by_function":{"cuInit":3},"blocking_round_trips":1,"frames":2,"bytes_out":2048,"bytes_in":8,"ns_in_calls":900,"transport":"tcp","devices":[{"name":"soft"}]}"#;

#[test]
fn statistics() {
    let farcall = Farcall::new();
    let script = format!(
        "printf '%s' '{STATS}' > \"$FARCALL_STATS\"; printf '%s' '{STATS}' > \"$FARCALL_STATS.77\"; exit 4"
    );
    let summary = farcall.run_script(&["--stats"], &script);
    assert_eq!(summary.status.code(), Some(4));
    assert!(
        stderr(&summary).starts_with("farcall: 6 driver calls on soft over tcp\n"),
        "{}",
        stderr(&summary)
    );

    let file = farcall.home.path().join("calls.json");
    let option = format!("--stats={}", file.display());
    let kept = farcall.run_script(&[&option], &script);
    assert_eq!(
        (
            stderr(&kept).as_str(),
            fs::read_to_string(&file).unwrap().as_str()
        ),
        ("", STATS)
    );

    let none = farcall.run_script(&["--stats"], "exit 0");
    assert!(stderr(&none).contains("no statistics"), "{}", stderr(&none));
}

#[test]
fn trace_is_readable() {
    let farcall = Farcall::new();
    let line = r#"{"seq":1,"ns":1520,"tid":42,"call":"cuInit","class":"local","args":"Flags=0","status":0}"#;
    let file = farcall.home.path().join("trace.txt");
    let script = format!(
        "printf '%s\\n' '{line}' > \"$FARCALL_TRACE\"; printf '{{\"seq\":2,\"call' > \"$FARCALL_TRACE\"; echo $FARCALL_TRACE_STEPS; exit 6"
    );
    let output = farcall.output(&[
        "trace",
        "--no-check",
        "--steps",
        "-o",
        file.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        &script,
    ]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    assert_eq!(stdout(&output), "1\n", "the steps are asked for");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("1.52 µs  local     cuInit(Flags=0) = 0\n"),
        "{text}"
    );
    assert!(text.contains("1 lines could not be read"), "{text}");

    let missing = farcall.output(&["trace", "--no-check", "--", "no-such-command-here"]);
    assert_eq!(missing.status.code(), Some(127), "{}", stderr(&missing));
}

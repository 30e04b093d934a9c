//! The figures of the project on the command line.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;

use clap::{Parser, Subcommand, ValueEnum};
use farcall_bench::driver::Driver;
use farcall_bench::pin::{self, Side};
use farcall_bench::report::{Figure, table};
use farcall_bench::{clock, measure};
use farcall_fixtures::Server;

/// Measures the call path, each figure beside its limit from the same run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every figure that the main job promises; the exit code is 1 if a promise is not kept.
    MainJob {
        /// JSON, one array of figures.
        #[arg(long)]
        json: bool,
        /// Only figures whose group (marshal, local, launch, blocking, trips, memory) is named.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Launches in the long run.
        #[arg(long, default_value_t = 1_000_000)]
        launches: u32,
    },
    /// Makes so many calls of one kind and prints the time of each: for profilers, and under `farcall run`.
    Calls {
        /// Which.
        call: Call,
        /// How many.
        count: u64,
        /// Where the server is.
        #[arg(long, env = "FARCALL_SERVER")]
        server: SocketAddr,
    },
    /// Opens a session, runs a kernel, prints `idle` and waits until standard input ends.
    Idle {
        /// Where the server is.
        #[arg(long, env = "FARCALL_SERVER")]
        server: SocketAddr,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Call {
    /// `cuCtxGetDevice`.
    ContextDevice,
    /// `cuDeviceGetAttribute`.
    DeviceAttribute,
    /// `cuPointerGetAttribute`.
    PointerAttribute,
    /// `cuLaunchKernel` with four parameters.
    Launch,
    /// `cuLaunchKernel`, then `cuCtxSynchronize`.
    Synchronize,
    /// `cuMemcpyDtoH` of eight bytes.
    Copy,
}

fn main() {
    match Cli::parse().command {
        Command::MainJob {
            json,
            only,
            launches,
        } => main_job(json, &only, launches),
        Command::Calls {
            call,
            count,
            server,
        } => calls(call, count, server),
        Command::Idle { server } => idle(server),
    }
}

fn main_job(json: bool, only: &[String], launches: u32) {
    let wanted = |group: &str| only.is_empty() || only.iter().any(|name| name == group);
    let own = std::env::current_exe().expect("the path of this program");
    let mut figures = Vec::new();
    // Before this process opens the driver, so that what it starts decides for itself.
    others(&mut figures, &wanted, &own);
    if wanted("marshal") {
        figures.extend(measure::marshal());
    }
    if ["local", "launch", "blocking"].into_iter().any(wanted) {
        let server = pin::on(Side::Server, || Server::start("null", &[]));
        let driver = Driver::open(server.addr());
        if wanted("local") {
            figures.extend(measure::local(&driver));
        }
        if wanted("blocking") {
            figures.extend(measure::blocking(&driver, 200));
        }
        if wanted("launch") {
            figures.extend(measure::issue(&driver, launches));
        }
    }
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&figures).expect("figures are JSON")
        );
    } else {
        print!("{}", table(&figures));
    }
    if figures.iter().any(|figure| figure.is_kept() == Some(false)) {
        std::process::exit(1);
    }
}

/// The figures of other processes.
fn others(figures: &mut Vec<Figure>, wanted: &dyn Fn(&str) -> bool, own: &Path) {
    if wanted("trips") {
        figures.extend(measure::startup(own));
    }
    if wanted("memory") {
        figures.extend(measure::idle_memory(own));
    }
}

fn calls(call: Call, count: u64, server: SocketAddr) {
    let driver = Driver::open(server);
    let one: &dyn Fn() = match call {
        Call::ContextDevice => &|| {
            black_box(driver.context_device());
        },
        Call::DeviceAttribute => &|| {
            black_box(driver.device_attribute());
        },
        Call::PointerAttribute => &|| {
            black_box(driver.pointer_attribute());
        },
        Call::Launch => &|| driver.launch(),
        Call::Synchronize => &|| {
            driver.launch();
            driver.synchronize();
        },
        Call::Copy => &|| {
            black_box(driver.copy_to_host());
        },
    };
    let elapsed = clock::timed(|| {
        for _ in 0..count {
            one();
        }
    });
    let each = |time: std::time::Duration| time.as_nanos() as f64 / count.max(1) as f64;
    println!(
        "{call:?}: {:.1} ns wall, {:.1} ns processor time",
        each(elapsed.wall),
        each(elapsed.cpu)
    );
    driver.synchronize();
}

fn idle(server: SocketAddr) {
    let driver = Driver::open(server);
    driver.launch();
    driver.synchronize();
    println!("idle");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

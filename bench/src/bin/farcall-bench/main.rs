//! The figures of the project on the command line.
#![forbid(unsafe_code)]

mod calls;
mod compare;
mod gate;
mod main_job;
mod net;
mod output;
mod replay;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use farcall_bench::gate::work;
use farcall_bench::net::{MIX_RATE, Transport};
use farcall_gpu_exec::{EXECUTOR_COMMAND, executor_main};

use self::calls::Call;
use self::main_job::Group;
use self::net::{Base, Common, Far, Listen, Pace, Rate, Transfers, Turns, WarmUp, of_calls, size};
use self::output::Output;

/// Measures the call path and the transport, each figure beside its limit from the same run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Round trips of small records; beside them the raw spinning ping-pong of the same size.
    Rtt {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        pace: Pace,
        /// Sizes, in bytes or with a unit.
        #[arg(long, value_delimiter = ',', value_parser = size, default_value = "8,64,1KiB,64KiB")]
        size: Vec<usize>,
    },
    /// Jitter (p99.9 - p50) and the spread of the time between answers, of round trips at one rate (open loop); beside them
    /// those of the raw spinning ping-pong at the same rate.
    Jitter {
        #[command(flatten)]
        common: Common,
        /// Trips a second; a latency counts from when its trip was due.
        #[arg(long, default_value_t = net::JITTER_RATE, value_parser = net::rate)]
        rate: f64,
        /// Sizes, in bytes or with a unit.
        #[arg(long, value_delimiter = ',', value_parser = size, default_value = "64")]
        size: Vec<usize>,
    },
    /// Large buffers; beside them bare TCP, or memcpy.
    Bulk {
        #[command(flatten)]
        common: Common,
        /// Sizes, in bytes or with a unit.
        #[arg(long, value_delimiter = ',', value_parser = size, default_value = "1MiB,64MiB")]
        size: Vec<usize>,
        #[command(flatten)]
        pace: Rate,
        #[command(flatten)]
        transfers: Transfers,
    },
    /// Records one way, as many as go.
    Flood {
        #[command(flatten)]
        common: Common,
        /// Sizes, in bytes or with a unit.
        #[arg(long, value_delimiter = ',', value_parser = size, default_value = "64,96")]
        size: Vec<usize>,
        #[command(flatten)]
        pace: Rate,
        /// Records of a run.
        #[arg(
            long,
            default_value_t = net::FLOOD_RECORDS,
            value_parser = clap::value_parser!(u64).range(1..=10_000_000)
        )]
        records: u64,
    },
    /// Many clients at once, each at its pace, with records of 64 bytes to 64 KiB.
    Mix {
        #[command(flatten)]
        base: Base,
        #[command(flatten)]
        warm: WarmUp,
        #[command(flatten)]
        far: Far,
        /// How many.
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
        clients: u32,
        /// Trips a second of all clients together.
        #[arg(long, default_value_t = MIX_RATE, value_parser = net::rate)]
        rate: f64,
    },
    /// Kernel launches through the built library: issuing, and with a wait for each.
    Launch {
        #[command(flatten)]
        base: Base,
        #[command(flatten)]
        turns: Turns,
        #[command(flatten)]
        pace: Rate,
        /// Launches in the long run.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
        launches: u32,
    },
    /// The far side of two hosts: serves until it is stopped.
    Server {
        /// Where.
        #[arg(long, default_value = "0.0.0.0:7480")]
        listen: String,
    },
    /// The near side of two hosts: everything against a `farcall-bench server`.
    Client {
        /// Its address: HOST, or HOST:PORT.
        host: String,
        #[command(flatten)]
        base: Base,
        #[command(flatten)]
        turns: Turns,
    },
    /// Every figure that the main job promises; the exit code is 1 if a promise is not kept.
    MainJob {
        #[command(flatten)]
        output: Output,
        /// Only figures of these groups.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<Group>,
        /// Launches in the long run.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
        launches: u32,
    },
    /// Makes one self-contained HTML page, and Markdown, of the results in bench/results.
    Report {
        /// Folder that it goes to.
        #[arg(long, default_value = "target/bench-report")]
        out: PathBuf,
        /// Folder with the .ndjson files that `--save` writes; by default bench/results.
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Counts the instructions of the hot paths under callgrind, and round trips and bytes of the steps of recorded programs;
    /// the exit code is 1 if a path exceeds its budget (bench/budgets.toml) by more than 2 %, and the functions that grew are
    /// named, if a step differs at all, or if one of either is gone.
    Gate(gate::Told),
    /// Two builds of this program in turns with the same arguments: which is slower, and how surely.
    Compare(compare::Told),
    /// A hot path of this process, over and over: what `gate` counts.
    #[command(hide = true)]
    Count {
        /// Which.
        name: String,
        /// How often.
        times: u64,
    },
    /// Makes so many calls of one kind and prints the time of each: for profilers, and under `farcall run`.
    Calls {
        /// Which.
        call: Call,
        /// How many.
        count: u64,
        /// Waits for the device after so many calls.
        #[arg(long, default_value_t = u64::MAX)]
        burst: u64,
        /// Where the server is.
        #[arg(long, env = "FARCALL_SERVER")]
        server: SocketAddr,
        /// Backend.
        #[arg(long, default_value = "tcp", value_parser = of_calls)]
        transport: Transport,
    },
    /// A recorded program played again on `null`: time, processor time, round trips and bytes of its steps, and how much
    /// longer they take the farther the server is.
    Replay(replay::Told),
    /// Plays a record once, for `replay`.
    #[command(hide = true)]
    Play {
        /// The record.
        trace: PathBuf,
        /// Through functions that do nothing.
        #[arg(long)]
        hollow: bool,
    },
    /// A session that does nothing any more: processor time of both sides, and over verbs the memory that it has registered.
    Idle {
        #[command(flatten)]
        base: Base,
        #[command(flatten)]
        listen: Listen,
    },
    /// Opens a session, runs a kernel, prints `idle` and waits until standard input ends.
    #[command(hide = true)]
    Rest {
        /// Where the server is.
        #[arg(long, env = "FARCALL_SERVER")]
        server: SocketAddr,
        /// Backend.
        #[arg(long, default_value = "tcp", value_parser = of_calls)]
        transport: Transport,
    },
}

fn main() -> ExitCode {
    // The servers that `gate` starts run this program again.
    if std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == EXECUTOR_COMMAND)
    {
        return executor_main();
    }
    let done = match Cli::parse().command {
        Command::Rtt { common, pace, size } => net::rtt(&common, &pace, &size),
        Command::Jitter { common, rate, size } => net::jitter(&common, rate, &size),
        Command::Bulk {
            common,
            size,
            pace,
            transfers,
        } => net::bulk(&common, &pace, &size, &transfers),
        Command::Flood {
            common,
            size,
            pace,
            records,
        } => net::flood(&common, &pace, &size, records),
        Command::Mix {
            base,
            warm,
            far,
            clients,
            rate,
        } => net::mix(&base, warm, &far, clients, rate),
        Command::Launch {
            base,
            turns,
            pace,
            launches,
        } => main_job::launch(&base, turns, pace, launches),
        Command::Server { listen } => net::server(&listen),
        Command::Client { host, base, turns } => net::client(&host, &base, turns),
        Command::MainJob {
            output,
            only,
            launches,
        } => main_job::main_job(&output, &only, launches),
        Command::Calls {
            call,
            count,
            burst,
            server,
            transport,
        } => {
            calls::calls(call, count, burst, server, transport);
            Ok(true)
        }
        Command::Replay(told) => replay::replay(&told),
        Command::Play { trace, hollow } => replay::play(&trace, hollow),
        Command::Report { out, results } => output::report(&out, results),
        Command::Gate(told) => gate::gate(&told),
        Command::Compare(told) => compare::compare_builds(&told),
        Command::Count { name, times } => work::run(&name, times).map(|()| true),
        Command::Idle { base, listen } => net::idle(&base, listen),
        Command::Rest { server, transport } => {
            calls::rest(server, transport);
            Ok(true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("farcall-bench: {error}");
            ExitCode::from(2)
        }
    }
}

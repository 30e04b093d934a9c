//! The `farcall` command: serves devices, runs programs on them, and shows what goes on between.
//!
//! - `args` is what can be typed;
//! - `serve` (with `metrics`), `top`, `run`, `devices`, `netperf`, `coverage`, `trace`, `cdi`, `generate` are the subcommands;
//! - `pool` has those about pools;
//! - `health` looks at this machine and its ways, `nvml` at its GPUs;
//! - `connect` is what the ones that need a server share, `failure` how they end.
#![forbid(unsafe_code)]

mod args;
mod cdi;
mod connect;
mod coverage;
mod devices;
mod failure;
mod generate;
mod health;
mod metrics;
mod netperf;
mod nvml;
mod pool;
mod run;
mod serve;
mod table;
mod tls;
mod top;
mod trace;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    // An executor is this program again, started by the server: nothing else may run before it.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == farcall_gpu_exec::EXECUTOR_COMMAND)
    {
        serve::start_log();
        return farcall_gpu_exec::executor_main();
    }
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(args) => serve::serve(&args),
        Command::Run(args) => run::run(&args),
        Command::Pool(command) => pool::command(&command),
        Command::Request(args) => pool::request(&args),
        Command::Release(args) => pool::release(&args),
        Command::Leases(args) => pool::leases(&args),
        Command::Gpus(args) => pool::gpus(&args),
        Command::Health(args) => health::health(&args),
        Command::Cdi(args) => cdi::cdi(&args),
        Command::Top(args) => top::top(&args),
        Command::Devices(args) => devices::devices(&args),
        Command::Netperf(args) => netperf::netperf(&args),
        Command::Coverage(args) => coverage::coverage(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    }
}

//! `main-job` and `launch`: figures of driver calls through the built library.
#![forbid(unsafe_code)]

use std::time::Duration;

use clap::ValueEnum;
use farcall_bench::driver::Driver;
use farcall_bench::figure::Figure;
use farcall_bench::measure;
use farcall_bench::net::{Load, Transport};
use farcall_bench::pin::{self, Side};
use farcall_bench::run::Before;
use farcall_fixtures::Server;

use crate::net::{Base, Rate, Turns, of_calls};
use crate::output::Output;

/// How the blocking calls of the main job are measured.
const LOAD: Load = Load {
    duration: Duration::from_secs(1),
    warm_up: Duration::from_millis(100),
    rounds: 5,
    rate: None,
};

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Records into bytes and back.
    Marshal,
    /// Calls that the client answers.
    Local,
    /// Issuing kernel launches.
    Launch,
    /// Calls that wait.
    Blocking,
    /// Blocking round trips of start-up, and of calls that wait.
    Trips,
    /// An idle session.
    Memory,
}

pub(crate) fn main_job(output: &Output, only: &[Group], launches: u32) -> Result<bool, String> {
    let before = Before::here();
    let wanted = |group: Group| only.is_empty() || only.contains(&group);
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut figures = Vec::new();
    // The figures of other processes come before this process opens the driver, so that what it starts decides for
    // itself.
    if wanted(Group::Trips) {
        figures.extend(measure::startup(&own));
    }
    if wanted(Group::Memory) {
        figures.extend(measure::idle_memory(&own));
    }
    if wanted(Group::Marshal) {
        figures.extend(measure::marshal());
    }
    if [Group::Local, Group::Launch, Group::Blocking]
        .into_iter()
        .any(wanted)
    {
        let server = pin::on(Side::Server, || Server::start("null", &[]));
        let driver = Driver::open(server.addr(), Transport::TCP);
        if wanted(Group::Local) {
            figures.extend(measure::local(&driver));
        }
        if wanted(Group::Blocking) {
            let blocking = measure::blocking(&driver, Transport::TCP, "", &LOAD);
            figures.extend(blocking.map_err(|error| error.to_string())?);
        }
        if wanted(Group::Launch) {
            figures.extend(measure::issue(&driver, launches));
        }
    }
    output.print(before, figures, None, Ok(()))
}

/// `launch`: issuing and waiting, over any transport; at a rate, waiting alone.
pub(crate) fn launch(base: &Base, turns: Turns, pace: Rate, launches: u32) -> Result<bool, String> {
    let before = Before::here();
    let transport = of_calls(base.transport.name())?;
    base.choose_cores()?;
    let server = pin::on(Side::Server, || Server::start("null", &[]));
    let driver = Driver::open(server.addr(), transport);
    let suffix = format!("/{transport}");
    let load = base.load_in_turns(turns, pace.rate);
    let blocking = measure::blocking(&driver, transport, &suffix, &load);
    let mut figures = blocking.map_err(|error| error.to_string())?;
    if load.rate.is_none() {
        for figure in measure::issue(&driver, launches) {
            let name = format!("{}{suffix}", figure.name);
            figures.push(Figure { name, ..figure });
        }
    }
    base.output.print(before, figures, None, Ok(()))
}

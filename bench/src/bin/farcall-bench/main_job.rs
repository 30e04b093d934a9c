//! `main-job` and `launch`: figures of driver calls through the built library.
#![forbid(unsafe_code)]

use farcall_bench::driver::Driver;
use farcall_bench::measure;
use farcall_bench::net::Transport;
use farcall_bench::pin::{self, Side};
use farcall_fixtures::Server;

use crate::net::Common;
use crate::output::Output;

/// Turns of the blocking calls.
const TURNS: usize = 200;

pub(crate) fn main_job(output: &Output, only: &[String], launches: u32) -> Result<bool, String> {
    let wanted = |group: &str| only.is_empty() || only.iter().any(|name| name == group);
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut figures = Vec::new();
    // The figures of other processes come before this process opens the driver, so that what it starts decides for
    // itself.
    if wanted("trips") {
        figures.extend(measure::startup(&own));
    }
    if wanted("memory") {
        figures.extend(measure::idle_memory(&own));
    }
    if wanted("marshal") {
        figures.extend(measure::marshal());
    }
    if ["local", "launch", "blocking"].into_iter().any(wanted) {
        let server = pin::on(Side::Server, || Server::start("null", &[]));
        let driver = Driver::open(server.addr(), Transport::TCP);
        if wanted("local") {
            figures.extend(measure::local(&driver));
        }
        if wanted("blocking") {
            figures.extend(measure::blocking(&driver, TURNS));
        }
        if wanted("launch") {
            figures.extend(measure::issue(&driver, launches));
        }
    }
    output.print(figures, None)
}

/// `launch`: issuing and waiting, over any transport.
pub(crate) fn launch(common: &Common, launches: u32) -> Result<bool, String> {
    common.choose_cores()?;
    let server = pin::on(Side::Server, || Server::start("null", &[]));
    let driver = Driver::open(server.addr(), common.transport);
    let mut figures = measure::blocking(&driver, TURNS);
    figures.extend(measure::issue(&driver, launches));
    for figure in &mut figures {
        figure.name = format!("{}/{}", figure.name, common.transport);
    }
    common.output.print(figures, None)
}

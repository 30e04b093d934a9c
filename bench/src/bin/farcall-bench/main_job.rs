//! `main-job` and `launch`: figures of driver calls through the built library.
#![forbid(unsafe_code)]

use std::time::Duration;

use farcall_bench::driver::Driver;
use farcall_bench::figure::Figure;
use farcall_bench::measure;
use farcall_bench::net::{Load, Transport};
use farcall_bench::pin::{self, Side};
use farcall_fixtures::Server;

use crate::net::{Common, Rate};
use crate::output::Output;

/// How the blocking calls of the main job are measured.
const LOAD: Load = Load {
    duration: Duration::from_secs(1),
    warm_up: Duration::from_millis(100),
    rounds: 5,
    rate: None,
};

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
            figures.extend(measure::blocking(&driver, Transport::TCP, "", &LOAD));
        }
        if wanted("launch") {
            figures.extend(measure::issue(&driver, launches));
        }
    }
    output.print(figures, None)
}

/// `launch`: issuing and waiting, over any transport; at a rate, waiting alone.
pub(crate) fn launch(common: &Common, pace: Rate, launches: u32) -> Result<bool, String> {
    common.choose_cores()?;
    let server = pin::on(Side::Server, || Server::start("null", &[]));
    let driver = Driver::open(server.addr(), common.transport);
    let (suffix, load) = (format!("/{}", common.transport), common.load(pace.rate));
    let mut figures = measure::blocking(&driver, common.transport, &suffix, &load);
    if load.rate.is_none() {
        for figure in measure::issue(&driver, launches) {
            let name = format!("{}{suffix}", figure.name);
            figures.push(Figure { name, ..figure });
        }
    }
    common.output.print(figures, None)
}

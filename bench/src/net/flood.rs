//! Small records one way, as many as go.
#![forbid(unsafe_code)]

use super::link::{Link, Run};
use super::service::Mode;
use super::turns::throughput;
use super::{Against, Failure, Load, Party, Transport, in_turns, size_name};
use crate::figure::{Figure, Target};
use crate::peers::{Tools, What};
use crate::pin::{self, Side};
use crate::raw::{copy::MemCopy, tcp};

/// `flood/*`: millions of records a second, delivered, in runs of `records`; beside it what the same bytes as one
/// block take over bare TCP, or to copy in memory; then peers.
///
/// # Errors
/// The transport's; perftest, the limit of RDMA, is missing.
///
/// # Panics
/// If the run has more bytes than memory addresses.
pub fn flood(
    against: &Against<'_>,
    transport: Transport,
    bytes: usize,
    records: u64,
    load: &Load,
) -> Result<Figure, Failure> {
    pin::on(Side::Client, || {
        let bytes = bytes.max(8).next_multiple_of(8);
        let total = records * bytes as u64;
        let link = Link::open(against.server, transport, Mode::Sink { bytes: total })?;
        let name = link.transport_name();
        let mut tools = Tools::beside(against, name, What::Flood, bytes)?;
        let load = load.in_rounds(tools.rounds());
        let block = usize::try_from(total).expect("a run that fits into memory");
        let mut parties = vec![Party::new(name, Run::new(link, records, bytes), &load)];
        if against.is_local && name == "shm" {
            let copy = MemCopy::new(block);
            parties.push(Party::new("memcpy of the same bytes", copy, &load));
        } else if against.is_local && name != "verbs" {
            // What RDMA can do, perftest measures (`crate::peers`).
            let raw = tcp::Bulk::new(block);
            parties.push(Party::new("raw TCP, the same bytes", raw, &load));
        }
        let runs = format!("flood/{name}/{}/runs_of_{records}", size_name(bytes));
        let title = load.named(runs);
        let done = in_turns(&load, parties, &mut || tools.round())?;
        // Records per microsecond are millions a second.
        let figure = throughput(title, "M/s", records as f64, &load, &done);
        let figure = tools.stand_beside(figure)?;
        let is_promised = bytes == 64 && against.is_local && load.rate.is_none();
        Ok(if is_promised {
            figure.target(Target::ValueAtLeast(if name == "shm" { 10.0 } else { 3.0 }))
        } else {
            figure
        })
    })
}

//! Small records one way, as many as go.
#![forbid(unsafe_code)]

use farcall_transport::ConnectError;

use super::link::{Link, Run};
use super::service::Mode;
use super::{Load, Party, Transport, in_turns, size_name};
use crate::figure::{Figure, Target};
use crate::pin::{self, Side};
use crate::raw::{copy::MemCopy, tcp};

/// `flood/*`: millions of records a second, delivered, in runs of `records`; beside it what the same bytes as one
/// block take over bare TCP, or to copy in memory.
///
/// # Errors
/// The transport's.
///
/// # Panics
/// If the run has more bytes than memory addresses.
pub fn flood(
    server: &str,
    transport: Transport,
    bytes: usize,
    records: u64,
    load: &Load,
    is_local: bool,
) -> Result<Figure, ConnectError> {
    pin::on(Side::Client, || {
        let bytes = bytes.max(8).next_multiple_of(8);
        let total = records * bytes as u64;
        let link = Link::open(server, transport, Mode::Sink { bytes: total })?;
        let name = link.transport_name();
        let block = usize::try_from(total).expect("a run that fits into memory");
        let mut parties = vec![Party::new(name, Run::new(link, records, bytes), load)];
        if is_local && name == "shm" {
            parties.push(Party::new(
                "memcpy of the same bytes",
                MemCopy::new(block),
                load,
            ));
        } else if is_local {
            parties.push(Party::new(
                "raw TCP, the same bytes",
                tcp::Bulk::new(block),
                load,
            ));
        }
        let mut done = in_turns(load, parties)
            .into_iter()
            .map(|(party, recorder)| {
                let latency = recorder.finish();
                // Records per microsecond.
                (party, records as f64 / latency.measured.p50, latency)
            });
        let mut figure = Figure::new(format!("flood/{name}/{}", size_name(bytes)), "M/s", 0.0);
        if let Some((_, rate, latency)) = done.next() {
            figure.value = rate;
            figure = figure.latency(latency);
        }
        for (party, rate, latency) in done {
            figure = figure.beside_latency(&party, rate, Some(latency));
        }
        if bytes == 64 && is_local {
            figure = figure.target(Target::ValueAtLeast(if name == "shm" { 10.0 } else { 3.0 }));
        }
        Ok(figure)
    })
}

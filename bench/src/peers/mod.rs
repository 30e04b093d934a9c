//! Other projects' tools for the same measurements, where they are installed (`scripts/peers`): each runs as its
//! authors mean it to, client and server on the cores that ours have.
#![forbid(unsafe_code)]

mod tool;

use std::io;

use crate::figure::Figure;
use tool::{TOOLS, What};

/// Adds the round trip of every installed peer that does what the figure's transport does, in microseconds.
#[must_use]
pub fn beside_rtt(figure: Figure, bytes: usize) -> Figure {
    beside(figure, What::Rtt, bytes)
}

/// Adds the throughput of every installed peer, in GB/s.
#[must_use]
pub fn beside_bulk(figure: Figure) -> Figure {
    // Peers have a size of their own for this: what a pipeline of such messages reaches.
    beside(figure, What::Bulk, 1 << 20)
}

/// Adds what perftest measures, as the limit of a figure of RDMA that has no other: 2 x `ib_write_lat` or
/// `ib_write_bw`. A figure of another transport stays as it is.
///
/// # Errors
/// The tools are not installed, or measure nothing.
pub fn limit_of_verbs(figure: Figure, bytes: usize) -> io::Result<Figure> {
    if !figure.name.contains("/verbs/") {
        return Ok(figure);
    }
    let (what, bytes) = if figure.name.starts_with("rtt/") {
        (What::Rtt, bytes)
    } else {
        (What::Bulk, 1 << 20)
    };
    let tool = TOOLS
        .iter()
        .find(|tool| tool.is_for("verbs", what) && tool.is_limit());
    let value = tool.map_or(Ok(None), |tool| tool.measure(bytes))?;
    match (tool, value) {
        (Some(tool), Some(value)) => Ok(figure.beside(tool.name, value)),
        _ => Err(io::Error::other(
            "perftest is not installed (Debian: apt-get install perftest)",
        )),
    }
}

fn beside(mut figure: Figure, what: What, bytes: usize) -> Figure {
    let transport = figure.name.split('/').nth(1).unwrap_or_default().to_owned();
    let is_beside = |figure: &Figure, name| figure.beside.iter().any(|b| b.name == name);
    for tool in TOOLS.iter().filter(|tool| tool.is_for(&transport, what)) {
        if is_beside(&figure, tool.name) {
            continue;
        }
        match tool.measure(bytes) {
            Ok(Some(value)) => figure = figure.beside(tool.name, value),
            Ok(None) => {}
            Err(error) => eprintln!("note: {}: {error}", tool.name),
        }
    }
    figure
}

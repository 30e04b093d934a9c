//! Other projects' tools for the same measurements, where they are installed (`scripts/peers`): each runs as its
//! authors mean it to, client and server on the cores that ours have.
#![forbid(unsafe_code)]

mod tool;

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

fn beside(mut figure: Figure, what: What, bytes: usize) -> Figure {
    let transport = figure.name.split('/').nth(1).unwrap_or_default().to_owned();
    for tool in TOOLS.iter().filter(|tool| tool.is_for(&transport, what)) {
        match tool.measure(bytes) {
            Ok(Some(value)) => figure = figure.beside(tool.name, value),
            Ok(None) => {}
            Err(error) => eprintln!("note: {}: {error}", tool.name),
        }
    }
    figure
}

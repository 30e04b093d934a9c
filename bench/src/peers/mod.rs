//! Other projects' tools for the same measurements, where they are installed (`scripts/peers`): each runs as its
//! authors mean it to, client and server on the cores that ours have, in turns with ours.
#![forbid(unsafe_code)]

mod tool;

use std::io;

use crate::figure::{Beside, Figure};
use crate::net::Against;
use crate::spread::Spread;
use tool::{TOOLS, Tool};

pub(crate) use tool::What;

/// Rounds of a run in which tools take turns with ours: a machine that changes within minutes meets all of them.
const ROUNDS: u32 = 5;

/// The tools that stand beside one figure, with what they have measured so far.
#[derive(Debug)]
pub(crate) struct Tools {
    bytes: usize,
    measured: Vec<(&'static Tool, Vec<f64>)>,
}

impl Tools {
    /// Those for a figure over this transport: what perftest measures as the limit of RDMA, which has no other, and the
    /// peers, if they are wanted. On another host there are none.
    ///
    /// # Errors
    /// perftest is not installed.
    pub(crate) fn beside(
        against: &Against<'_>,
        transport: &str,
        what: What,
        bytes: usize,
    ) -> io::Result<Self> {
        let is_for = |tool: &&'static Tool| against.is_local && tool.is_for(transport, what);
        let (limits, peers): (Vec<_>, Vec<_>) = TOOLS
            .iter()
            .filter(is_for)
            .partition(|tool| tool.is_limit());
        if let Some(limit) = limits.iter().find(|tool| !tool.is_installed()) {
            return Err(io::Error::other(format!(
                "{} is the limit, and perftest is not installed (Debian: apt-get install perftest)",
                limit.name
            )));
        }
        let peers = peers
            .into_iter()
            .filter(|tool| against.with_peers && tool.is_installed());
        Ok(Self {
            bytes: what.bytes(bytes),
            measured: limits
                .into_iter()
                .chain(peers)
                .map(|tool| (tool, Vec::new()))
                .collect(),
        })
    }

    /// How many rounds a run should have.
    pub(crate) fn rounds(&self) -> u32 {
        if self.measured.is_empty() { 1 } else { ROUNDS }
    }

    /// Measures each once. One that fails is said to, and not tried again.
    pub(crate) fn round(&mut self) {
        let bytes = self.bytes;
        self.measured
            .retain_mut(|(tool, values)| match tool.measure(bytes) {
                Ok(value) => {
                    values.push(value);
                    true
                }
                Err(error) => {
                    eprintln!("note: {}: {error}", tool.name);
                    false
                }
            });
    }

    /// The figure beside the medians of what was measured.
    pub(crate) fn stand_beside(self, figure: Figure) -> Figure {
        let measured = self.measured.into_iter();
        let measured = measured.filter(|(_, values)| !values.is_empty());
        measured.fold(figure, |figure, (tool, values)| {
            let median = Spread::of(&mut values.clone()).p50;
            figure.with(Beside::new(tool.name, median).rounds(values))
        })
    }
}

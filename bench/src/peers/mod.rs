//! Other projects' tools for the same measurements, where they are installed (`scripts/peers`): each runs as its
//! authors mean it to, client and server on the cores that ours have, in turns with ours.
#![forbid(unsafe_code)]

mod tool;

use std::io;

use crate::figure::{Beside, Figure};
use crate::net::{Against, Failure};
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
    /// Why the limit could not be measured: nothing can be said of the figure then.
    failed: Option<io::Error>,
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
            failed: None,
        })
    }

    /// How many rounds a run should have.
    pub(crate) fn rounds(&self) -> u32 {
        if self.measured.is_empty() { 1 } else { ROUNDS }
    }

    /// Measures each once. One that fails is said to, and not tried again.
    pub(crate) fn round(&mut self) {
        let bytes = self.bytes;
        self.round_by(|tool| tool.measure(bytes));
    }

    fn round_by(&mut self, mut measure: impl FnMut(&Tool) -> io::Result<f64>) {
        let failed = &mut self.failed;
        self.measured
            .retain_mut(|(tool, values)| match measure(tool) {
                Ok(value) => {
                    values.push(value);
                    true
                }
                Err(error) if tool.is_limit() => {
                    *failed = Some(io::Error::other(format!("{}: {error}", tool.name)));
                    false
                }
                Err(error) => {
                    eprintln!("note: {}: {error}", tool.name);
                    false
                }
            });
    }

    /// The figure beside the medians of what was measured.
    ///
    /// # Errors
    /// Its limit could not be measured.
    pub(crate) fn stand_beside(self, figure: Figure) -> Result<Figure, Failure> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        let measured = self.measured.into_iter();
        let measured = measured.filter(|(_, values)| !values.is_empty());
        Ok(measured.fold(figure, |figure, (tool, values)| {
            let median = Spread::of(&mut values.clone()).p50;
            let beside = Beside::new(tool.name, median).rounds(values);
            figure.with(if tool.is_limit() {
                beside
            } else {
                beside.peer()
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io;

    use super::{TOOLS, Tool, Tools, What};
    use crate::figure::Figure;

    /// Over verbs: perftest, which is the limit, and a peer.
    fn tools() -> Tools {
        let is_there = |tool: &&'static Tool| tool.is_for("verbs", What::Rtt);
        let mut tools: Vec<_> = TOOLS.iter().filter(is_there).collect();
        tools.sort_by_key(|tool| !tool.is_limit());
        assert!(matches!(&tools[..], [limit, peer] if limit.is_limit() && !peer.is_limit()));
        Tools {
            bytes: 64,
            measured: tools.into_iter().map(|tool| (tool, Vec::new())).collect(),
            failed: None,
        }
    }

    #[test]
    fn a_peer_never_takes_the_place_of_the_limit() {
        let figure = || Figure::new("rtt", "us", 6.0);
        let mut all = tools();
        all.round_by(|tool| Ok(if tool.is_limit() { 3.0 } else { 12.0 }));
        let beside = all.stand_beside(figure()).unwrap();
        assert_eq!((beside.beside.len(), beside.ratio()), (2, Some(2.0)));
        let mut without = tools();
        without.round_by(|tool| match tool.is_limit() {
            true => Err(io::Error::other("no device")),
            false => Ok(12.0),
        });
        let error = without.stand_beside(figure()).unwrap_err().to_string();
        assert!(error.contains("ib_write_lat: no device"), "{error}");
        let mut without_peer = tools();
        without_peer.round_by(|tool| match tool.is_limit() {
            true => Ok(3.0),
            false => Err(io::Error::other("crashed")),
        });
        let beside = without_peer.stand_beside(figure()).unwrap();
        assert_eq!((beside.beside.len(), beside.ratio()), (1, Some(2.0)));
    }
}

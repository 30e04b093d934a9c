//! Executable graphs: lists of operations in an order that their edges allow.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use farcall_marshal::status::CuStatus;

use super::work::Work;
use crate::executor::outbox::Failure;

/// Most nodes of a graph that the loop runs itself.
const QUICK_NODES_MAX: usize = 256;

/// A graph; its definition may still be on its way.
#[derive(Debug, Default)]
pub(crate) struct GraphExec {
    nodes: OnceLock<Result<Vec<Work<'static>>, Failure>>,
}

impl GraphExec {
    /// The definition has come, or is none.
    pub(crate) fn define(&self, nodes: Result<Vec<Work<'static>>, Failure>) {
        let _ = self.nodes.set(nodes);
    }

    /// Whether the definition is there.
    pub(crate) fn has_come(&self) -> bool {
        self.nodes.get().is_some()
    }

    /// The operations in order; none if there is no valid definition.
    pub(crate) fn nodes(&self) -> &[Work<'static>] {
        match self.nodes.get() {
            Some(Ok(nodes)) => nodes,
            _ => &[],
        }
    }

    /// Whether running it takes no longer than handing it over.
    pub(crate) fn is_quick(&self) -> bool {
        self.has_come()
            && self.nodes().len() <= QUICK_NODES_MAX
            && self.nodes().iter().all(Work::is_quick)
    }

    /// What a launch that ran all nodes gives.
    pub(crate) fn outcome(&self) -> Result<(), Failure> {
        match self.nodes.get() {
            Some(Ok(_)) => Ok(()),
            _ => Err(Failure::new(
                CuStatus::INVALID_HANDLE,
                "the graph was not instantiated",
            )),
        }
    }
}

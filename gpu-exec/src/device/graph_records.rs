//! A graph as it comes: records of stream operations, one after the other.
#![forbid(unsafe_code)]

use farcall_marshal::record::{DecodeError, Head, Record, split};
use farcall_marshal::status::CuStatus;

use crate::executor::outbox::Failure;
use crate::limits::GRAPH_NODES_MAX;

/// Whether a graph may have so many nodes.
///
/// # Errors
/// `OUT_OF_MEMORY`: no.
pub(crate) fn check_count(node_count: u64) -> Result<(), Failure> {
    if node_count > GRAPH_NODES_MAX as u64 {
        return Err(Failure::new(
            CuStatus::OUT_OF_MEMORY,
            format!("a graph of {node_count} nodes"),
        ));
    }
    Ok(())
}

/// What `node` makes of each record.
///
/// # Errors
/// A record that is none, or that `node` refuses; another number of them than was announced.
pub(crate) fn nodes<T>(
    records: &[u8],
    node_count: u64,
    mut node: impl FnMut(&Head, &[u8]) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let (mut nodes, mut rest) = (Vec::new(), records);
    while !rest.is_empty() {
        let (head, body, after) = split(rest).map_err(malformed)?;
        nodes.push(node(&head, body)?);
        rest = after;
    }
    if nodes.len() as u64 != node_count {
        return Err(Failure::new(
            CuStatus::INVALID_VALUE,
            format!("{} nodes, announced were {node_count}", nodes.len()),
        ));
    }
    Ok(nodes)
}

/// A record's body.
///
/// # Errors
/// `INVALID_VALUE`: it is no such body.
pub(crate) fn decoded<'a, R: Record<'a>>(body: &'a [u8]) -> Result<R, Failure> {
    R::decode_body(body).map_err(malformed)
}

fn malformed(error: DecodeError) -> Failure {
    Failure::new(CuStatus::INVALID_VALUE, error.to_string())
}

//! Simulation: sessions in memory, with faults from a seed.
//!
//! [`pair`] connects two real endpoints through memory that delivers in odd pieces, stalls and
//! breaks as the seed says. [`scenario`] runs the session core alone, in virtual time and one
//! thread, over packets that are lost, doubled, delayed and reordered: the same seed gives the
//! same run.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use crate::endpoint::{Agreed, Endpoint, Handler};
use crate::handshake::{SessionId, SessionKey};
use crate::options::{Limits, Tuning};
use crate::stream::Stream;

mod dial;
pub(crate) mod pipe;
pub mod scenario;

/// How a simulated connection misbehaves. Chances are in 1/256 per operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A read or write moves only a few bytes.
    pub short: u8,
    /// A read or write finds nothing to do although there is.
    pub stall: u8,
    /// The connection breaks after this many bytes in one direction.
    pub cut_after_bytes: Option<u64>,
}

/// Numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for every seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n.max(1)
    }

    /// True with a chance of `n` in 256.
    pub fn chance(&mut self, n: u8) -> bool {
        self.below(256) < u64::from(n)
    }
}

/// Two connected endpoints, the first one in the role of the client.
///
/// # Errors
/// The system's, for memory, event descriptors or the client's thread.
pub fn pair(
    seed: u64,
    faults: Faults,
    limits: Limits,
    tuning: &Tuning,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> io::Result<(Endpoint, Endpoint)> {
    let (near, far) = pipe::pair(seed, faults)?;
    let (near_bulk, far_bulk) = pipe::pair(seed ^ 1, faults)?;
    let mut rng = Rng::new(seed);
    let mut random = [0; 16];
    random[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
    let agreed = Agreed {
        session: SessionId(random),
        key: SessionKey(random),
        local: limits,
        remote: limits,
        version: crate::PROTOCOL_VERSION,
    };
    let start = |stream: pipe::Pipe, bulk: pipe::Pipe, handler, client| {
        let stream: Arc<dyn Stream> = Arc::new(stream);
        let endpoint = Endpoint::start(stream, &agreed, tuning, handler, None, client)?;
        endpoint.attach_bulk_stream(Arc::new(bulk));
        Ok::<_, io::Error>(endpoint)
    };
    Ok((
        start(near, near_bulk, client, true)?,
        start(far, far_bulk, server, false)?,
    ))
}

//! Copies from one server straight to another: the client tells both ends, the bytes do not come here.
//!
//! The first copy between two servers asks the one to take a link and the other to open it, with a secret that is drawn
//! here; where that is not possible, copies of the pair go through this process ([`super::ferry`]). Each piece has a secret of its own,
//! which the receiving server takes once, for that piece.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuMemcpyDtoHAsyncV2, CuMemcpyHtoDAsyncV2, PeerAccept, PeerCancel, PeerConnect, PeerExpect,
    PeerPush,
};
use farcall_transport::random16;
use parking_lot::Mutex;

use crate::session::{Session, SessionKey};
use crate::stream::Stream;
use crate::ticket::{Pending, Sink};

/// Bytes of a piece: servers have pinned memory for several of that size.
const PIECE_BYTES: usize = 4 << 20;
/// Pieces on their way: so many are read, sent and written at the same time.
const PIECES: usize = 4;

/// How bytes of a session get to others.
#[derive(Default)]
pub(crate) struct Ways {
    known: Mutex<HashMap<SessionKey, Way>>,
}

#[derive(Clone, Copy)]
enum Way {
    /// Over the link of this number.
    Direct(u64),
    ThroughHere,
}

/// One copy.
pub(super) struct Copy<'a> {
    pub(super) to: &'a Stream,
    pub(super) from: &'a Stream,
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) bytes: usize,
}

impl Copy<'_> {
    /// Copies from server to server and waits until that is done. False: there is no way between them, nothing is copied for sure.
    ///
    /// # Errors
    /// One of the sessions has ended.
    pub(super) fn run(&self) -> CuResult<bool> {
        // What fits into a record is here as soon as it would be there.
        if self.bytes <= INLINE_BYTES_MAX {
            return Ok(false);
        }
        let (from, to) = (self.from.session(), self.to.session());
        let Way::Direct(link) = way(from, to) else {
            return Ok(false);
        };
        let Err(status) = self.pieces(link) else {
            return Ok(true);
        };
        from.check()?;
        to.check()?;
        from.ways
            .known
            .lock()
            .insert(SessionKey::of(to), Way::ThroughHere);
        let (from, to) = (from.inbox.server(), to.inbox.server());
        log::warn!(
            "the way from {from} to {to} is lost ({status}): copies go through this machine"
        );
        Ok(false)
    }

    fn pieces(&self, link: u64) -> CuResult {
        let mut flights = VecDeque::with_capacity(PIECES);
        let mut at = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() && at < self.bytes {
            let left = self.bytes - at;
            // The last one takes what would be too short for a transfer.
            let is_last = left <= PIECE_BYTES + INLINE_BYTES_MAX;
            let len = if is_last { left } else { PIECE_BYTES };
            if flights.len() == PIECES
                && let Some(first) = flights.pop_front()
            {
                outcome = self.land(first);
            }
            if outcome.is_ok() {
                match self.send(link, at, len) {
                    Ok(flight) => flights.push_back(flight),
                    Err(status) => outcome = Err(status),
                }
            }
            at += len;
        }
        for flight in flights {
            outcome = match outcome {
                Ok(()) => self.land(flight),
                Err(status) => {
                    let _ = self.give_up(&flight);
                    Err(status)
                }
            };
        }
        outcome
    }

    /// Tells both servers of a piece. The one that receives is told first.
    fn send(&self, link: u64, at: usize, len: usize) -> CuResult<Flight> {
        let secret = random16().map_err(|_| CuStatus::OPERATING_SYSTEM)?;
        let (from, to) = (self.from.session(), self.to.session());
        let (source, landing) = (from.new_id(), to.new_id());
        let (at, count) = (at as u64, len as u64);
        let expect = PeerExpect {
            bulk: landing,
            link,
            byte_count: count,
            secret: &secret,
        };
        to.send(0, &expect)?;
        self.to.mark()?;
        let write = CuMemcpyHtoDAsyncV2 {
            dst: self.dst + at,
            count,
            stream: self.to.id,
            bulk: landing,
            data: &[],
        };
        let written = to.request(self.to.context.id, &write, Sink::Keep)?;
        let mut flight = Flight {
            landing,
            written,
            sent: None,
        };
        let push = PeerPush {
            bulk: source,
            peer: link,
            to: landing,
            secret: &secret,
        };
        let read = CuMemcpyDtoHAsyncV2 {
            src: self.src + at,
            count,
            stream: self.from.id,
            bulk: source,
        };
        let asked = from
            .send(0, &push)
            .and_then(|()| self.from.mark())
            .and_then(|_| from.request(self.from.context.id, &read, Sink::Keep));
        match asked {
            Ok(sent) => {
                flight.sent = Some(sent);
                Ok(flight)
            }
            Err(status) => {
                let _ = self.give_up(&flight);
                Err(status)
            }
        }
    }

    /// Waits until a piece is there.
    fn land(&self, flight: Flight) -> CuResult {
        let left = match &flight.sent {
            Some(sent) => done(self.from.session(), sent),
            None => Err(CuStatus::UNKNOWN),
        };
        if left.is_err() {
            let _ = self.give_up(&flight);
            return left;
        }
        done(self.to.session(), &flight.written)
    }

    /// Lets the receiving server forget a piece, which else it would wait for.
    fn give_up(&self, flight: &Flight) -> CuResult {
        let to = self.to.session();
        to.send(
            0,
            &PeerCancel {
                bulk: flight.landing,
            },
        )?;
        done(to, &flight.written)
    }
}

/// A piece on its way.
struct Flight {
    /// Its number at the server that receives it.
    landing: u64,
    written: Arc<Pending>,
    sent: Option<Arc<Pending>>,
}

fn done(session: &Session, pending: &Pending) -> CuResult {
    session.wait(pending)?;
    match pending.take().0 {
        CuStatus::SUCCESS => Ok(()),
        status => Err(status),
    }
}

/// How bytes get from one server to the other; found out by the first copy.
fn way(from: &'static Session, to: &'static Session) -> Way {
    let mut known = from.ways.known.lock();
    if let Some(way) = known.get(&SessionKey::of(to)) {
        return *way;
    }
    let (here, there) = (from.inbox.server(), to.inbox.server());
    let way = match open(from, to) {
        Ok(link) => {
            log::info!("copies from {here} to {there} go from server to server");
            Way::Direct(link)
        }
        Err(why) => {
            log::warn!("copies from {here} to {there} go through this machine: {why}");
            Way::ThroughHere
        }
    };
    known.insert(SessionKey::of(to), way);
    way
}

/// Has the one server open a link to the other.
fn open(from: &Session, to: &Session) -> Result<u64, String> {
    static LINKS: AtomicU64 = AtomicU64::new(1);
    let link = LINKS.fetch_add(1, Ordering::Relaxed);
    if [from, to]
        .iter()
        .any(|end| end.endpoint.transport_name() == "tls")
    {
        // A link between servers has no TLS: what was asked to be hidden would travel in the clear.
        return Err("--tls was asked for, which links between servers do not have".to_owned());
    }
    let address = address_of(to).ok_or("the other has no address in the network")?;
    let secret = random16().map_err(|error| error.to_string())?;
    let failed = |status: CuStatus| match status {
        CuStatus::NOT_SUPPORTED => "it does not reach the other, or may not".to_owned(),
        status => status.to_string(),
    };
    let accept = PeerAccept {
        link,
        secret: &secret,
    };
    to.ask(0, &accept).map_err(|status| match status {
        CuStatus::NOT_SUPPORTED => "the other takes no links (--no-peer-links)".to_owned(),
        status => status.to_string(),
    })?;
    let connect = PeerConnect {
        peer: link,
        address: &address,
        session: &to.endpoint.session().0,
        secret: &secret,
    };
    from.ask(0, &connect).map_err(failed)?;
    Ok(link)
}

/// Where the other server may find this one: where this process does.
fn address_of(server: &Session) -> Option<String> {
    if let Some(address) = server.endpoint.peer() {
        return Some(address.to_string());
    }
    let named = server.inbox.server().to_socket_addrs().ok()?.next()?;
    Some(named.to_string())
}

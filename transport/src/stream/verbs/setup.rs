//! From a TCP connection to two queue pairs: choosing the device, making our half, joining it
//! with the peer's, and proving that the path carries packets.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::byteorder::little_endian::{U32, U64};

use super::error::VerbsError;
use super::flow::{CREDIT_RESERVE, ring_bytes};
use super::offer::{Half, Offer, PLANES, PlaneOffer};
use super::plane::{Link, Parts, Peer, Plane, STAGING_BYTES};
use super::select::{self, Candidate, SYSFS, Way};
use crate::connect::exchange;
use crate::options::{RdmaMode, RdmaOptions};
use crate::stream::Stream;
use crate::stream::tcp::TcpStream;
use crate::sys::interfaces;
use crate::sys::random::random16;
use crate::sys::verbs::{Bounds, Cq, Device, Domain, Qp, QpPath, Region, preload};

/// Inboxes of calls and bulk.
const INBOX_BYTES: [usize; PLANES] = [256 << 10, 512 << 10];
/// What a session at rest has registered: inboxes and as much to send from, each mapped twice; pages of words; and the staging of both
/// ways once there was use for it. Memory that was lent to transfers comes on top, for as long as it is lent.
const REST_BYTES: usize =
    2 * 2 * (INBOX_BYTES[0] + INBOX_BYTES[1]) + PLANES * 2 * STATUS_BYTES + 2 * STAGING_BYTES;
const _: () = assert!(REST_BYTES <= 4_000_000);
/// Messages that the peer may send ahead, per plane.
const MESSAGES_MAX: usize = 256;
/// Work requests of each queue: receives for every message and credit, and as many sends.
const DEPTH: u32 = 512;
const _: () = assert!(MESSAGES_MAX + CREDIT_RESERVE <= DEPTH as usize);
/// Inline data that is wished for: a few records.
const INLINE_BYTES: u32 = 220;
/// Page of words that the peer writes.
const STATUS_BYTES: usize = 4096;
/// How long the probe may take: longer than the retries of one packet.
const PROBE_TIME: Duration = Duration::from_millis(1500);

/// What one side goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) options: RdmaOptions,
    /// Ends of the TCP connection.
    pub(crate) local: Option<IpAddr>,
    pub(crate) peer: Option<IpAddr>,
}

/// Our half of a session, before the peer's is known.
pub(crate) struct Near {
    domain: Arc<Domain>,
    candidate: Candidate,
    ethernet: bool,
    lid: u16,
    mtu: u8,
    memory: bool,
    bounds: Bounds,
    planes: [NearPlane; PLANES],
}

struct NearPlane {
    qp: Qp,
    cq: Arc<Cq>,
    inbox: Region,
    status: Region,
    psn: u32,
}

impl Near {
    /// Whether this machine has a device for these options at all. Reads sysfs only.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`], [`VerbsError::UnknownDevice`].
    pub(crate) fn at_hand(options: &RdmaOptions) -> Result<(), VerbsError> {
        let candidates = select::inventory(Path::new(SYSFS))?;
        let wished = options.device.as_ref().map(|name| name.as_str());
        match wished.filter(|name| candidates.iter().all(|c| c.device != *name)) {
            Some(name) => Err(VerbsError::UnknownDevice(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Does what takes long only the first time, before a server waits for us.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`], [`VerbsError::UnknownDevice`], [`VerbsError::Library`].
    pub(crate) fn prepare(options: &RdmaOptions) -> Result<(), VerbsError> {
        Self::at_hand(options)?;
        preload()
    }

    /// Chooses a device and makes our half. With the peer's half in hand the choice follows it.
    ///
    /// Blocks on the driver for some hundred microseconds, and on loading the library the first
    /// time.
    ///
    /// # Errors
    /// Why there is no RDMA here, or not on this path.
    pub(crate) fn new(side: &Side, peer: Option<&Half>) -> Result<Self, VerbsError> {
        let candidates = select::inventory(Path::new(SYSFS))?;
        let networks =
            interfaces::networks().map_err(|error| VerbsError::System(error.to_string()))?;
        let way = Way {
            local: side.local,
            peer: side.peer,
            peer_gid: peer.map(|half| half.gid),
            networks: &networks,
        };
        let candidate = select::choose(&candidates, &side.options, &way)?;
        let device = Device::open(&candidate.device)?;
        let port = device.port(candidate.port)?;
        if !port.active {
            return Err(VerbsError::PortDown(candidate.device));
        }
        let bounds = device.bounds()?;
        let depth = DEPTH.min(bounds.depth);
        if (depth as usize) < MESSAGES_MAX + CREDIT_RESERVE {
            return Err(VerbsError::System(format!(
                "{}: queues of {depth} are too short",
                device.name()
            )));
        }
        let domain = Domain::new(device)?;
        let inline = match side.options.mode {
            RdmaMode::Memory => 0,
            RdmaMode::Auto | RdmaMode::Completions => INLINE_BYTES,
        };
        let plane = |bytes| NearPlane::new(&domain, candidate.port, depth, bytes, inline);
        let planes = [plane(INBOX_BYTES[0])?, plane(INBOX_BYTES[1])?];
        let memory = match side.options.mode {
            RdmaMode::Auto => planes[0].qp.inline_bytes() == 0,
            RdmaMode::Memory => true,
            RdmaMode::Completions => false,
        };
        Ok(Self {
            ethernet: port.ethernet,
            lid: port.lid,
            mtu: port.mtu,
            memory,
            bounds,
            planes,
            domain,
            candidate,
        })
    }

    /// Device, port and GID, for the log.
    pub(crate) fn describe(&self) -> String {
        let Candidate {
            device,
            port,
            index,
            ..
        } = &self.candidate;
        format!(
            "{device} port {port}, GID {index} ({})",
            self.candidate.address()
        )
    }

    /// What the peer needs to know.
    pub(crate) fn offer(&self) -> Result<Offer, VerbsError> {
        let [call, bulk] = &self.planes;
        Ok(Offer::new(&Half {
            memory: self.memory,
            reads: self.bounds.reads_served,
            mtu: self.mtu,
            lid: self.lid,
            gid: self.candidate.gid,
            planes: [call.offer()?, bulk.offer()?],
        }))
    }

    /// The peer has told its mode: the session polls memory if either side wants to.
    pub(crate) fn agree(&mut self, peer: &Half) {
        self.memory |= peer.memory;
        self.mtu = self.mtu.min(peer.mtu);
    }

    /// How arrivals are found, for the log.
    pub(crate) fn mode(&self) -> &'static str {
        if self.memory {
            "memory is polled"
        } else {
            "completions are polled"
        }
    }

    /// Connects our half with the peer's: call plane and bulk plane. `tcp` stays open: its end
    /// is how the peer's death shows.
    ///
    /// # Errors
    /// The verb's; the TCP connection comes back for another use.
    pub(crate) fn join(
        self,
        tcp: TcpStream,
        peer: &Half,
    ) -> Result<Joined, (TcpStream, VerbsError)> {
        let connected = std::iter::zip(&self.planes, &peer.planes)
            .try_for_each(|(near, far)| near.qp.connect(&self.path(near, far, peer)));
        if let Err(error) = connected {
            return Err((tcp, error));
        }
        let domain = Arc::clone(&self.domain);
        let staging = |far: &PlaneOffer| {
            let bytes = ring_bytes(far.inbox_bytes.get()).ok_or(VerbsError::Protocol("inbox"))?;
            Region::new(&domain, bytes, false)
        };
        let (call_out, bulk_out) = match (staging(&peer.planes[0]), staging(&peer.planes[1])) {
            (Ok(call), Ok(bulk)) => (call, bulk),
            (Err(error), _) | (_, Err(error)) => return Err((tcp, error)),
        };
        let link = Arc::new(Link {
            tcp: parking_lot::Mutex::new(Some(tcp)),
            device: Arc::clone(&self.domain.device),
        });
        let direct = self
            .bounds
            .reads_asked
            .min(self.bounds.reads_served)
            .min(peer.reads)
            > 0;
        let terms = |direct| Terms {
            memory: self.memory,
            direct,
            domain: Arc::clone(&self.domain),
        };
        let [call, bulk] = self.planes;
        Ok(Joined {
            call: call.join(&link, &peer.planes[0], call_out, &terms(false)),
            bulk: bulk.join(&link, &peer.planes[1], bulk_out, &terms(direct)),
            link,
            mtu_bytes: 128 << self.mtu,
        })
    }

    fn path(&self, near: &NearPlane, far: &PlaneOffer, peer: &Half) -> QpPath {
        QpPath {
            port: self.candidate.port,
            gid_index: self.candidate.index,
            mtu: self.mtu,
            reads_asked: self.bounds.reads_asked.min(peer.reads),
            reads_served: self.bounds.reads_served,
            local_psn: near.psn,
            remote_psn: far.psn.get() & PSN_MASK,
            remote_qpn: far.qpn.get(),
            remote_lid: peer.lid,
            remote_gid: peer.gid,
            global: self.ethernet,
        }
    }
}

/// What both planes have from their session.
struct Terms {
    memory: bool,
    direct: bool,
    domain: Arc<Domain>,
}

const PSN_MASK: u32 = 0xff_ffff;

impl NearPlane {
    fn new(
        domain: &Arc<Domain>,
        port: u8,
        depth: u32,
        bytes: usize,
        inline: u32,
    ) -> Result<Self, VerbsError> {
        let cq = Cq::new(&domain.device, 2 * depth)?;
        let qp = Qp::new(domain, &cq, depth, port, inline)?;
        let inbox = Region::new(domain, bytes, true)?;
        let status = Region::new(domain, STATUS_BYTES, true)?;
        qp.post_receives(MESSAGES_MAX + CREDIT_RESERVE)?;
        let [a, b, c, ..] = random16().map_err(|error| VerbsError::System(error.to_string()))?;
        Ok(Self {
            qp,
            cq,
            inbox,
            status,
            psn: u32::from_le_bytes([a, b, c, 0]),
        })
    }

    fn offer(&self) -> Result<PlaneOffer, VerbsError> {
        let small = |bytes: usize| u32::try_from(bytes).map_err(|_| VerbsError::Protocol("inbox"));
        Ok(PlaneOffer {
            qpn: U32::new(self.qp.number()),
            psn: U32::new(self.psn),
            inbox: U64::new(self.inbox.address(0)),
            inbox_rkey: U32::new(self.inbox.rkey()),
            inbox_bytes: U32::new(small(self.inbox.bytes())?),
            status: U64::new(self.status.address(0)),
            status_rkey: U32::new(self.status.rkey()),
            messages_max: U32::new(small(MESSAGES_MAX)?),
        })
    }

    fn join(self, link: &Arc<Link>, far: &PlaneOffer, outbox: Region, terms: &Terms) -> Plane {
        let peer = Peer {
            inbox: far.inbox.get(),
            inbox_rkey: far.inbox_rkey.get(),
            status: far.status.get(),
            status_rkey: far.status_rkey.get(),
            messages_max: (far.messages_max.get() as usize).min(MESSAGES_MAX),
        };
        Plane::new(Parts {
            qp: self.qp,
            cq: self.cq,
            inbox: self.inbox,
            status: self.status,
            outbox,
            peer,
            link: Arc::clone(link),
            memory: terms.memory,
            messages_max: MESSAGES_MAX,
            domain: Arc::clone(&terms.domain),
            direct: terms.direct,
        })
    }
}

/// A connected pair that is not in use yet.
pub(crate) struct Joined {
    call: Plane,
    bulk: Plane,
    link: Arc<Link>,
    mtu_bytes: u32,
}

impl Joined {
    /// Shows that packets of the full path MTU get through, both ways. Blocks for a round trip,
    /// or up to 1.5 s where they do not.
    ///
    /// # Errors
    /// [`VerbsError::RetryExceeded`] and other failures of the write.
    pub(crate) fn probe(&self) -> Result<(), VerbsError> {
        let deadline = Instant::now() + PROBE_TIME;
        self.call.probe(2 * self.mtu_bytes, deadline)?;
        self.bulk.probe(8, deadline)
    }

    /// Path MTU, in bytes.
    pub(crate) fn mtu_bytes(&self) -> u32 {
        self.mtu_bytes
    }

    /// The planes.
    pub(crate) fn into_planes(self) -> (Arc<dyn Stream>, Arc<dyn Stream>) {
        (Arc::new(self.call), Arc::new(self.bulk))
    }

    /// Says something over the TCP connection.
    pub(crate) fn tell(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        self.with_tcp(|tcp| exchange::send_all(tcp, &[bytes], deadline))
    }

    /// The TCP connection, for a moment.
    pub(crate) fn with_tcp<R>(
        &self,
        with: impl FnOnce(&TcpStream) -> io::Result<R>,
    ) -> io::Result<R> {
        match &*self.link.tcp.lock() {
            Some(tcp) => with(tcp),
            // Only `into_tcp` takes it, and self with it.
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Gives RDMA up: the TCP connection for another use.
    pub(crate) fn into_tcp(self) -> io::Result<TcpStream> {
        let tcp = self.link.tcp.lock().take();
        tcp.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

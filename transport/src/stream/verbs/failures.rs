//! What a device says when work fails, on a real one: two queue pairs of the first device, connected with each other. Needs an RDMA
//! device, so `scripts/rdma-test` runs these tests in its VM.
#![allow(clippy::unwrap_used)]
#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::VerbsError;
use super::plane::{Link, Parts, Peer, Plane};
use super::select::{Candidate, GidKind, SYSFS, inventory};
use crate::stream::Stream as _;
use crate::sys::verbs::{CompletionKind, Cq, Device, Domain, Qp, QpPath, Region, Verb, Work};

const BYTES: usize = 1 << 16;
/// Only a hang takes as long.
const PATIENCE: Duration = Duration::from_secs(20);

/// One end.
struct End {
    qp: Qp,
    cq: Arc<Cq>,
    memory: Region,
}

impl End {
    fn new(domain: &Arc<Domain>) -> Self {
        let cq = Cq::new(&domain.device, 32).unwrap();
        Self {
            qp: Qp::new(domain, &cq, 16, 1, 0).unwrap(),
            cq,
            memory: Region::new(domain, BYTES, true).unwrap(),
        }
    }

    fn connect(&self, peer: &Self, gid: &Candidate) {
        let path = QpPath {
            port: gid.port,
            gid_index: gid.index,
            mtu: 3,
            reads_asked: 1,
            reads_served: 1,
            local_psn: 7,
            remote_psn: 7,
            remote_qpn: peer.qp.number(),
            remote_lid: 0,
            remote_gid: gid.gid,
            global: true,
        };
        self.qp.connect(&path).unwrap();
    }

    /// A write to the peer's memory under this key; what becomes of it.
    fn write(&self, peer: &Region, rkey: u32, verb: Verb) -> Result<CompletionKind, VerbsError> {
        let work = Work {
            verb,
            local: self.memory.address(0),
            lkey: self.memory.lkey(),
            bytes: 64,
            remote: peer.address(0),
            rkey,
            signal: Some(5),
            inline: false,
        };
        self.qp.post(&[work])?;
        let began = Instant::now();
        loop {
            let mut outcome = None;
            self.cq
                .poll(|completion| outcome = Some(completion.outcome))?;
            if let Some(outcome) = outcome {
                return outcome;
            }
            assert!(began.elapsed() < PATIENCE, "nothing becomes of it");
        }
    }
}

/// One end as a plane that sends to the other.
fn plane(near: End, far: &End, domain: &Arc<Domain>) -> Plane {
    Plane::new(Parts {
        qp: near.qp,
        cq: near.cq,
        inbox: near.memory,
        status: Region::new(domain, BYTES, true).unwrap(),
        outbox: Region::new(domain, BYTES, false).unwrap(),
        peer: Peer {
            inbox: far.memory.address(0),
            inbox_rkey: far.memory.rkey(),
            status: far.memory.address(0),
            status_rkey: far.memory.rkey(),
            messages_max: 8,
        },
        link: Arc::new(Link {
            tcp: Mutex::new(None),
            device: Arc::clone(&domain.device),
        }),
        memory: true,
        messages_max: 8,
        domain: Arc::clone(domain),
        direct: false,
    })
}

fn pair() -> [End; 2] {
    let (_, ends) = domain_and_pair();
    ends
}

fn domain_and_pair() -> (Arc<Domain>, [End; 2]) {
    let candidates = inventory(Path::new(SYSFS)).expect("an RDMA device: scripts/rdma-test");
    let is_routed = |it: &&Candidate| it.kind == GidKind::RoceV2 && it.address().is_ipv4();
    let gid = candidates.iter().find(is_routed).unwrap();
    let domain = Domain::new(Device::open(&gid.device).unwrap()).unwrap();
    let ends = [End::new(&domain), End::new(&domain)];
    ends[0].connect(&ends[1], gid);
    ends[1].connect(&ends[0], gid);
    (domain, ends)
}

#[test]
#[ignore = "needs an RDMA device: scripts/rdma-test runs it"]
fn a_peer_without_receives_is_not_ready() {
    let [near, far] = pair();
    let immediate = Verb::WriteWithImmediate(1);
    let sent = near.write(&far.memory, far.memory.rkey(), immediate);
    assert_eq!(sent, Err(VerbsError::ReceiverNotReady));
    let next = near.write(&far.memory, far.memory.rkey(), Verb::Write);
    assert_eq!(next, Err(VerbsError::Flushed), "behind it nothing is sent");
}

#[test]
#[ignore = "needs an RDMA device: scripts/rdma-test runs it"]
fn a_key_that_the_peer_does_not_know_is_refused() {
    let [near, far] = pair();
    let sent = near.write(&far.memory, far.memory.rkey(), Verb::Write);
    assert_eq!(sent, Ok(CompletionKind::Sent(5)));
    let sent = near.write(&far.memory, far.memory.rkey() ^ 0xff, Verb::Write);
    assert_eq!(sent, Err(VerbsError::RemoteAccess));
}

#[test]
#[ignore = "needs an RDMA device: scripts/rdma-test runs it"]
fn a_queue_pair_that_is_gone_answers_no_more() {
    let [near, far] = pair();
    let End { qp, memory, .. } = far;
    drop(qp);
    let sent = near.write(&memory, memory.rkey(), Verb::Write);
    assert_eq!(sent, Err(VerbsError::RetryExceeded));
}

#[test]
#[ignore = "needs an RDMA device: scripts/rdma-test runs it"]
fn what_is_posted_after_a_halt_is_flushed() {
    let [near, far] = pair();
    near.qp.halt().unwrap();
    let sent = near.write(&far.memory, far.memory.rkey(), Verb::Write);
    assert_eq!(sent, Err(VerbsError::Flushed));
}

#[test]
#[ignore = "needs an RDMA device: scripts/rdma-test runs it"]
fn a_plane_that_is_prodded_asks_whether_what_was_posted_is_done() {
    let (domain, [near, far]) = domain_and_pair();
    far.qp.post_receives(4).unwrap();
    let plane = plane(near, &far, &domain);
    plane.prod();
    assert_eq!(plane.sends(), (0, 0), "there is nothing to ask for");
    assert_eq!(plane.send(&[IoSlice::new(b"words")]).unwrap(), 5);
    assert_eq!(plane.sends(), (1, 0), "most sends do not say so");
    plane.prod();
    let began = Instant::now();
    while plane.sends() != (2, 2) {
        assert!(began.elapsed() < PATIENCE, "{:?}", plane.sends());
    }
    plane.prod();
    assert_eq!(plane.sends(), (2, 2), "it is known");
}

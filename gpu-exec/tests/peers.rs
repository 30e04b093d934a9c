//! Links between the sessions that one client has with two servers, and who may use them for what.
#![allow(clippy::unwrap_used)]

mod support;

use farcall_marshal::wire::*;

use support::{Client, ServerProcess};

const MIB: u64 = 1 << 20;
const LINK: u64 = 7;
const OPENING: [u8; 16] = [1; 16];
const TICKET: [u8; 16] = [2; 16];
const NOT_SUPPORTED: u32 = 801;
const UNKNOWN: u32 = 999;

/// A server, and a session with 32 MiB of memory.
struct Side {
    server: ServerProcess,
    client: Client,
}

impl Side {
    fn new() -> Self {
        let server = ServerProcess::start(&["soft"]);
        let client = Client::connect(&server.address);
        assert_eq!(client.alloc(0, 32 * MIB), 0);
        Self { server, client }
    }

    /// Has a link opened to `other`, by who shows `secret`.
    fn link_to(&self, other: &Self, secret: &[u8]) -> u32 {
        let record = PeerConnect {
            peer: LINK,
            address: &other.server.address,
            session: &other.client.endpoint.session().0,
            secret,
        };
        self.client.call(&record).0
    }

    fn accept(&self) -> u32 {
        let record = PeerAccept {
            link: LINK,
            secret: &OPENING,
        };
        self.client.call(&record).0
    }

    /// Announces a transfer to the start of this side's memory; the ticket of the copy.
    fn expect(&self, bulk: u64, count: u64) -> u32 {
        self.expect_who_shows(&TICKET, bulk, count)
    }

    fn expect_who_shows(&self, secret: &[u8], bulk: u64, count: u64) -> u32 {
        self.client.send(&PeerExpect {
            bulk,
            link: LINK,
            byte_count: count,
            secret,
        });
        self.client.begin(&CuMemcpyHtoDAsyncV2 {
            dst: self.client.base(),
            count,
            stream: 0,
            bulk,
            data: &[],
        })
    }

    /// Sends memory from its start to the other side's transfer; the ticket of the copy.
    fn push(&self, to: u64, count: u64, secret: &[u8]) -> u32 {
        let bulk = 1000 + to;
        self.client.send(&PeerPush {
            bulk,
            peer: LINK,
            to,
            secret,
        });
        self.client.begin(&CuMemcpyDtoHAsyncV2 {
            src: self.client.base(),
            count,
            stream: 0,
            bulk,
        })
    }

    fn status(&self, ticket: u32) -> u32 {
        self.client.wait(ticket).unwrap().0
    }
}

fn linked() -> (Side, Side) {
    let (from, to) = (Side::new(), Side::new());
    assert_eq!(to.accept(), 0);
    assert_eq!(from.link_to(&to, &OPENING), 0);
    (from, to)
}

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|i| (i / 3 * 7).to_le_bytes()[0]).collect()
}

#[test]
fn bytes_go_from_server_to_server() {
    let (from, to) = linked();
    let data = pattern(20 * MIB);
    assert_eq!(from.client.upload(from.client.base(), &data), 0);
    let moved = |side: &Side| {
        let stats = side.client.endpoint.stats();
        stats.bulk_bytes_in + stats.bulk_bytes_out
    };
    let before = (moved(&from), moved(&to));
    // The ticket may be shown before the server that receives has heard of it.
    let sent = from.push(50, 20 * MIB, &TICKET);
    assert_eq!(from.status(sent), 0);
    let written = to.expect(50, 20 * MIB);
    assert_eq!(to.status(written), 0);
    assert_eq!((moved(&from), moved(&to)), before, "nothing came this way");
    let got = to.client.download(to.client.base(), 20 << 20).unwrap();
    assert!(got == data);
    // Over the same link, and the other way round over one of its own.
    let written = to.expect(51, MIB);
    assert_eq!(from.status(from.push(51, MIB, &TICKET)), 0);
    assert_eq!(to.status(written), 0);
}

#[test]
fn a_link_is_opened_once_by_who_knows_its_secret() {
    let (from, to) = (Side::new(), Side::new());
    assert_eq!(from.link_to(&to, &OPENING), NOT_SUPPORTED, "nobody waits");
    assert_eq!(to.accept(), 0);
    assert_eq!(from.link_to(&to, &[9; 16]), NOT_SUPPORTED, "wrong secret");
    assert_eq!(from.link_to(&to, &OPENING), NOT_SUPPORTED, "one attempt");
    assert_eq!(to.accept(), 0);
    assert_eq!(from.link_to(&to, &OPENING), 0);
    assert_eq!(from.link_to(&to, &OPENING), NOT_SUPPORTED, "once");
    // The session itself is not concerned.
    assert_eq!(to.client.synchronize(), 0);
    assert_eq!(from.client.synchronize(), 0);
}

#[test]
fn a_ticket_is_good_for_its_transfer_alone() {
    for (length, secret, why) in [
        (MIB, [3; 16], "another secret"),
        (MIB - 4, TICKET, "another length"),
        (2 * MIB, TICKET, "a greater length"),
    ] {
        let (from, to) = linked();
        let data = pattern(2 * MIB);
        assert_eq!(from.client.upload(from.client.base(), &data), 0);
        let written = to.expect(50, MIB);
        let _ = from.push(50, length, &secret);
        assert_eq!(to.status(written), UNKNOWN, "{why}");
        let got = to.client.download(to.client.base(), 2 << 20).unwrap();
        assert!(got.iter().all(|byte| *byte == 0), "{why}");
        // The link is closed with it: what comes later has no way.
        let next = to.expect(51, MIB);
        assert_eq!(to.status(next), UNKNOWN, "{why}");
    }
}

#[test]
fn a_ticket_is_shown_once() {
    let (from, to) = linked();
    let written = to.expect(50, MIB);
    assert_eq!(from.status(from.push(50, MIB, &TICKET)), 0);
    assert_eq!(to.status(written), 0);
    assert_eq!(from.client.upload(from.client.base(), &[9; 4096]), 0);
    // Played again it does not open a later transfer, which has a secret of its own.
    let _ = from.push(50, MIB, &TICKET);
    let next = to.expect_who_shows(&[8; 16], 50, MIB);
    assert_eq!(to.status(next), UNKNOWN);
    let got = to.client.download(to.client.base(), 4096).unwrap();
    assert!(got.iter().all(|byte| *byte == 0), "what came first");
    assert_eq!(to.client.synchronize(), 0);
}

#[test]
fn a_server_that_dies_in_the_middle_leaves_nobody_waiting() {
    let (from, to) = linked();
    let written = to.expect(50, 16 * MIB);
    let Side { server, client } = from;
    drop(server);
    assert_eq!(to.status(written), UNKNOWN);
    drop(client);
    assert_eq!(to.client.synchronize(), 0);
    assert_eq!(to.client.upload(to.client.base(), &pattern(100_000)), 0);
}

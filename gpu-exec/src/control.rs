//! What supervisor and executor say to each other: a JSON header, two byte strings, descriptors.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::DeviceKind;
use crate::device::describe::DeviceSpec;
use crate::ledger::Slot;
use crate::sys::fds;

/// Longest message: a client's hello, the transport's handover and a header.
const MESSAGE_BYTES_MAX: usize = 160 << 10;
const PREFIX_BYTES: usize = 12;

/// To an executor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Serve this session. `state`: the handover, `payload`: the client's hello; descriptors: connection, ledger, board.
    Open(Box<OpenOrder>),
    /// Say what the session has moved so far.
    Count,
    /// End the session, and tell its client why.
    Close { reason: String },
    /// Another server's session opens a link. `state`: the handover, `payload`: its hello; descriptor: the connection.
    Peer,
    /// What became of a connection that was asked for: descriptor, or why there is none.
    Dialed {
        number: u64,
        failure: Option<String>,
    },
    /// The session's bulk connection. `state`: its handover; `payload`: the name of the link that it belongs to, if it is one's;
    /// descriptor: the connection.
    Bulk,
    /// The session's next connection after it lost the last one. As `Bulk`.
    Resume,
}

/// What an executor needs to know for its session.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OpenOrder {
    pub(crate) kind: DeviceKind,
    pub(crate) devices: Vec<DeviceSpec>,
    /// Of the devices, where the driver knows: a driver that is started later may number them in another way.
    pub(crate) uuids: Vec<Option<[u8; 16]>>,
    pub(crate) slot: Slot,
    /// Pinned memory of the host that all sessions may have.
    pub(crate) pinned_bytes_max: u64,
    /// What MPS is to give it of the multiprocessors.
    pub(crate) mps_percentage: Option<u16>,
    /// Whose memory limit it shares; 0 = nobody's.
    pub(crate) lease: u64,
    pub(crate) server_name: String,
    pub(crate) cache_directory: Option<PathBuf>,
    /// Who it is, for the log.
    pub(crate) client: String,
    /// How long the session outlives its connection.
    pub(crate) grace_ms: u64,
    pub(crate) grace_closed_ms: u64,
    /// Whether it may have links to other servers.
    pub(crate) peer_links: bool,
    /// For how long a driver call that waits for nothing may block.
    pub(crate) driver_patience_ms: u64,
    /// It may make any system call.
    pub(crate) is_unconfined: bool,
}

/// What a session has moved, and how.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Records that the device took.
    pub(crate) records: u64,
    /// From the client, calls and copies.
    pub(crate) bytes_in: u64,
    /// To the client.
    pub(crate) bytes_out: u64,
    /// How calls travel now: `tcp`, `shm`, `verbs`.
    pub(crate) transport: String,
    /// Estimated round trip to the client; 0 = not known yet.
    pub(crate) rtt_ns: u64,
}

/// A call into the driver that does not come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stuck {
    pub(crate) verdict: Verdict,
    pub(crate) call: String,
    pub(crate) thread: String,
    pub(crate) waited_ms: u64,
}

/// What to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// There is nothing that the call could wait for so long.
    Wedged,
    /// It may wait for kernels.
    Waits,
    /// It may, but nobody waits for it any more.
    Abandoned,
}

/// From an executor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It stands ready.
    Ready,
    /// The session is open.
    Opened,
    /// What the session has moved so far.
    Counted(Counts),
    /// A call into the driver has not come back for long.
    Stuck(Stuck),
    /// The driver has answered with what may mean that a GPU of the session is lost.
    Suspect { status: u32 },
    /// It needs a connection to this address.
    Dial { number: u64, address: SocketAddr },
    /// The session is over; the process ends.
    Closed {
        reason: String,
        /// Times that it went on over another connection.
        resumes: u64,
        counts: Counts,
    },
}

/// A received message.
#[derive(Debug)]
pub(crate) struct Message<T> {
    pub(crate) header: T,
    pub(crate) state: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Sends a message. Does not block.
///
/// # Errors
/// The peer is gone or does not read; the message is too long.
pub(crate) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    header: &T,
    state: &[u8],
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let header = serde_json::to_vec(header).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + header.len() + state.len() + payload.len());
    for part in [header.len(), state.len(), payload.len()] {
        bytes.extend_from_slice(&u32::try_from(part).map_err(io::Error::other)?.to_le_bytes());
    }
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(state);
    bytes.extend_from_slice(payload);
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fds::send(socket, &bytes, fds)
}

/// Receives a message; `None` at the end.
///
/// # Errors
/// As the socket, and bytes that are no message.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    block: bool,
) -> io::Result<Option<Message<T>>> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let (len, fds) = fds::receive(socket, &mut buffer, block)?;
    if len == 0 {
        return Ok(None);
    }
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let bytes = buffer.get(..len).ok_or_else(malformed)?;
    let length = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(|b| u32::from_le_bytes(b) as usize)
    };
    let (Some(header), Some(state), Some(payload)) = (length(0), length(4), length(8)) else {
        return Err(malformed());
    };
    let mut rest = bytes.get(PREFIX_BYTES..).ok_or_else(malformed)?;
    let mut take = |count: usize| {
        let (part, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(part)
    };
    let (Some(header), Some(state), Some(payload)) = (take(header), take(state), take(payload))
    else {
        return Err(malformed());
    };
    let header = serde_json::from_slice(header).map_err(io::Error::other)?;
    Ok(Some(Message {
        header,
        state: state.to_vec(),
        payload: payload.to_vec(),
        fds,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsFd;

    use super::{Order, Report, receive, send};
    use crate::sys::fds;

    #[test]
    fn messages_come_back_and_garbage_does_not() {
        let (a, b) = fds::pair().unwrap();
        send(a.as_fd(), &Order::Bulk, b"state", b"payload", &[a.as_fd()]).unwrap();
        let message = receive::<Order>(b.as_fd(), true).unwrap().unwrap();
        assert!(matches!(message.header, Order::Bulk));
        assert_eq!(
            (&*message.state, &*message.payload, message.fds.len()),
            (&b"state"[..], &b"payload"[..], 1)
        );
        for garbage in [
            &b"x"[..],
            &[0xff; 12],
            &[0xff; 40],
            &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'],
        ] {
            fds::send(a.as_fd(), garbage, &[]).unwrap();
            assert!(receive::<Report>(b.as_fd(), true).is_err());
        }
        drop((a, message));
        assert!(receive::<Report>(b.as_fd(), true).unwrap().is_none());
    }
}

//! The session without sockets, clocks or memory: what may be sent, what has arrived, and
//! which bytes from the peer are lies.
//!
//! Each direction is one stream of frames. A frame is named by the position of its header in
//! that stream: 64 bits that only grow. So one number serves as sequence number, as
//! cumulative acknowledgement ("everything before this arrived"), as credit ("you may send up
//! to here"), and as place in the ring. Control frames are outside of the stream.
#![forbid(unsafe_code)]

pub(crate) mod backoff;
pub(crate) mod frame;
pub(crate) mod receiver;
pub(crate) mod sender;

pub use backoff::Backoff;
pub use frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
pub use receiver::{Receiver, Verdict, credit_is_due};
pub use sender::{Claim, Sender};

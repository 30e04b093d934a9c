//! TLS 1.3 over TCP. A client's stream shakes hands when it is first used; a server's listener has done so before there is a
//! stream, and hands the keys on with the socket.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};

use parking_lot::Mutex;
use rustls::pki_types::ServerName;

use self::handshake::ClientHandshake;
use self::record::{Content, HEADER_BYTES, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, record_bytes};
use self::record::{Opener, Sealer};
use super::tcp::TcpStream;
use super::{PathInfo, Stream, recv_into};
use crate::sys::poll::PollSet;

pub(crate) mod error;
mod handshake;
mod record;
mod trust;

pub use error::TlsError;
pub use trust::{TlsClient, TlsServer};

pub(crate) use handshake::ServerHandshake;
#[cfg(feature = "fuzzing")]
pub(crate) use record::play;
pub(crate) use record::{HANDSHAKE, Keys, WireKeys};
pub(crate) use trust::name_of;

/// Records that are sealed, and that are read, at once: as much as stays in the core's cache.
const RECORDS: usize = 4;

/// A TCP connection, with TLS on it.
pub(crate) struct TlsStream {
    tcp: TcpStream,
    /// Set once the handshake is over.
    ready: AtomicBool,
    /// A client's, while it goes on.
    handshake: Mutex<Option<Client>>,
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
}

struct Client {
    handshake: ClientHandshake,
    blocks_max: u64,
}

#[derive(Default)]
struct Sending {
    sealer: Option<Sealer>,
    /// Sealed, and sent up to `at`.
    sealed: Vec<u8>,
    at: usize,
    /// The last byte of what is sealed has not been reported as sent: it comes again.
    owes: bool,
}

#[derive(Default)]
struct Receiving {
    opener: Option<Opener>,
    /// Records as they came from `start` to `end`; before that, what is left of the last one that was opened.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    plain: Range<usize>,
    /// The peer has said that nothing more comes.
    ended: bool,
}

impl TlsStream {
    /// A client's end of a connection, or of one that is being opened.
    pub(crate) fn client(
        tcp: TcpStream,
        client: &TlsClient,
        name: &ServerName<'static>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            tcp,
            ready: AtomicBool::new(false),
            handshake: Mutex::new(Some(Client {
                handshake: ClientHandshake::new(client, name)?,
                blocks_max: client.blocks_max(),
            })),
            sending: Mutex::default(),
            receiving: Mutex::default(),
        })
    }

    /// A server's end of a connection whose handshake is over; `early` is what came behind the hello already.
    pub(crate) fn server(tcp: TcpStream, keys: &Keys, early: &[u8]) -> Result<Self, TlsError> {
        let (sealer, opener) = keys.halves()?;
        Ok(Self {
            tcp,
            ready: AtomicBool::new(true),
            handshake: Mutex::new(None),
            sending: Mutex::new(Sending::new(sealer)),
            receiving: Mutex::new(Receiving::new(opener, early)),
        })
    }

    /// Goes on with the handshake as far as it can; true when it is over.
    fn is_ready(&self) -> io::Result<bool> {
        // SYNC: Acquire pairs with the Release below: the keys are there.
        if self.ready.load(Acquire) {
            return Ok(true);
        }
        let mut client = self.handshake.lock();
        let Some(begun) = client.as_mut() else {
            return Ok(self.ready.load(Acquire));
        };
        if !begun.handshake.drive(&self.tcp)? {
            return Ok(false);
        }
        let Some(done) = client.take() else {
            return Ok(false);
        };
        let (mut sealer, opener) = done.handshake.finish()?.halves()?;
        sealer.limit(done.blocks_max);
        *self.sending.lock() = Sending::new(sealer);
        *self.receiving.lock() = Receiving::new(opener, &[]);
        self.ready.store(true, Release);
        Ok(true)
    }
}

impl Stream for TlsStream {
    fn name(&self) -> &'static str {
        "tls"
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.tcp.peer()
    }

    fn path(&self) -> Option<PathInfo> {
        self.tcp.path()
    }

    fn is_costly(&self) -> bool {
        true
    }

    /// Takes no more while anything is left that is sealed, and says that the last byte of it was not taken until it has
    /// left: so whoever sends knows that there is more to do. It comes with that byte again, as with any that was not taken.
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.is_ready()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.sending.lock().send(&self.tcp, parts)
    }

    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if !self.is_ready()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.receiving.lock().recv(&self.tcp, buffer)
    }

    fn shutdown(&self) {
        // Who sends at the moment has more to say than that this is the end, which the end of the connection shows, too.
        if let Some(mut sending) = self.sending.try_lock() {
            sending.say_end(&self.tcp);
        }
        self.tcp.shutdown();
    }

    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool {
        if !self.ready.load(Acquire)
            && let Some(client) = &*self.handshake.lock()
        {
            let write = client.handshake.wants_write();
            return self.tcp.arm(set, !write, write);
        }
        let idle = !read || self.receiving.lock().is_idle();
        self.tcp.arm(set, read, write) && idle
    }

    fn has_hung_up(&self) -> bool {
        self.tcp.has_hung_up()
    }

    fn abandon(&self) {
        self.tcp.abandon();
    }
}

impl Sending {
    fn new(sealer: Sealer) -> Self {
        Self {
            sealer: Some(sealer),
            ..Self::default()
        }
    }

    /// Sends what is sealed; true when nothing is left of it.
    fn flush(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        while self.at < self.sealed.len() {
            match tcp.send(&[IoSlice::new(&self.sealed[self.at..])]) {
                Ok(sent) => self.at += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.sealed.clear();
        self.at = 0;
        Ok(true)
    }

    fn send(&mut self, tcp: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let would_block = || Err(io::ErrorKind::WouldBlock.into());
        if !self.flush(tcp)? {
            return would_block();
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        let again = usize::from(std::mem::take(&mut self.owes)).min(total);
        let taken = (total - again).min(RECORDS * PLAIN_BYTES_MAX);
        self.seal(parts, again, taken)?;
        if self.flush(tcp)? {
            return Ok(again + taken);
        }
        self.owes = true;
        match again + taken - 1 {
            0 => would_block(),
            reported => Ok(reported),
        }
    }

    /// Seals `bytes` bytes of `parts`, from `skip` on.
    fn seal(&mut self, parts: &[IoSlice<'_>], mut skip: usize, bytes: usize) -> io::Result<()> {
        let Some(sealer) = &mut self.sealer else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut parts = parts.iter().map(|part| &**part);
        let mut part: &[u8] = &[];
        let mut left = bytes;
        while left > 0 {
            let content = left.min(PLAIN_BYTES_MAX);
            sealer.seal(&mut self.sealed, content, |out| {
                let mut lacks = content;
                while lacks > 0 {
                    if part.is_empty() {
                        let Some(next) = parts.next() else {
                            break;
                        };
                        let skipped = skip.min(next.len());
                        (part, skip) = (&next[skipped..], skip - skipped);
                        continue;
                    }
                    let (now, rest) = part.split_at(lacks.min(part.len()));
                    out.extend_from_slice(now);
                    (part, lacks) = (rest, lacks - now.len());
                }
            })?;
            left -= content;
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes, if there is room for it.
    fn say_end(&mut self, tcp: &TcpStream) {
        if let (Ok(true), Some(sealer)) = (self.flush(tcp), &mut self.sealer)
            && sealer.seal_close(&mut self.sealed).is_ok()
        {
            let _ = self.flush(tcp);
        }
        self.sealer = None;
    }
}

impl Receiving {
    fn new(opener: Opener, early: &[u8]) -> Self {
        let mut buffer = vec![0; (RECORDS * RECORD_BYTES_MAX).max(early.len())];
        buffer[..early.len()].copy_from_slice(early);
        Self {
            opener: Some(opener),
            buffer,
            start: early.len(),
            end: early.len(),
            plain: 0..early.len(),
            ended: false,
        }
    }

    /// The next whole record.
    fn whole(&self) -> io::Result<Option<Range<usize>>> {
        let there = &self.buffer[self.start..self.end];
        let bytes = record_bytes(there)?.filter(|bytes| *bytes <= there.len());
        Ok(bytes.map(|bytes| self.start..self.start + bytes))
    }

    /// Whether there is nothing to deliver until the connection brings more.
    fn is_idle(&self) -> bool {
        self.plain.is_empty() && !self.ended && matches!(self.whole(), Ok(None))
    }

    fn recv(&mut self, tcp: &TcpStream, out: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let mut done = 0;
        loop {
            done += self.deliver(&mut out[done..]);
            if done == out.len() || (self.ended && self.plain.is_empty()) {
                return Ok(done);
            }
            match self.open() {
                Ok(true) => continue,
                Ok(false) if done > 0 => return Ok(done),
                Ok(false) => {}
                // What is whole is delivered first.
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
            if self.read(tcp)? == 0 {
                return Ok(0);
            }
        }
    }

    fn deliver(&mut self, out: &mut [MaybeUninit<u8>]) -> usize {
        let bytes = self.plain.len().min(out.len());
        let from = self.plain.start..self.plain.start + bytes;
        out[..bytes].write_copy_of_slice(&self.buffer[from]);
        self.plain.start += bytes;
        bytes
    }

    /// Opens the next record, if it is whole.
    fn open(&mut self) -> io::Result<bool> {
        let (Some(record), Some(opener)) = (self.whole()?, &mut self.opener) else {
            return Ok(false);
        };
        match opener.open(&mut self.buffer[record.clone()]) {
            Ok(Content::Data(bytes)) => {
                let start = record.start + HEADER_BYTES;
                self.plain = start..start + bytes;
            }
            Ok(Content::End) => self.ended = true,
            // The number of the record is spent: nothing that follows could be opened.
            Err(error) => {
                self.opener = None;
                return Err(error.into());
            }
        }
        self.start = record.end;
        Ok(true)
    }

    /// Receives more; everything that was opened has been delivered.
    fn read(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        if self.opener.is_none() {
            return Err(error::TlsError::Record.into());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let got = recv_into(tcp, &mut self.buffer[self.end..])?;
        self.end += got;
        Ok(got)
    }
}

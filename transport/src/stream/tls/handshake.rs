//! The handshakes of both sides. They read record by record and not a byte more: what follows belongs to whoever serves the
//! connection, perhaps in another process.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, Read as _, Write};
use std::os::fd::RawFd;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::error::TlsError;
use super::record::{HEADER_BYTES, Keys, record_bytes};
use super::trust::{TlsClient, TlsServer, is_farcall};
use crate::stream::tcp::TcpStream;
use crate::stream::{Stream, recv_into};
use crate::sys::socket;

/// Gathers one record.
#[derive(Debug, Default)]
struct Gather {
    bytes: Vec<u8>,
}

/// What reading has brought.
enum Read {
    End,
    Part,
    Whole,
}

impl Gather {
    /// Bytes that the record still lacks, as far as is known.
    fn lacks(&self) -> Result<usize, TlsError> {
        let whole = record_bytes(&self.bytes)?.unwrap_or(HEADER_BYTES);
        Ok(whole.saturating_sub(self.bytes.len()))
    }

    fn read(&mut self, receive: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Read> {
        let lacks = self.lacks()?;
        let start = self.bytes.len();
        self.bytes.resize(start + lacks, 0);
        let got = receive(&mut self.bytes[start..]);
        self.bytes.truncate(start + *got.as_ref().unwrap_or(&0));
        Ok(match got? {
            0 => Read::End,
            _ if self.lacks()? == 0 => Read::Whole,
            _ => Read::Part,
        })
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Where a handshake's bytes go.
struct Out<F>(F);

impl<F: FnMut(&[u8]) -> io::Result<usize>> Write for Out<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's handshake.
pub(super) struct ClientHandshake {
    connection: ClientConnection,
    gather: Gather,
    /// Nothing but its failure is left of it.
    failed: Option<TlsError>,
    heard: bool,
}

impl ClientHandshake {
    pub(super) fn new(client: &TlsClient, name: &ServerName<'static>) -> Result<Self, TlsError> {
        Ok(Self {
            connection: client.begin(name)?,
            gather: Gather::default(),
            failed: None,
            heard: false,
        })
    }

    /// Whether it waits for the connection to take more.
    pub(super) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Goes on as far as it can; true when nothing is left but [`ClientHandshake::finish`].
    ///
    /// # Errors
    /// The connection's, or a [`TlsError`], which stays.
    pub(super) fn drive(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone().into());
        }
        let outcome = self.go_on(tcp);
        if let Err(error) = &outcome {
            self.failed = TlsError::of(error).cloned();
            if self.failed.is_some() {
                // Tells the server why, if it is still there.
                let _ = self.write(tcp);
            }
        }
        outcome
    }

    fn go_on(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        loop {
            if !self.write(tcp)? {
                return Ok(false);
            }
            if !self.connection.is_handshaking() {
                return Ok(true);
            }
            match self.gather.read(|buffer| recv_into(tcp, buffer)) {
                Ok(Read::Part) => {}
                Ok(Read::Whole) => {
                    self.heard = true;
                    let record = self.gather.take();
                    feed(&record, |bytes| {
                        let took = self.connection.read_tls(bytes)?;
                        let state = self.connection.process_new_packets();
                        state.map_err(|error| TlsError::of_rustls(&error))?;
                        Ok(took)
                    })?;
                }
                // A server without TLS hangs up.
                Ok(Read::End) if !self.heard => return Err(TlsError::NotTls.into()),
                Ok(Read::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !self.heard => {
                    return Err(TlsError::NotTls.into());
                }
                // Not even the head of a record.
                Err(error) if TlsError::of(&error).is_some() && !self.heard => {
                    return Err(TlsError::NotTls.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// False while the connection takes no more.
    fn write(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        let mut out = Out(|bytes: &[u8]| tcp.send(&[IoSlice::new(bytes)]));
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut out) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The keys that both sides have now.
    pub(super) fn finish(self) -> Result<Keys, TlsError> {
        if !is_farcall(self.connection.alpn_protocol()) {
            return Err(TlsError::NotFarcall);
        }
        let secrets = self.connection.dangerous_extract_secrets();
        Keys::extract(secrets.map_err(|error| TlsError::of_rustls(&error))?)
    }
}

/// A server's handshake, and the client's hello behind it.
pub(crate) struct ServerHandshake {
    connection: ServerConnection,
    gather: Gather,
}

impl ServerHandshake {
    /// `first`: the bytes that showed that the client speaks TLS, no more than the head of a record and some.
    pub(crate) fn new(server: &TlsServer, first: Vec<u8>) -> Result<Self, TlsError> {
        Ok(Self {
            connection: server.begin()?,
            gather: Gather { bytes: first },
        })
    }

    /// Reads what is there, up to the end of a record, and appends what it brings of the hello to `hello`.
    /// `Ok(0)` is the end of the connection. Does not block.
    ///
    /// # Errors
    /// The connection's, `WouldBlock` among them, or a [`TlsError`].
    pub(crate) fn read(&mut self, fd: RawFd, hello: &mut Vec<u8>) -> io::Result<usize> {
        match self.gather.read(|buffer| socket::recv_into(fd, buffer))? {
            Read::End => return Ok(0),
            Read::Part => return Ok(1),
            Read::Whole => {}
        }
        let record = self.gather.take();
        let outcome = self.take(&record, hello);
        // Also what tells the client why not.
        self.write(fd)?;
        outcome?;
        Ok(record.len())
    }

    fn take(&mut self, record: &[u8], hello: &mut Vec<u8>) -> io::Result<()> {
        feed(record, |bytes| {
            let took = self.connection.read_tls(bytes)?;
            let state = self.connection.process_new_packets();
            state.map_err(|error| TlsError::of_rustls(&error))?;
            Ok(took)
        })?;
        match self.connection.reader().read_to_end(hello) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        let over = !self.connection.is_handshaking();
        if over && !is_farcall(self.connection.alpn_protocol()) {
            return Err(TlsError::NotFarcall.into());
        }
        Ok(())
    }

    /// A handshake fits the buffer of a fresh socket: a client whose socket takes it not has made it so.
    fn write(&mut self, fd: RawFd) -> io::Result<()> {
        let mut out = Out(|bytes: &[u8]| socket::send(fd, &[IoSlice::new(bytes)]));
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Sends a client's answer that gets no session. Does not block.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn say(&mut self, fd: RawFd, answer: &[u8]) -> io::Result<()> {
        self.connection.writer().write_all(answer)?;
        self.connection.send_close_notify();
        self.write(fd)
    }

    /// The keys that both sides have now.
    pub(crate) fn finish(self) -> Result<Keys, TlsError> {
        let secrets = self.connection.dangerous_extract_secrets();
        Keys::extract(secrets.map_err(|error| TlsError::of_rustls(&error))?)
    }
}

/// Gives rustls a whole record; `take` says how much of it was taken.
fn feed(record: &[u8], mut take: impl FnMut(&mut &[u8]) -> io::Result<usize>) -> io::Result<()> {
    let mut rest = record;
    while !rest.is_empty() {
        if take(&mut rest)? == 0 {
            return Err(TlsError::Protocol("bytes behind its end").into());
        }
    }
    Ok(())
}

//! The client's way to a session.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use crate::PAYLOAD_BYTES_MAX;
use crate::endpoint::{Agreed, BulkConnector, Endpoint, Handler};
use crate::error::{ConnectError, HelloError, RefuseCode};
use crate::handshake::{ClientHead, HelloKind, SERVER_HEAD_BYTES, ServerHead, TOKEN_BYTES_MAX};
use crate::options::{ConnectOptions, TransportChoice};
use crate::stream::tcp::TcpStream;
use crate::sys::poll::{OUT, PollSet};
use crate::sys::socket;

pub(crate) mod exchange;

/// Opens a session. Returns it with the server application's answer to
/// [`ConnectOptions::payload`].
///
/// Blocks for one connection set-up and one round trip, at most
/// [`ConnectOptions::connect_timeout`] (plus the resolver's time for names). The process gets
/// one more thread, which sleeps except when records gather that nobody flushes.
///
/// # Errors
/// [`ConnectError`].
pub fn connect(
    options: &ConnectOptions,
    handler: Arc<dyn Handler>,
) -> Result<(Endpoint, Vec<u8>), ConnectError> {
    check(options)?;
    let deadline = Instant::now() + options.connect_timeout;
    let (stream, address) = open(options, deadline)?;
    let (head, payload) = greet(options, &stream, deadline)?;
    let agreed = Agreed {
        session: head.session(),
        key: head.key(),
        local: options.limits,
        remote: head.limits()?,
    };
    let connector = BulkConnector { address, agreed };
    let endpoint =
        Endpoint::start(Arc::new(stream), &agreed, &options.tuning, handler, Some(connector), true)
            .map_err(ConnectError::System)?;
    log::info!("session {} with {} over {}", agreed.session, options.server, "tcp");
    Ok((endpoint, payload))
}

fn check(options: &ConnectOptions) -> Result<(), ConnectError> {
    if !options.limits.is_valid() {
        return Err(ConnectError::Option(format!("impossible limits {:?}", options.limits)));
    }
    if options.payload.len() > PAYLOAD_BYTES_MAX {
        let text = format!("payload of {} bytes is too long", options.payload.len());
        return Err(ConnectError::Option(text));
    }
    if options.token.as_ref().is_some_and(|token| token.len() > TOKEN_BYTES_MAX) {
        return Err(ConnectError::Option("the token is too long".into()));
    }
    match options.transport {
        TransportChoice::Auto | TransportChoice::Tcp => Ok(()),
        TransportChoice::Shm => Err(unavailable("shm")),
        TransportChoice::Verbs => Err(unavailable("verbs")),
    }
}

fn unavailable(transport: &'static str) -> ConnectError {
    ConnectError::Transport { transport, reason: "this build does not have it".into() }
}

/// Connects to the first address of the server that answers.
fn open(
    options: &ConnectOptions,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let server = &options.server;
    let resolve = |source| ConnectError::Resolve { server: server.clone(), source };
    let addresses: Vec<SocketAddr> = server.to_socket_addrs().map_err(resolve)?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (n, address) in addresses.iter().enumerate() {
        // What is left is shared by the addresses that are left.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
        match open_one(address, Instant::now() + share) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => last = error,
        }
    }
    if last.kind() == io::ErrorKind::TimedOut {
        return Err(timed_out(options));
    }
    Err(ConnectError::Connect { server: server.clone(), source: last })
}

fn open_one(address: &SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let fd = socket::connect_start(address)?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut set = PollSet::new();
        set.add(raw, OUT);
        if set.wait(Some(left))? {
            socket::take_error(raw)?;
            return TcpStream::new(fd, Some(*address));
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Says hello and reads the answer.
fn greet(
    options: &ConnectOptions,
    stream: &TcpStream,
    deadline: Instant,
) -> Result<(ServerHead, Vec<u8>), ConnectError> {
    let token = options.token.as_deref().unwrap_or_default().as_bytes();
    // Both were checked against their limits.
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let head =
        ClientHead::new(HelloKind::New, &options.limits, len(token), len(&options.payload));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => timed_out(options),
        io::ErrorKind::UnexpectedEof => {
            ConnectError::NotFarcall { server: options.server.clone() }
        }
        _ => ConnectError::Connect { server: options.server.clone(), source: error },
    };
    let parts: [&[u8]; 3] = [&head.bytes(), token, &options.payload];
    exchange::send_all(stream, &parts, Some(deadline)).map_err(failed)?;
    let mut answer = [0; SERVER_HEAD_BYTES];
    // Magic and version first: another version's answer may be shorter than ours.
    exchange::recv_exact(stream, &mut answer[..10], Some(deadline)).map_err(failed)?;
    ServerHead::check_preamble(&answer).map_err(|error| misspoken(options, error))?;
    exchange::recv_exact(stream, &mut answer[10..], Some(deadline)).map_err(failed)?;
    let head = ServerHead::decode(&answer).map_err(|error| misspoken(options, error))?;
    let mut payload = vec![0; head.payload_len()];
    exchange::recv_exact(stream, &mut payload, Some(deadline)).map_err(failed)?;
    match head.refused() {
        None => Ok((head, payload)),
        Some(code) => Err(refused(code, &payload)),
    }
}

fn refused(code: RefuseCode, message: &[u8]) -> ConnectError {
    // Shown to a person: no control characters, no endless text.
    let message = String::from_utf8_lossy(message);
    let message = message.chars().filter(|c| !c.is_control()).take(1000).collect();
    ConnectError::Refused { code, message }
}

fn misspoken(options: &ConnectOptions, error: HelloError) -> ConnectError {
    match error {
        HelloError::Magic => ConnectError::NotFarcall { server: options.server.clone() },
        HelloError::Version(server) => {
            ConnectError::Version { server, client: crate::PROTOCOL_VERSION }
        }
        other => ConnectError::Handshake(other),
    }
}

fn timed_out(options: &ConnectOptions) -> ConnectError {
    ConnectError::TimedOut {
        server: options.server.clone(),
        timeout_ms: options.connect_timeout.as_millis(),
    }
}

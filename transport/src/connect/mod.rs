//! The client's way to a session.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use crate::endpoint::{Agreed, Endpoint, Handler};
use crate::error::{ConnectError, HelloError, RefuseCode, VerbsError};
use crate::handshake::{ClientHead, HelloKind, SERVER_HEAD_BYTES, ServerHead, TOKEN_BYTES_MAX};
use crate::options::{ConnectOptions, RdmaOptions, SocketOptions, TransportChoice};
use crate::stream::tcp::TcpStream;
use crate::stream::tls::{TlsError, TlsStream, name_of};
use crate::stream::verbs::Near;
use crate::stream::{Planes, Stream};
use crate::sys::poll::{OUT, PollSet};
use crate::sys::socket;
use crate::{PAYLOAD_BYTES_MAX, PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST};

mod choice;
pub(crate) mod exchange;
mod local;
pub(crate) mod redial;
pub(crate) mod upgrade;

use redial::{Place, Redial, Tls};
use upgrade::Upgrade;

/// Opens a session. Returns it with the server application's answer to
/// [`ConnectOptions::payload`].
///
/// With [`TransportChoice::Auto`]: shared memory if the server is on this host, else what both sides
/// have and a short probe shows to be better. [`Endpoint::transport_reason`] tells the reason.
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
    match connect_by(options, deadline, Arc::clone(&handler)) {
        // A server from before versions were agreed on says no, and which one it speaks.
        Err(ConnectError::Version { server, .. })
            if (PROTOCOL_VERSION_OLDEST..options.protocol).contains(&server) =>
        {
            log::info!("{}: protocol {server}", options.server);
            let older = ConnectOptions {
                protocol: server,
                ..options.clone()
            };
            connect_by(&older, deadline, handler)
        }
        other => other,
    }
}

fn connect_by(
    options: &ConnectOptions,
    deadline: Instant,
    handler: Arc<dyn Handler>,
) -> Result<(Endpoint, Vec<u8>), ConnectError> {
    let asked = "asked for".to_owned();
    let (link, reason) = match options.transport {
        TransportChoice::Tcp => (over_tcp(options, deadline)?, asked),
        TransportChoice::Shm => (local::over_shm(options, deadline)?, asked),
        TransportChoice::Auto => choice::best(options, deadline)?,
        TransportChoice::Verbs => (over_verbs(options, deadline)?, asked),
        TransportChoice::Network => (
            over_network(options, deadline, options.rdma.as_ref())?,
            asked,
        ),
    };
    let Link {
        call,
        bulk,
        agreed,
        place,
        payload,
        not_rdma: _,
    } = link;
    log::info!(
        "session {} with {} over {}: {reason}{}",
        agreed.session,
        options.server,
        call.name(),
        added(options)
    );
    let socket = options.socket.clone();
    let redial = Some(Redial {
        place,
        agreed,
        socket,
        rdma: options.rdma.filter(|_| call.name() == "verbs"),
        tls: tls(options)?,
    });
    let endpoint = Endpoint::start(call, &agreed, &options.tuning, handler, redial, true)
        .map_err(ConnectError::System)?;
    endpoint.explain_transport(reason + &added(options));
    if let Some(bulk) = bulk {
        endpoint.attach_bulk_stream(bulk);
    }
    Ok((endpoint, payload))
}

/// A connection that was let in.
struct Link {
    call: Arc<dyn Stream>,
    /// Where the bulk plane came with it.
    bulk: Option<Arc<dyn Stream>>,
    agreed: Agreed,
    /// Where to open further connections.
    place: Place,
    payload: Vec<u8>,
    /// Why it did not become RDMA, where that was tried.
    not_rdma: Option<VerbsError>,
}

/// What is added to the path, said wherever its choice is explained.
fn added(options: &ConnectOptions) -> String {
    match options.tuning.added_rtt {
        none if none.is_zero() => String::new(),
        added => format!("; {} us are added to every round trip", added.as_micros()),
    }
}

/// What the server answered.
struct Greeted {
    agreed: Agreed,
    payload: Vec<u8>,
    /// An exchange of RDMA offers follows.
    offers_rdma: bool,
}

/// Why it is not RDMA where TLS is wanted.
const NO_TLS: &str = "TLS is asked for, and RDMA is not encrypted";

/// Whether this host can do RDMA at all; the text says why not. Quick: it asks no server.
fn verbs_at_hand(options: &ConnectOptions) -> Result<(), String> {
    if options.tls.is_some() {
        return Err(NO_TLS.to_owned());
    }
    let rdma = options.rdma.as_ref().ok_or("it is switched off")?;
    Near::at_hand(rdma).map_err(|error| error.to_string())
}

fn over_tcp(options: &ConnectOptions, deadline: Instant) -> Result<Link, ConnectError> {
    over_network(options, deadline, None)
}

/// With what the connections over the network are protected.
fn tls(options: &ConnectOptions) -> Result<Option<Tls>, ConnectError> {
    let Some(client) = options.tls.clone() else {
        return Ok(None);
    };
    match name_of(&options.server) {
        Ok(name) => Ok(Some(Tls { client, name })),
        // A path: nothing goes over the network.
        Err(_) if local::is_path(options) => Ok(None),
        Err(error) => Err(untrusted(options, error)),
    }
}

/// Over TCP with TLS.
fn over_tls(options: &ConnectOptions, tls: &Tls, deadline: Instant) -> Result<Link, ConnectError> {
    let (tcp, address) = open(options, deadline)?;
    let stream = TlsStream::client(tcp, &tls.client, &tls.name);
    let stream = stream.map_err(|error| untrusted(options, error))?;
    let greeted = greet(options, &stream, deadline, false)?;
    Ok(Link {
        call: Arc::new(stream),
        bulk: None,
        agreed: greeted.agreed,
        place: Place::Tcp(address),
        payload: greeted.payload,
        not_rdma: None,
    })
}

fn untrusted(options: &ConnectOptions, source: TlsError) -> ConnectError {
    ConnectError::Tls {
        server: options.server.clone(),
        source,
    }
}

/// Over TCP, and from there over RDMA if that is wished for and possible.
fn over_network(
    options: &ConnectOptions,
    deadline: Instant,
    rdma: Option<&RdmaOptions>,
) -> Result<Link, ConnectError> {
    if let Some(tls) = tls(options)? {
        return over_tls(options, &tls, deadline);
    }
    let (stream, address) = open(options, deadline)?;
    let near = rdma.map(|rdma| Near::new(&upgrade::side(&stream, rdma), None));
    let (near, why) = match near.transpose() {
        Ok(near) => (near, None),
        Err(error) => (None, Some(error)),
    };
    let greeted = greet(options, &stream, deadline, near.is_some())?;
    let (planes, why) = match near {
        Some(near) if greeted.offers_rdma => {
            let failed = |error: io::Error| broken(options, error);
            match upgrade::client(near, stream, deadline).map_err(failed)? {
                Upgrade::Done(planes, how) => {
                    log::info!("{}: over RDMA: {how}", options.server);
                    (planes, None)
                }
                Upgrade::Stays(stream, why) => (plain(stream), Some(why)),
            }
        }
        Some(_) => {
            let why = VerbsError::Refused("no RDMA for clients".to_owned());
            (plain(stream), Some(why))
        }
        None => (plain(stream), why),
    };
    if let Some(why) = &why {
        log::info!("{}: not over RDMA: {why}", options.server);
    }
    let (call, bulk) = planes;
    Ok(Link {
        call,
        bulk,
        agreed: greeted.agreed,
        place: Place::Tcp(address),
        payload: greeted.payload,
        not_rdma: why,
    })
}

/// RDMA or nothing.
fn over_verbs(options: &ConnectOptions, deadline: Instant) -> Result<Link, ConnectError> {
    if options.tls.is_some() {
        return Err(unavailable("verbs", NO_TLS));
    }
    let Some(rdma) = &options.rdma else {
        return Err(unavailable("verbs", "it is switched off"));
    };
    // What can be seen from here needs no session first.
    Near::prepare(rdma).map_err(|error| unavailable("verbs", error.to_string()))?;
    let link = over_network(options, deadline, Some(rdma))?;
    match link.not_rdma {
        Some(why) => Err(unavailable("verbs", why.to_string())),
        None => Ok(link),
    }
}

fn plain(stream: TcpStream) -> Planes {
    (Arc::new(stream), None)
}

fn check(options: &ConnectOptions) -> Result<(), ConnectError> {
    if !options.limits.is_valid() {
        return Err(ConnectError::Option(format!(
            "impossible limits {:?}",
            options.limits
        )));
    }
    let versions = PROTOCOL_VERSION_OLDEST..=PROTOCOL_VERSION;
    if !versions.contains(&options.protocol) {
        let text = format!("protocol {} is not one of {versions:?}", options.protocol);
        return Err(ConnectError::Option(text));
    }
    if !options.socket.is_valid() {
        let text = format!("impossible socket options {:?}", options.socket);
        return Err(ConnectError::Option(text));
    }
    if options.payload.len() > PAYLOAD_BYTES_MAX {
        let text = format!("payload of {} bytes is too long", options.payload.len());
        return Err(ConnectError::Option(text));
    }
    if options
        .token
        .as_ref()
        .is_some_and(|token| token.len() > TOKEN_BYTES_MAX)
    {
        return Err(ConnectError::Option("the token is too long".into()));
    }
    Ok(())
}

fn unavailable(transport: &'static str, reason: impl Into<String>) -> ConnectError {
    ConnectError::Transport {
        transport,
        reason: reason.into(),
    }
}

fn resolve(options: &ConnectOptions) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |source| ConnectError::Resolve {
        server: options.server.clone(),
        source,
    };
    Ok(options.server.to_socket_addrs().map_err(failed)?.collect())
}

/// Connects to the first address of the server that answers.
fn open(
    options: &ConnectOptions,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let addresses = resolve(options)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (n, address) in addresses.iter().enumerate() {
        // What is left is shared by the addresses that are left.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
        match open_one(address, &options.socket, Instant::now() + share) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => last = error,
        }
    }
    if last.kind() == io::ErrorKind::TimedOut {
        return Err(timed_out(options));
    }
    Err(ConnectError::Connect {
        server: options.server.clone(),
        source: last,
    })
}

fn open_one(
    address: &SocketAddr,
    options: &SocketOptions,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let fd = socket::connect_start(address, options)?;
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
    stream: &dyn Stream,
    deadline: Instant,
    wants_rdma: bool,
) -> Result<Greeted, ConnectError> {
    let token = options.token.as_deref().unwrap_or_default().as_bytes();
    // Both were checked against their limits.
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let head = ClientHead::new(
        HelloKind::New,
        options.protocol,
        &options.limits,
        len(token),
        len(&options.payload),
    )
    .with_rdma(wants_rdma);
    let failed = |error: io::Error| broken(options, error);
    let parts: [&[u8]; 3] = [&head.bytes(), token, &options.payload];
    exchange::send_all(stream, &parts, Some(deadline)).map_err(failed)?;
    let mut answer = [0; SERVER_HEAD_BYTES];
    let versions = PROTOCOL_VERSION_OLDEST..=options.protocol;
    // Magic and version first: another version's answer may be shorter than ours.
    exchange::recv_exact(stream, &mut answer[..10], Some(deadline)).map_err(failed)?;
    ServerHead::check_preamble(&answer, versions.clone())
        .map_err(|error| misspoken(options, error))?;
    exchange::recv_exact(stream, &mut answer[10..], Some(deadline)).map_err(failed)?;
    let head = ServerHead::decode(&answer, versions).map_err(|error| misspoken(options, error))?;
    let mut payload = vec![0; head.payload_len()];
    exchange::recv_exact(stream, &mut payload, Some(deadline)).map_err(failed)?;
    if let Some(code) = head.refused() {
        if code == RefuseCode::VERSION && head.version() < options.protocol {
            return Err(misspoken(options, HelloError::Version(head.version())));
        }
        return Err(refused(code, &payload));
    }
    let (session, key, remote) = (head.session(), head.key(), head.limits()?);
    Ok(Greeted {
        agreed: Agreed {
            session,
            key,
            local: options.limits,
            remote,
            version: head.version(),
        },
        payload,
        offers_rdma: head.offers_rdma(),
    })
}

fn broken(options: &ConnectOptions, error: io::Error) -> ConnectError {
    if let Some(error) = TlsError::of(&error) {
        return untrusted(options, error.clone());
    }
    let server = options.server.clone();
    match error.kind() {
        io::ErrorKind::TimedOut => timed_out(options),
        io::ErrorKind::UnexpectedEof => ConnectError::NotFarcall { server },
        _ => ConnectError::Connect {
            server,
            source: error,
        },
    }
}

fn refused(code: RefuseCode, message: &[u8]) -> ConnectError {
    // Shown to a person: no control characters, no endless text.
    let message = String::from_utf8_lossy(message);
    let message = message
        .chars()
        .filter(|c| !c.is_control())
        .take(1000)
        .collect();
    ConnectError::Refused { code, message }
}

fn misspoken(options: &ConnectOptions, error: HelloError) -> ConnectError {
    match error {
        HelloError::Magic => ConnectError::NotFarcall {
            server: options.server.clone(),
        },
        HelloError::Version(server) => ConnectError::Version {
            server,
            client: options.protocol,
        },
        other => ConnectError::Handshake(other),
    }
}

fn timed_out(options: &ConnectOptions) -> ConnectError {
    ConnectError::TimedOut {
        server: options.server.clone(),
        timeout_ms: options.connect_timeout.as_millis(),
    }
}

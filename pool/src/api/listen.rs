//! The listening socket: TLS everywhere but on loopback.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::{App, Peer, service};
use crate::tls::is_loopback;

/// Connections at once.
const CONNECTIONS_MAX: usize = 32_768;
/// For a TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where and how.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// `HOST:PORT`; port 0 takes any free one.
    pub address: String,
    /// Without it, plain HTTP, which only loopback may.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// Why the pool does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Tokens would go over the network in the clear.
    #[error("{0} is not loopback, and without TLS tokens would be readable on the way")]
    Plain(String),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound socket.
pub struct Serving {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    roles: watch::Receiver<Role>,
}

/// What a node does with a connection.
#[derive(Clone, Debug, Default)]
pub enum Role {
    /// Answers itself.
    Leading(Router),
    /// Passes it on, as it is, to the node at this address, which has the same certificate.
    Following(String),
    /// Nobody can answer now: closes it.
    #[default]
    Neither,
}

impl PartialEq for Role {
    /// Each leadership is another.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Following(one), Self::Following(other)) => one == other,
            (Self::Neither, Self::Neither) => true,
            _ => false,
        }
    }
}

impl Serving {
    /// Binds the socket. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// Plain HTTP where others could read it; the address is taken.
    pub async fn bind(options: &ListenOptions, app: App) -> Result<Self, ListenError> {
        let leading = Role::Leading(service(app));
        Self::bind_node(options, watch::Sender::new(leading).subscribe()).await
    }

    /// The same for one of several nodes, whose role changes.
    ///
    /// # Errors
    /// As [`Serving::bind`].
    pub async fn bind_node(
        options: &ListenOptions,
        roles: watch::Receiver<Role>,
    ) -> Result<Self, ListenError> {
        let address = options.address.clone();
        let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
        if options.tls.is_none() && !is_loopback(host) {
            return Err(ListenError::Plain(address));
        }
        let listener = TcpListener::bind(&address).await;
        Ok(Self {
            listener: listener.map_err(|source| ListenError::Bind { address, source })?,
            tls: options.tls.clone().map(TlsAcceptor::from),
            roles,
        })
    }

    /// The bound address.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: some connections must end first.
                    log::error!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let tls = self.tls.clone();
            let peer = Peer {
                address: peer.ip(),
                is_tls: tls.is_some(),
            };
            let mut roles = self.roles.clone();
            let role = roles.borrow_and_update().clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = serve(stream, tls, peer, role) => {}
                    // Who does not lead any more answers nothing more, and who followed may follow another.
                    true = changes(&mut roles) => {}
                }
                drop(place);
            });
        }
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, peer: Peer, role: Role) {
    match role {
        Role::Leading(router) => connection(stream, tls, router.layer(Extension(peer))).await,
        Role::Following(leader) => pass_on(stream, &leader).await,
        Role::Neither => {}
    }
}

/// True when the role changes; waits for ever if it never can.
async fn changes(roles: &mut watch::Receiver<Role>) -> bool {
    if roles.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    true
}

async fn pass_on(mut stream: TcpStream, leader: &str) {
    match tokio::time::timeout(HANDSHAKE, TcpStream::connect(leader)).await {
        Ok(Ok(mut leader)) => {
            let _ = leader.set_nodelay(true);
            let _ = stream.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut leader).await;
        }
        Ok(Err(error)) => log::warn!("the node that leads, {leader}: {error}"),
        Err(_) => log::warn!("the node that leads, {leader}, does not answer"),
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(stream, router).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, router).await,
        Ok(Err(error)) => log::debug!("TLS: {error}"),
        Err(_) => log::debug!("TLS: the peer is too slow"),
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE);
    let service = TowerToHyperService::new(router);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        log::debug!("a connection ended: {error}");
    }
}

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
use tokio::sync::Semaphore;
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
    router: Router,
}

impl Serving {
    /// Binds the socket. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// Plain HTTP where others could read it; the address is taken.
    pub async fn bind(options: &ListenOptions, app: App) -> Result<Self, ListenError> {
        let address = options.address.clone();
        let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
        if options.tls.is_none() && !is_loopback(host) {
            return Err(ListenError::Plain(address));
        }
        let listener = TcpListener::bind(&address).await;
        Ok(Self {
            listener: listener.map_err(|source| ListenError::Bind { address, source })?,
            tls: options.tls.clone().map(TlsAcceptor::from),
            router: service(app),
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
            let router = self.router.clone().layer(Extension(peer));
            tokio::spawn(async move {
                connection(stream, tls, router).await;
                drop(place);
            });
        }
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

//! A session over RDMA whose TCP connections go over loopback, through a proxy.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    dead_code,
    missing_docs,
    unreachable_pub
)]

#[path = "../../../fixtures/src/proxy.rs"]
#[allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]
mod proxy;

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use farcall_transport::{
    CloseReason, ConnectOptions, DeviceName, Endpoint, IncomingKind, ListenOptions, Listener,
    RdmaMode, RdmaOptions, TransportChoice, Tuning, WaitError, connect,
};
use proxy::{Cut, Proxy};

use crate::support::suite::fill;
use crate::support::{PATIENCE, Tap, rdma_options, serve, wait_for};

/// RDMA on a device by its name: the TCP connection may go another way then.
pub fn on_device(variable: &str, mode: RdmaMode) -> RdmaOptions {
    let name = std::env::var(variable).or_else(|_| std::env::var("RDMA_VM_DEV"));
    RdmaOptions {
        device: Some(DeviceName::new(&name.unwrap()).unwrap()),
        ..rdma_options(variable, mode)
    }
}

/// A client, its server, and what is between them.
pub struct Session {
    pub client: Endpoint,
    pub server: Endpoint,
    running: thread::JoinHandle<CloseReason>,
    pub proxy: Proxy,
    listener: Arc<Listener>,
}

/// Over RDMA, and can be resumed.
pub fn session(mode: RdmaMode) -> Session {
    session_over(TransportChoice::Verbs, mode, PATIENCE)
}

/// One that can be resumed for so long.
pub fn session_over(transport: TransportChoice, mode: RdmaMode, grace: Duration) -> Session {
    let tuning = Tuning {
        grace,
        grace_closed: grace,
        ..Tuning::default()
    };
    let listen = ListenOptions {
        rdma: Some(on_device("RDMA_VM_DEV2", mode)),
        ..ListenOptions::default()
    };
    let listener = Arc::new(Listener::bind("127.0.0.1:0", listen).unwrap());
    let proxy = Proxy::start(listener.local_addr(), Cut::Never, 0);
    let (made, maker) = std::sync::mpsc::channel();
    let door = Arc::clone(&listener);
    thread::spawn(move || {
        let mut known: Option<Endpoint> = None;
        while let Ok(incoming) = door.accept() {
            let kind = incoming.kind();
            let (fd, state) = incoming.into_parts();
            match (kind, &known) {
                (IncomingKind::New, _) => {
                    let new = Endpoint::adopt(fd, &state, b"", &tuning, Tap::echo()).unwrap();
                    made.send(new.clone()).unwrap();
                    known = Some(new);
                }
                (IncomingKind::Resume { .. }, Some(known)) => drop(known.resume(fd, &state)),
                (_, Some(known)) => drop(known.attach_bulk(fd, &state)),
                (kind, None) => panic!("{kind:?} without a session"),
            }
        }
    });
    let options = ConnectOptions {
        tuning,
        transport,
        rdma: Some(on_device("RDMA_VM_DEV", mode)),
        connect_timeout: PATIENCE,
        ..ConnectOptions::new(proxy.addr().to_string())
    };
    let (client, _) = connect(&options, Tap::ignore()).unwrap();
    let server = maker.recv().unwrap();
    Session {
        running: serve(server.clone()),
        client,
        server,
        proxy,
        listener,
    }
}

impl Session {
    pub fn end(self) {
        self.client.close();
        self.running.join().unwrap();
        self.listener.close();
    }

    /// Waits for the end of both sides: why each ended.
    pub fn await_end(self) -> [CloseReason; 2] {
        let ended = self.client.wait_until(&|| false, Some(PATIENCE));
        let Err(WaitError::Closed(near)) = ended else {
            panic!("{ended:?}");
        };
        let far = self.running.join().unwrap();
        self.listener.close();
        [near, far]
    }

    /// Waits until the session goes on after its `n`-th loss.
    pub fn await_resume(&self, n: u64) {
        let resumed = || self.client.stats().resumes >= n && self.server.stats().resumes >= n;
        wait_for(resumed);
    }
}

pub fn content(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, id);
    bytes
}

pub fn receive(endpoint: &Endpoint, id: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![MaybeUninit::new(0u8); len];
    let got = endpoint.bulk_recv(id, &mut bytes).unwrap();
    // SAFETY: initialised above with zeros already.
    let byte = |byte: &MaybeUninit<u8>| unsafe { byte.assume_init() };
    bytes[..got].iter().map(byte).collect()
}

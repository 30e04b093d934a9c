//! Probes beside sessions: over every backend, bounded, and nothing that a stranger can break.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use farcall_transport::{
    ConnectError, ConnectOptions, Endpoint, Incoming, IncomingKind, ListenOptions, Listener,
    ProbePlan, Prober, RefuseCode, TransportChoice, Tuning, connect, probe,
};
use support::{PATIENCE, Tap};

/// Serves probes, and echoes to everyone else.
struct Server {
    listener: Arc<Listener>,
    accepting: thread::JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        let listener = Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap();
        let listener = Arc::new(listener);
        let accepting = {
            let listener = Arc::clone(&listener);
            thread::spawn(move || {
                let prober = Prober::default();
                while let Ok(incoming) = listener.accept() {
                    if let Some(incoming) = prober.take(incoming) {
                        echo(incoming);
                    }
                }
            })
        };
        Self {
            listener,
            accepting,
        }
    }

    fn options(&self, transport: TransportChoice) -> ConnectOptions {
        let mut options = ConnectOptions::new(self.listener.local_addr().to_string());
        options.transport = transport;
        options
    }

    fn stop(self) {
        self.listener.close();
        self.accepting.join().unwrap();
    }
}

fn echo(incoming: Incoming) {
    assert_eq!(incoming.kind(), IncomingKind::New);
    let (fd, state) = incoming.into_parts();
    let server = Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::echo()).unwrap();
    thread::spawn(move || server.run());
}

fn plan() -> ProbePlan {
    ProbePlan {
        record_bytes: vec![64, 65_536],
        round_trips: 30,
        transfer_bytes: 300_000,
        transfers: 5,
        time_max: PATIENCE,
    }
}

#[test]
fn every_backend_can_be_probed_beside_sessions() {
    let server = Server::start();
    for (transport, name) in [
        (TransportChoice::Tcp, "tcp"),
        (TransportChoice::Auto, "shm"),
    ] {
        let options = server.options(transport);
        let report = probe(&options, &plan()).unwrap();
        assert_eq!(report.transport, name);
        assert!(!report.reason.is_empty());
        for (trips, bytes) in report.round_trips.iter().zip([64, 65_536]) {
            assert_eq!((trips.record_bytes, trips.count), (bytes, 30));
            assert!(
                0 < trips.p50_ns && trips.p50_ns <= trips.p999_ns && trips.p999_ns <= trips.max_ns
            );
        }
        assert!(report.up_bytes_per_s.unwrap() > 0 && report.down_bytes_per_s.unwrap() > 0);
        let mtu = report.path.map(|path| path.mtu_bytes > 0);
        assert_eq!(mtu, (name == "tcp").then_some(true));

        let tap = Tap::ignore();
        let (client, _) = connect(&options, tap.clone()).unwrap();
        client.append(64, |record| record.fill(1)).unwrap();
        let done = || tap.bytes() == 64;
        client.wait_until(&done, Some(PATIENCE)).unwrap();
    }
    server.stop();
}

#[test]
fn an_added_delay_is_seen_and_said() {
    let server = Server::start();
    let mut options = server.options(TransportChoice::Auto);
    options.tuning.added_rtt = Duration::from_micros(700);
    let report = probe(&options, &ProbePlan::short()).unwrap();
    assert!(report.round_trips[0].p50_ns >= 700_000, "{report:?}");
    assert!(report.reason.contains("700 us"), "{}", report.reason);
    server.stop();
}

#[test]
fn there_are_four_at_once_and_places_come_free() {
    let server = Server::start();
    let mut options = server.options(TransportChoice::Tcp);
    options.payload = b"farcall probe 1\0".to_vec();
    let open: Vec<_> = (0..4)
        .map(|_| connect(&options, Tap::ignore()).unwrap())
        .collect();
    let refused = probe(&options, &plan()).unwrap_err();
    assert!(
        matches!(
            refused,
            ConnectError::Refused {
                code: RefuseCode::BUSY,
                ..
            }
        ),
        "{refused}"
    );
    drop(open);
    support::wait_for(|| probe(&options, &ProbePlan::short()).is_ok());
    server.stop();
}

#[test]
fn what_is_no_record_ends_the_probe_and_nothing_else() {
    let server = Server::start();
    let mut options = server.options(TransportChoice::Tcp);
    options.payload = b"farcall probe 1\0".to_vec();
    for garbage in [
        vec![0xff; 64],
        vec![1; 8],
        [[2u8, 0, 0, 0, 24, 0, 0, 0].as_slice(), &[0xff; 16]].concat(),
    ] {
        let tap = Tap::ignore();
        let (client, _) = connect(&options, tap.clone()).unwrap();
        client
            .append_now(garbage.len(), |out| out.copy_from_slice(&garbage))
            .unwrap();
        let closed = || client.closed().is_some();
        let _ = client.wait_until(&closed, Some(PATIENCE));
        assert!(closed());
    }
    probe(&options, &ProbePlan::short()).unwrap();
    server.stop();
}

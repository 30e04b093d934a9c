//! The suite over RDMA, in both modes, and what only RDMA has. Needs an RDMA device: run it in a
//! VM that has one (`scripts/rdma-test`).
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use farcall_transport::{
    CloseReason, ConnectError, ConnectOptions, Endpoint, Limits, ListenOptions, Listener, RdmaMode,
    RdmaOptions, TransportChoice, Tuning, VerbsError, WaitError, connect,
};
use support::suite_bulk::LentMemory;
use support::{Backend, PATIENCE, Tap, Verbs, rdma_address, rdma_options, serve};

mod completions {
    use crate::{suite, support};
    suite!(support::Verbs<false>);
}

mod memory {
    use crate::{suite, support};
    suite!(support::Verbs<true>);
}

/// Connects to a server that lets clients have RDMA with these options, or has none.
fn attempt(
    transport: TransportChoice,
    near: RdmaOptions,
    far: Option<RdmaOptions>,
) -> Result<Endpoint, ConnectError> {
    let listen = ListenOptions {
        rdma: far,
        shm: false,
        ..ListenOptions::default()
    };
    let listener = Listener::bind((rdma_address(), 0), listen).unwrap();
    let options = ConnectOptions {
        transport,
        rdma: Some(near),
        connect_timeout: PATIENCE,
        ..ConnectOptions::new(listener.local_addr().to_string())
    };
    let listener = &listener;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A client that sees for itself that it has no RDMA never comes.
            while let Ok(incoming) = listener.accept() {
                let (fd, state) = incoming.into_parts();
                if let Ok(server) =
                    Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::echo())
                {
                    serve(server);
                }
            }
        });
        let connected = connect(&options, Tap::ignore());
        listener.close();
        connected.map(|(endpoint, _)| endpoint)
    })
}

fn near() -> RdmaOptions {
    rdma_options("RDMA_VM_DEV", RdmaMode::Auto)
}

fn why_not(result: Result<Endpoint, ConnectError>) -> String {
    match result {
        Err(ConnectError::Transport {
            transport: "verbs",
            reason,
        }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_is_said_with_its_reason() {
    let verbs = TransportChoice::Verbs;
    let reason = why_not(attempt(verbs, near(), None));
    assert!(reason.contains("no RDMA for clients"), "{reason}");
    let index = RdmaOptions {
        gid_index: Some(200),
        ..near()
    };
    let reason = why_not(attempt(verbs, index, Some(RdmaOptions::default())));
    assert!(reason.contains("RDMA device is on the path"), "{reason}");
    // The server's own trouble comes in its own words.
    let reason = why_not(attempt(verbs, near(), Some(index)));
    assert!(reason.starts_with("the server says: no"), "{reason}");
}

#[test]
fn auto_falls_back_to_tcp_with_the_reason() {
    let endpoint = attempt(TransportChoice::Auto, near(), None).unwrap();
    assert_eq!(endpoint.transport_name(), "tcp");
    let reason = endpoint.transport_reason();
    assert!(reason.contains("no RDMA for clients"), "{reason}");
}

#[test]
fn either_side_can_ask_for_memory_mode() {
    for (one, other) in [
        (RdmaMode::Memory, RdmaMode::Auto),
        (RdmaMode::Completions, RdmaMode::Memory),
    ] {
        let far = rdma_options("RDMA_VM_DEV2", other);
        let near = rdma_options("RDMA_VM_DEV", one);
        let endpoint = attempt(TransportChoice::Verbs, near, Some(far)).unwrap();
        assert_eq!(endpoint.transport_name(), "verbs");
        endpoint.close();
    }
}

/// A server in a process of its own; does nothing when it runs by itself.
#[test]
fn program_that_serves() {
    if std::env::var("FARCALL_TEST_SERVE").is_err() {
        return;
    }
    let listen = ListenOptions {
        rdma: Some(rdma_options("RDMA_VM_DEV2", RdmaMode::Auto)),
        ..ListenOptions::default()
    };
    let listener = Listener::bind((rdma_address(), 0), listen).unwrap();
    println!("\nPORT {}", listener.local_addr().port());
    let (fd, state) = listener.accept().unwrap().into_parts();
    Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::ignore())
        .unwrap()
        .run();
}

#[test]
fn a_killed_server_ends_waits() {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_that_serves", "--nocapture"])
        .env("FARCALL_TEST_SERVE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let port = lines
        .map(Result::unwrap)
        .find_map(|l| l.strip_prefix("PORT ").map(String::from));
    let options = ConnectOptions {
        transport: TransportChoice::Verbs,
        rdma: Some(near()),
        connect_timeout: PATIENCE,
        ..ConnectOptions::new(format!("{}:{}", rdma_address(), port.unwrap()))
    };
    let (client, _) = connect(&options, Tap::ignore()).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| client.wait_until(&|| false, Some(PATIENCE)));
        support::wait_for(|| client.stats().sleeps > 0);
        program.kill().unwrap();
        let ended = waiter.join().unwrap();
        assert!(
            matches!(ended, Err(WaitError::Closed(CloseReason::Lost(_)))),
            "{ended:?}"
        );
    });
    program.wait().unwrap();
    assert!(client.append(8, |_| ()).is_err());
}

#[test]
fn an_idle_session_uses_no_processor_time() {
    support::idle::uses_no_processor_time::<Verbs<false>>();
    support::idle::uses_no_processor_time::<Verbs<true>>();
}

/// What is registered beside the rings comes with transfers that need it, and goes with the memory.
#[test]
fn registered_memory_is_bounded_at_rest_and_grows_on_demand() {
    const REST_MAX: u64 = 4_000_000;
    const BYTES: usize = 8 << 20;
    let tap = Tap::ignore();
    let (client, server) =
        Verbs::<false>::pair(Limits::default(), Tuning::default(), tap, Tap::ignore());
    let running = serve(server.clone());
    let registered = |endpoint: &Endpoint| endpoint.stats().registered_bytes;
    let at_first = registered(&client);
    assert!(at_first > 1 << 20, "the rings are registered: {at_first}");
    assert!(at_first <= REST_MAX && registered(&server) <= REST_MAX);
    // The server has not lent its memory: its side goes through staging, both ways.
    let mut lent = LentMemory::new(&client, vec![7; BYTES]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![std::mem::MaybeUninit::uninit(); BYTES];
            assert_eq!(server.bulk_recv(1, &mut bytes).unwrap(), BYTES);
            server
                .bulk_send(2, &[std::io::IoSlice::new(&vec![9; BYTES])])
                .unwrap();
        });
        lent.send(1, 0, BYTES);
        assert_eq!(lent.receive(2, 0), BYTES);
    });
    assert!(client.stats().bulk_bytes_direct >= BYTES as u64);
    assert!(registered(&client) >= at_first + BYTES as u64);
    assert!(registered(&server) > at_first, "staging");
    assert!(registered(&server) <= REST_MAX, "{}", registered(&server));
    let bytes = lent.take_back();
    assert!(bytes.iter().all(|byte| *byte == 9));
    assert_eq!(registered(&client), at_first);
    client.close();
    running.join().unwrap();
}

#[test]
fn a_port_that_goes_down_ends_the_session_with_its_reason() {
    let link = |state| {
        let ip = Command::new("ip")
            .args(["link", "set", "rdma0", state])
            .status();
        assert!(ip.unwrap().success());
    };
    let tap = Tap::ignore();
    let (client, server) = Verbs::<false>::pair(
        Limits::default(),
        Tuning::default(),
        tap.clone(),
        Tap::echo(),
    );
    let running = serve(server);
    client.append(64, |record| record.fill(1)).unwrap();
    client
        .wait_until(&|| tap.bytes() == 64, Some(PATIENCE))
        .unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| client.wait_until(&|| false, Some(PATIENCE)));
        let before = client.stats().sleeps;
        support::wait_for(|| client.stats().sleeps > before);
        link("down");
        let ended = waiter.join().unwrap();
        link("up");
        let Err(WaitError::Closed(CloseReason::Lost(error))) = ended else {
            panic!("{ended:?}");
        };
        let error = VerbsError::of(&error).unwrap();
        assert!(matches!(error, VerbsError::PortDown(_)), "{error:?}");
    });
    running.join().unwrap();
}

//! What an executor does before it has a session, and what it is told with one.

use std::time::{Duration, Instant};

use super::support::hello_with;
use super::*;

fn device_name(client: &Client) -> String {
    let (_, body, _) = farcall_marshal::record::split(client.welcome().devices).unwrap();
    DeviceDescription::decode_body(body)
        .unwrap()
        .name
        .to_owned()
}

/// A driver takes its time to start; an executor that stands ready has that behind it.
#[test]
fn a_session_does_not_wait_for_the_driver_s_start() {
    const START: Duration = Duration::from_secs(2);
    let (server, _folder) = server_with(&[], |command| {
        command.env("FAKE_INIT_MS", START.as_millis().to_string());
    });
    eventually("a session opens sooner", || {
        let began = Instant::now();
        let client = Client::connect(&server.address);
        let took = began.elapsed();
        assert_eq!(client.alloc(0, MIB), 0);
        took < START / 2
    });
}

/// Under MPS a session's share is its part of the multiprocessors, from the start of its driver on.
#[test]
fn mps_is_told_a_session_s_share() {
    let pipes = tempfile::tempdir().unwrap();
    let (server, _folder) = server_with(&[], |command| {
        command.env("CUDA_MPS_PIPE_DIRECTORY", pipes.path());
    });
    let open = |share| Client::connect_for(&server.address, hello_with(0, 1, share)).unwrap();
    assert_eq!(device_name(&open(250)), "fake GPU", "no daemon");
    std::fs::write(pipes.path().join("control"), "").unwrap();
    // Executors that were started before take turns.
    eventually("there is an executor under MPS", || {
        device_name(&open(250)) == "fake GPU, 25%"
    });
    assert_eq!(device_name(&open(1000)), "fake GPU");
}

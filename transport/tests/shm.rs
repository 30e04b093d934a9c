//! The suite over shared memory.
#![allow(clippy::unwrap_used)]

mod support;

suite!(support::Shm);

/// A client in a container has nothing but the mounted socket.
#[test]
fn a_mounted_socket_is_enough() {
    use farcall_transport::{ConnectOptions, Endpoint, ListenOptions, Listener, Tuning, connect};
    let directory = std::env::temp_dir().join(format!("farcall-socket-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("door");
    let options = ListenOptions {
        shm: false,
        ..ListenOptions::default()
    };
    let mut listener = Listener::bind("127.0.0.1:0", options).unwrap();
    listener.listen_at(&path).unwrap();
    let serving = std::thread::spawn(move || {
        let (fd, state) = listener.accept().unwrap().into_parts();
        let tuning = Tuning::default();
        let server = Endpoint::adopt(fd, &state, b"", &tuning, support::Tap::echo()).unwrap();
        assert_eq!(server.transport_name(), "shm");
        server.run()
    });
    let tap = support::Tap::ignore();
    let options = ConnectOptions::new(format!("unix:{}", path.display()));
    let (client, _) = connect(&options, tap.clone()).unwrap();
    assert_eq!(client.transport_name(), "shm");
    client.append(64, |record| record.fill(1)).unwrap();
    let done = || tap.bytes() == 64;
    client.wait_until(&done, Some(support::PATIENCE)).unwrap();
    client.close();
    serving.join().unwrap();
    assert!(!path.exists(), "the listener removes its socket");
    std::fs::remove_dir(&directory).unwrap();
}

//! GPUs that are lost while they are served.

use super::support::hello;
use super::*;

const DEVICE_UNAVAILABLE: u32 = 46;
/// How a GPU answers that is not there any more.
const UNKNOWN: u32 = 999;
/// Milliseconds that a call may take which waits for nothing; errors are looked for eight times in that.
const PATIENCE_MS: &str = "200";

/// A server with two GPUs and a client on each.
fn setting() -> (ServerProcess, tempfile::TempDir, [Client; 2]) {
    let (server, folder) = server_with(&["2", "67108864", PATIENCE_MS], |command| {
        command.env("FAKE_DEVICES", "2");
    });
    let open = || Client::connect_for(&server.address, hello(0, 1)).unwrap();
    let clients = [open(), open()];
    assert_eq!(clients.each_ref().map(server_ordinal), [0, 1]);
    (server, folder, clients)
}

fn server_ordinal(client: &Client) -> u32 {
    let (_, body, _) = farcall_marshal::record::split(client.welcome().devices).unwrap();
    DeviceDescription::decode_body(body).unwrap().server_ordinal
}

#[test]
fn a_lost_gpu_is_found_out_by_what_the_driver_says() {
    for status in [UNKNOWN, DEVICE_UNAVAILABLE] {
        let (server, folder, [victim, other]) = setting();
        assert_eq!(victim.alloc(0, MIB), 0);
        std::fs::write(folder.path().join("lost"), format!("0 {status}")).unwrap();
        assert_eq!(victim.synchronize(), status, "as the driver says");
        // The session ends with words, once a check in another process has failed.
        let told = loop {
            let notice = victim.push(ErrorNotice::NUMBER);
            let notice = ErrorNotice::decode_body(&notice).unwrap();
            if notice.message.contains("GPU 0 is out of service") {
                break (notice.status, notice.message.to_owned());
            }
        };
        assert_eq!(told.0, DEVICE_UNAVAILABLE);
        assert!(told.1.contains("dmesg | grep Xid"), "{}", told.1);
        victim.closed();
        assert_eq!(other.alloc(0, MIB), 0);
        assert_eq!(other.download(other.base(), 4), Ok(vec![0; 4]));
        let next = Client::connect_for(&server.address, hello(0, 1)).unwrap();
        assert_eq!(server_ordinal(&next), 1);
        let refused = Client::connect_for(&server.address, hello(0, 2))
            .err()
            .unwrap();
        let refused = refused.to_string();
        let is_advised = refused.contains("lost") && refused.contains("dmesg | grep Xid");
        assert!(is_advised, "{refused}");
    }
}

/// A fault of a program looks like that, too; the GPU works, and nobody is harmed.
#[test]
fn a_gpu_that_works_stays_in_service() {
    let (server, folder, [victim, _other]) = setting();
    assert_eq!(victim.alloc(0, MIB), 0);
    std::fs::write(folder.path().join("lost"), format!("0 {UNKNOWN}")).unwrap();
    assert_eq!(victim.synchronize(), UNKNOWN);
    std::fs::remove_file(folder.path().join("lost")).unwrap();
    assert_eq!(victim.synchronize(), 0);
    let next = Client::connect_for(&server.address, hello(0, 2)).unwrap();
    assert_eq!(next.alloc(MIB, MIB), 0);
}

/// A driver that is started after a GPU was lost may not show it at all, and give its number to the next one.
#[test]
fn another_gpu_under_its_number_is_not_taken_for_it() {
    let (server, folder, [victim, _other]) = setting();
    assert_eq!(victim.alloc(0, MIB), 0);
    std::fs::write(folder.path().join("gone"), "").unwrap();
    std::fs::write(folder.path().join("lost"), format!("0 {UNKNOWN}")).unwrap();
    assert_eq!(victim.synchronize(), UNKNOWN);
    std::fs::remove_file(folder.path().join("lost")).unwrap();
    victim.closed();
    let refused = Client::connect_for(&server.address, hello(0, 2))
        .err()
        .unwrap();
    assert!(refused.to_string().contains("lost"), "{refused}");
}

/// An executor that a driver brings down has its GPUs checked.
#[test]
fn a_gpu_is_checked_when_an_executor_dies() {
    let (server, folder, [victim, _other]) = setting();
    std::fs::write(folder.path().join("lost"), format!("0 {UNKNOWN}")).unwrap();
    for process in server.executors() {
        let killed = Command::new("kill")
            .args(["-9", &process.to_string()])
            .status();
        assert!(killed.unwrap().success());
    }
    victim.closed();
    eventually("no session gets it", || {
        let refused = Client::connect_for(&server.address, hello(0, 2)).err();
        refused.is_some_and(|why| why.to_string().contains("lost"))
    });
}

//! Driver calls that do not come back.

use std::fs::File;
use std::time::{Duration, Instant};

use super::*;

const DEVICE_UNAVAILABLE: u32 = 46;
/// Milliseconds that a call may take which waits for nothing.
const PATIENCE_MS: &str = "300";
/// Milliseconds that a session outlives its connection.
const GRACE_MS: &str = "1000";

struct Setting {
    server: ServerProcess,
    folder: tempfile::TempDir,
    log: tempfile::NamedTempFile,
}

impl Setting {
    fn new() -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let file = File::create(log.path()).unwrap();
        let arguments = ["1", "67108864", PATIENCE_MS, GRACE_MS];
        let (server, folder) = server_with(&arguments, |command| {
            command.stderr(file).env("RUST_LOG", "info");
        });
        Self {
            server,
            folder,
            log,
        }
    }

    /// From now on this call does not come back, in any process.
    fn hang(&self, call: &str) {
        std::fs::write(self.folder.path().join("hang"), call).unwrap();
    }

    fn has_logged(&self, words: &str) -> bool {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        log.contains(words)
    }

    fn used(&self) -> u64 {
        used(&self.server)
    }
}

/// The notice that ends a session.
fn last_words(client: &Client) -> (u32, String) {
    let notice = client.push(ErrorNotice::NUMBER);
    let notice = ErrorNotice::decode_body(&notice).unwrap();
    (notice.status, notice.message.to_owned())
}

#[test]
fn a_call_that_does_not_come_back_ends_its_session_alone() {
    for call in ["cuStreamQuery", "cuMemUnmap", "cuModuleLoadDataEx"] {
        let setting = Setting::new();
        let other = client(&setting.server);
        assert_eq!(other.alloc(0, 4 * MIB), 0);
        let victim = client(&setting.server);
        assert_eq!(victim.alloc(0, 8 * MIB), 0);
        setting.hang(call);
        let began = Instant::now();
        match call {
            "cuStreamQuery" => drop(victim.begin(&CuStreamQuery { stream: STREAM })),
            "cuMemUnmap" => victim.send(&CuMemFreeV2 {
                addr: victim.base(),
            }),
            _ => {
                let image = farcall_marshal::image::compress_for_wire(b".version 8.0 // more");
                let hash = farcall_marshal::image::content_hash(b".version 8.0 // more");
                victim.send(&CuModuleLoadData {
                    module: 77,
                    kind: 1,
                    total_bytes: image.len() as u64,
                    bulk: 0,
                    hash: &hash,
                    image: &image,
                });
            }
        }
        let (status, message) = last_words(&victim);
        assert_eq!(status, DEVICE_UNAVAILABLE);
        assert!(message.contains(call), "{message}");
        if call == "cuModuleLoadDataEx" {
            let least = Duration::from_secs(5);
            assert!(began.elapsed() > least, "a compiler gets longer");
        }
        victim.closed();
        eventually("the memory is free", || setting.used() == 4 * MIB);
        setting.hang("");
        eventually("the GPU is checked", || setting.has_logged("GPU 0 works"));
        assert!(setting.has_logged(&format!("has not come back from {call}")));
        assert_eq!(other.synchronize(), 0);
        assert_eq!(other.download(other.base(), 4).unwrap(), [0; 4]);
        let next = client(&setting.server);
        assert_eq!(next.alloc(0, MIB), 0);
    }
}

#[test]
fn a_gpu_that_hangs_for_everybody_is_taken_out_of_service() {
    let setting = Setting::new();
    let (victim, other) = (client(&setting.server), client(&setting.server));
    setting.hang("cuEventQuery");
    victim.launch(RELEASE, STREAM, 1, 1, &[]);
    let _ = victim.begin(&CuCtxSynchronize {});
    assert_eq!(last_words(&victim).0, DEVICE_UNAVAILABLE);
    let (status, message) = last_words(&other);
    assert_eq!(status, DEVICE_UNAVAILABLE);
    assert!(message.contains("GPU 0 is out of service"), "{message}");
    other.closed();
    eventually("it is said", || setting.has_logged("the driver hangs"));
    let refused = Client::connect_with(&setting.server.address, 0)
        .err()
        .unwrap();
    assert!(refused.to_string().contains("lost"), "{refused}");
}

#[test]
fn a_launch_that_waits_for_room_is_no_hang_until_its_client_is_gone() {
    let setting = Setting::new();
    let waiting = client(&setting.server);
    assert_eq!(waiting.alloc(0, 8 * MIB), 0);
    setting.hang("cuLaunchKernel");
    waiting.launch(HOLD, STREAM, 1, 1, &[]);
    eventually("its GPU is checked", || setting.has_logged("GPU 0 works"));
    assert!(setting.has_logged("which waits for kernels"));
    // Many times the patience later it is there still.
    let asked = || {
        let log = std::fs::read_to_string(setting.log.path()).unwrap();
        log.matches("GPU 0 works").count()
    };
    eventually("it is checked again", || asked() >= 3);
    assert_eq!(setting.used(), 8 * MIB);
    drop(waiting);
    eventually("the memory is free", || setting.used() == 0);
}

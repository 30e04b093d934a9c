//! The command against a real server on the CPU device.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::{Child, Stdio};

use common::{Farcall, lines, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Serves on a port of the system's choice and waits for the line that says which.
    fn start(farcall: &Farcall, options: &[&str]) -> Self {
        let args: Vec<&str> = ["serve", "--listen", "127.0.0.1:0", "--device", "soft"]
            .iter()
            .chain(options)
            .copied()
            .collect();
        let mut child = farcall
            .command(&args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = lines(child.stdout.take().unwrap()).next().unwrap();
        let address = line
            .strip_prefix("serving on ")
            .and_then(|rest| rest.split(' ').next())
            .unwrap()
            .to_owned();
        Self { child, address }
    }

    fn stop(&mut self, signal: Signal) -> Option<i32> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn devices_of_a_server() {
    let farcall = Farcall::new();
    let mut server = Server::start(
        &farcall,
        &["--gpus", "2", "--memory", "256MiB", "--name", "test box"],
    );
    let table = farcall.output(&["devices", "--server", &server.address]);
    assert_eq!(table.status.code(), Some(0), "{}", stderr(&table));
    assert!(
        stdout(&table).starts_with(&format!("test box ({}), CUDA ", server.address)),
        "{}",
        stdout(&table)
    );
    assert_eq!(stdout(&table).lines().count(), 4, "{}", stdout(&table));

    let json: serde_json::Value = serde_json::from_str(&stdout(&farcall.output(&[
        "devices",
        "--json",
        "--server",
        &server.address,
    ])))
    .unwrap();
    assert_eq!(
        (&json["server_name"], &json["kind"]),
        (&"test box".into(), &"soft".into())
    );
    let devices = json["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    for (ordinal, device) in devices.iter().enumerate() {
        assert_eq!(
            (&device["ordinal"], &device["sessions"]),
            (&ordinal.into(), &0.into())
        );
        assert_eq!(
            (&device["total_bytes"], &device["used_bytes"]),
            (&(256_u64 << 20).into(), &0.into())
        );
        assert!(
            device["name"].as_str().unwrap().contains("soft"),
            "a soft device says so in its name"
        );
    }
    assert_eq!(server.stop(Signal::SIGTERM), Some(0));
}

#[test]
fn netperf_measures_the_way_that_was_asked_for() {
    let farcall = Farcall::new();
    let socket = farcall.home.path().join("door");
    let socket = socket.to_str().unwrap();
    let mut server = Server::start(&farcall, &["--socket", socket, "--dscp", "af31"]);
    let over_socket = format!("unix:{socket}");
    let tcp = [
        "--transport",
        "tcp",
        "--bind",
        "127.0.0.1",
        "--added-rtt-us",
        "900",
    ];
    for (address, options, transport) in [
        (&server.address, &[][..], "shm"),
        (&over_socket, &[], "shm"),
        (&server.address, &tcp, "tcp"),
    ] {
        let args = [&["netperf", "--json", "--server", address], options].concat();
        let output = farcall.output(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(json["transport"], transport, "{json}");
        assert!(json["up_bytes_per_s"].as_u64().unwrap() > 0, "{json}");
        if transport == "tcp" {
            assert!(json["round_trips"][0]["p50_ns"].as_u64().unwrap() > 900_000);
            assert_eq!(json["path"]["peer"], *server.address);
            let advice = json["advice"][0].as_str().unwrap();
            assert!(advice.contains("above the recommended 50 us"), "{json}");
        }
    }
    assert_eq!(server.stop(Signal::SIGTERM), Some(0));
    assert!(!std::path::Path::new(socket).exists(), "the socket is gone");
    let gone = farcall.output(&["devices", "--server", &over_socket]);
    assert_eq!(gone.status.code(), Some(69));
    assert!(
        stderr(&gone).contains("farcall serve --socket"),
        "{}",
        stderr(&gone)
    );
}

#[test]
fn more_devices_than_there_are() {
    let farcall = Farcall::new();
    let server = Server::start(&farcall, &["--gpus", "2", "--name", "box"]);
    let run = |count: &str| {
        farcall.output(&[
            "run",
            "--server",
            &server.address,
            "-n",
            count,
            "--",
            "echo",
            "ran",
        ])
    };
    for count in ["2", "all"] {
        assert_eq!(stdout(&run(count)), "ran\n", "{count}");
    }
    let three = run("3");
    assert_eq!(
        (three.status.code(), stdout(&three).as_str()),
        (Some(69), "")
    );
    assert!(
        stderr(&three).contains("3 devices were asked for, and box has 2"),
        "{}",
        stderr(&three)
    );
}

#[test]
fn a_server_that_wants_a_token() {
    let farcall = Farcall::new();
    let token = farcall.home.path().join("token");
    let path = token.to_str().unwrap();
    fs::write(&token, "s3cret\n").unwrap();
    let mut server = Server::start(&farcall, &["--token-file", path]);
    let refused = farcall.output(&["run", "--server", &server.address, "--", "echo", "ran"]);
    assert_eq!(refused.status.code(), Some(69));
    assert!(
        stderr(&refused).contains("give it with --token-file FILE"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(stdout(&refused), "");

    let run = farcall.output(&[
        "run",
        "--server",
        &server.address,
        "--token-file",
        path,
        "--",
        "echo",
        "ran",
    ]);
    assert_eq!(
        (run.status.code(), stdout(&run).as_str()),
        (Some(0), "ran\n"),
        "{}",
        stderr(&run)
    );

    fs::write(&token, "other").unwrap();
    let wrong = farcall.output(&["devices", "--server", &server.address, "--token-file", path]);
    assert_eq!(wrong.status.code(), Some(69));
    assert!(
        stderr(&wrong).contains("ask the server's administrator"),
        "{}",
        stderr(&wrong)
    );
    assert_eq!(server.stop(Signal::SIGINT), Some(0));
}

#[test]
fn what_a_server_refuses_to_start_with() {
    let farcall = Farcall::new();
    // The dummy library hides the driver of a machine that has one.
    let mut auto = farcall.command(&["serve", "--listen", "127.0.0.1:0"]);
    let auto = auto
        .env("LD_LIBRARY_PATH", farcall.home.path().join("lib"))
        .output()
        .unwrap();
    assert_eq!(auto.status.code(), Some(1));
    assert!(stderr(&auto).contains("--device soft"), "{}", stderr(&auto));

    let server = Server::start(&farcall, &[]);
    let taken = farcall.output(&["serve", "--device", "soft", "--listen", &server.address]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        stderr(&taken).contains("cannot listen on")
            && stderr(&taken).contains("--listen HOST:PORT"),
        "{}",
        stderr(&taken)
    );
}

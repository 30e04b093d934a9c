//! What can be typed, and what is said when it is wrong.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use common::{Farcall, dead_address, stderr, stdout};
use farcall_marshal::catalogue::{CALLS, Class};

#[test]
fn help_teaches() {
    let farcall = Farcall::new();
    for (args, parts) in [
        (
            &["--help"][..],
            &["farcall run", "farcall serve --device soft", "client.toml"][..],
        ),
        (
            &["serve", "--help"],
            &["--device", "soft", "--token-file", "Examples:"],
        ),
        (
            &["run", "--help"],
            &["--stats", "-m", "8GiB", "128+N", "Examples:"],
        ),
        (&["devices", "--help"], &["--json", "Examples:"]),
        (
            &["coverage", "--help"],
            &["--missing", "one-way", "Examples:"],
        ),
        (&["trace", "--help"], &["--steps", "NO_COLOR", "Examples:"]),
        (&["completions", "--help"], &["bash", "fish", "Examples:"]),
    ] {
        let output = farcall.output(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        for part in parts {
            assert!(
                stdout(&output).contains(part),
                "{args:?} should say {part}: {}",
                stdout(&output)
            );
        }
    }
    assert_eq!(
        farcall.output(&[]).status.code(),
        Some(2),
        "nothing typed is bad usage, and shows the help"
    );
}

#[test]
fn bad_values_say_what_is_allowed() {
    let farcall = Farcall::new();
    for (args, part) in [
        (&["run", "-m", "lots", "--", "true"][..], "8G, 512MiB, 1.5G"),
        (
            &["run", "-m", "0", "--", "true"],
            "leave it out for no limit",
        ),
        (&["run", "-n", "0", "--", "true"], "from 1 to 256, or all"),
        (
            &["run", "--server", "http://gpu1", "--", "true"],
            "HOST:PORT",
        ),
        (
            &["run", "--server", "gpu1:99999", "--", "true"],
            "1 to 65535",
        ),
        (&["run"], "COMMAND"),
        (&["serve", "--device", "gpu"], "auto, cuda, soft, null"),
        (&["serve", "--max-sessions", "0"], "max-sessions"),
        (
            &["coverage", "--missing", "--implemented"],
            "cannot be used with",
        ),
        (&["completions", "cmd.exe"], "bash"),
    ] {
        let output = farcall.output(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(part),
            "{args:?} should say {part}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn bad_configuration() {
    let farcall = Farcall::new();
    let mut command = farcall.command(&["run", "--no-check", "--", "true"]);
    let output = command.env("FARCALL_MEMORY", "lots").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(
        stderr(&output).starts_with("farcall: FARCALL_MEMORY: \"lots\" is not a size"),
        "{}",
        stderr(&output)
    );

    let directory = farcall.home.path().join(".config/farcall");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("client.toml"), "sever = 'gpu1'\n").unwrap();
    let output = farcall.output(&["devices"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        stderr(&output).contains("client.toml: line 1: unknown field `sever`"),
        "{}",
        stderr(&output)
    );

    let output = farcall.output(&["run", "--token-file", "/nowhere/token", "--", "true"]);
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn no_server() {
    let farcall = Farcall::new();
    let (_held, address) = dead_address();
    for args in [
        &["devices", "--server", &address][..],
        &["run", "--server", &address, "--", "echo", "ran"],
        &["trace", "--server", &address, "--", "echo", "ran"],
    ] {
        let output = farcall.output(args);
        assert_eq!(
            output.status.code(),
            Some(69),
            "{args:?}: {}",
            stderr(&output)
        );
        let text = stderr(&output);
        assert!(
            text.starts_with(&format!("farcall: cannot connect to {address}: ")),
            "{text}"
        );
        assert!(text.contains("(server from --server)"), "{text}");
        assert!(
            text.contains(&format!("farcall serve --listen {address}")),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
        assert_eq!(stdout(&output), "", "the command has not run");
    }
    let output = farcall
        .command(&["devices"])
        .env("FARCALL_SERVER", &address)
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("(server from FARCALL_SERVER)"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn something_else_listens_there() {
    let farcall = Farcall::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            )
            .unwrap();
        // Until the other side has had enough: closing with unread bytes would reset the connection.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let output = farcall.output(&["devices", "--server", &address]);
    assert_eq!(output.status.code(), Some(69));
    assert!(
        stderr(&output).contains("is not a farcall server"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn coverage_is_the_catalogue() {
    let farcall = Farcall::new();
    let implemented = CALLS.iter().filter(|call| call.implemented).count();
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&farcall.output(&["coverage", "--json"]))).unwrap();
    assert_eq!(json["total"], CALLS.len());
    assert_eq!(json["implemented"], implemented);
    assert_eq!(json["calls"].as_array().unwrap().len(), CALLS.len());
    let mut by_class: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for call in CALLS.iter() {
        let (total, done) = by_class.entry(call.class.name()).or_default();
        *total += 1;
        *done += usize::from(call.implemented);
    }
    for row in json["by_class"].as_array().unwrap() {
        let (total, done) = by_class.remove(row["class"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&row["total"], &row["implemented"]),
            (&total.into(), &done.into())
        );
    }
    assert!(by_class.is_empty(), "a class is missing: {by_class:?}");

    let listed = |option: &str| {
        stdout(&farcall.output(&["coverage", option]))
            .lines()
            .filter(|line| line.starts_with("  "))
            .count()
    };
    assert_eq!(listed("--implemented"), implemented);
    // What is refused for good is not missing.
    let refused = CALLS.iter().filter(|call| call.class == Class::Refused);
    assert_eq!(
        listed("--missing"),
        CALLS.len() - implemented - refused.count()
    );
}

#[test]
fn completions() {
    let farcall = Farcall::new();
    for (shell, part) in [
        ("bash", "complete -F _farcall"),
        ("zsh", "#compdef farcall"),
        ("fish", "complete -c farcall"),
    ] {
        let output = farcall.output(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        for part in [part, "coverage", "soft"] {
            assert!(stdout(&output).contains(part), "{shell}: {part}");
        }
    }
}

#[test]
fn man_pages() {
    let farcall = Farcall::new();
    let directory = farcall.home.path().join("man");
    let output = farcall.output(&["man", directory.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for (page, part) in [
        ("farcall.1", "farcall"),
        ("farcall-run.1", "8GiB"),
        ("farcall-serve.1", "soft"),
        ("farcall-trace.1", "steps"),
    ] {
        let text = fs::read_to_string(directory.join(page)).unwrap();
        assert!(text.starts_with(".ie") && text.contains(part), "{page}");
    }
    let output = farcall.output(&["man", "/proc/none"]);
    assert_eq!(output.status.code(), Some(1));
}

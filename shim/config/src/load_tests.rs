#![allow(clippy::unwrap_used)]
use std::fs;
use std::time::Duration;

use farcall_transport::{DeviceName, LocalEnd, RdmaMode, RdmaOptions};
use tempfile::TempDir;

use crate::{ClientConfig, ConfigError, LogLevel, Origin, Secret, TraceTarget, Transport};

/// Loads with these variables, and a client.toml of this text in the user's directory.
fn load(
    variables: &[(&str, &str)],
    toml: Option<&str>,
) -> (Result<ClientConfig, ConfigError>, TempDir) {
    let home = tempfile::tempdir().unwrap();
    if let Some(text) = toml {
        let directory = home.path().join(".config/farcall");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("client.toml"), text).unwrap();
        fs::write(directory.join("token"), "from-file\n").unwrap();
    }
    let config = ClientConfig::load(|name| match name {
        "HOME" => Some(home.path().to_str().unwrap().to_owned()),
        _ => variables
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned()),
    });
    (config, home)
}

fn error(variables: &[(&str, &str)], toml: Option<&str>) -> String {
    load(variables, toml).0.unwrap_err().to_string()
}

#[test]
fn defaults() {
    let config = load(&[], None).0.unwrap();
    assert_eq!(config.server, "127.0.0.1:7474");
    assert_eq!(config.server_origin, Origin::Default);
    assert_eq!(
        (config.devices, config.memory_bytes, config.token),
        (None, None, None)
    );
    assert_eq!(
        (config.transport, config.log),
        (Transport::Auto, LogLevel::Warn)
    );
    assert_eq!(
        (config.stats, config.trace, config.trace_steps),
        (None, None, false)
    );
}

#[test]
fn file_and_variables() {
    let toml = "server = 'gpu1'\ntoken_file = 'token'\ndevices = 2\nmemory = '8GiB'\nspin_us = 20\ntransport = 'tcp'\nlog = 'info'\n";
    let (config, home) = load(&[], Some(toml));
    let config = config.unwrap();
    let path = home.path().join(".config/farcall/client.toml");
    assert_eq!(config.server, "gpu1:7474");
    assert_eq!(config.server_origin, Origin::File(path.clone()));
    assert_eq!(config.file, Some(path));
    assert_eq!(config.token, Some(Secret::new("from-file")));
    assert_eq!(
        (config.devices, config.memory_bytes),
        (Some(2), Some(8 << 30))
    );
    assert_eq!(config.spin, Some(Duration::from_micros(20)));
    assert_eq!(
        (config.transport, config.log),
        (Transport::Tcp, LogLevel::Info)
    );

    let over = [
        ("FARCALL_SERVER", "gpu2:1"),
        ("FARCALL_TOKEN", "t"),
        ("FARCALL_DEVICES", "all"),
        ("FARCALL_MEMORY", "512M"),
        ("FARCALL_TRANSPORT", ""),
    ];
    let config = load(&over, Some(toml)).0.unwrap();
    assert_eq!(config.server, "gpu2:1");
    assert_eq!(config.server_origin, Origin::Variable("FARCALL_SERVER"));
    assert_eq!(config.token, Some(Secret::new("t")));
    assert_eq!(
        (config.devices, config.memory_bytes),
        (None, Some(512 << 20))
    );
    assert_eq!(
        config.transport,
        Transport::Tcp,
        "an empty variable counts as unset"
    );
}

#[test]
fn the_way_to_the_server() {
    let toml = "server = 'unix:/run/farcall.sock'\nbind = 'eth1'\ndscp = 'af31'\nbusy_poll_us = 50\nadded_rtt_us = 100\nrdma_device = 'mlx5_0'\nrdma_mode = 'memory'\nconnect_timeout_ms = 60000\n";
    let env = [("FARCALL_BIND", "10.0.0.7"), ("FARCALL_GID_INDEX", "3")];
    let options = load(&env, Some(toml)).0.unwrap().connect_options();
    assert_eq!(options.server, "unix:/run/farcall.sock");
    assert_eq!(
        options.socket.local,
        Some(LocalEnd::Address("10.0.0.7".parse().unwrap()))
    );
    assert_eq!(
        (options.socket.dscp, options.socket.busy_poll_us),
        (Some(26), Some(50))
    );
    assert_eq!(options.tuning.added_rtt, Duration::from_micros(100));
    let rdma = RdmaOptions {
        device: DeviceName::new("mlx5_0"),
        gid_index: Some(3),
        mode: RdmaMode::Memory,
    };
    assert_eq!(options.rdma, Some(rdma));
    assert_eq!(options.connect_timeout, Duration::from_secs(60));
    for (variable, value) in [
        ("FARCALL_GID_INDEX", "255"),
        ("FARCALL_RDMA_MODE", "fast"),
        ("FARCALL_CONNECT_TIMEOUT_MS", "0"),
        ("FARCALL_RDMA_DEVICE", "a/b"),
    ] {
        assert!(load(&[(variable, value)], None).0.is_err(), "{variable}");
    }
}

#[test]
fn only_variables_turn_tracing_on() {
    let config = load(
        &[
            ("FARCALL_TRACE", "-"),
            ("FARCALL_TRACE_STEPS", "1"),
            ("FARCALL_STATS", "/s"),
            ("FARCALL_RECORD", "/r"),
        ],
        None,
    )
    .0
    .unwrap();
    assert_eq!(config.trace, Some(TraceTarget::Stderr));
    assert!(config.trace_steps);
    assert_eq!(config.stats.unwrap().to_str(), Some("/s"));
    assert_eq!(config.record.unwrap().to_str(), Some("/r"));
    assert!(
        !load(&[("FARCALL_TRACE_STEPS", "0")], None)
            .0
            .unwrap()
            .trace_steps
    );
}

#[test]
fn errors_name_the_place_and_what_is_allowed() {
    for (variable, value, allowed) in [
        ("FARCALL_SERVER", "http://x", "HOST:PORT"),
        ("FARCALL_DEVICES", "0", "from 1 to 256"),
        ("FARCALL_MEMORY", "lots", "8G, 512MiB"),
        ("FARCALL_SPIN_US", "-1", "from 0 to 1000000"),
        ("FARCALL_GRACE_S", "1m", "from 0 to 86400"),
        ("FARCALL_TRANSPORT", "pigeon", "auto, tcp, shm or verbs"),
        ("FARCALL_LOG", "loud", "off, error, warn"),
        ("FARCALL_BIND", "a/b", "network interface"),
        ("FARCALL_DSCP", "64", "0 to 63"),
        ("FARCALL_BUSY_POLL_US", "x", "from 0 to 10000"),
        ("FARCALL_ADDED_RTT_US", "1.5", "from 0 to 1000000"),
    ] {
        let message = error(&[(variable, value)], None);
        assert!(
            message.starts_with(variable) && message.contains(allowed),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
    assert!(error(&[("FARCALL_CONFIG", "/nowhere/c.toml")], None).contains("/nowhere/c.toml"));
    assert!(error(&[("FARCALL_TOKEN_FILE", "/nowhere/token")], None).contains("/nowhere/token"));
    for (toml, part) in [
        (
            "server = 'a'\nserver_name = 'b'",
            "line 2: unknown field `server_name`",
        ),
        ("server = ", "line 1"),
        ("devices = true", "line 1"),
        ("memory = 'x'", "client.toml: memory"),
        ("token = 'a'\ntoken_file = 'b'", "keep one of them"),
    ] {
        let message = error(&[], Some(toml));
        assert!(
            message.contains("client.toml") && message.contains(part),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_named_file_is_the_only_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine.toml");
    fs::write(&path, "devices = '3'").unwrap();
    let (config, _home) = load(
        &[("FARCALL_CONFIG", path.to_str().unwrap())],
        Some("server = 'gpu1'"),
    );
    let config = config.unwrap();
    assert_eq!(
        (config.server.as_str(), config.devices),
        ("127.0.0.1:7474", Some(3))
    );
}

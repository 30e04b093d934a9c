//! What the benches begin with: a pool with servers of eight GPUs and clients, and what one of these asks for.
#![allow(clippy::unwrap_used)]

use farcall_pool::model::{Ask, GpuFacts, NetAddress, Purpose, Quota, ServerFacts, Settings};
use farcall_pool::state::{NewToken, Pool, Role};

/// Servers and clients that stay, without limits.
pub(crate) fn setup(pool: &mut Pool, now_ms: u64, servers: u32, clients: u64) {
    let settings = Settings {
        client_ttl_ms: 24 * 3_600_000,
        server_ttl_ms: 24 * 3_600_000,
        idle_ms: None,
        ..Settings::default()
    };
    pool.set_settings(now_ms, settings, "sim").unwrap();
    for index in 0..servers {
        pool.register(now_ms, None, &index.to_string(), facts(index))
            .unwrap();
    }
    for index in 0..clients {
        let new = NewToken {
            name: format!("c{index}"),
            role: Role::Client,
            group: None,
            quota: Quota::default(),
            valid_ms: None,
        };
        pool.create_token(now_ms, new, &index.to_string(), "sim")
            .unwrap();
    }
    pool.take_changes();
    pool.take_woken();
}

fn facts(index: u32) -> ServerFacts {
    let gpu = |gpu: u32| GpuFacts {
        uuid: format!("GPU-{index}-{gpu}"),
        name: if index.is_multiple_of(4) {
            "A100"
        } else {
            "H100"
        }
        .to_owned(),
        memory_bytes: 80 << 30,
        sm: 90,
        healthy: true,
    };
    ServerFacts {
        name: format!("s{index}"),
        addresses: vec![NetAddress {
            network: "gpu".to_owned(),
            address: format!("s{index}:7474"),
        }],
        kind: "null".to_owned(),
        rdma: true,
        driver_version: String::new(),
        cuda_version: "13.0".to_owned(),
        switch: format!("hall{}/rack{}", index / 200, index / 20),
        version: "0".to_owned(),
        tls: String::new(),
        gpus: (0..8).map(gpu).collect(),
    }
}

/// So many GPUs, so much of each.
pub(crate) fn ask(gpus: u16, share_permille: u16) -> Ask {
    Ask {
        gpus,
        share_permille,
        memory_bytes: None,
        filters: Vec::new(),
        servers: Vec::new(),
        same_server: false,
        near: String::new(),
        purpose: Purpose::Reservation,
        hold_ms: None,
        idle_ms: None,
        label: String::new(),
        key: String::new(),
    }
}

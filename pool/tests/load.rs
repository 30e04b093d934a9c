//! What servers tell of their work is put where it belongs: GPUs by UUID, figures by lease, client, server and GPU.
#![allow(clippy::unwrap_used)]

use farcall_pool::history::{Figure, Sample, Samples};
use farcall_pool::model::{
    Ask, GpuFacts, LeaseId, NetAddress, Purpose, Quota, ServerFacts, ServerId,
};
use farcall_pool::state::{GpuNow, LeaseUse, Load, NewToken, Pool, Role, Work};

const NOW_MS: u64 = 1_700_000_000_000;

fn facts(gpus: &[&str]) -> ServerFacts {
    let gpu = |uuid: &&str| GpuFacts {
        uuid: (*uuid).to_owned(),
        name: "H100".to_owned(),
        memory_bytes: 80 << 30,
        sm: 90,
        healthy: true,
    };
    ServerFacts {
        name: "s0".to_owned(),
        addresses: vec![NetAddress {
            network: "gpu".to_owned(),
            address: "10.0.0.1:7474".to_owned(),
        }],
        kind: "cuda".to_owned(),
        rdma: false,
        driver_version: String::new(),
        cuda_version: "13.0".to_owned(),
        switch: String::new(),
        version: "0.1.0".to_owned(),
        tls: String::new(),
        gpus: gpus.iter().map(gpu).collect(),
    }
}

/// A server with two GPUs, of which ann holds half of one.
fn world() -> (Pool, ServerId, LeaseId) {
    let mut pool = Pool::new();
    let server = pool.register(NOW_MS, None, "hash", facts(&["GPU-a", "GPU-b"]));
    let new = NewToken {
        name: "ann".to_owned(),
        role: Role::Client,
        group: None,
        quota: Quota::default(),
        valid_ms: None,
    };
    let client = pool.create_token(NOW_MS, new, "token", "test").unwrap();
    let ask = Ask {
        gpus: 1,
        share_permille: 500,
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
    };
    pool.ask(NOW_MS, client, ask, false).unwrap();
    let lease = pool.lease_views(None, false)[0].lease;
    (pool, server.unwrap().server, lease)
}

fn load(lease: LeaseId) -> Load {
    let gpu = |uuid: &str, temperature_c| GpuNow {
        uuid: uuid.to_owned(),
        temperature_c,
        computing: Some(0.25),
        ..GpuNow::default()
    };
    Load {
        sessions: 1,
        // In the server's own order, which is not the pool's.
        used_bytes: vec![2, 1],
        gpus: vec![gpu("GPU-b", None), gpu("GPU-a", Some(50.0))],
        leases: vec![LeaseUse {
            lease,
            sessions: 1,
            idle_ms: 0,
            used_bytes: 7,
            work: Some(Work {
                calls_per_s: 100.0,
                received_bytes_per_s: 5.0,
                sent_bytes_per_s: -5.0,
                computing_gpus: Some(0.25),
                transports: vec!["tcp".to_owned()],
                rtt_us: Some(40.0),
            }),
        }],
        ..Load::default()
    }
}

fn of<'a>(samples: &'a Samples, thing: &str) -> &'a Sample {
    let found = samples.iter().find(|(name, _)| name == thing);
    &found.unwrap_or_else(|| panic!("no {thing}")).1
}

fn assert_near(sample: &Sample, figure: Figure, value: f32) {
    let found = sample.get(figure);
    assert!(
        (found - value).abs() < 1e-3,
        "{figure:?}: {found}, not {value}"
    );
}

#[test]
fn gpus_are_told_apart_by_their_uuid() {
    let (mut pool, server, lease) = world();
    pool.renew_server(NOW_MS, server, load(lease), &[]).unwrap();
    let gpus = pool.gpu_views();
    assert_eq!(
        (gpus[0].uuid.as_str(), gpus[0].used_bytes),
        ("GPU-a", Some(1))
    );
    assert_eq!(gpus[0].now.as_ref().unwrap().temperature_c, Some(50.0));
    assert_eq!(gpus[1].used_bytes, Some(2));
    assert_eq!(gpus[1].now.as_ref().unwrap().temperature_c, None);
    // Of a GPU that is gone nothing is known.
    let only = Load {
        used_bytes: vec![9],
        gpus: vec![GpuNow {
            uuid: "GPU-b".to_owned(),
            ..GpuNow::default()
        }],
        ..Load::default()
    };
    pool.renew_server(NOW_MS, server, only, &[]).unwrap();
    let gpus = pool.gpu_views();
    assert_eq!((gpus[0].used_bytes, gpus[1].used_bytes), (Some(0), Some(9)));
    assert_eq!(gpus[0].now, Some(GpuNow::default()));
}

#[test]
fn work_is_the_leases_the_clients_and_the_servers() {
    let (mut pool, server, lease) = world();
    assert_eq!(pool.lease_view(lease).unwrap().work, None);
    pool.renew_server(NOW_MS, server, load(lease), &[]).unwrap();
    let view = pool.lease_view(lease).unwrap();
    assert_eq!((view.used_bytes, view.sessions), (7, 1));
    let work = view.work.unwrap();
    assert_eq!((work.calls_per_s, work.rtt_us), (100.0, Some(40.0)));
    assert_eq!(work.sent_bytes_per_s, 0.0, "less than nothing is nothing");
    assert_eq!(
        pool.token_views(NOW_MS)[0]
            .work
            .as_ref()
            .unwrap()
            .calls_per_s,
        100.0
    );
    let samples = pool.sample(NOW_MS);
    for thing in ["cluster", "server/s0", "client/ann"] {
        assert_near(of(&samples, thing), Figure::CallsPerS, 100.0);
        assert_near(of(&samples, thing), Figure::ReceivedBytesPerS, 5.0);
    }
    assert_near(of(&samples, "client/ann"), Figure::ComputingGpus, 0.25);
    assert_near(of(&samples, "client/ann"), Figure::RttUs, 40.0);
    assert_near(of(&samples, "server/s0"), Figure::ComputingGpus, 0.5);
    assert_near(of(&samples, "server/s0"), Figure::TemperatureC, 50.0);
    assert!(of(&samples, "cluster").get(Figure::RttUs).is_nan());
    assert_near(of(&samples, "gpu/s0/GPU-a"), Figure::TemperatureC, 50.0);
    let unknown = of(&samples, "gpu/s0/GPU-b");
    assert!(unknown.get(Figure::TemperatureC).is_nan() && unknown.get(Figure::PowerW).is_nan());
}

#[test]
fn sessions_that_are_over_are_counted_no_more() {
    let (mut pool, server, lease) = world();
    pool.renew_server(NOW_MS, server, load(lease), &[]).unwrap();
    pool.renew_server(NOW_MS, server, Load::default(), &[])
        .unwrap();
    let view = pool.lease_view(lease).unwrap();
    assert_eq!((view.sessions, view.work), (0, None));
    // A silent server's last words are not how it is now.
    pool.renew_server(NOW_MS, server, load(lease), &[]).unwrap();
    pool.tick(NOW_MS + 10 * 60_000);
    assert!(pool.gpu_views().iter().all(|gpu| gpu.now.is_none()));
}

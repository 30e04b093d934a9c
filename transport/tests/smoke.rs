//! smoke
#![allow(clippy::unwrap_used)]
mod support;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use support::*;
use farcall_transport::*;
use std::time::Instant;

#[test]
fn ping() {
    let got = Arc::new(AtomicU64::new(0));
    let g = got.clone();
    let tap = Tap::new(move |_, f| g.store(number(f), SeqCst));
    let (client, server) = Tcp::pair(Limits::default(), Tuning::default(), tap, Tap::echo());
    let t = serve(server);
    let n = 20000;
    let start = Instant::now();
    for i in 1..=n {
        client.append(64, |b| { b.fill(0); b[..8].copy_from_slice(&u64::to_le_bytes(i)); }).unwrap();
        client.wait_until(&|| got.load(SeqCst) == i, Some(PATIENCE)).unwrap();
    }
    eprintln!("rtt {:?}", start.elapsed() / n as u32);
    eprintln!("{:?}", client.stats());
    client.close();
    eprintln!("{:?}", t.join().unwrap());
}

#[test]
fn flood() {
    let tap = Tap::ignore();
    let (client, server) = Tcp::pair(Limits::default(), Tuning::default(), Tap::ignore(), tap.clone());
    let s2 = server.clone();
    let t = serve(server);
    let n = 3_000_000;
    let start = Instant::now();
    for i in 1..=n {
        client.append(64, |b| { b.fill(0); b[..8].copy_from_slice(&u64::to_le_bytes(i)); }).unwrap();
    }
    eprintln!("issued {:?}", start.elapsed() / n as u32);
    client.flush().unwrap();
    wait_for(|| tap.bytes() == 64 * n);
    eprintln!("flood {:?} per record, {:?}", start.elapsed() / n as u32, n as f64 / start.elapsed().as_secs_f64());
    eprintln!("{:?}\n{:?}", client.stats(), s2.stats());
    client.close();
    eprintln!("{:?}", t.join().unwrap());
}

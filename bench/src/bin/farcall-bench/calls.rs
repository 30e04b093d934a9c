//! Programs of driver calls, for profilers and for counts: `calls` and `rest`.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use farcall_bench::clock;
use farcall_bench::driver::Driver;
use farcall_bench::net::Transport;

/// What is called over and over.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Call {
    /// `cuCtxGetDevice`.
    ContextDevice,
    /// `cuDeviceGetAttribute`.
    DeviceAttribute,
    /// `cuPointerGetAttribute`.
    PointerAttribute,
    /// `cuLaunchKernel` with four parameters.
    Launch,
    /// `cuLaunchKernel`, then `cuCtxSynchronize`.
    Synchronize,
    /// `cuMemcpyDtoH` of eight bytes.
    Copy,
}

/// Makes the calls, with a wait for the device after each `burst` of them, and prints the time of each.
pub(crate) fn calls(call: Call, count: u64, burst: u64, server: SocketAddr, transport: Transport) {
    let driver = Driver::open(server, transport);
    let one: &dyn Fn() = match call {
        Call::ContextDevice => &|| {
            black_box(driver.context_device());
        },
        Call::DeviceAttribute => &|| {
            black_box(driver.device_attribute());
        },
        Call::PointerAttribute => &|| {
            black_box(driver.pointer_attribute());
        },
        Call::Launch => &|| driver.launch(),
        Call::Synchronize => &|| {
            driver.launch();
            driver.synchronize();
        },
        Call::Copy => &|| {
            black_box(driver.copy_to_host());
        },
    };
    let (mut wall, mut cpu, mut left) = (Duration::ZERO, Duration::ZERO, count);
    while left > 0 {
        let now = left.min(burst.max(1));
        let elapsed = clock::timed(|| (0..now).for_each(|_| one()));
        (wall, cpu) = (wall + elapsed.wall, cpu + elapsed.cpu);
        driver.synchronize();
        left -= now;
    }
    let each = |time: Duration| time.as_nanos() as f64 / count.max(1) as f64;
    println!(
        "{call:?}: {:.1} ns wall, {:.1} ns processor time",
        each(wall),
        each(cpu)
    );
}

/// Runs a kernel, prints `idle` and waits until standard input ends.
pub(crate) fn rest(server: SocketAddr, transport: Transport) {
    let driver = Driver::open(server, transport);
    driver.launch();
    driver.synchronize();
    println!("idle");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

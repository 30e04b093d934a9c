//! What a session costs that does nothing: processor time of both sides, and memory that it keeps registered with a device.
#![forbid(unsafe_code)]

use std::thread;
use std::time::Duration;

use super::link::{Echo, Link};
use super::service::Mode;
use super::{Failure, Transport, Trip};
use crate::clock::process_cpu;
use crate::figure::{Figure, Target};

/// Far longer than anybody polls.
const SETTLING: Duration = Duration::from_millis(300);
/// Round trips before the rest.
const TRIPS: usize = 1000;
/// Signs of life, five a second from each side, are all that an idle session says: two thousandths of a core for both.
const CPU_MS_MAX: f64 = 2.0;
/// The promise, in MB (1e6 bytes).
const REGISTERED_MB_MAX: f64 = 4.0;

/// `idle/*`: milliseconds of processor time a second that both sides of a session take together when it has nothing to do any more,
/// and over RDMA the megabytes that its client has registered then. The service must be of this process, which does nothing else.
///
/// # Errors
/// The transport's.
pub fn idle(server: &str, transport: Transport, rest: Duration) -> Result<Vec<Figure>, Failure> {
    let link = Link::open(server, transport, Mode::Echo)?;
    let (name, session) = (link.transport_name(), link.session());
    let mut echo = Echo::new(link, 64);
    for _ in 0..TRIPS {
        echo.trip()?;
    }
    thread::sleep(SETTLING);
    let before = process_cpu();
    thread::sleep(rest);
    let used = process_cpu().saturating_sub(before);
    let registered_bytes = session.stats().registered_bytes;
    let value = used.as_secs_f64() * 1000.0 / rest.as_secs_f64();
    let cpu = Figure::new(format!("idle/{name}/cpu"), "ms/s", value);
    let mut figures = vec![cpu.target(Target::Value(CPU_MS_MAX))];
    if registered_bytes > 0 {
        let registered = Figure::new(
            format!("idle/{name}/registered"),
            "MB",
            registered_bytes as f64 / 1e6,
        );
        figures.push(registered.target(Target::Value(REGISTERED_MB_MAX)));
    }
    Ok(figures)
}

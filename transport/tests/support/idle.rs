//! What a session costs that has nothing to do.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

use std::time::Duration;

use farcall_transport::{Limits, Tuning, WaitError};

use super::{Backend, PATIENCE, Tap, serve};

/// How long it is looked at.
const REST: Duration = Duration::from_millis(500);
/// Polling would take all of it. Going to sleep takes some, on an emulated processor more.
const CPU_MAX: Duration = Duration::from_millis(25);

/// Nobody has anything to say, and no pings are due: with a thread that waits for the peer, and without one.
pub fn uses_no_processor_time<B: Backend>() {
    let tap = Tap::ignore();
    let tuning = Tuning {
        keepalive: Duration::ZERO,
        ..Tuning::default()
    };
    let (client, server) = B::pair(Limits::default(), tuning, tap.clone(), Tap::echo());
    let running = serve(server.clone());
    for n in 1..=100 {
        client.append(64, |record| record.fill(1)).unwrap();
        let echoed = || tap.bytes() == n * 64;
        client.wait_until(&echoed, Some(PATIENCE)).unwrap();
    }
    // Both sides have stopped polling by then; what is left is theirs.
    let nothing = |time| {
        let waited = client.wait_until(&|| false, Some(time));
        assert!(matches!(waited, Err(WaitError::TimedOut)), "{waited:?}");
    };
    nothing(REST / 5);
    let sleeps = (client.stats().sleeps, server.stats().sleeps);
    let waiting = cpu_time(|| nothing(REST));
    let unattended = cpu_time(|| std::thread::sleep(REST));
    let after = (client.stats().sleeps, server.stats().sleeps);
    let name = client.transport_name();
    assert!(
        waiting < CPU_MAX,
        "{name}: {waiting:?} of {REST:?} while a thread waits"
    );
    assert!(unattended < CPU_MAX, "{name}: {unattended:?} of {REST:?}");
    // Each side's wait is one sleep, but for a wake-up that brought nothing.
    let woken = (after.0 - sleeps.0, after.1 - sleeps.1);
    assert!(woken.0 <= 8 && woken.1 <= 8, "{name}: {woken:?} sleeps");
    client.close();
    running.join().unwrap();
}

/// Processor time of this process, all threads, while something happens.
fn cpu_time(during: impl FnOnce()) -> Duration {
    let now = || {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is writable.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        assert_eq!(result, 0);
        Duration::new(
            time.tv_sec.cast_unsigned(),
            time.tv_nsec.try_into().unwrap(),
        )
    };
    let before = now();
    during();
    now() - before
}

//! Processor time: what a call costs the program, whoever else uses the machine.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// Time that passed, and how much of it the calling thread computed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elapsed {
    /// On the clock on the wall.
    pub wall: Duration,
    /// In user mode and in the kernel.
    pub cpu: Duration,
}

/// Runs `work` and says what it took.
///
/// # Panics
/// If the system has no clock of thread time, which every Linux has.
pub fn timed(work: impl FnOnce()) -> Elapsed {
    let began = Instant::now();
    let cpu = thread_cpu();
    work();
    let cpu = thread_cpu().saturating_sub(cpu);
    Elapsed {
        wall: began.elapsed(),
        cpu,
    }
}

/// Processor time of this process so far, all of its threads.
///
/// # Panics
/// As [`timed`].
#[must_use]
pub fn process_cpu() -> Duration {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn thread_cpu() -> Duration {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock).expect("a clock of processor time");
    Duration::from_nanos(time.num_nanoseconds().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::timed;

    #[test]
    fn computing_counts_and_waiting_does_not() {
        let computing = timed(|| {
            let mut x = 1_u64;
            for i in 0..2_000_000_u64 {
                x = std::hint::black_box(x.wrapping_mul(i | 1));
            }
        });
        assert!(computing.cpu.as_micros() > 100, "{computing:?}");
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let waiting = timed(|| {
            let _ = receive.recv_timeout(std::time::Duration::from_millis(50));
        });
        drop(send);
        assert!(waiting.cpu < waiting.wall / 2, "{waiting:?}");
    }
}

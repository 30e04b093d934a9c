//! Which core a thread runs on. Client and server on a core each, as on two hosts: on a busy machine the scheduler
//! otherwise puts both on one core, where each waits for the other to stop polling.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// One of the two sides of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What measures.
    Client,
    /// What answers.
    Server,
}

/// Runs `work` on the core of a side; threads and processes that it starts stay there. Without two cores to choose
/// from, or the right to choose, just runs it.
pub fn on<T>(side: Side, work: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(own());
    place(side);
    let done = work();
    if let Ok(before) = before {
        let _ = sched_setaffinity(own(), &before);
    }
    done
}

/// Chooses the cores, before the first [`on`]; without it they are the first two that this process may use.
///
/// # Errors
/// A core that this process may not use, or a choice that comes too late.
pub fn choose(client: usize, server: usize) -> Result<(), String> {
    if client == server {
        return Err(format!(
            "client and server on core {client} would wait for each other: two cores"
        ));
    }
    let allowed = cores();
    if let Some(core) = [client, server].iter().find(|core| !allowed.contains(core)) {
        return Err(format!(
            "core {core} is not among those that this process may use: {allowed:?}"
        ));
    }
    let chosen = CORES.set(vec![client, server]);
    chosen.map_err(|_| "the cores were chosen before".to_owned())
}

// Of the first call: within the work of one side, only its own core is allowed.
static CORES: OnceLock<Vec<usize>> = OnceLock::new();

fn place(side: Side) {
    let [first, second, ..] = CORES.get_or_init(cores)[..] else {
        return;
    };
    let core = if side == Side::Client { first } else { second };
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(own(), &set);
    }
}

/// The cores that the calling thread may run on.
fn cores() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(own()) else {
        return Vec::new();
    };
    let is_allowed = |core: &usize| allowed.is_set(*core).unwrap_or(false);
    (0..CpuSet::count()).filter(is_allowed).collect()
}

/// The calling thread.
fn own() -> Pid {
    Pid::from_raw(0)
}

#[cfg(test)]
mod tests {
    use super::{Side, choose, cores, on};

    #[test]
    fn the_sides_are_not_put_on_one_core() {
        let error = choose(0, 0).expect_err("one core");
        assert!(error.contains("two cores"), "{error}");
    }

    #[test]
    fn the_sides_have_a_core_each_and_it_ends_with_the_work() {
        let before = cores();
        let (client, server) = on(Side::Client, || (cores(), on(Side::Server, cores)));
        assert_eq!(cores(), before);
        if before.len() >= 2 {
            assert_eq!((client.len(), server.len()), (1, 1));
            assert_ne!(client, server);
        }
    }
}

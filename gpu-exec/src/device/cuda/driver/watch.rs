//! Which driver call each thread of this process is in, and for how long, and what the driver said that may be a GPU's end: what a
//! watchdog looks at.
//!
//! A call costs two stores to a word that the thread alone writes. Time is counted in looks, so a process that was stopped
//! or starved has not been waiting meanwhile.
#![forbid(unsafe_code)]

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use farcall_marshal::status::CuStatus;
use parking_lot::Mutex;

/// Low bits of a thread's word: the number of the entry point that it is in, plus 1; 0 = none. The others count calls.
const ENTRY_BITS: u32 = 16;
const ENTRY_MASK: u64 = (1 << ENTRY_BITS) - 1;

/// Names of entry points, by number.
static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
/// All threads that ever called the driver.
static PLACES: Mutex<Vec<&'static Place>> = Mutex::new(Vec::new());

thread_local! {
    static PLACE: &'static Place = Place::register();
}

/// The last status that [`may_be_lost`]; 0: none that was not taken.
static SUSPICION: AtomicU32 = AtomicU32::new(0);

/// Notes what the driver answered.
#[cold]
pub(super) fn note(status: CuStatus) {
    if may_be_lost(status) {
        SUSPICION.store(status.0, Ordering::Relaxed);
    }
}

/// What a driver has answered, since this was last asked, that may mean that a GPU is lost.
pub(crate) fn take_suspicion() -> Option<CuStatus> {
    let status = CuStatus(SUSPICION.swap(0, Ordering::Relaxed));
    (!status.is_success()).then_some(status)
}

/// Whether a GPU that fell off its bus, or whose memory or links are broken, answers like that. Faults of programs may, too: a check
/// of the GPU tells them apart.
fn may_be_lost(status: CuStatus) -> bool {
    matches!(
        status,
        CuStatus::DEVICE_UNAVAILABLE
            | CuStatus::ECC_UNCORRECTABLE
            | CuStatus::NVLINK_UNCORRECTABLE
            | CuStatus::CONTAINED
            | CuStatus::HARDWARE_STACK_ERROR
            | CuStatus::LAUNCH_FAILED
            | CuStatus::UNKNOWN
    )
}

/// For how long a call may block, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Bookkeeping, or behind work that is known to be done: nothing to wait for.
    Prompt,
    /// Compiles, makes contexts or pins memory: minutes at worst.
    Slow,
    /// May wait for room in the device's queue, or for work: as long as the program's kernels take.
    Device,
}

impl Kind {
    /// What an entry point does.
    fn of(name: &str) -> Self {
        const SLOW: [&str; 10] = [
            "cuInit",
            "cuDevicePrimaryCtxRetain",
            "cuDevicePrimaryCtxRelease_v2",
            "cuCtxCreate_v2",
            "cuCtxDestroy_v2",
            "cuModuleLoadDataEx",
            "cuModuleUnload",
            // With lazy loading, a kernel is compiled when it is first asked for.
            "cuModuleGetFunction",
            "cuMemHostRegister_v2",
            "cuMemHostAlloc",
        ];
        // These wait for the device by themselves.
        const DEVICE: [&str; 5] = [
            "cuMemFree_v2",
            "cuMemFreeHost",
            "cuMemHostUnregister",
            "cuEventRecord",
            "cuStreamWaitEvent",
        ];
        const QUEUED: [&str; 4] = ["cuLaunch", "cuGraphLaunch", "cuMemcpy", "cuMemset"];
        if SLOW.contains(&name) || name.starts_with("cuGraphInstantiate") {
            Self::Slow
        } else if DEVICE.contains(&name) || QUEUED.iter().any(|prefix| name.starts_with(prefix)) {
            Self::Device
        } else {
            Self::Prompt
        }
    }
}

/// An entry point of the driver.
#[derive(Clone, Copy)]
pub(super) struct Entry<F> {
    entry: F,
    number: u16,
}

impl<F> Entry<F> {
    pub(super) fn new(entry: F, name: &'static str) -> Self {
        let mut names = NAMES.lock();
        let known = names.iter().position(|known| *known == name);
        let number = known.unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        Self {
            entry,
            number: u16::try_from(number).unwrap_or(u16::MAX - 1),
        }
    }

    /// The function, to be called at once: until the result is dropped this thread counts as being in it.
    #[inline]
    pub(super) fn call(&self) -> Calling<'_, F> {
        let place = PLACE.with(|place| *place);
        place.enter(self.number);
        Calling {
            entry: &self.entry,
            place,
        }
    }
}

/// A call that is being made.
pub(super) struct Calling<'a, F> {
    entry: &'a F,
    place: &'static Place,
}

impl<F> Deref for Calling<'_, F> {
    type Target = F;

    fn deref(&self) -> &F {
        self.entry
    }
}

impl<F> Drop for Calling<'_, F> {
    #[inline]
    fn drop(&mut self) {
        self.place.leave();
    }
}

/// Where a thread is.
#[derive(Debug)]
struct Place {
    thread: String,
    /// Written by its thread alone.
    word: AtomicU64,
}

impl Place {
    /// Kept for ever: an executor has a handful of threads.
    fn register() -> &'static Self {
        let thread = std::thread::current();
        let place: &'static Self = Box::leak(Box::new(Self {
            thread: thread.name().unwrap_or("?").to_owned(),
            word: AtomicU64::new(0),
        }));
        PLACES.lock().push(place);
        place
    }

    #[inline]
    fn enter(&self, number: u16) {
        let count = self.word.load(Ordering::Relaxed) >> ENTRY_BITS;
        let word = (count.wrapping_add(1) << ENTRY_BITS) | (u64::from(number) + 1);
        self.word.store(word, Ordering::Relaxed);
    }

    #[inline]
    fn leave(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !ENTRY_MASK, Ordering::Relaxed);
    }
}

/// A call that has not come back for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) call: &'static str,
    pub(crate) kind: Kind,
    pub(crate) thread: String,
    /// At least so long; time for which the call may have had to wait for another thread's is not counted.
    pub(crate) waited: Duration,
}

/// What was seen of all threads so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Of each place: its word, and how long it has been that.
    seen: Vec<(u64, Duration)>,
}

impl Watch {
    /// Looks at all threads, `passed` after the last look; the calls that are the same as then.
    ///
    /// A driver has locks of its own: while a thread is in a call that may take long, others may wait for it, whatever
    /// they call. Their time is not counted then.
    pub(crate) fn look(&mut self, passed: Duration) -> Vec<Blocked> {
        let places = PLACES.lock();
        self.seen.resize(places.len(), (0, Duration::ZERO));
        let words = places
            .iter()
            .map(|place| place.word.load(Ordering::Relaxed));
        let words: Vec<(u64, Option<Kind>)> = words
            .map(|word| (word, name_of(word).map(Kind::of)))
            .collect();
        let longest = words.iter().filter_map(|(_, kind)| *kind).max();
        let mut blocked = Vec::new();
        for (at, (word, kind)) in words.into_iter().enumerate() {
            let (Some(seen), Some(place)) = (self.seen.get_mut(at), places.get(at)) else {
                continue;
            };
            let (Some(kind), Some(call)) = (kind, name_of(word)) else {
                *seen = (word, Duration::ZERO);
                continue;
            };
            if seen.0 != word {
                *seen = (word, Duration::ZERO);
                continue;
            }
            if Some(kind) >= longest {
                seen.1 += passed;
            }
            blocked.push(Blocked {
                call,
                kind,
                thread: place.thread.clone(),
                waited: seen.1,
            });
        }
        blocked
    }
}

/// The entry point that a word names.
fn name_of(word: u64) -> Option<&'static str> {
    let number = usize::try_from(word & ENTRY_MASK).ok()?.checked_sub(1)?;
    Some(NAMES.lock().get(number).copied().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use farcall_marshal::status::CuStatus;

    use super::{Blocked, Entry, Kind, Watch};

    /// What the test's own threads do; other tests of this process may be in calls, too.
    fn mine(watch: &mut Watch, passed: u64) -> Vec<Blocked> {
        let mut blocked = watch.look(Duration::from_secs(passed));
        blocked.retain(|blocked| blocked.thread.starts_with("watched-"));
        blocked
    }

    #[test]
    fn what_may_be_the_end_of_a_gpu_is_told_once() {
        for usual in [CuStatus::NOT_READY, CuStatus::ILLEGAL_ADDRESS] {
            super::note(usual);
            assert_eq!(super::take_suspicion(), None);
        }
        super::note(CuStatus::UNKNOWN);
        super::note(CuStatus::NOT_READY);
        assert_eq!(super::take_suspicion(), Some(CuStatus::UNKNOWN));
        assert_eq!(super::take_suspicion(), None);
    }

    #[test]
    fn calls_have_kinds() {
        for (name, kind) in [
            ("cuStreamQuery", Kind::Prompt),
            ("cuEventQuery", Kind::Prompt),
            ("cuMemUnmap", Kind::Prompt),
            ("cuCtxSynchronize", Kind::Prompt),
            ("cuModuleLoadDataEx", Kind::Slow),
            ("cuGraphInstantiateWithFlags", Kind::Slow),
            ("cuLaunchKernel", Kind::Device),
            ("cuMemcpyHtoDAsync_v2", Kind::Device),
            ("cuEventRecord", Kind::Device),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn a_call_that_does_not_come_back_is_seen_and_one_behind_a_long_one_is_excused() {
        let start = |name: &'static str, thread: &str| {
            let (say, said) = channel();
            let (end, ended) = channel::<()>();
            let work = move || {
                let entry = Entry::new((), name);
                drop(entry.call());
                let calling = entry.call();
                say.send(()).unwrap();
                let _ = ended.recv();
                drop(calling);
            };
            let builder = std::thread::Builder::new().name(thread.to_owned());
            let thread = builder.spawn(work).unwrap();
            said.recv().unwrap();
            move || {
                drop(end);
                thread.join().unwrap();
            }
        };
        let mut watch = Watch::default();
        let end_query = start("cuStreamQuery", "watched-1");
        assert_eq!(mine(&mut watch, 5), [], "the first look knows no time");
        let seen = mine(&mut watch, 5);
        assert_eq!(
            (seen[0].call, seen[0].waited.as_secs()),
            ("cuStreamQuery", 5)
        );
        let end_launch = start("cuLaunchKernel", "watched-2");
        mine(&mut watch, 5);
        let seen = mine(&mut watch, 7);
        let waited = |call: &str| {
            let found = seen.iter().find(|blocked| blocked.call == call);
            found.unwrap().waited.as_secs()
        };
        assert_eq!((waited("cuStreamQuery"), waited("cuLaunchKernel")), (5, 7));
        end_launch();
        end_query();
        assert_eq!(mine(&mut watch, 5), []);
    }
}

//! One thread owns the pool. It takes what has come in, decides, makes all of it durable with one commit,
//! and only then answers: while the disk is busy, the next batch gathers.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, oneshot, watch};

use crate::state::{BadRecord, Pool, Topic};
use crate::store::{Store, StoreError, Version};

/// Operations that wait to be taken; more are refused at once.
const WAITING_MAX: usize = 16_384;
/// Operations of one commit.
const BATCH_MAX: usize = 1024;
/// The system's time may differ so much from the pool's before it counts as set: small differences are what a clock that is being
/// corrected has.
const STEP_MS: u64 = 5000;
/// Time passes in steps of this.
const TICK: Duration = Duration::from_millis(200);

type Reply = Box<dyn FnOnce() + Send>;
type Job = Box<dyn FnOnce(&mut Pool, u64) -> Reply + Send>;

/// The pool could not do it at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// More operations wait than can be.
    #[error("the pool is overloaded")]
    Overloaded,
    /// The store failed, or the process ends.
    #[error("the pool has stopped")]
    Stopped,
}

/// Why the pool does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record cannot.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Milliseconds since the Unix epoch, steady: they follow the system's time only where somebody has set it. Clones are the same.
#[derive(Clone)]
pub struct Clock {
    start: Instant,
    start_ms: Arc<AtomicU64>,
    wall: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Clock {
    /// The system's time as it is now, and steady from here.
    #[must_use]
    pub fn new() -> Self {
        Self::following(wall_ms)
    }

    /// The same of another time than the system's.
    #[must_use]
    pub fn following(wall: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            start: Instant::now(),
            start_ms: Arc::new(AtomicU64::new(wall())),
            wall: Arc::new(wall),
        }
    }

    /// Now.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.start_ms.load(Ordering::Relaxed) + self.passed_ms()
    }

    /// Takes the system's time over if it was set since, or the machine slept: the time before and after that.
    fn follow(&self) -> Option<(u64, u64)> {
        let (own_ms, wall_ms) = (self.now_ms(), (self.wall)());
        if own_ms.abs_diff(wall_ms) <= STEP_MS {
            return None;
        }
        let start_ms = wall_ms.saturating_sub(self.passed_ms());
        self.start_ms.store(start_ms, Ordering::Relaxed);
        Some((own_ms, self.now_ms()))
    }

    fn passed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("start_ms", &self.start_ms)
            .finish_non_exhaustive()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The system's time.
#[must_use]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// The pool's thread, as others see it. Clones are the same.
#[derive(Clone)]
pub struct Core {
    jobs: SyncSender<Job>,
    topics: Arc<Topics>,
    clock: Clock,
}

#[derive(Debug)]
struct Topics {
    waiting: Mutex<FxHashMap<Topic, Arc<Notify>>>,
    /// Counts batches that changed something: pages follow it.
    changes: watch::Sender<u64>,
}

impl Core {
    /// Loads the pool from its store and starts its thread, which ends with the last clone of this, or when
    /// the store fails: then `on_end` is told why. Blocks until it is loaded.
    ///
    /// # Errors
    /// The store or one of its records cannot be read.
    pub fn start(
        store: Box<dyn Store>,
        on_end: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<Self, StartError> {
        Self::start_with(store, Clock::new(), on_end)
    }

    /// The same with this clock.
    ///
    /// # Errors
    /// As [`Core::start`].
    pub fn start_with(
        mut store: Box<dyn Store>,
        clock: Clock,
        on_end: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> Result<Self, StartError> {
        let (version, records) = store.load()?;
        let pool = Pool::load(records, clock.now_ms())?;
        let (jobs, incoming) = sync_channel(WAITING_MAX);
        let topics = Arc::new(Topics {
            waiting: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let thread = Thread {
            pool,
            store,
            version,
            topics: topics.clone(),
            clock: clock.clone(),
        };
        let builder = std::thread::Builder::new().name("pool".to_owned());
        builder
            .spawn(move || on_end(thread.run(&incoming)))
            .map_err(StartError::Thread)?;
        Ok(Self {
            jobs,
            topics,
            clock,
        })
    }

    /// Does `operation` in the pool's thread, and gives its result once that is durable.
    ///
    /// # Errors
    /// The pool is overloaded or has stopped. In the second case it may have happened all the same.
    pub async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Pool, u64) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        self.send(operation)?
            .await
            .map_err(|_| Unavailable::Stopped)
    }

    /// As [`Core::call`], for threads. Blocks.
    ///
    /// # Errors
    /// As [`Core::call`].
    pub fn call_blocking<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Pool, u64) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        self.send(operation)?
            .blocking_recv()
            .map_err(|_| Unavailable::Stopped)
    }

    /// Asks `look` until it has an answer, each time that `topic` has changed, for at most `wait`; then its
    /// second kind of answer counts.
    ///
    /// # Errors
    /// As [`Core::call`].
    pub async fn follow<T: Send + 'static>(
        &self,
        topic: Topic,
        wait: Duration,
        look: impl Fn(&mut Pool, u64) -> Look<T> + Clone + Send + 'static,
    ) -> Result<T, Unavailable> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let notify = self.topics.waiting.lock().entry(topic).or_default().clone();
            let changed = notify.notified();
            let mut changed = std::pin::pin!(changed);
            // Before looking: a change after that is noticed.
            changed.as_mut().enable();
            let look = look.clone();
            match self.call(move |pool, now_ms| look(pool, now_ms)).await? {
                Look::Answer(answer) => return Ok(answer),
                Look::SameAsBefore(answer) => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    /// Counts changes of anything, for pages that show everything.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.topics.changes.subscribe()
    }

    /// The pool's time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    fn send<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Pool, u64) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |pool, now_ms| {
            let result = operation(pool, now_ms);
            // Who asked may have gone.
            Box::new(move || drop(answer.send(result)))
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Unavailable::Overloaded,
            TrySendError::Disconnected(_) => Unavailable::Stopped,
        })?;
        Ok(answered)
    }
}

/// What [`Core::follow`] saw.
#[derive(Debug)]
pub enum Look<T> {
    /// It has changed.
    Answer(T),
    /// It has not.
    SameAsBefore(T),
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

struct Thread {
    pool: Pool,
    store: Box<dyn Store>,
    version: Version,
    topics: Arc<Topics>,
    clock: Clock,
}

impl Thread {
    /// Until nobody can ask any more, or the store fails: what is not durable, or not so any more, is not answered.
    fn run(mut self, incoming: &Receiver<Job>) -> Result<(), StoreError> {
        let mut next_tick = Instant::now();
        let mut replies: Vec<Reply> = Vec::new();
        loop {
            let first = incoming.recv_timeout(next_tick.saturating_duration_since(Instant::now()));
            let now_ms = self.clock.now_ms();
            match first {
                Ok(job) => {
                    replies.push(job(&mut self.pool, now_ms));
                    for job in incoming.try_iter().take(BATCH_MAX - 1) {
                        replies.push(job(&mut self.pool, now_ms));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if Instant::now() >= next_tick {
                self.follow_clock();
                self.pool.tick(self.clock.now_ms());
                next_tick = Instant::now() + TICK;
            }
            let changes = self.pool.take_changes();
            if !changes.is_empty() {
                self.version = self.store.commit(self.version, &changes)?;
                self.topics.changes.send_modify(|count| *count += 1);
            }
            if !replies.is_empty() {
                // A node that was stopped for a while may not know yet that another leads.
                self.store.check_current()?;
            }
            for reply in replies.drain(..) {
                reply();
            }
            let woken = self.pool.take_woken();
            if !woken.is_empty() {
                let mut waiting = self.topics.waiting.lock();
                for notify in woken.iter().filter_map(|topic| waiting.remove(topic)) {
                    notify.notify_waiters();
                }
            }
        }
    }

    fn follow_clock(&mut self) {
        if let Some((before_ms, now_ms)) = self.clock.follow() {
            let (by_ms, to) = (
                before_ms.abs_diff(now_ms),
                if now_ms > before_ms { "on" } else { "back" },
            );
            log::warn!(
                "the clock of this machine was put {to} by {} s",
                by_ms / 1000
            );
            self.pool.clock_was_set(before_ms, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::{Clock, Core, STEP_MS, Unavailable};
    use crate::state::Change;
    use crate::store::{MemoryStore, Records, Store, StoreError, Version};

    #[test]
    fn a_clock_that_is_set_is_followed_and_one_that_is_corrected_is_not() {
        let wall = Arc::new(AtomicU64::new(1_000_000));
        let read = wall.clone();
        let clock = Clock::following(move || read.load(Ordering::SeqCst));
        let core = Core::start_with(Box::new(MemoryStore::default()), clock.clone(), |_| {});
        let core = core.unwrap();
        wall.store(1_000_000 + STEP_MS - 1000, Ordering::SeqCst);
        assert_eq!(clock.follow(), None);
        for set_ms in [5_000_000, 2_000_000] {
            wall.store(set_ms, Ordering::SeqCst);
            // It looks a few times a second.
            let began = Instant::now();
            while core.now_ms().abs_diff(set_ms) > STEP_MS {
                assert!(
                    began.elapsed() < Duration::from_secs(60),
                    "{}",
                    core.now_ms()
                );
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let told = core.call_blocking(|_, now_ms| now_ms).unwrap();
            assert!(told.abs_diff(set_ms) <= STEP_MS);
        }
    }

    /// What one that leads no more knows.
    #[derive(Default)]
    struct Deposed(MemoryStore, Arc<AtomicU64>);

    impl Store for Deposed {
        fn load(&mut self) -> Result<Records, StoreError> {
            self.0.load()
        }

        fn commit(&mut self, at: Version, changes: &[Change]) -> Result<Version, StoreError> {
            self.0.commit(at, changes)
        }

        fn check_current(&self) -> Result<(), StoreError> {
            match self.1.load(Ordering::SeqCst) {
                0 => Ok(()),
                _ => Err(StoreError::Failed {
                    path: String::new(),
                    why: "deposed".to_owned(),
                }),
            }
        }
    }

    #[test]
    fn who_may_be_deposed_answers_nothing_not_even_what_it_only_reads() {
        let store = Deposed::default();
        let (is_deposed, ends) = (store.1.clone(), std::sync::mpsc::channel());
        let core = Core::start(Box::new(store), move |end| {
            let _ = ends.0.send(end.is_err());
        });
        let core = core.unwrap();
        assert!(core.call_blocking(|pool, _| pool.all_records()).is_ok());
        is_deposed.store(1, Ordering::SeqCst);
        let told = core.call_blocking(|pool, _| pool.all_records());
        assert_eq!(told, Err(Unavailable::Stopped));
        assert_eq!(ends.1.recv(), Ok(true));
    }
}

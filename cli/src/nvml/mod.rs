//! What NVIDIA's management library says of this machine's GPUs. The library is loaded at run time; without it nothing is known,
//! which is not the same as zero.
#![forbid(unsafe_code)]

mod read;

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

#[cfg(test)]
pub(crate) use read::Xid;
pub(crate) use read::{Reading, read_once};

use read::Library;

/// Between two looks at the figures; errors are told at once.
const STEP: Duration = Duration::from_secs(5);
/// Until a library is tried again that is not there, or failed: a driver may be loaded later.
const RETRY: Duration = Duration::from_secs(60);
/// A look that is older says nothing: a call into the driver hangs.
const STALE: Duration = Duration::from_secs(30);

/// What was found at one time, or why nothing was.
pub(crate) type Found = Result<Vec<Reading>, String>;

/// Looks at the GPUs again and again, on a thread of its own: a call into a broken driver may never return.
#[derive(Debug)]
pub(crate) struct Watch(Arc<Mutex<Option<(Instant, Found)>>>);

impl Watch {
    /// Starts the thread, which ends with this.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(None));
        let weak = Arc::downgrade(&shared);
        let builder = std::thread::Builder::new().name("nvml".to_owned());
        builder.spawn(move || watch(&weak))?;
        Ok(Self(shared))
    }

    /// What was found last; `None` before the first look is over.
    pub(crate) fn found(&self) -> Option<Found> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, found) = seen.as_ref()?;
        if at.elapsed() > STALE + RETRY * u32::from(found.is_err()) {
            let seconds = at.elapsed().as_secs();
            return Some(Err(format!("no answer for {seconds} s: the driver hangs")));
        }
        Some(found.clone())
    }
}

type Shared = Weak<Mutex<Option<(Instant, Found)>>>;

/// Whether somebody still wants to know.
fn tell(shared: &Shared, found: Found) -> bool {
    let Some(shared) = shared.upgrade() else {
        return false;
    };
    let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
    *seen = Some((Instant::now(), found));
    true
}

fn watch(shared: &Shared) {
    loop {
        let why = match Library::open() {
            Ok(library) => match library.follow(STEP, |found| tell(shared, Ok(found))) {
                Ok(()) => return,
                Err(why) => why,
            },
            Err(why) => why,
        };
        log::debug!("NVML: {why}");
        if !tell(shared, Err(why)) {
            return;
        }
        std::thread::park_timeout(RETRY);
    }
}

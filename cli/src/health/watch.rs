//! How a server's machine is, looked at once a minute on a thread of its own: the network may keep it waiting.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farcall_pool::client::PoolClient;
use farcall_pool::model::Check;

use super::{host_checks, pool_checks};

/// Between two looks.
const STEP: Duration = Duration::from_mins(1);

/// What was found last. The thread ends with this.
#[derive(Debug)]
pub(crate) struct Watch(Arc<Mutex<Vec<Check>>>);

impl Watch {
    /// Looks at this machine, and from then on at the way to the pool, too. `wants_gpu`: real GPUs are served.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start(pool: PoolClient, wants_gpu: bool) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(host_checks(wants_gpu)));
        let weak = Arc::downgrade(&shared);
        let look = move || {
            while weak.strong_count() > 0 {
                let mut checks = host_checks(wants_gpu);
                checks.extend(pool_checks(&pool));
                let Some(shared) = weak.upgrade() else {
                    return;
                };
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = checks;
                drop(shared);
                std::thread::park_timeout(STEP);
            }
        };
        let builder = std::thread::Builder::new().name("health".to_owned());
        builder.spawn(look)?;
        Ok(Self(shared))
    }

    /// The checks, each with its time.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checks.clone()
    }
}

//! The limits: what the machine does without any of this project's code.

pub mod copy;
pub mod shm;
pub mod tcp;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crate::pin::{self, Side};

/// The far side of a limit: a thread on the server's core that spins while a turn is played, and sleeps between
/// turns, so that it takes no core from what is measured beside it.
#[derive(Debug)]
struct Far {
    turns: Option<Sender<()>>,
    plays: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Far {
    /// `turn` plays until the flag that it is given is false.
    fn start(mut turn: impl FnMut(&AtomicBool) + Send + 'static) -> Self {
        let (turns, orders) = mpsc::channel::<()>();
        let plays = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&plays);
        let answer = move || {
            while orders.recv().is_ok() {
                turn(&flag);
            }
        };
        let thread = pin::on(Side::Server, || std::thread::spawn(answer));
        Self {
            turns: Some(turns),
            plays,
            thread: Some(thread),
        }
    }

    fn begin(&self) {
        // SYNC: the channel orders this before the turn.
        self.plays.store(true, Ordering::Relaxed);
        if let Some(turns) = &self.turns {
            let _ = turns.send(());
        }
    }

    fn end(&self) {
        // SYNC: nothing else is told by it.
        self.plays.store(false, Ordering::Relaxed);
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.end();
        self.turns = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

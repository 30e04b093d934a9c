//! SIGTERM and SIGINT as a call on a thread.
#![forbid(unsafe_code)]

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::ServeError;
use crate::limits::STACK_BYTES;

/// Blocked signals.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
}

/// Blocks both in this thread and all that it starts; executors start with none blocked.
///
/// # Errors
/// No descriptors.
pub(crate) fn block() -> io::Result<Signals> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(Signals {
        fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?,
    })
}

impl Signals {
    /// Calls `on_signal` with the name of the first one that comes.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn watch(
        self,
        on_signal: impl FnOnce(&'static str) + Send + 'static,
    ) -> Result<(), ServeError> {
        let wait = move || {
            if let Ok(Some(info)) = self.fd.read_signal() {
                let signal = i32::try_from(info.ssi_signo)
                    .ok()
                    .and_then(|number| Signal::try_from(number).ok());
                on_signal(signal.map_or("signal", Signal::as_str));
            }
        };
        let builder = std::thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(STACK_BYTES);
        builder
            .spawn(wait)
            .map(|_| ())
            .map_err(ServeError::system("start a thread"))
    }
}

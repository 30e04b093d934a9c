//! `ppoll` on a handful of descriptors.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

use super::event::timespec;

/// A small set of descriptors to wait on, without allocating.
#[derive(Debug)]
pub(crate) struct PollSet {
    fds: [libc::pollfd; 8],
    len: usize,
}

/// Readable (or at its end).
pub(crate) const IN: i16 = libc::POLLIN;
/// Writable (or broken).
pub(crate) const OUT: i16 = libc::POLLOUT;

impl PollSet {
    pub(crate) const fn new() -> Self {
        const NONE: libc::pollfd = libc::pollfd {
            fd: -1,
            events: 0,
            revents: 0,
        };
        Self {
            fds: [NONE; 8],
            len: 0,
        }
    }

    /// Adds a descriptor; more than 8 are a bug of this crate.
    pub(crate) fn add(&mut self, fd: RawFd, events: i16) {
        self.fds[self.len] = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        self.len += 1;
    }

    /// Sleeps until one is ready, a signal comes, or the time is over. Returns whether one is
    /// ready.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let spec = timeout.map(timespec);
        let spec_ptr = spec.as_ref().map_or(ptr::null(), ptr::from_ref);
        let count = libc::nfds_t::try_from(self.len).unwrap_or(0);
        // SAFETY: `len` initialised entries, a null or valid timespec, no signal mask.
        let ready = unsafe { libc::ppoll(self.fds.as_mut_ptr(), count, spec_ptr, ptr::null()) };
        if ready >= 0 {
            return Ok(ready > 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted {
            Ok(false)
        } else {
            Err(error)
        }
    }

    /// What the last wait found on the n-th descriptor added; errors count as everything.
    pub(crate) fn ready(&self, n: usize) -> bool {
        self.fds[n].revents != 0
    }
}

/// Whether the other end of a stream socket is closed, or the connection broken, be it that bytes still lie unread.
pub(crate) fn is_hung_up(fd: RawFd) -> bool {
    let mut set = PollSet::new();
    set.add(fd, libc::POLLRDHUP);
    matches!(set.wait(Some(Duration::ZERO)), Ok(true))
}

/// Sleeps until one of any number of descriptors is ready. Allocates: for control paths.
pub(crate) fn wait_any(
    fds: impl Iterator<Item = (RawFd, i16)>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut fds: Vec<_> = fds
        .map(|(fd, events)| libc::pollfd {
            fd,
            events,
            revents: 0,
        })
        .collect();
    let spec = timeout.map(timespec);
    let spec_ptr = spec.as_ref().map_or(ptr::null(), ptr::from_ref);
    let count = libc::nfds_t::try_from(fds.len()).map_err(io::Error::other)?;
    // SAFETY: `count` initialised entries, a null or valid timespec, no signal mask.
    if unsafe { libc::ppoll(fds.as_mut_ptr(), count, spec_ptr, ptr::null()) } >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted {
        Ok(())
    } else {
        Err(error)
    }
}

/// Lets timers of the calling thread fire within a microsecond instead of 50.
pub(crate) fn precise_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one integer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

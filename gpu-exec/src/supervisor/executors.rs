//! Executor processes, seen from the supervisor.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use farcall_transport::SessionId;

use super::inbox::{Event, Inbox};
use super::leases::Seen;
use super::plan::Plan;
use crate::DeviceKind;
use crate::cache::Cache;
use crate::control::Counts;
use crate::device::cuda::mps;
use crate::device::describe::DeviceSpec;
use crate::executor::LOAD_DRIVER;
use crate::ledger::Slot;
use crate::limits::STACK_BYTES;
use crate::sys::fds;

/// One executor process.
#[derive(Debug)]
pub(crate) struct Executor {
    /// Taken when it is being reaped.
    child: Option<Child>,
    /// Dropped to end it.
    pub(crate) control: Option<OwnedFd>,
    pub(crate) stage: Stage,
    pub(crate) process: u32,
    /// Its driver is loaded with its session, because MPS ran when it was started, which has to be told its share before.
    pub(crate) is_under_mps: bool,
    /// Connections that are being opened for it.
    pub(crate) dials: usize,
}

/// What an executor does.
#[derive(Debug)]
pub(crate) enum Stage {
    /// It has not said that it is ready.
    Starting,
    /// It waits for a session.
    Ready,
    /// It has a session.
    Serving(Box<Serving>),
}

/// A session, seen from the supervisor.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) session: SessionId,
    pub(crate) slot: Slot,
    /// What it belongs to; 0 = nothing.
    pub(crate) lease: u64,
    pub(crate) seen: Seen,
    /// Since when it is told to end.
    pub(crate) ending: Option<Instant>,
    /// Who it is, for the log.
    pub(crate) client: String,
    /// Numbers of its devices.
    pub(crate) devices: Vec<u32>,
    /// What it may have of them.
    pub(crate) parts: Vec<DeviceSpec>,
    /// What its executor counted, the last time that somebody asked.
    pub(crate) counts: Counts,
    pub(crate) since: Instant,
    /// Its links from other servers.
    pub(crate) links: Vec<SessionId>,
    /// Its GPUs are to be checked when its process is gone.
    pub(crate) is_suspect: bool,
    /// What its executor said at the end, or was told.
    pub(crate) farewell: Option<String>,
}

impl Executor {
    /// Starts a process. It dies with the calling thread.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(plan: &Plan) -> io::Result<Self> {
        let (ours, theirs) = fds::pair()?;
        let mut command = Command::new(&plan.program);
        let (has_driver, is_under_mps) = (plan.kind == DeviceKind::Cuda, mps::is_running());
        command
            .args(&plan.arguments)
            .args((has_driver && !is_under_mps).then_some(LOAD_DRIVER))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        // A group of its own: Ctrl-C is for the supervisor, which ends executors in good order.
        let child = command.process_group(0).spawn()?;
        let process = child.id();
        Ok(Self {
            child: Some(child),
            control: Some(ours),
            stage: Stage::Starting,
            process,
            is_under_mps: has_driver && is_under_mps,
            dials: 0,
        })
    }

    /// The control socket, while it is open.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// Its session, if it has one.
    pub(crate) fn serving(&self) -> Option<&Serving> {
        match &self.stage {
            Stage::Serving(serving) => Some(serving),
            Stage::Starting | Stage::Ready => None,
        }
    }

    /// Its session, to be changed.
    pub(crate) fn serving_mut(&mut self) -> Option<&mut Serving> {
        match &mut self.stage {
            Stage::Serving(serving) => Some(serving),
            Stage::Starting | Stage::Ready => None,
        }
    }

    /// Waits for the end of the process on a thread of its own, which then tells the inbox and tidies the cache.
    pub(crate) fn reap(
        &mut self,
        id: u64,
        inbox: &Arc<Inbox>,
        cache: &Cache,
        cache_bytes_max: u64,
    ) {
        self.control = None;
        let Some(mut child) = self.child.take() else {
            return;
        };
        let (inbox, cache) = (inbox.clone(), cache.clone());
        let wait = move || {
            let _ = child.wait();
            inbox.send(Event::Reaped(id));
            cache.trim(cache_bytes_max);
        };
        let builder = std::thread::Builder::new()
            .name("reaper".to_owned())
            .stack_size(STACK_BYTES);
        if let Err(error) = builder.spawn(wait) {
            log::error!("executor {} is left as a zombie: {error}", self.process);
        }
    }

    /// Ends the process at once.
    pub(crate) fn kill(&self) {
        let Ok(process) = i32::try_from(self.process) else {
            return;
        };
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(process),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

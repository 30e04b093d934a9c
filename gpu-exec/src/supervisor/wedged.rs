//! The keeper's part where a driver does not come back, or a GPU may be lost: ends the session, checks its GPUs, takes out of service those
//! that fail.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use farcall_marshal::status::CuStatus;

use super::executors::{Executor, Serving};
use super::health::{self, Finding};
use super::inbox::Event;
use super::keeper::Keeper;
use super::leases::close;
use crate::DeviceKind;
use crate::control::{Stuck, Verdict};
use crate::device::describe::LOST_ADVICE;
use crate::limits::STACK_BYTES;

/// A killed process that is not gone after so long is inside of the driver's kernel part.
const UNKILLABLE: Duration = Duration::from_secs(10);
/// Least time that a GPU gets for its check.
const CHECK_MIN: Duration = Duration::from_secs(5);

/// GPUs that are being checked, because a driver call did not come back.
#[derive(Debug, Default)]
pub(super) struct Checks(BTreeSet<u32>);

impl Keeper {
    /// A driver call of an executor has not come back for long.
    pub(super) fn take_stuck(&mut self, id: u64, stuck: &Stuck) {
        let Some(executor) = self.executors.get_mut(&id) else {
            return;
        };
        let process = executor.process;
        let Some(serving) = executor.serving_mut().filter(|it| it.ending.is_none()) else {
            return;
        };
        let (client, devices) = (serving.client.clone(), serving.devices.clone());
        let seconds = stuck.waited_ms.div_ceil(1000);
        let what = format!(
            "the CUDA driver has not come back from {} for {seconds} s",
            stuck.call
        );
        match stuck.verdict {
            Verdict::Wedged => {
                log::error!(
                    "session of {client}: {what} (thread {} of process {process}); the session is ended, its GPUs are checked",
                    stuck.thread
                );
                serving.is_suspect = true;
                close(executor, &what);
            }
            Verdict::Abandoned => {
                log::error!("session of {client}: {what}, and its client is gone: it is ended");
                serving.is_suspect = true;
                serving.farewell = Some(format!("its client was gone, and {what}"));
                serving.ending = Some(Instant::now());
                executor.kill();
            }
            Verdict::Waits => {
                log::info!(
                    "session of {client}: {what}, which waits for kernels; its GPUs are checked"
                );
                self.check_gpus(&devices);
            }
        }
    }

    /// A driver has told an executor what it tells of a lost GPU, though not of that alone.
    pub(super) fn take_suspect(&mut self, id: u64, status: CuStatus) {
        let serving = self.executors.get(&id).and_then(Executor::serving);
        if let Some(serving) = serving.filter(|it| it.ending.is_none()) {
            let (client, devices) = (serving.client.clone(), serving.devices.clone());
            log::warn!("session of {client}: the CUDA driver says {status}; its GPUs are checked");
            self.check_gpus(&devices);
        }
    }

    /// Checks GPUs, each in a process of its own. Does not block.
    pub(super) fn check_gpus(&mut self, devices: &[u32]) {
        if self.plan.kind != DeviceKind::Cuda || self.is_stopping() {
            return;
        }
        for device in devices {
            if self.board.is_lost(*device as usize) || !self.checks.0.insert(*device) {
                continue;
            }
            let (device, inbox) = (*device, self.inbox());
            let patience = (self.plan.driver_patience * 2).max(CHECK_MIN);
            let (program, arguments) = (self.plan.program.clone(), self.plan.arguments.clone());
            let check = move || {
                let found = health::check(device, &program, &arguments, patience);
                inbox.send(Event::Checked(device, found));
            };
            let builder = std::thread::Builder::new()
                .name("check".to_owned())
                .stack_size(STACK_BYTES);
            if let Err(error) = builder.spawn(check) {
                self.checks.0.remove(&device);
                log::error!("GPU {device} is not checked: {error}");
            }
        }
    }

    /// A GPU has been checked.
    pub(super) fn take_checked(&mut self, device: u32, found: Result<(), Finding>) {
        self.checks.0.remove(&device);
        match found {
            Ok(()) => log::info!("GPU {device} works"),
            // Others may use all of it, which is no fault.
            Err(found) if found.is_full => {
                log::warn!("GPU {device} could not be checked: {}", found.why);
            }
            Err(found) => {
                let text = format!(
                    "GPU {device} is out of service: {}; {LOST_ADVICE}",
                    found.why
                );
                log::error!("{text}");
                self.board.lose(device as usize);
                for executor in self.executors.values_mut() {
                    let has_it = executor
                        .serving()
                        .is_some_and(|it| it.ending.is_none() && it.devices.contains(&device));
                    if has_it {
                        close(executor, &text);
                    }
                }
            }
        }
    }

    /// A process that cannot even be killed: its GPUs are checked without waiting for its end.
    pub(super) fn give_up_unkillable(&mut self) {
        let mut devices = Vec::new();
        for executor in self.executors.values_mut() {
            let process = executor.process;
            let stays = |it: &&mut Serving| {
                it.is_suspect && it.ending.is_some_and(|since| since.elapsed() > UNKILLABLE)
            };
            if let Some(serving) = executor.serving_mut().filter(stays) {
                serving.is_suspect = false;
                log::error!(
                    "executor {process} of {} cannot be killed: it is inside of the driver's kernel module; its memory stays \
                     taken until it ends, or this machine restarts",
                    serving.client
                );
                devices.extend(&serving.devices);
            }
        }
        self.check_gpus(&devices);
    }
}

impl Executor {
    /// The GPUs to be checked now that the process is gone: also where it went without a word, as a driver may have brought it down.
    pub(super) fn suspects(&self) -> Vec<u32> {
        let is_suspect = |it: &&Serving| it.is_suspect || it.farewell.is_none();
        let serving = self.serving().filter(is_suspect);
        serving.map_or(Vec::new(), |serving| serving.devices.clone())
    }
}

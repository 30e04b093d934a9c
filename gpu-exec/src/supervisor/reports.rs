//! What executors report.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use farcall_marshal::status::CuStatus;

use super::executors::{Executor, Stage};
use super::keeper::Keeper;
use crate::control::{self, Message, Report};

/// Reports of one executor that are taken before the others are looked at again.
const AT_ONCE: usize = 64;

impl Keeper {
    /// Takes what an executor has reported. More than [`AT_ONCE`] is left for the next look: one that reports without end,
    /// as one that was taken over could, keeps nobody else from being looked at.
    pub(super) fn read_reports(&mut self, id: u64) {
        for _ in 0..AT_ONCE {
            let Some(executor) = self.executors.get_mut(&id) else {
                return;
            };
            let Some(control) = &executor.control else {
                return;
            };
            match control::receive::<Report>(control.as_fd(), false) {
                Ok(Some(Message {
                    header: Report::Counted(counts),
                    ..
                })) => {
                    if let Some(serving) = executor.serving_mut() {
                        serving.counts = counts;
                    }
                    self.counted(id);
                }
                Ok(Some(Message {
                    header: Report::Stuck(stuck),
                    ..
                })) => self.take_stuck(id, &stuck),
                Ok(Some(Message {
                    header: Report::Suspect { status },
                    ..
                })) => self.take_suspect(id, CuStatus(status)),
                Ok(Some(Message {
                    header: Report::Dial { number, address },
                    ..
                })) => self.dial(id, number, address),
                Ok(Some(message)) => take_report(executor, message.header, &mut self.failed_starts),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => {
                    if matches!(executor.stage, Stage::Starting) && self.stopping.is_none() {
                        self.failed_starts += 1;
                        log::error!("executor {} ended before it was ready", executor.process);
                    }
                    return executor.reap(id, &self.inbox, &self.cache, self.plan.cache_bytes_max);
                }
            }
        }
    }
}

fn take_report(executor: &mut Executor, report: Report, failed_starts: &mut u32) {
    match (report, &mut executor.stage) {
        (Report::Ready, stage @ Stage::Starting) => {
            *stage = Stage::Ready;
            *failed_starts = 0;
        }
        (Report::Opened, Stage::Serving(serving)) => {
            log::info!(
                "session opened: {}, devices {:?}, executor {}",
                serving.client,
                serving.devices,
                executor.process
            );
        }
        (
            Report::Closed {
                reason,
                resumes,
                counts,
            },
            Stage::Serving(serving),
        ) => {
            serving.farewell = Some(format!(
                "{reason}; {} records, {resumes} times resumed, {} bytes in, {} bytes out",
                counts.records, counts.bytes_in, counts.bytes_out
            ));
            serving.counts = counts;
        }
        (report, stage) => log::error!("executor {}: {report:?} in {stage:?}", executor.process),
    }
}

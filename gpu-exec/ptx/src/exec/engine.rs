//! The worker pool.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

use super::job::{Job, Outcome};
use super::mem::GlobalMem;
use crate::api::{Launch, LaunchReport};
use crate::error::{Fault, FaultKind};

/// Threads that help with launches; started by the first launch that has work for them.
#[derive(Debug)]
pub(crate) struct Pool {
    workers: u32,
    launches: AtomicU64,
    queue: Mutex<Option<Queue>>,
}

#[derive(Debug)]
struct Queue {
    jobs: Sender<(Arc<Job>, u32)>,
    threads: Vec<JoinHandle<()>>,
}

/// Kernels whose whole grid is smaller than this stay on the caller's thread.
const SMALL_BLOCKS: u64 = 2;

impl Pool {
    pub(crate) fn new(workers: usize) -> Self {
        let workers = u32::try_from(workers.clamp(1, 1024)).unwrap_or(1);
        Self {
            workers,
            launches: AtomicU64::new(0),
            queue: Mutex::new(None),
        }
    }

    pub(crate) fn launch(&self, launch: &Launch<'_>) -> Result<LaunchReport, Box<Fault>> {
        let start = Instant::now();
        validate(launch)?;
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let workers = if blocks < SMALL_BLOCKS {
            1
        } else {
            u64::from(self.workers).min(blocks) as u32
        };
        let job = Arc::new(Job {
            kernel: launch.kernel.info().name.clone(),
            code: Arc::clone(&launch.kernel.code),
            consts: Arc::clone(&launch.kernel.consts),
            grid: launch.grid,
            block: launch.block,
            dynamic_shared_bytes: launch.dynamic_shared_bytes,
            params: launch.params.to_vec(),
            mem: GlobalMem::new(Arc::clone(&launch.memory)),
            cancel: Arc::clone(&launch.cancel),
            cooperative: launch.cooperative,
            workers,
            start,
            number: self.launches.fetch_add(1, Ordering::Relaxed),
            next_block: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            outcome: Mutex::new(Outcome {
                helpers: workers - 1,
                ..Outcome::default()
            }),
            left: Condvar::new(),
        });
        for worker in 1..workers {
            self.help(&job, worker);
        }
        job.work(0);
        let mut outcome = job.outcome.lock();
        // No memory of the caller may be touched after this returns.
        while outcome.helpers > 0 {
            job.left.wait(&mut outcome);
        }
        if let Some(fault) = outcome.fault.take() {
            return Err(fault);
        }
        Ok(LaunchReport {
            thread_instructions: outcome.executed,
            printf: std::mem::take(&mut outcome.printf),
            busy: outcome.busy,
            elapsed_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        })
    }

    fn help(&self, job: &Arc<Job>, worker: u32) {
        let mut queue = self.queue.lock();
        let queue = queue.get_or_insert_with(|| {
            let (jobs, receiver) = unbounded();
            let threads = (1..self.workers)
                .filter_map(|n| spawn(n, receiver.clone()))
                .collect();
            Queue { jobs, threads }
        });
        let sent = !queue.threads.is_empty() && queue.jobs.send((Arc::clone(job), worker)).is_ok();
        if !sent {
            // No thread could be started: cooperative blocks of this worker run on the caller's thread.
            let job = Arc::clone(job);
            run_helper(&job, worker);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.get_mut().take() {
            drop(queue.jobs);
            for thread in queue.threads {
                // A worker that panicked has already reported it; there is nothing left to do.
                let _ = thread.join();
            }
        }
    }
}

fn spawn(number: u32, jobs: Receiver<(Arc<Job>, u32)>) -> Option<JoinHandle<()>> {
    let body = move || {
        for (job, worker) in jobs {
            run_helper(&job, worker);
        }
    };
    std::thread::Builder::new()
        .name(format!("soft-sm{number}"))
        .spawn(body)
        .ok()
}

/// Counts a helper out even if it panics: the caller of the launch waits for it.
struct Leave<'a>(&'a Job);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut outcome = self.0.outcome.lock();
        outcome.helpers -= 1;
        if std::thread::panicking() {
            let kind = FaultKind::IllegalInstruction("the interpreter failed".to_owned());
            outcome
                .fault
                .get_or_insert_with(|| Box::new(self.0.fault(kind, 0, [0; 3], [0; 3])));
        }
        drop(outcome);
        self.0.left.notify_one();
    }
}

fn run_helper(job: &Job, worker: u32) {
    let _leave = Leave(job);
    job.work(worker);
}

fn validate(launch: &Launch<'_>) -> Result<(), Box<Fault>> {
    let info = launch.kernel.info();
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    let problem = if launch.grid.contains(&0) || launch.block.contains(&0) {
        Some("a dimension is zero".to_owned())
    } else if launch.grid[1] > 65535
        || launch.grid[2] > 65535
        || launch.grid[0] > i32::MAX.cast_unsigned()
    {
        Some(format!("grid {:?} is too large", launch.grid))
    } else if threads > u64::from(info.max_threads_per_block) || launch.block[2] > 64 {
        Some(format!(
            "a block of {:?} threads is too large",
            launch.block
        ))
    } else if info.reqntid.is_some_and(|n| n != launch.block) {
        Some(format!(
            "the kernel asks for blocks of {:?}",
            info.reqntid.unwrap_or_default()
        ))
    } else if launch.params.len() < info.param_bytes as usize {
        Some(format!(
            "{} bytes of parameters, {} are needed",
            launch.params.len(),
            info.param_bytes
        ))
    } else if u64::from(launch.dynamic_shared_bytes) + u64::from(info.shared_static_bytes) > 1 << 20
    {
        Some("more shared memory than any device has".to_owned())
    } else {
        None
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(Box::new(Fault {
            kind: FaultKind::InvalidLaunch(problem),
            kernel: info.name.clone(),
            line: 0,
            block: [0; 3],
            thread: [0; 3],
        })),
    }
}

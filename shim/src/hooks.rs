//! Host functions and stream callbacks of the program, run on a thread of their own when the server says
//! that the stream has got there. A driver calls them from a thread of its own too, never from one that is
//! inside a CUDA call.
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use farcall_marshal::record::{Head, Record, encode, record_bytes};
use farcall_marshal::wire::{HostFuncDone, HostFuncDue};
use farcall_transport::Endpoint;

use crate::ptr::{call_host_function, call_stream_callback};

/// A function of the program and what to pass it.
#[derive(Clone, Copy)]
pub(crate) enum Callback {
    /// `CUhostFn`.
    HostFunction {
        /// Address of the function.
        function: usize,
        /// Passed through.
        user_data: u64,
    },
    /// `CUstreamCallback`.
    StreamCallback {
        /// Address of the function.
        function: usize,
        /// The stream as the program knows it.
        stream: u64,
        /// Passed through.
        user_data: u64,
    },
}

struct Job {
    endpoint: Endpoint,
    context: u32,
    due: HostFuncDue,
    callback: Option<Callback>,
}

/// Runs the callbacks of one session, in order, on a thread that starts with the first.
#[derive(Default)]
pub(crate) struct Runner {
    queue: OnceLock<Sender<Job>>,
}

impl Runner {
    /// Queues the callback; the server hears when it has run.
    pub(crate) fn run_later(
        &self,
        endpoint: Endpoint,
        context: u32,
        due: HostFuncDue,
        callback: Option<Callback>,
    ) {
        let queue = self.queue.get_or_init(|| {
            let (sender, receiver) = channel::<Job>();
            let spawned = std::thread::Builder::new()
                .name("farcall-hostfn".into())
                .spawn(move || {
                    for job in receiver {
                        run(&job);
                    }
                });
            if let Err(error) = spawned {
                log::error!("no thread for host functions: {error}");
            }
            sender
        });
        if queue
            .send(Job {
                endpoint,
                context,
                due,
                callback,
            })
            .is_err()
        {
            log::error!("a host function could not be run");
        }
    }
}

fn run(job: &Job) {
    match job.callback {
        // After an error in the stream only stream callbacks run, and they are told.
        Some(Callback::HostFunction {
            function,
            user_data,
        }) if job.due.status == 0 => call_host_function(function, user_data),
        Some(Callback::StreamCallback {
            function,
            stream,
            user_data,
        }) => {
            call_stream_callback(function, stream, job.due.status, user_data);
        }
        _ => {}
    }
    let done = HostFuncDone {
        callback: job.due.callback,
        stream: job.due.stream,
    };
    let head = Head::request(HostFuncDone::NUMBER, job.context, 0);
    let sent = job
        .endpoint
        .append(record_bytes(&done), |out| encode(head, &done, out));
    if sent.is_ok() {
        let _ = job.endpoint.flush();
    }
}

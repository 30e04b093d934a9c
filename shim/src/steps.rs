//! The way of one call, told step by step for `farcall trace --steps`. Off unless asked for; then it costs what
//! telling costs.
#![forbid(unsafe_code)]

use std::time::Instant;

use farcall_marshal::catalogue::{CallInfo, Class};
use farcall_marshal::record::{self, Head};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{self, CuCtxSynchronize, TraceStep};
use farcall_transport::Endpoint;
use parking_lot::Mutex;

use crate::capture;
use crate::context;
use crate::observe;

type Steps = Vec<(String, String)>;

/// Steps of calls that are under way. The server's come on whichever thread receives, so they are gathered here.
static STEPS: Mutex<Steps> = Mutex::new(Vec::new());

fn add(step: &str, detail: impl FnOnce() -> String) {
    if observe::wants_steps() {
        STEPS.lock().push((step.to_owned(), detail()));
    }
}

/// The noted steps, once.
pub(crate) fn take() -> Steps {
    std::mem::take(&mut *STEPS.lock())
}

/// The program called an exported function.
pub(crate) fn captured(info: &CallInfo) {
    if info.class == Class::Local {
        return;
    }
    add("captured", || {
        format!(
            "{} of libcuda.so.1, in process {}",
            info.symbol,
            std::process::id()
        )
    });
    if let Ok(context) = context::current_any() {
        let device = context.device;
        add("mapped", || {
            format!(
                "device {} of the program is device {} of the server ({})",
                device.ordinal, device.server_ordinal, device.name
            )
        });
    }
}

/// A record was encoded.
pub(crate) fn marshalled(head: Head, bytes: &[u8]) {
    add("marshalled", || {
        let fields = record::split(bytes)
            .and_then(|(head, body, _)| wire::describe(head.number, false, body))
            .unwrap_or_default();
        let name =
            farcall_marshal::catalogue::call(head.number).map_or("message", |call| call.symbol);
        format!(
            "record {} {name}, {} bytes: {fields}",
            head.number,
            bytes.len()
        )
    });
}

/// It was given to the transport.
pub(crate) fn sent(head: Head, endpoint: &Endpoint) {
    add("sent", || {
        let way = if head.ticket == 0 {
            "one way".to_owned()
        } else {
            format!("ticket {}", head.ticket)
        };
        format!(
            "{way}, over {}, frame {}",
            endpoint.transport_name(),
            endpoint.stats().frames_out
        )
    });
}

/// The server told a step of its own.
pub(crate) fn told(step: &TraceStep<'_>) {
    add(step.step, || {
        format!("{} ({:.1} us)", step.detail, ns_to_us(step.ns))
    });
}

/// A call has gone: what the server does with it belongs to it, so it is waited for, which only a trace does.
/// The device has passed it when it answers a synchronization behind it.
fn settle() {
    let Ok(context) = context::current_any() else {
        return;
    };
    let was_sent = STEPS.lock().iter().any(|(step, _)| step == "sent");
    if !was_sent || capture::any() || context.check().is_err() {
        return;
    }
    let began = Instant::now();
    let passed = context
        .session()
        .ask_untold(context.id, &CuCtxSynchronize {});
    add("executed", || match passed {
        Ok(()) => format!(
            "the device has passed it ({:.1} us until a synchronization behind it was answered)",
            us(began)
        ),
        Err(status) => format!("the device refused: {status}"),
    });
}

/// The call is about to return to the program.
pub(crate) fn returned(info: &CallInfo, status: CuStatus) {
    if info.class == Class::Local || !observe::wants_steps() {
        return;
    }
    if status.is_success() {
        settle();
    }
    add("returned", || {
        if info.class == Class::Blocking {
            "reply taken from its ticket".to_owned()
        } else {
            "without waiting".to_owned()
        }
    });
    add("mapped-back", || format!("to the program: {status}"));
}

#[expect(clippy::cast_precision_loss, reason = "microseconds for people")]
fn ns_to_us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

fn us(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

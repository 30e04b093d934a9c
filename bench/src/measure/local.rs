//! Calls that are answered from the client's memory.
#![forbid(unsafe_code)]

use std::hint::black_box;

use super::per_call;
use crate::driver::Driver;
use crate::figure::{Figure, Target};

/// The promise: nanoseconds of a call.
const TARGET_NS: f64 = 50.0;

/// `local/*`: nanoseconds per call, the median over batches.
#[must_use]
pub fn local(driver: &Driver) -> Vec<Figure> {
    let time = |call: &dyn Fn()| per_call(400, 2000, call).p50;
    let calls: [(&str, &dyn Fn()); 3] = [
        ("cuCtxGetDevice", &|| {
            black_box(driver.context_device());
        }),
        ("cuDeviceGetAttribute", &|| {
            black_box(driver.device_attribute());
        }),
        ("cuPointerGetAttribute", &|| {
            black_box(driver.pointer_attribute());
        }),
    ];
    calls
        .iter()
        .map(|(name, call)| {
            let figure = Figure::new(format!("local/{name}"), "ns", time(call));
            figure.target(Target::Value(TARGET_NS))
        })
        .collect()
}

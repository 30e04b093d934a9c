//! Which figures are drawn together.
#![forbid(unsafe_code)]

use super::super::chart::{Chart, Trace, Unit, chart};
use crate::history::{Figure, Range, Series};

type Plan = (&'static str, &'static str, Unit, &'static [Trace]);

const fn trace(figure: Figure, name: &'static str, style: &'static str) -> Trace {
    Trace {
        figure,
        name,
        style,
    }
}

const MEMORY: Plan = (
    "chart-memory",
    "Device memory",
    Unit::Bytes,
    &[
        trace(Figure::MemoryBytes, "all", "t0"),
        trace(Figure::MemoryHeldBytes, "held", "t1"),
        trace(Figure::MemoryUsedBytes, "allocated", "t2"),
    ],
);
const TEMPERATURE: Plan = (
    "chart-temperature",
    "Temperature of the hottest GPU",
    Unit::Degrees,
    &[trace(Figure::TemperatureC, "temperature", "t3")],
);
const POWER: Plan = (
    "chart-power",
    "Power of the GPUs",
    Unit::Watts,
    &[trace(Figure::PowerW, "power", "t3")],
);
const ERRORS: Plan = (
    "chart-errors",
    "Memory errors that ECC could not correct",
    Unit::Count,
    &[trace(Figure::EccUncorrected, "errors", "t3")],
);

/// Of the cluster, a server or a client.
const ALL: [Plan; 11] = [
    (
        "chart-gpus",
        "GPUs",
        Unit::Gpus,
        &[
            trace(Figure::Gpus, "usable", "t0"),
            trace(Figure::GpusHeld, "held", "t1"),
            trace(Figure::GpusBusy, "in use", "t2"),
        ],
    ),
    (
        "chart-work",
        "GPUs at work",
        Unit::Gpus,
        &[
            trace(Figure::ComputingGpus, "clients' kernels", "t2"),
            trace(Figure::UtilizedGpus, "as the driver says", "t4"),
        ],
    ),
    MEMORY,
    (
        "chart-sessions",
        "Sessions",
        Unit::Count,
        &[trace(Figure::Sessions, "sessions", "t1")],
    ),
    (
        "chart-calls",
        "Driver calls per second",
        Unit::PerSecond,
        &[trace(Figure::CallsPerS, "calls", "t1")],
    ),
    (
        "chart-network",
        "Network",
        Unit::BytesPerSecond,
        &[
            trace(Figure::ReceivedBytesPerS, "from clients", "t1"),
            trace(Figure::SentBytesPerS, "to clients", "t2"),
        ],
    ),
    (
        "chart-rtt",
        "Round trip of the slowest session",
        Unit::Microseconds,
        &[trace(Figure::RttUs, "round trip", "t4")],
    ),
    TEMPERATURE,
    POWER,
    (
        "chart-queue",
        "Queue",
        Unit::Count,
        &[trace(Figure::Waiting, "waiting", "t3")],
    ),
    (
        "chart-wait",
        "Waiting time",
        Unit::Time,
        &[trace(Figure::WaitedMs, "longest wait", "t3")],
    ),
];

/// Of one GPU.
const GPU: [Plan; 5] = [
    (
        "chart-work",
        "Use of the GPU",
        Unit::Part,
        &[
            trace(Figure::GpusHeld, "held", "t1"),
            trace(Figure::ComputingGpus, "clients' kernels", "t2"),
            trace(Figure::UtilizedGpus, "as the driver says", "t4"),
        ],
    ),
    MEMORY,
    (
        "chart-temperature",
        "Temperature",
        Unit::Degrees,
        &[trace(Figure::TemperatureC, "temperature", "t3")],
    ),
    (
        "chart-power",
        "Power",
        Unit::Watts,
        &[trace(Figure::PowerW, "power", "t3")],
    ),
    ERRORS,
];

/// The charts of the cluster, a server or a client: those that have something to show.
pub(super) fn charts(series: &Series, range: Range) -> Vec<Chart> {
    draw(&ALL, series, range)
}

/// The charts of a GPU.
pub(super) fn gpu_charts(series: &Series, range: Range) -> Vec<Chart> {
    draw(&GPU, series, range)
}

fn draw(plans: &[Plan], series: &Series, range: Range) -> Vec<Chart> {
    let drawn = plans
        .iter()
        .map(|(id, title, unit, traces)| chart(id, title, *unit, traces, series, range));
    drawn.filter(|chart| !chart.legend.is_empty()).collect()
}

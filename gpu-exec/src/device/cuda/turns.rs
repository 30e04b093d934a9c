//! Kernels where sessions of a GPU take turns, or where their time is measured.
//!
//! Time is the device's own: an event in front of the first kernel of a burst, a marker (events behind what was launched) after
//! it, at most one marker under way. What was launched meanwhile is behind the next one. So the driver gets two events per
//! marker that passes, however many kernels there are, and the token is given up when the last marker has passed.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use farcall_marshal::status::CuResult;

use super::driver::{Context, Event, Fence};
use super::issue::{Later, Shared};
use super::perform::on;
use super::state::{LaneKey, State};

/// Kernels that a session may have given to the driver while others take turns with it: the next session waits for them.
const AHEAD_MAX: u64 = 64;
/// An event whose time can be asked for.
const TIMED: u32 = 0;

/// The kernels of one device that have not been counted.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// In front of the first of them, and when that was.
    anchor: Option<(Arc<Event>, Instant)>,
    /// Of the time since the anchor.
    counted: Duration,
    /// Kernels in front of the marker that is under way.
    marked: u64,
    /// Kernels behind it, by stream.
    unmarked: Vec<(LaneKey, u64)>,
    /// No more kernels until all have ended: then it is another session's turn.
    is_yielding: bool,
}

/// Whether a kernel may be given to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nobody asks.
    Free,
    /// Yes; [`Shared::launched`] is to be told of it.
    Measured(usize),
    /// The stream is told when to ask again.
    NotYet,
}

impl Meter {
    fn unmarked(&self) -> u64 {
        self.unmarked.iter().map(|(_, count)| count).sum()
    }

    fn is_idle(&self) -> bool {
        self.marked == 0 && self.unmarked.is_empty()
    }
}

impl Shared {
    /// Asks for a kernel's turn. One load where nobody shares or measures the device.
    pub(crate) fn turn(&self, state: &mut State, lane: LaneKey) -> Turn {
        if self.gate.is_quiet() {
            return Turn::Free;
        }
        let Some((device, context)) = place(state, lane) else {
            return Turn::Free;
        };
        if !self.gate.is_measured(device) {
            return Turn::Free;
        }
        if !self.gate.admits(device) {
            return Turn::NotYet;
        }
        let meter = state.meters.entry(device).or_default();
        let is_ahead = meter.marked + meter.unmarked() >= AHEAD_MAX;
        if meter.is_yielding || (is_ahead && self.gate.takes_turns(device)) {
            return Turn::NotYet;
        }
        if meter.is_idle() && anchor(state, lane, device, &context).is_err() {
            // The driver will say so again of the kernel itself.
            return Turn::Free;
        }
        Turn::Measured(device)
    }

    /// A kernel was given to the driver.
    pub(crate) fn launched(&self, state: &mut State, lane: LaneKey, turn: Turn) {
        let Turn::Measured(device) = turn else {
            return;
        };
        let meter = state.meters.entry(device).or_default();
        match meter.unmarked.iter_mut().find(|(at, _)| *at == lane) {
            Some((_, count)) => *count += 1,
            None => meter.unmarked.push((lane, 1)),
        }
        if meter.marked == 0 {
            self.mark(state, device);
        }
    }

    /// Nothing was launched, perhaps, where something might have been: then others go on.
    pub(crate) fn rest_if_idle(&self, state: &State, turn: Turn) {
        if let Turn::Measured(device) = turn
            && state.meters.get(&device).is_none_or(Meter::is_idle)
        {
            self.gate.rest_watched(device);
        }
    }

    /// The gate has opened, or may have.
    pub(crate) fn turn_has_come(&self) {
        self.pump();
        let state = self.state();
        for (device, _) in state.meters.iter().filter(|(_, meter)| meter.is_idle()) {
            self.gate.rest_watched(*device);
        }
    }

    /// Puts a marker behind all kernels that have none.
    fn mark(&self, state: &mut State, device: usize) {
        let Some(meter) = state.meters.get_mut(&device) else {
            return;
        };
        meter.marked = meter.unmarked();
        let mut events = Vec::new();
        for (lane, _) in std::mem::take(&mut meter.unmarked) {
            // A stream that is gone has ended its work; one whose context is lost ends the session's kernels, too.
            events.extend(mark_lane(state, lane).ok());
        }
        let fences = events.iter().cloned().map(Fence::of).collect();
        let this = self.weak();
        let passed = move |_| {
            if let Some(this) = this.upgrade() {
                this.marker_has_passed(device, &events);
            }
        };
        self.completion.when(fences, Box::new(passed));
    }

    fn marker_has_passed(&self, device: usize, events: &[Arc<Event>]) {
        let mut later = Later::default();
        let mut state = self.state();
        let Some(meter) = state.meters.get_mut(&device) else {
            return;
        };
        let since = meter
            .anchor
            .as_ref()
            .map_or(Duration::ZERO, |anchor| elapsed(anchor, events));
        let time = since.saturating_sub(meter.counted);
        meter.counted = meter.counted.max(since);
        self.gate
            .charge(device, time, std::mem::take(&mut meter.marked));
        let must_yield = self.gate.must_yield(device);
        let is_idle = meter.is_idle();
        meter.is_yielding = must_yield && !is_idle;
        if !is_idle {
            self.mark(&mut state, device);
        } else if must_yield {
            self.gate.hand_on(device);
        }
        if state.is_behind() {
            self.advance(&mut state, &mut later);
        }
        let rests = state.meters.get(&device).is_some_and(Meter::is_idle);
        if rests {
            self.gate.rest_watched(device);
        }
        drop(state);
        self.settle(later);
    }
}

/// The session's ordinal of a stream's device, and its context.
fn place(state: &State, lane: LaneKey) -> Option<(usize, Arc<Context>)> {
    let context = state.contexts.get(&state.lanes.get(&lane)?.key)?;
    Some((context.owner.device, context.owner.context.clone()))
}

/// Begins a burst.
fn anchor(state: &mut State, lane: LaneKey, device: usize, context: &Arc<Context>) -> CuResult {
    let event = Arc::new(Event::create(context, TIMED)?);
    on(state, lane, |stream| stream.record(&event))?;
    let meter = state.meters.entry(device).or_default();
    meter.anchor = Some((event, Instant::now()));
    meter.counted = Duration::ZERO;
    Ok(())
}

fn mark_lane(state: &mut State, lane: LaneKey) -> CuResult<Arc<Event>> {
    let (_, context) =
        place(state, lane).ok_or(farcall_marshal::status::CuStatus::INVALID_HANDLE)?;
    let event = Arc::new(Event::create(&context, TIMED)?);
    on(state, lane, |stream| stream.record(&event))?;
    Ok(event)
}

/// Device time from the anchor to the last of the events; the host's where the driver does not say.
fn elapsed((anchor, began): &(Arc<Event>, Instant), events: &[Arc<Event>]) -> Duration {
    let times = events.iter().map(|event| anchor.elapsed_ms(event));
    let longest = times.collect::<CuResult<Vec<f32>>>().ok();
    let longest = longest.and_then(|times| times.into_iter().reduce(f32::max));
    let known = longest.and_then(|ms| Duration::try_from_secs_f32(ms / 1e3).ok());
    known.unwrap_or_else(|| began.elapsed())
}

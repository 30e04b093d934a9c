//! Makes lines for people of the shim's lines.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Write};

use farcall_marshal::status::CuStatus;
use farcall_marshal::text::printable;

use super::line::{Call, Line, Step, parse};

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Coloured,
}

const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";
const BOLD: &str = "1";

/// The steps of a call's way, and what each means.
const STEPS: [(&str, &str); 8] = [
    (
        "captured",
        "the program called its driver, and that is our libcuda.so.1",
    ),
    (
        "mapped",
        "the program's device and handles became the server's",
    ),
    (
        "marshalled",
        "call and arguments became a record in the send buffer",
    ),
    ("sent", "the record left for the server"),
    (
        "decoded",
        "the server checked the record; nothing in it is trusted",
    ),
    ("executed", "the server's device did it"),
    (
        "returned",
        "the program goes on: at once after a one-way call, with the reply after a blocking one",
    ),
    (
        "mapped-back",
        "the answer became the call's results, in the program's own terms",
    ),
];

/// Calls that are remembered at most: with steps waiting for their return, or as returned. Steps are traced
/// of the first calls only.
const REMEMBERED_MAX: usize = 4096;

/// Writes calls as they come and a summary at the end.
pub(crate) struct Renderer {
    out: Box<dyn Write + Send>,
    style: Style,
    pending: BTreeMap<u64, Vec<Step>>,
    returned: BTreeSet<u64>,
    explained: HashSet<String>,
    classes: BTreeMap<String, Sum>,
    functions: BTreeMap<String, Sum>,
    cut: u64,
    only: Vec<String>,
    hidden: HashSet<u64>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    calls: u64,
    ns: u64,
}

impl Renderer {
    pub(crate) fn new(out: Box<dyn Write + Send>, style: Style) -> Self {
        Self {
            out,
            style,
            pending: BTreeMap::new(),
            returned: BTreeSet::new(),
            explained: HashSet::new(),
            classes: BTreeMap::new(),
            functions: BTreeMap::new(),
            cut: 0,
            only: Vec::new(),
            hidden: HashSet::new(),
        }
    }

    /// Shows calls of these names only; the summary still counts all.
    pub(crate) fn only(mut self, names: Vec<String>) -> Self {
        self.only = names;
        self
    }

    /// Takes one line of the shim's; what cannot be read is counted.
    pub(crate) fn line(&mut self, bytes: &[u8]) -> io::Result<()> {
        match parse(bytes) {
            Some(Line::Call(call)) => self.call(&call),
            Some(Line::Step(step)) => self.step(step),
            None => {
                self.cut += u64::from(!bytes.trim_ascii().is_empty());
                Ok(())
            }
        }
    }

    /// Steps of calls that never returned, and the summary.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        for (seq, steps) in std::mem::take(&mut self.pending) {
            writeln!(self.out, "{seq:>6}  (did not return)")?;
            for step in &steps {
                self.write_step(step)?;
            }
        }
        self.summary()?;
        self.out.flush()
    }

    fn call(&mut self, call: &Call) -> io::Result<()> {
        for (sums, key) in [
            (&mut self.classes, &call.class),
            (&mut self.functions, &call.call),
        ] {
            let sum = sums.entry(key.clone()).or_default();
            sum.calls += 1;
            sum.ns = sum.ns.saturating_add(call.ns);
        }
        if self.classes.values().map(|sum| sum.calls).sum::<u64>() == 1 {
            writeln!(self.out, "  call   thread       time  class     what")?;
        }
        if !self.only.is_empty() && !self.only.contains(&call.call) {
            self.pending.remove(&call.seq);
            // Steps that are still to come are those of the calls just made.
            if self.hidden.len() >= REMEMBERED_MAX {
                self.hidden.clear();
            }
            self.hidden.insert(call.seq);
            return Ok(());
        }
        let class = format!("{:<8}", call.class);
        let colour = match call.class.as_str() {
            "local" => DIM,
            "cached" => CYAN,
            "one-way" => GREEN,
            _ => YELLOW,
        };
        writeln!(
            self.out,
            "{:>6}  {:>7}  {:>9}  {}  {}({}) = {}{}",
            call.seq,
            call.tid,
            duration(call.ns),
            self.paint(colour, &class),
            self.paint(BOLD, &printable(&call.call)),
            printable(&call.args),
            self.status(call.status),
            sent(call),
        )?;
        for step in self.pending.remove(&call.seq).unwrap_or_default() {
            self.write_step(&step)?;
        }
        if self.returned.len() < REMEMBERED_MAX {
            self.returned.insert(call.seq);
        }
        Ok(())
    }

    /// Kept until the call's own line; steps of a call that has returned (what the server does of a one-way
    /// call) stand where they come.
    fn step(&mut self, step: Step) -> io::Result<()> {
        if self.hidden.contains(&step.seq) {
            return Ok(());
        }
        if self.returned.contains(&step.seq) {
            return self.write_step(&step);
        }
        self.pending.entry(step.seq).or_default().push(step);
        if self.pending.len() > REMEMBERED_MAX
            && let Some((_, steps)) = self.pending.pop_first()
        {
            for step in &steps {
                self.write_step(step)?;
            }
        }
        Ok(())
    }

    fn write_step(&mut self, step: &Step) -> io::Result<()> {
        let known = STEPS.iter().find(|(name, _)| *name == step.step);
        let name = self.paint(CYAN, &format!("{:<11}", printable(&step.step)));
        writeln!(
            self.out,
            "{:>6}    {name}  {}",
            step.seq,
            printable(&step.detail)
        )?;
        // Each step is explained once, where it is first seen.
        if let Some((name, meaning)) = known
            && self.explained.insert((*name).to_owned())
        {
            let meaning = self.paint(DIM, meaning);
            writeln!(self.out, "{:>6}                 {meaning}", "")?;
        }
        Ok(())
    }

    fn summary(&mut self) -> io::Result<()> {
        let calls: u64 = self.classes.values().map(|sum| sum.calls).sum();
        if calls == 0 {
            return writeln!(self.out, "farcall: the program made no driver call");
        }
        let ns = self
            .classes
            .values()
            .fold(0, |ns: u64, sum| ns.saturating_add(sum.ns));
        writeln!(
            self.out,
            "farcall: {calls} driver calls, {} in them",
            duration(ns)
        )?;
        for (class, sum) in &self.classes {
            writeln!(
                self.out,
                "  {class:<9} {:>9}  {:>9}",
                sum.calls,
                duration(sum.ns)
            )?;
        }
        let mut functions: Vec<_> = self.functions.iter().collect();
        functions.sort_by_key(|(name, sum)| (std::cmp::Reverse(sum.ns), name.as_str()));
        let named: Vec<String> = functions
            .iter()
            .take(5)
            .map(|(name, sum)| format!("{name} {} in {}", duration(sum.ns), sum.calls))
            .collect();
        writeln!(self.out, "  most time: {}", named.join(", "))?;
        if self.cut > 0 {
            writeln!(self.out, "  {} lines could not be read", self.cut)?;
        }
        Ok(())
    }

    fn status(&self, number: u32) -> String {
        let status = CuStatus(number);
        match (number, status.name()) {
            (0, _) => "0".to_owned(),
            (_, Some(name)) => self.paint(RED, name),
            (_, None) => self.paint(RED, &format!("CUresult {number}")),
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        match self.style {
            Style::Plain => text.to_owned(),
            Style::Coloured => format!("\x1b[{colour}m{text}\x1b[0m"),
        }
    }
}

/// What left for the server because of a call.
fn sent(call: &Call) -> String {
    if call.record.is_empty() {
        return String::new();
    }
    let waits = if call.ticket == 0 {
        String::new()
    } else {
        format!(", reply {}", call.ticket)
    };
    format!("  [{} {} B{waits}]", printable(&call.record), call.bytes)
}

/// `ns` with three digits: `950 ns`, `1.52 µs`, `12.3 ms`, `3.00 s`.
pub(crate) fn duration(ns: u64) -> String {
    let (unit, scale) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => ("µs", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        _ => ("s", 1_000_000_000),
    };
    let hundredths = u128::from(ns) * 100 / scale;
    match hundredths {
        0..1_000 => format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100),
        1_000..10_000 => format!("{}.{} {unit}", hundredths / 100, hundredths % 100 / 10),
        _ => format!("{} {unit}", hundredths / 100),
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;

//! Runs programs under callgrind, and reads the files it writes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::environment;

/// What one run counted: instructions of user space between entry and exit of the function that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub total: u64,
    /// By the function that they belong to, callees not included.
    pub functions: BTreeMap<String, u64>,
    /// By the function that was called, its callees included, and how often it was called.
    pub calls: BTreeMap<String, Call>,
}

/// Calls of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// How often.
    pub times: u64,
    /// Instructions, callees included.
    pub total: u64,
}

/// The C library takes the plainest of its functions, whatever the processor: counts of `memcpy` and the like are the same
/// on all of them. Only code that looks at the processor by itself (zstd's) still differs.
const PLAIN_FUNCTIONS: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-SSSE3,-SSE4_1,\
     -SSE4_2,-BMI1,-BMI2,-LZCNT,-MOVBE,-POPCNT,-RTM",
);
/// Functions without a name are called by their address, which every build moves.
const UNNAMED: &str = "(without a name)";
/// What `env` ends with where there is no such program.
const NO_PROGRAM: i32 = 127;

/// The command that counts what happens within `function` (a pattern), without the program itself. It runs without the
/// user's settings, and with these.
#[must_use]
pub fn prefix(function: &str, out: &Path, settings: &[(&str, String)]) -> Vec<OsString> {
    let mut file = OsString::from("--callgrind-out-file=");
    file.push(out);
    let settings = settings.iter().map(|(name, value)| (*name, value.as_str()));
    let settings: Vec<_> = settings.chain([PLAIN_FUNCTIONS]).collect();
    let mut command = environment::cleared(&settings);
    command.extend([
        "valgrind".into(),
        "--tool=callgrind".into(),
        "--quiet".into(),
        format!("--toggle-collect={function}").into(),
        file,
    ]);
    command
}

/// A program to be counted.
#[derive(Debug)]
pub struct Counted<'a> {
    /// Its path.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [&'a str],
    /// Its settings: it has none of the user's.
    pub envs: &'a [(&'a str, String)],
}

/// Runs a program and counts what happens within `function`; valgrind writes to `out`.
///
/// # Errors
/// valgrind is missing, the program fails, or nothing was counted.
pub fn count(function: &str, counted: &Counted<'_>, out: &Path) -> Result<Counts, String> {
    run(&prefix(function, out, counted.envs), counted)?;
    read(out)
}

/// The same for each call of `function` by itself, in their order; valgrind writes to `out` and to files whose names begin so.
///
/// # Errors
/// As [`count`].
pub fn count_each(
    function: &str,
    counted: &Counted<'_>,
    out: &Path,
) -> Result<Vec<Counts>, String> {
    let mut prefix = prefix(function, out, counted.envs);
    prefix.push(format!("--dump-after={function}").into());
    run(&prefix, counted)?;
    let mut calls = Vec::new();
    for number in 1.. {
        let mut file = out.as_os_str().to_owned();
        file.push(format!(".{number}"));
        let Ok(text) = fs::read_to_string(&file) else {
            break;
        };
        calls.push(parse(&text));
    }
    calls.retain(|counts| counts.total > 0);
    if calls.is_empty() {
        return Err(nothing_counted(out));
    }
    Ok(calls)
}

fn run(prefix: &[OsString], counted: &Counted<'_>) -> Result<(), String> {
    let [env, rest @ ..] = prefix else {
        return Err("no command".to_owned());
    };
    let mut command = Command::new(env);
    command
        .args(rest)
        .arg(counted.program)
        .args(counted.args)
        .stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    if output.status.code() == Some(NO_PROGRAM) {
        return Err("valgrind cannot be started: apt-get install valgrind".to_owned());
    }
    let (program, args) = (counted.program.display(), counted.args.join(" "));
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {args}: {}\n{text}", output.status))
}

/// Reads a file that callgrind has written.
///
/// # Errors
/// It is not there, or nothing was counted.
pub fn read(out: &Path) -> Result<Counts, String> {
    let text = fs::read_to_string(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let counts = parse(&text);
    if counts.total == 0 {
        return Err(nothing_counted(out));
    }
    Ok(counts)
}

fn nothing_counted(out: &Path) -> String {
    format!(
        "{}: nothing was counted: is the function still called so?",
        out.display()
    )
}

/// The format is described in valgrind's manual, "Callgrind Format Specification". Names are given once, with a
/// number that stands for them from then on.
fn parse(text: &str) -> Counts {
    let mut counts = Counts::default();
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut function, mut callee, mut call_times) = ("", "", 0);
    let mut is_call = false;
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("fn=") {
            function = name(&mut names, value);
        } else if let Some(value) = line.strip_prefix("cfn=") {
            callee = name(&mut names, value);
        } else if let Some(value) = line.strip_prefix("calls=") {
            call_times = value
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            is_call = true;
        } else if let Some(value) = line.strip_prefix("totals: ") {
            counts.total = value.trim().parse().unwrap_or(0);
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line
                .split(' ')
                .nth(1)
                .and_then(|cost| cost.parse().ok())
                .unwrap_or(0);
            if std::mem::take(&mut is_call) {
                // A call within a recursion would count twice.
                if callee != function {
                    let call = counts.calls.entry(callee.to_owned()).or_default();
                    call.times += call_times;
                    call.total += cost;
                }
            } else {
                *counts.functions.entry(function.to_owned()).or_default() += cost;
            }
        }
    }
    counts
}

/// `(12) name` the first time, `(12)` from then on. Recursion levels (`'2`) belong to the same function, and all functions
/// without a name are one.
fn name<'a>(names: &mut HashMap<&'a str, &'a str>, value: &'a str) -> &'a str {
    let (number, given) = value.split_once(' ').unwrap_or((value, ""));
    if !given.is_empty() {
        let given = given.rsplit_once('\'').map_or(given, |(name, level)| {
            if level.bytes().all(|b| b.is_ascii_digit()) {
                name
            } else {
                given
            }
        });
        let is_address = given.starts_with("0x");
        names.insert(number, if is_address { UNNAMED } else { given });
    }
    names.get(number).copied().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::{Call, parse};

    #[test]
    fn own_and_inclusive_costs_are_told_apart() {
        let text = "events: Ir\nfn=(1) main\n5 100\n+1 20\ncfn=(2) work\ncalls=3 7 \n6 900\n\nfn=(2)\n7 600\ncfn=(3) deep'2\ncalls=1 9\n8 300\nfn=(3)\n9 300\ntotals: 1020\n";
        let counts = parse(text);
        assert_eq!(counts.total, 1020);
        let own: Vec<_> = counts
            .functions
            .iter()
            .map(|(name, cost)| (name.as_str(), *cost))
            .collect();
        assert_eq!(own, [("deep", 300), ("main", 120), ("work", 600)]);
        assert_eq!(
            counts.calls["work"],
            Call {
                times: 3,
                total: 900
            }
        );
        let unnamed = parse("fn=(1) 0x0000000000c03980\n5 100\nfn=(2) 0x0000000000c04000\n5 20\n");
        assert_eq!(unnamed.functions.into_values().collect::<Vec<_>>(), [120]);
        assert_eq!(
            counts.calls["deep"],
            Call {
                times: 1,
                total: 300
            }
        );
    }
}

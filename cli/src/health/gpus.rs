//! Checks of GPUs: what their driver says through NVML.
#![forbid(unsafe_code)]

use farcall_pool::core::wall_ms;
use farcall_pool::model::{Check, Outcome};

use super::check;
use crate::nvml::{Found, Reading};

/// Corrected errors harm nothing; so many say that the memory is about to fail.
const CORRECTED_MANY: u64 = 1000;
/// A critical error that is older was survived.
const XID_RECENT_MS: u64 = 24 * 60 * 60 * 1000;
/// Degrees below the slowdown from where on one is told.
const MARGIN_C: f64 = 5.0;

/// The GPUs of this machine; `served`: UUIDs of those that matter, all where it is empty. `wants_gpu`: real GPUs are served.
pub(super) fn gpus(found: &Found, served: &[String], wants_gpu: bool) -> Vec<Check> {
    let meaning = "GPU utilisation, temperature, power, ECC and Xid errors come from NVIDIA's management library (NVML).";
    let readings = match found {
        Ok(readings) => readings,
        Err(why) if wants_gpu => {
            let advice = "Install the driver's libnvidia-ml.so.1 (libnvidia-compute), and check `nvidia-smi`.";
            return vec![check("nvml", Outcome::Warning, why, meaning, advice)];
        }
        Err(why) => {
            let found = format!("{why}; none needed");
            return vec![check("nvml", Outcome::Ok, &found, meaning, "")];
        }
    };
    let counts = |gpu: &&Reading| served.is_empty() || served.contains(&gpu.uuid);
    let known: Vec<&Reading> = readings.iter().filter(counts).collect();
    if known.is_empty() {
        let outcome = if wants_gpu {
            Outcome::Warning
        } else {
            Outcome::Ok
        };
        let advice = "Check `nvidia-smi -L` against the GPUs that are served.";
        return vec![check(
            "nvml",
            outcome,
            "none of the served GPUs",
            meaning,
            advice,
        )];
    }
    let count = format!("{} GPUs", known.len());
    let mut checks = vec![check("nvml", Outcome::Ok, &count, meaning, "")];
    for gpu in known {
        checks.push(ecc(gpu));
        checks.push(xid(gpu));
        checks.push(temperature(gpu));
    }
    checks
}

fn ecc(gpu: &Reading) -> Check {
    let name = format!("gpu {} ecc", gpu.index);
    let meaning = "ECC corrects single errors of the memory; one that it cannot correct ends the programs that have the GPU.";
    let (Some(corrected), Some(uncorrected)) = (gpu.ecc_corrected, gpu.ecc_uncorrected) else {
        let found = "not known: ECC is off, or the GPU has none";
        return check(&name, Outcome::Ok, found, meaning, "");
    };
    let found = format!("{corrected} corrected, {uncorrected} not");
    let (outcome, advice) = match (corrected, uncorrected) {
        (_, 1..) => (
            Outcome::Failed,
            "Drain the server and reset the GPU (`nvidia-smi --gpu-reset`), so that bad rows are remapped; if it comes again, replace it.",
        ),
        (CORRECTED_MANY.., _) => (
            Outcome::Warning,
            "Look at `nvidia-smi -q -d ECC,ROW_REMAPPER`; reset the GPU at the next maintenance.",
        ),
        _ => (Outcome::Ok, ""),
    };
    check(&name, outcome, &found, meaning, advice)
}

fn xid(gpu: &Reading) -> Check {
    let name = format!("gpu {} xid", gpu.index);
    let meaning = "Critical errors that the driver tells of, since this server was started, by NVIDIA's number (Xid).";
    let Some(xid) = gpu.xid else {
        let found = if gpu.tells_xids {
            "none"
        } else {
            "not known: the driver does not tell"
        };
        return check(&name, Outcome::Ok, found, meaning, "");
    };
    let (what, is_hardware, advice) = xid_words(xid.number);
    let ago_ms = wall_ms().saturating_sub(xid.at_ms);
    let outcome = match (is_hardware, ago_ms < XID_RECENT_MS) {
        (true, _) => Outcome::Failed,
        (false, true) => Outcome::Warning,
        (false, false) => Outcome::Ok,
    };
    let found = format!("{} ({what}), {} min ago", xid.number, ago_ms / 60_000);
    check(&name, outcome, &found, meaning, advice)
}

/// What an error is, whether it is the GPU's own, and what to do. From NVIDIA's catalogue of Xid errors
/// (<https://docs.nvidia.com/deploy/xid-errors/>).
fn xid_words(number: u64) -> (&'static str, bool, &'static str) {
    const RESET: &str = "Drain the server and reset the GPU; if it comes again, replace it.";
    const PROGRAM: &str =
        "Most often a program's own fault; the session that caused it has ended. Look at its log.";
    match number {
        13 => ("a kernel's exception", false, PROGRAM),
        31 => (
            "a kernel's access to memory that is not there",
            false,
            PROGRAM,
        ),
        43 | 45 => ("a program that was ended", false, PROGRAM),
        48 => ("a memory error that ECC could not correct", true, RESET),
        61 | 62 => ("an error of the GPU's own controller", true, RESET),
        63 | 64 => ("a page or row of memory was taken out of use", true, RESET),
        74 => (
            "an NVLink error",
            true,
            "Check the NVLink bridges and `nvidia-smi nvlink --status`.",
        ),
        79 => (
            "the GPU has fallen off the bus",
            true,
            "Check power, seat and temperature of the card; restart the machine.",
        ),
        92 => ("many corrected memory errors", true, RESET),
        94 => ("a memory error that was contained", true, RESET),
        95 => ("a memory error that was not contained", true, RESET),
        119 | 120 => (
            "the GPU's system processor (GSP) does not answer",
            true,
            RESET,
        ),
        _ => (
            "see NVIDIA's catalogue",
            true,
            "Look the number up in NVIDIA's catalogue of Xid errors, and at `dmesg`.",
        ),
    }
}

fn temperature(gpu: &Reading) -> Check {
    let name = format!("gpu {} temperature", gpu.index);
    let meaning = "A GPU that is too hot slows itself down.";
    let Some(degrees) = gpu.temperature_c else {
        return check(&name, Outcome::Ok, "not known", meaning, "");
    };
    let found = gpu.slowdown_c.map_or_else(
        || format!("{degrees:.0} °C"),
        |slowdown| format!("{degrees:.0} °C, slows down at {slowdown:.0}"),
    );
    let outcome = match gpu.slowdown_c {
        Some(slowdown) if degrees >= slowdown => Outcome::Failed,
        Some(slowdown) if degrees >= slowdown - MARGIN_C => Outcome::Warning,
        _ => Outcome::Ok,
    };
    let advice = "Check fans and airflow, or lower the power limit (`nvidia-smi -pl`).";
    check(&name, outcome, &found, meaning, advice)
}

#[cfg(test)]
mod tests {
    use farcall_pool::core::wall_ms;
    use farcall_pool::model::{Check, Outcome};

    use super::{XID_RECENT_MS, gpus};
    use crate::nvml::{Reading, Xid};

    fn gpu() -> Reading {
        Reading {
            uuid: "GPU-1".to_owned(),
            temperature_c: Some(40.0),
            slowdown_c: Some(90.0),
            ecc_corrected: Some(0),
            ecc_uncorrected: Some(0),
            tells_xids: true,
            ..Reading::default()
        }
    }

    fn outcome(checks: &[Check], name: &str) -> (Outcome, String) {
        let found = checks.iter().find(|check| check.name == name);
        let found = found.unwrap_or_else(|| panic!("no {name} in {checks:?}"));
        assert_eq!(found.advice.is_empty(), found.outcome == Outcome::Ok);
        (found.outcome, found.found.clone())
    }

    #[test]
    fn a_gpu_is_well_or_it_is_said_why_not() {
        let with = |change: fn(&mut Reading)| {
            let mut gpu = gpu();
            change(&mut gpu);
            gpus(&Ok(vec![gpu]), &[], true)
        };
        let well = with(|_| ());
        assert!(
            well.iter().all(|check| check.outcome == Outcome::Ok),
            "{well:?}"
        );
        assert_eq!(outcome(&well, "gpu 0 xid").1, "none");
        let ecc = |change| outcome(&with(change), "gpu 0 ecc").0;
        assert_eq!(ecc(|gpu| gpu.ecc_corrected = Some(999)), Outcome::Ok);
        assert_eq!(ecc(|gpu| gpu.ecc_corrected = Some(1000)), Outcome::Warning);
        assert_eq!(ecc(|gpu| gpu.ecc_uncorrected = Some(1)), Outcome::Failed);
        let hot = |change| outcome(&with(change), "gpu 0 temperature").0;
        assert_eq!(hot(|gpu| gpu.temperature_c = Some(84.9)), Outcome::Ok);
        assert_eq!(hot(|gpu| gpu.temperature_c = Some(85.0)), Outcome::Warning);
        assert_eq!(hot(|gpu| gpu.temperature_c = Some(90.0)), Outcome::Failed);
    }

    #[test]
    fn critical_errors_are_the_programs_or_the_gpus() {
        let of = |number, ago_ms| {
            let gpu = Reading {
                xid: Some(Xid {
                    number,
                    at_ms: wall_ms() - ago_ms,
                }),
                ..gpu()
            };
            outcome(&gpus(&Ok(vec![gpu]), &[], true), "gpu 0 xid")
        };
        assert_eq!(of(79, 2 * XID_RECENT_MS).0, Outcome::Failed);
        assert_eq!(of(31, 1000).0, Outcome::Warning);
        assert_eq!(of(31, 2 * XID_RECENT_MS).0, Outcome::Ok);
        assert!(of(48, 120_000).1.contains("48 (a memory error"));
    }

    #[test]
    fn what_is_not_known_is_said_and_is_not_zero() {
        let unknown = Reading {
            uuid: "GPU-1".to_owned(),
            ..Reading::default()
        };
        let checks = gpus(&Ok(vec![unknown]), &[], true);
        for name in ["gpu 0 ecc", "gpu 0 xid", "gpu 0 temperature"] {
            assert!(
                outcome(&checks, name).1.starts_with("not known"),
                "{checks:?}"
            );
        }
        let missing = Err("libnvidia-ml.so.1 is not there".to_owned());
        assert_eq!(gpus(&missing, &[], true)[0].outcome, Outcome::Warning);
        assert_eq!(gpus(&missing, &[], false)[0].outcome, Outcome::Ok);
        let others = gpus(&Ok(vec![gpu()]), &["GPU-2".to_owned()], true);
        assert_eq!((others.len(), others[0].outcome), (1, Outcome::Warning));
    }
}

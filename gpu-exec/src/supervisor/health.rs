//! Which GPUs are served: those that pass a check in a process of their own.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::DeviceKind;
use crate::device::describe::{DeviceSpec, device_uuid};
use crate::executor::{CHECK_GPU, GPU_IS_FULL, WITH_KERNEL};

/// For a context and a copy; the first context after the start of a machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest reason that is shown.
const REASON_BYTES_MAX: u64 = 4 << 10;

/// The GPUs that work; of the others the log says why they do not. Blocks.
///
/// # Errors
/// None does: the reasons.
pub(super) fn healthy(
    gpus: Vec<DeviceSpec>,
    program: &OsString,
    arguments: &[OsString],
) -> Result<Vec<DeviceSpec>, String> {
    let mut reasons = Vec::new();
    let works = |gpu: &DeviceSpec| match check_new(gpu.ordinal, program, arguments) {
        Ok(()) => true,
        Err(found) => {
            let why = format!("GPU {} is not served: {}", gpu.ordinal, found.why);
            log::error!("{why}");
            reasons.push(why);
            false
        }
    };
    let healthy: Vec<DeviceSpec> = gpus.into_iter().filter(works).collect();
    if healthy.is_empty() {
        return Err(reasons.join("; "));
    }
    Ok(healthy)
}

/// What is wrong with a GPU.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) why: String,
    /// All its memory is in use, which is a fault only before it is served.
    pub(super) is_full: bool,
}

impl From<String> for Finding {
    fn from(why: String) -> Self {
        Self {
            why,
            is_full: false,
        }
    }
}

/// Checks a GPU that nobody has yet. Blocks.
fn check_new(ordinal: u32, program: &OsString, arguments: &[OsString]) -> Result<(), Finding> {
    check_with(ordinal, program, arguments, PATIENCE, WITH_KERNEL)
}

/// Checks a GPU in a process of its own, which gets so long. No kernel runs there: it might have to wait for those of others. Blocks.
///
/// # Errors
/// What is wrong.
pub(super) fn check(
    ordinal: u32,
    program: &OsString,
    arguments: &[OsString],
    patience: Duration,
) -> Result<(), Finding> {
    check_with(ordinal, program, arguments, patience, "")
}

fn check_with(
    ordinal: u32,
    program: &OsString,
    arguments: &[OsString],
    patience: Duration,
    how: &str,
) -> Result<(), Finding> {
    let uuid = device_uuid(DeviceKind::Cuda, ordinal).map_or(0, u128::from_be_bytes);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(format!("{CHECK_GPU}{ordinal}:{uuid:032x}{how}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let failed = |error: std::io::Error| format!("its check cannot be started: {error}");
    let mut child = command.spawn().map_err(failed)?;
    let stdout = child.stdout.take();
    let (say, said) = channel();
    // Ends with the child, which holds the other end of the pipe.
    std::thread::spawn(move || {
        let mut reason = String::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(REASON_BYTES_MAX).read_to_string(&mut reason);
        }
        let _ = say.send(reason);
    });
    let Ok(reason) = said.recv_timeout(patience) else {
        let _ = child.kill();
        // A process inside of the driver's kernel module may never end.
        std::thread::spawn(move || child.wait());
        return Err(format!("its check does not end in {patience:?}: the driver hangs").into());
    };
    let status = child.wait().map_err(failed)?;
    match (status.success(), reason.trim()) {
        (true, _) => Ok(()),
        (false, "") => Err(format!("its check ended with {status}: the driver crashed").into()),
        (false, reason) => Err(Finding {
            why: reason.to_owned(),
            is_full: status.code() == Some(GPU_IS_FULL.into()),
        }),
    }
}

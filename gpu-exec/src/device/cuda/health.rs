//! Whether a GPU works: asked before it is served, in a process of its own, since a broken driver may hang or crash.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use farcall_marshal::status::{CuResult, CuStatus};

use super::driver::{Context, Driver, Flow, PlainBlock, Slab, Stream};

/// What is sent there and back.
const BYTES: usize = 64 << 10;
/// How long that may take; the process is given longer, for its context.
const PATIENCE: Duration = Duration::from_secs(10);
const STREAM_NON_BLOCKING: u32 = 1;

/// Makes a context on the GPU that had this UUID when the server was started, and sends a pattern there and back. Blocks.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check(ordinal: u32, uuid: u128) -> Result<(), Broken> {
    let driver = Driver::get().map_err(|error| Broken::new(error.to_string()))?;
    // A driver that is started without a GPU that was lost gives its number to the next one.
    let found = driver.device_uuid(ordinal).map(u128::from_be_bytes);
    if found != Ok(uuid) {
        return Err(Broken::new(
            "the driver does not find it any more".to_owned(),
        ));
    }
    let failed = |what: &str, status: CuStatus| Broken {
        why: format!("{what}: {status}{}", advice(status)),
        is_full: status == CuStatus::OUT_OF_MEMORY,
    };
    let context = Context::primary(driver, ordinal, 0)
        .map_err(|status| failed("no context can be made", status))?;
    match echo(&context) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Broken::new(
            "it gives other bytes back than it was sent".to_owned(),
        )),
        Err(CuStatus::NOT_READY) => Err(Broken::new(format!(
            "it does not copy 64 KiB in {PATIENCE:?}"
        ))),
        Err(status) => Err(failed("it does not copy 64 KiB", status)),
    }
}

/// A GPU that does not pass.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) why: String,
    /// It has no memory left, which others may use.
    pub(crate) is_full: bool,
}

impl Broken {
    fn new(why: String) -> Self {
        Self {
            why,
            is_full: false,
        }
    }
}

/// Whether the GPU gives back what it was sent.
fn echo(context: &Arc<Context>) -> CuResult<bool> {
    let pattern: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
    let stream = Stream::create(context, STREAM_NON_BLOCKING, 0)?;
    let block = PlainBlock::new(context, BYTES as u64)?;
    let extent = block.extent(block.base(), BYTES as u64);
    let extent = extent.ok_or(CuStatus::INVALID_VALUE)?;
    let slab = Slab::new(context, 2 * BYTES)?;
    let (Some(mut source), Some(target)) =
        (slab.take(BYTES, Flow::Up), slab.take(BYTES, Flow::Down))
    else {
        return Err(CuStatus::OUT_OF_MEMORY);
    };
    source.write(0, &pattern);
    stream.upload(extent, &source)?;
    let landing = stream.download(target, extent)?;
    let began = Instant::now();
    while landing.fence().poll().is_none() {
        if began.elapsed() > PATIENCE {
            return Err(CuStatus::NOT_READY);
        }
        std::thread::yield_now();
    }
    match landing.fence().poll() {
        Some(CuStatus::SUCCESS) => Ok(landing.bytes() == Some(&pattern)),
        status => Err(status.unwrap_or(CuStatus::UNKNOWN)),
    }
}

fn advice(status: CuStatus) -> &'static str {
    match status {
        CuStatus::OUT_OF_MEMORY => "; does another process have its memory (nvidia-smi)?",
        CuStatus::DEVICE_UNAVAILABLE => {
            "; is its compute mode exclusive, and another process there (nvidia-smi -q -d COMPUTE)?"
        }
        CuStatus::ECC_UNCORRECTABLE => "; its memory is broken (nvidia-smi -q -d ECC)",
        CuStatus::OPERATING_SYSTEM => "; may this user open /dev/nvidia*?",
        _ => "; the kernel's log may say more (dmesg | grep NVRM)",
    }
}

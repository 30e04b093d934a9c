//! Whether a GPU works: asked before it is served, in a process of its own, since a broken driver may hang or crash.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use farcall_marshal::status::{CuResult, CuStatus};

use super::driver::{Context, Driver, Flow, Function, Launch, Module, PlainBlock, Slab, Stream};

/// What is sent there and back.
const BYTES: usize = 64 << 10;
/// How long that may take; the process is given longer, for its context.
const PATIENCE: Duration = Duration::from_secs(10);
const STREAM_NON_BLOCKING: u32 = 1;
/// What the kernel writes.
const VALUE: u32 = 0x5ca1_ab1e;
const KERNEL_NAME: &str = "farcall_check";
/// Writes `value` to `count` words from `at` on. For every driver and GPU that is served: compiled there.
const KERNEL: &str = "
.version 7.0
.target sm_52
.address_size 64
.visible .entry farcall_check(.param .u64 p_at, .param .u32 p_value, .param .u32 p_count)
{
    .reg .pred %p<1>;
    .reg .b32 %r<4>;
    .reg .b64 %d<3>;
    ld.param.u64 %d0, [p_at];
    ld.param.u32 %r0, [p_value];
    ld.param.u32 %r1, [p_count];
    cvta.to.global.u64 %d0, %d0;
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ntid.x;
NEXT:
    setp.ge.u32 %p0, %r2, %r1;
    @%p0 bra DONE;
    mul.wide.u32 %d1, %r2, 4;
    add.u64 %d2, %d0, %d1;
    st.global.u32 [%d2], %r0;
    add.u32 %r2, %r2, %r3;
    bra NEXT;
DONE:
    ret;
}
";

/// Makes a context on the GPU that had this UUID when the server was started, and sends a pattern there and back, which a kernel has
/// changed if it may run one. Blocks.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check(ordinal: u32, uuid: u128, runs_kernel: bool) -> Result<(), Broken> {
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
    let does = if runs_kernel {
        "it does not copy 64 KiB and run a kernel"
    } else {
        "it does not copy 64 KiB"
    };
    match echo(&context, runs_kernel) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Broken::new(
            "it gives other bytes back than were sent and written there".to_owned(),
        )),
        Err(CuStatus::NOT_READY) => Err(Broken::new(format!("{does} in {PATIENCE:?}"))),
        Err(status) => Err(failed(does, status)),
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

/// Whether the GPU gives back what it was sent, the first half written over by a kernel if one runs.
fn echo(context: &Arc<Context>, runs_kernel: bool) -> CuResult<bool> {
    let mut pattern: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
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
    // Lives until all is done.
    let module = if runs_kernel {
        let half = pattern.get_mut(..BYTES / 2).unwrap_or_default();
        half.as_chunks_mut().0.fill(VALUE.to_le_bytes());
        let module = Module::load(context, KERNEL.as_bytes()).map_err(|(status, _)| status)?;
        launch(&stream, &module.function(KERNEL_NAME)?, block.base())?;
        Some(module)
    } else {
        None
    };
    let landing = stream.download(target, extent)?;
    let began = Instant::now();
    while landing.fence().poll().is_none() {
        if began.elapsed() > PATIENCE {
            return Err(CuStatus::NOT_READY);
        }
        std::thread::yield_now();
    }
    drop(module);
    match landing.fence().poll() {
        Some(CuStatus::SUCCESS) => Ok(landing.bytes() == Some(&pattern)),
        status => Err(status.unwrap_or(CuStatus::UNKNOWN)),
    }
}

fn launch(stream: &Stream, function: &Function, at: u64) -> CuResult {
    let words = u32::try_from(BYTES / 2 / 4).unwrap_or(0);
    let params = [
        &at.to_le_bytes()[..],
        &VALUE.to_le_bytes(),
        &words.to_le_bytes(),
    ];
    let launch = Launch {
        grid: [1; 3],
        block: [256, 1, 1],
        shared_bytes: 0,
        cooperative: false,
        params: &params.concat(),
        attributes: &[],
    };
    stream.launch(function, &launch)
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

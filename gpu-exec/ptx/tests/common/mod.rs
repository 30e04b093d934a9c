//! A small device for tests: memory that kernels may touch, and launches on it.
//! Fenced unsafe module: raw reads and writes of the memory map.
#![allow(clippy::unwrap_used, dead_code, clippy::cast_possible_truncation)]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farcall_ptx::{
    Engine, Fault, Kernel, Launch, LaunchReport, LoadedModule, MemoryMap, Module, Region,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use parking_lot::RwLock;

/// Bytes of device memory; pages are only committed when touched.
const ARENA_BYTES: usize = 256 << 20;
/// The most that a kernel gets with one `malloc`.
const HEAP_BYTES_MAX: u64 = 1 << 20;

/// Device memory: an arena that lives as long as the test process.
pub(crate) struct Memory {
    base: u64,
    regions: RwLock<Vec<Region>>,
    /// What kernels have allocated and not released.
    pub(crate) heap: RwLock<Vec<u64>>,
}

// SAFETY: the arena is mapped readable and writable and never unmapped; this module touches it with raw
// pointers only.
unsafe impl MemoryMap for Memory {
    fn find(&self, addr: u64) -> Option<Region> {
        self.regions
            .read()
            .iter()
            .find(|r| r.start <= addr && addr < r.end)
            .copied()
    }

    fn allocate(&self, bytes: u64) -> Option<u64> {
        let start = (bytes <= HEAP_BYTES_MAX).then(|| self.take(bytes))?;
        self.heap.write().push(start);
        Some(start)
    }

    // Its pages stay what they are.
    fn release(&self, addr: u64) -> bool {
        let mut heap = self.heap.write();
        let at = heap.iter().position(|start| *start == addr);
        at.map(|at| heap.swap_remove(at)).is_some()
    }
}

impl Memory {
    fn new() -> Self {
        let length = NonZeroUsize::new(ARENA_BYTES).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mmap_anonymous(None, length, prot, flags) }.unwrap();
        Self {
            base: base.as_ptr().expose_provenance() as u64,
            regions: RwLock::default(),
            heap: RwLock::default(),
        }
    }

    fn take(&self, bytes: u64) -> u64 {
        let mut regions = self.regions.write();
        let start = regions
            .last()
            .map_or(self.base, |r| (r.end + 256).next_multiple_of(256));
        let end = start + bytes;
        assert!(end < self.base + ARENA_BYTES as u64, "out of device memory");
        regions.push(Region {
            start,
            end,
            writable: true,
        });
        start
    }
}

/// A device with memory and an engine.
pub(crate) struct Device {
    pub(crate) memory: Arc<Memory>,
    pub(crate) engine: Engine,
    pub(crate) cancel: Arc<AtomicBool>,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self {
            memory: Arc::new(Memory::new()),
            engine: Engine::new(4),
            cancel: Arc::default(),
        }
    }

    /// Allocates exactly `bytes`, with a gap behind them.
    pub(crate) fn alloc(&self, bytes: usize) -> u64 {
        self.memory.take(bytes as u64)
    }

    /// Makes the allocation at `addr` read-only to kernels.
    pub(crate) fn protect(&self, addr: u64) {
        let mut regions = self.memory.regions.write();
        regions
            .iter_mut()
            .find(|r| r.start == addr)
            .unwrap()
            .writable = false;
    }

    pub(crate) fn write_bytes(&self, addr: u64, bytes: &[u8]) {
        let region = self.memory.find(addr).unwrap();
        assert!(addr + bytes.len() as u64 <= region.end);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(addr as usize);
        // SAFETY: the range was just found inside an allocation of the arena; no launch runs on this thread.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    pub(crate) fn read_bytes(&self, addr: u64, count: usize) -> Vec<u8> {
        let region = self.memory.find(addr).unwrap();
        assert!(addr + count as u64 <= region.end);
        let from = std::ptr::with_exposed_provenance::<u8>(addr as usize);
        let mut bytes = vec![0; count];
        // SAFETY: the range was just found inside an allocation of the arena; no launch runs on this thread.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count) };
        bytes
    }

    pub(crate) fn upload<T: Plain>(&self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
        let addr = self.alloc(bytes.len());
        self.write_bytes(addr, &bytes);
        addr
    }

    pub(crate) fn download<T: Plain>(&self, addr: u64, count: usize) -> Vec<T> {
        self.read_bytes(addr, count * size_of::<T>())
            .chunks_exact(size_of::<T>())
            .map(T::from_bytes)
            .collect()
    }

    /// Parses and places a module.
    pub(crate) fn load(&self, text: &str) -> LoadedModule {
        let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
        let loaded = LoadedModule::load(Arc::new(module), &mut |g| {
            Some(self.alloc(usize::try_from(g.bytes.max(1)).unwrap()))
        });
        let loaded = loaded.unwrap();
        for (addr, bytes) in loaded.images() {
            self.write_bytes(addr, bytes);
        }
        loaded
    }

    pub(crate) fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        args: &Args,
    ) -> Result<LaunchReport, Box<Fault>> {
        self.launch_with(kernel, grid, block, args, 0, false)
    }

    pub(crate) fn launch_with(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        args: &Args,
        dynamic_shared_bytes: u32,
        cooperative: bool,
    ) -> Result<LaunchReport, Box<Fault>> {
        self.engine.launch(&Launch {
            kernel,
            grid,
            block,
            dynamic_shared_bytes,
            params: &args.0,
            memory: Arc::clone(&self.memory) as Arc<dyn MemoryMap>,
            cancel: Arc::clone(&self.cancel),
            cooperative,
        })
    }

    pub(crate) fn raise_cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// A parameter image, each argument aligned to its size.
#[derive(Default, Clone)]
pub(crate) struct Args(pub(crate) Vec<u8>);

impl Args {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn arg<T: Plain>(mut self, value: T) -> Self {
        let bytes = value.bytes();
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend_from_slice(&bytes);
        self
    }
}

/// Numbers that travel to the device.
pub(crate) trait Plain: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty)*) => {$(
        impl Plain for $t {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
plain!(u8 u16 u32 u64 i8 i16 i32 i64 f32 f64);

//! Protection domains and registered memory.

use std::ffi::c_int;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::device::Device;
use super::{abi, last_error};
use crate::stream::verbs::error::VerbsError;
use crate::sys::mirror::Mirror;

/// What queue pairs and registered memory belong to.
pub(crate) struct Domain {
    pub(super) pd: NonNull<abi::ProtectionDomain>,
    pub(crate) device: Arc<Device>,
    registered_bytes: AtomicUsize,
}

// SAFETY: libibverbs' objects may be used from every thread; freed once, by the last owner.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    pub(crate) fn new(device: Arc<Device>) -> Result<Arc<Self>, VerbsError> {
        // SAFETY: an open context.
        let pd = unsafe { (device.library.ibv_alloc_pd)(device.context.as_ptr()) };
        let pd = NonNull::new(pd).ok_or_else(|| last_error("ibv_alloc_pd"))?;
        Ok(Arc::new(Self {
            pd,
            device,
            registered_bytes: AtomicUsize::new(0),
        }))
    }

    /// Bytes of addresses that are registered. Memory that is mapped twice counts twice, as it does for the limit of locked memory.
    pub(crate) fn registered_bytes(&self) -> usize {
        self.registered_bytes.load(Relaxed)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if self.device.is_ours() {
            // SAFETY: allocated in `new`; everything made of it held an Arc of self.
            unsafe { (self.device.library.ibv_dealloc_pd)(self.pd.as_ptr()) };
        }
    }
}

/// Memory of somebody else's that is registered.
pub(crate) struct Registration {
    mr: NonNull<abi::MemoryRegion>,
    bytes: usize,
    domain: Arc<Domain>,
}

// SAFETY: the registration is freed once, and only its keys are read.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `range`. `remote`: the peer may read and write it. The device pins the pages; where they
    /// are unmapped, it goes on using the old pages, which nobody else has.
    ///
    /// # Errors
    /// [`VerbsError::MemoryLock`], or the verb's: for example where nothing is mapped there.
    pub(crate) fn new(
        domain: &Arc<Domain>,
        range: &Range<usize>,
        remote: bool,
    ) -> Result<Self, VerbsError> {
        let access = if remote {
            abi::ACCESS_REMOTE_WRITE | abi::ACCESS_REMOTE_READ
        } else {
            0
        };
        let at = std::ptr::with_exposed_provenance_mut(range.start);
        Self::with(domain, at, range.len(), access)
    }

    /// Registers memory, whether it is mapped or not: the kernel looks.
    fn with(
        domain: &Arc<Domain>,
        at: *mut u8,
        bytes: usize,
        access: c_int,
    ) -> Result<Self, VerbsError> {
        let access = abi::ACCESS_LOCAL_WRITE | access;
        // SAFETY: a live domain. The call itself touches no byte there; the kernel checks the range. Who may let
        // the device write there is the business of those who make registrations.
        let mr = unsafe {
            (domain.device.library.ibv_reg_mr)(domain.pd.as_ptr(), at.cast(), bytes, access)
        };
        let mr = NonNull::new(mr).ok_or_else(|| match last_error("ibv_reg_mr") {
            VerbsError::Verb { errno, .. } if errno == libc::ENOMEM => {
                VerbsError::MemoryLock { bytes }
            }
            other => other,
        })?;
        domain.registered_bytes.fetch_add(bytes, Relaxed);
        Ok(Self {
            mr,
            bytes,
            domain: Arc::clone(domain),
        })
    }

    pub(crate) fn lkey(&self) -> u32 {
        // SAFETY: registered as long as self lives; the field never changes.
        unsafe { (*self.mr.as_ptr()).lkey }
    }

    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.mr.as_ptr()).rkey }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.domain.device.is_ours() {
            // SAFETY: registered in `with`, once; the device refuses its keys from then on.
            unsafe { (self.domain.device.library.ibv_dereg_mr)(self.mr.as_ptr()) };
        }
        self.domain.registered_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// A ring that the device reads and writes, both of its mappings, so that runs across its end
/// are contiguous for the device too. Fields are dropped in order: the registration before what it is of.
pub(crate) struct Region {
    registration: Registration,
    ring: Mirror,
}

impl Region {
    /// Allocates and registers a ring of `bytes`. `remote`: the peer may write to it.
    ///
    /// # Errors
    /// [`VerbsError::MemoryLock`] where the limit of locked memory is too low.
    pub(crate) fn new(
        domain: &Arc<Domain>,
        bytes: usize,
        remote: bool,
    ) -> Result<Self, VerbsError> {
        let access = if remote { abi::ACCESS_REMOTE_WRITE } else { 0 };
        Self::with(domain, bytes, 2 * bytes, access)
    }

    /// Allocates and registers staging of `bytes`, without the second mapping: what the device is
    /// given of it must not run across its end.
    ///
    /// # Errors
    /// As [`Region::new`].
    pub(crate) fn staging(domain: &Arc<Domain>, bytes: usize) -> Result<Self, VerbsError> {
        Self::with(domain, bytes, bytes, 0)
    }

    fn with(
        domain: &Arc<Domain>,
        bytes: usize,
        registered: usize,
        access: c_int,
    ) -> Result<Self, VerbsError> {
        let ring = Mirror::new(bytes).map_err(|error| VerbsError::System(error.to_string()))?;
        // Both mappings of the ring at most, which stay mapped as long as the registration.
        let registration = Registration::with(domain, ring.at(0), registered, access)?;
        Ok(Self { registration, ring })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Where position `pos` lies, for the device.
    pub(crate) fn address(&self, pos: u64) -> u64 {
        self.ring.at(pos).expose_provenance() as u64
    }

    pub(crate) fn lkey(&self) -> u32 {
        self.registration.lkey()
    }

    pub(crate) fn rkey(&self) -> u32 {
        self.registration.rkey()
    }

    /// Copies bytes in, to be sent from here. One thread at a time, and not over bytes that the
    /// device may still have to send for the first time.
    #[inline]
    pub(crate) fn write(&self, pos: u64, bytes: &[u8]) {
        assert!(bytes.len() <= self.ring.bytes());
        let to = self.ring.at(pos);
        // SAFETY: mapped for a whole ring from `pos` on. A race with the device or the peer
        // makes garbage on the wire or here, which its reader checks; no reference into the
        // ring is ever formed.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies bytes out, once. The peer may write there meanwhile: then the copy is garbage,
    /// which its reader finds out like any other garbage from the wire.
    #[inline]
    pub(crate) fn read(&self, pos: u64, to: &mut [std::mem::MaybeUninit<u8>]) {
        assert!(to.len() <= self.ring.bytes());
        let from = self.ring.at(pos).cast_const().cast();
        // SAFETY: mapped for a whole ring from `pos` on; `to` is ours. No reference into the
        // shared bytes is formed; every bit pattern is a valid byte.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }
}

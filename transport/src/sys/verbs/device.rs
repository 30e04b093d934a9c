//! Devices, their ports, and what happens to them.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::library::Library;
use super::{abi, check, last_error};
use crate::stream::verbs::error::VerbsError;
use crate::sys::fork::ForkMark;
use crate::sys::socket;

/// An open device.
pub(crate) struct Device {
    pub(super) library: &'static Library,
    pub(super) context: NonNull<abi::Context>,
    name: String,
    mark: ForkMark,
}

// SAFETY: libibverbs' objects may be used from every thread; the context is closed once, by
// the last owner.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// What a port can do now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub(crate) active: bool,
    pub(crate) ethernet: bool,
    /// As `enum ibv_mtu`: 1 for 256 bytes, 5 for 4096.
    pub(crate) mtu: u8,
    pub(crate) lid: u16,
}

/// What a queue pair of a device may have at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Work requests of a queue, and half the entries of a completion queue.
    pub(crate) depth: u32,
    /// RDMA reads under way that it asked for itself, and that the peer asked for.
    pub(crate) reads_asked: u8,
    pub(crate) reads_served: u8,
}

/// More reads under way than this bring nothing: each is a large chunk.
const READS_MAX: c_int = 16;

/// Something that ended the use of a device or a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AsyncCause {
    Queue,
    Port,
    Device,
}

/// Loads the library and its providers, where that has not been done.
///
/// # Errors
/// [`VerbsError::Library`], [`VerbsError::NoDevice`].
pub(crate) fn preload() -> Result<(), VerbsError> {
    let library = Library::get()?;
    let mut count: c_int = 0;
    // SAFETY: `count` is writable.
    let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
    if list.is_null() {
        return Err(VerbsError::NoDevice);
    }
    // SAFETY: the list of above, freed once; nothing points into it.
    unsafe { (library.ibv_free_device_list)(list) };
    Ok(())
}

impl Device {
    /// Opens the device of this name. Loads the library on first use.
    ///
    /// # Errors
    /// [`VerbsError::Library`], [`VerbsError::UnknownDevice`], or the verb's.
    pub(crate) fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let library = Library::get()?;
        let mut count: c_int = 0;
        // SAFETY: `count` is writable.
        let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(VerbsError::NoDevice);
        }
        let opened = (0..usize::try_from(count).unwrap_or(0)).find_map(|n| {
            // SAFETY: the list has `count` entries.
            let entry = unsafe { *list.wrapping_add(n) };
            (entry_name(library, entry) == name).then(|| open_entry(library, entry))
        });
        // SAFETY: the list of above, freed once; open contexts outlive it.
        unsafe { (library.ibv_free_device_list)(list) };
        let context = opened.ok_or_else(|| VerbsError::UnknownDevice(name.to_owned()))??;
        let device = Self {
            library,
            context,
            name: name.to_owned(),
            mark: ForkMark::current(),
        };
        // SAFETY: open for as long as `device` owns the context.
        let events = unsafe { BorrowedFd::borrow_raw(device.async_fd()) };
        socket::set_nonblocking(events).map_err(|error| VerbsError::System(error.to_string()))?;
        Ok(Arc::new(device))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// False in a forked child, which must not touch what the parent's device holds.
    pub(crate) fn is_ours(&self) -> bool {
        self.mark.is_set()
    }

    /// What a queue pair may have.
    pub(crate) fn bounds(&self) -> Result<Bounds, VerbsError> {
        let mut attributes = MaybeUninit::<abi::DeviceAttributes>::zeroed();
        // SAFETY: an open context and room for the attributes.
        let result = unsafe {
            (self.library.ibv_query_device)(self.context.as_ptr(), attributes.as_mut_ptr())
        };
        check("ibv_query_device", result)?;
        // SAFETY: zeroed, which is valid, then filled.
        let attributes = unsafe { attributes.assume_init() };
        let most = attributes.max_qp_wr.min(attributes.max_cqe / 2);
        let reads = |count: c_int| u8::try_from(count.clamp(0, READS_MAX)).unwrap_or(0);
        Ok(Bounds {
            depth: u32::try_from(most).unwrap_or(0),
            reads_asked: reads(attributes.max_qp_init_rd_atom),
            reads_served: reads(attributes.max_qp_rd_atom),
        })
    }

    pub(crate) fn port(&self, number: u8) -> Result<Port, VerbsError> {
        let mut port = abi::PortAttributes::default();
        // SAFETY: an open context and room for the attributes, with spare.
        let result =
            unsafe { (self.library.ibv_query_port)(self.context.as_ptr(), number, &raw mut port) };
        check("ibv_query_port", result)?;
        Ok(Port {
            active: port.state == abi::PORT_ACTIVE,
            ethernet: port.link_layer == abi::LINK_LAYER_ETHERNET,
            mtu: u8::try_from(port.active_mtu.clamp(1, 5)).unwrap_or(1),
            lid: port.lid,
        })
    }

    /// Readable when [`Device::next_event`] has something.
    pub(crate) fn async_fd(&self) -> RawFd {
        // SAFETY: open as long as self lives; the field never changes.
        unsafe { (*self.context.as_ptr()).async_fd }
    }

    /// Takes one event that means the end of the device, the port or a queue pair. Does not block.
    pub(crate) fn next_event(&self) -> Option<AsyncCause> {
        loop {
            let mut event = abi::AsyncEvent {
                element: 0,
                event_type: 0,
            };
            let context = self.context.as_ptr();
            // SAFETY: an open context whose descriptor does not block, and room for an event.
            if unsafe { (self.library.ibv_get_async_event)(context, &raw mut event) } != 0 {
                return None;
            }
            // SAFETY: the event that was just got, once.
            unsafe { (self.library.ibv_ack_async_event)(&raw mut event) };
            match event.event_type {
                abi::EVENT_CQ_ERR..=abi::EVENT_QP_ACCESS_ERR => return Some(AsyncCause::Queue),
                abi::EVENT_PORT_ERR => return Some(AsyncCause::Port),
                abi::EVENT_DEVICE_FATAL => return Some(AsyncCause::Device),
                _ => {}
            }
        }
    }

    /// In a forked child: lets go of the descriptors. Async-signal-safe.
    pub(crate) fn abandon(&self) {
        // SAFETY: the context stays as it was in the parent; only fields are read.
        let command = unsafe { (*self.context.as_ptr()).cmd_fd };
        socket::abandon(command);
        socket::abandon(self.async_fd());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: opened in `open`; everything made of it held an Arc of self.
            unsafe { (self.library.ibv_close_device)(self.context.as_ptr()) };
        }
    }
}

fn open_entry(
    library: &Library,
    entry: *mut abi::DeviceEntry,
) -> Result<NonNull<abi::Context>, VerbsError> {
    // SAFETY: an entry of a list that is not freed yet.
    let context = unsafe { (library.ibv_open_device)(entry) };
    NonNull::new(context).ok_or_else(|| last_error("ibv_open_device"))
}

fn entry_name(library: &Library, entry: *mut abi::DeviceEntry) -> String {
    // SAFETY: an entry of a list that is not freed yet.
    let name = unsafe { (library.ibv_get_device_name)(entry) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: a C string inside the entry.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

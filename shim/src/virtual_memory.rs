//! Virtual memory management: reserved addresses, physical memory, and what is mapped where. All of it is client memory;
//! the server hears of a mapping when something may use it, which is when its access is set.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemCreate, CuMemMap, CuMemRelease, CuMemSetAccess, CuMemUnmap};
use parking_lot::Mutex;

use crate::abi::CUmemAllocationProp;
use crate::context::{self, Context};
use crate::handle::{Kind, Table};
use crate::memory::{self, Allocation, AllocationKind};
use crate::process::{Device, process};
use crate::session::Session;

/// Physical memory comes in pieces of this size, mapped at multiples of it (every NVIDIA GPU since Pascal).
pub(crate) const GRANULARITY: u64 = 2 << 20;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: u32 = 3;

/// Everything that the process has reserved and mapped.
pub(crate) struct VirtualMemory {
    physicals: Table<Physical>,
    space: Mutex<Space>,
}

/// A piece of physical memory.
pub(crate) struct Physical {
    pub(crate) device: &'static Device,
    pub(crate) properties: CUmemAllocationProp,
    handle: u64,
    bytes: u64,
    /// Its number on the server.
    id: u64,
    uses: Mutex<Uses>,
}

#[derive(Default)]
struct Uses {
    /// Handles that the program has to release.
    retained: u32,
    mapped: u32,
}

/// Addresses that the program has taken.
#[derive(Clone, Copy)]
struct Reserved {
    bytes: u64,
    /// Whether anything was ever mapped there.
    was_mapped: bool,
}

#[derive(Default)]
struct Space {
    /// Reserved ranges by start.
    reserved: BTreeMap<u64, Reserved>,
    mapped: BTreeMap<u64, Mapping>,
}

struct Mapping {
    bytes: u64,
    offset: u64,
    physical: Arc<Physical>,
    /// Access of each device that has any, by the program's ordinal.
    access: Vec<(u32, u32)>,
    is_told: bool,
}

impl VirtualMemory {
    pub(crate) fn new() -> Self {
        Self {
            physicals: Table::new(Kind::Physical),
            space: Mutex::default(),
        }
    }

    /// The physical memory with this handle.
    pub(crate) fn physical(&self, handle: u64) -> CuResult<Arc<Physical>> {
        self.physicals
            .get(handle)
            .map_err(|_| CuStatus::INVALID_VALUE)
    }

    /// Takes addresses for the program.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: there are none.
    pub(crate) fn reserve(&self, bytes: u64, align: u64) -> CuResult<u64> {
        let session = session()?;
        let start = session
            .device_memory
            .lock()
            .reserve(bytes, align.max(GRANULARITY), |stamp| {
                session.has_finished(stamp)
            })
            .ok_or(CuStatus::OUT_OF_MEMORY)?;
        let reserved = Reserved {
            bytes,
            was_mapped: false,
        };
        self.space.lock().reserved.insert(start, reserved);
        Ok(start)
    }

    /// Gives a whole reservation back.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not what was reserved, or something is mapped there.
    pub(crate) fn unreserve(&self, start: u64, bytes: u64) -> CuResult {
        let mut space = self.space.lock();
        let is_used = space
            .mapped
            .range(start..start.saturating_add(bytes))
            .next();
        let reserved = space
            .reserved
            .get(&start)
            .copied()
            .filter(|reserved| reserved.bytes == bytes && is_used.is_none())
            .ok_or(CuStatus::INVALID_VALUE)?;
        space.reserved.remove(&start);
        let session = session_at(start)?;
        // What the device never knew can be given to the next at once.
        let stamp = if reserved.was_mapped {
            session.stamp()
        } else {
            0
        };
        session.device_memory.lock().unreserve(start, bytes, stamp);
        Ok(())
    }

    /// Makes physical memory; its handle.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: over the device's limit.
    pub(crate) fn create(
        &self,
        device: &'static Device,
        bytes: u64,
        properties: CUmemAllocationProp,
    ) -> CuResult<u64> {
        let context = context::of_device(device)?;
        memory::charge(device, bytes)?;
        let id = device.session.new_id();
        let record = CuMemCreate {
            handle: id,
            bytes,
            device: device.index,
        };
        device
            .session
            .send(context.id, &record)
            .inspect_err(|_| memory::uncharge(device, bytes))?;
        let handle = self.physicals.reserve();
        let physical = Physical {
            device,
            properties,
            handle,
            bytes,
            id,
            uses: Mutex::new(Uses {
                retained: 1,
                mapped: 0,
            }),
        };
        self.physicals.insert(handle, Arc::new(physical));
        Ok(handle)
    }

    /// One use of a handle less.
    ///
    /// # Errors
    /// `INVALID_VALUE`: no such handle.
    pub(crate) fn release(&self, handle: u64) -> CuResult {
        let physical = self.physical(handle)?;
        {
            let mut uses = physical.uses.lock();
            uses.retained = uses
                .retained
                .checked_sub(1)
                .ok_or(CuStatus::INVALID_VALUE)?;
        }
        self.end_unused(&physical)
    }

    /// The handle of what is mapped at an address, with one use more.
    ///
    /// # Errors
    /// `INVALID_VALUE`: nothing is.
    pub(crate) fn retain_at(&self, address: u64) -> CuResult<u64> {
        let space = self.space.lock();
        let mapping = space.find(address).ok_or(CuStatus::INVALID_VALUE)?;
        mapping.physical.uses.lock().retained += 1;
        Ok(mapping.physical.handle)
    }

    /// Maps physical memory; nothing may use it before its access is set.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not inside one reservation, something is there, or the memory is shorter.
    pub(crate) fn map(&self, start: u64, bytes: u64, offset: u64, handle: u64) -> CuResult {
        let physical = self.physical(handle)?;
        let is_whole = [start, bytes, offset]
            .iter()
            .all(|value| value.is_multiple_of(GRANULARITY));
        let fits = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= physical.bytes);
        let mut space = self.space.lock();
        if bytes == 0 || !is_whole || !fits || !space.is_free(start, bytes) {
            return Err(CuStatus::INVALID_VALUE);
        }
        check_server(start, physical.device)?;
        physical.uses.lock().mapped += 1;
        let mapping = Mapping {
            bytes,
            offset,
            physical,
            access: Vec::new(),
            is_told: false,
        };
        if let Some((_, reserved)) = space.reserved.range_mut(..=start).next_back() {
            reserved.was_mapped = true;
        }
        space.mapped.insert(start, mapping);
        Ok(())
    }

    /// Unmaps all that lies in a range, which must be whole mappings.
    ///
    /// # Errors
    /// `INVALID_VALUE`: it is not.
    pub(crate) fn unmap(&self, start: u64, bytes: u64) -> CuResult {
        let process = process()?;
        let mut space = self.space.lock();
        let tiles = space.tiles(start, bytes)?;
        let mut gone = Vec::with_capacity(tiles.len());
        for at in tiles {
            let Some(mapping) = space.mapped.remove(&at) else {
                continue;
            };
            if mapping.is_told {
                let _ = process.memory.remove(at, &[AllocationKind::Mapped]);
                let context = context::of_device(mapping.physical.device)?;
                let record = CuMemUnmap {
                    addr: at,
                    bytes: mapping.bytes,
                };
                context.session().stamp();
                context.session().send(context.id, &record)?;
            }
            gone.push(mapping.physical);
        }
        drop(space);
        for physical in gone {
            physical.uses.lock().mapped -= 1;
            self.end_unused(&physical)?;
        }
        Ok(())
    }

    /// Sets what a device may do with a range of whole mappings.
    ///
    /// # Errors
    /// `INVALID_VALUE`: it is not.
    pub(crate) fn set_access(
        &self,
        start: u64,
        bytes: u64,
        device: &'static Device,
        access: u32,
    ) -> CuResult {
        let mut space = self.space.lock();
        for at in space.tiles(start, bytes)? {
            if let Some(mapping) = space.mapped.get_mut(&at) {
                mapping.set_access(at, device, access)?;
            }
        }
        Ok(())
    }

    /// What a device may do at an address.
    ///
    /// # Errors
    /// `INVALID_VALUE`: nothing is mapped there.
    pub(crate) fn access(&self, address: u64, device: u32) -> CuResult<u32> {
        let space = self.space.lock();
        let mapping = space.find(address).ok_or(CuStatus::INVALID_VALUE)?;
        Ok(mapping.access_of(device))
    }

    /// Tells the server that nobody can use the memory any more.
    fn end_unused(&self, physical: &Physical) -> CuResult {
        let uses = physical.uses.lock();
        if uses.retained > 0 || uses.mapped > 0 {
            return Ok(());
        }
        drop(uses);
        if self.physicals.remove(physical.handle).is_err() {
            return Ok(());
        }
        let context = context::of_device(physical.device)?;
        memory::uncharge(physical.device, physical.bytes);
        let record = CuMemRelease {
            handle: physical.id,
        };
        context.session().send(context.id, &record)
    }
}

impl Space {
    fn find(&self, address: u64) -> Option<&Mapping> {
        let (start, mapping) = self.mapped.range(..=address).next_back()?;
        (address - start < mapping.bytes).then_some(mapping)
    }

    /// Whether a range lies in one reservation and nothing is mapped there.
    fn is_free(&self, start: u64, bytes: u64) -> bool {
        let Some(end) = start.checked_add(bytes) else {
            return false;
        };
        let is_reserved = self
            .reserved
            .range(..=start)
            .next_back()
            .is_some_and(|(base, reserved)| end <= base + reserved.bytes);
        let before = self.mapped.range(..end).next_back();
        is_reserved && before.is_none_or(|(at, mapping)| at + mapping.bytes <= start)
    }

    /// Starts of the mappings that are exactly this range.
    fn tiles(&self, start: u64, bytes: u64) -> CuResult<Vec<u64>> {
        let end = start.checked_add(bytes).ok_or(CuStatus::INVALID_VALUE)?;
        let (mut reached, mut tiles) = (start, Vec::new());
        for (at, mapping) in self.mapped.range(start..end) {
            if *at != reached {
                break;
            }
            reached = at + mapping.bytes;
            tiles.push(*at);
        }
        if bytes > 0 && reached == end {
            Ok(tiles)
        } else {
            Err(CuStatus::INVALID_VALUE)
        }
    }
}

impl Mapping {
    fn access_of(&self, device: u32) -> u32 {
        self.access
            .iter()
            .find(|(ordinal, _)| *ordinal == device)
            .map_or(0, |(_, access)| *access)
    }

    fn set_access(&mut self, at: u64, device: &'static Device, access: u32) -> CuResult {
        if self.access_of(device.ordinal) == access {
            return Ok(());
        }
        check_server(at, device)?;
        let owner = self.physical.device;
        let context = context::of_device(owner)?;
        let is_own = device.ordinal == owner.ordinal;
        if !self.is_told {
            let record = CuMemMap {
                addr: at,
                bytes: self.bytes,
                offset: self.offset,
                handle: self.physical.id,
                access: if is_own { access } else { 0 },
            };
            context.session().send(context.id, &record)?;
            self.is_told = true;
            process()?.memory.insert(self.allocation(at, context));
        }
        if !is_own || !self.access.is_empty() {
            let record = CuMemSetAccess {
                addr: at,
                bytes: self.bytes,
                device: device.index,
                access,
            };
            context.session().send(context.id, &record)?;
        }
        self.access
            .retain(|(ordinal, _)| *ordinal != device.ordinal);
        self.access.push((device.ordinal, access));
        Ok(())
    }

    fn allocation(&self, start: u64, context: &'static Context) -> Allocation {
        Allocation {
            start,
            bytes: self.bytes,
            reserved_bytes: self.bytes,
            kind: AllocationKind::Mapped,
            context,
            flags: READ_WRITE,
            serial: 0,
            pool: 0,
            twin: 0,
        }
    }
}

/// The session whose addresses are given: that of the current context, as each server has a range for all its devices.
fn session() -> CuResult<&'static Session> {
    let session = match context::current() {
        Ok(context) => Some(context.session()),
        Err(_) => process()?.sessions.first().copied(),
    };
    session
        .filter(|session| !session.places_memory())
        .ok_or(CuStatus::NOT_SUPPORTED)
}

/// The session that an address belongs to.
fn session_at(address: u64) -> CuResult<&'static Session> {
    let sessions = &process()?.sessions;
    let found = sessions
        .iter()
        .find(|session| session.device_range.contains(address));
    found.copied().ok_or(CuStatus::INVALID_VALUE)
}

/// Addresses of one server are memory of its own devices only.
fn check_server(address: u64, device: &Device) -> CuResult {
    if std::ptr::eq(session_at(address)?, device.session) {
        return Ok(());
    }
    log::error!("addresses that were reserved for one server's devices cannot be another's");
    Err(CuStatus::NOT_SUPPORTED)
}

//! Every bound that keeps one session from exhausting its executor or the server.
#![forbid(unsafe_code)]

/// Devices of one server.
pub(crate) const DEVICES_MAX: usize = 16;
/// Sessions of one server: slots of the ledger.
pub(crate) const SESSIONS_MAX: usize = 1024;
/// Hello that the application of a client may send.
pub(crate) const OPEN_BYTES_MAX: usize = 64 << 10;
/// Contexts of a session.
pub(crate) const CONTEXTS_MAX: usize = 256;
/// Streams of a session, hidden ones not counted.
pub(crate) const STREAMS_MAX: usize = 4096;
/// Events of a session.
pub(crate) const EVENTS_MAX: usize = 1 << 20;
/// Modules of a session.
pub(crate) const MODULES_MAX: usize = 1 << 16;
/// Functions of a session.
pub(crate) const FUNCTIONS_MAX: usize = 1 << 20;
/// Executable graphs of a session.
pub(crate) const GRAPHS_MAX: usize = 1 << 14;
/// Nodes of one graph.
pub(crate) const GRAPH_NODES_MAX: usize = 1 << 18;
/// Bytes of one graph's nodes.
pub(crate) const GRAPH_BYTES_MAX: usize = 64 << 20;
/// Allocations of a session.
pub(crate) const BLOCKS_MAX: usize = 1 << 20;
/// Pieces of physical memory that a session maps itself.
pub(crate) const PHYSICALS_MAX: usize = 1 << 16;
/// Operations that may wait in the streams of a session; more make the loop wait for the device.
pub(crate) const QUEUED_MAX: usize = 1 << 16;
/// Bytes that queued operations may hold.
pub(crate) const QUEUED_BYTES_MAX: usize = 64 << 20;
/// Bulk data received ahead of its stream.
pub(crate) const STAGING_BYTES_MAX: usize = 64 << 20;
/// Module loads that wait for the loader.
pub(crate) const LOADS_MAX: usize = 1024;
/// Image of one module, expanded.
pub(crate) const IMAGE_BYTES_MAX: usize = 1 << 30;
/// Most bytes of a bulk transfer that are received to be thrown away.
pub(crate) const DISCARD_BYTES_MAX: u64 = 1 << 30;
/// Hashes of cached modules in the welcome.
pub(crate) const CACHED_MODULES_MAX: usize = 4096;
/// Stack of a thread that does bookkeeping.
pub(crate) const STACK_BYTES: usize = 256 << 10;
/// Inventory questions being answered at once.
pub(crate) const INVENTORIES_MAX: usize = 16;
/// Allocations are multiples of this, and begin at them.
pub(crate) const ALLOCATION_GRAIN: u64 = 512;
/// Memory is mapped and given back in pieces of this size.
pub(crate) const MAPPING_GRAIN: u64 = 64 << 10;
/// Least address space of a session.
pub(crate) const RANGE_BYTES_MIN: u64 = 16 << 20;
/// Most address space of a session.
pub(crate) const RANGE_BYTES_MAX: u64 = 16 << 40;

//! The fenced modules: memory at given addresses, memory shared between processes, descriptors sent
//! over sockets. Everything they export is safe or states what it needs.

pub(crate) mod env;
pub(crate) mod fds;
pub(crate) mod memfd;
pub(crate) mod raw;
pub(crate) mod reserve;
pub(crate) mod shared;
pub(crate) mod staging;

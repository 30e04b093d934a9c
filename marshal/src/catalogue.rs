//! Every function of cuda.h: number, class, versions, and what `cuGetProcAddress` resolves to.
//!
//! Source: `catalogue/driver.cat`, made from cudarc's bindings (CUDA 13.4) and a map measured with a
//! driver's `cuGetProcAddress`.
#![forbid(unsafe_code)]

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// From client memory, nothing is sent.
    Local,
    /// Asked once, then from client memory.
    Cached,
    /// Sent, nobody waits.
    OneWay,
    /// Sent, the caller waits for the reply.
    Blocking,
    /// Cannot be had over a network, or does not exist any more: `CUDA_ERROR_NOT_SUPPORTED`.
    Refused,
}

impl Class {
    /// The catalogue's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Cached => "cached",
            Self::OneWay => "one-way",
            Self::Blocking => "blocking",
            Self::Refused => "refused",
        }
    }
}

/// Which stream "stream 0" means for a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamMode {
    /// The legacy default stream.
    Legacy,
    /// The per-thread default stream (`_ptsz`: the call takes a stream).
    PerThread,
    /// The per-thread default stream (`_ptds`: the call has no stream argument).
    PerThreadSync,
}

impl StreamMode {
    /// Whether stream 0 means the calling thread's own stream.
    #[must_use]
    pub const fn is_per_thread(self) -> bool {
        !matches!(self, Self::Legacy)
    }
}

/// One driver call as the catalogue declares it.
#[derive(Debug)]
pub struct CallInfo {
    /// Permanent number; `CALLS[number - 1]`.
    pub number: u16,
    /// Exported symbol.
    pub symbol: &'static str,
    /// Name that `cuGetProcAddress` is asked for.
    pub base: &'static str,
    /// CUDA version in which the symbol appeared (12040 = 12.4).
    pub since: u32,
    /// How it is answered.
    pub class: Class,
    /// Whether the shim implements it; if not it returns `CUDA_ERROR_NOT_SUPPORTED`.
    pub implemented: bool,
    /// Why it is refused; empty where it is not.
    pub refusal: &'static str,
    /// C arguments as (name, type); `None` where no public header gives them.
    pub args: Option<&'static [(&'static str, &'static str)]>,
}

/// One row of what `cuGetProcAddress` resolves.
#[derive(Debug)]
pub struct ProcAddress {
    /// Name asked for.
    pub base: &'static str,
    /// First CUDA version that gets this symbol.
    pub since: u32,
    /// Stream mode of the symbol.
    pub mode: StreamMode,
    /// Exported symbol.
    pub symbol: &'static str,
}

/// Answer to a name that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The exported symbol.
    Symbol(&'static str),
    /// No such name.
    NotFound,
    /// The name exists, but only from a later version on.
    VersionTooOld,
}

/// The call with this number.
#[must_use]
pub fn call(number: u16) -> Option<&'static CallInfo> {
    CALLS.get(usize::from(number).checked_sub(1)?)
}

/// What `cuGetProcAddress(base, version, flags)` resolves to: the newest symbol not newer than
/// `version`, of the per-thread variant if that is asked for and exists.
#[must_use]
pub fn proc_address(base: &str, version: u32, per_thread: bool) -> Lookup {
    let first = PROC_ADDRESSES.partition_point(|row| row.base < base);
    let rows = PROC_ADDRESSES
        .iter()
        .skip(first)
        .take_while(|row| row.base == base);
    let newest = |per_thread: bool| {
        rows.clone()
            .filter(|row| row.mode.is_per_thread() == per_thread && row.since <= version)
            .max_by_key(|row| row.since)
    };
    let found = if per_thread {
        newest(true).or_else(|| newest(false))
    } else {
        newest(false)
    };
    match found {
        Some(row) => Lookup::Symbol(row.symbol),
        None if rows.clone().next().is_some() => Lookup::VersionTooOld,
        None => Lookup::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::{CALLS, Lookup, PROC_ADDRESSES, call, proc_address};

    #[test]
    fn numbers_are_positions() {
        for (index, info) in CALLS.iter().enumerate() {
            assert_eq!(usize::from(info.number), index + 1, "{}", info.symbol);
        }
        assert_eq!(call(0).map(|c| c.number), None);
    }

    #[test]
    fn newest_symbol_not_newer_than_the_version() {
        let at = |version| proc_address("cuCtxGetDevice", version, false);
        assert_eq!(at(12090), Lookup::Symbol("cuCtxGetDevice"));
        assert_eq!(at(13000), Lookup::Symbol("cuCtxGetDevice_v2"));
        assert_eq!(at(1000), Lookup::VersionTooOld);
        assert_eq!(proc_address("cuNoSuchCall", 13000, false), Lookup::NotFound);
    }

    #[test]
    fn per_thread_variant_where_there_is_one() {
        assert_eq!(
            proc_address("cuMemcpy", 12000, true),
            Lookup::Symbol("cuMemcpy_ptds")
        );
        assert_eq!(
            proc_address("cuCtxGetDevice", 12000, true),
            Lookup::Symbol("cuCtxGetDevice")
        );
    }

    #[test]
    fn rows_are_sorted_for_the_search() {
        assert!(PROC_ADDRESSES.is_sorted_by_key(|row| row.base));
    }
}

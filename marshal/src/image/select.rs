//! Choosing what one device can run.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::{Arch, CodeKind, Entry, EntryKind, Form, Image, ImageError};

/// What the code has to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Compute capability of the device, major * 10 + minor.
    pub sm: u32,
    /// What kinds of code it takes.
    pub accepts: Accepts,
}

/// What kinds of code a device takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accepts {
    /// PTX for its capability or a lower one, the highest there is.
    PtxOnly,
    /// As a real GPU: machine code of its major version and the highest minor up to its own,
    /// else PTX as above.
    Native,
    /// Like `Native`, but anything rather than nothing. For a device that runs no code.
    Any,
}

/// The code for one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected<'a> {
    /// The cubin, or the PTX text without a NUL.
    pub bytes: Cow<'a, [u8]>,
    /// Which of the two.
    pub kind: CodeKind,
    /// The architecture it was made for.
    pub arch: Arch,
    /// Its index in [`Image::entries`].
    pub index: usize,
}

/// Picks the code that `target` should get, and expands it.
///
/// # Errors
/// [`ImageError::NoBinaryForGpu`] if nothing fits, or [`ImageError::InvalidPtx`] where that is
/// a bare PTX text, as the driver has it; and what [`Entry::expand`] returns.
pub fn select<'a>(image: &Image<'a>, target: &Target) -> Result<Selected<'a>, ImageError> {
    let mut best: Option<(Rank, usize, CodeKind, &Entry<'a>)> = None;
    for (index, entry) in image.entries().iter().enumerate() {
        let Some((rank, kind)) = rank(entry, target) else {
            continue;
        };
        // Among equals the first is taken.
        if best
            .as_ref()
            .is_none_or(|(best_rank, ..)| rank > *best_rank)
        {
            best = Some((rank, index, kind, entry));
        }
    }
    let Some((_, index, kind, entry)) = best else {
        return Err(nothing_fits(image, target));
    };
    Ok(Selected {
        bytes: entry.expand()?,
        kind,
        arch: entry.arch,
        index,
    })
}

/// How good a choice is; greater is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    fit: Fit,
    arch: Arch,
    /// Code that is ready before code that the driver has to finish.
    finished: bool,
    optimized: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    OtherMachineCode,
    OtherPtx,
    Ptx,
    MachineCode,
}

fn rank(entry: &Entry<'_>, target: &Target) -> Option<(Rank, CodeKind)> {
    let any = target.accepts == Accepts::Any;
    let (fit, kind) = match entry.kind {
        EntryKind::Ptx => {
            let fits = entry.arch.compiles_for(target.sm);
            let fit = if fits { Fit::Ptx } else { Fit::OtherPtx };
            ((fits || any).then_some(fit)?, CodeKind::Ptx)
        }
        EntryKind::Elf | EntryKind::Mercury if target.accepts != Accepts::PtxOnly => {
            let fits = entry.arch.runs_on(target.sm);
            let fit = if fits {
                Fit::MachineCode
            } else {
                Fit::OtherMachineCode
            };
            ((fits || any).then_some(fit)?, CodeKind::Elf)
        }
        _ => return None,
    };
    let rank = Rank {
        fit,
        arch: entry.arch,
        finished: entry.kind != EntryKind::Mercury,
        optimized: !entry.debug,
    };
    Some((rank, kind))
}

fn nothing_fits(image: &Image<'_>, target: &Target) -> ImageError {
    if image.form() == Form::Ptx {
        return ImageError::InvalidPtx {
            line: 1,
            what: "the .target is not one that this device can have",
        };
    }
    let mut offers = BTreeSet::new();
    for entry in image.entries() {
        let kind = match entry.kind {
            EntryKind::Ptx => "PTX for ",
            EntryKind::Elf | EntryKind::Mercury => "code for ",
            EntryKind::LtoIr => "LTO IR for ",
            EntryKind::Other(_) => "something unknown for ",
        };
        offers.insert((kind, entry.arch));
        if offers.len() >= OFFERS_NAMED_MAX {
            break;
        }
    }
    let offered = offers
        .iter()
        .map(|(kind, arch)| format!("{kind}{arch}"))
        .collect::<Vec<_>>();
    ImageError::NoBinaryForGpu {
        device_sm: target.sm,
        offered: if offered.is_empty() {
            "nothing".to_owned()
        } else {
            offered.join(", ")
        },
    }
}

/// Enough for a person to see what is there.
const OFFERS_NAMED_MAX: usize = 16;

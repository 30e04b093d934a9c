//! Names of special registers.
#![forbid(unsafe_code)]

use crate::exec::code::Special;
use crate::parse::ast::Ty;

/// The special register `name` and its type.
pub(super) fn parse(name: &str) -> Option<(Special, Ty)> {
    let axis = |s: &str| match s {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((base, part)) = name.split_once('.') {
        let axis = axis(part)?;
        let special = match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" | "%clusterid" => Special::Ctaid(axis),
            "%nctaid" | "%nclusterid" => Special::Nctaid(axis),
            // No clusters: each block is a cluster of its own.
            "%cluster_ctaid" => Special::Zero,
            "%cluster_nctaid" => Special::One,
            _ => return None,
        };
        return Some((special, Ty::U32));
    }
    if let Some(number) = name.strip_prefix("%envreg") {
        return Some((
            Special::EnvReg(number.parse().ok().filter(|n| *n < 32)?),
            Ty::U32,
        ));
    }
    if let Some(number) = name.strip_prefix("%pm") {
        let wide = number.ends_with("_64");
        return Some((Special::Zero, if wide { Ty::U64 } else { Ty::U32 }));
    }
    Some((
        match name {
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NWarpId,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NSmId,
            "%gridid" => return Some((Special::GridId, Ty::U64)),
            "%clock" => Special::Clock,
            "%clock_hi" => Special::ClockHi,
            "%clock64" => return Some((Special::Clock64, Ty::U64)),
            "%globaltimer" => return Some((Special::GlobalTimer, Ty::U64)),
            "%globaltimer_lo" => Special::GlobalTimerLo,
            "%globaltimer_hi" => Special::GlobalTimerHi,
            "%lanemask_eq" => Special::LaneMaskEq,
            "%lanemask_lt" => Special::LaneMaskLt,
            "%lanemask_le" => Special::LaneMaskLe,
            "%lanemask_gt" => Special::LaneMaskGt,
            "%lanemask_ge" => Special::LaneMaskGe,
            "%dynamic_smem_size" => Special::DynamicSmem,
            "%total_smem_size" | "%aggr_smem_size" => Special::TotalSmem,
            "%cluster_ctarank" | "%is_explicit_cluster" => Special::Zero,
            "%cluster_nctarank" => Special::One,
            "WARP_SZ" => return None,
            _ => return None,
        },
        Ty::U32,
    ))
}

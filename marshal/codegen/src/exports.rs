//! Emits the exported symbols of `libcuda.so.1`: thin C functions that wrap every program pointer in a
//! checked type and enter the hand-written implementation.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::model::{Argument, Call, Catalogue};

/// Handle types of cuda.h: pointers to opaque structures, kept as 64-bit numbers.
const HANDLES: &[&str] = &[
    "CUarray",
    "CUasyncCallbackHandle",
    "CUcontext",
    "CUcoredumpCallbackHandle",
    "CUdevResourceDesc",
    "CUevent",
    "CUexternalMemory",
    "CUexternalSemaphore",
    "CUfunction",
    "CUgraph",
    "CUgraphExec",
    "CUgraphNode",
    "CUgraphicsResource",
    "CUgreenCtx",
    "CUkernel",
    "CUlibrary",
    "CUlinkState",
    "CUlogsCallbackHandle",
    "CUmemoryPool",
    "CUmipmappedArray",
    "CUmodule",
    "CUstream",
    "CUsurfref",
    "CUtexref",
    "CUuserObject",
    "CUdeviceptr",
    "CUmemGenericAllocationHandle",
    "CUsurfObject",
    "CUtexObject",
    "CUgraphConditionalHandle",
];

/// Function pointer types of cuda.h.
const FUNCTIONS: &[&str] = &[
    "CUcoredumpStatusCallback",
    "CUasyncCallback",
    "CUhostFn",
    "CUlogsCallback",
    "CUoccupancyB2DSize",
    "CUstreamCallback",
    "CUgraphRecaptureCallback",
];

/// Structures that `shim/src/abi.rs` lays out.
const STRUCTS: &[&str] = &[
    "CUDA_ARRAY3D_DESCRIPTOR",
    "CUDA_RESOURCE_DESC",
    "CUDA_RESOURCE_VIEW_DESC",
    "CUDA_TEXTURE_DESC",
    "CUDA_ARRAY_DESCRIPTOR",
    "CUDA_ARRAY_MEMORY_REQUIREMENTS",
    "CUDA_KERNEL_NODE_PARAMS",
    "CUDA_KERNEL_NODE_PARAMS_v1",
    "CUDA_MEM_ALLOC_NODE_PARAMS",
    "CUDA_MEMCPY3D_BATCH_OP",
    "CUDA_MEMCPY2D",
    "CUDA_MEMCPY3D",
    "CUDA_MEMSET_NODE_PARAMS",
    "CUDA_HOST_NODE_PARAMS",
    "CUDA_GRAPH_INSTANTIATE_PARAMS",
    "CUctxCreateParams",
    "CUdevprop",
    "CUexecAffinityParam",
    "CUgraphEdgeData",
    "CUgraphExecUpdateResultInfo",
    "CUlaunchConfig",
    "CUmemAccessDesc",
    "CUmemAllocationProp",
    "CUmemLocation",
    "CUmemPoolProps",
    "CUmemcpyAttributes",
    "CUuuid",
];

/// Rust source of every export and the table of their addresses.
#[must_use]
pub fn emit(catalogue: &Catalogue) -> String {
    let mut out = String::new();
    let mut table = Vec::new();
    for call in &catalogue.calls {
        emit_one(&mut out, call, &call.symbol, "Legacy");
        table.push(call.symbol.clone());
        for variant in &call.variants {
            let symbol = format!("{}_{}", call.symbol, variant.mode);
            emit_one(
                &mut out,
                call,
                &symbol,
                if variant.mode == "ptds" {
                    "PerThreadSync"
                } else {
                    "PerThread"
                },
            );
            table.push(symbol);
        }
    }
    table.sort();
    let _ = writeln!(
        out,
        "/// Exported symbols and their addresses, sorted by name.\npub(crate) static ADDRESSES: [(&str, Address); {}] = [",
        table.len()
    );
    for symbol in table {
        let _ = writeln!(out, "    (\"{symbol}\", Address({symbol} as *const ())),");
    }
    out.push_str("];\n");
    out
}

fn emit_one(out: &mut String, call: &Call, symbol: &str, mode: &str) {
    match (&call.args, call.implemented) {
        (Some(args), true) => implemented(out, call, symbol, mode, args),
        _ => {
            let _ = writeln!(
                out,
                "#[unsafe(no_mangle)]\nextern \"C\" fn {symbol}() -> u32 {{\n    crate::enter::missing({})\n}}\n",
                call.number
            );
        }
    }
}

fn implemented(out: &mut String, call: &Call, symbol: &str, mode: &str, args: &[Argument]) {
    let params: Vec<String> = args
        .iter()
        .map(|a| format!("{}: {}", ident(&a.name), c_type(&a.ty)))
        .collect();
    let mut values: Vec<String> = args
        .iter()
        .map(|a| wrapped(&ident(&a.name), &a.ty))
        .collect();
    if !call.variants.is_empty() {
        values.insert(0, format!("StreamMode::{mode}"));
    }
    let shown: Vec<String> = args.iter().map(|a| shown(&ident(&a.name), &a.ty)).collect();
    // Each way has a closure of its own, which takes its arguments by value: one that both share, or references, would
    // make every call store its arguments in memory.
    let body = format!("move || crate::api::{}({})", call.symbol, values.join(", "));
    let _ = writeln!(
        out,
        "#[unsafe(no_mangle)]\npub(crate) unsafe extern \"C\" fn {symbol}({}) -> u32 {{\n    if crate::observe::is_on() {{\n        return crate::enter::observed({}, &[{}], {body});\n    }}\n    crate::enter::guarded({body})\n}}\n",
        params.join(", "),
        call.number,
        shown.join(", "),
    );
}

/// The argument as the tracer prints it: its 64 bits.
fn shown(name: &str, ty: &str) -> String {
    match ty {
        "f32" => format!("u64::from({name}.to_bits())"),
        "CUmemLocation" => "0".to_owned(),
        _ => format!("{name} as u64"),
    }
}

fn ident(name: &str) -> String {
    if matches!(
        name,
        "type" | "in" | "ref" | "fn" | "mod" | "match" | "move" | "use"
    ) {
        format!("{name}_")
    } else {
        name.to_owned()
    }
}

/// The argument as it enters the implementation: numbers as they are, pointers in a checked wrapper.
fn wrapped(name: &str, ty: &str) -> String {
    let pointer = |kind: &str| {
        format!(
            "{{\n        // SAFETY: the caller's contract, cuda.h: null or valid for the call.\n        unsafe {{ {kind}::from_program({name}) }}\n    }}"
        )
    };
    if ty == "*mut void" || ty == "*const void" {
        return pointer("HostPtr");
    }
    if ty.starts_with("*const char") {
        return pointer("Text");
    }
    if ty.starts_with("*mut ") {
        return pointer("Out");
    }
    if ty.starts_with("*const ") {
        return pointer("In");
    }
    name.to_owned()
}

fn c_type(ty: &str) -> String {
    if let Some(inner) = ty.strip_prefix("*mut ") {
        return format!("*mut {}", c_type(inner));
    }
    if let Some(inner) = ty.strip_prefix("*const ") {
        return format!("*const {}", c_type(inner));
    }
    match ty {
        "void" => "core::ffi::c_void".to_owned(),
        "char" => "core::ffi::c_char".to_owned(),
        "u8" | "u16" | "u32" | "i32" | "u64" | "usize" | "f32" => ty.to_owned(),
        "CUdevice" => "i32".to_owned(),
        // An 8-byte structure travels in one register.
        _ if HANDLES.contains(&ty) => "u64".to_owned(),
        _ if FUNCTIONS.contains(&ty) => "usize".to_owned(),
        _ if STRUCTS.contains(&ty) => format!("crate::abi::{ty}"),
        // What is left is an enumeration (C int); a structure that abi.rs does not lay out is only pointed to.
        _ => "u32".to_owned(),
    }
}

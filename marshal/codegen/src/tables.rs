//! Emits the tables of calls and of `cuGetProcAddress` entries.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::model::{Catalogue, Class};
use crate::records::snake;

/// Rust source: constants `id::*`, `CALLS`, `PROC_ADDRESSES`.
#[must_use]
pub fn emit(catalogue: &Catalogue) -> String {
    let mut out = String::from("/// Permanent numbers of the calls.\npub mod id {\n");
    for call in &catalogue.calls {
        let _ = writeln!(
            out,
            "    /// `{0}`.\n    pub const {1}: u16 = {2};",
            call.symbol,
            snake(&call.symbol).to_uppercase(),
            call.number
        );
    }
    out.push_str("}\n\n");
    let _ = writeln!(
        out,
        "/// Every driver call, in the order of the catalogue.\npub static CALLS: [CallInfo; {}] = [",
        catalogue.calls.len()
    );
    for call in &catalogue.calls {
        let class = match call.class {
            Class::Local => "Local",
            Class::Cached => "Cached",
            Class::OneWay => "OneWay",
            Class::Blocking => "Blocking",
            Class::Refused => "Refused",
        };
        let args = call.args.as_ref().map_or_else(
            || "None".to_owned(),
            |args| {
                let list: Vec<String> = args
                    .iter()
                    .map(|a| format!("(\"{}\", \"{}\")", a.name, a.ty))
                    .collect();
                format!("Some(&[{}])", list.join(", "))
            },
        );
        let _ = writeln!(
            out,
            "    CallInfo {{ number: {}, symbol: \"{}\", base: \"{}\", since: {}, class: Class::{class}, implemented: {}, refusal: \"{}\", args: {args} }},",
            call.number, call.symbol, call.base, call.since, call.implemented, call.refusal
        );
    }
    out.push_str("];\n\n");
    out.push_str(&proc_addresses(catalogue));
    out
}

fn proc_addresses(catalogue: &Catalogue) -> String {
    let mut rows: Vec<(String, u32, &str, String)> = Vec::new();
    for call in &catalogue.calls {
        rows.push((call.base.clone(), call.since, "Legacy", call.symbol.clone()));
        for variant in &call.variants {
            let mode = if variant.mode == "ptds" {
                "PerThreadSync"
            } else {
                "PerThread"
            };
            rows.push((
                call.base.clone(),
                variant.since,
                mode,
                format!("{}_{}", call.symbol, variant.mode),
            ));
        }
    }
    rows.sort();
    let mut out = format!(
        "/// What `cuGetProcAddress` resolves to, sorted by name.\npub static PROC_ADDRESSES: [ProcAddress; {}] = [\n",
        rows.len()
    );
    for (base, since, mode, symbol) in rows {
        let _ = writeln!(
            out,
            "    ProcAddress {{ base: \"{base}\", since: {since}, mode: StreamMode::{mode}, symbol: \"{symbol}\" }},"
        );
    }
    out.push_str("];\n");
    out
}

//! Emits one typed record per `wire` line: encoder, validating decoder, printer, golden sample.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::model::{Catalogue, Field, FieldType};

/// Rust source of the module `wire`: every record, its reply, the dispatcher and the printer.
#[must_use]
pub fn emit(catalogue: &Catalogue) -> String {
    let mut out = String::new();
    for item in items(catalogue) {
        out.push_str(&record(&item));
    }
    out.push_str(&dispatch(catalogue));
    out.push_str(&describe(catalogue));
    out.push_str(&stream_offset(catalogue));
    out.push_str(&samples(catalogue));
    out
}

/// A record to emit: a call's or message's request or reply.
struct Item<'a> {
    symbol: &'a str,
    number: u16,
    fields: &'a [Field],
    reply: bool,
}

impl Item<'_> {
    fn type_name(&self) -> String {
        let tail = if self.reply { "Reply" } else { "" };
        format!("{}{tail}", camel(self.symbol))
    }

    fn lifetime(&self) -> &'static str {
        if self.fields.iter().any(|f| variable(f.ty)) {
            "<'a>"
        } else {
            ""
        }
    }
}

fn items(catalogue: &Catalogue) -> Vec<Item<'_>> {
    let calls = catalogue
        .calls
        .iter()
        .filter_map(|c| c.wire.as_ref().map(|w| (c.symbol.as_str(), c.number, w)));
    let messages = catalogue
        .messages
        .iter()
        .map(|m| (m.name.as_str(), m.number, &m.wire));
    calls
        .chain(messages)
        .flat_map(|(symbol, number, wire)| {
            let reply = (!wire.reply.is_empty()).then_some(Item {
                symbol,
                number,
                fields: &wire.reply,
                reply: true,
            });
            std::iter::once(Item {
                symbol,
                number,
                fields: &wire.fields,
                reply: false,
            })
            .chain(reply)
        })
        .collect()
}

fn variable(ty: FieldType) -> bool {
    matches!(ty, FieldType::Bytes | FieldType::Str)
}

/// `cuMemFree_v2` and `session_open` to `CuMemFreeV2` and `SessionOpen`.
pub(crate) fn camel(name: &str) -> String {
    name.split('_')
        .map(|part| {
            let mut chars = part.chars();
            chars.next().map_or_else(String::new, |first| {
                first.to_uppercase().collect::<String>() + chars.as_str()
            })
        })
        .collect()
}

/// `cuMemFree_v2` to `cu_mem_free_v2`.
pub(crate) fn snake(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.ends_with('_') && !out.ends_with(|p: char| p.is_ascii_digit()) {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

fn rust_type(ty: FieldType) -> &'static str {
    match ty {
        FieldType::U32 => "u32",
        FieldType::I32 => "i32",
        FieldType::U64 => "u64",
        FieldType::F32 => "f32",
        FieldType::Bytes => "&'a [u8]",
        FieldType::Str => "&'a str",
    }
}

fn record(item: &Item<'_>) -> String {
    let (name, lt) = (item.type_name(), item.lifetime());
    let what = if item.reply { "Reply to" } else { "Record of" };
    let mut out = format!(
        "/// {what} `{}`.\n#[derive(Clone, Copy, Debug, PartialEq)]\npub struct {name}{lt} {{\n",
        item.symbol
    );
    for field in item.fields {
        let _ = writeln!(
            out,
            "    /// Field `{}` of the record.\n    pub {}: {},",
            field.name,
            field.name,
            rust_type(field.ty)
        );
    }
    out.push_str("}\n\n");
    out.push_str(&fixed(item));
    let _ = write!(
        out,
        "impl<'a> Record<'a> for {name}{lt} {{\n    const NUMBER: u16 = {};\n    const NAME: &'static str = \"{}\";\n\n",
        item.number, item.symbol
    );
    out.push_str(&encoder(item));
    out.push_str(&decoder(item));
    out.push_str("}\n\n");
    if fillable(item) {
        out.push_str(&filler(item));
    }
    out
}

/// The fixed part: 8-byte fields, then 4-byte ones, lengths of variable parts last, padded to 8.
fn fixed_fields(item: &Item<'_>) -> (Vec<(String, &'static str)>, bool) {
    let mut list: Vec<(String, &'static str)> = Vec::new();
    for field in item.fields.iter().filter(|f| f.ty == FieldType::U64) {
        list.push((field.name.clone(), "U64"));
    }
    for field in item.fields.iter().filter(|f| f.ty != FieldType::U64) {
        match field.ty {
            FieldType::U32 => list.push((field.name.clone(), "U32")),
            FieldType::I32 => list.push((field.name.clone(), "I32")),
            FieldType::F32 => list.push((field.name.clone(), "F32")),
            _ => {}
        }
    }
    for field in item.fields.iter().filter(|f| variable(f.ty)) {
        list.push((format!("{}_len", field.name), "U32"));
    }
    let four = list.iter().filter(|(_, ty)| *ty != "U64").count();
    (list, four % 2 == 1)
}

fn fixed(item: &Item<'_>) -> String {
    let (list, pad) = fixed_fields(item);
    let name = item.type_name();
    let mut out = format!(
        "#[repr(C)]\n#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]\nstruct {name}Fixed {{\n"
    );
    for (field, ty) in &list {
        let _ = writeln!(out, "    {field}: {ty},");
    }
    if pad {
        out.push_str("    reserved: U32,\n");
    }
    let _ = write!(
        out,
        "}}\n\nconst _: () = assert!(size_of::<{name}Fixed>().is_multiple_of(8));\n\n"
    );
    out
}

/// Whether the record's only variable part is bytes, so that they can be written in place.
fn fillable(item: &Item<'_>) -> bool {
    let mut vars = item.fields.iter().filter(|f| variable(f.ty));
    vars.next().is_some_and(|var| var.ty == FieldType::Bytes) && vars.next().is_none()
}

/// `let fixed = ...;`, with the length of each variable part as `length_of` gives it.
fn fixed_value(item: &Item<'_>, length_of: impl Fn(&str) -> String) -> String {
    let (list, pad) = fixed_fields(item);
    let vars: Vec<&Field> = item.fields.iter().filter(|f| variable(f.ty)).collect();
    let mut out = format!("        let fixed = {}Fixed {{\n", item.type_name());
    for (field, ty) in &list {
        let value = match field.strip_suffix("_len") {
            Some(var) if vars.iter().any(|v| v.name == var) => {
                format!("length({})", length_of(var))
            }
            _ => format!("self.{field}"),
        };
        let _ = writeln!(out, "            {field}: {ty}::new({value}),");
    }
    if pad {
        out.push_str("            reserved: U32::ZERO,\n");
    }
    out.push_str("        };\n");
    out
}

/// The part of the record in which the variable part is written by somebody else.
fn filler(item: &Item<'_>) -> String {
    let name = item.type_name();
    let mut out = format!(
        "impl<'a> Fill<'a> for {name}<'a> {{\n    #[inline]\n    fn filled_bytes(len: usize) -> usize {{\n        size_of::<{name}Fixed>().saturating_add(padded(len))\n    }}\n\n    #[inline]\n    fn encode_fixed<'o>(&self, len: usize, out: &'o mut [u8]) -> &'o mut [u8] {{\n"
    );
    out.push_str(&fixed_value(item, |_| "len".to_owned()));
    out.push_str("        open_padded(put(out, fixed.as_bytes()), len)\n    }\n}\n\n");
    out
}

fn encoder(item: &Item<'_>) -> String {
    let name = item.type_name();
    let vars: Vec<&Field> = item.fields.iter().filter(|f| variable(f.ty)).collect();
    let mut out = String::from("    #[inline]\n    fn body_bytes(&self) -> usize {\n");
    let _ = write!(out, "        size_of::<{name}Fixed>()");
    for var in &vars {
        let _ = write!(out, ".saturating_add(padded(self.{}.len()))", var.name);
    }
    out.push_str("\n    }\n\n    #[inline]\n    fn encode_body(&self, out: &mut [u8]) {\n");
    if let [var] = vars[..]
        && fillable(item)
    {
        let _ = write!(
            out,
            "        put(self.encode_fixed(self.{0}.len(), out), self.{0});\n    }}\n\n",
            var.name
        );
        return out;
    }
    out.push_str(&fixed_value(item, |var| format!("self.{var}.len()")));
    let tail = if vars.is_empty() { "_" } else { "out" };
    let _ = writeln!(out, "        let {tail} = put(out, fixed.as_bytes());");
    for (index, var) in vars.iter().enumerate() {
        let bytes = if var.ty == FieldType::Str {
            ".as_bytes()"
        } else {
            ""
        };
        let target = if index + 1 == vars.len() { "_" } else { "out" };
        let _ = writeln!(
            out,
            "        let {target} = put_padded(out, self.{}{bytes});",
            var.name
        );
    }
    out.push_str("    }\n\n");
    out
}

fn decoder(item: &Item<'_>) -> String {
    let (_, pad) = fixed_fields(item);
    let name = item.type_name();
    let vars: Vec<&Field> = item.fields.iter().filter(|f| variable(f.ty)).collect();
    let mut out = String::from(
        "    #[inline]\n    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeError> {\n",
    );
    let read = if item.fields.is_empty() {
        "_fixed"
    } else {
        "fixed"
    };
    let _ = writeln!(
        out,
        "        let ({read}, rest) = {name}Fixed::ref_from_prefix(body).map_err(|_| DecodeError::Truncated {{ record: Self::NAME }})?;"
    );
    if pad {
        out.push_str("        if fixed.reserved.get() != 0 {\n            return Err(DecodeError::Reserved { record: Self::NAME });\n        }\n");
    }
    for var in &vars {
        let _ = writeln!(
            out,
            "        let ({0}, rest) = take_padded(rest, fixed.{0}_len.get(), Self::NAME)?;",
            var.name
        );
        if var.ty == FieldType::Str {
            let _ = writeln!(out, "        let {0} = text({0}, Self::NAME)?;", var.name);
        }
    }
    out.push_str("        if !rest.is_empty() {\n            return Err(DecodeError::Trailing { record: Self::NAME, bytes: rest.len() });\n        }\n        Ok(Self {\n");
    for field in item.fields {
        let value = if variable(field.ty) {
            field.name.clone()
        } else {
            format!("{0}: fixed.{0}.get()", field.name)
        };
        let _ = writeln!(out, "            {value},");
    }
    out.push_str("        })\n    }\n");
    out
}

fn dispatch(catalogue: &Catalogue) -> String {
    let requests: Vec<Item<'_>> = items(catalogue).into_iter().filter(|i| !i.reply).collect();
    let mut out = String::from(
        "/// One method per record: what a receiver does with it. There are no defaults, so a record added to the\n/// catalogue does not compile until every receiver handles it.\n#[allow(missing_docs)]\npub trait Dispatch {\n    /// What handling a record gives.\n    type Output;\n",
    );
    for item in requests.iter().filter(|i| i.number < 32768) {
        let lt = if item.lifetime().is_empty() {
            ""
        } else {
            "<'_>"
        };
        let _ = writeln!(
            out,
            "    fn {}(&mut self, head: &Head, record: {}{lt}) -> Self::Output;",
            snake(item.symbol),
            item.type_name()
        );
    }
    out.push_str("}\n\n/// Decodes the record that `head` announces and hands it to its method.\n///\n/// # Errors\n/// Unknown number, or a body that is not a valid record.\npub fn dispatch<D: Dispatch>(to: &mut D, head: &Head, body: &[u8]) -> Result<D::Output, DecodeError> {\n    match head.number {\n");
    for item in requests.iter().filter(|i| i.number < 32768) {
        let _ = writeln!(
            out,
            "        {} => Ok(to.{}(head, {}::decode_body(body)?)),",
            item.number,
            snake(item.symbol),
            item.type_name()
        );
    }
    out.push_str("        number => Err(DecodeError::UnknownRecord { number }),\n    }\n}\n\n");
    out
}

fn describe(catalogue: &Catalogue) -> String {
    let mut out = String::from(
        "/// One line for a person: the fields of a record, long byte strings as their length.\n///\n/// # Errors\n/// Unknown number, or a body that is not a valid record.\npub fn describe(number: u16, is_reply: bool, body: &[u8]) -> Result<String, DecodeError> {\n    let mut line = Line::default();\n    match (number, is_reply) {\n",
    );
    for item in items(catalogue) {
        let _ = writeln!(out, "        ({}, {}) => {{", item.number, item.reply);
        let bind = if item.fields.is_empty() { "_" } else { "r" };
        let _ = writeln!(
            out,
            "            let {bind} = {}::decode_body(body)?;",
            item.type_name()
        );
        for field in item.fields {
            let method = match field.ty {
                FieldType::U64 => "hex",
                FieldType::Bytes => "bytes",
                _ => "plain",
            };
            let _ = writeln!(
                out,
                "            line.{method}(\"{0}\", r.{0});",
                field.name
            );
        }
        out.push_str("        }\n");
    }
    out.push_str("        _ => return Err(DecodeError::UnknownRecord { number }),\n    }\n    Ok(line.finish())\n}\n\n");
    out
}

/// A graph runs its records on the stream that it is launched on: where in a body the stream stands.
fn stream_offset(catalogue: &Catalogue) -> String {
    let mut out = String::from(
        "/// Where the field `stream` stands in a request's body; `None` for records that have none.\n#[must_use]\npub fn stream_offset(number: u16) -> Option<usize> {\n    match number {\n",
    );
    for item in items(catalogue).iter().filter(|i| !i.reply) {
        let long = item.fields.iter().filter(|f| f.ty == FieldType::U64);
        if let Some(at) = long.into_iter().position(|f| f.name == "stream") {
            let _ = writeln!(out, "        {} => Some({}),", item.number, at * 8);
        }
    }
    out.push_str("        _ => None,\n    }\n}\n\n");
    out
}

fn samples(catalogue: &Catalogue) -> String {
    let mut out = String::from(
        "/// Every record with made-up values, encoded: (number, is a reply, name, body). The golden test compares them\n/// with fixtures/golden, so that a change of the wire format cannot go unnoticed.\n#[must_use]\npub fn samples() -> Vec<(u16, bool, &'static str, Vec<u8>)> {\n    vec![\n",
    );
    for item in items(catalogue) {
        let fields: Vec<String> = item
            .fields
            .iter()
            .enumerate()
            .map(|(index, field)| {
                let n = index + 1;
                match field.ty {
                    FieldType::U32 => format!("{}: 0x0101_0100 + {n}", field.name),
                    FieldType::I32 => format!("{}: -{n}", field.name),
                    FieldType::U64 => format!("{}: 0x0202_0202_0202_0200 + {n}", field.name),
                    FieldType::F32 => format!("{}: {n}.5", field.name),
                    FieldType::Bytes => format!("{}: &[{n}, 2, 3]", field.name),
                    FieldType::Str => format!("{}: \"text{n}\"", field.name),
                }
            })
            .collect();
        let _ = writeln!(
            out,
            "        ({}, {}, \"{}\", encoded(&{} {{ {} }})),",
            item.number,
            item.reply,
            item.symbol,
            item.type_name(),
            fields.join(", ")
        );
    }
    out.push_str("    ]\n}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::{camel, snake};

    #[test]
    fn names_are_rust_names() {
        assert_eq!(camel("cuMemFree_v2"), "CuMemFreeV2");
        assert_eq!(snake("cuMemFree_v2"), "cu_mem_free_v2");
        assert_eq!(snake("cuCtxSetLimit"), "cu_ctx_set_limit");
    }
}

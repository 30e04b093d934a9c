//! Text of a catalogue to [`Catalogue`]; checks what the text must promise.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use crate::model::{Argument, Call, Catalogue, Class, Field, FieldType, Message, Variant, Wire};

/// What is wrong with a catalogue, and where.
#[derive(Debug)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "catalogue line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

/// Reads a catalogue.
///
/// # Errors
/// The first line that does not follow the grammar, a number or symbol given twice, a `like` that
/// names no record.
pub fn parse(text: &str) -> Result<Catalogue, ParseError> {
    let mut catalogue = Catalogue::default();
    for (index, raw) in text.lines().enumerate() {
        let fail = |what: String| ParseError {
            line: index + 1,
            what,
        };
        let line = raw.split('#').next().unwrap_or_default().trim_end();
        if line.trim().is_empty() {
            continue;
        }
        if let Some(rest) = line.strip_prefix("call ") {
            catalogue.calls.push(call(rest).map_err(fail)?);
        } else if let Some(rest) = line.strip_prefix("message ") {
            catalogue.messages.push(message(rest).map_err(fail)?);
        } else if line.starts_with(' ') {
            attribute(&mut catalogue, line.trim()).map_err(fail)?;
        } else {
            return Err(fail(format!("expected `call` or `message`: {line}")));
        }
    }
    check(&catalogue).map_err(|what| ParseError { line: 0, what })?;
    Ok(catalogue)
}

fn call(rest: &str) -> Result<Call, String> {
    let (number, rest) = rest.split_once(' ').ok_or("expected NUMBER SYMBOL(...)")?;
    let (symbol, args) = rest.split_once('(').ok_or("expected SYMBOL(...)")?;
    let args = args
        .strip_suffix(')')
        .ok_or("expected a closing parenthesis")?;
    Ok(Call {
        number: number.parse().map_err(|_| format!("bad number {number}"))?,
        symbol: symbol.to_owned(),
        args: if args == "?" {
            None
        } else {
            Some(arguments(args)?)
        },
        base: symbol.to_owned(),
        since: 0,
        variants: Vec::new(),
        class: Class::Local,
        implemented: false,
        refusal: String::new(),
        wire: None,
        like: None,
    })
}

fn arguments(text: &str) -> Result<Vec<Argument>, String> {
    pairs(text)?
        .into_iter()
        .map(|(name, ty)| Ok(Argument { name, ty }))
        .collect()
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split(", ")
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (name, ty) = part
                .split_once(':')
                .ok_or_else(|| format!("expected NAME: TYPE, found `{part}`"))?;
            Ok((name.trim().to_owned(), ty.trim().to_owned()))
        })
        .collect()
}

fn message(rest: &str) -> Result<Message, String> {
    let (number, name) = rest.split_once(' ').ok_or("expected NUMBER NAME")?;
    Ok(Message {
        number: number.parse().map_err(|_| format!("bad number {number}"))?,
        name: name.trim().to_owned(),
        wire: Wire::default(),
    })
}

fn attribute(catalogue: &mut Catalogue, line: &str) -> Result<(), String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if word == "wire" {
        let wire = wire(rest)?;
        // The last declaration in the file is the one that this line belongs to.
        if let Some(message) = catalogue.messages.last_mut() {
            message.wire = wire;
        } else {
            catalogue
                .calls
                .last_mut()
                .ok_or("wire before any call")?
                .wire = Some(wire);
        }
        return Ok(());
    }
    let call = catalogue
        .calls
        .last_mut()
        .ok_or("attribute before any call")?;
    match word {
        "name" => name(call, rest),
        "class" => class(call, rest),
        "like" => {
            call.like = Some(rest.to_owned());
            Ok(())
        }
        _ => Err(format!("unknown attribute {word}")),
    }
}

fn name(call: &mut Call, rest: &str) -> Result<(), String> {
    for (index, word) in rest.split_whitespace().enumerate() {
        let (left, version) = word.split_once('@').ok_or("expected NAME@VERSION")?;
        let since = version
            .parse()
            .map_err(|_| format!("bad version {version}"))?;
        if index == 0 {
            left.clone_into(&mut call.base);
            call.since = since;
        } else {
            call.variants.push(Variant {
                mode: left.to_owned(),
                since,
            });
        }
    }
    Ok(())
}

fn class(call: &mut Call, rest: &str) -> Result<(), String> {
    let mut words = rest.split_whitespace();
    call.class = match words.next() {
        Some("local") => Class::Local,
        Some("cached") => Class::Cached,
        Some("one-way") => Class::OneWay,
        Some("blocking") => Class::Blocking,
        Some("refused") => {
            call.class = Class::Refused;
            call.refusal = words.collect::<Vec<_>>().join(" ");
            return if call.refusal.is_empty() {
                Err("a refusal says why".to_owned())
            } else {
                Ok(())
            };
        }
        other => return Err(format!("unknown class {other:?}")),
    };
    call.implemented = match words.next() {
        None => false,
        Some("hand") => true,
        Some(other) => return Err(format!("unknown implementation {other}")),
    };
    Ok(())
}

fn wire(text: &str) -> Result<Wire, String> {
    let (record, reply) = text.split_once("->").unwrap_or((text, ""));
    Ok(Wire {
        fields: fields(record)?,
        reply: fields(reply)?,
    })
}

fn fields(text: &str) -> Result<Vec<Field>, String> {
    pairs(text.trim())?
        .into_iter()
        .map(|(name, ty)| {
            let ty = match ty.as_str() {
                "u32" => FieldType::U32,
                "i32" => FieldType::I32,
                "u64" => FieldType::U64,
                "f32" => FieldType::F32,
                "bytes" => FieldType::Bytes,
                "str" => FieldType::Str,
                other => return Err(format!("unknown wire type {other}")),
            };
            Ok(Field { name, ty })
        })
        .collect()
}

fn check(catalogue: &Catalogue) -> Result<(), String> {
    let mut numbers = HashSet::new();
    let mut symbols = HashSet::new();
    for (number, symbol) in catalogue
        .calls
        .iter()
        .map(|c| (c.number, &c.symbol))
        .chain(catalogue.messages.iter().map(|m| (m.number, &m.name)))
    {
        if !numbers.insert(number) {
            return Err(format!("number {number} is given twice"));
        }
        if !symbols.insert(symbol) {
            return Err(format!("{symbol} is declared twice"));
        }
    }
    for call in &catalogue.calls {
        if call.number >= 32768 {
            return Err(format!("{}: calls are numbered below 32768", call.symbol));
        }
        if let Some(like) = &call.like
            && !catalogue
                .calls
                .iter()
                .any(|c| &c.symbol == like && c.wire.is_some())
        {
            return Err(format!(
                "{} is like {like}, which has no record",
                call.symbol
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::parse;

    const GOOD: &str = "call 1 cuA(x: *mut u32)\n    name cuA@2000 ptsz@7000\n    class blocking hand\n    wire a: u32 -> b: str\n";

    #[test]
    fn a_call_is_read_whole() {
        let catalogue = parse(GOOD).unwrap();
        let call = &catalogue.calls[0];
        assert_eq!(
            (call.number, call.since, call.variants[0].since),
            (1, 2000, 7000)
        );
        assert!(call.implemented);
        assert_eq!(call.wire.as_ref().unwrap().reply[0].name, "b");
    }

    #[test]
    fn a_number_given_twice_is_refused() {
        let twice = format!("{GOOD}{}", GOOD.replace("cuA(", "cuB("));
        assert!(parse(&twice).unwrap_err().what.contains("given twice"));
    }

    #[test]
    fn like_must_name_a_record() {
        let text = "call 1 cuA()\n    class one-way hand\n    like cuB\n";
        assert!(parse(text).unwrap_err().what.contains("no record"));
    }
}

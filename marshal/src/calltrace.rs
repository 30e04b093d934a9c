//! The record of a program's driver calls: which, in which order and thread, with what sizes, what depends on what,
//! and when. No contents of memory, no code: kernels are names and parameter layouts.
//!
//! A file is [`MAGIC`], then the steps one after another, compressed as images are on the wire
//! ([`image::compress_for_wire`]). Numbers are LEB128. `farcall trace --record` writes it; `fixtures`' program `replay`
//! plays it through the exported functions again.
#![forbid(unsafe_code)]

use crate::image::{self, ParamSpec};

/// How a file begins; the digit is the version of the format.
pub const MAGIC: &[u8; 8] = b"fc-calls";

/// Version of the format.
const VERSION: u64 = 1;
/// Times are kept in units of this many nanoseconds.
pub const TICK_NS: u64 = 100;
/// Most bytes of an expanded trace.
const TRACE_BYTES_MAX: usize = 256 << 20;
/// How deep arguments may be nested: an array in a structure in a pointer.
const DEPTH_MAX: u32 = 4;

/// What a call gave (a handle, an address) and later calls are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// One argument of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number, as it is.
    Value(u64),
    /// What an earlier call gave, and how far behind it.
    Of(Token, u64),
    /// A place for so many bytes of results. What is written first gets the token, if there is one.
    Out(u32, Option<Token>),
    /// A pointer to these bytes, with some pointers in them: (offset, what stands there).
    Bytes(Vec<u8>, Vec<(u32, Self)>),
    /// Pageable memory of the program, so many bytes.
    Host(u64),
    /// A pointer to pointers to so many bytes each: kernel parameters.
    Parameters(Vec<u32>),
    /// The image of a module whose kernels [`Step::Kernel`] names for this call's token.
    Image,
    /// A function of the program that may be called.
    Callback,
    /// What the recorder does not know: the call cannot be played.
    Unknown,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Number in the catalogue.
    pub number: u16,
    /// Which thread made it, in the order in which they first came.
    pub thread: u32,
    /// Since the last call returned, in ticks.
    pub gap_ticks: u64,
    /// How long the program was in it, in ticks.
    pub ticks: u64,
    /// How often it waited for a server.
    pub waits: u32,
    /// What it returned.
    pub status: u32,
    /// Its arguments.
    pub args: Vec<Arg>,
}

/// One step of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A driver call.
    Call(Call),
    /// The program marked a phase.
    Mark(String),
    /// A module or library has this kernel. Comes after the load and before the first use.
    Kernel {
        /// What the load gave.
        module: Token,
        /// Name of the kernel.
        name: String,
        /// Its parameters.
        params: Vec<ParamSpec>,
    },
    /// A module or library has this variable.
    Variable {
        /// What the load gave.
        module: Token,
        /// Name of the variable.
        name: String,
        /// Its size.
        bytes: u64,
    },
}

/// Why a trace cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Another file, or another version.
    #[error("not a call trace of this version")]
    NotATrace,
    /// Its compression is broken.
    #[error("a call trace that cannot be expanded: {0}")]
    Packed(#[from] image::ImageError),
    /// It ends too early or has what no trace has.
    #[error("a malformed call trace, at byte {at} of its contents")]
    Malformed {
        /// Where.
        at: usize,
    },
}

/// Appends a step to the contents of a trace.
pub fn encode(step: &Step, out: &mut Vec<u8>) {
    match step {
        Step::Call(call) => {
            number(out, u64::from(call.number));
            number(out, u64::from(call.thread));
            number(out, call.gap_ticks);
            number(out, call.ticks);
            number(out, u64::from(call.waits));
            number(out, u64::from(call.status));
            number(out, call.args.len() as u64);
            call.args.iter().for_each(|arg| encode_arg(arg, out));
        }
        Step::Mark(name) => {
            number(out, MARK);
            bytes(out, name.as_bytes());
        }
        Step::Kernel {
            module,
            name,
            params,
        } => {
            number(out, KERNEL);
            number(out, u64::from(module.0));
            bytes(out, name.as_bytes());
            number(out, params.len() as u64);
            for param in params {
                number(out, u64::from(param.offset_bytes));
                number(out, u64::from(param.size_bytes));
            }
        }
        Step::Variable {
            module,
            name,
            bytes: size,
        } => {
            number(out, VARIABLE);
            number(out, u64::from(module.0));
            bytes(out, name.as_bytes());
            number(out, *size);
        }
    }
}

/// Makes a file of the contents that [`encode`] appended to.
#[must_use]
pub fn pack(contents: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    number(&mut file, VERSION);
    file.extend_from_slice(&image::compress_for_wire(contents));
    file
}

/// Reads a file.
///
/// # Errors
/// It is no trace, or a damaged one. Whatever the bytes are, nothing worse happens.
pub fn unpack(file: &[u8]) -> Result<Vec<Step>, TraceError> {
    let rest = file
        .strip_prefix(MAGIC.as_slice())
        .ok_or(TraceError::NotATrace)?;
    let mut head = Reader { all: rest, at: 0 };
    if head.number() != Some(VERSION) {
        return Err(TraceError::NotATrace);
    }
    let packed = rest.get(head.at..).unwrap_or_default();
    let contents = image::expand_from_wire(packed, TRACE_BYTES_MAX)?;
    let mut reader = Reader {
        all: &contents,
        at: 0,
    };
    let mut steps = Vec::new();
    while reader.at < contents.len() {
        let at = reader.at;
        steps.push(reader.step().ok_or(TraceError::Malformed { at })?);
    }
    Ok(steps)
}

/// No call has these numbers.
const MARK: u64 = 1 << 16;
const KERNEL: u64 = MARK + 1;
const VARIABLE: u64 = MARK + 2;

const VALUE: u64 = 0;
const OF: u64 = 1;
const OUT: u64 = 2;
const OUT_TOKEN: u64 = 3;
const BYTES: u64 = 4;
const HOST: u64 = 5;
const PARAMETERS: u64 = 6;
const IMAGE: u64 = 7;
const CALLBACK: u64 = 8;
const UNKNOWN: u64 = 9;
const OF_BEHIND: u64 = 10;

fn encode_arg(arg: &Arg, out: &mut Vec<u8>) {
    match arg {
        Arg::Value(value) => {
            number(out, VALUE);
            number(out, *value);
        }
        Arg::Of(token, 0) => {
            number(out, OF);
            number(out, u64::from(token.0));
        }
        Arg::Of(token, offset) => {
            number(out, OF_BEHIND);
            number(out, u64::from(token.0));
            number(out, *offset);
        }
        Arg::Out(size, None) => {
            number(out, OUT);
            number(out, u64::from(*size));
        }
        Arg::Out(size, Some(token)) => {
            number(out, OUT_TOKEN);
            number(out, u64::from(*size));
            number(out, u64::from(token.0));
        }
        Arg::Bytes(content, pointers) => {
            number(out, BYTES);
            bytes(out, content);
            number(out, pointers.len() as u64);
            for (offset, pointer) in pointers {
                number(out, u64::from(*offset));
                encode_arg(pointer, out);
            }
        }
        Arg::Host(len) => {
            number(out, HOST);
            number(out, *len);
        }
        Arg::Parameters(sizes) => {
            number(out, PARAMETERS);
            number(out, sizes.len() as u64);
            sizes.iter().for_each(|size| number(out, u64::from(*size)));
        }
        Arg::Image => number(out, IMAGE),
        Arg::Callback => number(out, CALLBACK),
        Arg::Unknown => number(out, UNKNOWN),
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    number(out, content.len() as u64);
    out.extend_from_slice(content);
}

struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn step(&mut self) -> Option<Step> {
        match self.number()? {
            MARK => Some(Step::Mark(self.text()?)),
            KERNEL => Some(Step::Kernel {
                module: self.token()?,
                name: self.text()?,
                params: self.list(|reader| {
                    Some(ParamSpec {
                        offset_bytes: reader.small()?,
                        size_bytes: reader.small()?,
                    })
                })?,
            }),
            VARIABLE => Some(Step::Variable {
                module: self.token()?,
                name: self.text()?,
                bytes: self.number()?,
            }),
            call => Some(Step::Call(Call {
                number: u16::try_from(call).ok()?,
                thread: self.small()?,
                gap_ticks: self.number()?,
                ticks: self.number()?,
                waits: self.small()?,
                status: self.small()?,
                args: self.list(|reader| reader.arg(0))?,
            })),
        }
    }

    fn arg(&mut self, depth: u32) -> Option<Arg> {
        Some(match self.number()? {
            VALUE => Arg::Value(self.number()?),
            OF => Arg::Of(self.token()?, 0),
            OF_BEHIND => Arg::Of(self.token()?, self.number()?),
            OUT => Arg::Out(self.small()?, None),
            OUT_TOKEN => Arg::Out(self.small()?, Some(self.token()?)),
            BYTES if depth < DEPTH_MAX => Arg::Bytes(
                self.bytes()?.to_vec(),
                self.list(|reader| Some((reader.small()?, reader.arg(depth.saturating_add(1))?)))?,
            ),
            HOST => Arg::Host(self.number()?),
            PARAMETERS => Arg::Parameters(self.list(Self::small)?),
            IMAGE => Arg::Image,
            CALLBACK => Arg::Callback,
            UNKNOWN => Arg::Unknown,
            _ => return None,
        })
    }

    /// A counted list. Every element takes a byte at least, so the count cannot make it longer than the file.
    fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        if count > self.all.len().saturating_sub(self.at) as u64 {
            return None;
        }
        (0..count).map(|_| element(self)).collect()
    }

    fn token(&mut self) -> Option<Token> {
        self.small().map(Token)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let end = self.at.checked_add(len)?;
        let content = self.all.get(self.at..end)?;
        self.at = end;
        Some(content)
    }

    fn small(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.all.get(self.at)?;
            self.at = self.at.checked_add(1)?;
            let low = u64::from(byte & 0x7f);
            let placed = low.checked_shl(shift)?;
            if placed >> shift != low {
                return None;
            }
            value |= placed;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    fn steps() -> Vec<Step> {
        let args = vec![
            Arg::Value(u64::MAX),
            Arg::Of(Token(3), 0),
            Arg::Of(Token(3), 512),
            Arg::Out(8, None),
            Arg::Out(8, Some(Token(4))),
            Arg::Bytes(
                vec![1; 56],
                vec![
                    (32, Arg::Of(Token(1), 0)),
                    (40, Arg::Bytes(vec![7; 72], Vec::new())),
                ],
            ),
            Arg::Host(1 << 30),
            Arg::Parameters(vec![8, 4, 200]),
            Arg::Image,
            Arg::Callback,
            Arg::Unknown,
        ];
        let call = Call {
            number: 488,
            thread: 2,
            gap_ticks: 17,
            ticks: 300,
            waits: 1,
            status: 700,
            args,
        };
        let params = vec![ParamSpec {
            offset_bytes: 0,
            size_bytes: 8,
        }];
        vec![
            Step::Mark("train".to_owned()),
            Step::Call(call),
            Step::Kernel {
                module: Token(9),
                name: "k".to_owned(),
                params,
            },
            Step::Variable {
                module: Token(9),
                name: "v".to_owned(),
                bytes: 1 << 20,
            },
        ]
    }

    fn contents() -> Vec<u8> {
        let mut out = Vec::new();
        steps().iter().for_each(|step| encode(step, &mut out));
        out
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(unpack(&pack(&contents())), Ok(steps()));
    }

    #[test]
    fn every_cut_is_an_error() {
        let all = contents();
        let whole: Vec<usize> = (0..=all.len())
            .filter(|len| unpack(&pack(&all[..*len])).is_ok())
            .collect();
        // Only the ends of steps, and of none.
        assert_eq!(whole.len(), steps().len() + 1, "{whole:?}");
        assert_eq!(unpack(b"fc-callsX"), Err(TraceError::NotATrace));
        assert_eq!(unpack(b"elsewhat"), Err(TraceError::NotATrace));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(all in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = unpack(&all);
            let _ = unpack(&pack(&all));
        }
    }
}

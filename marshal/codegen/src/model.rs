//! What a catalogue says, in memory.
#![forbid(unsafe_code)]

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// From client memory, nothing is sent.
    Local,
    /// Asked once, then from client memory.
    Cached,
    /// Sent, nobody waits.
    OneWay,
    /// Sent, the caller waits for the reply.
    Blocking,
    /// Cannot be had over a network, or does not exist any more.
    Refused,
}

/// Type of one field of a wire record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Unsigned, 4 bytes.
    U32,
    /// Signed, 4 bytes.
    I32,
    /// Unsigned, 8 bytes; handles and addresses too.
    U64,
    /// IEEE single.
    F32,
    /// Any bytes, with their length.
    Bytes,
    /// UTF-8 text, with its length.
    Str,
}

/// One field of a wire record.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name in snake case.
    pub name: String,
    /// Type on the wire.
    pub ty: FieldType,
}

/// A record and its reply.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Fields of the record.
    pub fields: Vec<Field>,
    /// Fields of the reply.
    pub reply: Vec<Field>,
}

/// One argument of the C signature.
#[derive(Clone, Debug)]
pub struct Argument {
    /// As the header names it.
    pub name: String,
    /// In the catalogue's spelling (`*mut CUstream`, `u32`, `*const char`).
    pub ty: String,
}

/// A per-thread-stream variant of a call.
#[derive(Clone, Debug)]
pub struct Variant {
    /// `ptsz` or `ptds`.
    pub mode: String,
    /// CUDA version in which it appeared, as in 7000.
    pub since: u32,
}

/// One driver call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Permanent number.
    pub number: u16,
    /// Exported symbol.
    pub symbol: String,
    /// C arguments; `None` where no public header gives the signature.
    pub args: Option<Vec<Argument>>,
    /// Name that `cuGetProcAddress` is asked for.
    pub base: String,
    /// CUDA version in which this symbol appeared.
    pub since: u32,
    /// Per-thread-stream variants.
    pub variants: Vec<Variant>,
    /// How it is answered.
    pub class: Class,
    /// Whether the shim implements it.
    pub implemented: bool,
    /// Why it is refused; empty where it is not.
    pub refusal: String,
    /// Its record, if it has one of its own.
    pub wire: Option<Wire>,
    /// The call whose record it travels as.
    pub like: Option<String>,
}

/// A record that no driver call stands for.
#[derive(Clone, Debug)]
pub struct Message {
    /// Permanent number, above 32768.
    pub number: u16,
    /// Name in snake case.
    pub name: String,
    /// Its record.
    pub wire: Wire,
}

/// A whole catalogue.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// In file order.
    pub calls: Vec<Call>,
    /// In file order.
    pub messages: Vec<Message>,
}

//! Reads the catalogue of driver calls (`marshal/catalogue/*.cat`) and generates Rust from it.
//!
//! Build scripts of `farcall-marshal` (records, tables) and `farcall-shim` (exported symbols) use it;
//! nothing generated is kept in the repository.
#![forbid(unsafe_code)]

mod exports;
mod model;
mod parse;
mod records;
mod tables;

pub use exports::emit as emit_exports;
pub use model::{Argument, Call, Catalogue, Class, Field, FieldType, Message, Variant, Wire};
pub use parse::{ParseError, parse};
pub use records::emit as emit_records;
pub use tables::emit as emit_tables;

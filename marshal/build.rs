//! Generates the records and tables from the catalogue.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let source = "catalogue/driver.cat";
    println!("cargo::rerun-if-changed={source}");
    let catalogue = farcall_codegen::parse(&fs::read_to_string(source)?)?;
    let out = env::var("OUT_DIR")?;
    fs::write(
        Path::new(&out).join("records.rs"),
        farcall_codegen::emit_records(&catalogue),
    )?;
    fs::write(
        Path::new(&out).join("tables.rs"),
        farcall_codegen::emit_tables(&catalogue),
    )?;
    Ok(())
}

//! Generates the exported symbols from the catalogue and names the library.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let source = "../marshal/catalogue/driver.cat";
    println!("cargo::rerun-if-changed={source}");
    let catalogue = farcall_codegen::parse(&fs::read_to_string(source)?)?;
    fs::write(
        Path::new(&env::var("OUT_DIR")?).join("exports.rs"),
        farcall_codegen::emit_exports(&catalogue),
    )?;
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // Threads of the transport may run until the process ends: a dlclose must not unmap their code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    Ok(())
}

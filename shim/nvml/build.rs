//! Names the library, and exports what it does not implement: every name of `names.txt` that
//! no file of `src` defines answers `NVML_ERROR_NOT_SUPPORTED`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=names.txt");
    println!("cargo::rerun-if-changed=src");
    let mut exports = String::new();
    for source in fs::read_dir("src")? {
        exports.push_str(&fs::read_to_string(source?.path())?);
    }
    let names = fs::read_to_string("names.txt")?;
    let mut out = String::new();
    for name in names
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        // By itself, or as a line of a list that a macro defines.
        let is_listed = exports.lines().any(|line| line.trim() == name);
        if is_listed || exports.contains(&format!("fn {name}(")) {
            continue;
        }
        // Callers pass arguments that are not looked at: with the C calling conventions of Linux the
        // caller takes them away again.
        write!(
            out,
            "/// Not supported.\n#[unsafe(no_mangle)]\npub(crate) extern \"C\" fn {name}() -> u32 {{\n    Status::NOT_SUPPORTED.0\n}}\n\n"
        )?;
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("unsupported.rs"), out)?;
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    // A thread of the transport may still be ending: a dlclose must not unmap its code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    Ok(())
}

//! Compiles PTX files and reports what they hold: `cargo run -p farcall-ptx --example ptx_check -- FILE...`
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                println!("{path}: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        match farcall_ptx::Module::parse(&text) {
            Ok(module) => {
                for kernel in module.kernels() {
                    println!(
                        "{path}: {}: {} parameter bytes, {} shared, {} local, {} registers",
                        kernel.name,
                        kernel.param_bytes,
                        kernel.shared_static_bytes,
                        kernel.local_bytes,
                        kernel.registers
                    );
                }
            }
            Err(error) => {
                println!("{path}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

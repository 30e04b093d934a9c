//! Parses PTX and runs it on the CPU.

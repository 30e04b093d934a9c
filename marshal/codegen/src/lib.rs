//! Reads the catalogue of driver calls and generates code from it.

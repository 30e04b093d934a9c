//! Benches, limits and peers.

//! The catalogue of CUDA driver calls, their wire records, and module images.

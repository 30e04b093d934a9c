//! The replacement libcuda.so.1.

//! The replacement libnvidia-ml.so.1.

//! Server side: supervisor, executors, devices.

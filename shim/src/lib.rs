//! `libcuda.so.1`: the CUDA driver API, answered locally where the client can know the answer, sent one
//! way where CUDA lets a call return before it has run, and waited for only where a program needs a result.
//!
//! - `exports` (generated) wraps every pointer of the program and enters `api`;
//! - `enter` counts, traces and turns results into `CUresult`;
//! - `process` is what a process has: its sessions and devices;
//! - `session` is one server: tickets, replies, errors that come back late;
//! - `crossing` is work between servers, where a program has devices of several;
//! - `context`, `stream`, `event`, `module`, `memory`, `capture` are the driver's objects as the client keeps them.
//!
//! `unsafe` lives in `exports`, `ptr`, `global`, `landing`, `mark`, `reserve` and `tables`; every other module forbids it.

#![allow(non_snake_case)]

mod abi;
mod api;
mod array;
mod attributes;
mod box_copy;
mod capture;
mod coherent;
mod context;
mod counters;
mod crossing;
mod device_range;
mod enter;
mod event;
mod exports;
mod global;
mod graph;
mod handle;
mod hooks;
mod host_range;
mod landing;
mod link;
mod mark;
mod memory;
mod module;
mod observe;
mod occupancy;
mod offers;
mod passing;
mod pool;
mod process;
mod ptr;
mod recent;
mod recorder;
mod reserve;
mod session;
mod steps;
mod stream;
mod tables;
mod texture;
mod ticket;
mod timings;
mod unseen;
mod virtual_memory;

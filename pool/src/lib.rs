//! The pool: hands out the GPUs of many servers, whole, in fractions or together, by quota and in a fair
//! order, and takes them back.
//!
//! - [`state::Pool`] decides: a state machine without clock, I/O or threads, and the allocator in it;
//! - [`store`] keeps its records; [`core::Core`] is the thread that joins the two: what is answered is durable;
//! - [`api`] is the HTTP and JSON interface, [`wire`] and [`state::views`] what goes over it;
//! - [`etcd`] and [`node`]: several nodes of one pool;
//! - [`history`] keeps how it was; [`web`] is the dashboard;
//! - [`grant`]: statements that servers check without asking the pool; [`secrets`], [`tls`], [`init`];
//!
//! - [`client`] is the other side of the interface; [`agent`] is what a server does with it.
//!
//! No GPU call passes through the pool: clients and servers talk to each other.
mod alloc;
mod format;

pub mod agent;

pub mod api;
pub mod client;
pub mod core;
pub mod etcd;
pub mod filter;
pub mod grant;
pub mod history;
pub mod init;
pub mod model;
pub mod node;
pub mod secrets;
pub mod state;
pub mod store;
pub mod tls;
pub mod web;
pub mod wire;

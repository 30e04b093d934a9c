//! A session that has nothing to do does nothing. A program of its own: it looks at the processor time of its whole process.
#![allow(clippy::unwrap_used)]

mod support;

#[test]
fn an_idle_session_uses_no_processor_time() {
    support::idle::uses_no_processor_time::<support::Tcp>();
    support::idle::uses_no_processor_time::<support::Shm>();
}

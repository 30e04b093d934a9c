//! Variables of this process, for libraries that read nothing else.

use std::fs;

/// Sets a variable, if this process has no other thread; whether it has.
pub(crate) fn set_while_alone(name: &str, value: &str) -> bool {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return false;
    }
    // SAFETY: the kernel lists one thread, which is this one and starts no other here, so nobody else reads or
    // writes the environment.
    unsafe { std::env::set_var(name, value) };
    true
}

#[cfg(test)]
mod tests {
    use super::set_while_alone;

    #[test]
    fn nothing_is_set_beside_other_threads() {
        // The test's own thread and the harness' are two.
        assert!(!set_while_alone("FARCALL_TEST_VARIABLE", "1"));
        assert!(std::env::var_os("FARCALL_TEST_VARIABLE").is_none());
    }
}

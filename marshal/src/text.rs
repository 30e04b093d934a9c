//! Words of a peer or a program, on their way to a log or a terminal.

/// The text without control characters, which a terminal would take for commands and a log for further lines. Allocates.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(
            printable("a\x1b[2Jb\nc\u{9b}é"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}é"
        );
    }
}

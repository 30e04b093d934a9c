//! A place in a PTX text.

use crate::image::ImageError;

/// A place in a PTX text, and the small steps from there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(text: &'a [u8]) -> Self {
        Self { text, rest: text }
    }

    /// What is still to be read.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Goes `count` bytes on, or to the end.
    pub(super) fn bump(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    /// Steps over white space and comments.
    pub(super) fn skip_blank(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if !self.skip_comment() {
                return;
            }
        }
    }

    /// Steps over a comment, if there is one here.
    pub(super) fn skip_comment(&mut self) -> bool {
        if self.rest.starts_with(b"//") {
            self.skip_line();
            return true;
        }
        let Some(comment) = self.rest.strip_prefix(b"/*") else {
            return false;
        };
        let end = comment.array_windows().position(|pair| pair == b"*/");
        let after = end.and_then(|at| comment.get(at.checked_add(2)?..));
        self.rest = after.unwrap_or_default();
        true
    }

    /// Goes to the end of the line.
    pub(super) fn skip_line(&mut self) {
        let length = self.rest.iter().position(|&byte| byte == b'\n');
        self.bump(length.unwrap_or(self.rest.len()));
    }

    /// Steps over the string that begins here.
    pub(super) fn skip_string(&mut self) -> Result<(), ImageError> {
        let inside = self.rest.get(1..).unwrap_or_default();
        let mut escaped = false;
        let end = inside.iter().position(|&byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        });
        let end = end.ok_or_else(|| self.error("a string without an end"))?;
        self.bump(end.saturating_add(2));
        Ok(())
    }

    /// Takes a directive (`.entry`), a name or a number; empty if there is none here.
    pub(super) fn word(&mut self) -> &'a [u8] {
        let dot = usize::from(self.peek() == Some(b'.'));
        let mut letters = self.rest.iter().skip(dot);
        let length = letters
            .position(|&byte| !is_word(byte))
            .map_or(self.rest.len(), |length| length.saturating_add(dot));
        let (word, rest) = self.rest.split_at_checked(length).unwrap_or_default();
        self.rest = rest;
        word
    }

    /// Takes a name.
    pub(super) fn name(&mut self) -> Result<&'a str, ImageError> {
        self.skip_blank();
        let name = self.word();
        if name.is_empty() || name.starts_with(b".") {
            return Err(self.error("a name is missing"));
        }
        std::str::from_utf8(name).map_err(|_not_text| self.error("a name is not text"))
    }

    /// Takes `byte`, if it comes next after white space.
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        self.skip_blank();
        let found = self.peek() == Some(byte);
        if found {
            self.bump(1);
        }
        found
    }

    /// Takes an unsigned number: decimal, hexadecimal, octal or binary.
    pub(super) fn number(&mut self) -> Result<u64, ImageError> {
        self.skip_blank();
        let word = std::str::from_utf8(self.word()).unwrap_or_default();
        let digits = word.trim_end_matches(['U', 'u']);
        let parsed = if let Some(hex) = strip_either(digits, "0x", "0X") {
            u64::from_str_radix(hex, 16)
        } else if let Some(binary) = strip_either(digits, "0b", "0B") {
            u64::from_str_radix(binary, 2)
        } else if digits.len() > 1 && digits.starts_with('0') {
            u64::from_str_radix(digits, 8)
        } else {
            digits.parse()
        };
        parsed.map_err(|_no_number| self.error("a number is missing"))
    }

    /// Takes up to three numbers with commas between them; what is missing is 1.
    pub(super) fn dimensions(&mut self) -> Result<[u32; 3], ImageError> {
        let mut dimensions = [1; 3];
        for (index, dimension) in dimensions.iter_mut().enumerate() {
            if index == 0 || self.eat(b',') {
                *dimension = u32::try_from(self.number()?)
                    .map_err(|_too_large| self.error("a dimension is too large"))?;
            }
        }
        Ok(dimensions)
    }

    /// Goes behind the next `{`, unless a `;` comes before it: a declaration without a body.
    pub(super) fn skip_to_body(&mut self) -> bool {
        loop {
            self.skip_blank();
            match self.peek() {
                Some(b'{') => {
                    self.bump(1);
                    return true;
                }
                Some(b';') | None => return false,
                Some(_) => {
                    if self.word().is_empty() {
                        self.bump(1);
                    }
                }
            }
        }
    }

    /// An error on this line.
    pub(super) fn error(&self, what: &'static str) -> ImageError {
        let read = self.text.len().saturating_sub(self.rest.len());
        let read = self.text.get(..read).unwrap_or_default();
        let newlines = read.iter().filter(|&&byte| byte == b'\n').count();
        ImageError::InvalidPtx {
            line: u32::try_from(newlines.saturating_add(1)).unwrap_or(u32::MAX),
            what,
        }
    }
}

/// Whether a byte can be in a name.
pub(super) const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

fn strip_either<'a>(text: &'a str, first: &str, second: &str) -> Option<&'a str> {
    text.strip_prefix(first)
        .or_else(|| text.strip_prefix(second))
}

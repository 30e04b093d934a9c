//! Splits PTX text into tokens with their places. Total: any bytes give tokens or an error.
#![forbid(unsafe_code)]

use crate::error::PtxError;

/// A token with its place in the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Token<'t> {
    pub(crate) kind: Tok<'t>,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// Byte offset right behind the token: tells whether the next token touches it.
    pub(crate) end: usize,
    pub(crate) start: usize,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tok<'t> {
    /// Identifier, opcode part or digits that are no number (`1d`).
    Word(&'t str),
    /// Integer literal; the flag tells that it does not fit `i64` without being unsigned.
    Int(u64),
    /// `0f` literal.
    F32(u32),
    /// `0d` or decimal literal, as bits.
    F64(u64),
    /// String literal without its quotes.
    Str(&'t str),
    /// Any single punctuation byte.
    Punct(u8),
    /// End of text.
    End,
}

/// All tokens of `text`, closed by one [`Tok::End`].
pub(crate) fn lex(text: &str) -> Result<Vec<Token<'_>>, PtxError> {
    let mut lexer = Lexer {
        text,
        bytes: text.as_bytes(),
        at: 0,
        line: 1,
        line_start: 0,
    };
    let mut tokens = Vec::with_capacity(text.len() / 4);
    loop {
        let token = lexer.next()?;
        tokens.push(token);
        if token.kind == Tok::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    line: u32,
    line_start: usize,
}

impl<'t> Lexer<'t> {
    fn next(&mut self) -> Result<Token<'t>, PtxError> {
        self.skip_blank()?;
        let start = self.at;
        let (line, column) = (self.line, self.column(start));
        let kind = match self.peek(0) {
            None => Tok::End,
            Some(b'"') => self.string()?,
            Some(b'0'..=b'9') => self.number()?,
            Some(b) if is_word_start(b) => Tok::Word(self.word()),
            Some(b) if b.is_ascii() => {
                self.at += 1;
                Tok::Punct(b)
            }
            Some(_) => return Err(self.error("a character that PTX does not use")),
        };
        Ok(Token {
            kind,
            line,
            column,
            end: self.at,
            start,
        })
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn column(&self, at: usize) -> u32 {
        u32::try_from(at - self.line_start + 1).unwrap_or(u32::MAX)
    }

    fn error(&self, message: &str) -> PtxError {
        PtxError::new(self.line, self.column(self.at), message)
    }

    fn skip_blank(&mut self) -> Result<(), PtxError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'\n'), _) => self.newline(),
                (Some(b' ' | b'\t' | b'\r' | 0x0b | 0x0c | 0), _) => self.at += 1,
                (Some(b'/'), Some(b'/')) => {
                    while self.peek(0).is_some_and(|b| b != b'\n') {
                        self.at += 1;
                    }
                }
                (Some(b'/'), Some(b'*')) => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn newline(&mut self) {
        self.at += 1;
        self.line += 1;
        self.line_start = self.at;
    }

    fn block_comment(&mut self) -> Result<(), PtxError> {
        let opened = self.error("comment without an end");
        self.at += 2;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'*'), Some(b'/')) => {
                    self.at += 2;
                    return Ok(());
                }
                (Some(b'\n'), _) => self.newline(),
                (Some(_), _) => self.at += 1,
                (None, _) => return Err(opened),
            }
        }
    }

    fn string(&mut self) -> Result<Tok<'t>, PtxError> {
        let opened = self.error("string without an end");
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek(0) {
                Some(b'"') => break,
                Some(b'\\') if self.peek(1).is_some_and(|b| b != b'\n') => self.at += 2,
                Some(b'\n') | None => return Err(opened),
                Some(_) => self.at += 1,
            }
        }
        // A backslash may have skipped into a character of several bytes: then there is no slice.
        let text = self.text.get(start..self.at).ok_or(opened)?;
        self.at += 1;
        Ok(Tok::Str(text))
    }

    /// Takes the byte at hand, which may only start a word (`%`), and all parts of words behind it.
    fn word(&mut self) -> &'t str {
        let start = self.at;
        self.at += 1;
        while self.peek(0).is_some_and(is_word_part) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or("")
    }

    fn parts(&mut self) -> &'t str {
        let start = self.at;
        while self.peek(0).is_some_and(is_word_part) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or("")
    }

    fn number(&mut self) -> Result<Tok<'t>, PtxError> {
        let start = self.at;
        let word = self.word();
        let tok = match word.as_bytes() {
            [b'0', b'f' | b'F', ..] if word.len() == 10 => {
                u32::from_str_radix(&word[2..], 16).ok().map(Tok::F32)
            }
            [b'0', b'd' | b'D', ..] if word.len() == 18 => {
                u64::from_str_radix(&word[2..], 16).ok().map(Tok::F64)
            }
            _ => None,
        };
        if let Some(tok) = tok {
            return Ok(tok);
        }
        if let Some(tok) = self.decimal_float(start, word) {
            return Ok(tok);
        }
        match integer(word) {
            Some(value) => Ok(Tok::Int(value)),
            // `128B`, `1d`: parts of modifiers. The parser refuses them anywhere else.
            None if word.len() < 32 => Ok(Tok::Word(word)),
            None => Err(self.error("malformed number")),
        }
    }

    /// `1.5`, `1e-3`, `2.`: decimal floats. Not `4.x`, which belongs to no literal.
    fn decimal_float(&mut self, start: usize, word: &str) -> Option<Tok<'t>> {
        let is_hex = word.starts_with("0x") || word.starts_with("0X");
        let digits = word.bytes().all(|b| b.is_ascii_digit());
        let exponent_open = word.ends_with(['e', 'E']) && !is_hex;
        let fraction = digits && self.peek(0) == Some(b'.') && self.peek(1)?.is_ascii_digit();
        let signed = exponent_open && matches!(self.peek(0), Some(b'+' | b'-'));
        if fraction {
            self.at += 1;
            let tail = self.parts();
            if tail.ends_with(['e', 'E']) && matches!(self.peek(0), Some(b'+' | b'-')) {
                self.at += 1;
                self.parts();
            }
        } else if signed {
            self.at += 1;
            self.parts();
        } else if is_hex || !word.contains(['e', 'E']) {
            return None;
        }
        match self.text.get(start..self.at)?.parse::<f64>() {
            Ok(value) => Some(Tok::F64(value.to_bits())),
            Err(_) => {
                self.at = start + word.len();
                None
            }
        }
    }
}

fn integer(word: &str) -> Option<u64> {
    let digits = word.strip_suffix(['U', 'u']).unwrap_or(word);
    let bytes = digits.as_bytes();
    match bytes {
        [b'0', b'x' | b'X', ..] => u64::from_str_radix(&digits[2..], 16).ok(),
        [b'0', b'b' | b'B', ..] => u64::from_str_radix(&digits[2..], 2).ok(),
        [b'0', _, ..] => u64::from_str_radix(&digits[1..], 8).ok(),
        _ => digits.parse().ok(),
    }
}

fn is_word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || matches!(b, b'_' | b'$' | b'%')
}

fn is_word_part(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn kinds(text: &str) -> Vec<Tok<'_>> {
        lex(text).unwrap().into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn literals() {
        assert_eq!(
            kinds("0f3F800000 0d3FF0000000000000 0x1F 017 12U 1.5 2e3 1e-2 0b101"),
            [
                Tok::F32(0x3f80_0000),
                Tok::F64(0x3ff0_0000_0000_0000),
                Tok::Int(31),
                Tok::Int(15),
                Tok::Int(12),
                Tok::F64(1.5f64.to_bits()),
                Tok::F64(2e3f64.to_bits()),
                Tok::F64(1e-2f64.to_bits()),
                Tok::Int(5),
                Tok::End
            ]
        );
    }

    #[test]
    fn places_count_lines_through_comments() {
        let tokens = lex("a /* x\n y */ b\n  // c\n  d").unwrap();
        let places: Vec<_> = tokens.iter().map(|t| (t.line, t.column)).collect();
        assert_eq!(places, [(1, 1), (2, 7), (4, 3), (4, 4)]);
    }

    #[test]
    fn open_ends_are_errors() {
        for text in ["/* never", "\"never", "\"x\n\"", "\"\\é"] {
            assert!(lex(text).is_err(), "{text:?}");
        }
    }
}

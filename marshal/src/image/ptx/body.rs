//! Stepping over a block of instructions.

use super::Block;
use super::cursor::Cursor;
use super::declaration;
use crate::image::ImageError;

/// What is of interest in the body of a function.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'a> {
    /// Between the braces.
    pub(super) text: &'a [u8],
    /// Of the variables declared in it.
    pub(super) shared: Block,
    pub(super) local: Block,
}

impl<'a> Body<'a> {
    /// Reads from behind a `{` to behind the `}` that closes it.
    ///
    /// This is where the time goes: a text of many megabytes is almost all bodies. So it looks
    /// only at the bytes that can matter, and at a `.` only where a statement can begin.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, ImageError> {
        let start = cursor.rest();
        let unclosed = *cursor;
        let mut body = Self {
            text: start,
            shared: Block::default(),
            local: Block::default(),
        };
        let mut depth = 1_u32;
        let mut before = b'{';
        while let Some(at) = cursor.rest().iter().position(|&byte| matters(byte)) {
            if let Some(&byte) = at.checked_sub(1).and_then(|last| cursor.rest().get(last)) {
                before = byte;
            }
            cursor.bump(at);
            match cursor.peek() {
                Some(b'"') => cursor.skip_string()?,
                Some(b'/') if cursor.skip_comment() => before = b' ',
                Some(b'.') if !super::cursor::is_word(before) && before != b'.' => {
                    body.statement(cursor)?;
                    before = b' ';
                }
                found => {
                    let byte = found.unwrap_or_default();
                    before = byte;
                    match byte {
                        b'{' => depth = depth.saturating_add(1),
                        b'}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    let inside = start.len().saturating_sub(cursor.rest().len());
                    cursor.bump(1);
                    if depth == 0 {
                        body.text = start.get(..inside).unwrap_or_default();
                        return Ok(body);
                    }
                }
            }
        }
        Err(unclosed.error("a body without an end"))
    }

    /// A `.` that no name precedes: a directive, or the modifier of an instruction.
    fn statement(&mut self, cursor: &mut Cursor<'a>) -> Result<(), ImageError> {
        let block = match cursor.word() {
            b".shared" => &mut self.shared,
            b".local" => &mut self.local,
            _ => return Ok(()),
        };
        for variable in declaration::variables(cursor)? {
            block
                .place(&variable)
                .ok_or_else(|| cursor.error("a function's variables are too large"))?;
        }
        Ok(())
    }
}

const fn matters(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'"' | b'/' | b'.')
}

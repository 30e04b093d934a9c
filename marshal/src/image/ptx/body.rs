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
    /// This is where the time goes: a text of many megabytes is almost all bodies. So it goes
    /// from one end of a statement to the next, and looks at how a statement begins, no more.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, ImageError> {
        let unclosed = *cursor;
        let mut body = Self {
            text: cursor.rest(),
            shared: Block::default(),
            local: Block::default(),
        };
        let mut depth = 1_u32;
        body.declarations(cursor)?;
        while let Some(at) = cursor.rest().iter().position(|&byte| matters(byte)) {
            cursor.bump(at);
            match cursor.peek() {
                Some(b'"') => {
                    cursor.skip_string()?;
                    continue;
                }
                Some(b'/') if cursor.skip_comment() => continue,
                Some(b'{') => depth = depth.saturating_add(1),
                Some(b'}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                let length = body.text.len().saturating_sub(cursor.rest().len());
                body.text = body.text.get(..length).unwrap_or_default();
                cursor.bump(1);
                return Ok(body);
            }
            cursor.bump(1);
            body.declarations(cursor)?;
        }
        Err(unclosed.error("a body without an end"))
    }

    /// Reads declarations, where a statement can begin.
    fn declarations(&mut self, cursor: &mut Cursor<'a>) -> Result<(), ImageError> {
        loop {
            cursor.skip_blank();
            if cursor.peek() != Some(b'.') {
                return Ok(());
            }
            let block = match cursor.word() {
                b".shared" => &mut self.shared,
                b".local" => &mut self.local,
                b".loc" => {
                    cursor.skip_line();
                    continue;
                }
                _ => return Ok(()),
            };
            for variable in declaration::variables(cursor)? {
                block
                    .place(&variable)
                    .ok_or_else(|| cursor.error("a function's variables are too large"))?;
            }
        }
    }
}

const fn matters(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b';' | b'"' | b'/')
}

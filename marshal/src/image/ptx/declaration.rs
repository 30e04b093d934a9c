//! Declarations of variables and parameters.

use super::cursor::Cursor;
use crate::image::ImageError;

/// One declared variable or parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variable<'a> {
    pub(super) name: &'a str,
    pub(super) bytes: u64,
    /// Never zero.
    pub(super) align_bytes: u64,
    pub(super) is_managed: bool,
    /// A texture, surface or sampler.
    pub(super) is_opaque: bool,
}

/// Reads what follows a state space (`.global`), up to and with the `;`.
///
/// Arrays without a size get that of their initializer, or none.
pub(super) fn variables<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<Variable<'a>>, ImageError> {
    let kind = Type::read(cursor)?;
    let mut variables = Vec::new();
    loop {
        let mut declarator = Declarator::read(cursor)?;
        if cursor.eat(b'=') {
            let elements = skip_initializer(cursor, declarator.is_unsized)?;
            declarator.unsized_elements(elements);
        }
        variables.push(declarator.variable(&kind, cursor)?);
        if cursor.eat(b';') {
            return Ok(variables);
        }
        if !cursor.eat(b',') {
            return Err(cursor.error("a declaration without an end"));
        }
    }
}

/// Reads what follows `.param` in a kernel's parameter list.
pub(super) fn parameter<'a>(cursor: &mut Cursor<'a>) -> Result<Variable<'a>, ImageError> {
    let kind = Type::read(cursor)?;
    Declarator::read(cursor)?.variable(&kind, cursor)
}

/// What comes before the name.
struct Type {
    element_bytes: u64,
    align_bytes: Option<u64>,
    is_managed: bool,
    is_opaque: bool,
}

impl Type {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ImageError> {
        let mut element_bytes = None;
        let mut lanes = 1;
        let mut align_bytes = None;
        let mut is_managed = false;
        let mut is_opaque = false;
        let mut of_pointee = false;
        loop {
            cursor.skip_blank();
            if cursor.peek() != Some(b'.') {
                break;
            }
            match cursor.word() {
                b".align" => {
                    let align = cursor.number()?;
                    // Behind `.ptr` it says how what is pointed to is aligned.
                    if !of_pointee {
                        align_bytes = Some(align);
                    }
                }
                b".ptr" => of_pointee = true,
                b".attribute" => is_managed |= skip_attribute(cursor),
                b".v2" => lanes = 2,
                b".v4" => lanes = 4,
                b".v8" => lanes = 8,
                b".texref" | b".surfref" | b".samplerref" => {
                    is_opaque = true;
                    element_bytes = Some(8);
                }
                word => element_bytes = scalar_bytes(word).or(element_bytes),
            }
        }
        if align_bytes.is_some_and(|align: u64| !align.is_power_of_two()) {
            return Err(cursor.error("an alignment that is no power of two"));
        }
        let element_bytes =
            element_bytes.ok_or_else(|| cursor.error("a declaration without a type"))?;
        Ok(Self {
            element_bytes: u64::saturating_mul(element_bytes, lanes),
            align_bytes,
            is_managed,
            is_opaque,
        })
    }
}

/// A name with its dimensions.
struct Declarator<'a> {
    name: &'a str,
    elements: Option<u64>,
    /// Has a `[]`.
    is_unsized: bool,
}

impl<'a> Declarator<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, ImageError> {
        let mut declarator = Self {
            name: cursor.name()?,
            elements: Some(1),
            is_unsized: false,
        };
        while cursor.eat(b'[') {
            if cursor.eat(b']') {
                declarator.is_unsized = true;
                continue;
            }
            let count = cursor.number()?;
            declarator.elements = declarator.elements.and_then(|e| e.checked_mul(count));
            if !cursor.eat(b']') {
                return Err(cursor.error("an array size that is no number"));
            }
        }
        Ok(declarator)
    }

    fn unsized_elements(&mut self, elements: u64) {
        if self.is_unsized {
            self.elements = Some(elements);
            self.is_unsized = false;
        }
    }

    fn variable(self, kind: &Type, cursor: &Cursor<'_>) -> Result<Variable<'a>, ImageError> {
        let elements = if self.is_unsized {
            Some(0)
        } else {
            self.elements
        };
        let bytes = elements.and_then(|elements| elements.checked_mul(kind.element_bytes));
        Ok(Variable {
            name: self.name,
            bytes: bytes.ok_or_else(|| cursor.error("a variable is too large"))?,
            align_bytes: kind.align_bytes.unwrap_or(kind.element_bytes).max(1),
            is_managed: kind.is_managed,
            is_opaque: kind.is_opaque,
        })
    }
}

fn scalar_bytes(word: &[u8]) -> Option<u64> {
    Some(match word {
        b".b8" | b".u8" | b".s8" | b".pred" => 1,
        b".b16" | b".u16" | b".s16" | b".f16" | b".bf16" => 2,
        b".b32" | b".u32" | b".s32" | b".f32" | b".f16x2" | b".bf16x2" | b".tf32" => 4,
        b".b64" | b".u64" | b".s64" | b".f64" => 8,
        b".b128" | b".u128" | b".s128" => 16,
        _ => return None,
    })
}

/// Steps over `(.managed, ...)`, and says whether `.managed` is in it.
fn skip_attribute(cursor: &mut Cursor<'_>) -> bool {
    let mut is_managed = false;
    if !cursor.eat(b'(') {
        return false;
    }
    while cursor.peek().is_some() && !cursor.eat(b')') {
        let word = cursor.word();
        is_managed |= word == b".managed";
        if word.is_empty() {
            cursor.bump(1);
        }
    }
    is_managed
}

/// Steps over an initializer, which ends before a `,` or `;` outside of braces. Returns how
/// many elements it has if `count` asks for it: tables have very many.
fn skip_initializer(cursor: &mut Cursor<'_>, count: bool) -> Result<u64, ImageError> {
    let mut depth = 0_u32;
    let mut elements = 1_u64;
    loop {
        let separators = depth == 0 || count;
        let next = cursor.rest().iter().position(|byte| match byte {
            b'{' | b'}' | b'(' | b')' | b'"' | b'/' => true,
            b',' | b';' => separators,
            _ => false,
        });
        cursor.bump(next.unwrap_or(cursor.rest().len()));
        match cursor.peek() {
            None => return Err(cursor.error("an initializer without an end")),
            Some(b',' | b';') if depth == 0 => return Ok(elements),
            Some(b'"') => {
                cursor.skip_string()?;
                continue;
            }
            Some(b'/') if cursor.skip_comment() => continue,
            Some(b'{' | b'(') => depth = depth.saturating_add(1),
            Some(b'}' | b')') => depth = depth.saturating_sub(1),
            Some(b',') => elements = elements.saturating_add(1),
            Some(_) => {}
        }
        cursor.bump(1);
    }
}

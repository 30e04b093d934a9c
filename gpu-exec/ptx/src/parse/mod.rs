//! PTX text to [`ast::Ast`]: a hand-written recursive-descent parser.
#![forbid(unsafe_code)]

pub(crate) mod ast;
mod body;
mod decl;
mod lex;

use ast::Ast;
use lex::{Tok, Token};

use crate::error::PtxError;

type Result<T> = std::result::Result<T, PtxError>;

/// Parses a whole module. Total over all inputs.
pub(crate) fn parse(text: &str) -> Result<Ast<'_>> {
    let tokens = lex::lex(text.trim_end_matches('\0'))?;
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        depth: 0,
    };
    let mut ast = Ast::default();
    while parser.peek() != Tok::End {
        parser.top_level(&mut ast)?;
    }
    if ast.version == (0, 0) {
        return Err(parser.error("no .version directive"));
    }
    Ok(ast)
}

/// Initializers and operands nest; the text must not choose the depth of our stack.
const DEPTH_MAX: u32 = 64;

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Token<'t>>,
    at: usize,
    depth: u32,
}

impl<'t> Parser<'t> {
    fn token(&self) -> Token<'t> {
        // The list ends in `End` and `bump` never moves past it.
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> Tok<'t> {
        self.token().kind
    }

    fn peek_at(&self, ahead: usize) -> Tok<'t> {
        self.tokens
            .get(self.at + ahead)
            .map_or(Tok::End, |t| t.kind)
    }

    fn bump(&mut self) -> Token<'t> {
        let token = self.token();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn error(&self, message: impl Into<String>) -> PtxError {
        let token = self.token();
        PtxError::new(token.line, token.column, message)
    }

    fn is(&self, punct: u8) -> bool {
        self.peek() == Tok::Punct(punct)
    }

    fn eat(&mut self, punct: u8) -> bool {
        let found = self.is(punct);
        if found {
            self.bump();
        }
        found
    }

    fn expect(&mut self, punct: u8) -> Result<()> {
        if self.eat(punct) {
            return Ok(());
        }
        Err(self.error(format!(
            "expected `{}`, found {}",
            char::from(punct),
            describe(self.peek())
        )))
    }

    fn word(&mut self) -> Result<&'t str> {
        match self.peek() {
            Tok::Word(word) => {
                self.bump();
                Ok(word)
            }
            other => Err(self.error(format!("expected a name, found {}", describe(other)))),
        }
    }

    /// A name after a dot, with `::` parts joined.
    fn dotted(&mut self) -> Result<&'t str> {
        self.expect(b'.')?;
        let start = self.token().start;
        let mut end = self.token().end;
        match self.bump().kind {
            Tok::Word(_) | Tok::Int(_) => {}
            _ => return Err(self.error("expected a directive after `.`")),
        }
        while self.is(b':') && self.peek_at(1) == Tok::Punct(b':') {
            self.bump();
            self.bump();
            end = self.bump().end;
        }
        Ok(self.slice(start, end))
    }

    fn slice(&self, start: usize, end: usize) -> &'t str {
        self.text.get(start..end).unwrap_or("")
    }

    fn int(&mut self) -> Result<u64> {
        match self.peek() {
            Tok::Int(value) => {
                self.bump();
                Ok(value)
            }
            other => Err(self.error(format!("expected an integer, found {}", describe(other)))),
        }
    }

    fn int_u32(&mut self) -> Result<u32> {
        let at = self.error("number too large");
        u32::try_from(self.int()?).map_err(|_| at)
    }

    /// `-`/`+` signs before an integer are folded in, two's complement.
    fn signed_int(&mut self) -> Result<i64> {
        let mut negative = false;
        while self.is(b'-') || self.is(b'+') {
            negative ^= self.is(b'-');
            self.bump();
        }
        let value = self.int()?.cast_signed();
        Ok(if negative {
            value.wrapping_neg()
        } else {
            value
        })
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Drops everything up to the end of the line: debug directives.
    fn skip_line(&mut self) {
        let line = self.token().line;
        while self.peek() != Tok::End && self.token().line == line {
            self.bump();
        }
    }

    /// Drops a `{ ... }` group.
    fn skip_braces(&mut self) -> Result<()> {
        self.expect(b'{')?;
        let mut open = 1u32;
        while open > 0 {
            match self.bump().kind {
                Tok::Punct(b'{') => open += 1,
                Tok::Punct(b'}') => open -= 1,
                Tok::End => return Err(self.error("`{` without `}`")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn describe(tok: Tok<'_>) -> String {
    match tok {
        Tok::Word(w) => format!("`{w}`"),
        Tok::Int(v) => format!("`{v}`"),
        Tok::F32(_) | Tok::F64(_) => "a float".to_owned(),
        Tok::Str(_) => "a string".to_owned(),
        Tok::Punct(p) => format!("`{}`", char::from(p)),
        Tok::End => "the end of the text".to_owned(),
    }
}

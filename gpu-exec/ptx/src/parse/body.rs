//! Function bodies: statements, instructions and operands.
#![forbid(unsafe_code)]

use super::ast::{Inst, Operand, Space, Stmt, Ty, VarSpace};
use super::lex::Tok;
use super::{Parser, Result};

impl<'t> Parser<'t> {
    /// A braced body, nested scopes flattened into `Open`/`Close`.
    pub(super) fn body(&mut self) -> Result<Vec<Stmt<'t>>> {
        self.expect(b'{')?;
        let mut stmts = Vec::new();
        let mut open = 1u32;
        loop {
            match self.peek() {
                Tok::Punct(b'{') => {
                    self.bump();
                    open += 1;
                    stmts.push(Stmt::Open);
                }
                Tok::Punct(b'}') => {
                    self.bump();
                    open -= 1;
                    if open == 0 {
                        return Ok(stmts);
                    }
                    stmts.push(Stmt::Close);
                }
                Tok::Punct(b';') => {
                    self.bump();
                }
                Tok::Punct(b'.') => self.directive(&mut stmts)?,
                Tok::Word(label) if self.is_label() => {
                    self.bump();
                    self.bump();
                    self.labelled(label, &mut stmts)?;
                }
                Tok::Word(_) | Tok::Punct(b'@') => {
                    let inst = self.instruction()?;
                    stmts.push(Stmt::Inst(Box::new(inst)));
                }
                Tok::End => return Err(self.error("`{` without `}`")),
                _ => return Err(self.error("expected a statement")),
            }
        }
    }

    fn is_label(&self) -> bool {
        self.peek_at(1) == Tok::Punct(b':') && self.peek_at(2) != Tok::Punct(b':')
    }

    /// After `label:` there may be a table that the label names, else it marks a place.
    fn labelled(&mut self, label: &'t str, stmts: &mut Vec<Stmt<'t>>) -> Result<()> {
        if !self.is(b'.') {
            stmts.push(Stmt::Label(label));
            return Ok(());
        }
        match self.peek_at(1) {
            Tok::Word("branchtargets") => {
                let targets = self.label_table()?;
                stmts.push(Stmt::BranchTargets { label, targets });
            }
            Tok::Word("calltargets") => {
                // The callee's address says which function it is; its ABI comes from its own head.
                self.label_table()?;
            }
            Tok::Word("callprototype") => {
                self.dotted()?;
                let rets = if self.is(b'(') {
                    self.params()?
                } else {
                    Vec::new()
                };
                self.word()?;
                let params = if self.is(b'(') {
                    self.params()?
                } else {
                    Vec::new()
                };
                while self.is(b'.') {
                    self.dotted()?;
                }
                self.expect(b';')?;
                stmts.push(Stmt::CallPrototype {
                    label,
                    params,
                    rets,
                });
            }
            _ => stmts.push(Stmt::Label(label)),
        }
        Ok(())
    }

    fn label_table(&mut self) -> Result<Vec<&'t str>> {
        self.dotted()?;
        let mut targets = vec![self.word()?];
        while self.eat(b',') {
            targets.push(self.word()?);
        }
        self.expect(b';')?;
        Ok(targets)
    }

    fn directive(&mut self, stmts: &mut Vec<Stmt<'t>>) -> Result<()> {
        let line = self.token().line;
        match self.dotted()? {
            "reg" => self.reg_decl(stmts),
            "loc" | "file" => {
                while self.peek() != Tok::End && self.token().line == line {
                    self.bump();
                }
                Ok(())
            }
            "pragma" => {
                while !self.eat(b';') {
                    if self.bump().kind == Tok::End {
                        return Err(self.error("`.pragma` without `;`"));
                    }
                }
                Ok(())
            }
            "extern" | "visible" | "weak" => Ok(()),
            name => {
                let Some(space) = Space::parse(name) else {
                    return Err(self.error(format!("unknown directive `.{name}`")));
                };
                let mut vars = Vec::new();
                self.vars(VarSpace::Mem(space), false, &mut vars)?;
                stmts.extend(vars.into_iter().map(Stmt::Var));
                Ok(())
            }
        }
    }

    fn reg_decl(&mut self, stmts: &mut Vec<Stmt<'t>>) -> Result<()> {
        let mut vec = 1;
        let ty = loop {
            match self.dotted()? {
                "v2" => vec = 2,
                "v4" => vec = 4,
                name => match Ty::parse(name) {
                    Some(ty) => break ty,
                    None => return Err(self.error(format!("unknown type `.{name}`"))),
                },
            }
        };
        loop {
            let name = self.word()?;
            let count = if self.eat(b'<') {
                let count = self.int_u32()?;
                self.expect(b'>')?;
                if count > 1 << 20 {
                    return Err(self.error("more registers than any program has"));
                }
                Some(count)
            } else {
                None
            };
            stmts.push(Stmt::Reg {
                name,
                ty,
                vec,
                count,
            });
            if !self.eat(b',') {
                return self.expect(b';');
            }
        }
    }

    fn instruction(&mut self) -> Result<Inst<'t>> {
        let mut guard = None;
        if self.eat(b'@') {
            let negated = self.eat(b'!');
            guard = Some((self.word()?, negated));
        }
        let at = self.token();
        let opcode = self.opcode()?;
        let operands = self.operands().map_err(|e| e.in_instruction(opcode))?;
        Ok(Inst {
            guard,
            opcode,
            operands,
            line: at.line,
            column: at.column,
        })
    }

    /// `ld.global.L1::no_allocate.v4.u32`: one slice of the text.
    fn opcode(&mut self) -> Result<&'t str> {
        let start = self.token().start;
        let mut end = self.token().end;
        self.word()?;
        loop {
            let dot = self.is(b'.');
            let scope = self.is(b':') && self.peek_at(1) == Tok::Punct(b':');
            if !dot && !scope {
                return Ok(self.slice(start, end));
            }
            self.bump();
            if scope {
                self.bump();
            }
            end = self.token().end;
            match self.bump().kind {
                Tok::Word(_) | Tok::Int(_) => {}
                _ => return Err(self.error("malformed opcode")),
            }
        }
    }

    fn operands(&mut self) -> Result<Vec<Operand<'t>>> {
        let mut operands = Vec::new();
        if self.eat(b';') {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand()?);
            if self.eat(b';') {
                return Ok(operands);
            }
            self.expect(b',')?;
        }
    }

    fn operand(&mut self) -> Result<Operand<'t>> {
        let first = match self.peek() {
            Tok::Punct(b'[') => return self.nested(Self::address),
            Tok::Punct(b'{') => {
                self.bump();
                return Ok(Operand::Vector(self.list(b'}')?));
            }
            Tok::Punct(b'(') => {
                self.bump();
                return Ok(Operand::List(self.list(b')')?));
            }
            Tok::Punct(b'!') => {
                self.bump();
                return Ok(Operand::Not(self.word()?));
            }
            Tok::Word(_) => self.name()?,
            _ => return self.number(),
        };
        if self.eat(b'|') {
            let second = Operand::Name(self.name()?);
            return Ok(Operand::Pair(
                Box::new(Operand::Name(first)),
                Box::new(second),
            ));
        }
        if self.is(b'+') || self.is(b'-') {
            return Ok(Operand::Offset(first, self.signed_int()?));
        }
        Ok(Operand::Name(first))
    }

    /// A name with an optional component (`%tid.x`, `%v.w`).
    fn name(&mut self) -> Result<&'t str> {
        let start = self.token().start;
        let mut end = self.token().end;
        self.word()?;
        if self.is(b'.') && matches!(self.peek_at(1), Tok::Word(_)) {
            self.bump();
            end = self.bump().end;
        }
        Ok(self.slice(start, end))
    }

    fn list(&mut self, close: u8) -> Result<Vec<Operand<'t>>> {
        self.nested(|p| {
            let mut items = Vec::new();
            while !p.eat(close) {
                items.push(p.operand()?);
                if !p.is(close) {
                    p.expect(b',')?;
                }
            }
            Ok(items)
        })
    }

    fn address(&mut self) -> Result<Operand<'t>> {
        self.expect(b'[')?;
        let base = self.operand()?;
        if self.eat(b',') {
            let coordinates = match self.operand()? {
                Operand::Vector(list) => list,
                single => vec![single],
            };
            self.expect(b']')?;
            return Ok(Operand::Texel(Box::new(base), coordinates));
        }
        let operand = match base {
            Operand::Offset(name, offset) => {
                Operand::Address(Box::new(Operand::Name(name)), offset)
            }
            base => Operand::Address(Box::new(base), 0),
        };
        self.expect(b']')?;
        Ok(operand)
    }

    fn number(&mut self) -> Result<Operand<'t>> {
        let mut negative = false;
        while self.is(b'-') || self.is(b'+') {
            negative ^= self.is(b'-');
            self.bump();
        }
        Ok(match self.peek() {
            Tok::Int(v) => {
                self.bump();
                Operand::Int(if negative { v.wrapping_neg() } else { v })
            }
            Tok::F32(bits) => {
                self.bump();
                Operand::F32(bits ^ (u32::from(negative) << 31))
            }
            Tok::F64(bits) => {
                self.bump();
                Operand::F64(bits ^ (u64::from(negative) << 63))
            }
            other => {
                return Err(self.error(format!(
                    "expected an operand, found {}",
                    super::describe(other)
                )));
            }
        })
    }
}

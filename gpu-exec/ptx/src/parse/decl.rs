//! Module-scope directives, functions' heads, variables and their initializers.
#![forbid(unsafe_code)]

use super::ast::{Ast, Func, Init, Space, Ty, Var, VarSpace};
use super::lex::Tok;
use super::{Parser, Result};

/// Linkage and attributes that may precede a declaration.
#[derive(Debug, Clone, Copy, Default)]
struct Prefix {
    external: bool,
}

impl<'t> Parser<'t> {
    pub(super) fn top_level(&mut self, ast: &mut Ast<'t>) -> Result<()> {
        if self.eat(b';') {
            return Ok(());
        }
        if let (Tok::Word("@@DWARF"), _) = (self.peek(), 0) {
            self.skip_line();
            return Ok(());
        }
        if self.is(b'@') {
            self.skip_line();
            return Ok(());
        }
        let mut prefix = Prefix::default();
        loop {
            if !self.is(b'.') {
                return Err(self.error("expected a directive"));
            }
            let line = self.token();
            match self.dotted()? {
                "version" => ast.version = self.version()?,
                "target" => {
                    ast.target = self.word()?;
                    while self.eat(b',') {
                        self.word()?;
                    }
                }
                "address_size" => self.address_size()?,
                "extern" => {
                    prefix.external = true;
                    continue;
                }
                "visible" | "weak" | "common" => continue,
                "file" | "loc" | "pragma" | "noreturn" => {
                    self.at = self.at.saturating_sub(1);
                    self.skip_line();
                }
                "section" => {
                    while !self.is(b'{') && self.peek() != Tok::End {
                        self.bump();
                    }
                    self.skip_braces()?;
                }
                "alias" => return Err(self.error(".alias is not supported")),
                "entry" => ast.funcs.push(self.func(true, line.line, line.column)?),
                "func" => ast.funcs.push(self.func(false, line.line, line.column)?),
                space => {
                    let Some(space) = Space::parse(space) else {
                        return Err(self.error(format!("unknown directive `.{space}`")));
                    };
                    self.vars(VarSpace::Mem(space), prefix.external, &mut ast.vars)?;
                }
            }
            return Ok(());
        }
    }

    fn version(&mut self) -> Result<(u32, u32)> {
        match self.bump().kind {
            // `8.4` reads as a decimal float.
            Tok::F64(bits) => {
                let text = format!("{}", f64::from_bits(bits));
                let (major, minor) = text.split_once('.').unwrap_or((&text, "0"));
                match (major.parse(), minor.parse()) {
                    (Ok(major), Ok(minor)) if major > 0 => Ok((major, minor)),
                    _ => Err(self.error("malformed .version")),
                }
            }
            _ => Err(self.error("malformed .version")),
        }
    }

    fn address_size(&mut self) -> Result<()> {
        match self.int()? {
            64 => Ok(()),
            _ => Err(self.error("only .address_size 64 is supported")),
        }
    }

    fn func(&mut self, entry: bool, line: u32, column: u32) -> Result<Func<'t>> {
        let mut rets = Vec::new();
        self.attribute_list()?;
        if !entry && self.is(b'(') {
            rets = self.params()?;
        }
        let name = self.word()?;
        let params = if self.is(b'(') {
            self.params()?
        } else {
            Vec::new()
        };
        let mut func = Func {
            name,
            entry,
            params,
            rets,
            body: None,
            maxntid: None,
            reqntid: None,
            line,
            column,
        };
        while self.is(b'.') {
            self.func_directive(&mut func)?;
        }
        if !self.eat(b';') {
            func.body = Some(self.body()?);
        }
        Ok(func)
    }

    /// `.attribute(.unified(...), .managed)`: tells whether `.managed` is among them.
    fn attribute_list(&mut self) -> Result<bool> {
        let mut managed = false;
        while self.is(b'.') && self.peek_at(1) == Tok::Word("attribute") {
            self.bump();
            self.bump();
            self.expect(b'(')?;
            let mut open = 1u32;
            while open > 0 {
                match self.bump().kind {
                    Tok::Punct(b'(') => open += 1,
                    Tok::Punct(b')') => open -= 1,
                    Tok::Word("managed") => managed = true,
                    Tok::End => return Err(self.error("`(` without `)`")),
                    _ => {}
                }
            }
        }
        Ok(managed)
    }

    fn func_directive(&mut self, func: &mut Func<'t>) -> Result<()> {
        let name = self.dotted()?;
        match name {
            "maxntid" => func.maxntid = Some(self.triple()?),
            "reqntid" => func.reqntid = Some(self.triple()?),
            "minnctapersm"
            | "maxnctapersm"
            | "maxnreg"
            | "maxclusterrank"
            | "abi_preserve"
            | "abi_preserve_control" => {
                self.int()?;
            }
            "reqnctapercluster" => {
                self.triple()?;
            }
            "noreturn" | "explicitcluster" | "blocksareclusters" => {}
            "pragma" => {
                self.bump();
                self.eat(b';');
            }
            other => return Err(self.error(format!("unknown directive `.{other}`"))),
        }
        Ok(())
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut triple = [self.int_u32()?, 1, 1];
        for next in &mut triple[1..] {
            if !self.eat(b',') {
                break;
            }
            *next = self.int_u32()?;
        }
        Ok(triple)
    }

    /// `(.param .u64 a, .reg .b32 b)`
    pub(super) fn params(&mut self) -> Result<Vec<Var<'t>>> {
        self.expect(b'(')?;
        let mut params = Vec::new();
        while !self.eat(b')') {
            let space = match self.dotted()? {
                "reg" => VarSpace::Reg,
                "param" => VarSpace::Mem(Space::Param),
                other => return Err(self.error(format!("`.{other}` cannot be a parameter"))),
            };
            params.push(self.var(space, false)?);
            if !self.is(b')') {
                self.expect(b',')?;
            }
        }
        Ok(params)
    }

    /// A declaration list up to its semicolon; the space is already consumed.
    pub(super) fn vars(
        &mut self,
        space: VarSpace,
        external: bool,
        into: &mut Vec<Var<'t>>,
    ) -> Result<()> {
        let first = self.var(space, external)?;
        let (ty, align, managed) = (first.ty, first.align, first.managed);
        into.push(first);
        while self.eat(b',') {
            let mut var = self.declarator(space, external, ty, 1, align)?;
            var.managed = managed;
            into.push(var);
        }
        self.expect(b';')
    }

    fn var(&mut self, space: VarSpace, external: bool) -> Result<Var<'t>> {
        let managed = self.attribute_list()?;
        let mut align = None;
        let mut vec = 1;
        let ty = loop {
            match self.dotted()? {
                "align" => align = Some(self.alignment()?),
                // Opaque parameter hints: `.param .u64 .ptr .global .align 8 p`
                "ptr" | "global" | "const" | "shared" | "local" => {}
                "v2" => vec = 2,
                "v4" => vec = 4,
                name => match Ty::parse(name) {
                    Some(ty) => break ty,
                    None => return Err(self.error(format!("unknown type `.{name}`"))),
                },
            }
        };
        // `.ptr` and its attributes follow the type; their `.align` is of the pointee.
        while self.is(b'.') {
            if self.dotted()? == "align" {
                self.alignment()?;
            }
        }
        let align = align.unwrap_or(ty.bytes() * vec);
        let mut var = self.declarator(space, external, ty, vec, align)?;
        var.managed = managed;
        Ok(var)
    }

    fn alignment(&mut self) -> Result<u32> {
        let align = self.int_u32()?;
        if align.is_power_of_two() && align <= 1 << 20 {
            return Ok(align);
        }
        Err(self.error("alignment must be a power of two"))
    }

    fn declarator(
        &mut self,
        space: VarSpace,
        external: bool,
        ty: Ty,
        vec: u32,
        align: u32,
    ) -> Result<Var<'t>> {
        let (line, column) = (self.token().line, self.token().column);
        // A prototype may leave its parameters without names.
        let name = match self.peek() {
            Tok::Word(name) => {
                self.bump();
                name
            }
            _ => "_",
        };
        let mut count = u64::from(vec);
        let mut unsized_array = false;
        while self.eat(b'[') {
            if self.eat(b']') {
                unsized_array = true;
                continue;
            }
            count = count.saturating_mul(self.int()?);
            self.expect(b']')?;
        }
        let init = if self.eat(b'=') {
            Some(self.initializer()?)
        } else {
            None
        };
        if unsized_array {
            count = match &init {
                Some(Init::List(items)) => count.saturating_mul(items.len() as u64),
                _ => 0,
            };
        }
        Ok(Var {
            name,
            space,
            ty,
            align,
            count,
            init,
            external,
            managed: false,
            line,
            column,
        })
    }

    fn initializer(&mut self) -> Result<Init<'t>> {
        if self.eat(b'{') {
            return self.nested(|p| {
                let mut items = Vec::new();
                while !p.eat(b'}') {
                    items.push(p.initializer()?);
                    if !p.is(b'}') {
                        p.expect(b',')?;
                    }
                }
                Ok(Init::List(items))
            });
        }
        match self.peek() {
            Tok::Word("generic") => {
                self.bump();
                self.expect(b'(')?;
                let name = self.word()?;
                self.expect(b')')?;
                Ok(Init::Sym {
                    name,
                    addend: self.addend()?,
                    generic: true,
                    mask: None,
                })
            }
            Tok::Word(name) => {
                self.bump();
                Ok(Init::Sym {
                    name,
                    addend: self.addend()?,
                    generic: false,
                    mask: None,
                })
            }
            Tok::Int(mask) if self.peek_at(1) == Tok::Punct(b'(') => {
                self.bump();
                self.bump();
                let inner = self.nested(Self::initializer)?;
                self.expect(b')')?;
                match inner {
                    Init::Sym {
                        name,
                        addend,
                        generic,
                        ..
                    } => Ok(Init::Sym {
                        name,
                        addend,
                        generic,
                        mask: Some(mask),
                    }),
                    _ => Err(self.error("a mask applies to the address of a symbol")),
                }
            }
            _ => self.number_initializer(),
        }
    }

    fn number_initializer(&mut self) -> Result<Init<'t>> {
        let negative = self.eat(b'-');
        Ok(match self.bump().kind {
            Tok::Int(v) if negative => Init::Int(v.wrapping_neg()),
            Tok::Int(v) => Init::Int(v),
            Tok::F32(bits) => Init::F32(bits ^ (u32::from(negative) << 31)),
            Tok::F64(bits) => Init::F64(bits ^ (u64::from(negative) << 63)),
            _ => return Err(self.error("malformed initializer")),
        })
    }

    fn addend(&mut self) -> Result<i64> {
        if self.is(b'+') || self.is(b'-') {
            self.signed_int()
        } else {
            Ok(0)
        }
    }
}

//! A fast scan of PTX for its declarations. Instructions are stepped over, not parsed.

mod body;
mod cursor;
mod declaration;
mod kernel;
mod sharing;

use self::body::Body;
use self::cursor::Cursor;
use self::declaration::Variable;
use self::sharing::Sharing;
use super::{Arch, CodeKind, GlobalInfo, ImageError, ModuleInfo};

/// What every PTX text begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) arch: Arch,
}

/// Reads `.version` and `.target`.
///
/// # Errors
/// [`ImageError::InvalidPtx`] if they are not what the text begins with.
pub(super) fn header(text: &[u8]) -> Result<Header, ImageError> {
    let mut cursor = Cursor::new(text);
    cursor.skip_blank();
    if cursor.word() != b".version" {
        return Err(cursor.error("it does not begin with .version"));
    }
    cursor.skip_blank();
    let version = cursor.word();
    if !version.first().is_some_and(u8::is_ascii_digit) {
        return Err(cursor.error("a .version without a number"));
    }
    // The minor version, with its dot.
    cursor.word();
    cursor.skip_blank();
    if cursor.word() != b".target" {
        return Err(cursor.error("no .target after .version"));
    }
    loop {
        cursor.skip_blank();
        let word = std::str::from_utf8(cursor.word()).unwrap_or_default();
        if let Some(arch) = Arch::parse(word) {
            return Ok(Header { arch });
        }
        // Texture modes may come before it.
        if word.is_empty() || !cursor.eat(b',') {
            return Err(cursor.error("a .target without an architecture"));
        }
    }
}

/// See [`inspect`](super::inspect()).
pub(super) fn inspect(bytes: &[u8]) -> Result<ModuleInfo, ImageError> {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or(bytes);
    let arch = header(text)?.arch;
    let mut scan = Scan {
        cursor: Cursor::new(text),
        is_extern: false,
        constants: Block::default(),
        sharing: Sharing::default(),
        module: ModuleInfo {
            kind: CodeKind::Ptx,
            arch,
            virtual_sm: arch.sm,
            relocatable: false,
            const_bytes: 0,
            kernels: Vec::new(),
            globals: Vec::new(),
        },
    };
    while scan.step()? {}
    scan.finish()
}

/// Memory that variables are laid out in one after the other.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    bytes: u64,
}

impl Block {
    /// Where a variable goes; the block then ends behind it. `None` on overflow.
    fn place(&mut self, variable: &Variable<'_>) -> Option<u64> {
        let offset = self.bytes.checked_next_multiple_of(variable.align_bytes)?;
        self.bytes = offset.checked_add(variable.bytes)?;
        Some(offset)
    }

    fn bytes_u32(self) -> Option<u32> {
        u32::try_from(self.bytes).ok()
    }
}

/// The scan at module scope.
struct Scan<'a> {
    cursor: Cursor<'a>,
    /// Seen `.extern`, and no declaration since.
    is_extern: bool,
    constants: Block,
    sharing: Sharing<'a>,
    module: ModuleInfo,
}

impl<'a> Scan<'a> {
    /// Goes one token on, or one declaration. False at the end.
    fn step(&mut self) -> Result<bool, ImageError> {
        self.cursor.skip_blank();
        let Some(byte) = self.cursor.peek() else {
            return Ok(false);
        };
        match byte {
            b'.' => {
                let word = self.cursor.word();
                self.directive(word)?;
            }
            b'{' => {
                self.cursor.bump(1);
                Body::read(&mut self.cursor)?;
            }
            b'"' => self.cursor.skip_string()?,
            // DWARF as older compilers wrote it, a line each.
            b'@' => self.cursor.skip_line(),
            _ => {
                if self.cursor.word().is_empty() {
                    self.cursor.bump(1);
                }
            }
        }
        Ok(true)
    }

    fn directive(&mut self, word: &'a [u8]) -> Result<(), ImageError> {
        match word {
            b".extern" => self.is_extern = true,
            b".entry" => {
                self.is_extern = false;
                if let Some((kernel, body)) = kernel::read(&mut self.cursor, self.module.arch.sm)? {
                    self.module.kernels.push(kernel);
                    self.sharing.kernel(body);
                }
            }
            b".func" => {
                self.is_extern = false;
                if self.cursor.skip_to_body() {
                    let body = Body::read(&mut self.cursor)?;
                    self.sharing.function(body);
                }
            }
            b".global" => {
                for variable in self.variables()? {
                    self.global(&variable, false);
                }
            }
            b".const" => {
                for variable in self.variables()? {
                    self.global(&variable, true);
                    self.constants
                        .place(&variable)
                        .ok_or_else(|| self.cursor.error("constants too large"))?;
                }
            }
            b".shared" => {
                for variable in self.variables()? {
                    self.sharing.variable(variable);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The variables of a declaration, unless they are declared elsewhere.
    fn variables(&mut self) -> Result<Vec<Variable<'a>>, ImageError> {
        let mut variables = declaration::variables(&mut self.cursor)?;
        if std::mem::take(&mut self.is_extern) {
            variables.clear();
        }
        Ok(variables)
    }

    fn global(&mut self, variable: &Variable<'_>, is_const: bool) {
        if !variable.is_opaque {
            self.module.globals.push(GlobalInfo {
                name: variable.name.to_owned(),
                bytes: variable.bytes,
                is_const,
                is_managed: variable.is_managed,
            });
        }
    }

    fn finish(mut self) -> Result<ModuleInfo, ImageError> {
        self.module.const_bytes = self
            .constants
            .bytes_u32()
            .ok_or_else(|| self.cursor.error("constants too large"))?;
        self.sharing
            .charge(&mut self.module.kernels)
            .ok_or_else(|| self.cursor.error("shared memory too large"))?;
        Ok(self.module)
    }
}

#[cfg(test)]
mod tests;

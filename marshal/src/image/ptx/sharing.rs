//! Whose shared memory a variable is, that is not declared in one kernel.
//!
//! Compilers declare a kernel's shared variables in its body. Variables at module scope, and
//! those of functions, are charged to each kernel that can use them: that names them, or calls.

use std::collections::{BTreeMap, HashMap};

use super::Block;
use super::body::Body;
use super::cursor::is_word;
use super::declaration::Variable;
use crate::image::KernelInfo;

/// Gathers bodies and variables at module scope.
#[derive(Debug, Default)]
pub(super) struct Sharing<'a> {
    variables: Vec<Variable<'a>>,
    /// One of each kernel.
    kernels: Vec<Body<'a>>,
    functions: Vec<Body<'a>>,
}

impl<'a> Sharing<'a> {
    pub(super) fn variable(&mut self, variable: Variable<'a>) {
        self.variables.push(variable);
    }

    pub(super) fn kernel(&mut self, body: Body<'a>) {
        self.kernels.push(body);
    }

    pub(super) fn function(&mut self, body: Body<'a>) {
        self.functions.push(body);
    }

    /// Sets what each kernel takes; `None` if that is absurdly much.
    ///
    /// Every text is gone through once: a kernel that calls is charged what all functions
    /// together use.
    pub(super) fn charge(&self, kernels: &mut [KernelInfo]) -> Option<()> {
        let outside =
            !self.variables.is_empty() || self.functions.iter().any(|body| body.shared.bytes > 0);
        let names = self
            .variables
            .iter()
            .map(|variable| variable.name.as_bytes());
        let index: HashMap<_, _> = names.zip(&self.variables).collect();
        let called = self.called(&index)?;
        for (kernel, body) in kernels.iter_mut().zip(&self.kernels) {
            let mut block = body.shared;
            if outside {
                let uses = Uses::of(body.text, &index);
                for variable in uses.variables.values() {
                    block.place(variable)?;
                }
                if uses.calls {
                    block.place(&called)?;
                }
            }
            kernel.resources.shared_static_bytes = block.bytes_u32()?;
        }
        Some(())
    }

    /// What all functions use, as if it were one variable.
    fn called(&self, index: &HashMap<&[u8], &Variable<'a>>) -> Option<Variable<'a>> {
        let mut block = Block::default();
        let mut align_bytes = 16;
        let mut used = BTreeMap::new();
        for function in &self.functions {
            block.bytes = block.bytes.checked_add(function.shared.bytes)?;
            used.append(&mut Uses::of(function.text, index).variables);
        }
        for variable in used.values() {
            block.place(variable)?;
            align_bytes = align_bytes.max(variable.align_bytes);
        }
        Some(Variable {
            name: "",
            bytes: block.bytes,
            align_bytes,
            is_managed: false,
            is_opaque: false,
        })
    }
}

/// What a text uses.
struct Uses<'a> {
    variables: BTreeMap<&'a str, Variable<'a>>,
    calls: bool,
}

impl<'a> Uses<'a> {
    fn of(text: &[u8], index: &HashMap<&[u8], &Variable<'a>>) -> Self {
        let mut uses = Self {
            variables: BTreeMap::new(),
            calls: false,
        };
        for word in text.split(|&byte| !is_word(byte)) {
            uses.calls |= word == b"call";
            if let Some(&&variable) = index.get(word) {
                uses.variables.insert(variable.name, variable);
            }
        }
        uses
    }
}

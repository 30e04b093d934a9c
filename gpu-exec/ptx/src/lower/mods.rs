//! The modifiers of an opcode, each of which must be understood.
#![forbid(unsafe_code)]

use crate::parse::ast::{Space, Ty};

/// Opcode parts and which of them were used; what is left over at the end is an error.
pub(super) struct Mods<'t> {
    pub(super) parts: Vec<&'t str>,
    used: u64,
}

impl<'t> Mods<'t> {
    pub(super) fn new(opcode: &'t str) -> Self {
        Self {
            parts: opcode.split('.').collect(),
            used: 1,
        }
    }

    pub(super) fn name(&self) -> &'t str {
        self.parts[0]
    }

    fn take_at(&mut self, at: usize) {
        if at < 64 {
            self.used |= 1 << at;
        }
    }

    fn free(&self, at: usize) -> bool {
        at >= 64 || self.used >> at & 1 == 0
    }

    /// Whether the modifier is present; marks it as understood.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        let found = (1..self.parts.len()).find(|&i| self.free(i) && self.parts[i] == name);
        if let Some(at) = found {
            self.take_at(at);
        }
        found.is_some()
    }

    /// The first unused part that `f` maps to something.
    pub(super) fn pick<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) = (1..self.parts.len())
            .filter(|&i| self.free(i))
            .find_map(|i| f(self.parts[i]).map(|v| (i, v)))?;
        self.take_at(at);
        Some(value)
    }

    /// The first unused type.
    pub(super) fn ty(&mut self) -> Result<Ty, String> {
        self.pick(Ty::parse).ok_or_else(|| "no type".to_owned())
    }

    pub(super) fn space(&mut self) -> Option<Space> {
        self.pick(Space::parse)
    }

    /// Marks modifiers that change nothing here: cache hints, scopes, orders.
    pub(super) fn ignore(&mut self, hint: impl Fn(&str) -> bool) {
        for i in 1..self.parts.len() {
            if self.free(i) && hint(self.parts[i]) {
                self.take_at(i);
            }
        }
    }

    /// Fails if a modifier was not understood.
    pub(super) fn done(&self) -> Result<(), String> {
        match (1..self.parts.len()).find(|&i| self.free(i)) {
            Some(at) => Err(format!(
                "modifier `.{}` is not supported here",
                self.parts[at]
            )),
            None => Ok(()),
        }
    }
}

/// Scopes and memory orders: one CPU memory model is stronger than all of them.
pub(super) fn order_or_scope(part: &str) -> bool {
    matches!(
        part,
        "relaxed"
            | "acquire"
            | "release"
            | "acq_rel"
            | "sc"
            | "weak"
            | "cta"
            | "cluster"
            | "gpu"
            | "sys"
            | "gl"
            | "mmio"
            | "noftz"
    )
}

/// Cache operators and eviction hints.
pub(super) fn cache_hint(part: &str) -> bool {
    matches!(
        part,
        "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "level::eviction_priority"
    ) || part.starts_with("L1::")
        || part.starts_with("L2::")
}

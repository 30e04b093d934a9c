//! The parser is total: any text gives a module or an error.
#![allow(clippy::unwrap_used, missing_docs)]

use farcall_ptx::Module;
use proptest::prelude::*;

const REAL: &str = include_str!("../../../fixtures/ptx/nvcc124_c70.ptx");

/// One kernel of the real text, small enough to try many mutations.
fn sample() -> String {
    let end = REAL.find(".visible .entry matmul_tiled").unwrap();
    REAL[..end].to_owned()
}

const WORDS: [&str; 40] = [
    ".reg",
    ".b32",
    ".pred",
    "%r<4>",
    "%r1",
    "%p1",
    "@%p1",
    "@!%p1",
    "bra",
    "L",
    "L:",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ";",
    ",",
    "mov.u32",
    "ld.global.v4.f32",
    ".param",
    ".entry k",
    ".func f",
    "call",
    ".shared",
    "add.s32",
    "0f3F800000",
    "0x",
    "1.5e",
    "-",
    "+",
    "|",
    "!",
    ".align 8",
    "= {1, 2}",
    "generic(x)",
    ".branchtargets",
    "cvt.rn.f16x2.f32",
    "mma.sync",
];

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,200}") {
        let _ = Module::parse(&text);
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Module::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_words(words in proptest::collection::vec(0usize..WORDS.len(), 0..60)) {
        let body: Vec<_> = words.iter().map(|&w| WORDS[w]).collect();
        let _ = Module::parse(&format!(".version 8.0\n.target sm_75\n.address_size 64\n{}", body.join(" ")));
        let _ = Module::parse(&format!(".version 8.0\n.target sm_75\n.address_size 64\n.entry k() {{ {} }}", body.join(" ")));
    }

    #[test]
    fn mutated_text(at in 0usize..4000, len in 0usize..12, insert in "[ -~\n]{0,6}") {
        let mut text = sample();
        let at = at % text.len();
        let end = (at + len).min(text.len());
        text.replace_range(at..end, &insert);
        let _ = Module::parse(&text);
    }

    #[test]
    fn cut_text(at in 0usize..100_000) {
        let _ = Module::parse(&REAL[..at % REAL.len()]);
    }
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    for open in ["{", "[", "("] {
        let text = format!(
            ".version 8.0\n.target sm_75\n.entry k() {{ mov.b32 {}",
            open.repeat(100_000)
        );
        assert!(Module::parse(&text).is_err());
    }
    let text = format!(
        ".version 8.0\n.target sm_75\n.global .b32 x[] = {}",
        "{".repeat(100_000)
    );
    assert!(Module::parse(&text).is_err());
    let _ = Module::parse(&format!(
        ".version 8.0\n.target sm_75\n.entry k() {}",
        "{".repeat(100_000)
    ));
}

#[test]
fn huge_sizes_are_refused() {
    for declaration in [
        ".global .b8 x[99999999999999999999];",
        ".global .b64 x[4611686018427387904][4];",
        ".entry k(.param .b8 x[4294967295]) { ret; }",
        ".entry k() { .shared .b8 x[4294967295]; ret; }",
        ".entry k() { .local .b8 x[4294967295]; ret; }",
        ".entry k() { .reg .b32 %r<4294967295>; ret; }",
    ] {
        let text = format!(".version 8.0\n.target sm_75\n.address_size 64\n{declaration}");
        assert!(Module::parse(&text).is_err(), "{declaration}");
    }
}

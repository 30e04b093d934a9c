#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::image::{KernelInfo, ParamSpec};

const HEAD: &str = "//\n// Generated\n\n.version 8.4\n.target sm_80\n.address_size 64\n";

fn scan(text: &str) -> ModuleInfo {
    inspect(format!("{HEAD}{text}").as_bytes()).unwrap()
}

fn kernel(text: &str) -> KernelInfo {
    let mut kernels = scan(text).kernels;
    assert_eq!(kernels.len(), 1);
    kernels.remove(0)
}

fn layout(kernel: &KernelInfo) -> Vec<(u32, u32)> {
    let pair = |spec: &ParamSpec| (spec.offset_bytes, spec.size_bytes);
    kernel.params.iter().map(pair).collect()
}

#[test]
fn parameters_are_laid_out_by_their_alignment() {
    let kernel = kernel(
        ".visible .entry k(
            .param .u8 a,
            .param .align 8 .b8 b[24], // a struct
            .param .f16 c, /* two bytes */
            .param .u64 .ptr .global .align 1 d,
            .param .b32 e[3],
            .param .align 16 .b8 f[1]
        ) { ret; }",
    );
    assert_eq!(kernel.name, "k");
    assert_eq!(
        layout(&kernel),
        [(0, 1), (8, 24), (32, 2), (40, 8), (48, 12), (64, 1)]
    );
    assert_eq!(kernel.param_bytes, 65);
    assert_eq!(kernel.ptx_version, 80);
}

#[test]
fn kernels_without_parameters() {
    let module = scan(".entry a { ret; } .visible .entry b() { ret; }");
    assert_eq!(module.kernels.len(), 2);
    assert!(module.kernels.iter().all(|k| k.has_layout()));
}

#[test]
fn declared_only_is_no_kernel() {
    assert!(
        scan(".extern .entry k(.param .u32 a);\n.visible .entry l;")
            .kernels
            .is_empty()
    );
}

#[test]
fn directives_before_the_body() {
    let kernel = kernel(
        ".entry k() .maxntid 32, 4\n.minnctapersm 2 .pragma \"nounroll\"; .explicitcluster
         .reqnctapercluster 2, 1, 1 .maxclusterrank 8 { ret; }",
    );
    assert_eq!(kernel.max_threads, Some(128));
    assert_eq!(kernel.required_block, None);
    assert_eq!(kernel.cluster.required, Some([2, 1, 1]));
    assert!(kernel.cluster.explicit);
    assert_eq!(kernel.cluster.blocks_max, Some(8));
    let required = super::tests::kernel(".entry k() .reqntid 64 { ret; }");
    assert_eq!(required.required_block, Some([64, 1, 1]));
    assert_eq!(required.max_threads, Some(64));
}

#[test]
fn bodies_end_where_they_end() {
    let module = scan(
        ".entry a() {
            // not here }
            /* nor } here */ .pragma \"} nor here \\\" }\";
            { .reg .b32 t; ld.global.v2.u32 {%r1, %r2}, [%rd1]; }
            ret;
        }
        .func (.param .b32 r) f(.param .b64 p) { ret; }
        .entry b(.param .u32 n) { ret; }",
    );
    let names: Vec<_> = module.kernels.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(layout(&module.kernels[1]), [(0, 4)]);
}

#[test]
fn shared_and_local_memory_of_the_body() {
    let kernel = kernel(
        ".entry k() {
            .loc 1 2 3
            .local .align 16 .b8 __local_depot0[40];
            .shared .align 4 .b8 tile[4224]; .shared .f64 sum;
            ld.shared.f32 %f1, [tile]; st.local.u32 [%rd], %r1;
        }",
    );
    assert_eq!(kernel.resources.shared_static_bytes, 4232);
    assert_eq!(kernel.resources.local_bytes, 40);
}

#[test]
fn shared_memory_at_module_scope_is_charged_to_its_users() {
    let module = scan(
        ".shared .align 4 .b8 one[100]; .shared .b32 two; .extern .shared .align 16 .b8 dyn[];
         .func f() { .shared .b32 own; st.shared.u32 [two], 0; ret; }
         .entry uses() { st.shared.u32 [one], 1; }
         .entry calls() { call f, (); }
         .entry neither() { st.shared.u32 [one_more], 1; }",
    );
    let bytes: Vec<_> = module
        .kernels
        .iter()
        .map(|k| k.resources.shared_static_bytes)
        .collect();
    assert_eq!(bytes, [100, 8, 0]);
}

#[test]
fn variables_of_the_module() {
    let module = scan(
        ".global .align 4 .u32 counter = 3;
         .visible .const .align 4 .b8 weights[256];
         .const .u8 flag;
         .global .attribute(.managed) .align 4 .u32 managed = 7;
         .extern .global .align 4 .b8 elsewhere[];
         .global .align 8 .u64 table[2][3] = {{1, 2, f}, {generic(counter), 5, 6}}, second;
         .global .align 1 .b8 text[] = {72, 105, 0};
         .global .texref tex;
         .visible .global .f32 last;",
    );
    let globals: Vec<_> = module
        .globals
        .iter()
        .map(|g| (g.name.as_str(), g.bytes, g.is_const, g.is_managed))
        .collect();
    assert_eq!(
        globals,
        [
            ("counter", 4, false, false),
            ("weights", 256, true, false),
            ("flag", 1, true, false),
            ("managed", 4, false, true),
            ("table", 48, false, false),
            ("second", 8, false, false),
            ("text", 3, false, false),
            ("last", 4, false, false),
        ]
    );
    assert_eq!(module.const_bytes, 257);
}

#[test]
fn debug_sections_are_stepped_over() {
    let module = scan(
        ".file 1 \"a { b.cu\", 123, 456
         .entry k() { .loc 1 2 3\n ret; }
         .section .debug_info { .b32 1, 2 \n .b8 3 }
         @@DWARF .section .debug { .byte 1
         .entry l() { ret; }",
    );
    assert_eq!(module.kernels.len(), 2);
}

#[test]
fn the_header_is_required() {
    for (text, line) in [
        ("", 1),
        ("int main() { }", 1),
        ("\n\n.target sm_80", 3),
        (".version 8.0\n.address_size 64", 2),
        (".version 8.0\n.target debug", 2),
    ] {
        match inspect(text.as_bytes()) {
            Err(ImageError::InvalidPtx { line: found, .. }) => assert_eq!(found, line, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert_eq!(
        header(b".version 8.0 .target texmode_independent, sm_90a, debug")
            .unwrap()
            .arch
            .to_string(),
        "sm_90a"
    );
}

#[test]
fn broken_declarations_name_their_line() {
    for text in [
        ".entry k(.param .u32 a",
        ".entry k(.param a) { }",
        ".entry k(.reg .u32 a) { }",
        ".entry k(.param .u32 a[n]) { }",
        ".entry k(.param .align 3 .u32 a) { }",
        ".entry k(.param .b64 a[99999999999999999999]) { }",
        ".entry k(.param .b64 a[4294967295][4294967295][4294967295]) { }",
        ".entry k(.param .b8 a[4294967296]) { }",
        ".entry k() { ret;",
        ".entry k() { .shared .b8 a[9999999999]; }",
        ".const .b8 a[9999999999];",
        ".global .u32 a = {1, 2",
        ".entry () { }",
        ".pragma \"never closed",
    ] {
        let text = format!("{HEAD}{text}");
        assert!(
            matches!(
                inspect(text.as_bytes()),
                Err(ImageError::InvalidPtx { line, .. }) if line >= 7
            ),
            "{text}: {:?}",
            inspect(text.as_bytes())
        );
    }
}

//! What a bad program gets: a typed error or fault that names the place.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use common::{Args, Device};
use farcall_ptx::{AddressMode, Fault, FaultKind, Format, Module, Texture};

const HEAD: &str = ".version 8.0\n.target sm_75\n.address_size 64\n";

fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 p, .param .u32 n)\n{{\n.reg .pred %p<4>;\n.reg .b32 %r<8>;\n.reg .b64 %rd<8>;\n\
         ld.param.u64 %rd1, [p];\nld.param.u32 %r1, [n];\nmov.u32 %r2, %tid.x;\n{body}\nret;\n}}\n"
    )
}

fn run(device: &Device, body: &str, p: u64, n: u32, threads: u32) -> Result<(), Box<Fault>> {
    let module = device.load(&kernel(body));
    let args = Args::new().arg(p).arg(n);
    device
        .launch(
            &module.kernel("k").unwrap(),
            [2, 1, 1],
            [threads, 1, 1],
            &args,
        )
        .map(|_| ())
}

#[test]
fn out_of_bounds_names_address_line_and_thread() {
    let device = Device::new();
    let p = device.alloc(4 * 40);
    let body = "mul.wide.u32 %rd2, %r2, 4;\nadd.u64 %rd2, %rd2, %rd1;\nst.global.u32 [%rd2], %r2;";
    assert!(run(&device, body, p, 0, 40).is_ok());
    let fault = run(&device, body, p, 0, 41).unwrap_err();
    assert_eq!(
        fault.kind,
        FaultKind::IllegalAddress {
            addr: p + 160,
            bytes: 4,
            write: true
        }
    );
    assert_eq!(
        (fault.thread, fault.line, fault.kernel.as_str()),
        ([40, 0, 0], 14, "k")
    );
}

#[test]
fn every_space_is_checked() {
    let device = Device::new();
    let p = device.alloc(64);
    for body in [
        "ld.global.u32 %r3, [%rd1+-4];",
        "ld.u32 %r3, [%rd1+64];",
        "mov.u64 %rd3, 0; ld.global.u32 %r3, [%rd3];",
        ".shared .align 4 .b8 s[16]; mov.u32 %r4, s; ld.shared.u32 %r3, [%r4+16];",
        ".shared .align 4 .b8 s[16]; mov.u32 %r4, s; st.shared.u32 [%r4+-4], %r2;",
        ".local .align 4 .b8 s[16]; mov.u64 %rd4, s; st.local.u32 [%rd4+16], %r2;",
        ".local .align 4 .b8 s[16]; mov.u64 %rd4, s; cvta.local.u64 %rd4, %rd4; ld.u32 %r3, [%rd4+32];",
        "mov.u64 %rd3, p; ld.param.u32 %r3, [p+64];",
        "atom.global.add.u32 %r3, [%rd1+64], 1;",
        "red.global.add.u64 [%rd1+60], %rd1;",
        "mov.u64 %rd3, -4; ld.global.u32 %r3, [%rd3];",
        "ld.global.v4.u32 {%r3,%r4,%r5,%r6}, [%rd1+64];",
    ] {
        let kind = run(&device, body, p, 0, 1).unwrap_err().kind;
        let illegal = matches!(
            kind,
            FaultKind::IllegalAddress { .. } | FaultKind::MisalignedAddress { .. }
        );
        assert!(illegal, "{body}: {kind:?}");
    }
}

#[test]
fn misaligned_and_read_only() {
    let device = Device::new();
    let p = device.alloc(64);
    let fault = run(&device, "ld.global.u64 %rd3, [%rd1+4];", p, 0, 1).unwrap_err();
    assert_eq!(
        fault.kind,
        FaultKind::MisalignedAddress {
            addr: p + 4,
            bytes: 8
        }
    );
    device.protect(p);
    assert!(run(&device, "ld.global.u64 %rd3, [%rd1+8];", p, 0, 1).is_ok());
    let fault = run(&device, "st.global.u64 [%rd1+8], %rd1;", p, 0, 1).unwrap_err();
    assert_eq!(
        fault.kind,
        FaultKind::IllegalAddress {
            addr: p + 8,
            bytes: 8,
            write: true
        }
    );
}

#[test]
fn a_freed_range_is_refused_although_it_is_mapped() {
    let device = Device::new();
    let (first, second) = (device.alloc(4), device.alloc(4));
    let body = "ld.global.u32 %r3, [%rd1];";
    assert!(run(&device, body, second, 0, 1).is_ok());
    let fault = run(&device, body, first + 4, 0, 1).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::IllegalAddress { .. }));
}

#[test]
fn trap_bad_branch_and_bad_call() {
    let device = Device::new();
    let kind = |body: &str, n| run(&device, body, 0, n, 1).unwrap_err().kind;
    assert_eq!(kind("trap;", 0), FaultKind::Trap);
    let table = "t: .branchtargets A, B;\nbrx.idx %r1, t;\nA: ret;\nB: ret;";
    assert!(run(&device, table, 0, 1, 1).is_ok());
    assert!(matches!(kind(table, 2), FaultKind::IllegalInstruction(_)));
    let call = "q: .callprototype _ ();\ncall %rd1, q;";
    assert!(matches!(kind(call, 0), FaultKind::IllegalInstruction(_)));
}

#[test]
fn an_endless_loop_can_be_cancelled() {
    let device = Device::new();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&device, "L: add.u32 %r3, %r3, 1; bra L;", 0, 0, 64));
        // The launch is endless: whenever the flag is raised, before or after its start, it ends.
        std::thread::park_timeout(Duration::from_millis(20));
        device.raise_cancel();
        assert_eq!(
            running.join().unwrap().unwrap_err().kind,
            FaultKind::Cancelled
        );
    });
}

#[test]
fn a_barrier_that_cannot_complete_is_a_fault() {
    let device = Device::new();
    let fault = run(&device, "bar.sync 0, 128;", 0, 0, 64).unwrap_err();
    assert_eq!(fault.kind, FaultKind::BarrierDeadlock);
}

#[test]
fn bad_launches() {
    let device = Device::new();
    let module = device.load(&kernel(""));
    let k = module.kernel("k").unwrap();
    let args = Args::new().arg(0u64).arg(0u32);
    for (grid, block, args) in [
        ([0, 1, 1], [1, 1, 1], args.clone()),
        ([1, 1, 1], [1025, 1, 1], args.clone()),
        ([1, 1, 1], [1, 1, 65], args.clone()),
        ([1, 70000, 1], [1, 1, 1], args.clone()),
        ([1, 1, 1], [1, 1, 1], Args::new()),
    ] {
        let fault = device.launch(&k, grid, block, &args).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::InvalidLaunch(_)), "{fault}");
    }
}

/// What a texture's handle leads to is memory that the program can write.
#[test]
fn a_forged_texture_reads_nothing_but_the_programs_memory() {
    let device = Device::new();
    let body = "tex.1d.v4.u32.s32 {%r3,%r4,%r5,%r6}, [%rd1, {%r2}];";
    let mut texture = Texture {
        address: device.alloc(4 * 32),
        width: 32,
        height: 1,
        depth: 1,
        row_bytes: 128,
        format: Format::U32,
        channels: 1,
        modes: [AddressMode::Clamp; 3],
        is_linear: false,
        is_normalized: false,
        reads_integers: true,
        is_srgb: false,
        is_plain: false,
        border: [0.0; 4],
    };
    let handle = device.alloc(Texture::ENCODED_BYTES);
    device.write_bytes(handle, &texture.encode());
    assert!(run(&device, body, handle, 0, 32).is_ok());
    texture.width = 1 << 20;
    device.write_bytes(handle, &texture.encode());
    let fault = run(&device, body, handle, 0, 33).unwrap_err();
    assert!(
        matches!(fault.kind, FaultKind::IllegalAddress { addr, .. } if addr == texture.address + 128)
    );
    device.write_bytes(handle, &[0; Texture::ENCODED_BYTES]);
    let fault = run(&device, body, handle, 0, 1).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::IllegalInstruction(_)));
    let fault = run(&device, body, handle + 4, 0, 1).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::IllegalAddress { .. }));
}

#[test]
fn unknown_text_is_named_with_its_line() {
    for (body, instruction, line) in [
        ("frobnicate.u32 %r3, %r1;", "frobnicate.u32", 12),
        ("\n\nadd.u33 %r3, %r1, %r2;", "add.u33", 14),
        ("add.fancy.u32 %r3, %r1, %r2;", "add.fancy.u32", 12),
        ("add.u32 %r3, %r1, %r99;", "add.u32", 12),
        (
            "add.u32 %r3, %r1, %rd1;\nadd.u64 %rd3, %r1, %rd1;",
            "add.u64",
            13,
        ),
        ("bra nowhere;", "bra", 12),
        (
            "tex.cube.v4.f32.f32 {%r1,%r1,%r1,%r1}, [%rd1, {%r1,%r1,%r1,%r1}];",
            "tex.cube.v4.f32.f32",
            12,
        ),
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned", 12),
        ("call missing, ();", "call", 12),
    ] {
        let error = Module::parse(&kernel(body)).unwrap_err();
        assert_eq!(
            (error.instruction.as_str(), error.line),
            (instruction, line),
            "{error}"
        );
    }
    let unused = format!("{HEAD}.func f() {{ nonsense; }}\n");
    assert_eq!(Module::parse(&unused).unwrap_err().instruction, "nonsense");
}

//! Control flow that tears warps apart, against a scalar interpretation of the same program here.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Args, Device};

const HEAD: &str = ".version 8.0\n.target sm_75\n.address_size 64\n";

/// Runs a body that leaves its result in %r0; %r1 is the thread's number.
fn results(device: &Device, functions: &str, body: &str, grid: u32, threads: u32) -> Vec<u32> {
    let text = format!(
        "{HEAD}{functions}\n.visible .entry k(.param .u64 p)\n{{\n.reg .pred %p<10>;\n.reg .b32 %r<30>;\n.reg .b64 %rd<10>;\n\
         mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.u32 %r1, %r2, %r3, %r4;\n\
         mov.u32 %r0, 0;\n{body}\nDONE:\nld.param.u64 %rd1, [p]; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd1, %rd1, %rd2;\n\
         st.global.u32 [%rd1], %r0;\nret;\n}}\n"
    );
    let module = device.load(&text);
    let count = (grid * threads) as usize;
    let out = device.upload(&vec![0xdead_beefu32; count]);
    let kernel = module.kernel("k").unwrap();
    device
        .launch(
            &kernel,
            [grid, 1, 1],
            [threads, 1, 1],
            &Args::new().arg(out),
        )
        .unwrap_or_else(|e| panic!("{e}"));
    device.download(out, count)
}

fn check(functions: &str, body: &str, want: impl Fn(u32) -> u32) {
    let device = Device::new();
    for (t, got) in (0u32..).zip(results(&device, functions, body, 3, 77)) {
        assert_eq!(got, want(t), "thread {t}");
    }
}

#[test]
fn nested_branches() {
    let body = "and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 0; @%p1 bra EVEN;
        and.b32 %r6, %r1, 2; setp.eq.u32 %p2, %r6, 0; @%p2 bra A; mov.u32 %r0, 1; bra JOIN;
        A: mov.u32 %r0, 2; bra JOIN;
        EVEN: and.b32 %r6, %r1, 4; setp.ne.u32 %p2, %r6, 0; @!%p2 bra B; mov.u32 %r0, 3; bra JOIN;
        B: mov.u32 %r0, 4; @%p1 bra JOIN; mov.u32 %r0, 99;
        JOIN: mad.lo.u32 %r0, %r0, 100, %r1;";
    check("", body, |t| {
        100 * match (t & 1, t & 2, t & 4) {
            (1, 0, _) => 2,
            (1, ..) => 1,
            (_, _, 0) => 4,
            _ => 3,
        } + t
    });
}

#[test]
fn loops_with_trip_counts_of_their_own() {
    let body = "rem.u32 %r5, %r1, 13; mov.u32 %r6, 0;
        OUTER: setp.ge.u32 %p1, %r6, %r5; @%p1 bra END; mov.u32 %r7, 0;
        INNER: setp.gt.u32 %p2, %r7, %r6; @%p2 bra NEXT; mad.lo.u32 %r0, %r0, 3, %r7; add.u32 %r7, %r7, 1;
        setp.eq.u32 %p3, %r0, 1000; @%p3 bra END; bra INNER;
        NEXT: add.u32 %r6, %r6, 1; bra OUTER;
        END: add.u32 %r0, %r0, 7;";
    check("", body, |t| {
        let mut r = 0u32;
        for i in 0..t % 13 {
            for j in 0..=i {
                r = r.wrapping_mul(3).wrapping_add(j);
            }
        }
        r + 7
    });
}

#[test]
fn early_exits_inside_divergent_code() {
    let body = "ld.param.u64 %rd1, [p]; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd1, %rd1, %rd2;
        rem.u32 %r5, %r1, 3; setp.eq.u32 %p1, %r5, 0; @%p1 st.global.u32 [%rd1], 5; @%p1 exit;
        setp.eq.u32 %p2, %r5, 1; @!%p2 bra GO; st.global.u32 [%rd1], 6; ret;
        GO: bar.warp.sync 0xffffffff; activemask.b32 %r6; mov.u32 %r0, %r6;";
    let active = |t: u32| {
        let (block, lane0) = (t / 77, t % 77 / 32 * 32);
        (0..32)
            .filter(|l| lane0 + l < 77 && (block * 77 + lane0 + l) % 3 == 2)
            .fold(0u32, |m, l| m | 1 << l)
    };
    check("", body, |t| match t % 3 {
        0 => 5,
        1 => 6,
        _ => active(t),
    });
}

#[test]
fn calls_inside_divergent_code() {
    let functions = ".func (.reg .u32 %o) leaf(.reg .u32 %a, .reg .u32 %b) { .reg .pred %q; setp.lt.u32 %q, %a, 40; @%q bra S;
        mul.lo.u32 %o, %a, 3; ret; S: add.u32 %o, %a, %b; ret; }
        .func (.param .b32 o) twice(.param .b32 a) { .reg .u32 %x, %y; ld.param.u32 %x, [a]; call (%y), leaf, (%x, 5);
        call (%x), leaf, (%y, 6); st.param.b32 [o], %x; ret; }";
    let body = "and.b32 %r5, %r1, 1; setp.eq.u32 %p1, %r5, 0; @%p1 bra EVEN;
        { .param .b32 a; .param .b32 o; st.param.b32 [a], %r1; call (o), twice, (a); ld.param.b32 %r0, [o]; } bra JOIN;
        EVEN: @%p1 call (%r0), leaf, (%r1, 9); add.u32 %r0, %r0, 1000;
        JOIN: call (%r0), leaf, (%r0, 1);";
    let leaf = |a: u32, b: u32| if a < 40 { a + b } else { a.wrapping_mul(3) };
    check(functions, body, |t| {
        let r = if t & 1 == 0 {
            leaf(t, 9) + 1000
        } else {
            leaf(leaf(t, 5), 6)
        };
        leaf(r, 1)
    });
}

#[test]
fn indirect_branches_and_calls() {
    let functions = ".func (.reg .u32 %o) f(.reg .u32 %a) { add.u32 %o, %a, 1; ret; }
        .func (.reg .u32 %o) g(.reg .u32 %a) { mul.lo.u32 %o, %a, 7; ret; }
        .global .u64 table[2] = { f, g };";
    let body = "and.b32 %r5, %r1, 3; t: .branchtargets A, B, C, D; brx.idx %r5, t;
        A: mov.u32 %r6, 10; bra JOIN; B: mov.u32 %r6, 20; bra JOIN; C: mov.u32 %r6, 30; D: mov.u32 %r6, 40;
        JOIN: shr.u32 %r7, %r1, 2; and.b32 %r7, %r7, 1; mul.wide.u32 %rd3, %r7, 8; mov.u64 %rd4, table; add.u64 %rd4, %rd4, %rd3;
        ld.global.u64 %rd5, [%rd4]; proto: .callprototype (.reg .u32 _) _ (.reg .u32 _); call (%r0), %rd5, (%r6), proto;";
    check(functions, body, |t| {
        let r = [10, 20, 40, 40][(t & 3) as usize];
        if t >> 2 & 1 == 0 { r + 1 } else { r * 7 }
    });
}

#[test]
fn shuffles_wait_for_lanes_that_come_by_other_ways() {
    let body = "and.b32 %r5, %r4, 1; setp.eq.u32 %p1, %r5, 0; mov.u32 %r8, %laneid; mov.u32 %r9, 0; @%p1 bra SLOW;
        mov.u32 %r6, 5; bra MEET;
        SLOW: add.u32 %r9, %r9, 1; setp.lt.u32 %p2, %r9, %r8; @%p2 bra SLOW; mov.u32 %r6, 6;
        MEET: activemask.b32 %r10; shfl.sync.bfly.b32 %r0, %r6, 1, 31, -1;";
    let device = Device::new();
    for (t, got) in (0u32..).zip(results(&device, "", body, 2, 64)) {
        assert_eq!(got, if t & 1 == 0 { 5 } else { 6 }, "thread {t}");
    }
}

#[test]
fn warp_barriers_in_both_arms_order_memory() {
    let body = ".shared .align 4 .b8 s[256]; mov.u32 %r11, s; mad.lo.u32 %r12, %r4, 4, %r11; xor.b32 %r13, %r4, 1;
        mad.lo.u32 %r13, %r13, 4, %r11; and.b32 %r5, %r4, 1; setp.eq.u32 %p1, %r5, 0; @%p1 bra EVEN;
        add.u32 %r6, %r4, 100; st.shared.u32 [%r12], %r6; bar.warp.sync -1; ld.shared.u32 %r0, [%r13]; bra DONE;
        EVEN: add.u32 %r6, %r4, 200; st.shared.u32 [%r12], %r6; bar.warp.sync -1; ld.shared.u32 %r0, [%r13];";
    let device = Device::new();
    for (t, got) in (0u32..).zip(results(&device, "", body, 1, 64)) {
        assert_eq!(got, (t ^ 1) + if t & 1 == 0 { 100 } else { 200 });
    }
}

#[test]
fn named_barriers_pass_work_between_warps() {
    // Warp 0 produces, warp 1 consumes: two named barriers of 64 threads, eight rounds.
    let body = ".shared .align 4 .b8 s[128]; mov.u32 %r11, s; mov.u32 %r8, %laneid; mad.lo.u32 %r12, %r8, 4, %r11;
        setp.ge.u32 %p1, %r4, 32; mov.u32 %r9, 0; @%p1 bra CONSUME;
        PRODUCE: bar.sync 1, 64; mad.lo.u32 %r6, %r9, 100, %r8; st.shared.u32 [%r12], %r6; bar.arrive 2, 64;
        add.u32 %r9, %r9, 1; setp.lt.u32 %p2, %r9, 8; @%p2 bra PRODUCE; bra DONE;
        CONSUME: bar.arrive 1, 64;
        NEXT: bar.sync 2, 64; ld.shared.u32 %r6, [%r12]; add.u32 %r0, %r0, %r6; add.u32 %r9, %r9, 1;
        setp.ge.u32 %p2, %r9, 8; @%p2 bra DONE; bar.arrive 1, 64; bra NEXT;";
    let device = Device::new();
    for (t, got) in (0u32..).zip(results(&device, "", body, 1, 64)) {
        assert_eq!(got, if t < 32 { 0 } else { 2800 + 8 * (t - 32) });
    }
}

#[test]
fn barriers_count_only_threads_that_live() {
    let body =
        "setp.ge.u32 %p1, %r4, 40; @%p1 bra DONE; bar.sync 0; barrier.sync 0; mov.u32 %r0, 1;";
    let device = Device::new();
    for (t, got) in (0u32..).zip(results(&device, "", body, 1, 96)) {
        assert_eq!(got, u32::from(t < 40));
    }
}

#[test]
fn blocks_wait_for_each_other_in_a_cooperative_launch() {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p, .param .u32 n) {{ .reg .pred %q; .reg .b32 %r<5>; .reg .b64 %rd<3>;
         ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; atom.global.add.u32 %r2, [%rd1], 1;
         W: ld.volatile.global.u32 %r3, [%rd1]; setp.lt.u32 %q, %r3, %r1; @%q bra W; ret; }}"
    );
    let device = Device::new();
    let module = device.load(&text);
    let p = device.upload(&[0u32]);
    let args = Args::new().arg(p).arg(20u32 * 48);
    let kernel = module.kernel("k").unwrap();
    device
        .launch_with(&kernel, [20, 1, 1], [48, 1, 1], &args, 0, true)
        .unwrap();
    assert_eq!(device.download::<u32>(p, 1), [960]);
}

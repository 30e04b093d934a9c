//! Kernels that NVRTC compiled (sources beside the PTX in fixtures/ptx), against results computed here.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_lossless
)]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, missing_docs)]

mod common;

use common::{Args, Device};
use farcall_ptx::{FaultKind, LoadedModule};

const BASIC: [&str; 2] = [
    include_str!("../../../fixtures/ptx/nvrtc129_basic_c75.ptx"),
    include_str!("../../../fixtures/ptx/nvrtc129_basic_c120.ptx"),
];
const GROUPS: &str = include_str!("../../../fixtures/ptx/nvrtc129_cg_c75.ptx");
const CUB: &str = include_str!("../../../fixtures/ptx/nvrtc129_cub_c75.ptx");

fn basic(test: impl Fn(&Device, &LoadedModule)) {
    for text in BASIC {
        let device = Device::new();
        let module = device.load(text);
        test(&device, &module);
    }
}

fn run(d: &Device, m: &LoadedModule, name: &str, threads: u32, args: &Args) {
    d.launch(&m.kernel(name).unwrap(), [1, 1, 1], [threads, 1, 1], args)
        .unwrap_or_else(|e| panic!("{e}"));
}

fn hash(i: usize) -> u64 {
    (i as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(23)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[test]
fn calls_direct_indirect_and_virtual() {
    basic(|d, m| {
        let x: Vec<f32> = (0..64).map(|i| i as f32 * 0.5 + 1.0).collect();
        let (px, py) = (d.upload(&x), d.upload(&[0f32; 64]));
        let args = Args::new().arg(px).arg(py).arg(60u32);
        run(d, m, "calls", 64, &args);
        let dev = |x: f32, k: i32| {
            if k > 3 {
                x.sqrt() * k as f32
            } else {
                x.mul_add(2.0, k as f32)
            }
        };
        for (i, y) in d.download::<f32>(py, 60).into_iter().enumerate() {
            let k = i as i32;
            let want = if i & 1 == 1 {
                dev(x[i], k)
            } else {
                dev(x[i] * 3.0, k + 1) + 1.0
            };
            assert!((y - want).abs() <= want.abs() * 1e-6, "{i}: {y} {want}");
        }
        run(d, m, "indirect", 64, &args);
        for (i, y) in d.download::<f32>(py, 60).into_iter().enumerate() {
            assert_eq!(y, [x[i] + 1.0, x[i] * 2.0, x[i] - 3.0][i % 3]);
        }
        let pi = d.upload(&[0i32; 64]);
        run(d, m, "virt", 64, &Args::new().arg(pi).arg(64u32));
        for (i, y) in (0i32..).zip(d.download::<i32>(pi, 64)) {
            assert_eq!(y, if i % 2 == 1 { i + 3 } else { i * 5 });
        }
    });
}

#[test]
fn branch_tables_and_local_arrays() {
    basic(|d, m| {
        let x: Vec<i32> = (0..96).map(|i| (hash(i) % 10) as i32).collect();
        let (px, py) = (d.upload(&x), d.upload(&[0i32; 96]));
        let args = Args::new().arg(px).arg(py).arg(90u32);
        run(d, m, "sw", 96, &args);
        for (i, y) in (0i32..).zip(d.download::<i32>(py, 90)) {
            let x = x[i as usize];
            let table = [
                i * 3,
                i ^ 77,
                i + x,
                -i,
                i << 2,
                i.count_ones() as i32,
                i / 3,
                i % 5,
            ];
            assert_eq!(y, table.get(x as usize).copied().unwrap_or(999), "{i} {x}");
        }
        run(d, m, "localarr", 96, &args);
        for (i, y) in (0i32..).zip(d.download::<i32>(py, 90)) {
            let mut a: Vec<i32> = (0..16).map(|j| j * i).collect();
            let x = x[i as usize];
            a[(x & 15) as usize] = -1;
            let want: i32 = (0..16)
                .map(|j| a[((j * 7 + x) & 15) as usize] * (j + 1))
                .sum();
            assert_eq!(y, want);
        }
    });
}

#[test]
fn a_spin_lock_between_lanes_of_a_warp_is_released() {
    basic(|d, m| {
        let (lock, count) = (d.upload(&[0i32]), d.upload(&[0i32]));
        let kernel = m.kernel("spin").unwrap();
        d.launch(
            &kernel,
            [4, 1, 1],
            [70, 1, 1],
            &Args::new().arg(lock).arg(count),
        )
        .unwrap();
        assert_eq!(d.download::<i32>(count, 1), [280]);
        assert_eq!(d.download::<i32>(lock, 1), [0]);
    });
}

#[test]
fn barriers_that_reduce() {
    basic(|d, m| {
        let py = d.upload(&[0i32; 100]);
        run(d, m, "barred", 100, &Args::new().arg(py));
        assert_eq!(d.download::<i32>(py, 100), [34 * 100 + 10 + 1; 100]);
    });
}

#[test]
fn lanes_exchange_values() {
    basic(|d, m| {
        let (py, pz) = (d.upload(&[0i32; 64]), d.upload(&[0u32; 64]));
        run(d, m, "warpops", 64, &Args::new().arg(py).arg(pz));
        let (y, z) = (d.download::<i32>(py, 64), d.download::<u32>(pz, 64));
        for t in 0..64i32 {
            let (lane, warp) = (t % 32, t / 32 * 32);
            let up = if lane % 8 >= 3 { t - 3 } else { t };
            let idx = warp + (lane & 16) + ((t + 1) & 15);
            let down = if lane + 2 < 32 { t + 2 } else { t };
            let votes = i32::from(warp == 0) + 2 * i32::from(warp == 0);
            let want = (warp + (lane ^ 5)) * 2 + up + idx + down + votes + (t ^ 1);
            assert_eq!(y[t as usize], want, "thread {t}");
            let ballot = |f: &dyn Fn(i32) -> bool| {
                (0..32)
                    .filter(|&l| f(warp + l))
                    .fold(0u32, |m, l| m | 1 << l)
            };
            let mut want = ballot(&|o| o % 3 == 0) ^ ballot(&|o| o % 5 == t % 5);
            want = want.wrapping_add(u32::MAX).wrapping_add(1);
            want = want.wrapping_add(if t & 1 == 1 { 16 } else { 0 });
            assert_eq!(z[t as usize], want, "thread {t}");
        }
    });
}

#[test]
fn wide_and_narrow_integers() {
    basic(|d, m| {
        let n = 64;
        let a: Vec<i64> = (0..n).map(|i| hash(i) as i64 >> (i % 40)).collect();
        let b: Vec<i64> = (0..n)
            .map(|i| (hash(i + 100) as i64 >> (i % 50)) | 1)
            .collect();
        let (pa, pb) = (d.upload(&a), d.upload(&b));
        let (pc, pd) = (d.upload(&vec![0i64; n]), d.upload(&vec![0u64; n]));
        run(
            d,
            m,
            "i64",
            64,
            &Args::new().arg(pa).arg(pb).arg(pc).arg(pd).arg(n as u32),
        );
        let (c, e) = (d.download::<i64>(pc, n), d.download::<u64>(pd, n));
        for i in 0..n {
            let (a, b) = (a[i], b[i]);
            let hi = ((i128::from(a) * i128::from(b)) >> 64) as i64;
            let parts = [
                a.wrapping_div(b),
                a.wrapping_rem(b).wrapping_mul(3),
                hi,
                a.leading_zeros().into(),
                i64::from(b.trailing_zeros()) + 1,
                a.count_ones().into(),
                a >> 7,
                a.wrapping_abs(),
            ];
            assert_eq!(c[i], parts.into_iter().fold(0i64, i64::wrapping_add));
            let (a, b) = (a as u64, b as u64);
            let hi = ((u128::from(a) * u128::from(b)) >> 64) as u64;
            let parts = [a / b, a.reverse_bits(), hi, a >> (b & 63)];
            assert_eq!(e[i], parts.into_iter().fold(0u64, u64::wrapping_add));
        }
        let a: Vec<i8> = (0..n).map(|i| hash(i) as i8).collect();
        let b: Vec<u16> = (0..n).map(|i| hash(i + 7) as u16).collect();
        let (pa, pb) = (d.upload(&a), d.upload(&b));
        let (pc, pd) = (d.upload(&vec![0i16; n]), d.upload(&vec![0u8; n]));
        run(
            d,
            m,
            "narrow",
            64,
            &Args::new().arg(pa).arg(pb).arg(pc).arg(pd).arg(n as u32),
        );
        let (c, e) = (d.download::<i16>(pc, n), d.download::<u8>(pd, n));
        for i in 0..n {
            let (a, b) = (i32::from(a[i]), i32::from(b[i]));
            assert_eq!(c[i], (a * b + (b >> 3) - (a << 2)) as i16);
            assert_eq!(e[i], (a / 3 + b % 7 + if a > 0 { 1 } else { 2 }) as u8);
        }
    });
}

#[test]
fn carries_run_through_words() {
    basic(|d, m| {
        let a = [0xffff_ffffu32, 0xffff_ffff, 0x1234_5678, 0xffff_ffff];
        let b = [1u32, 0, 0xffff_0000, 5];
        let (pa, pb, pc) = (d.upload(&a), d.upload(&b), d.upload(&[0u32; 6]));
        run(d, m, "carry", 1, &Args::new().arg(pa).arg(pb).arg(pc));
        let wide = |w: &[u32]| w.iter().rev().fold(0u128, |x, &w| x << 32 | u128::from(w));
        let sum = wide(&a).wrapping_add(wide(&b));
        let difference = (wide(&a[..2]) as u64).wrapping_sub(wide(&b[..2]) as u64);
        let c = d.download::<u32>(pc, 6);
        assert_eq!((wide(&c[..4]), wide(&c[4..]) as u64), (sum, difference));
    });
}

#[test]
fn conversions() {
    basic(|d, m| {
        let x = [
            0f32, 0.5, 1.5, 2.5, -0.5, -1.5, 3.99, 100.7, 200.2, -77.3, 65535.5, 1e6,
        ];
        let n = x.len();
        let px = d.upload(&x);
        let (pa, pb, pc) = (
            d.upload(&vec![0i32; n]),
            d.upload(&vec![0u32; n]),
            d.upload(&vec![0i64; n]),
        );
        let (pd, pe) = (d.upload(&vec![0u8; n]), d.upload(&vec![0f64; n]));
        let args = Args::new()
            .arg(px)
            .arg(pa)
            .arg(pb)
            .arg(pc)
            .arg(pd)
            .arg(pe)
            .arg(n as u32);
        run(d, m, "cvts", 32, &args);
        for (i, &v) in x.iter().enumerate() {
            let a = v as i32 + v.round_ties_even() as i32 + v.ceil() as i32 + v.floor() as i32;
            assert_eq!(d.download::<i32>(pa, n)[i], a);
            assert_eq!(d.download::<u32>(pb, n)[i], v as u32);
            let c = v.round_ties_even() as i64 + v.floor() as i64;
            assert_eq!(d.download::<i64>(pc, n)[i], c);
            assert_eq!(d.download::<u8>(pd, n)[i], v as i32 as u8);
            let scaled = v * 1.1f64 as f32;
            let e = f64::from(a)
                + c as u64 as f64
                + c as f64
                + f64::from(v as u32)
                + f64::from(scaled)
                + f64::from(v.round() + v.trunc() + v.round_ties_even());
            let got = d.download::<f64>(pe, n)[i];
            assert!((got - e).abs() <= e.abs() * 1e-6, "{v}: {got} {e}");
        }
    });
}

#[test]
fn double_functions() {
    basic(|d, m| {
        let x: Vec<f64> = (0..50).map(|i| (i as f64 - 20.0) * 0.37).collect();
        let (px, py) = (d.upload(&x), d.upload(&[0f64; 50]));
        run(d, m, "f64ops", 64, &Args::new().arg(px).arg(py).arg(50u32));
        for (v, y) in x.into_iter().zip(d.download::<f64>(py, 50)) {
            // erf by its series: the host's library has none.
            let mut term = v;
            let mut series = v;
            for n in 1..300 {
                term *= -v * v / n as f64;
                series += term / (2 * n + 1) as f64;
            }
            let erf = if v.abs() > 5.0 {
                v.signum()
            } else {
                series * 2.0 / std::f64::consts::PI.sqrt()
            };
            let want = v.sin()
                + v.cos() * (-v).exp()
                + (v.abs() + 1.0).ln()
                + v.abs().powf(1.7)
                + v.atan2(2.0)
                + v.cbrt()
                + erf
                + v % 0.7
                + v.round_ties_even()
                + (v + 0.1)
                + v * 3.3
                + (v * v + 1e-9)
                + v / 3.0;
            assert!(
                (y - want).abs() <= want.abs().max(1.0) * 1e-6,
                "{v}: {y} {want}"
            );
        }
    });
}

#[test]
fn constants_pointers_and_atomics_on_globals() {
    basic(|d, m| {
        let py = d.upload(&[0f32; 16]);
        run(d, m, "globals", 16, &Args::new().arg(py));
        for (i, y) in d.download::<f32>(py, 16).into_iter().enumerate() {
            assert_eq!(y, (i % 8 + 1) as f32 + 1.0 + 2.0 + 3.5 + 101.0);
        }
        let (addr, bytes) = m.global("counter").unwrap();
        assert_eq!(bytes, 4);
        assert_eq!(d.download::<i32>(addr, 1), [5 + 16]);
    });
}

#[test]
fn generic_addresses_of_every_space() {
    basic(|d, m| {
        let mut y = [0i32; 65];
        y[64] = 7;
        let py = d.upload(&y);
        run(d, m, "genericsh", 64, &Args::new().arg(py));
        for (t, y) in (0i32..64).zip(d.download::<i32>(py, 64)) {
            let want = match t & 3 {
                1 | 3 => 63 - t + 1000,
                2 => 3 + 4000,
                _ => 7 + 2000,
            };
            assert_eq!(y, want, "thread {t}");
        }
    });
}

#[test]
fn atomics_of_many_types() {
    basic(|d, m| {
        let (pf, pd) = (d.upload(&[1f32, 0.0]), d.upload(&[1f64]));
        let (pu, pl, ph) = (
            d.upload(&[3u32, 0]),
            d.upload(&[0u64, 99, 0]),
            d.upload(&[0u16, 0]),
        );
        let args = Args::new().arg(pf).arg(pd).arg(pu).arg(pl).arg(ph);
        run(d, m, "atom2", 96, &args);
        assert_eq!(d.download::<f32>(pf, 2), [1.0 + 24.0, 48.0]);
        assert_eq!(d.download::<f64>(pd, 1), [1.0 + 12.0]);
        // Dec from 3 with limit 10: a cycle of 11 after the first 3.
        assert_eq!(d.download::<u32>(pu, 2), [(3 + 11 * 96 - 96) % 11, 192]);
        assert_eq!(d.download::<u64>(pl, 3), [95 * 95, 3, 9]);
        assert_eq!(d.download::<u16>(ph, 2), [0x5600, 0x5200]);
    });
}

#[test]
fn half_and_bfloat_vectors() {
    basic(|d, m| {
        let bf = |x: f32| (x.to_bits() >> 16) as u16;
        let (a, b) = ([bf(1.5), bf(-2.0), bf(8.0)], [bf(0.5), bf(4.0), bf(16.0)]);
        let (pa, pb) = (d.upload(&a), d.upload(&b));
        let (pc, pd) = (d.upload(&[0f32; 3]), d.upload(&[0u32; 3]));
        run(
            d,
            m,
            "bf",
            32,
            &Args::new().arg(pa).arg(pb).arg(pc).arg(pd).arg(3u32),
        );
        assert_eq!(d.download::<f32>(pc, 3), [2.25 + 1.0, -10.0, 136.0]);
        let pair = |lo: f32, hi: f32| u32::from(bf(lo)) | u32::from(bf(hi)) << 16;
        assert_eq!(
            d.download::<u32>(pd, 3),
            [pair(2.25, 0.0), pair(0.0, 10.0), pair(136.0, 0.0)]
        );
        // (0.5, 1.0): v = exp(0.75, 1.5); min(v, v + a) = v, divided by v.
        let pa = d.upload(&[0x3c00_3800u32]);
        let (pb, po) = (d.upload(&[0u32]), d.upload(&[0i32]));
        run(
            d,
            m,
            "h2",
            32,
            &Args::new().arg(pa).arg(pb).arg(po).arg(1u32),
        );
        assert_eq!(d.download::<u32>(pb, 1), [0x3c00_3c00]);
        assert_eq!(d.download::<i32>(po, 1), [2 + 5 + 1]);
    });
}

#[test]
fn printf_and_assert() {
    basic(|d, m| {
        let report = d
            .launch(
                &m.kernel("pf").unwrap(),
                [1, 1, 1],
                [32, 1, 1],
                &Args::new().arg(3u32),
            )
            .unwrap();
        let text = String::from_utf8(report.printf).unwrap();
        let line = |i: u64, f: &str, c: char, e: &str| {
            format!("t {i} {f} str {} {c} {:x}|{i}   |{e}\n", i << 40, i * 17)
        };
        let want = line(0, " 0.00", 'a', "0.000000e+00")
            + &line(1, " 1.50", 'b', "1.000000e+10")
            + &line(2, " 3.00", 'c', "2.000000e+10");
        assert_eq!(text, want);
        let fault = d
            .launch(
                &m.kernel("as").unwrap(),
                [1, 1, 1],
                [32, 1, 1],
                &Args::new().arg(31u32),
            )
            .unwrap_err();
        let want = FaultKind::Assert {
            message: "threadIdx.x<n".to_owned(),
            file: "k.cu".to_owned(),
            line: 42,
            function: "as".to_owned(),
        };
        assert_eq!((fault.kind, fault.thread), (want, [31, 0, 0]));
    });
}

#[test]
fn a_grid_synchronizes() {
    let d = Device::new();
    let m = d.load(GROUPS);
    let n = 6 * 64;
    let pa = d.upload(&(0..n).collect::<Vec<i32>>());
    let kernel = m.kernel("gridsync").unwrap();
    d.launch_with(
        &kernel,
        [6, 1, 1],
        [64, 1, 1],
        &Args::new().arg(pa).arg(n),
        0,
        true,
    )
    .unwrap();
    let want: Vec<i32> = (0..n).map(|i| (i + 5) % n + 5).collect();
    assert_eq!(d.download::<i32>(pa, n as usize), want);
}

#[test]
fn tiles_and_coalesced_groups() {
    let d = Device::new();
    let m = d.load(GROUPS);
    let py = d.upload(&[0i32; 64]);
    run(&d, &m, "tiles", 64, &Args::new().arg(py));
    for (t, y) in (0i32..64).zip(d.download::<i32>(py, 64)) {
        let tile: i32 = (t / 8 * 8..t / 8 * 8 + 8).sum();
        let first = (t / 32 * 32..).find(|o| o % 3 == 0).unwrap();
        let rank = (first..t).filter(|o| o % 3 == 0).count() as i32;
        let extra = if t % 3 == 0 { rank * 1000 + first } else { 0 };
        assert_eq!(y, tile + 32 + extra, "thread {t}");
    }
}

#[test]
fn cub_block_algorithms() {
    let d = Device::new();
    let m = d.load(CUB);
    let x: Vec<f64> = (0..256).map(|i| (hash(i) % 1000) as f64).collect();
    let (px, py) = (d.upload(&x), d.upload(&[0f64; 2]));
    d.launch(
        &m.kernel("bred").unwrap(),
        [2, 1, 1],
        [128, 1, 1],
        &Args::new().arg(px).arg(py),
    )
    .unwrap();
    assert_eq!(
        d.download::<f64>(py, 2),
        [x[..128].iter().sum::<f64>(), x[128..].iter().sum()]
    );
    let x: Vec<i32> = (0..128).map(|i| (hash(i) % 100) as i32 - 50).collect();
    let (px, py) = (d.upload(&x), d.upload(&[0i32; 128]));
    run(&d, &m, "bscan", 128, &Args::new().arg(px).arg(py));
    for (i, y) in d.download::<i32>(py, 128).into_iter().enumerate() {
        assert_eq!(y, x[..i].iter().sum::<i32>());
    }
    let mut x: Vec<u32> = (0..512).map(|i| hash(i) as u32).collect();
    let px = d.upload(&x);
    run(&d, &m, "bsort", 128, &Args::new().arg(px));
    x.sort_unstable();
    assert_eq!(d.download::<u32>(px, 512), x);
}

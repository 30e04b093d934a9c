//! Kernels that nvcc compiled, against results computed here.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, missing_docs)]

mod common;

use common::{Args, Device};
use farcall_ptx::LoadedModule;

const TEXTS: [&str; 2] = [
    include_str!("../../../fixtures/ptx/nvcc124_c70.ptx"),
    include_str!("../../../fixtures/ptx/nvcc135_c75.ptx"),
];

/// Runs a test on the output of both compilers.
fn both(test: impl Fn(&Device, &LoadedModule)) {
    for text in TEXTS {
        let device = Device::new();
        let module = device.load(text);
        test(&device, &module);
    }
}

fn noise(n: usize) -> Vec<f32> {
    (0..n as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 + 0.01)
        .collect()
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!(
        (got - want).abs() <= tolerance * want.abs().max(1.0),
        "{got} is not {want}"
    );
}

#[test]
fn vecadd() {
    both(|d, m| {
        let (a, b) = (noise(1000), noise(1000));
        let (pa, pb, pc) = (d.upload(&a), d.upload(&b), d.upload(&[0f32; 1000]));
        let args = Args::new().arg(pa).arg(pb).arg(pc).arg(1000u32);
        let report = d
            .launch(&m.kernel("vecadd").unwrap(), [8, 1, 1], [128, 1, 1], &args)
            .unwrap();
        assert!(report.thread_instructions > 1000 * 10);
        for (i, c) in d.download::<f32>(pc, 1000).iter().enumerate() {
            assert_eq!(*c, a[i] + b[i]);
        }
    });
}

#[test]
fn saxpy() {
    both(|d, m| {
        let (x, y) = (noise(5000), noise(5000));
        let (px, py) = (d.upload(&x), d.upload(&y));
        let args = Args::new().arg(2.5f32).arg(px).arg(py).arg(5000u32);
        d.launch(&m.kernel("saxpy").unwrap(), [3, 1, 1], [100, 1, 1], &args)
            .unwrap();
        for (i, got) in d.download::<f32>(py, 5000).iter().enumerate() {
            assert_eq!(*got, 2.5f32.mul_add(x[i], y[i]));
        }
    });
}

#[test]
fn reductions() {
    both(|d, m| {
        let x = noise(10_000);
        let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
        for (name, shared) in [("reduce_shared", 256 * 4), ("reduce_warp", 0)] {
            let (px, pout) = (d.upload(&x), d.upload(&[0f32]));
            let args = Args::new().arg(px).arg(pout).arg(10_000u32);
            let kernel = m.kernel(name).unwrap();
            d.launch_with(&kernel, [40, 1, 1], [256, 1, 1], &args, shared, false)
                .unwrap();
            close(d.download::<f32>(pout, 1)[0].into(), want, 1e-5);
        }
    });
}

#[test]
fn matmul_tiled() {
    both(|d, m| {
        let n = 64;
        let (a, b) = (noise(n * n), noise(n * n));
        let (pa, pb, pc) = (d.upload(&a), d.upload(&b), d.upload(&vec![0f32; n * n]));
        let args = Args::new().arg(pa).arg(pb).arg(pc).arg(n as u32);
        d.launch(
            &m.kernel("matmul_tiled").unwrap(),
            [4, 4, 1],
            [16, 16, 1],
            &args,
        )
        .unwrap();
        let c = d.download::<f32>(pc, n * n);
        for i in 0..n {
            for j in 0..n {
                let want: f64 = (0..n)
                    .map(|k| f64::from(a[i * n + k]) * f64::from(b[k * n + j]))
                    .sum();
                close(c[i * n + j].into(), want, 1e-5);
            }
        }
    });
}

#[test]
fn histogram() {
    both(|d, m| {
        let data: Vec<u8> = (0..20_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let (pd, ph) = (d.upload(&data), d.upload(&[0u32; 256]));
        let args = Args::new().arg(pd).arg(20_000u32).arg(ph);
        d.launch(&m.kernel("histo").unwrap(), [7, 1, 1], [96, 1, 1], &args)
            .unwrap();
        let mut want = [0u32; 256];
        data.iter().for_each(|&b| want[usize::from(b)] += 1);
        assert_eq!(d.download::<u32>(ph, 256), want);
    });
}

#[test]
fn atomics() {
    both(|d, m| {
        let pa = d.upload(&[-5i32, 5, 0, 0, 0xff, 0, 0x55, 99]);
        let (pb, pf) = (d.upload(&[7u64]), d.upload(&[0.5f32]));
        let args = Args::new().arg(pa).arg(pb).arg(pf);
        d.launch(&m.kernel("atomics").unwrap(), [9, 1, 1], [64, 1, 1], &args)
            .unwrap();
        let a = d.download::<i32>(pa, 8);
        // Inc wraps after 100: from 99, 576 steps modulo 101.
        assert_eq!(a, [63, 0, 5, 1, 3, 4, 0x55, (99 + 576) % 101]);
        assert_eq!(d.download::<u64>(pb, 1), [7 + 576]);
        assert_eq!(d.download::<f32>(pf, 1), [0.5 + 576.0]);
    });
}

#[test]
fn math() {
    both(|d, m| {
        let mut x = noise(3000);
        x.extend([
            1e-8, 1e-3, 0.5, 1.0, 2.0, 10.0, 50.0, 80.0, 100.0, 12345.0, 1e6, 1e-30,
        ]);
        let n = x.len();
        let (px, py, pz) = (
            d.upload(&x),
            d.upload(&vec![0f32; n]),
            d.upload(&vec![0f64; n]),
        );
        let args = Args::new().arg(px).arg(py).arg(pz).arg(n as u32);
        d.launch(
            &m.kernel("mathf").unwrap(),
            [n.div_ceil(64) as u32, 1, 1],
            [64, 1, 1],
            &args,
        )
        .unwrap();
        let (y, z) = (d.download::<f32>(py, n), d.download::<f64>(pz, n));
        for i in 0..n {
            let v = f64::from(x[i]);
            let f = v.exp()
                + v.ln()
                + v.sin()
                + v.sqrt()
                + v / 3.0
                + v.abs()
                + v.min(1.0)
                + v.tanh()
                + v.powf(1.5)
                + 1.0 / v.sqrt();
            if f < 1e38 {
                close(y[i].into(), f, 2e-6);
            } else {
                assert!(y[i].is_infinite());
            }
            let want = v.exp() / (1.0 + v) + v.sqrt() + v.floor();
            if want.is_finite() {
                close(z[i], want, 1e-14);
            }
        }
    });
}

#[test]
fn mandelbrot() {
    both(|d, m| {
        let (w, h, iterations) = (50, 37, 200);
        let po = d.upload(&vec![0i32; w * h]);
        let args = Args::new()
            .arg(po)
            .arg(w as u32)
            .arg(h as u32)
            .arg(iterations);
        d.launch(&m.kernel("mandel").unwrap(), [4, 5, 1], [16, 8, 1], &args)
            .unwrap();
        let got = d.download::<i32>(po, w * h);
        let mut same = 0;
        for y in 0..h {
            for x in 0..w {
                let (cx, cy) = (
                    3.0 * x as f32 / w as f32 - 2.0,
                    2.0 * y as f32 / h as f32 - 1.0,
                );
                let (mut a, mut b, mut i) = (0f32, 0f32, 0);
                while i < iterations && a.mul_add(a, b * b) < 4.0 {
                    let t = a.mul_add(a, -(b * b)) + cx;
                    b = (2.0 * a).mul_add(b, cy);
                    a = t;
                    i += 1;
                }
                same += usize::from(got[y * w + x] == i);
            }
        }
        // Contraction to fma may differ in a few points of the border.
        assert!(same * 100 >= w * h * 97, "{same} of {}", w * h);
    });
}

#[test]
fn integers() {
    both(|d, m| {
        let x: Vec<u32> = (0..500u32)
            .map(|i| i.wrapping_mul(2_654_435_761))
            .chain([0, 1, u32::MAX, 1 << 31])
            .collect();
        let n = x.len();
        let l: Vec<i64> = x.iter().map(|&v| i64::from(v) * 3 - (1 << 32)).collect();
        let (px, py, pl) = (d.upload(&x), d.upload(&vec![0u32; n]), d.upload(&l));
        let args = Args::new().arg(px).arg(py).arg(pl).arg(n as u32);
        d.launch(&m.kernel("intops").unwrap(), [8, 1, 1], [64, 1, 1], &args)
            .unwrap();
        let (y, got) = (d.download::<u32>(py, n), d.download::<i64>(pl, n));
        for i in 0..n {
            let v = x[i];
            let sum = [
                v.count_ones(),
                v.leading_zeros(),
                v.reverse_bits(),
                v % 7,
                v / 13,
                v << 3,
                v >> 5,
                v.swap_bytes(),
                v.min(9),
                ((u64::from(v) * 77) >> 32) as u32,
            ];
            assert_eq!(
                y[i],
                sum.into_iter().fold(0u32, u32::wrapping_add),
                "{v:#x}"
            );
            assert_eq!(
                got[i],
                i64::from(v)
                    .wrapping_mul(i64::from(v))
                    .wrapping_div(l[i] | 1)
            );
        }
    });
}

#[test]
fn half_precision() {
    both(|d, m| {
        // 1.5, -2.0, 0.333.., 65504, smallest subnormal
        let a = [0x3e00u16, 0xc000, 0x3555, 0x7bff, 0x0001];
        let b = [0x4000u16, 0x3800, 0x3c00, 0x3c00, 0x4200];
        let (pa, pb, pc) = (d.upload(&a), d.upload(&b), d.upload(&[0u16; 5]));
        let args = Args::new().arg(pa).arg(pb).arg(pc).arg(5u32);
        d.launch(&m.kernel("halfadd").unwrap(), [1, 1, 1], [32, 1, 1], &args)
            .unwrap();
        // a + b*a: 4.5, -3, 0.6665, inf, 4 x the smallest subnormal
        assert_eq!(
            d.download::<u16>(pc, 5),
            [0x4480, 0xc200, 0x3955, 0x7c00, 0x0004]
        );
    });
}

#[test]
fn softmax_rows() {
    both(|d, m| {
        let (rows, n) = (3, 700);
        let x = noise(rows * n);
        let (px, py) = (d.upload(&x), d.upload(&vec![0f32; rows * n]));
        let args = Args::new().arg(px).arg(py).arg(n as u32);
        d.launch(
            &m.kernel("softmax_row").unwrap(),
            [rows as u32, 1, 1],
            [256, 1, 1],
            &args,
        )
        .unwrap();
        let y = d.download::<f32>(py, rows * n);
        for row in 0..rows {
            let x = &x[row * n..][..n];
            let sum: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
            for i in 0..n {
                let want = f64::from(x[i]).exp() / sum;
                assert!((f64::from(y[row * n + i]) / want - 1.0).abs() < 1e-5);
            }
        }
    });
}

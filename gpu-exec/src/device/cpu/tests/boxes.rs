//! Copies of rows and slices at a distance.

use super::*;

const INVALID_VALUE: u32 = 1;

fn copy(dst: u64, src: u64) -> CuMemcpy3DAsyncV2 {
    CuMemcpy3DAsyncV2 {
        dst,
        dst_pitch: 16,
        dst_slice: 64,
        src,
        src_pitch: 8,
        src_slice: 24,
        width: 4,
        height: 3,
        depth: 2,
        stream: 0,
    }
}

#[test]
fn rows_and_slices_land_where_they_belong() {
    let mut rig = Rig::new(false);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: 1024
        }),
        0
    );
    let data: Vec<u8> = (0..48).collect();
    rig.send(&CuMemcpyHtoDAsyncV2 {
        dst: base,
        count: 48,
        stream: 0,
        bulk: 0,
        data: &data,
    });
    assert_eq!(rig.call(&copy(base + 512, base)), 0);
    let got = rig.read(base + 512, 112, 0);
    for z in 0..2 {
        for y in 0..4 {
            for x in 0..16 {
                let inside = y < 3 && x < 4;
                let expected = if inside { z * 24 + y * 8 + x } else { 0 };
                let at = z * 64 + y * 16 + x;
                if let Some(byte) = got.get(at) {
                    assert_eq!(usize::from(*byte), expected, "{z} {y} {x}");
                }
            }
        }
    }
    assert_eq!(rig.call(&copy(base + 1024 - 64, base)), INVALID_VALUE);
    let rows = CuMemcpy3DAsyncV2 {
        dst_pitch: 2,
        ..copy(base + 512, base)
    };
    assert_eq!(rig.call(&rows), INVALID_VALUE, "rows that overlap");
    let nothing = CuMemcpy3DAsyncV2 {
        height: 0,
        ..copy(0, 0)
    };
    assert_eq!(rig.call(&nothing), 0);
}

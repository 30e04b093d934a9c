//! Records into bytes and back.
#![forbid(unsafe_code)]

use std::hint::black_box;

use farcall_marshal::record::{self, Head, Record};
use farcall_marshal::wire::{
    CuEventRecordWithFlags, CuLaunchKernel, CuMemcpyHtoDAsyncV2, CuStreamSynchronize,
};

use super::per_call;
use crate::figure::Figure;

/// Parameters of a kernel of four: three pointers and an int.
static PARAMS: [u8; 28] = [7; 28];
/// Bytes of a small copy that travels in its record.
static DATA: [u8; 1024] = [7; 1024];

/// One record to measure.
#[derive(Clone, Copy, Debug)]
pub struct RecordBench {
    /// Stable name.
    pub name: &'static str,
    encode: fn(&mut [u8]) -> usize,
    decode: fn(&[u8]) -> u64,
}

/// The records that are measured: a launch, a small copy, an event, a wait.
pub const RECORDS: [RecordBench; 4] = [
    RecordBench {
        name: "cuLaunchKernel_4_params",
        encode: |out| encode(&launch(), out),
        decode: |body| {
            CuLaunchKernel::decode_body(body).map_or(0, |r| r.function + r.params.len() as u64)
        },
    },
    RecordBench {
        name: "cuMemcpyHtoDAsync_1KiB",
        encode: |out| encode(&copy(), out),
        decode: |body| {
            CuMemcpyHtoDAsyncV2::decode_body(body).map_or(0, |r| r.dst + r.data.len() as u64)
        },
    },
    RecordBench {
        name: "cuEventRecordWithFlags",
        encode: |out| {
            encode(
                &CuEventRecordWithFlags {
                    event: 3,
                    stream: 1,
                    flags: 0,
                },
                out,
            )
        },
        decode: |body| CuEventRecordWithFlags::decode_body(body).map_or(0, |r| r.event),
    },
    RecordBench {
        name: "cuStreamSynchronize",
        encode: |out| encode(&CuStreamSynchronize { stream: 1 }, out),
        decode: |body| CuStreamSynchronize::decode_body(body).map_or(0, |r| r.stream),
    },
];

/// Bytes that hold any of [`RECORDS`].
const BUFFER_BYTES: usize = 2048;

impl RecordBench {
    /// A buffer for [`Self::encode`].
    #[must_use]
    pub fn buffer() -> Vec<u8> {
        vec![0; BUFFER_BYTES]
    }

    /// Encodes the record where it will be sent from; its length.
    #[inline]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        (self.encode)(out)
    }

    /// Finds the record in a frame and decodes it in place.
    ///
    /// # Panics
    /// If the frame does not begin with that record.
    #[inline]
    pub fn decode(&self, frame: &[u8]) {
        let (_, body, _) = record::split(frame).expect("a record");
        assert_ne!((self.decode)(black_box(body)), 0, "{}", self.name);
    }
}

/// `marshal/*`: nanoseconds per record, the median over batches.
#[must_use]
pub fn marshal() -> Vec<Figure> {
    let mut figures = Vec::new();
    for bench in RECORDS {
        let mut buffer = RecordBench::buffer();
        let len = bench.encode(&mut buffer);
        let frame = buffer.get(..len).unwrap_or_default().to_vec();
        let encode = per_call(200, 2000, || {
            black_box(bench.encode(black_box(&mut buffer)));
        });
        let decode = per_call(200, 2000, || bench.decode(black_box(&frame)));
        figures.push(Figure::new(
            format!("marshal/encode/{}", bench.name),
            "ns",
            encode.p50,
        ));
        figures.push(Figure::new(
            format!("marshal/decode/{}", bench.name),
            "ns",
            decode.p50,
        ));
    }
    figures
}

fn encode<'a, R: Record<'a>>(body: &R, out: &mut [u8]) -> usize {
    let body = black_box(body);
    let len = record::record_bytes(body);
    let out = out.get_mut(..len).unwrap_or_default();
    record::encode(Head::request(R::NUMBER, 1, 0), body, out);
    len
}

fn launch() -> CuLaunchKernel<'static> {
    CuLaunchKernel {
        function: 5,
        stream: 0,
        grid_x: 1,
        grid_y: 1,
        grid_z: 1,
        block_x: 256,
        block_y: 1,
        block_z: 1,
        shared_bytes: 0,
        flags: 0,
        params: &PARAMS,
    }
}

fn copy() -> CuMemcpyHtoDAsyncV2<'static> {
    CuMemcpyHtoDAsyncV2 {
        dst: 0x7000_0000,
        count: DATA.len() as u64,
        stream: 1,
        bulk: 0,
        data: &DATA,
    }
}

#[cfg(test)]
mod tests {
    use super::{RECORDS, RecordBench};

    #[test]
    fn every_record_comes_back() {
        for bench in RECORDS {
            let mut buffer = RecordBench::buffer();
            let len = bench.encode(&mut buffer);
            assert!(len > 16 && len.is_multiple_of(8), "{}: {len}", bench.name);
            bench.decode(&buffer[..len]);
        }
    }
}

//! Hot paths within this process, over and over: what `farcall-bench count` runs under callgrind.
#![forbid(unsafe_code)]

use std::hint::black_box;

use farcall_marshal::image::{Accepts, Image, Target, inspect, select};
use farcall_transport::session::{Claim, FRAME_HEADER_BYTES, Receiver, Sender};

use crate::measure::{RECORDS, RecordBench};

/// Records of one frame where frames are counted.
const FRAME_RECORDS: usize = 64;
/// Bytes of such a record.
const RECORD_BYTES: usize = 64;
/// A fatbin with code for six architectures, compressed as CUDA 13 does.
const FATBIN: &[u8] = include_bytes!("../../../fixtures/images/tiny_zstd.fatbin");

/// Names of what [`run`] knows.
#[must_use]
pub fn names() -> Vec<String> {
    let records = RECORDS.iter().flat_map(|record| {
        ["encode", "decode"].map(|way| format!("marshal/{way}/{}", record.name))
    });
    let others = ["ring/push", "ring/pop", "image/fatbin_open", "nothing"];
    records.chain(others.map(str::to_owned)).collect()
}

/// Does it so many times. Only the loop in [`counted`] is meant to be counted.
///
/// # Errors
/// No such path.
///
/// # Panics
/// If the path does not do what it should.
pub fn run(name: &str, times: u64) -> Result<(), String> {
    let mut buffer = RecordBench::buffer();
    let mut words = name.split('/');
    match (words.next(), words.next(), words.next()) {
        (Some("marshal"), Some(way), Some(record)) => {
            let found = RECORDS.iter().find(|known| known.name == record);
            let record = found.ok_or_else(|| format!("no record {record:?}"))?;
            let len = record.encode(&mut buffer);
            let frame = buffer.get(..len).unwrap_or_default().to_vec();
            match way {
                "encode" => counted(times, &mut || {
                    black_box(record.encode(black_box(&mut buffer)));
                }),
                _ => counted(times, &mut || record.decode(black_box(&frame))),
            }
        }
        (Some("ring"), Some("push"), _) => push(times),
        (Some("ring"), Some("pop"), _) => pop(times),
        (Some("image"), ..) => counted(times, &mut open_fatbin),
        (Some("nothing"), ..) => counted(times, &mut || ()),
        _ => return Err(format!("no path {name:?}: {}", names().join(", "))),
    }
    Ok(())
}

/// The loop whose instructions count; callgrind is told its name.
#[inline(never)]
fn counted(times: u64, work: &mut dyn FnMut()) {
    for _ in 0..times {
        work();
    }
}

/// The sending direction's positions: claim and commit of a record, and its share of sealing and acknowledging a frame.
fn push(times: u64) {
    let mut sender = Sender::new(1 << 20, u64::MAX, 256 << 10);
    let mut records = 0;
    counted(times, &mut || {
        let Claim::At(at) = black_box(&sender).claim(RECORD_BYTES, u64::MAX >> 1) else {
            panic!("no room");
        };
        sender.commit(at, RECORD_BYTES);
        records += 1;
        if records == FRAME_RECORDS {
            records = 0;
            black_box(sender.seal(0, 0));
            let acknowledged = sender.on_ack(sender.sealed(), u64::MAX);
            assert!(acknowledged.is_ok(), "what was sealed can be acknowledged");
        }
    });
}

/// The receiving direction's positions: one frame judged, delivered, and granted anew.
fn pop(times: u64) {
    let mut sender = Sender::new(1 << 30, u64::MAX, 256 << 10);
    let mut receiver = Receiver::new(1 << 20);
    let len = FRAME_RECORDS * RECORD_BYTES;
    let mut headers = Vec::new();
    for _ in 0..times {
        let Claim::At(at) = sender.claim(len, u64::MAX >> 1) else {
            panic!("no room");
        };
        sender.commit(at, len);
        headers.extend(sender.seal(0, 0).map(|(_, header)| header));
    }
    let mut next = headers.iter();
    assert!(FRAME_HEADER_BYTES > 0 && headers.len() as u64 == times);
    counted(times, &mut || {
        if let Some(header) = next.next() {
            let taken = receiver.on_ordered_data(black_box(header));
            assert!(taken.is_ok(), "a frame in order");
            receiver.on_consumed(header.len());
            black_box((receiver.ack(), receiver.credit()));
        }
    });
}

/// What the shim does with a module: opens the container, picks the code for the device, reads the kernels' layouts.
fn open_fatbin() {
    let image = Image::open(black_box(FATBIN)).expect("a fatbin");
    let target = Target {
        sm: 90,
        accepts: Accepts::Any,
    };
    let selected = select(&image, &target).expect("code for the device");
    black_box(inspect(&selected.bytes).expect("a module"));
}

#[cfg(test)]
mod tests {
    use super::{names, run};

    #[test]
    fn every_path_runs() {
        for name in names() {
            assert_eq!(run(&name, 130), Ok(()), "{name}");
        }
        assert!(run("marshal/encode/none", 1).is_err() && run("none", 1).is_err());
    }
}

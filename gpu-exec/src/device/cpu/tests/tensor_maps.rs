//! Tensor maps.

use farcall_marshal::wire::{CuTensorMapEncodeTiled, CuTensorMapEncodeTiledReply};

use super::*;

const NOT_SUPPORTED: u32 = 801;

fn map(rig: &mut Rig, address: u64, params: &[u8]) -> (u32, Vec<u8>) {
    let ticket = rig.begin(&CuTensorMapEncodeTiled {
        address,
        kind: 1,
        params,
    });
    let (status, body) = rig.heard.reply(ticket);
    let reply = CuTensorMapEncodeTiledReply::decode_body(&body);
    (status, reply.map_or(Vec::new(), |reply| reply.map.to_vec()))
}

#[test]
fn null_answers_what_depends_on_the_question_and_soft_refuses() {
    let mut null = Rig::new(false);
    let (status, first) = map(&mut null, 0x1000, &[1, 2, 3]);
    assert_eq!((status, first.len()), (0, 128));
    let (_, moved) = map(&mut null, 0x2000, &[1, 2, 3]);
    assert_eq!(moved[..8], 0x2000_u64.to_le_bytes());
    assert_eq!(moved[8..], first[8..], "only the address differs");
    assert_ne!(map(&mut null, 0x1000, &[1, 2, 4]).1, first);
    assert_eq!(map(&mut Rig::new(true), 0x1000, &[1]).0, NOT_SUPPORTED);
}

//! Decoders are total: any bytes give a record or a typed error.
#![allow(clippy::unwrap_used, missing_docs)]

use farcall_marshal::record::{Head, split};
use farcall_marshal::wire::{describe, samples};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_split_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let mut rest = &bytes[..];
        while let Ok((head, body, next)) = split(rest) {
            let _ = describe(head.number, head.is_reply(), body);
            prop_assert!(next.len() < rest.len());
            rest = next;
        }
    }

    #[test]
    fn any_body_of_any_record_decodes_or_fails(pick in any::<prop::sample::Index>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let samples = samples();
        let (number, is_reply, ..) = samples[pick.index(samples.len())];
        let _ = describe(number, is_reply, &body);
    }

    #[test]
    fn a_changed_sample_decodes_or_fails(pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0_usize..16) {
        let samples = samples();
        let (number, is_reply, _, mut body) = samples[pick.index(samples.len())].clone();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = value;
        }
        body.truncate(body.len().saturating_sub(cut));
        let _ = describe(number, is_reply, &body);
    }
}

#[test]
fn every_sample_decodes() {
    for (number, is_reply, name, body) in samples() {
        describe(number, is_reply, &body).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn an_unknown_number_is_an_error() {
    let head = Head::request(9_999, 0, 0);
    assert!(describe(head.number, false, &[]).is_err());
}

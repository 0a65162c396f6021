//! What a function answers is unwrapped or refused, and a prelude is the same in any pieces.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sluicegate_aws::response::{PreludeDecoder, ResponseFormat, unwrap};

fuzz_target!(|input: (&[u8], u8)| {
    let (payload, cut) = input;
    use ResponseFormat::*;
    for format in [Raw, ApigwV1, ApigwV2, Alb, Envoy, Auto] {
        if let Ok(reply) = unwrap(format, Bytes::copy_from_slice(payload)) {
            assert!((100..1000).contains(&reply.head.status), "{format:?}: {}", reply.head.status);
        }
    }
    let whole = PreludeDecoder::default().push(payload);
    let mut decoder = PreludeDecoder::default();
    let (front, back) = payload.split_at(usize::from(cut).min(payload.len()));
    match (decoder.push(front), whole) {
        (Ok(Some((head, rest))), Ok(Some((all, left)))) => {
            assert_eq!(format!("{head:?}"), format!("{all:?}"));
            assert_eq!([&rest[..], back].concat(), &left[..]);
        }
        (Ok(None), whole) => {
            let later = decoder.push(back);
            assert_eq!(format!("{later:?}"), format!("{whole:?}"));
        }
        (Err(_), whole) => assert!(whole.is_err()),
        (front, whole) => panic!("{front:?} but {whole:?}"),
    }
});

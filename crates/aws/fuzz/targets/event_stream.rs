//! Frames: the same in any pieces, unchanged when they are written again, and never larger than
//! allowed. Half of the inputs get right checksums, as nothing else passes the first check.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate_aws::eventstream::{FrameDecoder, InvokeStreamDecoder, write_frame};

fuzz_target!(|input: (bool, Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>, u8)| {
    let (framed, frames, raw, cut) = input;
    let mut bytes = Vec::new();
    if framed {
        for (headers, payload) in &frames {
            let start = bytes.len();
            bytes.extend_from_slice(&((headers.len() + payload.len()) as u32 + 16).to_be_bytes());
            bytes.extend_from_slice(&(headers.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&crc32fast::hash(&bytes[start..]).to_be_bytes());
            bytes.extend_from_slice(headers);
            bytes.extend_from_slice(payload);
            bytes.extend_from_slice(&crc32fast::hash(&bytes[start..]).to_be_bytes());
        }
    } else {
        bytes = raw;
    }
    let whole = read(&[&bytes]);
    let (front, back) = bytes.split_at(usize::from(cut).min(bytes.len()));
    assert_eq!(whole, read(&[front, back]));
    let mut events = InvokeStreamDecoder::default();
    events.push(&bytes);
    while let Ok(Some(_)) = events.next_event() {}
    let _ = events.finish();
});

/// What comes of these pieces, in words.
fn read(pieces: &[&[u8]]) -> Vec<String> {
    let mut decoder = FrameDecoder::new(PAYLOAD_MAX);
    let mut seen = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.payload().len() <= PAYLOAD_MAX);
                    let headers: Vec<_> = frame.headers().collect();
                    let mut again = Vec::new();
                    write_frame(&headers, frame.payload(), &mut again).expect("it was a frame");
                    let mut second = FrameDecoder::new(PAYLOAD_MAX);
                    second.push(&again);
                    let second = second.next_frame().expect("we wrote it").expect("it is whole");
                    assert!(second.headers().eq(frame.headers()));
                    assert_eq!(second.payload(), frame.payload());
                    seen.push(format!("{headers:?} {:?}", frame.payload()));
                }
                Ok(None) => break,
                Err(error) => {
                    seen.push(format!("{error:?}"));
                    return seen;
                }
            }
        }
    }
    seen.push(format!("{:?}", decoder.finish()));
    seen
}

const PAYLOAD_MAX: usize = 512;

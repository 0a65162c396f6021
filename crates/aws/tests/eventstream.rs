//! Event-stream frames, judged by code and data that are not ours: the official Rust codec, the
//! published frames in its package, and botocore's parser.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aws_smithy_eventstream::frame::{read_message_from, write_message_to};
use aws_smithy_types::date_time::DateTime;
use aws_smithy_types::event_stream::{Header, HeaderValue as Official, Message};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use sluicegate_aws::eventstream::{Frame, FrameDecoder, FrameError, HeaderValue, write_frame};

#[test]
fn the_published_frames_are_read_and_the_spoilt_ones_refused() {
    let Some(folder) = package("aws-smithy-eventstream").map(|package| package.join("test_data"))
    else {
        return println!("skipped: cargo metadata names no folder for aws-smithy-eventstream");
    };
    if !folder.is_dir() {
        return println!("skipped: the aws-smithy-eventstream package carries no frames");
    }
    let (mut read, mut refused) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        let frame = decode(&bytes);
        if name.starts_with("valid_") {
            let frame = frame.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(ours_as_official(&frame), read_message_from(&mut &bytes[..]).unwrap());
            read += 1;
        } else {
            assert!(frame.is_err(), "{name} is refused");
            refused += 1;
        }
    }
    assert_eq!((read, refused), (3, 8));
}

#[test]
fn botocores_parser_reads_our_frames() {
    let Some(python) = python() else { return };
    let mut stream = Vec::new();
    for frame in sample_frames() {
        write_frame(&frame.0, &frame.1, &mut stream).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/botocore_eventstream.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&stream).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seen = told.as_array().unwrap();
    assert_eq!(seen.len(), sample_frames().len(), "botocore saw every frame");
    for (seen, (headers, payload)) in seen.iter().zip(sample_frames()) {
        assert_eq!(seen["payload"], hex(&payload));
        for (name, value) in headers {
            let wanted = match value {
                HeaderValue::Bool(value) => Value::from(value),
                HeaderValue::Byte(value) => Value::from(value),
                HeaderValue::Short(value) => Value::from(value),
                HeaderValue::Integer(value) => Value::from(value),
                HeaderValue::Long(value) | HeaderValue::Timestamp(value) => Value::from(value),
                HeaderValue::Bytes(value) => Value::from(hex(value)),
                HeaderValue::Text(value) => Value::from(value),
                HeaderValue::Uuid(value) => Value::from(hex(&value)),
            };
            assert_eq!(seen["headers"][name], wanted, "{name}");
        }
    }
}

/// The cases of botocore's own tests (`tests/unit/test_eventstream.py`), which its package does not
/// carry: the values are written here, the bytes are given there.
#[test]
fn the_frames_of_botocores_tests_are_read() {
    let empty = b"\x00\x00\x00\x10\x00\x00\x00\x00\x05\xc2H\xeb}\x98\xc8\xff";
    let frame = decode(empty).unwrap();
    assert_eq!((frame.headers().count(), &frame.payload()[..]), (0, &b""[..]));

    let integer = b"\x00\x00\x00+\x00\x00\x00\x0e4\x8b\xec{\x08event-id\x04\x00\
                    \x00\xa0\x0c{'foo':'bar'}\xd3\x89\x02\x85";
    let frame = decode(integer).unwrap();
    assert_eq!(frame.headers().collect::<Vec<_>>(), [("event-id", HeaderValue::Integer(0xa00c))]);
    assert_eq!(&frame.payload()[..], b"{'foo':'bar'}");

    let text = b"\x00\x00\x00=\x00\x00\x00 \x07\xfd\x83\x96\x0ccontent-type\x07\x00\x10\
                 application/json{'foo':'bar'}\x8d\x9c\x08\xb1";
    assert_eq!(decode(text).unwrap().text_header("content-type"), Some("application/json"));

    // Its spoilt prelude and spoilt body.
    let mut prelude = text.to_vec();
    prelude[11] = 0x8d;
    assert!(matches!(decode(&prelude), Err(FrameError::PreludeChecksum { .. })));
    let mut body = text.to_vec();
    body[45] = b'a';
    assert!(matches!(decode(&body), Err(FrameError::MessageChecksum { .. })));
}

proptest! {
    #[test]
    fn what_the_official_codec_writes_we_read_and_the_other_way_round(
        texts in proptest::collection::vec(("[a-z:-]{1,20}", ".{0,30}"), 0..5),
        number in any::<i64>(),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        cut in 1..64usize,
    ) {
        let mut message = Message::new(payload.clone());
        for (name, value) in &texts {
            message = message.add_header(Header::new(name.clone(), Official::String(value.clone().into())));
        }
        message = message
            .add_header(Header::new("number", Official::Int64(number)))
            .add_header(Header::new("bytes", Official::ByteArray(payload.clone().into())));
        let mut official = Vec::new();
        write_message_to(&message, &mut official).unwrap();

        let mut decoder = FrameDecoder::default();
        let mut frame = None;
        for piece in official.chunks(cut) {
            decoder.push(piece);
            frame = frame.or(decoder.next_frame().unwrap());
        }
        let frame = frame.unwrap();
        prop_assert_eq!(&ours_as_official(&frame), &message);

        let headers: Vec<_> = frame.headers().collect();
        let mut ours = Vec::new();
        write_frame(&headers, frame.payload(), &mut ours).unwrap();
        prop_assert_eq!(ours, official);
    }
}

type Sample = (Vec<(&'static str, HeaderValue<'static>)>, Vec<u8>);

fn sample_frames() -> Vec<Sample> {
    let event = |kind| {
        vec![
            (":message-type", HeaderValue::Text("event")),
            (":event-type", HeaderValue::Text(kind)),
            (":content-type", HeaderValue::Text("application/octet-stream")),
        ]
    };
    vec![
        (event("PayloadChunk"), b"Hello".to_vec()),
        (event("PayloadChunk"), (0..=255).cycle().take(70_000).collect()),
        (event("InvokeComplete"), b"{}".to_vec()),
        (
            vec![
                ("true", HeaderValue::Bool(true)),
                ("false", HeaderValue::Bool(false)),
                ("byte", HeaderValue::Byte(-1)),
                ("short", HeaderValue::Short(-2)),
                ("integer", HeaderValue::Integer(-3)),
                ("long", HeaderValue::Long(i64::MIN)),
                ("bytes", HeaderValue::Bytes(b"\x00\xff")),
                ("text", HeaderValue::Text("J\u{fc}rgen")),
                ("time", HeaderValue::Timestamp(1_440_938_160_123)),
                ("uuid", HeaderValue::Uuid(*b"0123456789abcdef")),
            ],
            Vec::new(),
        ),
    ]
}

fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let mut decoder = FrameDecoder::default();
    decoder.push(bytes);
    match decoder.next_frame()? {
        Some(frame) => decoder.finish().map(|()| frame),
        None => Err(decoder.finish().unwrap_err()),
    }
}

fn ours_as_official(frame: &Frame) -> Message {
    let mut message = Message::new(frame.payload().clone());
    for (name, value) in frame.headers() {
        let value = match value {
            HeaderValue::Bool(value) => Official::Bool(value),
            HeaderValue::Byte(value) => Official::Byte(value),
            HeaderValue::Short(value) => Official::Int16(value),
            HeaderValue::Integer(value) => Official::Int32(value),
            HeaderValue::Long(value) => Official::Int64(value),
            HeaderValue::Bytes(value) => Official::ByteArray(Bytes::copy_from_slice(value)),
            HeaderValue::Text(value) => Official::String(value.to_owned().into()),
            HeaderValue::Timestamp(value) => Official::Timestamp(DateTime::from_millis(value)),
            HeaderValue::Uuid(value) => Official::Uuid(u128::from_be_bytes(value)),
        };
        message = message.add_header(Header::new(name.to_owned(), value));
    }
    message
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where cargo has unpacked a package of the registry.
fn package(name: &str) -> Option<PathBuf> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout).ok()?;
    let package =
        metadata["packages"].as_array()?.iter().find(|package| package["name"] == name)?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())
}

/// A Python with botocore, or a printed line.
fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let python = std::env::var_os("SLUICEGATE_PYTHON").map_or(venv, PathBuf::from);
    let check =
        Command::new(&python).args(["-c", "import botocore"]).stderr(Stdio::null()).status();
    if !check.is_ok_and(|status| status.success()) {
        println!(
            "skipped: no Python with botocore (set SLUICEGATE_PYTHON or run cargo xtask test)"
        );
        return None;
    }
    Some(python)
}

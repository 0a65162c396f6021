//! What events and answers cost: nanoseconds each, the best of several rounds.
//!
//! `cargo bench -p sluicegate-aws --bench events`

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use sluicegate_aws::event::{EventEncoder, EventFormat, EventRequest, EventSettings, KongForward};
use sluicegate_aws::eventstream::{FrameDecoder, HeaderValue, write_frame};
use sluicegate_aws::response::{ResponseFormat, unwrap};

fn main() {
    let headers: [(&str, &[u8]); 12] = [
        ("host", b"api.example.test"),
        ("user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", b"en-GB,en;q=0.7,de;q=0.3"),
        ("accept-encoding", b"gzip, deflate, br, zstd"),
        ("content-type", b"application/json"),
        ("cookie", b"session=0123456789abcdef; theme=dark"),
        ("sec-fetch-dest", b"document"),
        ("sec-fetch-mode", b"navigate"),
        ("sec-fetch-site", b"none"),
        ("x-custom", b"one"),
        ("x-custom", b"two"),
    ];
    let small = br#"{"name":"APISIX","n":7}"#.repeat(44);
    let large = small.repeat(1024);
    let formats = [
        ("apigw_v2", EventFormat::ApigwV2),
        ("apigw_v1", EventFormat::ApigwV1),
        ("alb", EventFormat::Alb { multi_value: false }),
        (
            "kong",
            EventFormat::Kong(KongForward {
                method: true,
                uri: true,
                headers: true,
                body: true,
                base64_encode_body: true,
            }),
        ),
        ("envoy", EventFormat::Envoy),
    ];
    for (body_name, body, rounds) in
        [("no body", &b""[..], 20_000), ("1 KiB of JSON", &small, 20_000), ("1 MiB", &large, 20)]
    {
        for (name, format) in formats {
            let settings = EventSettings { format, ..EventSettings::default() };
            let encoder = EventEncoder::compile(settings).expect("there are no lists");
            let request = EventRequest {
                method: "POST",
                path: "/default/fn",
                query: "name=APISIX&b=2&a=1+2",
                headers: &headers,
                body,
                host: "api.example.test",
                client_ip: "192.0.2.7",
                user_agent: Some("Mozilla/5.0"),
                request_id: "0123456789abcdef",
                time_ms: 1_583_348_638_390,
                route_id: Some("1"),
                ..EventRequest::default()
            };
            let mut out = Vec::new();
            measure(&format!("{name}, {body_name}"), rounds, || {
                out.clear();
                let fits = encoder.encode(black_box(&request), 6 << 20, &mut out);
                black_box(fits.is_ok());
            });
        }
    }

    let escaped = String::from_utf8(small.repeat(4)).expect("it is ASCII").replace('"', "\\\"");
    let answer = format!(
        r#"{{"statusCode":200,"headers":{{"content-type":"application/json","x-a":"b"}},"body":"{escaped}"}}"#
    );
    let answer = Bytes::from(answer);
    measure("answer of 4 KiB, unwrapped", 20_000, || {
        black_box(unwrap(ResponseFormat::Auto, black_box(answer.clone())).is_ok());
    });

    let mut frame = Vec::new();
    let event = [
        (":message-type", HeaderValue::Text("event")),
        (":event-type", HeaderValue::Text("PayloadChunk")),
    ];
    write_frame(&event, &small.repeat(16), &mut frame).expect("the frame is small");
    let mut decoder = FrameDecoder::default();
    measure("frame of 16 KiB, decoded", 20_000, || {
        decoder.push(black_box(&frame));
        black_box(decoder.next_frame().is_ok());
    });
}

fn measure(name: &str, times: u32, mut run: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..times {
            run();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(times));
    }
    println!("{name}: {best:.0} ns");
}

const ROUNDS: u32 = 10;

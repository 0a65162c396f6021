//! Any request becomes an event that is JSON, as long as was foretold, with the body in it.

#![no_main]

use arbitrary::Arbitrary;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sluicegate_aws::event::{EventEncoder, EventFormat, EventRequest, EventSettings, KongForward};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
    own_headers: Vec<(&'a str, &'a str)>,
    path_parameters: Vec<(&'a str, &'a str)>,
    stage_variables: Vec<(String, String)>,
    body: &'a [u8],
    host: &'a str,
    user_agent: Option<&'a str>,
    route_pattern: Option<&'a str>,
    consumer: Option<&'a str>,
    claims: Option<&'a str>,
    time_ms: u32,
}

fuzz_target!(|input: Input<'_>| {
    let claims = input.claims.map(|text| serde_json::json!({"scope": text, "sub": text}));
    let request = EventRequest {
        method: input.method,
        path: input.path,
        query: input.query,
        headers: &input.headers,
        own_headers: &input.own_headers,
        path_parameters: &input.path_parameters,
        body: input.body,
        host: input.host,
        user_agent: input.user_agent,
        route_pattern: input.route_pattern,
        consumer: input.consumer,
        claims: claims.as_ref(),
        time_ms: input.time_ms.into(),
        ..EventRequest::default()
    };
    let kong = KongForward {
        method: true,
        uri: true,
        headers: true,
        body: true,
        ..KongForward::default()
    };
    for format in [
        EventFormat::ApigwV1,
        EventFormat::ApigwV2,
        EventFormat::Alb { multi_value: false },
        EventFormat::Alb { multi_value: true },
        EventFormat::Envoy,
        EventFormat::Kong(kong),
    ] {
        let settings = EventSettings {
            format,
            stage_variables: input.stage_variables.clone(),
            ..EventSettings::default()
        };
        let Ok(encoder) = EventEncoder::compile(settings) else { continue };
        let mut event = Vec::new();
        encoder.encode(&request, usize::MAX, &mut event).expect("there is no limit");
        assert_eq!(encoder.encoded_size(&request), event.len(), "{format:?}");
        // With a limit the size is counted first: the same event comes of it.
        let mut again = Vec::new();
        encoder.encode(&request, event.len(), &mut again).expect("it fits");
        assert_eq!(event, again, "{format:?}");
        let read: Value = serde_json::from_slice(&event).expect("an event is JSON");
        if matches!(format, EventFormat::ApigwV1 | EventFormat::ApigwV2) {
            let body = match &read["body"] {
                Value::String(text) if read["isBase64Encoded"] == true => {
                    STANDARD.decode(text).expect("it says that it is base64")
                }
                Value::String(text) => text.as_bytes().to_vec(),
                _ => Vec::new(),
            };
            assert_eq!(body, input.body, "{format:?}");
        }
    }
});

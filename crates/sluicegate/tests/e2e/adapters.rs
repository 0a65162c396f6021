//! The adapters that people put between Lambda and their web applications take our events, and what
//! they answer reaches the client: through the whole gateway, by the Invoke API.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sluicegate_standin::{InvokeApi, InvokeSettings, Outcome};
use sluicegate_testkit::functions::AdapterProcess;
use sluicegate_testkit::{GatewayProcess, Response, client};

use crate::BINARY;
use crate::lambda_invoke::unix_now;
use crate::wire::block_on;

#[test]
fn mangum_serves_what_the_gateway_sends() {
    let Some(adapter) = AdapterProcess::mangum() else { return };
    speaks("mangum", adapter, &["apigw_v2", "apigw_v1", "alb", "alb-multi"]);
}

#[test]
fn serverless_http_serves_what_the_gateway_sends() {
    let Some(adapter) = AdapterProcess::serverless_http() else { return };
    speaks("serverless-http", adapter, &["apigw_v2", "apigw_v1"]);
}

fn speaks(name: &str, adapter: AdapterProcess, formats: &[&str]) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads can be started");
    let function =
        move |call: &sluicegate_standin::Invocation| Outcome::Answer(adapter.answer(&call.payload));
    let api = runtime.block_on(InvokeApi::start(InvokeSettings {
        addr: ([127, 0, 0, 1], 0).into(),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.into(),
        session_token: None,
        region: "eu-central-1".to_owned(),
        account_id: "123456789012".to_owned(),
        clock: unix_now,
        functions: HashMap::from([("app".to_owned(), Arc::new(function) as _)]),
    }));
    let api = api.expect("loopback has a free port");
    serves(name, &format!("http://{}", api.addr()), "app", formats);
    block_on(api.stop());
}

/// Sends a text, a binary body, cookies and repeated parameters in each format to a function at an
/// Invoke API, and looks at what its application saw and at what the client got.
pub(crate) fn serves(name: &str, endpoint: &str, function: &str, formats: &[&str]) {
    let gateway = GatewayProcess::start(BINARY);
    for format in formats {
        let mut config = json!({
            "function": {"name": function, "region": "eu-central-1", "endpoint": endpoint},
            "authorization": {"iam": {"accesskey": ACCESS_KEY, "secretkey": SECRET_KEY}},
            "request_format": format.trim_end_matches("-multi"),
            // An emulator may have to start the function first.
            "timeout": 60_000,
        });
        if format.ends_with("-multi") {
            config["event"] = json!({"multi_value": true});
        }
        gateway.set_lambda(format, &format!("/{format}/*"), config);
        let case = format!("{name} {format}");

        let target = format!("/{format}/say?a=1&b=x%20y&a=2");
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: app.test\r\nContent-Type: text/plain\r\n\
             Cookie: c=1; d=2\r\nX-Many: one\r\nX-Many: two\r\nContent-Length: 5\r\n\r\nh\u{e9}llo"
        );
        let request = request.replace("Content-Length: 5", "Content-Length: 6");
        let answer = client::exchange(gateway.http, request);
        assert_eq!(answer.status, 201, "{case}: {}\n{}", answer.text(), gateway.error_log());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
        assert_eq!(answer.header("x-adapter"), Some(name), "{case}");
        cookies_came(&answer, &case);
        let seen = answer.json();
        assert_eq!(seen["method"], "POST", "{case}: {seen}");
        assert_eq!(seen["path"], format!("/{format}/say"), "{case}: {seen}");
        assert_eq!(seen["body"], "68c3a96c6c6f", "{case}: {seen}");
        let query = arguments(&seen);
        let wanted: &[(&str, &str)] = match *format {
            // One value for each name is all that this format has.
            "alb" => &[("a", "2"), ("b", "x y")],
            // Values of one name that stand in one text, commas between, as AWS sends them.
            _ => &[("a", "1"), ("a", "2"), ("b", "x y")],
        };
        assert_eq!(query, wanted, "{case}: {seen}");
        let header = |wanted: &str| {
            let headers = seen["headers"].as_array().expect("it is a list").iter();
            let values: Vec<&str> = headers
                .filter(|pair| pair[0] == wanted)
                .map(|pair| pair[1].as_str().expect("it is a text"))
                .collect();
            values.join(",").replace(", ", ",")
        };
        assert_eq!(header("cookie").replace(' ', ""), "c=1;d=2", "{case}: {seen}");
        assert_eq!(header("host"), "app.test", "{case}: {seen}");
        let many = match (name, *format) {
            (_, "alb") => "two",
            // They let the headers that have one value, the last, win over those with all.
            ("serverless-http" | "lambda_http", "apigw_v1") => "two",
            _ => "one,two",
        };
        assert_eq!(header("x-many"), many, "{case}: {seen}");

        // Bytes that are no text, both ways.
        let mut request = format!(
            "PUT /{format}/binary HTTP/1.1\r\nHost: app.test\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: 3\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(&[0, 255, 10]);
        let answer = client::exchange(gateway.http, request);
        assert_eq!(answer.status, 201, "{case}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("image/png"), "{case}");
        let bytes: Vec<u8> = (0..=255).chain([0, 255, 10]).collect();
        assert_eq!(answer.body, bytes, "{case}");
    }
}

/// Both cookies, each in a field of its own; adapters that have one value for each name write them as
/// names that differ in case, and nobody knows which comes first.
#[track_caller]
fn cookies_came(answer: &Response, case: &str) {
    let mut cookies = answer.all("set-cookie");
    cookies.sort_unstable();
    assert_eq!(cookies, ["a=1; Path=/", "b=2; HttpOnly"], "{case}");
}

/// The arguments that the application saw, sorted, unescaped.
fn arguments(seen: &Value) -> Vec<(&str, &'static str)> {
    let query = seen["query"].as_str().expect("it is a text");
    let mut arguments: Vec<(&str, &str)> =
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    arguments.sort_unstable();
    let plain = |value: &str| match value {
        "1" => "1",
        "2" => "2",
        "x%20y" | "x+y" => "x y",
        _ => "?",
    };
    arguments.into_iter().map(|(name, value)| (name, plain(value))).collect()
}

const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "a-secret";

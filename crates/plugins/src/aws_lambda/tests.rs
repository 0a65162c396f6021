//! The plugin in a gateway, before an origin that takes anything and before an Invoke API that
//! checks signatures.

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::plugin::Registry;
use sluicegate_model::kind::Kind;
use sluicegate_standin::{
    Function, Invocation, InvocationKind, InvokeApi, InvokeSettings, Outcome, StreamEnd,
    StreamOutcome, samples,
};
use sluicegate_testkit::client::{self, Client};
use sluicegate_testkit::{InProcess, Judge, PluginTest};

use super::*;

mod answers;
mod events;

#[test]
fn the_schema_and_the_config_speak_of_the_same_fields() {
    PluginTest::<AwsLambda>::check_schema(&json!({"function_uri": "http://fn.test/"}));
    PluginTest::<AwsLambda>::check_schema(&json!({
        "function_uri": "https://fn.test:8443/a?b=c",
        "authorization": {"apikey": "", "iam": {"accesskey": "A", "secretkey": "s"}},
    }));
}

#[test]
fn the_clients_key_comes_before_the_configured_one_and_that_before_signing() {
    let iam = json!({"accesskey": "AKID", "secretkey": "secret"});
    for (client, authorization, sent, signed) in [
        (None, json!({}), None, false),
        (Some("client"), json!({}), Some("client"), false),
        (None, json!({"apikey": "ours"}), Some("ours"), false),
        (Some("client"), json!({"apikey": "ours"}), Some("client"), false),
        (None, json!({"iam": iam}), None, true),
        (Some("client"), json!({"iam": iam}), Some("client"), true),
        (None, json!({"apikey": "ours", "iam": iam}), Some("ours"), false),
        (Some("client"), json!({"apikey": "ours", "iam": iam}), Some("client"), true),
    ] {
        let ran = PluginTest::<AwsLambda>::new()
            .config(json!({"function_uri": "http://fn.test/", "authorization": authorization}))
            .request_header("X-Api-Key", client)
            .run();
        assert_eq!(ran.status, 200, "{client:?} {authorization}");
        assert_eq!(ran.sent_header("x-api-key"), sent, "{client:?} {authorization}");
        let has = ran.sent_header("authorization").is_some();
        assert_eq!(has, signed, "{client:?} {authorization}");
    }
}

#[test]
fn a_clients_signature_headers_are_replaced_and_never_doubled() {
    let iam = json!({"accesskey": "AKID", "secretkey": "secret"});
    let ran = PluginTest::<AwsLambda>::new()
        .config(json!({"function_uri": "http://fn.test/", "authorization": {"iam": iam}}))
        .request_header("X-Amz-Date", Some("20000101T000000Z"))
        .request_header("x-amz-date", Some("20000102T000000Z"))
        .run();
    let date = ran.sent_header("x-amz-date").unwrap_or_default();
    assert!(date.len() == 16 && !date.starts_with("2000"), "{date}");
    let authorization = ran.sent_header("authorization").unwrap_or_default();
    assert!(authorization.contains("SignedHeaders=host;x-amz-date,"), "{authorization}");
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_field_and_value() {
    let mut registry = Registry::default();
    registry.add::<AwsLambda>();
    let plugin = registry.iter().next().expect("it was added");
    for (uri, why) in [
        ("nowhere", "`function_uri` does not begin with http:// or https://: \"nowhere\""),
        ("/run", "`function_uri` does not begin with http:// or https://: \"/run\""),
        ("ftp://a/", "`function_uri` does not begin with http:// or https://: \"ftp://a/\""),
        ("http://u:p@a/", "`function_uri` must not carry a user name"),
        ("http://a:99999/", "`function_uri` has no valid port: \"http://a:99999/\""),
        ("http:///x", "`function_uri` is not a URL"),
    ] {
        let error = (plugin.info.check)(&json!({"function_uri": uri})).expect_err(uri);
        assert!(error.starts_with(why), "{uri}: {error}");
    }
}

#[test]
fn keys_of_client_and_configuration_go_as_the_options_say() {
    let iam = json!({"accesskey": "AKID", "secretkey": "secret"});
    // Options; the client's x-api-key and Authorization; what is sent of both.
    for (options, key, authorization, sent_key, sent) in [
        (json!({"apikey": "ours", "apikey_with_iam": true}), None, None, Some("ours"), "signed"),
        (json!({"apikey": "ours", "apikey_with_iam": true}), Some("c"), None, Some("c"), "signed"),
        (json!({"apikey": "ours", "apikey_with_iam": true}), None, Some("t"), Some("ours"), "t"),
        (json!({}), None, Some("t"), None, "t"),
        (json!({"override_authorization": true}), None, Some("t"), None, "signed"),
        (json!({"strip_client_apikey": true}), Some("c"), None, None, "signed"),
        (json!({"apikey": "ours", "strip_client_apikey": true}), Some("c"), None, Some("ours"), ""),
        // Where nothing is signed, there is nothing to take its place.
        (json!({"apikey": "o", "override_authorization": true}), None, Some("t"), Some("o"), "t"),
        (
            json!({"apikey": "o", "override_authorization": true, "apikey_with_iam": true}),
            None,
            Some("t"),
            Some("o"),
            "signed",
        ),
    ] {
        let mut with = options.clone();
        with["iam"] = iam.clone();
        let ran = PluginTest::<AwsLambda>::new()
            .config(json!({"function_uri": "http://fn.test/", "authorization": with}))
            .request_header("x-api-key", key)
            .request_header("authorization", authorization)
            .run();
        assert_eq!(ran.status, 200, "{options}");
        assert_eq!(ran.sent_header("x-api-key"), sent_key, "{options}");
        let got = ran.sent_header("authorization").unwrap_or_default();
        let got = if got.starts_with("AWS4-HMAC-SHA256 ") { "signed" } else { got };
        assert_eq!(got, sent, "{options}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let uri = |more: Value| with(json!({"function_uri": "http://fn.test/"}), more);
    let iam = json!({"accesskey": "A", "secretkey": "s"});
    let name = json!({"name": "f", "region": "eu-central-1"});
    let function =
        |more: Value| with(json!({"function": name, "authorization": {"iam": iam}}), more);
    for (config, why) in [
        (json!({}), "property \"function_uri\" is required, or `function` in its place"),
        (uri(json!({"function": name})), "there are both `function_uri` and `function`: give one"),
        (
            uri(json!({"invocation": "async"})),
            "`invocation` goes with `function`, not with `function_uri`",
        ),
        (uri(json!({"event": {}})), "`event` goes with another `request_format` than raw"),
        (
            uri(json!({"authorization": {"iam": {"secretkey": "s"}}})),
            "property \"authorization\" validation failed: property \"iam\" validation failed: property \"accesskey\" is required",
        ),
        (
            uri(json!({"authorization": {"iam": {"provider": "imds"}}})),
            "provider \"imds\" is not allowed here: plugin_attr.aws-lambda.allowed_providers in config.yaml names only [static]",
        ),
        (
            uri(json!({"authorization": {"override_authorization": true}})),
            "`authorization.override_authorization` goes with `authorization.iam`",
        ),
        (
            uri(json!({"authorization": {"iam": with(iam.clone(), json!({"external_id": "ab"}))}})),
            "`authorization.iam.external_id` goes with `authorization.iam.role_arn`",
        ),
        (
            uri(json!({"authorization": {"iam": with(iam.clone(), json!({"role_arn": "role"}))}})),
            "`authorization.iam`: \"role\" is no ARN of a role: arn:aws:iam::123456789012:role/name",
        ),
        (
            uri(
                json!({"authorization": {"iam": with(iam.clone(), json!({"role_arn": ROLE, "aws_region": "eu west"}))}}),
            ),
            "`authorization.iam`: the region must consist",
        ),
        (
            uri(
                json!({"authorization": {"iam": {"accesskey": "A\n", "secretkey": "s", "role_arn": ROLE}}}),
            ),
            "`authorization.iam`: the access key",
        ),
        (
            json!({"function": name}),
            "`function` needs `authorization.iam`: the Invoke API takes signed calls only",
        ),
        (
            json!({"function": name, "authorization": {"iam": iam, "apikey": "k"}}),
            "`authorization.apikey` and what is said about it go with `function_uri`: the Invoke API takes signatures only",
        ),
        (function(json!({"function": {}})), "`function` needs `arn` or `name`"),
        (
            function(json!({"function": {"name": "a b", "region": "eu-central-1"}})),
            "\"a b\" is no function: expected a name",
        ),
        (
            function(json!({"function": {"name_parameter": "fn", "region": "eu-central-1"}})),
            "`function.name_parameter` needs `function.allowed_functions`",
        ),
        (function(json!({"async_reply": "empty"})), "`async_reply` goes with `invocation` async"),
        (
            function(json!({"request_format": "alb", "event": {"forward_request_uri": true}})),
            "`event.forward_request_uri` goes with `request_format` kong",
        ),
        (
            function(json!({"forward_amz_headers": ["x-amz-date"]})),
            "`forward_amz_headers` cannot have \"x-amz-date\": the gateway sets it",
        ),
        (
            function(json!({"forward_amz_headers": ["cookie"]})),
            "`forward_amz_headers` is about names that begin with x-amz: \"cookie\"",
        ),
        (
            function(json!({"client_context": {"a": "x".repeat(3000)}})),
            "`client_context` has 3008 bytes as JSON, and Lambda takes 2685",
        ),
    ] {
        let error = crate::tests::refusal::<AwsLambda>(&config);
        assert!(error.starts_with(why), "{config}: {error}");
    }
}

#[test]
fn a_function_gets_the_request_as_an_event_and_its_answer_is_the_response() {
    let lambda = Lambda::start(|call| {
        let event = call.event();
        Outcome::Answer(
            json!({
                "statusCode": 201,
                "headers": {"x-echo": event["rawPath"], "content-type": "text/plain"},
                "cookies": ["a=1", "b=2"],
                "body": format!("{} {} {}", event["requestContext"]["http"]["method"], event["rawQueryString"], event["body"]),
            })
            .to_string()
            .into_bytes(),
        )
    });
    let gateway = lambda.route("/*", json!({}));
    let response = client::request(
        gateway.addr,
        "POST",
        "/a%20b?x=1&x=2",
        &[("x-amz-meta", "no"), ("X-Tea", "green")],
        b"hi",
    );
    assert_eq!(response.status, 201);
    assert_eq!(response.text(), r#""POST" "x=1&x=2" "hi""#);
    assert_eq!(response.header("x-echo"), Some("/a%20b"));
    assert_eq!(response.all("set-cookie"), ["a=1", "b=2"]);
    assert!(response.header("x-amzn-requestid").is_some(), "{response:?}");
    assert_eq!(response.header("x-amz-executed-version"), None);
    let call = lambda.only_call();
    let event = call.event();
    assert_eq!(event["version"], "2.0");
    assert_eq!(event["headers"]["x-tea"], "green");
    assert_eq!(event["headers"].get("x-amz-meta"), None);
    assert_eq!(event["requestContext"]["http"]["sourceIp"], "127.0.0.1");
    let trace = call.header("x-amzn-trace-id").unwrap_or_default();
    assert!(trace.starts_with("Root=1-"), "{trace}");
    assert_eq!(event["headers"]["x-amzn-trace-id"], trace);
    assert_eq!(call.header("x-amz-invocation-type"), Some("RequestResponse"));
    assert_eq!(call.header("x-tea"), None);
}

#[test]
fn paths_of_events_keep_their_escapes_in_every_format() {
    let lambda = Lambda::with(samples());
    for (format, paths, value) in [
        ("apigw_v1", &["/path", "/requestContext/path"][..], "/fn/7%2F8%20x"),
        ("apigw_v2", &["/requestContext/http/path"], "/fn/7%2F8%20x"),
        ("apigw_v2", &["/rawPath"], "/fn/7%2F8%20x"),
        ("envoy", &["/raw_path"], "/fn/7%2F8%20x?a=b"),
        ("alb", &["/path"], "/fn/7%2F8%20x"),
        ("apigw_v1", &["/pathParameters/proxy"], "7/8 x"),
    ] {
        let options = json!({"function": {"name": "echo"}, "request_format": format});
        let gateway = lambda.route("/fn/*", options);
        let event = client::get(gateway.addr, "/a/../fn/7%2F8%20x?a=b").json();
        for path in paths {
            assert_eq!(event.pointer(path), Some(&json!(value)), "{format} {path}");
        }
    }
}

#[test]
fn answers_of_every_kind_become_responses() {
    // Function, options; status, body (`None`: the gateway's page), more headers.
    type Case<'a> = (&'a str, Value, u16, Option<&'a str>, Option<(&'a str, &'a str)>);
    let cases: [Case<'_>; 14] = [
        (
            "echo",
            json!({"request_format": "raw"}),
            200,
            Some("{\"a\":1}"),
            Some(("content-type", "application/json")),
        ),
        (
            "echo",
            json!({"request_format": "raw", "response_format": "raw"}),
            200,
            Some("{\"a\":1}"),
            None,
        ),
        ("echo", json!({"request_format": "raw", "response_format": "apigw_v1"}), 502, None, None),
        ("fail", json!({}), 502, None, None),
        ("fail", json!({"on_function_error": 500}), 500, None, None),
        ("fail", json!({"unhandled_status": 504}), 502, None, None),
        ("crash", json!({"unhandled_status": 504}), 504, None, None),
        (
            "fail",
            json!({"on_function_error": 200}),
            200,
            Some(r#"{"errorType":"Refused","errorMessage":"the function said no"}"#),
            None,
        ),
        ("throttled", json!({}), 429, None, Some(("retry-after", "1"))),
        ("unknown", json!({}), 502, None, None),
        ("echo", json!({"invocation": "async"}), 202, Some(""), None),
        ("echo", json!({"invocation": "dry_run"}), 204, Some(""), None),
        (
            "echo",
            json!({"request_format": "raw", "expose_amz_headers": ["X-Amz-Executed-Version"]}),
            200,
            Some("{\"a\":1}"),
            Some(("x-amz-executed-version", "$LATEST")),
        ),
        ("echo", json!({"max_event_bytes": 100}), 413, None, None),
    ];
    let lambda = Lambda::with(samples());
    for (name, options, status, body, header) in cases {
        let mut config = options.clone();
        config["function"] = json!({"name": name});
        let gateway = lambda.route("/*", config);
        let response = client::request(gateway.addr, "POST", "/", &[], b"{\"a\":1}");
        let case = format!("{name} {options}");
        assert_eq!(response.status, status, "{case}");
        match body {
            Some(body) => assert_eq!(response.text(), body, "{case}"),
            None if status == 413 => {
                let text = response.text();
                assert!(text.contains("and the limit is 100 bytes"), "{text}");
            }
            None => assert!(response.text().contains("<html>"), "{case}: {}", response.text()),
        }
        if let Some((name, value)) = header {
            assert_eq!(response.header(name), Some(value), "{case}");
        }
        assert_eq!(response.header("x-amz-function-error"), None, "{case}");
    }
}

#[test]
fn an_asynchronous_call_tells_its_request_id_where_it_is_asked_to() {
    let lambda = Lambda::with(samples());
    let config =
        json!({"function": {"name": "echo"}, "invocation": "async", "async_reply": "request_id"});
    let gateway = lambda.route("/*", config);
    let response = client::get(gateway.addr, "/");
    assert_eq!(response.status, 202);
    let id = response.header("x-amzn-requestid").map(str::to_owned);
    assert_eq!(response.json()["request_id"].as_str().map(str::to_owned), id);
    assert!(id.is_some_and(|id| !id.is_empty()));
    assert_eq!(lambda.only_call().header("x-amz-invocation-type"), Some("Event"));
}

#[test]
fn a_stream_arrives_piece_by_piece_with_the_head_that_the_function_gave() {
    let lambda = Lambda::with(samples());
    let route = |name: &str| {
        lambda.route("/*", json!({"function": {"name": name}, "invocation": "stream"}))
    };
    let gateway = route("stream");
    let response = client::get(gateway.addr, "/");
    assert_eq!((response.status, response.text().as_str()), (200, "one,two,three"));
    assert_eq!(response.header("content-type"), Some("application/octet-stream"));
    let gateway = route("stream-http");
    let response = client::get(gateway.addr, "/");
    assert_eq!((response.status, response.text().as_str()), (201, "<p>hello</p>"));
    assert_eq!(response.header("content-type"), Some("text/html"));
    assert_eq!(response.all("set-cookie"), ["a=1", "b=2"]);
    let gateway = route("fail");
    assert_eq!(client::get(gateway.addr, "/").status, 502);
}

#[test]
fn the_first_piece_of_a_stream_does_not_wait_for_the_second() {
    let pause = Duration::from_secs(2);
    let lambda = Lambda::start(move |_| {
        Outcome::Stream(StreamOutcome {
            content_type: "text/event-stream".to_owned(),
            chunks: vec![b"data: 1\n\n".to_vec(), b"data: 2\n\n".to_vec()],
            pause,
            end: StreamEnd::Complete,
        })
    });
    let gateway =
        lambda.route("/*", json!({"invocation": "stream", "timeouts": {"total": 10_000}}));
    let mut client = Client::connect(gateway.addr);
    let began = std::time::Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        client.try_head().expect("a head comes").header("content-type"),
        Some("text/event-stream")
    );
    assert_eq!(client.chunk(), b"data: 1\n\n");
    assert!(began.elapsed() < pause, "{:?}", began.elapsed());
    assert_eq!(client.chunk(), b"data: 2\n\n");
    assert_eq!(client.chunk(), b"");
}

#[test]
fn a_stream_that_breaks_off_resets_the_client_and_never_ends_as_if_it_were_whole() {
    for end in [
        StreamEnd::Error("Unhandled".to_owned(), "{}".to_owned()),
        StreamEnd::Missing,
        StreamEnd::Exception("ServiceException".to_owned(), "gone".to_owned()),
    ] {
        let of_stream = end.clone();
        let lambda = Lambda::start(move |_| {
            Outcome::Stream(StreamOutcome {
                content_type: "text/plain".to_owned(),
                chunks: vec![b"half".to_vec()],
                pause: Duration::ZERO,
                end: of_stream.clone(),
            })
        });
        let gateway = lambda.route("/*", json!({"invocation": "stream"}));
        let mut client = Client::connect(gateway.addr);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.try_head().expect("a head comes").status, 200, "{end:?}");
        assert_eq!(client.chunk(), b"half", "{end:?}");
        let rest = client.rest();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{end:?}: the last chunk came");
    }
}

#[test]
fn a_request_names_the_function_within_the_list_only() {
    let lambda = Lambda::with(samples());
    let gateway = lambda.route(
        "/fn/*",
        json!({"request_format": "raw", "function": {
            "name_parameter": "*", "allowed_functions": ["echo", "stream*"],
        }}),
    );
    for (target, status) in [
        ("/fn/echo", 200),
        ("/fn/stream-http", 200),
        ("/fn/greet", 404),
        ("/fn/echo:1", 404),
        ("/fn/echo/more", 404),
        ("/fn/", 404),
        ("/fn/streamgone", 404),
    ] {
        let calls = lambda.api.recorded().len();
        assert_eq!(
            client::request(gateway.addr, "POST", target, &[], b"1").status,
            status,
            "{target}"
        );
        let called = lambda.api.recorded().len() - calls;
        assert_eq!(called, usize::from(status == 200), "{target}");
    }
}

#[test]
fn only_named_fields_of_the_client_reach_aws() {
    let lambda = Lambda::with(samples());
    let config = json!({
        "function": {"name": "echo"},
        "forward_amz_headers": ["x-amz-durable-execution-name"],
        "tenant_id": "$http_x_tenant",
        "client_context": {"custom": {"a": "b"}},
    });
    let gateway = lambda.route("/*", config);
    let headers = [
        ("X-Amz-Durable-Execution-Name", "job-1"),
        ("X-Amz-Invocation-Type", "Event"),
        ("X-Amz-Client-Context", "mine"),
        ("Authorization", "Bearer t"),
        ("X-Tenant", "blue"),
    ];
    assert_eq!(client::request(gateway.addr, "GET", "/", &headers, b"").status, 200);
    let call = lambda.only_call();
    for (name, value) in [
        ("x-amz-durable-execution-name", Some("job-1")),
        ("x-amz-invocation-type", Some("RequestResponse")),
        ("x-amz-client-context", Some("eyJjdXN0b20iOnsiYSI6ImIifX0=")),
        ("x-amz-tenant-id", Some("blue")),
        ("x-tenant", None),
    ] {
        assert_eq!(call.header(name), value, "{name}");
    }
    assert_eq!(call.event()["headers"]["authorization"], "Bearer t");
}

#[test]
fn a_clock_that_is_wrong_is_learnt_from_aws_and_the_call_sent_once_more() {
    fn an_hour_ahead() -> u64 {
        unix_now() + 3600
    }
    let lambda = Lambda::at(samples(), an_hour_ahead);
    let gateway = lambda.route("/*", json!({"function": {"name": "greet"}}));
    for _ in 0..3 {
        assert_eq!(client::get(gateway.addr, "/?name=Ada").text(), "Hello, Ada!");
    }
    assert_eq!(lambda.api.recorded().len(), 3, "each ran once");
}

#[test]
fn a_refused_signature_is_502_and_says_nothing_to_the_client() {
    let lambda = Lambda::with(samples());
    let config = json!({"function": {"name": "greet"}, "authorization": {"iam": {
        "accesskey": "AKIDEXAMPLE", "secretkey": "another",
    }}});
    let gateway = lambda.route("/*", config);
    let response = client::get(gateway.addr, "/");
    assert_eq!(response.status, 502);
    let text = response.text();
    assert!(!text.contains("signature") && !text.contains("AKID"), "{text}");
}

#[test]
fn limits_of_time_answer_504() {
    let lambda = Lambda::start(|_| {
        std::thread::sleep(Duration::from_millis(700));
        Outcome::Answer(b"1".to_vec())
    });
    for (timeouts, status) in [
        (json!({"first_byte": 100}), 504),
        (json!({"total": 100}), 504),
        (json!({"first_byte": 5000, "total": 100}), 504),
        (json!({"first_byte": 5000, "total": 5000}), 200),
        (json!({"connect": 100}), 200),
    ] {
        let gateway = lambda.route("/*", json!({"timeouts": timeouts}));
        assert_eq!(client::get(gateway.addr, "/").status, status, "{timeouts}");
    }
    let gateway = lambda.route("/*", json!({"timeout": 100}));
    assert_eq!(client::get(gateway.addr, "/").status, 503, "the old timeout");
}

#[test]
fn a_stream_that_takes_too_long_in_all_is_reset() {
    let lambda = Lambda::start(|_| {
        Outcome::Stream(StreamOutcome {
            content_type: "text/plain".to_owned(),
            chunks: vec![b"one".to_vec(), b"two".to_vec()],
            pause: Duration::from_secs(5),
            end: StreamEnd::Complete,
        })
    });
    let gateway = lambda.route("/*", json!({"invocation": "stream", "timeouts": {"total": 500}}));
    let mut client = Client::connect(gateway.addr);
    let began = std::time::Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.try_head().expect("a head comes").status, 200);
    assert_eq!(client.chunk(), b"one");
    assert!(!client.rest().ends_with(b"0\r\n\r\n"));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn formats_go_with_a_url_as_well() {
    let ran = PluginTest::<AwsLambda>::new()
        .config(json!({
            "function_uri": "http://fn.test/2015-03-31/functions/f/invocations",
            "request_format": "apigw_v1",
        }))
        .request("PUT", "/a?b=c")
        .request_header("content-type", Some("text/plain"))
        .request_body("x")
        .origin_answer(sluicegate_testkit::Answer::text("plain"))
        .run();
    let sent = ran.sent();
    assert_eq!(
        (sent.method.as_str(), ran.sent_header("content-type")),
        ("POST", Some("application/json"))
    );
    let event: Value = serde_json::from_slice(&sent.body).expect("an event is JSON");
    assert_eq!(
        (&event["httpMethod"], &event["path"], &event["body"]),
        (&json!("PUT"), &json!("/a"), &json!("x"))
    );
    assert_eq!(ran.body(), "plain");
}

#[test]
fn signatures_of_every_way_of_calling_hold_before_the_judge() {
    let Some(judge) = Judge::start(&["--cred", "AKID:secret:token/+=", "--control", "/_counts"])
    else {
        return;
    };
    let arn = "arn:aws:lambda:eu-central-1:123456789012:function:greet:live";
    for function in [
        json!({"name": "greet", "region": "eu-central-1"}),
        json!({"name": "greet", "qualifier": "$LATEST", "region": "eu-central-1"}),
        json!({"name": "greet", "account_id": "123456789012", "region": "eu-central-1"}),
        json!({"arn": arn}),
    ] {
        for options in [
            json!({}),
            json!({"invocation": "async"}),
            json!({"invocation": "dry_run"}),
            json!({"invocation": "stream"}),
            json!({"request_format": "raw", "log_tail": true, "tenant_id": "a b", "client_context": {"a": 1}}),
            json!({"request_format": "kong", "event": {"forward_request_body": true}}),
        ] {
            let mut config = with(
                json!({"authorization": {"iam": {
                    "accesskey": "AKID", "secretkey": "secret", "session_token": "token/+=",
                }}}),
                options,
            );
            config["function"] = function.clone();
            config["function"]["endpoint"] = json!(format!("http://{}", judge.addr));
            let mut registry = Registry::default();
            registry.add::<AwsLambda>();
            let route = json!({"id": "1", "uri": "/*", "plugins": {"aws-lambda": config}});
            let gateway = InProcess::start(registry, vec![(Kind::Routes, "1", route)]);
            let answer = client::request(gateway.addr, "POST", "/a%20b?x=1", &[], b"{\"a\":1}");
            let counts = client::get(judge.addr, "/_counts").json();
            assert_eq!(counts["refused"], 0, "{config} {}", answer.status);
            // The judge streams nothing, which is found out when its answer has come.
            let status = if config["invocation"] == "stream" { 502 } else { answer.status };
            assert!([200, 202, 204, 502].contains(&status), "{config} {}", answer.status);
            assert_eq!(status, answer.status, "{config}");
        }
    }
}

#[test]
fn an_explanation_shows_what_is_sent_and_no_secret() {
    let lambda = Lambda::with(samples());
    let mut config = lambda.config(json!({"function": {"name": "greet"}}));
    config["authorization"]["iam"]["session_token"] = json!("top-secret-token");
    config["authorization"]["iam"]["secretkey"] = json!("wrong");
    let request = ExplainRequest {
        uri: Some("/a?name=Ada".to_owned()),
        headers: [("x-tea", "green"), ("cookie", "a=b")]
            .map(|(name, value)| (name.to_owned(), FieldValues::One(value.to_owned())))
            .into(),
        checks: true,
        ..ExplainRequest::default()
    };
    let told = lambda.explain(&config, &request).expect("it can be explained");
    assert_eq!(told["function"], "greet");
    assert_eq!(told["path"], "/2015-03-31/functions/greet/invocations");
    let event: Value =
        serde_json::from_str(told["body"].as_str().unwrap_or_default()).expect("an event is JSON");
    assert_eq!(event["rawQueryString"], "name=Ada");
    assert_eq!(told["signing"]["credential_source"], "static");
    assert_eq!(told["signing"]["region"], "eu-central-1");
    let canonical = told["canonical_request"].as_str().unwrap_or_default();
    assert!(
        canonical.starts_with("POST\n/2015-03-31/functions/greet/invocations\n"),
        "{canonical}"
    );
    assert!(told["string_to_sign"].as_str().is_some_and(|it| it.starts_with("AWS4-HMAC-SHA256\n")));
    let text = told.to_string();
    for secret in ["top-secret-token", "AKIDEXAMPLE", "Signature=AWS", "\"wrong\""] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    let checks: Vec<_> = told["checks"].as_array().into_iter().flatten().collect();
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap_or("")).collect();
    assert_eq!(names, ["dns", "tcp", "tls", "clock", "dry_run"]);
    let dry_run = checks[4];
    assert_eq!(dry_run["ok"], false, "{dry_run}");
    // The stand-in wants no token, and prints a canonical request only for a key that it knows.
    assert!(dry_run["detail"].as_str().is_some_and(|it| it.starts_with("403 ")), "{dry_run}");
    config["authorization"]["iam"] = json!({"accesskey": "AKIDEXAMPLE", "secretkey": "secret"});
    let told = lambda.explain(&config, &request).expect("it can be explained");
    let all_ok = told["checks"].as_array().into_iter().flatten().all(|check| check["ok"] == true);
    assert!(all_ok, "{:#}", told["checks"]);
    assert!(lambda.api.recorded().iter().all(|call| call.kind == InvocationKind::DryRun));
}

#[test]
fn a_refused_signature_is_compared_with_what_aws_printed() {
    let lambda = Lambda::with(samples());
    let config = lambda.config(json!({
        "function": {"name": "echo"}, "request_format": "raw", "log_tail": true,
    }));
    let explain = |refusal: Option<String>| {
        let request = ExplainRequest { refusal, ..ExplainRequest::default() };
        lambda.explain(&config, &request).expect("it can be explained")
    };
    let ours = explain(None)["canonical_request"].as_str().map(str::to_owned).unwrap_or_default();
    let printed =
        |canonical: &str| {
            Some(json!({"message": format!(
            "The request signature we calculated does not match the signature you provided.\n\n\
             The Canonical String for this request should have been\n'{canonical}'\n\n\
             The String-to-Sign should have been\n'x'\n"
        )}).to_string())
        };
    let told = explain(printed(&ours.replace("/echo/", "/Echo/")));
    assert_eq!(told["refusal"]["first_difference"]["part"], "path");
    let told = explain(printed(&ours));
    assert_eq!(told["refusal"]["first_difference"], Value::Null);
    assert!(told["refusal"]["likely_cause"].as_str().is_some_and(|it| it.contains("secret key")));
    let told = explain(Some(
        r#"{"message":"The security token included in the request is invalid."}"#.to_owned(),
    ));
    assert!(told["refusal"]["likely_cause"].as_str().is_some(), "{told}");
}

/// An Invoke API with functions of the test.
pub(super) struct Lambda {
    pub(super) api: InvokeApi,
    runtime: tokio::runtime::Runtime,
}

impl Lambda {
    /// One function, `f`.
    pub(super) fn start(function: impl Fn(&Invocation) -> Outcome + Send + Sync + 'static) -> Self {
        let function: Function = std::sync::Arc::new(function);
        Self::with(HashMap::from([("f".to_owned(), function)]))
    }

    pub(super) fn with(functions: HashMap<String, Function>) -> Self {
        Self::at(functions, unix_now)
    }

    pub(super) fn at(functions: HashMap<String, Function>, clock: fn() -> u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let api = runtime.block_on(InvokeApi::start(InvokeSettings {
            addr: ([127, 0, 0, 1], 0).into(),
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Secret::from("secret"),
            session_token: None,
            region: "eu-central-1".to_owned(),
            account_id: "123456789012".to_owned(),
            clock,
            functions,
        }));
        Self { api: api.expect("loopback has a free port"), runtime }
    }

    pub(super) fn explain(
        &self,
        config: &Value,
        request: &ExplainRequest,
    ) -> Result<Value, String> {
        let deps = sluicegate_testkit::deps(Registry::default(), self.runtime.handle());
        let place = ExplainPlace { route_uri: Some("/*"), ..ExplainPlace::default() };
        self.runtime.block_on(explain(config, place, &deps.upstream, request))
    }

    /// A configuration that leads to a function here: `f`, unless the options name another.
    pub(super) fn config(&self, options: Value) -> Value {
        let mut config = with(
            json!({
                "function": {"name": "f"},
                "authorization": {"iam": {"accesskey": "AKIDEXAMPLE", "secretkey": "secret"}},
            }),
            options,
        );
        config["function"]["endpoint"] = json!(format!("http://{}", self.api.addr()));
        config["function"]["region"] = json!("eu-central-1");
        config
    }

    /// A gateway whose only route has that configuration.
    pub(super) fn route(&self, uri: &str, options: Value) -> InProcess {
        let plugins = json!({"aws-lambda": self.config(options)});
        let mut registry = Registry::default();
        registry.add::<AwsLambda>();
        let route = json!({"id": "1", "uri": uri, "plugins": plugins});
        InProcess::start(registry, vec![(Kind::Routes, "1", route)])
    }

    pub(super) fn only_call(&self) -> Invocation {
        match &self.api.recorded()[..] {
            [call] => call.clone(),
            calls => panic!("{} calls", calls.len()),
        }
    }
}

/// A gateway whose only route has these plugins; `more` adds those that go with ours.
fn route_with(plugins: Value, more: impl FnOnce(&mut Registry)) -> InProcess {
    let mut registry = Registry::default();
    registry.add::<AwsLambda>();
    more(&mut registry);
    let route = json!({"id": "1", "uri": "/*", "plugins": plugins});
    InProcess::start(registry, vec![(Kind::Routes, "1", route)])
}

pub(super) fn unix_now() -> u64 {
    sluicegate_gateway::core::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs()
}

/// `more` over `config`, member by member.
pub(super) fn with(mut config: Value, more: Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

const ROLE: &str = "arn:aws:iam::123456789012:role/r";

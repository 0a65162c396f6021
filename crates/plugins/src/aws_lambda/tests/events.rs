//! What goes to the function: the event, its size, and what the client says of itself.

use sluicegate_testkit::Answer;

use super::*;
use crate::proxy_rewrite::ProxyRewrite;
use crate::real_ip::RealIp;

#[test]
fn events_tell_of_the_client_what_the_gateway_believes_in_every_format() {
    let lambda = Lambda::with(samples());
    for (format, chain, headers) in [
        ("apigw_v1", "192.0.2.7", "/headers"),
        ("apigw_v2", "192.0.2.7", "/headers"),
        ("alb", "192.0.2.7", "/headers"),
        ("kong", "6.6.6.6, 192.0.2.7", "/request_headers"),
        ("envoy", "6.6.6.6, 192.0.2.7", "/headers"),
    ] {
        let mut config =
            lambda.config(json!({"function": {"name": "echo"}, "request_format": format}));
        if format == "kong" {
            config["event"] = json!({"forward_request_headers": true});
        }
        let real_ip = json!({"source": "http_x_client", "trusted_addresses": ["127.0.0.0/8"]});
        let gateway = route_with(json!({"aws-lambda": config, "real-ip": real_ip}), |registry| {
            registry.add::<RealIp>()
        });
        let sent = [
            ("X-Client", "192.0.2.7"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Real-IP", "6.6.6.6"),
            ("Forwarded", "for=6.6.6.6"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Host", "evil.test"),
        ];
        let event = client::request(gateway.addr, "GET", "/", &sent, b"").json();
        let headers = event.pointer(headers).expect("there are headers").clone();
        let field = |name: &str| {
            let all = headers.as_object().expect("it is an object").iter();
            let mut of_name = all.filter(|(own, _)| own.eq_ignore_ascii_case(name));
            let value = of_name.next().map(|(_, value)| value.clone());
            assert!(of_name.next().is_none(), "{format}: {name} comes twice: {event}");
            value
        };
        let port = gateway.addr.port().to_string();
        for (name, value) in [
            ("x-forwarded-for", Some(chain)),
            ("x-real-ip", Some("192.0.2.7")),
            ("forwarded", None),
            ("x-forwarded-proto", Some("http")),
            ("x-forwarded-port", Some(port.as_str())),
            ("x-forwarded-host", Some("gate.test")),
        ] {
            assert_eq!(field(name), value.map(Value::from), "{format} {name}");
        }
        for place in ["/requestContext/http/sourceIp", "/requestContext/identity/sourceIp"] {
            if let Some(address) = event.pointer(place) {
                assert_eq!(address, "192.0.2.7", "{format}");
            }
        }
    }
}

#[test]
fn what_a_rewrite_says_of_the_clients_scheme_reaches_the_event() {
    let lambda = Lambda::with(samples());
    let config = lambda.config(json!({"function": {"name": "echo"}}));
    let rewrite =
        json!({"headers": {"set": {"X-Forwarded-Proto": "https", "X-Forwarded-Port": "443"}}});
    let gateway = route_with(json!({"aws-lambda": config, "proxy-rewrite": rewrite}), |registry| {
        registry.add::<ProxyRewrite>()
    });
    let headers = client::get(gateway.addr, "/").json()["headers"].clone();
    assert_eq!(headers["x-forwarded-proto"], "https", "{headers}");
    assert_eq!(headers["x-forwarded-port"], "443", "{headers}");
}

#[test]
fn fields_that_vouch_for_somebody_come_from_the_client_only_where_they_are_allowed() {
    let lambda = Lambda::with(samples());
    let sent = [
        ("X-Amzn-Oidc-Data", "forged"),
        ("X-Amzn-Mtls-Clientcert-Subject", "CN=forged"),
        ("X-Amzn-Other", "fine"),
    ];
    for (options, oidc) in
        [(json!({}), None), (json!({"forward_amz_headers": ["X-Amzn-Oidc-Data"]}), Some("forged"))]
    {
        let gateway =
            lambda.route("/*", with(json!({"function": {"name": "echo"}}), options.clone()));
        let event = client::request(gateway.addr, "GET", "/", &sent, b"").json();
        let headers = &event["headers"];
        assert_eq!(headers.get("x-amzn-oidc-data"), oidc.map(Value::from).as_ref(), "{options}");
        assert_eq!(headers.get("x-amzn-mtls-clientcert-subject"), None, "{options}");
        assert_eq!(headers["x-amzn-other"], "fine", "{options}");
    }
    // With a URL: neither in the event nor beside it. A call without an event is as APISIX's.
    for (format, kept) in [(Some("apigw_v2"), false), (None, true)] {
        let mut config = json!({"function_uri": "http://fn.test/"});
        if let Some(format) = format {
            config["request_format"] = json!(format);
        }
        let mut test = PluginTest::<AwsLambda>::new().config(config);
        for (name, value) in sent {
            test = test.request_header(name, Some(value));
        }
        let ran = test.run();
        assert_eq!(ran.sent_header("x-amzn-oidc-data").is_some(), kept, "{format:?}");
        let body = String::from_utf8_lossy(&ran.sent().body).into_owned();
        assert!(!body.contains("forged"), "{body}");
    }
}

#[test]
fn an_answer_that_is_to_be_read_is_not_asked_for_compressed() {
    for (options, sent) in [
        (json!({}), Some("gzip")),
        (json!({"request_format": "apigw_v2"}), Some("gzip")),
        (json!({"response_format": "auto"}), None),
        (json!({"request_format": "apigw_v2", "response_format": "apigw"}), None),
    ] {
        let ran = PluginTest::<AwsLambda>::new()
            .config(with(json!({"function_uri": "http://fn.test/"}), options.clone()))
            .request_header("accept-encoding", Some("gzip"))
            .origin_answer(Answer::text("{}"))
            .run();
        assert_eq!(ran.sent_header("accept-encoding"), sent, "{options}");
    }
}

#[test]
fn a_w3c_trace_goes_on_in_the_event_and_beside_it() {
    let lambda = Lambda::with(samples());
    let gateway = lambda.route("/*", json!({"function": {"name": "echo"}}));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let x_ray = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";
    let sent = [("traceparent", parent), ("tracestate", "a=b")];
    let event = client::request(gateway.addr, "GET", "/", &sent, b"").json();
    assert_eq!(event["headers"]["traceparent"], parent);
    assert_eq!(event["headers"]["tracestate"], "a=b");
    assert_eq!(event["headers"]["x-amzn-trace-id"], x_ray);
    assert_eq!(lambda.only_call().header("x-amzn-trace-id"), Some(x_ray));
}

#[test]
fn an_event_that_is_too_large_is_refused_with_its_size_and_the_limit() {
    let lambda = Lambda::with(samples());
    let echo =
        |options: Value| lambda.route("/*", with(json!({"function": {"name": "echo"}}), options));
    let told = |gateway: &InProcess, head: &str, body: &[u8]| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
        let answer = client::exchange(gateway.addr, [head.as_bytes(), body].concat());
        (answer.status, answer.json()["error_msg"].as_str().unwrap_or_default().to_owned())
    };
    let text = |text: &str| (413, text.to_owned());
    // The body alone is over the limit, and says so.
    let gateway = echo(json!({"request_format": "raw", "max_event_bytes": 10}));
    assert_eq!(
        told(&gateway, "Content-Length: 11", b"12345678901"),
        text("The request body has 11 bytes, and the limit is 10 bytes")
    );
    // It comes in chunks: how many there are still to come nobody knows.
    assert_eq!(
        told(&gateway, "Transfer-Encoding: chunked", b"b\r\n12345678901\r\n0\r\n\r\n"),
        text("The request body has more than 10 bytes, and that is the limit")
    );
    let body = "1".repeat(10);
    assert_eq!(told(&gateway, "Content-Length: 10", body.as_bytes()).0, 200);
    // The limit of the request's body, where that is lower.
    let gateway = echo(json!({"max_req_body_size": 10}));
    assert_eq!(
        told(&gateway, "Content-Length: 11", b"12345678901"),
        text("The request body has 11 bytes, and the limit is 10 bytes")
    );
    // An asynchronous call's limit by default, and one byte more.
    let gateway = echo(json!({"invocation": "async", "request_format": "raw"}));
    for (size, told) in [
        (1_048_576, None),
        (1_048_577, Some("The request body has 1048577 bytes, and the limit is 1048576 bytes")),
    ] {
        let body = vec![b'1'; size];
        let answer = client::request(gateway.addr, "POST", "/", &[], &body);
        assert_eq!(answer.status, if told.is_some() { 413 } else { 202 }, "{size}");
        if let Some(told) = told {
            assert_eq!(answer.json()["error_msg"], told);
        }
    }
    // With a URL, too.
    let ran = PluginTest::<AwsLambda>::new()
        .config(json!({"function_uri": "http://fn.test/", "request_format": "apigw_v2"}))
        .request("POST", "/")
        .request_header("content-type", Some("image/png"))
        .request_body(vec![0; 51 << 20])
        .run();
    assert_eq!((ran.status, ran.sent.len()), (413, 0));
    assert!(ran.body().contains("and the limit is 67108864 bytes"), "{}", ran.body());
}

#[test]
fn a_kong_event_without_the_body_is_not_measured_by_it() {
    let lambda = Lambda::with(samples());
    let gateway = lambda.route(
        "/*",
        json!({
            "function": {"name": "echo"}, "request_format": "kong", "max_event_bytes": 100,
            "event": {"forward_request_method": true},
        }),
    );
    let answer = client::request(gateway.addr, "PUT", "/", &[], vec![b'x'; 5000]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({"request_method": "PUT"}));
    // What it reads of the body may be shorter, too.
    let gateway = lambda.route(
        "/*",
        json!({
            "function": {"name": "echo"}, "request_format": "kong", "max_event_bytes": 100,
        }),
    );
    let json = [("Content-Type", "application/json")];
    let body = format!("{{{}\"a\":1}}", " ".repeat(5000));
    let answer = client::request(gateway.addr, "POST", "/", &json, body);
    assert_eq!((answer.status, answer.json()), (200, json!({"a": 1})));
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(93));
    let answer = client::request(gateway.addr, "POST", "/", &json, body);
    assert_eq!(answer.status, 413);
    assert_eq!(
        answer.json()["error_msg"],
        "The event would have 101 bytes, and the limit is 100 bytes"
    );
}

#[test]
fn an_envoy_event_of_a_body_in_chunks_is_in_base64() {
    let lambda = Lambda::with(samples());
    let gateway =
        lambda.route("/*", json!({"function": {"name": "echo"}, "request_format": "envoy"}));
    for (head, body, told) in [
        ("Content-Length: 2", "hi", ("hi", false)),
        ("Transfer-Encoding: chunked", "2\r\nhi\r\n0\r\n\r\n", ("aGk=", true)),
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n{head}\r\n\r\n{body}"
        );
        let event = client::exchange(gateway.addr, request).json();
        assert_eq!((&event["body"], &event["is_base64_encoded"]), (&json!(told.0), &json!(told.1)));
        assert_eq!(event["headers"].get("transfer-encoding"), None);
    }
}

#[test]
fn a_client_context_that_lambda_takes_is_taken_and_one_byte_more_is_not() {
    let lambda = Lambda::with(samples());
    // {"a":"…"} has eight bytes around the text.
    let context = |bytes: usize| {
        lambda.config(json!({
            "function": {"name": "echo"}, "client_context": {"a": "x".repeat(bytes - 8)},
        }))
    };
    let gateway = route_with(json!({"aws-lambda": context(2685)}), |_| ());
    assert_eq!(client::get(gateway.addr, "/").status, 200);
    let sent = lambda.only_call().header("x-amz-client-context").map(str::len);
    assert_eq!(sent, Some(3580));
    let error = crate::tests::refusal::<AwsLambda>(&context(2686));
    assert_eq!(error, "`client_context` has 2686 bytes as JSON, and Lambda takes 2685");
}

#[test]
fn an_explanation_has_the_tenant_and_the_clients_own_fields_of_aws() {
    let lambda = Lambda::with(samples());
    let config = lambda.config(json!({
        "function": {"name": "echo"},
        "tenant_id": "$http_x_tenant",
        "forward_amz_headers": ["x-amz-durable-execution-name"],
    }));
    let asked = |tenant: &[(&str, &str)]| {
        let sent = [("X-Amz-Durable-Execution-Name", "job-1"), ("X-Amz-Meta", "no")];
        let headers = sent.iter().chain(tenant);
        ExplainRequest {
            headers: headers
                .map(|(name, value)| ((*name).into(), FieldValues::One((*value).into())))
                .collect(),
            ..ExplainRequest::default()
        }
    };
    let told = lambda.explain(&config, &asked(&[("X-Tenant", "blue")])).expect("it is valid");
    assert_eq!(told["headers"]["x-amz-tenant-id"], "blue");
    assert_eq!(told["headers"]["x-amz-durable-execution-name"], "job-1");
    let event = told["body"].as_str().unwrap_or_default();
    assert!(event.contains("job-1") && !event.contains("x-amz-meta"), "{event}");
    // What only a real request has is left out.
    let told = lambda.explain(&config, &asked(&[])).expect("it is valid");
    assert_eq!(told["headers"].get("x-amz-tenant-id"), None);
}

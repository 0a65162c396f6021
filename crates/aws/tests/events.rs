//! Events, read by the official Rust types and by a plain JSON parser.

use std::collections::{BTreeMap, HashMap};

use aws_lambda_events::event::alb::AlbTargetGroupRequest;
use aws_lambda_events::event::apigw::{ApiGatewayProxyRequest, ApiGatewayV2httpRequest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use sluicegate_aws::event::{
    ClientCertificate, EventEncoder, EventFormat, EventRequest, EventSettings, EventTooLarge,
    KongForward,
};

const HEADERS: &[(&str, &[u8])] = &[
    ("Host", b"api.example.test:8443"),
    ("User-Agent", b"curl/8.7"),
    ("Accept", b"text/html"),
    ("X-Many", b"one"),
    ("accept", b"*/*"),
    ("x-many", b"two, three"),
    ("Cookie", b"a=1; b=2"),
    ("cookie", b"c=\"3\""),
    ("Content-Type", b"application/json; charset=utf-8"),
    ("X-Forwarded-For", b"6.6.6.6, 192.0.2.7"),
    ("X-Forwarded-Proto", b"https"),
    ("X-Forwarded-Port", b"8443"),
    ("X-Real-IP", b"192.0.2.7"),
    ("x-amzn-trace-id", b"Root=client"),
];

fn full<'a>(claims: &'a Value) -> EventRequest<'a> {
    EventRequest {
        method: "POST",
        path: "/users/7%2F8/x",
        query: "b=2&a=1%202&a=x+y&flag&b=%C3%A9",
        headers: HEADERS,
        own_headers: &[("x-amzn-trace-id", "Root=1-abc"), ("traceparent", "00-1-2-01")],
        body: b"{\"say\":\"\\\"hi\\\"\xc3\xa9\"}",
        chunked: false,
        protocol: "HTTP/1.1",
        host: "api.example.test",
        client_ip: "192.0.2.7",
        user_agent: Some("curl/8.7"),
        request_id: "req-1",
        time_ms: 1_583_348_638_390,
        route_id: Some("r1"),
        route_pattern: Some("/users/:id/*rest"),
        path_parameters: &[("id", "7/8"), ("rest", "x")],
        consumer: Some("jack"),
        claims: Some(claims),
        client_certificate: Some(ClientCertificate {
            pem: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
            subject_dn: "CN=client",
            issuer_dn: "CN=ca",
            serial_number: "01:02",
            not_before: "May 28 12:30:02 2019 GMT",
            not_after: "Aug  5 09:36:04 2021 GMT",
        }),
    }
}

fn claims() -> Value {
    json!({"sub": "u1", "exp": 17, "admin": true, "aud": ["a", "b"], "scope": "read write"})
}

fn settings(format: EventFormat) -> EventSettings {
    EventSettings { format, ..EventSettings::default() }
}

fn encode(settings: EventSettings, request: &EventRequest<'_>) -> Vec<u8> {
    let encoder = EventEncoder::compile(settings).unwrap();
    let mut event = Vec::new();
    encoder.encode(request, usize::MAX, &mut event).unwrap();
    assert_eq!(encoder.encoded_size(request), event.len());
    event
}

fn json_of(settings: EventSettings, request: &EventRequest<'_>) -> Value {
    serde_json::from_slice(&encode(settings, request)).unwrap()
}

#[test]
fn a_payload_of_version_2_has_every_field() {
    let claims = claims();
    let with = EventSettings {
        account_id: Some("123456789012".into()),
        stage: Some("prod".into()),
        stage_variables: vec![("env".into(), "\"x\"".into())],
        ..settings(EventFormat::ApigwV2)
    };
    let event = json_of(with, &full(&claims));
    let expected = json!({
        "version": "2.0",
        "routeKey": "POST /users/{id}/{rest+}",
        "rawPath": "/users/7%2F8/x",
        "rawQueryString": "b=2&a=1%202&a=x+y&flag&b=%C3%A9",
        "cookies": ["a=1", "b=2", "c=\"3\""],
        "headers": {
            "accept": "text/html,*/*",
            "content-type": "application/json; charset=utf-8",
            "host": "api.example.test:8443",
            "traceparent": "00-1-2-01",
            "user-agent": "curl/8.7",
            "x-amzn-trace-id": "Root=1-abc",
            "x-forwarded-for": "192.0.2.7",
            "x-forwarded-port": "8443",
            "x-forwarded-proto": "https",
            "x-many": "one,two, three",
            "x-real-ip": "192.0.2.7",
        },
        "queryStringParameters": {"a": "1 2,x y", "b": "2,é", "flag": ""},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "r1",
            "authentication": {"clientCert": {
                "clientCertPem": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
                "subjectDN": "CN=client",
                "issuerDN": "CN=ca",
                "serialNumber": "01:02",
                "validity": {
                    "notBefore": "May 28 12:30:02 2019 GMT",
                    "notAfter": "Aug  5 09:36:04 2021 GMT",
                },
            }},
            "authorizer": {
                "jwt": {
                    "claims": {
                        "sub": "u1", "exp": "17", "admin": "true", "aud": "[a b]",
                        "scope": "read write",
                    },
                    "scopes": ["read", "write"],
                },
                "lambda": {"consumer": "jack"},
            },
            "domainName": "api.example.test",
            "domainPrefix": "api",
            "http": {
                "method": "POST",
                "path": "/users/7%2F8/x",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.7",
                "userAgent": "curl/8.7",
            },
            "requestId": "req-1",
            "routeKey": "POST /users/{id}/{rest+}",
            "stage": "prod",
            "time": "04/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1_583_348_638_390_u64,
        },
        "body": "{\"say\":\"\\\"hi\\\"é\"}",
        "pathParameters": {"id": "7/8", "rest": "x"},
        "isBase64Encoded": false,
        "stageVariables": {"env": "\"x\""},
    });
    assert_eq!(event, expected);

    let bare = json_of(settings(EventFormat::ApigwV2), &EventRequest::default());
    for absent in ["cookies", "queryStringParameters", "pathParameters", "stageVariables", "body"] {
        assert!(bare.get(absent).is_none(), "{absent}");
    }
    assert_eq!(bare["routeKey"], "$default");
    assert_eq!(bare["requestContext"]["accountId"], "anonymous");
    assert!(bare["requestContext"].get("authorizer").is_none());
}

#[test]
fn a_payload_of_version_1_has_every_field() {
    let claims = claims();
    let with = EventSettings {
        account_id: Some("123456789012".into()),
        api_id: Some("api1".into()),
        stage: Some("prod".into()),
        ..settings(EventFormat::ApigwV1)
    };
    let event = json_of(with, &full(&claims));
    let certificate = &event["requestContext"]["identity"]["clientCert"];
    assert_eq!(certificate["subjectDN"], "CN=client");
    let expected = json!({
        "version": "1.0",
        "resource": "/users/{id}/{rest+}",
        "path": "/users/7%2F8/x",
        "httpMethod": "POST",
        "headers": {
            "Accept": "*/*",
            "Content-Type": "application/json; charset=utf-8",
            "Cookie": "c=\"3\"",
            "Host": "api.example.test:8443",
            "traceparent": "00-1-2-01",
            "User-Agent": "curl/8.7",
            "x-amzn-trace-id": "Root=1-abc",
            "X-Forwarded-For": "192.0.2.7",
            "X-Forwarded-Port": "8443",
            "X-Forwarded-Proto": "https",
            "X-Real-IP": "192.0.2.7",
            "X-Many": "two, three",
        },
        "multiValueHeaders": {
            "Accept": ["text/html", "*/*"],
            "Content-Type": ["application/json; charset=utf-8"],
            "Cookie": ["a=1; b=2", "c=\"3\""],
            "Host": ["api.example.test:8443"],
            "traceparent": ["00-1-2-01"],
            "User-Agent": ["curl/8.7"],
            "x-amzn-trace-id": ["Root=1-abc"],
            "X-Forwarded-For": ["192.0.2.7"],
            "X-Forwarded-Port": ["8443"],
            "X-Forwarded-Proto": ["https"],
            "X-Real-IP": ["192.0.2.7"],
            "X-Many": ["one", "two, three"],
        },
        "queryStringParameters": {"a": "x y", "b": "é", "flag": ""},
        "multiValueQueryStringParameters": {"a": ["1 2", "x y"], "b": ["2", "é"], "flag": [""]},
        "pathParameters": {"id": "7/8", "rest": "x"},
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api1",
            "authorizer": {
                "principalId": "jack",
                "claims": {
                    "sub": "u1", "exp": "17", "admin": "true", "aud": "[a b]", "scope": "read write",
                },
                "scopes": ["read", "write"],
            },
            "domainName": "api.example.test",
            "domainPrefix": "api",
            "extendedRequestId": "req-1",
            "httpMethod": "POST",
            "identity": {
                "accessKey": null, "accountId": null, "apiKey": null, "apiKeyId": null,
                "caller": null, "clientCert": certificate, "cognitoAuthenticationProvider": null,
                "cognitoAuthenticationType": null, "cognitoIdentityId": null,
                "cognitoIdentityPoolId": null, "principalOrgId": null, "sourceIp": "192.0.2.7",
                "user": null, "userAgent": "curl/8.7", "userArn": null,
            },
            "path": "/prod/users/7%2F8/x",
            "protocol": "HTTP/1.1",
            "requestId": "req-1",
            "requestTime": "04/Mar/2020:19:03:58 +0000",
            "requestTimeEpoch": 1_583_348_638_390_u64,
            "resourceId": "r1",
            "resourcePath": "/users/{id}/{rest+}",
            "stage": "prod",
        },
        "body": "{\"say\":\"\\\"hi\\\"é\"}",
        "isBase64Encoded": false,
    });
    assert_eq!(event, expected);

    let bare = json_of(settings(EventFormat::ApigwV1), &EventRequest::default());
    for null in [
        "queryStringParameters",
        "multiValueQueryStringParameters",
        "pathParameters",
        "stageVariables",
        "body",
    ] {
        assert_eq!(bare.get(null), Some(&Value::Null), "{null}");
    }
    assert_eq!(bare["requestContext"]["authorizer"], Value::Null);
    assert_eq!(bare["requestContext"]["path"], "/");
    assert_eq!(bare["isBase64Encoded"], false);
}

#[test]
fn an_alb_event_has_single_or_multiple_values() {
    let claims = claims();
    let with = |multi_value| EventSettings {
        target_group_arn: Some("arn:tg".into()),
        ..settings(EventFormat::Alb { multi_value })
    };
    let event = json_of(with(false), &full(&claims));
    assert_eq!(event["requestContext"], json!({"elb": {"targetGroupArn": "arn:tg"}}));
    assert_eq!(event["httpMethod"], "POST");
    assert_eq!(event["path"], "/users/7%2F8/x");
    // The escapes stay, as an ALB leaves them.
    assert_eq!(event["queryStringParameters"], json!({"a": "x+y", "b": "%C3%A9", "flag": ""}));
    assert_eq!(event["headers"]["accept"], "*/*");
    assert_eq!(event["headers"]["x-forwarded-for"], "192.0.2.7");
    assert_eq!(event["body"], "{\"say\":\"\\\"hi\\\"é\"}");
    assert!(event.get("multiValueHeaders").is_none());

    let event = json_of(with(true), &full(&claims));
    assert_eq!(
        event["multiValueQueryStringParameters"],
        json!({"a": ["1%202", "x+y"], "b": ["2", "%C3%A9"], "flag": [""]})
    );
    assert_eq!(event["multiValueHeaders"]["accept"], json!(["text/html", "*/*"]));
    assert!(event.get("headers").is_none() && event.get("queryStringParameters").is_none());

    let bare = json_of(settings(EventFormat::Alb { multi_value: false }), &EventRequest::default());
    assert_eq!((&bare["body"], &bare["isBase64Encoded"]), (&json!(""), &json!(false)));
    assert_eq!(bare["requestContext"]["elb"]["targetGroupArn"], Value::Null);
}

#[test]
fn an_envoy_event_has_every_field() {
    let claims = claims();
    let event = json_of(settings(EventFormat::Envoy), &full(&claims));
    assert_eq!(event["raw_path"], "/users/7%2F8/x?b=2&a=1%202&a=x+y&flag&b=%C3%A9");
    assert_eq!(event["method"], "POST");
    assert_eq!(event["headers"]["cookie"], "a=1; b=2,c=\"3\"");
    assert_eq!(event["headers"]["x-forwarded-for"], "6.6.6.6, 192.0.2.7", "as it is passed on");
    assert_eq!(event["headers"]["x-amzn-trace-id"], "Root=1-abc", "but for the gateway's own");
    assert_eq!(event["query_string_parameters"], json!({"a": "1%202", "b": "2", "flag": ""}));
    assert_eq!(event["is_base64_encoded"], false);
    let chunked = EventRequest { chunked: true, ..full(&claims) };
    let event = json_of(settings(EventFormat::Envoy), &chunked);
    assert_eq!(event["is_base64_encoded"], true);
    let bare = json_of(settings(EventFormat::Envoy), &EventRequest::default());
    assert_eq!(
        bare,
        json!({
            "raw_path": "/", "method": "GET", "headers": {}, "query_string_parameters": {},
            "body": "", "is_base64_encoded": false,
        })
    );
}

#[test]
fn a_kong_event_holds_what_is_forwarded() {
    let claims = claims();
    let kong = |forward| settings(EventFormat::Kong(forward));
    let all = KongForward {
        method: true,
        uri: true,
        headers: true,
        body: true,
        base64_encode_body: true,
    };
    let event = json_of(kong(all), &full(&claims));
    assert_eq!(event["request_method"], "POST");
    assert_eq!(event["request_uri"], "/users/7%2F8/x?b=2&a=1%202&a=x+y&flag&b=%C3%A9");
    assert_eq!(
        event["request_uri_args"],
        json!({"a": ["1 2", "x y"], "b": ["2", "é"], "flag": true})
    );
    assert_eq!(event["request_headers"]["accept"], json!(["text/html", "*/*"]));
    assert_eq!(event["request_headers"]["host"], "api.example.test:8443");
    assert_eq!(event["request_body"], "{\"say\":\"\\\"hi\\\"é\"}");
    assert_eq!(event["request_body_args"], json!({"say": "\"hi\"é"}));
    assert!(event.get("request_body_base64").is_none());

    let typed = |media: &'static [u8], query, body| EventRequest {
        headers: match media {
            b"form" => &[("content-type", b"application/x-www-form-urlencoded")],
            b"json" => &[("content-type", b"application/json")],
            b"" => &[],
            _ => &[("content-type", b"image/png")],
        },
        query,
        body,
        ..EventRequest::default()
    };
    let binary = json_of(kong(all), &typed(b"png", "", b"\x89PNG"));
    assert_eq!(binary["request_body"], STANDARD.encode(b"\x89PNG"));
    assert_eq!(binary["request_body_base64"], true);
    assert_eq!(binary["request_body_args"], json!({}));
    for (media, body, sent, base64, arguments) in [
        (&b"json"[..], &b"[1, 2]"[..], "[1, 2]", None, Some(json!([1, 2]))),
        (b"json", b"[1", "[1", None, None),
        (b"json", b"7", "7", None, None),
        // A body that nobody named the type of.
        (b"", b"hi", "aGk=", Some(true), Some(json!({}))),
        (b"", b"", "", None, Some(json!({}))),
    ] {
        let event = json_of(kong(all), &typed(media, "", body));
        assert_eq!(event["request_body"], sent);
        let told = event.get("request_body_base64").map(|told| told == true);
        assert_eq!(told, base64, "{event}");
        assert_eq!(event.get("request_body_args"), arguments.as_ref(), "{event}");
    }

    for (request, merged) in [
        (
            typed(b"json", "a=1&b=2", b"{\"b\":{\"c\":[1]},\"d\":1,\"d\":null}"),
            json!({"a": "1", "b": {"c": [1]}, "d": null}),
        ),
        (
            typed(b"form", "a=1&b=2&f", b"b=3&b=4&c=x+y"),
            json!({"a": "1", "f": true, "b": ["3", "4"], "c": "x y"}),
        ),
        // In Lua an array is a table like any other.
        (typed(b"json", "", b" [1, {\"x\":2}]\n"), json!([1, {"x": 2}])),
        (typed(b"json", "a=1&2=q&03=r", b"[1,2]"), json!({"03": "r", "a": "1", "1": 1, "2": 2})),
        (typed(b"json", "", b"[]"), json!({})),
        (typed(b"json", "a=1", b"7"), json!({"a": "1"})),
        (typed(b"json", "a=1", b"{\"b\":1} x"), json!({"a": "1"})),
        (typed(b"png", "a=1", b"x"), json!({"a": "1"})),
    ] {
        assert_eq!(json_of(kong(KongForward::default()), &request), merged);
    }
}

#[test]
fn a_raw_event_is_the_body() {
    let request = EventRequest { body: b"\x00\xffany", ..EventRequest::default() };
    assert_eq!(encode(settings(EventFormat::Raw), &request), b"\x00\xffany");
}

#[test]
fn the_official_types_read_what_is_written() {
    let claims = claims();
    let with = |format| EventSettings {
        stage_variables: vec![("env".into(), "x".into())],
        ..settings(format)
    };
    let request = full(&claims);

    let v2: ApiGatewayV2httpRequest =
        serde_json::from_slice(&encode(with(EventFormat::ApigwV2), &request)).unwrap();
    assert_eq!(v2.raw_path.as_deref(), Some("/users/7%2F8/x"));
    assert_eq!(v2.cookies.as_ref().unwrap().len(), 3);
    assert_eq!(v2.headers["x-many"], "one,two, three");
    assert_eq!(v2.query_string_parameters.all("b"), Some(vec!["2", "é"]));
    assert_eq!(v2.path_parameters["id"], "7/8");
    assert_eq!(v2.stage_variables["env"], "x");
    assert_eq!(v2.request_context.http.method, "POST");
    assert_eq!(v2.request_context.http.source_ip.as_deref(), Some("192.0.2.7"));
    assert_eq!(v2.request_context.time_epoch, 1_583_348_638_390);
    let authorizer = v2.request_context.authorizer.unwrap();
    let jwt = authorizer.jwt.unwrap();
    assert_eq!(jwt.claims["exp"], "17");
    assert_eq!(jwt.scopes, Some(vec!["read".to_owned(), "write".to_owned()]));
    assert_eq!(authorizer.fields["consumer"], "jack");
    let authentication = v2.request_context.authentication.unwrap();
    let certificate = authentication.client_cert.unwrap();
    assert_eq!(certificate.subject_dn.as_deref(), Some("CN=client"));
    let validity = certificate.validity;
    assert_eq!(validity.not_after.as_deref(), Some("Aug  5 09:36:04 2021 GMT"));

    let v1: ApiGatewayProxyRequest =
        serde_json::from_slice(&encode(with(EventFormat::ApigwV1), &request)).unwrap();
    assert_eq!(v1.resource.as_deref(), Some("/users/{id}/{rest+}"));
    assert_eq!(v1.multi_value_headers.get_all("accept").iter().count(), 2);
    assert_eq!(v1.multi_value_query_string_parameters.all("a"), Some(vec!["1 2", "x y"]));
    assert_eq!(v1.query_string_parameters.first("a"), Some("x y"));
    assert_eq!(v1.request_context.identity.source_ip.as_deref(), Some("192.0.2.7"));
    assert_eq!(v1.request_context.authorizer.fields["principalId"], "jack");

    for multi_value in [false, true] {
        let alb: AlbTargetGroupRequest =
            serde_json::from_slice(&encode(with(EventFormat::Alb { multi_value }), &request))
                .unwrap();
        assert_eq!(alb.http_method, "POST");
        let headers = if multi_value { &alb.multi_value_headers } else { &alb.headers };
        assert_eq!(headers["host"], "api.example.test:8443");
    }

    // And what has next to nothing in it.
    let bare = EventRequest::default();
    let v2: ApiGatewayV2httpRequest =
        serde_json::from_slice(&encode(settings(EventFormat::ApigwV2), &bare)).unwrap();
    assert_eq!((v2.body, v2.cookies), (None, None));
    let v1: ApiGatewayProxyRequest =
        serde_json::from_slice(&encode(settings(EventFormat::ApigwV1), &bare)).unwrap();
    assert_eq!(v1.body, None);
    let format = EventFormat::Alb { multi_value: false };
    let _: AlbTargetGroupRequest =
        serde_json::from_slice(&encode(settings(format), &bare)).unwrap();
}

#[test]
fn an_event_at_the_limit_passes_and_one_past_it_is_named_and_not_written() {
    let body = vec![b'"'; 10_000];
    for format in [
        EventFormat::Raw,
        EventFormat::ApigwV1,
        EventFormat::ApigwV2,
        EventFormat::Alb { multi_value: true },
        EventFormat::Envoy,
        EventFormat::Kong(KongForward { body: true, ..KongForward::default() }),
    ] {
        let encoder = EventEncoder::compile(settings(format)).unwrap();
        let request = EventRequest { body: &body, ..EventRequest::default() };
        let size = encoder.encoded_size(&request);
        let mut out = b"before".to_vec();
        let error = encoder.encode(&request, size - 1, &mut out).unwrap_err();
        assert_eq!(error, EventTooLarge { size, limit: size - 1 });
        assert_eq!(out, b"before");
        encoder.encode(&request, size, &mut out).unwrap();
        assert_eq!(out.len(), 6 + size);

        // What the configuration puts in counts as what the client sends.
        let long = || Some("\u{1}".repeat(2048));
        let wordy = EventSettings {
            account_id: long(),
            api_id: long(),
            stage: long(),
            stage_variables: vec![("a".to_owned(), "\u{1}".repeat(2048))],
            target_group_arn: long(),
            ..settings(format)
        };
        let encoder = EventEncoder::compile(wordy).unwrap();
        let request = EventRequest { body: b"xx", ..EventRequest::default() };
        let size = encoder.encoded_size(&request);
        for limit in [size - 1, size / 2] {
            let error = encoder.encode(&request, limit, &mut out).unwrap_err();
            assert_eq!(error, EventTooLarge { size, limit }, "{format:?}");
        }
    }
    let error = EventTooLarge { size: 7, limit: 6 };
    assert_eq!(error.to_string(), "the event would have 7 bytes, and 6 are the most");
}

/// What a function makes of an event: the body's bytes.
fn decoded_body(event: &Value, flag: &str) -> Vec<u8> {
    match event.get("body") {
        None | Some(Value::Null) => Vec::new(),
        Some(body) if event[flag] == true => STANDARD.decode(body.as_str().unwrap()).unwrap(),
        Some(body) => body.as_str().unwrap().as_bytes().to_vec(),
    }
}

type Texts = Vec<(String, String)>;

fn texts(name: &'static str, value: &'static str) -> impl Strategy<Value = Texts> {
    proptest::collection::vec((name, value), 0..6)
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

proptest! {
    #[test]
    fn decoding_an_event_gives_the_request(
        headers in texts("[A-Za-z-]{1,8}", "[ -~é]{0,12}"),
        arguments in texts(".{1,6}", ".{0,8}"),
        media in prop_oneof![
            Just(""), Just("text/plain"), Just("application/json"), Just("image/png"), Just("x"),
        ],
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            ".{0,60}".prop_map(String::into_bytes),
        ],
        path in "(/[a-zA-Z0-9%\"\\\\]{0,6}){1,4}",
    ) {
        let mut list: Vec<(&str, &[u8])> = headers
            .iter()
            .filter(|(name, _)| !["content-type", "cookie"].contains(&&*name.to_lowercase()))
            .map(|(name, value)| (&**name, value.as_bytes()))
            .collect();
        if !media.is_empty() {
            list.push(("Content-Type", media.as_bytes()));
        }
        let query: Vec<_> =
            arguments.iter().map(|(name, value)| escaped(name) + "=" + &escaped(value)).collect();
        let query = query.join("&");
        let request = EventRequest {
            headers: &list,
            query: &query,
            path: &path,
            body: &body,
            ..EventRequest::default()
        };
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in &list {
            let value = String::from_utf8(value.to_vec()).unwrap();
            by_name.entry(name.to_lowercase()).or_default().push(value);
        }
        let mut by_argument: HashMap<String, Vec<String>> = HashMap::new();
        for (name, value) in &arguments {
            by_argument.entry(name.clone()).or_default().push(value.clone());
        }

        let v1 = json_of(settings(EventFormat::ApigwV1), &request);
        prop_assert_eq!(decoded_body(&v1, "isBase64Encoded"), &body[..]);
        prop_assert_eq!(&v1["path"], &path);
        for (name, values) in v1["multiValueHeaders"].as_object().unwrap() {
            if name != "X-Forwarded-For" {
                prop_assert_eq!(values, &json!(by_name[&name.to_lowercase()]));
            }
        }
        let told = v1["multiValueQueryStringParameters"].as_object().cloned().unwrap_or_default();
        prop_assert_eq!(Value::Object(told), json!(by_argument));

        let v2 = json_of(settings(EventFormat::ApigwV2), &request);
        prop_assert_eq!(decoded_body(&v2, "isBase64Encoded"), &body[..]);
        prop_assert_eq!(&v2["rawQueryString"], &query);
        for (name, values) in &by_name {
            prop_assert_eq!(&v2["headers"][name], &values.join(","));
        }

        for multi_value in [false, true] {
            let alb = json_of(settings(EventFormat::Alb { multi_value }), &request);
            prop_assert_eq!(decoded_body(&alb, "isBase64Encoded"), &body[..]);
            for (name, values) in &by_name {
                if multi_value {
                    prop_assert_eq!(&alb["multiValueHeaders"][name], &json!(values));
                } else {
                    prop_assert_eq!(&alb["headers"][name], values.last().unwrap());
                }
            }
        }

        let envoy = json_of(settings(EventFormat::Envoy), &request);
        prop_assert_eq!(decoded_body(&envoy, "is_base64_encoded"), &body[..]);

        let forward = KongForward { body: true, headers: true, uri: true, ..KongForward::default() };
        let kong = json_of(settings(EventFormat::Kong(forward)), &request);
        let told = kong["request_body"].as_str().unwrap();
        let decoded = match kong.get("request_body_base64") {
            Some(_) => STANDARD.decode(told).unwrap(),
            None => told.as_bytes().to_vec(),
        };
        prop_assert_eq!(decoded, &body[..]);
    }

    #[test]
    fn any_bytes_in_any_field_make_an_event_of_the_size_foretold(
        query in "[a-z=&%+é\"]{0,30}",
        value in proptest::collection::vec(any::<u8>(), 0..30),
        body in proptest::collection::vec(any::<u8>(), 0..60),
        json in any::<bool>(),
    ) {
        let media: &[u8] = if json { b"application/json" } else { b"application/x-www-form-urlencoded" };
        let headers = [("cookie", &value[..]), ("x", &value), ("content-type", media)];
        let request =
            EventRequest { query: &query, headers: &headers, body: &body, ..EventRequest::default() };
        for format in [
            EventFormat::ApigwV1,
            EventFormat::ApigwV2,
            EventFormat::Alb { multi_value: false },
            EventFormat::Envoy,
            EventFormat::Kong(KongForward::default()),
            EventFormat::Kong(KongForward { body: true, headers: true, ..KongForward::default() }),
        ] {
            // `json_of` compares the size, and parses.
            prop_assert!(json_of(settings(format), &request).is_object());
        }
    }
}

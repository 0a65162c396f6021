//! Signatures through the running gateway, judged by botocore.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use sluicegate_testkit::client::{self, Client};
use sluicegate_testkit::gateway::config;
use sluicegate_testkit::{Answer, GatewayProcess, Judge, Origin, certs};

use crate::BINARY;

#[test]
fn every_odd_target_is_accepted_by_the_judge_over_http() {
    let Some(judge) = Judge::start(&["--cred", CREDENTIALS]) else { return };
    let gateway = GatewayProcess::start(BINARY);
    ask_every_odd_target(&gateway, &format!("http://{}", judge.addr));
}

#[test]
fn every_odd_target_is_accepted_by_the_judge_over_https() {
    let authority = certs::Authority::new();
    let pair = authority.issue(&["127.0.0.1"]);
    let changes = json!({"apisix": {"ssl": {"ssl_trusted_certificate": "conf/authority.pem"}}});
    let mut gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
    let write = |name: &str, text: &str| {
        std::fs::write(gateway.path(name), text).unwrap();
        gateway.path(name).to_str().unwrap().to_owned()
    };
    write("conf/authority.pem", &authority.pem());
    let (cert, key) = (write("judge.pem", &pair.cert), write("judge.key", &pair.key));
    let more = ["--cred", CREDENTIALS, "--tls-cert", &cert, "--tls-key", &key];
    let Some(judge) = Judge::start(&more) else { return };
    gateway.launch();
    ask_every_odd_target(&gateway, &format!("https://{}", judge.addr));
}

fn ask_every_odd_target(gateway: &GatewayProcess, function_uri: &str) {
    set_routes(gateway, function_uri);
    let mut client = Client::connect(gateway.http);
    let mut refused = Vec::new();
    let mut ask = |target: &str| {
        let answer = client.get(target);
        if answer.status != 200 {
            refused.push(format!("{target}: {} {}", answer.status, answer.text()));
        }
        answer.json()
    };
    for path in ODD_PATHS {
        // The path arrives as AWS reads it: the client's own escapes are what is left of it.
        ask(&format!("/fn{path}"));
        ask(&format!("/fn{path}?b=2&a=1"));
    }
    for query in ODD_QUERIES {
        ask(&format!("/exact?{query}"));
        ask(&format!("/fn/a%2Fb//c:d@e/?{query}"));
    }
    let told = ask("/fn/a%2fb//c:d@e/?b=2&a=1+2&flag&a=%2B&%C3%A9=x%3Dy");
    assert_eq!(told["path"], "/base/a%2fb//c:d@e/");
    let mut arguments: Vec<String> =
        told["args"].as_array().unwrap().iter().map(Value::to_string).collect();
    arguments.sort();
    let expected =
        [r#"["a","+"]"#, r#"["a","1 2"]"#, r#"["b","2"]"#, r#"["flag",""]"#, r#"["é","x=y"]"#];
    assert_eq!(arguments, expected);
    assert!(refused.is_empty(), "{} refused:\n{}", refused.len(), refused.join("\n"));
}

#[test]
fn odd_methods_headers_and_bodies_are_accepted_by_the_judge() {
    let Some(judge) = Judge::start(&["--cred", CREDENTIALS]) else { return };
    let gateway = GatewayProcess::start(BINARY);
    set_routes(&gateway, &format!("http://{}", judge.addr));
    let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8]);
    let cases: [Case<'_>; 12] = [
        ("POST", &[("Content-Type", "application/json")], b"{\"name\": \"APISIX\"}"),
        ("PUT", &[], &binary),
        ("DELETE", &[], b""),
        ("PATCH", &[("Content-Type", "text/plain;  charset=utf-8")], b"x"),
        ("OPTIONS", &[], b""),
        ("GET", &[("X-Amz-Meta", "  a   b "), ("x-amz-meta", "c"), ("X-AMZ-Empty", "")], b""),
        ("GET", &[("x-amz-tab", "a\t\tb")], b""),
        ("GET", &[("X-Amz-Date", "20000101T000000Z")], b""),
        ("GET", &[("Host", "elsewhere.test:8080")], b""),
        // What proxies on the way change is not signed.
        ("GET", &[("User-Agent", "a  b"), ("X-Forwarded-For", "1.2.3.4"), ("Accept", "*/*")], b""),
        ("GET", &[("Cookie", "a=1; b=\"2\""), ("X-Twice", "1"), ("X-Twice", "2")], b""),
        ("GET", &[("Connection", "keep-alive, x-amz-hop"), ("X-Amz-Hop", "1")], b""),
    ];
    let many: Vec<String> = (0..150).map(|n| format!("X-Amz-Meta-{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "value")).collect();
    for (method, headers, body) in cases.into_iter().chain([("GET", &many[..], &b""[..])]) {
        let answer = client::request(gateway.http, method, "/exact", headers, body);
        assert_eq!(answer.status, 200, "{method} {headers:?}: {}", answer.text());
        assert_eq!(answer.json()["body_bytes"], body.len());
    }
}

#[test]
fn the_judge_refuses_another_secret_and_accepts_other_scopes() {
    let Some(judge) = Judge::start(&["--cred", CREDENTIALS]) else { return };
    let gateway = GatewayProcess::start(BINARY);
    for (iam, status) in [
        (json!({}), 200),
        (json!({"aws_region": "eu-central-1", "service": "lambda"}), 200),
        (json!({"secretkey": "another"}), 403),
        (json!({"accesskey": "AKIDOTHER"}), 403),
        (json!({"service": "s3"}), 403),
    ] {
        let mut function = function(&format!("http://{}/", judge.addr));
        for (key, value) in iam.as_object().unwrap() {
            function["authorization"]["iam"][key] = value.clone();
        }
        gateway.set_lambda("1", "/fn", function);
        let answer = client::get(gateway.http, "/fn");
        assert_eq!(answer.status, status, "{iam}: {}", answer.text());
    }
}

#[test]
fn the_judge_refuses_a_byte_changed_on_the_way() {
    let Some(judge) = Judge::start(&["--cred", CREDENTIALS]) else { return };
    let gateway = GatewayProcess::start(BINARY);
    for (what, from, to, status) in [
        ("nothing", "", "", 200),
        ("an unsigned header", "a-tester", "b-tester", 200),
        ("method", "POST /base", "PUTS /base", 403),
        ("path", "/base/p", "/base/q", 403),
        ("an escape", "%2F", "/", 403),
        ("a slash at the end", "q?a", "q/?a", 403),
        // AWS's rule for every service but S3: the signature sees one.
        ("a doubled slash", "/base/p", "/base//p", 200),
        ("query value", "a=1", "a=2", 403),
        ("query name", "b=", "c=", 403),
        ("host", "127.0.0.1:", "127.0.0.2:", 403),
        ("body", "payload", "Payload", 403),
        ("content type", "text/plain", "text/plaim", 403),
        ("an x-amz header", "meta-value", "meta-Value", 403),
        ("region", "/us-east-1/", "/us-west-1/", 403),
    ] {
        let judge = judge.addr;
        let relay = Origin::start(move |request| {
            let bytes = [&request.raw_head[..], &request.body].concat();
            let text: String = bytes.iter().map(|&b| char::from(b)).collect();
            assert!(text.contains(from), "{from:?} is in {text}");
            Answer::raw(pass_on(judge, &text.replacen(from, to, 1))).close()
        });
        set_routes(&gateway, &format!("http://{}", relay.addr));
        let headers = [
            ("Content-Type", "text/plain"),
            ("X-Amz-Meta", "meta-value"),
            ("User-Agent", "a-tester"),
        ];
        let target = "/fn/p%2Fq?a=1&b=";
        let answer = client::request(gateway.http, "POST", target, &headers, "payload");
        assert_eq!(answer.status, status, "changed {what}: {}", answer.text());
        let kind = (status == 403).then_some("InvalidSignatureException");
        assert_eq!(answer.header("x-amzn-errortype"), kind, "{what}");
    }
}

/// Sends a request on and returns all that comes back.
fn pass_on(addr: SocketAddr, request: &str) -> Vec<u8> {
    let bytes: Vec<u8> = request.chars().map(|c| c as u8).collect();
    let mut tcp = TcpStream::connect(addr).unwrap();
    tcp.write_all(&bytes).unwrap();
    // Nothing more comes: the judge answers and ends.
    tcp.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    answer
}

fn set_routes(gateway: &GatewayProcess, function_uri: &str) {
    gateway.set_lambda("1", "/fn/*", function(&format!("{function_uri}/base")));
    gateway.set_lambda("2", "/exact", function(&format!("{function_uri}/base/exact?own=1")));
}

fn function(function_uri: &str) -> Value {
    let (accesskey, secretkey) = CREDENTIALS.split_once(':').unwrap();
    json!({
        "function_uri": function_uri,
        "authorization": {"iam": {"accesskey": accesskey, "secretkey": secretkey}},
    })
}

const CREDENTIALS: &str = "AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// Behind `/fn`, and so behind `/base` at the function.
const ODD_PATHS: &[&str] = &[
    "/",
    "//",
    "/plain",
    "/plain/",
    "/a//b",
    "/a///b//",
    "/a/./b/../c",
    "/%20",
    "/a%20b/c%20",
    "/a+b",
    "/a%2Bb",
    "/a~b",
    "/a%7Eb",
    "/a%2Fb",
    "/a%2fb%2f",
    "/%41%42",
    "/caf%C3%A9",
    "/caf%c3%a9/%E2%98%83",
    "/caf\u{e9}",
    "/%F0%9F%A6%80",
    "/%25",
    "/%252F",
    "/a:b",
    "/a@b",
    "/@:!$&'()*+,;=",
    "/a%3Ab%40c",
    "/a=b&c=d",
    "/a;b=c",
    "/(x)",
    "/x*y",
    "/a!b'c",
    "/[x]",
    "/%5Bx%5D",
    "/a|b^c`d",
    "/%7Bx%7D",
    "/2015-03-31/functions/my-fn/invocations",
    "/2015-03-31/functions/arn:aws:lambda:us-east-1:123456789012:function:my-fn/invocations",
    "/2015-03-31/functions/arn:aws:lambda:us-east-1:123456789012:function:my-fn:$LATEST/invocations",
    "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Amy-fn%3APROD/invocations",
    "/%24LATEST",
    "/.hidden/..x/x..",
    "/-._~",
];

const ODD_QUERIES: &[&str] = &[
    "a=1",
    "b=2&a=1",
    "a=2&a=1&a=10",
    "a=1&a=1",
    "a=",
    "a",
    "a&b&a",
    "=1",
    "=",
    "&",
    "a=1&&b=2&",
    "a=b=c",
    "a==",
    "a=1+2",
    "a=1%202",
    "a=%2B",
    "a=%2b%2F%2f",
    "a=/b/c?d",
    "a=~&b=%7E",
    "a=-._~",
    "a=:@!$'()*,;",
    "a=%3A%40%21%24%27%28%29%2A%2C%3B",
    "caf%C3%A9=%E2%98%83",
    "caf\u{e9}=1",
    "%61=1&a=0",
    "A=1&a=2&B=3",
    "a%20b=c%20d",
    "a+b=c+d",
    "a[]=1&a[0]=2",
    "a%5B%5D=1",
    "x={y}|z",
    "a=%25&b=%2525",
    "X-Amz-Meta=1",
    "arn=arn:aws:lambda:us-east-1:123456789012:function:my-fn",
    "q=%F0%9F%A6%80",
    "a=\"b\"",
];

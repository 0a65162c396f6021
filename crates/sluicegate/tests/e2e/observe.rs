//! What the logs tell, and what they never tell.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sluicegate_testkit::client;
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::BINARY;

#[test]
fn the_access_log_has_apisixs_default_fields() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("hello");
    let slow = Origin::start(|_| Answer::text("hello").after(Duration::from_millis(200)));
    gateway.set_proxy("1", "/proxied", origin.addr);
    gateway.set_lambda("2", "/function", json!({"function_uri": slow.url("/path")}));
    gateway.set_lambda("3", "/down", json!({"function_uri": "http://127.0.0.1:1/"}));
    let headers = [("User-Agent", "a \"tester\""), ("Referer", "http://from.test/")];
    for (target, line) in [
        (
            "/proxied?a=1",
            format!(
                "127.0.0.1 - - [TIME] gate.test \"GET /proxied?a=1 HTTP/1.1\" 200 5 SECONDS \
                 \"http://from.test/\" \"a \\x22tester\\x22\" {0} 200 SECONDS \
                 \"http://gate.test\" \"ID\"",
                origin.addr
            ),
        ),
        (
            "/function",
            format!(
                "127.0.0.1 - - [TIME] gate.test \"GET /function HTTP/1.1\" 200 5 SECONDS \
                 \"http://from.test/\" \"a \\x22tester\\x22\" {0} 200 SECONDS \
                 \"http://{0}*\" \"ID\"",
                slow.addr
            ),
        ),
        (
            "/down",
            "127.0.0.1 - - [TIME] gate.test \"GET /down HTTP/1.1\" 503 * SECONDS \
             \"http://from.test/\" \"a \\x22tester\\x22\" 127.0.0.1:1 502 SECONDS \
             \"http://127.0.0.1:1*\" \"ID\""
                .to_owned(),
        ),
        (
            "/nowhere",
            "127.0.0.1 - - [TIME] gate.test \"GET /nowhere HTTP/1.1\" 404 * SECONDS \
             \"http://from.test/\" \"a \\x22tester\\x22\" - - - \"*\" \"ID\""
                .to_owned(),
        ),
    ] {
        client::request(gateway.http, "GET", target, &headers, "");
        let found = gateway.wait_for_access_line(&format!("GET {target} "));
        assert_matches(&line, &found);
    }
    // A function's time is upstream time.
    let line = gateway.wait_for_access_line("GET /function ");
    let words: Vec<&str> = line.split(' ').collect();
    let at = words.iter().position(|word| *word == slow.addr.to_string()).unwrap();
    let seconds: f64 = words[at + 2].parse().unwrap();
    assert!((0.2..2.0).contains(&seconds), "{line}");
}

#[test]
fn the_access_log_can_be_json() {
    let gateway = GatewayProcess::with(
        BINARY,
        json!({"nginx_config": {"http": {
            "access_log_format_escape": "json",
            "access_log_format": r#"{"status":$status,"agent":"$http_user_agent","uri":"$uri","args":"$args","route":"$route_id","none":"$http_x_none","length":$bytes_sent}"#,
        }}}),
    );
    let origin = Origin::text("hello");
    gateway.set_proxy("7", "/a/*", origin.addr);
    let headers = [("User-Agent", "a \"b\" \\ \tc")];
    client::request(gateway.http, "GET", "/a/%62?x=%22", &headers, "");
    let line = gateway.wait_for_access_line("status");
    let told: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
    assert!(told["length"].as_u64().is_some_and(|bytes| bytes > 5), "{line}");
    for (name, value) in [
        ("status", json!(200)),
        ("agent", json!("a \"b\" \\ \tc")),
        ("uri", json!("/a/b")),
        ("args", json!("x=%22")),
        ("route", json!("7")),
        ("none", json!("")),
    ] {
        assert_eq!(told[name], value, "{line}");
    }
}

#[test]
fn a_refused_call_is_logged_with_route_request_id_and_error_type() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|request| {
        let answer =
            |status| Answer::status(status).header("x-amzn-RequestId", "7a2f-request").body("{}");
        match request.target.as_str() {
            "/refused" => answer(403).header("x-amzn-ErrorType", "AccessDeniedException:http://x/"),
            "/throttled" => answer(429).header("x-amzn-ErrorType", "TooManyRequestsException"),
            "/failed" => answer(200).header("X-Amz-Function-Error", "Unhandled"),
            _ => answer(200),
        }
    });
    gateway.set_lambda("calls", "/*", json!({"function_uri": origin.url("")}));
    for (target, parts) in [
        ("/refused", &["status=403", "aws_error_type=AccessDeniedException"][..]),
        ("/throttled", &["status=429", "aws_error_type=TooManyRequestsException"]),
        ("/failed", &["A function failed.", "function_error=Unhandled"]),
        ("/fine", &[]),
    ] {
        let before = gateway.error_log().len();
        client::get(gateway.http, target);
        gateway.wait_for_access_line(&format!("GET {target} "));
        let log = gateway.error_log();
        let lines: Vec<&str> = log[before..].lines().collect();
        if parts.is_empty() {
            assert_eq!(lines, [""; 0], "nothing is said about success");
            continue;
        }
        let [line] = lines[..] else { panic!("one line for {target}: {lines:?}") };
        for part in [&["[error]", "route=calls", "aws_request_id=7a2f-request"], parts].concat() {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    // No answer at all.
    gateway.set_lambda("down", "/down", json!({"function_uri": "http://127.0.0.1:1/"}));
    client::get(gateway.http, "/down");
    let line = gateway.wait_for_error_line("A function did not answer.");
    for part in ["[error]", "route=down", "127.0.0.1:1", "refused"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn no_secret_is_in_any_log() {
    let changes = json!({"nginx_config": {"error_log_level": "debug"}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let origin = Origin::start(|request| match request.target.as_str() {
        "/down" => Answer::none(),
        "/refused" => Answer::status(403).header("x-amzn-errortype", "E").body("no"),
        _ => Answer::text("ok"),
    });
    let secrets = ["an-api-key-nobody-may-log", "a-secret-key-nobody-may-log", "a-client-key"];
    let mut signatures = Vec::new();
    for path in ["/fine", "/refused", "/down"] {
        for authorization in [
            json!({"apikey": secrets[0]}),
            json!({"iam": {"accesskey": "AKID", "secretkey": secrets[1]}}),
        ] {
            let function =
                json!({"function_uri": origin.url(path), "authorization": authorization});
            gateway.set_lambda("1", "/fn", function);
            client::get(gateway.http, "/fn");
            let sent = origin.last();
            if let Some((_, signature)) =
                sent.header("authorization").and_then(|value| value.split_once("Signature="))
            {
                signatures.push(signature.to_owned());
            }
            client::request(gateway.http, "GET", "/fn", &[("X-Api-Key", secrets[2])], "");
        }
    }
    assert_eq!(signatures.len(), 3);
    // Refused configurations are not repeated either.
    for authorization in [
        json!({"apikey": [secrets[0]]}),
        json!({"iam": {"accesskey": "AKID", "secretkey": secrets[1], "service": ""}}),
        json!({"iam": {"secretkey": secrets[1]}}),
    ] {
        let function = json!({"function_uri": "nowhere", "authorization": authorization});
        let body = json!({"uri": "/x", "plugins": {"aws-lambda": function}});
        assert_eq!(gateway.put("/routes/x", &body).0, 400);
    }
    gateway.signal(Signal::HUP);
    gateway.wait_for_error_line("The configuration was reloaded.");
    gateway.wait_for_access_line("GET /fn");
    for (name, log) in [
        ("error log", gateway.error_log()),
        ("access log", gateway.access_log()),
        ("stderr", gateway.stderr()),
        ("stdout", gateway.read("stdout.txt")),
    ] {
        let own = [
            sluicegate_testkit::gateway::ADMIN_KEY.to_owned(),
            sluicegate_testkit::gateway::KEYRING.to_owned(),
        ];
        let all = secrets.iter().map(|s| (*s).to_owned()).chain(signatures.clone()).chain(own);
        for secret in all {
            assert!(!log.contains(&secret), "{secret} is in the {name}: {log}");
        }
    }
}

#[test]
fn a_log_line_stays_one_line_whatever_clients_send() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|_| {
        Answer::status(403)
            .header("x-amzn-ErrorType", "a b\t[error] c")
            .body(r#"{"message": "no\n2026/11/23 00:00:00 [error] forged"}"#)
    });
    gateway.set_lambda("1", "/*", json!({"function_uri": origin.url("")}));
    client::request(gateway.http, "GET", "/x%0Aforged", &[("User-Agent", "a\tb\u{e9}")], "");
    let line = gateway.wait_for_access_line("/x%0Aforged");
    assert!(line.contains("\"a\\x09b\\xC3\\xA9\""), "{line}");
    let line = gateway.wait_for_error_line("AWS refused a call of a function.");
    assert!(line.contains(r#"aws_error_type="" "#), "that is no name: {line}");
    assert!(line.contains(r#"aws_message="no 2026/11/23 00:00:00 [error] forged""#), "{line}");
}

/// Compares a line with a pattern: `*` is anything, `TIME` nginx's local time, `SECONDS` a number
/// with three decimals, `ID` 32 hexadecimal digits.
#[track_caller]
fn assert_matches(pattern: &str, line: &str) {
    let mut rest = line;
    let mut wanted = pattern;
    while !wanted.is_empty() {
        let fail = || panic!("wanted {wanted}\nfound  {rest}\nin     {line}");
        let take =
            |rest: &str, class: fn(char) -> bool| rest.find(|c| !class(c)).unwrap_or(rest.len());
        if let Some(after) = wanted.strip_prefix("TIME") {
            // 22/Nov/2026:16:49:34 +0000
            let end = rest.find(']').unwrap_or_default();
            if end != 26 || rest.as_bytes()[2] != b'/' || rest.as_bytes()[20] != b' ' {
                fail();
            }
            (wanted, rest) = (after, &rest[end..]);
        } else if let Some(after) = wanted.strip_prefix("SECONDS") {
            let end = take(rest, |c| c.is_ascii_digit() || c == '.');
            if rest[..end].parse::<f64>().is_err() || rest[..end].find('.') != Some(end - 4) {
                fail();
            }
            (wanted, rest) = (after, &rest[end..]);
        } else if let Some(after) = wanted.strip_prefix("ID") {
            let end = take(rest, |c| c.is_ascii_hexdigit());
            if end != 32 {
                fail();
            }
            (wanted, rest) = (after, &rest[end..]);
        } else if let Some(after) = wanted.strip_prefix('*') {
            let next = after.split(['*', 'S', 'I', 'T']).next().unwrap_or_default();
            let Some(at) = rest.find(next) else { return fail() };
            (wanted, rest) = (after, &rest[at..]);
        } else {
            let (a, b) = (wanted.chars().next(), rest.chars().next());
            if a != b {
                fail();
            }
            wanted = &wanted[a.map_or(0, char::len_utf8)..];
            rest = &rest[b.map_or(0, char::len_utf8)..];
        }
    }
    assert_eq!(rest, "", "behind {pattern}");
}

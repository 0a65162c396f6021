//! `sluicegate doctor`, and what the Control API explains.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use sluicegate_testkit::gateway::config;
use sluicegate_testkit::{Answer, Client, GatewayProcess, Origin, client};

use crate::BINARY;
use crate::lambda_invoke::unix_now;

#[test]
fn the_doctor_tells_what_is_sent_and_what_stands_in_the_way() {
    let origin = Origin::start(|_| Answer::text("hello").header("Date", &date()));
    let (gateway, _) = start();
    gateway.set_lambda(
        "fn",
        "/fn/*",
        json!({
            "function_uri": format!("http://{}/default", origin.addr),
            "authorization": {"iam": {"accesskey": "AKIDEXAMPLE0001", "secretkey": "very-secret"}},
        }),
    );
    let told = gateway.command(&[
        "doctor",
        "fn",
        "--uri",
        "/fn/a%20b?x=1",
        "-H",
        "X-Amz-Meta: m",
        "-H",
        "X-Tea: a",
        "-H",
        "x-tea: b",
    ]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success(), "{text} {}", String::from_utf8_lossy(&told.stderr));
    for part in [
        "/default/a%20b?x=1",
        "Signed for execute-api in us-east-1, with AKID…0001 from static",
        "x-amz-meta:m",
        "x-tea: a\n",
        "x-tea: b\n",
        "ok   dns",
        "ok   tcp",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("very-secret") && !text.contains("AKIDEXAMPLE0001"), "{text}");
    // Whatever was looked at, the function did not run.
    assert!(origin.requests().iter().all(|request| request.header("host").is_none()));

    drop(origin);
    let told = gateway.command(&["doctor", "fn"]);
    let (text, errors) =
        (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(!told.status.success());
    assert!(text.contains("FAIL tcp"), "{text}");
    assert!(errors.contains("not well: tcp"), "{errors}");

    let told = gateway.command(&["doctor", "nobody"]);
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(errors.contains("routes [nobody] not found"), "{errors}");
}

#[test]
fn the_control_api_says_what_is_wrong_with_a_question() {
    let (gateway, control) = start();
    gateway.set(
        "/routes/plain",
        &json!({"uri": "/plain", "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}}}),
    );
    for (question, status, why) in [
        ("{", 400, "the question is no JSON"),
        ("[]", 400, "the question is no JSON object"),
        ("{}", 400, "give `route_id`, or the plugin's configuration as `config`"),
        (r#"{"route_id":"none"}"#, 404, "routes [none] not found"),
        (r#"{"route_id":"plain"}"#, 400, "route [plain] has no aws-lambda"),
        (r#"{"config":{}}"#, 400, "property \"function_uri\" is required"),
        (r#"{"config":{"function_uri":"http://a/"},"uri":"x"}"#, 400, "`uri` is no path"),
        (r#"{"config":{"function_uri":"http://a/"},"body":1}"#, 400, "invalid type"),
        (r#"{"config":{"function_uri":"http://a/"}}"#, 200, ""),
        (
            r#"{"config":{"function_uri":"http://127.0.0.1:1/"},"checks":true}"#,
            400,
            "`checks` go with `route_id`: nothing is connected to for a `config`",
        ),
        (
            r#"{"config":{"function_uri":"http://a/","authorization":{"iam":{"provider":"env"}}}}"#,
            400,
            "a `config` is explained with keys of its own only",
        ),
    ] {
        let json = [("host", "localhost"), ("content-type", "application/json; charset=utf-8")];
        let answer = client::request(control, "POST", EXPLAIN, &json, question.as_bytes());
        assert_eq!(answer.status, status, "{question}");
        assert!(answer.text().replace("\\\"", "\"").contains(why), "{question}: {}", answer.text());
    }
}

#[test]
fn a_web_page_cannot_have_a_question_answered() {
    let (_gateway, control) = start();
    let body = r#"{"config":{"function_uri":"http://a/"}}"#;
    let ask = |host: &str, more: &str| {
        let mut client = Client::connect(control);
        client.send(format!(
            "POST {EXPLAIN} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        client.response().status
    };
    let json = "Content-Type: application/json\r\n";
    for (host, more, status) in [
        ("127.0.0.1:9090", json.to_owned(), 200),
        ("localhost", json.to_owned(), 200),
        ("[::1]:9090", json.to_owned(), 200),
        // What a page may send without asking first.
        ("127.0.0.1:9090", "Content-Type: text/plain\r\n".to_owned(), 415),
        ("127.0.0.1:9090", "Content-Type: application/x-www-form-urlencoded\r\n".to_owned(), 415),
        ("127.0.0.1:9090", String::new(), 415),
        ("127.0.0.1:9090", format!("{json}Origin: http://evil.test\r\n"), 403),
        ("127.0.0.1:9090", format!("{json}Origin: null\r\n"), 403),
        // A name of somebody's that leads here.
        ("evil.test:9090", json.to_owned(), 403),
        ("127.0.0.1.evil.test", json.to_owned(), 403),
    ] {
        assert_eq!(ask(host, &more), status, "{host} {more}");
    }
}

#[test]
fn what_references_stand_for_is_not_told() {
    let (changes, control) = control();
    let mut gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
    let secret = "top-secret-value";
    for (name, value) in [
        ("FN_URL", "http://127.0.0.1:1/top-secret-value/path?key=top-secret-value"),
        ("BAD_URL", "http://127.0.0.1:99999/top-secret-value"),
        ("FN_NAME", "top-secret-value"),
        ("STAGE_KEY", secret),
        ("FN_KEY", secret),
    ] {
        gateway.variable(name, Some(value));
    }
    gateway.launch();
    let event =
        json!({"stage_variables": {"plain": "$env://STAGE_KEY"}, "api_id": "$env://FN_NAME"});
    let iam = json!({"accesskey": "AKIDEXAMPLE0001", "secretkey": "s"});
    for (id, config, status) in [
        (
            "url",
            json!({
                "function_uri": "$env://FN_URL", "request_format": "apigw_v2", "event": event,
                "authorization": {"apikey": "$env://FN_KEY", "apikey_with_iam": true, "iam": iam},
            }),
            200,
        ),
        ("bad", json!({"function_uri": "$env://BAD_URL"}), 400),
        (
            "name",
            json!({
                "function": {"name": "$env://FN_NAME", "region": "us-east-1"}, "event": event,
                "client_context": {"custom": {"key": "$env://STAGE_KEY"}}, "authorization": {"iam": iam},
            }),
            200,
        ),
    ] {
        gateway.set_lambda(id, "/fn/*", config);
        let question = json!({"route_id": id}).to_string();
        let json = [("host", "localhost"), ("content-type", "application/json")];
        let told = client::request(control, "POST", EXPLAIN, &json, question.as_bytes());
        let text = told.text();
        assert_eq!(told.status, status, "{id}: {text}");
        assert!(!text.contains(secret), "{id}: {text}");
        assert!(!text.contains("eyJjdXN0b20"), "{id}: the client context: {text}");
        if status == 400 {
            assert!(text.contains("`function_uri` has no valid port"), "{text}");
        } else {
            assert!(text.contains("\"string_to_sign\""), "{text}");
        }
    }
}

/// A gateway with a Control API at an address of its own.
fn start() -> (GatewayProcess, SocketAddr) {
    let (changes, control) = control();
    (GatewayProcess::with(BINARY, changes), control)
}

/// A configuration with a Control API, and where that is.
pub(crate) fn control() -> (Value, SocketAddr) {
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let control = free.local_addr().expect("it is bound");
    drop(free);
    let control_api = json!({"enable_control": true, "control": {"port": control.port()}});
    (json!({"apisix": control_api}), control)
}

/// The time, as servers tell it.
fn date() -> String {
    let since = Duration::from_secs(unix_now());
    httpdate::fmt_http_date(UNIX_EPOCH + since)
}

const EXPLAIN: &str = "/v1/aws-lambda/explain";

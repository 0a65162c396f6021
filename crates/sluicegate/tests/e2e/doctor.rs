//! `sluicegate doctor`, and what the Control API explains.

use std::net::{SocketAddr, TcpListener};

use serde_json::json;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, client};

use crate::BINARY;

#[test]
fn the_doctor_tells_what_is_sent_and_what_stands_in_the_way() {
    let origin = Origin::start(|_| Answer::text("hello"));
    let (gateway, _) = start();
    gateway.set_lambda(
        "fn",
        "/fn/*",
        json!({
            "function_uri": format!("http://{}/default", origin.addr),
            "authorization": {"iam": {"accesskey": "AKIDEXAMPLE0001", "secretkey": "very-secret"}},
        }),
    );
    let told = gateway.command(&["doctor", "fn", "--uri", "/fn/a%20b?x=1", "-H", "X-Amz-Meta: m"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success(), "{text} {}", String::from_utf8_lossy(&told.stderr));
    for part in [
        "/default/a%20b?x=1",
        "Signed for execute-api in us-east-1, with AKID…0001 from static",
        "x-amz-meta:m",
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
    ] {
        let answer =
            client::request(control, "POST", "/v1/aws-lambda/explain", &[], question.as_bytes());
        assert_eq!(answer.status, status, "{question}");
        assert!(answer.text().replace("\\\"", "\"").contains(why), "{question}: {}", answer.text());
    }
}

/// A gateway with a Control API at an address of its own.
fn start() -> (GatewayProcess, SocketAddr) {
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let control = free.local_addr().expect("it is bound");
    drop(free);
    let changes = json!({"apisix": {"enable_control": true, "control": {"port": control.port()}}});
    (GatewayProcess::with(BINARY, changes), control)
}

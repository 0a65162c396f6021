//! Route conditions that look at the body: `graphql_*` and `post_arg_*`.

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, request};
use sluicegate_testkit::gateway::GatewayProcess;
use sluicegate_testkit::origin::Origin;

use crate::BINARY;

/// A gateway that looks at 1000 bytes of GraphQL, where `/api` goes to the first origin under a
/// condition and to the second otherwise.
fn gateway(vars: Value) -> (GatewayProcess, Origin, Origin) {
    let (chosen, other) = (Origin::text("chosen"), Origin::text("other"));
    let gateway = GatewayProcess::with(BINARY, json!({"graphql": {"max_size": LIMIT}}));
    let upstream =
        |origin: &Origin| json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gateway.set(
        "/routes/1",
        &json!({"uri": "/api", "priority": 1, "vars": vars, "upstream": upstream(&chosen)}),
    );
    gateway.set("/routes/2", &json!({"uri": "/api", "upstream": upstream(&other)}));
    (gateway, chosen, other)
}

#[test]
fn a_graphql_query_chooses_the_route_and_reaches_the_origin_whole() {
    let (gateway, chosen, other) = gateway(json!([
        ["graphql_operation", "==", "mutation"],
        ["graphql_root_fields", "has", "pay"]
    ]));
    let at_limit = format!("{:width$}", "mutation { pay }", width = LIMIT);
    let past_limit = format!("{at_limit} ");
    for (method, target, media, body, expected) in [
        ("POST", "/api", "application/graphql", "mutation { pay }", "chosen"),
        ("POST", "/api", "application/json", r#"{"query": "mutation { a pay }"}"#, "chosen"),
        ("GET", "/api?query=mutation{pay}", "", "", "chosen"),
        ("POST", "/api", "application/graphql", "mutation { refund }", "other"),
        ("POST", "/api", "application/graphql", "mutation {", "other"),
        ("PUT", "/api", "application/graphql", "mutation { pay }", "other"),
        ("POST", "/api", "application/graphql", &at_limit, "chosen"),
        ("POST", "/api", "application/graphql", &past_limit, "other"),
    ] {
        let answer = request(gateway.http, method, target, &[("Content-Type", media)], body);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, expected),
            "{method} {target} {body}"
        );
        let origin = if expected == "chosen" { &chosen } else { &other };
        assert_eq!(origin.last().body, body.as_bytes(), "{method} {target} {body}");
    }
    gateway
        .wait_for_error_line("failed to parse graphql: Syntax error near line 1 body: mutation {");
}

#[test]
fn a_body_longer_than_conditions_look_at_is_still_proxied_whole() {
    let (gateway, _chosen, other) = gateway(json!([["graphql_name", "==", "pay"]]));
    let mut client = Client::connect(gateway.http);
    // Chunked, so that its length is not known before.
    let mut bytes =
        b"POST /api HTTP/1.1\r\nHost: gate.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let mut whole = Vec::new();
    for digit in 0..100_u8 {
        let piece = vec![b'a' + digit % 26; LIMIT / 3];
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(&piece);
        bytes.extend_from_slice(b"\r\n");
        whole.extend_from_slice(&piece);
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let answer = client.send(bytes).response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "other"));
    assert!(other.last().body == whole, "the body arrives as it was sent");
    // The connection is at the right place for the next request.
    assert_eq!(client.get("/api?query=query+pay{a}").text(), "chosen");
}

#[test]
fn a_form_field_chooses_the_route_beside_graphql() {
    let (gateway, chosen, _other) =
        gateway(json!(["OR", ["graphql_name", "==", "pay"], ["post_arg_name", "==", "pay now"]]));
    let form = [("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")];
    let padding = "x".repeat(LIMIT);
    for (body, expected) in [
        ("name=pay+now", "chosen"),
        ("query pay { a }", "chosen"),
        ("name=pay+later", "other"),
        (&format!("padding={padding}&name=pay%20now"), "chosen"),
    ] {
        let answer = request(gateway.http, "POST", "/api", &form, body);
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{body}");
    }
    assert_eq!(chosen.last().body.len(), LIMIT + "padding=&name=pay%20now".len());
}

#[test]
fn a_value_in_a_json_or_multipart_body_chooses_the_route() {
    let (gateway, chosen, _other) = gateway(json!([
        "OR",
        ["post_arg.user.name", "==", "ann"],
        ["post_arg.kind", "==", "pay"],
        ["post_arg.messages[*].content[*].type", "has", "image_url"]
    ]));
    let mixed = "--b\r\nContent-Disposition: form-data; name=\"kind\"\r\n\r\npay\r\n--b--\r\n";
    for (media, body, expected) in [
        ("application/json", r#"{"user": {"name": "ann"}}"#, "chosen"),
        ("application/json", r#"{"user": {"name": "bob"}, "user": {"name": "ann"}}"#, "chosen"),
        ("application/json", r#"{"user": {"name": "bob"}}"#, "other"),
        ("application/json", r#"{"user": "ann"}"#, "other"),
        ("application/json", r#"{"user": {"name": "ann"}"#, "other"),
        ("text/plain", r#"{"user": {"name": "ann"}}"#, "other"),
        (
            "application/json",
            r#"{"messages": [{"content": [{"type": "text"}, {"type": "image_url"}]}]}"#,
            "chosen",
        ),
        ("application/json", r#"{"messages": [{"content": [{"type": "text"}]}]}"#, "other"),
        ("multipart/form-data; boundary=b", mixed, "chosen"),
        ("multipart/form-data; boundary=c", mixed, "other"),
    ] {
        let answer = request(gateway.http, "POST", "/api", &[("Content-Type", media)], body);
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{body}");
        if expected == "chosen" {
            assert_eq!(chosen.last().body, body.as_bytes());
        }
    }
    let wrong = json!({"uri": "/x", "plugins": {}, "vars": [["post_arg.a[.b", "==", "c"]]});
    let (status, said) = gateway.put("/routes/3", &wrong);
    assert_eq!(status, 400, "{said}");
    let said = said["error_msg"].as_str().unwrap_or_default();
    assert!(
        said.contains("failed to validate the 'vars' expression: invalid expression"),
        "{said}"
    );
}

#[test]
fn plugins_see_values_in_the_body_that_their_configuration_names() {
    let origin = Origin::text("ok");
    let gateway = GatewayProcess::start(BINARY);
    gateway.set(
        "/routes/1",
        &json!({
            "uri": "/api",
            "plugins": {
                "proxy-rewrite": {"headers": {"set": {"X-Model": "$post_arg.model", "X-Name": "$post_arg_name"}}},
                "fault-injection": {
                    "abort": {"http_status": 444, "vars": [[["post_arg.model", "==", "gone"]]]},
                },
            },
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        }),
    );
    for (media, body, model, name) in [
        ("application/json", r#"{"model": "m1", "name": "no"}"#, Some("m1"), None),
        ("application/x-www-form-urlencoded", "model=m2&name=a+b", Some("m2"), Some("a b")),
        ("text/plain", r#"{"model": "m1"}"#, None, None),
    ] {
        let answer = request(gateway.http, "POST", "/api", &[("Content-Type", media)], body);
        assert_eq!(answer.status, 200, "{body}");
        let sent = origin.last();
        assert_eq!(sent.body, body.as_bytes());
        let seen =
            |name: &str| sent.header(name).filter(|value| !value.is_empty()).map(str::to_owned);
        assert_eq!(
            (seen("x-model").as_deref(), seen("x-name").as_deref()),
            (model, name),
            "{body}"
        );
    }
    // nginx's 444: no answer at all, and the connection is closed.
    let mut client = Client::connect(gateway.http);
    let body = r#"{"model":"gone"}"#;
    client.send(format!(
        "POST /api HTTP/1.1\r\nHost: gate.test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(client.rest(), b"");
}

const LIMIT: usize = 1000;

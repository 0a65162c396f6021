//! The other function plugins through the whole gateway: keys by metadata, secrets at rest, the
//! documented configurations.

use serde_json::json;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, client, wait};

use crate::BINARY;

#[test]
fn each_function_plugin_answers_with_its_key_and_hides_it_at_rest() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|_| Answer::text(r#"{"statusCode": 202, "body": "done"}"#));
    let uri = origin.url("/fn");
    let host = origin.url("");
    for (name, plugin, secret, header, sent, status) in [
        (
            "azure-functions",
            json!({"function_uri": uri, "authorization": {"apikey": "azure-secret"}}),
            "azure-secret",
            "x-functions-key",
            "azure-secret",
            200,
        ),
        (
            "openfunction",
            json!({"function_uri": uri, "authorization": {"service_token": "open:secret"}}),
            "open:secret",
            "authorization",
            "Basic b3BlbjpzZWNyZXQ=",
            200,
        ),
        (
            "openwhisk",
            json!({"api_host": host, "service_token": "whisk:secret", "namespace": "guest", "action": "hello"}),
            "whisk:secret",
            "authorization",
            "Basic d2hpc2s6c2VjcmV0",
            202,
        ),
    ] {
        let route = json!({"uri": format!("/{name}"), "plugins": {name: plugin}});
        let (written, answer) = gateway.put(&format!("/routes/{name}"), &route);
        assert_eq!(written, 201, "{answer}");
        assert!(!answer.to_string().contains(secret), "{name}: the answer holds what was stored");
        let answer = client::get(gateway.http, &format!("/{name}"));
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(origin.last().header(header), Some(sent), "{name}");
    }
}

#[test]
fn azures_master_keys_reach_routes_without_keys_as_soon_as_they_are_written() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set(
        "/routes/1",
        &json!({"uri": "/fn", "plugins": {"azure-functions": {"function_uri": origin.url("/")}}}),
    );
    let key = || {
        assert_eq!(client::get(gateway.http, "/fn").status, 200);
        origin.last().header("x-functions-key").map(str::to_owned)
    };
    assert_eq!(key(), None);
    let (status, answer) =
        gateway.put("/plugin_metadata/azure-functions", &json!({"master_apikey": "master"}));
    assert_eq!(status, 201, "{answer}");
    wait::until("the master key is sent", || (key().as_deref() == Some("master")).then_some(()));
}

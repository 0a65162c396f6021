//! Resources that a file declares, or the Admin API all at once (`config_provider: yaml|json`).

use std::fs;

use serde_json::{Value, json};
use sluicegate_model::encrypt::Keyring;
use sluicegate_testkit::client;
use sluicegate_testkit::gateway::{ADMIN_KEY, GatewayProcess, KEYRING, config};
use sluicegate_testkit::origin::Origin;
use sluicegate_testkit::wait;

use crate::BINARY;

fn data_plane(provider: &str) -> Value {
    config(json!({
        "deployment": {
            "role": "data_plane",
            "role_data_plane": {"config_provider": provider},
            "role_traditional": null,
        },
    }))
}

fn status(gateway: &GatewayProcess, path: &str) -> u16 {
    client::get(gateway.http, path).status
}

#[test]
fn a_credential_of_a_file_is_taken_as_it_is_written() {
    let origin = Origin::text("in");
    let mut gateway = GatewayProcess::prepare(BINARY, &data_plane("yaml").to_string());
    // What the keyring opens to another key is no secret that somebody encrypted: files hold none.
    let key = Keyring::new(vec![KEYRING.to_owned()]).encrypt("another-key");
    let node = origin.addr;
    let text = format!(
        "routes:\n  - uri: /k\n    plugins: {{key-auth: {{}}}}\n    upstream: {{type: roundrobin, nodes: {{\"{node}\": 1}}}}\nconsumers:\n  - id: rose/credentials/c1\n    plugins: {{key-auth: {{key: \"{key}\"}}}}\n  - username: rose\n#END\n"
    );
    fs::write(gateway.path("conf/apisix.yaml"), text).unwrap();
    gateway.launch();
    for (sent, expected) in [("another-key", 401), (key.as_str(), 200)] {
        let answer = client::request(gateway.http, "GET", "/k", &[("apikey", sent)], "");
        assert_eq!(answer.status, expected, "{sent}");
    }
}

#[test]
fn a_data_plane_serves_its_yaml_file_and_follows_it() {
    let origin = Origin::text("hello");
    let mut gateway = GatewayProcess::prepare(BINARY, &data_plane("yaml").to_string());
    let write = |gateway: &GatewayProcess, text: &str| {
        fs::write(gateway.path("new"), text).unwrap();
        fs::rename(gateway.path("new"), gateway.path("conf/apisix.yaml")).unwrap();
    };
    let node = origin.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let file = |more: &str| {
        format!(
            "upstreams:\n  - id: u\n    nodes: {{\"{node}\": 1}}\n    type: roundrobin\nroutes:\n  - uri: /hello\n    upstream_id: u\n  - id: lost\n    uri: /lost\n    upstream_id: nowhere\n{more}\n#END\n"
        )
    };
    write(
        &gateway,
        &file("  - id: strange\n    uri: /strange\n    upstream_id: u\n    plugins: {no-such: {}}"),
    );
    gateway.launch();
    assert_eq!(client::get(gateway.http, "/hello").text(), "hello");
    // What it names is missing: a route must not let its requests through to others.
    assert_eq!(status(&gateway, "/lost") / 100, 5);
    assert_eq!(status(&gateway, "/strange"), 404);
    gateway
        .wait_for_error_line("failed to check item data of [routes] err:unknown plugin [no-such]");

    // A file half written, and one with a fault: the routes stay.
    write(&gateway, "routes: []\n");
    gateway.wait_for_error_line("missing valid end flag");
    assert_eq!(status(&gateway, "/hello"), 200);
    write(&gateway, "routes:\n  - uri: /x\n   bad: 1\n#END\n");
    let line = gateway.wait_for_error_line("apisix.yaml: line 3, column ");
    assert!(line.contains("what was loaded before stays in force"), "{line}");
    assert_eq!(status(&gateway, "/hello"), 200);

    write(&gateway, &file("  - id: new\n    uri: /new\n    upstream_id: u"));
    wait::until("the new route", || (status(&gateway, "/new") == 200).then_some(()));
    write(&gateway, "#END\n");
    wait::until("no route", || (status(&gateway, "/hello") == 404).then_some(()));
}

#[test]
fn a_data_plane_serves_its_json_file_and_its_own_list_of_plugins() {
    let mut gateway = GatewayProcess::prepare(BINARY, &data_plane("json").to_string());
    let write = |gateway: &GatewayProcess, value: Value| {
        fs::write(gateway.path("new"), value.to_string()).unwrap();
        fs::rename(gateway.path("new"), gateway.path("conf/apisix.json")).unwrap();
    };
    let lambda = json!({"aws-lambda": {"function_uri": "http://127.0.0.1:1/", "authorization": {"apikey": "k"}}});
    let routes = json!([{"uri": "/f", "plugins": lambda}]);
    write(&gateway, json!({"routes": routes}));
    gateway.launch();
    assert_eq!(status(&gateway, "/f") / 100, 5, "the function is not there, its route is");
    write(&gateway, json!({"routes": routes, "plugins": []}));
    gateway.wait_for_error_line("err:unknown plugin [aws-lambda]");
    wait::until("the route to go", || (status(&gateway, "/f") == 404).then_some(()));
    write(&gateway, json!({"routes": routes, "plugins": [{"name": "aws-lambda"}]}));
    wait::until("the route to be back", || (status(&gateway, "/f") / 100 == 5).then_some(()));
}

#[test]
fn a_traditional_gateway_with_yaml_takes_whole_configurations_only() {
    let origin = Origin::text("hello");
    let node = origin.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let changes = json!({"deployment": {"role_traditional": {"config_provider": "yaml"}}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let call = |method: &str, headers: &[(&str, &str)], body: &str| {
        let mut all = vec![("x-api-key", ADMIN_KEY)];
        all.extend(headers);
        client::request(gateway.admin, method, "/apisix/admin/configs", &all, body)
    };
    let put = |digest: &str, body: &Value| call("PUT", &[("x-digest", digest)], &body.to_string());

    let empty = call("GET", &[], "");
    assert_eq!(empty.status, 200);
    assert_eq!(empty.json()["routes_conf_version"], 0);
    assert_eq!(empty.header("x-digest"), None);
    assert_eq!(gateway.get("/routes").0, 404, "nothing else is served");

    let missing = call("PUT", &[], "{}");
    assert_eq!(missing.json(), json!({"error_msg": "missing digest header"}));
    let upstream = json!({"nodes": {node: 1}, "type": "roundrobin"});
    let route = |uri: &str, index: u64| json!({"routes": [{"id": "r1", "uri": uri, "modifiedIndex": index, "upstream": upstream}]});
    let first = put("1", &route("/r1", 1));
    assert_eq!((first.status, first.header("x-digest")), (202, Some("1")));
    assert!(first.header("x-last-modified").is_some());
    assert_eq!(status(&gateway, "/r1"), 200, "answered when it is served");
    assert_eq!(put("1", &route("/r2", 2)).status, 204);
    assert_eq!(status(&gateway, "/r2"), 404);
    // Of the same modifiedIndex: the old one stays in force.
    assert_eq!(put("2", &route("/r2", 1)).status, 202);
    assert_eq!((status(&gateway, "/r1"), status(&gateway, "/r2")), (200, 404));
    assert_eq!(put("3", &route("/r2", 2)).status, 202);
    assert_eq!((status(&gateway, "/r1"), status(&gateway, "/r2")), (404, 200));

    let shown = call("GET", &[], "");
    assert_eq!(shown.json()["routes_conf_version"], 3);
    assert_eq!(shown.json()["routes"][0]["uri"], "/r2");
    assert_eq!(shown.header("x-digest"), Some("3"));
    let yaml = call("GET", &[("accept", "application/yaml")], "");
    assert_eq!(yaml.header("content-type"), Some("application/yaml"));
    assert!(yaml.text().contains("id: r1\n"), "{}", yaml.text());
    assert_eq!(call("HEAD", &[], "").header("x-digest"), Some("3"));

    for (body, error) in [
        (
            json!({"routes_conf_version": 1}),
            "routes_conf_version must be greater than or equal to (3)",
        ),
        (json!({"routes_conf_version": "x"}), "routes_conf_version must be a number"),
        (
            json!({"routes": [{"id": "a", "uri": 1}]}),
            "invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number",
        ),
        (
            json!({"services": [{"id": "s", "plugins": {"no-such": {}}}]}),
            "unknown plugin [no-such]",
        ),
        (
            json!({"upstreams": [{"id": "1", "type": "roundrobin", "nodes": {"a:1": 1}}, {"id": "1", "type": "roundrobin", "nodes": {"a:1": 1}}]}),
            "found duplicate id 1 in upstreams",
        ),
    ] {
        let refused = put("4", &body);
        assert_eq!((refused.status, &refused.json()["error_msg"]), (400, &json!(error)), "{body}");
    }
    assert_eq!(status(&gateway, "/r2"), 200, "what was refused changed nothing");

    // Only the kinds of another version change; YAML is taken, too.
    let upstreams = "routes_conf_version: 3\nupstreams:\n  - id: u\n    type: roundrobin\n    nodes: {\"a:1\": 1}\n";
    let headers = [("x-digest", "5"), ("content-type", "application/yaml")];
    assert_eq!(call("PUT", &headers, upstreams).status, 202);
    assert_eq!(status(&gateway, "/r2"), 200);
    assert_eq!(put("6", &json!({})).status, 202);
    assert_eq!(status(&gateway, "/r2"), 404);
}

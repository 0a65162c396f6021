//! The Control API.

use std::sync::Arc;

use axum::{body::Body, http::Request};
use serde_json::{Value, json};
use sluicegate_admin::control::{ControlState, router};
use sluicegate_model::encrypt::Keyring;
use sluicegate_store::Put;

use crate::harness::{Harness, KEYRING, NOW, Reply, reply, route};

#[tokio::test]
async fn resources_are_shown_as_the_data_plane_sees_them() {
    let harness = Harness::new();
    harness.json("PUT", "/apisix/admin/routes/1", route("/a")).await.assert_ok();
    let named = json!({"type": "roundrobin", "nodes": {"origin.test": 1}});
    harness.json("PUT", "/apisix/admin/upstreams/u", named).await.assert_ok();
    harness.json("PUT", "/apisix/admin/services/s", json!({"upstream_id": "u"})).await.assert_ok();

    let shown = get(&harness, "/v1/route/1").await.assert_ok().json();
    let upstream = json!({
        "type": "roundrobin", "scheme": "http", "pass_host": "pass", "hash_on": "vars",
        "nodes": [{"host": "127.0.0.1", "port": 18801, "weight": 1}],
        "resource_key": "/apisix/routes/1", "resource_id": "1", "resource_version": 1,
    });
    assert_eq!(
        shown,
        json!({
            "key": "/apisix/routes/1", "createdIndex": 1, "modifiedIndex": 1,
            "orig_modifiedIndex": 1, "has_domain": false,
            "value": {
                "uri": "/a", "id": "1", "status": 1, "priority": 0, "upstream": upstream,
                "create_time": NOW, "update_time": NOW,
            },
        })
    );
    assert_eq!(get(&harness, "/v1/routes").await.json(), json!([shown]));
    let upstream = get(&harness, "/v1/upstream/u").await.assert_ok().json();
    assert_eq!(upstream["has_domain"], true);
    assert_eq!(
        upstream["value"]["nodes"],
        json!([{"host": "origin.test", "port": 80, "weight": 1}])
    );
    assert_eq!(get(&harness, "/v1/upstreams").await.json(), json!([upstream]));
    let service = get(&harness, "/v1/service/s").await.assert_ok().json();
    assert_eq!(get(&harness, "/v1/services").await.json(), json!([service]));
}

#[tokio::test]
async fn the_rest_answers_as_apisix_does() {
    let harness = Harness::new();
    harness.json("PUT", "/apisix/admin/routes/1", route("/a")).await.assert_ok();
    for (path, status, body) in [
        ("/v1/route/nope", 404, json!({"error_msg": "route[nope] not found"})),
        ("/v1/upstream/nope", 404, json!({"error_msg": "upstream[nope] not found"})),
        ("/v1/healthcheck", 200, json!({})),
        ("/v1/services", 200, json!({})),
        ("/v1/healthcheck/routes", 404, json!({"error_msg": "missing src id for src type routes"})),
        ("/v1/healthcheck/routes/x", 404, json!({"error_msg": "routes[x] not found"})),
        ("/v1/healthcheck/routes/1", 404, json!({"error_msg": "no checker for routes[1]"})),
        ("/v1/healthcheck/ssls/1", 400, json!({"error_msg": "invalid src type ssls"})),
        ("/v1/plugin_metadatas", 200, json!({})),
        (
            "/v1/plugin_metadata/http-logger",
            404,
            json!({"error_msg": "plugin metadata[http-logger] not found"}),
        ),
    ] {
        let reply = get(&harness, path).await;
        reply.assert(status, body);
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.header("access-control-allow-origin"), "");
    }
    let schema = get(&harness, "/v1/schema").await.assert_ok().json();
    assert_eq!(schema["main"]["route"]["type"], "object");
    for name in ["upstream_hash_header_schema", "upstream_hash_vars_schema"] {
        assert_eq!(schema["main"][name]["type"], "string", "{name}");
    }
    assert_eq!(schema["plugins"]["aws-lambda"]["priority"], -1899);
    for (method, path, status, text) in [
        ("PUT", "/v1/plugins/reload", 200, Some("done")),
        ("POST", "/v1/gc", 200, Some("")),
        ("GET", "/v1/plugins/reload", 404, None),
        ("GET", "/v1/global_rules", 404, None),
        ("GET", "/nothing", 404, None),
        ("GET", "/", 404, None),
    ] {
        let reply = send(&harness, method, path).await;
        assert_eq!(reply.status, status, "{method} {path}");
        match text {
            Some(text) => assert_eq!(reply.text, text),
            None => assert!(reply.text.contains("<title>404 Not Found</title>")),
        }
    }
}

#[tokio::test]
async fn secrets_do_not_show() {
    let harness = Harness::new();
    let auth = json!({"apikey": "my-api-key"});
    let conf = json!({"function_uri": "http://x", "authorization": auth});
    let body = json!({"uri": "/a", "plugins": {"aws-lambda": conf}});
    harness.json("PUT", "/apisix/admin/routes/1", body).await.assert_ok();
    let shown = get(&harness, "/v1/routes").await;
    assert!(!shown.assert_ok().text.contains("my-api-key"));
}

#[tokio::test]
async fn a_secret_shows_only_where_it_is_encrypted_or_a_reference() {
    let encrypted = Keyring::new(vec![KEYRING.to_owned()]).encrypt("my-api-key");
    for (stored, shown) in [
        ("my-api-key", "***"),
        ("bXktYXBpLWtleS1pbi1iYXNlNjQ=", "***"),
        ("", "***"),
        (&*encrypted, &*encrypted),
        ("$env://API_KEY", "$env://API_KEY"),
    ] {
        let harness = Harness::new();
        let put = async |key: &str, value: Value| {
            let bytes = value.to_string().into_bytes().into();
            harness.store.put(key, bytes, Put::default()).await.unwrap();
        };
        let conf = json!({"function_uri": "http://x", "authorization": {"apikey": stored}});
        let plugins = json!({"aws-lambda": conf});
        put("/routes/1", json!({"id": "1", "uri": "/a", "plugins": plugins})).await;
        put("/services/1", json!({"id": "1", "plugins": plugins})).await;
        let metadata = json!({"master_apikey": stored});
        put("/plugin_metadata/azure-functions", metadata).await;
        for (path, place) in [
            ("/v1/route/1", "/value/plugins/aws-lambda/authorization/apikey"),
            ("/v1/routes", "/0/value/plugins/aws-lambda/authorization/apikey"),
            ("/v1/service/1", "/value/plugins/aws-lambda/authorization/apikey"),
            ("/v1/plugin_metadata/azure-functions", "/master_apikey"),
            ("/v1/plugin_metadatas", "/0/master_apikey"),
        ] {
            let answer = get(&harness, path).await.assert_ok().json();
            assert_eq!(answer.pointer(place), Some(&json!(shown)), "{stored:?} {path}");
        }
    }
}

#[tokio::test]
async fn health_is_shown_where_checks_are_configured() {
    let harness = Harness::new();
    let checks = json!({"active": {"http_path": "/"}});
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:18801": 1}, "checks": checks});
    harness.json("PUT", "/apisix/admin/upstreams/hc", upstream.clone()).await.assert_ok();
    let route = json!({"uri": "/a", "upstream": upstream});
    harness.json("PUT", "/apisix/admin/routes/1", route).await.assert_ok();
    let of_route = json!({"name": "/apisix/routes/1", "nodes": {}, "type": "http"});
    let of_upstream =
        json!({"name": "/apisix/upstreams/hc", "nodes": [checked_node()], "type": "http"});
    for (path, body) in [
        ("/v1/healthcheck", json!([of_route, of_upstream])),
        ("/v1/healthcheck/routes/1", of_route),
        ("/v1/healthcheck/upstreams/hc", of_upstream),
    ] {
        get(&harness, path).await.assert(200, body);
    }
    let request = Request::builder().uri("/v1/healthcheck").header("accept", "text/html,*/*");
    let page = reply(&control(&harness), request.body(Body::empty()).unwrap()).await;
    assert_eq!(page.header("content-type"), "text/html");
    assert!(page.text.contains("<th>Upstream</th>"), "{}", page.text);
    let row = "<tr bgcolor=\"#FF0000\"><td>1</td><td>/apisix/upstreams/hc</td><td>http</td>\
               <td>127.0.0.1:81</td><td>unhealthy</td><td>0</td><td>2</td><td>1</td><td>0</td></tr>";
    assert!(page.text.contains(row), "{}", page.text);
}

fn checked_node() -> Value {
    let counter = json!({"http_failure": 1, "success": 0, "tcp_failure": 2, "timeout_failure": 0});
    json!({
        "counter": counter,
        "hostname": "127.0.0.1",
        "ip": "127.0.0.1",
        "port": 81,
        "status": "unhealthy",
    })
}

async fn get(harness: &Harness, path: &str) -> Reply {
    send(harness, "GET", path).await
}

async fn send(harness: &Harness, method: &str, path: &str) -> Reply {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    reply(&control(harness), request).await
}

fn control(harness: &Harness) -> axum::Router {
    let state = ControlState {
        store: Arc::clone(&harness.store),
        catalog: Arc::clone(&harness.catalog),
        keyring: Keyring::new(vec![KEYRING.to_owned()]),
        key_prefix: "/apisix".to_owned(),
        server: "Sluicegate/9.8.7".to_owned(),
        reload_plugins: None,
        explain: None,
        status: Some(Arc::new(|| json!({"revision": 7}))),
        health: Some(Arc::new(|key| (key == "/upstreams/hc").then(|| vec![checked_node()]))),
    };
    router(Arc::new(state))
}

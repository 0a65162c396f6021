//! What is special about single kinds of resources.

use std::sync::{Arc, Mutex};

use axum::http::Request;
use serde_json::{Value, json};
use sluicegate_admin::Settings;
use sluicegate_store::{
    BoxFuture, Entry, Expect, Listing, MemoryStore, Put, Store, StoreError, Watch, Written,
};

use crate::harness::{ADMIN, Harness, Reply, route};

async fn send(harness: &Harness, method: &str, path: &str, body: Value) -> Reply {
    harness.json(method, &format!("/apisix/admin{path}"), body).await
}

fn key_auth(key: &str) -> Value {
    json!({"plugins": {"key-auth": {"key": key}}})
}

#[tokio::test]
async fn credentials_belong_to_a_consumer_and_go_with_it() {
    let harness = Harness::new();
    let credential = "/consumers/jack/credentials/a";
    let put = async |path: &str, body: Value| send(&harness, "PUT", path, body).await;
    put(credential, key_auth("k")).await.assert_error(404, "consumer not found");
    put("/consumers", json!({"username": "jack"})).await.assert_ok();
    for list in ["/consumers/jack/credentials", "/consumers/nobody/credentials"] {
        send(&harness, "GET", list, json!(null))
            .await
            .assert(404, json!({"message": "Key not found"}));
    }
    put(credential, key_auth("k")).await.assert_ok();
    let stored = harness.stored("/consumers/jack/credentials/a").await.unwrap();
    assert_ne!(stored["plugins"]["key-auth"]["key"], "k");
    let mut with_id = key_auth("k2");
    with_id["id"] = json!("b");
    put("/consumers/jack/credentials", with_id).await.assert_ok();
    let path = "/consumers/jack/credentials";
    put(path, key_auth("k3")).await.assert_error(400, "missing credential id");
    let limit = json!({"plugins": {"limit-count": {}}});
    let only_auth = "only supports auth type plugins in consumer credential";
    put(credential, limit).await.assert_error(400, only_auth);
    let unknown = json!({"plugins": {"nope": {}}});
    let error = "invalid plugins configuration: unknown plugin [nope]";
    put(credential, unknown).await.assert_error(400, error);
    for method in ["POST", "PATCH"] {
        let error = format!("not supported `{method}` method for credential");
        send(&harness, method, credential, key_auth("k")).await.assert_error(405, &error);
    }

    let consumers = send(&harness, "GET", "/consumers", json!(null)).await.json();
    assert_eq!(
        (&consumers["total"], &consumers["list"][0]["key"]),
        (&json!(1), &json!("/apisix/consumers/jack"))
    );
    let credentials = send(&harness, "GET", path, json!(null)).await.json();
    assert_eq!(credentials["total"], 2);
    assert_eq!(credentials["list"][0]["value"]["plugins"]["key-auth"]["key"], "k");
    send(&harness, "DELETE", "/consumers/jack", json!(null)).await.assert_ok();
    assert!(harness.stored("/consumers/jack/credentials/a").await.is_none());
    let flat = send(&harness, "GET", "/credentials", json!(null)).await;
    flat.assert_error(404, "Unsupported resource type: credentials");
}

#[tokio::test]
async fn no_two_consumers_have_the_same_key() {
    let harness = Harness::new();
    let consumer =
        |name: &str, key: &str| json!({"username": name, "plugins": {"key-auth": {"key": key}}});
    let put = async |path: &str, body: Value| send(&harness, "PUT", path, body).await;
    put("/consumers", consumer("jack", "one")).await.assert_ok();
    put("/consumers", consumer("jill", "two")).await.assert_ok();
    put("/consumers/jack/credentials/c", key_auth("three")).await.assert_ok();
    let of_jack = "duplicate key of plugin key-auth found with consumer: jack";
    let of_c = "duplicate key of plugin key-auth found with credential: c of consumer: jack";
    for (path, body, error) in [
        ("/consumers", consumer("jill", "one"), Some(of_jack)),
        ("/consumers", consumer("jill", "three"), Some(of_c)),
        ("/consumers/jill/credentials/d", key_auth("one"), Some(of_jack)),
        ("/consumers/jill/credentials/c", key_auth("three"), Some(of_c)),
        // A credential is only itself, also within one consumer.
        ("/consumers/jack/credentials/d", key_auth("one"), Some(of_jack)),
        ("/consumers/jack/credentials/c", key_auth("three"), None),
        // A consumer may say what one of its own credentials says.
        ("/consumers", consumer("jack", "three"), None),
        // What is a secret elsewhere cannot be compared.
        ("/consumers", consumer("jill", "$secret://vault/1/jack/key"), None),
        ("/consumers", consumer("john", "$secret://vault/1/jack/key"), None),
        // The key that jack had before is free.
        ("/consumers", consumer("jill", "one"), None),
    ] {
        let reply = put(path, body.clone()).await;
        match error {
            Some(error) => _ = reply.assert_error(400, error),
            None => assert!(reply.status.is_success(), "{path} {body}: {}", reply.text),
        }
    }
}

#[tokio::test]
async fn of_concurrent_consumers_with_one_key_only_one_is_taken() {
    let harness = Harness::new();
    let mut tasks = Vec::new();
    for n in 0..16 {
        let body = json!({"username": format!("c{n}"), "plugins": {"key-auth": {"key": "same"}}});
        let request = Request::put("/apisix/admin/consumers").header("x-api-key", ADMIN);
        let request = request.body(body.to_string().into()).unwrap();
        tasks.push(harness.request(request));
    }
    let replies = futures(tasks).await;
    assert_eq!(replies.iter().filter(|reply| reply.status.is_success()).count(), 1);
}

/// Runs all at once, turn by turn.
async fn futures<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).map(Some).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        for slot in &mut all {
            if let Some(future) = slot
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                done.push(value);
                *slot = None;
            }
        }
        match all.iter().all(Option::is_none) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done
}

#[tokio::test]
async fn cost_decorations_belong_to_a_service_and_go_with_it() {
    let harness = Harness::new();
    let (list, one) =
        ("/services/s/graphql_cost_decorations", "/services/s/graphql_cost_decorations/1");
    let field = |path: &str| json!({"field_path": path, "mul_arguments": ["first"]});
    let send =
        async |method: &str, path: &str, body: Value| send(&harness, method, path, body).await;
    send("PUT", one, field("Query")).await.assert_error(404, "service not found");
    let flat = send("GET", "/graphql_cost_decorations", json!(null)).await;
    flat.assert_error(400, "missing service id");
    send("PUT", "/services/s", json!({"name": "s"})).await.assert_ok();
    send("GET", list, json!(null)).await.assert(404, json!({"message": "Key not found"}));

    let created = send("PUT", one, field("Query")).await;
    created.assert_ok();
    assert_eq!(created.json()["key"], "/apisix/services/s/graphql_cost_decorations/1");
    assert_eq!(created.json()["value"]["service_id"], "s");
    let posted = send("POST", list, field("Query.a")).await;
    let posted = posted.assert_ok().json()["value"]["id"].as_str().unwrap().to_owned();
    let decorated =
        format!("field_path Query.a is already decorated on this service by [{posted}]");
    for (method, path, body, error) in [
        ("POST", list, field("Query.a"), &*decorated),
        ("PUT", one, field("Query.a"), &*decorated),
        ("PATCH", one, field("Query.a"), &*decorated),
        (
            "PUT",
            one,
            json!({"field_path": "a b"}),
            "invalid configuration: property \"field_path\" validation failed: failed to match pattern \"^[A-Za-z_][A-Za-z0-9_]*(\\\\.[A-Za-z_][A-Za-z0-9_]*)*$\" with \"a b\"",
        ),
        (
            "PUT",
            one,
            json!({"field_path": "a", "service_id": "t"}),
            "wrong service_id, it is taken from the path",
        ),
        ("PUT", one, json!([]), "invalid configuration"),
        ("PATCH", one, json!({"service_id": "s"}), "service_id can not be patched"),
        ("PATCH", list, json!({"add_value": 1}), "missing graphql cost decoration id"),
        ("POST", one, field("Query.b"), "wrong graphql cost decoration id, do not need it"),
    ] {
        send(method, path, body).await.assert_error(400, error);
    }
    send("PATCH", one, json!({"field_path": "Query", "add_value": 2.5})).await.assert_ok();
    assert_eq!(send("GET", list, json!(null)).await.json()["total"], 2);
    assert_eq!(send("GET", "/services", json!(null)).await.json()["total"], 1);
    send("DELETE", "/services/s", json!(null)).await.assert_ok();
    let gone = "/services/s/graphql_cost_decorations/1";
    assert!(harness.stored(gone).await.is_none());

    // What was left behind under a name is not for a new service of that name.
    harness.store.put(gone, b"{}"[..].into(), Put::default()).await.unwrap();
    send("PUT", "/services/s", json!({"name": "s"})).await.assert_ok();
    assert!(harness.stored(gone).await.is_none());
}

#[tokio::test]
async fn secrets_go_by_manager_and_id() {
    let harness = Harness::new();
    let vault = || json!({"uri": "http://127.0.0.1:8200", "prefix": "kv", "token": "t"});
    let send =
        async |method: &str, path: &str, body: Value| send(&harness, method, path, body).await;
    send("PUT", "/secrets/vault/1", vault()).await.assert_ok();
    let patched = send("PATCH", "/secrets/vault/1", json!({"token": "u"})).await;
    assert_eq!(patched.assert_ok().json()["value"]["token"], "u");
    let patched = send("PATCH", "/secrets/vault/1/token", json!("v")).await;
    assert_eq!(patched.assert_ok().json()["value"]["token"], "v");
    let mut named = vault();
    named["id"] = json!("1");
    for (method, path, body, status, error) in [
        ("PUT", "/secrets/vault/1", named, 400, "wrong secret id"),
        (
            "PUT",
            "/secrets/vault/1",
            json!({"uri": "x"}),
            400,
            "invalid configuration: property \"uri\" validation failed: failed to match pattern \"^[^\\\\/]+:\\\\/\\\\/([\\\\da-zA-Z.-]+|\\\\[[\\\\da-fA-F:]+\\\\])(:\\\\d+)?\" with \"x\"",
        ),
        ("PUT", "/secrets/vault", vault(), 400, "missing secret id"),
        ("PATCH", "/secrets/vault", json!({"token": "u"}), 400, "no secret id"),
        ("DELETE", "/secrets/vault", json!(null), 400, "missing secret id"),
        ("POST", "/secrets/vault", vault(), 405, "not supported `POST` method for secret"),
    ] {
        send(method, path, body).await.assert_error(status, error);
    }
    assert_eq!(send("GET", "/secrets/vault", json!(null)).await.json()["total"], 1);
}

#[tokio::test]
async fn stream_routes_are_taken_where_streams_are_switched_on() {
    let harness = Harness::new();
    // Protocols cannot be written here yet; another gateway may have done it.
    let superior = json!({"protocol": {"name": "redis"}, "id": "up"}).to_string();
    let sub = json!({"protocol": {"name": "redis", "superior_id": "up"}, "id": "sub"}).to_string();
    for (key, value) in [("/stream_routes/up", superior), ("/stream_routes/sub", sub)] {
        harness.store.put(key, value.into_bytes().into(), Put::default()).await.unwrap();
    }
    let body = || json!({"server_port": 9100, "upstream": route("/")["upstream"]});
    let off = send(&harness, "PUT", "/stream_routes/1", body()).await;
    off.assert_error(400, "stream mode is disabled, can not add stream routes");
    let valid = send(&harness, "POST", "/schema/validate/stream_routes", body()).await;
    assert_eq!((valid.status.as_u16(), &*valid.text), (200, ""));

    let settings = Settings { stream_proxy: true, ..(*harness.state.settings.load_full()).clone() };
    harness.state.settings.store(Arc::new(settings));
    let send =
        async |method: &str, path: &str, body: Value| send(&harness, method, path, body).await;
    send("PUT", "/services/s", json!({"name": "s"})).await.assert_ok();
    send("PUT", "/stream_routes/1", body()).await.assert_ok();
    send("PUT", "/stream_routes/2", json!({"service_id": "s"})).await.assert_ok();
    for (method, path, body, status, error) in [
        (
            "DELETE",
            "/services/s",
            json!(null),
            400,
            "can not delete this service directly, stream_route [2] is still using it now",
        ),
        ("PATCH", "/stream_routes/1", body(), 405, "not supported `PATCH` method for stream route"),
        (
            "PUT",
            "/stream_routes/3",
            json!({"upstream_id": "nope"}),
            400,
            "failed to fetch upstream info by upstream id [nope], response code: 404",
        ),
        (
            "PUT",
            "/stream_routes/3",
            json!({"plugins": {"mqtt-proxy": {}}}),
            400,
            "unknown plugin [mqtt-proxy]",
        ),
        (
            "PUT",
            "/stream_routes/3",
            json!({"protocol": {"name": "redis"}}),
            400,
            "unknown protocol [redis]",
        ),
        (
            "PUT",
            "/stream_routes/3",
            json!({"protocol": {"name": "redis", "superior_id": "9"}}),
            400,
            "failed to fetch stream routes[9], response code: 404",
        ),
    ] {
        send(method, path, body).await.assert_error(status, error);
    }
    let list = send("GET", "/stream_routes?filter=service_id%3Ds", json!(null)).await.json();
    assert_eq!((&list["total"], &list["list"][0]["value"]["id"]), (&json!(1), &json!("2")));

    let used = "can not delete this stream route directly, stream route [sub] is still using it as superior_id";
    send("DELETE", "/stream_routes/up", json!(null)).await.assert_error(400, used);
}

#[tokio::test]
async fn a_proto_stays_while_it_is_used() {
    let harness = Harness::new();
    let content = json!({"content": "syntax = \"proto3\"; message M { string a = 1; }"});
    let send =
        async |method: &str, path: &str, body: Value| send(&harness, method, path, body).await;
    send("PUT", "/protos/1", content.clone()).await.assert_ok();
    send("POST", "/protos", content.clone()).await.assert_ok();
    let patch = send("PATCH", "/protos/1", content).await;
    patch.assert_error(405, "not supported `PATCH` method for proto");
    let user = json!({"plugins": {"grpc-transcode": {"proto_id": 1}}}).to_string();
    harness.store.put("/services/s", user.into_bytes().into(), Put::default()).await.unwrap();
    let used = "can not delete this proto, service [s] is still using it now";
    send("DELETE", "/protos/1", json!(null)).await.assert_error(400, used);
}

#[tokio::test]
async fn a_whole_configuration_is_checked_without_being_stored() {
    let harness = Harness::new();
    let validate = async |body: String, yaml: bool| {
        let request = Request::post("/apisix/admin/configs/validate").header("x-api-key", ADMIN);
        let kind = if yaml { "application/yaml" } else { "application/json" };
        harness.request(request.header("content-type", kind).body(body.into()).unwrap()).await
    };
    let good = json!({
        "routes": [{"id": 1, "uri": "/a", "upstream_id": "comes-later"}],
        "routes_conf_version": 5,
        "consumers": [{"username": "jack"}, {"id": "jack/credentials/1", "plugins": {"key-auth": {"key": "k"}}}],
        "secrets": [{"id": "vault/1", "uri": "http://127.0.0.1:8200", "prefix": "kv", "token": "t"}],
        "plugin_metadata": [{"id": "http-logger", "log_format": {}}],
        "unknown": [{"zzz": 1}],
    });
    validate(good.to_string(), false).await.assert(200, json!({}));
    validate("routes:\n  - id: 1\n    uri: /a\n    service_id: s\n".to_owned(), true)
        .await
        .assert(200, json!({}));
    let bad = json!({
        "routes": [
            {"id": "1", "uri": 1},
            {"id": "1", "uri": "/a", "plugins": {"nope": {}}},
            "text",
        ],
        "services_conf_version": "1",
        "consumers": [{"username": "jack"}, {"username": "jack"}],
        "secrets": [{"id": "1", "uri": "x"}],
        "plugin_metadata": [{"log_format": {}}],
        "upstreams": 5,
    });
    let refused = validate(bad.to_string(), false).await.json();
    assert_eq!(refused["error_msg"], "Configuration validation failed");
    let problem = |kind: &str, id: &str, index: u32, error: &str| json!({"resource_type": kind, "resource_id": id, "index": index, "error": error});
    assert_eq!(
        refused["errors"],
        json!([
            problem("routes", "1", 0, "invalid configuration: property \"uri\" validation failed: wrong type: expected string, got number"),
            problem("routes", "1", 1, "unknown plugin [nope]"),
            problem("routes", "1", 1, "found duplicate id 1 in routes"),
            problem("routes", "", 2, "wrong type: expected object, got string"),
            {"resource_type": "services", "error": "services_conf_version must be a number, got string"},
            {"resource_type": "upstreams", "error": "wrong type: expected array, got number"},
            problem("consumers", "jack", 1, "found duplicate username jack in consumers"),
            problem("plugin_metadata", "", 0, "missing plugin name"),
            problem("secrets", "1", 0, "invalid configuration: property \"id\" validation failed: object matches none of the required"),
        ])
    );
    for (body, yaml, error) in [
        ("", false, "invalid request body: empty request body"),
        (
            "{bad",
            false,
            "invalid request body: Expected object key string but found invalid token at character 2",
        ),
        ("a: [", true, "invalid request body: invalid yaml request body"),
        ("text", true, "invalid request body: invalid yaml request body"),
    ] {
        validate(body.to_owned(), yaml).await.assert_error(400, error);
    }
    assert!(harness.store.list("/").await.unwrap().entries.is_empty());
}

/// A store that counts what is listed, and fails when told to.
#[derive(Default)]
struct Watched {
    inner: MemoryStore,
    listed: Mutex<Vec<String>>,
    fault: Mutex<Option<StoreError>>,
    /// The only key whose writes fail.
    fault_at: Mutex<Option<&'static str>>,
}

impl Watched {
    fn fault(&self, key: &str) -> Result<(), StoreError> {
        match *self.fault_at.lock().unwrap() {
            Some(only) if only != key => Ok(()),
            _ => self.fault.lock().unwrap().clone().map_or(Ok(()), Err),
        }
    }
}

impl Store for Watched {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.listed.lock().unwrap().push(prefix.to_owned());
        self.inner.list(prefix)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Arc<[u8]>,
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        match self.fault(key) {
            Ok(()) => self.inner.put(key, value, how),
            Err(fault) => Box::pin(async { Err(fault) }),
        }
    }

    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        match self.fault(key) {
            Ok(()) => self.inner.remove(key, expect, tree),
            Err(fault) => Box::pin(async { Err(fault) }),
        }
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.inner.next_id()
    }

    fn snapshot_and_watch<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<(Listing, Watch), StoreError>> {
        self.inner.snapshot_and_watch(prefix)
    }

    fn watch(&self, from_revision: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.inner.watch(from_revision)
    }
}

#[tokio::test]
async fn writes_and_deletions_list_nothing() {
    let store = Arc::new(Watched::default());
    let harness = Harness::build(Arc::clone(&store) as Arc<dyn Store>, |state| state);
    let send =
        async |method: &str, path: &str, body: Value| send(&harness, method, path, body).await;
    let upstream = || route("/")["upstream"].clone();
    send("PUT", "/upstreams/1", upstream()).await.assert_ok();
    send("PUT", "/services/s", json!({"upstream_id": "1"})).await.assert_ok();
    send("PUT", "/routes/1", json!({"uri": "/a", "service_id": "s"})).await.assert_ok();
    send("POST", "/routes", route("/b")).await.assert_ok();
    send("PATCH", "/routes/1", json!({"desc": "d"})).await.assert_ok();
    send("PUT", "/consumers", json!({"username": "jack", "plugins": {"key-auth": {"key": "k"}}}))
        .await
        .assert_ok();
    send("PUT", "/plugin_configs/p", json!({"plugins": {}})).await.assert_ok();
    for path in ["/routes/1", "/services/s", "/upstreams/1", "/plugin_configs/p", "/consumers/jack"]
    {
        send("DELETE", path, json!(null)).await.assert_ok();
    }
    let listed = store.listed.lock().unwrap();
    assert!(listed.is_empty(), "{listed:?}");
}

#[tokio::test]
async fn what_has_others_goes_with_them_or_stays_with_them() {
    let store = Arc::new(Watched::default());
    let harness = Harness::build(Arc::clone(&store) as Arc<dyn Store>, |state| state);
    let unavailable = || Some(StoreError::Unavailable { reason: "no quorum".to_owned() });
    let fails_at = |key| {
        *store.fault.lock().unwrap() = unavailable();
        *store.fault_at.lock().unwrap() = Some(key);
    };
    let (owner, child) = ("/consumers/jack", "/consumers/jack/credentials/a");
    send(&harness, "PUT", "/consumers", json!({"username": "jack"})).await.assert_ok();
    send(&harness, "PUT", child, key_auth("k")).await.assert_ok();
    fails_at(owner);
    let refused = send(&harness, "DELETE", owner, json!(null)).await;
    refused.assert_error(503, "the configuration store is not available");
    assert!(harness.stored(child).await.is_some(), "the answer says that nothing was written");

    let (owner, child) = ("/services/s", "/services/s/graphql_cost_decorations/1");
    send(&harness, "PUT", owner, json!({"name": "s"})).await.assert_ok();
    send(&harness, "PUT", child, json!({"field_path": "Query"})).await.assert_ok();
    fails_at(child);
    send(&harness, "DELETE", owner, json!(null)).await.assert_ok();
    assert!(harness.stored(child).await.is_none(), "one step takes both");
}

#[tokio::test]
async fn a_consumer_that_expired_has_no_credentials_when_it_comes_again() {
    let harness = Harness::new();
    let credential = "/consumers/jack/credentials/a";
    let put = async |path: &str, body: Value| send(&harness, "PUT", path, body).await;
    put("/consumers?ttl=1", json!({"username": "jack"})).await.assert_ok();
    put(credential, key_auth("k")).await.assert_ok();
    let jill = || json!({"username": "jill", "plugins": {"key-auth": {"key": "k"}}});
    let taken = "duplicate key of plugin key-auth found with credential: a of consumer: jack";
    put("/consumers", jill()).await.assert_error(400, taken);
    let begun = std::time::Instant::now();
    while harness.stored("/consumers/jack").await.is_some() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it never goes");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    put("/consumers", jill()).await.assert_ok();
    put("/consumers", json!({"username": "jack"})).await.assert_ok();
    assert!(harness.stored(credential).await.is_none());
    let list = send(&harness, "GET", "/consumers/jack/credentials", json!(null)).await;
    list.assert(404, json!({"message": "Key not found"}));
}

#[tokio::test]
async fn a_store_that_takes_no_write_is_named() {
    let store = Arc::new(Watched::default());
    let harness = Harness::build(Arc::clone(&store) as Arc<dyn Store>, |state| state);
    send(&harness, "PUT", "/routes/1", route("/a")).await.assert_ok();
    let reason = || "no quorum at 10.0.0.1".to_owned();
    let unknown = "the configuration store did not say what became of the change: it may or may not have been made, read before repeating it";
    for (fault, status, error) in [
        (
            StoreError::Unavailable { reason: reason() },
            503,
            "the configuration store is not available",
        ),
        (StoreError::OutcomeUnknown { reason: reason() }, 503, unknown),
        (
            StoreError::ReadOnly { reason: "edit conf/apisix.yaml".to_owned() },
            405,
            "the configuration store takes no writes: edit conf/apisix.yaml",
        ),
    ] {
        *store.fault.lock().unwrap() = Some(fault);
        for (method, path, body) in [
            ("PUT", "/routes/1", route("/b")),
            ("POST", "/routes", route("/b")),
            ("PATCH", "/routes/1", json!({"desc": "d"})),
            ("DELETE", "/routes/1", json!(null)),
        ] {
            send(&harness, method, path, body).await.assert_error(status, error);
        }
    }
    assert_eq!(send(&harness, "GET", "/routes/1", json!(null)).await.json()["value"]["uri"], "/a");
}

//! What the transcript does not show: who gets in, limits, races, hooks.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, extract::ConnectInfo, http::Request};
use serde_json::{Value, json};
use sluicegate_admin::{APPLIED_WAIT_MAX, BODY_BYTES_MAX, WRITE_START_MAX};
use sluicegate_store::{
    BoxFuture, EmbeddedStore, Entry, Expect, Listing, MemoryStore, Put, Store, StoreError, Watch,
    Written,
};

use crate::harness::{ADMIN, Harness, Reply, VIEWER, route};

#[tokio::test]
async fn only_a_key_opens_the_api_and_a_viewer_may_only_look() {
    let harness = Harness::new();
    let send = async |method: &str, uri: &str, key: Option<(&str, &str)>| {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some((name, value)) = key {
            request = request.header(name, value);
        }
        harness.request(request.body(Body::from(route("/a").to_string())).unwrap()).await
    };
    let routes = "/apisix/admin/routes/1";
    let cookie = &format!("x_api_key={ADMIN}");
    for (method, uri, key, why) in [
        ("GET", routes, None, "missing apikey"),
        ("GET", routes, Some(("x-api-key", "nope")), "wrong apikey"),
        ("PUT", routes, Some(("x-api-key", VIEWER)), "invalid method for role viewer"),
        ("DELETE", routes, Some(("x-api-key", VIEWER)), "invalid method for role viewer"),
        ("GET", "/apisix/admin/nonsense", None, "missing apikey"),
        ("GET", "/apisix/admin/plugins/list", None, "missing apikey"),
        (
            "PUT",
            "/apisix/admin/plugins/reload",
            Some(("x-api-key", VIEWER)),
            "invalid method for role viewer",
        ),
        ("GET", "/apisix/admin/schema/route", None, "missing apikey"),
        ("POST", "/apisix/admin/schema/validate/routes", None, "missing apikey"),
    ] {
        let refused = send(method, uri, key).await;
        refused.assert(401, json!({"error_msg": "failed to check token", "description": why}));
        assert_eq!(refused.header("x-api-version"), "");
        assert_eq!(refused.header("access-control-allow-origin"), "*");
    }
    assert_eq!(harness.stored("/routes/1").await, None);
    for (method, uri, key) in [
        ("PUT", routes, Some(("x-api-key", ADMIN))),
        ("PUT", "/apisix/admin/routes/1?api_key=admin-key", None),
        ("PUT", routes, Some(("cookie", cookie))),
        ("GET", routes, Some(("x-api-key", VIEWER))),
    ] {
        send(method, uri, key).await.assert_ok();
    }
    let mut settings = harness.state.settings.load().as_ref().clone();
    settings.key_required = false;
    harness.state.settings.store(settings.into());
    send("PUT", routes, None).await.assert_ok();
}

#[tokio::test]
async fn clients_from_elsewhere_get_403_whatever_key_they_bring() {
    let harness = Harness::new();
    for (address, status) in
        [("127.0.0.9:1", 200), ("[::ffff:127.0.0.1]:1", 200), ("10.0.0.1:1", 403), ("[::1]:1", 403)]
    {
        for method in ["GET", "OPTIONS"] {
            let mut request = Request::builder()
                .method(method)
                .uri("/apisix/admin/routes")
                .header("x-api-key", ADMIN)
                .body(Body::empty())
                .unwrap();
            let address: SocketAddr = address.parse().unwrap();
            request.extensions_mut().insert(ConnectInfo(address));
            let reply = harness.request(request).await;
            assert_eq!(reply.status, status, "{method} from {address}");
            if status == 403 {
                assert_eq!(reply.header("content-type"), "text/html; charset=utf-8");
                assert!(reply.text.contains("<title>403 Forbidden</title>"), "{}", reply.text);
                assert_eq!(reply.header("access-control-allow-origin"), "");
            }
        }
    }
}

#[tokio::test]
async fn a_preflight_needs_no_key_and_cors_can_be_switched_off() {
    let harness = Harness::new();
    let options = || Request::options("/apisix/admin/routes").body(Body::empty()).unwrap();
    let preflight = harness.request(options()).await;
    assert_eq!((preflight.status.as_u16(), preflight.text.as_str()), (200, ""));
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "POST, GET, PUT, OPTIONS, DELETE, PATCH"),
        ("access-control-max-age", "3600"),
        ("access-control-allow-headers", "*"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", ""),
    ] {
        assert_eq!(preflight.header(name), value, "{name}");
    }
    let mut settings = harness.state.settings.load().as_ref().clone();
    settings.cors = false;
    harness.state.settings.store(settings.into());
    assert_eq!(harness.request(options()).await.status, 404);
    let plain = harness.send("GET", "/apisix/admin/routes", "").await;
    assert!(!plain.headers.keys().any(|name| name.as_str().starts_with("access-control")));
}

#[tokio::test]
async fn paths_that_name_nothing_are_404() {
    let harness = Harness::new();
    for (method, path, error) in [
        ("GET", "/apisix/admin/nonsense", Some("Unsupported resource type: nonsense")),
        ("GET", "/apisix/admin/", Some("Unsupported resource type: ")),
        (
            "POST",
            "/apisix/admin/schema/validate/nonsense",
            Some("Unsupported resource type: nonsense"),
        ),
        ("PUT", "/apisix/admin/plugins/echo", Some("not found")),
        ("DELETE", "/apisix/admin/schema/route", Some("not found")),
        ("GET", "/", None),
        ("GET", "/apisix", None),
        ("GET", "/apisix/admin", None),
        ("GET", "/apisix/administrator/routes", None),
        ("HEAD", "/apisix/admin/routes", None),
        ("TRACE", "/apisix/admin/routes", None),
    ] {
        let reply = harness.send(method, path, "").await;
        assert_eq!(reply.status, 404, "{method} {path}");
        match error {
            Some(error) => _ = reply.assert_error(404, error),
            None => assert_eq!(
                reply.header("content-type"),
                "text/html; charset=utf-8",
                "{method} {path}"
            ),
        }
    }
    let head = Request::head("/apisix/admin").body(Body::empty()).unwrap();
    assert_eq!(harness.request(head).await.status, 200);
    assert_eq!(harness.send("GET", "/apisix/admin/%zz", "").await.status, 400);
}

#[tokio::test]
async fn bad_bodies_are_named_and_change_nothing() {
    let harness = Harness::new();
    harness.json("PUT", "/apisix/admin/routes/v", route("/before")).await.assert_ok();
    let before = harness.stored("/routes/v").await;
    let deep = format!("{}1{}", "[".repeat(129), "]".repeat(129));
    let not_object = "invalid configuration: wrong type: expected object, got";
    for (method, body, error) in [
        ("PUT", "\"x\"", format!("{not_object} string")),
        ("PUT", "1", format!("{not_object} number")),
        ("PUT", "null", format!("{not_object} null")),
        ("PUT", "[1]", format!("{not_object} array")),
        ("PATCH", "\"x\"", "invalid configuration".to_owned()),
        ("PATCH", "[1]", "invalid configuration".to_owned()),
        ("PATCH", "", "missing new configuration".to_owned()),
        ("PUT", "", "missing configurations".to_owned()),
        (
            "PUT",
            r#"{"create_time": 1, "uri": "/a"}"#,
            "the property is forbidden:  create_time".to_owned(),
        ),
        (
            "PUT",
            r#"{"uri": "/a", "upstream": {"update_time": 1}}"#,
            "the property is forbidden:  upstream.update_time".to_owned(),
        ),
    ] {
        let reply = harness.send(method, "/apisix/admin/routes/v", body).await;
        reply.assert_error(400, &error);
    }
    for (body, why) in [
        ("{bad json", "Expected object key string but found invalid token at character 2"),
        ("{\"a\": ", "Expected value but found T_END at character 7"),
        ("{} x", "Expected the end but found invalid token at character 4"),
        ("{\n\"a\" 1}", "Expected colon but found invalid token at character 7"),
        (deep.as_str(), "Found too many nested data structures (128) at character 128"),
    ] {
        for method in ["PUT", "POST", "PATCH", "GET", "DELETE"] {
            let reply = harness.send(method, "/apisix/admin/routes/v", body.to_owned()).await;
            let error = format!("invalid request body: {why}");
            reply.assert(400, json!({"error_msg": error, "req_body": body}));
            assert_eq!(reply.header("x-api-version"), "");
        }
    }
    let binary = harness.send("PUT", "/apisix/admin/routes/v", vec![b'"', 0xff, b'"']).await;
    assert_eq!((binary.status.as_u16(), &binary.json()["req_body"]), (400, &json!("\"\u{fffd}\"")));
    assert_eq!(harness.stored("/routes/v").await, before);
}

#[tokio::test]
async fn a_body_may_have_one_and_a_half_mebibytes_and_no_byte_more() {
    let harness = Harness::new();
    let mut body = route("/a");
    body["desc"] = "".into();
    let frame = body.to_string().len();
    for (len, chunked, fits) in [
        (BODY_BYTES_MAX, false, true),
        (BODY_BYTES_MAX, true, true),
        (BODY_BYTES_MAX + 1, false, false),
        (BODY_BYTES_MAX + 1, true, false),
    ] {
        // Longer than the schema allows, so what fits is refused for another reason.
        body["desc"] = "x".repeat(len - frame).into();
        let text = body.to_string();
        assert_eq!(text.len(), len);
        let mut request = Request::put("/apisix/admin/routes/1").header("x-api-key", ADMIN);
        if !chunked {
            request = request.header("content-length", len);
        }
        let reply = harness.request(request.body(Body::from(text)).unwrap()).await;
        let size = if chunked { String::new() } else { format!("{len} ") };
        let too_large = format!(
            "invalid request body: request size {size}is greater than the maximum size 1572864 allowed"
        );
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["error_msg"] == too_large, !fits, "{}", reply.json()["error_msg"]);
    }
}

#[tokio::test]
async fn what_is_written_with_a_ttl_goes_away_unless_it_is_written_again_without() {
    let harness = Harness::new();
    let number = "invalid argument ttl: should be a number";
    let range = "invalid argument ttl: should be more than 0 and at most 9000000000 seconds";
    for (ttl, error) in
        [("x", number), ("", number), ("0", range), ("-1", range), ("nan", range), ("1e300", range)]
    {
        for (method, path) in [("PUT", "routes/1"), ("GET", "routes"), ("GET", "schema/route")] {
            let path = format!("/apisix/admin/{path}?ttl={ttl}");
            harness.json(method, &path, route("/a")).await.assert_error(400, error);
        }
    }
    let write = async |method: &str, path: &str| {
        let reply = harness.json(method, &format!("/apisix/admin/{path}"), route("/a")).await;
        reply.assert_ok().json()["value"]["id"].as_str().unwrap().to_owned()
    };
    write("PUT", "routes/short?ttl=0.2").await;
    let posted = write("POST", "routes?ttl=0.2").await;
    write("PUT", "routes/patched").await;
    write("PATCH", "routes/patched?ttl=0.2").await;
    write("PUT", "routes/kept?ttl=0.2").await;
    write("PATCH", "routes/kept").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    for (id, status) in [("short", 404), (&*posted, 404), ("patched", 404), ("kept", 200)] {
        let path = format!("/apisix/admin/routes/{id}");
        assert_eq!(harness.send("GET", &path, "").await.status, status, "{id}");
    }
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let harness = Harness::new();
    for n in 0..25 {
        let mut body = route(&format!("/r{n}"));
        body["name"] = format!("name-{n}").into();
        body["labels"] = json!({ if n % 2 == 0 { "even" } else { "odd" }: "1" });
        harness.json("PUT", &format!("/apisix/admin/routes/{n}"), body).await.assert_ok();
    }
    harness
        .json("PUT", "/apisix/admin/upstreams/u", route("/")["upstream"].clone())
        .await
        .assert_ok();
    let body = json!({"uris": ["/u1", "/u2"], "upstream_id": "u"});
    harness.json("PUT", "/apisix/admin/routes/with-upstream", body).await.assert_ok();
    for (query, total, shown) in [
        ("", 26, 26),
        ("page=1&page_size=10", 26, 10),
        ("page=3&page_size=10", 26, 6),
        ("page=4&page_size=10", 26, 0),
        ("page=0&page_size=10", 26, 10),
        ("page=-5&page_size=10", 26, 10),
        ("page=1e300&page_size=10", 26, 0),
        ("page=1", 26, 26),
        ("page=a&page_size=10", 26, 26),
        ("page=1&page_size=500", 26, 26),
        ("name=name-1", 11, 11),
        ("name=^name-1$", 1, 1),
        ("name=zzz", 0, 0),
        ("name=(", 0, 0),
        ("label=even", 13, 13),
        ("label=none", 0, 0),
        ("uri=u2", 1, 1),
        ("uri=^/r2&page=1&page_size=10", 6, 6),
        ("filter=upstream_id%3Du", 1, 1),
        ("filter=upstream_id%3Dv", 0, 0),
        ("filter=nonsense%3D1", 26, 26),
    ] {
        let query = query.replace('^', "%5E");
        let reply = harness.send("GET", &format!("/apisix/admin/routes?{query}"), "").await;
        let body = reply.assert_ok().json();
        assert_eq!(body["total"], total, "{query}");
        let list = &body["list"];
        let empty_page = shown == 0 && query.contains("page_size");
        assert_eq!(list.as_array().map_or(0, Vec::len), shown, "{query}");
        assert_eq!(*list == json!({}), empty_page, "{query}: {list}");
    }
    for size in ["9", "501", "-1"] {
        let path = format!("/apisix/admin/routes?page=1&page_size={size}");
        let reply = harness.send("GET", &path, "").await;
        let answer = (reply.status.as_u16(), reply.text.as_str());
        assert_eq!(answer, (400, "page_size must be between 10 and 500"));
    }
    // By age, not by key: "10" was created after "9".
    let reply = harness.send("GET", "/apisix/admin/routes?page=2&page_size=10", "").await;
    assert_eq!(reply.json()["list"][0]["key"], "/apisix/routes/10");
}

#[tokio::test]
async fn a_filter_that_takes_too_long_is_refused_and_holds_up_nobody() {
    let harness = Harness::new();
    for n in 0..40 {
        let mut body = route("/")["upstream"].clone();
        body["name"] = format!("{}{n}", "a".repeat(60)).into();
        let path = format!("/apisix/admin/upstreams/{n}");
        harness.json("PUT", &path, body).await.assert_ok();
    }
    let long = "a".repeat(513);
    let too_long = "the patterns of name and uri take too long: simplify them";
    for (pattern, text) in [
        (r"^(?=(a|aa)+)(a|aa)+\1b$", too_long),
        (r"^(?=(a|aa)+\d+$)(a|aa)+\1b$", too_long),
        (&*long, "invalid argument name: a pattern has at most 512 bytes"),
        (
            "((?:(?=a)){1000}){1000}",
            "invalid argument name: a pattern repeats at most 10000 times by count",
        ),
        (
            "a{2,99999999999999999999}",
            "invalid argument name: a pattern repeats at most 10000 times by count",
        ),
        (r"(a)\g<1>", "invalid argument name: a pattern cannot call groups"),
    ] {
        let path = format!("/apisix/admin/upstreams?name={}", escaped(pattern));
        let began = Instant::now();
        let list = harness.send("GET", &path, "");
        // The only thread of this test answers others meanwhile.
        let other = async {
            let began = Instant::now();
            tokio::task::yield_now().await;
            harness.send("GET", "/apisix/admin/upstreams/1", "").await.assert_ok();
            began.elapsed()
        };
        let (list, other) = tokio::join!(list, other);
        list.assert_error(400, text);
        assert!(began.elapsed() < Duration::from_secs(3), "{pattern}: {:?}", began.elapsed());
        assert!(other < Duration::from_millis(500), "{pattern}: {other:?}");
    }
    // Backtracking as such is fine.
    for (pattern, total) in [(r"^(?!b)(a)\1+3\d$", 10), ("^a{60}7$", 1), (r"\p{L}{2}", 40)] {
        let path = format!("/apisix/admin/upstreams?name={}", escaped(pattern));
        let list = harness.send("GET", &path, "").await.assert_ok().json();
        assert_eq!(list["total"], total, "{pattern}");
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn writes_behind_one_that_hangs_are_refused_together() {
    let harness = Arc::new(Harness::build(Arc::new(Hanging::default()), |state| state));
    harness.json("PUT", "/apisix/admin/routes/1", route("/a")).await.assert_ok();
    let jack = |key: &str| {
        let plugins = json!({"key-auth": {"key": key}});
        json!({"username": "jack", "plugins": plugins})
    };
    let send = |(method, path, body): (&'static str, &str, Value)| {
        let harness = Arc::clone(&harness);
        let path = format!("/apisix/admin{path}");
        tokio::spawn(async move { harness.json(method, &path, body).await })
    };
    // The first holds the field for itself, the second its key and the field with others.
    let rule = json!({"plugins": {"echo": {}}});
    let others = [
        ("PUT", "/routes/2", route("/b")),
        ("POST", "/routes", route("/c")),
        ("PATCH", "/routes/1", json!({"desc": "d"})),
    ];
    for (first, others) in [
        (("PUT", "/global_rules/1", rule), &others[..]),
        (("PUT", "/consumers/jack", jack("k")), &[]),
    ] {
        let first = send(first);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        let mut behind = Vec::new();
        for _ in 0..3 {
            behind.push(send(("PUT", "/consumers/jack", jack("k"))));
            behind.push(send(("DELETE", "/upstreams/none", json!({}))));
            behind.extend(others.iter().cloned().map(send));
        }
        for reply in behind {
            let text =
                "the configuration store did not take earlier changes in time: nothing was written";
            reply.await.unwrap().assert_error(503, text);
        }
        let took = began.elapsed();
        assert!(took < WRITE_START_MAX + Duration::from_secs(2), "{took:?}");
        first.abort();
        let _ = first.await;
    }
    assert_eq!(harness.store.list("/").await.unwrap().entries.len(), 1);
}

/// A store that does not come back from a write of a consumer or a global rule.
#[derive(Default)]
struct Hanging(MemoryStore);

impl Store for Hanging {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.0.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.0.list(prefix)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Arc<[u8]>,
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        match key.starts_with("/routes/") {
            true => self.0.put(key, value, how),
            false => Box::pin(std::future::pending()),
        }
    }

    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        self.0.remove(key, expect, tree)
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.0.next_id()
    }

    fn snapshot_and_watch<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<(Listing, Watch), StoreError>> {
        self.0.snapshot_and_watch(prefix)
    }

    fn watch(&self, from_revision: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.0.watch(from_revision)
    }
}

#[tokio::test]
async fn times_are_set_by_the_gateway_and_creation_is_kept() {
    let harness = Harness::new();
    let value = json!({"uri": "/a", "create_time": 5, "update_time": 6, "plugins": {}});
    let stored = value.to_string();
    harness.store.put("/routes/1", stored.as_bytes().into(), Put::default()).await.unwrap();
    let times = |reply: &Reply| {
        let value = &reply.assert_ok().json()["value"];
        (value["create_time"].as_u64().unwrap(), value["update_time"].as_u64().unwrap())
    };
    let now = crate::harness::NOW;
    let path = "/apisix/admin/routes/1";
    assert_eq!(times(&harness.json("PUT", path, route("/b")).await), (5, now));
    let given = json!({"update_time": 7});
    assert_eq!(times(&harness.json("PATCH", path, given).await), (5, 7));
    assert_eq!(times(&harness.json("PATCH", path, json!({"desc": "d"})).await), (5, now));
    assert_eq!(times(&harness.json("PATCH", &format!("{path}/desc"), json!("e")).await), (5, now));
}

#[tokio::test]
async fn an_id_may_be_a_number() {
    let harness = Harness::new();
    let mut body = route("/a");
    body["id"] = 7.into();
    let created = harness.json("PUT", "/apisix/admin/routes", body.clone()).await;
    assert_eq!(created.assert_ok().json()["key"], "/apisix/routes/7");
    harness.json("PUT", "/apisix/admin/routes/7", body.clone()).await.assert_ok();
    let wrong = harness.json("PUT", "/apisix/admin/routes/8", body.clone()).await;
    wrong.assert_error(400, "wrong route id");
    let needless = harness.json("POST", "/apisix/admin/routes", body.clone()).await;
    needless.assert_error(400, "wrong route id, do not need it");
    for id in [json!({}), json!([1]), json!(null), json!(true), json!("a b"), json!("x".repeat(65))]
    {
        body["id"] = id.clone();
        let refused = harness.json("PUT", "/apisix/admin/routes", body.clone()).await;
        assert_eq!(refused.status, 400, "{id}: {}", refused.text);
    }
    let patched = harness.json("PATCH", "/apisix/admin/routes/7", json!({"id": "8"})).await;
    patched.assert_error(400, "wrong route id");
}

#[tokio::test]
async fn what_is_in_use_is_not_deleted_unless_forced() {
    let harness = Harness::new();
    let upstream = || route("/")["upstream"].clone();
    let put = async |path: &str, body: Value| {
        harness.json("PUT", &format!("/apisix/admin{path}"), body).await.assert_ok();
    };
    let split = |id: &str| json!({"traffic-split": {"rules": [{"weighted_upstreams": [{"weight": 1}, {"upstream_id": id}]}]}});
    for id in ["1", "2", "3", "4", "5"] {
        put(&format!("/upstreams/{id}"), upstream()).await;
    }
    for id in ["6", "7", "8"] {
        put(&format!("/upstreams/{id}"), upstream()).await;
    }
    put("/global_rules/g", json!({"plugins": split("6")})).await;
    put("/consumer_groups/cg", json!({"plugins": split("7")})).await;
    put("/consumers", json!({"username": "jack", "group_id": "cg", "plugins": split("8")})).await;
    put("/plugin_configs/p", json!({"plugins": split("3")})).await;
    put("/services/s", json!({"upstream_id": 2})).await;
    put("/routes/r", json!({"uri": "/a", "upstream_id": "1", "plugin_config_id": "p"})).await;
    put("/routes/t", json!({"uri": "/b", "service_id": "s", "plugins": split("4")})).await;
    for (path, error) in [
        ("/upstreams/1", "can not delete this upstream, route [r] is still using it now"),
        ("/upstreams/2", "can not delete this upstream, service [s] is still using it now"),
        (
            "/upstreams/3",
            "can not delete this upstream, plugin in plugin_config [p] is still using it now",
        ),
        ("/upstreams/4", "can not delete this upstream, plugin in route [t] is still using it now"),
        (
            "/upstreams/6",
            "can not delete this upstream, plugin in global_rules [g] is still using it now",
        ),
        (
            "/upstreams/7",
            "can not delete this upstream, plugin in consumer_group [cg] is still using it now",
        ),
        (
            "/upstreams/8",
            "can not delete this upstream, plugin in consumer [jack] is still using it now",
        ),
        (
            "/consumer_groups/cg",
            "can not delete this consumer group, consumer [jack] is still using it now",
        ),
        ("/services/s", "can not delete this service directly, route [t] is still using it now"),
        ("/plugin_configs/p", "can not delete this plugin config, route [r] is still using it now"),
    ] {
        let delete = format!("/apisix/admin{path}");
        harness.send("DELETE", &delete, "").await.assert_error(400, error);
        let unforced = harness.send("DELETE", &format!("{delete}?force=1"), "").await;
        unforced.assert_error(400, error);
    }
    harness.send("DELETE", "/apisix/admin/upstreams/5", "").await.assert_ok();
    harness.send("DELETE", "/apisix/admin/upstreams/1?force=true", "").await.assert_ok();
    // What is left dangling can be read, but not be written again.
    harness.send("GET", "/apisix/admin/routes/r", "").await.assert_ok();
    let patched = harness.json("PATCH", "/apisix/admin/routes/r", json!({"desc": "d"})).await;
    let error = "failed to fetch upstream info by upstream id [1], response code: 404";
    patched.assert_error(400, error);
}

#[tokio::test]
async fn a_plugin_is_in_one_global_rule_only() {
    let harness = Harness::new();
    let rule = || json!({"plugins": {"echo": {"body": "x"}}});
    harness.json("PUT", "/apisix/admin/global_rules/1", rule()).await.assert_ok();
    harness.json("PUT", "/apisix/admin/global_rules/1", rule()).await.assert_ok();
    let second = harness.json("PUT", "/apisix/admin/global_rules/2", rule()).await;
    second.assert_error(400, "plugin 'echo' already exists in global rule with id '1'");
}

#[tokio::test]
async fn of_concurrent_patches_none_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
    let stores: [Arc<dyn Store>; 2] = [Arc::new(MemoryStore::new()), Arc::new(embedded)];
    for store in stores {
        let harness = Arc::new(Harness::build(store, |state| state));
        harness.json("PUT", "/apisix/admin/routes/1", route("/a")).await.assert_ok();
        let clients = (0..16).map(|client| {
            let harness = Arc::clone(&harness);
            tokio::spawn(async move {
                for n in 0..5 {
                    let change = json!({"labels": {format!("c{client}-{n}"): "x"}});
                    harness.json("PATCH", "/apisix/admin/routes/1", change).await.assert_ok();
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let stored = harness.stored("/routes/1").await.unwrap();
        assert_eq!(stored["labels"].as_object().unwrap().len(), 80);
    }
}

#[tokio::test]
async fn a_reference_and_the_deletion_of_what_it_names_never_both_succeed() {
    let harness = Arc::new(Harness::build(Arc::new(Yielding(MemoryStore::new())), |state| state));
    let (mut referred, mut deleted) = (0, 0);
    for round in 0..60 {
        let upstream = format!("/apisix/admin/upstreams/u{round}");
        harness.json("PUT", &upstream, route("/")["upstream"].clone()).await.assert_ok();
        let refer = {
            let harness = Arc::clone(&harness);
            let body = json!({"uri": "/a", "upstream_id": format!("u{round}")});
            let path = format!("/apisix/admin/routes/r{round}");
            tokio::spawn(async move { harness.json("PUT", &path, body).await.status.is_success() })
        };
        // Each round, the two meet at another step.
        for _ in 0..round % 6 {
            tokio::task::yield_now().await;
        }
        let gone = harness.send("DELETE", &upstream, "").await.status.is_success();
        let refers = refer.await.unwrap();
        assert_ne!(refers, gone, "round {round}");
        referred += usize::from(refers);
        deleted += usize::from(gone);
    }
    assert!(referred > 0 && deleted > 0, "both orders were seen: {referred} and {deleted}");
}

/// A store that lets others run before and after each operation.
struct Yielding(MemoryStore);

impl Store for Yielding {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        yielding(self.0.get(key))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        yielding(self.0.list(prefix))
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Arc<[u8]>,
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        yielding(self.0.put(key, value, how))
    }

    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        yielding(self.0.remove(key, expect, tree))
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.0.next_id()
    }

    fn snapshot_and_watch<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<(Listing, Watch), StoreError>> {
        self.0.snapshot_and_watch(prefix)
    }

    fn watch(&self, from_revision: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.0.watch(from_revision)
    }
}

fn yielding<'a, T: Send + 'a>(operation: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        let done = operation.await;
        tokio::task::yield_now().await;
        done
    })
}

#[tokio::test]
async fn a_write_is_answered_once_it_is_served_or_after_a_second() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let harness = Harness::build(Arc::new(MemoryStore::new()), |state| {
        state.applied(Arc::new(move |revision| {
            seen.lock().unwrap().push(revision);
            Box::pin(tokio::time::sleep(Duration::from_millis(20)))
        }))
    });
    let start = Instant::now();
    let path = "/apisix/admin/routes/1";
    harness.json("PUT", path, route("/a")).await.assert_ok();
    harness.json("PATCH", path, json!({"desc": "d"})).await.assert_ok();
    harness.send("DELETE", path, "").await.assert_ok();
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(*asked.lock().unwrap(), [1, 2, 3]);
    harness.send("GET", path, "").await;
    assert_eq!(asked.lock().unwrap().len(), 3);

    let stuck = Harness::build(Arc::new(MemoryStore::new()), |state| {
        state.applied(Arc::new(|_| Box::pin(std::future::pending())))
    });
    let start = Instant::now();
    stuck.json("PUT", path, route("/a")).await.assert_ok();
    let waited = start.elapsed();
    assert!(waited >= APPLIED_WAIT_MAX && waited < APPLIED_WAIT_MAX * 3, "{waited:?}");
}

#[tokio::test]
async fn plugins_and_schemas_can_be_discovered() {
    let reloads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reloads);
    let harness = Harness::build(Arc::new(MemoryStore::new()), |state| {
        state.reload_plugins(Arc::new(move || _ = counted.fetch_add(1, Ordering::Relaxed)))
    });
    let get = async |path: &str| harness.send("GET", &format!("/apisix/admin{path}"), "").await;
    let names = json!([
        "basic-auth",
        "key-auth",
        "limit-count",
        "traffic-split",
        "response-rewrite",
        "echo",
        "http-logger",
        "aws-lambda",
        "azure-functions"
    ]);
    get("/plugins/list").await.assert(200, names);
    get("/plugins/list?subsystem=stream").await.assert(200, json!([]));
    let bad = get("/plugins/list?subsystem=x").await;
    assert_eq!((bad.status.as_u16(), bad.text.as_str()), (400, "invalid subsystem passed"));

    let catalog = harness.catalog.load_full();
    let schema = &catalog.get("aws-lambda").unwrap().schema;
    for path in ["/plugins/aws-lambda", "/schema/plugins/aws-lambda"] {
        let shown = get(path).await;
        shown.assert(200, schema.clone());
        assert_eq!(shown.header("x-api-version"), "v3");
    }
    get("/plugins/echo?schema_type=consumer").await.assert_error(400, "not found schema");
    let all = get("/plugins?all=true").await;
    let lambda = &all.assert_ok().json()["aws-lambda"];
    assert_eq!(*lambda, json!({"version": 0.1, "priority": -1899, "schema": schema}));
    assert_eq!(all.json().as_object().unwrap().len(), 9);
    let auth = &all.json()["key-auth"];
    assert_eq!(
        (&auth["type"], &auth["consumer_schema"]["required"][0]),
        (&json!("auth"), &json!("key"))
    );
    let schema = get("/plugins/key-auth?schema_type=consumer").await;
    assert_eq!(schema.assert_ok().json(), auth["consumer_schema"]);
    let streams = get("/plugins/echo?subsystem=stream").await;
    streams.assert_error(404, "plugin not found in subsystem stream");

    for name in [
        "route",
        "service",
        "upstream",
        "ssl",
        "plugin_config",
        "consumer_group",
        "global_rule",
        "consumer",
        "credential",
        "proto",
        "stream_route",
        "graphql_cost_decoration",
    ] {
        let schema = get(&format!("/schema/{name}")).await;
        assert_eq!(schema.assert_ok().json()["type"], "object", "{name}");
    }
    for name in ["nope", "secret", "plugin_metadata"] {
        let error = format!("not found schema: {name}");
        get(&format!("/schema/{name}")).await.assert_error(400, &error);
    }
    let done = harness.send("PUT", "/apisix/admin/plugins/reload", "").await;
    assert_eq!((done.text.as_str(), reloads.load(Ordering::Relaxed)), ("done", 1));
}

#[tokio::test]
async fn metadata_of_a_plugin_that_has_none_is_refused() {
    let harness = Harness::new();
    let path = "/apisix/admin/plugin_metadata/aws-lambda";
    let refused = harness.json("PUT", path, json!({"a": 1})).await;
    refused.assert_error(400, "invalid configuration: plugin aws-lambda takes no metadata");
}

#[tokio::test]
async fn defaults_are_neither_stored_nor_shown() {
    let harness = Harness::new();
    let conf = json!({"function_uri": "http://x"});
    let body = json!({"uri": "/a", "plugins": {"aws-lambda": conf}});
    harness.json("PUT", "/apisix/admin/routes/1", body).await.assert_ok();
    let stored = harness.stored("/routes/1").await.unwrap();
    assert_eq!(stored["plugins"]["aws-lambda"], conf);
    let names: Vec<_> = stored.as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

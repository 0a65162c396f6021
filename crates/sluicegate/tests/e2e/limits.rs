//! Limits and what steers traffic, in front of upstreams and of functions.

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, Response, get};
use sluicegate_testkit::{Answer, GatewayProcess, Origin, Redis, certs, wait};

#[test]
fn limit_count_counts_alike_before_an_upstream_and_a_function() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("through"));
    let limit = json!({"count": 2, "time_window": 3600, "rejected_code": 429});
    for path in both(&gate, &origin, "limit-count", &limit) {
        let answers: Vec<Response> = (0..3).map(|_| get(gate.http, path)).collect();
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 429], "{path}");
        let left: Vec<_> = answers.iter().map(|a| a.header("X-RateLimit-Remaining")).collect();
        assert_eq!(left, [Some("1"), Some("0"), Some("0")], "{path}");
    }
    assert_eq!(origin.requests().len(), 4, "nothing that was refused was sent on");
}

#[test]
fn limit_count_is_exact_over_all_cores_and_survives_changes_elsewhere() {
    let gate =
        GatewayProcess::with(crate::BINARY, json!({"nginx_config": {"worker_processes": 4}}));
    let origin = Origin::text("through");
    let route = |count: u32, desc: &str| {
        json!({
            "uri": "/a",
            "desc": desc,
            "plugins": {"limit-count": {"count": count, "time_window": 3600, "key_type": "constant", "key": "all"}},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        })
    };
    gate.set("/routes/r", &route(100, "first"));
    let through = || -> usize {
        let ask = || {
            let mut client = Client::connect(gate.http);
            (0..10).filter(|_| client.get("/a").status == 200).count()
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        })
    };
    assert_eq!(through(), 100);
    gate.set("/routes/r", &route(100, "described otherwise"));
    assert_eq!(through(), 0, "the same limit goes on counting");
    gate.set("/routes/r", &route(50, "described otherwise"));
    assert_eq!(through(), 50, "another limit counts anew");
}

#[test]
fn what_a_service_limits_is_counted_for_all_its_routes() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("through"));
    gate.set(
        "/services/s",
        &json!({
            "plugins": {"limit-count": {"count": 2, "time_window": 3600}},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        }),
    );
    for path in ["/a", "/b"] {
        gate.set(&format!("/routes{path}"), &json!({"uri": path, "service_id": "s"}));
    }
    let statuses = ["/a", "/b", "/a", "/b"].map(|path| get(gate.http, path).status);
    assert_eq!(statuses, [200, 200, 503, 503]);
}

#[test]
fn a_group_takes_one_configuration() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("through"));
    let route = |path: &str, count: u32| {
        json!({
            "uri": path,
            "plugins": {"limit-count": {"count": count, "time_window": 3600, "group": "g"}},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        })
    };
    gate.set("/routes/a", &route("/a", 1));
    assert_eq!(get(gate.http, "/a").status, 200);
    let (status, answer) = gate.put("/routes/b", &route("/b", 2));
    assert_eq!(status, 400);
    assert!(answer.to_string().contains("group conf mismatched"), "{answer}");
    gate.set("/routes/b", &route("/b", 1));
    assert_eq!(get(gate.http, "/b").status, 503);
}

/// Routes `/upstream` and `/function` with a plugin, in front of `origin` as what they say; their
/// paths.
fn both(gate: &GatewayProcess, origin: &Origin, plugin: &str, config: &Value) -> [&'static str; 2] {
    let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gate.set(
        "/routes/upstream",
        &json!({"uri": "/upstream", "plugins": {plugin: config}, "upstream": upstream}),
    );
    let function = json!({"function_uri": format!("http://{}/", origin.addr)});
    gate.set(
        "/routes/function",
        &json!({"uri": "/function", "plugins": {plugin: config, "aws-lambda": function}}),
    );
    ["/upstream", "/function"]
}

#[test]
fn three_gateways_share_a_limit_through_redis() {
    let Some(redis) = Redis::start(&[]) else { return };
    let origin = Origin::text("through");
    let gates = [(); 3].map(|()| GatewayProcess::start(crate::BINARY));
    let limit = json!({
        "count": 30, "time_window": 86_400_000, "policy": "redis",
        "redis_host": "127.0.0.1", "redis_port": redis.addr(0).port(),
    });
    for path in gates.each_ref().map(|gate| both(gate, &origin, "limit-count", &limit))[0] {
        let ask = |gate: &GatewayProcess| {
            let mut client = Client::connect(gate.http);
            (0..20).filter(|_| client.get(path).status == 200).count()
        };
        let through: usize = std::thread::scope(|scope| {
            let asked: Vec<_> = gates.iter().map(|gate| scope.spawn(move || ask(gate))).collect();
            asked.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        assert_eq!(through, 30, "{path}");
    }
}

#[test]
fn limit_req_limit_conn_and_workflow_answer_alike_before_an_upstream_and_a_function() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("through"));
    let slow = json!({"rate": 0.01, "burst": 1, "key": "remote_addr", "nodelay": true});
    let conn = json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"});
    let workflow = json!({"rules": [{"actions": [["return", {"code": 403}]]}]});
    for (plugin, config, statuses) in [
        ("limit-req", slow, [200, 200, 503]),
        // One after the other they are never two at once.
        ("limit-conn", conn, [200, 200, 200]),
        ("workflow", workflow, [403, 403, 403]),
    ] {
        for path in both(&gate, &origin, plugin, &config) {
            let got = [(); 3].map(|()| {
                let status = get(gate.http, path).status;
                // A place is given back when the answer is sent, which may be seen a little later.
                std::thread::sleep(std::time::Duration::from_millis(20));
                status
            });
            assert_eq!(got, statuses, "{plugin} {path}");
        }
    }
}

#[test]
fn limit_conn_and_the_limits_of_workflow_refuse_before_an_upstream_and_a_function() {
    let gate = GatewayProcess::start(crate::BINARY);
    let origin = slow_origin();
    let conn = json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr", "rejected_code": 429});
    let count = json!({"count": 1, "time_window": 3600, "rejected_code": 429});
    let acting = |plugin: &str, config: &Value| json!({"rules": [{"actions": [[plugin, config]]}]});
    for (plugin, config) in [
        ("limit-conn", conn.clone()),
        ("workflow", acting("limit-conn", &conn)),
        ("workflow", acting("limit-count", &count)),
    ] {
        for path in both(&gate, &origin, plugin, &config) {
            let before = origin.requests().len();
            assert_eq!(at_once(&[&gate], path, 3), [200, 429, 429], "{plugin} {config} {path}");
            assert_eq!(origin.requests().len() - before, 1, "{plugin} {config} {path}");
        }
    }
}

#[test]
fn three_gateways_share_limit_req_and_limit_conn_through_redis() {
    let Some(redis) = Redis::start(&[]) else { return };
    let origin = slow_origin();
    let gates = [(); 3].map(|()| GatewayProcess::start(crate::BINARY));
    let with_redis = |mut config: Value| {
        config["policy"] = json!("redis");
        config["redis_host"] = json!("127.0.0.1");
        config["redis_port"] = json!(redis.addr(0).port());
        config
    };
    let req = json!({"rate": 0.001, "burst": 4, "nodelay": true, "key": "remote_addr", "rejected_code": 429});
    let conn = json!({"conn": 4, "burst": 1, "default_conn_delay": 0.001, "key": "remote_addr", "rejected_code": 429});
    for (plugin, config) in [("limit-req", with_redis(req)), ("limit-conn", with_redis(conn))] {
        for path in gates.each_ref().map(|gate| both(gate, &origin, plugin, &config))[0] {
            let statuses = at_once(&gates.each_ref(), path, 12);
            let through = statuses.iter().filter(|status| **status == 200).count();
            let refused = statuses.iter().filter(|status| **status == 429).count();
            assert_eq!((through, refused), (5, 7), "{plugin} {path}");
        }
    }
}

#[test]
fn a_redis_behind_tls_is_verified_by_the_trusted_certificates() {
    let authority = certs::Authority::new();
    let Some(redis) = Redis::tls(&authority.issue(&["127.0.0.1"])) else { return };
    let files = tempfile::tempdir().expect("there is a place for files");
    let pem = files.path().join("trusted.pem");
    std::fs::write(&pem, authority.pem()).expect("files can be written");
    let trusting = json!({"apisix": {"ssl": {"ssl_trusted_certificate": pem}}});
    let trusting = GatewayProcess::with(crate::BINARY, trusting);
    let other = GatewayProcess::start(crate::BINARY);
    let origin = Origin::text("through");
    for (gate, verify, status) in
        [(&trusting, true, 200), (&trusting, false, 200), (&other, true, 500), (&other, false, 200)]
    {
        let limit = json!({
            "count": 10, "time_window": 3600, "policy": "redis", "redis_host": "127.0.0.1",
            "redis_port": redis.tls_port(), "redis_ssl": true, "redis_ssl_verify": verify,
        });
        for path in both(gate, &origin, "limit-count", &limit) {
            assert_eq!(get(gate.http, path).status, status, "{verify} {path}");
        }
    }
    let plain = json!({
        "count": 10, "time_window": 3600, "policy": "redis", "redis_host": "127.0.0.1",
        "redis_port": redis.tls_port(),
    });
    let path = both(&other, &origin, "limit-count", &plain)[0];
    assert_eq!(get(other.http, path).status, 500, "this port speaks TLS and nothing else");
}

fn slow_origin() -> Origin {
    Origin::start(|_| Answer::text("through").after(std::time::Duration::from_millis(1500)))
}

/// The statuses of so many requests at once, sorted.
fn at_once(gates: &[&GatewayProcess], path: &str, count: usize) -> Vec<u16> {
    let mut statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = |at: usize| {
            let addr = gates[at % gates.len()].http;
            scope.spawn(move || get(addr, path).status)
        };
        let asked: Vec<_> = (0..count).map(ask).collect();
        asked.into_iter().map(|thread| thread.join().unwrap_or(0)).collect()
    });
    statuses.sort_unstable();
    statuses
}

#[test]
fn api_breaker_opens_for_a_failing_upstream_and_a_failing_function() {
    let gate = GatewayProcess::start(crate::BINARY);
    let origin = Origin::start(|_| Answer::status(500).body("failing"));
    let breaker = json!({
        "break_response_code": 502,
        "break_response_body": "{\"broken\":true}",
        "break_response_headers": [{"key": "X-Path", "value": "$uri"}],
        "unhealthy": {"http_statuses": [500], "failures": 2},
    });
    for path in both(&gate, &origin, "api-breaker", &breaker) {
        let before = origin.requests().len();
        assert_eq!([(); 2].map(|()| get(gate.http, path).status), [500, 500], "{path}");
        // The state is noted when an answer is sent, which may be seen a little later.
        let open = wait::until("the circuit to open", || {
            Some(get(gate.http, path)).filter(|answer| answer.status == 502)
        });
        assert_eq!(open.json(), json!({"broken": true}), "{path}");
        assert_eq!(open.header("X-Path"), Some(path));
        assert!(origin.requests().len() - before <= 4, "{path}: it is left alone");
    }
}

#[test]
fn traffic_split_follows_changes_of_the_upstreams_it_names() {
    let (gate, own) = (GatewayProcess::start(crate::BINARY), Origin::text("own"));
    let [a, b] = ["a", "b"].map(Origin::text);
    let at = |origin: &Origin| json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gate.set("/upstreams/u", &at(&a));
    let rules = json!({"rules": [{"weighted_upstreams": [{"upstream_id": "u"}]}]});
    let paths = both(&gate, &own, "traffic-split", &rules);
    assert_eq!(get(gate.http, paths[0]).text(), "a");
    assert_eq!(get(gate.http, paths[1]).text(), "own", "a function answers for itself");
    gate.set("/upstreams/u", &at(&b));
    assert_eq!(get(gate.http, paths[0]).text(), "b");
}

//! Limits and what steers traffic, in front of upstreams and of functions.

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, Response, get};
use sluicegate_testkit::{GatewayProcess, Origin};

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

//! Which route answers: APISIX's rules, seen from outside. The rules themselves have their tables
//! in the gateway crate; here is the way from the Admin API to the answer.

use serde_json::{Value, json};
use sluicegate_testkit::client::{get, request};
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::wire::h2_exchange;

#[test]
fn an_unknown_route_is_answered_as_apisix_answers_it() {
    let world = World::start(json!({}));
    world.route("known", json!({"uri": "/known", "methods": ["GET"], "host": "known.test"}));
    for (method, path, host) in [
        ("GET", "/unknown", "known.test"),
        ("POST", "/known", "known.test"),
        ("GET", "/known", "other.test"),
    ] {
        let answer = request(world.gate.http, method, path, &[("Host", host)], "");
        assert_eq!(answer.status, 404, "{method} {path} {host}");
        assert_eq!(answer.text(), "{\"error_msg\":\"404 Route Not Found\"}\n");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    }
    let plain = http::Request::get("http://known.test/unknown").body(()).expect("it is valid");
    let answer = h2_exchange(world.gate.http, plain, &[]).expect("an answer");
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (404, &b"{\"error_msg\":\"404 Route Not Found\"}\n"[..])
    );
}

#[test]
fn exact_beats_prefix_and_longer_beats_shorter_then_priority_decides() {
    let world = World::start(json!({}));
    for (id, route) in [
        ("root", json!({"uri": "/*"})),
        ("a", json!({"uri": "/a/*"})),
        ("ab", json!({"uri": "/a/b*"})),
        ("exact", json!({"uri": "/a/b"})),
        ("several", json!({"uris": ["/x", "/y/*"]})),
        ("low", json!({"uri": "/p", "priority": 1})),
        ("high", json!({"uri": "/p", "priority": 2})),
    ] {
        world.route(id, route);
    }
    for (path, id) in [
        ("/", "root"),
        ("/other", "root"),
        ("/a", "root"),
        ("/a/", "a"),
        ("/a/x", "a"),
        ("/a/b", "exact"),
        ("/a/bc", "ab"),
        ("/a/b/c", "ab"),
        ("/x", "several"),
        ("/x/", "root"),
        ("/y/z", "several"),
        ("/p", "high"),
        // Routes see the path decoded once, without dots and doubled slashes.
        ("/a%2Fb", "exact"),
        ("//a//b", "exact"),
        ("/x/../a/./b", "exact"),
        ("/%61/b?q=1", "exact"),
    ] {
        assert_eq!(world.ask("GET", path, &[]), id, "{path}");
    }
}

#[test]
fn a_candidate_whose_conditions_fail_leaves_the_request_to_the_next() {
    let world = World::start(json!({}));
    for (id, route) in [
        ("post", json!({"uri": "/a", "methods": ["POST"]})),
        ("host", json!({"uri": "/a", "hosts": ["a.test", "*.b.test"]})),
        ("inner", json!({"uri": "/a", "host": "x.b.test", "methods": ["PUT"]})),
        ("far", json!({"uri": "/a", "remote_addr": "10.0.0.0/8", "priority": 9})),
        ("near", json!({"uri": "/near", "remote_addrs": ["10.0.0.0/8", "127.0.0.0/8"]})),
        ("off", json!({"uri": "/a", "status": 0, "priority": 10})),
        ("off2", json!({"uri": "/off", "status": 0})),
        ("any", json!({"uri": "/*"})),
    ] {
        world.route(id, route);
    }
    for (method, path, host, id) in [
        ("GET", "/a", "none.test", "any"),
        ("POST", "/a", "none.test", "post"),
        ("GET", "/a", "a.test", "host"),
        ("GET", "/a", "A.TEST:8080", "host"),
        ("GET", "/a", "y.b.test", "host"),
        ("GET", "/a", "z.y.b.test", "host"),
        ("GET", "/a", "b.test", "any"),
        ("GET", "/a", "x.b.test", "host"),
        ("PUT", "/a", "x.b.test", "inner"),
        ("GET", "/near", "none.test", "near"),
        ("GET", "/off", "none.test", "any"),
    ] {
        assert_eq!(world.ask(method, path, &[("Host", host)]), id, "{method} {path} {host}");
    }
    // Switched on again, the first one takes over.
    world.gate.patch("/routes/off", &json!({"status": 1}));
    assert_eq!(world.ask("GET", "/a", &[]), "off");
}

#[test]
fn vars_look_at_arguments_cookies_headers_and_built_in_variables() {
    let world = World::start(json!({}));
    for (n, vars) in [
        json!([["arg_name", "==", "json"]]),
        json!([["arg_age", ">", 18], ["arg_age", "<=", 30]]),
        json!([["cookie_device", "==", "ios"]]),
        json!([["http_x_version", "~~", "^v[0-9]+$"]]),
        json!([["http_x_version", "~*", "^BETA"]]),
        json!([["arg_in", "in", ["one", "two"]]]),
        json!([["request_method", "==", "PATCH"]]),
        json!([["OR", ["arg_or", "==", "1"], ["arg_or", "==", "2"]]]),
        json!([["arg_not", "!", "==", "x"], ["arg_not", "~=", "y"], ["http_x_not", "==", "1"]]),
        json!([["arg_has", "has", "x"]]),
        json!([["http_x_ip", "ipmatch", ["10.0.0.0/8", "::1"]]]),
        json!([["host", "==", "vars.test"]]),
        json!([
            ["!AND", ["http_x_nand", "==", "1"], ["arg_nand", "==", "1"]],
            ["http_x_nand", "==", "1"]
        ]),
    ]
    .into_iter()
    .enumerate()
    {
        world.route(&format!("v{n}"), json!({"uri": "/v", "vars": vars}));
    }
    world.route("none", json!({"uri": "/v", "priority": -1}));
    let is = |method: &str, path: &str, headers: &[(&str, &str)], id: &str| {
        assert_eq!(world.ask(method, path, headers), id, "{method} {path} {headers:?}");
    };
    is("GET", "/v", &[], "none");
    is("GET", "/v?name=json", &[], "v0");
    is("GET", "/v?name=xml", &[], "none");
    is("GET", "/v?age=19", &[], "v1");
    is("GET", "/v?age=18", &[], "none");
    is("GET", "/v?age=31", &[], "none");
    is("GET", "/v", &[("Cookie", "a=b; device=ios")], "v2");
    is("GET", "/v", &[("X-Version", "v12")], "v3");
    is("GET", "/v", &[("X-Version", "beta-1")], "v4");
    is("GET", "/v?in=two", &[], "v5");
    is("GET", "/v?in=three", &[], "none");
    is("PATCH", "/v", &[], "v6");
    is("GET", "/v?or=2", &[], "v7");
    is("GET", "/v?not=z", &[("X-Not", "1")], "v8");
    is("GET", "/v?not=x", &[("X-Not", "1")], "none");
    is("GET", "/v", &[("X-Ip", "10.1.2.3")], "v10");
    is("GET", "/v", &[("X-Ip", "11.1.2.3")], "none");
    is("GET", "/v", &[("Host", "vars.test")], "v11");
    is("GET", "/v", &[("X-Nand", "1")], "v12");
    is("GET", "/v?nand=1", &[("X-Nand", "1")], "none");
}

#[test]
fn form_fields_decide_and_the_body_reaches_the_origin_all_the_same() {
    let world = World::start(json!({}));
    world.route("form", json!({"uri": "/f", "vars": [["post_arg_name", "==", "json"]]}));
    world.route("else", json!({"uri": "/f", "priority": -1}));
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let large = format!("name=json&fill={}", "x".repeat(1 << 20));
    for (headers, body, id) in [
        (vec![form], "name=json", "form"),
        (vec![form], "a=b&name=json&c=d", "form"),
        (vec![form], "name=xml", "else"),
        (vec![form], "", "else"),
        (vec![form], large.as_str(), "form"),
        (vec![("Content-Type", "text/plain")], "name=json", "else"),
    ] {
        let shown = &body[..body.len().min(30)];
        let answer = request(world.gate.http, "POST", "/f", &headers, body);
        assert_eq!(answer.header("x-route"), Some(id), "{headers:?} {shown}");
        assert!(
            world.origin.last().body == body.as_bytes(),
            "{headers:?} {shown}: the body is whole"
        );
    }
    // In chunks, by HTTP/2, and with a second request behind it.
    let mut client = sluicegate_testkit::Client::connect(world.gate.http);
    client.send("POST /f HTTP/1.1\r\nHost: gate.test\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nname=\r\n4\r\njson\r\n0\r\n\r\n");
    assert_eq!(client.response().header("x-route"), Some("form"));
    assert_eq!(world.origin.last().body, b"name=json");
    assert_eq!(client.get("/f").header("x-route"), Some("else"));
    let h2 = http::Request::post("http://gate.test/f").header(form.0, form.1).body(());
    let answer = h2_exchange(world.gate.http, h2.expect("it is valid"), &[b"name=", b"json"]);
    assert_eq!(answer.expect("an answer").headers["x-route"], "form");
}

#[test]
fn a_service_brings_its_hosts_and_its_upstream() {
    let world = World::start(json!({}));
    let upstream = world.upstream("from-service");
    world.gate.set("/services/s", &json!({"hosts": ["service.test"], "upstream": upstream}));
    world.gate.set("/routes/by", &json!({"uri": "/s", "service_id": "s"}));
    world.route("own", json!({"uri": "/s2", "service_id": "s"}));
    assert_eq!(world.ask("GET", "/s", &[("Host", "service.test")]), "from-service");
    assert_eq!(world.ask("GET", "/s", &[("Host", "other.test")]), "404");
    assert_eq!(world.ask("GET", "/s2", &[("Host", "service.test")]), "own");
    // A change of the service is a change of its routes.
    let upstream = world.upstream("changed");
    world.gate.set("/services/s", &json!({"hosts": ["moved.test"], "upstream": upstream}));
    assert_eq!(world.ask("GET", "/s", &[("Host", "service.test")]), "404");
    assert_eq!(world.ask("GET", "/s", &[("Host", "moved.test")]), "changed");
}

#[test]
fn the_three_ways_of_matching_are_chosen_in_the_configuration() {
    let routes = [
        ("wide", json!({"uri": "/a/*"})),
        ("narrow", json!({"uri": "/a/b", "host": "*.test"})),
        ("host", json!({"uri": "/*", "host": "exact.test"})),
        ("user", json!({"uri": "/user/:name/card", "host": "p.other"})),
    ];
    for (mode, asked) in [
        // The host first: an exact one wins over a longer path elsewhere.
        (
            "radixtree_host_uri",
            [
                ("/a/b", "exact.test", "host"),
                ("/a/b", "x.test", "narrow"),
                ("/a/c", "x.test", "wide"),
                ("/user/me/card", "p.other", "404"),
            ],
        ),
        (
            "radixtree_uri",
            [
                ("/a/b", "exact.test", "narrow"),
                ("/a/b", "x.test", "narrow"),
                ("/a/c", "exact.test", "wide"),
                ("/user/me/card", "p.other", "404"),
            ],
        ),
        (
            "radixtree_uri_with_parameter",
            [
                ("/a/b", "exact.test", "narrow"),
                ("/a/b", "x.test", "narrow"),
                ("/a/c", "exact.test", "wide"),
                ("/user/me/card", "p.other", "user"),
            ],
        ),
    ] {
        let world = World::start(json!({"apisix": {"router": {"http": mode}}}));
        for (id, route) in &routes {
            world.route(id, route.clone());
        }
        for (path, host, id) in asked {
            assert_eq!(world.ask("GET", path, &[("Host", host)]), id, "{mode}: {host}{path}");
        }
    }
}

#[test]
fn switches_of_the_path_change_what_routes_see() {
    let routes = |world: &World| {
        world.route("a", json!({"uri": "/a"}));
        world.route("slash", json!({"uri": "/b/*"}));
    };
    for (apisix, path, id) in [
        (json!({}), "/a/", "404"),
        (json!({"delete_uri_tail_slash": true}), "/a/", "a"),
        (json!({"delete_uri_tail_slash": true}), "/a", "a"),
        (json!({}), "/a;v=1", "404"),
        (json!({"normalize_uri_like_servlet": true}), "/a;v=1", "a"),
        (json!({"normalize_uri_like_servlet": true}), "/x;y/../a", "a"),
        (json!({}), "/b%2Fc", "slash"),
        (json!({"match_uri_encoded_slash": true}), "/b%2Fc", "404"),
        (json!({"match_uri_encoded_slash": true}), "/b/c%2Fd", "slash"),
    ] {
        let world = World::start(json!({"apisix": apisix}));
        routes(&world);
        assert_eq!(world.ask("GET", path, &[]), id, "{apisix} {path}");
    }
}

#[test]
fn a_change_is_seen_by_the_next_request() {
    let world = World::start(json!({}));
    let mut client = sluicegate_testkit::Client::connect(world.gate.http);
    for n in 0..50 {
        world.route("1", json!({"uri": format!("/{n}")}));
        assert_eq!(client.get(&format!("/{n}")).status, 200, "at once, on an open connection");
        assert_eq!(get(world.gate.http, &format!("/{n}")).status, 200, "and on a new one");
        if n > 0 {
            assert_eq!(client.get(&format!("/{}", n - 1)).status, 404);
        }
    }
    world.gate.delete("/routes/1");
    assert_eq!(client.get("/49").status, 404);
}

#[test]
fn a_route_that_lost_its_upstream_does_not_let_its_requests_fall_through() {
    let world = World::start(json!({}));
    world.route("any", json!({"uri": "/*"}));
    world.gate.set("/upstreams/u", &world.upstream("gone"));
    world.gate.set("/routes/narrow", &json!({"uri": "/narrow", "upstream_id": "u"}));
    assert_eq!(world.ask("GET", "/narrow", &[]), "gone");
    assert_eq!(world.gate.delete("/upstreams/u").0, 400, "it is in use");
    assert_eq!(world.gate.delete("/upstreams/u?force=true").0, 200);
    // As with APISIX.
    assert_eq!(world.ask("GET", "/narrow", &[]), "502");
}

/// A gateway and an origin that answers with the name of the route that led to it: each route's
/// upstream gets it as its host.
struct World {
    gate: GatewayProcess,
    origin: Origin,
}

impl World {
    fn start(config: Value) -> Self {
        let origin = Origin::start(|received| {
            Answer::text("x").header("X-Route", received.header("host").unwrap_or("none"))
        });
        Self { gate: GatewayProcess::with(crate::BINARY, config), origin }
    }

    fn upstream(&self, name: &str) -> Value {
        json!({
            "type": "roundrobin", "nodes": {self.origin.addr.to_string(): 1},
            "pass_host": "rewrite", "upstream_host": name,
        })
    }

    #[track_caller]
    fn route(&self, id: &str, mut route: Value) {
        route["upstream"] = self.upstream(id);
        self.gate.set(&format!("/routes/{id}"), &route);
    }

    /// The name of the route that answers, or the status when none does.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let answer = request(self.gate.http, method, path, headers, "");
        answer.header("x-route").map_or_else(|| answer.status.to_string(), str::to_owned)
    }
}

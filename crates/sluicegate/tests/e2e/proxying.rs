//! Proxying to upstreams: whose turn it is, what they are called, which failures are answered how,
//! what is tried again and what is kept open.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_testkit::certs::{Authority, self_signed};
use sluicegate_testkit::client::{Client, get, request};
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::wire::RawOrigin;

#[test]
fn nodes_take_turns_by_their_weights_smoothly() {
    let origins = [Origin::text("a"), Origin::text("b"), Origin::text("c")];
    let [a, b, c] = &origins;
    let gate = gateway();
    let map = json!({a.addr.to_string(): 1, b.addr.to_string(): 2, c.addr.to_string(): 3});
    let list = json!([node(a.addr, 1), node(b.addr, 2), node(c.addr, 3)]);
    for (way, nodes) in [("map", map), ("list", list)] {
        upstream(&gate, json!({"nodes": nodes}));
        let mut client = Client::connect(gate.http);
        let turns: Vec<String> = (0..24).map(|_| client.get("/").text()).collect();
        for round in turns.chunks(6) {
            let count = |name: &str| round.iter().filter(|turn| *turn == name).count();
            assert_eq!([count("a"), count("b"), count("c")], [1, 2, 3], "{way}: {turns:?}");
        }
    }
}

#[test]
fn a_weight_of_zero_and_a_lower_priority_mean_only_when_nothing_else_is_left() {
    let [a, b] = [Origin::text("a"), Origin::text("b")];
    let dead = dead_addr();
    let gate = gateway();
    let prior = |addr: SocketAddr, priority: i32| {
        let mut node = node(addr, 1);
        node["priority"] = json!(priority);
        node
    };
    for (nodes, turns) in [
        (json!([node(a.addr, 1), node(b.addr, 0)]), "aaaa"),
        (json!([node(a.addr, 0)]), "aaaa"),
        (json!([prior(a.addr, 0), prior(b.addr, -1)]), "aaaa"),
        (json!([prior(a.addr, 0), prior(b.addr, 1)]), "bbbb"),
        (json!([prior(dead, 1), prior(b.addr, 0)]), "bbbb"),
    ] {
        upstream(&gate, json!({"nodes": nodes}));
        let got: String = (0..4).map(|_| get(gate.http, "/").text()).collect();
        assert_eq!(got, turns, "{nodes}");
    }
}

#[test]
fn a_node_may_have_an_ipv6_address_or_a_name() {
    let gate = gateway();
    let named = Origin::text("by name");
    // A name is looked up off the request path: localhost is known without a nameserver.
    upstream(&gate, json!({"nodes": {format!("localhost:{}", named.addr.port()): 1}}));
    assert_eq!(get(gate.http, "/").text(), "by name");
    let Ok(six) = RawOrigin::on("::1", |peer, _| {
        peer.head()?;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix")
    }) else {
        return println!("skipped in part: this machine has no IPv6 loopback");
    };
    let port = six.addr.port();
    for nodes in
        [json!({format!("[::1]:{port}"): 1}), json!([{"host": "[::1]", "port": port, "weight": 1}])]
    {
        upstream(&gate, json!({"nodes": nodes}));
        assert_eq!(get(gate.http, "/").text(), "six", "{nodes}");
    }
}

#[test]
fn an_upstream_may_stand_in_the_route_the_service_or_by_itself() {
    let origin = Origin::text("origin");
    let gate = gateway();
    let inline = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gate.set("/upstreams/u", &inline);
    gate.set("/services/with", &json!({"upstream": inline}));
    gate.set("/services/by-id", &json!({"upstream_id": "u"}));
    for (path, route) in [
        ("/route", json!({"upstream": inline})),
        ("/by-id", json!({"upstream_id": "u"})),
        ("/service", json!({"service_id": "with"})),
        ("/service-by-id", json!({"service_id": "by-id"})),
    ] {
        let mut route = route;
        route["uri"] = json!(path);
        gate.set(&format!("/routes{path}"), &route);
        assert_eq!(get(gate.http, path).text(), "origin", "{path}");
    }
    // A change of the upstream reaches everybody who uses it.
    let other = Origin::text("other");
    gate.set("/upstreams/u", &json!({"type": "roundrobin", "nodes": {other.addr.to_string(): 1}}));
    for (path, body) in [
        ("/route", "origin"),
        ("/by-id", "other"),
        ("/service", "origin"),
        ("/service-by-id", "other"),
    ] {
        assert_eq!(get(gate.http, path).text(), body, "{path}");
    }
}

#[test]
fn pass_host_decides_what_a_node_is_called() {
    let origin =
        Origin::start(|received| Answer::text(received.header("host").unwrap_or("").to_owned()));
    let gate = gateway();
    let own = origin.addr.to_string();
    for (config, host) in [
        (json!({}), "Client.Test:81"),
        (json!({"pass_host": "pass"}), "Client.Test:81"),
        (json!({"pass_host": "node"}), own.as_str()),
        (json!({"pass_host": "rewrite", "upstream_host": "rw.example"}), "rw.example"),
        (json!({"pass_host": "rewrite", "upstream_host": "rw.example:8080"}), "rw.example:8080"),
    ] {
        let mut settings = json!({"nodes": {own.as_str(): 1}});
        for (key, value) in config.as_object().expect("it is a map") {
            settings[key] = value.clone();
        }
        upstream(&gate, settings);
        let answer = request(gate.http, "GET", "/", &[("Host", "Client.Test:81")], "");
        assert_eq!(answer.text(), host, "{config}");
    }
}

#[test]
fn a_tls_node_is_believed_or_verified_as_configured() {
    let authority = Authority::new();
    let trusted = Origin::tls(&authority.issue(&["up.test"]), |_| Answer::text("trusted"));
    let stranger = Origin::tls(&self_signed(&["up.test"]), |_| Answer::text("stranger"));
    let mut gate = GatewayProcess::prepare(
        crate::BINARY,
        &sluicegate_testkit::gateway::config(json!({
            "apisix": {"ssl": {"ssl_trusted_certificate": "conf/authority.pem"}},
            "nginx_config": {"worker_processes": 1},
        }))
        .to_string(),
    );
    std::fs::write(gate.path("conf/authority.pem"), authority.pem()).expect("the prefix is ours");
    gate.launch();
    for (addr, tls, host, status) in [
        (trusted.addr, json!(null), "any.test", 200),
        (stranger.addr, json!(null), "any.test", 200),
        (stranger.addr, json!({"verify": false}), "any.test", 200),
        (trusted.addr, json!({"verify": true}), "up.test", 200),
        (trusted.addr, json!({"verify": true}), "UP.test:443", 200),
        (trusted.addr, json!({"verify": true}), "other.test", 502),
        (stranger.addr, json!({"verify": true}), "up.test", 502),
    ] {
        let mut config = json!({"scheme": "https", "nodes": {addr.to_string(): 1}});
        if !tls.is_null() {
            config["tls"] = tls.clone();
        }
        upstream(&gate, config);
        let answer = request(gate.http, "GET", "/", &[("Host", host)], "");
        assert_eq!(answer.status, status, "{addr} {tls} {host}");
    }
    // Plain bytes from a node that should speak TLS, and TLS to one that does not.
    let plain =
        RawOrigin::start(|peer, _| peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    upstream(&gate, json!({"scheme": "https", "nodes": {plain.addr.to_string(): 1}}));
    assert_eq!(get(gate.http, "/").status, 502);
    upstream(&gate, json!({"nodes": {trusted.addr.to_string(): 1}}));
    assert_eq!(get(gate.http, "/").status, 502);
}

#[test]
fn a_tls_node_gets_the_client_certificate_it_asks_for() {
    let authority = Authority::new();
    let origin = demanding_origin(&authority);
    let gate = gateway();
    let (known, unknown) = (authority.issue(&["gate.test"]), self_signed(&["gate.test"]));
    let nodes = json!({origin.addr.to_string(): 1});
    for (pair, status) in [(None, 502), (Some(&known), 200), (Some(&unknown), 502)] {
        let mut config = json!({"scheme": "https", "nodes": nodes});
        if let Some(pair) = pair {
            config["tls"] = json!({"client_cert": pair.cert, "client_key": pair.key});
        }
        upstream(&gate, config);
        assert_eq!(get(gate.http, "/").status, status, "{}", pair.is_some());
    }
    // The same from an ssl resource.
    gate.set("/ssls/mine", &json!({"type": "client", "cert": known.cert, "key": known.key}));
    upstream(&gate, json!({"scheme": "https", "nodes": nodes, "tls": {"client_cert_id": "mine"}}));
    assert_eq!(get(gate.http, "/").text(), "welcome");
}

#[test]
fn failures_of_an_upstream_are_answered_as_apisix_answers_them() {
    let gate = gateway();
    let closing = Origin::start(|_| Answer::none());
    let silent = Origin::start(|_| Answer::text("late").after(Duration::from_secs(20)));
    let full = FullOrigin::start();
    let quick = json!({"connect": 0.4, "send": 0.4, "read": 0.4});
    let told = |addr: SocketAddr| json!({"nodes": {addr.to_string(): 1}, "timeout": quick});
    for (case, config, status, from_upstream) in [
        ("refused", told(dead_addr()), 502, true),
        ("closed without an answer", told(closing.addr), 502, true),
        ("no connection in time", told(full.addr), 504, true),
        ("no answer in time", told(silent.addr), 504, true),
        ("no nodes", json!({"nodes": {}}), 503, false),
        ("no nodes in a list", json!({"nodes": []}), 503, false),
    ] {
        upstream(&gate, config);
        let began = Instant::now();
        let answer = get(gate.http, "/");
        assert!(began.elapsed() < Duration::from_secs(5), "{case}");
        assert_eq!(answer.status, status, "{case}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{case}");
        let code = status.to_string();
        let expected = from_upstream.then_some(code.as_str());
        assert_eq!(answer.header("x-apisix-upstream-status"), expected, "{case}");
    }
    // A name without an address; who is asked for it is on this machine.
    let dns = json!({"apisix": {"dns_resolver": ["127.0.0.1:1"], "resolver_timeout": 1}});
    let gate = GatewayProcess::with(crate::BINARY, dns);
    let quick = json!({"nodes": {"no-such.test:80": 1}, "timeout": quick});
    upstream(&gate, quick);
    let answer = get(gate.http, "/");
    assert_eq!((answer.status, answer.header("x-apisix-upstream-status")), (503, None));
    // A route without any upstream.
    gate.set("/routes/1", &json!({"uri": "/*", "plugins": {}}));
    let status = get(gate.http, "/").status;
    assert_eq!(status, 503);
}

#[test]
fn an_upstreams_own_answer_is_marked_when_it_is_a_5xx() {
    let origin = Origin::start(|received| {
        Answer::status(received.path()[1..].parse().unwrap_or(200)).body("own words")
    });
    let gate = gateway();
    gate.set_proxy("1", "/*", origin.addr);
    for (status, marked) in [
        (200, false),
        (301, false),
        (404, false),
        (499, false),
        (500, true),
        (502, true),
        (504, true),
        (599, true),
    ] {
        let answer = get(gate.http, &format!("/{status}"));
        assert_eq!((answer.status, answer.text().as_str()), (status, "own words"));
        let code = status.to_string();
        let expected = marked.then_some(code.as_str());
        assert_eq!(answer.header("x-apisix-upstream-status"), expected, "{status}");
    }
}

#[test]
fn an_answer_that_is_no_http_is_a_502() {
    let gate = gateway();
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(2000));
    for answer in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 xx OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        &huge,
        &many,
    ] {
        let bytes = answer.to_owned();
        let origin = RawOrigin::start(move |peer, _| {
            peer.head()?;
            peer.send(&bytes)
        });
        gate.set_proxy("1", "/*", origin.addr);
        let shown = &answer[..answer.len().min(80)];
        assert_eq!(get(gate.http, "/").status, 502, "{shown:?}");
    }
}

#[test]
fn a_routes_own_timeout_wins() {
    let origin = Origin::start(|_| Answer::text("late").after(Duration::from_millis(900)));
    let gate = gateway();
    let nodes = json!({origin.addr.to_string(): 1});
    let times = |read: f64| json!({"connect": 5, "send": 5, "read": read});
    for (upstream, route, status) in [(5.0, 0.3, 504), (0.3, 5.0, 200)] {
        gate.set(
            "/routes/1",
            &json!({
                "uri": "/*", "timeout": times(route),
                "upstream": {"type": "roundrobin", "nodes": nodes, "timeout": times(upstream)},
            }),
        );
        assert_eq!(get(gate.http, "/").status, status, "upstream {upstream}, route {route}");
    }
}

#[test]
fn another_node_is_tried_as_far_as_no_request_can_be_run_twice() {
    let closing = Origin::start(|_| Answer::none());
    let good = Origin::text("good");
    let dead = dead_addr();
    let gate = gateway();
    for (first, method, body, retries, status, case) in [
        (dead, "GET", "", None, 200, "nothing was sent"),
        (dead, "POST", "body", None, 200, "nothing was sent: a POST may go elsewhere"),
        (dead, "POST", "", None, 200, "nothing was sent: a POST without a body too"),
        (dead, "GET", "", Some(0), 502, "no retries allowed"),
        (dead, "GET", "", Some(1), 200, "one retry allowed"),
        (closing.addr, "GET", "", None, 200, "a GET does no harm twice"),
        (closing.addr, "DELETE", "", None, 200, "a DELETE does no harm twice"),
        (closing.addr, "POST", "", None, 502, "a POST that was sent is not repeated"),
        (closing.addr, "PATCH", "", None, 502, "a PATCH that was sent is not repeated"),
        (closing.addr, "POST", "body", None, 502, "nor one with a body"),
        (closing.addr, "GET", "", Some(0), 502, "no retries allowed"),
    ] {
        let prior = |addr, priority| {
            let mut node = node(addr, 1);
            node["priority"] = json!(priority);
            node
        };
        let mut config = json!({"nodes": [prior(first, 1), prior(good.addr, 0)]});
        if let Some(retries) = retries {
            config["retries"] = json!(retries);
        }
        upstream(&gate, config);
        good.clear();
        closing.clear();
        let answer = request(gate.http, method, "/", &[], body);
        assert_eq!(answer.status, status, "{method}: {case}");
        let arrived = good.requests();
        assert_eq!(arrived.len(), usize::from(status == 200), "{method}: {case}");
        assert!(arrived.iter().all(|r| r.body == body.as_bytes()), "{method}: {case}");
        assert_eq!(
            closing.requests().len(),
            usize::from(first == closing.addr),
            "{method}: {case}"
        );
    }
}

#[test]
fn the_access_log_lists_every_try_as_nginx_does() {
    let good = Origin::text("good");
    let gate = gateway();
    let prior = |addr, priority| {
        let mut node = node(addr, 1);
        node["priority"] = json!(priority);
        node
    };
    let other = SocketAddr::from(([127, 0, 0, 2], 1));
    for (target, last, statuses) in [("/up", good.addr, "502, 200"), ("/down", other, "502, 502")] {
        upstream(&gate, json!({"nodes": [prior(dead_addr(), 1), prior(last, 0)]}));
        get(gate.http, target);
        let line = gate.wait_for_access_line(&format!("GET {target} "));
        let tries = format!(" {}, {last} {statuses} 0.", dead_addr());
        let (_, times) = line.split_once(&tries).unwrap_or_else(|| panic!("{tries}: {line}"));
        let times: Vec<&str> = times.split(' ').take(3).collect();
        assert!(times[0].ends_with(',') && times[1].starts_with("0."), "{line}");
        assert!(times[2].starts_with('"'), "two times and no more: {line}");
    }
}

#[test]
fn no_further_node_is_tried_after_the_retry_timeout() {
    let slow = Origin::start(|_| Answer::none().after(Duration::from_millis(700)));
    let good = Origin::text("good");
    let gate = gateway();
    for (limit, status) in [(0.0, 200), (0.3, 502), (5.0, 200)] {
        let mut first = node(slow.addr, 1);
        first["priority"] = json!(1);
        upstream(&gate, json!({"nodes": [first, node(good.addr, 1)], "retry_timeout": limit}));
        assert_eq!(get(gate.http, "/").status, status, "retry_timeout {limit}");
    }
}

#[test]
fn upstream_connections_are_used_again() {
    let gate = gateway();
    for (pool, closes, requests, connections) in [
        (json!(null), false, 10, 1),
        (json!(null), true, 10, 10),
        (json!({"size": 1, "idle_timeout": 60, "requests": 4}), false, 10, 3),
    ] {
        let origin = Origin::start(move |_| match closes {
            true => Answer::text("x").header("Connection", "close").close(),
            false => Answer::text("x"),
        });
        let mut config = json!({"nodes": {origin.addr.to_string(): 1}});
        if !pool.is_null() {
            config["keepalive_pool"] = pool.clone();
        }
        upstream(&gate, config);
        for _ in 0..requests {
            let answer = get(gate.http, "/");
            assert_eq!((answer.status, answer.header("connection")), (200, None));
        }
        assert_eq!(origin.accepted(), connections, "{pool} {closes}");
    }
    // What is idle for too long is closed.
    let origin = Origin::text("x");
    upstream(
        &gate,
        json!({
            "nodes": {origin.addr.to_string(): 1},
            "keepalive_pool": {"size": 5, "idle_timeout": 1, "requests": 100},
        }),
    );
    get(gate.http, "/");
    assert_eq!(origin.open(), 1);
    sluicegate_testkit::wait::until("the idle connection to be closed", || {
        (origin.open() == 0).then_some(())
    });
}

#[test]
fn a_change_of_one_route_costs_another_no_connection() {
    let origin = Origin::text("x");
    let gate = gateway();
    gate.set_proxy("1", "/a", origin.addr);
    for n in 0..5 {
        get(gate.http, "/a");
        gate.set_proxy("2", &format!("/b{n}"), dead_addr());
        gate.set_proxy("1", "/a", origin.addr);
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn an_idle_connection_that_died_is_replaced_once() {
    // Answers the first request of a connection, and closes when a second one arrives.
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let origin = RawOrigin::start(move |peer, _| {
        let head = peer.head()?;
        peer.body(&head)?;
        count.fetch_add(1, Ordering::SeqCst);
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        peer.head()?;
        Err(io::ErrorKind::ConnectionAborted.into())
    });
    let gate = gateway();
    gate.set_proxy("1", "/*", origin.addr);
    for (method, body, second) in
        [("GET", "", 200), ("PUT", "", 200), ("POST", "", 502), ("POST", "body", 502)]
    {
        let before = (origin.accepted(), seen.load(Ordering::SeqCst));
        assert_eq!(request(gate.http, method, "/", &[], body).status, 200, "{method} {body}");
        assert_eq!(request(gate.http, method, "/", &[], body).status, second, "{method} {body}");
        let answered = usize::from(second == 200);
        assert_eq!(origin.accepted() - before.0, 1 + answered, "{method} {body}");
        assert_eq!(seen.load(Ordering::SeqCst) - before.1, 1 + answered, "{method} {body}");
        if second == 200 {
            // Uses up the connection the second answer left behind.
            assert_eq!(request(gate.http, "POST", "/", &[], "").status, 502);
        }
    }
    // A connection that was closed while idle is noticed before it is used: not even a POST fails.
    let closing = Origin::start(|_| Answer::text("x").close());
    gate.set_proxy("1", "/*", closing.addr);
    for n in 1..=5 {
        assert_eq!(request(gate.http, "POST", "/", &[], "body").status, 200);
        sluicegate_testkit::wait::until("the origin to close", || {
            (closing.open() == 0).then_some(())
        });
        assert_eq!(closing.accepted(), n);
    }
}

#[test]
fn bytes_behind_an_answer_are_never_taken_for_the_next_one() {
    // Whatever a node sends beyond its answer, now or a moment later, ends its connection.
    let gate = gateway();
    for (answer, late) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\n\r\n", false),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", false),
    ] {
        let origin = RawOrigin::start(move |peer, _| {
            loop {
                peer.head()?;
                let more = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
                if late {
                    peer.send(answer)?;
                    std::thread::sleep(Duration::from_millis(20));
                    peer.send(more)?;
                } else {
                    peer.send(format!("{answer}{more}"))?;
                }
            }
        });
        gate.set_proxy("1", "/*", origin.addr);
        for round in 0..3 {
            let got = get(gate.http, "/");
            assert!(!got.text().contains("evil"), "{answer:?}, late: {late}, round {round}");
            assert!(answer.contains(&format!(" {} ", got.status)), "{answer:?}: {}", got.status);
            std::thread::sleep(Duration::from_millis(40));
        }
        assert_eq!(origin.accepted(), 3, "{answer:?}, late: {late}");
    }
}

/// A gateway with one request thread, so that turns and connections can be counted.
fn gateway() -> GatewayProcess {
    GatewayProcess::with(crate::BINARY, json!({"nginx_config": {"worker_processes": 1}}))
}

/// Route 1 leads everything to this upstream.
#[track_caller]
fn upstream(gate: &GatewayProcess, mut upstream: Value) {
    upstream["type"] = json!("roundrobin");
    gate.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
}

fn node(addr: SocketAddr, weight: u32) -> Value {
    json!({"host": addr.ip().to_string(), "port": addr.port(), "weight": weight})
}

/// An address where nobody listens.
fn dead_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// An address that takes no further connection and does not refuse any.
struct FullOrigin {
    addr: SocketAddr,
    _listener: socket2::Socket,
    _waiting: Vec<std::net::TcpStream>,
}

impl FullOrigin {
    fn start() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("the system has sockets");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).expect("loopback has a free port");
        listener.listen(0).expect("a bound socket can listen");
        let addr = listener.local_addr().ok().and_then(|a| a.as_socket()).expect("it is bound");
        let mut waiting = Vec::new();
        while let Ok(tcp) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200))
        {
            waiting.push(tcp);
            assert!(waiting.len() < 50, "the queue of the listener fills up");
        }
        Self { addr, _listener: listener, _waiting: waiting }
    }
}

/// A TLS origin that talks only to clients with a certificate of this authority.
fn demanding_origin(authority: &Authority) -> RawOrigin {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(&authority.pem())).expect("it is a certificate");
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
    let pair = authority.issue(&["up.test"]);
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier.build().expect("there is a root"))
        .with_single_cert(
            vec![der(&pair.cert)],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("it is PEM"),
        )
        .expect("the key belongs to the certificate");
    let config = Arc::new(config);
    RawOrigin::start(move |peer, _| {
        use std::io::{BufRead, Write};
        let tls = rustls::ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        let mut stream =
            io::BufReader::new(rustls::StreamOwned::new(tls, peer.0.get_ref().try_clone()?));
        let mut line = String::new();
        while stream.read_line(&mut line)? > 2 {
            line.clear();
        }
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nwelcome";
        stream.get_mut().write_all(answer.as_bytes())?;
        stream.get_mut().conn.send_close_notify();
        stream.get_mut().flush()
    })
}

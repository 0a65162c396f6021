//! Which node gets a request: health checks by probes and by answers, and the balancers that look
//! at the request or at the nodes' load.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::certs::self_signed;
use sluicegate_testkit::client::{Client, get, request};
use sluicegate_testkit::dns::{Data, Dns};
use sluicegate_testkit::{Answer, GatewayProcess, Origin, wait};

#[test]
fn a_node_that_fails_its_probes_gets_no_requests_until_it_passes_them_again() {
    let status = Arc::new(AtomicU16::new(200));
    let sick = {
        let status = status.clone();
        Origin::start(move |asked| match asked.path() {
            "/ready" => Answer::status(status.load(Ordering::SeqCst)),
            _ => Answer::text("sick"),
        })
    };
    let well = Origin::text("well");
    let (gate, control) = gateway(json!({}));
    gate.set(
        "/upstreams/1",
        &json!({
            "type": "roundrobin",
            "nodes": {sick.addr.to_string(): 1, well.addr.to_string(): 1},
            "checks": {"active": {
                "http_path": "/ready",
                "host": "probe.test",
                "req_headers": ["X-Probe: yes"],
                "healthy": {"interval": 1, "successes": 1},
                "unhealthy": {"interval": 1, "http_failures": 1},
            }},
        }),
    );
    gate.set("/routes/1", &json!({"uri": "/*", "upstream_id": "1"}));
    // Nobody asked for it: nothing is checked and there is nothing to show.
    let empty = json!({"name": "/apisix/upstreams/1", "nodes": {}, "type": "http"});
    assert_eq!(get(control, "/v1/healthcheck/upstreams/1").json(), empty);
    assert_eq!(turns(&gate, "/", 4), "sick well sick well");
    let probe = wait::until("a probe", || {
        sick.requests().into_iter().find(|asked| asked.path() == "/ready")
    });
    assert_eq!(probe.header("host"), Some("probe.test"));
    assert_eq!((probe.header("x-probe"), probe.header("connection")), (Some("yes"), Some("close")));

    status.store(503, Ordering::SeqCst);
    let node = wait_for_status(control, "upstreams/1", sick.addr, "unhealthy");
    let counter = json!({"http_failure": 1, "success": 0, "tcp_failure": 0, "timeout_failure": 0});
    assert_eq!(node["counter"], counter);
    assert_eq!(node["hostname"], "probe.test");
    assert_eq!(turns(&gate, "/", 4), "well well well well");
    let page = request(control, "GET", "/v1/healthcheck", &[("Accept", "text/html")], "").text();
    assert!(page.contains("<td>unhealthy</td>"), "{page}");

    // What is known stays when the configuration changes.
    gate.patch("/upstreams/1", &json!({"desc": "changed"}));
    assert_eq!(turns(&gate, "/", 2), "well well");

    status.store(200, Ordering::SeqCst);
    wait_for_status(control, "upstreams/1", sick.addr, "healthy");
    let both = turns(&gate, "/", 4);
    assert_eq!(both.matches("sick").count(), 2, "{both}");

    gate.delete("/routes/1");
    gate.delete("/upstreams/1");
    // What was under way is over soon; then nobody asks any more.
    std::thread::sleep(Duration::from_millis(300));
    sick.clear();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(sick.requests().len(), 0, "probes went on after the upstream was gone");
}

#[test]
fn a_node_that_cannot_be_reached_goes_and_comes_back() {
    for kind in ["tcp", "http"] {
        let well = Origin::text("well");
        let place = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let down = place.local_addr().expect("the listener is bound");
        drop(place);
        let (gate, control) = gateway(json!({}));
        gate.set(
            "/routes/1",
            &json!({"uri": "/*", "upstream": {
                "type": "roundrobin",
                "nodes": {down.to_string(): 1, well.addr.to_string(): 1},
                "checks": {"active": {
                    "type": kind,
                    "healthy": {"interval": 1, "successes": 1},
                    "unhealthy": {"interval": 1, "tcp_failures": 2},
                }},
            }}),
        );
        assert_eq!(turns(&gate, "/", 2), "well well", "the other node is tried");
        let node = wait_for_status(control, "routes/1", down, "unhealthy");
        assert_eq!(node["counter"]["tcp_failure"], 2, "{kind}");
        // It is up again: this is its port.
        let listener = TcpListener::bind(down).expect("the port is still free");
        let serve = std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let mut tcp = tcp.expect("a connection comes");
                let mut head = [0; 4096];
                let read = std::io::Read::read(&mut tcp, &mut head).unwrap_or_default();
                let answer =
                    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nback";
                let _ = std::io::Write::write_all(&mut tcp, answer);
                if head[..read].starts_with(b"GET /last ") {
                    return;
                }
            }
        });
        wait_for_status(control, "routes/1", down, "healthy");
        let both = turns(&gate, "/", 4);
        assert_eq!(both.matches("back").count(), 2, "{kind}: {both}");
        get(down, "/last");
        serve.join().expect("the node served");
    }
}

#[test]
fn answers_alone_can_make_a_node_unhealthy() {
    let bad = Origin::start(|_| Answer::status(500));
    let good = Origin::text("good");
    let (gate, control) = gateway(json!({}));
    gate.set(
        "/services/1",
        &json!({"upstream": {
            "type": "roundrobin",
            "nodes": {bad.addr.to_string(): 1, good.addr.to_string(): 1},
            "checks": {
                "active": {"http_path": "/"},
                "passive": {"unhealthy": {"http_statuses": [500], "http_failures": 2}},
            },
        }}),
    );
    gate.set("/routes/1", &json!({"uri": "/*", "service_id": "1"}));
    let mut client = Client::connect(gate.http);
    let statuses: Vec<u16> = (0..10).map(|_| client.get("/").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 2, "{statuses:?}");
    let node = wait_for_status(control, "services/1", bad.addr, "unhealthy");
    assert_eq!(node["counter"]["http_failure"], 2);
    assert_eq!(bad.requests().len(), 2, "no probes were asked for");
}

#[test]
fn when_every_node_is_unhealthy_all_are_used() {
    let [a, b] = [Origin::start(|_| Answer::status(500)), Origin::start(|_| Answer::status(500))];
    let (gate, control) = gateway(json!({}));
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": {
            "type": "chash",
            "key": "arg_k",
            "nodes": {a.addr.to_string(): 1, b.addr.to_string(): 1},
            "checks": {"active": {"unhealthy": {"interval": 1, "http_failures": 1},
                                  "healthy": {"interval": 1}}},
        }}),
    );
    get(gate.http, "/");
    for origin in [&a, &b] {
        wait_for_status(control, "routes/1", origin.addr, "unhealthy");
        origin.clear();
    }
    for n in 0..40 {
        assert_eq!(get(gate.http, &format!("/used?k={n}")).status, 500);
    }
    for origin in [&a, &b] {
        let used = origin.requests().iter().filter(|asked| asked.path() == "/used").count();
        assert!(used > 5, "{used} of 40");
    }
}

#[test]
fn probes_over_tls_verify_the_certificate_if_asked_to() {
    let pair = self_signed(&["node.test"]);
    let node = Origin::tls(&pair, |_| Answer::text("tls"));
    let (gate, control) = gateway(json!({}));
    for (id, verify, status) in [(1, false, "healthy"), (2, true, "unhealthy")] {
        gate.set(
            &format!("/routes/{id}"),
            &json!({"uri": format!("/{id}"), "upstream": {
                "scheme": "https",
                "type": "roundrobin",
                "nodes": {node.addr.to_string(): 1},
                "checks": {"active": {
                    "type": "https", "host": "node.test", "https_verify_certificate": verify,
                    "healthy": {"interval": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1},
                }},
            }}),
        );
        get(gate.http, &format!("/{id}"));
        wait_for_status(control, &format!("routes/{id}"), node.addr, status);
    }
}

#[test]
fn the_host_of_probes_comes_before_every_other_name() {
    let dns = Dns::start(&[("node.test", 300, Data::A([127, 0, 0, 1]))]);
    let (gate, _) = gateway(json!({"dns_resolver": [dns.addr.to_string()]}));
    for (id, extra, active, host) in [
        ("1", json!({}), json!({"host": "probe.test"}), "probe.test"),
        ("2", json!({}), json!({}), "node.test"),
        (
            "3",
            json!({"pass_host": "rewrite", "upstream_host": "own.test"}),
            json!({"host": "probe.test"}),
            "probe.test",
        ),
        ("4", json!({"pass_host": "rewrite", "upstream_host": "own.test"}), json!({}), "own.test"),
    ] {
        let origin = Origin::text("ok");
        let mut active = active;
        active["http_path"] = json!("/ready");
        active["healthy"] = json!({"interval": 1});
        let mut upstream = json!({
            "type": "roundrobin",
            "nodes": [{"host": "node.test", "port": origin.addr.port(), "weight": 1}],
            "checks": {"active": active},
        });
        upstream.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let path = format!("/{id}");
        gate.set(&format!("/routes/{id}"), &json!({"uri": path, "upstream": upstream}));
        wait::until("the name to resolve", || (get(gate.http, &path).status == 200).then_some(()));
        let probe = wait::until("a probe", || {
            origin.requests().into_iter().find(|asked| asked.path() == "/ready")
        });
        assert_eq!(probe.header("host"), Some(host), "{extra}");
    }
}

#[test]
fn a_name_with_ipv6_addresses_only_is_served_where_ipv6_is_enabled() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        println!("skipped: this machine has no IPv6 loopback");
        return;
    };
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = client.read(&mut head);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nsix";
            let _ = client.write_all(answer.as_bytes());
        }
    });
    let dns = Dns::start(&[
        ("six.test", 300, Data::Aaaa(std::net::Ipv6Addr::LOCALHOST)),
        ("both.test", 300, Data::Aaaa(std::net::Ipv6Addr::LOCALHOST)),
        ("both.test", 300, Data::A([127, 0, 0, 1])),
    ]);
    for (enabled, name, answer) in
        [(true, "six.test", Some("six")), (false, "six.test", None), (true, "both.test", None)]
    {
        let settings = json!({"dns_resolver": [dns.addr.to_string()], "enable_ipv6": enabled});
        let (gate, _) = gateway(settings);
        let nodes = json!([{"host": name, "port": port, "weight": 1}]);
        let upstream = json!({"type": "roundrobin", "nodes": nodes});
        gate.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
        // IPv4 is preferred, and nobody listens on that port there.
        let got = get(gate.http, "/");
        let text = (got.status == 200).then(|| got.text());
        assert_eq!(text.as_deref(), answer, "{enabled} {name}: {}", got.status);
        assert!(answer.is_some() || got.status >= 500, "{enabled} {name}: {}", got.status);
    }
}

#[test]
fn answers_of_dns_are_used_for_as_long_as_is_configured_whatever_their_ttl() {
    let one = Origin::text("one");
    for (valid, ttl, follows) in [(1, 300, true), (300, 1, false)] {
        let dns = Dns::start(&[("node.test", ttl, Data::A([127, 0, 0, 1]))]);
        let settings = json!({"dns_resolver": [dns.addr.to_string()], "dns_resolver_valid": valid});
        let (gate, _) = gateway(settings);
        let nodes = json!([{"host": "node.test", "port": one.addr.port(), "weight": 1}]);
        let upstream = json!({"type": "roundrobin", "nodes": nodes});
        gate.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
        wait::until("the name to resolve", || (get(gate.http, "/").status == 200).then_some(()));
        let first = dns.asked().len();
        let again =
            wait::within(Duration::from_secs(4), || (dns.asked().len() > first).then_some(()));
        assert_eq!(again.is_some(), follows, "valid {valid} s, TTL {ttl} s");
    }
}

#[test]
fn health_checks_can_be_switched_off() {
    let node = Origin::start(|_| Answer::status(500));
    let (gate, control) = gateway(json!({"disable_upstream_healthcheck": true}));
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": {
            "type": "roundrobin",
            "nodes": {node.addr.to_string(): 1},
            "checks": {"active": {"healthy": {"interval": 1}}},
        }}),
    );
    get(gate.http, "/");
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(node.requests().len(), 1, "nobody probes");
    assert_eq!(get(control, "/v1/healthcheck/routes/1").json()["nodes"], json!({}));
}

#[test]
fn a_key_stays_with_its_node_while_another_is_down() {
    // They keep no connection, which would outlive them.
    let closing =
        |name| Origin::start(move |_| Answer::text(name).header("Connection", "close").close());
    let [a, b, c] = ["a", "b", "c"].map(closing);
    let (gate, _) = gateway(json!({}));
    let nodes: serde_json::Map<String, Value> =
        [&a, &b, &c].iter().map(|origin| (origin.addr.to_string(), json!(1))).collect();
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": {
            "type": "chash", "hash_on": "header", "key": "X-Tenant", "nodes": nodes,
        }}),
    );
    let ask = |n: usize| {
        let tenant = format!("tenant-{n}");
        request(gate.http, "GET", "/", &[("X-Tenant", tenant.as_str())], "").text()
    };
    let before: Vec<String> = (0..60).map(ask).collect();
    for name in ["a", "b", "c"] {
        assert!(before.iter().filter(|node| *node == name).count() > 5, "{before:?}");
    }
    drop(b);
    for (n, node) in before.iter().enumerate() {
        let now = ask(n);
        match node.as_str() {
            "b" => assert_ne!(now, "b"),
            other => assert_eq!(now, other, "tenant-{n}"),
        }
    }
}

#[test]
fn least_conn_sends_requests_where_the_fewest_are() {
    let free = Arc::new(AtomicBool::new(false));
    let slow = {
        let free = free.clone();
        Origin::start(move |_| {
            wait::until("leave to answer", || free.load(Ordering::SeqCst).then_some(()));
            Answer::text("slow")
        })
    };
    let quick = Origin::text("quick");
    let (gate, _) = gateway(json!({}));
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": {
            "type": "least_conn",
            "nodes": {slow.addr.to_string(): 1, quick.addr.to_string(): 1},
        }}),
    );
    // Idle nodes take turns: one of the first two requests is for the slow node, and stays there.
    let mut waiting = Client::connect(gate.http);
    waiting.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let first = wait::until("a node to be asked", || {
        let [slow, quick] = [slow.requests().len(), quick.requests().len()];
        (slow + quick > 0).then_some(slow > 0)
    });
    if !first {
        assert_eq!(waiting.response().text(), "quick");
        waiting.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        slow.wait_for(0);
    }
    for _ in 0..6 {
        // A request counts until it is logged, which is after its answer was read.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(turns(&gate, "/", 1), "quick");
    }
    free.store(true, Ordering::SeqCst);
    assert_eq!(waiting.response().text(), "slow");
    assert!(turns(&gate, "/", 3).contains("slow"), "it has nothing to do now");
}

/// A gateway with a Control API.
fn gateway(apisix: Value) -> (GatewayProcess, SocketAddr) {
    let mut changes = json!({"apisix": {"enable_control": true, "control": {"port": 0}}});
    for (name, value) in apisix.as_object().into_iter().flatten() {
        changes["apisix"][name] = value.clone();
    }
    let gate = GatewayProcess::with(crate::BINARY, changes);
    let line = gate.wait_for_error_line("control=");
    let control = line.split("control=").nth(1).and_then(|rest| {
        let addr = rest.trim_start_matches("Some(").split([')', ' ']).next()?;
        addr.parse().ok()
    });
    (gate, control.expect("the line names the address"))
}

fn turns(gate: &GatewayProcess, path: &str, count: usize) -> String {
    let all: Vec<String> = (0..count).map(|_| get(gate.http, path).text()).collect();
    all.join(" ")
}

#[track_caller]
fn wait_for_status(control: SocketAddr, place: &str, addr: SocketAddr, status: &str) -> Value {
    let what = format!("{addr} to be {status}");
    wait::until(&what, || {
        let shown = get(control, &format!("/v1/healthcheck/{place}")).json();
        let node = shown["nodes"].as_array()?.iter().find(|node| node["port"] == addr.port())?;
        (node["status"] == status).then(|| node.clone())
    })
}

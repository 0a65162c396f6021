//! What the other side is told: forwarding headers, whom to believe about the client, hop-by-hop
//! fields, the `Server` header, the case of names, the PROXY protocol.

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, get, request, request_bytes};
use sluicegate_testkit::gateway::free_port;
use sluicegate_testkit::wait::until;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, Received};

use crate::wire::h2_exchange;

#[test]
fn an_origin_is_told_about_the_client_and_the_port_it_came_to() {
    let (gate, origin) = start(json!({}));
    for (sent, expected) in [
        (
            vec![],
            [
                Some("127.0.0.1"),
                Some("127.0.0.1"),
                Some("http"),
                Some("gate.test:81"),
                Some("81"),
                None,
            ],
        ),
        // Nobody is trusted: what the client says of itself is replaced, the list is appended to.
        (
            vec![
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "evil.test"),
                ("X-Forwarded-Port", "1"),
                ("Forwarded", "for=9.9.9.9"),
                ("X-Forwarded-For", "1.2.3.4"),
            ],
            [
                Some("1.2.3.4, 127.0.0.1"),
                Some("127.0.0.1"),
                Some("http"),
                Some("gate.test:81"),
                Some("81"),
                None,
            ],
        ),
        // The default rules believe 127.0.0.1 about X-Real-IP.
        (
            vec![("X-Real-IP", "5.6.7.8"), ("X-Forwarded-For", "1.2.3.4")],
            [
                Some("1.2.3.4, 5.6.7.8"),
                Some("5.6.7.8"),
                Some("http"),
                Some("gate.test:81"),
                Some("81"),
                None,
            ],
        ),
    ] {
        let headers = [vec![("Host", "gate.test:81")], sent.clone()].concat();
        assert_eq!(request(gate.http, "GET", "/", &headers, "").status, 200);
        assert_eq!(told(&origin.last()), expected.map(|v| v.map(str::to_owned)), "{sent:?}");
    }
    // A host without a port came to ours.
    request(gate.http, "GET", "/", &[("Host", "gate.test")], "");
    assert_eq!(told(&origin.last())[4], Some(gate.http.port().to_string()));
    // HTTP/2 tells the same.
    let plain = http::Request::get("http://gate.test:81/").body(()).expect("it is valid");
    h2_exchange(gate.http, plain, &[]).expect("an answer");
    let seen = told(&origin.last());
    assert_eq!(seen[0].as_deref(), Some("127.0.0.1"));
    assert_eq!(seen[3].as_deref(), Some("gate.test:81"));
}

#[test]
fn a_client_among_the_trusted_addresses_is_believed_and_another_is_not() {
    let sent = [
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "front.test"),
        ("X-Forwarded-Port", "8443"),
        ("Forwarded", "for=1.2.3.4"),
    ];
    let all = |values: [&str; 6]| values.map(|v| (!v.is_empty()).then(|| v.to_owned()));
    for (trusted, expected) in [
        (
            json!(["127.0.0.0/8"]),
            all(["1.2.3.4, 127.0.0.1", "127.0.0.1", "https", "front.test", "8443", "for=1.2.3.4"]),
        ),
        (json!(["10.0.0.0/8"]), all(["127.0.0.1", "127.0.0.1", "http", "gate.test", "PORT", ""])),
    ] {
        let (gate, origin) = start(json!({"apisix": {"trusted_addresses": trusted}}));
        let port = gate.http.port().to_string();
        let expected = expected.map(|v| v.map(|v| if v == "PORT" { port.clone() } else { v }));
        assert_eq!(request(gate.http, "GET", "/", &sent, "").status, 200);
        assert_eq!(told(&origin.last()), expected, "{trusted}");
        // A trusted client that says nothing leaves it to us.
        assert_eq!(get(gate.http, "/").status, 200);
        assert_eq!(told(&origin.last())[2].as_deref(), Some("http"), "{trusted}");
    }
}

#[test]
fn route_conditions_see_forwarding_headers_of_trusted_clients_only() {
    for (trusted, believed) in [
        (json!(null), [false, false, true, false]),
        (json!(["10.0.0.0/8"]), [false; 4]),
        (json!(["127.0.0.0/8"]), [true; 4]),
    ] {
        let (gate, origin) = start(json!({"apisix": {"trusted_addresses": trusted}}));
        let to_origin = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
        for ((name, value), believed) in [
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "front.test"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("Forwarded", "for=1.2.3.4"),
        ]
        .into_iter()
        .zip(believed)
        {
            let variable = format!("http_{}", name.to_ascii_lowercase().replace('-', "_"));
            let vars = json!([[variable, "==", value]]);
            gate.set("/routes/1", &json!({"uri": "/*", "vars": vars, "upstream": to_origin}));
            let status = request(gate.http, "GET", "/", &[(name, value)], "").status;
            assert_eq!(status == 200, believed, "{name} {trusted}: {status}");
        }
    }
}

#[test]
fn the_clients_address_follows_the_real_ip_rules() {
    for (rules, header, value, address) in [
        (json!({}), "X-Real-IP", "5.6.7.8", "5.6.7.8"),
        (json!({}), "X-Real-IP", "2001:db8::1", "2001:db8::1"),
        (json!({}), "X-Real-IP", "nonsense", "127.0.0.1"),
        (json!({}), "X-Forwarded-For", "5.6.7.8", "127.0.0.1"),
        (json!({"real_ip_from": ["10.0.0.0/8"]}), "X-Real-IP", "5.6.7.8", "127.0.0.1"),
        (
            json!({"real_ip_header": "X-Forwarded-For"}),
            "X-Forwarded-For",
            "5.6.7.8, 127.0.0.1",
            "127.0.0.1",
        ),
        (
            json!({"real_ip_header": "X-Forwarded-For", "real_ip_recursive": "on"}),
            "X-Forwarded-For",
            "9.9.9.9, 5.6.7.8, 127.0.0.1",
            "5.6.7.8",
        ),
    ] {
        let origin = Origin::text("x");
        let gate = GatewayProcess::with(crate::BINARY, json!({"nginx_config": {"http": rules}}));
        // The address that the origin is told and the one that routes see are the same.
        gate.set_proxy("any", "/*", origin.addr);
        let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
        gate.set(
            "/routes/one",
            &json!({"uri": "/*", "remote_addr": address, "priority": 9, "upstream": upstream}),
        );
        assert_eq!(request(gate.http, "GET", "/", &[(header, value)], "").status, 200);
        assert_eq!(origin.last().header("x-real-ip"), Some(address), "{rules} {header}: {value}");
        let line = gate.wait_for_access_line("GET / ");
        assert!(line.starts_with(&format!("{address} ")), "{line}");
        gate.delete("/routes/any");
        assert_eq!(request(gate.http, "GET", "/", &[(header, value)], "").status, 200, "{rules}");
    }
}

#[test]
fn header_names_keep_their_case_and_order_both_ways() {
    let origin = Origin::start(|_| {
        Answer::text("x")
            .header("X-oDd-CASE", "1")
            .header("x-lower", "2")
            .header("Set-Cookie", "a=1")
            .header("Set-Cookie", "b=2")
    });
    let gate = GatewayProcess::with(crate::BINARY, json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    let answer =
        request(gate.http, "GET", "/", &[("x-MiXeD", "a"), ("X-Dup", "1"), ("X-DUP", "2")], "");
    let names: Vec<&str> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["X-oDd-CASE", "x-lower", "Set-Cookie"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    let received = origin.last();
    let names: Vec<&str> = received.headers.iter().map(|(name, _)| name.as_str()).collect();
    let sent: Vec<&str> =
        names.iter().copied().filter(|n| ["x-MiXeD", "X-Dup", "X-DUP"].contains(n)).collect();
    assert_eq!(sent, ["x-MiXeD", "X-Dup", "X-DUP"], "{names:?}");
}

#[test]
fn hop_by_hop_fields_end_here_both_ways() {
    let origin = Origin::start(|_| {
        Answer::text("x")
            .header("Connection", "X-Hop, keep-alive")
            .header("X-Hop", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Authenticate", "Basic")
            .header("Upgrade", "h2c")
            .header("X-Stays", "1")
    });
    let gate = GatewayProcess::with(crate::BINARY, json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    let answer = request(
        gate.http,
        "GET",
        "/",
        &[
            ("Connection", "X-Mine, close, keep-alive"),
            ("X-Mine", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("TE", "trailers, deflate"),
            ("Upgrade", "h2c"),
            ("X-Stays", "1"),
        ],
        "",
    );
    let received = origin.last();
    for name in [
        "connection",
        "x-mine",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "transfer-encoding",
    ] {
        assert_eq!(received.header(name), None, "{name} reached the origin");
    }
    assert_eq!(received.header("x-stays"), Some("1"));
    for name in ["x-hop", "keep-alive", "upgrade"] {
        assert_eq!(answer.header(name), None, "{name} reached the client");
    }
    assert_eq!((answer.header("x-stays"), answer.header("connection")), (Some("1"), Some("close")));
    // By HTTP/2 none of them may appear at all.
    let plain = http::Request::get("http://gate.test/").body(()).expect("it is valid");
    let answer = h2_exchange(gate.http, plain, &[]).expect("an answer");
    for name in ["connection", "keep-alive", "upgrade", "x-hop", "transfer-encoding"] {
        assert!(!answer.headers.contains_key(name), "{name}: {:?}", answer.headers);
    }
    assert!(answer.headers.contains_key("x-stays"));
}

#[test]
fn the_server_header_is_ours_with_or_without_the_version_or_another() {
    for (config, server) in [
        (json!({}), concat!("Sluicegate/", env!("CARGO_PKG_VERSION"))),
        (json!({"apisix": {"enable_server_tokens": false}}), "Sluicegate"),
        (json!({"sluicegate": {"server_header": "APISIX/3.18.0"}}), "APISIX/3.18.0"),
    ] {
        let origin = Origin::start(|_| Answer::text("x").header("Server", "other/1"));
        let gate = GatewayProcess::with(crate::BINARY, config);
        gate.set_proxy("1", "/up", origin.addr);
        for path in ["/up", "/unknown", "/.."] {
            let answer = get(gate.http, path);
            assert_eq!(answer.header("server"), Some(server), "{path}");
            assert!(answer.header("date").is_some(), "{path}");
        }
        let refused = Client::connect(gate.http).send("nonsense\r\n\r\n").response();
        assert_eq!((refused.status, refused.header("server")), (400, Some(server)));
    }
}

#[test]
fn names_with_underscores_pass_unless_told_otherwise() {
    for (on, reaches) in [("on", true), ("off", false)] {
        let (gate, origin) =
            start(json!({"nginx_config": {"http": {"underscores_in_headers": on}}}));
        assert_eq!(request(gate.http, "GET", "/", &[("x_under", "1")], "").status, 200);
        assert_eq!(origin.last().header("x_under").is_some(), reaches, "{on}");
        let plain = http::Request::get("http://gate.test/").header("x_under", "1").body(());
        h2_exchange(gate.http, plain.expect("it is valid"), &[]).expect("an answer");
        assert_eq!(origin.last().header("x_under").is_some(), reaches, "{on} by HTTP/2");
    }
}

#[test]
fn a_target_reaches_the_origin_as_it_was_sent() {
    let (gate, origin) = start(json!({}));
    for target in
        ["/a%20b/c%2Fd", "/a//b", "/a/./b/../c", "/%C3%A9?q=%20+&&=", "/?", "/a?b?c", "/~a;b=c/d,e"]
    {
        assert_eq!(get(gate.http, target).status, 200, "{target}");
        assert_eq!(origin.last().target, target);
    }
}

#[test]
fn the_cookies_of_http_2_go_on_as_one_header() {
    let (gate, origin) = start(json!({}));
    let plain =
        http::Request::get("http://gate.test/").header("cookie", "a=1").header("cookie", "b=2");
    h2_exchange(gate.http, plain.body(()).expect("it is valid"), &[]).expect("an answer");
    assert_eq!(origin.last().header("cookie"), Some("a=1; b=2"));
}

#[test]
fn a_proxy_protocol_port_takes_the_client_from_its_header() {
    let port = free_port();
    let (gate, origin) = start(
        json!({"apisix": {"enable_ipv6": false, "proxy_protocol": {"listen_http_port": port}}}),
    );
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let get = request_bytes("GET", "/", &[], "");
    let version_2 = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(),
        &[9, 8, 7, 6, 127, 0, 0, 1, 0, 99, 0, 80],
    ]
    .concat();
    for (header, address, told_port) in [
        (&b"PROXY TCP4 9.8.7.6 127.0.0.1 99 8080\r\n"[..], "9.8.7.6", "8080"),
        (b"PROXY TCP6 2001:db8::9 ::1 99 8080\r\n", "2001:db8::9", "8080"),
        (&version_2, "9.8.7.6", "80"),
    ] {
        let mut client = Client::connect(addr);
        client.send(header);
        // Only a connection's first bytes are such a header; all its requests go by it.
        for _ in 0..2 {
            assert_eq!(client.send(&get).response().status, 200, "{address}");
            assert_eq!(origin.last().header("x-real-ip"), Some(address));
            assert_eq!(origin.last().header("x-forwarded-port"), Some(told_port));
        }
    }
    // Anything else is cut off without an answer.
    origin.clear();
    for bytes in [get.as_slice(), b"PROXY TCP4 9.8.7.6\r\n", b"PROXY nonsense and more of it\r\n"] {
        let mut client = Client::connect(addr);
        let _ = client.try_send(bytes);
        let _ = client.try_send(&get);
        assert!(client.rest().is_empty());
    }
    assert!(origin.requests().is_empty());
    // And on the ordinary port the header is no HTTP.
    let answer =
        Client::connect(gate.http).send("PROXY TCP4 9.8.7.6 127.0.0.1 99 8080\r\n\r\n").response();
    assert_eq!(answer.status, 400);
    until("the refusal in the log", || {
        gate.error_log().contains("A request was refused.").then_some(())
    });
}

/// Everything goes to an origin.
fn start(config: Value) -> (GatewayProcess, Origin) {
    let origin = Origin::text("x");
    let gate = GatewayProcess::with(crate::BINARY, config);
    gate.set_proxy("1", "/*", origin.addr);
    (gate, origin)
}

/// X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, -Host, -Port and Forwarded.
fn told(received: &Received) -> [Option<String>; 6] {
    [
        "x-forwarded-for",
        "x-real-ip",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "forwarded",
    ]
    .map(|name| received.header(name).map(str::to_owned))
}

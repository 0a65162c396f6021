//! `aws-lambda` and time, memory and repetition: limits are named in the log, calls counted, and none sent
//! twice that may have run.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::client::Client;
use sluicegate_testkit::{GatewayProcess, client, wait};

use crate::BINARY;
use crate::doors::door;
use crate::lambda_invoke::{Lambda, keys};
use crate::lambda_streams::frame;
use crate::wire::{Peer, RawOrigin};

#[test]
fn a_limit_that_ended_is_named_in_the_log_wherever_it_ended() {
    // Takes connections, and no TLS begins.
    let silent = RawOrigin::start(|peer, _| peer.bytes(1 << 20).map(drop));
    let answers = |bytes: &'static [u8]| {
        RawOrigin::start(move |peer: &mut Peer, _| {
            let head = peer.head()?;
            peer.body(&head)?;
            peer.send(bytes)?;
            peer.bytes(1).map(drop)
        })
    };
    let nothing = answers(b"");
    let half = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let named = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n");
    // Hears of a name, and answers nothing.
    let dns = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    let dns = dns.local_addr().map(|addr| (addr, dns)).expect("it is bound");
    let gateway = with_control(
        json!({"apisix": {"dns_resolver": [dns.0.to_string()], "resolver_timeout": 9}}),
    );
    let (silent, nowhere) = (format!("https://{}", silent.addr), "http://nowhere.test".to_owned());
    let [nothing, half, named] =
        [&nothing, &half, &named].map(|origin| format!("http://{}", origin.addr));
    let (none, stream) = (json!({}), json!({"invocation": "stream"}));
    let raw = json!({"response_format": "raw"});
    let not_sent = "A function did not answer.";
    let not_whole = "A function's answer did not arrive whole.";
    let broke_off = "A response broke off on the way";
    // Route; endpoint, limit, more; status, message, what the limit ended before, and whether it may
    // have run.
    let cases = [
        ("tls", &silent, "connect", &none, 504, not_sent, "function", Some(false)),
        ("early", &silent, "first_byte", &none, 504, not_sent, "function", Some(false)),
        ("dns", &nowhere, "connect", &none, 504, not_sent, "function", Some(false)),
        ("late", &nothing, "first_byte", &none, 504, not_sent, "function", Some(true)),
        ("total", &nothing, "total", &none, 504, not_sent, "function", Some(true)),
        ("held", &half, "total", &none, 504, not_whole, "body", None),
        ("stream", &named, "total", &stream, 504, not_whole, "body", None),
        ("begins", &named, "first_byte", &stream, 504, not_sent, "function", Some(true)),
        ("passed", &half, "total", &raw, 200, broke_off, "body", None),
    ];
    let mut ambiguous = 0;
    for (id, endpoint, limit, more, status, message, what, may_have_run) in cases {
        let mut config = by_name(endpoint);
        config["timeouts"] = json!({limit: 300});
        config["ssl_verify"] = json!(false);
        for (name, value) in more.as_object().expect("it is an object") {
            config[name] = value.clone();
        }
        gateway.set_lambda(id, &format!("/{id}"), config);
        let mut client = Client::connect(gateway.http);
        client.send(format!("GET /{id} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.try_head().expect("a head comes").status, status, "{id}");
        let line = wait::until("a line of the route", || {
            let log = gateway.error_log();
            let of_route =
                |line: &&str| line.contains(&format!("route={id} ")) && line.contains("timeouts.");
            log.lines().find(of_route).map(str::to_owned)
        });
        assert!(line.contains(message), "{id}: {line}");
        let reason = format!("`timeouts.{limit}` of 300ms ended before the {what}");
        assert!(line.contains(&reason), "{id}: {line}");
        if let Some(may) = may_have_run {
            assert!(line.contains(&format!("may_have_run={may}")), "{id}: {line}");
            ambiguous += u64::from(may);
        }
    }
    assert_eq!(counter(&gateway, "function_ambiguous"), ambiguous);
}

#[test]
fn the_one_limit_of_old_is_named_in_the_log_wherever_it_ended() {
    let silent = RawOrigin::start(|peer, _| peer.bytes(1 << 20).map(drop));
    let answers = |bytes: Vec<u8>| {
        RawOrigin::start(move |peer: &mut Peer, _| {
            let head = peer.head()?;
            peer.body(&head)?;
            peer.send(&bytes)?;
            peer.bytes(1).map(drop)
        })
    };
    let nothing = answers(Vec::new());
    let half = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec());
    let mut begun = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n".to_vec();
    begun.extend(frame("PayloadChunk", b"half"));
    let begun = answers(begun);
    let dns = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    let resolver = dns.local_addr().expect("it is bound").to_string();
    let gateway = with_control(json!({"apisix": {
        "dns_resolver": [resolver], "resolver_timeout": 9,
    }}));
    let by_url = |addr| json!({"function_uri": format!("http://{addr}/")});
    let no_answer = "A function did not answer.";
    let longer = "raise it if functions may take longer";
    let pause = "raise it if functions may pause for longer";
    let way = "look at the way there, or raise it";
    let stream = |mut config: Value| {
        config["invocation"] = json!("stream");
        config
    };
    // Route, what it calls; status, message, what had not happened, advice, and whether it may have run.
    for (id, mut config, status, message, step, advice, may_have_run) in [
        (
            "tls",
            by_name(&format!("https://{}", silent.addr)),
            503,
            no_answer,
            "there was a connection (",
            way,
            Some(false),
        ),
        (
            "dns",
            by_name("http://nowhere.test"),
            503,
            no_answer,
            "there was a connection (nowhere.test does not resolve",
            way,
            Some(false),
        ),
        (
            "name",
            by_name(&format!("http://{}", nothing.addr)),
            503,
            no_answer,
            "the function answered",
            longer,
            Some(true),
        ),
        ("url", by_url(nothing.addr), 503, no_answer, "the function answered", longer, Some(false)),
        (
            "held",
            by_name(&format!("http://{}", half.addr)),
            503,
            "A function's answer did not arrive whole.",
            "while the answer came",
            pause,
            None,
        ),
        (
            "passed",
            by_url(half.addr),
            200,
            "A response broke off on the way",
            "while the answer came",
            pause,
            None,
        ),
        (
            "stream",
            stream(by_name(&format!("http://{}", begun.addr))),
            200,
            "A streamed answer broke off",
            "while the answer came",
            pause,
            None,
        ),
        (
            "no-stream",
            stream(by_name(&format!("http://{}", half.addr))),
            503,
            "A function's answer did not arrive whole.",
            "while the answer came",
            pause,
            None,
        ),
    ] {
        config["timeout"] = json!(300);
        config["ssl_verify"] = json!(false);
        gateway.set_lambda(id, &format!("/{id}"), config);
        let mut client = Client::connect(gateway.http);
        client.send(format!("GET /{id} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.try_head().expect("a head comes").status, status, "{id}");
        let line = wait::until("a line of the route", || {
            let log = gateway.error_log();
            log.lines().find(|line| line.contains(&format!("route={id} "))).map(str::to_owned)
        });
        for part in [message, "`timeout` of 300ms ended", step, advice] {
            assert!(line.contains(part), "{id}: {part:?} in {line}");
        }
        if let Some(may) = may_have_run {
            assert!(line.contains(&format!("may_have_run={may}")), "{id}: {line}");
        }
    }
}

#[test]
fn a_stream_that_breaks_is_counted_and_the_limit_that_broke_it_named() {
    let lambda = Lambda::start(None);
    let gateway = with_control(json!({}));
    let mut config = lambda.config("slow", keys(None));
    config["invocation"] = json!("stream");
    config["timeouts"] = json!({"total": 300});
    gateway.set_lambda("1", "/fn", config);
    assert_eq!(counter(&gateway, "function_streams_broken"), 0);
    let mut client = Client::connect(gateway.http);
    client.send("GET /fn HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.try_head().expect("a head comes").status, 200);
    assert_eq!(client.chunk(), b"data: 1\n\n");
    assert_eq!(client.rest(), b"", "it does not end as if it were whole");
    let line = gateway.wait_for_error_line("A streamed answer broke off");
    assert!(line.contains("`timeouts.total` of 300ms ended before the body did"), "{line}");
    assert_eq!(counter(&gateway, "function_streams_broken"), 1);
}

#[test]
fn a_call_is_repeated_only_where_no_function_can_run_twice() {
    // Answers a connection's first call. What becomes of the second, its number says.
    let origin = |takes_second: bool| {
        let heads = Arc::new(AtomicUsize::new(0));
        let seen = heads.clone();
        let origin = RawOrigin::start(move |peer, _| {
            let head = peer.head()?;
            peer.body(&head)?;
            seen.fetch_add(1, Ordering::SeqCst);
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            if takes_second {
                let head = peer.head()?;
                peer.body(&head)?;
                seen.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        (origin, heads)
    };
    // Method; the far side takes the second call before it closes; calls it sees, the status of the second.
    for (method, takes_second, calls, status) in [
        ("GET", true, 3, 200),
        ("POST", true, 2, 503),
        ("POST", false, 2, 200),
        ("GET", false, 2, 200),
    ] {
        let (origin, heads) = origin(takes_second);
        let gateway = with_control(json!({}));
        let uri = format!("http://{}/", origin.addr);
        gateway.set_lambda("1", "/fn", json!({"function_uri": uri}));
        // One connection of the client is one thread of the gateway, and one of its pools.
        let mut client = Client::connect(gateway.http);
        let mut call = || {
            client.send(client::request_bytes(method, "/fn", &[], b""));
            client.response().status
        };
        let case = format!("{method}, second taken: {takes_second}");
        assert_eq!(call(), 200, "{case}");
        if !takes_second {
            // The far side has closed by then.
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(call(), status, "{case}");
        assert_eq!(heads.load(Ordering::SeqCst), calls, "{case}");
        let ambiguous = counter(&gateway, "function_ambiguous");
        assert_eq!(ambiguous, u64::from(status == 503), "{case}");
    }
}

#[test]
fn an_event_counts_as_held_with_the_bytes_that_it_has() {
    let origin = sluicegate_testkit::Origin::text("{}");
    let limits = json!({"sluicegate": {"limits": {"buffered_body_bytes": 100_000}}});
    let gateway = GatewayProcess::with(BINARY, limits);
    let by_uri = json!({"function_uri": origin.url("/"), "request_format": "apigw_v2"});
    for (id, config) in [("name", by_name(&origin.url(""))), ("uri", by_uri)] {
        gateway.set_lambda(id, &format!("/{id}"), config);
        for (bytes, status) in [(20_000, 200), (60_000, 503), (20_000, 200)] {
            // Each of them becomes two.
            let body = "\"".repeat(bytes);
            let text = [("Content-Type", "text/plain")];
            let answer = client::request(gateway.http, "POST", &format!("/{id}"), &text, body);
            assert_eq!(answer.status, status, "{id} {bytes}: {}", gateway.error_log());
        }
        let line = gateway.wait_for_error_line(&format!("route={id} "));
        assert!(line.contains("buffered_body_bytes"), "{line}");
    }
}

#[test]
fn an_event_tells_the_scheme_and_port_that_a_trusted_proxy_tells() {
    let origin = sluicegate_testkit::Origin::text("{}");
    for (trusted, told) in [
        (json!(["127.0.0.0/8"]), ("https", "443", "6.6.6.6, 127.0.0.1")),
        (json!(["192.0.2.0/24"]), ("http", "", "127.0.0.1")),
    ] {
        let gateway =
            GatewayProcess::with(BINARY, json!({"apisix": {"trusted_addresses": trusted}}));
        let uri = json!({"function_uri": origin.url("/"), "request_format": "envoy"});
        gateway.set_lambda("1", "/fn", uri);
        let sent = [
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "443"),
            ("X-Forwarded-For", "6.6.6.6"),
        ];
        assert_eq!(client::request(gateway.http, "GET", "/fn", &sent, "").status, 200);
        let event: Value = serde_json::from_slice(&origin.last().body).expect("it is JSON");
        let port = gateway.http.port().to_string();
        let (scheme, named, chain) = told;
        let headers = &event["headers"];
        assert_eq!(headers["x-forwarded-proto"], scheme, "{event}");
        assert_eq!(headers["x-forwarded-port"], if named.is_empty() { &port } else { named });
        assert_eq!(headers["x-forwarded-for"], chain, "{event}");
    }
}

/// A function behind this endpoint, which checks no signatures.
fn by_name(endpoint: &str) -> Value {
    json!({
        "function": {"name": "f", "region": "us-east-1", "endpoint": endpoint},
        "authorization": {"iam": {"accesskey": "AKIDEXAMPLE", "secretkey": "secret"}},
    })
}

fn with_control(mut changes: Value) -> GatewayProcess {
    changes["apisix"]["enable_control"] = json!(true);
    changes["apisix"]["control"] = json!({"port": 0});
    GatewayProcess::with(BINARY, changes)
}

/// One of the counters at `/v1/status` of the control API.
fn counter(gateway: &GatewayProcess, name: &str) -> u64 {
    let status = client::get(door(gateway, "control="), "/v1/status").json();
    status
        .pointer(&format!("/counters/{name}"))
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("there is no counter {name}: {status}"))
}

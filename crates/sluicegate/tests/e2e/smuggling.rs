//! Requests that two servers could read differently are refused, and the connection with them:
//! the origin sees none of their bytes. Limits of a head, the framing of bodies, and what follows
//! a request on its connection.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, Response, request_bytes};
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::wire::{EarlyOrigin, Taken, block_on, h2_answer, h2_by_hand, h2_connect, h2_exchange};

#[test]
fn content_length_beside_transfer_encoding_is_refused() {
    let gate = Gate::start(json!({}));
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "transfer-encoding: CHUNKED\r\ncontent-length: 4",
    ] {
        gate.refuses(&post(head, "0\r\n\r\nGET /next HTTP/1.1\r\nHost: gate.test\r\n\r\n"), 400);
    }
}

#[test]
fn repeated_content_length_is_refused_even_when_equal() {
    let gate = Gate::start(json!({}));
    for head in [
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4\r\nX: y\r\ncontent-length: 4",
        "Content-Length: 4, 4",
    ] {
        gate.refuses(&post(head, "abcd"), 400);
    }
}

#[test]
fn a_malformed_content_length_is_refused() {
    let gate = Gate::start(json!({}));
    for value in
        ["", "-1", "+4", "4x", "0x4", "4 4", "4;", "1e1", "\u{662}", "99999999999999999999", "4.0"]
    {
        gate.refuses(&post(&format!("Content-Length: {value}"), "abcd"), 400);
    }
}

#[test]
fn a_bare_lf_ends_no_line() {
    let gate = Gate::start(json!({}));
    for head in [
        "GET / HTTP/1.1\nHost: gate.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: gate.test\n\r\n",
        "GET / HTTP/1.1\r\nHost: gate.test\r\n\n",
        "GET / HTTP/1.1\nHost: gate.test\n\n",
        "GET / HTTP/1.1\r\nHost: gate.test\r\nX: a\nY: b\r\n\r\n",
    ] {
        gate.refuses(head.as_bytes(), 400);
    }
}

#[test]
fn a_bare_cr_is_refused() {
    let gate = Gate::start(json!({}));
    for head in [
        "GET / HTTP/1.1\r\nHost: gate.test\r\nX: a\rY: b\r\n\r\n",
        "GET / HTTP/1.1\rHost: gate.test\r\n\r\n",
        "GET /a\rb HTTP/1.1\r\nHost: gate.test\r\n\r\n",
    ] {
        gate.refuses(head.as_bytes(), 400);
    }
}

#[test]
fn a_folded_header_line_is_refused() {
    let gate = Gate::start(json!({}));
    for head in ["X: a\r\n b", "X: a\r\n\tb", "X:\r\n Content-Length: 4"] {
        gate.refuses(&get(head), 400);
    }
    // The first header line, folded onto the request line.
    gate.refuses(b"GET / HTTP/1.1\r\n Host: gate.test\r\n\r\n", 400);
}

#[test]
fn a_nul_byte_is_refused() {
    let gate = Gate::start(json!({}));
    for head in ["X: a\0b", "X\0Y: a", "X: a\r\n\0: b"] {
        gate.refuses(&get(head), 400);
    }
    gate.refuses(b"GET /a\0b HTTP/1.1\r\nHost: gate.test\r\n\r\n", 400);
}

#[test]
fn a_space_before_a_colon_is_refused() {
    let gate = Gate::start(json!({}));
    for head in ["X : a", "Content-Length : 4", "Transfer-Encoding\t: chunked", " X: a", ": a"] {
        gate.refuses(&get(head), 400);
    }
}

#[test]
fn a_header_name_with_odd_bytes_is_refused() {
    let gate = Gate::start(json!({}));
    for head in ["X(y): a", "X y: a", "X\u{e9}: a", "no colon", "X\x7f: a", "\"X\": a"] {
        gate.refuses(&get(head), 400);
    }
}

#[test]
fn a_repeated_host_is_refused_even_when_equal() {
    let gate = Gate::start(json!({}));
    for head in ["Host: gate.test", "Host: other.test", "X: y\r\nhost: gate.test"] {
        gate.refuses(&get(head), 400);
    }
}

#[test]
fn a_missing_or_malformed_host_is_refused() {
    let gate = Gate::start(json!({}));
    gate.refuses(b"GET / HTTP/1.1\r\n\r\n", 400);
    for host in ["a b", "a/b", "a@b", "a:b:c", "a\\b", "[::1", "a?b", "a#b"] {
        gate.refuses(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), 400);
    }
}

#[test]
fn an_absolute_target_must_name_the_host_it_is_sent_with() {
    let gate = Gate::start(json!({}));
    for target in [
        "http://other.test/a",
        "http://gate.test:81/a",
        "http://user@gate.test/a",
        "http://gate.test.other/a",
        "http:///a",
    ] {
        gate.refuses(format!("GET {target} HTTP/1.1\r\nHost: gate.test\r\n\r\n").as_bytes(), 400);
    }
    for (target, seen) in [
        ("http://gate.test/a?b", "/a?b"),
        ("HTTP://GATE.test/a", "/a"),
        ("http://gate.test", "/"),
        ("http://gate.test?b", "/?b"),
    ] {
        let answer = gate.send(format!("GET {target} HTTP/1.1\r\nHost: gate.test\r\n\r\n"));
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(gate.origin.last().target, seen, "{target}");
        assert_eq!(gate.origin.last().header("host"), Some("gate.test"), "{target}");
    }
}

#[test]
fn a_request_line_that_is_none_is_refused() {
    let gate = Gate::start(json!({}));
    for line in [
        "GET / HTTP/1.1 x",
        "GET /a b HTTP/1.1",
        "GET HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "G(T / HTTP/1.1",
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET / HTTP/1.11",
        "GET / HTTP/01.1",
        "GET / HTTPS/1.1",
        "GET / http/1.1",
        "CONNECT gate.test:80 HTTP/1.1",
    ] {
        gate.refuses(format!("{line}\r\nHost: gate.test\r\n\r\n").as_bytes(), 400);
    }
}

#[test]
fn another_major_version_is_505_and_another_coding_501() {
    let gate = Gate::start(json!({}));
    for version in ["2.0", "0.9", "3.0"] {
        let head = format!("GET / HTTP/{version}\r\nHost: gate.test\r\n\r\n");
        gate.refuses(head.as_bytes(), 505);
    }
    for (coding, status) in [
        ("gzip, chunked", 501),
        ("deflate, chunked", 501),
        ("gzip", 400),
        ("chunked, gzip", 400),
        ("xchunked", 400),
        ("chunked, identity", 400),
        ("identity", 400),
        ("", 400),
        ("chunked\r\nTransfer-Encoding: chunked", 400),
        ("\x0bchunked", 400),
    ] {
        gate.refuses(&post(&format!("Transfer-Encoding: {coding}"), "0\r\n\r\n"), status);
    }
    // HTTP/1.0 knows no transfer codings.
    gate.refuses(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
}

#[test]
fn a_path_above_the_root_is_refused() {
    let gate = Gate::start(json!({}));
    for path in ["/..", "/../a", "/a/../../b", "/%2e%2e/a", "/a/%2E./../b", "//../a/../.."] {
        let answer = gate.send(request_bytes("GET", path, &[], ""));
        assert_eq!(answer.status, 400, "{path}");
    }
    for path in ["/a/..", "/a/b/../c", "/...", "/..a"] {
        let answer = gate.send(request_bytes("GET", path, &[], ""));
        assert_eq!(answer.status, 200, "{path}");
    }
    assert_eq!(gate.origin.requests().len(), 4);
}

#[test]
fn header_lines_are_counted_and_the_limit_is_the_last_that_passes() {
    let gate = Gate::start(json!({"sluicegate": {"limits": {"header_count": 20}}}));
    let lines = |n: usize| get("X: y\r\n".repeat(n - 1).trim_end());
    assert_eq!(gate.send(lines(20)).status, 200);
    gate.refuses(&lines(21), 431);
    gate.refuses(&lines(500), 431);
}

#[test]
fn more_than_a_hundred_headers_pass_by_default() {
    let gate = Gate::start(json!({}));
    let lines: String = (0..998).map(|n| format!("X-{n}: {n}\r\n")).collect();
    assert_eq!(gate.send(get(lines.trim_end())).status, 200);
    let received = gate.origin.last();
    assert_eq!(received.headers.iter().filter(|(name, _)| name.starts_with("X-9")).count(), 109);
    gate.refuses(&get("X: y\r\n".repeat(1000).trim_end()), 431);
}

#[test]
fn a_head_has_a_limit_in_bytes() {
    let gate = Gate::start(json!({"sluicegate": {"limits": {"header_bytes": "8k"}}}));
    let filled = |bytes: usize| {
        let empty = get("X: ").len();
        get(&format!("X: {}", "a".repeat(bytes - empty)))
    };
    assert_eq!(gate.send(filled(8192)).status, 200);
    gate.refuses(&filled(8193), 431);
    gate.refuses(&filled(100_000), 431);
    let target =
        |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: gate.test\r\n\r\n", "a".repeat(bytes));
    assert_eq!(gate.send(target(8000)).status, 200);
    gate.refuses(target(9000).as_bytes(), 414);
    gate.refuses(target(100_000).as_bytes(), 414);
}

#[test]
fn broken_chunks_are_refused_and_end_both_connections() {
    let gate = Gate::start(json!({}));
    for body in [
        "zz\r\nab\r\n0\r\n\r\n",
        "2\nab\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "2\r\nab\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "0x2\r\nab\r\n0\r\n\r\n",
        "-2\r\nab\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nab",
        "2 \r\nab\r\n0\n\n",
        "2;a\nb\r\nab\r\n0\r\n\r\n",
        "0\r\nX: y\nGET /next HTTP/1.1\r\n\r\n",
    ] {
        let mut client = gate.connect();
        client.send(post("Transfer-Encoding: chunked", body));
        client.send("GET /next HTTP/1.1\r\nHost: gate.test\r\n\r\n");
        let answer = client.response();
        assert_eq!(answer.status, 400, "{body:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{body:?}");
        assert!(client.rest().is_empty(), "{body:?}: one answer, then the end");
        // The upstream may have got a part, never a whole request.
        assert!(gate.origin.requests().is_empty(), "{body:?}");
    }
    gate.serves();
}

#[test]
fn chunks_are_taken_apart_and_put_together_again() {
    let gate = Gate::start(json!({}));
    for body in [
        "4\r\nabcd\r\n0\r\n\r\n",
        "1\r\na\r\n3\r\nbcd\r\n0\r\n\r\n",
        "004\r\nabcd\r\n000\r\n\r\n",
        "4;name=\"value\"\r\nabcd\r\n0\r\nTrailer: x\r\n\r\n",
    ] {
        assert_eq!(gate.send(post("Transfer-Encoding: chunked", body)).status, 200, "{body:?}");
        assert_eq!(gate.origin.last().body, b"abcd", "{body:?}");
        assert_eq!(gate.origin.last().all("content-length").len(), 0, "{body:?}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let gate = Gate::start(json!({}));
    let mut bytes = Vec::new();
    for n in 0..20 {
        bytes.extend(match n % 3 {
            0 => request_bytes("GET", &format!("/{n}"), &[], ""),
            1 => request_bytes("POST", &format!("/{n}"), &[], "x".repeat(n * 1000)),
            _ => format!("PUT /{n} HTTP/1.1\r\nHost: gate.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
                .into_bytes(),
        });
    }
    let mut client = gate.connect();
    client.send(&bytes);
    for n in 0..20 {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    assert_eq!(gate.origin.requests().len(), 20);
    assert_eq!(gate.origin.requests()[19].body.len(), 19_000);
}

#[test]
fn a_body_nobody_read_does_not_become_the_next_request() {
    // The origin answers the head and takes no body.
    let early = EarlyOrigin::start();
    let gate = Gate::with_origin(json!({}), early.origin.addr);
    // A route that answers before any body is read.
    gate.gateway.set(
        "/routes/none",
        &json!({"uri": "/none", "upstream": {"nodes": {}, "type": "roundrobin"}}),
    );
    gate.gateway.set(
        "/routes/refused",
        &json!({
            "uri": "/refused", "upstream": {"nodes": {"127.0.0.1:1": 1}, "type": "roundrobin"},
        }),
    );
    let hidden = request_bytes("GET", "/hidden", &[], "");
    let after = request_bytes("GET", "/after", &[("Connection", "close")], "");
    for (path, status) in [("/", 200), ("/none", 503), ("/refused", 502), ("/..", 400)] {
        for announced in [hidden.len(), 100_000] {
            for first in [0, 10, hidden.len()] {
                let case = format!("{path}, {announced} bytes announced, {first} at once");
                let seen = early.targets().len();
                let mut client = gate.connect();
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: gate.test\r\nContent-Length: {announced}\r\n\r\n"
                );
                client.send([head.as_bytes(), &hidden[..first]].concat());
                assert_eq!(client.response().status, status, "{case}");
                // What is sent now is body, whatever it looks like.
                let _ = client.try_send(&hidden[first..]);
                if announced == hidden.len() {
                    let _ = client.try_send(&after);
                }
                let rest = client.rest();
                let served = String::from_utf8_lossy(&rest).ends_with("/after");
                assert!(rest.is_empty() || served, "{case}: {:?}", String::from_utf8_lossy(&rest));
                // A short body that never left our hands is skipped, and the connection kept.
                let skipped = status != 200 && announced == hidden.len();
                assert!(served || !skipped, "{case}: the connection is kept");
                let new = early.targets().split_off(seen);
                assert!(!new.iter().any(|target| target == "/hidden"), "{case}: {new:?}");
            }
        }
    }
}

#[test]
fn a_client_that_waits_for_leave_to_send_is_not_waited_for() {
    let gate = Gate::start(json!({}));
    gate.gateway.set(
        "/routes/none",
        &json!({"uri": "/none", "upstream": {"nodes": {}, "type": "roundrobin"}}),
    );
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: gate.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    // Refused: the final answer at once, no leave, and no guess whether a body follows.
    let mut client = gate.connect();
    let answer = client.send(head("/none")).response();
    assert_eq!((answer.status, answer.informational.as_slice()), (503, &[][..]));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.rest().is_empty());
    // Granted.
    let mut client = gate.connect();
    assert_eq!(client.send(head("/up")).head().status, 100);
    assert_eq!(client.send("abcd").response().status, 200);
    let received = gate.origin.last();
    assert_eq!((received.body.as_slice(), received.all("expect").len()), (&b"abcd"[..], 0));
    // The connection goes on.
    assert_eq!(client.get("/next").status, 200);
}

#[test]
fn a_slow_head_is_given_up() {
    let gate = Gate::start(json!({"nginx_config": {"http": {"client_header_timeout": "1s"}}}));
    let mut client = gate.connect();
    client.send("GET / HTTP/1.1\r\nHost: ga");
    let answer = client.response();
    assert_eq!(answer.status, 408);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.rest().is_empty());
    // Byte by byte does not help: the limit is for the whole head.
    let mut client = gate.connect();
    for byte in "GET / HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa".bytes() {
        if client.try_send([byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.response().status, 408);
    // Nothing at all: closed without a word.
    let mut client = gate.connect();
    assert!(client.rest().is_empty());
    gate.serves();
}

#[test]
fn http_1_0_is_served_and_closed_unless_it_asks_to_stay() {
    let gate = Gate::start(json!({}));
    let mut client = gate.connect();
    let answer = client.send("GET /a HTTP/1.0\r\n\r\n").response();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(client.rest().is_empty());
    let mut client = gate.connect();
    for _ in 0..2 {
        client.send("GET /a HTTP/1.0\r\nHost: gate.test\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }
}

#[test]
fn an_h2_authority_must_be_the_host_that_is_sent_with_it() {
    let gate = Gate::start(json!({}));
    for (uri, hosts, status) in [
        ("http://gate.test/a", vec![], 200),
        ("http://gate.test/a", vec!["gate.test"], 200),
        ("http://gate.test/a", vec!["GATE.test"], 200),
        ("http://gate.test/a", vec!["other.test"], 400),
        ("http://gate.test/a", vec!["gate.test:80"], 400),
        ("http://gate.test/a", vec!["gate.test", "other.test"], 400),
        ("http://gate.test/a", vec!["gate.test", "gate.test"], 400),
    ] {
        let mut request = http::Request::get(uri);
        for host in &hosts {
            request = request.header("host", *host);
        }
        let before = gate.origin.requests().len();
        let got = h2_exchange(gate.addr(), request.body(()).expect("the request is valid"), &[]);
        assert_eq!(got.expect("an answer").status, status, "{uri} {hosts:?}");
        let reached = gate.origin.requests().len() - before;
        assert_eq!(reached, usize::from(status == 200), "{uri} {hosts:?}");
    }
}

#[test]
fn an_h2_connection_ends_with_a_request_that_was_refused() {
    let gate = Gate::start(json!({}));
    block_on(async {
        let mut send = h2_connect(gate.addr()).await.expect("a connection");
        for (host, status, goes_on) in [("gate.test", 200, true), ("other.test", 400, false)] {
            let request = http::Request::get("http://gate.test/a").header("host", host);
            let request = request.body(()).expect("the request is valid");
            let (response, _) = send.send_request(request, true).expect("it is sent");
            assert_eq!(h2_answer(response).await.expect("an answer").status, status);
            let again = tokio::time::timeout(Duration::from_secs(5), async {
                for _ in 0..20 {
                    if std::future::poll_fn(|cx| send.poll_ready(cx)).await.is_err() {
                        return false;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                true
            });
            assert_eq!(again.await, Ok(goes_on), "{host}");
        }
    });
}

#[test]
fn an_h2_content_length_must_be_what_arrives() {
    let gate = Gate::start(json!({}));
    let request = |length: &str| {
        http::Request::post("http://gate.test/a")
            .header("content-length", length)
            .body(())
            .expect("the request is valid")
    };
    let ok = h2_exchange(gate.addr(), request("4"), &[b"ab", b"cd"]);
    assert_eq!(ok.expect("an answer").status, 200);
    assert_eq!(gate.origin.last().body, b"abcd");
    for (length, pieces) in
        [("4", &[b"ab".as_slice()][..]), ("1", &[b"ab"]), ("x", &[b"ab"]), ("-1", &[b"ab"])]
    {
        let before = gate.origin.requests().len();
        let got = h2_exchange(gate.addr(), request(length), pieces);
        assert!(
            got.is_err() || got.is_ok_and(|answer| answer.status == 400),
            "{length} {pieces:?}"
        );
        assert_eq!(gate.origin.requests().len(), before, "{length} {pieces:?}");
    }
    // What was announced has arrived and may be on its way; what comes on top never is.
    let hidden: &[&[u8]] = &[b"ab", b"GET /hidden HTTP/1.1\r\nHost: gate.test\r\n\r\n"];
    let _ = h2_exchange(gate.addr(), request("2"), hidden);
    gate.serves();
    for request in gate.origin.requests() {
        assert_ne!(request.target, "/hidden");
        assert!(!String::from_utf8_lossy(&request.body).contains("hidden"));
    }
}

#[test]
fn http_2_fields_that_would_be_something_else_in_http_1_are_refused() {
    let gate = Gate::start(json!({}));
    let good: [(&[u8], &[u8]); 4] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"gate.test"),
        (b":path", b"/good"),
    ];
    assert_eq!(h2_by_hand(gate.addr(), &good, b"abcd"), Taken::Answered(0x88));
    assert_eq!(gate.origin.last().body, b"abcd");
    gate.origin.clear();
    let with = |extra: &[(&'static [u8], &'static [u8])]| [&good[..], extra].concat();
    let but = |name: &[u8], value: &'static [u8]| {
        let mut fields = good.to_vec();
        fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value);
        fields
    };
    let without =
        |name: &[u8]| good.into_iter().filter(|field| field.0 != name).collect::<Vec<_>>();
    for fields in [
        with(&[(b"x", b"a\r\nX-Injected: 1")]),
        with(&[(b"x", b"a\nX-Injected: 1")]),
        with(&[(b"x", b"a\0b")]),
        with(&[(b"x\r\nx-injected", b"1")]),
        with(&[(b"x: y", b"1")]),
        with(&[(b"x y", b"1")]),
        with(&[(b"", b"1")]),
        with(&[(b"X-Upper", b"1")]),
        with(&[(b"transfer-encoding", b"chunked")]),
        with(&[(b"connection", b"close")]),
        with(&[(b"keep-alive", b"1")]),
        with(&[(b"upgrade", b"h2c")]),
        with(&[(b"content-length", b"1")]),
        with(&[(b"content-length", b"4"), (b"content-length", b"5")]),
        with(&[(b"host", b"other.test")]),
        with(&[(b":path", b"/twice")]),
        with(&[(b":authority", b"other.test")]),
        with(&[(b":status", b"200")]),
        with(&[(b":unknown", b"1")]),
        with(&[(b"x", b"1"), (b":path", b"/late")]),
        but(b":method", b"GET / HTTP/1.1\r\nX-Injected: 1\r\n\r\n"),
        but(b":method", b"G T"),
        but(b":method", b"CONNECT"),
        but(b":path", b"/a HTTP/1.1\r\nX-Injected: 1\r\n\r\n"),
        but(b":path", b"/a b"),
        but(b":path", b"/a\tb"),
        but(b":path", b"/a\0b"),
        but(b":path", b""),
        but(b":path", b"a"),
        but(b":path", b"http://other.test/"),
        but(b":path", b"/../a"),
        but(b":authority", b"gate.test\r\nX-Injected: 1"),
        but(b":authority", b"gate test"),
        but(b":authority", b"a@gate.test"),
        but(b":authority", b"gate.test/x"),
        but(b":authority", b""),
        without(b":method"),
        without(b":path"),
        without(b":authority"),
        without(b":scheme"),
    ] {
        let shown = || {
            fields
                .iter()
                .map(|(n, v)| (n.escape_ascii().to_string(), v.escape_ascii().to_string()))
                .collect::<Vec<_>>()
        };
        let taken = h2_by_hand(gate.addr(), &fields, b"abcd");
        assert_ne!(taken, Taken::Answered(0x88), "{:?}", shown());
        let reached = gate.origin.requests();
        assert!(reached.is_empty(), "{:?}: {reached:?}", shown());
    }
    gate.serves();
}

#[test]
fn heads_by_http_2_have_the_same_limits() {
    let gate =
        Gate::start(json!({"sluicegate": {"limits": {"header_count": 20, "header_bytes": "8k"}}}));
    let with = |count: usize, bytes: usize| {
        let mut request = http::Request::get("http://gate.test/");
        for n in 0..count {
            request = request.header(format!("x-{n}"), "y".repeat(bytes));
        }
        let answer = h2_exchange(gate.addr(), request.body(()).expect("it is valid"), &[]);
        answer.map_or(0, |answer| answer.status)
    };
    assert_eq!((with(19, 1), with(1, 7000)), (200, 200));
    assert_eq!((with(21, 1), with(100, 1), with(1, 9000)), (431, 431, 431));
    // Far beyond it is an attack, and the whole connection ends.
    assert_eq!(with(1, 200_000), 0);
    assert_eq!(gate.origin.requests().len(), 2);
}

#[test]
fn bytes_that_are_not_http_end_the_connection() {
    let gate = Gate::start(json!({}));
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\xff\xff\xff\xff\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
    ] {
        let mut client = gate.connect();
        client.send(bytes);
        let answer = client.response();
        assert!((400..=505).contains(&answer.status), "{bytes:?}: {}", answer.status);
        assert!(client.rest().is_empty());
    }
    assert!(gate.origin.requests().is_empty());
    gate.serves();
}

/// A gateway whose every path leads to an origin that answers with the target.
struct Gate {
    gateway: GatewayProcess,
    origin: Origin,
}

impl Gate {
    fn start(config: Value) -> Self {
        let origin = Origin::start(|received| Answer::text(received.target.clone()));
        let gate = Self::with_origin(config, origin.addr);
        Self { origin, ..gate }
    }

    fn with_origin(config: Value, addr: SocketAddr) -> Self {
        let gateway = GatewayProcess::with(crate::BINARY, config);
        gateway.set_proxy("all", "/*", addr);
        Self { gateway, origin: Origin::text("unused") }
    }

    fn addr(&self) -> SocketAddr {
        self.gateway.http
    }

    fn connect(&self) -> Client {
        Client::connect(self.addr())
    }

    #[track_caller]
    fn send(&self, bytes: impl AsRef<[u8]>) -> Response {
        self.connect().send(bytes).response()
    }

    /// These bytes are answered with `status`, the connection ends although more is sent on it,
    /// and the origin sees nothing.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], status: u16) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let before = self.origin.requests().len();
        let mut client = self.connect();
        let _ = client.try_send(bytes);
        let _ = client.try_send(request_bytes("GET", "/hidden", &[], ""));
        let answer = client.try_response().unwrap_or_else(|e| panic!("{shown:?}: {e}"));
        assert_eq!(answer.status, status, "{shown:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{shown:?}");
        assert!(client.rest().is_empty(), "{shown:?}: one answer, then the end");
        self.serves();
        let reached = self.origin.requests().split_off(before);
        let targets: Vec<&str> = reached.iter().map(|r| r.target.as_str()).collect();
        assert_eq!(targets, ["/alive"], "{shown:?}: the origin has seen nothing of it");
    }

    #[track_caller]
    fn serves(&self) {
        assert_eq!(self.send(request_bytes("GET", "/alive", &[], "")).text(), "/alive");
    }
}

/// A GET with these header lines behind `Host`.
fn get(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: gate.test\r\n{lines}\r\n\r\n").into_bytes()
}

/// A POST with these header lines and these bytes behind its head.
fn post(lines: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: gate.test\r\n{lines}\r\n\r\n{body}").into_bytes()
}

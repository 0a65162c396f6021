//! Bodies pass as they come, both ways, without being gathered; what breaks off is never taken
//! for a whole.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, get, request, request_bytes};
use sluicegate_testkit::wait::{PATIENCE, until};
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::wire::{
    Peer, RawOrigin, block_on, field, h2_answer, h2_connect, h2_exchange, rss_bytes,
};

#[test]
fn the_first_bytes_of_an_answer_pass_before_its_end() {
    for (head, first, rest) in [
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n", "4\r\nlast\r\n0\r\n\r\n"),
        ("Content-Length: 9", "first", "last"),
        ("Connection: close", "first", "last"),
    ] {
        let (go, gone) = gate_channel();
        let origin = RawOrigin::start(move |peer, _| {
            peer.head()?;
            peer.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{first}"))?;
            wait_for(&gone)?;
            peer.send(rest)
        });
        let gate = gateway(json!({}));
        gate.set_proxy("1", "/*", origin.addr);
        let mut client = Peer::connect(gate.http);
        client.send(request_bytes("GET", "/", &[], "")).expect("it is taken");
        let answer = client.head().expect("an answer");
        let (first, rest) = match field(&answer, "content-length") {
            Some(_) => ("first", "last"),
            None => ("5\r\nfirst\r\n", "4\r\nlast\r\n0\r\n\r\n"),
        };
        let got = client.bytes(first.len()).expect("the first bytes");
        assert_eq!(String::from_utf8_lossy(&got), first, "{head}");
        go.send(()).expect("the origin waits");
        let got = client.bytes(rest.len()).expect("the last bytes");
        assert_eq!(String::from_utf8_lossy(&got), rest, "{head}");
        // The same by HTTP/2.
        let got = block_on(async {
            let mut send = h2_connect(gate.http).await?;
            let request = http::Request::get("http://gate.test/").body(()).expect("it is valid");
            let (response, _) = send.send_request(request, true)?;
            let mut receiving = response.await?.into_body();
            let first = receiving.data().await.expect("there is a first piece")?;
            go.send(()).expect("the origin waits");
            let mut rest = Vec::new();
            while let Some(piece) = receiving.data().await {
                rest.extend_from_slice(&piece?);
            }
            Ok::<_, h2::Error>((first, rest))
        });
        let (first, rest) = got.expect("an answer");
        assert_eq!((&first[..], &rest[..]), (&b"first"[..], &b"last"[..]), "{head}");
    }
}

#[test]
fn the_first_bytes_of_an_upload_pass_before_its_end() {
    let (arrived, arrivals) = channel();
    let arrived = Mutex::new(arrived);
    let origin = RawOrigin::start(move |peer, _| {
        let head = peer.head()?;
        let chunked = field(&head, "transfer-encoding").is_some();
        let first = if chunked { "5\r\nfirst\r\n" } else { "first" };
        assert_eq!(peer.bytes(first.len())?, first.as_bytes());
        arrived.lock().expect("one at a time").send(()).map_err(io::Error::other)?;
        let last = if chunked { "4\r\nlast\r\n0\r\n\r\n" } else { "last" };
        assert_eq!(peer.bytes(last.len())?, last.as_bytes());
        // Said, or the next request might still find the connection kept.
        peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nwhole")
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    for (head, first, last) in [
        ("Content-Length: 9", "first", "last"),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n", "4\r\nlast\r\n0\r\n\r\n"),
    ] {
        let mut client = Client::connect(gate.http);
        client.send(format!("POST / HTTP/1.1\r\nHost: gate.test\r\n{head}\r\n\r\n{first}"));
        arrivals.recv_timeout(PATIENCE).expect("the first bytes arrive before the last are sent");
        assert_eq!(client.send(last).response().text(), "whole", "{head}");
    }
    // The same by HTTP/2, where no length is announced.
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let request = http::Request::post("http://gate.test/").body(()).expect("it is valid");
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(Bytes::from_static(b"first"), false)?;
        tokio::task::block_in_place(|| arrivals.recv_timeout(PATIENCE)).expect("it arrives");
        stream.send_data(Bytes::from_static(b"last"), true)?;
        h2_answer(response).await
    });
    assert_eq!(answer.expect("an answer").body, b"whole");
}

#[test]
fn bytes_go_both_ways_at_once() {
    let origin = RawOrigin::start(|peer, _| {
        peer.head()?;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            // "1\r\nX\r\n" or the end.
            let chunk = peer.bytes(5)?;
            peer.send(&chunk)?;
            if chunk.starts_with(b"0") {
                return Ok(());
            }
            let end = peer.bytes(1)?;
            peer.send(end)?;
        }
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    let mut client = Client::connect(gate.http);
    client.send("POST / HTTP/1.1\r\nHost: gate.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status, 200);
    for byte in b'a'..=b'z' {
        client.send(format!("1\r\n{}\r\n", char::from(byte)));
        assert_eq!(client.chunk(), [byte]);
    }
    client.send("0\r\n\r\n");
    assert!(client.chunk().is_empty());
}

#[test]
fn an_answer_that_comes_before_the_upload_ends_is_passed_on() {
    let origin = RawOrigin::start(|peer, _| {
        peer.head()?;
        peer.bytes(1000)?;
        peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    for kib in [1, 64, 8192] {
        let mut client = Client::connect(gate.http);
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: gate.test\r\nContent-Length: {}\r\n\r\n",
            kib << 10
        ));
        // The gateway may stop reading once it has answered.
        let _ = client.try_send(vec![b'x'; kib << 10]);
        let answer = client.response();
        assert_eq!((answer.status, answer.text().as_str()), (403, "no"), "{kib} KiB");
    }
}

#[test]
fn bodies_of_any_size_arrive_whole_and_memory_stays_bounded() {
    let origin = sized_origin();
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    transfer(gate.http, 1 << 20, true);
    transfer(gate.http, 1 << 20, false);
    let before = rss_bytes(&gate);
    for announced in [true, false] {
        transfer(gate.http, 100 << 20, announced);
        let grown = rss_bytes(&gate).saturating_sub(before);
        assert!(grown < RSS_GROWTH_MAX, "100 MiB each way took {} KiB more", grown >> 10);
    }
}

#[test]
fn a_client_that_does_not_read_holds_its_origin_back_not_our_memory() {
    let origin = sized_origin();
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    transfer(gate.http, 1 << 20, true);
    let before = rss_bytes(&gate);
    let mut lazy: Vec<Client> = (0..10).map(|_| Client::connect(gate.http)).collect();
    for client in &mut lazy {
        client.send(request_bytes("GET", &format!("/{}", 100 << 20), &[], ""));
        assert_eq!(client.head().status, 200);
    }
    std::thread::sleep(Duration::from_millis(500));
    let grown = rss_bytes(&gate).saturating_sub(before);
    assert!(grown < RSS_GROWTH_MAX, "ten clients that do not read took {} KiB", grown >> 10);
}

#[test]
fn a_client_that_leaves_ends_the_call_to_its_origin() {
    // The origin tells how each of its connections ended.
    let (ended, ends) = channel();
    let ended = Mutex::new(ended);
    let origin = RawOrigin::start(move |peer, _| {
        let head = peer.head()?;
        if head.starts_with("GET /body") {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
        }
        let mut byte = [0];
        let end = matches!(peer.0.read(&mut byte), Ok(0) | Err(_));
        ended.lock().expect("one at a time").send(end).map_err(io::Error::other)
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    for (path, waits_for_head) in [("/silent", false), ("/body", true)] {
        let mut client = Client::connect(gate.http);
        client.send(request_bytes("GET", path, &[], ""));
        if waits_for_head {
            client.head();
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(client);
        assert_eq!(ends.recv_timeout(PATIENCE), Ok(true), "{path} by HTTP/1.1");
        // By HTTP/2 the stream is reset, its connection stays.
        block_on(async {
            let mut send = h2_connect(gate.http).await.expect("it connects");
            let request = http::Request::get(format!("http://gate.test{path}")).body(());
            let (response, mut stream) =
                send.send_request(request.expect("it is valid"), true).expect("it is sent");
            if waits_for_head {
                let answer = response.await.expect("a head");
                stream.send_reset(h2::Reason::CANCEL);
                drop(answer);
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.send_reset(h2::Reason::CANCEL);
                drop(response);
            }
            let end = tokio::task::block_in_place(|| ends.recv_timeout(PATIENCE));
            assert_eq!(end, Ok(true), "{path} by HTTP/2");
        });
    }
    gate.wait_for_access_line("499");
}

#[test]
fn an_answer_that_breaks_off_is_not_passed_on_as_a_whole_one() {
    let gate = gateway(json!({}));
    for answer in [
        "Content-Length: 10\r\n\r\nfirst",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\nxyz\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nfirstmore",
    ] {
        let origin = RawOrigin::start(move |peer, _| {
            peer.head()?;
            peer.send(format!("HTTP/1.1 200 OK\r\n{answer}"))?;
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        });
        gate.set_proxy("1", "/*", origin.addr);
        let mut client = Client::connect(gate.http);
        client.send(request_bytes("GET", "/", &[], ""));
        assert!(client.try_response().is_err(), "{answer:?} by HTTP/1.1");
        let request = http::Request::get("http://gate.test/").body(()).expect("it is valid");
        assert!(h2_exchange(gate.http, request, &[]).is_err(), "{answer:?} by HTTP/2");
    }
}

#[test]
fn an_upload_that_breaks_off_is_not_passed_on_as_a_whole_one() {
    let origin = Origin::text("taken");
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    for (head, body) in [
        ("Content-Length: 10", "first"),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n"),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n0\r\n"),
    ] {
        let mut client = Client::connect(gate.http);
        client.send(format!("POST / HTTP/1.1\r\nHost: gate.test\r\n{head}\r\n\r\n{body}"));
        std::thread::sleep(Duration::from_millis(50));
        client.end_sending();
        // 400 or just the end: nobody may be there to read it.
        if let Ok(answer) = client.try_response() {
            assert_eq!(answer.status, 400, "{head}");
        }
        drop(client);
        until("the origin's connection to end", || (origin.open() == 0).then_some(()));
        assert!(origin.requests().is_empty(), "{head} {body:?}: no whole request arrived");
    }
}

#[test]
fn an_upload_by_http_2_that_is_reset_is_not_passed_on_as_a_whole_one() {
    let origin = Origin::text("taken");
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    block_on(async {
        let mut send = h2_connect(gate.http).await.expect("it connects");
        for _ in 0..5 {
            let request = http::Request::post("http://gate.test/").body(()).expect("it is valid");
            let (response, mut stream) = send.send_request(request, false).expect("it is sent");
            stream.send_data(Bytes::from_static(b"first"), false).expect("it is sent");
            tokio::time::sleep(Duration::from_millis(30)).await;
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
        }
        // The connection goes on.
        let request = http::Request::get("http://gate.test/").body(()).expect("it is valid");
        let (response, _) = send.send_request(request, true).expect("it is sent");
        assert_eq!(h2_answer(response).await.expect("an answer").body, b"taken");
    });
    until("the broken calls to end", || (origin.open() <= 1).then_some(()));
    assert_eq!(origin.requests().len(), 1, "only the last request was whole");
}

#[test]
fn uploads_by_http_2_that_nobody_reads_do_not_block_their_connection() {
    let gate = gateway(json!({}));
    gate.set("/routes/1", &json!({"uri": "/*", "upstream": {"type": "roundrobin", "nodes": {}}}));
    block_on(async {
        let mut send = h2_connect(gate.http).await.expect("it connects");
        for n in 0..40 {
            let request = http::Request::post("http://gate.test/").body(()).expect("it is valid");
            let (response, mut stream) = send.send_request(request, false).expect("it is sent");
            // More than the window of a stream each, and of the connection all together.
            stream.reserve_capacity(100_000);
            let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let granted = tokio::time::timeout(PATIENCE, granted).await.expect("there is room");
            if let Some(Ok(bytes)) = granted {
                let _ = stream.send_data(Bytes::from(vec![b'x'; bytes]), false);
            }
            let answer = tokio::time::timeout(PATIENCE, response).await.expect("in time");
            assert_eq!(answer.expect("an answer").status(), 503, "upload {n}");
        }
    });
}

#[test]
fn an_idle_client_connection_is_closed_after_keepalive_timeout() {
    let origin = Origin::text("x");
    for (timeout, kept) in [("1s", true), ("0", false)] {
        let gate = gateway(json!({"nginx_config": {"http": {"keepalive_timeout": timeout}}}));
        gate.set_proxy("1", "/*", origin.addr);
        let mut client = Client::connect(gate.http);
        for _ in 0..3 {
            let answer = client.get("/");
            assert_eq!(answer.header("connection"), (!kept).then_some("close"), "{timeout}");
            if !kept {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let began = Instant::now();
        assert!(client.rest().is_empty(), "{timeout}");
        assert!(began.elapsed() < Duration::from_secs(3), "{timeout}: {:?}", began.elapsed());
    }
}

#[test]
fn a_body_over_client_max_body_size_is_413() {
    let origin = Origin::text("taken");
    let gate = gateway(json!({"nginx_config": {"http": {"client_max_body_size": 1000}}}));
    gate.set_proxy("1", "/*", origin.addr);
    let chunked = |n: usize| {
        let head = "POST / HTTP/1.1\r\nHost: gate.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{}\r\n0\r\n\r\n", n, "x".repeat(n)).into_bytes()
    };
    for (bytes, status) in [(1000, 200), (1001, 413), (100_000, 413)] {
        for (way, sent) in [
            ("length", request_bytes("POST", "/", &[], "x".repeat(bytes))),
            ("chunks", chunked(bytes)),
        ] {
            origin.clear();
            let mut client = Client::connect(gate.http);
            let _ = client.try_send(sent);
            assert_eq!(client.response().status, status, "{bytes} bytes by {way}");
            assert_eq!(
                origin.requests().len(),
                usize::from(status == 200),
                "{bytes} bytes by {way}"
            );
        }
        let request = http::Request::post("http://gate.test/").body(()).expect("it is valid");
        let answer = h2_exchange(gate.http, request, &[&vec![b'x'; bytes]]);
        assert!(answer.is_ok_and(|a| a.status == status), "{bytes} bytes by HTTP/2");
    }
}

#[test]
fn head_204_and_304_have_no_body_and_leave_the_connection_usable() {
    let origin = Origin::start(|received| match received.path() {
        "/204" => Answer::status(204),
        "/304" => Answer::status(304).header("ETag", "\"x\"").header("Content-Length", "5"),
        "/chunked" if received.method == "HEAD" => {
            Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        }
        _ if received.method == "HEAD" => Answer::status(200).header("Content-Length", "5"),
        _ => Answer::text("there"),
    });
    let gate = gateway(json!({"nginx_config": {"worker_processes": 1}}));
    gate.set_proxy("1", "/*", origin.addr);
    let mut client = Client::connect(gate.http);
    for (method, path, status, length) in [
        ("HEAD", "/", 200, Some("5")),
        ("HEAD", "/chunked", 200, None),
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, Some("5")),
        ("HEAD", "/304", 304, Some("5")),
    ] {
        let answer = client.send(request_bytes(method, path, &[], "")).head();
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("content-length"), length, "{method} {path}");
        assert_eq!(client.get("/").text(), "there", "after {method} {path}");
        let mut request = http::Request::get(format!("http://gate.test{path}"));
        if method == "HEAD" {
            request = request.method("HEAD");
        }
        let answer = h2_exchange(gate.http, request.body(()).expect("it is valid"), &[]);
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{method} {path} by HTTP/2");
    }
    assert_eq!(origin.accepted(), 1, "upstream connections are used again too");
    // A HEAD that no route matches has no body either.
    gate.delete("/routes/1");
    let answer = client.send(request_bytes("HEAD", "/", &[], "")).head();
    assert_eq!(answer.status, 404);
    assert_eq!(client.get("/").status, 404);
}

#[test]
fn interim_answers_of_an_origin_are_not_passed_on() {
    let origin = Origin::start(|_| {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        Answer::raw(format!(
            "{interim}HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        ))
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    let mut client = Client::connect(gate.http);
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!(
            (answer.status, answer.informational.len(), answer.text().as_str()),
            (200, 0, "ok")
        );
        assert_eq!(answer.header("link"), None);
    }
}

#[test]
fn an_http_1_0_client_gets_no_chunks() {
    let origin = Origin::start(|_| Answer::status(200).chunk("first").chunk("last"));
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    for connection in ["", "Connection: keep-alive\r\n"] {
        let mut client = Client::connect(gate.http);
        let answer = client.send(format!("GET / HTTP/1.0\r\n{connection}\r\n")).response();
        assert_eq!(answer.header("transfer-encoding"), None);
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(answer.text(), "firstlast");
    }
}

#[test]
fn trailers_of_a_chunked_answer_reach_the_client() {
    let origin = Origin::start(|_| {
        Answer::raw(
            "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\nContent-Length: 9\r\n\r\n",
        )
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    let answer = get(gate.http, "/");
    let trailers: Vec<_> = answer.trailers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(trailers, [("X-Sum", "42")]);
    let request = http::Request::get("http://gate.test/").body(()).expect("it is valid");
    let answer = h2_exchange(gate.http, request, &[]).expect("an answer");
    assert_eq!(answer.trailers.get("x-sum").map(|v| v.as_bytes()), Some(&b"42"[..]));
}

#[test]
fn a_slow_client_is_not_its_upstreams_fault() {
    let origin = Origin::start(|received| Answer::text(received.body.clone()));
    let gate = gateway(
        json!({"nginx_config": {"http": {"client_body_timeout": "2s", "send_timeout": "1s"}}}),
    );
    let quick = json!({"connect": 0.3, "send": 0.3, "read": 0.3});
    let nodes = json!({origin.addr.to_string(): 1});
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": {"type": "roundrobin", "nodes": nodes, "timeout": quick}}),
    );
    // A pause longer than the upstream's limits, shorter than the client's.
    let mut client = Client::connect(gate.http);
    client.send("POST / HTTP/1.1\r\nHost: gate.test\r\nContent-Length: 9\r\n\r\nfirst");
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(client.send("last").response().text(), "firstlast");
    // A longer one: 408, and no whole request at the origin.
    origin.clear();
    let began = Instant::now();
    client.send("POST / HTTP/1.1\r\nHost: gate.test\r\nContent-Length: 9\r\n\r\nfirst");
    assert_eq!(client.response().status, 408);
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
    assert!(origin.requests().is_empty());
    // An answer nobody reads is given up after send_timeout.
    let big = sized_origin();
    gate.set_proxy("1", "/*", big.addr);
    let mut client = Client::connect(gate.http);
    client.send(request_bytes("GET", &format!("/{}", 100 << 20), &[], ""));
    std::thread::sleep(Duration::from_millis(2500));
    assert!(client.rest().len() < 100 << 20);
}

#[test]
fn an_upstream_that_does_not_take_an_upload_is_a_504() {
    let origin = RawOrigin::start(|peer, _| {
        peer.head()?;
        std::thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    let gate = gateway(json!({}));
    let nodes = json!({origin.addr.to_string(): 1});
    let quick = json!({"connect": 0.5, "send": 0.5, "read": 10});
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": {"type": "roundrobin", "nodes": nodes, "timeout": quick}}),
    );
    let mut client = Client::connect(gate.http);
    let began = Instant::now();
    let _ = client.try_send(request_bytes("POST", "/", &[], vec![b'x'; 16 << 20]));
    assert_eq!(client.response().status, 504);
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[test]
fn a_large_header_block_passes_both_ways() {
    let value = "v".repeat(30_000);
    let copy = value.clone();
    let origin = Origin::start(move |received| {
        Answer::text(received.header("x-large").unwrap_or("").len().to_string())
            .header("X-Large", &copy)
    });
    let gate = gateway(json!({}));
    gate.set_proxy("1", "/*", origin.addr);
    let answer = request(gate.http, "GET", "/", &[("X-Large", &value)], "");
    assert_eq!(
        (answer.text().as_str(), answer.header("x-large").map(str::len)),
        ("30000", Some(30_000))
    );
}

/// How much the resident memory may grow while bodies pass.
const RSS_GROWTH_MAX: u64 = 24 << 20;

fn gateway(config: Value) -> GatewayProcess {
    GatewayProcess::with(crate::BINARY, config)
}

/// Lets a test decide when an origin goes on.
fn gate_channel() -> (Sender<()>, Arc<Mutex<Receiver<()>>>) {
    let (go, gone) = channel();
    (go, Arc::new(Mutex::new(gone)))
}

fn wait_for(gone: &Mutex<Receiver<()>>) -> io::Result<()> {
    let gone = gone.lock().map_err(|_| io::Error::other("a connection panicked"))?;
    gone.recv_timeout(PATIENCE).map_err(io::Error::other)
}

/// Answers `/N` with N bytes, and an upload with the number and the sum of its bytes.
fn sized_origin() -> RawOrigin {
    RawOrigin::start(|peer, _| {
        loop {
            let head = peer.head()?;
            let bytes: usize = crate::wire::target(&head)[1..].parse().map_err(io::Error::other)?;
            if head.starts_with("GET") {
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n"))?;
                let piece = vec![b'x'; 1 << 16];
                let mut left = bytes;
                while left > 0 {
                    let n = left.min(piece.len());
                    peer.send(&piece[..n])?;
                    left -= n;
                }
                continue;
            }
            let sum = match field(&head, "content-length") {
                Some(_) => count(&mut peer.0, bytes)?,
                None => {
                    let mut sum = 0;
                    loop {
                        let mut line = String::new();
                        io::BufRead::read_line(&mut peer.0, &mut line)?;
                        let n = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                        sum += count(&mut peer.0, n)?;
                        peer.bytes(2)?;
                        if n == 0 {
                            break sum;
                        }
                    }
                }
            };
            let answer = sum.to_string();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}",
                answer.len()
            ))?;
        }
    })
}

/// Reads `n` bytes; how many of them are an `x`.
fn count(from: &mut impl Read, n: usize) -> io::Result<usize> {
    let mut piece = vec![0; 1 << 16];
    let (mut left, mut found) = (n, 0);
    while left > 0 {
        let n = left.min(piece.len());
        from.read_exact(&mut piece[..n])?;
        found += piece[..n].iter().filter(|byte| **byte == b'x').count();
        left -= n;
    }
    Ok(found)
}

/// Moves `bytes` to a [`sized_origin`] and as many back.
#[track_caller]
fn transfer(addr: SocketAddr, bytes: usize, announced: bool) {
    let mut tcp = TcpStream::connect(addr).expect("the gateway listens");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a socket has a time limit");
    let framing = match announced {
        true => format!("Content-Length: {bytes}"),
        false => "Transfer-Encoding: chunked".to_owned(),
    };
    let write = |tcp: &mut TcpStream| -> io::Result<()> {
        tcp.write_all(
            format!("PUT /{bytes} HTTP/1.1\r\nHost: gate.test\r\n{framing}\r\n\r\n").as_bytes(),
        )?;
        let piece = vec![b'x'; 1 << 16];
        for _ in 0..bytes / piece.len() {
            if !announced {
                tcp.write_all(b"10000\r\n")?;
            }
            tcp.write_all(&piece)?;
            if !announced {
                tcp.write_all(b"\r\n")?;
            }
        }
        if announced { Ok(()) } else { tcp.write_all(b"0\r\n\r\n") }
    };
    write(&mut tcp).expect("the gateway takes the upload");
    let mut from =
        io::BufReader::with_capacity(1 << 16, tcp.try_clone().expect("it can be shared"));
    let head = read_head(&mut from);
    let length = field(&head, "content-length").and_then(|n| n.parse().ok()).expect("it is told");
    let mut told = vec![0; length];
    from.read_exact(&mut told).expect("the answer is whole");
    assert_eq!(String::from_utf8_lossy(&told), bytes.to_string(), "every byte arrived");
    tcp.write_all(&request_bytes("GET", &format!("/{bytes}"), &[], "")).expect("it is kept open");
    let head = read_head(&mut from);
    assert_eq!(field(&head, "content-length"), Some(bytes.to_string().as_str()));
    assert_eq!(count(&mut from, bytes).expect("the answer is whole"), bytes);
}

fn read_head(from: &mut impl io::BufRead) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(from.read_until(b'\n', &mut head).expect("an answer comes") > 0, "an answer comes");
    }
    String::from_utf8_lossy(&head).into_owned()
}

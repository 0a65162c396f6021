//! Attacks that once got through, and what holds resources back from others.

use std::io::{BufRead, Read};
use std::sync::mpsc::channel;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use rustix::process::Signal;
use serde_json::json;
use sluicegate_testkit::certs::self_signed;
use sluicegate_testkit::client::{Client, get, request};
use sluicegate_testkit::origin::{Answer, Origin};
use sluicegate_testkit::wait::PATIENCE;
use sluicegate_testkit::{GatewayProcess, wait};

use crate::wire::{Peer, RawOrigin, block_on, h2_answer, h2_connect};

#[test]
fn bytes_behind_an_answer_over_tls_are_never_taken_for_the_next_one() {
    let gate = one_thread(json!({}));
    let pair = self_signed(&["up.test"]);
    let fine = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for late in [false, true] {
        let origin = Origin::tls(&pair, move |_| match late {
            true => Answer::raw(fine).pause(Duration::from_millis(20)).then(evil),
            false => Answer::raw(format!("{fine}{evil}")),
        });
        let nodes = json!({origin.addr.to_string(): 1});
        let upstream = json!({"type": "roundrobin", "scheme": "https", "nodes": nodes});
        gate.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
        gate.set_lambda("2", "/fn", json!({"function_uri": origin.url("/"), "ssl_verify": false}));
        for path in ["/", "/", "/fn", "/fn"] {
            assert_eq!(get(gate.http, path).text(), "fine", "{path}, late: {late}");
            std::thread::sleep(Duration::from_millis(60));
        }
        assert_eq!(origin.accepted(), 4, "late: {late}");
    }
}

#[test]
fn a_quiet_tls_connection_is_used_again() {
    // Session tickets, which come behind the handshake, are no reason to give it up.
    let gate = one_thread(json!({}));
    let origin = Origin::tls(&self_signed(&["up.test"]), |_| Answer::text("fine"));
    gate.set_lambda("1", "/", json!({"function_uri": origin.url("/"), "ssl_verify": false}));
    for _ in 0..5 {
        assert_eq!(get(gate.http, "/").text(), "fine");
        std::thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn interim_answers_have_a_limit() {
    let gate = one_thread(json!({}));
    for (interim, status) in [(100, 200), (101, 502)] {
        let heads = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(interim);
        let answer = format!("{heads}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let origin = Origin::start(move |_| Answer::raw(answer.clone()));
        gate.set_proxy("1", "/*", origin.addr);
        assert_eq!(get(gate.http, "/").status, status, "{interim} interim answers");
    }
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_a_502_at_once() {
    let gate = one_thread(json!({}));
    let origin = Origin::start(|_| Answer::raw("HTTP/1.1 101 Switching Protocols\r\n\r\n"));
    gate.set_proxy("1", "/*", origin.addr);
    assert_eq!(get(gate.http, "/").status, 502);
}

#[test]
fn an_http_2_upstream_that_goes_during_an_upload_is_not_the_clients_fault() {
    let gate = one_thread(json!({}));
    let origin = RawOrigin::start(|peer, _| {
        peer.bytes(PREFACE.len())?;
        // No byte of a body may be sent.
        peer.send(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0")?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    });
    let nodes = json!({origin.addr.to_string(): 1});
    let upstream = json!({"type": "roundrobin", "scheme": "grpc", "nodes": nodes});
    gate.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
    assert_eq!(request(gate.http, "POST", "/", &[], "abc").status, 502);
}

#[test]
fn a_request_behind_an_empty_line_is_answered_wherever_it_is_cut() {
    let gate = one_thread(json!({}));
    let origin = Origin::text("fine");
    gate.set_proxy("1", "/*", origin.addr);
    let request = b"\r\nGET / HTTP/1.1\r\nHost: gate.test\r\n\r\n";
    for cut in [1, 2, 3, request.len() - 3, request.len() - 2, request.len() - 1] {
        let mut client = Client::connect(gate.http);
        client.send(&request[..cut]);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(client.send(&request[cut..]).response().status, 200, "cut at {cut}");
    }
}

#[test]
fn an_http_2_preface_may_come_in_pieces() {
    let gate = one_thread(json!({}));
    for cut in [1, 4, 17, 18, 20, PREFACE.len() - 1] {
        let mut client = Peer::connect(gate.http);
        client.send(&PREFACE[..cut]).expect("it is taken");
        std::thread::sleep(Duration::from_millis(20));
        client.send([&PREFACE[cut..], SETTINGS].concat()).expect("it is taken");
        let frame = client.bytes(9).expect("a frame comes");
        assert_eq!(frame[3], SETTINGS[3], "cut at {cut}");
    }
}

#[test]
fn trailers_of_an_upload_cannot_pose_as_its_head() {
    let gate = one_thread(json!({}));
    let (saw, seen) = channel();
    let origin = RawOrigin::start(move |peer, _| {
        let _ = peer.head()?;
        let mut lines = Vec::new();
        // The one chunk, the last one, then trailers up to the empty line.
        while lines.last().is_none_or(|line: &String| !line.is_empty()) {
            let mut line = String::new();
            peer.0.read_line(&mut line)?;
            lines.push(line.trim_end().to_owned());
        }
        let _ = saw.send(lines);
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    });
    gate.set_proxy("1", "/*", origin.addr);
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let request = http::Request::post("http://gate.test/").body(()).expect("it is well formed");
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(Bytes::from_static(b"abc"), false)?;
        let mut trailers = HeaderMap::new();
        for (name, value) in [
            ("content-length", "3"),
            ("host", "evil.test"),
            ("authorization", "evil"),
            ("x-real-ip", "6.6.6.6"),
            ("x-checksum", "good"),
        ] {
            trailers.insert(name, value.parse().expect("it is well formed"));
        }
        stream.send_trailers(trailers)?;
        h2_answer(response).await
    });
    assert_eq!(answer.expect("it is answered").status, 200);
    let lines = seen.recv_timeout(PATIENCE).expect("the upload arrives");
    assert_eq!(lines, ["3", "abc", "0", "x-checksum: good", ""]);
}

#[test]
fn an_http_2_client_that_falls_silent_is_let_go() {
    let mut gate = one_thread(json!({"nginx_config": {"http": {"keepalive_timeout": "1s"}}}));
    let greet = || {
        let mut client = Peer::connect(gate.http);
        client.send([PREFACE, SETTINGS].concat()).expect("it is taken");
        client
    };
    // It neither closes nor answers the gateway's goodbye.
    let mut idle = greet();
    let ended = idle.0.read_to_end(&mut Vec::new());
    assert!(ended.is_ok(), "{ended:?}");
    // Nor does it hold up a stop.
    let _silent = greet();
    std::thread::sleep(Duration::from_millis(50));
    gate.signal(Signal::TERM);
    assert!(gate.ended_within(PATIENCE).is_some(), "it ends");
}

#[test]
fn an_announced_body_takes_no_room_from_others() {
    let gate = one_thread(json!({"sluicegate": {"limits": {"buffered_body_bytes": 1 << 20}}}));
    let origin = Origin::text("fine");
    gate.set_lambda("1", "/", json!({"function_uri": origin.url("/")}));
    let post = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: gate.test\r\nContent-Length: {length}\r\n\r\n")
    };
    let announce = |length| {
        let mut client = Client::connect(gate.http);
        client.send(post(length)).send("x");
        client
    };
    let _held: Vec<Client> = (0..5).map(|_| announce(900 << 10)).collect();
    std::thread::sleep(Duration::from_millis(50));
    let mut client = Client::connect(gate.http);
    let body = "x".repeat(500 << 10);
    assert_eq!(client.send(post(body.len())).send(&body).response().status, 200);
    // More than there is room for at all is refused before it comes.
    assert_eq!(announce((1 << 20) + 1).response().status, 503);
}

#[test]
fn a_log_that_cannot_be_opened_again_goes_on_in_the_file_it_has() {
    let gate = one_thread(json!({}));
    get(gate.http, "/before");
    gate.wait_for_access_line("/before");
    std::fs::rename(gate.path("logs/access.log"), gate.path("logs/old.log")).expect("it is there");
    std::fs::create_dir(gate.path("logs/access.log")).expect("the name is free");
    gate.signal(Signal::USR1);
    gate.wait_for_error_line("The access log cannot be opened.");
    get(gate.http, "/after");
    wait::until("the line in the old file", || {
        gate.read("logs/old.log").contains("/after").then_some(())
    });
}

#[test]
fn connections_to_the_admin_api_have_a_limit() {
    let gate = one_thread(json!({}));
    let half = || {
        let mut client = Client::connect(gate.admin);
        client.send("GET /apisix/admin/routes HTTP/1.1\r\n");
        client
    };
    let mut held: Vec<Client> = (0..MANAGEMENT_CONNECTIONS_MAX - 1).map(|_| half()).collect();
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", gate.pid().as_raw_nonzero()));
        files.expect("Linux tells it").count()
    };
    wait::until("the connections to be accepted", || (open() >= held.len()).then_some(()));
    // The last place is there; one more waits until another is given back.
    held.push(half());
    let mut late = Peer::connect(gate.admin);
    let sent = late.send("GET / HTTP/1.1\r\nHost: gate.test\r\n\r\n");
    sent.expect("the kernel takes it");
    let patience = |late: &Peer, time| late.0.get_ref().set_read_timeout(Some(time));
    patience(&late, Duration::from_millis(200)).expect("it is connected");
    assert!(late.0.fill_buf().is_err(), "it is not served yet");
    patience(&late, PATIENCE).expect("it is connected");
    held.pop();
    assert!(late.head().expect("it is served").starts_with("HTTP/1.1 404"));
    drop(held);
    assert_eq!(gate.get("/routes").0, 200);
}

/// A gateway with one request thread, so that connections can be counted.
fn one_thread(mut changes: serde_json::Value) -> GatewayProcess {
    changes["nginx_config"]["worker_processes"] = json!(1);
    GatewayProcess::with(crate::BINARY, changes)
}

/// What an HTTP/2 client begins with, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// As in the binary.
const MANAGEMENT_CONNECTIONS_MAX: usize = 256;

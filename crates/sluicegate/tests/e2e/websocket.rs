//! `enable_websocket`: after `101 Switching Protocols` bytes pass both ways as they come.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sluicegate_testkit::GatewayProcess;
use sluicegate_testkit::client::request_bytes;
use sluicegate_testkit::wait::until;

use crate::wire::{Peer, RawOrigin, field};

#[test]
fn bytes_pass_both_ways_after_the_switch() {
    let origin = EchoSocket::start();
    let gate = gateway(origin.addr(), true);
    let mut client = Peer::connect(gate.http);
    client.send(upgrade("/chat")).expect("it is taken");
    let answer = client.head().expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert_eq!(field(&answer, "upgrade"), Some("websocket"));
    assert_eq!(
        field(&answer, "connection").map(str::to_ascii_lowercase).as_deref(),
        Some("upgrade")
    );
    assert_eq!(field(&answer, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(
        (field(&answer, "content-length"), field(&answer, "transfer-encoding")),
        (None, None)
    );
    for n in [1, 100, 200_000] {
        let message = vec![0x81; n];
        client.send(&message).expect("it is taken");
        assert!(client.bytes(n).expect("it comes back") == message, "{n} bytes");
    }
    let head = origin.head(0);
    assert_eq!(field(&head, "upgrade"), Some("websocket"));
    assert_eq!(field(&head, "connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    assert_eq!(field(&head, "sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(field(&head, "host"), Some("gate.test"));
    assert_eq!(field(&head, "x-forwarded-for"), Some("127.0.0.1"));
    drop(client);
    // The log line comes with the end.
    let line = gate.wait_for_access_line("/chat");
    assert!(line.contains(" 101 "), "{line}");
}

#[test]
fn bytes_sent_along_with_the_handshake_are_not_lost() {
    let origin = EchoSocket::start();
    let gate = gateway(origin.addr(), true);
    let mut client = Peer::connect(gate.http);
    client.send([upgrade("/eager").as_slice(), b"early"].concat()).expect("it is taken");
    client.head().expect("an answer");
    // This origin speaks first, in one write with its answer.
    assert_eq!(client.bytes(5).expect("the greeting"), b"hello");
    assert_eq!(client.bytes(5).expect("the echo"), b"early");
    client.send("later").expect("it is taken");
    assert_eq!(client.bytes(5).expect("the echo"), b"later");
}

#[test]
fn the_end_of_one_side_is_the_end_of_the_other() {
    let origin = EchoSocket::start();
    let gate = gateway(origin.addr(), true);
    let mut client = Peer::connect(gate.http);
    client.send(upgrade("/chat")).expect("it is taken");
    client.head().expect("an answer");
    assert_eq!(origin.ended(), 0);
    drop(client);
    until("the origin's side to end", || (origin.ended() == 1).then_some(()));
    // The origin ends it.
    let mut client = Peer::connect(gate.http);
    client.send(upgrade("/chat")).expect("it is taken");
    client.head().expect("an answer");
    client.send("quit!").expect("it is taken");
    assert!(client.bytes(6).is_err());
}

#[test]
fn a_silent_tunnel_ends_after_the_read_timeout() {
    let origin = EchoSocket::start();
    let gate = gateway(origin.addr(), true);
    gate.set(
        "/routes/1",
        &json!({
            "uri": "/*", "enable_websocket": true, "timeout": {"connect": 5, "send": 5, "read": 0.6},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr().to_string(): 1}},
        }),
    );
    let mut client = Peer::connect(gate.http);
    client.send(upgrade("/chat")).expect("it is taken");
    client.head().expect("an answer");
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        client.send("alive").expect("it is taken");
        assert_eq!(client.bytes(5).expect("bytes keep it open"), b"alive");
    }
    assert!(client.bytes(1).is_err(), "silence ends it");
}

#[test]
fn without_enable_websocket_the_request_is_an_ordinary_one() {
    let origin = EchoSocket::start();
    let gate = gateway(origin.addr(), false);
    let mut client = Peer::connect(gate.http);
    client.send(upgrade("/chat")).expect("it is taken");
    let answer = client.head().expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let head = origin.head(0);
    assert_eq!((field(&head, "upgrade"), field(&head, "connection")), (None, None));
}

#[test]
fn an_origin_may_decline_the_switch() {
    let origin = EchoSocket::start();
    let gate = gateway(origin.addr(), true);
    let mut client = Peer::connect(gate.http);
    client.send(upgrade("/declined")).expect("it is taken");
    let answer = client.head().expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(client.bytes(5).expect("its body"), b"plain");
    // The connection goes on with ordinary requests, which carry no trace of the attempt.
    client.send(request_bytes("GET", "/next", &[], "")).expect("it is taken");
    assert!(client.head().expect("an answer").starts_with("HTTP/1.1 200 "));
    assert_eq!(field(&origin.head(1), "upgrade"), None);
}

#[test]
fn an_unasked_switch_is_an_error_of_the_origin() {
    let origin = RawOrigin::start(|peer, _| {
        peer.head()?;
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    });
    for enabled in [true, false] {
        let gate = gateway(origin.addr, enabled);
        let mut client = Peer::connect(gate.http);
        client.send(request_bytes("GET", "/", &[], "")).expect("it is taken");
        let answer = client.head().expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
}

fn gateway(origin: SocketAddr, enable_websocket: bool) -> GatewayProcess {
    let gate = GatewayProcess::with(crate::BINARY, json!({}));
    gate.set(
        "/routes/1",
        &json!({
            "uri": "/*", "enable_websocket": enable_websocket,
            "upstream": {"type": "roundrobin", "nodes": {origin.to_string(): 1}},
        }),
    );
    gate
}

/// The handshake of RFC 6455 section 1.3.
fn upgrade(path: &str) -> Vec<u8> {
    request_bytes(
        "GET",
        path,
        &[
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
        ],
        "",
    )
}

/// Switches when asked to (but not at `/declined`) and echoes from then on.
struct EchoSocket {
    origin: RawOrigin,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    heads: Vec<String>,
    ended: usize,
}

impl EchoSocket {
    fn start() -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        let origin = RawOrigin::start(move |peer, _| {
            let served = serve(peer, &shared);
            shared.lock().expect("no test holds it").ended += 1;
            served
        });
        Self { origin, seen }
    }

    fn addr(&self) -> SocketAddr {
        self.origin.addr
    }

    fn head(&self, number: usize) -> String {
        until("a head at the origin", || {
            self.seen.lock().expect("no origin thread panics").heads.get(number).cloned()
        })
    }

    fn ended(&self) -> usize {
        self.seen.lock().expect("no origin thread panics").ended
    }
}

fn serve(peer: &mut Peer, seen: &Mutex<Seen>) -> std::io::Result<()> {
    use std::io::BufRead;
    loop {
        let head = peer.head()?;
        seen.lock().expect("no test holds it").heads.push(head.clone());
        if field(&head, "upgrade").is_none() || head.starts_with("GET /declined") {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain")?;
            continue;
        }
        let greeting = if head.starts_with("GET /eager") { "hello" } else { "" };
        peer.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n{greeting}"
        ))?;
        loop {
            let got = peer.0.fill_buf()?.to_vec();
            if got.is_empty() || got == b"quit!" {
                return Ok(());
            }
            peer.0.consume(got.len());
            peer.send(got)?;
        }
    }
}

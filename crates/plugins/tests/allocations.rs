//! How often a request reaches for the heap once everything is warm: connections on both sides are
//! kept, memory comes from what earlier requests gave back.
//!
//! The client and the origin of this file work in fixed memory, so that what the process allocates
//! while they talk is the gateway's. `--no-capture` shows the figures; to learn where an allocation
//! comes from, run this test under `valgrind --tool=dhat --num-callers=60`.

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::{Value, json};
use sluicegate_model::kind::Kind;
use sluicegate_testkit::InProcess;
use sluicegate_testkit::wait::PATIENCE;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations, and growths of one, that a plain proxied request may take.
const PROXY_MAX: usize = 2;

/// The same for a POST of 1 KiB that `aws-lambda` sends with an API key.
const LAMBDA_APIKEY_MAX: usize = 7;

/// The same for one that it signs.
const LAMBDA_IAM_MAX: usize = 7;

// One test: what another one allocates would count too.
#[test]
fn a_request_in_steady_state_allocates_no_more_than_its_limit() {
    let origin = origin();
    let function = |authorization: Value| {
        let uri = format!("http://{origin}/default/orders");
        json!({"aws-lambda": {"function_uri": uri, "authorization": authorization}})
    };
    let iam = json!({"accesskey": "AKIDEXAMPLE", "secretkey": "wJalrXUtnFEMI/K7MDENG"});
    let routes = vec![
        json!({"id": "1", "uri": "/proxy/*", "upstream": {"nodes": {origin.to_string(): 1}}}),
        json!({"id": "2", "uri": "/apikey/*", "plugins": function(json!({"apikey": "a-key"}))}),
        json!({"id": "3", "uri": "/iam/*", "plugins": function(json!({"iam": iam}))}),
    ];
    let routes = routes.into_iter().zip(["1", "2", "3"]);
    let routes = routes.map(|(route, id)| (Kind::Routes, id, route)).collect();
    let gateway = InProcess::start(sluicegate_plugins::registry(), routes);

    let mut over = Vec::new();
    for (case, path, body_len, limit) in [
        ("proxy", "/proxy", 0, PROXY_MAX),
        ("lambda-apikey", "/apikey", 1024, LAMBDA_APIKEY_MAX),
        ("lambda-iam", "/iam", 1024, LAMBDA_IAM_MAX),
    ] {
        let request = request(path, body_len);
        let mut client = connect(gateway.addr);
        let mut ask = || {
            client.write_all(&request).expect("the gateway reads");
            let answer = Message::read(&mut client).expect("the gateway answers");
            assert!(answer.head().starts_with(b"HTTP/1.1 200 "), "{case} is not answered with 200");
        };
        (0..WARM_UP).for_each(|_| ask());
        // Whatever runs once a second, or once a day, falls into few of the rounds.
        let rounds = (0..ROUNDS).map(|_| {
            let region = Region::new(HEAP);
            (0..REQUESTS).for_each(|_| ask());
            let used = region.change();
            used.allocations + used.reallocations
        });
        let quietest = rounds.min().unwrap_or_default();
        let each = (quietest + REQUESTS / 2) / REQUESTS;
        println!("{case}: {each} allocations a request ({quietest} in {REQUESTS}), limit {limit}");
        if each < limit {
            println!("{case}: please lower the limit in {} to {each}", file!());
        }
        if each > limit {
            over.push(format!("{case}: {each} allocations a request, limit {limit}"));
        }
    }
    gateway.stop();
    assert!(over.is_empty(), "{}", over.join("; "));
}

fn request(path: &str, body_len: usize) -> Vec<u8> {
    let mut request = match body_len {
        0 => format!("GET {path}/items?page=2&sort=name HTTP/1.1\r\n"),
        _ => format!("POST {path}/items?page=2&sort=name HTTP/1.1\r\n"),
    };
    request += "Host: api.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\
                Accept-Encoding: gzip, deflate\r\nX-Request-Id: 5f2c1c9e6d2f4f0c\r\n";
    if body_len > 0 {
        request += &format!("Content-Type: application/json\r\nContent-Length: {body_len}\r\n");
    }
    request += "\r\n";
    request += &"x".repeat(body_len);
    request.into_bytes()
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the gateway listens");
    stream.set_nodelay(true).expect("the connection is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("the time limit is not zero");
    stream
}

/// An origin that answers every request alike.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("the listener is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    addr
}

fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    while Message::read(&mut stream).is_some() {
        if stream.write_all(ANSWER).is_err() {
            return;
        }
    }
}

/// A message in fixed memory; its sender waits for an answer before it sends another.
struct Message {
    bytes: [u8; MESSAGE_MAX],
    head_len: usize,
}

impl Message {
    /// `None` at the end of the connection.
    fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut message = Self { bytes: [0; MESSAGE_MAX], head_len: 0 };
        let mut len = 0;
        loop {
            let n = stream.read(&mut message.bytes[len..]).ok().filter(|n| *n > 0)?;
            len += n;
            if message.head_len == 0 {
                let end = message.bytes[..len].windows(4).position(|four| four == b"\r\n\r\n");
                message.head_len = end.map_or(0, |end| end + 4);
            }
            if message.head_len > 0 && len >= message.head_len + message.body_len() {
                return Some(message);
            }
        }
    }

    fn head(&self) -> &[u8] {
        &self.bytes[..self.head_len]
    }

    fn body_len(&self) -> usize {
        let value = self.head().split(|byte| *byte == b'\n').find_map(|line| {
            let (name, value) = line.split_at_checked(LENGTH_FIELD.len())?;
            name.eq_ignore_ascii_case(LENGTH_FIELD).then_some(value)
        });
        let value = value.and_then(|value| std::str::from_utf8(value).ok());
        value.map_or(0, |value| value.trim().parse().expect("a length is a number"))
    }
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/json\r\nContent-Length: 17\r\nConnection: keep-alive\r\n\
    X-Amzn-RequestId: 6c5b5c8e-95c5-4d4a-8a3a-0d7f3a9a1b11\r\n\r\n{\"hello\":\"there\"}";

const LENGTH_FIELD: &[u8] = b"content-length:";
const MESSAGE_MAX: usize = 8 << 10;
const WARM_UP: usize = 100;
const ROUNDS: usize = 4;
const REQUESTS: usize = 100;

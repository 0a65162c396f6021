//! `proxy-mirror`: copies of requests that go to upstreams and to functions.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, get, request};
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

#[test]
fn a_copy_goes_out_in_front_of_an_upstream_and_of_a_function() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("this"));
    let other = Origin::start(|_| Answer::status(500).body("nobody sees this"));
    routes(&gate, &origin, json!({"proxy-mirror": {"host": other.url("")}}));
    for (n, path) in ["/upstream?a=b", "/function?a=b"].into_iter().enumerate() {
        let answer = request(gate.http, "POST", path, &[("X-Own", "1")], b"a body");
        assert_eq!((answer.status, answer.text().as_str()), (200, "this"), "{path}");
        let copy = other.wait_for(n);
        assert_eq!((copy.method.as_str(), copy.target.as_str()), ("POST", path));
        assert_eq!((copy.header("x-own"), copy.body.as_slice()), (Some("1"), &b"a body"[..]));
        assert_eq!(copy.header("x-api-key"), None, "what is for the function stays there");
        assert_eq!(copy.header("host"), Some("gate.test"));
    }
    assert_eq!(origin.last().header("x-api-key"), Some("for-the-function"));
}

#[test]
fn what_a_plugin_refuses_is_not_copied() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("this"));
    let other = Origin::text("nobody sees this");
    let limit = json!({"count": 1, "time_window": 3600});
    let mirror = json!({"host": other.url("")});
    routes(&gate, &origin, json!({"proxy-mirror": mirror, "limit-count": limit}));
    for path in ["/upstream", "/function"] {
        assert_eq!([(); 3].map(|()| get(gate.http, path).status), [200, 503, 503]);
    }
    other.wait_for(1);
    assert_eq!(other.requests().len(), 2);
}

#[test]
fn a_server_that_is_slow_or_gone_costs_the_request_nothing() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("this"));
    let slow = Origin::start(|_| Answer::text("late").after(Duration::from_secs(60)));
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    for host in [slow.url(""), format!("http://{gone}"), "http://no-such-name.invalid".into()] {
        routes(&gate, &origin, json!({"proxy-mirror": {"host": host}}));
        for path in ["/upstream", "/function"] {
            let begun = Instant::now();
            assert_eq!(get(gate.http, path).text(), "this", "{host} {path}");
            assert!(begun.elapsed() < Duration::from_secs(15), "{host} {path}");
        }
    }
    gate.wait_for_error_line("A copy of a request did not reach its server.");
}

#[test]
fn a_long_body_is_copied_while_it_passes() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("this"));
    let other = Origin::text("nobody sees this");
    routes(&gate, &origin, json!({"proxy-mirror": {"host": other.url("")}}));
    let body: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut client = Client::connect(gate.http);
    client.send("POST /upstream HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(100_000) {
        client.send(format!("{:x}\r\n", piece.len())).send(piece).send("\r\n");
        std::thread::sleep(Duration::from_millis(2));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().text(), "this");
    assert!(origin.last().body == body);
    assert!(other.wait_for(0).body == body, "the copy is whole");
}

#[test]
fn a_copy_that_is_not_taken_is_given_up_and_the_request_is_not() {
    let (gate, origin) = (GatewayProcess::start(crate::BINARY), Origin::text("this"));
    // It accepts, and never reads.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = format!("http://{}", deaf.local_addr().expect("it is bound"));
    routes(&gate, &origin, json!({"proxy-mirror": {"host": host}}));
    let held = std::thread::spawn(move || {
        let (mut stream, _) = deaf.accept().expect("the copy connects");
        std::thread::sleep(Duration::from_secs(3));
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all.len()
    });
    let body = vec![b'x'; 32 << 20];
    let answer = request(gate.http, "POST", "/upstream", &[], &body);
    assert_eq!(answer.text(), "this");
    assert_eq!(origin.last().body.len(), body.len());
    gate.wait_for_error_line("the server takes it too slowly");
    assert!(held.join().expect("no panic") < body.len());
}

/// Routes `/upstream` and `/function` with these plugins.
fn routes(gate: &GatewayProcess, origin: &Origin, plugins: Value) {
    let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gate.set(
        "/routes/upstream",
        &json!({"uri": "/upstream", "plugins": plugins, "upstream": upstream}),
    );
    let mut with = plugins;
    with["aws-lambda"] = json!({
        "function_uri": origin.url("/"),
        "authorization": {"apikey": "for-the-function"},
    });
    gate.set("/routes/function", &json!({"uri": "/function", "plugins": with}));
}

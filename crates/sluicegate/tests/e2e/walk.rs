//! The walk of APISIX's aws-lambda page, and every promise of the plugin behind it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_standin::{Addrs, Settings, Standin};
use sluicegate_testkit::client::{self, Client, curl};
use sluicegate_testkit::gateway::config;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, certs, wait};

use crate::BINARY;

#[test]
fn the_walk_of_the_aws_lambda_page_works_from_an_empty_prefix() {
    let aws = Aws::start();
    let mut gateway = GatewayProcess::prepare(BINARY, "");
    let file = gateway.path("conf/config.yaml");
    std::fs::remove_dir_all(gateway.path("conf")).unwrap();

    // The default port is taken, here or by somebody else: the file is made, the start ends.
    let _taken = std::net::TcpListener::bind("0.0.0.0:9080");
    let started = gateway.command(&["start"]);
    assert!(!started.status.success());
    let told = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(told.contains(":9080 is taken by another process"), "{told}");

    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the file holds a key");

    // What the page reads with yq.
    let text = std::fs::read_to_string(&file).unwrap();
    let key = text
        .lines()
        .skip_while(|line| line.trim() != "admin_key:")
        .find_map(|line| line.trim().strip_prefix("key: "))
        .and_then(|value| value.split(['\'', '"']).nth(1))
        .expect("there is a key");
    assert!(key.len() >= 32 && key.bytes().all(|b| b.is_ascii_alphanumeric()), "{key}");
    assert!(text.contains("# Who may connect to the Admin API."), "comments are kept: {text}");

    let any = "ip: 127.0.0.1\nINDENTport: 0";
    let ports = format!("- {any}\n    - {any}").replace("INDENT", "      ");
    let text = text
        .replace("- 9080", &ports)
        .replace("- port: 9443", &format!("- {any}").replace("INDENT", "        "))
        .replace("ip: 0.0.0.0\n      port: 9180", &any.replace("INDENT", "      "))
        .replace("apisix:\n", "apisix:\n  enable_control: false\n")
        + "\nnginx_config:\n  error_log_level: info\n";
    std::fs::write(&file, text).unwrap();
    gateway.launch();

    let put = |path: &str, body: Value| {
        let answer = gateway.admin_raw("PUT", path, &[("X-API-KEY", key)], &body.to_string());
        (answer.status, answer.json())
    };
    let greeting = "\"Hello, APISIX!\"";

    // An API key.
    let (status, answer) = put(
        "/routes/1",
        json!({
            "uri": "/aws",
            "plugins": {"aws-lambda": {
                "function_uri": format!("http://{}/default/test-apisix", aws.addrs.api_gateway),
                "authorization": {"apikey": API_KEY},
                "ssl_verify": false,
            }},
        }),
    );
    assert_eq!((status, &answer["key"]), (201, &json!("/apisix/routes/1")));
    let answer = client::get(gateway.http, "/aws?name=APISIX");
    assert_eq!((answer.status, answer.text().as_str()), (200, greeting));
    assert_eq!(answer.header("x-function-path"), Some("/default/test-apisix"));
    assert_eq!(answer.header("content-type"), Some("application/json"));

    // HTTP/2 with prior knowledge on the other plain port.
    let url = format!("http://{}/aws?name=APISIX", gateway.http2);
    let answer = curl(&["--http2-prior-knowledge", &url]);
    assert_eq!(
        (answer.version.as_str(), answer.status, answer.body.as_str()),
        ("2", 200, greeting)
    );

    // HTTPS, HTTP/2 by ALPN.
    let pair = certs::self_signed(&["lambda.test"]);
    let (status, _) =
        put("/ssls/1", json!({"cert": pair.cert, "key": pair.key, "sni": "lambda.test"}));
    assert_eq!(status, 201);
    let trusted = gateway.path("lambda.pem");
    std::fs::write(&trusted, &pair.cert).unwrap();
    let port = gateway.https.port();
    let answer = curl(&[
        "--cacert",
        trusted.to_str().unwrap(),
        "--resolve",
        &format!("lambda.test:{port}:127.0.0.1"),
        &format!("https://lambda.test:{port}/aws?name=APISIX"),
    ]);
    assert_eq!(
        (answer.version.as_str(), answer.status, answer.body.as_str()),
        ("2", 200, greeting)
    );

    // IAM.
    let (status, _) = put(
        "/routes/1",
        json!({
            "uri": "/aws",
            "plugins": {"aws-lambda": {
                "function_uri": format!("http://{}/", aws.addrs.function_url),
                "authorization": {"iam": iam()},
            }},
        }),
    );
    assert_eq!(status, 200);
    let answer = client::get(gateway.http, "/aws?name=APISIX");
    assert_eq!((answer.status, answer.text().as_str()), (200, greeting));

    // The rest of the path.
    let (status, _) = put(
        "/routes/1",
        json!({
            "uri": "/aws/*",
            "plugins": {"aws-lambda": {
                "function_uri": format!("http://{}", aws.addrs.api_gateway),
                "authorization": {"apikey": API_KEY},
            }},
        }),
    );
    assert_eq!(status, 200);
    let answer = client::get(gateway.http, "/aws/default/test-apisix?name=APISIX");
    assert_eq!((answer.status, answer.text().as_str()), (200, greeting));
    assert_eq!(answer.header("x-function-path"), Some("/default/test-apisix"));
    assert_eq!(client::get(gateway.http, "/aws?name=APISIX").status, 404);

    // Without the plugin.
    let (status, _) = put(
        "/routes/1",
        json!({
            "uri": "/aws",
            "upstream": {"type": "roundrobin", "nodes": {aws.addrs.origin.to_string(): 1}},
        }),
    );
    assert_eq!(status, 200);
    let answer = client::get(gateway.http, "/aws?name=APISIX");
    assert_eq!((answer.status, &answer.json()["query"]), (200, &json!("name=APISIX")));
}

#[test]
fn a_wrong_key_or_secret_is_refused_by_aws_and_passed_on() {
    let aws = Aws::start();
    let gateway = GatewayProcess::start(BINARY);
    let url = |addr: SocketAddr| format!("http://{addr}/");
    gateway.set_lambda(
        "1",
        "/key",
        json!({
            "function_uri": url(aws.addrs.api_gateway),
            "authorization": {"apikey": "another"},
        }),
    );
    let mut wrong = iam();
    wrong["secretkey"] = json!("another");
    gateway.set_lambda(
        "2",
        "/iam",
        json!({
            "function_uri": url(aws.addrs.function_url),
            "authorization": {"iam": wrong},
        }),
    );
    for (target, message, kind) in [
        ("/key", "Forbidden", "ForbiddenException"),
        ("/iam", "The request signature we calculated does not match", "InvalidSignatureException"),
    ] {
        let answer = client::get(gateway.http, target);
        assert_eq!(answer.status, 403, "{target}");
        let told = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(told.starts_with(message), "{target}: {told}");
        assert_eq!(answer.header("x-amzn-errortype"), Some(kind), "{target}");
    }
}

#[test]
fn a_change_is_seen_by_the_first_request_after_the_answer() {
    let gateway = GatewayProcess::start(BINARY);
    let (blue, green) = (Origin::text("blue"), Origin::text("green"));
    gateway.set_proxy("1", "/colour", blue.addr);
    let mut clients = [Client::connect(gateway.http), Client::connect(gateway.http2)];
    let mut admin = Client::connect(gateway.admin);
    let mut times = Vec::new();
    for round in 0..100 {
        let (origin, colour) = if round % 2 == 0 { (&green, "green") } else { (&blue, "blue") };
        let body = match round % 4 {
            0 | 1 => json!({"uri": "/colour", "plugins": {
                "aws-lambda": {"function_uri": origin.url("/")}}}),
            _ => json!({"uri": "/colour", "upstream": {
                "type": "roundrobin", "nodes": {origin.addr.to_string(): 1}}}),
        };
        let headers = [("X-API-KEY", sluicegate_testkit::gateway::ADMIN_KEY)];
        admin.send(client::request_bytes(
            "PUT",
            "/apisix/admin/routes/1",
            &headers,
            body.to_string(),
        ));
        assert_eq!(admin.response().status, 200);
        let answered = Instant::now();
        for client in &mut clients {
            assert_eq!(client.get("/colour").text(), colour, "round {round}");
        }
        times.push(answered.elapsed());
    }
    times.sort();
    let (median, slow) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    println!("two requests behind a change: median {median:?}, 95 % under {slow:?}");
    assert!(slow < Duration::from_millis(50), "median {median:?}, 95 % {slow:?}");
}

#[test]
fn each_failure_of_a_function_is_503() {
    let gateway = GatewayProcess::start(BINARY);
    let slow = Origin::start(|_| Answer::text("late").after(Duration::from_millis(1500)));
    let rude = Origin::start(|_| Answer::none());
    let broken = Origin::start(|_| Answer::raw("SSH-2.0-nothing to see here\r\n\r\n").close());
    let secure = Origin::tls(&certs::self_signed(&["127.0.0.1"]), |_| Answer::text("secret"));
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    for (what, function_uri) in [
        ("too slow", slow.url("/")),
        ("unreachable", nobody),
        ("closes without an answer", rude.url("/")),
        ("answers no HTTP", broken.url("/")),
        ("has an unknown certificate", secure.url("/")),
        ("speaks no TLS", slow.url("/").replace("http:", "https:")),
        ("wants TLS", secure.url("/").replace("https:", "http:")),
    ] {
        gateway.set_lambda("1", "/fn", json!({"function_uri": function_uri, "timeout": 300}));
        let began = Instant::now();
        let answer = client::get(gateway.http, "/fn");
        let took = began.elapsed();
        // Whoever wants TLS answers plain HTTP in some way of its own.
        assert_eq!(answer.status, 503, "{what}");
        assert!(took < Duration::from_millis(1300), "{what}: {took:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    let gateway = GatewayProcess::start(BINARY);
    for (how, answer) in [
        ("length", Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").close()),
        (
            "chunked",
            Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
                .close(),
        ),
    ] {
        let origin = Origin::start(move |_| answer.clone());
        gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/")}));
        let mut client = Client::connect(gateway.http);
        client.send(client::request_bytes("GET", "/fn", &[], ""));
        assert!(client.try_response().is_err(), "{how}");
    }
}

#[test]
fn certificates_are_verified_unless_ssl_verify_is_false() {
    let authority = certs::Authority::new();
    let good = Origin::tls(&authority.issue(&["127.0.0.1"]), |_| Answer::text("good"));
    let misnamed = Origin::tls(&authority.issue(&["other.test"]), |_| Answer::text("misnamed"));
    let alien = Origin::tls(&certs::self_signed(&["127.0.0.1"]), |_| Answer::text("alien"));
    let changes = json!({"apisix": {"ssl": {"ssl_trusted_certificate": "conf/authority.pem"}}});
    let mut gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
    std::fs::write(gateway.path("conf/authority.pem"), authority.pem()).unwrap();
    gateway.launch();
    for (origin, ssl_verify, status) in [
        (&good, None, 200),
        (&good, Some(true), 200),
        (&misnamed, None, 503),
        (&alien, Some(true), 503),
        (&misnamed, Some(false), 200),
        (&alien, Some(false), 200),
    ] {
        let mut function = json!({"function_uri": origin.url("/")});
        if let Some(verify) = ssl_verify {
            function["ssl_verify"] = json!(verify);
        }
        let before = gateway.error_log().matches("ssl_verify is false").count();
        gateway.set_lambda("1", "/fn", function);
        for _ in 0..2 {
            assert_eq!(client::get(gateway.http, "/fn").status, status, "verify {ssl_verify:?}");
        }
        let warned = gateway.error_log().matches("ssl_verify is false").count() - before;
        assert_eq!(warned, usize::from(ssl_verify == Some(false)), "once, at configuration time");
    }
}

#[test]
fn connections_are_kept_unless_keepalive_is_false() {
    let gateway = GatewayProcess::with(BINARY, json!({"nginx_config": {"worker_processes": 1}}));
    for (keepalive, accepted) in [(true, 1), (false, 5)] {
        let origin = Origin::text("ok");
        let function = json!({"function_uri": origin.url("/"), "keepalive": keepalive});
        gateway.set_lambda("1", "/fn", function);
        for _ in 0..5 {
            assert_eq!(client::get(gateway.http, "/fn").status, 200);
        }
        assert_eq!(origin.accepted(), accepted, "keepalive {keepalive}");
        let close = (!keepalive).then_some("close");
        assert_eq!(origin.last().header("connection"), close, "keepalive {keepalive}");
    }
}

#[test]
fn idle_connections_are_closed_after_keepalive_timeout() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    let function = json!({"function_uri": origin.url("/"), "keepalive_timeout": 1000});
    gateway.set_lambda("1", "/fn", function);
    assert_eq!(client::get(gateway.http, "/fn").status, 200);
    assert_eq!(origin.open(), 1);
    let began = Instant::now();
    wait::until("the idle connection to be closed", || (origin.open() == 0).then_some(()));
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
}

#[test]
fn fifty_clients_reuse_connections_beyond_a_pool_of_five() {
    const CLIENTS: usize = 50;
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/"), "keepalive_pool": 5}));
    let (warm, go) = (Barrier::new(CLIENTS + 1), Barrier::new(CLIENTS + 1));
    let mut before = 0;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::connect(gateway.http);
                let mut ask = |times| {
                    for _ in 0..times {
                        assert_eq!(client.get("/fn").status, 200);
                    }
                };
                ask(10);
                warm.wait();
                go.wait();
                ask(30);
            });
        }
        warm.wait();
        before = origin.accepted();
        go.wait();
    });
    let opened = origin.accepted() - before;
    println!("{opened} connections opened by {} requests, {before} before", CLIENTS * 30);
    assert!(opened <= 5, "{opened} connections were opened");
    // Two workers with a pool of five each.
    wait::until("the pools to shrink", || (origin.open() <= 10).then_some(()));
    assert_eq!(client::get(gateway.http, "/fn").status, 200);
}

#[test]
fn bodies_are_taken_up_to_their_limits() {
    let changes = json!({"sluicegate": {"limits": {"buffered_body_bytes": 10_000}}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let origin = Origin::start(|request| match request.target.as_str() {
        "/slow" => Answer::text("ok").after(Duration::from_millis(600)),
        _ => Answer::text("ok"),
    });
    let function = |path, max| json!({"function_uri": origin.url(path), "max_req_body_size": max});
    gateway.set_lambda("1", "/small", function("/", 1000));
    gateway.set_lambda("2", "/large", function("/", 100_000));
    gateway.set_lambda("3", "/slow", function("/slow", 100_000));
    let post = |target: &str, bytes: usize, chunked: bool| {
        let body = vec![b'x'; bytes];
        let request = if chunked {
            let mut request =
                format!("POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .into_bytes();
            for piece in body.chunks(700) {
                request.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                request.extend(piece);
                request.extend(b"\r\n");
            }
            request.extend(b"0\r\n\r\n");
            request
        } else {
            client::request_bytes("POST", target, &[], body)
        };
        client::exchange(gateway.http, request).status
    };
    for (target, bytes, status) in [
        ("/small", 1000, 200),
        ("/small", 1001, 413),
        ("/large", 10_000, 200),
        ("/large", 10_001, 503),
        ("/large", 100_001, 413),
        // What was held is given back.
        ("/large", 10_000, 200),
    ] {
        // Of unknown length, the room of all bodies runs out before one body's limit is seen.
        let chunked = if bytes == 100_001 { 503 } else { status };
        let before = origin.requests().len();
        assert_eq!(post(target, bytes, false), status, "{target} {bytes}");
        assert_eq!(post(target, bytes, true), chunked, "{target} {bytes} chunked");
        let arrived: Vec<usize> =
            origin.requests()[before..].iter().map(|request| request.body.len()).collect();
        let expected = if status == 200 { vec![bytes; 2] } else { Vec::new() };
        assert_eq!(arrived, expected, "{target} {bytes}");
    }
    // Over HTTP/2 the same limit holds.
    for (bytes, status) in [(1000, 200), (1001, 413)] {
        let url = format!("http://{}/small", gateway.http);
        let body = "x".repeat(bytes);
        let answer = curl(&["--http2-prior-knowledge", "--data-binary", &body, &url]);
        assert_eq!((answer.version.as_str(), answer.status), ("2", status), "{bytes}");
    }
    std::thread::scope(|scope| {
        let before = origin.requests().len();
        let first = scope.spawn(|| post("/slow", 8000, false));
        origin.wait_for(before);
        assert_eq!(post("/large", 8000, false), 503, "beside one of 8000 bytes");
        assert_eq!(post("/large", 2000, false), 200, "there is room for this one");
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(post("/large", 8000, false), 200, "the first one's room is free again");
}

#[test]
fn what_the_client_brings_comes_before_the_configured_keys() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    let none = || Value::Null;
    let key = |key: &str| json!({"apikey": key});
    let signed = || json!({"iam": iam()});
    let both = || json!({"apikey": "ours", "iam": iam()});
    type Pairs<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Value, Pairs<'_>, Option<&str>, &str); 10] = [
        (none(), &[], None, ""),
        (none(), &[("X-Api-Key", "client")], Some("client"), ""),
        (key("ours"), &[], Some("ours"), ""),
        // The page's examples have empty keys.
        (key(""), &[], Some(""), ""),
        (key("ours"), &[("X-Api-Key", "client")], Some("client"), ""),
        (key("ours"), &[("Authorization", "Bearer x")], Some("ours"), "Bearer x"),
        (signed(), &[], None, "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"),
        (signed(), &[("Authorization", "Bearer x")], None, "Bearer x"),
        (both(), &[], Some("ours"), ""),
        (both(), &[("X-Api-Key", "client")], Some("client"), "AWS4-HMAC-SHA256 "),
    ];
    for (authorization, headers, apikey, starts) in cases {
        let mut function = json!({"function_uri": origin.url("/")});
        if !authorization.is_null() {
            function["authorization"] = authorization.clone();
        }
        gateway.set_lambda("1", "/fn", function);
        let answer = client::request(gateway.http, "GET", "/fn", headers, "");
        assert_eq!(answer.status, 200);
        let sent = origin.last();
        let case = format!("{authorization} {headers:?}");
        assert_eq!(sent.header("x-api-key"), apikey, "{case}");
        let got = sent.header("authorization").unwrap_or_default();
        assert!(got.starts_with(starts) && got.is_empty() == starts.is_empty(), "{case}: {got}");
        let is_signed = starts.starts_with("AWS4");
        assert_eq!(sent.header("x-amz-date").is_some(), is_signed, "{case}");
        let secret = SECRET_KEY.as_bytes();
        assert!(!sent.raw_head.windows(secret.len()).any(|part| part == secret), "{case}");
    }
}

#[test]
fn requests_arrive_whole() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/base?own=1")}));
    gateway.set_lambda("2", "/fn/*", json!({"function_uri": origin.url("/base")}));
    for (method, target, arrived) in [
        ("GET", "/fn", "/base?own=1"),
        ("GET", "/fn?", "/base?own=1"),
        ("GET", "/fn?a=1&a=2&b&c=&=d", "/base?own=1&a=1&a=2&b&c=&=d"),
        ("PUT", "/fn?q=%2B+%20%C3%A9~", "/base?own=1&q=%2B+%20%C3%A9~"),
        ("DELETE", "/fn/", "/base/"),
        ("PATCH", "/fn/x", "/base/x"),
        ("OPTIONS", "/fn/a%2Fb//c", "/base/a%2Fb//c"),
        ("PURGE", "/fn/x/../y", "/base/y"),
        ("GET", "/fn/x/%2e%2e/y?z", "/base/y?z"),
    ] {
        assert_eq!(client::request(gateway.http, method, target, &[], "").status, 200, "{target}");
        let sent = origin.last();
        assert_eq!((sent.method.as_str(), sent.target.as_str()), (method, arrived));
        assert_eq!(sent.header("host"), Some(origin.addr.to_string().as_str()), "with its port");
    }
    let before = origin.requests().len();
    for target in ["/fn/../secret", "/fn/%2e%2e/secret", "/fn/x/../../secret", "/fn/../../secret"] {
        let status = client::get(gateway.http, target).status;
        assert!(matches!(status, 400 | 404), "{target}: {status}");
    }
    assert_eq!(origin.requests().len(), before, "nothing climbs above the function's path");

    // A body with every byte, by length and chunked.
    let body: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    client::request(gateway.http, "POST", "/fn", &[], &body);
    assert_eq!(origin.last().body, body);
    assert_eq!(origin.last().header("content-length"), Some("70000"));
    let mut chunked =
        b"POST /fn HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(format!("{:x}\r\n", body.len()).into_bytes());
    chunked.extend(&body);
    chunked.extend(b"\r\n0\r\n\r\n");
    assert_eq!(client::exchange(gateway.http, chunked).status, 200);
    assert_eq!(origin.last().body, body);
    assert_eq!(origin.last().all("transfer-encoding"), [""; 0]);
}

#[test]
fn headers_arrive_repeated_and_many_but_not_hop_by_hop() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/")}));

    let repeated = [("X-Twice", "a"), ("X-Other", ""), ("x-twice", "b"), ("Cookie", "c=1; d=2")];
    client::request(gateway.http, "GET", "/fn", &repeated, "");
    let sent = origin.last();
    assert_eq!(sent.all("x-twice"), ["a", "b"]);
    assert_eq!(sent.all("x-other"), [""]);
    assert_eq!(sent.header("cookie"), Some("c=1; d=2"));

    let many: Vec<(String, String)> = (0..300).map(|n| (format!("X-{n}"), n.to_string())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(client::request(gateway.http, "GET", "/fn", &many, "").status, 200);
    let sent = origin.last();
    for (name, value) in many {
        assert_eq!(sent.header(name), Some(value));
    }

    let hop_by_hop = [
        ("Connection", "keep-alive, X-Named"),
        ("X-Named", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "gzip"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("X-Stays", "1"),
    ];
    let answer = client::request(gateway.http, "GET", "/fn", &hop_by_hop, "");
    assert_eq!(answer.status, 200);
    let sent = origin.last();
    for (name, _) in &hop_by_hop[1..7] {
        assert_eq!(sent.header(name), None, "{name}");
    }
    assert_eq!(sent.header("x-stays"), Some("1"));
    assert!(!sent.header("connection").unwrap_or_default().contains("X-Named"));
}

#[test]
fn expect_is_answered_by_the_gateway() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_lambda(
        "1",
        "/fn",
        json!({"function_uri": origin.url("/"), "max_req_body_size": 10}),
    );
    let mut client = Client::connect(gateway.http);
    let ask = "POST /fn HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ";
    client.send(format!("{ask}4\r\n\r\n"));
    assert_eq!(client.head().status, 100);
    assert_eq!(client.send("body").response().status, 200);
    assert_eq!(origin.last().body, b"body");
    assert_eq!(origin.last().header("expect"), None);
    // What is refused for its length is not asked for.
    let refused = client.send(format!("{ask}11\r\n\r\n")).response();
    assert_eq!((refused.status, &refused.informational[..]), (413, &[][..]));
}

#[test]
fn forwarding_headers_tell_what_the_gateway_saw() {
    let pair = certs::self_signed(&["gate.test"]);
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/")}));
    gateway.set("/ssls/1", &json!({"cert": pair.cert, "key": pair.key, "sni": "gate.test"}));
    let spoofed = [
        ("Host", "gate.test:1234"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Host", "bank.test"),
        ("X-Forwarded-Port", "1"),
        ("X-Forwarded-For", "8.8.8.8"),
        ("Forwarded", "for=8.8.8.8"),
    ];
    let request = client::request_bytes("GET", "/fn", &spoofed, "");
    for scheme in ["http", "https"] {
        let mut client = match scheme {
            "http" => Client::connect(gateway.http),
            _ => Client::try_tls(gateway.https, Some("gate.test"), &[]).unwrap(),
        };
        assert_eq!(client.send(&request).response().status, 200);
        let sent = origin.last();
        assert_eq!(sent.header("x-forwarded-proto"), Some(scheme));
        assert_eq!(sent.header("x-forwarded-host"), Some("gate.test:1234"));
        assert_eq!(sent.header("x-forwarded-port"), Some("1234"));
        assert_eq!(sent.header("x-forwarded-for"), Some("8.8.8.8"));
        assert_eq!(sent.header("forwarded"), None);
    }
}

#[test]
fn answers_come_back_as_they_are() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|request| {
        let status = request.target[1..].parse().unwrap();
        let answer = Answer::status(status)
            .header("Set-Cookie", "a=1")
            .header("X-Function", "yes")
            .header("Set-Cookie", "b=2; Path=/")
            .header("Connection", "X-Named, keep-alive")
            .header("X-Named", "hop")
            .header("Keep-Alive", "timeout=9")
            .header("Proxy-Connection", "x");
        match status {
            204 => answer,
            304 => answer.header("ETag", "\"x\""),
            301 => answer.header("Location", "https://elsewhere.test/?a=%20").body("moved"),
            _ => answer.body(format!("body of {status}")),
        }
    });
    gateway.set_lambda("1", "/*", json!({"function_uri": origin.url("")}));
    let mut client = Client::connect(gateway.http);
    for status in [200, 201, 202, 204, 206, 301, 304, 400, 401, 404, 413, 418, 429, 500, 502, 504] {
        let answer = client.get(&format!("/{status}"));
        assert_eq!(answer.status, status);
        assert_eq!(answer.all("set-cookie"), ["a=1", "b=2; Path=/"], "{status}");
        assert_eq!(answer.header("x-function"), Some("yes"), "{status}");
        for hop in ["x-named", "keep-alive", "proxy-connection"] {
            assert_eq!(answer.header(hop), None, "{status}");
        }
        let body = match status {
            204 | 304 => String::new(),
            301 => "moved".to_owned(),
            _ => format!("body of {status}"),
        };
        assert_eq!(answer.text(), body, "{status}");
        assert!(answer.header("server").is_some() && answer.header("date").is_some(), "{status}");
    }
    assert_eq!(client.get("/301").header("location"), Some("https://elsewhere.test/?a=%20"));
}

#[test]
fn head_gets_the_head_only() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|request| match request.method.as_str() {
        "HEAD" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nX-A: b\r\n\r\n"),
        _ => Answer::text("0123456789"),
    });
    gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/")}));
    let mut client = Client::connect(gateway.http);
    let head = client.send("HEAD /fn HTTP/1.1\r\nHost: a\r\n\r\n").head();
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
    assert_eq!(origin.last().method, "HEAD");
    assert_eq!(client.get("/fn").text(), "0123456789", "the connection goes on");
    assert_eq!(origin.accepted(), 1, "so does the function's");
}

#[test]
fn an_answer_is_passed_on_as_it_arrives() {
    let pause = Duration::from_millis(800);
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(move |request| match request.path() {
        "/chunked" => Answer::status(200).chunk("first").pause(pause).chunk("second"),
        _ => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst")
            .pause(pause)
            .then("second"),
    });
    gateway.set_lambda("1", "/*", json!({"function_uri": origin.url("")}));
    let began = Instant::now();
    let mut client = Client::connect(gateway.http);
    let head = client.send("GET /chunked HTTP/1.1\r\nHost: a\r\n\r\n").head();
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    assert_eq!(client.chunk(), b"first");
    assert!(began.elapsed() < pause, "{:?}", began.elapsed());
    assert_eq!(client.chunk(), b"second");
    assert!(began.elapsed() >= pause);
    assert_eq!(client.chunk(), b"");

    // HTTP/2 and a known length: curl tells when the first byte came.
    let url = format!("http://{}/length", gateway.http);
    let tells = ["--http2-prior-knowledge", "--no-buffer", "-w", "\n%{time_starttransfer} 200"];
    let answer = curl(&[&tells[..], &[&url]].concat());
    let first: f64 = answer.version.parse().unwrap();
    assert!(first < pause.as_secs_f64(), "{first}");
    assert_eq!(answer.body, "firstsecond");
}

/// The stand-in for AWS, as the quickstart runs it.
struct Aws {
    addrs: Addrs,
    _standin: Standin,
    _runtime: tokio::runtime::Runtime,
}

impl Aws {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let standin = runtime
            .block_on(Standin::start(Settings {
                api_gateway: any,
                function_url: any,
                origin: any,
                api_key: API_KEY.into(),
                access_key: "AKIDEXAMPLE".to_owned(),
                secret_key: SECRET_KEY.into(),
                region: "us-west-2".to_owned(),
                service: "lambda".to_owned(),
                clock: unix_now,
            }))
            .unwrap();
        Self { addrs: standin.addrs(), _standin: standin, _runtime: runtime }
    }
}

fn iam() -> Value {
    json!({
        "accesskey": "AKIDEXAMPLE",
        "secretkey": SECRET_KEY,
        "aws_region": "us-west-2",
        "service": "lambda",
    })
}

fn unix_now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

const API_KEY: &str = "an-api-key";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

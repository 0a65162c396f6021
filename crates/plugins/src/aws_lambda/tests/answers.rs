//! What comes back: answers by format, streams, AWS's request id.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use sluicegate_aws::eventstream::{HeaderValue, write_frame};

use super::*;

#[test]
fn every_response_format_works_through_the_plugin() {
    // Format; what the function returns; status line, body, cookies.
    type Case<'a> = (&'a str, Value, &'a str, &'a str, &'a [&'a str]);
    let cases: [Case<'_>; 7] = [
        (
            "alb",
            json!({
                "statusCode": 404, "statusDescription": "404 Nothing here",
                "multiValueHeaders": {"Set-Cookie": ["a=1", "b=2"], "content-type": ["text/plain"]},
                "body": "gone", "isBase64Encoded": false,
            }),
            "HTTP/1.1 404 Nothing here",
            "gone",
            &["a=1", "b=2"],
        ),
        ("alb", json!({"body": "no status"}), "HTTP/1.1 502 Bad Gateway", "<html>", &[]),
        (
            "envoy",
            json!({"status_code": 201, "cookies": ["a=1"], "body": "aGk=", "is_base64_encoded": true}),
            "HTTP/1.1 201 Created",
            "hi",
            &["a=1"],
        ),
        ("apigw", json!({"any": "thing"}), "HTTP/1.1 200 OK", "{\"any\":\"thing\"}", &[]),
        (
            "apigw_v2",
            json!({"statusCode": "202", "cookies": ["a=1", "b=2"], "body": "x"}),
            "HTTP/1.1 202 Accepted",
            "x",
            &["a=1", "b=2"],
        ),
        (
            "apigw_v1",
            json!({"statusCode": 200, "multiValueHeaders": {"set-cookie": ["a=1", "b=2"]}}),
            "HTTP/1.1 200 OK",
            "",
            &["a=1", "b=2"],
        ),
        ("apigw_v1", json!({"any": "thing"}), "HTTP/1.1 502 Bad Gateway", "<html>", &[]),
    ];
    for (format, returned, status_line, body, cookies) in cases {
        let answer = returned.to_string().into_bytes();
        let lambda = Lambda::start(move |_| Outcome::Answer(answer.clone()));
        let gateway = lambda.route("/*", json!({"response_format": format}));
        let case = format!("{format} {returned}");
        let mut raw = TcpStream::connect(gateway.addr).expect("it listens");
        raw.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut first = String::new();
        BufReader::new(raw).read_line(&mut first).expect("it answers");
        assert_eq!(first.trim_end(), status_line, "{case}");
        let response = client::get(gateway.addr, "/");
        match body {
            "<html>" => assert!(response.text().contains("<html>"), "{case}"),
            body => assert_eq!(response.text(), body, "{case}"),
        }
        assert_eq!(response.all("set-cookie"), cookies, "{case}");
        assert!(response.header("x-amzn-requestid").is_some(), "{case}");
    }
    // `apigw` is 1.0 where the event is.
    let lambda = Lambda::start(|_| Outcome::Answer(b"{}".to_vec()));
    let options = json!({"response_format": "apigw", "request_format": "apigw_v1"});
    assert_eq!(client::get(lambda.route("/*", options).addr, "/").status, 502);
}

#[test]
fn the_request_id_is_passed_on_whatever_becomes_of_the_answer_and_once() {
    let mut functions = samples();
    let odd = |_: &Invocation| Outcome::Answer(b"{\"statusCode\":7}".to_vec());
    functions.insert("odd".to_owned(), std::sync::Arc::new(odd));
    let lambda = Lambda::with(functions);
    for (name, options, status) in [
        ("greet", json!({}), 200),
        ("greet", json!({"expose_amz_headers": ["X-Amzn-RequestId"]}), 200),
        ("throttled", json!({}), 429),
        ("unknown", json!({}), 502),
        ("fail", json!({}), 502),
        ("odd", json!({}), 502),
        ("stream-fail", json!({"invocation": "stream"}), 200),
        ("fail", json!({"invocation": "stream"}), 502),
        ("greet", json!({"invocation": "async"}), 202),
    ] {
        let case = format!("{name} {options}");
        let mut config = options;
        config["function"] = json!({"name": name});
        let gateway = lambda.route("/*", config);
        let mut client = Client::connect(gateway.addr);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.try_head().expect("a head comes");
        assert_eq!(response.status, status, "{case}");
        let ids = response.all("x-amzn-requestid");
        assert!(ids.len() == 1 && ids[0].len() == 36, "{case}: {ids:?}");
    }
    // With a URL, a malformed answer.
    let ran = PluginTest::<AwsLambda>::new()
        .config(json!({"function_uri": "http://fn.test/", "response_format": "apigw_v1"}))
        .origin_answer(sluicegate_testkit::Answer::text("{}").header("x-amzn-RequestId", "id-1"))
        .run();
    assert_eq!((ran.status, ran.response.all("x-amzn-requestid")), (502, vec!["id-1"]));
}

#[test]
fn behind_a_url_a_functions_fields_take_the_place_of_its_fronts() {
    let envelope = json!({
        "statusCode": 200, "body": "x", "cookies": ["own=1"],
        "headers": {"cache-control": "no-store", "content-type": "text/plain"},
        "multiValueHeaders": {"vary": ["a", "b"]},
    });
    let answer = sluicegate_testkit::Answer::text(envelope.to_string())
        .header("Cache-Control", "max-age=60")
        .header("Vary", "front")
        .header("Set-Cookie", "front=1")
        .header("X-Front", "stays");
    let ran = PluginTest::<AwsLambda>::new()
        .config(json!({"function_uri": "http://fn.test/", "response_format": "apigw"}))
        .origin_answer(answer)
        .run();
    let all = |name: &str| ran.response.all(name);
    assert_eq!((ran.status, ran.response.text().as_str()), (200, "x"));
    for (name, values) in [
        ("cache-control", vec!["no-store"]),
        ("content-type", vec!["text/plain"]),
        ("vary", vec!["a", "b"]),
        ("set-cookie", vec!["front=1", "own=1"]),
        ("x-front", vec!["stays"]),
        ("content-length", vec!["1"]),
    ] {
        assert_eq!(all(name), values, "{name}");
    }
}

#[test]
fn a_stream_is_of_the_type_that_the_function_gave_it() {
    let frames = "application/vnd.amazon.eventstream";
    let http = "application/vnd.awslambda.http-integration-response";
    let prelude = [&br#"{"statusCode":201,"headers":{"content-type":"text/html"}}"#[..], &[0; 8]];
    // AWS's two fields; `response_format`; the client's status and content type.
    for (content_type, remapped, format, status, told) in [
        (Some(frames), Some(http), "auto", 201, Some("text/html")),
        (
            Some(frames),
            Some("Application/Vnd.AwsLambda.Http-Integration-Response; a=b"),
            "auto",
            201,
            Some("text/html"),
        ),
        (Some(frames), Some("text/event-stream"), "auto", 200, Some("text/event-stream")),
        (Some(frames), Some(http), "raw", 200, Some(http)),
        // Emulators.
        (Some(http), None, "auto", 201, Some("text/html")),
        (Some("text/plain"), None, "auto", 200, Some("text/plain")),
        // A function that says nothing: the type of the frames is not that of the bytes in them.
        (Some(frames), None, "auto", 200, None),
        (Some("application/vnd.amazon.eventstream; v=1"), None, "auto", 200, None),
        (None, None, "auto", 200, None),
    ] {
        let mut head = String::from("HTTP/1.1 200 OK\r\nConnection: close\r\n");
        for (name, value) in
            [("Content-Type", content_type), ("X-Amzn-Remapped-Content-Type", remapped)]
        {
            if let Some(value) = value {
                head += &format!("{name}: {value}\r\n");
            }
        }
        let mut answer = (head + "\r\n").into_bytes();
        answer.extend(frame("PayloadChunk", &[&prelude.concat()[..], b"<p>"].concat()));
        answer.extend(frame("InvokeComplete", b"{}"));
        let aws = serve_once(move |tcp| tcp.write_all(&answer));
        let gateway = streaming(aws, json!({"response_format": format}));
        let response = client::get(gateway.addr, "/");
        let case = format!("{content_type:?} {remapped:?} {format}");
        assert_eq!((response.status, response.header("content-type")), (status, told), "{case}");
        assert!(response.text().ends_with("<p>"), "{case}");
        assert_eq!(response.body.len() == 3, status == 201, "{case}");
    }
}

#[test]
fn a_stream_goes_with_formats_that_need_no_whole_answer() {
    let lambda = Lambda::with(samples());
    for format in ["apigw", "apigw_v1", "apigw_v2", "alb", "envoy"] {
        let config = lambda.config(json!({"invocation": "stream", "response_format": format}));
        assert_eq!(
            crate::tests::refusal::<AwsLambda>(&config),
            "`invocation` stream goes with `response_format` auto or raw: the others need the whole answer",
            "{format}"
        );
    }
}

#[test]
fn a_stream_that_does_not_begin_in_time_has_a_status_of_its_own() {
    let first_byte = json!({"timeouts": {"first_byte": 300}});
    let total = json!({"timeouts": {"total": 300}});
    let http = "application/vnd.awslambda.http-integration-response";
    for (options, status) in [(first_byte, 504), (total, 504), (json!({"timeout": 300}), 503)] {
        for (kind, begun) in [("text/plain", &b""[..]), (http, b"{\"statusCode\":")] {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n\
                 X-Amzn-Remapped-Content-Type: {kind}\r\nX-Amzn-RequestId: id-1\r\n\
                 Content-Length: 1000\r\n\r\n"
            )
            .into_bytes();
            if !begun.is_empty() {
                answer.extend(frame("PayloadChunk", begun));
            }
            let aws = serve_once(move |tcp| {
                tcp.write_all(&answer)?;
                tcp.read_exact(&mut [0])
            });
            let gateway = streaming(aws, options.clone());
            let began = Instant::now();
            let response = client::get(gateway.addr, "/");
            let case = format!("{options} {kind}");
            assert_eq!(response.status, status, "{case}");
            assert_eq!(response.header("x-amzn-requestid"), Some("id-1"), "{case}");
            assert!(began.elapsed() < Duration::from_secs(3), "{case}: {:?}", began.elapsed());
        }
    }
    // It began in time: how long it goes on after that is not this limit's affair.
    let aws = serve_once(|tcp| {
        tcp.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        tcp.write_all(&frame("PayloadChunk", b"one"))?;
        std::thread::sleep(Duration::from_millis(700));
        tcp.write_all(&frame("PayloadChunk", b"two"))?;
        tcp.write_all(&frame("InvokeComplete", b"{}"))
    });
    let gateway = streaming(aws, json!({"timeouts": {"first_byte": 300}}));
    assert_eq!(client::get(gateway.addr, "/").text(), "onetwo");
}

#[test]
fn a_client_that_reads_slowly_slows_the_function_down() {
    // More than all buffers on the way hold.
    const PIECES: usize = 512;
    let piece = frame("PayloadChunk", &[b'x'; 64 << 10]);
    let (told, blocked) = std::sync::mpsc::channel();
    let aws = serve_once(move |tcp| {
        tcp.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        // A write that waits this long waits for the client.
        tcp.set_write_timeout(Some(Duration::from_millis(500)))?;
        let whole: Vec<u8> = piece.repeat(PIECES);
        let mut sent = 0;
        while sent < whole.len() {
            match tcp.write(&whole[sent..]) {
                Ok(n) => sent += n,
                Err(_) => {
                    // Nobody listens after the first time.
                    let _ = told.send(sent);
                    tcp.set_write_timeout(Some(Duration::from_secs(20)))?;
                }
            }
        }
        tcp.write_all(&frame("InvokeComplete", b"{}"))
    });
    let gateway = streaming(aws, json!({"timeouts": {"total": 60_000}}));
    let mut client = TcpStream::connect(gateway.addr).expect("it listens");
    client.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").expect("it reads");
    let sent = blocked.recv_timeout(Duration::from_secs(20)).expect("AWS's writes block");
    assert!(sent < PIECES * (64 << 10) / 2, "{sent} bytes went out to a client that reads none");
    let mut whole = Vec::new();
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("it is connected");
    client.read_to_end(&mut whole).expect("all of it comes");
    assert_eq!(whole.iter().filter(|byte| **byte == b'x').count() >> 16, PIECES);
}

#[test]
fn a_stream_has_to_end_in_time_though_its_client_does_not_read() {
    for options in [json!({"invocation": "stream"}), json!({"response_format": "raw"})] {
        let (told, ended) = std::sync::mpsc::channel();
        let stream = options.get("invocation").is_some();
        let aws = serve_once(move |tcp| {
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")?;
            let piece = match stream {
                true => frame("PayloadChunk", &[b'x'; 64 << 10]),
                false => vec![b'x'; 64 << 10],
            };
            // Bytes are always at hand, until nobody takes them any more.
            while tcp.write_all(&piece).is_ok() {}
            let _ = told.send(());
            Ok(())
        });
        let timeouts = with(options.clone(), json!({"timeouts": {"total": 600}}));
        let gateway = function_at(aws, timeouts);
        let mut client = TcpStream::connect(gateway.addr).expect("it listens");
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
        let ended = ended.recv_timeout(Duration::from_secs(5));
        assert!(ended.is_ok(), "{options}: the call goes on");
    }
}

/// A gateway whose route streams a function of an endpoint that checks no signatures.
fn streaming(endpoint: SocketAddr, options: Value) -> InProcess {
    function_at(endpoint, with(json!({"invocation": "stream"}), options))
}

fn function_at(endpoint: SocketAddr, options: Value) -> InProcess {
    let config = with(
        json!({
            "function": {
                "name": "f", "region": "eu-central-1", "endpoint": format!("http://{endpoint}"),
            },
            "authorization": {"iam": {"accesskey": "AKIDEXAMPLE", "secretkey": "secret"}},
        }),
        options,
    );
    route_with(json!({"aws-lambda": config}), |_| ())
}

/// Takes each call, and has its connection answered.
fn serve_once(
    answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let (tcp, _) = listener.accept().expect("it is called");
        let mut reader = BufReader::new(tcp);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a head comes");
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("it is a number");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).expect("a body comes");
        // The gateway may hang up: that is what some tests are about.
        let _ = answer(&mut reader.into_inner());
    });
    addr
}

/// A frame of Lambda's.
fn frame(kind: &str, payload: &[u8]) -> Vec<u8> {
    let headers =
        [(":message-type", HeaderValue::Text("event")), (":event-type", HeaderValue::Text(kind))];
    let mut frame = Vec::new();
    write_frame(&headers, payload, &mut frame).expect("it is small");
    frame
}

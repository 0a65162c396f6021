//! `scheme: grpc` and `grpcs`: HTTP/2 to the upstream, messages both ways as they come, the status
//! in the trailers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::{Value, json};
use sluicegate_testkit::GatewayProcess;
use sluicegate_testkit::certs::self_signed;
use sluicegate_testkit::wait::PATIENCE;

use crate::wire::{block_on, h2_answer, h2_connect};

#[test]
fn a_unary_call_brings_its_message_and_its_trailers() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let (response, mut stream) = send.send_request(call("/echo.Echo/Unary"), false)?;
        stream.send_data(Bytes::from_static(MESSAGE), true)?;
        h2_answer(response).await
    });
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, MESSAGE));
    assert_eq!(value(&answer.headers, "content-type"), "application/grpc");
    assert_eq!(value(&answer.trailers, "grpc-status"), "0");
    assert_eq!(value(&answer.trailers, "grpc-message"), "fine");
    let seen = origin.last();
    assert_eq!(seen.uri().path(), "/echo.Echo/Unary");
    assert_eq!(value(seen.headers(), "te"), "trailers");
    assert_eq!(value(seen.headers(), "content-type"), "application/grpc");
    assert_eq!(value(seen.headers(), "x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.uri().authority().map(|a| a.as_str()), Some("gate.test"));
}

#[test]
fn a_refusal_in_trailers_alone_arrives() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let (response, mut stream) = send.send_request(call("/echo.Echo/Refuse"), false)?;
        stream.send_data(Bytes::from_static(MESSAGE), true)?;
        h2_answer(response).await
    });
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(value(&answer.headers, "grpc-status"), "12");
}

#[test]
fn a_call_in_both_directions_is_not_gathered() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    block_on(async {
        let mut send = h2_connect(gate.http).await.expect("it connects");
        let (response, mut stream) =
            send.send_request(call("/echo.Echo/Chat"), false).expect("it is sent");
        let head = response.await.expect("the head comes before the first message");
        let mut receiving = head.into_body();
        for n in 0..50_u8 {
            let message = Bytes::from(vec![n; 100]);
            stream.send_data(message.clone(), false).expect("it is sent");
            let mut got = Vec::new();
            while got.len() < 100 {
                let piece = receiving.data().await.expect("an echo").expect("an echo");
                let _ = receiving.flow_control().release_capacity(piece.len());
                got.extend_from_slice(&piece);
            }
            assert_eq!(got, message);
        }
        stream.send_data(Bytes::new(), true).expect("it is sent");
        assert!(receiving.data().await.is_none());
        let trailers = receiving.trailers().await.expect("trailers").expect("trailers");
        assert_eq!(value(&trailers, "grpc-status"), "0");
    });
}

#[test]
fn many_calls_share_one_upstream_connection_per_request_thread() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    block_on(async {
        let send = h2_connect(gate.http).await.expect("it connects");
        let mut calls = Vec::new();
        for _ in 0..100 {
            let mut send = send.clone().ready().await.expect("it is open");
            let (response, mut stream) =
                send.send_request(call("/echo.Echo/Unary"), false).expect("it is sent");
            stream.send_data(Bytes::from_static(MESSAGE), true).expect("it is sent");
            calls.push(tokio::spawn(h2_answer(response)));
        }
        for call in calls {
            let answer = call.await.expect("no panic").expect("an answer");
            assert_eq!((answer.status, value(&answer.trailers, "grpc-status")), (200, "0"));
        }
    });
    assert!(origin.connections() <= 2, "{} connections", origin.connections());
}

#[test]
fn a_call_is_copied_to_another_server_by_http2() {
    let (origin, other) = (GrpcOrigin::start(None), GrpcOrigin::start(None));
    let gate = GatewayProcess::start(crate::BINARY);
    let upstream = json!({
        "type": "roundrobin", "scheme": "grpc", "nodes": {origin.addr.to_string(): 1},
    });
    let mirror = json!({"host": format!("grpc://{}", other.addr), "path": "/not-for-grpc"});
    gate.set(
        "/routes/1",
        &json!({"uri": "/*", "upstream": upstream, "plugins": {"proxy-mirror": mirror}}),
    );
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let (response, mut stream) = send.send_request(call("/echo.Echo/Unary"), false)?;
        stream.send_data(Bytes::from_static(MESSAGE), true)?;
        h2_answer(response).await
    });
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, MESSAGE));
    sluicegate_testkit::wait::until("the copy", || {
        let seen = other.state.seen.lock().expect("no service panics");
        let path = seen.last().map(|call| call.uri().path().to_owned())?;
        assert_eq!(path, "/echo.Echo/Unary");
        Some(())
    });
    assert_eq!(value(other.last().headers(), "content-type"), "application/grpc");
}

#[test]
fn a_large_message_passes_whole() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    let message = vec![b'm'; 5 << 20];
    let sent = message.clone();
    let answer = block_on(async move {
        let mut send = h2_connect(gate.http).await?;
        let (response, mut stream) = send.send_request(call("/echo.Echo/Unary"), false)?;
        let answer = tokio::spawn(h2_answer(response));
        for piece in sent.chunks(1 << 16) {
            stream.reserve_capacity(piece.len());
            let mut left = Bytes::copy_from_slice(piece);
            while !left.is_empty() {
                let n = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.expect("open")?;
                stream.send_data(left.split_to(n.min(left.len())), false)?;
            }
        }
        stream.send_data(Bytes::new(), true)?;
        answer.await.expect("no panic")
    });
    let answer = answer.expect("an answer");
    assert!(answer.body == message, "{} bytes came back", answer.body.len());
    assert_eq!(value(&answer.trailers, "grpc-status"), "0");
}

#[test]
fn grpcs_is_grpc_over_tls() {
    let origin = GrpcOrigin::start(Some(tls()));
    let gate = gateway(origin.addr, json!({"scheme": "grpcs"}));
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let (response, mut stream) = send.send_request(call("/echo.Echo/Unary"), false)?;
        stream.send_data(Bytes::from_static(MESSAGE), true)?;
        h2_answer(response).await
    });
    let answer = answer.expect("an answer");
    assert_eq!((answer.body.as_slice(), value(&answer.trailers, "grpc-status")), (MESSAGE, "0"));
}

#[test]
fn failures_of_a_grpc_upstream_are_502_and_504() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    let quick = json!({"connect": 0.5, "send": 0.5, "read": 0.5});
    let dead = SocketAddr::from(([127, 0, 0, 1], 1));
    for (addr, path, status) in [
        (dead, "/echo.Echo/Unary", 502),
        (origin.addr, "/echo.Echo/Silent", 504),
        (origin.addr, "/echo.Echo/Reset", 502),
    ] {
        set(&gate, addr, json!({"timeout": quick}));
        let began = Instant::now();
        let answer = block_on(async {
            let mut send = h2_connect(gate.http).await?;
            let (response, mut stream) = send.send_request(call(path), false)?;
            stream.send_data(Bytes::from_static(MESSAGE), true)?;
            h2_answer(response).await
        });
        assert_eq!(answer.expect("an answer").status, status, "{addr} {path}");
        assert!(began.elapsed() < Duration::from_secs(5), "{addr} {path}");
    }
    // It goes on after that.
    set(&gate, origin.addr, json!({}));
    let answer = block_on(async {
        let mut send = h2_connect(gate.http).await?;
        let (response, mut stream) = send.send_request(call("/echo.Echo/Unary"), false)?;
        stream.send_data(Bytes::from_static(MESSAGE), true)?;
        h2_answer(response).await
    });
    assert_eq!(answer.expect("an answer").status, 200);
}

#[test]
fn an_upstream_connection_that_ended_is_made_anew() {
    let origin = GrpcOrigin::start(None);
    let gate = gateway(origin.addr, json!({}));
    let unary = |path: &'static str| {
        block_on(async {
            let mut send = h2_connect(gate.http).await?;
            let (response, mut stream) = send.send_request(call(path), false)?;
            stream.send_data(Bytes::from_static(MESSAGE), true)?;
            h2_answer(response).await
        })
    };
    for _ in 0..3 {
        assert_eq!(unary("/echo.Echo/Unary").expect("an answer").status, 200);
        // The origin drops the whole connection in the middle of this call.
        let _ = unary("/echo.Echo/Drop");
    }
}

/// A length-prefixed message of gRPC.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";

fn gateway(origin: SocketAddr, config: Value) -> GatewayProcess {
    let gate = GatewayProcess::with(crate::BINARY, json!({}));
    set(&gate, origin, config);
    gate
}

fn set(gate: &GatewayProcess, origin: SocketAddr, config: Value) {
    let mut upstream =
        json!({"type": "roundrobin", "scheme": "grpc", "nodes": {origin.to_string(): 1}});
    for (key, value) in config.as_object().into_iter().flatten() {
        upstream[key] = value.clone();
    }
    gate.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
}

fn call(path: &str) -> Request<()> {
    Request::post(format!("http://gate.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("the request is valid")
}

#[track_caller]
fn value<'a>(map: &'a HeaderMap, name: &str) -> &'a str {
    map.get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_else(|| panic!("{name} in {map:?}"))
}

fn tls() -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let pair = self_signed(&["gate.test"]);
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).expect("it is PEM")],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("it is PEM"),
        )
        .expect("the key belongs to the certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A small gRPC service on threads of its own.
struct GrpcOrigin {
    addr: SocketAddr,
    state: Arc<State>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Request<()>>>,
    connections: std::sync::atomic::AtomicUsize,
}

impl GrpcOrigin {
    fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("the system has threads");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("loopback has a free port");
        let addr = listener.local_addr().expect("it is bound");
        let state = Arc::new(State::default());
        let shared = state.clone();
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                shared.connections.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = tcp.set_nodelay(true);
                let (state, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    // A connection that breaks is the gateway's affair.
                    let _ = match tls {
                        None => serve(tcp, state).await,
                        Some(config) => {
                            match tokio_rustls::TlsAcceptor::from(config).accept(tcp).await {
                                Ok(tls) => serve(tls, state).await,
                                Err(_) => Ok(()),
                            }
                        }
                    };
                });
            }
        });
        Self { addr, state, _runtime: runtime }
    }

    fn last(&self) -> Request<()> {
        let seen = self.state.seen.lock().expect("no service panics");
        let last = seen.last().expect("a call arrived");
        let mut copy = Request::builder()
            .method(last.method())
            .uri(last.uri())
            .body(())
            .expect("it was valid");
        *copy.headers_mut() = last.headers().clone();
        copy
    }

    fn connections(&self) -> usize {
        self.state.connections.load(std::sync::atomic::Ordering::SeqCst)
    }
}

async fn serve<S>(stream: S, state: Arc<State>) -> Result<(), h2::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(next) = connection.accept().await {
        let (request, respond) = next?;
        let path = request.uri().path().to_owned();
        let (parts, receiving) = request.into_parts();
        state.seen.lock().expect("no test panics with it").push(Request::from_parts(parts, ()));
        if path.ends_with("/Drop") {
            return Ok(());
        }
        tokio::spawn(answer(path, receiving, respond));
    }
    Ok(())
}

async fn answer(
    path: String,
    mut receiving: h2::RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let head = |status: Option<&str>| {
        let mut head = Response::new(());
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        if let Some(status) = status {
            head.headers_mut().insert("grpc-status", status.parse().expect("it is a number"));
        }
        head
    };
    match path.rsplit('/').next() {
        Some("Silent") => {
            tokio::time::sleep(PATIENCE).await;
            return Ok(());
        }
        Some("Reset") => {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return Ok(());
        }
        Some("Refuse") => {
            respond.send_response(head(Some("12")), true)?;
            return Ok(());
        }
        _ => {}
    }
    let mut sending = respond.send_response(head(None), false)?;
    while let Some(piece) = receiving.data().await {
        let mut piece = piece?;
        let _ = receiving.flow_control().release_capacity(piece.len());
        while !piece.is_empty() {
            sending.reserve_capacity(piece.len());
            let room = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
            let room = room.ok_or(h2::Reason::CANCEL)??;
            sending.send_data(piece.split_to(room.min(piece.len())), false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("grpc-message", HeaderValue::from_static("fine"));
    sending.send_trailers(trailers)
}

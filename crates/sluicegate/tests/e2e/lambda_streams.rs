//! Streamed answers of functions, and clients that read them by HTTP/2: each piece at once, and no more of
//! them than the client takes.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sluicegate_aws::eventstream::{HeaderValue, write_frame};
use sluicegate_testkit::GatewayProcess;
use sluicegate_testkit::wait::PATIENCE;

use crate::BINARY;
use crate::wire::{Peer, RawOrigin, block_on, h2_connect, rss_bytes};

#[test]
fn each_small_piece_reaches_an_h2_client_before_the_next_is_sent() {
    const PIECES: usize = 200;
    // A piece is sent when the client has the one before.
    let (next, nexts) = channel();
    let nexts = Mutex::new(nexts);
    let lambda = RawOrigin::start(move |peer, _| {
        begin(peer)?;
        for n in 0..PIECES {
            peer.send(frame("PayloadChunk", format!("data: {n}\n\n").as_bytes()))?;
            let nexts = nexts.lock().expect("there is one call");
            nexts.recv_timeout(PATIENCE).map_err(std::io::Error::other)?;
        }
        peer.send(frame("InvokeComplete", b"{}"))
    });
    let gateway = streaming(&lambda);
    block_on(async {
        let mut send = h2_connect(gateway.http).await.expect("it connects");
        let request = http::Request::get("http://gate.test/fn").body(()).expect("it is valid");
        let (response, _) = send.send_request(request, true).expect("it can be sent");
        let response = response.await.expect("a head comes with the first piece");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        for n in 0..PIECES {
            let piece = tokio::time::timeout(PATIENCE, body.data()).await;
            let piece = piece.unwrap_or_else(|_| panic!("piece {n} is held back"));
            let piece: Bytes = piece.expect("the stream goes on").expect("it is whole");
            body.flow_control().release_capacity(piece.len()).expect("it was received");
            assert_eq!(piece, format!("data: {n}\n\n"), "each in a frame of its own");
            next.send(()).expect("the function waits for it");
        }
        assert!(body.data().await.is_none_or(|end| end.is_ok_and(|end| end.is_empty())));
    });
}

#[test]
fn an_h2_client_that_does_not_read_holds_functions_back_and_gets_all_of_them_later() {
    const STREAMS: usize = 3;
    const PIECES: usize = 384;
    for windows_are_open in [false, true] {
        let (go, gone) = channel();
        let gone = Mutex::new(gone);
        let (told, blocked) = channel();
        let told = Mutex::new(told);
        let waiting = Arc::new(AtomicUsize::new(0));
        let calls = waiting.clone();
        let lambda = RawOrigin::start(move |peer, _| {
            peer.head().and_then(|head| peer.body(&head))?;
            calls.fetch_add(1, Ordering::SeqCst);
            gone.lock().expect("one at a time").recv().map_err(std::io::Error::other)?;
            peer.send(HEAD)?;
            let whole = frame("PayloadChunk", &[b'x'; PIECE_BYTES]).repeat(PIECES);
            let tcp = peer.0.get_mut();
            // A write that waits this long waits for the client.
            tcp.set_write_timeout(Some(Duration::from_millis(500)))?;
            let (mut sent, mut waited) = (0, false);
            while sent < whole.len() {
                match tcp.write(&whole[sent..]) {
                    Ok(n) => sent += n,
                    Err(error) if waited => return Err(error),
                    Err(_) => {
                        waited = true;
                        told.lock().expect("one at a time").send(sent).expect("it is heard");
                        tcp.set_write_timeout(Some(PATIENCE))?;
                    }
                }
            }
            peer.send(frame("InvokeComplete", b"{}"))
        });
        let gateway = streaming(&lambda);
        let case = format!("windows open: {windows_are_open}");
        block_on(async {
            let tcp = tokio::net::TcpStream::connect(gateway.http).await.expect("it listens");
            let mut builder = h2::client::Builder::new();
            if windows_are_open {
                // HTTP/2 lets everything through: only the socket, which nobody reads, holds it back.
                builder.initial_window_size(WINDOW_MAX).initial_connection_window_size(WINDOW_MAX);
            }
            let handshake = builder.handshake::<_, Bytes>(tcp);
            let (mut send, mut connection) = handshake.await.expect("it is HTTP/2");
            let responses: Vec<_> = (0..STREAMS)
                .map(|_| {
                    let request = http::Request::get("http://gate.test/fn").body(());
                    send.send_request(request.expect("it is valid"), true).expect("it is sent").0
                })
                .collect();
            let arrive = async {
                while waiting.load(Ordering::SeqCst) < STREAMS {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                _ = &mut connection => panic!("{case}: the connection ends"),
                () = arrive => {}
            }
            let before = rss_bytes(&gateway);
            // With open windows nobody reads the socket from here on; without, frames are read as they
            // come, and none of their bytes is given back.
            let mut unread = Some(connection);
            if !windows_are_open {
                tokio::spawn(unread.take().expect("it is there"));
            }
            let sent: usize = tokio::task::block_in_place(|| {
                (0..STREAMS).for_each(|_| go.send(()).expect("the functions wait"));
                let all = (0..STREAMS).map(|_| blocked.recv_timeout(PATIENCE));
                all.map(|sent| sent.expect("AWS's writes block")).sum()
            });
            let whole = STREAMS * PIECES * PIECE_BYTES;
            assert!(sent < whole / 2, "{case}: {sent} bytes for a client that reads none");
            let grown = rss_bytes(&gateway).saturating_sub(before);
            assert!(grown < RSS_GROWTH_MAX, "{case}: {} KiB more", grown >> 10);
            unread.map(tokio::spawn);
            let readers: Vec<_> = responses.into_iter().map(|it| tokio::spawn(read(it))).collect();
            for reader in readers {
                assert_eq!(reader.await.expect("it is whole"), PIECES * PIECE_BYTES, "{case}");
            }
        });
    }
}

/// Reads an answer to its end; how many bytes it has.
async fn read(response: h2::client::ResponseFuture) -> usize {
    let mut body = response.await.expect("a head comes").into_body();
    let mut bytes = 0;
    while let Some(piece) = body.data().await {
        let piece = piece.expect("the stream is whole");
        body.flow_control().release_capacity(piece.len()).expect("it came");
        bytes += piece.len();
    }
    bytes
}

/// A gateway with a function at `/fn` whose answers are streamed; its signature is not looked at.
fn streaming(lambda: &RawOrigin) -> GatewayProcess {
    let gateway = GatewayProcess::start(BINARY);
    gateway.set_lambda(
        "1",
        "/fn",
        json!({
            "function": {
                "name": "f", "region": "us-east-1", "endpoint": format!("http://{}", lambda.addr),
            },
            "authorization": {"iam": {"accesskey": "AKIDEXAMPLE", "secretkey": "secret"}},
            "invocation": "stream",
            "timeouts": {"first_byte": 60_000, "total": 600_000},
        }),
    );
    gateway
}

/// Takes a call, and sends the head of its answer.
fn begin(peer: &mut Peer) -> std::io::Result<()> {
    let head = peer.head()?;
    peer.body(&head)?;
    peer.send(HEAD)
}

/// A frame of Lambda's.
pub(crate) fn frame(kind: &str, payload: &[u8]) -> Vec<u8> {
    let headers =
        [(":message-type", HeaderValue::Text("event")), (":event-type", HeaderValue::Text(kind))];
    let mut frame = Vec::new();
    write_frame(&headers, payload, &mut frame).expect("it is small");
    frame
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nX-Amzn-Remapped-Content-Type: text/event-stream\r\nContent-Type: application/vnd.amazon.eventstream\r\n\r\n";
const PIECE_BYTES: usize = 64 << 10;
/// The largest window that HTTP/2 knows.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// How much the resident memory may grow while nobody reads three streams: what each of them has on its way
/// (frames from AWS, and `SEND_BUFFER_BYTES` of HTTP/2), and room for the allocator.
const RSS_GROWTH_MAX: u64 = 24 << 20;

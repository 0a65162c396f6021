//! Far sides that do what a well-behaved origin never does, and clients that speak HTTP/2.

use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sluicegate_testkit::GatewayProcess;
use sluicegate_testkit::wait::PATIENCE;

/// An origin whose connections are handed to a function. It stops listening when dropped.
pub(crate) struct RawOrigin {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl RawOrigin {
    /// Gives each connection and its number (from 0) to `serve`, on a thread of its own.
    pub(crate) fn start(
        serve: impl Fn(&mut Peer, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::on("127.0.0.1", serve).expect("loopback has a free port")
    }

    /// The same on this address.
    pub(crate) fn on(
        ip: &str,
        serve: impl Fn(&mut Peer, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let addr = listener.local_addr()?;
        let (accepted, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop, serve) = (accepted.clone(), stopped.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(tcp) = tcp else { continue };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                std::thread::spawn(move || {
                    let _ = tcp.set_nodelay(true);
                    let _ = tcp.set_read_timeout(Some(PATIENCE));
                    let _ = tcp.set_write_timeout(Some(PATIENCE));
                    // A connection that breaks is the gateway's affair.
                    let _ = serve(&mut Peer(BufReader::new(tcp)), number);
                });
            }
        });
        Ok(Self { addr, accepted, stopped })
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.addr);
    }
}

/// The other end of a connection, read and written as it is.
pub(crate) struct Peer(pub(crate) BufReader<TcpStream>);

impl Peer {
    /// Connects as a client.
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).expect("the gateway listens");
        tcp.set_nodelay(true).expect("it is connected");
        tcp.set_read_timeout(Some(PATIENCE)).expect("it is connected");
        tcp.set_write_timeout(Some(PATIENCE)).expect("it is connected");
        Self(BufReader::new(tcp))
    }

    /// Reads a head, its empty line included.
    pub(crate) fn head(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.0.read_until(b'\n', &mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    /// Reads this many bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the body that the head announces with `Content-Length`.
    pub(crate) fn body(&mut self, head: &str) -> io::Result<Vec<u8>> {
        self.bytes(field(head, "content-length").and_then(|n| n.parse().ok()).unwrap_or(0))
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())
    }
}

/// A field's value in a raw head.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// The target of a raw head.
pub(crate) fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

/// An origin that answers a head with its target at once, and reads the body after that.
pub(crate) struct EarlyOrigin {
    pub(crate) origin: RawOrigin,
    seen: Arc<Mutex<Vec<String>>>,
}

impl EarlyOrigin {
    pub(crate) fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let targets = seen.clone();
        let origin = RawOrigin::start(move |peer, _| {
            loop {
                let head = peer.head()?;
                let target = target(&head).to_owned();
                targets.lock().expect("no test holds it").push(target.clone());
                let length = target.len();
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}"))?;
                peer.body(&head)?;
            }
        });
        Self { origin, seen }
    }

    /// The targets of all requests so far.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.seen.lock().expect("no origin thread panics").clone()
    }
}

/// Runs a future with sockets and time.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("the system has threads").block_on(async {
        tokio::time::timeout(4 * PATIENCE, future).await.expect("it ends in time")
    })
}

/// An answer by HTTP/2.
#[derive(Debug, Default)]
pub(crate) struct H2Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: http::HeaderMap,
}

/// A connection that speaks HTTP/2 by prior knowledge.
pub(crate) async fn h2_connect(
    addr: SocketAddr,
) -> Result<h2::client::SendRequest<Bytes>, h2::Error> {
    let tcp = tokio::net::TcpStream::connect(addr).await.expect("the gateway listens");
    let (send, connection) = h2::client::handshake(tcp).await?;
    tokio::spawn(connection);
    send.ready().await
}

/// Sends a request by HTTP/2 on a connection of its own.
pub(crate) fn h2_exchange(
    addr: SocketAddr,
    request: http::Request<()>,
    pieces: &[&[u8]],
) -> Result<H2Answer, h2::Error> {
    block_on(async {
        let mut send = h2_connect(addr).await?;
        let (response, mut stream) = send.send_request(request, pieces.is_empty())?;
        for (at, piece) in pieces.iter().enumerate() {
            // The gateway may have answered and reset by now.
            let _ = stream.send_data(Bytes::copy_from_slice(piece), at + 1 == pieces.len());
        }
        h2_answer(response).await
    })
}

/// Reads an HTTP/2 answer to its end.
pub(crate) async fn h2_answer(response: h2::client::ResponseFuture) -> Result<H2Answer, h2::Error> {
    let (head, mut receiving) = response.await?.into_parts();
    let mut answer =
        H2Answer { status: head.status.as_u16(), headers: head.headers, ..H2Answer::default() };
    while let Some(piece) = receiving.data().await {
        let piece = piece?;
        let _ = receiving.flow_control().release_capacity(piece.len());
        answer.body.extend_from_slice(&piece);
    }
    answer.trailers = receiving.trailers().await?.unwrap_or_default();
    Ok(answer)
}

/// Resident memory of the gateway, in bytes.
pub(crate) fn rss_bytes(gateway: &GatewayProcess) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", gateway.pid().as_raw_nonzero()));
    let status = status.expect("the process runs, on Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells it");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib << 10
}

/// How a gateway took hand-made HTTP/2 frames.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It answered; the first byte of its header block (0x88 is 200, 0x8c is 400).
    Answered(u8),
    /// It reset the stream.
    Reset,
    /// It ended the connection.
    Ended,
}

/// Sends one request in frames made by hand: what an HTTP/2 library would not send.
pub(crate) fn h2_by_hand(addr: SocketAddr, fields: &[(&[u8], &[u8])], body: &[u8]) -> Taken {
    let mut block = Vec::new();
    for text in fields {
        // A literal that is never indexed, with a new name, nothing Huffman-coded.
        block.push(0x10);
        for text in [text.0, text.1] {
            assert!(text.len() < 127, "longer ones take more than one byte of length");
            block.push(text.len() as u8);
            block.extend_from_slice(text);
        }
    }
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, if body.is_empty() { 0x5 } else { 0x4 }, 1, &block));
    if !body.is_empty() {
        bytes.extend(frame(0, 0x1, 1, body));
    }
    let mut peer = Peer::connect(addr);
    let mut taken = || -> io::Result<Taken> {
        peer.send(&bytes)?;
        loop {
            let head = peer.bytes(9)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let payload = peer.bytes(length as usize)?;
            match head[3] {
                1 => return Ok(Taken::Answered(payload.first().copied().unwrap_or(0))),
                3 => return Ok(Taken::Reset),
                7 => return Ok(Taken::Ended),
                _ => {}
            }
        }
    };
    taken().unwrap_or(Taken::Ended)
}

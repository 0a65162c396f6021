//! An HTTP/1.1 origin that records what reaches it, byte for byte, and answers as told.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::certs::Pair;
use crate::wait;

/// The origin. It stops listening when it is dropped.
pub struct Origin {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<State>,
}

type Handler = dyn Fn(&Received) -> Answer + Send + Sync;

struct State {
    handler: Box<Handler>,
    tls: Option<Arc<ServerConfig>>,
    requests: Mutex<Vec<Received>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    stopped: AtomicBool,
}

impl Origin {
    /// Answers each request as `handler` says.
    pub fn start(handler: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::launch(Box::new(handler), None)
    }

    /// Answers everything with 200 and this text.
    pub fn text(body: &'static str) -> Self {
        Self::start(move |_| Answer::text(body))
    }

    /// The same as [`Origin::start`], with TLS.
    pub fn tls(pair: &Pair, handler: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        let chain = CertificateDer::pem_slice_iter(pair.cert.as_bytes());
        let chain = chain.collect::<Result<_, _>>().expect("the certificate is PEM");
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("the key is PEM");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("the key belongs to the certificate");
        Self::launch(Box::new(handler), Some(Arc::new(config)))
    }

    fn launch(handler: Box<Handler>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let addr = listener.local_addr().expect("the listener is bound");
        let state = Arc::new(State {
            handler,
            tls,
            requests: Mutex::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(tcp) = tcp else { continue };
                let connection = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let state = shared.clone();
                std::thread::spawn(move || {
                    state.open.fetch_add(1, Ordering::SeqCst);
                    // A connection that breaks is the gateway's affair.
                    let _ = state.serve(tcp, connection);
                    state.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { addr, state }
    }

    /// `http://127.0.0.1:PORT` and this path.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.state.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.addr)
    }

    /// What arrived so far, in order.
    pub fn requests(&self) -> Vec<Received> {
        self.state.requests().clone()
    }

    /// The last request that arrived.
    #[track_caller]
    pub fn last(&self) -> Received {
        self.state.requests().last().cloned().expect("a request has arrived")
    }

    /// Waits for the request of this number (from 0).
    #[track_caller]
    pub fn wait_for(&self, number: usize) -> Received {
        wait::until("a request at the origin", || self.state.requests().get(number).cloned())
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Forgets what arrived.
    pub fn clear(&self) {
        self.state.requests().clear();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.addr);
    }
}

impl State {
    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<Received>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, tcp: TcpStream, connection: usize) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let socket = tcp.try_clone()?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(config) => {
                let tls = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(tls, tcp))
            }
        };
        let mut stream = BufReader::new(stream);
        while let Some(mut received) = Received::read(&mut stream)? {
            received.connection = connection;
            self.requests().push(received.clone());
            for step in (self.handler)(&received).into_steps() {
                match step {
                    Step::Send(bytes) => {
                        stream.get_mut().write_all(&bytes)?;
                        stream.get_mut().flush()?;
                    }
                    Step::Pause(time) => std::thread::sleep(time),
                    Step::Close => return socket.shutdown(Shutdown::Both),
                }
            }
        }
        Ok(())
    }
}

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The head, byte for byte.
    pub raw_head: Vec<u8>,
    /// Its method.
    pub method: String,
    /// Its target.
    pub target: String,
    /// Its headers in their order, names as sent.
    pub headers: Vec<(String, String)>,
    /// Its body, without chunks.
    pub body: Vec<u8>,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Received {
    /// Every value of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// A header's only value; panics when it is there twice.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} arrived {} times: {all:?}", all.len());
        all.first().copied()
    }

    /// The target's path.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    fn read(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        loop {
            let before = raw.len();
            if stream.read_until(b'\n', &mut raw)? == 0 {
                return if before == 0 {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            if raw[before..] == *b"\r\n" {
                break;
            }
        }
        let head: String = raw.iter().map(|&b| char::from(b)).collect();
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().splitn(3, ' ');
        let mut received = Self { raw_head: raw, ..Self::default() };
        received.method = words.next().unwrap_or_default().to_owned();
        received.target = words.next().unwrap_or_default().to_owned();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            received.headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
        let length = received.all("content-length").first().and_then(|n| n.parse().ok());
        if received.all("transfer-encoding").contains(&"chunked") {
            received.body = read_chunks(stream)?;
        } else if let Some(length) = length {
            received.body = vec![0; length];
            stream.read_exact(&mut received.body)?;
        }
        Ok(Some(received))
    }
}

/// An answer: bytes and pauses in their order.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<Step>,
    raw: Option<Vec<Step>>,
    chunked: bool,
    delay: Duration,
    close: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Pause(Duration),
    Close,
}

impl Answer {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// 200 with this text.
    pub fn text(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// These bytes and nothing else: no head is made.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { raw: Some(vec![Step::Send(bytes.into())]), ..Self::default() }
    }

    /// Closes the connection without an answer.
    pub fn none() -> Self {
        Self { raw: Some(vec![Step::Close]), ..Self::default() }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the whole body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = vec![Step::Send(body.into())];
        self
    }

    /// Its status and what of its body is sent, for who needs no socket.
    pub fn plain(&self) -> (u16, Vec<u8>) {
        let sent = self.body.iter().filter_map(|step| match step {
            Step::Send(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        (self.status, sent.collect::<Vec<_>>().concat())
    }

    /// Adds a chunk; the answer is chunked then.
    pub fn chunk(mut self, piece: impl Into<Vec<u8>>) -> Self {
        self.chunked = true;
        self.body.push(Step::Send(piece.into()));
        self
    }

    /// Waits before the next chunk, or (after [`Answer::raw`]) before the end.
    pub fn pause(mut self, time: Duration) -> Self {
        self.raw.as_mut().unwrap_or(&mut self.body).push(Step::Pause(time));
        self
    }

    /// More bytes of an answer that began with [`Answer::raw`].
    pub fn then(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.raw.get_or_insert_default().push(Step::Send(bytes.into()));
        self
    }

    /// Waits before the answer begins.
    pub fn after(mut self, time: Duration) -> Self {
        self.delay = time;
        self
    }

    /// Closes the connection behind the answer, without saying so.
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    fn into_steps(self) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.delay.is_zero() {
            steps.push(Step::Pause(self.delay));
        }
        if let Some(raw) = self.raw {
            steps.extend(raw);
        } else {
            let mut head = format!("HTTP/1.1 {} Status\r\n", self.status);
            for (name, value) in &self.headers {
                head += &format!("{name}: {value}\r\n");
            }
            let bodiless = matches!(self.status, 100..200 | 204 | 304);
            let framed = |name: &&(String, String)| {
                name.0.eq_ignore_ascii_case("content-length")
                    || name.0.eq_ignore_ascii_case("transfer-encoding")
            };
            if self.chunked {
                head += "Transfer-Encoding: chunked\r\n";
            } else if !bodiless && self.headers.iter().find(framed).is_none() {
                let bytes = self.body.iter().map(|step| match step {
                    Step::Send(bytes) => bytes.len(),
                    _ => 0,
                });
                head += &format!("Content-Length: {}\r\n", bytes.sum::<usize>());
            }
            head += "\r\n";
            let mut head = head.into_bytes();
            for step in self.body {
                match step {
                    Step::Send(piece) if self.chunked => {
                        head.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                        head.extend(piece);
                        head.extend(b"\r\n");
                    }
                    Step::Send(piece) => head.extend(piece),
                    other => {
                        steps.push(Step::Send(std::mem::take(&mut head)));
                        steps.push(other);
                    }
                }
            }
            if self.chunked {
                head.extend(b"0\r\n\r\n");
            }
            steps.push(Step::Send(head));
        }
        if self.close {
            steps.push(Step::Close);
        }
        steps
    }
}

fn read_chunks(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        stream.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim_end(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(&mut body[start..])?;
        let mut end = String::new();
        if size > 0 {
            stream.read_line(&mut end)?;
            continue;
        }
        // Trailers, up to the empty line.
        while stream.read_line(&mut end)? > 2 {
            end.clear();
        }
        return Ok(body);
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

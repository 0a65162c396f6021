//! A client that sends the bytes it is given and reads HTTP/1.1 answers strictly: what a lenient
//! client would overlook makes the test fail.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::Value;

use crate::wait::PATIENCE;

/// One connection.
pub struct Client {
    tcp: TcpStream,
    stream: BufReader<Box<dyn Stream>>,
    /// What the TLS handshake agreed on.
    pub tls: Option<Handshake>,
}

/// What a TLS handshake agreed on.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The protocol chosen by ALPN.
    pub alpn: Option<String>,
    /// `TLSv1_2` or `TLSv1_3`.
    pub version: String,
    /// The server's own certificate, DER.
    pub certificate: Vec<u8>,
}

impl Client {
    /// Connects, or panics.
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).unwrap_or_else(|e| panic!("no connection to {addr}: {e}"))
    }

    /// Connects.
    pub fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        let tcp = open(addr)?;
        let stream = BufReader::new(Box::new(tcp.try_clone()?) as Box<dyn Stream>);
        Ok(Self { tcp, stream, tls: None })
    }

    /// Connects with TLS, asking for `name` by SNI (nothing: without SNI) and offering `alpn`.
    /// Any certificate is taken: [`Client::tls`] tells which one it was.
    pub fn try_tls(addr: SocketAddr, name: Option<&str>, alpn: &[&str]) -> io::Result<Self> {
        let mut config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TakeAny))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        config.enable_sni = name.is_some();
        let server = name.unwrap_or("unnamed.test").to_owned();
        let server = ServerName::try_from(server).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(Arc::new(config), server).map_err(io::Error::other)?;
        let tcp = open(addr)?;
        let mut socket = tcp.try_clone()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        let handshake = Handshake {
            alpn: tls.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned()),
            version: format!("{:?}", tls.protocol_version().expect("the handshake is done")),
            certificate: tls
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|cert| cert.to_vec())
                .unwrap_or_default(),
        };
        let stream: Box<dyn Stream> = Box::new(StreamOwned::new(tls, socket));
        Ok(Self { tcp, stream: BufReader::new(stream), tls: Some(handshake) })
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).expect("the peer takes what is sent");
        self
    }

    /// Sends bytes as they are; the peer may be gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())?;
        self.stream.get_mut().flush()
    }

    /// Sends a GET with this target and reads the answer.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: {DEFAULT_HOST}\r\n\r\n")).response()
    }

    /// Reads an answer to anything but HEAD, past 1xx ones.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.try_response().unwrap_or_else(|e| panic!("no valid answer: {e}"))
    }

    /// Reads an answer to anything but HEAD, past 1xx ones.
    pub fn try_response(&mut self) -> io::Result<Response> {
        let mut informational = Vec::new();
        loop {
            let mut response = self.try_head()?;
            if (100..200).contains(&response.status) && response.status != 101 {
                informational.push(response.status);
                continue;
            }
            self.read_body(&mut response)?;
            response.informational = informational;
            return Ok(response);
        }
    }

    /// Reads an answer's head only: that to a HEAD, or of a body that is read piece by piece.
    #[track_caller]
    pub fn head(&mut self) -> Response {
        self.try_head().unwrap_or_else(|e| panic!("no valid answer head: {e}"))
    }

    /// Reads an answer's head only.
    pub fn try_head(&mut self) -> io::Result<Response> {
        let status_line = self.line()?;
        let mut response = Response::parse_status(&status_line)
            .ok_or_else(|| bad(format!("the status line is {status_line:?}")))?;
        response.headers = self.fields()?;
        Ok(response)
    }

    /// Reads one chunk of a chunked body; empty at its end, trailers left to be read.
    #[track_caller]
    pub fn chunk(&mut self) -> Vec<u8> {
        self.try_chunk().unwrap_or_else(|e| panic!("no valid chunk: {e}"))
    }

    /// Reads everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset ends a connection too.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    /// Is the connection ended by the peer within `limit`, without another byte?
    pub fn is_ended_within(&mut self, limit: Duration) -> bool {
        let _ = self.tcp.set_read_timeout(Some(limit));
        let got = self.stream.fill_buf().map(<[u8]>::len);
        let _ = self.tcp.set_read_timeout(Some(PATIENCE));
        match got {
            Ok(bytes) => bytes == 0,
            Err(error) => {
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
            }
        }
    }

    /// Ends our sending side only.
    pub fn end_sending(&mut self) {
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    fn try_chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = self.line()?;
        let valid = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = match usize::from_str_radix(&size, 16) {
            Ok(size) if valid => size,
            _ => return Err(bad(format!("the chunk size is {size:?}"))),
        };
        let mut chunk = vec![0; size];
        if size > 0 {
            self.stream.read_exact(&mut chunk)?;
            let end = self.line()?;
            if !end.is_empty() {
                return Err(bad(format!("{end:?} follows a chunk")));
            }
        }
        Ok(chunk)
    }

    fn read_body(&mut self, response: &mut Response) -> io::Result<()> {
        let lengths = response.all("content-length");
        let codings = response.all("transfer-encoding");
        if lengths.len() + codings.len() > 1 {
            return Err(bad(format!("framed twice: {:?}", response.headers)));
        }
        if matches!(response.status, 101 | 204 | 304) {
            if !codings.is_empty() {
                return Err(bad("a body is announced where none can be".to_owned()));
            }
        } else if let Some(length) = lengths.first() {
            let length = length.parse().map_err(|_| bad(format!("length {length:?}")))?;
            response.body = vec![0; length];
            self.stream.read_exact(&mut response.body)?;
        } else if codings.first() == Some(&"chunked") {
            loop {
                let chunk = self.try_chunk()?;
                if chunk.is_empty() {
                    break;
                }
                response.body.extend(chunk);
            }
            response.trailers = self.fields()?;
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(())
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            match line.split_once(':') {
                Some((name, value)) if !name.is_empty() && name.bytes().all(is_token) => {
                    fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
                }
                _ => return Err(bad(format!("the header line is {line:?}"))),
            }
        }
    }

    /// A line that ends in CR LF, without them.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            // Latin 1, as header values may be.
            Some(text) if !text.contains(&b'\r') => {
                Ok(text.iter().map(|&b| char::from(b)).collect())
            }
            _ if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(bad(format!("the line is {:?}", String::from_utf8_lossy(&line)))),
        }
    }
}

/// Sends bytes on a connection of their own and reads one answer.
#[track_caller]
pub fn exchange(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> Response {
    Client::connect(addr).send(bytes).response()
}

/// GETs a target on a connection of its own.
#[track_caller]
pub fn get(addr: SocketAddr, target: &str) -> Response {
    request(addr, "GET", target, &[], "")
}

/// Sends a request on a connection of its own. `Host` is there, and `Content-Length` with a body.
#[track_caller]
pub fn request(
    addr: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Response {
    exchange(addr, request_bytes(method, target, headers, body))
}

/// Asks curl: what HTTP/2 and TLS look like from a client that many people use.
#[track_caller]
pub fn curl(args: &[&str]) -> CurlAnswer {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "15", "--write-out", CURL_TELLS])
        .args(args)
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, told) = text.rsplit_once('\n').expect("curl tells what it is asked to tell");
    let (version, status) = told.split_once(' ').expect("two words were asked for");
    let status = status.parse().expect("a status is a number");
    CurlAnswer { version: version.to_owned(), status, body: body.to_owned() }
}

/// What curl got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurlAnswer {
    /// `1.1` or `2`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

const CURL_TELLS: &str = "\n%{http_version} %{http_code}";

/// The bytes of a request. `Host` is there, and `Content-Length` with a body.
pub fn request_bytes(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        bytes += &format!("Host: {DEFAULT_HOST}\r\n");
    }
    for (name, value) in headers {
        bytes += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        bytes += &format!("Content-Length: {}\r\n", body.len());
    }
    bytes += "\r\n";
    [bytes.as_bytes(), body].concat()
}

/// `Host` where a test does not choose one.
pub const DEFAULT_HOST: &str = "gate.test";

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its reason phrase.
    pub reason: String,
    /// Its headers in their order, names as sent.
    pub headers: Vec<(String, String)>,
    /// Its body, without chunks.
    pub body: Vec<u8>,
    /// Trailers behind a chunked body.
    pub trailers: Vec<(String, String)>,
    /// The 1xx answers before it.
    pub informational: Vec<u16>,
}

impl Response {
    fn parse_status(line: &str) -> Option<Self> {
        let (status, reason) = line.strip_prefix("HTTP/1.1 ")?.split_at_checked(3)?;
        let reason = reason.strip_prefix(' ')?.to_owned();
        let status = status.parse().ok().filter(|status| (100..600).contains(status))?;
        Some(Self { status, reason, ..Self::default() })
    }

    /// A header's only value; panics when it is there twice.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there {} times: {all:?}", all.len());
        all.first().copied()
    }

    /// Every value of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect_timeout(&addr, PATIENCE)?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    Ok(tcp)
}

fn bad(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Takes any certificate: tests look at it themselves.
#[derive(Debug)]
struct TakeAny;

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

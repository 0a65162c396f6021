//! An HTTP proxy that opens tunnels (`CONNECT`) to the hosts it is told of, and to no others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certs::Pair;

/// The proxy. It and its tunnels end when it is dropped.
pub struct Proxy {
    /// Where it listens.
    pub addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// A proxy that knows where `hosts` (`name:port`) are. With `credentials` (`user:password`,
    /// in base64) it lets in nobody without them; with a certificate it speaks TLS.
    pub fn start(
        hosts: &[(&str, SocketAddr)],
        credentials: Option<&'static str>,
        tls: Option<&Pair>,
    ) -> Self {
        let hosts = hosts.iter().map(|(name, addr)| ((*name).to_owned(), *addr)).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
        let addr = listener.local_addr().expect("the listener is bound");
        listener.set_nonblocking(true).expect("sockets can be set so");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let shared = Arc::new(State { hosts, credentials, asked: asked.clone() });
        let acceptor = tls.map(acceptor);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("the listener is ours");
            while let Ok((tcp, _)) = listener.accept().await {
                let (state, acceptor) = (shared.clone(), acceptor.clone());
                tokio::spawn(async move {
                    // What breaks is the gateway's affair.
                    let _ = match acceptor {
                        None => state.serve(tcp).await,
                        Some(acceptor) => match acceptor.accept(tcp).await {
                            Ok(session) => state.serve(session).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self { addr, asked, _runtime: runtime }
    }

    /// The first lines of the requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct State {
    hosts: HashMap<String, SocketAddr>,
    credentials: Option<&'static str>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl State {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        let target = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
        let host = target.and_then(|target| self.hosts.get(target));
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
        let allowed = self.credentials.is_none_or(|credentials| {
            let wanted = format!("Proxy-Authorization: Basic {credentials}");
            head.lines().any(|line| line == wanted)
        });
        let refusal = match (target, host) {
            (None, _) => "200 OK\r\nContent-Length: 16\r\n\r\nthe proxy itself",
            _ if !allowed => "407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            (_, None) => "502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            (_, Some(addr)) => {
                let mut far = TcpStream::connect(addr).await?;
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                stream.flush().await?;
                return io::copy_bidirectional(&mut stream, &mut far).await.map(|_| ());
            }
        };
        stream.write_all(format!("HTTP/1.1 {refusal}").as_bytes()).await?;
        stream.shutdown().await
    }
}

fn acceptor(pair: &Pair) -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(pair.cert.as_bytes());
    let chain = chain.collect::<Result<_, _>>().expect("the certificate is PEM");
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("the key is PEM");
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("the key belongs to the certificate");
    TlsAcceptor::from(Arc::new(config))
}

/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

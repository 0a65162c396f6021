//! The doors of the management APIs: Admin, Control and Status.
//!
//! They are bound before anything is opened that another gateway might hold, and open when there
//! is something behind them to answer. Each connection is its own task on the control threads.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use axum::Extension;
use axum::extract::ConnectInfo;
use axum::http::{StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sluicegate_config::{AdminTls, Config};
use sluicegate_gateway::page::html;
use sluicegate_gateway::tls::{FixedError, FixedPem, fixed};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, info, warn};

use crate::cli::Place;
use crate::settings;

/// The doors that the configuration asks for, bound.
pub(crate) struct Doors {
    /// `deployment.admin.admin_listen`
    pub(crate) admin: Option<Door>,
    /// `apisix.control`
    pub(crate) control: Option<Door>,
    /// `apisix.status`
    pub(crate) status: Option<Door>,
}

impl Doors {
    /// Binds them.
    pub(crate) fn bind(config: &Config, place: &Place) -> anyhow::Result<Self> {
        let plain = |addr: Option<SocketAddr>, key| {
            addr.map(|addr| Door::bind(addr, None, key)).transpose()
        };
        let admin = match config.apisix.enable_admin {
            true => {
                let tls = DoorTls::of(config, place)?;
                let addr = config.deployment.admin.admin_listen;
                Some(Door::bind(addr, tls, "deployment.admin.admin_listen")?)
            }
            false => None,
        };
        Ok(Self {
            admin,
            control: plain(config.apisix.control, "apisix.control")?,
            status: plain(config.apisix.status, "apisix.status")?,
        })
    }
}

/// One listener.
pub(crate) struct Door {
    listener: std::net::TcpListener,
    tls: Option<DoorTls>,
}

impl Door {
    fn bind(addr: SocketAddr, tls: Option<DoorTls>, key: &str) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => anyhow!(
                "{addr} is taken by another process: stop it, or choose another port ({key})"
            ),
            _ => anyhow!("cannot listen on {addr} ({key}): {error}"),
        })?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, tls })
    }

    /// Where it is, the port filled in.
    pub(crate) fn addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Its TLS, to give it new files while it is open.
    pub(crate) fn tls(&self) -> Option<DoorTls> {
        self.tls.clone()
    }

    /// Lets clients in. `router` finds their address as `ConnectInfo<SocketAddr>`.
    pub(crate) fn open(self, runtime: &Runtime, router: axum::Router) -> anyhow::Result<()> {
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(self.listener)?;
        let tls = self.tls;
        let places = Arc::new(Semaphore::new(MANAGEMENT_CONNECTIONS_MAX));
        runtime.spawn(async move {
            // The semaphore is never closed.
            while let Ok(place) = places.clone().acquire_owned().await {
                match listener.accept().await {
                    Ok((tcp, peer)) => {
                        let router = router.clone().layer(Extension(ConnectInfo(peer)));
                        let tls = tls.clone();
                        tokio::spawn(async move {
                            match tls {
                                None => serve_one(tcp, router).await,
                                Some(tls) => tls.serve_one(tcp, router).await,
                            }
                            drop(place);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "A connection to a management API could not be accepted.");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        });
        Ok(())
    }
}

/// Serves one connection to a management API. Whoever connects can hold it only so long: the
/// key is asked for when a request's head is there.
async fn serve_one<S>(stream: S, router: axum::Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MANAGEMENT_HEAD_TIME)
        .serve_connection(
            TokioIo::new(PatientlyWritten::new(stream, MANAGEMENT_WRITE_TIME)),
            TowerToHyperService::new(router),
        );
    if let Err(error) = served.await {
        debug!(%error, "A connection to a management API ended.");
    }
}

/// A stream that gives up when the other side takes nothing of an answer for too long.
struct PatientlyWritten<S> {
    stream: S,
    time: Duration,
    /// Runs while something waits to be taken.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> PatientlyWritten<S> {
    fn new(stream: S, time: Duration) -> Self {
        Self { stream, time, stuck: None }
    }

    /// Passes on what came of writing, unless that waits for too long by now.
    fn outcome<T>(
        &mut self,
        cx: &mut TaskContext<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let time = self.time;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        stuck.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PatientlyWritten<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PatientlyWritten<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.outcome(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.outcome(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.outcome(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.outcome(cx, shut)
    }
}

/// `deployment.admin.https_admin`: the TLS of a door. New files serve the next handshake.
#[derive(Clone)]
pub(crate) struct DoorTls(Arc<ArcSwap<Handshakes>>);

struct Handshakes {
    config: Arc<ServerConfig>,
    /// Does a client have to bring a certificate?
    mutual: bool,
    server: String,
}

impl DoorTls {
    /// The Admin API's; `None` where it has no TLS.
    pub(crate) fn of(config: &Config, place: &Place) -> anyhow::Result<Option<Self>> {
        let Some(files) = &config.deployment.admin.tls else { return Ok(None) };
        let handshakes = Handshakes::read(files, config, place)?;
        Ok(Some(Self(Arc::new(ArcSwap::from_pointee(handshakes)))))
    }

    /// Reads the files again. Where something is wrong with them, the ones before stay.
    pub(crate) fn reload(&self, config: &Config, place: &Place) -> anyhow::Result<()> {
        // Whether there is TLS at all takes a restart.
        if let Some(files) = &config.deployment.admin.tls {
            self.0.store(Arc::new(Handshakes::read(files, config, place)?));
        }
        Ok(())
    }

    async fn serve_one(&self, tcp: TcpStream, router: axum::Router) {
        let handshakes = self.0.load_full();
        let mut first = [0_u8; 1];
        let began = tokio::time::timeout(MANAGEMENT_HEAD_TIME, tcp.peek(&mut first)).await;
        match began {
            Ok(Ok(1)) if first[0] == TLS_HANDSHAKE => {}
            Ok(Ok(1)) => {
                let told = "The plain HTTP request was sent to HTTPS port";
                return serve_one(tcp, handshakes.refusal(told)).await;
            }
            _ => return,
        }
        // Differs: a certificate of an authority that is not listed ends the handshake. nginx goes
        // on and answers 400.
        let acceptor = TlsAcceptor::from(handshakes.config.clone());
        let stream = match tokio::time::timeout(MANAGEMENT_HEAD_TIME, acceptor.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                info!(%error, "A TLS handshake with the Admin API failed.");
                return;
            }
            Err(_) => return,
        };
        let known = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
        if handshakes.mutual && !known {
            let told = "No required SSL certificate was sent";
            return serve_one(stream, handshakes.refusal(told)).await;
        }
        serve_one(stream, router).await;
    }
}

impl Handshakes {
    fn read(files: &AdminTls, config: &Config, place: &Place) -> anyhow::Result<Self> {
        const KEY: &str = "deployment.admin.admin_api_mtls.admin_ssl_cert_key";
        const CA: &str = "deployment.admin.admin_api_mtls.admin_ssl_ca_cert";
        let cert = pem(place, &files.cert, CERT)?;
        let key = pem(place, &files.key, KEY)?;
        let ca = files.client_ca.as_ref().map(|ca| pem(place, ca, CA)).transpose()?;
        let texts = FixedPem { cert: &cert, key: &key, client_ca: ca.as_deref() };
        let settings = settings::gateway(config, place).tls;
        let server = match fixed(&settings, texts) {
            Ok(server) => server,
            Err(FixedError::Certificate(why)) => bail!("{CERT}, admin_ssl_cert_key: {why}"),
            Err(FixedError::ClientCa(why)) => bail!("{CA}: {why}"),
        };
        Ok(Self {
            config: Arc::new(server),
            mutual: ca.is_some(),
            server: settings::admin(config).server,
        })
    }

    /// What a client gets that did not come in the right way, whatever it asks for.
    fn refusal(&self, told: &'static str) -> axum::Router {
        let title = html(StatusCode::BAD_REQUEST);
        let body = title.replace("<hr>", &format!("<center>{told}</center>\r\n<hr>"));
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
            (header::SERVER, self.server.clone()),
            // Whoever comes in the wrong way comes anew.
            (header::CONNECTION, "close".to_owned()),
        ];
        axum::Router::new().fallback(move || async { (StatusCode::BAD_REQUEST, headers, body) })
    }
}

// nginx reads the paths of its certificates from the folder of nginx.conf, which is APISIX's conf/.
pub(crate) fn pem(place: &Place, path: &Path, key: &str) -> anyhow::Result<String> {
    let path: PathBuf = place.under(Path::new("conf")).join(path);
    let length = std::fs::metadata(&path)
        .with_context(|| format!("{key}: {} cannot be read", path.display()))?
        .len();
    if length > PEM_BYTES_MAX {
        bail!("{key}: {} is larger than {PEM_BYTES_MAX} bytes", path.display());
    }
    std::fs::read_to_string(&path)
        .with_context(|| format!("{key}: {} cannot be read", path.display()))
}

/// The key of the Admin API's certificate.
pub(crate) const CERT: &str = "deployment.admin.admin_api_mtls.admin_ssl_cert";

/// How long accepting waits after it failed: files ran out, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections to one management API at a time; more wait in the kernel.
const MANAGEMENT_CONNECTIONS_MAX: usize = 256;

/// How long a client of a management API may take for a handshake, how long to send a request's
/// head, and how long its connection may be idle.
const MANAGEMENT_HEAD_TIME: Duration = Duration::from_secs(30);

/// How long a client of a management API may take nothing of an answer.
const MANAGEMENT_WRITE_TIME: Duration = Duration::from_secs(30);

/// The first byte of a TLS record that begins a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Certificate files are a few KiB; a list of authorities may be some hundred.
const PEM_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_is_given_up_and_who_is_slow_is_not() {
        const TIME: Duration = Duration::from_millis(500);
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = PatientlyWritten::new(ours, TIME);
        let slow = tokio::spawn(async move {
            let mut taken = [0; 64];
            for _ in 0..5 {
                tokio::time::sleep(TIME / 4).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
            theirs
        });
        ours.write_all(&[b'x'; 6 * 64]).await.unwrap();
        let _theirs = slow.await.unwrap();
        let began = tokio::time::Instant::now();
        let error = ours.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= TIME);
    }
}

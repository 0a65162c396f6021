//! Listeners: one of each per request thread, so that a connection stays on its core.

mod h1;
mod h2;
mod proxy_protocol;
mod tunnel;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, info, warn};

use crate::body::{Body, BodyError};
use crate::core::{Core, Shared};
use crate::exchange::{Connection, Exchange, Request, Response, TlsInfo, Version};
use crate::handle::chains;
use crate::http::{Headers, Known};
use crate::io::{Buffer, Stream, within};
use crate::plugin::Phases;
use crate::real_ip;
use crate::settings::{Listen, Settings};
use crate::tls::{ClientAuth, ClientCertificate};

/// The gateway cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the port.
    #[error("{addr} is taken by another process: stop it, or choose another port")]
    Taken {
        /// The address.
        addr: SocketAddr,
    },
    /// Another cause.
    #[error("cannot listen on {addr}: {source}")]
    Other {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: io::Error,
    },
}

/// Sockets that are bound and take connections, one set per request thread.
pub struct Listeners {
    per_worker: Vec<Vec<(Listen, StdListener)>>,
    /// The addresses, ports filled in.
    pub addrs: Vec<Listen>,
}

impl Listeners {
    /// Binds every address for every worker.
    pub fn bind(settings: &Settings) -> Result<Self, BindError> {
        let mut per_worker: Vec<_> = (0..settings.workers).map(|_| Vec::new()).collect();
        let mut addrs = Vec::new();
        for listen in &settings.listen {
            let mut listen = listen.clone();
            let wrap = |addr, source: io::Error| match source.kind() {
                io::ErrorKind::AddrInUse => BindError::Taken { addr },
                _ => BindError::Other { addr, source },
            };
            if listen.addr.port() != 0 {
                // With port sharing on, another process of ours would go unnoticed.
                bound(listen.addr, false).map_err(|e| wrap(listen.addr, e))?;
            }
            for sockets in &mut per_worker {
                let socket = listening(listen.addr).map_err(|e| wrap(listen.addr, e))?;
                listen.addr = socket.local_addr().map_err(|e| wrap(listen.addr, e))?;
                sockets.push((listen.clone(), socket));
            }
            addrs.push(listen);
        }
        Ok(Self { per_worker, addrs })
    }
}

/// One of the sockets that take connections to an address.
fn listening(addr: SocketAddr) -> io::Result<StdListener> {
    let socket = bound(addr, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket that has an address and takes no connections: they would be reset with it.
fn bound(addr: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// No new connections; requests under way finish.
    Draining,
    /// Everything ends now.
    Stopped,
}

/// The running data plane.
pub struct Gateway {
    /// What all request threads share.
    pub shared: Arc<Shared>,
    /// Where it listens.
    pub addrs: Vec<Listen>,
    phase: watch::Sender<Phase>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// Starts one thread per worker.
    pub fn start(shared: Arc<Shared>, listeners: Listeners) -> io::Result<Self> {
        let (phase, watching) = watch::channel(Phase::Running);
        let mut threads = Vec::new();
        for (index, sockets) in listeners.per_worker.into_iter().enumerate() {
            let (shared, watching) = (shared.clone(), watching.clone());
            let thread = std::thread::Builder::new()
                .name(format!("request-{index}"))
                .spawn(move || run_worker(index, shared, sockets, watching))?;
            threads.push(thread);
        }
        Ok(Self { shared, addrs: listeners.addrs, phase, threads })
    }

    /// Stops taking connections and waits for requests under way, at most `limit`. Says
    /// whether all of them finished.
    pub fn drain(self, limit: Duration) -> bool {
        self.shared.draining.store(true, Ordering::Release);
        let _ = self.phase.send(Phase::Draining);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && self.threads.iter().any(|t| !t.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let finished = self.threads.iter().all(std::thread::JoinHandle::is_finished);
        self.stop();
        finished
    }

    /// Ends everything now.
    pub fn stop(mut self) {
        self.shared.draining.store(true, Ordering::Release);
        let _ = self.phase.send(Phase::Stopped);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run_worker(
    index: usize,
    shared: Arc<Shared>,
    sockets: Vec<(Listen, StdListener)>,
    mut phase: watch::Receiver<Phase>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "A request thread has no runtime: raise the limit of open files.");
            return;
        }
    };
    runtime.block_on(async {
        let core = Core::new(index, shared);
        for (listen, socket) in sockets {
            match TcpListener::from_std(socket) {
                Ok(listener) => {
                    tokio::task::spawn_local(accept(core.clone(), listen, listener, phase.clone()));
                }
                Err(error) => error!(addr = %listen.addr, %error, "A listener was lost."),
            }
        }
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => core.sweep(),
                changed = phase.changed() => if changed.is_err() { return },
            }
            match *phase.borrow_and_update() {
                Phase::Running => {}
                Phase::Stopped => return,
                Phase::Draining => {
                    core.wake_idle();
                    core.pool.clear();
                    if core.open_connections() == 0 && core.listeners_closed() {
                        return;
                    }
                    tick.reset_after(DRAIN_LOOK_EVERY);
                }
            }
        }
    });
    // Dropping the runtime ends what is left.
}

async fn accept(
    core: Rc<Core>,
    listen: Listen,
    listener: TcpListener,
    mut phase: watch::Receiver<Phase>,
) {
    core.listener_opened();
    let listen = Rc::new(listen);
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => take(&core, &listen, tcp, peer),
                Err(error) => pause_after(&error).await,
            },
            _ = phase.changed() => if *phase.borrow() != Phase::Running { break },
        }
    }
    // Whoever the kernel has accepted already is served.
    let late = async {
        while let Some(Ok((tcp, peer))) = within(Duration::ZERO, listener.accept()).await {
            take(&core, &listen, tcp, peer);
        }
    };
    late.await;
    core.listener_closed();
}

async fn pause_after(error: &io::Error) {
    // A connection that was gone before it was taken is nothing to wait for.
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    warn!(%error, "A connection could not be accepted; raise nginx_config.worker_rlimit_nofile if files ran out.");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn take(core: &Rc<Core>, listen: &Rc<Listen>, tcp: TcpStream, peer: SocketAddr) {
    core.counters.connections.add(1);
    let (core, listen) = (core.clone(), listen.clone());
    tokio::task::spawn_local(async move {
        let open = core.open_connection();
        std::future::poll_fn(|cx| {
            open.set_waker(cx.waker());
            std::task::Poll::Ready(())
        })
        .await;
        serve(&core, &listen, tcp, peer).await;
        drop(open);
    });
}

/// The TLS handshake; says which certificates it asked the client for.
async fn shake(
    core: &Rc<Core>,
    tcp: TcpStream,
    client_auth: &mut Option<(Arc<ClientAuth>, Box<str>)>,
) -> io::Result<TlsStream<TcpStream>> {
    let server = &core.shared.tls_server;
    if !server.has_special() {
        return tokio_rustls::TlsAcceptor::from(server.config()).accept(tcp).await;
    }
    let start = tokio_rustls::LazyConfigAcceptor::new(Default::default(), tcp).await?;
    let (config, asked) =
        server.config_for(start.client_hello().server_name()).map_err(io::Error::other)?;
    *client_auth = asked;
    start.into_stream(config).await
}

/// Serves one client connection from its first byte to its last.
async fn serve(core: &Rc<Core>, listen: &Listen, mut tcp: TcpStream, peer: SocketAddr) {
    if let Err(error) = tcp.set_nodelay(true) {
        debug!(%error, "A connection was gone at once.");
        return;
    }
    let settings = core.settings();
    let local = tcp.local_addr().unwrap_or(listen.addr);
    let mut ends = (peer, local);
    if listen.proxy_protocol {
        let read = within(settings.client_header_timeout, proxy_protocol::read(&mut tcp));
        match Box::pin(read).await {
            Some(Ok(Some((client, server)))) => ends = (client, server),
            Some(Ok(None)) => {}
            Some(Err(error)) => {
                warn!(%peer, %error, "A connection did not begin with a PROXY protocol header.");
                return;
            }
            None => return,
        }
    }
    let mut connection = Connection {
        number: core.next_connection(),
        peer: ends.0,
        peer_text: ends.0.ip().to_canonical().to_string().into(),
        local: ends.1,
        tls: None,
        real_ip_peer: real_ip::contains(&settings.real_ip.from, ends.0.ip()),
        trusted_peer: settings
            .trusted_addresses
            .as_ref()
            .map(|list| real_ip::contains(list, ends.0.ip())),
    };
    if !listen.tls {
        // Boxed, here and below: an idle connection keeps only what its wait needs.
        return Box::pin(h1::serve(core, Stream::Tcp(tcp), Rc::new(connection), Buffer::default()))
            .await;
    }
    let mut first = [0_u8; 1];
    match Box::pin(within(settings.client_header_timeout, tcp.peek(&mut first))).await {
        Some(Ok(1)) if first[0] == TLS_HANDSHAKE => {}
        Some(Ok(1)) => return Box::pin(h1::refuse_plain(core, tcp)).await,
        _ => return,
    }
    let mut client_auth = None;
    let handshake = within(settings.client_header_timeout, shake(core, tcp, &mut client_auth));
    let session = match Box::pin(handshake).await {
        Some(Ok(session)) => session,
        Some(Err(error)) => {
            core.counters.tls_failures.add(1);
            info!(client = %peer.ip(), %error, "A TLS handshake failed.");
            return;
        }
        None => {
            core.counters.tls_failures.add(1);
            return;
        }
    };
    let (client_auth, client_auth_name) = client_auth.unzip();
    let fallback = || core.shared.tls_server.fallback().map(Into::into);
    let (_, state) = session.get_ref();
    let speaks_h2 = state.alpn_protocol() == Some(b"h2");
    connection.tls = Some(TlsInfo {
        protocol: match state.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2".into(),
            _ => "TLSv1.3".into(),
        },
        cipher: state
            .negotiated_cipher_suite()
            .and_then(|s| s.suite().as_str())
            .unwrap_or_default()
            .into(),
        sni: state.server_name().map(str::to_owned),
        client: client_auth.as_ref().and_then(|auth| {
            let chain = state.peer_certificates()?;
            let failure = auth.verify(chain).err();
            Some(ClientCertificate { der: chain.first()?.clone().into_owned(), failure })
        }),
        client_auth,
        name: client_auth_name.or_else(|| state.server_name().map(Into::into)).or_else(fallback),
    });
    let stream = Stream::ServerTls(Box::new(session));
    let connection = Rc::new(connection);
    if speaks_h2 {
        Box::pin(h2::serve(core, stream, connection, Buffer::default())).await;
    } else {
        Box::pin(h1::serve(core, stream, connection, Buffer::default())).await;
    }
}

/// Headers that every response carries, whoever made it.
pub(crate) fn complete_head(exchange: &Exchange, response: &mut Response) {
    response.headers.put_known(Known::Server, b"Server", exchange.settings.server.as_bytes());
    if response.headers.known(Known::Date).is_none() {
        let headers = &mut response.headers;
        exchange
            .core
            .with_date(exchange.started_at, |date| headers.put_known(Known::Date, b"Date", date));
    }
}

/// The last step: plugins' `log` phase and the access log.
pub(crate) fn log(exchange: &mut Exchange) {
    exchange.core.counters.requests.add(1);
    let now = exchange.core.look();
    exchange.ended = Some(now);
    if exchange.upstream.status.is_some() && exchange.upstream.response_time.is_none() {
        exchange.upstream.response_time = exchange.upstream.began.map(|began| now - began);
    }
    if let Some(held) = exchange.held.take() {
        let record = &exchange.upstream;
        let took =
            record.connect_time.unwrap_or_default() + record.response_time.unwrap_or_default();
        held.done(took, now);
    }
    for chain in chains(exchange, Phases::LOG) {
        chain.log(exchange);
    }
    if let Some(logger) = &mut *exchange.core.access_log.borrow_mut() {
        logger.log(exchange);
    }
}

/// Skips a short body that nobody read, so that the connection can be kept.
pub(crate) async fn discard(body: &mut Body) -> Result<(), BodyError> {
    loop {
        let n = body.fill().await?;
        if n == 0 {
            return Ok(());
        }
        body.consume(n);
    }
}

/// Tells why an answer did not reach its end; who made a `Broken` one has told already.
fn log_broken_body(exchange: &Exchange, error: &BodyError) {
    let error = match (error, exchange.upstream.silence) {
        (BodyError::Broken(_), _) => return,
        (BodyError::NotTaken(_), _) => {
            return debug!(%error, "A client went away before its response was sent.");
        }
        (BodyError::TimedOut(limit), Some(name)) => &BodyError::Silent { name, limit: *limit },
        (error, _) => error,
    };
    error!(route = exchange.route_id(), %error, "A response broke off on the way from the upstream.");
}

/// A request out of its parts.
pub(crate) fn request(
    method: ::http::Method,
    version: Version,
    headers: Headers,
    body: Body,
    target: (usize, usize),
) -> Request {
    let mut request = Request { method, version, headers, body, target: (0, 0), path_len: 0 };
    request.set_target(target.0, target.1);
    request
}

/// Bytes of an unread body that are skipped to keep a connection.
pub(crate) const DISCARD_MAX: u64 = 64 << 10;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// How often a core looks after its idle things.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// How often a stop looks whether the last connection is gone.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(20);

/// The first byte of every TLS connection.
const TLS_HANDSHAKE: u8 = 22;

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream as StdStream;

    use super::*;

    #[test]
    fn looking_whether_an_address_is_free_takes_no_connection() {
        let first = listening(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let addr = first.local_addr().unwrap();
        let taken = bound(addr, false).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse, "another process of ours listens");
        drop(first);
        let looking = bound(addr, false).unwrap();
        let refused = StdStream::connect(addr).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(looking);
        let (_one, _other) = (listening(addr).unwrap(), listening(addr).unwrap());
        StdStream::connect(addr).unwrap();
    }
}

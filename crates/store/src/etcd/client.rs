//! Calls to etcd's JSON gateway: several hosts, one of which is used until it fails; a token where
//! there is a user; limits of time and size on everything.
//!
//! What matters to callers is whether a failed call can have changed anything: see [`Failure`].

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::{
    EtcdOptions, grpc, tls,
    wire::{Authenticated, Refusal},
};
use crate::StoreError;

/// A cluster of etcd as one thing to call.
pub(super) struct Client {
    hosts: Vec<Host>,
    /// The host that is used until it fails.
    current: AtomicUsize,
    tls: Option<Arc<ClientConfig>>,
    user: Option<(String, String)>,
    token: Mutex<Option<HeaderValue>>,
    /// How long a host that failed is left alone while another one works.
    rest: Duration,
    connect_time: Duration,
    calls: Semaphore,
}

/// One address of the cluster.
struct Host {
    /// As it was configured, for people.
    shown: String,
    name: String,
    port: u16,
    authority: HeaderValue,
    tls_name: Option<ServerName<'static>>,
    idle: Mutex<Vec<Connection>>,
    resting_until: Mutex<Option<Instant>>,
}

type Connection = http1::SendRequest<Full<Bytes>>;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    /// Nothing was sent.
    #[error("{host}: {reason}")]
    Unreachable { host: String, reason: String },
    /// It was sent, and no whole answer came: it may or may not have been done.
    #[error("{host}: {reason}")]
    NoAnswer { host: String, reason: String },
    /// etcd says why it did not do it, or that it does not know whether it did.
    #[error("{host}: {message}")]
    Refused { host: String, code: i64, message: String },
}

impl Failure {
    /// Is it certain that nothing was changed?
    pub(super) fn nothing_happened(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::NoAnswer { .. } => false,
            Self::Refused { code, message, .. } => {
                !MAYBE_DONE.iter().any(|text| message.contains(text))
                    && ![CODE_UNKNOWN, CODE_DEADLINE].contains(code)
            }
        }
    }

    /// May another host, or the same a moment later, do better?
    pub(super) fn worth_another_try(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { code, message, .. } => {
                [CODE_UNAVAILABLE, CODE_UNKNOWN, CODE_DEADLINE].contains(code)
                    || message.contains("too many requests")
                    || MAYBE_DONE.iter().any(|text| message.contains(text))
            }
        }
    }

    /// Are changes from there on forgotten?
    pub(super) fn compacted(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("has been compacted"))
    }

    /// Was an answer too large for somebody?
    pub(super) fn too_large(&self) -> bool {
        match self {
            Self::Refused { message, .. } => message.contains("larger than max"),
            Self::NoAnswer { reason, .. } => reason == ANSWER_TOO_LARGE,
            Self::Unreachable { .. } => false,
        }
    }

    fn token_is_bad(&self) -> bool {
        match self {
            Self::Refused { code, message, .. } => {
                *code == CODE_UNAUTHENTICATED
                    || message.contains("invalid auth token")
                    || message.contains("auth store is old")
            }
            _ => false,
        }
    }
}

/// Names, hosts, and no secret.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("hosts", &self.shown()).finish_non_exhaustive()
    }
}

impl Client {
    /// Reads certificates and addresses; connects to nothing.
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        let hosts: Vec<Host> = options
            .hosts
            .iter()
            .map(|url| Host::parse(url, options.tls.sni.as_deref()))
            .collect::<Result<_, _>>()
            .map_err(|reason| StoreError::Unavailable { reason })?;
        if hosts.is_empty() {
            let reason = "no etcd host is configured".to_owned();
            return Err(StoreError::Unavailable { reason });
        }
        let secure = hosts.iter().any(|host| host.tls_name.is_some());
        Ok(Self {
            // Gateways of one configuration spread over the hosts.
            current: AtomicUsize::new(rand::random_range(0..hosts.len())),
            hosts,
            tls: if secure { Some(tls::config(&options.tls)?) } else { None },
            user: options.user.clone().zip(options.password.clone()),
            token: Mutex::default(),
            rest: options.health_check_timeout,
            connect_time: options.timeout.min(CONNECT_TIME_MAX),
            calls: Semaphore::new(CALLS_MAX),
        })
    }

    /// The hosts, for people.
    pub(super) fn shown(&self) -> String {
        self.hosts.iter().map(|host| host.shown.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The host to use now.
    pub(super) fn host(&self) -> usize {
        let current = self.current.load(Ordering::Relaxed);
        let now = Instant::now();
        let count = self.hosts.len();
        let rested = |index: &usize| self.hosts[*index].resting_until().is_none_or(|at| at <= now);
        let mut candidates = (0..count).map(|step| (current + step) % count);
        let found = candidates.find(rested).unwrap_or_else(|| {
            // All have failed lately: the one that failed first comes first.
            let by_rest = |index: &usize| self.hosts[*index].resting_until();
            (0..count).min_by_key(by_rest).unwrap_or(current)
        });
        self.current.store(found, Ordering::Relaxed);
        found
    }

    /// How many hosts there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.hosts.len()).unwrap_or(u32::MAX)
    }

    /// What a host is called.
    pub(super) fn name(&self, host: usize) -> &str {
        &self.hosts[host].shown
    }

    /// Leaves a host alone for a while.
    pub(super) fn failed(&self, host: usize) {
        self.hosts[host].rest(Some(Instant::now() + self.rest));
        lock(&self.hosts[host].idle).clear();
    }

    /// Calls every host, if need be, until one answers. For what may be done twice.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<T, Vec<Failure>> {
        let mut failures = Vec::new();
        for _ in 0..self.hosts.len() {
            let host = self.host();
            match self.call_host(host, path, body, limit).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    let again = failure.worth_another_try();
                    failures.push(failure);
                    if !again {
                        break;
                    }
                }
            }
        }
        Err(failures)
    }

    /// One call to one host, at most one more when its token had run out.
    pub(super) async fn call_host<T: DeserializeOwned>(
        &self,
        host: usize,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<T, Failure> {
        let body = Bytes::from(body.to_string());
        let answered = self.exchange(host, path, body, limit).await;
        let bytes = answered.inspect(|_| self.works(host)).inspect_err(|failure| {
            if failure.worth_another_try() {
                self.failed(host);
            }
        })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            self.no_answer(host, format!("its answer is not what etcd sends: {error}"))
        })
    }

    /// Opens a stream of JSON lines.
    pub(super) async fn stream(
        &self,
        host: usize,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<Lines, Failure> {
        let open = async {
            let token = self.token(host).await?;
            let mut connection = self.connect(host).await?;
            let body = Bytes::from(body.to_string());
            let request = self.request(host, path, body, token.as_ref(), true);
            let response = connection
                .send_request(request)
                .await
                .map_err(|error| self.no_answer(host, error.to_string()))?;
            let (status, body) = (response.status().as_u16(), response.into_body());
            if status == 200 {
                let rest = BytesMut::new();
                // The connection lives as long as its sender does.
                return Ok(Lines { body, rest, seen: 0, _connection: connection });
            }
            let bytes = self.read(host, body).await?;
            Err(self.refused(host, status, &bytes))
        };
        let opened = timeout(limit, open).await;
        let opened = opened.unwrap_or_else(|_| Err(self.no_answer(host, too_late(limit))));
        opened.inspect_err(|failure| {
            if failure.token_is_bad() {
                self.forget_token();
            }
        })
    }

    /// A stream's host ended what it had begun, with a refusal inside the stream. The host is left
    /// alone for a while, unless it only wants another token.
    pub(super) fn stream_refused(&self, host: usize, refusal: Refusal) -> Failure {
        self.ended(host, self.refused_with(host, refusal))
    }

    /// As [`stream_refused`](Self::stream_refused), of a watch that was cancelled.
    pub(super) fn watch_cancelled(&self, host: usize, reason: String) -> Failure {
        // Many versions of etcd call a token that they do not know a lack of rights, here alone.
        if reason.contains("permission denied") {
            self.forget_token();
        }
        let message = format!("the watch was cancelled: {reason}");
        self.ended(host, Failure::Refused { host: self.name(host).to_owned(), code: 0, message })
    }

    fn ended(&self, host: usize, failure: Failure) -> Failure {
        match failure.token_is_bad() {
            true => self.forget_token(),
            false => self.failed(host),
        }
        failure
    }

    async fn exchange(
        &self,
        host: usize,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, Failure> {
        let started = Instant::now();
        let Ok(Ok(_place)) = timeout(limit, self.calls.acquire()).await else {
            return Err(self.unreachable(host, "too many calls are under way".to_owned()));
        };
        let connected = async {
            let token = self.token(host).await?;
            Ok((token, self.idle_or_new(host).await?))
        };
        let (mut token, mut connection) = match timeout(limit, connected).await {
            Ok(connected) => connected?,
            Err(_) => return Err(self.unreachable(host, too_late(limit))),
        };
        let sent = async {
            loop {
                let request = self.request(host, path, body.clone(), token.as_ref(), false);
                let response = match connection.try_send_request(request).await {
                    Ok(response) => response,
                    Err(mut error) => {
                        // It may have been closed while idle: this request never left then.
                        if error.take_message().is_none() {
                            return Err(self.no_answer(host, reason(&error.into_error())));
                        }
                        connection = self.connect(host).await?;
                        continue;
                    }
                };
                let answered = self.answer(host, response).await;
                match &answered {
                    Err(failure) if failure.token_is_bad() && token.is_some() => {
                        self.forget_token();
                        token = self.token(host).await?;
                        connection = self.idle_or_new(host).await?;
                        // Whoever is told so a second time gives up: this token is new.
                        let request = self.request(host, path, body.clone(), token.as_ref(), false);
                        let response = connection.send_request(request).await;
                        let response =
                            response.map_err(|error| self.no_answer(host, reason(&error)))?;
                        return self.answer(host, response).await.map(|bytes| (bytes, connection));
                    }
                    _ => return answered.map(|bytes| (bytes, connection)),
                }
            }
        };
        let left = limit.saturating_sub(started.elapsed());
        match timeout(left, sent).await {
            Ok(Ok((bytes, connection))) => {
                let mut idle = lock(&self.hosts[host].idle);
                if !connection.is_closed() && idle.len() < IDLE_MAX {
                    idle.push(connection);
                }
                Ok(bytes)
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(self.no_answer(host, too_late(limit))),
        }
    }

    async fn answer(&self, host: usize, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let status = response.status().as_u16();
        let bytes = self.read(host, response.into_body()).await?;
        match status {
            200 => Ok(bytes),
            status => Err(self.refused(host, status, &bytes)),
        }
    }

    async fn read(&self, host: usize, body: Incoming) -> Result<Bytes, Failure> {
        #[expect(clippy::disallowed_methods, reason = "read through a limit")]
        let read = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        read.map(|body| body.to_bytes()).map_err(|error| {
            let reason = match error.is::<LengthLimitError>() {
                true => ANSWER_TOO_LARGE.to_owned(),
                false => error.to_string(),
            };
            self.no_answer(host, reason)
        })
    }

    async fn idle_or_new(&self, host: usize) -> Result<Connection, Failure> {
        loop {
            let idle = lock(&self.hosts[host].idle).pop();
            match idle {
                Some(connection) if connection.is_ready() => return Ok(connection),
                Some(_) => {}
                None => return self.connect(host).await,
            }
        }
    }

    async fn connect(&self, index: usize) -> Result<Connection, Failure> {
        let host = &self.hosts[index];
        let connect = async {
            let tcp = TcpStream::connect((host.name.as_str(), host.port))
                .await
                .map_err(|error| error.to_string())?;
            let _ = tcp.set_nodelay(true);
            match (&host.tls_name, &self.tls) {
                (Some(name), Some(config)) => {
                    let connector = TlsConnector::from(Arc::clone(config));
                    let tls = connector.connect(name.clone(), tcp).await;
                    handshake(tls.map_err(|error| format!("TLS: {error}"))?).await
                }
                _ => handshake(tcp).await,
            }
        };
        match timeout(self.connect_time, connect).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(reason)) => Err(self.unreachable(index, reason)),
            Err(_) => Err(self.unreachable(index, too_late(self.connect_time))),
        }
    }

    /// A connection to a host for gRPC; `None` where there is none to be had.
    pub(super) async fn grpc(&self) -> Option<grpc::Connection> {
        let index = self.host();
        let host = &self.hosts[index];
        let open = async {
            let token = self.token(index).await.map_err(|failure| failure.to_string())?;
            let tcp = TcpStream::connect((host.name.as_str(), host.port))
                .await
                .map_err(|error| error.to_string())?;
            let _ = tcp.set_nodelay(true);
            let authority = host.authority.to_str().unwrap_or_default().to_owned();
            match (&host.tls_name, &self.tls) {
                (Some(name), Some(config)) => {
                    let mut config = ClientConfig::clone(config);
                    config.alpn_protocols = vec![b"h2".to_vec()];
                    let connector = TlsConnector::from(Arc::new(config));
                    let tls = connector.connect(name.clone(), tcp).await;
                    let tls = tls.map_err(|error| format!("TLS: {error}"))?;
                    grpc::Connection::open(tls, authority, true, token).await
                }
                _ => grpc::Connection::open(tcp, authority, false, token).await,
            }
        };
        match timeout(self.connect_time, open).await {
            Ok(Ok(connection)) => Some(connection),
            Ok(Err(reason)) => {
                debug!(reason, "etcd is read through its JSON gateway.");
                None
            }
            Err(_) => None,
        }
    }

    /// The token to send, asked for when there is none.
    async fn token(&self, host: usize) -> Result<Option<HeaderValue>, Failure> {
        let Some((name, password)) = &self.user else { return Ok(None) };
        if let Some(token) = lock(&self.token).clone() {
            return Ok(Some(token));
        }
        let body = Bytes::from(json!({"name": name, "password": password}).to_string());
        let mut connection = self.idle_or_new(host).await?;
        let request = self.request(host, "/v3/auth/authenticate", body, None, false);
        // Asking for a token changes nothing, so that nothing happened if this fails.
        let failed = |reason: String| self.unreachable(host, format!("authentication: {reason}"));
        let response = connection.send_request(request).await;
        let response = response.map_err(|error| failed(reason(&error)))?;
        let bytes = match self.answer(host, response).await {
            Ok(bytes) => bytes,
            // Users are configured here, and not there: etcd takes calls without a token then.
            Err(Failure::Refused { message, .. }) if message.contains("is not enabled") => {
                return Ok(None);
            }
            Err(Failure::NoAnswer { reason, .. }) => return Err(failed(reason)),
            Err(other) => return Err(other),
        };
        let answer: Authenticated =
            serde_json::from_slice(&bytes).map_err(|_| failed("no token came".to_owned()))?;
        let mut token = HeaderValue::from_str(&answer.token)
            .map_err(|_| failed("the token cannot be sent".to_owned()))?;
        token.set_sensitive(true);
        *lock(&self.token) = Some(token.clone());
        Ok(Some(token))
    }

    fn forget_token(&self) {
        *lock(&self.token) = None;
    }

    fn request(
        &self,
        host: usize,
        path: &str,
        body: Bytes,
        token: Option<&HeaderValue>,
        with_leader: bool,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::try_from(path).expect("paths are constants");
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.hosts[host].authority.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if with_leader {
            // A member without a leader ends the stream: nothing new would ever come.
            headers.insert("grpc-metadata-hasleader", HeaderValue::from_static("true"));
        }
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        request
    }

    fn works(&self, host: usize) {
        self.hosts[host].rest(None);
    }

    fn unreachable(&self, host: usize, reason: String) -> Failure {
        Failure::Unreachable { host: self.name(host).to_owned(), reason }
    }

    pub(super) fn no_answer(&self, host: usize, reason: String) -> Failure {
        Failure::NoAnswer { host: self.name(host).to_owned(), reason }
    }

    pub(super) fn refused_with(&self, host: usize, refusal: Refusal) -> Failure {
        let Refusal { code, message, .. } = refusal;
        Failure::Refused { host: self.name(host).to_owned(), code, message }
    }

    fn refused(&self, host: usize, status: u16, body: &[u8]) -> Failure {
        self.refused_with(host, Refusal::parse(status, body))
    }
}

impl Host {
    fn parse(url: &str, sni: Option<&str>) -> Result<Self, String> {
        let bad = |why: &str| format!("deployment.etcd.host: {:?} {why}", shown(url));
        let uri: http::Uri = url.parse().map_err(|_| bad("is no address"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("starts with neither http:// nor https://")),
        };
        let name = uri.host().ok_or_else(|| bad("has no host"))?;
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authority = uri.authority().map_or_else(String::new, |a| a.as_str().to_owned());
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let tls_name = match tls {
            true => Some(
                ServerName::try_from(sni.unwrap_or(&name).to_owned())
                    .map_err(|_| bad("has no name that TLS could check"))?,
            ),
            false => None,
        };
        Ok(Self {
            shown: format!("{}://{authority}", if tls { "https" } else { "http" }),
            authority: HeaderValue::from_str(authority).map_err(|_| bad("is no address"))?,
            name,
            port,
            tls_name,
            idle: Mutex::default(),
            resting_until: Mutex::default(),
        })
    }

    fn resting_until(&self) -> Option<Instant> {
        *lock(&self.resting_until)
    }

    fn rest(&self, until: Option<Instant>) {
        *lock(&self.resting_until) = until;
    }
}

/// An address for people: without the user and password somebody may have put before an `@`.
pub(super) fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_at(url.find("://").map_or(0, |at| at + 3));
    // A slash may stand in a password that was not escaped, so that the last @ counts.
    format!("{scheme}{}", rest.rsplit('@').next().unwrap_or_default())
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Connection, String> {
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "A connection to etcd ended.");
        }
    });
    Ok(sender)
}

/// An answer that goes on and on: one JSON text per line.
pub(super) struct Lines {
    body: Incoming,
    rest: BytesMut,
    /// How much of `rest` is known to hold no line's end.
    seen: usize,
    _connection: Connection,
}

impl Lines {
    /// The next line; `None` when the stream has ended. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(at) = self.rest[self.seen..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.seen + at + 1).freeze();
                self.seen = 0;
                return Ok(Some(line));
            }
            self.seen = self.rest.len();
            if self.rest.len() > LINE_BYTES_MAX {
                return Err("a line of its answer is too long".to_owned());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(reason(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// An error with what lies below it.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn too_late(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How etcd words that something it was asked for may be done after all.
const MAYBE_DONE: &[&str] = &[
    "request timed out",
    "leader changed",
    "server stopped",
    "is stopping",
    "transport is closing",
];
/// Codes of gRPC that matter here.
const CODE_UNKNOWN: i64 = 2;
const CODE_DEADLINE: i64 = 4;
const CODE_UNAVAILABLE: i64 = 14;
const CODE_UNAUTHENTICATED: i64 = 16;

/// How long a connection may take, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// Calls under way at one time.
const CALLS_MAX: usize = 64;
/// Idle connections kept to one host.
const IDLE_MAX: usize = 16;
/// The longest answer to a call, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 64 << 20;
const ANSWER_TOO_LARGE: &str = "its answer is too large";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_have_been_done_counts_as_not_done() {
        let refused = |code, message: &str| Failure::Refused {
            host: "http://h:1".into(),
            code,
            message: message.into(),
        };
        let lost = |reason: &str| (String::from("http://h:1"), String::from(reason));
        let (host, reason) = lost("connection refused");
        let unreachable = Failure::Unreachable { host, reason };
        let (host, reason) = lost("connection closed");
        let no_answer = Failure::NoAnswer { host, reason };
        for (failure, nothing_happened, again) in [
            (unreachable, true, true),
            (no_answer, false, true),
            (refused(14, "etcdserver: no leader"), true, true),
            (refused(14, "etcdserver: request timed out"), false, true),
            (refused(14, "etcdserver: leader changed"), false, true),
            (refused(14, "transport is closing"), false, true),
            (refused(8, "etcdserver: too many requests"), true, true),
            (refused(8, "etcdserver: mvcc: database space exceeded"), true, false),
            (refused(7, "etcdserver: permission denied"), true, false),
            (refused(3, "etcdserver: request is too large"), true, false),
            (refused(2, "context canceled"), false, true),
        ] {
            assert_eq!(failure.nothing_happened(), nothing_happened, "{failure}");
            assert_eq!(failure.worth_another_try(), again, "{failure}");
        }
    }

    #[test]
    fn an_address_is_shown_without_what_stands_before_its_at() {
        for url in ["https://u:secret@exa mple:1", "ftp://u:secr/et@h", "u:secret@h"] {
            let error = Host::parse(url, None).err().unwrap_or_default();
            assert!(
                error.starts_with("deployment.etcd.host") && !error.contains("secr"),
                "{error}"
            );
            let options = EtcdOptions::new(vec![url.to_owned()]);
            assert!(!format!("{options:?}").contains("secr"), "{options:?}");
        }
    }

    #[test]
    fn a_host_is_an_http_address() {
        for (url, expected) in [
            ("http://127.0.0.1:2379", Some(("127.0.0.1", 2379, "127.0.0.1:2379", false))),
            ("https://etcd.test", Some(("etcd.test", 443, "etcd.test", true))),
            ("http://[::1]:2379/", Some(("::1", 2379, "[::1]:2379", false))),
            ("http://u:secret@h:1", Some(("h", 1, "h:1", false))),
            ("127.0.0.1:2379", None),
            ("ftp://h:1", None),
            ("https://exa mple:1", None),
            ("", None),
        ] {
            let host = Host::parse(url, None);
            let found = host.as_ref().ok().map(|h| {
                let authority = h.authority.to_str().unwrap();
                (h.name.as_str(), h.port, authority, h.tls_name.is_some())
            });
            assert_eq!(found, expected, "{url}");
        }
    }
}

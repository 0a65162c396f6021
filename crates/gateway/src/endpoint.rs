//! An HTTP server that the gateway calls itself: a function, or a service that a plugin asks.
//!
//! Addresses, TLS and pools are those of the core that calls, so a call costs what proxying does.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Method, StatusCode, Uri};
use bytes::Bytes;
use tracing::warn;

use crate::body::Body;
use crate::client::{
    self, Answer, CallError, Keepalive, Outgoing, Received, Target, Timeouts, TlsRequest,
    TlsTarget, Tunnelled,
};
use crate::core::Core;
use crate::exchange::UpstreamRecord;
use crate::http::headers::{Headers, write_line};
use crate::plugin::{CompileCtx, ConfigError};
use crate::upstream::resolve::Name;

/// A server's address and how to call it, compiled.
pub struct Endpoint {
    authority: Arc<str>,
    host: Host,
    port: u16,
    tls: Option<Arc<TlsTarget>>,
    scheme: &'static str,
    path: String,
    query: Option<String>,
    timeouts: Timeouts,
    keepalive: Option<Keepalive>,
    /// Through a proxy; its name is then resolved there.
    via: Option<Arc<Tunnelled>>,
}

enum Host {
    Ip(IpAddr),
    Name(Arc<Name>),
    /// A trial compile, which is never called, or a name that the proxy resolves.
    Unresolved,
}

/// How an endpoint is called.
#[derive(Debug, Clone, Copy)]
pub struct EndpointOptions {
    /// Verify its certificate.
    pub verify: bool,
    /// For the connection, for sending and for each read.
    pub timeouts: Timeouts,
    /// How idle connections are kept; `None`: each call has its own.
    pub keepalive: Option<Keepalive>,
    /// Leave by the egress proxy where one is configured (`sluicegate.egress_proxy`).
    pub egress: bool,
}

impl EndpointOptions {
    /// One time limit for everything; the certificate verified, connections kept as by default,
    /// and no proxy.
    pub fn within(limit: Duration) -> Self {
        Self {
            verify: true,
            timeouts: Timeouts { connect: limit, send: limit, read: limit },
            keepalive: Some(Keepalive {
                size: KEEPALIVE_SIZE,
                idle_timeout: KEEPALIVE_IDLE,
                requests: u64::MAX,
            }),
            egress: false,
        }
    }
}

/// A request to an endpoint.
pub struct Ask<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, raw; an empty one is `/`.
    pub path: &'a str,
    /// The query, raw, without `?`.
    pub query: Option<&'a str>,
    /// Header fields; neither `Host` nor anything about framing.
    pub headers: &'a Headers,
    /// The whole body.
    pub body: Bytes,
}

/// An answer taken whole.
#[derive(Debug)]
pub struct Told {
    /// The status.
    pub status: StatusCode,
    /// The header fields, those about the connection left out.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
}

impl Endpoint {
    /// Compiles a URL, which the configuration has in `field`.
    ///
    /// # Errors
    /// What is wrong with the URL, or the TLS settings.
    pub fn compile(
        field: &str,
        url: &str,
        options: &EndpointOptions,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        let endpoint = Self::compile_for(field, url, options, false, ctx)?;
        // Once for each server, not at every reload.
        if let Some(deps) = ctx.deps
            && endpoint.tls.is_some()
            && !options.verify
            && deps.tls.first_warning(&endpoint.authority)
        {
            warn!(
                owner = ctx.owner,
                function = &*endpoint.authority,
                "ssl_verify is false: whoever answers at this address is believed."
            );
        }
        Ok(endpoint)
    }

    /// Compiles a URL for HTTP/1.1, or for HTTP/2 and nothing else.
    pub(crate) fn compile_for(
        field: &str,
        url: &str,
        options: &EndpointOptions,
        h2: bool,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        let bad = |why: &str| ConfigError(format!("`{field}` {why}: {url:?}"));
        let uri: Uri = url.parse().map_err(|_| bad("is not a URL"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(bad("does not begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("has no host"))?;
        if authority.as_str().contains('@') {
            // Without the value: it may hold a password.
            return Err(ConfigError(format!("`{field}` must not carry a user name")));
        }
        if authority.host().is_empty() {
            return Err(bad("has no host"));
        }
        let tls = scheme == "https";
        let default_port = if tls { 443 } else { 80 };
        // `Authority::port` tells no port where the number is too large for one.
        let behind_host = authority.as_str().get(authority.host().len()..).unwrap_or_default();
        let port = match behind_host.strip_prefix(':') {
            None | Some("") => default_port,
            Some(port) => port.parse().map_err(|_| bad("has no valid port"))?,
        };
        let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
        let via = match ctx.deps.and_then(|deps| deps.egress.as_ref()) {
            Some(proxies) if options.egress => proxies.way(tls, bare, port),
            _ => None,
        };
        let host = match (bare.parse::<IpAddr>(), ctx.deps) {
            (Ok(ip), _) => Host::Ip(ip),
            // Names that a proxy resolves may mean nothing here.
            (Err(_), Some(deps)) if via.is_none() => Host::Name(deps.resolver.name(bare)),
            (Err(_), _) => Host::Unresolved,
        };
        let target = match ctx.deps {
            Some(deps) if tls => {
                let request = TlsRequest {
                    server_name: bare.to_owned(),
                    verify: options.verify,
                    h2,
                    client: None,
                };
                Some(deps.tls.target(&request).map_err(ConfigError)?)
            }
            _ => None,
        };
        // Differs: APISIX sends the host without its port; what is signed and what is sent
        // is the authority as RFC 9110 section 7.2 has it.
        let shown = match port == default_port {
            true => authority.host().to_owned(),
            false => format!("{}:{port}", authority.host()),
        };
        Ok(Self {
            authority: shown.into(),
            host,
            port,
            tls: target,
            scheme,
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            timeouts: options.timeouts,
            keepalive: options.keepalive,
            via,
        })
    }

    /// `Host` of the calls.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The path of the URL, raw.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query of the URL, raw, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Asks, and takes an answer of at most `limit` bytes whole.
    ///
    /// # Errors
    /// There was no answer, or it is too large.
    pub async fn ask(&self, core: &Rc<Core>, ask: &Ask<'_>, limit: u64) -> Result<Told, CallError> {
        let mut record = UpstreamRecord::default();
        let mut received = self.call(core, ask, &mut record).await?;
        received.headers.remove_hop_by_hop();
        let body = received.body.read_limited(limit).await.map_err(CallError::AnswerBody)?;
        Ok(Told { status: received.status, headers: received.headers, body })
    }

    /// Calls, and streams the answer. `record` learns whom was called, and when.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn call(
        &self,
        core: &Rc<Core>,
        ask: &Ask<'_>,
        record: &mut UpstreamRecord,
    ) -> Result<Received, CallError> {
        record.connect_time = None;
        let (target, limit) = self.target(core).await?;
        record.addrs.push(target.addr);
        let mut fresh = false;
        loop {
            // Until there is a connection, nothing of this try was sent.
            record.connect_time = None;
            let conn = client::acquire(core, &target, limit, fresh).await?;
            record.connect_time = Some(conn.connect_time);
            let mut head = core.take_head();
            self.write_head(ask, &mut head);
            let outgoing = Outgoing {
                head,
                body: Body::from_bytes(ask.body.clone()),
                chunked: false,
                no_answer_body: *ask.method == Method::HEAD,
                may_upgrade: false,
            };
            match client::send(core, conn, outgoing, self.timeouts).await {
                Answer::Received(received) => return Ok(received),
                Answer::Failed { error, stale, untouched } => {
                    // An idle connection was closed just as it was used. Only what cannot
                    // run a function twice is repeated.
                    let harmless = untouched || is_safe(ask.method);
                    if stale && harmless && !fresh {
                        fresh = true;
                        continue;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Where its connections go, now, and how long making one may take.
    pub(crate) async fn target(&self, core: &Rc<Core>) -> Result<(Target, Duration), CallError> {
        let mut limit = self.timeouts.connect;
        let addr = match (&self.via, &self.host) {
            (Some(via), _) => {
                let began = Instant::now();
                let addr = via.address(limit).await?;
                limit = limit.saturating_sub(began.elapsed());
                addr
            }
            (None, Host::Ip(ip)) => SocketAddr::new(*ip, self.port),
            (None, Host::Name(name)) => {
                let ip = match name.next() {
                    Some(ip) => ip,
                    None => {
                        let first = Box::pin(name.first(limit)).await;
                        core.look();
                        let host = || name.host.clone();
                        first.map_err(|cause| CallError::Resolve { host: host(), cause })?
                    }
                };
                SocketAddr::new(ip, self.port)
            }
            (None, Host::Unresolved) => return Err(CallError::Closed),
        };
        let (via, tls) = (self.via.clone(), self.tls.clone());
        Ok((Target { addr, via, tls, keepalive: self.keepalive }, limit))
    }

    /// The time limits of its calls.
    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The head as it goes out; public for the benchmark.
    pub fn write_head(&self, ask: &Ask<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(ask.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(if ask.path.is_empty() { b"/" } else { ask.path.as_bytes() });
        if let Some(query) = ask.query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        write_line(out, b"Host", self.authority.as_bytes());
        ask.headers.write_to(out);
        let has_length = !ask.body.is_empty()
            || matches!(*ask.method, Method::POST | Method::PUT | Method::PATCH);
        if has_length {
            let mut length = itoa::Buffer::new();
            write_line(out, b"Content-Length", length.format(ask.body.len()).as_bytes());
        }
        if self.keepalive.is_none() {
            write_line(out, b"Connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Methods without side effects by definition (RFC 9110 section 9.2.1). A function may do
/// anything on PUT or DELETE, so they are not sent twice.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Idle connections to a server that a plugin asks, per core.
const KEEPALIVE_SIZE: usize = 32;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

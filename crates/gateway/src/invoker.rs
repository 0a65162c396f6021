//! Calling a function over HTTP: the engine behind every function plugin.
//!
//! It ends the client's request and makes a new one: body held whole (a signature covers
//! it), headers for one connection dropped, path and query put under `function_uri`. The
//! answer is streamed back as it arrives. Follows APISIX 3.18's generic function upstream;
//! where that is wrong, `Differs:` says so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode, Uri};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{error, warn};

use crate::body::{Body, BodyError, Room};
use crate::client::{
    self, Answer, CallError, Keepalive, Outgoing, Received, Target, Timeouts, TlsRequest, TlsTarget,
};
use crate::exchange::{Exchange, Origin, Response};
use crate::forwarded::{ConnectionTokens, Forwarded};
use crate::http::headers::{Headers, Known, write_line};
use crate::plugin::{CompileCtx, ConfigError, PluginError};
use crate::upstream::resolve::Name;
use crate::uri;

/// The attributes every function plugin shares. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct InvokerConfig {
    /// `http(s)://host[:port][/path][?query]`
    pub function_uri: String,
    /// For the connection, for sending and for each read; milliseconds.
    pub timeout: u64,
    /// Verify the function's certificate.
    pub ssl_verify: bool,
    /// Keep connections for later calls.
    pub keepalive: bool,
    /// An idle connection is closed after this; milliseconds.
    pub keepalive_timeout: u64,
    /// Idle connections kept per core.
    pub keepalive_pool: u64,
    /// Bytes of a request body.
    pub max_req_body_size: u64,
}

/// A function's address and how to call it, compiled.
pub struct FunctionInvoker {
    authority: Arc<str>,
    host: Host,
    port: u16,
    tls: Option<Arc<TlsTarget>>,
    scheme: &'static str,
    path: String,
    query: Option<String>,
    timeouts: Timeouts,
    keepalive: Option<Keepalive>,
    body_max: u64,
}

enum Host {
    Ip(IpAddr),
    Name(Arc<Name>),
    /// A trial compile: never called.
    Unresolved,
}

/// A request to a function, ready to be changed and sent.
pub struct Call {
    /// The client's method.
    pub method: Method,
    /// The path, raw.
    pub path: String,
    /// The query, raw, without `?`.
    pub query: Option<String>,
    /// Header fields; neither `Host` nor anything about framing.
    pub headers: Headers,
    /// The whole body.
    pub body: Bytes,
    _room: Option<Room>,
}

/// Why a function did not answer.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The request body did not arrive, or is too large.
    #[error("the request body: {0}")]
    Body(#[from] BodyError),
    /// The path leads nowhere under `function_uri`.
    #[error("the path cannot be forwarded")]
    Path,
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl InvokeError {
    /// What the client sees.
    pub fn status(&self) -> StatusCode {
        match self {
            // Differs: APISIX answers 400 for a body over max_req_body_size.
            Self::Body(BodyError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::NoRoom { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Body(BodyError::TimedOut(_)) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(_) | Self::Path => StatusCode::BAD_REQUEST,
            Self::Call(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl FunctionInvoker {
    /// The schema of a function plugin: the shared attributes and its `authorization`.
    pub fn schema(authorization: Value) -> Value {
        json!({
            "type": "object",
            "properties": {
                "function_uri": {"type": "string"},
                "authorization": authorization,
                "timeout": {"type": "integer", "minimum": 100, "default": 3000},
                "ssl_verify": {"type": "boolean", "default": true},
                "keepalive": {"type": "boolean", "default": true},
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
                "max_req_body_size": {"type": "integer", "minimum": 1, "default": 67108864},
            },
            "required": ["function_uri"],
        })
    }

    /// Compiles the shared attributes.
    pub fn compile(config: &InvokerConfig, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        // Differs: APISIX takes any text and fails each request.
        let bad =
            |why: &str| ConfigError(format!("`function_uri` {why}: {:?}", config.function_uri));
        let uri: Uri = config.function_uri.parse().map_err(|_| bad("is not a URL"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(bad("does not begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("has no host"))?;
        if authority.as_str().contains('@') {
            // Without the value: it may hold a password.
            return Err(ConfigError("`function_uri` must not carry a user name".into()));
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
        let host = match (bare.parse::<IpAddr>(), ctx.deps) {
            (Ok(ip), _) => Host::Ip(ip),
            (Err(_), Some(deps)) => Host::Name(deps.resolver.name(bare)),
            (Err(_), None) => Host::Unresolved,
        };
        let target = match ctx.deps {
            Some(deps) if tls => {
                let request = TlsRequest {
                    server_name: bare.to_owned(),
                    verify: config.ssl_verify,
                    h2: false,
                    client: None,
                };
                // Once for each function, not at every reload.
                if !config.ssl_verify && deps.tls.first_warning(authority.as_str()) {
                    warn!(
                        owner = ctx.owner,
                        function = authority.as_str(),
                        "ssl_verify is false: whoever answers at this address is believed."
                    );
                }
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
        let limit = Duration::from_millis(config.timeout);
        Ok(Self {
            authority: shown.into(),
            host,
            port,
            tls: target,
            scheme,
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            timeouts: Timeouts { connect: limit, send: limit, read: limit },
            keepalive: config.keepalive.then(|| Keepalive {
                size: usize::try_from(config.keepalive_pool).unwrap_or(usize::MAX),
                idle_timeout: Duration::from_millis(config.keepalive_timeout),
                requests: u64::MAX,
            }),
            body_max: config.max_req_body_size,
        })
    }

    /// `Host` of the call.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Makes the call out of the client's request: reads its body whole, forwards method,
    /// headers, query and, behind a route that ends in `*`, the rest of the path.
    pub async fn prepare(&self, exchange: &mut Exchange) -> Result<Call, PluginError> {
        match self.try_prepare(exchange).await {
            Ok(call) => Ok(call),
            Err(error) => {
                let status = error.status();
                warn!(route = exchange.route_id(), %error, status = status.as_u16(), "A function was not called.");
                Err(PluginError { status, cause: error.to_string() })
            }
        }
    }

    async fn try_prepare(&self, exchange: &mut Exchange) -> Result<Call, InvokeError> {
        let used = exchange.core.shared.buffered.clone();
        let total = exchange.settings.buffered_body_bytes;
        let (body, room) = exchange.request.body.hold(self.body_max, &used, total).await?;
        let path = match exchange.matched.ext() {
            None => self.path.clone(),
            Some(_) => {
                let rest = exchange.wildcard_rest().ok_or(InvokeError::Path)?;
                uri::join(&self.path, &rest)
            }
        };
        let client_query = exchange.request.query().filter(|q| !q.is_empty());
        // The head was checked to be ASCII where it matters; other bytes are escaped.
        let client_query = client_query.map(uri::escape_query);
        // Differs: APISIX drops a query written in function_uri.
        let query = match (&self.query, client_query) {
            (None, None) => None,
            (Some(own), None) => Some(own.clone()),
            (None, Some(client)) => Some(client.into_owned()),
            (Some(own), Some(client)) => Some(format!("{own}&{client}")),
        };
        let mut headers = exchange.core.pool.headers();
        let request = &exchange.request;
        let named = ConnectionTokens::of(&request.headers);
        let forward = Forwarded::of(exchange);
        headers.copy_from(&request.headers, |known, name| {
            !(known.is_hop_by_hop()
                || matches!(known, Known::Host | Known::ContentLength | Known::Expect)
                || !forward.keeps_for_function(known)
                || named.contains(name))
        });
        forward.add_for_function(exchange, &mut headers);
        Ok(Call { method: request.method.clone(), path, query, headers, body, _room: room })
    }

    /// Sends the call. Its answer passes through; every failure is 503.
    pub async fn send(&self, exchange: &mut Exchange, call: Call) -> Result<Response, PluginError> {
        exchange.core.counters.function_calls.add(1);
        let began = exchange.core.look();
        let record = &mut exchange.upstream;
        record.began = Some(began);
        record.scheme = self.scheme;
        record.host = Some(self.authority.clone());
        let answer = self.try_send(exchange, call).await;
        match answer {
            Ok(received) => {
                exchange.upstream.status = Some(received.status.as_u16());
                exchange.upstream.header_time = Some(exchange.core.look() - began);
                self.note_refusal(exchange, &received);
                let mut response = Response::new(received.status);
                response.headers = received.headers;
                response.headers.remove_hop_by_hop();
                response.body = received.body;
                response.origin = Origin::Function;
                Ok(response)
            }
            Err(error) => {
                exchange.core.counters.function_errors.add(1);
                exchange.upstream.response_time = Some(began.elapsed());
                exchange.upstream.status = Some(error.status().as_u16());
                error!(route = exchange.route_id(), function = %self.authority, %error, "A function did not answer.");
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(PluginError { status, cause: error.to_string() })
            }
        }
    }

    /// Writes down what AWS says about a failure: its request id and error type.
    fn note_refusal(&self, exchange: &Exchange, received: &Received) {
        let headers = &received.headers;
        let kind = headers.get_str("x-amzn-errortype");
        let failed = headers.get_str("x-amz-function-error");
        if received.status.as_u16() < 400 && failed.is_none() || kind.or(failed).is_none() {
            return;
        }
        exchange.core.counters.function_refusals.add(1);
        let request_id = headers
            .get_str("x-amzn-requestid")
            .or_else(|| headers.get_str("x-amz-apigw-id"))
            .unwrap_or("");
        error!(
            route = exchange.route_id(),
            function = %self.authority,
            status = received.status.as_u16(),
            aws_request_id = request_id,
            aws_error_type = kind.unwrap_or(""),
            function_error = failed.unwrap_or(""),
            "A function call was refused or failed."
        );
    }

    async fn try_send(&self, exchange: &mut Exchange, call: Call) -> Result<Received, CallError> {
        let ip = match &self.host {
            Host::Ip(ip) => *ip,
            Host::Name(name) => match name.next() {
                Some(ip) => ip,
                None => {
                    let first = Box::pin(name.first(self.timeouts.connect)).await;
                    exchange.core.look();
                    first.map_err(|cause| CallError::Resolve { host: name.host.clone(), cause })?
                }
            },
            Host::Unresolved => return Err(CallError::Closed),
        };
        let addr = SocketAddr::new(ip, self.port);
        exchange.upstream.addrs.push(addr);
        let target = Target { addr, tls: self.tls.clone(), keepalive: self.keepalive };
        let core = exchange.core.clone();
        let mut fresh = false;
        loop {
            let conn = client::acquire(&core, &target, self.timeouts.connect, fresh).await?;
            exchange.upstream.connect_time = Some(conn.connect_time);
            let mut head = core.take_head();
            self.write_head(&call, &mut head);
            let outgoing = Outgoing {
                head,
                body: Body::from_bytes(call.body.clone()),
                chunked: false,
                no_answer_body: call.method == Method::HEAD,
                may_upgrade: false,
            };
            match client::send(&core, conn, outgoing, self.timeouts).await {
                Answer::Received(received) => {
                    core.pool.recycle(call.headers);
                    return Ok(received);
                }
                Answer::Failed { error, stale, untouched } => {
                    // An idle connection was closed just as it was used. Only what cannot
                    // run a function twice is repeated.
                    let harmless = untouched || is_safe(&call.method);
                    if stale && harmless && !fresh {
                        fresh = true;
                        continue;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The head as it goes out; public for the benchmark.
    pub fn write_head(&self, call: &Call, out: &mut Vec<u8>) {
        out.extend_from_slice(call.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(if call.path.is_empty() { b"/" } else { call.path.as_bytes() });
        if let Some(query) = &call.query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        write_line(out, b"Host", self.authority.as_bytes());
        call.headers.write_to(out);
        let has_length = !call.body.is_empty()
            || matches!(call.method, Method::POST | Method::PUT | Method::PATCH);
        if has_length {
            let mut length = itoa::Buffer::new();
            write_line(out, b"Content-Length", length.format(call.body.len()).as_bytes());
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

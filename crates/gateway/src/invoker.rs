//! Calling a function over HTTP: the engine behind every function plugin.
//!
//! It ends the client's request and makes a new one: body held whole (a signature covers
//! it), headers for one connection dropped, path and query put under `function_uri`. The
//! answer is streamed back as it arrives. Follows APISIX 3.18's generic function upstream;
//! where that is wrong, `Differs:` says so.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::{Method, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Sleep, sleep_until};
use tracing::{error, warn};

use crate::body::{Body, BodyError, Room, Source};
use crate::client::{CallError, Keepalive, Received, Timeouts};
use crate::endpoint::{Ask, Endpoint, EndpointOptions};
use crate::exchange::{Exchange, Origin, Response};
use crate::forwarded::{ConnectionTokens, Forwarded};
use crate::http::{Headers, Known};
use crate::io::within;
use crate::mirror;
use crate::plugin::{CompileCtx, ConfigError, PluginError};
use crate::uri;

/// The attributes every function plugin shares. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct InvokerConfig {
    /// `http(s)://host[:port][/path][?query]`
    pub function_uri: String,
    /// How it is called.
    #[serde(flatten)]
    pub options: InvokerOptions,
}

/// How a function is called, wherever it is. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct InvokerOptions {
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

/// Time limits of a call as a whole, in the place of [`InvokerOptions::timeout`].
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// From the call to the head of its answer, the connection included.
    pub first_byte: Option<Duration>,
    /// From the call to the end of its answer, tries that are repeated included.
    pub total: Option<Duration>,
}

/// A function's address and how to call it, compiled.
pub struct FunctionInvoker {
    endpoint: Endpoint,
    body_max: u64,
    limits: Option<CallLimits>,
}

/// The whole body of a request, held in memory.
pub struct HeldBody {
    /// The bytes.
    pub bytes: Bytes,
    room: Option<Room>,
}

impl HeldBody {
    /// Puts other bytes in the place of the client's, which count as held from now on.
    ///
    /// # Errors
    /// There is no room for them; it is logged.
    pub fn replace(&mut self, exchange: &Exchange, bytes: Bytes) -> Result<(), PluginError> {
        hold_again(exchange, &mut self.room, bytes.len())?;
        self.bytes = bytes;
        Ok(())
    }
}

/// A body that no client sent, for trials.
impl From<Bytes> for HeldBody {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, room: None }
    }
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
    room: Option<Room>,
    /// When [`CallLimits::total`] ends.
    deadline: Option<Instant>,
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
    /// [`InvokerOptions::timeout`] ended first.
    #[error("`timeout` of {limit:?} ended before {}", step_and_advice(.cause))]
    Late {
        /// The step that took too long.
        cause: CallError,
        /// The limit.
        limit: Duration,
    },
    /// One of [`CallLimits`] ended first.
    #[error("`timeouts.{name}` of {limit:?} ended before the function answered")]
    Expired {
        /// Its name in configurations.
        name: &'static str,
        /// The limit.
        limit: Duration,
        /// There was a connection, so the call may have been sent.
        connected: bool,
    },
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
            Self::Call(_) | Self::Late { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Expired { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// What had not happened when the limit ended, and what to do.
fn step_and_advice(cause: &CallError) -> String {
    if cause.is_late_to_connect() {
        return format!("there was a connection ({cause}): look at the way there, or raise it");
    }
    let step = match cause {
        CallError::SendTimeout(_) => "the function took the request",
        _ => "the function answered",
    };
    format!("{step}: raise it if functions may take longer")
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
        Self::at("function_uri", &config.function_uri, &config.options, None, ctx)
    }

    /// Compiles an address, which the configuration has in `field`.
    pub fn at(
        field: &str,
        url: &str,
        options: &InvokerOptions,
        limits: Option<CallLimits>,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        let step = Duration::from_millis(options.timeout);
        let timeouts = match limits {
            None => Timeouts { connect: step, send: step, read: step },
            // A function may think, or stream, for as long as it likes within its limits.
            Some(CallLimits { connect, .. }) => {
                Timeouts { connect, send: SILENCE_MAX, read: SILENCE_MAX }
            }
        };
        let options_of_endpoint = EndpointOptions {
            verify: options.ssl_verify,
            timeouts,
            keepalive: options.keepalive.then(|| Keepalive {
                size: usize::try_from(options.keepalive_pool).unwrap_or(usize::MAX),
                idle_timeout: Duration::from_millis(options.keepalive_timeout),
                requests: u64::MAX,
            }),
            egress: true,
        };
        Ok(Self {
            endpoint: Endpoint::compile(field, url, &options_of_endpoint, ctx)?,
            body_max: options.max_req_body_size,
            limits,
        })
    }

    /// `max_req_body_size`, in bytes.
    pub fn body_max(&self) -> u64 {
        self.body_max
    }

    /// `Host` of the call.
    pub fn authority(&self) -> &str {
        self.endpoint.authority()
    }

    /// Scheme and host of the function, without a path.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.endpoint.scheme(), self.endpoint.authority())
    }

    /// Makes the call out of the client's request: reads its body whole, forwards method,
    /// headers, query and, behind a route that ends in `*`, the rest of the path.
    ///
    /// # Errors
    /// What the client gets; it is logged.
    pub async fn prepare(&self, exchange: &mut Exchange) -> Result<Call, PluginError> {
        match self.try_prepare(exchange).await {
            Ok(call) => {
                mirror::depart(exchange, Some(&call.body), None);
                Ok(call)
            }
            Err(error) => Err(not_called(exchange, &error)),
        }
    }

    /// Reads the request's body whole, at most `limit` bytes of it.
    ///
    /// # Errors
    /// It did not arrive, or is too large; see [`not_held`].
    pub async fn hold_body(
        &self,
        exchange: &mut Exchange,
        limit: u64,
    ) -> Result<HeldBody, BodyError> {
        let (bytes, room) = hold(exchange, limit).await?;
        mirror::depart(exchange, Some(&bytes), None);
        Ok(HeldBody { bytes, room })
    }

    /// Reads an answer's body whole, at most `limit` bytes of it. It counts as held until the
    /// request is over.
    ///
    /// # Errors
    /// What the client gets, 502 or 503; it is logged.
    pub async fn hold_answer(
        &self,
        exchange: &mut Exchange,
        body: &mut Body,
        limit: u64,
    ) -> Result<Bytes, PluginError> {
        let used = exchange.core.shared.buffered.clone();
        let total = exchange.settings.buffered_body_bytes;
        match body.hold(limit, &used, total).await {
            Ok((bytes, room)) => {
                if let Some(room) = room {
                    exchange.notes.get_or_default::<Vec<Room>>().push(room);
                }
                Ok(bytes)
            }
            Err(error) => Err(self.not_whole(exchange, &error)),
        }
    }

    /// What the client gets when an answer breaks off before any of it was sent on: 502, or 503 or
    /// 504 for one that took too long. It is logged and counted.
    pub fn not_whole(&self, exchange: &Exchange, error: &BodyError) -> PluginError {
        exchange.core.counters.function_errors.add(1);
        let error = match (error, self.silence()) {
            (BodyError::TimedOut(limit), Some(name)) => &BodyError::Silent { name, limit: *limit },
            (error, _) => error,
        };
        let status = match error {
            BodyError::NoRoom { .. } | BodyError::Silent { .. } => StatusCode::SERVICE_UNAVAILABLE,
            BodyError::TimedOut(_) | BodyError::Overdue { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        error!(route = exchange.route_id(), function = %self.authority(), %error, status = status.as_u16(), "A function's answer did not arrive whole.");
        PluginError { status, cause: error.to_string() }
    }

    /// What configurations call the limit of an answer's silence, where it has a name.
    pub fn silence(&self) -> Option<&'static str> {
        self.limits.is_none().then_some("timeout")
    }

    /// Waits for what an answer begins with, behind its head: [`CallLimits::first_byte`] goes on until
    /// it is there. For answers whose head tells nothing of the function.
    ///
    /// # Errors
    /// What the client gets; it is logged.
    pub async fn beginning<T>(
        &self,
        exchange: &mut Exchange,
        method: &Method,
        beginning: impl Future<Output = T>,
    ) -> Result<T, PluginError> {
        let limit = self.limits.and_then(|limits| limits.first_byte);
        let Some((limit, began)) = limit.zip(exchange.upstream.began) else {
            return Ok(beginning.await);
        };
        let wait = (began + limit).saturating_duration_since(Instant::now());
        match within(wait, beginning).await {
            Some(begun) => Ok(begun),
            None => {
                let error = InvokeError::Expired { name: "first_byte", limit, connected: true };
                Err(self.failed(exchange, method, &error))
            }
        }
    }

    /// A call that is not the client's request sent on, and the room that its body takes.
    pub fn call(
        &self,
        method: Method,
        path: String,
        query: Option<String>,
        headers: Headers,
        body: HeldBody,
    ) -> Call {
        let HeldBody { bytes, room } = body;
        Call { method, path, query, headers, body: bytes, room, deadline: self.deadline() }
    }

    /// Where the function is: scheme, host and port.
    pub fn url(&self) -> String {
        format!("{}://{}", self.endpoint.scheme(), self.endpoint.authority())
    }

    /// Path and query of a call: those of the function's URL, with the rest of the path that a
    /// route's `*` stands for and the client's query behind them.
    pub fn place(
        &self,
        rest: Option<&str>,
        client_query: Option<&[u8]>,
    ) -> (String, Option<String>) {
        let path = match rest {
            Some(rest) => uri::join(self.endpoint.path(), rest),
            None => self.endpoint.path().to_owned(),
        };
        // The head was checked to be ASCII where it matters; other bytes are escaped.
        let client_query = client_query.filter(|q| !q.is_empty()).map(uri::escape_query);
        // Differs: APISIX drops a query written in function_uri.
        let query = match (self.endpoint.query(), client_query) {
            (None, None) => None,
            (Some(own), None) => Some(own.to_owned()),
            (None, Some(client)) => Some(client.into_owned()),
            (Some(own), Some(client)) => Some(format!("{own}&{client}")),
        };
        (path, query)
    }

    fn deadline(&self) -> Option<Instant> {
        Some(Instant::now() + self.limits?.total?)
    }

    async fn try_prepare(&self, exchange: &mut Exchange) -> Result<Call, InvokeError> {
        let (body, room) = hold(exchange, self.body_max).await?;
        let rewritten = exchange.upstream.uri.as_deref().map(|uri| match uri.split_once('?') {
            Some((path, query)) => (path, Some(query.as_bytes())),
            None => (uri, None),
        });
        let rest = match (rewritten, exchange.matched.ext()) {
            // Differs: APISIX's functions do not see what `proxy-rewrite` made of path and query.
            (Some((path, _)), _) => Some(path.trim_start_matches('/').into()),
            (None, None) => None,
            (None, Some(_)) => Some(exchange.wildcard_rest().ok_or(InvokeError::Path)?),
        };
        let client_query = match rewritten {
            Some((_, query)) => query,
            None => exchange.query(),
        };
        let (path, query) = self.place(rest.as_deref(), client_query);
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
        let method = request.method.clone();
        let deadline = self.deadline();
        Ok(Call { method, path, query, headers, body, room, deadline })
    }

    /// Sends the call. Its answer passes through; a failure is 503, or 504 where a limit of
    /// [`CallLimits`] ended.
    ///
    /// # Errors
    /// What the client gets; it is logged.
    pub async fn send(&self, exchange: &mut Exchange, call: Call) -> Result<Response, PluginError> {
        let received = self.invoke(exchange, &call).await?;
        exchange.core.pool.recycle(call.headers);
        Ok(response(received))
    }

    /// Sends the call, and counts it. The call can be changed and sent once more.
    ///
    /// # Errors
    /// As [`FunctionInvoker::send`].
    pub async fn invoke(
        &self,
        exchange: &mut Exchange,
        call: &Call,
    ) -> Result<Received, PluginError> {
        exchange.core.counters.function_calls.add(1);
        let began = exchange.core.look();
        let record = &mut exchange.upstream;
        record.began = Some(began);
        record.scheme = self.endpoint.scheme();
        record.silence = self.silence();
        record.host = Some(self.endpoint.authority().clone());
        match self.try_invoke(exchange, call).await {
            Ok(received) => {
                exchange.upstream.status = Some(received.status.as_u16());
                exchange.upstream.header_time = Some(exchange.core.look() - began);
                Ok(received)
            }
            Err(error) => Err(self.failed(exchange, &call.method, &error)),
        }
    }

    /// Logs and counts a call that brought no answer.
    fn failed(&self, exchange: &mut Exchange, method: &Method, error: &InvokeError) -> PluginError {
        let counters = &exchange.core.counters;
        counters.function_errors.add(1);
        let ambiguous = !is_before_sending(error) && !method.is_safe();
        if ambiguous {
            counters.function_ambiguous.add(1);
        }
        exchange.upstream.response_time = exchange.upstream.began.map(|began| began.elapsed());
        exchange.upstream.status = Some(match error {
            InvokeError::Call(cause) | InvokeError::Late { cause, .. } => cause.status().as_u16(),
            other => other.status().as_u16(),
        });
        error!(route = exchange.route_id(), function = %self.authority(), %error, may_have_run = ambiguous, "A function did not answer.");
        PluginError { status: error.status(), cause: error.to_string() }
    }

    async fn try_invoke(
        &self,
        exchange: &mut Exchange,
        call: &Call,
    ) -> Result<Received, InvokeError> {
        let core = exchange.core.clone();
        let ask = call.ask();
        let answer = self.endpoint.call(&core, &ask, &mut exchange.upstream);
        let Some(limits) = self.limits else {
            return answer.await.map_err(|cause| match cause.is_late() {
                true => InvokeError::Late { cause, limit: self.endpoint.timeouts().read },
                false => cause.into(),
            });
        };
        let now = Instant::now();
        let total = call.deadline.map(|at| at.saturating_duration_since(now));
        let (name, wait) = match (limits.first_byte, total) {
            (Some(first), Some(total)) if total < first => ("total", total),
            (Some(first), _) => ("first_byte", first),
            (None, Some(total)) => ("total", total),
            (None, None) => ("first_byte", SILENCE_MAX),
        };
        let limit = match name {
            "total" => limits.total.unwrap_or(wait),
            _ => wait,
        };
        let answered = Box::pin(within(wait, answer)).await;
        let mut received = match answered {
            Some(Ok(received)) => received,
            Some(Err(error)) if error.is_late_to_connect() => {
                let limit = limits.connect;
                return Err(InvokeError::Expired { name: "connect", limit, connected: false });
            }
            Some(Err(error)) => return Err(error.into()),
            None => {
                let connected = exchange.upstream.connect_time.is_some();
                return Err(InvokeError::Expired { name, limit, connected });
            }
        };
        if let Some(at) = call.deadline
            && !received.body.is_empty()
        {
            let limit = limits.total.unwrap_or_default();
            received.body = Body::stream(Until {
                body: received.body,
                at: Box::pin(sleep_until(at.into())),
                limit,
            });
        }
        Ok(received)
    }

    /// The head as it goes out; public for the benchmark.
    pub fn write_head(&self, call: &Call, out: &mut Vec<u8>) {
        self.endpoint.write_head(&call.ask(), out);
    }
}

/// Counts a body that took the place of another.
fn hold_again(
    exchange: &Exchange,
    room: &mut Option<Room>,
    bytes: usize,
) -> Result<(), PluginError> {
    let (bytes, limit) = (bytes as u64, exchange.settings.buffered_body_bytes);
    let held = match room {
        Some(room) => room.resize(bytes, limit),
        None => Room::take(&exchange.core.shared.buffered, bytes, limit).map(|taken| {
            *room = Some(taken);
        }),
    };
    held.map_err(|error| not_called(exchange, &error.into()))
}

async fn hold(exchange: &mut Exchange, limit: u64) -> Result<(Bytes, Option<Room>), BodyError> {
    let used = exchange.core.shared.buffered.clone();
    let total = exchange.settings.buffered_body_bytes;
    exchange.request.body.hold(limit, &used, total).await
}

/// What the client gets when its body cannot be held. It is logged.
pub fn not_held(exchange: &Exchange, error: BodyError) -> PluginError {
    not_called(exchange, &error.into())
}

fn not_called(exchange: &Exchange, error: &InvokeError) -> PluginError {
    let status = error.status();
    warn!(route = exchange.route_id(), %error, status = status.as_u16(), "A function was not called.");
    PluginError { status, cause: error.to_string() }
}

fn is_before_sending(error: &InvokeError) -> bool {
    match error {
        InvokeError::Call(cause) | InvokeError::Late { cause, .. } => cause.is_before_sending(),
        InvokeError::Expired { connected, .. } => !connected,
        InvokeError::Body(_) | InvokeError::Path => true,
    }
}

/// A function's answer as the client gets it.
pub fn response(received: Received) -> Response {
    let mut response = Response::new(received.status);
    response.headers = received.headers;
    response.headers.remove_hop_by_hop();
    response.body = received.body;
    response.origin = Origin::Function;
    response
}

/// The body of an answer, which has to end in time.
struct Until {
    body: Body,
    at: Pin<Box<Sleep>>,
    limit: Duration,
}

impl Source for Until {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        // First of all: a body whose bytes are always at hand has to end in time, too.
        match self.poll_overdue(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => self.body.poll_fill(cx),
        }
    }

    fn data(&self) -> &[u8] {
        self.body.data()
    }

    fn consume(&mut self, n: usize) {
        self.body.consume(n);
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.body.take_trailers()
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let overdue = BodyError::Overdue { name: "timeouts.total", limit: self.limit };
        self.at.as_mut().poll(cx).map(|()| overdue)
    }
}

/// With [`CallLimits`], the longest that nothing may come: as long as a Lambda function may run.
const SILENCE_MAX: Duration = Duration::from_secs(900);

impl Call {
    /// See [`HeldBody::replace`].
    ///
    /// # Errors
    /// There is no room for them; it is logged.
    pub fn replace_body(&mut self, exchange: &Exchange, bytes: Bytes) -> Result<(), PluginError> {
        hold_again(exchange, &mut self.room, bytes.len())?;
        self.body = bytes;
        Ok(())
    }

    /// The call as an endpoint takes it.
    fn ask(&self) -> Ask<'_> {
        Ask {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            body: self.body.clone(),
        }
    }
}

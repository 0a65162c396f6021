//! Calling a function over HTTP: the engine behind every function plugin.
//!
//! It ends the client's request and makes a new one: body held whole (a signature covers
//! it), headers for one connection dropped, path and query put under `function_uri`. The
//! answer is streamed back as it arrives. Follows APISIX 3.18's generic function upstream;
//! where that is wrong, `Differs:` says so.

use std::time::Duration;

use ::http::{Method, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{error, warn};

use crate::body::{BodyError, Room};
use crate::client::{CallError, Keepalive, Received, Timeouts};
use crate::endpoint::{Ask, Endpoint, EndpointOptions};
use crate::exchange::{Exchange, Origin, Response};
use crate::forwarded::{ConnectionTokens, Forwarded};
use crate::http::headers::{Headers, Known};
use crate::plugin::{CompileCtx, ConfigError, PluginError};
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
    endpoint: Endpoint,
    body_max: u64,
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
        let limit = Duration::from_millis(config.timeout);
        let options = EndpointOptions {
            verify: config.ssl_verify,
            timeouts: Timeouts { connect: limit, send: limit, read: limit },
            keepalive: config.keepalive.then(|| Keepalive {
                size: usize::try_from(config.keepalive_pool).unwrap_or(usize::MAX),
                idle_timeout: Duration::from_millis(config.keepalive_timeout),
                requests: u64::MAX,
            }),
        };
        Ok(Self {
            // Differs: APISIX takes any text and fails each request.
            endpoint: Endpoint::compile("function_uri", &config.function_uri, &options, ctx)?,
            body_max: config.max_req_body_size,
        })
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
        let rewritten = exchange.upstream.uri.as_deref().map(|uri| match uri.split_once('?') {
            Some((path, query)) => (path, Some(query.as_bytes())),
            None => (uri, None),
        });
        let path = match (rewritten, exchange.matched.ext()) {
            // Differs: APISIX's functions do not see what `proxy-rewrite` made of path and query.
            (Some((path, _)), _) => uri::join(self.endpoint.path(), path.trim_start_matches('/')),
            (None, None) => self.endpoint.path().to_owned(),
            (None, Some(_)) => {
                let rest = exchange.wildcard_rest().ok_or(InvokeError::Path)?;
                uri::join(self.endpoint.path(), &rest)
            }
        };
        let client_query = match rewritten {
            Some((_, query)) => query,
            None => exchange.query(),
        };
        let client_query = client_query.filter(|q| !q.is_empty());
        // The head was checked to be ASCII where it matters; other bytes are escaped.
        let client_query = client_query.map(uri::escape_query);
        // Differs: APISIX drops a query written in function_uri.
        let query = match (self.endpoint.query(), client_query) {
            (None, None) => None,
            (Some(own), None) => Some(own.to_owned()),
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
        record.scheme = self.endpoint.scheme();
        record.host = Some(self.endpoint.authority().clone());
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
                error!(route = exchange.route_id(), function = %self.authority(), %error, "A function did not answer.");
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
            function = %self.authority(),
            status = received.status.as_u16(),
            aws_request_id = request_id,
            aws_error_type = kind.unwrap_or(""),
            function_error = failed.unwrap_or(""),
            "A function call was refused or failed."
        );
    }

    async fn try_send(&self, exchange: &mut Exchange, call: Call) -> Result<Received, CallError> {
        let core = exchange.core.clone();
        let received = self.endpoint.call(&core, &call.ask(), &mut exchange.upstream).await?;
        core.pool.recycle(call.headers);
        Ok(received)
    }

    /// The head as it goes out; public for the benchmark.
    pub fn write_head(&self, call: &Call, out: &mut Vec<u8>) {
        self.endpoint.write_head(&call.ask(), out);
    }
}

impl Call {
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

//! `function`: a function called by its name, through Lambda's Invoke API.
//!
//! The client's request becomes an event, what the function returns becomes the response. Nothing
//! goes out unsigned, and nothing of the client's reaches AWS as a header unless the configuration
//! names it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;
use sluicegate_aws::event::{EventEncoder, EventTooLarge};
use sluicegate_aws::lambda::{
    AllowedFunctions, ApiCall, ErrorKind, Failure, FunctionRef, function_error,
};
use sluicegate_aws::response::{Reply, ReplyHead, ResponseFormat, unwrap};
use sluicegate_gateway::body::{Body, BodyError};
use sluicegate_gateway::client::Received;
use sluicegate_gateway::exchange::{Exchange, Origin, Response};
use sluicegate_gateway::expr::Vars;
use sluicegate_gateway::http::headers::Headers;
use sluicegate_gateway::invoker::{self, Call, FunctionInvoker};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, PluginError};
use tracing::{error, info};

use super::caller::{Answered, Caller, REQUEST_ID, request_id, tell_request_id};
use super::config::{AsyncReply, Config, FunctionConfig, Invocation};
use super::event::{self, Seen};
use super::explain::{self, Asked};
use super::identity::{Signing, default_region};
use super::refusals::refusals;
use super::stream::{self, Broken, Stream};
use crate::template::Template;

/// A function behind the Invoke API, compiled.
pub(super) struct Invoke {
    caller: Caller,
    function: FunctionRef,
    /// Where the name comes with the request.
    named_by: Option<NamedBy>,
    event: Option<EventEncoder>,
    response: ResponseFormat,
    invocation: Invocation,
    async_reply: AsyncReply,
    event_max: usize,
    on_function_error: StatusCode,
    unhandled_status: StatusCode,
    log_tail: bool,
    tenant_id: Option<Template>,
    /// In base64, as it is sent.
    client_context: Option<String>,
    forward: Vec<String>,
    expose: Vec<String>,
}

struct NamedBy {
    parameter: String,
    allowed: AllowedFunctions,
}

impl Invoke {
    pub(super) fn compile(
        mut config: Config,
        function: FunctionConfig,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        let bad = |why: &str| Err(ConfigError(why.to_owned()));
        let authorization = std::mem::take(&mut config.authorization);
        if authorization.apikey.is_some()
            || authorization.apikey_with_iam
            || authorization.override_authorization
            || authorization.strip_client_apikey
        {
            return bad(
                "`authorization.apikey` and what is said about it go with `function_uri`: the Invoke API takes signatures only",
            );
        }
        let Some(iam) = authorization.iam else {
            return bad(
                "`function` needs `authorization.iam`: the Invoke API takes signed calls only",
            );
        };
        if !["execute-api", "lambda"].contains(&iam.service.as_str()) {
            return bad("`authorization.iam.service` is lambda where there is a `function`");
        }
        let FunctionConfig { mut settings, name_parameter, allowed_functions } = function;
        let named_by = match (name_parameter, allowed_functions) {
            (None, None) => None,
            (Some(_), None) => {
                return bad(
                    "`function.name_parameter` needs `function.allowed_functions`: the names or patterns that requests may choose from",
                );
            }
            (None, Some(_)) => {
                return bad("`function.allowed_functions` goes with `function.name_parameter`");
            }
            (Some(_), Some(_)) if settings.name.is_some() || settings.arn.is_some() => {
                return bad(
                    "`function.name_parameter` takes the place of `function.name` and `function.arn`: give one of the three",
                );
            }
            (Some(parameter), Some(allowed)) => {
                settings.name = Some(PLACEHOLDER.to_owned());
                let allowed = AllowedFunctions::compile(&allowed)
                    .map_err(|error| ConfigError(error.to_string()))?;
                Some(NamedBy { parameter, allowed })
            }
        };
        // The schema's default says nothing about what was meant.
        let stated = Some(iam.aws_region.clone()).filter(|region| region != "us-east-1");
        let region = stated.or_else(|| default_region(ctx.attr));
        let function = FunctionRef::parse(&settings, region.as_deref())
            .map_err(|error| ConfigError(error.to_string()))?;
        let formats = config.formats(Some(function.account_id()))?;
        let limits = config.limits();
        let own = config.invocation;
        let invocation = own.invocation.unwrap_or_default();
        if own.async_reply.is_some() && invocation != Invocation::Async {
            return bad("`async_reply` goes with `invocation` async");
        }
        if invocation == Invocation::Stream
            && !matches!(formats.response, ResponseFormat::Raw | ResponseFormat::Auto)
        {
            return bad(
                "`invocation` stream goes with `response_format` auto or raw: the others need the whole answer",
            );
        }
        let status = |status: Option<u16>, default| {
            status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(default)
        };
        let on_function_error = status(own.on_function_error, StatusCode::BAD_GATEWAY);
        let client_context = match &own.client_context {
            None => None,
            Some(context) => {
                let json = serde_json::to_string(context).unwrap_or_default();
                if json.len() > CLIENT_CONTEXT_MAX {
                    return Err(ConfigError(format!(
                        "`client_context` has {} bytes as JSON, and Lambda takes {CLIENT_CONTEXT_MAX}",
                        json.len()
                    )));
                }
                Some(STANDARD.encode(json))
            }
        };
        let forward =
            names("forward_amz_headers", own.forward_amz_headers.as_deref(), &OWN_HEADERS)?;
        let mut expose = names("expose_amz_headers", own.expose_amz_headers.as_deref(), &[])?;
        // The client gets it in any case.
        expose.retain(|name| name != REQUEST_ID);
        let url = format!("{}://{}", scheme(&function), function.endpoint().authority());
        Ok(Self {
            caller: Caller {
                invoker: FunctionInvoker::at(
                    "function.endpoint",
                    &url,
                    &config.options,
                    limits,
                    ctx,
                )?,
                signing: Some(Signing::compile(
                    iam,
                    function.region(),
                    "lambda",
                    &function.endpoint().authority(),
                    ctx,
                )?),
                is_api: true,
                refusals: refusals(ctx),
            },
            event_max: own.event_bytes_max(),
            function,
            named_by,
            event: formats.event,
            response: formats.response,
            invocation,
            async_reply: own.async_reply.unwrap_or_default(),
            on_function_error,
            unhandled_status: status(own.unhandled_status, on_function_error),
            log_tail: own.log_tail == Some(true),
            tenant_id: own.tenant_id.as_deref().map(Template::compile),
            client_context,
            forward,
            expose,
        })
    }

    /// From the client's request to the function's response.
    pub(super) async fn call(&self, exchange: &mut Exchange) -> Result<Response, PluginError> {
        let Some(named) = self.function_of(exchange) else {
            return Ok(Response::message(
                StatusCode::NOT_FOUND,
                &json!({"error_msg": "404 Route Not Found"}),
            ));
        };
        let function = named.as_ref().unwrap_or(&self.function);
        let invoker = &self.caller.invoker;
        let mut body = match invoker.hold_body(exchange, self.body_max()).await {
            Ok(body) => body,
            Err(error) => {
                let told = body_too_large(&error);
                let error = invoker::not_held(exchange, error);
                return told.ok_or(error);
            }
        };
        let trace_id =
            event::trace_id(&exchange.request.headers, exchange.started_at, exchange.request_id());
        if let Some(encoder) = &self.event {
            match self.event(encoder, &Seen::of(exchange), &body.bytes, &trace_id) {
                Ok(event) => body.replace(exchange, event.into())?,
                Err(error) => return Ok(event::too_large(exchange, &error)),
            }
        }
        let api = self.api();
        let path = function.path(api).to_owned();
        let query = function.query().map(str::to_owned);
        let mut headers = exchange.core.pool.headers();
        self.add_headers(&exchange.request.headers, exchange, &trace_id, &mut headers);
        let call = invoker.call(Method::POST, path, query, headers, body);
        let Answered { received, refusal } = self.caller.send(exchange, call, true).await?;
        tell_request_id(exchange, &received);
        if let Some(refusal) = refusal {
            return Ok(refused(&refusal, self.named_by.is_some()));
        }
        match self.invocation {
            Invocation::Sync => self.answer(exchange, function.name(), received).await,
            Invocation::Stream => self.stream(exchange, function.name(), received).await,
            Invocation::DryRun => Ok(self.head(StatusCode::NO_CONTENT, &received)),
            Invocation::Async => Ok(self.queued(&received)),
        }
    }

    /// How it is called, for explanations.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The call that a request would become, and the function's name.
    pub(super) fn call_for(&self, asked: &Asked<'_>) -> Result<(Call, String), String> {
        let trace_id = asked.trace_id();
        let body = match &self.event {
            None => asked.body.to_vec(),
            Some(encoder) => self
                .event(encoder, &asked.seen(), asked.body, &trace_id)
                .map_err(|error| error.to_string())?,
        };
        let mut headers = Headers::new();
        self.add_headers(&asked.headers, asked, &trace_id, &mut headers);
        // What only a real request has is left out, and not sent half.
        if let Some(tenant) = &self.tenant_id
            && tenant.resolve(asked).found < tenant.vars().count()
        {
            headers.remove("X-Amz-Tenant-Id");
        }
        let api = self.api();
        let function = self.function_for(asked)?;
        let call = self.caller.invoker.call(
            Method::POST,
            function.path(api).to_owned(),
            function.query().map(str::to_owned),
            headers,
            explain::held(body),
        );
        Ok((call, function.name().to_owned()))
    }

    /// Whether the client's request is put into an event.
    pub(super) fn makes_events(&self) -> bool {
        self.event.is_some()
    }

    /// The path of another call of the API.
    pub(super) fn path_for(&self, asked: &Asked<'_>, api: ApiCall) -> Result<String, String> {
        Ok(self.function_for(asked)?.path(api).to_owned())
    }

    fn function_for(&self, asked: &Asked<'_>) -> Result<FunctionRef, String> {
        let Some(NamedBy { parameter, allowed }) = &self.named_by else {
            return Ok(self.function.clone());
        };
        let key = if parameter == "*" { "proxy" } else { parameter };
        let found = asked.parameters.iter().find(|(name, _)| *name == key);
        let name = found.map(|(_, value)| &**value).unwrap_or_default();
        if !allowed.allows(name) {
            return Err(format!(
                "the request names the function {name:?}, which is not in `function.allowed_functions`: it gets 404 (give a `uri` that names one)"
            ));
        }
        self.function.with_name(name).map_err(|error| error.to_string())
    }

    fn api(&self) -> ApiCall {
        match self.invocation {
            Invocation::Stream => ApiCall::InvokeWithResponseStream,
            _ => ApiCall::Invoke,
        }
    }

    /// The function that the request names; nothing, if it may not name that one. `Some(None)`: the
    /// one that is configured.
    fn function_of(&self, exchange: &Exchange) -> Option<Option<FunctionRef>> {
        let Some(NamedBy { parameter, allowed }) = &self.named_by else { return Some(None) };
        let key = if parameter == "*" { ":ext" } else { parameter };
        let name = exchange.matched.param(key).and_then(|at| exchange.uri().get(at));
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let found = name.filter(|name| allowed.allows(name));
        let function = found.and_then(|name| self.function.with_name(name).ok());
        if function.is_none() {
            let name: String = name.unwrap_or_default().chars().take(NAME_SHOWN).collect();
            info!(
                route = exchange.route_id(),
                name, "A request named a function that is not in allowed_functions."
            );
        }
        function.map(Some)
    }

    /// The most bytes of a request's body that are of use.
    fn body_max(&self) -> u64 {
        let holds_body = self.event.as_ref().is_none_or(EventEncoder::holds_body);
        let of_event = if holds_body { self.event_max as u64 } else { u64::MAX };
        self.caller.invoker.body_max().min(of_event)
    }

    fn forwards(&self, name: &str) -> bool {
        self.forward.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether a field of the client is kept from the function.
    fn drops(&self, name: &str) -> bool {
        event::is_amz(name) && !self.forwards(name)
    }

    fn event(
        &self,
        encoder: &EventEncoder,
        seen: &Seen<'_>,
        body: &[u8],
        trace_id: &str,
    ) -> Result<Vec<u8>, EventTooLarge> {
        let drops = |name: &str| self.drops(name);
        event::encode(encoder, seen, body, Some(trace_id), drops, self.event_max)
    }

    /// The fields of a call that a client with these fields makes.
    fn add_headers(
        &self,
        client: &Headers,
        vars: &dyn Vars,
        trace_id: &str,
        headers: &mut Headers,
    ) {
        headers.append("Content-Type", b"application/json");
        let kind: &[u8] = match self.invocation {
            Invocation::Sync | Invocation::Stream => b"RequestResponse",
            Invocation::Async => b"Event",
            Invocation::DryRun => b"DryRun",
        };
        headers.append("X-Amz-Invocation-Type", kind);
        if self.log_tail {
            headers.append("X-Amz-Log-Type", b"Tail");
        }
        if let Some(context) = &self.client_context {
            headers.append("X-Amz-Client-Context", context.as_bytes());
        }
        if let Some(tenant) = &self.tenant_id {
            let id = tenant.resolve(vars).text;
            if !id.is_empty() {
                headers.append("X-Amz-Tenant-Id", &id);
            }
        }
        headers.append("X-Amzn-Trace-Id", trace_id.as_bytes());
        if !self.forward.is_empty() {
            for (name, value) in client.iter() {
                let Ok(name) = std::str::from_utf8(name) else { continue };
                if self.forwards(name) && !headers.contains(name) {
                    headers.append(name, value);
                }
            }
        }
    }

    /// A response without a body that tells what may be told of AWS's answer.
    fn head(&self, status: StatusCode, received: &Received) -> Response {
        let mut response = Response::new(status);
        response.origin = Origin::Function;
        for name in &self.expose {
            if let Some(value) = received.headers.get(name) {
                response.headers.append(name, value);
            }
        }
        response
    }

    fn queued(&self, received: &Received) -> Response {
        let mut response = self.head(StatusCode::ACCEPTED, received);
        if self.async_reply == AsyncReply::RequestId {
            let body = json!({"request_id": request_id(received)}).to_string();
            response.headers.append("Content-Type", b"application/json");
            response.body = Body::from_bytes(body);
        }
        response
    }

    /// The answer of a function that is waited for.
    async fn answer(
        &self,
        exchange: &mut Exchange,
        function: &str,
        mut received: Received,
    ) -> Result<Response, PluginError> {
        self.note_log_tail(exchange, function, &received);
        let failed = received.headers.get_str("x-amz-function-error").map(str::to_owned);
        if failed.is_none() && self.response == ResponseFormat::Raw {
            let mut response = self.head(StatusCode::OK, &received);
            if let Some(value) = received.headers.get("content-type") {
                response.headers.append("Content-Type", value);
            }
            response.body = received.body;
            return Ok(response);
        }
        let limit = ANSWER_BYTES_MAX;
        let invoker = &self.caller.invoker;
        let payload = invoker.hold_answer(exchange, &mut received.body, limit).await?;
        if let Some(kind) = failed {
            return Ok(self.function_failed(exchange, function, &received, &kind, payload));
        }
        match unwrap(self.response, payload) {
            Ok(Reply { head, body }) => {
                let mut response = self.told(head, &received);
                response.body = Body::from_bytes(body);
                Ok(response)
            }
            Err(error) => Err(malformed(&self.caller, exchange, request_id(&received), &error)),
        }
    }

    /// A function's answer that comes in pieces: the head goes to the client with the first of
    /// them. Until then, a failure still has a status of its own.
    async fn stream(
        &self,
        exchange: &mut Exchange,
        function: &str,
        received: Received,
    ) -> Result<Response, PluginError> {
        let id = request_id(&received);
        let route: Arc<str> = exchange.route_id().into();
        let refusals = self.caller.refusals.clone();
        let silence = self.caller.invoker.silence();
        let told = stream::Told { route, request_id: id.into(), refusals, silence };
        let with_prelude = self.response != ResponseFormat::Raw
            && stream::content_type(&received.headers).is_some_and(stream::announces_prelude);
        let Received { status, headers, body, tunnel: _ } = received;
        let received = Received { status, headers, body: Body::Empty, tunnel: None };
        let mut stream = Stream::new(body, exchange.core.clone(), told);
        let begun = stream.begin(with_prelude);
        let invoker = &self.caller.invoker;
        let mut response = match invoker.beginning(exchange, &Method::POST, begun).await? {
            Ok(Some(head)) => self.told(head, &received),
            Ok(None) => {
                let mut response = self.head(StatusCode::OK, &received);
                if let Some(value) = stream::content_type(&received.headers) {
                    response.headers.append("Content-Type", value);
                }
                response
            }
            Err(broken) => return self.stream_failed(exchange, function, &received, broken),
        };
        response.body = Body::stream(stream);
        Ok(response)
    }

    /// Status and headers as the function said.
    fn told(&self, head: ReplyHead, received: &Received) -> Response {
        let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::OK);
        let mut response = self.head(status, received);
        response.reason = head.reason.map(Into::into);
        for (name, value) in &head.headers {
            response.headers.append(name.as_str(), value.as_bytes());
        }
        response
    }

    fn function_failed(
        &self,
        exchange: &Exchange,
        function: &str,
        received: &Received,
        kind: &str,
        payload: Bytes,
    ) -> Response {
        self.caller.note(exchange, "function_error", request_id(received));
        let said = function_error(kind, &payload);
        error!(
            route = exchange.route_id(),
            function,
            aws_request_id = request_id(received),
            function_error = kind,
            error_type = said.error_type,
            error_message = said.message,
            ran_out_of_time = said.is_timeout(),
            "A function failed."
        );
        let status = if said.unhandled { self.unhandled_status } else { self.on_function_error };
        let mut response = self.head(status, received);
        if status.as_u16() < 400 {
            response.headers.append("Content-Type", b"application/json");
            response.body = Body::from_bytes(payload);
            return response;
        }
        let page = Response::page(status);
        for (name, value) in page.headers.iter() {
            if let Ok(name) = std::str::from_utf8(name) {
                response.headers.append(name, value);
            }
        }
        response.body = page.body;
        response
    }

    fn stream_failed(
        &self,
        exchange: &Exchange,
        function: &str,
        received: &Received,
        broken: Broken,
    ) -> Result<Response, PluginError> {
        match broken {
            Broken::Function { code, details } => {
                Ok(self.function_failed(exchange, function, received, &code, details.into()))
            }
            Broken::Body(error) => Err(self.caller.invoker.not_whole(exchange, &error)),
            other => Err(malformed(&self.caller, exchange, request_id(received), &other)),
        }
    }

    /// The end of the function's log goes to the gateway's, where it was asked for.
    fn note_log_tail(&self, exchange: &Exchange, function: &str, received: &Received) {
        if !self.log_tail {
            return;
        }
        let Some(tail) = received.headers.get("x-amz-log-result") else { return };
        let tail = STANDARD.decode(tail).unwrap_or_default();
        info!(
            route = exchange.route_id(),
            function,
            aws_request_id = request_id(received),
            log_tail = %String::from_utf8_lossy(&tail),
            "The end of a function's log."
        );
    }
}

/// What the client gets when AWS refused a call: the log says why.
fn refused(failure: &Failure, client_named_it: bool) -> Response {
    let status = match failure.kind {
        ErrorKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::FunctionNotFound if client_named_it => StatusCode::NOT_FOUND,
        ErrorKind::NotReady | ErrorKind::EnvironmentTimeout => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    let mut response = Response::page(status);
    if let Some(wait) = failure.retry_after {
        response.headers.append("Retry-After", wait.as_secs().to_string().as_bytes());
    }
    response
}

fn malformed(
    caller: &Caller,
    exchange: &Exchange,
    aws_request_id: &str,
    error: &dyn std::fmt::Display,
) -> PluginError {
    caller.note(exchange, "malformed_answer", aws_request_id);
    error!(route = exchange.route_id(), aws_request_id, cause = %error, "A function's answer cannot be sent to the client. docs/lambda.md says what an answer looks like.");
    PluginError { status: StatusCode::BAD_GATEWAY, cause: error.to_string() }
}

/// The body alone is over the limit.
fn body_too_large(error: &BodyError) -> Option<Response> {
    let text = match error {
        BodyError::TooLarge { limit, size: Some(size) } => {
            format!("The request body has {size} bytes, and the limit is {limit} bytes")
        }
        BodyError::TooLarge { limit, size: None } => {
            format!("The request body has more than {limit} bytes, and that is the limit")
        }
        _ => return None,
    };
    Some(Response::message(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error_msg": text})))
}

/// A list of header names that AWS reads, in lower case, none of them in `not`.
fn names(field: &str, given: Option<&[String]>, not: &[&str]) -> Result<Vec<String>, ConfigError> {
    let names = given.unwrap_or_default().iter().map(|name| {
        let lower = name.to_ascii_lowercase();
        let legal = lower.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !legal || !lower.starts_with("x-amz") {
            return Err(ConfigError(format!(
                "`{field}` is about names that begin with x-amz: {name:?}"
            )));
        }
        if not.contains(&lower.as_str()) {
            return Err(ConfigError(format!(
                "`{field}` cannot have {name:?}: the gateway sets it"
            )));
        }
        Ok(lower)
    });
    names.collect()
}

fn scheme(function: &FunctionRef) -> &'static str {
    match function.endpoint().scheme {
        sluicegate_aws::lambda::Scheme::Http => "http",
        sluicegate_aws::lambda::Scheme::Https => "https",
    }
}

/// Fields of a call that a client never has a say in.
const OWN_HEADERS: [&str; 6] = [
    "x-amz-invocation-type",
    "x-amz-log-type",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-content-sha256",
    "x-amzn-trace-id",
];
/// Stands for a name until a request brings one.
const PLACEHOLDER: &str = "named-by-request";
/// The most of a refused name that is logged.
const NAME_SHOWN: usize = 64;
/// The most bytes of an answer that is read whole. Lambda sends 6 MB, and a little more by its own
/// way of counting.
const ANSWER_BYTES_MAX: u64 = 7 << 20;
/// The most bytes of a client context: 3,580 in base64, and one more makes it 3,584, where Lambda
/// takes 3,583.
const CLIENT_CONTEXT_MAX: usize = 2685;

//! `function_uri`: a function behind an API Gateway, a function URL or anything else that speaks HTTP.

use http::Method;
use http::header::SET_COOKIE;
use sluicegate_aws::Secret;
use sluicegate_aws::event::{EventEncoder, EventTooLarge};
use sluicegate_aws::response::{Reply, ResponseFormat, unwrap};
use sluicegate_gateway::body::Body;
use sluicegate_gateway::client::Received;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::headers::Headers;
use sluicegate_gateway::invoker::{self, Call, FunctionInvoker};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, PluginError};
use tracing::error;

use super::caller::{Answered, Caller, request_id, tell_request_id};
use super::config::{Config, EVENT_BYTES_TOP};
use super::event::{self, Seen};
use super::explain::{self, Asked};
use super::identity::Signing;
use super::refusals::refusals;

/// A function behind a URL, compiled.
pub(super) struct Front {
    caller: Caller,
    apikey: Option<Secret>,
    apikey_with_iam: bool,
    override_authorization: bool,
    strip_client_apikey: bool,
    event: Option<EventEncoder>,
    response: ResponseFormat,
}

impl Front {
    pub(super) fn compile(
        mut config: Config,
        function_uri: &str,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        if let Some(name) = config.invocation.first() {
            return Err(ConfigError(format!(
                "`{name}` goes with `function`, not with `function_uri`"
            )));
        }
        let formats = config.formats(None)?;
        let limits = config.limits();
        let authorization = config.authorization;
        // Differs: APISIX takes any text. What cannot stand in a header would be left out of the
        // call, and the call go without a key.
        if authorization.apikey.as_ref().is_some_and(|key| key.contains(char::is_control)) {
            return Err(ConfigError("`authorization.apikey` has control characters".into()));
        }
        let invoker =
            FunctionInvoker::at("function_uri", function_uri, &config.options, limits, ctx)?;
        let signing = authorization.iam.map(|iam| {
            let (region, service) = (iam.aws_region.clone(), iam.service.clone());
            Signing::compile(iam, &region, &service, invoker.authority(), ctx)
        });
        let signing = signing.transpose()?;
        for (name, is_set) in [
            ("apikey_with_iam", authorization.apikey_with_iam),
            ("override_authorization", authorization.override_authorization),
        ] {
            if is_set && signing.is_none() {
                return Err(ConfigError(format!(
                    "`authorization.{name}` goes with `authorization.iam`"
                )));
            }
        }
        Ok(Self {
            caller: Caller { invoker, signing, is_api: false, refusals: refusals(ctx) },
            apikey: authorization.apikey.map(Secret::from),
            apikey_with_iam: authorization.apikey_with_iam,
            override_authorization: authorization.override_authorization,
            strip_client_apikey: authorization.strip_client_apikey,
            event: formats.event,
            response: formats.response,
        })
    }

    /// From the client's request to the function's response.
    pub(super) async fn call(&self, exchange: &mut Exchange) -> Result<Response, PluginError> {
        let mut call = self.caller.invoker.prepare(exchange).await?;
        if let Some(encoder) = &self.event {
            match encoded(encoder, &Seen::of(exchange), &call) {
                Ok(event) => call.replace_body(exchange, event.into())?,
                Err(error) => return Ok(event::too_large(exchange, &error)),
            }
            call.method = Method::POST;
        }
        self.adapt(&mut call.headers);
        let sign = self.put_keys(&mut call);
        let Answered { received, refusal } = self.caller.send(exchange, call, sign).await?;
        if refusal.is_some() {
            return Ok(invoker::response(received));
        }
        if received.headers.contains("x-amz-function-error") {
            note_function_error(&self.caller, exchange, &received);
        }
        if self.response == ResponseFormat::Raw || !received.status.is_success() {
            return Ok(invoker::response(received));
        }
        self.unwrapped(exchange, received).await
    }

    /// How it is called, for explanations.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The call that a request would become, and whether it would be signed.
    pub(super) fn call_for(&self, asked: &Asked<'_>) -> (Call, bool) {
        let invoker = &self.caller.invoker;
        let (path, query) = invoker.place(asked.rest.as_deref(), asked.query.map(str::as_bytes));
        let body = explain::held(asked.body.to_vec());
        let mut call = invoker.call(asked.method.clone(), path, query, asked.fields(), body);
        if let Some(encoder) = &self.event {
            // An event that is over the limit is shown as the client's body.
            if let Ok(event) = encoded(encoder, &asked.seen(), &call) {
                call.body = event.into();
            }
            call.method = Method::POST;
        }
        self.adapt(&mut call.headers);
        let sign = self.put_keys(&mut call);
        (call, sign)
    }

    /// Makes the client's fields fit for what goes out, and for an answer that is to be read.
    fn adapt(&self, headers: &mut Headers) {
        if self.event.is_some() {
            headers.remove("Content-Encoding");
            headers.set("Content-Type", b"application/json");
            headers.retain(|_, name, _| !std::str::from_utf8(name).is_ok_and(event::vouches));
        }
        if self.response != ResponseFormat::Raw {
            // A compressed answer could not be unwrapped.
            headers.remove("Accept-Encoding");
        }
    }

    /// Whether the client's request is put into an event.
    pub(super) fn makes_events(&self) -> bool {
        self.event.is_some()
    }

    /// Adds the API key, and tells whether the call is to be signed: what the client brings itself
    /// comes first, as in APISIX, unless the configuration says otherwise.
    fn put_keys(&self, call: &mut Call) -> bool {
        if self.strip_client_apikey {
            call.headers.remove("x-api-key");
        }
        let key = self.apikey.as_ref().filter(|_| !call.headers.contains("x-api-key"));
        if let Some(apikey) = key {
            call.headers.append("x-api-key", apikey.expose().as_bytes());
        }
        if self.caller.signing.is_none() || key.is_some() && !self.apikey_with_iam {
            return false;
        }
        // Only a signature takes the place of what the client brings.
        if self.override_authorization {
            call.headers.remove("authorization");
        }
        !call.headers.contains("authorization")
    }

    async fn unwrapped(
        &self,
        exchange: &mut Exchange,
        mut received: Received,
    ) -> Result<Response, PluginError> {
        tell_request_id(exchange, &received);
        let invoker = &self.caller.invoker;
        let payload = invoker.hold_answer(exchange, &mut received.body, ANSWER_BYTES_MAX).await?;
        let Reply { head, body } = unwrap(self.response, payload).map_err(|error| {
            self.caller.note(exchange, "malformed_answer", request_id(&received));
            error!(route = exchange.route_id(), aws_request_id = request_id(&received), cause = %error, "A function's answer cannot be sent to the client. docs/lambda.md says what an answer looks like.");
            PluginError { status: http::StatusCode::BAD_GATEWAY, cause: error.to_string() }
        })?;
        let mut response = invoker::response(received);
        response.status = http::StatusCode::from_u16(head.status).unwrap_or(response.status);
        response.reason = head.reason.map(Into::into);
        response.headers.remove("Content-Length");
        response.headers.remove("Content-Type");
        // What the function says takes the place of what its front says; cookies stand side by side.
        for (name, _) in head.headers.iter().filter(|(name, _)| *name != SET_COOKIE) {
            response.headers.remove(name.as_str());
        }
        for (name, value) in &head.headers {
            response.headers.append(name.as_str(), value.as_bytes());
        }
        response.body = Body::from_bytes(body);
        Ok(response)
    }
}

/// The event that takes the place of the client's body.
fn encoded(encoder: &EventEncoder, seen: &Seen<'_>, call: &Call) -> Result<Vec<u8>, EventTooLarge> {
    let trace_id = call.headers.get_str("x-amzn-trace-id");
    event::encode(encoder, seen, &call.body, trace_id, event::vouches, EVENT_BYTES_TOP)
}

/// The function failed, and its caller is told so as it stands: the URL is one of the Invoke API.
fn note_function_error(caller: &Caller, exchange: &Exchange, received: &Received) {
    caller.note(exchange, "function_error", request_id(received));
    error!(
        route = exchange.route_id(),
        aws_request_id = request_id(received),
        function_error = received.headers.get_str("x-amz-function-error").unwrap_or_default(),
        "A function failed."
    );
}

/// The most bytes of an answer that is read whole: API Gateway's limit.
const ANSWER_BYTES_MAX: u64 = 10 << 20;

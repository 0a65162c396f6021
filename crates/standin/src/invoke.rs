//! The Invoke API of Lambda: functions called by name, as the SDKs call them.
//!
//! ```text
//! POST /2015-03-31/functions/{name or ARN}/invocations                      Invoke
//! POST /2021-11-15/functions/{name or ARN}/response-streaming-invocations   InvokeWithResponseStream
//! ```
//!
//! A function is a closure from an [`Invocation`] to an [`Outcome`], so a test says what it needs:
//! an answer, an error of the function, a refusal of Lambda, a stream. Every call whose signature
//! holds is recorded. It reads names by itself, without the crate that wrote them.
//!
//! Left out: durable executions, the existence of versions (any qualifier is one), retries of
//! asynchronous calls (each runs once, before 202 is sent).

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, DATE, HOST, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_aws::eventstream::{self, HeaderValue as FrameValue, write_frame};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::body::Answer;
use crate::front::{ERROR_TYPE, bad_request, json_response, with_request_id};
use crate::function::decode;
use crate::serve::{self, Answers};
use crate::verify::{Accepted, Received, verify};
use crate::{StartError, bind};

/// A running Invoke API. Dropping it stops it.
#[derive(Debug)]
pub struct InvokeApi {
    addr: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<()>,
    server: JoinHandle<()>,
}

impl InvokeApi {
    /// Binds and serves on the runtime this is called on.
    pub async fn start(settings: InvokeSettings) -> Result<Self, StartError> {
        Self::start_keeping(settings, RECORDED_MAX).await
    }

    /// The same, and no call is recorded: for one that runs as long as it likes.
    pub async fn start_unrecorded(settings: InvokeSettings) -> Result<Self, StartError> {
        Self::start_keeping(settings, 0).await
    }

    async fn start_keeping(
        settings: InvokeSettings,
        recorded_max: usize,
    ) -> Result<Self, StartError> {
        let listener = bind(NAME, settings.addr).await?;
        let addr =
            listener.local_addr().map_err(|source| StartError::Bind { server: NAME, source })?;
        let state = Arc::new(State { settings, recorded: Mutex::default(), recorded_max });
        let (stop, stopped) = watch::channel(());
        let server = tokio::spawn(serve::serve(listener, Arc::clone(&state), stopped));
        Ok(Self { addr, state, stop, server })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The calls so far whose signature held, oldest first; the first 10,000 of them.
    pub fn recorded(&self) -> Vec<Invocation> {
        self.state.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops accepting, lets running calls finish for a short time, and returns when every socket is
    /// closed.
    pub async fn stop(self) {
        drop(self.stop);
        // A server that panicked has stopped, too.
        let _ = self.server.await;
    }
}

/// What the Invoke API is and accepts.
#[derive(Clone)]
pub struct InvokeSettings {
    /// Where it listens. Loopback.
    pub addr: SocketAddr,
    /// The access key whose signatures it accepts.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// The session token that must come with it, if it is a temporary one.
    pub session_token: Option<Secret>,
    /// The region signatures must be scoped to; the service is `lambda`.
    pub region: String,
    /// The account ARNs must name.
    pub account_id: String,
    /// Tells the time, in seconds since 1970. It is also sent as `date`.
    pub clock: fn() -> u64,
    /// The functions by name; [`samples`] has some.
    pub functions: HashMap<String, Function>,
}

impl fmt::Debug for InvokeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvokeSettings")
            .field("addr", &self.addr)
            .field("access_key", &self.access_key)
            .field("region", &self.region)
            .field("functions", &self.functions.keys())
            .finish_non_exhaustive()
    }
}

/// A function: what it makes of a call.
pub type Function = Arc<dyn Fn(&Invocation) -> Outcome + Send + Sync>;

/// A call as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The function's name alone.
    pub function: String,
    /// The qualifier, from the query or the name.
    pub qualifier: Option<String>,
    /// How it was called.
    pub kind: InvocationKind,
    /// The headers, names in lower case, without the signature.
    pub headers: Vec<(String, String)>,
    /// The event.
    pub payload: Bytes,
}

impl Invocation {
    /// The event as JSON; null if there is none.
    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }

    /// The first header of this name, in lower case.
    pub fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| &**value)
    }
}

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationKind {
    /// `RequestResponse`.
    Sync,
    /// `Event`.
    Event,
    /// `DryRun`: the function does not run.
    DryRun,
    /// `InvokeWithResponseStream`.
    Stream,
}

/// What becomes of a call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The function answers with these bytes, in a stream as one piece.
    Answer(Vec<u8>),
    /// The function fails: `x-amz-function-error` and this payload.
    Error {
        /// `Unhandled`, else `Handled`.
        unhandled: bool,
        /// `{errorMessage, errorType, ...}`.
        payload: Value,
    },
    /// Lambda refuses the call.
    Refuse {
        /// The status.
        status: u16,
        /// `x-amzn-errortype`.
        error_type: String,
        /// The body.
        body: Value,
        /// `retry-after`.
        retry_after: Option<String>,
    },
    /// The function streams.
    Stream(StreamOutcome),
}

/// What a streaming function sends.
#[derive(Debug, Clone)]
pub struct StreamOutcome {
    /// The content type of the answer. With
    /// `application/vnd.awslambda.http-integration-response` the chunks begin with a prelude.
    pub content_type: String,
    /// The pieces, each a frame.
    pub chunks: Vec<Vec<u8>>,
    /// How long each piece but the first waits.
    pub pause: Duration,
    /// How it ends.
    pub end: StreamEnd,
}

/// How a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// `InvokeComplete` without an error.
    Complete,
    /// `InvokeComplete` with this code and these details.
    Error(String, String),
    /// No `InvokeComplete`: the connection just ends the body.
    Missing,
    /// An exception of Lambda's own.
    Exception(String, String),
}

/// Functions for trying things out: `echo` answers its event, `greet` greets in an HTTP envelope,
/// `fail` and `crash` fail, `throttled` is refused, `stream`, `stream-http` and (slowly, as
/// server-sent events) `count` stream, and `stream-fail` breaks off after its first piece.
pub fn samples() -> HashMap<String, Function> {
    fn sample(
        name: &str,
        function: impl Fn(&Invocation) -> Outcome + Send + Sync + 'static,
    ) -> (String, Function) {
        (name.to_owned(), Arc::new(function))
    }
    let stream = |content_type: &str, chunks: Vec<Vec<u8>>, end| {
        Outcome::Stream(StreamOutcome {
            content_type: content_type.to_owned(),
            chunks,
            pause: Duration::ZERO,
            end,
        })
    };
    HashMap::from([
        sample("echo", |call| Outcome::Answer(call.payload.to_vec())),
        sample("greet", |call| {
            let event = call.event();
            let query = event["rawQueryString"].as_str().unwrap_or_default();
            let body = event["body"].as_str().unwrap_or_default();
            let greeting = crate::function::greet(query, body.as_bytes());
            let answer = json!({
                "statusCode": 200,
                "headers": {"content-type": "text/plain; charset=utf-8"},
                "body": greeting,
            });
            Outcome::Answer(answer.to_string().into_bytes())
        }),
        sample("fail", |_| Outcome::Error {
            unhandled: false,
            payload: json!({"errorType": "Refused", "errorMessage": "the function said no"}),
        }),
        sample("crash", |_| Outcome::Error {
            unhandled: true,
            payload: json!({"errorMessage": "Task timed out after 3.00 seconds"}),
        }),
        sample("throttled", |_| Outcome::Refuse {
            status: 429,
            error_type: "TooManyRequestsException".to_owned(),
            body: json!({
                "Reason": "ReservedFunctionConcurrentInvocationLimitExceeded",
                "Type": "User",
                "message": "Rate Exceeded.",
            }),
            retry_after: Some("1".to_owned()),
        }),
        sample("stream", move |_| {
            let chunks = [&b"one,"[..], b"two,", b"three"].map(<[u8]>::to_vec).to_vec();
            stream("application/octet-stream", chunks, StreamEnd::Complete)
        }),
        sample("stream-http", move |_| {
            let head = json!({
                "statusCode": 201,
                "headers": {"content-type": "text/html"},
                "cookies": ["a=1", "b=2"],
            });
            let prelude = [head.to_string().as_bytes(), &[0; 8], b"<p>"].concat();
            let chunks = vec![prelude, b"hello".to_vec(), b"</p>".to_vec()];
            stream(HTTP_INTEGRATION, chunks, StreamEnd::Complete)
        }),
        sample("count", |_| {
            let head = json!({"statusCode": 200, "headers": {"content-type": "text/event-stream"}});
            let prelude = [head.to_string().as_bytes(), &[0; 8]].concat();
            let events = (1..=5).map(|n| format!("data: {n}\n\n").into_bytes());
            Outcome::Stream(StreamOutcome {
                content_type: HTTP_INTEGRATION.to_owned(),
                chunks: std::iter::once(prelude).chain(events).collect(),
                pause: COUNT_PAUSE,
                end: StreamEnd::Complete,
            })
        }),
        sample("stream-fail", move |_| {
            let details = json!({"errorType": "Broken", "errorMessage": "half way"}).to_string();
            let end = StreamEnd::Error("Unhandled".to_owned(), details);
            stream("application/octet-stream", vec![b"half".to_vec()], end)
        }),
    ])
}

#[derive(Debug)]
struct State {
    settings: InvokeSettings,
    recorded: Mutex<Vec<Invocation>>,
    recorded_max: usize,
}

impl Answers for State {
    fn answer(&self, head: &Parts, body: &[u8]) -> Response<Answer> {
        let mut response = if head.headers.get_all(HOST).iter().count() == 1 {
            self.call(head, body).unwrap_or_else(|refused| refused.into_response())
        } else {
            bad_request()
        };
        let now = UNIX_EPOCH + Duration::from_secs((self.settings.clock)());
        if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(now)) {
            response.headers_mut().insert(DATE, date);
        }
        response
    }
}

impl State {
    fn call(&self, head: &Parts, body: &[u8]) -> Result<Response<Answer>, Box<Refused>> {
        self.check_signature(head, body)?;
        let (identifier, streamed) = called(head.uri.path()).ok_or_else(|| {
            refused(404, "UnknownOperationException", "There is no operation of that path.")
        })?;
        if head.method != Method::POST {
            return Err(refused(405, "MethodNotAllowedException", "Only POST is known here."));
        }
        let (function, qualifier) = self.named(identifier, head.uri.query().unwrap_or_default())?;
        let kind = match head.headers.get("x-amz-invocation-type").map(HeaderValue::as_bytes) {
            _ if streamed => InvocationKind::Stream,
            None | Some(b"RequestResponse") => InvocationKind::Sync,
            Some(b"Event") => InvocationKind::Event,
            Some(b"DryRun") => InvocationKind::DryRun,
            Some(_) => {
                return Err(invalid_parameter("The invocation type is none of those known."));
            }
        };
        if kind == InvocationKind::Event && body.len() > EVENT_BYTES_MAX {
            return Err(refused(
                413,
                "RequestTooLargeException",
                format!(
                    "{} byte payload is too large for the Event invocation type (limit {EVENT_BYTES_MAX} bytes)",
                    body.len()
                ),
            ));
        }
        if !body.is_empty() {
            serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|error| {
                let said = format!("Could not parse request body into json: {error}");
                refused(400, "InvalidRequestContentException", said)
            })?;
        }
        let call = Invocation {
            function,
            qualifier,
            kind,
            headers: head
                .headers
                .iter()
                .filter(|(name, _)| *name != "authorization")
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    (name.as_str().to_owned(), value)
                })
                .collect(),
            payload: Bytes::copy_from_slice(body),
        };
        {
            let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
            if recorded.len() < self.recorded_max {
                recorded.push(call.clone());
            }
        }
        self.run(&call)
    }

    fn run(&self, call: &Invocation) -> Result<Response<Answer>, Box<Refused>> {
        let function = &self.settings.functions[&call.function];
        if call.kind == InvocationKind::DryRun {
            return Ok(status_only(204));
        }
        let outcome = function(call);
        if let Outcome::Refuse { status, error_type, body, retry_after } = outcome {
            return Err(Box::new(Refused { status, error_type, body, retry_after }));
        }
        let mut response = match (call.kind, outcome) {
            (InvocationKind::Event, _) => return Ok(status_only(202)),
            (InvocationKind::Stream, Outcome::Answer(bytes)) => stream_response(&StreamOutcome {
                content_type: "application/octet-stream".to_owned(),
                chunks: vec![bytes],
                pause: Duration::ZERO,
                end: StreamEnd::Complete,
            }),
            (InvocationKind::Stream, Outcome::Error { unhandled, payload }) => {
                let code = if unhandled { "Unhandled" } else { "Handled" };
                stream_response(&StreamOutcome {
                    content_type: "application/octet-stream".to_owned(),
                    chunks: Vec::new(),
                    pause: Duration::ZERO,
                    end: StreamEnd::Error(code.to_owned(), payload.to_string()),
                })
            }
            (InvocationKind::Stream, Outcome::Stream(stream)) => stream_response(&stream),
            (_, Outcome::Stream(stream)) => {
                // Without streaming the pieces come as one text, as Lambda buffers them.
                let whole = String::from_utf8_lossy(&stream.chunks.concat()).into_owned();
                json_response(StatusCode::OK, &Value::String(whole))
            }
            (_, Outcome::Answer(bytes)) => {
                let mut response = Response::new(Answer::whole(bytes));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                response
            }
            (_, Outcome::Error { unhandled, payload }) => {
                let mut response = json_response(StatusCode::OK, &payload);
                let said = if unhandled { "Unhandled" } else { "Handled" };
                response.headers_mut().insert(FUNCTION_ERROR, HeaderValue::from_static(said));
                response
            }
            (_, Outcome::Refuse { .. }) => unreachable!("refusals were sent above"),
        };
        let version = call.qualifier.as_deref().unwrap_or("$LATEST");
        if let Ok(version) = HeaderValue::from_str(version) {
            response.headers_mut().insert(EXECUTED_VERSION, version);
        }
        if call.kind == InvocationKind::Sync && call.header("x-amz-log-type") == Some("Tail") {
            response.headers_mut().insert(LOG_RESULT, HeaderValue::from_static(LOG_TAIL));
        }
        Ok(with_request_id(response))
    }

    fn check_signature(&self, head: &Parts, body: &[u8]) -> Result<(), Box<Refused>> {
        let settings = &self.settings;
        let headers: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let received = Received {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &headers,
            body,
        };
        let accepted = Accepted {
            access_key: &settings.access_key,
            secret_key: &settings.secret_key,
            session_token: settings.session_token.as_ref(),
            region: &settings.region,
            service: "lambda",
        };
        verify(&received, &accepted, (settings.clock)())
            .map_err(|refusal| refused(403, refusal.error_type, refusal.message))
    }

    /// Name and qualifier of the function that path and query ask for.
    fn named(
        &self,
        identifier: &str,
        query: &str,
    ) -> Result<(String, Option<String>), Box<Refused>> {
        let identifier = String::from_utf8(decode(&identifier.replace('+', "%2B")))
            .map_err(|_| invalid_parameter("The function's name is no UTF-8."))?;
        let asked =
            query.split('&').filter_map(|piece| piece.split_once('=')).find_map(|(name, value)| {
                (name == "Qualifier").then(|| String::from_utf8_lossy(&decode(value)).into_owned())
            });
        let (before, name) = match identifier.split_once("function:") {
            Some((before, name)) => (before, name),
            None => ("", &*identifier),
        };
        let (name, own) = match name.split_once(':') {
            Some((name, qualifier)) => (name, Some(qualifier.to_owned())),
            None => (name, None),
        };
        if let (Some(own), Some(asked)) = (&own, &asked)
            && own != asked
        {
            return Err(invalid_parameter(
                "The derived qualifier from the function name does not match the specified \
                 qualifier.",
            ));
        }
        let InvokeSettings { region, account_id, .. } = &self.settings;
        let places = [
            String::new(),
            format!("{account_id}:"),
            format!("{region}:{account_id}:"),
            format!("arn:aws:lambda:{region}:{account_id}:"),
        ];
        if !places.iter().any(|place| place == before)
            || !self.settings.functions.contains_key(name)
        {
            let arn = format!("arn:aws:lambda:{region}:{account_id}:function:{name}");
            let body = json!({"Message": format!("Function not found: {arn}"), "Type": "User"});
            return Err(Box::new(Refused {
                status: 404,
                error_type: "ResourceNotFoundException".to_owned(),
                body,
                retry_after: None,
            }));
        }
        Ok((name.to_owned(), own.or(asked)))
    }
}

/// The function's identifier, still escaped, and whether its answer is to be streamed.
fn called(path: &str) -> Option<(&str, bool)> {
    let invoke = path
        .strip_prefix("/2015-03-31/functions/")
        .and_then(|rest| rest.strip_suffix("/invocations"));
    let stream = path
        .strip_prefix("/2021-11-15/functions/")
        .and_then(|rest| rest.strip_suffix("/response-streaming-invocations"));
    let (identifier, streamed) = match (invoke, stream) {
        (Some(identifier), _) => (identifier, false),
        (_, Some(identifier)) => (identifier, true),
        _ => return None,
    };
    (!identifier.is_empty() && !identifier.contains('/')).then_some((identifier, streamed))
}

fn stream_response(stream: &StreamOutcome) -> Response<Answer> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut push = |headers: &[(&str, FrameValue<'_>)], payload: &[u8]| {
        let mut frame = Vec::new();
        // A chunk above the limit is the test's mistake; the stream then ends without it.
        if write_frame(headers, payload, &mut frame).is_ok() {
            pieces.push(frame);
        }
    };
    let event = |kind, content_type| {
        [
            (":event-type", FrameValue::Text(kind)),
            (":content-type", FrameValue::Text(content_type)),
            (":message-type", FrameValue::Text("event")),
        ]
    };
    for chunk in &stream.chunks {
        push(&event("PayloadChunk", "application/octet-stream"), chunk);
    }
    match &stream.end {
        StreamEnd::Complete => push(&event("InvokeComplete", "application/json"), b"{}"),
        StreamEnd::Error(code, details) => {
            let told = json!({"ErrorCode": code, "ErrorDetails": details}).to_string();
            push(&event("InvokeComplete", "application/json"), told.as_bytes());
        }
        StreamEnd::Missing => {}
        StreamEnd::Exception(kind, message) => push(
            &[
                (":exception-type", FrameValue::Text(kind)),
                (":content-type", FrameValue::Text("application/json")),
                (":message-type", FrameValue::Text("exception")),
            ],
            json!({ "message": message }).to_string().as_bytes(),
        ),
    }
    let mut response = Response::new(Answer::streamed(pieces, stream.pause));
    // As AWS sends them: the type of the frames, and beside it what the function says of its bytes.
    let frames = HeaderValue::from_static(eventstream::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, frames);
    if let Ok(own) = HeaderValue::from_str(&stream.content_type) {
        response.headers_mut().insert(REMAPPED_CONTENT_TYPE, own);
    }
    response
}

/// A refusal on its way out.
struct Refused {
    status: u16,
    error_type: String,
    body: Value,
    retry_after: Option<String>,
}

impl Refused {
    fn into_response(self) -> Response<Answer> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        let mut response = json_response(status, &self.body);
        for (name, value) in
            [(ERROR_TYPE, Some(&self.error_type)), (RETRY_AFTER, self.retry_after.as_ref())]
        {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
        with_request_id(response)
    }
}

fn refused(status: u16, error_type: &str, message: impl Into<String>) -> Box<Refused> {
    Box::new(Refused {
        status,
        error_type: error_type.to_owned(),
        body: json!({"Type": "User", "message": message.into()}),
        retry_after: None,
    })
}

fn invalid_parameter(message: &str) -> Box<Refused> {
    refused(400, "InvalidParameterValueException", message)
}

fn status_only(status: u16) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(Bytes::new()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    with_request_id(response)
}

const NAME: &str = "Invoke API";
/// How long `count` waits before each number.
const COUNT_PAUSE: Duration = Duration::from_millis(500);
/// The most calls that are recorded.
const RECORDED_MAX: usize = 10_000;
/// The largest event of an asynchronous call.
const EVENT_BYTES_MAX: usize = 1024 * 1024;
const HTTP_INTEGRATION: &str = "application/vnd.awslambda.http-integration-response";
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const REMAPPED_CONTENT_TYPE: HeaderName = HeaderName::from_static("x-amzn-remapped-content-type");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
/// `REPORT RequestId: 0 Duration: 1.00 ms Billed Duration: 1 ms`, tab-separated, in base64.
const LOG_TAIL: &str =
    "UkVQT1JUIFJlcXVlc3RJZDogMAlEdXJhdGlvbjogMS4wMCBtcwlCaWxsZWQgRHVyYXRpb246IDEgbXMK";

//! `openwhisk`: answer a route from an action of Apache OpenWhisk.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/openwhisk/>
//!
//! The action is run by a blocking activation: always POST, with the request's body as its
//! parameters; the client's path, method, query and headers are not sent. What the action returns
//! is the answer, unless it is an object with `statusCode`, `headers` or `body`, which then count
//! (<https://github.com/apache/openwhisk/blob/master/docs/webactions.md>).

use std::time::Duration;

use ::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::body::{Body, BodyError, Room};
use sluicegate_gateway::client::{CallError, Keepalive, Timeouts};
use sluicegate_gateway::endpoint::{Ask, Endpoint, EndpointOptions, Told};
use sluicegate_gateway::exchange::{Exchange, Origin, Response};
use sluicegate_gateway::http::headers::Headers;
use sluicegate_gateway::mirror;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use tracing::{error, warn};

/// The plugin, compiled.
pub struct OpenWhisk {
    endpoint: Endpoint,
    path: String,
    query: String,
    authorization: Secret,
    body_max: u64,
}

impl Plugin for OpenWhisk {
    const NAME: &'static str = "openwhisk";
    const PRIORITY: i32 = -1901;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["service_token"];
    type Config = Config;

    fn schema() -> Value {
        let name = json!({"type": "string", "maxLength": 256, "pattern": NAME_PATTERN});
        json!({
            "type": "object",
            "properties": {
                "max_req_body_size": {"type": "integer", "minimum": 1, "default": 67108864},
                "api_host": {"type": "string"},
                "ssl_verify": {"type": "boolean", "default": true},
                "service_token": {"type": "string"},
                "namespace": name,
                "package": name,
                "action": name,
                "result": {"type": "boolean", "default": true},
                "timeout": {"type": "integer", "minimum": 1, "maximum": 60000, "default": 3000},
                "keepalive": {"type": "boolean", "default": true},
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
            },
            "required": ["api_host", "service_token", "namespace", "action"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let limit = Duration::from_millis(config.timeout);
        let options = EndpointOptions {
            verify: config.ssl_verify,
            timeouts: Timeouts { connect: limit, send: limit, read: limit },
            keepalive: config.keepalive.then(|| Keepalive {
                size: usize::try_from(config.keepalive_pool).unwrap_or(usize::MAX),
                idle_timeout: Duration::from_millis(config.keepalive_timeout),
                requests: u64::MAX,
            }),
            egress: true,
        };
        let endpoint = Endpoint::compile("api_host", &config.api_host, &options, ctx)?;
        let package = config.package.map(|package| format!("{package}/")).unwrap_or_default();
        // Differs: APISIX sends spaces in names as they are, which breaks the request line.
        let path = format!(
            "{}/api/v1/namespaces/{}/actions/{package}{}",
            endpoint.path().trim_end_matches('/'),
            config.namespace,
            config.action
        )
        .replace(' ', "%20");
        Ok(Self {
            endpoint,
            path,
            query: format!("blocking=true&result={}&timeout={}", config.result, config.timeout),
            authorization: Secret::from(format!("Basic {}", STANDARD.encode(config.service_token))),
            body_max: config.max_req_body_size,
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let body = match exchange.peek_body(self.body_max).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                let limit = self.body_max;
                warn!(
                    route = exchange.route_id(),
                    limit, "A request body is larger than max_req_body_size of openwhisk allows."
                );
                return Ok(Flow::Respond(Response::page(StatusCode::PAYLOAD_TOO_LARGE)));
            }
            Err(error) => {
                let status = match error {
                    BodyError::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
                    BodyError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
                    _ => StatusCode::BAD_REQUEST,
                };
                warn!(route = exchange.route_id(), %error, "An action was not run: the request body did not arrive.");
                return Err(PluginError { status, cause: error.to_string() });
            }
        };
        if !exchange.mirrors.is_empty() {
            mirror::depart(exchange, Some(&body), None);
        }
        let mut headers = Headers::new();
        headers.append("Authorization", self.authorization.expose().as_bytes());
        headers.append("Content-Type", b"application/json");
        let ask = Ask {
            method: &Method::POST,
            path: &self.path,
            query: Some(&self.query),
            headers: &headers,
            body,
        };
        let told = self.ask(exchange, &ask).await;
        let answer = told.map_err(|e| e.to_string()).and_then(|told| answer(&told));
        match answer {
            Ok(response) => Ok(Flow::Respond(response)),
            Err(cause) => {
                exchange.core.counters.function_errors.add(1);
                error!(route = exchange.route_id(), function = %self.endpoint.authority(), cause, "An OpenWhisk action did not answer.");
                Err(PluginError { status: StatusCode::SERVICE_UNAVAILABLE, cause })
            }
        }
    }
}

impl OpenWhisk {
    async fn ask(&self, exchange: &mut Exchange, ask: &Ask<'_>) -> Result<Told, CallError> {
        let core = exchange.core.clone();
        core.counters.function_calls.add(1);
        let began = std::time::Instant::now();
        let record = &mut exchange.upstream;
        record.began = Some(began);
        record.scheme = self.endpoint.scheme();
        record.host = Some(self.endpoint.authority().clone());
        let mut received = self.endpoint.call(&core, ask, record).await?;
        record.status = Some(received.status.as_u16());
        record.header_time = Some(began.elapsed());
        received.headers.remove_hop_by_hop();
        let used = core.shared.buffered.clone();
        let total = exchange.settings.buffered_body_bytes;
        let (body, room) =
            received.body.hold(ANSWER_MAX, &used, total).await.map_err(CallError::AnswerBody)?;
        exchange.upstream.response_time = Some(began.elapsed());
        // It counts as held until the request is over.
        exchange.notes.get_or_default::<Vec<Room>>().extend(room);
        Ok(Told { status: received.status, headers: received.headers, body })
    }
}

/// What the client gets for an activation's answer.
fn answer(told: &Told) -> Result<Response, String> {
    let result: Value = serde_json::from_slice(&told.body)
        .map_err(|e| format!("the answer (status {}) is not JSON: {e}", told.status))?;
    let status = match result.get("statusCode") {
        None | Some(Value::Null) => told.status,
        Some(code) => code
            .as_u64()
            .or_else(|| whole(code.as_f64()?))
            .or_else(|| code.as_str()?.parse().ok())
            .and_then(|code| u16::try_from(code).ok())
            // Final statuses only: anything else cannot end a response.
            .filter(|code| (200..600).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or_else(|| format!("`statusCode` is no status: {code}"))?,
    };
    let mut response = match result.get("body") {
        None | Some(Value::Null) => Response::text(status, told.body.clone()),
        Some(Value::String(text)) => Response::text(status, text.clone()),
        Some(json) => Response::message(status, json),
    };
    response.origin = Origin::Function;
    if matches!(status.as_u16(), 204 | 304) {
        response.body = Body::Empty;
    }
    for (name, value) in result.get("headers").and_then(Value::as_object).into_iter().flatten() {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let texts: Vec<String> = values
            .iter()
            .filter_map(|value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
                _ => None,
            })
            .collect();
        if FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
            continue;
        }
        response.headers.remove(name);
        for text in texts {
            response.headers.append(name, text.as_bytes());
        }
    }
    Ok(response)
}

/// A number such as `201.0`, which Lua takes for the same as `201`.
fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..1e9).contains(&number)).then_some(number as u64)
}

/// Fields about one connection or the length of the body, which the gateway says itself.
const FRAMING: [&str; 5] =
    ["content-length", "transfer-encoding", "connection", "keep-alive", "upgrade"];

/// Most bytes of an activation's answer (OpenWhisk's own limit is 1 MiB by default).
const ANSWER_MAX: u64 = 64 << 20;

/// Names of namespaces, packages and actions, as OpenWhisk has them.
const NAME_PATTERN: &str = r"\A([\w]|[\w][\w@ .-]*[\w@.-]+)\z";

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    api_host: String,
    ssl_verify: bool,
    service_token: String,
    namespace: String,
    package: Option<String>,
    action: String,
    result: bool,
    timeout: u64,
    keepalive: bool,
    keepalive_timeout: u64,
    keepalive_pool: u64,
    max_req_body_size: u64,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::{Answer, PluginTest};

    use super::*;

    fn config(more: Value) -> Value {
        let mut config = json!({
            "api_host": "http://fn.test",
            "service_token": "test:test",
            "namespace": "guest",
            "action": "hello",
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        config
    }

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<OpenWhisk>::check_schema(&config(json!({})));
    }

    #[test]
    fn an_action_is_run_by_one_blocking_post_without_what_the_client_says_about_itself() {
        for (more, target) in [
            (
                json!({}),
                "/api/v1/namespaces/guest/actions/hello?blocking=true&result=true&timeout=3000",
            ),
            (
                json!({"package": "a pkg", "result": false, "timeout": 1000}),
                "/api/v1/namespaces/guest/actions/a%20pkg/hello?blocking=true&result=false&timeout=1000",
            ),
        ] {
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(more))
                .request("PUT", "/x?name=y")
                .request_header("X-Custom", Some("1"))
                .request_header("Authorization", Some("Bearer client"))
                .request_body(r#"{"name":"x"}"#)
                .origin_answer(Answer::text("{}"))
                .run();
            let sent = ran.sent();
            assert_eq!((sent.method.as_str(), sent.target.as_str()), ("POST", target));
            assert_eq!(sent.header("authorization"), Some("Basic dGVzdDp0ZXN0"));
            assert_eq!(sent.header("content-type"), Some("application/json"));
            assert_eq!(sent.header("x-custom"), None);
            assert_eq!(&sent.body[..], br#"{"name":"x"}"#);
        }
    }

    #[test]
    fn an_activations_answer_says_status_headers_and_body_or_is_the_body() {
        for (origin, told, status, header, body) in [
            (200, r#"{"hello":"world"}"#, 200, None, r#"{"hello":"world"}"#),
            (404, r#"{"error":"no such action"}"#, 404, None, r#"{"error":"no such action"}"#),
            (200, r#""just a string""#, 200, None, r#""just a string""#),
            (
                200,
                r#"{"statusCode":201,"headers":{"X-A":1,"Content-Type":"text/x"},"body":"text"}"#,
                201,
                Some("1"),
                "text",
            ),
            (200, r#"{"statusCode":201.0,"body":"created"}"#, 201, None, "created"),
            (200, r#"{"statusCode":"418","body":{"a":[1]}}"#, 418, None, "{\"a\":[1]}\n"),
            (
                200,
                r#"{"headers":{"X-A":["1"],"Set-Cookie":["a=1","b=2"],"Content-Length":"9","Transfer-Encoding":"chunked"},"body":"b"}"#,
                200,
                Some("1"),
                "b",
            ),
            (200, r#"{"statusCode":204}"#, 204, None, ""),
        ] {
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(json!({})))
                .origin_answer(Answer::status(origin).body(told))
                .run();
            assert_eq!((ran.status, ran.body().as_str()), (status, body), "{told}");
            assert_eq!(ran.response.header("x-a"), header, "{told}");
        }
        for told in [
            "no JSON",
            "",
            r#"{"statusCode":201.5}"#,
            r#"{"statusCode":-1.0}"#,
            r#"{"statusCode":99}"#,
            r#"{"statusCode":101}"#,
            r#"{"statusCode":{}}"#,
        ] {
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(json!({})))
                .origin_answer(Answer::status(200).body(told))
                .run();
            assert_eq!(ran.status, 503, "{told}");
        }
    }

    #[test]
    fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_sent() {
        for (body, status) in [("1234", 200), ("12345", 413)] {
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(json!({"max_req_body_size": 4})))
                .request("POST", "/")
                .request_body(body)
                .origin_answer(Answer::text("{}"))
                .run();
            assert_eq!(ran.status, status, "{body}");
        }
    }

    #[test]
    fn an_action_that_cannot_be_reached_or_does_not_answer_is_503() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("http://{}", silent.local_addr().unwrap());
        for (host, timeout) in [("http://127.0.0.1:1", 3000), (&*silent, 100)] {
            let began = std::time::Instant::now();
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(json!({"api_host": host, "timeout": timeout})))
                .run();
            assert_eq!(ran.status, 503, "{host}");
            assert!(began.elapsed() < Duration::from_secs(20), "{host}");
        }
    }

    #[test]
    fn an_answer_is_taken_up_to_its_limit() {
        let text = |bytes: u64| format!("\"{}\"", "x".repeat(usize::try_from(bytes).unwrap() - 2));
        for (bytes, status) in [(ANSWER_MAX, 200), (ANSWER_MAX + 1, 503)] {
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(json!({})))
                .origin_answer(Answer::text(text(bytes)))
                .run();
            assert_eq!(ran.status, status, "{bytes}");
        }
    }

    #[test]
    fn names_and_times_that_openwhisk_does_not_have_are_refused() {
        for (more, field) in [
            (json!({"namespace": "a/b"}), "namespace"),
            (json!({"action": "../x"}), "action"),
            (json!({"action": " x"}), "action"),
            (json!({"package": ""}), "package"),
            (json!({"package": "a?b"}), "package"),
            (json!({"action": "x".repeat(257)}), "action"),
            (json!({"timeout": 0}), "timeout"),
            (json!({"timeout": 60_001}), "timeout"),
        ] {
            let error = crate::tests::refusal::<OpenWhisk>(&config(more.clone()));
            let begin = format!("property \"{field}\" validation failed: ");
            assert!(error.starts_with(&begin), "{more}: {error}");
        }
        for more in [
            json!({"namespace": "_", "package": "a b@c.d-e", "action": "x".repeat(256)}),
            json!({"timeout": 1}),
            json!({"timeout": 60_000}),
        ] {
            let ran = PluginTest::<OpenWhisk>::new()
                .config(config(more.clone()))
                .origin_answer(Answer::text("{}"))
                .run();
            assert!([200, 503].contains(&ran.status), "{more}");
        }
    }
}

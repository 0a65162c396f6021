//! `forward-auth`: asks another server whether a request may pass.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/forward-auth/>
//!
//! Where there is no answer the request does not pass, unless `allow_degradation` says so.

use std::time::Duration;

use ::http::{Method, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::client::{Keepalive, Timeouts};
use sluicegate_gateway::endpoint::{Ask, Endpoint, EndpointOptions, Told};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::http::Headers;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use tracing::warn;

use crate::template::Template;

/// The plugin, compiled.
pub struct ForwardAuth {
    endpoint: Endpoint,
    allow_degradation: bool,
    status_on_error: StatusCode,
    method: Method,
    body_bytes_max: u64,
    request_headers: Box<[String]>,
    extra_headers: Box<[(String, Template)]>,
    upstream_headers: Box<[String]>,
    client_headers: Box<[String]>,
    described: [(&'static str, VarName); 5],
}

impl Plugin for ForwardAuth {
    const NAME: &'static str = "forward-auth";
    const PRIORITY: i32 = 2002;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let names = |description: &str| {
            json!({
                "type": "array",
                "default": [],
                "items": {"type": "string"},
                "description": description,
            })
        };
        json!({
            "type": "object",
            "properties": {
                "uri": {"type": "string"},
                "allow_degradation": {"type": "boolean", "default": false},
                "status_on_error": {
                    "type": "integer", "minimum": 200, "maximum": 599, "default": 403,
                },
                "ssl_verify": {"type": "boolean", "default": true},
                "request_method": {
                    "type": "string",
                    "default": "GET",
                    "enum": ["GET", "POST"],
                    "description": "The method of the question.",
                },
                "max_req_body_size": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 67_108_864,
                    "description": "Most bytes of a body that goes with a POST; 413 beyond.",
                },
                "request_headers": names("Headers of the client that go with the question."),
                "extra_headers": {
                    "type": "object",
                    "minProperties": 1,
                    "patternProperties": {
                        "^[^:]+$": {
                            "type": "string",
                            "description": "A value; may have variables in it.",
                        },
                    },
                    "description": "Other headers of the question.",
                },
                "upstream_headers": names("Headers of the answer that the upstream gets."),
                "client_headers": names("Headers of a refusal that the client gets."),
                "timeout": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 60000,
                    "default": 3000,
                    "description": "Milliseconds.",
                },
                "keepalive": {"type": "boolean", "default": true},
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
            },
            "required": ["uri"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let status = StatusCode::from_u16(config.status_on_error);
        let extra = config.extra_headers.into_iter().map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (name, Template::compile(&text))
        });
        Ok(Self {
            endpoint: Endpoint::compile("uri", &config.uri, &config.server.options(), ctx)?,
            allow_degradation: config.allow_degradation,
            status_on_error: status.map_err(|e| ConfigError(format!("`status_on_error`: {e}")))?,
            method: match config.request_method.as_str() {
                "POST" => Method::POST,
                _ => Method::GET,
            },
            body_bytes_max: config.max_req_body_size,
            request_headers: config.request_headers.into(),
            extra_headers: extra.collect(),
            upstream_headers: config.upstream_headers.into(),
            client_headers: config.client_headers.into(),
            described: [
                ("X-Forwarded-Proto", "scheme"),
                ("X-Forwarded-Method", "request_method"),
                ("X-Forwarded-Host", "host"),
                ("X-Forwarded-Uri", "request_uri"),
                ("X-Forwarded-For", "remote_addr"),
            ]
            .map(|(header, var)| (header, VarName::parse(var))),
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut body = Bytes::new();
        if self.method == Method::POST {
            match exchange.peek_body(self.body_bytes_max).await {
                Ok(Some(whole)) => body = whole,
                Ok(None) => return Ok(refused(StatusCode::PAYLOAD_TOO_LARGE)),
                Err(error) => {
                    self.warn(exchange, &format!("failed to read request body: {error}"));
                    return Ok(refused(StatusCode::BAD_REQUEST));
                }
            }
        }
        let told = match self.headers(exchange) {
            Ok(headers) => {
                let ask = Ask {
                    method: &self.method,
                    path: self.endpoint.path(),
                    query: self.endpoint.query(),
                    headers: &headers,
                    body,
                };
                let core = exchange.core.clone();
                let told = self.endpoint.ask(&core, &ask, ANSWER_BYTES_MAX).await;
                told.map_err(|error| error.to_string())
            }
            Err(cause) => Err(cause),
        };
        Ok(match told {
            Ok(told) if told.status.as_u16() >= 300 => Flow::Respond(self.refusal(told)),
            Ok(told) => {
                let headers = &mut exchange.request.headers;
                for name in &self.upstream_headers {
                    // What the client says there is never believed.
                    headers.remove(name);
                    for value in told.headers.all(name) {
                        headers.append(name, value);
                    }
                }
                Flow::Continue
            }
            Err(cause) => {
                self.warn(exchange, &format!("failed to process forward auth, err: {cause}"));
                match self.allow_degradation {
                    true => Flow::Continue,
                    false => refused(self.status_on_error),
                }
            }
        })
    }
}

impl ForwardAuth {
    /// The headers of the question.
    ///
    /// A value with a line end in it (the normal form of a path may have one) fails the question:
    /// without the header it would be another one.
    fn headers(&self, exchange: &Exchange) -> Result<Headers, String> {
        let mut headers = Headers::new();
        let mut add = |name: &str, value: &[u8]| {
            if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                return Err(format!("invalid characters found in header value, name: {name}"));
            }
            headers.set(name, value);
            Ok(())
        };
        for (name, var) in &self.described {
            let value = exchange.var(var);
            let value = value.as_ref().and_then(|value| value.to_bytes());
            add(name, value.as_deref().unwrap_or_default())?;
        }
        if self.method == Method::POST
            && let Some(coding) = exchange.request.headers.get("Content-Encoding")
        {
            add("Content-Encoding", coding)?;
        }
        for (name, value) in &self.extra_headers {
            add(name, &value.render(exchange))?;
        }
        for name in &self.request_headers {
            let framing = ["host", "content-length", "transfer-encoding", "connection"];
            // Differs: APISIX tells whose question it is by the client's Host and framing where these
            // are named, which leads astray or breaks the question.
            let ours = framing.iter().any(|other| other.eq_ignore_ascii_case(name));
            if !ours && !headers.contains(name) {
                for value in exchange.request.headers.all(name) {
                    headers.append(name, value);
                }
            }
        }
        Ok(headers)
    }

    fn refusal(&self, told: Told) -> Response {
        let mut response = Response::text(told.status, told.body);
        for name in &self.client_headers {
            let mut values = told.headers.all(name);
            if let Some(first) = values.next() {
                response.headers.set(name, first);
                for value in values {
                    response.headers.append(name, value);
                }
            }
        }
        response.headers.remove("Content-Length");
        response
    }

    fn warn(&self, exchange: &Exchange, cause: &str) {
        warn!(
            plugin = Self::NAME,
            route = exchange.route_id(),
            server = &**self.endpoint.authority(),
            cause,
            "A request could not be authorised."
        );
    }
}

fn refused(status: StatusCode) -> Flow {
    Flow::Respond(Response::page(status))
}

/// The members that say how a server is asked.
#[derive(Debug, Deserialize)]
pub(crate) struct ServerConfig {
    ssl_verify: bool,
    timeout: u64,
    keepalive: bool,
    keepalive_timeout: u64,
    keepalive_pool: usize,
}

impl ServerConfig {
    pub(crate) fn options(&self) -> EndpointOptions {
        let limit = Duration::from_millis(self.timeout);
        EndpointOptions {
            verify: self.ssl_verify,
            timeouts: Timeouts { connect: limit, send: limit, read: limit },
            keepalive: self.keepalive.then(|| Keepalive {
                size: self.keepalive_pool,
                idle_timeout: Duration::from_millis(self.keepalive_timeout),
                requests: u64::MAX,
            }),
            egress: false,
        }
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    server: ServerConfig,
    uri: String,
    allow_degradation: bool,
    status_on_error: u16,
    request_method: String,
    max_req_body_size: u64,
    request_headers: Vec<String>,
    #[serde(default)]
    extra_headers: Map<String, Value>,
    upstream_headers: Vec<String>,
    client_headers: Vec<String>,
}

/// Most bytes of an answer.
pub(crate) const ANSWER_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use sluicegate_testkit::{Answer, Origin, PluginTest};

    use super::*;

    /// Lets `good` pass as user 7, and refuses others.
    fn judge() -> Origin {
        Origin::start(|asked| match asked.header("authorization") {
            Some("good") => Answer::text("").header("X-User-Id", "7").header("X-Role", "a"),
            _ => Answer::status(403).header("Location", "/login").header("X-Other", "o").body("no"),
        })
    }

    fn test(judge: &Origin, more: Value) -> PluginTest<ForwardAuth> {
        let mut config = json!({
            "uri": judge.url("/auth?x=1"),
            "request_headers": ["Authorization", "Host"],
            "upstream_headers": ["X-User-Id", "X-None"],
            "client_headers": ["Location", "X-None"],
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        PluginTest::new().config(config)
    }

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<ForwardAuth>::check_schema(&json!({"uri": "http://a.test/"}));
    }

    #[test]
    fn the_other_server_decides_and_tells_the_upstream() {
        let judge = judge();
        let ran =
            test(&judge, json!({"extra_headers": {"X-Extra": "$remote_addr-x", "X-Text": "t"}}))
                .request("GET", "/a%20b?c=d")
                .request_header("Authorization", Some("good"))
                .request_header("X-User-Id", Some("root"))
                .request_header("X-None", Some("root"))
                .request_header("X-Forwarded-For", Some("9.9.9.9"))
                .run();
        assert_eq!(ran.status, 200);
        assert_eq!(ran.sent().all("x-user-id"), ["7"]);
        assert_eq!(ran.sent_header("x-none"), None);
        assert_eq!(ran.sent_header("x-role"), None);
        let asked = judge.last();
        assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "/auth?x=1"));
        assert_eq!(asked.all("host"), [judge.addr.to_string()]);
        for (name, value) in [
            ("x-forwarded-proto", "http"),
            ("x-forwarded-method", "GET"),
            ("x-forwarded-uri", "/a b?c=d"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-extra", "127.0.0.1-x"),
            ("x-text", "t"),
        ] {
            assert_eq!(asked.all(name), [value], "{name}");
        }
    }

    #[test]
    fn a_refusal_is_told_with_the_headers_that_clients_may_see() {
        let judge = judge();
        let ran = test(&judge, json!({})).request_header("Authorization", Some("bad")).run();
        assert_eq!((ran.status, ran.body().as_str()), (403, "no"));
        assert_eq!(ran.response.header("location"), Some("/login"));
        assert_eq!(ran.response.header("x-other"), None);
        assert!(ran.sent.is_empty());
    }

    #[test]
    fn without_an_answer_requests_do_not_pass_unless_told_so() {
        let judge = judge();
        let nowhere = json!({"uri": "http://127.0.0.1:9/"});
        let degraded = json!({"uri": "http://127.0.0.1:9/", "allow_degradation": true});
        let other = json!({"uri": "http://127.0.0.1:9/", "status_on_error": 503});
        let late = json!({"timeout": 1});
        for (more, target, status) in [
            (&nowhere, "/", 403),
            (&degraded, "/", 200),
            (&other, "/", 503),
            (&json!({}), "/a%0d%0ax", 403),
        ] {
            let ran = test(&judge, more.clone())
                .request("GET", target)
                .request_header("Authorization", Some("good"))
                .run();
            assert_eq!(ran.status, status, "{more} {target}");
        }
        let slow = Origin::start(|_| Answer::none().after(Duration::from_secs(1)));
        assert_eq!(test(&slow, late).run().status, 403);
    }

    #[test]
    fn a_post_takes_the_body_along_and_leaves_it_for_the_upstream() {
        let judge = Origin::start(|asked| match &asked.body[..] {
            b"0123456789" => Answer::text(""),
            _ => Answer::status(401),
        });
        for (body, status) in [("0123456789", 200), ("x", 401), ("0123456789a", 413)] {
            let more = json!({"request_method": "POST", "max_req_body_size": 10});
            let ran = test(&judge, more)
                .request("PUT", "/")
                .request_header("Content-Encoding", Some("x-none"))
                .request_body(body)
                .run();
            assert_eq!(ran.status, status, "{body}");
            if status != 413 {
                assert_eq!(judge.last().header("content-encoding"), Some("x-none"));
            }
            if status == 200 {
                assert_eq!(ran.sent().body, body.as_bytes());
            }
        }
    }
}

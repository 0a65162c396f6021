//! `opa`: asks an Open Policy Agent whether a request may pass.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/opa/>
//!
//! Where there is no decision the request does not pass.

use std::sync::LazyLock;
use std::time::UNIX_EPOCH;

use ::http::{Method, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::endpoint::{Ask, Endpoint};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::http::Headers;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_model::kind::Kind;
use sluicegate_model::plugin::Catalog;
use tracing::error;

use crate::forward_auth::{ANSWER_BYTES_MAX, ServerConfig};

/// The plugin, compiled.
pub struct Opa {
    endpoint: Endpoint,
    send_headers_upstream: Box<[String]>,
    with_route: bool,
    with_service: bool,
    with_consumer: bool,
}

impl Plugin for Opa {
    const NAME: &'static str = "opa";
    const PRIORITY: i32 = 2001;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "host": {"type": "string"},
                "ssl_verify": {"type": "boolean", "default": true},
                "policy": {"type": "string"},
                "timeout": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 60000,
                    "default": 3000,
                    "description": "Milliseconds.",
                },
                "keepalive": {"type": "boolean", "default": true},
                "send_headers_upstream": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string"},
                    "description": "Headers of the decision that the upstream gets.",
                },
                "keepalive_timeout": {"type": "integer", "minimum": 1000, "default": 60000},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
                "with_route": {"type": "boolean", "default": false},
                "with_service": {"type": "boolean", "default": false},
                "with_consumer": {"type": "boolean", "default": false},
            },
            "required": ["host", "policy"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let url = format!("{}/v1/data/{}", config.host, config.policy);
        Ok(Self {
            endpoint: Endpoint::compile("host", &url, &config.server.options(), ctx)?,
            send_headers_upstream: config.send_headers_upstream.into(),
            with_route: config.with_route,
            with_service: config.with_service,
            with_consumer: config.with_consumer,
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut headers = Headers::new();
        headers.append("Content-Type", b"application/json");
        let ask = Ask {
            method: &Method::POST,
            path: self.endpoint.path(),
            query: self.endpoint.query(),
            headers: &headers,
            body: Bytes::from(json!({"input": self.input(exchange)}).to_string()),
        };
        let core = exchange.core.clone();
        let told = match self.endpoint.ask(&core, &ask, ANSWER_BYTES_MAX).await {
            Ok(told) => told,
            Err(error) => {
                let cause = format!("failed to process OPA decision, err: {error}");
                return Ok(self.undecided(exchange, StatusCode::FORBIDDEN, &cause));
            }
        };
        let decision = match Decision::read(&told.body) {
            Ok(decision) => decision,
            Err(cause) => {
                return Ok(self.undecided(exchange, StatusCode::SERVICE_UNAVAILABLE, &cause));
            }
        };
        if !decision.allows() {
            return Ok(Flow::Respond(decision.refusal()));
        }
        for name in &self.send_headers_upstream {
            // What the client says there is never believed.
            exchange.request.headers.remove(name);
            for value in decision.header(name) {
                exchange.request.headers.append(name, value.as_bytes());
            }
        }
        Ok(Flow::Continue)
    }
}

impl Opa {
    /// What the policy decides about.
    fn input(&self, exchange: &Exchange) -> Value {
        let now = sluicegate_gateway::core::now();
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let text = |name: &str| {
            let value = exchange.var(&VarName::parse(name));
            let value = value.as_ref().and_then(|value| value.to_bytes());
            value.map(|text| String::from_utf8_lossy(&text).into_owned())
        };
        let mut headers = Map::new();
        for (name, value) in exchange.request.headers.iter() {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            collect(&mut headers, name, String::from_utf8_lossy(value).into());
        }
        let mut query = Map::new();
        for (name, value) in exchange.arguments() {
            let value = value.map(|value| String::from_utf8_lossy(&value).into());
            let name = String::from_utf8_lossy(&name).into_owned();
            collect(&mut query, name, value.unwrap_or(Value::Bool(true)));
        }
        let mut input = json!({
            "type": "http",
            "request": {
                "scheme": text("scheme"),
                "method": exchange.request.method.as_str(),
                "host": exchange.request.host(),
                "port": exchange.connection.local.port(),
                "path": String::from_utf8_lossy(exchange.uri()),
                "headers": headers,
                "query": query,
            },
            "var": {
                "server_addr": text("server_addr"),
                "server_port": text("server_port"),
                "remote_addr": text("remote_addr"),
                "remote_port": text("remote_port"),
                "timestamp": now,
            },
        });
        if self.with_route
            && let Some(route) = &exchange.route
        {
            input["route"] = stored(Kind::Routes, &route.text);
        }
        if self.with_consumer
            && let Some(consumer) = &exchange.consumer
        {
            input["consumer"] = stored(Kind::Consumers, &consumer.text);
        }
        let service = exchange.route.as_ref().and_then(|route| route.service_text.as_ref());
        if self.with_service
            && let Some(service) = service
        {
            input["service"] = stored(Kind::Services, service);
        }
        input
    }

    fn undecided(&self, exchange: &Exchange, status: StatusCode, cause: &str) -> Flow {
        error!(
            plugin = Self::NAME,
            route = exchange.route_id(),
            server = &**self.endpoint.authority(),
            cause,
            "A request could not be authorised."
        );
        Flow::Respond(Response::page(status))
    }
}

/// A resource as stored, without its upstream.
///
/// Differs: secrets in it are hidden. APISIX sends keys, passwords and tokens of plugins along.
fn stored(kind: Kind, text: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(text).unwrap_or_default();
    if let Value::Object(map) = &mut value {
        map.remove("upstream");
    }
    CATALOG.each_secret(kind, &mut value, |config, paths| {
        for path in paths {
            hide(config, path);
        }
    });
    value
}

/// Hides what lies at a dotted path.
fn hide(value: &mut Value, path: &str) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    match (value, rest) {
        (Value::Array(all), _) => all.iter_mut().for_each(|one| hide(one, path)),
        (Value::Object(map), rest) => match (map.get_mut(first), rest) {
            (Some(inner), Some(rest)) => hide(inner, rest),
            (Some(inner), None) => *inner = json!("***"),
            (None, _) => {}
        },
        _ => {}
    }
}

/// Puts a value in; of those with one name all are kept.
fn collect(map: &mut Map<String, Value>, name: String, value: Value) {
    match map.get_mut(&name) {
        None => drop(map.insert(name, value)),
        Some(Value::Array(all)) => all.push(value),
        Some(one) => *one = json!([one.take(), value]),
    }
}

/// What the policy decided. One that gives no object allows nothing.
#[derive(Default, Deserialize)]
struct Decision {
    #[serde(default)]
    allow: Value,
    #[serde(default)]
    headers: Value,
    #[serde(default)]
    status_code: Value,
    #[serde(default)]
    reason: Value,
}

impl Decision {
    /// Reads an answer of OPA.
    fn read(body: &[u8]) -> Result<Self, String> {
        let mut answer: Value = serde_json::from_slice(body)
            .map_err(|error| format!("invalid response body: {error}"))?;
        match answer.get_mut("result").map(Value::take) {
            None | Some(Value::Null) => {
                Err("invalid OPA decision format: `result` field does not exist".to_owned())
            }
            Some(result @ Value::Object(_)) => {
                Ok(serde_json::from_value(result).unwrap_or_default())
            }
            Some(_) => Ok(Self::default()),
        }
    }

    fn allows(&self) -> bool {
        // As in Lua, everything but false and null is true.
        !matches!(self.allow, Value::Null | Value::Bool(false))
    }

    /// The values of a header, in whatever case the policy wrote its name.
    fn header(&self, name: &str) -> Vec<String> {
        let mut headers = self.headers.as_object().into_iter().flatten();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| texts(value)).unwrap_or_default()
    }

    fn refusal(self) -> Response {
        let status = self.status_code.as_u64().and_then(|code| u16::try_from(code).ok());
        let status = status.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.filter(|status| status.as_u16() >= 200);
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        let mut response = match self.reason {
            Value::Null => Response::page(status),
            Value::String(text) => Response::text(status, text),
            other => Response::text(status, other.to_string()),
        };
        for (name, value) in self.headers.as_object().into_iter().flatten() {
            for (n, value) in texts(value).into_iter().enumerate() {
                match n {
                    0 => response.headers.set(name, value.as_bytes()),
                    _ => response.headers.append(name, value.as_bytes()),
                }
            }
        }
        response
    }
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        Value::Bool(flag) => vec![flag.to_string()],
        Value::Null | Value::Object(_) => Vec::new(),
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    server: ServerConfig,
    host: String,
    policy: String,
    #[serde(default)]
    send_headers_upstream: Vec<String>,
    with_route: bool,
    with_service: bool,
    with_consumer: bool,
}

/// Which members of configurations are secrets.
static CATALOG: LazyLock<Catalog> = LazyLock::new(|| crate::registry().catalog());

#[cfg(test)]
mod tests {
    use sluicegate_testkit::{Answer as Says, Origin, PluginTest};

    use super::*;

    fn agent(answer: impl Into<String>) -> Origin {
        let answer = answer.into();
        Origin::start(move |_| Says::text(answer.clone()))
    }

    fn test(agent: &Origin, more: Value) -> PluginTest<Opa> {
        let mut config = json!({"host": agent.url(""), "policy": "example"});
        for (name, value) in more.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        PluginTest::new().config(config)
    }

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<Opa>::check_schema(&json!({"host": "http://a.test", "policy": "p"}));
    }

    #[test]
    fn the_agent_learns_all_about_the_request() {
        let agent = agent(r#"{"result": {"allow": true}}"#);
        let ran =
            test(&agent, json!({"with_route": true, "with_service": true, "with_consumer": true}))
                .request("POST", "/a%20b?c=d%20e&f&c=g&h=")
                .request_header("X-One", Some("1"))
                .request_header("X-Two", Some("1"))
                .request_header("x-two", Some("2"))
                .run();
        assert_eq!(ran.status, 200);
        let asked = agent.last();
        assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/v1/data/example"));
        assert_eq!(asked.header("content-type"), Some("application/json"));
        let input: Value = serde_json::from_slice(&asked.body).expect("it is JSON");
        let (input, request) = (&input["input"], &input["input"]["request"]);
        assert_eq!(input["type"], "http");
        assert_eq!(request["path"], "/a b");
        assert_eq!(request["query"], json!({"c": ["d e", "g"], "f": true, "h": ""}));
        assert_eq!(request["headers"]["x-one"], "1");
        assert_eq!(request["headers"]["x-two"], json!(["1", "2"]));
        assert_eq!((&request["scheme"], &request["method"]), (&json!("http"), &json!("POST")));
        assert_eq!(input["var"]["remote_addr"], "127.0.0.1");
        assert!(input["var"]["timestamp"].is_u64() && request["port"].is_u64());
        assert_eq!(input["route"]["uri"], "/*");
        assert_eq!(input["route"].get("upstream"), None);
        assert_eq!((input.get("consumer"), input.get("service")), (None, None));
    }

    #[test]
    fn what_the_agent_decides_is_done() {
        for (answer, status, body) in [
            (r#"{"result": {"allow": true}}"#, 200, Some("")),
            (r#"{"result": {"allow": false}}"#, 403, None),
            (r#"{"result": {}}"#, 403, None),
            (r#"{"result": []}"#, 403, None),
            (r#"{"result": false}"#, 403, None),
            (
                r#"{"result": {"allow": null, "status_code": 401, "reason": "why"}}"#,
                401,
                Some("why"),
            ),
            (r#"{"result": {"allow": false, "reason": {"a": 1}}}"#, 403, Some(r#"{"a":1}"#)),
            (r#"{"result": {"allow": false, "status_code": 7}}"#, 403, None),
            (r#"{"a": 1}"#, 503, None),
            ("no", 503, None),
        ] {
            let agent = agent(answer);
            let ran = test(&agent, json!({})).run();
            assert_eq!(ran.status, status, "{answer}");
            if let Some(body) = body {
                assert_eq!(ran.body(), body, "{answer}");
            }
        }
        let nowhere = json!({"host": "http://127.0.0.1:9"});
        assert_eq!(test(&agent("x"), nowhere).run().status, 403);
    }

    #[test]
    fn headers_of_the_decision_reach_the_client_or_the_upstream() {
        let allow =
            agent(r#"{"result": {"allow": true, "headers": {"x-user": ["a", "b"], "X-O": 1}}}"#);
        let ran = test(&allow, json!({"send_headers_upstream": ["X-User", "X-None"]}))
            .request_header("X-User", Some("root"))
            .request_header("X-None", Some("root"))
            .run();
        assert_eq!(ran.sent().all("x-user"), ["a", "b"]);
        assert_eq!((ran.sent_header("x-none"), ran.sent_header("x-o")), (None, None));
        let refuse =
            agent(r#"{"result": {"allow": false, "headers": {"Location": "/in", "X": 1}}}"#);
        let ran = test(&refuse, json!({})).run();
        assert_eq!(ran.status, 403);
        assert_eq!(ran.response.header("location"), Some("/in"));
        assert_eq!(ran.response.header("x"), Some("1"));
    }

    #[test]
    fn secrets_stay_here() {
        let consumer = json!({
            "username": "jack",
            "plugins": {"key-auth": {"key": "k"}, "jwt-auth": {"key": "j", "secret": "s"}},
        });
        let shown = stored(Kind::Consumers, consumer.to_string().as_bytes());
        assert_eq!(shown["username"], "jack");
        assert_eq!(shown["plugins"]["key-auth"]["key"], "***");
        assert_eq!(shown["plugins"]["jwt-auth"], json!({"key": "j", "secret": "***"}));
        let route =
            json!({"upstream": {}, "plugins": {"aws-lambda": {"authorization": {"apikey": "k"}}}});
        let shown = stored(Kind::Routes, route.to_string().as_bytes());
        assert_eq!(shown["plugins"]["aws-lambda"]["authorization"]["apikey"], "***");
        assert_eq!(shown.get("upstream"), None);
    }
}

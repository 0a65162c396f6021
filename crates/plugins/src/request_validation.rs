//! `request-validation`: let requests pass whose header fields and body follow a JSON schema.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/request-validation/>
//!
//! A JSON body goes on as it was understood here: written anew, with the schema's defaults filled in.
//! So an upstream that reads odd JSON in another way reads the JSON that was checked.

use std::borrow::Cow;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::body::{Body, BodyError};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::{Headers, Known};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_model::schema::Schema;
use tracing::info;

/// The plugin, compiled.
pub struct RequestValidation {
    headers: Option<HeaderSchema>,
    body: Option<Schema>,
    body_max: u64,
    status: StatusCode,
    message: Option<String>,
}

struct HeaderSchema {
    schema: Schema,
    /// The names that the schema itself has: fields go by them, whatever their case.
    names: Vec<String>,
}

impl Plugin for RequestValidation {
    const NAME: &'static str = "request-validation";
    const PRIORITY: i32 = 2800;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "header_schema": {"type": "object"},
                "body_schema": {"type": "object"},
                "max_req_body_size": {"type": "integer", "minimum": 1, "default": 67108864},
                "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 400},
                "rejected_msg": {"type": "string", "minLength": 1, "maxLength": 256},
            },
            "anyOf": [{"required": ["header_schema"]}, {"required": ["body_schema"]}],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let compile = |schema: &Value| {
            lists_are_lists(schema, 0)?;
            Schema::compile(schema).map_err(ConfigError)
        };
        let headers = config.header_schema.map(|schema| {
            let named = schema["properties"].as_object().into_iter().flatten();
            let required = schema["required"].as_array().into_iter().flatten();
            let mut names: Vec<String> = named.map(|(name, _)| name.clone()).collect();
            names.extend(required.filter_map(|name| name.as_str().map(str::to_owned)));
            Ok(HeaderSchema { schema: compile(&schema)?, names })
        });
        Ok(Self {
            headers: headers.transpose()?,
            body: config.body_schema.as_ref().map(compile).transpose()?,
            body_max: config.max_req_body_size,
            status: crate::answers::status("rejected_code", config.rejected_code)?,
            message: config.rejected_msg,
        })
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if let Some(HeaderSchema { schema, names }) = &self.headers
            && let Err(cause) = schema.check(&fields(&exchange.request.headers, names))
        {
            return Ok(self.reject(exchange, Some(cause)));
        }
        let Some(schema) = &self.body else { return Ok(Flow::Continue) };
        let body = match exchange.peek_body(self.body_max).await {
            Ok(Some(body)) if !body.is_empty() => body,
            Ok(_) => return Ok(self.reject(exchange, None)),
            Err(error) => {
                let status = match error {
                    BodyError::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
                    BodyError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
                    BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                    _ => StatusCode::BAD_REQUEST,
                };
                return Err(PluginError { status, cause: error.to_string() });
            }
        };
        let mut kinds = exchange.request.headers.all_known(Known::ContentType);
        let kind = kinds.next().unwrap_or_default();
        if kinds.next().is_some() {
            // Two readers could take two different ones for it.
            drop(kinds);
            return Ok(self.reject(exchange, None));
        }
        let form = kind.get(..FORM.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(FORM));
        if form {
            return Ok(match schema.check(&arguments(&body)) {
                Ok(()) => Flow::Continue,
                Err(cause) => self.reject(exchange, Some(cause)),
            });
        }
        let mut value: Value = match serde_json::from_slice(&body) {
            Ok(value) => value,
            // Differs: the text is that of another JSON reader.
            Err(error) => return Ok(self.reject(exchange, Some(error.to_string()))),
        };
        if let Err(cause) = schema.check_and_fill(&mut value) {
            return Ok(self.reject(exchange, Some(cause)));
        }
        exchange.request.body = Body::from_bytes(value.to_string());
        Ok(Flow::Continue)
    }
}

impl RequestValidation {
    fn reject(&self, exchange: &Exchange, cause: Option<String>) -> Flow {
        info!(route = exchange.route_id(), cause, "A request does not follow its schema.");
        Flow::Respond(match self.message.clone().or(cause) {
            Some(text) => Response::text(self.status, text),
            None => crate::answers::answer(self.status),
        })
    }
}

/// Refuses `enum` and `required` that are not lists, which the schema compiler passes over.
fn lists_are_lists(schema: &Value, depth: usize) -> Result<(), ConfigError> {
    let Some(members) = schema.as_object().filter(|_| depth < DEPTH_MAX) else { return Ok(()) };
    for name in ["enum", "required"] {
        if let Some(text) = members.get(name).filter(|list| list.is_string()) {
            return Err(ConfigError(format!("`{name}` {text}: table expected, got string")));
        }
    }
    let properties = members.get("properties").and_then(Value::as_object);
    let inner = properties.into_iter().flatten().map(|(_, schema)| schema);
    inner.chain(members.get("items")).try_for_each(|schema| lists_are_lists(schema, depth + 1))
}

/// Header fields as an object: several of one name are an array.
fn fields(headers: &Headers, names: &[String]) -> Value {
    let mut object = Map::new();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name);
        let named = names.iter().find(|named| named.eq_ignore_ascii_case(&name));
        let key = named.map_or_else(|| name.to_ascii_lowercase(), String::clone);
        add(&mut object, key, Value::String(String::from_utf8_lossy(value).into_owned()));
    }
    Value::Object(object)
}

/// The arguments of a form as an object; one without `=` is `true`, as in `ngx.decode_args`.
fn arguments(body: &[u8]) -> Value {
    let mut object = Map::new();
    for part in body.split(|byte| *byte == b'&').filter(|part| !part.is_empty()) {
        match part.iter().position(|byte| *byte == b'=') {
            Some(0) => {}
            Some(at) => {
                add(&mut object, decoded(&part[..at]), Value::String(decoded(&part[at + 1..])))
            }
            None => add(&mut object, decoded(part), Value::Bool(true)),
        }
    }
    Value::Object(object)
}

fn decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, digit(at + 1).zip(digit(at + 2))) {
            (b'%', Some((high, low))) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    match String::from_utf8_lossy(&out) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    }
}

fn add(object: &mut Map<String, Value>, key: String, value: Value) {
    match object.get_mut(&key) {
        None => drop(object.insert(key, value)),
        Some(Value::Array(several)) => several.push(value),
        Some(one) => *one = json!([one.take(), value]),
    }
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    header_schema: Option<Value>,
    body_schema: Option<Value>,
    max_req_body_size: u64,
    rejected_code: u16,
    rejected_msg: Option<String>,
}

/// How deep a schema is looked through for malformed lists.
const DEPTH_MAX: usize = 64;

const FORM: &[u8] = b"application/x-www-form-urlencoded";

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn a_body_is_held_against_its_schema_and_goes_on_as_it_was_read() {
        let schema = json!({
            "type": "object", "required": ["a"],
            "properties": {"a": {"type": "integer"}, "d": {"type": "string", "default": "x"}},
        });
        let config = json!({"body_schema": schema});
        let form = "application/x-www-form-urlencoded; charset=utf-8";
        let text = json!({"body_schema": {"type": "object", "required": ["a b"], "properties": {
            "a b": {"type": "string", "enum": ["c d"]}, "l": {"type": "array"}, "t": {"type": "boolean"},
        }}});
        for (config, kind, body, status, answer) in [
            (&config, "application/json", "{\"a\":1,\"a\":2}", 200, "{\"a\":2,\"d\":\"x\"}"),
            (&config, "", "{\"a\":1,\"d\":\"y\"}", 200, "{\"a\":1,\"d\":\"y\"}"),
            (&config, "application/json", "{}", 400, "property \"a\" is required"),
            (
                &config,
                "application/json",
                "{\"a\":\"1\"}",
                400,
                "property \"a\" validation failed: wrong type: expected integer, got string",
            ),
            (&config, "application/json", "", 400, "<html>"),
            (&config, "application/json", "{", 400, "EOF while parsing"),
            (&text, form, "a+b=c%20d&l=1&l=2&t", 200, "a+b=c%20d&l=1&l=2&t"),
            (&text, form, "a=c", 400, "property \"a b\" is required"),
        ] {
            let kind = Some(kind).filter(|kind| !kind.is_empty());
            let ran = PluginTest::<RequestValidation>::new()
                .config(config.clone())
                .request("POST", "/")
                .request_header("Content-Type", kind)
                .request_body(body)
                .run();
            assert_eq!(ran.status, status, "{body}");
            if status == 200 {
                assert_eq!(String::from_utf8_lossy(&ran.sent().body), answer);
            } else {
                assert!(ran.body().starts_with(answer), "{body}: {}", ran.body());
            }
        }
    }

    #[test]
    fn header_fields_go_by_the_schema_s_names() {
        let config = json!({
            "header_schema": {"type": "object", "required": ["X-Must"], "properties": {"X-Must": {"enum": ["a", ["a", "b"]]}}},
            "rejected_code": 422,
        });
        for (values, status) in
            [(vec!["a"], 200), (vec!["a", "b"], 200), (vec!["b"], 422), (vec![], 422)]
        {
            let mut test = PluginTest::<RequestValidation>::new().config(config.clone());
            for value in &values {
                test = test.request_header("x-must", Some(value));
            }
            let ran = test.run();
            assert_eq!(ran.status, status, "{values:?}");
            if values.is_empty() {
                assert_eq!(ran.body(), "property \"X-Must\" is required");
            }
        }
    }

    #[test]
    fn a_body_at_the_limit_is_read_and_one_past_it_is_not() {
        let config = json!({"body_schema": {"type": "object"}, "max_req_body_size": 4, "rejected_msg": "no"});
        for (body, status) in [("{  }", 200), ("{   }", 400)] {
            let ran = PluginTest::<RequestValidation>::new()
                .config(config.clone())
                .request("POST", "/")
                .request_body(body)
                .run();
            assert_eq!(ran.status, status, "{body}");
            assert!(status == 200 || ran.body() == "no");
        }
    }

    #[test]
    fn two_content_types_are_one_too_many() {
        let ran = PluginTest::<RequestValidation>::new()
            .config(json!({"body_schema": {"type": "object"}}))
            .request("POST", "/")
            .request_header("Content-Type", Some("application/json"))
            .request_header("Content-Type", Some("application/x-www-form-urlencoded"))
            .request_body("{}")
            .run();
        assert_eq!(ran.status, 400);
        assert!(ran.sent.is_empty());
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<RequestValidation>::check_schema(&json!({"body_schema": {}}));
        for config in [
            json!({}),
            json!({"body_schema": {"type": "objject"}}),
            json!({"body_schema": {"properties": {"a": {"enum": "x"}}}}),
            json!({"header_schema": {"required": "x"}}),
            json!({"header_schema": {"properties": {"a": {"type": "x"}}}}),
            json!({"body_schema": {}, "rejected_code": 600}),
        ] {
            assert!(!crate::tests::refusal::<RequestValidation>(&config).is_empty());
        }
    }
}

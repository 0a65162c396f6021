//! `mocking`: answer with an example, or with random data that follows a schema, instead of an upstream.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/mocking/>

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::core::Core;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::fault_injection::DELAY_MAX;
use crate::headers::text_of;
use crate::template::Template;

/// The plugin, compiled.
pub struct Mocking {
    delay: Duration,
    status: StatusCode,
    content_type: String,
    body: MockBody,
    mark: bool,
    headers: Vec<(String, Template)>,
}

enum MockBody {
    Example(Template),
    Json(Value),
    Xml(Value),
    /// A schema for a type that data cannot be written in.
    Nothing,
}

impl Plugin for Mocking {
    const NAME: &'static str = "mocking";
    const PRIORITY: i32 = 10900;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "delay": {"type": "integer", "default": 0},
                "response_status": {"type": "integer", "default": 200, "minimum": 100},
                "content_type": {"type": "string", "default": "application/json;charset=utf8"},
                "response_example": {"type": "string"},
                "response_schema": {"type": "object"},
                "with_mock_header": {"type": "boolean", "default": true},
                "response_headers": {
                    "type": "object",
                    "minProperties": 1,
                    "patternProperties": {
                        "^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]},
                    },
                },
            },
            "anyOf": [{"required": ["response_example"]}, {"required": ["response_schema"]}],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let kind =
            config.content_type.rsplit_once(';').map_or(&*config.content_type, |(kind, _)| kind);
        let body = match (config.response_example, config.response_schema, kind) {
            (
                Some(example),
                _,
                "application/xml" | "application/json" | "text/plain" | "text/html" | "text/xml",
            ) => MockBody::Example(Template::compile(&example)),
            (None, Some(schema), "application/json" | "text/plain") => MockBody::Json(schema),
            (None, Some(schema), "application/xml" | "text/xml") => MockBody::Xml(schema),
            (None, _, "text/html") => MockBody::Nothing,
            _ => return Err(ConfigError("unsupported content type!".to_owned())),
        };
        if let MockBody::Json(schema) | MockBody::Xml(schema) = &body {
            let mut members = 0;
            count(schema, 0, &mut members)?;
        }
        let delay = Duration::from_secs(u64::try_from(config.delay).unwrap_or(0));
        if delay > DELAY_MAX {
            // Differs: APISIX takes any time.
            let text = format!("`delay` {} is over {} seconds", config.delay, DELAY_MAX.as_secs());
            return Err(ConfigError(text));
        }
        let fields = config.response_headers.iter().flatten();
        Ok(Self {
            delay,
            status: crate::answers::status("response_status", config.response_status)?,
            content_type: config.content_type,
            body,
            mark: config.with_mock_header,
            headers: fields
                .map(|(name, value)| (name.clone(), Template::compile(&text_of(value))))
                .collect(),
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let core = &exchange.core;
        let body = match &self.body {
            MockBody::Example(example) => example.render(exchange).into_owned(),
            MockBody::Json(schema) => object(schema, core).to_string().into_bytes(),
            MockBody::Xml(schema) => {
                let mut text = String::new();
                xml("data", &object(schema, core), &mut text);
                text.into_bytes()
            }
            MockBody::Nothing => Vec::new(),
        };
        let mut response = Response::text(self.status, body);
        response.headers.set("Content-Type", self.content_type.as_bytes());
        if self.mark {
            response.headers.append("x-mock-by", exchange.settings.server.as_bytes());
        }
        for (name, value) in &self.headers {
            response.headers.append(name, &value.render(exchange));
        }
        Ok(Flow::Respond(response))
    }
}

/// Refuses a schema that would make more data than is good for a gateway.
fn count(schema: &Value, depth: usize, members: &mut usize) -> Result<(), ConfigError> {
    *members += 1;
    if depth > DEPTH_MAX || *members > MEMBERS_MAX {
        let text = format!("`response_schema` is over {MEMBERS_MAX} members or {DEPTH_MAX} levels");
        return Err(ConfigError(text));
    }
    if let Some(items) = schema.get("items") {
        count(items, depth + 1, members)?;
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().try_for_each(|(_, one)| count(one, depth + 1, members))
}

fn random(core: &Core, below: u32) -> u32 {
    let mut raw = [0; 4];
    core.random(&mut raw);
    ((u64::from(u32::from_be_bytes(raw)) * u64::from(below)) >> 32) as u32
}

/// An object that follows a schema.
fn object(schema: &Value, core: &Core) -> Value {
    let properties = schema.get("properties").and_then(Value::as_object);
    let members = properties.into_iter().flatten();
    let members = members.filter_map(|(name, schema)| Some((name.clone(), value(schema, core)?)));
    Value::Object(members.collect())
}

/// A value that follows a schema: its example, if that is of its type, or a random one.
fn value(schema: &Value, core: &Core) -> Option<Value> {
    let example = &schema["example"];
    Some(match schema["type"].as_str()?.to_ascii_lowercase().as_str() {
        "object" => object(schema, core),
        "array" => {
            let items = schema.get("items")?;
            (0..1 + random(core, 3)).filter_map(|_| value(items, core)).collect()
        }
        "string" if example.is_string() => example.clone(),
        "string" => {
            let letter = |_| char::from(b'a' + random(core, 26) as u8);
            Value::String((0..1 + random(core, 10)).map(letter).collect())
        }
        "number" if example.is_number() => example.clone(),
        "number" => json!(f64::from(random(core, u32::MAX)) / f64::from(u32::MAX) * 10_000.0),
        "integer" => match example.as_f64() {
            Some(number) => json!(number.floor() as i64),
            None => json!(1 + random(core, 10_000)),
        },
        "boolean" if example.is_boolean() => example.clone(),
        "boolean" => json!(random(core, 2) == 1),
        _ => return None,
    })
}

/// Writes a value as an XML element; the items of an array as one element each.
fn xml(name: &str, value: &Value, out: &mut String) {
    if let Value::Array(items) = value {
        return items.iter().for_each(|item| xml(name, item, out));
    }
    out.push_str(&format!("<{name}>"));
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| xml(name, value, out));
        }
        Value::String(text) => {
            for c in text.chars() {
                match c {
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '&' => out.push_str("&amp;"),
                    c => out.push(c),
                }
            }
        }
        other => out.push_str(&other.to_string()),
    }
    out.push_str(&format!("</{name}>"));
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    delay: i64,
    response_status: u16,
    content_type: String,
    response_example: Option<String>,
    response_schema: Option<Value>,
    with_mock_header: bool,
    response_headers: Option<Map<String, Value>>,
}

/// Limits of a `response_schema`.
const DEPTH_MAX: usize = 8;
const MEMBERS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn an_example_is_sent_with_its_variables() {
        let ran = PluginTest::<Mocking>::new()
            .config(json!({
                "response_example": "{\"a\":$arg_x}", "response_status": 201,
                "content_type": "application/json", "response_headers": {"X-M": 1, "X-H": "$host"},
            }))
            .request("GET", "/?x=5")
            .run();
        assert_eq!((ran.status, ran.body().as_str()), (201, "{\"a\":5}"));
        for (name, value) in [
            ("content-type", "application/json"),
            ("x-mock-by", "Sluicegate"),
            ("x-m", "1"),
            ("x-h", "gate.test"),
        ] {
            assert_eq!(ran.response.header(name), Some(value), "{name}");
        }
        assert!(ran.sent.is_empty());
    }

    #[test]
    fn data_follows_a_schema() {
        let schema = json!({"properties": {
            "s": {"type": "string", "example": "<a>"}, "r": {"type": "string"},
            "n": {"type": "number", "example": 2.5}, "i": {"type": "integer", "example": 2.5},
            "b": {"type": "boolean", "example": false}, "x": {"type": "unknown"},
            "l": {"type": "array", "items": {"type": "integer"}}, "e": {"type": "array"},
            "o": {"type": "object", "properties": {"k": {"type": "boolean", "example": true}}},
        }});
        let test = |kind: &str| {
            let config =
                json!({"response_schema": schema, "content_type": kind, "with_mock_header": false});
            PluginTest::<Mocking>::new().config(config).run()
        };
        let ran = test("application/json;charset=utf8");
        let json = ran.response.json();
        assert_eq!(
            (&json["s"], &json["n"], &json["i"], &json["b"]),
            (&json!("<a>"), &json!(2.5), &json!(2), &json!(false))
        );
        assert!(matches!(json["r"].as_str().unwrap().len(), 1..=10));
        assert!(
            json["l"].as_array().unwrap().iter().all(|n| matches!(n.as_u64(), Some(1..=10_000)))
        );
        assert_eq!((json.get("x"), json.get("e"), &json["o"]), (None, None, &json!({"k": true})));
        assert_eq!(ran.response.header("x-mock-by"), None);
        let text = test("text/xml").body();
        assert!(
            text.starts_with("<data><s>&lt;a&gt;</s><r>")
                && text.ends_with("<o><k>true</k></o></data>"),
            "{text}"
        );
        assert_eq!(test("text/html").body(), "");
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<Mocking>::check_schema(&json!({"response_example": "a"}));
        let mut deep = json!({"type": "string"});
        for _ in 0..9 {
            deep = json!({"type": "array", "items": deep});
        }
        for (config, error) in [
            (json!({"response_example": "a", "content_type": "a/b"}), "unsupported content type!"),
            (
                json!({"response_schema": deep}),
                "`response_schema` is over 1000 members or 8 levels",
            ),
            (
                json!({"response_example": "a", "delay": 86401}),
                "`delay` 86401 is over 86400 seconds",
            ),
            (json!({}), "object matches none of the required"),
        ] {
            let said = crate::tests::refusal::<Mocking>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

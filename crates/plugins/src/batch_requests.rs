//! `batch-requests`: several requests in one, at `/apisix/batch-requests` through `public-api`.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/batch-requests/>
//!
//! APISIX sends them to itself on a connection; here each passes router, plugins and log in the same
//! process, one after the other.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::body::BodyError;
use sluicegate_gateway::exchange::{Exchange, Response, Version};
use sluicegate_gateway::http::headers::Headers;
use sluicegate_gateway::page;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Phases, Plugin, PluginError};
use sluicegate_gateway::subrequest::{self, Inner, SubRequest, SubResponse};
use sluicegate_model::schema::Schema;

use crate::headers::text_of;

/// The plugin: it does nothing on a route of its own.
pub struct BatchRequests;

impl Plugin for BatchRequests {
    const NAME: &'static str = "batch-requests";
    const PRIORITY: i32 = 4010;
    const PHASES: Phases = Phases::NONE;
    type Config = Map<String, Value>;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                "max_body_size": {"type": "integer", "exclusiveMinimum": 0, "default": BODY_BYTES_MAX},
                "max_pipeline_items": {"type": "integer", "exclusiveMinimum": 0, "default": ITEMS_MAX},
            },
        }))
    }

    fn compile(_: Self::Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

/// Answers the API.
pub(crate) async fn serve(
    exchange: &mut Exchange,
    metadata: Option<&Value>,
) -> Result<Response, PluginError> {
    let limit = |name: &str, default: u64| {
        metadata.and_then(|metadata| metadata[name].as_u64()).unwrap_or(default)
    };
    // Differs: in APISIX a batch may hold batches, as deep as it likes.
    if exchange.notes.get::<Inner>().is_some() {
        return Ok(refuse(StatusCode::BAD_REQUEST, "a batch cannot hold a batch".to_owned()));
    }
    let body_max = limit("max_body_size", BODY_BYTES_MAX);
    let announced = exchange.request.body.remaining();
    let body = match exchange.peek_body(body_max).await {
        Ok(Some(body)) => body,
        Ok(None) => {
            // A body in chunks is not read to its end, so nobody knows how long it is.
            let size = announced.map(|size| format!(" {size}")).unwrap_or_default();
            let text =
                format!("request size{size} is greater than the maximum size {body_max} allowed");
            return Ok(refuse(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Err(error) => {
            let status = match error {
                BodyError::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
                BodyError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
                _ => StatusCode::BAD_REQUEST,
            };
            return Err(PluginError { status, cause: error.to_string() });
        }
    };
    let batch = match Batch::read(&body, limit("max_pipeline_items", ITEMS_MAX)) {
        Ok(batch) => batch,
        Err(text) => return Ok(refuse(StatusCode::BAD_REQUEST, text)),
    };
    let mut answers = Vec::with_capacity(batch.pipeline.len());
    let mut left = ANSWER_BYTES_MAX;
    for item in &batch.pipeline {
        let Some(request) = batch.request(item, exchange) else {
            let text = format!("request failed: the path {:?} cannot be sent", item.path);
            return Ok(refuse(StatusCode::BAD_REQUEST, text));
        };
        let running = subrequest::run(exchange, request, left);
        answers.push(match tokio::time::timeout(batch.timeout, running).await {
            Err(_) => json!({"status": 504, "reason": "upstream timeout"}),
            Ok(None) => {
                let text = format!("request failed: the path {:?} cannot be sent", item.path);
                return Ok(refuse(StatusCode::BAD_REQUEST, text));
            }
            Ok(Some(answer)) => {
                if let Some(Ok(body)) = &answer.body {
                    left = left.saturating_sub(body.len() as u64);
                }
                told(answer)
            }
        });
    }
    let mut response = Response::message(StatusCode::OK, &Value::Array(answers));
    response.headers.set("Content-Type", b"application/json");
    Ok(response)
}

/// A batch, as its sender wrote it.
#[derive(Debug, Deserialize)]
struct Batch {
    #[serde(default)]
    query: Map<String, Value>,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(skip)]
    timeout: Duration,
    pipeline: Vec<Item>,
}

/// A request of a batch.
#[derive(Debug, Deserialize)]
struct Item {
    version: f64,
    method: String,
    path: String,
    #[serde(default)]
    query: Map<String, Value>,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(default)]
    body: String,
}

impl Batch {
    fn read(body: &[u8], items_max: u64) -> Result<Self, String> {
        if body.is_empty() {
            let text = "no request body, you should give at least one pipeline setting";
            return Err(text.to_owned());
        }
        let invalid = |error: serde_json::Error| {
            let sent = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]);
            format!("invalid request body: {sent}, err: {error}")
        };
        let mut value: Value = serde_json::from_slice(body).map_err(invalid)?;
        SCHEMA.check_and_fill(&mut value).map_err(|error| format!("bad request body: {error}"))?;
        let items = value["pipeline"].as_array().map_or(0, Vec::len);
        if items as u64 > items_max {
            return Err(format!(
                "too many pipeline requests, {items} exceeds the maximum of {items_max}"
            ));
        }
        let timeout = value["timeout"].as_u64().unwrap_or_default();
        let mut batch: Self =
            serde_json::from_value(value).map_err(|error| format!("bad request body: {error}"))?;
        batch.timeout = Duration::from_millis(timeout).min(TIMEOUT_MAX);
        Ok(batch)
    }

    /// A request as it is sent: its own fields and arguments before those of the batch, and these
    /// before the fields of the request that brought it.
    fn request(&self, item: &Item, outer: &Exchange) -> Option<SubRequest> {
        let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
        for group in [&item.headers, &self.headers] {
            let before = fields.len();
            for (name, value) in group {
                let name = name.to_ascii_lowercase();
                if !fields[..before].iter().any(|(known, _)| *known == name) {
                    each(value, |value| fields.push((name.clone(), value.into_bytes())));
                }
            }
        }
        let before = fields.len();
        for (name, value) in outer.request.headers.iter() {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            let known = fields[..before].iter().any(|(known, _)| *known == name);
            if !known && !name.starts_with("content-") {
                fields.push((name, value.to_vec()));
            }
        }
        // The client of the batch is the client of each of its requests, whatever they say.
        let real_ip = &outer.settings.real_ip.header;
        if !real_ip.is_empty() {
            fields.retain(|(name, _)| name != real_ip);
            fields.push((real_ip.clone(), outer.remote_addr.to_string().into_bytes()));
        }
        let mut target = item.path.clone().into_bytes();
        let mut mark = if item.path.contains('?') { b'&' } else { b'?' };
        let common = self.query.iter().filter(|(name, _)| !item.query.contains_key(*name));
        for (name, value) in item.query.iter().chain(common) {
            each(value, |value| {
                target.push(mark);
                escape(name, &mut target);
                target.push(b'=');
                escape(&value, &mut target);
                mark = b'&';
            });
        }
        Some(SubRequest {
            method: Method::from_bytes(item.method.as_bytes()).ok()?,
            version: if item.version < 1.05 { Version::Http10 } else { Version::Http11 },
            target,
            fields,
            body: Bytes::from(item.body.clone()),
        })
    }
}

/// A value, or each of several, as text.
fn each(value: &Value, mut take: impl FnMut(String)) {
    match value {
        Value::Array(several) => several.iter().for_each(|one| take(text_of(one))),
        one => take(text_of(one)),
    }
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => out.push(byte),
            _ => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
}

/// An answer as the batch's sender reads it.
fn told(answer: SubResponse) -> Value {
    let mut told = json!({
        "status": answer.status.as_u16(),
        "reason": page::reason(answer.status),
        "headers": headers(&answer.headers),
    });
    match answer.body {
        None => {}
        // Differs: APISIX writes bytes that are not UTF-8 into JSON as they are.
        Some(Ok(body)) => told["body"] = json!(String::from_utf8_lossy(&body)),
        Some(Err(error)) => told["read_body_err"] = json!(error.to_string()),
    }
    told
}

fn headers(headers: &Headers) -> Value {
    let mut object = Map::new();
    for (name, value) in headers.iter() {
        let value = Value::String(String::from_utf8_lossy(value).into_owned());
        match object.get_mut(&*String::from_utf8_lossy(name)) {
            Some(Value::Array(several)) => several.push(value),
            Some(one) => *one = json!([one.take(), value]),
            None => drop(object.insert(String::from_utf8_lossy(name).into_owned(), value)),
        }
    }
    Value::Object(object)
}

fn refuse(status: StatusCode, text: String) -> Response {
    let mut response = Response::message(status, &json!({"error_msg": text}));
    response.headers.set("Content-Type", b"application/json");
    response
}

/// What a batch looks like.
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let methods =
        ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"];
    let schema = json!({
        "type": "object",
        "properties": {
            "query": {"type": "object"},
            "headers": {"type": "object"},
            "timeout": {"type": "integer", "minimum": 1, "default": 30000},
            "pipeline": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "version": {"type": "number", "enum": [1.0, 1.1], "default": 1.1},
                        "method": {"type": "string", "enum": methods, "default": "GET"},
                        "path": {"type": "string", "minLength": 1},
                        "query": {"type": "object"},
                        "headers": {"type": "object"},
                        "body": {"type": "string"},
                        "ssl_verify": {"type": "boolean", "default": false},
                    },
                    "required": ["path"],
                },
            },
        },
        "anyOf": [{"required": ["pipeline"]}],
    });
    Schema::compile(&schema).expect("the schema of a batch compiles")
});

/// Bytes of a batch and requests in it, unless the metadata says otherwise.
const BODY_BYTES_MAX: u64 = 1 << 20;
const ITEMS_MAX: u64 = 1000;

/// Bytes of all answers' bodies together.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The most that one request may take, whatever the batch says.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Bytes of a malformed batch that are shown to its sender.
const SHOWN_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_read_with_their_defaults() {
        let batch = Batch::read(br#"{"pipeline":[{"path":"/a"}]}"#, 1).unwrap();
        assert_eq!(
            (batch.timeout, batch.pipeline[0].method.as_str()),
            (Duration::from_secs(30), "GET")
        );
        for (body, error) in [
            ("", "no request body, you should give at least one pipeline setting"),
            ("{", "invalid request body: {, err: "),
            ("{}", "bad request body: object matches none of the required: [\"pipeline\"]"),
            (
                r#"{"pipeline":[{"path":"/a"},{"path":"/b"}]}"#,
                "too many pipeline requests, 2 exceeds the maximum of 1",
            ),
            (
                r#"{"pipeline":[{"path":""}]}"#,
                "bad request body: property \"pipeline\" validation failed",
            ),
            (
                r#"{"pipeline":[{"path":"/a","x":1}]}"#,
                "bad request body: property \"pipeline\" validation failed",
            ),
        ] {
            let said = Batch::read(body.as_bytes(), 1).unwrap_err();
            assert!(said.starts_with(error), "{body}: {said}");
        }
    }
}

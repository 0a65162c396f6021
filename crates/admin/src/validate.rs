//! `POST /apisix/admin/configs/validate`: a whole configuration, as a file would hold it, is checked
//! without being stored.
//!
//! Every resource is checked as if it were written alone, but what it refers to need not exist: it
//! may be part of the same configuration.

use std::collections::HashSet;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use serde_json::{Map, Value, json};
use sluicegate_model::{
    Kind,
    resource::{Key, id_text},
};
use sluicegate_store::yaml;

use crate::{
    AdminState, Settings,
    answer::{Answer, Content},
    checks::{Others, check, type_name},
    handle::{malformed, parse, read_body},
};

/// The body, JSON or YAML.
pub(crate) async fn body(
    settings: &Settings,
    headers: &HeaderMap,
    body: Body,
) -> Result<Value, Answer> {
    let bytes = read_body(settings, headers, body).await?;
    let invalid = |why: &str| Answer::refused(format!("invalid request body: {why}"));
    if bytes.is_empty() {
        return Err(invalid("empty request body"));
    }
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if content_type.starts_with(b"application/yaml") {
        let text = std::str::from_utf8(&bytes).ok();
        let value = text.and_then(|text| yaml::read(text).ok());
        let table = value.filter(|value| value.is_object() || value.is_array());
        return table.ok_or_else(|| invalid("invalid yaml request body"));
    }
    parse(&bytes).map_err(|error| invalid(&malformed(&bytes, &error)))
}

/// The answer about a whole configuration.
pub(crate) async fn configuration(state: &AdminState, all: &Value) -> Result<Answer, Answer> {
    let errors = match all {
        Value::Object(all) => problems(state, all).await,
        Value::Array(empty) if empty.is_empty() => Vec::new(),
        other => {
            let text = format!("wrong type: expected object, got {}", type_name(other));
            vec![json!({ "error": text })]
        }
    };
    if errors.is_empty() {
        return Ok(Answer::json(StatusCode::OK, json!({})));
    }
    let body = json!({"error_msg": "Configuration validation failed", "errors": errors});
    Err(Answer::json(StatusCode::BAD_REQUEST, body))
}

/// Everything that is wrong with a configuration.
async fn problems(state: &AdminState, all: &Map<String, Value>) -> Vec<Value> {
    let mut problems = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.parent().is_none()) {
        let name = kind.plural();
        let version = format!("{name}_conf_version");
        if let Some(found) = all.get(&version).filter(|found| !found.is_number()) {
            problems.push(json!({
                "resource_type": name,
                "error": format!("{version} must be a number, got {}", type_name(found)),
            }));
        }
        let items = match all.get(name) {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null | Value::Object(_)) => continue,
            Some(other) => {
                let error = format!("wrong type: expected array, got {}", type_name(other));
                problems.push(json!({"resource_type": name, "error": error}));
                continue;
            }
        };
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let mut report = |error: String| {
                let id = item.get("id").or_else(|| item.get("username"));
                problems.push(json!({
                    "resource_type": name,
                    "resource_id": id.cloned().unwrap_or_else(|| "".into()),
                    "index": index,
                    "error": error,
                }));
            };
            if let Err(error) = check_item(state, kind, item).await {
                report(error);
            }
            if let Some(error) = duplicate(kind, item, &mut seen) {
                report(error);
            }
        }
    }
    problems
}

/// Checks one resource of a configuration.
async fn check_item(state: &AdminState, kind: Kind, item: &Value) -> Result<(), String> {
    let id = item.get("id").and_then(id_text).unwrap_or_default();
    if !item.is_object() {
        return Err(format!("wrong type: expected object, got {}", type_name(item)));
    }
    if kind == Kind::PluginMetadata && id.is_empty() {
        return Err("missing plugin name".to_owned());
    }
    let kind = match kind {
        Kind::Consumers if id.contains("/credentials/") => Kind::Credentials,
        _ => kind,
    };
    let checked = check(state, &Key::new(kind, id), item, Others::MayCome).await;
    checked.map_err(|refusal| match &refusal.content {
        Content::Json(body) => body["error_msg"].as_str().unwrap_or_default().to_owned(),
        _ => "refused".to_owned(),
    })
}

fn duplicate(kind: Kind, item: &Value, seen: &mut HashSet<String>) -> Option<String> {
    let id = item.get("id").and_then(id_text);
    let (word, name) = match (kind, id) {
        (Kind::Consumers, Some(id)) => ("credential id", id),
        (Kind::Consumers, None) => ("username", item.get("username").and_then(id_text)?),
        (_, id) => ("id", id?),
    };
    let text = format!("found duplicate {word} {name} in {}", kind.plural());
    (!seen.insert(name)).then_some(text)
}

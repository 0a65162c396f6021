//! What several schemas are made of.

use serde_json::{Map, Value, json};

/// Starts a resource's properties with what nearly all have.
pub(super) fn metadata(name: bool) -> Map<String, Value> {
    let mut properties = Map::new();
    properties.insert("id".to_owned(), id());
    if name {
        properties.insert("name".to_owned(), self::name());
    }
    properties.insert("desc".to_owned(), json!({"type": "string", "maxLength": 256}));
    properties.insert("labels".to_owned(), labels());
    add_times(&mut properties);
    properties
}

pub(super) fn add_times(properties: &mut Map<String, Value>) {
    for name in ["create_time", "update_time"] {
        properties.insert(name.to_owned(), json!({"type": "integer"}));
    }
}

/// Adds the members of a JSON object.
pub(super) fn add(properties: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        properties.extend(more);
    }
}

pub(super) fn id() -> Value {
    json!({"anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[a-zA-Z0-9-_.]+$"},
        {"type": "integer", "minimum": 1},
    ]})
}

pub(super) fn name() -> Value {
    json!({"type": "string", "maxLength": 256, "minLength": 1})
}

fn labels() -> Value {
    json!({
        "type": "object",
        "patternProperties": {
            ".*": {"type": "string", "pattern": r"^\S+$", "maxLength": 256, "minLength": 1},
        },
    })
}

pub(super) fn plugins() -> Value {
    json!({"type": "object"})
}

pub(super) const HOST_PATTERN: &str = r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$";

pub(super) fn host() -> Value {
    json!({"type": "string", "pattern": HOST_PATTERN})
}

pub(super) fn hosts() -> Value {
    json!({"type": "array", "items": host(), "minItems": 1, "uniqueItems": true})
}

pub(super) fn method() -> Value {
    json!({
        "type": "string",
        "enum": ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"],
    })
}

/// An address or a network, either family.
pub(super) fn remote_addr() -> Value {
    let octet = "([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])";
    let ipv4 = [octet; 4].join(r"\.");
    let ipv6 = "([a-fA-F0-9]{0,4}:){1,8}(:[a-fA-F0-9]{0,4}){0,8}([a-fA-F0-9]{0,4})?";
    json!({"type": "string", "anyOf": [
        {"title": "IPv4", "type": "string", "format": "ipv4"},
        {"title": "IPv4/CIDR", "type": "string", "pattern": format!("^{ipv4}/([12]?[0-9]|3[0-2])$")},
        {"title": "IPv6", "type": "string", "format": "ipv6"},
        {"title": "IPv6/CIDR", "type": "string", "pattern": format!("^{ipv6}/[0-9]{{1,3}}$")},
    ]})
}

/// Seconds, all three or none.
pub(super) fn timeout() -> Value {
    let seconds = json!({"type": "number", "exclusiveMinimum": 0});
    json!({
        "type": "object",
        "properties": {"read": seconds, "connect": seconds, "send": seconds},
        "required": ["connect", "send", "read"],
    })
}

pub(super) fn certificate() -> Value {
    json!({"type": "string", "minLength": 128, "maxLength": 64 * 1024})
}

pub(super) fn private_key() -> Value {
    json!({"type": "string", "minLength": 64, "maxLength": 64 * 1024})
}

pub(super) fn script() -> Value {
    json!({"type": "string", "minLength": 10, "maxLength": 102_400})
}

pub(super) fn uri() -> Value {
    json!({"type": "string", "pattern": r"^[^\/]+:\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?"})
}

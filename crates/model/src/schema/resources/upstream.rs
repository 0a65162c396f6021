//! `upstreams`, also as `upstream` inside routes, services and stream routes.

use serde_json::{Value, json};

use super::common::{add, certificate, host, id, metadata, method, private_key, timeout};

pub(crate) fn upstream() -> Value {
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({
            "nodes": nodes(),
            "retries": {"type": "integer", "minimum": 0},
            "retry_timeout": {"type": "number", "minimum": 0},
            "timeout": timeout(),
            "tls": tls(),
            "keepalive_pool": {
                "type": "object",
                "properties": {
                    "size": {"type": "integer", "default": 320, "minimum": 1},
                    "idle_timeout": {"type": "number", "default": 60, "minimum": 0},
                    "requests": {"type": "integer", "default": 1000, "minimum": 1},
                },
            },
            // Any name is taken here; an unknown one fails when a balancer is made of it.
            "type": {"type": "string", "default": "roundrobin"},
            "checks": checks(),
            "hash_on": {
                "type": "string",
                "default": "vars",
                "enum": ["vars", "header", "cookie", "consumer", "vars_combinations"],
            },
            "key": {"type": "string"},
            "scheme": {
                "default": "http",
                "enum": ["grpc", "grpcs", "http", "https", "tcp", "tls", "udp", "kafka"],
            },
            "discovery_type": {"type": "string"},
            "discovery_args": {
                "type": "object",
                "properties": {"namespace_id": {"type": "string"}, "group_name": {"type": "string"}},
            },
            "pass_host": {"type": "string", "enum": ["pass", "node", "rewrite"], "default": "pass"},
            "upstream_host": host(),
            "service_name": {"type": "string", "maxLength": 256, "minLength": 1},
        }),
    );
    json!({
        "type": "object",
        "properties": properties,
        "oneOf": [{"required": ["nodes"]}, {"required": ["service_name", "discovery_type"]}],
        "additionalProperties": false,
    })
}

/// The schema of the key of `chash` by `vars`.
pub fn hash_vars() -> Value {
    json!({"type": "string", "pattern": concat!(
        "^((uri|server_name|server_addr|request_uri|remote_port|remote_addr",
        "|query_string|host|hostname|mqtt_client_id)|arg_[0-9a-zA-z_-]+)$",
    )})
}

/// The schema of the key of `chash` by `header` or `cookie`.
pub fn hash_header() -> Value {
    json!({"type": "string", "pattern": "^[a-zA-Z0-9-_]+$"})
}

/// The key of `chash` by `vars_combinations`.
pub(crate) fn hash_vars_combinations() -> Value {
    json!({"type": "string"})
}

/// `{"host:port": weight}` or a list.
fn nodes() -> Value {
    let weight = json!({"type": "integer", "minimum": 0});
    json!({"anyOf": [
        {"type": "object", "patternProperties": {".*": weight}},
        {"type": "array", "items": {
            "type": "object",
            "properties": {
                "host": host(),
                "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                "weight": weight,
                "priority": {"type": "integer", "default": 0},
                "metadata": {"type": "object"},
            },
            "required": ["host", "weight"],
        }},
    ]})
}

fn tls() -> Value {
    json!({
        "type": "object",
        "properties": {
            "client_cert_id": id(),
            "client_cert": certificate(),
            "client_key": private_key(),
            "verify": {"type": "boolean", "default": false},
        },
        "dependencies": {
            "client_cert": {"required": ["client_key"]},
            "client_key": {"required": ["client_cert"]},
            "client_cert_id": {"not": {"required": ["client_cert", "client_key"]}},
        },
    })
}

fn checks() -> Value {
    json!({
        "type": "object",
        "properties": {"active": active(), "passive": passive()},
        "anyOf": [{"required": ["active"]}, {"required": ["active", "passive"]}],
    })
}

fn active() -> Value {
    json!({
        "type": "object",
        "properties": {
            "type": checked_protocol(),
            "timeout": {"type": "number", "default": 1},
            "concurrency": {"type": "integer", "default": 10},
            "host": host(),
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "http_method": {"type": "string", "enum": method()["enum"], "default": "GET"},
            "http_path": {"type": "string", "default": "/"},
            "http_req_body": {"type": "string", "default": ""},
            "https_verify_certificate": {"type": "boolean", "default": true},
            "healthy": {"type": "object", "properties": {
                "interval": {"type": "integer", "minimum": 1, "default": 1},
                "http_statuses": statuses(&[200, 302]),
                "successes": count(1, 2),
            }},
            "unhealthy": {"type": "object", "properties": {
                "interval": {"type": "integer", "minimum": 1, "default": 1},
                "http_statuses": statuses(&[429, 404, 500, 501, 502, 503, 504, 505]),
                "http_failures": count(1, 5),
                "tcp_failures": count(1, 2),
                "timeouts": count(1, 3),
            }},
            "req_headers": {"type": "array", "minItems": 1, "items": {"type": "string", "uniqueItems": true}},
        },
    })
}

fn passive() -> Value {
    json!({
        "type": "object",
        "properties": {
            "type": checked_protocol(),
            "healthy": {"type": "object", "properties": {
                "http_statuses": statuses(&[
                    200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 306, 307, 308,
                ]),
                "successes": count(0, 5),
            }},
            "unhealthy": {"type": "object", "properties": {
                "http_statuses": statuses(&[429, 500, 503]),
                "tcp_failures": count(0, 2),
                "timeouts": count(0, 7),
                "http_failures": count(0, 5),
            }},
        },
    })
}

fn checked_protocol() -> Value {
    json!({"type": "string", "enum": ["http", "https", "tcp"], "default": "http"})
}

fn statuses(default: &[u16]) -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": 200, "maximum": 599},
        "uniqueItems": true,
        "default": default,
    })
}

fn count(minimum: u8, default: u8) -> Value {
    json!({"type": "integer", "minimum": minimum, "maximum": 254, "default": default})
}

//! The schema of how a Redis is reached, the same for all limits.

use serde_json::{Value, json};

/// Holds when `policy` is `name`.
pub(crate) fn policy_is(name: &str) -> Value {
    json!({"properties": {"policy": {"enum": [name]}}})
}

/// One Redis server; `key_ttl`: the field of that name, with this default.
pub(crate) fn redis(key_ttl: Option<u32>) -> Value {
    let own = json!({
        "redis_host": {"type": "string", "minLength": 2},
        "redis_port": {"type": "integer", "minimum": 1, "default": 6379},
        "redis_username": {"type": "string", "minLength": 1},
        "redis_password": {"type": "string", "minLength": 0},
        "redis_database": {"type": "integer", "minimum": 0, "default": 0},
        "redis_timeout": {"type": "integer", "minimum": 1, "default": 1000},
        "redis_ssl": {"type": "boolean", "default": false},
        "redis_ssl_verify": {"type": "boolean", "default": false},
    });
    with_pool(own, key_ttl, json!(["redis_host"]))
}

/// A Redis cluster; `key_ttl` as in [`redis`].
pub(crate) fn redis_cluster(key_ttl: Option<u32>) -> Value {
    let own = json!({
        "redis_cluster_nodes": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "minLength": 2, "maxLength": 100},
        },
        "redis_password": {"type": "string", "minLength": 0},
        "redis_timeout": {"type": "integer", "minimum": 1, "default": 1000},
        "redis_cluster_name": {"type": "string"},
        "redis_cluster_ssl": {"type": "boolean", "default": false},
        "redis_cluster_ssl_verify": {"type": "boolean", "default": false},
    });
    with_pool(own, key_ttl, json!(["redis_cluster_nodes", "redis_cluster_name"]))
}

/// A Redis server that sentinels know.
pub(crate) fn redis_sentinel() -> Value {
    json!({
        "properties": {
            "redis_sentinels": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "host": {"type": "string", "minLength": 2},
                        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                    },
                    "required": ["host", "port"],
                    "additionalProperties": false,
                },
            },
            "redis_master_name": {"type": "string", "minLength": 1},
            "redis_role": {"type": "string", "enum": ["master", "slave"], "default": "master"},
            "redis_connect_timeout": {"type": "integer", "minimum": 1, "default": 1000},
            "redis_read_timeout": {"type": "integer", "minimum": 1, "default": 1000},
            "redis_keepalive_timeout": {"type": "integer", "minimum": 1, "default": 60000},
            "redis_database": {"type": "integer", "minimum": 0, "default": 0},
            "redis_username": {"type": "string", "minLength": 1},
            "redis_password": {"type": "string", "minLength": 0},
            "sentinel_username": {"type": "string", "minLength": 1},
            "sentinel_password": {"type": "string", "minLength": 0},
        },
        "required": ["redis_sentinels", "redis_master_name"],
    })
}

fn with_pool(mut properties: Value, key_ttl: Option<u32>, required: Value) -> Value {
    properties["redis_keepalive_timeout"] =
        json!({"type": "integer", "minimum": 1000, "default": 10000});
    properties["redis_keepalive_pool"] = json!({"type": "integer", "minimum": 1, "default": 100});
    if let Some(seconds) = key_ttl {
        properties["key_ttl"] = json!({"type": "integer", "default": seconds});
    }
    json!({"properties": properties, "required": required})
}

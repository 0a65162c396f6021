//! `stream_routes`.

use serde_json::{Value, json};

use super::common::{HOST_PATTERN, add, id, metadata, plugins, remote_addr};
use super::upstream::upstream;

pub(crate) fn stream_route() -> Value {
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({
            "remote_addr": remote_addr(),
            "server_addr": remote_addr(),
            "server_port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "sni": {"type": "string", "pattern": HOST_PATTERN},
            "upstream": upstream(),
            "upstream_id": id(),
            "service_id": id(),
            "plugins": plugins(),
            "protocol": protocol(),
        }),
    );
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

fn protocol() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "superior_id": id(),
            "conf": {"type": "object"},
            "logger": {"type": "array", "items": {
                "properties": {
                    "name": {"type": "string"},
                    "filter": {"type": "array"},
                    "conf": {"type": "object"},
                },
                "dependencies": {"name": ["conf"]},
                "additionalProperties": false,
            }},
        },
        "required": ["name"],
    })
}

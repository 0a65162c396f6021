//! `routes`.

use serde_json::{Value, json};

use super::common::{
    add, host, hosts, id, metadata, method, plugins, remote_addr, script, timeout,
};
use super::upstream::upstream;

pub(crate) fn route() -> Value {
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({
            "uri": {"type": "string", "minLength": 1, "maxLength": 4096},
            "uris": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": true},
            "priority": {"type": "integer", "default": 0},
            "methods": {"type": "array", "items": method(), "uniqueItems": true},
            "host": host(),
            "hosts": hosts(),
            "remote_addr": remote_addr(),
            "remote_addrs": {"type": "array", "items": remote_addr(), "minItems": 1, "uniqueItems": true},
            "timeout": timeout(),
            "vars": {"type": "array"},
            "filter_func": {"type": "string", "minLength": 10, "pattern": "^function"},
            "script": script(),
            "script_id": id(),
            "plugins": plugins(),
            "plugin_config_id": id(),
            "upstream": upstream(),
            "service_id": id(),
            "upstream_id": id(),
            "enable_websocket": {"type": "boolean"},
            "status": {"type": "integer", "enum": [1, 0], "default": 1},
        }),
    );
    let served_by = |what: &str, uri: &str| json!({"required": [what, uri]});
    json!({
        "type": "object",
        "properties": properties,
        "allOf": [
            {"oneOf": [{"required": ["uri"]}, {"required": ["uris"]}]},
            one_or_none("host", "hosts"),
            one_or_none("remote_addr", "remote_addrs"),
        ],
        "anyOf": [
            served_by("plugins", "uri"),
            served_by("upstream", "uri"),
            served_by("upstream_id", "uri"),
            served_by("service_id", "uri"),
            served_by("plugins", "uris"),
            served_by("upstream", "uris"),
            served_by("upstream_id", "uris"),
            served_by("service_id", "uris"),
            served_by("script", "uri"),
            served_by("script", "uris"),
        ],
        "not": {"anyOf": [{"required": ["script", "plugins"]}, {"required": ["script", "plugin_config_id"]}]},
        "additionalProperties": false,
    })
}

fn one_or_none(one: &str, many: &str) -> Value {
    json!({"oneOf": [
        {"not": {"anyOf": [{"required": [one]}, {"required": [many]}]}},
        {"required": [one]},
        {"required": [many]},
    ]})
}

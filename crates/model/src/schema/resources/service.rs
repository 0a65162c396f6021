//! `services`.

use serde_json::{Value, json};

use super::common::{add, hosts, id, metadata, plugins, script};
use super::upstream::upstream;

pub(crate) fn service() -> Value {
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({
            "plugins": plugins(),
            "upstream": upstream(),
            "upstream_id": id(),
            "script": script(),
            "enable_websocket": {"type": "boolean"},
            "hosts": hosts(),
        }),
    );
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

//! `plugin_configs`.

use serde_json::{Value, json};

use super::common::{add, metadata, plugins};

pub(crate) fn plugin_config() -> Value {
    let mut properties = metadata(true);
    // Unlike everywhere else, the name may be empty or long.
    add(&mut properties, json!({"name": {"type": "string"}, "plugins": plugins()}));
    json!({
        "type": "object",
        "properties": properties,
        "required": ["id", "plugins"],
        "additionalProperties": false,
    })
}

//! `protos`.

use serde_json::{Value, json};

use super::common::{add, metadata};

pub(crate) fn proto() -> Value {
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({"content": {"type": "string", "minLength": 1, "maxLength": 1024 * 1024}}),
    );
    json!({
        "type": "object",
        "properties": properties,
        "required": ["content"],
        "additionalProperties": false,
    })
}

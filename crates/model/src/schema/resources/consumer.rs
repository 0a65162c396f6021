//! `consumers`, their `credentials`, and `consumer_groups`.

use serde_json::{Value, json};

use super::common::{add, id, metadata, plugins};

pub(crate) fn consumer() -> Value {
    let mut properties = metadata(false);
    add(
        &mut properties,
        json!({
            "username": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": r"^[a-zA-Z0-9_\-]+$"},
            "group_id": id(),
            "plugins": plugins(),
        }),
    );
    json!({
        "type": "object",
        "properties": properties,
        "required": ["username"],
        "additionalProperties": false,
    })
}

pub(crate) fn credential() -> Value {
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({
            // The long form is how a file of configuration names one: `jack/credentials/1`.
            "id": {"oneOf": [id(), {
                "type": "string",
                "minLength": 15,
                "maxLength": 128,
                "pattern": "^[a-zA-Z0-9-_]+/credentials/[a-zA-Z0-9-_.]+$",
            }]},
            "plugins": {"type": "object", "maxProperties": 1},
        }),
    );
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

pub(crate) fn consumer_group() -> Value {
    let mut properties = metadata(true);
    add(&mut properties, json!({"plugins": plugins()}));
    json!({
        "type": "object",
        "properties": properties,
        "required": ["id", "plugins"],
        "additionalProperties": false,
    })
}

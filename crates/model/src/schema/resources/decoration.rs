//! `graphql_cost_decorations` of a service: what a field of its GraphQL schema costs.

use serde_json::{Value, json};

use super::common::{add, id, metadata};

pub(crate) fn graphql_cost_decoration() -> Value {
    let name = "[A-Za-z_][A-Za-z0-9_]*";
    let value = json!({"type": "number", "minimum": 0, "default": 1});
    let arguments = json!({"type": "array", "items": {"type": "string", "minLength": 1}});
    let mut properties = metadata(true);
    add(
        &mut properties,
        json!({
            "service_id": id(),
            "field_path": {"type": "string", "pattern": format!(r"^{name}(\.{name})*$")},
            "add_value": value,
            "add_arguments": arguments,
            "mul_value": value,
            "mul_arguments": arguments,
        }),
    );
    json!({
        "type": "object",
        "properties": properties,
        "required": ["field_path"],
        "additionalProperties": false,
    })
}

//! `global_rules`.

use serde_json::{Map, Value, json};

use super::common::{add_times, id, plugins};

pub(crate) fn global_rule() -> Value {
    let mut properties = Map::new();
    properties.insert("id".to_owned(), id());
    add_times(&mut properties);
    properties.insert("plugins".to_owned(), plugins());
    json!({
        "type": "object",
        "properties": properties,
        "required": ["id", "plugins"],
        "additionalProperties": false,
    })
}

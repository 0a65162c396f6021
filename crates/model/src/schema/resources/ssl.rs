//! `ssls`.

use serde_json::{Value, json};

use super::common::{HOST_PATTERN, add, certificate, metadata, private_key};

pub(crate) fn ssl() -> Value {
    let sni = json!({"type": "string", "pattern": HOST_PATTERN});
    let mut properties = metadata(false);
    add(
        &mut properties,
        json!({
            "type": {"type": "string", "default": "server", "enum": ["server", "client"]},
            "key": private_key(),
            "cert": certificate(),
            "sni": sni,
            "snis": {"type": "array", "items": sni, "minItems": 1},
            "certs": {"type": "array", "items": certificate()},
            "keys": {"type": "array", "items": private_key()},
            "client": {
                "type": "object",
                "properties": {
                    "ca": certificate(),
                    "depth": {"type": "integer", "minimum": 0, "default": 1},
                    "skip_mtls_uri_regex": {
                        "type": "array",
                        "minItems": 1,
                        "uniqueItems": true,
                        "items": {"type": "string"},
                    },
                },
                "required": ["ca"],
            },
            "status": {"type": "integer", "enum": [1, 0], "default": 1},
            "ssl_protocols": {
                "type": "array",
                "maxItems": 3,
                "uniqueItems": true,
                "items": {"enum": ["TLSv1.1", "TLSv1.2", "TLSv1.3"]},
            },
        }),
    );
    json!({
        "type": "object",
        "properties": properties,
        "if": {"properties": {"type": {"enum": ["server"]}}},
        "then": {"oneOf": [{"required": ["sni", "key", "cert"]}, {"required": ["snis", "key", "cert"]}]},
        "else": {"required": ["key", "cert"]},
        "additionalProperties": false,
    })
}

//! What all resources share: ids, keys, and the form they are stored and shown in.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::kind::Kind;

/// A resource as the store holds it and the Admin API's `GET` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Prefix, kind and id: `/apisix/routes/1`.
    pub key: String,
    /// The resource as it was sent: secrets encrypted, no defaults filled in.
    pub value: Value,
    /// Revision of the last write.
    #[serde(rename = "modifiedIndex")]
    pub modified_index: u64,
    /// Revision of the first write.
    #[serde(rename = "createdIndex")]
    pub created_index: u64,
}

/// The key of a resource in a store, without the store's prefix: `/routes/1`,
/// `/consumers/jack/credentials/c1`, `/secrets/vault/1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Kind of the resource.
    pub kind: Kind,
    /// Id of the resource it belongs to, if it is of a [kind](Kind::parent) that has owners.
    pub parent: Option<String>,
    /// Its id. That of a secret has two parts: `vault/1`.
    pub id: String,
}

impl Key {
    /// The key of a resource that belongs to no other.
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self { kind, parent: None, id: id.into() }
    }

    /// Reads a key. `None`: no resource has such a key, as the folders that APISIX writes into etcd.
    pub fn parse(key: &str) -> Option<Self> {
        let (folder, rest) = key.strip_prefix('/')?.split_once('/')?;
        let kind = Kind::from_plural(folder).filter(|kind| kind.parent().is_none())?;
        let fits = |text: &str| !text.is_empty() && !text.contains('/');
        match (kind, rest.split_once('/')) {
            (Kind::Secrets, Some((manager, id))) if fits(manager) && fits(id) => {
                Some(Self::new(kind, rest))
            }
            (Kind::Secrets, _) => None,
            (_, None) => fits(rest).then(|| Self::new(kind, rest)),
            (_, Some((parent, rest))) => {
                let child = kind.child()?;
                let id = rest.strip_prefix(child.plural())?.strip_prefix('/')?;
                (fits(parent) && fits(id)).then(|| Self {
                    kind: child,
                    parent: Some(parent.to_owned()),
                    id: id.to_owned(),
                })
            }
        }
    }

    /// What the keys of all resources of a kind start with; of a kind with owners, all those that
    /// belong to `parent`.
    pub fn folder(kind: Kind, parent: Option<&str>) -> String {
        match kind.parent().zip(parent) {
            Some((owner, id)) => format!("/{}/{id}/{}/", owner.plural(), kind.plural()),
            None => format!("/{}/", kind.plural()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::folder(self.kind, self.parent.as_deref()))?;
        f.write_str(&self.id)
    }
}

/// The id a `POST` gives: 20 digits, made of the store's revision.
pub fn generated_id(revision: u64) -> String {
    format!("{revision:020}")
}

/// Whether a text can be an id: 1 to 64 of letters, digits, `-`, `_` and `.`.
///
/// Whoever makes a key of an id checks this. The schema is not enough: it lets secret references
/// pass everywhere.
pub fn is_id(text: &str) -> bool {
    (1..=ID_CHARS_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The `id` inside a resource as text.
pub fn id_of(value: &Value) -> Option<String> {
    id_text(value.get("id")?)
}

/// An id as text, whether JSON has it as string or number.
pub fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(match number.as_f64() {
            Some(float) if number.is_f64() && float % 1.0 == 0.0 => format!("{float:.0}"),
            _ => number.to_string(),
        }),
        _ => None,
    }
}

/// Settles the id of a `PUT` or `PATCH`: the path's, or else the body's, which must not differ. The
/// body then carries it.
///
/// # Errors
/// `missing route id` or `wrong route id`.
pub fn settle_id(kind: Kind, from_path: Option<&str>, value: &mut Value) -> Result<String, String> {
    let inside = value.get("id").filter(|id| **id != Value::Bool(false));
    match (from_path, inside) {
        (None, None) => Err(format!("missing {} id", kind.singular())),
        (None, Some(id)) => id_text(id).ok_or_else(|| format!("wrong {} id", kind.singular())),
        (Some(path), Some(id)) if id_text(id).as_deref() != Some(path) => {
            Err(format!("wrong {} id", kind.singular()))
        }
        (Some(path), _) => {
            // Anything but an object fails its schema a moment later.
            if let Value::Object(map) = value {
                map.insert("id".to_owned(), Value::from(path));
            }
            Ok(path.to_owned())
        }
    }
}

/// Refuses an id where a `POST` will make one.
///
/// # Errors
/// `wrong route id, do not need it`.
pub fn refuse_id(kind: Kind, from_path: Option<&str>, value: &Value) -> Result<(), String> {
    let inside = value.get("id").is_some_and(|id| *id != Value::Bool(false));
    if from_path.is_some() || inside {
        return Err(format!("wrong {} id, do not need it", kind.singular()));
    }
    Ok(())
}

/// Whether a text names a secret kept elsewhere (`$secret://…`) or an environment variable (`$env://…`).
pub fn is_secret_reference(text: &str) -> bool {
    text.starts_with("$secret://")
        || text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("$env://"))
}

/// Whether a value nests no deeper than [`DEPTH_MAX`].
pub fn is_shallow(value: &Value) -> bool {
    fn fits(value: &Value, left: usize) -> bool {
        let Some(left) = left.checked_sub(1) else { return false };
        match value {
            Value::Array(items) => items.iter().all(|item| fits(item, left)),
            Value::Object(map) => map.values().all(|item| fits(item, left)),
            _ => true,
        }
    }
    fits(value, DEPTH_MAX)
}

/// Levels of nesting a resource may have. JSON is read up to 128 levels deep, and answers put a
/// resource a few levels into lists of their own.
pub const DEPTH_MAX: usize = 100;

/// An id field: JSON may have it as string or number.
pub(crate) fn optional_id<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let id = Value::deserialize(deserializer)?;
    id_text(&id)
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom("an id is a string or an integer"))
}

/// Makes a typed view of a stored value: defaults from the schema, then serde.
pub(crate) fn view<T: serde::de::DeserializeOwned>(
    kind: Kind,
    value: &Value,
) -> Result<T, ViewError> {
    let mut filled = value.clone();
    kind.schema().check_and_fill(&mut filled).map_err(ViewError::Schema)?;
    serde_json::from_value(filled).map_err(ViewError::Shape)
}

/// Why a stored value has no typed view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The value does not pass its schema.
    #[error("invalid configuration: {0}")]
    Schema(String),
    /// The value passes its schema, but means nothing here.
    #[error("invalid configuration: {0}")]
    Shape(serde_json::Error),
}

/// Longest id.
const ID_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_comes_from_the_path_or_else_the_body_and_they_must_agree() {
        for (path, body, settled) in [
            (Some("1"), json!({}), Ok("1")),
            (Some("1"), json!({"id": 1}), Ok("1")),
            (Some("1"), json!({"id": 1.0}), Ok("1")),
            (Some("a"), json!({"id": "a"}), Ok("a")),
            (Some("a"), json!({"id": "b"}), Err("wrong route id")),
            (Some("a"), json!({"id": null}), Err("wrong route id")),
            (None, json!({"id": "body-id"}), Ok("body-id")),
            (None, json!({"uri": "/x"}), Err("missing route id")),
        ] {
            let mut value = body.clone();
            let got = settle_id(Kind::Routes, path, &mut value);
            assert_eq!(got, settled.map(str::to_owned).map_err(str::to_owned), "{path:?} {body}");
            if let Ok(id) = got {
                assert_eq!(id_of(&value), Some(id));
            }
        }
        let text = "wrong consumer group id, do not need it".to_owned();
        assert_eq!(refuse_id(Kind::ConsumerGroups, Some("77"), &json!({})), Err(text.clone()));
        assert_eq!(refuse_id(Kind::ConsumerGroups, None, &json!({"id": "x"})), Err(text));
        assert_eq!(refuse_id(Kind::ConsumerGroups, None, &json!({})), Ok(()));
    }

    #[test]
    fn ids_are_short_words_without_slashes() {
        for (id, fits) in [
            ("1", true),
            ("a-b_c.D", true),
            ("", false),
            ("a/b", false),
            ("bad$id", false),
            ("$env://x", false),
            ("é", false),
            (&"a".repeat(64), true),
            (&"a".repeat(65), false),
        ] {
            assert_eq!(is_id(id), fits, "{id}");
        }
        assert_eq!(generated_id(858), "00000000000000000858");
    }

    #[test]
    fn a_key_is_written_as_it_is_read() {
        for (text, kind, parent, id) in [
            ("/routes/1", Kind::Routes, None, "1"),
            ("/consumer_groups/a.b", Kind::ConsumerGroups, None, "a.b"),
            ("/consumers/jack", Kind::Consumers, None, "jack"),
            ("/consumers/jack/credentials/c1", Kind::Credentials, Some("jack"), "c1"),
            (
                "/services/s/graphql_cost_decorations/g",
                Kind::GraphqlCostDecorations,
                Some("s"),
                "g",
            ),
            ("/secrets/vault/1", Kind::Secrets, None, "vault/1"),
        ] {
            let key = Key { kind, parent: parent.map(str::to_owned), id: id.to_owned() };
            assert_eq!(Key::parse(text).as_ref(), Some(&key));
            assert_eq!(key.to_string(), text);
            assert!(text.starts_with(&Key::folder(kind, parent)));
        }
        for text in [
            "",
            "/",
            "/routes",
            "/routes/",
            "routes/1",
            "/zzz/1",
            "/routes/1/x",
            "/secrets/vault",
            "/secrets/vault/",
            "/secrets/vault/1/2",
            "/consumers/jack/",
            "/consumers/jack/credentials",
            "/consumers/jack/credentials/",
            "/consumers//credentials/1",
            "/credentials/1",
            "/consumers/jack/other/1",
            "/services/s/credentials/1",
        ] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_stored_resource_reads_as_apisix_writes_it() {
        let text = r#"{"key":"/apisix/routes/1","value":{"uri":"/a"},"modifiedIndex":853,"createdIndex":852}"#;
        let stored: Stored = serde_json::from_str(text).unwrap();
        assert_eq!((stored.modified_index, stored.created_index), (853, 852));
        assert_eq!(serde_json::to_string(&stored).unwrap(), text);
    }

    #[test]
    fn nesting_stops_at_the_limit() {
        let nested = |levels: usize| (1..levels).fold(json!(1), |inner, _| json!([inner]));
        assert!(is_shallow(&nested(DEPTH_MAX)));
        assert!(!is_shallow(&nested(DEPTH_MAX + 1)));
    }
}

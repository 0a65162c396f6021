//! What a reference says, and where references stand in a resource.

use serde_json::Value;
use sluicegate_model::Kind;
use sluicegate_model::resource::is_secret_reference;

/// A reference, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// `$env://NAME[/key]`: an environment variable, or a key of the JSON object in it.
    Env {
        /// The variable.
        name: &'a str,
        /// The key.
        key: Option<&'a str>,
    },
    /// `$secret://manager/id/path`: a secret of the manager that `secrets/manager/id` sets up.
    Secret {
        /// The manager's resource: `vault/1`.
        manager: &'a str,
        /// What is behind it; each manager reads it in its own way.
        path: &'a str,
    },
}

impl<'a> Reference<'a> {
    /// Reads a reference.
    ///
    /// # Errors
    /// When a part is missing, or the text is no reference.
    pub fn parse(text: &'a str) -> Result<Self, ReferenceError> {
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        if let Some(rest) = text.strip_prefix("$secret://") {
            let slash = rest.find('/').ok_or(ReferenceError::NoManager)?;
            let id = &rest[slash + 1..];
            let end = slash + 1 + id.find('/').ok_or(ReferenceError::NoId)?;
            let (manager, path) = (&rest[..end], &rest[end + 1..]);
            return match path {
                "" => Err(ReferenceError::NoKey),
                path => Ok(Self::Secret { manager, path }),
            };
        }
        if !is_secret_reference(text) {
            return Err(ReferenceError::Other);
        }
        let rest = &text["$env://".len()..];
        let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
        match name {
            "" => Err(ReferenceError::NoVariable),
            name => Ok(Self::Env { name, key: Some(key).filter(|key| !key.is_empty()) }),
        }
    }
}

/// Why a text is no reference that can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing behind `$secret://`.
    #[error("error format: no secret manager")]
    NoManager,
    /// No slash behind the id.
    #[error("error format: no secret conf id")]
    NoId,
    /// Nothing behind the id.
    #[error("error format: no secret key id")]
    NoKey,
    /// Nothing behind `$env://`.
    #[error("error format: no environment variable")]
    NoVariable,
    /// Longer than [`REFERENCE_BYTES_MAX`].
    #[error("the reference is longer than {REFERENCE_BYTES_MAX} bytes")]
    TooLong,
    /// It begins with neither `$secret://` nor `$env://`.
    #[error("not a reference")]
    Other,
}

/// Visits the texts of a resource that may be references: everything in its plugins'
/// configurations, and certificates and keys of `ssls`.
pub(crate) fn each_text(kind: Kind, value: &mut Value, each: &mut impl FnMut(&mut String)) {
    match kind {
        Kind::Ssls => {
            for name in ["cert", "key", "certs", "keys"] {
                below(value.get_mut(name), each);
            }
            below(value.pointer_mut("/client/ca"), each);
        }
        Kind::PluginMetadata => below(Some(value), each),
        _ => below(value.get_mut("plugins"), each),
    }
}

/// The distinct references in a resource, sorted.
pub(crate) fn references(kind: Kind, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut each = |text: &str| {
        if is_secret_reference(text) {
            found.push(text.to_owned());
        }
    };
    match kind {
        Kind::Ssls => {
            for name in ["cert", "key", "certs", "keys"] {
                within(value.get(name), &mut each);
            }
            within(value.pointer("/client/ca"), &mut each);
        }
        Kind::PluginMetadata => within(Some(value), &mut each),
        _ => within(value.get("plugins"), &mut each),
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn below(value: Option<&mut Value>, each: &mut impl FnMut(&mut String)) {
    match value {
        Some(Value::String(text)) => each(text),
        Some(Value::Array(items)) => items.iter_mut().for_each(|item| below(Some(item), each)),
        Some(Value::Object(map)) => map.values_mut().for_each(|item| below(Some(item), each)),
        _ => {}
    }
}

fn within(value: Option<&Value>, each: &mut impl FnMut(&str)) {
    match value {
        Some(Value::String(text)) => each(text),
        Some(Value::Array(items)) => items.iter().for_each(|item| within(Some(item), each)),
        Some(Value::Object(map)) => map.values().for_each(|item| within(Some(item), each)),
        _ => {}
    }
}

/// The longest reference.
pub const REFERENCE_BYTES_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_read_as_apisix_reads_them() {
        let env = |name, key| Ok(Reference::Env { name, key });
        let secret = |manager, path| Ok(Reference::Secret { manager, path });
        for (text, read) in [
            ("$env://HOME", env("HOME", None)),
            ("$ENV://HOME", env("HOME", None)),
            ("$eNv://HOME/", env("HOME", None)),
            ("$env://JSON/a", env("JSON", Some("a"))),
            ("$env://JSON/a/b", env("JSON", Some("a/b"))),
            ("$env://", Err(ReferenceError::NoVariable)),
            ("$env:///a", Err(ReferenceError::NoVariable)),
            ("$secret://vault/1/foo/key", secret("vault/1", "foo/key")),
            ("$secret://aws/1/a/b/c", secret("aws/1", "a/b/c")),
            ("$secret://gcp/x/name", secret("gcp/x", "name")),
            ("$secret://", Err(ReferenceError::NoManager)),
            ("$secret://vault", Err(ReferenceError::NoManager)),
            ("$secret://vault/1", Err(ReferenceError::NoId)),
            ("$secret://vault/1/", Err(ReferenceError::NoKey)),
            ("$SECRET://vault/1/a/b", Err(ReferenceError::Other)),
            ("env://HOME", Err(ReferenceError::Other)),
        ] {
            assert_eq!(Reference::parse(text), read, "{text}");
        }
        let name = "x".repeat(REFERENCE_BYTES_MAX - "$env://".len());
        assert!(Reference::parse(&format!("$env://{name}")).is_ok());
        let longer = format!("$env://{name}x");
        assert_eq!(Reference::parse(&longer), Err(ReferenceError::TooLong));
    }

    #[test]
    fn references_are_looked_for_in_plugins_and_certificates_only() {
        let (a, b) = ("$env://A", "$secret://vault/1/b/b");
        let plugins =
            json!({"uri": a, "plugins": {"p": {"x": [{"y": b}, a, b], "_meta": {"z": 1}}}});
        let ssl = json!({"cert": a, "keys": [b], "sni": "$env://C", "client": {"ca": "$env://D"}});
        for (kind, value, found) in [
            (Kind::Routes, plugins.clone(), vec![a, b]),
            (Kind::GlobalRules, plugins.clone(), vec![a, b]),
            (Kind::Ssls, plugins, vec![]),
            (Kind::Ssls, ssl.clone(), vec![a, "$env://D", b]),
            (Kind::Routes, ssl, vec![]),
            (Kind::PluginMetadata, json!({"id": "p", "key": b}), vec![b]),
            (Kind::Upstreams, json!({"name": a}), vec![]),
        ] {
            assert_eq!(references(kind, &value), found, "{kind:?} {value}");
            let mut seen = Vec::new();
            each_text(kind, &mut value.clone(), &mut |text| seen.push(text.clone()));
            seen.retain(|text| is_secret_reference(text));
            seen.sort();
            seen.dedup();
            assert_eq!(seen, found, "{kind:?} {value}");
        }
    }
}

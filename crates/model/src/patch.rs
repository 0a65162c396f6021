//! What a `PATCH` does to a stored value.

use serde_json::{Map, Value};

use crate::resource;

/// Merges a change into a value: objects member by member, `null` removes, anything else replaces.
///
/// As in APISIX, an empty object counts as an array, and an array on either side replaces: `{"plugins":
/// {}}` takes every plugin away. A `null` inside something that replaces stays.
pub fn merge(value: &mut Value, change: &Value) {
    let Value::Object(into) = value else {
        return;
    };
    match change {
        Value::Object(change) => {
            for (name, new) in change {
                merge_member(into, name, new);
            }
        }
        // A list is merged by its places, which no schema allows; the check that follows says so.
        Value::Array(change) => {
            for (index, new) in change.iter().enumerate() {
                merge_member(into, &(index + 1).to_string(), new);
            }
        }
        _ => {}
    }
}

fn merge_member(into: &mut Map<String, Value>, name: &str, new: &Value) {
    if new.is_null() {
        into.shift_remove(name);
        return;
    }
    match into.get_mut(name) {
        Some(old) if is_map(old) && is_map(new) => merge(old, new),
        Some(old) => *old = new.clone(),
        None => {
            into.insert(name.to_owned(), new.clone());
        }
    }
}

fn is_map(value: &Value) -> bool {
    value.as_object().is_some_and(|map| !map.is_empty())
}

/// Puts a new value where a sub-path such as `plugins/aws-lambda/timeout` points. What is missing on
/// the way is made; a path that ends in `/` replaces the whole.
///
/// # Errors
/// `invalid sub-path: /uri/x` when the way leads through something that has no members, and when the
/// path or the result is too deep.
pub fn set_at(value: &mut Value, sub_path: &str, new: Value) -> Result<(), String> {
    let invalid = |names: &[&str]| format!("invalid sub-path: /{}", names.join("/"));
    let names: Vec<&str> = sub_path.split('/').take(resource::DEPTH_MAX + 1).collect();
    if names.len() > resource::DEPTH_MAX {
        return Err("invalid sub-path: too deep".to_owned());
    }
    let Some((last, way)) = names.split_last() else { return Ok(()) };
    let mut at = &mut *value;
    for (index, name) in way.iter().enumerate() {
        let members = members(at).ok_or_else(|| invalid(&names[..index]))?;
        at = members.entry(*name).or_insert_with(|| Value::Object(Map::new()));
        if !at.is_object() && !at.is_array() {
            return Err(invalid(&names[..=index]));
        }
    }
    if last.is_empty() {
        *value = new;
        return Ok(());
    }
    let members = members(at).ok_or_else(|| invalid(&names))?;
    members.insert((*last).to_owned(), new);
    if !resource::is_shallow(value) {
        return Err("invalid sub-path: too deep".to_owned());
    }
    Ok(())
}

/// The members of a table. A list that is given a named member is no list any more; its schema says
/// so afterwards.
fn members(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if let Value::Array(items) = value {
        let items = std::mem::take(items);
        let named =
            items.into_iter().enumerate().map(|(index, item)| ((index + 1).to_string(), item));
        *value = Value::Object(named.collect());
    }
    value.as_object_mut()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merging_removes_replaces_and_descends_as_in_apisix() {
        let lambda = json!({"uri": "/a", "plugins": {"aws-lambda": {"function_uri": "u", "ssl_verify": false}}});
        for (old, change, new) in [
            (
                lambda.clone(),
                json!({"plugins": {"aws-lambda": {"timeout": 5000}}}),
                json!({"uri": "/a", "plugins": {"aws-lambda": {"function_uri": "u", "ssl_verify": false, "timeout": 5000}}}),
            ),
            (
                lambda.clone(),
                json!({"plugins": {"aws-lambda": null}}),
                json!({"uri": "/a", "plugins": {}}),
            ),
            (lambda.clone(), json!({"plugins": {}}), json!({"uri": "/a", "plugins": {}})),
            (lambda.clone(), json!({"plugins": null}), json!({"uri": "/a"})),
            (
                json!({"plugins": {}}),
                json!({"plugins": {"a": null}}),
                json!({"plugins": {"a": null}}),
            ),
            (json!({"uris": ["/a", "/b"]}), json!({"uris": ["/c"]}), json!({"uris": ["/c"]})),
            (
                json!({"nodes": {"a:1": 1}}),
                json!({"nodes": [{"host": "b"}]}),
                json!({"nodes": [{"host": "b"}]}),
            ),
            (json!({"nodes": [1]}), json!({"nodes": {"a:1": 1}}), json!({"nodes": {"a:1": 1}})),
            (
                json!({"nodes": {"a:1": 1, "b:1": 2}}),
                json!({"nodes": {"b:1": null}}),
                json!({"nodes": {"a:1": 1}}),
            ),
            (json!({"uri": "/a"}), json!({"uri": {"x": 1}}), json!({"uri": {"x": 1}})),
            (json!({"x": {"y": 1}}), json!({"x": "text"}), json!({"x": "text"})),
            (json!({"a": 1}), json!(["x"]), json!({"a": 1, "1": "x"})),
            (json!({"a": 1}), json!({"none": null}), json!({"a": 1})),
        ] {
            let mut value = old.clone();
            merge(&mut value, &change);
            assert_eq!(value, new, "{old} + {change}");
        }
    }

    #[test]
    fn a_sub_path_sets_what_it_names() {
        for (old, path, new, expected) in [
            (json!({"uri": "/a"}), "uri", json!("/b"), Ok(json!({"uri": "/b"}))),
            (json!({}), "plugins/x/y", json!(1), Ok(json!({"plugins": {"x": {"y": 1}}}))),
            (json!({"a": 1}), "a", json!(null), Ok(json!({"a": null}))),
            (json!({"uri": "/a"}), "uri/x", json!(1), Err("invalid sub-path: /uri")),
            (json!({"uri": "/a"}), "uri/x/y", json!(1), Err("invalid sub-path: /uri")),
            (json!({"a": {"b": 1}}), "a/b/c", json!(1), Err("invalid sub-path: /a/b")),
            (json!({"a": null}), "a/b", json!(1), Err("invalid sub-path: /a")),
            (
                json!({"uris": ["/a"]}),
                "uris/0",
                json!("/b"),
                Ok(json!({"uris": {"1": "/a", "0": "/b"}})),
            ),
            (json!({"a": 1}), "plugins/", json!({"b": 2}), Ok(json!({"b": 2}))),
        ] {
            let mut value = old.clone();
            let outcome = set_at(&mut value, path, new).map(|()| value);
            assert_eq!(outcome, expected.map_err(str::to_owned), "{old} at {path}");
        }
    }

    #[test]
    fn a_sub_path_too_deep_is_refused() {
        let mut value = json!({});
        assert!(set_at(&mut value, &vec!["a"; 99].join("/"), json!(1)).is_ok());
        assert!(set_at(&mut json!({}), &vec!["a"; 100].join("/"), json!(1)).is_err());
        assert!(set_at(&mut json!({}), &vec!["a"; 100_000].join("/"), json!(1)).is_err());
    }
}

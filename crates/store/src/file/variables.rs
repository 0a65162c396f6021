//! `${{NAME}}` and `${{NAME:=default}}` in a file of resources.
//!
//! As APISIX does it: YAML is filled in as text, before it is read, so that its quoting decides
//! what is a number; in JSON a text that had a variable in it is a number or boolean where it reads
//! as one. A variable that is set wins, even when it is empty.

use serde_json::{Map, Number, Value};

/// Looks an environment variable up.
pub type Variables = Box<dyn Fn(&str) -> Option<String> + Send>;

/// Fills variables in everywhere in a text. An error is the name of one that has no value, and the
/// line it stands in.
pub(crate) fn fill_text(
    text: &str,
    variables: &Variables,
) -> Result<Option<String>, (String, usize)> {
    let mut out = String::new();
    let mut rest = text;
    let mut found = false;
    while let Some(start) = rest.find("${{") {
        let Some(reference) = Reference::parse(&rest[start..]) else {
            out.push_str(&rest[..start + 3]);
            rest = &rest[start + 3..];
            continue;
        };
        found = true;
        out.push_str(&rest[..start]);
        match (variables(reference.name), reference.default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                let before = text.len() - rest.len() + start;
                let line = text[..before].matches('\n').count() + 1;
                return Err((reference.name.to_owned(), line));
            }
        }
        rest = &rest[start + reference.length..];
    }
    out.push_str(rest);
    Ok(found.then_some(out))
}

/// Fills variables in, in all texts and keys below a value. An error is the name of one that has
/// no value.
pub(crate) fn fill_value(value: &mut Value, variables: &Variables) -> Result<(), String> {
    match value {
        Value::String(text) => {
            if let Some(text) = fill_text(text, variables).map_err(|(name, _)| name)? {
                *value = typed(text);
            }
        }
        Value::Array(items) => {
            for item in items {
                fill_value(item, variables)?;
            }
        }
        Value::Object(map) => {
            let mut filled = Map::new();
            for (key, mut item) in std::mem::take(map) {
                fill_value(&mut item, variables)?;
                let new = fill_text(&key, variables).map_err(|(name, _)| name)?;
                filled.insert(new.unwrap_or(key), item);
            }
            *map = filled;
        }
        _ => {}
    }
    Ok(())
}

fn typed(text: String) -> Value {
    let trimmed = text.trim();
    match trimmed {
        "true" => return true.into(),
        "false" => return false.into(),
        _ => {}
    }
    if let Ok(int) = trimmed.parse::<i64>() {
        return int.into();
    }
    // `inf` and `nan` are numbers to Rust, and names to people.
    let number = trimmed.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    match trimmed.parse().ok().filter(|_| number).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => text.into(),
    }
}

struct Reference<'a> {
    name: &'a str,
    default: Option<&'a str>,
    /// Bytes from `${{` to behind `}}`.
    length: usize,
}

impl<'a> Reference<'a> {
    /// Text that does not start with a letter, digit or `_`, or has no end, is no reference: it
    /// stays as it is.
    fn parse(text: &'a str) -> Option<Self> {
        let length = text.find("}}")? + 2;
        let inner = text[3..length - 2].trim();
        if !inner.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        let (name, default) = match inner.split_once(":=") {
            Some((name, default)) => (name.trim(), Some(default.trim())),
            None => (inner, None),
        };
        Some(Self { name, default, length })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn variables() -> Variables {
        Box::new(|name| match name {
            "PORT" => Some("9180".to_owned()),
            "HOST" => Some("gate.test".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn text_is_filled_in_before_it_is_yaml() {
        for (text, expected) in [
            ("a: ${{PORT}}", Ok(Some("a: 9180"))),
            ("a: \"${{ PORT }}\"", Ok(Some("a: \"9180\""))),
            ("\"${{HOST}}:${{PORT}}\": 1", Ok(Some("\"gate.test:9180\": 1"))),
            ("a: ${{NO:=x y}}", Ok(Some("a: x y"))),
            ("a: ${{EMPTY:=x}}", Ok(Some("a: "))),
            ("a: ${{NO:=}}", Ok(Some("a: "))),
            ("a: $PORT ${PORT} ${{-}} ${{PORT}", Ok(None)),
            ("a: 1\nb: ${{NO}}", Err(("NO".to_owned(), 2))),
        ] {
            let found = fill_text(text, &variables());
            assert_eq!(found, expected.map(|text| text.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn json_texts_with_a_variable_are_typed_again() {
        let mut value = json!({
            "a": "${{PORT}}", "b": ["${{NO:=true}}", "x${{PORT}}", "9180"], "${{HOST}}:80": "${{NO:=1.5}}",
            "n": "${{NO:=nan}}"
        });
        fill_value(&mut value, &variables()).unwrap();
        let expected =
            json!({"a": 9180, "b": [true, "x9180", "9180"], "gate.test:80": 1.5, "n": "nan"});
        assert_eq!(value, expected);
        assert_eq!(fill_value(&mut json!({"${{NO}}": 1}), &variables()), Err("NO".to_owned()));
    }
}

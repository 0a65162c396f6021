//! `${{VAR}}` and `${{VAR:=default}}` in values and keys.
//!
//! The rules are APISIX's: a variable that is set wins, even when it is empty; without a default
//! an unset one is an error; what then reads as a number or as `true`/`false` is one.
//! <https://apisix.apache.org/docs/apisix/deployment-modes/>

use crate::error::Problems;
use crate::yaml::{Content, EXPANDED_BYTES_MAX, Node, Scalar, join};

/// Looks an environment variable up.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces every reference below `node`.
pub(crate) fn substitute(node: &mut Node, env: Env<'_>, problems: &mut Problems) {
    let mut walk = Walk { env, problems, added: 0 };
    walk.node(node, "");
}

struct Walk<'a> {
    env: Env<'a>,
    problems: &'a mut Problems,
    /// Bytes that came out of variables so far.
    added: usize,
}

impl Walk<'_> {
    fn node(&mut self, node: &mut Node, path: &str) {
        let line = node.line;
        match &mut node.content {
            Content::Scalar(scalar) => self.scalar(scalar, line, path),
            Content::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item, &format!("{path}[{index}]"));
                }
            }
            Content::Map(entries) => {
                for index in 0..entries.len() {
                    let entry = &mut entries[index];
                    let key_path = join(path, &entry.key);
                    self.node(&mut entry.value, &key_path);
                    let line = entry.key_line;
                    let Some(key) = self.text(&entry.key, line, &key_path) else { continue };
                    entry.key.clone_from(&key);
                    if entries.iter().enumerate().any(|(i, other)| i != index && other.key == key) {
                        let reason = "given twice once the variables are filled in";
                        self.problems.add(Some(line), &join(path, &key), reason);
                    }
                }
            }
        }
    }

    fn scalar(&mut self, scalar: &mut Scalar, line: usize, path: &str) {
        if let Some(text) = self.text(&scalar.text, line, path) {
            scalar.text = text;
            scalar.substituted = true;
        }
    }

    /// The text with its references replaced; `None` when there is none, or one cannot be.
    fn text(&mut self, text: &str, line: usize, path: &str) -> Option<String> {
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
            rest = &rest[start + reference.length..];
            let value = match ((self.env)(reference.name), reference.default) {
                (Some(value), _) => value,
                (None, Some(default)) => default.to_owned(),
                (None, None) => {
                    let reason = format!(
                        "environment variable {} is not set, and ${{{{{0}}}}} gives no default",
                        reference.name
                    );
                    self.problems.add(Some(line), path, reason);
                    return None;
                }
            };
            self.added = self.added.saturating_add(value.len());
            if self.added > EXPANDED_BYTES_MAX {
                let reason = format!("variables add more than {EXPANDED_BYTES_MAX} bytes");
                self.problems.add(Some(line), path, reason);
                return None;
            }
            out.push_str(&value);
        }
        out.push_str(rest);
        found.then_some(out)
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
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !inner.starts_with(word) {
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
    use super::*;
    use crate::yaml;

    fn env(name: &str) -> Option<String> {
        let value = match name {
            "PORT" => "9180",
            "HOST" => "gate.test",
            "YES" => "true",
            "EMPTY" => "",
            "NULL" => "null",
            "KEY" => "apisix",
            _ => return None,
        };
        Some(value.into())
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let mut problems = Problems::default();
        let mut node = yaml::read("f", text, &mut problems).unwrap().unwrap();
        substitute(&mut node, &env, &mut problems);
        match (problems.into_result("f"), expected) {
            (Ok(()), Ok(json)) => assert_eq!(node.to_json().to_string(), json, "{text}"),
            (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected, "{text}"),
            (found, _) => panic!("{text}: {found:?}, {}", node.to_json()),
        }
    }

    #[test]
    fn references_are_replaced_and_typed_again() {
        check("a: ${{PORT}}", Ok(r#"{"a":9180}"#));
        check("a: '${{PORT}}'", Ok(r#"{"a":9180}"#));
        check("a: '${{ PORT }}'", Ok(r#"{"a":9180}"#));
        check("a: ${{YES}}", Ok(r#"{"a":true}"#));
        check("a: ${{NO:=false}}", Ok(r#"{"a":false}"#));
        check("a: ${{NO:=1.5}}", Ok(r#"{"a":1.5}"#));
        check("a: ${{NO := x y }}", Ok(r#"{"a":"x y"}"#));
        check("a: ${{NO:=}}", Ok(r#"{"a":""}"#));
        check("a: ${{EMPTY:=x}}", Ok(r#"{"a":""}"#));
        check("a: ${{NULL}}", Ok(r#"{"a":"null"}"#));
        check("a: http://${{HOST}}:${{PORT}}/", Ok(r#"{"a":"http://gate.test:9180/"}"#));
        check("a: [x, '${{PORT}}']", Ok(r#"{"a":["x",9180]}"#));
        check("${{KEY}}: {b: 1}", Ok(r#"{"apisix":{"b":1}}"#));
        check("'${{KEY}}_x': 1", Ok(r#"{"apisix_x":1}"#));
    }

    #[test]
    fn text_that_is_no_reference_stays() {
        check("a: ${{-x}}", Ok(r#"{"a":"${{-x}}"}"#));
        check("a: ${{PORT}", Ok(r#"{"a":"${{PORT}"}"#));
        check("a: $PORT ${PORT}", Ok(r#"{"a":"$PORT ${PORT}"}"#));
        check("a: '9180'", Ok(r#"{"a":"9180"}"#));
    }

    #[test]
    fn an_unset_variable_is_named_with_its_place() {
        check(
            "a:\n  - b: ${{GONE}}",
            Err(
                "f:2: a[0].b: environment variable GONE is not set, and ${{GONE}} gives no default",
            ),
        );
        check(
            "a:\n  ${{GONE}}: 1",
            Err("f:2: a.${{GONE}}: environment variable GONE is not set, and ${{GONE}} gives no \
                 default"),
        );
        check(
            "apisix: 1\n${{KEY}}: 2",
            Err("f:2: apisix: given twice once the variables are filled in"),
        );
    }

    #[test]
    fn variables_add_bytes_up_to_the_limit() {
        let big = "x".repeat(EXPANDED_BYTES_MAX / 2);
        let env = |_: &str| Some(big.clone());
        for (text, fits) in [("[a, '${{A}}${{A}}']", true), ("['${{A}}', '${{A}}${{A}}']", false)] {
            let mut problems = Problems::default();
            let mut node = yaml::read("f", text, &mut problems).unwrap().unwrap();
            substitute(&mut node, &env, &mut problems);
            assert_eq!(problems.into_result("f").is_ok(), fits, "{text}");
        }
    }
}

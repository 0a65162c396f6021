//! Text with variables in it: `$name`, `${name}` and `${name ?? default}`, as APISIX's
//! `core.utils.resolve_var` reads them. A `$` behind a backslash is none.

use super::{VarName, Vars};

/// A text whose variables are known by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Box<[Part]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// A variable, and what stands there when it has no value.
    Var(VarName, Option<Box<str>>),
}

impl Template {
    /// Reads a template. Every text is one.
    pub fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let found = if plain.ends_with('\\') { None } else { variable(&from[1..]) };
            match found {
                Some((inside, after)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain).into()));
                    }
                    let mut pieces = inside.split("??").map(str::trim);
                    let name = pieces.next().unwrap_or_default();
                    parts.push(Part::Var(VarName::parse(name), pieces.next().map(Into::into)));
                    rest = after;
                }
                None => {
                    plain.push('$');
                    rest = &from[1..];
                }
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Self(parts.into())
    }

    /// Hands the filled-in text on, piece by piece; says how many variables had a value or a
    /// default.
    pub fn fill(&self, vars: &dyn Vars, mut put: impl FnMut(&[u8])) -> usize {
        let mut resolved = 0;
        for part in &self.0 {
            match part {
                Part::Text(text) => put(text.as_bytes()),
                Part::Var(name, default) => {
                    let value = vars.var(name);
                    if let Some(bytes) = value.as_ref().and_then(|value| value.to_bytes()) {
                        put(&bytes);
                    } else if let Some(default) = default {
                        put(default.as_bytes());
                    } else {
                        continue;
                    }
                    resolved += 1;
                }
            }
        }
        resolved
    }
}

/// A variable's name behind a `$`, and the text behind it.
fn variable(text: &str) -> Option<(&str, &str)> {
    if let Some(inside) = text.strip_prefix('{') {
        let end = inside.find('}')?;
        let name = inside[..end].trim();
        return (!name.is_empty()).then(|| (name, &inside[end + 1..]));
    }
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::Value;
    use super::*;

    struct Table(HashMap<&'static str, &'static str>);

    impl Vars for Table {
        fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
            self.0.get(name.to_string().as_str()).map(|text| Value::from(*text))
        }
    }

    #[test]
    fn variables_are_filled_in_as_apisix_does() {
        let vars = Table(HashMap::from([("arg_a", "1"), ("uri", "/x"), ("arg_empty", "")]));
        for (template, expected, resolved) in [
            ("", "", 0),
            ("plain", "plain", 0),
            ("$arg_a", "1", 1),
            ("$uri#$arg_a!", "/x#1!", 2),
            ("${uri}x", "/xx", 1),
            ("${ arg_b ?? none }", "none", 1),
            ("${arg_a ?? none}", "1", 1),
            ("$arg_b", "", 0),
            ("$arg_empty", "", 1),
            ("a$", "a$", 0),
            ("$ $-", "$ $-", 0),
            ("${}", "${}", 0),
            ("${uri", "${uri", 0),
            ("\\$uri", "\\$uri", 0),
        ] {
            let mut out = Vec::new();
            let count = Template::parse(template).fill(&vars, |text| out.extend_from_slice(text));
            assert_eq!(
                (String::from_utf8_lossy(&out).as_ref(), count),
                (expected, resolved),
                "{template}"
            );
        }
    }
}

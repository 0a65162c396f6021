//! What plugins do to header fields: `add`, `set` and `remove`, compiled.

use serde_json::Value;
use sluicegate_gateway::expr::Vars;
use sluicegate_gateway::http::{FieldName, Headers};
use smallvec::SmallVec;

use crate::pcre::Captures;
use crate::template::Template;

/// Fields to add, to set and to take away, in this order.
#[derive(Debug, Default)]
pub(crate) struct HeaderOps {
    /// Names with what is added to them, one field for each value.
    pub(crate) add: Vec<(FieldName, Vec<Template>)>,
    /// Names with the values that take the place of theirs.
    pub(crate) set: Vec<(FieldName, Vec<Template>)>,
    /// Names that go.
    pub(crate) remove: Vec<FieldName>,
    /// All that is done, where that is to set fields to values without variables.
    fixed: Option<Headers>,
}

impl HeaderOps {
    pub(crate) fn new(
        add: Vec<(FieldName, Vec<Template>)>,
        set: Vec<(FieldName, Vec<Template>)>,
        remove: Vec<FieldName>,
    ) -> Self {
        let fixed = if add.is_empty() && remove.is_empty() { block(&set) } else { None };
        Self { add, set, remove, fixed }
    }

    /// Does it name `add`, `set` or `remove`, or is it the older form, names and values?
    pub(crate) fn is_new_form(config: &Value) -> bool {
        ["add", "set", "remove"]
            .iter()
            .any(|key| config.get(key).is_some_and(|value| value.is_object() || value.is_array()))
    }

    /// The names of the fields that it changes.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let given = self.add.iter().chain(&self.set).map(|(name, _)| name);
        given.chain(&self.remove).map(FieldName::as_str)
    }

    /// Whether nothing is to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.set.is_empty() && self.remove.is_empty()
    }

    /// Does it to `headers`, with the values that `vars` has.
    pub(crate) fn apply(&self, headers: &mut Headers, values: &Values) {
        if let Some(fixed) = &self.fixed {
            return headers.take_over(fixed);
        }
        let mut rendered = values.iter();
        for (name, templates) in &self.add {
            for template in templates {
                if let Some(value) = template.literal().or_else(|| rendered.next()) {
                    headers.append_by(name, value);
                }
            }
        }
        for (name, templates) in &self.set {
            let mut first = true;
            for template in templates {
                let value = template.literal().or_else(|| rendered.next());
                let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
                match first {
                    true => headers.set_by(name, value),
                    false => headers.append_by(name, value),
                }
                first = false;
            }
            // A field that is set to nothing goes, as with nginx.
            if first {
                headers.remove_by(name);
            }
        }
        for name in &self.remove {
            headers.remove_by(name);
        }
    }

    /// The values of every field that has variables, in order. They are made before the first field
    /// changes, so that none depends on another.
    pub(crate) fn values(&self, vars: &dyn Vars, captures: &Captures) -> Values {
        let mut values = Values::default();
        if self.fixed.is_some() {
            return values;
        }
        let templates = self.add.iter().chain(&self.set).flat_map(|(_, templates)| templates);
        for template in templates.filter(|template| template.literal().is_none()) {
            let plain = |value: &[u8], out: &mut Vec<u8>| out.extend_from_slice(value);
            template.write(vars, captures, plain, &mut values.text);
            values.ends.push(values.text.len());
        }
        values
    }
}

/// Fields, each of one value that no variable stands in, as a block; `None`: they are not that.
fn block(fields: &[(FieldName, Vec<Template>)]) -> Option<Headers> {
    let mut block = Headers::new();
    for (name, templates) in fields {
        let [template] = &templates[..] else { return None };
        let value = template.literal().filter(|value| !value.is_empty())?;
        if block.get_by(name).is_some() {
            return None;
        }
        block.append_by(name, value);
        block.get_by(name)?;
    }
    Some(block)
}

/// The values of [`HeaderOps`] for one message.
#[derive(Default)]
pub(crate) struct Values {
    /// One behind the other.
    text: Vec<u8>,
    /// Where each ends.
    ends: SmallVec<[usize; VALUES_INLINE]>,
}

impl Values {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| &self.text[std::mem::replace(&mut start, *end)..*end])
    }
}

/// Values of one message that take only the memory of their text.
const VALUES_INLINE: usize = 8;

/// A text or a number as it stands in a header field; a whole number has no point, as in Lua.
pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                format!("{float:.0}")
            }
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// Names with one value, or several in an array.
pub(crate) fn fields(
    config: &Value,
    template: fn(&str) -> Template,
) -> Vec<(FieldName, Vec<Template>)> {
    let Some(config) = config.as_object() else { return Vec::new() };
    let values = |value: &Value| match value {
        Value::Array(several) => several.iter().map(|one| template(&text_of(one))).collect(),
        one => vec![template(&text_of(one))],
    };
    config.iter().map(|(name, value)| (name.as_str().into(), values(value))).collect()
}

/// The texts of an array.
pub(crate) fn texts(config: &Value) -> impl Iterator<Item = &str> {
    config.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluicegate_gateway::expr::{self, VarName};

    use super::*;

    struct NoVars;

    impl Vars for NoVars {
        fn var<'a>(&'a self, _: &VarName) -> Option<expr::Value<'a>> {
            None
        }
    }

    #[test]
    fn fields_are_set_alike_with_and_without_variables() {
        for (set, fixed, result) in [
            (json!({"X-A": "1", "X-C": 2}), true, "X-A: 1\r\nb: b\r\nX-C: 2\r\n"),
            (json!({"B": "1", "b": "2"}), false, "a: a\r\nb: 2\r\n"),
            (json!({"b": ["1", "2"]}), false, "a: a\r\nb: 1\r\nb: 2\r\n"),
            (json!({"b": ""}), false, "a: a\r\n"),
            (json!({"b\n": "1"}), false, "a: a\r\nb: b\r\n"),
            (json!({"b": "\r\n"}), false, "a: a\r\nb: b\r\n"),
            (json!({"b": "$none"}), false, "a: a\r\n"),
        ] {
            let ops = HeaderOps::new(Vec::new(), fields(&set, Template::compile), Vec::new());
            assert_eq!(ops.fixed.is_some(), fixed, "{set}");
            let mut headers = Headers::new();
            headers.append(if fixed { "x-a" } else { "a" }, b"a");
            headers.append("b", b"b");
            ops.apply(&mut headers, &ops.values(&NoVars, &Captures::new()));
            let mut text = Vec::new();
            headers.write_to(&mut text);
            assert_eq!(String::from_utf8_lossy(&text), result, "{set}");
        }
    }
}

//! Texts with variables in them: `"$remote_addr"`, `"${http_x_user ?? nobody}/$1"`.
//!
//! Read once, when configuration is compiled, the way APISIX's `core.utils.resolve_var` reads them:
//! a name is made of letters, digits, `_` and `.`; in braces it may be anything, with blanks around
//! it and a default behind `??`. A variable without a value is empty. `\$` is left as it is, backslash
//! and all.

use std::borrow::Cow;

use sluicegate_gateway::expr::{VarName, Vars};

/// A compiled text with variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<[u8]>),
    Var { name: VarName, default: Option<Box<[u8]>> },
    Capture(usize),
}

/// What a template became, and how many of its variables had a value or a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// The text.
    pub text: Cow<'a, [u8]>,
    /// Variables that did not come out empty for want of a value.
    pub found: usize,
}

impl Template {
    /// Compiles a text; every text is a template.
    pub fn compile(text: &str) -> Self {
        Self::read(text, &|text| variable(text, false))
    }

    /// Compiles a text in which `$1` and `${1}` are what a regular expression captured.
    pub fn with_captures(text: &str) -> Self {
        Self::read(text, &|text| variable(text, true))
    }

    /// Compiles a text whose names are letters, digits and `_` only, as nginx has them: `.` ends one.
    pub fn of_nginx(text: &str) -> Self {
        Self::read(text, &|text| {
            let (inner, braced) = match text.strip_prefix('{') {
                Some(inner) => (inner, true),
                None => (text, false),
            };
            let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = inner.find(|c| !of_name(c)).unwrap_or(inner.len());
            let after = &inner[end..];
            let after = if braced { after.strip_prefix('}')? } else { after };
            (end > 0).then(|| (named(&inner[..end]), after))
        })
    }

    fn read(text: &str, variable: &dyn Fn(&str) -> Option<(Part, &str)>) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let escaped = plain.ends_with('\\');
            match (!escaped).then(|| variable(&from[1..])).flatten() {
                Some((part, after)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain).into_bytes().into()));
                    }
                    parts.push(part);
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
            parts.push(Part::Text(plain.into_bytes().into()));
        }
        Self { parts: parts.into() }
    }

    /// Parts it at the first `?` that is not a variable's: a path and, if there is one, its query.
    pub fn split_query(self) -> (Self, Option<Self>) {
        let mut path = self.parts.into_vec();
        let mark = |part: &Part| match part {
            Part::Text(text) => text.iter().position(|byte| *byte == b'?'),
            Part::Var { .. } | Part::Capture(_) => None,
        };
        let Some((part, at)) =
            path.iter().enumerate().find_map(|(part, text)| Some((part, mark(text)?)))
        else {
            return (Self { parts: path.into() }, None);
        };
        let mut query = path.split_off(part);
        if let Part::Text(text) = &mut query[0] {
            if at > 0 {
                path.push(Part::Text(text[..at].into()));
            }
            *text = text[at + 1..].into();
        }
        (Self { parts: path.into() }, Some(Self { parts: query.into() }))
    }

    /// The text, when there is no variable in it.
    pub fn literal(&self) -> Option<&[u8]> {
        match &self.parts[..] {
            [] => Some(b""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The variables asked for.
    pub fn vars(&self) -> impl Iterator<Item = &VarName> {
        self.parts.iter().filter_map(|part| match part {
            Part::Var { name, .. } => Some(name),
            Part::Text(_) | Part::Capture(_) => None,
        })
    }

    /// The text with its variables' values; borrowed when it has none.
    pub fn render(&self, vars: &dyn Vars) -> Cow<'_, [u8]> {
        self.resolve(vars).text
    }

    /// As [`Template::render`], and how many variables had a value.
    pub fn resolve(&self, vars: &dyn Vars) -> Resolved<'_> {
        if let Some(text) = self.literal() {
            return Resolved { text: Cow::Borrowed(text), found: 0 };
        }
        let mut text = Vec::new();
        let found = self.write(vars, &[], |value, out| out.extend_from_slice(value), &mut text);
        Resolved { text: Cow::Owned(text), found }
    }

    /// Appends the text with its variables' values, which pass `escape`, and the captures (the first
    /// is `$0`) as they are. Says how many variables had a value or a default.
    pub fn write(
        &self,
        vars: &dyn Vars,
        captures: &[Box<[u8]>],
        mut escape: impl FnMut(&[u8], &mut Vec<u8>),
        out: &mut Vec<u8>,
    ) -> usize {
        let mut found = 0;
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Capture(number) => {
                    out.extend_from_slice(captures.get(*number).map_or(b"", |text| text));
                }
                Part::Var { name, default } => {
                    let value = vars.var(name);
                    let text = value.as_ref().and_then(|value| value.to_bytes());
                    if let Some(text) = text.as_deref().or(default.as_deref()) {
                        found += 1;
                        escape(text, out);
                    }
                }
            }
        }
        found
    }
}

/// Reads what follows a `$`: the variable, and the text behind it.
fn variable(text: &str, captures: bool) -> Option<(Part, &str)> {
    if captures && let Some((number, after)) = capture(text) {
        return Some((Part::Capture(number), after));
    }
    if let Some(inner) = text.strip_prefix('{')
        && let Some(end) = inner.find('}')
        && end > 0
    {
        return Some((named(&inner[..end]), &inner[end + 1..]));
    }
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let end = text.find(|c| !of_name(c)).unwrap_or(text.len());
    (end > 0).then(|| (named(&text[..end]), &text[end..]))
}

/// `name` or `name ?? default`.
fn named(text: &str) -> Part {
    let mut words = text.split("??").map(str::trim);
    let name = VarName::parse(words.next().unwrap_or_default());
    Part::Var { name, default: words.next().map(|text| text.as_bytes().into()) }
}

/// `1`, `{1}`, and, as APISIX takes them, `{1` and `1}`.
fn capture(text: &str) -> Option<(usize, &str)> {
    let text = text.strip_prefix('{').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    let after = &text[end..];
    Some((number, after.strip_prefix('}').unwrap_or(after)))
}

#[cfg(test)]
mod tests {
    use sluicegate_gateway::expr::Value;

    use super::*;

    struct Table;

    impl Vars for Table {
        fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
            match name.to_string().as_str() {
                "remote_addr" => Some("127.0.0.1".into()),
                "http_x_user" => Some("ann".into()),
                "post_arg.a.b" => Some(2.0.into()),
                "arg_empty" => Some("".into()),
                _ => None,
            }
        }
    }

    #[test]
    fn variables_are_read_as_apisix_reads_them() {
        for (text, rendered, found) in [
            ("plain", "plain", 0),
            ("", "", 0),
            ("$remote_addr", "127.0.0.1", 1),
            ("a-${remote_addr}-$http_x_user!", "a-127.0.0.1-ann!", 2),
            ("${ http_x_user }", "ann", 1),
            ("$post_arg.a.b", "2", 1),
            ("[$arg_none]", "[]", 0),
            ("[$arg_empty]", "[]", 1),
            ("${arg_none ?? me}", "me", 1),
            ("${http_x_user??me}", "ann", 1),
            ("\\$remote_addr", "\\$remote_addr", 0),
            ("5$ $ ${ $-", "5$ $ ${ $-", 0),
            ("$remote_addr$", "127.0.0.1$", 1),
            ("$1", "", 0),
            ("ü$http_x_user", "üann", 1),
        ] {
            let template = Template::compile(text);
            let resolved = template.resolve(&Table);
            assert_eq!(String::from_utf8_lossy(&resolved.text), rendered, "{text}");
            assert_eq!(resolved.found, found, "{text}");
            assert_eq!(template.literal().is_none(), template.vars().count() > 0, "{text}");
        }
    }

    #[test]
    fn a_dot_ends_a_name_of_nginx() {
        for (text, rendered) in [
            ("https://$remote_addr.test/${http_x_user}", "https://127.0.0.1.test/ann"),
            ("${http_x_user ?? a} \\$http_x_user", "${http_x_user ?? a} \\$http_x_user"),
        ] {
            let out = Template::of_nginx(text).render(&Table).into_owned();
            assert_eq!(String::from_utf8(out).unwrap(), rendered);
        }
    }

    #[test]
    fn a_query_begins_at_the_first_mark_in_the_text() {
        for (text, path, query) in [
            ("/a?b=1?", "/a", Some("b=1?")),
            ("/${x ?? ?}/$remote_addr?$http_x_user", "/?/127.0.0.1", Some("ann")),
            ("/a?", "/a", Some("")),
            ("?x", "", Some("x")),
            ("/a$1", "/a", None),
        ] {
            let (first, second) = Template::compile(text).split_query();
            assert_eq!(first.render(&Table), path.as_bytes(), "{text}");
            let second = second.map(|second| second.render(&Table).into_owned());
            assert_eq!(second.as_deref(), query.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn captures_come_as_they_are_and_values_escaped() {
        let captures: [Box<[u8]>; 2] = [b"/all"[..].into(), b"$remote_addr"[..].into()];
        for (text, rendered) in [
            ("$1", "$remote_addr"),
            ("${1}x$0", "$remote_addrx/all"),
            ("$1b|$9|$http_x_user", "$remote_addrb||ANN"),
            ("\\$1", "\\$1"),
        ] {
            let mut out = Vec::new();
            let upper = |text: &[u8], out: &mut Vec<u8>| out.extend(text.to_ascii_uppercase());
            Template::with_captures(text).write(&Table, &captures, upper, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), rendered, "{text}");
        }
    }
}

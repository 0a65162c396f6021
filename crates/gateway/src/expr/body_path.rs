//! `post_arg.PATH`: a value out of a request's body.
//!
//! As in APISIX, a path without brackets, `*` or `..` is a way through objects (`user.name`), and
//! any other is a JSONPath whose results are a list (`messages[*].content[*].type`). The body is
//! JSON, an HTML form or `multipart/form-data`; of the latter two a path names a field.
//!
//! A body is read through once, and only what the path leads to is kept: a condition costs no more
//! memory than the values that it compares.
//!
//! Differs: filters and scripts (`[?(...)]`, `[(...)]`), steps of slices and places counted from
//! the end are refused where APISIX evaluates them.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

use super::Value;

/// A compiled path.
#[derive(Clone)]
pub struct BodyPath {
    text: Box<str>,
    /// `None`: it cannot be read, and finds nothing.
    steps: Option<Box<[Step]>>,
    /// The results are a list, however many there are.
    lists: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A member of an object.
    Name(Box<str>),
    /// A place in an array.
    Index(usize),
    /// Places in an array, the end left out.
    Slice(usize, usize),
    /// Everything in an object or an array.
    Any,
    /// One of several of the above.
    OneOf(Box<[Step]>),
    /// This value and all that are in it.
    Descend,
}

impl BodyPath {
    /// Compiles what stands behind `post_arg.`.
    pub fn parse(text: &str) -> Self {
        let lists = text.contains(['[', '*']) || text.contains("..");
        let steps = if lists {
            Reader { rest: text }.steps()
        } else {
            Some(text.split('.').map(|name| Step::Name(name.into())).collect())
        };
        Self { text: text.into(), steps: steps.map(Vec::into), lists }
    }

    /// Can it be read?
    pub fn is_valid(&self) -> bool {
        self.steps.is_some()
    }

    /// The path as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value in a JSON document; none in what is no JSON.
    pub(crate) fn in_json(&self, body: &[u8]) -> Option<Value<'static>> {
        let steps = self.steps.as_deref()?;
        let mut found = Found { values: Vec::new(), room: VALUES_MAX, single: !self.lists };
        let mut json = serde_json::Deserializer::from_slice(body);
        Walk { steps, at: SmallVec::from_slice(&[0]), keep: false, found: &mut found }
            .deserialize(&mut json)
            .ok()?;
        json.end().ok()?;
        match (self.lists, found.values) {
            (_, values) if values.is_empty() => None,
            (true, values) => Some(Value::List(values)),
            (false, mut values) => values.pop(),
        }
    }

    /// The value among named fields, each name with what was given for it.
    pub(crate) fn in_fields<'a>(
        &self,
        values_of: impl Fn(&str) -> Vec<Value<'a>>,
    ) -> Option<Value<'a>> {
        let steps = self.steps.as_deref()?;
        let (Step::Name(name), rest) = steps.split_first()? else { return None };
        let mut values = values_of(name);
        let value = match values.len() {
            0 => return None,
            1 => values.remove(0),
            _ => Value::List(values),
        };
        match (rest, value) {
            ([], value) if self.lists => Some(Value::List(vec![value])),
            ([], value) => Some(value),
            ([Step::Any], Value::List(values)) => Some(Value::List(values)),
            ([Step::Index(at)], Value::List(values)) => {
                Some(Value::List(vec![values.into_iter().nth(*at)?]))
            }
            _ => None,
        }
    }
}

impl PartialEq for BodyPath {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for BodyPath {}

impl Hash for BodyPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for BodyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BodyPath").field(&self.text).finish()
    }
}

/// Reads a JSONPath that begins behind its `$.`.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn steps(mut self) -> Option<Vec<Step>> {
        let mut steps = vec![];
        if !self.rest.starts_with('[') && !self.rest.starts_with("..") {
            steps.push(self.name()?);
        }
        while !self.rest.is_empty() {
            if steps.len() >= STEPS_MAX {
                return None;
            }
            if self.take("..") {
                steps.push(Step::Descend);
                if !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.take(".") {
                steps.push(self.name()?);
            } else if self.take("[") {
                steps.push(self.brackets()?);
            } else {
                return None;
            }
        }
        (steps.last() != Some(&Step::Descend)).then_some(steps)
    }

    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Option<Step> {
        if self.take("*") {
            return Some(Step::Any);
        }
        let end = self.rest.find(['.', '[', ']', '*', '\'', '"']).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| Step::Name(name.into()))
    }

    fn brackets(&mut self) -> Option<Step> {
        let mut all = vec![self.bracket()?];
        while self.take(",") {
            all.push(self.bracket()?);
        }
        self.take("]").then(|| match all.len() {
            1 => all.remove(0),
            _ => Step::OneOf(all.into()),
        })
    }

    fn bracket(&mut self) -> Option<Step> {
        self.rest = self.rest.trim_start();
        let step = if self.take("*") {
            Step::Any
        } else if let Some(quote @ ('\'' | '"')) = self.rest.chars().next() {
            let (name, rest) = self.rest[1..].split_once(quote)?;
            self.rest = rest;
            Step::Name(name.into())
        } else {
            let start = self.number()?;
            if self.take(":") {
                Step::Slice(start.unwrap_or(0), self.number()?.unwrap_or(usize::MAX))
            } else {
                Step::Index(start?)
            }
        };
        self.rest = self.rest.trim_start();
        Some(step)
    }

    /// A number, if one stands here; `None`: it is too large.
    fn number(&mut self) -> Option<Option<usize>> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        if digits.is_empty() { Some(None) } else { digits.parse().ok().map(Some) }
    }
}

/// What a path led to.
struct Found {
    values: Vec<Value<'static>>,
    /// How many more values are kept.
    room: usize,
    /// Of a member that comes twice the last one counts.
    single: bool,
}

/// Reads one value of a document, at which the path has come to the steps `at`.
struct Walk<'a> {
    steps: &'a [Step],
    at: SmallVec<[usize; 4]>,
    /// The value is part of one that the path led to.
    keep: bool,
    found: &'a mut Found,
}

impl Walk<'_> {
    /// Where the path comes to in a child, given by a test for one step.
    fn down(&self, leads: &dyn Fn(&Step) -> bool) -> SmallVec<[usize; 4]> {
        let mut down = SmallVec::new();
        for &at in &self.at {
            match self.steps.get(at) {
                Some(Step::Descend) => down.push(at),
                Some(step) if leads(step) => down.push(at + 1),
                _ => {}
            }
        }
        down
    }

    /// Takes in what follows a `..`, and says whether the path ends here.
    fn arrive(&mut self) -> bool {
        let mut seen = 0;
        while let Some(&at) = self.at.get(seen) {
            if self.steps.get(at) == Some(&Step::Descend) && !self.at.contains(&(at + 1)) {
                self.at.push(at + 1);
            }
            seen += 1;
        }
        self.at.contains(&self.steps.len())
    }

    fn value<E: serde::de::Error>(
        mut self,
        value: impl FnOnce() -> Value<'static>,
    ) -> Result<Value<'static>, E> {
        let ends = self.arrive();
        if !ends && !self.keep {
            return Ok(Value::Nil);
        }
        let value = value();
        self.found.count()?;
        if ends {
            self.found.values.push(value.clone());
        }
        Ok(value)
    }
}

impl Found {
    fn count<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.room = self.room.checked_sub(1).ok_or_else(|| E::custom("too many values"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Value<'static>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Value<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Self::Value, E> {
        self.value(|| Value::Bool(flag))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
        self.visit_f64(number as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
        self.visit_f64(number as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Self::Value, E> {
        self.value(|| Value::Num(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.value(|| text.to_owned().into())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        // A path that leads to null has led nowhere.
        Ok(Value::Nil)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Self::Value, A::Error> {
        let ends = self.arrive();
        let keep = self.keep || ends;
        let mut list = Vec::new();
        let place = self.found.values.len();
        for n in 0_usize.. {
            let at = self.down(&|step| leads_to_item(step, n));
            if at.is_empty() && !keep {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                continue;
            }
            let item = Walk { steps: self.steps, at, keep, found: &mut *self.found };
            match items.next_element_seed(item)? {
                Some(value) if keep => list.push(value),
                Some(_) => {}
                None => break,
            }
        }
        if !keep {
            return Ok(Value::Nil);
        }
        self.found.count()?;
        if ends {
            self.found.values.insert(place, Value::List(list.clone()));
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Self::Value, A::Error> {
        let ends = self.arrive();
        let keep = self.keep || ends;
        if ends {
            // What an object holds is compared with nothing.
            self.found.count()?;
            self.found.values.push(Value::List(Vec::new()));
        }
        while let Some(name) = members.next_key::<std::borrow::Cow<'de, str>>()? {
            let at = self.down(&|step| leads_to_member(step, &name));
            if at.is_empty() {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            if self.found.single {
                self.found.values.clear();
            }
            members.next_value_seed(Walk {
                steps: self.steps,
                at,
                keep: false,
                found: &mut *self.found,
            })?;
        }
        Ok(if keep { Value::List(Vec::new()) } else { Value::Nil })
    }
}

fn leads_to_item(step: &Step, place: usize) -> bool {
    match step {
        Step::Any => true,
        Step::Index(at) => *at == place,
        Step::Slice(start, end) => (*start..*end).contains(&place),
        Step::OneOf(all) => all.iter().any(|step| leads_to_item(step, place)),
        Step::Name(_) | Step::Descend => false,
    }
}

fn leads_to_member(step: &Step, name: &str) -> bool {
    match step {
        Step::Any => true,
        Step::Name(wanted) => **wanted == *name,
        Step::OneOf(all) => all.iter().any(|step| leads_to_member(step, name)),
        Step::Index(_) | Step::Slice(..) | Step::Descend => false,
    }
}

/// The parts of a `multipart/form-data` body that have a name, each with its content.
pub(crate) fn parts<'a>(media: &[u8], body: &'a [u8]) -> Vec<(&'a [u8], &'a [u8])> {
    let Some(boundary) = parameter(media, b"boundary") else { return Vec::new() };
    let mut mark = b"--".to_vec();
    mark.extend_from_slice(boundary);
    let find = memchr::memmem::Finder::new(&mark);
    let mut parts = Vec::new();
    let Some(mut from) = find.find(body).map(|at| at + mark.len()) else { return parts };
    while parts.len() < PARTS_MAX {
        let Some(end) = find.find(&body[from..]) else { break };
        let part = &body[from..from + end];
        from += end + mark.len();
        // Lines may end in a mere line feed, as some clients send them.
        let ends = [&b"\r\n\r\n"[..], b"\n\n"].into_iter();
        let ends = ends.filter_map(|end| Some((memchr::memmem::find(part, end)?, end.len())));
        let Some((head_end, blank)) = ends.min() else { continue };
        let content = &part[head_end + blank..];
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        let content = content.strip_suffix(b"\r").unwrap_or(content);
        let disposition = part[..head_end].split(|b| *b == b'\n').find_map(|line| {
            let at = memchr::memchr(b':', line)?;
            line[..at]
                .trim_ascii()
                .eq_ignore_ascii_case(b"content-disposition")
                .then(|| &line[at + 1..])
        });
        if let Some(name) = disposition.and_then(|value| parameter(value, b"name")) {
            parts.push((name, content));
        }
    }
    parts
}

/// A parameter of a field's value: what stands behind `; NAME=`, quotes taken away.
fn parameter<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    value.split(|b| *b == b';').skip(1).find_map(|part| {
        let at = memchr::memchr(b'=', part)?;
        if !part[..at].trim_ascii().eq_ignore_ascii_case(name) {
            return None;
        }
        let value = part[at + 1..].trim_ascii();
        let plain = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(plain.unwrap_or(value)).filter(|value| !value.is_empty())
    })
}

/// The most steps of a path.
const STEPS_MAX: usize = 32;

/// The most values that a path may lead to in one body, those in arrays counted; beyond, the
/// variable has no value.
const VALUES_MAX: usize = 100_000;

/// The most parts of a `multipart/form-data` body that are looked at.
const PARTS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &Value<'_>) -> String {
        match value {
            Value::List(values) => {
                format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(","))
            }
            value => String::from_utf8_lossy(&value.to_bytes().unwrap_or_default()).into_owned(),
        }
    }

    #[test]
    fn a_path_leads_through_json() {
        let body = br#"{"model":"m1","n":2.5,"ok":false,"none":null,"user":{"name":"ann","tags":["a","b"]},
            "messages":[{"content":[{"type":"text"},{"type":"image_url"}]},{"content":[{"type":"audio"}]}],
            "a.b":"dotted","model":"m2"}"#;
        for (path, expected) in [
            ("model", Some("m2")),
            ("n", Some("2.5")),
            ("ok", Some("false")),
            ("none", None),
            ("user.name", Some("ann")),
            ("user.name.first", None),
            ("user.tags", Some("[a,b]")),
            ("user", Some("[]")),
            ("nobody", None),
            ("messages[*].content[*].type", Some("[text,image_url,audio]")),
            ("messages[0].content[*].type", Some("[text,image_url]")),
            ("messages[1:2].content[0].type", Some("[audio]")),
            ("messages[:1].content[1:].type", Some("[image_url]")),
            ("messages..type", Some("[text,image_url,audio]")),
            ("..name", Some("[ann]")),
            ("user.*", Some("[ann,[a,b]]")),
            ("user['name','tags']", Some("[ann,[a,b]]")),
            ("['a.b']", Some("[dotted]")),
            ("user.tags[0,1]", Some("[a,b]")),
            ("user.tags[5]", None),
        ] {
            let path = BodyPath::parse(path);
            assert!(path.is_valid(), "{path:?}");
            assert_eq!(path.in_json(body).as_ref().map(shown).as_deref(), expected, "{path:?}");
        }
    }

    #[test]
    fn of_a_member_that_comes_twice_the_last_counts() {
        let path = BodyPath::parse("a.b");
        for (body, expected) in [
            (r#"{"a":{"b":1},"a":{"b":2}}"#, Some("2")),
            (r#"{"a":{"b":1},"a":{}}"#, None),
            (r#"{"a":{"b":1},"a":7}"#, None),
        ] {
            let value = path.in_json(body.as_bytes());
            assert_eq!(value.as_ref().map(shown).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_json_has_no_values() {
        for body in ["", "{", r#"{"a":1} x"#, r#"{"a":1,}"#, "[1]"] {
            assert_eq!(BodyPath::parse("a").in_json(body.as_bytes()), None, "{body}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        assert_eq!(BodyPath::parse("..a").in_json(deep.as_bytes()), None);
    }

    #[test]
    fn more_values_than_are_kept_are_none() {
        let list = |n: usize| format!("[{}]", vec!["1"; n].join(","));
        let path = BodyPath::parse("[*]");
        let some = path.in_json(list(VALUES_MAX).as_bytes());
        assert!(matches!(some, Some(Value::List(all)) if all.len() == VALUES_MAX));
        assert_eq!(path.in_json(list(VALUES_MAX + 1).as_bytes()), None);
    }

    #[test]
    fn paths_that_cannot_be_read_are_not_valid() {
        for path in [
            "messages[.content[*].type",
            "a[",
            "a[]",
            "a[-1]",
            "a[?(@.b)]",
            "a[(1)]",
            "a..",
            "a[0]b",
            "a[1:2:3]",
            "*..",
        ] {
            assert!(!BodyPath::parse(path).is_valid(), "{path}");
        }
        let long = |n: usize| format!("a[*]{}", ".b".repeat(n));
        assert!(BodyPath::parse(&long(STEPS_MAX - 2)).is_valid());
        assert!(!BodyPath::parse(&long(STEPS_MAX)).is_valid());
    }

    #[test]
    fn parts_of_a_form_have_names() {
        let media = br#"multipart/form-data; boundary="x y""#;
        let body = b"ignored\r\n--x y\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nopenai\r\n\
            --x y\r\ncontent-disposition: form-data; name=file; filename=\"name=no\"\r\nContent-Type: text/plain\r\n\r\na\r\nb\r\n\
            --x y\r\nX: y\r\n\r\nnameless\r\n--x y--\r\n";
        let expected: [(&[u8], &[u8]); 2] = [(b"model", b"openai"), (b"file", b"a\r\nb")];
        assert_eq!(parts(media, body), expected);
        let body = b"--x y\nContent-Disposition: form-data; name=a\n\n1\r\n\r\n2\n--x y--\n";
        assert_eq!(parts(media, body), [(&b"a"[..], &b"1\r\n\r\n2"[..])]);
        assert!(parts(b"multipart/form-data", body).is_empty());
        assert!(
            parts(media, b"--x y\r\nContent-Disposition: form-data; name=a\r\n\r\ncut off")
                .is_empty()
        );
    }
}

//! An empty admin key is generated and written back into the file's text.
//!
//! The file is its owner's: comments, order, quotes and blank lines stay. So the text is edited at
//! the place where the parser saw the value, never written anew; and an edit only counts when the
//! new text, read again, says the same as the old one plus the key.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Problems, Warning};
use crate::secret::Secret;
use crate::settings::{AdminKey, AdminRole, Config};
use crate::starter::random_text;
use crate::yaml::{self, Content, Entry, Node};

impl Config {
    /// Generates every empty admin key, here and in the file this configuration was read from.
    ///
    /// Does nothing when the Admin API is off. `random` fills its buffer with random bytes. The
    /// warnings say which key was written where, or that it could not be and holds for this run
    /// only; the key itself is in none of them.
    // Differs: APISIX generates keys of role admin only; an empty viewer key stays unusable there.
    pub fn fill_admin_keys(
        &mut self,
        path: &Path,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if !self.apisix.enable_admin {
            return warnings;
        }
        let keys = &mut self.deployment.admin.admin_key;
        if keys.is_empty() {
            let name = "admin".to_owned();
            keys.push(AdminKey { name, key: Secret::default(), role: AdminRole::Admin });
        }
        for (index, admin) in keys.iter_mut().enumerate().filter(|(_, key)| key.key.is_empty()) {
            let key = random_text(KEY_CHARS, random);
            let written = write_into(path, index, key.expose());
            admin.key = key;
            let file = path.display().to_string();
            let path = format!("deployment.admin.admin_key[{index}].key");
            warnings.push(match written {
                Ok(()) => Warning::AdminKeyGenerated { file, path },
                Err(reason) => Warning::AdminKeyNotWritten { file, path, reason },
            });
        }
        warnings
    }
}

fn write_into(path: &Path, index: usize, key: &str) -> Result<(), String> {
    let text = crate::file::read(path).map_err(|error| error.to_string())?;
    let text = write_admin_key(&text, index, key)
        .ok_or("there is no place for it, or a variable or alias stands there")?;
    crate::file::replace(path, &text).map_err(|error| error.to_string())
}

/// The configuration text with `deployment.admin.admin_key[index].key` set to `key`, all else as
/// it was. `None` when the key there is not empty, comes from a variable or an alias, or when there
/// is no way to write it.
///
/// Missing sections are added, for `index` 0 only: `yq '.deployment.admin.admin_key[0].key'` finds
/// the key afterwards.
pub fn write_admin_key(text: &str, index: usize, key: &str) -> Option<String> {
    let before = parse(text)?;
    let edit = Edit { text, before: before.as_ref(), quoted: quote(key), index };
    let after = edit.apply()?;
    // Invariant: an edit that changed anything but the key is never returned.
    let mut wanted = before.map_or(Value::Null, |node| node.to_json());
    set_key(&mut wanted, index, key)?;
    let found = parse(&after)?.map_or(Value::Null, |node| node.to_json());
    (found == wanted).then_some(after)
}

struct Edit<'a> {
    text: &'a str,
    before: Option<&'a Node>,
    quoted: String,
    index: usize,
}

/// The way to the list of keys.
const PATH: [&str; 3] = ["deployment", "admin", "admin_key"];

impl Edit<'_> {
    fn apply(&self) -> Option<String> {
        let Some(mut node) = self.before.filter(|root| !root.is_null()) else {
            return Some(self.append());
        };
        for (depth, name) in PATH.iter().enumerate() {
            let rest = &PATH[depth..];
            if node.alias {
                return None;
            }
            node = match node.entry(name) {
                Some(entry) if entry.value.is_null() => {
                    return self.fill(entry, &self.flow(&rest[1..]));
                }
                Some(entry) => &entry.value,
                None if self.index > 0 => return None,
                None if depth == 0 && !self.is_flow(node) => return Some(self.append()),
                None => {
                    return self.insert(node, name, &self.flow(&rest[1..]), || self.block(rest));
                }
            };
        }
        self.in_list(node)
    }

    /// Writes the key into the list of keys.
    fn in_list(&self, list: &Node) -> Option<String> {
        let Content::List(items) = &list.content else { return None };
        if list.alias {
            return None;
        }
        let Some(item) = items.get(self.index) else {
            // An empty list has brackets; the parser's place of the closing one is not reliable.
            let map = self.item();
            let empty = items.is_empty() && self.index == 0;
            return empty.then(|| self.splice(list.end, list.end, &map))?;
        };
        if item.alias {
            return None;
        }
        match item.entry("key") {
            None => self
                .insert(item, "key", &self.quoted, || vec![(0, format!("key: {}", self.quoted))]),
            Some(entry) => match &entry.value.content {
                Content::Scalar(scalar) if scalar.text.is_empty() || entry.value.is_null() => {
                    self.fill(entry, &self.quoted)
                }
                _ => None,
            },
        }
    }

    /// Puts a value where a key has none, or an empty or null one.
    fn fill(&self, entry: &Entry, value: &str) -> Option<String> {
        let node = &entry.value;
        if node.alias || (self.index > 0 && value != self.quoted) {
            return None;
        }
        let old = self.slice(node.start, node.end)?;
        // The parser counts a comment behind quotes as theirs, so only the start tells.
        let nothing = ["''", "\"\"", "~", "null", "Null", "NULL"];
        if let Some(nothing) = nothing.iter().find(|nothing| old.starts_with(**nothing)) {
            return self.splice(node.start, node.start + nothing.len(), value);
        }
        if !old.is_empty() {
            return None;
        }
        // Nothing is written after the colon; the parser's place for "nothing" is not reliable.
        let behind_key = self.slice(entry.key_end, self.text.chars().count())?;
        let blanks = behind_key.chars().take_while(|c| *c == ' ').count();
        if !behind_key[blanks..].starts_with(':') {
            return None;
        }
        let colon = entry.key_end + blanks + 1;
        let next = self.slice(colon, self.text.chars().count())?.chars().next();
        // `{key:}` and `key:# x` would run into what follows.
        let after =
            if next.is_none_or(|c| c.is_whitespace() || "},]".contains(c)) { "" } else { " " };
        self.splice(colon, colon, &format!(" {value}{after}"))
    }

    /// Adds a key in front of a map's first one.
    fn insert(
        &self,
        map: &Node,
        name: &str,
        flow: &str,
        block: impl FnOnce() -> Vec<(usize, String)>,
    ) -> Option<String> {
        let first = map.entries()?.first();
        if self.is_flow(map) {
            return match first {
                Some(first) => {
                    self.splice(first.key_start, first.key_start, &format!("{name}: {flow}, "))
                }
                None => self.splice(map.end, map.end, &format!("{name}: {flow}")),
            };
        }
        let first = first?;
        let mut lines = String::new();
        for (number, (deeper, line)) in block().into_iter().enumerate() {
            if number > 0 {
                lines += &" ".repeat(first.key_column + deeper);
            }
            lines += &line;
            lines += self.line_end();
        }
        lines += &" ".repeat(first.key_column);
        self.splice(first.key_start, first.key_start, &lines)
    }

    /// Adds the whole section at the file's end.
    fn append(&self) -> String {
        let mut out = self.text.to_owned();
        if !out.is_empty() && !out.ends_with('\n') {
            out += self.line_end();
        }
        for (deeper, line) in self.block(&PATH) {
            out += &" ".repeat(deeper);
            out += &line;
            out += self.line_end();
        }
        out
    }

    /// The sections `names`, the last of which is the list of keys, one line each.
    fn block(&self, names: &[&str]) -> Vec<(usize, String)> {
        let mut lines: Vec<_> =
            names.iter().enumerate().map(|(depth, name)| (2 * depth, format!("{name}:"))).collect();
        let deeper = 2 * names.len();
        lines.push((deeper, "- name: admin".into()));
        lines.push((deeper + 2, format!("key: {}", self.quoted)));
        lines.push((deeper + 2, "role: admin".into()));
        lines
    }

    /// The value of the key in front of `names`, on one line.
    fn flow(&self, names: &[&str]) -> String {
        let list = format!("[{}]", self.item());
        names.iter().rev().fold(list, |value, name| format!("{{{name}: {value}}}"))
    }

    /// A list's new entry, on one line.
    fn item(&self) -> String {
        format!("{{name: admin, key: {}, role: admin}}", self.quoted)
    }

    fn is_flow(&self, map: &Node) -> bool {
        self.slice(map.start, map.end).is_some_and(|open| open.ends_with('{'))
    }

    fn line_end(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }

    /// The text between two places, which count characters.
    fn slice(&self, start: usize, end: usize) -> Option<&str> {
        self.text.get(self.byte(start)..self.byte(end))
    }

    fn splice(&self, start: usize, end: usize, with: &str) -> Option<String> {
        let (start, end) = (self.byte(start), self.byte(end));
        Some([self.text.get(..start)?, with, self.text.get(end..)?].concat())
    }

    fn byte(&self, char: usize) -> usize {
        self.text.char_indices().nth(char).map_or(self.text.len(), |(byte, _)| byte)
    }
}

/// The outer `None`: the text cannot be read. The inner: there is nothing in it.
fn parse(text: &str) -> Option<Option<Node>> {
    let mut problems = Problems::default();
    let node = yaml::read("", text, &mut problems).ok()?;
    problems.into_result("").ok()?;
    Some(node)
}

/// What the edited text has to say.
fn set_key(value: &mut Value, index: usize, key: &str) -> Option<()> {
    let mut value = value;
    for name in PATH {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        value = value.as_object_mut()?.entry(name).or_insert(Value::Null);
    }
    if value.is_null() {
        *value = json!([]);
    }
    let keys = value.as_array_mut()?;
    if keys.is_empty() && index == 0 {
        keys.push(json!({"name": "admin", "role": "admin"}));
    }
    keys.get_mut(index)?.as_object_mut()?.insert("key".into(), key.into());
    Some(())
}

/// Single quotes, so that digits stay text.
fn quote(key: &str) -> String {
    format!("'{}'", key.replace('\'', "''"))
}

/// Length of a generated key, as APISIX's.
const KEY_CHARS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdefABCDEF0123456789";

    #[track_caller]
    fn check(index: usize, before: &str, after: &str) {
        let found = write_admin_key(before, index, KEY);
        let expected = after.replace("KEY", &format!("'{KEY}'"));
        assert_eq!(found.as_deref(), Some(expected.as_str()), "\n{before}");
    }

    #[test]
    fn an_empty_key_is_filled_in_place_and_all_else_stays() {
        for (empty, filled) in [
            ("key: ''", "key: KEY"),
            ("key: \"\"", "key: KEY"),
            ("key:", "key: KEY"),
            ("key: ", "key: KEY "),
            ("key: ~", "key: KEY"),
            ("key: null", "key: KEY"),
            ("key: ''  # empty: generated", "key: KEY  # empty: generated"),
            ("key:   # generated", "key: KEY   # generated"),
            ("'key' : ''", "'key' : KEY"),
            ("\"key\" :", "\"key\" : KEY"),
        ] {
            // The comment's letters take more bytes than characters.
            let text = |key: &str| {
                format!(
                    "# Schlüssel\n\napisix:\n  node_listen: 9080   # plain\ndeployment:\n  admin:\n    \
                     admin_key:\n      -\n        name: admin\n        {key}\n        role: \
                     admin\n\nplugins: [cors]\n"
                )
            };
            check(0, &text(empty), &text(filled));
        }
    }

    #[test]
    fn every_shape_of_list_takes_the_key() {
        for (before, after) in [
            (
                "deployment:\n  admin:\n    admin_key:\n    - name: a\n      key: ''\n",
                "deployment:\n  admin:\n    admin_key:\n    - name: a\n      key: KEY\n",
            ),
            (
                "deployment:\n  admin:\n    admin_key:\n      - key: ''\n        name: a\n",
                "deployment:\n  admin:\n    admin_key:\n      - key: KEY\n        name: a\n",
            ),
            (
                "deployment:\n  admin:\n    admin_key: [{name: a, key: '', role: admin}] # one\n",
                "deployment:\n  admin:\n    admin_key: [{name: a, key: KEY, role: admin}] # one\n",
            ),
            (
                "deployment: {admin: {admin_key: [{name: a, key: , role: admin}]}}",
                "deployment: {admin: {admin_key: [{name: a, key: KEY , role: admin}]}}",
            ),
            (
                "{deployment: {admin: {admin_key: [{name: a, key: }]}}}\n",
                "{deployment: {admin: {admin_key: [{name: a, key: KEY }]}}}\n",
            ),
            // The key itself is missing.
            (
                "deployment:\n  admin:\n    admin_key:\n      - name: a  # first\n        role: admin\n",
                "deployment:\n  admin:\n    admin_key:\n      - key: KEY\n        name: a  # first\n        role: admin\n",
            ),
            (
                "deployment:\n  admin:\n    admin_key: [{name: a}]\n",
                "deployment:\n  admin:\n    admin_key: [{key: KEY, name: a}]\n",
            ),
            (
                "deployment:\n  admin:\n    admin_key: [{}]\n",
                "deployment:\n  admin:\n    admin_key: [{key: KEY}]\n",
            ),
            // The list is empty, null or missing.
            (
                "deployment:\n  admin:\n    admin_key: []  # none\n",
                "deployment:\n  admin:\n    admin_key: [{name: admin, key: KEY, role: admin}]  # none\n",
            ),
            (
                "deployment:\n  admin:\n    admin_key:  # none\n    allow_admin: []\n",
                "deployment:\n  admin:\n    admin_key: [{name: admin, key: KEY, role: admin}]  # none\n    allow_admin: []\n",
            ),
            (
                "deployment:\n  admin:\n    admin_key: ~\n",
                "deployment:\n  admin:\n    admin_key: [{name: admin, key: KEY, role: admin}]\n",
            ),
            (
                "deployment:\n  admin:\n    # who\n    allow_admin: [10.0.0.0/8]\n",
                "deployment:\n  admin:\n    # who\n    admin_key:\n      - name: admin\n        key: KEY\n        role: admin\n    allow_admin: [10.0.0.0/8]\n",
            ),
            (
                "deployment:\n  admin: {allow_admin: []}\n",
                "deployment:\n  admin: {admin_key: [{name: admin, key: KEY, role: admin}], allow_admin: []}\n",
            ),
            (
                "deployment:\n  admin: {}\n",
                "deployment:\n  admin: {admin_key: [{name: admin, key: KEY, role: admin}]}\n",
            ),
            (
                "deployment:\n  admin:\nplugins: []\n",
                "deployment:\n  admin: {admin_key: [{name: admin, key: KEY, role: admin}]}\nplugins: []\n",
            ),
            (
                "deployment:\n  role: traditional\n",
                "deployment:\n  admin:\n    admin_key:\n      - name: admin\n        key: KEY\n        role: admin\n  role: traditional\n",
            ),
            (
                "deployment:\n",
                "deployment: {admin: {admin_key: [{name: admin, key: KEY, role: admin}]}}\n",
            ),
            (
                "apisix:\n  node_listen: 1",
                "apisix:\n  node_listen: 1\ndeployment:\n  admin:\n    admin_key:\n      - name: admin\n        key: KEY\n        role: admin\n",
            ),
            (
                "# nothing yet\n",
                "# nothing yet\ndeployment:\n  admin:\n    admin_key:\n      - name: admin\n        key: KEY\n        role: admin\n",
            ),
            (
                "",
                "deployment:\n  admin:\n    admin_key:\n      - name: admin\n        key: KEY\n        role: admin\n",
            ),
            ("{}", "{deployment: {admin: {admin_key: [{name: admin, key: KEY, role: admin}]}}}"),
            (
                "apisix:\r\n  node_listen: 1\r\n",
                "apisix:\r\n  node_listen: 1\r\ndeployment:\r\n  admin:\r\n    admin_key:\r\n      - name: admin\r\n        key: KEY\r\n        role: admin\r\n",
            ),
        ] {
            check(0, before, after);
        }
    }

    #[test]
    fn a_later_key_of_the_list_is_filled_too() {
        check(
            1,
            "deployment:\n  admin:\n    admin_key:\n      - {name: a, key: x}\n      - name: v\n        key:\n        role: viewer\n",
            "deployment:\n  admin:\n    admin_key:\n      - {name: a, key: x}\n      - name: v\n        key: KEY\n        role: viewer\n",
        );
    }

    #[test]
    fn what_is_not_empty_or_not_ours_to_write_stays() {
        for (index, text) in [
            (0, "deployment: {admin: {admin_key: [{name: a, key: secret}]}}"),
            (0, "deployment: {admin: {admin_key: [{name: a, key: '${{KEY}}'}]}}"),
            (0, "deployment: {admin: {admin_key: [{name: a, key: !!str }]}}"),
            (0, "deployment: {admin: {admin_key: [{name: a, key}]}}"),
            (0, "deployment: {admin: {admin_key: [null]}}"),
            (0, "deployment: {admin: {admin_key: x}}"),
            (0, "x: &e ''\ndeployment: {admin: {admin_key: [{name: a, key: *e}]}}"),
            (0, "x: &l [{name: a, key: ''}]\ndeployment: {admin: {admin_key: *l}}"),
            (1, "deployment: {admin: {admin_key: [{name: a, key: x}]}}"),
            (1, "deployment: {admin: {}}"),
            (1, "deployment:\n"),
            (0, "- a list\n"),
            (0, "a: [not yaml"),
            (0, "a: 1\na: 2\n"),
            (0, "a: 1\n...\n"),
        ] {
            assert_eq!(write_admin_key(text, index, KEY), None, "{text}");
        }
    }

    #[test]
    fn any_key_survives_the_quoting() {
        for key in ["it's", "123", "a: b # c", "${{X}}", "\"", "true"] {
            let text = write_admin_key("", 0, key).unwrap();
            let node = parse(&text).unwrap().unwrap();
            assert_eq!(node.to_json()["deployment"]["admin"]["admin_key"][0]["key"], key);
        }
        assert_eq!(write_admin_key("", 0, "two\nlines"), None);
    }
}

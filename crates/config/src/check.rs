//! Holds a tree against the table of keys.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use crate::error::{Problems, Warning};
use crate::keys::{KEYS, Key, Status, is_section, suggest};
use crate::kind::{FromParsed, Parsed, Report};
use crate::yaml::{self, Content, Node, join};

/// Every key's value: the file's, else the default. `Debug` shows none of them, as some are secret.
#[derive(Clone)]
pub(crate) struct Values {
    values: HashMap<&'static str, Parsed>,
    lines: HashMap<&'static str, usize>,
}

impl Values {
    /// A key's value. For keys that have a default.
    pub(crate) fn get<T: FromParsed>(&self, path: &str) -> T {
        self.opt(path).expect("the table of keys has a default for this path")
    }

    /// A key's value, `None` where it has no default and is not set.
    pub(crate) fn opt<T: FromParsed>(&self, path: &str) -> Option<T> {
        let value = T::from_parsed(self.parsed(path)?);
        Some(value.expect("the table of keys gives this path the kind that is read here"))
    }

    pub(crate) fn parsed(&self, path: &str) -> Option<&Parsed> {
        debug_assert!(
            KEYS.iter().any(|key| key.path == path),
            "{path} is not in the table of keys"
        );
        self.values.get(path)
    }

    /// The line a key is set on; `None` when it is not set.
    pub(crate) fn line(&self, path: &str) -> Option<usize> {
        self.lines.get(path).copied()
    }

    /// Keys of the other values that differ here and only count at start.
    pub(crate) fn restart_needed(&self, other: &Self) -> Vec<&'static str> {
        let differs = |path| self.values.get(path) != other.values.get(path);
        let keys = KEYS.iter().filter(|key| key.restart && differs(key.path));
        keys.map(|key| key.path).collect()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Values(..)")
    }
}

/// Reads every key of the file and fills the defaults in.
pub(crate) fn check(
    file: &str,
    root: Option<&Node>,
    problems: &mut Problems,
    warnings: &mut Vec<Warning>,
) -> Values {
    let mut values = Values { values: DEFAULTS.clone(), lines: HashMap::new() };
    let mut not_acted_on = Vec::new();
    if let Some(root) = root.filter(|root| !root.is_null()) {
        let report = Report { file, problems, warnings, not_acted_on: &mut not_acted_on };
        Walk { values: &mut values, report }.section(root, "");
    }
    if !not_acted_on.is_empty() {
        warnings.push(Warning::NotActedOn { paths: not_acted_on });
    }
    values
}

struct Walk<'a> {
    values: &'a mut Values,
    report: Report<'a>,
}

impl Walk<'_> {
    fn section(&mut self, node: &Node, path: &str) {
        let Content::Map(entries) = &node.content else {
            let name = if path.is_empty() { "(the whole file)" } else { path };
            self.report.problems.add(Some(node.line), name, "expected a map of keys");
            return;
        };
        for entry in entries {
            let key_path = join(path, &entry.key);
            // A name with a dot in it is one name, not a path.
            let dotted = entry.key.contains('.');
            let key = KEYS.iter().find(|key| !dotted && key.path == key_path);
            if let Some(key) = key {
                // Differs: in APISIX a null takes the default away; here it keeps the default.
                if entry.value.is_null() {
                    self.note_null(key.path, entry.key_line);
                    continue;
                }
                match key.status {
                    Status::Acted => {}
                    Status::Known => self.report.not_acted_on.push(key_path.clone()),
                    Status::Deprecated(instead) => {
                        let place = format!("{}:{}", self.report.file, entry.key_line);
                        let path = key_path.clone();
                        self.report.warnings.push(Warning::Deprecated { place, path, instead });
                    }
                }
                if let Some(value) = key.kind.parse(&entry.value, &key_path, &mut self.report) {
                    self.values.values.insert(key.path, value);
                    self.values.lines.insert(key.path, entry.value.line);
                }
            } else if !dotted && is_section(&key_path) {
                if !entry.value.is_null() {
                    self.section(&entry.value, &key_path);
                }
            } else {
                self.report.warnings.push(Warning::UnknownKey {
                    place: format!("{}:{}", self.report.file, entry.key_line),
                    suggestion: suggest(path, &entry.key),
                    path: key_path,
                });
            }
        }
    }

    fn note_null(&mut self, path: &str, line: usize) {
        if path == "deployment.admin.allow_admin" {
            self.report.warnings.push(Warning::Surprise(format!(
                "{}:{line}: {path} is empty, so the default 127.0.0.0/24 holds; to let everybody \
                 connect, write [0.0.0.0/0, '::/0']",
                self.report.file
            )));
        }
    }
}

static DEFAULTS: LazyLock<HashMap<&'static str, Parsed>> = LazyLock::new(|| {
    let with_default = KEYS.iter().filter(|key| !key.default.is_empty());
    with_default.map(|key| (key.path, default_of(key))).collect()
});

/// The default of a key that has one, read as a file's text would be.
pub(crate) fn default_of(key: &Key) -> Parsed {
    let (mut problems, mut warnings, mut not_acted_on) = (Problems::default(), vec![], vec![]);
    let node = yaml::read(key.path, key.default, &mut problems).ok().flatten();
    let mut report = Report {
        file: key.path,
        problems: &mut problems,
        warnings: &mut warnings,
        not_acted_on: &mut not_acted_on,
    };
    let value = node.and_then(|node| key.kind.parse(&node, key.path, &mut report));
    // Invariant: every default in the table is of its key's kind. A test reads them all.
    value.unwrap_or_else(|| panic!("the default of {} is not of its kind", key.path))
}

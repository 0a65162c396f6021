//! Whom a limit counts by: the text of a counter's name.
//!
//! As in APISIX it is made of the resource whose configuration it is, a version that changes with
//! that configuration, and what the request says. So the same configuration compiled anew goes on
//! counting, a changed one starts anew, and what a service says is counted for all its routes
//! together.

use std::fmt::Write as _;

use serde_json::Value;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::expr::{Builtin, VarName, Vars};

use crate::template::Template;

/// What of a request is counted by.
#[derive(Debug)]
pub(crate) enum Source {
    /// The value of a variable.
    Var(VarName),
    /// A text with variables.
    Combination(Template),
    /// The same for all.
    Constant(Box<[u8]>),
}

impl Source {
    /// Compiles `key` and `key_type`.
    pub(crate) fn compile(key: &str, key_type: &str) -> Self {
        match key_type {
            "constant" => Self::Constant(key.as_bytes().into()),
            "var_combination" => Self::Combination(Template::compile(key)),
            _ => Self::Var(VarName::parse(key)),
        }
    }

    /// Appends what the request says; `false`: it says nothing.
    fn write(&self, exchange: &Exchange, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Var(name) => write_var(exchange, name, out),
            Self::Combination(template) => {
                let plain = |value: &[u8], out: &mut Vec<u8>| out.extend_from_slice(value);
                template.write(exchange, &[], plain, out) > 0
            }
            Self::Constant(text) => {
                out.extend_from_slice(text);
                true
            }
        }
    }
}

/// The name of a configuration's counters, but for what the request says.
#[derive(Debug)]
pub(crate) struct Name {
    before: Box<str>,
    after: Box<str>,
}

impl Name {
    /// Counters of one configuration: `owner` is the resource it stands in (`route 1`), `action`
    /// its place among those of `workflow`.
    pub(crate) fn of(owner: &str, config: &Value, action: Option<usize>) -> Self {
        let mut before = resource_key(owner);
        let _ = write!(before, ":{}:", version(config));
        let after = action.map(|at| format!(":{at}")).unwrap_or_default();
        Self { before: before.into(), after: after.into() }
    }

    /// Counters that all configurations of a group share.
    pub(crate) fn of_group(group: &str) -> Self {
        Self { before: format!("{group}:").into(), after: "".into() }
    }

    /// Writes a counter's name for a request. `false`: the request has nothing to be counted by.
    pub(crate) fn write(&self, source: &Source, exchange: &Exchange, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(self.before.as_bytes());
        let found = source.write(exchange, out);
        if found {
            out.extend_from_slice(self.after.as_bytes());
        }
        found
    }

    /// Writes a counter's name for a request; one that says nothing is counted by its address.
    pub(crate) fn write_or_addr(&self, source: &Source, exchange: &Exchange, out: &mut Vec<u8>) {
        let start = out.len();
        if !self.write(source, exchange, out) {
            out.truncate(start);
            out.extend_from_slice(self.before.as_bytes());
            write_var(exchange, &VarName::Builtin(Builtin::RemoteAddr), out);
            out.extend_from_slice(self.after.as_bytes());
        }
    }
}

fn write_var(exchange: &Exchange, name: &VarName, out: &mut Vec<u8>) -> bool {
    if exchange.write_plain(name, out) {
        return true;
    }
    let value = exchange.var(name);
    match value.as_ref().and_then(|value| value.to_bytes()) {
        Some(text) => {
            out.extend_from_slice(&text);
            true
        }
        None => false,
    }
}

/// `route 1` as APISIX's key of that resource: `/apisix/routes/1`.
fn resource_key(owner: &str) -> String {
    match owner.rsplit_once(' ') {
        Some((kind, id)) => format!("/apisix/{}s/{id}", kind.replace(' ', "_")),
        None => format!("/apisix/{owner}"),
    }
}

/// A number that is another one for another configuration, on every gateway the same. The order of
/// fields does not matter, and `_meta` does not count.
pub(crate) fn version(config: &Value) -> u64 {
    let mut hash = FNV_OFFSET;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    };
    walk(config, true, &mut add);
    hash
}

fn walk(value: &Value, top: bool, add: &mut dyn FnMut(&[u8])) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            add(b"{");
            for (name, value) in fields.into_iter().filter(|(name, _)| !(top && *name == "_meta")) {
                add(name.as_bytes());
                add(b"\0");
                walk(value, false, add);
            }
            add(b"}");
        }
        Value::Array(items) => {
            add(b"[");
            for item in items {
                walk(item, false, add);
                add(b",");
            }
            add(b"]");
        }
        other => add(other.to_string().as_bytes()),
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_changes_with_what_counts_and_with_nothing_else() {
        let version = |value: Value| version(&value);
        let first = version(json!({"count": 2, "key": "a"}));
        assert_eq!(first, version(json!({"key": "a", "count": 2})));
        assert_eq!(first, version(json!({"key": "a", "count": 2, "_meta": {"priority": 1}})));
        assert_ne!(first, version(json!({"key": "a", "count": 3})));
        assert_ne!(first, version(json!({"key": "b", "count": 2})));
        assert_ne!(first, version(json!({"key": "a", "count": "2"})));
    }

    #[test]
    fn a_resource_is_named_by_its_key_in_the_store() {
        for (owner, key) in [
            ("route 1", "/apisix/routes/1"),
            ("consumer group g", "/apisix/consumer_groups/g"),
            ("global rule 2", "/apisix/global_rules/2"),
        ] {
            assert_eq!(resource_key(owner), key);
        }
    }
}

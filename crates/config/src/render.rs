//! The table of keys as `conf/config.yaml.example` and as `docs/configuration.md`.
//!
//! A test compares both with the committed files; `UPDATE_EXPECT=1` rewrites them.

use serde_json::Value;

use crate::error::Problems;
use crate::keys::{KEYS, Key, SECTIONS, Status};
use crate::yaml::{self, Node};

/// The text of `conf/config.yaml.example`: every key with its default.
pub fn example() -> String {
    let mut out = String::from(
        "\
# Every key of conf/config.yaml with its default. This file is an example: Sluicegate reads
# conf/config.yaml, which only needs the keys that differ.
#
# `#key:` without a blank is a key that has no default, or one that Apache APISIX knows and
# Sluicegate does not act on yet. Values and keys may hold ${{VARIABLE}} or ${{VARIABLE:=default}}.
#
# Made from the table of keys in crates/config/src/keys.rs; a test keeps the two together.
",
    );
    let mut open: Vec<&str> = Vec::new();
    for key in KEYS {
        let mut names: Vec<&str> = key.path.split('.').collect();
        let name = names.pop().unwrap_or_default();
        let common = open.iter().zip(&names).take_while(|(a, b)| a == b).count();
        for depth in common..names.len() {
            let path = names[..=depth].join(".");
            let about = SECTIONS.iter().find(|(section, _)| *section == path);
            let indent = "  ".repeat(depth);
            out.push('\n');
            if let Some((_, about)) = about {
                comment(&mut out, &indent, about);
            }
            out +=
                &format!("{indent}{}{}:\n", if has_active(&path) { "" } else { "#" }, names[depth]);
        }
        open = names;
        let indent = "  ".repeat(open.len());
        if matches!(key.status, Status::Deprecated(_)) {
            continue;
        }
        out.push('\n');
        comment(&mut out, &indent, &sentences(key));
        let lines = match key.default {
            _ if !is_active(key) => {
                let value = if key.default.is_empty() { key.example } else { key.default };
                vec![format!(" {value}")]
            }
            default => value_lines(default),
        };
        let hash = if is_active(key) { "" } else { "#" };
        out += &format!("{indent}{hash}{name}:{}\n", lines[0]);
        for line in &lines[1..] {
            out += &format!("{indent}{line}\n");
        }
    }
    out
}

/// The text of `docs/configuration.md`.
pub fn documentation() -> String {
    let mut out = String::from(
        "\
# Configuration

Sluicegate reads `conf/config.yaml` under its prefix, or the file named by `-c`. Names and defaults
are Apache APISIX's, so an APISIX file can be used as it is; what differs is listed below. When there
is no file, one is made, readable by its owner only, with a random key for the secrets in the store.

`sluicegate test` checks the file. A value of the wrong type is refused with file, line, key, what was
expected and what was found, all of them at once; a key nobody knows gets a warning with the nearest
known name; keys that APISIX knows and Sluicegate does not act on yet are named in one warning.

## Values

| type | written as |
| --- | --- |
| boolean | `true`, `false` (unquoted `yes`, `no`, `on`, `off` too) |
| size | bytes, or with `k`, `m`, `g`: `16384`, `16k`, `1m` |
| duration | seconds, or with `ms`, `s`, `m`, `h`, `d`, `w`: `60`, `500ms`, `60s`, `1h 30m`; at most 365 days |
| list | `[a, b]`, or one `- a` per line; at most 1000 entries |

`${{NAME}}` in a value or a key is replaced by the environment variable, `${{NAME:=default}}` by the
default where the variable is not set. A variable that is set but empty gives an empty value; one that
is not set and has no default is an error. What then reads as a number or as `true` or `false` is one.

`key:` with nothing behind it (null) means the default.

An empty admin key is generated when the gateway starts and written into the file; comments and layout
stay. `yq '.deployment.admin.admin_key[0].key' conf/config.yaml` shows it. Where the file cannot be
written, or the key comes from a variable that is empty, a warning says so and the generated key holds
for that run only.

Limits of the file: 1 MiB, 32 levels of nesting, 100000 values and 8 MiB of text with aliases and
variables expanded. One document; `<<` merge keys and tags other than YAML's own are refused.

## Taking a change in

`sluicegate reload` (SIGHUP) reads the file again. Keys marked **restart** are only read at start: when
one of them changed, the reload says so in one warning and takes the rest.

## Where it differs from APISIX

- `deployment.role_traditional.config_provider` is `embedded` unless the file says otherwise, or has a
  `deployment.etcd` section, which means `etcd`.
- Without `apisix.data_encryption.keyring`, APISIX's two built-in keys are used, as there; a warning
  says that everybody can read them in its sources. The file that is made at the first start has a key of its own.
- A null takes the default; in APISIX it removes it. So `allow_admin:` with nothing behind it still
  means 127.0.0.0/24, with a warning.
- Empty keys of viewers are generated too.
- A port-level `enable_http2` is taken with a warning; APISIX refuses it since 3.9.
- TLS versions before 1.2 are left out with a warning.
- `unix:` in `real_ip_from` is taken and means nothing.
- A wrong type is refused everywhere; APISIX lets some pass, to fail later.

## Keys
",
    );
    let mut group = "";
    for key in KEYS {
        let top = group_of(key.path);
        if top != group {
            group = top;
            let about = SECTIONS.iter().find(|(section, _)| *section == group);
            let about = about.map(|(_, about)| format!("{about}\n\n")).unwrap_or_default();
            out += &format!(
                "\n### {group}\n\n{about}| key | type | default | what it does |\n| --- | --- | --- | --- |\n"
            );
        }
        row(&mut out, key.path, key);
        for field in key.kind.fields() {
            row(&mut out, &format!("{}[].{}", key.path, field.path), field);
        }
    }
    out
}

fn row(out: &mut String, path: &str, key: &Key) {
    let default = match key.default {
        "" => "–".into(),
        default => format!("`{}`", default.replace('|', "\\|")),
    };
    let kind = key.kind.describe();
    let marks = match (key.status, key.restart) {
        (Status::Known, _) => " *Not acted on yet.*",
        (Status::Deprecated(_), _) => " *Deprecated.*",
        (Status::Acted, true) => " **restart**",
        (Status::Acted, false) => "",
    };
    *out += &format!("| `{path}` | {kind} | {default} | {}{marks} |\n", key.about);
}

/// The first name of a path; short sections of APISIX that hold no more than a few keys together.
fn group_of(path: &'static str) -> &'static str {
    match path.split('.').next() {
        Some(top @ ("apisix" | "nginx_config" | "deployment" | "sluicegate")) => top,
        _ => "plugins and the rest",
    }
}

fn sentences(key: &Key) -> String {
    let mut text = key.about.replace('`', "");
    match key.status {
        Status::Known => text += " Not acted on yet.",
        _ if key.restart => text += " Takes a restart.",
        _ => {}
    }
    text
}

fn is_active(key: &Key) -> bool {
    key.status == Status::Acted && !key.default.is_empty()
}

fn has_active(section: &str) -> bool {
    let below =
        |key: &&Key| key.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    KEYS.iter().filter(below).any(is_active)
}

fn comment(out: &mut String, indent: &str, text: &str) {
    let mut line = format!("{indent}#");
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > LINE_CHARS {
            *out += &line;
            out.push('\n');
            line = format!("{indent}#");
        }
        line.push(' ');
        line += word;
    }
    *out += &line;
    out.push('\n');
}

/// What follows `name:`, and the lines below it: lists of maps go below, one field per line.
fn value_lines(yaml: &str) -> Vec<String> {
    let node = yaml::read("", yaml, &mut Problems::default()).ok().flatten();
    let maps = match node.as_ref().map(Node::to_json) {
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => items,
        _ => return vec![format!(" {yaml}")],
    };
    let mut lines = vec![String::new()];
    for map in &maps {
        for (number, (name, value)) in map.as_object().into_iter().flatten().enumerate() {
            let value = match value {
                Value::String(text) if text.is_empty() => "''".into(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            lines.push(format!("  {} {name}: {value}", if number == 0 { "-" } else { " " }));
        }
    }
    lines
}

/// Where comments wrap.
const LINE_CHARS: usize = 100;

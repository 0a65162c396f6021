//! From the bytes of a file to resources with ids.

use std::sync::LazyLock;

use serde_json::{Map, Number, Value, json};
use sluicegate_model::{
    Kind, Schema,
    resource::{Key, id_text},
};

use super::variables::{Variables, fill_text, fill_value};
use crate::yaml;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML that ends with `#END`, so that a file half written is not taken for a whole one.
    Yaml,
    /// JSON.
    Json,
}

/// Why a file as a whole is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{0}")]
    Read(String),
    /// It is larger than [`FILE_BYTES_MAX`].
    #[error("it has more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// It is not UTF-8.
    #[error("line {line}: it is not UTF-8")]
    Encoding {
        /// Where.
        line: usize,
    },
    /// YAML without its last line.
    #[error("missing valid end flag: the last line must be #END")]
    NoEnd,
    /// A variable has no value and no default.
    #[error("{}failed to handle configuration: can't find environment variable {name}", line.map(|line| format!("line {line}: ")).unwrap_or_default())]
    Variable {
        /// Its name.
        name: String,
        /// Where it stands, in YAML.
        line: Option<usize>,
    },
    /// It is no YAML.
    #[error(transparent)]
    Yaml(#[from] yaml::Fault),
    /// It is no JSON.
    #[error("line {line}, column {column}: failed to decode json: {reason}")]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column in it.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// Its top level is something else than a map.
    #[error("line 1: it holds no map of resources")]
    Shape,
}

/// A declared resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What it is. A credential stands among the consumers, by the id `USER/credentials/ID`.
    pub key: Key,
    /// Whether the id is its own. Otherwise it is made of its place in the list.
    pub named: bool,
    /// Its `modifiedIndex`, if it has one.
    pub modified: Option<Number>,
    /// The resource as it was written, but for its id, which is a text, and `modifiedIndex`.
    pub value: Value,
}

/// An item that cannot be a resource, whatever the rules of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Where it stands: `routes/1`, counted from 1.
    pub place: String,
    /// What is wrong with it.
    pub reason: String,
}

/// An entry of a file's own list of plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredPlugin {
    /// The plugin.
    pub name: String,
    /// Whether it works on streams.
    pub stream: bool,
}

/// Reads a file's content, without looking at the resources in it.
pub fn parse(
    bytes: &[u8],
    format: Format,
    variables: &Variables,
) -> Result<Map<String, Value>, FileError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(FileError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        FileError::Encoding { line }
    })?;
    let root = match format {
        Format::Yaml => {
            if !text.trim_end().ends_with(END) {
                return Err(FileError::NoEnd);
            }
            let filled = fill_text(text, variables)
                .map_err(|(name, line)| FileError::Variable { name, line: Some(line) })?;
            yaml::read(filled.as_deref().unwrap_or(text))?
        }
        Format::Json => {
            let mut root = serde_json::from_str(text).map_err(|error| FileError::Json {
                line: error.line(),
                column: error.column(),
                reason: error.to_string(),
            })?;
            fill_value(&mut root, variables)
                .map_err(|name| FileError::Variable { name, line: None })?;
            root
        }
    };
    match root {
        Value::Object(map) => Ok(map),
        // A file of comments declares that there is nothing.
        Value::Null => Ok(Map::new()),
        _ => Err(FileError::Shape),
    }
}

/// The resources of a declaration, by kind and in their order, and what cannot be one.
pub fn items(root: &mut Map<String, Value>) -> (Vec<Item>, Vec<Refused>) {
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for kind in Kind::ALL.into_iter().filter(|kind| kind.parent().is_none()) {
        let list = match root.remove(kind.plural()) {
            Some(Value::Array(list)) => list,
            None | Some(Value::Null) => continue,
            Some(other) => {
                // Lua knows no difference between the two when they are empty.
                if other != json!({}) {
                    let reason = "it should be a list".to_owned();
                    refused.push(Refused { place: kind.plural().to_owned(), reason });
                }
                continue;
            }
        };
        for (index, mut value) in list.into_iter().enumerate() {
            let place = || format!("{}/{}", kind.plural(), index + 1);
            let Value::Object(map) = &mut value else {
                let reason = "it should be an object".to_owned();
                refused.push(Refused { place: place(), reason });
                continue;
            };
            empty_configurations(map);
            let own = match map.get("id") {
                None | Some(Value::Null) => map.get("username").cloned(),
                id => id.cloned(),
            };
            let id = match &own {
                None => Some(format!("arr_{}", index + 1)),
                Some(own) => id_text(own).filter(|id| id.len() <= ID_BYTES_MAX),
            };
            let key = id.and_then(|id| Key::parse(&format!("/{}/{id}", kind.plural())));
            let Some(key) = key else {
                let id = own.unwrap_or_default();
                let reason = format!("invalid {} id: {id}", kind.singular());
                refused.push(Refused { place: place(), reason });
                continue;
            };
            map.insert("id".to_owned(), key.id.as_str().into());
            let modified = match map.shift_remove("modifiedIndex") {
                Some(Value::Number(modified)) => Some(modified),
                _ => None,
            };
            found.push(Item { key, named: own.is_some(), modified, value });
        }
    }
    (found, refused)
}

/// A declaration's own list of plugins, if it has one.
pub fn plugins(root: &mut Map<String, Value>) -> Result<Option<Vec<DeclaredPlugin>>, String> {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        Schema::compile(&json!({
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "stream": {"type": "boolean"},
                },
                "required": ["name"],
            },
        }))
        .expect("a schema of ours compiles; a test uses it")
    });
    let list = match root.remove("plugins") {
        None => return Ok(None),
        // `plugins:` with nothing behind it switches all of them off.
        Some(Value::Null) => json!([]),
        Some(list) => list,
    };
    SCHEMA.check(&list)?;
    let list = list.as_array().map_or(&[][..], Vec::as_slice).iter().map(|plugin| DeclaredPlugin {
        name: plugin["name"].as_str().unwrap_or_default().to_owned(),
        stream: plugin["stream"] == true,
    });
    Ok(Some(list.collect()))
}

/// `key-auth:` with nothing behind it is the plugin with nothing configured.
fn empty_configurations(item: &mut Map<String, Value>) {
    let plugins = item.get_mut("plugins").and_then(Value::as_object_mut);
    for configuration in plugins.into_iter().flat_map(Map::values_mut) {
        if configuration.is_null() {
            *configuration = json!({});
        }
    }
}

/// The largest file: some 100,000 routes.
pub const FILE_BYTES_MAX: usize = 64 << 20;
/// The longest id, with which a key stays below its own limit.
const ID_BYTES_MAX: usize = 512;
const END: &str = "#END";

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Variables {
        Box::new(|name| (name == "SET").then(|| "7".to_owned()))
    }

    #[test]
    fn a_file_is_taken_whole_or_says_what_is_wrong_with_it() {
        let yaml = |text: &str| parse(text.as_bytes(), Format::Yaml, &none());
        let json = |text: &str| parse(text.as_bytes(), Format::Json, &none());
        for (found, expected) in [
            (yaml("routes: []\n#END\n \n"), Ok(r#"{"routes":[]}"#)),
            (yaml("a: ${{SET}}\nb: '${{SET}}' #END"), Ok(r#"{"a":7,"b":"7"}"#)),
            (yaml("#END"), Ok("{}")),
            (yaml("routes: []\n"), Err("missing valid end flag: the last line must be #END")),
            (
                yaml("routes: []\n#END\n#"),
                Err("missing valid end flag: the last line must be #END"),
            ),
            (
                yaml("a: 1\nb: ${{GONE}}\n#END"),
                Err("line 2: failed to handle configuration: can't find environment variable GONE"),
            ),
            (yaml("- a\n#END"), Err("line 1: it holds no map of resources")),
            (yaml("a: [\n#END"), Err("line 3, column 1: ")),
            (json(r#"{"a": "${{SET}}"}"#), Ok(r#"{"a":7}"#)),
            (json("{\n \"a\": }"), Err("line 2, column 7: failed to decode json: ")),
            (json("[]"), Err("line 1: it holds no map of resources")),
            (parse(b"a\n\xff#END", Format::Yaml, &none()), Err("line 2: it is not UTF-8")),
            (
                parse(&vec![b' '; FILE_BYTES_MAX + 1], Format::Json, &none()),
                Err("it has more than 67108864 bytes"),
            ),
        ] {
            match (found, expected) {
                (Ok(map), Ok(expected)) => assert_eq!(Value::Object(map).to_string(), expected),
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().starts_with(expected), "{error}\n{expected}");
                }
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn items_have_ids_as_apisix_gives_them() {
        let mut root = json!({
            "routes": [{"uri": "/a"}, {"id": 7, "modifiedIndex": 3, "plugins": {"key-auth": null}}, "text", {"id": "a/b"}],
            "consumers": [{"username": "jack"}, {"id": "jack/credentials/a", "plugins": {}}],
            "services": {},
            "upstreams": null,
            "ssls": {"a": 1},
            "plugins": null,
            "other": 1,
        });
        let root = root.as_object_mut().unwrap();
        assert_eq!(plugins(root), Ok(Some(Vec::new())));
        let (items, refused) = items(root);
        let keys: Vec<_> = items.iter().map(|item| item.key.to_string()).collect();
        let expected =
            ["/routes/arr_1", "/routes/7", "/consumers/jack", "/consumers/jack/credentials/a"];
        assert_eq!(keys, expected);
        assert_eq!(items.iter().map(|i| i.named).collect::<Vec<_>>(), [false, true, true, true]);
        assert_eq!(items[1].value, json!({"id": "7", "plugins": {"key-auth": {}}}));
        assert_eq!(items[1].modified, Some(3.into()));
        assert_eq!(items[3].value["id"], "a");
        let places: Vec<_> = refused.iter().map(|refused| &*refused.place).collect();
        assert_eq!(places, ["routes/3", "routes/4", "ssls"]);
        assert_eq!(root.keys().collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn a_list_of_plugins_is_checked() {
        let check = |list: Value| plugins(json!({ "plugins": list }).as_object_mut().unwrap());
        let mqtt = DeclaredPlugin { name: "mqtt-proxy".to_owned(), stream: true };
        assert_eq!(check(json!([{"name": "mqtt-proxy", "stream": true}])), Ok(Some(vec![mqtt])));
        let error = check(json!([{"name": "xxx", "stream": "ip-restriction"}])).unwrap_err();
        let expected =
            "property \"stream\" validation failed: wrong type: expected boolean, got string";
        assert!(error.contains(expected), "{error}");
        assert!(check(json!(["xxx"])).is_err());
        assert_eq!(plugins(&mut Map::new()), Ok(None));
    }
}

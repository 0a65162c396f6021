//! What the Admin API knows about plugins: plain values, made from the gateway's registry.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::Kind;
use crate::encrypt::{Keyring, each_private_key};
use crate::resource::is_secret_reference;
use crate::schema::Schema;

/// A plugin's check of a configuration.
pub type Check = Arc<dyn Fn(&Value) -> Result<(), String> + Send + Sync>;

/// Checks an expression: a route's `vars` or a plugin's `_meta.filter`.
pub type VarsCheck = fn(&Value) -> Result<(), String>;

/// Checks the source of a route's `filter_func`.
pub type FilterCheck = fn(&str) -> Result<(), String>;

/// One plugin, as data.
#[derive(Clone)]
pub struct PluginInfo {
    /// The plugin's name: `aws-lambda`.
    pub name: &'static str,
    /// Its place in the order: higher runs first.
    pub priority: i32,
    /// Version, as the listings show it.
    pub version: f64,
    /// Schema of a configuration.
    pub schema: Value,
    /// Schema of the plugin's metadata, if it has any.
    pub metadata_schema: Option<Value>,
    /// Schema of a consumer's configuration, if it differs.
    pub consumer_schema: Option<Value>,
    /// Dotted paths of secrets in a configuration. Those of metadata and of a consumer's
    /// configuration stand in their schemas, as `encrypt_fields`.
    pub secrets: &'static [&'static str],
    /// Fields that APISIX's plugin of this name does not take in the place of its `function_uri`.
    pub own_fields: &'static [&'static str],
    /// Set when the plugin tells who sends a request, by what a consumer or a credential says.
    pub auth: Option<Auth>,
    /// Checks a configuration: against the schema, and by compiling it.
    pub check: Check,
    /// Checks a consumer's configuration, where that is another matter.
    pub check_consumer: Option<Check>,
}

/// What is special about a plugin of type `auth`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Auth {
    /// The member of a consumer's configuration by which requests find the consumer, so that no two
    /// may have the same: `key` of `key-auth`.
    pub unique: Option<&'static str>,
}

impl fmt::Debug for PluginInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginInfo")
            .field("name", &self.name)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

/// Which of a plugin's configurations is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// On a route, a service, a plugin config, a consumer group or a global rule.
    Route,
    /// On a consumer or a credential.
    Consumer,
    /// The plugin's metadata.
    Metadata,
}

impl Part {
    /// The part that the `plugins` of a resource hold.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Consumers | Kind::Credentials => Self::Consumer,
            Kind::PluginMetadata => Self::Metadata,
            _ => Self::Route,
        }
    }
}

/// The plugins that are enabled, highest priority first.
#[derive(Debug, Clone)]
pub struct Catalog {
    entries: Vec<Arc<Entry>>,
    by_name: HashMap<&'static str, Arc<Entry>>,
    /// Checks a route's `vars` and a plugin's `_meta.filter`.
    pub vars_check: VarsCheck,
    /// Checks a route's `filter_func`; `None`: nothing here runs one.
    pub filter_check: Option<FilterCheck>,
}

impl Catalog {
    /// A catalog of these plugins. Their schemas get the `_meta` property and `encrypt_fields`.
    pub fn new(mut plugins: Vec<PluginInfo>, vars_check: VarsCheck) -> Self {
        plugins.sort_by_key(|plugin| std::cmp::Reverse(plugin.priority));
        let entries: Vec<_> = plugins.into_iter().map(|info| Arc::new(Entry::new(info))).collect();
        let by_name = entries.iter().map(|entry| (entry.info.name, entry.clone())).collect();
        Self { entries, by_name, vars_check, filter_check: None }
    }

    /// The plugin of this name.
    pub fn get(&self, name: &str) -> Option<&PluginInfo> {
        self.by_name.get(name).map(|entry| &entry.info)
    }

    /// The plugins, highest priority first.
    pub fn iter(&self) -> impl Iterator<Item = &PluginInfo> {
        self.entries.iter().map(|entry| &entry.info)
    }

    /// Checks a plugin's metadata. A plugin without a schema for it takes any object.
    ///
    /// # Errors
    /// `invalid plugin name`, or `invalid configuration: …`.
    pub fn check_metadata(&self, name: &str, value: &Value) -> Result<(), String> {
        let entry = self.by_name.get(name).ok_or_else(|| "invalid plugin name".to_owned())?;
        let outcome = match &entry.metadata {
            Some(schema) => {
                schema.as_ref().map_err(Clone::clone).and_then(|schema| schema.check(value))
            }
            None if value.is_object() => Ok(()),
            None => Err("wrong type: expected object, got string".to_owned()),
        };
        outcome.map_err(|error| format!("invalid configuration: {error}"))
    }

    /// Encrypts the secrets of a `plugins` map in place.
    pub fn encrypt(&self, keyring: &Keyring, plugins: &mut Map<String, Value>, part: Part) {
        for (name, config) in plugins {
            keyring.encrypt_paths(config, &self.secrets(name, part));
        }
    }

    /// Decrypts the secrets of a `plugins` map in place.
    pub fn decrypt(&self, keyring: &Keyring, plugins: &mut Map<String, Value>, part: Part) {
        for (name, config) in plugins {
            keyring.decrypt_paths(config, &self.secrets(name, part));
        }
    }

    /// Names the plugins' secrets in a stored resource that this keyring does not open:
    /// `plugin.path`.
    pub fn sealed_secrets(&self, keyring: &Keyring, kind: Kind, value: &Value) -> Vec<String> {
        let part = Part::of(kind);
        let plugins = value.get("plugins").and_then(Value::as_object);
        plugins
            .into_iter()
            .flatten()
            .flat_map(|(name, config)| {
                let sealed = keyring.sealed_paths(config, &self.secrets(name, part));
                sealed.into_iter().map(|path| format!("{name}.{path}")).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Decrypts everything that is secret in a stored resource: plugins' secrets and private
    /// keys. What does not decrypt stays as it is.
    pub fn decrypt_resource(&self, keyring: &Keyring, kind: Kind, value: &mut Value) {
        self.each_secret(kind, value, |conf, paths| keyring.decrypt_paths(conf, paths));
        each_private_key(kind, value, |key| {
            if let Some(plain) = keyring.decrypt_pem(key) {
                *key = plain;
            }
        });
    }

    /// Visits the plugin configurations of a resource with the paths of their secrets.
    pub fn each_secret(&self, kind: Kind, value: &mut Value, each: impl Fn(&mut Value, &[&str])) {
        if kind == Kind::PluginMetadata {
            let name = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            return each(value, &self.secrets(&name, Part::Metadata));
        }
        let part = Part::of(kind);
        let plugins = value.get_mut("plugins").and_then(Value::as_object_mut);
        for (name, conf) in plugins.into_iter().flatten() {
            each(conf, &self.secrets(name, part));
        }
    }

    /// The first plugin of `plugins` that an APISIX would refuse, and its field that stands in the
    /// place of the `function_uri` that APISIX asks for.
    pub fn refused_by_apisix(&self, plugins: &Map<String, Value>) -> Option<(&'static str, &str)> {
        plugins.iter().find_map(|(name, config)| {
            let info = self.get(name).filter(|_| config.get("function_uri").is_none())?;
            let own = info.own_fields.iter().find(|field| config.get(**field).is_some())?;
            Some((info.name, *own))
        })
    }

    /// The dotted paths of a plugin's secrets.
    pub fn secrets(&self, name: &str, part: Part) -> Vec<&str> {
        let Some(info) = self.get(name) else { return Vec::new() };
        let schema = match part {
            Part::Route => None,
            Part::Consumer => info.consumer_schema.as_ref(),
            Part::Metadata => match &info.metadata_schema {
                Some(schema) => Some(schema),
                None => return Vec::new(),
            },
        };
        match schema {
            Some(schema) => {
                let fields = schema.get("encrypt_fields").and_then(Value::as_array);
                fields.into_iter().flatten().filter_map(Value::as_str).collect()
            }
            None => info.secrets.to_vec(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    info: PluginInfo,
    metadata: Option<Result<Schema, String>>,
}

impl Entry {
    fn new(mut info: PluginInfo) -> Self {
        inject_meta(&mut info.schema);
        if let Value::Object(schema) = &mut info.schema
            && !info.secrets.is_empty()
        {
            schema.insert("encrypt_fields".to_owned(), json!(info.secrets));
        }
        let metadata = info.metadata_schema.as_ref().map(Schema::compile);
        Self { info, metadata }
    }

    fn check(&self, config: &Value, part: Part) -> Result<(), String> {
        match (&self.info.check_consumer, part) {
            (Some(check), Part::Consumer) => check(config),
            _ => (self.info.check)(config),
        }
    }
}

/// Adds the `_meta` property, which every plugin's configuration may have, to its schema. Doing it
/// twice changes nothing.
pub fn inject_meta(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    if schema.get(MARK).and_then(Value::as_str) == Some(MARK_TEXT) {
        return;
    }
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    if !properties.is_object() {
        *properties = json!({});
    }
    properties["_meta"] = json!({
        "type": "object",
        "properties": {
            "disable": {"type": "boolean"},
            "error_response": {"oneOf": [{"type": "string"}, {"type": "object"}]},
            "priority": {
                "description": "priority of plugins by customized order",
                "type": "integer",
            },
            "filter": {
                "description": "filter determines whether the plugin needs to be executed at runtime",
                "type": "array",
            },
            "pre_function": {"type": "string"},
        },
        "additionalProperties": false,
    });
    schema.insert(MARK.to_owned(), Value::from(MARK_TEXT));
}

/// Checks the `plugins` of a route, service, plugin config, consumer group or global rule.
///
/// # Errors
/// The whole text of the answer, about the first plugin that fails.
pub fn check_plugins(catalog: &Catalog, plugins: &Map<String, Value>) -> Result<(), String> {
    check_all(catalog, plugins, Part::Route)
}

/// Checks the `plugins` of a consumer or a credential.
///
/// # Errors
/// As [`check_plugins`], after `invalid plugins configuration: `.
pub fn check_consumer_plugins(
    catalog: &Catalog,
    plugins: &Map<String, Value>,
) -> Result<(), String> {
    check_all(catalog, plugins, Part::Consumer)
        .map_err(|error| format!("invalid plugins configuration: {error}"))
}

fn check_all(catalog: &Catalog, plugins: &Map<String, Value>, part: Part) -> Result<(), String> {
    plugins.iter().try_for_each(|(name, config)| check_one(catalog, name, config, part))
}

fn check_one(catalog: &Catalog, name: &str, config: &Value, part: Part) -> Result<(), String> {
    if !config.is_object() && !config.is_array() {
        return Err(format!("invalid plugin conf {} for plugin [{name}]", lua_json(config)));
    }
    let entry = catalog.by_name.get(name).ok_or_else(|| format!("unknown plugin [{name}]"))?;
    let meta = config.get("_meta");
    if let Err(error) = entry.check(config, part) {
        // A plugin switched off never runs, so APISIX takes it whatever is wrong with it.
        if meta.and_then(|meta| meta.get("disable")) != Some(&Value::Bool(true)) {
            return Err(format!("failed to check the configuration of plugin {name} err: {error}"));
        }
    }
    if let Some(filter) = meta.and_then(|meta| meta.get("filter")) {
        (catalog.vars_check)(filter)
            .map_err(|error| format!("failed to validate the 'vars' expression: {error}"))?;
    }
    Ok(())
}

/// Refuses the `plugins` of a credential that do not tell who sends a request.
///
/// # Errors
/// The whole text of the answer.
pub fn check_credential_plugins(
    catalog: &Catalog,
    plugins: &Map<String, Value>,
) -> Result<(), String> {
    match plugins.keys().all(|name| catalog.get(name).is_some_and(|info| info.auth.is_some())) {
        true => Ok(()),
        false => Err("only supports auth type plugins in consumer credential".to_owned()),
    }
}

/// What only one consumer may have, in the `plugins` of a consumer or a credential: each plugin with
/// the member's name and its value. A reference to a secret is not known here.
pub fn unique_keys<'a>(
    catalog: &Catalog,
    plugins: &'a Map<String, Value>,
) -> Vec<(&'a str, &'static str, &'a str)> {
    let key = |(name, config): (&'a String, &'a Value)| {
        let member = catalog.get(name)?.auth?.unique?;
        let text = config.get(member)?.as_str().filter(|text| !is_secret_reference(text))?;
        Some((name.as_str(), member, text))
    };
    plugins.iter().filter_map(key).collect()
}

/// A plain value as APISIX's JSON writer has it.
fn lua_json(value: &Value) -> String {
    match value {
        Value::Null => "\"userdata: NULL\"".to_owned(),
        _ => value.to_string().replace('/', "\\/"),
    }
}

const MARK: &str = "$comment";
const MARK_TEXT: &str = "this is a mark for our injected plugin schema";

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "function_uri": {"type": "string"},
                "timeout": {"type": "integer", "minimum": 100, "default": 3000},
                "ssl_verify": {"type": "boolean", "default": true},
                "keepalive_pool": {"type": "integer", "minimum": 1, "default": 5},
                "authorization": {"type": "object", "properties": {
                    "apikey": {"type": "string"},
                    "iam": {
                        "type": "object",
                        "properties": {"secretkey": {"type": "string"}, "accesskey": {"type": "string"}},
                        "required": ["accesskey", "secretkey"],
                    },
                }},
            },
            "required": ["function_uri"],
        })
    }

    fn catalog() -> Catalog {
        let mut with_meta = schema();
        inject_meta(&mut with_meta);
        let compiled = Schema::compile(&with_meta).unwrap();
        let lambda = PluginInfo {
            name: "aws-lambda",
            priority: -1899,
            version: 0.1,
            schema: schema(),
            metadata_schema: None,
            consumer_schema: None,
            secrets: &["authorization.apikey"],
            own_fields: &["function_name"],
            auth: None,
            check: Arc::new(move |config| compiled.check(config)),
            check_consumer: None,
        };
        let key = json!({
            "type": "object",
            "properties": {"key": {"type": "string"}},
            "required": ["key"],
            "encrypt_fields": ["key"],
        });
        let of_consumer = Schema::compile(&key).unwrap();
        let auth = PluginInfo {
            name: "key-auth",
            priority: 2500,
            version: 0.1,
            schema: json!({"type": "object"}),
            metadata_schema: Some(json!({
                "type": "object",
                "properties": {"master_apikey": {"type": "string"}},
                "encrypt_fields": ["master_apikey"],
            })),
            consumer_schema: Some(key),
            secrets: &[],
            own_fields: &[],
            auth: Some(Auth { unique: Some("key") }),
            check: Arc::new(|_| Ok(())),
            check_consumer: Some(Arc::new(move |config| of_consumer.check(config))),
        };
        Catalog::new(vec![lambda, auth], |vars| match vars.as_array().is_some_and(Vec::is_empty) {
            true => Ok(()),
            false => Err("invalid operator 'zz'".to_owned()),
        })
    }

    #[test]
    fn an_own_field_in_the_place_of_function_uri_is_what_apisix_refuses() {
        for (config, expected) in [
            (json!({"function_name": "f"}), Some(("aws-lambda", "function_name"))),
            (json!({"function_name": "f", "function_uri": "http://x"}), None),
            (json!({"function_uri": "http://x"}), None),
            (json!({}), None),
        ] {
            let plugins = json!({"key-auth": {"function_name": 1}, "aws-lambda": config});
            let catalog = catalog();
            let found = catalog.refused_by_apisix(plugins.as_object().unwrap());
            assert_eq!(found, expected, "{plugins}");
        }
    }

    #[test]
    fn plugins_are_refused_in_the_words_of_apisix() {
        let lambda = |config: Value| json!({"aws-lambda": config});
        let failed = "failed to check the configuration of plugin aws-lambda err: ";
        let auth = "property \"authorization\" validation failed: ";
        let secretkey = "property \"iam\" validation failed: property \"secretkey\" is required";
        for (plugins, error) in [
            (lambda(json!({})), format!("{failed}property \"function_uri\" is required")),
            (
                lambda(json!({"function_uri": 1})),
                format!(
                    "{failed}property \"function_uri\" validation failed: wrong type: expected string, got number"
                ),
            ),
            (
                lambda(json!({"function_uri": "http://x", "timeout": 10})),
                format!(
                    "{failed}property \"timeout\" validation failed: expected 10 to be at least 100"
                ),
            ),
            (
                lambda(json!({"function_uri": "http://x", "timeout": "10"})),
                format!(
                    "{failed}property \"timeout\" validation failed: wrong type: expected integer, got string"
                ),
            ),
            (
                lambda(json!({"function_uri": "http://x", "ssl_verify": "no"})),
                format!(
                    "{failed}property \"ssl_verify\" validation failed: wrong type: expected boolean, got string"
                ),
            ),
            (
                lambda(json!({"function_uri": "http://x", "keepalive_pool": 0})),
                format!(
                    "{failed}property \"keepalive_pool\" validation failed: expected 0 to be at least 1"
                ),
            ),
            (
                lambda(
                    json!({"function_uri": "http://x", "authorization": {"iam": {"accesskey": "k"}}}),
                ),
                format!("{failed}{auth}{secretkey}"),
            ),
            (
                lambda(json!({"function_uri": "http://x", "authorization": {"iam": {}}})),
                format!("{failed}{auth}{secretkey}"),
            ),
            (
                lambda(json!({"function_uri": "http://x", "authorization": {"apikey": 1}})),
                format!(
                    "{failed}{auth}property \"apikey\" validation failed: wrong type: expected string, got number"
                ),
            ),
            (
                lambda(json!({"function_uri": "http://x", "authorization": "k"})),
                format!("{failed}{auth}wrong type: expected object, got string"),
            ),
            (lambda(json!("k")), "invalid plugin conf \"k\" for plugin [aws-lambda]".to_owned()),
            (
                lambda(json!("a/b")),
                "invalid plugin conf \"a\\/b\" for plugin [aws-lambda]".to_owned(),
            ),
            (
                lambda(json!(null)),
                "invalid plugin conf \"userdata: NULL\" for plugin [aws-lambda]".to_owned(),
            ),
            (
                lambda(json!({"function_uri": "http://x", "_meta": {"disable": 1}})),
                format!(
                    "{failed}property \"_meta\" validation failed: property \"disable\" validation failed: \
                     wrong type: expected boolean, got number"
                ),
            ),
            (
                lambda(
                    json!({"function_uri": "http://x", "_meta": {"filter": [["a", "zz", "b"]]}}),
                ),
                "failed to validate the 'vars' expression: invalid operator 'zz'".to_owned(),
            ),
            (json!({"no-such": {}}), "unknown plugin [no-such]".to_owned()),
        ] {
            assert_eq!(
                check_plugins(&catalog(), plugins.as_object().unwrap()),
                Err(error),
                "{plugins}"
            );
        }
    }

    #[test]
    fn plugins_apisix_takes_are_taken() {
        for config in [
            json!({"function_uri": "http://x", "zzz": 1}),
            json!({"function_uri": "not a url"}),
            json!({"function_uri": "http://x", "_meta": {"disable": true}}),
            json!({"function_uri": "http://x", "_meta": {"filter": []}}),
            json!({"_meta": {"disable": true}}),
            json!({"function_uri": "$env://FUNCTION"}),
        ] {
            let plugins = json!({"aws-lambda": config});
            assert_eq!(
                check_plugins(&catalog(), plugins.as_object().unwrap()),
                Ok(()),
                "{plugins}"
            );
        }
    }

    #[test]
    fn consumers_and_metadata_have_their_own_schemas_and_secrets() {
        let catalog = catalog();
        let plugins = json!({"key-auth": {}});
        assert_eq!(check_plugins(&catalog, plugins.as_object().unwrap()), Ok(()));
        assert_eq!(
            check_consumer_plugins(&catalog, plugins.as_object().unwrap()).unwrap_err(),
            "invalid plugins configuration: failed to check the configuration of plugin key-auth err: \
             property \"key\" is required"
        );
        assert_eq!(
            catalog.check_metadata("no-such", &json!({})).unwrap_err(),
            "invalid plugin name"
        );
        assert_eq!(
            catalog.check_metadata("key-auth", &json!({"master_apikey": 1})).unwrap_err(),
            "invalid configuration: property \"master_apikey\" validation failed: wrong type: expected string, got number"
        );
        assert_eq!(catalog.check_metadata("aws-lambda", &json!({"a": 1})), Ok(()));
        for (name, part, paths) in [
            ("aws-lambda", Part::Route, &["authorization.apikey"][..]),
            ("aws-lambda", Part::Consumer, &["authorization.apikey"]),
            ("aws-lambda", Part::Metadata, &[]),
            ("key-auth", Part::Route, &[]),
            ("key-auth", Part::Consumer, &["key"]),
            ("key-auth", Part::Metadata, &["master_apikey"]),
            ("no-such", Part::Route, &[]),
        ] {
            assert_eq!(catalog.secrets(name, part), paths, "{name} {part:?}");
        }
    }

    #[test]
    fn a_map_of_plugins_is_encrypted_and_decrypted_in_place() {
        let keyring = Keyring::new(vec!["qeddd145sfvddff3".to_owned()]);
        let plain = json!({"aws-lambda": {"authorization": {"apikey": "my-api-key"}}, "no-such": {"key": "x"}});
        let mut plugins = plain.as_object().unwrap().clone();
        catalog().encrypt(&keyring, &mut plugins, Part::Route);
        assert_eq!(plugins["aws-lambda"]["authorization"]["apikey"], "oQteeIDgmA7a0d+9eNugyg==");
        assert_eq!(plugins["no-such"], json!({"key": "x"}));
        catalog().decrypt(&keyring, &mut plugins, Part::Route);
        assert_eq!(Value::Object(plugins), plain);
    }

    #[test]
    fn the_served_schema_has_meta_and_secret_paths_once() {
        let catalog = catalog();
        let served = &catalog.get("aws-lambda").unwrap().schema;
        assert_eq!(
            served["properties"]["_meta"],
            json!({
                "type": "object",
                "properties": {
                    "priority": {
                        "description": "priority of plugins by customized order",
                        "type": "integer",
                    },
                    "filter": {
                        "description": "filter determines whether the plugin needs to be executed at runtime",
                        "type": "array",
                    },
                    "pre_function": {"type": "string"},
                    "disable": {"type": "boolean"},
                    "error_response": {"oneOf": [{"type": "string"}, {"type": "object"}]},
                },
                "additionalProperties": false,
            })
        );
        assert_eq!(served["$comment"], "this is a mark for our injected plugin schema");
        assert_eq!(served["encrypt_fields"], json!(["authorization.apikey"]));
        let mut again = served.clone();
        inject_meta(&mut again);
        assert_eq!(&again, served);
        assert_eq!(
            catalog.iter().map(|plugin| plugin.name).collect::<Vec<_>>(),
            ["key-auth", "aws-lambda"]
        );
    }
}

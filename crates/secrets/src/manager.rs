//! A secret manager as a `secrets` resource sets it up.

use std::fmt;
use std::sync::atomic::AtomicBool;

use serde::de::DeserializeOwned;
use serde_json::Value;
use sluicegate_model::resource::is_secret_reference;

use crate::aws::Aws;
use crate::gcp::Gcp;
use crate::reference::Reference;
use crate::secrets::Environment;
use crate::vault::Vault;
use sluicegate_fetch::{FetchError, Network};

/// One manager.
pub(crate) struct Manager {
    backend: Backend,
    /// The last fetch found it down.
    pub(crate) down: AtomicBool,
}

enum Backend {
    Vault(Vault),
    Aws(Aws),
    Gcp(Box<Gcp>),
    /// Its settings cannot be used.
    Broken(String),
}

impl Manager {
    /// Reads the resource `id` (`vault/1`). References to environment variables in its own
    /// fields are replaced.
    pub(crate) fn compile(id: &str, conf: &Value, env: &Environment) -> Self {
        let backend = Backend::compile(id, conf, env)
            .unwrap_or_else(|cause| Backend::Broken(format!("secrets/{id}: {cause}")));
        Self { backend, down: AtomicBool::new(false) }
    }

    /// Fetches what a reference names by the part behind the manager's id. `now` is Unix time.
    pub(crate) async fn fetch(
        &self,
        network: &dyn Network,
        path: &str,
        now: u64,
    ) -> Result<String, FetchError> {
        match &self.backend {
            Backend::Vault(vault) => vault.fetch(network, path).await,
            Backend::Aws(aws) => aws.fetch(network, path, now).await,
            Backend::Gcp(gcp) => gcp.fetch(network, path, now).await,
            Backend::Broken(cause) => Err(FetchError::Unusable(cause.clone())),
        }
    }
}

impl Backend {
    fn compile(id: &str, conf: &Value, env: &Environment) -> Result<Self, String> {
        let mut conf = conf.clone();
        fill_in(&mut conf, env)?;
        let kind = id.split('/').next().unwrap_or_default();
        match kind {
            "vault" => Ok(Self::Vault(Vault::compile(read(conf)?)?)),
            "aws" => Ok(Self::Aws(Aws::compile(read(conf)?)?)),
            "gcp" => Ok(Self::Gcp(Box::new(Gcp::compile(read(conf)?)?))),
            other => Err(format!("there is no secret manager {other:?}")),
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

fn read<T: DeserializeOwned>(conf: Value) -> Result<T, String> {
    // serde's text may hold a field's value, so it is not told.
    T::deserialize(conf).map_err(|_| "a field is missing or of another type".to_owned())
}

/// Puts environment variables in the places of their references.
fn fill_in(value: &mut Value, env: &Environment) -> Result<(), String> {
    match value {
        Value::String(text) if is_secret_reference(text) => {
            let Ok(Reference::Env { name, key }) = Reference::parse(text) else {
                return Err(format!("{text}: only $env:// references are followed here"));
            };
            *text = env.value(name, key).map_err(|cause| format!("{text}: {cause}"))?;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| fill_in(item, env)),
        Value::Object(map) => map.values_mut().try_for_each(|item| fill_in(item, env)),
        _ => Ok(()),
    }
}

/// The text of a whole secret, or of one key of the JSON object in it.
pub(crate) fn pick(text: String, key: Option<&str>) -> Result<String, String> {
    let Some(key) = key else { return Ok(text) };
    let object: Value =
        serde_json::from_str(&text).map_err(|_| format!("it is no JSON to take {key:?} of"))?;
    let value = object.get(key).ok_or_else(|| format!("it has no key {key:?}"))?;
    scalar(value).map_err(|what| format!("{key:?} is {what}, not a text"))
}

/// A value as text: fields that take references take texts.
// Differs: APISIX puts numbers, booleans and tables as they are into a text's place.
pub(crate) fn scalar(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        Value::Null => Err("null"),
        Value::Array(_) => Err("a list"),
        Value::Object(_) => Err("an object"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_of_a_secret_is_a_text_a_number_or_a_boolean() {
        let json = json!({"a": "text", "b": 5, "c": true, "d": null, "e": {}, "f": [], "g/h": "x"});
        for (text, key, picked) in [
            ("plain", None, Ok("plain")),
            ("plain", Some("a"), Err("it is no JSON to take \"a\" of")),
            (&json.to_string(), Some("a"), Ok("text")),
            (&json.to_string(), Some("b"), Ok("5")),
            (&json.to_string(), Some("c"), Ok("true")),
            (&json.to_string(), Some("d"), Err("\"d\" is null, not a text")),
            (&json.to_string(), Some("e"), Err("\"e\" is an object, not a text")),
            (&json.to_string(), Some("f"), Err("\"f\" is a list, not a text")),
            (&json.to_string(), Some("g/h"), Ok("x")),
            (&json.to_string(), Some("z"), Err("it has no key \"z\"")),
            ("[1]", Some("0"), Err("it has no key \"0\"")),
        ] {
            let got = pick(text.to_owned(), key);
            assert_eq!(got.as_deref().map_err(String::as_str), picked, "{text} {key:?}");
        }
    }

    #[test]
    fn a_manager_that_cannot_be_set_up_says_why_without_its_values() {
        let env = Environment::new([("TOKEN".to_owned(), "hush".to_owned())]);
        let vault = |token: &str| json!({"uri": "http://v.test", "prefix": "kv", "token": token});
        for (id, conf, cause) in [
            ("vault/1", vault("plain"), None),
            ("vault/1", vault("$env://TOKEN"), None),
            ("vault/1", vault("$ENV://GONE"), Some("secrets/vault/1: $ENV://GONE: it is not set")),
            (
                "vault/1",
                vault("$secret://vault/2/a/b"),
                Some(
                    "secrets/vault/1: $secret://vault/2/a/b: only $env:// references are followed here",
                ),
            ),
            (
                "vault/1",
                json!({"token": {"hush": 1}}),
                Some("secrets/vault/1: a field is missing or of another type"),
            ),
            ("azure/1", json!({}), Some("secrets/azure/1: there is no secret manager \"azure\"")),
        ] {
            let manager = Manager::compile(id, &conf, &env);
            let broken = match &manager.backend {
                Backend::Broken(cause) => Some(cause.as_str()),
                _ => None,
            };
            assert_eq!(broken, cause, "{id} {conf}");
            assert!(!format!("{manager:?}").contains("hush"));
        }
    }
}

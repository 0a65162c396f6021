//! Resources outside of a store: read from a file, opened and sealed, held against the rules.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, anyhow, bail};
use serde_json::{Map, Value};
use sluicegate_admin::NO_STREAMS;
use sluicegate_admin::configs::check_declared;
use sluicegate_config::Config;
use sluicegate_model::Kind;
use sluicegate_model::check::references;
use sluicegate_model::encrypt::{Keyring, each_private_key};
use sluicegate_model::plugin::{Catalog, unique_keys};
use sluicegate_model::resource::Key;
use sluicegate_store::file::{FILE_BYTES_MAX, Format, Item, Variables, items, parse};

use super::api::is_consumers;
use crate::boot::{self, Certificates};
use crate::cli::Place;
use crate::settings;
/// A resource outside of a store, its id in its key.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) key: Key,
    pub(super) value: Value,
}

impl Resource {
    pub(super) fn new(key: Key, mut value: Value) -> Self {
        if let Some(resource) = value.as_object_mut() {
            resource.shift_remove("id");
        }
        Self { key, value }
    }

    /// Equal but for what a store adds.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let plain = |one: &Self| {
            let mut value = one.value.clone();
            if let Some(resource) = value.as_object_mut() {
                TIMES.iter().for_each(|time| drop(resource.shift_remove(*time)));
            }
            value
        };
        plain(self) == plain(other)
    }

    /// Would a reader of JSON fill something in?
    pub(super) fn has_variable(&self) -> bool {
        let text = self.value.to_string();
        if !text.contains("${{") {
            return false;
        }
        let is_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_asked);
        let variables: Variables = Box::new(move |_| {
            asked.store(true, Ordering::Relaxed);
            None
        });
        let read = parse(text.as_bytes(), Format::Json, &variables);
        read.is_err() || is_asked.load(Ordering::Relaxed)
    }

    pub(super) fn hides_its_key(&self) -> bool {
        let of_tls = |tls: &str| {
            let tls = self.value.pointer(tls);
            tls.is_some_and(|tls| {
                tls.get("client_cert").is_some() && tls.get("client_key").is_none()
            })
        };
        match self.key.kind {
            Kind::Ssls => self.value.get("key").is_none(),
            _ => of_tls("/tls") || of_tls("/upstream/tls"),
        }
    }
}

pub(super) type Resources = BTreeMap<String, Resource>;

/// What resources are held against, from config.yaml.
pub(super) struct Rules {
    pub(super) config: Config,
    pub(super) catalog: Catalog,
    keyring: Keyring,
}

impl Rules {
    pub(super) fn load(place: &Place) -> anyhow::Result<Self> {
        let path = place.config();
        if !path.exists() {
            bail!("there is no {}: give its folder with -p", path.display());
        }
        let (config, _) = boot::load(&path)?;
        let catalog = boot::enabled(&config, &Default::default()).catalog();
        let keyring = settings::keyring(&config);
        Ok(Self { config, catalog, keyring })
    }

    /// Opens what is encrypted.
    pub(super) fn open(&self, resource: &mut Resource) {
        self.catalog.decrypt_resource(&self.keyring, resource.key.kind, &mut resource.value);
    }

    /// Encrypts what is secret, as the Admin API does.
    pub(super) fn seal(&self, resource: &mut Resource) {
        let (kind, value) = (resource.key.kind, &mut resource.value);
        if self.config.apisix.data_encryption.enable_encrypt_fields {
            self.catalog
                .each_secret(kind, value, |conf, paths| self.keyring.encrypt_paths(conf, paths));
        }
        each_private_key(kind, value, |key| *key = self.keyring.encrypt_pem(key));
    }

    /// Reads a file; everything wrong with it comes at once.
    pub(super) fn read(&self, file: &Path) -> anyhow::Result<Resources> {
        let mut bytes = Vec::new();
        let limit = FILE_BYTES_MAX as u64 + 1;
        match file == Path::new("-") {
            true => std::io::stdin().take(limit).read_to_end(&mut bytes),
            false => std::fs::File::open(file).and_then(|f| f.take(limit).read_to_end(&mut bytes)),
        }
        .with_context(|| format!("{} cannot be read", file.display()))?;
        let variables: Variables = Box::new(|name: &str| std::env::var(name).ok());
        let mut root = parse(&bytes, format_of(file), &variables)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let mut problems = Vec::new();
        if root.remove("plugins").is_some() {
            eprintln!(
                "sluicegate: warning: the file's list of plugins is left out: it stands in config.yaml"
            );
        }
        let (list, refused) = items(&mut root);
        problems.extend(refused.into_iter().map(|one| format!("{}: {}", one.place, one.reason)));
        problems.extend(
            root.keys()
                .filter(|key| !key.ends_with("_conf_version"))
                .map(|key| format!("{key}: there is no such kind of resource")),
        );
        let mut found = Resources::new();
        for Item { key, value, .. } in list {
            let name = key.to_string();
            if found.insert(name.clone(), Resource::new(key, value)).is_some() {
                problems.push(format!("{name}: it is there twice"));
            }
        }
        for (name, one) in &mut found {
            let sealed = self.catalog.sealed_secrets(&self.keyring, one.key.kind, &one.value);
            if !sealed.is_empty() {
                problems.push(format!(
                    "{name}: {} does not open with apisix.data_encryption.keyring",
                    sealed.join(", ")
                ));
            }
            self.open(one);
        }
        refuse(file, problems)?;
        Ok(found)
    }

    /// Checks every resource, and that what it names is there: in the file or, when that is merged
    /// into it, in the store.
    pub(super) fn check(
        &self,
        wanted: &Resources,
        found: Option<&Resources>,
    ) -> anyhow::Result<()> {
        let outside = Certificates(self.keyring.clone());
        let there = |key: &Key| {
            let key = key.to_string();
            wanted.get(&key).or_else(|| found?.get(&key))
        };
        let owner = |one: &Resource| {
            let owner = one.key.kind.parent().zip(one.key.parent.as_deref());
            owner.map(|(kind, id)| Key::new(kind, id))
        };
        let mut problems = Vec::new();
        for (name, one) in wanted {
            let value = with_id(one);
            let checked = check_declared(&self.catalog, &self.keyring, &outside, &one.key, &value);
            if let Err(why) = checked {
                problems.push(format!("{name}: {why}"));
                continue;
            }
            if one.key.kind == Kind::Consumers && one.value["username"] != *one.key.id {
                problems.push(format!("{name}: wrong username"));
            }
            if one.key.kind == Kind::StreamRoutes && !self.config.apisix.stream_proxy {
                problems.push(format!("{name}: {NO_STREAMS}"));
            }
            for reference in references(one.key.kind, &one.value) {
                let checked = match there(&Key::new(reference.kind, reference.id.as_str())) {
                    Some(named) => reference.check(&named.value),
                    None => Err(reference.missing()),
                };
                problems.extend(checked.err().map(|why| format!("{name}: {why}")));
            }
            if let Some(owner) = owner(one).filter(|owner| there(owner).is_none()) {
                problems.push(format!(
                    "{name}: there is no {} {}",
                    owner.kind.singular(),
                    owner.id
                ));
            }
        }
        let kept = || found.into_iter().flatten().filter(|(name, _)| !wanted.contains_key(*name));
        let mut keys: HashMap<(&str, &str, &str), Vec<&Key>> = HashMap::new();
        for (name, one) in kept().chain(wanted) {
            let plugins = one.value.get("plugins").and_then(Value::as_object);
            // A credential that its consumer left behind is nobody's.
            let left = owner(one).is_some_and(|owner| there(&owner).is_none());
            if let Some(plugins) = plugins.filter(|_| is_consumers(one.key.kind) && !left) {
                for (plugin, member, text) in unique_keys(&self.catalog, plugins) {
                    let others = keys.entry((plugin, member, text)).or_default();
                    if let Some(other) = others.iter().find(|other| !may_share(other, &one.key))
                        && wanted.contains_key(name)
                    {
                        problems.push(format!(
                            "{name}: duplicate {member} of plugin {plugin} found with {}",
                            who(other)
                        ));
                    }
                    others.push(&one.key);
                }
            }
        }
        let mut rules: HashMap<&str, &str> = HashMap::new();
        for (name, one) in wanted.iter().chain(kept()) {
            let plugins = one.value.get("plugins").and_then(Value::as_object);
            let of_rule = plugins.filter(|_| one.key.kind == Kind::GlobalRules);
            for plugin in of_rule.into_iter().flat_map(Map::keys) {
                if let Some(other) = rules.insert(plugin, name) {
                    problems.push(format!("plugin '{plugin}' stands in {other} and in {name}"));
                }
            }
        }
        refuse(Path::new("the configuration"), problems)
    }
}

/// A consumer may be found by what one of its own credentials is found by; no two others may.
fn may_share(one: &Key, other: &Key) -> bool {
    let own = |consumer: &Key, credential: &Key| {
        consumer.kind == Kind::Consumers && credential.parent.as_deref() == Some(&*consumer.id)
    };
    own(one, other) || own(other, one)
}

/// How the Admin API calls a consumer or credential.
pub(super) fn who(key: &Key) -> String {
    match &key.parent {
        Some(consumer) => format!("credential: {} of consumer: {consumer}", key.id),
        None => format!("consumer: {}", key.id),
    }
}

fn refuse(file: &Path, problems: Vec<String>) -> anyhow::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{} is refused, nothing was changed:{}", file.display(), listed(&problems))
}

/// Problems, a line each, the first [`PROBLEMS_SHOWN_MAX`] of them.
pub(super) fn listed(problems: &[String]) -> String {
    let mut text: String =
        problems.iter().take(PROBLEMS_SHOWN_MAX).map(|problem| format!("\n  {problem}")).collect();
    if let Some(more) = problems.len().checked_sub(PROBLEMS_SHOWN_MAX).filter(|more| *more > 0) {
        text += &format!("\n  and {more} more");
    }
    text
}

/// The value as the Admin API stores it.
pub(super) fn with_id(one: &Resource) -> Value {
    let mut value = one.value.clone();
    if one.key.kind != Kind::Consumers {
        value["id"] = one.key.id.as_str().into();
    }
    value
}

pub(super) fn format_of(file: &Path) -> Format {
    match file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        true => Format::Json,
        false => Format::Yaml,
    }
}

/// What a store adds to a resource.
pub(super) const TIMES: [&str; 2] = ["create_time", "update_time"];
/// Problems that an error lists.
const PROBLEMS_SHOWN_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_variable_is_what_json_would_fill_in() {
        for (value, expected) in [
            (json!({"desc": "${{HOME}}"}), true),
            (json!({"labels": [{"a ${{ NO:=x }}": 1}]}), true),
            (json!({"desc": "${{-}} {{HOME}} $HOME ${{HOME}"}), false),
            (json!({"${{HOME": "}}"}), false),
        ] {
            let key = Key::new(Kind::Routes, "r");
            assert_eq!(Resource::new(key, value.clone()).has_variable(), expected, "{value}");
        }
    }
}

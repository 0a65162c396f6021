//! Who refers to whom: what is referred to must exist, and stays while it is referred to.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use sluicegate_model::{
    Kind, check,
    plugin::unique_keys,
    resource::{Key, id_text},
};
use tokio::sync::MutexGuard;

use crate::{
    AdminState,
    answer::Answer,
    index::{Target, split_upstreams},
    resource::{parse, store_failed},
    secrets,
};

/// Refuses a value that refers to something that does not exist.
pub(crate) async fn refuse_if_missing(
    state: &AdminState,
    kind: Kind,
    value: &Value,
) -> Result<(), Answer> {
    for reference in check::references(kind, value) {
        let key = Key::new(reference.kind, reference.id.as_str()).to_string();
        let found = state.store.get(&key).await.map_err(store_failed)?;
        let found = found.ok_or_else(|| Answer::refused(reference.missing()))?;
        reference.check(&parse(&found)?).map_err(Answer::refused)?;
    }
    Ok(())
}

/// Whether something may refer to resources of this kind or belong to them, so that nothing may be
/// written while one is deleted.
pub(crate) fn can_be_used(kind: Kind) -> bool {
    !users(kind).is_empty() || kind.child().is_some()
}

/// Refuses a deletion while something refers to the resource.
pub(crate) async fn refuse_if_used(state: &AdminState, kind: Kind, id: &str) -> Result<(), Answer> {
    for user in users(kind) {
        let target = Target::Resource(kind, id);
        for key in state.index.users(user.kind, target).await.map_err(store_failed)? {
            let Some(entry) = state.store.get(&key).await.map_err(store_failed)? else { continue };
            let Ok(value) = parse(&entry) else { continue };
            let name = key.rsplit('/').next().unwrap_or_default();
            if let Some(refusal) = user.refusal(kind, id, name, &value) {
                return Err(Answer::refused(refusal));
            }
        }
    }
    Ok(())
}

/// A kind of resources that may refer to one that is to be deleted.
struct User {
    kind: Kind,
    /// What a refusal calls it.
    word: &'static str,
    /// Where it names the other.
    place: Place,
}

enum Place {
    /// In this property.
    Property(&'static str),
    /// In the plugin `traffic-split`.
    Split,
    /// In the plugin `traffic-split` or this property.
    SplitOr(&'static str),
    /// In the plugin `grpc-transcode`.
    Transcode,
    /// In a stream route's protocol.
    Superior,
}

impl User {
    /// The refusal, if the value of this user does refer to the resource.
    fn refusal(&self, kind: Kind, id: &str, name: &str, value: &Value) -> Option<String> {
        let names = |named: Option<&Value>| named.and_then(id_text).is_some_and(|text| text == id);
        let splits = || split_upstreams(value).any(|upstream| upstream == id);
        let (what, word) = (called(kind), self.word);
        let own = || format!("can not delete {what}, {word} [{name}] is still using it now");
        let in_plugin =
            || format!("can not delete {what}, plugin in {word} [{name}] is still using it now");
        match self.place {
            Place::Split | Place::SplitOr(_) if splits() => Some(in_plugin()),
            Place::Property(property) | Place::SplitOr(property) => {
                names(value.get(property)).then(own)
            }
            Place::Split => None,
            Place::Transcode => names(value.pointer("/plugins/grpc-transcode/proto_id")).then(own),
            Place::Superior => names(value.pointer("/protocol/superior_id")).then(|| {
                format!("can not delete {what}, {word} [{name}] is still using it as superior_id")
            }),
        }
    }
}

/// What a refusal calls the resource that was to be deleted.
fn called(kind: Kind) -> &'static str {
    match kind {
        Kind::Upstreams => "this upstream",
        Kind::Services => "this service directly",
        Kind::PluginConfigs => "this plugin config",
        Kind::ConsumerGroups => "this consumer group",
        Kind::Protos => "this proto",
        _ => "this stream route directly",
    }
}

/// Who may refer to resources of a kind, in the order in which APISIX looks.
fn users(kind: Kind) -> &'static [User] {
    const fn user(kind: Kind, word: &'static str, place: Place) -> User {
        User { kind, word, place }
    }
    const UPSTREAMS: [User; 6] = [
        user(Kind::Routes, "route", Place::SplitOr("upstream_id")),
        user(Kind::Services, "service", Place::SplitOr("upstream_id")),
        user(Kind::PluginConfigs, "plugin_config", Place::Split),
        user(Kind::Consumers, "consumer", Place::Split),
        user(Kind::ConsumerGroups, "consumer_group", Place::Split),
        user(Kind::GlobalRules, "global_rules", Place::Split),
    ];
    const SERVICES: [User; 2] = [
        user(Kind::Routes, "route", Place::Property("service_id")),
        user(Kind::StreamRoutes, "stream_route", Place::Property("service_id")),
    ];
    const PLUGIN_CONFIGS: [User; 1] =
        [user(Kind::Routes, "route", Place::Property("plugin_config_id"))];
    const CONSUMER_GROUPS: [User; 1] =
        [user(Kind::Consumers, "consumer", Place::Property("group_id"))];
    const PROTOS: [User; 2] = [
        user(Kind::Routes, "route", Place::Transcode),
        user(Kind::Services, "service", Place::Transcode),
    ];
    const STREAM_ROUTES: [User; 1] = [user(Kind::StreamRoutes, "stream route", Place::Superior)];
    match kind {
        Kind::Upstreams => &UPSTREAMS,
        Kind::Services => &SERVICES,
        Kind::PluginConfigs => &PLUGIN_CONFIGS,
        Kind::ConsumerGroups => &CONSUMER_GROUPS,
        Kind::Protos => &PROTOS,
        Kind::StreamRoutes => &STREAM_ROUTES,
        _ => &[],
    }
}

/// Refuses a consumer or credential by which requests could not tell it from another one.
///
/// A consumer may have what its own credentials have; a credential is only itself.
pub(crate) async fn refuse_second_consumer(
    state: &AdminState,
    consumer: &str,
    credential: Option<&str>,
    plugins: &Map<String, Value>,
) -> Result<(), Answer> {
    let catalog = state.catalog.load_full();
    for (plugin, member, text) in unique_keys(&catalog, plugins) {
        let target = Target::Text(plugin, member, text);
        for key in state.index.users(Kind::Consumers, target).await.map_err(store_failed)? {
            let Some(Key { kind, parent, id }) = Key::parse(&key) else { continue };
            let (owner, owner_credential) = match parent {
                Some(consumer) => (consumer, Some(id)),
                None => (id, None),
            };
            let own = owner == consumer
                && credential.is_none_or(|own| owner_credential.as_deref() == Some(own));
            if own {
                continue;
            }
            let Some(entry) = state.store.get(&key).await.map_err(store_failed)? else { continue };
            let Ok(mut value) = parse(&entry) else { continue };
            secrets::decrypt_plugins(state, kind, &mut value);
            if value["plugins"][plugin][member] != text {
                continue;
            }
            // What a consumer left behind whose time was over is nobody's.
            let owner_key = Key::new(Kind::Consumers, owner.as_str()).to_string();
            if owner_credential.is_some()
                && state.store.get(&owner_key).await.map_err(store_failed)?.is_none()
            {
                continue;
            }
            let who = match owner_credential {
                Some(credential) => format!("credential: {credential} of consumer: {owner}"),
                None => format!("consumer: {owner}"),
            };
            let text = format!("duplicate {member} of plugin {plugin} found with {who}");
            return Err(Answer::refused(text));
        }
    }
    Ok(())
}

/// Holds back other writers of what only one consumer may have, until the guards are dropped.
pub(crate) async fn lock_unique_keys<'a>(
    state: &'a AdminState,
    kind: Kind,
    value: &Value,
) -> Vec<MutexGuard<'a, ()>> {
    let plugins = value.get("plugins").and_then(Value::as_object);
    let Some(plugins) = plugins.filter(|_| matches!(kind, Kind::Consumers | Kind::Credentials))
    else {
        return Vec::new();
    };
    let catalog = state.catalog.load_full();
    let keys = unique_keys(&catalog, plugins);
    let target = |&(plugin, member, text): &(&str, &str, &str)| {
        state.index.hash(Target::Text(plugin, member, text)) as usize % KEY_LOCKS
    };
    // Each once and in one order, so that no two wait for each other.
    let wanted: BTreeSet<usize> = keys.iter().map(target).collect();
    let mut held = Vec::with_capacity(wanted.len());
    for lock in wanted {
        held.push(state.key_locks[lock].lock().await);
    }
    held
}

/// Refuses a global rule with a plugin that another global rule has.
pub(crate) async fn refuse_second_global_rule(
    state: &AdminState,
    id: &str,
    plugins: &Map<String, Value>,
) -> Result<(), Answer> {
    let folder = Key::folder(Kind::GlobalRules, None);
    for entry in state.store.list(&folder).await.map_err(store_failed)?.entries {
        let other = entry.key.rsplit('/').next().unwrap_or_default();
        let Ok(value) = parse(&entry) else { continue };
        let twice = plugins.keys().find(|name| value["plugins"].get(name.as_str()).is_some());
        if let Some(name) = twice.filter(|_| other != id) {
            return Err(Answer::refused(format!(
                "plugin '{name}' already exists in global rule with id '{other}'"
            )));
        }
    }
    Ok(())
}

/// How many writers of different keys can go on at once, at most.
pub(crate) const KEY_LOCKS: usize = 64;

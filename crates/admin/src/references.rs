//! Who refers to whom: what is referred to must exist, and stays while it is referred to.

use serde_json::{Map, Value};
use sluicegate_model::{Kind, check, resource::id_text};

use crate::{
    AdminState,
    answer::Answer,
    resource::{key, parse, store_failed},
};

/// Refuses a value that refers to something that does not exist.
pub(crate) async fn refuse_if_missing(
    state: &AdminState,
    kind: Kind,
    value: &Value,
) -> Result<(), Answer> {
    for reference in check::references(kind, value) {
        let found = state.store.get(&key(reference.kind, &reference.id)).await;
        let found = found.map_err(store_failed)?;
        let found = found.ok_or_else(|| Answer::refused(reference.missing()))?;
        reference.check(&parse(&found)?).map_err(Answer::refused)?;
    }
    Ok(())
}

/// Whether something may refer to resources of this kind, so that deleting one needs a check.
pub(crate) fn can_be_used(kind: Kind) -> bool {
    !users(kind).1.is_empty()
}

/// Refuses a deletion while something refers to the resource.
pub(crate) async fn refuse_if_used(state: &AdminState, kind: Kind, id: &str) -> Result<(), Answer> {
    let (what, users) = users(kind);
    for (user_kind, word, property) in users {
        for entry in state.store.list(&key(*user_kind, "")).await.map_err(store_failed)?.entries {
            // Most resources do not contain the id at all and need no parsing.
            if !contains(&entry.value, id.as_bytes()) {
                continue;
            }
            let Ok(value) = parse(&entry) else { continue };
            let user = entry.key.rsplit('/').next().unwrap_or_default();
            let place = if kind == Kind::Upstreams && splits_traffic_to(&value, id) {
                format!("plugin in {word} [{user}]")
            } else if property.is_some_and(|property| names(value.get(property), id)) {
                format!("{word} [{user}]")
            } else {
                continue;
            };
            let text = format!("can not delete {what}, {place} is still using it now");
            return Err(Answer::refused(text));
        }
    }
    Ok(())
}

/// What a refusal calls a resource of this kind; who may refer to it: their kind, the word for
/// them, the property that does it.
fn users(kind: Kind) -> (&'static str, &'static [User]) {
    match kind {
        Kind::Upstreams => ("this upstream", &UPSTREAM_USERS),
        Kind::Services => ("this service directly", &[(Kind::Routes, "route", Some("service_id"))]),
        Kind::PluginConfigs => {
            ("this plugin config", &[(Kind::Routes, "route", Some("plugin_config_id"))])
        }
        Kind::ConsumerGroups => {
            ("this consumer group", &[(Kind::Consumers, "consumer", Some("group_id"))])
        }
        _ => ("", &[]),
    }
}

/// Refuses a global rule with a plugin that another global rule has.
pub(crate) async fn refuse_second_global_rule(
    state: &AdminState,
    id: &str,
    plugins: &Map<String, Value>,
) -> Result<(), Answer> {
    for entry in state.store.list(&key(Kind::GlobalRules, "")).await.map_err(store_failed)?.entries
    {
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

fn splits_traffic_to(value: &Value, id: &str) -> bool {
    let rules = value.pointer("/plugins/traffic-split/rules").and_then(Value::as_array);
    let upstreams =
        rules.into_iter().flatten().filter_map(|rule| rule.get("weighted_upstreams")?.as_array());
    upstreams.flatten().any(|upstream| names(upstream.get("upstream_id"), id))
}

fn names(value: Option<&Value>, id: &str) -> bool {
    value.and_then(id_text).is_some_and(|text| text == id)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// Kind, word, property.
type User = (Kind, &'static str, Option<&'static str>);

/// Who may refer to an upstream, besides by the plugin `traffic-split`.
const UPSTREAM_USERS: [User; 6] = [
    (Kind::Routes, "route", Some("upstream_id")),
    (Kind::Services, "service", Some("upstream_id")),
    (Kind::PluginConfigs, "plugin_config", None),
    (Kind::Consumers, "consumer", None),
    (Kind::ConsumerGroups, "consumer_group", None),
    (Kind::GlobalRules, "global_rules", None),
];

//! The checks a resource goes through before it is stored, in APISIX's order.

use serde_json::{Value, json};
use sluicegate_model::{
    Kind, check,
    plugin::{check_consumer_plugins, check_credential_plugins, check_plugins},
    resource::{self, Key},
};

use crate::{AdminState, answer::Answer, references, secrets};

/// Whether what a resource refers to must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// It must: the resource is to be stored.
    MustExist,
    /// It may come with the same file of configuration.
    MayCome,
}

/// All checks of a resource's content. The key's id is empty where one will be generated.
pub(crate) async fn check(
    state: &AdminState,
    key: &Key,
    value: &Value,
    others: Others,
) -> Result<(), Answer> {
    let kind = key.kind;
    if kind == Kind::PluginMetadata {
        return check_metadata(state, &key.id, value);
    }
    let mut plain = value.clone();
    secrets::decrypt_private_keys(state, kind, &mut plain);
    check::resource(kind, &plain, &*state.outside).map_err(Answer::refused)?;
    if kind == Kind::Consumers && !key.id.is_empty() && value["username"] != *key.id {
        return Err(Answer::refused("wrong username"));
    }
    let must_exist = others == Others::MustExist;
    // Consumers alone have their plugins looked at first.
    if must_exist && kind != Kind::Consumers {
        references::refuse_if_missing(state, kind, value).await?;
    }
    check_plugins_of(state, key, value).await?;
    if must_exist && kind == Kind::Consumers {
        references::refuse_if_missing(state, kind, value).await?;
    }
    if let (Kind::Routes, Some(vars)) = (kind, value.get("vars")) {
        (state.catalog.load_full().vars_check)(vars).map_err(|why| {
            Answer::refused(format!("failed to validate the 'vars' expression: {why}"))
        })?;
    }
    if let (Kind::Routes, Some(source)) = (kind, value["filter_func"].as_str())
        && let Some(check) = state.catalog.load_full().filter_check
    {
        check(source).map_err(Answer::refused)?;
    }
    unknown_protocol(value).map_or(Ok(()), |why| Err(Answer::refused(why)))
}

/// What is said of a protocol. Only stream routes have one, and Sluicegate speaks none of them yet.
pub(crate) fn unknown_protocol(value: &Value) -> Option<String> {
    let protocol = value.pointer("/protocol/name").and_then(Value::as_str)?;
    Some(format!("unknown protocol [{protocol}]"))
}

async fn check_plugins_of(state: &AdminState, key: &Key, value: &Value) -> Result<(), Answer> {
    let Some(plugins) = value.get("plugins").and_then(Value::as_object) else { return Ok(()) };
    let catalog = state.catalog.load_full();
    match key.kind {
        Kind::Consumers => {
            check_consumer_plugins(&catalog, plugins).map_err(Answer::refused)?;
            let name = value["username"].as_str().unwrap_or_default();
            references::refuse_second_consumer(state, name, None, plugins).await
        }
        Kind::Credentials => {
            check_consumer_plugins(&catalog, plugins).map_err(Answer::refused)?;
            check_credential_plugins(&catalog, plugins).map_err(Answer::refused)?;
            let Some(consumer) = &key.parent else { return Ok(()) };
            references::refuse_second_consumer(state, consumer, Some(&key.id), plugins).await
        }
        // There are no plugins for streams yet.
        Kind::StreamRoutes => plugins
            .keys()
            .next()
            .map_or(Ok(()), |name| Err(Answer::refused(format!("unknown plugin [{name}]")))),
        Kind::GlobalRules => {
            check_plugins(&catalog, plugins).map_err(Answer::refused)?;
            references::refuse_second_global_rule(state, &key.id, plugins).await
        }
        _ => check_plugins(&catalog, plugins).map_err(Answer::refused),
    }
}

fn check_metadata(state: &AdminState, name: &str, value: &Value) -> Result<(), Answer> {
    let catalog = state.catalog.load_full();
    // Differs: APISIX accepts metadata of a plugin that has none, and then stops following changes
    // of plugin metadata at all.
    if catalog.get(name).is_some_and(|plugin| plugin.metadata_schema.is_none()) {
        let text = format!("invalid configuration: plugin {name} takes no metadata");
        return Err(Answer::refused(text));
    }
    catalog.check_metadata(name, value).map_err(Answer::refused)
}

/// The body of a write, which must be an object.
pub(crate) fn object(body: Option<Value>) -> Result<Value, Answer> {
    match body {
        None => Err(Answer::refused("missing configurations")),
        Some(object @ Value::Object(_)) => Ok(object),
        // Lua knows no difference between the two when they are empty.
        Some(Value::Array(empty)) if empty.is_empty() => Ok(json!({})),
        // Differs: APISIX answers 500 to a string, and takes an array for an object.
        Some(other) => Err(Answer::refused(format!(
            "invalid configuration: wrong type: expected object, got {}",
            type_name(&other)
        ))),
    }
}

/// What JSON calls the type of a value.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Settles the id of a `PUT` or `PATCH`: it may stand in the path, in the body, or in both if they
/// agree. The body then carries it. Consumers go by their `username`, plugin metadata by the path.
pub(crate) fn settle_id(
    kind: Kind,
    path_id: Option<&str>,
    value: &mut Value,
) -> Result<String, Answer> {
    match kind {
        Kind::PluginMetadata => {
            let name = path_id.ok_or_else(|| Answer::refused("missing plugin name"))?;
            value["id"] = name.into();
            Ok(name.to_owned())
        }
        // What is no name is found by the schema, a name that differs from the path's after it.
        Kind::Consumers => {
            let name = path_id.or_else(|| value.get("username")?.as_str());
            Ok(name.unwrap_or_default().to_owned())
        }
        _ => resource::settle_id(kind, path_id, value).map_err(Answer::refused),
    }
}

//! What there is to configure: plugins and schemas.

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use sluicegate_model::{Kind, plugin::Catalog};

use crate::{AdminState, answer::Answer, query::Args};

/// `GET /apisix/admin/plugins/list`: the names, in the order in which they run.
pub(crate) fn plugin_names(state: &AdminState, args: &Args) -> Result<Answer, Answer> {
    let names: Vec<&str> = match args.get("subsystem") {
        None | Some("http") => state.catalog.load().iter().map(|plugin| plugin.name).collect(),
        Some("stream") => Vec::new(),
        Some(_) => {
            return Err(Answer::bare(StatusCode::BAD_REQUEST, "invalid subsystem passed"));
        }
    };
    Ok(Answer::json(StatusCode::OK, json!(names)))
}

/// `PUT /apisix/admin/plugins/reload`
pub(crate) fn reload(state: &AdminState, method: &Method) -> Result<Answer, Answer> {
    if method != Method::PUT {
        let text =
            format!("please use PUT method to reload the plugins, {method} method is not allowed.");
        return Err(Answer::error(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    if let Some(reload) = &state.reload_plugins {
        reload();
    }
    Ok(Answer::bare(StatusCode::OK, "done"))
}

/// `GET /apisix/admin/plugins/{name}`, `/schema/plugins/{name}` and `/plugins?all=true`
pub(crate) fn plugin(state: &AdminState, name: Option<&str>, args: &Args) -> Answer {
    let subsystem = args.get("subsystem").unwrap_or("http");
    if !["http", "stream"].contains(&subsystem) {
        return Answer::refused(format!("unsupported subsystem: {subsystem}"));
    }
    let catalog = state.catalog.load_full();
    if args.get("all") == Some("true") {
        let all = if subsystem == "http" { all_plugins(&catalog) } else { json!({}) };
        return Answer::json(StatusCode::OK, all);
    }
    let plugin = name.filter(|_| subsystem == "http").and_then(|name| catalog.get(name));
    let Some(plugin) = plugin else {
        let text = format!("plugin not found in subsystem {subsystem}");
        return Answer::error(StatusCode::NOT_FOUND, text);
    };
    let schema = match args.get("schema_type") {
        Some("consumer") => plugin.consumer_schema.as_ref(),
        _ => Some(&plugin.schema),
    };
    match schema {
        Some(schema) => Answer::json(StatusCode::OK, schema.clone()),
        None => Answer::refused("not found schema"),
    }
}

/// Every plugin with what is known about it.
pub(crate) fn all_plugins(catalog: &Catalog) -> Value {
    let mut all = Map::new();
    for plugin in catalog.iter() {
        let mut about = json!({
            "version": plugin.version,
            "priority": plugin.priority,
            "schema": plugin.schema,
        });
        if plugin.auth.is_some() {
            about["type"] = "auth".into();
        }
        for (name, schema) in [
            ("metadata_schema", &plugin.metadata_schema),
            ("consumer_schema", &plugin.consumer_schema),
        ] {
            if let Some(schema) = schema {
                about[name] = schema.clone();
            }
        }
        all.insert(plugin.name.to_owned(), about);
    }
    Value::Object(all)
}

/// `GET /apisix/admin/schema/{kind}`
pub(crate) fn schema(name: &str) -> Answer {
    // Each plugin and each secret manager has a schema of its own.
    let shared = [Kind::PluginMetadata, Kind::Secrets];
    let mut kinds = Kind::ALL.into_iter().filter(|kind| !shared.contains(kind));
    match kinds.find(|kind| schema_name(*kind) == name) {
        Some(kind) => Answer::json(StatusCode::OK, kind.schema_json().clone()),
        None => Answer::refused(format!("not found schema: {name}")),
    }
}

/// A kind's name among the schemas: `plugin_config`.
pub(crate) fn schema_name(kind: Kind) -> String {
    kind.singular().replace(' ', "_")
}

/// `POST /apisix/admin/schema/validate/{kind}`
pub(crate) fn validate(kind: Kind, body: Option<&Value>) -> Result<Answer, Answer> {
    let checked = kind.schema().check(body.unwrap_or(&Value::Null));
    checked.map_err(|why| Answer::refused(why.to_string()))?;
    Ok(Answer::bare(StatusCode::OK, ""))
}

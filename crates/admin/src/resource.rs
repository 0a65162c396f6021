//! Reading and writing resources, the same for every kind.
//!
//! The order of checks is APISIX's: method, id, schema and what the model knows, references,
//! plugins. What is stored is what was sent, with its id, its times and encrypted secrets.

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Value, json};
use sluicegate_model::{
    Kind, check,
    kind::Method,
    patch,
    plugin::check_plugins,
    resource::{self, generated_id},
};
use sluicegate_store::{Entry, Expect, StoreError, Written};
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};
use tracing::{error, warn};

use crate::{
    APPLIED_WAIT_MAX, AdminState, Settings, answer::Answer, listing, query::Args, references,
    secrets,
};

/// What a request asks of one kind of resource.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// The path's id.
    pub(crate) id: Option<String>,
    /// What follows the id in the path.
    pub(crate) sub_path: String,
    pub(crate) args: Args,
    pub(crate) body: Option<Value>,
}

/// Runs it. Both sides are answers; an error is a refusal.
pub(crate) async fn run(
    state: &AdminState,
    settings: &Settings,
    method: Method,
    operation: Operation,
) -> Result<Answer, Answer> {
    let kind = operation.kind;
    if !kind.supports(method) {
        let name = match method {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        };
        let text = format!("not supported `{name}` method for {}", kind.singular());
        return Err(Answer::error(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    match method {
        Method::Get => get(state, settings, operation).await,
        Method::Put => put(state, settings, operation).await,
        Method::Post => post(state, settings, operation).await,
        Method::Patch => patch(state, settings, operation).await,
        Method::Delete => delete(state, settings, operation).await,
    }
}

async fn get(
    state: &AdminState,
    settings: &Settings,
    operation: Operation,
) -> Result<Answer, Answer> {
    let Operation { kind, id, args, .. } = operation;
    let show = |entry: &Entry, value: &mut Value| {
        secrets::decrypt_plugins(state, kind, value);
        secrets::hide_private_keys(kind, value);
        secrets::hide_plain_private_keys(kind, value);
        json!({
            "key": shown_key(settings, entry),
            "value": value.take(),
            "createdIndex": entry.created,
            "modifiedIndex": entry.modified,
        })
    };
    if let Some(id) = id {
        let entry = state.store.get(&key(kind, &id)).await.map_err(store_failed)?;
        let entry = entry.ok_or_else(Answer::key_not_found)?;
        return Ok(Answer::json(StatusCode::OK, show(&entry, &mut parse(&entry)?)));
    }
    let found = state.store.list(&key(kind, "")).await.map_err(store_failed)?;
    let values = found.entries.iter().filter_map(|entry| Some((entry, parse(entry).ok()?)));
    let selection = listing::select(kind, values, &args)?;
    let shown = selection.shown.into_iter().map(|(entry, mut value)| show(entry, &mut value));
    let mut list: Value = shown.collect();
    if selection.paged && list == json!([]) {
        // As APISIX encodes an empty page; an empty list stays a list.
        list = json!({});
    }
    Ok(Answer::json(StatusCode::OK, json!({"total": selection.total, "list": list})))
}

async fn put(
    state: &AdminState,
    settings: &Settings,
    operation: Operation,
) -> Result<Answer, Answer> {
    let Operation { kind, id, body, .. } = operation;
    let mut value = object(body)?;
    let id = settle_id(kind, id.as_deref(), &mut value)?;
    check::no_times(&value).map_err(Answer::refused)?;

    let guard = state.guard(kind == Kind::GlobalRules).await;
    check(state, kind, &id, &value).await?;
    secrets::encrypt(state, settings, kind, &mut value);
    let key = key(kind, &id);
    for _ in 0..ATTEMPTS_MAX {
        let old = state.store.get(&key).await.map_err(store_failed)?;
        if kind != Kind::PluginMetadata {
            let now = (state.now)();
            let created = old.as_ref().and_then(|old| parse(old).ok()?.get("create_time").cloned());
            value["create_time"] = created.unwrap_or_else(|| now.into());
            value["update_time"] = now.into();
        }
        let expect = old.map_or(Expect::Absent, |old| Expect::Revision(old.modified));
        match state.store.put(&key, encode(&value), expect).await {
            Ok(written) => {
                drop(guard);
                return Ok(state.written(settings, kind, written, value).await);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(failed) => return Err(store_failed(failed)),
        }
    }
    Err(too_busy(&key))
}

async fn post(
    state: &AdminState,
    settings: &Settings,
    operation: Operation,
) -> Result<Answer, Answer> {
    let Operation { kind, id, body, .. } = operation;
    let mut value = object(body)?;
    resource::refuse_id(kind, id.as_deref(), &value).map_err(Answer::refused)?;
    check::no_times(&value).map_err(Answer::refused)?;

    let guard = state.guard(false).await;
    check(state, kind, "", &value).await?;
    secrets::encrypt(state, settings, kind, &mut value);
    let now = (state.now)();
    value["create_time"] = now.into();
    value["update_time"] = now.into();
    for _ in 0..ATTEMPTS_MAX {
        let id = generated_id(state.store.next_id().await.map_err(store_failed)?);
        value["id"] = id.as_str().into();
        match state.store.put(&key(kind, &id), encode(&value), Expect::Absent).await {
            Ok(written) => {
                drop(guard);
                return Ok(state.written(settings, kind, written, value).await);
            }
            // Someone chose this very id by hand.
            Err(StoreError::Conflict { .. }) => {}
            Err(failed) => return Err(store_failed(failed)),
        }
    }
    Err(too_busy(&key(kind, "")))
}

async fn patch(
    state: &AdminState,
    settings: &Settings,
    operation: Operation,
) -> Result<Answer, Answer> {
    let Operation { kind, id, sub_path, body, .. } = operation;
    let id = id.ok_or_else(|| missing_id(kind))?;
    let mut change = body.ok_or_else(|| Answer::refused("missing new configuration"))?;
    if sub_path.is_empty() {
        if change == json!([]) {
            change = json!({});
        }
        if !change.is_object() {
            return Err(Answer::refused("invalid configuration"));
        }
    }
    let key = key(kind, &id);
    for attempt in 0..ATTEMPTS_MAX {
        // Who keeps losing the race gets the field for itself.
        let guard = state.guard(attempt >= ATTEMPTS_SHARED || kind == Kind::GlobalRules).await;
        let old = state.store.get(&key).await.map_err(store_failed)?;
        let old = old.ok_or_else(Answer::key_not_found)?;
        let mut value = parse(&old)?;
        secrets::decrypt(state, kind, &mut value);
        if sub_path.is_empty() {
            patch::merge(&mut value, &change);
        } else {
            patch::set_at(&mut value, &sub_path, change.clone()).map_err(Answer::refused)?;
        }
        let Some(object) = value.as_object_mut() else {
            return Err(Answer::refused("invalid configuration"));
        };
        let now = Value::from((state.now)());
        let given = sub_path.is_empty() && change.get("update_time").is_some();
        if !given {
            object.shift_remove("update_time");
        }
        for time in ["create_time", "update_time"] {
            object.entry(time).or_insert_with(|| now.clone());
        }
        settle_id(kind, Some(&id), &mut value)?;
        check(state, kind, &id, &value).await?;
        secrets::encrypt(state, settings, kind, &mut value);
        match state.store.put(&key, encode(&value), Expect::Revision(old.modified)).await {
            Ok(written) => {
                drop(guard);
                return Ok(state.written(settings, kind, written, value).await);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(failed) => return Err(store_failed(failed)),
        }
    }
    Err(too_busy(&key))
}

async fn delete(
    state: &AdminState,
    settings: &Settings,
    operation: Operation,
) -> Result<Answer, Answer> {
    let Operation { kind, id, args, .. } = operation;
    let id = id.ok_or_else(|| missing_id(kind))?;
    let key = key(kind, &id);
    let guard = state.guard(references::can_be_used(kind)).await;
    if args.get("force") != Some("true") {
        references::refuse_if_used(state, kind, &id).await?;
    }
    let revision = state.store.delete(&key, Expect::Any).await.map_err(store_failed)?;
    drop(guard);
    let revision = revision.ok_or_else(Answer::key_not_found)?;
    state.wait_until_applied(revision).await;
    let shown = format!("{}{key}", settings.key_prefix);
    Ok(Answer::json(StatusCode::OK, json!({"key": shown, "deleted": "1"})))
}

impl AdminState {
    async fn guard(&self, alone: bool) -> Guard<'_> {
        if alone {
            Guard::Alone(self.references.write().await)
        } else {
            Guard::Shared(self.references.read().await)
        }
    }

    async fn written(
        &self,
        settings: &Settings,
        kind: Kind,
        written: Written,
        mut value: Value,
    ) -> Answer {
        secrets::hide_plain_private_keys(kind, &mut value);
        self.wait_until_applied(written.entry.modified).await;
        let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        let key = shown_key(settings, &written.entry);
        Answer::json(status, json!({"key": key, "value": value}))
    }

    async fn wait_until_applied(&self, revision: u64) {
        let Some(applied) = &self.applied else { return };
        if tokio::time::timeout(APPLIED_WAIT_MAX, applied(revision)).await.is_err() {
            warn!(revision, "A change is stored but not served yet; answering anyway.");
        }
    }
}

/// Keeps what a write refers to from being deleted meanwhile.
enum Guard<'a> {
    Shared(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, ()>),
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'a, ()>),
}

/// All checks of a resource's content. `id` is empty where one will be generated.
async fn check(state: &AdminState, kind: Kind, id: &str, value: &Value) -> Result<(), Answer> {
    if kind == Kind::PluginMetadata {
        return check_metadata(state, id, value);
    }
    let mut plain = value.clone();
    secrets::decrypt_private_keys(state, kind, &mut plain);
    check::resource(kind, &plain, &*state.outside).map_err(Answer::refused)?;
    references::refuse_if_missing(state, kind, value).await?;
    let catalog = state.catalog.load_full();
    if let Some(plugins) = value.get("plugins").and_then(Value::as_object) {
        check_plugins(&catalog, plugins).map_err(Answer::refused)?;
        if kind == Kind::GlobalRules {
            references::refuse_second_global_rule(state, id, plugins).await?;
        }
    }
    if let (Kind::Routes, Some(vars)) = (kind, value.get("vars")) {
        (catalog.vars_check)(vars).map_err(|why| {
            Answer::refused(format!("failed to validate the 'vars' expression: {why}"))
        })?;
    }
    Ok(())
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

fn object(body: Option<Value>) -> Result<Value, Answer> {
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

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Settles the id: it may stand in the path, in the body, or in both if they agree. The body then
/// carries it.
fn settle_id(kind: Kind, path_id: Option<&str>, value: &mut Value) -> Result<String, Answer> {
    if kind == Kind::PluginMetadata {
        let name = path_id.ok_or_else(|| Answer::refused("missing plugin name"))?;
        value["id"] = name.into();
        return Ok(name.to_owned());
    }
    resource::settle_id(kind, path_id, value).map_err(Answer::refused)
}

fn missing_id(kind: Kind) -> Answer {
    Answer::refused(format!("missing {} id", kind.singular()))
}

/// The store's key: `/routes/1`.
pub(crate) fn key(kind: Kind, id: &str) -> String {
    format!("/{}/{id}", kind.plural())
}

fn shown_key(settings: &Settings, entry: &Entry) -> String {
    format!("{}{}", settings.key_prefix, entry.key)
}

fn encode(value: &Value) -> Arc<[u8]> {
    value.to_string().into_bytes().into()
}

/// The value of an entry. Only something else that writes to the store can make it fail.
pub(crate) fn parse(entry: &Entry) -> Result<Value, Answer> {
    serde_json::from_slice(&entry.value).map_err(|reason| {
        error!(key = &*entry.key, %reason, "A stored resource is no JSON.");
        Answer::error(StatusCode::SERVICE_UNAVAILABLE, format!("{} is no JSON", entry.key))
    })
}

/// The answer when the store did not do its part; the cause goes to the log.
pub(crate) fn store_failed(failed: StoreError) -> Answer {
    match failed {
        StoreError::Key(_) | StoreError::TooLarge { .. } => Answer::refused(failed.to_string()),
        other => {
            error!(reason = %other, "The configuration store failed.");
            Answer::error(
                StatusCode::SERVICE_UNAVAILABLE,
                "the configuration store is not available",
            )
        }
    }
}

fn too_busy(key: &str) -> Answer {
    Answer::error(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{key} is being changed by too many others"),
    )
}

/// How often a write that others overtook is tried again.
const ATTEMPTS_MAX: usize = 100;
/// After how many of them a PATCH excludes other writers.
const ATTEMPTS_SHARED: usize = 4;

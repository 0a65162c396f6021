//! Reading and writing resources, the same for every kind.
//!
//! The order of checks is APISIX's: method, id, schema and what the model knows, references,
//! plugins. What is stored is what was sent, with its id, its times and encrypted secrets.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use serde_json::{Value, json};
use sluicegate_model::{
    Kind, check,
    kind::Method,
    patch,
    resource::{self, Key, generated_id},
};
use sluicegate_store::{Entry, Expect, Put, Store, StoreError, Written};
use tokio::{
    sync::{RwLockReadGuard, RwLockWriteGuard},
    time::Instant,
};
use tracing::{error, warn};

use crate::{
    APPLIED_WAIT_MAX, AdminState, Settings, WRITE_START_MAX,
    answer::Answer,
    checks::{Others, check, object, settle_id},
    family, listing,
    query::Args,
    references, secrets,
};

/// What a request asks of one kind of resource.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// The path's owner, for a kind that has one.
    pub(crate) parent: Option<String>,
    /// The path's id.
    pub(crate) id: Option<String>,
    /// What follows the id in the path.
    pub(crate) sub_path: String,
    pub(crate) args: Args,
    /// After how long what is written goes away.
    pub(crate) ttl: Option<Duration>,
    pub(crate) body: Option<Value>,
}

impl Operation {
    fn key(&self, id: impl Into<String>) -> Key {
        Key { kind: self.kind, parent: self.parent.clone(), id: id.into() }
    }
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
    let kind = operation.kind;
    let show = |entry: &Entry, value: &mut Value| {
        secrets::decrypt_plugins(state, kind, value);
        secrets::hide_private_keys(kind, value);
        secrets::hide_plain_private_keys(kind, value);
        secrets::redact(state, settings, kind, value);
        json!({
            "key": shown_key(settings, entry),
            "value": value.take(),
            "createdIndex": entry.created,
            "modifiedIndex": entry.modified,
        })
    };
    if let Some(id) = &operation.id {
        let key = operation.key(id).to_string();
        let entry = state.store.get(&key).await.map_err(store_failed)?;
        let entry = entry.ok_or_else(Answer::key_not_found)?;
        return Ok(Answer::json(StatusCode::OK, show(&entry, &mut parse(&entry)?)));
    }
    let parent = operation.parent.as_deref();
    let entries = entries(&*state.store, kind, parent).await.map_err(store_failed)?;
    if parent.is_some() && entries.is_empty() {
        // As etcd answers for a folder that is not there; those of other kinds always are.
        return Err(Answer::key_not_found());
    }
    let values = entries.into_iter().filter_map(|entry| {
        let value = parse(&entry).ok()?;
        Some((entry, value))
    });
    let selection =
        listing::select(kind, values.collect(), &operation.args, &state.searches).await?;
    let shown = selection.shown.into_iter().map(|(entry, mut value)| show(&entry, &mut value));
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
    mut operation: Operation,
) -> Result<Answer, Answer> {
    let kind = operation.kind;
    let mut value = write_body(&mut operation)?;
    let start = StartBy::new();
    let guard = start.wait_for(state.guard(must_be_alone(kind))).await?;
    let keys = start.wait_for(references::lock_unique_keys(state, kind, &value)).await?;
    if let (Kind::GraphqlCostDecorations, Some(service)) = (kind, &operation.parent) {
        family::bind_decoration(state, service, operation.id.as_deref(), &mut value).await?;
    }
    let id = settle_id(kind, operation.id.as_deref(), &mut value)?;
    check::no_times(&value).map_err(Answer::refused)?;

    let mut key = operation.key(id);
    secrets::refuse_redacted(state, settings, kind, &value)?;
    check(state, &key, &value, Others::MustExist).await?;
    if kind == Kind::Consumers {
        key.id = value["username"].as_str().unwrap_or_default().to_owned();
    }
    family::refuse_without_consumer(state, &key).await?;
    let text = key.to_string();
    let sent = value;
    for _ in 0..ATTEMPTS_MAX {
        let old = state.store.get(&text).await.map_err(store_failed)?;
        let mut value = sent.clone();
        // What a GET showed as it is stored may come back.
        let stored = old.as_ref().and_then(|old| parse(old).ok());
        let sealed = stored.map(|stored| secrets::sealed(state, kind, &stored));
        secrets::encrypt(state, settings, kind, &mut value, &sealed.unwrap_or_default());
        if kind.has_times() {
            let now = (state.now)();
            let created = old.as_ref().and_then(|old| parse(old).ok()?.get("create_time").cloned());
            value["create_time"] = created.unwrap_or_else(|| now.into());
            value["update_time"] = now.into();
        }
        let how = Put {
            // Differs: with APISIX, credentials of a consumer whose time was over are believed
            // again when one of its name is created. What is left behind is not for the new one.
            clears: old.is_none() && kind.child().is_some(),
            expect: old.map_or(Expect::Absent, |old| Expect::Revision(old.modified)),
            ttl: operation.ttl,
        };
        match state.write(start, &text, &value, how).await? {
            Some(written) => {
                drop((guard, keys));
                return Ok(state.written(settings, kind, written, value).await);
            }
            None => continue,
        }
    }
    Err(too_busy(&text))
}

async fn post(
    state: &AdminState,
    settings: &Settings,
    mut operation: Operation,
) -> Result<Answer, Answer> {
    let kind = operation.kind;
    let mut value = write_body(&mut operation)?;
    let start = StartBy::new();
    let guard = start.wait_for(state.guard(must_be_alone(kind))).await?;
    if let (Kind::GraphqlCostDecorations, Some(service)) = (kind, &operation.parent) {
        family::bind_decoration(state, service, None, &mut value).await?;
    }
    resource::refuse_id(kind, operation.id.as_deref(), &value).map_err(Answer::refused)?;
    check::no_times(&value).map_err(Answer::refused)?;

    secrets::refuse_redacted(state, settings, kind, &value)?;
    check(state, &operation.key(""), &value, Others::MustExist).await?;
    secrets::encrypt(state, settings, kind, &mut value, &[]);
    let now = (state.now)();
    value["create_time"] = now.into();
    value["update_time"] = now.into();
    let how = Put { expect: Expect::Absent, ttl: operation.ttl, clears: false };
    for _ in 0..ATTEMPTS_MAX {
        let id = start.wait_for(state.store.next_id()).await?.map_err(store_failed)?;
        let id = generated_id(id);
        value["id"] = id.as_str().into();
        let key = operation.key(id).to_string();
        // `None`: someone chose this very id by hand.
        let written = state.write(start, &key, &value, how).await?;
        if let Some(written) = written {
            drop(guard);
            return Ok(state.written(settings, kind, written, value).await);
        }
    }
    Err(too_busy(&operation.key("").to_string()))
}

async fn patch(
    state: &AdminState,
    settings: &Settings,
    mut operation: Operation,
) -> Result<Answer, Answer> {
    let kind = operation.kind;
    let change = change(&mut operation)?;
    let id = operation.id.clone().ok_or_else(|| match kind {
        Kind::Secrets => Answer::refused("no secret id"),
        _ => missing_id(kind),
    })?;
    let key = operation.key(id.as_str());
    let text = key.to_string();
    let sub_path = &operation.sub_path;
    let start = StartBy::new();
    for attempt in 0..ATTEMPTS_MAX {
        // Who keeps losing the race gets the field for itself.
        let alone = attempt >= ATTEMPTS_SHARED || must_be_alone(kind);
        let guard = start.wait_for(state.guard(alone)).await?;
        let old = state.store.get(&text).await.map_err(store_failed)?;
        let old = old.ok_or_else(Answer::key_not_found)?;
        if let (Kind::GraphqlCostDecorations, Some(service)) = (kind, &operation.parent) {
            family::refuse_second_decoration(state, service, Some(&id), &change).await?;
        }
        let mut value = parse(&old)?;
        let sealed = secrets::sealed(state, kind, &value);
        secrets::decrypt(state, kind, &mut value);
        if sub_path.is_empty() {
            patch::merge(&mut value, &change);
        } else {
            patch::set_at(&mut value, sub_path, change.clone()).map_err(Answer::refused)?;
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
        secrets::refuse_redacted(state, settings, kind, &value)?;
        check(state, &key, &value, Others::MustExist).await?;
        secrets::encrypt(state, settings, kind, &mut value, &sealed);
        let expect = Expect::Revision(old.modified);
        let how = Put { expect, ttl: operation.ttl, clears: false };
        if let Some(written) = state.write(start, &text, &value, how).await? {
            drop(guard);
            return Ok(state.written(settings, kind, written, value).await);
        }
    }
    Err(too_busy(&text))
}

/// What a `PATCH` wants to change, checked on its own.
fn change(operation: &mut Operation) -> Result<Value, Answer> {
    let invalid = || Answer::refused("invalid configuration");
    if operation.kind == Kind::GraphqlCostDecorations {
        let change = operation.body.as_ref().filter(|body| body.is_object() || body.is_array());
        if change.ok_or_else(invalid)?.get("service_id").is_some() {
            return Err(Answer::refused("service_id can not be patched"));
        }
    }
    if operation.id.is_none() && operation.kind != Kind::Secrets {
        return Err(missing_id(operation.kind));
    }
    let missing = || Answer::refused("missing new configuration");
    let mut change = operation.body.take().ok_or_else(missing)?;
    if operation.kind.parent().is_some() {
        // What follows the id of a resource that belongs to another is not looked at.
        operation.sub_path.clear();
    }
    if operation.sub_path.is_empty() {
        if change == json!([]) {
            change = json!({});
        }
        if !change.is_object() {
            return Err(invalid());
        }
    }
    Ok(change)
}

async fn delete(
    state: &AdminState,
    settings: &Settings,
    operation: Operation,
) -> Result<Answer, Answer> {
    let kind = operation.kind;
    let id = operation.id.as_deref().ok_or_else(|| missing_id(kind))?;
    let key = operation.key(id).to_string();
    let start = StartBy::new();
    let guard = start.wait_for(state.guard(references::can_be_used(kind))).await?;
    if operation.args.get("force") != Some("true") {
        references::refuse_if_used(state, kind, id).await?;
    }
    start.check()?;
    // What belongs to it goes in the same step, so that no failure leaves a part of both.
    let deleted = state.store.remove(&key, Expect::Any, kind.child().is_some()).await;
    let revision = deleted.map_err(store_failed)?.ok_or_else(Answer::key_not_found)?;
    state.index.wrote(revision);
    drop(guard);
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

    /// Writes a value, if that can start in time. `None`: someone else was faster.
    async fn write(
        &self,
        start: StartBy,
        key: &str,
        value: &Value,
        how: Put,
    ) -> Result<Option<Written>, Answer> {
        start.check()?;
        let bytes: Arc<[u8]> = value.to_string().into_bytes().into();
        match self.store.put(key, bytes, how).await {
            Ok(written) => {
                self.index.wrote(written.entry.modified);
                Ok(Some(written))
            }
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(failed) => Err(store_failed(failed)),
        }
    }

    async fn written(
        &self,
        settings: &Settings,
        kind: Kind,
        written: Written,
        mut value: Value,
    ) -> Answer {
        if settings.shared_with_apisix {
            self.warn_of_apisix(&written.entry.key, &value);
        }
        secrets::hide_plain_private_keys(kind, &mut value);
        secrets::redact(self, settings, kind, &mut value);
        self.wait_until_applied(written.entry.modified).await;
        let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        let key = shown_key(settings, &written.entry);
        Answer::json(status, json!({"key": key, "value": value}))
    }

    /// An APISIX on the same etcd leaves out a resource that it would have refused.
    fn warn_of_apisix(&self, key: &str, value: &Value) {
        let Some(plugins) = value.get("plugins").and_then(Value::as_object) else { return };
        let catalog = self.catalog.load_full();
        if let Some((plugin, field)) = catalog.refused_by_apisix(plugins) {
            warn!(
                key,
                plugin,
                field,
                "A change is stored that an APISIX on the same etcd does not take: it asks for function_uri, and this field is Sluicegate's own."
            );
        }
    }

    pub(crate) async fn wait_until_applied(&self, revision: u64) {
        let Some(applied) = &self.applied else { return };
        if tokio::time::timeout(APPLIED_WAIT_MAX, applied(revision)).await.is_err() {
            warn!(revision, "A change is stored but not served yet; answering anyway.");
        }
    }
}

/// When a request's write has to start: earlier writes may hang in a store out of reach, and those
/// behind them shall not wait for one after the other.
#[derive(Clone, Copy)]
struct StartBy(Instant);

impl StartBy {
    fn new() -> Self {
        Self(Instant::now() + WRITE_START_MAX)
    }

    /// Waits for what comes before the write.
    async fn wait_for<T>(self, before: impl Future<Output = T>) -> Result<T, Answer> {
        tokio::time::timeout_at(self.0, before).await.map_err(|_| not_started())
    }

    fn check(self) -> Result<(), Answer> {
        if Instant::now() < self.0 { Ok(()) } else { Err(not_started()) }
    }
}

fn not_started() -> Answer {
    warn!("A change waited too long for earlier ones; it was refused.");
    Answer::error(StatusCode::SERVICE_UNAVAILABLE, NOT_STARTED)
}

/// Keeps what a write refers to from being deleted meanwhile.
enum Guard<'a> {
    Shared(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, ()>),
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'a, ()>),
}

/// Whether a write of this kind is compared with all others of its folder, so that no two may go on
/// at once.
fn must_be_alone(kind: Kind) -> bool {
    matches!(kind, Kind::GlobalRules | Kind::GraphqlCostDecorations)
}

/// The body of a `PUT` or `POST`.
fn write_body(operation: &mut Operation) -> Result<Value, Answer> {
    let body = operation.body.take();
    match operation.kind {
        Kind::GraphqlCostDecorations if !matches!(body, Some(Value::Object(_))) => {
            Err(Answer::refused("invalid configuration"))
        }
        Kind::Secrets if operation.id.is_none() => Err(missing_id(Kind::Secrets)),
        _ => object(body),
    }
}

fn missing_id(kind: Kind) -> Answer {
    Answer::refused(format!("missing {} id", kind.singular()))
}

/// The store's key: `/routes/1`.
pub(crate) fn key(kind: Kind, id: &str) -> String {
    Key::new(kind, id).to_string()
}

/// The entries of a kind, all or those of one owner, without those of other kinds that live among
/// them.
pub(crate) async fn entries(
    store: &dyn Store,
    kind: Kind,
    parent: Option<&str>,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries = store.list(&Key::folder(kind, parent)).await?.entries;
    entries.retain(|entry| Key::parse(&entry.key).is_some_and(|key| key.kind == kind));
    Ok(entries)
}

fn shown_key(settings: &Settings, entry: &Entry) -> String {
    format!("{}{}", settings.key_prefix, entry.key)
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
    let text = match &failed {
        StoreError::Key(_) | StoreError::TooLarge { .. } => {
            return Answer::refused(failed.to_string());
        }
        // Differs: APISIX without etcd has no such paths at all and answers 404 to reads, too.
        StoreError::ReadOnly { .. } => {
            return Answer::error(StatusCode::METHOD_NOT_ALLOWED, failed.to_string());
        }
        StoreError::OutcomeUnknown { .. } | StoreError::Write { .. } => OUTCOME_UNKNOWN,
        _ => UNAVAILABLE,
    };
    error!(reason = %failed, "The configuration store failed.");
    Answer::error(StatusCode::SERVICE_UNAVAILABLE, text)
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
/// Earlier writes took all the time there was.
const NOT_STARTED: &str =
    "the configuration store did not take earlier changes in time: nothing was written";
/// Nothing was written.
const UNAVAILABLE: &str = "the configuration store is not available";
/// Something may have been written.
const OUTCOME_UNKNOWN: &str = "the configuration store did not say what became of the change: it \
                               may or may not have been made, read before repeating it";

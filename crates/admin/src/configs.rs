//! `/apisix/admin/configs`: the whole configuration at once.
//!
//! With `config_provider: yaml` and the role traditional it is *the* Admin API, as in APISIX: what
//! `PUT` sends replaces everything, kind by kind as far as `*_conf_version` says so, and stays in
//! memory only. <https://apisix.apache.org/docs/apisix/deployment-modes/#api-driven>
//!
//! With a store behind, `GET` shows what is stored, for `sluicegate config export`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
    },
};
use serde_json::{Map, Number, Value, json};
use sluicegate_model::{
    Kind,
    check::{self, Outside},
    encrypt::{Keyring, each_private_key},
    plugin::{Catalog, check_consumer_plugins, check_credential_plugins, check_plugins},
    resource::Key,
};
use sluicegate_store::{
    DeclaredStore,
    file::{DeclaredPlugin, FILE_BYTES_MAX, Item, items, plugins},
    yaml,
};
use tokio::sync::Mutex;

use crate::{
    AdminState, Settings, answer::Answer, auth, checks::unknown_protocol, openapi,
    resource::store_failed, secrets, validate,
};

/// Checks a resource that was declared with others: what it refers to may be missing.
///
/// # Errors
/// What the Admin API would answer.
pub fn check_declared(
    catalog: &Catalog,
    keyring: &Keyring,
    outside: &dyn Outside,
    key: &Key,
    value: &Value,
) -> Result<(), String> {
    if key.kind == Kind::PluginMetadata {
        return catalog.check_metadata(&key.id, value);
    }
    let mut plain = value.clone();
    each_private_key(key.kind, &mut plain, |key| {
        if let Some(opened) = keyring.decrypt_pem(key) {
            *key = opened;
        }
    });
    if key.kind == Kind::Secrets
        && let Some(secret) = plain.as_object_mut()
    {
        // Its manager is the first part of it.
        secret.insert("id".to_owned(), key.id.as_str().into());
    }
    check::resource(key.kind, &plain, outside)?;
    if let Some(plugins) = value.get("plugins").and_then(Value::as_object) {
        match key.kind {
            Kind::Consumers => check_consumer_plugins(catalog, plugins)?,
            Kind::Credentials => {
                check_consumer_plugins(catalog, plugins)?;
                check_credential_plugins(catalog, plugins)?;
            }
            Kind::StreamRoutes => {
                if let Some(name) = plugins.keys().next() {
                    return Err(format!("unknown plugin [{name}]"));
                }
            }
            _ => check_plugins(catalog, plugins)?,
        }
    }
    if let (Kind::Routes, Some(vars)) = (key.kind, value.get("vars")) {
        (catalog.vars_check)(vars)
            .map_err(|why| format!("failed to validate the 'vars' expression: {why}"))?;
    }
    if let (Kind::Routes, Some(source)) = (key.kind, value["filter_func"].as_str())
        && let Some(check) = catalog.filter_check
    {
        check(source)?;
    }
    unknown_protocol(value).map_or(Ok(()), Err)
}

/// The resources of a store as one declaration, in APISIX's standalone form. Values stay as they
/// are stored.
pub fn declaration<'a>(entries: impl Iterator<Item = (&'a str, Value)>) -> Map<String, Value> {
    let mut kinds: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
    for (key, mut value) in entries {
        let Some(Key { kind, parent, id }) = Key::parse(key) else { continue };
        // What belongs to another stands among those, under its whole id.
        let (kind, id) = match (kind.parent(), parent) {
            (Some(owner), Some(parent)) => (owner, format!("{parent}/{}/{id}", kind.plural())),
            _ => (kind, id),
        };
        if let Some(resource) = value.as_object_mut() {
            let mut named = Map::new();
            if kind != Kind::Consumers || id.contains('/') {
                named.insert("id".to_owned(), id.into());
            }
            resource.shift_remove("id");
            named.append(resource);
            kinds.entry(kind).or_default().push(Value::Object(named));
        }
    }
    kinds.into_iter().map(|(kind, list)| (kind.plural().to_owned(), list.into())).collect()
}

/// The configuration that the Admin API was last sent, for a store that has no other source.
pub struct Declared {
    store: Arc<DeclaredStore>,
    /// Told of the configuration's own list of plugins.
    plugins: ListTaken,
    current: Mutex<Current>,
}

type ListTaken = Box<dyn Fn(Option<&[DeclaredPlugin]>) + Send + Sync>;

impl Declared {
    /// Nothing sent yet.
    pub fn new(
        store: Arc<DeclaredStore>,
        plugins: impl Fn(Option<&[DeclaredPlugin]>) + Send + Sync + 'static,
    ) -> Self {
        Self { store, plugins: Box::new(plugins), current: Mutex::default() }
    }
}

#[derive(Default)]
struct Current {
    /// What `GET` shows; empty before the first `PUT`.
    shown: Map<String, Value>,
    /// `X-Digest` and `X-Last-Modified` of the last `PUT`.
    sent: Option<(HeaderValue, u64)>,
    /// What is served, by key.
    served: HashMap<String, Served>,
}

#[derive(Clone)]
struct Served {
    kind: Kind,
    /// `modifiedIndex`, or else the version of its kind when it came.
    modified: Number,
    value: Arc<[u8]>,
}

/// Answers a request of the Admin API where there is nothing but declarations.
pub(crate) async fn run(
    state: &AdminState,
    declared: &Declared,
    settings: &Settings,
    parts: &Parts,
    path: &[&str],
    body: Body,
) -> Response<Body> {
    let respond = |answer: Answer| answer.into_response(&settings.server, settings.cors);
    let known = matches!(
        (&parts.method, path),
        (&Method::GET | &Method::HEAD | &Method::PUT, ["configs"])
            | (&Method::POST, ["configs", "validate"])
            | (&Method::GET, ["openapi.json"])
    );
    if !known {
        return respond(Answer::page(StatusCode::NOT_FOUND));
    }
    if let Err(why) = auth::check_key(settings, &parts.method, &parts.uri, &parts.headers) {
        let body = json!({"error_msg": "failed to check token", "description": why});
        return respond(Answer::json(StatusCode::UNAUTHORIZED, body));
    }
    if path == ["openapi.json"] {
        let document = openapi::declared_document(&state.catalog.load());
        return respond(Answer::json(StatusCode::OK, document));
    }
    // A whole configuration may be larger than a resource.
    let roomy = Settings { body_bytes_max: FILE_BYTES_MAX, ..settings.clone() };
    match parts.method {
        Method::PUT => match put(state, declared, &roomy, &parts.headers, body).await {
            Ok(done) => with_metadata(respond(Answer::bare(done.status, "")), done.sent),
            Err(refused) => respond(refused),
        },
        Method::POST => {
            let checked = match validate::body(&roomy, &parts.headers, body).await {
                Ok(body) => validate::configuration(state, &body).await,
                Err(refused) => Err(refused),
            };
            respond(checked.unwrap_or_else(|refused| refused))
        }
        Method::HEAD => {
            let sent = declared.current.lock().await.sent.clone();
            with_metadata(respond(Answer::bare(StatusCode::OK, "")), sent)
        }
        _ => {
            let current = declared.current.lock().await;
            let mut shown = current.shown.clone();
            if shown.is_empty() {
                shown = kinds().map(|name| (version_key(name), 0.into())).collect();
            }
            secrets::redact_declaration(state, settings, &mut shown);
            if let Some((digest, modified)) = &current.sent {
                shown.insert("X-Last-Modified".to_owned(), (*modified).into());
                shown.insert("X-Digest".to_owned(), digest.to_str().unwrap_or_default().into());
            }
            let response = shown_as(&parts.headers, shown, respond);
            with_metadata(response, current.sent.clone())
        }
    }
}

/// `GET /apisix/admin/configs` where a store is behind.
// Differs: APISIX has no such resource then. Secrets are shown as they are stored, or redacted;
// private keys that are stored in the clear are left out, as everywhere.
pub(crate) async fn export(
    state: &AdminState,
    settings: &Settings,
    parts: &Parts,
) -> Result<Response<Body>, Answer> {
    auth::check_key(settings, &parts.method, &parts.uri, &parts.headers).map_err(|why| {
        let body = json!({"error_msg": "failed to check token", "description": why});
        Answer::json(StatusCode::UNAUTHORIZED, body)
    })?;
    let listing = state.store.list("/").await.map_err(store_failed)?;
    let entries = listing.entries.iter().filter_map(|entry| {
        let kind = Key::parse(&entry.key)?.kind;
        let mut value = serde_json::from_slice(&entry.value).ok()?;
        secrets::hide_plain_private_keys(kind, &mut value);
        Some((&*entry.key, value))
    });
    let mut shown = declaration(entries);
    secrets::redact_declaration(state, settings, &mut shown);
    Ok(shown_as(&parts.headers, shown, |answer| {
        answer.into_response(&settings.server, settings.cors)
    }))
}

/// As YAML where that is asked for, else as JSON.
fn shown_as(
    headers: &HeaderMap,
    shown: Map<String, Value>,
    respond: impl Fn(Answer) -> Response<Body>,
) -> Response<Body> {
    let accept = headers.get(header::ACCEPT).map_or(&b""[..], |value| value.as_bytes());
    if !accept.starts_with(YAML.as_bytes()) {
        return respond(Answer::json(StatusCode::OK, Value::Object(shown)));
    }
    let mut response = respond(Answer::bare(StatusCode::OK, ""));
    *response.body_mut() = Body::from(yaml::write(&Value::Object(shown)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(YAML));
    response
}

fn with_metadata(mut response: Response<Body>, sent: Option<(HeaderValue, u64)>) -> Response<Body> {
    if let Some((digest, modified)) = sent {
        response.headers_mut().insert(X_DIGEST, digest);
        response.headers_mut().insert(X_LAST_MODIFIED, modified.into());
    }
    response
}

struct Done {
    status: StatusCode,
    sent: Option<(HeaderValue, u64)>,
}

async fn put(
    state: &AdminState,
    declared: &Declared,
    settings: &Settings,
    headers: &HeaderMap,
    body: Body,
) -> Result<Done, Answer> {
    let digest = headers.get(X_DIGEST).ok_or_else(|| Answer::refused("missing digest header"))?;
    let mut all = match validate::body(settings, headers, body).await? {
        Value::Object(all) => all,
        Value::Array(empty) if empty.is_empty() => Map::new(),
        _ => return Err(Answer::refused("invalid request body: it should be an object")),
    };
    // Those who come meanwhile wait, and then see what this one did.
    let mut current = declared.current.lock().await;
    if current.sent.as_ref().is_some_and(|(sent, _)| sent == digest) {
        return Ok(Done { status: StatusCode::NO_CONTENT, sent: None });
    }
    let next = Next::read(&mut all, &current.shown)?;
    check_items(state, &next.items)?;
    for Item { key, value, .. } in &next.items {
        secrets::refuse_redacted(state, settings, key.kind, value)?;
    }

    let served = next.served(&current.served);
    let wanted = served.iter().map(|(key, one)| (key.as_str().into(), one.value.clone()));
    let wanted = wanted.collect();
    if next.changed("plugins") {
        (declared.plugins)(next.plugins.as_deref());
    }
    let revision = declared.store.replace(wanted);
    let sent = Some((digest.clone(), (state.now)()));
    *current = Current { shown: next.shown, sent: sent.clone(), served };
    drop(current);
    state.wait_until_applied(revision).await;
    Ok(Done { status: StatusCode::ACCEPTED, sent })
}

/// A configuration that was sent, before it is in force.
struct Next {
    shown: Map<String, Value>,
    /// The kinds whose version is another one than before, and that version.
    versions: HashMap<&'static str, Number>,
    items: Vec<Item>,
    plugins: Option<Vec<DeclaredPlugin>>,
}

impl Next {
    fn read(all: &mut Map<String, Value>, before: &Map<String, Value>) -> Result<Self, Answer> {
        let mut shown = Map::new();
        let mut versions = HashMap::new();
        for name in kinds() {
            let key = version_key(name);
            let old = match before.get(&key) {
                Some(Value::Number(old)) => old.clone(),
                _ => 0.into(),
            };
            let new = match all.remove(&key) {
                Some(Value::Number(new)) => new,
                None | Some(Value::Null) => match old.as_i64() {
                    Some(old) => old.saturating_add(1).into(),
                    None => old.clone(),
                },
                Some(_) => return Err(Answer::refused(format!("{key} must be a number"))),
            };
            if new.as_f64() < old.as_f64() {
                let text = format!("{key} must be greater than or equal to ({old})");
                return Err(Answer::refused(text));
            }
            let same = new.as_f64() == old.as_f64();
            let list = match same {
                true => {
                    all.remove(name);
                    before.get(name).cloned()
                }
                false => all.get(name).filter(|list| is_filled(list)).cloned(),
            };
            shown.insert(key, Value::Number(new.clone()));
            shown.extend(list.map(|list| (name.to_owned(), list)));
            if !same {
                versions.insert(name, new);
            }
        }
        let plugins = plugins(all).map_err(|why| {
            Answer::refused(format!("failed to check item data of [plugins] err:{why}"))
        })?;
        let (items, refused) = items(all);
        if let Some(first) = refused.first() {
            let text = format!("invalid item data of [{}]: {}", first.place, first.reason);
            return Err(Answer::refused(text));
        }
        Ok(Self { shown, versions, items, plugins })
    }

    fn changed(&self, name: &str) -> bool {
        self.versions.contains_key(name)
    }

    /// What is to be served: kinds of the same version stay, and so do resources of the same
    /// `modifiedIndex`, whatever else they say.
    fn served(&self, before: &HashMap<String, Served>) -> HashMap<String, Served> {
        let list_of = |kind: Kind| kind.parent().unwrap_or(kind).plural();
        let mut served: HashMap<String, Served> = before
            .iter()
            .filter(|(_, old)| !self.changed(list_of(old.kind)))
            .map(|(key, old)| (key.clone(), old.clone()))
            .collect();
        for item in &self.items {
            let kind = item.key.kind;
            let Some(version) = self.versions.get(list_of(kind)) else { continue };
            let key = item.key.to_string();
            let kept = before.get(&key).filter(|old| item.modified.as_ref() == Some(&old.modified));
            let new = || Served {
                kind,
                modified: item.modified.clone().unwrap_or_else(|| version.clone()),
                value: item.value.to_string().into_bytes().into(),
            };
            let one = kept.cloned().unwrap_or_else(new);
            served.insert(key, one);
        }
        served
    }
}

fn check_items(state: &AdminState, items: &[Item]) -> Result<(), Answer> {
    let catalog = state.catalog.load_full();
    let mut seen = HashSet::new();
    for Item { key, value, .. } in items {
        check_declared(&catalog, &state.keyring, &*state.outside, key, value)
            .map_err(Answer::refused)?;
        if !seen.insert(key) {
            let list = key.kind.parent().unwrap_or(key.kind).plural();
            let (word, id) = match (key.kind, &key.parent) {
                (Kind::Consumers, _) => ("username", key.id.clone()),
                (Kind::Credentials, Some(parent)) => {
                    ("credential id", format!("{parent}/credentials/{}", key.id))
                }
                _ => ("id", key.id.clone()),
            };
            return Err(Answer::refused(format!("found duplicate {word} {id} in {list}")));
        }
    }
    Ok(())
}

/// The lists a configuration may have.
fn kinds() -> impl Iterator<Item = &'static str> {
    let own = Kind::ALL.into_iter().filter(|kind| kind.parent().is_none());
    own.map(Kind::plural).chain(["plugins"])
}

fn version_key(name: &str) -> String {
    format!("{name}_conf_version")
}

fn is_filled(list: &Value) -> bool {
    list.as_array().is_some_and(|list| !list.is_empty())
}

const YAML: &str = "application/yaml";
const X_DIGEST: HeaderName = HeaderName::from_static("x-digest");
const X_LAST_MODIFIED: HeaderName = HeaderName::from_static("x-last-modified");

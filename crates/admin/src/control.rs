//! The Control API: what the gateway knows, for the machine it runs on.
//!
//! Resources are shown as the data plane sees them: with defaults filled in and nodes as a list.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{
    body::Body,
    extract::{Request, State},
    http::{Method, Response, StatusCode},
};
use serde_json::{Map, Value, json};
use sluicegate_model::{Kind, plugin::Catalog};
use sluicegate_store::{Entry, Store};

use crate::{
    ReloadPlugins,
    answer::Answer,
    discovery::{all_plugins, schema_name},
    query::segments,
    resource::{key, parse, store_failed},
    secrets::hide_private_keys,
};

/// The Control API over `state`.
pub fn router(state: Arc<ControlState>) -> axum::Router {
    axum::Router::new().fallback(control).with_state(state)
}

/// What the Control API works with.
pub struct ControlState {
    /// Where the resources are.
    pub store: Arc<dyn Store>,
    /// The enabled plugins.
    pub catalog: Arc<ArcSwap<Catalog>>,
    /// What keys in answers start with: `deployment.etcd.prefix`.
    pub key_prefix: String,
    /// The `Server` header.
    pub server: String,
    /// Called on `PUT /v1/plugins/reload`.
    pub reload_plugins: Option<ReloadPlugins>,
    /// What `GET /v1/status` answers: Sluicegate's own, APISIX has nothing like it.
    pub status: Option<Status>,
}

/// Tells how the gateway is doing.
pub type Status = Arc<dyn Fn() -> Value + Send + Sync>;

async fn control(State(state): State<Arc<ControlState>>, request: Request) -> Response<Body> {
    let path = segments(request.uri().path()).unwrap_or_default();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let answer = state.answer(request.method(), &path).await;
    answer.unwrap_or_else(|refusal| refusal).into_response(&state.server, false)
}

impl ControlState {
    async fn answer(&self, method: &Method, path: &[&str]) -> Result<Answer, Answer> {
        let path = path.strip_prefix(&["v1"]).ok_or_else(not_found)?;
        match (method.as_str(), path) {
            ("GET", ["status"]) => {
                let status = self.status.as_ref().ok_or_else(not_found)?;
                Ok(Answer::json(StatusCode::OK, status()))
            }
            ("GET", ["schema"]) => Ok(self.schema()),
            // Health checks come with a later issue; until then nothing is checked.
            ("GET", ["healthcheck"]) => Ok(Answer::json(StatusCode::OK, json!([]))),
            ("GET", ["healthcheck", kind, id]) => self.health(kind, id).await,
            ("GET", ["routes"]) => self.all(Kind::Routes).await,
            ("GET", ["services"]) => self.all(Kind::Services).await,
            ("GET", ["upstreams"]) => self.all(Kind::Upstreams).await,
            ("GET", ["route", id]) => self.one(Kind::Routes, id).await,
            ("GET", ["service", id]) => self.one(Kind::Services, id).await,
            ("GET", ["upstream", id]) => self.one(Kind::Upstreams, id).await,
            ("GET", ["plugin_metadatas"]) => self.all_metadata().await,
            ("GET", ["plugin_metadata", name]) => self.one_metadata(name).await,
            // There is no garbage to collect; monitoring scripts may still ask.
            ("POST", ["gc"]) => Ok(Answer::text(StatusCode::OK, "")),
            ("PUT", ["plugins", "reload"]) => {
                if let Some(reload) = &self.reload_plugins {
                    reload();
                }
                Ok(Answer::text(StatusCode::OK, "done"))
            }
            _ => Err(not_found()),
        }
    }

    fn schema(&self) -> Answer {
        let main: Map<_, _> = Kind::ALL
            .into_iter()
            .map(|kind| (schema_name(kind), kind.schema_json().clone()))
            .collect();
        let plugins = all_plugins(&self.catalog.load());
        Answer::json(
            StatusCode::OK,
            json!({"main": main, "plugins": plugins, "stream_plugins": {}}),
        )
    }

    async fn all(&self, kind: Kind) -> Result<Answer, Answer> {
        let found = self.store.list(&key(kind, "")).await.map_err(store_failed)?;
        let shown: Value =
            found.entries.iter().filter_map(|entry| self.show(kind, entry).ok()).collect();
        Ok(Answer::json(StatusCode::OK, shown))
    }

    async fn one(&self, kind: Kind, id: &str) -> Result<Answer, Answer> {
        let missing = format!("{}[{id}] not found", schema_name(kind));
        let entry = self.entry(kind, id, missing).await?;
        Ok(Answer::json(StatusCode::OK, self.show(kind, &entry)?))
    }

    async fn health(&self, kind: &str, id: &str) -> Result<Answer, Answer> {
        let known = [Kind::Routes, Kind::Services, Kind::Upstreams, Kind::StreamRoutes];
        let found = Kind::from_plural(kind).filter(|kind| known.contains(kind));
        let found = found.ok_or_else(|| Answer::refused(format!("invalid src type {kind}")))?;
        self.entry(found, id, format!("{kind}[{id}] not found")).await?;
        Err(Answer::error(StatusCode::NOT_FOUND, format!("no checker for {kind}[{id}]")))
    }

    async fn all_metadata(&self) -> Result<Answer, Answer> {
        let found = self.store.list(&key(Kind::PluginMetadata, "")).await.map_err(store_failed)?;
        let values: Vec<_> = found.entries.iter().filter_map(|entry| parse(entry).ok()).collect();
        // As APISIX encodes an empty table.
        let shown = if values.is_empty() { json!({}) } else { json!(values) };
        Ok(Answer::json(StatusCode::OK, shown))
    }

    async fn one_metadata(&self, name: &str) -> Result<Answer, Answer> {
        let missing = format!("plugin metadata[{name}] not found");
        let entry = self.entry(Kind::PluginMetadata, name, missing).await?;
        Ok(Answer::json(StatusCode::OK, parse(&entry)?))
    }

    async fn entry(&self, kind: Kind, id: &str, missing: String) -> Result<Entry, Answer> {
        let entry = self.store.get(&key(kind, id)).await.map_err(store_failed)?;
        entry.ok_or_else(|| Answer::error(StatusCode::NOT_FOUND, missing))
    }

    // Differs: APISIX shows plugins' secrets here in the clear, without asking for a key. We show
    // them as they are stored.
    fn show(&self, kind: Kind, entry: &Entry) -> Result<Value, Answer> {
        let mut value = parse(entry)?;
        kind.schema().fill_defaults(&mut value);
        hide_private_keys(kind, &mut value);
        let id = value.get("id").cloned().unwrap_or_default();
        let key = format!("{}{}", self.key_prefix, entry.key);
        let upstream =
            if kind == Kind::Upstreams { Some(&mut value) } else { value.get_mut("upstream") };
        let mut has_domain = false;
        if let Some(upstream @ Value::Object(_)) = upstream {
            if let Some(tls) = upstream.get_mut("tls").and_then(Value::as_object_mut) {
                tls.shift_remove("client_key");
            }
            has_domain = spread_nodes(upstream);
            upstream["resource_key"] = key.as_str().into();
            upstream["resource_version"] = entry.modified.into();
            upstream["resource_id"] = id;
        }
        let mut shown = json!({
            "key": key,
            "value": value,
            "createdIndex": entry.created,
            "modifiedIndex": entry.modified,
            "has_domain": has_domain,
        });
        if kind == Kind::Routes {
            shown["orig_modifiedIndex"] = entry.modified.into();
        }
        Ok(shown)
    }
}

/// Turns nodes given as a map into a list, and says whether one is named instead of numbered.
fn spread_nodes(upstream: &mut Value) -> bool {
    let default_port = match upstream.get("scheme").and_then(Value::as_str) {
        Some("https" | "grpcs") => 443,
        _ => 80,
    };
    let Some(nodes) = upstream.get_mut("nodes") else { return false };
    if let Value::Object(map) = nodes {
        let list = map.iter().map(|(address, weight)| {
            let (host, port) = match address.rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => {
                    (host, port.parse().unwrap_or(default_port))
                }
                _ => (address.as_str(), default_port),
            };
            json!({"host": host, "port": port, "weight": weight})
        });
        *nodes = list.collect();
    }
    let hosts =
        nodes.as_array().into_iter().flatten().filter_map(|node| node.get("host")?.as_str());
    let is_name = |host: &str| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.parse::<std::net::IpAddr>().is_err()
    };
    hosts.into_iter().any(is_name)
}

fn not_found() -> Answer {
    Answer::page(StatusCode::NOT_FOUND)
}

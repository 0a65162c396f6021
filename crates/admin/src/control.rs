//! The Control API: what the gateway knows, for the machine it runs on.
//!
//! Resources are shown as the data plane sees them: with defaults filled in and nodes as a list.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
};
use serde_json::{Map, Value, json};
use sluicegate_model::{Kind, encrypt::Keyring, plugin::Catalog, schema};
use sluicegate_store::{Entry, Store};

use crate::{
    ReloadPlugins,
    answer::{Answer, Content},
    discovery::{all_plugins, schema_name},
    explain::Explain,
    query::segments,
    resource::{entries, key, parse, store_failed},
    secrets::{hide_private_keys, redact_plain},
    sender,
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
    /// What secrets in the store are encrypted with.
    pub keyring: Keyring,
    /// What keys in answers start with: `deployment.etcd.prefix`.
    pub key_prefix: String,
    /// The `Server` header.
    pub server: String,
    /// Called on `PUT /v1/plugins/reload`.
    pub reload_plugins: Option<ReloadPlugins>,
    /// What `GET /v1/status` answers: Sluicegate's own, APISIX has nothing like it.
    pub status: Option<Status>,
    /// Answers `POST /v1/aws-lambda/explain`.
    pub explain: Option<Explain>,
    /// What health checks know of the nodes of the resource stored at a key, as `/upstreams/1`;
    /// nothing while they do not run.
    pub health: Option<Health>,
}

/// Tells how the gateway is doing.
pub type Status = Arc<dyn Fn() -> Value + Send + Sync>;

/// Tells of the nodes of a resource, each as `GET /v1/healthcheck` shows it.
pub type Health = Arc<dyn Fn(&str) -> Option<Vec<Value>> + Send + Sync>;

async fn control(State(state): State<Arc<ControlState>>, request: Request) -> Response<Body> {
    let path = segments(request.uri().path()).unwrap_or_default();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let browser = for_browsers(request.headers());
    let answer = match (sender::check(&request), request.method().as_str(), path.as_slice()) {
        (Err(refusal), ..) => Err(refusal),
        (Ok(()), "POST", ["v1", "aws-lambda", "explain"]) => state.explain(request).await,
        _ => state.answer(request.method(), &path).await,
    };
    let mut shown = None;
    if let (["v1", "healthcheck", ..], Ok(Answer { content: Content::Json(checks), .. })) =
        (path.as_slice(), &answer)
        && browser
    {
        shown = Some(health_page(checks));
    }
    let mut response = answer.unwrap_or_else(|refusal| refusal).into_response(&state.server, false);
    if let Some(page) = shown {
        *response.body_mut() = Body::from(page);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    }
    response
}

fn for_browsers(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
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
            ("GET", ["healthcheck"]) => self.all_health().await,
            ("GET", ["healthcheck", kind]) => {
                let text = format!("missing src id for src type {kind}");
                Err(Answer::error(StatusCode::NOT_FOUND, text))
            }
            ("GET", ["healthcheck", kind, id, ..]) => self.health(kind, id).await,
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
        let mut main: Map<_, _> = Kind::ALL
            .into_iter()
            .map(|kind| (schema_name(kind), kind.schema_json().clone()))
            .collect();
        main.insert("plugins".to_owned(), plugin_list_schema());
        main.insert("upstream_hash_header_schema".to_owned(), schema::hash_header());
        main.insert("upstream_hash_vars_schema".to_owned(), schema::hash_vars());
        let plugins = all_plugins(&self.catalog.load());
        Answer::json(
            StatusCode::OK,
            json!({"main": main, "plugins": plugins, "stream_plugins": {}}),
        )
    }

    async fn all(&self, kind: Kind) -> Result<Answer, Answer> {
        let found = entries(&*self.store, kind, None).await.map_err(store_failed)?;
        let shown = found.iter().filter_map(|entry| self.show(kind, entry).ok());
        Ok(Answer::json(StatusCode::OK, list(shown.collect())))
    }

    async fn one(&self, kind: Kind, id: &str) -> Result<Answer, Answer> {
        let missing = format!("{}[{id}] not found", schema_name(kind));
        let entry = self.entry(kind, id, missing).await?;
        Ok(Answer::json(StatusCode::OK, self.show(kind, &entry)?))
    }

    async fn all_health(&self) -> Result<Answer, Answer> {
        let mut checks = Vec::new();
        for kind in CHECKED {
            let found = entries(&*self.store, kind, None).await.map_err(store_failed)?;
            checks.extend(found.iter().filter_map(|entry| self.checks(entry)));
        }
        Ok(Answer::json(StatusCode::OK, list(checks)))
    }

    async fn health(&self, kind: &str, id: &str) -> Result<Answer, Answer> {
        let found = Kind::from_plural(kind).filter(|kind| CHECKED.contains(kind));
        let found = found.ok_or_else(|| Answer::refused(format!("invalid src type {kind}")))?;
        let entry = self.entry(found, id, format!("{kind}[{id}] not found")).await?;
        let text = format!("no checker for {kind}[{id}]");
        let checks = self.checks(&entry);
        let checks = checks.ok_or_else(|| Answer::error(StatusCode::NOT_FOUND, text))?;
        Ok(Answer::json(StatusCode::OK, checks))
    }

    /// The health of a resource's nodes, where its configuration asks for checks. There are none
    /// to show until the first request starts its checker.
    fn checks(&self, entry: &Entry) -> Option<Value> {
        let value = parse(entry).ok()?;
        let checks = value.get("checks").or_else(|| value.get("upstream")?.get("checks"))?;
        let named = |way| checks.get(way)?.get("type")?.as_str();
        // An active check that does not say is one over HTTP.
        let kind = named("active").or_else(|| checks.get("active").map(|_| "http"));
        let nodes = self.health.as_ref().and_then(|health| health(&entry.key));
        let name = format!("{}{}", self.key_prefix, entry.key);
        let mut shown = json!({"name": name, "nodes": list(nodes.unwrap_or_default())});
        if let Some(kind) = kind.or_else(|| named("passive")) {
            shown["type"] = kind.into();
        }
        Some(shown)
    }

    async fn all_metadata(&self) -> Result<Answer, Answer> {
        let kind = Kind::PluginMetadata;
        let found = entries(&*self.store, kind, None).await.map_err(store_failed)?;
        let catalog = self.catalog.load_full();
        let enabled = |entry: &&Entry| {
            entry.key.rsplit('/').next().is_some_and(|name| catalog.get(name).is_some())
        };
        let values = found.iter().filter(enabled).filter_map(|entry| self.metadata(entry).ok());
        Ok(Answer::json(StatusCode::OK, list(values.collect())))
    }

    async fn one_metadata(&self, name: &str) -> Result<Answer, Answer> {
        let missing = format!("plugin metadata[{name}] not found");
        let entry = self.entry(Kind::PluginMetadata, name, missing).await?;
        Ok(Answer::json(StatusCode::OK, self.metadata(&entry)?))
    }

    fn metadata(&self, entry: &Entry) -> Result<Value, Answer> {
        let mut value = parse(entry)?;
        // What else writes to the store may leave the plugin's name to the key.
        let unnamed = value.get("id").is_none() && value.is_object();
        if unnamed {
            value["id"] = entry.key.rsplit('/').next().into();
        }
        redact_plain(&self.catalog.load(), &self.keyring, Kind::PluginMetadata, &mut value);
        if unnamed && let Some(metadata) = value.as_object_mut() {
            metadata.shift_remove("id");
        }
        Ok(value)
    }

    async fn entry(&self, kind: Kind, id: &str, missing: String) -> Result<Entry, Answer> {
        let entry = self.store.get(&key(kind, id)).await.map_err(store_failed)?;
        entry.ok_or_else(|| Answer::error(StatusCode::NOT_FOUND, missing))
    }

    // Differs: APISIX shows plugins' secrets here in the clear, without asking for a key. We show
    // them only in encrypted form, and `***` where they are stored without.
    fn show(&self, kind: Kind, entry: &Entry) -> Result<Value, Answer> {
        let mut value = parse(entry)?;
        kind.schema().fill_defaults(&mut value);
        hide_private_keys(kind, &mut value);
        redact_plain(&self.catalog.load(), &self.keyring, kind, &mut value);
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

/// A list as APISIX encodes one: empty, it is an empty table like any other.
fn list(values: Vec<Value>) -> Value {
    if values.is_empty() { json!({}) } else { Value::Array(values) }
}

/// The table of checks that browsers get.
fn health_page(checks: &Value) -> String {
    let text = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
    };
    let one = std::slice::from_ref(checks);
    let all = checks.as_array().map_or(one, Vec::as_slice);
    let nodes = all.iter().flat_map(|check| {
        let nodes = check.get("nodes").and_then(Value::as_array).into_iter().flatten();
        nodes.map(move |node| (check, node))
    });
    let mut page = String::from(
        "<html>\n<head>\n<title>Sluicegate upstream check status</title>\n</head>\n<body>\n\
         <h1>Sluicegate upstream check status</h1>\n\
         <table style=\"background-color:white\" cellspacing=\"0\" cellpadding=\"3\" border=\"1\">\n",
    );
    page += "<tr bgcolor=\"#C0C0C0\">";
    for name in HEALTH_COLUMNS {
        page += &format!("<th>{name}</th>");
    }
    page += "</tr>\n";
    for (index, (check, node)) in nodes.enumerate() {
        let well = matches!(node["status"].as_str(), Some("healthy" | "mostly_healthy"));
        let count = &node["counter"];
        page += if well { "<tr>" } else { "<tr bgcolor=\"#FF0000\">" };
        for cell in [
            (index + 1).to_string(),
            text(&check["name"]),
            text(&check["type"]),
            format!("{}:{}", text(&node["ip"]), text(&node["port"])),
            text(&node["status"]),
            text(&count["success"]),
            text(&count["tcp_failure"]),
            text(&count["http_failure"]),
            text(&count["timeout_failure"]),
        ] {
            page += &format!("<td>{cell}</td>");
        }
        page += "</tr>\n";
    }
    page += "</table>\n</body>\n</html>\n";
    page
}

/// The schema of a list of plugins, as APISIX keeps one.
fn plugin_list_schema() -> Value {
    json!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "stream": {"type": "boolean"},
            },
            "required": ["name"],
        },
    })
}

fn not_found() -> Answer {
    Answer::page(StatusCode::NOT_FOUND)
}

/// The kinds whose nodes may be checked, in the order in which they are shown.
const CHECKED: [Kind; 4] = [Kind::Routes, Kind::StreamRoutes, Kind::Services, Kind::Upstreams];

const HEALTH_COLUMNS: [&str; 9] = [
    "Index",
    "Upstream",
    "Check type",
    "Host",
    "Status",
    "Success counts",
    "TCP Failures",
    "HTTP Failures",
    "TIMEOUT Failures",
];

//! A gateway's Admin API without the gateway: a store in memory, a few plugins, a clock that
//! stands.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::{Value, json};
use sluicegate_admin::{AdminKey, AdminState, Role, Settings};
use sluicegate_model::{
    Schema,
    check::Outside,
    encrypt::Keyring,
    plugin::{Auth, Catalog, PluginInfo, inject_meta},
};
use sluicegate_store::{MemoryStore, Store};
use tower::ServiceExt;

pub(crate) struct Harness {
    pub(crate) router: Router,
    pub(crate) state: Arc<AdminState>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) catalog: Arc<ArcSwap<Catalog>>,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self::build(Arc::new(MemoryStore::new()), |state| state)
    }

    pub(crate) fn build(
        store: Arc<dyn Store>,
        finish: impl FnOnce(AdminState) -> AdminState,
    ) -> Self {
        let catalog = Arc::new(ArcSwap::from_pointee(catalog()));
        let key = |key: &str, role| AdminKey { name: "k".to_owned(), key: key.to_owned(), role };
        let settings = Settings {
            keys: vec![key(ADMIN, Role::Admin), key(VIEWER, Role::Viewer)],
            allow_admin: vec!["127.0.0.0/24".parse().unwrap()],
            server: "Sluicegate/9.8.7".to_owned(),
            ..Settings::default()
        };
        let state = AdminState::new(
            settings,
            Arc::clone(&catalog),
            Arc::clone(&store),
            Keyring::new(vec![KEYRING.to_owned()]),
            Arc::new(AnyPair),
            || NOW,
        );
        let state = Arc::new(finish(state));
        Self { router: sluicegate_admin::router(Arc::clone(&state)), state, store, catalog }
    }

    /// Sends a request as an administrator from 127.0.0.1.
    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> Reply {
        let request = Request::builder().method(method).uri(path).header("x-api-key", ADMIN);
        self.request(request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: Value) -> Reply {
        self.send(method, path, body.to_string()).await
    }

    pub(crate) async fn request(&self, mut request: Request<Body>) -> Reply {
        let address: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        if request.extensions().get::<ConnectInfo<SocketAddr>>().is_none() {
            request.extensions_mut().insert(ConnectInfo(address));
        }
        reply(&self.router, request).await
    }

    /// What is stored, unless it is not there.
    pub(crate) async fn stored(&self, key: &str) -> Option<Value> {
        let entry = self.store.get(key).await.unwrap()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }
}

pub(crate) async fn reply(router: &Router, request: Request<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(to_bytes(body, 16 << 20).await.unwrap().to_vec()).unwrap();
    Reply { status: parts.status, headers: parts.headers, text }
}

impl Reply {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {:?}", self.text))
    }

    /// A header's value, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn assert(&self, status: u16, body: Value) -> &Self {
        assert_eq!((self.status.as_u16(), self.json()), (status, body));
        self
    }

    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, text: &str) -> &Self {
        self.assert(status, json!({"error_msg": text}))
    }

    #[track_caller]
    pub(crate) fn assert_ok(&self) -> &Self {
        assert!(self.status.is_success(), "{} {}", self.status, self.text);
        self
    }
}

/// Takes any certificate with any key that is marked as one.
struct AnyPair;

impl Outside for AnyPair {
    fn cert_pair(&self, cert: &str, key: Option<&str>) -> Result<(), String> {
        let pem = |text: &str| text.starts_with("-----BEGIN ");
        if pem(cert) && key.is_none_or(pem) { Ok(()) } else { Err("no PEM".to_owned()) }
    }
}

fn catalog() -> Catalog {
    let lambda = json!({
        "type": "object",
        "properties": {
            "function_uri": {"type": "string"},
            "authorization": {"type": "object", "properties": {
                "apikey": {"type": "string"},
                "iam": {
                    "type": "object",
                    "properties": {"accesskey": {"type": "string"}, "secretkey": {"type": "string"}},
                    "required": ["secretkey", "accesskey"],
                },
            }},
            "timeout": {"type": "integer", "minimum": 100, "default": 3000},
            "ssl_verify": {"type": "boolean", "default": true},
            "keepalive_timeout": {"type": "integer", "minimum": 1000},
            "keepalive_pool": {"type": "integer", "minimum": 1},
            "max_req_body_size": {"type": "integer", "minimum": 1},
        },
        "required": ["function_uri"],
    });
    let object = json!({"type": "object"});
    let metadata = json!({
        "type": "object",
        "properties": {"master_apikey": {"type": "string"}},
        "encrypt_fields": ["master_apikey"],
    });
    let secrets: &[_] = &["authorization.apikey", "authorization.iam.secretkey"];
    let plugins = vec![
        plugin("aws-lambda", -1899, lambda, None, secrets),
        plugin("azure-functions", -1900, object.clone(), Some(metadata), &[]),
        plugin("echo", 412, object.clone(), None, &[]),
        plugin("response-rewrite", 899, object.clone(), None, &[]),
        plugin("limit-count", 1002, object.clone(), None, &[]),
        plugin("traffic-split", 966, object.clone(), None, &[]),
        plugin("http-logger", 410, object.clone(), Some(object), &[]),
    ];
    let auth = [
        ("key-auth", 2500, "key", json!({"key": {"type": "string"}}), &["key"][..]),
        (
            "basic-auth",
            2520,
            "username",
            json!({"username": {"type": "string"}, "password": {"type": "string"}}),
            &["password"],
        ),
    ];
    let auth = auth.map(|(name, priority, unique, properties, secrets)| {
        let required: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
        let consumer_schema = json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "encrypt_fields": secrets,
        });
        let of_consumer = Schema::compile(&consumer_schema).unwrap();
        PluginInfo {
            consumer_schema: Some(consumer_schema),
            check_consumer: Some(Arc::new(move |conf| of_consumer.check(conf))),
            auth: Some(Auth { unique: Some(unique) }),
            ..plugin(name, priority, json!({"type": "object"}), None, &[])
        }
    });
    Catalog::new(plugins.into_iter().chain(auth).collect(), check_vars)
}

fn plugin(
    name: &'static str,
    priority: i32,
    mut schema: Value,
    metadata_schema: Option<Value>,
    secrets: &'static [&'static str],
) -> PluginInfo {
    inject_meta(&mut schema);
    let compiled = Schema::compile(&schema).unwrap();
    PluginInfo {
        name,
        priority,
        version: 0.1,
        schema,
        metadata_schema,
        consumer_schema: None,
        secrets,
        own_fields: &["function_name"],
        auth: None,
        check: Arc::new(move |conf| compiled.check(conf).map_err(|why| why.to_string())),
        check_consumer: None,
    }
}

fn check_vars(vars: &Value) -> Result<(), String> {
    match vars.pointer("/0/1").and_then(Value::as_str) {
        Some(operator) if operator != "==" => Err(format!("invalid operator '{operator}'")),
        _ => Ok(()),
    }
}

/// A route's body that needs nothing else.
pub(crate) fn route(uri: &str) -> Value {
    json!({"uri": uri, "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:18801": 1}}})
}

pub(crate) const KEYRING: &str = "qeddd145sfvddff3";
pub(crate) const ADMIN: &str = "admin-key";
pub(crate) const VIEWER: &str = "viewer-key";
pub(crate) const NOW: u64 = 1_700_000_000;

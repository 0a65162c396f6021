//! The Admin API (`/apisix/admin/…`) and the Control API (`/v1/…`), as Apache APISIX 3.18 answers
//! them.
//!
//! A request reads straight down in `handle.rs`: address, key, resource, body, then `resource.rs`,
//! which is generic over the kinds of resources. Nothing here listens: [`router`] is served by the
//! binary, which makes the client's address known as `ConnectInfo<SocketAddr>`.
//!
//! Invariants:
//! - what is stored passed every check; secrets in it are encrypted, defaults are not filled in;
//! - an answer to a write means it is durable and, as far as [`AdminState::applied`] reports it
//!   within [`APPLIED_WAIT_MAX`], served;
//! - private keys never leave by a read.

mod answer;
mod auth;
mod checks;
pub mod configs;
pub mod control;
mod discovery;
pub mod explain;
mod family;
mod handle;
mod index;
mod listing;
mod openapi;
mod query;
mod references;
mod resource;
mod secrets;
mod sender;
pub mod status;
mod validate;

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use sluicegate_model::{check::Outside, encrypt::Keyring, plugin::Catalog};
use sluicegate_store::{BoxFuture, ETCD_WRITE_TIME_MAX, Store};
use tokio::sync::{Mutex, RwLock, Semaphore};

/// The Admin API over `state`.
pub fn router(state: Arc<AdminState>) -> axum::Router {
    axum::Router::new().fallback(handle::admin).with_state(state)
}

/// What the Admin API works with. The binary builds it once and may swap
/// [`settings`](Self::settings) and [`catalog`](Self::catalog) while it runs.
pub struct AdminState {
    /// The part that comes from the configuration file.
    pub settings: ArcSwap<Settings>,
    /// The enabled plugins, shared with the Control API.
    pub catalog: Arc<ArcSwap<Catalog>>,
    store: Arc<dyn Store>,
    keyring: Keyring,
    outside: Arc<dyn Outside + Send + Sync>,
    /// Unix time in seconds.
    now: fn() -> u64,
    applied: Option<Applied>,
    reload_plugins: Option<ReloadPlugins>,
    /// Writers that check references and then write hold it shared; deletions, whose check must
    /// not be overtaken by a new reference, hold it alone.
    references: RwLock<()>,
    index: index::Index,
    /// Held by writers of what only one consumer may have, by the hash of it.
    key_locks: [Mutex<()>; references::KEY_LOCKS],
    declared: Option<configs::Declared>,
    /// A permit for each list that may be filtered by a pattern at once.
    searches: Arc<Semaphore>,
}

impl AdminState {
    /// A state without hooks.
    pub fn new(
        settings: Settings,
        catalog: Arc<ArcSwap<Catalog>>,
        store: Arc<dyn Store>,
        keyring: Keyring,
        outside: Arc<dyn Outside + Send + Sync>,
        now: fn() -> u64,
    ) -> Self {
        Self {
            settings: ArcSwap::from_pointee(settings),
            catalog,
            index: index::Index::new(Arc::clone(&store), keyring.clone()),
            key_locks: std::array::from_fn(|_| Mutex::new(())),
            store,
            keyring,
            outside,
            now,
            applied: None,
            reload_plugins: None,
            references: RwLock::new(()),
            declared: None,
            searches: Arc::new(Semaphore::new(listing::SEARCHES_MAX)),
        }
    }

    /// Waits for `applied(revision)`, at most [`APPLIED_WAIT_MAX`], before a write is answered.
    pub fn applied(mut self, applied: Applied) -> Self {
        self.applied = Some(applied);
        self
    }

    /// There is no store: the whole configuration comes by `PUT /apisix/admin/configs`, and other
    /// resources are not served, as in APISIX.
    pub fn declared(mut self, declared: configs::Declared) -> Self {
        self.declared = Some(declared);
        self
    }

    /// Looks up who refers to whom ahead of the first deletion, in the background. Needs a tokio
    /// runtime.
    pub fn prepare(&self) {
        if self.declared.is_none() {
            self.index.start();
        }
    }

    /// Calls `reload` on `PUT /apisix/admin/plugins/reload`.
    pub fn reload_plugins(mut self, reload: ReloadPlugins) -> Self {
        self.reload_plugins = Some(reload);
        self
    }
}

/// Resolves once every core serves a configuration at least as new as the revision.
pub type Applied = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// Loads the list of enabled plugins again.
pub type ReloadPlugins = Arc<dyn Fn() + Send + Sync>;

/// What the configuration file says about the Admin API.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `deployment.admin.admin_key`
    pub keys: Vec<AdminKey>,
    /// `deployment.admin.admin_key_required`
    pub key_required: bool,
    /// `deployment.admin.allow_admin`; empty allows every address.
    pub allow_admin: Vec<IpNet>,
    /// `deployment.admin.enable_admin_cors`
    pub cors: bool,
    /// The largest request body, in bytes; see [`BODY_BYTES_MAX`].
    pub body_bytes_max: usize,
    /// `apisix.data_encryption.enable_encrypt_fields`: whether plugins' secrets are encrypted.
    /// Private keys always are.
    pub encrypt_fields: bool,
    /// `sluicegate.admin.redact_secrets`: answers show no secrets, not even encrypted ones.
    pub redact_secrets: bool,
    /// Whether an APISIX may read what is written: the store is an etcd.
    pub shared_with_apisix: bool,
    /// Whether `apisix.proxy_mode` includes streams; otherwise `stream_routes` are refused.
    pub stream_proxy: bool,
    /// What keys in answers start with: `deployment.etcd.prefix`.
    pub key_prefix: String,
    /// The `Server` header.
    pub server: String,
}

/// APISIX's defaults, and no key: nobody gets in until one is set.
impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            key_required: true,
            allow_admin: Vec::new(),
            cors: true,
            body_bytes_max: BODY_BYTES_MAX,
            encrypt_fields: true,
            redact_secrets: false,
            shared_with_apisix: false,
            stream_proxy: false,
            key_prefix: "/apisix".to_owned(),
            server: concat!("Sluicegate/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Settings {
    fn allows(&self, address: Option<IpAddr>) -> bool {
        self.allow_admin.is_empty()
            || address.is_some_and(|address| {
                // A dual-stack socket shows IPv4 clients as IPv6 ones.
                let address = address.to_canonical();
                self.allow_admin.iter().any(|net| net.contains(&address))
            })
    }
}

/// One of `deployment.admin.admin_key`.
#[derive(Clone)]
pub struct AdminKey {
    /// What it is called.
    pub name: String,
    /// The secret.
    pub key: String,
    /// What it may do.
    pub role: Role,
}

/// Shows everything but the key.
impl std::fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminKey").field("name", &self.name).field("role", &self.role).finish()
    }
}

/// What an [`AdminKey`] may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Read.
    Viewer,
}

/// The largest request body APISIX takes: 1.5 MiB.
pub const BODY_BYTES_MAX: usize = 3 << 19;
/// How long a write's answer waits for the data plane to serve it.
pub const APPLIED_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a request waits for earlier ones before its own write starts: as long as a store that
/// hangs takes to give one of those up.
pub const WRITE_START_MAX: Duration = ETCD_WRITE_TIME_MAX;
/// How long a client may take to send a request's body.
pub const BODY_READ_MAX: Duration = Duration::from_secs(60);
/// Why stream routes are refused where `apisix.proxy_mode` has no streams.
pub const NO_STREAMS: &str = "stream mode is disabled, can not add stream routes";

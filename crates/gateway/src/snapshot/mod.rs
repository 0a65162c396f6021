//! The configuration as requests use it: compiled, immutable, swapped as a whole.

mod compile;
mod counters;
mod links;
pub(crate) mod references;
mod unknown;

use std::collections::BTreeMap;
use std::sync::Arc;

use ::http::StatusCode;
use serde_json::Value;

use crate::chain::Chain;
use crate::client::Timeouts;
use crate::consumer::Consumers;
use crate::router::Router;
use crate::tls::Certificates;
use crate::upstream::Upstream;

pub use compile::{Change, Compiler, Deps, Report};
pub use counters::RouteCounters;
pub use references::References;
pub use unknown::UnknownPlugins;

/// One state of the configuration.
pub struct Snapshot {
    /// The store's revision it stands for.
    pub revision: u64,
    /// Routes by what they match.
    pub router: Router<Arc<Route>>,
    /// The plugins of all global rules; they run for every request.
    pub global: Arc<Chain>,
    /// Who may send requests.
    pub consumers: Consumers,
    /// Certificates by server name.
    pub certificates: Arc<Certificates>,
    /// What is said about plugins as such.
    pub plugins: Arc<PluginFacts>,
}

/// What is said about plugins as such, for those that serve APIs of others.
#[derive(Debug, Default)]
pub struct PluginFacts {
    /// The plugins that are enabled.
    pub enabled: Vec<&'static str>,
    /// Metadata by plugin.
    pub metadata: BTreeMap<Arc<str>, Value>,
    /// `plugin_attr` of config.yaml.
    pub attr: Value,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            revision: 0,
            router: Router::builder(Default::default()).build(),
            global: Arc::default(),
            consumers: Consumers::default(),
            certificates: Arc::default(),
            plugins: Arc::default(),
        }
    }
}

/// A route, compiled: its own configuration merged over its service's.
pub struct Route {
    /// Its id.
    pub id: Arc<str>,
    /// Its name.
    pub name: Option<Box<str>>,
    /// Its service's id and name.
    pub service: Option<Arc<(String, Option<String>)>>,
    /// Its plugins.
    pub chain: Arc<Chain>,
    /// Where requests go that no plugin answers.
    pub upstream: Option<Arc<Upstream>>,
    /// `Upgrade` is passed on.
    pub enable_websocket: bool,
    /// Time limits that come before the upstream's.
    pub timeouts: Option<Box<Timeouts>>,
    /// It cannot serve: what its requests are answered, and why.
    pub broken: Option<Box<(StatusCode, String)>>,
    /// Its configuration as stored: JSON text.
    pub text: Arc<[u8]>,
    /// Its service's configuration as stored: JSON text.
    pub service_text: Option<Arc<[u8]>>,
    /// Requests it served, for metrics.
    pub requests: RouteCounters,
}

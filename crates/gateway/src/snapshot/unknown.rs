//! Plugins that a stored resource names and this version does not have.
//!
//! A store may hold what another gateway wrote, so the Admin API's check is not enough. What only
//! observes is left out; without any other, requests would pass that should not.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use tracing::warn;

use crate::plugin::Registry;

/// What becomes of plugins this version does not have: `apisix.unknown_plugins`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownPlugins {
    /// A route with one answers 503, unless the plugin only observes.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
}

impl UnknownPlugins {
    /// Says which of these plugins nobody here knows and nothing may be served without. Each that
    /// is left out is warned about once, as noted in `warned`.
    ///
    /// Differs: APISIX leaves out every plugin it does not know.
    pub(super) fn refused(
        self,
        plugins: &Map<String, Value>,
        registry: &Registry,
        owner: &str,
        warned: &mut BTreeSet<String>,
    ) -> Option<String> {
        let runs = |config: &Value| {
            config.pointer("/_meta/disable").and_then(Value::as_bool) != Some(true)
        };
        let unknown = plugins.iter().filter(|(name, config)| !registry.knows(name) && runs(config));
        for (name, _) in unknown {
            if self == Self::Refuse && !OBSERVERS.contains(&name.as_str()) {
                return Some(format!("unknown plugin [{name}]"));
            }
            if warned.len() < WARNED_MAX && warned.insert(name.clone()) {
                warn!(
                    plugin = name,
                    owner,
                    "This version does not have a plugin; it is left out wherever it is named."
                );
            }
        }
        None
    }
}

/// What is remembered as warned about; the names come from the store.
pub(super) const WARNED_MAX: usize = 1024;

/// Plugins of APISIX that change nothing about a request or its answer.
const OBSERVERS: [&str; 27] = [
    "clickhouse-logger",
    "datadog",
    "elasticsearch-logger",
    "error-log-logger",
    "file-logger",
    "google-cloud-logging",
    "http-logger",
    "inspect",
    "kafka-logger",
    "lago",
    "log-rotate",
    "loggly",
    "loki-logger",
    "node-status",
    "opentelemetry",
    "prometheus",
    "rocketmq-logger",
    "server-info",
    "skywalking",
    "skywalking-logger",
    "sls-logger",
    "splunk-hec-logging",
    "syslog",
    "tcp-logger",
    "tencent-cloud-cls",
    "udp-logger",
    "zipkin",
];

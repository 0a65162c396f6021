//! `routes`: which requests go where, through which plugins.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::resource::{ViewError, optional_id, view};
use crate::upstream::{Timeout, Upstream};

/// A route.
///
/// Read it from a value whose defaults are filled in, or with [`Route::load`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Id.
    #[serde(deserialize_with = "optional_id")]
    pub id: Option<String>,
    /// Name for people.
    pub name: Option<String>,
    /// Description for people.
    pub desc: Option<String>,
    /// Labels for people and controllers.
    pub labels: BTreeMap<String, String>,
    /// Path, with `*` at the end for a prefix. Either this or `uris`.
    pub uri: Option<String>,
    /// Several paths.
    pub uris: Vec<String>,
    /// Host, with `*.` in front for any subdomain. At most this or `hosts`.
    pub host: Option<String>,
    /// Several hosts.
    pub hosts: Vec<String>,
    /// Methods; none means all.
    pub methods: Vec<String>,
    /// Client address or network. At most this or `remote_addrs`.
    pub remote_addr: Option<String>,
    /// Several addresses or networks.
    pub remote_addrs: Vec<String>,
    /// Expression over variables.
    pub vars: Option<Value>,
    /// Of two routes with the same path, the higher is tried first.
    pub priority: i64,
    /// 1: serves. 0: switched off.
    pub status: u8,
    /// Plugin configurations by plugin name.
    pub plugins: Map<String, Value>,
    /// Shared plugin configurations.
    #[serde(deserialize_with = "optional_id")]
    pub plugin_config_id: Option<String>,
    /// Upstream of its own.
    pub upstream: Option<Upstream>,
    /// Shared upstream.
    #[serde(deserialize_with = "optional_id")]
    pub upstream_id: Option<String>,
    /// Service, for what the route leaves out.
    #[serde(deserialize_with = "optional_id")]
    pub service_id: Option<String>,
    /// Time limits instead of the upstream's.
    pub timeout: Option<Timeout>,
    /// Whether a client may switch to WebSocket.
    pub enable_websocket: Option<bool>,
    /// Lua function that has the last word on a match.
    pub filter_func: Option<String>,
    /// Lua script instead of plugins.
    pub script: Option<String>,
    /// Where the script came from.
    #[serde(deserialize_with = "optional_id")]
    pub script_id: Option<String>,
}

impl Route {
    /// Reads a stored route: defaults first.
    ///
    /// # Errors
    /// When the value does not pass its schema, or an upstream's port is none.
    pub fn load(value: &Value) -> Result<Self, ViewError> {
        view(Kind::Routes, value)
    }

    /// Whether the route serves.
    pub fn is_enabled(&self) -> bool {
        self.status == 1
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_route_is_read_with_its_defaults() {
        let route = Route::load(&json!({
            "id": 1,
            "uri": "/aws",
            "methods": {},
            "priority": 5.0,
            "service_id": 2,
            "vars": [["arg_a", "==", "1"]],
            "plugins": {"aws-lambda": {"function_uri": "http://x"}},
            "upstream": {"nodes": {"127.0.0.1:80": 1}},
            "create_time": 1,
        }))
        .unwrap();
        assert_eq!(route.id.as_deref(), Some("1"));
        assert_eq!(route.service_id.as_deref(), Some("2"));
        assert_eq!((route.priority, route.status, route.is_enabled()), (5, 1, true));
        assert_eq!(route.plugins["aws-lambda"], json!({"function_uri": "http://x"}));
        let upstream = route.upstream.unwrap();
        assert_eq!((upstream.kind.as_str(), upstream.scheme.as_str()), ("roundrobin", "http"));
        assert_eq!(upstream.nodes.unwrap().len(), 1);
        let off = Route::load(&json!({"uris": ["/a"], "status": 0, "plugins": []})).unwrap();
        assert!(!off.is_enabled() && off.plugins.is_empty());
    }

    #[test]
    fn a_route_that_does_not_pass_its_schema_is_not_read() {
        let error = Route::load(&json!({"uri": "/a"})).unwrap_err().to_string();
        assert!(
            error.starts_with("invalid configuration: object matches none of the required"),
            "{error}"
        );
    }
}

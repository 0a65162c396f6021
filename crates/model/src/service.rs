//! `services`: what several routes have in common.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::resource::{ViewError, optional_id, view};
use crate::upstream::Upstream;

/// A service.
///
/// Read it from a value whose defaults are filled in, or with [`Service::load`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Id.
    #[serde(deserialize_with = "optional_id")]
    pub id: Option<String>,
    /// Name for people.
    pub name: Option<String>,
    /// Description for people.
    pub desc: Option<String>,
    /// Labels for people and controllers.
    pub labels: BTreeMap<String, String>,
    /// Hosts for routes without their own.
    pub hosts: Vec<String>,
    /// Plugin configurations by plugin name.
    pub plugins: Map<String, Value>,
    /// Upstream of its own.
    pub upstream: Option<Upstream>,
    /// Shared upstream.
    #[serde(deserialize_with = "optional_id")]
    pub upstream_id: Option<String>,
    /// Whether a client may switch to WebSocket.
    pub enable_websocket: Option<bool>,
    /// Lua script instead of plugins.
    pub script: Option<String>,
}

impl Service {
    /// Reads a stored service: defaults first.
    ///
    /// # Errors
    /// When the value does not pass its schema, or an upstream's port is none.
    pub fn load(value: &Value) -> Result<Self, ViewError> {
        view(Kind::Services, value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_read_with_its_defaults() {
        let service = Service::load(
            &json!({"id": "s1", "name": "svc", "upstream_id": 4, "hosts": ["a.com"]}),
        )
        .unwrap();
        assert_eq!(service.upstream_id.as_deref(), Some("4"));
        assert_eq!(service.hosts, ["a.com"]);
        assert!(Service::load(&json!({"zzz": 1})).is_err());
    }
}

//! `node-status`: connections and requests of this gateway, at `/apisix/status` through `public-api`.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/node-status/>

use std::sync::atomic::Ordering;

use http::StatusCode;
use serde_json::{Map, Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Phases, Plugin};

/// The plugin: it does nothing on a route of its own.
pub struct NodeStatus;

impl Plugin for NodeStatus {
    const NAME: &'static str = "node-status";
    const PRIORITY: i32 = 1000;
    const PHASES: Phases = Phases::NONE;
    type Config = Map<String, Value>;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(_: Self::Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

/// Answers `/apisix/status`. Numbers are texts, as in APISIX.
pub(crate) fn serve(exchange: &Exchange) -> Response {
    let shared = &exchange.core.shared;
    let counters = shared.counters();
    let of = |name: &str| counters.iter().find(|(n, _)| *n == name).map_or(0, |(_, count)| *count);
    let active = shared.active_connections.load(Ordering::Relaxed);
    let writing = shared.active_requests.load(Ordering::Relaxed);
    let status = json!({
        "active": active.to_string(),
        "accepted": of("connections").to_string(),
        "handled": of("connections").to_string(),
        // This one is counted when it is over.
        "total": (of("requests") + 1).to_string(),
        "reading": "0",
        "writing": writing.to_string(),
        "waiting": active.saturating_sub(writing).to_string(),
    });
    let id = &*exchange.settings.instance_id;
    let mut response = Response::message(StatusCode::OK, &Value::Null);
    let body = json!({"status": status, "id": id}).to_string();
    response.body = sluicegate_gateway::body::Body::from_bytes(body);
    response
}

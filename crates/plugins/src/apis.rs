//! APIs that plugins bring: they are served where a route has `public-api`.

use http::Method;
use serde_json::Value;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{Plugin, PluginError};

use crate::batch_requests::{self, BatchRequests};
use crate::node_status::{self, NodeStatus};

/// An API, as a table says it.
struct Api {
    /// The plugin that brings it; it is there if the plugin is enabled.
    plugin: &'static str,
    method: Method,
    /// Its path, unless `plugin_attr` of the plugin has a `uri`.
    path: &'static str,
    handler: Handler,
}

#[derive(Clone, Copy)]
enum Handler {
    Batch,
    Status,
}

/// Every API there is.
const APIS: [Api; 2] = [
    Api {
        plugin: BatchRequests::NAME,
        method: Method::POST,
        path: "/apisix/batch-requests",
        handler: Handler::Batch,
    },
    Api {
        plugin: NodeStatus::NAME,
        method: Method::GET,
        path: "/apisix/status",
        handler: Handler::Status,
    },
];

/// Answers a request for the API at `path`; `None`: there is none.
pub(crate) async fn serve(
    exchange: &mut Exchange,
    path: &[u8],
) -> Option<Result<Response, PluginError>> {
    let facts = exchange.snapshot.plugins.clone();
    let api = APIS.iter().find(|api| {
        let own =
            facts.attr.get(api.plugin).and_then(|attr| attr.get("uri")).and_then(Value::as_str);
        facts.enabled.contains(&api.plugin)
            && *exchange.client_method() == api.method
            && own.unwrap_or(api.path).as_bytes() == path
    })?;
    Some(match api.handler {
        Handler::Batch => batch_requests::serve(exchange, facts.metadata.get(api.plugin)).await,
        Handler::Status => Ok(node_status::serve(exchange)),
    })
}

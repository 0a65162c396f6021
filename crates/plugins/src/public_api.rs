//! `public-api`: serve an API that another plugin brings on a route.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/public-api/>

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::apis;

/// The plugin, compiled.
pub struct PublicApi {
    /// The API's path, if it is not the request's.
    path: Option<String>,
}

impl Plugin for PublicApi {
    const NAME: &'static str = "public-api";
    const PRIORITY: i32 = 501;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"uri": {"type": "string"}}})
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self { path: config.uri })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let path = match &self.path {
            Some(path) => path.as_bytes().to_vec(),
            None => exchange.uri().to_vec(),
        };
        match apis::serve(exchange, &path).await {
            Some(response) => Ok(Flow::Respond(response?)),
            None => Ok(Flow::Respond(Response::page(StatusCode::NOT_FOUND))),
        }
    }
}

/// A configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    uri: Option<String>,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn a_path_without_an_api_is_not_found() {
        // Alone in the registry: no other plugin is enabled.
        for (config, target) in
            [(json!({}), "/apisix/status"), (json!({"uri": "/apisix/status"}), "/a")]
        {
            let ran = PluginTest::<PublicApi>::new().config(config).request("GET", target).run();
            assert_eq!(ran.status, 404);
            assert!(ran.body().contains("404 Not Found") && ran.sent.is_empty());
        }
        PluginTest::<PublicApi>::check_schema(&json!({}));
    }
}

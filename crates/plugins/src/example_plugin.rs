//! `example-plugin`: APISIX's sample of a plugin. With an `ip` it sends requests there.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18, which people know from tutorials and
//! which APISIX's own tests configure; like there, it is not enabled unless `plugins` names it. What
//! that one writes to the error log in each phase is left out.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_gateway::upstream::Upstream;

/// The plugin, compiled.
pub struct ExamplePlugin {
    /// Where requests go, if not to the route's upstream.
    upstream: Option<Arc<Upstream>>,
}

impl Plugin for ExamplePlugin {
    const NAME: &'static str = "example-plugin";
    const PRIORITY: i32 = 0;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "i": {"type": "number", "minimum": 0},
                "s": {"type": "string"},
                "t": {"type": "array", "minItems": 1},
                "ip": {"type": "string"},
                "port": {"type": "integer"},
            },
            "required": ["i"],
        })
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                "ikey": {"type": "number", "minimum": 0},
                "skey": {"type": "string"},
            },
            "required": ["ikey", "skey"],
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let (Some(ip), Some(all)) = (config.ip, ctx.upstreams) else {
            return Ok(Self { upstream: None });
        };
        let mut node = json!({"host": ip, "weight": 1});
        if let Some(port) = config.port {
            node["port"] = port.into();
        }
        let key = format!("{} {}", ctx.owner, Self::NAME);
        let upstream = json!({"type": "roundrobin", "nodes": [node]});
        Ok(Self { upstream: Some(all.compile(&key, &upstream).map_err(ConfigError)?) })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if let Some(upstream) = &self.upstream {
            exchange.chosen_upstream = Some(upstream.clone());
        }
        Ok(Flow::Continue)
    }
}

/// A configuration; what only shows what a schema can say is not looked at.
#[derive(Debug, Deserialize)]
pub struct Config {
    ip: Option<String>,
    port: Option<i64>,
}

#[cfg(test)]
mod tests {
    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::get;
    use sluicegate_testkit::origin::Origin;
    use sluicegate_testkit::plugin::InProcess;

    use super::*;
    use crate::tests::refusal;

    #[test]
    fn requests_go_to_the_address_if_there_is_one() {
        let (own, other) = (Origin::text("own"), Origin::text("other"));
        let to = |origin: &Origin| json!({"i": 1, "ip": origin.addr.ip().to_string(), "port": origin.addr.port()});
        let route = |uri: &str, plugin: Value| {
            json!({"uri": uri, "plugins": {"example-plugin": plugin},
                "upstream": {"type": "roundrobin", "nodes": {own.addr.to_string(): 1}}})
        };
        let mut registry = Registry::default();
        registry.add::<ExamplePlugin>();
        let gateway = InProcess::start(
            registry,
            vec![
                (Kind::Routes, "1", route("/own", json!({"i": 1}))),
                (Kind::Routes, "2", route("/other", to(&other))),
            ],
        );
        for path in ["/own", "/other"] {
            assert_eq!(get(gateway.addr, path).text(), path[1..]);
        }
        gateway.stop();
    }

    #[test]
    fn the_schema_is_that_of_the_sample() {
        for (config, text) in [
            (json!({}), "property \"i\" is required"),
            (json!({"i": -1}), "property \"i\" validation failed: expected -1 to be at least 0"),
            (
                json!({"i": 1, "t": []}),
                "property \"t\" validation failed: expect array to have at least 1 items",
            ),
        ] {
            assert_eq!(refusal::<ExamplePlugin>(&config), text);
        }
    }
}

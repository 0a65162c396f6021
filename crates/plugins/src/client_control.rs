//! `client-control`: how large a request's body may be, for one route.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/client-control/>

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct ClientControl {
    /// `Some(None)`: as large as it likes.
    body_max: Option<Option<u64>>,
}

impl Plugin for ClientControl {
    const NAME: &'static str = "client-control";
    const PRIORITY: i32 = 22000;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {"max_body_size": {"type": "integer", "minimum": 0}},
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self { body_max: config.max_body_size.map(|bytes| (bytes > 0).then_some(bytes)) })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let Some(limit) = self.body_max else { return Ok(Flow::Continue) };
        let announced = exchange.request.body.remaining();
        if announced.zip(limit).is_some_and(|(bytes, limit)| bytes > limit) {
            return Ok(Flow::Respond(Response::page(StatusCode::PAYLOAD_TOO_LARGE)));
        }
        exchange.request.body.set_limit(limit);
        Ok(Flow::Continue)
    }
}

/// A configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    max_body_size: Option<u64>,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn a_body_at_the_limit_passes_and_one_past_it_does_not() {
        for (limit, bytes, status) in [
            (json!(5), 5, 200),
            (json!(5), 6, 413),
            (json!(0), 100_000, 200),
            (Value::Null, 9, 200),
        ] {
            let mut config = json!({});
            if !limit.is_null() {
                config["max_body_size"] = limit.clone();
            }
            let ran = PluginTest::<ClientControl>::new()
                .config(config)
                .request("POST", "/")
                .request_body("x".repeat(bytes))
                .run();
            assert_eq!(ran.status, status, "{limit} {bytes}");
        }
    }

    #[test]
    fn the_limit_may_not_be_negative() {
        PluginTest::<ClientControl>::check_schema(&json!({}));
        let said = crate::tests::refusal::<ClientControl>(&json!({"max_body_size": -1}));
        assert!(said.starts_with("property \"max_body_size\" validation failed"), "{said}");
    }
}

//! What `_meta` of a plugin's configuration does, whatever the plugin.

use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_testkit::PluginTest;

/// Answers every request it runs for with 418.
struct Teapot;

impl Plugin for Teapot {
    const NAME: &'static str = "teapot";
    const PRIORITY: i32 = 0;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Value;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(_: Value, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    async fn access(&self, _: &mut Exchange) -> Result<Flow, PluginError> {
        Ok(Flow::Respond(Response::new(http::StatusCode::IM_A_TEAPOT)))
    }
}

#[test]
fn a_plugin_runs_for_the_requests_that_its_filter_lets_through() {
    for (meta, target, status) in [
        (json!({}), "/", 418),
        (json!({"disable": true}), "/", 200),
        (json!({"filter": []}), "/", 418),
        (json!({"filter": [["arg_x", "==", "1"]]}), "/?x=1", 418),
        (json!({"filter": [["arg_x", "==", "1"]]}), "/?x=2", 200),
        (json!({"filter": [["arg_x", "==", "1"]]}), "/", 200),
    ] {
        let test = PluginTest::<Teapot>::new().config(json!({"_meta": meta}));
        assert_eq!(test.request("GET", target).run().status, status, "{meta} {target}");
    }
}

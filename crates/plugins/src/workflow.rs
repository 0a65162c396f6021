//! `workflow`: one of several actions, by what a request is.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/workflow/>
//!
//! The first rule whose `case` holds does its first action: it answers (`return`) or limits
//! (`limit-count`, `limit-conn`). The plugin of that name on the same route then does not run.

use std::sync::LazyLock;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::Expr;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_model::schema::Schema;

use crate::{LimitConn, LimitCount};

/// The plugin, compiled.
pub struct Workflow {
    rules: Box<[Rule]>,
}

struct Rule {
    case: Option<Expr>,
    action: Option<Action>,
}

enum Action {
    Return(StatusCode),
    LimitCount(Box<LimitCount>),
    LimitConn(Box<LimitConn>),
}

impl Plugin for Workflow {
    const NAME: &'static str = "workflow";
    const PRIORITY: i32 = 1006;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "rules": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "case": {
                                "type": "array",
                                "items": {"anyOf": [{"type": "array"}, {"type": "string"}]},
                                "minItems": 1,
                            },
                            "actions": {
                                "type": "array",
                                "items": {"type": "array", "minItems": 1},
                            },
                        },
                        "required": ["actions"],
                    },
                },
            },
            "required": ["rules"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let rule = |(at, rule): (usize, RuleConfig)| {
            let case = rule.case.as_ref().map(Expr::compile).transpose().map_err(|error| {
                ConfigError(format!("failed to validate the 'case' expression: {error}"))
            })?;
            // All are checked; as in APISIX, only the first is done.
            let actions = rule.actions.iter().map(|action| Action::compile(action, at + 1, ctx));
            let actions = actions.collect::<Result<Vec<_>, _>>()?;
            Ok(Rule { case, action: actions.into_iter().next() })
        };
        let rules = config.rules.into_iter().enumerate().map(rule);
        Ok(Self { rules: rules.collect::<Result<_, ConfigError>>()? })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let holds = |rule: &&Rule| rule.case.as_ref().is_none_or(|case| case.eval(&*exchange));
        let Some(rule) = self.rules.iter().find(holds) else { return Ok(Flow::Continue) };
        match &rule.action {
            None => Ok(Flow::Continue),
            Some(Action::Return(status)) => {
                let said = json!({"error_msg": "rejected by workflow"});
                Ok(Flow::Respond(Response::message(*status, &said)))
            }
            Some(Action::LimitCount(limit)) => {
                exchange.skip_plugin(LimitCount::NAME);
                limit.limit(exchange).await
            }
            Some(Action::LimitConn(limit)) => {
                exchange.skip_plugin(LimitConn::NAME);
                limit.limit(exchange).await
            }
        }
    }
}

impl Action {
    /// Compiles `[name, configuration]`; `rule` counts from 1, and tells the counters of several
    /// rules apart.
    fn compile(action: &[Value], rule: usize, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let name = action.first().and_then(Value::as_str).unwrap_or_default();
        let mut config = action.get(1).cloned().unwrap_or_else(|| json!({}));
        let schema = match name {
            "return" => &*RETURN,
            LimitCount::NAME => &*LIMIT_COUNT,
            LimitConn::NAME => &*LIMIT_CONN,
            _ => return Err(ConfigError(format!("unsupported action: {name}"))),
        };
        let invalid = |error: &dyn std::fmt::Display| {
            ConfigError(format!("failed to validate the '{name}' action: {error}"))
        };
        schema.check_and_fill(&mut config).map_err(|error| invalid(&error))?;
        // The metadata is that of `workflow`, which has none.
        let ctx = CompileCtx { metadata: None, ..*ctx };
        match name {
            LimitCount::NAME => LimitCount::of(config, &ctx, Some(rule))
                .map(|limit| Self::LimitCount(Box::new(limit))),
            LimitConn::NAME => LimitConn::of(config, &ctx, Some(rule))
                .map(|limit| Self::LimitConn(Box::new(limit))),
            _ => {
                let code = config["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                let status = code.and_then(|code| StatusCode::from_u16(code).ok());
                // Differs: an interim status is no answer, and a client would wait for ever.
                let status = status.filter(|status| !status.is_informational());
                let wrong = || ConfigError("`code` is no status of an answer".into());
                status.map(Self::Return).ok_or_else(wrong)
            }
        }
        .map_err(|error| invalid(&error))
    }
}

static RETURN: LazyLock<Schema> = LazyLock::new(|| {
    compiled(&json!({
        "type": "object",
        "properties": {"code": {"type": "integer", "minimum": 100, "maximum": 599}},
        "required": ["code"],
    }))
});
static LIMIT_COUNT: LazyLock<Schema> = LazyLock::new(|| compiled(&LimitCount::schema()));
static LIMIT_CONN: LazyLock<Schema> = LazyLock::new(|| compiled(&LimitConn::schema()));

fn compiled(schema: &Value) -> Schema {
    Schema::compile(schema).expect("the schemas of plugins compile: they are registered")
}

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    rules: Vec<RuleConfig>,
}

#[derive(Deserialize)]
struct RuleConfig {
    case: Option<Value>,
    actions: Vec<Vec<Value>>,
}

#[cfg(test)]
mod tests {
    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::get;
    use sluicegate_testkit::{InProcess, Origin, PluginTest};

    use super::*;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<Workflow>::check_schema(&json!({"rules": []}));
    }

    #[test]
    fn the_first_rule_that_holds_does_its_action_and_its_plugin_does_not_run() {
        let origin = Origin::text("through");
        let mut registry = Registry::default();
        registry.add::<Workflow>();
        registry.add::<LimitCount>();
        registry.add::<LimitConn>();
        let two = json!(["limit-count", {"count": 2, "time_window": 3600, "rejected_code": 429}]);
        let conn = json!(["limit-conn",
            {"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}]);
        let route = json!({
            "uri": "/*",
            "plugins": {
                "limit-count": {"count": 1, "time_window": 3600},
                "workflow": {"rules": [
                    {"case": [["uri", "==", "/no"]], "actions": [["return", {"code": 403}]]},
                    {"case": [["uri", "==", "/two"]], "actions": [two]},
                    {"case": ["OR", ["uri", "==", "/also"], ["uri", "==", "/too"]], "actions": [two]},
                    {"case": [["uri", "==", "/conn"]], "actions": [conn]},
                ]},
            },
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        });
        let gate = InProcess::start(registry, vec![(Kind::Routes, "r", route)]);
        let answer = get(gate.addr, "/no");
        assert_eq!(
            (answer.status, answer.json()),
            (403, json!({"error_msg": "rejected by workflow"}))
        );
        for (path, statuses) in
            [("/two", [200, 200, 429]), ("/also", [200, 200, 429]), ("/else", [200, 503, 503])]
        {
            assert_eq!([(); 3].map(|()| get(gate.addr, path).status), statuses, "{path}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_in_apisix_words() {
        let mut registry = Registry::default();
        registry.add::<Workflow>();
        let check = |actions: Value| {
            let config = json!({"rules": [{"case": [["uri", "==", "/"]], "actions": actions}]});
            (registry.get("workflow").unwrap().info.check)(&config)
        };
        for (actions, error) in [
            (json!([["fake", {}]]), "unsupported action: fake"),
            (
                json!([["return", {}]]),
                "failed to validate the 'return' action: property \"code\" is required",
            ),
            (
                json!([["return", {"code": 101}]]),
                "failed to validate the 'return' action: `code` is no status of an answer",
            ),
            (
                json!([["limit-count", {"count": 1, "time_window": 1, "group": "g"}]]),
                "failed to validate the 'limit-count' action: group is not supported",
            ),
        ] {
            assert_eq!(check(actions.clone()).expect_err("it is wrong"), error, "{actions}");
        }
    }
}

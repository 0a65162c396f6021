//! `uri-blocker`: refuse requests whose path or query matches a rule.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/uri-blocker/>

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::{Builtin, VarName, Vars};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::pcre::Pcre;

/// The plugin, compiled.
pub struct UriBlocker {
    rule: Option<Pcre>,
    status: StatusCode,
    message: Option<Value>,
}

impl Plugin for UriBlocker {
    const NAME: &'static str = "uri-blocker";
    const PRIORITY: i32 = 2900;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "block_rules": {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 4096},
                    "uniqueItems": true,
                },
                "rejected_code": {"type": "integer", "minimum": 200, "default": 403},
                "rejected_msg": {"type": "string", "minLength": 1},
                "case_insensitive": {"type": "boolean", "default": false},
            },
            "required": ["block_rules"],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let options = if config.case_insensitive { "i" } else { "" };
        Ok(Self {
            // Differs: with no rules at all APISIX refuses every request.
            rule: Pcre::any_of(&config.block_rules, options).map_err(ConfigError)?,
            status: crate::answers::status("rejected_code", config.rejected_code)?,
            message: config.rejected_msg.map(|text| json!({"error_msg": text})),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let Some(rule) = &self.rule else { return Ok(Flow::Continue) };
        let uri = exchange.var(&VarName::Builtin(Builtin::RequestUri));
        let uri = uri.as_ref().and_then(|uri| uri.to_bytes()).unwrap_or_default();
        if !rule.is_match(&uri) {
            return Ok(Flow::Continue);
        }
        Ok(Flow::Respond(match &self.message {
            Some(message) => Response::message(self.status, message),
            None => crate::answers::answer(self.status),
        }))
    }
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    block_rules: Vec<String>,
    rejected_code: u16,
    rejected_msg: Option<String>,
    case_insensitive: bool,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn what_matches_a_rule_is_refused() {
        let rules = json!({"block_rules": ["^a", "root\\.(exe|com)", "select.+(from|limit)"]});
        let loud = json!({"block_rules": ["ROOT"], "case_insensitive": true, "rejected_code": 401, "rejected_msg": "nope"});
        for (config, target, status) in [
            (&rules, "/hello?x=root.exe", 403),
            (&rules, "/root%2ecom", 403),
            (&rules, "/hello?q=select%20name%20from", 403),
            (&rules, "/hello?root", 200),
            (&loud, "/Root", 401),
            (&loud, "/r", 200),
            (&json!({"block_rules": []}), "/", 200),
        ] {
            let ran =
                PluginTest::<UriBlocker>::new().config(config.clone()).request("GET", target).run();
            assert_eq!(ran.status, status, "{config} {target}");
            match status {
                401 => assert_eq!(ran.response.json(), json!({"error_msg": "nope"})),
                403 => assert!(ran.body().contains("<h1>403 Forbidden</h1>")),
                _ => assert!(ran.sent().target == target),
            }
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<UriBlocker>::check_schema(&json!({"block_rules": []}));
        for config in [
            json!({}),
            json!({"block_rules": ["("]}),
            json!({"block_rules": ["a", "a"]}),
            json!({"block_rules": ["a"], "rejected_code": 1000}),
        ] {
            assert!(!crate::tests::refusal::<UriBlocker>(&config).is_empty());
        }
    }
}

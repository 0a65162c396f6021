//! `ua-restriction`: only some user agents may use a route, or some may not.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/ua-restriction/>

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::Known;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::pcre::Pcre;

/// The plugin, compiled.
pub struct UaRestriction {
    rules: Vec<Pcre>,
    /// The rules are about those that may.
    allows: bool,
    bypass_missing: bool,
    message: Value,
}

impl Plugin for UaRestriction {
    const NAME: &'static str = "ua-restriction";
    const PRIORITY: i32 = 2999;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let rules = json!({
            "type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1},
        });
        json!({
            "type": "object",
            "properties": {
                "bypass_missing": {"type": "boolean", "default": false},
                "allowlist": rules,
                "denylist": rules,
                "message": {
                    "type": "string", "minLength": 1, "maxLength": 1024, "default": "Not allowed",
                },
            },
            "oneOf": [{"required": ["allowlist"]}, {"required": ["denylist"]}],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let allows = config.allowlist.is_some();
        let rules = config.allowlist.or(config.denylist).unwrap_or_default();
        let rules: Result<_, _> = rules.iter().map(|rule| Pcre::compile(rule)).collect();
        Ok(Self {
            rules: rules.map_err(ConfigError)?,
            allows,
            bypass_missing: config.bypass_missing,
            message: json!({"message": config.message}),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut agents = exchange.request.headers.all_known(Known::UserAgent).peekable();
        let passes = match agents.peek() {
            None => self.bypass_missing,
            // One on the list is enough, of several too.
            Some(_) => {
                let listed = |agent: &[u8]| {
                    let agent = agent.trim_ascii();
                    self.rules.iter().any(|rule| rule.is_match(agent))
                };
                agents.any(listed) == self.allows
            }
        };
        Ok(match passes {
            true => Flow::Continue,
            false => Flow::Respond(Response::message(StatusCode::FORBIDDEN, &self.message)),
        })
    }
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    bypass_missing: bool,
    allowlist: Option<Vec<String>>,
    denylist: Option<Vec<String>>,
    message: String,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn agents_pass_by_the_list_they_are_on() {
        let allow = json!({"allowlist": ["my-bot1", "(Baiduspider)/(\\d+)\\.(\\d+)"]});
        let deny = json!({"denylist": ["bad", "^$"], "message": "no"});
        for (config, agents, status) in [
            (&allow, vec!["my-bot1"], 200),
            (&allow, vec!["x Baiduspider/3.0"], 200),
            (&allow, vec!["My-Bot1"], 403),
            (&allow, vec!["other", "my-bot1"], 200),
            (&allow, vec![], 403),
            (&deny, vec!["bad/1"], 403),
            (&deny, vec!["good"], 200),
            (&deny, vec!["good", "bad"], 403),
            (&deny, vec![""], 403),
            (&deny, vec![], 403),
            (&json!({"denylist": ["bad"], "bypass_missing": true}), vec![], 200),
        ] {
            let mut test = PluginTest::<UaRestriction>::new().config(config.clone());
            for agent in &agents {
                test = test.request_header("User-Agent", Some(agent));
            }
            let ran = test.run();
            assert_eq!(ran.status, status, "{config} {agents:?}");
            if status == 403 {
                let message = config["message"].as_str().unwrap_or("Not allowed");
                assert_eq!(ran.response.json(), json!({"message": message}));
            }
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<UaRestriction>::check_schema(&json!({"denylist": ["a"]}));
        for config in [
            json!({"denylist": ["("]}),
            json!({"allowlist": ["a"], "denylist": ["a"]}),
            json!({}),
            json!({"denylist": [""]}),
        ] {
            assert!(!crate::tests::refusal::<UaRestriction>(&config).is_empty());
        }
    }
}

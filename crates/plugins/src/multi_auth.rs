//! `multi-auth`: asks several plugins who sends a request; the first that knows decides.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/multi-auth/>

use std::sync::{Arc, LazyLock};

use ::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{
    Auth, CompileCtx, ConfigError, DynPlugin, Flow, Phases, Plugin, PluginError, Registry,
};
use tracing::warn;

use crate::auth::Causes;

/// The plugin, compiled.
pub struct MultiAuth {
    plugins: Box<[Arc<dyn DynPlugin>]>,
}

impl Plugin for MultiAuth {
    const NAME: &'static str = "multi-auth";
    const PRIORITY: i32 = 2600;
    const PHASES: Phases = Phases::REWRITE;
    const AUTH: Option<Auth> = Some(Auth { unique: None });
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "title": "work with route or service object",
            "properties": {"auth_plugins": {"type": "array", "minItems": 2}},
            "required": ["auth_plugins"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let mut plugins = Vec::new();
        for (name, config) in config.auth_plugins.iter().flatten() {
            let known = ALL.get(name);
            let known = known.ok_or_else(|| ConfigError(format!("{name} plugin did not found")))?;
            if known.info.auth.is_none() {
                return Err(ConfigError(format!("{name} plugin is not supported")));
            }
            // Metadata and attributes are those of another plugin.
            let ctx = CompileCtx { metadata: None, attr: None, ..*ctx };
            plugins.push(known.compile(config, &ctx).map_err(|error| {
                ConfigError(format!("plugin {name} check schema failed: {error}"))
            })?);
        }
        Ok(Self { plugins: plugins.into() })
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let outermost = exchange.notes.get::<Causes>().is_none();
        exchange.notes.get_or_default::<Causes>();
        let mut refusal = None;
        for plugin in &self.plugins {
            match plugin.rewrite(exchange).outcome().await? {
                Flow::Continue => {
                    if outermost {
                        exchange.notes.take::<Causes>();
                    }
                    return Ok(Flow::Continue);
                }
                Flow::Respond(one) => {
                    let body = json!({"message": "Authorization Failed"});
                    let refusal = refusal
                        .get_or_insert_with(|| Response::message(StatusCode::UNAUTHORIZED, &body));
                    // Differs: APISIX tells the challenge of the last plugin only, also with the
                    // answer to a request that another one let pass.
                    for challenge in one.headers.all(CHALLENGE) {
                        refusal.headers.append(CHALLENGE, challenge);
                    }
                }
            }
        }
        if outermost && let Some(Causes(causes)) = exchange.notes.take() {
            for cause in causes {
                warn!(
                    plugin = Self::NAME,
                    route = exchange.route_id(),
                    client = %exchange.remote_addr,
                    cause,
                    "A request was not authenticated."
                );
            }
        }
        // Without any plugin nobody is let in.
        let nobody = || Response::page(StatusCode::UNAUTHORIZED);
        Ok(Flow::Respond(refusal.unwrap_or_else(nobody)))
    }
}

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    auth_plugins: Vec<Map<String, Value>>,
}

/// Every plugin, also those that are not enabled: consumers have nothing for such, so they let
/// nobody in.
static ALL: LazyLock<Registry> = LazyLock::new(crate::registry);

const CHALLENGE: &str = "WWW-Authenticate";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::test;

    #[test]
    fn the_first_plugin_that_knows_decides() {
        let basic = ("Authorization", "Basic cm9zZTpyb3NlIHBhc3M6IMO8");
        for (headers, who) in [
            (vec![("apikey", "jack-key")], Some("jack")),
            (vec![basic], Some("rose")),
            (vec![basic, ("apikey", "jack-key")], Some("rose")),
            (vec![("Authorization", "Basic x"), ("apikey", "jack-key")], Some("jack")),
            (vec![("Authorization", "Basic x"), ("apikey", "wrong")], None),
            (vec![], None),
        ] {
            let mut test = test::<MultiAuth>().config(
                json!({"auth_plugins": [{"basic-auth": {}}, {"key-auth": {"realm": "r"}}]}),
            );
            for (name, value) in &headers {
                test = test.request_header(name, Some(value));
            }
            let ran = test.run();
            if let Some(name) = who {
                assert_eq!(ran.sent_header("x-consumer-username"), Some(name), "{headers:?}");
                assert_eq!(ran.response.header("www-authenticate"), None);
                continue;
            }
            assert_eq!(ran.status, 401);
            assert_eq!(ran.body(), "{\"message\":\"Authorization Failed\"}\n");
            let challenges = ran.response.all("www-authenticate");
            assert_eq!(challenges, ["Basic realm=\"basic\"", "apikey realm=\"r\""]);
        }
    }

    #[test]
    fn what_cannot_work_is_refused_in_the_words_of_apisix() {
        let mut registry = Registry::default();
        registry.add::<MultiAuth>();
        let plugin = registry.get(MultiAuth::NAME).expect("it was added");
        for (plugins, error) in [
            (
                json!([{"key-auth": {}}]),
                "property \"auth_plugins\" validation failed: expect array to have at least 2 items",
            ),
            (json!([{"key-auth": {}}, {"no-auth": {}}]), "no-auth plugin did not found"),
            (json!([{"aws-lambda": {}}, {"key-auth": {}}]), "aws-lambda plugin is not supported"),
            (
                json!([{"key-auth": {}}, {"basic-auth": {"hide_credentials": "false"}}]),
                "plugin basic-auth check schema failed: property \"hide_credentials\" validation failed: wrong type: expected boolean, got string",
            ),
        ] {
            let checked = (plugin.info.check)(&json!({"auth_plugins": plugins}));
            assert_eq!(checked.expect_err(error), error);
        }
        let error = (plugin.info.check)(&json!({})).expect_err("it is required");
        assert_eq!(error, "property \"auth_plugins\" is required");
    }
}

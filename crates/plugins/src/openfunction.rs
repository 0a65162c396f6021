//! `openfunction`: answer a route from an OpenFunction function.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/openfunction/>
//!
//! A configured `service_token` (`user:password`) is sent as Basic credentials, whatever
//! `Authorization` the client sends. Everything else about the call belongs to [`FunctionInvoker`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{FunctionInvoker, InvokerConfig};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct OpenFunction {
    invoker: FunctionInvoker,
    /// The whole value of `Authorization`.
    authorization: Option<Secret>,
}

impl Plugin for OpenFunction {
    const NAME: &'static str = "openfunction";
    const PRIORITY: i32 = -1902;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["authorization.service_token"];
    type Config = Config;

    fn schema() -> Value {
        // Differs: APISIX's schema of `authorization` says nothing, so it takes a token of any type
        // and fails each request.
        FunctionInvoker::schema(json!({
            "type": "object",
            "properties": {"service_token": {"type": "string"}},
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let token = config.authorization.and_then(|authorization| authorization.service_token);
        let authorization =
            token.map(|token| Secret::from(format!("Basic {}", STANDARD.encode(token))));
        Ok(Self { invoker: FunctionInvoker::compile(&config.invoker, ctx)?, authorization })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut call = self.invoker.prepare(exchange).await?;
        if let Some(authorization) = &self.authorization {
            call.headers.set("authorization", authorization.expose().as_bytes());
        }
        Ok(Flow::Respond(self.invoker.send(exchange, call).await?))
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    invoker: InvokerConfig,
    authorization: Option<Authorization>,
}

#[derive(Deserialize)]
struct Authorization {
    service_token: Option<String>,
}

impl std::fmt::Debug for Authorization {
    /// The token is not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<OpenFunction>::check_schema(&json!({"function_uri": "http://fn.test/"}));
    }

    #[test]
    fn a_configured_token_replaces_the_clients_authorization() {
        for (client, authorization, sent) in [
            (None, json!({}), None),
            (Some("Bearer c"), json!({}), Some("Bearer c")),
            (None, json!({"service_token": "test:test"}), Some("Basic dGVzdDp0ZXN0")),
            (Some("Bearer c"), json!({"service_token": "test:test"}), Some("Basic dGVzdDp0ZXN0")),
        ] {
            let ran = PluginTest::<OpenFunction>::new()
                .config(json!({"function_uri": "http://fn.test/a", "authorization": authorization}))
                .route_uri("/*")
                .request("POST", "/x/y?a=1")
                .request_header("Authorization", client)
                .request_body("body")
                .run();
            assert_eq!(ran.sent_header("authorization"), sent, "{client:?} {authorization}");
            assert_eq!(ran.sent().target, "/a/x/y?a=1");
            assert_eq!(&ran.sent().body[..], b"body");
        }
    }

    #[test]
    fn a_token_that_is_no_text_is_refused() {
        for token in [json!(1), json!(["a"]), json!({}), json!(true)] {
            let config = json!({"function_uri": "http://fn.test/", "authorization": {"service_token": token}});
            let error = crate::tests::refusal::<OpenFunction>(&config);
            let expected = "property \"authorization\" validation failed: property \"service_token\" \
                validation failed: wrong type: expected string, got ";
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

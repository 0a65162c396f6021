//! `azure-functions`: answer a route from an Azure Function.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/azure-functions/>
//!
//! Keys come from the first place that holds one: the client's own headers, this configuration, the
//! plugin's metadata. Everything else about the call (path, body limit, time limit, pool) belongs to
//! [`FunctionInvoker`].

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{FunctionInvoker, InvokerConfig};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct AzureFunctions {
    invoker: FunctionInvoker,
    /// Header names, and what they are to say.
    keys: Vec<(&'static str, Secret)>,
}

impl Plugin for AzureFunctions {
    const NAME: &'static str = "azure-functions";
    const PRIORITY: i32 = -1900;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["authorization.apikey"];
    type Config = Config;

    fn schema() -> Value {
        FunctionInvoker::schema(json!({
            "type": "object",
            "properties": {"apikey": {"type": "string"}, "clientid": {"type": "string"}},
        }))
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                "master_apikey": {"type": "string", "default": ""},
                "master_clientid": {"type": "string", "default": ""},
            },
            "encrypt_fields": ["master_apikey"],
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let (apikey, clientid) = match config.authorization {
            Some(own) => (own.apikey, own.clientid),
            None => {
                // Differs: APISIX sends an empty header for a master key that is not set.
                let master = |name: &str| {
                    let text = ctx.metadata?.get(name)?.as_str()?;
                    (!text.is_empty()).then(|| text.to_owned())
                };
                (master("master_apikey"), master("master_clientid"))
            }
        };
        let mut keys = Vec::new();
        for (header, field, key) in [(API_KEY, "apikey", apikey), (CLIENT_ID, "clientid", clientid)]
        {
            let Some(key) = key else { continue };
            // Differs: APISIX takes any text. What cannot stand in a header would be left out of
            // the call, and the call go without a key.
            if key.contains(char::is_control) {
                return Err(ConfigError(format!("`authorization.{field}` has control characters")));
            }
            keys.push((header, Secret::from(key)));
        }
        Ok(Self { invoker: FunctionInvoker::compile(&config.invoker, ctx)?, keys })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut call = self.invoker.prepare(exchange).await?;
        // A client that brings either key is trusted to bring what it needs: mixing its key with
        // ours would make the call for the wrong caller.
        if !call.headers.contains(API_KEY) && !call.headers.contains(CLIENT_ID) {
            for (name, key) in &self.keys {
                call.headers.append(name, key.expose().as_bytes());
            }
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
    apikey: Option<String>,
    clientid: Option<String>,
}

impl std::fmt::Debug for Authorization {
    /// Keys are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").finish_non_exhaustive()
    }
}

const API_KEY: &str = "x-functions-key";
const CLIENT_ID: &str = "x-functions-clientid";

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<AzureFunctions>::check_schema(&json!({"function_uri": "http://fn.test/"}));
    }

    #[test]
    fn keys_come_from_client_then_config_then_metadata() {
        let own = json!({"apikey": "config"});
        let both = json!({"apikey": "config", "clientid": "id"});
        let nothing = json!({});
        let metadata = json!({"master_apikey": "metadata", "master_clientid": "mid"});
        let empty = json!({});
        for (client, authorization, metadata, key, id) in [
            (Some("client"), Some(&both), Some(&metadata), Some("client"), None),
            (None, Some(&own), Some(&metadata), Some("config"), None),
            (None, Some(&both), Some(&metadata), Some("config"), Some("id")),
            (None, Some(&nothing), Some(&metadata), None, None),
            (None, None, Some(&metadata), Some("metadata"), Some("mid")),
            (None, None, Some(&empty), None, None),
            (None, None, None, None, None),
        ] {
            let mut config = json!({"function_uri": "http://fn.test/api/fn"});
            if let Some(authorization) = authorization {
                config["authorization"] = authorization.clone();
            }
            let ran = PluginTest::<AzureFunctions>::new()
                .config(config)
                .metadata(metadata)
                .route_uri("/")
                .request_header("X-Functions-Key", client)
                .run();
            let case = format!("{client:?} {authorization:?} {metadata:?}");
            assert_eq!(ran.sent_header("x-functions-key"), key, "{case}");
            assert_eq!(ran.sent_header("x-functions-clientid"), id, "{case}");
            assert_eq!(ran.sent().target, "/api/fn", "{case}");
        }
    }
}

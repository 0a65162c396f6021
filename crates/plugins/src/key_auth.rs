//! `key-auth`: tells who sends a request by a key in a header or in the query.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/key-auth/>
//!
//! One look-up in a hashed map finds the consumer, whatever their number.

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::http::FieldName;
use sluicegate_gateway::plugin::{
    Auth, CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError,
};

use crate::auth::{Denied, Gate, GateConfig, find};

/// The plugin, compiled.
pub struct KeyAuth {
    gate: Gate,
    header: FieldName,
    query: Box<str>,
    argument: VarName,
}

impl Plugin for KeyAuth {
    const NAME: &'static str = "key-auth";
    const PRIORITY: i32 = 2500;
    const PHASES: Phases = Phases::REWRITE;
    const AUTH: Option<Auth> = Some(Auth { unique: Some("key") });
    type Config = Config;

    fn schema() -> Value {
        Gate::schema(
            "key",
            json!({
                "header": {"type": "string", "default": "apikey"},
                "query": {"type": "string", "default": "apikey"},
            }),
        )
    }

    fn consumer_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {"key": {"type": "string"}},
            "encrypt_fields": ["key"],
            "required": ["key"],
        }))
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            gate: Gate::new(Self::NAME, "apikey", config.gate),
            header: config.header.as_str().into(),
            argument: VarName::Arg(config.query.as_str().into()),
            query: config.query.into(),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let invalid = |cause| {
            let cause = format!("failed to find consumer: {cause}");
            Denied::because("Invalid API key in request", cause)
        };
        let found = match exchange.request.headers.get_by(&self.header) {
            Some(key) => find(exchange, Self::NAME, key, UNKNOWN).map_err(invalid),
            None => match exchange.var(&self.argument).as_ref().and_then(|key| key.to_bytes()) {
                Some(key) => find(exchange, Self::NAME, &key, UNKNOWN).map_err(invalid),
                None => Err(Denied::told("Missing API key in request")),
            },
        };
        // Differs: APISIX leaves a key in the query where the one in the header was taken.
        Ok(self.gate.pass(exchange, found, |exchange| {
            exchange.request.headers.remove_by(&self.header);
            exchange.remove_argument(self.query.as_bytes());
        }))
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    gate: GateConfig,
    header: String,
    query: String,
}

const UNKNOWN: &str = "invalid api key";

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;
    use crate::auth::tests::test;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<KeyAuth>::check_schema(&json!({}));
    }

    #[test]
    fn a_key_is_looked_for_in_the_header_and_then_in_the_query() {
        let own = json!({"header": "x-key", "query": "token"});
        for (config, header, target, consumer) in [
            (json!({}), Some(("apikey", "jack-key")), "/", Ok("jack")),
            (json!({}), Some(("APIKEY", "jack-key")), "/?apikey=rose-key", Ok("jack")),
            (json!({}), None, "/?a=1&apikey=rose-key", Ok("rose")),
            (json!({}), None, "/?apikey=rose%2Dkey&apikey=jack-key", Ok("rose")),
            (json!({}), None, "/?apikey=rose%20key", Err("Invalid API key in request")),
            (json!({}), None, "/", Err("Missing API key in request")),
            (json!({}), None, "/?apikeys=rose-key", Err("Missing API key in request")),
            (json!({}), Some(("apikey", "jack-ke")), "/", Err("Invalid API key in request")),
            (
                json!({}),
                Some(("apikey", "")),
                "/?apikey=rose-key",
                Err("Invalid API key in request"),
            ),
            (own.clone(), Some(("x-key", "jack-key")), "/", Ok("jack")),
            (own.clone(), None, "/?token=jack-key", Ok("jack")),
            (own, Some(("apikey", "jack-key")), "/", Err("Missing API key in request")),
        ] {
            let mut test = test::<KeyAuth>().config(config).request("GET", target);
            if let Some((name, value)) = header {
                test = test.request_header(name, Some(value));
            }
            let ran = test.run();
            match consumer {
                Ok(name) => {
                    assert_eq!(ran.sent_header("x-consumer-username"), Some(name), "{target}");
                    assert_eq!(ran.sent().target, target, "nothing is hidden");
                }
                Err(message) => {
                    assert_eq!(ran.status, 401, "{header:?} {target}");
                    assert_eq!(ran.body(), format!("{{\"message\":\"{message}\"}}\n"));
                    let challenge = ran.response.header("www-authenticate");
                    assert_eq!(challenge, Some("apikey realm=\"key\""));
                    assert!(ran.sent.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_client_cannot_have_the_consumer_hidden_from_the_upstream() {
        let ran = test::<KeyAuth>()
            .request_header("apikey", Some("jack-key"))
            .request_header("X-Mine", Some("1"))
            .request_header("Connection", Some("close, x-consumer-username, x-mine"))
            .run();
        assert_eq!(ran.sent_header("x-consumer-username"), Some("jack"));
        assert_eq!(ran.sent_header("x-mine"), None);
    }

    #[test]
    fn a_hidden_key_does_not_reach_the_upstream() {
        for (anonymous, key, target, sent) in [
            (None, Some("jack-key"), "/?a=1&apikey=rose-key", "/?a=1"),
            (None, None, "/?apikey=rose-key", "/"),
            (None, None, "/?b=%20&%61pikey=rose-key&c&apikey", "/?b=%20&c"),
            (Some("anyone"), Some("wrong"), "/?apikey=rose-key&x=1", "/?x=1"),
        ] {
            let config = json!({"hide_credentials": true, "anonymous_consumer": anonymous});
            let config = match anonymous {
                Some(_) => config,
                None => json!({"hide_credentials": true}),
            };
            let ran = test::<KeyAuth>()
                .config(config)
                .request("GET", target)
                .request_header("apikey", key)
                .run();
            assert_eq!(ran.sent().target, sent);
            assert_eq!(ran.sent_header("apikey"), None);
        }
    }
}

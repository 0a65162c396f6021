//! `aws-lambda`: answer a route from an AWS Lambda function behind an API Gateway or a
//! function URL.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/aws-lambda/>
//!
//! A call carries an API key or an AWS Signature Version 4. What the client brings itself
//! comes first: its `x-api-key` is not replaced, and its `Authorization` turns signing off.
//! With both kinds configured, the API key alone is sent. Everything else about the call
//! (path, body limit, time limit, pool) belongs to [`FunctionInvoker`].
//!
//! Differs: only `host`, `content-type` and `x-amz-*` are signed, since proxies on the way
//! may change the rest; paths are signed as AWS reads them (each segment encoded, the
//! trailing slash kept); a client's own `x-amz-date` is replaced; a request without a query
//! is sent without `?`.

mod caller;
mod config;
mod event;
mod explain;
mod front;
mod identity;
mod invoke;
mod mask;
mod refusals;
mod stream;

use serde_json::Value;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

pub use explain::{ExplainPlace, ExplainRequest, FieldValues, explain};
pub use identity::AwsIdentities;
pub use refusals::{AwsRefusals, Refusals};

use config::Config;
use front::Front;
use invoke::Invoke;

/// The plugin, compiled.
pub struct AwsLambda(Reach);

/// The ways to a function.
enum Reach {
    /// A URL.
    Front(Box<Front>),
    /// The Invoke API.
    Invoke(Box<Invoke>),
}

impl AwsLambda {
    /// Whether the client's request is put into an event.
    fn makes_events(&self) -> bool {
        match &self.0 {
            Reach::Front(front) => front.makes_events(),
            Reach::Invoke(invoke) => invoke.makes_events(),
        }
    }
}

impl Plugin for AwsLambda {
    const NAME: &'static str = "aws-lambda";
    const PRIORITY: i32 = -1899;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &[
        "authorization.apikey",
        "authorization.iam.accesskey",
        "authorization.iam.secretkey",
        "authorization.iam.session_token",
        "authorization.iam.external_id",
    ];
    const OWN_FIELDS: &'static [&'static str] = &["function"];
    type Config = Config;

    fn schema() -> Value {
        config::schema()
    }

    fn compile(mut config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self(match (config.function_uri.take(), config.function.take()) {
            (Some(uri), None) => Reach::Front(Box::new(Front::compile(config, &uri, ctx)?)),
            (None, Some(function)) => {
                Reach::Invoke(Box::new(Invoke::compile(config, function, ctx)?))
            }
            // APISIX's text first.
            (None, None) => {
                return Err(ConfigError(
                    "property \"function_uri\" is required, or `function` in its place".into(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(ConfigError(
                    "there are both `function_uri` and `function`: give one".into(),
                ));
            }
        }))
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        Ok(Flow::Respond(match &self.0 {
            Reach::Front(front) => front.call(exchange).await?,
            Reach::Invoke(invoke) => Box::pin(invoke.call(exchange)).await?,
        }))
    }
}

#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod tests;

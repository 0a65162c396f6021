//! `serverless-pre-function` and `serverless-post-function`: functions in Lua, at the begin and at
//! the end of a phase.
//!
//! Follows the plugins of the same names in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/serverless/>
//!
//! What functions find, and what they may use, belongs to [`sluicegate_lua`]; this file says when
//! they run.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Origin, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_lua::{Functions, LuaError, Outcome, Phase};

/// `serverless-pre-function`.
pub type ServerlessPreFunction = Serverless<true>;

/// `serverless-post-function`.
pub type ServerlessPostFunction = Serverless<false>;

/// Functions of one phase, before (`PRE`) or after the other plugins.
pub struct Serverless<const PRE: bool> {
    phase: Phase,
    functions: Functions,
}

impl<const PRE: bool> Plugin for Serverless<PRE> {
    const NAME: &'static str =
        if PRE { "serverless-pre-function" } else { "serverless-post-function" };
    const PRIORITY: i32 = if PRE { 10_000 } else { -2_000 };
    const PHASES: Phases = Phases::REWRITE
        .and(Phases::ACCESS)
        .and(Phases::BEFORE_PROXY)
        .and(Phases::HEADER_FILTER)
        .and(Phases::BODY_FILTER)
        .and(Phases::LOG);
    type Config = Value;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "phase": {
                    "type": "string",
                    "default": "access",
                    "enum": ["rewrite", "access", "header_filter", "body_filter", "log", "before_proxy"],
                },
                "functions": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            },
            "required": ["functions"],
        })
    }

    fn compile(config: Value, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let name = config["phase"].as_str().unwrap_or_default();
        let phase = Phase::parse(name);
        let phase = phase.ok_or_else(|| ConfigError(format!("`phase` is unknown: {name:?}")))?;
        let sources = config["functions"].as_array().into_iter().flatten();
        let sources = sources.filter_map(Value::as_str).map(str::to_owned).collect();
        let functions = Functions::compile(Self::NAME, sources, config, ctx.deps.cloned());
        let functions = functions.map_err(|error| ConfigError(error.to_string()))?;
        Ok(Self { phase, functions })
    }

    fn phases(&self) -> Phases {
        match self.phase {
            Phase::Rewrite => Phases::REWRITE,
            Phase::Access => Phases::ACCESS,
            Phase::BeforeProxy => Phases::BEFORE_PROXY,
            Phase::HeaderFilter => Phases::HEADER_FILTER,
            Phase::BodyFilter => Phases::BODY_FILTER,
            Phase::Log => Phases::LOG,
            Phase::Filter => Phases::NONE,
        }
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.run(exchange).await
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.run(exchange).await
    }

    async fn before_proxy(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.run(exchange).await
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        self.functions.header_filter(exchange, response);
    }

    fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        self.functions.body_filter(exchange, piece, last);
    }

    fn log(&self, exchange: &Exchange) {
        self.functions.log(exchange);
    }
}

impl<const PRE: bool> Serverless<PRE> {
    async fn run(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        match self.functions.run(self.phase, exchange).await {
            Ok(Outcome::Next) => Ok(Flow::Continue),
            Ok(Outcome::Respond(mut response)) => {
                response.origin = Origin::Function;
                Ok(Flow::Respond(response))
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

/// The client sees nothing of what went wrong in a function.
fn failed(error: &LuaError) -> PluginError {
    PluginError { status: StatusCode::INTERNAL_SERVER_ERROR, cause: error.to_string() }
}

#[cfg(test)]
mod tests;

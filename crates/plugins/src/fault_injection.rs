//! `fault-injection`: answer requests with an error, or let them wait, to see how clients cope.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/fault-injection/>

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::Expr;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::headers::text_of;
use crate::template::Template;

/// The plugin, compiled.
pub struct FaultInjection {
    abort: Option<(When, Abort)>,
    delay: Option<(When, Duration)>,
}

/// Which requests are hit.
struct When {
    /// Of a hundred; `None`: all.
    percentage: Option<u8>,
    /// One of them must hold, if there are any.
    vars: Option<Vec<Expr>>,
}

struct Abort {
    status: StatusCode,
    body: Option<Template>,
    headers: Vec<(String, Template)>,
}

impl Plugin for FaultInjection {
    const NAME: &'static str = "fault-injection";
    const PRIORITY: i32 = 11000;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        let percentage = json!({"type": "integer", "minimum": 0, "maximum": 100});
        let vars = json!({"type": "array", "maxItems": 20, "items": {"type": "array"}});
        json!({
            "type": "object",
            "properties": {
                "abort": {
                    "type": "object",
                    "properties": {
                        "http_status": {"type": "integer", "minimum": 200},
                        "body": {"type": "string", "minLength": 0},
                        "headers": {
                            "type": "object",
                            "minProperties": 1,
                            "patternProperties": {
                                "^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]},
                            },
                        },
                        "percentage": percentage,
                        "vars": vars,
                    },
                    "required": ["http_status"],
                },
                "delay": {
                    "type": "object",
                    "properties": {
                        "duration": {"type": "number", "minimum": 0},
                        "percentage": percentage,
                        "vars": vars,
                    },
                    "required": ["duration"],
                },
            },
            "minProperties": 1,
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let abort = config.abort.map(|abort| {
            let fields = abort.headers.iter().flatten();
            let fields =
                fields.map(|(name, value)| (name.clone(), Template::compile(&text_of(value))));
            let answer = Abort {
                status: crate::answers::status("http_status", abort.http_status)?,
                body: abort.body.as_deref().map(Template::compile),
                headers: fields.collect(),
            };
            Ok((When::compile(abort.percentage, abort.vars)?, answer))
        });
        let delay = config.delay.map(|delay| {
            let time =
                Duration::try_from_secs_f64(delay.duration).ok().filter(|time| *time <= DELAY_MAX);
            // Differs: APISIX takes any time.
            let time = time.ok_or_else(|| {
                ConfigError(format!(
                    "`duration` {} is over {} seconds",
                    delay.duration,
                    DELAY_MAX.as_secs()
                ))
            })?;
            Ok((When::compile(delay.percentage, delay.vars)?, time))
        });
        Ok(Self { abort: abort.transpose()?, delay: delay.transpose()? })
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if let Some((when, time)) = &self.delay
            && when.hits(exchange)
        {
            tokio::time::sleep(*time).await;
        }
        let Some((_, abort)) = self.abort.as_ref().filter(|(when, _)| when.hits(exchange)) else {
            return Ok(Flow::Continue);
        };
        let mut response = match &abort.body {
            Some(body) => Response::text(abort.status, body.render(exchange).into_owned()),
            None => crate::answers::answer(abort.status),
        };
        for (name, value) in &abort.headers {
            response.headers.set(name, &value.render(exchange));
        }
        Ok(Flow::Respond(response))
    }
}

impl When {
    fn compile(percentage: Option<u8>, vars: Option<Vec<Value>>) -> Result<Self, ConfigError> {
        let compile = |vars: Vec<Value>| vars.iter().map(Expr::compile).collect::<Result<_, _>>();
        Ok(Self { percentage, vars: vars.map(compile).transpose().map_err(ConfigError)? })
    }

    fn hits(&self, exchange: &Exchange) -> bool {
        let drawn = || {
            let mut random = [0; 4];
            exchange.core.random(&mut random);
            (u64::from(u32::from_be_bytes(random)) * 100) >> 32
        };
        self.percentage.is_none_or(|percentage| drawn() < u64::from(percentage))
            && self.vars.as_ref().is_none_or(|vars| vars.iter().any(|vars| vars.eval(exchange)))
    }
}

/// A configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    abort: Option<AbortConfig>,
    delay: Option<DelayConfig>,
}

/// `abort` of a configuration.
#[derive(Debug, Deserialize)]
struct AbortConfig {
    http_status: u16,
    body: Option<String>,
    headers: Option<Map<String, Value>>,
    percentage: Option<u8>,
    vars: Option<Vec<Value>>,
}

/// `delay` of a configuration.
#[derive(Debug, Deserialize)]
struct DelayConfig {
    duration: f64,
    percentage: Option<u8>,
    vars: Option<Vec<Value>>,
}

/// The longest delay.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn requests_are_aborted_where_it_is_said() {
        let vars = |name: &str| {
            json!({"abort": {"http_status": 403, "body": "no\n", "vars": [
                [["arg_name", "==", name], ["arg_age", ">", 18]], [["arg_other", "==", "x"]],
            ]}})
        };
        let full = json!({"abort": {
            "http_status": 418, "body": "to $remote_addr", "headers": {"X-N": 1, "X-A": "$arg_name"}, "percentage": 100,
        }});
        for (config, target, status, body) in [
            (full.clone(), "/?name=a", 418, "to 127.0.0.1"),
            (vars("a"), "/?name=a&age=19", 403, "no\n"),
            (vars("a"), "/?name=a&age=18", 200, ""),
            (vars("a"), "/?other=x", 403, "no\n"),
            (json!({"abort": {"http_status": 200, "vars": []}}), "/", 200, ""),
            (json!({"abort": {"http_status": 503, "percentage": 0}}), "/", 200, ""),
        ] {
            let ran = PluginTest::<FaultInjection>::new()
                .config(config.clone())
                .request("GET", target)
                .run();
            assert_eq!((ran.status, ran.body().as_str()), (status, body), "{config} {target}");
        }
        let ran = PluginTest::<FaultInjection>::new().config(full).request("GET", "/?name=a").run();
        assert_eq!(
            (ran.response.header("x-n"), ran.response.header("x-a")),
            (Some("1"), Some("a"))
        );
        let ran = PluginTest::<FaultInjection>::new()
            .config(json!({"abort": {"http_status": 405}}))
            .run();
        assert!(ran.body().contains("405 Not Allowed"), "{}", ran.body());
    }

    #[test]
    fn requests_wait_where_it_is_said() {
        let slow = json!({"delay": {"duration": 0.3, "vars": [[["arg_slow", "==", "1"]]]}});
        for (target, waits) in [("/?slow=1", true), ("/?slow=0", false)] {
            let began = Instant::now();
            let ran = PluginTest::<FaultInjection>::new()
                .config(slow.clone())
                .request("GET", target)
                .run();
            assert_eq!(ran.status, 200);
            assert!(!waits || began.elapsed() >= Duration::from_millis(300), "{target}");
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<FaultInjection>::check_schema(&json!({"delay": {"duration": 0}}));
        for (config, error) in [
            (
                json!({"abort": {"http_status": 100}}),
                "property \"abort\" validation failed: property \"http_status\" validation failed: expected 100 to be at least 200",
            ),
            (json!({"abort": {"http_status": 1000}}), "`http_status` 1000 is not a status"),
            (json!({"delay": {"duration": 1e9}}), "`duration` 1000000000 is over 86400 seconds"),
            (
                json!({"abort": {"http_status": 200, "vars": [[["a", "xx", 1]]]}}),
                "invalid operator 'xx'",
            ),
            (json!({}), "expect object to have at least 1 properties"),
        ] {
            let said = crate::tests::refusal::<FaultInjection>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

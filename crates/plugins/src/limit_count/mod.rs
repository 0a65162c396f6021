//! `limit-count`: so many requests in a window of time.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/limit-count/>
//!
//! With `policy: local` a gateway counts by itself, exactly over all its cores; with the others a
//! Redis counts for all gateways that ask it.

mod config;
mod remote;
mod window;

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::{FieldName, Number};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use smallvec::SmallVec;
use tracing::error;

use self::config::{Config, GroupInUse};
use self::remote::{Delayed, Remote};
use self::window::{Counted, SharedWindows};
use crate::limit::amount::{Amount, AmountError};
use crate::limit::key::{Name, Source};
use crate::limit::redis::Servers;
use crate::limit::{Refusal, bare, now_ms};

/// The plugin, compiled.
pub struct LimitCount {
    rules: Box<[Rule]>,
    /// Only those of `rules` apply that find a variable of their key.
    optional: bool,
    name: Name,
    refusal: Refusal,
    show: bool,
    degrade: bool,
    counters: Counters,
    _group: Option<Arc<GroupInUse>>,
}

/// One limit.
struct Rule {
    count: Amount,
    window: Amount,
    source: Source,
    headers: Headers,
}

/// The names of the headers that tell a client about its quota.
#[derive(Debug, PartialEq, Eq)]
struct Headers {
    limit: FieldName,
    remaining: FieldName,
    reset: FieldName,
}

/// Where requests are counted.
enum Counters {
    /// Nowhere: the configuration is only checked.
    Trial,
    /// On this gateway.
    Local(Local),
    /// On a Redis.
    Remote(Remote),
}

/// Windows of this gateway.
struct Local {
    windows: SharedWindows,
    sliding: bool,
}

/// One of the places where requests are counted.
trait Count {
    /// Why a request could not be counted.
    type Failure: fmt::Display;

    /// Counts a request under a name, which it may add to, within a limit and a window of seconds.
    ///
    /// # Errors
    /// The place does not answer.
    async fn count(&self, name: &mut Vec<u8>, limit: (u64, u64)) -> Result<Counted, Self::Failure>;
}

impl Count for Local {
    type Failure = Infallible;

    async fn count(&self, name: &mut Vec<u8>, limit: (u64, u64)) -> Result<Counted, Self::Failure> {
        if self.sliding {
            let _ = write!(Text(name), ":{}", limit.1);
            return Ok(self.windows.sliding(name, now_ms(), limit, 1));
        }
        Ok(self.windows.fixed(name, now_ms(), limit, 1))
    }
}

impl Plugin for LimitCount {
    const NAME: &'static str = "limit-count";
    const PRIORITY: i32 = 1002;
    const VERSION: f64 = 0.5;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["redis_password", "sentinel_password"];
    type Config = Value;

    fn schema() -> Value {
        config::schema()
    }

    fn metadata_schema() -> Option<Value> {
        Some(config::metadata_schema())
    }

    fn compile(config: Value, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Self::of(config, ctx, None)
    }

    fn waits(&self) -> bool {
        matches!(self.counters, Counters::Remote(_))
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.limit(exchange).await
    }
}

impl LimitCount {
    /// Compiles a configuration; `action` is its place among the actions of `workflow`, if it
    /// stands there.
    pub(crate) fn of(
        value: Value,
        ctx: &CompileCtx<'_>,
        action: Option<usize>,
    ) -> Result<Self, ConfigError> {
        let config = Config::read(&value)?;
        config.check(action.is_some())?;
        let group = match (&config.group, ctx.deps) {
            (None, _) => None,
            (Some(group), None) => {
                GroupInUse::check(group, &value)?;
                None
            }
            (Some(group), Some(_)) => Some(GroupInUse::note(group, &value)),
        };
        let metadata = config::Metadata::read(ctx.metadata)?;
        let name = match &config.group {
            Some(group) => Name::of_group(group),
            None => Name::of(ctx.owner, &value, action),
        };
        let (rules, optional) = match &config.rules {
            Some(rules) => {
                let rule = |(at, rule): (usize, &config::RuleConfig)| {
                    let index = (at + 1).to_string();
                    Rule {
                        count: Amount::compile(&rule.count, 1),
                        window: Amount::compile(&rule.time_window, 1),
                        source: Source::compile(&rule.key, "var_combination"),
                        headers: metadata
                            .headers(Some(rule.header_prefix.as_ref().unwrap_or(&index))),
                    }
                };
                (rules.iter().enumerate().map(rule).collect(), true)
            }
            None => {
                let rule = Rule {
                    count: Amount::compile(&config.count, 1),
                    window: Amount::compile(&config.time_window, 1),
                    source: Source::compile(&config.key, &config.key_type),
                    headers: metadata.headers(None),
                };
                (Box::from([rule]), false)
            }
        };
        let counters = match ctx.deps {
            None => Counters::Trial,
            Some(deps) if config.policy == "local" => {
                Counters::Local(Local { windows: deps.state.get(), sliding: config.is_sliding() })
            }
            Some(deps) => {
                let redis = deps.state.get::<Servers>().of(&value, deps)?;
                let delayed = config.delay().map(|interval| Delayed {
                    interval,
                    shares: deps.state.get(),
                    windows: deps.state.get(),
                });
                Counters::Remote(Remote::new(redis, config.is_sliding(), delayed))
            }
        };
        Ok(Self {
            rules,
            optional,
            name,
            refusal: Refusal::compile(config.rejected_code, config.rejected_msg)?,
            show: config.show_limit_quota_header,
            degrade: config.allow_degradation,
            counters,
            _group: group,
        })
    }

    /// Counts a request, and answers it when it is beyond a limit.
    pub(crate) async fn limit(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut name = NAME.take();
        let flow = match &self.counters {
            Counters::Trial => Flow::Continue,
            Counters::Local(local) => self.run(local, exchange, &mut name).await,
            // In a box: without it the future would be too large for a quick allocation, local or not.
            Counters::Remote(remote) => Box::pin(self.run(remote, exchange, &mut name)).await,
        };
        NAME.set(name);
        Ok(flow)
    }

    async fn run(
        &self,
        counters: &impl Count,
        exchange: &mut Exchange,
        name: &mut Vec<u8>,
    ) -> Flow {
        let amounts = match self.amounts(exchange, name) {
            Ok(amounts) => amounts,
            Err((field, error)) => {
                error!(route = exchange.route_id(), field, %error, "A limit of limit-count cannot be made out for a request.");
                return self.without_limit(|| bare(StatusCode::INTERNAL_SERVER_ERROR));
            }
        };
        let mut applied = false;
        for (rule, amounts) in self.rules.iter().zip(amounts) {
            let Some((limit, window_s)) = amounts else { continue };
            name.clear();
            if !self.optional {
                self.name.write_or_addr(&rule.source, exchange, name);
            } else if !self.name.write(&rule.source, exchange, name) {
                continue;
            }
            applied = true;
            let counted = match counters.count(name, (limit, window_s)).await {
                Ok(counted) => counted,
                Err(error) => {
                    error!(route = exchange.route_id(), %error, "The Redis of limit-count does not answer.");
                    return self.without_limit(|| {
                        let said = json!({"error_msg": "failed to limit count"});
                        Response::message(StatusCode::INTERNAL_SERVER_ERROR, &said)
                    });
                }
            };
            let (remaining, reset) = match counted {
                Counted::Within { remaining, reset } => (Some(remaining), reset),
                Counted::Beyond { reset } => (None, reset),
            };
            if self.show {
                rule.headers.set(exchange, limit, remaining.unwrap_or(0), reset);
            }
            if remaining.is_none() {
                return Flow::Respond(self.refusal.response());
            }
        }
        if applied {
            return Flow::Continue;
        }
        error!(route = exchange.route_id(), "No rule of limit-count applies to a request.");
        self.without_limit(|| bare(StatusCode::INTERNAL_SERVER_ERROR))
    }

    /// Limit and window of each rule that applies to a request, or which of them cannot be made
    /// out. All are made out before the first one counts.
    fn amounts(
        &self,
        exchange: &Exchange,
        name: &mut Vec<u8>,
    ) -> Result<Amounts, (&'static str, AmountError)> {
        let of = |rule: &Rule| {
            name.clear();
            match !self.optional || self.name.write(&rule.source, exchange, name) {
                true => rule.amounts(exchange).map(Some),
                false => Ok(None),
            }
        };
        self.rules.iter().map(of).collect()
    }

    /// What becomes of a request that cannot be counted.
    fn without_limit(&self, refuse: impl FnOnce() -> Response) -> Flow {
        if self.degrade { Flow::Continue } else { Flow::Respond(refuse()) }
    }
}

impl Rule {
    /// Limit and window for a request, or which of them cannot be made out.
    fn amounts(&self, exchange: &Exchange) -> Result<(u64, u64), (&'static str, AmountError)> {
        let limit = self.count.of(exchange).map_err(|error| ("count", error))?;
        let window_s = self.window.of(exchange).map_err(|error| ("time_window", error))?;
        Ok((limit, window_s))
    }
}

impl Headers {
    fn set(&self, exchange: &mut Exchange, limit: u64, remaining: u64, reset: f64) {
        let headers = exchange.add_response_headers();
        headers.set_numbers_by([
            (&self.limit, Number::Whole(limit)),
            (&self.remaining, Number::Whole(remaining)),
            (&self.reset, cents(reset)),
        ]);
    }
}

/// Seconds with two decimals at most, as Lua writes them.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
fn cents(seconds: f64) -> Number {
    // A little more than nothing makes up for decimals that binary fractions fall short of.
    Number::Hundredths((seconds * 100.0 + 1e-6).floor().max(0.0) as u64)
}

/// Appends text to bytes.
struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Limit and window of each rule that applies to a request.
type Amounts = SmallVec<[Option<(u64, u64)>; RULES_INLINE]>;

/// Rules whose limits take no memory of their own.
const RULES_INLINE: usize = 4;

thread_local! {
    /// The memory names are written in: a request that waits keeps it, and others get their own.
    static NAME: RefCell<Vec<u8>> = RefCell::default();
}

#[cfg(test)]
mod tests;

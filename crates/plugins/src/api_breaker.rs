//! `api-breaker`: leave what answers with errors alone for a while.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/api-breaker/>
//!
//! Each host and path has a state of its own. After so many unhealthy answers the gateway answers in
//! the place of the upstream: for two seconds, then four, eight and so on while it goes on failing.
//! So many healthy answers in between forgive everything.
//!
//! Differs: the answers of functions count as those of upstreams do; in APISIX a function's failures
//! never open the circuit.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::LocalKey;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::limit::store::{Counter, Remembered, Store};
use crate::limit::{bare, now_ms};
use crate::template::Template;

/// The plugin, compiled.
pub struct ApiBreaker {
    status: StatusCode,
    body: Option<Box<str>>,
    headers: Box<[(Box<str>, Template)]>,
    max_s: u64,
    unhealthy: Box<[u16]>,
    failures: u64,
    healthy: Box<[u16]>,
    successes: u64,
    breakers: Option<Arc<Breakers>>,
}

impl Plugin for ApiBreaker {
    const NAME: &'static str = "api-breaker";
    const PRIORITY: i32 = 1005;
    const PHASES: Phases = Phases::ACCESS.and(Phases::LOG);
    type Config = Config;

    fn schema() -> Value {
        let statuses = |from: u16, to: u16, default: u16| {
            json!({
                "type": "array",
                "minItems": 1,
                "items": {"type": "integer", "minimum": from, "maximum": to},
                "uniqueItems": true,
                "default": [default],
            })
        };
        let times = || json!({"type": "integer", "minimum": 1, "default": 3});
        json!({
            "type": "object",
            "properties": {
                "break_response_code": {"type": "integer", "minimum": 200, "maximum": 599},
                "break_response_body": {"type": "string"},
                "break_response_headers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "key": {"type": "string", "minLength": 1},
                            "value": {"type": "string", "minLength": 1},
                        },
                        "required": ["key", "value"],
                    },
                },
                "max_breaker_sec": {"type": "integer", "minimum": 3, "default": 300},
                "unhealthy": {
                    "type": "object",
                    "properties": {"http_statuses": statuses(500, 599, 500), "failures": times()},
                    "default": {"http_statuses": [500], "failures": 3},
                },
                "healthy": {
                    "type": "object",
                    "properties": {"http_statuses": statuses(200, 499, 200), "successes": times()},
                    "default": {"http_statuses": [200], "successes": 3},
                },
            },
            "required": ["break_response_code"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let code = config.break_response_code;
        let status = StatusCode::from_u16(code)
            .map_err(|_| ConfigError(format!("`break_response_code` is no status: {code}")))?;
        let headers = config.break_response_headers.into_iter();
        Ok(Self {
            status,
            body: config.break_response_body.map(Into::into),
            headers: headers.map(|h| (h.key.into(), Template::compile(&h.value))).collect(),
            max_s: config.max_breaker_sec,
            unhealthy: config.unhealthy.http_statuses.into(),
            failures: config.unhealthy.failures,
            healthy: config.healthy.http_statuses.into(),
            successes: config.healthy.successes,
            breakers: ctx.deps.map(|deps| deps.state.get()),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let Some(breakers) = self.breakers.as_ref().filter(|breakers| breakers.is_any_failing())
        else {
            return Ok(Flow::Continue);
        };
        let breaks = breakers.look(&name(exchange), |state| self.breaks(state, now_ms() / 1000));
        Ok(match breaks {
            Some(true) => Flow::Respond(self.response(exchange)),
            _ => Flow::Continue,
        })
    }

    fn log(&self, exchange: &Exchange) {
        let (Some(breakers), Some(status)) = (&self.breakers, exchange.upstream.status) else {
            return;
        };
        if self.unhealthy.contains(&status) {
            breakers.change(&name(exchange), |state| self.failed(state, now_ms() / 1000));
        } else if self.healthy.contains(&status) && breakers.is_any_failing() {
            breakers.look(&name(exchange), |state| self.succeeded(state));
        }
    }
}

impl ApiBreaker {
    /// Is the circuit open?
    fn breaks(&self, state: &State, now_s: u64) -> bool {
        // What was noted is forgotten after the longest time a circuit may be open.
        let opened = state.opened_s.filter(|opened| now_s < opened.saturating_add(self.max_s));
        let Some(opened) = opened.filter(|_| state.unhealthy > 0) else { return false };
        let times = (state.unhealthy / self.failures).clamp(1, 63);
        opened.saturating_add((1 << times).min(self.max_s)) >= now_s
    }

    fn failed(&self, state: &mut State, now_s: u64) {
        state.unhealthy += 1;
        state.healthy = 0;
        if state.unhealthy.is_multiple_of(self.failures) {
            state.opened_s = Some(now_s);
        }
    }

    fn succeeded(&self, state: &mut State) {
        if state.unhealthy == 0 {
            return;
        }
        state.healthy += 1;
        if state.healthy >= self.successes {
            *state = State { retired: state.retired, ..State::default() };
        }
    }

    fn response(&self, exchange: &Exchange) -> Response {
        let Some(body) = &self.body else { return bare(self.status) };
        let mut response = Response::text(self.status, body.to_string());
        for (name, value) in &self.headers {
            if name.eq_ignore_ascii_case("content-type") {
                response.headers.set(name, &value.render(exchange));
            } else {
                response.headers.append(name, &value.render(exchange));
            }
        }
        response
    }
}

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    break_response_code: u16,
    break_response_body: Option<String>,
    #[serde(default)]
    break_response_headers: Vec<HeaderConfig>,
    max_breaker_sec: u64,
    unhealthy: Unhealthy,
    healthy: Healthy,
}

#[derive(Deserialize)]
struct HeaderConfig {
    key: String,
    value: String,
}

#[derive(Deserialize)]
struct Unhealthy {
    http_statuses: Vec<u16>,
    failures: u64,
}

#[derive(Deserialize)]
struct Healthy {
    http_statuses: Vec<u16>,
    successes: u64,
}

/// What is known of every host and path that failed.
#[derive(Default)]
struct Breakers {
    all: Store<Breaker>,
    /// How many of them count failures now. Where none does, requests look nowhere.
    failing: Arc<AtomicUsize>,
}

impl Breakers {
    fn is_any_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed) > 0
    }

    /// Looks at a state, if there is one.
    fn look<R>(&self, name: &[u8], mut look: impl FnMut(&mut State) -> R) -> Option<R> {
        self.all.peek(name).map(|breaker| look(&mut breaker.lock()))
    }

    fn change(&self, name: &[u8], mut change: impl FnMut(&mut State)) {
        self.all.count(name, now_ms(), |breaker| {
            let mut state = breaker.lock();
            if state.retired {
                return None;
            }
            state.failing.get_or_insert_with(|| Failing::one_more(&self.failing));
            change(&mut state);
            Some(())
        });
    }
}

/// One host and path.
#[derive(Default)]
struct Breaker(Mutex<State>);

#[derive(Default)]
struct State {
    unhealthy: u64,
    healthy: u64,
    /// When it failed often enough, in seconds.
    opened_s: Option<u64>,
    /// It is among those that count failures.
    failing: Option<Failing>,
    retired: bool,
}

/// One of those that count failures, for as long as it lives.
struct Failing(Arc<AtomicUsize>);

impl Failing {
    fn one_more(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all.clone())
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Breaker {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counter for Breaker {
    fn retire(&self, _: u64, forced: bool) -> bool {
        let mut state = self.lock();
        state.retired |= forced || state.unhealthy == 0;
        if state.retired {
            state.failing = None;
        }
        state.retired
    }

    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
        thread_local!(static REMEMBERED: RefCell<Remembered<Breaker>> = RefCell::default());
        &REMEMBERED
    }
}

fn name(exchange: &Exchange) -> Vec<u8> {
    [exchange.request.host().as_bytes(), exchange.uri()].concat()
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;

    fn breaker(config: Value) -> ApiBreaker {
        let mut filled = config;
        let schema = sluicegate_model::schema::Schema::compile(&ApiBreaker::schema()).unwrap();
        schema.check_and_fill(&mut filled).unwrap();
        let ctx = CompileCtx { metadata: None, attr: None, owner: "", deps: None, upstreams: None };
        ApiBreaker::compile(serde_json::from_value(filled).unwrap(), &ctx).unwrap()
    }

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<ApiBreaker>::check_schema(&json!({"break_response_code": 502}));
    }

    #[test]
    fn a_circuit_opens_for_longer_and_longer_and_closes_when_all_is_well() {
        let breaker = breaker(json!({"break_response_code": 502, "max_breaker_sec": 10}));
        let mut state = State::default();
        let fail = |state: &mut State, now_s: u64, times: u32| {
            for _ in 0..times {
                breaker.failed(state, now_s);
            }
        };
        fail(&mut state, 100, 2);
        assert!(!breaker.breaks(&state, 100), "two are not three");
        fail(&mut state, 100, 1);
        for (now_s, breaks) in [(100, true), (102, true), (103, false)] {
            assert_eq!(breaker.breaks(&state, now_s), breaks, "{now_s}");
        }
        fail(&mut state, 200, 3);
        for (now_s, breaks) in [(204, true), (205, false)] {
            assert_eq!(breaker.breaks(&state, now_s), breaks, "{now_s}");
        }
        fail(&mut state, 300, 300);
        for (now_s, breaks) in [(309, true), (310, false)] {
            assert_eq!(breaker.breaks(&state, now_s), breaks, "{now_s}: at most ten seconds");
        }
        breaker.succeeded(&mut state);
        breaker.succeeded(&mut state);
        assert!(breaker.breaks(&state, 301));
        breaker.succeeded(&mut state);
        assert!(!breaker.breaks(&state, 301));
    }

    #[test]
    fn requests_look_nowhere_once_what_failed_is_well_or_forgotten() {
        let breaker = breaker(json!({"break_response_code": 502}));
        let breakers = Breakers::default();
        assert!(!breakers.is_any_failing());
        for name in [b"a", b"b"] {
            for _ in 0..2 {
                breakers.change(name, |state| breaker.failed(state, 100));
            }
        }
        let well = |name: &[u8]| {
            for _ in 0..3 {
                breakers.look(name, |state| breaker.succeeded(state));
            }
        };
        well(b"a");
        assert!(breakers.is_any_failing(), "one of two");
        well(b"b");
        assert!(!breakers.is_any_failing());
        breakers.change(b"a", |state| breaker.failed(state, 200));
        assert!(breakers.is_any_failing());
        let retired = breakers.all.peek(b"a").expect("it was noted");
        assert!(retired.retire(0, true));
        assert!(!breakers.is_any_failing());
        breaker.succeeded(&mut retired.lock());
        assert!(retired.lock().retired, "what was taken out of the table stays out of it");
    }
}

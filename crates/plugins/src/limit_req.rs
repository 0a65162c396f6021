//! `limit-req`: so many requests a second, by a leaky bucket.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/limit-req/>
//!
//! Requests beyond `rate` and within `burst` wait for their turn (or do not, with `nodelay`); those
//! beyond both are refused. With `policy: local` a gateway counts by itself, exactly over all its
//! cores; with the others a Redis counts for all gateways that ask it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;
use std::time::{Duration, Instant, UNIX_EPOCH};

use ::redis::Script;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use tracing::error;

use crate::limit::key::{Name, Source};
use crate::limit::redis::{Code, Redis, RedisFailure, Servers};
use crate::limit::store::{Counter, Remembered, Store};
use crate::limit::{Refusal, bare, now_ms, schema};

/// The plugin, compiled.
pub struct LimitReq {
    source: Source,
    name: Name,
    pace: Pace,
    nodelay: bool,
    refusal: Refusal,
    degrade: bool,
    counters: Counters,
}

enum Counters {
    Trial,
    Local(Arc<Buckets>),
    Remote(Arc<Redis>),
}

impl Plugin for LimitReq {
    const NAME: &'static str = "limit-req";
    const PRIORITY: i32 = 1001;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["redis_password"];
    type Config = Value;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "rate": {"type": "number", "exclusiveMinimum": 0},
                "burst": {"type": "number", "minimum": 0},
                "key": {"type": "string"},
                "key_type": {
                    "type": "string",
                    "enum": ["var", "var_combination"],
                    "default": "var",
                },
                "policy": {
                    "type": "string",
                    "enum": ["redis", "redis-cluster", "local"],
                    "default": "local",
                },
                "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 503},
                "rejected_msg": {"type": "string", "minLength": 1},
                "nodelay": {"type": "boolean", "default": false},
                "allow_degradation": {"type": "boolean", "default": false},
            },
            "required": ["rate", "burst", "key"],
            "if": schema::policy_is("redis"),
            "then": schema::redis(None),
            "else": {
                "if": schema::policy_is("redis-cluster"),
                "then": schema::redis_cluster(None),
            },
            "encrypt_fields": ["redis_password"],
        })
    }

    fn compile(value: Value, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let config = Config::deserialize(&value).map_err(|e| ConfigError(e.to_string()))?;
        let counters = match ctx.deps {
            None => Counters::Trial,
            Some(deps) if config.policy == "local" => Counters::Local(deps.state.get()),
            Some(deps) => {
                Counters::Remote(deps.state.get::<Servers>().of(&value, &deps.background)?)
            }
        };
        Ok(Self {
            source: Source::compile(&config.key, &config.key_type),
            name: Name::of(ctx.owner, &value, None),
            pace: Pace { rate: config.rate, burst: config.burst },
            nodelay: config.nodelay,
            refusal: Refusal::compile(config.rejected_code, config.rejected_msg)?,
            degrade: config.allow_degradation,
            counters,
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut name = Vec::new();
        self.name.write_or_addr(&self.source, exchange, &mut name);
        let turn = match &self.counters {
            Counters::Trial => return Ok(Flow::Continue),
            Counters::Local(buckets) => buckets.drop_in(&name, now_ns(), self.pace),
            Counters::Remote(redis) => match self.pace.ask(redis, &name).await {
                Ok(turn) => turn,
                Err(error) => {
                    error!(route = exchange.route_id(), %error, "The Redis of limit-req does not answer.");
                    return Ok(match self.degrade {
                        true => Flow::Continue,
                        false => Flow::Respond(bare(StatusCode::INTERNAL_SERVER_ERROR)),
                    });
                }
            },
        };
        match turn {
            None => Ok(Flow::Respond(self.refusal.response())),
            Some(delay) => {
                if !self.nodelay && delay >= DELAY_MIN {
                    tokio::time::sleep(delay).await;
                }
                Ok(Flow::Continue)
            }
        }
    }
}

/// The plugin's configuration.
#[derive(Deserialize)]
struct Config {
    rate: f64,
    burst: f64,
    key: String,
    key_type: String,
    policy: String,
    rejected_code: u16,
    rejected_msg: Option<String>,
    nodelay: bool,
    allow_degradation: bool,
}

/// How fast a bucket drains, and how much it holds, in requests.
#[derive(Clone, Copy)]
struct Pace {
    rate: f64,
    burst: f64,
}

/// How long a request waits for its turn; `None`: it gets none.
type Turn = Option<Duration>;

impl Pace {
    /// What a request finds in a bucket that is empty at `empty_ns`: its turn, and when the bucket
    /// is empty with it.
    ///
    /// The first request after a while finds an empty bucket and leaves none of itself in it.
    #[expect(clippy::cast_precision_loss, reason = "shares of requests")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    fn drop_in(self, empty_ns: u64, now_ns: u64) -> Option<(Duration, u64)> {
        let filled_s = match empty_ns.checked_sub(now_ns) {
            Some(ahead) => ahead as f64 / 1e9,
            None => -((now_ns - empty_ns) as f64) / 1e9,
        };
        let level = (filled_s * self.rate + 1.0).max(0.0);
        // Nanoseconds are not exact: what is over by less than a millionth is not over.
        if level > self.burst + 1e-6 {
            return None;
        }
        let delay_s = level / self.rate;
        let delay = Duration::try_from_secs_f64(delay_s).unwrap_or(DELAY_MAX).min(DELAY_MAX);
        let empty_ns = now_ns.saturating_add((delay_s * 1e9) as u64);
        Some((delay, empty_ns))
    }

    async fn ask(self, redis: &Arc<Redis>, name: &[u8]) -> Result<Turn, RedisFailure> {
        let now = sluicegate_gateway::core::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let keep_s = (self.burst / self.rate).ceil() + 1.0;
        let args = vec![
            (self.rate * 1000.0).to_string(),
            (self.burst * 1000.0).to_string(),
            now.as_millis().to_string(),
            keep_s.to_string(),
        ];
        let answer = redis.ask(BUCKET.on([b"limit_req:", name].concat(), args)).await?;
        let [accepted, level] = answer[..] else { return Err(RedisFailure::Strange) };
        if accepted.count() == 0 {
            return Ok(None);
        }
        let delay_s = level.number() / 1000.0 / self.rate;
        Ok(Some(Duration::try_from_secs_f64(delay_s).unwrap_or(DELAY_MAX).min(DELAY_MAX)))
    }
}

/// The buckets of every `limit-req` of a gateway.
#[derive(Default)]
struct Buckets(Store<Bucket>);

impl Buckets {
    fn drop_in(&self, name: &[u8], now_ns: u64, pace: Pace) -> Turn {
        self.0.count(name, now_ns / 1_000_000, |bucket| bucket.drop_in(now_ns, pace))
    }
}

/// One bucket: the moment at which it is empty.
#[derive(Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// `None`: it is retired.
    fn drop_in(&self, now_ns: u64, pace: Pace) -> Option<Turn> {
        let mut empty_ns = self.0.load(Ordering::Acquire);
        loop {
            if empty_ns == RETIRED {
                return None;
            }
            let Some((delay, then)) = pace.drop_in(empty_ns, now_ns) else { return Some(None) };
            let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
            match self.0.compare_exchange_weak(empty_ns, then.min(RETIRED - 1), set, get) {
                Ok(_) => return Some(Some(delay)),
                Err(current) => empty_ns = current,
            }
        }
    }
}

impl Counter for Bucket {
    fn retire(&self, now_ms: u64, forced: bool) -> bool {
        let empty_ns = self.0.load(Ordering::Acquire);
        // One request more than empty is kept for as long as the slowest useful rates need.
        let over = empty_ns / 1_000_000 + IDLE_MS < now_ms;
        let (set, get) = (Ordering::AcqRel, Ordering::Relaxed);
        (over || forced) && self.0.compare_exchange(empty_ns, RETIRED, set, get).is_ok()
    }

    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
        thread_local!(static REMEMBERED: RefCell<Remembered<Bucket>> = RefCell::default());
        &REMEMBERED
    }
}

/// As [`now_ms`], finer.
fn now_ns() -> u64 {
    static START: std::sync::OnceLock<(Instant, u64)> = std::sync::OnceLock::new();
    let (start, ns) = START.get_or_init(|| (Instant::now(), now_ms().saturating_mul(1_000_000)));
    ns.saturating_add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Drops a request into a bucket: thousandths of requests it drains a second, and that it holds;
/// milliseconds since 1970; seconds to keep it. Answers whether it fits, and the level with it.
static BUCKET: Code = Code::new(BUCKET_TEXT, || Script::new(BUCKET_TEXT));
const BUCKET_TEXT: &str = "\
local now = tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'excess', 'last')
local level = 0
if kept[1] and kept[2] then
  local passed = math.abs(now - tonumber(kept[2])) / 1000
  level = math.max(0, tonumber(kept[1]) + 1000 - passed * tonumber(ARGV[1]))
  if level > tonumber(ARGV[2]) then return {0, tostring(level)} end
end
redis.call('HSET', KEYS[1], 'excess', tostring(level), 'last', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {1, tostring(level)}";

const RETIRED: u64 = u64::MAX;
/// Shorter, a request need not wait.
const DELAY_MIN: Duration = Duration::from_millis(1);
/// Longer than anybody waits for an answer.
const DELAY_MAX: Duration = Duration::from_secs(3600);
/// How long a bucket is kept that nobody drops anything into.
const IDLE_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::get;
    use sluicegate_testkit::{InProcess, Origin, PluginTest, Redis as Server};

    use super::*;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<LimitReq>::check_schema(&json!({"rate": 1, "burst": 0, "key": "remote_addr"}));
    }

    #[test]
    fn a_bucket_drains_at_its_rate_and_holds_its_burst() {
        let buckets = Buckets::default();
        let at = |ms: u64| 1_000_000_000_000 + ms * 1_000_000;
        let wait = |ms| Some(Duration::from_millis(ms));
        for (rate, burst, requests) in [
            // Ten a second: one each 100 ms, the first at once.
            (
                10.0,
                0.0,
                vec![(0, wait(0)), (50, None), (100, wait(0)), (150, None), (250, wait(0))],
            ),
            (
                10.0,
                2.0,
                vec![(0, wait(0)), (0, wait(100)), (0, wait(200)), (0, None), (100, wait(200))],
            ),
            // An idle bucket is empty, not less.
            (10.0, 1.0, vec![(0, wait(0)), (10_000, wait(0)), (10_000, wait(100)), (10_000, None)]),
        ] {
            let name = format!("{rate} {burst} {}", requests.len());
            let pace = Pace { rate, burst };
            for (ms, expected) in requests {
                let turn = buckets.drop_in(name.as_bytes(), at(ms), pace);
                let rounded =
                    turn.map(|d| Duration::from_millis((d.as_secs_f64() * 1e3).round() as u64));
                assert_eq!(rounded, expected, "{name} at {ms}");
            }
        }
    }

    fn gateway(config: &Value, origin: &Origin) -> InProcess {
        let mut registry = Registry::default();
        registry.add::<LimitReq>();
        let route = json!({
            "uri": "/*",
            "plugins": {LimitReq::NAME: config},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        });
        InProcess::start(registry, vec![(Kind::Routes, "r", route)])
    }

    #[test]
    fn requests_beyond_the_burst_are_refused_and_those_within_it_wait() {
        let origin = Origin::text("through");
        let slow = json!({"rate": 0.01, "burst": 1, "key": "remote_addr", "nodelay": true,
            "rejected_code": 429, "rejected_msg": "slowly"});
        let gate = gateway(&slow, &origin);
        let statuses = [(); 3].map(|()| get(gate.addr, "/").status);
        assert_eq!(statuses, [200, 200, 429]);
        assert_eq!(get(gate.addr, "/").json(), json!({"error_msg": "slowly"}));
        let gate = gateway(&json!({"rate": 2, "burst": 1, "key": "remote_addr"}), &origin);
        let began = Instant::now();
        assert_eq!([(); 2].map(|()| get(gate.addr, "/").status), [200, 200]);
        assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    }

    #[test]
    fn a_redis_counts_for_all_gateways_that_ask_it() {
        let (Some(one), Some(cluster)) = (Server::start(&[]), Server::cluster(3)) else { return };
        let origin = Origin::text("through");
        for (redis, policy) in [(&one, "redis"), (&cluster, "redis-cluster")] {
            let config = json!({
                "rate": 0.01, "burst": 1, "key": "remote_addr", "nodelay": true, "policy": policy,
                "redis_host": "127.0.0.1", "redis_port": redis.addr(0).port(),
                "redis_cluster_name": "c", "redis_cluster_nodes": redis.nodes(),
            });
            let gates = [gateway(&config, &origin), gateway(&config, &origin)];
            let statuses = [0, 1, 0, 1].map(|at| get(gates[at].addr, "/").status);
            assert_eq!(statuses, [200, 200, 503, 503], "{policy}");
        }
    }
}

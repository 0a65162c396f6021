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
            Some(deps) => Counters::Remote(deps.state.get::<Servers>().of(&value, deps)?),
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
            Counters::Remote(redis) => match self.pace.ask(redis, &name, wall_ms()).await {
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

    /// How long after it is empty a bucket still tells from a new one.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    fn turn_ns(self) -> u64 {
        (1e9 / self.rate).ceil() as u64
    }

    async fn ask(
        self,
        redis: &Arc<Redis>,
        name: &[u8],
        now_ms: u128,
    ) -> Result<Turn, RedisFailure> {
        // A bucket that is full is empty after `burst / rate`, and forgives one request more after
        // `1 / rate`: forgotten before that, it would let one through too early.
        // Differs: APISIX forgets it after `burst / rate`.
        let keep_s = (((self.burst + 1.0) / self.rate).ceil() + 1.0).min(KEEP_MAX_S);
        let args = vec![
            (self.rate * 1000.0).to_string(),
            (self.burst * 1000.0).to_string(),
            now_ms.to_string(),
            keep_s.to_string(),
        ];
        let ask = BUCKET.on([b"limit_req:", name].concat(), args);
        let answer = redis.ask(ask, redis.deadline()).await?;
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

/// One bucket.
#[derive(Default)]
struct Bucket {
    /// The moment at which it is empty.
    empty_ns: AtomicU64,
    /// For how long it then still counts: see [`Pace::turn_ns`].
    turn_ns: AtomicU64,
}

impl Bucket {
    /// `None`: it is retired.
    fn drop_in(&self, now_ns: u64, pace: Pace) -> Option<Turn> {
        // All requests of a bucket have one pace: another one has another name.
        self.turn_ns.store(pace.turn_ns(), Ordering::Relaxed);
        let mut empty_ns = self.empty_ns.load(Ordering::Acquire);
        loop {
            if empty_ns == RETIRED {
                return None;
            }
            let Some((delay, then)) = pace.drop_in(empty_ns, now_ns) else { return Some(None) };
            let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
            match self.empty_ns.compare_exchange_weak(empty_ns, then.min(RETIRED - 1), set, get) {
                Ok(_) => return Some(Some(delay)),
                Err(current) => empty_ns = current,
            }
        }
    }
}

impl Counter for Bucket {
    fn retire(&self, now_ms: u64, forced: bool) -> bool {
        let empty_ns = self.empty_ns.load(Ordering::Acquire);
        let turn_ns = self.turn_ns.load(Ordering::Relaxed);
        let over = empty_ns.saturating_add(turn_ns) / 1_000_000 < now_ms;
        let (set, get) = (Ordering::AcqRel, Ordering::Relaxed);
        (over || forced) && self.empty_ns.compare_exchange(empty_ns, RETIRED, set, get).is_ok()
    }

    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
        thread_local!(static REMEMBERED: RefCell<Remembered<Bucket>> = RefCell::default());
        &REMEMBERED
    }
}

/// Milliseconds since 1970 by the clock that gateways more or less agree on.
fn wall_ms() -> u128 {
    let now = sluicegate_gateway::core::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_millis()
}

/// As [`now_ms`], finer.
fn now_ns() -> u64 {
    static START: std::sync::OnceLock<(Instant, u64)> = std::sync::OnceLock::new();
    let (start, ns) = START.get_or_init(|| (Instant::now(), now_ms().saturating_mul(1_000_000)));
    ns.saturating_add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Drops a request into a bucket: thousandths of requests it drains a second, and that it holds;
/// milliseconds since 1970; seconds to keep it. Answers whether it fits, and the level with it.
///
/// Gateways' clocks may differ: time that seems to go back drains nothing, and does not turn the
/// bucket's own moment back, which would drain it twice. (Differs: APISIX drains by it both ways.)
static BUCKET: Code = Code::new(BUCKET_TEXT, || Script::new(BUCKET_TEXT));
const BUCKET_TEXT: &str = "\
local now = tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'excess', 'last')
local level = 0
if kept[1] and kept[2] then
  local passed = math.max(0, now - tonumber(kept[2])) / 1000
  now = math.max(now, tonumber(kept[2]))
  level = math.max(0, tonumber(kept[1]) + 1000 - passed * tonumber(ARGV[1]))
  if level > tonumber(ARGV[2]) then return {0, tostring(level)} end
end
redis.call('HSET', KEYS[1], 'excess', tostring(level), 'last', string.format('%.0f', now))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {1, tostring(level)}";

const RETIRED: u64 = u64::MAX;
/// Shorter, a request need not wait.
const DELAY_MIN: Duration = Duration::from_millis(1);
/// Longer than anybody waits for an answer.
const DELAY_MAX: Duration = Duration::from_secs(3600);
/// The longest time a Redis is asked to keep a bucket: some thirty years.
const KEEP_MAX_S: f64 = 1e9;

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

    #[test]
    fn a_bucket_is_kept_until_a_new_one_would_let_in_no_more() {
        for (rate, burst, dropped) in [(0.01, 0.0, 1), (0.01, 2.0, 3), (10.0, 0.0, 1)] {
            let (bucket, pace) = (Bucket::default(), Pace { rate, burst });
            let at = |ms: u64| (1_000_000_000 + ms) * 1_000_000;
            for _ in 0..dropped {
                assert!(bucket.drop_in(at(0), pace).flatten().is_some(), "{rate} {burst}");
            }
            assert_eq!(bucket.drop_in(at(0), pace), Some(None), "{rate} {burst}: it is full");
            // Empty after the burst, and with a whole request's room after one turn more.
            let turns = f64::from(dropped) / rate * 1e3;
            let over_ms = turns.ceil() as u64;
            assert!(!bucket.retire(1_000_000_000 + over_ms - 2, false), "{rate} {burst}");
            assert!(bucket.retire(1_000_000_000 + over_ms + 2, false), "{rate} {burst}");
        }
    }

    /// Buckets on this Redis; `None`: there is no Redis.
    fn there() -> Option<(Server, tokio::runtime::Runtime, Arc<Redis>)> {
        let server = Server::start(&[])?;
        let background = tokio::runtime::Runtime::new().expect("threads can be started");
        let config = json!({"policy": "redis", "redis_host": "127.0.0.1",
            "redis_port": server.addr(0).port()});
        let redis = Servers::default().open(&config, background.handle(), None);
        Some((server, background, redis.expect("it is a configuration")))
    }

    #[test]
    fn a_redis_keeps_a_bucket_until_a_new_one_would_let_in_no_more() {
        let Some((server, background, redis)) = there() else { return };
        for (rate, burst, seconds) in
            [(0.01, 0.0, 101), (0.01, 2.0, 301), (10.0, 0.0, 2), (1e-300, 0.0, 1_000_000_000)]
        {
            let (pace, name) = (Pace { rate, burst }, format!("{rate}-{burst}"));
            let turn = background.block_on(pace.ask(&redis, name.as_bytes(), wall_ms()));
            assert!(turn.is_ok_and(|turn| turn.is_some()), "{name}");
            let ttl = server.command(0, &format!("TTL limit_req:{name}"));
            let ttl: u64 = ttl.trim_start_matches(':').parse().expect("it is a number");
            assert!((seconds - 1..=seconds).contains(&ttl), "{name}: {ttl}");
        }
    }

    #[test]
    fn gateways_whose_clocks_differ_drain_a_bucket_no_faster_than_time_passes() {
        let Some((_server, background, redis)) = there() else { return };
        // One a second and one beside it; the second gateway's clock is ten seconds behind.
        let (pace, now) = (Pace { rate: 1.0, burst: 1.0 }, wall_ms());
        let behind = now - 10_000;
        for (at, clock, turn) in [
            (0, now, true),
            (1, behind, true),
            (2, behind, false),
            (3, now, false),
            (4, behind + 20, false),
            (5, now + 20, false),
            (6, now + 1000, true),
            (7, behind + 1000, false),
            (8, now + 1000, false),
        ] {
            let got = background.block_on(pace.ask(&redis, b"skew", clock));
            assert_eq!(got.expect("it answers").is_some(), turn, "request {at}");
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
    fn what_a_redis_that_is_gone_cannot_count_is_let_through_where_that_is_allowed() {
        let origin = Origin::text("through");
        for (degrade, status) in [(false, 500), (true, 200)] {
            let config = json!({
                "rate": 0.01, "burst": 0, "key": "remote_addr", "policy": "redis",
                "redis_host": "127.0.0.1", "redis_port": 1, "allow_degradation": degrade,
            });
            let gate = gateway(&config, &origin);
            assert_eq!([(); 2].map(|()| get(gate.addr, "/").status), [status; 2], "{degrade}");
        }
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

//! `limit-conn`: so many requests under way at once.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/limit-conn/>
//!
//! A request beyond `conn` and within `burst` waits first; one beyond both is refused. A request is
//! under way until its answer is sent, or its client is gone. With `policy: local` a gateway counts
//! by itself, exactly over all its cores; with the others a Redis counts for all gateways that ask.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;
use std::time::{Duration, UNIX_EPOCH};

use ::redis::Script;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use tracing::error;

use crate::limit::amount::Amount;
use crate::limit::key::{Name, Source};
use crate::limit::redis::{Code, Redis, RedisFailure, Servers};
use crate::limit::store::{Counter, Remembered, Store};
use crate::limit::{Refusal, bare, now_ms, schema};

/// The plugin, compiled.
pub struct LimitConn {
    rules: Box<[Rule]>,
    /// Only those of `rules` apply that find a variable of their key.
    optional: bool,
    name: Name,
    delay_s: f64,
    refusal: Refusal,
    degrade: bool,
    counters: Counters,
}

struct Rule {
    conn: Amount,
    burst: Amount,
    source: Source,
}

enum Counters {
    Trial,
    Local(Arc<Store<Conns>>),
    Remote { redis: Arc<Redis>, key_ttl: u64 },
}

impl Plugin for LimitConn {
    const NAME: &'static str = "limit-conn";
    const PRIORITY: i32 = 1003;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["redis_password"];
    type Config = Value;

    fn schema() -> Value {
        let conn =
            || json!({"oneOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]});
        let burst = || json!({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]});
        json!({
            "type": "object",
            "properties": {
                "conn": conn(),
                "burst": burst(),
                "default_conn_delay": {"type": "number", "exclusiveMinimum": 0},
                "only_use_default_delay": {"type": "boolean", "default": false},
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
                "allow_degradation": {"type": "boolean", "default": false},
                "rules": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"conn": conn(), "burst": burst(), "key": {"type": "string"}},
                        "required": ["conn", "burst", "key"],
                    },
                },
            },
            "oneOf": [
                {"required": ["conn", "burst", "default_conn_delay", "key"]},
                {"required": ["default_conn_delay", "rules"]},
            ],
            "if": schema::policy_is("redis"),
            "then": schema::redis(Some(KEY_TTL_S)),
            "else": {
                "if": schema::policy_is("redis-cluster"),
                "then": schema::redis_cluster(Some(KEY_TTL_S)),
            },
            "encrypt_fields": ["redis_password"],
        })
    }

    fn compile(value: Value, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Self::of(value, ctx, None)
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.limit(exchange).await
    }
}

impl LimitConn {
    /// Compiles a configuration; `action` is its place among the actions of `workflow`, if it
    /// stands there.
    pub(crate) fn of(
        value: Value,
        ctx: &CompileCtx<'_>,
        action: Option<usize>,
    ) -> Result<Self, ConfigError> {
        let config = Config::deserialize(&value).map_err(|e| ConfigError(e.to_string()))?;
        let (rules, optional) = match &config.rules {
            Some(rules) => {
                let rule = |rule: &RuleConfig| Rule {
                    conn: Amount::compile(&rule.conn, 1),
                    burst: Amount::compile(&rule.burst, 0),
                    source: Source::compile(&rule.key, "var_combination"),
                };
                (rules.iter().map(rule).collect(), true)
            }
            None => {
                let rule = Rule {
                    conn: Amount::compile(&config.conn, 1),
                    burst: Amount::compile(&config.burst, 0),
                    source: Source::compile(&config.key, &config.key_type),
                };
                (Box::from([rule]), false)
            }
        };
        let counters = match ctx.deps {
            None => Counters::Trial,
            Some(deps) if config.policy == "local" => Counters::Local(deps.state.get()),
            Some(deps) => Counters::Remote {
                redis: deps.state.get::<Servers>().of(&value, deps)?,
                key_ttl: config.key_ttl.unwrap_or(KEY_TTL_S).into(),
            },
        };
        Ok(Self {
            rules,
            optional,
            name: Name::of(ctx.owner, &value, action),
            delay_s: config.default_conn_delay,
            refusal: Refusal::compile(config.rejected_code, config.rejected_msg)?,
            degrade: config.allow_degradation,
            counters,
        })
    }

    /// Counts a request as under way, and answers it when it is beyond a limit.
    pub(crate) async fn limit(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut applied = false;
        for rule in &self.rules {
            let mut name = Vec::new();
            if !self.optional {
                self.name.write_or_addr(&rule.source, exchange, &mut name);
            } else if !self.name.write(&rule.source, exchange, &mut name) {
                continue;
            }
            let (conn, burst) = match (rule.conn.of(exchange), rule.burst.of(exchange)) {
                (Ok(conn), Ok(burst)) => (conn, burst),
                // As in APISIX, one of several rules does not apply when it cannot be made out.
                _ if self.optional => continue,
                (Err(error), _) | (_, Err(error)) => {
                    error!(route = exchange.route_id(), %error, "A limit of limit-conn cannot be made out for a request.");
                    return Ok(self.without_limit());
                }
            };
            applied = true;
            let limit = conn.saturating_add(burst);
            let under_way = match &self.counters {
                Counters::Trial => continue,
                Counters::Local(store) => enter_here(exchange, store, &name, limit),
                Counters::Remote { redis, key_ttl } => {
                    match enter_there(exchange, redis, &name, limit, *key_ttl).await {
                        Ok(under_way) => under_way,
                        Err(error) => {
                            error!(route = exchange.route_id(), %error, "The Redis of limit-conn does not answer.");
                            return Ok(self.without_limit());
                        }
                    }
                }
            };
            let Some(under_way) = under_way else {
                return Ok(Flow::Respond(self.refusal.response()));
            };
            if under_way > conn {
                tokio::time::sleep(self.delay(under_way, conn)).await;
            }
        }
        if applied {
            return Ok(Flow::Continue);
        }
        error!(route = exchange.route_id(), "No rule of limit-conn applies to a request.");
        Ok(self.without_limit())
    }

    /// How long a request beyond `conn` waits.
    #[expect(clippy::cast_precision_loss, reason = "a share of a limit")]
    fn delay(&self, under_way: u64, conn: u64) -> Duration {
        let times = (under_way.saturating_sub(1) / conn.max(1)) as f64;
        Duration::try_from_secs_f64(self.delay_s * times).unwrap_or(DELAY_MAX).min(DELAY_MAX)
    }

    fn without_limit(&self) -> Flow {
        match self.degrade {
            true => Flow::Continue,
            false => Flow::Respond(bare(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }
}

/// The plugin's configuration.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    conn: Value,
    #[serde(default)]
    burst: Value,
    default_conn_delay: f64,
    #[serde(default)]
    key: String,
    key_type: String,
    policy: String,
    rejected_code: u16,
    rejected_msg: Option<String>,
    allow_degradation: bool,
    rules: Option<Vec<RuleConfig>>,
    key_ttl: Option<u32>,
}

#[derive(Deserialize)]
struct RuleConfig {
    conn: Value,
    burst: Value,
    key: String,
}

/// Requests of one name that are under way.
#[derive(Default)]
struct Conns(AtomicU64);

impl Conns {
    /// How many there are with one more; `Some(None)`: there is no room for it, `None`: the counter
    /// is retired.
    fn enter(&self, limit: u64) -> Option<Option<u64>> {
        let mut count = self.0.load(Ordering::Acquire);
        loop {
            if count == RETIRED {
                return None;
            }
            if count >= limit {
                return Some(None);
            }
            let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
            match self.0.compare_exchange_weak(count, count + 1, set, get) {
                Ok(_) => return Some(Some(count + 1)),
                Err(current) => count = current,
            }
        }
    }
}

impl Counter for Conns {
    /// Invariant: one that counts requests is never forgotten, or more would come in.
    fn retire(&self, _: u64, _: bool) -> bool {
        self.0.compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
        thread_local!(static REMEMBERED: RefCell<Remembered<Conns>> = RefCell::default());
        &REMEMBERED
    }
}

/// A request's places among those under way. They are given back when it is over, however it ends.
#[derive(Default)]
struct Places(Vec<Place>);

enum Place {
    Here(Arc<Conns>),
    There { redis: Arc<Redis>, key: Vec<u8>, id: String },
}

impl Place {
    /// There is nothing to give back.
    fn was_not_taken(&mut self) {
        if let Self::There { id, .. } = self {
            id.clear();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self {
            Self::There { id, .. } if id.is_empty() => {}
            Self::Here(conns) => {
                conns.0.fetch_sub(1, Ordering::AcqRel);
            }
            Self::There { redis, key, id } => {
                let (redis, key) = (redis.clone(), std::mem::take(key));
                let ask = LEAVE.on(key, vec![std::mem::take(id)]);
                redis.background().clone().spawn(async move {
                    if let Err(error) = redis.ask_here(&ask, redis.deadline()).await {
                        error!(%error, "The Redis of limit-conn was not told of the end of a request; it counts until its key_ttl is over.");
                    }
                });
            }
        }
    }
}

fn enter_here(
    exchange: &mut Exchange,
    store: &Store<Conns>,
    name: &[u8],
    limit: u64,
) -> Option<u64> {
    let (conns, under_way) = store.count(name, now_ms(), |conns| {
        conns.enter(limit).map(|under_way| (conns.clone(), under_way))
    });
    let under_way = under_way?;
    exchange.notes.get_or_default::<Places>().0.push(Place::Here(conns));
    Some(under_way)
}

async fn enter_there(
    exchange: &mut Exchange,
    redis: &Arc<Redis>,
    name: &[u8],
    limit: u64,
    key_ttl: u64,
) -> Result<Option<u64>, RedisFailure> {
    let key = [b"limit_conn:", name].concat();
    // A request may stand in one set by several rules.
    let places = exchange.notes.get_or_default::<Places>().0.len();
    let id = format!("{}-{places}", exchange.request_id());
    let now = sluicegate_gateway::core::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let args = vec![limit.to_string(), key_ttl.to_string(), now.as_secs().to_string(), id.clone()];
    // Whether or not the answer comes in time, the place is given back.
    let mut place = Place::There { redis: redis.clone(), key: key.clone(), id };
    let answer = redis.ask(ENTER.on(key, args), redis.deadline()).await?;
    let [accepted, count] = answer[..] else { return Err(RedisFailure::Strange) };
    if accepted.count() == 0 {
        place.was_not_taken();
        return Ok(None);
    }
    exchange.notes.get_or_default::<Places>().0.push(place);
    Ok(Some(count.count()))
}

/// Enters a request into a set: limit, seconds until it is forgotten, seconds since 1970, its id.
/// Answers whether there was room, and how many there are. One that is in the set already (asked for
/// again, after the first answer was lost on its way) keeps its place.
static ENTER: Code = Code::new(ENTER_TEXT, || Script::new(ENTER_TEXT));
const ENTER_TEXT: &str = "\
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[3])
local under_way = redis.call('ZCARD', KEYS[1])
if redis.call('ZSCORE', KEYS[1], ARGV[4]) then return {1, under_way} end
if under_way >= tonumber(ARGV[1]) then return {0, under_way} end
redis.call('ZADD', KEYS[1], tonumber(ARGV[3]) + tonumber(ARGV[2]), ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {1, under_way + 1}";

/// Takes a request out of a set: its id.
static LEAVE: Code = Code::new(LEAVE_TEXT, || Script::new(LEAVE_TEXT));
const LEAVE_TEXT: &str = "return redis.call('ZREM', KEYS[1], ARGV[1])";

const RETIRED: u64 = u64::MAX;
/// Seconds after which a Redis forgets a request whose gateway never said that it is over.
const KEY_TTL_S: u32 = 3600;
/// Longer than anybody waits for an answer.
const DELAY_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::get;
    use sluicegate_testkit::{Answer, InProcess, Origin, PluginTest, Redis as Server, wait};

    use super::*;
    use crate::limit::redis::Word;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<LimitConn>::check_schema(
            &json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}),
        );
    }

    fn gateway(config: &Value, origin: &Origin) -> InProcess {
        let mut registry = Registry::default();
        registry.add::<LimitConn>();
        let route = json!({
            "uri": "/*",
            "plugins": {LimitConn::NAME: config},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        });
        InProcess::start(registry, vec![(Kind::Routes, "r", route)])
    }

    fn slow_origin() -> Origin {
        Origin::start(|_| {
            std::thread::sleep(Duration::from_millis(400));
            Answer::text("through")
        })
    }

    /// The statuses of so many requests at once, sorted.
    fn at_once(gates: &[&InProcess], count: usize) -> Vec<u16> {
        let mut statuses: Vec<u16> = std::thread::scope(|scope| {
            let ask = |at: usize| {
                let addr = gates[at % gates.len()].addr;
                scope.spawn(move || get(addr, "/").status)
            };
            let asked: Vec<_> = (0..count).map(ask).collect();
            asked.into_iter().map(|thread| thread.join().unwrap_or(0)).collect()
        });
        statuses.sort_unstable();
        statuses
    }

    #[test]
    fn requests_beyond_conn_and_burst_are_refused_until_others_are_over() {
        let origin = slow_origin();
        let config = json!({"conn": 1, "burst": 1, "default_conn_delay": 0.1, "key": "remote_addr",
            "rejected_code": 429});
        let gate = gateway(&config, &origin);
        for _ in 0..2 {
            assert_eq!(at_once(&[&gate], 4), [200, 200, 429, 429]);
            let free = || (get(gate.addr, "/").status == 200).then_some(());
            assert!(wait::within(wait::PATIENCE, free).is_some());
        }
    }

    #[test]
    fn a_client_that_goes_away_leaves_its_place() {
        let origin = slow_origin();
        let config =
            json!({"conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"});
        let gate = gateway(&config, &origin);
        for _ in 0..5 {
            let mut client = sluicegate_testkit::Client::connect(gate.addr);
            client.send(sluicegate_testkit::client::request_bytes("GET", "/", &[], b""));
            std::thread::sleep(Duration::from_millis(20));
        }
        let free = || (get(gate.addr, "/").status == 200).then_some(());
        assert!(wait::within(wait::PATIENCE, free).is_some());
    }

    #[test]
    fn what_a_redis_that_is_gone_cannot_count_is_let_through_where_that_is_allowed() {
        let origin = Origin::text("through");
        for (degrade, status) in [(false, 500), (true, 200)] {
            let config = json!({
                "conn": 1, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr",
                "policy": "redis", "redis_host": "127.0.0.1", "redis_port": 1,
                "allow_degradation": degrade,
            });
            let gate = gateway(&config, &origin);
            assert_eq!([(); 2].map(|()| get(gate.addr, "/").status), [status; 2], "{degrade}");
        }
    }

    #[test]
    fn each_rule_that_finds_its_key_limits_by_itself() {
        let origin = slow_origin();
        let rule = |key: &str, conn: Value| json!({"key": key, "conn": conn, "burst": 0});
        let config = json!({"default_conn_delay": 0.1, "rules": [
            rule("$http_user", json!(1)),
            rule("$http_team", json!("${http_x_conn ?? 2}")),
        ]});
        let gate = gateway(&config, &origin);
        let ask = |headers: &[(&str, &str)]| {
            let mut client = sluicegate_testkit::Client::connect(gate.addr);
            client.send(sluicegate_testkit::client::request_bytes("GET", "/", headers, b""));
            client.response().status
        };
        for (fields, statuses) in [
            (vec![vec![("user", "a")], vec![("user", "a")]], [200, 503]),
            (vec![vec![("user", "a")], vec![("user", "b")]], [200, 200]),
            (vec![vec![("team", "t")]; 2], [200, 200]),
            (vec![vec![("team", "t"), ("x-conn", "1")]; 2], [200, 503]),
            // One of the two rules has room for one only.
            (vec![vec![("team", "t"), ("user", "c")]; 2], [200, 503]),
        ] {
            let mut got: Vec<u16> = std::thread::scope(|scope| {
                let asked: Vec<_> =
                    fields.iter().map(|fields| scope.spawn(|| ask(fields))).collect();
                asked.into_iter().map(|thread| thread.join().unwrap_or(0)).collect()
            });
            got.sort_unstable();
            assert_eq!(got, statuses, "{fields:?}");
            // Places are given back when answers are sent, which may be seen a little later.
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(ask(&[]), 500, "no rule applies");
    }

    #[test]
    fn a_request_that_asks_twice_has_one_place_on_a_redis() {
        let Some(server) = Server::start(&[]) else { return };
        let background = tokio::runtime::Runtime::new().expect("threads can be started");
        let config = json!({"policy": "redis", "redis_host": "127.0.0.1",
            "redis_port": server.addr(0).port()});
        let redis = Servers::default().open(&config, background.handle(), None);
        let redis = redis.expect("it is a configuration");
        let ask = |code: &'static Code, args: &[&str]| {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            let ask = code.on(b"k".to_vec(), args);
            let answer = background.block_on(redis.ask_here(&ask, redis.deadline()));
            let answer = answer.expect("it answers");
            answer.into_iter().map(Word::count).collect::<Vec<_>>()
        };
        let enter = |id: &str| ask(&ENTER, &["2", "3600", "1000", id]);
        assert_eq!(enter("a"), [1, 1]);
        assert_eq!(enter("a"), [1, 1], "the answer to the first try was lost");
        assert_eq!(enter("b"), [1, 2]);
        assert_eq!(enter("b"), [1, 2], "also where there is no more room");
        assert_eq!(enter("c"), [0, 2]);
        ask(&LEAVE, &["a"]);
        assert_eq!(enter("c"), [1, 2]);
    }

    #[test]
    fn a_redis_counts_for_all_gateways_that_ask_it() {
        let (Some(one), Some(cluster)) = (Server::start(&[]), Server::cluster(3)) else { return };
        let origin = slow_origin();
        for (redis, policy) in [(&one, "redis"), (&cluster, "redis-cluster")] {
            let config = json!({
                "conn": 2, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr",
                "policy": policy, "redis_host": "127.0.0.1", "redis_port": redis.addr(0).port(),
                "redis_cluster_name": "c", "redis_cluster_nodes": redis.nodes(),
            });
            let gates = [&gateway(&config, &origin), &gateway(&config, &origin)];
            assert_eq!(at_once(&gates, 4), [200, 200, 503, 503], "{policy}");
            let free = || (at_once(&gates, 2) == [200, 200]).then_some(());
            assert!(wait::within(wait::PATIENCE, free).is_some(), "{policy}");
        }
    }
}

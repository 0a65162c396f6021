//! `traffic-split`: shares of the requests for other upstreams.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/traffic-split/>
//!
//! The first rule that matches says which upstreams take turns, by their weights. A share without an
//! upstream goes to the route's own.

use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::Expr;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_gateway::upstream::Upstream;
use sluicegate_gateway::upstream::balance::RoundRobin;
use tracing::error;

/// The plugin, compiled.
pub struct TrafficSplit {
    rules: Box<[Rule]>,
}

struct Rule {
    /// One of them must hold; none: every request matches.
    conditions: Box<[Expr]>,
    /// Whose turn it is, or what keeps the rule from working.
    shares: Result<Shares, Missing>,
}

struct Shares {
    turns: RoundRobin,
    /// `None`: the route's own.
    upstreams: Box<[Option<Arc<Upstream>>]>,
}

/// The id of an upstream that does not exist or cannot be used.
struct Missing {
    id: Box<str>,
    why: String,
}

impl Plugin for TrafficSplit {
    const NAME: &'static str = "traffic-split";
    const PRIORITY: i32 = 966;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let upstream = sluicegate_model::kind::Kind::Upstreams.schema_json();
        let id = upstream.pointer("/properties/id").cloned();
        json!({
            "type": "object",
            "properties": {
                "rules": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "match": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "properties": {"vars": {"type": "array"}},
                                },
                            },
                            "weighted_upstreams": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "properties": {
                                        "upstream_id": id.unwrap_or_else(|| json!({})),
                                        "upstream": upstream,
                                        "weight": {"type": "integer", "default": 1, "minimum": 0},
                                    },
                                },
                                "default": [{"weight": 1}],
                                "minItems": 1,
                                "maxItems": 20,
                            },
                        },
                    },
                },
            },
        })
    }

    fn upstream_ids(config: &Value) -> Vec<String> {
        let rules = config.get("rules").and_then(Value::as_array).into_iter().flatten();
        let shares = rules.filter_map(|rule| rule.get("weighted_upstreams")?.as_array());
        shares.flatten().filter_map(|share| id(share.get("upstream_id")?)).collect()
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let rule = |(at, rule): (usize, RuleConfig)| {
            let condition = |condition: &Value| {
                let vars = condition.get("vars").unwrap_or(&Value::Null);
                Expr::compile(vars).map_err(|error| {
                    ConfigError(format!("failed to validate the 'vars' expression: {error}"))
                })
            };
            let conditions = rule.r#match.iter().map(condition).collect::<Result<_, _>>()?;
            Ok(Rule { conditions, shares: rule.shares(at, ctx)? })
        };
        let rules = config.rules.into_iter().enumerate().map(rule);
        Ok(Self { rules: rules.collect::<Result<_, ConfigError>>()? })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        for rule in &self.rules {
            let shares = match &rule.shares {
                Ok(shares) => shares,
                // As in APISIX, whether or not the rule matches: nobody knows where requests of
                // this route belong.
                Err(Missing { id, why }) => {
                    error!(route = exchange.route_id(), upstream = %id, why, "An upstream of traffic-split cannot be used.");
                    let text = format!("failed to fetch upstream info by upstream id: {id}");
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    return Ok(Flow::Respond(Response::text(status, text)));
                }
            };
            let any = rule.conditions.iter().any(|condition| condition.eval(&*exchange));
            if !(rule.conditions.is_empty() || any) {
                continue;
            }
            let turn = shares.turns.pick(|_| true).and_then(|turn| shares.upstreams.get(turn));
            if let Some(Some(upstream)) = turn {
                exchange.chosen_upstream = Some(upstream.clone());
            }
            break;
        }
        Ok(Flow::Continue)
    }
}

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    #[serde(default)]
    rules: Vec<RuleConfig>,
}

#[derive(Deserialize)]
struct RuleConfig {
    #[serde(default)]
    r#match: Vec<Value>,
    weighted_upstreams: Vec<ShareConfig>,
}

#[derive(Deserialize)]
struct ShareConfig {
    upstream_id: Option<Value>,
    upstream: Option<Value>,
    weight: u32,
}

impl RuleConfig {
    fn shares(
        &self,
        at: usize,
        ctx: &CompileCtx<'_>,
    ) -> Result<Result<Shares, Missing>, ConfigError> {
        let mut upstreams = Vec::new();
        for (share_at, share) in self.weighted_upstreams.iter().enumerate() {
            let upstream = match (ctx.upstreams, share.upstream_id.as_ref().and_then(id)) {
                (None, _) => None,
                (Some(all), Some(id)) => match all.of_id(&id) {
                    Ok(upstream) => Some(upstream),
                    Err(why) => return Ok(Err(Missing { id: id.into(), why })),
                },
                (Some(all), None) => {
                    let key = format!("{} traffic-split {at}/{share_at}", ctx.owner);
                    let compile = |config: &Value| all.compile(&key, config).map_err(ConfigError);
                    share.upstream.as_ref().map(compile).transpose()?
                }
            };
            upstreams.push(upstream);
        }
        let weights = self.weighted_upstreams.iter().map(|share| share.weight).enumerate();
        let weights: Vec<(usize, u32)> = weights.collect();
        Ok(Ok(Shares { turns: RoundRobin::new(&weights), upstreams: upstreams.into() }))
    }
}

fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::get;
    use sluicegate_testkit::{InProcess, Origin};

    use super::*;

    #[test]
    fn what_has_the_wrong_type_is_refused() {
        let mut registry = Registry::default();
        registry.add::<TrafficSplit>();
        let check = |rule: Value| {
            (registry.get("traffic-split").unwrap().info.check)(&json!({"rules": [rule]}))
        };
        assert!(check(json!({})).is_ok());
        for (rule, wrong) in [
            (json!({"match": 1}), "property \"match\" validation failed"),
            (json!({"weighted_upstreams": []}), "expect array to have at least 1 items"),
            (json!({"weighted_upstreams": [{"weight": -1}]}), "expected -1 to be at least 0"),
            (json!({"weighted_upstreams": [{"upstream": {"nodes": 1}}]}), "property \"upstream\""),
            (json!({"match": [{}]}), "failed to validate the 'vars' expression"),
        ] {
            let error = check(rule.clone()).expect_err(&rule.to_string());
            assert!(error.contains(wrong), "{rule}: {error}");
        }
    }

    /// What ten requests for a path get, sorted.
    #[track_caller]
    fn check(rules: Value, target: &str, expected: &str) {
        let [own, a, b] = ["own", "a", "b"].map(Origin::text);
        let at =
            |origin: &Origin| json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
        let rules = rules.to_string().replace("\"A\"", &at(&a).to_string());
        let mut registry = Registry::default();
        registry.add::<TrafficSplit>();
        let route = json!({
            "uri": "/*",
            "plugins": {"traffic-split": {"rules": serde_json::from_str::<Value>(&rules).unwrap()}},
            "upstream": at(&own),
        });
        let resources = vec![(Kind::Upstreams, "b", at(&b)), (Kind::Routes, "r", route)];
        let gate = InProcess::start(registry, resources);
        let mut got: Vec<String> = (0..10).map(|_| get(gate.addr, target).text()).collect();
        got.sort();
        assert_eq!(got.join(" "), expected, "{rules}");
    }

    #[test]
    fn upstreams_take_turns_by_their_weights() {
        let share = |upstream: Value, weight: u32| {
            let mut share = upstream;
            share["weight"] = json!(weight);
            share
        };
        let (a, b) = (json!({"upstream": "A"}), json!({"upstream_id": "b"}));
        check(
            json!([{"weighted_upstreams": [share(a.clone(), 2), share(b.clone(), 3), share(json!({}), 5)]}]),
            "/",
            "a a b b b own own own own own",
        );
        check(
            json!([{"weighted_upstreams": [share(a.clone(), 0), share(b.clone(), 1)]}]),
            "/",
            "b b b b b b b b b b",
        );
        check(json!([{}]), "/", "own own own own own own own own own own");
        let matching = |name: &str, upstream: &Value| {
            json!({
                "match": [{"vars": [["arg_x", "==", name]]}, {"vars": [["arg_y", "==", name]]}],
                "weighted_upstreams": [upstream],
            })
        };
        let rules = json!([matching("a", &a), matching("b", &b)]);
        for (target, expected) in [("/?x=a", "a"), ("/?x=b", "b"), ("/?y=b", "b"), ("/", "own")] {
            check(rules.clone(), target, &[expected; 10].join(" "));
        }
        let missing = "failed to fetch upstream info by upstream id: none";
        check(
            json!([{"weighted_upstreams": [{"upstream_id": "none"}]}]),
            "/",
            &[missing; 10].join(" "),
        );
    }
}

//! Balancers: which of an upstream's nodes a request goes to.

pub mod chash;
mod ewma;
mod least_conn;
mod load;
mod round_robin;

use std::sync::Arc;

use sluicegate_model::upstream as model;

use crate::expr::Vars;
use chash::{Chash, HashKey};
use ewma::Ewma;
use least_conn::LeastConn;
pub use load::{Hold, Load, Loads};
pub use round_robin::RoundRobin;

/// How an upstream chooses its nodes, worked out from its configuration.
pub struct Plan {
    kind: Kind,
    members: Box<[Member]>,
}

enum Kind {
    RoundRobin,
    Chash(Arc<HashKey>),
    LeastConn,
    Ewma,
}

/// A node as its balancer knows it.
struct Member {
    weight: u32,
    priority: i64,
    /// It may get requests: it has a weight, or no node of its priority has one.
    serves: bool,
    /// What APISIX calls the node: `host:port`.
    name: Box<str>,
    load: Option<Arc<Load>>,
}

impl Plan {
    /// Reads how nodes are chosen. `key` names the upstream for as long as it exists.
    pub fn compile(
        key: &str,
        config: &model::Upstream,
        default_port: u16,
        loads: &Loads,
    ) -> Result<Self, String> {
        let kind = match config.kind.as_str() {
            "" | "roundrobin" => Kind::RoundRobin,
            "chash" => Kind::Chash(Arc::new(HashKey::compile(config)?)),
            "least_conn" => Kind::LeastConn,
            "ewma" => Kind::Ewma,
            other => return Err(format!("there is no balancer of type {other:?}")),
        };
        let mut heavy: Vec<i64> =
            config.nodes.iter().flatten().filter(|n| n.weight > 0).map(|n| n.priority).collect();
        heavy.sort_unstable();
        heavy.dedup();
        let members = config.nodes.iter().flatten().map(|node| {
            let name = node.authority(default_port);
            let load = match &kind {
                // As in APISIX, each priority counts for itself.
                Kind::LeastConn => Some(loads.of(format!("{key}#{} {name}", node.priority))),
                // As in APISIX, a node is as quick for one upstream as for another.
                Kind::Ewma => Some(loads.of(format!("ewma {name}"))),
                Kind::RoundRobin | Kind::Chash(_) => None,
            };
            // Differs: APISIX's `ewma` and `least_conn` may choose nodes of weight 0 as well.
            let serves = node.weight > 0 || heavy.binary_search(&node.priority).is_err();
            Member { weight: node.weight, priority: node.priority, serves, name: name.into(), load }
        });
        Ok(Self { members: members.collect(), kind })
    }

    /// The balancers of the nodes that are `up`, the highest priority first. If none is up,
    /// those of all nodes.
    pub fn turns(&self, up: impl Fn(usize) -> bool) -> Turns {
        let all = || 0..self.members.len();
        let none = !all().any(|at| up(at) && self.members[at].serves);
        let mut priorities: Vec<i64> = self.members.iter().map(|m| m.priority).collect();
        priorities.sort_unstable_by_key(|p| std::cmp::Reverse(*p));
        priorities.dedup();
        let groups = priorities.into_iter().filter_map(|priority| {
            // The ring stays whole, so that keys stay with their nodes: nodes that are down are
            // passed over by each request.
            let whole = none || matches!(self.kind, Kind::Chash(_));
            let nodes: Vec<(usize, &Member)> = all()
                .map(|at| (at, &self.members[at]))
                .filter(|(_, member)| member.priority == priority && member.serves)
                .filter(|(at, _)| whole || up(*at))
                .collect();
            (!nodes.is_empty()).then(|| self.balancer(&nodes))
        });
        let groups = groups.collect();
        let down = match self.kind {
            Kind::Chash(_) if !none => all().filter(|at| !up(*at)).collect(),
            _ => Box::default(),
        };
        Turns { groups, down }
    }

    fn balancer(&self, nodes: &[(usize, &Member)]) -> Balancer {
        let weights = || nodes.iter().map(|(at, member)| (*at, member.weight));
        let loads = || {
            let loads = nodes.iter().map(|(at, m)| Some((*at, m.weight.max(1), m.load.clone()?)));
            loads.flatten()
        };
        match &self.kind {
            Kind::RoundRobin => {
                Balancer::RoundRobin(RoundRobin::new(&weights().collect::<Vec<_>>()))
            }
            Kind::Chash(key) => {
                let named = nodes.iter().map(|(at, member)| (*at, &*member.name, member.weight));
                Balancer::Chash(Chash::new(key.clone(), named))
            }
            Kind::LeastConn => Balancer::LeastConn(LeastConn::new(loads())),
            Kind::Ewma => Balancer::Ewma(Ewma::new(loads().map(|(at, _, load)| (at, load)))),
        }
    }

    /// Notes that a request is with a node, where its balancer wants to know.
    pub fn hold(&self, node: usize) -> Option<Hold> {
        let load = self.members.get(node)?.load.as_ref()?;
        Some(Hold::new(load.clone()))
    }
}

/// Whose turn it is.
pub struct Turns {
    groups: Box<[Balancer]>,
    /// Nodes that are passed over.
    down: Box<[usize]>,
}

impl Turns {
    /// A node for a request: of the highest priority that has one left that was not `tried`.
    pub fn pick(&self, vars: &dyn Vars, tried: &[usize]) -> Option<usize> {
        let usable = |node: usize| !tried.contains(&node) && !self.down.contains(&node);
        self.groups.iter().find_map(|group| group.pick(vars, usable))
    }
}

/// Chooses among the nodes of one priority.
enum Balancer {
    RoundRobin(RoundRobin),
    Chash(Chash),
    LeastConn(LeastConn),
    Ewma(Ewma),
}

impl Balancer {
    fn pick(&self, vars: &dyn Vars, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::RoundRobin(robin) => robin.pick(usable),
            Self::Chash(ring) => ring.pick(vars, usable),
            Self::LeastConn(least) => least.pick(usable),
            Self::Ewma(ewma) => ewma.pick(std::time::Instant::now(), usable),
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::{Value, VarName};

    struct NoVars;

    impl Vars for NoVars {
        fn var<'a>(&'a self, _: &VarName) -> Option<Value<'a>> {
            None
        }
    }

    fn plan(kind: &str, nodes: &[(&str, u32, i64)]) -> Plan {
        let nodes = nodes.iter().map(|(host, weight, priority)| model::Node {
            host: (*host).to_owned(),
            port: Some(80),
            weight: *weight,
            priority: *priority,
        });
        let config = model::Upstream {
            kind: kind.to_owned(),
            hash_on: "vars".to_owned(),
            key: Some("uri".to_owned()),
            nodes: Some(nodes.collect()),
            ..Default::default()
        };
        Plan::compile("/upstreams/1", &config, 80, &Loads::default()).expect("it compiles")
    }

    #[test]
    fn every_balancer_keeps_to_priorities_weights_and_health() {
        let nodes = [("a", 1, 0), ("b", 1, 1), ("c", 0, 1), ("d", 1, -1)];
        for kind in ["roundrobin", "chash", "least_conn", "ewma"] {
            let plan = plan(kind, &nodes);
            for (up, tried, expected) in [
                (&[0, 1, 2, 3][..], &[][..], Some(1)),
                (&[0, 1, 2, 3], &[1], Some(0)),
                (&[0, 1, 2, 3], &[1, 0], Some(3)),
                (&[0, 1, 2, 3], &[1, 0, 3], None),
                (&[0, 2, 3], &[], Some(0)),
                (&[2], &[], Some(1)),
                (&[3], &[], Some(3)),
                (&[3], &[3], None),
                // None is healthy: all are used.
                (&[], &[], Some(1)),
            ] {
                let turns = plan.turns(|node| up.contains(&node));
                let picked = turns.pick(&NoVars, tried);
                assert_eq!(picked, expected, "{kind} up={up:?} tried={tried:?}");
            }
        }
    }

    #[test]
    fn nodes_whose_weights_are_all_zero_share_alike() {
        for kind in ["roundrobin", "chash", "least_conn", "ewma"] {
            let plan = plan(kind, &[("a", 0, 0), ("b", 0, 0)]);
            let turns = plan.turns(|_| true);
            assert!(turns.pick(&NoVars, &[]).is_some(), "{kind}");
            assert_eq!(turns.pick(&NoVars, &[0]), Some(1), "{kind}");
        }
    }
}

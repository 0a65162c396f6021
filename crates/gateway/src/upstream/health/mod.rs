//! Health checks: which nodes of an upstream are up, by probes and by real answers, as
//! lua-resty-healthcheck does it for APISIX.
//!
//! The first request to an upstream starts its probes; they end when the upstream is gone or has
//! no `checks` any more. What is known of a node is found again by the upstream's key when the
//! configuration changes.

pub mod checks;
mod probe;
mod run;
pub mod target;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sluicegate_model::upstream as model;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use super::NodeAddr;
use crate::client::TlsClients;
use checks::Checks;
use target::{Seen, Target, TargetId};

/// The health checks of all upstreams.
#[derive(Default)]
pub struct HealthChecks {
    off: bool,
    lines: Mutex<Lines>,
    /// Where upstreams whose probes are to start, or have changed, are told to.
    changed: Option<UnboundedSender<Weak<Line>>>,
}

#[derive(Default)]
struct Lines {
    by_key: HashMap<Box<str>, Weak<Line>>,
    /// How many there may be before those that nobody holds are looked for.
    sweep_at: usize,
}

impl std::fmt::Debug for HealthChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealthChecks").field("off", &self.off).finish_non_exhaustive()
    }
}

/// What stays of an upstream's checks for as long as there is one of its key.
struct Line {
    key: Box<str>,
    /// Rises whenever a node goes up or down.
    version: AtomicU64,
    /// A request asked for the upstream.
    used: AtomicBool,
    /// It waits to be looked at by the scheduler.
    told: AtomicBool,
    /// A round of probes is under way: of nodes that are up, of nodes that are down.
    busy: [AtomicBool; 2],
    timing: Mutex<run::Timing>,
    /// The checks of each configuration that is still in use, the newest last.
    checkers: Mutex<Vec<Weak<Checker>>>,
}

/// The health checks of one upstream as configured.
pub struct Checker {
    line: Arc<Line>,
    checks: Checks,
    /// One for each node.
    targets: Box<[Arc<Target>]>,
    changed: Option<UnboundedSender<Weak<Line>>>,
}

impl HealthChecks {
    /// Checks that count answers and send probes from `runtime`.
    pub fn start(runtime: &tokio::runtime::Handle, tls: Arc<TlsClients>) -> Self {
        let (changed, told) = tokio::sync::mpsc::unbounded_channel();
        runtime.spawn(run::run(told, tls));
        Self { changed: Some(changed), ..Self::default() }
    }

    /// No checks at all: `apisix.disable_upstream_healthcheck`.
    pub fn off() -> Self {
        Self { off: true, ..Self::default() }
    }

    /// The checker of an upstream's nodes, if it asks for one.
    pub(super) fn checker(
        &self,
        key: &str,
        config: &model::Upstream,
        addrs: &[(Box<str>, NodeAddr)],
    ) -> Result<Option<Arc<Checker>>, String> {
        let Some(checks) = config.checks.as_ref().filter(|checks| !checks.is_null()) else {
            return Ok(None);
        };
        let checks = Checks::compile(checks)?;
        if self.off || addrs.is_empty() {
            return Ok(None);
        }
        let line = self.line(key);
        let before = line.current();
        let rewritten = match config.pass_host.as_str() {
            "rewrite" => config.upstream_host.as_deref().filter(|host| !host.is_empty()),
            _ => None,
        };
        let mut targets: Vec<Arc<Target>> = Vec::with_capacity(addrs.len());
        for (host, addr) in addrs {
            let addr = match checks.active.port {
                Some(port) => addr.with_port(port),
                None => addr.clone(),
            };
            let named = matches!(addr, NodeAddr::Name(..)).then_some(&**host);
            let id = TargetId {
                hostname: checks.active.host.clone().unwrap_or_else(|| host.clone()),
                host_header: rewritten.or(named).map(Into::into),
                port: addr.port(),
                host: host.clone(),
            };
            let known = before.iter().flat_map(|before| before.targets.iter());
            let known = known.chain(&targets).find(|target| target.id == id).cloned();
            targets.push(known.unwrap_or_else(|| Arc::new(Target::new(id, addr))));
        }
        let checker = Arc::new(Checker {
            checks,
            targets: targets.into(),
            changed: self.changed.clone(),
            line: line.clone(),
        });
        let mut checkers = line.checkers.lock().unwrap_or_else(PoisonError::into_inner);
        checkers.retain(|checker| checker.strong_count() > 0);
        checkers.push(Arc::downgrade(&checker));
        drop(checkers);
        if line.used.load(Ordering::Acquire) {
            checker.tell();
        }
        Ok(Some(checker))
    }

    /// What is known of the nodes of the upstream of this key; `None`: it has no checks, or no
    /// request asked for it yet.
    pub fn look(&self, key: &str) -> Option<Arc<Checker>> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.by_key.get(key)?.upgrade()?;
        drop(lines);
        line.current().filter(|_| line.used.load(Ordering::Acquire))
    }

    fn line(&self, key: &str) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.by_key.get(key).and_then(Weak::upgrade) {
            return line;
        }
        if lines.by_key.len() >= lines.sweep_at {
            lines.by_key.retain(|_, line| line.strong_count() > 0);
            lines.sweep_at = 2 * lines.by_key.len().max(LINES_UNSWEPT);
        }
        let line = Arc::new(Line {
            key: key.into(),
            version: AtomicU64::new(0),
            used: AtomicBool::new(false),
            told: AtomicBool::new(false),
            busy: Default::default(),
            timing: Mutex::default(),
            checkers: Mutex::default(),
        });
        lines.by_key.insert(key.into(), Arc::downgrade(&line));
        line
    }
}

impl Line {
    /// The newest checks.
    fn current(&self) -> Option<Arc<Checker>> {
        let checkers = self.checkers.lock().unwrap_or_else(PoisonError::into_inner);
        checkers.iter().rev().find_map(Weak::upgrade)
    }
}

impl Checker {
    /// A request asks for the upstream: its probes begin, if they have not.
    pub(super) fn used(self: &Arc<Self>) {
        if !self.line.used.load(Ordering::Relaxed) && !self.line.used.swap(true, Ordering::AcqRel) {
            info!(upstream = %self.line.key, nodes = self.targets.len(), "Health checks of an upstream begin.");
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(changed) = &self.changed
            && !self.line.told.swap(true, Ordering::AcqRel)
        {
            // There is nobody to tell when the gateway goes down.
            let _ = changed.send(Arc::downgrade(&self.line));
        }
    }

    /// Rises whenever a node goes up or down.
    pub(super) fn version(&self) -> u64 {
        self.line.version.load(Ordering::Acquire)
    }

    /// Does a node get requests?
    pub(super) fn is_up(&self, node: usize) -> bool {
        self.targets.get(node).is_none_or(|target| target.health().is_up())
    }

    /// What is under watch, in the nodes' order. Two nodes may be one target, where another port
    /// is checked than is used.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        let known = |at: usize| self.targets[..at].iter();
        let first = move |(at, target): &(usize, &Arc<Target>)| {
            !known(*at).any(|known| Arc::ptr_eq(known, target))
        };
        self.targets.iter().enumerate().filter(first).map(|(_, target)| target)
    }

    /// A node answered a request with this status.
    pub(super) fn answered(&self, node: usize, status: u16) {
        let passive = &self.checks.passive;
        if !passive.by_status {
            return;
        }
        if passive.healthy.has(status) {
            self.see(node, Seen::Success, passive.healthy.successes, "a request", || {
                format!("status {status}")
            });
        } else if passive.unhealthy.has(status) {
            self.see(node, Seen::HttpFailure, passive.unhealthy.http_failures, "a request", || {
                format!("status {status}")
            });
        }
    }

    /// A node did not answer a request.
    // Differs: APISIX counts a failed connection only when another node is tried after it.
    pub(super) fn failed(&self, node: usize, timed_out: bool, cause: impl Fn() -> String) {
        let unhealthy = &self.checks.passive.unhealthy;
        let (seen, limit) = match timed_out {
            true => (Seen::Timeout, unhealthy.timeouts),
            false => (Seen::TcpFailure, unhealthy.tcp_failures),
        };
        self.see(node, seen, limit, "a request", cause);
    }

    fn see(&self, node: usize, seen: Seen, limit: u8, by: &str, cause: impl Fn() -> String) {
        if let Some(target) = self.targets.get(node) {
            self.line.see(target, seen, limit, by, cause);
        }
    }
}

impl Line {
    /// Counts what was seen of a node, and tells when it goes up or down.
    fn see(&self, target: &Target, seen: Seen, limit: u8, by: &str, cause: impl Fn() -> String) {
        let Some((before, after)) = target.see(seen, limit) else { return };
        if before.is_up() == after.is_up() {
            return;
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        let (upstream, TargetId { host, port, .. }, cause) = (&self.key, &target.id, cause());
        if after.is_up() {
            info!(%upstream, node = %host, port, by, cause, "A node is healthy again.");
        } else {
            warn!(%upstream, node = %host, port, by, cause, "A node is unhealthy: it gets no requests while another is healthy.");
        }
    }
}

/// Upstreams below this number are not worth a sweep.
const LINES_UNSWEPT: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::target::Health;
    use super::*;

    fn node(last: u8) -> (Box<str>, NodeAddr) {
        let addr = std::net::SocketAddr::from(([127, 0, 0, last], 80));
        (addr.ip().to_string().into(), NodeAddr::Ip(addr))
    }

    fn checker(checks: &HealthChecks, key: &str, config: Value, nodes: &[u8]) -> Arc<Checker> {
        let config = model::Upstream { checks: Some(config), ..Default::default() };
        let nodes: Vec<_> = nodes.iter().map(|n| node(*n)).collect();
        checks.checker(key, &config, &nodes).expect("it compiles").expect("it is asked for")
    }

    #[test]
    fn what_is_known_of_a_node_survives_changes_of_the_configuration() {
        let all = HealthChecks::default();
        let config = json!({"active": {}, "passive": {"unhealthy": {"http_statuses": [500], "http_failures": 1}}});
        let first = checker(&all, "/upstreams/1", config.clone(), &[1, 2]);
        assert!(all.look("/upstreams/1").is_none(), "nobody asked for it yet");
        first.used();
        first.answered(1, 500);
        first.answered(0, 200);
        assert_eq!((first.is_up(0), first.is_up(1), first.version()), (true, false, 1));
        // Another order, another node, other checks: the state stays with the node.
        let second = checker(&all, "/upstreams/1", json!({"active": {}}), &[2, 3]);
        assert_eq!((second.is_up(0), second.is_up(1), second.version()), (false, true, 1));
        // A request that began before still counts.
        first.failed(0, false, String::new);
        assert_eq!(first.targets[0].health(), Health::MostlyHealthy);
        drop(first);
        let looked = all.look("/upstreams/1").expect("it is there");
        assert_eq!(looked.targets[0].health(), Health::Unhealthy);
        // Others know nothing of it; and when it is gone, so is what was known.
        assert!(checker(&all, "/upstreams/2", config.clone(), &[2]).is_up(0));
        drop((second, looked));
        assert!(all.look("/upstreams/1").is_none());
        assert!(checker(&all, "/upstreams/1", config, &[2]).is_up(0));
    }

    #[test]
    fn requests_count_only_as_configured() {
        let all = HealthChecks::default();
        let statuses = |statuses: Value| json!({"active": {}, "passive": {"unhealthy": {"http_statuses": statuses, "http_failures": 1}}});
        for (config, status, up) in [
            (json!({"active": {}}), 500, true),
            (statuses(json!([500])), 500, false),
            (statuses(json!([500])), 503, true),
            (json!({"active": {}, "passive": {"healthy": {"successes": 1}}}), 500, true),
        ] {
            let one = checker(&all, "/upstreams/1", config.clone(), &[1]);
            one.answered(0, status);
            assert_eq!(one.is_up(0), up, "{config} {status}");
        }
        let one = checker(&all, "/upstreams/1", json!({"active": {}}), &[1]);
        for (n, up) in [(1, true), (2, false)] {
            one.failed(0, false, String::new);
            assert_eq!(one.is_up(0), up, "failure {n}");
        }
    }

    #[test]
    fn checks_can_be_switched_off() {
        let config = model::Upstream { checks: Some(json!({"active": {}})), ..Default::default() };
        let off = HealthChecks::off();
        assert!(matches!(off.checker("/upstreams/1", &config, &[node(1)]), Ok(None)));
    }
}

//! Upstreams whose nodes a DNS server knows: `discovery_type: dns` with a `service_name`.
//!
//! Follows the discovery of the same name in Apache APISIX 3.18
//! (<https://apisix.apache.org/docs/apisix/discovery/dns/>): all records of the first type that has
//! any are nodes, and SRV records bring port, weight and priority with them. A service is asked
//! for in the background and again by its TTL, so requests only read what is known; while DNS is
//! down the last nodes serve. `/etc/hosts` is not looked at.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::{parse_resolv_conf, read_system_conf};
use sluicegate_model::upstream::Node;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::Upstream;
use super::resolve::{RETRY_FIRST, RETRY_LAST, TTL_MAX, TTL_MIN, build};

/// `discovery.dns`.
#[derive(Debug, Clone)]
pub struct DnsDiscovery {
    /// Servers to ask; `None`: those of `resolv_conf`.
    pub servers: Option<Vec<SocketAddr>>,
    /// A file like `/etc/resolv.conf`, which is read where it is left out.
    pub resolv_conf: Option<PathBuf>,
    /// Types of records, in the order in which they are asked for.
    pub order: Vec<Ask>,
    /// How long to wait for a server.
    pub timeout: Duration,
    /// Try short names under the domains of the file.
    pub search: bool,
}

/// What to ask a server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The type that answered last.
    Last,
    /// Hosts with ports, weights and priorities.
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Another name, and its addresses.
    Cname,
}

/// The services that upstreams ask for.
pub struct Services {
    runtime: tokio::runtime::Handle,
    dns: TokioResolver,
    order: Vec<Ask>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<String, Weak<Service>>,
    /// How many there may be before those that nobody holds are looked for.
    sweep_at: usize,
}

/// A service and its nodes as last seen.
pub(super) struct Service {
    /// As `service_name` has it.
    name: String,
    host: String,
    port: Option<u16>,
    found: ArcSwap<Found>,
    changed: Notify,
}

#[derive(Default)]
struct Found {
    /// Counts the changes of the nodes.
    version: u64,
    nodes: Vec<Node>,
    /// Why there are none, or none that are new.
    error: Option<String>,
}

impl Services {
    /// Asks as `settings` say, on `runtime`.
    ///
    /// # Errors
    /// When there is no server to ask, or the file cannot be read.
    pub fn new(
        runtime: tokio::runtime::Handle,
        settings: &DnsDiscovery,
    ) -> Result<Arc<Self>, String> {
        let system = match &settings.resolv_conf {
            None => read_system_conf(),
            Some(path) => {
                let text = std::fs::read(path)
                    .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
                parse_resolv_conf(text)
            }
        };
        let dns = {
            let _entered = runtime.enter();
            let servers = settings.servers.as_deref();
            build(servers, system, settings.search, settings.timeout, ResolveHosts::Never)
                .map_err(|error| error.to_string())?
        };
        let order = settings.order.clone();
        Ok(Arc::new(Self { runtime, dns, order, known: Mutex::default() }))
    }

    /// The service's entry; it is refreshed for as long as somebody holds it.
    fn service(self: &Arc<Self>, name: &str) -> Arc<Service> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = known.by_name.get(name).and_then(Weak::upgrade) {
            return service;
        }
        if known.by_name.len() >= known.sweep_at {
            known.by_name.retain(|_, service| service.strong_count() > 0);
            known.sweep_at = 2 * known.by_name.len().max(SERVICES_UNSWEPT);
        }
        let (host, port) = split_port(name);
        let service = Arc::new(Service {
            name: name.to_owned(),
            host: host.to_owned(),
            port,
            found: ArcSwap::default(),
            changed: Notify::new(),
        });
        known.by_name.insert(name.to_owned(), Arc::downgrade(&service));
        self.runtime.spawn(self.clone().keep_fresh(Arc::downgrade(&service)));
        service
    }

    async fn keep_fresh(self: Arc<Self>, service: Weak<Service>) {
        let mut last = None;
        let mut failures = 0_u32;
        loop {
            let Some(entry) = service.upgrade() else { return };
            let before = entry.found.load_full();
            let wait = match self.find(&entry, &mut last).await {
                Ok((nodes, ttl)) => {
                    failures = 0;
                    if before.nodes != nodes || before.error.is_some() {
                        let changed = before.nodes != nodes;
                        if changed {
                            info!(service = %entry.name, ?nodes, "A service has new nodes.");
                        }
                        let version = before.version + u64::from(changed);
                        entry.found.store(Arc::new(Found { version, nodes, error: None }));
                    }
                    ttl.clamp(TTL_MIN, TTL_MAX)
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        warn!(service = %entry.name, %error, kept = before.nodes.len(), "A service is not found by DNS; its last nodes stay in use.");
                    }
                    let (version, nodes) = (before.version, before.nodes.clone());
                    entry.found.store(Arc::new(Found { version, nodes, error: Some(error) }));
                    RETRY_FIRST.saturating_mul(1 << failures.min(5)).min(RETRY_LAST)
                }
            };
            entry.changed.notify_waiters();
            drop((entry, before));
            tokio::time::sleep(wait).await;
        }
    }

    /// The nodes by the first type of records that there are any of, and how long they hold.
    async fn find(
        &self,
        service: &Service,
        last: &mut Option<Ask>,
    ) -> Result<(Vec<Node>, Duration), String> {
        let mut error = "no type of records is asked for".to_owned();
        let mut asked = Vec::with_capacity(self.order.len());
        for &ask in &self.order {
            let ask = match (ask, *last) {
                (Ask::Last, None) => continue,
                (Ask::Last, Some(last)) => last,
                (ask, _) => ask,
            };
            if asked.contains(&ask) {
                continue;
            }
            asked.push(ask);
            let found = match ask {
                Ask::Srv => self.by_srv(&service.host).await,
                _ => self.addresses(&service.host, ask).await.map(|(ips, until)| {
                    (ips.into_iter().map(|ip| node(ip, None, 1, 0)).collect(), until)
                }),
            };
            match found {
                Ok((mut nodes, until)) => {
                    *last = Some(ask);
                    for node in &mut nodes {
                        node.port = service.port.or(node.port);
                    }
                    nodes.sort_by(|a, b| {
                        (&a.host, a.port, a.priority, a.weight)
                            .cmp(&(&b.host, b.port, b.priority, b.weight))
                    });
                    nodes.dedup();
                    if nodes.len() > NODES_MAX {
                        warn!(service = %service.name, nodes = nodes.len(), limit = NODES_MAX, "A service has more nodes than are used.");
                        nodes.truncate(NODES_MAX);
                    }
                    return Ok((nodes, until.saturating_duration_since(Instant::now())));
                }
                // A server that is silent is so for every type.
                Err(Miss::Silent(cause)) => return Err(cause),
                Err(Miss::None(cause)) => error = cause,
            }
        }
        Err(error)
    }

    async fn by_srv(&self, host: &str) -> Result<(Vec<Node>, Instant), Miss> {
        let answer = self.lookup(host, RecordType::SRV).await?;
        let mut until = answer.valid_until();
        let mut targets = Vec::new();
        let mut error = "it has no SRV records".to_owned();
        for record in answer.answers() {
            let RData::SRV(srv) = &record.data else { continue };
            // Differs: for APISIX one target without an address fails them all.
            match self.host_addresses(&srv.target.to_utf8()).await {
                Ok((ips, hold)) => {
                    until = until.min(hold);
                    targets.push((srv, ips));
                }
                Err(Miss::Silent(cause) | Miss::None(cause)) => {
                    error = format!("its target {} has no address: {cause}", srv.target);
                }
            }
        }
        if targets.is_empty() {
            return Err(Miss::None(error));
        }
        // As in APISIX: the addresses of a target share its weight, which stays a whole number
        // when all weights are multiplied by what all counts divide.
        let common = targets.iter().fold(1_u64, |common, (_, ips)| lcm(common, ips.len() as u64));
        let mut nodes = Vec::new();
        for (srv, ips) in targets {
            let share = common / ips.len() as u64;
            let weight = u64::from(srv.weight.max(1)).saturating_mul(share);
            let weight = u32::try_from(weight).unwrap_or(u32::MAX);
            let port = (srv.port != 0).then_some(srv.port);
            // A lower number goes first in SRV records, a higher one in upstreams.
            let priority = -i64::from(srv.priority);
            nodes.extend(ips.into_iter().map(|ip| node(ip, port, weight, priority)));
        }
        Ok((nodes, until))
    }

    /// The addresses of a host, by the types that are asked for at all.
    async fn host_addresses(&self, host: &str) -> Result<(Vec<IpAddr>, Instant), Miss> {
        let mut error = "neither A nor AAAA records are asked for".to_owned();
        for &ask in self.order.iter().filter(|ask| matches!(ask, Ask::A | Ask::Aaaa)) {
            match self.addresses(host, ask).await {
                Ok(found) => return Ok(found),
                Err(silent @ Miss::Silent(_)) => return Err(silent),
                Err(Miss::None(cause)) => error = cause,
            }
        }
        Err(Miss::None(error))
    }

    async fn addresses(&self, host: &str, ask: Ask) -> Result<(Vec<IpAddr>, Instant), Miss> {
        let kind = match ask {
            Ask::A => RecordType::A,
            Ask::Aaaa => RecordType::AAAA,
            Ask::Cname | Ask::Srv | Ask::Last => RecordType::CNAME,
        };
        let answer = self.lookup(host, kind).await?;
        let mut ips = Vec::new();
        for record in answer.answers() {
            match &record.data {
                RData::A(ip) if kind == RecordType::A => ips.push(IpAddr::V4(ip.0)),
                RData::AAAA(ip) if kind == RecordType::AAAA => ips.push(IpAddr::V6(ip.0)),
                RData::CNAME(other) if kind == RecordType::CNAME => {
                    // Servers follow names on their own; one step serves those that do not.
                    let (ips, until) = Box::pin(self.host_addresses(&other.to_utf8())).await?;
                    return Ok((ips, until.min(answer.valid_until())));
                }
                _ => {}
            }
        }
        match ips.is_empty() {
            true => Err(Miss::None(format!("it has no {kind} records"))),
            false => Ok((ips, answer.valid_until())),
        }
    }

    async fn lookup(&self, host: &str, kind: RecordType) -> Result<Lookup, Miss> {
        self.dns.lookup(host, kind).await.map_err(|error| match error {
            NetError::Timeout => Miss::Silent(error.to_string()),
            _ => Miss::None(error.to_string()),
        })
    }
}

/// Why there are no records, in words.
enum Miss {
    /// No server answered in time.
    Silent(String),
    /// Anything else.
    None(String),
}

/// An upstream whose nodes come from a service.
pub struct Discovered {
    service: Arc<Service>,
    compile: Box<Compile>,
    /// The version of the nodes, and what they were compiled to.
    made: ArcSwap<(u64, Option<Arc<Upstream>>)>,
}

type Compile = dyn Fn(Vec<Node>) -> Result<Upstream, String> + Send + Sync;

impl Discovered {
    pub(super) fn new(services: &Arc<Services>, name: &str, compile: Box<Compile>) -> Box<Self> {
        let made = ArcSwap::from_pointee((0, None));
        Box::new(Self { service: services.service(name), compile, made })
    }

    /// The upstream with the nodes known now, if any are.
    fn known(&self) -> Option<Arc<Upstream>> {
        let made = self.made.load();
        let found = self.service.found.load();
        if made.0 == found.version {
            return made.1.clone();
        }
        // Rare, and short: several threads may do it at once, with the same result.
        let upstream = (self.compile)(found.nodes.clone());
        let upstream = upstream.map(Arc::new).inspect_err(|cause| {
            error!(service = %self.service.name, cause, "What DNS says of a service makes no upstream.");
        });
        let upstream = upstream.ok();
        self.made.store(Arc::new((found.version, upstream.clone())));
        upstream
    }

    /// The upstream with its nodes; waits at most `limit` for the first answer of DNS.
    ///
    /// # Errors
    /// There are no nodes, and why.
    pub async fn upstream(&self, limit: Duration) -> Result<Arc<Upstream>, String> {
        match self.known() {
            Some(upstream) => Ok(upstream),
            None => {
                let first = Box::pin(self.first(limit)).await;
                first.map_err(|cause| format!("service {}: {cause}", self.service.name))
            }
        }
    }

    async fn first(&self, limit: Duration) -> Result<Arc<Upstream>, String> {
        let answered = async {
            loop {
                let changed = self.service.changed.notified();
                if let Some(upstream) = self.known() {
                    return Ok(upstream);
                }
                let found = self.service.found.load_full();
                if let Some(error) = &found.error {
                    return Err(error.clone());
                }
                if found.version > 0 {
                    return Err("its nodes make no upstream".to_owned());
                }
                changed.await;
            }
        };
        let late = || Err(format!("no answer from DNS within {limit:?}"));
        tokio::time::timeout(limit, answered).await.unwrap_or_else(|_| late())
    }
}

fn node(ip: IpAddr, port: Option<u16>, weight: u32, priority: i64) -> Node {
    Node { host: ip.to_string(), port, weight, priority }
}

/// A name and the port behind it.
fn split_port(name: &str) -> (&str, Option<u16>) {
    match name.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (name, None),
        },
        _ => (name, None),
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}

/// Nodes of a service that are used.
const NODES_MAX: usize = 4096;

/// Services below this number are not worth a sweep.
const SERVICES_UNSWEPT: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_may_carry_a_port() {
        for (name, host, port) in [
            ("sd.test.local", "sd.test.local", None),
            ("sd.test.local:1980", "sd.test.local", Some(1980)),
            ("_sip._tcp.test:80", "_sip._tcp.test", Some(80)),
            ("sd.test:99999", "sd.test:99999", None),
            ("sd.test:", "sd.test:", None),
        ] {
            assert_eq!(split_port(name), (host, port), "{name}");
        }
    }

    #[test]
    fn the_least_common_multiple_stays_in_range() {
        for (a, b, least) in [(1, 1, 1), (2, 3, 6), (4, 6, 12), (u64::MAX, 2, u64::MAX)] {
            assert_eq!(lcm(a, b), least, "{a} {b}");
        }
    }
}

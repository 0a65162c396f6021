//! Names of upstreams and functions, resolved in the background and refreshed by their TTL.
//!
//! A request only reads what is known. When a name is gone its last addresses stay in use
//! and the log says so: a nameserver that is down must not take the upstreams with it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::Notify;
use tracing::{info, warn};

/// Resolves names on the runtime it was made on.
pub struct Resolver {
    runtime: tokio::runtime::Handle,
    dns: Option<Arc<TokioResolver>>,
    ipv6: bool,
    valid: Option<Duration>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    by_host: HashMap<String, Weak<Name>>,
    /// How many there may be before those that nobody holds are looked for.
    sweep_at: usize,
}

/// A resolver that asks `servers`, or else those of `system`.
pub(super) fn build(
    servers: Option<&[SocketAddr]>,
    system: Result<(ResolverConfig, ResolverOpts), NetError>,
    search: bool,
    timeout: Duration,
    hosts: ResolveHosts,
) -> Result<TokioResolver, NetError> {
    let (domain, search) = match &system {
        Ok((config, _)) if search => (config.domain().cloned(), config.search().to_vec()),
        _ => (None, Vec::new()),
    };
    let (servers, options) = match (servers, system) {
        (None, system) => system.map(|(config, options)| (config.into_parts().2, options))?,
        (Some(servers), system) => {
            let servers = servers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                config
            });
            (servers.collect(), system.map(|(_, options)| options).unwrap_or_default())
        }
    };
    let config = ResolverConfig::from_parts(domain, search, servers);
    let provider = TokioRuntimeProvider::default();
    let mut builder = TokioResolver::builder_with_config(config, provider).with_options(options);
    let options = builder.options_mut();
    options.timeout = timeout;
    options.use_hosts_file = hosts;
    // Names are kept here; a second cache would only make answers older.
    options.cache_size = 0;
    builder.build()
}

/// A name and its addresses as last seen.
pub struct Name {
    /// The name.
    pub host: String,
    state: ArcSwap<Answer>,
    changed: Notify,
    turn: AtomicUsize,
}

#[derive(Default)]
struct Answer {
    addrs: Vec<IpAddr>,
    /// Why there are none, once that is known.
    error: Option<String>,
}

/// How names are resolved: `apisix.dns_resolver` and its neighbours.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// Servers to ask; `None`: the system's (`/etc/resolv.conf`).
    pub servers: Option<Vec<SocketAddr>>,
    /// Use answers for this long, whatever their TTL.
    pub valid: Option<Duration>,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// Use IPv6 addresses where a name has no others.
    pub ipv6: bool,
    /// Try short names under the domains of `/etc/resolv.conf`.
    pub search: bool,
}

/// The system's servers and hosts, as APISIX's defaults have it.
impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            servers: None,
            valid: None,
            timeout: Duration::from_secs(5),
            ipv6: true,
            search: true,
        }
    }
}

impl Resolver {
    /// A resolver that works on `runtime`. `/etc/hosts` comes first in any case.
    pub fn new(runtime: tokio::runtime::Handle, settings: &DnsSettings) -> Arc<Self> {
        let built = {
            let _entered = runtime.enter();
            let DnsSettings { servers, search, timeout, .. } = settings;
            let hosts = ResolveHosts::default();
            build(servers.as_deref(), read_system_conf(), *search, *timeout, hosts)
        };
        let dns = match built {
            Ok(dns) => Some(Arc::new(dns)),
            Err(error) => {
                warn!(%error, "The system's resolver configuration cannot be used: names will not resolve; set apisix.dns_resolver.");
                None
            }
        };
        Arc::new(Self {
            runtime,
            dns,
            ipv6: settings.ipv6,
            valid: settings.valid,
            names: Mutex::default(),
        })
    }

    /// The name's entry; it is refreshed for as long as somebody holds it.
    pub fn name(self: &Arc<Self>, host: &str) -> Arc<Name> {
        let host = host.to_ascii_lowercase();
        let mut names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(name) = names.by_host.get(&host).and_then(Weak::upgrade) {
            return name;
        }
        if names.by_host.len() >= names.sweep_at {
            names.by_host.retain(|_, name| name.strong_count() > 0);
            names.sweep_at = 2 * names.by_host.len().max(NAMES_UNSWEPT);
        }
        let name = Arc::new(Name {
            host: host.clone(),
            state: ArcSwap::default(),
            changed: Notify::new(),
            turn: AtomicUsize::new(0),
        });
        names.by_host.insert(host, Arc::downgrade(&name));
        self.runtime.spawn(self.clone().keep_fresh(Arc::downgrade(&name)));
        name
    }

    async fn keep_fresh(self: Arc<Self>, name: Weak<Name>) {
        let mut failures = 0_u32;
        loop {
            let Some(entry) = name.upgrade() else { return };
            let wait = match self.look_up(&entry.host).await {
                Ok((addrs, ttl)) => {
                    failures = 0;
                    let known = entry.state.load();
                    if known.addrs != addrs {
                        info!(host = %entry.host, ?addrs, "A name has new addresses.");
                    }
                    entry.state.store(Arc::new(Answer { addrs, error: None }));
                    self.valid.unwrap_or(ttl).clamp(TTL_MIN, TTL_MAX)
                }
                Err(error) => {
                    failures += 1;
                    let addrs = entry.state.load().addrs.clone();
                    if failures == 1 {
                        warn!(host = %entry.host, %error, kept = addrs.len(), "A name does not resolve; its last addresses stay in use.");
                    }
                    entry.state.store(Arc::new(Answer { addrs, error: Some(error) }));
                    RETRY_FIRST.saturating_mul(1 << failures.min(5)).min(RETRY_LAST)
                }
            };
            entry.changed.notify_waiters();
            drop(entry);
            tokio::time::sleep(wait).await;
        }
    }

    async fn look_up(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), String> {
        let dns = self.dns.as_ref().ok_or("no resolver configuration")?;
        let found = dns.lookup_ip(host).await.map_err(|e| e.to_string())?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now());
        let mut addrs: Vec<IpAddr> = found.iter().collect();
        if !self.ipv6 || addrs.iter().any(IpAddr::is_ipv4) {
            // IPv6 addresses serve where they are the only ones.
            addrs.retain(IpAddr::is_ipv4);
        }
        addrs.sort();
        addrs.dedup();
        if addrs.is_empty() { Err("it has no usable address".into()) } else { Ok((addrs, ttl)) }
    }
}

impl Name {
    /// The next address, turn by turn, if any is known now.
    pub fn next(&self) -> Option<IpAddr> {
        let state = self.state.load();
        if state.addrs.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Some(state.addrs[turn % state.addrs.len()])
    }

    /// Waits for the first answer of the resolver, at most `limit`.
    ///
    /// # Errors
    /// There is no address, or no answer.
    pub async fn first(&self, limit: Duration) -> Result<IpAddr, NoAddress> {
        let answered = async {
            loop {
                let changed = self.changed.notified();
                if let Some(addr) = self.next() {
                    return Ok(addr);
                }
                let error = self.state.load().error.clone();
                if let Some(error) = error {
                    return Err(NoAddress::Told(error));
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, answered).await.unwrap_or(Err(NoAddress::Late(limit)))
    }
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// What the resolver said.
    #[error("{0}")]
    Told(String),
    /// It said nothing in time.
    #[error("no answer from the resolver within {0:?}")]
    Late(Duration),
}

/// Names are asked for again no sooner and no later than this, whatever their TTL.
pub(super) const TTL_MIN: Duration = Duration::from_secs(1);
pub(super) const TTL_MAX: Duration = Duration::from_secs(300);

/// Names below this number are not worth a sweep.
const NAMES_UNSWEPT: usize = 32;

/// A failed look-up is repeated after this, then after twice that, up to the last.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(250);
pub(super) const RETRY_LAST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::str::FromStr as _;

    use hickory_resolver::proto::rr::Name as DnsName;

    use super::*;

    /// A DNS server that knows no name, and tells which it was asked for.
    fn asked() -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let addr = socket.local_addr().expect("it is bound");
        let (told, names) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                let (mut name, mut at) = (String::new(), 12);
                while query[at] > 0 {
                    let end = at + 1 + usize::from(query[at]);
                    name.push_str(&String::from_utf8_lossy(&query[at + 1..end]));
                    name.push('.');
                    at = end;
                }
                // An answer to one question: there is no such name.
                query[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
                let _ = socket.send_to(&query[..length.min(at + 5)], client);
                if told.send(name).is_err() {
                    return;
                }
            }
        });
        (addr, names)
    }

    #[tokio::test]
    async fn short_names_are_tried_under_the_systems_domains_where_that_is_on() {
        for (search, under_a_domain) in [(true, true), (false, false)] {
            let (server, names) = asked();
            let domains = vec![DnsName::from_str("corp.test.").expect("it is a name")];
            let system = ResolverConfig::from_parts(None, domains, Vec::new());
            let resolver = build(
                Some(&[server]),
                Ok((system, ResolverOpts::default())),
                search,
                Duration::from_secs(2),
                ResolveHosts::Never,
            );
            let resolver = resolver.expect("it can be built");
            assert!(resolver.lookup_ip("db").await.is_err(), "nothing has a name here");
            let asked: Vec<String> = names.try_iter().collect();
            let found = asked.iter().any(|name| name == "db.corp.test.");
            assert_eq!(found, under_a_domain, "{search}: {asked:?}");
            assert!(asked.iter().any(|name| name == "db."), "{search}: {asked:?}");
        }
    }
}

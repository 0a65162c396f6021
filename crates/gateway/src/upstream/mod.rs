//! An upstream, compiled: nodes, whose turn it is, and how to talk to them.

pub mod balance;
pub mod discovery;
pub mod health;
mod network;
pub mod resolve;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use arc_swap::ArcSwap;
use sluicegate_model::upstream as model;
use tracing::warn;

use crate::client::{CallError, Egress, Keepalive, Timeouts, TlsClients, TlsRequest, TlsTarget};
use crate::expr::Vars;
use crate::plugin::PluginState;
use balance::{Hold, Loads, Plan, Turns};
use discovery::{Discovered, Services};
use health::{Checker, HealthChecks};
use resolve::{Name, Resolver};

/// A compiled upstream.
pub struct Upstream {
    /// Names it in logs: its id, or that of the route or service it stands in.
    pub id: Arc<str>,
    /// Its nodes.
    pub nodes: Box<[Node]>,
    /// How a node is chosen.
    plan: Plan,
    turns: Turns,
    checked: Option<Box<Checked>>,
    /// Its nodes are those of a service; it has none itself.
    discovered: Option<Box<Discovered>>,
    /// How to talk to the nodes.
    pub scheme: Scheme,
    /// Which `Host` they get.
    pub pass_host: PassHost,
    /// Time limits; a route may have its own.
    pub timeouts: Timeouts,
    /// Further nodes to try.
    pub retries: usize,
    /// No further try begins after this.
    pub retry_timeout: Option<Duration>,
    /// How idle connections are kept.
    pub keepalive: Keepalive,
    /// Verify the nodes' certificates.
    verify: bool,
    /// The certificate to show them, and its key.
    client: Option<Box<(String, String)>>,
}

/// Health checks, and turns as of what they last said.
struct Checked {
    checker: Arc<Checker>,
    turns: ArcSwap<(u64, Turns)>,
}

/// A node.
pub struct Node {
    /// Host and port as configured: the `Host` of `pass_host: node`.
    pub authority: Arc<str>,
    host_bytes: usize,
    addr: NodeAddr,
}

/// Where a node is.
#[derive(Clone)]
enum NodeAddr {
    Ip(SocketAddr),
    Name(Arc<Name>, u16),
}

/// The protocol towards the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the scheme it spells")]
pub enum Scheme {
    Http,
    Https,
    Grpc,
    Grpcs,
}

impl Scheme {
    /// As configured.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Grpc => "grpc",
            Self::Grpcs => "grpcs",
        }
    }

    /// Over TLS?
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }

    /// The port of a node that has none of its own.
    pub fn default_port(self) -> u16 {
        if self.is_tls() { 443 } else { 80 }
    }

    /// By HTTP/2?
    pub fn is_h2(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }
}

/// Which `Host` a node gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassHost {
    /// The client's.
    Pass,
    /// The node's own.
    Node,
    /// This one.
    Rewrite(Arc<str>),
}

/// What upstreams are compiled with.
#[derive(Clone)]
pub struct UpstreamDeps {
    /// What is known of nodes, whatever the configuration that knows them.
    pub known: Arc<Known>,
    /// TLS configurations.
    pub tls: Arc<TlsClients>,
    /// Names.
    pub resolver: Arc<Resolver>,
    /// Services that DNS knows; `None` without `discovery.dns`.
    pub services: Option<Arc<Services>>,
    /// The proxies by which calls of functions leave. Upstreams are called directly.
    pub egress: Option<Arc<Egress>>,
    /// Idle connections where an upstream says nothing.
    pub keepalive: Keepalive,
    /// What plugins keep whatever becomes of their configurations.
    pub state: Arc<PluginState>,
    /// Where work is done that is not a request's: never on a request's thread.
    pub background: tokio::runtime::Handle,
}

/// What is known of nodes by name. It outlives changes of the configuration.
#[derive(Debug, Default)]
pub struct Known {
    /// What they have to do.
    pub loads: Loads,
    /// How they are.
    pub health: HealthChecks,
}

impl Upstream {
    /// Compiles an upstream. `key` names it for as long as it exists, among all there are: what
    /// is known of its nodes is found by it again when the configuration has changed. That is the
    /// place it is configured at, as `/upstreams/1`; upstreams inside of plugins add to it.
    /// `client_cert` resolves `tls.client_cert_id`.
    pub fn compile(
        key: &str,
        id: &Arc<str>,
        config: &model::Upstream,
        deps: &UpstreamDeps,
        client_cert: &dyn Fn(&str) -> Option<(String, String)>,
    ) -> Result<Self, String> {
        let scheme = match config.scheme.as_str() {
            "" | "http" => Scheme::Http,
            "https" => Scheme::Https,
            "grpc" => Scheme::Grpc,
            "grpcs" => Scheme::Grpcs,
            other => return Err(format!("upstream scheme {other:?} is not served yet")),
        };
        let nodes: Box<[Node]> = config
            .nodes
            .iter()
            .flatten()
            .map(|node| Node::compile(node, scheme, &deps.resolver))
            .collect();
        let pass_host = match config.pass_host.as_str() {
            "node" => PassHost::Node,
            "rewrite" => {
                PassHost::Rewrite(config.upstream_host.as_deref().unwrap_or_default().into())
            }
            _ => PassHost::Pass,
        };
        let mut client = None;
        let mut verify = false;
        if let Some(tls) = &config.tls {
            verify = tls.verify;
            client = match (&tls.client_cert, &tls.client_key, &tls.client_cert_id) {
                (Some(cert), Some(key), _) => Some(Box::new((cert.clone(), key.clone()))),
                (_, _, Some(id)) => Some(Box::new(
                    client_cert(id)
                        .ok_or_else(|| format!("there is no ssl {id} of type client"))?,
                )),
                _ => None,
            };
        }
        let keepalive = config.keepalive_pool.map_or(deps.keepalive, |pool| Keepalive {
            size: usize::try_from(pool.size).unwrap_or(usize::MAX),
            idle_timeout: seconds(pool.idle_timeout),
            requests: pool.requests,
        });
        let plan = Plan::compile(key, config, scheme.default_port(), &deps.known.loads)?;
        let addrs: Vec<_> = nodes.iter().map(|n| (n.host().into(), n.addr.clone())).collect();
        let checker = deps.known.health.checker(key, config, &addrs)?;
        let discovered = match (&config.nodes, &config.service_name) {
            (None, Some(service)) => Some(discovered(key, id, config, deps, &client, service)?),
            _ => None,
        };
        let upstream = Self {
            discovered,
            id: id.clone(),
            checked: checker.map(|checker| Checked::new(checker, &plan)),
            turns: plan.turns(|_| true),
            plan,
            retries: config.retries.map_or(nodes.len().saturating_sub(1), |n| {
                usize::try_from(n).unwrap_or(usize::MAX)
            }),
            nodes,
            scheme,
            pass_host,
            timeouts: timeouts(config.timeout.as_ref()),
            retry_timeout: config.retry_timeout.filter(|t| *t > 0.0).map(seconds),
            keepalive,
            verify,
            client,
        };
        if scheme.is_tls() && upstream.client.is_some() {
            // A pair that does not work is found now, not by the first request.
            upstream.tls_target("localhost", &deps.tls)?;
            if let Some((cert, _)) = upstream.client.as_deref()
                && let Some(why) = crate::tls::doubt(cert, false)
                && deps.tls.first_warning(&format!("{key}: {why}"))
            {
                warn!(upstream = key, %why, "A client certificate will not be believed by every server.");
            }
        }
        Ok(upstream)
    }

    /// The service that has its nodes, if one has.
    pub fn discovered(&self) -> Option<&Discovered> {
        self.discovered.as_deref()
    }

    /// A node for a request, other than those `tried` before: of the highest priority that has one
    /// left. An only node is tried as often as it takes.
    pub fn pick(&self, vars: &dyn Vars, tried: &[usize]) -> Option<usize> {
        if let Some(checked) = &self.checked {
            return checked.pick(&self.plan, self.nodes.len(), vars, tried);
        }
        match self.nodes.len() {
            1 => Some(0),
            _ => self.turns.pick(vars, tried),
        }
    }

    /// A node answered with this status.
    pub fn answered(&self, node: usize, status: u16) {
        if let Some(checked) = &self.checked {
            checked.checker.answered(node, status);
        }
    }

    /// A node did not answer.
    pub fn failed(&self, node: usize, error: &CallError) {
        // What the client does not send is no fault of the node.
        if let Some(checked) = &self.checked
            && !matches!(error, CallError::RequestBody(_))
        {
            let timed_out = error.status() == StatusCode::GATEWAY_TIMEOUT;
            checked.checker.failed(node, timed_out, || error.to_string());
        }
    }

    /// The `Host` that a node will get, as far as that can be said before one is picked; `None`: the
    /// client's.
    pub(crate) fn host_before_picking(&self, client: Option<&Arc<str>>) -> Option<Arc<str>> {
        match (&self.pass_host, &*self.nodes) {
            (PassHost::Rewrite(host), _) => Some(host.clone()),
            (PassHost::Node, [node]) => Some(node.authority.clone()),
            (PassHost::Pass | PassHost::Node, _) => client.cloned(),
        }
    }

    /// Notes that a request is with a node, where the balancer wants to know.
    pub fn hold(&self, node: usize) -> Option<Hold> {
        self.plan.hold(node)
    }

    /// TLS to a node that is to be called `name`.
    pub fn tls_target(&self, name: &str, tls: &TlsClients) -> Result<Arc<TlsTarget>, String> {
        tls.target(&TlsRequest {
            server_name: name.to_owned(),
            verify: self.verify,
            h2: self.scheme.is_h2(),
            client: self.client.as_deref().cloned(),
        })
    }
}

/// Has the nodes of a service compiled as if they were configured.
fn discovered(
    key: &str,
    id: &Arc<str>,
    config: &model::Upstream,
    deps: &UpstreamDeps,
    client: &Option<Box<(String, String)>>,
    service: &str,
) -> Result<Box<Discovered>, String> {
    match config.discovery_type.as_deref() {
        Some("dns") => {}
        other => {
            let kind = other.unwrap_or_default();
            return Err(format!("discovery {kind} is not there yet; there is dns"));
        }
    }
    let services = deps
        .services
        .as_ref()
        .ok_or("discovery dns is uninitialized: config.yaml has no discovery.dns")?;
    let (key, id, config) = (key.to_owned(), id.clone(), config.clone());
    let (deps, client) = (deps.clone(), client.clone());
    let compile = move |nodes| {
        let config = model::Upstream { nodes: Some(nodes), ..config.clone() };
        Upstream::compile(&key, &id, &config, &deps, &|_| client.as_deref().cloned())
    };
    Ok(Discovered::new(services, service, Box::new(compile)))
}

impl Checked {
    fn new(checker: Arc<Checker>, plan: &Plan) -> Box<Self> {
        let turns = Self::turns(&checker, plan);
        Box::new(Self { turns: ArcSwap::from_pointee(turns), checker })
    }

    // Invariant: the version is read before what it is the version of.
    fn turns(checker: &Checker, plan: &Plan) -> (u64, Turns) {
        let version = checker.version();
        (version, plan.turns(|node| checker.is_up(node)))
    }

    fn pick(&self, plan: &Plan, nodes: usize, vars: &dyn Vars, tried: &[usize]) -> Option<usize> {
        self.checker.used();
        if nodes == 1 {
            return Some(0);
        }
        let turns = self.turns.load();
        if turns.0 == self.checker.version() {
            return turns.1.pick(vars, tried);
        }
        let anew = Arc::new(Self::turns(&self.checker, plan));
        self.turns.store(anew.clone());
        anew.1.pick(vars, tried)
    }
}

impl Node {
    fn compile(config: &model::Node, scheme: Scheme, resolver: &Arc<Resolver>) -> Self {
        let port = config.port.unwrap_or(scheme.default_port());
        let host = config.host.trim_start_matches('[').trim_end_matches(']');
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let authority = match config.port {
            Some(port) => format!("{shown}:{port}"),
            None => shown,
        };
        let addr = match host.parse::<IpAddr>() {
            Ok(ip) => NodeAddr::Ip(SocketAddr::new(ip, port)),
            Err(_) => NodeAddr::Name(resolver.name(host), port),
        };
        Self { authority: authority.into(), host_bytes: host.len(), addr }
    }

    /// The host, without brackets, for TLS.
    pub fn host(&self) -> &str {
        let start = usize::from(self.authority.starts_with('['));
        &self.authority[start..start + self.host_bytes]
    }

    /// An address of the node, unless it is a name that was never resolved yet.
    pub fn known_addr(&self) -> Option<SocketAddr> {
        self.addr.known()
    }

    /// An address of the node; waits for the first of a name.
    pub async fn first_addr(&self, limit: Duration) -> Result<SocketAddr, CallError> {
        self.addr.first(limit).await
    }
}

impl NodeAddr {
    fn port(&self) -> u16 {
        match self {
            Self::Ip(addr) => addr.port(),
            Self::Name(_, port) => *port,
        }
    }

    fn with_port(&self, port: u16) -> Self {
        match self {
            Self::Ip(addr) => Self::Ip(SocketAddr::new(addr.ip(), port)),
            Self::Name(name, _) => Self::Name(name.clone(), port),
        }
    }

    fn known(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Name(name, port) => Some(SocketAddr::new(name.next()?, *port)),
        }
    }

    async fn first(&self, limit: Duration) -> Result<SocketAddr, CallError> {
        match self {
            Self::Ip(addr) => Ok(*addr),
            Self::Name(name, port) => {
                let ip = name
                    .first(limit)
                    .await
                    .map_err(|cause| CallError::Resolve { host: name.host.clone(), cause })?;
                Ok(SocketAddr::new(ip, *port))
            }
        }
    }
}

/// Configured timeouts, or APISIX's 60 s.
pub fn timeouts(config: Option<&model::Timeout>) -> Timeouts {
    match config {
        Some(t) => {
            Timeouts { connect: seconds(t.connect), send: seconds(t.send), read: seconds(t.read) }
        }
        None => Timeouts { connect: TIMEOUT_DEFAULT, send: TIMEOUT_DEFAULT, read: TIMEOUT_DEFAULT },
    }
}

fn seconds(n: f64) -> Duration {
    // Bounded by 10 years: beyond that a timer means never.
    Duration::try_from_secs_f64(n.clamp(0.0, 3.2e8)).unwrap_or_default()
}

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

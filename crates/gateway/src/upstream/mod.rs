//! An upstream, compiled: nodes, whose turn it is, and how to talk to them.

pub mod balance;
pub mod resolve;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sluicegate_model::upstream as model;

use crate::client::{CallError, Keepalive, Timeouts, TlsClients, TlsRequest, TlsTarget};
use crate::plugin::PluginState;
use balance::RoundRobin;
use resolve::{Name, Resolver};

/// A compiled upstream.
pub struct Upstream {
    /// Names it in logs: its id, or that of the route or service it stands in.
    pub id: Arc<str>,
    /// Its nodes.
    pub nodes: Box<[Node]>,
    /// Turns, the highest node priority first.
    groups: Box<[RoundRobin]>,
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

/// A node.
pub struct Node {
    /// Host and port as configured: the `Host` of `pass_host: node`.
    pub authority: Arc<str>,
    host_bytes: usize,
    addr: NodeAddr,
}

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
    /// TLS configurations.
    pub tls: Arc<TlsClients>,
    /// Names.
    pub resolver: Arc<Resolver>,
    /// Idle connections where an upstream says nothing.
    pub keepalive: Keepalive,
    /// What plugins keep whatever becomes of their configurations.
    pub state: Arc<PluginState>,
    /// Where work is done that is not a request's: never on a request's thread.
    pub background: tokio::runtime::Handle,
}

impl Upstream {
    /// Compiles an upstream. `client_cert` resolves `tls.client_cert_id`.
    pub fn compile(
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
        let upstream = Self {
            id: id.clone(),
            groups: groups(config.nodes.as_deref().unwrap_or_default()),
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
        }
        Ok(upstream)
    }

    /// The node whose turn it is, of the highest priority that has one left.
    pub fn pick(&self, tried: &[usize]) -> Option<usize> {
        self.groups.iter().find_map(|group| group.pick(tried))
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

fn groups(nodes: &[model::Node]) -> Box<[RoundRobin]> {
    let mut priorities: Vec<i64> = nodes.iter().map(|n| n.priority).collect();
    priorities.sort_unstable_by_key(|p| std::cmp::Reverse(*p));
    priorities.dedup();
    priorities
        .into_iter()
        .map(|priority| {
            let of = nodes.iter().enumerate().filter(|(_, n)| n.priority == priority);
            RoundRobin::new(&of.map(|(at, n)| (at, n.weight)).collect::<Vec<_>>())
        })
        .collect()
}

impl Node {
    fn compile(config: &model::Node, scheme: Scheme, resolver: &Arc<Resolver>) -> Self {
        let port = config.port.unwrap_or(if scheme.is_tls() { 443 } else { 80 });
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
        match &self.addr {
            NodeAddr::Ip(addr) => Some(*addr),
            NodeAddr::Name(name, port) => Some(SocketAddr::new(name.next()?, *port)),
        }
    }

    /// An address of the node; waits for the first of a name.
    pub async fn first_addr(&self, limit: Duration) -> Result<SocketAddr, CallError> {
        match &self.addr {
            NodeAddr::Ip(addr) => Ok(*addr),
            NodeAddr::Name(name, port) => {
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

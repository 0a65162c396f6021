//! `upstreams`: where requests go.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::kind::Kind;
use crate::resource::{ViewError, optional_id, view};

/// An upstream, on its own or inside a route or service.
///
/// Read it from a value whose defaults are filled in, or with [`Upstream::load`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Upstream {
    /// Id, if it is a resource of its own.
    #[serde(deserialize_with = "optional_id")]
    pub id: Option<String>,
    /// Name for people.
    pub name: Option<String>,
    /// Description for people.
    pub desc: Option<String>,
    /// Labels for people and controllers.
    pub labels: BTreeMap<String, String>,
    /// The balancer: `roundrobin`, `chash`, `ewma`, `least_conn`; any other word is possible, too.
    #[serde(rename = "type")]
    pub kind: String,
    /// What `chash` hashes: `vars`, `header`, `cookie`, `consumer` or `vars_combinations`.
    pub hash_on: String,
    /// The key `chash` hashes.
    pub key: Option<String>,
    /// The nodes; `None` when a discovery finds them.
    #[serde(deserialize_with = "nodes")]
    pub nodes: Option<Vec<Node>>,
    /// `http`, `https`, `grpc`, `grpcs`, `tcp`, `tls`, `udp` or `kafka`.
    pub scheme: String,
    /// Which Host the upstream gets: `pass`, `node` or `rewrite`.
    pub pass_host: String,
    /// The Host of `rewrite`.
    pub upstream_host: Option<String>,
    /// How often a request is repeated; `None`: on every other node once.
    pub retries: Option<u64>,
    /// Seconds after which no new attempt is made; 0 or `None`: no limit.
    pub retry_timeout: Option<f64>,
    /// Time limits.
    pub timeout: Option<Timeout>,
    /// Pool of idle connections.
    pub keepalive_pool: Option<KeepalivePool>,
    /// TLS towards the upstream.
    pub tls: Option<Tls>,
    /// Name to ask the discovery for.
    pub service_name: Option<String>,
    /// The discovery: `dns`, `nacos`, …
    pub discovery_type: Option<String>,
    /// What else the discovery wants to know.
    pub discovery_args: Option<Value>,
    /// Health checks.
    pub checks: Option<Value>,
}

impl Upstream {
    /// Reads a stored upstream: defaults first.
    ///
    /// # Errors
    /// When the value does not pass its schema, or a node's port is none.
    pub fn load(value: &Value) -> Result<Self, ViewError> {
        view(Kind::Upstreams, value)
    }
}

/// One node of an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Name or address. An IPv6 address stands here without brackets.
    pub host: String,
    /// Port; `None`: that of the scheme.
    pub port: Option<u16>,
    /// Share of the requests. 0: none, unless it is the only node.
    pub weight: u32,
    /// Nodes of a lower priority serve only when all of a higher one cannot.
    pub priority: i64,
}

impl Node {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self, default_port: u16) -> String {
        let port = self.port.unwrap_or(default_port);
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

/// Time limits in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Timeout {
    /// For connecting.
    pub connect: f64,
    /// Between two writes.
    pub send: f64,
    /// Between two reads.
    pub read: f64,
}

/// Pool of idle connections.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct KeepalivePool {
    /// Idle connections kept per worker.
    pub size: u64,
    /// Seconds an idle connection is kept.
    pub idle_timeout: f64,
    /// Requests a connection serves before it is closed.
    pub requests: u64,
}

/// TLS towards the upstream.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// Our certificate, PEM.
    pub client_cert: Option<String>,
    /// Its key: PEM, encrypted as stored.
    pub client_key: Option<String>,
    /// An `ssls` resource of type `client` instead of both.
    #[serde(deserialize_with = "optional_id")]
    pub client_cert_id: Option<String>,
    /// Whether the upstream's certificate is verified.
    pub verify: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("client_cert_id", &self.client_cert_id)
            .field("verify", &self.verify)
            .finish_non_exhaustive()
    }
}

/// Splits `host:port` as APISIX does: brackets stay, two colons without brackets are an IPv6 address
/// without port, and a port that is no number is none.
pub(crate) fn split_address(address: &str) -> (&str, Option<f64>) {
    let bracketed = address.starts_with('[');
    if bracketed && address.ends_with(']') {
        return (address, None);
    }
    // A name with a dot is no IPv6 address, however many colons follow.
    let before_dot = address.split_once('.').map_or(address, |(before, _)| before);
    if !bracketed && before_dot.matches(':').count() >= 2 {
        return (address, None);
    }
    // A colon at the very end starts no port.
    let searched = address.char_indices().next_back().map_or("", |(last, _)| &address[..last]);
    match searched.rfind(':') {
        Some(colon) if !bracketed || address[..colon].ends_with(']') => {
            (&address[..colon], lua_number(&address[colon + 1..]))
        }
        _ => (address, None),
    }
}

/// Lua's `tonumber`, as far as a port may need it.
fn lua_number(text: &str) -> Option<f64> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok().map(f64::from),
        None => text.parse().ok(),
    }
}

fn nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Node>>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Object(nodes) => nodes
            .iter()
            .map(|(address, weight)| {
                let (host, port) = split_address(address);
                Ok(Node {
                    host: bare(host),
                    port: port.map(to_port).transpose()?,
                    weight: to_weight(weight),
                    priority: 0,
                })
            })
            .collect::<Result<_, _>>()
            .map(Some),
        Value::Array(nodes) => nodes
            .iter()
            .map(|node| {
                let host = node
                    .get("host")
                    .and_then(Value::as_str)
                    .ok_or_else(|| D::Error::custom("a node has no host"))?;
                // A host may bring its own port, which then counts.
                let (host, own) = match split_address(host) {
                    (name, Some(port)) => (name, Some(port)),
                    _ => (host, None),
                };
                let port = own.or_else(|| node.get("port").and_then(Value::as_f64));
                Ok(Node {
                    host: bare(host),
                    port: port.map(to_port).transpose()?,
                    weight: to_weight(node.get("weight").unwrap_or(&Value::Null)),
                    priority: node.get("priority").and_then(Value::as_i64).unwrap_or(0),
                })
            })
            .collect::<Result<_, _>>()
            .map(Some),
        _ => Err(D::Error::custom("nodes are a map or a list")),
    }
}

fn bare(host: &str) -> String {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned()
}

fn to_port<E: serde::de::Error>(port: f64) -> Result<u16, E> {
    if port % 1.0 == 0.0 && (1.0..=65535.0).contains(&port) {
        Ok(port as u16)
    } else {
        Err(E::custom(format_args!("invalid port {port}")))
    }
}

/// Weights beyond what a balancer can add up are all the same to it.
fn to_weight(weight: &Value) -> u32 {
    weight.as_f64().unwrap_or_default().clamp(0.0, f64::from(WEIGHT_MAX)) as u32
}

/// The largest weight: a million nodes of it still add up in 64 bits.
const WEIGHT_MAX: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_split_as_apisix_splits_them() {
        for (address, host, port) in [
            ("127.0.0.1", "127.0.0.1", None),
            ("127.0.0.1:80", "127.0.0.1", Some(80.0)),
            ("example.com", "example.com", None),
            ("example.com:8080", "example.com", Some(8080.0)),
            ("localhost", "localhost", None),
            ("localhost:90", "localhost", Some(90.0)),
            ("[::1]", "[::1]", None),
            ("[::1]:80", "[::1]", Some(80.0)),
            ("[::1", "[::1", None),
            ("[::1]80", "[::1]80", None),
            ("::1", "::1", None),
            ("2001:db8::68", "2001:db8::68", None),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.1", None),
            ("a.b:c:80", "a.b:c", Some(80.0)),
            ("host:", "host:", None),
            ("host:x", "host", None),
            ("host:0x50", "host", Some(80.0)),
            ("host:0", "host", Some(0.0)),
            ("", "", None),
            ("é", "é", None),
            (":", ":", None),
        ] {
            assert_eq!(split_address(address), (host, port), "{address}");
        }
    }

    #[test]
    fn nodes_come_as_map_or_list() {
        let node = |host: &str, port, weight, priority| Node {
            host: host.to_owned(),
            port,
            weight,
            priority,
        };
        for (nodes, expected) in [
            (
                json!({"127.0.0.1:80": 1, "[::1]:81": 2, "example.com": 0}),
                vec![
                    node("127.0.0.1", Some(80), 1, 0),
                    node("::1", Some(81), 2, 0),
                    node("example.com", None, 0, 0),
                ],
            ),
            (
                json!([
                    {"host": "127.0.0.1", "port": 80, "weight": 1.0},
                    {"host": "[::1]", "weight": 99_999_999_999_u64, "priority": -1, "metadata": {"a": null}},
                    {"host": "127.0.0.1:81", "weight": 1},
                    {"host": "127.0.0.1:82", "port": 80, "weight": 1},
                ]),
                vec![
                    node("127.0.0.1", Some(80), 1, 0),
                    node("::1", None, u32::MAX, -1),
                    node("127.0.0.1", Some(81), 1, 0),
                    node("127.0.0.1", Some(82), 1, 0),
                ],
            ),
            (json!({}), vec![]),
            (json!([]), vec![]),
        ] {
            assert_eq!(
                Upstream::load(&json!({"nodes": nodes})).unwrap().nodes,
                Some(expected),
                "{nodes}"
            );
        }
        assert_eq!(node("::1", None, 1, 0).authority(80), "[::1]:80");
        assert_eq!(node("a", Some(90), 1, 0).authority(80), "a:90");
    }

    #[test]
    fn an_upstream_is_read_with_its_defaults() {
        let upstream = Upstream::load(&json!({
            "id": 7,
            "service_name": "svc",
            "discovery_type": "dns",
            "retries": 2.0,
            "retry_timeout": 3,
            "timeout": {"connect": 1, "send": 0.5, "read": 60},
            "keepalive_pool": {"size": 9},
            "tls": {"client_cert_id": 3},
            "labels": [],
        }))
        .unwrap();
        assert_eq!(
            upstream,
            Upstream {
                id: Some("7".to_owned()),
                kind: "roundrobin".to_owned(),
                hash_on: "vars".to_owned(),
                scheme: "http".to_owned(),
                pass_host: "pass".to_owned(),
                service_name: Some("svc".to_owned()),
                discovery_type: Some("dns".to_owned()),
                retries: Some(2),
                retry_timeout: Some(3.0),
                timeout: Some(Timeout { connect: 1.0, send: 0.5, read: 60.0 }),
                keepalive_pool: Some(KeepalivePool { size: 9, idle_timeout: 60.0, requests: 1000 }),
                tls: Some(Tls { client_cert_id: Some("3".to_owned()), ..Tls::default() }),
                ..Upstream::default()
            }
        );
    }

    #[test]
    fn an_upstream_that_means_nothing_is_refused() {
        for value in [
            json!({}),
            json!({"nodes": {"a:0": 1}}),
            json!({"nodes": {"a:70000": 1}}),
            json!({"nodes": [{"host": "a:70000", "weight": 1}]}),
            json!({"nodes": 1}),
        ] {
            assert!(Upstream::load(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_client_key_is_never_printed() {
        let tls = Tls { client_key: Some("hidden".to_owned()), ..Tls::default() };
        assert!(!format!("{tls:?}").contains("hidden"));
    }
}

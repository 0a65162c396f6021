//! What the data plane takes from config.yaml, in its own terms.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::http::head::HeadLimits;
use crate::router::Mode;

/// The data plane's static configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Plain and TLS addresses to listen on.
    pub listen: Vec<Listen>,
    /// Speak HTTP/2: by ALPN on TLS, by prior knowledge on plain ports.
    pub http2: bool,
    /// Request threads, each with its own listeners, connections and pools.
    pub workers: usize,
    /// The `Server` header.
    pub server: String,
    /// What this instance is called among others.
    pub instance_id: Arc<str>,
    /// Limits of a client's request head.
    pub client_head: HeadLimits,
    /// Limits of an upstream's response head.
    pub upstream_head: HeadLimits,
    /// For a whole request head to arrive.
    pub client_header_timeout: Duration,
    /// Between two reads of a request body.
    pub client_body_timeout: Duration,
    /// Between two writes to a client.
    pub send_timeout: Duration,
    /// For the next request on an idle connection; zero: connections are not kept.
    pub keepalive_timeout: Duration,
    /// Bytes of a request body; `None`: no limit.
    pub client_body_max: Option<u64>,
    /// Bytes of a form read for `post_arg_*` variables.
    pub post_args_max: u64,
    /// Bytes of a body read for `graphql_*` variables.
    pub graphql_max: u64,
    /// Take header names with underscores.
    pub underscores_in_headers: bool,
    /// Whom to believe about the client's address.
    pub real_ip: RealIp,
    /// `apisix.trusted_addresses`; `None` when none are configured.
    pub trusted_addresses: Option<Vec<IpNet>>,
    /// How routes are matched.
    pub router: Mode,
    /// Match `/a/` as `/a`.
    pub delete_uri_tail_slash: bool,
    /// Cut path parameters (`;x`) off before matching.
    pub normalize_uri_like_servlet: bool,
    /// `%2F` stays encoded in the path that routes match.
    pub match_uri_encoded_slash: bool,
    /// TLS towards clients.
    pub tls: TlsSettings,
    /// The access log; `None`: none is written.
    pub access_log: Option<AccessLog>,
    /// How long requests in flight may take after a graceful stop.
    pub shutdown_timeout: Duration,
    /// Bytes of request bodies held whole at one time, all function calls together.
    pub buffered_body_bytes: u64,
    /// How long idle connections above a pool's number live.
    pub idle_grace: Duration,
    /// Upstream connections kept where an upstream says nothing (`nginx_config.http.upstream`).
    pub upstream_keepalive: crate::client::Keepalive,
    /// Tell an upstream's status with every answer of it, not only with 5xx.
    pub show_upstream_status: bool,
    /// HTTP/2 streams a client may have open on one connection.
    pub http2_streams: u32,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub addr: SocketAddr,
    /// Speaks TLS.
    pub tls: bool,
    /// Every connection begins with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// nginx's real-ip rules.
#[derive(Clone, Debug, Default)]
pub struct RealIp {
    /// The header, lower case; empty: none.
    pub header: String,
    /// Peers that are believed.
    pub from: Vec<IpNet>,
    /// Skip believed addresses from the right of the list.
    pub recursive: bool,
}

/// TLS towards clients.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// TLS 1.2 is offered.
    pub tls12: bool,
    /// TLS 1.3 is offered.
    pub tls13: bool,
    /// TLS 1.2 cipher suites by OpenSSL's names, as configured; names of none that rustls has
    /// stand for all.
    pub ciphers: Vec<String>,
    /// Session tickets are given out.
    pub session_tickets: bool,
    /// The name whose certificate answers clients that name none.
    pub fallback_sni: Option<String>,
}

/// Where and how requests are logged.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// The format string.
    pub format: String,
    /// How values are made safe.
    pub escape: Escape,
    /// Bytes gathered before a write.
    pub buffer: usize,
}

/// How a log keeps a client from writing lines of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// `\xXX` for quotes, backslashes, control and non-ASCII bytes.
    Default,
    /// As in a JSON string.
    Json,
    /// Not at all.
    None,
}

//! The configuration as the rest of the gateway reads it: plain fields, no text left to parse.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::check::{Values, check};
use crate::ciphers;
use crate::error::{ConfigError, Problems, Warning};
use crate::kind::{FromParsed, Parsed};
use crate::secret::Secret;
use crate::variables::{Env, substitute};
use crate::{APISIX_PLUGINS, FILE_BYTES_MAX, keys, yaml};

/// The static configuration: `conf/config.yaml` over the defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// `apisix`: the gateway itself.
    pub apisix: Apisix,
    /// `nginx_config`: workers, logs, times and limits.
    pub nginx_config: NginxConfig,
    /// `deployment`: the store and the Admin API.
    pub deployment: Deployment,
    /// `graphql`: reading of GraphQL queries.
    pub graphql: Graphql,
    /// `discovery.dns`; `None` where it names no server.
    pub dns_discovery: Option<DnsDiscovery>,
    /// `plugins`: names of the plugins that may be used. `None`: all there are. See
    /// [`Config::enabled_plugins`].
    pub plugins: Option<Vec<String>>,
    /// `plugin_attr`: settings by plugin name.
    pub plugin_attr: PluginAttr,
    /// `sluicegate.limits`.
    pub limits: Limits,
    /// `sluicegate.egress_proxy`.
    pub egress_proxy: EgressProxy,
    /// `sluicegate.server_header`: what the `Server` header says in place of our own name.
    pub server_header: Option<String>,
    /// `sluicegate.admin.redact_secrets`: the Admin API shows no secrets.
    pub redact_secrets: bool,
    values: Values,
}

impl Config {
    /// Reads a file. The configuration is whole or an error; warnings are for the log.
    pub fn load(path: &Path, env: Env<'_>) -> Result<(Self, Vec<Warning>), ConfigError> {
        let file = path.display().to_string();
        let text = crate::file::read(path)?;
        Self::parse(&file, &text, env)
    }

    /// Reads a file's text; `file` is what errors call it.
    pub fn parse(
        file: &str,
        text: &str,
        env: Env<'_>,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { file: file.into(), limit: FILE_BYTES_MAX });
        }
        let mut problems = Problems::default();
        let mut warnings = Vec::new();
        let mut root = yaml::read(file, text, &mut problems)?;
        if let Some(root) = &mut root {
            substitute(root, env, &mut problems);
        }
        let values = check(file, root.as_ref(), &mut problems, &mut warnings);
        let mut build = Build {
            file,
            env,
            values: &values,
            etcd_line: root.as_ref().and_then(etcd_line),
            has_status: root
                .as_ref()
                .and_then(|root| root.at(&["apisix", "status"]))
                .is_some_and(|status| !status.is_null()),
            problems: &mut problems,
            warnings: &mut warnings,
        };
        let mut apisix = build.apisix();
        let role = build.role();
        // A role decides this alone, as with APISIX.
        match role {
            Role::Traditional => {}
            Role::ControlPlane => apisix.enable_admin = true,
            Role::DataPlane => apisix.enable_admin = false,
        }
        let nginx_config = build.nginx_config(apisix.enable_dev_mode);
        let deployment = build.deployment(role, apisix.enable_admin);
        let dns_discovery = build.dns_discovery();
        build.listeners(&apisix, &deployment);
        problems.into_result(file)?;
        let config = Self {
            apisix,
            nginx_config,
            deployment,
            graphql: Graphql { max_size: values.get("graphql.max_size") },
            dns_discovery,
            plugins: values.opt("plugins"),
            plugin_attr: PluginAttr(match values.opt("plugin_attr") {
                Some(Value::Object(attributes)) => attributes,
                _ => Map::new(),
            }),
            egress_proxy: EgressProxy {
                https_proxy: values.opt("sluicegate.egress_proxy.https_proxy"),
                http_proxy: values.opt("sluicegate.egress_proxy.http_proxy"),
                no_proxy: values.opt("sluicegate.egress_proxy.no_proxy").unwrap_or_default(),
            },
            server_header: values
                .opt("sluicegate.server_header")
                .filter(|text: &String| !text.is_empty()),
            redact_secrets: values.get("sluicegate.admin.redact_secrets"),
            limits: Limits {
                header_count: values.get("sluicegate.limits.header_count"),
                header_bytes: values.get("sluicegate.limits.header_bytes"),
                buffered_body_bytes: values.get("sluicegate.limits.buffered_body_bytes"),
                idle_grace: Duration::from_millis(
                    values.get::<u32>("sluicegate.limits.idle_grace_ms").into(),
                ),
            },
            values,
        };
        Ok((config, warnings))
    }

    /// The keys that differ between two configurations and are only read at start, so that a
    /// reload cannot bring them.
    pub fn restart_needed(old: &Self, new: &Self) -> Vec<&'static str> {
        old.values.restart_needed(&new.values)
    }

    /// The plugins to use out of those `available`, and what to warn about.
    ///
    /// Names that APISIX has and this build has not end up in one warning; for a name that nobody
    /// knows, the nearest one that is available is suggested.
    pub fn enabled_plugins<'a>(&self, available: &[&'a str]) -> (Vec<&'a str>, Vec<Warning>) {
        let Some(wanted) = &self.plugins else {
            return (available.to_vec(), Vec::new());
        };
        let mut enabled = Vec::new();
        let mut missing = BTreeSet::new();
        let mut warnings = Vec::new();
        for name in wanted {
            if let Some(plugin) = available.iter().find(|plugin| *plugin == name) {
                if !enabled.contains(plugin) {
                    enabled.push(plugin);
                }
            } else if APISIX_PLUGINS.contains(&name.as_str()) {
                missing.insert(name.as_str());
            } else {
                let mut text = format!("plugins: there is no plugin {name:?}");
                if let Some(nearest) = keys::nearest(name, available.iter().copied()) {
                    text += &format!("; did you mean {nearest}?");
                }
                warnings.push(Warning::Surprise(text));
            }
        }
        if !missing.is_empty() {
            let names = Vec::from_iter(missing).join(", ");
            let text = format!("plugins that Sluicegate does not have yet are left out: {names}");
            warnings.push(Warning::Surprise(text));
        }
        (enabled, warnings)
    }

    /// Every address of the plain ports: a listener without an address becomes one on IPv4 and,
    /// with `apisix.enable_ipv6`, one on IPv6. A control plane has none, of this and the
    /// following.
    pub fn http_addrs(&self) -> Vec<SocketAddr> {
        match self.deployment.role.has_data_plane() {
            true => self.apisix.expand(&self.apisix.node_listen),
            false => Vec::new(),
        }
    }

    /// Every address of the TLS ports; empty when TLS is off.
    pub fn https_addrs(&self) -> Vec<SocketAddr> {
        match self.apisix.ssl.enable && self.deployment.role.has_data_plane() {
            true => self.apisix.expand(&self.apisix.ssl.listen),
            false => Vec::new(),
        }
    }

    /// Plain addresses whose connections begin with a PROXY protocol header.
    pub fn proxy_protocol_http_addrs(&self) -> Vec<SocketAddr> {
        self.proxy_protocol_addrs(self.apisix.proxy_protocol.listen_http_port)
    }

    /// TLS addresses whose connections begin with a PROXY protocol header.
    pub fn proxy_protocol_https_addrs(&self) -> Vec<SocketAddr> {
        match self.apisix.ssl.enable {
            true => self.proxy_protocol_addrs(self.apisix.proxy_protocol.listen_https_port),
            false => Vec::new(),
        }
    }

    fn proxy_protocol_addrs(&self, port: Option<u16>) -> Vec<SocketAddr> {
        match port {
            Some(port) if self.deployment.role.has_data_plane() => {
                self.apisix.expand(&[Listen { ip: None, port }])
            }
            _ => Vec::new(),
        }
    }
}

/// `apisix`: the gateway itself.
#[derive(Debug, Clone)]
pub struct Apisix {
    /// `node_listen`: the plain ports.
    pub node_listen: Vec<Listen>,
    /// `enable_admin`: whether the Admin API listens.
    pub enable_admin: bool,
    /// `enable_dev_mode`: one worker.
    pub enable_dev_mode: bool,
    /// `show_upstream_status_in_response_header`.
    pub show_upstream_status_in_response_header: bool,
    /// `enable_ipv6`.
    pub enable_ipv6: bool,
    /// `enable_http2`: on every port.
    pub enable_http2: bool,
    /// `proxy_protocol`: further ports.
    pub proxy_protocol: ProxyProtocol,
    /// `enable_server_tokens`: the version in the `Server` header.
    pub enable_server_tokens: bool,
    /// `proxy_cache`.
    pub proxy_cache: ProxyCache,
    /// `delete_uri_tail_slash`.
    pub delete_uri_tail_slash: bool,
    /// `normalize_uri_like_servlet`.
    pub normalize_uri_like_servlet: bool,
    /// `match_uri_encoded_slash`.
    pub match_uri_encoded_slash: bool,
    /// `max_post_args_readable_size` in bytes; `None` for no limit.
    pub max_post_args_bytes: Option<u64>,
    /// `router.http`.
    pub router_http: RouterHttp,
    /// `unknown_plugins` is `skip`: routes go without plugins that this version does not have.
    pub skip_unknown_plugins: bool,
    /// `proxy_mode` includes streams: `stream_routes` can be stored.
    pub stream_proxy: bool,
    /// `dns_resolver`: `None` for the system's own.
    pub dns_resolver: Option<Vec<SocketAddr>>,
    /// `id`: a name for this instance.
    pub id: Option<String>,
    /// `dns_resolver_valid`: in place of the records' TTL.
    pub dns_resolver_valid: Option<Duration>,
    /// `resolver_timeout`.
    pub resolver_timeout: Duration,
    /// `enable_resolv_search_opt`.
    pub resolver_search: bool,
    /// `disable_upstream_healthcheck`.
    pub disable_upstream_healthcheck: bool,
    /// `ssl`: TLS for clients.
    pub ssl: Ssl,
    /// `control`: the control API's address; `None` when `enable_control` is false.
    pub control: Option<SocketAddr>,
    /// `status`: the status API's address; `None` where there is no `status`.
    pub status: Option<SocketAddr>,
    /// `lru.secret.ttl`: a secret kept elsewhere is fetched again after this time.
    pub secret_ttl: Duration,
    /// `lru.secret.neg_ttl`: the longest wait after fetching one failed.
    pub secret_neg_ttl: Duration,
    /// `data_encryption`.
    pub data_encryption: DataEncryption,
    /// `trusted_addresses`: whose `X-Forwarded-*` is believed; `None` when not configured.
    pub trusted_addresses: Option<Vec<IpNet>>,
}

impl Apisix {
    fn expand(&self, listeners: &[Listen]) -> Vec<SocketAddr> {
        let mut addrs = Vec::new();
        for listen in listeners {
            let ips: &[IpAddr] = match &listen.ip {
                Some(ip) => std::slice::from_ref(ip),
                None if self.enable_ipv6 => &[ANY_V4, ANY_V6],
                None => &[ANY_V4],
            };
            for ip in ips {
                let addr = SocketAddr::new(*ip, listen.port);
                // The system chooses another port for every 0.
                if addr.port() == 0 || !addrs.contains(&addr) {
                    addrs.push(addr);
                }
            }
        }
        addrs
    }
}

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The address; `None` for every one.
    pub ip: Option<IpAddr>,
    /// The port; 0 lets the system choose.
    pub port: u16,
}

/// `apisix.proxy_protocol`: ports whose connections start with a PROXY protocol header.
#[derive(Debug, Clone, Default)]
pub struct ProxyProtocol {
    /// `listen_http_port`.
    pub listen_http_port: Option<u16>,
    /// `listen_https_port`.
    pub listen_https_port: Option<u16>,
}

/// `apisix.proxy_cache`: caches of answers.
#[derive(Debug, Clone)]
pub struct ProxyCache {
    /// `cache_ttl`: of answers on disk that do not say for how long they are good.
    pub cache_ttl: Duration,
    /// `zones`.
    pub zones: Vec<CacheZone>,
}

/// One of `apisix.proxy_cache.zones`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheZone {
    /// `name`.
    pub name: String,
    /// `memory_size` in bytes.
    pub memory_size: u64,
    /// Where its files are, when it is on disk.
    pub disk: Option<CacheDisk>,
}

/// Where a zone on disk keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheDisk {
    /// `disk_path`, under the prefix unless absolute.
    pub path: PathBuf,
    /// `disk_size` in bytes.
    pub size: u64,
    /// `cache_levels`: digits of a file's name that name the folders it is in.
    pub levels: Vec<usize>,
}

/// `apisix.router.http`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterHttp {
    /// `radixtree_host_uri`: host, then path.
    HostUri,
    /// `radixtree_uri`: path.
    Uri,
    /// `radixtree_uri_with_parameter`: path with `:name` parameters.
    UriWithParameter,
}

/// `apisix.ssl`: TLS for clients.
#[derive(Debug, Clone)]
pub struct Ssl {
    /// `enable`.
    pub enable: bool,
    /// `listen`.
    pub listen: Vec<Listen>,
    /// `ssl_protocols`: never empty.
    pub protocols: Vec<TlsVersion>,
    /// `ssl_ciphers`: those of TLS 1.2 that this gateway has, by OpenSSL's names, at least one.
    pub ciphers: Vec<String>,
    /// `ssl_session_tickets`.
    pub session_tickets: bool,
    /// `fallback_sni`.
    pub fallback_sni: Option<String>,
    /// `ssl_trusted_certificate`.
    pub trusted_certificate: TrustedCertificate,
}

/// A TLS version that rustls has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// `TLSv1.2`
    V1_2,
    /// `TLSv1.3`
    V1_3,
}

/// `apisix.ssl.ssl_trusted_certificate`: which authorities upstreams' certificates may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedCertificate {
    /// The word `system`: the system's own.
    System,
    /// A PEM file, under the prefix unless absolute.
    File(PathBuf),
}

/// `apisix.data_encryption`.
#[derive(Debug, Clone)]
pub struct DataEncryption {
    /// `enable_encrypt_fields`.
    pub enable_encrypt_fields: bool,
    /// `keyring`: the first encrypts, all decrypt; APISIX's default keys where it is not set, and
    /// empty, where it is empty, for no encryption.
    pub keyring: Vec<Secret>,
}

/// `nginx_config`.
#[derive(Debug, Clone)]
pub struct NginxConfig {
    /// `error_log`.
    pub error_log: LogTarget,
    /// `error_log_level`.
    pub error_log_level: ErrorLogLevel,
    /// `worker_processes`.
    pub worker_processes: WorkerProcesses,
    /// `worker_rlimit_nofile`.
    pub worker_rlimit_nofile: u32,
    /// `worker_shutdown_timeout`.
    pub worker_shutdown_timeout: Duration,
    /// `http`.
    pub http: Http,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere.
    Off,
    /// `/dev/stdout`
    Stdout,
    /// `/dev/stderr`
    Stderr,
    /// A file, under the prefix unless absolute.
    File(PathBuf),
}

/// `nginx_config.error_log_level`, the least severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorLogLevel {
    /// `debug`
    Debug,
    /// `info`
    Info,
    /// `notice`
    Notice,
    /// `warn`
    Warn,
    /// `error`
    Error,
    /// `crit`
    Crit,
    /// `alert`
    Alert,
    /// `emerg`
    Emerg,
}

/// `nginx_config.worker_processes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerProcesses {
    /// One per CPU.
    Auto,
    /// This many.
    Count(NonZeroU16),
}

/// `nginx_config.http`.
#[derive(Debug, Clone)]
pub struct Http {
    /// `access_log`; [`LogTarget::Off`] also when `enable_access_log` is false.
    pub access_log: LogTarget,
    /// `access_log_buffer` in bytes.
    pub access_log_buffer: u64,
    /// `access_log_format`: without line breaks at its end, and with the escapes that nginx's own
    /// file format would take away (`\"`, `\\`) taken away.
    pub access_log_format: String,
    /// `access_log_format_escape`.
    pub access_log_format_escape: LogEscape,
    /// `keepalive_timeout`; zero: close after each answer.
    pub keepalive_timeout: Duration,
    /// `client_header_timeout`.
    pub client_header_timeout: Duration,
    /// `client_body_timeout`.
    pub client_body_timeout: Duration,
    /// `client_max_body_size` in bytes; `None` for no limit.
    pub client_max_body_size: Option<u64>,
    /// `send_timeout`.
    pub send_timeout: Duration,
    /// `underscores_in_headers`.
    pub underscores_in_headers: bool,
    /// `real_ip_header`.
    pub real_ip_header: String,
    /// `real_ip_recursive`.
    pub real_ip_recursive: bool,
    /// `real_ip_from`, less `unix:`.
    pub real_ip_from: Vec<IpNet>,
    /// `proxy_ssl_server_name`.
    pub proxy_ssl_server_name: bool,
    /// `upstream`: idle connections.
    pub upstream: UpstreamKeepalive,
    /// `custom_lua_shared_dict`: zones for Lua functions, with their sizes in bytes.
    pub custom_lua_shared_dict: Vec<(String, u64)>,
}

/// `nginx_config.http.access_log_format_escape`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEscape {
    /// `default`
    Default,
    /// `json`
    Json,
    /// `none`
    None,
}

/// `nginx_config.http.upstream`: idle connections to upstreams.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamKeepalive {
    /// `keepalive`: idle connections per worker.
    pub keepalive: usize,
    /// `keepalive_requests` per connection.
    pub keepalive_requests: usize,
    /// `keepalive_timeout` of an idle connection.
    pub keepalive_timeout: Duration,
}

/// `deployment`.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// `role`.
    pub role: Role,
    /// `config_provider` of the role.
    pub config_provider: ConfigProvider,
    /// `embedded.path`: the embedded store's file, under the prefix unless absolute.
    pub embedded_path: PathBuf,
    /// `etcd`: used when it is the [`config_provider`](Self::config_provider); its prefix is what
    /// keys in answers start with in any case.
    pub etcd: Etcd,
    /// `admin`: the Admin API.
    pub admin: Admin,
}

/// `deployment.role`: what this instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `traditional`: data plane and Admin API.
    Traditional,
    /// `control_plane`: the Admin API, and no ports for clients.
    ControlPlane,
    /// `data_plane`: ports for clients, and no Admin API.
    DataPlane,
}

impl Role {
    /// Are there ports for clients?
    pub fn has_data_plane(self) -> bool {
        self != Self::ControlPlane
    }
}

/// Where resources are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigProvider {
    /// In a file of our own.
    Embedded,
    /// In etcd: see [`Deployment::etcd`].
    Etcd,
    /// In `conf/apisix.yaml`.
    Yaml,
    /// In `conf/apisix.json`.
    Json,
}

/// `deployment.etcd`, with APISIX's defaults.
#[derive(Clone)]
pub struct Etcd {
    /// `host`: never empty.
    pub host: Vec<String>,
    /// `prefix`
    pub prefix: String,
    /// `timeout`
    pub timeout: Duration,
    /// `watch_timeout`
    pub watch_timeout: Duration,
    /// `resync_delay`
    pub resync_delay: Duration,
    /// `health_check_timeout`
    pub health_check_timeout: Duration,
    /// `startup_retry`
    pub startup_retry: u32,
    /// `user`
    pub user: Option<String>,
    /// `password`
    pub password: Option<Secret>,
    /// `tls.cert`: a PEM file, under the prefix unless absolute.
    pub tls_cert: Option<PathBuf>,
    /// `tls.key`: a PEM file, under the prefix unless absolute. There when `tls_cert` is.
    pub tls_key: Option<PathBuf>,
    /// `tls.verify`
    pub tls_verify: bool,
    /// `tls.sni`
    pub tls_sni: Option<String>,
}

/// Addresses without what somebody may have put before their `@`, and no password.
impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host: Vec<String> = self.host.iter().map(|host| without_userinfo(host)).collect();
        f.debug_struct("Etcd")
            .field("host", &host)
            .field("prefix", &self.prefix)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// An address without the user and password before its `@`.
fn without_userinfo(url: &str) -> String {
    let (scheme, rest) = url.split_at(url.find("://").map_or(0, |at| at + 3));
    format!("{scheme}{}", rest.rsplit('@').next().unwrap_or_default())
}

/// `deployment.admin`: the Admin API.
#[derive(Debug, Clone)]
pub struct Admin {
    /// `admin_key_required`.
    pub admin_key_required: bool,
    /// `admin_key`. An empty key opens nothing; see [`Config::fill_admin_keys`].
    pub admin_key: Vec<AdminKey>,
    /// `enable_admin_cors`.
    pub enable_admin_cors: bool,
    /// `allow_admin`: who may connect; empty for nobody.
    pub allow_admin: Vec<IpNet>,
    /// `admin_listen`.
    pub admin_listen: SocketAddr,
    /// `https_admin` and `admin_api_mtls`; `None` for plain HTTP.
    pub tls: Option<AdminTls>,
}

/// `deployment.admin.admin_api_mtls`: PEM files, from the folder `conf/` unless absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTls {
    /// `admin_ssl_cert`.
    pub cert: PathBuf,
    /// `admin_ssl_cert_key`.
    pub key: PathBuf,
    /// `admin_ssl_ca_cert`: whose certificates clients have to bring; `None` for none.
    pub client_ca: Option<PathBuf>,
}

/// One of `deployment.admin.admin_key`.
#[derive(Debug, Clone)]
pub struct AdminKey {
    /// `name`, for people.
    pub name: String,
    /// `key`, what `X-API-KEY` must carry.
    pub key: Secret,
    /// `role`.
    pub role: AdminRole,
}

/// What an admin key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminRole {
    /// Everything.
    Admin,
    /// Reading.
    Viewer,
}

/// `graphql`: GraphQL queries that routes look at.
#[derive(Debug, Clone, Copy)]
pub struct Graphql {
    /// `max_size` of a request body, in bytes.
    pub max_size: u64,
}

/// `discovery.dns`: services that a DNS server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsDiscovery {
    /// `servers`; `None`: those of `resolv_conf`.
    pub servers: Option<Vec<SocketAddr>>,
    /// `resolv_conf`.
    pub resolv_conf: Option<PathBuf>,
    /// `order`: of `last`, `SRV`, `A`, `AAAA` and `CNAME`.
    pub order: Vec<String>,
}

/// `plugin_attr`: settings by plugin name. `Debug` shows the names only, as values may be secret.
#[derive(Clone, Default, PartialEq)]
pub struct PluginAttr(Map<String, Value>);

impl PluginAttr {
    /// A plugin's settings.
    pub fn get(&self, plugin: &str) -> Option<&Value> {
        self.0.get(plugin)
    }
}

impl fmt::Debug for PluginAttr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// `sluicegate.egress_proxy`: the proxies by which functions, credentials and secrets are reached.
#[derive(Debug, Clone)]
pub struct EgressProxy {
    /// `https_proxy`, a URL that may hold a password.
    pub https_proxy: Option<Secret>,
    /// `http_proxy`, likewise.
    pub http_proxy: Option<Secret>,
    /// `no_proxy`: whom to call directly.
    pub no_proxy: Vec<String>,
}

/// `sluicegate.limits`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `header_count` of a request.
    pub header_count: usize,
    /// `header_bytes` of a request's head.
    pub header_bytes: u64,
    /// `buffered_body_bytes` over all requests.
    pub buffered_body_bytes: u64,
    /// `idle_grace_ms`.
    pub idle_grace: Duration,
}

/// Builds the typed sections and checks what no single key can say.
struct Build<'a> {
    file: &'a str,
    env: Env<'a>,
    values: &'a Values,
    /// Line of `deployment.etcd` where it is present.
    etcd_line: Option<usize>,
    /// Whether `apisix.status` is present.
    has_status: bool,
    problems: &'a mut Problems,
    warnings: &'a mut Vec<Warning>,
}

impl Build<'_> {
    fn dns_discovery(&mut self) -> Option<DnsDiscovery> {
        let v = self.values;
        let servers: Option<Vec<SocketAddr>> = v.opt("discovery.dns.servers");
        let resolv_conf = v.opt("discovery.dns.resolv_conf");
        let order: Vec<String> = v.opt("discovery.dns.order").unwrap_or_default();
        let mut refuse = |path: &str, reason: &str| {
            self.problems.add(v.line(path), path, reason.to_owned());
        };
        // Differs: APISIX refuses servers beside resolv_conf; here they win.
        if servers.as_ref().is_some_and(Vec::is_empty) {
            refuse("discovery.dns.servers", "expected at least one server");
        }
        let double = order.iter().enumerate().any(|(at, word)| order[..at].contains(word));
        if double || order.is_empty() {
            refuse("discovery.dns.order", "expected one or more types, each once");
        }
        (servers.is_some() || resolv_conf.is_some()).then_some(DnsDiscovery {
            servers,
            resolv_conf,
            order,
        })
    }

    fn apisix(&mut self) -> Apisix {
        let v = self.values;
        let listen = |path, v: &Values| {
            v.parsed(path).map(Vec::<Listen>::from_parsed).unwrap_or_default().unwrap_or_default()
        };
        let control = SocketAddr::new(v.get("apisix.control.ip"), v.get("apisix.control.port"));
        let seconds = |path| Duration::from_secs(v.get::<u32>(path).into());
        let post_args_mib: u32 = v.get("apisix.max_post_args_readable_size");
        Apisix {
            node_listen: listen("apisix.node_listen", v),
            enable_admin: v.get("apisix.enable_admin"),
            enable_dev_mode: v.get("apisix.enable_dev_mode"),
            show_upstream_status_in_response_header: v
                .get("apisix.show_upstream_status_in_response_header"),
            enable_ipv6: v.get("apisix.enable_ipv6"),
            enable_http2: v.get("apisix.enable_http2"),
            proxy_protocol: ProxyProtocol {
                listen_http_port: v.opt("apisix.proxy_protocol.listen_http_port"),
                listen_https_port: v.opt("apisix.proxy_protocol.listen_https_port"),
            },
            enable_server_tokens: v.get("apisix.enable_server_tokens"),
            proxy_cache: ProxyCache {
                cache_ttl: v.get("apisix.proxy_cache.cache_ttl"),
                zones: self.cache_zones(),
            },
            delete_uri_tail_slash: v.get("apisix.delete_uri_tail_slash"),
            normalize_uri_like_servlet: v.get("apisix.normalize_uri_like_servlet"),
            match_uri_encoded_slash: v.get("apisix.match_uri_encoded_slash"),
            max_post_args_bytes: (post_args_mib > 0).then(|| u64::from(post_args_mib) << 20),
            skip_unknown_plugins: v.get::<String>("apisix.unknown_plugins") == "skip",
            stream_proxy: v.get::<String>("apisix.proxy_mode") != "http",
            router_http: match v.get::<String>("apisix.router.http").as_str() {
                "radixtree_uri" => RouterHttp::Uri,
                "radixtree_uri_with_parameter" => RouterHttp::UriWithParameter,
                _ => RouterHttp::HostUri,
            },
            dns_resolver: v.opt("apisix.dns_resolver").filter(|list: &Vec<_>| !list.is_empty()),
            id: v.opt("apisix.id").filter(|id: &String| !id.is_empty()),
            dns_resolver_valid: v.opt("apisix.dns_resolver_valid"),
            resolver_timeout: v.get("apisix.resolver_timeout"),
            resolver_search: v.get("apisix.enable_resolv_search_opt"),
            disable_upstream_healthcheck: v.get("apisix.disable_upstream_healthcheck"),
            ssl: Ssl {
                enable: v.get("apisix.ssl.enable"),
                listen: listen("apisix.ssl.listen", v),
                protocols: self.tls_versions(),
                ciphers: self.ciphers(),
                session_tickets: v.get("apisix.ssl.ssl_session_tickets"),
                fallback_sni: v
                    .opt("apisix.ssl.fallback_sni")
                    .filter(|name: &String| !name.is_empty()),
                trusted_certificate: match v.get::<PathBuf>("apisix.ssl.ssl_trusted_certificate") {
                    path if path.as_os_str() == "system" => TrustedCertificate::System,
                    path => TrustedCertificate::File(path),
                },
            },
            control: v.get::<bool>("apisix.enable_control").then_some(control),
            status: status_addr(v, self.has_status),
            secret_ttl: seconds("apisix.lru.secret.ttl"),
            secret_neg_ttl: seconds("apisix.lru.secret.neg_ttl"),
            data_encryption: self.data_encryption(),
            trusted_addresses: self.trusted_addresses(),
        }
    }

    fn cache_zones(&mut self) -> Vec<CacheZone> {
        let path = "apisix.proxy_cache.zones";
        let Some(Parsed::List(items)) = self.values.parsed(path) else { return Vec::new() };
        let mut zones: Vec<CacheZone> = Vec::new();
        for item in items {
            let Some(zone) = CacheZone::from_parsed(item) else {
                let reason = "a zone needs a name, and cache_levels of up to three numbers, 1 or 2";
                self.problems.add(self.values.line(path), path, reason);
                continue;
            };
            let folder = |zone: &CacheZone| zone.disk.as_ref().map(|disk| disk.path.clone());
            let same = |other: &CacheZone| {
                other.name == zone.name
                    || folder(other).is_some_and(|path| Some(path) == folder(&zone))
            };
            if zones.iter().any(same) {
                let reason = format!("the name or the disk_path of {} is another's", zone.name);
                self.problems.add(self.values.line(path), path, reason);
            }
            zones.push(zone);
        }
        zones
    }

    fn tls_versions(&mut self) -> Vec<TlsVersion> {
        let path = "apisix.ssl.ssl_protocols";
        let words: Vec<String> = self.values.get(path);
        let mut versions = Vec::new();
        let mut left_out = Vec::new();
        for word in words {
            let version = match word.as_str() {
                "TLSv1.2" => TlsVersion::V1_2,
                "TLSv1.3" => TlsVersion::V1_3,
                _ => {
                    left_out.push(word);
                    continue;
                }
            };
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        if versions.is_empty() {
            let reason = "expected TLSv1.2, TLSv1.3 or both: older versions are not supported";
            self.problems.add(self.values.line(path), path, reason);
        } else if !left_out.is_empty() {
            let names = left_out.join(", ");
            self.surprise(path, &format!("older versions are not supported and left out: {names}"));
        }
        versions
    }

    fn ciphers(&mut self) -> Vec<String> {
        let path = "apisix.ssl.ssl_ciphers";
        let list: String = self.values.get(path);
        let chosen = ciphers::choose(&list);
        if chosen.suites.is_empty() {
            let reason = format!(
                "expected at least one cipher suite of TLS 1.2 that is supported: {}, or a group \
                 such as HIGH",
                ciphers::SUITES.join(", ")
            );
            self.problems.add(self.values.line(path), path, &reason);
        } else if !chosen.left_out.is_empty() && list != ciphers::DEFAULT {
            let names = chosen.left_out.join(", ");
            self.surprise(path, &format!("not supported and left out: {names}"));
        }
        chosen.suites.into_iter().map(str::to_owned).collect()
    }

    fn data_encryption(&mut self) -> DataEncryption {
        let older: Option<bool> = self.values.opt("apisix.data_encryption.enable");
        let newer_path = "apisix.data_encryption.enable_encrypt_fields";
        let newer = self.values.get(newer_path);
        let enable_encrypt_fields = match (self.values.line(newer_path), older) {
            (None, Some(older)) => older,
            _ => newer,
        };
        let path = "apisix.data_encryption.keyring";
        let keyring: Vec<Secret> = self.values.opt(path).unwrap_or_else(|| {
            let why = "not set: secrets are encrypted with APISIX's default keys, which everybody \
                       knows; set keys of your own, and these two behind them while the store \
                       holds what they encrypted";
            self.surprise(path, why);
            KEYRING.map(|key| Secret::new(key.to_owned())).to_vec()
        });
        if keyring.is_empty() {
            self.surprise(path, "empty: secrets are kept in the store as they are");
        }
        DataEncryption { enable_encrypt_fields, keyring }
    }

    fn trusted_addresses(&mut self) -> Option<Vec<IpNet>> {
        let path = "apisix.trusted_addresses";
        let nets: Vec<IpNet> = self.values.opt(path)?;
        if nets.is_empty() {
            let reason = "expected at least one address; leave the key out to trust nobody";
            self.problems.add(self.values.line(path), path, reason);
        }
        Some(nets)
    }

    fn nginx_config(&mut self, dev_mode: bool) -> NginxConfig {
        let v = self.values;
        let enabled: bool = v.get("nginx_config.http.enable_access_log");
        let real_ip_from = match v.parsed("nginx_config.http.real_ip_from") {
            Some(Parsed::List(items)) => items.iter().filter_map(IpNet::from_parsed).collect(),
            _ => Vec::new(),
        };
        let body_bytes: u64 = v.get("nginx_config.http.client_max_body_size");
        let custom_lua_shared_dict = self.zones("nginx_config.http.custom_lua_shared_dict");
        NginxConfig {
            error_log: v.get("nginx_config.error_log"),
            error_log_level: match v.get::<String>("nginx_config.error_log_level").as_str() {
                "debug" => ErrorLogLevel::Debug,
                "info" => ErrorLogLevel::Info,
                "notice" => ErrorLogLevel::Notice,
                "error" => ErrorLogLevel::Error,
                "crit" => ErrorLogLevel::Crit,
                "alert" => ErrorLogLevel::Alert,
                "emerg" => ErrorLogLevel::Emerg,
                _ => ErrorLogLevel::Warn,
            },
            worker_processes: self.worker_processes(dev_mode),
            worker_rlimit_nofile: v.get("nginx_config.worker_rlimit_nofile"),
            worker_shutdown_timeout: v.get("nginx_config.worker_shutdown_timeout"),
            http: Http {
                access_log: match enabled {
                    true => v.get("nginx_config.http.access_log"),
                    false => LogTarget::Off,
                },
                access_log_buffer: v.get("nginx_config.http.access_log_buffer"),
                access_log_format: unescape_as_nginx(
                    v.get::<String>("nginx_config.http.access_log_format")
                        .trim_end_matches(['\r', '\n']),
                ),
                access_log_format_escape: match v
                    .get::<String>("nginx_config.http.access_log_format_escape")
                    .as_str()
                {
                    "json" => LogEscape::Json,
                    "none" => LogEscape::None,
                    _ => LogEscape::Default,
                },
                keepalive_timeout: v.get("nginx_config.http.keepalive_timeout"),
                client_header_timeout: v.get("nginx_config.http.client_header_timeout"),
                client_body_timeout: v.get("nginx_config.http.client_body_timeout"),
                client_max_body_size: (body_bytes > 0).then_some(body_bytes),
                send_timeout: v.get("nginx_config.http.send_timeout"),
                underscores_in_headers: v.get("nginx_config.http.underscores_in_headers"),
                real_ip_header: v.get("nginx_config.http.real_ip_header"),
                real_ip_recursive: v.get("nginx_config.http.real_ip_recursive"),
                real_ip_from,
                proxy_ssl_server_name: v.get("nginx_config.http.proxy_ssl_server_name"),
                upstream: UpstreamKeepalive {
                    keepalive: v.get("nginx_config.http.upstream.keepalive"),
                    keepalive_requests: v.get("nginx_config.http.upstream.keepalive_requests"),
                    keepalive_timeout: v.get("nginx_config.http.upstream.keepalive_timeout"),
                },
                custom_lua_shared_dict,
            },
        }
    }

    /// Names and sizes of memory zones.
    fn zones(&mut self, path: &str) -> Vec<(String, u64)> {
        let Some(Value::Object(zones)) = self.values.opt(path) else { return Vec::new() };
        let mut read = Vec::new();
        for (name, size) in &zones {
            let bytes = match size {
                Value::String(text) => crate::parse_size(text),
                other => other.as_u64(),
            };
            match bytes.filter(|bytes| *bytes > 0) {
                Some(bytes) => read.push((name.clone(), bytes)),
                None => {
                    let reason = format!("{name}: expected a size such as 10m, got {size}");
                    self.problems.add(self.values.line(path), path, reason);
                }
            }
        }
        read
    }

    fn worker_processes(&mut self, dev_mode: bool) -> WorkerProcesses {
        let path = "nginx_config.worker_processes";
        if dev_mode {
            return WorkerProcesses::Count(NonZeroU16::MIN);
        }
        if let Some(count) = (self.env)(WORKER_PROCESSES_VAR) {
            let count: Option<NonZeroU16> = count.trim().parse().ok();
            if let Some(count) = count.filter(|count| count.get() <= 1_024) {
                return WorkerProcesses::Count(count);
            }
            let reason = format!(
                "the environment variable {WORKER_PROCESSES_VAR} must be a whole number from 1 to \
                 1024"
            );
            self.problems.add(None, path, reason);
        }
        let count = match self.values.parsed(path) {
            Some(parsed) => u16::from_parsed(parsed).and_then(NonZeroU16::new),
            None => None,
        };
        count.map_or(WorkerProcesses::Auto, WorkerProcesses::Count)
    }

    fn role(&self) -> Role {
        match self.values.get::<String>("deployment.role").as_str() {
            "control_plane" => Role::ControlPlane,
            "data_plane" => Role::DataPlane,
            _ => Role::Traditional,
        }
    }

    fn deployment(&mut self, role: Role, enable_admin: bool) -> Deployment {
        let v = self.values;
        let config_provider = self.config_provider(role);
        let etcd = self.etcd();
        let required: bool = v.get("deployment.admin.admin_key_required");
        if enable_admin && !required {
            let path = "deployment.admin.admin_key_required";
            self.surprise(path, "off: whoever can connect to the Admin API controls the gateway");
        }
        let admin_key = match v.parsed("deployment.admin.admin_key") {
            Some(Parsed::List(keys)) => keys.iter().map(admin_key).collect(),
            _ => Vec::new(),
        };
        Deployment {
            role,
            config_provider,
            embedded_path: v.get("deployment.embedded.path"),
            etcd,
            admin: Admin {
                admin_key_required: required,
                admin_key,
                enable_admin_cors: v.get("deployment.admin.enable_admin_cors"),
                allow_admin: v.get("deployment.admin.allow_admin"),
                admin_listen: SocketAddr::new(
                    v.get("deployment.admin.admin_listen.ip"),
                    v.get("deployment.admin.admin_listen.port"),
                ),
                tls: self.admin_tls(),
            },
        }
    }

    fn admin_tls(&mut self) -> Option<AdminTls> {
        let on = "deployment.admin.https_admin";
        if !self.values.opt::<bool>(on).unwrap_or_default() {
            return None;
        }
        let file = |name: &str| {
            let path = format!("deployment.admin.admin_api_mtls.{name}");
            let file: Option<String> = self.values.opt(&path);
            file.filter(|file| !file.is_empty()).map(PathBuf::from)
        };
        let (cert, key) = (file("admin_ssl_cert"), file("admin_ssl_cert_key"));
        let client_ca = file("admin_ssl_ca_cert");
        let (Some(cert), Some(key)) = (cert, key) else {
            // APISIX's text comes first.
            let reason = "missing ssl cert for https admin: set admin_ssl_cert and \
                          admin_ssl_cert_key of deployment.admin.admin_api_mtls";
            self.problems.add(self.values.line(on), on, reason);
            return None;
        };
        Some(AdminTls { cert, key, client_ca })
    }

    fn config_provider(&mut self, role: Role) -> ConfigProvider {
        let path = match role {
            Role::Traditional => "deployment.role_traditional.config_provider",
            Role::ControlPlane => "deployment.role_control_plane.config_provider",
            Role::DataPlane => "deployment.role_data_plane.config_provider",
        };
        let provider: Option<String> = self.values.opt(path);
        match provider.as_deref() {
            Some("embedded") => ConfigProvider::Embedded,
            None if role == Role::Traditional && self.etcd_line.is_none() => {
                ConfigProvider::Embedded
            }
            None | Some("etcd") => ConfigProvider::Etcd,
            Some("yaml") => ConfigProvider::Yaml,
            Some("json") => ConfigProvider::Json,
            Some(other) => {
                let reason = format!("\"{other}\" comes with a later version");
                self.problems.add(self.values.line(path), path, reason);
                ConfigProvider::Yaml
            }
        }
    }

    fn etcd(&mut self) -> Etcd {
        let v = self.values;
        let text = |path| v.opt::<String>(path).filter(|text| !text.is_empty());
        let host_path = "deployment.etcd.host";
        let host = v.opt(host_path).unwrap_or_else(|| vec![ETCD_HOST.to_owned()]);
        let is_address = |host: &String| {
            let rest = host.strip_prefix("http://").or_else(|| host.strip_prefix("https://"));
            rest.is_some_and(|rest| !rest.is_empty())
        };
        if host.is_empty() || !host.iter().all(is_address) {
            let reason = "expected addresses that start with http:// or https://, at least one";
            self.problems.add(v.line(host_path), host_path, reason);
        }
        let (cert, key) = (text("deployment.etcd.tls.cert"), text("deployment.etcd.tls.key"));
        if cert.is_some() != key.is_some() {
            let path =
                if cert.is_some() { "deployment.etcd.tls.cert" } else { "deployment.etcd.tls.key" };
            let reason = "cert and key come together or not at all";
            self.problems.add(v.line(path), path, reason);
        }
        let verify_path = "deployment.etcd.tls.verify";
        let tls_verify = v.opt(verify_path).unwrap_or(true);
        if !tls_verify && host.iter().any(|host| host.starts_with("https://")) {
            self.surprise(
                verify_path,
                "false: whoever answers in etcd's place gets its password and every secret, and \
                 decides what this gateway does",
            );
        }
        let v = self.values;
        let rest: Option<i64> = v.opt("deployment.etcd.health_check_timeout");
        let rest = rest.and_then(|seconds| u64::try_from(seconds).ok());
        let time = |path, seconds| v.opt(path).unwrap_or(Duration::from_secs(seconds));
        Etcd {
            host,
            prefix: text("deployment.etcd.prefix").unwrap_or_else(|| ETCD_PREFIX.to_owned()),
            timeout: time("deployment.etcd.timeout", 30).max(ETCD_TIME_MIN),
            watch_timeout: time("deployment.etcd.watch_timeout", 50).max(ETCD_TIME_MIN),
            resync_delay: time("deployment.etcd.resync_delay", 5).max(ETCD_TIME_MIN),
            health_check_timeout: Duration::from_secs(rest.unwrap_or(10)),
            startup_retry: v.opt("deployment.etcd.startup_retry").unwrap_or(2),
            user: text("deployment.etcd.user"),
            password: v.opt("deployment.etcd.password"),
            tls_cert: cert.map(PathBuf::from),
            tls_key: key.map(PathBuf::from),
            tls_verify,
            tls_sni: text("deployment.etcd.tls.sni"),
        }
    }

    /// Two listeners that would take each other's port are named here, not by the system later.
    fn listeners(&mut self, apisix: &Apisix, deployment: &Deployment) {
        let serves = deployment.role.has_data_plane();
        let mut taken: Vec<(SocketAddr, String)> = Vec::new();
        let mut add = |addr: SocketAddr, path: String, line: Option<usize>| {
            if addr.port() == 0 {
                return;
            }
            let clash = taken.iter().find(|(other, owner)| {
                let same_ip = other.ip() == addr.ip()
                    || (other.is_ipv4() == addr.is_ipv4()
                        && (other.ip().is_unspecified() || addr.ip().is_unspecified()));
                // Within one list an address and "every address" may share a port.
                other.port() == addr.port() && same_ip && list_of(owner) != list_of(&path)
            });
            match clash {
                Some((other, owner)) => {
                    let reason = format!("{addr} is taken by {owner} ({other})");
                    self.problems.add(line, &path, reason);
                }
                None => taken.push((addr, path)),
            }
        };
        let listen = |ip, port| apisix.expand(&[Listen { ip, port }]);
        for (index, one) in apisix.node_listen.iter().enumerate().filter(|_| serves) {
            for addr in listen(one.ip, one.port) {
                let line = self.values.line("apisix.node_listen");
                add(addr, format!("apisix.node_listen[{index}]"), line);
            }
        }
        if apisix.ssl.enable && serves {
            for (index, one) in apisix.ssl.listen.iter().enumerate() {
                for addr in listen(one.ip, one.port) {
                    let line = self.values.line("apisix.ssl.listen");
                    add(addr, format!("apisix.ssl.listen[{index}]"), line);
                }
            }
        }
        for (port, path) in [
            (apisix.proxy_protocol.listen_http_port, "apisix.proxy_protocol.listen_http_port"),
            (apisix.proxy_protocol.listen_https_port, "apisix.proxy_protocol.listen_https_port"),
        ] {
            let port = port.filter(|_| serves);
            for addr in port.map(|port| listen(None, port)).unwrap_or_default() {
                add(addr, path.into(), self.values.line(path));
            }
        }
        if apisix.enable_admin {
            let path = "deployment.admin.admin_listen.port";
            add(deployment.admin.admin_listen, path.into(), self.values.line(path));
        }
        if let Some(control) = apisix.control {
            let path = "apisix.control.port";
            add(control, path.into(), self.values.line(path));
        }
        if let Some(status) = apisix.status {
            let path = "apisix.status.port";
            add(status, path.into(), self.values.line(path));
        }
    }

    fn surprise(&mut self, path: &str, text: &str) {
        let place = match self.values.line(path) {
            Some(line) => format!("{}:{line}", self.file),
            None => self.file.to_owned(),
        };
        self.warnings.push(Warning::Surprise(format!("{place}: {path}: {text}")));
    }
}

impl FromParsed for Listen {
    fn from_parsed(parsed: &Parsed) -> Option<Self> {
        match parsed {
            Parsed::Int(_) => Some(Self { ip: None, port: u16::from_parsed(parsed)? }),
            _ => Some(Self { ip: parsed.field("ip"), port: parsed.field("port")? }),
        }
    }
}

impl FromParsed for CacheZone {
    fn from_parsed(parsed: &Parsed) -> Option<Self> {
        let levels: String = parsed.field("cache_levels")?;
        let levels = levels.split(':').map(|digits| match digits {
            "1" => Some(1),
            "2" => Some(2),
            _ => None,
        });
        let levels: Vec<usize> = levels.collect::<Option<_>>()?;
        let disk = match parsed.field("disk_path") {
            Some(path) => {
                Some(CacheDisk { path, size: parsed.field("disk_size")?, levels: levels.clone() })
            }
            None => None,
        };
        let name: String = parsed.field("name")?;
        (!name.is_empty() && levels.len() <= 3).then_some(Self {
            name,
            memory_size: parsed.field("memory_size")?,
            disk,
        })
    }
}

fn admin_key(parsed: &Parsed) -> AdminKey {
    AdminKey {
        name: parsed.field("name").unwrap_or_default(),
        key: parsed.field("key").unwrap_or_default(),
        role: match parsed.field::<String>("role").as_deref() {
            Some("viewer") => AdminRole::Viewer,
            _ => AdminRole::Admin,
        },
    }
}

/// Whoever writes `status`, empty or not, wants it, as in APISIX; a null is nothing.
fn status_addr(values: &Values, is_there: bool) -> Option<SocketAddr> {
    let (ip, port) = (values.opt("apisix.status.ip"), values.opt("apisix.status.port"));
    is_there.then(|| {
        SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), port.unwrap_or(STATUS_PORT))
    })
}

fn list_of(path: &str) -> &str {
    path.split('[').next().unwrap_or(path)
}

fn etcd_line(root: &yaml::Node) -> Option<usize> {
    let entry = root.at(&["deployment"])?.entry("etcd")?;
    (!entry.value.is_null()).then_some(entry.key_line)
}

/// In APISIX the format ends up between single quotes in nginx.conf, where a backslash escapes.
fn unescape_as_nginx(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = match (c, chars.peek()) {
            ('\\', Some(c @ ('"' | '\'' | '\\'))) => Some(*c),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        if escaped.is_some() {
            chars.next();
        }
        out.push(escaped.unwrap_or(c));
    }
    out
}

/// APISIX's defaults of `deployment.etcd`.
const ETCD_HOST: &str = "http://127.0.0.1:2379";
const ETCD_PREFIX: &str = "/apisix";
/// The shortest time that makes sense for a call over a network.
const ETCD_TIME_MIN: Duration = Duration::from_millis(100);

/// APISIX's default keys: without them, what an APISIX that has no others wrote could not be read.
const KEYRING: [&str; 2] = ["qeddd145sfvddff3", "edd1c9f0985e76a2"];

/// APISIX's port of the status API, where it is not set.
const STATUS_PORT: u16 = 7085;

/// As with APISIX in containers: wins over `nginx_config.worker_processes`.
const WORKER_PROCESSES_VAR: &str = "APISIX_WORKER_PROCESSES";

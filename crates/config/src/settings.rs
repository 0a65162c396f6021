//! The configuration as the rest of the gateway reads it: plain fields, no text left to parse.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::build::{Build, etcd_line};
use crate::check::{Values, check};
use crate::error::{ConfigError, Problems, Warning};
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
    pub(crate) fn expand(&self, listeners: &[Listen]) -> Vec<SocketAddr> {
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

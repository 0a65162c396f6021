//! Builds the settings out of checked values, and checks what no single key can say.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::check::Values;
use crate::ciphers;
use crate::error::{Problems, Warning};
use crate::kind::{FromParsed, Parsed};
use crate::secret::Secret;
use crate::settings::{
    Admin, AdminKey, AdminRole, AdminTls, Apisix, CacheDisk, CacheZone, ConfigProvider,
    DataEncryption, Deployment, DnsDiscovery, ErrorLogLevel, Etcd, Http, Listen, LogEscape,
    LogTarget, NginxConfig, ProxyCache, ProxyProtocol, Role, RouterHttp, Ssl, TlsVersion,
    TrustedCertificate, UpstreamKeepalive, WorkerProcesses,
};
use crate::variables::Env;
use crate::yaml;

/// Builds the typed sections and checks what no single key can say.
pub(crate) struct Build<'a> {
    pub(crate) file: &'a str,
    pub(crate) env: Env<'a>,
    pub(crate) values: &'a Values,
    /// Line of `deployment.etcd` where it is present.
    pub(crate) etcd_line: Option<usize>,
    /// Whether `apisix.status` is present.
    pub(crate) has_status: bool,
    pub(crate) problems: &'a mut Problems,
    pub(crate) warnings: &'a mut Vec<Warning>,
}

impl Build<'_> {
    pub(crate) fn dns_discovery(&mut self) -> Option<DnsDiscovery> {
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

    pub(crate) fn apisix(&mut self) -> Apisix {
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

    pub(crate) fn nginx_config(&mut self, dev_mode: bool) -> NginxConfig {
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

    pub(crate) fn role(&self) -> Role {
        match self.values.get::<String>("deployment.role").as_str() {
            "control_plane" => Role::ControlPlane,
            "data_plane" => Role::DataPlane,
            _ => Role::Traditional,
        }
    }

    pub(crate) fn deployment(&mut self, role: Role, enable_admin: bool) -> Deployment {
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
    pub(crate) fn listeners(&mut self, apisix: &Apisix, deployment: &Deployment) {
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

pub(crate) fn etcd_line(root: &yaml::Node) -> Option<usize> {
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

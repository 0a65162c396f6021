//! config.yaml in the terms of the rooms that act on it.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use sluicegate_admin as admin;
use sluicegate_config::{
    AdminRole, Config, ConfigProvider, LogEscape, LogTarget, RouterHttp, Secret, TlsVersion,
    WorkerProcesses,
};
use sluicegate_gateway::client::{EgressSettings, Keepalive};
use sluicegate_gateway::http::head::HeadLimits;
use sluicegate_gateway::router::Mode;
use sluicegate_gateway::settings::{AccessLog, Escape, Listen, RealIp, Settings, TlsSettings};
use sluicegate_gateway::snapshot::UnknownPlugins;
use sluicegate_gateway::upstream::discovery::{Ask, DnsDiscovery};
use sluicegate_gateway::upstream::resolve::DnsSettings;
use sluicegate_model::encrypt::Keyring;

use crate::cli::Place;

/// The data plane's part.
pub(crate) fn gateway(config: &Config, place: &Place) -> Settings {
    let apisix = &config.apisix;
    let http = &config.nginx_config.http;
    let mut listen: Vec<Listen> = Vec::new();
    let mut add = |addrs: Vec<std::net::SocketAddr>, tls, proxy_protocol| {
        listen.extend(addrs.into_iter().map(|addr| Listen { addr, tls, proxy_protocol }));
    };
    add(config.http_addrs(), false, false);
    add(config.https_addrs(), true, false);
    add(config.proxy_protocol_http_addrs(), false, true);
    add(config.proxy_protocol_https_addrs(), true, true);
    let access_log = |path: std::path::PathBuf| AccessLog {
        path,
        format: http.access_log_format.clone(),
        escape: match http.access_log_format_escape {
            LogEscape::Default => Escape::Default,
            LogEscape::Json => Escape::Json,
            LogEscape::None => Escape::None,
        },
        buffer: usize::try_from(http.access_log_buffer).unwrap_or(16 << 10),
    };
    Settings {
        listen,
        http2: apisix.enable_http2,
        workers: workers(config),
        server: server(config),
        instance_id: instance_id(config, place),
        client_head: HeadLimits {
            bytes: usize::try_from(config.limits.header_bytes).unwrap_or(64 << 10),
            fields: config.limits.header_count,
        },
        upstream_head: HeadLimits { bytes: UPSTREAM_HEAD_BYTES, fields: UPSTREAM_HEAD_FIELDS },
        client_header_timeout: http.client_header_timeout,
        client_body_timeout: http.client_body_timeout,
        send_timeout: http.send_timeout,
        keepalive_timeout: http.keepalive_timeout,
        client_body_max: http.client_max_body_size,
        post_args_max: apisix.max_post_args_bytes.unwrap_or(u64::MAX),
        graphql_max: config.graphql.max_size,
        underscores_in_headers: http.underscores_in_headers,
        real_ip: RealIp {
            header: http.real_ip_header.to_ascii_lowercase(),
            from: http.real_ip_from.clone(),
            recursive: http.real_ip_recursive,
        },
        trusted_addresses: apisix.trusted_addresses.clone(),
        router: router(config),
        delete_uri_tail_slash: apisix.delete_uri_tail_slash,
        normalize_uri_like_servlet: apisix.normalize_uri_like_servlet,
        match_uri_encoded_slash: apisix.match_uri_encoded_slash,
        tls: TlsSettings {
            tls12: apisix.ssl.protocols.contains(&TlsVersion::V1_2),
            tls13: apisix.ssl.protocols.contains(&TlsVersion::V1_3),
            ciphers: apisix.ssl.ciphers.clone(),
            session_tickets: apisix.ssl.session_tickets,
            fallback_sni: apisix.ssl.fallback_sni.as_ref().map(|name| name.to_ascii_lowercase()),
        },
        access_log: match &http.access_log {
            LogTarget::Off => None,
            LogTarget::Stdout => Some(access_log("-".into())),
            LogTarget::Stderr => Some(access_log("/dev/stderr".into())),
            LogTarget::File(path) => Some(access_log(place.under(path))),
        },
        shutdown_timeout: config.nginx_config.worker_shutdown_timeout,
        buffered_body_bytes: config.limits.buffered_body_bytes,
        idle_grace: config.limits.idle_grace,
        upstream_keepalive: keepalive(config),
        show_upstream_status: apisix.show_upstream_status_in_response_header,
        http2_streams: HTTP2_STREAMS,
    }
}

/// How routes are matched.
pub(crate) fn router(config: &Config) -> Mode {
    match config.apisix.router_http {
        RouterHttp::HostUri => Mode::HostUri,
        RouterHttp::Uri => Mode::Uri,
        RouterHttp::UriWithParameter => Mode::UriWithParameter,
    }
}

/// What config.yaml says about a plugin: its `plugin_attr`, or for `proxy-cache` what stands elsewhere.
pub(crate) fn plugin_attr(config: &Config, name: &str) -> Option<Value> {
    if name != "proxy-cache" {
        return config.plugin_attr.get(name).cloned();
    }
    let cache = &config.apisix.proxy_cache;
    let zones = cache.zones.iter().map(|zone| {
        let disk = zone
            .disk
            .as_ref()
            .map(|disk| json!({"path": disk.path, "bytes": disk.size, "levels": disk.levels}));
        json!({"name": zone.name, "memory_bytes": zone.memory_size, "disk": disk})
    });
    let ttl_s = cache.cache_ttl.as_secs();
    Some(json!({"cache_ttl_s": ttl_s, "zones": zones.collect::<Vec<_>>()}))
}

/// Puts the folders of caches under the prefix.
pub(crate) fn place_caches(config: &mut Config, place: &Place) {
    for zone in &mut config.apisix.proxy_cache.zones {
        if let Some(disk) = &mut zone.disk {
            disk.path = place.under(&disk.path);
        }
    }
}

/// What becomes of plugins this version does not have.
pub(crate) fn unknown_plugins(config: &Config) -> UnknownPlugins {
    match config.apisix.skip_unknown_plugins {
        true => UnknownPlugins::Skip,
        false => UnknownPlugins::Refuse,
    }
}

/// How names are resolved.
pub(crate) fn dns(config: &Config) -> DnsSettings {
    DnsSettings {
        servers: config.apisix.dns_resolver.clone(),
        valid: config.apisix.dns_resolver_valid,
        timeout: config.apisix.resolver_timeout,
        search: config.apisix.resolver_search,
        ipv6: config.apisix.enable_ipv6,
    }
}

/// The services that DNS knows.
pub(crate) fn dns_discovery(config: &Config) -> Option<DnsDiscovery> {
    let discovery = config.dns_discovery.as_ref()?;
    let order = discovery.order.iter().map(|word| match word.as_str() {
        "last" => Ask::Last,
        "SRV" => Ask::Srv,
        "AAAA" => Ask::Aaaa,
        "CNAME" => Ask::Cname,
        _ => Ask::A,
    });
    Some(DnsDiscovery {
        servers: discovery.servers.clone(),
        resolv_conf: discovery.resolv_conf.clone(),
        order: order.filter(|ask| config.apisix.enable_ipv6 || *ask != Ask::Aaaa).collect(),
        timeout: config.apisix.resolver_timeout,
        search: config.apisix.resolver_search,
    })
}

/// The proxies by which calls leave.
pub(crate) fn egress(config: &Config) -> EgressSettings {
    let url = |secret: &Option<Secret>| {
        secret.as_ref().map(|url| url.expose().to_owned()).unwrap_or_default()
    };
    EgressSettings {
        https_proxy: url(&config.egress_proxy.https_proxy),
        http_proxy: url(&config.egress_proxy.http_proxy),
        no_proxy: config.egress_proxy.no_proxy.clone(),
    }
}

/// Request threads.
pub(crate) fn workers(config: &Config) -> usize {
    match config.nginx_config.worker_processes {
        WorkerProcesses::Count(n) => n.get().into(),
        WorkerProcesses::Auto => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Upstream connections kept where an upstream says nothing.
pub(crate) fn keepalive(config: &Config) -> Keepalive {
    let upstream = &config.nginx_config.http.upstream;
    Keepalive {
        size: upstream.keepalive,
        idle_timeout: upstream.keepalive_timeout,
        requests: upstream.keepalive_requests as u64,
    }
}

fn server(config: &Config) -> String {
    if let Some(own) = &config.server_header {
        return own.clone();
    }
    match config.apisix.enable_server_tokens {
        true => concat!("Sluicegate/", env!("CARGO_PKG_VERSION")).to_owned(),
        false => "Sluicegate".to_owned(),
    }
}

/// What this instance is called: `apisix.id`, what `conf/apisix.uid` says, or an id that is drawn
/// once.
///
/// Differs: in APISIX the file, which it writes itself, comes before what an administrator wrote.
fn instance_id(config: &Config, place: &Place) -> Arc<str> {
    static OTHERWISE: OnceLock<Arc<str>> = OnceLock::new();
    if let Some(id) = &config.apisix.id {
        return id.as_str().into();
    }
    let kept = || {
        let mut text = String::new();
        let file = std::fs::File::open(uid_file(place)).ok()?;
        std::io::Read::read_to_string(&mut std::io::Read::take(file, UID_BYTES_MAX), &mut text)
            .ok()?;
        let id = text.trim();
        (!id.is_empty()).then(|| id.into())
    };
    let drawn = || {
        let mut raw = [0; 16];
        crate::boot::random(&mut raw);
        sluicegate_plugins::uuid_v4(raw).into()
    };
    OTHERWISE.get_or_init(|| kept().unwrap_or_else(drawn)).clone()
}

/// Keeps an id that was drawn for the next start, where the folder can be written to.
pub(crate) fn keep_instance_id(id: &str, config: &Config, place: &Place) {
    let file = uid_file(place);
    if config.apisix.id.is_none()
        && !file.exists()
        && let Err(error) = std::fs::write(&file, id)
    {
        tracing::info!(file = %file.display(), %error, "This instance will have another id after a restart: its own could not be kept.");
    }
}

fn uid_file(place: &Place) -> std::path::PathBuf {
    place.prefix().join("conf/apisix.uid")
}

/// The most bytes of `conf/apisix.uid` that are read.
const UID_BYTES_MAX: u64 = 1024;

/// The Admin API's part.
pub(crate) fn admin(config: &Config) -> admin::Settings {
    let from = &config.deployment.admin;
    let keys = from.admin_key.iter().map(|key| admin::AdminKey {
        name: key.name.clone(),
        key: key.key.expose().to_owned(),
        role: match key.role {
            AdminRole::Admin => admin::Role::Admin,
            AdminRole::Viewer => admin::Role::Viewer,
        },
    });
    // An empty list means nobody here and everybody there: fail closed.
    let nobody = || vec![IpNet::from(std::net::IpAddr::from([255, 255, 255, 255]))];
    admin::Settings {
        keys: keys.collect(),
        key_required: from.admin_key_required,
        allow_admin: match from.allow_admin.is_empty() {
            true => nobody(),
            false => from.allow_admin.clone(),
        },
        cors: from.enable_admin_cors,
        shared_with_apisix: config.deployment.config_provider == ConfigProvider::Etcd,
        encrypt_fields: config.apisix.data_encryption.enable_encrypt_fields,
        stream_proxy: config.apisix.stream_proxy,
        redact_secrets: config.redact_secrets,
        server: server(config),
        key_prefix: config.deployment.etcd.prefix.trim_end_matches('/').to_owned(),
        ..admin::Settings::default()
    }
}

/// How often secrets kept elsewhere are fetched.
pub(crate) fn secrets(config: &Config) -> sluicegate_secrets::Settings {
    sluicegate_secrets::Settings {
        ttl: config.apisix.secret_ttl,
        neg_ttl: config.apisix.secret_neg_ttl,
    }
}

/// The keys of encryption at rest.
pub(crate) fn keyring(config: &Config) -> Keyring {
    let keys = config.apisix.data_encryption.keyring.iter();
    Keyring::new(keys.map(|key| key.expose().to_owned()).collect())
}

/// Where the embedded store lies.
pub(crate) fn store_file(config: &Config, place: &Place) -> std::path::PathBuf {
    place.under(Path::new(&config.deployment.embedded_path))
}

/// An upstream's response head: nginx's limits are tighter, real upstreams are not.
const UPSTREAM_HEAD_BYTES: usize = 64 << 10;
const UPSTREAM_HEAD_FIELDS: usize = 1000;

/// Streams a client may have open on one HTTP/2 connection, as nginx has it.
const HTTP2_STREAMS: u32 = 128;

/// A stop by SIGINT gives requests under way this long.
pub(crate) const INTERRUPT_GRACE: Duration = Duration::from_secs(1);

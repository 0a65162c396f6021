//! The one table of keys.
//!
//! Type checks, defaults, suggestions for mistyped names, `conf/config.yaml.example` and
//! `docs/configuration.md` all come from here. The names and the defaults are those of Apache
//! APISIX 3.18 (<https://github.com/apache/apisix/blob/master/conf/config.yaml.example>), except
//! for what `sluicegate.` and `deployment.embedded.` hold; differences carry a `Differs:` line.

use crate::kind::Kind::{self, *};

/// One key, or one field of a list's maps.
#[derive(Debug)]
pub(crate) struct Key {
    /// The whole path of a key (`apisix.ssl.enable`), the bare name of a field.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// The default as YAML; empty when there is none.
    pub(crate) default: &'static str,
    /// A value for the example file, where there is no default.
    pub(crate) example: &'static str,
    pub(crate) status: Status,
    /// A change of it takes a restart; everything else follows a SIGHUP.
    pub(crate) restart: bool,
    /// One line for people.
    pub(crate) about: &'static str,
}

/// What Sluicegate does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Acted,
    /// APISIX knows it; we take it, check it and do nothing with it yet.
    Known,
    /// Taken, with a warning that names what to use.
    Deprecated(&'static str),
}

impl Key {
    const fn restart(mut self) -> Self {
        self.restart = true;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }
}

const fn key(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, kind, default, example: "", status: Status::Acted, restart: false, about }
}

const fn known(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, kind, default, example: "", status: Status::Known, restart: false, about }
}

const fn deprecated(
    path: &'static str,
    kind: Kind,
    instead: &'static str,
    about: &'static str,
) -> Key {
    let status = Status::Deprecated(instead);
    Key { path, kind, default: "", example: "", status, restart: false, about }
}

/// Port 0 lets the system choose, which tests want.
const PORT: Kind = Int(0, 65_535);
const COUNT: Kind = Int(0, u32::MAX as i64);
const INTEGER: Kind = Int(i64::MIN, i64::MAX);
const SECONDS: Kind = Duration;
const CPUS_MAX: i64 = 1_024;
/// The longest admin key; it has to fit into a request header.
const ADMIN_KEY_CHARS_MAX: usize = 1_024;

/// The longest URL of a proxy that is taken.
const PROXY_CHARS_MAX: usize = 2_048;

#[rustfmt::skip] // a table: one key, one line
const NODE_LISTEN: &[Key] = &[
    key("ip", Ip, "", "Address to listen on. Left out: every IPv4 address, and every IPv6 one with `apisix.enable_ipv6`."),
    key("port", PORT, "9080", "Port to listen on."),
    deprecated("enable_http2", Bool, "use apisix.enable_http2, which decides for every port; this one is ignored", "Port-level switch of APISIX before 3.9; ignored, with a warning."),
];
#[rustfmt::skip] // a table: one key, one line
const SSL_LISTEN: &[Key] = &[
    key("ip", Ip, "", "Address to listen on, as in `node_listen`."),
    key("port", PORT, "9443", "Port to listen on."),
    known("enable_http3", Bool, "false", "HTTP/3 over QUIC."),
    deprecated("enable_http2", Bool, "use apisix.enable_http2, which decides for every port; this one is ignored", "Port-level switch of APISIX before 3.9; ignored, with a warning."),
];
#[rustfmt::skip] // a table: one key, one line
const ADMIN_KEY: &[Key] = &[
    key("name", Text, "", "A name for people."),
    key("key", Secret { chars_max: ADMIN_KEY_CHARS_MAX }, "''", "What `X-API-KEY` must carry. Empty: generated at start and written back into the file."),
    key("role", OneOf(&["admin", "viewer"]), "admin", "`admin` may write, `viewer` may only read."),
];
#[rustfmt::skip] // a table: one key, one line
const PROXY_CACHE_ZONE: &[Key] = &[
    key("name", Text, "", "What `cache_zone` calls it. Required."),
    key("memory_size", Size, "50m", "Memory for answers; on disk, for the index of its files."),
    key("disk_size", Size, "1G", "Most bytes of its files."),
    key("disk_path", Path, "", "A folder of its own, under the prefix unless absolute. Left out: answers are kept in memory."),
    key("cache_levels", Text, "1:2", "Digits in the names of folders in that folder: up to three numbers, 1 or 2, with colons."),
];

/// Every key, in the order of the example file.
#[rustfmt::skip] // a table: one key, one line
pub(crate) const KEYS: &[Key] = &[
    key("apisix.node_listen", OneOrMore(&ScalarOr(&PORT, &Object(NODE_LISTEN))), "[9080]", "Where clients connect with plain HTTP/1.1 and HTTP/2: a port, a list of ports, or a list of maps with ip and port.").restart(),
    key("apisix.enable_admin", Bool, "true", "Whether the Admin API listens.").restart(),
    key("apisix.enable_dev_mode", Bool, "false", "Run one worker, whatever `nginx_config.worker_processes` says.").restart(),
    known("apisix.enable_reuseport", Bool, "true", "Listening sockets of our own for every worker; Sluicegate always has them."),
    key("apisix.show_upstream_status_in_response_header", Bool, "false", "Send `X-APISIX-Upstream-Status` with every answer of an upstream, not only with 5xx."),
    key("apisix.enable_ipv6", Bool, "true", "Listen on IPv6 too where a listener names no address, and use AAAA records.").restart(),
    key("apisix.enable_http2", Bool, "true", "Take HTTP/2: by prior knowledge on plain ports, by ALPN on TLS ports."),
    key("apisix.proxy_protocol.listen_http_port", PORT, "", "Another plain port, on which connections start with a PROXY protocol header.").restart().example("9181"),
    key("apisix.proxy_protocol.listen_https_port", PORT, "", "Another TLS port, on which connections start with a PROXY protocol header.").restart().example("9182"),
    known("apisix.proxy_protocol.enable_tcp_pp", Bool, "", "Take the PROXY protocol on TCP proxy ports.").example("true"),
    known("apisix.proxy_protocol.enable_tcp_pp_to_upstream", Bool, "", "Send the PROXY protocol to upstreams of TCP proxy ports.").example("true"),
    key("apisix.enable_server_tokens", Bool, "true", "Show the version in the `Server` header."),
    known("apisix.extra_lua_path", Text, "''", "More places to look for Lua modules."),
    known("apisix.extra_lua_cpath", Text, "''", "More places to look for compiled Lua modules."),
    known("apisix.lua_module_hook", Text, "", "A Lua module loaded at start.").example("my_project.my_hook"),
    key("apisix.proxy_cache.cache_ttl", SECONDS, "10s", "How long the `proxy-cache` plugin keeps an answer on disk when its upstream does not say.").restart(),
    // Differs: APISIX's default of disk_path is a folder of this name in /tmp, where anybody can put one first.
    key("apisix.proxy_cache.zones", List(&Object(PROXY_CACHE_ZONE)), "[{name: disk_cache_one, memory_size: 50m, disk_size: 1G, disk_path: data/disk_cache_one, cache_levels: '1:2'}, {name: memory_cache, memory_size: 50m}]", "The caches of the `proxy-cache` plugin: on disk where there is a `disk_path`, else in memory.").restart(),
    key("apisix.delete_uri_tail_slash", Bool, "false", "Match routes without the slash at the path's end."),
    key("apisix.normalize_uri_like_servlet", Bool, "false", "Match routes on the path as a Java servlet container normalises it: parameters after `;` are left out."),
    key("apisix.match_uri_encoded_slash", Bool, "false", "Keep `%2F` escaped while matching, so that it belongs to a path parameter."),
    key("apisix.max_post_args_readable_size", COUNT, "64", "Most MiB of a body read to match `post_arg.*` variables; 0 for no limit."),
    key("apisix.router.http", OneOf(&["radixtree_host_uri", "radixtree_uri", "radixtree_uri_with_parameter"]), "radixtree_host_uri", "How routes are found: by host, then path; by path; by path with `:name` parameters."),
    known("apisix.router.ssl", OneOf(&["radixtree_sni"]), "radixtree_sni", "How certificates are found: by SNI, the only way there is."),
    key("apisix.unknown_plugins", OneOf(&["refuse", "skip"]), "refuse", "What becomes of plugins in stored resources that this version does not have. Those that only observe (loggers, tracers, metrics) are always left out, with a warning; a route with any other answers 503, or with `skip` goes without it."),
    key("apisix.proxy_mode", OneOf(&["http", "stream", "http&stream"]), "http", "What is proxied: HTTP, TCP and UDP streams, or both. Sluicegate proxies HTTP; with streams it also stores `stream_routes`."),
    known("apisix.stream_proxy.tcp", List(&Any), "", "Ports of the TCP proxy.").example("[9100]"),
    known("apisix.stream_proxy.udp", List(&Any), "", "Ports of the UDP proxy.").example("[9200]"),
    key("apisix.dns_resolver", List(&Nameserver), "", "DNS servers to ask. Left out: those of /etc/resolv.conf.").example("[1.1.1.1, 8.8.8.8]").restart(),
    key("apisix.dns_resolver_valid", SECONDS, "", "Use DNS answers this long, in place of their own TTL.").example("30").restart(),
    key("apisix.resolver_timeout", SECONDS, "5", "How long to wait for a DNS answer.").restart(),
    key("apisix.enable_resolv_search_opt", Bool, "true", "Use the search list of /etc/resolv.conf.").restart(),
    key("apisix.ssl.enable", Bool, "true", "Whether the TLS ports listen.").restart(),
    key("apisix.ssl.listen", List(&Object(SSL_LISTEN)), "[{port: 9443}]", "Where clients connect with TLS.").restart(),
    key("apisix.ssl.ssl_trusted_certificate", Path, "system", "PEM file of the authorities trusted when connecting to upstreams, or the word system for the system's own.").restart(),
    // Differs: APISIX hands old versions to OpenSSL. rustls has TLS 1.2 and 1.3 only; older ones
    // are left out with a warning, and a list of nothing else is refused.
    key("apisix.ssl.ssl_protocols", TlsVersions, "TLSv1.2 TLSv1.3", "TLS versions for clients. Versions before 1.2 are left out with a warning."),
    key("apisix.ssl.ssl_ciphers", Text, crate::ciphers::DEFAULT, "Cipher suites for clients with TLS 1.2, by OpenSSL's names and groups (`HIGH`, `EECDH+AESGCM`, `!AES128`). Those that are not supported (DHE, RSA key exchange, CBC) are left out with a warning; a list of nothing else is refused. Those of TLS 1.3 are always on."),
    key("apisix.ssl.ssl_session_tickets", Bool, "false", "Resume TLS sessions by tickets. Off by default, as tickets weaken forward secrecy."),
    key("apisix.ssl.fallback_sni", Text, "", "The name to choose a certificate by when a client sends none.").example("gate.example.com"),
    key("apisix.enable_control", Bool, "true", "Whether the control API listens.").restart(),
    key("apisix.control.ip", Ip, "127.0.0.1", "Address of the control API.").restart(),
    key("apisix.control.port", PORT, "9090", "Port of the control API.").restart(),
    known("apisix.disable_sync_configuration_during_start", Bool, "false", "Start without waiting for the configuration store."),
    known("apisix.worker_startup_time_threshold", COUNT, "60", "Seconds after which a worker's start counts as a restart."),
    key("apisix.data_encryption.enable_encrypt_fields", Bool, "true", "Encrypt the secret fields of plugins in the store."),
    deprecated("apisix.data_encryption.enable", Bool, "use apisix.data_encryption.enable_encrypt_fields, which wins when both are set", "The older name of `enable_encrypt_fields`."),
    key("apisix.data_encryption.keyring", OneOrMore(&AesKey), "", "Keys that encrypt secret fields and private keys in the store (16 characters: AES-128, 32: AES-256). The first encrypts, all decrypt: put a new one first and keep the old ones. Left out: APISIX's own two, with a warning, as everybody can read them in its sources. Empty: secrets are stored as they are.").restart().example("[sixteen-letters-]"),
    key("apisix.status.ip", Ip, "", "Address of the status API; 127.0.0.1 where it is not set. Without `apisix.status`, which may be `{}`, there is none.").restart().example("127.0.0.1"),
    key("apisix.status.port", PORT, "", "Port of the status API; 7085 where it is not set.").restart().example("7085"),
    key("apisix.disable_upstream_healthcheck", Bool, "false", "Switch every health check off.").restart(),
    key("apisix.trusted_addresses", List(&Net), "", "Clients whose `X-Forwarded-*` headers are kept. Left out: nobody's Proto, Host and Port are, and `X-Forwarded-For` is appended to.").example("[127.0.0.1, 172.18.0.0/16]"),
    key("apisix.lru.secret.ttl", COUNT, "300", "Seconds after which a secret kept elsewhere is fetched again; at least 1."),
    known("apisix.lru.secret.count", COUNT, "512", "Fetched secrets kept."),
    key("apisix.lru.secret.neg_ttl", COUNT, "60", "The longest wait, in seconds, before fetching a secret is tried again after it failed; the first is 1 s."),
    known("apisix.lru.secret.neg_count", COUNT, "512", "Failed fetches remembered."),
    known("apisix.tracing", Bool, "false", "Trace every phase of a request."),
    key("apisix.id", Text, "", "A name for this instance, in place of the one kept in conf/apisix.uid.").example("gate-1"),
    known("nginx_config.user", Text, "", "The user workers run as.").example("nobody"),
    key("nginx_config.error_log", Log, "logs/error.log", "The error log: a file, /dev/stdout or /dev/stderr."),
    key("nginx_config.error_log_level", OneOf(&["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]), "warn", "The least severe messages that are logged."),
    key("nginx_config.worker_processes", AutoOr(1, CPUS_MAX), "auto", "Worker threads that serve requests; auto for one per CPU. The environment variable APISIX_WORKER_PROCESSES wins.").restart(),
    known("nginx_config.enable_cpu_affinity", Bool, "false", "Pin every worker to a CPU."),
    key("nginx_config.worker_rlimit_nofile", COUNT, "20480", "Open files allowed; the soft limit is raised to it at start.").restart(),
    key("nginx_config.worker_shutdown_timeout", Duration, "240s", "How long requests in flight may go on after a graceful stop began."),
    known("nginx_config.max_pending_timers", COUNT, "16384", "Most Lua timers waiting."),
    known("nginx_config.max_running_timers", COUNT, "4096", "Most Lua timers running."),
    known("nginx_config.event.worker_connections", COUNT, "10620", "Most connections of one worker."),
    known("nginx_config.envs", List(&Text), "", "Environment variables passed on to workers.").example("[TEST_ENV]"),
    known("nginx_config.meta.lua_shared_dict", Map, "", "Sizes of shared memory zones.").example("{prometheus-metrics: 15m}"),
    known("nginx_config.stream.real_ip_from", List(&NetOrUnix), "", "Peers whose PROXY protocol header is believed on TCP proxy ports.").example("[192.168.1.0/24]"),
    known("nginx_config.stream.enable_access_log", Bool, "false", "Log TCP and UDP sessions."),
    known("nginx_config.stream.access_log", Log, "logs/access_stream.log", "The log of TCP and UDP sessions."),
    known("nginx_config.stream.access_log_format", Text, "", "A line of that log.").example("'$remote_addr [$time_local] $protocol $status'"),
    known("nginx_config.stream.access_log_format_escape", OneOf(&["default", "json", "none"]), "default", "How values are escaped in that log."),
    known("nginx_config.stream.metrics_zone_size", Size, "1m", "Size of a shared memory zone."),
    known("nginx_config.stream.lua_shared_dict", Map, "", "Sizes of shared memory zones.").example("{worker-events-stream: 10m}"),
    known("nginx_config.main_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    known("nginx_config.http_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    known("nginx_config.http_server_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    known("nginx_config.http_server_location_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    known("nginx_config.http_admin_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    known("nginx_config.http_end_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    known("nginx_config.stream_configuration_snippet", Text, "", "Lines for nginx.conf.").example("''"),
    key("nginx_config.http.enable_access_log", Bool, "true", "Whether requests are logged."),
    key("nginx_config.http.access_log", Log, "logs/access.log", "The access log: a file, /dev/stdout or /dev/stderr."),
    key("nginx_config.http.access_log_buffer", Size, "16384", "Bytes of log lines gathered before they are written."),
    key("nginx_config.http.access_log_format", Text, r#"'$remote_addr - $remote_user [$time_local] $http_host "$request" $status $body_bytes_sent $request_time "$http_referer" "$http_user_agent" $upstream_addr $upstream_status $upstream_response_time "$upstream_scheme://$upstream_host$upstream_uri" "$apisix_request_id"'"#, "A line of the access log, with nginx's variables."),
    key("nginx_config.http.access_log_format_escape", OneOf(&["default", "json", "none"]), "default", "How values are escaped in the access log."),
    key("nginx_config.http.keepalive_timeout", Duration, "60s", "How long a client's connection may be idle; 0 closes it after each answer."),
    key("nginx_config.http.client_header_timeout", Duration, "60s", "How long a client may take to send a request's head."),
    key("nginx_config.http.client_body_timeout", Duration, "60s", "How long a client may pause while it sends a body."),
    key("nginx_config.http.client_max_body_size", Size, "0", "Most bytes of a request's body, 413 beyond; 0 for no limit."),
    key("nginx_config.http.send_timeout", Duration, "10s", "How long a client may pause while it takes an answer."),
    key("nginx_config.http.underscores_in_headers", OnOff, "'on'", "Take header names with underscores; off drops such headers."),
    key("nginx_config.http.real_ip_header", Text, "X-Real-IP", "The header that carries the client's address when the peer is one of `real_ip_from`."),
    key("nginx_config.http.real_ip_recursive", OnOff, "'off'", "Take the last address in that header which is not in `real_ip_from` itself, not just the last one."),
    key("nginx_config.http.real_ip_from", List(&NetOrUnix), "[127.0.0.1, 'unix:']", "Peers that may tell us the client's address. (We have no Unix sockets: `unix:` is taken and means nothing.)"),
    key("nginx_config.http.custom_lua_shared_dict", Map, "", "Zones of `ngx.shared` for Lua functions: a size for each name.").example("{ipc_shared_dict: 100m}"),
    known("nginx_config.http.proxy_ssl_server_name", Bool, "true", "Send the server's name (SNI) to TLS upstreams."),
    key("nginx_config.http.upstream.keepalive", COUNT, "320", "Most idle upstream connections that one worker keeps."),
    key("nginx_config.http.upstream.keepalive_requests", COUNT, "1000", "Requests after which an upstream connection is closed."),
    key("nginx_config.http.upstream.keepalive_timeout", Duration, "60s", "How long an upstream connection may be idle."),
    known("nginx_config.http.charset", Text, "utf-8", "Charset added to the `Content-Type` of our own pages."),
    known("nginx_config.http.variables_hash_max_size", COUNT, "2048", "Size of nginx's table of variables."),
    known("nginx_config.http.lua_shared_dict", Map, "", "Sizes of shared memory zones.").example("{plugin-limit-count: 10m}"),
    key("graphql.max_size", Size, "1048576", "Most bytes of a body read to match `graphql_*` variables."),
    key("discovery.dns.servers", List(&Nameserver), "", "DNS servers that know the services of upstreams with `discovery_type: dns`. They win over `resolv_conf`.").restart().example("['127.0.0.1:8600']"),
    key("discovery.dns.resolv_conf", Path, "", "A file like /etc/resolv.conf that names such servers.").restart().example("/etc/resolv.conf"),
    key("discovery.dns.order", List(&OneOf(&["last", "SRV", "A", "AAAA", "CNAME"])), "[last, SRV, A, AAAA, CNAME]", "Types of records in the order in which a service is asked for; last is the type that answered last.").restart(),
    known("discovery.consul", Map, "", "Services that Consul knows.").example("{servers: ['http://127.0.0.1:8500']}"),
    known("discovery.consul_kv", Map, "", "Services in the key-value store of Consul.").example("{servers: ['http://127.0.0.1:8500']}"),
    known("discovery.eureka", Map, "", "Services that Eureka knows.").example("{host: ['http://127.0.0.1:8761']}"),
    known("discovery.kubernetes", Any, "", "Services that Kubernetes knows.").example("{client: {token: ''}}"),
    known("discovery.nacos", Map, "", "Services that Nacos knows.").example("{host: ['http://127.0.0.1:8848']}"),
    known("discovery.tars", Map, "", "Services that Tars knows.").example("{db_conf: {}}"),
    known("ext-plugin", Map, "", "Runner of external plugins.").example("{cmd: [ls, -l]}"),
    known("wasm", Map, "", "WebAssembly plugins.").example("{plugins: []}"),
    known("xrpc", Map, "", "Protocols of the xRPC proxy.").example("{protocols: [{name: pingpong}]}"),
    key("plugins", List(&Text), "", "Plugins that may be used. Left out: every plugin this build has.").example("[aws-lambda]"),
    known("stream_plugins", List(&Text), "", "Plugins of TCP and UDP proxying.").example("[ip-restriction, limit-conn]"),
    key("plugin_attr", Map, "", "Settings of plugins for the whole gateway, one map per plugin name.").example("{redirect: {https_port: 8443}}"),
    key("deployment.role", OneOf(&["traditional", "control_plane", "data_plane"]), "traditional", "traditional: this instance has the data plane and the Admin API. control_plane: the Admin API alone. data_plane: the data plane alone; it never writes to the store.").restart(),
    // Differs: APISIX's default is etcd, and it has no embedded store.
    key("deployment.role_traditional.config_provider", OneOf(&["embedded", "etcd", "yaml", "json"]), "", "Where resources are kept: embedded, a file of our own; etcd, a cluster shared with others; yaml, in memory, sent whole to /apisix/admin/configs (conf/apisix.yaml where apisix.enable_admin is false); json, conf/apisix.json. Left out: embedded, or etcd where `deployment.etcd` is present.").restart().example("embedded"),
    key("deployment.role_control_plane.config_provider", OneOf(&["etcd"]), "", "Store of a control plane: etcd, also when left out.").restart().example("etcd"),
    key("deployment.role_data_plane.config_provider", OneOf(&["etcd", "yaml", "json", "xds"]), "", "Store of a data plane: etcd, also when left out; yaml, conf/apisix.yaml; json, conf/apisix.json. xds is refused.").restart().example("etcd"),
    key("deployment.embedded.path", Path, "data/sluicegate.redb", "The embedded store's file, under the prefix unless absolute.").restart(),
    key("deployment.admin.admin_key_required", Bool, "true", "Whether the Admin API asks for a key. Turn it off only where nobody else can connect."),
    key("deployment.admin.admin_key", List(&Object(ADMIN_KEY)), "[{name: admin, key: '', role: admin}]", "Keys of the Admin API."),
    key("deployment.admin.enable_admin_cors", Bool, "true", "Send `Access-Control-Allow-Origin: *` with Admin API answers."),
    known("deployment.admin.enable_admin_ui", Bool, "true", "Serve the dashboard."),
    // Differs: in APISIX a null (`allow_admin:` and nothing) opens the Admin API to everybody.
    key("deployment.admin.allow_admin", List(&Net), "[127.0.0.0/24]", "Who may connect to the Admin API. An empty list lets nobody in; 0.0.0.0/0 and ::/0 let everybody in."),
    key("deployment.admin.admin_listen.ip", Ip, "0.0.0.0", "Address of the Admin API.").restart(),
    key("deployment.admin.admin_listen.port", PORT, "9180", "Port of the Admin API.").restart(),
    key("deployment.admin.https_admin", Bool, "", "Serve the Admin API with TLS, by the certificate below and with `apisix.ssl`'s versions and cipher suites.").restart().example("true"),
    key("deployment.admin.admin_api_mtls.admin_ssl_cert", Text, "", "Certificate of the Admin API: a PEM file, from the folder conf/ unless absolute.").example("admin.crt"),
    key("deployment.admin.admin_api_mtls.admin_ssl_cert_key", Text, "", "Key of that certificate: a PEM file, from the folder conf/ unless absolute.").example("admin.key"),
    key("deployment.admin.admin_api_mtls.admin_ssl_ca_cert", Text, "", "Authorities of client certificates, a PEM file. Set: whoever uses the Admin API has to bring a certificate of theirs.").example("admin-clients.crt"),
    key("deployment.admin.admin_api_version", OneOf(&["v3"]), "v3", "Version of the Admin API's answers."),
    key("deployment.etcd.host", OneOrMore(&Text), "", "Addresses of one etcd cluster, each `http://` or `https://`. The first that answers is used until it fails. Default: `[http://127.0.0.1:2379]`.").restart().example("[http://127.0.0.1:2379]"),
    key("deployment.etcd.prefix", Text, "", "What keys in etcd start with. Default: `/apisix`.").restart().example("/apisix"),
    key("deployment.etcd.timeout", SECONDS, "", "How long connecting to etcd and reading from it may take. Writes are tried for 5 s at most, or this long where it is shorter. Default: 30.").restart().example("30"),
    key("deployment.etcd.watch_timeout", SECONDS, "", "How long a watch may be silent before another one takes its place. Default: 50.").restart().example("50"),
    key("deployment.etcd.resync_delay", SECONDS, "", "The longest wait between two tries to follow etcd again; the wait is up to half shorter, so that not all gateways come at once. Default: 5.").restart().example("5"),
    key("deployment.etcd.health_check_timeout", INTEGER, "", "Seconds that a host which failed is left alone while another one works. Default, also for a negative number: 10.").restart().example("10"),
    key("deployment.etcd.startup_retry", COUNT, "", "How often reading is tried at start where there is no copy of what etcd held. Default: 2.").restart().example("2"),
    key("deployment.etcd.user", Text, "", "User name for etcd, used together with `password`.").restart().example("root"),
    key("deployment.etcd.password", Secret { chars_max: ADMIN_KEY_CHARS_MAX }, "", "Password for etcd.").restart().example("''"),
    key("deployment.etcd.tls.cert", Text, "", "Our certificate for etcd: a PEM file, under the prefix unless absolute.").restart().example("''"),
    key("deployment.etcd.tls.key", Text, "", "Key of that certificate: a PEM file.").restart().example("''"),
    key("deployment.etcd.tls.verify", Bool, "", "Check etcd's certificate, by the authorities of `apisix.ssl.ssl_trusted_certificate`. Default: true.").restart().example("true"),
    key("deployment.etcd.tls.sni", Text, "", "The name to ask for and to expect in etcd's certificate. Left out: the host's.").restart().example("''"),
    key("sluicegate.server_header", Field, "", "The `Server` header of every answer, in place of `Sluicegate` with its version: for clients and checks that want `APISIX/3.18.0`, say.").example("APISIX/3.18.0"),
    key("sluicegate.limits.header_count", Int(1, 100_000), "1000", "Most headers of a request, 431 beyond."),
    key("sluicegate.limits.header_bytes", Size, "65536", "Most bytes of a request's head, 431 beyond."),
    key("sluicegate.limits.buffered_body_bytes", Size, "1g", "Most bytes of request bodies held in memory at one time, over all requests; 503 beyond."),
    key("sluicegate.limits.idle_grace_ms", Int(0, 600_000), "1000", "How long idle function connections above a plugin's `keepalive_pool` are kept, so that a burst can use them again."),
    key("sluicegate.egress_proxy.https_proxy", Secret { chars_max: PROXY_CHARS_MAX }, "", "The proxy for `https://` addresses: `http://` or `https://`, user and password where it wants them (escaped as in any URL), host, port.").restart().example("'http://proxy.example.com:3128'"),
    key("sluicegate.egress_proxy.http_proxy", Secret { chars_max: PROXY_CHARS_MAX }, "", "The proxy for `http://` addresses.").restart().example("'http://proxy.example.com:3128'"),
    key("sluicegate.egress_proxy.no_proxy", List(&Text), "", "Whom to call directly: `example.com` (what is below it too), `.example.com` (only that), `10.1.2.3`, `10.0.0.0/8` (for addresses, not for names that lead there), each but networks with a port if need be; `*` is everybody. An entry may hold several, commas between. `localhost`, loopback and link-local addresses are never called through a proxy.").restart().example("[.internal.example.com, 10.0.0.0/8]"),
    key("sluicegate.admin.redact_secrets", Bool, "false", "Show `***` in the Admin API's answers in the place of every secret. What is answered can then not be sent back as it is."),
];

/// What the sections are about, for the example file.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("apisix", "The gateway itself."),
    ("apisix.proxy_protocol", "Ports behind a balancer that speaks the PROXY protocol."),
    ("apisix.router", "How requests find their route."),
    ("apisix.ssl", "TLS for clients."),
    ("apisix.control", "The control API shows the inside of a running gateway, without a key."),
    ("apisix.data_encryption", "Encryption of secrets in the store."),
    ("apisix.status", "The status API: whether the gateway runs, and whether it is ready."),
    ("nginx_config", "What APISIX tells nginx; here the same keys set our own server."),
    ("nginx_config.http", "Logs, times and limits of HTTP."),
    ("nginx_config.http.upstream", "Idle connections to upstreams."),
    ("discovery", "Where the nodes of upstreams with a `service_name` come from."),
    ("deployment", "What this instance is, and where its resources are kept."),
    ("deployment.admin", "The Admin API."),
    (
        "deployment.admin.admin_api_mtls",
        "The certificate of the Admin API, and whose clients it takes.",
    ),
    (
        "deployment.etcd",
        "Present: the store is etcd, as an APISIX file means it, unless config_provider says otherwise.",
    ),
    ("deployment.etcd.tls", "TLS towards etcd."),
    ("sluicegate", "What APISIX does not have."),
    ("sluicegate.limits", "Limits on what clients send."),
    (
        "sluicegate.egress_proxy",
        "The HTTP proxy by which function calls, AWS credentials and secret managers are reached.",
    ),
    ("sluicegate.admin", "The Admin API, beyond APISIX."),
];

/// Names after the last dot of every path directly below `prefix` (empty: the top level).
pub(crate) fn children(prefix: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |key| {
        let rest = match prefix {
            "" => key.path,
            _ => key.path.strip_prefix(prefix)?.strip_prefix('.')?,
        };
        rest.split('.').next()
    })
}

/// Whether keys lie below this path.
pub(crate) fn is_section(path: &str) -> bool {
    children(path).next().is_some()
}

/// The name that was meant most likely, if one is near enough.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > SUGGEST_BYTES_MAX {
        return None;
    }
    let far = 1 + name.len() / 4;
    names
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, _)| *distance <= far)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// The path to suggest for an unknown key: a sibling with a near name, else the same name
/// elsewhere.
pub(crate) fn suggest(parent: &str, name: &str) -> Option<String> {
    if let Some(sibling) = nearest(name, children(parent)) {
        return Some(crate::yaml::join(parent, sibling));
    }
    let elsewhere = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(name));
    elsewhere.map(|key| key.path.to_owned())
}

/// Longer names are no typing errors, and comparing them would cost time.
const SUGGEST_BYTES_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_unique_and_no_key_is_a_section_too() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(!KEYS[..index].iter().any(|other| other.path == key.path), "{}", key.path);
            assert!(!is_section(key.path), "{} is both", key.path);
            assert!(key.about.ends_with(['.', ')']), "{}: a sentence ends", key.path);
            assert!(
                key.default.is_empty() != key.example.is_empty()
                    || matches!(key.status, Status::Deprecated(_)),
                "{}: a default or an example, not both",
                key.path
            );
        }
        for (path, _) in SECTIONS {
            assert!(is_section(path), "{path}");
        }
    }

    #[test]
    fn a_mistyped_key_finds_the_one_that_was_meant() {
        for (parent, name, suggestion) in [
            ("apisix", "node_listn", Some("apisix.node_listen")),
            ("apisix", "nodelisten", Some("apisix.node_listen")),
            ("apisix.ssl", "listne", Some("apisix.ssl.listen")),
            ("", "deploymnet", Some("deployment")),
            ("", "node_listen", Some("apisix.node_listen")),
            ("", "admin_key", Some("deployment.admin.admin_key")),
            (
                "nginx_config",
                "client_max_body_size",
                Some("nginx_config.http.client_max_body_size"),
            ),
            ("apisix", "coffee", None),
            ("", "", None),
        ] {
            assert_eq!(suggest(parent, name).as_deref(), suggestion, "{parent} {name}");
        }
    }

    #[test]
    fn names_too_long_for_a_typing_error_get_no_suggestion() {
        let name = |bytes: usize| "node_listen".to_owned() + &"x".repeat(bytes - 11);
        assert!(nearest(&name(SUGGEST_BYTES_MAX), [name(99).as_str()].into_iter()).is_some());
        assert_eq!(nearest(&name(SUGGEST_BYTES_MAX + 1), [name(100).as_str()].into_iter()), None);
    }
}

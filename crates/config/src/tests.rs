//! Rules that need the whole way of a file, from its text to plain fields.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn env(name: &str) -> Option<String> {
    let value = match name {
        "PORT" => "9088",
        "KEY" => "12345678901234567890123456789012",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.into())
}

/// A configuration and its warnings; without the one about the missing keyring, which nearly every
/// text here would have.
fn parse(text: &str) -> Result<(Config, Vec<String>), String> {
    let (config, warnings) = Config::parse("f", text, &env).map_err(|error| error.to_string())?;
    let warnings = warnings.iter().map(Warning::to_string);
    Ok((config, warnings.filter(|text| !text.contains("keyring: not set")).collect()))
}

#[track_caller]
fn config(text: &str) -> Config {
    let (config, warnings) = parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    assert_eq!(warnings, [""; 0], "{text}");
    config
}

#[track_caller]
fn refused(text: &str, error: &str) {
    match parse(text) {
        Ok(_) => panic!("taken: {text}"),
        Err(found) => assert_eq!(found, error, "{text}"),
    }
}

#[track_caller]
fn warned(text: &str, expected: &[&str]) {
    assert_eq!(parse(text).unwrap_or_else(|error| panic!("{text}\n{error}")).1, expected, "{text}");
}

#[test]
fn an_empty_file_has_the_defaults_of_apisix() {
    for text in ["", "# nothing\n", "---\n", "apisix:\n", "apisix:\n  ssl:\n", "{}"] {
        let config = config(text);
        let apisix = &config.apisix;
        assert_eq!(apisix.node_listen, [Listen { ip: None, port: 9080 }]);
        assert_eq!(apisix.ssl.listen, [Listen { ip: None, port: 9443 }]);
        assert!(apisix.enable_admin && apisix.enable_http2 && apisix.enable_ipv6);
        assert!(apisix.enable_server_tokens && apisix.ssl.enable);
        assert!(!apisix.ssl.session_tickets && !apisix.delete_uri_tail_slash);
        assert_eq!(apisix.router_http, RouterHttp::HostUri);
        assert_eq!(apisix.ssl.protocols, [TlsVersion::V1_2, TlsVersion::V1_3]);
        assert_eq!(apisix.ssl.trusted_certificate, TrustedCertificate::System);
        assert_eq!(apisix.ssl.ciphers.len(), 6);
        assert_eq!(apisix.control, Some(addr("127.0.0.1:9090")));
        assert_eq!(apisix.trusted_addresses, None);
        assert_eq!(apisix.max_post_args_bytes, Some(64 << 20));
        let nginx = &config.nginx_config;
        assert_eq!(nginx.worker_processes, WorkerProcesses::Auto);
        assert_eq!(nginx.worker_shutdown_timeout, Duration::from_secs(240));
        assert_eq!(nginx.error_log, LogTarget::File("logs/error.log".into()));
        assert_eq!(nginx.error_log_level, ErrorLogLevel::Warn);
        assert_eq!(nginx.http.access_log, LogTarget::File("logs/access.log".into()));
        assert!(nginx.http.access_log_format.starts_with("$remote_addr - $remote_user ["));
        assert!(nginx.http.access_log_format.ends_with("\"$apisix_request_id\""));
        assert_eq!(nginx.http.send_timeout, Duration::from_secs(10));
        assert_eq!(nginx.http.client_max_body_size, None);
        assert!(nginx.http.underscores_in_headers && !nginx.http.real_ip_recursive);
        assert_eq!(nginx.http.real_ip_from, ["127.0.0.1/32".parse().unwrap()]);
        assert_eq!(nginx.http.upstream.keepalive, 320);
        let admin = &config.deployment.admin;
        assert_eq!(config.deployment.config_provider, ConfigProvider::Embedded);
        assert_eq!(config.deployment.embedded_path, Path::new("data/sluicegate.redb"));
        assert_eq!(admin.allow_admin, ["127.0.0.0/24".parse().unwrap()]);
        assert_eq!(admin.admin_listen, addr("0.0.0.0:9180"));
        assert!(admin.admin_key_required && admin.enable_admin_cors);
        assert_eq!(admin.admin_key.len(), 1);
        assert_eq!(admin.admin_key[0].role, AdminRole::Admin);
        assert!(admin.admin_key[0].key.is_empty());
        assert_eq!(config.plugins, None);
        assert_eq!(config.limits.header_count, 1000);
        assert_eq!(config.limits.header_bytes, 65_536);
        assert_eq!(config.limits.buffered_body_bytes, 1 << 30);
        assert_eq!(config.limits.idle_grace, Duration::from_secs(1));
        assert_eq!(config.apisix.secret_ttl, Duration::from_secs(300));
        assert_eq!(config.apisix.secret_neg_ttl, Duration::from_secs(60));
        assert!(!config.redact_secrets);
    }
}

#[test]
fn node_listen_takes_a_number_a_list_and_maps() {
    for (value, addrs) in [
        ("9081", &["0.0.0.0:9081", "[::]:9081"][..]),
        ("[9080, 9081]", &["0.0.0.0:9080", "[::]:9080", "0.0.0.0:9081", "[::]:9081"]),
        ("[9080, 9080]", &["0.0.0.0:9080", "[::]:9080"]),
        ("[{port: 1}, {ip: 127.0.0.2, port: 2}]", &["0.0.0.0:1", "[::]:1", "127.0.0.2:2"]),
        ("[{ip: '::1', port: 2}]", &["[::1]:2"]),
        ("[{ip: '[::1]', port: 2}]", &["[::1]:2"]),
        ("[{ip: 127.0.0.1}]", &["127.0.0.1:9080"]),
        ("[0]", &["0.0.0.0:0", "[::]:0"]),
        ("65535", &["0.0.0.0:65535", "[::]:65535"]),
        ("[9080, {ip: 127.0.0.1, port: 9080}]", &["0.0.0.0:9080", "[::]:9080", "127.0.0.1:9080"]),
        ("${{PORT}}", &["0.0.0.0:9088", "[::]:9088"]),
        ("['${{PORT:=1}}']", &["0.0.0.0:9088", "[::]:9088"]),
    ] {
        let config = config(&format!("apisix:\n  node_listen: {value}\n"));
        let found: Vec<_> = config.http_addrs().iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, addrs, "{value}");
    }
    let config = config("apisix: {enable_ipv6: false, ssl: {enable: false}}");
    assert_eq!(config.http_addrs(), [addr("0.0.0.0:9080")]);
    assert_eq!(config.https_addrs(), []);
}

#[test]
fn a_wrong_value_is_named_with_its_place_and_what_was_expected() {
    for (text, error) in [
        (
            "apisix:\n  ssl:\n    enable: yes please\n",
            "f:3: apisix.ssl.enable: expected true or false, got \"yes please\"",
        ),
        (
            "apisix:\n  node_listen:\n    - 9080\n    - port: 65536\n",
            "f:4: apisix.node_listen[1].port: expected a whole number from 0 to 65535, got 65536",
        ),
        (
            "apisix: {node_listen: [-1]}",
            "f:1: apisix.node_listen[0]: expected a whole number from 0 to 65535, or a map of ip, \
             port, enable_http2, got -1",
        ),
        (
            "apisix: {control: {port: 90.5}}",
            "f:1: apisix.control.port: expected a whole number from 0 to 65535, got 90.5",
        ),
        (
            "apisix: {control: {port: '9090'}}",
            "f:1: apisix.control.port: expected a whole number from 0 to 65535, got \"9090\"",
        ),
        (
            "apisix: {control: {ip: localhost}}",
            "f:1: apisix.control.ip: expected an IP address, got \"localhost\"",
        ),
        ("apisix: {control: [1]}", "f:1: apisix.control: expected a map of keys"),
        ("apisix: 1", "f:1: apisix: expected a map of keys"),
        ("- a", "f:1: (the whole file): expected a map of keys"),
        (
            "apisix: {enable_http2: [true]}",
            "f:1: apisix.enable_http2: expected true or false, got a list",
        ),
        (
            "apisix: {enable_http2: 'on'}",
            "f:1: apisix.enable_http2: expected true or false, got \"on\"",
        ),
        (
            "apisix: {ssl: {fallback_sni: 12}}",
            "f:1: apisix.ssl.fallback_sni: expected a string, got 12",
        ),
        (
            "apisix: {ssl: {ssl_protocols: TLSv2}}",
            "f:1: apisix.ssl.ssl_protocols: expected one or more of SSLv2, SSLv3, TLSv1, TLSv1.1, TLSv1.2, TLSv1.3, got \"TLSv2\"",
        ),
        (
            "apisix: {ssl: {ssl_protocols: TLSv1.1}}",
            "f:1: apisix.ssl.ssl_protocols: expected TLSv1.2, TLSv1.3 or both: older versions are not supported",
        ),
        (
            "apisix: {ssl: {ssl_ciphers: 'DHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-SHA384'}}",
            "f:1: apisix.ssl.ssl_ciphers: expected at least one cipher suite of TLS 1.2 that is supported: ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-CHACHA20-POLY1305, ECDHE-ECDSA-AES128-GCM-SHA256, ECDHE-RSA-AES128-GCM-SHA256, or a group such as HIGH",
        ),
        (
            "apisix: {router: {http: tree}}",
            "f:1: apisix.router.http: expected \"radixtree_host_uri\", \"radixtree_uri\" or \"radixtree_uri_with_parameter\", got \"tree\"",
        ),
        (
            "apisix: {dns_resolver: [dns.test]}",
            "f:1: apisix.dns_resolver[0]: expected the IP address of a DNS server, with or without a port, got \"dns.test\"",
        ),
        (
            "apisix: {trusted_addresses: []}",
            "f:1: apisix.trusted_addresses: expected at least one address; leave the key out to trust nobody",
        ),
        (
            "apisix: {trusted_addresses: [10.0.0.0/33]}",
            "f:1: apisix.trusted_addresses[0]: expected an IP address or a network such as 10.0.0.0/8, got \"10.0.0.0/33\"",
        ),
        (
            "nginx_config: {worker_processes: 0}",
            "f:1: nginx_config.worker_processes: expected \"auto\" or a whole number from 1 to 1024, got 0",
        ),
        (
            "nginx_config: {worker_processes: 1025}",
            "f:1: nginx_config.worker_processes: expected \"auto\" or a whole number from 1 to 1024, got 1025",
        ),
        (
            "nginx_config: {worker_shutdown_timeout: soon}",
            "f:1: nginx_config.worker_shutdown_timeout: expected a time such as 500ms, 60s, 1h or a number of seconds (at most 365d), got \"soon\"",
        ),
        (
            "nginx_config: {worker_shutdown_timeout: 366d}",
            "f:1: nginx_config.worker_shutdown_timeout: expected a time such as 500ms, 60s, 1h or a number of seconds (at most 365d), got \"366d\"",
        ),
        (
            "nginx_config: {http: {client_max_body_size: 1t}}",
            "f:1: nginx_config.http.client_max_body_size: expected a size such as 16k, 1m or a number of bytes, got \"1t\"",
        ),
        (
            "nginx_config: {http: {client_max_body_size: -1}}",
            "f:1: nginx_config.http.client_max_body_size: expected a size such as 16k, 1m or a number of bytes, got -1",
        ),
        (
            "nginx_config: {http: {underscores_in_headers: maybe}}",
            "f:1: nginx_config.http.underscores_in_headers: expected \"on\" or \"off\", got \"maybe\"",
        ),
        (
            "nginx_config: {http: {access_log: 'syslog:server=x'}}",
            "f:1: nginx_config.http.access_log: expected a file, /dev/stdout, /dev/stderr or \"off\", got \"syslog:server=x\"",
        ),
        (
            "nginx_config: {error_log_level: loud}",
            "f:1: nginx_config.error_log_level: expected \"debug\", \"info\", \"notice\", \"warn\", \"error\", \"crit\", \"alert\" or \"emerg\", got \"loud\"",
        ),
        ("plugins: cors", "f:1: plugins: expected a list (each: a string), got \"cors\""),
        ("plugins: [1]", "f:1: plugins[0]: expected a string, got 1"),
        (
            "discovery: {dns: {servers: ['127.0.0.1:8600'], order: [SRV, SRV]}}",
            "f:1: discovery.dns.order: expected one or more types, each once",
        ),
        (
            "discovery: {dns: {servers: ['127.0.0.1:8600'], order: [B]}}",
            "f:1: discovery.dns.order[0]: expected \"last\", \"SRV\", \"A\", \"AAAA\" or \"CNAME\", got \"B\"",
        ),
        (
            "discovery: {dns: {servers: []}}",
            "f:1: discovery.dns.servers: expected at least one server",
        ),
        ("plugin_attr: [a]", "f:1: plugin_attr: expected a map, got a list"),
        (
            "deployment: {admin: {admin_key: [{role: root}]}}",
            "f:1: deployment.admin.admin_key[0].role: expected \"admin\" or \"viewer\", got \"root\"",
        ),
        (
            "deployment: {admin: {admin_key: [x]}}",
            "f:1: deployment.admin.admin_key[0]: expected a map of name, key, role, got \"x\"",
        ),
        (
            "deployment: {admin: {allow_admin: 127.0.0.1}}",
            "f:1: deployment.admin.allow_admin: expected a list (each: an IP address or a network such as 10.0.0.0/8), got \"127.0.0.1\"",
        ),
        (
            "deployment: {admin: {admin_api_version: v2}}",
            "f:1: deployment.admin.admin_api_version: expected \"v3\", got \"v2\"",
        ),
        (
            "deployment: {embedded: {path: ''}}",
            "f:1: deployment.embedded.path: expected the path of a file, got \"\"",
        ),
        (
            "sluicegate: {limits: {header_count: 0}}",
            "f:1: sluicegate.limits.header_count: expected a whole number from 1 to 100000, got 0",
        ),
        (
            "sluicegate: {limits: {header_count: 100001}}",
            "f:1: sluicegate.limits.header_count: expected a whole number from 1 to 100000, got 100001",
        ),
        (
            "sluicegate: {limits: {idle_grace_ms: 600001}}",
            "f:1: sluicegate.limits.idle_grace_ms: expected a whole number from 0 to 600000, got 600001",
        ),
        (
            "a: {b: ${{GONE}}}",
            "f:1:9: while parsing a flow mapping, did not find expected ',' or '}'",
        ),
        (
            "apisix:\n  enable_http2: ${{GONE}}\n",
            "f:2: apisix.enable_http2: environment variable GONE is not set, and ${{GONE}} gives no default\nf:2: apisix.enable_http2: expected true or false, got \"${{GONE}}\"",
        ),
        (
            "apisix:\n  enable_http2: true\napisix: {}\n",
            "f:3: apisix: given twice; first on line 1",
        ),
        ("apisix: [1\n", "f:2:1: while parsing a flow sequence, expected ',' or ']'"),
    ] {
        refused(text, error);
    }
}

#[test]
fn every_error_of_a_file_comes_at_once_in_its_order() {
    refused(
        "plugins: 1\napisix:\n  enable_http2: 2\n  enable_http2: 3\nnginx_config: {error_log_level: x1}\n",
        "f:1: plugins: expected a list (each: a string), got 1\n\
         f:3: apisix.enable_http2: expected true or false, got 2\n\
         f:4: apisix.enable_http2: given twice; first on line 3\n\
         f:5: nginx_config.error_log_level: expected \"debug\", \"info\", \"notice\", \"warn\", \
         \"error\", \"crit\", \"alert\" or \"emerg\", got \"x1\"",
    );
    let many = format!("plugins: [{}]", vec!["1"; PROBLEMS_MAX + 1].join(","));
    assert_eq!(parse(&many).unwrap_err().lines().count(), PROBLEMS_MAX);
}

#[test]
fn a_long_wrong_value_is_shortened() {
    let error = parse(&format!("apisix: {{enable_http2: {}}}", "é".repeat(61))).unwrap_err();
    assert!(error.ends_with(&format!("got \"{}…\"", "é".repeat(60))), "{error}");
}

#[test]
fn values_that_apisix_takes_are_taken() {
    let config = config(
        "\
apisix:
  enable_http2: no
  resolver_timeout: 5
  data_encryption: {enable_encrypt_fields: off, keyring: 1234567890123456}
  trusted_addresses: [127.0.0.1, 172.18.3.4/16, '::1', 'fc00::/7']
  proxy_protocol: {listen_http_port: 9181, listen_https_port: 9182.0}
  max_post_args_readable_size: 0
  ssl: {ssl_trusted_certificate: certs/ca.pem, ssl_protocols: 'TLSv1.3 TLSv1.3', fallback_sni: a.test}
nginx_config:
  worker_processes: '2'
  worker_shutdown_timeout: 1m 30s
  error_log: /dev/stderr
  http:
    enable_access_log: true
    access_log: /dev/stdout
    access_log_format: |
      \"$request\\\" \\\\
    access_log_format_escape: json
    client_max_body_size: 10m
    keepalive_timeout: 0
    send_timeout: 0.5
    client_body_timeout: '90'
    underscores_in_headers: false
    real_ip_recursive: 'on'
    real_ip_from: ['unix:', 10.0.0.0/8]
deployment:
  admin:
    allow_admin: [0.0.0.0/0, '::/0']
    admin_key: [{key: '${{KEY}}', role: viewer}, {key: 12345678901234567890, name: ci}]
plugins: [aws-lambda]
plugin_attr: {redirect: {https_port: 8443}}
"
        .replace("  resolver_timeout: 5\n", "")
        .as_str(),
    );
    let apisix = &config.apisix;
    assert!(!apisix.enable_http2 && !apisix.data_encryption.enable_encrypt_fields);
    assert_eq!(apisix.data_encryption.keyring, [Secret::new("1234567890123456")]);
    let trusted: Vec<_> =
        apisix.trusted_addresses.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(trusted, ["127.0.0.1/32", "172.18.0.0/16", "::1/128", "fc00::/7"]);
    assert_eq!(apisix.proxy_protocol.listen_http_port, Some(9181));
    assert_eq!(apisix.proxy_protocol.listen_https_port, Some(9182));
    assert_eq!(apisix.max_post_args_bytes, None);
    assert_eq!(apisix.ssl.trusted_certificate, TrustedCertificate::File("certs/ca.pem".into()));
    assert_eq!(apisix.ssl.protocols, [TlsVersion::V1_3]);
    assert_eq!(apisix.ssl.fallback_sni.as_deref(), Some("a.test"));
    let nginx = &config.nginx_config;
    assert_eq!(nginx.worker_processes, WorkerProcesses::Count(2.try_into().unwrap()));
    assert_eq!(nginx.worker_shutdown_timeout, Duration::from_secs(90));
    assert_eq!(nginx.error_log, LogTarget::Stderr);
    assert_eq!(nginx.http.access_log, LogTarget::Stdout);
    assert_eq!(nginx.http.access_log_format, "\"$request\" \\");
    assert_eq!(nginx.http.access_log_format_escape, LogEscape::Json);
    assert_eq!(nginx.http.client_max_body_size, Some(10 << 20));
    assert_eq!(nginx.http.keepalive_timeout, Duration::ZERO);
    assert_eq!(nginx.http.send_timeout, Duration::from_millis(500));
    assert_eq!(nginx.http.client_body_timeout, Duration::from_secs(90));
    assert!(!nginx.http.underscores_in_headers && nginx.http.real_ip_recursive);
    assert_eq!(nginx.http.real_ip_from, ["10.0.0.0/8".parse().unwrap()]);
    let keys = &config.deployment.admin.admin_key;
    assert_eq!(keys[0].key.expose(), "12345678901234567890123456789012");
    assert_eq!(keys[0].role, AdminRole::Viewer);
    assert_eq!(keys[1].key.expose(), "12345678901234567890");
    assert_eq!((keys[1].name.as_str(), keys[1].role), ("ci", AdminRole::Admin));
    assert_eq!(config.plugin_attr.get("redirect").unwrap()["https_port"], 8443);
    assert_eq!(config.plugin_attr.get("cors"), None);
}

#[test]
fn an_access_log_that_is_off_goes_nowhere() {
    for text in ["{enable_access_log: false}", "{access_log: 'off'}"] {
        let config = config(&format!("nginx_config: {{http: {text}}}"));
        assert_eq!(config.nginx_config.http.access_log, LogTarget::Off, "{text}");
    }
}

#[test]
fn the_default_keyring_is_that_of_apisix_and_an_empty_one_is_none() {
    let keyring = |text| parse(text).unwrap().0.apisix.data_encryption.keyring;
    let default = ["qeddd145sfvddff3", "edd1c9f0985e76a2"].map(Secret::new);
    assert_eq!(keyring(""), default);
    assert_eq!(keyring("apisix: {data_encryption: {keyring: []}}"), []);
}

#[test]
fn keyring_and_admin_keys_stop_at_their_limits() {
    let keyring =
        |chars: usize| format!("apisix: {{data_encryption: {{keyring: [{}]}}}}", "k".repeat(chars));
    for (chars, taken) in
        [(15, false), (16, true), (17, false), (31, false), (32, true), (33, false)]
    {
        assert_eq!(parse(&keyring(chars)).is_ok(), taken, "{chars}");
    }
    refused(
        &keyring(17),
        "f:1: apisix.data_encryption.keyring[0]: expected a string of 16 or 32 characters, got 17 \
         characters",
    );
    let admin = |chars: usize| {
        format!("deployment: {{admin: {{admin_key: [{{key: {}}}]}}}}", "k".repeat(chars))
    };
    assert!(parse(&admin(1024)).is_ok());
    refused(
        &admin(1025),
        "f:1: deployment.admin.admin_key[0].key: expected a string of at most 1024 characters, got \
         1025 characters",
    );
}

#[test]
fn lists_stop_at_their_limit() {
    let list = |items| format!("plugins: [{}]", vec!["cors"; items].join(","));
    assert!(parse(&list(LIST_ITEMS_MAX)).is_ok());
    refused(&list(LIST_ITEMS_MAX + 1), "f:1: plugins: more than 1000 entries");
}

#[test]
fn files_stop_at_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let file = path.display();
    for (bytes, error) in [
        (vec![b'#'; FILE_BYTES_MAX], None),
        (vec![b'#'; FILE_BYTES_MAX + 1], Some(format!("{file}: larger than 1048576 bytes"))),
        (b"a: \xff".to_vec(), Some(format!("{file}: not UTF-8 text (at byte 3)"))),
    ] {
        fs::write(&path, &bytes).unwrap();
        let found = Config::load(&path, &env).err().map(|error| error.to_string());
        assert_eq!(found, error);
    }
    assert!(Config::parse("f", &"#".repeat(FILE_BYTES_MAX + 1), &env).is_err());
    let missing = folder.path().join("none.yaml");
    let error = Config::load(&missing, &env).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot be read: ", missing.display())), "{error}");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one() {
    warned(
        "apisix:\n  node_listn: 9080\n",
        &["f:2: unknown key apisix.node_listn; did you mean apisix.node_listen?"],
    );
    warned("coffee: 1", &["f:1: unknown key coffee"]);
    warned("apisix.ssl: {enable: false}", &["f:1: unknown key apisix.ssl"]);
    warned(
        "apisix: {node_listen: [{prt: 1}]}",
        &["f:1: unknown key apisix.node_listen[0].prt; did you mean port?"],
    );
    warned(
        "deployment:\n  admin:\n    admin_key:\n      - {key: x, rol: viewer}\n",
        &["f:4: unknown key deployment.admin.admin_key[0].rol; did you mean role?"],
    );
}

#[test]
fn zones_of_lua_functions_have_sizes() {
    let yaml = "nginx_config: {http: {custom_lua_shared_dict: {a: 10m, b: 4096}}}\n";
    let zones = parse(yaml).unwrap().0.nginx_config.http.custom_lua_shared_dict;
    assert_eq!(zones, [("a".to_owned(), 10 << 20), ("b".to_owned(), 4096)]);
    for (size, shown) in [("much", "\"much\""), ("0", "0"), ("-1", "-1"), ("[1]", "[1]")] {
        let yaml = format!("nginx_config: {{http: {{custom_lua_shared_dict: {{a: {size}}}}}}}\n");
        let error = parse(&yaml).unwrap_err().to_string();
        let expected =
            format!("custom_lua_shared_dict: a: expected a size such as 10m, got {shown}");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn keys_we_do_not_act_on_share_one_warning() {
    warned(
        "apisix: {enable_reuseport: true, ssl: {listen: [{port: 1, enable_http3: true}]}}\n\
         nginx_config: {http: {lua_shared_dict: {x: 1m}}}\nwasm: {plugins: []}\n",
        &["keys that Sluicegate does not act on yet: apisix.enable_reuseport, \
           apisix.ssl.listen[0].enable_http3, nginx_config.http.lua_shared_dict, wasm"],
    );
    warned("apisix:\n  tracing:\n", &[]);
}

#[test]
fn older_names_are_taken_with_a_warning_that_names_the_new_ones() {
    let port = "is deprecated: use apisix.enable_http2, which decides for every port; this one is \
                ignored";
    warned(
        "apisix:\n  node_listen:\n    - {port: 9081, enable_http2: true}\n  ssl:\n    listen:\n      - port: 1\n        enable_http2: false\n",
        &[
            &format!("f:3: apisix.node_listen[0].enable_http2 {port}"),
            &format!("f:7: apisix.ssl.listen[0].enable_http2 {port}"),
        ],
    );
    for (text, encrypts) in [
        ("enable: false", false),
        ("enable: true", true),
        ("{enable: false, enable_encrypt_fields: true}", true),
        ("{enable: true, enable_encrypt_fields: false}", false),
    ] {
        let text = format!("apisix: {{data_encryption: {{{}}}}}", text.trim_matches(['{', '}']));
        let (config, warnings) = parse(&text).unwrap();
        assert_eq!(config.apisix.data_encryption.enable_encrypt_fields, encrypts, "{text}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
}

#[test]
fn cipher_suites_that_are_left_out_are_named() {
    let text = |list: &str| format!("apisix: {{ssl: {{ssl_ciphers: '{list}'}}}}");
    let list = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-SHA384:DHE-RSA-AES256-GCM-SHA384:!MD5";
    let (config, warnings) = parse(&text(list)).unwrap();
    assert_eq!(config.apisix.ssl.ciphers, ["ECDHE-RSA-AES256-GCM-SHA384"]);
    assert_eq!(
        warnings,
        [
            "f:1: apisix.ssl.ssl_ciphers: not supported and left out: ECDHE-RSA-AES256-SHA384, DHE-RSA-AES256-GCM-SHA384"
        ]
    );
    let (config, warnings) = parse(&text("HIGH:!aNULL:!MD5")).unwrap();
    assert_eq!((config.apisix.ssl.ciphers.len(), warnings.len()), (6, 0));
}

#[test]
fn what_surprises_is_warned_about() {
    warned(
        "deployment:\n  admin:\n    allow_admin:\n",
        &["f:3: deployment.admin.allow_admin is empty, so the default 127.0.0.0/24 holds; to let \
           everybody connect, write [0.0.0.0/0, '::/0']"],
    );
    warned(
        "deployment: {admin: {admin_key_required: false}}",
        &["f:1: deployment.admin.admin_key_required: off: whoever can connect to the Admin API \
           controls the gateway"],
    );
    warned("apisix: {enable_admin: false}\ndeployment: {admin: {admin_key_required: false}}", &[]);
    warned(
        "apisix: {ssl: {ssl_protocols: TLSv1 TLSv1.2}}",
        &["f:1: apisix.ssl.ssl_protocols: older versions are not supported and left out: TLSv1"],
    );
    let all = Config::parse("f", "", &env).unwrap().1;
    assert_eq!(
        all,
        [Warning::Surprise(
            "f: apisix.data_encryption.keyring: not set: secrets are encrypted with APISIX's default \
             keys, which everybody knows; set keys of your own, and these two behind them while the \
             store holds what they encrypted"
                .into()
        )]
    );
}

#[test]
fn the_role_and_the_file_choose_the_store() {
    let etcd = "etcd: {host: ['http://127.0.0.1:2379']}";
    for (text, provider) in [
        ("", ConfigProvider::Embedded),
        ("deployment: {etcd: }", ConfigProvider::Embedded),
        (&format!("deployment: {{{etcd}}}"), ConfigProvider::Etcd),
        ("deployment: {etcd: {prefix: /gate}}", ConfigProvider::Etcd),
        (
            &format!("deployment: {{role_traditional: {{config_provider: embedded}}, {etcd}}}"),
            ConfigProvider::Embedded,
        ),
        ("deployment: {role_traditional: {config_provider: etcd}}", ConfigProvider::Etcd),
        ("deployment: {role: control_plane}", ConfigProvider::Etcd),
        ("deployment: {role: data_plane}", ConfigProvider::Etcd),
        (
            "deployment: {role: data_plane, role_data_plane: {config_provider: etcd}}",
            ConfigProvider::Etcd,
        ),
    ] {
        let config = config(text);
        assert_eq!(config.deployment.config_provider, provider, "{text}");
    }
    refused(
        "deployment:\n  role: data_plane\n  role_data_plane:\n    config_provider: xds\n",
        "f:4: deployment.role_data_plane.config_provider: \"xds\" comes with a later version",
    );
}

#[test]
fn etcd_has_the_defaults_of_apisix() {
    let etcd = config("").deployment.etcd;
    assert_eq!(etcd.host, ["http://127.0.0.1:2379"]);
    assert_eq!((etcd.prefix.as_str(), etcd.startup_retry), ("/apisix", 2));
    let times = [etcd.timeout, etcd.watch_timeout, etcd.resync_delay, etcd.health_check_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [30, 50, 5, 10]);
    assert!(etcd.tls_verify && etcd.user.is_none() && etcd.tls_cert.is_none());

    let text = "deployment: {etcd: {host: 'https://e:1', health_check_timeout: -1, timeout: 3, \
                user: u, password: secret-word, tls: {cert: c.pem, key: k.pem, verify: false, sni: n}}}";
    let text = text.replace("https://e:1", "https://user:word@e:1");
    let (config, warnings) = parse(&text).unwrap();
    let verify = "f:1: deployment.etcd.tls.verify: false: whoever answers in etcd's place gets its \
                  password and every secret, and decides what this gateway does";
    assert_eq!(warnings, [verify]);
    let etcd = &config.deployment.etcd;
    assert_eq!(etcd.host, ["https://user:word@e:1"]);
    assert_eq!((etcd.health_check_timeout.as_secs(), etcd.timeout.as_secs()), (10, 3));
    assert_eq!(etcd.tls_cert.as_deref(), Some("c.pem".as_ref()));
    assert_eq!((etcd.tls_verify, etcd.tls_sni.as_deref()), (false, Some("n")));
    let shown = format!("{config:?}");
    assert!(shown.contains("https://e:1") && !shown.contains("word"), "{shown}");

    let addresses = "expected addresses that start with http:// or https://, at least one";
    for (etcd, error) in [
        ("host: ['127.0.0.1:2379']", format!("f:1: deployment.etcd.host: {addresses}")),
        ("host: []", format!("f:1: deployment.etcd.host: {addresses}")),
        (
            "tls: {cert: c.pem}",
            "f:1: deployment.etcd.tls.cert: cert and key come together or not at all".to_owned(),
        ),
    ] {
        refused(&format!("deployment: {{etcd: {{{etcd}}}}}"), &error);
    }
}

#[test]
fn listeners_that_take_each_others_port_are_named() {
    for (text, error) in [
        (
            "apisix: {node_listen: [9080, 9443]}",
            "f: apisix.ssl.listen[0]: 0.0.0.0:9443 is taken by apisix.node_listen[1] (0.0.0.0:9443)\n\
             f: apisix.ssl.listen[0]: [::]:9443 is taken by apisix.node_listen[1] ([::]:9443)",
        ),
        (
            "apisix:\n  node_listen: 9180\n",
            "f: deployment.admin.admin_listen.port: 0.0.0.0:9180 is taken by apisix.node_listen[0] \
             (0.0.0.0:9180)",
        ),
        (
            "apisix:\n  control:\n    port: 9080\n",
            "f:3: apisix.control.port: 127.0.0.1:9080 is taken by apisix.node_listen[0] (0.0.0.0:9080)",
        ),
    ] {
        refused(text, error);
    }
    for fine in [
        "apisix: {node_listen: [{ip: 127.0.0.2, port: 9180}], enable_ipv6: false}\ndeployment: {admin: {admin_listen: {ip: 127.0.0.1}}}",
        "apisix: {node_listen: 9180, enable_admin: false}",
        "apisix: {node_listen: 9090, enable_control: false}",
        "apisix: {node_listen: 9443, ssl: {enable: false}}",
        "apisix: {node_listen: 0, control: {port: 0}, ssl: {listen: [{port: 0}]}}",
    ] {
        config(fine);
    }
}

#[test]
fn the_status_api_listens_where_it_is_asked_for() {
    for (value, expected) in [
        ("", None),
        ("{}", Some("127.0.0.1:7085")),
        ("{port: 7}", Some("127.0.0.1:7")),
        ("{ip: '::1'}", Some("[::1]:7085")),
        ("{ip: 127.0.0.2, port: 8}", Some("127.0.0.2:8")),
    ] {
        let config = config(&format!("apisix: {{status: {value}}}"));
        assert_eq!(config.apisix.status, expected.map(addr), "{value}");
    }
    refused(
        "apisix: {status: {port: 9090}}",
        "f:1: apisix.status.port: 127.0.0.1:9090 is taken by apisix.control.port (127.0.0.1:9090)",
    );
}

#[test]
fn the_admin_api_has_tls_where_it_has_a_certificate() {
    let admin = |text: &str| format!("deployment: {{admin: {{{text}}}}}");
    let mtls = "admin_api_mtls: {admin_ssl_cert: a, admin_ssl_cert_key: b, admin_ssl_ca_cert: ''}";
    let tls = AdminTls { cert: "a".into(), key: "b".into(), client_ca: None };
    let on = config(&admin(&format!("https_admin: true, {mtls}")));
    assert_eq!(on.deployment.admin.tls, Some(tls));
    assert_eq!(config(&admin(mtls)).deployment.admin.tls, None);
    refused(
        &admin("https_admin: true, admin_api_mtls: {admin_ssl_cert: a, admin_ssl_cert_key: ''}"),
        "f:1: deployment.admin.https_admin: missing ssl cert for https admin: set admin_ssl_cert \
         and admin_ssl_cert_key of deployment.admin.admin_api_mtls",
    );
}

#[test]
fn worker_processes_follow_dev_mode_then_the_environment_then_the_file() {
    let count = |text: &str, variable: Option<&str>| {
        let env =
            |name: &str| variable.filter(|_| name == "APISIX_WORKER_PROCESSES").map(str::to_owned);
        Config::parse("f", text, &env).map(|(config, _)| {
            match config.nginx_config.worker_processes {
                WorkerProcesses::Auto => 0,
                WorkerProcesses::Count(count) => count.get(),
            }
        })
    };
    let file = "nginx_config: {worker_processes: 3}";
    for (text, variable, expected) in [
        ("", None, 0),
        (file, None, 3),
        (file, Some("2"), 2),
        ("apisix: {enable_dev_mode: true}", Some("2"), 1),
        (file, Some("1024"), 1024),
    ] {
        assert_eq!(count(text, variable).unwrap(), expected, "{text} {variable:?}");
    }
    for wrong in ["0", "1025", "two"] {
        let error = count(file, Some(wrong)).unwrap_err().to_string();
        assert!(error.contains("APISIX_WORKER_PROCESSES must be a whole number"), "{error}");
    }
}

#[test]
fn a_reload_names_the_keys_that_need_a_restart() {
    let restart = |old, new| Config::restart_needed(&config(old), &config(new));
    for (old, new, keys) in [
        ("", "", &[][..]),
        ("", "apisix: {node_listen: 9080}", &[]),
        ("", "apisix: {node_listen: 9081}", &["apisix.node_listen"]),
        ("", "apisix: {enable_http2: false}\nplugins: [cors]", &[]),
        ("", "nginx_config: {http: {send_timeout: 11s}}", &[]),
        (
            "apisix: {enable_control: false}\ndeployment: {embedded: {path: a}}",
            "nginx_config: {worker_processes: 2}",
            &["apisix.enable_control", "nginx_config.worker_processes", "deployment.embedded.path"],
        ),
    ] {
        assert_eq!(restart(old, new), keys, "{old:?} to {new:?}");
    }
}

#[test]
fn enabled_plugins_are_those_named_that_are_here() {
    let here = ["aws-lambda", "cors"];
    for (text, enabled, warnings) in [
        ("", &["aws-lambda", "cors"][..], &[][..]),
        ("plugins: []", &[], &[]),
        ("plugins: [cors, cors]", &["cors"], &[]),
        (
            "plugins: [cors, zipkin, ai, aws-lamda, mine]",
            &["cors"],
            &[
                "plugins: there is no plugin \"aws-lamda\"; did you mean aws-lambda?",
                "plugins: there is no plugin \"mine\"",
                "plugins that Sluicegate does not have yet are left out: ai, zipkin",
            ],
        ),
    ] {
        let (found, warned) = config(text).enabled_plugins(&here);
        let warned: Vec<_> = warned.iter().map(Warning::to_string).collect();
        assert_eq!(
            (found.as_slice(), warned.as_slice()),
            (enabled, &*warnings.iter().map(|w| w.to_string()).collect::<Vec<_>>()),
            "{text}"
        );
    }
}

#[test]
fn nothing_secret_is_printed() {
    let secret = "0123456789abcdef";
    let text = format!(
        "apisix: {{data_encryption: {{keyring: {secret}}}}}\n\
         deployment: {{admin: {{admin_key: [{{name: a, key: {secret}}}]}}}}\n\
         plugin_attr: {{x: {{token: {secret}}}}}\n"
    );
    let config = config(&text);
    for shown in [format!("{config:?}"), format!("{config:#?}")] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let secret = "x".repeat(1025);
    let error = Config::parse("f", &text.replace("0123456789abcdef", &secret), &env).unwrap_err();
    assert!(!format!("{error:?} {error}").contains(&secret));
}

#[test]
fn a_file_is_made_where_none_is_and_its_empty_key_filled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("conf/config.yaml");
    let text = Config::default_text(&mut counting());
    assert!(Config::create_if_missing(&path, &text).unwrap());
    assert!(!Config::create_if_missing(&path, "other").unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    assert_eq!(mode(&path), 0o600);

    let (mut config, warnings) = Config::load(&path, &env).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.apisix.data_encryption.keyring.len(), 1);
    assert_eq!(config.apisix.data_encryption.keyring[0].expose().len(), 16);

    let warnings = config.fill_admin_keys(&path, &mut counting());
    let file = path.display().to_string();
    let key_path = "deployment.admin.admin_key[0].key".to_owned();
    assert_eq!(warnings, [Warning::AdminKeyGenerated { file, path: key_path }]);
    let key = config.deployment.admin.admin_key[0].key.expose().to_owned();
    assert_eq!(key.len(), 32);
    assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(mode(&path), 0o600);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        text.replace("key: ''  #", &format!("key: '{key}'  #"))
    );
    let (mut again, _) = Config::load(&path, &env).unwrap();
    assert_eq!(again.deployment.admin.admin_key[0].key.expose(), key);
    assert_eq!(again.fill_admin_keys(&path, &mut counting()), []);
    let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file stays");
}

#[test]
fn two_starters_share_no_key_and_take_their_ports() {
    let starter = Starter { node_listen: vec![9080, 9081] };
    let mut seed = 0u8;
    let mut random = |bytes: &mut [u8]| {
        for byte in bytes {
            seed = seed.wrapping_mul(5).wrapping_add(77);
            *byte = seed;
        }
    };
    let (one, other) = (starter.text(&mut random), starter.text(&mut random));
    assert_ne!(one, other);
    let config = Config::parse("f", &one, &env).unwrap().0;
    let ports: Vec<_> = config.apisix.node_listen.iter().map(|listen| listen.port).collect();
    assert_eq!(ports, [9080, 9081]);
}

#[test]
fn a_key_that_cannot_be_written_holds_for_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for (text, reason) in [
        (
            "deployment: {admin: {admin_key: [{key: '${{EMPTY}}'}]}}",
            "there is no place for it, or a variable or alias stands there",
        ),
        (
            "x: &k ''\ndeployment: {admin: {admin_key: [{key: *k}]}}",
            "there is no place for it, or a variable or alias stands there",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let mut config = Config::load(&path, &env).unwrap().0;
        let warnings = config.fill_admin_keys(&path, &mut counting());
        let expected = Warning::AdminKeyNotWritten {
            file: path.display().to_string(),
            path: "deployment.admin.admin_key[0].key".into(),
            reason: reason.into(),
        };
        assert_eq!(warnings, [expected]);
        let key = config.deployment.admin.admin_key[0].key.expose();
        assert_eq!(key.len(), 32);
        assert!(!warnings[0].to_string().contains(key));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    // The file went away meanwhile.
    let mut config = config("");
    let missing = folder.path().join("none.yaml");
    let warnings = config.fill_admin_keys(&missing, &mut counting());
    assert!(matches!(&warnings[..], [Warning::AdminKeyNotWritten { .. }]), "{warnings:?}");
    assert!(!missing.exists());
    // The Admin API is off: no key is needed.
    let mut config = self::config("apisix: {enable_admin: false}");
    assert_eq!(config.fill_admin_keys(&missing, &mut counting()), []);
}

#[test]
fn every_empty_key_of_a_file_is_filled_and_its_mode_and_link_stay() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("real.yaml");
    let link = folder.path().join("config.yaml");
    let text = "deployment:\n  admin:\n    admin_key:\n      - name: admin # rw\n        key: ''\n      \
                - {name: viewer, key: \"\", role: viewer}\n";
    fs::write(&real, text).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mut config = Config::load(&link, &env).unwrap().0;
    assert_eq!(config.fill_admin_keys(&link, &mut counting()).len(), 2);
    assert_eq!(mode(&real), 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let again = Config::load(&link, &env).unwrap().0;
    for (one, other) in
        again.deployment.admin.admin_key.iter().zip(&config.deployment.admin.admin_key)
    {
        assert_eq!(one.key, other.key);
        assert!(!one.key.is_empty());
    }
    assert!(fs::read_to_string(&link).unwrap().contains("# rw"));
}

#[test]
fn an_empty_list_of_keys_gets_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    for text in ["deployment: {admin: {admin_key: []}}\n", "", "apisix:\n  node_listen: 1\n"] {
        fs::write(&path, text).unwrap();
        let mut config = Config::load(&path, &env).unwrap().0;
        assert_eq!(config.fill_admin_keys(&path, &mut counting()).len(), 1, "{text}");
        let again = Config::load(&path, &env).unwrap().0;
        assert_eq!(
            again.deployment.admin.admin_key[0].key,
            config.deployment.admin.admin_key[0].key
        );
        assert_eq!(again.deployment.admin.admin_key[0].role, AdminRole::Admin);
    }
}

#[test]
fn no_mangled_file_makes_the_reader_panic() {
    let starter = Config::default_text(&mut counting());
    let example = example();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let spice = [
        "{", "}", "[", "]", ":", "-", "&a ", "*a", "!", "|", ">", "'", "\"", "\n", "\t", "${{",
        "}}", ":=", "#", "?", "%", "~", "\r", "é", "\u{0}",
    ];
    for round in 0..1_000 {
        let base: Vec<char> =
            if round % 10 == 0 { example.chars().collect() } else { starter.chars().collect() };
        let mut text = base;
        for _ in 0..=next(4) {
            let at = next(text.len());
            match next(3) {
                0 => drop(text.drain(at..(at + next(12)).min(text.len()))),
                1 => drop(text.splice(at..at, spice[next(spice.len())].chars())),
                _ => text[at] = spice[next(spice.len())].chars().next().unwrap_or(' '),
            }
        }
        let text: String = text.into_iter().collect();
        let _ = Config::parse("f", &text, &env);
        let _ = write_admin_key(&text, 0, "key");
    }
}

#[test]
fn the_committed_example_and_page_are_those_of_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (file, text) in
        [("conf/config.yaml.example", example()), ("docs/configuration.md", documentation())]
    {
        let path = root.join(file);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{file} differs from the table of keys; UPDATE_EXPECT=1 cargo test -p sluicegate-config \
             rewrites it"
        );
    }
}

#[test]
fn the_example_says_the_defaults_and_nothing_else() {
    let example = example();
    let (_, warnings) = parse(&example).unwrap();
    assert_eq!(warnings, [""; 0]);
    let by_example = Config::parse("f", &example, &env).unwrap().0;
    assert_eq!(format!("{by_example:?}"), format!("{:?}", config("")));
    // With the mark taken away every line is a key that the table knows.
    let all: String = example
        .lines()
        .map(|line| {
            let code = line.trim_start();
            match code.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty()) {
                Some(key) => format!("{}{key}\n", &line[..line.len() - code.len()]),
                None => format!("{line}\n"),
            }
        })
        .collect();
    let (_, warnings) = parse(&all).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    for key in keys::KEYS.iter().filter(|key| !matches!(key.status, keys::Status::Deprecated(_))) {
        let name = key.path.rsplit('.').next().unwrap_or_default();
        assert!(all.contains(&format!("{name}:")), "{}", key.path);
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn mode(path: &PathBuf) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// "Random" bytes that a test can repeat.
fn counting() -> impl FnMut(&mut [u8]) {
    let mut next = 0u8;
    move |bytes| {
        for byte in bytes {
            *byte = next;
            next = next.wrapping_add(1);
        }
    }
}

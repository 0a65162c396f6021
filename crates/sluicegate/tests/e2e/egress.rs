//! Calls that leave by an HTTP proxy: functions over plain HTTP and over TLS, secret managers, and
//! what is called directly all the same.

use std::net::SocketAddr;

use serde_json::{Value, json};
use sluicegate_testkit::certs::Authority;
use sluicegate_testkit::gateway::config;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, Proxy, client};

use crate::BINARY;

/// A gateway of one worker that trusts `authority` and has these proxies.
fn gateway(authority: &Authority, egress: Value) -> GatewayProcess {
    let config = config(json!({
        "apisix": {"ssl": {"ssl_trusted_certificate": "conf/authority.pem"}},
        "nginx_config": {"worker_processes": 1},
        "sluicegate": {"egress_proxy": egress},
    }));
    let mut gateway = GatewayProcess::prepare(BINARY, &config.to_string());
    std::fs::write(gateway.path("conf/authority.pem"), authority.pem()).unwrap();
    gateway.launch();
    gateway
}

fn lambda(uri: &str) -> Value {
    json!({"function_uri": uri, "authorization": {"apikey": "k"}})
}

fn said(gateway: &GatewayProcess, path: &str) -> (u16, String) {
    let answer = client::get(gateway.http, path);
    (answer.status, answer.text())
}

/// `name:port` for a proxy, where the port is the origin's own.
fn place(name: &str, addr: SocketAddr) -> String {
    format!("{name}:{}", addr.port())
}

#[test]
fn functions_are_reached_through_the_proxy_and_no_connection_is_mixed_up() {
    let authority = Authority::new();
    let pair = authority.issue(&["secure.test"]);
    let secure = Origin::tls(&pair, |request| Answer::text(format!("secure {}", request.target)));
    let (plain, other) = (Origin::text("plain"), Origin::text("other"));
    let names = [
        place("secure.test", secure.addr),
        place("plain.test", plain.addr),
        place("other.test", other.addr),
    ];
    let hosts = [
        (names[0].as_str(), secure.addr),
        (names[1].as_str(), plain.addr),
        (names[2].as_str(), other.addr),
    ];
    let proxy = Proxy::start(&hosts, Some("dXNlcjpwQHNz"), None);
    let url = format!("http://user:p%40ss@{}", proxy.addr);
    let gateway = gateway(&authority, json!({"https_proxy": url, "http_proxy": url}));
    for (id, uri) in [
        ("secure", format!("https://{}/fn", names[0])),
        ("plain", format!("http://{}/", names[1])),
        ("other", format!("http://{}/", names[2])),
        // The address of the proxy itself, called directly as loopback always is.
        ("itself", format!("http://{}/", proxy.addr)),
        ("unknown", "https://unknown.test/".to_owned()),
    ] {
        gateway.set_lambda(id, &format!("/{id}"), lambda(&uri));
    }
    for _ in 0..3 {
        assert_eq!(said(&gateway, "/secure?a=1"), (200, "secure /fn?a=1".into()));
        assert_eq!(said(&gateway, "/plain"), (200, "plain".into()));
        assert_eq!(said(&gateway, "/other"), (200, "other".into()));
        assert_eq!(said(&gateway, "/itself"), (200, "the proxy itself".into()));
    }
    // Tunnels are kept as connections are: one for each function and no more.
    let tunnels = |name: &str| {
        let line = format!("CONNECT {name} HTTP/1.1");
        proxy.asked().iter().filter(|asked| **asked == line).count()
    };
    assert!(names.iter().all(|name| tunnels(name) == 1), "{:?}", proxy.asked());
    // The origin sees its own name, and nothing of the proxy's.
    let seen = plain.last();
    assert_eq!(seen.header("host"), Some(names[1].as_str()));
    assert_eq!(seen.header("proxy-authorization"), None);

    assert_eq!(said(&gateway, "/unknown").0, 503);
    let log = gateway.error_log();
    let why = format!(
        "no connection to unknown.test:443 through the egress proxy http://{}: it answered 502 Bad Gateway",
        proxy.addr
    );
    assert!(log.contains(&why), "{log}");
    assert!(!log.contains("p@ss") && !log.contains("p%40ss") && !log.contains("dXNlcjpwQHNz"));
}

#[test]
fn a_proxy_behind_tls_is_verified_and_carries_tls_in_its_tunnels() {
    let authority = Authority::new();
    let pair = authority.issue(&["secure.test"]);
    let secure = Origin::tls(&pair, |_| Answer::text("secure"));
    let plain = Origin::text("plain");
    let names = [place("secure.test", secure.addr), place("plain.test", plain.addr)];
    let hosts = [(names[0].as_str(), secure.addr), (names[1].as_str(), plain.addr)];
    let own = authority.issue(&["127.0.0.1"]);
    let proxy = Proxy::start(&hosts, None, Some(&own));
    let foreign = Proxy::start(&hosts, None, Some(&Authority::new().issue(&["127.0.0.1"])));
    let url = |proxy: &Proxy| format!("https://{}", proxy.addr);
    let egress = json!({"https_proxy": url(&proxy), "http_proxy": url(&foreign)});
    let gateway = gateway(&authority, egress);
    gateway.set_lambda("1", "/secure", lambda(&format!("https://{}/", names[0])));
    gateway.set_lambda("2", "/plain", lambda(&format!("http://{}/", names[1])));
    for _ in 0..3 {
        assert_eq!(said(&gateway, "/secure"), (200, "secure".into()));
    }
    assert_eq!(proxy.asked().len(), 1);
    // Whoever stands where the proxy should be learns nothing, no password either.
    assert_eq!(said(&gateway, "/plain").0, 503);
    assert!(foreign.asked().is_empty());
    assert!(gateway.error_log().contains("TLS with it failed"), "{}", gateway.error_log());
}

#[test]
fn secret_managers_are_asked_through_the_proxy_and_exceptions_are_not() {
    let vault = Origin::start(|_| Answer::text(json!({"data": {"key": "kept"}}).to_string()));
    let function = Origin::start(|request| {
        Answer::text(request.header("x-api-key").unwrap_or("none").as_bytes())
    });
    let name = place("vault.test", vault.addr);
    let proxy = Proxy::start(&[(&name, vault.addr)], None, None);
    let egress = json!({
        "http_proxy": format!("http://{}", proxy.addr),
        "no_proxy": ["direct.test, 192.0.2.0/24"],
    });
    let gateway = gateway(&Authority::new(), egress);
    let manager = json!({"uri": format!("http://{name}"), "prefix": "kv", "token": "t"});
    gateway.set("/secrets/vault/1", &manager);
    gateway.set_lambda(
        "1",
        "/fn",
        json!({"function_uri": function.url("/"), "authorization": {"apikey": "$secret://vault/1/foo/key"}}),
    );
    assert_eq!(said(&gateway, "/fn"), (200, "kept".into()));
    assert_eq!(proxy.asked(), [format!("CONNECT {name} HTTP/1.1")]);
    // An exception is resolved here, where nobody knows it.
    gateway.set_lambda("2", "/direct", lambda("http://direct.test/"));
    assert_eq!(said(&gateway, "/direct").0, 503);
    assert_eq!(proxy.asked().len(), 1);
}

#[test]
fn credentials_are_fetched_through_the_proxy() {
    let far = Origin::start(|request| {
        if request.path() == "/federation/credentials" {
            assert_eq!(request.header("x-amz-sso_bearer_token"), Some("token"));
            return Answer::text(
                json!({"roleCredentials": {
                    "accessKeyId": "ASIASSO", "secretAccessKey": "s", "sessionToken": "t",
                    "expiration": 4_070_908_800_000_u64,
                }})
                .to_string(),
            );
        }
        Answer::text(
            "<R><AssumeRoleResult><Credentials><AccessKeyId>ASIASTS</AccessKeyId>\
             <SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></R>",
        )
    });
    let function = Origin::start(|request| {
        Answer::text(request.header("authorization").unwrap_or("none").as_bytes())
    });
    let names = [place("sts.test", far.addr), place("sso.test", far.addr)];
    let hosts = [(names[0].as_str(), far.addr), (names[1].as_str(), far.addr)];
    let proxy = Proxy::start(&hosts, None, None);
    let mut gateway = GatewayProcess::prepare(BINARY, "");
    let home = gateway.path("home");
    // Its name is the SHA-1 of the start URL.
    let cache = home.join(".aws/sso/cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(
        cache.join("c2e09b4fac288e7a35fb1a0f7b55446a509137e5.json"),
        r#"{"accessToken":"token","expiresAt":"2099-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    std::fs::write(
        home.join(".aws/config"),
        "[default]\nsso_start_url = https://sso.test/start\nsso_region = eu-west-1\n\
         sso_account_id = 123456789012\nsso_role_name = r\n",
    )
    .unwrap();
    let changes = json!({
        "nginx_config": {"worker_processes": 1},
        "sluicegate": {"egress_proxy": {"http_proxy": format!("http://{}", proxy.addr)}},
        "plugin_attr": {"aws-lambda": {"allowed_providers": ["static", "profile"]}},
    });
    gateway.write_config(&config(changes).to_string());
    let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in inherited.filter(|name| name.starts_with("AWS_")) {
        gateway.variable(&name, None);
    }
    gateway.variable("HOME", home.to_str());
    gateway.variable("AWS_ENDPOINT_URL_SSO", Some(&format!("http://{}", names[1])));
    gateway.launch();
    let sts = format!("http://{}", names[0]);
    for (id, iam, key) in [
        (
            "sts",
            json!({
                "accesskey": "AKID", "secretkey": "s", "sts_endpoint": sts,
                "role_arn": "arn:aws:iam::123456789012:role/r",
            }),
            "Credential=ASIASTS/",
        ),
        ("sso", json!({"provider": "profile"}), "Credential=ASIASSO/"),
    ] {
        let config = json!({"function_uri": function.url("/"), "authorization": {"iam": iam}});
        gateway.set_lambda(id, &format!("/{id}"), config);
        let (status, text) = said(&gateway, &format!("/{id}"));
        assert!(status == 200 && text.contains(key), "{id}: {status} {text}");
    }
    assert_eq!(proxy.asked(), names.map(|name| format!("CONNECT {name} HTTP/1.1")));
}

#[test]
fn a_proxy_that_cannot_be_used_ends_the_start_without_showing_its_password() {
    let config = config(json!({
        "sluicegate": {"egress_proxy": {"https_proxy": "http://u:hidden@proxy.test/path"}},
    }));
    let gateway = GatewayProcess::prepare(BINARY, &config.to_string());
    let output = gateway.command(&["start"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &gateway.error_log();
    assert!(!output.status.success());
    assert!(
        told.contains(
            "sluicegate.egress_proxy: https_proxy has a path or a query; a proxy has neither"
        ),
        "{told}"
    );
    assert!(!told.contains("hidden"), "{told}");
}

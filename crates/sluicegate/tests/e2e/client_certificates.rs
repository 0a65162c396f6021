//! `ssls.client`: who comes in with which certificate, for which name and path.

use std::process::Command;

use serde_json::json;
use sluicegate_testkit::certs::{self, Authority, Pair};
use sluicegate_testkit::client::Client;
use sluicegate_testkit::{GatewayProcess, Origin};

use crate::BINARY;

/// A gateway whose `a.test` asks for certificates of `authority` and whose `b.test` does not.
struct Stage {
    gateway: GatewayProcess,
    _origin: Origin,
    files: tempfile::TempDir,
}

impl Stage {
    fn with(client: serde_json::Value) -> Self {
        let gateway = GatewayProcess::start(BINARY);
        let origin = Origin::text("ok");
        let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
        gateway.set("/routes/1", &json!({"uri": "/*", "upstream": upstream}));
        let pair = certs::self_signed(&["a.test", "b.test"]);
        gateway.set(
            "/ssls/a",
            &json!({"cert": pair.cert, "key": pair.key, "sni": "a.test", "client": client}),
        );
        gateway.set("/ssls/b", &json!({"cert": pair.cert, "key": pair.key, "sni": "b.test"}));
        let files = tempfile::tempdir().expect("there is a place for files");
        Self { gateway, _origin: origin, files }
    }

    /// The status of a GET; `None`: there was no TLS session.
    fn get(&self, url: &str, client: Option<&Pair>, more: &[&str]) -> Option<u16> {
        let port = self.gateway.https.port();
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "15"]);
        for name in ["a.test", "b.test"] {
            curl.args(["--resolve", &format!("{name}:{port}:127.0.0.1")]);
        }
        if let Some(pair) = client {
            let (cert, key) = (self.files.path().join("cert"), self.files.path().join("key"));
            std::fs::write(&cert, &pair.cert).expect("files can be written");
            std::fs::write(&key, &pair.key).expect("files can be written");
            curl.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        let url = url.replacen(".test", &format!(".test:{port}"), 1);
        let output = curl.args(more).arg(&url).output().expect("curl is installed");
        let status = String::from_utf8_lossy(&output.stdout).parse().expect("curl says a status");
        (output.status.success() && status > 0).then_some(status)
    }
}

#[test]
fn a_name_that_asks_for_certificates_is_served_to_those_who_have_one_only() {
    let (ours, other) = (Authority::new(), Authority::new());
    let stage = Stage::with(json!({"ca": ours.pem()}));
    let (good, bad) = (ours.issue(&["client.test"]), other.issue(&["client.test"]));
    let itself = certs::self_signed(&["client.test"]);
    for version in ["--http1.1", "--http2"] {
        for tls in ["1.2", "1.3"] {
            let more = [version, "--tls-max", tls];
            assert_eq!(stage.get("https://a.test/", Some(&good), &more), Some(200), "{more:?}");
            assert_eq!(stage.get("https://a.test/", None, &more), None, "{more:?}");
            assert_eq!(stage.get("https://a.test/", Some(&bad), &more), None, "{more:?}");
            assert_eq!(stage.get("https://a.test/", Some(&itself), &more), None, "{more:?}");
            assert_eq!(stage.get("https://b.test/", None, &more), Some(200), "{more:?}");
        }
    }
    // Conditions see the certificate.
    stage.gateway.set(
        "/routes/2",
        &json!({"uri": "/who", "priority": 1, "plugins": {}, "vars": [
            ["ssl_client_verify", "==", "SUCCESS"],
            ["ssl_client_s_dn", "==", "CN=client.test"],
            ["ssl_client_i_dn", "==", "CN=testkit authority"],
            ["ssl_client_serial", "~~", "^[0-9A-F]+$"],
            ["ssl_client_fingerprint", "~~", "^[0-9a-f]{40}$"],
        ]}),
    );
    assert_eq!(stage.get("https://a.test/who", Some(&good), &[]), Some(503), "it has no upstream");
    assert_eq!(stage.get("https://b.test/who", None, &[]), Some(200), "the other route has");
}

#[test]
fn a_connection_made_for_another_name_does_not_get_round_the_certificate() {
    let authority = Authority::new();
    let stage = Stage::with(json!({"ca": authority.pem()}));
    let good = authority.issue(&["client.test"]);
    for version in ["--http1.1", "--http2"] {
        let more = [version, "-H", "Host: a.test"];
        assert_eq!(stage.get("https://b.test/", None, &more), Some(400), "{version}");
        assert_eq!(stage.get("https://b.test/", Some(&good), &more), Some(400), "{version}");
        let more = [version, "-H", "Host: A.TEST."];
        assert_eq!(stage.get("https://b.test/", None, &more), Some(400), "{version}");
        let more = [version, "-H", "Host: b.test"];
        assert_eq!(stage.get("https://a.test/", Some(&good), &more), Some(200), "{version}");
    }
    // The certificate is asked for after the connection was made.
    let mut open = Client::try_tls(stage.gateway.https, Some("b.test"), &[]).expect("it is served");
    let mut get = || {
        open.send("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n");
        open.response().status
    };
    assert_eq!(get(), 200);
    let (status, answer) =
        stage.gateway.patch("/ssls/b", &json!({"client": {"ca": authority.pem()}}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(get(), 400);
}

#[test]
fn clients_that_ask_for_no_name_are_those_of_the_fallback() {
    let authority = Authority::new();
    let gateway =
        GatewayProcess::with(BINARY, json!({"apisix": {"ssl": {"fallback_sni": "a.test"}}}));
    let origin = Origin::text("ok");
    gateway.set_proxy("1", "/*", origin.addr);
    let pair = certs::self_signed(&["a.test"]);
    let client = json!({"ca": authority.pem(), "skip_mtls_uri_regex": ["^/open"]});
    gateway.set(
        "/ssls/a",
        &json!({"cert": pair.cert, "key": pair.key, "sni": "a.test", "client": client}),
    );
    let files = tempfile::tempdir().expect("there is a place for files");
    let good = authority.issue(&["client.test"]);
    let (cert, key) = (files.path().join("cert"), files.path().join("key"));
    std::fs::write(&cert, &good.cert).expect("files can be written");
    std::fs::write(&key, &good.key).expect("files can be written");
    let get = |host: &str, path: &str, shows: bool| {
        // A client sends no name where it asks for an address.
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "15"]);
        curl.args(["-H", &format!("Host: {host}")]);
        if shows {
            curl.arg("--cert").arg(&cert).arg("--key").arg(&key);
        }
        let url = format!("https://127.0.0.1:{}{path}", gateway.https.port());
        let output = curl.arg(url).output().expect("curl is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (host, path, shows, status) in [
        ("a.test", "/", true, "200"),
        ("A.test", "/", true, "200"),
        ("a.test", "/", false, "400"),
        ("a.test", "/open", false, "200"),
        ("b.test", "/", true, "200"),
        ("b.test", "/", false, "400"),
    ] {
        assert_eq!(get(host, path, shows), status, "{host} {path} {shows}");
    }
}

#[test]
fn paths_that_need_no_certificate_are_served_without_one_and_with_a_wrong_one() {
    let (ours, other) = (Authority::new(), Authority::new());
    let client = json!({"ca": ours.pem(), "skip_mtls_uri_regex": ["^/open/[a-z]+$", "^/free"]});
    let stage = Stage::with(client);
    let (good, bad) = (ours.issue(&["client.test"]), other.issue(&["client.test"]));
    for version in ["--http1.1", "--http2"] {
        for (path, without, wrong) in [
            ("/open/x", 200, 200),
            ("/free/y", 200, 200),
            ("/open/X", 400, 400),
            ("/closed", 400, 400),
            ("/open/../closed", 400, 400),
            ("/free%2f../closed", 400, 400),
        ] {
            let url = format!("https://a.test{path}");
            let more = [version, "--path-as-is"];
            assert_eq!(stage.get(&url, None, &more), Some(without), "{path} {version}");
            assert_eq!(stage.get(&url, Some(&bad), &more), Some(wrong), "{path} {version}");
            assert_eq!(stage.get(&url, Some(&good), &more), Some(200), "{path} {version}");
        }
    }
}

#[test]
fn the_depth_of_a_chain_is_limited() {
    let root = Authority::new();
    let between = root.intermediate();
    let leaf = between.issue(&["client.test"]);
    let chain = Pair { cert: format!("{}{}", leaf.cert, between.pem()), key: leaf.key.clone() };
    let direct = root.issue(&["client.test"]);
    for (depth, deep) in [(0, None), (1, Some(200)), (2, Some(200))] {
        let stage = Stage::with(json!({"ca": root.pem(), "depth": depth}));
        assert_eq!(stage.get("https://a.test/", Some(&direct), &[]), Some(200), "{depth}");
        assert_eq!(stage.get("https://a.test/", Some(&chain), &[]), deep, "{depth}");
        assert_eq!(stage.get("https://a.test/", Some(&leaf), &[]), None, "the link is missing");
    }
}

#[test]
fn a_name_may_have_tls_versions_of_its_own() {
    let stage = Stage::with(json!({"ca": Authority::new().pem()}));
    let (status, answer) = stage.gateway.patch("/ssls/b", &json!({"ssl_protocols": ["TLSv1.2"]}));
    assert_eq!(status, 200, "{answer}");
    let newest = ["--tlsv1.3"];
    assert_eq!(stage.get("https://b.test/", None, &newest), None);
    assert_eq!(stage.get("https://b.test/", None, &["--tls-max", "1.2"]), Some(200));
    stage.gateway.patch("/ssls/b", &json!({"ssl_protocols": ["TLSv1.3"]}));
    assert_eq!(stage.get("https://b.test/", None, &newest), Some(200));
    assert_eq!(stage.get("https://b.test/", None, &["--tls-max", "1.2"]), None);
}

//! TLS towards clients: certificates by name, their changes, protocols.

use serde_json::{Value, json};
use sluicegate_testkit::certs::{self, Pair};
use sluicegate_testkit::client::{self, Client};
use sluicegate_testkit::{GatewayProcess, Origin};

use crate::BINARY;

#[test]
fn certificates_are_chosen_by_sni() {
    let gateway = GatewayProcess::start(BINARY);
    let exact = certs::self_signed(&["a.example.test"]);
    let wild = certs::self_signed(&["*.example.test"]);
    let two = certs::self_signed(&["one.test", "two.test"]);
    gateway.set("/ssls/exact", &ssl(&exact, json!(["a.example.test"])));
    gateway.set("/ssls/wild", &ssl(&wild, json!(["*.example.test"])));
    gateway.set("/ssls/two", &ssl(&two, json!(["one.test", "two.test"])));
    for (name, pair) in [
        ("a.example.test", Some(&exact)),
        ("A.Example.TEST", Some(&exact)),
        ("b.example.test", Some(&wild)),
        ("one.test", Some(&two)),
        ("two.test", Some(&two)),
        // A wildcard stands for one label.
        ("b.a.example.test", None),
        ("example.test", None),
        ("three.test", None),
    ] {
        assert_eq!(served(&gateway, Some(name)), pair.map(Pair::der), "{name}");
    }
    assert_eq!(served(&gateway, None), None, "without SNI there is nothing to choose by");
}

#[test]
fn clients_without_sni_get_the_fallbacks_certificate() {
    let changes = json!({"apisix": {"ssl": {"fallback_sni": "Fallback.test"}}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let pair = certs::self_signed(&["fallback.test"]);
    assert_eq!(served(&gateway, None), None);
    gateway.set("/ssls/1", &ssl(&pair, json!(["fallback.test"])));
    assert_eq!(served(&gateway, None), Some(pair.der()));
    assert_eq!(served(&gateway, Some("other.test")), None, "another name is not the fallback");
}

#[test]
fn a_changed_certificate_serves_the_next_handshake() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_proxy("1", "/", origin.addr);
    let (first, second) = (certs::self_signed(&["gate.test"]), certs::self_signed(&["gate.test"]));
    gateway.set("/ssls/1", &ssl(&first, json!(["gate.test"])));
    let mut open = Client::try_tls(gateway.https, Some("gate.test"), &[]).unwrap();
    assert_eq!(open.get("/").status, 200);

    gateway.set("/ssls/1", &ssl(&second, json!(["gate.test"])));
    assert_eq!(served(&gateway, Some("gate.test")), Some(second.der()));
    assert_eq!(open.get("/").status, 200, "an open connection goes on");

    assert_eq!(gateway.patch("/ssls/1", &json!({"status": 0})).0, 200);
    assert_eq!(served(&gateway, Some("gate.test")), None, "switched off");
    assert_eq!(gateway.patch("/ssls/1", &json!({"status": 1})).0, 200);
    assert_eq!(served(&gateway, Some("gate.test")), Some(second.der()));
    assert_eq!(gateway.delete("/ssls/1").0, 200);
    assert_eq!(served(&gateway, Some("gate.test")), None, "deleted");
    assert_eq!(open.get("/").status, 200, "an open connection goes on");
}

#[test]
fn an_old_certificate_is_served_and_warned_about_by_its_resource() {
    let gateway = GatewayProcess::start(BINARY);
    // Of X.509 version 1, and with a name in its subject only.
    let (cert, key) = (
        include_str!("../../../gateway/src/tls/testdata/v1.cert.pem"),
        include_str!("../../../gateway/src/tls/testdata/v1.key.pem"),
    );
    let old = Pair { cert: cert.to_owned(), key: key.to_owned() };
    gateway.set("/ssls/old", &ssl(&old, json!(["old.test"])));
    assert_eq!(served(&gateway, Some("old.test")), Some(old.der()));
    let line = gateway.wait_for_error_line("it is of X.509 version 1");
    assert!(line.contains("ssl=old"), "{line}");
    // Towards an upstream it is the upstream that is named.
    let tls = json!({"client_cert": cert, "client_key": key});
    let nodes = json!({"127.0.0.1:1": 1});
    let upstream = json!({"type": "roundrobin", "scheme": "https", "nodes": nodes, "tls": tls});
    gateway.set("/upstreams/u", &upstream);
    let line = gateway.wait_for_error_line("will not be believed by every server");
    assert!(line.contains("upstream=/upstreams/u"), "{line}");
    let new = certs::self_signed(&["new.test"]);
    gateway.set("/ssls/new", &ssl(&new, json!(["new.test"])));
    assert_eq!(served(&gateway, Some("new.test")), Some(new.der()));
    assert!(!gateway.error_log().contains("ssl=new"), "{}", gateway.error_log());
}

#[test]
fn alpn_chooses_http2_where_it_is_on() {
    for (enable_http2, offered, chosen) in [
        (true, &["h2", "http/1.1"][..], Some("h2")),
        (true, &["http/1.1"], Some("http/1.1")),
        (true, &["http/1.1", "h2"], Some("h2")),
        (true, &[], None),
        (false, &["h2", "http/1.1"], Some("http/1.1")),
    ] {
        let gateway =
            GatewayProcess::with(BINARY, json!({"apisix": {"enable_http2": enable_http2}}));
        let pair = certs::self_signed(&["gate.test"]);
        gateway.set("/ssls/1", &ssl(&pair, json!(["gate.test"])));
        let client = Client::try_tls(gateway.https, Some("gate.test"), offered).unwrap();
        let handshake = client.tls.unwrap();
        assert_eq!(handshake.alpn.as_deref(), chosen, "{enable_http2} {offered:?}");
        assert_eq!(handshake.version, "TLSv1_3");
    }
}

#[test]
fn old_tls_versions_are_offered_as_configured() {
    for (protocols, newest, works) in [
        ("TLSv1.2 TLSv1.3", "1.2", true),
        ("TLSv1.2 TLSv1.3", "1.3", true),
        ("TLSv1.3", "1.2", false),
        ("TLSv1.2", "1.3", true),
    ] {
        let changes = json!({"apisix": {"ssl": {"ssl_protocols": protocols}}});
        let gateway = GatewayProcess::with(BINARY, changes);
        let pair = certs::self_signed(&["gate.test"]);
        gateway.set("/ssls/1", &ssl(&pair, json!(["gate.test"])));
        let port = gateway.https.port();
        let output = std::process::Command::new("curl")
            .args(["--silent", "--insecure", "--max-time", "15", "--tls-max", newest])
            .args(["--resolve", &format!("gate.test:{port}:127.0.0.1")])
            .arg(format!("https://gate.test:{port}/"))
            .output()
            .expect("curl is installed");
        assert_eq!(output.status.success(), works, "{protocols}, client up to {newest}");
    }
}

#[test]
fn plain_http_on_the_tls_port_is_told_so() {
    let gateway = GatewayProcess::start(BINARY);
    let answer = client::get(gateway.https, "/");
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn a_key_that_does_not_belong_to_the_certificate_is_refused() {
    let gateway = GatewayProcess::start(BINARY);
    let (ours, other) = (certs::self_signed(&["gate.test"]), certs::self_signed(&["gate.test"]));
    gateway.set("/ssls/1", &ssl(&ours, json!(["gate.test"])));
    for (what, cert, key, why) in [
        ("another's key", ours.cert.as_str(), other.key.as_str(), "do not belong together"),
        ("no key", &ours.cert, "x".repeat(200).leak(), "failed to decrypt"),
        ("no certificate", "y".repeat(200).leak(), &ours.key, "failed to parse cert"),
    ] {
        let body = json!({"cert": cert, "key": key, "snis": ["gate.test"]});
        let (status, answer) = gateway.put("/ssls/1", &body);
        assert_eq!(status, 400, "{what}: {answer}");
        let told = answer["error_msg"].as_str().unwrap_or_default();
        assert!(told.contains(why), "{what}: {told}");
        assert!(!told.contains(key), "{what}: the key is not repeated");
    }
    assert_eq!(served(&gateway, Some("gate.test")), Some(ours.der()), "nothing has changed");
}

#[test]
fn private_keys_are_never_returned() {
    let gateway = GatewayProcess::start(BINARY);
    let (first, second) = (certs::self_signed(&["gate.test"]), certs::self_signed(&["gate.test"]));
    let mut body = ssl(&first, json!(["gate.test"]));
    body["certs"] = json!([second.cert]);
    body["keys"] = json!([second.key]);
    let mut answers = vec![gateway.put("/ssls/1", &body)];
    answers.push(gateway.put("/ssls/1", &body));
    answers.push(gateway.get("/ssls/1"));
    answers.push(gateway.get("/ssls"));
    answers.push(gateway.patch("/ssls/1", &json!({"labels": {"a": "b"}})));
    answers.push(gateway.admin("POST", "/ssls", &body.to_string()));
    for (number, (status, answer)) in answers.into_iter().enumerate() {
        assert!(matches!(status, 200 | 201), "answer {number}: {answer}");
        let text = answer.to_string();
        assert!(text.contains("BEGIN CERTIFICATE"), "answer {number}: {text}");
        assert!(!text.contains("PRIVATE KEY"), "answer {number}: {text}");
        for key in [&first.key, &second.key] {
            assert!(!text.contains(key.lines().nth(1).unwrap()), "answer {number}: {text}");
        }
    }
    assert!(served(&gateway, Some("gate.test")).is_some());
}

/// The certificate that a client asking for `name` gets.
fn served(gateway: &GatewayProcess, name: Option<&str>) -> Option<Vec<u8>> {
    let client = Client::try_tls(gateway.https, name, &["http/1.1"]).ok()?;
    client.tls.map(|handshake| handshake.certificate)
}

fn ssl(pair: &Pair, snis: Value) -> Value {
    json!({"cert": pair.cert, "key": pair.key, "snis": snis})
}

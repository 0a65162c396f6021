//! Secrets: encrypted where they are stored and in answers to writes, decrypted for readers who
//! may see them, and private keys never.

use serde_json::{Value, json};

use crate::harness::{Harness, route};

#[tokio::test]
async fn private_keys_are_stored_encrypted_and_never_read() {
    let harness = Harness::new();
    let (cert, key) = pair();
    let ssl = json!({"cert": cert, "key": key, "snis": ["gw.example.com"]});
    let created = harness.json("PUT", "/apisix/admin/ssls/1", ssl).await;
    let encrypted = created.assert_ok().json()["value"]["key"].as_str().unwrap().to_owned();
    assert!(!encrypted.contains("PRIVATE KEY"), "{encrypted}");
    assert_eq!(harness.stored("/ssls/1").await.unwrap()["key"], *encrypted);

    for path in ["/apisix/admin/ssls/1", "/apisix/admin/ssls"] {
        let read = harness.send("GET", path, "").await;
        assert!(!read.assert_ok().text.contains("\"key\":\"-----"), "{}", read.text);
        assert!(!read.text.contains(&encrypted) && !read.text.contains("PRIVATE"), "{}", read.text);
        assert!(read.text.contains("gw.example.com") && read.text.contains("BEGIN CERTIFICATE"));
    }

    // A change elsewhere keeps the key as it is, and does not encrypt it twice.
    let snis = json!({"snis": ["gw.example.com", "gw2.example.com"]});
    let patched = harness.json("PATCH", "/apisix/admin/ssls/1", snis).await;
    assert_eq!(patched.assert_ok().json()["value"]["key"], *encrypted);
    let other = key.replace("aaaa", "bbbb");
    let patched = harness.json("PATCH", "/apisix/admin/ssls/1/key", json!(other)).await;
    let replaced = patched.assert_ok().json()["value"]["key"].as_str().unwrap().to_owned();
    assert!(replaced != encrypted && !replaced.contains("PRIVATE KEY"));

    let mut more = json!({"cert": cert, "key": key, "snis": ["a.com"]});
    more["certs"] = json!([cert]);
    more["keys"] = json!([key]);
    let created = harness.json("PUT", "/apisix/admin/ssls/2", more).await;
    assert!(!created.assert_ok().text.contains("PRIVATE KEY"), "{}", created.text);
    assert!(!harness.send("GET", "/apisix/admin/ssls/2", "").await.text.contains("keys"));
}

#[tokio::test]
async fn a_certificate_that_the_binary_refuses_is_refused() {
    let harness = Harness::new();
    let (cert, key) = pair();
    let ssl = json!({"cert": cert, "key": "x".repeat(200), "snis": ["gw.example.com"]});
    let refused = harness.json("PUT", "/apisix/admin/ssls/1", ssl).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert_eq!(harness.stored("/ssls/1").await, None);
    let short = json!({"cert": "x", "key": "y", "snis": ["a.com"]});
    let refused = harness.json("PUT", "/apisix/admin/ssls/2", short).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    let nameless = json!({"cert": cert, "key": key});
    let refused = harness.json("PUT", "/apisix/admin/ssls/2", nameless).await;
    refused.assert_error(400, "invalid configuration: then clause did not match");
}

#[tokio::test]
async fn the_key_of_an_upstreams_client_certificate_is_encrypted() {
    let harness = Harness::new();
    let (cert, key) = pair();
    let mut with_tls = route("/a");
    with_tls["upstream"]["tls"] = json!({"client_cert": cert, "client_key": key});
    for (path, body) in [
        ("/routes/1", with_tls.clone()),
        ("/services/1", json!({"upstream": with_tls["upstream"]})),
        ("/upstreams/1", with_tls["upstream"].clone()),
    ] {
        let created = harness.json("PUT", &format!("/apisix/admin{path}"), body).await;
        assert!(!created.assert_ok().text.contains("PRIVATE KEY"), "{}", created.text);
        let stored = harness.stored(path).await.unwrap().to_string();
        assert!(!stored.contains("PRIVATE KEY"), "{stored}");
        // Patched twice, the key is still encrypted once.
        for desc in ["a", "b"] {
            let desc = json!({"desc": desc});
            let patched = harness.json("PATCH", &format!("/apisix/admin{path}"), desc).await;
            let tls = |value: &Value| {
                let tls = value.pointer("/upstream/tls").or_else(|| value.pointer("/tls"));
                tls.unwrap().clone()
            };
            let (patched, created) = (patched.assert_ok().json(), created.json());
            assert_eq!(tls(&patched["value"]), tls(&created["value"]));
        }
    }
}

#[tokio::test]
async fn plugins_secrets_are_encrypted_once_and_only_if_that_is_switched_on() {
    let harness = Harness::new();
    let iam = json!({"accesskey": "AKID", "secretkey": "very-secret"});
    let conf = json!({"function_uri": "http://x", "authorization": {"iam": iam}});
    let body = json!({"uri": "/a", "plugins": {"aws-lambda": conf}});
    harness.json("PUT", "/apisix/admin/routes/1", body.clone()).await.assert_ok();
    let secret = "/plugins/aws-lambda/authorization/iam/secretkey";
    let stored = harness.stored("/routes/1").await.unwrap().pointer(secret).unwrap().clone();
    assert_ne!(stored, "very-secret");
    for _ in 0..2 {
        let timeout = json!({"plugins": {"aws-lambda": {"timeout": 4000}}});
        harness.json("PATCH", "/apisix/admin/routes/1", timeout).await.assert_ok();
        assert_eq!(harness.stored("/routes/1").await.unwrap().pointer(secret), Some(&stored));
    }
    for (path, at) in [("/routes/1", "/value"), ("/routes", "/list/0/value")] {
        let read = harness.send("GET", &format!("/apisix/admin{path}"), "").await.json();
        assert_eq!(read.pointer(&format!("{at}{secret}")).unwrap(), "very-secret");
    }

    let mut settings = harness.state.settings.load().as_ref().clone();
    settings.encrypt_fields = false;
    harness.state.settings.store(settings.into());
    harness.json("PUT", "/apisix/admin/routes/1", body).await.assert_ok();
    assert_eq!(harness.stored("/routes/1").await.unwrap().pointer(secret).unwrap(), "very-secret");
}

/// Not real, but of the right shape and length.
fn pair() -> (String, String) {
    let pem = |name: &str| {
        let body = "aaaa".repeat(60);
        format!("-----BEGIN {name}-----\n{body}\n-----END {name}-----\n")
    };
    (pem("CERTIFICATE"), pem("PRIVATE KEY"))
}

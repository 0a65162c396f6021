//! Secrets: encrypted where they are stored and in answers to writes, decrypted for readers who
//! may see them, and private keys never.

use std::sync::Arc;

use axum::{body::Body, http::Request};
use serde_json::{Value, json};
use sluicegate_admin::{Settings, configs::Declared};
use sluicegate_model::encrypt::Keyring;
use sluicegate_store::{DeclaredStore, MemoryStore, Put, Store};

use crate::harness::{ADMIN, Harness, Reply, route};

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

#[tokio::test]
async fn a_secret_whose_key_is_lost_goes_through_changes_as_it_is() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let harness = Harness::build(Arc::clone(&store), |state| state);
    let lost = Keyring::new(vec!["0123456789abcdef".to_owned()]).encrypt("very-secret");
    let route = |apikey: &str| {
        let conf = json!({"function_uri": "http://x", "authorization": {"apikey": apikey}});
        json!({"id": "1", "uri": "/a", "plugins": {"aws-lambda": conf}})
    };
    let bytes = route(&lost).to_string().into_bytes().into();
    store.put("/routes/1", bytes, Put::default()).await.unwrap();
    let secret = "/plugins/aws-lambda/authorization/apikey";
    let stored = async || {
        let stored = harness.stored("/routes/1").await.unwrap();
        stored.pointer(secret).and_then(Value::as_str).unwrap().to_owned()
    };
    harness.json("PATCH", "/apisix/admin/routes/1", json!({"desc": "d"})).await.assert_ok();
    assert_eq!(stored().await, lost);
    // What a GET shows, a client may send back.
    let read = harness.send("GET", "/apisix/admin/routes/1", "").await.json();
    assert_eq!(read["value"].pointer(secret).unwrap(), lost.as_str());
    harness.json("PUT", "/apisix/admin/routes/1", route(&lost)).await.assert_ok();
    assert_eq!(stored().await, lost);
    // Another secret in its place is one like any other.
    harness.json("PUT", "/apisix/admin/routes/1", route("new-secret")).await.assert_ok();
    assert!(![lost.as_str(), "new-secret"].contains(&stored().await.as_str()));
}

#[tokio::test]
async fn a_whole_configuration_is_redacted_where_answers_are() {
    let (cert, key) = pair();
    let conf = json!({"function_uri": "http://x", "authorization": {"apikey": "my-api-key"}});
    let vault = json!({"id": "vault/1", "uri": "http://v", "prefix": "p", "token": "my-token"});
    let tls = json!({"client_cert": cert, "client_key": key});
    let configuration = json!({
        "routes": [{"id": "1", "uri": "/a", "plugins": {"aws-lambda": conf}}],
        "consumers": [
            {"username": "jack"},
            {"id": "jack/credentials/c", "plugins": {"key-auth": {"key": "my-consumer-key"}}},
        ],
        "secrets": [vault],
        "ssls": [{"id": "1", "cert": cert, "key": key, "snis": ["a.com"]}],
        "upstreams": [{"id": "1", "type": "roundrobin", "nodes": {"127.0.0.1:1": 1}, "tls": tls}],
        "plugin_metadata": [{"id": "azure-functions", "master_apikey": "my-master-key"}],
    });
    let secrets =
        ["my-api-key", "my-token", "my-consumer-key", "my-master-key", "BEGIN PRIVATE KEY"];

    let api_driven = || {
        let store = DeclaredStore::new("send it whole");
        let declared = Declared::new(store.clone(), |_| ());
        Harness::build(store, |state| state.declared(declared))
    };
    let stored = Harness::new();
    change(&stored, |settings| settings.encrypt_fields = false);
    for (path, list) in [
        ("/routes/1", "routes"),
        ("/secrets/vault/1", "secrets"),
        ("/ssls/1", "ssls"),
        ("/upstreams/1", "upstreams"),
        ("/plugin_metadata/azure-functions", "plugin_metadata"),
    ] {
        let mut body = configuration[list][0].clone();
        body.as_object_mut().unwrap().shift_remove("id");
        stored.json("PUT", &format!("/apisix/admin{path}"), body).await.assert_ok();
    }
    let jack = configuration["consumers"][0].clone();
    stored.json("PUT", "/apisix/admin/consumers", jack).await.assert_ok();
    let credential = json!({"plugins": configuration["consumers"][1]["plugins"]});
    let path = "/apisix/admin/consumers/jack/credentials/c";
    stored.json("PUT", path, credential).await.assert_ok();

    let sent = api_driven();
    send_all(&sent, "1", &configuration).await.assert_ok();

    for (harness, plain) in [(&stored, 4), (&sent, 5)] {
        for redacted in [false, true] {
            change(harness, |settings| settings.redact_secrets = redacted);
            for accept in ["application/json", "application/yaml"] {
                let request = Request::builder().uri("/apisix/admin/configs");
                let request = request.header("x-api-key", ADMIN).header("accept", accept);
                let shown = harness.request(request.body(Body::empty()).unwrap()).await;
                let text = &shown.assert_ok().text;
                let seen = secrets.iter().filter(|secret| text.contains(**secret)).count();
                assert_eq!(seen, if redacted { 0 } else { plain }, "{redacted} {text}");
                assert_eq!(text.contains("***"), redacted, "{text}");
                assert!(text.contains("BEGIN CERTIFICATE") && text.contains("a.com"), "{text}");
            }
        }
    }
    // What is redacted is no secret when it comes back.
    let shown = sent.send("GET", "/apisix/admin/configs", "").await.assert_ok().json();
    let back = json!({"routes": shown["routes"]});
    let refused = send_all(&sent, "2", &back).await;
    refused.assert_error(400, "a secret is \"***\": send what it is");
}

#[tokio::test]
async fn where_only_declarations_answer_the_description_names_only_those() {
    let store = DeclaredStore::new("send it whole");
    let declared = Declared::new(store.clone(), |_| ());
    let harness = Harness::build(store, |state| state.declared(declared));
    let document = harness.send("GET", "/apisix/admin/openapi.json", "").await.assert_ok().json();
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
    let root = "/apisix/admin";
    let expected =
        ["/openapi.json", "/configs/validate", "/configs"].map(|path| format!("{root}{path}"));
    assert_eq!(paths, expected.iter().collect::<Vec<_>>());
    let request = Request::builder().uri("/apisix/admin/openapi.json").body(Body::empty()).unwrap();
    assert_eq!(harness.request(request).await.status, 401);
}

async fn send_all(harness: &Harness, digest: &str, configuration: &Value) -> Reply {
    let request = Request::builder().method("PUT").uri("/apisix/admin/configs");
    let request = request.header("x-api-key", ADMIN).header("x-digest", digest);
    harness.request(request.body(Body::from(configuration.to_string())).unwrap()).await
}

fn change(harness: &Harness, change: impl FnOnce(&mut Settings)) {
    let mut settings = harness.state.settings.load().as_ref().clone();
    change(&mut settings);
    harness.state.settings.store(settings.into());
}

/// Not real, but of the right shape and length.
fn pair() -> (String, String) {
    let pem = |name: &str| {
        let body = "aaaa".repeat(60);
        format!("-----BEGIN {name}-----\n{body}\n-----END {name}-----\n")
    };
    (pem("CERTIFICATE"), pem("PRIVATE KEY"))
}

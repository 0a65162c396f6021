//! Secrets at rest: what block 8 of APISIX's t/plugin/aws-lambda.t reads out of etcd, read out of
//! the embedded store's file.

use serde_json::{Value, json};
use sluicegate_testkit::client;
use sluicegate_testkit::gateway::{KEYRING, config};
use sluicegate_testkit::{GatewayProcess, Origin, certs};

use crate::BINARY;

#[test]
fn secrets_are_encrypted_in_the_store_and_plain_where_they_are_used() {
    let mut gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    let route = |authorization: Value| {
        let function = json!({"function_uri": origin.url("/"), "authorization": authorization});
        json!({"uri": "/fn", "plugins": {"aws-lambda": function}})
    };
    let secrets = |value: &Value| -> Vec<String> {
        let authorization = &value["plugins"]["aws-lambda"]["authorization"];
        let fields = [
            &authorization["apikey"],
            &authorization["iam"]["accesskey"],
            &authorization["iam"]["secretkey"],
        ];
        fields.map(|field| field.as_str().unwrap_or_default().to_owned()).to_vec()
    };
    let authorization = json!({
        "apikey": SECRETS[0],
        "iam": {"accesskey": SECRETS[1], "secretkey": SECRETS[2], "aws_region": "eu-west-3"},
    });
    let (status, answer) = gateway.put("/routes/1", &route(authorization));
    assert_eq!(status, 201, "{answer}");
    for (answered, plain) in secrets(&answer["value"]).iter().zip(SECRETS) {
        assert!(!answered.is_empty() && answered != plain, "the answer holds what was stored");
    }

    // The route that signs, so that every secret is used.
    let iam = json!({"iam": {"accesskey": SECRETS[1], "secretkey": SECRETS[2]}});
    let mut signing = route(iam);
    signing["uri"] = json!("/iam");
    gateway.set("/routes/2", &signing);
    let pair = certs::self_signed(&["gate.test"]);
    gateway.set("/ssls/1", &json!({"cert": pair.cert, "key": pair.key, "sni": "gate.test"}));

    let check = |gateway: &GatewayProcess, when: &str| {
        let stored = std::fs::read(gateway.path("data/sluicegate.redb")).unwrap();
        let holds = |text: &str| stored.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("eu-west-3") && holds("gate.test"), "{when}: other fields are readable");
        for secret in SECRETS {
            assert!(!holds(secret), "{when}: {secret} is in the store's file");
        }
        let key_line = pair.key.lines().nth(1).unwrap();
        assert!(!holds(key_line) && !holds("PRIVATE KEY"), "{when}: a private key is in the file");
        assert!(!holds(KEYRING), "{when}: the keyring is not kept beside what it protects");

        for path in ["/routes/1", "/routes"] {
            let (_, answer) = gateway.get(path);
            let value =
                if path == "/routes" { &answer["list"][0]["value"] } else { &answer["value"] };
            assert_eq!(secrets(value), SECRETS, "{when}: GET {path}");
        }
        assert_eq!(client::get(gateway.http, "/fn").status, 200);
        assert_eq!(origin.last().header("x-api-key"), Some(SECRETS[0]), "{when}");
        assert_eq!(client::get(gateway.http, "/iam").status, 200);
        let signed = origin.last().header("authorization").unwrap_or_default().to_owned();
        let scope = format!("AWS4-HMAC-SHA256 Credential={}/", SECRETS[1]);
        assert!(signed.starts_with(&scope), "{when}: {signed}");
        assert!(client::Client::try_tls(gateway.https, Some("gate.test"), &[]).is_ok(), "{when}");
    };
    check(&gateway, "at first");
    gateway.restart();
    check(&gateway, "after a restart");

    // A new key in front of the old one.
    let keyring = json!(["another-16-chars", KEYRING]);
    let changes = json!({"apisix": {"data_encryption": {"keyring": keyring}}});
    gateway.write_config(&config(changes).to_string());
    gateway.restart();
    check(&gateway, "with a new key in front");
}

#[test]
fn secrets_are_stored_as_they_are_only_when_encryption_is_off() {
    let changes = json!({"apisix": {"data_encryption": {"enable_encrypt_fields": false}}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let origin = Origin::text("ok");
    let function =
        json!({"function_uri": origin.url("/"), "authorization": {"apikey": SECRETS[0]}});
    gateway.set_lambda("1", "/fn", function);
    let stored = std::fs::read(gateway.path("data/sluicegate.redb")).unwrap();
    assert!(stored.windows(SECRETS[0].len()).any(|part| part == SECRETS[0].as_bytes()));
    assert_eq!(client::get(gateway.http, "/fn").status, 200);
    assert_eq!(origin.last().header("x-api-key"), Some(SECRETS[0]));
}

const SECRETS: [&str; 3] =
    ["an-api-key-nobody-may-read", "AKIDNOBODYMAYREAD", "a-secret-key-nobody-may-read"];

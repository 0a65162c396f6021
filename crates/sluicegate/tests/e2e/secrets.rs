//! Secrets that are kept elsewhere: references in routes, global rules and certificates, followed
//! while a Vault of the test turns, goes and comes back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::origin::Answer;
use sluicegate_testkit::{Client, GatewayProcess, Origin, certs, client, wait};

use crate::BINARY;

/// A Vault that serves the keys it is given at `/v1/kv/foo`; without any it is down.
struct Vault {
    origin: Origin,
    keys: Arc<Mutex<Option<Value>>>,
}

impl Vault {
    fn start(keys: Option<Value>) -> Self {
        let keys = Arc::new(Mutex::new(keys));
        let held = keys.clone();
        let origin = Origin::start(move |request| {
            let keys = held.lock().unwrap().clone();
            match (keys, request.header("x-vault-token")) {
                (None, _) => Answer::none(),
                (Some(keys), Some(TOKEN)) if request.path() == "/v1/kv/foo" => {
                    Answer::text(json!({"data": keys}).to_string())
                }
                _ => Answer::status(403).body(r#"{"errors": ["permission denied"]}"#),
            }
        });
        Self { origin, keys }
    }

    fn turn(&self, keys: Option<Value>) {
        *self.keys.lock().unwrap() = keys;
    }

    /// The resource that sets it up.
    fn resource(&self) -> Value {
        json!({"uri": self.origin.url(""), "prefix": "kv", "token": TOKEN})
    }
}

/// Secrets are fetched each second, and tried again each second.
fn gateway(changes: Value) -> GatewayProcess {
    let mut config = json!({
        "apisix": {"enable_control": true, "control": {"ip": "127.0.0.1", "port": 0},
            "lru": {"secret": {"ttl": 1, "neg_ttl": 1}}},
    });
    if let (Value::Object(config), Value::Object(changes)) = (&mut config, changes) {
        config.extend(changes);
    }
    GatewayProcess::with(BINARY, config)
}

/// A function that answers with the key it got.
fn function() -> Origin {
    Origin::start(|request| {
        Answer::text(request.header("x-api-key").unwrap_or("no key").as_bytes())
    })
}

fn lambda(function: &Origin, apikey: &str) -> Value {
    json!({"function_uri": function.url("/"), "authorization": {"apikey": apikey}})
}

#[test]
fn a_route_follows_its_secret_and_keeps_the_last_value_while_vault_is_down() {
    let (vault, function) = (Vault::start(Some(json!({"key": "first-value"}))), function());
    let mut gateway = gateway(json!({}));
    gateway.set("/secrets/vault/1", &vault.resource());
    gateway.set_lambda("1", "/vault", lambda(&function, "$secret://vault/1/foo/key"));
    gateway.set_lambda("2", "/env", lambda(&function, "$env://CARGO_PKG_NAME"));
    // The answer to a write comes when it is served, its secrets included.
    assert_eq!(client::get(gateway.http, "/vault").text(), "first-value");
    assert_eq!(client::get(gateway.http, "/env").text(), env!("CARGO_PKG_NAME"));

    vault.turn(Some(json!({"key": "second-value"})));
    wait::until("the second value", || {
        let answer = client::get(gateway.http, "/vault");
        assert_eq!(answer.status, 200);
        (answer.text() == "second-value").then_some(())
    });

    vault.turn(None);
    gateway.wait_for_error_line("A secret cannot be fetched; its last value stays in use.");
    assert_eq!(client::get(gateway.http, "/vault").text(), "second-value");
    // A change of the route, too, uses what is known.
    gateway.set_lambda("1", "/changed", lambda(&function, "$secret://vault/1/foo/key"));
    assert_eq!(client::get(gateway.http, "/changed").text(), "second-value");

    vault.turn(Some(json!({"key": "third-value"})));
    wait::until("the third value", || {
        (client::get(gateway.http, "/changed").text() == "third-value").then_some(())
    });

    // The reference is what is stored and shown; a restart fetches it before it serves.
    let (_, shown) = gateway.get("/routes/1");
    let shown = &shown["value"]["plugins"]["aws-lambda"]["authorization"]["apikey"];
    assert_eq!(shown, "$secret://vault/1/foo/key");
    gateway.restart();
    assert_eq!(client::get(gateway.http, "/changed").text(), "third-value");
    let log = gateway.error_log();
    for secret in ["first-value", "second-value", "third-value", TOKEN] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_route_whose_secret_never_was_there_answers_503_and_serves_once_it_is() {
    let (vault, function) = (Vault::start(None), function());
    let gateway = gateway(json!({}));
    gateway.set_lambda("1", "/vault", lambda(&function, "$secret://vault/1/foo/key"));
    gateway.set_lambda("2", "/env", lambda(&function, "$env://NOT_SET_ANYWHERE"));
    gateway.set_lambda("3", "/fine", lambda(&function, "plain"));
    for (path, status) in [("/vault", 503), ("/env", 503), ("/fine", 200)] {
        assert_eq!(client::get(gateway.http, path).status, status, "{path}");
    }
    gateway.wait_for_error_line("there is no secrets/vault/1");
    let line = gateway.wait_for_error_line("$env://NOT_SET_ANYWHERE in plugin aws-lambda");
    assert!(line.contains("it is not set"), "{line}");

    gateway.set("/secrets/vault/1", &vault.resource());
    gateway.wait_for_error_line("cannot reach 127.0.0.1");
    assert_eq!(client::get(gateway.http, "/vault").status, 503);
    // What worked before does not serve in the place of a secret that is not there.
    gateway.set_lambda("3", "/fine", lambda(&function, "$secret://vault/1/other/key"));
    wait::until("the reference to be refused", || {
        (client::get(gateway.http, "/fine").status == 503).then_some(())
    });

    vault.turn(Some(json!({"key": "there-now"})));
    wait::until("the secret to be there", || {
        (client::get(gateway.http, "/vault").text() == "there-now").then_some(())
    });
    gateway.wait_for_error_line("answered 403: permission denied");
    assert_eq!(client::get(gateway.http, "/fine").status, 503);
    for call in function.requests() {
        let key = call.header("x-api-key");
        assert!(matches!(key, Some("plain" | "there-now")), "a reference was sent: {key:?}");
    }
}

#[test]
fn a_reference_passes_value_checks_on_write_and_its_value_does_not_where_it_is_used() {
    let function = function();
    let keys = json!({"uri": function.url("/"), "bad": "no-url-but-secret"});
    let vault = Vault::start(Some(keys));
    let gateway = gateway(json!({}));
    gateway.set("/secrets/vault/1", &vault.resource());
    gateway.set_lambda("1", "/fn", json!({"function_uri": "$secret://vault/1/foo/uri"}));
    assert_eq!(client::get(gateway.http, "/fn").text(), "no key");
    gateway.set_lambda("2", "/bad", json!({"function_uri": "$secret://vault/1/foo/bad"}));
    assert_eq!(client::get(gateway.http, "/bad").status, 503);
    let line = gateway.wait_for_error_line("`function_uri` does not begin with");
    assert!(line.contains("$secret://vault/1/foo/bad") && !line.contains("no-url"), "{line}");
    // What is no text takes no reference.
    let config = json!({"function_uri": function.url("/"), "timeout": "$env://HOME"});
    let route = json!({"uri": "/x", "plugins": {"aws-lambda": config}});
    let (status, answer) = gateway.put("/routes/3", &route);
    assert_eq!(status, 400, "{answer}");
}

#[test]
fn certificates_come_from_vault_and_turn_with_it() {
    let (old, new) = (certs::self_signed(&["gate.test"]), certs::self_signed(&["gate.test"]));
    let keys = |pair: &certs::Pair| Some(json!({"cert": pair.cert, "key": pair.key}));
    let vault = Vault::start(keys(&old));
    let gateway = gateway(json!({}));
    gateway.set("/secrets/vault/1", &vault.resource());
    let references =
        json!({"cert": "$secret://vault/1/foo/cert", "key": "$secret://vault/1/foo/key"});
    let mut ssl = references.clone();
    ssl["sni"] = json!("gate.test");
    gateway.set("/ssls/1", &ssl);
    let shown = |gateway: &GatewayProcess| {
        let client = Client::try_tls(gateway.https, Some("gate.test"), &[]).ok()?;
        Some(client.tls?.certificate)
    };
    assert_eq!(shown(&gateway), Some(old.der()));
    vault.turn(keys(&new));
    wait::until("the new certificate", || (shown(&gateway)? == new.der()).then_some(()));
    vault.turn(None);
    gateway.wait_for_error_line("its last value stays in use");
    assert_eq!(shown(&gateway), Some(new.der()));
    assert!(!gateway.error_log().contains("PRIVATE KEY"));
}

#[test]
fn a_global_rule_without_its_secret_lets_nothing_through() {
    let (vault, function) = (Vault::start(None), function());
    let gateway = gateway(json!({}));
    gateway.set_proxy("1", "/x", function.addr);
    assert_eq!(client::get(gateway.http, "/x").status, 200);
    gateway.set("/secrets/vault/1", &vault.resource());
    let rule = json!({"plugins": {"aws-lambda": lambda(&function, "$secret://vault/1/foo/key")}});
    gateway.set("/global_rules/1", &rule);
    wait::until("the rule to refuse", || {
        (client::get(gateway.http, "/x").status == 503).then_some(())
    });
    vault.turn(Some(json!({"key": "of-the-rule"})));
    wait::until("the rule to serve", || {
        (client::get(gateway.http, "/x").text() == "of-the-rule").then_some(())
    });
}

#[test]
fn redacted_answers_of_the_admin_api_show_no_secret_and_are_not_taken_back() {
    let function = function();
    let gateway = gateway(json!({"sluicegate": {"admin": {"redact_secrets": true}}}));
    let route =
        |apikey: &str| json!({"uri": "/fn", "plugins": {"aws-lambda": lambda(&function, apikey)}});
    let apikey = |answer: &Value| {
        answer["value"]["plugins"]["aws-lambda"]["authorization"]["apikey"].clone()
    };
    for (written, shown) in [("hush", "***"), ("$env://X", "$env://X")] {
        let (status, answer) = gateway.put("/routes/1", &route(written));
        assert!(status < 300, "{answer}");
        assert_eq!(apikey(&answer), shown);
        assert_eq!(apikey(&gateway.get("/routes/1").1), shown);
        assert_eq!(apikey(&gateway.get("/routes").1["list"][0]), shown);
    }
    let (status, answer) = gateway.put("/routes/1", &route("***"));
    assert_eq!(
        (status, &answer["error_msg"]),
        (400, &json!("a secret is \"***\": send what it is"))
    );
    let manager = json!({"uri": "http://v.test", "prefix": "kv", "token": "hush"});
    let (_, answer) = gateway.put("/secrets/vault/1", &manager);
    assert_eq!(answer["value"]["token"], "***");
    assert_eq!(gateway.get("/secrets/vault/1").1["value"]["token"], "***");
    // It is the answers that are redacted, not what is stored.
    gateway.set("/routes/1", &route("the-key"));
    assert_eq!(client::get(gateway.http, "/fn").text(), "the-key");
}

#[test]
fn a_slow_manager_holds_up_no_request_and_no_working_route() {
    let function = function();
    let slow = Origin::start(|_| {
        Answer::text(r#"{"data": {"key": "slow-value"}}"#).after(Duration::from_millis(1500))
    });
    let gateway = gateway(json!({}));
    gateway.set_lambda("1", "/fn", lambda(&function, "before"));
    let manager = json!({"uri": slow.url(""), "prefix": "kv", "token": "t"});
    gateway.set("/secrets/vault/1", &manager);
    gateway.set_lambda("1", "/fn", lambda(&function, "$secret://vault/1/foo/key"));
    // The version before serves until the secret is there.
    let mut seen = Vec::new();
    wait::until("the slow value", || {
        let answer = client::get(gateway.http, "/fn");
        assert_eq!(answer.status, 200);
        seen.push(answer.text());
        (seen.last().unwrap() == "slow-value").then_some(())
    });
    assert_eq!(seen[0], "before");
}

const TOKEN: &str = "the-token-of-vault";

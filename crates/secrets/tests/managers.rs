//! Vault, AWS Secrets Manager and Google Cloud Secret Manager, played by servers of the test: what
//! is asked, what is taken, what is kept when they are down.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use sluicegate_model::Kind;
use sluicegate_secrets::{
    Environment, Lookup, Network, NetworkFuture, RESPONSE_BYTES_MAX, Resource, Resources, Secrets,
    Settings,
};
use sluicegate_standin::Standin;
use sluicegate_testkit::origin::{Answer, Received};
use sluicegate_testkit::wait::{self, PATIENCE};
use sluicegate_testkit::{Origin, certs, client};
use tokio::runtime::Runtime;

/// Secrets that are followed on a runtime of their own.
struct Bench {
    secrets: Arc<Secrets>,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        Self::trusting(&[])
    }

    fn trusting(roots: &[String]) -> Self {
        let environment = [
            ("PLAIN", "from the environment"),
            ("JSON", r#"{"key": "of the object", "number": 7}"#),
            ("LOOP", "$env://PLAIN"),
            ("VAULT_TOKEN", "root"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings { ttl: Duration::ZERO, neg_ttl: Duration::ZERO };
        let network = Arc::new(Loopback { roots: roots.to_vec() });
        let secrets = Secrets::new(settings, Environment::new(environment), network, || NOW);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime starts");
        runtime.spawn(secrets.clone().run());
        Self { secrets, runtime }
    }

    /// What a reference comes to when its first fetch has ended.
    fn value(&self, reference: &str) -> Result<String, String> {
        self.secrets.want([reference]);
        self.runtime.block_on(self.secrets.settle(&[reference], PATIENCE));
        text(self.secrets.value(reference))
    }

    fn wait_for(&self, reference: &str, wanted: &str) {
        wait::until(&format!("{reference} to be {wanted:?}"), || {
            (text(self.secrets.value(reference)).as_deref() == Ok(wanted)).then_some(())
        });
    }
}

/// Every name is loopback.
struct Loopback {
    roots: Vec<String>,
}

impl Network for Loopback {
    fn address<'a>(&'a self, host: &'a str) -> NetworkFuture<'a, Result<IpAddr, String>> {
        Box::pin(async move {
            match host {
                "nowhere.test" => Err("no such name".to_owned()),
                _ => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            }
        })
    }

    fn tls(
        &self,
        host: &str,
        verify: bool,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
        assert!(verify, "nothing here asks for less");
        let mut roots = RootCertStore::empty();
        for pem in &self.roots {
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        }
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok((Arc::new(config), ServerName::try_from(host.to_owned()).unwrap()))
    }
}

fn text(lookup: Lookup) -> Result<String, String> {
    match lookup {
        Lookup::Value(value) => Ok(value.as_ref().to_owned()),
        Lookup::Pending => Err("pending".to_owned()),
        Lookup::Failed(cause) => Err(cause),
    }
}

#[test]
fn environment_variables_are_there_at_once_and_never_used_as_references() {
    let bench = Bench::new();
    for (reference, value) in [
        ("$env://PLAIN", Ok("from the environment")),
        ("$ENV://PLAIN/", Ok("from the environment")),
        ("$env://JSON/key", Ok("of the object")),
        ("$env://JSON/number", Ok("7")),
        ("$env://JSON/none", Err("it has no key \"none\"")),
        ("$env://PLAIN/key", Err("it is no JSON to take \"key\" of")),
        ("$env://GONE", Err("it is not set")),
        ("$env://LOOP", Err("its value is a reference itself")),
        ("$secret://vault/1", Err("error format: no secret conf id")),
        ("$secret://vault/9/a/b", Err("there is no secrets/vault/9")),
    ] {
        let got = bench.value(reference);
        assert_eq!(got.as_deref().map_err(String::as_str), value, "{reference}");
    }
}

#[test]
fn vault_is_asked_as_apisix_asks_and_answers_of_both_engine_versions_are_read() {
    let vault = Origin::start(|request| match request.path() {
        "/v1/kv/apisix/foo" => Answer::text(r#"{"data": {"key": "one", "n": 5, "o": {"a": 1}}}"#),
        "/v1/kv/apisix/a/b%20c" => Answer::text(r#"{"data": {"key": "deep"}}"#),
        "/v1/kv/apisix/two" => {
            Answer::text(r#"{"data": {"data": {"key": "second"}, "metadata": {"version": 3}}}"#)
        }
        "/v1/kv/apisix/down" => Answer::status(503).body("hush"),
        "/v1/kv/apisix/html" => Answer::text("<html>hush</html>"),
        _ => Answer::status(403).body(r#"{"errors": ["permission denied"]}"#),
    });
    let bench = Bench::new();
    let conf = json!({
        "uri": vault.url(""), "prefix": "/kv/apisix/", "token": "$ENV://VAULT_TOKEN",
        "namespace": "team",
    });
    bench.secrets.set_manager("vault/1", Some(&conf));
    let at = vault.addr;
    let (denied, down) =
        (format!("{at} answered 403: permission denied"), format!("{at} answered 503"));
    for (path, value) in [
        ("foo/key", Ok("one")),
        ("foo/n", Ok("5")),
        ("foo/o", Err("\"o\" is an object, not a text")),
        ("foo/none", Err("the secret has no key \"none\"")),
        ("a/b c/key", Ok("deep")),
        ("two/key", Ok("second")),
        ("other/key", Err(&*denied)),
        ("html/key", Err("the answer has no `data`")),
        ("key", Err("error key format, key: key")),
        ("/key", Err("can't find main key, key: /key")),
        ("foo/", Err("can't find sub key, key: foo/")),
        ("../foo/key", Err("`.` and `..` are no parts of a secret's path")),
        // Last: a manager that is down is not waited for.
        ("down/key", Err(&*down)),
    ] {
        let got = bench.value(&format!("$secret://vault/1/{path}"));
        assert_eq!(got.as_deref().map_err(String::as_str), value, "{path}");
    }
    let asked = &vault.requests()[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "/v1/kv/apisix/foo"));
    assert_eq!(asked.header("x-vault-token"), Some("root"));
    assert_eq!(asked.header("x-vault-namespace"), Some("team"));
    assert_eq!(asked.header("host"), Some(&*at.to_string()));
}

#[test]
fn a_value_follows_its_manager_is_kept_while_that_is_down_and_found_again() {
    let now: Arc<Mutex<Option<&str>>> = Arc::new(Mutex::new(None));
    let held = now.clone();
    let vault = Origin::start(move |_| match *held.lock().unwrap() {
        Some(value) => Answer::text(json!({"data": {"key": value}}).to_string()),
        None => Answer::none(),
    });
    let bench = Bench::new();
    let conf = json!({"uri": vault.url(""), "prefix": "kv", "token": "t"});
    bench.secrets.set_manager("vault/1", Some(&conf));
    let reference = "$secret://vault/1/foo/key";
    assert!(bench.value(reference).unwrap_err().starts_with("cannot reach 127.0.0.1"));
    assert_eq!(bench.secrets.counts().unresolved, 1);

    // It never resolved; it does as soon as the manager is up.
    *now.lock().unwrap() = Some("one");
    bench.wait_for(reference, "one");
    *now.lock().unwrap() = Some("two");
    bench.wait_for(reference, "two");

    *now.lock().unwrap() = None;
    wait::until("the manager to be found down", || {
        (bench.secrets.counts().stale == 1).then_some(())
    });
    assert_eq!(text(bench.secrets.value(reference)).as_deref(), Ok("two"));

    // Without its manager's resource too: what it was stays in use.
    bench.secrets.set_manager("vault/1", None);
    let failed = bench.secrets.counts().failed;
    *now.lock().unwrap() = Some("three");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(text(bench.secrets.value(reference)).as_deref(), Ok("two"));
    bench.secrets.set_manager("vault/1", Some(&conf));
    bench.wait_for(reference, "three");
    assert!(bench.secrets.counts().stale == 0 && failed >= 2, "{:?}", bench.secrets);

    bench.secrets.forget(reference);
    assert_eq!(bench.secrets.counts().references, 0);
}

#[test]
fn one_fetch_serves_every_user_of_a_reference() {
    let vault = Origin::start(|_| {
        Answer::text(r#"{"data": {"a": "1111", "b": "2222"}}"#).after(Duration::from_millis(30))
    });
    let bench = Bench::new();
    let conf = json!({"uri": vault.url(""), "prefix": "kv", "token": "t"});
    // Nothing is due again while this runs.
    bench.secrets.configure(Settings::default());
    let route = |id: usize| Resource {
        kind: Kind::Routes,
        id: id.to_string(),
        value: Some(json!({"plugins": {"p": {"k": ["$secret://vault/1/foo/a"], "uri": "/x"}}})),
        text: Some(Arc::default()),
        revision: 1,
        created: 1,
    };
    let manager =
        Resource { kind: Kind::Secrets, id: "vault/1".into(), value: Some(conf), ..route(0) };
    let batch: Vec<_> = std::iter::once(manager).chain((1..200).map(route)).collect();
    bench.runtime.block_on(Resources::prepare(&bench.secrets, &batch, PATIENCE));
    let mut resources = Resources::new(bench.secrets.clone());
    for resource in batch.into_iter().skip(1) {
        let taken = resources.take(resource, false).expect("it is not held back");
        let expected = json!({"plugins": {"p": {"k": ["1111"], "uri": "/x"}}});
        assert_eq!((taken.value, taken.text), (Some(expected), None));
    }
    assert_eq!(vault.requests().len(), 1);
    assert_eq!(bench.secrets.redact("got \"1111\"".into()), "got \"$secret://vault/1/foo/a\"");
}

#[test]
fn a_changed_resource_is_held_back_until_its_secret_is_there_or_known_not_to_be() {
    let vault = Origin::start(|request| match request.path() {
        "/v1/kv/slow" => {
            Answer::text(r#"{"data": {"key": "there"}}"#).after(Duration::from_millis(200))
        }
        _ => Answer::status(404).after(Duration::from_millis(200)),
    });
    let bench = Bench::new();
    let conf = json!({"uri": vault.url(""), "prefix": "kv", "token": "t"});
    bench.secrets.set_manager("vault/1", Some(&conf));
    bench.secrets.configure(Settings::default());
    let mut resources = Resources::new(bench.secrets.clone());
    let route = |path: &str, revision| Resource {
        kind: Kind::Routes,
        id: path.to_owned(),
        value: Some(json!({"plugins": {"p": format!("$secret://vault/1/{path}/key")}})),
        text: None,
        revision,
        created: 1,
    };
    // A new one is given out with its reference: whoever compiles it answers 503.
    assert_eq!(resources.take(route("slow", 1), true), Some(route("slow", 1)));
    assert_eq!(resources.take(route("none", 2), true), None);
    assert_eq!(resources.take(route("slow", 2), true), None);
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut brought: Vec<Resource> = Vec::new();
    while brought.len() < 2 && std::time::Instant::now() < deadline {
        let changed = bench.runtime.block_on(bench.secrets.changed());
        brought.extend(resources.affected(&changed));
    }
    brought.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(brought[0], route("none", 2), "its reference has no value");
    let there = Resource { value: Some(json!({"plugins": {"p": "there"}})), ..route("slow", 2) };
    assert_eq!(brought[1], there);
    // What comes to the same is not brought again.
    assert_eq!(resources.affected(&["$secret://vault/1/slow/key".into()]), []);

    let plain = Resource { value: Some(json!({"plugins": {}})), ..route("slow", 3) };
    assert_eq!(resources.take(plain.clone(), true), Some(plain));
    assert_eq!(bench.secrets.counts().references, 1);
    let gone = Resource { value: None, ..route("none", 4) };
    assert_eq!(resources.take(gone.clone(), true), Some(gone));
    assert_eq!(bench.secrets.counts().references, 0);
}

#[test]
fn answers_beyond_the_limit_and_servers_that_nobody_vouches_for_are_refused() {
    let authority = certs::Authority::new();
    let body = |bytes: usize| format!("{{\"data\": {{\"key\": {:?}}}}}", "x".repeat(bytes));
    let fits = RESPONSE_BYTES_MAX - body(0).len();
    let vault = Origin::tls(&authority.issue(&["vault.test"]), move |request| {
        Answer::text(body(if request.path().ends_with("over") { fits + 1 } else { fits }))
    });
    let other = Origin::tls(&certs::self_signed(&["vault.test"]), |_| Answer::text("{}"));
    let bench = Bench::trusting(&[authority.pem()]);
    let conf = |addr: SocketAddr, host: &str| {
        let uri = format!("https://{host}:{}", addr.port());
        json!({"uri": uri, "prefix": "kv", "token": "t"})
    };
    bench.secrets.set_manager("vault/1", Some(&conf(vault.addr, "vault.test")));
    bench.secrets.set_manager("vault/2", Some(&conf(other.addr, "vault.test")));
    bench.secrets.set_manager("vault/3", Some(&conf(vault.addr, "nowhere.test")));
    assert_eq!(bench.value("$secret://vault/1/fits/key").map(|v| v.len()), Ok(fits));
    for (reference, why) in [
        ("$secret://vault/1/over/key", "answered with more than 1048576 bytes"),
        ("$secret://vault/2/fits/key", "TLS failed: invalid peer certificate: UnknownIssuer"),
        ("$secret://vault/3/fits/key", "no such name"),
    ] {
        let cause = bench.value(reference).unwrap_err();
        assert!(cause.contains(why), "{reference}: {cause}");
    }
}

#[test]
fn requests_to_aws_are_signed_and_a_name_may_hold_slashes() {
    // The stand-in judges signatures; it shares no code with the signer.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let standin = runtime
        .block_on(Standin::start(sluicegate_standin::Settings {
            api_gateway: any,
            function_url: any,
            origin: any,
            api_key: "unused".into(),
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI".into(),
            region: "eu-west-3".into(),
            service: "secretsmanager".into(),
            clock: || NOW,
        }))
        .expect("it starts");
    let judge = standin.addrs().function_url;
    let aws = Origin::start(move |request| {
        let mut words = Vec::new();
        for (name, value) in &request.headers {
            words.push((name.as_str(), value.as_str()));
        }
        let body = String::from_utf8(request.body.clone()).unwrap();
        let verdict = client::request(judge, &request.method, &request.target, &words, &body);
        if verdict.status != 200 {
            return Answer::status(verdict.status).body(verdict.body);
        }
        assert_eq!(request.header("x-amz-target"), Some("secretsmanager.GetSecretValue"));
        assert_eq!(request.header("content-type"), Some("application/x-amz-json-1.1"));
        let asked: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(asked["VersionStage"], "AWSCURRENT");
        let secret = match asked["SecretId"].as_str().unwrap() {
            "plain" => json!({"SecretString": "whole"}),
            "john/secret" => json!({"SecretString": r#"{"key": "of john", "a/b": "deep"}"#}),
            "binary" => json!({"SecretBinary": "aHVzaA=="}),
            _ => {
                let body = json!({
                    "__type": "com.amazonaws.secretsmanager#ResourceNotFoundException",
                    "Message": "Secrets Manager can't find the specified secret.",
                });
                return Answer::status(400).body(body.to_string());
            }
        };
        Answer::text(secret.to_string())
    });
    let bench = Bench::new();
    let conf = |secret: &str| {
        json!({
            "access_key_id": "AKIDEXAMPLE", "secret_access_key": secret,
            "region": "eu-west-3", "endpoint_url": aws.url(""),
        })
    };
    bench.secrets.set_manager("aws/1", Some(&conf("wJalrXUtnFEMI")));
    bench.secrets.set_manager("aws/2", Some(&conf("another")));
    let none = format!(
        "{} answered 400: ResourceNotFoundException Secrets Manager can't find the specified secret.",
        aws.addr
    );
    for (path, value) in [
        ("plain", Ok("whole")),
        ("john/secret/key", Ok("of john")),
        ("john/secret/a/b", Ok("deep")),
        ("john/secret/none", Err("it has no key \"none\"")),
        ("plain/key", Err("it is no JSON to take \"key\" of")),
        ("binary", Err("the secret has no `SecretString`")),
        ("none/at/all", Err(&*none)),
        ("/a", Err("can't find main key, key: /a")),
    ] {
        let got = bench.value(&format!("$secret://aws/1/{path}"));
        assert_eq!(got.as_deref().map_err(String::as_str), value, "{path}");
    }
    let refused = bench.value("$secret://aws/2/plain").unwrap_err();
    assert!(refused.contains("answered 403"), "{refused}");
    runtime.block_on(standin.stop());
}

#[test]
fn google_gets_a_signed_statement_once_and_again_when_the_token_is_refused() {
    for key in [KEY_PKCS8, KEY_PKCS1] {
        let tokens = Arc::new(Mutex::new(0));
        let given = tokens.clone();
        let google = Origin::start(move |request| {
            let mut given = given.lock().unwrap();
            if request.path() == "/token" {
                *given += 1;
                check_statement(request, key);
                let token = format!("token-{given}");
                return Answer::text(
                    json!({"access_token": token, "token_type": "Bearer", "expires_in": 3599})
                        .to_string(),
                );
            }
            // The first token is withdrawn by the time of the second secret.
            let wanted = if request.path().contains("second") { 2 } else { *given };
            if request.header("authorization") != Some(&*format!("Bearer token-{wanted}")) {
                return Answer::status(401).body(r#"{"error": {"message": "no"}}"#);
            }
            let secret = match request.path() {
                "/v1/projects/proj/secrets/first/versions/latest:access" => "plain",
                "/v1/projects/proj/secrets/second/versions/latest:access" => r#"{"k/e": "y"}"#,
                _ => return Answer::status(404).body(r#"{"error": {"message": "not there"}}"#),
            };
            Answer::text(json!({"payload": {"data": STANDARD.encode(secret)}}).to_string())
        });
        let bench = Bench::new();
        bench.secrets.configure(Settings::default());
        let account = json!({
            "client_email": "me@proj.test", "private_key": key, "project_id": "proj",
            "token_uri": google.url("/token"), "entries_uri": google.url("/v1"),
            "scope": ["a", "b"],
        });
        bench.secrets.set_manager("gcp/1", Some(&json!({"auth_config": account})));
        let missing = format!("{} answered 404: not there", google.addr);
        for (path, value, given) in [
            ("first", Ok("plain"), 1),
            ("first/", Ok("plain"), 1),
            ("first/key", Err("it is no JSON to take \"key\" of"), 1),
            ("second/k/e", Ok("y"), 2),
            ("none", Err(&*missing), 2),
            ("/x", Err("can't find main key, key: /x"), 2),
        ] {
            let got = bench.value(&format!("$secret://gcp/1/{path}"));
            assert_eq!(got.as_deref().map_err(String::as_str), value, "{path}");
            assert_eq!(*tokens.lock().unwrap(), given, "{path}");
        }

        // The same account from a file, and one that is none.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");
        std::fs::write(&path, account.to_string()).unwrap();
        bench.secrets.set_manager("gcp/2", Some(&json!({"auth_file": path})));
        assert_eq!(bench.value("$secret://gcp/2/first").as_deref(), Ok("plain"));
        std::fs::write(&path, "{}").unwrap();
        bench.secrets.set_manager("gcp/3", Some(&json!({"auth_file": path})));
        let cause = bench.value("$secret://gcp/3/first").unwrap_err();
        assert!(cause.ends_with("account.json is no service account's key"), "{cause}");
    }
}

/// Checks the statement of a token request with the account's public key.
#[track_caller]
fn check_statement(request: &Received, key: &str) {
    let form = String::from_utf8(request.body.clone()).unwrap();
    let statement = form
        .strip_prefix("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=")
        .expect("the grant comes first");
    let (signed, signature) = statement.rsplit_once('.').unwrap();
    let key = match PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap() {
        PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
        _ => unreachable!("the keys of this test are RSA"),
    };
    let public = key.unwrap().public_key().as_ref().to_vec();
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
        .verify(signed.as_bytes(), &decode(signature))
        .expect("the account signed it");
    let (head, claims) = signed.split_once('.').unwrap();
    let head: Value = serde_json::from_slice(&decode(head)).unwrap();
    let claims: Value = serde_json::from_slice(&decode(claims)).unwrap();
    assert_eq!(head, json!({"alg": "RS256", "typ": "JWT"}));
    let audience = format!("http://{}/token", request.header("host").unwrap());
    let expected = json!({
        "iss": "me@proj.test", "aud": audience, "scope": "a b", "iat": NOW, "exp": NOW + 3600,
    });
    assert_eq!(claims, expected);
}

/// 2026-01-01T00:00:00Z.
const NOW: u64 = 1_767_225_600;

const KEY_PKCS8: &str = include_str!("data/service-account.pem");
const KEY_PKCS1: &str = include_str!("data/service-account-pkcs1.pem");

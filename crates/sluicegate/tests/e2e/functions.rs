//! The other function plugins through the whole gateway: keys by metadata, secrets at rest, the
//! documented configurations.

use serde_json::{Value, json};
use sluicegate_testkit::clouds::{ACCOUNT, ACCOUNT_KEY, CLIENT, Clouds};
use sluicegate_testkit::{Answer, FunctionProcess, GatewayProcess, Origin, client, gateway, wait};

use crate::BINARY;

#[test]
fn each_function_plugin_answers_with_its_key_and_hides_it_at_rest() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|_| Answer::text(r#"{"statusCode": 202, "body": "done"}"#));
    let uri = origin.url("/fn");
    let host = origin.url("");
    for (name, plugin, secret, header, sent, status) in [
        (
            "azure-functions",
            json!({"function_uri": uri, "authorization": {"apikey": "azure-secret"}}),
            "azure-secret",
            "x-functions-key",
            "azure-secret",
            200,
        ),
        (
            "openfunction",
            json!({"function_uri": uri, "authorization": {"service_token": "open:secret"}}),
            "open:secret",
            "authorization",
            "Basic b3BlbjpzZWNyZXQ=",
            200,
        ),
        (
            "openwhisk",
            json!({"api_host": host, "service_token": "whisk:secret", "namespace": "guest", "action": "hello"}),
            "whisk:secret",
            "authorization",
            "Basic d2hpc2s6c2VjcmV0",
            202,
        ),
    ] {
        let route = json!({"uri": format!("/{name}"), "plugins": {name: plugin}});
        let (written, answer) = gateway.put(&format!("/routes/{name}"), &route);
        assert_eq!(written, 201, "{answer}");
        assert!(!answer.to_string().contains(secret), "{name}: the answer holds what was stored");
        let answer = client::get(gateway.http, &format!("/{name}"));
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(origin.last().header(header), Some(sent), "{name}");
    }
}

/// The platforms' half: functions that answer those alone who bring the right key.
#[test]
fn functions_that_check_keys_answer_right_ones_and_refuse_others() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|request| {
        let given = (request.header("x-functions-key"), request.header("authorization"));
        let known = [
            ("/api/azure", (Some("azure-key"), None)),
            ("/open", (None, Some("Basic dXNlcjpwYXNz"))),
            ("/api/v1/namespaces/guest/actions/hello", (None, Some("Basic dXNlcjpwYXNz"))),
        ];
        match known.contains(&(request.path(), given)) {
            true => Answer::text(r#"{"body": "done"}"#),
            false => Answer::status(401).body(r#"{"error": "who are you?"}"#),
        }
    });
    let (azure_uri, open_uri, host) =
        (origin.url("/api/azure"), origin.url("/open"), origin.url(""));
    let azure = |keys: Value| json!({"azure-functions": {"function_uri": azure_uri, "authorization": keys}});
    let open =
        |keys: Value| json!({"openfunction": {"function_uri": open_uri, "authorization": keys}});
    let whisk = |token: &str| json!({"openwhisk": {"api_host": host, "service_token": token, "namespace": "guest", "action": "hello"}});
    for (plugins, header, status) in [
        (azure(json!({"apikey": "azure-key"})), None, 200),
        (azure(json!({"apikey": "other"})), None, 401),
        (azure(json!({})), None, 401),
        (azure(json!({})), Some("azure-key"), 200),
        // The client's key counts, also where it is the wrong one.
        (azure(json!({"apikey": "azure-key"})), Some("theirs"), 401),
        (open(json!({"service_token": "user:pass"})), None, 200),
        (open(json!({"service_token": "user:"})), None, 401),
        (open(json!({})), None, 401),
        (whisk("user:pass"), None, 200),
        (whisk("user:wrong"), None, 401),
    ] {
        gateway.set("/routes/1", &json!({"uri": "/fn", "plugins": plugins}));
        let headers: Vec<_> = header.map(|key| ("X-Functions-Key", key)).into_iter().collect();
        let answer = client::request(gateway.http, "GET", "/fn", &headers, b"");
        assert_eq!(answer.status, status, "{plugins} {header:?}: {}", answer.text());
    }
}

#[test]
fn azures_master_keys_reach_routes_without_keys_as_soon_as_they_are_written() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set(
        "/routes/1",
        &json!({"uri": "/fn", "plugins": {"azure-functions": {"function_uri": origin.url("/")}}}),
    );
    let key = || {
        assert_eq!(client::get(gateway.http, "/fn").status, 200);
        origin.last().header("x-functions-key").map(str::to_owned)
    };
    assert_eq!(key(), None);
    let (status, answer) =
        gateway.put("/plugin_metadata/azure-functions", &json!({"master_apikey": "master"}));
    assert_eq!(status, 201, "{answer}");
    wait::until("the master key is sent", || (key().as_deref() == Some("master")).then_some(()));
    let (status, answer) =
        gateway.put("/plugin_metadata/azure-functions", &json!({"master_apikey": "a\n"}));
    let said = answer["error_msg"].as_str().unwrap_or_default();
    assert!(status == 400 && said.contains("\"master_apikey\""), "{status} {answer}");
    assert_eq!(key().as_deref(), Some("master"));
}

/// The plugins that only speak HTTP, each before a function that runs for real.
#[test]
fn functions_of_the_functions_framework_answer_through_each_plugin() {
    let functions = [
        ("python", FunctionProcess::python as fn() -> Option<FunctionProcess>),
        ("node", FunctionProcess::node),
    ];
    let clouds = Clouds::at(now());
    let tokens = clouds.serve();
    let gateway = GatewayProcess::with(
        BINARY,
        json!({"plugin_attr": {
            "google-cloud-functions": {
                "allowed_providers": ["key", "metadata"],
                "metadata_endpoint": tokens.url(""),
            },
            "azure-functions": {"authority": tokens.url("")},
        }}),
    );
    let [tenant, client, secret] = CLIENT;
    for (language, start) in functions {
        let Some(function) = start() else { continue };
        let uri = format!("http://{}/base", function.addr);
        for (plugin, authorization, header, expected) in [
            ("openfunction", json!({"service_token": "u:p"}), "authorization", "Basic dTpw"),
            ("azure-functions", json!({"apikey": "key"}), "x-functions-key", "key"),
            (
                "azure-functions",
                json!({"entra": {
                    "tenant_id": tenant, "client_id": client, "client_secret": secret, "resource": "api://f",
                }}),
                "authorization",
                "Bearer eyJ.",
            ),
            (
                "google-cloud-functions",
                json!({"provider": "metadata"}),
                "authorization",
                "Bearer ey",
            ),
            (
                "google-cloud-functions",
                json!({"provider": "metadata", "header": "X-Serverless-Authorization"}),
                "x-serverless-authorization",
                "Bearer ey",
            ),
        ] {
            let config = json!({"function_uri": uri, "authorization": authorization});
            gateway.set("/routes/f", &json!({"uri": "/f/*", "plugins": {plugin: config}}));
            let case = format!("{language} {plugin} {authorization}");
            let target = "/f/a%20b/c?x=1&y=%2F";
            let headers = [("X-Case", case.as_str()), ("Content-Type", "application/json")];
            let answer = client::request(gateway.http, "POST", target, &headers, "{\"n\": 1}");
            assert_eq!(answer.status, 201, "{case}: {}", answer.text());
            assert_eq!(answer.header("x-function"), Some(language), "{case}");
            assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"], "{case}");
            let saw = answer.json();
            let sent = saw["headers"][header].as_str().unwrap_or_default();
            assert!(sent.starts_with(expected), "{case}: {sent}");
            // Flask shows the path decoded, Express as it came.
            let path = if language == "python" { "/base/a b/c" } else { "/base/a%20b/c" };
            assert_eq!(saw["path"], path, "{case}");
            assert_eq!(
                (&saw["method"], &saw["query"], &saw["body"], &saw["headers"]["x-case"]),
                (&json!("POST"), &json!("x=1&y=%2F"), &json!("{\"n\": 1}"), &json!(case)),
            );
            let failed = client::get(gateway.http, "/f/fail");
            assert_eq!(
                (failed.status, failed.json()),
                (500, json!({"error": "asked to"})),
                "{case}"
            );
        }
        let addr = function.addr;
        drop(function);
        wait::until("the function has ended", || std::net::TcpStream::connect(addr).err());
        assert_eq!(client::get(gateway.http, "/f/x").status, 503, "{language}");
    }
}

#[test]
fn a_route_names_the_gateways_identities_only_where_config_yaml_allows_it() {
    let clouds = Clouds::at(now());
    let tokens = clouds.serve();
    let mut gateway = GatewayProcess::start(BINARY);
    let google = json!({"uri": "/run/google", "plugins": {"google-cloud-functions": {
        "function_uri": tokens.url("/run/"), "authorization": {"provider": "metadata"},
    }}});
    let azure = json!({"uri": "/run/azure", "plugins": {"azure-functions": {
        "function_uri": tokens.url("/run/app"),
        "authorization": {"entra": {"provider": "managed_identity", "resource": "api://app"}},
    }}});
    for (name, route, allowed) in [
        (
            "google-cloud-functions",
            &google,
            "metadata\" is not allowed here: plugin_attr.google-cloud-functions.allowed_providers in config.yaml names only [key]",
        ),
        (
            "azure-functions",
            &azure,
            "managed_identity\" is not allowed here: plugin_attr.azure-functions.allowed_providers in config.yaml names only [client_secret]",
        ),
    ] {
        let (status, answer) = gateway.put("/routes/1", route);
        let expected =
            format!("failed to check the configuration of plugin {name} err: provider \"{allowed}");
        assert_eq!((status, answer["error_msg"].as_str()), (400, Some(expected.as_str())));
    }
    // What a route brings itself needs no leave, and is not shown again.
    let key = json!({"client_email": ACCOUNT, "private_key": ACCOUNT_KEY});
    let own = json!({"uri": "/own", "plugins": {"google-cloud-functions": {
        "function_uri": tokens.url("/run/"), "authorization": {"service_account": key},
    }}});
    let (status, answer) = gateway.put("/routes/own", &own);
    assert_eq!(status, 201, "{answer}");
    assert!(!answer.to_string().contains("PRIVATE"), "{answer}");

    let changes = json!({"plugin_attr": {
        "google-cloud-functions": {
            "allowed_providers": ["key", "metadata"],
            "metadata_endpoint": tokens.url(""),
            "token_uri": tokens.url("/token"),
        },
        "azure-functions": {
            "allowed_providers": ["managed_identity"],
            "imds_endpoint": tokens.url(""),
        },
    }});
    gateway.write_config(&gateway::config(changes).to_string());
    gateway.restart();
    gateway.set("/routes/google", &google);
    gateway.set("/routes/azure", &azure);
    for path in ["/own", "/run/google", "/run/azure"] {
        wait::until(path, || (client::get(gateway.http, path).status == 200).then_some(()));
    }
    let asked = clouds.asked();
    for path in [
        "/token",
        "/computeMetadata/v1/instance/service-accounts/default/identity",
        "/metadata/identity/oauth2/token",
    ] {
        let times = asked.iter().filter(|(asked, _)| asked == path).count();
        assert_eq!(times, 1, "{path} of {asked:?}");
    }
    let log = gateway.error_log() + &gateway.stderr();
    assert!(!log.contains("PRIVATE KEY") && !log.contains("Bearer "), "{log}");
}

fn now() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
    now.expect("it is after 1970").as_secs()
}

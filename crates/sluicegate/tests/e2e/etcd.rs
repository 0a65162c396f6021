//! etcd as the store: what APISIX wrote is served, roles share the work, a gateway outlives etcd.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::etcd::Etcd;
use sluicegate_testkit::gateway::config;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, certs, client, wait};

use crate::BINARY;

#[test]
fn a_configuration_that_apisix_wrote_is_served_with_its_secrets() {
    let Some(etcd) = Etcd::start(1) else { return };
    let origin = Origin::text("ok");
    // The forms that APISIX 3.18 was seen to write: placeholders of folders, times, ids, secrets
    // encrypted with the first of its keys.
    for folder in ["routes", "upstreams", "services", "ssls", "plugin_metadata", "consumers"] {
        etcd.put(&format!("/apisix/{folder}/"), "init_dir");
    }
    let put = |key: &str, value: Value| etcd.put(&format!("/apisix{key}"), &value.to_string());
    let times = (1_790_000_000, 1_790_000_001);
    put(
        "/upstreams/00000000000000000042",
        json!({
            "id": "00000000000000000042", "create_time": times.0, "update_time": times.1,
            "type": "roundrobin", "hash_on": "vars", "pass_host": "pass", "scheme": "http",
            "nodes": {origin.addr.to_string(): 1},
        }),
    );
    put(
        "/services/s1",
        json!({
            "id": "s1", "create_time": times.0, "update_time": times.1,
            "upstream_id": "00000000000000000042",
        }),
    );
    put(
        "/routes/1",
        json!({
            "id": "1", "create_time": times.0, "update_time": times.1, "uri": "/plain", "status": 1,
            "priority": 0, "service_id": "s1",
        }),
    );
    put(
        "/routes/2",
        json!({
            "id": "2", "create_time": times.0, "update_time": times.1, "uri": "/fn", "status": 1,
            "plugins": {"aws-lambda": {
                "function_uri": origin.url("/default/fn"), "ssl_verify": false,
                // my-api-key, as observed.
                "authorization": {"apikey": "oQteeIDgmA7a0d+9eNugyg=="},
            }},
        }),
    );
    let pair = certs::self_signed(&["gw.example.com"]);
    put(
        "/ssls/1",
        json!({
            "id": "1", "create_time": times.0, "update_time": times.1, "status": 1,
            "type": "server", "snis": ["gw.example.com"], "cert": pair.cert,
            "key": encrypted_by_openssl(&pair.key),
        }),
    );
    put("/gen_id", json!(1));
    put("/data_plane/server_info/5f8a", json!({"version": "3.18.0", "hostname": "gate"}));

    let gateway = GatewayProcess::with(BINARY, changes(&etcd, json!({})));
    assert_eq!(client::get(gateway.http, "/plain").status, 200);
    assert_eq!(client::get(gateway.http, "/fn").status, 200);
    assert_eq!(origin.last().header("x-api-key"), Some("my-api-key"));
    assert!(client::Client::try_tls(gateway.https, Some("gw.example.com"), &[]).is_ok());
    assert!(!gateway.error_log().contains("not JSON"), "placeholders are no news");
    // Etcd's own wire: its JSON gateway is many times slower with a large configuration.
    assert!(gateway.error_log().contains("wire=gRPC"), "{}", gateway.error_log());

    let (_, routes) = gateway.get("/routes");
    assert_eq!(routes["total"], 2);
    let second = &routes["list"][1];
    assert_eq!(second["key"], "/apisix/routes/2");
    assert_eq!(second["value"]["plugins"]["aws-lambda"]["authorization"]["apikey"], "my-api-key");
    assert_eq!(second["modifiedIndex"], second["createdIndex"]);

    // What is written here is what APISIX would have written.
    let (status, made) = gateway.admin(
        "POST",
        "/routes",
        &json!({"uri": "/posted", "service_id": "s1"}).to_string(),
    );
    assert_eq!(status, 201, "{made}");
    let id = made["value"]["id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 20);
    let (_, read) = gateway.get(&format!("/routes/{id}"));
    let number: u64 = id.parse().unwrap();
    assert!(number < read["createdIndex"].as_u64().unwrap(), "{id} is a revision before its own");
    assert!(number > second["createdIndex"].as_u64().unwrap());
    assert_eq!(client::get(gateway.http, "/posted").status, 200);
    let (status, _) = gateway.patch("/routes/2", &json!({"desc": "by us"}));
    assert_eq!(status, 200);
    let stored = etcd_get(&etcd, "/apisix/routes/2");
    assert_eq!(
        stored["plugins"]["aws-lambda"]["authorization"]["apikey"],
        "oQteeIDgmA7a0d+9eNugyg=="
    );
    assert_eq!((&stored["create_time"], &stored["desc"]), (&json!(times.0), &json!("by us")));

    // What others break is reported and breaks nothing else.
    etcd.put("/apisix/routes/bad", "{no json");
    gateway.wait_for_error_line("/routes/bad");
    assert_eq!(client::get(gateway.http, "/plain").status, 200);
    etcd.delete("/apisix/routes/1");
    wait::until("the route to be gone", || {
        (client::get(gateway.http, "/plain").status == 404).then_some(())
    });
}

#[test]
fn a_control_plane_writes_what_data_planes_serve() {
    let Some(etcd) = Etcd::start(1) else { return };
    let origin = Origin::text("ok");
    let role = |role: &str| {
        let provider = json!({"config_provider": "etcd"});
        changes(&etcd, json!({"role": role, format!("role_{role}"): provider}))
    };
    let control = GatewayProcess::with(BINARY, role("control_plane"));
    let data = GatewayProcess::with(BINARY, role("data_plane"));
    assert_eq!((control.http.port(), data.admin.port()), (0, 0), "each has its own doors only");
    control.set_proxy("1", "/", origin.addr);
    wait::until("the data plane to serve it", || {
        (client::get(data.http, "/").status == 200).then_some(())
    });
}

#[test]
fn a_data_plane_has_the_plugins_of_its_control_plane() {
    let Some(etcd) = Etcd::start(1) else { return };
    let origin = Origin::text("plain");
    let provider = json!({"config_provider": "etcd"});
    let data = changes(&etcd, json!({"role": "data_plane", "role_data_plane": provider}));
    let put = |key: &str, value: Value| etcd.put(&format!("/apisix{key}"), &value.to_string());
    put(
        "/routes/1",
        json!({
            "id": "1", "uri": "/", "plugins": {"echo": {"body": "echo"}},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        }),
    );
    let without = json!([{"name": "jwt-auth"}, {"name": "mqtt-proxy", "stream": true}]);
    put("/plugins", without.clone());
    let mut data = GatewayProcess::with(BINARY, data);
    assert_eq!(client::get(data.http, "/").text(), "plain", "as it is when the gateway starts");
    let becomes = |data: &GatewayProcess, text: &str| {
        wait::until(text, || (client::get(data.http, "/").text() == text).then_some(()));
    };
    put("/plugins", json!([{"name": "echo"}]));
    becomes(&data, "echo");
    // What cannot be read changes nothing, and neither does a list that goes.
    put("/plugins", json!([{"name": 1}]));
    data.wait_for_error_line("failed to check item data of [/plugins] err:");
    assert_eq!(client::get(data.http, "/").text(), "echo");
    put("/plugins", without);
    becomes(&data, "plain");
    data.restart();
    assert_eq!(client::get(data.http, "/").text(), "plain");
}

#[test]
fn a_data_plane_opens_the_secrets_of_plugins_that_only_its_control_plane_names() {
    let Some(etcd) = Etcd::start(1) else { return };
    let origin = Origin::text("ok");
    let put = |key: &str, value: Value| etcd.put(&format!("/apisix{key}"), &value.to_string());
    put(
        "/routes/1",
        json!({"id": "1", "uri": "/fn", "plugins": {"aws-lambda": {
            "function_uri": origin.url("/"),
            // my-api-key, as observed.
            "authorization": {"apikey": "oQteeIDgmA7a0d+9eNugyg=="},
        }}}),
    );
    put("/plugins", json!([{"name": "aws-lambda"}]));
    let provider = json!({"config_provider": "etcd"});
    let mut data = changes(&etcd, json!({"role": "data_plane", "role_data_plane": provider}));
    data["plugins"] = json!(["key-auth"]);
    let data = GatewayProcess::with(BINARY, data);
    assert_eq!(client::get(data.http, "/fn").status, 200);
    assert_eq!(origin.last().header("x-api-key"), Some("my-api-key"));
}

#[test]
fn of_patches_through_two_gateways_none_is_lost() {
    let Some(etcd) = Etcd::start(1) else { return };
    let gateways = [0, 1].map(|_| GatewayProcess::with(BINARY, changes(&etcd, json!({}))));
    let route =
        json!({"uri": "/a", "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}}});
    gateways[0].set("/routes/1", &route);
    wait::until("the other to know it", || (gateways[1].get("/routes/1").0 == 200).then_some(()));
    std::thread::scope(|scope| {
        for (number, gateway) in gateways.iter().enumerate() {
            scope.spawn(move || {
                for patch in 0..20 {
                    let label = json!({"labels": {format!("g{number}-{patch}"): "set"}});
                    let (status, answer) = gateway.patch("/routes/1", &label);
                    assert_eq!(status, 200, "{answer}");
                }
            });
        }
    });
    let stored = etcd_get(&etcd, "/apisix/routes/1");
    assert_eq!(stored["labels"].as_object().map(|labels| labels.len()), Some(40), "{stored}");
}

#[test]
fn a_write_that_an_apisix_on_the_same_etcd_would_refuse_is_warned_about() {
    let Some(etcd) = Etcd::start(1) else { return };
    let shared = GatewayProcess::with(BINARY, changes(&etcd, json!({})));
    let alone = GatewayProcess::start(BINARY);
    let own = |plugin: Value| json!({"uri": "/f", "plugins": {"aws-lambda": plugin}});
    for (gateway, warns) in [(&shared, true), (&alone, false)] {
        gateway.set("/routes/uri", &own(json!({"function_uri": "http://127.0.0.1:1/"})));
        gateway.set(
            "/routes/own",
            &own(json!({
                "function": {"name": "f", "region": "eu-west-1", "endpoint": "http://127.0.0.1:1"},
                "authorization": {"iam": {"accesskey": "a", "secretkey": "s"}},
            })),
        );
        gateway.set("/routes/last", &own(json!({"function_uri": "http://127.0.0.1:1/"})));
        let log = gateway.error_log();
        let warnings = log.lines().filter(|line| line.contains("an APISIX on the same etcd"));
        let warnings: Vec<&str> = warnings.collect();
        assert_eq!(warnings.len(), usize::from(warns), "{warnings:?}");
        let named = |line: &&str| line.contains("/routes/own") && line.contains("aws-lambda");
        assert!(warnings.iter().all(named), "{warnings:?}");
    }
}

#[test]
fn a_gateway_outlives_etcd_and_its_own_restart() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let origin = Origin::start(|received| Answer::text(received.header("host").unwrap_or("")));
    let status = sluicegate_testkit::gateway::free_port();
    let mut changes = changes(&etcd, json!({}));
    changes["apisix"]["status"] = json!({"ip": "127.0.0.1", "port": status});
    let status = std::net::SocketAddr::from(([127, 0, 0, 1], status));
    let mut gateway = GatewayProcess::with(BINARY, changes);
    let route = |host: &str| {
        json!({"uri": "/", "upstream": {
            "type": "roundrobin", "nodes": {origin.addr.to_string(): 1},
            "pass_host": "rewrite", "upstream_host": host,
        }})
    };
    gateway.set("/routes/1", &route("old"));
    gateway.set("/routes/2", &json!({"uri": "/gone", "upstream": route("gone")["upstream"]}));
    wait::until("the copy to be written", || gateway.path("data/etcd.copy").exists().then_some(()));
    // The second route was written within the same second: its copy comes within two.
    std::thread::sleep(Duration::from_secs(2));

    etcd.kill(0);
    gateway.wait_for_error_line("etcd cannot be followed");
    assert_eq!(client::get(gateway.http, "/").text(), "old");
    let (refused, answer) = gateway.put("/routes/1", &route("lost"));
    assert_eq!(refused, 503, "{answer}");
    assert!(answer.to_string().contains("configuration store"), "{answer}");

    gateway.restart();
    gateway.wait_for_error_line("the copy of what it held is served");
    assert_eq!(client::get(gateway.http, "/").text(), "old");
    assert_eq!(client::get(gateway.http, "/gone").text(), "gone");
    let ready = client::get(status, "/status/ready").text();
    assert!(ready.contains("last-known-good"), "{ready}");

    etcd.launch(0);
    etcd.wait_until_it_takes_writes();
    etcd.put("/apisix/routes/1", &route("new").to_string());
    etcd.delete("/apisix/routes/2");
    wait::until("what changed meanwhile to be served", || {
        let gone = client::get(gateway.http, "/gone").status == 404;
        (gone && client::get(gateway.http, "/").text() == "new").then_some(())
    });
    gateway.wait_for_error_line("etcd is followed again");
    let ready = client::get(status, "/status/ready").text();
    assert!(!ready.contains("last-known-good"), "{ready}");
    gateway.set("/routes/1", &route("newer"));
    assert_eq!(client::get(gateway.http, "/").text(), "newer");
}

#[test]
fn a_start_without_etcd_and_copy_says_what_to_look_at() {
    let port = sluicegate_testkit::gateway::free_port();
    let host = format!("http://127.0.0.1:{port}");
    let changes = json!({"deployment": {
        "role_traditional": {"config_provider": "etcd"}, "etcd": {"host": [host]},
    }});
    let gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
    let output = gateway.command(&["start"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(told.contains(&host) && told.contains("deployment.etcd.host"), "{told}");
}

/// What makes etcd the store; `deployment` is laid over it.
fn changes(etcd: &Etcd, deployment: Value) -> Value {
    let mut changes = json!({
        "apisix": {"data_encryption": {"keyring": [APISIX_KEY]}},
        "deployment": {
            "role_traditional": {"config_provider": "etcd"},
            "etcd": {"host": etcd.hosts()},
        },
    });
    for (key, value) in deployment.as_object().into_iter().flatten() {
        changes["deployment"][key] = value.clone();
    }
    changes
}

fn etcd_get(etcd: &Etcd, key: &str) -> Value {
    use base64::Engine as _;
    let body = format!(r#"{{"key":"{}"}}"#, sluicegate_testkit::etcd::base64(key));
    let answer = etcd.post(0, "/v3/kv/range", &body).unwrap();
    let value = answer.split(r#""value":""#).nth(1).and_then(|rest| rest.split('"').next());
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// AES-128-CBC as APISIX encrypts: key and initialisation vector are the same text.
fn encrypted_by_openssl(text: &str) -> String {
    let hex: String = APISIX_KEY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut openssl = Command::new("openssl")
        .args(["enc", "-aes-128-cbc", "-base64", "-A", "-K", &hex, "-iv", &hex])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl can be run");
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap()
}

/// The first key of APISIX's default keyring, which the observed secrets were encrypted with.
const APISIX_KEY: &str = "qeddd145sfvddff3";

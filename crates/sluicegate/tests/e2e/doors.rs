//! The doors of the management APIs: TLS of the Admin API, the Control and Status APIs, roles.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use sluicegate_store::{EmbeddedStore, Expect, Store};
use sluicegate_testkit::certs::{self, Authority, Pair};
use sluicegate_testkit::client::{self, Client, curl};
use sluicegate_testkit::gateway::{ADMIN_KEY, config, free_port};
use sluicegate_testkit::{Answer, GatewayProcess, Origin, wait};

use crate::BINARY;

#[test]
fn the_admin_api_speaks_tls_where_https_admin_is_on() {
    let authority = Authority::new();
    let mut gateway = prepare(json!({"https_admin": true, "admin_api_mtls": mtls(None)}));
    write_pair(&gateway, "admin", &authority.issue(&["127.0.0.1"]));
    fs::write(gateway.path("authority.pem"), authority.pem()).unwrap();
    gateway.launch();

    let url = format!("https://{}/apisix/admin/routes", gateway.admin);
    let ca = gateway.path("authority.pem").display().to_string();
    let key = format!("X-API-KEY: {ADMIN_KEY}");
    for (key, status) in [(key.as_str(), 200), ("X-API-KEY: wrong", 401)] {
        let answer = curl(&["--cacert", &ca, "-H", key, &url]);
        assert_eq!((answer.status, answer.version.as_str()), (status, "1.1"), "{key}");
    }
    // A client that forgets the s is told so.
    let plain = client::get(gateway.admin, "/apisix/admin/routes");
    assert_eq!(plain.status, 400);
    assert!(plain.text().contains("plain HTTP request was sent to HTTPS port"), "{}", plain.text());
}

#[test]
fn a_renewed_certificate_of_the_admin_api_follows_a_reload_and_a_broken_one_does_not() {
    let mut gateway = prepare(json!({"https_admin": true, "admin_api_mtls": mtls(None)}));
    let [first, second] = [(), ()].map(|()| certs::self_signed(&["127.0.0.1"]));
    write_pair(&gateway, "admin", &first);
    gateway.launch();
    let served = |gateway: &GatewayProcess| {
        let client = Client::try_tls(gateway.admin, None, &[]).unwrap();
        client.tls.expect("it is TLS").certificate
    };
    assert_eq!(served(&gateway), first.der());

    write_pair(&gateway, "admin", &second);
    gateway.signal(Signal::HUP);
    gateway.wait_for_error_line("The configuration was reloaded.");
    assert_eq!(served(&gateway), second.der());

    // The key of the first does not fit the certificate of the second.
    fs::write(gateway.path("conf/admin.key"), &first.key).unwrap();
    gateway.signal(Signal::HUP);
    let line = gateway.wait_for_error_line("The Admin API keeps the certificate it had");
    assert!(line.contains("do not belong together"), "{line}");
    assert_eq!(served(&gateway), second.der());
}

#[test]
fn a_client_authority_lets_only_its_own_clients_into_the_admin_api() {
    let authority = Authority::new();
    let mut gateway =
        prepare(json!({"https_admin": true, "admin_api_mtls": mtls(Some("clients.crt"))}));
    write_pair(&gateway, "admin", &authority.issue(&["127.0.0.1"]));
    fs::write(gateway.path("conf/clients.crt"), authority.pem()).unwrap();
    write_pair(&gateway, "ours", &authority.issue(&["ours.test"]));
    write_pair(&gateway, "foreign", &Authority::new().issue(&["foreign.test"]));
    gateway.launch();

    let ca = gateway.path("conf/clients.crt").display().to_string();
    let url = format!("https://{}/apisix/admin/routes", gateway.admin);
    let key = format!("X-API-KEY: {ADMIN_KEY}");
    let ask = |client: Option<&str>, more: &[&str]| {
        let file = |end: &str| {
            client.map(|c| gateway.path(&format!("conf/{c}.{end}")).display().to_string())
        };
        let (cert, private) = (file("crt"), file("key"));
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "15", "--cacert", &ca, "-H", &key, &url]);
        command.args(["--write-out", "%{http_code}"]).args(more);
        if let (Some(cert), Some(private)) = (&cert, &private) {
            command.args(["--cert", cert, "--key", private]);
        }
        let output = command.output().expect("curl is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    };
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        let (done, text) = ask(Some("ours"), version);
        assert!(done && text.ends_with("200"), "{version:?}: {text}");
        let (done, text) = ask(None, version);
        assert!(done && text.ends_with("400"), "{version:?}: {text}");
        assert!(text.contains("No required SSL certificate was sent"), "{text}");
        assert!(!text.contains("total"), "nothing of the Admin API is shown: {text}");
        let (done, text) = ask(Some("foreign"), version);
        assert!(!done && text.ends_with("000"), "{version:?}: {text}");
    }
    // A request behind the first on a connection without a certificate gets no further.
    let mut client = Client::try_tls(gateway.admin, None, &[]).unwrap();
    let request =
        client::request_bytes("GET", "/apisix/admin/routes", &[("X-API-KEY", ADMIN_KEY)], "");
    client.send([request.clone(), request].concat());
    assert_eq!(client.response().status, 400);
    assert!(client.is_ended_within(wait::PATIENCE));
}

#[test]
fn allow_admin_holds_with_tls_too() {
    let mut gateway = prepare(json!({
        "https_admin": true,
        "admin_api_mtls": mtls(None),
        "allow_admin": ["10.0.0.0/8"],
    }));
    write_pair(&gateway, "admin", &certs::self_signed(&["127.0.0.1"]));
    gateway.launch();
    let mut client = Client::try_tls(gateway.admin, None, &[]).unwrap();
    let request =
        client::request_bytes("GET", "/apisix/admin/routes", &[("X-API-KEY", ADMIN_KEY)], "");
    assert_eq!(client.send(request).response().status, 403);
}

#[test]
fn a_start_is_refused_where_the_admin_apis_certificate_is_not_right() {
    let pair = certs::self_signed(&["127.0.0.1"]);
    let other = certs::self_signed(&["127.0.0.1"]);
    let cert = "deployment.admin.admin_api_mtls.admin_ssl_cert";
    let none = json!({});
    let given = mtls(Some("clients.crt"));
    for (mtls, files, told) in [
        (&none, &[][..], "deployment.admin.https_admin: missing ssl cert for https admin"),
        (
            &given,
            &[("admin.key", pair.key.as_str()), ("clients.crt", &pair.cert)],
            &format!("{cert}: "),
        ),
        (
            &given,
            &[("admin.crt", pair.cert.as_str()), ("clients.crt", &pair.cert)],
            &format!("{cert}_key: "),
        ),
        (
            &given,
            &[("admin.crt", pair.cert.as_str()), ("admin.key", &pair.key)],
            "deployment.admin.admin_api_mtls.admin_ssl_ca_cert: ",
        ),
        (
            &given,
            &[
                ("admin.crt", pair.cert.as_str()),
                ("admin.key", &other.key),
                ("clients.crt", &pair.cert),
            ],
            "do not belong together",
        ),
        (
            &given,
            &[
                ("admin.crt", pair.cert.as_str()),
                ("admin.key", &pair.key),
                ("clients.crt", "no certificate"),
            ],
            "deployment.admin.admin_api_mtls.admin_ssl_ca_cert: there is no certificate",
        ),
    ] {
        let gateway = prepare(json!({"https_admin": true, "admin_api_mtls": mtls}));
        for (name, text) in files {
            fs::write(gateway.path(&format!("conf/{name}")), text).unwrap();
        }
        for word in ["test", "start"] {
            let output = gateway.command(&[word]);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && stderr.contains(told), "{word} {told}: {stderr}");
            assert!(!stderr.contains("PRIVATE KEY"), "{stderr}");
        }
    }
}

#[test]
fn the_control_api_listens_and_shows_what_is_configured() {
    let changes = json!({"apisix": {"enable_control": true, "control": {"port": 0}}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let control = door(&gateway, "control=");
    let origin = Origin::text("ok");
    gateway.set_proxy("1", "/", origin.addr);
    let routes = client::get(control, "/v1/routes");
    assert_eq!((routes.status, &routes.json()[0]["key"]), (200, &json!("/apisix/routes/1")));
    let status = client::get(control, "/v1/status").json();
    assert_eq!((&status["routes"], &status["store"]["state"]), (&json!(1), &json!("ready")));
}

#[test]
fn no_endpoint_of_the_control_api_answers_a_web_page() {
    let changes = json!({"apisix": {"enable_control": true, "control": {"port": 0}}});
    let gateway = GatewayProcess::with(BINARY, changes);
    let control = door(&gateway, "control=");
    for (method, path) in [
        ("GET", "/v1/schema"),
        ("GET", "/v1/routes"),
        ("GET", "/v1/status"),
        ("GET", "/v1/healthcheck"),
        ("PUT", "/v1/plugins/reload"),
        ("POST", "/v1/gc"),
    ] {
        for (field, value, status) in [
            ("Accept", "*/*", 200),
            ("Host", "localhost", 200),
            ("Host", "rebound.attacker.com", 403),
            ("Origin", "http://rebound.attacker.com", 403),
            ("Sec-Fetch-Site", "cross-site", if method == "GET" { 200 } else { 403 }),
        ] {
            let answer = client::request(control, method, path, &[(field, value)], "");
            assert_eq!(answer.status, status, "{method} {path} {field}: {}", answer.text());
            let told = answer.text();
            assert!(status == 200 || told.starts_with("{\"error_msg\":"), "{told}");
        }
    }
}

#[test]
fn the_status_api_is_ready_while_requests_are_served() {
    let gateway = GatewayProcess::with(BINARY, json!({"apisix": {"status": {"port": 0}}}));
    let status = door(&gateway, "status=");
    assert!(status.ip().is_loopback(), "{status}");
    let ask = |path: &str| {
        let answer = client::get(status, path);
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        (answer.status, answer.json())
    };
    let ok = (200, json!({"status": "ok"}));
    assert_eq!(ask("/status"), ok);
    assert_eq!(ask("/status/ready"), ok);
    assert_eq!(client::get(status, "/else").status, 404);
}

#[test]
fn the_status_api_names_what_cannot_be_served() {
    let config = config(json!({"apisix": {"status": {"port": 0}}}));
    let mut gateway = GatewayProcess::prepare(BINARY, &config.to_string());
    // The Admin API would refuse it: another gateway wrote it, or a later version.
    let route = json!({"id": "1", "uri": "/", "plugins": {"of-tomorrow": {}}}).to_string();
    let file = gateway.path("data/sluicegate.redb");
    fs::create_dir_all(gateway.path("data")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(&file).unwrap();
        store.put("/routes/1", route.into_bytes().into(), Expect::Any.into()).await.unwrap();
    });
    drop(runtime);
    gateway.launch();
    assert_eq!(client::get(gateway.http, "/").status, 503);
    let status = door(&gateway, "status=");
    let answer = client::get(status, "/status/ready");
    let broken = json!({"kind": "routes", "id": "1", "cause": "unknown plugin [of-tomorrow]"});
    let body = json!({"status": "ok", "broken_total": 1, "broken": [broken]});
    assert_eq!((answer.status, answer.json()), (200, body), "what can be served is");

    // Mended, it is no longer named; nor is it after a reload.
    let origin = Origin::text("ok");
    gateway.set_proxy("1", "/", origin.addr);
    for reload in [false, true] {
        if reload {
            gateway.signal(Signal::HUP);
            gateway.wait_for_error_line("The configuration was reloaded.");
        }
        assert_eq!(client::get(status, "/status/ready").json(), json!({"status": "ok"}));
    }
}

#[test]
fn a_gateway_that_stops_is_not_ready() {
    let gateway = GatewayProcess::with(BINARY, json!({"apisix": {"status": {"port": 0}}}));
    let status = door(&gateway, "status=");
    let origin = Origin::start(|_| Answer::text("late").after(std::time::Duration::from_secs(2)));
    gateway.set_proxy("1", "/", origin.addr);
    let mut busy = Client::connect(gateway.http);
    busy.send(client::request_bytes("GET", "/", &[], ""));
    origin.wait_for(0);
    gateway.signal(Signal::TERM);
    let body = wait::until("not to be ready", || {
        let answer = client::get(status, "/status/ready");
        (answer.status == 503).then(|| answer.json())
    });
    assert_eq!(body, json!({"status": "error", "error": "the gateway stops"}));
    assert_eq!(busy.response().status, 200);
}

#[test]
fn a_role_has_no_doors_of_the_other_plane() {
    // Taken: whoever wanted this door would end here, before it asks for the store.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = json!({"ip": "127.0.0.1", "port": taken.local_addr().unwrap().port()});
    let any = json!({"ip": "127.0.0.1", "port": 0});
    for (role, node, admin) in [("control_plane", &taken, &any), ("data_plane", &any, &taken)] {
        let provider = format!("role_{role}");
        let gateway = GatewayProcess::prepare(
            BINARY,
            &config(json!({
                "apisix": {"node_listen": [node], "ssl": {"enable": false}},
                "deployment": {
                    "role": role,
                    provider: {"config_provider": "etcd"},
                    "admin": {"admin_listen": admin},
                    "etcd": {"host": [format!("http://127.0.0.1:{}", free_port())], "startup_retry": 1},
                },
            }))
            .to_string(),
        );
        let output = gateway.command(&["start"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("the configuration store cannot be reached"), "{role}: {stderr}");
    }
}

#[test]
fn a_gateway_that_waits_for_its_store_is_alive_and_not_ready() {
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let status = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let host = format!("http://{}", silent.local_addr().unwrap());
    let gateway = GatewayProcess::prepare(
        BINARY,
        &config(json!({
            "apisix": {"status": {"port": status.port()}},
            "deployment": {
                "role_traditional": {"config_provider": "etcd"},
                "etcd": {"host": [host], "startup_retry": 1, "timeout": 3},
            },
        }))
        .to_string(),
    );
    std::thread::scope(|scope| {
        let start = scope.spawn(|| gateway.command(&["start"]));
        wait::until("the door", || Client::try_connect(status).ok());
        assert_eq!(client::get(status, "/status").json(), json!({"status": "ok"}));
        let answer = client::get(status, "/status/ready");
        let why = "the configuration is not loaded yet";
        assert_eq!((answer.status, answer.json()), (503, json!({"status": "error", "error": why})));
        assert!(!start.join().unwrap().status.success());
    });
}

/// A gateway with `changes` to `deployment.admin`, not started yet.
#[test]
fn a_configuration_is_exported_and_imported_through_an_admin_api_with_tls() {
    let authority = Authority::new();
    let mut gateway =
        prepare(json!({"https_admin": true, "admin_api_mtls": mtls(Some("clients.crt"))}));
    write_pair(&gateway, "admin", &certs::self_signed(&["elsewhere.test"]));
    fs::write(gateway.path("conf/clients.crt"), authority.pem()).unwrap();
    write_pair(&gateway, "ours", &authority.issue(&["ours.test"]));
    gateway.launch();
    let addr = gateway.admin.to_string();
    let [file, cert, key] = ["all.yaml", "conf/ours.crt", "conf/ours.key"]
        .map(|name| gateway.path(name).display().to_string());
    let run = |words: &[&str]| {
        let words = [&["config"], words, &["--admin", addr.as_str()]].concat();
        let output = gateway.command(&words);
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let ours = ["--admin-cert", cert.as_str(), "--admin-cert-key", key.as_str()];
    fs::write(
        &file,
        "upstreams:\n  - id: u\n    type: roundrobin\n    nodes: {'127.0.0.1:1': 1}\n#END\n",
    )
    .unwrap();
    let (done, told) = run(&[&["import", &file][..], &ours].concat());
    assert!(done && told.contains("1 created"), "{told}");
    let (done, told) = run(&[&["export", &file][..], &ours].concat());
    assert!(done && told.contains("exported 1 resources"), "{told}");
    assert!(fs::read_to_string(&file).unwrap().contains("127.0.0.1:1"));
    // Without a certificate the Admin API answers 400 to everything.
    let (done, told) = run(&["export", &file]);
    assert!(!done && told.contains("400"), "{told}");
    // Whoever answers with another certificate gets no key.
    write_pair(&gateway, "admin", &certs::self_signed(&["elsewhere.test"]));
    let (done, told) = run(&[&["export", &file][..], &ours].concat());
    assert!(!done && told.contains("has to be the one in admin_ssl_cert"), "{told}");
}

#[test]
fn plugins_are_loaded_anew_by_the_admin_api_after_config_yaml_changed() {
    let with = |plugins: &[&str]| config(json!({"plugins": plugins})).to_string();
    let mut gateway = GatewayProcess::prepare(BINARY, &with(&["key-auth"]));
    gateway.launch();
    let origin = Origin::text("called");
    let function = json!({"function_uri": origin.url("/")});
    let route = json!({"uri": "/f", "plugins": {"aws-lambda": function}});
    let listed = |gateway: &GatewayProcess| {
        let (_, list) = gateway.get("/plugins/list");
        list.as_array().is_some_and(|list| list.contains(&json!("aws-lambda")))
    };
    let reload = |gateway: &GatewayProcess| {
        let answer = gateway.admin_raw("PUT", "/plugins/reload", &[("X-API-KEY", ADMIN_KEY)], "");
        assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    };
    assert!(!listed(&gateway));
    let (status, answer) = gateway.put("/routes/1", &route);
    assert_eq!((status, &answer["error_msg"]), (400, &json!("unknown plugin [aws-lambda]")));

    gateway.write_config(&with(&["key-auth", "aws-lambda"]));
    // The file alone changes nothing.
    assert!(!listed(&gateway));
    reload(&gateway);
    wait::until("the plugin to be there", || listed(&gateway).then_some(()));
    gateway.set("/routes/1", &route);
    assert_eq!(client::get(gateway.http, "/f").text(), "called");

    gateway.write_config(&with(&["key-auth"]));
    reload(&gateway);
    wait::until("the plugin to be gone", || (!listed(&gateway)).then_some(()));
    // A route whose plugin is gone never goes on without it.
    wait::until("the route to answer 503", || {
        (client::get(gateway.http, "/f").status == 503).then_some(())
    });
    let called = origin.requests().len();
    assert_eq!(client::get(gateway.http, "/f").status, 503);
    assert_eq!(origin.requests().len(), called);
}

#[test]
fn plugins_that_come_by_a_reload_find_their_resources_as_they_were_written() {
    let with = |plugins: &[&str]| config(json!({"plugins": plugins})).to_string();
    let all = with(&["key-auth", "aws-lambda", "traffic-split"]);
    let mut gateway = GatewayProcess::prepare(BINARY, &all);
    gateway.launch();
    let [function, one, two] = ["called", "one", "two"].map(Origin::text);
    let upstream =
        |origin: &Origin| json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    let config = json!({"function_uri": function.url("/"), "authorization": {"apikey": "hush"}});
    gateway.set("/routes/f", &json!({"uri": "/f", "plugins": {"aws-lambda": config}}));
    gateway.set("/upstreams/u", &upstream(&one));
    let split = json!({"rules": [{"weighted_upstreams": [{"upstream_id": "u"}]}]});
    gateway.set(
        "/routes/t",
        &json!({"uri": "/t", "plugins": {"traffic-split": split}, "upstream": upstream(&function)}),
    );
    gateway.kill();
    gateway.write_config(&with(&["key-auth"]));
    gateway.launch();
    assert_eq!(client::get(gateway.http, "/f").status, 503);

    gateway.write_config(&all);
    let answer = gateway.admin_raw("PUT", "/plugins/reload", &[("X-API-KEY", ADMIN_KEY)], "");
    assert_eq!(answer.status, 200);
    wait::until("the plugin to be there", || {
        (client::get(gateway.http, "/f").text() == "called").then_some(())
    });
    assert_eq!(function.last().header("x-api-key"), Some("hush"), "not as it is encrypted");
    assert_eq!(client::get(gateway.http, "/t").text(), "one");
    gateway.set("/upstreams/u", &upstream(&two));
    assert_eq!(client::get(gateway.http, "/t").text(), "two", "who names an upstream follows it");
}

#[test]
fn a_stored_resource_that_is_no_json_is_named_until_it_is_gone() {
    let mut gateway = GatewayProcess::prepare(
        BINARY,
        &config(json!({"apisix": {"status": {"port": free_port()}}})).to_string(),
    );
    gateway.launch();
    gateway.kill();
    let put = |key: &'static str, value: &'static str| {
        let store = EmbeddedStore::open(gateway.path("data/sluicegate.redb")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let value = value.as_bytes().into();
        runtime.block_on(store.put(key, value, Expect::Any.into())).unwrap();
    };
    put("/routes/bad", "{uri: /a}");
    gateway.launch();
    let status = door(&gateway, "status=");
    let ready = || {
        let answer = client::get(status, "/status/ready");
        assert_eq!(answer.status, 200);
        serde_json::from_str::<Value>(&answer.text()).unwrap()
    };
    let told = ready();
    assert_eq!((&told["broken_total"], &told["broken"][0]["id"]), (&json!(1), &json!("bad")));
    let cause = told["broken"][0]["cause"].as_str().unwrap();
    assert!(cause.starts_with("it is no JSON: "), "{cause}");
    assert_eq!(gateway.delete("/routes/bad").0, 200);
    assert_eq!(ready(), json!({"status": "ok"}));
}

fn prepare(changes: Value) -> GatewayProcess {
    let config = config(json!({"deployment": {"admin": changes}}));
    GatewayProcess::prepare(BINARY, &config.to_string())
}

/// `admin_api_mtls`; its paths begin in `conf/`.
fn mtls(ca: Option<&str>) -> Value {
    let mut files = json!({"admin_ssl_cert": "admin.crt", "admin_ssl_cert_key": "admin.key"});
    if let Some(ca) = ca {
        files["admin_ssl_ca_cert"] = ca.into();
    }
    files
}

fn write_pair(gateway: &GatewayProcess, name: &str, pair: &Pair) {
    for (end, text) in [("crt", &pair.cert), ("key", &pair.key)] {
        fs::write(gateway.path(&format!("conf/{name}.{end}")), text).unwrap();
    }
}

/// Where a door is, by what the log says.
#[track_caller]
pub(crate) fn door(gateway: &GatewayProcess, name: &str) -> SocketAddr {
    let line = gateway.wait_for_error_line("Sluicegate serves.");
    let value = line.split(' ').find_map(|word| word.strip_prefix(name));
    let value = value.and_then(|v| v.strip_prefix("Some(")?.strip_suffix(')'));
    value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("{name} in {line}"))
}

//! Start, reload, log rotation, and the ways to stop.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use sluicegate_testkit::client::{self, Client, curl};
use sluicegate_testkit::gateway::{ADMIN_KEY, config};
use sluicegate_testkit::{Answer, GatewayProcess, Origin, wait};

use crate::BINARY;

#[test]
fn a_reload_takes_what_it_can_and_names_what_needs_a_restart() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_proxy("1", "/", origin.addr);
    let mut open = Client::connect(gateway.http);
    assert_eq!(open.get("/?before").status, 200);
    gateway.wait_for_access_line("GET /?before HTTP/1.1");

    let any = json!({"ip": "127.0.0.1", "port": 0});
    gateway.write_config(
        &config(json!({
            "apisix": {"node_listen": [any]},
            "nginx_config": {"worker_processes": 1, "http": {"access_log_format": "changed $status $uri"}},
            "deployment": {"admin": {"admin_key": [
                {"name": "admin", "key": "another-admin-key", "role": "admin"},
            ]}},
        }))
        .to_string(),
    );
    gateway.signal(Signal::HUP);
    gateway.wait_for_error_line("The configuration was reloaded.");

    assert_eq!(open.get("/").status, 200, "open connections go on");
    assert_eq!(gateway.wait_for_access_line("changed"), "changed 200 /");
    for (key, status) in [(ADMIN_KEY, 401), ("another-admin-key", 200)] {
        let answer = gateway.admin_raw("GET", "/routes", &[("X-API-KEY", key)], "");
        assert_eq!(answer.status, status, "{key}");
    }
    let log = gateway.error_log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("need a restart")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for key in ["apisix.node_listen", "nginx_config.worker_processes"] {
        assert!(warnings[0].contains(key), "{key}: {}", warnings[0]);
    }
    assert!(!warnings[0].contains("access_log_format"), "{}", warnings[0]);
    assert_eq!(client::get(gateway.http2, "/").status, 200, "the listeners are as they were");
}

#[test]
fn a_broken_file_changes_nothing() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_proxy("1", "/", origin.addr);
    for (text, told) in [
        ("apisix: [\n", "config.yaml"),
        ("apisix:\n  node_listen: many\n", "apisix.node_listen"),
        (
            r#"{"nginx_config": {"http": {"keepalive_timeout": {}}}}"#,
            "nginx_config.http.keepalive_timeout",
        ),
        (r#"{"deployment": {"role_traditional": {"config_provider": "xds"}}}"#, "config_provider"),
    ] {
        let before = gateway.error_log().len();
        gateway.write_config(text);
        gateway.signal(Signal::HUP);
        let line = wait::until("the refusal", || {
            let log = gateway.error_log();
            log[before..].lines().find(|line| line.contains("not reloaded")).map(str::to_owned)
        });
        assert!(line.contains("[error]") && line.contains(told), "{text}: {line}");
        assert_eq!(client::get(gateway.http, "/").status, 200, "{text}");
        assert_eq!(gateway.get("/routes/1").0, 200, "{text}: the admin key is as it was");
    }
    assert!(!gateway.error_log().contains("The configuration was reloaded."));
}

#[test]
fn a_graceful_stop_finishes_what_is_under_way() {
    for signal in [Signal::TERM, Signal::QUIT] {
        let mut gateway = GatewayProcess::start(BINARY);
        let origin = Origin::start(|_| {
            let time = Duration::from_millis(600);
            Answer::status(200).after(time).chunk("first").pause(time).chunk("second")
        });
        gateway.set_proxy("1", "/proxy", origin.addr);
        gateway.set_lambda("2", "/fn", json!({"function_uri": origin.url("/")}));
        let fast = Origin::text("ok");
        gateway.set_proxy("3", "/fast", fast.addr);

        let mut busy = Vec::new();
        for target in ["/proxy", "/fn"] {
            let mut client = Client::connect(gateway.http);
            client.send(client::request_bytes("GET", target, &[], ""));
            busy.push(client);
        }
        let mut idle = Client::connect(gateway.http);
        assert_eq!(idle.get("/fast").status, 200);
        let url = format!("http://{}/proxy", gateway.http);
        let http2 = std::thread::spawn(move || curl(&["--http2-prior-knowledge", &url]));
        origin.wait_for(2);

        let began = Instant::now();
        gateway.signal(signal);
        assert!(idle.is_ended_within(Duration::from_millis(900)), "an idle connection is closed");
        let refused = wait::within(Duration::from_millis(900), || {
            Client::try_connect(gateway.http).is_err().then_some(())
        });
        assert!(refused.is_some(), "{signal:?}: new connections are refused");
        for client in &mut busy {
            let answer = client.response();
            assert_eq!((answer.status, answer.text().as_str()), (200, "firstsecond"));
            assert!(client.is_ended_within(wait::PATIENCE), "and the connection ends");
        }
        let answer = http2.join().unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "firstsecond"));
        let status = gateway.ended_within(wait::PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(0), "{signal:?}");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1000) && took < Duration::from_secs(5), "{took:?}");
        assert!(!gateway.path("logs/sluicegate.pid").exists());
    }
}

#[test]
fn a_graceful_stop_is_bounded_and_an_interrupt_is_quick() {
    for (signal, limit, at_least) in [(Signal::TERM, "2s", 1900), (Signal::INT, "240s", 0)] {
        let changes = json!({"nginx_config": {"worker_shutdown_timeout": limit}});
        let mut gateway = GatewayProcess::with(BINARY, changes);
        let origin = Origin::start(|_| Answer::text("late").after(Duration::from_secs(30)));
        gateway.set_proxy("1", "/", origin.addr);
        let mut client = Client::connect(gateway.http);
        client.send(client::request_bytes("GET", "/", &[], ""));
        origin.wait_for(0);
        let began = Instant::now();
        gateway.signal(signal);
        let status = gateway.ended_within(Duration::from_secs(8)).expect("it ends");
        let took = began.elapsed();
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert!(took >= Duration::from_millis(at_least), "{signal:?}: {took:?}");
        assert!(took < Duration::from_secs(5), "{signal:?}: {took:?}");
        assert!(client.try_response().is_err(), "the request is cut off");
    }
}

#[test]
fn whoever_asks_twice_does_not_wait() {
    let mut gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|_| Answer::text("late").after(Duration::from_secs(30)));
    gateway.set_proxy("1", "/", origin.addr);
    let mut client = Client::connect(gateway.http);
    client.send(client::request_bytes("GET", "/", &[], ""));
    origin.wait_for(0);
    gateway.signal(Signal::TERM);
    gateway.wait_for_error_line("Sluicegate stops");
    assert!(gateway.ended_within(Duration::from_millis(300)).is_none(), "it waits");
    gateway.signal(Signal::TERM);
    let status = gateway.ended_within(Duration::from_secs(3)).expect("it ends");
    assert_eq!(status.code(), Some(130));
}

#[test]
fn moved_logs_are_opened_again_on_sigusr1() {
    let gateway = GatewayProcess::start(BINARY);
    assert_eq!(client::get(gateway.http, "/before").status, 404);
    gateway.wait_for_access_line("/before");
    for log in ["access.log", "error.log"] {
        fs::rename(
            gateway.path("logs").join(log),
            gateway.path("logs").join(log).with_extension("old"),
        )
        .unwrap();
    }
    // Until it is told, it writes where it wrote.
    assert_eq!(client::get(gateway.http, "/between").status, 404);
    wait::until("the old log", || {
        gateway.read("logs/access.old").contains("/between").then_some(())
    });

    gateway.signal(Signal::USR1);
    wait::until("a new log", || gateway.path("logs/error.log").exists().then_some(()));
    wait::until("a line in the new log", || {
        assert_eq!(client::get(gateway.http, "/after").status, 404);
        gateway.access_log().contains("/after").then_some(())
    });
    gateway.signal(Signal::HUP);
    gateway.wait_for_error_line("The configuration was reloaded.");
    assert!(!gateway.read("logs/error.old").contains("reloaded"));
}

#[test]
fn a_reload_may_move_the_access_log_into_a_new_folder() {
    let gateway = GatewayProcess::start(BINARY);
    let log = json!({"nginx_config": {"http": {"access_log": "logs/new/access.log"}}});
    gateway.write_config(&config(log).to_string());
    gateway.signal(Signal::HUP);
    gateway.wait_for_error_line("The configuration was reloaded.");
    assert_eq!(client::get(gateway.http, "/moved").status, 404);
    wait::until("a line in the new folder", || {
        let log = gateway.path("logs/new/access.log");
        (log.exists() && gateway.read("logs/new/access.log").contains("/moved")).then_some(())
    });
}

#[test]
fn commands_reach_the_gateway_of_their_prefix() {
    let mut gateway = GatewayProcess::start(BINARY);
    let run = |gateway: &GatewayProcess, word: &str| {
        let output = gateway.command(&[word]);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, told) = run(&gateway, "test");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("config.yaml is ok"), "{told}");

    let (code, told) = run(&gateway, "reload");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("error log"), "{told}");
    gateway.wait_for_error_line("The configuration was reloaded.");
    for word in ["quit", "stop"] {
        let asked = std::process::Command::new(BINARY)
            .args([word, "-p", gateway.prefix().to_str().unwrap()])
            .spawn()
            .unwrap();
        // The command waits until the process is gone, and it is gone once its parent knows.
        let status = gateway.ended_within(wait::PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(0), "{word}");
        assert!(asked.wait_with_output().unwrap().status.success(), "{word}");
        for word in ["quit", "stop", "reload"] {
            let (code, told) = run(&gateway, word);
            assert_eq!(code, Some(1), "{word}");
            assert!(told.contains("no gateway runs under"), "{word}: {told}");
        }
        gateway.launch();
    }

    gateway.write_config("apisix:\n  enable_http2: maybe\n");
    let (code, told) = run(&gateway, "test");
    assert_eq!(code, Some(1));
    for part in ["config.yaml", "apisix.enable_http2", "maybe"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let version = std::process::Command::new(BINARY).arg("version").output().unwrap();
    assert_eq!(version.stdout, format!("sluicegate {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let at = json!({"ip": "127.0.0.1", "port": port});
    for (what, changes) in [
        ("data", json!({"apisix": {"node_listen": [at]}})),
        ("TLS", json!({"apisix": {"ssl": {"listen": [at]}}})),
        ("admin", json!({"deployment": {"admin": {"admin_listen": at}}})),
        ("control", json!({"apisix": {"enable_control": true, "control": at}})),
    ] {
        let gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
        let output = gateway.command(&["start"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}: {told}");
        let named = format!("127.0.0.1:{port} is taken by another process");
        assert!(told.contains(&named), "{what}: {told}");
        assert!(!gateway.path("logs/sluicegate.pid").exists(), "{what}: nothing is left");
    }
}

#[test]
fn a_second_gateway_of_one_prefix_is_refused_and_the_first_goes_on() {
    let gateway = GatewayProcess::start(BINARY);
    let pid = gateway.read("logs/sluicegate.pid");
    let output = gateway.command(&["start"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(client::get(gateway.http, "/").status, 404);
    assert_eq!(gateway.get("/routes").0, 200);
    assert_eq!(gateway.read("logs/sluicegate.pid"), pid, "commands still reach the first");
}

#[test]
fn resources_survive_a_restart() {
    let mut gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("ok");
    gateway.set_lambda("1", "/fn", json!({"function_uri": origin.url("/")}));
    gateway
        .set("/upstreams/u", &json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}}));
    gateway.set("/services/s", &json!({"upstream_id": "u"}));
    gateway.set("/routes/2", &json!({"uri": "/proxy", "service_id": "s"}));
    gateway.set("/routes/3", &json!({"uri": "/gone", "service_id": "s"}));
    assert_eq!(gateway.delete("/routes/3").0, 200);
    let read = |gateway: &GatewayProcess| -> Vec<Value> {
        ["/routes", "/services", "/upstreams"].map(|path| gateway.get(path).1).to_vec()
    };
    let before = read(&gateway);
    for kill in [false, true] {
        if kill {
            gateway.kill();
            gateway.launch();
        } else {
            gateway.restart();
        }
        assert_eq!(read(&gateway), before, "killed: {kill}");
        for (target, status) in [("/fn", 200), ("/proxy", 200), ("/gone", 404)] {
            assert_eq!(client::get(gateway.http, target).status, status, "{target}");
        }
    }
}

#[test]
fn an_empty_admin_key_is_generated_once_and_the_file_keeps_its_mode() {
    let changes = json!({"deployment": {"admin": {"admin_key": [
        {"name": "admin", "key": "", "role": "admin"},
    ]}}});
    let mut gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
    let file = gateway.path("conf/config.yaml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    gateway.launch();
    let written = fs::read_to_string(&file).unwrap();
    let json = written.replace('\'', "\"");
    let config: Value = serde_json::from_str(&json).expect("it is JSON but for the key's quotes");
    let key = config["deployment"]["admin"]["admin_key"][0]["key"].as_str().unwrap();
    assert!(key.len() >= 32, "{key}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let status = |gateway: &GatewayProcess, key: &str| {
        gateway.admin_raw("GET", "/routes", &[("X-API-KEY", key)], "").status
    };
    assert_eq!((status(&gateway, key), status(&gateway, "")), (200, 401));
    gateway.restart();
    assert_eq!(fs::read_to_string(&file).unwrap(), written, "the second start changes nothing");
    assert_eq!(status(&gateway, key), 200);
}

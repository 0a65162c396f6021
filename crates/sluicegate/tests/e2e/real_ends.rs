//! `aws-lambda` in front of emulators of Lambda that others wrote: `cargo lambda watch`,
//! serverless-offline, moto. They are large, so `cargo xtask real-ends` brings them and runs this;
//! without it each test says that it was skipped.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use sluicegate_testkit::{GatewayProcess, client, gateway, wait};

use crate::BINARY;
use crate::adapters::serves;

#[test]
fn lambda_http_under_cargo_lambda_serves_what_the_gateway_sends() {
    let Some(folder) = folder() else { return };
    let addr = free();
    let mut watch = Command::new(folder.join("venv/bin/cargo-lambda"));
    watch.args(["lambda", "watch", "--ignore-changes", "-A", "127.0.0.1", "-P"]);
    watch.arg(addr.port().to_string()).current_dir(folder.join("app"));
    // Cargo's own variables would have it built anew.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_HOME" {
            watch.env_remove(name);
        }
    }
    let _watch = End::start(&mut watch, addr);
    build(addr);
    serves("lambda_http", &format!("http://{addr}"), "app", &["apigw_v2", "apigw_v1", "alb"]);
}

#[test]
fn serverless_offline_serves_what_the_gateway_sends() {
    let Some(folder) = folder() else { return };
    let (http, addr) = (free(), free());
    let settings = json!({
        "service": "real",
        "frameworkVersion": "3",
        "plugins": ["serverless-offline"],
        "provider": {"name": "aws", "runtime": "nodejs20.x", "region": "eu-central-1"},
        "functions": {"app": {"handler": "app.handler"}},
        "custom": {"serverless-offline": {
            "host": "127.0.0.1", "httpPort": http.port(), "lambdaPort": addr.port(),
            "noPrependStageInUrl": true, "useInProcess": true,
        }},
    });
    std::fs::write(folder.join("node/serverless.json"), settings.to_string()).unwrap();
    let mut offline = Command::new("node");
    offline.args(["node_modules/.bin/sls", "offline", "start"]).current_dir(folder.join("node"));
    offline.env("SLS_TELEMETRY_DISABLED", "1").env("SLS_NOTIFICATIONS_MODE", "off");
    let _offline = End::start(&mut offline, addr);
    let endpoint = format!("http://{addr}");
    serves("serverless-http", &endpoint, "real-dev-app", &["apigw_v2", "apigw_v1"]);
}

#[test]
fn moto_accepts_our_signature_and_refuses_one_of_another_key() {
    let Some(folder) = folder() else { return };
    let addr = free();
    let mut moto = Command::new(folder.join("venv/bin/moto_server"));
    moto.args(["-H", "127.0.0.1", "-p", &addr.port().to_string()]);
    moto.env("INITIAL_NO_AUTH_ACTION_COUNT", "4");
    let _moto = End::start(&mut moto, addr);
    let simple = r#"{"lambda":{"use_docker":false}}"#;
    let answer = client::request(
        addr,
        "POST",
        "/moto-api/config",
        &[("Content-Type", "application/json")],
        simple,
    );
    assert!(answer.status < 300, "{}", answer.text());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/functions/moto_lambda.py");
    let endpoint = format!("http://{addr}");
    let made =
        Command::new(folder.join("venv/bin/python")).args([script, &endpoint]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key: Value = serde_json::from_slice(&made.stdout).unwrap();

    let gateway = GatewayProcess::start(BINARY);
    let config = |secret: &Value| {
        json!({
            "function": {"name": "app", "region": "eu-central-1", "endpoint": endpoint},
            "authorization": {"iam": {"accesskey": key["id"], "secretkey": secret}},
            "timeout": 30_000,
        })
    };
    gateway.set_lambda("1", "/fn", config(&key["secret"]));
    let answer = client::get(gateway.http, "/fn?a=1");
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), gateway.error_log());
    // Its simple mode answers the event.
    let event = answer.json();
    assert_eq!((&event["rawPath"], &event["rawQueryString"]), (&json!("/fn"), &json!("a=1")));
    gateway.set_lambda("2", "/wrong", config(&json!("another")));
    assert_eq!(client::get(gateway.http, "/wrong").status, 502);
    let line = gateway.wait_for_error_line("AWS refused a call of a function.");
    assert!(line.contains("status=403"), "{line}");
}

/// What `cargo xtask real-ends` brought.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("SLUICEGATE_REAL_ENDS").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: cargo xtask real-ends runs this");
    }
    folder
}

/// Has the function built and started, which takes longer than a client of the tests waits.
fn build(addr: SocketAddr) {
    let mut first = TcpStream::connect(addr).expect("it listens");
    first.set_read_timeout(Some(BUILD_TIME_MAX)).expect("sockets have it");
    let head = "POST /2015-03-31/functions/app/invocations HTTP/1.1\r\nHost: lambda.test\r\n";
    let call = format!("{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}");
    first.write_all(call.as_bytes()).expect("it listens");
    // Whatever it makes of an empty event.
    first.read_exact(&mut [0]).expect("the function is built and answers");
}

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], gateway::free_port()))
}

/// A process, with those it starts.
struct End(Child);

impl End {
    /// Starts it and waits until it listens.
    #[track_caller]
    fn start(command: &mut Command, addr: SocketAddr) -> Self {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut end = Self(command.spawn().expect("it can be run"));
        for _ in 0..PATIENCE_ROUNDS {
            if TcpStream::connect(addr).is_ok() {
                return end;
            }
            assert!(end.0.try_wait().is_ok_and(|ended| ended.is_none()), "it ended: {command:?}");
            std::thread::sleep(wait::PATIENCE / 100);
        }
        panic!("it does not listen: {command:?}");
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// How long the first build of a function may take.
const BUILD_TIME_MAX: Duration = Duration::from_secs(600);

/// These programs take long to start.
const PATIENCE_ROUNDS: u32 = 300;

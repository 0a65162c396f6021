//! The built binary as a process: a prefix of its own, ports from the system, gone with the test.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{self, Response};
pub use crate::port::free_port;
use crate::wait;

/// A gateway that runs, with its files.
pub struct GatewayProcess {
    binary: &'static str,
    prefix: TempDir,
    child: Option<Child>,
    environment: Vec<(String, Option<String>)>,
    /// The first plain port.
    pub http: SocketAddr,
    /// The second plain port.
    pub http2: SocketAddr,
    /// The TLS port.
    pub https: SocketAddr,
    /// The Admin API.
    pub admin: SocketAddr,
}

impl GatewayProcess {
    /// Starts `binary` with the configuration of [`config`].
    #[track_caller]
    pub fn start(binary: &'static str) -> Self {
        Self::with(binary, json!({}))
    }

    /// Starts `binary` with the configuration of [`config`] and `changes` over it.
    #[track_caller]
    pub fn with(binary: &'static str, changes: Value) -> Self {
        let mut gateway = Self::prepare(binary, &config(changes).to_string());
        gateway.launch();
        gateway
    }

    /// Writes `conf/config.yaml` under a new prefix and starts nothing yet.
    pub fn prepare(binary: &'static str, config: &str) -> Self {
        let prefix = tempfile::Builder::new().prefix("sluicegate-e2e-").tempdir();
        let prefix = prefix.expect("a temporary folder can be made");
        let none = SocketAddr::from(([127, 0, 0, 1], 0));
        let gateway = Self {
            binary,
            prefix,
            child: None,
            environment: Vec::new(),
            http: none,
            http2: none,
            https: none,
            admin: none,
        };
        fs::create_dir_all(gateway.path("conf")).expect("the prefix is ours");
        gateway.write_config(config);
        gateway
    }

    /// Sets a variable of the process, or takes it out of what it inherits, from the next start on.
    pub fn variable(&mut self, name: &str, value: Option<&str>) -> &mut Self {
        self.environment.push((name.to_owned(), value.map(str::to_owned)));
        self
    }

    /// Starts the process and waits until it serves. Ports change from start to start.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let before = self.error_log().len();
        let stdio = |name: &str| {
            let file = fs::OpenOptions::new().create(true).append(true).open(self.path(name));
            Stdio::from(file.expect("the prefix is ours"))
        };
        let mut command = Command::new(self.binary);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command
            .arg("start")
            .arg("-p")
            .arg(self.prefix.path())
            .stdin(Stdio::null())
            .stdout(stdio("stdout.txt"))
            .stderr(stdio("stderr.txt"))
            .spawn()
            .expect("the binary can be run");
        self.child = Some(child);
        let line = wait::until("the gateway to serve", || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok()?) {
                panic!("the gateway ended ({status}): {}", self.stderr());
            }
            let log = self.error_log();
            let line = log.get(before..)?.lines().find(|line| line.contains(SERVES))?;
            Some(line.to_owned())
        });
        let addrs = |name: &str| -> Vec<SocketAddr> {
            let value = line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap_or("");
            let value = value.trim_start_matches("Some(").trim_end_matches(')');
            value.split(',').filter_map(|addr| addr.parse().ok()).collect()
        };
        if let [http, http2, https] = addrs("data=")[..] {
            (self.http, self.http2, self.https) = (http, http2, https);
        } else if let Some(first) = addrs("data=").first() {
            self.http = *first;
        }
        if let Some(admin) = addrs("admin=").first() {
            self.admin = *admin;
        }
    }

    /// Runs another command of the binary with this prefix and waits for its end.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(self.binary);
        command.args(words).arg("-p").arg(self.prefix.path()).stdin(Stdio::null());
        command.output().expect("the binary can be run")
    }

    /// A file under the prefix.
    pub fn path(&self, file: &str) -> PathBuf {
        self.prefix.path().join(file)
    }

    /// The prefix.
    pub fn prefix(&self) -> &Path {
        self.prefix.path()
    }

    /// Replaces `conf/config.yaml`.
    pub fn write_config(&self, text: &str) {
        fs::write(self.path("conf/config.yaml"), text).expect("the prefix is ours");
    }

    /// The lines of the error log that are all there.
    pub fn error_log(&self) -> String {
        whole_lines(self.read("logs/error.log"))
    }

    /// The lines of the access log that are all there.
    pub fn access_log(&self) -> String {
        whole_lines(self.read("logs/access.log"))
    }

    /// What was written to standard error.
    pub fn stderr(&self) -> String {
        self.read("stderr.txt")
    }

    /// A file's text; empty when it is not there.
    pub fn read(&self, file: &str) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = fs::File::open(self.path(file)) {
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits for a line of the error log that holds `text`.
    #[track_caller]
    pub fn wait_for_error_line(&self, text: &str) -> String {
        wait::until(&format!("{text:?} in the error log"), || {
            self.error_log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Waits for a line of the access log that holds `text`.
    #[track_caller]
    pub fn wait_for_access_line(&self, text: &str) -> String {
        wait::until(&format!("{text:?} in the access log"), || {
            self.access_log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Its process id.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("it runs");
        Pid::from_raw(child.id().cast_signed()).expect("a process has an id")
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until it ends by itself, at most for `limit`.
    pub fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("it was started");
        let status = wait::within(limit, || child.try_wait().ok()?)?;
        self.child = None;
        Some(status)
    }

    /// Stops it (SIGINT) and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.signal(Signal::INT);
        assert!(self.ended_within(wait::PATIENCE).is_some(), "it ends when it is told to");
        self.launch();
    }

    /// A request to the Admin API: status and answer.
    #[track_caller]
    pub fn admin(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let answer = self.admin_raw(method, path, &[("X-API-KEY", ADMIN_KEY)], body);
        (answer.status, answer.json())
    }

    /// A request to the Admin API with these headers only.
    #[track_caller]
    pub fn admin_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        client::request(self.admin, method, &format!("/apisix/admin{path}"), headers, body)
    }

    /// GET from the Admin API; paths begin behind `/apisix/admin`.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, Value) {
        self.admin("GET", path, "")
    }

    /// PUT to the Admin API.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.admin("PUT", path, &body.to_string())
    }

    /// PATCH to the Admin API.
    #[track_caller]
    pub fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        self.admin("PATCH", path, &body.to_string())
    }

    /// DELETE to the Admin API.
    #[track_caller]
    pub fn delete(&self, path: &str) -> (u16, Value) {
        self.admin("DELETE", path, "")
    }

    /// PUT that must be taken.
    #[track_caller]
    pub fn set(&self, path: &str, body: &Value) {
        let (status, answer) = self.put(path, body);
        assert!(matches!(status, 200 | 201), "PUT {path}: {status} {answer}");
    }

    /// PUT of a route for `uri` that `aws-lambda` answers.
    #[track_caller]
    pub fn set_lambda(&self, id: &str, uri: &str, config: Value) {
        self.set(&format!("/routes/{id}"), &json!({"uri": uri, "plugins": {"aws-lambda": config}}));
    }

    /// PUT of a route for `uri` that goes to an origin.
    #[track_caller]
    pub fn set_proxy(&self, id: &str, uri: &str, origin: SocketAddr) {
        let nodes = json!({origin.to_string(): 1});
        let upstream = json!({"type": "roundrobin", "nodes": nodes});
        self.set(&format!("/routes/{id}"), &json!({"uri": uri, "upstream": upstream}));
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.error_log();
            let start = log.lines().count().saturating_sub(20);
            let lines: Vec<&str> = log.lines().skip(start).collect();
            eprintln!("--- stderr\n{}--- error.log\n{}", self.stderr(), lines.join("\n"));
        }
    }
}

/// The configuration of a test: two plain ports, a TLS port, the Admin API, all on loopback with
/// ports from the system; logs that tell all, at once; an admin key and a keyring that are known.
/// Maps of `changes` are laid over its maps; other values replace.
pub fn config(changes: Value) -> Value {
    let any = json!({"ip": "127.0.0.1", "port": 0});
    let mut config = json!({
        "apisix": {
            "node_listen": [any, any],
            "enable_control": false,
            "ssl": {"listen": [any]},
            "data_encryption": {"keyring": [KEYRING]},
        },
        "nginx_config": {
            "worker_processes": 2,
            "error_log_level": "info",
            "http": {"access_log_buffer": 1},
        },
        "deployment": {
            "role": "traditional",
            "role_traditional": {"config_provider": "embedded"},
            "admin": {
                "allow_admin": ["127.0.0.0/24"],
                "admin_listen": any,
                "admin_key": [{"name": "admin", "key": ADMIN_KEY, "role": "admin"}],
            },
        },
    });
    lay_over(&mut config, changes);
    config
}

/// A log without the start of a line at its end: of a line that lies in two pages, a reader may see what
/// is in the first before the rest.
fn whole_lines(mut log: String) -> String {
    log.truncate(log.rfind('\n').map_or(0, |at| at + 1));
    log
}

fn lay_over(base: &mut Value, changes: Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) => {
            for (key, value) in changes {
                lay_over(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, changes) => *base = changes,
    }
}

/// The admin key of [`config`].
pub const ADMIN_KEY: &str = "an-admin-key-for-tests";

/// The keyring of [`config`].
pub const KEYRING: &str = "a-key-for-tests!";

/// The line that says where the gateway listens.
const SERVES: &str = "Sluicegate serves.";

//! Functions that run for real: Google's Functions Framework in Python and in Node.js, on loopback, and
//! applications behind the adapters that turn Lambda's events into requests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::{gateway, judge, wait};

/// A function that answers 201 with what it saw as JSON (`method`, `path`, `query`, `headers`, `body`),
/// and 500 where the path ends in `/fail`.
pub struct FunctionProcess {
    /// Where it listens.
    pub addr: SocketAddr,
    process: Child,
}

impl FunctionProcess {
    /// In Python. `None`, and a printed line, where the framework is not installed; a panic then
    /// under CI.
    pub fn python() -> Option<Self> {
        let python = judge::python("functions_framework")?;
        let addr = SocketAddr::from(([127, 0, 0, 1], gateway::free_port()));
        let mut command = Command::new(python);
        command
            .args(["-m", "functions_framework", "--target", "hello"])
            .args(["--source", &script("main.py"), "--host", "127.0.0.1"])
            .args(["--port", &addr.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = spawn(&mut command);
        let function = Self { addr, process };
        wait::until("the function in Python listens", || TcpStream::connect(addr).ok().map(drop));
        Some(function)
    }

    /// In Node.js; as [`FunctionProcess::python`].
    pub fn node() -> Option<Self> {
        let modules = node_modules("@google-cloud/functions-framework")?;
        let mut command = Command::new("node");
        command
            .arg(script("hello.js"))
            .env("NODE_PATH", modules)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = spawn(&mut command);
        let stdout = process.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the function speaks");
        let addr = line.trim().parse().expect("the function says where it listens");
        Some(Self { addr, process })
    }
}

/// A web application behind an adapter that Lambda's users have, which answers events: 201 with what it
/// saw as JSON and two cookies, and at `/binary` bytes that are no text.
pub struct AdapterProcess {
    process: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl AdapterProcess {
    /// mangum (Python). `None`, and a printed line, where it is not installed; a panic then under CI.
    pub fn mangum() -> Option<Self> {
        let mut command = Command::new(judge::python("mangum")?);
        command.arg(script("adapter_mangum.py"));
        Some(Self::start(&mut command))
    }

    /// serverless-http (Node.js); as [`AdapterProcess::mangum`].
    pub fn serverless_http() -> Option<Self> {
        let modules = node_modules("serverless-http")?;
        let mut command = Command::new("node");
        command.arg(script("adapter_serverless_http.js")).env("NODE_PATH", modules);
        Some(Self::start(&mut command))
    }

    fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the adapter can be run");
        let stdin = process.stdin.take().expect("it is piped");
        let stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, pipes: Mutex::new((stdin, stdout)) }
    }

    /// What it answers to an event. It fails by panicking, as a function would.
    pub fn answer(&self, event: &[u8]) -> Vec<u8> {
        assert!(!event.contains(&b'\n'), "an event is one line");
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let (stdin, stdout) = &mut *pipes;
        stdin.write_all(event).and_then(|()| stdin.write_all(b"\n")).expect("the adapter listens");
        stdin.flush().expect("the adapter listens");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the adapter speaks");
        assert!(!line.is_empty(), "the adapter failed");
        line.into_bytes()
    }
}

impl Drop for AdapterProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The folder of npm's packages, where it has this one. `None`, and a printed line, where it has not; a
/// panic then under CI.
fn node_modules(package: &str) -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/node/node_modules");
    let modules = std::env::var_os("SLUICEGATE_NODE_MODULES").map_or(usual, PathBuf::from);
    if modules.join(package).is_dir() {
        return Some(modules);
    }
    let why = format!("no {package} (set SLUICEGATE_NODE_MODULES or run cargo xtask test)");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    println!("skipped: {why}");
    None
}

impl Drop for FunctionProcess {
    fn drop(&mut self) {
        // The whole group: gunicorn has workers.
        let group = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.process.wait();
    }
}

fn spawn(command: &mut Command) -> Child {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0).stdin(Stdio::null()).spawn().expect("it can be run")
}

fn script(name: &str) -> String {
    format!("{}/functions/{name}", env!("CARGO_MANIFEST_DIR"))
}

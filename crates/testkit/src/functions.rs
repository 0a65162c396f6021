//! Functions that run for real: Google's Functions Framework in Python and in Node.js, on loopback.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
        let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/node/node_modules");
        let modules = std::env::var_os("SLUICEGATE_NODE_MODULES").map_or(usual, PathBuf::from);
        if !modules.join("@google-cloud/functions-framework").is_dir() {
            let why = "no Functions Framework for Node.js (set SLUICEGATE_NODE_MODULES or run cargo \
                       xtask test)";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            println!("skipped: {why}");
            return None;
        }
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

//! botocore as the judge of signatures: `judge/sigv4_origin.py` as a process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// An origin that recomputes each request's signature from the bytes it got: 200 with what
/// arrived as JSON, or 403.
pub struct Judge {
    /// Where it listens.
    pub addr: SocketAddr,
    process: Child,
}

impl Judge {
    /// Starts it with more arguments. `None`, and a printed line, where no Python has botocore;
    /// a panic then under CI, where the judge must not be left out.
    pub fn start(more: &[&str]) -> Option<Self> {
        let python = python("botocore")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/judge/sigv4_origin.py");
        let mut process = Command::new(python)
            .args([script, "--listen", "127.0.0.1:0", "--quiet"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python can be run");
        let stdout = process.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the judge speaks");
        let addr = line.trim().rsplit_once('/').and_then(|(_, addr)| addr.parse().ok());
        Some(Self { addr: addr.expect("the judge says where it listens"), process })
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The tests' Python, where it has `module`. `None`, and a printed line, where it has not; a panic
/// then under CI.
pub fn python(module: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let python = std::env::var_os("SLUICEGATE_PYTHON").map_or(venv, PathBuf::from);
    let check = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stderr(Stdio::null())
        .status();
    if check.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let why = format!("no Python with {module} (set SLUICEGATE_PYTHON or run cargo xtask test)");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    println!("skipped: {why}");
    None
}

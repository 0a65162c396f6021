//! Real etcd, started by tests: one member or a cluster, on ports from the system, gone with the
//! test.
//!
//! Needs `etcd` on the path (Debian's `etcd-server`). Without it tests say so and are skipped, in
//! continuous integration they fail. Uses nothing but `std`, `tempfile` and `port.rs` beside it,
//! as the store's tests include both files as they are.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::port::free_port;

/// A cluster of etcd.
#[derive(Debug)]
pub struct Etcd {
    folder: TempDir,
    members: Vec<Member>,
    arguments: Vec<String>,
    scheme: &'static str,
}

#[derive(Debug)]
struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

impl Etcd {
    /// A cluster of so many members that answers; `None`, with a printed line, where there is no
    /// etcd.
    #[track_caller]
    pub fn start(members: usize) -> Option<Self> {
        Self::with(members, "http", &[])
    }

    /// The same with further arguments. With `https` only the processes are waited for.
    #[track_caller]
    pub fn with(members: usize, scheme: &'static str, arguments: &[&str]) -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            let why = "no etcd on the path (Debian's etcd-server, or run cargo xtask test)";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            println!("skipped: {why}");
            return None;
        }
        // A member may be down for a while: nothing else may get its ports.
        let addr = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let members =
            (0..members).map(|_| Member { client: addr(), peer: addr(), process: None }).collect();
        let folder = tempfile::Builder::new().prefix("etcd-test-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        let mut etcd = Self { folder, members, arguments, scheme };
        for member in 0..etcd.members.len() {
            etcd.launch(member);
        }
        etcd.wait_until_it_takes_writes();
        Some(etcd)
    }

    /// The members' addresses, as `deployment.etcd.host` takes them.
    pub fn hosts(&self) -> Vec<String> {
        let url = |member: &Member| format!("{}://{}", self.scheme, member.client);
        self.members.iter().map(url).collect()
    }

    /// A member's address.
    pub fn addr(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// A member's process id.
    #[track_caller]
    pub fn pid(&self, member: usize) -> u32 {
        self.members[member].process.as_ref().expect("it runs").id()
    }

    /// Starts a member again with the data it had.
    #[track_caller]
    pub fn launch(&mut self, member: usize) {
        let name = |n: usize| format!("m{n}");
        let all = self.members.iter().enumerate();
        let cluster: Vec<String> =
            all.map(|(n, m)| format!("{}=http://{}", name(n), m.peer)).collect();
        let (client, peer) = (
            format!("{}://{}", self.scheme, self.members[member].client),
            format!("http://{}", self.members[member].peer),
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(member))
            .expect("the folder is ours");
        let process = Command::new("etcd")
            .args(["--name", &name(member), "--data-dir"])
            .arg(self.data(member))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--heartbeat-interval", "50"])
            .args(["--election-timeout", "500", "--max-request-bytes", "8388608"])
            // Processes are killed here, machines are not.
            .arg("--unsafe-no-fsync")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd can be run");
        self.members[member].process = Some(process);
    }

    /// Kills a member (SIGKILL).
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Forgets what a member that does not run had stored.
    #[track_caller]
    pub fn wipe(&mut self, member: usize) {
        assert!(self.members[member].process.is_none(), "it runs");
        std::fs::remove_dir_all(self.data(member)).expect("the folder is ours");
    }

    /// The member that leads.
    pub fn leader(&self) -> Option<usize> {
        let field = |text: &str, name: &str| -> Option<String> {
            let rest = text.split(&format!("\"{name}\":\"")).nth(1)?;
            Some(rest.split('"').next()?.to_owned())
        };
        (0..self.members.len()).find(|member| {
            let status = self.post(*member, "/v3/maintenance/status", "{}").unwrap_or_default();
            field(&status, "leader")
                .is_some_and(|leader| leader != "0" && field(&status, "member_id") == Some(leader))
        })
    }

    /// One call of the JSON gateway without TLS.
    pub fn post(&self, member: usize, path: &str, body: &str) -> std::io::Result<String> {
        // Megabytes on a busy machine.
        let limit = Duration::from_secs(30);
        let mut stream = TcpStream::connect_timeout(&self.members[member].client, limit)?;
        stream.set_read_timeout(Some(limit))?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Writes a key past every gateway.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        let body = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value));
        let answer = self.post(0, "/v3/kv/put", &body).expect("etcd answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Removes a key past every gateway.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        let body = format!("{{\"key\":\"{}\"}}", base64(key));
        let answer = self.post(0, "/v3/kv/deleterange", &body).expect("etcd answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Waits until a majority takes writes.
    #[track_caller]
    pub fn wait_until_it_takes_writes(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let tls = self.scheme == "https";
        while !self.members.iter().enumerate().any(|(n, member)| match tls {
            true => member.process.is_some() && TcpStream::connect(member.client).is_ok(),
            false => {
                let body = format!("{{\"key\":\"{}\",\"value\":\"\"}}", base64("/test"));
                let answer = self.post(n, "/v3/kv/put", &body).unwrap_or_default();
                // With users, being told that one is missing is an answer, too.
                answer.contains("\"revision\"") || answer.contains("user name is empty")
            }
        }) {
            for member in 0..self.members.len() {
                if let Some(process) = &mut self.members[member].process
                    && let Ok(Some(status)) = process.try_wait()
                {
                    let log = std::fs::read_to_string(self.log(member)).unwrap_or_default();
                    panic!("etcd ended ({status}): {log}");
                }
            }
            assert!(Instant::now() < deadline, "etcd takes no writes after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("m{member}"))
    }

    fn log(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("m{member}.log"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}

/// Base64, as the JSON gateway carries keys and values.
pub fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits = three.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte))
            << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * place) & 63];
            out.push(if place <= three.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// How long a start or an election may take.
const PATIENCE: Duration = Duration::from_secs(20);

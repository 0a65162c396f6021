//! Real Redis, started by tests: one server or a cluster of several, on free ports, gone
//! with the test.
//!
//! Needs `redis-server` on the path (Debian's `redis-server`). Without it tests say so and are
//! skipped, in continuous integration they fail.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::certs::Pair;
use crate::port::free_port;
use crate::wait;

/// Redis servers.
#[derive(Debug)]
pub struct Redis {
    _folder: TempDir,
    _files: Option<TempDir>,
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Redis {
    /// One server that answers, started with these further arguments; `None`, with a printed line,
    /// where there is no Redis.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Option<Self> {
        Self::with(1, |_, _| arguments.iter().map(|text| (*text).to_owned()).collect())
    }

    /// A cluster of so many servers that has all its slots.
    #[track_caller]
    pub fn cluster(servers: usize) -> Option<Self> {
        let redis = Self::with(servers, |at, bus| {
            let words = ["--cluster-enabled", "yes", "--cluster-config-file"];
            let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
            let bus = bus.to_string();
            arguments.extend([format!("nodes-{at}.conf"), "--cluster-port".into(), bus]);
            arguments
        })?;
        let slots = 16384;
        for (at, server) in redis.servers.iter().enumerate() {
            let (from, to) = (slots * at / servers, slots * (at + 1) / servers - 1);
            redis.command(at, &format!("CLUSTER ADDSLOTSRANGE {from} {to}"));
            let bus = server.arguments.last().expect("it is the last one");
            redis.command(0, &format!("CLUSTER MEET 127.0.0.1 {} {bus}", server.addr.port()));
        }
        wait::until("the cluster to agree", || {
            let agrees = |at| redis.command(at, "CLUSTER INFO").contains("cluster_state:ok");
            let knows_all = |at| {
                redis
                    .command(at, "CLUSTER INFO")
                    .contains(&format!("cluster_known_nodes:{servers}"))
            };
            (0..servers).all(|at| agrees(at) && knows_all(at)).then_some(())
        });
        Some(redis)
    }

    /// One server that also speaks TLS, with this certificate.
    #[track_caller]
    pub fn tls(pair: &Pair) -> Option<Self> {
        let files = tempfile::tempdir().expect("a temporary folder can be made");
        let write = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).expect("files can be written");
            path.display().to_string()
        };
        let (cert, key) = (write("cert.pem", &pair.cert), write("key.pem", &pair.key));
        let mut redis = Self::with(1, |_, other| {
            let words = ["--tls-port", &other.to_string(), "--tls-cert-file", &cert];
            let more = ["--tls-key-file", &key, "--tls-ca-cert-file", &cert];
            let last = ["--tls-auth-clients", "no"];
            words.into_iter().chain(more).chain(last).map(str::to_owned).collect()
        })?;
        redis._files = Some(files);
        Some(redis)
    }

    /// Where the server of [`Self::tls`] speaks TLS.
    pub fn tls_port(&self) -> u16 {
        let mut arguments = self.servers[0].arguments.iter();
        let port = arguments.find(|word| *word == "--tls-port").and_then(|_| arguments.next());
        port.and_then(|port| port.parse().ok()).expect("it was started with TLS")
    }

    /// A server, and behind it a sentinel that knows it as `mymaster`.
    #[track_caller]
    pub fn sentinel() -> Option<Self> {
        let mut redis = Self::prepare(2, |_, _| Vec::new())?;
        redis.launch(0);
        let (master, own) = (redis.addr(0).port(), redis.addr(1).port());
        let folder = redis._folder.path().display().to_string();
        let text = format!(
            "port {own}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor mymaster 127.0.0.1 {master} 1\n"
        );
        let path = redis._folder.path().join("sentinel.conf");
        std::fs::write(&path, text).expect("files can be written");
        redis.servers[1].arguments = vec![path.display().to_string(), "--sentinel".to_owned()];
        redis.launch(1);
        wait::until("the sentinel to know the server", || {
            let known = redis.command(1, "SENTINEL get-master-addr-by-name mymaster");
            known.contains(&master.to_string()).then_some(())
        });
        Some(redis)
    }

    #[track_caller]
    fn with(servers: usize, arguments: impl Fn(usize, u16) -> Vec<String>) -> Option<Self> {
        let mut redis = Self::prepare(servers, arguments)?;
        for at in 0..redis.servers.len() {
            redis.launch(at);
        }
        Some(redis)
    }

    fn prepare(servers: usize, arguments: impl Fn(usize, u16) -> Vec<String>) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            let why = "no redis-server on the path (Debian's redis-server)";
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            println!("skipped: {why}");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("redis-test-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        let server = |at| {
            // A server may be down for a while: nothing else may get its port.
            let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let words = ["--bind", "127.0.0.1", "--save", "", "--dir"].map(str::to_owned);
            let mut all = words.to_vec();
            all.push(folder.path().display().to_string());
            all.extend(["--port".to_owned(), addr.port().to_string()]);
            all.extend(arguments(at, free_port()));
            Server { addr, arguments: all, process: None }
        };
        let servers = (0..servers).map(server).collect();
        Some(Self { _folder: folder, _files: None, servers })
    }

    /// Starts a server again, empty.
    #[track_caller]
    pub fn launch(&mut self, at: usize) {
        let server = &mut self.servers[at];
        let mut command = Command::new("redis-server");
        command.args(&server.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        server.process = Some(command.spawn().expect("redis-server can be run"));
        let addr = server.addr;
        wait::until("Redis to answer", || TcpStream::connect(addr).ok());
    }

    /// Kills a server.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.servers[at].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// A server's process id.
    #[track_caller]
    pub fn pid(&self, at: usize) -> u32 {
        self.servers[at].process.as_ref().expect("it runs").id()
    }

    /// A server's address.
    pub fn addr(&self, at: usize) -> SocketAddr {
        self.servers[at].addr
    }

    /// The servers' addresses, as `redis_cluster_nodes` takes them.
    pub fn nodes(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.addr.to_string()).collect()
    }

    /// What a server answers to a command without blanks in its words, as it is sent.
    #[track_caller]
    pub fn command(&self, at: usize, words: &str) -> String {
        let mut stream = TcpStream::connect(self.addr(at)).expect("Redis listens");
        let limit = Some(wait::PATIENCE);
        stream.set_read_timeout(limit).expect("a limit can be set");
        stream.write_all(format!("{words}\r\nQUIT\r\n").as_bytes()).expect("Redis reads");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.trim_end().trim_end_matches("+OK").trim_end().to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        for at in 0..self.servers.len() {
            self.kill(at);
        }
    }
}

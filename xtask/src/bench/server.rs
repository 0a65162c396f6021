//! The processes under load: an origin, nginx as a gateway, and our binary, all on loopback with
//! ports from the operating system, and all ended with the benchmark.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::http::{self, Answer};
use super::{Gateway, LOAD_CPU};
use crate::command::{program, target};

/// Everything that runs while requests are measured.
pub(crate) struct Gateways {
    /// For configurations, logs and scripts.
    pub(crate) folder: PathBuf,
    nginx: Server,
    sluicegate: Server,
    _origin: Server,
}

impl Gateways {
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        let folder = target().join("bench");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.join("sluicegate/conf"))?;
        let [origin, nginx, data, tls, admin] = free_ports()?;

        let start_nginx = |name: &str, cpu, port, http: String| {
            let path = folder.join(format!("{name}.conf"));
            fs::write(&path, nginx_configuration(&folder, name, &http))?;
            let mut command = pinned(cpu);
            command.arg("nginx").arg("-c").arg(path);
            command.arg("-e").arg(folder.join(format!("{name}.log")));
            Server::start(command, &folder, name, port)
        };
        let origin_server = start_nginx("origin", LOAD_CPU, origin, origin_http(origin))?;
        let nginx_server = start_nginx("nginx", GATEWAY_CPU, nginx, gateway_http(nginx, origin))?;

        let prefix = folder.join("sluicegate");
        let admin_key = random_key()?;
        fs::write(prefix.join("conf/config.yaml"), configuration(data, tls, admin, &admin_key))?;
        let mut command = pinned(GATEWAY_CPU);
        command.arg(binary).args(["start", "-p"]).arg(&prefix);
        let sluicegate = Server::start(command, &folder, "sluicegate", data)?;
        wait_for("the Admin API", || Ok(http::request(admin, "GET", "/", &[], "").is_ok()))?;
        for (id, route) in routes(origin) {
            put_route(admin, &admin_key, id, &route)?;
        }
        Ok(Self { folder, nginx: nginx_server, sluicegate, _origin: origin_server })
    }

    pub(crate) fn server(&self, gateway: Gateway) -> &Server {
        match gateway {
            Gateway::Nginx => &self.nginx,
            Gateway::Sluicegate => &self.sluicegate,
        }
    }
}

/// A started process that is asked to end when this is dropped, and forced to soon after.
pub(crate) struct Server {
    pub(crate) port: u16,
    child: Child,
}

impl Server {
    fn start(mut command: Command, folder: &Path, name: &str, port: u16) -> Result<Self> {
        let log = fs::File::create(folder.join(format!("{name}.out")))?;
        let child = command
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut server = Self { port, child };
        wait_for(name, || {
            // Looked at last: an answer could be a stranger's, on a port taken in between.
            let answers = http::request(port, "GET", "/", &[], "").is_ok();
            if let Some(status) = server.child.try_wait()? {
                let folder = folder.display();
                bail!("{name} ended with {status}; see {name}.out and {name}.log in {folder}");
            }
            Ok(answers)
        })?;
        Ok(server)
    }

    /// CPU time used so far, in clock ticks, of the process and all that came from it.
    pub(crate) fn cpu_ticks(&self) -> Result<u64> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            // A process may end between being listed and being read.
            let Ok(text) = fs::read_to_string(entry?.path().join("stat")) else { continue };
            processes.extend(ProcessTime::parse(&text));
        }
        let mut family = vec![self.child.id()];
        let mut ticks = 0;
        while let Some(id) = family.pop() {
            family.extend(processes.iter().filter(|p| p.parent == id).map(|p| p.id));
            ticks += processes.iter().find(|p| p.id == id).map_or(0, |p| p.ticks);
        }
        if ticks == 0 {
            bail!("process {} is gone or has not run", self.child.id());
        }
        Ok(ticks)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx's workers outlive a master that is killed, so it is asked first.
        let _ = program("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The start of a command on one CPU that ends with us, however we end.
pub(crate) fn pinned(cpu: &str) -> Command {
    let mut command = program("setpriv");
    command.args(["--pdeathsig", "TERM", "taskset", "--cpu-list", cpu]);
    command
}

struct ProcessTime {
    id: u32,
    parent: u32,
    /// User and system time.
    ticks: u64,
}

impl ProcessTime {
    /// Reads a line of /proc/PID/stat. The second field, the name in parentheses, may hold anything,
    /// parentheses and spaces included.
    fn parse(line: &str) -> Option<Self> {
        let (id, _) = line.split_once(' ')?;
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            id: id.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: number(11)? + number(12)?,
        })
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + START_TIME;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("{what} does not answer; see the logs in {}", target().join("bench").display());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let mut ports = [0; COUNT];
    // All are held until the last is found, or one could be given out twice.
    let mut listeners = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn random_key() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn put_route(admin: u16, admin_key: &str, id: &str, route: &str) -> Result<()> {
    let path = format!("/apisix/admin/routes/{id}");
    let headers = [("X-API-KEY", admin_key), ("Content-Type", "application/json")];
    let Answer { status, body } = http::request(admin, "PUT", &path, &headers, route)?;
    if status != 201 {
        bail!("the Admin API answers {status} to route {id}: {body}");
    }
    Ok(())
}

fn routes(origin: u16) -> [(&'static str, String); 3] {
    let function = |uri: &str, authorization: String| {
        format!(
            r#"{{"uri": "{uri}", "plugins": {{"aws-lambda": {{
                "function_uri": "http://127.0.0.1:{origin}/function{uri}",
                "authorization": {authorization}, "keepalive_pool": {POOL}}}}}}}"#
        )
    };
    let proxy = format!(
        r#"{{"uri": "/hello", "upstream": {{"type": "roundrobin", "pass_host": "node",
            "nodes": {{"127.0.0.1:{origin}": 1}}, "keepalive_pool": {{"size": {POOL},
            "idle_timeout": 60, "requests": 1000000000}}}}}}"#
    );
    let iam = format!(
        r#"{{"iam": {{"accesskey": "{ACCESS_KEY}", "secretkey": "bench+secret/key",
            "aws_region": "us-east-1", "service": "lambda"}}}}"#
    );
    [
        ("proxy", proxy),
        ("lambda-apikey", function("/apikey", format!(r#"{{"apikey": "{API_KEY}"}}"#))),
        ("lambda-iam", function("/iam", iam)),
    ]
}

fn configuration(data: u16, tls: u16, admin: u16, admin_key: &str) -> String {
    format!(
        "apisix:
  enable_control: false
  node_listen:
    - ip: 127.0.0.1
      port: {data}
  ssl:
    listen:
      - ip: 127.0.0.1
        port: {tls}
deployment:
  role: traditional
  role_traditional:
    config_provider: embedded
  admin:
    admin_listen:
      ip: 127.0.0.1
      port: {admin}
    admin_key:
      - name: admin
        key: {admin_key}
        role: admin
nginx_config:
  worker_processes: 1
  http:
    enable_access_log: false
"
    )
}

/// The origin refuses what does not carry what the gateway is there to add.
fn origin_http(port: u16) -> String {
    format!(
        r#"default_type application/json;
server {{
  listen 127.0.0.1:{port} backlog=4096;
  location / {{ return 200 '{ORIGIN_BODY}'; }}
  location = /function/apikey {{
    if ($http_x_api_key != "{API_KEY}") {{ return 403; }}
    return 200 '{ORIGIN_BODY}';
  }}
  location = /function/iam {{
    if ($http_authorization !~ "^AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/[0-9]+/us-east-1/lambda/aws4_request, ?SignedHeaders=[^,]+, ?Signature=[0-9a-f]+$") {{ return 403; }}
    if ($http_x_amz_date = "") {{ return 403; }}
    return 200 '{ORIGIN_BODY}';
  }}
}}"#
    )
}

fn gateway_http(port: u16, origin: u16) -> String {
    let function = |path: &str| {
        format!(
            r#"location = {path} {{
    proxy_pass http://origin/function/apikey;
    proxy_set_header Host 127.0.0.1:{origin};
    proxy_set_header Connection "";
    proxy_set_header X-Api-Key "{API_KEY}";
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $host;
    proxy_set_header X-Forwarded-Port $server_port;
  }}"#
        )
    };
    format!(
        r#"upstream origin {{ server 127.0.0.1:{origin}; keepalive {POOL}; keepalive_requests 1000000000; }}
server {{
  listen 127.0.0.1:{port} backlog=4096;
  proxy_http_version 1.1;
  {}
  {}
  location / {{
    proxy_pass http://origin;
    proxy_set_header Host 127.0.0.1:{origin};
    proxy_set_header Connection "";
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $host;
    proxy_set_header X-Forwarded-Port $server_port;
  }}
}}"#,
        function("/apikey"),
        function("/iam"),
    )
}

/// One worker, in the foreground, no access log, connections that are never ended for their age.
fn nginx_configuration(folder: &Path, name: &str, http: &str) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{name}-{kind};\n"))
        .concat();
    format!(
        "daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/{name}.pid;
events {{ worker_connections 8192; }}
http {{
access_log off;
keepalive_requests 1000000000;
keepalive_timeout 3600s;
{temporary}{http}
}}
"
    )
}

/// What the origin answers.
pub(crate) const ORIGIN_BODY: &str = r#""Hello, bench!""#;
const GATEWAY_CPU: &str = "0";
const API_KEY: &str = "bench-api-key";
const ACCESS_KEY: &str = "AKIDBENCH";
/// Idle connections kept to the origin; more than there are clients.
const POOL: u32 = 512;
const START_TIME: Duration = Duration::from_secs(15);
const STOP_TIME: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_line_is_read_past_any_name() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 100 0 0 0 13 29 5 6 20 0 1 0 9 1 1";
        let process = ProcessTime::parse(line).expect("the line is whole");
        assert_eq!((process.id, process.parent, process.ticks), (42, 7, 42));
        assert!(ProcessTime::parse("42 (short) S 7").is_none());
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports::<8>().expect("loopback has free ports").to_vec();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
    }
}

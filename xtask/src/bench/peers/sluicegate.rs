//! Ours, configured through its Admin API into the embedded store.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::super::admin::Admin;
use super::super::cases::{CONSUMERS, Log, Setup, Work};
use super::super::origin::{ACCESS_KEY, API_KEY, REGION, SECRET_KEY, SERVICE};
use super::super::server::{Launcher, Place, Server, free_ports};
use super::{Gateway, POOL, Stand};
use crate::command::output;

pub(super) fn start(stand: &Stand, setup: Setup, name: &str) -> Result<Gateway> {
    let prefix = Prefix::make(stand, setup, name)?;
    let server = prefix.start(stand.launcher, setup.place)?;
    configure(stand, setup.work, &prefix.admin)?;
    let port = if setup.work == Work::TlsDown { prefix.tls } else { prefix.data };
    Ok(Gateway { server, port })
}

/// A folder that the gateway can be started in, also more than once.
pub(crate) struct Prefix {
    folder: PathBuf,
    name: String,
    binary: PathBuf,
    pub(crate) data: u16,
    tls: u16,
    pub(crate) admin: Admin,
}

impl Prefix {
    pub(crate) fn make(stand: &Stand, setup: Setup, name: &str) -> Result<Self> {
        let folder = stand.folder.join(name);
        fs::create_dir_all(folder.join("conf"))?;
        let [data, tls, admin] = free_ports()?;
        let admin = Admin { port: admin, key: random_key()? };
        let text = configuration(stand, setup, data, tls, &admin);
        fs::write(folder.join("conf/config.yaml"), text)?;
        let binary = stand.programs.sluicegate.clone();
        Ok(Self { folder, name: name.to_owned(), binary, data, tls, admin })
    }

    /// The command that starts it, for who wants to time it.
    pub(crate) fn command(&self, launcher: Launcher, place: Place) -> Command {
        let mut command = launcher.command(place);
        command.arg(&self.binary).args(["start", "-p"]).arg(&self.folder);
        command
    }

    /// Starts it and waits for its listeners.
    pub(crate) fn start(&self, launcher: Launcher, place: Place) -> Result<Server> {
        let folder = self.folder.parent().context("the prefix lies in the stand's folder")?;
        let mut server = Server::spawn(self.command(launcher, place), folder, &self.name)?;
        server.wait_for_port(self.data)?;
        server.wait_for_port(self.admin.port)?;
        Ok(server)
    }

    /// Stores a configuration, in APISIX's standalone form, while no gateway runs: in its own store,
    /// or where `to` says.
    pub(crate) fn import(&self, configuration: &str, to: &[&str]) -> Result<()> {
        let file = self.folder.join("import.json");
        fs::write(&file, configuration)?;
        let mut command = Command::new(&self.binary);
        command.args(["config", "import"]).arg(&file).arg("-p").arg(&self.folder).args(to);
        output(&mut command)?;
        Ok(())
    }

    /// The next start reads the configuration from this etcd.
    pub(crate) fn use_etcd(&self, host: &str) -> Result<()> {
        let file = self.folder.join("conf/config.yaml");
        let embedded = "    config_provider: embedded\n";
        let etcd = format!("    config_provider: etcd\n  etcd:\n    host: ['{host}']\n");
        Ok(fs::write(&file, fs::read_to_string(&file)?.replace(embedded, &etcd))?)
    }

    pub(crate) fn parent(&self) -> &std::path::Path {
        self.folder.parent().unwrap_or(&self.folder)
    }
}

fn configure(stand: &Stand, work: Work, admin: &Admin) -> Result<()> {
    let port = stand.origin.port(work.origin_has_tls());
    let others = work.plugins();
    if others.iter().any(|(name, _)| *name == "key-auth") {
        admin.put_many(CONSUMERS, |index| {
            let consumer = format!(
                r#"{{"username": "bench{index}", "plugins": {{"key-auth": {{"key": "key-{index}"}}}}}}"#
            );
            (format!("/consumers/bench{index}"), consumer)
        })?;
    }
    let lua = work
        .lua()
        .map(|source| format!(r#""serverless-pre-function": {{"functions": ["{source}"]}}"#));
    let others = others.iter().map(|(name, config)| format!(r#""{name}": {config}"#)).chain(lua);
    let others: Vec<String> = others.collect();
    let others = others.join(", ");
    match (work, work.function_path()) {
        (_, Some(path)) => {
            let scheme = if work.origin_has_tls() { "https" } else { "http" };
            let authorization = match work {
                Work::LambdaApikey => format!(r#"{{"apikey": "{API_KEY}"}}"#),
                _ => format!(
                    r#"{{"iam": {{"accesskey": "{ACCESS_KEY}", "secretkey": "{SECRET_KEY}",
                        "aws_region": "{REGION}", "service": "{SERVICE}"}}}}"#
                ),
            };
            let event = match work {
                Work::LambdaEvent(format) => format!(r#""request_format": "{format}", "#),
                _ => String::new(),
            };
            let comma = if others.is_empty() { "" } else { ", " };
            let route = format!(
                r#"{{"uri": "/invoke", "plugins": {{{others}{comma}"aws-lambda": {{{event}
                    "function_uri": "{scheme}://127.0.0.1:{port}{path}",
                    "authorization": {authorization}, "keepalive_pool": {POOL}}}}}}}"#
            );
            admin.put("/routes/function", &route)?;
        }
        (Work::Routes { count, .. }, _) if count > 1 => {
            admin.put("/upstreams/origin", &upstream(port, false))?;
            admin.put_many(count, |index| {
                let route = format!(r#"{{"uri": "/svc/{index}/*", "upstream_id": "origin"}}"#);
                (format!("/routes/{index}"), route)
            })?;
        }
        _ => {
            let upstream = upstream(port, work.origin_has_tls());
            let route =
                format!(r#"{{"uri": "/*", "plugins": {{{others}}}, "upstream": {upstream}}}"#);
            admin.put("/routes/origin", &route)?;
        }
    }
    if work == Work::TlsDown {
        let pem = |file| -> Result<String> { Ok(fs::read_to_string(file)?.replace('\n', "\\n")) };
        let (leaf, key) = (pem(&stand.certificates.leaf)?, pem(&stand.certificates.key)?);
        let ssl = format!(r#"{{"snis": ["localhost"], "cert": "{leaf}", "key": "{key}"}}"#);
        admin.put("/ssls/localhost", &ssl)?;
    }
    Ok(())
}

/// An upstream whose only node is the origin.
pub(crate) fn upstream(port: u16, tls: bool) -> String {
    let tls = if tls { r#""scheme": "https", "tls": {"verify": true}, "# } else { "" };
    format!(
        r#"{{"type": "roundrobin", "pass_host": "node", {tls}"nodes": {{"127.0.0.1:{port}": 1}},
            "keepalive_pool": {{"size": {POOL}, "idle_timeout": 60, "requests": 1000000000}}}}"#
    )
}

fn configuration(stand: &Stand, setup: Setup, data: u16, tls: u16, admin: &Admin) -> String {
    let log = match (setup.log, setup.log.format()) {
        (Log::Json, Some(format)) => format!(
            "    enable_access_log: true\n    access_log_format_escape: json\n    \
             access_log_format: '{format}'\n"
        ),
        (Log::Off, _) => "    enable_access_log: false\n".to_owned(),
        _ => "    enable_access_log: true\n".to_owned(),
    };
    format!(
        "apisix:
  enable_control: false
  node_listen:
    - ip: 127.0.0.1
      port: {data}
  ssl:
    ssl_trusted_certificate: {authority}
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
      port: {admin_port}
    admin_key:
      - name: admin
        key: {admin_key}
        role: admin
nginx_config:
  worker_processes: {workers}
  http:
{log}",
        authority = stand.certificates.authority.display(),
        admin_port = admin.port,
        admin_key = admin.key,
        workers = setup.workers,
    )
}

fn random_key() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

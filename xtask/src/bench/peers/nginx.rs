//! nginx as a gateway, and what the origin shares with it.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::super::cases::{Log, Setup, Work};
use super::super::origin::{API_KEY, Certificates};
use super::super::server::{Launcher, Place, Server, free_ports};
use super::{Gateway, POOL, Stand};

pub(super) fn start(stand: &Stand, setup: Setup, name: &str) -> Result<Gateway> {
    let [port] = free_ports()?;
    let origin = stand.origin.port(setup.work.origin_has_tls());
    let Stand { folder, launcher, .. } = stand;
    let log = folder.join(format!("{name}.access.log"));
    let (log_format, access_log) = match (setup.log, setup.log.format()) {
        (_, None) => (String::new(), String::new()),
        (kind, Some(format)) => {
            let escape = if kind == Log::Json { "escape=json " } else { "" };
            (
                format!("log_format line {escape}'{format}';\n"),
                format!("access_log {} line buffer=16k;", log.display()),
            )
        }
    };
    let server = server_block(setup.work, port, origin, &stand.certificates, &access_log);
    let text = log_format + &server;
    let mut server = spawn(folder, name, *launcher, setup.place, setup.workers, &text)?;
    server.wait_for_port(port)?;
    Ok(Gateway { server, port })
}

/// Starts nginx in the foreground with this `http` block: no access log, and connections that are
/// never ended for their age.
pub(crate) fn spawn(
    folder: &Path,
    name: &str,
    launcher: Launcher,
    place: Place,
    workers: u32,
    http: &str,
) -> Result<Server> {
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", file(kind).display()))
        .concat();
    let text = format!(
        "daemon off;
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {};
events {{ worker_connections 8192; }}
http {{
access_log off;
keepalive_requests 1000000000;
keepalive_timeout 3600s;
{temporary}{http}
}}
",
        file("pid").display()
    );
    fs::write(file("conf"), text)?;
    let mut command = launcher.command(place);
    command.arg("nginx").arg("-c").arg(file("conf")).arg("-e").arg(file("log"));
    Server::spawn(command, folder, name)
}

fn server_block(
    work: Work,
    port: u16,
    origin: u16,
    files: &Certificates,
    access_log: &str,
) -> String {
    let Certificates { authority, leaf, key, .. } = files;
    let listen = match work {
        Work::TlsDown => format!(
            "listen 127.0.0.1:{port} ssl backlog=4096; ssl_certificate {}; ssl_certificate_key {};",
            leaf.display(),
            key.display()
        ),
        Work::H2cDown => format!(
            "listen 127.0.0.1:{port} http2 backlog=4096; http2_max_concurrent_streams 1024;"
        ),
        _ => format!("listen 127.0.0.1:{port} backlog=4096;"),
    };
    let scheme = if work.origin_has_tls() { "https" } else { "http" };
    let verify = if work.origin_has_tls() {
        let authority = authority.display();
        format!(
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate {authority}; \
             proxy_ssl_name localhost; proxy_ssl_server_name on;"
        )
    } else {
        String::new()
    };
    let streamed = match work {
        Work::BigBody => {
            "client_max_body_size 8m; proxy_request_buffering off; proxy_buffering off; \
             proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;"
        }
        _ => "",
    };
    let locations = match (work, work.function_path()) {
        (Work::Routes { count, .. }, _) if count > 1 => (0..count)
            .map(|index| format!("location /svc/{index}/ {{ proxy_pass http://origin; }}\n"))
            .collect(),
        (_, Some(path)) => format!(
            "proxy_set_header X-Api-Key \"{API_KEY}\";
  location = /invoke {{ proxy_pass {scheme}://origin{path}; }}"
        ),
        _ => format!("location / {{ proxy_pass {scheme}://origin; }}"),
    };
    // The headers that Sluicegate, as APISIX, adds on its own.
    format!(
        "upstream origin {{ server 127.0.0.1:{origin}; keepalive {POOL}; keepalive_requests 1000000000; }}
server {{
  {listen}
  {access_log}
  proxy_http_version 1.1;
  proxy_set_header Connection \"\";
  proxy_set_header Host 127.0.0.1:{origin};
  proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header X-Forwarded-Host $host;
  proxy_set_header X-Forwarded-Port $server_port;
  {verify}
  {streamed}
  {locations}
}}"
    )
}

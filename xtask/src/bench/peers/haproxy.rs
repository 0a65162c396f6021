//! HAProxy as a gateway.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use super::super::cases::{Setup, Work};
use super::super::origin::API_KEY;
use super::super::server::{Server, free_ports};
use super::{Gateway, Stand};

pub(super) fn start(stand: &Stand, setup: Setup, name: &str) -> Result<Gateway> {
    let [port] = free_ports()?;
    let path = stand.folder.join(format!("{name}.conf"));
    let mut text = format!(
        "global
  nbthread {}
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend clients
  bind 127.0.0.1:{port}{}
",
        setup.workers,
        match setup.work {
            Work::TlsDown => format!(" ssl crt {}", stand.certificates.both.display()),
            Work::H2cDown => " proto h2".to_owned(),
            _ => String::new(),
        }
    );
    let origin = stand.origin.port(setup.work.origin_has_tls());
    for header in [
        "X-Forwarded-Host %[req.hdr(host)]",
        &format!("Host 127.0.0.1:{origin}"),
        "X-Real-IP %[src]",
        "X-Forwarded-For %[src]",
        "X-Forwarded-Proto http",
        &format!("X-Forwarded-Port {port}"),
    ] {
        writeln!(text, "  http-request set-header {header}")?;
    }
    if let Some(path) = setup.work.function_path() {
        writeln!(text, "  http-request set-path {path}")?;
        writeln!(text, "  http-request set-header X-Api-Key {API_KEY}")?;
    }
    let mut backends = 1;
    if let Work::Routes { count, .. } = setup.work {
        backends = ROUTE_BACKENDS.min(count);
        let map = stand.folder.join(format!("{name}.map"));
        let lines: String =
            (0..count).map(|i| format!("/svc/{i}/ origin{}\n", i % backends)).collect();
        fs::write(&map, lines)?;
        writeln!(text, "  use_backend %[path,map_beg({},origin0)]", map.display())?;
    } else {
        writeln!(text, "  default_backend origin0")?;
    }
    let tls = if setup.work.origin_has_tls() {
        let authority = stand.certificates.authority.display();
        format!(" ssl verify required ca-file {authority} sni str(localhost) verifyhost localhost")
    } else {
        String::new()
    };
    for index in 0..backends {
        writeln!(text, "backend origin{index}\n  server origin 127.0.0.1:{origin}{tls}")?;
    }
    fs::write(&path, text)?;
    let mut command = stand.launcher.command(setup.place);
    command.args(["haproxy", "-db", "-f"]).arg(path);
    let mut server = Server::spawn(command, &stand.folder, name)?;
    server.wait_for_port(port)?;
    Ok(Gateway { server, port })
}

/// A map leads to backends; it need not lead each path to its own.
const ROUTE_BACKENDS: u32 = 16;

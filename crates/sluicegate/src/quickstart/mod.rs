//! `sluicegate quickstart`: a gateway, a stand-in for AWS and the routes between them, on
//! loopback, from one command.
//!
//! It is the ordinary gateway on an ordinary folder. What is particular to it is written before
//! the start ([`files`]) or through the Admin API after it, as a person would; nothing in the data
//! plane knows that this AWS is local. What a second run finds, it leaves alone: it creates only
//! what is missing.

mod admin;
mod files;
mod screen;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use sluicegate_config::{AdminRole, Config};
use sluicegate_standin::{InvokeApi, InvokeSettings, Settings, Standin, StartError, samples};

use crate::boot::{self, Running};
use crate::cli::Place;
use crate::settings::INTERRUPT_GRACE;
use crate::signals;
use admin::Admin;
use files::{Files, Local};
use screen::Screen;

#[derive(Args)]
pub(crate) struct Options {
    /// Folder of everything the quickstart keeps; delete it to start anew
    #[arg(short = 'p', long = "prefix", default_value = "quickstart", value_name = "FOLDER")]
    prefix: PathBuf,
    /// In a new folder, use the nine ports from N on instead of 9080, 9081, 9443, 9180, 9190 and 1980-1983
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65527))]
    ports_from: Option<u16>,
}

/// Serves until a signal ends it.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let place = Place::new(options.prefix.clone());
    let files = Files::read_or_make(&place, options.ports_from)?;
    check_ports(&files, &place)?;
    files.write()?;
    let (running, signals) = Running::start(&place)?;
    let standin = match prepare(&running, &files.local) {
        Ok(standin) => standin,
        Err(error) => {
            running.drain(INTERRUPT_GRACE);
            return Err(error);
        }
    };
    let screen = Screen {
        listen: running.addrs(),
        admin: running.admin_addr,
        local: &files.local,
        folder: place.shown(),
        program: std::env::args().next().unwrap_or_else(|| "sluicegate".to_owned()),
    };
    screen::print(&screen.text());
    signals::serve(running, signals)?;
    // It outlived the gateway's last request.
    drop(standin);
    screen::print("\nStopped. The same command goes on with the same keys and routes.\n");
    Ok(())
}

/// Starts the stand-in and creates what is missing of certificate and routes.
fn prepare(running: &Running, local: &Local) -> anyhow::Result<(Standin, InvokeApi)> {
    let settings = Settings {
        api_gateway: local.api_gateway,
        function_url: local.function_url,
        origin: local.origin,
        api_key: local.api_key.expose().into(),
        access_key: local.access_key.clone(),
        secret_key: local.secret_key.expose().into(),
        region: REGION.to_owned(),
        service: SERVICE.to_owned(),
        clock: boot::unix_now,
    };
    let functions = InvokeSettings {
        addr: local.invoke_api,
        access_key: local.access_key.clone(),
        secret_key: local.secret_key.expose().into(),
        session_token: None,
        region: REGION.to_owned(),
        account_id: ACCOUNT.to_owned(),
        clock: boot::unix_now,
        functions: samples(),
    };
    let standin = running.runtime.block_on(async {
        let fronts = Standin::start(settings).await?;
        Ok::<_, StartError>((fronts, InvokeApi::start_unrecorded(functions).await?))
    })?;
    let Some(addr) = running.admin_addr else {
        eprintln!(
            "sluicegate: the Admin API is off (apisix.enable_admin): routes stay as they are"
        );
        return Ok(standin);
    };
    let keys = &running.config.deployment.admin.admin_key;
    let key = keys.iter().find(|key| key.role == AdminRole::Admin);
    let key = key.map_or("", |key| key.key.expose());
    let admin = Admin { addr: loopback(addr), key };
    admin.create_missing("ssls/quickstart", certificate)?;
    for (id, route) in routes(local) {
        admin.create_missing(&format!("routes/{id}"), || Ok(route))?;
    }
    Ok(standin)
}

/// The routes; number 1 is the one that the documentation's examples change.
fn routes(local: &Local) -> [(&'static str, Value); 6] {
    let Local { api_gateway, function_url, invoke_api, origin, .. } = local;
    let apikey = json!({"apikey": local.api_key.expose()});
    let iam = json!({"iam": {
        "accesskey": local.access_key,
        "secretkey": local.secret_key.expose(),
        "aws_region": REGION,
        "service": SERVICE,
    }});
    let lambda = |uri: &str, desc: &str, function_uri: String, authorization: &Value| {
        let function = json!({"function_uri": function_uri, "authorization": authorization});
        json!({"uri": uri, "desc": desc, "plugins": {"aws-lambda": function}})
    };
    let by_name = |uri: &str, desc: &str, name: &str, invocation: &str| {
        let endpoint = format!("http://{invoke_api}");
        let function = json!({
            "function": {"name": name, "region": REGION, "endpoint": endpoint},
            "invocation": invocation,
            "authorization": iam,
        });
        json!({"uri": uri, "desc": desc, "plugins": {"aws-lambda": function}})
    };
    [
        (
            "1",
            lambda(
                "/aws",
                "API Gateway with an API key",
                format!("http://{api_gateway}{FUNCTION}"),
                &apikey,
            ),
        ),
        (
            "quickstart-iam",
            lambda(
                "/aws-iam",
                "a function URL, calls signed with IAM keys",
                format!("http://{function_url}/"),
                &iam,
            ),
        ),
        (
            "quickstart-path",
            lambda(
                "/aws-path/*",
                "the rest of the path goes to API Gateway",
                format!("http://{api_gateway}"),
                &apikey,
            ),
        ),
        (
            "quickstart-function",
            by_name("/aws-function", "a function by its name, by the Invoke API", "greet", "sync"),
        ),
        (
            "quickstart-stream",
            by_name("/aws-stream", "a function that answers in pieces", "count", "stream"),
        ),
        (
            "quickstart-origin",
            json!({
                "uri": "/origin/*",
                "desc": "a plain upstream",
                "upstream": {"type": "roundrobin", "nodes": {origin.to_string(): 1}},
            }),
        ),
    ]
}

/// A self-signed certificate for this machine's own names.
fn certificate() -> anyhow::Result<Value> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let make = || {
        let mut params = rcgen::CertificateParams::new(names)?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
        let key = rcgen::KeyPair::generate()?;
        Ok::<_, rcgen::Error>((params.self_signed(&key)?, key))
    };
    let (cert, key) = make().context("no certificate could be made")?;
    Ok(json!({"snis": ["localhost"], "cert": cert.pem(), "key": key.serialize_pem()}))
}

/// Names every port that somebody else has, before anything is made or started.
fn check_ports(files: &Files, place: &Place) -> anyhow::Result<()> {
    let mut taken = String::new();
    for (addr, what, key) in ports(&files.config, &files.local) {
        if addr.port() == 0 {
            continue;
        }
        match TcpListener::bind(addr) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                taken += &format!("\n  {:<21} {what:<27} {key}", addr.to_string());
            }
            Err(error) => bail!("cannot listen on {addr} ({what}, {key}): {error}"),
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let folder = place.shown();
    if let Some(pid) = already_running(place) {
        bail!("a gateway runs from {folder} already; `kill {pid}` ends it");
    }
    let instead = match files.are_new() {
        true => "choose others with `--ports-from 20000`".to_owned(),
        false => format!("choose others in {folder}"),
    };
    bail!(
        "other programs have these ports; stop them (`ss -ltnp` names them), or {instead}:{taken}"
    )
}

/// Every address with what it is for and where it is set.
fn ports(config: &Config, local: &Local) -> Vec<(SocketAddr, &'static str, &'static str)> {
    let admin = config.apisix.enable_admin.then_some(config.deployment.admin.admin_listen);
    let set =
        |addrs: Vec<SocketAddr>, what, key| addrs.into_iter().map(move |addr| (addr, what, key));
    set(config.http_addrs(), "gateway, HTTP", "conf/config.yaml: apisix.node_listen")
        .chain(set(config.https_addrs(), "gateway, HTTPS", "conf/config.yaml: apisix.ssl.listen"))
        .chain(set(
            Vec::from_iter(admin),
            "Admin API",
            "conf/config.yaml: deployment.admin.admin_listen",
        ))
        .chain(set(
            Vec::from_iter(config.apisix.control),
            "control API",
            "conf/config.yaml: apisix.control",
        ))
        .chain(set(
            vec![local.api_gateway],
            "stand-in for API Gateway",
            "standin.json: api_gateway",
        ))
        .chain(set(
            vec![local.function_url],
            "stand-in for a function URL",
            "standin.json: function_url",
        ))
        .chain(set(
            vec![local.invoke_api],
            "stand-in for the Invoke API",
            "standin.json: invoke_api",
        ))
        .chain(set(vec![local.origin], "plain origin", "standin.json: origin"))
        .collect()
}

/// The process of a gateway that runs from this folder.
fn already_running(place: &Place) -> Option<i32> {
    let number = std::fs::read_to_string(place.pid_file()).ok()?.trim().parse().ok()?;
    test_kill_process(Pid::from_raw(number)?).ok().map(|()| number)
}

/// An address to connect to, for one to listen on.
fn loopback(mut addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => addr.set_ip([127, 0, 0, 1].into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            addr.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
        }
        _ => {}
    }
    addr
}

/// What the stand-in's function URL wants calls signed for.
const REGION: &str = "us-east-1";
const SERVICE: &str = "lambda";
/// The account of its functions.
const ACCOUNT: &str = "123456789012";
/// Stage and resource of the stand-in's API Gateway; it takes any.
const FUNCTION: &str = "/default/hello";

//! `memory`: what an idle gateway, idle clients and a long run with changing configuration keep.

use std::time::Duration;

use anyhow::{Context, Result};

use super::admin::{Admin, at_once};
use super::cases::{HEADERS, Setup, Work};
use super::http::Connection;
use super::load::Load;
use super::peers::sluicegate::{Prefix, upstream};
use super::peers::{Peer, Stand};
use super::report::{Facts, Report};
use crate::command::{output, program};

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) clients: u32,
    pub(crate) requests: u64,
    pub(crate) changes: u32,
}

pub(crate) fn run(stand: &Stand, amounts: Amounts, report: &mut Report) -> Result<()> {
    let mut facts = Facts::new("memory");
    let setup = Setup::new(Peer::Sluicegate, Work::Proxy);
    let prefix = Prefix::make(stand, setup, "memory")?;
    let server = prefix.start(stand.launcher, setup.place)?;
    let route =
        format!(r#"{{"uri": "/hello", "upstream": {}}}"#, upstream(stand.origin.http, false));
    prefix.admin.put("/routes/hello", &route)?;
    let load = Load { stand, setup, port: prefix.data };
    super::server::wait_for("the route", || Ok(load.check().is_ok()))?;
    std::thread::sleep(SETTLE);
    facts.add(report, "idle, one route", server.memory()?.rss_mib(), "MiB", Some(20.0));

    let clients = idle_clients(prefix.data, amounts.clients)?;
    std::thread::sleep(SETTLE);
    let what = format!("{} idle keep-alive clients, each after one request", clients.len());
    facts.add(report, &what, server.memory()?.rss_mib(), "MiB", Some(120.0));
    drop(clients);

    // Anew: room that the clients left would hide growth.
    drop(server);
    let server = prefix.start(stand.launcher, setup.place)?;
    super::server::wait_for("the route", || Ok(load.check().is_ok()))?;
    let (mut after_tenth, mut all_errors) = (0.0, 0);
    for tenth in 1..=10 {
        let changes = amounts.changes / 10;
        let errors = std::thread::scope(|scope| -> Result<u64> {
            let changing = scope.spawn(|| change(&prefix.admin, tenth, changes, stand.origin.http));
            let count = load.counted(amounts.requests / 10)?;
            changing.join().ok().context("a writer panicked")??;
            Ok(count.errors)
        })?;
        all_errors += errors;
        std::thread::sleep(SETTLE);
        let rss = server.memory()?.rss_mib();
        let what = format!(
            "after {} requests ({errors} errors in this tenth) and {} changes",
            amounts.requests / 10 * tenth,
            u64::from(changes) * tenth
        );
        let bar = (tenth == 10).then_some(after_tenth + GROWTH_MIB_MAX);
        facts.add_beside(report, all_errors, &what, (rss, "MiB"), bar);
        if tenth == 1 {
            after_tenth = rss;
        }
    }
    Ok(())
}

/// Connections that have had one answer each and stay.
fn idle_clients(port: u16, count: u32) -> Result<Vec<Connection>> {
    let limit = format!("--nofile={}:", count + 1000);
    output(program("prlimit").args(["--pid", &std::process::id().to_string(), &limit]))?;
    let open = || -> Result<Connection> {
        let mut connection = Connection::open(port)?;
        connection.request("GET", "/hello?a=1", HEADERS, b"")?;
        Ok(connection)
    };
    (0..count).map(|index| open().with_context(|| format!("client {index}"))).collect()
}

/// Routes come and go, never more than `ROUTES_MAX` per writer, some with a function plugin.
fn change(admin: &Admin, tenth: u64, changes: u32, origin: u16) -> Result<()> {
    at_once(CHANGERS, |writer| {
        let mut session = admin.open()?;
        for step in 0..changes / CHANGERS / 2 {
            let path = format!("/routes/soak-{writer}-{}", step % ROUTES_MAX);
            let body = if step % 2 == 0 {
                format!(
                    r#"{{"uri": "/soak/{writer}/{tenth}/{step}", "upstream": {}}}"#,
                    upstream(origin, false)
                )
            } else {
                format!(
                    r#"{{"uri": "/soak/{writer}/{tenth}/{step}/*", "plugins": {{"aws-lambda": {{
                        "function_uri": "http://127.0.0.1:{origin}/function/apikey",
                        "authorization": {{"apikey": "key-{step}"}}}}}}}}"#
                )
            };
            session.put(&path, &body)?;
            // Two changes a step: an old one goes where a new one comes.
            let old = format!("/routes/soak-{writer}-{}", (step + 1) % ROUTES_MAX);
            if step + 1 >= ROUTES_MAX {
                session.delete(&old)?;
            } else {
                session.put(&path, &body.replace("/soak/", "/soaked/"))?;
            }
        }
        // The next tenth starts from none.
        for step in 0..ROUTES_MAX {
            let _ = session.delete(&format!("/routes/soak-{writer}-{step}"));
        }
        Ok(())
    })
}

const CHANGERS: u32 = 8;
const ROUTES_MAX: u32 = 100;
const GROWTH_MIB_MAX: f64 = 2.0;
const SETTLE: Duration = Duration::from_secs(2);

//! `start`: from exec to the first answer, with configuration in the embedded store.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cases::{Setup, Work, route_path};
use super::http;
use super::peers::sluicegate::{Prefix, upstream};
use super::peers::{Peer, Stand};
use super::report::{Facts, Report, median};
use super::server::{Launcher, Place, Server};

pub(crate) fn run(stand: &Stand, rounds: u32, report: &mut Report) -> Result<()> {
    let mut facts = Facts::new("start");
    let setup = Setup::new(Peer::Sluicegate, Work::Routes { count: ROUTES, paths: ROUTES });
    let prefix = Prefix::make(stand, setup, "start")?;
    let server = prefix.start(stand.launcher, setup.place)?;
    prefix.admin.put("/upstreams/origin", &upstream(stand.origin.http, false))?;
    prefix.admin.put_many(ROUTES, |index| {
        let route = format!(r#"{{"uri": "/svc/{index}/*", "upstream_id": "origin"}}"#);
        (format!("/routes/{index}"), route)
    })?;
    drop(server);
    let mut times = Vec::new();
    for _ in 0..rounds {
        let (server, time) =
            first_answer(&prefix, stand.launcher, setup.place, &route_path(ROUTES - 1))?;
        times.push(time.as_secs_f64() * 1e3);
        drop(server);
    }
    let most = times.iter().copied().fold(0.0, f64::max);
    let what = format!("exec to first answer, {ROUTES} routes, median of {rounds} starts");
    facts.add(report, &what, median(times), "ms", Some(100.0));
    facts.add(report, "the slowest of them", most, "ms", None);
    Ok(())
}

/// Starts a gateway whose store is filled, and asks until `path` is answered with 200.
pub(crate) fn first_answer(
    prefix: &Prefix,
    launcher: Launcher,
    place: Place,
    path: &str,
) -> Result<(Server, Duration)> {
    let command = prefix.command(launcher, place);
    let start = Instant::now();
    let mut server = Server::spawn(command, prefix.parent(), "restarted")?;
    loop {
        if let Ok(answer) = http::request(prefix.data, "GET", path, &[], b"")
            && answer.status == 200
        {
            return Ok((server, start.elapsed()));
        }
        server.must_run()?;
        if start.elapsed() > START_TIME_MAX {
            bail!("no answer {} s after the start", START_TIME_MAX.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

const ROUTES: u32 = 1000;
const START_TIME_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_micros(500);

//! `config`: what 100,000 routes and 10,000 upstreams cost, and a change among them.
//!
//! The gateway has one worker and, unlike in the cases, every CPU: changes are made and compiled
//! beside the requests.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::admin::{Admin, WRITERS, at_once};
use super::cases::{Setup, Work, route_path};
use super::http::Connection;
use super::load::{Latency, Load, Random, percentile};
use super::peers::sluicegate::{Prefix, upstream};
use super::peers::{Peer, Stand};
use super::report::{Facts, Report, median};
use super::server::{Place, Server, free_ports, ticks_per_second, wait_for};
use super::start::first_answer;
use crate::command::on_path;

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) routes: u32,
    pub(crate) upstreams: u32,
    /// Seconds of 1,000 changes a second.
    pub(crate) change_seconds: u32,
    /// Requests a second beside them.
    pub(crate) rate: u32,
}

pub(crate) fn run(stand: &Stand, amounts: Amounts, report: &mut Report) -> Result<()> {
    let Amounts { routes, upstreams, .. } = amounts;
    if routes <= FEW_ROUTES {
        bail!("`config` compares with {FEW_ROUTES} routes and takes more");
    }
    let mut facts = Facts::new("config");
    let setup = Setup {
        place: Place::Anywhere,
        ..Setup::new(Peer::Sluicegate, Work::Routes { count: routes, paths: routes })
    };
    let prefix = Prefix::make(stand, setup, "config")?;
    let upstream = upstream(stand.origin.http, false);
    let subject = |server| Subject {
        admin: &prefix.admin,
        server,
        data: prefix.data,
        amounts,
        upstream: upstream.clone(),
    };
    let gateway = subject(prefix.start(stand.launcher, setup.place)?);
    let mut add = |what: &str, value, unit: &str, bar| facts.add(report, what, value, unit, bar);

    // One request, so that what the first one brings is there.
    Connection::open(prefix.data)?.request("GET", "/", &[], b"")?;
    std::thread::sleep(SETTLE);
    let empty = gateway.rss_kib()?;
    add("RSS, nothing configured", empty / 1024.0, "MiB", None);

    gateway.load_upstreams(gateway.upstream_of(FEW_ROUTES) + 1)?;
    gateway.load_routes(FEW_ROUTES)?;
    gateway.wait_for_route(FEW_ROUTES - 1)?;
    let few_us = gateway.change_cpu_us(FEW_ROUTES)?;
    add(&format!("CPU of a PUT among {FEW_ROUTES} routes"), few_us, "µs", None);

    let all = gateway.configuration(routes);
    let few = gateway.configuration(FEW_ROUTES);
    drop(gateway);
    prefix.import(&few, &[])?;
    let start = || first_answer(&prefix, stand.launcher, setup.place, &route_path(FEW_ROUTES - 1));
    let few = {
        let gateway = subject(start()?.0);
        std::thread::sleep(SETTLE);
        gateway.rss_kib()?
    };
    add(
        &format!("RSS with {upstreams} upstreams and {FEW_ROUTES} routes"),
        few / 1024.0,
        "MiB",
        None,
    );

    let begun = Instant::now();
    prefix.import(&all, &[])?;
    let what = format!("`config import` of {routes} routes into the store");
    add(&what, begun.elapsed().as_secs_f64(), "s", None);
    let (server, embedded_s) = starts(stand, &prefix, setup, routes)?;
    let what = format!("exec to first answer from the embedded store, median of {STARTS}");
    add(&what, embedded_s, "s", Some(5.0));
    let subject = subject(server);
    std::thread::sleep(SETTLE);
    let full = subject.rss_kib()?;
    add("RSS with all, after a start", full / 1024.0, "MiB", None);
    let per_route = (full - few) / f64::from(routes - FEW_ROUTES);
    add("RSS per plain route", per_route, "KiB", Some(2.0));
    let all_per_route = |rss: f64| (rss - empty) / f64::from(routes);
    let what = "the same, with the upstreams counted as the routes'";
    add(what, all_per_route(full), "KiB", Some(2.0));

    let many_us = subject.change_cpu_us(routes)?;
    add(&format!("CPU of a PUT among {routes} routes"), many_us, "µs", Some(few_us * 3.0));
    let seen = subject.visible_ms()?;
    let what = format!("from the answer of a PUT until requests see it, median of {}", seen.len());
    add(&what, median(seen.iter().copied()), "ms", None);
    add("the same, p99", percentile(&seen, 0.99), "ms", Some(50.0));

    let load = Load { stand, setup, port: prefix.data };
    let idle = load.paced(amounts.rate, amounts.change_seconds.div_ceil(2))?;
    add("request p99 without changes", idle.p99, "µs", None);
    let (under, changes) = subject.requests_under_changes(load)?;
    add("changes a second meanwhile", changes.per_second, "/s", None);
    add("the answer of such a change, p99", percentile(&changes.answer_ms, 0.99), "ms", None);
    let errors = idle.errors + under.errors;
    let (what, p99) = ("request p99 under changes", (under.p99, "µs"));
    facts.add_beside(report, errors, what, p99, Some(idle.p99 * 1.5));
    let mut add = |what: &str, value, unit: &str, bar| facts.add(report, what, value, unit, bar);
    add("requests not answered with 200 meanwhile", under.errors as f64, "errors", Some(0.0));
    add("RSS after all that", subject.rss_kib()? / 1024.0, "MiB", None);

    drop(subject);
    let Some((etcd, url)) = start_etcd(stand, setup)? else {
        eprintln!(
            "config: no etcd on the path (Debian's etcd-server): starts from it are left out"
        );
        return Ok(());
    };
    let begun = Instant::now();
    prefix.import(&all, &["--etcd", &url])?;
    let what = format!("`config import` of {routes} routes into etcd");
    add(&what, begun.elapsed().as_secs_f64(), "s", None);
    prefix.use_etcd(&url)?;
    let (server, etcd_s) = starts(stand, &prefix, setup, routes)?;
    let what = format!("exec to first answer from etcd, median of {STARTS}");
    add(&what, etcd_s, "s", Some(5.0));
    std::thread::sleep(SETTLE);
    let rss = server.memory()?.rss_kib as f64;
    let what = "RSS per plain route from etcd, with the upstreams counted as the routes'";
    add(what, all_per_route(rss), "KiB", None);
    drop((server, etcd));
    Ok(())
}

/// Some starts: the last gateway, and the median of the seconds until each answered.
fn starts(stand: &Stand, prefix: &Prefix, setup: Setup, routes: u32) -> Result<(Server, f64)> {
    let mut times = Vec::new();
    loop {
        let last = route_path(routes - 1);
        let (server, time) = first_answer(prefix, stand.launcher, setup.place, &last)?;
        times.push(time.as_secs_f64());
        if times.len() == STARTS {
            return Ok((server, median(times)));
        }
        std::thread::sleep(SETTLE);
    }
}

/// An etcd of one member and its address; `None` where there is no etcd.
fn start_etcd(stand: &Stand, setup: Setup) -> Result<Option<(Server, String)>> {
    if on_path("etcd").is_none() {
        return Ok(None);
    }
    let [client, peer] = free_ports()?;
    let url = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let mut command = stand.launcher.command(setup.place);
    command.arg("etcd").arg("--data-dir").arg(stand.folder.join("etcd-data"));
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    let mut server = Server::spawn(command, &stand.folder, "etcd")?;
    server.wait_for_port(client)?;
    Ok(Some((server, url)))
}

/// The gateway under change.
struct Subject<'a> {
    admin: &'a Admin,
    server: Server,
    data: u16,
    amounts: Amounts,
    upstream: String,
}

/// What a stretch of steady changes came to.
struct Changes {
    per_second: f64,
    answer_ms: Vec<f64>,
}

impl Subject<'_> {
    fn rss_kib(&self) -> Result<f64> {
        Ok(self.server.memory()?.rss_kib as f64)
    }

    fn load_upstreams(&self, count: u32) -> Result<()> {
        self.admin.put_many(count, |index| (format!("/upstreams/{index}"), self.upstream.clone()))
    }

    fn load_routes(&self, count: u32) -> Result<()> {
        self.admin.put_many(count, |index| self.route(index, ""))
    }

    /// All upstreams and so many routes, in APISIX's standalone form.
    fn configuration(&self, routes: u32) -> String {
        let with_id = |id: u32, text: &str| text.replacen('{', &format!(r#"{{"id": "{id}", "#), 1);
        let upstreams = (0..self.amounts.upstreams).map(|id| with_id(id, &self.upstream));
        let routes = (0..routes).map(|id| with_id(id, &self.route(id, "").1));
        let list = |all: Vec<String>| all.join(",\n");
        format!(
            r#"{{"upstreams": [{}], "routes": [{}]}}"#,
            list(upstreams.collect()),
            list(routes.collect())
        )
    }

    /// Neighbours share one, so that the first routes need few.
    fn upstream_of(&self, route: u32) -> u32 {
        let Amounts { routes, upstreams, .. } = self.amounts;
        (u64::from(route) * u64::from(upstreams) / u64::from(routes)) as u32
    }

    /// The path and the resource of a route; a different `note` makes it a change.
    fn route(&self, index: u32, note: &str) -> (String, String) {
        let upstream = self.upstream_of(index);
        let note = if note.is_empty() { String::new() } else { format!(r#", "desc": "{note}""#) };
        let text = format!(r#"{{"uri": "/svc/{index}/*", "upstream_id": "{upstream}"{note}}}"#);
        (format!("/routes/{index}"), text)
    }

    fn wait_for_route(&self, index: u32) -> Result<()> {
        let mut connection = Connection::open(self.data)?;
        wait_for("the last route", || {
            Ok(connection.request("GET", &route_path(index), &[], b"")?.status == 200)
        })
    }

    /// CPU time of one change, from request to compiled, while nothing else happens.
    fn change_cpu_us(&self, routes: u32) -> Result<f64> {
        let mut session = self.admin.open()?;
        let mut random = Random::new();
        let before = self.server.cpu()?.all();
        for number in 0..CPU_CHANGES {
            let (path, resource) = self.route(random.below(routes), &format!("cpu {number}"));
            session.put(&path, &resource)?;
        }
        // What is done after the answer counts too.
        std::thread::sleep(SETTLE);
        let used = (self.server.cpu()?.all() - before) as f64 / ticks_per_second()?;
        Ok(used * 1e6 / f64::from(CPU_CHANGES))
    }

    /// Milliseconds until a request met each of some changes: new routes and changed ones in turn.
    fn visible_ms(&self) -> Result<Vec<f64>> {
        let mut session = self.admin.open()?;
        let mut connection = Connection::open(self.data)?;
        let mut random = Random::new();
        let mut times = Vec::new();
        for number in 0..VISIBLE_CHANGES {
            let path = format!("/seen/{number}");
            let (id, upstream) = match number % 2 {
                0 => (format!("seen-{number}"), 0),
                _ => {
                    let index = random.below(self.amounts.routes - 1);
                    (index.to_string(), self.upstream_of(index))
                }
            };
            let route = format!(r#"{{"uri": "{path}", "upstream_id": "{upstream}"}}"#);
            session.put(&format!("/routes/{id}"), &route)?;
            let answered = Instant::now();
            while connection.request("GET", &path, &[], b"")?.status != 200 {
                if answered.elapsed() > VISIBLE_TIME_MAX {
                    bail!("route {id} is not seen after {} s", VISIBLE_TIME_MAX.as_secs());
                }
            }
            times.push(answered.elapsed().as_secs_f64() * 1e3);
        }
        // As they were, so that requests find them.
        let mut random = Random::new();
        for _ in 0..VISIBLE_CHANGES / 2 {
            let (path, resource) = self.route(random.below(self.amounts.routes - 1), "");
            session.put(&path, &resource)?;
        }
        Ok(times)
    }

    /// A steady load beside 1,000 changes a second.
    fn requests_under_changes(&self, load: Load<'_>) -> Result<(Latency, Changes)> {
        let seconds = self.amounts.change_seconds;
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| self.steady_changes(Duration::from_secs(seconds.into())));
            let latency = load.paced(self.amounts.rate, seconds)?;
            match changing.join() {
                Ok(changes) => Ok((latency, changes?)),
                Err(_) => bail!("a writer panicked"),
            }
        })
    }

    fn steady_changes(&self, length: Duration) -> Result<Changes> {
        let start = Instant::now();
        let answers = Mutex::new(Vec::new());
        at_once(WRITERS, |writer| {
            let mut session = self.admin.open()?;
            let mut own = Vec::new();
            for turn in 0.. {
                let number = turn * WRITERS + writer;
                let due = start + Duration::from_secs(1) * number / CHANGES_PER_SECOND;
                if due > start + length || start.elapsed() > length {
                    break;
                }
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let index = number.wrapping_mul(SPREAD) % self.amounts.routes;
                let (path, resource) = self.route(index, &format!("change {number}"));
                let sent = Instant::now();
                session.put(&path, &resource)?;
                own.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            if let Ok(mut answers) = answers.lock() {
                answers.extend(own);
            }
            Ok(())
        })?;
        let answer_ms = answers.into_inner().unwrap_or_default();
        let per_second = answer_ms.len() as f64 / start.elapsed().as_secs_f64();
        Ok(Changes { per_second, answer_ms })
    }
}

/// The figures of many are held against those of so few.
const FEW_ROUTES: u32 = 1000;
const CPU_CHANGES: u32 = 1000;
const VISIBLE_CHANGES: u32 = 500;
const VISIBLE_TIME_MAX: Duration = Duration::from_secs(10);
const CHANGES_PER_SECOND: u32 = 1000;
/// A prime, so that neighbours in time are not neighbours in the configuration.
const SPREAD: u32 = 7919;
const STARTS: usize = 3;
const SETTLE: Duration = Duration::from_secs(1);

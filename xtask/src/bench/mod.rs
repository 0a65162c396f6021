//! `cargo xtask bench`: what a request costs our release binary, beside other gateways, in one run.
//!
//! All gateways stand between the same load and the same origin (nginx), each on one CPU of their own
//! with one worker, and rounds visit them in turn. The figure to compare is CPU time per request, user
//! and system, read from /proc over the gateway's processes: it depends far less on what else the
//! machine does than requests per second do. Compare figures of one run only.
//!
//! Start reading at [`cases`], which says what is compared with what. Nothing here judges: a missed
//! bar is printed, and only what could not be measured makes the command fail.

mod admin;
mod cases;
pub(crate) mod check;
mod compare;
mod config;
mod events;
mod http;
mod load;
mod memory;
mod options;
mod origin;
mod peers;
mod report;
mod server;
mod start;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use self::cases::{Case, Figure};
use self::compare::Pace;
use self::load::TOOLS;
use self::options::Group;
pub(crate) use self::options::Options;
use self::origin::{Certificates, Origin};
use self::peers::{Peer, Programs, Stand};
use self::report::Report;
use self::server::{Launcher, Place, place_self};
use crate::command::{cargo, on_path, run as run_command, target};

/// Builds, starts what a group needs on loopback, checks answers, measures, prints a table of each.
pub(crate) fn run(options: &Options, words: &[String]) -> Result<()> {
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| on_path(tool).is_none()).collect();
    if !missing.is_empty() {
        bail!(
            "missing: {}; Debian's packages are nginx, wrk, nghttp2-client, openssl and util-linux",
            missing.join(", ")
        );
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        bail!("gateway and load need a CPU each, and there is one CPU");
    }
    let binary = match &options.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => {
            run_command(&mut cargo(&["build", "--release", "--package", "sluicegate"]))?;
            target().join("release/sluicegate")
        }
    };
    let (programs, absent) = Programs::find(binary, &options.peers, options.envoy.as_deref());
    let mut report = Report::start(&programs, options.binary.is_some(), words);
    for line in absent {
        println!("{line}\n");
    }
    let folder = fresh_folder()?;
    let launcher = Launcher { realtime: options.realtime };
    let certificates = Certificates::make(&folder)?;
    let origin = Origin::start(&folder, launcher, &certificates)?;
    let stand = Stand { folder, launcher, certificates, origin, programs };
    for &group in &options.groups {
        if let Err(error) = run_group(&stand, group, options, &mut report) {
            report.fail(&group.name(), &error);
        }
    }
    if let Some(file) = &options.json {
        report.write_json(file)?;
    }
    let folder = stand.folder.clone();
    drop(stand);
    if !report.failures.is_empty() {
        bail!("{}; logs are in {}", report.failures.join("; "), folder.display());
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn run_group(stand: &Stand, group: Group, options: &Options, report: &mut Report) -> Result<()> {
    // This process configures and probes: off the gateway's CPU, where the gateway has one.
    let is_pinned = !matches!(group, Group::Config | Group::Case(Case::Scale));
    place_self(if is_pinned { Place::Load } else { Place::Anywhere })?;
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let pace = Pace {
        rounds,
        seconds: Some(options.seconds),
        latency_seconds: options.latency,
        rate: options.rate,
    };
    match group {
        Group::Case(case) => compare::run(stand, case.plan(), &group.name(), pace, report),
        Group::Latency => {
            let mut plan = Case::Proxy.plan();
            plan.bars.retain(|bar| bar.figure != Figure::Cpu);
            if !options.peers_are_named {
                // It takes long, and the bar is nginx's.
                plan.setups.retain(|s| matches!(s.peer, Peer::Sluicegate | Peer::Nginx));
            }
            let latency_seconds = Some(options.latency.unwrap_or(LATENCY_SECONDS));
            let rounds = options.rounds.unwrap_or(LATENCY_ROUNDS);
            let pace = Pace { rounds, seconds: None, latency_seconds, ..pace };
            compare::run(stand, plan, &group.name(), pace, report)
        }
        Group::Memory => {
            let amounts = memory::Amounts {
                clients: options.clients,
                requests: u64::from(options.requests),
                changes: options.changes,
            };
            memory::run(stand, amounts, report)
        }
        Group::Events => events::run(stand, report),
        Group::Start => start::run(stand, rounds.max(STARTS_MIN), report),
        Group::Config => {
            let amounts = config::Amounts {
                routes: options.routes.unwrap_or(100_000),
                upstreams: options.upstreams,
                change_seconds: options.latency.unwrap_or(CHANGE_SECONDS),
                rate: options.rate,
            };
            config::run(stand, amounts, report)
        }
    }
}

/// For configurations, logs and scripts; runs beside each other have their own. What a run left
/// that was stopped half-way goes.
fn fresh_folder() -> Result<PathBuf> {
    let all = target().join("bench");
    std::fs::create_dir_all(&all)?;
    for entry in std::fs::read_dir(&all)? {
        let entry = entry?;
        let is_run = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if is_run && !Path::new("/proc").join(entry.file_name()).exists() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    let folder = all.join(std::process::id().to_string());
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

const ROUNDS: u32 = 5;
const LATENCY_ROUNDS: u32 = 3;
const LATENCY_SECONDS: u32 = 30;
const STARTS_MIN: u32 = 5;
const CHANGE_SECONDS: u32 = 60;

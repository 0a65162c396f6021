//! The gateways: each is started in its own folder with a configuration made for one setup.

pub(crate) mod envoy;
mod haproxy;
pub(crate) mod nginx;
pub(crate) mod sluicegate;

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::cases::Setup;
use super::origin::{Certificates, Origin};
use super::server::{Launcher, Server};
use crate::command::{on_path, output, program};

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Nginx,
    Haproxy,
    Envoy,
    Sluicegate,
}

impl Peer {
    pub(crate) const OTHERS: [Self; 3] = [Self::Nginx, Self::Haproxy, Self::Envoy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Sluicegate => "sluicegate",
        }
    }
}

/// Everything gateways are made from in one run.
pub(crate) struct Stand {
    pub(crate) folder: PathBuf,
    pub(crate) launcher: Launcher,
    pub(crate) certificates: Certificates,
    pub(crate) origin: Origin,
    pub(crate) programs: Programs,
}

/// The executables there are.
pub(crate) struct Programs {
    pub(crate) sluicegate: PathBuf,
    nginx: Option<PathBuf>,
    haproxy: Option<PathBuf>,
    envoy: Option<PathBuf>,
}

impl Programs {
    /// Looks for the chosen peers, fetches Envoy where it may; a line for each that stays away.
    pub(crate) fn find(
        sluicegate: PathBuf,
        chosen: &[Peer],
        envoy: Option<&Path>,
    ) -> (Self, Vec<String>) {
        let mut absent = Vec::new();
        let mut find = |peer: Peer| {
            if !chosen.contains(&peer) {
                return None;
            }
            let program = on_path(peer.name());
            if program.is_none() {
                absent.push(format!("skipped: {0}, there is no {0} on the PATH", peer.name()));
            }
            program
        };
        let (nginx, haproxy) = (find(Peer::Nginx), find(Peer::Haproxy));
        let mut programs = Self { sluicegate, nginx, haproxy, envoy: None };
        if chosen.contains(&Peer::Envoy) {
            match envoy::find(envoy) {
                Ok(program) => programs.envoy = Some(program),
                Err(error) => absent.push(format!("skipped: envoy, {error:#}")),
            }
        }
        (programs, absent)
    }

    pub(crate) fn of(&self, peer: Peer) -> Option<&Path> {
        match peer {
            Peer::Nginx => self.nginx.as_deref(),
            Peer::Haproxy => self.haproxy.as_deref(),
            Peer::Envoy => self.envoy.as_deref(),
            Peer::Sluicegate => Some(&self.sluicegate),
        }
    }

    /// A name and version each, as the programs say it.
    pub(crate) fn versions(&self) -> Vec<String> {
        let mut versions = Vec::new();
        for peer in [Peer::Sluicegate, Peer::Nginx, Peer::Haproxy, Peer::Envoy] {
            let Some(path) = self.of(peer) else { continue };
            let said = match peer {
                // nginx says it on standard error.
                Peer::Nginx => output(program("sh").args(["-c", "\"$0\" -v 2>&1"]).arg(path)),
                Peer::Haproxy => output(program(path).arg("-v")),
                _ => output(program(path).arg("--version")),
            };
            let version = version(&said.unwrap_or_default()).unwrap_or_default();
            versions.push(format!("{} {version}", peer.name()));
        }
        versions
    }
}

/// The first word with digits and dots only before any ending: `1.22.1`, `2.6.12-1+deb12u4`.
fn version(text: &str) -> Option<String> {
    let mut parts = text.split(|c: char| c.is_whitespace() || c == '/');
    let is_version = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_digit()) && part.matches('.').count() > 1
    };
    parts.find(is_version).map(str::to_owned)
}

/// A gateway that runs.
pub(crate) struct Gateway {
    pub(crate) server: Server,
    /// Where the load goes.
    pub(crate) port: u16,
}

impl Gateway {
    /// Starts `setup` in a folder of its own, `name` under the stand's.
    pub(crate) fn start(stand: &Stand, setup: Setup, name: &str) -> Result<Self> {
        match setup.peer {
            Peer::Nginx => nginx::start(stand, setup, name),
            Peer::Haproxy => haproxy::start(stand, setup, name),
            Peer::Envoy => envoy::start(stand, setup, name),
            Peer::Sluicegate => sluicegate::start(stand, setup, name),
        }
    }
}

/// Idle connections kept to the origin; more than there are clients.
const POOL: u32 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, expected) in [
            ("sluicegate 0.1.0\n", Some("0.1.0")),
            ("nginx version: nginx/1.22.1", Some("1.22.1")),
            (
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
                Some("2.6.12-1+deb12u4"),
            ),
            ("/a/python3.11/envoy  version: 9e5580/1.40.0/Clean/RELEASE", Some("1.40.0")),
            ("no version", None),
        ] {
            assert_eq!(version(said).as_deref(), expected, "{said}");
        }
    }
}

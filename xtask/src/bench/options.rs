//! The words after `cargo xtask bench`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::cases::Case;
use super::peers::Peer;

/// Something to measure, which can be asked for alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Case(Case),
    Latency,
    Memory,
    Events,
    Start,
    Config,
}

impl Group {
    pub(crate) fn name(self) -> String {
        let name = match self {
            Self::Case(case) => return case.name(),
            Self::Latency => "latency",
            Self::Memory => "memory",
            Self::Events => "events",
            Self::Start => "start",
            Self::Config => "config",
        };
        name.to_owned()
    }
}

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// In this order, each once.
    pub(crate) groups: Vec<Group>,
    /// Besides ours.
    pub(crate) peers: Vec<Peer>,
    /// Rather than all.
    pub(crate) peers_are_named: bool,
    pub(crate) rounds: Option<u32>,
    /// Length of one measurement under full load.
    pub(crate) seconds: u32,
    /// Length of one measurement at a steady rate.
    pub(crate) latency: Option<u32>,
    /// That rate, a second.
    pub(crate) rate: u32,
    pub(crate) routes: Option<u32>,
    pub(crate) upstreams: u32,
    pub(crate) clients: u32,
    pub(crate) requests: u32,
    pub(crate) changes: u32,
    pub(crate) realtime: bool,
    /// An executable to measure instead of a fresh release build.
    pub(crate) binary: Option<PathBuf>,
    /// An executable instead of the one that is fetched.
    pub(crate) envoy: Option<PathBuf>,
    /// Where all samples go.
    pub(crate) json: Option<PathBuf>,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            groups: Vec::new(),
            peers: Vec::new(),
            peers_are_named: false,
            rounds: None,
            seconds: 4,
            latency: None,
            rate: 1000,
            routes: None,
            upstreams: 10_000,
            clients: 10_000,
            requests: 10_000_000,
            changes: 100_000,
            realtime: false,
            binary: None,
            envoy: None,
            json: None,
        };
        let mut names = Vec::new();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--rounds" => options.rounds = Some(number(word, value()?, 1000)?),
                "--seconds" => options.seconds = number(word, value()?, 600)?,
                "--latency" => options.latency = Some(number(word, value()?, 600)?),
                "--rate" => options.rate = number(word, value()?, 100_000)?,
                "--routes" => options.routes = Some(number(word, value()?, 1_000_000)?),
                "--upstreams" => options.upstreams = number(word, value()?, 1_000_000)?,
                "--clients" => options.clients = number(word, value()?, 25_000)?,
                "--requests" => options.requests = number(word, value()?, 1_000_000_000)?,
                "--changes" => options.changes = number(word, value()?, 10_000_000)?,
                "--realtime" => options.realtime = true,
                "--bin" => options.binary = Some(PathBuf::from(value()?)),
                "--envoy-bin" => options.envoy = Some(PathBuf::from(value()?)),
                "--json" => options.json = Some(PathBuf::from(value()?)),
                "--peer" => {
                    let named = |name: &str| Peer::OTHERS.into_iter().find(|p| p.name() == name);
                    let before = options.peers.len();
                    while let Some(peer) = words.peek().and_then(|name| named(name)) {
                        options.peers.push(peer);
                        words.next();
                    }
                    if options.peers.len() == before {
                        bail!("--peer takes one or more of nginx, haproxy, envoy");
                    }
                }
                option if option.starts_with('-') => bail!("`bench` has no option {option}"),
                name => names.push(name),
            }
        }
        options.peers_are_named = !options.peers.is_empty();
        if !options.peers_are_named {
            options.peers = Peer::OTHERS.to_vec();
        }
        if names.is_empty() {
            names = vec!["proxy", "lambda-apikey", "lambda-iam"];
        }
        for name in names {
            for group in groups(name, options.routes)? {
                if !options.groups.contains(&group) {
                    options.groups.push(group);
                }
            }
        }
        Ok(options)
    }
}

fn groups(name: &str, routes: Option<u32>) -> Result<Vec<Group>> {
    let cases = || Case::ALL.into_iter().map(Group::Case);
    Ok(match name {
        "all" => {
            let others =
                [Group::Latency, Group::Memory, Group::Events, Group::Start, Group::Config];
            cases().chain(others).collect()
        }
        "cases" => cases().collect(),
        "latency" => vec![Group::Latency],
        "memory" => vec![Group::Memory],
        "events" => vec![Group::Events],
        "start" => vec![Group::Start],
        "config" => vec![Group::Config],
        "routes" => vec![Group::Case(Case::Routes(routes.unwrap_or(10_000).max(2)))],
        name => match Case::ALL.into_iter().find(|case| case.name() == name) {
            Some(case) => vec![Group::Case(case)],
            None => bail!("`bench` has no case {name}; `cargo xtask help` lists them"),
        },
    })
}

fn number(option: &str, text: &str, most: u32) -> Result<u32> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => bail!("{option} takes a number from 1 to {most}, got {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn groups_are_named_once_and_in_order() {
        let case = Group::Case;
        for (line, expected) in [
            ("", vec![case(Case::Proxy), case(Case::LambdaApikey), case(Case::LambdaIam)]),
            ("lambda-iam proxy lambda-iam", vec![case(Case::LambdaIam), case(Case::Proxy)]),
            ("routes --routes 500", vec![case(Case::Routes(500))]),
            ("routes-100k start", vec![case(Case::Routes(100_000)), Group::Start]),
        ] {
            assert_eq!(parse(line).map(|options| options.groups), Ok(expected), "{line}");
        }
        let all = parse("all").expect("all is a name").groups;
        assert_eq!(all.len(), Case::ALL.len() + 5);
    }

    #[test]
    fn peers_are_all_unless_some_are_named() {
        for (line, expected) in [
            ("proxy", vec![Peer::Nginx, Peer::Haproxy, Peer::Envoy]),
            ("--peer envoy nginx proxy", vec![Peer::Envoy, Peer::Nginx]),
        ] {
            assert_eq!(parse(line).map(|options| options.peers), Ok(expected), "{line}");
        }
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, expected) in [
            ("--rounds 1001", "--rounds takes a number from 1 to 1000, got \"1001\""),
            ("--seconds 0", "--seconds takes a number from 1 to 600, got \"0\""),
            ("--bin", "--bin needs a value"),
            ("--peer proxy", "--peer takes one or more of nginx, haproxy, envoy"),
            ("--fast", "`bench` has no option --fast"),
            ("big", "`bench` has no case big; `cargo xtask help` lists them"),
        ] {
            assert_eq!(parse(line).map(|_| ()), Err(expected.to_owned()), "{line}");
        }
    }
}

//! `cargo xtask bench`: what a request costs our release binary, beside nginx, in one run.
//!
//! Both gateways stand between the same load (wrk) and the same origin (nginx), on one CPU of their
//! own with one worker each, and rounds visit them in turn. The figure to compare is CPU time per
//! request, user and system, read from /proc over the gateway's processes: it depends far less on
//! what else the machine does than requests per second do. Compare figures of one run only.

mod http;
mod server;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::http::Answer;
use self::server::{Gateways, ORIGIN_BODY, Server};
use crate::command::{cargo, on_path, output, program, run as run_command, target};

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// In this order, each once.
    cases: Vec<Case>,
    rounds: u32,
    /// Length of one measurement.
    seconds: u32,
    /// An executable to measure instead of a fresh release build.
    binary: Option<PathBuf>,
}

impl Options {
    /// Takes the words after `bench`.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self { cases: Vec::new(), rounds: 5, seconds: 4, binary: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--rounds" => options.rounds = number(word, value()?)?,
                "--seconds" => options.seconds = number(word, value()?)?,
                "--bin" => options.binary = Some(PathBuf::from(value()?)),
                name => match Case::ALL.into_iter().find(|case| case.name() == name) {
                    Some(case) if options.cases.contains(&case) => {}
                    Some(case) => options.cases.push(case),
                    None => bail!("`bench` has no option or case {name}"),
                },
            }
        }
        if options.cases.is_empty() {
            options.cases = Case::ALL.to_vec();
        }
        Ok(options)
    }
}

fn number(option: &str, text: &str) -> Result<u32> {
    match text.parse() {
        Ok(number @ 1..=NUMBER_MAX) => Ok(number),
        _ => bail!("{option} takes a number from 1 to {NUMBER_MAX}, got {text:?}"),
    }
}

/// Builds, starts everything on loopback, checks an answer of each kind, measures, prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| on_path(tool).is_none()).collect();
    if !missing.is_empty() {
        bail!("missing: {}; Debian's packages are nginx, wrk and util-linux", missing.join(", "));
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
    let ticks: f64 = output(program("getconf").arg("CLK_TCK"))?.trim().parse()?;
    let gateways = Gateways::start(&binary)?;
    let mut samples = Vec::new();
    for &case in &options.cases {
        for gateway in Gateway::BOTH {
            check(&gateways, case, gateway)?;
            load(&gateways, case, gateway, 1)?;
        }
        for round in 0..options.rounds {
            for turn in 0..2 {
                let gateway = Gateway::BOTH[(round + turn) as usize % 2];
                let sample = measure(&gateways, case, gateway, options.seconds, ticks)?;
                eprintln!(
                    "{} round {}: {} {:.1} µs/request",
                    case.name(),
                    round + 1,
                    gateway.name(),
                    sample.cpu_us()
                );
                samples.push(sample);
            }
        }
    }
    print!("{}", table(&options.cases, &samples));
    Ok(())
}

/// One request by hand: numbers about wrong answers would mean nothing.
fn check(gateways: &Gateways, case: Case, gateway: Gateway) -> Result<()> {
    let port = gateways.server(gateway).port;
    let Answer { status, body } =
        http::request(port, case.method(), case.path(), HEADERS, &case.body())?;
    if status != 200 || !body.contains(ORIGIN_BODY) {
        let name = gateway.name();
        bail!("{name} answers {status} {body:?} to case {}, not the origin's 200", case.name());
    }
    Ok(())
}

fn measure(
    gateways: &Gateways,
    case: Case,
    gateway: Gateway,
    seconds: u32,
    ticks: f64,
) -> Result<Sample> {
    let server: &Server = gateways.server(gateway);
    let (before, start) = (server.cpu_ticks()?, Instant::now());
    let load = load(gateways, case, gateway, seconds)?;
    let (after, wall) = (server.cpu_ticks()?, start.elapsed());
    let cpu = Duration::from_secs_f64((after - before) as f64 / ticks);
    Ok(Sample { case, gateway, load, cpu, wall })
}

/// Lets wrk send for so many seconds.
fn load(gateways: &Gateways, case: Case, gateway: Gateway, seconds: u32) -> Result<Load> {
    let script = gateways.folder.join(format!("{}.lua", case.name()));
    std::fs::write(&script, case.script())?;
    let url = format!("http://127.0.0.1:{}{}", gateways.server(gateway).port, case.path());
    let mut command: Command = server::pinned(LOAD_CPU);
    command.args(["wrk", "--threads", "1", "--timeout", "10s", "--connections"]);
    command.args([CONNECTIONS, "--duration", &format!("{seconds}s"), "--script"]).arg(script);
    Load::parse(&output(command.arg(url))?)
}

fn table(cases: &[Case], samples: &[Sample]) -> String {
    let mut text = String::from(
        "| case | gateway | requests/s | CPU µs/request (range) | CPUs busy | to nginx | errors |\n\
         |---|---|--:|--:|--:|--:|--:|\n",
    );
    for &case in cases {
        let of = |gateway| -> Vec<&Sample> {
            let mine = |sample: &&Sample| sample.case == case && sample.gateway == gateway;
            samples.iter().filter(mine).collect()
        };
        let cpu = |gateway| -> Vec<f64> { of(gateway).iter().map(|s| s.cpu_us()).collect() };
        for gateway in Gateway::BOTH {
            let samples = of(gateway);
            let cpus = sorted(cpu(gateway));
            let (Some(least), Some(most)) = (cpus.first(), cpus.last()) else { continue };
            text += &format!(
                "| {} | {} | {:.0} | {:.1} ({least:.1}-{most:.1}) | {:.2} | {:.2} | {} |\n",
                case.name(),
                gateway.name(),
                median(samples.iter().map(|s| s.per_second()).collect()),
                median(cpus.clone()),
                median(samples.iter().map(|s| s.busy()).collect()),
                median(cpus.clone()) / median(cpu(Gateway::Nginx)),
                samples.iter().map(|s| s.load.errors).sum::<u64>(),
            );
        }
    }
    if cases.contains(&Case::LambdaIam) {
        text += "nginx cannot sign: in lambda-iam it forwards the same request with an API key.\n";
    }
    text
}

fn sorted(mut numbers: Vec<f64>) -> Vec<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers
}

fn median(numbers: Vec<f64>) -> f64 {
    let numbers = sorted(numbers);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => (numbers[middle - 1] + numbers[middle]) / 2.0,
        _ => numbers[middle],
    }
}

/// What is asked of both gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// A GET to an upstream, connections kept on both sides.
    Proxy,
    /// A POST of 1 KiB to a function behind an API key, which the gateway adds.
    LambdaApikey,
    /// The same to a function that wants a signature.
    LambdaIam,
}

impl Case {
    const ALL: [Self; 3] = [Self::Proxy, Self::LambdaApikey, Self::LambdaIam];

    fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::LambdaApikey => "lambda-apikey",
            Self::LambdaIam => "lambda-iam",
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::Proxy => "GET",
            Self::LambdaApikey | Self::LambdaIam => "POST",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Proxy => "/hello?a=1",
            Self::LambdaApikey => "/apikey?name=value1&id=12345&flag=true",
            Self::LambdaIam => "/iam?name=value1&id=12345&flag=true",
        }
    }

    fn body(self) -> String {
        match self {
            Self::Proxy => String::new(),
            Self::LambdaApikey | Self::LambdaIam => {
                format!("{{\"k\":\"{}\"}}", "x".repeat(FUNCTION_BODY_BYTES - 8))
            }
        }
    }

    /// The request in wrk's own words, which are Lua.
    fn script(self) -> String {
        let mut script = format!("wrk.method = \"{}\"\n", self.method());
        for (name, value) in HEADERS {
            script += &format!("wrk.headers[\"{name}\"] = \"{value}\"\n");
        }
        if self.method() == "POST" {
            script += &format!("wrk.body = [[{}]]\n", self.body());
        }
        script
    }
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gateway {
    Nginx,
    Sluicegate,
}

impl Gateway {
    const BOTH: [Self; 2] = [Self::Nginx, Self::Sluicegate];

    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Sluicegate => "sluicegate",
        }
    }
}

struct Sample {
    case: Case,
    gateway: Gateway,
    load: Load,
    cpu: Duration,
    wall: Duration,
}

impl Sample {
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.load.requests as f64
    }

    fn per_second(&self) -> f64 {
        self.load.requests as f64 / self.wall.as_secs_f64()
    }

    fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Load {
    requests: u64,
    errors: u64,
}

impl Load {
    /// Takes the counts out of wrk's report.
    fn parse(report: &str) -> Result<Self> {
        let mut load = Self { requests: 0, errors: 0 };
        for line in report.lines().map(str::trim) {
            if let Some((count, _)) = line.split_once(" requests in ") {
                load.requests = count.parse()?;
            } else if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses: ") {
                load.errors += count.parse::<u64>()?;
            } else if let Some(kinds) = line.strip_prefix("Socket errors: ") {
                for kind in kinds.split(", ") {
                    let (_, count) = kind.split_once(' ').context("a kind of error and a count")?;
                    load.errors += count.parse::<u64>()?;
                }
            }
        }
        if load.requests == 0 {
            bail!("wrk got no answer:\n{report}");
        }
        Ok(load)
    }
}

const TOOLS: [&str; 5] = ["nginx", "wrk", "taskset", "setpriv", "getconf"];
/// The gateways' CPU is 0; see `server`.
const LOAD_CPU: &str = "1";
const CONNECTIONS: &str = "64";
const NUMBER_MAX: u32 = 600;
const FUNCTION_BODY_BYTES: usize = 1024;
const HEADERS: &[(&str, &str)] = &[
    ("Content-Type", "application/json"),
    ("Accept", "*/*"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "bench"),
    ("X-Request-Id", "0d9fc2a1-4b57-4c2e-9a3d-6f1e8b7a5c40"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_cases_and_numbers_within_bounds() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::parse(&words).map_err(|error| error.to_string())
        };
        let all = parse("").expect("no words are valid");
        assert_eq!(all.cases, Case::ALL);
        let some = parse("lambda-iam proxy lambda-iam --rounds 600").expect("the words are valid");
        assert_eq!((some.cases, some.rounds), (vec![Case::LambdaIam, Case::Proxy], 600));
        for (line, expected) in [
            ("--rounds 601", "--rounds takes a number from 1 to 600, got \"601\""),
            ("--seconds 0", "--seconds takes a number from 1 to 600, got \"0\""),
            ("--bin", "--bin needs a value"),
            ("big", "`bench` has no option or case big"),
        ] {
            assert_eq!(parse(line), Err(expected.to_owned()), "{line}");
        }
    }

    #[test]
    fn wrong_answers_and_broken_connections_are_counted_as_errors() {
        let report = "  1200 requests in 4.00s, 0.50MB read\n  Socket errors: connect 1, read 2, \
                      write 0, timeout 4\n  Non-2xx or 3xx responses: 30\nRequests/sec: 300.00\n";
        let load = Load::parse(report).expect("the report is whole");
        assert_eq!(load, Load { requests: 1200, errors: 37 });
        assert!(Load::parse("unable to connect").is_err());
    }

    #[test]
    fn medians_are_of_the_middle() {
        for (numbers, expected) in
            [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0], 2.5), (vec![7.0], 7.0)]
        {
            assert_eq!(median(numbers.clone()), expected, "{numbers:?}");
        }
    }

    #[test]
    fn a_functions_body_is_one_kibibyte() {
        assert_eq!(Case::LambdaIam.body().len(), FUNCTION_BODY_BYTES);
    }
}

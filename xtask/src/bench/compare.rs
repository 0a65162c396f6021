//! Runs a case: every setup of its plan stands ready at once, and rounds visit them in turn, so that a
//! disturbance of the machine meets all of them.

use std::time::Duration;

use anyhow::Result;

use super::cases::{Bar, Figure, Plan, Setup, Work};
use super::load::{Latency, Load};
use super::peers::{Gateway, Peer, Stand};
use super::report::{Report, Value, median};
use super::server::{CpuTicks, Memory, ticks_per_second, wait_for};

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) rounds: u32,
    /// Of full load; none where only latency is asked for.
    pub(crate) seconds: Option<u32>,
    /// Of steady load.
    pub(crate) latency_seconds: Option<u32>,
    /// Requests a second of the steady load.
    pub(crate) rate: u32,
}

pub(crate) fn run(
    stand: &Stand,
    plan: Plan,
    title: &str,
    pace: Pace,
    report: &mut Report,
) -> Result<()> {
    let Plan { setups, bars } = plan;
    let mut contestants = Vec::new();
    let mut skipped = Vec::new();
    for (index, setup) in setups.into_iter().enumerate() {
        if stand.programs.of(setup.peer).is_none() {
            continue;
        }
        match Contestant::start(stand, setup, &format!("{title}-{index}"), pace) {
            Ok(contestant) => contestants.push(contestant),
            Err(error) if setup.peer == Peer::Sluicegate => return Err(error),
            Err(error) => skipped.push(format!("skipped: {}: {error:#}", setup.label())),
        }
    }
    let ticks = ticks_per_second()?;
    for round in 0..pace.rounds {
        let count = contestants.len();
        for turn in 0..count {
            let contestant = &mut contestants[(round as usize + turn) % count];
            let sample = contestant.measure(stand, pace, ticks)?;
            eprintln!("{title} round {}: {}: {}", round + 1, contestant.setup.label(), sample);
            report.sample(title, &sample.fields(contestant.setup, round));
            contestant.samples.push(sample);
        }
    }
    println!("### {title}\n\n{}", table(&contestants, &bars));
    for line in skipped {
        println!("{line}\n");
    }
    Ok(())
}

/// A gateway and what was measured of it.
struct Contestant {
    setup: Setup,
    gateway: Gateway,
    samples: Vec<Sample>,
}

impl Contestant {
    fn start(stand: &Stand, setup: Setup, name: &str, pace: Pace) -> Result<Self> {
        let gateway = Gateway::start(stand, setup, name)?;
        let mut contestant = Self { setup, gateway, samples: Vec::new() };
        let load = contestant.load(stand);
        // It may listen before its routes are there.
        let mut last = None;
        let waited = wait_for(&setup.label(), || {
            last = load.check().err();
            Ok(last.is_none())
        });
        if let (Err(timeout), Some(error)) = (waited, last) {
            return Err(error.context(timeout));
        }
        contestant.gateway.server.must_run()?;
        if pace.seconds.is_some() {
            // To warm up; on a machine out of breath nothing may come of it.
            let _ = load.full(1);
        }
        Ok(contestant)
    }

    fn load<'a>(&self, stand: &'a Stand) -> Load<'a> {
        Load { stand, setup: self.setup, port: self.gateway.port }
    }

    fn measure(&mut self, stand: &Stand, pace: Pace, ticks: f64) -> Result<Sample> {
        let load = self.load(stand);
        let server = &mut self.gateway.server;
        let throughput = match pace.seconds {
            None => None,
            Some(seconds) => {
                let before = server.cpu()?;
                let count = load.full(seconds)?;
                let after = server.cpu()?;
                let used = CpuTicks {
                    user: after.user - before.user,
                    system: after.system - before.system,
                };
                Some(Throughput {
                    requests: count.requests,
                    errors: count.errors,
                    cpu: Duration::from_secs_f64(used.all() as f64 / ticks),
                    user: Duration::from_secs_f64(used.user as f64 / ticks),
                    wall: Duration::from_secs_f64(count.seconds),
                })
            }
        };
        let latency = match pace.latency_seconds {
            None => None,
            Some(seconds) => Some(load.paced(pace.rate, seconds)?),
        };
        server.must_run()?;
        Ok(Sample { throughput, latency, memory: server.memory()? })
    }
}

struct Sample {
    throughput: Option<Throughput>,
    latency: Option<Latency>,
    memory: Memory,
}

struct Throughput {
    requests: u64,
    errors: u64,
    cpu: Duration,
    user: Duration,
    wall: Duration,
}

impl Throughput {
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }

    fn user_us(&self) -> f64 {
        self.user.as_secs_f64() * 1e6 / self.requests as f64
    }

    fn per_second(&self) -> f64 {
        self.requests as f64 / self.wall.as_secs_f64()
    }

    fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
}

impl Sample {
    fn errors(&self) -> u64 {
        self.throughput.as_ref().map_or(0, |t| t.errors) + self.latency.map_or(0, |l| l.errors)
    }

    fn figure(&self, figure: Figure) -> Option<f64> {
        match figure {
            Figure::Cpu => self.throughput.as_ref().map(Throughput::cpu_us),
            Figure::P99 => self.latency.map(|latency| latency.p99),
            Figure::P999 => self.latency.map(|latency| latency.p999),
        }
    }

    fn fields(&self, setup: Setup, round: u32) -> Vec<(&'static str, Value)> {
        let mut fields = vec![
            ("setup", Value::Text(setup.label())),
            ("round", Value::Number(f64::from(round))),
            ("errors", Value::Number(self.errors() as f64)),
            ("rss_mib", Value::Number(self.memory.rss_mib())),
            ("peak_rss_mib", Value::Number(self.memory.peak_mib())),
        ];
        if let Some(throughput) = &self.throughput {
            fields.extend([
                ("requests", Value::Number(throughput.requests as f64)),
                ("requests_per_second", Value::Number(throughput.per_second())),
                ("cpu_us", Value::Number(throughput.cpu_us())),
                ("user_cpu_us", Value::Number(throughput.user_us())),
                ("cpus_busy", Value::Number(throughput.busy())),
            ]);
        }
        if let Some(latency) = self.latency {
            fields.extend([
                ("p50_us", Value::Number(latency.p50)),
                ("p99_us", Value::Number(latency.p99)),
                ("p999_us", Value::Number(latency.p999)),
            ]);
        }
        fields
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(throughput) = &self.throughput {
            write!(f, "{:.1} µs/request ", throughput.cpu_us())?;
        }
        if let Some(Latency { p50, p99, p999, .. }) = self.latency {
            write!(f, "p50 {p50:.0} µs, p99 {p99:.0} µs, p99.9 {p999:.0} µs ")?;
        }
        write!(f, "{} errors", self.errors())
    }
}

fn table(contestants: &[Contestant], bars: &[Bar]) -> String {
    let has_throughput =
        contestants.iter().flat_map(|c| &c.samples).any(|sample| sample.throughput.is_some());
    let has_latency = contestants.iter().flat_map(|c| &c.samples).any(|s| s.latency.is_some());
    let mut heads = vec!["gateway"];
    if has_throughput {
        heads.extend(["requests/s", "CPU µs/request (range)", "of it user", "CPUs busy"]);
    }
    if has_latency {
        heads.extend(["p50 µs", "p99 µs (range)", "p99.9 µs (range)"]);
    }
    heads.extend(["peak RSS MiB", "errors", "beside (bar)"]);
    let mut text = format!("| {} |\n|---|", heads.join(" | "));
    text += &"--:|".repeat(heads.len() - 2);
    text += "---|\n";
    for contestant in contestants {
        let samples = &contestant.samples;
        let full: Vec<&Throughput> =
            samples.iter().filter_map(|sample| sample.throughput.as_ref()).collect();
        let mut cells = vec![contestant.setup.label()];
        if has_throughput {
            cells.extend([
                format!("{:.0}", median(full.iter().map(|t| t.per_second()))),
                with_range(full.iter().map(|t| t.cpu_us()), 1),
                format!("{:.1}", median(full.iter().map(|t| t.user_us()))),
                format!("{:.2}", median(full.iter().map(|t| t.busy()))),
            ]);
        }
        if has_latency {
            let latencies = || samples.iter().filter_map(|sample| sample.latency);
            cells.extend([
                format!("{:.0}", median(latencies().map(|latency| latency.p50))),
                with_range(latencies().map(|latency| latency.p99), 0),
                with_range(latencies().map(|latency| latency.p999), 0),
            ]);
        }
        let peak = samples.iter().map(|s| s.memory.peak_mib()).fold(0.0, f64::max);
        let errors: u64 = samples.iter().map(Sample::errors).sum();
        cells.extend([
            format!("{peak:.1}"),
            errors.to_string(),
            comparisons(contestant, contestants, bars),
        ]);
        text += &format!("| {} |\n", cells.join(" | "));
    }
    if contestants.iter().any(|contestant| contestant.setup.work == Work::BigBody) {
        text += "\nA request is 2 MiB: 1 MiB there, 1 MiB back.\n";
    }
    text
}

/// Every comparison of this contestant whose two sides were measured.
fn comparisons(own: &Contestant, all: &[Contestant], bars: &[Bar]) -> String {
    let of = |contestant: &Contestant, figure| {
        let figures = contestant.samples.iter().filter_map(|sample| sample.figure(figure));
        Some(median(figures)).filter(|median| median.is_finite())
    };
    let texts = bars.iter().filter(|bar| bar.own == own.setup).filter_map(|bar| {
        let peer = all.iter().find(|contestant| contestant.setup == bar.peer)?;
        let (mine, its) = (of(own, bar.figure)?, of(peer, bar.figure)?);
        let figure = match bar.figure {
            Figure::Cpu => "",
            Figure::P99 => "p99 ",
            Figure::P999 => "p99.9 ",
        };
        Some(format!("{figure}{}", bar.limit.compare(mine, its, &bar.peer.label())))
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn with_range(numbers: impl Iterator<Item = f64>, digits: usize) -> String {
    let numbers: Vec<f64> = numbers.collect();
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} ({least:.digits$}-{most:.digits$})", median(numbers))
}

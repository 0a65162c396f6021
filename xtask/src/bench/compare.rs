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
    let lost = take_turns(&mut contestants, pace.rounds, |contestant, round| {
        let sample = contestant.measure(stand, pace, ticks)?;
        let Measured { setup, samples } = &mut contestant.measured;
        eprintln!("{title} round {}: {}: {sample}", round + 1, setup.label());
        report.sample(title, &sample.fields(*setup, round));
        samples.push(sample);
        Ok(())
    });
    let mut own_failure = None;
    for Lost { who, round, error } in lost {
        let Setup { peer, .. } = who.measured.setup;
        let error = error.context(format!("{}, round {}", who.measured.setup.label(), round + 1));
        if peer == Peer::Sluicegate {
            own_failure.get_or_insert(error);
        } else {
            skipped.push(format!("skipped: {error:#}"));
        }
    }
    let measured: Vec<Measured> = contestants.into_iter().map(|c| c.measured).collect();
    println!("### {title}\n\n{}", table(&measured, &bars));
    for line in skipped {
        println!("{line}\n");
    }
    own_failure.map_or(Ok(()), Err)
}

/// Measures everyone once a round, each round beginning with the next. Who fails is out, with all
/// that was measured of it: fewer rounds than the others had are not compared with theirs.
fn take_turns<T>(
    contestants: &mut Vec<T>,
    rounds: u32,
    mut measure: impl FnMut(&mut T, u32) -> Result<()>,
) -> Vec<Lost<T>> {
    let mut lost = Vec::new();
    for round in 0..rounds {
        let count = contestants.len();
        let mut failed = Vec::new();
        for turn in 0..count {
            let index = (round as usize + turn) % count;
            if let Err(error) = measure(&mut contestants[index], round) {
                failed.push((index, error));
            }
        }
        failed.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, error) in failed {
            lost.push(Lost { who: contestants.remove(index), round, error });
        }
    }
    lost
}

/// One that failed half-way.
struct Lost<T> {
    who: T,
    round: u32,
    error: anyhow::Error,
}

/// A gateway and what was measured of it.
struct Contestant {
    gateway: Gateway,
    measured: Measured,
}

struct Measured {
    setup: Setup,
    samples: Vec<Sample>,
}

impl Contestant {
    fn start(stand: &Stand, setup: Setup, name: &str, pace: Pace) -> Result<Self> {
        let gateway = Gateway::start(stand, setup, name)?;
        let mut contestant = Self { gateway, measured: Measured { setup, samples: Vec::new() } };
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
        Load { stand, setup: self.measured.setup, port: self.gateway.port }
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

impl Measured {
    fn errors(&self) -> u64 {
        self.samples.iter().map(Sample::errors).sum()
    }

    /// One of each round; None where it was not asked for or nothing came of it.
    fn figures(&self, figure: Figure) -> Option<Vec<f64>> {
        self.samples.iter().map(|s| s.figure(figure).filter(|f| f.is_finite())).collect()
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

fn table(contestants: &[Measured], bars: &[Bar]) -> String {
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
        cells.extend([
            format!("{peak:.1}"),
            contestant.errors().to_string(),
            comparisons(contestant, contestants, bars),
        ]);
        text += &format!("| {} |\n", cells.join(" | "));
    }
    if contestants.iter().any(|contestant| contestant.setup.work == Work::BigBody) {
        text += "\nA request is 2 MiB: 1 MiB there, 1 MiB back.\n";
    }
    text
}

/// Every comparison this contestant is held to, also those that nothing came of.
fn comparisons(own: &Measured, all: &[Measured], bars: &[Bar]) -> String {
    let texts = bars.iter().filter(|bar| bar.own == own.setup).map(|bar| {
        let figure = match bar.figure {
            Figure::Cpu => "",
            Figure::P99 => "p99 ",
            Figure::P999 => "p99.9 ",
        };
        let peer = all.iter().find(|contestant| contestant.setup == bar.peer);
        let of = bar.peer.label();
        let figures = (own.figures(bar.figure), peer.and_then(|peer| peer.figures(bar.figure)));
        let text = match figures {
            // An error may cost less than an answer, or more.
            _ if own.errors() > 0 || peer.is_some_and(|peer| peer.errors() > 0) => {
                bar.limit.without("errors: no result", &of)
            }
            (Some(own), Some(peer)) if !own.is_empty() && own.len() == peer.len() => {
                bar.limit.compare(&own, &peer, &of)
            }
            _ => bar.limit.without("not measured", &of),
        };
        format!("{figure}{text}")
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn with_range(numbers: impl Iterator<Item = f64>, digits: usize) -> String {
    let numbers: Vec<f64> = numbers.collect();
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} ({least:.digits$}-{most:.digits$})", median(numbers))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::super::cases::Limit;
    use super::*;

    const OWN: Setup = Setup::new(Peer::Sluicegate, Work::Proxy);
    const NGINX: Setup = Setup::new(Peer::Nginx, Work::Proxy);

    fn measured(setup: Setup, cpu_us: f64, p99: Option<f64>, errors: u64) -> Measured {
        let throughput = Throughput {
            requests: 1000,
            errors,
            cpu: Duration::from_secs_f64(cpu_us / 1000.0),
            user: Duration::ZERO,
            wall: Duration::from_secs(1),
        };
        let latency = p99.map(|p99| Latency { p50: p99, p99, p999: p99, errors: 0 });
        let memory = Memory { rss_kib: 1024, peak_kib: 1024 };
        Measured { setup, samples: vec![Sample { throughput: Some(throughput), latency, memory }] }
    }

    #[test]
    fn a_bar_is_judged_only_by_what_was_measured_without_errors() {
        let bar = |figure, times| Bar { figure, own: OWN, peer: NGINX, limit: Limit::Times(times) };
        let bars = [bar(Figure::Cpu, 1.0), bar(Figure::P99, 1.05)];
        let own = |p99, errors| measured(OWN, 9.0, p99, errors);
        let nginx = |p99, errors| Some(measured(NGINX, 10.0, p99, errors));
        let not_measured = "beside nginx, proxy: not measured (bar 1.00); \
                            p99 beside nginx, proxy: not measured (bar 1.05)";
        let no_result = "beside nginx, proxy: errors: no result (bar 1.00); \
                         p99 beside nginx, proxy: errors: no result (bar 1.05)";
        for (own, peer, expected) in [
            (
                own(Some(110.0), 0),
                nginx(Some(100.0), 0),
                "0.90 x nginx, proxy (bar 1.00); p99 1.10 x nginx, proxy (bar 1.05, missed)",
            ),
            (
                own(None, 0),
                nginx(None, 0),
                "0.90 x nginx, proxy (bar 1.00); p99 beside nginx, proxy: not measured (bar 1.05)",
            ),
            (own(Some(100.0), 0), None, not_measured),
            (own(Some(100.0), 1), nginx(Some(100.0), 0), no_result),
            (own(Some(100.0), 0), nginx(Some(100.0), 1), no_result),
            (own(None, 1), None, no_result),
        ] {
            let all: Vec<Measured> = [own].into_iter().chain(peer).collect();
            assert_eq!(comparisons(&all[0], &all, &bars), expected);
            let text = table(&all, &bars);
            assert!(text.contains(&format!("| {expected} |\n")), "{text}");
        }
    }

    #[test]
    fn who_fails_is_out_and_the_others_go_on_in_turn() {
        let mut names = vec!["a", "b", "c"];
        let mut visits = Vec::new();
        let lost = take_turns(&mut names, 3, |name, round| {
            visits.push(*name);
            if (*name, round) == ("b", 1) {
                bail!("it is gone");
            }
            Ok(())
        });
        assert_eq!(visits.concat(), "abcbcaac");
        assert_eq!(names, ["a", "c"]);
        let lost: Vec<_> =
            lost.iter().map(|lost| (lost.who, lost.round, lost.error.to_string())).collect();
        assert_eq!(lost, [("b", 1, "it is gone".to_owned())]);
        let all_fail = take_turns(&mut names, 3, |_, _| bail!("no"));
        assert_eq!((all_fail.len(), names.len()), (2, 0));
    }
}

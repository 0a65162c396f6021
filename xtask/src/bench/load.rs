//! The load: wrk for throughput, h2load for HTTP/2, for counted requests and for a steady rate, and
//! the one request by hand before any of it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cases::{BIG_BODY_BYTES, Setup, Work, route_path};
use super::http::{self, Answer};
use super::origin::ORIGIN_BODY;
use super::peers::Stand;
use super::server::Place;
use crate::command::{output, program};

/// Requests of one setup's kind to one port.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) stand: &'a Stand,
    pub(crate) setup: Setup,
    pub(crate) port: u16,
}

impl Load<'_> {
    /// One request by hand: numbers about wrong answers would mean nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let work = self.setup.work;
        let mut paths = vec![work.path()];
        if let Work::Routes { paths: count, .. } = work {
            paths.push(route_path(count - 1));
        }
        for path in paths {
            let body = match work {
                Work::TlsDown => self.answer_over_tls(&path)?,
                Work::H2cDown => self.answer_over_h2c(&path)?,
                _ => {
                    let sent = work.body();
                    let Answer { status, body } =
                        http::request(self.port, work.method(), &path, &work.headers(), &sent)?;
                    if status != 200 {
                        bail!("it answers {status} to {path}, not the origin's 200");
                    }
                    body
                }
            };
            let is_right = match work {
                Work::BigBody => body.len() == BIG_BODY_BYTES,
                _ => String::from_utf8_lossy(&body).contains(ORIGIN_BODY),
            };
            if !is_right {
                let start = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
                bail!("it answers {start:?} to {path}, not the origin's body");
            }
        }
        Ok(())
    }

    /// The whole answer as text, from a server whose certificate is verified.
    fn answer_over_tls(&self, path: &str) -> Result<Vec<u8>> {
        let mut command = program("openssl");
        command.args(["s_client", "-quiet", "-verify_return_error", "-servername", "localhost"]);
        command.args(["-connect", &format!("127.0.0.1:{}", self.port)]);
        command.arg("-CAfile").arg(&self.stand.certificates.authority);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = command.spawn().context("cannot run openssl")?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        client.stdin.take().context("its input is a pipe")?.write_all(request.as_bytes())?;
        let answer = client.wait_with_output()?.stdout;
        if !answer.starts_with(b"HTTP/1.1 200") {
            bail!("it does not answer 200 over TLS: {}", String::from_utf8_lossy(&answer));
        }
        Ok(answer)
    }

    fn answer_over_h2c(&self, path: &str) -> Result<Vec<u8>> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        Ok(output(program("nghttp").args(["--timeout", "5", &url]))?.into_bytes())
    }

    /// As many requests as `CONNECTIONS` bring through in so many seconds.
    pub(crate) fn full(&self, seconds: u32) -> Result<Count> {
        match self.setup.work {
            Work::H2cDown => {
                let clients = (CONNECTIONS / H2_STREAMS).to_string();
                let mut command = self.h2load()?;
                command.args(["--clients", &clients]);
                command.args(["--max-concurrent-streams", &H2_STREAMS.to_string()]);
                command.args(["--duration", &seconds.to_string(), "--warm-up-time", "0"]);
                Count::of_h2load(&output(command.args(self.target()?))?)
            }
            work => {
                let script = self.file("lua");
                fs::write(&script, wrk_script(work))?;
                let connections =
                    if work == Work::BigBody { BIG_BODY_CONNECTIONS } else { CONNECTIONS };
                let mut command = self.command();
                command.args(["wrk", "--threads", "1", "--timeout", "10s"]);
                command.args(["--connections", &connections.to_string()]);
                command.args(["--duration", &format!("{seconds}s"), "--script"]).arg(script);
                Count::of_wrk(&output(command.arg(self.url(&work.path())))?)
            }
        }
    }

    /// Exactly so many requests over `CONNECTIONS`.
    pub(crate) fn counted(&self, requests: u64) -> Result<Count> {
        let mut command = self.h2load()?;
        command.args(["--clients", &CONNECTIONS.to_string()]);
        command.args(["--requests", &requests.to_string()]);
        Count::of_h2load(&output(command.args(self.target()?))?)
    }

    /// What requests take at a steady rate that leaves the gateway idle most of the time.
    pub(crate) fn paced(&self, rate: u32, seconds: u32) -> Result<Latency> {
        let rate = if self.setup.work == Work::BigBody { rate.div_ceil(25) } else { rate };
        let log = self.file("latency");
        if log.exists() {
            // h2load would add to it.
            fs::remove_file(&log)?;
        }
        let mut command = self.h2load()?;
        command.args(["--clients", &PACED_CONNECTIONS.to_string()]);
        command.args(["--requests", &(u64::from(rate) * u64::from(seconds)).to_string()]);
        command.args(["--rps", &format!("{}", f64::from(rate) / f64::from(PACED_CONNECTIONS))]);
        command.arg("--log-file").arg(&log);
        let count = Count::of_h2load(&output(command.args(self.target()?))?)?;
        let latency = Latency::of_log(&fs::read_to_string(&log)?, count.errors)?;
        fs::remove_file(&log)?;
        Ok(latency)
    }

    fn h2load(&self) -> Result<Command> {
        let work = self.setup.work;
        let mut command = self.command();
        command.args(["h2load", "--threads", "1"]);
        if work != Work::H2cDown {
            command.arg("--h1");
        }
        for (name, value) in work.headers() {
            command.args(["--header", &format!("{name}: {value}")]);
        }
        let body = work.body();
        if !body.is_empty() {
            let file = self.file("body");
            fs::write(&file, body)?;
            command.arg("--data").arg(file);
        }
        Ok(command)
    }

    /// h2load's last words: where to.
    fn target(&self) -> Result<Vec<String>> {
        let Work::Routes { paths, .. } = self.setup.work else {
            return Ok(vec![self.url(&self.setup.work.path())]);
        };
        let mut order = Random::new();
        let uris: String = (0..URIS_MAX.min(paths))
            .map(|_| self.url(&route_path(order.below(paths))) + "\n")
            .collect();
        self.uris(&uris)
    }

    fn uris(&self, lines: &str) -> Result<Vec<String>> {
        let file = self.file("uris");
        fs::write(&file, lines)?;
        Ok(vec!["--input-file".to_owned(), file.display().to_string()])
    }

    fn url(&self, path: &str) -> String {
        let port = self.port;
        match self.setup.work {
            // By name, so that it is named in the handshake.
            Work::TlsDown => format!("https://localhost:{port}{path}"),
            _ => format!("http://127.0.0.1:{port}{path}"),
        }
    }

    fn command(&self) -> Command {
        let place = match self.setup.place {
            Place::Anywhere => Place::Anywhere,
            _ => Place::Load,
        };
        self.stand.launcher.command(place)
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.stand.folder.join(format!("load-{}.{ending}", self.port))
    }
}

/// The requests in wrk's own words, which are Lua.
fn wrk_script(work: Work) -> String {
    let mut script = format!("wrk.method = \"{}\"\n", work.method());
    for (name, value) in work.headers() {
        script += &format!("wrk.headers[\"{name}\"] = \"{value}\"\n");
    }
    let body = work.body();
    if !body.is_empty() {
        script += &format!("wrk.body = [[{}]]\n", String::from_utf8_lossy(&body));
    }
    if let Work::Routes { paths, .. } = work {
        // All of them once, shuffled, then over again.
        script += &format!(
            "local requests, last = {{}}, 0
function init(arguments)
  math.randomseed(7)
  for index = 1, {paths} do
    requests[index] = wrk.format(nil, '/svc/' .. (index - 1) .. '/items/1')
  end
  for index = {paths}, 2, -1 do
    local other = math.random(index)
    requests[index], requests[other] = requests[other], requests[index]
  end
end
function request()
  last = last % {paths} + 1
  return requests[last]
end
"
        );
    }
    script
}

/// What a load counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Count {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    /// By the load's own clock, which does not run while it prepares.
    pub(crate) seconds: f64,
}

impl Count {
    fn of_wrk(report: &str) -> Result<Self> {
        let mut count = Self { requests: 0, errors: 0, seconds: 0.0 };
        for line in report.lines().map(str::trim) {
            if let Some((requests, rest)) = line.split_once(" requests in ") {
                count.requests = requests.parse()?;
                count.seconds = seconds(rest.split(',').next().unwrap_or_default())?;
            } else if let Some(answers) = line.strip_prefix("Non-2xx or 3xx responses: ") {
                count.errors += answers.parse::<u64>()?;
            } else if let Some(kinds) = line.strip_prefix("Socket errors: ") {
                for kind in kinds.split(", ") {
                    let (_, number) =
                        kind.split_once(' ').context("a kind of error and a count")?;
                    count.errors += number.parse::<u64>()?;
                }
            }
        }
        count.or_nothing(report)
    }

    /// What was not answered with 2xx is an error.
    fn of_h2load(report: &str) -> Result<Self> {
        let numbers = |start: &str, word: &str| -> Option<u64> {
            let line = report.lines().find_map(|line| line.strip_prefix(start))?;
            let part = line.split(", ").find_map(|part| part.trim().strip_suffix(word))?;
            part.trim().parse().ok()
        };
        let requests = numbers("requests: ", " done").context("h2load counts no requests")?;
        let good = numbers("status codes: ", " 2xx").context("h2load counts no answers")?;
        let finished = report.lines().find_map(|line| line.strip_prefix("finished in "));
        let time = finished.and_then(|line| line.split(',').next()).unwrap_or_default();
        Self { requests, errors: requests.saturating_sub(good), seconds: seconds(time)? }
            .or_nothing(report)
    }

    fn or_nothing(self, report: &str) -> Result<Self> {
        if self.requests == 0 {
            bail!("the load got no answer:\n{report}");
        }
        Ok(self)
    }
}

/// `4.00s`, `1.50m` and the like.
fn seconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)] {
        if let Some(Ok(number)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return Ok(number * factor);
        }
    }
    bail!("{text:?} is no time")
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) errors: u64,
}

impl Latency {
    /// Reads h2load's log: start, status and microseconds of every request. The first tenth is
    /// warm-up.
    fn of_log(log: &str, errors: u64) -> Result<Self> {
        let times = log.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok());
        let times: Vec<f64> = times.collect();
        let kept = times[times.len() / 10..].to_vec();
        if kept.is_empty() {
            bail!("h2load logged no request");
        }
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| percentile(&kept, part));
        Ok(Self { p50, p99, p999, errors })
    }
}

/// The number below which that part of them lies.
pub(crate) fn percentile(numbers: &[f64], part: f64) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    let index = (numbers.len() as f64 * part) as usize;
    numbers.get(index.min(numbers.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Numbers that are spread well and the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        // Xorshift, by Marsaglia.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % u64::from(limit.max(1))) as u32
    }
}

/// Without them nothing is measured.
pub(crate) const TOOLS: [&str; 10] = [
    "nginx", "wrk", "h2load", "nghttp", "openssl", "taskset", "setpriv", "chrt", "prlimit",
    "getconf",
];
pub(crate) const CONNECTIONS: u32 = 64;
const H2_STREAMS: u32 = 8;
const BIG_BODY_CONNECTIONS: u32 = 8;
const PACED_CONNECTIONS: u32 = 4;
const URIS_MAX: u32 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_answers_and_broken_connections_are_counted_as_errors() {
        let report = "  1200 requests in 4.00s, 0.50MB read\n  Socket errors: connect 1, read 2, \
                      write 0, timeout 4\n  Non-2xx or 3xx responses: 30\nRequests/sec: 300.00\n";
        let count = Count::of_wrk(report).expect("the report is whole");
        assert_eq!(count, Count { requests: 1200, errors: 37, seconds: 4.0 });
        assert!(Count::of_wrk("unable to connect").is_err());

        let report = "finished in 1500.00ms, 60.00 req/s, 1KB/s\n\
                      requests: 100 total, 100 started, 90 done, 90 succeeded, 10 failed, 0 errored, 0 timeout\n\
                      status codes: 80 2xx, 0 3xx, 10 4xx, 0 5xx\n";
        let count = Count::of_h2load(report).expect("the report is whole");
        assert_eq!(count, Count { requests: 90, errors: 10, seconds: 1.5 });
        assert!(Count::of_h2load("").is_err());
    }

    #[test]
    fn latencies_leave_out_the_first_tenth() {
        let slow = "1\t200\t900000\n".repeat(100);
        let log: String = (0..900).map(|i| format!("2\t200\t{i}\n")).collect();
        let latency = Latency::of_log(&(slow + &log), 0).expect("the log has lines");
        assert_eq!((latency.p50, latency.p99, latency.p999), (450.0, 891.0, 899.0));
        assert!(Latency::of_log("", 0).is_err());
    }

    #[test]
    fn a_load_over_many_routes_reaches_different_ones() {
        let mut random = Random::new();
        let mut seen: Vec<u32> = (0..1000).map(|_| random.below(100_000)).collect();
        assert!(seen.iter().all(|index| *index < 100_000));
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 980, "{} different ones", seen.len());
    }
}

//! What the doctor sees of a server: its name, its port, its certificate and its clock, directly and
//! through an egress proxy.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluicegate_gateway::client::{Egress, EgressSettings, TlsClients};
use sluicegate_gateway::core::now;
use sluicegate_gateway::plugin::Registry;
use sluicegate_gateway::reach;
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_testkit::certs::{Authority, self_signed};
use sluicegate_testkit::{Answer, Origin, Proxy};
use tokio::runtime::Runtime;

struct Bench {
    runtime: Runtime,
    deps: UpstreamDeps,
}

impl Bench {
    fn new() -> Self {
        let runtime = Runtime::new().expect("threads can be started");
        let deps = sluicegate_testkit::deps(Registry::default(), runtime.handle()).upstream;
        Self { runtime, deps }
    }

    fn trusting(authority: &Authority) -> Self {
        let mut bench = Self::new();
        bench.deps.tls = Arc::new(TlsClients::new(Some(authority.pem().as_bytes())));
        bench
    }

    /// Each step's name, with `!` where it is not well, and what was told last.
    fn look(&self, url: &str, verify: bool, expects_date: bool) -> (String, String) {
        let steps = self.runtime.block_on(reach::steps(url, verify, expects_date, &self.deps));
        let mark = |ok| if ok { "" } else { "!" };
        let names: Vec<_> =
            steps.iter().map(|step| format!("{}{}", step.name, mark(step.ok))).collect();
        let detail = steps.last().map(|step| step.detail.clone()).unwrap_or_default();
        (names.join(" "), detail)
    }

    #[track_caller]
    fn check(&self, url: &str, verify: bool, expects_date: bool, names: &str, detail: &str) {
        let (seen, told) = self.look(url, verify, expects_date);
        assert_eq!(seen, names, "{url}: {told}");
        assert!(told.contains(detail), "{url}: {told}");
    }
}

fn date(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

/// An origin whose clock is ahead of ours, or behind it.
fn at(time: impl Fn() -> SystemTime + Send + Sync + 'static) -> Origin {
    Origin::start(move |_| Answer::status(400).header("Date", &date(time())))
}

#[test]
fn a_name_or_a_port_that_leads_nowhere_is_told() {
    let bench = Bench::new();
    let nowhere = "http://no-such-name.invalid/";
    bench.check(nowhere, true, true, "dns!", "no-such-name.invalid does not resolve");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let url = format!("http://{}/", free.expect("loopback has a free port"));
    bench.check(&url, true, true, "dns tcp!", "cannot connect to 127.0.0.1:");
}

#[test]
fn a_clock_more_than_four_minutes_apart_is_not_well() {
    let bench = Bench::new();
    for (apart, ok) in [(0, true), (230, true), (250, false), (90_000, false)] {
        let apart = Duration::from_secs(apart);
        let told = if ok { "ours is " } else { "set the clock" };
        let names = if ok { "dns tcp tls clock" } else { "dns tcp tls clock!" };
        let (ahead, behind) = (at(move || now() + apart), at(move || now() - apart));
        for origin in [ahead, behind] {
            bench.check(&origin.url("/"), true, true, names, told);
            assert_eq!(origin.last().header("host"), None, "nothing is run");
        }
    }
}

#[test]
fn a_clock_that_is_not_seen_is_well_only_where_nothing_depends_on_it() {
    let bench = Bench::new();
    let origin = Origin::start(|_| Answer::status(400));
    let told = "not seen: the server tells no time";
    bench.check(&origin.url("/"), true, false, "dns tcp tls clock", told);
    bench.check(&origin.url("/"), true, true, "dns tcp tls clock!", told);
}

#[test]
fn a_date_counts_that_came_before_the_server_fell_silent() {
    // One server ends its head and keeps the connection, the other does not even end its head.
    for end in ["Content-Length: 100\r\n\r\nhalf", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let addr: SocketAddr = listener.local_addr().expect("it is bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody comes");
            let date = date(now());
            let head = format!("HTTP/1.1 400 Bad Request\r\nDate: {date}\r\n{end}");
            stream.write_all(head.as_bytes()).expect("it reads");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let names = "dns tcp tls clock";
        Bench::new().check(&format!("http://{addr}"), true, true, names, "ours is");
        server.join().expect("it does not panic");
    }
}

#[test]
fn a_certificate_that_is_not_believed_is_told() {
    let authority = Authority::new();
    let bench = Bench::trusting(&authority);
    let answer = || Answer::status(400).header("Date", &date(now()));
    let own = Origin::tls(&self_signed(&["127.0.0.1"]), move |_| answer());
    let other = Origin::tls(&authority.issue(&["other.test"]), move |_| answer());
    let good = Origin::tls(&authority.issue(&["127.0.0.1"]), move |_| answer());
    for origin in [&own, &other] {
        let url = format!("https://{}", origin.addr);
        bench.check(&url, true, true, "dns tcp tls!", "the handshake failed");
        bench.check(&url, false, true, "dns tcp tls clock", "ours is");
    }
    bench.check(&format!("https://{}", good.addr), true, true, "dns tcp tls clock", "ours is");
}

#[test]
fn certificate_and_clock_are_looked_at_through_a_tunnel() {
    let authority = Authority::new();
    let pair = authority.issue(&["fn.test"]);
    let day = Duration::from_secs(86_400);
    let good = Origin::tls(&pair, |_| Answer::status(400).header("Date", &date(now())));
    let wrong = Origin::tls(&pair, move |_| Answer::status(400).header("Date", &date(now() + day)));
    let own = Origin::tls(&self_signed(&["fn.test"]), |_| Answer::status(400));
    let hosts = [("fn.test:1", good.addr), ("fn.test:2", wrong.addr), ("fn.test:3", own.addr)];
    let proxy = Proxy::start(&hosts, None, None);
    let mut bench = Bench::trusting(&authority);
    let url = format!("http://{}", proxy.addr);
    let settings =
        EgressSettings { https_proxy: url.clone(), http_proxy: url, no_proxy: Vec::new() };
    bench.deps.egress = Egress::new(&settings, &bench.deps.resolver, &bench.deps.tls)
        .expect("the settings are valid");
    for (port, names, told) in [
        (1, "tunnel tls clock", "ours is"),
        (2, "tunnel tls clock!", "set the clock"),
        (3, "tunnel tls!", "the handshake failed"),
        (4, "tunnel!", "502 Bad Gateway"),
    ] {
        bench.check(&format!("https://fn.test:{port}"), true, true, names, told);
    }
}

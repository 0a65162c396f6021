//! How long the router takes: to find a route, to take a change, to be built.
//!
//! `cargo bench -p sluicegate-gateway --bench router` prints nanoseconds per call (an
//! argument, such as `100000 exact`, picks cases by name). The bars: a look-up
//! with random targets stays below 1 µs at 100,000 routes, one change among them far below 50 ms.

use std::{hint::black_box, net::IpAddr, sync::LazyLock, time::Instant};

use sluicegate_gateway::{
    expr::{Value, VarName, Vars},
    router::{Match, Matched, Mode, RouteInput, Router},
    uri,
};

fn main() {
    for count in [100, 10_000, 100_000] {
        run("exact /svc/N/items/M", Mode::HostUri, count, |n| {
            let uri = format!("/svc/{}/items/{n}", n % 97);
            (RouteInput::new(n.to_string(), uri.clone(), n), "any.test".to_owned(), uri)
        });
        run("prefix /r/NNNN/*", Mode::HostUri, count, |n| {
            let route = RouteInput::new(n.to_string(), format!("/r/{n:04}/*"), n);
            (route, "any.test".to_owned(), format!("/r/{n:04}/some/thing"))
        });
        run("one route per host", Mode::HostUri, count, |n| {
            let host = format!("tenant-{n}.example.com");
            let mut route = RouteInput::new(n.to_string(), "/api/*", n);
            route.hosts.push(host.clone());
            (route, host, "/api/v1/items".to_owned())
        });
        run("one route per *.host", Mode::HostUri, count, |n| {
            let mut route = RouteInput::new(n.to_string(), "/api/*", n);
            route.hosts.push(format!("*.tenant-{n}.example.com"));
            (route, format!("www.tenant-{n}.example.com"), "/api/v1/items".to_owned())
        });
        run("/u/N/:id/items", Mode::UriWithParameter, count, |n| {
            let route = RouteInput::new(n.to_string(), format!("/u/{n}/:id/items"), n);
            (route, "any.test".to_owned(), format!("/u/{n}/4711/items"))
        });
    }
    normalising();
}

type Case = (RouteInput<usize>, String, String);

fn run(name: &str, mode: Mode, count: usize, case: impl Fn(usize) -> Case) {
    let mut wanted =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|part| format!("{count} {name}").contains(&part)) {
        return;
    }
    const LOOKUPS: usize = 300_000;
    const UPDATES: usize = 2_000;
    let cases: Vec<_> = (0..count).map(&case).collect();
    let before = resident_kib();

    let begin = cpu_ns();
    let mut builder = Router::builder(mode);
    for (route, ..) in &cases {
        builder.insert(route.clone());
    }
    let mut router = builder.build();
    drop(builder);
    let build_ms = (cpu_ns() - begin) as f64 / 1e6;
    let bytes_each = resident_kib().saturating_sub(before) * 1024 / count;

    let mut random = Random(42);
    // They lie in memory in the order they are asked for: a real request is in the cache already.
    let mut texts = String::new();
    let asked: Vec<_> = (0..LOOKUPS)
        .map(|_| {
            let n = random.below(count);
            let (_, host, path) = &cases[n];
            let begin = texts.len();
            texts.extend([host.as_str(), path.as_str()]);
            (n, begin, begin + host.len(), texts.len())
        })
        .collect();
    let mut matched = Matched::default();
    let find_ns = quickest(&asked, |&(n, begin, middle, end)| {
        let request = request(&texts[begin..middle], &texts[middle..end]);
        let found = router.find(&request, &NoVars, &mut matched);
        assert_eq!(black_box(found), Some(&n));
    });
    // The same without the router.
    let idle_ns = quickest(&asked, |&(_, begin, middle, end)| {
        let request = request(&texts[begin..middle], &texts[middle..end]);
        let bytes = request.host.bytes().chain(request.path.iter().copied());
        black_box(bytes.fold(0_u8, |sum, byte| sum ^ byte));
    });

    let begin = cpu_ns();
    for _ in 0..UPDATES {
        let n = random.below(count);
        router = router.updated([], [case(n).0]);
    }
    let update_ns = (cpu_ns() - begin) / UPDATES as u64;
    println!(
        "{count:>7} x {name:<22} find {find_ns:>5} ns (reading the requests {idle_ns} ns), one change \
         {update_ns:>6} ns, build {build_ms:>6.1} ms, {bytes_each} bytes a route"
    );
}

/// Nanoseconds per call in the quickest of some rounds: what a busy machine adds is left out.
fn quickest<T>(calls: &[T], mut call: impl FnMut(&T)) -> u64 {
    const ROUNDS: usize = 10;
    let round = |_| {
        let begin = cpu_ns();
        calls.iter().for_each(&mut call);
        (cpu_ns() - begin) / calls.len() as u64
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

fn request<'a>(host: &'a str, path: &'a str) -> Match<'a> {
    let remote_addr = IpAddr::from([127, 0, 0, 1]);
    Match { path: path.as_bytes(), host, http_host: Some(host), method: "GET", remote_addr }
}

fn normalising() {
    const CALLS: u32 = 2_000_000;
    for path in ["/r/0042/some/thing", "/r/0042/%61//./thing"] {
        let begin = cpu_ns();
        for _ in 0..CALLS {
            black_box(uri::normalize(black_box(path.as_bytes()))).expect("well-formed");
        }
        println!("normalize {path}: {} ns", (cpu_ns() - begin) / u64::from(CALLS));
    }
}

struct NoVars;

impl Vars for NoVars {
    fn var<'a>(&'a self, _: &VarName) -> Option<Value<'a>> {
        None
    }
}

/// Always the same numbers, so that runs can be compared.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// Time on the processor where /proc tells it, so that a busy machine disturbs less; else wall time.
fn cpu_ns() -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let scheduled = std::fs::read_to_string("/proc/self/schedstat").ok();
    let on_cpu = scheduled.and_then(|text| text.split_whitespace().next()?.parse().ok());
    on_cpu.unwrap_or_else(|| u64::try_from(BEGIN.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Resident memory where /proc tells it, else zero.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

//! Ten thousand routes: they load, match and change, and no request notices the changes but by
//! getting the new answer.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, request_bytes};
use sluicegate_testkit::gateway::ADMIN_KEY;
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::random::Random;
use crate::wire::rss_bytes;

#[test]
fn ten_thousand_routes_load_match_and_change_while_no_request_fails() {
    let origin = Origin::start(|received| Answer::text(received.header("host").unwrap_or("").to_owned()));
    let mut gate = GatewayProcess::with(crate::BINARY, json!({"nginx_config": {"error_log_level": "info"}}));
    let routes: Vec<RouteState> = (0..ROUTES).map(|_| RouteState::default()).collect();
    let writer = Writer { origin: &origin, routes: &routes };

    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in 0..WRITERS {
            let (gate, writer) = (&gate, &writer);
            scope.spawn(move || {
                let mut admin = Client::connect(gate.admin);
                for n in (part..ROUTES).step_by(WRITERS) {
                    writer.put(&mut admin, n);
                }
            });
        }
    });
    println!("{ROUTES} routes written in {:?}", began.elapsed());
    assert_eq!(gate.get("/routes?page=1&page_size=10").1["total"], ROUTES);

    let began = Instant::now();
    gate.restart();
    println!("started with {ROUTES} routes in {:?}", began.elapsed());
    let mut client = Client::connect(gate.http);
    for n in (0..ROUTES).step_by(97).chain([ROUTES - 1]) {
        ask(&mut client, &routes, n);
    }
    assert_eq!(client.get(&format!("/r/{ROUTES}")).status, 404);

    let before = rss_bytes(&gate);
    let done = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let (gate, routes, done, asked) = (&gate, &routes, &done, &asked);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut client = Client::connect(gate.http);
                while !done.load(Ordering::SeqCst) {
                    // Mostly among those that change.
                    let among = if random.below(4) == 0 { ROUTES } else { CHANGED };
                    ask(&mut client, routes, random.below(among));
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let writers: Vec<_> = (0..2)
            .map(|part| {
                let (gate, writer) = (&gate, &writer);
                scope.spawn(move || {
                    let mut random = Random::new(100 + part as u64);
                    let mut admin = Client::connect(gate.admin);
                    for _ in 0..CHANGES / 2 {
                        // Each writer has its own half of the routes.
                        let n = random.below(CHANGED / 2) * 2 + part;
                        match random.below(3) {
                            0 => writer.delete(&mut admin, n),
                            _ => writer.put(&mut admin, n),
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            // The clients stop even when a writer has failed.
            let written = writer.join();
            if written.is_err() {
                done.store(true, Ordering::SeqCst);
                panic!("a change was refused");
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    let asked = asked.load(Ordering::SeqCst);
    println!("{CHANGES} changes in {:?}, {asked} requests meanwhile", began.elapsed());
    assert!(asked > CHANGES / 4, "only {asked} requests came through beside {CHANGES} changes");
    let grown = rss_bytes(&gate).saturating_sub(before);
    assert!(grown < RSS_GROWTH_MAX, "{CHANGES} changes took {} KiB more memory", grown >> 10);
    // What the changes left behind is what a restart finds.
    gate.restart();
    let mut client = Client::connect(gate.http);
    for n in 0..CHANGED {
        ask(&mut client, &routes, n);
    }
}

/// Asks for a route: its answer must be that of a version that was in force at some moment of
/// the request.
#[track_caller]
fn ask(client: &mut Client, routes: &[RouteState], n: usize) {
    let first = routes[n].acknowledged.load(Ordering::SeqCst);
    let answer = client.get(&format!("/r/{n}"));
    let last = routes[n].sent.load(Ordering::SeqCst);
    match answer.status {
        200 => {
            let text = answer.text();
            let version = text.strip_prefix(&format!("r{n}-v")).and_then(|v| v.parse().ok());
            let version: u64 = version.unwrap_or_else(|| panic!("route {n} answered {text:?}"));
            assert!((first..=last).contains(&version), "route {n}: version {version}, not {first} to {last}");
        }
        404 => {
            let deleted = (first..=last).any(|version| version % 2 == 0);
            assert!(deleted, "route {n} is unknown in versions {first} to {last}");
        }
        status => panic!("route {n} answered {status}"),
    }
}

/// A route's versions: odd ones exist, even ones (0 too) are deletions.
#[derive(Default)]
struct RouteState {
    sent: AtomicU64,
    acknowledged: AtomicU64,
}

struct Writer<'a> {
    origin: &'a Origin,
    routes: &'a [RouteState],
}

impl Writer<'_> {
    fn put(&self, admin: &mut Client, n: usize) {
        let state = &self.routes[n];
        let version = state.acknowledged.load(Ordering::SeqCst);
        let version = version + if version % 2 == 0 { 1 } else { 2 };
        let body = json!({
            "uri": format!("/r/{n}"),
            "upstream": {
                "type": "roundrobin", "nodes": {self.origin.addr.to_string(): 1},
                "pass_host": "rewrite", "upstream_host": format!("r{n}-v{version}"),
            },
        });
        // Between two PUTs no deletion is possible, but the even number between them must not
        // count as one: the range of a request in between is judged by what was sent.
        state.jump(version);
        call(admin, "PUT", n, &body);
        state.acknowledged.store(version, Ordering::SeqCst);
    }

    fn delete(&self, admin: &mut Client, n: usize) {
        let state = &self.routes[n];
        let version = state.acknowledged.load(Ordering::SeqCst);
        if version % 2 == 1 {
            state.sent.store(version + 1, Ordering::SeqCst);
            call(admin, "DELETE", n, &Value::Null);
            state.acknowledged.store(version + 1, Ordering::SeqCst);
        }
    }
}

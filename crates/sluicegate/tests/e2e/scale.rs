//! Ten thousand routes: they load, match and change, and no request notices the changes but by
//! getting the new answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;
use sluicegate_testkit::client::{Client, request_bytes};
use sluicegate_testkit::gateway::ADMIN_KEY;
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::random::Random;
use crate::wire::rss_bytes;

#[test]
fn ten_thousand_routes_load_match_and_change_while_no_request_fails() {
    let origin =
        Origin::start(|received| Answer::text(received.header("host").unwrap_or("").to_owned()));
    let mut gate =
        GatewayProcess::with(crate::BINARY, json!({"nginx_config": {"error_log_level": "info"}}));
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
    let versions = routes[n].sent();
    match answer.status {
        200 => {
            let text = answer.text();
            let version = text.strip_prefix(&format!("r{n}-v")).and_then(|v| v.parse().ok());
            let version: usize = version.unwrap_or_else(|| panic!("route {n} answered {text:?}"));
            assert!(
                version >= first && versions.get(version) == Some(&true),
                "route {n}: version {version} was not in force from {first} on: {versions:?}"
            );
        }
        404 => {
            let deleted = versions[first..].contains(&false);
            assert!(deleted, "route {n} was there from version {first} on: {versions:?}");
        }
        status => panic!("route {n} answered {status}"),
    }
}

/// A route's versions as they were sent: does the route exist in it? Version 0: it does not.
struct RouteState {
    sent: Mutex<Vec<bool>>,
    acknowledged: AtomicUsize,
}

impl Default for RouteState {
    fn default() -> Self {
        Self { sent: Mutex::new(vec![false]), acknowledged: AtomicUsize::new(0) }
    }
}

impl RouteState {
    fn sent(&self) -> Vec<bool> {
        self.sent.lock().expect("nobody panics with it").clone()
    }

    /// The number of a new version that is about to be sent.
    fn send(&self, exists: bool) -> usize {
        let mut sent = self.sent.lock().expect("nobody panics with it");
        sent.push(exists);
        sent.len() - 1
    }
}

struct Writer<'a> {
    origin: &'a Origin,
    routes: &'a [RouteState],
}

impl Writer<'_> {
    fn put(&self, admin: &mut Client, n: usize) {
        let version = self.routes[n].send(true);
        let body = json!({
            "uri": format!("/r/{n}"),
            "upstream": {
                "type": "roundrobin", "nodes": {self.origin.addr.to_string(): 1},
                "pass_host": "rewrite", "upstream_host": format!("r{n}-v{version}"),
            },
        });
        self.call(admin, "PUT", n, &body.to_string());
        self.routes[n].acknowledged.store(version, Ordering::SeqCst);
    }

    fn delete(&self, admin: &mut Client, n: usize) {
        if self.routes[n].sent().ends_with(&[false]) {
            return;
        }
        let version = self.routes[n].send(false);
        self.call(admin, "DELETE", n, "");
        self.routes[n].acknowledged.store(version, Ordering::SeqCst);
    }

    fn call(&self, admin: &mut Client, method: &str, n: usize, body: &str) {
        let target = format!("/apisix/admin/routes/{n}");
        let answer = admin
            .send(request_bytes(method, &target, &[("X-API-KEY", ADMIN_KEY)], body))
            .response();
        assert!(
            matches!(answer.status, 200 | 201),
            "{method} {n}: {} {}",
            answer.status,
            answer.text()
        );
    }
}

const ROUTES: usize = 10_000;

/// Admin API connections that write the routes at first.
const WRITERS: usize = 4;

/// Clients that ask while routes change.
const CLIENTS: u64 = 4;

/// The changes, and the routes they are spread over.
const CHANGES: usize = 2000;
const CHANGED: usize = 200;

/// How much the resident memory may grow by all the changes.
const RSS_GROWTH_MAX: u64 = 64 << 20;

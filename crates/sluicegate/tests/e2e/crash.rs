//! Killed at any moment, the gateway starts again, has every change it acknowledged, and no half
//! of any other.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, get, request_bytes};
use sluicegate_testkit::gateway::{ADMIN_KEY, config};
use sluicegate_testkit::wait::until;
use sluicegate_testkit::{Answer, GatewayProcess, Origin};

use crate::random::Random;

#[test]
fn killed_two_hundred_times_it_keeps_every_acknowledged_change_whole() {
    let seed = Random::seed() >> 1;
    println!("seed {seed}");
    let origin =
        Origin::start(|received| Answer::text(received.header("host").unwrap_or("").to_owned()));
    let totals: Vec<usize> = std::thread::scope(|scope| {
        let processes: Vec<_> = (0..PROCESSES)
            .map(|number| {
                let origin = &origin;
                scope.spawn(move || kill_again_and_again(origin, Random::new(seed + number)))
            })
            .collect();
        processes.into_iter().map(|p| p.join().expect("every process keeps its word")).collect()
    });
    println!("changes acknowledged per process: {totals:?}");
}

/// Kills one gateway [`KILLS`] times; how many changes were acknowledged on the way.
fn kill_again_and_again(origin: &Origin, mut random: Random) -> usize {
    let mut gate = GatewayProcess::prepare(crate::BINARY, &config(json!({})).to_string());
    let known = Mutex::new(BTreeMap::new());
    let acknowledged = AtomicUsize::new(0);
    for round in 0..KILLS {
        if round % 5 == 4 {
            // Now and then it does not get as far as to serve.
            kill_while_it_starts(&gate, &mut random);
        }
        gate.launch();
        check(&gate, &mut lock(&known), round);
        let enough = acknowledged.load(Ordering::SeqCst) + random.below(KILL_AFTER_CHANGES_MAX);
        let then = Duration::from_micros(random.below(KILL_DELAY_MAX_MICROS) as u64);
        let seeds = [random.below(1 << 62), random.below(1 << 62)];
        std::thread::scope(|scope| {
            for (part, seed) in seeds.into_iter().enumerate() {
                let (admin, known, acknowledged) = (gate.admin, &known, &acknowledged);
                let random = Random::new(seed as u64);
                scope.spawn(move || write(admin, origin, known, acknowledged, random, part));
            }
            until("changes to be acknowledged", || {
                (acknowledged.load(Ordering::SeqCst) >= enough).then_some(())
            });
            std::thread::sleep(then);
            gate.kill();
        });
    }
    gate.launch();
    check(&gate, &mut lock(&known), KILLS);
    acknowledged.into_inner()
}

fn kill_while_it_starts(gate: &GatewayProcess, random: &mut Random) {
    let child = std::process::Command::new(crate::BINARY)
        .arg("start")
        .arg("-p")
        .arg(gate.prefix())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut child = child.expect("the binary can be run");
    std::thread::sleep(Duration::from_micros(random.below(START_KILL_MAX_MICROS) as u64));
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

/// What may be stored under an id: the last acknowledged value (nothing: deleted), and what was
/// sent after it and not answered.
#[derive(Default)]
struct Known {
    acknowledged: Option<Value>,
    unanswered: Option<Option<Value>>,
}

/// Writes until the connection breaks; each writer has every second id.
fn write(
    admin: std::net::SocketAddr,
    origin: &Origin,
    known: &Mutex<BTreeMap<usize, Known>>,
    acknowledged: &AtomicUsize,
    mut random: Random,
    part: usize,
) {
    let Ok(mut client) = Client::try_connect(admin) else { return };
    loop {
        let id = random.below(ROUTES / 2) * 2 + part;
        let exists = lock(known).entry(id).or_default().acknowledged.is_some();
        let delete = exists && random.below(4) == 0;
        let version = random.below(1 << 30);
        let value = (!delete).then(|| {
            // Of very different sizes, so that some changes take several pages of the store.
            let more = random.below(2) * random.below(400);
            let uris: Vec<String> = (0..=more)
                .map(|n| if n == 0 { format!("/{id}") } else { format!("/{id}/{n}") })
                .collect();
            json!({
                "uris": uris,
                "upstream": {
                    "type": "roundrobin", "nodes": {origin.addr.to_string(): 1},
                    "pass_host": "rewrite", "upstream_host": format!("r{id}-v{version}"),
                },
            })
        });
        lock(known).entry(id).or_default().unanswered = Some(value.clone());
        let body = value.as_ref().map(Value::to_string).unwrap_or_default();
        let method = if delete { "DELETE" } else { "PUT" };
        let target = format!("/apisix/admin/routes/{id}");
        let request = request_bytes(method, &target, &[("X-API-KEY", ADMIN_KEY)], body);
        if client.try_send(request).is_err() {
            return;
        }
        let Ok(answer) = client.try_response() else { return };
        assert!(
            matches!(answer.status, 200 | 201),
            "{method} {id}: {} {}",
            answer.status,
            answer.text()
        );
        let mut known = lock(known);
        let entry = known.entry(id).or_default();
        entry.acknowledged = value;
        entry.unanswered = None;
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// Holds what is stored and served against what was acknowledged.
fn check(gate: &GatewayProcess, known: &mut BTreeMap<usize, Known>, round: usize) {
    let (status, listing) = gate.get("/routes");
    assert_eq!(status, 200, "round {round}");
    let mut stored: BTreeMap<usize, Value> = BTreeMap::new();
    for entry in listing["list"].as_array().expect("there is a list") {
        let mut value = entry["value"].clone();
        let fields = value.as_object_mut().expect("a route is a map");
        let id =
            fields.remove("id").and_then(|id| id.as_str()?.parse().ok()).expect("it has an id");
        for time in ["create_time", "update_time"] {
            assert!(
                fields.remove(time).is_some_and(|time| time.is_u64()),
                "round {round}: {id} has no {time}"
            );
        }
        stored.insert(id, value);
    }
    let mut served = 0;
    for (id, known) in &mut *known {
        let found = stored.remove(id);
        let unanswered = known.unanswered.take();
        let is_whole = found == known.acknowledged || unanswered.as_ref() == Some(&found);
        assert!(
            is_whole,
            "round {round}: route {id} is {} now; acknowledged was {}, sent after that {}",
            shown(found.as_ref()),
            shown(known.acknowledged.as_ref()),
            unanswered.map_or("nothing".to_owned(), |value| shown(value.as_ref())),
        );
        // What is stored is what is served.
        if served < SERVED_CHECKED || found.is_none() {
            served += 1;
            let answer = get(gate.http, &format!("/{id}"));
            let host = found.as_ref().and_then(|route| route["upstream"]["upstream_host"].as_str());
            match host {
                Some(host) => assert_eq!(
                    (answer.status, answer.text().as_str()),
                    (200, host),
                    "round {round}"
                ),
                None => assert_eq!(answer.status, 404, "round {round}: route {id}"),
            }
        }
        known.acknowledged = found;
    }
    assert!(stored.is_empty(), "round {round}: nobody wrote {:?}", stored.keys());
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("deleted".to_owned(), |value| {
        format!(
            "{} with {} uris",
            value["upstream"]["upstream_host"],
            value["uris"].as_array().map_or(0, Vec::len)
        )
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no writer panicked")
}

/// Gateways that are killed side by side, and how often each.
const PROCESSES: u64 = 4;
const KILLS: usize = 50;

/// Ids that are written.
const ROUTES: usize = 30;

/// Routes that are asked for on the data plane after each start.
const SERVED_CHECKED: usize = 5;

/// A kill comes after up to this many acknowledged changes and this much time.
const KILL_AFTER_CHANGES_MAX: usize = 12;
const KILL_DELAY_MAX_MICROS: usize = 8_000;

/// The latest moment of a kill during a start.
const START_KILL_MAX_MICROS: usize = 80_000;

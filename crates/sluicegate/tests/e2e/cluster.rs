//! Three gateways on three members of etcd, under load, while members are killed.
//!
//! What must hold: no request of a client ever fails; a change that was acknowledged by any gateway
//! is served by all within a second while etcd has a majority, and is never lost; without one, the
//! Admin API answers 503 within its time and says whether it knows what became of the change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sluicegate_store::ETCD_WRITE_TIME_MAX;
use sluicegate_testkit::client::Client;
use sluicegate_testkit::etcd::Etcd;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, client, wait};

use crate::BINARY;

#[test]
fn three_gateways_outlive_the_death_of_every_member_of_etcd() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let origin = Origin::start(|received| Answer::text(received.header("host").unwrap_or("")));
    let gateways: Vec<GatewayProcess> = (0..3)
        .map(|_| {
            let deployment = json!({
                "role_traditional": {"config_provider": "etcd"},
                "etcd": {"host": etcd.hosts(), "resync_delay": 2},
            });
            GatewayProcess::with(BINARY, json!({"deployment": deployment}))
        })
        .collect();
    let mut cluster =
        Cluster { gateways: &gateways, origin: &origin, known: BTreeMap::new(), version: 0 };
    cluster.write_seen_by_all(0);

    let load = Load::default();
    std::thread::scope(|scope| {
        for gateway in &gateways {
            let load = &load;
            scope.spawn(move || load.run(gateway));
        }
        // The load ends with the test, also when it fails.
        let _stop = Stop(&load.stop);

        for _ in 0..15 {
            cluster.write_seen_by_all(usize::MAX);
        }
        let leader = etcd.leader().expect("it has one");
        let follower = (leader + 1) % 3;
        etcd.kill(follower);
        for _ in 0..9 {
            cluster.write_seen_by_all(usize::MAX);
        }
        etcd.launch(follower);
        wait::until("the member to be back", || member_takes_writes(&etcd, follower).then_some(()));

        let leader = etcd.leader().expect("it has one");
        etcd.kill(leader);
        for _ in 0..9 {
            cluster.write_seen_by_all(usize::MAX);
        }
        // One of three is no majority.
        let other = (leader + 1) % 3;
        etcd.kill(other);
        cluster.write_in_vain();
        // None at all.
        etcd.kill((leader + 2) % 3);
        for _ in 0..3 {
            cluster.write_in_vain();
        }
        for member in 0..3 {
            etcd.launch(member);
        }
        etcd.wait_until_it_takes_writes();
        cluster.settle();
        for _ in 0..9 {
            cluster.write_seen_by_all(usize::MAX);
        }
    });
    cluster.check_all();
    let (answered, failed) = (load.answered.into_inner(), load.failed.into_inner());
    println!("{answered} requests answered while etcd came and went");
    assert_eq!(failed, 0, "of {answered} requests");
    assert!(answered > 500, "{answered} requests are hardly a load");
}

struct Cluster<'a> {
    gateways: &'a [GatewayProcess],
    origin: &'a Origin,
    /// What was acknowledged for each route, and what was tried after it and may be there instead.
    known: BTreeMap<u64, Known>,
    version: u64,
}

#[derive(Default)]
struct Known {
    acknowledged: Option<String>,
    maybe: Vec<String>,
}

impl Cluster<'_> {
    /// Writes through one gateway after the other and sees all serve it within a second.
    fn write_seen_by_all(&mut self, gateway: usize) {
        let (route, value, status, answer, took) = self.write(gateway);
        assert!(matches!(status, 200 | 201), "{status} {answer} after {took:?}");
        let acknowledged = Instant::now();
        let known = self.known.entry(route).or_default();
        *known = Known { acknowledged: Some(value.clone()), maybe: Vec::new() };
        for (number, gateway) in self.gateways.iter().enumerate() {
            while client::get(gateway.http, &format!("/r{route}")).text() != value {
                let late = acknowledged.elapsed();
                assert!(late < Duration::from_secs(1), "gateway {number} is {late:?} behind");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Writes without a majority: 503 in time, with what is known.
    fn write_in_vain(&mut self) {
        let (route, value, status, answer, took) = self.write(usize::MAX);
        assert_eq!(status, 503, "{answer}");
        assert!(took < ETCD_WRITE_TIME_MAX + GRACE, "{took:?}");
        let known = self.known.entry(route).or_default();
        let (not_done, unknown) =
            (answer.contains("is not available"), answer.contains("what became of the change"));
        assert!(not_done ^ unknown, "{answer}");
        if unknown {
            known.maybe.push(value);
        }
        println!("without a majority, after {took:?}: {answer}");
    }

    fn write(&mut self, gateway: usize) -> (u64, String, u16, String, Duration) {
        self.version += 1;
        let route = self.version % ROUTES;
        let value = format!("r{route}-v{}", self.version);
        let body = json!({
            "uri": format!("/r{route}"),
            "upstream": {
                "type": "roundrobin", "nodes": {self.origin.addr.to_string(): 1},
                "pass_host": "rewrite", "upstream_host": value,
            },
        });
        let gateway = match gateway {
            usize::MAX => usize::try_from(self.version).unwrap() % self.gateways.len(),
            chosen => chosen,
        };
        let began = Instant::now();
        let (status, answer) = self.gateways[gateway].put(&format!("/routes/{route}"), &body);
        (route, value, status, answer.to_string(), began.elapsed())
    }

    /// Waits until every gateway takes writes again, and learns what became of unknown ones.
    fn settle(&mut self) {
        for gateway in self.gateways {
            let body = json!({"uri": "/settled", "upstream": {
                "type": "roundrobin", "nodes": {self.origin.addr.to_string(): 1},
            }});
            wait::until("the gateway to take writes", || {
                matches!(gateway.put("/routes/settled", &body).0, 200 | 201).then_some(())
            });
        }
        self.check_all();
        for known in self.known.values_mut() {
            known.maybe.clear();
        }
    }

    /// Every acknowledged change is there, or one after it whose outcome was unknown.
    fn check_all(&mut self) {
        for (route, known) in &mut self.known {
            let served: Vec<String> = self
                .gateways
                .iter()
                .map(|gateway| client::get(gateway.http, &format!("/r{route}")).text())
                .collect();
            assert!(served.iter().all(|text| *text == served[0]), "/r{route}: {served:?}");
            let acknowledged = known.acknowledged.as_ref().is_some_and(|text| *text == served[0]);
            let maybe = known.maybe.contains(&served[0]);
            let never = known.acknowledged.is_none() && served[0].contains("404");
            assert!(
                acknowledged || maybe || never,
                "/r{route} is {:?}, was acknowledged {:?}",
                served[0],
                known.acknowledged
            );
            if maybe {
                known.acknowledged = Some(served[0].clone());
            }
        }
    }
}

/// Requests to a route that is always there, one after the other on a kept connection.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    fn run(&self, gateway: &GatewayProcess) {
        let mut client = Client::connect(gateway.http);
        while !self.stop.load(Ordering::Relaxed) {
            // The first write of the test made this route.
            client.send("GET /r1 HTTP/1.1\r\nHost: gate\r\n\r\n");
            match client.try_response() {
                Ok(answer) if answer.status == 200 => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    println!("a request failed: {other:?}");
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    client = Client::connect(gateway.http);
                }
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn member_takes_writes(etcd: &Etcd, member: usize) -> bool {
    let body = r#"{"key":"L3Rlc3Q=","value":""}"#;
    etcd.post(member, "/v3/kv/put", body).is_ok_and(|answer| answer.contains("revision"))
}

/// Routes that are written, again and again.
const ROUTES: u64 = 7;
/// What a busy machine may add to a named time.
const GRACE: Duration = Duration::from_secs(2);

//! When probes are sent: one task keeps the time for all upstreams, rounds of probes are spread
//! over their interval, and no more than [`PROBES_MAX`] are under way at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use crate::client::TlsClients;

use super::probe::{Outcome, probe};
use super::target::Seen;
use super::target::Target;
use super::{Checker, Line};

/// When an upstream's probes were and will be.
#[derive(Default)]
pub(super) struct Timing {
    /// Counts changes: what was planned before one is void.
    change: u64,
    last: [Option<Instant>; 2],
}

/// A round of probes that is planned. The earliest is the smallest.
struct Planned {
    at: Instant,
    line: Weak<Line>,
    change: u64,
    mode: usize,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Sends probes until nobody is left who could ask for them.
pub(super) async fn run(mut told: UnboundedReceiver<Weak<Line>>, tls: Arc<TlsClients>) {
    let mut planned = BinaryHeap::new();
    let rounds = Rounds { tls, room: Arc::new(Semaphore::new(PROBES_MAX)) };
    loop {
        let next = planned.peek().map(|Reverse(Planned { at, .. })| *at);
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = told.recv() => match line {
                Some(line) => plan(&line, &mut planned),
                None => return,
            },
            () = sleep => {
                let now = Instant::now();
                while let Some(Reverse(due)) = planned.pop_if_due(now) {
                    rounds.begin(due, now, &mut planned);
                }
            }
        }
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<Planned>>;
}

impl PopIfDue for BinaryHeap<Reverse<Planned>> {
    fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<Planned>> {
        if self.peek()?.0.at <= now { self.pop() } else { None }
    }
}

/// Plans the rounds of an upstream that is new or has changed.
fn plan(line: &Weak<Line>, planned: &mut BinaryHeap<Reverse<Planned>>) {
    let Some(strong) = line.upgrade() else { return };
    strong.told.store(false, Ordering::Release);
    let Some(checker) = strong.current() else { return };
    let mut timing = strong.timing.lock().unwrap_or_else(PoisonError::into_inner);
    timing.change += 1;
    let now = Instant::now();
    for mode in MODES {
        let Some(every) = checker.checks.active.every[mode] else { continue };
        let at = match timing.last[mode] {
            Some(last) => (last + every).max(now),
            None => now + spread(&strong.key, every, planned.len()),
        };
        let (line, change) = (line.clone(), timing.change);
        planned.push(Reverse(Planned { at, line, change, mode }));
    }
}

/// How long the first round waits. Few upstreams are checked at once; the more there are, the
/// more their rounds are spread over the interval.
fn spread(key: &str, every: Duration, planned: usize) -> Duration {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(key.as_bytes());
    let place = (hasher.finish() % 1000) as f64 / 1000.0;
    let share = (planned as f64 / SPREAD_FROM).min(1.0);
    every.min(SPREAD_MAX).mul_f64(place * share)
}

struct Rounds {
    tls: Arc<TlsClients>,
    room: Arc<Semaphore>,
}

impl Rounds {
    fn begin(&self, due: Planned, now: Instant, planned: &mut BinaryHeap<Reverse<Planned>>) {
        let Planned { at, line: weak, change, mode } = due;
        let Some(line) = weak.upgrade() else { return };
        let Some(checker) = line.current() else { return };
        {
            let mut timing = line.timing.lock().unwrap_or_else(PoisonError::into_inner);
            if timing.change != change {
                return;
            }
            timing.last[mode] = Some(now);
        }
        let Some(every) = checker.checks.active.every[mode] else { return };
        // Rounds keep their place, unless the machine is far behind.
        let next = (at + every).max(now + every / 2);
        planned.push(Reverse(Planned { at: next, line: weak, change, mode }));
        let wanted = |target: &&Arc<Target>| target.health().is_up() == (mode == UP);
        let targets: Vec<Arc<Target>> = checker.targets().filter(wanted).cloned().collect();
        if targets.is_empty() || line.busy[mode].swap(true, Ordering::AcqRel) {
            return;
        }
        let round = Arc::new(Round {
            lanes: AtomicUsize::new(checker.checks.active.concurrency.min(targets.len())),
            next: AtomicUsize::new(0),
            line,
            checker,
            targets,
            mode,
        });
        for _ in 0..round.lanes.load(Ordering::Relaxed) {
            tokio::spawn(round.clone().lane(self.tls.clone(), self.room.clone()));
        }
    }
}

/// Probes of one upstream's nodes.
struct Round {
    line: Arc<Line>,
    checker: Arc<Checker>,
    targets: Vec<Arc<Target>>,
    mode: usize,
    next: AtomicUsize,
    lanes: AtomicUsize,
}

impl Round {
    /// Sends one probe after another until all are sent.
    async fn lane(self: Arc<Self>, tls: Arc<TlsClients>, room: Arc<Semaphore>) {
        let active = &self.checker.checks.active;
        while let Some(target) = self.targets.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let Ok(_place) = room.acquire().await else { break };
            if let Outcome::Seen(seen, cause) = probe(active, target, &tls).await {
                let limit = match seen {
                    Seen::Success => active.healthy.successes,
                    Seen::HttpFailure => active.unhealthy.http_failures,
                    Seen::TcpFailure => active.unhealthy.tcp_failures,
                    Seen::Timeout => active.unhealthy.timeouts,
                };
                self.line.see(target, seen, limit, "a probe", || cause.clone());
            }
        }
        if self.lanes.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.line.busy[self.mode].store(false, Ordering::Release);
        }
    }
}

/// Rounds: of nodes that are up, of nodes that are down.
const MODES: [usize; 2] = [UP, 1];
const UP: usize = 0;

/// Probes under way at once, of all upstreams.
const PROBES_MAX: usize = 256;

/// From this number of planned rounds on, new ones are spread over the whole interval.
const SPREAD_FROM: f64 = 200.0;

/// No first round waits longer than this.
const SPREAD_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::json;
    use sluicegate_model::upstream as model;
    use tokio::net::TcpListener;

    use super::super::{HealthChecks, NodeAddr};
    use super::*;

    #[test]
    fn many_upstreams_are_spread_over_their_interval_and_few_are_checked_at_once() {
        let every = Duration::from_secs(10);
        let waits = |planned| {
            let mut waits: Vec<_> =
                (0..100).map(|n| spread(&format!("/upstreams/{n}"), every, planned)).collect();
            waits.sort();
            (waits[0], waits[50], waits[99])
        };
        let (first, half, last) = waits(0);
        assert_eq!((first, half, last), Default::default());
        let (first, half, last) = waits(20_000);
        assert!(first < Duration::from_secs(1) && last > Duration::from_secs(9), "{first:?}");
        assert!(half > Duration::from_secs(3) && half < Duration::from_secs(7), "{half:?}");
        assert!(spread("/upstreams/1", Duration::from_secs(1 << 20), 20_000) <= SPREAD_MAX);
    }

    #[tokio::test]
    async fn no_more_probes_are_under_way_than_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("it is bound");
        let tls = Arc::new(TlsClients::new(Some(b"")));
        let checks = HealthChecks::start(&tokio::runtime::Handle::current(), tls);
        let config = model::Upstream {
            checks: Some(json!({"active": {"timeout": 60, "healthy": {"interval": 1}}})),
            ..Default::default()
        };
        let nodes = [(addr.ip().to_string().into(), NodeAddr::Ip(addr))];
        let checkers: Vec<_> = (0..2 * PROBES_MAX)
            .map(|n| checks.checker(&format!("/upstreams/{n}"), &config, &nodes))
            .collect::<Result<_, _>>()
            .expect("they compile");
        for checker in checkers.iter().flatten() {
            checker.used();
        }
        // No probe is answered: each holds its place.
        let mut held = Vec::new();
        let accepted = async {
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
                if held.len() > PROBES_MAX {
                    return;
                }
            }
        };
        let more = tokio::time::timeout(Duration::from_secs(3), accepted).await;
        assert!(more.is_err(), "one more than allowed came");
        assert_eq!(held.len(), PROBES_MAX);
        // Those that are answered make room for others.
        held.clear();
        let next: Result<(_, SocketAddr), _> =
            tokio::time::timeout(Duration::from_secs(10), listener.accept())
                .await
                .expect("another probe comes");
        next.expect("it is accepted");
    }
}

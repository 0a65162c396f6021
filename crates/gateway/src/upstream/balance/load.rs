//! What balancers remember of a node: requests under way, and how long they took. It outlives
//! changes of the configuration, and is one for all cores.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The load of one node.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    /// The average response time in seconds (an `f32`), and in the lower half the milliseconds
    /// at which it was taken down, by [`clock`].
    pace: AtomicU64,
}

impl Load {
    /// Requests under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed).into()
    }

    /// A request to the node took this long.
    pub fn took(&self, time: Duration, now: Instant) {
        let at = clock(now);
        let _ = self.pace.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| {
            let weight = weight(known, at);
            let pace = seconds(known) * weight + time.as_secs_f32() * (1.0 - weight);
            Some(u64::from(pace.to_bits()) << 32 | u64::from(at))
        });
    }

    /// The average response time, the smaller the older it is.
    pub fn pace(&self, now: Instant) -> f32 {
        let known = self.pace.load(Ordering::Relaxed);
        seconds(known) * weight(known, clock(now))
    }
}

fn seconds(pace: u64) -> f32 {
    f32::from_bits((pace >> 32) as u32)
}

/// How much a pace still counts.
fn weight(pace: u64, at: u32) -> f32 {
    if pace == 0 {
        return 0.0;
    }
    // Two cores may look at the clock in one order and write in the other.
    let aged = at.wrapping_sub(pace as u32).cast_signed().max(0);
    (-(aged as f32) / DECAY_MS).exp()
}

/// Milliseconds since the first look. They begin anew after 49 days, which the difference of two
/// that lie close to one another does not show.
fn clock(now: Instant) -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    now.saturating_duration_since(*START.get_or_init(|| now)).as_millis() as u32
}

/// A request that is with a node; it is no longer when this is dropped.
#[derive(Debug)]
pub struct Hold(Arc<Load>);

impl Hold {
    /// One more request is with the node.
    pub fn new(load: Arc<Load>) -> Self {
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(load)
    }

    /// The request is over, and took this long.
    pub fn done(self, took: Duration, now: Instant) {
        self.0.took(took, now);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The loads of all nodes somebody holds, by name.
#[derive(Debug, Default)]
pub struct Loads(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_name: HashMap<String, Weak<Load>>,
    /// How many there may be before those that nobody holds are looked for.
    sweep_at: usize,
}

impl Loads {
    /// The load of that name.
    pub fn of(&self, name: String) -> Arc<Load> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = known.by_name.get(&name).and_then(Weak::upgrade) {
            return load;
        }
        if known.by_name.len() >= known.sweep_at {
            known.by_name.retain(|_, load| load.strong_count() > 0);
            known.sweep_at = 2 * known.by_name.len().max(LOADS_UNSWEPT);
        }
        let load = Arc::default();
        known.by_name.insert(name, Arc::downgrade(&load));
        load
    }
}

/// After this time a pace counts a third (1/e), as in APISIX.
const DECAY_MS: f32 = 10_000.0;

/// Loads below this number are not worth a sweep.
const LOADS_UNSWEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_known_by_its_name_for_as_long_as_somebody_holds_it() {
        let loads = Loads::default();
        let first = loads.of("a".to_owned());
        let hold = Hold::new(first.clone());
        drop(first);
        assert_eq!(loads.of("a".to_owned()).in_flight(), 1);
        assert_eq!(loads.of("b".to_owned()).in_flight(), 0);
        drop(hold);
        assert_eq!(loads.of("a".to_owned()).in_flight(), 0);
        for n in 0..1000 {
            loads.of(n.to_string());
        }
        assert!(loads.0.lock().unwrap().by_name.len() <= 2 * LOADS_UNSWEPT);
    }

    #[test]
    fn a_pace_moves_towards_what_is_seen_as_time_passes() {
        let now = Instant::now();
        let load = Load::default();
        assert_eq!(load.pace(now), 0.0);
        load.took(Duration::from_secs(1), now);
        let later = now + Duration::from_secs(10);
        assert!((load.pace(now) - 1.0).abs() < 0.01);
        assert!((load.pace(later) - 0.368).abs() < 0.01);
        load.took(Duration::from_secs(2), later);
        assert!((load.pace(later) - 1.632).abs() < 0.01, "{}", load.pace(later));
    }
}

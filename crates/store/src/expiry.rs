//! When entries expire: deadlines in wall-clock time, so that they hold across a restart.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The deadlines of all keys that have one, in milliseconds of Unix time.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    of: HashMap<Arc<str>, u64>,
    order: BTreeSet<(u64, Arc<str>)>,
}

impl Deadlines {
    /// Gives `key` a deadline, or takes away the one it has.
    pub(crate) fn set(&mut self, key: &Arc<str>, deadline: Option<u64>) {
        if self.of.is_empty() && deadline.is_none() {
            return;
        }
        let old = match deadline {
            Some(deadline) => self.of.insert(Arc::clone(key), deadline),
            None => self.of.remove(key),
        };
        if let Some(old) = old {
            self.order.remove(&(old, Arc::clone(key)));
        }
        if let Some(deadline) = deadline {
            self.order.insert((deadline, Arc::clone(key)));
        }
    }

    /// The deadline of `key`, if it has one.
    pub(crate) fn of(&self, key: &str) -> Option<u64> {
        self.of.get(key).copied()
    }

    /// The keys whose deadline has come, at most `max`, the longest due first.
    pub(crate) fn due(&self, now: u64, max: usize) -> Vec<Arc<str>> {
        let due = self.order.iter().take_while(|(deadline, _)| *deadline <= now);
        due.take(max).map(|(_, key)| Arc::clone(key)).collect()
    }

    /// How long to wait for the next deadline. Never very long at once: the wall clock may be set.
    pub(crate) fn wait(&self, now: u64) -> Option<Duration> {
        let (deadline, _) = self.order.first()?;
        Some(Duration::from_millis(deadline.saturating_sub(now)).min(WAIT_MAX))
    }
}

/// The deadline of what is written at `now` to live for `ttl`.
pub(crate) fn deadline(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)).max(1)
}

/// Milliseconds of Unix time.
#[expect(clippy::disallowed_methods, reason = "a store is an edge: its deadlines outlive it")]
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long a wait for a deadline lasts at most before the clock is looked at again.
const WAIT_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_last_deadline_only() {
        let [a, b]: [Arc<str>; 2] = ["/a".into(), "/b".into()];
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.wait(0), None);
        deadlines.set(&a, Some(10));
        deadlines.set(&b, Some(20));
        deadlines.set(&a, Some(30));
        assert_eq!(deadlines.due(19, 9), []);
        assert_eq!(deadlines.due(20, 9), std::slice::from_ref(&b));
        assert_eq!(deadlines.due(30, 9), [b.clone(), a.clone()]);
        assert_eq!(deadlines.due(30, 1), std::slice::from_ref(&b));
        assert_eq!(deadlines.wait(5), Some(Duration::from_millis(15)));
        assert_eq!(deadlines.wait(25), Some(Duration::ZERO));
        deadlines.set(&b, None);
        assert_eq!(deadlines.wait(29), Some(Duration::from_millis(1)));
        deadlines.set(&a, None);
        assert_eq!((deadlines.wait(0), deadlines.of.len()), (None, 0));
        deadlines.set(&a, Some(u64::MAX));
        assert_eq!(deadlines.wait(0), Some(WAIT_MAX));
    }

    #[test]
    fn a_time_to_live_of_any_length_makes_a_deadline() {
        assert_eq!(deadline(1000, Duration::from_secs(2)), 3000);
        assert_eq!(deadline(1000, Duration::MAX), u64::MAX);
        assert_eq!(deadline(0, Duration::ZERO), 1);
    }
}

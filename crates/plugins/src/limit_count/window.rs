//! Windows counted on this gateway: fixed ones, which begin with the first request, and sliding
//! ones, which weigh what the window before had.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::LocalKey;

use crate::limit::store::{Counter, Remembered, Store};

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Counted {
    /// It is within the limit: what is left, and the seconds until all is there again.
    Within { remaining: u64, reset: f64 },
    /// It is beyond it.
    Beyond { reset: f64 },
}

/// The counters of every `limit-count` of a gateway.
#[derive(Default)]
pub(crate) struct Windows {
    fixed: Store<Window>,
    sliding: Store<Window>,
}

impl Windows {
    /// Counts `cost` in a fixed window.
    pub(crate) fn fixed(
        &self,
        name: &[u8],
        now_ms: u64,
        (limit, window_s): (u64, u64),
        cost: u64,
    ) -> Counted {
        let window_ms = window_ms(window_s);
        let (used, end_ms) =
            self.fixed.count(name, now_ms, |window| window.add(now_ms, window_ms, cost));
        let reset = seconds(end_ms.saturating_sub(now_ms).min(window_ms));
        match limit.checked_sub(used) {
            Some(remaining) => Counted::Within { remaining, reset },
            None => Counted::Beyond { reset },
        }
    }

    /// Counts `cost` in a sliding window. `name` must be another one for another `window_s`.
    pub(crate) fn sliding(
        &self,
        name: &[u8],
        now_ms: u64,
        (limit, window_s): (u64, u64),
        cost: u64,
    ) -> Counted {
        let window_ms = window_ms(window_s);
        let limit = limit.min(COUNT_MASK - cost);
        let left_ms = window_ms - now_ms % window_ms;
        let slid = self
            .sliding
            .count(name, now_ms, |window| window.slide(now_ms, window_ms, left_ms, limit, cost));
        slid.counted(limit, window_ms, left_ms)
    }
}

/// What a sliding window held before and after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slid {
    pub(crate) accepted: bool,
    /// With the request, if it was accepted.
    pub(crate) count: u64,
    /// Of the window before; at most the limit.
    pub(crate) before: u64,
}

impl Slid {
    /// What that means for the request.
    #[expect(clippy::cast_precision_loss, reason = "shares of counts")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    pub(crate) fn counted(self, limit: u64, window_ms: u64, left_ms: u64) -> Counted {
        let (count, limit) = (self.count as f64, limit as f64);
        let left = seconds(left_ms);
        let rate = self.before as f64 / seconds(window_ms);
        if self.accepted {
            let remaining = (limit - count - rate * left).max(0.0) as u64;
            return Counted::Within { remaining, reset: up_to_cents(left) };
        }
        if count >= limit || rate == 0.0 {
            return Counted::Beyond { reset: up_to_cents(left) };
        }
        Counted::Beyond { reset: up_to_cents((left - (limit - count) / rate).max(0.0)) }
    }
}

/// Is a request refused that finds this in a sliding window?
#[expect(clippy::cast_precision_loss, reason = "shares of counts")]
fn is_full(count: u64, before: u64, limit: u64, window_ms: u64, left_ms: u64) -> bool {
    let share = before as f64 / seconds(window_ms) * seconds(left_ms);
    count >= limit || share + count as f64 >= limit as f64
}

/// One window.
#[derive(Default)]
pub(crate) struct Window {
    /// What is used up in it. Sliding: tagged, see [`tagged`].
    used: AtomicU64,
    /// Sliding: what the one before it used, with the tag of this one.
    before: AtomicU64,
    /// When it ends; [`RETIRED`] when the counter is.
    end_ms: AtomicU64,
    /// When nothing depends on it any more.
    over_ms: AtomicU64,
    /// Held to begin a new one.
    turn: Mutex<()>,
}

impl Window {
    /// Adds to a fixed window, beginning a new one when it is time. What was used then, and the
    /// window's end; `None`: it is retired.
    ///
    /// Invariant: a new window's `used` is stored before its end, so whoever reads the end adds to
    /// that window or to one still later.
    fn add(&self, now_ms: u64, window_ms: u64, cost: u64) -> Option<(u64, u64)> {
        loop {
            let end_ms = self.end_ms.load(Ordering::Acquire);
            if end_ms == RETIRED {
                return None;
            }
            if now_ms < end_ms {
                let used = self.used.fetch_add(cost, Ordering::AcqRel);
                return Some((used.saturating_add(cost), end_ms));
            }
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if self.end_ms.load(Ordering::Acquire) == end_ms {
                self.used.store(0, Ordering::Release);
                let end_ms = now_ms.saturating_add(window_ms);
                self.over_ms.store(end_ms, Ordering::Release);
                self.end_ms.store(end_ms, Ordering::Release);
            }
        }
    }

    /// Adds to a sliding window if the limit allows. `None`: it is retired.
    fn slide(
        &self,
        now_ms: u64,
        window_ms: u64,
        left_ms: u64,
        limit: u64,
        cost: u64,
    ) -> Option<Slid> {
        loop {
            let end_ms = self.end_ms.load(Ordering::Acquire);
            if end_ms == RETIRED {
                return None;
            }
            if now_ms >= end_ms {
                self.begin_sliding(end_ms, now_ms - now_ms % window_ms, window_ms);
                continue;
            }
            let used = self.used.load(Ordering::Acquire);
            let before = self.before.load(Ordering::Acquire);
            if used & !COUNT_MASK != before & !COUNT_MASK {
                // A new one begins at this moment.
                std::hint::spin_loop();
                continue;
            }
            let (count, before) = (used & COUNT_MASK, (before & COUNT_MASK).min(limit));
            if is_full(count, before, limit, window_ms, left_ms) {
                return Some(Slid { accepted: false, count, before });
            }
            let added = self.used.compare_exchange_weak(
                used,
                used + cost,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if added.is_ok() {
                return Some(Slid { accepted: true, count: count + cost, before });
            }
        }
    }

    fn begin_sliding(&self, seen_end_ms: u64, start_ms: u64, window_ms: u64) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.end_ms.load(Ordering::Acquire) != seen_end_ms {
            return;
        }
        let tag = start_ms / window_ms;
        let follows = seen_end_ms == start_ms;
        // With the new tag no request can add any more to what is read here.
        let used = self.used.swap(tagged(tag, 0), Ordering::AcqRel);
        let before = if follows { used & COUNT_MASK } else { 0 };
        self.before.store(tagged(tag, before), Ordering::Release);
        let end_ms = start_ms.saturating_add(window_ms);
        self.over_ms.store(end_ms.saturating_add(window_ms), Ordering::Release);
        self.end_ms.store(end_ms, Ordering::Release);
    }
}

impl Counter for Window {
    fn retire(&self, now_ms: u64, forced: bool) -> bool {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let over = forced || self.over_ms.load(Ordering::Acquire) <= now_ms;
        if over {
            self.end_ms.store(RETIRED, Ordering::Release);
        }
        over
    }

    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
        thread_local!(static REMEMBERED: RefCell<Remembered<Window>> = RefCell::default());
        &REMEMBERED
    }
}

/// All counters of a gateway, as plugins hold them.
pub(crate) type SharedWindows = Arc<Windows>;

/// A count with the window it belongs to, so that one step both adds and sees that the window is
/// still the same.
fn tagged(tag: u64, count: u64) -> u64 {
    tag << COUNT_BITS | count
}

/// A window in milliseconds.
pub(crate) fn window_ms(window_s: u64) -> u64 {
    window_s.saturating_mul(1000).clamp(1, WINDOW_MAX_MS)
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "for headers")]
pub(crate) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn up_to_cents(seconds: f64) -> f64 {
    (seconds * 100.0).ceil() / 100.0
}

const COUNT_BITS: u32 = 48;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const RETIRED: u64 = u64::MAX;
/// Some 30,000 years.
const WINDOW_MAX_MS: u64 = 1 << 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn within(remaining: u64, reset: f64) -> Counted {
        Counted::Within { remaining, reset }
    }

    fn beyond(reset: f64) -> Counted {
        Counted::Beyond { reset }
    }

    #[test]
    fn a_fixed_window_begins_with_its_first_request() {
        let windows = Windows::default();
        for (now_ms, counted) in [
            (1_000_500, within(1, 60.0)),
            (1_000_520, within(0, 59.98)),
            (1_030_500, beyond(30.0)),
            (1_060_499, beyond(0.001)),
            (1_060_500, within(1, 60.0)),
        ] {
            assert_eq!(windows.fixed(b"a", now_ms, (2, 60), 1), counted, "{now_ms}");
        }
        assert_eq!(windows.fixed(b"b", 1_060_500, (2, 60), 1), within(1, 60.0));
    }

    #[test]
    fn a_sliding_window_weighs_the_one_before() {
        let windows = Windows::default();
        for (now_ms, counted) in [
            // Windows of ten seconds, aligned to the clock: this one ends at 1,010,000.
            (1_005_000, within(3, 5.0)),
            (1_005_000, within(2, 5.0)),
            (1_005_000, within(1, 5.0)),
            (1_005_000, within(0, 5.0)),
            (1_005_000, beyond(5.0)),
            // All four of the window before count at its start, half of them in its middle.
            (1_010_000, beyond(0.0)),
            (1_015_000, within(1, 5.0)),
            (1_015_000, within(0, 5.0)),
            (1_015_000, beyond(0.0)),
            // Nothing was asked in the window before this one.
            (1_031_000, within(3, 9.0)),
        ] {
            assert_eq!(windows.sliding(b"a", now_ms, (4, 10), 1), counted, "{now_ms}");
        }
    }

    #[test]
    fn limits_are_exact_over_threads_and_over_the_turn_of_a_window() {
        for sliding in [false, true] {
            let windows = Windows::default();
            let clock = AtomicU64::new(1_000_000);
            let accepted: [AtomicU64; 5] = Default::default();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        loop {
                            let now_ms = clock.fetch_add(1, Ordering::SeqCst);
                            let at = usize::try_from((now_ms - 1_000_000) / 10_000).unwrap_or(9);
                            let Some(accepted) = accepted.get(at) else { break };
                            let counted = match sliding {
                                true => windows.sliding(b"a", now_ms, (100, 10), 1),
                                false => windows.fixed(b"a", now_ms, (100, 10), 1),
                            };
                            if matches!(counted, Counted::Within { .. }) {
                                accepted.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    });
                }
            });
            let counts: Vec<u64> = accepted.iter().map(|n| n.load(Ordering::SeqCst)).collect();
            let all: u64 = counts.iter().sum();
            // Threads at a turn may hold a time from just before it, and be noted for that window.
            if sliding {
                assert!(all <= 500 && counts[0].abs_diff(100) < 4, "{counts:?}");
            } else {
                assert_eq!(all, 500, "{counts:?}");
            }
        }
    }
}

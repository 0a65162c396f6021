//! How far the clock here is from AWS's.

use std::sync::atomic::{AtomicI64, Ordering};

/// The difference between AWS's clock and ours, learnt when AWS says that a signature's time is
/// wrong. One per identity and authority: who answers for one host has no say about calls to
/// another, nor about when credentials end. Signing adds it to `now`.
#[derive(Debug, Default)]
pub struct Skew(AtomicI64);

impl Skew {
    /// No difference.
    pub const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// The time to sign with when the clock here says `now`.
    pub fn apply(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.0.load(Ordering::Relaxed))
    }

    /// Seconds that AWS is ahead of us.
    pub fn offset_secs(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes over AWS's time from the `Date` of an answer that refused a signature for its time, which
    /// was made with the offset `signed_with`. Whether a signature made now would be another: then
    /// the call is worth one more try, also where another call has taught the difference meanwhile.
    ///
    /// A difference beyond [`SKEW_SECS_MAX`] is not believed: whoever can set it could have
    /// signatures made for another day.
    pub fn learn(&self, aws_date: u64, now: u64, signed_with: i64) -> bool {
        let offset =
            i64::try_from(aws_date).unwrap_or(i64::MAX) - i64::try_from(now).unwrap_or(i64::MAX);
        if offset.abs() > SKEW_SECS_MAX {
            return false;
        }
        self.0.store(offset, Ordering::Relaxed);
        (offset - signed_with).abs() >= SKEW_STEP_SECS
    }
}

/// The largest difference that is learnt: a clock that has not been set to the right day is to be
/// mended, not followed.
pub const SKEW_SECS_MAX: i64 = 24 * 3600;

/// A smaller change is a message's way, not a clock's fault: AWS allows five minutes.
const SKEW_STEP_SECS: i64 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_learnt_once_and_applied_to_every_time() {
        let skew = Skew::new();
        assert_eq!(skew.apply(1_000), 1_000);
        assert!(skew.learn(2_000, 1_000, 0), "a difference is worth another try");
        assert!(skew.learn(2_000, 1_000, 0), "for each call that was signed without it");
        assert!(!skew.learn(2_005, 1_000, 1_000), "the same difference is not");
        assert_eq!((skew.offset_secs(), skew.apply(5_000)), (1_005, 6_005));
        assert!(skew.learn(500, 1_000, 1_005), "it may be behind, too");
        assert_eq!(skew.apply(100), 0, "and never before 1970");
    }

    #[test]
    fn a_difference_of_more_than_a_day_is_not_believed() {
        let skew = Skew::new();
        let day = SKEW_SECS_MAX.unsigned_abs();
        assert!(!skew.learn(1_000 + day + 1, 1_000, 0));
        assert!(!skew.learn(u64::MAX, 0, 0));
        assert_eq!(skew.offset_secs(), 0);
        assert!(skew.learn(1_000 + day, 1_000, 0));
    }
}

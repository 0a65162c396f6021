//! When to ask again.

use std::time::Duration;

/// How long to wait before credentials that end in `remaining` are fetched anew: until a third of
/// their time is left, at most [`LEAD_MAX`]. `jitter` (0 to 1) makes that up to a fifth earlier, so
/// that gateways started together do not ask together.
///
/// A source that hands out the same credentials again is asked the next time when a third of the
/// rest is left: sooner and sooner, but not more often than [`REFRESH_INTERVAL_MIN`].
pub(crate) fn until_refresh(remaining: Duration, jitter: f64) -> Duration {
    let lead = LEAD_MAX.min(remaining / 3);
    let lead = lead + lead.mul_f64(jitter.clamp(0.0, 1.0) * LEAD_JITTER);
    remaining.saturating_sub(lead).max(REFRESH_INTERVAL_MIN)
}

/// How long to wait after the `failures`th failure in a row (the first is 1).
pub(crate) fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(BACKOFF_MAX).mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// The longest time before expiry at which a refresh begins, jitter aside.
pub const LEAD_MAX: Duration = Duration::from_secs(15 * 60);

/// By how much of the lead a refresh may begin earlier still.
const LEAD_JITTER: f64 = 0.2;

/// The shortest time between two refreshes that succeed.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_secs(5);

/// The wait after the first failure, give or take a quarter.
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// The wait after many failures, give or take a quarter.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_begins_well_before_the_end() {
        let secs = Duration::from_secs;
        for (remaining, jitter, expected) in [
            (secs(6 * 3600), 0.0, secs(6 * 3600 - 900)),
            (secs(6 * 3600), 1.0, secs(6 * 3600 - 1080)),
            (secs(3600), 0.0, secs(2700)),
            (secs(900), 0.0, secs(600)),
            (secs(900), 1.0, secs(540)),
            (secs(30), 0.0, secs(20)),
            (secs(3), 0.0, secs(5)),
            (secs(0), 0.0, secs(5)),
        ] {
            assert_eq!(until_refresh(remaining, jitter), expected, "{remaining:?} {jitter}");
        }
    }

    #[test]
    fn failures_are_retried_slower_and_slower() {
        let secs = Duration::from_secs_f64;
        for (failures, jitter, expected) in [
            (1, 0.5, secs(1.0)),
            (1, 0.0, secs(0.75)),
            (2, 0.5, secs(2.0)),
            (5, 0.5, secs(16.0)),
            (7, 0.5, secs(60.0)),
            (u32::MAX, 1.0, secs(75.0)),
        ] {
            assert_eq!(backoff(failures, jitter), expected, "{failures} {jitter}");
        }
    }
}

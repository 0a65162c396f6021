//! Where identities take the time from.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time, in seconds since 1970. Tests move theirs by hand.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> u64;
}

/// The clock of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the edge that reads the clock")]
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}

//! Waiting with a deadline.

use std::time::{Duration, Instant};

/// Asks until `ask` gives something, and panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, ask).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Asks until `ask` gives something, at most for `limit`.
pub fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(got) = ask() {
            return Some(got);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Longer than anything takes on a busy machine; only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(15);

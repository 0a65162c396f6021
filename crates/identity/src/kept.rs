//! What is fetched and kept fresh by a task of its own: AWS credentials, bearer tokens.
//!
//! This is the one place that decides when to ask, how long to wait after a failure and what a
//! request gets in the meantime. What is asked for is a [`Source`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::Clock;
use crate::schedule::{backoff, until_refresh};

/// Somebody who hands out something that ends.
pub(crate) trait Source: Send + Sync + 'static {
    /// As it is handed out.
    type Issued: Send;
    /// As it is kept.
    type Held: Held;

    /// What all sources share.
    fn common(&self) -> &Common;

    /// The time as the one who checks it has it, when the clock here says `now`.
    fn skewed(&self, now: u64) -> u64 {
        now
    }

    /// Asks once. The error's text names no secret.
    fn ask(&self) -> impl Future<Output = Result<Self::Issued, String>> + Send;

    /// When it ends, in seconds since 1970.
    fn expires(issued: &Self::Issued) -> Option<u64>;

    /// Puts it in the place of what was held before; equal ones keep their version.
    fn hold(&self, issued: Self::Issued, before: Option<&Self::Held>) -> Self::Held;
}

/// Something that is kept.
pub(crate) trait Held: Send + Sync + 'static {
    /// When it ends, in seconds since 1970.
    fn expires(&self) -> Option<u64>;
    /// Changes with the thing, and only with it.
    fn version(&self) -> u64;
}

/// What the identities of one gateway share.
pub(crate) struct Common {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
    /// Sources are asked so many at a time.
    at_once: Semaphore,
    /// The next version; no two things share one.
    versions: AtomicU64,
}

impl Common {
    pub(crate) fn new(clock: Arc<dyn Clock>, runtime: Handle) -> Self {
        let at_once = Semaphore::new(ASKED_AT_ONCE_MAX);
        Self { clock, runtime, at_once, versions: AtomicU64::new(1) }
    }

    pub(crate) fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks when it is its turn, for a limited time.
    pub(crate) async fn limited<T, E: ToString>(
        &self,
        asked: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        let _permit = self.at_once.acquire().await.map_err(|error| error.to_string())?;
        match timeout(ASK_TIME_MAX, asked).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(format!("nothing within {ASK_TIME_MAX:?}")),
        }
    }
}

/// Something and the task that keeps it fresh, which ends with it.
pub(crate) struct Kept<S: Source> {
    state: Arc<State<S>>,
    task: OnceLock<AbortHandle>,
}

impl<S: Source> Kept<S> {
    pub(crate) fn new(name: String, source: S) -> Self {
        let state = State {
            name,
            source,
            current: ArcSwapOption::empty(),
            failure: ArcSwapOption::empty(),
            attempts: watch::Sender::new(0),
            wake: Notify::new(),
            rejected: AtomicU64::new(NONE),
            rejected_at: AtomicU64::new(0),
            refreshed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        Self { state: Arc::new(state), task: OnceLock::new() }
    }

    /// What it is, in words.
    pub(crate) fn name(&self) -> &str {
        &self.state.name
    }

    pub(crate) fn source(&self) -> &S {
        &self.state.source
    }

    /// Puts something in that needs no fetching.
    pub(crate) fn put(&self, issued: S::Issued) {
        self.state.store(issued);
    }

    /// Begins to fetch, if that has not begun.
    pub(crate) fn warm(&self) {
        self.task.get_or_init(|| {
            let runtime = &self.state.source.common().runtime;
            runtime.spawn(keep(Arc::clone(&self.state))).abort_handle()
        });
    }

    /// What there is, if it is valid at `now`.
    pub(crate) fn current(&self, now: u64) -> Option<Arc<S::Held>> {
        self.state.valid(now)
    }

    /// What there is; waits only while nothing has ever been asked for with an outcome, or when it
    /// ended without a refresh having failed (the machine slept), at most [`FIRST_WAIT_MAX`].
    pub(crate) async fn wait(&self, now: u64) -> Result<Arc<S::Held>, String> {
        if let Some(current) = self.current(now) {
            return Ok(current);
        }
        self.warm();
        self.state.wake.notify_one();
        self.state.wait(FIRST_WAIT_MAX).await
    }

    /// Somebody refused the thing of `version`. Has it fetched anew, unless that happened within
    /// [`REJECTED_INTERVAL_SECS`], waits for the outcome and returns a newer one, if there is any.
    pub(crate) async fn after_rejection(&self, version: u64) -> Option<Arc<S::Held>> {
        let mut attempts = self.state.attempts.subscribe();
        if self.reject(version) {
            let _ = timeout(FIRST_WAIT_MAX, attempts.changed()).await;
        }
        self.state.newer_than(version)
    }

    /// Somebody refused the thing of `version`. Has it fetched anew, unless that happened within
    /// [`REJECTED_INTERVAL_SECS`]; whether a newer one may come of it.
    pub(crate) fn reject(&self, version: u64) -> bool {
        let state = &self.state;
        if state.newer_than(version).is_some() {
            return false;
        }
        let now = state.now();
        let before = state.rejected_at.load(Ordering::Relaxed);
        if now < before.saturating_add(REJECTED_INTERVAL_SECS) {
            // Somebody else's rejection has it fetched already.
            return state.rejected.load(Ordering::Relaxed) == version;
        }
        state.rejected_at.store(now, Ordering::Relaxed);
        state.rejected.store(version, Ordering::Relaxed);
        self.warm();
        state.wake.notify_one();
        true
    }

    /// What is held, valid or not.
    pub(crate) fn held(&self) -> Option<Arc<S::Held>> {
        self.state.current.load_full()
    }

    /// Whether a request would get something now.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.valid(self.state.clock()).is_some()
    }

    /// Refreshes that succeeded, refreshes that failed, and why the last one failed, if it did.
    pub(crate) fn counts(&self) -> (u64, u64, Option<String>) {
        let state = &self.state;
        (
            state.refreshed.load(Ordering::Relaxed),
            state.failed.load(Ordering::Relaxed),
            state.failure.load_full().map(|failure| failure.as_ref().clone()),
        )
    }
}

impl<S: Source> Drop for Kept<S> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

struct State<S: Source> {
    name: String,
    source: S,
    current: ArcSwapOption<S::Held>,
    /// Why the last attempt failed; nothing after one that succeeded.
    failure: ArcSwapOption<String>,
    /// Counts attempts; who waits for one subscribes.
    attempts: watch::Sender<u64>,
    wake: Notify,
    /// The version that was refused, or [`NONE`].
    rejected: AtomicU64,
    rejected_at: AtomicU64,
    refreshed: AtomicU64,
    failed: AtomicU64,
}

impl<S: Source> State<S> {
    fn clock(&self) -> u64 {
        self.source.common().clock.now()
    }

    /// The time as the other side has it, as far as known.
    fn now(&self) -> u64 {
        self.source.skewed(self.clock())
    }

    /// What there is, unless it has ended when the clock here says `now`.
    fn valid(&self, now: u64) -> Option<Arc<S::Held>> {
        let current = self.current.load_full()?;
        let ended = |end: u64| self.source.skewed(now).saturating_add(EXPIRY_MARGIN_SECS) >= end;
        if current.expires().is_some_and(ended) { None } else { Some(current) }
    }

    /// What there is, unless it has ended or is that of `version`.
    fn newer_than(&self, version: u64) -> Option<Arc<S::Held>> {
        self.valid(self.clock()).filter(|current| current.version() != version)
    }

    async fn wait(&self, limit: Duration) -> Result<Arc<S::Held>, String> {
        let mut attempts = self.attempts.subscribe();
        let waited = timeout(limit, async {
            loop {
                if let Some(current) = self.valid(self.clock()) {
                    return Ok(current);
                }
                if let Some(failure) = self.failure.load_full() {
                    return Err(failure.as_ref().clone());
                }
                if attempts.changed().await.is_err() {
                    return Err("the gateway is ending".to_owned());
                }
            }
        });
        waited.await.unwrap_or_else(|_| Err(format!("none arrived within {limit:?}")))
    }

    fn store(&self, issued: S::Issued) {
        let before = self.current.load_full();
        self.current.store(Some(Arc::new(self.source.hold(issued, before.as_deref()))));
    }

    /// Whether there is a reason not to wait until the time comes.
    fn is_wanted(&self) -> bool {
        match self.valid(self.clock()) {
            // After a failure, its wait is kept: others would ask as fast as requests come.
            None => self.failure.load().is_none(),
            Some(current) => self.rejected.load(Ordering::Relaxed) == current.version(),
        }
    }

    /// Waits for `delay`, less if the clock jumps ahead or somebody wants it now.
    async fn pause(&self, delay: Option<Duration>) {
        let until = delay.map(|delay| (Instant::now() + delay, self.clock() + delay.as_secs()));
        loop {
            let slice = match until {
                None => PAUSE_SLICE,
                Some((at, by_clock)) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() || self.clock() > by_clock {
                        return;
                    }
                    left.min(PAUSE_SLICE)
                }
            };
            tokio::select! {
                () = sleep(slice) => {}
                () = self.wake.notified() => if self.is_wanted() { return },
            }
        }
    }
}

/// The task: fetch, store, wait; for as long as it lives.
async fn keep<S: Source>(state: Arc<State<S>>) {
    let mut failures = 0_u32;
    loop {
        let outcome = state.source.ask().await.and_then(|issued| {
            let now = state.now().saturating_add(EXPIRY_MARGIN_SECS);
            match S::expires(&issued) {
                Some(end) if end <= now => Err("what the source handed out has ended".to_owned()),
                _ => Ok(issued),
            }
        });
        state.rejected.store(NONE, Ordering::Relaxed);
        let delay = match outcome {
            Ok(issued) => {
                if failures > 0 {
                    info!(identity = %state.name, failures, "Credentials are there again.");
                }
                failures = 0;
                state.refreshed.fetch_add(1, Ordering::Relaxed);
                let expires = S::expires(&issued);
                state.store(issued);
                state.failure.store(None);
                expires.map(|end| {
                    let remaining = Duration::from_secs(end.saturating_sub(state.now()));
                    until_refresh(remaining, rand::random())
                })
            }
            Err(reason) => {
                failures = failures.saturating_add(1);
                state.failed.fetch_add(1, Ordering::Relaxed);
                let valid = state.valid(state.clock()).is_some();
                warn!(
                    identity = %state.name, failures, valid, reason,
                    "Credentials were not refreshed."
                );
                state.failure.store(Some(Arc::new(reason)));
                Some(backoff(failures, rand::random()))
            }
        };
        state.attempts.send_modify(|attempts| *attempts += 1);
        state.pause(delay).await;
    }
}

/// Those in use, by what they were made of; forgotten with their last user.
pub(crate) struct Known<T>(Mutex<KnownMap<T>>);

struct KnownMap<T> {
    all: HashMap<Key, Weak<T>>,
    /// Those dropped are cleared away when there are so many.
    clear_at: usize,
}

/// A hash of every input, so that no secret lies about in a map.
pub(crate) type Key = [u8; 32];

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Mutex::new(KnownMap { all: HashMap::new(), clear_at: 0 }))
    }
}

impl<T> Known<T> {
    /// The one of this key, made if there is none.
    pub(crate) fn get(&self, key: Key, make: impl FnOnce() -> T) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = known.all.get(&key).and_then(Weak::upgrade) {
            return one;
        }
        if known.all.len() >= known.clear_at {
            known.all.retain(|_, one| one.strong_count() > 0);
            known.clear_at = 2 * known.all.len() + CLEAR_MIN;
        }
        let one = Arc::new(make());
        known.all.insert(key, Arc::downgrade(&one));
        one
    }

    /// All that are in use.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.all.values().filter_map(Weak::upgrade).collect()
    }
}

/// How many sources are asked at the same time.
pub const ASKED_AT_ONCE_MAX: usize = 16;

/// How long a request waits for the very first credentials.
pub const FIRST_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a source may take for one answer, all its steps together.
pub const ASK_TIME_MAX: Duration = Duration::from_secs(60);

/// Credentials that end within so many seconds are no longer used: the call has to arrive, too.
pub const EXPIRY_MARGIN_SECS: u64 = 5;

/// How often at most refusals may have one identity's credentials fetched anew.
pub const REJECTED_INTERVAL_SECS: u64 = 30;

/// Fewer dropped identities than this are not worth clearing away.
const CLEAR_MIN: usize = 64;

/// The longest sleep: after it, the clock is looked at again. It may have jumped.
const PAUSE_SLICE: Duration = Duration::from_secs(30);

/// No version.
const NONE: u64 = 0;

//! One identity: its credentials, and the task that keeps them fresh.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sluicegate_aws::credentials::{
    CredentialError, Issued, Provider, Role, Skew, Surroundings, assume_role, load,
};
use sluicegate_aws::sigv4::Credentials;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::identities::{IdentityStatus, Shared};
use crate::schedule::{backoff, until_refresh};

/// Somebody that calls to AWS are signed for. Shared by all routes that configure the same; its
/// task ends when the last of them drops it.
pub struct Identity {
    state: Arc<State>,
    task: OnceLock<AbortHandle>,
}

impl Identity {
    pub(crate) fn new(name: String, ask: Ask, shared: Arc<Shared>) -> Self {
        let state = State {
            name,
            current: ArcSwapOption::empty(),
            failure: ArcSwapOption::empty(),
            attempts: watch::Sender::new(0),
            wake: Notify::new(),
            rejected: AtomicU64::new(NONE),
            rejected_at: AtomicU64::new(0),
            refreshed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            skew: Skew::new(),
            ask,
            shared,
        };
        if let Ask::Provider(Provider::Static(credentials)) = &state.ask {
            let credentials = credentials.clone();
            state.store(Issued { credentials, expires: None, origin: "static" });
        }
        Self { state: Arc::new(state), task: OnceLock::new() }
    }

    /// Begins to fetch, if that has not begun. Without it, the first request does.
    pub fn warm(&self) {
        if matches!(self.state.ask, Ask::Provider(Provider::Static(_))) {
            return;
        }
        self.task.get_or_init(|| {
            self.state.shared.runtime.spawn(keep(Arc::clone(&self.state))).abort_handle()
        });
    }

    /// The credentials, if there are any that are valid at `now` (seconds since 1970).
    pub fn current(&self, now: u64) -> Option<Arc<Current>> {
        self.state.valid(now)
    }

    /// The credentials. Waits only while none have ever been asked for with an outcome, or when
    /// they ended without a refresh having failed (the machine slept); never longer than
    /// [`FIRST_WAIT_MAX`].
    ///
    /// # Errors
    /// When there are none: answer 503.
    pub async fn credentials(&self, now: u64) -> Result<Arc<Current>, Unavailable> {
        if let Some(current) = self.current(now) {
            return Ok(current);
        }
        self.warm();
        self.state.wake.notify_one();
        self.state.wait(FIRST_WAIT_MAX).await
    }

    /// AWS refused credentials of `version` as expired or unknown. Has them fetched anew, unless
    /// that happened within [`REJECTED_INTERVAL_SECS`], waits for the outcome and returns newer
    /// ones, if there are any: then the call is worth one more try.
    pub async fn after_rejection(&self, version: u64) -> Option<Arc<Current>> {
        let state = &self.state;
        if matches!(state.ask, Ask::Provider(Provider::Static(_))) {
            return None;
        }
        let mut attempts = state.attempts.subscribe();
        let clock = &state.shared.clock;
        let newer = || state.valid(clock.now()).filter(|current| current.version != version);
        if let Some(newer) = newer() {
            return Some(newer);
        }
        let now = state.now();
        let before = state.rejected_at.load(Ordering::Relaxed);
        if now < before.saturating_add(REJECTED_INTERVAL_SECS) {
            // Somebody else's rejection has them fetched already.
            if state.rejected.load(Ordering::Relaxed) != version {
                return None;
            }
        } else {
            state.rejected_at.store(now, Ordering::Relaxed);
            state.rejected.store(version, Ordering::Relaxed);
            self.warm();
            state.wake.notify_one();
        }
        let _ = timeout(FIRST_WAIT_MAX, attempts.changed()).await;
        newer()
    }

    /// The difference between AWS's clock and ours, as far as calls of this identity learnt it.
    pub fn skew(&self) -> &Skew {
        &self.state.skew
    }

    /// What it is, in words for logs and explanations; no secrets.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// How it stands.
    pub fn status(&self) -> IdentityStatus {
        let state = &self.state;
        let current = state.current.load_full();
        IdentityStatus {
            name: state.name.clone(),
            origin: current.as_ref().map(|current| current.origin),
            expires: current.as_ref().and_then(|current| current.expires),
            ready: state.valid(state.shared.clock.now()).is_some(),
            refreshed: state.refreshed.load(Ordering::Relaxed),
            failed: state.failed.load(Ordering::Relaxed),
            failure: state.failure.load_full().map(|failure| failure.as_ref().clone()),
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.state.name).finish()
    }
}

/// Credentials in use.
#[derive(Debug)]
pub struct Current {
    /// What to sign with.
    pub credentials: Credentials,
    /// When they end, in seconds since 1970.
    pub expires: Option<u64>,
    /// Which source they are from.
    pub origin: &'static str,
    /// Changes with the credentials, and only with them; what is derived from them is kept by it.
    pub version: u64,
}

/// There are no credentials. The text is for the log and for people who run the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no AWS credentials from {identity}: {reason}")]
pub struct Unavailable {
    /// Whose.
    pub identity: String,
    /// Why.
    pub reason: String,
}

/// What an identity asks.
pub(crate) enum Ask {
    Provider(Provider),
    Role { base: Arc<Identity>, role: Role },
}

struct State {
    name: String,
    ask: Ask,
    current: ArcSwapOption<Current>,
    /// Why the last attempt failed; nothing after one that succeeded.
    failure: ArcSwapOption<String>,
    /// Counts attempts; who waits for one subscribes.
    attempts: watch::Sender<u64>,
    wake: Notify,
    /// The version AWS refused, or [`NONE`].
    rejected: AtomicU64,
    rejected_at: AtomicU64,
    refreshed: AtomicU64,
    failed: AtomicU64,
    skew: Skew,
    shared: Arc<Shared>,
}

impl State {
    /// The time as AWS has it, as far as known.
    fn now(&self) -> u64 {
        self.skew.apply(self.shared.clock.now())
    }

    /// The credentials, unless they have ended when the clock here says `now`.
    fn valid(&self, now: u64) -> Option<Arc<Current>> {
        let current = self.current.load_full()?;
        let ended = |end: u64| self.skew.apply(now).saturating_add(EXPIRY_MARGIN_SECS) >= end;
        if current.expires.is_some_and(ended) { None } else { Some(current) }
    }

    async fn wait(&self, limit: Duration) -> Result<Arc<Current>, Unavailable> {
        let unavailable = |reason: String| Unavailable { identity: self.name.clone(), reason };
        let mut attempts = self.attempts.subscribe();
        let waited = timeout(limit, async {
            loop {
                if let Some(current) = self.valid(self.shared.clock.now()) {
                    return Ok(current);
                }
                if let Some(failure) = self.failure.load_full() {
                    return Err(unavailable(failure.as_ref().clone()));
                }
                if attempts.changed().await.is_err() {
                    return Err(unavailable("the gateway is ending".to_owned()));
                }
            }
        });
        match waited.await {
            Ok(outcome) => outcome,
            Err(_) => Err(unavailable(format!("none arrived within {limit:?}"))),
        }
    }

    /// Asks the source once.
    async fn ask(&self) -> Result<Issued, String> {
        match &self.ask {
            Ask::Provider(provider) => self.limited(load(provider, self.surroundings())).await,
            Ask::Role { base, role } => {
                let credentials = base.credentials(self.shared.clock.now()).await;
                let over = credentials.map_err(|error| error.to_string())?;
                let asked = assume_role(&over.credentials, role, self.surroundings());
                let outcome = self.limited(asked).await;
                if let Err(reason) = &outcome
                    && ["ExpiredToken", "InvalidClientTokenId"].iter().any(|it| reason.contains(it))
                    && let Some(newer) = base.after_rejection(over.version).await
                {
                    let asked = assume_role(&newer.credentials, role, self.surroundings());
                    return self.limited(asked).await;
                }
                outcome
            }
        }
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            outside: &*self.shared.outside,
            sources: &self.shared.sources,
            now: self.shared.clock.now(),
            skew: &self.skew,
        }
    }

    async fn limited(
        &self,
        asked: impl Future<Output = Result<Issued, CredentialError>>,
    ) -> Result<Issued, String> {
        let _permit = self.shared.at_once.acquire().await.map_err(|error| error.to_string())?;
        match timeout(ASK_TIME_MAX, asked).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(format!("nothing within {ASK_TIME_MAX:?}")),
        }
    }

    /// Puts credentials in the place of those before; equal ones keep their version.
    fn store(&self, issued: Issued) -> bool {
        let Issued { credentials, expires, origin } = issued;
        let before = self.current.load_full();
        let same = before.filter(|before| equal(&before.credentials, &credentials));
        let fresh = same.is_none();
        let version = match same {
            Some(same) => same.version,
            None => self.shared.versions.fetch_add(1, Ordering::Relaxed),
        };
        self.current.store(Some(Arc::new(Current { credentials, expires, origin, version })));
        fresh
    }

    /// Whether there is a reason not to wait until the time comes.
    fn is_wanted(&self) -> bool {
        match self.valid(self.shared.clock.now()) {
            // After a failure, its wait is kept: others would ask as fast as requests come.
            None => self.failure.load().is_none(),
            Some(current) => self.rejected.load(Ordering::Relaxed) == current.version,
        }
    }

    /// Waits for `delay`, less if the clock jumps ahead or somebody wants credentials now.
    async fn pause(&self, delay: Option<Duration>) {
        let clock = || self.shared.clock.now();
        let until = delay.map(|delay| (Instant::now() + delay, clock() + delay.as_secs()));
        loop {
            let slice = match until {
                None => PAUSE_SLICE,
                Some((at, by_clock)) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() || clock() > by_clock {
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

/// The task of an identity: fetch, store, wait; for as long as it lives.
async fn keep(state: Arc<State>) {
    let mut failures = 0_u32;
    loop {
        let outcome = state.ask().await.and_then(|issued| {
            let now = state.now().saturating_add(EXPIRY_MARGIN_SECS);
            match issued.expires {
                Some(end) if end <= now => Err("what the source handed out has ended".to_owned()),
                _ => Ok(issued),
            }
        });
        state.rejected.store(NONE, Ordering::Relaxed);
        let delay = match outcome {
            Ok(issued) => {
                if failures > 0 {
                    info!(identity = %state.name, failures, "AWS credentials are there again.");
                }
                failures = 0;
                state.refreshed.fetch_add(1, Ordering::Relaxed);
                let expires = issued.expires;
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
                let valid = state.valid(state.shared.clock.now()).is_some();
                warn!(
                    identity = %state.name, failures, valid, reason,
                    "AWS credentials were not refreshed."
                );
                state.failure.store(Some(Arc::new(reason)));
                Some(backoff(failures, rand::random()))
            }
        };
        state.attempts.send_modify(|attempts| *attempts += 1);
        state.pause(delay).await;
    }
}

fn equal(a: &Credentials, b: &Credentials) -> bool {
    let token = |of: &Credentials| of.session_token.as_ref().map(|token| token.expose().to_owned());
    a.access_key == b.access_key
        && a.secret_key.expose() == b.secret_key.expose()
        && token(a) == token(b)
}

/// How long a request waits for the very first credentials.
pub const FIRST_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a source may take for one answer, all its steps together.
pub const ASK_TIME_MAX: Duration = Duration::from_secs(60);

/// Credentials that end within so many seconds are no longer used: the call has to arrive, too.
pub const EXPIRY_MARGIN_SECS: u64 = 5;

/// How often at most AWS's refusals may have one identity's credentials fetched anew.
pub const REJECTED_INTERVAL_SECS: u64 = 30;

/// The longest sleep: after it, the clock is looked at again. It may have jumped.
const PAUSE_SLICE: Duration = Duration::from_secs(30);

/// No version.
const NONE: u64 = 0;

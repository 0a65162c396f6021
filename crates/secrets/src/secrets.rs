//! The value of each reference in use: fetched once however many resources use it, fetched again
//! when it is due, kept when its manager is down.
//!
//! Nothing here is on the way of a request. [`Secrets::run`] is the one task that fetches;
//! [`Secrets::value`] only looks at what is known.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use sluicegate_model::resource::is_secret_reference;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::manager::{Manager, pick};
use crate::reference::Reference;
use sluicegate_fetch::{FetchError, Network};

/// Every reference in use, with its value.
pub struct Secrets {
    settings: Mutex<Settings>,
    environment: Environment,
    network: Arc<dyn Network>,
    clock: fn() -> u64,
    state: Mutex<State>,
    /// Something is due, or may be.
    wake: Notify,
    /// A fetch has ended.
    ended: Notify,
    /// References whose state changed, until somebody takes them.
    changed: Mutex<HashSet<Arc<str>>>,
    has_changed: Notify,
}

/// How often secrets are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// `apisix.lru.secret.ttl`: a value is fetched again after this time.
    pub ttl: Duration,
    /// `apisix.lru.secret.neg_ttl`: the longest time between two attempts that fail.
    pub neg_ttl: Duration,
}

/// APISIX's defaults.
impl Default for Settings {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), neg_ttl: Duration::from_secs(60) }
    }
}

/// The environment variables references may name.
#[derive(Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// These variables.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(variables.into_iter().collect())
    }

    /// Those of the process, as they are now. What is not UTF-8 is left out.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable's text, or that of a key of the JSON object in it.
    pub(crate) fn value(&self, name: &str, key: Option<&str>) -> Result<String, String> {
        pick(self.0.get(name).ok_or("it is not set")?.clone(), key)
    }
}

/// What is known about a reference.
#[derive(Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Its value.
    Value(Arc<str>),
    /// No attempt to fetch it has ended yet.
    Pending,
    /// It has no value, and why.
    Failed(String),
}

impl fmt::Debug for Lookup {
    /// Values are not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(***)"),
            Self::Pending => f.write_str("Pending"),
            Self::Failed(cause) => f.debug_tuple("Failed").field(cause).finish(),
        }
    }
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// References in use.
    pub references: usize,
    /// Of these, those without a value.
    pub unresolved: usize,
    /// Of these, those whose last value is kept although fetching fails.
    pub stale: usize,
    /// Fetches that brought a value.
    pub fetched: u64,
    /// Fetches that failed.
    pub failed: u64,
}

#[derive(Default)]
struct State {
    managers: HashMap<String, Arc<Manager>>,
    entries: HashMap<Arc<str>, Entry>,
    /// When each entry that waits is due.
    schedule: BTreeSet<(Instant, Arc<str>)>,
    fetched: u64,
    failed: u64,
}

#[derive(Default)]
struct Entry {
    value: Option<Arc<str>>,
    /// Why the last fetch failed; `None` after one that did not.
    failure: Option<String>,
    /// Fetches that failed in a row.
    failures: u32,
    due: Option<Instant>,
    /// A fetch is under way, of this manager.
    fetching: Option<Arc<Manager>>,
}

impl Entry {
    fn lookup(&self) -> Lookup {
        match (&self.value, &self.failure) {
            (Some(value), _) => Lookup::Value(value.clone()),
            (None, Some(cause)) => Lookup::Failed(cause.clone()),
            (None, None) => Lookup::Pending,
        }
    }
}

impl State {
    fn plan(&mut self, reference: &Arc<str>, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(reference) else { return };
        if let Some(before) = entry.due.take() {
            self.schedule.remove(&(before, reference.clone()));
        }
        entry.due = due;
        if let Some(due) = due {
            self.schedule.insert((due, reference.clone()));
        }
    }

    fn remove(&mut self, reference: &str) {
        if let Some((reference, entry)) = self.entries.remove_entry(reference)
            && let Some(due) = entry.due
        {
            self.schedule.remove(&(due, reference));
        }
    }
}

impl Secrets {
    /// Knows no reference yet. `clock` tells Unix time in seconds.
    pub fn new(
        settings: Settings,
        environment: Environment,
        network: Arc<dyn Network>,
        clock: fn() -> u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings: Mutex::new(settings),
            environment,
            network,
            clock,
            state: Mutex::default(),
            wake: Notify::new(),
            ended: Notify::new(),
            changed: Mutex::default(),
            has_changed: Notify::new(),
        })
    }

    /// Takes other times. Those that are planned already stay.
    pub fn configure(&self, settings: Settings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Takes a `secrets` resource (`vault/1`) or its end. What its references stand for is
    /// fetched anew; until then the values stay.
    pub fn set_manager(&self, id: &str, conf: Option<&Value>) {
        let mut state = self.state();
        match conf {
            Some(conf) => {
                let manager = Arc::new(Manager::compile(id, conf, &self.environment));
                state.managers.insert(id.to_owned(), manager);
            }
            None => drop(state.managers.remove(id)),
        }
        let of_manager = |text: &str| matches!(Reference::parse(text), Ok(Reference::Secret { manager, .. }) if manager == id);
        let affected: Vec<Arc<str>> =
            state.entries.keys().filter(|text| of_manager(text)).cloned().collect();
        for reference in affected {
            state.plan(&reference, Some(Instant::now()));
            if let Some(entry) = state.entries.get_mut(&reference) {
                entry.failures = 0;
                if conf.is_some() && entry.value.is_none() {
                    entry.failure = None;
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The managers there are: `vault/1`.
    pub fn managers(&self) -> Vec<String> {
        self.state().managers.keys().cloned().collect()
    }

    /// Starts to follow references. One that is followed already is left as it is.
    pub fn want<'a>(&self, references: impl IntoIterator<Item = &'a str>) {
        let mut state = self.state();
        for text in references {
            if state.entries.contains_key(text) {
                continue;
            }
            let entry = |value: Result<String, String>| match value {
                Ok(value) => Entry { value: Some(value.into()), ..Entry::default() },
                Err(cause) => Entry { failure: Some(cause), ..Entry::default() },
            };
            if state.entries.len() >= REFERENCES_MAX {
                error!(
                    reference = text,
                    limit = REFERENCES_MAX,
                    "There are too many distinct references: this one is not followed."
                );
                continue;
            }
            let reference: Arc<str> = text.into();
            let (entry, due) = match Reference::parse(text) {
                Ok(Reference::Secret { .. }) => (Entry::default(), Some(Instant::now())),
                Ok(Reference::Env { name, key }) => {
                    (entry(self.environment.value(name, key).and_then(not_a_reference)), None)
                }
                Err(error) => (entry(Err(error.to_string())), None),
            };
            if let Some(cause) = &entry.failure {
                error!(
                    reference = text,
                    cause, "A reference has no value: what uses it answers 503."
                );
            }
            state.entries.insert(reference.clone(), entry);
            state.plan(&reference, due);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Ends following a reference that nothing uses any more.
    pub fn forget(&self, reference: &str) {
        self.state().remove(reference);
    }

    /// What is known about a reference now.
    pub fn value(&self, reference: &str) -> Lookup {
        match self.state().entries.get(reference) {
            Some(entry) => entry.lookup(),
            None => Lookup::Failed("it is not followed".to_owned()),
        }
    }

    /// Waits until an attempt to fetch each of these has ended, at most for `limit`. A manager that
    /// was down the last time is not waited for.
    pub async fn settle(&self, references: &[&str], limit: Duration) {
        let settled = async {
            loop {
                let mut ended = std::pin::pin!(self.ended.notified());
                ended.as_mut().enable();
                if !references.iter().any(|reference| self.is_worth_waiting(reference)) {
                    return;
                }
                ended.await;
            }
        };
        // What is not there in time comes later.
        let _ = tokio::time::timeout(limit, settled).await;
    }

    fn is_worth_waiting(&self, reference: &str) -> bool {
        let state = self.state();
        let pending = state.entries.get(reference).is_some_and(|e| e.lookup() == Lookup::Pending);
        let Ok(Reference::Secret { manager, .. }) = Reference::parse(reference) else {
            return false;
        };
        let down = state.managers.get(manager).is_some_and(|m| m.down.load(Ordering::Relaxed));
        pending && !down
    }

    /// Waits for references whose values or failures are others than before.
    pub async fn changed(&self) -> Vec<Arc<str>> {
        loop {
            let taken =
                std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken.into_iter().collect();
            }
            self.has_changed.notified().await;
        }
    }

    /// A text with references in the places of the values they stand for.
    pub fn redact(&self, text: String) -> String {
        let state = self.state();
        let mut text = text;
        for (reference, entry) in &state.entries {
            let Some(value) = entry.value.as_deref().filter(|v| v.len() >= REDACTED_BYTES_MIN)
            else {
                continue;
            };
            // Error texts quote values as they are, as Rust does, or as JSON does.
            let debug = format!("{value:?}");
            let json = Value::from(value).to_string();
            for form in [value, &debug[1..debug.len() - 1], &json[1..json.len() - 1]] {
                if text.contains(form) {
                    text = text.replace(form, reference);
                }
            }
        }
        text
    }

    /// Numbers for metrics.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        let count =
            |of: fn(&Entry) -> bool| state.entries.values().filter(|entry| of(entry)).count();
        Counts {
            references: state.entries.len(),
            unresolved: count(|entry| entry.value.is_none()),
            stale: count(|entry| entry.value.is_some() && entry.failure.is_some()),
            fetched: state.fetched,
            failed: state.failed,
        }
    }

    /// Fetches what is due, without an end.
    pub async fn run(self: Arc<Self>) {
        let mut fetches = JoinSet::new();
        loop {
            let next = self.start_due(&mut fetches);
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = fetches.join_next() => match ended {
                    Ok((reference, manager, outcome)) => self.finish(&reference, &manager, outcome),
                    Err(error) => error!(%error, "Fetching a secret broke off."),
                },
                () = due => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Starts fetches as there is room, and says when the next one is due.
    fn start_due(self: &Arc<Self>, fetches: &mut JoinSet<Fetched>) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        loop {
            if fetches.len() >= FETCHES_AT_ONCE {
                // The end of a fetch comes before the next start.
                return None;
            }
            let (due, reference) = state.schedule.first().cloned()?;
            if due > now {
                return Some(due);
            }
            state.plan(&reference, None);
            let Ok(Reference::Secret { manager: id, path }) = Reference::parse(&reference) else {
                continue;
            };
            let manager = state.managers.get(id).cloned();
            let Some(entry) = state.entries.get_mut(&reference) else { continue };
            let Some(manager) = manager else {
                let cause = format!("there is no secrets/{id}");
                self.failed(&mut state, &reference, cause, None);
                self.ended.notify_waiters();
                continue;
            };
            entry.fetching = Some(manager.clone());
            let (secrets, path) = (self.clone(), path.to_owned());
            let asked = manager.clone();
            let fetch = tokio::spawn(async move {
                asked.fetch(&*secrets.network, &path, (secrets.clock)()).await
            });
            fetches.spawn(async move {
                let broke_off = |_| Err(FetchError::Unusable("fetching broke off".to_owned()));
                (reference, manager, fetch.await.unwrap_or_else(broke_off))
            });
        }
    }

    fn finish(
        &self,
        reference: &Arc<str>,
        manager: &Arc<Manager>,
        outcome: Result<String, FetchError>,
    ) {
        let outcome = outcome.and_then(|v| not_a_reference(v).map_err(FetchError::Unusable));
        let down = outcome.as_ref().is_err_and(FetchError::is_down);
        manager.down.store(down, Ordering::Relaxed);
        let settings = *self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        match &outcome {
            Ok(_) => state.fetched += 1,
            Err(_) => state.failed += 1,
        }
        let Some(entry) = state.entries.get_mut(reference) else { return };
        if !entry.fetching.as_ref().is_some_and(|started| Arc::ptr_eq(started, manager)) {
            // Another fetch took its place when the manager was set up anew.
            return;
        }
        entry.fetching = None;
        if entry.due.is_some() {
            // It is about to be fetched from the manager's new set-up.
            return;
        }
        match outcome {
            Ok(value) => {
                if entry.failure.take().is_some() {
                    info!(reference = %reference, "A secret is fetched again.");
                }
                entry.failures = 0;
                if entry.value.as_deref() != Some(value.as_str()) {
                    if entry.value.is_some() {
                        info!(reference = %reference, "A secret has another value; what uses it follows.");
                    }
                    entry.value = Some(value.into());
                    self.tell(reference);
                }
                let due = Instant::now() + jittered(settings.ttl.max(TTL_MIN));
                state.plan(reference, Some(due));
            }
            Err(error) => {
                let wait = RETRY_FIRST.saturating_mul(1 << entry.failures.min(16));
                let wait = wait.min(settings.neg_ttl).max(RETRY_FIRST);
                let due = Instant::now() + jittered(wait);
                self.failed(&mut state, reference, error.to_string(), Some(due));
            }
        }
        drop(state);
        self.ended.notify_waiters();
    }

    fn failed(&self, state: &mut State, reference: &Arc<str>, cause: String, due: Option<Instant>) {
        let Some(entry) = state.entries.get_mut(reference) else { return };
        entry.failures = entry.failures.saturating_add(1);
        let is_new = entry.failure.as_deref() != Some(cause.as_str());
        match (&entry.value, is_new) {
            (_, false) => {
                debug!(reference = %reference, cause, "A secret cannot be fetched still.")
            }
            (Some(_), true) => {
                warn!(reference = %reference, cause, "A secret cannot be fetched; its last value stays in use.");
            }
            (None, true) => {
                error!(reference = %reference, cause, "A reference has no value: what uses it answers 503.");
                self.tell(reference);
            }
        }
        entry.failure = Some(cause);
        state.plan(reference, due);
    }

    fn tell(&self, reference: &Arc<str>) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(reference.clone());
        self.has_changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

type Fetched = (Arc<str>, Arc<Manager>, Result<String, FetchError>);

/// A value that is a reference itself would be used as its literal text.
fn not_a_reference(value: String) -> Result<String, String> {
    match is_secret_reference(&value) {
        true => Err("its value is a reference itself".to_owned()),
        false => Ok(value),
    }
}

/// A time up to a tenth shorter or longer, so that many do not come due at one moment.
fn jittered(time: Duration) -> Duration {
    use ring::rand::SecureRandom as _;
    let mut byte = [128];
    // Without random bytes the time is as it was.
    let _ = ring::rand::SystemRandom::new().fill(&mut byte);
    time.mul_f64(0.9 + 0.2 * f64::from(byte[0]) / 255.0)
}

/// Fetches under way at one time.
pub const FETCHES_AT_ONCE: usize = 8;

/// Distinct references that are followed.
pub const REFERENCES_MAX: usize = 65_536;

/// No value is fetched more often.
const TTL_MIN: Duration = Duration::from_secs(1);

/// How long after a first failure the next attempt comes; twice as long after each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Values shorter than this are no secrets, and would be found everywhere.
const REDACTED_BYTES_MIN: usize = 4;

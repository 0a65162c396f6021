//! Configuration shared by many gateways: etcd, in Apache APISIX's own layout.
//!
//! `/apisix/routes/1` in etcd is `/routes/1` here; what a running APISIX wrote is read as it is, and
//! what is written here, APISIX reads. Revisions are etcd's own. Everything is held in memory:
//! reads and watches never wait for the network, and go on while etcd is gone
//! ([`Store::health`] says so). A write goes to etcd as one transaction and is answered when the
//! watch has brought it back, so that the next read shows it.
//!
//! The wire is etcd's JSON gateway (`/v3/…`), which APISIX uses too: it needs no generated code. Only
//! listing everything goes over gRPC where that works ([`grpc`]).
//!
//! Invariant: only [`follow`] changes what is in memory, in the order of etcd's revisions.

mod client;
mod copy;
mod follow;
mod grpc;
mod sent;
mod tls;
mod wire;

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, error, info, warn};

use self::{
    client::{Client, Failure},
    follow::{Everything, Follower, Source},
    sent::{Outcome, Transaction},
    wire::{Kv, Range, Target, Txn, compare, range_end, text},
};
use crate::{
    BoxFuture, Bulk, BulkError, Entry, Expect, Health, Listing, Put, Store, StoreError, Watch,
    Written, check_key, check_value, shared::Shared,
};

/// Where etcd is, and how to use it: `deployment.etcd`.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `host`: `http://` or `https://` addresses of one cluster.
    pub hosts: Vec<String>,
    /// `prefix`: what keys in etcd start with.
    pub prefix: String,
    /// `user`; with `password`, what to authenticate with.
    pub user: Option<String>,
    /// `password`.
    pub password: Option<String>,
    /// `timeout`: how long connecting and reading may take.
    pub timeout: Duration,
    /// How long a write is tried, `timeout` where that is shorter; each MiB of its value adds a
    /// second. [`ETCD_WRITE_TIME_MAX`].
    pub write_time: Duration,
    /// `watch_timeout`: how long a watch may be silent before another one takes its place.
    pub watch_timeout: Duration,
    /// `resync_delay`: the longest wait between two tries to follow the cluster again.
    pub resync_delay: Duration,
    /// `health_check_timeout`: how long a host that failed is left alone while others work.
    pub health_check_timeout: Duration,
    /// `startup_retry`: how often reading is tried at start.
    pub startup_retry: u32,
    /// `tls`.
    pub tls: TlsOptions,
    /// Where the last-known-good copy lies; `None` for none.
    pub copy: Option<PathBuf>,
    /// Whether this gateway never writes, as a data plane.
    pub read_only: bool,
}

impl EtcdOptions {
    /// APISIX's defaults: no user, no TLS but for verification, no copy.
    pub fn new(hosts: Vec<String>) -> Self {
        Self {
            hosts,
            prefix: "/apisix".to_owned(),
            user: None,
            password: None,
            timeout: Duration::from_secs(30),
            write_time: ETCD_WRITE_TIME_MAX,
            watch_timeout: Duration::from_secs(50),
            resync_delay: RESYNC_DELAY,
            health_check_timeout: HEALTH_CHECK_TIMEOUT,
            startup_retry: 2,
            tls: TlsOptions { cert: None, key: None, verify: true, sni: None, ca: None },
            copy: None,
            read_only: false,
        }
    }
}

/// Everything but the password.
impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("hosts", &self.hosts.iter().map(|url| client::shown(url)).collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("copy", &self.copy)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// TLS towards etcd: `deployment.etcd.tls`.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// `cert`: PEM file of our certificate.
    pub cert: Option<PathBuf>,
    /// `key`: PEM file of its key.
    pub key: Option<PathBuf>,
    /// `verify`: whether etcd's certificate is checked.
    pub verify: bool,
    /// `sni`: the name to ask for and to expect; left out, the host's own.
    pub sni: Option<String>,
    /// PEM file of the authorities to trust; left out, the system's.
    pub ca: Option<PathBuf>,
}

/// A store in etcd. See the module's documentation.
#[derive(Debug)]
pub struct EtcdStore {
    client: Arc<Client>,
    shared: Arc<Shared>,
    source: Arc<Source>,
    prefix: String,
    read_only: bool,
    write_time: Duration,
    tasks: Vec<JoinHandle<()>>,
}

impl EtcdStore {
    /// Reads the configuration, from etcd or, where that cannot be reached, from the copy; then
    /// follows etcd.
    ///
    /// Without either it is tried again `startup_retry` times, then given up. Runs in, and leaves
    /// tasks on, the tokio runtime it is called from.
    pub async fn open(options: EtcdOptions) -> Result<Self, StoreError> {
        let client = Arc::new(Client::new(&options)?);
        let prefix = options.prefix.trim_end_matches('/').to_owned();
        let limits = Limits::new(&options);
        let source = Arc::new(Source::default());
        let copied = match &options.copy {
            Some(path) => read_copy(path, &prefix).await,
            None => None,
        };
        let tries = match copied {
            Some(_) => 1,
            None => options.startup_retry.max(1),
        };
        let (shared, must_list) = match (
            first_listing(&client, &prefix, &limits, tries).await,
            copied,
        ) {
            (Ok(Everything { cluster, revision, entries, .. }), _) => {
                source.set_cluster(cluster);
                (Shared::new(entries, revision), false)
            }
            (Err(failures), Some(copied)) => {
                error!(
                    entries = copied.entries.len(),
                    revision = copied.revision,
                    "etcd cannot be reached: the copy of what it held is served until it is."
                );
                source.copied(copied.cluster);
                source.lost(follow::all_of(&failures));
                (Shared::new(copied.entries, copied.revision), true)
            }
            (Err(failures), None) => {
                let reason = format!(
                    "no host of deployment.etcd.host ({}) answers, and there is no copy of what \
                     etcd held: {}",
                    client.shown(),
                    follow::all_of(&failures)
                );
                return Err(StoreError::Unavailable { reason });
            }
        };
        let follower = Follower {
            client: Arc::clone(&client),
            prefix: prefix.clone(),
            limits,
            shared: Arc::clone(&shared),
            source: Arc::clone(&source),
            must_list,
        };
        let mut tasks = vec![tokio::spawn(follower.run())];
        if let Some(path) = options.copy {
            let (shared, source) = (Arc::clone(&shared), Arc::clone(&source));
            tasks.push(tokio::spawn(copy::keep(path, prefix.clone(), shared, source)));
        }
        let write_time = options.timeout.min(options.write_time);
        let read_only = options.read_only;
        Ok(Self { client, shared, source, prefix, read_only, write_time, tasks })
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        if self.read_only {
            let reason = "this gateway is a data plane; write through a control plane".to_owned();
            return Err(StoreError::ReadOnly { reason });
        }
        Ok(())
    }

    /// Until when a write of so many bytes is tried.
    fn deadline(&self, bytes: usize) -> Instant {
        Instant::now() + self.write_time + attempt_time(bytes) - ATTEMPT_TIME_MAX
    }

    /// Makes a change once, however often it has to be sent: see [`sent`].
    async fn write(&self, change: &Transaction, deadline: Instant) -> Result<Outcome, StoreError> {
        let mark = format!("{:032x}", rand::random::<u128>());
        let mut since = self.shared.revision();
        loop {
            let body = change.body(&self.prefix, &mark, since);
            match self.send(&body, change.bytes, deadline, false).await {
                Ok(answer) => {
                    if answer.succeeded || sent::fence_met(&answer) <= since {
                        return Ok(Outcome::Answered(answer));
                    }
                    // Somebody put the fence: only those that began before it are refused.
                    since = answer.header.revision;
                }
                Err(Unsent::Nothing(error)) => return Err(error),
                Err(Unsent::MaybeDone(failure)) => {
                    match self.find_out(&mark, since, deadline).await {
                        Some((_, Some(revision))) => return Ok(Outcome::Made(revision)),
                        Some((fence, None)) => since = fence,
                        None => {
                            let reason = failure.to_string();
                            return Err(StoreError::OutcomeUnknown { reason });
                        }
                    }
                }
            }
            if Instant::now() >= deadline {
                let reason = "etcd was too slow; nothing was changed".to_owned();
                return Err(StoreError::Unavailable { reason });
            }
        }
    }

    /// Puts the fence, and looks for what was done before it. Answers the fence's revision and that
    /// of the change, if it was made; `None` where etcd does not tell in time.
    async fn find_out(
        &self,
        mark: &str,
        since: u64,
        deadline: Instant,
    ) -> Option<(u64, Option<u64>)> {
        let body = sent::put_fence(&self.prefix);
        let fence = self.send(&body, 0, deadline, true).await.ok()?.header.revision;
        for attempt in 0.. {
            let limit = deadline.min(Instant::now() + ATTEMPT_TIME_MAX);
            let revisions = (since, fence);
            match sent::find_mark(&self.client, &self.prefix, mark, revisions, limit).await {
                Ok(made) => return Some((fence, made)),
                Err(failure) => {
                    debug!(%failure, "What became of a change is not known yet.");
                    let pause = follow::pause(attempt, WRITE_PAUSE_MAX);
                    if Instant::now() + pause >= deadline {
                        break;
                    }
                    self.client.failed(self.client.host());
                    tokio::time::sleep(pause).await;
                }
            }
        }
        None
    }

    /// Sends a transaction until a host answers or the time is over. Unless it may be done
    /// `often`, it is not sent again once it may have been done.
    async fn send(
        &self,
        body: &Value,
        bytes: usize,
        deadline: Instant,
        often: bool,
    ) -> Result<Txn, Unsent> {
        let mut attempts = 0;
        loop {
            let host = self.client.host();
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = left.min(attempt_time(bytes));
            let failure = match self.client.call_host(host, "/v3/kv/txn", body, limit).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            attempts += 1;
            if !failure.nothing_happened() && !often {
                return Err(Unsent::MaybeDone(failure));
            }
            if !failure.worth_another_try() {
                return Err(Unsent::Nothing(refused(&failure)));
            }
            // What cannot be followed for so long is given one try at each host.
            let hopeless = self.source.stale_for().is_some_and(|since| since > self.write_time);
            let round = attempts >= self.client.count();
            let pause =
                if round { follow::pause(attempts, WRITE_PAUSE_MAX) } else { Duration::ZERO };
            if (hopeless && round) || Instant::now() + pause >= deadline {
                let reason = failure.to_string();
                return Err(Unsent::Nothing(StoreError::Unavailable { reason }));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// What stood at a key just before a revision changed it.
    async fn replaced(
        &self,
        full: &str,
        revision: u64,
        deadline: Instant,
    ) -> Result<Option<Kv>, StoreError> {
        let body = json!({"key": text(full), "revision": (revision - 1).to_string()});
        let limit = deadline.max(Instant::now() + VISIBLE_TIME_MIN) - Instant::now();
        let range: Result<Range, _> = self.client.call("/v3/kv/range", &body, limit).await;
        match range {
            Ok(range) => Ok(range.kvs.into_iter().next()),
            Err(failures) => {
                let reason = format!("it was made, but {}", follow::all_of(&failures));
                Err(StoreError::OutcomeUnknown { reason })
            }
        }
    }

    /// Waits until the watch has brought a write back.
    async fn until_visible(&self, revision: u64, deadline: Instant) {
        let mut changed = self.shared.subscribe();
        let deadline = deadline.max(Instant::now() + VISIBLE_TIME_MIN);
        if timeout_at(deadline, changed.wait_for(|now| *now >= revision)).await.is_err() {
            warn!(
                revision,
                "A change is in etcd but its watch has not brought it yet; answering anyway."
            );
        }
    }

    /// Waits until reads show what a refused write has met, so that trying again makes sense.
    async fn until_conflict_visible(&self, key: &str, found: Option<u64>) {
        let mut changed = self.shared.subscribe();
        let shows = || {
            let now = self.shared.get(key).map(|entry| entry.modified);
            now == found || now > found && found.is_some()
        };
        let deadline = Instant::now() + VISIBLE_TIME_MIN;
        let _ = timeout_at(deadline, changed.wait_for(|_| shows())).await;
    }

    async fn lease(&self, ttl: Duration, deadline: Instant) -> Result<u64, StoreError> {
        let seconds = ttl.as_millis().div_ceil(1000).clamp(1, LEASE_SECONDS_MAX);
        let body = json!({"TTL": seconds.to_string()});
        let limit = deadline.saturating_duration_since(Instant::now());
        let limit = limit.min(ATTEMPT_TIME_MAX);
        // A lease that is granted and not used ends by itself.
        let granted = self.client.call::<wire::Lease>("/v3/lease/grant", &body, limit).await;
        granted.map(|lease| lease.id).map_err(|failures| match failures.last() {
            Some(failure) if !failure.worth_another_try() => refused(failure),
            _ => follow::unavailable(&failures),
        })
    }

    /// Ends a lease that nothing was written with, and that nobody waits for. One that cannot be
    /// revoked ends by itself.
    fn revoke(&self, lease: u64) {
        let client = Arc::clone(&self.client);
        tokio::spawn(async move {
            let body = json!({"ID": lease.cast_signed().to_string()});
            let revoked = client.call::<Value>("/v3/lease/revoke", &body, ATTEMPT_TIME_MAX);
            if let Ok(Err(failures)) = timeout(ATTEMPT_TIME_MAX, revoked).await {
                debug!(failures = follow::all_of(&failures), "An unused lease was not revoked.");
            }
        });
    }

    async fn put_now(&self, key: &str, value: Arc<[u8]>, how: Put) -> Result<Written, StoreError> {
        check_key(key)?;
        check_value(key, &value)?;
        self.check_writable()?;
        let deadline = self.deadline(value.len());
        let lease = match how.ttl {
            Some(ttl) => Some(self.lease(ttl, deadline).await?),
            None => None,
        };
        let full = format!("{}{key}", self.prefix);
        let mut put = json!({"key": text(&full), "value": text(&value), "prev_kv": true});
        if let Some(lease) = lease {
            put["lease"] = lease.cast_signed().to_string().into();
        }
        let mut success = vec![json!({"request_put": put})];
        if how.clears {
            success.push(remove_below(&full));
        }
        let change = Transaction {
            compare: expected(&full, how.expect),
            success,
            failure: vec![json!({"request_range": {"key": text(&full)}})],
            bytes: value.len(),
        };
        let outcome = self.write(&change, deadline).await;
        if let (Some(lease), Err(StoreError::Unavailable { .. })) = (lease, &outcome) {
            self.revoke(lease);
        }
        let (created, modified) = match outcome? {
            Outcome::Answered(answer) => {
                let done = answer.short();
                if !done.succeeded {
                    // Whoever tries again takes another lease.
                    if let Some(lease) = lease {
                        self.revoke(lease);
                    }
                    return Err(self.conflict(key, done.met).await);
                }
                (done.before, done.revision)
            }
            Outcome::Made(revision) => {
                let before = self.replaced(&full, revision, deadline).await?;
                (before.map(|kv| kv.create_revision), revision)
            }
        };
        self.until_visible(modified, deadline).await;
        let created_now = created.is_none();
        let created = created.unwrap_or(modified);
        let entry = Entry { key: key.into(), value, created, modified };
        Ok(Written { entry, created: created_now })
    }

    async fn remove_now(
        &self,
        key: &str,
        expect: Expect,
        tree: bool,
    ) -> Result<Option<u64>, StoreError> {
        check_key(key)?;
        self.check_writable()?;
        let deadline = self.deadline(0);
        let full = format!("{}{key}", self.prefix);
        let mut success = vec![json!({"request_delete_range": {"key": text(&full)}})];
        if tree {
            success.push(remove_below(&full));
        }
        let change = Transaction {
            compare: expected(&full, expect),
            success,
            failure: vec![json!({"request_range": {"key": text(&full)}})],
            bytes: 0,
        };
        let (was_there, revision) = match self.write(&change, deadline).await? {
            Outcome::Answered(answer) => {
                let done = answer.short();
                if !done.succeeded {
                    return Err(self.conflict(key, done.met).await);
                }
                (done.deleted > 0, done.revision)
            }
            Outcome::Made(revision) => {
                (self.replaced(&full, revision, deadline).await?.is_some(), revision)
            }
        };
        self.until_visible(revision, deadline).await;
        Ok(was_there.then_some(revision))
    }

    /// The error for a change whose expectation does not hold.
    async fn conflict(&self, key: &str, met: Option<Kv>) -> StoreError {
        let found = met.map(|met| met.mod_revision);
        self.until_conflict_visible(key, found).await;
        StoreError::Conflict { key: key.to_owned(), found }
    }

    /// One transaction after the other, each of as many changes as etcd takes at once.
    async fn write_all_now(&self, changes: Vec<Bulk>) -> Result<(), BulkError> {
        let nothing = |error| BulkError { made: 0, error };
        self.check_writable().map_err(nothing)?;
        for (key, value) in &changes {
            check_key(key).map_err(nothing)?;
            check_value(key, value.as_deref().unwrap_or_default()).map_err(nothing)?;
        }
        let mut rest = &changes[..];
        while !rest.is_empty() {
            let count = bulk(rest);
            let bytes: usize = rest[..count].iter().map(bulk_bytes).sum();
            let made = changes.len() - rest.len();
            let (now, later) = rest.split_at(count);
            rest = later;
            let operations: Vec<Value> = now
                .iter()
                .map(|(key, value)| {
                    let key = text(format!("{}{key}", self.prefix));
                    match value {
                        Some(value) => json!({"request_put": {"key": key, "value": text(value)}}),
                        None => json!({"request_delete_range": {"key": key}}),
                    }
                })
                .collect();
            let deadline = self.deadline(bytes);
            let (compare, failure) = (Vec::new(), Vec::new());
            let change = Transaction { compare, success: operations, failure, bytes };
            let written = self.write(&change, deadline).await;
            let revision = match written.map_err(|error| BulkError { made, error })? {
                Outcome::Answered(answer) => answer.header.revision,
                Outcome::Made(revision) => revision,
            };
            self.until_visible(revision, deadline).await;
        }
        Ok(())
    }

    /// As APISIX takes its ids: a write to one key whose only use is the revision it makes.
    async fn next_id_now(&self) -> Result<u64, StoreError> {
        self.check_writable()?;
        let deadline = self.deadline(0);
        let key = format!("{}{GENERATED}", self.prefix);
        let body = json!({"success": [{"request_put": {"key": text(key), "value": text("1")}}]});
        match self.send(&body, 0, deadline, true).await {
            Ok(done) => Ok(done.header.revision),
            Err(Unsent::Nothing(error)) => Err(error),
            Err(Unsent::MaybeDone(failure)) => Err(refused(&failure)),
        }
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.shared.get(key)) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move { Ok(self.shared.list(prefix)) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Arc<[u8]>,
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        Box::pin(self.put_now(key, value, how))
    }

    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        Box::pin(self.remove_now(key, expect, tree))
    }

    fn write_all<'a>(&'a self, changes: Vec<Bulk>) -> BoxFuture<'a, Result<(), BulkError>> {
        Box::pin(self.write_all_now(changes))
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.next_id_now())
    }

    fn snapshot_and_watch<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<(Listing, Watch), StoreError>> {
        Box::pin(async move { Ok(self.shared.snapshot_and_watch(prefix)) })
    }

    fn watch(&self, from_revision: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
        Box::pin(async move { self.shared.watch(from_revision) })
    }

    fn health(&self) -> Health {
        self.source.health()
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The times of [`EtcdOptions`] as the follower uses them.
#[derive(Debug, Clone)]
struct Limits {
    read: Duration,
    open: Duration,
    retry: Duration,
    renew: Duration,
    probe_every: Duration,
    probe: Duration,
}

impl Limits {
    fn new(options: &EtcdOptions) -> Self {
        Self {
            read: options.timeout,
            open: options.timeout.min(WATCH_OPEN_TIME_MAX),
            retry: options.resync_delay,
            renew: options.watch_timeout,
            probe_every: PROBE_EVERY.min(options.watch_timeout),
            probe: options.timeout.min(PROBE_TIME_MAX),
        }
    }
}

/// A transaction's answer, in short.
struct Done {
    succeeded: bool,
    revision: u64,
    /// What a refused transaction met at the key.
    met: Option<Kv>,
    /// The revision that created what a put replaced.
    before: Option<u64>,
    deleted: u64,
}

impl Txn {
    fn short(self) -> Done {
        let done = self.responses.into_iter().next().unwrap_or_default();
        let met = done.response_range.and_then(|range| range.kvs.into_iter().next());
        let before = done.response_put.and_then(|put| put.prev_kv).map(|kv| kv.create_revision);
        let deleted = done.response_delete_range.map_or(0, |done| done.deleted);
        let (succeeded, revision) = (self.succeeded, self.header.revision);
        Done { succeeded, revision, met, before, deleted }
    }
}

fn expected(key: &str, expect: Expect) -> Vec<Value> {
    match expect {
        Expect::Any => Vec::new(),
        Expect::Absent => vec![compare(key, Target::Absent)],
        Expect::Revision(revision) => vec![compare(key, Target::Revision(revision))],
    }
}

/// The operation that removes everything below a key.
fn remove_below(key: &str) -> Value {
    let folder = format!("{key}/");
    let end = text(range_end(&folder));
    json!({"request_delete_range": {"key": text(&folder), "range_end": end}})
}

/// Why no host has answered a transaction.
enum Unsent {
    /// Nothing was changed.
    Nothing(StoreError),
    /// It may have been done, and may still be.
    MaybeDone(Failure),
}

fn refused(failure: &Failure) -> StoreError {
    StoreError::Unavailable { reason: failure.to_string() }
}

/// How many of the first changes make one transaction; at least one.
fn bulk(changes: &[Bulk]) -> usize {
    let mut keys = HashSet::new();
    let mut bytes = 0;
    for (count, change) in changes.iter().take(BULK_CHANGES_MAX).enumerate() {
        bytes += bulk_bytes(change);
        // A transaction may name a key once.
        if !keys.insert(&change.0) || (count > 0 && bytes > BULK_BYTES_MAX) {
            return count;
        }
    }
    changes.len().min(BULK_CHANGES_MAX)
}

fn bulk_bytes((key, value): &Bulk) -> usize {
    key.len() + value.as_ref().map_or(0, |value| value.len())
}

/// How long one host is given for a write of so many bytes.
fn attempt_time(bytes: usize) -> Duration {
    ATTEMPT_TIME_MAX + TIME_PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX)
}

async fn read_copy(path: &Path, prefix: &str) -> Option<copy::Copied> {
    let (file, prefix) = (path.to_owned(), prefix.to_owned());
    let read = tokio::task::spawn_blocking(move || copy::read(&file, &prefix)).await;
    match read {
        Ok(Ok(copied)) => copied,
        Ok(Err(error)) => {
            warn!(path = %path.display(), %error, "The copy of the configuration cannot be used.");
            None
        }
        Err(_) => None,
    }
}

// Differs: APISIX starts only when more than half of the hosts answer. Here one that can read is
// enough, and where there is none, the copy.
async fn first_listing(
    client: &Client,
    prefix: &str,
    limits: &Limits,
    tries: u32,
) -> Result<Everything, Vec<Failure>> {
    let mut left = tries;
    // A host that takes connections and says nothing must not hold up a start that has a copy.
    let limits = Limits { read: limits.read.min(START_TIME_MAX), ..limits.clone() };
    loop {
        let began = Instant::now();
        match follow::list(client, prefix, &limits).await {
            Ok(listed) => {
                info!(
                    entries = listed.entries.len(),
                    revision = listed.revision,
                    wire = listed.wire,
                    took = ?began.elapsed(),
                    "The configuration was read from etcd."
                );
                return Ok(listed);
            }
            Err(failures) => {
                left -= 1;
                if left == 0 {
                    return Err(failures);
                }
                warn!(
                    left,
                    failures = follow::all_of(&failures),
                    "etcd cannot be read; it is tried again."
                );
                tokio::time::sleep(START_PAUSE).await;
            }
        }
    }
}

/// How long a write through etcd is tried: after it, the answer is that it was not made, or that
/// this is not known. `deployment.etcd.timeout` wins where it is shorter; each MiB of a value adds a
/// second.
pub const ETCD_WRITE_TIME_MAX: Duration = Duration::from_secs(5);

/// `health_check_timeout` where it is not set, as with APISIX.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// `resync_delay` where it is not set, as with APISIX.
const RESYNC_DELAY: Duration = Duration::from_secs(5);
/// How long one host is given to answer a write that another one may be asked for as well.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(2);
/// What a write's size adds to its times: a second per MiB.
const TIME_PER_BYTE: Duration = Duration::from_nanos(954);
/// Changes in one transaction: where it is not told to take more, etcd takes 128, one of which is
/// the mark of [`sent`].
const BULK_CHANGES_MAX: usize = 127;
/// Bytes of keys and values in one transaction: etcd takes 1.5 MiB, base64 not counted.
const BULK_BYTES_MAX: usize = 1 << 20;
/// The longest pause between two tries of a write.
const WRITE_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long an answered write at least waits for the watch.
const VISIBLE_TIME_MIN: Duration = Duration::from_secs(1);
/// How long a page of the first listing may take.
const START_TIME_MAX: Duration = Duration::from_secs(10);
/// The pause between two tries at start.
const START_PAUSE: Duration = Duration::from_secs(1);
/// How long a watch may take to be opened.
const WATCH_OPEN_TIME_MAX: Duration = Duration::from_secs(5);
/// How often the host of a watch is asked whether there is more than the watch has told.
const PROBE_EVERY: Duration = Duration::from_secs(3);
/// How long that question may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest lease etcd grants, in seconds.
const LEASE_SECONDS_MAX: u128 = 9_000_000_000;
/// The key whose only use is the revision that writing it makes.
const GENERATED: &str = "/gen_id";
// Differs: APISIX writes these when it starts, a relic of etcd v2. Nothing needs them; we write none.
/// What APISIX writes at a folder's key.
const PLACEHOLDER: &[u8] = b"init_dir";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_as_large_as_etcd_takes_it() {
        let change = |key: &str, bytes| (key.into(), Some(vec![b'x'; bytes].into()));
        let many = |count| (0..count).map(|n| change(&format!("/k/{n}"), 1)).collect::<Vec<_>>();
        let half = BULK_BYTES_MAX / 2 - 2;
        for (changes, count) in [
            (many(BULK_CHANGES_MAX), BULK_CHANGES_MAX),
            (many(BULK_CHANGES_MAX + 1), BULK_CHANGES_MAX),
            (vec![change("/a", 1), change("/b", 1), change("/a", 1)], 2),
            (vec![change("/a", half), change("/b", half)], 2),
            (vec![change("/a", half), change("/b", half), change("/c", 1)], 2),
            (vec![change("/a", BULK_BYTES_MAX), change("/b", 1)], 1),
            (vec![change("/a", 1), ("/b".into(), None)], 2),
        ] {
            assert_eq!(bulk(&changes), count);
        }
    }
}

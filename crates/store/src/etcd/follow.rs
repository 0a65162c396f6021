//! Keeping what is in memory equal to what etcd holds: one listing, then one watch from the
//! revision behind it, for ever.
//!
//! A watch can end in many ways (its host dies, loses the majority, or is silent behind a cut
//! wire); another one then goes on from the revision behind the last change seen, at whichever host
//! answers. Only when etcd has forgotten the changes from there on, or holds older revisions than
//! were seen (it was restored from a backup), everything is listed again, and what differs becomes
//! changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::{
    GENERATED, Limits, PLACEHOLDER,
    client::{Client, Failure},
    grpc::Asked,
    sent,
    wire::{Kv, Range, WatchEvent, WatchLine, range_end, text},
};
use crate::{Change, Entry, Event, Health, StoreError, shared::Shared};

/// What is known about the source.
#[derive(Debug, Default)]
pub(super) struct Source {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The cluster that was read; `None` until one was.
    cluster: Option<u64>,
    /// The cluster that the copy is of.
    copied: Option<u64>,
    /// Since when, and why, it cannot be followed.
    stale: Option<(SystemTime, Instant, String)>,
}

impl Source {
    pub(super) fn health(&self) -> Health {
        match &self.state().stale {
            None => Health::Ready,
            Some((since, _, reason)) => Health::Stale { since: *since, reason: reason.clone() },
        }
    }

    /// For how long it has not been followed.
    pub(super) fn stale_for(&self) -> Option<Duration> {
        self.state().stale.as_ref().map(|(_, since, _)| since.elapsed())
    }

    pub(super) fn cluster(&self) -> Option<u64> {
        self.state().cluster
    }

    /// Is this another cluster than what is shown came from?
    fn is_another(&self, cluster: u64) -> bool {
        let state = self.state();
        state.cluster.or(state.copied).is_some_and(|known| known != cluster)
    }

    pub(super) fn copied(&self, cluster: u64) {
        self.state().copied = Some(cluster);
    }

    pub(super) fn set_cluster(&self, cluster: u64) {
        self.state().cluster = Some(cluster);
    }

    pub(super) fn lost(&self, reason: String) {
        let mut state = self.state();
        let reason = match (state.cluster, state.copied) {
            (None, Some(_)) => format!("started from the last-known-good copy: {reason}"),
            _ => reason,
        };
        match &mut state.stale {
            Some((_, _, old)) => *old = reason,
            None => {
                warn!(
                    reason,
                    "etcd cannot be followed: what was read last is served, and it is tried again."
                );
                #[expect(clippy::disallowed_methods, reason = "a store is an edge")]
                let since = SystemTime::now();
                state.stale = Some((since, Instant::now(), reason));
            }
        }
    }

    fn found(&self) {
        if let Some((_, since, _)) = self.state().stale.take() {
            info!(after = ?since.elapsed(), "etcd is followed again.");
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything under the prefix, as of one revision.
#[derive(Default)]
pub(super) struct Everything {
    pub(super) cluster: u64,
    pub(super) revision: u64,
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
    /// How its last page came.
    pub(super) wire: &'static str,
}

/// Lists everything, page by page.
pub(super) async fn list(
    client: &Client,
    prefix: &str,
    limits: &Limits,
) -> Result<Everything, Vec<Failure>> {
    let folder = format!("{prefix}/");
    let end = text(range_end(&folder));
    let mut all = Everything::default();
    let mut from = folder.clone().into_bytes();
    let mut page = PAGE_KEYS;
    // While it works: etcd's own wire.
    let mut grpc = client.grpc().await;
    loop {
        let body = json!({
            "key": text(&from), "range_end": end, "limit": page.to_string(),
            "revision": all.revision.to_string(),
        });
        let by_grpc = match &mut grpc {
            None => None,
            Some(connection) => {
                let asked = Asked {
                    key: &from,
                    range_end: &range_end(&folder),
                    limit: page as u64,
                    revision: all.revision,
                };
                let limit = limits.read.min(GRPC_PAGE_TIME_MAX);
                match timeout(limit, connection.range(asked)).await {
                    Ok(Ok(range)) => Some(range),
                    Ok(Err(reason)) => {
                        debug!(reason, "etcd is read through its JSON gateway.");
                        None
                    }
                    Err(_) => {
                        debug!(
                            ?limit,
                            "etcd does not answer over gRPC; its JSON gateway is tried."
                        );
                        None
                    }
                }
            }
        };
        if by_grpc.is_none() {
            grpc = None;
        }
        let answered = match by_grpc {
            Some(range) => Ok(range),
            None => client.call("/v3/kv/range", &body, limits.read).await,
        };
        let range: Range = match answered {
            Ok(range) => range,
            Err(failures) if failures.iter().any(Failure::compacted) => {
                // Listing took so long that its revision is forgotten: from the start.
                all = Everything::default();
                from = folder.clone().into_bytes();
                continue;
            }
            Err(failures) if failures.iter().any(Failure::too_large) && page > 1 => {
                page /= 8;
                page = page.max(1);
                continue;
            }
            Err(failures) => return Err(failures),
        };
        if all.revision == 0 {
            (all.cluster, all.revision) = (range.header.cluster_id, range.header.revision);
        }
        let last = range.kvs.last().map(|kv| kv.key.clone());
        for entry in range.kvs.into_iter().filter_map(|kv| entry(prefix, kv)) {
            all.entries.insert(Arc::clone(&entry.key), entry);
        }
        match last {
            Some(last) if range.more => {
                from = [&last[..], &[0]].concat();
            }
            _ => {
                all.wire = if grpc.is_some() { "gRPC" } else { "JSON" };
                return Ok(all);
            }
        }
    }
}

/// Follows the cluster until it is dropped.
pub(super) struct Follower {
    pub(super) client: Arc<Client>,
    pub(super) prefix: String,
    pub(super) limits: Limits,
    pub(super) shared: Arc<Shared>,
    pub(super) source: Arc<Source>,
    /// Nothing but a copy has been read so far.
    pub(super) must_list: bool,
}

/// Why a watch ended.
#[derive(Debug)]
enum Ended {
    /// Another one goes on: it was silent for long.
    Renewed,
    /// It cannot go on from where it was.
    Forgotten(&'static str),
    Failed(String),
}

impl Follower {
    pub(super) async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            let began = Instant::now();
            let ended = match self.must_list {
                true => match self.reload().await {
                    Ok(()) => {
                        self.must_list = false;
                        continue;
                    }
                    Err(reason) => Ended::Failed(reason),
                },
                false => self.watch().await,
            };
            match ended {
                Ended::Renewed => failures = 0,
                Ended::Forgotten(why) => {
                    info!(why, "The changes in etcd were lost track of: it is listed anew.");
                    self.must_list = true;
                }
                Ended::Failed(reason) => {
                    // A watch that worked for a while starts the count again.
                    failures = if began.elapsed() > STEADY { 1 } else { failures + 1 };
                    debug!(reason, failures, "A watch of etcd ended.");
                    // One failure is a host that died: another one goes on at once.
                    if failures > 1 {
                        self.source.lost(reason);
                        tokio::time::sleep(pause(failures - 2, self.limits.retry)).await;
                    }
                }
            }
        }
    }

    /// Lists everything and turns what differs into changes.
    async fn reload(&self) -> Result<(), String> {
        let listed = list(&self.client, &self.prefix, &self.limits).await;
        let listed = listed.map_err(|failures| all_of(&failures))?;
        let known = self.shared.list("");
        let another = self.source.is_another(listed.cluster);
        let mut events = differences(&known.entries, &listed.entries, listed.revision);
        self.source.set_cluster(listed.cluster);
        if listed.revision < known.revision
            || (!events.is_empty() && (another || listed.revision == known.revision))
        {
            error!(
                seen = known.revision,
                now = listed.revision,
                "etcd holds less than was seen of it, as if it was restored from a backup: what it holds now is served."
            );
            self.shared.replace(listed.entries, listed.revision);
            return Ok(());
        }
        for event in &mut events {
            if event.revision <= known.revision {
                event.revision = listed.revision;
            }
        }
        events.sort_by_key(|event| event.revision);
        if !events.is_empty() {
            info!(changes = events.len(), revision = listed.revision, "Changes were caught up on.");
        }
        self.shared.apply_up_to(events, listed.revision);
        Ok(())
    }

    /// Watches until something ends it.
    async fn watch(&self) -> Ended {
        let host = self.client.host();
        let folder = format!("{}/", self.prefix);
        let from = self.shared.revision() + 1;
        let body = json!({"create_request": {
            "key": text(&folder), "range_end": text(range_end(&folder)),
            "start_revision": from.to_string(), "progress_notify": true, "fragment": true,
        }});
        let opened = self.client.stream(host, "/v3/watch", &body, self.limits.open).await;
        let mut lines = match opened {
            Ok(lines) => lines,
            Err(failure) => {
                self.client.failed(host);
                return Ended::Failed(failure.to_string());
            }
        };
        // The highest revision the host spoke of, and one a probe has seen beyond it.
        let (mut spoken, mut suspect) = (0, None);
        let mut created = false;
        let mut pending: Vec<WatchEvent> = Vec::new();
        let mut pending_bytes = 0;
        let mut silent_since = Instant::now();
        let mut next_probe = silent_since + self.limits.probe_every;
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                () = sleep_until(next_probe) => {
                    if silent_since.elapsed() >= self.limits.renew {
                        return Ended::Renewed;
                    }
                    next_probe = Instant::now() + self.limits.probe_every;
                    // A stream that never began is a stream that never will.
                    if !created {
                        self.client.failed(host);
                        return Ended::Failed(format!("{}: the watch did not begin", self.client.name(host)));
                    }
                    match self.probe(host).await {
                        Ok(revision) if revision < self.shared.revision() => {
                            return Ended::Forgotten("its revisions went back");
                        }
                        // There are changes the watch should have told of, unless they are of
                        // other keys: another watch knows.
                        Ok(_) if suspect.is_some_and(|suspect| suspect > spoken) => {
                            return Ended::Renewed;
                        }
                        Ok(revision) => suspect = Some(revision),
                        Err(failure) => {
                            self.client.failed(host);
                            return Ended::Failed(failure.to_string());
                        }
                    }
                    continue;
                }
            };
            let failed = |reason: String| {
                self.client.failed(host);
                Ended::Failed(format!("{}: {reason}", self.client.name(host)))
            };
            let line = match line {
                Ok(Some(line)) => line,
                Ok(None) => return failed("the watch ended".to_owned()),
                Err(reason) => return failed(reason),
            };
            let watched = match serde_json::from_slice::<WatchLine>(&line) {
                Ok(WatchLine { error: Some(refusal), .. }) => {
                    return Ended::Failed(self.client.stream_refused(host, refusal).to_string());
                }
                Ok(WatchLine { result: Some(watched), .. }) => watched,
                Ok(_) => continue,
                Err(error) => return failed(format!("the watch sent what etcd does not: {error}")),
            };
            silent_since = Instant::now();
            if watched.compact_revision > 0 {
                return Ended::Forgotten("the changes are compacted");
            }
            if watched.canceled {
                let failure = self.client.watch_cancelled(host, watched.cancel_reason);
                return Ended::Failed(failure.to_string());
            }
            if watched.created {
                created = true;
                if watched.header.revision + 1 < from {
                    return Ended::Forgotten("its revisions went back");
                }
                self.source.found();
            }
            spoken = spoken.max(watched.header.revision);
            pending_bytes += line.len();
            pending.extend(watched.events);
            if watched.fragment {
                if pending_bytes > FRAGMENTS_BYTES_MAX {
                    return Ended::Forgotten("one change is too large");
                }
                continue;
            }
            pending_bytes = 0;
            self.apply(std::mem::take(&mut pending));
        }
    }

    fn apply(&self, events: Vec<WatchEvent>) {
        let Some(last) = events.iter().map(|event| event.kv.mod_revision).max() else { return };
        let after = self.shared.revision();
        let news = events.into_iter().filter(|event| event.kv.mod_revision > after);
        let changes = news.filter_map(|event| {
            let revision = event.kv.mod_revision;
            if event.kind == "DELETE" {
                let key = key(&self.prefix, &event.kv.key)?;
                // A placeholder is not there to be removed.
                let placeholder = key.ends_with('/') && self.shared.get(key).is_none();
                return (!placeholder).then(|| Event {
                    revision,
                    key: key.into(),
                    change: Change::Delete,
                });
            }
            let entry = entry(&self.prefix, event.kv)?;
            Some(Event { revision, key: Arc::clone(&entry.key), change: Change::Put(entry) })
        });
        self.shared.apply_up_to(changes.collect::<Vec<_>>(), last);
    }

    /// The cluster's revision, asked for at the watch's own host and agreed on by a majority.
    async fn probe(&self, host: usize) -> Result<u64, Failure> {
        let folder = text(format!("{}/", self.prefix));
        let body = json!({"key": folder, "limit": "1", "keys_only": true});
        let probe = self.client.call_host::<Range>(host, "/v3/kv/range", &body, self.limits.probe);
        match timeout(self.limits.probe, probe).await {
            Ok(answer) => Ok(answer?.header.revision),
            Err(_) => Err(self.client.no_answer(host, "it is silent".to_owned())),
        }
    }
}

/// The store's key of a key in etcd; `None` for those that hold no resource.
fn key<'a>(prefix: &str, key: &'a [u8]) -> Option<&'a str> {
    let key = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    (key != GENERATED && !key.starts_with(sent::FOLDER)).then_some(key)
}

/// The store's entry of an entry in etcd; `None` for those that hold no resource.
fn entry(prefix: &str, kv: Kv) -> Option<Entry> {
    let key = key(prefix, &kv.key)?;
    // APISIX makes its folders this way, from the days when etcd had any.
    if key.ends_with('/') && kv.value == PLACEHOLDER {
        return None;
    }
    Some(Entry {
        key: key.into(),
        value: Arc::from(&kv.value[..]),
        created: kv.create_revision,
        modified: kv.mod_revision,
    })
}

/// What turns `old` into `new`, which is as of `revision`.
fn differences(old: &[Entry], new: &BTreeMap<Arc<str>, Entry>, revision: u64) -> Vec<Event> {
    let gone = old.iter().filter(|entry| !new.contains_key(&entry.key)).map(|entry| Event {
        revision,
        key: Arc::clone(&entry.key),
        change: Change::Delete,
    });
    let mut events: Vec<Event> = gone.collect();
    let known = |entry: &Entry| {
        old.binary_search_by(|old| old.key.cmp(&entry.key)).is_ok_and(|at| old[at] == *entry)
    };
    events.extend(new.values().filter(|entry| !known(entry)).map(|entry| Event {
        revision: entry.modified,
        key: Arc::clone(&entry.key),
        change: Change::Put(entry.clone()),
    }));
    events
}

/// How long to wait before another try: longer each time, and not the same for every gateway.
pub(super) fn pause(failures: u32, max: Duration) -> Duration {
    let most = if failures < SOON { RETRY_SOON_MAX.min(max) } else { max };
    let full = RETRY_MIN.saturating_mul(1 << failures.min(16)).min(most);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// Failures in one line.
pub(super) fn all_of(failures: &[Failure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The error for a store that cannot be read.
pub(super) fn unavailable(failures: &[Failure]) -> StoreError {
    StoreError::Unavailable { reason: all_of(failures) }
}

/// Keys asked for at once: each page costs etcd a count of all keys behind it. An answer that is too
/// large for somebody is asked for again in smaller parts.
const PAGE_KEYS: usize = 10_000;
/// How long a page may take over gRPC before the JSON gateway is asked in its place.
const GRPC_PAGE_TIME_MAX: Duration = Duration::from_secs(3);
/// The shortest wait between two tries.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// While it may be an election, which takes a second or two, the waits stay short.
const SOON: u32 = 10;
const RETRY_SOON_MAX: Duration = Duration::from_millis(400);
/// A watch that lasted this long was no failure from the start.
const STEADY: Duration = Duration::from_secs(10);
/// How many bytes of one change are gathered.
const FRAGMENTS_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, revision: u64) -> Kv {
        Kv {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision: 1,
            mod_revision: revision,
        }
    }

    #[test]
    fn only_resources_become_entries() {
        for (key, value, found) in [
            ("/apisix/routes/1", "{}", Some("/routes/1")),
            ("/apisix/routes/1", "no json", Some("/routes/1")),
            ("/apisix/routes/", "init_dir", None),
            ("/apisix/routes/", "else", Some("/routes/")),
            ("/apisix/gen_id", "1", None),
            ("/apisix/sluicegate/write", "1", None),
            ("/other/routes/1", "{}", None),
        ] {
            let entry = entry("/apisix", kv(key, value, 5));
            assert_eq!(entry.as_ref().map(|entry| &*entry.key), found, "{key}={value}");
        }
        assert!(
            entry("/apisix", Kv { key: b"/apisix/\xff"[..].into(), ..Kv::default() }).is_none()
        );
    }

    #[test]
    fn differences_are_what_is_new_changed_and_gone() {
        let made = |key: &str, revision| entry("", kv(key, "{}", revision)).unwrap();
        let old = [made("/a", 1), made("/b", 2), made("/c", 3)];
        let new = [made("/a", 1), made("/c", 5), made("/d", 6)];
        let new = new.into_iter().map(|entry| (Arc::clone(&entry.key), entry)).collect();
        let events = differences(&old, &new, 9);
        let shown: Vec<_> = events
            .iter()
            .map(|event| (&*event.key, event.revision, event.change == Change::Delete))
            .collect();
        assert_eq!(shown, [("/b", 9, true), ("/c", 5, false), ("/d", 6, false)]);
    }

    #[test]
    fn pauses_grow_to_their_limit_and_differ() {
        let max = Duration::from_secs(5);
        for (failures, least, most) in
            [(0, 50, 100), (3, 200, 400), (9, 200, 400), (10, 2_500, 5_000), (99, 2_500, 5_000)]
        {
            let pause = pause(failures, max);
            assert!(pause >= Duration::from_millis(least), "{failures}: {pause:?}");
            assert!(pause <= Duration::from_millis(most), "{failures}: {pause:?}");
        }
    }
}

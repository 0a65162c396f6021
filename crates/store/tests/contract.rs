//! What every store promises, run on every store.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use sluicegate_store::{
    Change, DeclaredStore, EmbeddedStore, Entry, EtcdOptions, EtcdStore, Event, Expect,
    KEY_BYTES_MAX, MemoryStore, Put, Store, StoreError, VALUE_BYTES_MAX,
};
use tokio::sync::Mutex;

#[path = "../../testkit/src/etcd.rs"]
#[expect(dead_code, unreachable_pub, reason = "the whole kit is used elsewhere")]
mod etcd_process;
#[path = "../../testkit/src/port.rs"]
#[expect(unreachable_pub, reason = "the whole kit is used elsewhere")]
mod port;

/// Runs each promise's test on each store that makes it: `reads` are made by every store, however
/// its content comes to be, `writes` by those that take single ones.
macro_rules! promises {
    (reads: [$($read:ident),* $(,)?], writes: [$($write:ident),* $(,)?] $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $read() {
                super::$read(super::Subject::of(super::MemoryStore::new())).await;
            })*
            $(#[tokio::test]
            async fn $write() {
                super::$write(std::sync::Arc::new(super::MemoryStore::new())).await;
            })*
        }
        mod embedded {
            fn open(folder: &tempfile::TempDir) -> super::EmbeddedStore {
                super::EmbeddedStore::open(folder.path().join("store.redb")).unwrap()
            }
            $(#[tokio::test]
            async fn $read() {
                let folder = tempfile::tempdir().unwrap();
                super::$read(super::Subject::of(open(&folder))).await;
            })*
            $(#[tokio::test]
            async fn $write() {
                let folder = tempfile::tempdir().unwrap();
                super::$write(std::sync::Arc::new(open(&folder))).await;
            })*
        }
        mod etcd {
            async fn open(etcd: &super::etcd_process::Etcd) -> super::EtcdStore {
                let options = super::EtcdOptions::new(etcd.hosts());
                // Four MiB take a busy machine a while.
                let write_time = std::time::Duration::from_secs(20);
                let options = super::EtcdOptions { write_time, ..options };
                super::EtcdStore::open(options).await.unwrap()
            }
            $(#[tokio::test]
            async fn $read() {
                let Some(etcd) = super::etcd_process::Etcd::start(1) else { return };
                super::$read(super::Subject::of(open(&etcd).await)).await;
            })*
            $(#[tokio::test]
            async fn $write() {
                let Some(etcd) = super::etcd_process::Etcd::start(1) else { return };
                super::$write(std::sync::Arc::new(open(&etcd).await)).await;
            })*
        }
        mod declared {
            $(#[tokio::test]
            async fn $read() {
                super::$read(super::Subject::declared()).await;
            })*
        }
    };
}

promises!(
    reads: [
        what_was_put_is_got_and_listed_by_prefix_in_key_order,
        revisions_only_grow_and_entries_remember_theirs,
        a_watch_continues_exactly_where_its_snapshot_ends,
        a_watch_can_start_at_a_remembered_revision,
        a_watch_delivers_every_change_once_and_in_order_under_concurrent_writers,
        a_change_reaches_a_waiting_watch_within_milliseconds,
        an_answered_write_is_visible_to_the_next_read,
    ],
    writes: [
        an_expectation_that_does_not_hold_changes_nothing,
        of_concurrent_changes_with_an_expectation_none_is_lost,
        generated_ids_are_unique_and_below_the_write_they_are_for,
        keys_and_values_have_limits,
        an_entry_lives_as_long_as_its_last_write_says,
        an_entry_expires_while_others_are_written_without_a_pause,
        what_lies_below_a_key_goes_in_one_step_with_it,
        many_changes_at_once_are_made_like_single_ones,
    ],
);

/// A store, and the way its content comes to be.
#[derive(Clone)]
struct Subject {
    store: Shared,
    /// What a declaration says, for a store that takes only such.
    declared: Option<Arc<Declaration>>,
}

struct Declaration {
    store: Arc<DeclaredStore>,
    content: Mutex<BTreeMap<Arc<str>, Arc<[u8]>>>,
}

impl Subject {
    fn of(store: impl Store) -> Self {
        Self { store: Arc::new(store), declared: None }
    }

    fn declared() -> Self {
        let store = DeclaredStore::new("declare it");
        let declaration = Declaration { store: Arc::clone(&store), content: Mutex::default() };
        Self { store, declared: Some(Arc::new(declaration)) }
    }

    async fn put(&self, key: &str, value: &str) -> sluicegate_store::Written {
        let Some(declared) = &self.declared else { return put(&self.store, key, value).await };
        let mut content = declared.content.lock().await;
        let created = content.insert(key.into(), bytes(value)).is_none();
        declared.store.replace(content.clone());
        let entry = self.store.get(key).await.unwrap().unwrap();
        sluicegate_store::Written { entry, created }
    }

    async fn delete(&self, key: &str) -> Option<u64> {
        let Some(declared) = &self.declared else {
            return self.store.delete(key, Expect::Any).await.unwrap();
        };
        let mut content = declared.content.lock().await;
        content.remove(key)?;
        Some(declared.store.replace(content.clone()))
    }
}

type Shared = Arc<dyn Store>;

async fn what_was_put_is_got_and_listed_by_prefix_in_key_order(subject: Subject) {
    let store = &subject.store;
    let mut last = 0;
    for key in ["/routes/2", "/routes/1", "/routes2/1", "/services/1", "/routes/10"] {
        let written = subject.put(key, key).await;
        assert!(written.created, "{key}");
        last = written.entry.modified;
    }
    assert_eq!(text(&store.get("/routes/1").await.unwrap().unwrap()), "/routes/1");
    assert_eq!(store.get("/routes/3").await.unwrap(), None);
    assert_eq!(store.get("/routes").await.unwrap(), None);
    for (prefix, keys) in [
        ("/routes/", vec!["/routes/1", "/routes/10", "/routes/2"]),
        ("/services/", vec!["/services/1"]),
        ("/nothing/", vec![]),
        ("/", vec!["/routes/1", "/routes/10", "/routes/2", "/routes2/1", "/services/1"]),
    ] {
        let listing = store.list(prefix).await.unwrap();
        assert_eq!(listing.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), keys, "{prefix}");
        assert_eq!(listing.revision, last);
    }
    assert!(!subject.put("/routes/1", "new").await.created);
    assert_eq!(text(&store.get("/routes/1").await.unwrap().unwrap()), "new");
    assert!(subject.delete("/routes/1").await.is_some());
    assert_eq!(store.get("/routes/1").await.unwrap(), None);
    assert_eq!(subject.delete("/routes/1").await, None);
}

async fn revisions_only_grow_and_entries_remember_theirs(subject: Subject) {
    let store = &subject.store;
    let first = subject.put("/routes/1", "a").await.entry;
    assert_eq!(first.created, first.modified);
    let other = subject.put("/routes/2", "a").await.entry;
    assert!(other.modified > first.modified);
    let again = subject.put("/routes/1", "b").await.entry;
    assert_eq!(again.created, first.created);
    assert!(again.modified > other.modified);
    let deleted = subject.delete("/routes/1").await.unwrap();
    assert!(deleted > again.modified);
    let revived = subject.put("/routes/1", "a").await.entry;
    assert!(revived.created > deleted);
    assert_eq!(store.list("/").await.unwrap().revision, revived.modified);
}

async fn an_expectation_that_does_not_hold_changes_nothing(store: Shared) {
    let old = put(&store, "/routes/1", "old").await.entry;
    let now = put(&store, "/routes/1", "now").await.entry;
    let revision = store.list("/").await.unwrap().revision;
    let key = "/routes/1";
    for (key, expect, found) in [
        (key, Expect::Absent, Some(now.modified)),
        (key, Expect::Revision(old.modified), Some(now.modified)),
        (key, Expect::Revision(now.modified + 1), Some(now.modified)),
        ("/routes/2", Expect::Revision(now.modified), None),
    ] {
        for answer in [
            store.put(key, bytes("x"), expect.into()).await.map(|_| ()),
            store.delete(key, expect).await.map(|_| ()),
        ] {
            match answer {
                Err(StoreError::Conflict { found: f, .. }) if f == found => {}
                other => panic!("{expect:?}: {other:?}"),
            }
        }
    }
    assert_eq!(store.get(key).await.unwrap(), Some(now.clone()));
    assert_eq!(store.list("/").await.unwrap().revision, revision);

    store.put(key, bytes("x"), Expect::Revision(now.modified).into()).await.unwrap();
    store.put("/routes/2", bytes("x"), Expect::Absent.into()).await.unwrap();
    assert_eq!(store.delete("/routes/3", Expect::Absent).await.unwrap(), None);
}

async fn of_concurrent_changes_with_an_expectation_none_is_lost(store: Shared) {
    put(&store, "/counter", "0").await;
    let clients = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..20 {
                loop {
                    let old = store.get("/counter").await.unwrap().unwrap();
                    let new = (text(&old).parse::<u64>().unwrap() + 1).to_string();
                    let expect = Expect::Revision(old.modified);
                    match store.put("/counter", bytes(&new), expect.into()).await {
                        Ok(_) => break,
                        Err(StoreError::Conflict { .. }) => tokio::task::yield_now().await,
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(text(&store.get("/counter").await.unwrap().unwrap()), "160");
}

async fn generated_ids_are_unique_and_below_the_write_they_are_for(store: Shared) {
    let before = put(&store, "/routes/1", "a").await.entry.modified;
    let first = store.next_id().await.unwrap();
    let second = store.next_id().await.unwrap();
    let written = put(&store, "/routes/2", "a").await.entry.modified;
    assert!(before < first && first < second && second < written);
}

async fn a_watch_continues_exactly_where_its_snapshot_ends(subject: Subject) {
    let store = &subject.store;
    subject.put("/routes/1", "old").await;
    subject.put("/services/1", "old").await;
    let (listing, mut watch) = store.snapshot_and_watch("/routes/").await.unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(watch.delivered(), listing.revision);
    assert!(within(20, watch.changes()).await.is_none(), "there is no news");
    // Dropping the wait above lost nothing.
    subject.put("/services/1", "other prefix").await;
    let changed = subject.put("/routes/1", "new").await.entry;
    let deleted = subject.delete("/routes/1").await.unwrap();
    let events = read(&mut watch, 2).await;
    assert_eq!(events[0].change, Change::Put(changed.clone()));
    assert_eq!(events[0].revision, changed.modified);
    let gone = Event { revision: deleted, key: "/routes/1".into(), change: Change::Delete };
    assert_eq!(events[1], gone);
    assert_eq!(watch.delivered(), deleted);
}

async fn a_watch_can_start_at_a_remembered_revision(subject: Subject) {
    let store = &subject.store;
    let first = subject.put("/routes/1", "1").await.entry.modified;
    let second = subject.put("/routes/2", "2").await.entry.modified;
    for (from, keys) in [
        (first, vec!["/routes/1", "/routes/2"]),
        (first + 1, vec!["/routes/2"]),
        (second, vec!["/routes/2"]),
    ] {
        let events = read(&mut store.watch(from).await.unwrap(), keys.len()).await;
        assert_eq!(events.iter().map(|e| &*e.key).collect::<Vec<_>>(), keys, "from {from}");
    }
    let mut future = store.watch(second + 1).await.unwrap();
    let third = subject.put("/routes/3", "3").await.entry.modified;
    assert_eq!(read(&mut future, 1).await[0].revision, third);
}

async fn a_watch_delivers_every_change_once_and_in_order_under_concurrent_writers(
    subject: Subject,
) {
    let store = &subject.store;
    let writers = (0..8).map(|writer| {
        let subject = subject.clone();
        tokio::spawn(async move {
            for n in 0..50 {
                let key = format!("/routes/{}", (writer * 7 + n) % 40);
                if n % 5 == 4 {
                    subject.delete(&key).await;
                } else {
                    subject.put(&key, &n.to_string()).await;
                }
                tokio::task::yield_now().await;
            }
        })
    });
    let writers = writers.collect::<Vec<_>>();
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Started in the middle: snapshot plus changes must add up to what there is in the end.
    let (listing, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut seen: BTreeMap<_, _> =
        listing.entries.into_iter().map(|entry| (Arc::clone(&entry.key), entry)).collect();
    let last = store.list("/").await.unwrap();
    let mut revision = listing.revision;
    while watch.delivered() < last.revision {
        for event in watch.changes().await.unwrap() {
            assert!(event.revision > revision, "{} after {revision}", event.revision);
            revision = event.revision;
            match event.change {
                Change::Put(entry) => seen.insert(event.key, entry),
                Change::Delete => {
                    assert!(seen.contains_key(&event.key), "only what is there is deleted");
                    seen.remove(&event.key)
                }
            };
        }
    }
    assert_eq!(seen.into_values().collect::<Vec<_>>(), last.entries);
}

async fn a_change_reaches_a_waiting_watch_within_milliseconds(subject: Subject) {
    let store = &subject.store;
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let waiting = tokio::spawn(async move {
        let events = watch.changes().await.unwrap();
        (events, std::time::Instant::now())
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    subject.put("/routes/1", "a").await;
    let answered = std::time::Instant::now();
    let (events, delivered) = waiting.await.unwrap();
    assert_eq!(events.len(), 1);
    let late = delivered.saturating_duration_since(answered);
    assert!(late < Duration::from_millis(50), "{late:?}");
}

async fn an_answered_write_is_visible_to_the_next_read(subject: Subject) {
    let store = &subject.store;
    for n in 0..20 {
        let entry = subject.put("/routes/1", &n.to_string()).await.entry;
        assert_eq!(store.get("/routes/1").await.unwrap(), Some(entry));
    }
}

async fn keys_and_values_have_limits(store: Shared) {
    let longest = format!("/{}", "k".repeat(KEY_BYTES_MAX - 1));
    for (key, fits) in [
        (longest.as_str(), true),
        (&format!("{longest}k"), false),
        ("routes/1", false),
        ("", false),
    ] {
        let put = store.put(key, bytes("x"), Put::default()).await;
        assert_eq!(put.is_ok(), fits, "{key}");
        assert_eq!(store.delete(key, Expect::Any).await.is_ok(), fits, "{key}");
    }
    for (len, fits) in [(VALUE_BYTES_MAX, true), (VALUE_BYTES_MAX + 1, false)] {
        let put = store.put("/routes/1", vec![b' '; len].into(), Put::default()).await;
        assert_eq!(put.is_ok(), fits, "{len}");
    }
}

async fn an_entry_lives_as_long_as_its_last_write_says(store: Shared) {
    let lives = |ms| Put { ttl: Some(Duration::from_millis(ms)), ..Put::default() };
    let put_for = |key: &'static str, how| store.put(key, bytes("x"), how);
    put_for("/routes/kept", lives(1)).await.unwrap();
    let kept = put_for("/routes/kept", Put::default()).await.unwrap().entry;
    put_for("/routes/longer", lives(1)).await.unwrap();
    let longer = put_for("/routes/longer", lives(600_000)).await.unwrap().entry;
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let last = put_for("/routes/short", lives(100)).await.unwrap().entry.modified;
    put_for("/routes/shorter", lives(600_000)).await.unwrap();
    put_for("/routes/shorter", lives(50)).await.unwrap();
    assert!(store.get("/routes/short").await.unwrap().is_some());

    let mut gone = Vec::new();
    while gone.len() < 2 {
        let events = within(5_000, watch.changes()).await.expect("what expired goes").unwrap();
        gone.extend(events.into_iter().filter(|event| event.change == Change::Delete));
    }
    gone.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(
        gone.iter().map(|e| &*e.key).collect::<Vec<_>>(),
        ["/routes/short", "/routes/shorter"]
    );
    assert!(gone.iter().all(|event| event.revision > last));
    let listing = store.list("/").await.unwrap();
    assert_eq!(listing.entries, [kept, longer]);
    assert!(put(&store, "/routes/short", "again").await.created);
    assert!(within(200, watch_for_delete(&mut watch)).await.is_none(), "it has no deadline left");
}

async fn an_entry_expires_while_others_are_written_without_a_pause(store: Shared) {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    put(&store, &format!("/routes/{writer}"), "x").await;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let how = Put { ttl: Some(Duration::from_millis(300)), ..Put::default() };
    store.put("/routes/short", bytes("x"), how).await.unwrap();
    let begun = std::time::Instant::now();
    while store.get("/routes/short").await.unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(8), "it never goes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn what_lies_below_a_key_goes_in_one_step_with_it(store: Shared) {
    let keys = ["/consumers/a", "/consumers/a/credentials/1", "/consumers/a/credentials/2"];
    let others = ["/consumers/a-b", "/consumers/aa/credentials/1"];
    let all = || async {
        for key in keys.iter().chain(&others) {
            put(&store, key, "x").await;
        }
    };
    let left = || async {
        let entries = store.list("/consumers/").await.unwrap().entries;
        entries.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>()
    };
    all().await;
    let stale = Expect::Absent;
    let refused = store.remove(keys[0], stale, true).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused:?}");
    let clearing = |expect| Put { expect, clears: true, ..Put::default() };
    let refused = store.put(keys[0], bytes("y"), clearing(stale)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused:?}");
    assert_eq!(left().await.len(), 5, "what is refused removes nothing");

    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let revision = store.remove(keys[0], Expect::Any, true).await.unwrap().unwrap();
    assert_eq!(left().await, others);
    let mut gone = within(5_000, watch.changes()).await.expect("in time").unwrap();
    gone.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(gone.iter().map(|event| &*event.key).collect::<Vec<_>>(), keys);
    assert!(gone.iter().all(|e| e.change == Change::Delete && e.revision <= revision));

    put(&store, keys[1], "left behind").await;
    assert_eq!(store.remove(keys[0], Expect::Any, true).await.unwrap(), None);
    assert_eq!(left().await, others, "what lies below goes, whether there is something above");

    all().await;
    let written = store.put(keys[0], bytes("new"), clearing(Expect::Any)).await.unwrap();
    assert!(!written.created);
    assert_eq!(left().await, [keys[0], others[0], others[1]]);
    let found = store.get(keys[0]).await.unwrap().unwrap();
    assert_eq!((text(&found), found.modified), ("new", written.entry.modified));
}

async fn watch_for_delete(watch: &mut sluicegate_store::Watch) {
    loop {
        let events = watch.changes().await.unwrap();
        if events.iter().any(|event| event.change == Change::Delete) {
            return;
        }
    }
}

async fn many_changes_at_once_are_made_like_single_ones(store: Shared) {
    let old = put(&store, "/routes/0", "old").await.entry;
    put(&store, "/services/1", "gone").await;
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let mut changes: Vec<sluicegate_store::Bulk> =
        (0..300).map(|n| (format!("/routes/{n}").into(), Some(bytes("new")))).collect();
    changes.push(("/services/1".into(), None));
    changes.push(("/services/2".into(), None));
    store.write_all(changes).await.unwrap();
    let listing = store.list("/").await.unwrap();
    assert_eq!(listing.entries.len(), 300);
    assert!(listing.entries.iter().all(|entry| text(entry) == "new"));
    assert_eq!(store.get("/routes/0").await.unwrap().unwrap().created, old.created);
    let events = read(&mut watch, 301).await;
    assert!(events.is_sorted_by_key(|event| event.revision));
    let bad = vec![("/routes/1".into(), Some(bytes("x"))), ("no key".into(), None)];
    assert!(store.write_all(bad).await.is_err());
}

async fn put(store: &Shared, key: &str, value: &str) -> sluicegate_store::Written {
    store.put(key, bytes(value), Put::default()).await.unwrap()
}

fn bytes(value: &str) -> Arc<[u8]> {
    value.as_bytes().into()
}

fn text(entry: &Entry) -> &str {
    std::str::from_utf8(&entry.value).unwrap()
}

async fn read(watch: &mut sluicegate_store::Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(within(5_000, watch.changes()).await.expect("a change in time").unwrap());
    }
    assert_eq!(events.len(), count);
    events
}

async fn within<T>(ms: u64, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(ms), future).await.ok()
}

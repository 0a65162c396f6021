//! A store that forgets everything when it is dropped. For tests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    BoxFuture, Change, Entry, Event, Expect, Listing, Put, Store, StoreError, Watch, Written,
    check_key, check_value,
    expiry::{self, Deadlines},
    shared::Shared,
};

/// A store in memory only.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// Serializes writers, so that an expectation still holds when its change is applied.
    write: Mutex<Expiring>,
    issued: AtomicU64,
    /// Wakes the one task that removes what has expired.
    sooner: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Expiring {
    deadlines: Deadlines,
    /// Whether the task that removes what has expired was started.
    watched: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        let inner = Inner {
            shared: Shared::new(BTreeMap::new(), 0),
            write: Mutex::default(),
            issued: AtomicU64::new(0),
            sooner: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    fn next_revision(&self) -> u64 {
        self.issued.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn writing(&self) -> MutexGuard<'_, Expiring> {
        self.write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Must be called in a runtime: entries expire in a task of it.
    fn put(self: &Arc<Self>, key: &str, value: Arc<[u8]>, how: Put) -> Result<Written, StoreError> {
        check_key(key)?;
        check_value(key, &value)?;
        let mut expiring = self.writing();
        let old = self.shared.get(key);
        how.expect.check(key, old.as_ref().map(|old| old.modified))?;
        let revision = self.next_revision();
        let key: Arc<str> = key.into();
        let created = old.as_ref().map_or(revision, |old| old.created);
        let entry = Entry { key: Arc::clone(&key), value, created, modified: revision };
        let deadline = how.ttl.map(|ttl| expiry::deadline(expiry::now(), ttl));
        expiring.deadlines.set(&key, deadline);
        if deadline.is_some() {
            if !std::mem::replace(&mut expiring.watched, true) {
                tokio::spawn(expire(Arc::downgrade(self), Arc::clone(&self.sooner)));
            }
            self.sooner.notify_one();
        }
        let mut events = vec![Event { revision, key, change: Change::Put(entry.clone()) }];
        if how.clears {
            events.extend(self.cleared(&mut expiring, &entry.key, revision));
        }
        self.shared.apply(events);
        Ok(Written { entry, created: old.is_none() })
    }

    fn remove(&self, key: &str, expect: Expect, tree: bool) -> Result<Option<u64>, StoreError> {
        check_key(key)?;
        let mut expiring = self.writing();
        let old = self.shared.get(key);
        expect.check(key, old.as_ref().map(|old| old.modified))?;
        let was_there = old.is_some();
        let revision = self.next_revision();
        let mut events = Vec::new();
        if let Some(old) = old {
            events.push(removal(&mut expiring, old.key, revision));
        }
        if tree {
            events.extend(self.cleared(&mut expiring, key, revision));
        }
        if !events.is_empty() {
            self.shared.apply(events);
        }
        Ok(was_there.then_some(revision))
    }

    /// What removes everything below a key, in one step with what changes the key itself.
    fn cleared(&self, expiring: &mut Expiring, key: &str, revision: u64) -> Vec<Event> {
        let below = self.shared.list(&format!("{key}/")).entries;
        below.into_iter().map(|entry| removal(expiring, entry.key, revision)).collect()
    }
}

fn removal(expiring: &mut Expiring, key: Arc<str>, revision: u64) -> Event {
    expiring.deadlines.set(&key, None);
    Event { revision, key, change: Change::Delete }
}

/// Removes what has expired, until the store is gone.
async fn expire(store: Weak<Inner>, sooner: Arc<Notify>) {
    while let Some(inner) = store.upgrade() {
        let now = expiry::now();
        let wait = {
            let mut expiring = inner.writing();
            for key in expiring.deadlines.due(now, usize::MAX) {
                let revision = inner.next_revision();
                inner.shared.apply([removal(&mut expiring, key, revision)]);
            }
            expiring.deadlines.wait(now)
        };
        drop(inner);
        match wait {
            Some(wait) => drop(tokio::time::timeout(wait, sooner.notified()).await),
            None => sooner.notified().await,
        }
    }
}

/// Lets the task that removes what has expired see that there is nothing left to do.
impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.inner.sooner.notify_one();
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.inner.shared.get(key)) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move { Ok(self.inner.shared.list(prefix)) })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Arc<[u8]>,
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        Box::pin(async move { self.inner.put(key, value, how) })
    }

    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        Box::pin(async move { self.inner.remove(key, expect, tree) })
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move { Ok(self.inner.next_revision()) })
    }

    fn snapshot_and_watch<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<(Listing, Watch), StoreError>> {
        Box::pin(async move { Ok(self.inner.shared.snapshot_and_watch(prefix)) })
    }

    fn watch(&self, from_revision: u64) -> BoxFuture<'_, Result<Watch, StoreError>> {
        Box::pin(async move { self.inner.shared.watch(from_revision) })
    }
}

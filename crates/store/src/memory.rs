//! A store that forgets everything when it is dropped. For tests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    BoxFuture, Change, Entry, Event, Expect, Listing, Store, StoreError, Watch, Written, check_key,
    check_value, shared::Shared,
};

/// A store in memory only.
#[derive(Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// Serializes writers, so that an expectation still holds when its change is applied.
    write: Mutex<()>,
    issued: AtomicU64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        let shared = Shared::new(BTreeMap::new(), 0);
        Self { shared, write: Mutex::new(()), issued: AtomicU64::new(0) }
    }

    fn next_revision(&self) -> u64 {
        self.issued.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn put_now(&self, key: &str, value: Arc<[u8]>, expect: Expect) -> Result<Written, StoreError> {
        check_key(key)?;
        check_value(key, &value)?;
        let _write = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.get(key);
        expect.check(key, old.as_ref().map(|old| old.modified))?;
        let revision = self.next_revision();
        let key: Arc<str> = key.into();
        let created = old.as_ref().map_or(revision, |old| old.created);
        let entry = Entry { key: Arc::clone(&key), value, created, modified: revision };
        self.shared.apply([Event { revision, key, change: Change::Put(entry.clone()) }]);
        Ok(Written { entry, created: old.is_none() })
    }

    fn delete_now(&self, key: &str, expect: Expect) -> Result<Option<u64>, StoreError> {
        check_key(key)?;
        let _write = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.get(key);
        expect.check(key, old.as_ref().map(|old| old.modified))?;
        if old.is_none() {
            return Ok(None);
        }
        let revision = self.next_revision();
        self.shared.apply([Event { revision, key: key.into(), change: Change::Delete }]);
        Ok(Some(revision))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
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
        expect: Expect,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        Box::pin(async move { self.put_now(key, value, expect) })
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        Box::pin(async move { self.delete_now(key, expect) })
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move { Ok(self.next_revision()) })
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
}

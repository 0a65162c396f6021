//! Resources that somebody else declares, whole: a YAML or JSON file in APISIX's standalone form, or
//! what `PUT /apisix/admin/configs` sends.
//!
//! A declaration replaces everything, but only what differs becomes a change, so that a file with
//! one new route costs one route. It stays in memory: after a restart its source tells it again.
//! Rules: <https://apisix.apache.org/docs/apisix/deployment-modes/#standalone>.

mod follow;
mod source;
mod variables;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    BoxFuture, Change, Entry, Event, Expect, Health, Listing, Put, Store, StoreError, Watch,
    Written, shared::Shared,
};

use follow::Follower;
pub use follow::Judge;
pub use source::{
    DeclaredPlugin, FILE_BYTES_MAX, FileError, Format, Item, Refused, items, parse, plugins,
};
pub use variables::Variables;

/// A store whose content is declared as a whole. Nobody else writes to it.
#[derive(Debug)]
pub struct DeclaredStore {
    shared: Arc<Shared>,
    issued: AtomicU64,
    /// Declarations replace each other one at a time.
    replacing: Mutex<()>,
    /// What a writer is told: where changes are made instead.
    told: String,
    health: RwLock<Health>,
    follower: OnceLock<Follower>,
}

impl DeclaredStore {
    /// An empty store. `told` is what a writer gets to read: where changes are made instead.
    pub fn new(told: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            shared: Shared::new(BTreeMap::new(), 0),
            issued: AtomicU64::new(0),
            replacing: Mutex::new(()),
            told: told.into(),
            health: RwLock::new(Health::Ready),
            follower: OnceLock::new(),
        })
    }

    /// Reads `path` now, and again whenever it changes, for as long as the store lives.
    ///
    /// That the file is missing or bad is no failure: [`Store::health`] and the log say so, and
    /// the store stays as it is until the file is good. Called once.
    pub fn follow(
        self: &Arc<Self>,
        path: PathBuf,
        format: Format,
        variables: Variables,
        judge: impl Judge,
    ) -> Result<(), StoreError> {
        let follower = Follower::start(self, path, format, variables, Box::new(judge))?;
        // A second follower ends at once: it is dropped here.
        let _ = self.follower.set(follower);
        Ok(())
    }

    /// Reads the followed file anew and judges its resources again, changed or not. Returns when
    /// that is done.
    pub fn reread(&self) {
        if let Some(follower) = self.follower.get() {
            follower.reread();
        }
    }

    /// Replaces everything by `wanted`, all at once. Answers the revision at which it is so.
    pub fn replace(&self, mut wanted: BTreeMap<Arc<str>, Arc<[u8]>>) -> u64 {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.shared.list("");
        let mut events = Vec::new();
        let mut revision = known.revision;
        let mut next = || {
            revision = self.issued.fetch_add(1, Ordering::Relaxed) + 1;
            revision
        };
        for old in known.entries {
            let change = match wanted.remove(&old.key) {
                Some(value) if value == old.value => continue,
                Some(value) => Change::Put(Entry { value, modified: next(), ..old.clone() }),
                None => Change::Delete,
            };
            let revision = match &change {
                Change::Put(entry) => entry.modified,
                Change::Delete => next(),
            };
            events.push(Event { revision, key: old.key, change });
        }
        for (key, value) in wanted {
            let revision = next();
            let entry =
                Entry { key: Arc::clone(&key), value, created: revision, modified: revision };
            events.push(Event { revision, key, change: Change::Put(entry) });
        }
        if !events.is_empty() {
            self.shared.apply(events);
        }
        revision
    }

    fn set_health(&self, health: Health) {
        *self.health.write().unwrap_or_else(PoisonError::into_inner) = health;
    }

    fn read_only(&self) -> StoreError {
        StoreError::ReadOnly { reason: self.told.clone() }
    }
}

impl Store for DeclaredStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { Ok(self.shared.get(key)) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move { Ok(self.shared.list(prefix)) })
    }

    fn put<'a>(
        &'a self,
        _key: &'a str,
        _value: Arc<[u8]>,
        _how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        Box::pin(async move { Err(self.read_only()) })
    }

    fn remove<'a>(
        &'a self,
        _key: &'a str,
        _expect: Expect,
        _tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        Box::pin(async move { Err(self.read_only()) })
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move { Err(self.read_only()) })
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
        self.health.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(items: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<[u8]>> {
        items.iter().map(|(key, value)| ((*key).into(), value.as_bytes().into())).collect()
    }

    #[tokio::test]
    async fn a_declaration_replaces_everything_and_only_what_differs_is_a_change() {
        let store = DeclaredStore::new("the file");
        let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
        let first = store.replace(wanted(&[("/routes/1", "a"), ("/routes/2", "b")]));
        assert_eq!((first, watch.changes().await.unwrap().len()), (2, 2));
        assert_eq!(store.replace(wanted(&[("/routes/1", "a"), ("/routes/2", "b")])), first);

        let old = store.get("/routes/2").await.unwrap().unwrap();
        let last = store.replace(wanted(&[("/routes/2", "B"), ("/routes/3", "c")]));
        let events = watch.changes().await.unwrap();
        let keys: Vec<_> = events.iter().map(|event| &*event.key).collect();
        assert_eq!(keys, ["/routes/1", "/routes/2", "/routes/3"]);
        assert!(events.is_sorted_by_key(|event| event.revision));
        assert_eq!(events.last().unwrap().revision, last);
        let new = store.get("/routes/2").await.unwrap().unwrap();
        assert_eq!(new.created, old.created);
        assert!(new.modified > old.modified);
        assert_eq!(store.get("/routes/1").await.unwrap(), None);
    }

    #[tokio::test]
    async fn nobody_else_writes() {
        let store = DeclaredStore::new("edit the file");
        let expected = "the configuration store takes no writes: edit the file";
        let put = store.put("/routes/1", Arc::from(*b"{}"), Put::default()).await.unwrap_err();
        let delete = store.delete("/routes/1", Expect::Any).await.unwrap_err();
        let tree = store.remove("/routes/1", Expect::Any, true).await.unwrap_err();
        let id = store.next_id().await.unwrap_err();
        for error in [put, delete, tree, id] {
            assert_eq!(error.to_string(), expected);
        }
    }
}

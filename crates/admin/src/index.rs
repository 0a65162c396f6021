//! Who may refer to what, kept up to date by following the store, so that a deletion looks at a few
//! resources and not at all of them.
//!
//! The index only names candidates: whoever asks reads them from the store and sees for himself.
//! That is why it can know targets by their hashes, and need not know the plugins that are enabled.
//! It is built when the Admin API opens, or first asked for, which reads every resource once.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use sluicegate_model::{
    Kind,
    encrypt::Keyring,
    resource::{Key, id_text},
};
use sluicegate_store::{Change, Entry, Event, Store, StoreError};
use tokio::{sync::watch, task::JoinHandle};
use tracing::warn;

/// Something that resources refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target<'a> {
    /// A resource that others name by its id.
    Resource(Kind, &'a str),
    /// What a consumer or credential says in a plugin's configuration: plugin, member, text.
    Text(&'a str, &'a str, &'a str),
}

/// The index, empty and idle until it is asked for the first time.
pub(crate) struct Index {
    store: Arc<dyn Store>,
    /// The last revision that was written from here.
    written: AtomicU64,
    shared: Arc<Shared>,
    task: Mutex<Option<Task>>,
}

impl Index {
    pub(crate) fn new(store: Arc<dyn Store>, keyring: Keyring) -> Self {
        let shared = Shared {
            keyring,
            hasher: RandomState::new(),
            users: Mutex::default(),
            revision: watch::Sender::new(None),
        };
        Self { store, written: AtomicU64::new(0), shared: Arc::new(shared), task: Mutex::default() }
    }

    /// The number a target goes by, another one in each process.
    pub(crate) fn hash(&self, target: Target<'_>) -> u64 {
        self.shared.hasher.hash_one(target)
    }

    /// Remembers a write, which every later question will wait for.
    pub(crate) fn wrote(&self, revision: u64) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    /// The keys of resources of a kind that may refer to a target, in order.
    ///
    /// What was [written from here](Self::wrote) is looked at; what others write through another
    /// gateway is once the store has told.
    pub(crate) async fn users(
        &self,
        kind: Kind,
        target: Target<'_>,
    ) -> Result<Vec<Arc<str>>, StoreError> {
        self.start();
        let written = self.written.load(Ordering::Acquire);
        let mut revision = self.shared.revision.subscribe();
        for (least, wait_max) in [(0, BUILD_WAIT_MAX), (written, CATCH_UP_WAIT_MAX)] {
            let known = revision.wait_for(|known| known.is_some_and(|known| known >= least));
            if !matches!(tokio::time::timeout(wait_max, known).await, Ok(Ok(_))) {
                let reason = "references could not be looked up in time".to_owned();
                return Err(StoreError::Unavailable { reason });
            }
        }
        let folder = Key::folder(kind, None);
        let hash = self.hash(target);
        let users = self.shared.users.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = users.of_target.get(&hash) else { return Ok(Vec::new()) };
        let from = (Bound::Included(&*folder), Bound::Unbounded);
        let found = keys.range::<str, _>(from).take_while(|key| key.starts_with(&folder));
        Ok(found.cloned().collect())
    }

    /// Builds the index in the background, if nobody has asked for that yet.
    pub(crate) fn start(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            let (store, shared) = (Arc::clone(&self.store), Arc::clone(&self.shared));
            *task = Some(Task(tokio::spawn(follow(store, shared))));
        }
    }
}

struct Shared {
    keyring: Keyring,
    hasher: RandomState,
    users: Mutex<Users>,
    /// Up to where the store was followed; `None` while the index is being built.
    revision: watch::Sender<Option<u64>>,
}

/// Both directions, so that a change of a resource takes back what it said before.
#[derive(Default)]
struct Users {
    of_target: HashMap<u64, BTreeSet<Arc<str>>>,
    targets: HashMap<Arc<str>, Box<[u64]>>,
}

impl Users {
    fn set(&mut self, key: &Arc<str>, targets: Box<[u64]>) {
        for target in self.targets.remove(key).iter().flatten() {
            if let Some(keys) = self.of_target.get_mut(target) {
                keys.remove(key);
                if keys.is_empty() {
                    self.of_target.remove(target);
                }
            }
        }
        if targets.is_empty() {
            return;
        }
        for target in &targets {
            self.of_target.entry(*target).or_default().insert(Arc::clone(key));
        }
        self.targets.insert(Arc::clone(key), targets);
    }
}

impl Shared {
    fn targets(&self, entry: &Entry) -> Box<[u64]> {
        let mut targets = Vec::new();
        let key = Key::parse(&entry.key).filter(|key| may_refer(key.kind));
        if let Some(key) = key
            && let Ok(value) = serde_json::from_slice(&entry.value)
        {
            each_target(key.kind, &value, &self.keyring, |target| {
                targets.push(self.hasher.hash_one(target));
            });
        }
        targets.into()
    }

    fn build(&self, entries: &[Entry]) {
        let mut built = Users::default();
        for entry in entries {
            built.set(&entry.key, self.targets(entry));
        }
        *self.users.lock().unwrap_or_else(PoisonError::into_inner) = built;
    }

    fn apply(&self, events: &[Event]) {
        for event in events {
            let targets = match &event.change {
                Change::Put(entry) => self.targets(entry),
                Change::Delete => Box::default(),
            };
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.set(&event.key, targets);
        }
    }
}

/// Builds the index and keeps it up to date until the store closes.
async fn follow(store: Arc<dyn Store>, shared: Arc<Shared>) {
    loop {
        let (listing, mut watch) = match store.snapshot_and_watch("/").await {
            Ok(start) => start,
            Err(StoreError::Closed) => return,
            Err(reason) => {
                warn!(%reason, "References between resources cannot be read; it is tried again.");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let builder = Arc::clone(&shared);
        let built = tokio::task::spawn_blocking(move || builder.build(&listing.entries)).await;
        if built.is_err() {
            return;
        }
        loop {
            shared.revision.send_replace(Some(watch.delivered()));
            match watch.changes().await {
                Ok(events) => shared.apply(&events),
                Err(StoreError::Closed) => return,
                // The store went on without us, or lost its source: start over.
                Err(_) => break,
            }
        }
        shared.revision.send_replace(None);
    }
}

/// Whether resources of a kind refer to others in a way that is looked up.
fn may_refer(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Routes
            | Kind::Services
            | Kind::StreamRoutes
            | Kind::PluginConfigs
            | Kind::GlobalRules
            | Kind::ConsumerGroups
            | Kind::Consumers
            | Kind::Credentials
    )
}

/// Visits everything a resource refers to.
fn each_target(kind: Kind, value: &Value, keyring: &Keyring, mut each: impl FnMut(Target<'_>)) {
    for (property, kind) in PROPERTIES {
        if let Some(id) = value.get(property).and_then(id_text) {
            each(Target::Resource(kind, &id));
        }
    }
    if let Some(id) = value.pointer("/protocol/superior_id").and_then(id_text) {
        each(Target::Resource(Kind::StreamRoutes, &id));
    }
    for id in split_upstreams(value) {
        each(Target::Resource(Kind::Upstreams, &id));
    }
    if let Some(id) = value.pointer("/plugins/grpc-transcode/proto_id").and_then(id_text) {
        each(Target::Resource(Kind::Protos, &id));
    }
    if matches!(kind, Kind::Consumers | Kind::Credentials) {
        let plugins = value.get("plugins").and_then(Value::as_object);
        for (plugin, conf) in plugins.into_iter().flatten() {
            for (member, text) in conf.as_object().into_iter().flatten() {
                let Some(text) = text.as_str() else { continue };
                // Which members are encrypted is for the plugin to say; a text that opens was.
                match keyring.decrypt(text) {
                    Some(plain) => each(Target::Text(plugin, member, &plain)),
                    None => each(Target::Text(plugin, member, text)),
                }
            }
        }
    }
}

/// The upstreams among which a `traffic-split` in a resource chooses.
pub(crate) fn split_upstreams(value: &Value) -> impl Iterator<Item = String> {
    let rules = value.pointer("/plugins/traffic-split/rules").and_then(Value::as_array);
    let upstreams =
        rules.into_iter().flatten().filter_map(|rule| rule.get("weighted_upstreams")?.as_array());
    upstreams.flatten().filter_map(|upstream| id_text(upstream.get("upstream_id")?))
}

/// Ends with the index.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The properties that name another resource.
const PROPERTIES: [(&str, Kind); 4] = [
    ("upstream_id", Kind::Upstreams),
    ("service_id", Kind::Services),
    ("plugin_config_id", Kind::PluginConfigs),
    ("group_id", Kind::ConsumerGroups),
];
/// How long a question waits for the index to be built.
const BUILD_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a question waits until the index knows what was written before.
const CATCH_UP_WAIT_MAX: Duration = Duration::from_secs(5);
/// After how long a store that could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluicegate_store::{Expect, MemoryStore};

    use super::*;

    async fn put(store: &dyn Store, index: &Index, key: &str, value: Value) {
        let bytes = value.to_string().into_bytes().into();
        let written = store.put(key, bytes, Expect::Any.into()).await.unwrap();
        index.wrote(written.entry.modified);
    }

    #[tokio::test]
    async fn users_are_found_in_what_was_there_and_in_what_came_later() {
        let keyring = Keyring::new(vec!["qeddd145sfvddff3".to_owned()]);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let index = Index::new(Arc::clone(&store), keyring.clone());
        let split =
            json!({"traffic-split": {"rules": [{"weighted_upstreams": [{"upstream_id": 7}, {}]}]}});
        put(&*store, &index, "/routes/1", json!({"upstream_id": 7, "plugins": split})).await;
        put(&*store, &index, "/routes/2", json!({"service_id": "7"})).await;
        let users = async |kind, target| {
            let found = index.users(kind, target).await.unwrap();
            found.iter().map(|key| key.to_string()).collect::<Vec<_>>()
        };
        let seven = Target::Resource(Kind::Upstreams, "7");
        assert_eq!(users(Kind::Routes, seven).await, ["/routes/1"]);
        assert!(users(Kind::Services, seven).await.is_empty());

        put(&*store, &index, "/routes/2", json!({"upstream_id": "7"})).await;
        put(&*store, &index, "/services/1", json!({"upstream_id": "7"})).await;
        let key = keyring.encrypt("jack-key");
        let consumer =
            json!({"group_id": 1, "plugins": {"key-auth": {"key": key}, "x": {"y": "z"}}});
        put(&*store, &index, "/consumers/jack/credentials/1", consumer).await;
        assert_eq!(users(Kind::Routes, seven).await, ["/routes/1", "/routes/2"]);
        assert_eq!(users(Kind::Services, seven).await, ["/services/1"]);
        assert!(users(Kind::Routes, Target::Resource(Kind::Services, "7")).await.is_empty());
        for target in [
            Target::Text("key-auth", "key", "jack-key"),
            Target::Text("x", "y", "z"),
            Target::Resource(Kind::ConsumerGroups, "1"),
        ] {
            assert_eq!(users(Kind::Consumers, target).await, ["/consumers/jack/credentials/1"]);
        }

        let gone = store.delete("/routes/1", Expect::Any).await.unwrap().unwrap();
        index.wrote(gone);
        assert_eq!(users(Kind::Routes, seven).await, ["/routes/2"]);
        assert!(index.shared.users.lock().unwrap().targets.len() == 3);
    }
}

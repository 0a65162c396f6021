//! Following the store: what it says is decoded, compiled and published.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use sluicegate_admin::status::Broken;
use sluicegate_gateway::core::Shared;
use sluicegate_gateway::snapshot::{Change, Compiler, Report};
use sluicegate_model::encrypt::{Keyring, each_private_key};
use sluicegate_model::plugin::Catalog;
use sluicegate_model::resource::Key;
use sluicegate_store::{Change as StoreChange, Entry, Event, Listing, Store, StoreError, Watch};
use tokio::sync::{Mutex, watch};
use tracing::{error, warn};

use crate::judge::DeclaredPlugins;
use crate::references::{CHANGE_WAIT, References};
use crate::status::Unreadable;

/// Turns what the store says into what the compiler takes.
#[derive(Clone)]
pub(crate) struct Decoder {
    pub(crate) catalog: Arc<ArcSwap<Catalog>>,
    pub(crate) keyring: Keyring,
    /// Plugins' secrets are what somebody wrote by hand, as in APISIX's file and API-driven modes:
    /// only private keys may be encrypted.
    pub(crate) plain: bool,
    pub(crate) unreadable: Arc<Unreadable>,
}

impl Decoder {
    pub(crate) fn changes(&self, events: &[Event]) -> Vec<Change> {
        events.iter().filter_map(|event| self.change(event)).collect()
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let Key { kind, parent, id } = Key::parse(&event.key)?;
        // What belongs to another goes by the end of its key: `jack/credentials/1`.
        let id = match parent {
            Some(parent) => format!("{parent}/{}/{id}", kind.plural()),
            None => id,
        };
        let (value, text, created) = match &event.change {
            StoreChange::Delete => {
                self.unreadable.change(&event.key, None);
                (None, None, 0)
            }
            StoreChange::Put(entry) => match serde_json::from_slice::<Value>(&entry.value) {
                Ok(mut value) => {
                    self.unreadable.change(&event.key, None);
                    let catalog = self.catalog.load_full();
                    let sealed = match self.plain {
                        true => Vec::new(),
                        false => catalog.sealed_secrets(&self.keyring, kind, &value),
                    };
                    if !sealed.is_empty() {
                        error!(key = %event.key, secrets = sealed.join(", "), "Stored secrets do not open with the keyring and are used as they are: put the key that they were encrypted with into apisix.data_encryption.keyring.");
                    }
                    let before = value.clone();
                    if self.plain {
                        each_private_key(kind, &mut value, |key| {
                            if let Some(opened) = self.keyring.decrypt_pem(key) {
                                *key = opened;
                            }
                        });
                    } else {
                        catalog.decrypt_resource(&self.keyring, kind, &mut value);
                    }
                    let text = (value == before).then(|| entry.value.clone());
                    (Some(value), text, entry.created)
                }
                Err(error) => {
                    error!(key = %event.key, %error, "A stored resource is not JSON; its previous version serves.");
                    let cause = format!(
                        "it is no JSON: {error}; what serves is the version before, if there was one"
                    );
                    let broken = Broken { kind: kind.plural(), id, cause };
                    self.unreadable.change(&event.key, Some(broken));
                    return None;
                }
            },
        };
        Some(Change { kind, id, value, text, revision: event.revision, created })
    }
}

pub(crate) fn put(entry: Entry) -> Event {
    Event { revision: entry.modified, key: entry.key.clone(), change: StoreChange::Put(entry) }
}

/// Follows the store and publishes a snapshot for each batch of changes.
#[derive(Clone)]
pub(crate) struct Follower {
    pub(crate) compiler: Arc<Mutex<Compiler>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) decode: Decoder,
    /// Up to this revision everything was read when the plugins were last loaded. Invariant: looked
    /// at and changed only by who holds the compiler.
    pub(crate) read: Arc<AtomicU64>,
    pub(crate) served: watch::Sender<u64>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) reports: Arc<ArcSwap<Vec<Report>>>,
    pub(crate) references: Arc<References>,
    /// The plugins that a control plane enables, where this gateway is none.
    pub(crate) of_control_plane: Option<Arc<DeclaredPlugins>>,
}

impl Follower {
    pub(crate) async fn run(self, mut changes: Watch) {
        loop {
            let mut may_hold = true;
            let events = match changes.changes().await {
                Ok(events) => events,
                Err(error) => {
                    warn!(%error, "The store's changes were lost track of; everything is read anew.");
                    match self.start_over().await {
                        Ok((events, fresh)) => {
                            changes = fresh;
                            may_hold = false;
                            events
                        }
                        Err(error) => {
                            error!(%error, "The store cannot be read; it is tried again.");
                            tokio::time::sleep(STORE_RETRY).await;
                            continue;
                        }
                    }
                }
            };
            let Some(last) = events.iter().map(|e| e.revision).max() else { continue };
            self.take_plugins(&events).await;
            loop {
                let catalog = self.decode.catalog.load_full();
                let decoded = self.decode.changes(&events);
                let prepared = self.references.prepare(decoded, CHANGE_WAIT).await;
                let read = self.read.clone();
                self.compile(move |references| {
                    let prepared = match may_hold {
                        true => prepared.after(read.load(Ordering::Acquire)),
                        // Its revisions may have nothing to do with those before.
                        false => {
                            read.store(last, Ordering::Release);
                            prepared
                        }
                    };
                    references.resolve(prepared, may_hold)
                })
                .await;
                // Plugins that were loaded meanwhile have read everything but what starts over.
                if may_hold || Arc::ptr_eq(&catalog, &self.decode.catalog.load_full()) {
                    break;
                }
            }
            self.served.send_replace(last);
        }
    }

    /// Takes the list of plugins, if it is among what changed.
    async fn take_plugins(&self, events: &[Event]) {
        let Some(plugins) = &self.of_control_plane else { return };
        let lists = events.iter().filter(|event| *event.key == *PLUGINS_KEY);
        let Some(StoreChange::Put(entry)) = lists.map(|event| &event.change).next_back() else {
            return;
        };
        let (plugins, list) = (plugins.clone(), entry.value.clone());
        // Everything is compiled with them.
        let taken = tokio::task::spawn_blocking(move || take_plugins(&plugins, &list));
        if let Err(error) = taken.await {
            error!(%error, "The control plane's list of plugins could not be taken.");
        }
    }

    /// Compiles what depends on references whose values change.
    pub(crate) async fn follow_references(self) {
        loop {
            let changed = self.references.changed().await;
            self.compile(move |references| references.affected(&changed)).await;
        }
    }

    /// Compiles changes, which are asked for when the compiler is at hand, and publishes.
    async fn compile(&self, changes: impl FnOnce(&References) -> Vec<Change> + Send + 'static) {
        let Self { compiler, shared, reports, references, .. } = self.clone();
        // Compiling may take a while: it must not hold up the Admin API's thread.
        let compiled = tokio::task::spawn_blocking(move || {
            let mut compiler = compiler.blocking_lock();
            let changes = changes(&references);
            if !changes.is_empty() {
                shared.publish(compiler.apply(changes));
                reports.store(compiler.reports());
            }
        });
        if let Err(error) = compiled.await {
            error!(%error, "A configuration change could not be compiled.");
        }
    }

    /// Everything the store holds as changes, what is gone from it included, and a watch
    /// that goes on from there.
    async fn start_over(&self) -> Result<(Vec<Event>, Watch), StoreError> {
        let (listing, changes) = self.store.snapshot_and_watch("/").await?;
        let revision = listing.revision;
        self.decode.unreadable.clear();
        let mut events = gone(&*self.compiler.lock().await, &self.references, &listing);
        events.extend(listing.entries.into_iter().map(put));
        // The watch goes on behind this revision, whatever the entries' own are.
        events.push(Event { revision, key: "/".into(), change: StoreChange::Delete });
        Ok((events, changes))
    }
}

/// What removes the resources that a listing of everything no longer has.
pub(crate) fn gone(compiler: &Compiler, references: &References, listing: &Listing) -> Vec<Event> {
    let revision = listing.revision;
    let kept: HashSet<&str> = listing.entries.iter().map(|e| &*e.key).collect();
    let mut known = compiler.known();
    known.extend(references.known());
    let keys = known
        .iter()
        .map(|(kind, id)| format!("/{}/{id}", kind.parent().unwrap_or(*kind).plural()))
        .filter(|key| !kept.contains(key.as_str()));
    keys.map(|key| Event { revision, key: key.into(), change: StoreChange::Delete }).collect()
}

/// Entries with the managers of secrets before those who ask them.
pub(crate) fn managers_first(entries: Vec<Entry>) -> Vec<Entry> {
    let (mut managers, others): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.key.starts_with("/secrets/"));
    managers.extend(others);
    managers
}

/// Takes the list of plugins that a control plane left in the store; one that cannot be read changes
/// nothing.
pub(crate) fn take_plugins(plugins: &DeclaredPlugins, list: &[u8]) {
    let mut root = serde_json::Map::new();
    let list = serde_json::from_slice(list).map_err(|error| error.to_string());
    let list = list.and_then(|list| {
        root.insert("plugins".to_owned(), list);
        sluicegate_store::file::plugins(&mut root)
    });
    match list {
        Ok(list) => plugins.set(list.as_deref()),
        Err(why) => error!("failed to check item data of [/plugins] err:{why}"),
    }
}

/// Where a control plane keeps the list of its plugins.
pub(crate) const PLUGINS_KEY: &str = "/plugins";

/// How long a store that cannot be read is left alone.
const STORE_RETRY: Duration = Duration::from_secs(1);

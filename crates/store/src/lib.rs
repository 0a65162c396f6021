//! Where configuration lives: one [`Store`] trait, several engines.
//!
//! A store maps keys in APISIX's own layout (`/routes/1`, `/consumers/jack/credentials/c1`) to
//! opaque bytes (JSON, by agreement of its users). Every change gets a revision from one counter
//! that only grows, as in etcd: an entry remembers the revision that created it and the one that
//! last changed it (`createdIndex` and `modifiedIndex` of the Admin API).
//!
//! Invariants every engine keeps, checked by one contract-test suite (`tests/contract.rs`) as far as
//! it takes writes ([`DeclaredStore`] takes none: its content is declared as a whole):
//! - a write that was answered is durable, visible to every later read, and delivered to every watch;
//! - a watch delivers each change exactly once, in revision order;
//! - [`Expect`] is checked and the change made in one step, so no concurrent change is lost.
//! - an entry that was put with a time to live is removed when it is over, as if by a delete.

mod embedded;
mod etcd;
mod expiry;
pub mod file;
mod memory;
mod shared;
pub mod yaml;

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use embedded::EmbeddedStore;
pub use etcd::{ETCD_WRITE_TIME_MAX, EtcdOptions, EtcdStore, TlsOptions};
pub use file::DeclaredStore;
pub use memory::MemoryStore;
pub use shared::Watch;

/// A boxed future, so that [`Store`] can be used as `dyn Store`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A configuration store.
pub trait Store: Send + Sync + 'static {
    /// The entry at `key`, if there is one.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// All entries whose keys start with `prefix`, ordered by key, as of one revision.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// Writes `value` at `key` if what `how` expects holds. `how` is a [`Put`], or an [`Expect`]
    /// turned into one.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Arc<[u8]>,
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>>;

    /// Removes `key` if `expect` holds, and for a `tree` in the same step every entry below it, whose
    /// keys start with `key` and a slash; those go, too, where there is nothing at `key` itself.
    /// Answers the removal's revision, or `None` when there was nothing at `key` (for a lone key that
    /// takes no revision).
    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>>;

    /// Removes `key` alone, see [`Store::remove`].
    fn delete<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        self.remove(key, expect, false)
    }

    /// Makes many changes, each as [`Store::put`] and [`Store::delete`] (for `None`) would without
    /// expectations. For importing a configuration.
    ///
    /// One step as a whole where the engine can: embedded does. etcd takes transactions of at most
    /// 128 operations, so that readers may see a part of it; the error says how much was made.
    fn write_all<'a>(&'a self, changes: Vec<Bulk>) -> BoxFuture<'a, Result<(), BulkError>> {
        Box::pin(async move {
            for (made, (key, value)) in changes.into_iter().enumerate() {
                let done = match value {
                    Some(value) => self.put(&key, value, Put::default()).await.map(drop),
                    None => self.delete(&key, Expect::Any).await.map(drop),
                };
                done.map_err(|error| BulkError { made, error })?;
            }
            Ok(())
        })
    }

    /// Takes the next revision without changing anything, as the source of a generated id.
    ///
    /// The number is unique among everything written. One that was taken but never written with
    /// may be handed out again after a restart, so write with [`Expect::Absent`].
    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// The entries under `prefix` and a watch that continues exactly where they end.
    fn snapshot_and_watch<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<(Listing, Watch), StoreError>>;

    /// Every change from `from_revision` (included) on.
    ///
    /// Fails with [`StoreError::Compacted`] when changes from there on are no longer remembered.
    fn watch(&self, from_revision: u64) -> BoxFuture<'_, Result<Watch, StoreError>>;

    /// Whether what the store shows is what its source holds now.
    fn health(&self) -> Health {
        Health::Ready
    }
}

/// One change of [`Store::write_all`]: a key and its new value, `None` to remove it.
pub type Bulk = (Arc<str>, Option<Arc<[u8]>>);

/// [`Store::write_all`] did not make all changes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("after {made} changes: {error}")]
pub struct BulkError {
    /// How many were made for certain, in their order.
    pub made: usize,
    /// What became of the next.
    #[source]
    pub error: StoreError,
}

/// What [`Store::health`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Reads are current, writes are taken as far as the store takes any.
    Ready,
    /// The source cannot be read (or holds something bad): what was read last is shown.
    Stale {
        /// Since when.
        since: SystemTime,
        /// Why, as a sentence for an operator.
        reason: String,
    },
}

/// One stored value with its revisions. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, without the deployment's prefix: `/routes/1`.
    pub key: Arc<str>,
    /// The value's bytes.
    pub value: Arc<[u8]>,
    /// The revision that created the entry.
    pub created: u64,
    /// The revision that last changed it.
    pub modified: u64,
}

impl Entry {
    /// The bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// Values may hold secrets, so only their length is shown.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("created", &self.created)
            .field("modified", &self.modified)
            .finish()
    }
}

/// Entries as they were at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision when the entries were read.
    pub revision: u64,
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
}

/// What a successful [`Store::put`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The entry as stored; its `modified` is the write's revision.
    pub entry: Entry,
    /// Whether the key was absent before.
    pub created: bool,
}

/// How [`Store::put`] writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Put {
    /// What must hold.
    pub expect: Expect,
    /// After how long the entry is removed. `None` keeps it, and takes back what an earlier write
    /// said.
    pub ttl: Option<Duration>,
    /// Whether every entry below the key, whose keys start with it and a slash, is removed in the
    /// same step.
    pub clears: bool,
}

impl From<Expect> for Put {
    fn from(expect: Expect) -> Self {
        Self { expect, ..Self::default() }
    }
}

/// What must hold for a write to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    #[default]
    Any,
    /// The key must be absent.
    Absent,
    /// The entry must exist and have been last changed at this revision.
    Revision(u64),
}

impl Expect {
    fn check(self, key: &str, found: Option<u64>) -> Result<(), StoreError> {
        let holds = match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Revision(revision) => found == Some(revision),
        };
        if holds { Ok(()) } else { Err(StoreError::Conflict { key: key.to_owned(), found }) }
    }
}

/// One change, as a [`Watch`] delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The change's revision.
    pub revision: u64,
    /// The key that changed.
    pub key: Arc<str>,
    /// What happened to it.
    pub change: Change,
}

/// The kind of an [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The entry was created or replaced.
    Put(Entry),
    /// The entry was removed.
    Delete,
}

/// Why a store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An [`Expect`] did not hold.
    #[error("{key} was changed by someone else")]
    Conflict {
        /// The key that was to be written.
        key: String,
        /// The revision the key has now, if it exists.
        found: Option<u64>,
    },
    /// A key is empty, too long, or does not start with a slash.
    #[error("{0:?} cannot be a key: a key starts with \"/\" and has at most {max} bytes", max = KEY_BYTES_MAX)]
    Key(String),
    /// A value is longer than [`VALUE_BYTES_MAX`].
    #[error("the value of {key} has {len} bytes, more than the {max} allowed", max = VALUE_BYTES_MAX)]
    TooLarge {
        /// The key that was to be written.
        key: String,
        /// The value's length.
        len: usize,
    },
    /// A watch fell so far behind that changes it has not seen are forgotten. Start again from
    /// [`Store::snapshot_and_watch`].
    #[error("changes before revision {oldest} are no longer remembered")]
    Compacted {
        /// The oldest revision a watch can start from.
        oldest: u64,
    },
    /// Another process has the store's file open.
    #[error("the store {} is in use by another process", .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be opened, or is no store.
    #[error("cannot open the store {}: {reason}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Writing failed. The write may or may not be found after a restart.
    #[error("cannot write to the store {}: {reason}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The source cannot be reached: nothing was written.
    #[error("the configuration store cannot be reached: {reason}")]
    Unavailable {
        /// What went wrong.
        reason: String,
    },
    /// The source did not say what became of a write: it may or may not have been made.
    #[error("it is not known whether the configuration store took the change: {reason}")]
    OutcomeUnknown {
        /// What went wrong.
        reason: String,
    },
    /// This store takes no writes of this kind.
    #[error("the configuration store takes no writes: {reason}")]
    ReadOnly {
        /// Where changes are made instead.
        reason: String,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest value, in bytes: an Admin API body (1.5 MiB) with what encryption adds to it.
pub const VALUE_BYTES_MAX: usize = 4 << 20;

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX || !key.starts_with('/') {
        return Err(StoreError::Key(key.chars().take(KEY_SHOWN_MAX).collect()));
    }
    Ok(())
}

fn check_value(key: &str, value: &[u8]) -> Result<(), StoreError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(StoreError::TooLarge { key: key.to_owned(), len: value.len() });
    }
    Ok(())
}

/// How much of a refused key an error repeats, in characters.
const KEY_SHOWN_MAX: usize = 80;

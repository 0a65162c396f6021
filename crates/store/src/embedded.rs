//! The default store: one redb file, nothing else to install.
//!
//! All entries are held in memory (reads and watches never wait for a disk); the file is what
//! survives. One writer thread owns the file. It takes every write that is waiting, makes them one
//! transaction, and so one fsync, then makes them visible, then answers them: a lone write costs
//! one fsync, and many clients at once share it.
//!
//! Killing the process at any moment leaves the file as some answered commit left it, or a later
//! one: redb switches between whole trees, and the file itself comes into being whole (it is
//! prepared under another name and linked into place). `tests/kill.rs` kills it a lot.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::{
    BoxFuture, Change, Entry, Event, Expect, Listing, Store, StoreError, Watch, Written, check_key,
    check_value, shared::Shared,
};

/// A store in one file. See the module's documentation.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    issued: Arc<AtomicU64>,
    /// `None` only while the store is being dropped.
    writes: Option<mpsc::Sender<Write>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store at `path`, creating it (mode 0600) when it is missing.
    ///
    /// Blocks while the file is read; call it before there is traffic, or on a blocking thread.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(path.into(), open_database)
    }

    fn open_with(path: PathBuf, open: impl Opener) -> Result<Self, StoreError> {
        if !path.exists() {
            create(&path).map_err(|reason| open_error(&path, &reason))?;
        }
        // The file holds secrets, encrypted with a key that lies beside it.
        fs::set_permissions(&path, fs::Permissions::from_mode(FILE_MODE))
            .map_err(|error| open_error(&path, &error))?;
        let database = open(&path)?;
        let (entries, revision) = load(&database).map_err(|reason| open_error(&path, &reason))?;
        remove_leftovers(&path);

        let shared = Shared::new(entries, revision);
        let issued = Arc::new(AtomicU64::new(revision));
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            path: path.clone(),
            open: Box::new(open),
            database: Some(database),
            shared: Arc::clone(&shared),
            issued: Arc::clone(&issued),
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|error| open_error(&path, &error))?;
        Ok(Self { shared, issued, writes: Some(writes), writer: Some(writer) })
    }

    async fn write<T>(
        &self,
        key: &str,
        change: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Operation,
        expect: Expect,
    ) -> Result<T, StoreError> {
        check_key(key)?;
        let (answer, answered) = oneshot::channel();
        let write = Write { key: key.into(), expect, operation: change(answer) };
        let writes = self.writes.as_ref().ok_or(StoreError::Closed)?;
        writes.send(write).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Store for EmbeddedStore {
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
        Box::pin(async move {
            check_value(key, &value)?;
            self.write(key, |answer| Operation::Put { value, answer }, expect).await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        Box::pin(self.write(key, |answer| Operation::Delete { answer }, expect))
    }

    fn next_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move { Ok(next_revision(&self.issued)) })
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

/// Finishes what is queued and releases the file.
impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            error!("The store's writer had stopped with a panic.");
        }
    }
}

/// One queued write.
struct Write {
    key: Arc<str>,
    expect: Expect,
    operation: Operation,
}

enum Operation {
    Put { value: Arc<[u8]>, answer: oneshot::Sender<Result<Written, StoreError>> },
    Delete { answer: oneshot::Sender<Result<Option<u64>, StoreError>> },
}

/// The writer thread's own state.
struct Writer {
    path: PathBuf,
    open: Box<dyn Opener>,
    /// `None` after a failed write, until the file has been opened again.
    database: Option<Database>,
    shared: Arc<Shared>,
    issued: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Write>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while batch.len() < BATCH_WRITES_MAX && bytes < BATCH_BYTES_MAX {
                let Ok(write) = queue.try_recv() else { break };
                bytes += write.bytes();
                batch.push(write);
            }
            self.write(batch);
        }
    }

    /// Checks, commits, publishes and answers one batch.
    fn write(&mut self, batch: Vec<Write>) {
        let ready = self.reopen_if_closed();
        let mut plan = Plan::default();
        for write in batch {
            plan.add(write, &self.shared, &self.issued);
        }
        let committed = match ready {
            Ok(()) if plan.events.is_empty() => Ok(()),
            Ok(()) => self.commit(&plan.events),
            Err(reason) => Err(reason),
        };
        match committed {
            Ok(()) => {
                self.shared.apply(plan.events);
                plan.answers.into_iter().for_each(|answer| answer(Ok(())));
            }
            Err(reason) => {
                error!(path = %self.path.display(), %reason, "Writing to the store failed.");
                let failed = StoreError::Write { path: self.path.clone(), reason };
                plan.answers.into_iter().for_each(|answer| answer(Err(failed.clone())));
            }
        }
    }

    fn commit(&mut self, events: &[Event]) -> Result<(), String> {
        let Some(database) = &self.database else { return Err("it is not open".to_owned()) };
        let result = store_events(database, events).map_err(|error| error.to_string());
        if result.is_err() {
            // redb refuses every further write after an I/O error. Closing the file makes the
            // next write open it again and find what was really written.
            self.database = None;
        }
        result
    }

    /// Opens the file again after a failed write. The failed batch may be in it after all, so what
    /// differs from memory becomes visible now, under new revisions.
    fn reopen_if_closed(&mut self) -> Result<(), String> {
        if self.database.is_some() {
            return Ok(());
        }
        let database = (self.open)(&self.path).map_err(|error| error.to_string())?;
        let (found, _) = load(&database)?;
        let known = self.shared.list("").entries;
        let mut events = Vec::new();
        for old in known.iter().filter(|old| !found.contains_key(&old.key)) {
            let revision = next_revision(&self.issued);
            events.push(Event { revision, key: Arc::clone(&old.key), change: Change::Delete });
        }
        for entry in found.into_values().filter(|entry| !known.contains(entry)) {
            let (key, revision) = (Arc::clone(&entry.key), next_revision(&self.issued));
            let entry = Entry { modified: revision, ..entry };
            events.push(Event { revision, key, change: Change::Put(entry) });
        }
        if !events.is_empty() {
            warn!(changes = events.len(), "The store's file was ahead of what was answered.");
            store_events(&database, &events).map_err(|error| error.to_string())?;
            self.shared.apply(events);
        }
        self.database = Some(database);
        Ok(())
    }
}

/// How the file is opened; tests put a failing disk here.
trait Opener: Fn(&Path) -> Result<Database, StoreError> + Send + 'static {}

impl<F: Fn(&Path) -> Result<Database, StoreError> + Send + 'static> Opener for F {}

impl Write {
    fn bytes(&self) -> usize {
        match &self.operation {
            Operation::Put { value, .. } => value.len(),
            Operation::Delete { .. } => 0,
        }
    }
}

/// What a batch will do, and whom to tell.
#[derive(Default)]
struct Plan {
    events: Vec<Event>,
    answers: Vec<Answer>,
    /// Keys this batch changes, as they will be.
    pending: HashMap<Arc<str>, Option<Entry>>,
}

/// Called once, with what became of the commit.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

impl Plan {
    fn add(&mut self, write: Write, shared: &Shared, issued: &AtomicU64) {
        let Write { key, expect, operation } = write;
        let old = match self.pending.get(&key) {
            Some(pending) => pending.clone(),
            None => shared.get(&key),
        };
        let expected = expect.check(&key, old.as_ref().map(|old| old.modified));
        // An answer nobody waits for any more is no failure: the write stands.
        match operation {
            Operation::Put { value, answer } => {
                if let Err(refused) = expected {
                    return drop(answer.send(Err(refused)));
                }
                let revision = next_revision(issued);
                let created = old.as_ref().map_or(revision, |old| old.created);
                let entry = Entry { key: Arc::clone(&key), value, created, modified: revision };
                let written = Written { entry: entry.clone(), created: old.is_none() };
                self.change(revision, key, Some(entry));
                self.answers.push(Box::new(|done| drop(answer.send(done.map(|()| written)))));
            }
            Operation::Delete { answer } => {
                if let Err(refused) = expected {
                    return drop(answer.send(Err(refused)));
                }
                let revision = old.is_some().then(|| next_revision(issued));
                if let Some(revision) = revision {
                    self.change(revision, key, None);
                }
                // An absent key is answered after the commit too: what made it absent may be
                // in this very batch.
                self.answers.push(Box::new(move |done| drop(answer.send(done.map(|()| revision)))));
            }
        }
    }

    fn change(&mut self, revision: u64, key: Arc<str>, entry: Option<Entry>) {
        let change = entry.clone().map_or(Change::Delete, Change::Put);
        self.events.push(Event { revision, key: Arc::clone(&key), change });
        self.pending.insert(key, entry);
    }
}

fn next_revision(issued: &AtomicU64) -> u64 {
    issued.fetch_add(1, Ordering::Relaxed) + 1
}

fn store_events(database: &Database, events: &[Event]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for event in events {
            let key = &*event.key;
            match &event.change {
                Change::Put(entry) => {
                    let row = (entry.created, entry.modified, NEVER_EXPIRES, &*entry.value);
                    entries.insert(key, row)?;
                }
                Change::Delete => {
                    entries.remove(key)?;
                }
            }
        }
        if let Some(last) = events.last() {
            transaction.open_table(META)?.insert(REVISION, last.revision)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    Database::builder().set_cache_size(CACHE_BYTES).open(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked { path: path.to_owned() },
        other => open_error(path, &other),
    })
}

/// Everything in the file, and its revision.
fn load(database: &Database) -> Result<(BTreeMap<Arc<str>, Entry>, u64), String> {
    let read = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let format = meta.get(FORMAT)?.map_or(0, |value| value.value());
        let revision = meta.get(REVISION)?.map_or(0, |value| value.value());
        let mut entries = BTreeMap::new();
        if format == FORMAT_VERSION {
            for row in transaction.open_table(ENTRIES)?.iter()? {
                let (key, row) = row?;
                let (key, (created, modified, _expires, value)) =
                    (Arc::<str>::from(key.value()), row.value());
                let entry = Entry { key: Arc::clone(&key), value: value.into(), created, modified };
                entries.insert(key, entry);
            }
        }
        Ok((format, entries, revision))
    };
    let (format, entries, revision) = read().map_err(|error| error.to_string())?;
    if format != FORMAT_VERSION {
        return Err(format!("its format is {format}, this version reads {FORMAT_VERSION}"));
    }
    Ok((entries, revision))
}

/// Prepares an empty store beside `path`, then gives it that name, so that a file called `path`
/// is always a whole store.
fn create(path: &Path) -> Result<(), String> {
    let prepared = leftover_name(path, std::process::id());
    let prepare = || -> Result<(), redb::Error> {
        match fs::remove_file(&prepared) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&prepared)?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&prepared)?;
        let transaction = database.begin_write()?;
        transaction.open_table(ENTRIES)?;
        transaction.open_table(META)?.insert(FORMAT, FORMAT_VERSION)?;
        transaction.commit()?;
        Ok(())
    };
    prepare().map_err(|error| error.to_string())?;
    // Linking fails when the name is taken; renaming would replace a store that another process
    // made in the meantime and is using.
    let linked = fs::hard_link(&prepared, path);
    // Whoever won may already have tidied our file away.
    if !path.exists() {
        linked.map_err(|error| error.to_string())?;
    }
    let _ = fs::remove_file(&prepared);
    fs::File::open(folder_of(path))
        .and_then(|folder| folder.sync_all())
        .map_err(|error| error.to_string())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn leftover_name(path: &Path, id: u32) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{LEFTOVER_INFIX}{id}"));
    path.with_file_name(name)
}

/// Removes what processes killed inside [`create`] left behind. Called with the store locked: who
/// is still preparing a file then has no use for it.
fn remove_leftovers(path: &Path) {
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(LEFTOVER_INFIX);
    for file in fs::read_dir(folder_of(path)).into_iter().flatten().flatten() {
        if file.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            // Only tidiness: a file that stays does no harm.
            let _ = fs::remove_file(file.path());
        }
    }
}

fn open_error(path: &Path, reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Open { path: path.to_owned(), reason: reason.to_string() }
}

/// key → (created, modified, expires or [`NEVER_EXPIRES`], value)
const ENTRIES: TableDefinition<'_, &str, (u64, u64, u64, &[u8])> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// In [`META`]: the last revision that changed something.
const REVISION: &str = "revision";
/// In [`META`]: which layout the file has.
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
/// Nothing expires yet; the column is there so that `?ttl=` needs no new format.
const NEVER_EXPIRES: u64 = 0;

const FILE_MODE: u32 = 0o600;
const LEFTOVER_INFIX: &str = ".new-";
/// redb's cache. Reads come from our own memory, so it only serves writes.
const CACHE_BYTES: usize = 16 << 20;
/// Writes that may wait for the writer; more wait before they are queued.
const QUEUE_MAX: usize = 1024;
/// Writes that share one transaction at most.
const BATCH_WRITES_MAX: usize = 512;
/// A transaction takes no further write once it has this many bytes.
const BATCH_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use redb::{StorageBackend, backends::FileBackend};

    use super::*;

    /// A disk that counts what it is asked to make durable, and can be told to fail.
    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        gauge: Arc<Gauge>,
    }

    #[derive(Debug, Default)]
    struct Gauge {
        syncs: AtomicUsize,
        full: AtomicBool,
    }

    fn open_on_disk(path: &Path) -> (EmbeddedStore, Arc<Gauge>) {
        let gauge = Arc::new(Gauge::default());
        let shown = Arc::clone(&gauge);
        let open = move |path: &Path| {
            let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let disk = Disk { file: FileBackend::new(file).unwrap(), gauge: Arc::clone(&gauge) };
            Database::builder().create_with_backend(disk).map_err(|error| open_error(path, &error))
        };
        (EmbeddedStore::open_with(path.to_owned(), open).unwrap(), shown)
    }

    #[tokio::test]
    async fn a_write_alone_takes_one_sync_and_writes_that_wait_together_share_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let (store, gauge) = open_on_disk(&folder.path().join("store.redb"));
        let store = Arc::new(store);
        let syncs = || gauge.syncs.swap(0, Ordering::Relaxed);
        store.put("/routes/first", Arc::from(*b"1"), Expect::Any).await.unwrap();
        syncs();
        for _ in 0..10 {
            store.put("/routes/alone", Arc::from(*b"1"), Expect::Any).await.unwrap();
        }
        assert_eq!(syncs(), 10);

        let clients = (0..200).map(|client| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let key = format!("/routes/{client}");
                store.put(&key, Arc::from(*b"1"), Expect::Absent).await.unwrap();
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let syncs = syncs();
        assert!(syncs < 100, "200 writes took {syncs} syncs");
        assert_eq!(store.list("/routes/").await.unwrap().entries.len(), 202);
    }

    #[tokio::test]
    async fn a_failed_write_is_an_error_and_the_store_works_again_when_the_disk_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let (store, gauge) = open_on_disk(&path);
        let put = |key: &'static str| store.put(key, Arc::from(*b"1"), Expect::Any);

        let before = put("/routes/before").await.unwrap().entry.modified;
        gauge.full.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let error = put("/routes/during").await.unwrap_err();
            assert!(matches!(error, StoreError::Write { .. }), "{error}");
        }
        assert!(store.get("/routes/before").await.unwrap().is_some());
        assert_eq!(store.get("/routes/during").await.unwrap(), None);
        gauge.full.store(false, Ordering::Relaxed);
        assert!(put("/routes/after").await.unwrap().entry.modified > before);

        let listed = store.list("/").await.unwrap();
        drop(store);
        assert_eq!(EmbeddedStore::open(path).unwrap().list("/").await.unwrap(), listed);
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.fail_if_full()?;
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.fail_if_full()?;
            self.gauge.syncs.fetch_add(1, Ordering::Relaxed);
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.fail_if_full()?;
            self.file.write(offset, data)
        }
    }

    impl Disk {
        fn fail_if_full(&self) -> io::Result<()> {
            if self.gauge.full.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }
}

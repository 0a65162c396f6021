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
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{error, info, warn};

use crate::{
    BoxFuture, Bulk, BulkError, Change, Entry, Event, Expect, Listing, Put, Store, StoreError,
    Watch, Written, check_key, check_value,
    expiry::{self, Deadlines},
    shared::Shared,
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
        let mut database = open(&path)?;
        let mut found = load(&database).map_err(|reason| open_error(&path, &reason))?;
        remove_leftovers(&path);
        // What expired while nobody was looking is gone before anybody looks.
        let expired = found.expire(expiry::now());
        if !expired.is_empty() {
            store_changes(&database, &expired).map_err(|error| open_error(&path, &error))?;
        }
        compact_if_worth_it(&path, &mut database, found.bytes());
        let Loaded { entries, deadlines, revision } = found;

        let shared = Shared::new(entries, revision);
        let issued = Arc::new(AtomicU64::new(revision));
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            path: path.clone(),
            open: Box::new(open),
            database: Some(database),
            shared: Arc::clone(&shared),
            issued: Arc::clone(&issued),
            deadlines,
        };
        let clock = Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| open_error(&path, &error))?;
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue, clock))
            .map_err(|error| open_error(&path, &error))?;
        Ok(Self { shared, issued, writes: Some(writes), writer: Some(writer) })
    }

    async fn write<T>(
        &self,
        key: &str,
        change: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Operation,
        how: Put,
    ) -> Result<T, StoreError> {
        check_key(key)?;
        let (answer, answered) = oneshot::channel();
        let write = Write { key: key.into(), how, operation: change(answer) };
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
        how: Put,
    ) -> BoxFuture<'a, Result<Written, StoreError>> {
        Box::pin(async move {
            check_value(key, &value)?;
            self.write(key, |answer| Operation::Put { value, answer }, how).await
        })
    }

    fn remove<'a>(
        &'a self,
        key: &'a str,
        expect: Expect,
        tree: bool,
    ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        let change = move |answer| Operation::Delete { tree, answer };
        Box::pin(self.write(key, change, expect.into()))
    }

    fn write_all<'a>(&'a self, changes: Vec<Bulk>) -> BoxFuture<'a, Result<(), BulkError>> {
        Box::pin(async move {
            let nothing = |error| BulkError { made: 0, error };
            for (key, value) in &changes {
                check_key(key).map_err(nothing)?;
                check_value(key, value.as_deref().unwrap_or_default()).map_err(nothing)?;
            }
            let writes = self.writes.as_ref().ok_or(nothing(StoreError::Closed))?;
            let (answer, answered) = oneshot::channel();
            let operation = Operation::All { changes, answer };
            let write = Write { key: "".into(), how: Put::default(), operation };
            writes.send(write).await.map_err(|_| nothing(StoreError::Closed))?;
            answered.await.unwrap_or(Err(StoreError::Closed)).map_err(nothing)
        })
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
    how: Put,
    operation: Operation,
}

enum Operation {
    Put {
        value: Arc<[u8]>,
        answer: oneshot::Sender<Result<Written, StoreError>>,
    },
    Delete {
        /// With everything below the key.
        tree: bool,
        answer: oneshot::Sender<Result<Option<u64>, StoreError>>,
    },
    /// Many at once, without expectations. The key says nothing.
    All {
        changes: Vec<Bulk>,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Expire,
}

/// The writer thread's own state.
struct Writer {
    path: PathBuf,
    open: Box<dyn Opener>,
    /// `None` after a failed write, until the file has been opened again.
    database: Option<Database>,
    shared: Arc<Shared>,
    issued: Arc<AtomicU64>,
    deadlines: Deadlines,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Write>, clock: Runtime) {
        // The last write since the file's size was looked at.
        let mut written: Option<Instant> = None;
        // How many writes shared the last commit.
        let mut together = 1;
        loop {
            let idle = written.map(|at| IDLE.saturating_sub(at.elapsed()));
            let wait = self.deadlines.wait(expiry::now()).into_iter().chain(idle).min();
            let received = clock.block_on(async {
                match wait {
                    // Expired entries of a store that cannot write must not keep a core busy.
                    Some(wait) => timeout(wait.max(WAIT_MIN), queue.recv()).await,
                    None => Ok(queue.recv().await),
                }
            });
            let first = match received {
                Ok(Some(first)) => first,
                Ok(None) => return,
                Err(_) => {
                    let due = self.due();
                    if !due.is_empty() {
                        self.write(due);
                        written = Some(Instant::now());
                    } else if written.is_some_and(|at| at.elapsed() >= IDLE) {
                        self.compact();
                        written = None;
                    }
                    continue;
                }
            };
            written = Some(Instant::now());
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            // Those whose writes were just answered are likely to come again: waiting a moment for
            // as many as before makes one commit of what would be two.
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH_WRITES_MAX && bytes < BATCH_BYTES_MAX {
                let write = match queue.try_recv() {
                    Ok(write) => write,
                    Err(_) if batch.len() < together => {
                        let wait = until.saturating_duration_since(Instant::now());
                        match clock.block_on(async { timeout(wait, queue.recv()).await }) {
                            Ok(Some(write)) => write,
                            _ => break,
                        }
                    }
                    Err(_) => break,
                };
                bytes += write.bytes();
                batch.push(write);
            }
            together = batch.len();
            // However busy the store is, what has expired goes with its next commit. It goes first:
            // a write of this batch to the same key came when its time was over.
            let mut all = self.due();
            all.append(&mut batch);
            self.write(all);
        }
    }

    /// The removals of entries whose time is over.
    fn due(&self) -> Vec<Write> {
        let due = self.deadlines.due(expiry::now(), BATCH_WRITES_MAX);
        due.into_iter().map(Write::expiry).collect()
    }

    /// Checks, commits, publishes and answers one batch.
    fn write(&mut self, batch: Vec<Write>) {
        let ready = self.reopen_if_closed();
        let mut plan = Plan::default();
        for write in batch {
            plan.add(write, &self.shared, &self.issued);
        }
        let committed = match ready {
            Ok(()) if plan.changes.is_empty() => Ok(()),
            Ok(()) => self.commit(&plan.changes),
            Err(reason) => Err(reason),
        };
        match committed {
            Ok(()) => {
                for change in &plan.changes {
                    self.deadlines.set(&change.event.key, change.deadline);
                }
                self.shared.apply(plan.changes.into_iter().map(|change| change.event));
                plan.answers.into_iter().for_each(|answer| answer(Ok(())));
            }
            Err(reason) => {
                error!(path = %self.path.display(), %reason, "Writing to the store failed.");
                let failed = StoreError::Write { path: self.path.clone(), reason };
                plan.answers.into_iter().for_each(|answer| answer(Err(failed.clone())));
            }
        }
    }

    fn commit(&mut self, changes: &[Stored]) -> Result<(), String> {
        let Some(database) = &self.database else { return Err("it is not open".to_owned()) };
        let result = store_changes(database, changes).map_err(|error| error.to_string());
        if result.is_err() {
            // redb refuses every further write after an I/O error. Closing the file makes the
            // next write open it again and find what was really written.
            self.database = None;
        }
        result
    }

    /// Gives back room in the file that nothing uses any more.
    fn compact(&mut self) {
        let Some(database) = &mut self.database else { return };
        let entries = self.shared.list("").entries;
        compact_if_worth_it(&self.path, database, entries.iter().map(Entry::bytes).sum());
    }

    /// Opens the file again after a failed write. The failed batch may be in it after all, so what
    /// differs from memory becomes visible now, under new revisions.
    fn reopen_if_closed(&mut self) -> Result<(), String> {
        if self.database.is_some() {
            return Ok(());
        }
        let database = (self.open)(&self.path).map_err(|error| error.to_string())?;
        let Loaded { entries: found, deadlines, .. } = load(&database)?;
        let known = self.shared.list("").entries;
        let mut changes = Vec::new();
        for old in known.iter().filter(|old| !found.contains_key(&old.key)) {
            let revision = next_revision(&self.issued);
            changes.push(Stored::delete(revision, Arc::clone(&old.key)));
        }
        let known: HashMap<_, _> =
            known.into_iter().map(|old| (Arc::clone(&old.key), old)).collect();
        for entry in found.into_values().filter(|entry| known.get(&entry.key) != Some(entry)) {
            let deadline = deadlines.of(&entry.key);
            let entry = Entry { modified: next_revision(&self.issued), ..entry };
            changes.push(Stored::put(entry, deadline));
        }
        if !changes.is_empty() {
            warn!(changes = changes.len(), "The store's file was ahead of what was answered.");
            store_changes(&database, &changes).map_err(|error| error.to_string())?;
            self.shared.apply(changes.into_iter().map(|change| change.event));
        }
        self.deadlines = deadlines;
        self.database = Some(database);
        Ok(())
    }
}

/// How the file is opened; tests put a failing disk here.
trait Opener: Fn(&Path) -> Result<Database, StoreError> + Send + 'static {}

impl<F: Fn(&Path) -> Result<Database, StoreError> + Send + 'static> Opener for F {}

impl Write {
    /// The removal of an entry whose time is over.
    fn expiry(key: Arc<str>) -> Self {
        Self { key, how: Put::default(), operation: Operation::Expire }
    }

    fn bytes(&self) -> usize {
        match &self.operation {
            Operation::Put { value, .. } => value.len(),
            Operation::All { changes, .. } => {
                changes.iter().flat_map(|(_, value)| value).map(|value| value.len()).sum()
            }
            Operation::Delete { .. } | Operation::Expire => 0,
        }
    }
}

/// A change with what only the file and the deadlines need to know.
struct Stored {
    event: Event,
    deadline: Option<u64>,
}

impl Stored {
    fn put(entry: Entry, deadline: Option<u64>) -> Self {
        let (revision, key) = (entry.modified, Arc::clone(&entry.key));
        Self { event: Event { revision, key, change: Change::Put(entry) }, deadline }
    }

    fn delete(revision: u64, key: Arc<str>) -> Self {
        Self { event: Event { revision, key, change: Change::Delete }, deadline: None }
    }
}

/// What a batch will do, and whom to tell.
#[derive(Default)]
struct Plan {
    changes: Vec<Stored>,
    answers: Vec<Answer>,
    /// Keys this batch changes, as they will be.
    pending: HashMap<Arc<str>, Option<Entry>>,
}

/// Called once, with what became of the commit.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

impl Plan {
    fn add(&mut self, write: Write, shared: &Shared, issued: &AtomicU64) {
        let Write { key, how, operation } = write;
        let old = match self.pending.get(&key) {
            Some(pending) => pending.clone(),
            None => shared.get(&key),
        };
        let expected = how.expect.check(&key, old.as_ref().map(|old| old.modified));
        // An answer nobody waits for any more is no failure: the write stands.
        match operation {
            Operation::Put { value, answer } => {
                if let Err(refused) = expected {
                    return drop(answer.send(Err(refused)));
                }
                if how.clears {
                    self.clear_below(&key, shared, issued);
                }
                let revision = next_revision(issued);
                let created = old.as_ref().map_or(revision, |old| old.created);
                let entry = Entry { key: Arc::clone(&key), value, created, modified: revision };
                let written = Written { entry: entry.clone(), created: old.is_none() };
                let deadline = how.ttl.map(|ttl| expiry::deadline(expiry::now(), ttl));
                self.pending.insert(key, Some(entry.clone()));
                self.changes.push(Stored::put(entry, deadline));
                self.answers.push(Box::new(|done| drop(answer.send(done.map(|()| written)))));
            }
            Operation::Delete { tree, answer } => {
                if let Err(refused) = expected {
                    return drop(answer.send(Err(refused)));
                }
                if tree {
                    self.clear_below(&key, shared, issued);
                }
                let revision = old.is_some().then(|| next_revision(issued));
                if let Some(revision) = revision {
                    self.delete(revision, key);
                }
                // An absent key is answered after the commit too: what made it absent may be
                // in this very batch.
                self.answers.push(Box::new(move |done| drop(answer.send(done.map(|()| revision)))));
            }
            Operation::All { changes, answer } => {
                for (key, value) in changes {
                    self.set(key, value, shared, issued);
                }
                self.answers.push(Box::new(move |done| drop(answer.send(done))));
            }
            // Only the writer itself sends these, before all others of a batch: nothing came in
            // between.
            Operation::Expire => {
                if old.is_some() {
                    self.delete(next_revision(issued), key);
                }
            }
        }
    }

    fn set(
        &mut self,
        key: Arc<str>,
        value: Option<Arc<[u8]>>,
        shared: &Shared,
        issued: &AtomicU64,
    ) {
        let old = match self.pending.get(&key) {
            Some(pending) => pending.clone(),
            None => shared.get(&key),
        };
        match value {
            Some(value) => {
                let modified = next_revision(issued);
                let created = old.map_or(modified, |old| old.created);
                let entry = Entry { key: Arc::clone(&key), value, created, modified };
                self.pending.insert(key, Some(entry.clone()));
                self.changes.push(Stored::put(entry, None));
            }
            None if old.is_some() => self.delete(next_revision(issued), key),
            None => {}
        }
    }

    fn clear_below(&mut self, key: &str, shared: &Shared, issued: &AtomicU64) {
        let folder = format!("{key}/");
        let stored = shared.list(&folder).entries.into_iter().map(|entry| entry.key);
        let mut below: BTreeSet<Arc<str>> = stored.collect();
        for (key, now) in self.pending.iter().filter(|(key, _)| key.starts_with(&folder)) {
            match now {
                Some(_) => below.insert(Arc::clone(key)),
                None => below.remove(key),
            };
        }
        for key in below {
            self.delete(next_revision(issued), key);
        }
    }

    fn delete(&mut self, revision: u64, key: Arc<str>) {
        self.pending.insert(Arc::clone(&key), None);
        self.changes.push(Stored::delete(revision, key));
    }
}

fn next_revision(issued: &AtomicU64) -> u64 {
    issued.fetch_add(1, Ordering::Relaxed) + 1
}

fn store_changes(database: &Database, changes: &[Stored]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for Stored { event, deadline } in changes {
            let key = &*event.key;
            match &event.change {
                Change::Put(entry) => {
                    let row = (
                        entry.created,
                        entry.modified,
                        deadline.unwrap_or(NEVER_EXPIRES),
                        &*entry.value,
                    );
                    entries.insert(key, row)?;
                }
                Change::Delete => {
                    entries.remove(key)?;
                }
            }
        }
        if let Some(last) = changes.last() {
            transaction.open_table(META)?.insert(REVISION, last.event.revision)?;
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

/// Everything in the file.
struct Loaded {
    entries: BTreeMap<Arc<str>, Entry>,
    deadlines: Deadlines,
    revision: u64,
}

impl Loaded {
    /// Takes out what has expired; the answer is to be stored.
    fn expire(&mut self, now: u64) -> Vec<Stored> {
        let mut expired = Vec::new();
        for key in self.deadlines.due(now, usize::MAX) {
            self.entries.remove(&key);
            self.deadlines.set(&key, None);
            self.revision += 1;
            expired.push(Stored::delete(self.revision, key));
        }
        expired
    }

    fn bytes(&self) -> usize {
        self.entries.values().map(Entry::bytes).sum()
    }
}

fn load(database: &Database) -> Result<Loaded, String> {
    let read = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let format = meta.get(FORMAT)?.map_or(0, |value| value.value());
        let revision = meta.get(REVISION)?.map_or(0, |value| value.value());
        let (mut entries, mut deadlines) = (BTreeMap::new(), Deadlines::default());
        if format == FORMAT_VERSION {
            for row in transaction.open_table(ENTRIES)?.iter()? {
                let (key, row) = row?;
                let (key, (created, modified, expires, value)) =
                    (Arc::<str>::from(key.value()), row.value());
                deadlines.set(&key, (expires != NEVER_EXPIRES).then_some(expires));
                let entry = Entry { key: Arc::clone(&key), value: value.into(), created, modified };
                entries.insert(key, entry);
            }
        }
        Ok((format, Loaded { entries, deadlines, revision }))
    };
    let (format, loaded) = read().map_err(|error| error.to_string())?;
    if format != FORMAT_VERSION {
        return Err(format!("its format is {format}, this version reads {FORMAT_VERSION}"));
    }
    Ok(loaded)
}

/// Compacts the file when most of it is room that `live` bytes of entries do not need. That the
/// file stays big is no reason to fail: it is said, and tried again another time.
fn compact_if_worth_it(path: &Path, database: &mut Database, live: usize) {
    let len = |path| fs::metadata(path).map_or(0, |file| file.len());
    let before = len(path);
    if before < COMPACT_BYTES_MIN || before < COMPACT_FACTOR * live as u64 {
        return;
    }
    match database.compact() {
        Ok(_) => info!(before, after = len(path), "The store's file was compacted."),
        Err(error) => warn!(%error, "The store's file could not be compacted."),
    }
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
/// In place of a deadline, in milliseconds of Unix time.
const NEVER_EXPIRES: u64 = 0;

const FILE_MODE: u32 = 0o600;
const LEFTOVER_INFIX: &str = ".new-";
/// redb's cache. Reads come from our own memory, so it only serves writes.
const CACHE_BYTES: usize = 16 << 20;
/// Writes that may wait for the writer; more wait before they are queued.
const QUEUE_MAX: usize = 1024;
/// Writes that share one transaction at most.
const BATCH_WRITES_MAX: usize = 512;
/// How long a commit waits at most for as many writes as the one before it had.
const GATHER: Duration = Duration::from_millis(1);
/// A quiet time after which a look at the file's size does not get in anybody's way.
const IDLE: Duration = Duration::from_secs(10);
/// How long the writer waits at least before it removes expired entries: many share a commit.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// A file smaller than this is never compacted.
const COMPACT_BYTES_MIN: u64 = 8 << 20;
/// A file is compacted when it is this many times larger than its entries.
const COMPACT_FACTOR: u64 = 4;
/// A transaction takes no further write once it has this many bytes.
const BATCH_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests;

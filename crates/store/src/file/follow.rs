//! A thread that keeps a store as its file says.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};
use sluicegate_model::resource::Key;
use tracing::{error, info, warn};

use super::{
    DeclaredPlugin, DeclaredStore, FileError, Format, Variables,
    source::{FILE_BYTES_MAX, items, parse, plugins},
};
use crate::{Health, StoreError, VALUE_BYTES_MAX};

/// Who knows what resources may say.
pub trait Judge: Send + 'static {
    /// The file's own list of plugins takes the place of the one in `config.yaml`; `None`: it has
    /// none. Resources of the same file are checked afterwards.
    fn plugins(&mut self, list: Option<&[DeclaredPlugin]>);

    /// Checks a resource; an error is the text of the log. What it refers to may be missing: a
    /// file has no order.
    fn check(&self, key: &Key, value: &Value) -> Result<(), String>;
}

/// The thread's handle. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    rereads: Sender<SyncSender<()>>,
}

impl Follower {
    /// Reads the file once, then starts following it.
    pub(crate) fn start(
        store: &Arc<DeclaredStore>,
        path: PathBuf,
        format: Format,
        variables: Variables,
        judge: Box<dyn Judge>,
    ) -> Result<Self, StoreError> {
        let (rereads, asked) = channel();
        let mut file = Followed {
            store: Arc::downgrade(store),
            format,
            variables,
            judge,
            seen: None,
            loaded: None,
            failed: None,
            path: path.clone(),
        };
        file.look();
        std::thread::Builder::new()
            .name("config-file".to_owned())
            .spawn(move || file.run(&asked))
            .map_err(|error| StoreError::Open { path, reason: error.to_string() })?;
        Ok(Self { rereads })
    }

    pub(crate) fn reread(&self) {
        let (done, wait) = sync_channel(1);
        if self.rereads.send(done).is_ok() {
            let _ = wait.recv();
        }
    }
}

struct Followed {
    store: Weak<DeclaredStore>,
    path: PathBuf,
    format: Format,
    variables: Variables,
    judge: Box<dyn Judge>,
    /// The file when it was last looked at.
    seen: Option<Identity>,
    /// The content that is in force.
    loaded: Option<u64>,
    /// What was last complained about.
    failed: Option<(Option<u64>, FileError)>,
}

impl Followed {
    fn run(mut self, asked: &Receiver<SyncSender<()>>) {
        loop {
            match asked.recv_timeout(LOOK_EVERY) {
                Ok(done) => {
                    (self.seen, self.loaded, self.failed) = (None, None, None);
                    self.look();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes the file if it has changed.
    fn look(&mut self) {
        let identity = match Identity::of(&self.path) {
            Ok(identity) => identity,
            Err(error) => {
                self.seen = None;
                return self.refuse(None, FileError::Read(error.to_string()));
            }
        };
        if self.seen.as_ref() == Some(&identity) {
            return;
        }
        // A file changed a moment ago may change once more without looking any different.
        self.seen = identity.is_settled().then_some(identity);
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => return self.refuse(None, error),
        };
        let content = hash(&bytes);
        if self.loaded == Some(content) {
            return self.recover();
        }
        if self.failed.as_ref().is_some_and(|(failed, _)| *failed == Some(content)) {
            return;
        }
        match parse(&bytes, self.format, &self.variables) {
            Ok(root) => {
                drop(bytes);
                self.take(root);
                self.loaded = Some(content);
                self.recover();
            }
            Err(error) => self.refuse(Some(content), error),
        }
    }

    /// Says once what is wrong; what was loaded before stays in force.
    fn refuse(&mut self, content: Option<u64>, error: FileError) {
        if self.failed.as_ref() == Some(&(content, error.clone())) {
            return;
        }
        let Some(store) = self.store.upgrade() else { return };
        let path = self.path.display();
        error!(
            "failed to parse the content of file {path}: {error}; {}",
            match self.loaded {
                Some(_) => "what was loaded before stays in force",
                None => "there are no resources until it is good",
            }
        );
        let since = match store.health.read().as_deref() {
            Ok(Health::Stale { since, .. }) => *since,
            _ => now(),
        };
        store.set_health(Health::Stale { since, reason: format!("{path}: {error}") });
        self.failed = Some((content, error));
    }

    fn recover(&mut self) {
        if self.failed.take().is_some()
            && let Some(store) = self.store.upgrade()
        {
            store.set_health(Health::Ready);
        }
    }

    /// Makes the store say what the file says, as far as its resources are good.
    fn take(&mut self, mut root: Map<String, Value>) {
        let Some(store) = self.store.upgrade() else { return };
        match plugins(&mut root) {
            Ok(list) => self.judge.plugins(list.as_deref()),
            Err(why) => error!("failed to check item data of [plugins] err:{why}"),
        }
        let (items, refused) = items(&mut root);
        for refused in refused {
            error!("invalid item data of [{}]: {}", refused.place, refused.reason);
        }
        for unknown in root.keys() {
            warn!(key = unknown, path = %self.path.display(), "Nothing is known by this name; it is left out.");
        }
        let known: HashMap<_, _> = store
            .shared
            .list("")
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect();
        let mut wanted: BTreeMap<Arc<str>, Arc<[u8]>> = BTreeMap::new();
        let mut bad = 0_usize;
        for item in items {
            let (key, id): (Arc<str>, _) = (item.key.to_string().into(), item.key.id.as_str());
            let kind = item.key.kind.plural();
            let checked = self.judge.check(&item.key, &item.value);
            let value = item.value.to_string().into_bytes();
            let checked = checked.and_then(|()| match value.len() > VALUE_BYTES_MAX {
                true => Err(format!("it has more than {VALUE_BYTES_MAX} bytes")),
                false => Ok(()),
            });
            if let Err(why) = checked {
                bad += 1;
                // Differs: APISIX lets the resource vanish, and its requests reach another route.
                // An id made of a place in the list may mean another resource by now.
                let previous = known.get(&key).filter(|_| item.named);
                error!(
                    id,
                    kept = previous.is_some(),
                    "failed to check item data of [{kind}] err:{why}"
                );
                if let Some(previous) = previous {
                    wanted.entry(key).or_insert_with(|| Arc::clone(previous));
                }
                continue;
            }
            if wanted.insert(key, value.into()).is_some() {
                warn!(kind, id, "An id is given twice; its last resource is taken.");
            }
        }
        let count = wanted.len();
        let revision = store.replace(wanted);
        let path = self.path.display();
        info!(resources = count, refused = bad, revision, "config file {path} reloaded.");
    }
}

/// What tells one state of a file from the next.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    modified: Option<SystemTime>,
    bytes: u64,
    file: (u64, u64),
}

impl Identity {
    /// Links are followed: a mounted configuration is often one that is pointed elsewhere.
    fn of(path: &Path) -> std::io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            modified: found.modified().ok(),
            bytes: found.len(),
            file: (found.dev(), found.ino()),
        })
    }

    fn is_settled(&self) -> bool {
        let age = self.modified.and_then(|modified| now().duration_since(modified).ok());
        age.is_some_and(|age| age >= SETTLED_AFTER)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| FileError::Read(error.to_string()))?;
    Ok(bytes)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[expect(clippy::disallowed_methods, reason = "a store is an edge: files have times")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How old a change must be for the file's time to tell it from the next one.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

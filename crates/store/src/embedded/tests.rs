//! What the embedded store does when its disk does not.
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize},
};

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
    store.put("/routes/first", Arc::from(*b"1"), Put::default()).await.unwrap();
    syncs();
    for _ in 0..10 {
        store.put("/routes/alone", Arc::from(*b"1"), Put::default()).await.unwrap();
    }
    assert_eq!(syncs(), 10);

    let clients = (0..200).map(|client| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let key = format!("/routes/{client}");
            store.put(&key, Arc::from(*b"1"), Expect::Absent.into()).await.unwrap();
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
    let put = |key: &'static str| store.put(key, Arc::from(*b"1"), Put::default());

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

/// A disk whose power fails. What was written since the last sync is then there in part: any of
/// the writes, in any order, and of each any sectors.
#[derive(Debug, Clone, Default)]
struct Volatile(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// What the machine sees.
    seen: Vec<u8>,
    /// What a power cut cannot take any more.
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// How many operations are left until the power fails.
    left: usize,
    cut: bool,
}

#[derive(Debug)]
enum Unsynced {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

impl Volatile {
    fn holding(image: Vec<u8>, left: usize) -> Self {
        let seen = image.clone();
        let platter = Platter { seen, durable: image, left, ..Platter::default() };
        Self(Arc::new(Mutex::new(platter)))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// One operation; an error once the power is gone.
    fn operate(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.platter();
        platter.left = platter.left.saturating_sub(1);
        platter.cut |= platter.left == 0;
        match platter.cut {
            true => Err(io::Error::other("the power is gone")),
            false => Ok(platter),
        }
    }

    fn is_cut(&self) -> bool {
        self.platter().cut
    }

    /// What is found when the power is back.
    fn image(&self, random: &mut Random) -> Vec<u8> {
        let mut platter = self.platter();
        let mut image = platter.durable.clone();
        let mut unsynced = std::mem::take(&mut platter.unsynced);
        while !unsynced.is_empty() {
            match unsynced.swap_remove(random.below(unsynced.len())) {
                Unsynced::Length(len) if random.below(2) == 0 => image.resize(len, 0),
                Unsynced::Length(_) => {}
                Unsynced::Write { offset, data } => {
                    // All of it, nothing of it, or some of its sectors.
                    let fate = random.below(4);
                    for (index, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        if fate == 0 || (fate > 1 && random.below(2) == 0) {
                            continue;
                        }
                        let start = offset + index * SECTOR_BYTES;
                        let end = start + sector.len();
                        image.resize(image.len().max(end), 0);
                        image[start..end].copy_from_slice(sector);
                    }
                }
            }
        }
        image
    }
}

impl StorageBackend for Volatile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let start = offset as usize;
        let found = platter.seen.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.operate()?;
        platter.seen.resize(len as usize, 0);
        platter.unsynced.push(Unsynced::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.operate()?;
        platter.durable = platter.seen.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = offset as usize;
        let mut platter = self.operate()?;
        platter.seen[start..start + data.len()].copy_from_slice(data);
        platter.unsynced.push(Unsynced::Write { offset: start, data: data.to_vec() });
        Ok(())
    }
}

/// Numbers that a seed decides, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

/// A value that shows whether it is whole: its number, and as many letters as the number says.
fn whole(number: usize) -> Arc<[u8]> {
    format!("{number}:{}", "x".repeat(number * 37 % 5000)).into_bytes().into()
}

fn number(value: &[u8]) -> usize {
    let text = std::str::from_utf8(value).unwrap();
    let number = text.split_once(':').unwrap().0.parse().unwrap();
    assert!(*whole(number) == *value, "a half-written value");
    number
}

fn open_volatile(folder: &Path, disk: &Volatile) -> Result<EmbeddedStore, StoreError> {
    let path = folder.join("store.redb");
    if !path.exists() {
        drop(EmbeddedStore::open(&path)?);
    }
    let disk = disk.clone();
    let open = move |path: &Path| match disk.is_cut() {
        true => Err(open_error(path, &"the power is gone")),
        false => Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(disk.clone())
            .map_err(|error| open_error(path, &error)),
    };
    EmbeddedStore::open_with(path, open)
}

#[tokio::test]
async fn after_a_power_cut_every_answered_write_is_there_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(EmbeddedStore::open(&path).unwrap());
    let new = fs::read(&path).unwrap();
    let mut kept = 0;
    for seed in 1..=SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut image = new.clone();
        // What was answered: key to number, `None` for deleted. And what was asked for since.
        let mut answered: BTreeMap<String, Option<usize>> = BTreeMap::new();
        let mut asked: BTreeMap<String, Vec<Option<usize>>> = BTreeMap::new();
        let mut next = 0;
        for cut in 0..CUTS {
            let disk = Volatile::holding(image, 1 + random.below(120));
            // Opening may itself be cut short; then there is nothing to write.
            if let Ok(store) = open_volatile(folder.path(), &disk) {
                let store = Arc::new(store);
                for round in 0..40 {
                    let writes = (0..1 + random.below(6)).map(|_| {
                        next += 1;
                        let key = format!("/routes/{}", random.below(12));
                        let value = (random.below(4) > 0).then_some(next);
                        (key, value)
                    });
                    let writes: BTreeMap<_, _> = writes.collect();
                    let running: Vec<_> = writes
                        .into_iter()
                        .map(|(key, value)| {
                            asked.entry(key.clone()).or_default().push(value);
                            let store = Arc::clone(&store);
                            let write = {
                                let key = key.clone();
                                async move {
                                    match value {
                                        Some(value) => {
                                            let put = store.put(&key, whole(value), Put::default());
                                            put.await.map(drop)
                                        }
                                        None => store.delete(&key, Expect::Any).await.map(drop),
                                    }
                                }
                            };
                            (key, value, tokio::spawn(write))
                        })
                        .collect();
                    for (key, value, write) in running {
                        if write.await.unwrap().is_ok() {
                            asked.remove(&key);
                            answered.insert(key, value);
                        }
                    }
                    if disk.is_cut() || (round == 30 && random.below(4) == 0) {
                        break;
                    }
                }
            }
            image = disk.image(&mut random);
            let back = Volatile::holding(image.clone(), usize::MAX);
            let store = open_volatile(folder.path(), &back)
                .unwrap_or_else(|error| panic!("seed {seed}, cut {cut}: {error}"));
            for number_of in 0..12 {
                let key = format!("/routes/{number_of}");
                let found = store.get(&key).await.unwrap().map(|entry| number(&entry.value));
                let expected = answered.get(&key).copied().flatten();
                let pending = asked.get(&key).map_or(&[][..], Vec::as_slice);
                assert!(
                    found == expected || pending.contains(&found),
                    "seed {seed}, cut {cut}: {key} is {found:?}, not {expected:?} or {pending:?}"
                );
                kept += usize::from(found.is_some());
                // From now on this is what must stay.
                answered.insert(key, found);
            }
            asked.clear();
            drop(store);
            image = back.image(&mut random);
        }
    }
    assert!(kept > 100, "only {kept} entries were there to look at");
}

#[test]
fn a_power_cut_while_the_file_is_compacted_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(EmbeddedStore::open(&path).unwrap());
    let disk = Volatile::holding(fs::read(&path).unwrap(), usize::MAX);
    let open = |disk: &Volatile| Database::builder().create_with_backend(disk.clone()).unwrap();
    let database = open(&disk);
    let put = |id: u64| {
        let (key, value) = (format!("/routes/{id}").into(), whole(id as usize));
        Stored::put(Entry { key, value, created: id, modified: id }, None)
    };
    store_changes(&database, &(1..=400).map(put).collect::<Vec<_>>()).unwrap();
    let gone = (401..=750).map(|n| Stored::delete(n, format!("/routes/{}", n - 400).into()));
    store_changes(&database, &gone.collect::<Vec<_>>()).unwrap();
    drop(database);
    let mut random = Random(7);
    let image = disk.image(&mut random);
    let (mut cuts, mut shrunk) = (0, 0);
    for left in (1..).step_by(7) {
        let disk = Volatile::holding(image.clone(), left);
        let Ok(mut database) = Database::builder().create_with_backend(disk.clone()) else {
            continue;
        };
        let compacted = database.compact();
        drop(database);
        let found = disk.image(&mut random);
        let back = Volatile::holding(found, usize::MAX);
        let loaded = load(&open(&back)).unwrap();
        assert_eq!(loaded.entries.len(), 50, "cut after {left} operations");
        assert!(loaded.entries.values().all(|entry| number(&entry.value) > 350));
        if compacted.is_ok() && !disk.is_cut() {
            shrunk = image.len() - back.platter().durable.len();
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 3 && shrunk > 0, "{cuts} cuts, {shrunk} bytes given back");
}

#[tokio::test]
async fn what_expired_while_the_store_was_closed_is_gone_when_it_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let ttl = |ms| Put { ttl: Some(Duration::from_millis(ms)), ..Put::default() };
    let store = EmbeddedStore::open(&path).unwrap();
    let value: Arc<[u8]> = Arc::from(*b"1");
    store.put("/routes/soon", value.clone(), ttl(150)).await.unwrap();
    store.put("/routes/later", value.clone(), ttl(3_600_000)).await.unwrap();
    let last = store.put("/routes/stays", value.clone(), ttl(150)).await.unwrap().entry.modified;
    let last =
        last.max(store.put("/routes/stays", value, Put::default()).await.unwrap().entry.modified);
    drop(store);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let store = EmbeddedStore::open(&path).unwrap();
    let listing = store.list("/").await.unwrap();
    let keys: Vec<_> = listing.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["/routes/later", "/routes/stays"]);
    assert!(listing.revision > last, "the removal has a revision of its own");
    drop(store);
    assert_eq!(EmbeddedStore::open(&path).unwrap().list("/").await.unwrap(), listing);
}

#[tokio::test]
async fn many_changes_at_once_are_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let many = 3 * BATCH_WRITES_MAX;
    let put = |n| (Arc::from(format!("/routes/{n}")), Some(Arc::from(*b"{}")));
    store.write_all((0..many).map(put).collect::<Vec<Bulk>>()).await.unwrap();
    assert_eq!(watch.changes().await.unwrap().len(), many, "nobody sees a part of them");
    let bad = vec![put(many), (Arc::from("no-key"), None)];
    let failed = store.write_all(bad).await.unwrap_err();
    assert_eq!(failed.made, 0);
    assert_eq!(store.list("/").await.unwrap().entries.len(), many);
}

#[tokio::test]
async fn a_file_much_larger_than_its_entries_is_compacted_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let size = || fs::metadata(&path).unwrap().len();
    let store = EmbeddedStore::open(&path).unwrap();
    // The last one lies at the end of the file and keeps it from shrinking by itself.
    for n in 0..24 {
        let big: Arc<[u8]> = vec![b'x'; 512 << 10].into();
        store.put(&format!("/routes/{n:02}"), big, Put::default()).await.unwrap();
    }
    let gone = (0..23).map(|n| (format!("/routes/{n:02}").into(), None));
    store.write_all(gone.collect::<Vec<Bulk>>()).await.unwrap();
    drop(store);
    let before = size();
    assert!(before > COMPACT_BYTES_MIN, "{before}");
    let store = EmbeddedStore::open(&path).unwrap();
    assert!(size() < before / 4, "{before} -> {}", size());
    assert_eq!(store.list("/").await.unwrap().entries.len(), 1);
}

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;
/// Stories of the power-cut test, and cuts in each.
const SEEDS: u64 = 12;
const CUTS: usize = 6;

#[tokio::test]
async fn what_has_expired_goes_with_the_next_commit_and_before_its_writes() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path().join("store.redb")).unwrap();
    let ttl = Some(Duration::from_millis(1));
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    store.put("/routes/short", Arc::from(*b"x"), Put { ttl, ..Put::default() }).await.unwrap();
    // Over by then, and the writer has not looked at its clock again.
    std::thread::sleep(WAIT_MIN / 2);
    store.put("/routes/1", Arc::from(*b"x"), Put::default()).await.unwrap();
    let events = watch.changes().await.unwrap();
    assert_eq!((&*events[1].key, &events[1].change), ("/routes/short", &Change::Delete));
}

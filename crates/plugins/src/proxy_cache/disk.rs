//! Answers in files: one file for each, written whole before it has its name.
//!
//! No request's thread reads or writes a file: that is done on threads of the background runtime, piece
//! by piece, so that neither a slow client nor a slow upstream holds one. Whatever fails there costs an
//! answer its place in the cache and nothing else.
//!
//! Files outlive the gateway: when a zone is opened, its folder is looked through and what is still good
//! serves again. A folder has one gateway at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::StatusCode;
use sluicegate_gateway::body::{Body, BodyError, Source};
use sluicegate_gateway::http::Headers;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::rules::{Digest, Parts};
use super::zone::{Kept, Times, Variant, Zone};
use crate::limit::now_ms;

/// The folder of a zone.
pub(super) struct Disk {
    root: PathBuf,
    levels: Box<[usize]>,
    background: Handle,
    /// Files that are being opened, and files that are being written.
    reading: AtomicUsize,
    writing: Arc<AtomicUsize>,
    next_temporary: AtomicU64,
    warned: Mutex<Option<Instant>>,
    opened: Instant,
    /// Is everything that lay there in the zone?
    read_in: watch::Sender<bool>,
    /// Held for as long as the folder is this gateway's.
    _lock: File,
}

/// What a file says about its answer.
pub(super) struct Head {
    pub(super) key: Digest,
    pub(super) signature: Digest,
    pub(super) times: Times,
    pub(super) status: StatusCode,
    pub(super) vary: Box<[Box<str>]>,
    pub(super) headers: Headers,
}

impl Disk {
    /// Takes a folder, which is made if there is none.
    pub(super) fn open(root: &Path, levels: &[usize], background: Handle) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(root)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(FILE_MODE);
        let lock = lock.open(root.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another gateway uses this folder"),
            TryLockError::Error(error) => error,
        })?;
        Ok(Self {
            root: root.to_owned(),
            levels: levels.into(),
            background,
            reading: AtomicUsize::new(0),
            writing: Arc::default(),
            next_temporary: AtomicU64::new(0),
            warned: Mutex::new(None),
            opened: Instant::now(),
            read_in: watch::Sender::new(false),
            _lock: lock,
        })
    }

    /// Looks through the folder, in the background: what is good goes into the zone, what is over or
    /// was never finished goes away, and what is not a cache's is left alone.
    pub(super) fn scan(self: &Arc<Self>, zone: &Arc<Zone>) {
        let (disk, zone) = (self.clone(), zone.clone());
        self.background.spawn_blocking(move || {
            let answers = disk.scan_folder(&disk.root, 0, &zone);
            disk.read_in.send_replace(true);
            info!(folder = %disk.root.display(), answers, "A cache of files is read in.");
        });
    }

    /// Waits, for so long, until the zone knows what lies in the folder. Says whether it does.
    pub(super) async fn is_read_in(&self, limit: Duration) -> bool {
        let mut read_in = self.read_in.subscribe();
        let waited = tokio::time::timeout(limit, read_in.wait_for(|done| *done)).await;
        waited.is_ok_and(|done| done.is_ok())
    }

    /// The same for a request that could be served without: the first ones after a start wait a
    /// little, as few files are read in at once. Says whether it is worth it to look again.
    pub(super) async fn was_just_read_in(&self) -> bool {
        let left = FIRST_LOOKS_WAIT.saturating_sub(self.opened.elapsed());
        !left.is_zero() && self.is_read_in(left).await
    }

    /// The number of answers found.
    fn scan_folder(&self, folder: &Path, depth: usize, zone: &Zone) -> u64 {
        let mut answers = 0;
        let Ok(entries) = std::fs::read_dir(folder) else { return answers };
        for entry in entries.flatten() {
            let path = entry.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
            match self.levels.get(depth) {
                Some(digits) if kind.is_dir() && name.len() == *digits && hex(name) => {
                    answers += self.scan_folder(&path, depth + 1, zone);
                }
                None if kind.is_file() => match name.split_once('.') {
                    None if name.len() != 64 || !hex(name) => {}
                    None if self.adopt(&path, name, zone).is_some() => answers += 1,
                    None => drop(std::fs::remove_file(&path)),
                    Some((name, rest))
                        if name.len() == 64 && hex(name) && rest.ends_with(TEMPORARY) =>
                    {
                        drop(std::fs::remove_file(&path));
                    }
                    Some(_) => {}
                },
                _ => {}
            }
        }
        answers
    }

    /// Puts a file that lies there into the zone, if it is good.
    fn adopt(&self, path: &Path, name: &str, zone: &Zone) -> Option<()> {
        let mut file = File::open(path).ok()?;
        let (head, at, body_bytes) = read_head(&mut file, &mut Vec::new()).ok()?;
        let now = now_ms();
        // A time to come is none of ours.
        let bad_time = head.times.is_over(now) || head.times.stored_ms > now + CLOCK_LEAP_MS;
        let digest = name_of(&head.key, &head.signature);
        if bad_time || hex(&digest) != name || file.metadata().ok()?.len() != at + body_bytes {
            return None;
        }
        // What a request has stored meanwhile is newer, and has the same file.
        let variant = head.variant(digest, at + body_bytes);
        let gone = zone.insert(head.key, head.vary, variant, now);
        self.remove_now(&gone);
        Some(())
    }

    fn path(&self, name: &Digest) -> PathBuf {
        let hex = hex(name);
        let mut path = self.root.clone();
        let mut end = hex.len();
        for digits in &self.levels {
            let start = end.saturating_sub(*digits);
            path.push(&hex[start..end]);
            end = start;
        }
        path.push(hex);
        path
    }

    /// Removes files, in the background.
    pub(super) fn remove(self: &Arc<Self>, names: Vec<Digest>) {
        if !names.is_empty() {
            let disk = self.clone();
            self.background.spawn_blocking(move || disk.remove_now(&names));
        }
    }

    fn remove_now(&self, names: &[Digest]) {
        for name in names {
            if let Err(error) = std::fs::remove_file(self.path(name))
                && error.kind() != io::ErrorKind::NotFound
            {
                self.warn(&error);
            }
        }
    }

    /// Tells of a failure, at most once in a while.
    fn warn(&self, error: &io::Error) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if warned.is_none_or(|last| now - last >= WARN_EVERY) {
            *warned = Some(now);
            warn!(folder = %self.root.display(), %error, "A cache's folder makes trouble; requests go on without it.");
        }
    }

    /// Reads an answer of the zone. `None`: it cannot be had now.
    pub(super) async fn read(self: &Arc<Self>, name: Digest, key: &Digest) -> Option<(Head, Body)> {
        if self.reading.fetch_add(1, Ordering::Relaxed) >= READERS_MAX {
            self.reading.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let disk = self.clone();
        let opened = self.background.spawn_blocking(move || {
            let opened = disk.open_file(&name);
            disk.reading.fetch_sub(1, Ordering::Relaxed);
            opened
        });
        let opened = tokio::time::timeout(READ_WAIT, opened).await.ok()?.ok()?;
        match opened {
            Ok((head, body)) => (head.key == *key).then(|| (head, body.into_body())),
            Err(error) => {
                // It may have made room just now.
                if error.kind() != io::ErrorKind::NotFound {
                    self.warn(&error);
                }
                None
            }
        }
    }

    fn open_file(&self, name: &Digest) -> io::Result<(Head, FileBody)> {
        let mut file = File::open(self.path(name))?;
        let mut buffer = Vec::new();
        let (head, at, left) = read_head(&mut file, &mut buffer)?;
        if file.metadata()?.len() != at + left {
            return Err(io::Error::other("a file is shorter than it says"));
        }
        // What was read behind the head is the body's first piece.
        let head_bytes = usize::try_from(at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = Bytes::from(buffer).split_off(head_bytes);
        let got = piece.len() as u64;
        let background = self.background.clone();
        let (file, at, left) = (Arc::new(file), at + got, left.saturating_sub(got));
        Ok((head, FileBody { file, at, left, piece, reading: None, background }))
    }

    /// Begins to write an answer, which goes into the zone once it is whole. `None`: too many are
    /// being written.
    pub(super) fn write(self: &Arc<Self>, zone: &Arc<Zone>, head: Head) -> Option<Writing> {
        if self.writing.fetch_add(1, Ordering::Relaxed) >= WRITERS_MAX {
            self.writing.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting: Arc<AtomicUsize> = Arc::default();
        let job = Job { disk: self.clone(), zone: zone.clone(), waiting: waiting.clone() };
        self.background.spawn(job.run(head, receiver));
        Some(Writing { sender, waiting, bytes: 0, bytes_max: zone.disk_max() })
    }
}

impl Head {
    fn variant(&self, name: Digest, bytes: u64) -> Variant {
        let (signature, times) = (self.signature, self.times);
        Variant { signature, times, kept: Kept::Disk { name, bytes } }
    }

    /// The head as it stands in a file; how long the body is comes in when it is known.
    fn encode(&self) -> Vec<u8> {
        let vary = self.vary.join(",");
        let mut fields = Vec::new();
        for (name, value) in self.headers.iter() {
            for part in [name, b": ", value, b"\r\n"] {
                fields.extend_from_slice(part);
            }
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.signature);
        for number in [
            self.times.stored_ms,
            self.times.ttl_ms,
            self.times.age_s,
            self.status.as_u16().into(),
            vary.len() as u64,
            fields.len() as u64,
            // The body's length.
            u64::MAX,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(vary.as_bytes());
        out.extend_from_slice(&fields);
        out
    }
}

/// Reads a file's head: what it says, where the body begins and how long it is. What was read of the
/// file is in `buffer`.
fn read_head(file: &mut File, buffer: &mut Vec<u8>) -> io::Result<(Head, u64, u64)> {
    let read = |file: &mut File, buffer: &mut Vec<u8>, up_to: usize| -> io::Result<()> {
        let missing = up_to.saturating_sub(buffer.len()) as u64;
        file.take(missing).read_to_end(buffer).map(drop)
    };
    read(file, buffer, FIRST_PIECE_BYTES)?;
    let (_, vary, fields) = lengths(buffer).ok_or_else(bad_file)?;
    read(file, buffer, FIXED_BYTES + vary + fields)?;
    let (head, at, body_bytes) = decode(buffer).ok_or_else(bad_file)?;
    Ok((head, at as u64, body_bytes))
}

fn bad_file() -> io::Error {
    io::Error::other("a file is none of a cache")
}

/// The number at this place behind the digests.
fn number(bytes: &[u8], place: usize) -> Option<u64> {
    let at = MAGIC.len() + 64 + 8 * place;
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// How long the body, the names of fields it depends on and the fields are.
fn lengths(bytes: &[u8]) -> Option<(u64, usize, usize)> {
    bytes.strip_prefix(MAGIC)?;
    let length = |place| usize::try_from(number(bytes, place)?).ok().filter(|n| *n <= PART_MAX);
    Some((number(bytes, 6)?, length(4)?, length(5)?))
}

/// Reads what [`Head::encode`] wrote: the head, where it ends, and the body's length.
fn decode(bytes: &[u8]) -> Option<(Head, usize, u64)> {
    let (body_bytes, vary_bytes, fields_bytes) = lengths(bytes)?;
    let vary = bytes.get(FIXED_BYTES..FIXED_BYTES + vary_bytes)?;
    let end = FIXED_BYTES + vary_bytes + fields_bytes;
    let mut headers = Headers::new();
    for line in bytes.get(FIXED_BYTES + vary_bytes..end)?.split(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\r") else { continue };
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?;
        headers.append(name, line.get(colon + 2..)?);
    }
    let digest = |at: usize| bytes.get(at..at + 32)?.try_into().ok();
    let names = std::str::from_utf8(vary).ok()?.split(',').filter(|name| !name.is_empty());
    let head = Head {
        key: digest(MAGIC.len())?,
        signature: digest(MAGIC.len() + 32)?,
        times: Times {
            stored_ms: number(bytes, 0)?,
            ttl_ms: number(bytes, 1)?,
            age_s: number(bytes, 2)?,
        },
        status: StatusCode::from_u16(u16::try_from(number(bytes, 3)?).ok()?).ok()?,
        vary: names.map(Into::into).collect(),
        headers,
    };
    // A body whose length was never filled in was never whole.
    (body_bytes != u64::MAX).then_some((head, end, body_bytes))
}

/// The name of an answer's file.
fn name_of(key: &Digest, signature: &Digest) -> Digest {
    let mut parts = Parts::new();
    parts.add(key);
    parts.add(signature);
    parts.digest()
}

fn hex(digest: &Digest) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// An answer on its way into a file.
pub(super) struct Writing {
    sender: mpsc::UnboundedSender<Message>,
    /// Bytes that were sent and are not written yet.
    waiting: Arc<AtomicUsize>,
    bytes: u64,
    bytes_max: u64,
}

enum Message {
    Piece(Bytes),
    /// The answer is whole. Without it the file goes.
    End,
}

impl Writing {
    /// Hands a piece over. `false`: it is no use to go on.
    pub(super) fn piece(&mut self, piece: Bytes) -> bool {
        self.bytes += piece.len() as u64;
        let before = self.waiting.fetch_add(piece.len(), Ordering::Relaxed);
        self.bytes <= self.bytes_max
            && before + piece.len() <= WAITING_BYTES_MAX.max(piece.len())
            && self.sender.send(Message::Piece(piece)).is_ok()
    }

    /// The answer is whole.
    pub(super) fn end(self) {
        let _ = self.sender.send(Message::End);
    }
}

/// What writes a file.
struct Job {
    disk: Arc<Disk>,
    zone: Arc<Zone>,
    waiting: Arc<AtomicUsize>,
}

impl Job {
    async fn run(self, head: Head, mut receiver: mpsc::UnboundedReceiver<Message>) {
        let job = Arc::new(self);
        let mut unfinished = None;
        let mut head = Some(head);
        let mut messages = Vec::new();
        loop {
            // What waits is written at once.
            if receiver.recv_many(&mut messages, MESSAGES_AT_ONCE).await == 0 {
                break;
            }
            let (own, taken) = (job.clone(), std::mem::take(&mut messages));
            let (file, first) = (unfinished.take(), head.take());
            let written = tokio::task::spawn_blocking(move || own.write(file, first, taken));
            match written.await {
                Ok(Ok(Some(file))) => unfinished = Some(file),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    job.disk.warn(&error);
                    break;
                }
                Err(_) => break,
            }
        }
        job.disk.writing.fetch_sub(1, Ordering::Relaxed);
        if let Some(file) = unfinished {
            // Its drop removes the file.
            tokio::task::spawn_blocking(move || drop(file));
        }
    }

    /// Writes pieces; `None` once the file is whole and in its place.
    fn write(
        &self,
        file: Option<Temporary>,
        head: Option<Head>,
        messages: Vec<Message>,
    ) -> io::Result<Option<Temporary>> {
        let mut file = match (file, head) {
            (Some(file), _) => file,
            (None, Some(head)) => Temporary::begin(&self.disk, head)?,
            (None, None) => return Ok(None),
        };
        for message in messages {
            match message {
                Message::Piece(piece) => {
                    file.file.write_all(&piece)?;
                    file.body_bytes += piece.len() as u64;
                    self.waiting.fetch_sub(piece.len(), Ordering::Relaxed);
                }
                Message::End => {
                    let (head, name, bytes) = file.finish()?;
                    let variant = head.variant(name, bytes);
                    let gone = self.zone.insert(head.key, head.vary, variant, now_ms());
                    self.disk.remove_now(&gone);
                    return Ok(None);
                }
            }
        }
        Ok(Some(file))
    }
}

/// A file that is not whole yet. Dropped before it is, it goes.
struct Temporary {
    file: File,
    path: PathBuf,
    place: PathBuf,
    name: Digest,
    head: Option<Head>,
    head_bytes: u64,
    body_bytes: u64,
    whole: bool,
}

impl Temporary {
    fn begin(disk: &Disk, head: Head) -> io::Result<Self> {
        let name = name_of(&head.key, &head.signature);
        let place = disk.path(&name);
        let number = disk.next_temporary.fetch_add(1, Ordering::Relaxed);
        let mut path = place.clone().into_os_string();
        path.push(format!(".{}.{number}{TEMPORARY}", std::process::id()));
        let path = PathBuf::from(path);
        if let Some(folder) = place.parent() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        let bytes = head.encode();
        let head_bytes = bytes.len() as u64;
        let written = file.write_all(&bytes);
        let begun = Self {
            file,
            path,
            place,
            name,
            head: Some(head),
            head_bytes,
            body_bytes: 0,
            whole: false,
        };
        written.map(|()| begun)
    }

    /// Fills the length in and gives the file its name: what is said of it, the name, its bytes.
    fn finish(mut self) -> io::Result<(Head, Digest, u64)> {
        let at = (FIXED_BYTES - 8) as u64;
        self.file.write_all_at(&self.body_bytes.to_le_bytes(), at)?;
        std::fs::rename(&self.path, &self.place)?;
        self.whole = true;
        let head = self.head.take().ok_or_else(bad_file)?;
        Ok((head, self.name, self.head_bytes + self.body_bytes))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A body that is in a file.
struct FileBody {
    file: Arc<File>,
    /// Where the next piece begins, and how many bytes follow from there.
    at: u64,
    left: u64,
    piece: Bytes,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    background: Handle,
}

impl FileBody {
    fn into_body(self) -> Body {
        match self.left {
            0 => Body::from_bytes(self.piece),
            _ => Body::stream(self),
        }
    }
}

impl Source for FileBody {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        if !self.piece.is_empty() || self.left == 0 {
            return Poll::Ready(Ok(self.piece.len()));
        }
        let reading = self.reading.get_or_insert_with(|| {
            let (file, at) = (self.file.clone(), self.at);
            let bytes = usize::try_from(self.left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            self.background.spawn_blocking(move || {
                let mut piece = vec![0; bytes];
                file.read_exact_at(&mut piece, at).map(|()| piece.into())
            })
        });
        let Poll::Ready(read) = std::pin::Pin::new(reading).poll(cx) else { return Poll::Pending };
        self.reading = None;
        let piece = read.map_err(io::Error::other).flatten()?;
        self.at += piece.len() as u64;
        self.left -= piece.len() as u64;
        self.piece = piece;
        Poll::Ready(Ok(self.piece.len()))
    }

    fn data(&self) -> &[u8] {
        &self.piece
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.left + self.piece.len() as u64)
    }
}

/// What a file of ours begins with; another layout has another number.
const MAGIC: &[u8] = b"SLGCACH1";
/// The part of a head that is always there: two digests and seven numbers behind [`MAGIC`].
const FIXED_BYTES: usize = 8 + 64 + 56;
/// Bytes of a head's parts of no fixed length, each.
const PART_MAX: usize = 1 << 20;
/// Bytes read of a file when it is opened: most answers are not longer.
const FIRST_PIECE_BYTES: usize = 64 << 10;
/// Bytes read of a file at one time afterwards.
const PIECE_BYTES: usize = 256 << 10;
/// Files that are opened at one time; more requests go to their upstreams.
const READERS_MAX: usize = 128;
/// How long a request waits for a file to be opened before it goes to its upstream.
const READ_WAIT: Duration = Duration::from_secs(2);
/// How long after a zone was opened a request waits for what lies in its folder.
const FIRST_LOOKS_WAIT: Duration = Duration::from_millis(200);
/// Files that are written at one time; further answers are not kept.
const WRITERS_MAX: usize = 128;
/// Bytes of an answer that wait to be written; an answer that comes faster than that is not kept.
const WAITING_BYTES_MAX: usize = 4 << 20;
const MESSAGES_AT_ONCE: usize = 64;
/// How often trouble is told of at most.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// A file may be from a little later than now: clocks are set.
const CLOCK_LEAP_MS: u64 = 60_000;
/// Whoever is not the gateway's user has nothing to look for in there.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const LOCK: &str = ".lock";
const TEMPORARY: &str = ".tmp";

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let mut headers = Headers::new();
        headers.append("Content-Type", b"text/plain");
        headers.append("X-Odd", b"\xff: x");
        Head {
            key: [1; 32],
            signature: [2; 32],
            times: Times { stored_ms: 3, ttl_ms: 4, age_s: 5 },
            status: StatusCode::NOT_FOUND,
            vary: Box::new(["accept".into(), "x-b".into()]),
            headers,
        }
    }

    fn whole() -> Vec<u8> {
        let mut bytes = head().encode();
        bytes[FIXED_BYTES - 8..FIXED_BYTES].copy_from_slice(&7_u64.to_le_bytes());
        bytes
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let bytes = whole();
        let (read, end, body) = decode(&bytes).expect("it is whole");
        assert_eq!((end, body), (bytes.len(), 7));
        assert_eq!((read.key, read.signature, read.times), ([1; 32], [2; 32], head().times));
        assert_eq!((read.status, &read.vary), (StatusCode::NOT_FOUND, &head().vary));
        let fields: Vec<_> = read.headers.iter().collect();
        let expected = head().headers;
        assert_eq!(fields, expected.iter().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_wants_to_know_what_lies_in_a_folder_waits_until_it_is_looked_through() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), &[1, 2], Handle::current()).unwrap();
        let (disk, zone) = (Arc::new(disk), Arc::new(Zone::new(1 << 20, 1 << 20)));
        assert!(!disk.is_read_in(Duration::from_millis(10)).await);
        let waiting = tokio::spawn({
            let disk = disk.clone();
            async move { disk.is_read_in(Duration::from_secs(20)).await }
        });
        disk.scan(&zone);
        assert!(waiting.await.unwrap());
        assert!(disk.is_read_in(Duration::ZERO).await, "nobody waits any more");
    }

    #[test]
    fn no_mangled_head_is_read_or_makes_the_reader_panic() {
        assert!(decode(&head().encode()).is_none(), "the length is not filled in");
        let bytes = whole();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_none(), "{len}");
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut mangled = bytes.clone();
                mangled[at] ^= flip;
                let _ = decode(&mangled);
            }
        }
    }
}

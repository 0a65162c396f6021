//! The last-known-good copy: what etcd held when it was last seen, in a file beside the gateway.
//!
//! A gateway that starts while etcd cannot be reached serves it. It is never read for anything
//! else, and a file that is not whole is as good as none: it ends with a checksum. Values lie in it
//! as they lie in etcd, so secrets are as encrypted as they are there; only the owner may read it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ring::digest;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::follow::Source;
use crate::{Entry, shared::Shared};

/// What a copy holds.
pub(super) struct Copied {
    pub(super) cluster: u64,
    pub(super) revision: u64,
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
}

/// Writes a copy after every change, but not more often than is reasonable. Never returns.
pub(super) async fn keep(path: PathBuf, prefix: String, shared: Arc<Shared>, source: Arc<Source>) {
    let mut changed = shared.subscribe();
    let mut written = None;
    let mut failing = false;
    loop {
        if changed.wait_for(|revision| Some(*revision) != written).await.is_err() {
            return;
        }
        tokio::time::sleep(WRITE_DELAY).await;
        // Until etcd itself has been read, what is shown came from this very file.
        let Some(cluster) = source.cluster() else {
            continue_later().await;
            continue;
        };
        let listing = shared.list("");
        let revision = listing.revision;
        let (to, prefix) = (path.clone(), prefix.clone());
        let started = Instant::now();
        let done = tokio::task::spawn_blocking(move || {
            write(&to, &prefix, cluster, listing.revision, &listing.entries)
        });
        match done.await {
            Ok(Ok(())) => {
                debug!(revision, "The copy of the configuration is written.");
                failing = false;
            }
            Ok(Err(error)) => {
                if !failing {
                    warn!(path = %path.display(), %error, "The copy of the configuration cannot be written: without etcd, a restart would find an old one or none.");
                }
                failing = true;
                continue_later().await;
                continue;
            }
            Err(_) => return,
        }
        written = Some(revision);
        // Many entries that change all the time must not keep the disk busy.
        tokio::time::sleep(started.elapsed() * WRITE_SHARE).await;
    }
}

async fn continue_later() {
    tokio::time::sleep(RETRY_DELAY).await;
}

/// Reads a copy. `None` when there is none.
pub(super) fn read(path: &Path, prefix: &str) -> io::Result<Option<Copied>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let Some((content, sum)) = bytes.split_at_checked(bytes.len().wrapping_sub(SUM_BYTES)) else {
        return Err(bad("it is too short"));
    };
    if digest::digest(&digest::SHA256, content).as_ref() != sum {
        return Err(bad("its checksum does not match"));
    }
    parse(content, prefix)
        .ok_or_else(|| bad("it is of another version or another prefix"))
        .map(Some)
}

fn parse(content: &[u8], prefix: &str) -> Option<Copied> {
    let mut rest = content.strip_prefix(MAGIC)?;
    if text(&mut rest)? != prefix {
        return None;
    }
    let (cluster, revision) = (number(&mut rest)?, number(&mut rest)?);
    let mut entries = BTreeMap::new();
    while !rest.is_empty() {
        let key: Arc<str> = text(&mut rest)?.into();
        let (created, modified) = (number(&mut rest)?, number(&mut rest)?);
        let value = field(&mut rest)?.into();
        entries.insert(Arc::clone(&key), Entry { key, value, created, modified });
    }
    Some(Copied { cluster, revision, entries })
}

/// Writes a copy beside the old one, then takes its place: there is always a whole one.
fn write(
    path: &Path,
    prefix: &str,
    cluster: u64,
    revision: u64,
    entries: &[Entry],
) -> io::Result<()> {
    let new = path.with_extension("new");
    // What a writer that was killed left goes, and anything else by that name: it is neither written
    // through, where it is a link, nor is its mode kept. A random name would leave the file behind
    // at every kill.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new)?;
    let mut out = Summed { out: BufWriter::new(file), sum: digest::Context::new(&digest::SHA256) };
    out.put(MAGIC)?;
    out.field(prefix.as_bytes())?;
    out.put(&cluster.to_le_bytes())?;
    out.put(&revision.to_le_bytes())?;
    for entry in entries {
        out.field(entry.key.as_bytes())?;
        out.put(&entry.created.to_le_bytes())?;
        out.put(&entry.modified.to_le_bytes())?;
        out.field(&entry.value)?;
    }
    let Summed { mut out, sum } = out;
    out.write_all(sum.finish().as_ref())?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

struct Summed {
    out: BufWriter<fs::File>,
    sum: digest::Context,
}

impl Summed {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }

    fn field(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(&(bytes.len() as u64).to_le_bytes())?;
        self.put(bytes)
    }
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*bytes))
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(number(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(bytes)
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(field(rest)?).ok()
}

/// What the file starts with; the number is its format's version.
const MAGIC: &[u8] = b"sluicegate-etcd-copy 1\n";
const SUM_BYTES: usize = 32;
const FILE_MODE: u32 = 0o600;
/// How long changes are gathered before a copy is written.
const WRITE_DELAY: Duration = Duration::from_millis(500);
/// A copy's writing is followed by a pause of this many times what it took.
const WRITE_SHARE: u32 = 20;
/// How long to wait after a copy could not be written.
const RETRY_DELAY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_copy_is_not_written_through_what_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other, bait] = ["etcd.copy", "other", "etcd.new"].map(|n| folder.path().join(n));
        fs::write(&other, "untouched").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o666)).unwrap();
        std::os::unix::fs::symlink(&other, &bait).unwrap();
        write(&path, "/apisix", 7, 9, &[]).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "untouched");
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600);
        fs::write(&bait, "left by a kill").unwrap();
        fs::set_permissions(&bait, fs::Permissions::from_mode(0o666)).unwrap();
        write(&path, "/apisix", 7, 10, &[]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path, "/apisix").unwrap().unwrap().revision, 10);
    }

    #[test]
    fn a_copy_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy");
        assert!(read(&path, "/apisix").unwrap().is_none());
        let entry = |key: &str, modified| Entry {
            key: key.into(),
            value: b"{\"a\":1}"[..].into(),
            created: 3,
            modified,
        };
        let entries = [entry("/routes/1", 4), entry("/routes/2", 5)];
        write(&path, "/apisix", 7, 9, &entries).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let found = read(&path, "/apisix").unwrap().unwrap();
        assert_eq!((found.cluster, found.revision), (7, 9));
        assert_eq!(found.entries.into_values().collect::<Vec<_>>(), entries);
        assert!(read(&path, "/other").is_err(), "another deployment's copy is not ours");

        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path, "/apisix").is_err(), "{length} bytes of {}", whole.len());
        }
        for at in [0, 30, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(read(&path, "/apisix").is_err(), "byte {at} changed");
        }
    }
}

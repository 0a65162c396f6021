//! Reading, making and replacing the file, so that no moment shows half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::FILE_BYTES_MAX;
use crate::error::ConfigError;

/// Reads a file of at most [`FILE_BYTES_MAX`] bytes.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    let opened = File::open(path);
    let taken =
        opened.and_then(|open| open.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    if let Err(cause) = taken {
        return Err(ConfigError::Read { file, cause });
    }
    if bytes.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { file, limit: FILE_BYTES_MAX });
    }
    String::from_utf8(bytes)
        .map_err(|error| ConfigError::NotText { file, at: error.utf8_error().valid_up_to() })
}

/// Writes a new file that only its owner may read. `false`: there is one already, and it stays.
pub(crate) fn create(path: &Path, text: &str) -> io::Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let temporary = Temporary::write(path, text, OWNER_ONLY)?;
    // A link, unlike a rename, does not replace what another process made meanwhile.
    match fs::hard_link(&temporary.path, path) {
        Ok(()) => {
            sync_folder(path);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // Some file systems have no links.
        Err(_) => temporary.rename(path).map(|()| true),
    }
}

/// Replaces a file's text and keeps its mode and owner. A symbolic link stays one.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let old = fs::metadata(&path)?;
    // A file that may not be written is not replaced either, though its folder would let us.
    OpenOptions::new().write(true).open(&path)?;
    let temporary = Temporary::write(&path, text, old.permissions().mode() & 0o7777)?;
    let new = fs::metadata(&temporary.path)?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        chown(&temporary.path, Some(old.uid()), Some(old.gid()))?;
    }
    temporary.rename(&path)
}

/// A file beside the one that is made; gone when dropped.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(beside: &Path, text: &str, mode: u32) -> io::Result<Self> {
        let name = beside.file_name().unwrap_or_default().to_string_lossy();
        let path = beside.with_file_name(format!(".{name}.{}.new", std::process::id()));
        // Left by a process that was killed and had our number.
        let _ = fs::remove_file(&path);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(&path)?;
        let temporary = Self { path };
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn rename(self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        sync_folder(to);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Best effort: the file itself is on disk already, only its name may be lost in a crash.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
        let _ = folder.sync_all();
    }
}

/// The file holds keys.
const OWNER_ONLY: u32 = 0o600;

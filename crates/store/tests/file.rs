//! The embedded store's file: who may read it, who may open it, what is no store.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use sluicegate_store::{EmbeddedStore, Expect, Put, Store, StoreError};

#[tokio::test]
async fn a_store_opened_again_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    for key in ["/routes/1", "/routes/2", "/routes/1", "/routes/3"] {
        store.put(key, Arc::from(*b"{}"), Put::default()).await.unwrap();
    }
    store.delete("/routes/3", Expect::Any).await.unwrap();
    let listing = store.list("/").await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.list("/").await.unwrap(), listing);
    let next = store.put("/routes/4", Arc::from(*b"{}"), Expect::Absent.into()).await.unwrap();
    assert!(next.entry.modified > listing.revision);
    assert!(matches!(store.watch(1).await, Err(StoreError::Compacted { .. })));
}

#[tokio::test]
async fn only_the_owner_may_read_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    drop(EmbeddedStore::open(&path).unwrap());
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(EmbeddedStore::open(&path).unwrap());
    assert_eq!(mode(), 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[tokio::test]
async fn a_second_opener_gets_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    let expected = format!("the store {} is in use by another process", path.display());
    assert_eq!(error.to_string(), expected);
    store.put("/routes/1", Arc::from(*b"{}"), Put::default()).await.unwrap();
}

#[test]
fn what_is_no_store_is_refused_by_name_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("empty", vec![]), ("text", b"hello".repeat(2000))] {
        let path = folder.path().join(name);
        fs::write(&path, &content).unwrap();
        let error = EmbeddedStore::open(&path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot open the store {}: ", path.display())),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    let missing = folder.path().join("no-folder/store.redb");
    let error = EmbeddedStore::open(&missing).unwrap_err().to_string();
    assert!(error.contains("no-folder/store.redb: "), "{error}");
}

#[test]
fn racing_creators_agree_on_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    for _ in 0..10 {
        let open = || {
            std::thread::spawn({
                let path = path.clone();
                move || EmbeddedStore::open(path)
            })
        };
        let opened = [open(), open(), open(), open()].map(|thread| thread.join().unwrap());
        assert!(opened.iter().filter(|store| store.is_ok()).count() <= 1);
        drop(opened);
        EmbeddedStore::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
    }
}

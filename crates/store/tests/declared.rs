//! A store that a file declares: what it takes, when, and what it keeps.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use sluicegate_model::resource::Key;
use sluicegate_store::{
    Change, DeclaredStore, Health, Store,
    file::{DeclaredPlugin, Format, Judge},
};

/// Refuses what says `bad`, and remembers what lists of plugins it was given.
#[derive(Default, Clone)]
struct Strict(Arc<Mutex<Vec<Option<Vec<String>>>>>);

impl Judge for Strict {
    fn plugins(&mut self, list: Option<&[DeclaredPlugin]>) {
        let names = list.map(|list| list.iter().map(|plugin| plugin.name.clone()).collect());
        self.0.lock().unwrap().push(names);
    }

    fn check(&self, _key: &Key, value: &Value) -> Result<(), String> {
        match value.get("bad") {
            Some(_) => Err("it is bad".to_owned()),
            None => Ok(()),
        }
    }
}

struct Followed {
    folder: tempfile::TempDir,
    name: &'static str,
    store: Arc<DeclaredStore>,
    judge: Strict,
}

impl Followed {
    fn start(name: &'static str, format: Format, text: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = DeclaredStore::new("edit the file");
        let followed = Self { folder, name, store, judge: Strict::default() };
        if let Some(text) = text {
            fs::write(followed.path(), text).unwrap();
        }
        let variables = Box::new(|name: &str| (name == "PORT").then(|| "80".to_owned()));
        followed.store.follow(followed.path(), format, variables, followed.judge.clone()).unwrap();
        followed
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    /// Puts a whole new file in place, as an editor or a mounted configuration does.
    fn replace(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    async fn content(&self) -> Vec<(String, Value)> {
        let entries = self.store.list("/").await.unwrap().entries;
        let shown = |entry: &sluicegate_store::Entry| {
            (entry.key.to_string(), serde_json::from_slice(&entry.value).unwrap())
        };
        entries.iter().map(shown).collect()
    }

    async fn keys(&self) -> Vec<String> {
        self.content().await.into_iter().map(|(key, _)| key).collect()
    }

    /// Waits until the health is stale for a reason that holds this text.
    async fn until_stale(&self, text: &str) {
        until(|| match self.store.health() {
            Health::Stale { reason, .. } => reason.contains(text),
            Health::Ready => false,
        })
        .await;
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it never came to that");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_changed_file_is_taken_within_seconds_and_only_what_differs_changes() {
    let text = "routes:\n  - id: 1\n    uri: /a\n  - uri: /b\n    port: ${{PORT}}\n#END\n";
    let followed = Followed::start("apisix.yaml", Format::Yaml, Some(text));
    // The first reading is done before the store is used.
    let expected = [
        ("/routes/1".to_owned(), serde_json::json!({"id": "1", "uri": "/a"})),
        ("/routes/arr_2".to_owned(), serde_json::json!({"uri": "/b", "port": 80, "id": "arr_2"})),
    ];
    assert_eq!(followed.content().await, expected);

    let (_, mut watch) = followed.store.snapshot_and_watch("/").await.unwrap();
    followed.replace(&text.replace("/a", "/new"));
    let begun = Instant::now();
    let events = watch.changes().await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(matches!(&events[0].change, Change::Put(entry) if &*entry.key == "/routes/1"));
    // Of the same length and within the same second: still seen.
    followed.replace(&text.replace("/a", "/owl"));
    assert_eq!(watch.changes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_bad_file_leaves_what_was_loaded_and_the_store_says_what_is_wrong() {
    let good = "routes:\n  - id: 1\n    uri: /a\n#END\n";
    let followed = Followed::start("apisix.yaml", Format::Yaml, Some(good));
    assert_eq!(followed.store.health(), Health::Ready);
    for (text, why) in [
        ("routes:\n  - id: 2\n    uri: /b\n", "missing valid end flag"),
        ("routes:\n  - id: 2\n   uri: /b\n#END", "line 3, column"),
        ("routes: [{id: 2, uri: \"${{GONE}}\"}]\n#END", "line 1: failed to handle configuration"),
    ] {
        followed.replace(text);
        followed.until_stale(why).await;
        assert_eq!(followed.keys().await, ["/routes/1"]);
    }
    fs::remove_file(followed.path()).unwrap();
    followed.until_stale("No such file").await;
    assert_eq!(followed.keys().await, ["/routes/1"]);
    // The same file as before is good again, too.
    followed.replace(good);
    until(|| followed.store.health() == Health::Ready).await;
    assert_eq!(followed.keys().await, ["/routes/1"]);
}

#[tokio::test]
async fn a_refused_resource_keeps_its_previous_version_if_it_has_an_id_of_its_own() {
    let text = "routes: [{id: 1, uri: /a}, {uri: /b}, {id: 3, uri: /c}]\n#END";
    let followed = Followed::start("apisix.yaml", Format::Yaml, Some(text));
    followed.replace(
        "routes: [{id: 1, uri: /A, bad: 1}, {uri: /b, bad: 1}, {id: 4, uri: /d, bad: 1}, {id: 5}]\n#END",
    );
    followed.store.reread();
    let expected = [
        ("/routes/1".to_owned(), serde_json::json!({"id": "1", "uri": "/a"})),
        ("/routes/5".to_owned(), serde_json::json!({"id": "5"})),
    ];
    assert_eq!(followed.content().await, expected);
    assert_eq!(followed.store.health(), Health::Ready, "the file as a whole is good");
}

#[tokio::test]
async fn a_file_may_come_later_and_may_be_json() {
    let followed = Followed::start("apisix.json", Format::Json, None);
    followed.until_stale("No such file").await;
    assert!(followed.keys().await.is_empty());
    followed.replace(
        r#"{"consumers": [{"username": "jack"}, {"id": "jack/credentials/c", "plugins": {}}], "plugins": [{"name": "p"}]}"#,
    );
    until(|| followed.store.health() == Health::Ready).await;
    assert_eq!(followed.keys().await, ["/consumers/jack", "/consumers/jack/credentials/c"]);
    assert_eq!(*followed.judge.0.lock().unwrap(), [Some(vec!["p".to_owned()])]);
    followed.replace("{\n  \"routes\": [,]\n}");
    followed.until_stale("line 2, column 14").await;
}

#[tokio::test]
async fn a_link_that_points_elsewhere_is_a_change() {
    let followed = Followed::start("apisix.yaml", Format::Yaml, None);
    let at = |name: &str| followed.folder.path().join(name);
    let link = |to: &Path| {
        let _ = fs::remove_file(at("link"));
        std::os::unix::fs::symlink(to, at("link")).unwrap();
        fs::rename(at("link"), followed.path()).unwrap();
    };
    for (name, key) in [("a", "/routes/a"), ("b", "/routes/b")] {
        fs::write(at(name), format!("routes: [{{id: {name}}}]\n#END")).unwrap();
        link(&at(name));
        followed.store.reread();
        assert_eq!(followed.keys().await, [key]);
    }
}

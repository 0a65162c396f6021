//! Killing the process at any moment loses nothing that was answered.
//!
//! The test starts itself as a child that writes and reports each answer on its standard output;
//! the parent kills it at a random moment, opens the file and compares. Some rounds begin without
//! a file, so that its creation is killed too.

use std::{
    collections::BTreeMap,
    env,
    hash::{BuildHasher, Hasher, RandomState},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use sluicegate_store::{EmbeddedStore, Expect, Put, Store};

#[test]
fn killed_at_any_moment_it_keeps_every_answered_write_whole() {
    if let Ok(path) = env::var(CHILD) {
        return child(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let seed = RandomState::new().build_hasher().finish();
    println!("seed {seed}");
    let mut random = Random(seed);
    let (mut path, mut known) = (folder.path().join("store-0.redb"), Known::default());
    let mut answered = 0;
    for round in 0..KILLS {
        if round % 10 == 0 {
            (path, known) = (folder.path().join(format!("store-{round}.redb")), Known::default());
        }
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "killed_at_any_moment_it_keeps_every_answered_write_whole"])
            .arg("--nocapture")
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut report = Vec::new();
        // Most kills come while it writes; some anywhere, creation and opening included.
        if random.below(4) > 0 {
            let ready = lines.by_ref().map(Result::unwrap).find(|line| line.ends_with("ready"));
            assert!(ready.is_some(), "the child opens the store, round {round}");
            // Counted in answers, not in time: a slow machine writes late.
            let answers = 1 + random.below(ANSWERS_MAX) as usize;
            report.extend(lines.by_ref().map(Result::unwrap).take(answers));
            assert_eq!(report.len(), answers, "the child writes, round {round}");
            std::thread::sleep(Duration::from_micros(random.below(2_000)));
        } else {
            std::thread::sleep(Duration::from_micros(random.below(30_000)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // A line without its end was cut off by the kill: it was not a whole answer.
        report.extend(lines.map_while(Result::ok));
        let whole = report.iter().filter_map(|line| line.strip_suffix(';'));
        answered += whole.filter_map(|line| known.learn(line)).count();
        if path.exists() {
            known.check(&path, round);
        } else {
            assert!(known.values.is_empty());
        }
    }
    println!("{answered} answered writes in {KILLS} kills");
    assert!(answered > KILLS, "most kills came while it wrote");
}

/// What the children reported.
#[derive(Default)]
struct Known {
    /// Per key, the last answered state: its number, and whether it was deleted.
    values: BTreeMap<String, (u64, bool)>,
    revision: u64,
}

impl Known {
    /// `ack KEY NUMBER put|delete REVISION`
    fn learn(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ').skip_while(|word| *word != "ack").skip(1);
        let (key, number) = (words.next()?, words.next()?.parse().ok()?);
        let deleted = words.next()? == "delete";
        self.revision = self.revision.max(words.next()?.parse().ok()?);
        self.values.insert(key.to_owned(), (number, deleted));
        Some(())
    }

    #[track_caller]
    fn check(&mut self, path: &Path, round: usize) {
        let store = EmbeddedStore::open(path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let listing = runtime.block_on(store.list("/")).unwrap();
        assert!(listing.revision >= self.revision, "round {round}: the revision went back");
        let mut found = BTreeMap::new();
        for entry in listing.entries {
            let value: Value = serde_json::from_slice(&entry.value).expect("a whole JSON value");
            let number = value["number"].as_u64().expect("a number");
            assert_eq!(value["key"], *entry.key, "round {round}");
            assert_eq!(value["pad"], pad(number), "round {round}: half a value");
            assert!(entry.modified <= listing.revision && entry.created <= entry.modified);
            found.insert(entry.key.to_string(), number);
        }
        for (key, (number, deleted)) in &self.values {
            // What came after the last answer may be in or not, but never less than the answer.
            match found.get(key) {
                Some(found) if deleted | (found >= number) => {
                    assert!(found >= number, "round {round}: {key} came back as {found}");
                }
                None if *deleted => {}
                // Its deletion was next, and was made without being answered.
                None if (number + 1) % DELETE_EVERY == 0 => {}
                other => panic!("round {round}: {key} was {number} ({deleted}), is {other:?}"),
            }
        }
        self.values = found.into_iter().map(|(key, number)| (key, (number, false))).collect();
        self.revision = listing.revision;
    }
}

/// Writes in a loop from several clients until it is killed.
fn child(path: &Path) {
    let store = Arc::new(EmbeddedStore::open(path).unwrap());
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
    };
    say("ready\n".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clients = (0..4).map(|client| {
        let store = Arc::clone(&store);
        async move {
            for step in 0.. {
                let key = format!("/routes/{client}-{}", step % 5);
                let last = store.get(&key).await.unwrap().map(|entry| {
                    serde_json::from_slice::<Value>(&entry.value).unwrap()["number"]
                        .as_u64()
                        .unwrap()
                });
                // After a deletion the count goes on from the revision, so it never repeats.
                let number = match last {
                    Some(last) => last + 1,
                    None => store.next_id().await.unwrap() * DELETE_EVERY,
                };
                let (what, revision) = if number % DELETE_EVERY == 0 && last.is_some() {
                    ("delete", store.delete(&key, Expect::Any).await.unwrap().unwrap())
                } else {
                    let value =
                        json!({"key": key, "number": number, "pad": pad(number)}).to_string();
                    let written =
                        store.put(&key, value.as_bytes().into(), Put::default()).await.unwrap();
                    ("put", written.entry.modified)
                };
                say(format!("ack {key} {number} {what} {revision};\n"));
            }
        }
    });
    runtime.block_on(async {
        let tasks = clients.collect::<Vec<_>>();
        let [a, b, c, d] = <[_; 4]>::try_from(tasks).ok().unwrap();
        tokio::join!(a, b, c, d);
    });
}

/// Of varying length, so that half a value shows.
fn pad(number: u64) -> String {
    number.to_string().repeat(number as usize % 300)
}

/// Xorshift: enough to choose moments.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

const KILLS: usize = 80;
/// How many answers are waited for before a kill that is to come while it writes.
const ANSWERS_MAX: u64 = 16;
const CHILD: &str = "SLUICEGATE_TEST_KILL_CHILD";
/// Every so many changes of a key, one is its deletion.
const DELETE_EVERY: u64 = 7;

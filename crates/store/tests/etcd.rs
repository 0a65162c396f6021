//! What only the etcd store has to stand: changes by others, lost watches, compaction, hosts that
//! die, a cluster that is gone, users, certificates, the copy on disk.

use std::{
    future::Future,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_process::{Etcd, base64};
use sluicegate_store::{
    Change, ETCD_WRITE_TIME_MAX, EtcdOptions, EtcdStore, Event, Expect, Health, Put, Store,
    StoreError, Watch,
};

#[path = "../../testkit/src/certs.rs"]
#[expect(dead_code, unreachable_pub, reason = "the whole kit is used elsewhere")]
mod certs;
#[path = "../../testkit/src/etcd.rs"]
#[expect(dead_code, unreachable_pub, reason = "the whole kit is used elsewhere")]
mod etcd_process;
#[path = "../../testkit/src/port.rs"]
#[expect(unreachable_pub, reason = "the whole kit is used elsewhere")]
mod port;

#[tokio::test]
async fn what_others_write_is_listed_and_watched_and_placeholders_are_not() {
    let Some(etcd) = Etcd::start(1) else { return };
    etcd.put("/apisix/routes/", "init_dir");
    etcd.put("/apisix/routes/1", "{}");
    etcd.put("/apisix/routes/2", "no json");
    etcd.put("/apisix2/routes/1", "{}");
    etcd.put("/other", "{}");
    etcd.put("/apisix/gen_id", "1");
    let store = open(options(&etcd)).await;
    let (listing, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let keys: Vec<&str> = listing.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["/routes/1", "/routes/2"]);
    assert!(listing.entries[0].created < listing.entries[1].created);

    etcd.put("/other", "{}");
    etcd.put("/apisix/services/", "init_dir");
    etcd.put("/apisix/services/1", "{}");
    etcd.delete("/apisix/services/");
    etcd.delete("/apisix/routes/1");
    let events = read(&mut watch, 2).await;
    let keys: Vec<&str> = events.iter().map(|event| &*event.key).collect();
    assert_eq!(keys, ["/services/1", "/routes/1"]);
    assert_eq!(events[1].change, Change::Delete);
}

#[tokio::test]
async fn keys_that_change_together_are_delivered_together() {
    let Some(etcd) = Etcd::start(1) else { return };
    let store = open(options(&etcd)).await;
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    let puts: Vec<String> = (0..100)
        .map(|n| {
            let (key, value) =
                (base64(&format!("/apisix/routes/{n}")), base64(&"x".repeat(30_000)));
            format!(r#"{{"request_put":{{"key":"{key}","value":"{value}"}}}}"#)
        })
        .collect();
    let body = format!(r#"{{"success":[{}]}}"#, puts.join(","));
    let answer = etcd.post(0, "/v3/kv/txn", &body).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let events = within(30_000, watch.changes()).await.expect("in time").unwrap();
    assert_eq!(events.len(), 100, "one revision is never delivered in parts");
    assert!(events.iter().all(|event| event.revision == events[0].revision));
}

#[tokio::test]
async fn many_and_large_entries_are_listed_over_many_pages() {
    let Some(etcd) = Etcd::start(1) else { return };
    // Megabytes on a busy machine.
    let write_time = Duration::from_secs(30);
    let first = open(EtcdOptions { write_time, ..options(&etcd) }).await;
    let value: Arc<[u8]> = vec![b'x'; 1 << 20].into();
    for n in 0..12 {
        first.put(&format!("/large/{n:02}"), Arc::clone(&value), Put::default()).await.unwrap();
    }
    for batch in 0..45 {
        let puts: Vec<String> = (0..100)
            .map(|n| {
                let key = base64(&format!("/apisix/routes/{:05}", batch * 100 + n));
                format!(r#"{{"request_put":{{"key":"{key}","value":"{}"}}}}"#, base64("{}"))
            })
            .collect();
        let body = format!(r#"{{"success":[{}]}}"#, puts.join(","));
        assert!(etcd.post(0, "/v3/kv/txn", &body).unwrap().starts_with("HTTP/1.1 200"));
    }
    let second = open(options(&etcd)).await;
    let listing = second.list("/").await.unwrap();
    assert_eq!(listing.entries.len(), 12 + 4_500);
    assert!(listing.entries.windows(2).all(|pair| pair[0].key < pair[1].key));
    assert!(listing.entries[..12].iter().all(|entry| entry.value == value));
}

#[tokio::test]
async fn a_write_is_seen_by_every_other_gateway_within_a_second() {
    let Some(etcd) = Etcd::start(1) else { return };
    let (one, two) = (open(options(&etcd)).await, open(options(&etcd)).await);
    let (_, mut watch) = two.snapshot_and_watch("/").await.unwrap();
    for n in 0..20 {
        let entry = put(&one, "/routes/1", &n.to_string()).await;
        let began = Instant::now();
        let events = read(&mut watch, 1).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(events[0].change, Change::Put(entry));
    }
}

#[tokio::test]
async fn of_changes_by_two_gateways_at_once_none_is_lost() {
    let Some(etcd) = Etcd::start(1) else { return };
    let stores = [open(options(&etcd)).await, open(options(&etcd)).await];
    put(&stores[0], "/counter", "0").await;
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let store = Arc::clone(&stores[client % 2]);
            tokio::spawn(async move {
                let mut conflicts = 0;
                for _ in 0..25 {
                    loop {
                        // The other gateway's first write may still be on its way here.
                        let Some(old) = store.get("/counter").await.unwrap() else {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            continue;
                        };
                        let now: u64 = std::str::from_utf8(&old.value).unwrap().parse().unwrap();
                        let new = (now + 1).to_string().into_bytes().into();
                        let expect = Expect::Revision(old.modified);
                        match store.put("/counter", new, expect.into()).await {
                            Ok(_) => break,
                            Err(StoreError::Conflict { .. }) => conflicts += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
                conflicts
            })
        })
        .collect();
    let mut conflicts = 0;
    for client in clients {
        conflicts += client.await.unwrap();
    }
    assert!(conflicts > 0, "they did get into each other's way");
    assert!(conflicts < 25 * 4 * 20, "a conflict shows what it met: {conflicts} tries in vain");
    // The last one to write has answered; the other gateway may not have been told yet.
    let last = put(&stores[0], "/last", "").await.modified;
    until("both show everything", || async {
        let shown = stores[1].get("/last").await.unwrap();
        shown.is_some_and(|entry| entry.modified == last)
    })
    .await;
    for store in &stores {
        assert_eq!(&*store.get("/counter").await.unwrap().unwrap().value, b"100");
    }
}

#[tokio::test]
async fn an_entry_with_a_time_to_live_is_gone_after_it_everywhere() {
    let Some(etcd) = Etcd::start(1) else { return };
    let (one, two) = (open(options(&etcd)).await, open(options(&etcd)).await);
    let how = Put { expect: Expect::Absent, ttl: Some(Duration::from_millis(900)), clears: false };
    one.put("/routes/1", bytes("{}"), how).await.unwrap();
    put(&one, "/routes/2", "{}").await;
    until("two shows both", || async { two.list("/").await.unwrap().entries.len() == 2 }).await;
    until("both show one", || async {
        let one = one.list("/").await.unwrap().entries.len();
        one == 1 && two.list("/").await.unwrap().entries.len() == 1
    })
    .await;
}

#[tokio::test]
async fn after_a_lost_connection_and_a_compaction_only_changes_are_delivered() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let store = open(options(&etcd)).await;
    for key in ["/routes/1", "/routes/2", "/routes/3"] {
        put(&store, key, "old").await;
    }
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    etcd.kill(0);
    until("it is noticed", || async { store.health() != Health::Ready }).await;
    assert_eq!(store.list("/").await.unwrap().entries.len(), 3, "what was read last is shown");
    etcd.launch(0);
    // Before the gateway is back, changes are made and forgotten.
    etcd.wait_until_it_takes_writes();
    etcd.put("/apisix/routes/1", "new");
    etcd.delete("/apisix/routes/2");
    etcd.put("/apisix/routes/4", "new");
    let revision = etcd.post(0, "/v3/kv/range", r#"{"key":"AA=="}"#).unwrap();
    let revision = revision.split(r#""revision":""#).nth(1).unwrap().split('"').next().unwrap();
    let body = format!(r#"{{"revision":"{revision}"}}"#);
    assert!(etcd.post(0, "/v3/kv/compaction", &body).unwrap().starts_with("HTTP/1.1 200"));

    let mut keys: Vec<_> = read(&mut watch, 3).await.into_iter().map(|e| e.key).collect();
    keys.sort();
    assert_eq!(
        keys.iter().map(|key| &**key).collect::<Vec<_>>(),
        ["/routes/1", "/routes/2", "/routes/4"]
    );
    until("it is followed again", || async { store.health() == Health::Ready }).await;
    put(&store, "/routes/5", "after").await;
    assert_eq!(&*read(&mut watch, 1).await[0].key, "/routes/5");
}

#[tokio::test]
async fn an_etcd_that_starts_over_ends_every_watch_and_is_shown_as_it_is() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let store = open(options(&etcd)).await;
    for n in 0..20 {
        put(&store, &format!("/routes/{n}"), "old").await;
    }
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    etcd.kill(0);
    etcd.wipe(0);
    etcd.launch(0);
    etcd.wait_until_it_takes_writes();
    etcd.put("/apisix/routes/x", "restored");
    let ended = within(15_000, watch.changes()).await.expect("the watch ends");
    assert!(matches!(ended, Err(StoreError::Compacted { .. })), "{ended:?}");
    until("what it holds now is shown", || async {
        let entries = store.list("/").await.unwrap().entries;
        entries.iter().map(|entry| &*entry.key).eq(["/routes/x"])
    })
    .await;
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    put(&store, "/routes/y", "new").await;
    assert_eq!(&*read(&mut watch, 1).await[0].key, "/routes/y");
}

#[tokio::test]
async fn a_host_that_falls_silent_is_left_for_another_one() {
    let Some(etcd) = Etcd::start(3) else { return };
    let store = open(options(&etcd)).await;
    let (_, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    // Stopped, not killed: connections stay open and nothing ever comes.
    for member in 0..3 {
        signal("-STOP", etcd.pid(member));
        let key = format!("/apisix/routes/{member}");
        let other = (member + 1) % 3;
        until("the others take writes", || async {
            let body = format!(r#"{{"key":"{}","value":"e30="}}"#, base64(&key));
            etcd.post(other, "/v3/kv/put", &body).is_ok_and(|answer| answer.contains("revision"))
        })
        .await;
        let events = within(15_000, watch.changes()).await.expect("the change comes").unwrap();
        assert_eq!(events[0].key.as_ref(), format!("/routes/{member}"));
        signal("-CONT", etcd.pid(member));
        // Whatever was tried more than once while the leader was sought is drained.
        while within(500, watch.changes()).await.is_some() {}
    }
}

#[tokio::test]
async fn a_write_survives_the_death_of_any_member_and_without_a_majority_says_what_it_knows() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let store = open(options(&etcd)).await;
    let mut last = put(&store, "/routes/1", "0").await;
    for round in 1..=2 {
        let victim = match round {
            1 => etcd.leader().unwrap(),
            _ => (etcd.leader().unwrap() + 1) % 3,
        };
        etcd.kill(victim);
        let began = Instant::now();
        let expect = Expect::Revision(last.modified);
        let written = store.put("/routes/1", bytes(&round.to_string()), expect.into()).await;
        last = written.expect("two of three are a majority").entry;
        assert!(began.elapsed() < ETCD_WRITE_TIME_MAX + GRACE, "{:?}", began.elapsed());
        assert_eq!(store.get("/routes/1").await.unwrap().unwrap(), last);
        etcd.launch(victim);
        etcd.wait_until_it_takes_writes();
    }
    etcd.kill(0);
    etcd.kill(1);
    for expect in [Expect::Revision(last.modified), Expect::Any] {
        let began = Instant::now();
        let refused = store.put("/routes/1", bytes("minority"), expect.into()).await.unwrap_err();
        assert!(began.elapsed() < ETCD_WRITE_TIME_MAX + GRACE, "{:?}", began.elapsed());
        let known =
            matches!(refused, StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. });
        assert!(known, "{refused:?}");
    }
    etcd.kill(2);
    let refused = store.delete("/routes/1", Expect::Any).await.unwrap_err();
    let known =
        matches!(refused, StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. });
    assert!(known, "{refused:?}");
    until("it is noticed", || async { store.health() != Health::Ready }).await;
    // Nobody is there: the second write knows that nothing happened.
    let refused = store.put("/routes/1", bytes("nobody"), Put::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");
    assert!(refused.to_string().contains("127.0.0.1"), "{refused}");
}

#[tokio::test]
async fn without_etcd_a_start_uses_the_copy_and_catches_up_when_it_returns() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("etcd.copy");
    let with_copy = || EtcdOptions { copy: Some(copy.clone()), ..options(&etcd) };
    let (options, again) = (with_copy(), with_copy());
    let store = open(options).await;
    put(&store, "/routes/1", "kept").await;
    let changed = put(&store, "/routes/2", "old").await;
    put(&store, "/routes/3", "goes").await;
    until("the copy is written", || async { copy.exists() }).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    drop(store);
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);

    etcd.kill(0);
    let began = Instant::now();
    let store = open(again).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let Health::Stale { reason, .. } = store.health() else { panic!("it is stale") };
    assert!(reason.contains("copy") && reason.contains("127.0.0.1"), "{reason}");
    let (listing, mut watch) = store.snapshot_and_watch("/").await.unwrap();
    assert_eq!(listing.entries.len(), 3);
    assert_eq!(listing.entries[1], changed);
    assert!(listing.revision >= changed.modified);

    etcd.launch(0);
    etcd.wait_until_it_takes_writes();
    etcd.put("/apisix/routes/2", "new");
    etcd.delete("/apisix/routes/3");
    let mut events = read(&mut watch, 2).await;
    events.sort_by(|a, b| a.key.cmp(&b.key));
    assert!(matches!(&events[0].change, Change::Put(entry) if &*entry.value == b"new"));
    assert_eq!((&*events[1].key, &events[1].change), ("/routes/3", &Change::Delete));
    until("it is followed again", || async { store.health() == Health::Ready }).await;
}

#[tokio::test]
async fn without_etcd_and_copy_a_start_ends_and_names_the_hosts() {
    let nobody = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let hosts = vec![nobody(), nobody()];
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("etcd.copy");
    std::fs::write(&copy, "half a cop").unwrap();
    let options = EtcdOptions { copy: Some(copy), ..EtcdOptions::new(hosts.clone()) };
    let error = EtcdStore::open(options).await.unwrap_err().to_string();
    for host in &hosts {
        assert!(error.contains(host), "{error}");
    }
    assert!(error.contains("deployment.etcd.host"), "{error}");
}

#[tokio::test]
async fn a_user_signs_in_again_when_its_token_is_gone_and_a_data_plane_only_reads() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    etcd.put("/apisix/routes/1", "{}");
    let read = format!(
        r#"{{"name":"reader","perm":{{"permType":"READ","key":"{}","range_end":"{}"}}}}"#,
        base64("/apisix/"),
        base64("/apisix0")
    );
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"root-secret"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/add", r#"{"name":"reader","password":"reader-secret"}"#),
        ("role/add", r#"{"name":"reader"}"#),
        ("role/grant", read.as_str()),
        ("user/grant", r#"{"user":"reader","role":"reader"}"#),
        ("enable", "{}"),
    ] {
        let answer = etcd.post(0, &format!("/v3/auth/{path}"), body).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let user = |name: &str| EtcdOptions {
        user: Some(name.to_owned()),
        password: Some(format!("{name}-secret")),
        startup_retry: 1,
        ..options(&etcd)
    };
    let (root, reader) = (user("root"), user("reader"));
    for (options, told) in [
        (EtcdOptions { startup_retry: 1, ..options(&etcd) }, "user name is empty"),
        (EtcdOptions { password: Some("wrong".into()), ..root.clone() }, "authentication failed"),
    ] {
        assert!(!format!("{options:?}").contains("secret"));
        let error = EtcdStore::open(options).await.unwrap_err().to_string();
        assert!(error.contains(told) && !error.contains("wrong"), "{error}");
    }

    let writer = open(root).await;
    let data_plane = open(EtcdOptions { read_only: true, ..reader.clone() }).await;
    let no_rights = open(reader).await;
    put(&writer, "/routes/2", "{}").await;
    until("the data plane follows", || async {
        data_plane.list("/").await.unwrap().entries.len() == 2
    })
    .await;
    let refused = data_plane.put("/routes/3", bytes("{}"), Put::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly { .. }), "{refused:?}");
    for refused in [
        data_plane.delete("/routes/1", Expect::Any).await.map(drop),
        data_plane.next_id().await.map(drop),
    ] {
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
    }
    let refused = no_rights.put("/routes/3", bytes("{}"), Put::default()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");
    assert!(refused.to_string().contains("permission denied"), "{refused}");

    // Tokens are kept in memory: etcd forgets them when it restarts. Its watch is all that a data
    // plane says to etcd, and etcd takes it before it says that it does not know the token.
    tokio::time::sleep(Duration::from_millis(500)).await;
    etcd.kill(0);
    etcd.launch(0);
    etcd.wait_until_it_takes_writes();
    put(&writer, "/routes/4", "{}").await;
    until("the data plane follows again", || async {
        data_plane.get("/routes/4").await.unwrap().is_some()
    })
    .await;
    assert_eq!(data_plane.health(), Health::Ready);
}

#[tokio::test]
async fn a_refused_write_leaves_no_lease_behind() {
    let Some(etcd) = Etcd::start(1) else { return };
    let store = open(options(&etcd)).await;
    put(&store, "/routes/1", "there").await;
    let ttl = Some(Duration::from_secs(600));
    let leases = || {
        let answer = etcd.post(0, "/v3/lease/leases", "{}").unwrap();
        answer.matches(r#""ID":"#).count()
    };
    for _ in 0..5 {
        let how = Put { expect: Expect::Absent, ttl, clears: false };
        let refused = store.put("/routes/1", bytes("x"), how).await.unwrap_err();
        assert!(matches!(refused, StoreError::Conflict { .. }), "{refused:?}");
    }
    until("no lease is left", || async { leases() == 0 }).await;
    store.put("/routes/2", bytes("x"), Put { ttl, ..Put::default() }).await.unwrap();
    assert_eq!(leases(), 1, "one that is used stays");
}

#[tokio::test]
async fn tls_checks_etcd_and_shows_our_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let authority = certs::Authority::new();
    let server = authority.issue(&["127.0.0.1", "etcd.test"]);
    let client = authority.issue(&["gateway"]);
    let (ca, cert, key) = (
        file("ca.pem", &authority.pem()),
        file("server.pem", &server.cert),
        file("server.key", &server.key),
    );
    let (our_cert, our_key) = (file("our.pem", &client.cert), file("our.key", &client.key));
    let other = file("other.pem", &certs::Authority::new().pem());
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let arguments = [
        "--cert-file",
        &text(&cert),
        "--key-file",
        &text(&key),
        "--trusted-ca-file",
        &text(&ca),
        "--client-cert-auth",
    ];
    let Some(etcd) = Etcd::with(1, "https", &arguments) else { return };
    let right = |change: &dyn Fn(&mut EtcdOptions)| {
        let mut options = options(&etcd);
        options.startup_retry = 1;
        options.tls.ca = Some(ca.clone());
        (options.tls.cert, options.tls.key) = (Some(our_cert.clone()), Some(our_key.clone()));
        change(&mut options);
        options
    };
    for (options, told) in [
        (right(&|_| {}), None),
        (right(&|options| options.tls.sni = Some("etcd.test".into())), None),
        (
            right(&|options| {
                options.tls.verify = false;
                options.tls.ca = None;
            }),
            None,
        ),
        (right(&|options| options.tls.sni = Some("other.test".into())), Some("TLS")),
        (right(&|options| options.tls.ca = Some(other.clone())), Some("TLS")),
        (right(&|options| (options.tls.cert, options.tls.key) = (None, None)), Some("127.0.0.1")),
        (right(&|options| options.tls.ca = Some(our_key.clone())), Some("our.key")),
    ] {
        match (EtcdStore::open(options).await, told) {
            (Ok(store), None) => {
                let store: Arc<dyn Store> = Arc::new(store);
                put(&store, "/routes/1", "{}").await;
            }
            (Err(error), Some(told)) if error.to_string().contains(told) => {}
            (found, told) => panic!("{told:?}: {:?}", found.map(drop)),
        }
    }
}

fn options(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions { resync_delay: Duration::from_secs(1), ..EtcdOptions::new(etcd.hosts()) }
}

async fn open(options: EtcdOptions) -> Arc<dyn Store> {
    Arc::new(EtcdStore::open(options).await.unwrap())
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> sluicegate_store::Entry {
    store.put(key, bytes(value), Put::default()).await.unwrap().entry
}

fn bytes(value: &str) -> Arc<[u8]> {
    value.as_bytes().into()
}

async fn read(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(within(10_000, watch.changes()).await.expect("a change in time").unwrap());
    }
    assert_eq!(events.len(), count);
    events
}

async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ask().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn within<T>(ms: u64, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(ms), future).await.ok()
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// What a busy machine adds to a limit that is kept.
const GRACE: Duration = Duration::from_secs(1);

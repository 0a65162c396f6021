//! A change whose answer does not come is made once or not at all, and what is said of it is true.
//!
//! The store speaks to etcd through a gate that swallows requests and answers, or keeps a request
//! back and delivers it much later, as a machine does that was stopped.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use etcd_process::Etcd;
use sluicegate_store::{Entry, EtcdOptions, EtcdStore, Expect, Put, Store, StoreError};

#[path = "../../testkit/src/etcd.rs"]
#[expect(dead_code, unreachable_pub, reason = "the whole kit is used elsewhere")]
mod etcd_process;
#[path = "../../testkit/src/port.rs"]
#[expect(unreachable_pub, reason = "the whole kit is used elsewhere")]
mod port;

#[tokio::test]
async fn a_change_that_somebody_else_made_meanwhile_is_not_taken_for_ones_own() {
    let Some(setup) = Setup::new("1").await else { return };
    let other = Arc::clone(&setup.etcd);
    // Both count from 1 to 2. The other one is first.
    setup.gate.next(move |_| {
        other.put(ETCD_KEY, "2");
        Then::Close
    });
    let expect = Expect::Revision(setup.first.modified);
    let refused = setup.store.put(KEY, bytes("2"), expect.into()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused:?}");
    let StoreError::Conflict { found, .. } = refused else { return };
    assert_eq!(setup.now().await.map(|entry| entry.modified), found);

    let other = Arc::clone(&setup.etcd);
    setup.gate.next(move |_| {
        other.delete(ETCD_KEY);
        Then::Close
    });
    let refused = setup.store.delete(KEY, Expect::Revision(found.unwrap())).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { found: None, .. }), "{refused:?}");
}

#[tokio::test]
async fn a_change_that_was_never_done_is_made_when_it_is_sent_again() {
    let Some(setup) = Setup::new("old").await else { return };
    setup.gate.next(|_| Then::Close);
    let expect = Expect::Revision(setup.first.modified);
    let written = setup.store.put(KEY, bytes("new"), expect.into()).await.unwrap();
    assert_eq!((written.created, written.entry.created), (false, setup.first.created));
    assert_eq!(setup.now().await, Some(written.entry.clone()));

    setup.gate.next(|_| Then::Close);
    let gone = setup.store.delete(KEY, Expect::Revision(written.entry.modified)).await.unwrap();
    assert!(gone.is_some());
    setup.gate.next(|_| Then::Close);
    assert_eq!(setup.store.delete(KEY, Expect::Any).await.unwrap(), None);
    setup.gate.next(|_| Then::Close);
    let many = vec![(KEY.into(), Some(bytes("x"))), ("/routes/2".into(), Some(bytes("y")))];
    setup.store.write_all(many).await.unwrap();
    assert_eq!(setup.store.list("/").await.unwrap().entries.len(), 2);
}

#[tokio::test]
async fn a_change_that_was_done_unanswered_is_known_even_when_it_is_written_over() {
    let Some(setup) = Setup::new("old").await else { return };
    // Whatever was expected, the answer is that of the change, and the later one stays.
    let mut standing = setup.first.clone();
    for (round, exact) in [true, false].into_iter().enumerate() {
        let other = Arc::clone(&setup.etcd);
        let later = format!("later {round}");
        let put = later.clone();
        setup.gate.next(move |deliver| {
            deliver();
            other.put(ETCD_KEY, &put);
            Then::Close
        });
        let expect = if exact { Expect::Revision(standing.modified) } else { Expect::Any };
        let written = setup.store.put(KEY, bytes("mine"), expect.into()).await.unwrap();
        assert!(written.entry.modified > standing.modified, "exact={exact}");
        assert_eq!((written.created, written.entry.created), (false, standing.created));
        standing = setup.reads(&later).await;
        assert!(standing.modified > written.entry.modified, "exact={exact}");
    }

    // Deleted, and made anew by somebody else before it is known.
    let other = Arc::clone(&setup.etcd);
    setup.gate.next(move |deliver| {
        deliver();
        other.put(ETCD_KEY, "made anew");
        Then::Close
    });
    assert!(setup.store.delete(KEY, Expect::Any).await.unwrap().is_some());
    standing = setup.reads("made anew").await;
    assert_eq!(standing.created, standing.modified);

    // Created, and deleted before it is known.
    setup.etcd.delete(ETCD_KEY);
    let other = Arc::clone(&setup.etcd);
    setup.gate.next(move |deliver| {
        deliver();
        other.delete(ETCD_KEY);
        Then::Close
    });
    let written = setup.store.put(KEY, bytes("new"), Expect::Absent.into()).await.unwrap();
    assert!(written.created && written.entry.created == written.entry.modified);
    assert_eq!(setup.now().await, None, "it is not created twice");
}

#[tokio::test]
async fn what_a_stopped_machine_does_late_changes_nothing_any_more() {
    let Some(setup) = Setup::new("old").await else { return };
    // Each change is sent, kept back, sent again, answered; another one follows; then the first
    // sending is let go.
    setup.gate.next(|_| Then::Keep);
    setup.store.put(KEY, bytes("mine"), Put::default()).await.unwrap();
    setup.etcd.put(ETCD_KEY, "theirs");
    setup.gate.let_go();
    assert_eq!(&*setup.reads("theirs").await.value, b"theirs");

    setup.gate.next(|_| Then::Keep);
    assert!(setup.store.delete(KEY, Expect::Any).await.unwrap().is_some());
    setup.etcd.put(ETCD_KEY, "made anew");
    setup.gate.let_go();
    setup.reads("made anew").await;
    setup.etcd.delete(ETCD_KEY);
    setup.settle().await;

    setup.gate.next(|_| Then::Keep);
    setup.store.put(KEY, bytes("mine"), Expect::Absent.into()).await.unwrap();
    setup.etcd.delete(ETCD_KEY);
    setup.gate.let_go();
    assert_eq!(setup.now().await, None, "what was deleted stays deleted");

    // What was refused stays undone, too.
    let other = Arc::clone(&setup.etcd);
    setup.gate.next(move |_| {
        other.put(ETCD_KEY, "theirs");
        Then::Keep
    });
    let refused = setup.store.put(KEY, bytes("mine"), Expect::Absent.into()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused:?}");
    setup.etcd.delete(ETCD_KEY);
    setup.gate.let_go();
    assert_eq!(setup.now().await, None, "what was refused is not made later");
}

/// A store behind a gate to one etcd.
struct Setup {
    etcd: Arc<Etcd>,
    gate: Gate,
    store: Arc<dyn Store>,
    first: Entry,
}

impl Setup {
    /// With an entry at [`KEY`].
    async fn new(value: &str) -> Option<Self> {
        let etcd = Arc::new(Etcd::start(1)?);
        let gate = Gate::new(etcd.addr(0));
        let options = EtcdOptions::new(vec![format!("http://{}", gate.addr)]);
        let store: Arc<dyn Store> = Arc::new(EtcdStore::open(options).await.unwrap());
        let first = store.put(KEY, bytes(value), Put::default()).await.unwrap().entry;
        Some(Self { etcd, gate, store, first })
    }

    /// Waits until the store shows all that etcd holds.
    async fn settle(&self) {
        let last = self.store.put("/settled", bytes("{}"), Put::default()).await.unwrap();
        assert!(self.store.get("/settled").await.unwrap().is_some_and(|now| now == last.entry));
        self.store.delete("/settled", Expect::Any).await.unwrap();
    }

    /// What stands in etcd.
    async fn now(&self) -> Option<Entry> {
        self.settle().await;
        self.store.get(KEY).await.unwrap()
    }

    #[track_caller]
    fn reads<'a>(&'a self, value: &'a str) -> impl Future<Output = Entry> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let now = self.now().await.unwrap_or_else(|| panic!("nothing is there, {caller}"));
            assert_eq!(std::str::from_utf8(&now.value), Ok(value), "{caller}");
            now
        }
    }
}

/// Passes requests on, one per connection. The next transaction may have a plan.
struct Gate {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    plans: Mutex<VecDeque<Plan>>,
    kept: Mutex<Vec<Vec<u8>>>,
    etcd: OnceLock<SocketAddr>,
}

/// Is given what delivers the request and swallows the answer.
type Plan = Box<dyn FnOnce(&dyn Fn()) -> Then + Send>;

enum Then {
    /// The connection ends without an answer.
    Close,
    /// The same, and the request is kept for later.
    Keep,
}

impl Gate {
    fn new(etcd: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { etcd: etcd.into(), ..Shared::default() });
        let inner = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&inner);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { addr, shared }
    }

    fn next(&self, plan: impl FnOnce(&dyn Fn()) -> Then + Send + 'static) {
        self.shared.plans.lock().unwrap().push_back(Box::new(plan));
    }

    /// Delivers what was kept back.
    #[track_caller]
    fn let_go(&self) {
        let kept = std::mem::take(&mut *self.shared.kept.lock().unwrap());
        assert_eq!(kept.len(), 1, "a request was kept back");
        let answer = self.shared.deliver(&kept[0]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(!answer.contains(r#""succeeded":true"#), "it is refused: {answer}");
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) {
        let Some(request) = request(&client) else { return };
        let plan = match request.starts_with(b"POST /v3/kv/txn ") {
            true => self.plans.lock().unwrap().pop_front(),
            false => None,
        };
        if let Some(plan) = plan {
            if let Then::Keep = plan(&|| drop(self.deliver(&request))) {
                self.kept.lock().unwrap().push(request);
            }
            let _ = client.shutdown(Shutdown::Both);
            return;
        }
        let Ok(mut etcd) = self.connect() else { return };
        if etcd.write_all(&request).is_ok() {
            let _ = std::io::copy(&mut etcd, &mut client);
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    fn deliver(&self, request: &[u8]) -> String {
        let mut etcd = self.connect().unwrap();
        etcd.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        etcd.write_all(request).unwrap();
        let mut answer = String::new();
        etcd.read_to_string(&mut answer).unwrap();
        answer
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.etcd.get().expect("it was given"))
    }
}

/// One request, which asks for the connection to be closed after its answer.
fn request(client: &TcpStream) -> Option<Vec<u8>> {
    let mut client = BufReader::new(client);
    let (mut request, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        client.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            request.extend_from_slice(b"Connection: close\r\n\r\n");
            break;
        }
        request.extend_from_slice(line.as_bytes());
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).ok()?;
    request.extend_from_slice(&body);
    Some(request)
}

fn bytes(value: &str) -> Arc<[u8]> {
    value.as_bytes().into()
}

const KEY: &str = "/routes/1";
const ETCD_KEY: &str = "/apisix/routes/1";

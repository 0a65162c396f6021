//! What one request thread owns, and what all of them share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::chain::Chain;
use crate::client::{Pool, TlsClients};
use crate::mirror::Mirrors;
use crate::observe::AccessLogger;
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::tls::TlsServer;

/// Shared by all request threads.
pub struct Shared {
    settings: ArcSwap<Settings>,
    settings_version: AtomicU64,
    snapshot: ArcSwap<Snapshot>,
    snapshot_version: AtomicU64,
    /// TLS towards upstreams.
    pub tls_clients: Arc<TlsClients>,
    /// TLS towards clients.
    pub tls_server: TlsServer,
    /// Request bytes held whole at this moment.
    pub buffered: Arc<AtomicU64>,
    /// No new request is taken on a kept connection.
    pub draining: AtomicBool,
    /// Requests under way.
    pub active_requests: AtomicU64,
    /// Client connections open.
    pub active_connections: AtomicU64,
    next_connection: AtomicU64,
    /// One set of counters per request thread.
    pub counters: Vec<Arc<Counters>>,
}

impl Shared {
    /// State for `settings.workers` request threads with nothing to serve yet.
    pub fn new(settings: Settings, tls_clients: Arc<TlsClients>) -> Result<Self, String> {
        let counters = (0..settings.workers).map(|_| Arc::default()).collect();
        let tls_server = TlsServer::new(&settings)?;
        Ok(Self {
            settings: ArcSwap::from_pointee(settings),
            settings_version: AtomicU64::new(1),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            snapshot_version: AtomicU64::new(1),
            tls_clients,
            tls_server,
            buffered: Arc::default(),
            draining: AtomicBool::new(false),
            active_requests: AtomicU64::new(0),
            active_connections: AtomicU64::new(0),
            next_connection: AtomicU64::new(1),
            counters,
        })
    }

    /// Every request that starts from now on sees `snapshot`.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.tls_server.publish(snapshot.certificates.clone());
        self.snapshot.store(snapshot);
        self.snapshot_version.fetch_add(1, Ordering::Release);
    }

    /// The snapshot that new requests see.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Requests that start from now on see `settings`.
    pub fn reload(&self, settings: Settings) -> Result<(), String> {
        self.tls_server.reload(&settings)?;
        self.settings.store(Arc::new(settings));
        self.settings_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The static configuration in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The sum of a counter over all request threads.
    pub fn total(&self, of: impl Fn(&Counters) -> &Count) -> u64 {
        self.counters.iter().map(|c| of(c).get()).sum()
    }
}

/// A request's hold on its snapshot.
pub type Held = Rc<Arc<Snapshot>>;

/// What one request thread owns.
pub struct Core {
    /// Which one, from 0.
    pub index: usize,
    /// What all share.
    pub shared: Arc<Shared>,
    /// Upstream connections.
    pub pool: Pool,
    /// This thread's counters.
    pub counters: Arc<Counters>,
    /// This thread's part of the access log.
    pub access_log: RefCell<Option<AccessLogger>>,
    pub(crate) buffers: RefCell<Vec<Vec<u8>>>,
    heads: RefCell<Vec<Vec<u8>>>,
    settings: RefCell<(u64, Rc<Settings>)>,
    snapshot: RefCell<(u64, Held)>,
    /// The last look at both clocks in the regular round, and at the one that only goes forward.
    clocks: Cell<(Instant, SystemTime)>,
    seen: Cell<Instant>,
    date: RefCell<(u64, String)>,
    local_time: RefCell<(u64, String)>,
    /// The address last written as text, and that text: most gateways talk to few.
    address: RefCell<(Option<SocketAddr>, String)>,
    random: RefCell<(Vec<u8>, usize)>,
    active: Cell<u64>,
    /// Chains of routes with those of consumers merged in, of the snapshot in use.
    merged: RefCell<HashMap<Merge, Arc<Chain>, foldhash::fast::FixedState>>,
    /// Wakes each open connection, so that an idle one learns of a stop.
    connections: RefCell<HashMap<u64, Option<Waker>>>,
    listeners: Cell<usize>,
    /// Copies of requests under way.
    pub(crate) mirrors: Mirrors,
}

impl Core {
    /// The state of request thread `index`.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let settings = Rc::new((*shared.settings()).clone());
        let counters = shared.counters.get(index).cloned().unwrap_or_default();
        let access_log = AccessLogger::open(&settings);
        Rc::new(Self {
            index,
            pool: Pool::default(),
            counters,
            access_log: RefCell::new(access_log),
            buffers: RefCell::default(),
            heads: RefCell::default(),
            snapshot: RefCell::new((0, Rc::new(shared.snapshot()))),
            settings: RefCell::new((shared.settings_version.load(Ordering::Acquire), settings)),
            shared,
            clocks: Cell::new((Instant::now(), now())),
            seen: Cell::new(Instant::now()),
            date: RefCell::default(),
            local_time: RefCell::default(),
            address: RefCell::default(),
            random: RefCell::default(),
            active: Cell::new(0),
            merged: RefCell::default(),
            connections: RefCell::default(),
            listeners: Cell::new(0),
            mirrors: Mirrors::default(),
        })
    }

    /// The static configuration in force.
    pub fn settings(&self) -> Rc<Settings> {
        let version = self.shared.settings_version.load(Ordering::Acquire);
        let mut mine = self.settings.borrow_mut();
        if mine.0 != version {
            *mine = (version, Rc::new((*self.shared.settings()).clone()));
            let opened = AccessLogger::open(&mine.1);
            // Where a file cannot be opened (no file handle is left, say), the log goes on in
            // the one it has.
            if opened.is_some() || mine.1.access_log.is_none() {
                *self.access_log.borrow_mut() = opened;
            }
        }
        mine.1.clone()
    }

    /// The configuration a request that starts now is served by.
    pub fn snapshot(&self) -> Held {
        let version = self.shared.snapshot_version.load(Ordering::Acquire);
        let mut mine = self.snapshot.borrow_mut();
        if mine.0 != version {
            *mine = (version, Rc::new(self.shared.snapshot()));
            self.merged.borrow_mut().clear();
        }
        mine.1.clone()
    }

    /// The plugins of a route with those of a consumer and its group merged in: made by the first
    /// request that asks, as not every consumer comes to every route.
    pub(crate) fn merged(
        &self,
        route: &Arc<Chain>,
        group: Option<&Arc<Chain>>,
        consumer: &Arc<Chain>,
    ) -> Arc<Chain> {
        let merge = Merge(route.clone(), group.cloned(), consumer.clone());
        let mut all = self.merged.borrow_mut();
        if let Some(merged) = all.get(&merge) {
            return merged.clone();
        }
        if all.len() >= MERGED_MAX {
            all.clear();
        }
        let merged = Arc::new(route.merged(group.map(|group| &**group), consumer));
        all.insert(merge, merged.clone());
        merged
    }

    /// Looks at the clock.
    pub(crate) fn look(&self) -> Instant {
        let moment = Instant::now();
        self.seen.set(moment);
        moment
    }

    /// The last look at the clock, which is 20 ns and was taken nine times a request, not four
    /// (2 % of a proxied request's time): for what follows it without a wait between, and for idle
    /// times, which are as exact as the regular round.
    pub(crate) fn last_look(&self) -> Instant {
        self.seen.get()
    }

    /// What the wall clock shows at `moment`; a change of that clock counts from the next
    /// regular round on.
    pub(crate) fn wall_clock(&self, moment: Instant) -> SystemTime {
        let (then, shown) = self.clocks.get();
        shown + moment.saturating_duration_since(then)
    }

    /// A new connection's number.
    pub(crate) fn next_connection(&self) -> u64 {
        self.shared.next_connection.fetch_add(1, Ordering::Relaxed)
    }

    /// Empty memory for a message head.
    pub(crate) fn take_head(&self) -> Vec<u8> {
        self.heads.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(1024))
    }

    /// Takes a head's memory back.
    pub(crate) fn give_head(&self, mut memory: Vec<u8>) {
        let mut heads = self.heads.borrow_mut();
        if heads.len() < HEADS_KEPT && memory.capacity() <= HEAD_KEPT_BYTES {
            memory.clear();
            heads.push(memory);
        }
    }

    /// Gives the current time as an HTTP date, made once a second.
    pub(crate) fn with_date(&self, now: SystemTime, then: impl FnOnce(&[u8])) {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            *date = (second, httpdate::fmt_http_date(now));
        }
        then(date.1.as_bytes());
    }

    /// Gives `now` as access logs write it, made once a second.
    pub(crate) fn with_local_time<R>(&self, now: SystemTime, then: impl FnOnce(&str) -> R) -> R {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut time = self.local_time.borrow_mut();
        if time.0 != second {
            *time = (second, crate::observe::time::common_log(now));
        }
        then(&time.1)
    }

    /// An address as text.
    pub(crate) fn with_address_text<R>(&self, addr: SocketAddr, then: impl FnOnce(&str) -> R) -> R {
        let mut last = self.address.borrow_mut();
        if last.0 != Some(addr) {
            *last = (Some(addr), addr.to_string());
        }
        then(&last.1)
    }

    /// Fills `out` with random bytes, drawn from the system in batches.
    pub fn random(&self, out: &mut [u8]) {
        let mut pool = self.random.borrow_mut();
        if pool.1 + out.len() > pool.0.len() {
            let mut fresh = vec![0; RANDOM_BATCH_BYTES];
            let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut fresh);
            *pool = (fresh, 0);
        }
        let at = pool.1;
        out.copy_from_slice(&pool.0[at..at + out.len()]);
        pool.1 = at + out.len();
    }

    /// A request begins; ends when the guard is dropped.
    pub(crate) fn begin_request(self: &Rc<Self>) -> ActiveRequest {
        self.active.set(self.active.get() + 1);
        self.shared.active_requests.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(self.clone())
    }

    /// A client connection is open until the guard is dropped.
    pub(crate) fn open_connection(self: &Rc<Self>) -> OpenConnection {
        let number = self.shared.next_connection.fetch_add(1, Ordering::Relaxed);
        self.shared.active_connections.fetch_add(1, Ordering::Relaxed);
        self.connections.borrow_mut().insert(number, None);
        OpenConnection { core: self.clone(), number }
    }

    /// Client connections open on this thread.
    pub(crate) fn open_connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Wakes every connection, so that idle ones see that the gateway is draining.
    pub(crate) fn wake_idle(&self) {
        for waker in self.connections.borrow().values().flatten() {
            waker.wake_by_ref();
        }
    }

    /// Is the gateway going down?
    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn listener_opened(&self) {
        self.listeners.set(self.listeners.get() + 1);
    }

    pub(crate) fn listener_closed(&self) {
        self.listeners.set(self.listeners.get() - 1);
    }

    pub(crate) fn listeners_closed(&self) -> bool {
        self.listeners.get() == 0
    }

    /// The regular round: idle connections, log buffers, reloads.
    pub(crate) fn sweep(&self) {
        self.clocks.set((self.look(), now()));
        let settings = self.settings();
        self.pool.sweep(settings.idle_grace, &mut self.buffers.borrow_mut(), BUFFERS_KEPT);
        if let Some(log) = &mut *self.access_log.borrow_mut() {
            log.flush_old();
        }
        // An idle core must not hold an old snapshot for ever.
        let _ = self.snapshot();
    }
}

/// The wall clock, for steps that need the moment rather than the request's start.
#[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The chains of a route, a consumer group and a consumer: each the same one, not an equal one.
struct Merge(Arc<Chain>, Option<Arc<Chain>>, Arc<Chain>);

impl Merge {
    fn places(&self) -> [usize; 3] {
        let place = |chain: &Arc<Chain>| Arc::as_ptr(chain).addr();
        [place(&self.0), self.1.as_ref().map_or(0, place), place(&self.2)]
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.places() == other.places()
    }
}

impl Eq for Merge {}

impl Hash for Merge {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.places().hash(state);
    }
}

/// Counts a connection as open.
pub(crate) struct OpenConnection {
    core: Rc<Core>,
    number: u64,
}

impl OpenConnection {
    /// Leaves the way to wake the connection's task.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.core.connections.borrow_mut().insert(self.number, Some(waker.clone()));
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.core.connections.borrow_mut().remove(&self.number);
        self.core.shared.active_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a request as under way.
pub(crate) struct ActiveRequest(Rc<Core>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.shared.active_requests.fetch_sub(1, Ordering::Release);
    }
}

/// A counter with one writer: the thread that owns it.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds; only the owning thread calls this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Reads, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request thread's counters.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests answered or given up.
    pub requests: Count,
    /// Requests that no route matched.
    pub not_found: Count,
    /// Heads refused before routing.
    pub bad_requests: Count,
    /// New connections to upstreams and functions.
    pub upstream_connections: Count,
    /// Calls to upstreams that brought no response.
    pub upstream_errors: Count,
    /// Function calls made.
    pub function_calls: Count,
    /// Function calls that brought no response.
    pub function_errors: Count,
    /// Function answers that carry an AWS error type or function error.
    pub function_refusals: Count,
    /// Function calls that broke off after they were sent: the function may have run.
    pub function_ambiguous: Count,
    /// Streamed answers of functions that broke off after bytes of them went to the client.
    pub function_streams_broken: Count,
    /// Copies of requests sent to other servers.
    pub mirrors: Count,
    /// Copies that did not reach their server, those not even tried among them.
    pub mirror_errors: Count,
    /// Client connections accepted.
    pub connections: Count,
    /// TLS handshakes that failed.
    pub tls_failures: Count,
}

impl Shared {
    /// Every counter by name, summed over the request threads.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        type Of = fn(&Counters) -> &Count;
        let all: [(&'static str, Of); 14] = [
            ("connections", |c| &c.connections),
            ("requests", |c| &c.requests),
            ("not_found", |c| &c.not_found),
            ("bad_requests", |c| &c.bad_requests),
            ("tls_failures", |c| &c.tls_failures),
            ("upstream_connections", |c| &c.upstream_connections),
            ("upstream_errors", |c| &c.upstream_errors),
            ("function_calls", |c| &c.function_calls),
            ("function_errors", |c| &c.function_errors),
            ("function_refusals", |c| &c.function_refusals),
            ("function_ambiguous", |c| &c.function_ambiguous),
            ("function_streams_broken", |c| &c.function_streams_broken),
            ("mirrors", |c| &c.mirrors),
            ("mirror_errors", |c| &c.mirror_errors),
        ];
        all.iter().map(|(name, of)| (*name, self.total(of))).collect()
    }
}

/// Read buffers a core keeps for its connections.
pub(crate) const BUFFERS_KEPT: usize = 256;

/// Merged chains a core keeps.
const MERGED_MAX: usize = 4096;

const HEADS_KEPT: usize = 256;
const HEAD_KEPT_BYTES: usize = 16 << 10;
const RANDOM_BATCH_BYTES: usize = 4096;

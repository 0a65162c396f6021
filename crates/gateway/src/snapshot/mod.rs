//! The configuration as requests use it: compiled, immutable, swapped as a whole.

mod compile;

use std::sync::Arc;

use ::http::StatusCode;

use crate::chain::Chain;
use crate::client::Timeouts;
use crate::core::Count;
use crate::router::Router;
use crate::tls::Certificates;
use crate::upstream::Upstream;

pub use compile::{Change, Compiler, Deps, Report};

/// One state of the configuration.
pub struct Snapshot {
    /// The store's revision it stands for.
    pub revision: u64,
    /// Routes by what they match.
    pub router: Router<Arc<Route>>,
    /// The plugins of each global rule; they run for every request.
    pub global: Box<[Arc<Chain>]>,
    /// Certificates by server name.
    pub certificates: Arc<Certificates>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            revision: 0,
            router: Router::builder(Default::default()).build(),
            global: Box::default(),
            certificates: Arc::default(),
        }
    }
}

/// A route, compiled: its own configuration merged over its service's.
pub struct Route {
    /// Its id.
    pub id: Arc<str>,
    /// Its name.
    pub name: Option<String>,
    /// Its service's id and name.
    pub service: Option<(String, Option<String>)>,
    /// Its plugins.
    pub chain: Arc<Chain>,
    /// Where requests go that no plugin answers.
    pub upstream: Option<Arc<Upstream>>,
    /// `Upgrade` is passed on.
    pub enable_websocket: bool,
    /// Time limits that come before the upstream's.
    pub timeouts: Option<Timeouts>,
    /// It cannot serve: what its requests are answered, and why.
    pub broken: Option<(StatusCode, String)>,
    /// Requests it served, for metrics.
    pub requests: RouteCounters,
}

/// One counter per request thread, so that counting takes no lock.
pub struct RouteCounters(Box<[Padded]>);

/// Keeps two threads' counters out of one cache line.
#[repr(align(64))]
#[derive(Default)]
struct Padded(Count);

impl RouteCounters {
    fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Padded::default()).collect())
    }

    /// Counts a request on thread `index`.
    pub fn add(&self, index: usize) {
        if let Some(counter) = self.0.get(index) {
            counter.0.add(1);
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|c| c.0.get()).sum()
    }
}

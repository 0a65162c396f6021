//! What the Control and Status APIs tell of a gateway that runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use sluicegate_admin::control::Status;
use sluicegate_admin::status::{Broken, Readiness, Stale};
use sluicegate_gateway::core::Shared;
use sluicegate_gateway::plugin::PluginState;
use sluicegate_gateway::snapshot::Report;
use sluicegate_identity::IdentityStatus;
use sluicegate_plugins::{AwsIdentities, AwsRefusals, Refusals, TokenIdentities};
use sluicegate_store::{Health, Store};

use crate::references::References;

/// What the Control and Status APIs look at.
#[derive(Clone)]
pub(crate) struct Inside {
    pub(crate) plugin_state: Arc<PluginState>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) reports: Arc<ArcSwap<Vec<Report>>>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) references: Arc<References>,
    pub(crate) unreadable: Arc<Unreadable>,
    pub(crate) staleness: Arc<Staleness>,
}

impl Inside {
    fn broken(&self) -> Vec<Broken> {
        let shown =
            |r: &Report| Broken { kind: r.kind.plural(), id: r.id.clone(), cause: r.cause.clone() };
        self.unreadable.all().chain(self.reports.load().iter().map(shown)).collect()
    }

    fn readiness(&self) -> Readiness {
        if self.shared.draining.load(Ordering::Acquire) {
            return Readiness::Not("the gateway stops".to_owned());
        }
        let stale = match self.store.health() {
            Health::Ready => None,
            Health::Stale { since, reason } => Some(Stale { since, reason }),
        };
        Readiness::Serving { stale, broken: self.broken() }
    }
}

/// Counts how often the store's source was lost. What is lost and back within a moment is not seen.
#[derive(Default)]
pub(crate) struct Staleness {
    count: AtomicU64,
}

impl Staleness {
    pub(crate) async fn watch(self: Arc<Self>, store: Arc<dyn Store>) {
        let mut known = None;
        loop {
            if let Health::Stale { since, .. } = store.health()
                && known.replace(since) != Some(since)
            {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(STALENESS_LOOK).await;
        }
    }
}

/// Stored resources that are no JSON, by their keys.
#[derive(Default)]
pub(crate) struct Unreadable(std::sync::Mutex<BTreeMap<Arc<str>, Broken>>);

impl Unreadable {
    pub(crate) fn change(&self, key: &Arc<str>, broken: Option<Broken>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match broken {
            Some(broken) => drop(all.insert(key.clone(), broken)),
            None if all.is_empty() => {}
            None => drop(all.remove(key)),
        }
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn all(&self) -> impl Iterator<Item = Broken> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect::<Vec<_>>().into_iter()
    }
}

/// What the status API tells, before and after there is something inside.
pub(crate) fn look(inside: Arc<OnceLock<Inside>>) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    Arc::new(move || match inside.get() {
        Some(inside) => inside.readiness(),
        None => Readiness::Not("the configuration is not loaded yet".to_owned()),
    })
}

/// What the control API tells at `/v1/status`.
pub(crate) fn status(inside: Inside) -> Status {
    Arc::new(move || {
        let shared = &inside.shared;
        let mut counters: serde_json::Map<String, Value> =
            shared.counters().into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
        let stale = inside.staleness.count.load(Ordering::Relaxed);
        counters.insert("store_stale_total".to_owned(), stale.into());
        let broken: Vec<Value> = inside.broken().iter().map(Broken::shown).collect();
        let refusals = inside.plugin_state.get::<AwsRefusals>().all();
        let refusals: Value = refusals.iter().map(refusal).collect();
        let identities = inside.plugin_state.get::<AwsIdentities>().statuses();
        let tokens = inside.plugin_state.get::<TokenIdentities>().statuses();
        let store = match inside.store.health() {
            Health::Ready => json!({"state": "ready"}),
            Health::Stale { since, reason } => Stale { since, reason }.shown(),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "revision": shared.snapshot().revision,
            "routes": shared.snapshot().router.len(),
            "active_requests": shared.active_requests.load(Ordering::Relaxed),
            "active_connections": shared.active_connections.load(Ordering::Relaxed),
            "buffered_body_bytes": shared.buffered.load(Ordering::Relaxed),
            "counters": counters,
            "store": store,
            "secrets": inside.references.shown(),
            "aws_refusals": refusals,
            "aws_identities": identities.iter().map(identity).collect::<Value>(),
            "token_identities": tokens.iter().map(identity).collect::<Value>(),
            "broken": broken,
        })
    })
}

/// What AWS refused of a route, as `/v1/status` shows it.
fn refusal(refusals: &Refusals) -> Value {
    json!({
        "route": refusals.route,
        "kind": refusals.kind,
        "count": refusals.count,
        "last_request_id": refusals.last_request_id,
    })
}

/// How an identity stands, as `/v1/status` shows it.
fn identity(status: &IdentityStatus) -> Value {
    json!({
        "name": status.name,
        "ready": status.ready,
        "source": status.origin,
        "expires": status.expires,
        "refreshed": status.refreshed,
        "failed": status.failed,
        "failure": status.failure,
    })
}

/// How often the store is asked whether it is current.
const STALENESS_LOOK: Duration = Duration::from_secs(1);

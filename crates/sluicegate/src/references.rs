//! References in the configuration, between the store and the compiler: changes come in as they
//! were written and go on with values in the places of their references.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_gateway::snapshot::Change;
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_model::kind::Kind;
use sluicegate_secrets::{Environment, Lookup, Resource, Resources, Secrets, Settings};
use tokio::runtime::Runtime;

use crate::boot::unix_now;

/// The references of the running configuration.
pub(crate) struct References {
    secrets: Arc<Secrets>,
    /// Invariant: locked only by who holds the compiler, so that both see changes in one order.
    resources: Mutex<Resources>,
}

/// Changes whose references are followed.
pub(crate) struct Prepared(Vec<Resource>);

impl Prepared {
    /// Those of a later revision only.
    pub(crate) fn after(mut self, revision: u64) -> Self {
        self.0.retain(|resource| resource.revision > revision);
        self
    }
}

impl References {
    /// Starts to fetch on `runtime`.
    pub(crate) fn start(runtime: &Runtime, settings: Settings, deps: &UpstreamDeps) -> Arc<Self> {
        let network = Arc::new(deps.clone());
        let secrets = Secrets::new(settings, Environment::of_process(), network, unix_now);
        runtime.spawn(secrets.clone().run());
        Arc::new(Self { resources: Mutex::new(Resources::new(secrets.clone())), secrets })
    }

    /// Follows the references of these changes, and waits a short time for values that were never
    /// fetched.
    pub(crate) async fn prepare(&self, changes: Vec<Change>, wait: Duration) -> Prepared {
        let resources: Vec<Resource> = changes.into_iter().map(resource).collect();
        Resources::prepare(&self.secrets, &resources, wait).await;
        Prepared(resources)
    }

    /// The changes as the compiler takes them. With `may_hold`, those whose secrets are still
    /// being fetched come later, and the version before serves until then.
    pub(crate) fn resolve(&self, prepared: Prepared, may_hold: bool) -> Vec<Change> {
        let mut resources = self.resources();
        prepared.0.into_iter().filter_map(|r| resources.take(r, may_hold)).map(change).collect()
    }

    /// Waits until references have other values than before.
    pub(crate) async fn changed(&self) -> Vec<Arc<str>> {
        self.secrets.changed().await
    }

    /// What these references change.
    pub(crate) fn affected(&self, references: &[Arc<str>]) -> Vec<Change> {
        self.resources().affected(references).into_iter().map(change).collect()
    }

    /// Kinds and ids of what is known here, which the compiler may not know.
    pub(crate) fn known(&self) -> Vec<(Kind, String)> {
        self.resources().known()
    }

    /// Puts the values of references that are followed in their places.
    ///
    /// # Errors
    /// One has no value.
    pub(crate) fn put_values(&self, config: &mut Value) -> Result<(), String> {
        match config {
            Value::String(text) => {
                let known = ["$env://", "$ENV://", "$secret://"];
                if known.iter().any(|scheme| text.starts_with(scheme)) {
                    match self.secrets.value(text) {
                        Lookup::Value(value) => *text = value.to_string(),
                        Lookup::Failed(cause) => {
                            return Err(format!("{text} has no value: {cause}"));
                        }
                        _ => return Err(format!("{text} has no value yet: it is being fetched")),
                    }
                }
                Ok(())
            }
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.put_values(item)),
            Value::Object(members) => {
                members.values_mut().try_for_each(|member| self.put_values(member))
            }
            _ => Ok(()),
        }
    }

    /// Takes other times.
    pub(crate) fn configure(&self, settings: Settings) {
        self.secrets.configure(settings);
    }

    /// For `/v1/status`.
    pub(crate) fn shown(&self) -> Value {
        let counts = self.secrets.counts();
        json!({
            "references": counts.references,
            "unresolved": counts.unresolved,
            "stale": counts.stale,
            "fetched": counts.fetched,
            "failed": counts.failed,
        })
    }

    fn resources(&self) -> MutexGuard<'_, Resources> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl sluicegate_gateway::snapshot::References for References {
    fn cause(&self, reference: &str) -> String {
        match self.secrets.value(reference) {
            Lookup::Failed(cause) => cause,
            _ => "it is being fetched".into(),
        }
    }

    fn redact(&self, text: String) -> String {
        self.secrets.redact(text)
    }
}

fn resource(change: Change) -> Resource {
    let Change { kind, id, value, text, revision, created } = change;
    Resource { kind, id, value, text, revision, created }
}

fn change(resource: Resource) -> Change {
    let Resource { kind, id, value, text, revision, created } = resource;
    Change { kind, id, value, text, revision, created }
}

/// How long a start waits for values: what is not there by then answers 503 until it is.
pub(crate) const START_WAIT: Duration = Duration::from_secs(2);

/// How long a change waits for values that were never fetched. Others wait behind it.
pub(crate) const CHANGE_WAIT: Duration = Duration::from_millis(500);

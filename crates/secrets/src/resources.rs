//! Resources with references, and how they are when values stand in their places.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sluicegate_model::Kind;

use crate::reference::{each_text, references};
use crate::secrets::{Lookup, Secrets};

/// A resource as a store has it, or its end.
#[derive(Clone, PartialEq)]
pub struct Resource {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Its value; `None`: it was deleted.
    pub value: Option<Value>,
    /// The text that `value` was read from, if somebody keeps it; `None` once values are in it.
    pub text: Option<Arc<[u8]>>,
    /// The store's revision of the change.
    pub revision: u64,
    /// The revision at which it was first written.
    pub created: u64,
}

impl fmt::Debug for Resource {
    /// Values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// The resources that hold references, as they were written.
pub struct Resources {
    secrets: Arc<Secrets>,
    held: HashMap<Key, Held>,
    users: HashMap<String, HashSet<Key>>,
}

type Key = (Kind, String);

struct Held {
    resource: Resource,
    references: Vec<String>,
    /// What each reference came to when the resource was given out; `None`: it was not yet.
    given: Option<Vec<Lookup>>,
}

impl Resources {
    /// Knows of none yet.
    pub fn new(secrets: Arc<Secrets>) -> Self {
        Self { secrets, held: HashMap::new(), users: HashMap::new() }
    }

    /// Tells `secrets` of the managers and references in these resources, and waits for the first
    /// fetch of those that are new, at most for `limit`.
    pub async fn prepare(secrets: &Secrets, resources: &[Resource], limit: Duration) {
        for resource in resources.iter().filter(|resource| resource.kind == Kind::Secrets) {
            secrets.set_manager(&resource.id, resource.value.as_ref());
        }
        let of = |resource: &Resource| match &resource.value {
            Some(value) => references(resource.kind, value),
            None => Vec::new(),
        };
        let found: HashSet<String> = resources.iter().flat_map(of).collect();
        if found.is_empty() {
            return;
        }
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        secrets.want(found.iter().copied());
        secrets.settle(&found, limit).await;
    }

    /// The resource with values in the places of its references. References without a value stay:
    /// whoever compiles must refuse them.
    ///
    /// With `may_hold`, `None` is returned while the first fetch of a reference of a changed
    /// resource is still under way: the version before serves until [`Resources::affected`]
    /// brings this one.
    pub fn take(&mut self, resource: Resource, may_hold: bool) -> Option<Resource> {
        let key = (resource.kind, resource.id.clone());
        let found = match &resource.value {
            Some(value) => references(resource.kind, value),
            None => Vec::new(),
        };
        // New users first, so that a reference in both versions is not forgotten between them.
        for reference in &found {
            self.users.entry(reference.clone()).or_default().insert(key.clone());
        }
        self.release(&key, &found);
        if found.is_empty() {
            return Some(resource);
        }
        let resource = Resource { text: None, ..resource };
        // Those that are known already are left as they are.
        self.secrets.want(found.iter().map(String::as_str));
        let now = self.lookups(&found);
        let holds =
            may_hold && resource.created < resource.revision && now.contains(&Lookup::Pending);
        let given = (!holds).then(|| resolved(&resource, &found, &now));
        let state = given.is_some().then_some(now);
        self.held.insert(key, Held { resource, references: found, given: state });
        given
    }

    /// The resources that are others now that something about these references has changed.
    pub fn affected(&mut self, references: &[Arc<str>]) -> Vec<Resource> {
        let keys: HashSet<Key> = references
            .iter()
            .filter_map(|reference| self.users.get(&**reference))
            .flatten()
            .cloned()
            .collect();
        let mut affected = Vec::new();
        for key in keys {
            let Some(held) = self.held.get(&key) else { continue };
            let now = self.lookups(&held.references);
            let is_same = match &held.given {
                Some(given) => *given == now,
                None => now.contains(&Lookup::Pending),
            };
            if !is_same && let Some(held) = self.held.get_mut(&key) {
                affected.push(resolved(&held.resource, &held.references, &now));
                held.given = Some(now);
            }
        }
        affected
    }

    /// Kinds and ids of everything known here, managers too.
    pub fn known(&self) -> Vec<(Kind, String)> {
        let managers = self.secrets.managers().into_iter().map(|id| (Kind::Secrets, id));
        self.held.keys().cloned().chain(managers).collect()
    }

    fn release(&mut self, key: &Key, kept: &[String]) {
        let Some(held) = self.held.remove(key) else { return };
        for reference in held.references.iter().filter(|reference| !kept.contains(reference)) {
            let Some(users) = self.users.get_mut(reference) else { continue };
            users.remove(key);
            if users.is_empty() {
                self.users.remove(reference);
                self.secrets.forget(reference);
            }
        }
    }

    fn lookups(&self, references: &[String]) -> Vec<Lookup> {
        references.iter().map(|reference| self.secrets.value(reference)).collect()
    }
}

/// The resource with the values that there are. `references` is sorted.
fn resolved(resource: &Resource, references: &[String], lookups: &[Lookup]) -> Resource {
    let mut resource = resource.clone();
    if let Some(value) = &mut resource.value {
        each_text(resource.kind, value, &mut |text| {
            if let Ok(at) = references.binary_search(text)
                && let Some(Lookup::Value(value)) = lookups.get(at)
            {
                *text = value.as_ref().to_owned();
            }
        });
    }
    resource
}

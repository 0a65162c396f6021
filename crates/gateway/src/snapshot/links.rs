//! Who is compiled with whom: a change of one resource reaches those that use it, and no other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;
use sluicegate_model::check;
use sluicegate_model::kind::Kind;

use crate::plugin::Registry;

/// A resource.
pub(super) type Node = (Kind, Arc<str>);

/// The consumer that a credential belongs to, by the credential's id: `jack/credentials/1`.
pub(super) fn owner_of(credential: &str) -> Option<&str> {
    credential.split_once("/credentials/").map(|(owner, _)| owner)
}

/// The users of each resource that has any, whether it exists or not.
#[derive(Debug, Default)]
pub(super) struct Links {
    users: HashMap<Node, BTreeSet<Node>>,
}

impl Links {
    /// Whom a resource uses by its own configuration, each once.
    pub(super) fn of(
        &self,
        kind: Kind,
        id: &str,
        value: &Value,
        registry: &Registry,
    ) -> Box<[Node]> {
        let references = check::references(kind, value).into_iter();
        // A consumer's group is looked up by the request.
        let references = references.filter(|reference| reference.kind != Kind::ConsumerGroups);
        let references = references.map(|reference| (reference.kind, Arc::from(reference.id)));
        let owner = (kind == Kind::Credentials).then(|| owner_of(id)).flatten();
        let owner = owner.map(|owner| (Kind::Consumers, Arc::from(owner)));
        // Plugins are compiled with their metadata, and with upstreams they name.
        let plugins = value.get("plugins").and_then(Value::as_object).into_iter().flatten();
        let plugins = plugins.flat_map(|(name, config)| {
            let upstreams = registry.get(name).map(|known| known.upstream_ids(config));
            let upstreams = upstreams.into_iter().flatten();
            let upstreams = upstreams.map(|id| (Kind::Upstreams, Arc::from(id)));
            upstreams.chain([(Kind::PluginMetadata, Arc::from(name.as_str()))])
        });
        let mut used: Vec<Node> = references.chain(owner).chain(plugins).collect();
        for node in &mut used {
            // One text serves all who name it.
            if let Some((known, _)) = self.users.get_key_value(node) {
                *node = known.clone();
            }
        }
        used.sort_unstable();
        used.dedup();
        used.into()
    }

    /// A resource now uses others than before.
    pub(super) fn change(&mut self, user: &Node, before: &[Node], now: &[Node]) {
        if before == now {
            return;
        }
        for used in before {
            if let Some(users) = self.users.get_mut(used) {
                users.remove(user);
                if users.is_empty() {
                    self.users.remove(used);
                }
            }
        }
        for used in now {
            self.users.entry(used.clone()).or_default().insert(user.clone());
        }
    }

    /// Who uses a resource.
    pub(super) fn users(&self, used: &Node) -> impl Iterator<Item = &Node> {
        self.users.get(used).into_iter().flatten()
    }
}

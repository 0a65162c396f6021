//! Consumers: who sends a request, found by what authentication plugins read from it.
//!
//! All keys of all consumers lie in one persistent map, so that a look-up costs one hash whatever
//! their number, and a change of one consumer copies the way to its keys only.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map as JsonMap, Value};
use smallvec::SmallVec;

use crate::chain::Chain;
use crate::http::{FieldName, Headers};
use crate::router::map::{Kind as PlaceKind, Map, Place};

/// A consumer, compiled.
#[derive(Clone)]
pub struct Consumer {
    /// Its name (`consumer_name`), which is its id.
    pub name: Arc<str>,
    /// Its group (`consumer_group_id`).
    pub group_id: Option<Arc<str>>,
    /// Its labels; `custom_id` goes to the upstream.
    pub labels: JsonMap<String, Value>,
    /// Its plugins, those that authenticate left out.
    pub chain: Arc<Chain>,
    /// Its configuration as stored: JSON text.
    pub text: Arc<[u8]>,
}

impl Consumer {
    /// What the upstream is told about it, whom a credential of this id stands for.
    pub(crate) fn told(&self, credential_id: Option<&str>) -> Headers {
        let mut told = Headers::new();
        told.set_by(&TOLD[0], self.name.as_bytes());
        if let Some(id) = credential_id {
            told.set_by(&TOLD[1], id.as_bytes());
        }
        if let Some(id) = self.labels.get("custom_id").and_then(Value::as_str) {
            told.set_by(&TOLD[2], id.as_bytes());
        }
        // A copy takes as much memory as there is text.
        told.clone()
    }
}

/// The fields that tell the upstream who sends a request; the last has the consumer's label `custom_id`.
pub(crate) static TOLD: [FieldName; 3] = [
    FieldName::of_static("X-Consumer-Username"),
    FieldName::of_static("X-Credential-Identifier"),
    FieldName::of_static("X-Consumer-Custom-ID"),
];

/// The claims of the token that told who sends a request, among its notes for what runs later
/// (`store_in_ctx` of `jwt-auth`).
pub struct JwtClaims(pub JsonMap<String, Value>);

/// What a consumer has for one authentication plugin: in its own `plugins` or in a credential.
#[derive(Clone)]
pub struct Credential {
    /// Whose it is.
    pub consumer: Arc<Consumer>,
    /// The credential's id; `None`: it stands in the consumer itself.
    pub id: Option<Arc<str>>,
    /// What [`Plugin::compile_consumer`](crate::plugin::Plugin::compile_consumer) made of the
    /// configuration.
    pub conf: Arc<dyn Any + Send + Sync>,
    /// What the upstream is told about the consumer.
    pub(crate) told: Headers,
    /// The plugin's name, a zero byte, and the key.
    place: Box<[u8]>,
}

impl Credential {
    /// One that is found by `plugin` and `key`.
    pub fn new(
        consumer: Arc<Consumer>,
        id: Option<Arc<str>>,
        plugin: &str,
        key: &str,
        conf: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let place = place(plugin, key.as_bytes()).to_vec().into();
        let told = consumer.told(id.as_deref());
        Self { consumer, id, conf, told, place }
    }

    /// The name of the plugin it is for.
    pub fn plugin(&self) -> &str {
        let name = self.place.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(name).unwrap_or_default()
    }

    /// What the plugin made of the configuration, as its own type.
    pub fn conf<T: 'static>(&self) -> Option<&T> {
        self.conf.downcast_ref()
    }
}

/// Every consumer of a snapshot. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Consumers {
    keys: Map<Keyed>,
    names: Map<Named>,
    groups: Arc<BTreeMap<Arc<str>, Arc<Chain>>>,
    /// Credentials whose key another one has since; the last is the first to have it back.
    shadowed: Arc<Shadowed>,
    /// How many keys there are of each plugin.
    counts: Arc<BTreeMap<Box<str>, usize>>,
}

impl Consumers {
    /// The credential of `plugin` that has this key.
    pub fn find(&self, plugin: &str, key: &[u8]) -> Option<&Arc<Credential>> {
        self.keys.exact(&place(plugin, key)).map(|keyed| &keyed.0)
    }

    /// Has any consumer something for this plugin?
    pub fn any(&self, plugin: &str) -> bool {
        self.counts.contains_key(plugin)
    }

    /// The consumer of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Consumer>> {
        self.names.exact(name.as_bytes()).map(|named| &named.0)
    }

    /// The plugins of a consumer group, if there is one of this id.
    pub fn group(&self, id: &str) -> Option<&Arc<Chain>> {
        self.groups.get(id)
    }

    /// Puts a consumer in, or takes it out.
    pub(crate) fn set_named(&mut self, name: &str, consumer: Option<Arc<Consumer>>) {
        self.names.update(name.as_bytes(), PlaceKind::Exact, |_| consumer.map(Named));
    }

    /// Puts a credential in the place of whichever had its key. Says whose that was.
    ///
    /// The Admin API sees to it that no two have the same key; other writers of a store may not.
    pub(crate) fn insert(&mut self, credential: Arc<Credential>) -> Option<Arc<Consumer>> {
        let place = credential.place.clone();
        let mut before = None;
        self.keys.update(&place, PlaceKind::Exact, |found| {
            before = found.map(|keyed| keyed.0.clone());
            Some(Keyed(credential.clone()))
        });
        match before {
            None => {
                let plugin = credential.plugin().into();
                *Arc::make_mut(&mut self.counts).entry(plugin).or_default() += 1;
                None
            }
            Some(before) => {
                let owner = before.consumer.clone();
                Arc::make_mut(&mut self.shadowed).entry(place).or_default().push(before);
                Some(owner)
            }
        }
    }

    /// Takes a credential out; one that had its key before has it again.
    pub(crate) fn remove(&mut self, credential: &Arc<Credential>) {
        let heir = match self.shadowed.contains_key(&credential.place) {
            true => self.unshadow(credential),
            false => None,
        };
        let counts = &mut self.counts;
        self.keys.update(&credential.place, PlaceKind::Exact, |found| {
            let found = found?;
            if !Arc::ptr_eq(&found.0, credential) {
                return Some(found.clone());
            }
            if let Some(heir) = heir {
                return Some(Keyed(heir));
            }
            let counts = Arc::make_mut(counts);
            if let Some(count) = counts.get_mut(credential.plugin()) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(credential.plugin());
                }
            }
            None
        });
    }

    /// Takes a credential out of those whose key another one has; or, if it has its key itself,
    /// takes out and gives the one to have it next.
    fn unshadow(&mut self, credential: &Arc<Credential>) -> Option<Arc<Credential>> {
        let has_key = self.keys.exact(&credential.place);
        let has_key = has_key.is_some_and(|keyed| Arc::ptr_eq(&keyed.0, credential));
        let shadowed = Arc::make_mut(&mut self.shadowed);
        let all = shadowed.get_mut(&credential.place)?;
        let heir = match has_key {
            true => all.pop(),
            false => {
                all.retain(|other| !Arc::ptr_eq(other, credential));
                None
            }
        };
        if all.is_empty() {
            shadowed.remove(&credential.place);
        }
        heir
    }

    /// Puts a group's plugins in, or takes them out.
    pub(crate) fn set_group(&mut self, id: &Arc<str>, chain: Option<Arc<Chain>>) {
        let groups = Arc::make_mut(&mut self.groups);
        match chain {
            Some(chain) => groups.insert(id.clone(), chain),
            None => groups.remove(id),
        };
    }
}

/// Credentials by their places.
type Shadowed = BTreeMap<Box<[u8]>, Vec<Arc<Credential>>>;

fn place(plugin: &str, key: &[u8]) -> SmallVec<[u8; 96]> {
    let mut place = SmallVec::from_slice(plugin.as_bytes());
    place.push(0);
    place.extend_from_slice(key);
    place
}

#[derive(Clone)]
struct Keyed(Arc<Credential>);

impl Place for Keyed {
    const SEPARATOR: u8 = 0;

    fn key(&self) -> (&[u8], PlaceKind) {
        (&self.0.place, PlaceKind::Exact)
    }
}

#[derive(Clone)]
struct Named(Arc<Consumer>);

impl Place for Named {
    const SEPARATOR: u8 = 0;

    fn key(&self) -> (&[u8], PlaceKind) {
        (self.0.name.as_bytes(), PlaceKind::Exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str) -> Arc<Consumer> {
        Arc::new(Consumer {
            name: name.into(),
            group_id: None,
            labels: JsonMap::new(),
            chain: Arc::default(),
            text: Arc::default(),
        })
    }

    fn credential(name: &str, plugin: &str, key: &str) -> Arc<Credential> {
        Arc::new(Credential::new(consumer(name), None, plugin, key, Arc::new(())))
    }

    #[test]
    fn a_key_leads_to_the_one_who_got_it_last_and_then_to_the_one_before() {
        let mut consumers = Consumers::default();
        let owner = |consumers: &Consumers, plugin: &str, key: &str| {
            consumers.find(plugin, key.as_bytes()).map(|found| found.consumer.name.to_string())
        };
        let (jack, rose) =
            (credential("jack", "key-auth", "k"), credential("rose", "key-auth", "k"));
        consumers.insert(jack.clone());
        let before = consumers.clone();
        consumers.insert(rose.clone());
        assert_eq!(owner(&before, "key-auth", "k").as_deref(), Some("jack"));
        assert_eq!(owner(&consumers, "key-auth", "k").as_deref(), Some("rose"));
        assert_eq!(owner(&consumers, "jwt-auth", "k"), None);
        assert_eq!(owner(&consumers, "key-auth", ""), None);
        assert!(consumers.any("key-auth") && !consumers.any("key"));
        let mut both = consumers.clone();
        both.remove(&rose);
        assert_eq!(owner(&both, "key-auth", "k").as_deref(), Some("jack"));
        assert!(both.any("key-auth"));
        both.remove(&jack);
        assert_eq!(owner(&both, "key-auth", "k"), None);
        assert!(!both.any("key-auth"));
        consumers.remove(&jack);
        assert_eq!(owner(&consumers, "key-auth", "k").as_deref(), Some("rose"));
        consumers.remove(&rose);
        assert_eq!(owner(&consumers, "key-auth", "k"), None);
        assert!(!consumers.any("key-auth"));
    }

    #[test]
    fn a_name_leads_to_its_consumer() {
        let mut consumers = Consumers::default();
        consumers.set_named("jack", Some(consumer("jack")));
        assert!(consumers.named("jack").is_some() && consumers.named("jac").is_none());
        consumers.set_named("jack", None);
        assert!(consumers.named("jack").is_none());
    }
}

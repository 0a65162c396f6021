//! Consumers, their credentials and their groups.

use std::sync::Arc;

use serde_json::{Map, Value};
use sluicegate_model::kind::Kind;
use sluicegate_model::resource::id_text;
use tracing::warn;

use super::super::links::owner_of;
use super::super::references;
use super::{Broken, Compiler, Text, plugins_of, read, unavailable};
use crate::consumer::{Consumer, Credential};

/// A consumer, and what it has itself for plugins that authenticate.
#[derive(Default)]
pub(super) struct ConsumerEntry {
    consumer: Option<Arc<Consumer>>,
    credentials: CredentialEntries,
}

/// What a consumer or a credential has for plugins that authenticate.
pub(super) type CredentialEntries = Vec<Arc<Credential>>;

impl Compiler {
    /// Takes a consumer that is deleted out of those who may send requests.
    pub(super) fn withdraw_consumer(&mut self, change: &Text) {
        if change.text.is_none()
            && let Some(stored) = self.consumers.get_mut(&change.id)
        {
            for credential in std::mem::take(&mut stored.made.credentials) {
                self.known_consumers.remove(&credential);
            }
            self.known_consumers.set_named(&change.id, None);
        }
    }

    /// Takes a credential that is deleted out of those that are believed.
    pub(super) fn withdraw_credential(&mut self, change: &Text) {
        if change.text.is_none()
            && let Some(stored) = self.credentials.get_mut(&change.id)
        {
            for credential in std::mem::take(&mut stored.made) {
                self.known_consumers.remove(&credential);
            }
        }
    }

    pub(super) fn compile_consumer_group(&mut self, id: &Arc<str>) {
        let Some(stored) = self.consumer_groups.get(id) else {
            return self.known_consumers.set_group(id, None);
        };
        let compiled = plugins_of(Kind::ConsumerGroups, id, read(&stored.text))
            .map_err(unavailable)
            .and_then(|plugins| self.chain(&plugins, &format!("consumer group {id}")));
        let outcome = compiled.as_ref().map(drop).map_err(|broken| broken.cause.clone());
        match compiled {
            Ok(chain) => self.known_consumers.set_group(id, Some(chain)),
            Err(Broken { keeps_good: true, .. }) => {}
            // Requests of its consumers are answered 503 then.
            Err(_) => self.known_consumers.set_group(id, None),
        }
        self.note(Kind::ConsumerGroups, id, outcome);
    }

    pub(super) fn compile_consumer(&mut self, id: &Arc<str>) {
        let Some(stored) = self.consumers.get(id) else { return };
        let (text, value) = (stored.text.clone(), read(&stored.text));
        let compiled = self.consumer(id, text, &value);
        let outcome = compiled.as_ref().map(drop).map_err(|broken| broken.cause.clone());
        let keeps = compiled.as_ref().is_err_and(|broken| broken.keeps_good);
        if let Some(stored) = self.consumers.get_mut(id)
            && !keeps
        {
            let (consumer, now) = compiled.ok().unzip();
            let now = now.unwrap_or_default();
            let before = std::mem::replace(&mut stored.made.credentials, now.clone());
            stored.made.consumer.clone_from(&consumer);
            self.known_consumers.set_named(id, consumer);
            self.exchange_credentials(before, now);
        }
        self.note(Kind::Consumers, id, outcome);
    }

    pub(super) fn compile_credential(&mut self, id: &Arc<str>) {
        let Some(stored) = self.credentials.get(id) else { return };
        let value = read(&stored.text);
        let compiled = self.credential(id, &value);
        let outcome = compiled.as_ref().map(drop).map_err(|broken| broken.cause.clone());
        let keeps = compiled.as_ref().is_err_and(|broken| broken.keeps_good);
        if let Some(stored) = self.credentials.get_mut(id)
            && !keeps
        {
            let now = compiled.unwrap_or_default();
            let before = std::mem::replace(&mut stored.made, now.clone());
            self.exchange_credentials(before, now);
        }
        self.note(Kind::Credentials, id, outcome);
    }

    fn exchange_credentials(&mut self, before: CredentialEntries, now: CredentialEntries) {
        for credential in &before {
            self.known_consumers.remove(credential);
        }
        for credential in now {
            if let Some(owner) = self.known_consumers.insert(credential.clone()) {
                warn!(
                    plugin = credential.plugin(),
                    consumer = &*credential.consumer.name,
                    before = &*owner.name,
                    "Two credentials have the same key: the one written last counts."
                );
            }
        }
    }

    fn consumer(
        &mut self,
        id: &Arc<str>,
        text: Arc<[u8]>,
        value: &Value,
    ) -> Result<(Arc<Consumer>, CredentialEntries), Broken> {
        let invalid = |e| unavailable(format!("invalid configuration: {e}"));
        Kind::Consumers.schema().check(value).map_err(invalid)?;
        let (auth, others) = self.split(value);
        self.refuse_unresolved(&auth)?;
        let chain = self.chain(&others, &format!("consumer {id}"))?;
        let consumer = Arc::new(Consumer {
            name: id.clone(),
            group_id: value.get("group_id").and_then(id_text).map(Into::into),
            labels: value.get("labels").and_then(Value::as_object).cloned().unwrap_or_default(),
            chain,
            text,
        });
        let credentials = self.credentials_of(&consumer, None, &auth)?;
        Ok((consumer, credentials))
    }

    fn credential(&self, id: &Arc<str>, value: &Value) -> Result<CredentialEntries, Broken> {
        let owner = owner_of(id).unwrap_or_default();
        let consumer = self.consumers.get(owner).and_then(|stored| stored.made.consumer.clone());
        let consumer = consumer.ok_or_else(|| {
            not_believed(format!("its consumer {owner:?} does not exist or cannot be used"))
        })?;
        let (auth, _) = self.split(value);
        self.refuse_unresolved(&auth)?;
        let short = id.rsplit('/').next().unwrap_or_default();
        self.credentials_of(&consumer, Some(short.into()), &auth)
    }

    /// The plugins that authenticate, and the others.
    fn split(&self, value: &Value) -> (Map<String, Value>, Map<String, Value>) {
        let plugins = value.get("plugins").and_then(Value::as_object).cloned().unwrap_or_default();
        plugins.into_iter().partition(|(name, _)| {
            self.deps.registry.get(name).is_some_and(|known| known.info.auth.is_some())
        })
    }

    fn refuse_unresolved(&self, auth: &Map<String, Value>) -> Result<(), Broken> {
        let found = references::unresolved(auth, &|_| None, &self.deps.registry, &self.references);
        found.map_or(Ok(()), |cause| Err(not_believed(cause)))
    }

    fn credentials_of(
        &self,
        consumer: &Arc<Consumer>,
        id: Option<Arc<str>>,
        auth: &Map<String, Value>,
    ) -> Result<CredentialEntries, Broken> {
        let mut made = Vec::new();
        for (name, config) in auth {
            let Some(known) = self.deps.registry.get(name) else { continue };
            let Some(unique) = known.info.auth.and_then(|auth| auth.unique) else { continue };
            // Differs: APISIX believes also what is switched off.
            if config["_meta"]["disable"] == true {
                continue;
            }
            let conf = known.compile_consumer(config).map_err(|e| {
                unavailable(format!("failed to check the configuration of plugin {name} err: {e}"))
            })?;
            let Some(key) = config.get(unique).and_then(Value::as_str) else { continue };
            made.push(Arc::new(Credential::new(consumer.clone(), id.clone(), name, key, conf)));
        }
        Ok(made)
    }
}

/// What a reference stands for is not known, or whose the credential is: the version before is not
/// believed either.
fn not_believed(cause: String) -> Broken {
    Broken { keeps_good: false, ..unavailable(cause) }
}

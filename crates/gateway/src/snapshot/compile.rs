//! From stored resources to a snapshot. A change recompiles what depends on it and nothing
//! else; everything untouched is shared with the snapshot before.
//!
//! Of a resource only the stored text is kept, mostly in the store's own memory: it is read again
//! when something it depends on has changed. Services are kept as read, for their routes.

mod consumer;
mod route;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Map, Value};
use sluicegate_model::kind::Kind;
use sluicegate_model::service::Service as ServiceConfig;
use sluicegate_model::ssl::Ssl;
use sluicegate_model::upstream::Upstream as UpstreamConfig;
use tracing::{error, warn};

use crate::chain::Chain;
use crate::consumer::Consumers;
use crate::plugin::{Registry, Upstreams};
use crate::router::{Mode, Router};
use crate::tls::{Certificates, TlsEntry};
use crate::upstream::{Upstream, UpstreamDeps};

use super::counters::Source;
use super::links::{Links, Node};
use super::references::{self, References, Refuse};
use super::unknown::WARNED_MAX;
use super::{PluginFacts, Route, Snapshot, UnknownPlugins};
use consumer::{ConsumerEntry, CredentialEntries};

/// One resource written or removed. Secrets are in the clear.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Its value; `None`: it was deleted.
    pub value: Option<Value>,
    /// The text that `value` was read from, if it says the same: kept instead of a copy.
    pub text: Option<Arc<[u8]>>,
    /// The store's revision of the change.
    pub revision: u64,
    /// The revision at which the resource was first written: older routes win ties.
    pub created: u64,
}

/// What a snapshot is compiled with.
#[derive(Clone)]
pub struct Deps {
    /// Enabled plugins.
    pub registry: Registry,
    /// What becomes of plugins this version does not have.
    pub unknown_plugins: UnknownPlugins,
    /// `plugin_attr` of config.yaml.
    pub plugin_attr: Value,
    /// TLS and names for upstreams.
    pub upstream: UpstreamDeps,
    /// How routes are matched.
    pub router: Mode,
    /// Request threads.
    pub workers: usize,
}

/// A resource that does not compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Why, and what serves in its place.
    pub cause: String,
}

/// Holds the resources and makes snapshots of them.
pub struct Compiler {
    deps: Deps,
    references: Arc<dyn References>,
    ssls: BTreeMap<Arc<str>, Stored<Option<Arc<Ssl>>>>,
    upstreams: BTreeMap<Arc<str>, Stored<Result<Arc<Upstream>, String>>>,
    services: BTreeMap<Arc<str>, Stored<ServiceEntry>>,
    plugin_configs: BTreeMap<Arc<str>, Stored<Plugins>>,
    global_rules: BTreeMap<Arc<str>, Stored<Option<Arc<Chain>>>>,
    metadata: BTreeMap<Arc<str>, Stored<Option<Value>>>,
    routes: BTreeMap<Arc<str>, Stored<()>>,
    consumer_groups: BTreeMap<Arc<str>, Stored<()>>,
    consumers: BTreeMap<Arc<str>, Stored<ConsumerEntry>>,
    credentials: BTreeMap<Arc<str>, Stored<CredentialEntries>>,
    known_consumers: Consumers,
    links: Links,
    router: Router<Arc<Route>>,
    global: Arc<Chain>,
    /// What is in `certificates`.
    serving: BTreeMap<Arc<str>, Arc<TlsEntry>>,
    certificates: Arc<Certificates>,
    no_plugins: Arc<Chain>,
    plugins: Arc<PluginFacts>,
    counters: Source,
    revision: u64,
    reports: BTreeMap<Node, String>,
    /// `reports` as shown, and whether they are so still.
    shown: (Arc<Vec<Report>>, bool),
    warned: BTreeSet<String>,
}

/// A resource, and what was made of it.
struct Stored<T> {
    text: Arc<[u8]>,
    created: u64,
    uses: Box<[Node]>,
    made: T,
}

/// The last version that could be read, or why there is none.
struct ServiceEntry {
    config: Result<Arc<ServiceConfig>, String>,
    upstream: Option<Result<Arc<Upstream>, Broken>>,
}

/// The plugins of the last version that could be read, or why there is none.
type Plugins = Result<Map<String, Value>, String>;

/// Resources that are to be compiled.
type Dirty = BTreeMap<Kind, BTreeSet<Arc<str>>>;

impl Compiler {
    /// A compiler that knows no resource yet.
    pub fn new(deps: Deps) -> Self {
        Self {
            references: Arc::new(references::Unknown),
            ssls: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            services: BTreeMap::new(),
            plugin_configs: BTreeMap::new(),
            global_rules: BTreeMap::new(),
            metadata: BTreeMap::new(),
            routes: BTreeMap::new(),
            consumer_groups: BTreeMap::new(),
            consumers: BTreeMap::new(),
            credentials: BTreeMap::new(),
            known_consumers: Consumers::default(),
            links: Links::default(),
            router: Router::builder(deps.router).build(),
            global: Arc::default(),
            serving: BTreeMap::new(),
            certificates: Arc::default(),
            no_plugins: Arc::default(),
            plugins: Arc::default(),
            counters: Source::new(deps.workers),
            revision: 0,
            reports: BTreeMap::new(),
            shown: (Arc::default(), true),
            warned: BTreeSet::new(),
            deps,
        }
    }

    /// Asks `references` about those that have no value.
    #[must_use]
    pub fn with_references(mut self, references: Arc<dyn References>) -> Self {
        self.references = references;
        self
    }

    /// Every resource that does not compile now.
    pub fn reports(&self) -> Arc<Vec<Report>> {
        self.shown.0.clone()
    }

    /// Every resource that is known, for a comparison with what a store says anew.
    pub fn known(&self) -> Vec<(Kind, String)> {
        self.all().into_iter().map(|(kind, id)| (kind, id.as_ref().to_owned())).collect()
    }

    /// Takes new static configuration (plugins, router mode) and recompiles everything.
    ///
    /// Other plugins have other secrets, and name other resources: `changes` are the resources as
    /// they are read with the new ones.
    pub fn rebuild(
        &mut self,
        deps: Deps,
        changes: impl IntoIterator<Item = Change>,
    ) -> Arc<Snapshot> {
        self.deps = deps;
        self.plugins = Arc::default();
        self.warned.clear();
        let mut all = self.take_up(changes);
        for (kind, id) in self.all() {
            all.entry(kind).or_default().insert(id);
        }
        self.compile(all)
    }

    /// Applies changes in order and makes the next snapshot. Each is taken up before the next is
    /// asked for.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Arc<Snapshot> {
        let dirty = self.take_up(changes);
        self.compile(dirty)
    }

    /// Keeps changed resources, and names those that are to be compiled.
    fn take_up(&mut self, changes: impl IntoIterator<Item = Change>) -> Dirty {
        let mut dirty = Dirty::new();
        for change in changes {
            self.revision = self.revision.max(change.revision);
            if let Some((kind, id)) = self.store(change) {
                dirty.entry(kind).or_default().insert(id);
            }
        }
        dirty
    }

    fn all(&self) -> Vec<Node> {
        let mut all = Vec::new();
        all.extend(self.ssls.keys().map(|id| (Kind::Ssls, id.clone())));
        all.extend(self.upstreams.keys().map(|id| (Kind::Upstreams, id.clone())));
        all.extend(self.services.keys().map(|id| (Kind::Services, id.clone())));
        all.extend(self.plugin_configs.keys().map(|id| (Kind::PluginConfigs, id.clone())));
        all.extend(self.global_rules.keys().map(|id| (Kind::GlobalRules, id.clone())));
        all.extend(self.metadata.keys().map(|id| (Kind::PluginMetadata, id.clone())));
        all.extend(self.routes.keys().map(|id| (Kind::Routes, id.clone())));
        all.extend(self.consumer_groups.keys().map(|id| (Kind::ConsumerGroups, id.clone())));
        all.extend(self.consumers.keys().map(|id| (Kind::Consumers, id.clone())));
        all.extend(self.credentials.keys().map(|id| (Kind::Credentials, id.clone())));
        all
    }

    /// Keeps a changed resource and names it, if it is of a kind that is compiled.
    fn store(&mut self, change: Change) -> Option<Node> {
        let Change { kind, id, value, text, created, .. } = change;
        let uses = |value| self.links.of(kind, &id, value, &self.deps.registry);
        let uses = value.as_ref().map(uses).unwrap_or_default();
        let text = value.map(|value| text.unwrap_or_else(|| value.to_string().into_bytes().into()));
        let change = Text { kind, id: id.into(), text, created, uses };
        let links = &mut self.links;
        let id = match kind {
            Kind::Ssls => change.put(&mut self.ssls, links, || None),
            Kind::Upstreams => change.put(&mut self.upstreams, links, not_compiled),
            Kind::Services => change.put(&mut self.services, links, || ServiceEntry {
                config: not_compiled(),
                upstream: None,
            }),
            Kind::PluginConfigs => change.put(&mut self.plugin_configs, links, not_compiled),
            Kind::GlobalRules => change.put(&mut self.global_rules, links, || None),
            Kind::PluginMetadata => change.put(&mut self.metadata, links, || None),
            Kind::Routes => change.put(&mut self.routes, links, || ()),
            Kind::ConsumerGroups => change.put(&mut self.consumer_groups, links, || ()),
            Kind::Consumers => {
                self.withdraw_consumer(&change);
                let links = &mut self.links;
                change.put(&mut self.consumers, links, ConsumerEntry::default)
            }
            Kind::Credentials => {
                self.withdraw_credential(&change);
                let links = &mut self.links;
                change.put(&mut self.credentials, links, CredentialEntries::default)
            }
            // Kinds that later parts of the gateway serve are stored, and nothing here reads them.
            _ => return None,
        };
        self.forget_report(kind, &id);
        Some((kind, id))
    }

    /// Compiles resources and whoever depends on them.
    fn compile(&mut self, mut dirty: Dirty) -> Arc<Snapshot> {
        // What others refer to comes first.
        for kind in [Kind::Ssls, Kind::PluginMetadata, Kind::Upstreams, Kind::PluginConfigs] {
            let ids = self.take(kind, &mut dirty);
            for id in &ids {
                match kind {
                    Kind::Ssls => self.compile_ssl(id),
                    Kind::PluginMetadata => self.compile_metadata(id),
                    Kind::Upstreams => self.compile_upstream(id),
                    _ => self.compile_plugin_config(id),
                }
            }
            let none_yet = self.plugins.enabled.is_empty();
            if kind == Kind::PluginMetadata && (none_yet || !ids.is_empty()) {
                self.plugins = self.plugin_facts();
            }
        }
        for id in self.take(Kind::Services, &mut dirty) {
            self.compile_service(&id);
        }
        let rules = self.take(Kind::GlobalRules, &mut dirty);
        for id in &rules {
            self.compile_global_rule(id);
        }
        if !rules.is_empty() {
            self.merge_global_rules();
        }
        for id in self.take(Kind::ConsumerGroups, &mut dirty) {
            self.compile_consumer_group(&id);
        }
        for id in self.take(Kind::Consumers, &mut dirty) {
            self.compile_consumer(&id);
        }
        for id in self.take(Kind::Credentials, &mut dirty) {
            self.compile_credential(&id);
        }
        let routes = self.take(Kind::Routes, &mut dirty);
        self.compile_routes(&routes);
        self.show_reports();
        Arc::new(Snapshot {
            revision: self.revision,
            router: self.router.clone(),
            global: self.global.clone(),
            consumers: self.known_consumers.clone(),
            certificates: self.certificates.clone(),
            plugins: self.plugins.clone(),
        })
    }

    /// Takes the resources of one kind out, and puts in who uses them.
    fn take(&self, kind: Kind, dirty: &mut Dirty) -> BTreeSet<Arc<str>> {
        let taken = dirty.remove(&kind).unwrap_or_default();
        for id in &taken {
            for (kind, user) in self.links.users(&(kind, id.clone())) {
                dirty.entry(*kind).or_default().insert(user.clone());
            }
        }
        taken
    }

    fn compile_ssl(&mut self, id: &Arc<str>) {
        let Some(stored) = self.ssls.get_mut(id) else {
            if let Some(before) = self.serving.remove(id) {
                Arc::make_mut(&mut self.certificates).change(id, Some(&before), None);
            }
            return;
        };
        let compiled = Ssl::load(&read(&stored.text)).map_err(|e| e.to_string()).and_then(|ssl| {
            if let Some(cause) = references::unresolved_ssl(&ssl, &self.references) {
                return Err(cause);
            }
            let tls = TlsEntry::compile(id, &ssl);
            stored.made = Some(Arc::new(ssl));
            let tls = Arc::new(tls?);
            let before = self.serving.insert(id.clone(), tls.clone());
            let certificates = Arc::make_mut(&mut self.certificates);
            certificates.change(id, before.as_deref(), Some(&tls));
            Ok(())
        });
        self.note(Kind::Ssls, id, compiled);
    }

    /// Puts together what is said about plugins as such.
    fn plugin_facts(&self) -> Arc<PluginFacts> {
        let metadata = self.metadata.iter();
        let made = |(id, stored): (&Arc<str>, &Stored<Option<Value>>)| {
            Some((id.clone(), stored.made.clone()?))
        };
        Arc::new(PluginFacts {
            enabled: self.deps.registry.iter().map(|plugin| plugin.info.name).collect(),
            metadata: metadata.filter_map(made).collect(),
            attr: self.deps.plugin_attr.clone(),
        })
    }

    fn compile_metadata(&mut self, id: &Arc<str>) {
        let Some(stored) = self.metadata.get_mut(id) else { return };
        let value = read(&stored.text);
        let compiled = match self.deps.registry.get(id) {
            Some(plugin) => plugin.metadata(value),
            None => Ok(value),
        };
        let compiled = compiled.map(|value| stored.made = Some(value));
        self.note(Kind::PluginMetadata, id, compiled);
    }

    fn compile_upstream(&mut self, id: &Arc<str>) {
        let Some(stored) = self.upstreams.get(id) else { return };
        let compiled = UpstreamConfig::load(&read(&stored.text))
            .map_err(|e| e.to_string())
            .and_then(|config| self.upstream(Kind::Upstreams, id, &config));
        self.note(Kind::Upstreams, id, compiled.clone());
        if let Some(stored) = self.upstreams.get_mut(id)
            && (compiled.is_ok() || stored.made.is_err())
        {
            stored.made = compiled;
        }
    }

    /// An upstream on its own, or inside a route or service of this kind and id.
    fn upstream(
        &self,
        kind: Kind,
        id: &Arc<str>,
        config: &UpstreamConfig,
    ) -> Result<Arc<Upstream>, String> {
        self.upstream_at(&format!("/{}/{id}", kind.plural()), id, config)
    }

    /// An upstream that is configured at this place.
    fn upstream_at(
        &self,
        key: &str,
        id: &Arc<str>,
        config: &UpstreamConfig,
    ) -> Result<Arc<Upstream>, String> {
        let client_cert = |id: &str| {
            let ssl = self.ssls.get(id)?.made.as_ref().filter(|s| s.kind == "client")?;
            Some((ssl.cert.clone(), ssl.key.clone()))
        };
        Upstream::compile(key, id, config, &self.deps.upstream, &client_cert).map(Arc::new)
    }

    /// The upstream that a route or service names.
    fn upstream_of_id(&self, id: &str) -> Result<Arc<Upstream>, Broken> {
        let Some(stored) = self.upstreams.get(id) else {
            let cause = format!("upstream {id} does not exist");
            return Err(Broken { status: StatusCode::BAD_GATEWAY, cause, keeps_good: false });
        };
        stored.made.clone().map_err(unavailable)
    }

    fn compile_plugin_config(&mut self, id: &Arc<str>) {
        let Some(stored) = self.plugin_configs.get_mut(id) else { return };
        let plugins = plugins_of(Kind::PluginConfigs, id, read(&stored.text));
        let outcome = plugins.as_ref().map(drop).map_err(Clone::clone);
        if plugins.is_ok() || stored.made.is_err() {
            stored.made = plugins;
        }
        self.note(Kind::PluginConfigs, id, outcome);
    }

    fn compile_service(&mut self, id: &Arc<str>) {
        let Some(stored) = self.services.get_mut(id) else { return };
        let config = ServiceConfig::load(&read(&stored.text)).map_err(|e| e.to_string());
        let outcome = config.as_ref().map(drop).map_err(Clone::clone);
        if config.is_ok() || stored.made.config.is_err() {
            stored.made.config = config.map(Arc::new);
        }
        let config = stored.made.config.clone();
        let upstream = match config.as_ref().map(|c| (&c.upstream, &c.upstream_id)) {
            Ok((_, Some(used))) => Some(self.upstream_of_id(used)),
            Ok((Some(upstream), None)) => {
                Some(self.upstream(Kind::Services, id, upstream).map_err(unavailable))
            }
            Ok((None, None)) | Err(_) => None,
        };
        let served = upstream.clone().transpose().map_err(|broken| broken.cause);
        self.note(Kind::Services, id, outcome.and(served.map(drop)));
        if let Some(stored) = self.services.get_mut(id) {
            stored.made.upstream = upstream;
        }
    }

    fn compile_global_rule(&mut self, id: &Arc<str>) {
        let Some(stored) = self.global_rules.get(id) else { return };
        let compiled = plugins_of(Kind::GlobalRules, id, read(&stored.text))
            .map_err(unavailable)
            .and_then(|plugins| self.chain(&plugins, &format!("global rule {id}")));
        let outcome = compiled.as_ref().map(drop).map_err(|broken| broken.cause.clone());
        if let Some(stored) = self.global_rules.get_mut(id) {
            match compiled {
                Ok(chain) => stored.made = Some(chain),
                Err(Broken { keeps_good: true, .. }) if stored.made.is_some() => {}
                // Its conditions are those of every request.
                Err(Broken { cause, .. }) => {
                    let refuse = Refuse::because(self.references.redact(cause));
                    stored.made = Some(Arc::new(Chain::of_one(Arc::new(refuse))));
                }
            }
        }
        self.note(Kind::GlobalRules, id, outcome);
    }

    /// Puts the plugins of all rules in the order of their priorities, as APISIX does.
    ///
    /// Differs: of a plugin that several rules have (the Admin API takes no second one, a store may
    /// hold it), each runs, in the order of the rules' ids. APISIX runs none of them then, and lets
    /// requests through that one rule alone would refuse.
    fn merge_global_rules(&mut self) {
        let made = |(id, rule): (_, &'_ Stored<Option<Arc<Chain>>>)| Some((id, rule.made.clone()?));
        let rules: Vec<(&Arc<str>, Arc<Chain>)> =
            self.global_rules.iter().filter_map(made).collect();
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        for (id, chain) in &rules {
            for name in chain.names() {
                if let Some(other) = first.insert(name, id)
                    && self.warned.len() < WARNED_MAX
                    && self.warned.insert(format!("global rules {other} and {id}: {name}"))
                {
                    warn!(
                        plugin = name,
                        first = other,
                        second = &***id,
                        "Two global rules have the same plugin; both run, in the order of their ids."
                    );
                }
            }
        }
        self.global = Arc::new(Chain::of_all(rules.iter().map(|(_, chain)| &**chain)));
    }

    /// Plugins in the order they run. Those of consumers and their groups are merged in when a
    /// request's consumer is known.
    fn chain(&mut self, plugins: &Map<String, Value>, owner: &str) -> Result<Arc<Chain>, Broken> {
        self.chain_of(plugins, owner, &|_| owner)
    }

    /// As [`Compiler::chain`]; `owner_of` knows in which resource a plugin's configuration stands.
    fn chain_of<'o>(
        &mut self,
        plugins: &Map<String, Value>,
        owner: &str,
        owner_of: &dyn Fn(&str) -> &'o str,
    ) -> Result<Arc<Chain>, Broken> {
        if plugins.is_empty() {
            return Ok(self.no_plugins.clone());
        }
        let mut warned = std::mem::take(&mut self.warned);
        let Deps { registry, unknown_plugins, .. } = &self.deps;
        let refused = unknown_plugins.refused(plugins, registry, owner, &mut warned);
        self.warned = warned;
        let Deps { registry, plugin_attr, upstream, .. } = &self.deps;
        let metadata = |name: &str| self.metadata.get(name)?.made.as_ref();
        // Differs: APISIX uses a reference that has no value as the value.
        let refused = refused
            .or_else(|| references::unresolved(plugins, &metadata, registry, &self.references));
        if let Some(cause) = refused {
            // Nor may the version before serve, which lacks what was asked for.
            return Err(Broken { keeps_good: false, ..unavailable(cause) });
        }
        let upstreams: (_, Option<&dyn Upstreams>) = (upstream, Some(self));
        let chain = Chain::compile(plugins, registry, plugin_attr, &metadata, owner_of, upstreams);
        chain.map(Arc::new).map_err(unavailable)
    }

    /// Notes whether a resource compiled.
    fn note<T>(&mut self, kind: Kind, id: &Arc<str>, outcome: Result<T, String>) {
        match outcome {
            Ok(_) => self.forget_report(kind, id),
            Err(cause) => {
                let cause = self.references.redact(cause);
                error!(
                    kind = kind.plural(),
                    id = &**id,
                    cause,
                    "A resource does not compile; its previous version serves, or 503 where there is none."
                );
                self.reports.insert((kind, id.clone()), cause);
                self.shown.1 = false;
            }
        }
    }

    fn forget_report(&mut self, kind: Kind, id: &Arc<str>) {
        if !self.reports.is_empty() && self.reports.remove(&(kind, id.clone())).is_some() {
            self.shown.1 = false;
        }
    }

    fn show_reports(&mut self) {
        if self.shown.1 {
            return;
        }
        let shown = self.reports.iter().map(|((kind, id), cause)| Report {
            kind: *kind,
            id: id.as_ref().to_owned(),
            cause: cause.clone(),
        });
        self.shown = (Arc::new(shown.collect()), true);
    }
}

impl Upstreams for Compiler {
    fn of_id(&self, id: &str) -> Result<Arc<Upstream>, String> {
        self.upstream_of_id(id).map_err(|broken| broken.cause)
    }

    fn compile(&self, key: &str, config: &Value) -> Result<Arc<Upstream>, String> {
        let config = UpstreamConfig::load(config).map_err(|e| e.to_string())?;
        self.upstream_at(key, &key.into(), &config)
    }
}

/// A change as it is kept.
struct Text {
    kind: Kind,
    id: Arc<str>,
    /// `None`: it was deleted.
    text: Option<Arc<[u8]>>,
    created: u64,
    uses: Box<[Node]>,
}

impl Text {
    /// Puts it where resources of its kind are kept, and links it with those it uses.
    fn put<T>(
        self,
        all: &mut BTreeMap<Arc<str>, Stored<T>>,
        links: &mut Links,
        new: impl FnOnce() -> T,
    ) -> Arc<str> {
        let Self { kind, id, text, created, uses } = self;
        let id = all.get_key_value(&id).map_or(id, |(known, _)| known.clone());
        let node = (kind, id);
        let before = all.remove(&node.1);
        let gone = before.as_ref().map_or(&[][..], |before| &before.uses);
        links.change(&node, gone, &uses);
        if let Some(text) = text {
            let made = before.map_or_else(new, |before| before.made);
            all.insert(node.1.clone(), Stored { text, created, uses, made });
        }
        node.1
    }
}

/// Why something cannot serve.
#[derive(Clone)]
struct Broken {
    /// What its requests are answered.
    status: StatusCode,
    cause: String,
    /// The version before, which compiled, serves in its place.
    keeps_good: bool,
}

fn unavailable(cause: String) -> Broken {
    Broken { status: StatusCode::SERVICE_UNAVAILABLE, cause, keeps_good: true }
}

fn not_compiled<T>() -> Result<T, String> {
    Err("not compiled yet".to_owned())
}

/// What was stored as the text of a value is one.
fn read(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_default()
}

/// The plugins of a resource that has little else.
fn plugins_of(kind: Kind, id: &str, mut value: Value) -> Plugins {
    if let Value::Object(map) = &mut value {
        map.entry("id").or_insert_with(|| id.into());
    }
    kind.schema().check(&value).map_err(|e| format!("invalid configuration: {e}"))?;
    match value.get_mut("plugins").map(Value::take) {
        Some(Value::Object(plugins)) => Ok(plugins),
        // Lua knows no difference between an empty list and an empty map.
        _ => Ok(Map::new()),
    }
}

#[cfg(test)]
mod tests;

//! From stored resources to a snapshot. A change recompiles what depends on it and nothing
//! else; everything untouched is shared with the snapshot before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Map, Value};
use sluicegate_model::kind::Kind;
use sluicegate_model::route::Route as RouteConfig;
use sluicegate_model::service::Service as ServiceConfig;
use sluicegate_model::ssl::Ssl;
use sluicegate_model::upstream::Upstream as UpstreamConfig;
use tracing::{error, warn};

use crate::chain::Chain;
use crate::expr::{Expr, IpSet};
use crate::plugin::Registry;
use crate::router::{Methods, Mode, RouteInput, Router};
use crate::tls::{Certificates, TlsEntry};
use crate::upstream::{Upstream, UpstreamDeps, timeouts};

use super::{Route, RouteCounters, Snapshot};

/// One resource written or removed. Secrets are in the clear.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Its value; `None`: it was deleted.
    pub value: Option<Value>,
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
    routes: BTreeMap<String, Stored<RouteConfig>>,
    services: BTreeMap<String, ServiceEntry>,
    upstreams: BTreeMap<String, UpstreamEntry>,
    ssls: BTreeMap<String, Arc<Ssl>>,
    tls: BTreeMap<String, Arc<TlsEntry>>,
    plugin_configs: BTreeMap<String, Map<String, Value>>,
    /// Global rules: their plugins as configured, and compiled.
    global: BTreeMap<String, (Map<String, Value>, Arc<Chain>)>,
    by_service: HashMap<String, BTreeSet<String>>,
    by_upstream: HashMap<String, BTreeSet<String>>,
    by_plugin_config: HashMap<String, BTreeSet<String>>,
    /// The last version of each route that compiled whole.
    good: HashMap<String, RouteInput<Arc<Route>>>,
    router: Router<Arc<Route>>,
    certificates: Arc<Certificates>,
    revision: u64,
    reports: BTreeMap<(&'static str, String), String>,
}

struct Stored<T> {
    config: Arc<T>,
    created: u64,
}

struct ServiceEntry {
    config: Arc<ServiceConfig>,
    upstream: Option<Result<Arc<Upstream>, String>>,
}

struct UpstreamEntry {
    config: Arc<UpstreamConfig>,
    compiled: Result<Arc<Upstream>, String>,
}

impl Compiler {
    /// A compiler that knows no resource yet.
    pub fn new(deps: Deps) -> Self {
        let router = Router::builder(deps.router).build();
        Self {
            deps,
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            ssls: BTreeMap::new(),
            tls: BTreeMap::new(),
            plugin_configs: BTreeMap::new(),
            global: BTreeMap::new(),
            by_service: HashMap::new(),
            by_upstream: HashMap::new(),
            by_plugin_config: HashMap::new(),
            good: HashMap::new(),
            router,
            certificates: Arc::default(),
            revision: 0,
            reports: BTreeMap::new(),
        }
    }

    /// Every resource that does not compile now.
    pub fn reports(&self) -> Vec<Report> {
        self.reports
            .iter()
            .filter_map(|((kind, id), cause)| {
                let kind = Kind::from_plural(kind)?;
                Some(Report { kind, id: id.clone(), cause: cause.clone() })
            })
            .collect()
    }

    /// Every resource that is known, for a comparison with what a store says anew.
    pub fn known(&self) -> Vec<(Kind, String)> {
        let of = |kind: Kind, ids: Vec<&String>| {
            ids.into_iter().map(move |id| (kind, id.clone())).collect::<Vec<_>>()
        };
        [
            of(Kind::Routes, self.routes.keys().collect()),
            of(Kind::Services, self.services.keys().collect()),
            of(Kind::Upstreams, self.upstreams.keys().collect()),
            of(Kind::PluginConfigs, self.plugin_configs.keys().collect()),
            of(Kind::GlobalRules, self.global.keys().collect()),
            of(Kind::Ssls, self.ssls.keys().collect()),
        ]
        .concat()
    }

    /// Takes new static configuration (plugins, router mode) and recompiles everything.
    pub fn rebuild(&mut self, deps: Deps) -> Arc<Snapshot> {
        self.deps = deps;
        let upstreams: Vec<_> = self.upstreams.keys().cloned().collect();
        for id in upstreams {
            self.compile_upstream(&id);
        }
        let services: Vec<_> = self.services.keys().cloned().collect();
        for id in services {
            self.compile_service(&id);
        }
        let rules: Vec<_> =
            self.global.iter().map(|(id, rule)| (id.clone(), rule.0.clone())).collect();
        for (id, plugins) in rules {
            self.compile_global(id, plugins);
        }
        let all: HashSet<String> = self.routes.keys().cloned().collect();
        self.router = Router::builder(self.deps.router).build();
        self.recompile_routes(&all);
        self.snapshot()
    }

    /// Applies changes in order and makes the next snapshot.
    pub fn apply(&mut self, mut changes: Vec<Change>) -> Arc<Snapshot> {
        let mut dirty = HashSet::new();
        let mut certificates = false;
        // What others refer to comes first: a store lists services before upstreams.
        changes.sort_by_key(|change| match change.kind {
            Kind::Ssls => 0,
            Kind::Upstreams => 1,
            Kind::Services => 2,
            _ => 3,
        });
        for change in changes {
            self.revision = self.revision.max(change.revision);
            certificates |= change.kind == Kind::Ssls;
            self.apply_one(change, &mut dirty);
        }
        if certificates {
            self.rebuild_certificates(&mut dirty);
        }
        self.recompile_routes(&dirty);
        self.snapshot()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            revision: self.revision,
            router: self.router.clone(),
            global: self.global.values().map(|rule| rule.1.clone()).collect(),
            certificates: self.certificates.clone(),
        })
    }

    fn apply_one(&mut self, change: Change, dirty: &mut HashSet<String>) {
        let Change { kind, id, value, created, .. } = change;
        match kind {
            Kind::Routes => {
                self.unlink_route(&id);
                dirty.insert(id.clone());
                let Some(value) = value else {
                    self.routes.remove(&id);
                    self.good.remove(&id);
                    self.clear_report(kind, &id);
                    return;
                };
                match RouteConfig::load(&value) {
                    Ok(config) => {
                        self.link_route(&id, &config);
                        self.routes.insert(id, Stored { config: Arc::new(config), created });
                    }
                    // What cannot even be read keeps its previous version.
                    Err(e) => self.report(kind, &id, e.to_string()),
                }
            }
            Kind::Services => {
                match value.map(|v| ServiceConfig::load(&v)) {
                    None => {
                        self.services.remove(&id);
                        self.clear_report(kind, &id);
                    }
                    Some(Ok(config)) => {
                        self.services.insert(
                            id.clone(),
                            ServiceEntry { config: Arc::new(config), upstream: None },
                        );
                        self.compile_service(&id);
                    }
                    Some(Err(e)) => return self.report(kind, &id, e.to_string()),
                }
                dirty.extend(self.by_service.get(&id).into_iter().flatten().cloned());
            }
            Kind::Upstreams => {
                match value.map(|v| UpstreamConfig::load(&v)) {
                    None => {
                        self.upstreams.remove(&id);
                        self.clear_report(kind, &id);
                    }
                    Some(Ok(config)) => {
                        let config = Arc::new(config);
                        let compiled = Err("not compiled yet".to_owned());
                        let before =
                            self.upstreams.insert(id.clone(), UpstreamEntry { config, compiled });
                        self.compile_upstream(&id);
                        self.keep_good_upstream(&id, before);
                    }
                    Some(Err(e)) => return self.report(kind, &id, e.to_string()),
                }
                self.mark_upstream_users(&id, dirty);
            }
            Kind::PluginConfigs => {
                match value {
                    None => drop(self.plugin_configs.remove(&id)),
                    Some(mut value) => {
                        let plugins = match value.get_mut("plugins").map(Value::take) {
                            Some(Value::Object(map)) => map,
                            _ => Map::new(),
                        };
                        self.plugin_configs.insert(id.clone(), plugins);
                    }
                }
                dirty.extend(self.by_plugin_config.get(&id).into_iter().flatten().cloned());
            }
            Kind::GlobalRules => match value {
                None => {
                    self.global.remove(&id);
                    self.clear_report(kind, &id);
                }
                Some(mut value) => {
                    let plugins = match value.get_mut("plugins").map(Value::take) {
                        Some(Value::Object(map)) => map,
                        _ => Map::new(),
                    };
                    self.compile_global(id, plugins);
                }
            },
            Kind::Ssls => match value.map(|v| Ssl::load(&v)) {
                None => {
                    self.ssls.remove(&id);
                    self.tls.remove(&id);
                    self.clear_report(kind, &id);
                }
                Some(Ok(ssl)) => {
                    match TlsEntry::compile(&id, &ssl) {
                        Ok(entry) => {
                            self.clear_report(kind, &id);
                            self.tls.insert(id.clone(), Arc::new(entry));
                        }
                        Err(e) => self.report(kind, &id, e),
                    }
                    self.ssls.insert(id, Arc::new(ssl));
                }
                Some(Err(e)) => self.report(kind, &id, e.to_string()),
            },
            // Kinds that later parts of the gateway serve are stored, and nothing here reads them.
            _ => {}
        }
    }

    fn compile_global(&mut self, id: String, plugins: Map<String, Value>) {
        let owner = format!("global rule {id}");
        let Deps { registry, plugin_attr, upstream, .. } = &self.deps;
        match Chain::compile(&plugins, registry, plugin_attr, &owner, upstream) {
            Ok(chain) => {
                self.clear_report(Kind::GlobalRules, &id);
                self.global.insert(id, (plugins, Arc::new(chain)));
            }
            Err(cause) => self.report(Kind::GlobalRules, &id, cause),
        }
    }

    fn report(&mut self, kind: Kind, id: &str, cause: String) {
        error!(
            kind = kind.plural(),
            id,
            cause,
            "A resource does not compile; its previous version serves, or 503 where there is none."
        );
        self.reports.insert((kind.plural(), id.to_owned()), cause);
    }

    fn clear_report(&mut self, kind: Kind, id: &str) {
        self.reports.remove(&(kind.plural(), id.to_owned()));
    }

    fn link_route(&mut self, id: &str, config: &RouteConfig) {
        for (users, used) in [
            (&mut self.by_service, &config.service_id),
            (&mut self.by_upstream, &config.upstream_id),
            (&mut self.by_plugin_config, &config.plugin_config_id),
        ] {
            if let Some(used) = used {
                users.entry(used.clone()).or_default().insert(id.to_owned());
            }
        }
    }

    fn unlink_route(&mut self, id: &str) {
        let Some(stored) = self.routes.get(id) else { return };
        let config = stored.config.clone();
        for (users, used) in [
            (&mut self.by_service, &config.service_id),
            (&mut self.by_upstream, &config.upstream_id),
            (&mut self.by_plugin_config, &config.plugin_config_id),
        ] {
            if let Some(used) = used
                && let Some(set) = users.get_mut(used)
            {
                set.remove(id);
                if set.is_empty() {
                    users.remove(used);
                }
            }
        }
    }

    fn mark_upstream_users(&mut self, id: &str, dirty: &mut HashSet<String>) {
        dirty.extend(self.by_upstream.get(id).into_iter().flatten().cloned());
        let services: Vec<String> = self
            .services
            .iter()
            .filter(|(_, s)| s.config.upstream_id.as_deref() == Some(id))
            .map(|(id, _)| id.clone())
            .collect();
        for service in services {
            self.compile_service(&service);
            dirty.extend(self.by_service.get(&service).into_iter().flatten().cloned());
        }
    }

    fn upstream(&self, id: &str, config: &UpstreamConfig) -> Result<Arc<Upstream>, String> {
        if !matches!(config.kind.as_str(), "" | "roundrobin") {
            warn!(
                upstream = id,
                kind = config.kind,
                "This balancer type is not there yet: round robin serves in its place."
            );
        }
        if config.checks.is_some() {
            warn!(upstream = id, "Health checks are not there yet: every node counts as healthy.");
        }
        if config.nodes.is_none() && config.service_name.is_some() {
            return Err("service discovery is not there yet".into());
        }
        let client_cert = |id: &str| {
            let ssl = self.ssls.get(id).filter(|s| s.kind == "client")?;
            Some((ssl.cert.clone(), ssl.key.clone()))
        };
        Upstream::compile(id, config, &self.deps.upstream, &client_cert).map(Arc::new)
    }

    fn compile_upstream(&mut self, id: &str) {
        let Some(entry) = self.upstreams.get(id) else { return };
        let compiled = self.upstream(id, &entry.config);
        match &compiled {
            Ok(_) => self.clear_report(Kind::Upstreams, id),
            Err(e) => self.report(Kind::Upstreams, id, e.clone()),
        }
        if let Some(entry) = self.upstreams.get_mut(id)
            && (compiled.is_ok() || entry.compiled.is_err())
        {
            entry.compiled = compiled;
        }
    }

    fn keep_good_upstream(&mut self, id: &str, before: Option<UpstreamEntry>) {
        if let (Some(entry), Some(Ok(good))) =
            (self.upstreams.get_mut(id), before.map(|b| b.compiled))
            && entry.compiled.is_err()
        {
            entry.compiled = Ok(good);
        }
    }

    fn compile_service(&mut self, id: &str) {
        let Some(entry) = self.services.get(id) else { return };
        let config = entry.config.clone();
        let upstream = match (&config.upstream, &config.upstream_id) {
            (_, Some(used)) => Some(match self.upstreams.get(used) {
                Some(entry) => entry.compiled.clone(),
                None => Err(format!("upstream {used} does not exist")),
            }),
            (Some(upstream), None) => Some(self.upstream(id, upstream)),
            (None, None) => None,
        };
        match &upstream {
            Some(Err(e)) => self.report(Kind::Services, id, e.clone()),
            _ => self.clear_report(Kind::Services, id),
        }
        if let Some(entry) = self.services.get_mut(id) {
            entry.upstream = upstream;
        }
    }

    fn rebuild_certificates(&mut self, dirty: &mut HashSet<String>) {
        self.certificates = Arc::new(Certificates::build(self.tls.values().cloned()));
        // Whoever shows a client certificate of an ssl resource takes the new one.
        let shows = |upstream: &UpstreamConfig| {
            upstream.tls.as_ref().is_some_and(|tls| tls.client_cert_id.is_some())
        };
        let upstreams = self.upstreams.iter().filter(|(_, u)| shows(&u.config));
        let upstreams: Vec<String> = upstreams.map(|(id, _)| id.clone()).collect();
        for id in upstreams {
            self.compile_upstream(&id);
            self.mark_upstream_users(&id, dirty);
        }
        let services =
            self.services.iter().filter(|(_, s)| s.config.upstream.as_ref().is_some_and(shows));
        let services: Vec<String> = services.map(|(id, _)| id.clone()).collect();
        for id in services {
            self.compile_service(&id);
            dirty.extend(self.by_service.get(&id).into_iter().flatten().cloned());
        }
        let routes =
            self.routes.iter().filter(|(_, r)| r.config.upstream.as_ref().is_some_and(shows));
        dirty.extend(routes.map(|(id, _)| id.clone()));
    }

    fn recompile_routes(&mut self, dirty: &HashSet<String>) {
        let mut insert = Vec::new();
        let mut remove = Vec::new();
        for id in dirty {
            match self.compile_route(id) {
                Some(input) => insert.push(input),
                None => remove.push(id.as_str()),
            }
        }
        if insert.len() > BULK && insert.len() * 2 > self.routes.len() {
            // So much is new that building afresh is quicker than changing place by place.
            let mut builder = Router::builder(self.deps.router);
            for input in insert {
                builder.insert(input);
            }
            let rest: Vec<String> =
                self.routes.keys().filter(|id| !dirty.contains(*id)).cloned().collect();
            for id in rest {
                if let Some(input) = self.compile_route(&id) {
                    builder.insert(input);
                }
            }
            self.router = builder.build();
        } else {
            self.router = self.router.updated(remove, insert);
        }
    }

    /// The route as the router takes it; `None`: it is gone or disabled.
    fn compile_route(&mut self, id: &str) -> Option<RouteInput<Arc<Route>>> {
        let stored = self.routes.get(id)?;
        let (config, created) = (stored.config.clone(), stored.created);
        if !config.is_enabled() {
            self.clear_report(Kind::Routes, id);
            return None;
        }
        let service =
            config.service_id.as_ref().and_then(|s| self.services.get(s)).map(|s| s.config.clone());
        let mut broken = None;
        let vars = match config.vars.as_ref().map(Expr::compile).transpose() {
            Ok(vars) => vars,
            Err(e) => {
                broken = Some(format!("failed to validate the 'vars' expression: {e}"));
                None
            }
        };
        let addrs: Vec<&String> = config.remote_addrs.iter().chain(&config.remote_addr).collect();
        let remote_addrs = match (!addrs.is_empty()).then(|| IpSet::parse(addrs)).transpose() {
            Ok(set) => set,
            Err(e) => {
                broken = Some(e);
                None
            }
        };
        let methods = Methods::parse(&config.methods).unwrap_or_else(|e| {
            broken = Some(e);
            Methods::ANY
        });
        let mut hosts: Vec<String> = config.hosts.iter().chain(&config.host).cloned().collect();
        if hosts.is_empty()
            && let Some(service) = &service
        {
            hosts.clone_from(&service.hosts);
        }
        let route = match broken {
            None => self.runtime_route(id, &config, service.as_deref()),
            Some(cause) => Err((StatusCode::SERVICE_UNAVAILABLE, cause)),
        };
        let (route, is_good) = match route {
            Ok(route) => {
                self.clear_report(Kind::Routes, id);
                (Arc::new(route), true)
            }
            Err((status, cause)) => {
                self.report(Kind::Routes, id, cause.clone());
                if status == StatusCode::SERVICE_UNAVAILABLE
                    && let Some(good) = self.good.get(id)
                {
                    return Some(good.clone());
                }
                // Invariant: a route never vanishes, or its requests would fall through to another.
                (Arc::new(self.broken_route(id, &config, status, cause)), false)
            }
        };
        let input = RouteInput {
            id: route.id.clone(),
            payload: route,
            uris: config.uris.iter().chain(&config.uri).cloned().collect(),
            hosts,
            methods,
            remote_addrs,
            vars,
            priority: config.priority,
            order: created,
        };
        if is_good {
            self.good.insert(id.to_owned(), input.clone());
        }
        Some(input)
    }

    fn broken_route(
        &self,
        id: &str,
        config: &RouteConfig,
        status: StatusCode,
        cause: String,
    ) -> Route {
        Route {
            id: id.into(),
            name: config.name.clone(),
            service: config.service_id.clone().map(|id| (id, None)),
            chain: Arc::default(),
            upstream: None,
            enable_websocket: false,
            timeouts: None,
            broken: Some((status, cause)),
            requests: RouteCounters::new(self.deps.workers),
        }
    }

    fn runtime_route(
        &self,
        id: &str,
        config: &RouteConfig,
        service: Option<&ServiceConfig>,
    ) -> Result<Route, (StatusCode, String)> {
        let unavailable = |cause: String| (StatusCode::SERVICE_UNAVAILABLE, cause);
        if config.filter_func.is_some() {
            return Err(unavailable(
                "filter_func needs Lua, which this version does not have".into(),
            ));
        }
        if config.script.is_some() || service.is_some_and(|s| s.script.is_some()) {
            return Err(unavailable("script is not served: use plugins".into()));
        }
        if let (Some(wanted), None) = (&config.service_id, service) {
            return Err((StatusCode::NOT_FOUND, format!("service {wanted} does not exist")));
        }
        // The service's plugins, under the plugin config's, under the route's own.
        let mut plugins = service.map(|s| s.plugins.clone()).unwrap_or_default();
        if let Some(wanted) = &config.plugin_config_id {
            let common = self
                .plugin_configs
                .get(wanted)
                .ok_or_else(|| unavailable(format!("plugin_config {wanted} does not exist")))?;
            plugins.extend(common.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        plugins.extend(config.plugins.iter().map(|(k, v)| (k.clone(), v.clone())));
        let owner = format!("route {id}");
        let chain = Chain::compile(
            &plugins,
            &self.deps.registry,
            &self.deps.plugin_attr,
            &owner,
            &self.deps.upstream,
        )
        .map_err(unavailable)?;
        let bad_gateway = |cause: String| (StatusCode::BAD_GATEWAY, cause);
        let upstream = match (&config.upstream_id, &config.upstream) {
            (Some(used), _) => Some(match self.upstreams.get(used) {
                Some(entry) => entry.compiled.clone().map_err(unavailable)?,
                None => return Err(bad_gateway(format!("upstream {used} does not exist"))),
            }),
            (None, Some(own)) => Some(self.upstream(id, own).map_err(unavailable)?),
            (None, None) => match config.service_id.as_ref().and_then(|s| self.services.get(s)) {
                Some(entry) => entry.upstream.clone().transpose().map_err(unavailable)?,
                None => None,
            },
        };
        Ok(Route {
            id: id.into(),
            name: config.name.clone(),
            service: config.service_id.clone().map(|id| (id, service.and_then(|s| s.name.clone()))),
            chain: Arc::new(chain),
            upstream,
            enable_websocket: config
                .enable_websocket
                .or(service.and_then(|s| s.enable_websocket))
                .unwrap_or(false),
            timeouts: config.timeout.as_ref().map(|t| timeouts(Some(t))),
            broken: None,
            requests: RouteCounters::new(self.deps.workers),
        })
    }
}

/// Routes compiled at once from which on the router is built afresh.
const BULK: usize = 64;

#[cfg(test)]
mod tests;

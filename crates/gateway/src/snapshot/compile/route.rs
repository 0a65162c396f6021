//! Routes: their conditions for the router, and what a request finds behind them.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Map, Value};
use sluicegate_model::kind::Kind;
use sluicegate_model::resource::id_text;
use sluicegate_model::route::Route as RouteConfig;
use sluicegate_model::service::Service as ServiceConfig;

use super::super::{Route, RouteCounters};
use super::{Broken, Compiler, read, unavailable};
use crate::expr::{Expr, IpSet};
use crate::router::{Methods, RouteInput, Router};
use crate::upstream::timeouts;

impl Compiler {
    /// Compiles these routes and puts them in the places of those before.
    pub(super) fn compile_routes(&mut self, ids: &BTreeSet<Arc<str>>) {
        let (mut insert, mut remove) = (Vec::new(), Vec::new());
        for id in ids {
            match self.compile_route(id) {
                Outcome::Serve(input) => insert.push(*input),
                Outcome::Keep => {}
                Outcome::Gone => remove.push(&**id),
            }
        }
        let anew = self.router.mode() != self.deps.router
            || (insert.len() > BULK && insert.len() * 2 > self.routes.len());
        if !anew {
            self.router = self.router.updated(remove, insert);
            return;
        }
        // So much is new that building afresh is quicker than changing place by place.
        let mut builder = Router::builder(self.deps.router);
        let changed: BTreeSet<Arc<str>> = insert.iter().map(|input| input.id.clone()).collect();
        for input in insert {
            builder.insert(input);
        }
        let gone: BTreeSet<&str> = remove.into_iter().collect();
        for id in self.routes.keys() {
            if !changed.contains(id)
                && !gone.contains(&**id)
                && let Some(kept) = self.router.input(id)
            {
                builder.insert(kept);
            }
        }
        self.router = builder.build();
    }

    fn compile_route(&mut self, id: &Arc<str>) -> Outcome {
        let Some(stored) = self.routes.get(id) else { return Outcome::Gone };
        let (value, created) = (read(&stored.text), stored.created);
        let text = stored.text.clone();
        let (config, unreadable) = match RouteConfig::load(&value) {
            Ok(config) => (config, None),
            Err(e) => (conditions(&value), Some(e.to_string())),
        };
        if !config.is_enabled() {
            self.forget_report(Kind::Routes, id);
            return Outcome::Gone;
        }
        let service = config.service_id.as_deref().and_then(|service| self.services.get(service));
        let service = service.map(|service| service.made.config.clone());
        let mut broken = unreadable;
        let mut or_broken = |error: String| {
            broken.get_or_insert(error);
        };
        // A condition that cannot be read holds for every request: the route then answers 503.
        let vars = config.vars.as_ref().and_then(|vars| {
            Expr::compile(vars)
                .map_err(|e| or_broken(format!("failed to validate the 'vars' expression: {e}")))
                .ok()
        });
        let addrs: Vec<&String> = config.remote_addrs.iter().chain(&config.remote_addr).collect();
        let addrs = (!addrs.is_empty()).then(|| IpSet::parse(addrs));
        let remote_addrs = addrs.and_then(|addrs| addrs.map_err(&mut or_broken).ok());
        let methods = Methods::parse(&config.methods).map_err(&mut or_broken).unwrap_or_default();
        let mut hosts: Vec<String> = config.hosts.iter().chain(&config.host).cloned().collect();
        if hosts.is_empty()
            && let Some(Ok(service)) = &service
        {
            hosts.clone_from(&service.hosts);
        }
        let filter = config.filter_func.as_ref().and_then(|source| {
            let compiled = match self.deps.registry.filter_funcs() {
                Some(funcs) => (funcs.compile)(source, id),
                None => Err("filter_func needs Lua, which this build does not have".to_owned()),
            };
            compiled.map_err(&mut or_broken).ok()
        });
        let before = self.router.get(id).cloned();
        let requests = match &before {
            Some(route) => route.requests.clone(),
            None => self.counters.counters(),
        };
        let route = match broken {
            None => self.serving_route(id, &config, service.as_ref(), (&text, requests.clone())),
            Some(cause) => Err(unavailable(cause)),
        };
        let outcome = route.as_ref().map(drop).map_err(|broken| broken.cause.clone());
        self.note(Kind::Routes, id, outcome);
        let route = match route {
            Ok(route) => route,
            Err(Broken { keeps_good: true, .. }) if before.is_some_and(|r| r.broken.is_none()) => {
                return Outcome::Keep;
            }
            // Invariant: a route never vanishes, or its requests would fall through to another.
            Err(broken) => self.broken_route(id, &config, broken, (&text, requests)),
        };
        Outcome::Serve(Box::new(RouteInput {
            id: id.clone(),
            payload: Arc::new(route),
            uris: config.uris.into_iter().chain(config.uri).collect(),
            hosts,
            methods,
            remote_addrs,
            vars,
            filter,
            priority: config.priority,
            order: created,
        }))
    }

    fn broken_route(
        &self,
        id: &Arc<str>,
        config: &RouteConfig,
        Broken { status, cause, .. }: Broken,
        (text, requests): (&Arc<[u8]>, RouteCounters),
    ) -> Route {
        Route {
            id: id.clone(),
            name: config.name.as_deref().map(Into::into),
            service: config.service_id.clone().map(|id| Arc::new((id, None))),
            chain: self.no_plugins.clone(),
            upstream: None,
            enable_websocket: false,
            timeouts: None,
            broken: Some(Box::new((status, self.references.redact(cause)))),
            text: text.clone(),
            service_text: None,
            requests,
        }
    }

    fn serving_route(
        &mut self,
        id: &Arc<str>,
        config: &RouteConfig,
        service: Option<&Result<Arc<ServiceConfig>, String>>,
        (text, requests): (&Arc<[u8]>, RouteCounters),
    ) -> Result<Route, Broken> {
        let common = match &config.plugin_config_id {
            None => None,
            Some(wanted) => match self.plugin_configs.get(wanted.as_str()) {
                None => {
                    return Err(unavailable(format!("plugin_config {wanted} does not exist")));
                }
                Some(stored) => Some(stored.made.as_ref().map_err(|cause| {
                    unavailable(format!("plugin_config {wanted} cannot be used: {cause}"))
                })?),
            },
        };
        let service = match (&config.service_id, service) {
            (None, _) => None,
            (Some(wanted), None) => {
                let (status, cause) =
                    (StatusCode::NOT_FOUND, format!("service {wanted} does not exist"));
                return Err(Broken { status, cause, keeps_good: false });
            }
            (Some(wanted), Some(Err(cause))) => {
                return Err(unavailable(format!("service {wanted} cannot be used: {cause}")));
            }
            (Some(_), Some(Ok(service))) => Some(&**service),
        };
        if config.script.is_some() || service.is_some_and(|s| s.script.is_some()) {
            return Err(unavailable("script is not served: use plugins".into()));
        }
        let plugins = merged([service.map(|s| &s.plugins), common, Some(&config.plugins)]);
        let owner = format!("route {id}");
        let common_owner =
            format!("plugin config {}", config.plugin_config_id.as_deref().unwrap_or_default());
        let service_owner = format!("service {}", config.service_id.as_deref().unwrap_or_default());
        let common_names: Vec<String> =
            common.into_iter().flat_map(|c| c.keys().cloned()).collect();
        let owner_of = |name: &str| match () {
            () if config.plugins.contains_key(name) => owner.as_str(),
            () if common_names.iter().any(|common| common == name) => &common_owner,
            () => &service_owner,
        };
        let chain = self.chain_of(&plugins, &owner, &owner_of)?;
        let upstream = match (&config.upstream_id, &config.upstream) {
            (Some(used), _) => Some(self.upstream_of_id(used)?),
            (None, Some(own)) => Some(self.upstream(Kind::Routes, id, own).map_err(unavailable)?),
            (None, None) => {
                let service = config.service_id.as_deref().and_then(|s| self.services.get(s));
                let upstream = service.and_then(|service| service.made.upstream.clone());
                upstream.transpose()?
            }
        };
        Ok(Route {
            id: id.clone(),
            name: config.name.as_deref().map(Into::into),
            service: (config.service_id.clone())
                .map(|id| Arc::new((id, service.and_then(|s| s.name.clone())))),
            chain,
            upstream,
            enable_websocket: config
                .enable_websocket
                .or(service.and_then(|s| s.enable_websocket))
                .unwrap_or(false),
            timeouts: config.timeout.as_ref().map(|t| Box::new(timeouts(Some(t)))),
            broken: None,
            text: text.clone(),
            service_text: (config.service_id.as_deref())
                .and_then(|id| Some(self.services.get(id)?.text.clone())),
            requests,
        })
    }
}

/// What becomes of a route.
enum Outcome {
    Serve(Box<RouteInput<Arc<Route>>>),
    /// The version before goes on serving.
    Keep,
    /// It was deleted or is disabled, or nobody can tell which requests it is for.
    Gone,
}

/// Plugins of several places, of which the later ones count more. Each plugin's configuration is
/// taken whole.
fn merged(places: [Option<&Map<String, Value>>; 3]) -> Map<String, Value> {
    let plugins = places.into_iter().flatten().flatten();
    plugins.map(|(name, config)| (name.clone(), config.clone())).collect()
}

/// The conditions of a route that cannot be read as a whole, as far as they can.
fn conditions(value: &Value) -> RouteConfig {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let texts = |name: &str| {
        let list = value.get(name).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    RouteConfig {
        name: text("name"),
        uri: text("uri"),
        uris: texts("uris"),
        host: text("host"),
        hosts: texts("hosts"),
        methods: texts("methods"),
        remote_addr: text("remote_addr"),
        remote_addrs: texts("remote_addrs"),
        vars: value.get("vars").cloned(),
        priority: value.get("priority").and_then(Value::as_i64).unwrap_or_default(),
        status: if value.get("status") == Some(&Value::from(0)) { 0 } else { 1 },
        service_id: value.get("service_id").and_then(id_text),
        ..RouteConfig::default()
    }
}

/// Routes compiled at once from which on the router is built afresh.
const BULK: usize = 64;

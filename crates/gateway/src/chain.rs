//! The plugins of one route in the order they run, split by phase once.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::exchange::{Exchange, Response};
use crate::expr::Expr;
use crate::plugin::{CompileCtx, DynPlugin, Flow, Phases, PluginError, Registry};
use crate::upstream::UpstreamDeps;

/// The compiled plugins of a route.
#[derive(Clone, Default)]
pub struct Chain {
    phases: Phases,
    rewrite: Box<[Entry]>,
    access: Box<[Entry]>,
    before_proxy: Box<[Entry]>,
    header_filter: Box<[Entry]>,
    body_filter: Box<[Entry]>,
    log: Box<[Entry]>,
}

/// A plugin and for which requests it runs (`_meta.filter`).
#[derive(Clone)]
struct Entry {
    plugin: Arc<dyn DynPlugin>,
    filter: Option<Arc<Expr>>,
}

impl Entry {
    /// The plugin, if it runs for this request.
    fn of(&self, exchange: &Exchange) -> Option<&dyn DynPlugin> {
        let runs = self.filter.as_ref().is_none_or(|filter| filter.eval(exchange));
        runs.then_some(&*self.plugin)
    }
}

impl Chain {
    /// A chain of one plugin.
    pub(crate) fn of_one(plugin: Arc<dyn DynPlugin>) -> Self {
        Self::of(vec![Entry { plugin, filter: None }])
    }

    /// Entries in their order, split by phase.
    fn of(entries: Vec<Entry>) -> Self {
        let of = |phase: Phases| -> Box<[Entry]> {
            entries.iter().filter(|e| e.plugin.phases().has(phase)).cloned().collect()
        };
        Self {
            phases: entries.iter().fold(Phases::NONE, |all, e| all.and(e.plugin.phases())),
            rewrite: of(Phases::REWRITE),
            access: of(Phases::ACCESS),
            before_proxy: of(Phases::BEFORE_PROXY),
            header_filter: of(Phases::HEADER_FILTER),
            body_filter: of(Phases::BODY_FILTER),
            log: of(Phases::LOG),
        }
    }

    /// Has it a plugin in this phase?
    pub(crate) fn runs(&self, phase: Phases) -> bool {
        self.phases.has(phase)
    }

    /// Compiles plugin configurations: sorted by priority (`_meta.priority` overrides),
    /// disabled ones left out, unknown or not enabled ones left out as APISIX does. `metadata`
    /// finds that of a plugin.
    pub fn compile<'m>(
        plugins: &Map<String, Value>,
        registry: &Registry,
        attrs: &Value,
        metadata: &dyn Fn(&str) -> Option<&'m Value>,
        owner: &str,
        deps: &UpstreamDeps,
    ) -> Result<Self, String> {
        let mut entries: Vec<(i64, usize, Entry)> = Vec::new();
        for (order, (name, config)) in plugins.iter().enumerate() {
            let Some(known) = registry.get(name) else { continue };
            let meta = config.get("_meta");
            if meta.and_then(|m| m.get("disable")).and_then(Value::as_bool) == Some(true) {
                continue;
            }
            let priority = meta
                .and_then(|m| m.get("priority"))
                .and_then(Value::as_i64)
                .unwrap_or_else(|| known.info.priority.into());
            let ctx = CompileCtx {
                metadata: metadata(name),
                attr: attrs.get(name),
                owner,
                deps: Some(deps),
            };
            let plugin = known.compile(config, &ctx).map_err(|e| {
                format!("failed to check the configuration of plugin {name} err: {e}")
            })?;
            let filter = meta.and_then(|m| m.get("filter")).map(Expr::compile).transpose();
            let filter = filter
                .map_err(|e| format!("failed to validate the 'vars' expression: {e}"))?
                .map(Arc::new);
            entries.push((priority, order, Entry { plugin, filter }));
        }
        entries.sort_by_key(|(priority, order, _)| (std::cmp::Reverse(*priority), *order));
        Ok(Self::of(entries.into_iter().map(|(.., entry)| entry).collect()))
    }

    /// Is this the chain that answers 503 in the place of a global rule?
    #[cfg(test)]
    pub(crate) fn refuses(&self) -> bool {
        self.rewrite.iter().any(|entry| entry.plugin.name() == "refuse")
    }

    /// Runs the `rewrite` phase.
    pub async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        for entry in &self.rewrite {
            let Some(plugin) = entry.of(exchange) else { continue };
            if let Flow::Respond(response) = plugin.rewrite(exchange).await? {
                return Ok(Flow::Respond(response));
            }
        }
        Ok(Flow::Continue)
    }

    /// Runs the `access` phase.
    pub async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        for entry in &self.access {
            let Some(plugin) = entry.of(exchange) else { continue };
            if let Flow::Respond(response) = plugin.access(exchange).await? {
                return Ok(Flow::Respond(response));
            }
        }
        Ok(Flow::Continue)
    }

    /// Runs the `before_proxy` phase.
    pub async fn before_proxy(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        for entry in &self.before_proxy {
            let Some(plugin) = entry.of(exchange) else { continue };
            if let Flow::Respond(response) = plugin.before_proxy(exchange).await? {
                return Ok(Flow::Respond(response));
            }
        }
        Ok(Flow::Continue)
    }

    /// Runs the `header_filter` phase.
    pub fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        for entry in &self.header_filter {
            if let Some(plugin) = entry.of(exchange) {
                plugin.header_filter(exchange, response);
            }
        }
    }

    /// Runs the `body_filter` phase for one piece.
    pub fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        for entry in &self.body_filter {
            if let Some(plugin) = entry.of(exchange) {
                plugin.body_filter(exchange, piece, last);
            }
        }
    }

    /// Runs the `log` phase.
    pub fn log(&self, exchange: &Exchange) {
        for entry in &self.log {
            if let Some(plugin) = entry.of(exchange) {
                plugin.log(exchange);
            }
        }
    }
}

//! The plugins of one route in the order they run, and how a consumer's come among them.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::exchange::{Exchange, Response};
use crate::expr::Expr;
use crate::plugin::{CompileCtx, DynPlugin, Flow, Phases, PluginError, Registry, Step, Upstreams};
use crate::upstream::UpstreamDeps;

/// The compiled plugins of a route, in the order they run.
#[derive(Clone, Default)]
pub struct Chain {
    phases: Phases,
    reads_body: bool,
    entries: Box<[Entry]>,
    /// Plugins that `_meta.disable` switches off: where this chain is a consumer's or a group's,
    /// also those of the route.
    disabled: Box<[Box<str>]>,
}

/// A plugin, for which requests it runs, and what its refusals say.
#[derive(Clone)]
struct Entry {
    plugin: Arc<dyn DynPlugin>,
    phases: Phases,
    /// It comes from a consumer or its group and stands in no other place: its `rewrite` runs after
    /// the others'.
    from_consumer: bool,
    /// Its configuration names a variable that is in the request's body.
    reads_body: bool,
    priority: i64,
    meta: Option<Arc<Meta>>,
}

/// What `_meta` says about a plugin, order and switching off left out.
struct Meta {
    /// `_meta.filter`: for which requests it runs.
    filter: Option<Expr>,
    /// `_meta.error_response`: the body of its refusals.
    error_response: Option<Value>,
}

impl Entry {
    /// The plugin, if it runs for this request in this phase.
    #[inline]
    fn of(&self, phase: Phases, exchange: &Exchange) -> Option<&dyn DynPlugin> {
        let always = self.meta.is_none() && exchange.skips_none();
        let runs = self.phases.has(phase) && (always || self.runs(phase, exchange));
        runs.then_some(&*self.plugin)
    }

    /// Does the plugin, which has a step in this phase, run for this request?
    fn runs(&self, phase: Phases, exchange: &Exchange) -> bool {
        self.filter().is_none_or(|filter| filter.eval(exchange))
            && !exchange.skips(&*self.plugin)
            && !(phase == Phases::BODY_FILTER && exchange.leaves_body(&*self.plugin))
    }

    fn filter(&self) -> Option<&Expr> {
        self.meta.as_ref()?.filter.as_ref()
    }

    /// What becomes of the outcome of a step: a refusal says what `_meta.error_response` holds.
    fn outcome(&self, outcome: Result<Flow, PluginError>) -> Result<Flow, PluginError> {
        let body = self.meta.as_ref().and_then(|meta| meta.error_response.as_ref());
        match (body, outcome) {
            (Some(body), Ok(Flow::Respond(response))) if response.status.as_u16() >= 400 => {
                Ok(Flow::Respond(response.saying(body)))
            }
            (Some(body), Err(error)) => {
                Ok(Flow::Respond(Response::page(error.status).saying(body)))
            }
            (_, outcome) => outcome,
        }
    }
}

impl Chain {
    /// A chain of one plugin, which comes before all others that it is put together with.
    pub(crate) fn of_one(plugin: Arc<dyn DynPlugin>) -> Self {
        let phases = plugin.phases();
        Self::of(vec![Entry {
            plugin,
            phases,
            from_consumer: false,
            reads_body: false,
            priority: i64::MAX,
            meta: None,
        }])
    }

    /// Entries in the order they run.
    fn of(mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.priority));
        let phases = entries.iter().fold(Phases::NONE, |all, entry| all.and(entry.phases));
        let reads_body = entries.iter().any(|entry| entry.reads_body);
        Self { phases, reads_body, entries: entries.into(), disabled: Box::default() }
    }

    /// The plugins of several chains in one, those of a priority in the order of the chains. Each
    /// stays what it was compiled as, for whom it was compiled.
    pub(crate) fn of_all<'a>(chains: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::of(chains.into_iter().flat_map(|chain| chain.entries.iter().cloned()).collect())
    }

    /// The names of its plugins, in the order they run.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.iter().map(|entry| entry.plugin.name())
    }

    /// Does a plugin's configuration name a variable that is in the request's body?
    pub(crate) fn reads_body(&self) -> bool {
        self.reads_body
    }

    /// Has it a plugin in this phase?
    pub(crate) fn runs(&self, phase: Phases) -> bool {
        self.phases.has(phase)
    }

    /// Has it no plugin at all?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Does it change nothing in a chain that it is merged into?
    pub(crate) fn changes_nothing(&self) -> bool {
        self.entries.is_empty() && self.disabled.is_empty()
    }

    /// This chain with a consumer's plugins over its group's over those of the route. Each plugin
    /// is taken whole.
    pub(crate) fn merged(&self, group: Option<&Self>, consumer: &Self) -> Self {
        let mut entries = self.entries.to_vec();
        for over in group.into_iter().chain([consumer]) {
            entries.retain(|below| !over.disabled.iter().any(|off| **off == *below.plugin.name()));
            for entry in &over.entries {
                let name = entry.plugin.name();
                match entries.iter_mut().find(|below| below.plugin.name() == name) {
                    Some(below) => {
                        let from_consumer = below.from_consumer;
                        *below = Entry { from_consumer, ..entry.clone() };
                    }
                    None => entries.push(Entry { from_consumer: true, ..entry.clone() }),
                }
            }
        }
        Self::of(entries)
    }

    /// Compiles plugin configurations: sorted by priority (`_meta.priority` overrides),
    /// disabled ones left out, unknown or not enabled ones left out as APISIX does. `metadata`
    /// finds that of a plugin, `owner_of` the resource its configuration stands in.
    pub fn compile<'m, 'o>(
        plugins: &Map<String, Value>,
        registry: &Registry,
        attrs: &Value,
        metadata: &dyn Fn(&str) -> Option<&'m Value>,
        owner_of: &dyn Fn(&str) -> &'o str,
        (deps, upstreams): (&UpstreamDeps, Option<&dyn Upstreams>),
    ) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut disabled = Vec::new();
        for (name, config) in plugins {
            let Some(known) = registry.get(name) else { continue };
            let meta = config.get("_meta");
            if meta.and_then(|m| m.get("disable")).and_then(Value::as_bool) == Some(true) {
                disabled.push(name.as_str().into());
                continue;
            }
            let priority = meta
                .and_then(|m| m.get("priority"))
                .and_then(Value::as_i64)
                .unwrap_or_else(|| known.info.priority.into());
            let ctx = CompileCtx {
                metadata: metadata(name),
                attr: attrs.get(name),
                owner: owner_of(name),
                deps: Some(deps),
                upstreams,
            };
            let plugin = known.compile(config, &ctx).map_err(|e| {
                format!("failed to check the configuration of plugin {name} err: {e}")
            })?;
            let filter = meta.and_then(|m| m.get("filter")).map(Expr::compile).transpose();
            let filter =
                filter.map_err(|e| format!("failed to validate the 'vars' expression: {e}"))?;
            let error_response = meta.and_then(|m| m.get("error_response")).cloned();
            let meta = match (&filter, &error_response) {
                (None, None) => None,
                _ => Some(Arc::new(Meta { filter, error_response })),
            };
            let phases = plugin.phases();
            let reads_body = names_body(config);
            entries.push(Entry {
                plugin,
                phases,
                from_consumer: false,
                reads_body,
                priority,
                meta,
            });
        }
        Ok(Self { disabled: disabled.into(), ..Self::of(entries) })
    }

    /// Is this the chain that answers 503 in the place of a global rule?
    #[cfg(test)]
    pub(crate) fn refuses(&self) -> bool {
        self.entries.iter().any(|entry| entry.plugin.name() == "refuse")
    }

    /// Runs the `rewrite` phase.
    pub async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.run(exchange, Phases::REWRITE, |_| true, |plugin, exchange| plugin.rewrite(exchange))
            .await
    }

    /// Runs the `rewrite` phase of plugins that came with the consumer.
    pub async fn rewrite_in_consumer(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let own = |entry: &Entry| entry.from_consumer;
        self.run(exchange, Phases::REWRITE, own, |plugin, exchange| plugin.rewrite(exchange)).await
    }

    /// Runs the `access` phase.
    pub async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.run(exchange, Phases::ACCESS, |_| true, |plugin, exchange| plugin.access(exchange))
            .await
    }

    /// Runs the `before_proxy` phase.
    pub async fn before_proxy(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        self.run(
            exchange,
            Phases::BEFORE_PROXY,
            |_| true,
            |plugin, exchange| plugin.before_proxy(exchange),
        )
        .await
    }

    /// Runs a step of each plugin of `which`, until one answers.
    async fn run(
        &self,
        exchange: &mut Exchange,
        phase: Phases,
        which: impl Fn(&Entry) -> bool,
        step: impl for<'a> Fn(&'a dyn DynPlugin, &'a mut Exchange) -> Step<'a>,
    ) -> Result<Flow, PluginError> {
        for entry in self.entries.iter().filter(|entry| which(entry)) {
            let Some(plugin) = entry.of(phase, exchange) else { continue };
            let outcome = match step(plugin, exchange) {
                Step::Continues => continue,
                Step::Done(outcome) => outcome,
                Step::Waits(waits) => waits.await,
            };
            if let Flow::Respond(response) = entry.outcome(outcome)? {
                return Ok(Flow::Respond(response));
            }
        }
        Ok(Flow::Continue)
    }

    /// Runs the `header_filter` phase.
    pub fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        for entry in &self.entries {
            if let Some(plugin) = entry.of(Phases::HEADER_FILTER, exchange) {
                plugin.header_filter(exchange, response);
            }
        }
    }

    /// Has it a plugin that looks at the body of this response?
    pub(crate) fn filters_body(&self, exchange: &Exchange) -> bool {
        self.runs(Phases::BODY_FILTER)
            && self.entries.iter().any(|entry| entry.of(Phases::BODY_FILTER, exchange).is_some())
    }

    /// Runs the `body_filter` phase for one piece.
    pub fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        for entry in &self.entries {
            if let Some(plugin) = entry.of(Phases::BODY_FILTER, exchange) {
                plugin.body_filter(exchange, piece, last);
            }
        }
    }

    /// Runs the `log` phase.
    pub fn log(&self, exchange: &Exchange) {
        for entry in &self.entries {
            if let Some(plugin) = entry.of(Phases::LOG, exchange) {
                plugin.log(exchange);
            }
        }
    }
}

/// Is a variable of the request's body (`post_arg_NAME`, `post_arg.PATH`) named anywhere in here?
fn names_body(config: &Value) -> bool {
    match config {
        Value::String(text) => text.contains("post_arg"),
        Value::Array(items) => items.iter().any(names_body),
        Value::Object(members) => members.values().any(names_body),
        _ => false,
    }
}

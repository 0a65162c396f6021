//! What a plugin is: a compiled configuration with steps at the phases it names.
//!
//! Plugins are written against [`Plugin`]; the gateway runs them as [`DynPlugin`]. The
//! [`Registry`] is the one list of those that exist.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use ::http::StatusCode;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
pub use sluicegate_model::plugin::Auth;
use sluicegate_model::plugin::{Catalog, Check, PluginInfo};
use sluicegate_model::schema::Schema;
use tracing::error;

use crate::exchange::{Exchange, Response};
use crate::router::FilterFuncs;
use crate::snapshot::references::first as first_reference;
use crate::upstream::{Upstream, UpstreamDeps};

/// What a request does after a phase.
pub enum Flow {
    /// It goes on.
    Continue,
    /// It ends here with this response, which still passes `header_filter`,
    /// `body_filter` and `log`.
    Respond(Response),
}

/// A set of phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases(u8);

impl Phases {
    /// No phase.
    pub const NONE: Self = Self(0);
    /// After routing, before the consumer is known.
    pub const REWRITE: Self = Self(1);
    /// Decides whether and how the request goes on; function plugins answer here.
    pub const ACCESS: Self = Self(2);
    /// The upstream node is picked, nothing is sent yet.
    pub const BEFORE_PROXY: Self = Self(4);
    /// The response head is known.
    pub const HEADER_FILTER: Self = Self(8);
    /// For each piece of the response body.
    pub const BODY_FILTER: Self = Self(16);
    /// The response is sent.
    pub const LOG: Self = Self(32);

    /// Both sets together.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Does this set hold all of `other`?
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A plugin, compiled from one configuration.
pub trait Plugin: Sized + Send + Sync + 'static {
    /// Its name in configurations.
    const NAME: &'static str;
    /// Higher runs first.
    const PRIORITY: i32;
    /// The version the Admin API reports.
    const VERSION: f64 = 0.1;
    /// The phases it takes part in; a step of a phase left out never runs.
    const PHASES: Phases;
    /// Paths of configuration fields kept encrypted at rest.
    const SECRETS: &'static [&'static str] = &[];
    /// Set when the plugin tells who sends a request, by what consumers and credentials say.
    const AUTH: Option<Auth> = None;
    /// Fields that stand in the place of `function_uri`, which APISIX's plugin of this name asks
    /// for: an APISIX on the same etcd refuses a configuration that has one and no `function_uri`.
    const OWN_FIELDS: &'static [&'static str] = &[];
    /// The typed view of a configuration that passed [`Plugin::schema`].
    type Config: DeserializeOwned;

    /// The JSON schema of a configuration.
    fn schema() -> Value;

    /// The JSON schema of the plugin's metadata, if it has any.
    fn metadata_schema() -> Option<Value> {
        None
    }

    /// The JSON schema of what a consumer or a credential says for this plugin, of type `auth`; its
    /// secrets stand in `encrypt_fields`. `None`: the same as [`Plugin::schema`].
    fn consumer_schema() -> Option<Value> {
        None
    }

    /// Makes the runtime form of what a consumer or a credential says, defaults filled in; it is
    /// what [`Credential::conf`](crate::consumer::Credential::conf) has.
    ///
    /// # Errors
    /// Which field is wrong, and why.
    fn compile_consumer(_config: Value) -> Result<Arc<dyn Any + Send + Sync>, ConfigError> {
        Ok(Arc::new(()))
    }

    /// The ids of upstreams that a configuration names: it is compiled anew when they change.
    fn upstream_ids(_config: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The phases that this configuration takes part in, [`Plugin::PHASES`] or some of them: what is
    /// left out costs nothing.
    fn phases(&self) -> Phases {
        Self::PHASES
    }

    /// May a step of this configuration wait for something? One that says it never does is run at
    /// once and takes no memory of its own; should it wait all the same, the request fails.
    fn waits(&self) -> bool {
        true
    }

    /// Makes the runtime form, or says which field is wrong and why.
    fn compile(config: Self::Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError>;

    /// The `rewrite` step.
    fn rewrite(&self, _exchange: &mut Exchange) -> impl Future<Output = Result<Flow, PluginError>> {
        ready(Ok(Flow::Continue))
    }

    /// The `access` step.
    fn access(&self, _exchange: &mut Exchange) -> impl Future<Output = Result<Flow, PluginError>> {
        ready(Ok(Flow::Continue))
    }

    /// The `before_proxy` step.
    fn before_proxy(
        &self,
        _exchange: &mut Exchange,
    ) -> impl Future<Output = Result<Flow, PluginError>> {
        ready(Ok(Flow::Continue))
    }

    /// The `header_filter` step.
    fn header_filter(&self, _exchange: &mut Exchange, _response: &mut Response) {}

    /// The `body_filter` step: may replace a piece of the body. `last` comes once.
    fn body_filter(&self, _exchange: &mut Exchange, _piece: &mut Bytes, _last: bool) {}

    /// The `log` step.
    fn log(&self, _exchange: &Exchange) {}
}

/// What `compile` may look at besides the configuration itself.
pub struct CompileCtx<'a> {
    /// The plugin's metadata, when there is any.
    pub metadata: Option<&'a Value>,
    /// `plugin_attr` of config.yaml for this plugin. In a trial it is `null` where config.yaml says
    /// nothing of it, and `None` where there is no config.yaml.
    pub attr: Option<&'a Value>,
    /// Names the resource the configuration belongs to, for warnings.
    pub owner: &'a str,
    /// TLS and names of the running gateway; `None` in a trial, where nothing is warned
    /// about and nothing is looked up.
    pub deps: Option<&'a UpstreamDeps>,
    /// The upstreams of the running gateway; `None` in a trial.
    pub upstreams: Option<&'a dyn Upstreams>,
}

/// The upstreams that a plugin may send requests to.
pub trait Upstreams {
    /// The upstream of this id.
    ///
    /// # Errors
    /// Why there is none that can be used.
    fn of_id(&self, id: &str) -> Result<Arc<Upstream>, String>;

    /// Compiles an upstream that stands in a plugin's configuration. `key` names it in logs, and
    /// keeps what is known about its nodes when the configuration is compiled anew.
    ///
    /// # Errors
    /// What is wrong with it.
    fn compile(&self, key: &str, config: &Value) -> Result<Arc<Upstream>, String>;
}

/// What plugins keep for as long as the gateway runs, whatever becomes of their configurations:
/// counters, clients of other servers. One value of each type.
#[derive(Default)]
pub struct PluginState(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl PluginState {
    /// The value of this type; made when it is first asked for.
    pub fn get<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let any = all.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default())).clone();
        any.downcast().unwrap_or_default()
    }
}

/// A configuration that passed its schema and still cannot work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A step failed. The client sees the status; the cause was or will be logged.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct PluginError {
    /// What the client gets.
    pub status: StatusCode,
    /// What the log gets; never a secret.
    pub cause: String,
}

/// A plugin as the phase runner sees it.
pub trait DynPlugin: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &'static str;
    /// The phases it takes part in.
    fn phases(&self) -> Phases;
    /// See [`Plugin::rewrite`].
    fn rewrite<'a>(&'a self, exchange: &'a mut Exchange) -> Step<'a>;
    /// See [`Plugin::access`].
    fn access<'a>(&'a self, exchange: &'a mut Exchange) -> Step<'a>;
    /// See [`Plugin::before_proxy`].
    fn before_proxy<'a>(&'a self, exchange: &'a mut Exchange) -> Step<'a>;
    /// See [`Plugin::header_filter`].
    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response);
    /// See [`Plugin::body_filter`].
    fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool);
    /// See [`Plugin::log`].
    fn log(&self, exchange: &Exchange);
}

/// What became of a step.
pub enum Step<'a> {
    /// The request goes on.
    Continues,
    /// It is over.
    Done(Result<Flow, PluginError>),
    /// It is on its way.
    Waits(Pin<Box<dyn Future<Output = Result<Flow, PluginError>> + 'a>>),
}

impl<'a> Step<'a> {
    /// What it comes to.
    pub async fn outcome(self) -> Result<Flow, PluginError> {
        match self {
            Self::Continues => Ok(Flow::Continue),
            Self::Done(outcome) => outcome,
            Self::Waits(step) => step.await,
        }
    }

    fn of<P: Plugin>(
        plugin: &P,
        step: impl Future<Output = Result<Flow, PluginError>> + 'a,
    ) -> Self {
        if plugin.waits() {
            return Self::Waits(Box::pin(step));
        }
        match pin!(step).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Flow::Continue)) => Self::Continues,
            Poll::Ready(outcome) => Self::Done(outcome),
            Poll::Pending => {
                let cause = "it waited, which it says it never does";
                error!(plugin = P::NAME, cause, "A plugin failed: its `waits` must say `true`.");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Self::Done(Err(PluginError { status, cause: cause.to_owned() }))
            }
        }
    }
}

impl<P: Plugin> DynPlugin for P {
    fn name(&self) -> &'static str {
        P::NAME
    }
    fn phases(&self) -> Phases {
        Plugin::phases(self)
    }
    fn rewrite<'a>(&'a self, exchange: &'a mut Exchange) -> Step<'a> {
        Step::of(self, Plugin::rewrite(self, exchange))
    }
    fn access<'a>(&'a self, exchange: &'a mut Exchange) -> Step<'a> {
        Step::of(self, Plugin::access(self, exchange))
    }
    fn before_proxy<'a>(&'a self, exchange: &'a mut Exchange) -> Step<'a> {
        Step::of(self, Plugin::before_proxy(self, exchange))
    }
    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        Plugin::header_filter(self, exchange, response);
    }
    fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        Plugin::body_filter(self, exchange, piece, last);
    }
    fn log(&self, exchange: &Exchange) {
        Plugin::log(self, exchange);
    }
}

type CompileConsumer = dyn Fn(&Value) -> Result<CompiledConsumer, String> + Send + Sync;

/// What a plugin made of a consumer's configuration.
pub type CompiledConsumer = Arc<dyn Any + Send + Sync>;

type Compile = dyn Fn(&Value, &CompileCtx<'_>) -> Result<Arc<dyn DynPlugin>, String> + Send + Sync;

/// One plugin of the registry.
#[derive(Clone)]
pub struct Registered {
    /// What the Admin API tells about it.
    pub info: PluginInfo,
    compile: Arc<Compile>,
    consumer: Arc<CompileConsumer>,
    upstream_ids: fn(&Value) -> Vec<String>,
    metadata: Option<Arc<Schema>>,
}

impl Registered {
    /// Checks a configuration against the schema, fills in defaults and compiles it.
    pub fn compile(
        &self,
        config: &Value,
        ctx: &CompileCtx<'_>,
    ) -> Result<Arc<dyn DynPlugin>, String> {
        (self.compile)(config, ctx)
    }

    /// Checks what a consumer or a credential says for the plugin, fills in defaults and compiles
    /// it.
    pub fn compile_consumer(&self, config: &Value) -> Result<CompiledConsumer, String> {
        (self.consumer)(config)
    }

    /// The ids of upstreams that a configuration names.
    pub(crate) fn upstream_ids(&self, config: &Value) -> Vec<String> {
        (self.upstream_ids)(config)
    }

    /// Checks metadata of the plugin and fills in its defaults.
    pub fn metadata(&self, mut value: Value) -> Result<Value, String> {
        if let Some(schema) = &self.metadata {
            let invalid = |error| format!("invalid configuration: {error}");
            schema.check_and_fill(&mut value).map_err(invalid)?;
        }
        Ok(value)
    }
}

/// Every plugin there is, in order of priority.
#[derive(Clone, Default)]
pub struct Registry {
    plugins: Vec<Registered>,
    /// Also those that are not enabled.
    known: Vec<&'static str>,
    filter_funcs: Option<FilterFuncs>,
    /// `plugin_attr` of config.yaml, for the checks of configurations.
    attrs: Arc<OnceLock<Value>>,
}

impl Registry {
    /// Adds a plugin.
    ///
    /// # Panics
    /// When its schema does not compile: a fault of the plugin, found by its first test.
    pub fn add<P: Plugin>(&mut self) {
        let mut schema = P::schema();
        sluicegate_model::plugin::inject_meta(&mut schema);
        let checker = Arc::new(Schema::compile(&schema).expect("a plugin's schema compiles"));
        let trial_schema = checker.clone();
        let checker_of_consumer = checker.clone();
        let compile: Arc<Compile> = Arc::new(move |config, ctx| {
            checker.check(config)?;
            let mut filled = config.clone();
            checker.fill_defaults(&mut filled);
            let typed: P::Config = serde_json::from_value(filled).map_err(|e| e.to_string())?;
            let plugin = P::compile(typed, ctx).map_err(|e| e.to_string())?;
            Ok(Arc::new(plugin) as Arc<dyn DynPlugin>)
        });
        let trial = compile.clone();
        let attrs = self.attrs.clone();
        let check = move |config: &Value| {
            if first_reference(config).is_some() {
                // What a reference stands for is not known yet: only the schema can be checked.
                return trial_schema.check(config);
            }
            let attr = attrs.get().map(|attrs| attrs.get(P::NAME).unwrap_or(&Value::Null));
            let ctx = CompileCtx { metadata: None, attr, owner: "", deps: None, upstreams: None };
            trial(config, &ctx).map(drop)
        };
        let consumer_schema = P::consumer_schema();
        let of_consumer = match &consumer_schema {
            Some(schema) => {
                Arc::new(Schema::compile(schema).expect("a plugin's consumer schema compiles"))
            }
            None => checker_of_consumer,
        };
        let trial_schema = of_consumer.clone();
        let consumer: Arc<CompileConsumer> = Arc::new(move |config| {
            of_consumer.check(config)?;
            let mut filled = config.clone();
            of_consumer.fill_defaults(&mut filled);
            P::compile_consumer(filled).map_err(|e| e.to_string())
        });
        let trial = consumer.clone();
        let check_consumer: Check = Arc::new(move |config| match first_reference(config) {
            Some(_) => trial_schema.check(config),
            None => trial(config).map(drop),
        });
        let info = PluginInfo {
            name: P::NAME,
            priority: P::PRIORITY,
            version: P::VERSION,
            schema,
            metadata_schema: P::metadata_schema(),
            check_consumer: P::AUTH.is_some().then_some(check_consumer),
            consumer_schema,
            secrets: P::SECRETS,
            auth: P::AUTH,
            own_fields: P::OWN_FIELDS,
            check: Arc::new(check),
        };
        let metadata = info.metadata_schema.as_ref().map(|schema| {
            Arc::new(Schema::compile(schema).expect("a plugin's metadata schema compiles"))
        });
        self.known.push(P::NAME);
        self.plugins.push(Registered {
            info,
            compile,
            consumer,
            upstream_ids: P::upstream_ids,
            metadata,
        });
        self.plugins.sort_by_key(|p| std::cmp::Reverse(p.info.priority));
    }

    /// Only the plugins whose name is in `names`.
    pub fn only(&self, names: &[String]) -> Self {
        let plugins =
            self.plugins.iter().filter(|p| names.iter().any(|n| n == p.info.name)).cloned();
        Self {
            plugins: plugins.collect(),
            known: self.known.clone(),
            filter_funcs: self.filter_funcs,
            attrs: self.attrs.clone(),
        }
    }

    /// Has configurations checked with `plugin_attr` of config.yaml. What was told first stays.
    pub fn know_attrs(&self, attrs: Value) {
        let _ = self.attrs.set(attrs);
    }

    /// Has routes' `filter_func`s run by `funcs`. Without it, a route that has one answers 503.
    pub fn run_filter_funcs(&mut self, funcs: FilterFuncs) {
        self.filter_funcs = Some(funcs);
    }

    /// What runs routes' `filter_func`s.
    pub(crate) fn filter_funcs(&self) -> Option<FilterFuncs> {
        self.filter_funcs
    }

    /// Whether there is a plugin of this name, enabled or not.
    pub fn knows(&self, name: &str) -> bool {
        self.known.contains(&name)
    }

    /// Every plugin, highest priority first.
    pub fn iter(&self) -> impl Iterator<Item = &Registered> {
        self.plugins.iter()
    }

    /// The plugin of this name.
    pub fn get(&self, name: &str) -> Option<&Registered> {
        self.plugins.iter().find(|p| p.info.name == name)
    }

    /// The plain list the Admin API works with.
    pub fn catalog(&self) -> Catalog {
        let plugins = self.plugins.iter().map(|p| p.info.clone()).collect();
        let mut catalog = Catalog::new(plugins, |vars| crate::expr::Expr::compile(vars).map(drop));
        catalog.filter_check = self.filter_funcs.map(|funcs| funcs.check);
        catalog
    }
}

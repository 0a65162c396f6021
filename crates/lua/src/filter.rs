//! `filter_func`: a route's condition in Lua.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlua::{MultiValue, Value};
use serde_json::Value as Json;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::router::{Filter, FilterFuncs};
use tracing::error;

use crate::host::{LuaError, host};
use crate::limits::Meter;
use crate::request::{Parts, Phase, Step};

/// What runs `filter_func`s for the gateway.
pub const FILTER_FUNCS: FilterFuncs = FilterFuncs { check: check_filter, compile };

fn compile(source: &str, owner: &str) -> Result<Arc<dyn Filter>, String> {
    check_filter(source)?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let source = vec![format!("return {source}")];
    Ok(Arc::new(LuaFilter { id, alive: Arc::default(), source, owner: owner.to_owned() }))
}

/// Is this the text of a function? The error is what the Admin API says.
///
/// # Errors
/// It is no Lua, or something else than a function.
fn check_filter(source: &str) -> Result<(), String> {
    let text = format!("return {source}");
    let checked = host().and_then(|host| {
        let env = host.new_env()?;
        let mut made = Ok(());
        host.metered(None, &mut Meter::new(&host.limits), || {
            made = host.function(&text, &text, &env).map(drop);
            Ok(())
        })?;
        made
    });
    checked.map_err(|error| match error {
        LuaError::Syntax(text) => format!("failed to load 'filter_func' string: {text}"),
        LuaError::NoFunction(_) => "'filter_func' should be a function".to_owned(),
        // Differs: APISIX answers 500.
        other => format!("failed to load 'filter_func' string: {other}"),
    })
}

/// One `filter_func`.
#[derive(Debug)]
struct LuaFilter {
    id: u64,
    alive: Arc<()>,
    source: Vec<String>,
    owner: String,
}

/// Their numbers are apart from those of plugins' functions.
static NEXT: AtomicU64 = AtomicU64::new(1 << 63);

impl LuaFilter {
    fn ask(&self, exchange: &Exchange) -> Result<bool, LuaError> {
        let host = host()?;
        let mut step = Step::of(Parts::Seen(exchange), Phase::Filter);
        let (alive, source) = (&self.alive, &self.source);
        let loaded = host.loaded(self.id, alive, "", source, &Json::Null, &mut step)?;
        let ctx = host.ctx(&step)?;
        let vars: Value = ctx.raw_get("var").unwrap_or(Value::Nil);
        let answer: MultiValue = host.call(&mut step, (loaded.function()?, vars, ctx))?;
        let no = |value: &Value| matches!(value, Value::Nil | Value::Boolean(false));
        Ok(answer.iter().next().is_some_and(|value| !no(value)))
    }
}

impl Filter for LuaFilter {
    /// A function that fails holds for no request.
    fn admits(&self, exchange: &Exchange) -> bool {
        self.ask(exchange).unwrap_or_else(|error| {
            error!(
                route = self.owner,
                "[lua] A filter_func failed; its route is passed over: {error}"
            );
            false
        })
    }
}

//! One Lua state per core: the sandbox, and how functions are run in it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use mlua::{
    ChunkMode, Function, IntoLuaMulti, Lua, LuaOptions, MultiValue, StdLib, Table, Thread,
    ThreadStatus, Value,
};
use sluicegate_gateway::expr::VarName;
use tracing::warn;

use crate::limits::{Budget, Exceeded, Limits, Meter, changes, limits};
use crate::regex::Regexes;
use crate::request::{Step, lend};
use crate::timers::Timers;
use crate::{json, natives};

/// Why a function did not run to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LuaError {
    /// The source is no Lua.
    #[error("failed to loadstring: {0}")]
    Syntax(String),
    /// Running the source, which makes the function, failed.
    #[error("pcall error: {0}")]
    Load(String),
    /// The source makes something else.
    #[error("only accept Lua function, the input code type is {0}")]
    NoFunction(&'static str),
    /// It raised an error.
    #[error("{0}")]
    Raised(String),
    /// It was stopped.
    #[error("{1}(): {0}")]
    Stopped(String, String),
    /// There is no Lua state.
    #[error("no Lua state: {0}")]
    State(String),
}

/// A Lua state with everything that scripts see.
pub(crate) struct Host {
    pub(crate) lua: Lua,
    /// Tells it from the states of before.
    pub(crate) number: u64,
    /// How often limits had been changed when it was made.
    changes: u64,
    pub(crate) limits: Arc<Limits>,
    pub(crate) budget: Rc<Budget>,
    pub(crate) timers: Rc<Timers>,
    op: Table,
    null: Value,
    new_env: Function,
    new_ctx: Function,
    /// Values of variables that functions registered, by name and `ctx`.
    pub(crate) registered: Function,
    loaded: RefCell<HashMap<u64, Loaded>>,
}

/// What natives share with the host.
pub(crate) struct Inner {
    pub(crate) budget: Rc<Budget>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) regexes: Regexes,
    pub(crate) timers: Rc<Timers>,
    pub(crate) vars: RefCell<HashMap<Box<[u8]>, Rc<VarName>>>,
}

/// The functions of one configuration, ready to run.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) functions: Rc<[Function]>,
    pub(crate) conf: Value,
    alive: Weak<()>,
}

thread_local! {
    static HOST: RefCell<Option<Rc<Host>>> = const { RefCell::new(None) };
    static NEXT: Cell<u64> = const { Cell::new(1) };
}

/// The Lua state of this thread; made when it is first asked for.
pub(crate) fn host() -> Result<Rc<Host>, LuaError> {
    if let Some(host) = HOST.with_borrow(Clone::clone)
        && host.changes == changes()
    {
        return Ok(host);
    }
    let host = Rc::new(Host::new().map_err(|error| LuaError::State(error.to_string()))?);
    HOST.set(Some(host.clone()));
    Ok(host)
}

impl Host {
    fn new() -> mlua::Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::OS | StdLib::BIT;
        // Lua's own `pcall`: that of mlua, which lets panics pass, could not be yielded across, and
        // would nest on the thread's stack.
        let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(true))?;
        // LuaJIT's compiler stays off: code that it compiles calls no hook.
        let changes = changes();
        let limits = limits();
        let budget = Budget::watch(&lua)?;
        let inner = Rc::new(Inner {
            budget: budget.clone(),
            limits: limits.clone(),
            regexes: Regexes::default(),
            timers: Rc::default(),
            vars: RefCell::default(),
        });
        let (natives, null) = natives::table(&lua, &inner)?;
        let op = lua.create_table()?;
        let base = lua.load(BASE).set_name("=[sluicegate]").set_mode(ChunkMode::Text);
        let (new_env, new_ctx, registered): (Function, Function, Function) =
            base.call((natives, op.clone()))?;
        lua.gc_collect()?;
        lua.set_memory_limit(limits.memory_bytes)?;
        let number = NEXT.get();
        NEXT.set(number + 1);
        let loaded = RefCell::default();
        let timers = inner.timers.clone();
        Ok(Self {
            lua,
            number,
            changes,
            limits,
            budget,
            timers,
            op,
            null,
            new_env,
            new_ctx,
            registered,
            loaded,
        })
    }

    /// Runs `run` against `meter`, with the request at hand.
    pub(crate) fn metered<R>(
        &self,
        step: Option<&mut Step<'_>>,
        meter: &mut Meter,
        run: impl FnOnce() -> mlua::Result<R>,
    ) -> Result<R, LuaError> {
        let (ran, exceeded) = self.budget.metered(&self.lua, meter, || match step {
            Some(step) => lend(step, run),
            None => run(),
        });
        ran.map_err(|error| self.failed(&error, exceeded))
    }

    fn failed(&self, error: &mlua::Error, exceeded: Option<Exceeded>) -> LuaError {
        let text = text_of(error);
        if is_memory(error) {
            self.relieve();
        }
        match exceeded {
            Some(exceeded) => LuaError::Stopped(exceeded.to_string(), self.budget.place()),
            None => LuaError::Raised(text),
        }
    }

    /// Scripts use all memory there is. Where they keep it, this core goes on with a new state, and
    /// what scripts remembered is gone: one of them must not stop the others.
    fn relieve(&self) {
        let _ = self.lua.gc_collect();
        if self.lua.used_memory() > self.limits.memory_bytes / 4 * 3 {
            let replaced = HOST
                .with_borrow_mut(|host| host.take_if(|host| host.number == self.number).is_some());
            if replaced {
                warn!(
                    memory_bytes = self.limits.memory_bytes,
                    "Lua functions keep more memory than plugin_attr.serverless.memory_bytes allows: this core starts anew, and values that functions kept between requests are lost."
                );
            }
        }
    }

    /// `ctx` and `ngx.ctx` of a request.
    pub(crate) fn context(&self, step: &Step<'_>) -> mlua::Result<Table> {
        let mut context = step.remembered.context.borrow_mut();
        if let Some((number, ctx, _)) = &*context
            && *number == self.number
        {
            return Ok(ctx.clone());
        }
        let (ctx, ngx): (Table, Table) = self.new_ctx.call(())?;
        *context = Some((self.number, ctx.clone(), ngx));
        Ok(ctx)
    }

    /// Makes the function of a source, in an environment.
    pub(crate) fn function(
        &self,
        source: &str,
        name: &str,
        env: &Table,
    ) -> Result<Function, LuaError> {
        let chunk = self.lua.load(source).set_name(name.replace('\0', " "));
        let chunk = chunk.set_mode(ChunkMode::Text).set_environment(env.clone());
        let chunk = chunk.into_function().map_err(|error| LuaError::Syntax(text_of(&error)))?;
        let made = chunk.call::<Value>(()).map_err(|error| LuaError::Load(text_of(&error)))?;
        match made {
            Value::Function(function) => Ok(function),
            other => Err(LuaError::NoFunction(lua_type(&other))),
        }
    }

    pub(crate) fn new_env(&self) -> Result<Table, LuaError> {
        self.new_env.call(()).map_err(|error| LuaError::State(text_of(&error)))
    }

    /// The functions of a configuration, loaded when they first run on this core.
    pub(crate) fn loaded(
        &self,
        id: u64,
        alive: &Arc<()>,
        sources: &[String],
        conf: &serde_json::Value,
        step: &mut Step<'_>,
    ) -> Result<Loaded, LuaError> {
        if let Some(loaded) = self.loaded.borrow().get(&id) {
            return Ok(loaded.clone());
        }
        // Configurations that are gone make room for those that come.
        self.loaded.borrow_mut().retain(|_, loaded| loaded.alive.strong_count() > 0);
        let mut meter = Meter::new(&self.limits);
        let mut outcome = Ok(Vec::new());
        self.metered(Some(step), &mut meter, || {
            outcome = self.new_env().and_then(|env| {
                sources.iter().map(|source| self.function(source, source, &env)).collect()
            });
            Ok(())
        })?;
        let conf = json::to_lua(&self.lua, conf, &self.null, None);
        let conf = conf.map_err(|error| LuaError::State(text_of(&error)))?;
        let loaded = Loaded { functions: outcome?.into(), conf, alive: Arc::downgrade(alive) };
        self.loaded.borrow_mut().insert(id, loaded.clone());
        Ok(loaded)
    }

    /// Starts a call that may wait.
    pub(crate) fn start(&self, function: &Function) -> Result<Thread, LuaError> {
        let thread = self.lua.create_thread(function.clone());
        thread.map_err(|error| self.failed(&error, None))
    }

    /// Runs a call until it ends or waits; without a step, for no request.
    pub(crate) fn resume(
        &self,
        thread: &Thread,
        mut step: Option<&mut Step<'_>>,
        meter: &mut Meter,
        mut arguments: MultiValue,
    ) -> Result<Ran, LuaError> {
        loop {
            let resumed = self
                .metered(step.as_deref_mut(), meter, || thread.resume::<MultiValue>(arguments))?;
            if thread.status() != ThreadStatus::Resumable {
                return Ok(Ran::Ended(resumed));
            }
            let mut values = resumed.into_iter();
            match values.next() {
                Some(Value::Table(op)) if op == self.op => {
                    let Some(Value::String(name)) = values.next() else {
                        return Ok(Ran::Ended(MultiValue::new()));
                    };
                    let name = name.to_string_lossy();
                    return Ok(Ran::Waits(name, values.next().unwrap_or(Value::Nil)));
                }
                // A function that yields by itself has nobody to yield to, and goes on.
                _ => arguments = MultiValue::new(),
            }
        }
    }

    /// Calls a function that cannot wait.
    pub(crate) fn call(
        &self,
        function: &Function,
        step: &mut Step<'_>,
        arguments: impl IntoLuaMulti,
    ) -> Result<MultiValue, LuaError> {
        let mut meter = Meter::new(&self.limits);
        self.metered(Some(step), &mut meter, || function.call::<MultiValue>(arguments))
    }

    /// JSON `null` as Lua has it.
    pub(crate) fn null(&self) -> &Value {
        &self.null
    }
}

/// What became of a call.
pub(crate) enum Ran {
    Ended(MultiValue),
    /// It waits for this, with one argument.
    Waits(String, Value),
}

/// Lua's name of a value's type.
pub(crate) fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "number",
        Value::LightUserData(_) | Value::Error(_) => "userdata",
        other => other.type_name(),
    }
}

/// The error as a script would see it, without the stack.
pub(crate) fn text_of(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::CallbackError { traceback, cause } => {
            let text = text_of(cause);
            // Where Lua called what failed.
            return match first_place(traceback) {
                Some(place) if !text.starts_with('[') => format!("{place}: {text}"),
                _ => text,
            };
        }
        mlua::Error::RuntimeError(text) | mlua::Error::MemoryError(text) => text.clone(),
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    match text.find("\nstack traceback:") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// `[string "…"]:line` of the first frame that a script wrote.
fn first_place(traceback: &str) -> Option<String> {
    let stack = traceback.split_once("stack traceback:").map_or(traceback, |(_, stack)| stack);
    let line = stack.lines().map(str::trim).find(|line| line.starts_with("[string "))?;
    let end = line.find("]:").map(|at| at + 2)?;
    let digits = line[end..].find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len() - end);
    Some(line[..end + digits].to_owned())
}

fn is_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => is_memory(cause),
        mlua::Error::RuntimeError(text) => text.contains("not enough memory"),
        _ => false,
    }
}

const BASE: &str = include_str!("lua/base.lua");

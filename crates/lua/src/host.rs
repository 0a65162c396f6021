//! One Lua state per core: the sandbox, and how functions are run in it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use mlua::{
    ChunkMode, Function, IntoLuaMulti, Lua, LuaOptions, MultiValue, StdLib, Table, Thread,
    ThreadStatus, Value,
};
use sluicegate_gateway::expr::VarName;
use tokio::sync::Notify;
use tracing::warn;

use crate::json::{JsonError, Marks};
use crate::kept::{Keep, Kept};
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
    #[error("{caller}{why}", caller = caller(.1), why = .0)]
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
    pub(crate) timers: Rc<Timers>,
    pub(crate) keep: Rc<Keep>,
    inner: Rc<Inner>,
    op: Table,
    null: Value,
    new_env: Function,
    new_ctx: Function,
    /// Calls a function, and takes no more of what it returns than anybody looks at.
    run: Function,
    /// The same for a function of a kept configuration, all named by their numbers.
    run_kept: Function,
    /// Values of variables that functions registered, by name and `ctx`.
    pub(crate) registered: Function,
    loaded: RefCell<HashMap<u64, Loaded>>,
    /// Another state took this one's place because of its memory: what waits in it ends.
    given_up: Cell<bool>,
    on_given_up: Notify,
}

/// What natives share with the host.
pub(crate) struct Inner {
    pub(crate) budget: Rc<Budget>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) regexes: Regexes,
    pub(crate) timers: Rc<Timers>,
    pub(crate) vars: RefCell<HashMap<Box<[u8]>, Rc<VarName>>>,
    pub(crate) marks: OnceCell<Marks>,
    pub(crate) keep: Rc<Keep>,
}

impl Inner {
    /// A value as JSON, at the expense of the script that runs.
    pub(crate) fn encode(&self, value: &Value, sorted: bool) -> Result<Vec<u8>, JsonError> {
        let marks = self.marks.get().ok_or(JsonError::Type("value before the library is there"))?;
        json::encode(value, marks, sorted, &self.budget)
    }
}

/// The functions of one configuration, ready to run.
#[derive(Clone)]
pub(crate) struct Loaded {
    /// A list: what functions get first, the plugin's name, the functions.
    list: Rc<Kept>,
    functions: usize,
    alive: Weak<()>,
}

impl Loaded {
    /// What calls of the functions begin with: the list's number, and the function's in it.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let list = self.list.at();
        (FIRST_FUNCTION..FIRST_FUNCTION + self.functions).map(move |n| (list, n))
    }

    /// The only function.
    pub(crate) fn function(&self) -> Result<Function, LuaError> {
        let function = self.list.get::<Table>().and_then(|list| list.raw_get(FIRST_FUNCTION));
        function.map_err(|error| LuaError::State(text_of(&error)))
    }
}

/// Where functions begin in the list of a configuration.
const FIRST_FUNCTION: usize = 3;

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
        let inner = Rc::new(Inner {
            budget: Budget::watch(&lua)?,
            limits: limits.clone(),
            regexes: Regexes::default(),
            timers: Rc::default(),
            vars: RefCell::default(),
            marks: OnceCell::new(),
            keep: Keep::new(&lua)?,
        });
        let (natives, null) = natives::table(&lua, &inner)?;
        let op = lua.create_table()?;
        let base = lua.load(BASE).set_name("=[sluicegate]").set_mode(ChunkMode::Text);
        type Made = (Function, Function, Function, Function, Function);
        let (new_env, new_ctx, registered, run, run_kept): Made =
            base.call((natives, op.clone(), inner.keep.table().clone()))?;
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
            timers,
            keep: inner.keep.clone(),
            inner,
            op,
            null,
            new_env,
            new_ctx,
            run,
            run_kept,
            registered,
            loaded,
            given_up: Cell::new(false),
            on_given_up: Notify::new(),
        })
    }

    /// Runs `run` against `meter`, with the request at hand.
    pub(crate) fn metered<R>(
        &self,
        step: Option<&mut Step<'_>>,
        meter: &mut Meter,
        run: impl FnOnce() -> mlua::Result<R>,
    ) -> Result<R, LuaError> {
        let (ran, exceeded) = self.inner.budget.metered(&self.lua, meter, || match step {
            Some(step) => lend(step, run),
            None => run(),
        });
        // Whether the script failed says nothing: it can catch the error, and keep what it has.
        self.relieve();
        ran.map_err(|error| self.failed(&error, exceeded))
    }

    fn failed(&self, error: &mlua::Error, exceeded: Option<Exceeded>) -> LuaError {
        match exceeded {
            Some(exceeded) => LuaError::Stopped(exceeded.to_string(), self.inner.budget.place()),
            None => LuaError::Raised(text_of(error)),
        }
    }

    /// Scripts may have used nearly all memory there is. Where they keep it, this core goes on with a
    /// new state, and what scripts remembered is gone: one of them must not stop the others.
    fn relieve(&self) {
        let most = self.limits.memory_bytes / 4 * 3;
        if self.given_up.get() || self.lua.used_memory() <= most {
            return;
        }
        let _ = self.lua.gc_collect();
        if self.lua.used_memory() > most {
            self.given_up.set(true);
            self.on_given_up.notify_waiters();
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

    /// Waits until another state takes this one's place because of the memory that scripts keep. Were
    /// it left to those that wait in it, there could be any number of full ones.
    pub(crate) async fn given_up(&self) -> LuaError {
        loop {
            let told = self.on_given_up.notified();
            if self.given_up.get() {
                return LuaError::State("functions keep more memory than plugin_attr.serverless.memory_bytes allows; what waits is ended".into());
            }
            told.await;
        }
    }

    /// The context of a request: a list of its `ctx` and its `ngx.ctx`.
    pub(crate) fn context(&self, step: &Step<'_>) -> Result<Rc<Kept>, LuaError> {
        let mut context = step.remembered.context.borrow_mut();
        if let Some((number, kept)) = &*context
            && *number == self.number
        {
            return Ok(kept.clone());
        }
        let kept = Rc::new(self.keep.place());
        let made = self.new_ctx.call::<()>(kept.at());
        made.map_err(|error| LuaError::State(text_of(&error)))?;
        *context = Some((self.number, kept.clone()));
        Ok(kept)
    }

    /// `ctx` of a request.
    pub(crate) fn ctx(&self, step: &Step<'_>) -> Result<Table, LuaError> {
        let ctx = self.context(step)?.get::<Table>().and_then(|context| context.raw_get(1));
        ctx.map_err(|error| LuaError::State(text_of(&error)))
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
        plugin: &str,
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
        let mut outcome = Ok(());
        let list = self.metered(Some(step), &mut meter, || {
            let list = self.lua.create_table()?;
            list.raw_set(1, json::to_lua(&self.lua, conf, &self.null)?)?;
            list.raw_set(2, plugin)?;
            outcome = self.new_env().and_then(|env| {
                sources.iter().enumerate().try_for_each(|(n, source)| {
                    let function = self.function(source, source, &env)?;
                    let set = list.raw_set(n + FIRST_FUNCTION, function);
                    set.map_err(|error| LuaError::State(text_of(&error)))
                })
            });
            self.keep.put(list)
        })?;
        outcome?;
        let (list, functions) = (Rc::new(list), sources.len());
        let loaded = Loaded { list, functions, alive: Arc::downgrade(alive) };
        self.loaded.borrow_mut().insert(id, loaded.clone());
        Ok(loaded)
    }

    /// Starts a call that may wait. Its first arguments are the function and what it gets.
    pub(crate) fn start(&self) -> Result<Thread, LuaError> {
        self.thread(&self.run)
    }

    /// Starts a call of a configuration's function that may wait. Its first arguments are one of
    /// [`Loaded::calls`] and the number of the context.
    pub(crate) fn start_kept(&self) -> Result<Thread, LuaError> {
        self.thread(&self.run_kept)
    }

    fn thread(&self, function: &Function) -> Result<Thread, LuaError> {
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
        step: &mut Step<'_>,
        function_and_arguments: impl IntoLuaMulti,
    ) -> Result<MultiValue, LuaError> {
        let mut meter = Meter::new(&self.limits);
        self.metered(Some(step), &mut meter, || self.run.call(function_and_arguments))
    }

    /// Calls a configuration's function that cannot wait.
    pub(crate) fn call_kept(
        &self,
        step: &mut Step<'_>,
        (list, n): (usize, usize),
        context: &Kept,
    ) -> Result<MultiValue, LuaError> {
        let mut meter = Meter::new(&self.limits);
        let context = context.at();
        self.metered(Some(step), &mut meter, || self.run_kept.call((list, n, context)))
    }

    /// A value as JSON, at the expense of a call.
    pub(crate) fn encode(&self, value: &Value, meter: &mut Meter) -> Result<Vec<u8>, LuaError> {
        self.metered(None, meter, || {
            self.inner.encode(value, false).map_err(|error| match error {
                JsonError::Lua(error) => error,
                other => mlua::Error::RuntimeError(format!("failed to encode data: {other}")),
            })
        })
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

/// How a stopped script's place begins its line, where it is known.
fn caller(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{place}(): ") }
}

const BASE: &str = include_str!("lua/base.lua");

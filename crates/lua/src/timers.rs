//! `ngx.timer`: functions that run later, for no request.
//!
//! They run on the core that asked for them, each call with limits of its own, and end with the
//! configuration that made them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak as RcWeak};
use std::sync::{Arc, Weak};
use std::time::Duration;

use mlua::{Function, IntoLuaMulti as _, Lua, MultiValue, Thread, Value};
use sluicegate_gateway::core::Core;
use sluicegate_gateway::upstream::UpstreamDeps;
use tracing::error;

use crate::host::{Host, Inner, LuaError, Ran};
use crate::kept::Kept;
use crate::limits::Meter;
use crate::natives::Add;
use crate::run;

/// The timers of one Lua state.
#[derive(Default)]
pub(crate) struct Timers {
    /// Asked for by the function that runs, not yet started.
    asked: RefCell<Vec<Asked>>,
    waiting: Cell<usize>,
    running: Cell<usize>,
    /// Whether what runs may ask for timers.
    allowed: Cell<bool>,
    /// Whether a timer's function is what runs.
    inside: Cell<bool>,
}

struct Asked {
    delay: Duration,
    every: bool,
    /// Knows its arguments.
    function: Kept,
    _slot: Slot,
}

/// Counts a timer for as long as it is there.
struct Slot(Rc<Timers>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// What timers run with: that of the configuration which made them.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) alive: Weak<()>,
    pub(crate) deps: Option<UpstreamDeps>,
    pub(crate) core: Rc<Core>,
    pub(crate) route: String,
}

impl Timers {
    /// Whether a timer's function is what runs.
    pub(crate) fn is_inside(&self) -> bool {
        self.inside.get()
    }

    /// Lets what runs in `run` ask for timers, and starts them.
    pub(crate) fn with<R>(
        &self,
        host: &Rc<Host>,
        home: impl FnOnce() -> Home,
        run: impl FnOnce() -> R,
    ) -> R {
        let before = self.allowed.replace(true);
        let ran = run();
        self.allowed.set(before);
        let asked = self.asked.take();
        if !asked.is_empty() {
            let home = home();
            for timer in asked {
                tokio::task::spawn_local(keep(timer, Rc::downgrade(host), home.clone()));
            }
        }
        ran
    }
}

/// Gives scripts timers.
pub(crate) fn add(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> mlua::Result<()> {
    let (timers, max) = (inner.timers.clone(), inner.limits.timers);
    let keep = inner.keep.clone();
    let ask = move |lua: &Lua, (seconds, every, function): (f64, bool, Function)| {
        let refused = |why: &str| (Value::Nil, why).into_lua_multi(lua);
        if !timers.allowed.get() {
            return refused("timers cannot be made here");
        }
        if timers.waiting.get() + timers.running.get() >= max {
            return refused("too many timers (plugin_attr.serverless.timers)");
        }
        let function = keep.put(function)?;
        timers.waiting.set(timers.waiting.get() + 1);
        let delay = Duration::from_secs_f64(seconds.clamp(0.0, DELAY_SECS_MAX));
        let slot = Slot(timers.clone());
        timers.asked.borrow_mut().push(Asked { delay, every, function, _slot: slot });
        true.into_lua_multi(lua)
    };
    add("timer", lua.create_function(ask)?)?;
    let timers = inner.timers.clone();
    let counts = move |_: &Lua, ()| Ok((timers.waiting.get(), timers.running.get()));
    add("timers", lua.create_function(counts)?)
}

async fn keep(timer: Asked, host: RcWeak<Host>, home: Home) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(timer.delay) => {}
            () = home.gone() => return,
        }
        let Some(host) = host.upgrade() else { return };
        if home.is_gone() {
            return;
        }
        if let Err(error) = call(&timer, &host, &home).await {
            // The text is the script's own and begins with its place.
            error!(route = home.route, "[lua] {error}, in a timer");
        }
        if !timer.every {
            return;
        }
    }
}

async fn call(timer: &Asked, host: &Rc<Host>, home: &Home) -> Result<(), LuaError> {
    let timers = &host.timers;
    let failed = |error: mlua::Error| LuaError::State(error.to_string());
    let thread = host.keep.put(host.start()?).map_err(failed)?;
    let mut meter = Meter::new(&host.limits);
    // The function's first argument says whether the gateway ends; then nothing is run.
    let function = timer.function.get::<Function>().map_err(failed)?;
    let mut arguments =
        MultiValue::from_vec(vec![Value::Function(function), Value::Boolean(false)]);
    timers.running.set(timers.running.get() + 1);
    let _running = Running(timers.clone());
    loop {
        let thread = thread.get::<Thread>().map_err(failed)?;
        let resumed = timers.with(
            host,
            || home.clone(),
            || {
                timers.inside.set(true);
                let resumed = host.resume(&thread, None, &mut meter, arguments);
                timers.inside.set(false);
                resumed
            },
        );
        drop(thread);
        match resumed? {
            Ran::Ended(_) => return Ok(()),
            Ran::Waits(what, argument) => {
                let waits =
                    run::wait_outside(host, &what, argument, &home.core, home.deps.as_ref());
                arguments = tokio::select! {
                    arguments = waits => arguments?,
                    given_up = host.given_up() => return Err(given_up),
                    () = home.gone() => return Ok(()),
                };
                // It may have gone in the same moment.
                if home.is_gone() {
                    return Ok(());
                }
            }
        }
    }
}

struct Running(Rc<Timers>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
    }
}

impl Home {
    /// Is the configuration gone that made the timer?
    fn is_gone(&self) -> bool {
        self.alive.strong_count() == 0
    }

    /// Waits until it is.
    async fn gone(&self) {
        while !self.is_gone() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn new(
        alive: &Arc<()>,
        deps: Option<&UpstreamDeps>,
        core: &Rc<Core>,
        route: &str,
    ) -> Self {
        let (alive, deps) = (Arc::downgrade(alive), deps.cloned());
        Self { alive, deps, core: core.clone(), route: route.to_owned() }
    }
}

/// The longest time until a timer runs: a year.
const DELAY_SECS_MAX: f64 = 365.0 * 86_400.0;

/// How often a timer that waits looks whether its configuration is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

//! How much a script may use, and the count of it.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mlua::{HookTriggers, Lua, VmState};
use serde_json::Value;

use crate::natives::place;

/// What scripts may use: `plugin_attr.serverless` of config.yaml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of one call of a function (`instructions`).
    pub instructions: u64,
    /// Time that one call of a function may keep its core busy; waiting does not count
    /// (`time_ms`).
    pub time: Duration,
    /// Bytes of memory of all scripts of one core together (`memory_bytes`).
    pub memory_bytes: usize,
    /// Bytes of a request body that scripts can read, of what they print, and of an answer to
    /// `resty.http` (`body_bytes`).
    pub body_bytes: usize,
    /// Timers of one core that wait or run (`timers`).
    pub timers: usize,
    /// Where `require` looks for files: patterns with a `?` (`package_path`); none: nowhere.
    pub package_path: Vec<PathBuf>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            instructions: INSTRUCTIONS,
            time: TIME,
            memory_bytes: MEMORY_BYTES,
            body_bytes: BODY_BYTES,
            timers: TIMERS,
            package_path: Vec::new(),
        }
    }
}

impl Limits {
    /// Reads `plugin_attr.serverless`.
    ///
    /// # Errors
    /// Which key has a value that it cannot have.
    pub fn read(attr: &Value) -> Result<Self, String> {
        let mut limits = Self::default();
        let Some(keys) = attr.as_object() else {
            return match attr {
                Value::Null => Ok(limits),
                _ => Err("plugin_attr.serverless is not a map".into()),
            };
        };
        for (key, value) in keys {
            let number = || {
                let number = value.as_u64().filter(|n| *n > 0);
                number
                    .ok_or_else(|| format!("plugin_attr.serverless.{key} is not a number above 0"))
            };
            let bytes = || number().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            match key.as_str() {
                "instructions" => limits.instructions = number()?,
                "time_ms" => limits.time = Duration::from_millis(number()?),
                "memory_bytes" => limits.memory_bytes = bytes()?.max(MEMORY_BYTES_MIN),
                "body_bytes" => limits.body_bytes = bytes()?,
                "timers" => limits.timers = bytes()?,
                "package_path" => {
                    let list = value.as_array().into_iter().flatten().map(Value::as_str);
                    let list: Option<Vec<_>> = list.map(|path| path.map(PathBuf::from)).collect();
                    limits.package_path = list
                        .filter(|_| value.is_array())
                        .ok_or("plugin_attr.serverless.package_path is not a list of texts")?;
                }
                other => {
                    return Err(format!("plugin_attr.serverless.{other} is not known"));
                }
            }
        }
        Ok(limits)
    }
}

static LIMITS: LazyLock<RwLock<Arc<Limits>>> = LazyLock::new(RwLock::default);

/// Counts changes of the limits.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Sets the limits. Where they are others than before, every core goes on with a new Lua state, and
/// what functions kept between requests is gone, as after a reload of nginx.
pub fn configure(limits: Limits) {
    let mut current = LIMITS.write().unwrap_or_else(PoisonError::into_inner);
    if **current != limits {
        *current = Arc::new(limits);
        CHANGES.fetch_add(1, Ordering::Release);
    }
}

/// How often the limits were changed.
pub(crate) fn changes() -> u64 {
    CHANGES.load(Ordering::Acquire)
}

/// The limits in force.
pub(crate) fn limits() -> Arc<Limits> {
    LIMITS.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Why a script was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    #[error("the script ran more instructions than plugin_attr.serverless.instructions allows")]
    Instructions,
    #[error("the script ran longer than plugin_attr.serverless.time_ms allows")]
    Time,
}

/// What a call has left, kept while it waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    instructions: i64,
    time: Duration,
}

impl Meter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            instructions: i64::try_from(limits.instructions).unwrap_or(i64::MAX),
            time: limits.time,
        }
    }
}

/// Counts what the running script uses.
///
/// Once a limit is passed, every single instruction of the script fails: what a `pcall` catches is
/// followed by the next failure, until no function of the script is left.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Cell<i64>,
    until: Cell<Option<Instant>>,
    exceeded: Cell<Option<Exceeded>>,
    /// Where the script was then.
    place: RefCell<String>,
    fine: Cell<bool>,
}

impl Budget {
    /// Watches everything that runs in `lua`.
    pub(crate) fn watch(lua: &Lua) -> mlua::Result<Rc<Self>> {
        let budget = Rc::new(Self {
            left: Cell::new(i64::MAX),
            until: Cell::new(None),
            exceeded: Cell::new(None),
            place: RefCell::default(),
            fine: Cell::new(false),
        });
        budget.hook(lua, STEP)?;
        Ok(budget)
    }

    fn hook(self: &Rc<Self>, lua: &Lua, step: u32) -> mlua::Result<()> {
        let budget = self.clone();
        let triggers = HookTriggers::new().every_nth_instruction(step);
        lua.set_global_hook(triggers, move |lua, _| {
            budget.spend(i64::from(step));
            match budget.exceeded.get() {
                None => Ok(VmState::Continue),
                Some(exceeded) => {
                    if !budget.fine.replace(true) {
                        budget.place.replace(place(lua, 0).unwrap_or_default());
                        budget.hook(lua, 1)?;
                    }
                    Err(mlua::Error::external(exceeded))
                }
            }
        })
    }

    fn spend(&self, instructions: i64) {
        let left = self.left.get().saturating_sub(instructions);
        self.left.set(left);
        if left < 0 {
            self.exceeded.set(Some(self.exceeded.get().unwrap_or(Exceeded::Instructions)));
        } else if self.until.get().is_some_and(|until| Instant::now() > until) {
            self.exceeded.set(Some(self.exceeded.get().unwrap_or(Exceeded::Time)));
        }
    }

    /// Where the script was that was stopped last.
    pub(crate) fn place(&self) -> String {
        self.place.borrow().clone()
    }

    /// Charges work done outside of Lua: as many instructions as there are words in `bytes`.
    pub(crate) fn charge(&self, bytes: usize) -> mlua::Result<()> {
        self.spend(i64::try_from(bytes / 8).unwrap_or(i64::MAX));
        self.exceeded.get().map_or(Ok(()), |exceeded| Err(mlua::Error::external(exceeded)))
    }

    /// Runs a piece of a call. Says in the end whether it was stopped.
    pub(crate) fn metered<R>(
        self: &Rc<Self>,
        lua: &Lua,
        meter: &mut Meter,
        run: impl FnOnce() -> R,
    ) -> (R, Option<Exceeded>) {
        let began = Instant::now();
        self.place.borrow_mut().clear();
        self.left.set(meter.instructions);
        self.until.set(Some(began + meter.time));
        self.exceeded.set(None);
        let ran = run();
        meter.instructions = self.left.replace(i64::MAX);
        meter.time = meter.time.saturating_sub(began.elapsed());
        self.until.set(None);
        let exceeded = self.exceeded.take();
        if self.fine.replace(false) {
            // The hook was set once already: it can be set again.
            let _ = self.hook(lua, STEP);
        }
        (ran, exceeded)
    }
}

/// Instructions between two looks at the limits.
const STEP: u32 = 200;

/// Bytes of one text that the library makes at one go, outside of Lua's own memory: JSON, arguments,
/// replacements.
pub(crate) const TEXT_BYTES_MAX: usize = 32 << 20;

/// What is said of a longer one.
pub(crate) const TEXT_TOO_LONG: &str = "string too long";

const INSTRUCTIONS: u64 = 20_000_000;
const TIME: Duration = Duration::from_secs(1);
const MEMORY_BYTES: usize = 64 << 20;
const BODY_BYTES: usize = 8 << 20;
const TIMERS: usize = 256;

/// Below this not even the library loads.
const MEMORY_BYTES_MIN: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_read_and_wrong_ones_named() {
        let read = Limits::read(&json!({"instructions": 5, "time_ms": 7, "memory_bytes": 1,
            "body_bytes": 9, "package_path": ["/a/?.lua"]}));
        let read = read.unwrap();
        assert_eq!((read.instructions, read.time.as_millis()), (5, 7));
        assert_eq!((read.memory_bytes, read.body_bytes), (MEMORY_BYTES_MIN, 9));
        assert_eq!(Limits::read(&Value::Null), Ok(Limits::default()));
        for (attr, text) in [
            (json!(1), "is not a map"),
            (json!({"instructions": 0}), "instructions is not a number above 0"),
            (json!({"time_ms": "1"}), "time_ms is not a number above 0"),
            (json!({"package_path": "x"}), "package_path is not a list"),
            (json!({"fuel": 1}), "fuel is not known"),
        ] {
            let error = Limits::read(&attr).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}

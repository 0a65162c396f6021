//! `ngx.shared`: values that all cores and all functions share, in zones of a limited size.
//!
//! config.yaml names the zones (`nginx_config.http.custom_lua_shared_dict`). What a zone holds stays
//! when configurations change, and goes with the process. Where a zone is full, what was not used
//! for the longest time makes room, as in OpenResty.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mlua::{IntoLua as _, IntoLuaMulti as _, Lua, MultiValue, String as LuaString, Table, Value};

use crate::host::Inner;
use crate::natives::Add;

/// All zones.
static ZONES: LazyLock<RwLock<HashMap<String, Arc<Zone>>>> = LazyLock::new(RwLock::default);

/// Makes the zones of these names and sizes (in bytes). A zone that is there already with its size
/// keeps what it holds; others go.
pub fn configure_zones(zones: &[(String, u64)]) {
    let mut all = ZONES.write().unwrap_or_else(PoisonError::into_inner);
    let zone = |(name, bytes): &(String, u64)| {
        let bytes = usize::try_from(*bytes).unwrap_or(usize::MAX).max(ZONE_BYTES_MIN);
        let kept = all.get(name).filter(|zone| zone.capacity == bytes).cloned();
        (name.clone(), kept.unwrap_or_else(|| Arc::new(Zone::new(bytes))))
    };
    let made = zones.iter().map(zone).collect();
    *all = made;
}

fn zone(name: &[u8]) -> Option<Arc<Zone>> {
    let name = std::str::from_utf8(name).ok()?;
    ZONES.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
}

/// Gives scripts the zones.
pub(crate) fn add(lua: &Lua, inner: &std::rc::Rc<Inner>, add: Add<'_>) -> mlua::Result<()> {
    let has = |_: &Lua, name: LuaString| Ok(zone(&name.as_bytes()).is_some());
    add("zone_has", lua.create_function(has)?)?;
    let budget = inner.budget.clone();
    let operate = move |lua: &Lua,
                        (name, op, key, one, two, three): (
        LuaString,
        LuaString,
        Value,
        Value,
        Value,
        Value,
    )| {
        let Some(zone) = zone(&name.as_bytes()) else {
            return (Value::Nil, "no such zone").into_lua_multi(lua);
        };
        let args = [one, two, three];
        let key = match key {
            Value::Nil => Err("nil key"),
            key => {
                let key = crate::natives::plain(&key);
                match key.len() {
                    0 => Err("empty key"),
                    1..=KEY_BYTES_MAX => Ok(key),
                    _ => Err("key too long"),
                }
            }
        };
        let key = match key {
            Ok(key) => key,
            Err(why) => return (Value::Nil, why).into_lua_multi(lua),
        };
        if let Some(Value::String(text)) = args.first() {
            budget.charge(text.as_bytes().len())?;
        }
        let answers = zone.operate(&op.to_string_lossy(), key, &args, Instant::now());
        let values: mlua::Result<Vec<Value>> =
            answers.into_iter().map(|answer| answer.into_value(lua)).collect();
        Ok(MultiValue::from_vec(values?))
    };
    add("zone_do", lua.create_function(operate)?)?;
    let budget = inner.budget.clone();
    let keys = move |lua: &Lua, (name, max): (LuaString, f64)| -> mlua::Result<Table> {
        let max = if max <= 0.0 { usize::MAX } else { max as usize };
        let keys = zone(&name.as_bytes()).map(|zone| zone.keys(max, Instant::now()));
        let keys = keys.unwrap_or_default();
        budget.charge(keys.iter().map(|key| key.len() + 8).sum())?;
        let list = lua.create_table_with_capacity(keys.len(), 0)?;
        for (at, key) in keys.iter().enumerate() {
            list.raw_set(at + 1, lua.create_string(key)?)?;
        }
        Ok(list)
    };
    add("zone_keys", lua.create_function(keys)?)?;
    let flush = |_: &Lua, (name, expired, max): (LuaString, bool, f64)| {
        let Some(zone) = zone(&name.as_bytes()) else { return Ok(0) };
        let max = if max <= 0.0 { usize::MAX } else { max as usize };
        Ok(zone.flush(expired, max, Instant::now()))
    };
    add("zone_flush", lua.create_function(flush)?)?;
    let space = |_: &Lua, name: LuaString| {
        let sizes = zone(&name.as_bytes()).map(|zone| (zone.capacity, zone.state().used));
        let (capacity, used) = sizes.unwrap_or_default();
        Ok((capacity, capacity.saturating_sub(used)))
    };
    add("zone_space", lua.create_function(space)?)
}

struct Zone {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The one that was not used for the longest time first.
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
    used: usize,
}

struct Entry {
    value: Stored,
    flags: i64,
    expires: Option<Instant>,
    turn: u64,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Stored {
    Flag(bool),
    Number(f64),
    Text(Arc<[u8]>),
    List(VecDeque<Stored>),
}

/// One value of an answer to a script.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Nil,
    Is(Stored),
    Says(&'static str),
}

impl Zone {
    fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate(&self, op: &str, key: Vec<u8>, args: &[Value], now: Instant) -> Vec<Answer> {
        use Answer::{Is, Nil, Says};
        let mut state = self.state();
        let number = |at: usize| match args.get(at) {
            Some(Value::Integer(n)) => Some(*n as f64),
            Some(Value::Number(n)) => Some(*n),
            _ => None,
        };
        let expires = |at: usize| {
            let secs = number(at).filter(|secs| *secs > 0.0)?;
            Some(now + Duration::from_secs_f64(secs.min(EXPIRY_SECS_MAX)))
        };
        let flag = |is: bool| Is(Stored::Flag(is));
        let count = |n: usize| Is(Stored::Number(n as f64));
        let live = state.entries.get(&key[..]).is_some_and(|entry| !entry.ended(now));
        match op {
            "get" | "get_stale" => {
                let stale = op == "get_stale";
                if !live && !stale {
                    return vec![Nil];
                }
                state.touch(&key);
                let Some(entry) = state.entries.get(&key[..]) else { return vec![Nil] };
                if matches!(entry.value, Stored::List(_)) {
                    return vec![Nil, Says("value is a list")];
                }
                let mut answer = vec![Is(entry.value.clone())];
                match entry.flags {
                    0 => answer.extend(stale.then_some(Nil)),
                    flags => answer.push(Is(Stored::Number(flags as f64))),
                }
                answer.extend(stale.then(|| flag(entry.ended(now))));
                answer
            }
            "set" | "safe_set" | "add" | "safe_add" | "replace" => {
                match op {
                    "add" | "safe_add" if live => return vec![flag(false), Says("exists")],
                    "replace" if !live => return vec![flag(false), Says("not found")],
                    _ => {}
                }
                let value = match args.first() {
                    None | Some(Value::Nil) => {
                        state.remove(&key);
                        return vec![flag(true), Nil, flag(false)];
                    }
                    Some(value) => match Stored::of(value) {
                        Some(value) => value,
                        None => return vec![Nil, Says("bad value type")],
                    },
                };
                let flags = number(2).map_or(0, |flags| flags as i64);
                let entry = (value, flags, expires(1));
                match self.put(&mut state, key, entry, op.starts_with("safe_"), now) {
                    Ok(forcible) => vec![flag(true), Nil, flag(forcible)],
                    Err(forcible) => vec![flag(false), Says("no memory"), flag(forcible)],
                }
            }
            "delete" => {
                state.remove(&key);
                Vec::new()
            }
            "incr" => {
                let Some(step) = number(0) else { return vec![Nil, Says("not a number")] };
                let (before, kept) = match state.entries.get(&key[..]).filter(|_| live) {
                    Some(Entry { value: Stored::Number(n), flags, expires, .. }) => {
                        (*n, Some((*flags, *expires)))
                    }
                    Some(_) => return vec![Nil, Says("not a number")],
                    None => match number(1) {
                        Some(first) => (first, None),
                        None => return vec![Nil, Says("not found")],
                    },
                };
                let value = Stored::Number(before + step);
                let (flags, expires) = kept.unwrap_or_else(|| (0, expires(2)));
                match self.put(&mut state, key, (value.clone(), flags, expires), false, now) {
                    // As in OpenResty, more is told only where a first value was given.
                    Ok(_) if number(1).is_none() => vec![Is(value)],
                    Ok(forcible) => vec![Is(value), Nil, flag(forcible)],
                    Err(forcible) => vec![Nil, Says("no memory"), flag(forcible)],
                }
            }
            "lpush" | "rpush" => {
                let value = match args.first().and_then(Stored::of) {
                    Some(Stored::Flag(_)) | None => return vec![Nil, Says("bad value type")],
                    Some(value) => value,
                };
                let mut list = match state.entries.get_mut(&key[..]).filter(|_| live) {
                    None => VecDeque::new(),
                    Some(Entry { value: Stored::List(list), .. }) => std::mem::take(list),
                    Some(_) => return vec![Nil, Says("value not a list")],
                };
                if op == "lpush" {
                    list.push_front(value)
                } else {
                    list.push_back(value)
                }
                let (length, list) = (list.len(), Stored::List(list));
                if key.len() + list.bytes() + ENTRY_BYTES > self.capacity {
                    let Stored::List(mut list) = list else { return vec![Nil] };
                    if op == "lpush" {
                        list.pop_front()
                    } else {
                        list.pop_back()
                    };
                    if let Some(entry) = state.entries.get_mut(&key[..]).filter(|_| live) {
                        entry.value = Stored::List(list);
                    }
                    return vec![Nil, Says("no memory")];
                }
                match self.put(&mut state, key, (list, 0, None), false, now) {
                    Ok(_) => vec![count(length)],
                    Err(_) => vec![Nil, Says("no memory")],
                }
            }
            "lpop" | "rpop" | "llen" => {
                let list = match state.entries.get_mut(&key[..]).filter(|_| live) {
                    None if op == "llen" => return vec![count(0)],
                    None => return vec![Nil],
                    Some(Entry { value: Stored::List(list), .. }) => list,
                    Some(_) => return vec![Nil, Says("value not a list")],
                };
                if op == "llen" {
                    return vec![count(list.len())];
                }
                let mut list = std::mem::take(list);
                let popped = if op == "lpop" { list.pop_front() } else { list.pop_back() };
                if list.is_empty() {
                    state.remove(&key);
                } else {
                    // It takes less room than before.
                    let _ = self.put(&mut state, key, (Stored::List(list), 0, None), false, now);
                }
                vec![popped.map_or(Nil, Is)]
            }
            "ttl" => match state.entries.get(&key[..]).filter(|_| live) {
                None => vec![Nil, Says("not found")],
                Some(entry) => {
                    let left = entry.expires.map_or(0.0, |end| (end - now).as_secs_f64());
                    vec![Is(Stored::Number(left))]
                }
            },
            "expire" => match state.entries.get_mut(&key[..]).filter(|_| live) {
                None => vec![Nil, Says("not found")],
                Some(entry) => {
                    entry.expires = expires(0);
                    vec![flag(true)]
                }
            },
            _ => vec![Nil, Says("no such operation")],
        }
    }

    /// Stores an entry; whether others, still valid, had to go for it.
    fn put(
        &self,
        state: &mut State,
        key: Vec<u8>,
        (value, flags, expires): (Stored, i64, Option<Instant>),
        safe: bool,
        now: Instant,
    ) -> Result<bool, bool> {
        let bytes = key.len() + value.bytes() + ENTRY_BYTES;
        let before = state.entries.get(&key[..]).map_or(0, |entry| entry.bytes);
        if bytes > self.capacity {
            return Err(false);
        }
        let mut forcible = false;
        while state.used - before + bytes > self.capacity {
            let oldest = state.order.values().find(|oldest| ***oldest != key[..]).cloned();
            let Some(oldest) = oldest else { break };
            let valid = state.entries.get(&oldest).is_some_and(|entry| !entry.ended(now));
            if valid && safe {
                return Err(false);
            }
            forcible |= valid;
            state.remove(&oldest);
        }
        state.remove(&key);
        let key: Arc<[u8]> = key.into();
        let turn = state.next;
        state.next += 1;
        state.used += bytes;
        state.order.insert(turn, key.clone());
        state.entries.insert(key, Entry { value, flags, expires, turn, bytes });
        Ok(forcible)
    }

    fn keys(&self, max: usize, now: Instant) -> Vec<Arc<[u8]>> {
        let state = self.state();
        let recent = state.order.values().rev();
        let live = |key: &&Arc<[u8]>| state.entries.get(*key).is_some_and(|e| !e.ended(now));
        recent.filter(live).take(max).cloned().collect()
    }

    /// Takes out what has ended, or has everything end.
    fn flush(&self, expired: bool, max: usize, now: Instant) -> usize {
        let mut state = self.state();
        if !expired {
            for entry in state.entries.values_mut() {
                entry.expires = Some(now);
            }
            return 0;
        }
        let ended = state.entries.iter().filter(|(_, entry)| entry.ended(now));
        let ended: Vec<Arc<[u8]>> = ended.map(|(key, _)| key.clone()).take(max).collect();
        for key in &ended {
            state.remove(key);
        }
        ended.len()
    }
}

impl State {
    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.turn);
            self.used -= entry.bytes;
        }
    }

    fn touch(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.get_mut(key)
            && let Some(name) = self.order.remove(&entry.turn)
        {
            entry.turn = self.next;
            self.order.insert(self.next, name);
            self.next += 1;
        }
    }
}

impl Entry {
    fn ended(&self, now: Instant) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

impl Stored {
    fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Boolean(flag) => Self::Flag(*flag),
            Value::Integer(n) => Self::Number(*n as f64),
            Value::Number(n) => Self::Number(*n),
            Value::String(text) => Self::Text((&*text.as_bytes()).into()),
            _ => return None,
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Flag(_) | Self::Number(_) => 8,
            Self::Text(text) => text.len(),
            Self::List(list) => list.iter().map(|value| value.bytes() + ENTRY_BYTES).sum(),
        }
    }
}

impl Answer {
    fn into_value(self, lua: &Lua) -> mlua::Result<Value> {
        match self {
            Self::Nil | Self::Is(Stored::List(_)) => Ok(Value::Nil),
            Self::Is(Stored::Flag(flag)) => Ok(Value::Boolean(flag)),
            Self::Is(Stored::Number(n)) => n.into_lua(lua),
            Self::Is(Stored::Text(text)) => lua.create_string(&text).map(Value::String),
            Self::Says(text) => lua.create_string(text).map(Value::String),
        }
    }
}

/// A zone is at least so large, as in nginx.
const ZONE_BYTES_MIN: usize = 8 << 10;

/// What an entry takes besides its key and its value.
const ENTRY_BYTES: usize = 96;

/// The longest key, as in OpenResty.
const KEY_BYTES_MAX: usize = 65_535;

/// No entry is kept longer than ten years.
const EXPIRY_SECS_MAX: f64 = 10.0 * 365.0 * 86_400.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn text(text: &str) -> Answer {
        Answer::Is(Stored::Text(text.as_bytes().into()))
    }

    fn number(n: f64) -> Answer {
        Answer::Is(Stored::Number(n))
    }

    #[test]
    fn what_ends_is_gone_at_its_time_and_stale_until_it_makes_room() {
        let (zone, now) = (Zone::new(ZONE_BYTES_MIN), Instant::now());
        let ask = |op: &str, args: &[Value], after| {
            zone.operate(op, b"k".to_vec(), args, now + secs(after))
        };
        ask("set", &[Value::Integer(1), Value::Integer(10), Value::Integer(7)], 0);
        assert_eq!(ask("get", &[], 9), [number(1.0), number(7.0)]);
        assert_eq!(ask("ttl", &[], 4), [number(6.0)]);
        assert_eq!(ask("get", &[], 10), [Answer::Nil]);
        let stale = Answer::Is(Stored::Flag(true));
        assert_eq!(ask("get_stale", &[], 10), [number(1.0), number(7.0), stale]);
        assert_eq!(ask("incr", &[Value::Integer(1)], 10), [Answer::Nil, Answer::Says("not found")]);
        let incremented = ask("incr", &[Value::Integer(1), Value::Integer(5)], 10);
        assert_eq!(incremented[0], number(6.0));
        assert_eq!(zone.flush(true, usize::MAX, now + secs(20)), 0);
        assert_eq!(zone.keys(9, now + secs(20)).len(), 1);
    }

    #[test]
    fn a_full_zone_drops_what_was_not_used_for_the_longest_time() {
        let (zone, now) = (Zone::new(ZONE_BYTES_MIN), Instant::now());
        let lua = Lua::new();
        let value = Value::String(lua.create_string("v".repeat(900)).unwrap());
        let ask = |op: &str, key: &str, args: &[Value]| {
            zone.operate(op, key.as_bytes().to_vec(), args, now)
        };
        for n in 0..8 {
            assert_eq!(
                ask("set", &n.to_string(), std::slice::from_ref(&value))[2],
                Answer::Is(Stored::Flag(false))
            );
        }
        ask("get", "0", &[]);
        assert_eq!(
            ask("safe_set", "8", std::slice::from_ref(&value))[1],
            Answer::Says("no memory")
        );
        assert_eq!(ask("set", "8", &[value])[2], Answer::Is(Stored::Flag(true)), "forcible");
        assert_eq!(ask("get", "1", &[]), [Answer::Nil]);
        assert_eq!(ask("get", "0", &[])[0], text(&"v".repeat(900)));
        let large = Value::String(lua.create_string("v".repeat(ZONE_BYTES_MIN)).unwrap());
        assert_eq!(ask("set", "0", &[large])[1], Answer::Says("no memory"));
    }

    proptest! {
        /// Whatever is done with a zone, it stays within its size and knows what it holds.
        #[test]
        fn a_zone_never_grows_beyond_its_size(
            work in prop::collection::vec((0_usize..12, 0_u8..40, 0_usize..600, 0_u64..5), 1..200)
        ) {
            const OPS: [&str; 12] = ["set", "safe_set", "add", "replace", "delete", "incr", "lpush",
                "rpush", "lpop", "get", "expire", "get_stale"];
            let (zone, now) = (Zone::new(ZONE_BYTES_MIN), Instant::now());
            let lua = Lua::new();
            for (at, (op, key, size, ttl)) in work.into_iter().enumerate() {
                let value = if op == 5 || size % 3 == 0 {
                    Value::Integer(size as i32 as _)
                } else {
                    Value::String(lua.create_string("v".repeat(size)).unwrap())
                };
                let args = [value, Value::Integer(ttl as i32 as _)];
                zone.operate(OPS[op], vec![key + 1], &args, now + secs(at as u64 / 20));
                let state = zone.state();
                prop_assert!(state.used <= ZONE_BYTES_MIN);
                prop_assert_eq!(state.used, state.entries.values().map(|e| e.bytes).sum::<usize>());
                prop_assert_eq!(state.entries.len(), state.order.len());
            }
        }
    }
}

//! The functions that Rust gives to the library of scripts (`lua/base.lua`).
//!
//! None of them raises an error that a script could be expected to handle: they answer nil and a
//! text, and the library raises it with the script's own line.

use std::io::Read as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mlua::{
    Function, IntoLua, IntoLuaMulti, Lua, MultiValue, Result, String as LuaString, Table, Value,
};
use sluicegate_gateway::core::now;
use tracing::{debug, enabled, error, info, warn};

use crate::host::{Inner, text_of};
use crate::json::{self, JsonError, Marks};
use crate::limits::{Budget, TEXT_BYTES_MAX, TEXT_TOO_LONG};
use crate::pattern::{self, Held, PatternError};
use crate::{dict, encode, regex, request_api, timers};

/// Everything, and what stands for JSON's null.
pub(crate) fn table(lua: &Lua, inner: &Rc<Inner>) -> Result<(Table, Value)> {
    let all = lua.create_table()?;
    let add = |name: &str, function: Function| all.raw_set(name, function);
    let null = Value::LightUserData(mlua::LightUserData(std::ptr::null_mut()));
    all.raw_set("null", null.clone())?;
    time(lua, &add)?;
    bytes(lua, inner, &add)?;
    patterns(lua, inner, &add)?;
    regexes(lua, inner, &add)?;
    logs(lua, &add)?;
    modules(lua, inner, &add)?;
    let (null_of, shared) = (null.clone(), inner.clone());
    let marks = move |_: &Lua, (empty_array, array_mt, empty_array_mt): (Value, Table, Table)| {
        let marks = Marks { null: null_of.clone(), empty_array, array_mt, empty_array_mt };
        // Once, by the library, before any script.
        let _ = shared.marks.set(marks);
        Ok(())
    };
    add("json_marks", lua.create_function(marks)?)?;
    let shared = inner.clone();
    let encode = move |_: &Lua, (value, sorted): (Value, Option<bool>)| match shared
        .encode(&value, sorted.unwrap_or(false))
    {
        Ok(text) => Ok((Some(Bytes(text)), None)),
        Err(JsonError::Lua(error)) => Err(error),
        Err(error) => Ok((None, Some(error.to_string()))),
    };
    add("json_encode", lua.create_function(encode)?)?;
    let (null_of, budget) = (null.clone(), inner.budget.clone());
    let decode = move |lua: &Lua, text: LuaString| {
        budget.charge(text.as_bytes().len())?;
        json::decode(lua, &text.as_bytes(), &null_of)
    };
    add("json_decode", lua.create_function(decode)?)?;
    dict::add(lua, inner, &add)?;
    timers::add(lua, inner, &add)?;
    request_api::add(lua, inner, &null, &add)?;
    Ok((all, null))
}

/// Bytes that become a Lua string.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl IntoLua for Bytes {
    fn into_lua(self, lua: &Lua) -> Result<Value> {
        lua.create_string(self.0).map(Value::String)
    }
}

/// Takes a function under its name.
pub(crate) type Add<'a> = &'a dyn Fn(&str, Function) -> Result<()>;

fn seconds(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn time(lua: &Lua, add: Add<'_>) -> Result<()> {
    // Milliseconds, as nginx keeps its clock.
    add("now", lua.create_function(|_, ()| Ok(seconds(now()).as_millis() as f64 / 1000.0))?)?;
    add("time", lua.create_function(|_, ()| Ok(seconds(now()).as_secs() as f64))?)?;
    let local = |format: &'static str| {
        move |_: &Lua, ()| Ok(jiff::Zoned::now().strftime(format).to_string())
    };
    add("today", lua.create_function(local("%Y-%m-%d"))?)?;
    add("localtime", lua.create_function(local("%Y-%m-%d %H:%M:%S"))?)?;
    let utc = |_: &Lua, ()| Ok(jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string());
    add("utctime", lua.create_function(utc)?)?;
    let at = |at: f64| UNIX_EPOCH + Duration::from_secs(at.clamp(0.0, TIME_MAX) as u64);
    add("http_time", lua.create_function(move |_, t: f64| Ok(httpdate::fmt_http_date(at(t))))?)?;
    let cookie = move |_: &Lua, t: f64| {
        let text = httpdate::fmt_http_date(at(t));
        // `Thu, 18-Nov-10 11:27:35 GMT`
        let parts: Vec<&str> = text.split(' ').collect();
        Ok(match &parts[..] {
            [day, date, month, year, time, zone] => {
                format!("{day} {date}-{month}-{} {time} {zone}", year.get(2..).unwrap_or(year))
            }
            _ => text,
        })
    };
    add("cookie_time", lua.create_function(cookie)?)?;
    let parse = |_: &Lua, text: LuaString| {
        let time = httpdate::parse_http_date(&text.to_string_lossy()).ok();
        Ok(time.map(|time| seconds(time).as_secs() as f64))
    };
    add("parse_http_time", lua.create_function(parse)?)
}

fn bytes(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    // What is computed over bytes is charged by their number.
    let over = |compute: fn(&[u8]) -> Vec<u8>| {
        let budget = inner.budget.clone();
        lua.create_function(move |_, text: Value| {
            let text = plain(&text);
            budget.charge(text.len() * BYTE_COST)?;
            Ok(Bytes(compute(&text)))
        })
    };
    add("md5", over(|data| encode::hex(&encode::md5(data)).into_bytes())?)?;
    add("md5_bin", over(|data| encode::md5(data).to_vec())?)?;
    add("sha1_bin", over(encode::sha1)?)?;
    add("to_hex", over(|data| encode::hex(data).into_bytes())?)?;
    add("unescape_uri", over(encode::unescape_uri)?)?;
    add("quote_sql_str", over(encode::quote_sql)?)?;
    add("encode_base64url", over(|data| encode::encode_base64url(data).into_bytes())?)?;
    let maybe = |compute: fn(&[u8]) -> Option<Vec<u8>>| {
        let budget = inner.budget.clone();
        lua.create_function(move |_, text: Value| {
            let text = plain(&text);
            budget.charge(text.len())?;
            Ok(compute(&text).map(Bytes))
        })
    };
    add("decode_base64", maybe(encode::decode_base64)?)?;
    add("decode_base64url", maybe(encode::decode_base64url)?)?;
    let budget = inner.budget.clone();
    let encode64 = move |_: &Lua, (text, no_padding): (Value, Option<bool>)| {
        let text = plain(&text);
        budget.charge(text.len())?;
        Ok(encode::encode_base64(&text, no_padding.unwrap_or(false)))
    };
    add("encode_base64", lua.create_function(encode64)?)?;
    let budget = inner.budget.clone();
    let escape = move |_: &Lua, (text, kind): (Value, Option<i64>)| {
        let text = plain(&text);
        budget.charge(text.len())?;
        Ok(Bytes(encode::escape_uri(&text, kind.unwrap_or(2))))
    };
    add("escape_uri", lua.create_function(escape)?)?;
    let budget = inner.budget.clone();
    let hmac = move |_: &Lua, (key, data): (Value, Value)| {
        let (key, data) = (plain(&key), plain(&data));
        budget.charge((key.len() + data.len()) * BYTE_COST)?;
        Ok(Bytes(encode::hmac_sha1(&key, &data)))
    };
    add("hmac_sha1", lua.create_function(hmac)?)?;
    let budget = inner.budget.clone();
    let crc = move |_: &Lua, data: LuaString| {
        budget.charge(data.as_bytes().len() * BYTE_COST)?;
        Ok(f64::from(encode::crc32(&data.as_bytes())))
    };
    add("crc32", lua.create_function(crc)?)?;
    let budget = inner.budget.clone();
    let decode_args = move |lua: &Lua, (text, max): (LuaString, usize)| {
        budget.charge(text.as_bytes().len())?;
        decode_args(lua, &text.as_bytes(), max)
    };
    add("decode_args", lua.create_function(decode_args)?)?;
    let budget = inner.budget.clone();
    let args = move |_: &Lua, args: Table| encode_args(&args, &budget).map(Bytes);
    add("encode_args", lua.create_function(args)?)?;
    let budget = inner.budget.clone();
    let charge = move |_: &Lua, bytes: f64| budget.charge(bytes.max(0.0) as usize);
    add("charge", lua.create_function(charge)?)?;
    let budget = inner.budget.clone();
    let dashed = move |lua: &Lua, name: LuaString| -> Result<LuaString> {
        budget.charge(name.as_bytes().len())?;
        if !name.as_bytes().contains(&b'_') {
            return Ok(name);
        }
        let name: Vec<u8> =
            name.as_bytes().iter().map(|b| if *b == b'_' { b'-' } else { *b }).collect();
        lua.create_string(name)
    };
    add("dashed", lua.create_function(dashed)?)?;
    let budget = inner.budget.clone();
    let url = move |lua: &Lua, text: LuaString| {
        budget.charge(text.as_bytes().len().saturating_mul(URL_BYTE_COST))?;
        let text = text.to_string_lossy();
        let Ok(uri) = text.parse::<http::Uri>() else { return Ok(None) };
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else { return Ok(None) };
        let parts = lua.create_table()?;
        parts.raw_set("scheme", scheme)?;
        parts.raw_set("host", host)?;
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        parts.raw_set("port", port)?;
        parts.raw_set("path", uri.path())?;
        parts.raw_set("query", uri.query().unwrap_or(""))?;
        Ok(Some(parts))
    };
    add("parse_url", lua.create_function(url)?)?;
    let budget = inner.budget.clone();
    add(
        "parse_net_url",
        lua.create_function(move |lua, text: LuaString| {
            budget.charge(text.as_bytes().len().saturating_mul(URL_BYTE_COST))?;
            net_url(lua, &text.to_string_lossy())
        })?,
    )?;
    Ok(())
}

/// What `net.url` takes an address apart into. Its path keeps what needs no escape.
fn net_url(lua: &Lua, text: &str) -> Result<Table> {
    let parts = lua.create_table()?;
    let (rest, fragment) = text.split_once('#').map_or((text, None), |(a, b)| (a, Some(b)));
    if let Some(fragment) = fragment {
        parts.raw_set("fragment", fragment)?;
    }
    let rest = match rest.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) =>
        {
            parts.raw_set("scheme", scheme.to_ascii_lowercase())?;
            rest
        }
        _ => rest,
    };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    if let Some(query) = query {
        parts.raw_set("query", decode_args(lua, query.as_bytes(), 0)?)?;
    }
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let authority = &rest[..end];
            let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(a, b)| (a, b));
            let (host, port) = host.rsplit_once(':').map_or((host, ""), |(a, b)| (a, b));
            parts.raw_set("authority", authority)?;
            parts.raw_set("host", host)?;
            if !user.is_empty() {
                parts.raw_set("userinfo", user)?;
            }
            if let Ok(port) = port.parse::<u16>() {
                parts.raw_set("port", port)?;
            }
            &rest[end..]
        }
        None => rest,
    };
    // Escapes that a path needs not are resolved.
    let mut plain = Vec::new();
    let decoded = |text: &[u8]| encode::unescape_uri(&text.replace_plus());
    for byte in decoded(path.as_bytes()) {
        if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@/".contains(&byte) {
            plain.push(byte);
        } else {
            plain.extend(format!("%{byte:02X}").into_bytes());
        }
    }
    parts.raw_set("path", lua.create_string(plain)?)?;
    Ok(parts)
}

trait ReplacePlus {
    /// A plus that stays one.
    fn replace_plus(&self) -> Vec<u8>;
}

impl ReplacePlus for [u8] {
    fn replace_plus(&self) -> Vec<u8> {
        self.iter()
            .flat_map(|b| if *b == b'+' { &b"%2B"[..] } else { std::slice::from_ref(b) })
            .copied()
            .collect()
    }
}

/// Text of a value as `tostring` has it for what nginx takes: strings, numbers, nothing.
pub(crate) fn plain(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        Value::Integer(n) => n.to_string().into_bytes(),
        Value::Number(n) => json::number(*n).into_bytes(),
        Value::Boolean(flag) => flag.to_string().into_bytes(),
        _ => Vec::new(),
    }
}

/// Arguments as a table: repeated ones as a list, those without `=` as true.
pub(crate) fn decode_args(lua: &Lua, text: &[u8], max: usize) -> Result<Table> {
    let args = lua.create_table()?;
    let max = if max == 0 { ARGS_MAX } else { max.min(ARGS_MAX) };
    for (name, value) in encode::arguments(text).take(max) {
        let value = match value {
            Some(value) => Value::String(lua.create_string(value)?),
            None => Value::Boolean(true),
        };
        append(lua, &args, Value::String(lua.create_string(name)?), value)?;
    }
    Ok(args)
}

/// Adds a value under a name that may be there already.
pub(crate) fn append(lua: &Lua, table: &Table, name: Value, value: Value) -> Result<()> {
    match table.raw_get::<Value>(name.clone())? {
        Value::Nil => table.raw_set(name, value),
        Value::Table(list) => list.raw_push(value),
        first => table.raw_set(name, lua.create_sequence_from([first, value])?),
    }
}

fn encode_args(args: &Table, budget: &Budget) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut one = |name: &[u8], value: &Value| {
        let before = out.len();
        if matches!(value, Value::Boolean(false) | Value::Nil) {
            return budget.charge(ARG_COST);
        }
        if !out.is_empty() {
            out.push(b'&');
        }
        out.extend(encode::escape_uri(name, 2));
        if !matches!(value, Value::Boolean(true)) {
            out.push(b'=');
            out.extend(encode::escape_uri(&plain(value), 2));
        }
        if out.len() > TEXT_BYTES_MAX {
            return Err(mlua::Error::RuntimeError(TEXT_TOO_LONG.into()));
        }
        budget.charge(ARG_COST + out.len() - before)
    };
    for pair in args.pairs::<Value, Value>() {
        let (name, value) = pair?;
        let name = plain(&name);
        match &value {
            Value::Table(list) => {
                for item in list.sequence_values::<Value>() {
                    one(&name, &item?)?;
                }
            }
            value => one(&name, value)?,
        }
    }
    Ok(out)
}

fn patterns(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    // Where a search begins, from Lua's counting from 1 and from the end.
    fn begin(init: Option<i64>, len: usize) -> Option<usize> {
        let len = i64::try_from(len).ok()?;
        let init = match init.unwrap_or(1) {
            n if n > 0 => n - 1,
            0 => 0,
            n => (len + n).max(0),
        };
        if init > len { None } else { usize::try_from(init).ok() }
    }
    fn held(lua: &Lua, held: Held<'_>) -> Result<Value> {
        match held {
            Held::Text(text) => lua.create_string(text).map(Value::String),
            Held::Position(at) => Ok(Value::Number(at as f64)),
        }
    }
    let failed = |error: PatternError| mlua::Error::RuntimeError(error.to_string());
    let budget = inner.budget.clone();
    let search = move |subject: &[u8], pattern: &[u8], from: usize| {
        let mut steps = 0;
        let found = pattern::find(subject, pattern, from, &mut steps);
        budget.charge(usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(8))?;
        found.map_err(failed)
    };
    let search = Rc::new(search);
    let searching = search.clone();
    let budget = inner.budget.clone();
    let find = move |lua: &Lua,
                     (subject, wanted, init, as_is): (
        LuaString,
        LuaString,
        Option<f64>,
        Option<Value>,
    )| {
        let (subject, wanted) = (subject.as_bytes(), wanted.as_bytes());
        let Some(from) = begin(init.map(|n| n as i64), subject.len()) else {
            return Value::Nil.into_lua_multi(lua);
        };
        let as_is = as_is.is_some_and(|flag| !matches!(flag, Value::Nil | Value::Boolean(false)));
        if as_is || pattern::is_plain(&wanted) {
            budget.charge(subject.len() - from)?;
            return match find_bytes(&subject[from..], &wanted) {
                Some(at) => {
                    ((from + at + 1) as f64, (from + at + wanted.len()) as f64).into_lua_multi(lua)
                }
                None => Value::Nil.into_lua_multi(lua),
            };
        }
        let Some(found) = searching(&subject, &wanted, from)? else {
            return Value::Nil.into_lua_multi(lua);
        };
        let mut results =
            vec![Value::Number((found.from + 1) as f64), Value::Number(found.end as f64)];
        for capture in found.explicit(&subject) {
            results.push(held(lua, capture)?);
        }
        Ok(MultiValue::from_vec(results))
    };
    add("find", lua.create_function(find)?)?;
    let searching = search.clone();
    let matching =
        move |lua: &Lua, (subject, wanted, init): (LuaString, LuaString, Option<f64>)| {
            let (subject, wanted) = (subject.as_bytes(), wanted.as_bytes());
            let Some(from) = begin(init.map(|n| n as i64), subject.len()) else {
                return Value::Nil.into_lua_multi(lua);
            };
            let Some(found) = searching(&subject, &wanted, from)? else {
                return Value::Nil.into_lua_multi(lua);
            };
            let all: Result<Vec<_>> =
                found.captures(&subject).into_iter().map(|h| held(lua, h)).collect();
            Ok(MultiValue::from_vec(all?))
        };
    add("match", lua.create_function(matching)?)?;
    // Each match with where the next search begins.
    let searching = search.clone();
    let gmatch = move |lua: &Lua, (subject, wanted, at): (LuaString, LuaString, usize)| {
        let (subject, wanted) = (subject.as_bytes(), wanted.as_bytes());
        let Some(found) =
            (at <= subject.len()).then(|| searching(&subject, &wanted, at)).transpose()?.flatten()
        else {
            return Value::Nil.into_lua_multi(lua);
        };
        let next = if found.end == found.from { found.end + 1 } else { found.end };
        let mut results = vec![Value::Number(next as f64)];
        for capture in found.captures(&subject) {
            results.push(held(lua, capture)?);
        }
        Ok(MultiValue::from_vec(results))
    };
    add("gmatch", lua.create_function(gmatch)?)?;
    let searching = search.clone();
    let gsub_next = move |lua: &Lua, (subject, wanted, at): (LuaString, LuaString, usize)| {
        let (subject, wanted) = (subject.as_bytes(), wanted.as_bytes());
        let anchored_again = at > 0 && wanted.first() == Some(&b'^');
        if anchored_again || at > subject.len() {
            return Ok(None);
        }
        let Some(found) = searching(&subject, &wanted, at)? else { return Ok(None) };
        let captures = lua.create_table()?;
        let all = found.captures(&subject);
        captures.raw_set("n", all.len())?;
        for (n, capture) in all.into_iter().enumerate() {
            captures.raw_set(n + 1, held(lua, capture)?)?;
        }
        captures.raw_set("from", found.from + 1)?;
        captures.raw_set("to", found.end)?;
        captures
            .raw_set("next", if found.end == found.from { found.end + 1 } else { found.end })?;
        Ok(Some(captures))
    };
    add("gsub_next", lua.create_function(gsub_next)?)?;
    let budget = inner.budget.clone();
    let gsub = move |_: &Lua,
                     (subject, wanted, with, max): (
        LuaString,
        LuaString,
        LuaString,
        Option<f64>,
    )| {
        let (subject, wanted, with) = (subject.as_bytes(), wanted.as_bytes(), with.as_bytes());
        let max = max.map_or(usize::MAX, |max| max.max(0.0) as usize);
        let too_long = |why| mlua::Error::RuntimeError(why);
        let (mut out, mut at, mut copied, mut count) = (Vec::new(), 0, 0, 0_usize);
        while count < max && at <= subject.len() {
            if at > 0 && wanted.first() == Some(&b'^') {
                break;
            }
            let Some(found) = search(&subject, &wanted, at)? else { break };
            count += 1;
            let before = out.len();
            regex::push(&mut out, &subject[copied..found.from]).map_err(too_long)?;
            substitute(&with, &subject, &found, &mut out)?;
            budget.charge(with.len() + out.len() - before)?;
            copied = found.end;
            at = if found.end == found.from { found.end + 1 } else { found.end };
        }
        regex::push(&mut out, &subject[copied.min(subject.len())..]).map_err(too_long)?;
        Ok((Bytes(out), count as f64))
    };
    add("gsub", lua.create_function(gsub)?)
}

fn substitute(
    with: &[u8],
    subject: &[u8],
    found: &pattern::Found,
    out: &mut Vec<u8>,
) -> Result<()> {
    let mut push = |more: &[u8]| regex::push(out, more).map_err(mlua::Error::RuntimeError);
    let captures = found.captures(subject);
    let mut bytes = with.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            push(&[byte])?;
            continue;
        }
        match bytes.next() {
            Some(b'0') => push(&subject[found.from..found.end])?,
            Some(digit @ b'1'..=b'9') => match captures.get(usize::from(digit - b'1')) {
                Some(Held::Text(text)) => push(text)?,
                Some(Held::Position(at)) => push(at.to_string().as_bytes())?,
                None => return Err(mlua::Error::RuntimeError("invalid capture index".into())),
            },
            Some(other) => push(&[*other])?,
            None => {
                return Err(mlua::Error::RuntimeError(
                    "invalid use of '%' in replacement string".into(),
                ));
            }
        }
    }
    Ok(())
}

fn find_bytes(subject: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    memchr::memmem::find(subject, wanted)
}

fn regexes(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    let search =
        |inner: &Rc<Inner>| {
            let inner = inner.clone();
            move |regex: &LuaString, options: &LuaString, subject: &[u8], at: usize| {
                inner.budget.charge(subject.len().saturating_sub(at))?;
                let compiled = inner.regexes.get(&regex.as_bytes(), &options.as_bytes(), subject);
                Ok::<_, mlua::Error>(compiled.and_then(|compiled| {
                    Ok((compiled.find(subject, at, &inner.budget)?, compiled))
                }))
            }
        };
    let searching = search(inner);
    let matching =
        move |lua: &Lua,
              (subject, regex, options, at): (LuaString, LuaString, LuaString, usize)| {
            let subject = subject.as_bytes();
            let found = searching(&regex, &options, &subject, at.saturating_sub(1))?;
            let (found, compiled) = match found {
                Ok((Some(found), compiled)) => (found, compiled),
                Ok((None, _)) => return Value::Nil.into_lua_multi(lua),
                Err(why) => return (Value::Nil, why).into_lua_multi(lua),
            };
            let captures = lua.create_table()?;
            let group = |n: usize| match found.groups.get(n).copied().flatten() {
                Some((from, to)) => lua.create_string(&subject[from..to]).map(Value::String),
                None => Ok(Value::Boolean(false)),
            };
            for n in 0..found.groups.len() {
                captures.raw_set(n, group(n)?)?;
            }
            for (n, name) in compiled.names() {
                captures.raw_set(name, group(n)?)?;
            }
            let next = (found.next() <= subject.len()).then_some(found.next() + 1);
            (captures, found.from + 1, found.to, next).into_lua_multi(lua)
        };
    add("re_match", lua.create_function(matching)?)?;
    let searching = search(inner);
    let find = move |lua: &Lua,
                     (subject, regex, options, at, nth): (
        LuaString,
        LuaString,
        LuaString,
        usize,
        usize,
    )| {
        let failed = |why: String| (Value::Nil, Value::Nil, why).into_lua_multi(lua);
        match searching(&regex, &options, &subject.as_bytes(), at.saturating_sub(1))? {
            Ok((Some(found), _)) => match found.groups.get(nth).copied() {
                Some(Some((from, to))) => (from + 1, to).into_lua_multi(lua),
                Some(None) => Value::Nil.into_lua_multi(lua),
                None => failed("nth out of bound".into()),
            },
            Ok((None, _)) => Value::Nil.into_lua_multi(lua),
            Err(why) => failed(why),
        }
    };
    add("re_find", lua.create_function(find)?)?;
    let inner = inner.clone();
    let sub = move |lua: &Lua,
                    (subject, regex, with, options, global): (
        LuaString,
        LuaString,
        LuaString,
        LuaString,
        bool,
    )| {
        let failed = |why: String| (Value::Nil, why).into_lua_multi(lua);
        let (subject, with) = (subject.as_bytes(), with.as_bytes());
        let compiled = match inner.regexes.get(&regex.as_bytes(), &options.as_bytes(), &subject) {
            Ok(compiled) => compiled,
            Err(why) => return failed(why),
        };
        let (mut out, mut at, mut copied, mut count) = (Vec::new(), 0, 0, 0_usize);
        while at <= subject.len() {
            inner.budget.charge(subject.len() - at)?;
            let found = match compiled.find(&subject, at, &inner.budget) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(why) => return failed(why),
            };
            count += 1;
            let before = out.len();
            let put = regex::push(&mut out, &subject[copied..found.from]);
            if let Err(why) = put.and_then(|()| regex::expand(&with, &subject, &found, &mut out)) {
                return failed(why);
            }
            inner.budget.charge(with.len() + out.len() - before)?;
            (copied, at) = (found.to, found.next());
            if !global {
                break;
            }
        }
        if let Err(why) = regex::push(&mut out, &subject[copied..]) {
            return failed(why);
        }
        (Bytes(out), count).into_lua_multi(lua)
    };
    add("re_sub", lua.create_function(sub)?)
}

fn logs(lua: &Lua, add: Add<'_>) -> Result<()> {
    let logs = |_: &Lua, level: u8| {
        Ok(match level {
            0..=4 => enabled!(tracing::Level::ERROR),
            5 => enabled!(tracing::Level::WARN),
            6 | 7 => enabled!(tracing::Level::INFO),
            _ => enabled!(tracing::Level::DEBUG),
        })
    };
    add("logs", lua.create_function(logs)?)?;
    add(
        "log",
        lua.create_function(|lua, (level, text): (u8, LuaString)| {
            log(lua, level, &text.as_bytes());
            Ok(())
        })?,
    )
}

/// Where the script is, seen from this level of the stack: its source's begin, line and function.
pub(crate) fn place(lua: &Lua, level: usize) -> Option<String> {
    (level..level + STACK_MAX).find_map(|level| {
        lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let ours = |script: &str| script == "[sluicegate]" || script == "[C]";
            let script = source.short_src.filter(|script| !ours(script))?;
            let line = frame.current_line().unwrap_or(0);
            let names = frame.names();
            let name = names.name.as_deref().filter(|name| *name != "?").unwrap_or("func");
            Some(format!("{script}:{line}: {name}"))
        })?
    })
}

/// Writes a line as nginx would: the script, its line, the function, the text.
fn log(lua: &Lua, level: u8, text: &[u8]) {
    let place = place(lua, 1).map(|place| format!("{place}(): ")).unwrap_or_default();
    // Cut first: the text may have tens of megabytes.
    let text = String::from_utf8_lossy(&text[..text.len().min(LOG_BYTES)]);
    let route = crate::request::with(|step| step.exchange().route_id().to_owned());
    let route = route.unwrap_or_default();
    match level {
        0..=4 => error!(route, "[lua] {place}{text}"),
        5 => warn!(route, "[lua] {place}{text}"),
        6 | 7 => info!(route, "[lua] {place}{text}"),
        _ => debug!(route, "[lua] {place}{text}"),
    }
}

fn modules(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    add("memory", lua.create_function(|lua, ()| Ok(lua.used_memory() as f64 / 1024.0))?)?;
    let budget = inner.budget.clone();
    let load = move |lua: &Lua, (text, name, env): (LuaString, LuaString, Table)| {
        budget.charge(text.as_bytes().len() * BYTE_COST)?;
        // Never compiled code, which could do anything.
        let chunk =
            lua.load(text.as_bytes().to_vec()).set_name(name.to_string_lossy().replace('\0', " "));
        match chunk.set_mode(mlua::ChunkMode::Text).set_environment(env).into_function() {
            Ok(function) => (function,).into_lua_multi(lua),
            Err(error) => (Value::Nil, text_of(&error)).into_lua_multi(lua),
        }
    };
    add("load", lua.create_function(load)?)?;
    let limits = inner.limits.clone();
    let load_file = move |lua: &Lua, (name, env): (LuaString, Table)| {
        let name = name.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !name.chars().all(plain) || name.contains("..") {
            return (Value::Nil, "the name has characters that no module has").into_lua_multi(lua);
        }
        let file = name.replace('.', "/");
        for pattern in &limits.package_path {
            let path = pattern.to_string_lossy().replace('?', &file);
            let text = match read_module(Path::new(&path)) {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                Err(why) => return (Value::Nil, format!("{path}: {why}")).into_lua_multi(lua),
            };
            let chunk = lua.load(text).set_name(format!("@{path}"));
            let chunk = chunk.set_mode(mlua::ChunkMode::Text).set_environment(env);
            return match chunk.into_function() {
                Ok(function) => (function,).into_lua_multi(lua),
                Err(error) => (Value::Nil, text_of(&error)).into_lua_multi(lua),
            };
        }
        Value::Nil.into_lua_multi(lua)
    };
    add("load_file", lua.create_function(load_file)?)?;
    let random = ring::rand::SystemRandom::new();
    let uuid = move |_: &Lua, ()| {
        let mut raw = [0_u8; 16];
        if crate::request::with(|step| step.exchange().core.random(&mut raw)).is_none() {
            let filled = ring::rand::SecureRandom::fill(&random, &mut raw);
            filled.map_err(|_| mlua::Error::RuntimeError("no random bytes".into()))?;
        }
        raw[6] = raw[6] & 0x0f | 0x40;
        raw[8] = raw[8] & 0x3f | 0x80;
        let text = encode::hex(&raw);
        let part = |from: usize, to: usize| &text[from..to];
        Ok([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
    };
    add("uuid", lua.create_function(uuid)?)
}

/// A module's file, if there is one. Reading it holds the core for as long as the disk takes, once for
/// each configuration that requires it.
fn read_module(path: &Path) -> std::result::Result<Option<Vec<u8>>, String> {
    // A pipe or a device might never end.
    let Ok(about) = std::fs::metadata(path) else { return Ok(None) };
    if !about.is_file() {
        return Err("this is no file".into());
    }
    let Ok(file) = std::fs::File::open(path) else { return Ok(None) };
    let mut text = Vec::new();
    let read = file.take(MODULE_BYTES_MAX + 1).read_to_end(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > MODULE_BYTES_MAX {
        return Err(format!("the file is larger than {MODULE_BYTES_MAX} bytes"));
    }
    Ok(Some(text))
}

/// Digests cost more than copies: about this many times.
const BYTE_COST: usize = 8;

/// Taking an address apart looks at each byte many times.
const URL_BYTE_COST: usize = 64;

/// Arguments taken from one text.
const ARGS_MAX: usize = 1000;

/// What an argument costs besides its bytes.
const ARG_COST: usize = 64;

/// Bytes of a module's file.
const MODULE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of one log line.
const LOG_BYTES: usize = 4096;

/// Frames looked at for the line of a script that logs.
const STACK_MAX: usize = 16;

/// The last second of the year 9999.
const TIME_MAX: f64 = 253_402_300_799.0;

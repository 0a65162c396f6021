//! The functions of the library that look at the request and change it.

use std::rc::Rc;

use bytes::Bytes as Buffer;
use http::Method;
use mlua::{IntoLua, IntoLuaMulti, Lua, Result, String as LuaString, Table, Value};
use sluicegate_gateway::OtherVars;
use sluicegate_gateway::body::Body;
use sluicegate_gateway::consumer::JwtClaims;
use sluicegate_gateway::exchange::Version;
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::http::Headers;
use sluicegate_gateway::uri;

use crate::host::Inner;
use crate::json;
use crate::limits::Budget;
use crate::natives::{Add, Bytes, append, plain};
use crate::request::{Parts, Phase, Step, with};
use crate::run::Registered;

/// Adds them.
pub(crate) fn add(lua: &Lua, inner: &Rc<Inner>, null: &Value, add: Add<'_>) -> Result<()> {
    state(lua, inner, add)?;
    variables(lua, inner, add)?;
    request(lua, inner, add)?;
    answer(lua, inner, add)?;
    context(lua, inner, null, add)
}

/// Outside of a request there is nothing to look at.
const NO_REQUEST: &str = "no request found";

fn here<R>(then: impl FnOnce(&mut Step<'_>) -> R) -> Result<R> {
    with(then).ok_or_else(|| mlua::Error::RuntimeError(NO_REQUEST.into()))
}

fn disabled(what: &str, phase: Phase) -> String {
    format!("API disabled in the context of {}_by_lua*: {what}", phase.nginx())
}

fn state(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    let timers = inner.timers.clone();
    add(
        "phase",
        lua.create_function(move |_, ()| {
            let outside = if timers.is_inside() { "timer" } else { "init" };
            Ok(with(|step| step.phase.nginx()).unwrap_or(outside))
        })?,
    )?;
    let timers = inner.timers.clone();
    let cannot_wait = move |_: &Lua, what: String| {
        Ok(match with(|step| step.phase) {
            None if timers.is_inside() => match what.as_str() {
                "sleep" | "http" => None,
                _ => Some(format!("API disabled in the context of ngx.timer: {what}")),
            },
            None => Some(NO_REQUEST.to_owned()),
            Some(phase) if phase.waits() => None,
            Some(phase) => Some(disabled(&what, phase)),
        })
    };
    add("cannot_wait", lua.create_function(cannot_wait)?)?;
    let limit = inner.limits.body_bytes;
    let say = move |_: &Lua, text: LuaString| {
        here(|step| {
            if !step.phase.waits() {
                return Some(disabled("print", step.phase));
            }
            let mut said = step.remembered.said.borrow_mut();
            if said.len() + text.as_bytes().len() > limit {
                return Some(format!(
                    "more than {limit} bytes were printed (plugin_attr.serverless.body_bytes)"
                ));
            }
            said.extend_from_slice(&text.as_bytes());
            None
        })
    };
    add("say", lua.create_function(say)?)?;
    // Says whether the function ends here.
    let exit = |_: &Lua, status: f64| {
        here(|step| {
            let status = status as i32;
            if let Parts::Head(_, response) = &mut step.parts {
                if let Some(status) = u16::try_from(status).ok().and_then(|s| s.try_into().ok()) {
                    response.status = status;
                }
                return false;
            }
            step.remembered.exit.set(Some(status));
            step.phase.waits()
        })
    };
    add("exit", lua.create_function(exit)?)?;
    let status = |_: &Lua, ()| {
        here(|step| match &step.parts {
            Parts::Head(_, response) => response.status.as_u16(),
            Parts::Request(_) => step.remembered.status.get().unwrap_or(0),
            Parts::Piece(exchange, ..) => exchange.status,
            Parts::Seen(exchange) => exchange.status,
        })
    };
    add("status", lua.create_function(status)?)?;
    let set_status = |_: &Lua, status: f64| {
        here(|step| {
            let Some(code) = http::StatusCode::from_u16(status as u16).ok() else {
                return Some(format!("bad status {status}"));
            };
            match &mut step.parts {
                Parts::Head(_, response) => response.status = code,
                Parts::Request(_) => step.remembered.status.set(Some(code.as_u16())),
                // The head is sent already, which nginx logs and passes over.
                _ => {}
            }
            None
        })
    };
    add("set_status", lua.create_function(set_status)?)?;
    let sent = |_: &Lua, ()| Ok(with(|step| step.exchange().sent.is_some()).unwrap_or(false));
    add("headers_sent", lua.create_function(sent)?)?;
    let arg = |lua: &Lua, at: Value| {
        let at = at.as_integer().or(at.as_number().map(|n| n as i32 as _)).unwrap_or(0);
        let found = here(|step| match (&step.parts, at) {
            (Parts::Piece(_, piece, _), 1) => Some(Ok((*piece).clone())),
            (Parts::Piece(_, _, last), 2) => {
                Some(Err(*last || step.remembered.cut.get().is_some()))
            }
            _ => None,
        })?;
        match found {
            None => Ok(Value::Nil),
            Some(Ok(piece)) => lua.create_string(&piece).map(Value::String),
            Some(Err(last)) => Ok(Value::Boolean(last)),
        }
    };
    add("arg", lua.create_function(arg)?)?;
    let set_arg = |_: &Lua, text: LuaString| {
        here(|step| match &mut step.parts {
            Parts::Piece(_, piece, _) => {
                **piece = Buffer::copy_from_slice(&text.as_bytes());
                None
            }
            _ => Some(disabled("arg", step.phase)),
        })
    };
    add("set_arg", lua.create_function(set_arg)?)?;
    let cut = |_: &Lua, ends: bool| {
        here(|step| {
            if ends && step.remembered.cut.get().is_none() {
                step.remembered.cut.set(Some(step.remembered.piece.get()));
            }
        })
    };
    add("cut", lua.create_function(cut)?)?;
    add(
        "worker_id",
        lua.create_function(|_, ()| Ok(with(|step| step.exchange().core.index).unwrap_or(0)))?,
    )?;
    add(
        "worker_count",
        lua.create_function(
            |_, ()| Ok(with(|step| step.exchange().settings.workers).unwrap_or(1)),
        )?,
    )?;
    add("pid", lua.create_function(|_, ()| Ok(std::process::id()))?)
}

fn variables(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    let shared = inner.clone();
    let get = move |lua: &Lua, name: LuaString| {
        if name.as_bytes().len() > VAR_NAME_MAX {
            return Ok(None);
        }
        let known = shared.vars.borrow().get(&*name.as_bytes()).cloned();
        let var = match known {
            Some(var) => var,
            None => {
                let text = name.to_string_lossy();
                let var = Rc::new(VarName::parse(&text));
                let mut vars = shared.vars.borrow_mut();
                if vars.len() >= VARS_KEPT {
                    vars.clear();
                }
                vars.insert(name.as_bytes().to_vec().into(), var.clone());
                var
            }
        };
        let found = here(|step| variable(step, &var).map(|text| lua.create_string(text)))?;
        found.transpose()
    };
    add("var_get", lua.create_function(get)?)?;
    let made = |_: &Lua, name: LuaString| {
        Ok(matches!(VarName::parse(&name.to_string_lossy()), VarName::Other(_)))
    };
    add("var_is_free", lua.create_function(made)?)?;
    let nginx_uri = |lua: &Lua, ()| {
        here(|step| {
            let exchange = step.exchange();
            let target =
                exchange.upstream.uri.as_deref().filter(|_| exchange.nginx_uri_is_upstreams)?;
            Some(lua.create_string(target.split('?').next()?))
        })?
        .transpose()
    };
    add("nginx_uri", lua.create_function(nginx_uri)?)?;
    let set = |_: &Lua, (name, value): (LuaString, Option<LuaString>)| {
        let (name, value) = (name.to_string_lossy(), value.map(|value| value.as_bytes().to_vec()));
        here(|step| {
            let Some(exchange) = step.exchange_mut() else {
                return Some(disabled("set", step.phase));
            };
            let value = value.unwrap_or_default();
            match name.as_str() {
                "args" => exchange.set_query(&value),
                "upstream_host" => {
                    let Ok(host) = String::from_utf8(value) else {
                        return Some("bad upstream_host".to_owned());
                    };
                    if host.chars().any(|c| c.is_control() || c == ' ') {
                        return Some("bad upstream_host".to_owned());
                    }
                    exchange.host_for_upstream = (!host.is_empty()).then(|| host.into());
                }
                "upstream_uri" if value.is_empty() => exchange.upstream.uri = None,
                "upstream_uri" => exchange.upstream.uri = Some(target(&value)),
                _ => {
                    return Some(format!(
                        "variable \"{name}\" not found for writing; maybe it is a built-in variable that is not changeable"
                    ));
                }
            }
            None
        })
    };
    add("var_set", lua.create_function(set)?)
}

/// A request target that a script made, with nothing in it that would end a request line.
fn target(raw: &[u8]) -> String {
    let (path, query) = match raw.iter().position(|b| *b == b'?') {
        Some(at) => (&raw[..at], Some(&raw[at + 1..])),
        None => (raw, None),
    };
    // A path that has escapes is taken to be escaped.
    let mut text = if path.contains(&b'%') && path.iter().all(u8::is_ascii_graphic) {
        String::from_utf8_lossy(path).into_owned()
    } else {
        uri::escape(path).into_owned()
    };
    if !text.starts_with('/') {
        text.insert(0, '/');
    }
    if let Some(query) = query {
        text.push('?');
        text.push_str(&uri::escape_query(query));
    }
    text
}

fn variable(step: &Step<'_>, name: &VarName) -> Option<Vec<u8>> {
    let exchange = step.exchange();
    if let (Parts::Head(_, response), VarName::SentHttp(header) | VarName::UpstreamHttp(header)) =
        (&step.parts, name)
    {
        return response.headers.get(header).map(<[u8]>::to_vec);
    }
    if let (Parts::Head(_, response), VarName::Builtin(_)) = (&step.parts, name)
        && name.to_string() == "status"
    {
        return Some(response.status.as_str().as_bytes().to_vec());
    }
    if matches!(name, VarName::Other(_)) {
        // Only functions make these, and `ctx.var` calls them itself.
        return None;
    }
    exchange.var(name)?.to_bytes().map(|text| text.into_owned())
}

/// Fields as a table, names in lower case unless `raw`.
fn fields(lua: &Lua, all: Vec<(Vec<u8>, Vec<u8>)>, raw: bool) -> Result<Table> {
    let table = lua.create_table()?;
    for (mut name, value) in all {
        if !raw {
            name.make_ascii_lowercase();
        }
        let value = Value::String(lua.create_string(value)?);
        append(lua, &table, Value::String(lua.create_string(name)?), value)?;
    }
    Ok(table)
}

fn copied(headers: &Headers, max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let max = if max == 0 { usize::MAX } else { max };
    headers.iter().take(max).map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// Puts these values in the place of a field's; none: the field goes.
fn put(headers: &mut Headers, name: &str, values: Option<Vec<Vec<u8>>>) {
    if name.is_empty() {
        return;
    }
    let Some(values) = values.filter(|values| !values.is_empty()) else {
        headers.remove(name);
        return;
    };
    for (at, value) in values.iter().enumerate() {
        if at == 0 { headers.set(name, value) } else { headers.append(name, value) }
    }
}

/// Values of a field as they go out: control characters escaped, as OpenResty escapes them.
fn bytes_of(budget: &Budget, values: Option<Table>) -> Result<Option<Vec<Vec<u8>>>> {
    let bad = |byte: u8| byte.is_ascii_control() && byte != b'\t';
    let Some(values) = values else { return Ok(None) };
    let (mut all, mut bytes) = (Vec::new(), 0);
    for value in values.sequence_values::<LuaString>() {
        let value = value?;
        // A head is kept outside of Lua's memory as long as its request.
        budget.charge(value.as_bytes().len().saturating_mul(FIELD_BYTE_COST))?;
        let value = escaped(&value.as_bytes(), bad);
        bytes += value.len();
        if all.len() >= FIELD_VALUES_MAX || bytes > FIELD_BYTES_MAX {
            return Err(mlua::Error::RuntimeError(format!(
                "a field takes at most {FIELD_VALUES_MAX} values and {FIELD_BYTES_MAX} bytes"
            )));
        }
        all.push(value);
    }
    Ok(Some(all))
}

/// A field's name as it goes out: what is no part of a name escaped, as OpenResty escapes it.
fn field_name(budget: &Budget, name: &LuaString) -> Result<String> {
    budget
        .charge(name.as_bytes().len().saturating_add(FIELD_COST).saturating_mul(FIELD_BYTE_COST))?;
    let part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = escaped(&name.as_bytes(), |byte| !part(byte));
    Ok(String::from_utf8_lossy(&name).into_owned())
}

fn escaped(bytes: &[u8], bad: impl Fn(u8) -> bool) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match bad(byte) {
            true => {
                out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            false => out.push(byte),
        }
    }
    out
}

fn request(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    let headers = |lua: &Lua, (max, raw): (usize, bool)| {
        let all = here(|step| copied(&step.exchange().request.headers, max))?;
        fields(lua, all, raw)
    };
    add("req_headers", lua.create_function(headers)?)?;
    let budget = inner.budget.clone();
    let set = move |_: &Lua, (name, values): (LuaString, Option<Table>)| {
        let (name, values) = (field_name(&budget, &name)?, bytes_of(&budget, values)?);
        here(|step| {
            if let Some(exchange) = step.exchange_mut() {
                put(&mut exchange.request.headers, &name, values);
            }
        })
    };
    add("req_set_header", lua.create_function(set)?)?;
    let budget = inner.budget.clone();
    let add_header = move |_: &Lua, (name, values): (LuaString, Option<Table>)| {
        let (name, values) = (field_name(&budget, &name)?, bytes_of(&budget, values)?);
        here(|step| {
            if let Some(exchange) = step.exchange_mut() {
                for value in values.unwrap_or_default().iter().filter(|_| !name.is_empty()) {
                    exchange.request.headers.append(&name, value);
                }
            }
        })
    };
    add("req_add_header", lua.create_function(add_header)?)?;
    let set_query = |_: &Lua, query: LuaString| {
        let query = query.as_bytes().to_vec();
        here(|step| {
            if let Some(exchange) = step.exchange_mut() {
                let query = uri::escape_query(&query);
                exchange.set_query(query.as_bytes());
                if let Some(target) = &mut exchange.upstream.uri {
                    target.truncate(target.find('?').unwrap_or(target.len()));
                    if !query.is_empty() {
                        target.push('?');
                        target.push_str(&query);
                    }
                }
            }
        })
    };
    add("set_query", lua.create_function(set_query)?)?;
    let set_uri = |_: &Lua, path: LuaString| {
        let path = path.as_bytes().to_vec();
        here(|step| {
            if let Some(exchange) = step.exchange_mut() {
                let mut target = uri::escape(&path).into_owned();
                if let Some(query) = exchange.query() {
                    target.push('?');
                    target.push_str(&uri::escape_query(query));
                }
                exchange.upstream.uri = Some(target);
                exchange.uri = Some(path);
                exchange.nginx_uri_is_upstreams = false;
            }
        })
    };
    add("set_uri", lua.create_function(set_uri)?)?;
    let budget = inner.budget.clone();
    let set_method = move |_: &Lua, name: LuaString| {
        budget.charge(name.as_bytes().len().saturating_mul(FIELD_BYTE_COST))?;
        let Ok(method) = Method::from_bytes(&name.as_bytes()) else { return Ok(false) };
        here(|step| {
            if let Some(exchange) = step.exchange_mut() {
                exchange.request.method = method;
            }
            true
        })
    };
    add("set_method", lua.create_function(set_method)?)?;
    let body = |lua: &Lua, ()| {
        let body = here(|step| step.remembered.body.borrow().clone())?;
        body.filter(|body| !body.is_empty()).map(|body| lua.create_string(&body)).transpose()
    };
    add("body", lua.create_function(body)?)?;
    let limit = inner.limits.body_bytes;
    let set_body = move |_: &Lua, data: Value| {
        let data = Buffer::from(plain(&data));
        if data.len() > limit {
            return Ok(Some(format!(
                "the body is larger than {limit} bytes (plugin_attr.serverless.body_bytes)"
            )));
        }
        here(|step| {
            let phase = step.phase;
            let Parts::Request(exchange) = &mut step.parts else {
                return Some(disabled("set_body_data", phase));
            };
            exchange.request.body = Body::from_bytes(data.clone());
            let length = data.len().to_string();
            exchange.request.headers.set("Content-Length", length.as_bytes());
            step.remembered.body.replace(Some(data));
            None
        })
    };
    add("set_body", lua.create_function(set_body)?)?;
    let version = |_: &Lua, ()| {
        here(|step| match step.exchange().request.version {
            Version::Http10 => 1.0,
            Version::Http11 => 1.1,
            Version::Http2 => 2.0,
        })
    };
    add("http_version", lua.create_function(version)?)?;
    let start = |_: &Lua, ()| {
        here(|step| {
            let since = step.exchange().started_at.duration_since(std::time::UNIX_EPOCH);
            since.unwrap_or_default().as_millis() as f64 / 1000.0
        })
    };
    add("start_time", lua.create_function(start)?)?;
    let raw = |_: &Lua, no_line: Option<bool>| {
        here(|step| {
            let request = &step.exchange().request;
            let mut out = Vec::new();
            if no_line != Some(true) {
                out.extend_from_slice(request.method.as_str().as_bytes());
                out.push(b' ');
                out.extend_from_slice(request.target());
                out.push(b' ');
                out.extend_from_slice(request.version.as_str().as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            request.headers.write_to(&mut out);
            out.extend_from_slice(b"\r\n");
            Bytes(out)
        })
    };
    add("raw_header", lua.create_function(raw)?)
}

fn answer(lua: &Lua, inner: &Rc<Inner>, add: Add<'_>) -> Result<()> {
    let headers = |lua: &Lua, (max, raw): (usize, bool)| {
        let all = here(|step| step.answer_seen().map(|headers| copied(headers, max)))?;
        fields(lua, all.unwrap_or_default(), raw)
    };
    add("resp_headers", lua.create_function(headers)?)?;
    let get = |lua: &Lua, name: LuaString| {
        let name = name.to_string_lossy();
        let values: Vec<Vec<u8>> = here(|step| {
            let values =
                step.answer_seen().map(|headers| headers.all(&name).map(<[u8]>::to_vec).collect());
            values.unwrap_or_default()
        })?;
        match &values[..] {
            [] => Ok(Value::Nil),
            [one] => lua.create_string(one).map(Value::String),
            all => {
                let list = lua.create_table()?;
                for value in all {
                    list.raw_push(lua.create_string(value)?)?;
                }
                list.into_lua(lua)
            }
        }
    };
    add("header_get", lua.create_function(get)?)?;
    let budget = inner.budget.clone();
    let set = move |_: &Lua, (name, values): (LuaString, Option<Table>)| {
        let (name, values) = (field_name(&budget, &name)?, bytes_of(&budget, values)?);
        here(|step| {
            if let Some(headers) = step.answer() {
                put(headers, &name, values);
            }
        })
    };
    add("header_set", lua.create_function(set)?)?;
    let budget = inner.budget.clone();
    let append = move |_: &Lua, (name, values): (LuaString, Option<Table>)| {
        let (name, values) = (field_name(&budget, &name)?, bytes_of(&budget, values)?);
        here(|step| {
            if let Some(headers) = step.answer() {
                for value in values.unwrap_or_default().iter().filter(|_| !name.is_empty()) {
                    headers.append(&name, value);
                }
            }
        })
    };
    add("header_add", lua.create_function(append)?)
}

fn context(lua: &Lua, inner: &Rc<Inner>, null: &Value, add: Add<'_>) -> Result<()> {
    let ctx = |_: &Lua, at: usize| {
        let pair = here(|step| step.remembered.context.borrow().clone())?;
        pair.map(|(_, pair)| pair.get::<Table>()?.raw_get::<Value>(at)).transpose()
    };
    add("ctx", lua.create_function(ctx)?)?;
    let set_ctx = |_: &Lua, table: Table| {
        let pair = here(|step| step.remembered.context.borrow().clone())?;
        pair.map_or(Ok(()), |(_, pair)| pair.get::<Table>()?.raw_set(2, table))
    };
    add("set_ctx", lua.create_function(set_ctx)?)?;
    let null_of = null.clone();
    let budget = inner.budget.clone();
    let route = move |lua: &Lua, ()| {
        let text = here(|step| step.exchange().route.as_ref().map(|route| route.text.clone()))?;
        budget.charge(text.as_ref().map_or(0, |text| text.len() * FIELD_BYTE_COST))?;
        match text.and_then(|text| serde_json::from_slice(&text).ok()) {
            Some(json) => json::to_lua(lua, &json, &null_of),
            None => Ok(Value::Nil),
        }
    };
    add("route", lua.create_function(route)?)?;
    let matched = |lua: &Lua, ()| {
        let found = here(|step| {
            let exchange = step.exchange();
            exchange.route.as_ref()?;
            let matched = &exchange.matched;
            let params: Vec<(String, Vec<u8>)> = matched
                .params()
                .filter_map(|(name, range)| {
                    Some((name.to_owned(), exchange.uri().get(range)?.to_vec()))
                })
                .collect();
            Some((matched.path().to_owned(), matched.host().map(str::to_owned), params))
        })?;
        let Some((path, host, params)) = found else { return Ok(None) };
        let table = lua.create_table()?;
        for (name, value) in params {
            table.raw_set(name, lua.create_string(value)?)?;
        }
        table.raw_set("_path", path)?;
        if let Some(host) = host {
            table.raw_set("_host", host)?;
        }
        let method = here(|step| step.exchange().request.method.to_string())?;
        table.raw_set("_method", method)?;
        Ok(Some(table))
    };
    add("matched", lua.create_function(matched)?)?;
    let registers = |_: &Lua, ()| {
        here(|step| {
            if let Some(exchange) = step.exchange_mut() {
                let vars: Rc<dyn OtherVars> = Rc::new(Registered);
                exchange.notes.set(vars);
            }
        })
    };
    add("registers", lua.create_function(registers)?)?;
    let null = null.clone();
    let field = move |lua: &Lua, name: Value| {
        let Value::String(name) = name else { return Value::Nil.into_lua_multi(lua) };
        let name = name.to_string_lossy();
        let found = here(|step| {
            let exchange = step.exchange();
            let route = exchange.route.as_ref();
            let consumer = exchange.consumer.as_ref();
            match name.as_str() {
                "route_id" => route.map(|route| route.id.to_string()),
                "route_name" => route.and_then(|route| route.name.as_deref().map(str::to_owned)),
                "service_id" => route.and_then(|r| r.service.as_ref().map(|s| s.0.clone())),
                "service_name" => route.and_then(|r| r.service.as_ref()?.1.clone()),
                "conf_type" => Some(match route.and_then(|route| route.service.as_ref()) {
                    Some(_) => "route&service".to_owned(),
                    None => "route".to_owned(),
                }),
                "consumer_name" => consumer.map(|consumer| consumer.name.to_string()),
                "consumer_group_id" => consumer
                    .and_then(|consumer| consumer.group_id.as_ref().map(ToString::to_string)),
                _ => None,
            }
        })?;
        if name == "consumer" {
            let consumer = here(|step| step.exchange().consumer.clone())?;
            let Some(consumer) = consumer else { return Value::Nil.into_lua_multi(lua) };
            let table = lua.create_table()?;
            table.raw_set("username", &*consumer.name)?;
            table.raw_set("consumer_name", &*consumer.name)?;
            let labels = serde_json::Value::Object(consumer.labels.clone());
            table.raw_set("labels", json::to_lua(lua, &labels, &null)?)?;
            return table.into_lua_multi(lua);
        }
        if name == "jwt_auth_payload" {
            let claims = here(|step| {
                let claims = step.exchange().notes.get::<JwtClaims>();
                claims.map(|claims| serde_json::Value::Object(claims.0.clone()))
            })?;
            let Some(claims) = claims else { return Value::Nil.into_lua_multi(lua) };
            return json::to_lua(lua, &claims, &null)?.into_lua_multi(lua);
        }
        found.into_lua_multi(lua)
    };
    add("ctx_field", lua.create_function(field)?)
}

/// Values of one field, and bytes of them, that a function sets: what a head may have in all.
pub(crate) const FIELD_VALUES_MAX: usize = 1000;
pub(crate) const FIELD_BYTES_MAX: usize = 4 << 20;

/// A byte of a field counts as this many that are only copied, and a field as this many bytes more.
const FIELD_BYTE_COST: usize = 8;
const FIELD_COST: usize = 64;

/// Parsed names of variables kept per core; all are dropped when there are more.
const VARS_KEPT: usize = 4096;

/// Bytes of a variable's name; no longer one is there.
const VAR_NAME_MAX: usize = 4096;

//! Running the functions of a configuration in the phases of a request.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mlua::{IntoLuaMulti, MultiValue, Table, Thread, Value};
use serde_json::Value as Json;
use sluicegate_gateway::OtherVars;
use sluicegate_gateway::body::Body;
use sluicegate_gateway::core::Core;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::upstream::UpstreamDeps;
use tracing::{error, warn};

use crate::host::{Host, Loaded, LuaError, Ran, host, lua_type};
use crate::kept::Kept;
use crate::limits::Meter;
use crate::natives::plain;
use crate::request::{Parts, Phase, Remembered, Step};
use crate::timers::Home;
use crate::web;

/// The functions of one configuration. Each core makes its own of the sources when it first runs
/// them; what they remember lasts as long as this value.
pub struct Functions {
    /// The plugin whose functions they are.
    plugin: &'static str,
    id: u64,
    alive: Arc<()>,
    sources: Vec<String>,
    conf: Json,
    deps: Option<UpstreamDeps>,
}

/// What a request does after functions ran.
pub enum Outcome {
    /// It goes on.
    Next,
    /// It ends with this answer.
    Respond(Response),
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Functions {
    /// Functions of a plugin from sources that each return one, and the first argument they get. All
    /// sources together may use what one call of a function may.
    ///
    /// # Errors
    /// A source is no Lua, fails, or returns something else.
    pub fn compile(
        plugin: &'static str,
        sources: Vec<String>,
        conf: Json,
        deps: Option<UpstreamDeps>,
    ) -> Result<Self, LuaError> {
        let host = host()?;
        let mut meter = Meter::new(&host.limits);
        for source in &sources {
            let env = host.new_env()?;
            let mut made = Ok(());
            host.metered(None, &mut meter, || {
                made = host.function(source, source, &env).map(drop);
                Ok(())
            })?;
            made?;
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { plugin, id, alive: Arc::default(), sources, conf, deps })
    }

    /// Runs them in a phase that may wait and end the request.
    ///
    /// # Errors
    /// A function failed. It is logged.
    pub async fn run(&self, phase: Phase, exchange: &mut Exchange) -> Result<Outcome, LuaError> {
        let ran = self.run_all(phase, exchange).await;
        ran.inspect_err(|error| log(error, exchange))
    }

    async fn run_all(&self, phase: Phase, exchange: &mut Exchange) -> Result<Outcome, LuaError> {
        let host = host()?;
        let (loaded, context, remembered) = {
            let mut step = Step::of(Parts::Request(exchange), phase);
            let loaded = self.loaded(&host, &mut step)?;
            (loaded, host.context(&step)?, step.remembered.clone())
        };
        for (list, function) in loaded.calls() {
            let numbers = [list, function, context.at()];
            let mut arguments: MultiValue =
                numbers.map(|number| Value::Integer(number as i64)).into_iter().collect();
            let mut thread = Call::Runs(host.start_kept()?);
            let mut meter = Meter::new(&host.limits);
            let returned = loop {
                let (core, route) = (exchange.core.clone(), exchange.route.clone());
                let route = || route.as_ref().map_or("", |route| &*route.id).to_owned();
                let home = || Home::new(&self.alive, self.deps.as_ref(), &core, &route());
                let mut step = Step::of(Parts::Request(exchange), phase);
                let resumed = host.timers.with(&host, home, || {
                    let thread = thread.thread()?;
                    host.resume(&thread, Some(&mut step), &mut meter, arguments)
                });
                match resumed? {
                    Ran::Ended(values) => break values,
                    Ran::Waits(what, argument) => {
                        if what == "exit" {
                            return exited(&remembered, exchange);
                        }
                        thread = thread.waits(&host)?;
                        arguments = tokio::select! {
                            arguments = self.wait(&host, &what, argument, exchange, &remembered) => arguments?,
                            given_up = host.given_up() => return Err(given_up),
                        };
                    }
                }
            };
            if let Some(outcome) = ended(&host, &mut meter, &returned, &remembered, exchange)? {
                return Ok(outcome);
            }
        }
        let said = remembered.said.take();
        if said.is_empty() {
            return Ok(Outcome::Next);
        }
        let status = status(remembered.status.get().map_or(200, i32::from));
        Ok(Outcome::Respond(spoken(status, said, exchange)))
    }

    fn loaded(&self, host: &Host, step: &mut Step<'_>) -> Result<Loaded, LuaError> {
        host.loaded(self.id, &self.alive, self.plugin, &self.sources, &self.conf, step)
    }

    /// Does what a function waits for.
    async fn wait(
        &self,
        host: &Host,
        what: &str,
        argument: Value,
        exchange: &mut Exchange,
        remembered: &Remembered,
    ) -> Result<MultiValue, LuaError> {
        match what {
            "read_body" => {
                if remembered.body.borrow().is_none() {
                    let limit = host.limits.body_bytes as u64;
                    match exchange.peek_body(limit).await {
                        Ok(Some(body)) => drop(remembered.body.replace(Some(body))),
                        Ok(None) => warn!(
                            route = exchange.route_id(),
                            limit,
                            "A request body is larger than functions can read (plugin_attr.serverless.body_bytes)."
                        ),
                        Err(error) => {
                            return Err(LuaError::Raised(format!("the request body: {error}")));
                        }
                    }
                }
                Ok(MultiValue::new())
            }
            _ => wait_outside(host, what, argument, &exchange.core, self.deps.as_ref()).await,
        }
    }

    /// Runs them when the head of the answer is known.
    pub fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        let outcome = {
            let mut step = Step::of(Parts::Head(exchange, response), Phase::HeaderFilter);
            self.run_sync(&mut step)
        };
        if let Err(error) = outcome {
            log(&error, exchange);
            // Differs: APISIX closes the connection without an answer.
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            *response = Response::page(status);
        }
    }

    /// Runs them for a piece of the answer's body.
    pub fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        let (outcome, remembered) = {
            let mut step = Step::of(Parts::Piece(exchange, piece, last), Phase::BodyFilter);
            let remembered = step.remembered.clone();
            let number = remembered.next_piece(self.id);
            if remembered.failed.get() {
                (Ok(()), remembered)
            } else if remembered.cut.get().is_some_and(|cut| number > cut) {
                if let Parts::Piece(_, piece, _) = step.parts {
                    *piece = Bytes::new();
                }
                return;
            } else {
                (self.run_sync(&mut step), remembered)
            }
        };
        if let Err(error) = outcome {
            log(&error, exchange);
            remembered.failed.set(true);
        }
        if remembered.failed.get() {
            // What the function was to take out of the body must not go out for its failure.
            *piece = Bytes::new();
        }
    }

    /// Runs them when the answer is sent.
    pub fn log(&self, exchange: &Exchange) {
        let mut step = Step::of(Parts::Seen(exchange), Phase::Log);
        if let Err(error) = self.run_sync(&mut step) {
            log(&error, exchange);
        }
    }

    fn run_sync(&self, step: &mut Step<'_>) -> Result<(), LuaError> {
        let host = host()?;
        let (loaded, context) = (self.loaded(&host, step)?, host.context(step)?);
        for call in loaded.calls() {
            let (core, route) = (step.exchange().core.clone(), step.exchange().route.clone());
            let route = || route.as_ref().map_or("", |route| &*route.id).to_owned();
            let home = || Home::new(&self.alive, self.deps.as_ref(), &core, &route());
            let returned =
                host.timers.with(&host, home, || host.call_kept(step, call, &context))?;
            // What is returned goes nowhere: it only says that the functions behind do not run.
            if returned.iter().any(|value| !nothing(value)) {
                break;
            }
        }
        Ok(())
    }
}

/// A call: as long as it does not wait, with a reference of Rust's own.
enum Call {
    Runs(Thread),
    Waits(Kept),
}

impl Call {
    fn thread(&self) -> Result<Thread, LuaError> {
        match self {
            Self::Runs(thread) => Ok(thread.clone()),
            Self::Waits(kept) => kept.get().map_err(|error| LuaError::State(error.to_string())),
        }
    }

    fn waits(self, host: &Host) -> Result<Self, LuaError> {
        match self {
            Self::Runs(thread) => {
                let kept = host.keep.put(thread);
                kept.map(Self::Waits).map_err(|error| LuaError::State(error.to_string()))
            }
            waits @ Self::Waits(_) => Ok(waits),
        }
    }
}

/// Does what a function waits for that has nothing to do with its request.
pub(crate) async fn wait_outside(
    host: &Host,
    what: &str,
    argument: Value,
    core: &Rc<Core>,
    deps: Option<&UpstreamDeps>,
) -> Result<MultiValue, LuaError> {
    let failed = |error: mlua::Error| LuaError::State(error.to_string());
    match what {
        "sleep" => {
            let seconds = argument.as_number().or(argument.as_integer().map(|n| n as f64));
            let seconds = seconds.unwrap_or(0.0).clamp(0.0, SLEEP_MAX);
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            Ok(MultiValue::new())
        }
        "http" => {
            let Value::Table(options) = argument else { return Ok(MultiValue::new()) };
            let call = web::Call::read(&options);
            drop(options);
            let answer = match call {
                Ok(call) => call.send(core, deps, host.limits.body_bytes as u64).await,
                Err(why) => Err(why),
            };
            match answer {
                Ok(told) => web::to_lua(&host.lua, &told)
                    .and_then(|table: Table| table.into_lua_multi(&host.lua))
                    .map_err(failed),
                Err(why) => (Value::Nil, why).into_lua_multi(&host.lua).map_err(failed),
            }
        }
        _ => Ok(MultiValue::new()),
    }
}

/// Variables that functions made with `core.ctx.register_var`.
pub(crate) struct Registered;

impl OtherVars for Registered {
    fn var(&self, exchange: &Exchange, name: &str) -> Option<Vec<u8>> {
        let asked = host().and_then(|host| {
            let mut step = Step::of(Parts::Seen(exchange), Phase::Log);
            let ctx = host.ctx(&step)?;
            host.call(&mut step, (host.registered.clone(), name, ctx))
        });
        match asked {
            Ok(values) => {
                let value = values.iter().next().filter(|value| !value.is_nil())?;
                Some(plain(value))
            }
            Err(error) => {
                log(&error, exchange);
                None
            }
        }
    }
}

fn log(error: &LuaError, exchange: &Exchange) {
    // The text is the script's own and begins with its place: no fixed sentence says more.
    error!(route = exchange.route_id(), "[lua] {error}");
}

fn number(value: &Value) -> Option<i32> {
    match value {
        Value::Integer(n) => i32::try_from(*n).ok(),
        Value::Number(n) => Some(*n as i32),
        _ => None,
    }
}

fn status(code: i32) -> StatusCode {
    let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Is it what a function returns to say nothing?
fn nothing(value: &Value) -> bool {
    matches!(value, Value::Nil | Value::Boolean(false))
}

/// What `return code, body` makes of the request.
fn ended(
    host: &Host,
    meter: &mut Meter,
    returned: &MultiValue,
    remembered: &Remembered,
    exchange: &Exchange,
) -> Result<Option<Outcome>, LuaError> {
    let mut values = returned.iter();
    let code = values.next().unwrap_or(&Value::Nil);
    let body = values.next().unwrap_or(&Value::Nil);
    if nothing(code) && nothing(body) {
        return Ok(None);
    }
    let code_number = number(code);
    let mut said = remembered.said.take();
    for part in [code, body] {
        if nothing(part) || (code_number.is_some() && std::ptr::eq(part, code)) {
            continue;
        }
        match part {
            Value::Table(_) => {
                said.extend(host.encode(part, meter)?);
                said.push(b'\n');
            }
            Value::String(_) | Value::Integer(_) | Value::Number(_) | Value::Boolean(_) => {
                said.extend(plain(part));
            }
            other => {
                return Err(LuaError::Raised(format!("a function returned a {}", lua_type(other))));
            }
        }
    }
    let response = match code_number {
        Some(code) if said.is_empty() => silent(code, remembered, exchange),
        Some(code) => spoken(status(code), said, exchange),
        None => spoken(status(remembered.status.get().map_or(200, i32::from)), said, exchange),
    };
    Ok(Some(Outcome::Respond(response)))
}

/// What `ngx.exit` makes of the request.
fn exited(remembered: &Remembered, exchange: &Exchange) -> Result<Outcome, LuaError> {
    let code = remembered.exit.take().unwrap_or(0);
    let said = remembered.said.take();
    if !said.is_empty() {
        // The head went out with the first word, as far as a script can tell.
        let first = remembered.status.get().map_or(200, i32::from);
        return Ok(Outcome::Respond(spoken(status(first), said, exchange)));
    }
    match code {
        // Ends the phase, and the request goes on.
        0 | -5 => Ok(Outcome::Next),
        code if code < 0 => Ok(Outcome::Respond(Response::page(StatusCode::INTERNAL_SERVER_ERROR))),
        code => Ok(Outcome::Respond(silent(code, remembered, exchange))),
    }
}

/// An answer without a body of the script's: a page from 300 on.
fn silent(code: i32, remembered: &Remembered, exchange: &Exchange) -> Response {
    let code = match remembered.status.get() {
        Some(before) if (200..300).contains(&code) => i32::from(before),
        _ => code,
    };
    match status(code) {
        code if code.as_u16() >= 300 => Response::page(code),
        code => spoken(code, Vec::new(), exchange),
    }
}

fn spoken(status: StatusCode, said: Vec<u8>, exchange: &Exchange) -> Response {
    let mut response = Response::new(status);
    if !exchange.response_headers.contains("Content-Type") {
        response.headers.append("Content-Type", b"text/plain; charset=utf-8");
    }
    response.body = Body::from_bytes(said);
    response
}

/// The longest sleep of a function, in seconds.
const SLEEP_MAX: f64 = 86_400.0;

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Functions").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

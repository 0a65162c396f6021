//! `resty.http`: a call over the gateway's own connections.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use mlua::{Lua, Result as LuaResult, Table, Value};
use sluicegate_gateway::client::{Keepalive, Timeouts};
use sluicegate_gateway::core::Core;
use sluicegate_gateway::endpoint::{Ask, Endpoint, EndpointOptions, Told};
use sluicegate_gateway::http::Headers;
use sluicegate_gateway::plugin::CompileCtx;
use sluicegate_gateway::upstream::UpstreamDeps;

use crate::natives::{append, plain};
use crate::request_api::{FIELD_BYTES_MAX, FIELD_VALUES_MAX};

/// A call as a script describes it.
pub(crate) struct Call {
    url: String,
    method: Method,
    query: Option<String>,
    headers: Headers,
    body: Bytes,
    options: EndpointOptions,
}

impl Call {
    /// Reads what the library put together. The error is for the script.
    pub(crate) fn read(table: &Table) -> Result<Self, String> {
        let field = |name: &str| table.raw_get::<Value>(name).unwrap_or(Value::Nil);
        let text = |name: &str| String::from_utf8_lossy(&plain(&field(name))).into_owned();
        let flag = |name: &str| field(name) != Value::Boolean(false);
        let method = text("method");
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("bad method: {method}"))?;
        let limit = |name: &str| {
            let ms = field(name).as_number().or(field(name).as_integer().map(|n| n as f64));
            let ms = ms.filter(|ms| ms.is_finite() && *ms > 0.0).map(|ms| ms as u64);
            ms.map_or(TIMEOUT, Duration::from_millis).min(TIMEOUT_MAX)
        };
        let mut headers = Headers::new();
        if let Value::Table(all) = field("headers") {
            let mut bytes = 0;
            for pair in all.pairs::<Value, Table>() {
                let (name, values) = pair.map_err(|error| error.to_string())?;
                let name = String::from_utf8_lossy(&plain(&name)).into_owned();
                // Differs: `Host` and what frames a message are those of the address and the body.
                if OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                    continue;
                }
                for value in values.sequence_values::<Value>().take(FIELD_VALUES_MAX) {
                    let value = plain(&value.map_err(|error| error.to_string())?);
                    bytes += value.len();
                    if bytes > FIELD_BYTES_MAX {
                        return Err(format!("headers of more than {FIELD_BYTES_MAX} bytes"));
                    }
                    headers.append(&name, &value);
                }
            }
        }
        if !headers.contains("User-Agent") {
            headers.append("User-Agent", USER_AGENT.as_bytes());
        }
        let query = field("query");
        Ok(Self {
            url: text("url"),
            method,
            query: (!query.is_nil()).then(|| text("query").trim_start_matches('?').to_owned()),
            headers,
            body: Bytes::from(plain(&field("body"))),
            options: EndpointOptions {
                verify: flag("ssl_verify"),
                timeouts: Timeouts {
                    connect: limit("connect"),
                    send: limit("send"),
                    read: limit("read"),
                },
                keepalive: flag("keepalive").then_some(KEEPALIVE),
                egress: false,
            },
        })
    }

    /// Calls, and takes an answer of at most `limit` bytes whole. The error is for the script.
    pub(crate) async fn send(
        self,
        core: &Rc<Core>,
        deps: Option<&UpstreamDeps>,
        limit: u64,
    ) -> Result<Told, String> {
        let deps = deps.ok_or("there is no connection here")?;
        let ctx = CompileCtx {
            metadata: None,
            attr: None,
            owner: "resty.http",
            deps: Some(deps),
            upstreams: None,
        };
        let endpoint = Endpoint::compile("uri", &self.url, &self.options, &ctx);
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        let ask = Ask {
            method: &self.method,
            path: endpoint.path(),
            query: self.query.as_deref().or(endpoint.query()).filter(|query| !query.is_empty()),
            headers: &self.headers,
            body: self.body,
        };
        if ask.query.is_some_and(|query| query.bytes().any(|b| b <= b' ' || b == 0x7f)) {
            return Err("bad query: it has spaces or control characters".to_owned());
        }
        endpoint.ask(core, &ask, limit).await.map_err(|error| error.to_string())
    }
}

/// The answer as `resty.http` has it.
pub(crate) fn to_lua(lua: &Lua, told: &Told) -> LuaResult<Table> {
    let headers = lua.create_table()?;
    for (name, value) in told.headers.iter() {
        let name = Value::String(lua.create_string(name.to_ascii_lowercase())?);
        append(lua, &headers, name, Value::String(lua.create_string(value)?))?;
    }
    let answer = lua.create_table()?;
    answer.raw_set("status", told.status.as_u16())?;
    answer.raw_set("reason", told.status.canonical_reason().unwrap_or(""))?;
    answer.raw_set("headers", headers)?;
    answer.raw_set("body", lua.create_string(&told.body)?)?;
    Ok(answer)
}

/// For the connection, for sending and for each read, where nothing is said: nginx's default for
/// sockets of Lua.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The longest of them.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

const KEEPALIVE: Keepalive =
    Keepalive { size: 32, idle_timeout: Duration::from_secs(60), requests: u64::MAX };

/// Fields that the client writes itself.
const OWN: [&str; 4] = ["host", "content-length", "transfer-encoding", "connection"];

const USER_AGENT: &str = concat!("Sluicegate/", env!("CARGO_PKG_VERSION"));

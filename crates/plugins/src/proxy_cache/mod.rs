//! `proxy-cache`: keep answers of upstreams and functions, in memory or on disk, and give them again.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/proxy-cache/>
//!
//! What is kept is the answer as its upstream or function gave it: plugins that change answers change
//! a kept one anew, for the client that gets it.
//!
//! Differs: APISIX never caches what a function answers with `cache_strategy: disk`; here both
//! strategies do the same wherever the answer comes from, and answers of the gateway itself (a
//! refusal by another plugin, 502, 504) are not kept.

mod disk;
mod rules;
mod zone;
mod zones;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::WithResponse;
use sluicegate_gateway::body::{Body, Overhear};
use sluicegate_gateway::exchange::{Exchange, Origin, Response};
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::http::Headers;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use self::disk::{Head, Writing};
use self::rules::{Digest, Directives, Parts};
use self::zone::{Kept, Times, Variant, Zone};
use self::zones::{Caches, Open};
use crate::limit::{bare, now_ms};

/// The plugin, compiled.
pub struct ProxyCache {
    rules: Arc<Rules>,
    hide_cache_headers: bool,
}

/// What a configuration says.
struct Rules {
    open: Option<Open>,
    on_disk: bool,
    key: Box<[Part]>,
    bypass: Box<[Part]>,
    no_cache: Box<[Part]>,
    methods: Vec<Method>,
    statuses: Vec<u16>,
    cache_control: bool,
    set_cookie: bool,
    /// How long an answer is good that does not say, or that is not asked.
    ttl_s: u64,
    body_max: u64,
    /// Consumers share nothing.
    isolated: bool,
    /// The configuration itself takes care of who may have what: the key tells who asks, or nobody is
    /// to be told apart.
    shares_authorized: bool,
    remote_user: VarName,
}

/// A piece of a key or condition.
enum Part {
    Text(Box<[u8]>),
    Var(VarName),
}

impl Part {
    fn compile(text: &str) -> Self {
        match text.strip_prefix('$') {
            Some(name) => Self::Var(VarName::parse(name)),
            None => Self::Text(text.as_bytes().into()),
        }
    }

    fn with<R>(&self, vars: &dyn Vars, then: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Text(text) => then(text),
            Self::Var(name) => {
                let value = vars.var(name);
                let bytes = value.as_ref().and_then(|value| value.to_bytes());
                then(bytes.as_deref().unwrap_or_default())
            }
        }
    }
}

/// Is any of these neither empty nor `0`?
fn any(parts: &[Part], vars: &dyn Vars) -> bool {
    parts.iter().any(|part| part.with(vars, |value| !matches!(value, b"" | b"0")))
}

impl Plugin for ProxyCache {
    const NAME: &'static str = "proxy-cache";
    const PRIORITY: i32 = 1085;
    const VERSION: f64 = 0.2;
    const PHASES: Phases = Phases::ACCESS.and(Phases::HEADER_FILTER);
    type Config = Config;

    fn schema() -> Value {
        let pattern = r"(^[^\$].+$|^\$[0-9a-zA-Z_]+$)";
        let texts = || {
            json!({
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "pattern": pattern},
            })
        };
        json!({
            "type": "object",
            "properties": {
                "max_resp_body_size": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 67_108_864,
                    "description": "Bytes of a body that is kept in memory; longer ones pass.",
                },
                "cache_zone": {
                    "type": "string", "minLength": 1, "maxLength": 100, "default": "disk_cache_one",
                },
                "cache_strategy": {
                    "type": "string", "enum": ["disk", "memory"], "default": "disk",
                },
                "cache_key": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "description": "A text, or a variable behind $.",
                        "type": "string",
                        "pattern": pattern,
                    },
                    "default": ["$host", "$request_uri"],
                },
                "cache_http_status": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "description": "A status of answers that are kept.",
                        "type": "integer",
                        "minimum": 200,
                        "maximum": 599,
                    },
                    "uniqueItems": true,
                    "default": [200, 301, 404],
                },
                "cache_method": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "description": "A method whose answers are kept.",
                        "type": "string",
                        "enum": ["GET", "POST", "HEAD"],
                    },
                    "uniqueItems": true,
                    "default": ["GET", "HEAD"],
                },
                "hide_cache_headers": {"type": "boolean", "default": false},
                "cache_control": {"type": "boolean", "default": false},
                "cache_bypass": texts(),
                "no_cache": texts(),
                "cache_ttl": {"type": "integer", "minimum": 1, "default": 300},
                "consumer_isolation": {"type": "boolean", "default": true},
                "cache_set_cookie": {"type": "boolean", "default": false},
            },
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        if config.cache_key.iter().any(|part| part == "$request_method") {
            let text = "cache_key variable $request_method unsupported";
            return Err(ConfigError(text.into()));
        }
        let on_disk = config.cache_strategy == Strategy::Disk;
        let caches = Caches::read(ctx.attr)?;
        let open = caches.zone(&config.cache_zone, on_disk, ctx)?;
        let parts = |texts: &[String]| texts.iter().map(|text| Part::compile(text)).collect();
        let tells_who = config.cache_key.iter().any(|part| IDENTITIES.contains(&part.as_str()));
        let methods = config.cache_method.iter();
        let methods: Result<_, _> =
            methods.map(|name| Method::from_bytes(name.as_bytes())).collect();
        let rules = Rules {
            open,
            on_disk,
            key: parts(&config.cache_key),
            bypass: parts(&config.cache_bypass),
            no_cache: parts(&config.no_cache),
            methods: methods.map_err(|why| ConfigError(format!("`cache_method`: {why}")))?,
            statuses: config.cache_http_status,
            cache_control: config.cache_control && !on_disk,
            set_cookie: config.cache_set_cookie && !on_disk,
            ttl_s: if on_disk { caches.cache_ttl_s } else { config.cache_ttl },
            body_max: if on_disk { u64::MAX } else { config.max_resp_body_size },
            isolated: config.consumer_isolation && !tells_who,
            shares_authorized: !config.consumer_isolation || tells_who,
            remote_user: VarName::parse("remote_user"),
        };
        Ok(Self { hide_cache_headers: config.hide_cache_headers, rules: Arc::new(rules) })
    }

    fn phases(&self) -> Phases {
        match self.hide_cache_headers {
            true => Self::PHASES,
            false => Phases::ACCESS,
        }
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let Some(open) = &self.rules.open else { return Ok(Flow::Continue) };
        if exchange.client_method().as_str() == "PURGE" {
            return Ok(Flow::Respond(self.rules.purge(exchange, open).await));
        }
        let status = match self.rules.look(exchange, open).await {
            Look::Hit(response) => return Ok(Flow::Respond(*response)),
            Look::OnlyIfCached => {
                set_status(exchange, "MISS");
                return Ok(Flow::Respond(Response::page(StatusCode::GATEWAY_TIMEOUT)));
            }
            Look::Passed(status) => status,
            Look::Missed(status, key) => {
                let rules = self.rules.clone();
                exchange.when_answered(move |exchange, response| {
                    rules.answered(exchange, response, key);
                });
                status
            }
        };
        set_status(exchange, status);
        Ok(Flow::Continue)
    }

    fn header_filter(&self, _: &mut Exchange, response: &mut Response) {
        response.headers.remove("Expires");
        response.headers.remove("Cache-Control");
    }
}

fn set_status(exchange: &mut Exchange, status: &str) {
    exchange.add_response_headers().set(STATUS, status.as_bytes());
}

/// What a look into the cache gives.
enum Look {
    /// A kept answer.
    Hit(Box<Response>),
    /// None, and the client wants no other.
    OnlyIfCached,
    /// The request goes on, and its answer is not kept.
    Passed(&'static str),
    /// The request goes on, and its answer may be kept under this key.
    Missed(&'static str, Digest),
}

impl Rules {
    fn key(&self, exchange: &Exchange) -> Digest {
        let mut key = Parts::new();
        if self.isolated {
            match &exchange.consumer {
                Some(consumer) => {
                    key.add(b"consumer");
                    key.add(consumer.name.as_bytes());
                }
                None => {
                    let user = exchange.var(&self.remote_user);
                    if let Some(user) = user.as_ref().and_then(|user| user.to_bytes()) {
                        key.add(b"user");
                        key.add(&user);
                    }
                }
            }
        }
        // Between who asks and what for.
        key.add(b"");
        // Differs: APISIX joins the parts without a mark between them, so that `ab` and `c` are
        // given the answer of `a` and `bc`.
        for part in &self.key {
            part.with(exchange, |value| key.add(value));
        }
        key.digest()
    }

    async fn purge(&self, exchange: &Exchange, open: &Open) -> Response {
        // What is not known yet would serve again after it was said to be gone.
        if let Some(disk) = &open.disk
            && !disk.is_read_in(PURGE_WAIT).await
        {
            return Response::page(StatusCode::SERVICE_UNAVAILABLE);
        }
        let Some(files) = open.zone.purge(&self.key(exchange)) else {
            return Response::page(StatusCode::NOT_FOUND);
        };
        if let Some(disk) = &open.disk {
            disk.remove(files);
        }
        bare(StatusCode::OK)
    }

    async fn look(&self, exchange: &Exchange, open: &Open) -> Look {
        let method = exchange.client_method();
        if !self.methods.contains(method) {
            return Look::Passed(if self.on_disk { "BYPASS" } else { "MISS" });
        }
        let post = *method == Method::POST;
        if any(&self.bypass, exchange) {
            return match self.on_disk {
                // As nginx has it, the answer takes the place of the kept one.
                true => Look::Missed("BYPASS", self.key(exchange)),
                false => Look::Passed("BYPASS"),
            };
        }
        let asks = match self.cache_control {
            true => Directives::of(&exchange.request.headers),
            false => Directives::default(),
        };
        if asks.no_store || asks.no_cache {
            return Look::Passed("BYPASS");
        }
        let key = self.key(exchange);
        let now = now_ms();
        let mut slot = open.zone.get(&key);
        if slot.is_none()
            && let Some(disk) = &open.disk
            && disk.was_just_read_in().await
        {
            slot = open.zone.get(&key);
        }
        let missed = |status| match asks.only_if_cached {
            true => Look::OnlyIfCached,
            false => Look::Missed(status, key),
        };
        let found = slot.as_ref().and_then(|slot| slot.find(&exchange.request.headers, post));
        let Some(variant) = found else { return missed("MISS") };
        if variant.times.is_over(now) {
            return missed("EXPIRED");
        }
        if !is_fresh_enough(&asks, &variant.times, now) {
            return missed("STALE");
        }
        let (status, headers, body, times) = match &variant.kept {
            Kept::Memory { status, headers, body, .. } => {
                (*status, headers.clone(), Body::from_bytes(body.clone()), variant.times)
            }
            Kept::Disk { name, .. } => {
                let Some(disk) = &open.disk else { return missed("MISS") };
                match disk.read(*name, &key).await {
                    Some((head, body))
                        if head.signature == variant.signature && !head.times.is_over(now) =>
                    {
                        (head.status, head.headers, body, head.times)
                    }
                    _ => return missed("MISS"),
                }
            }
        };
        let mut response = Response::new(status);
        response.headers = headers;
        response.body = body;
        let mut text = itoa::Buffer::new();
        if status == StatusCode::OK
            && rules::has_it(method, &exchange.request.headers, &response.headers)
        {
            response.status = StatusCode::NOT_MODIFIED;
            response.body = Body::Empty;
        } else if *method == Method::HEAD
            && let Some(length) = response.body.remaining()
        {
            response.headers.set("Content-Length", text.format(length).as_bytes());
        }
        response.headers.set("Age", text.format(times.age_s(now)).as_bytes());
        response.headers.set(STATUS, b"HIT");
        Look::Hit(Box::new(response))
    }

    /// Keeps an answer that may be kept, as it passes.
    fn answered(&self, exchange: &Exchange, response: &mut Response, key: Digest) {
        let Some(open) = &self.open else { return };
        let Some(ttl_s) = self.keeps_for(exchange, response) else { return };
        let Some(vary) = rules::vary(&response.headers) else { return };
        let post = *exchange.client_method() == Method::POST;
        let mut headers = Headers::new();
        let mut headers_bytes = 0;
        for (name, value) in response.headers.iter().filter(|(name, _)| rules::is_kept(name)) {
            let Ok(name) = std::str::from_utf8(name) else { return };
            headers.append(name, value);
            headers_bytes += name.len() + value.len() + FIELD_BYTES;
        }
        let head = Head {
            key,
            signature: rules::variant(&vary, &exchange.request.headers, post),
            times: Times {
                stored_ms: now_ms(),
                ttl_ms: ttl_s.saturating_mul(1000),
                age_s: rules::age_s(&response.headers),
            },
            status: response.status,
            vary,
            headers,
        };
        let length = response.body.remaining();
        if length.is_some_and(|length| length > self.body_max) {
            return;
        }
        let keeping = match &open.disk {
            Some(disk) => {
                let Some(writing) = disk.write(&open.zone, head) else { return };
                Keeping::Disk(writing)
            }
            None if self.on_disk => return,
            None => Keeping::Memory(Box::new(Gathered {
                zone: open.zone.clone(),
                head,
                headers_bytes,
                body: Vec::new(),
                max: self.body_max,
            })),
        };
        let mut keeper = Keeper(Some(keeping));
        let body = std::mem::take(&mut response.body);
        response.body = match body {
            Body::Empty => {
                keeper.end(None);
                Body::Empty
            }
            Body::Bytes(bytes) => {
                keeper.piece(&bytes);
                keeper.end(None);
                Body::Bytes(bytes)
            }
            body => body.overheard(keeper),
        };
    }

    /// For how many seconds an answer may be given again; `None`: not once.
    fn keeps_for(&self, exchange: &Exchange, response: &Response) -> Option<u64> {
        let headers = &response.headers;
        let status = response.status;
        // Differs: APISIX keeps the answer to a HEAD, which has no body, and gives it to a GET.
        if *exchange.client_method() == Method::HEAD || response.origin == Origin::Gateway {
            return None;
        }
        if !self.statuses.contains(&status.as_u16())
            || status == StatusCode::PARTIAL_CONTENT
            || headers.contains("Content-Range")
            || headers.get("Content-Type").is_some_and(|kind| kind.starts_with(b"application/grpc"))
            || any(&self.no_cache, &WithResponse { exchange, response })
        {
            return None;
        }
        let says = Directives::of(headers);
        if says.forbids_keeping() || headers.contains("Set-Cookie") && !self.set_cookie {
            return None;
        }
        // Differs: APISIX gives answers for one `Authorization` to others, where no plugin has
        // checked it: by the name in it, if there is one, which anybody can write there.
        let unchecked = exchange.consumer.is_none()
            && exchange.request.headers.contains("Authorization")
            && !self.shares_authorized;
        if unchecked && !says.shares_authorized() {
            return None;
        }
        let now_s = now_ms() / 1000;
        let said = || rules::lifetime_s(&says, headers, now_s);
        let ttl_s = match (self.on_disk, self.cache_control) {
            (true, _) => {
                let said = rules::accel_expires_s(headers, now_s).or_else(said);
                said.map(|said| said.saturating_sub(rules::age_s(headers))).unwrap_or(self.ttl_s)
            }
            (false, true) => said()?.saturating_sub(rules::age_s(headers)),
            (false, false) => self.ttl_s,
        };
        (ttl_s > 0).then_some(ttl_s)
    }
}

/// Is a kept answer as fresh as a client asks for?
fn is_fresh_enough(asks: &Directives, times: &Times, now_ms: u64) -> bool {
    let left_ms = times.ttl_ms.saturating_sub(times.resident_ms(now_ms));
    let age_ms = times.age_s.saturating_mul(1000).saturating_add(times.resident_ms(now_ms));
    asks.max_age.is_none_or(|max| age_ms <= max.saturating_mul(1000))
        && asks.min_fresh.is_none_or(|min| left_ms >= min.saturating_mul(1000))
}

/// An answer that is kept as it passes; `None` once it is not any more.
struct Keeper(Option<Keeping>);

enum Keeping {
    Memory(Box<Gathered>),
    Disk(Writing),
}

/// An answer on its way into memory.
struct Gathered {
    zone: Arc<Zone>,
    head: Head,
    headers_bytes: usize,
    body: Vec<u8>,
    max: u64,
}

impl Overhear for Keeper {
    fn piece(&mut self, piece: &[u8]) {
        let goes_on = match &mut self.0 {
            None => return,
            Some(Keeping::Disk(writing)) => writing.piece(Bytes::copy_from_slice(piece)),
            Some(Keeping::Memory(gathered)) => gathered.piece(piece),
        };
        if !goes_on {
            self.0 = None;
        }
    }

    fn end(&mut self, trailers: Option<&Headers>) {
        // Nobody would get them again.
        if trailers.is_some_and(|trailers| !trailers.is_empty()) {
            self.0 = None;
        }
        match self.0.take() {
            None => {}
            Some(Keeping::Disk(writing)) => writing.end(),
            Some(Keeping::Memory(gathered)) => gathered.end(),
        }
    }
}

impl Gathered {
    fn piece(&mut self, piece: &[u8]) -> bool {
        let bytes = piece.len() as u64;
        let all = self.zone.gathering.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.body.extend_from_slice(piece);
        self.body.len() as u64 <= self.max && all <= self.zone.memory_max()
    }

    fn end(mut self) {
        let body = std::mem::take(&mut self.body);
        self.give_back(body.len());
        let Head { key, signature, times, status, vary, .. } = &self.head;
        let variant = Variant {
            signature: *signature,
            times: *times,
            kept: Kept::Memory {
                status: *status,
                headers: self.head.headers.clone(),
                headers_bytes: self.headers_bytes,
                body: body.into(),
            },
        };
        self.zone.insert(*key, vary.clone(), variant, now_ms());
    }

    fn give_back(&self, bytes: usize) {
        self.zone.gathering.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.give_back(self.body.len());
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    max_resp_body_size: u64,
    cache_zone: String,
    cache_strategy: Strategy,
    cache_key: Vec<String>,
    cache_http_status: Vec<u16>,
    cache_method: Vec<String>,
    hide_cache_headers: bool,
    cache_control: bool,
    #[serde(default)]
    cache_bypass: Vec<String>,
    #[serde(default)]
    no_cache: Vec<String>,
    cache_ttl: u64,
    consumer_isolation: bool,
    cache_set_cookie: bool,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    Disk,
    Memory,
}

/// Tells what became of a request here.
const STATUS: &str = "Apisix-Cache-Status";
/// How long a `PURGE` waits until it is known what lies in a zone's folder.
const PURGE_WAIT: Duration = Duration::from_secs(10);

/// Variables that tell who asks.
const IDENTITIES: [&str; 4] =
    ["$consumer_name", "$consumer_group_id", "$remote_user", "$http_authorization"];

/// What a field takes besides its name and value.
const FIELD_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;
    use crate::tests::refusal;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<ProxyCache>::check_schema(&json!({}));
    }

    #[test]
    fn a_configuration_is_refused_with_the_words_of_apisix() {
        for (config, says) in [
            (
                json!({"cache_strategy": "network"}),
                "property \"cache_strategy\" validation failed: matches none of the enum values",
            ),
            (json!({"cache_method": "GET"}), "property \"cache_method\""),
            (json!({"cache_method": ["GET", "PUT"]}), "property \"cache_method\""),
            (json!({"cache_key": ["$uri-", "-cache-id"]}), "failed to match pattern"),
            (
                json!({"cache_key": ["$uri", "$request_method"]}),
                "cache_key variable $request_method unsupported",
            ),
            (
                json!({"cache_zone": "memory_cache"}),
                "invalid or empty cache_zone for cache_strategy: disk",
            ),
        ] {
            let error = refusal::<ProxyCache>(&config);
            assert!(error.contains(says), "{config}: {error}");
        }
    }

    #[test]
    fn what_a_plugin_says_in_place_of_an_upstream_is_not_kept() {
        let limit = json!({"count": 1, "time_window": 60, "rejected_code": 404});
        let cache = json!({"cache_strategy": "memory", "cache_zone": "memory_cache"});
        let origin = sluicegate_testkit::Origin::text("some");
        let route = json!({
            "id": "1", "uri": "/*",
            "plugins": {"proxy-cache": cache, "limit-count": limit},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        });
        let gateway = sluicegate_testkit::InProcess::start(
            crate::registry(),
            vec![(sluicegate_model::kind::Kind::Routes, "1", route)],
        );
        let mut client = sluicegate_testkit::client::Client::connect(gateway.addr);
        let mut ask = |path: &str| {
            let answer = client.get(path);
            (answer.status, answer.header("apisix-cache-status").map(str::to_owned))
        };
        let missed = || Some("MISS".to_owned());
        assert_eq!(ask("/a"), (200, missed()));
        assert_eq!(ask("/b"), (404, missed()), "it is refused");
        assert_eq!(ask("/b"), (404, missed()), "and the refusal is not kept");
        assert_eq!(ask("/a"), (200, Some("HIT".to_owned())));
        gateway.stop();
    }
}

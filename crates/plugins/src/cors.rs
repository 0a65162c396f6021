//! `cors`: tell browsers which other sites may use a route.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/cors/>
//!
//! Every `OPTIONS` request is answered here, whoever it comes from. What an origin is held against:
//! the lists of the metadata first, then `allow_origins_by_regex`, or without it `allow_origins`.

use std::collections::HashSet;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::{FieldName, Headers};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

use crate::pcre::Pcre;

/// The plugin, compiled.
pub struct Cors {
    origins: Origins,
    /// `allow_origins_by_regex`, all in one.
    pattern: Option<Pcre>,
    /// The lists of the metadata that `allow_origins_by_metadata` names; `None`: it names none.
    listed: Option<Vec<Origins>>,
    timing: Option<Timing>,
    /// What whoever is allowed is told besides; where that is anybody, also that.
    told: Headers,
    /// The header fields allowed are those that the request asks for.
    asked_headers: bool,
    /// `allow_origins` is `*`: beside the lists of the metadata it says nothing.
    any: bool,
    /// The answer is another one for another origin.
    vary: bool,
    /// Whether the origin is looked at.
    by_origin: bool,
}

/// Origins that are allowed, as one text says it.
enum Origins {
    /// `*`
    Any,
    /// `**`: whoever asks, by name.
    Asking,
    One(String),
    Several(HashSet<String>),
}

/// Whom to show timing information.
enum Timing {
    Origins(Origins),
    Pattern(Pcre),
}

impl Timing {
    /// Is it shown to some and not to others?
    fn varies(&self) -> bool {
        !matches!(self, Self::Origins(Origins::Any))
    }
}

/// The `Origin` that the client sent, whatever becomes of the field.
struct ClientOrigin(Option<Box<str>>);

impl Plugin for Cors {
    const NAME: &'static str = "cors";
    const PRIORITY: i32 = 4000;
    const PHASES: Phases = Phases::REWRITE.and(Phases::HEADER_FILTER);
    type Config = Config;

    fn schema() -> Value {
        let several = json!({
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 4096},
            "minItems": 1,
            "uniqueItems": true,
        });
        json!({
            "type": "object",
            "properties": {
                "allow_origins": {"type": "string", "pattern": ORIGINS, "default": "*"},
                "allow_methods": {"type": "string", "default": "*"},
                "allow_headers": {"type": "string", "default": "*"},
                "expose_headers": {"type": "string"},
                "max_age": {"type": "integer", "default": 5},
                "allow_credential": {"type": "boolean", "default": false},
                "allow_origins_by_regex": several,
                "allow_origins_by_metadata": several,
                "timing_allow_origins": {"type": "string", "pattern": ORIGINS},
                "timing_allow_origins_by_regex": several,
            },
        })
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                "allow_origins": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "pattern": ORIGINS},
                },
            },
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let open = [
            Some(&config.allow_origins),
            Some(&config.allow_methods),
            Some(&config.allow_headers),
            config.expose_headers.as_ref(),
            config.timing_allow_origins.as_ref(),
        ];
        if config.allow_credential && open.into_iter().flatten().any(|text| text == "*") {
            let text = "you can not set '*' for other option when 'allow_credential' is true";
            return Err(ConfigError(text.to_owned()));
        }
        let pattern = |sources: Option<Vec<String>>| {
            Pcre::any_of(&sources.unwrap_or_default(), "").map_err(ConfigError)
        };
        let lists = ctx.metadata.map(|metadata| &metadata["allow_origins"]);
        let listed = config.allow_origins_by_metadata.map(|names| {
            let list = |name: &String| Some(Origins::read(lists?[name.as_str()].as_str()?));
            names.iter().filter_map(list).collect()
        });
        let pattern_of_origins = pattern(config.allow_origins_by_regex)?;
        let timing = match pattern(config.timing_allow_origins_by_regex)? {
            Some(pattern) => Some(Timing::Pattern(pattern)),
            None => config.timing_allow_origins.map(|text| Timing::Origins(Origins::read(&text))),
        };
        let origins = Origins::read(&config.allow_origins);
        let any = matches!(origins, Origins::Any);
        let by_origin =
            !any || pattern_of_origins.is_some() || listed.is_some() || timing.is_some();
        let mut told = Headers::new();
        if !by_origin {
            told.append_by(&ALLOW_ORIGIN, b"*");
        }
        let methods = match config.allow_methods.as_str() {
            "**" => ALL_METHODS,
            methods => methods,
        };
        told.append("Access-Control-Allow-Methods", methods.as_bytes());
        told.append("Access-Control-Max-Age", config.max_age.to_string().as_bytes());
        if let Some(names) = config.expose_headers.filter(|names| !names.is_empty()) {
            told.append("Access-Control-Expose-Headers", names.as_bytes());
        }
        let asked_headers = config.allow_headers == "**";
        if !asked_headers {
            told.append("Access-Control-Allow-Headers", config.allow_headers.as_bytes());
        }
        if config.allow_credential {
            told.append("Access-Control-Allow-Credentials", b"true");
        }
        Ok(Self {
            by_origin,
            // Differs: APISIX says so only where `allow_origins` is not `*`, and a cache then gives
            // one site what another one was told.
            vary: !any
                || pattern_of_origins.is_some()
                || listed.is_some()
                || timing.as_ref().is_some_and(Timing::varies),
            any,
            origins,
            pattern: pattern_of_origins,
            listed,
            timing,
            told,
            asked_headers,
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if self.by_origin {
            let origin = exchange.request.headers.get_by(&ORIGIN);
            let origin = origin.and_then(|origin| str::from_utf8(origin).ok()).map(Into::into);
            exchange.notes.set(ClientOrigin(origin));
        }
        if *exchange.client_method() == Method::OPTIONS {
            return Ok(Flow::Respond(crate::answers::answer(StatusCode::OK)));
        }
        Ok(Flow::Continue)
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        let origin = match exchange.notes.get::<ClientOrigin>() {
            Some(ClientOrigin(origin)) => origin.as_deref(),
            None => None,
        };
        if self.vary {
            response.headers.append_by(&VARY, b"Origin");
        }
        let headers = &mut response.headers;
        if let Some(allowed) = self.allowed(origin) {
            if self.by_origin {
                headers.set_by(&ALLOW_ORIGIN, allowed.as_bytes());
            }
            headers.take_over(&self.told);
            if self.asked_headers {
                match exchange.request.headers.get("Access-Control-Request-Headers") {
                    Some(names) => headers.set("Access-Control-Allow-Headers", names),
                    None => drop(headers.remove("Access-Control-Allow-Headers")),
                }
            }
        }
        let shown = match &self.timing {
            None => None,
            Some(Timing::Origins(origins)) => {
                origins.of(origin).filter(|shown| matches(origin, shown))
            }
            Some(Timing::Pattern(pattern)) => origin.filter(|o| pattern.is_match(o.as_bytes())),
        };
        if let Some(shown) = shown {
            headers.set("Timing-Allow-Origin", shown.as_bytes());
        }
    }
}

impl Cors {
    /// What `Access-Control-Allow-Origin` says to a client from `origin`; `None`: nothing.
    fn allowed<'a>(&'a self, origin: Option<&'a str>) -> Option<&'a str> {
        if let Some(lists) = &self.listed {
            let on_list = |list: &Origins| list.of(origin).is_some_and(|o| matches(origin, o));
            if lists.iter().any(on_list) {
                return origin;
            }
            // The default says nothing about who is allowed beside the lists.
            if self.any {
                return None;
            }
        }
        let allowed = match &self.pattern {
            Some(pattern) => origin.filter(|origin| pattern.is_match(origin.as_bytes())),
            None => self.origins.of(origin),
        };
        allowed.filter(|allowed| matches(origin, allowed))
    }
}

impl Origins {
    fn read(text: &str) -> Self {
        match text {
            "*" => Self::Any,
            "**" => Self::Asking,
            text if text.contains(',') => Self::Several(
                text.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect(),
            ),
            text => Self::One(text.to_owned()),
        }
    }

    /// What it says to a client from `origin`.
    fn of<'a>(&'a self, origin: Option<&'a str>) -> Option<&'a str> {
        match self {
            Self::Any => Some("*"),
            Self::Asking => Some(origin.unwrap_or("*")),
            Self::One(one) => Some(one),
            Self::Several(all) => origin.filter(|origin| all.contains(*origin)),
        }
    }
}

/// Does what is allowed allow this origin?
fn matches(origin: Option<&str>, allowed: &str) -> bool {
    allowed == "*" || origin == Some(allowed)
}

static ORIGIN: FieldName = FieldName::of_static("Origin");
static VARY: FieldName = FieldName::of_static("Vary");
static ALLOW_ORIGIN: FieldName = FieldName::of_static("Access-Control-Allow-Origin");

/// How lists of origins are written.
const ORIGINS: &str = r"^(\*|\*\*|null|\w+://[^,]+(,\w+://[^,]+)*)$";

const ALL_METHODS: &str = "GET,POST,PUT,DELETE,PATCH,HEAD,OPTIONS,CONNECT,TRACE";

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    allow_origins: String,
    allow_methods: String,
    allow_headers: String,
    expose_headers: Option<String>,
    max_age: i64,
    allow_credential: bool,
    allow_origins_by_regex: Option<Vec<String>>,
    allow_origins_by_metadata: Option<Vec<String>>,
    timing_allow_origins: Option<String>,
    timing_allow_origins_by_regex: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::origin::Answer;
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn an_origin_is_held_against_lists_patterns_and_metadata() {
        let metadata = json!({"allow_origins": {"k": "http://m.test,http://n.test", "all": "*"}});
        let two = json!({"allow_origins": "http://a.test,http://b.test:81"});
        let one = json!({"allow_origins": "http://a.test"});
        let pattern =
            json!({"allow_origins_by_regex": ["^https?://.*\\.c\\.test$", "http://d\\.test"]});
        let meta = json!({"allow_origins_by_metadata": ["none", "k"]});
        let both = json!({"allow_origins": "http://a.test", "allow_origins_by_metadata": ["k"]});
        let regex_and_meta = json!({"allow_origins_by_metadata": ["k"], "allow_origins": "**", "allow_origins_by_regex": ["c.test"]});
        for (config, origin, allowed, vary) in [
            (json!({}), None, Some("*"), None),
            (json!({}), Some("http://x"), Some("*"), None),
            (json!({"allow_origins": "**"}), Some("http://x"), Some("http://x"), Some("Origin")),
            (json!({"allow_origins": "**"}), None, Some("*"), Some("Origin")),
            (json!({"allow_origins": "null"}), Some("null"), Some("null"), Some("Origin")),
            (two.clone(), Some("http://b.test:81"), Some("http://b.test:81"), Some("Origin")),
            (two.clone(), Some("http://b.test"), None, Some("Origin")),
            (two, None, None, Some("Origin")),
            (one.clone(), Some("http://a.test"), Some("http://a.test"), Some("Origin")),
            (one.clone(), Some("http://b.test"), None, Some("Origin")),
            (one, None, None, Some("Origin")),
            (pattern.clone(), Some("https://x.c.test"), Some("https://x.c.test"), Some("Origin")),
            (pattern.clone(), Some("https://x.e.test"), None, Some("Origin")),
            (pattern, None, None, Some("Origin")),
            (meta.clone(), Some("http://n.test"), Some("http://n.test"), Some("Origin")),
            (meta, Some("http://a.test"), None, Some("Origin")),
            (json!({"timing_allow_origins": "http://a.test"}), None, Some("*"), Some("Origin")),
            (json!({"timing_allow_origins": "*"}), None, Some("*"), None),
            (
                json!({"allow_origins_by_metadata": ["all"]}),
                Some("http://x"),
                Some("http://x"),
                Some("Origin"),
            ),
            (both.clone(), Some("http://a.test"), Some("http://a.test"), Some("Origin")),
            (both, Some("http://m.test"), Some("http://m.test"), Some("Origin")),
            (regex_and_meta.clone(), Some("http://m.test"), Some("http://m.test"), Some("Origin")),
            (regex_and_meta.clone(), Some("http://c.test"), Some("http://c.test"), Some("Origin")),
            (regex_and_meta, Some("http://a.test"), None, Some("Origin")),
        ] {
            let ran = PluginTest::<Cors>::new()
                .config(config.clone())
                .metadata(Some(&metadata))
                .request_header("Origin", origin)
                .run();
            let said = ran.response.header("access-control-allow-origin");
            assert_eq!(said, allowed, "{config} {origin:?}");
            assert_eq!(ran.response.header("vary"), vary, "{config} {origin:?}");
            let methods = ran.response.header("access-control-allow-methods");
            assert_eq!(methods.is_some(), allowed.is_some(), "{config} {origin:?}");
        }
    }

    #[test]
    fn options_is_answered_and_never_sent_on() {
        let ran = PluginTest::<Cors>::new()
            .config(json!({
                "allow_origins": "**", "allow_methods": "**", "allow_headers": "**",
                "expose_headers": "x-a", "max_age": 9, "allow_credential": true,
            }))
            .request("OPTIONS", "/p")
            .request_header("Origin", Some("http://a.test"))
            .request_header("Access-Control-Request-Headers", Some("x-b,x-c"))
            .run();
        assert_eq!((ran.status, ran.body().as_str()), (200, ""));
        assert!(ran.sent.is_empty());
        for (name, value) in [
            ("access-control-allow-origin", "http://a.test"),
            ("access-control-allow-methods", ALL_METHODS),
            ("access-control-allow-headers", "x-b,x-c"),
            ("access-control-expose-headers", "x-a"),
            ("access-control-max-age", "9"),
            ("access-control-allow-credentials", "true"),
            ("vary", "Origin"),
            ("content-type", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(ran.response.header(name), Some(value), "{name}");
        }
    }

    #[test]
    fn fields_of_the_upstream_give_way_and_its_vary_stays() {
        let ran = PluginTest::<Cors>::new()
            .config(json!({"allow_origins": "http://a.test", "allow_headers": "**"}))
            .request_header("Origin", Some("http://a.test"))
            .origin_answer(
                Answer::text("x")
                    .header("Access-Control-Allow-Origin", "*")
                    .header("Access-Control-Allow-Headers", "x-own")
                    .header("Vary", "Accept"),
            )
            .run();
        assert_eq!(ran.response.all("access-control-allow-origin"), ["http://a.test"]);
        assert_eq!(
            ran.response.header("access-control-allow-headers"),
            None,
            "none were asked for"
        );
        assert_eq!(ran.response.all("vary"), ["Accept", "Origin"]);
    }

    #[test]
    fn timing_is_shown_to_those_it_names() {
        let regex = json!({"timing_allow_origins_by_regex": [".*\\.t\\.test"]});
        for (config, origin, shown) in [
            (json!({"timing_allow_origins": "*"}), Some("http://x"), Some("*")),
            (
                json!({"timing_allow_origins": "http://a.test"}),
                Some("http://a.test"),
                Some("http://a.test"),
            ),
            (json!({"timing_allow_origins": "http://a.test"}), Some("http://b.test"), None),
            (regex.clone(), Some("http://x.t.test"), Some("http://x.t.test")),
            (regex, Some("http://x"), None),
            (json!({}), Some("http://x"), None),
        ] {
            let ran = PluginTest::<Cors>::new()
                .config(config.clone())
                .request_header("Origin", origin)
                .run();
            assert_eq!(ran.response.header("timing-allow-origin"), shown, "{config}");
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<Cors>::check_schema(&json!({}));
        for (config, error) in [
            (
                json!({"allow_credential": true}),
                "you can not set '*' for other option when 'allow_credential' is true",
            ),
            (
                json!({"allow_origins": "http://a,b"}),
                "property \"allow_origins\" validation failed: failed to match pattern",
            ),
            (json!({"allow_origins_by_regex": ["("]}), ""),
            (json!({"timing_allow_origins_by_regex": ["("]}), ""),
        ] {
            let said = crate::tests::refusal::<Cors>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

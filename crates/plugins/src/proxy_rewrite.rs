//! `proxy-rewrite`: send a request on with another path, host, method or other header fields.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/proxy-rewrite/>
//!
//! What the new path is made of is decoded text, and is escaped as a whole once it is put together.
//! Only a `?` that the configuration itself has begins a query; one in a variable or in the client's
//! path stays part of the path.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, OwnForwarded, Response};
use sluicegate_gateway::http::FieldName;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_gateway::uri;
use tracing::error;

use crate::headers::{HeaderOps, fields, texts};
use crate::pcre::{Captures, Pcre, Replacement};
use crate::template::Template;

/// The plugin, compiled.
pub struct ProxyRewrite {
    target: Target,
    /// Work with the target as it was sent, and escape nothing that can stand in a request line.
    real_request_uri: bool,
    host: Option<Arc<str>>,
    method: Option<Method>,
    headers: HeaderOps,
    /// Which forwarding fields are among `headers`.
    own_forwarded: OwnForwarded,
}

/// Where the new target comes from.
enum Target {
    /// It stays as the client sent it.
    Kept,
    /// `uri`, parted at its `?`.
    Uri { path: Template, query: Option<Template> },
    /// `regex_uri`: the first that matches.
    Regex(Vec<(Pcre, Replacement)>),
}

impl Plugin for ProxyRewrite {
    const NAME: &'static str = "proxy-rewrite";
    const PRIORITY: i32 = 1008;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        let value = json!({"oneOf": [
            {"type": "string"},
            {"type": "number"},
            {
                "type": "array",
                "minItems": 1,
                "items": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            },
        ]});
        let several = json!({
            "type": "object",
            "minProperties": 1,
            "patternProperties": {"^[^:]+$": value},
        });
        json!({
            "type": "object",
            "properties": {
                "uri": {
                    "type": "string", "minLength": 1, "maxLength": 4096, "pattern": r"^\/.*",
                },
                "method": {"type": "string", "enum": METHODS},
                "regex_uri": {
                    "type": "array", "minItems": 2, "items": {"type": "string"},
                },
                "host": {"type": "string", "pattern": r"^[0-9a-zA-Z-.]+(:\d{1,5})?$"},
                "headers": {
                    "oneOf": [
                        {
                            "type": "object",
                            "minProperties": 1,
                            "additionalProperties": false,
                            "properties": {
                                "add": several,
                                "set": several,
                                "remove": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"type": "string", "pattern": "^[^:]+$"},
                                },
                            },
                        },
                        {
                            "type": "object",
                            "minProperties": 1,
                            "patternProperties": {
                                "^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]},
                            },
                        },
                    ],
                },
                "use_real_request_uri_unsafe": {"type": "boolean", "default": false},
            },
            "minProperties": 1,
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let rules = config.regex_uri.unwrap_or_default();
        if !rules.len().is_multiple_of(2) {
            let text = "The length of regex_uri should be an even number";
            return Err(ConfigError(text.to_owned()));
        }
        let mut patterns = Vec::with_capacity(rules.len() / 2);
        for pair in rules.chunks_exact(2) {
            let compiled = Pcre::compile(&pair[0])
                .and_then(|pattern| Ok((pattern, Replacement::compile(&pair[1])?)));
            patterns.push(compiled.map_err(|error| {
                ConfigError(format!("invalid regex_uri({}, {}): {error}", pair[0], pair[1]))
            })?);
        }
        let target = match config.uri {
            Some(uri) => {
                let (path, query) = Template::compile(&uri).split_query();
                Target::Uri { path, query }
            }
            None if patterns.is_empty() => Target::Kept,
            None => Target::Regex(patterns),
        };
        let headers = config.headers.map(|headers| compile_headers(&headers)).transpose()?;
        let headers = headers.unwrap_or_default();
        let mut own_forwarded = OwnForwarded::default();
        headers.names().for_each(|name| own_forwarded.note(name));
        Ok(Self {
            target,
            real_request_uri: config.use_real_request_uri_unsafe,
            host: config.host.map(Into::into),
            // The schema lists the methods there are.
            method: config.method.and_then(|method| method.parse().ok()),
            headers,
            own_forwarded,
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if let Some(host) = &self.host {
            exchange.host_for_upstream = Some(host.clone());
        }
        let captures = match self.new_target(exchange) {
            Ok(captures) => captures,
            Err(message) => {
                error!(
                    route = exchange.route_id(),
                    error = message,
                    "A path could not be rewritten."
                );
                let body = json!({"error_msg": message});
                return Ok(Flow::Respond(Response::message(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &body,
                )));
            }
        };
        if !self.headers.is_empty() {
            let values = self.headers.values(exchange, &captures);
            self.headers.apply(&mut exchange.request.headers, &values);
            exchange.own_forwarded.add(self.own_forwarded);
        }
        if let Some(method) = &self.method {
            exchange.set_method(method.clone());
        }
        Ok(Flow::Continue)
    }
}

impl ProxyRewrite {
    /// Sets the target to send; says what `regex_uri` captured.
    fn new_target(&self, exchange: &mut Exchange) -> Result<Captures, String> {
        let mut captures = Captures::new();
        let (path, query) = match &self.target {
            // Differs: in APISIX the path is sent on decoded and escaped anew (`%2F` as `/`) even where
            // only header fields are changed.
            Target::Kept => return Ok(captures),
            Target::Uri { path, query } => {
                let mut text = Vec::new();
                if self.real_request_uri {
                    path.write(exchange, &captures, escape_mark, &mut text);
                } else {
                    // Differs: APISIX escapes a `?` of a variable twice, as `%253F`.
                    text = path.render(exchange).into_owned();
                }
                let query = query.as_ref().map(|query| {
                    let mut text = Vec::new();
                    query.write(exchange, &captures, escape_mark, &mut text);
                    text
                });
                (text, query)
            }
            Target::Regex(rules) => {
                let before = match self.real_request_uri {
                    true => Cow::Owned(exchange.request.target().to_vec()),
                    false => Cow::Borrowed(exchange.uri()),
                };
                let Some((groups, after)) = first_match(rules, &before)? else {
                    return Ok(captures);
                };
                captures = groups;
                if self.real_request_uri {
                    exchange.upstream.uri = Some(uri::escape_query(&after).into_owned());
                    return Ok(captures);
                }
                let mark = after.iter().position(|byte| *byte == b'?');
                match mark.filter(|_| !before.contains(&b'?')) {
                    Some(at) => (after[..at].to_vec(), Some(after[at + 1..].to_vec())),
                    None => (after, None),
                }
            }
        };
        let mut target = match self.real_request_uri {
            true => uri::escape_query(&path).into_owned(),
            false => uri::escape_like_nginx(&path).into_owned(),
        };
        exchange.nginx_uri_is_upstreams = !self.real_request_uri;
        let own = match self.real_request_uri {
            true => exchange.request.query(),
            false => exchange.query().filter(|query| !query.is_empty()),
        };
        for (mark, query) in
            [('?', query.as_deref()), (if query.is_some() { '&' } else { '?' }, own)]
        {
            if let Some(query) = query {
                target.push(mark);
                target.push_str(&uri::escape_query(query));
            }
        }
        exchange.upstream.uri = Some(target);
        Ok(captures)
    }
}

/// What the first rule that matches makes of a path.
fn first_match(
    rules: &[(Pcre, Replacement)],
    path: &[u8],
) -> Result<Option<(Captures, Vec<u8>)>, String> {
    for (pattern, replacement) in rules {
        let failed = |error| format!("failed to match the uri: {error}");
        if let Some(captures) = pattern.captures(path).map_err(failed)? {
            let after = pattern.replace(path, replacement, false).map_err(failed)?;
            return Ok(after.map(|after| (captures, after)));
        }
    }
    Ok(None)
}

/// A `?` of a variable does not begin a query.
fn escape_mark(value: &[u8], out: &mut Vec<u8>) {
    for &byte in value {
        match byte {
            b'?' => out.extend_from_slice(b"%3F"),
            byte => out.push(byte),
        }
    }
}

fn compile_headers(config: &Value) -> Result<HeaderOps, ConfigError> {
    if HeaderOps::is_new_form(config) {
        return Ok(HeaderOps::new(
            fields(&config["add"], Template::with_captures),
            fields(&config["set"], Template::with_captures),
            texts(&config["remove"]).map(FieldName::from).collect(),
        ));
    }
    for (name, value) in config.as_object().into_iter().flatten() {
        if name.is_empty() {
            return Err(ConfigError("invalid field length in header".to_owned()));
        }
        if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Err(ConfigError("invalid field character in header".to_owned()));
        }
        if value.as_str().is_some_and(|text| !text.bytes().all(|byte| (32..127).contains(&byte))) {
            return Err(ConfigError("invalid value character in header".to_owned()));
        }
    }
    Ok(HeaderOps::new(Vec::new(), fields(config, Template::with_captures), Vec::new()))
}

const METHODS: [&str; 14] = [
    "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "MKCOL", "COPY", "MOVE", "PROPFIND", "LOCK",
    "UNLOCK", "PATCH", "TRACE",
];

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    uri: Option<String>,
    method: Option<String>,
    regex_uri: Option<Vec<String>>,
    host: Option<String>,
    headers: Option<Value>,
    use_real_request_uri_unsafe: bool,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    fn test(config: Value) -> PluginTest<ProxyRewrite> {
        PluginTest::new().config(config)
    }

    #[test]
    fn the_target_is_made_of_decoded_text_and_escaped_once() {
        let swap = json!({"regex_uri": ["^/test/(.*)/(.*)/(.*)", "/$1_$2_$3"]});
        let args = json!({"regex_uri": ["^/test/(.*)", "/$1?a=c"]});
        let real = |more: Value| {
            let mut config = json!({"use_real_request_uri_unsafe": true});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config
        };
        for (config, target, sent) in [
            (json!({"uri": "/new"}), "/a?x=1", "/new?x=1"),
            (json!({"uri": "/new"}), "/a", "/new"),
            (json!({"uri": "/new?b=2"}), "/a?x=1", "/new?b=2&x=1"),
            (json!({"uri": "/new?"}), "/a", "/new?"),
            (json!({"uri": "/$arg_n/$http_none"}), "/a?n=q", "/q/?n=q"),
            (json!({"uri": "/$uri"}), "/a%20b%3Fc%0D%0A%25", "//a%20b%3Fc%0D%0A%25"),
            (
                json!({"uri": "/x?$arg_n"}),
                "/a?n=a%3Fb%0d%0a%20",
                "/x?a%3Fb%0D%0A%20&n=a%3Fb%0d%0a%20",
            ),
            (swap.clone(), "/test/plugin/proxy/rewrite?q", "/plugin_proxy_rewrite?q"),
            (swap, "/a%2Fb?q", "/a%2Fb?q"),
            (args.clone(), "/test/a%20b", "/a%20b?a=c"),
            (args.clone(), "/test/x?y=1", "/x?a=c&y=1"),
            (args, "/test/x%3Fy", "/x%3Fy%3Fa=c"),
            (json!({"regex_uri": ["^/a", "/1", "^/b", "/2"]}), "/b/c", "/2/c"),
            (json!({"headers": {"X": "1"}}), "/a%2Fb//c/../d?q", "/a%2Fb//c/../d?q"),
            (real(json!({})), "/a%2Fb?x", "/a%2Fb?x"),
            (real(json!({"uri": "/n%2Fo"})), "/a%2Fb?x", "/n%2Fo?x"),
            (real(json!({"uri": "/n?o"})), "/a?x", "/n?o&x"),
            (
                real(json!({"uri": "/$arg_n"})),
                "/a?n=%0d%0aX:%20y%3f",
                "/%0D%0AX:%20y%3F?n=%0d%0aX:%20y%3f",
            ),
            (real(json!({"regex_uri": ["^/a/(.*)", "/$1"]})), "/a/%2F%20?x=/a/", "/%2F%20?x=/a/"),
        ] {
            let ran = test(config.clone()).request("GET", target).run();
            assert_eq!(ran.sent().target, sent, "{config} {target}");
        }
    }

    #[test]
    fn a_search_that_goes_back_too_often_is_500() {
        let ran = test(json!({"regex_uri": [r"^/(?=(a|aa)+$)(a|aa)+\1b$", "/x"]}))
            .request("GET", &format!("/{}", "a".repeat(60)))
            .run();
        assert_eq!(ran.status, 500);
        assert!(ran.body().contains("\"error_msg\":\"failed to match the uri"), "{}", ran.body());
    }

    #[test]
    fn header_fields_are_added_set_and_removed() {
        let ran = test(json!({
            "uri": "/x",
            "headers": {
                "add": {"X-Add": ["a", 2], "X-Ip": "$remote_addr"},
                "set": {"X-Set": "${arg_n ?? none}", "X-Two": ["1", "2"], "X-Num": 1.0},
                "remove": ["X-Gone"],
            },
        }))
        .request_header("X-Add", Some("own"))
        .request_header("X-Set", Some("own"))
        .request_header("X-Gone", Some("own"))
        .run();
        let sent = ran.sent();
        assert_eq!(sent.all("x-add"), ["own", "a", "2"]);
        assert_eq!(sent.all("x-two"), ["1", "2"]);
        for (name, value) in [
            ("x-ip", Some("127.0.0.1")),
            ("x-set", Some("none")),
            ("x-num", Some("1")),
            ("x-gone", None),
        ] {
            assert_eq!(sent.header(name), value, "{name}");
        }
    }

    #[test]
    fn forwarding_fields_are_what_the_plugin_says() {
        let ran = test(json!({"headers": {
            "set": {"X-Forwarded-Proto": "own", "X-Empty": "$arg_none"}, "remove": ["X-Forwarded-Host"],
        }}))
        .request_header("X-Forwarded-Port", Some("1"))
        .request_header("X-Empty", Some("x"))
        .run();
        let sent = ran.sent();
        assert_eq!(sent.all("x-forwarded-proto"), ["own"]);
        assert_eq!((sent.header("x-forwarded-host"), sent.header("x-empty")), (None, None));
        assert_ne!(sent.header("x-forwarded-port"), Some("1"), "the plugin says nothing about it");
    }

    #[test]
    fn captures_stand_in_header_fields_and_are_not_variables_again() {
        let ran = test(json!({
            "regex_uri": ["^/(\\w+)/(.*)$", "/$2"],
            "headers": {"set": {"X-One": "$1|${2}|$9|$http_x_n"}},
        }))
        .request("GET", "/a/$remote_addr")
        .request_header("X-N", Some("n"))
        .run();
        assert_eq!(ran.sent_header("x-one"), Some("a|$remote_addr||n"));
    }

    #[test]
    fn host_and_method_are_replaced_and_the_answer_is_to_the_client_s_method() {
        let ran = test(json!({"host": "h.test:81", "method": "GET", "headers": {"X": 1}}))
            .request("HEAD", "/")
            .run();
        assert_eq!(ran.sent_header("host"), Some("h.test:81"));
        assert_eq!(ran.sent_header("x"), Some("1"));
        assert_eq!((ran.sent().method.as_str(), ran.status, ran.body().as_str()), ("GET", 200, ""));
        let ran = test(json!({"method": "HEAD"})).run();
        assert_eq!((ran.sent().method.as_str(), ran.status), ("HEAD", 200));
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<ProxyRewrite>::check_schema(&json!({"uri": "/"}));
        for (config, error) in [
            (
                json!({"regex_uri": ["^/a", "/b", "^/c"]}),
                "The length of regex_uri should be an even number",
            ),
            (json!({"regex_uri": ["^/(a", "/b"]}), "invalid regex_uri(^/(a, /b): "),
            (json!({"headers": {"X Y": "1"}}), "invalid field character in header"),
            (json!({"headers": {"X": "a\nb"}}), "invalid value character in header"),
            (json!({"uri": "x"}), "property \"uri\" validation failed: failed to match pattern"),
        ] {
            let said = crate::tests::refusal::<ProxyRewrite>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

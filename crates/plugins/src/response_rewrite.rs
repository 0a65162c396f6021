//! `response-rewrite`: change what a client gets: status, header fields, body.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/response-rewrite/>
//!
//! A response that `vars` leave out passes untouched, with its length and without a copy of its body.
//! `filters` need the body whole; it is held up to `max_resp_body_size` bytes.

use base64::Engine;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::WithResponse;
use sluicegate_gateway::body::Body;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::Expr;
use sluicegate_gateway::http::FieldName;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Phases, Plugin};
use tracing::{error, warn};

use crate::coding::Decoder;
use crate::headers::{HeaderOps, fields, texts};
use crate::padding::BASE64;
use crate::pcre::{Captures, Pcre, Replacement};
use crate::template::Template;

/// The plugin, compiled.
pub struct ResponseRewrite {
    vars: Option<Expr>,
    status: Option<StatusCode>,
    headers: HeaderOps,
    body: Option<Bytes>,
    filters: Vec<Filter>,
    body_max: usize,
}

struct Filter {
    pattern: Pcre,
    replacement: Replacement,
    global: bool,
}

/// The bodies that are held, by where the plugin lies that holds each: a global rule may have filters
/// of its own.
#[derive(Default)]
struct HeldBodies(Vec<(usize, Held)>);

/// The body of a response while it is held for filters.
struct Held {
    decoder: Decoder,
    body: Vec<u8>,
    /// It is longer than what is held: the rest passes.
    passes: bool,
}

impl Plugin for ResponseRewrite {
    const NAME: &'static str = "response-rewrite";
    const PRIORITY: i32 = 899;
    const PHASES: Phases = Phases::HEADER_FILTER.and(Phases::BODY_FILTER);
    type Config = Config;

    fn schema() -> Value {
        let named = json!({
            "type": "object",
            "minProperties": 1,
            "patternProperties": {"^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]}},
        });
        json!({
            "type": "object",
            "properties": {
                "max_resp_body_size": {"type": "integer", "minimum": 1, "default": 67108864},
                "headers": {
                    "anyOf": [
                        named,
                        {
                            "properties": {
                                "add": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"type": "string", "pattern": "^[^:]+:[^:]*[^/]$"},
                                },
                                "set": named,
                                "remove": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"type": "string", "pattern": "^[^:]+$"},
                                },
                            },
                        },
                    ],
                },
                "body": {"type": "string"},
                "body_base64": {"type": "boolean", "default": false},
                "status_code": {"type": "integer", "minimum": 200, "maximum": 598},
                "vars": {"type": "array"},
                "filters": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["regex", "replace"],
                        "properties": {
                            "regex": {"type": "string", "minLength": 1},
                            "scope": {"type": "string", "enum": ["once", "global"], "default": "once"},
                            "replace": {"type": "string"},
                            "options": {"type": "string", "default": "jo"},
                        },
                    },
                },
            },
            "dependencies": {
                "body": {"not": {"required": ["filters"]}},
                "filters": {"not": {"required": ["body"]}},
            },
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let body = match (config.body, config.body_base64) {
            (body, false) => body.map(Bytes::from),
            (Some(coded), true) if !coded.is_empty() => Some(
                BASE64
                    .decode(coded)
                    .map_err(|_| ConfigError("invalid base64 content".to_owned()))?
                    .into(),
            ),
            (_, true) => return Err(ConfigError("invalid base64 content".to_owned())),
        };
        let vars = config.vars.as_ref().map(Expr::compile).transpose().map_err(|error| {
            ConfigError(format!("failed to validate the 'vars' expression: {error}"))
        })?;
        let filters = config.filters.unwrap_or_default().into_iter().map(Filter::compile);
        Ok(Self {
            vars,
            // The schema has it between 200 and 598.
            status: config.status_code.and_then(|code| StatusCode::from_u16(code).ok()),
            headers: config
                .headers
                .map(|headers| compile_headers(&headers))
                .transpose()?
                .unwrap_or_default(),
            body,
            filters: filters.collect::<Result<_, _>>()?,
            body_max: config.max_resp_body_size,
        })
    }

    fn phases(&self) -> Phases {
        if self.filters.is_empty() { Phases::HEADER_FILTER } else { Self::PHASES }
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        if let Some(vars) = &self.vars
            && !vars.eval(&WithResponse { exchange, response })
        {
            exchange.skip_body_filter(self);
            return;
        }
        if let Some(status) = self.status {
            response.status = status;
            exchange.status = status.as_u16();
        }
        if let Some(body) = &self.body {
            clear_body_fields(response);
            response.replace_body(Body::from_bytes(body.clone()));
        }
        if !self.filters.is_empty() {
            match Decoder::of(&response.headers) {
                Some(decoder) => {
                    clear_body_fields(response);
                    let held = Held { decoder, body: Vec::new(), passes: false };
                    let held_bodies = &mut exchange.notes.get_or_default::<HeldBodies>().0;
                    held_bodies.push((std::ptr::from_ref(self).addr(), held));
                }
                None => {
                    // Differs: APISIX takes Content-Encoding away and loses the body.
                    warn!(
                        route = exchange.route_id(),
                        "A response has a Content-Encoding that filters cannot read; it passes as it is."
                    );
                    exchange.skip_body_filter(self);
                }
            }
        }
        if !self.headers.is_empty() {
            let values =
                self.headers.values(&WithResponse { exchange, response }, &Captures::new());
            self.headers.apply(&mut response.headers, &values);
        }
    }

    fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        let own = std::ptr::from_ref(self).addr();
        let held = exchange.notes.get_mut::<HeldBodies>();
        let held = held.and_then(|held| held.0.iter_mut().find(|(at, _)| *at == own));
        let Some((_, held)) = held else { return };
        let before = held.body.len();
        if let Err(cause) = held.decoder.decode(piece, last, &mut held.body) {
            // What was decoded so far is all there is.
            error!(%cause, "The body of a response could not be decoded for filters.");
        }
        if held.passes || (held.body.len() > self.body_max && before <= self.body_max) {
            // Differs: APISIX cuts the body off there.
            if !held.passes {
                warn!(
                    limit = self.body_max,
                    "A response body is longer than max_resp_body_size; it passes without filters."
                );
            }
            held.passes = true;
            *piece = std::mem::take(&mut held.body).into();
            return;
        }
        *piece = Bytes::new();
        if !last {
            return;
        }
        let mut body = std::mem::take(&mut held.body);
        for filter in &self.filters {
            match filter.pattern.replace(&body, &filter.replacement, filter.global) {
                Ok(Some(changed)) => body = changed,
                Ok(None) => {}
                Err(cause) => error!(%cause, "A filter gave up on the body of a response."),
            }
        }
        *piece = body.into();
    }
}

impl Filter {
    fn compile(config: FilterConfig) -> Result<Self, ConfigError> {
        let FilterConfig { regex, scope, replace, options } = config;
        let invalid = |error| ConfigError(format!("regex \"{regex}\" validation failed: {error}"));
        Ok(Self {
            pattern: Pcre::with_options(&regex, &options).map_err(invalid)?,
            // Differs: APISIX takes a replacement that it cannot read, and fails each time.
            replacement: Replacement::compile(&replace).map_err(invalid)?,
            global: scope == "global",
        })
    }
}

/// Takes out what the head says about the body before it was changed.
pub(crate) fn clear_body_fields(response: &mut Response) {
    for name in ["Content-Length", "Content-Encoding", "Last-Modified", "ETag"] {
        response.headers.remove(name);
    }
}

fn compile_headers(config: &Value) -> Result<HeaderOps, ConfigError> {
    if !HeaderOps::is_new_form(config) {
        if config.as_object().is_some_and(|fields| fields.keys().any(String::is_empty)) {
            return Err(ConfigError("invalid field length in header".to_owned()));
        }
        let mut values = config.as_object().into_iter().flatten().map(|(_, value)| value);
        if values.any(|value| !value.is_string() && !value.is_number()) {
            return Err(ConfigError("invalid type as header value".to_owned()));
        }
        return Ok(HeaderOps::new(Vec::new(), fields(config, Template::compile), Vec::new()));
    }
    let add = texts(&config["add"]).filter_map(|line| line.split_once(':'));
    let add = add
        .map(|(name, value)| (name.trim_end().into(), vec![Template::compile(value.trim_start())]));
    Ok(HeaderOps::new(
        add.collect(),
        fields(&config["set"], Template::compile),
        texts(&config["remove"]).map(FieldName::from).collect(),
    ))
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    max_resp_body_size: usize,
    headers: Option<Value>,
    body: Option<String>,
    body_base64: bool,
    status_code: Option<u16>,
    vars: Option<Value>,
    filters: Option<Vec<FilterConfig>>,
}

/// One of `filters`.
#[derive(Debug, Deserialize)]
struct FilterConfig {
    regex: String,
    scope: String,
    replace: String,
    options: String,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use sluicegate_testkit::origin::Answer;
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    fn test(config: Value) -> PluginTest<ResponseRewrite> {
        PluginTest::new().config(config)
    }

    fn gzipped(text: &str) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap()
    }

    fn brotlied(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        ::brotli::CompressorWriter::new(&mut out, 4096, 5, 19).write_all(text.as_bytes()).unwrap();
        out
    }

    #[test]
    fn status_fields_and_body_are_replaced() {
        let ran = test(json!({
            "status_code": 202,
            "body": "hi",
            "headers": {
                "add": ["X-Add: a", "X-Add:$status"],
                "set": {"X-Set": "$arg_n", "X-Num": 3},
                "remove": ["X-Gone"],
            },
        }))
        .request("GET", "/?n=q")
        .origin_answer(
            Answer::status(500)
                .header("X-Add", "own")
                .header("X-Set", "own")
                .header("X-Gone", "own")
                .header("ETag", "\"e\"")
                .header("Last-Modified", "x")
                .header("Content-Encoding", "gzip")
                .body("long text of the upstream"),
        )
        .run();
        assert_eq!((ran.status, ran.body().as_str()), (202, "hi"));
        assert_eq!(ran.response.all("x-add"), ["own", "a", "202"]);
        for (name, value) in [
            ("x-set", Some("q")),
            ("x-num", Some("3")),
            ("x-gone", None),
            ("etag", None),
            ("last-modified", None),
            ("content-encoding", None),
            ("content-length", Some("2")),
        ] {
            assert_eq!(ran.response.header(name), value, "{name}");
        }
    }

    #[test]
    fn a_body_may_be_binary_and_an_older_form_of_headers_sets() {
        for body in ["AAE=", "AAE"] {
            let config = json!({"body": body, "body_base64": true, "headers": {"X": 1, "Y": "y"}});
            let ran = test(config).run();
            assert_eq!(ran.response.body, [0, 1], "{body}");
            let headers = (ran.response.header("x"), ran.response.header("y"));
            assert_eq!(headers, (Some("1"), Some("y")));
        }
        assert_eq!(test(json!({"body": ""})).origin_answer(Answer::text("x")).run().body(), "");
    }

    #[test]
    fn filters_work_on_the_whole_decoded_body() {
        let once = json!({"filters": [{"regex": "Hello", "replace": "Hi"}]});
        let all = json!({"filters": [
            {"regex": "(h)ello", "scope": "global", "replace": "$1i", "options": "i"},
            {"regex": "Hi", "replace": "Ho"},
        ]});
        let text = "Hello hello";
        for (config, answer, body) in [
            (&once, Answer::text(text), "Hi hello"),
            (&all, Answer::text(text), "Ho hi"),
            (&once, Answer::status(200).chunk("Hel").chunk("lo you"), "Hi you"),
            (&once, Answer::text(gzipped(text)).header("Content-Encoding", "gzip"), "Hi hello"),
            (&all, Answer::text(brotlied(text)).header("Content-Encoding", "br"), "Ho hi"),
            (&once, Answer::text(""), ""),
        ] {
            let ran = test(config.clone()).origin_answer(answer.header("ETag", "e")).run();
            assert_eq!(ran.body(), body, "{config}");
            assert_eq!(ran.response.header("content-encoding"), None);
            assert_eq!(ran.response.header("etag"), None);
        }
    }

    #[test]
    fn a_coding_that_cannot_be_read_passes() {
        let ran = test(json!({"filters": [{"regex": "a", "replace": "b"}]}))
            .origin_answer(
                Answer::text("aaa").header("Content-Encoding", "zstd").header("ETag", "e"),
            )
            .run();
        assert_eq!(ran.body(), "aaa");
        for (name, value) in [("content-encoding", "zstd"), ("content-length", "3"), ("etag", "e")]
        {
            assert_eq!(ran.response.header(name), Some(value), "{name}");
        }
    }

    #[test]
    fn a_body_at_the_limit_is_filtered_and_one_past_it_passes() {
        let config = json!({"max_resp_body_size": 4, "filters": [{"regex": "a", "replace": "b"}]});
        for (sent, body) in [("aaaa", "baaa"), ("aaaaa", "aaaaa")] {
            let plain = test(config.clone()).origin_answer(Answer::text(sent)).run();
            assert_eq!(plain.body(), body);
            let coded = Answer::text(gzipped(sent)).header("Content-Encoding", "gzip");
            assert_eq!(test(config.clone()).origin_answer(coded).run().body(), body);
            let pieces = Answer::status(200).chunk(&sent[..3]).chunk(&sent[3..]);
            assert_eq!(test(config.clone()).origin_answer(pieces).run().body(), body);
        }
    }

    #[test]
    fn what_vars_leave_out_keeps_its_length() {
        let config = |status: u16| {
            json!({
                "vars": [["status", "==", status], ["sent_http_x_kind", "==", "a"]],
                "filters": [{"regex": "a", "replace": "b"}],
                "headers": {"set": {"X-Seen": "yes"}},
            })
        };
        for (status, seen, body, length) in
            [(200, Some("yes"), "baa", None), (500, None, "aaa", Some("3"))]
        {
            let ran =
                test(config(status)).origin_answer(Answer::text("aaa").header("X-Kind", "a")).run();
            assert_eq!((ran.response.header("x-seen"), ran.body().as_str()), (seen, body));
            assert_eq!(ran.response.header("content-length"), length);
        }
    }

    #[test]
    fn responses_without_a_body_stay_without_one() {
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
            let config = json!({"filters": [{"regex": "a", "replace": "b"}]});
            let ran = test(config).request(method, "/").origin_answer(Answer::status(status)).run();
            assert_eq!((ran.status, ran.body().as_str()), (status, ""), "{method}");
            let ran = test(json!({"body": "x"}))
                .request(method, "/")
                .origin_answer(Answer::status(status))
                .run();
            assert_eq!((ran.status, ran.body().as_str()), (status, ""), "{method}");
        }
        let ran =
            test(json!({"body": "x", "status_code": 200})).origin_answer(Answer::status(204)).run();
        assert_eq!((ran.status, ran.body().as_str()), (200, "x"));
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        let filter = |regex: &str, options: &str| json!({"filters": [{"regex": regex, "replace": "", "options": options}]});
        for (config, error) in [
            (json!({"body_base64": true}), "invalid base64 content"),
            (json!({"body_base64": true, "body": ""}), "invalid base64 content"),
            (json!({"body_base64": true, "body": "1"}), "invalid base64 content"),
            (json!({"headers": {"X": ["a"]}}), "invalid type as header value"),
            (json!({"vars": [{}]}), "failed to validate the 'vars' expression: "),
            (filter("(", "jo"), "regex \"(\" validation failed: "),
            (filter("a", "h"), "regex \"a\" validation failed: unknown flag \"h\" (flags \"h\")"),
            (
                json!({"status_code": 599}),
                "property \"status_code\" validation failed: expected 599 to be at most 598",
            ),
            (
                json!({"body": "a", "filters": [{"regex": "a", "replace": ""}]}),
                "failed to validate dependent schema for \"body\": ",
            ),
        ] {
            let said = crate::tests::refusal::<ResponseRewrite>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

//! `gzip`: compress responses for clients that take it.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/gzip/>
//!
//! Each piece goes out as soon as it came, so that a stream of events stays one.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Encode, Encoder, Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Phases, Plugin};

use crate::coding::{Which, weaken_etag};

/// The plugin, compiled.
pub struct Gzip {
    which: Which,
    vary: bool,
    level: Arc<Level>,
}

struct Level(Compression);

impl Plugin for Gzip {
    const NAME: &'static str = "gzip";
    const PRIORITY: i32 = 995;
    const PHASES: Phases = Phases::HEADER_FILTER;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "types": Which::types_schema(),
                "min_length": {"type": "integer", "minimum": 1, "default": 20},
                "comp_level": {"type": "integer", "minimum": 1, "maximum": 9, "default": 1},
                "http_version": {"enum": [1.1, 1.0], "default": 1.1},
                "buffers": {
                    "type": "object",
                    "properties": {
                        "number": {"type": "integer", "minimum": 1, "default": 32},
                        "size": {"type": "integer", "minimum": 1, "default": 4096},
                    },
                    "default": {"number": 32, "size": 4096},
                },
                "vary": {"type": "boolean"},
            },
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            which: Which::compile(&config.types, config.min_length, config.http_version),
            vary: config.vary == Some(true),
            level: Arc::new(Level(Compression::new(config.comp_level))),
        })
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        if !self.which.has(exchange, response) {
            return;
        }
        if self.vary {
            response.headers.append("Vary", b"Accept-Encoding");
        }
        if crate::coding::asked(exchange, b"gzip") {
            exchange.encodings.push(self.level.clone());
        }
    }
}

impl Encode for Level {
    fn begin(&self, _: &Exchange, response: &mut Response) -> Option<Box<dyn Encoder>> {
        // The statuses that nginx compresses.
        let status = matches!(
            response.status,
            StatusCode::OK | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
        );
        if !status || response.headers.contains("Content-Encoding") {
            return None;
        }
        response.headers.set("Content-Encoding", b"gzip");
        response.headers.remove("Accept-Ranges");
        weaken_etag(response);
        Some(Box::new(Pieces(GzEncoder::new(Vec::new(), self.0))))
    }
}

struct Pieces(GzEncoder<Vec<u8>>);

impl Encoder for Pieces {
    fn piece(&mut self, piece: &mut Bytes, last: bool) {
        let encoder = &mut self.0;
        // Writing to memory does not fail.
        let _ = encoder.write_all(piece);
        let _ = if last { encoder.try_finish() } else { encoder.flush() };
        *piece = std::mem::take(encoder.get_mut()).into();
    }
}

/// A configuration. Defaults come from the schema. `buffers` is taken and means nothing here.
#[derive(Debug, Deserialize)]
pub struct Config {
    types: Value,
    min_length: u64,
    comp_level: u32,
    http_version: f64,
    vary: Option<bool>,
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use sluicegate_testkit::origin::Answer;
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    const TEXT: &str = "a text that is long enough, a text that is long enough";

    fn answer() -> Answer {
        Answer::status(200).header("Content-Type", "text/html; charset=utf-8").body(TEXT)
    }

    fn run(config: Value, accept: &str, answer: Answer) -> sluicegate_testkit::plugin::Ran {
        PluginTest::<Gzip>::new()
            .config(config)
            .request_header("Accept-Encoding", Some(accept))
            .origin_answer(answer)
            .run()
    }

    #[test]
    fn what_is_compressed_is_the_same_text() {
        for (config, answer) in [
            (json!({}), answer()),
            (json!({"comp_level": 9, "types": ["a/b", "text/html"]}), answer()),
            (json!({"types": "*"}), Answer::text(TEXT).header("Content-Type", "a/b")),
            (
                json!({}),
                Answer::status(404)
                    .header("Content-Type", "text/html")
                    .chunk(&TEXT[..9])
                    .chunk(&TEXT[9..]),
            ),
        ] {
            let ran = run(
                config.clone(),
                "br, gzip;q=0.5",
                answer.header("ETag", "\"e\"").header("Accept-Ranges", "bytes"),
            );
            let mut text = String::new();
            flate2::read::GzDecoder::new(&ran.response.body[..]).read_to_string(&mut text).unwrap();
            assert_eq!(text, TEXT, "{config}");
            for (name, value) in [
                ("content-encoding", Some("gzip")),
                ("content-length", None),
                ("etag", Some("W/\"e\"")),
                ("accept-ranges", None),
                ("vary", None),
            ] {
                assert_eq!(ran.response.header(name), value, "{config} {name}");
            }
        }
    }

    #[test]
    fn what_is_left_alone_keeps_its_length() {
        let html = |status: u16| Answer::status(status).header("Content-Type", "text/html");
        for (config, accept, answer) in [
            (json!({}), "", answer()),
            (json!({}), "gzip;q=0", answer()),
            (json!({}), "gzip", Answer::text(TEXT).header("Content-Type", "text/plain")),
            (json!({"min_length": TEXT.len() + 1}), "gzip", answer()),
            (json!({}), "gzip", answer().header("Content-Encoding", "br")),
            (json!({}), "gzip", html(206).body(TEXT)),
            (json!({}), "gzip", html(500).body(TEXT)),
        ] {
            let ran = run(config.clone(), accept, answer.header("ETag", "\"e\""));
            assert_eq!(ran.body(), TEXT, "{config} {accept}");
            assert_eq!(
                ran.response.header("content-length"),
                Some(TEXT.len().to_string().as_str())
            );
            assert_eq!(ran.response.header("etag"), Some("\"e\""));
        }
        let ran = run(json!({"min_length": TEXT.len()}), "gzip", answer());
        assert_eq!(ran.response.header("content-encoding"), Some("gzip"), "at the limit");
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
            let ran = PluginTest::<Gzip>::new()
                .config(json!({"types": "*"}))
                .request(method, "/")
                .request_header("Accept-Encoding", Some("gzip"))
                .origin_answer(html(status))
                .run();
            assert_eq!(ran.response.header("content-encoding"), None, "{method} {status}");
        }
    }

    #[test]
    fn vary_is_said_to_every_client() {
        for accept in ["gzip", "identity"] {
            let ran = run(json!({"vary": true}), accept, answer().header("Vary", "Cookie"));
            assert_eq!(ran.response.all("vary"), ["Cookie", "Accept-Encoding"]);
        }
        PluginTest::<Gzip>::check_schema(&json!({}));
    }
}

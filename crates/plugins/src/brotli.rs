//! `brotli`: compress responses for clients that take it.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/brotli/>

use std::io::Write;
use std::sync::Arc;

use ::brotli::CompressorWriter;
use ::brotli::enc::BrotliEncoderParams;
use ::brotli::enc::backward_references::BrotliEncoderMode;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Encode, Encoder, Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Phases, Plugin};

use crate::coding::{Which, weaken_etag};

/// The plugin, compiled.
pub struct Brotli {
    which: Which,
    vary: bool,
    params: Arc<Params>,
}

struct Params(BrotliEncoderParams);

impl Plugin for Brotli {
    const NAME: &'static str = "brotli";
    const PRIORITY: i32 = 996;
    const PHASES: Phases = Phases::HEADER_FILTER;
    type Config = Config;

    fn schema() -> Value {
        let numbers = |from: i32| -> Vec<i32> { [0].into_iter().chain(from..=24).collect() };
        json!({
            "type": "object",
            "properties": {
                "types": Which::types_schema(),
                "min_length": {"type": "integer", "minimum": 1, "default": 20},
                "mode": {"type": "integer", "minimum": 0, "maximum": 2, "default": 0},
                "comp_level": {"type": "integer", "minimum": 0, "maximum": 11, "default": 6},
                "lgwin": {"type": "integer", "default": 19, "enum": numbers(10)},
                "lgblock": {"type": "integer", "default": 0, "enum": numbers(16)},
                "http_version": {"enum": [1.1, 1.0], "default": 1.1},
                "vary": {"type": "boolean"},
            },
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let params = BrotliEncoderParams {
            mode: match config.mode {
                1 => BrotliEncoderMode::BROTLI_MODE_TEXT,
                2 => BrotliEncoderMode::BROTLI_MODE_FONT,
                _ => BrotliEncoderMode::BROTLI_MODE_GENERIC,
            },
            quality: config.comp_level,
            lgwin: if config.lgwin == 0 { LGWIN_DEFAULT } else { config.lgwin },
            lgblock: config.lgblock,
            ..BrotliEncoderParams::default()
        };
        Ok(Self {
            which: Which::compile(&config.types, config.min_length, config.http_version),
            vary: config.vary == Some(true),
            params: Arc::new(Params(params)),
        })
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        // Differs: in APISIX this compresses before plugins of lower priority see the body; here all
        // of them see it plain.
        let here =
            !response.headers.contains("Content-Encoding") && self.which.has(exchange, response);
        if here && crate::coding::asked(exchange, b"br") {
            if self.vary {
                response.headers.append("Vary", b"Accept-Encoding");
            }
            exchange.encodings.push(self.params.clone());
        }
    }
}

impl Encode for Params {
    fn begin(&self, _: &Exchange, response: &mut Response) -> Option<Box<dyn Encoder>> {
        // Differs: APISIX compresses a part of a body as if it were all of it.
        let part = response.status == StatusCode::PARTIAL_CONTENT;
        if part || response.headers.contains("Content-Encoding") {
            return None;
        }
        response.headers.set("Content-Encoding", b"br");
        response.headers.remove("Accept-Ranges");
        weaken_etag(response);
        Some(Box::new(Pieces(Some(CompressorWriter::with_params(
            Vec::new(),
            BUFFER_BYTES,
            &self.0,
        )))))
    }
}

struct Pieces(Option<CompressorWriter<Vec<u8>>>);

impl Encoder for Pieces {
    fn piece(&mut self, piece: &mut Bytes, last: bool) {
        let Some(mut encoder) = self.0.take() else { return };
        // Writing to memory does not fail.
        let _ = encoder.write_all(piece);
        if last {
            *piece = encoder.into_inner().into();
            return;
        }
        let _ = encoder.flush();
        *piece = std::mem::take(encoder.get_mut()).into();
        self.0 = Some(encoder);
    }
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    types: Value,
    min_length: u64,
    mode: u8,
    comp_level: i32,
    lgwin: i32,
    lgblock: i32,
    http_version: f64,
    vary: Option<bool>,
}

/// What `lgwin: 0` means: the library's own choice.
const LGWIN_DEFAULT: i32 = 22;

/// Bytes that the encoder takes at once.
const BUFFER_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::io::Read;

    use sluicegate_testkit::origin::Answer;
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    const TEXT: &str = "a text that is long enough, a text that is long enough";

    fn run(config: Value, accept: &str, answer: Answer) -> sluicegate_testkit::plugin::Ran {
        PluginTest::<Brotli>::new()
            .config(config)
            .request_header("Accept-Encoding", Some(accept))
            .origin_answer(answer.header("Content-Type", "text/html"))
            .run()
    }

    #[test]
    fn what_is_compressed_is_the_same_text() {
        for (config, answer, etag, shown) in [
            (json!({}), Answer::status(200).body(TEXT), "\"e\"", Some("W/\"e\"")),
            (
                json!({"mode": 1, "comp_level": 11, "lgwin": 0, "lgblock": 16}),
                Answer::status(500).body(TEXT),
                "W/\"e\"",
                Some("W/\"e\""),
            ),
            (
                json!({"mode": 2, "comp_level": 0, "lgwin": 10, "vary": true}),
                Answer::status(200).chunk(&TEXT[..9]).chunk(&TEXT[9..]),
                "e",
                None,
            ),
        ] {
            let ran = run(config.clone(), "br", answer.header("ETag", etag));
            let mut text = String::new();
            ::brotli::Decompressor::new(&ran.response.body[..], 4096)
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, TEXT, "{config}");
            let vary = config.get("vary").map(|_| "Accept-Encoding");
            for (name, value) in [
                ("content-encoding", Some("br")),
                ("content-length", None),
                ("etag", shown),
                ("vary", vary),
            ] {
                assert_eq!(ran.response.header(name), value, "{config} {name}");
            }
        }
    }

    #[test]
    fn what_is_left_alone_keeps_its_length() {
        for (config, accept, answer) in [
            (json!({"vary": true}), "gzip", Answer::status(200)),
            (json!({"types": ["text/plain"]}), "br", Answer::status(200)),
            (json!({"min_length": TEXT.len() + 1}), "br", Answer::status(200)),
            (json!({}), "br", Answer::status(200).header("Content-Encoding", "x")),
            (json!({}), "br", Answer::status(206)),
        ] {
            let ran = run(config.clone(), accept, answer.body(TEXT));
            assert_eq!(
                (ran.body().as_str(), ran.response.header("vary")),
                (TEXT, None),
                "{config}"
            );
            assert_eq!(
                ran.response.header("content-length"),
                Some(TEXT.len().to_string().as_str())
            );
        }
        PluginTest::<Brotli>::check_schema(&json!({}));
    }
}

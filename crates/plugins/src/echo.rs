//! `echo`: put text before, after or in the place of a response's body, to see what a gateway does.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/echo/>

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::body::Body;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Phases, Plugin};

use crate::headers::text_of;
use crate::response_rewrite::clear_body_fields;

/// The plugin, compiled.
pub struct Echo {
    before: String,
    body: Option<String>,
    after: String,
    headers: Vec<(String, String)>,
}

/// The text before the body has been sent.
struct Begun;

impl Plugin for Echo {
    const NAME: &'static str = "echo";
    const PRIORITY: i32 = 412;
    const PHASES: Phases = Phases::HEADER_FILTER.and(Phases::BODY_FILTER);
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "before_body": {"type": "string"},
                "body": {"type": "string"},
                "after_body": {"type": "string"},
                "headers": {"type": "object", "minProperties": 1},
            },
            "anyOf": [
                {"required": ["before_body"]},
                {"required": ["body"]},
                {"required": ["after_body"]},
            ],
            "minProperties": 1,
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let fields = config.headers.iter().flatten();
        // APISIX stops at the first value that is neither text nor a number; here it is left out.
        let fields = fields.filter(|(_, value)| value.is_string() || value.is_number());
        Ok(Self {
            before: config.before_body.unwrap_or_default(),
            body: config.body,
            after: config.after_body.unwrap_or_default(),
            headers: fields.map(|(name, value)| (name.clone(), text_of(value))).collect(),
        })
    }

    fn phases(&self) -> Phases {
        // With a body of its own everything is known when the head is.
        if self.body.is_some() { Phases::HEADER_FILTER } else { Self::PHASES }
    }

    fn header_filter(&self, _: &mut Exchange, response: &mut Response) {
        clear_body_fields(response);
        if let Some(body) = &self.body {
            let whole = [&*self.before, body, &self.after].concat();
            response.replace_body(Body::from_bytes(whole));
        }
        for (name, value) in &self.headers {
            response.headers.set(name, value.as_bytes());
        }
    }

    fn body_filter(&self, exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
        let begins = exchange.notes.get::<Begun>().is_none();
        let before = if begins { self.before.as_str() } else { "" };
        let after = if last { self.after.as_str() } else { "" };
        if begins {
            exchange.notes.set(Begun);
        }
        if !before.is_empty() || !after.is_empty() {
            *piece = [before.as_bytes(), piece, after.as_bytes()].concat().into();
        }
    }
}

/// A configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    before_body: Option<String>,
    body: Option<String>,
    after_body: Option<String>,
    headers: Option<Map<String, Value>>,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::origin::Answer;
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn texts_stand_around_the_body_or_in_its_place() {
        let around = json!({"before_body": "<", "after_body": ">"});
        for (config, answer, body, length) in [
            (around.clone(), Answer::text("hello"), "<hello>", None),
            (around.clone(), Answer::text(""), "<>", None),
            (around, Answer::status(200).chunk("a").chunk("b"), "<ab>", None),
            (
                json!({"before_body": "<", "body": "x", "after_body": ">"}),
                Answer::text("hello"),
                "<x>",
                Some("3"),
            ),
            (json!({"body": ""}), Answer::text("hello"), "", Some("0")),
        ] {
            let ran = PluginTest::<Echo>::new()
                .config(config.clone())
                .origin_answer(answer.header("ETag", "e").header("Content-Encoding", "gzip"))
                .run();
            assert_eq!(ran.body(), body, "{config}");
            for (name, value) in
                [("content-length", length), ("etag", None), ("content-encoding", None)]
            {
                assert_eq!(ran.response.header(name), value, "{config} {name}");
            }
        }
    }

    #[test]
    fn header_fields_are_set() {
        let ran = PluginTest::<Echo>::new()
            .config(
                json!({"body": "x", "headers": {"Location": "https://a.test", "N": 1, "T": true}}),
            )
            .run();
        let header = |name| ran.response.header(name);
        assert_eq!(
            (header("location"), header("n"), header("t")),
            (Some("https://a.test"), Some("1"), None)
        );
        let said = crate::tests::refusal::<Echo>(&json!({"headers": {"a": "b"}}));
        assert!(said.starts_with("object matches none of the required"), "{said}");
        PluginTest::<Echo>::check_schema(&json!({"body": "x"}));
    }
}

//! `redirect`: answer with another address.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/redirect/>

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_gateway::uri;
use tracing::error;

use crate::pcre::{Pcre, Replacement};
use crate::template::Template;

/// The plugin, compiled.
pub struct Redirect {
    to: To,
    status: StatusCode,
    encode_uri: bool,
    append_query: bool,
    /// `plugin_attr.redirect.https_port`
    https_port: Option<u16>,
    scheme: VarName,
}

enum To {
    Https,
    Nowhere,
    Uri(Template),
    Regex(Pcre, Replacement),
}

impl Plugin for Redirect {
    const NAME: &'static str = "redirect";
    const PRIORITY: i32 = 900;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "ret_code": {"type": "integer", "minimum": 200, "default": 302},
                "uri": {
                    "type": "string",
                    "minLength": 2,
                    "pattern": r"(\\\$[0-9a-zA-Z_]+)|\$\{([0-9a-zA-Z_]+)\}|\$([0-9a-zA-Z_]+)|(\$|[^$\\]+)",
                },
                "regex_uri": {
                    "type": "array", "maxItems": 2, "minItems": 2, "items": {"type": "string"},
                },
                "http_to_https": {"type": "boolean"},
                "encode_uri": {"type": "boolean", "default": false},
                "append_query_string": {"type": "boolean", "default": false},
            },
            "oneOf": [
                {"required": ["uri"]},
                {"required": ["regex_uri"]},
                {"required": ["http_to_https"]},
            ],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        if config.http_to_https.is_some() && config.append_query_string {
            let text = "only one of `http_to_https` and `append_query_string` can be configured.";
            return Err(ConfigError(text.to_owned()));
        }
        let to = match (config.uri, config.regex_uri.as_deref(), config.http_to_https) {
            (Some(uri), ..) => To::Uri(Template::of_nginx(&uri)),
            (None, Some([pattern, replacement]), _) => {
                let invalid = |error| {
                    ConfigError(format!(
                        "invalid regex_uri ({pattern}, {replacement}), err:{error}"
                    ))
                };
                To::Regex(
                    Pcre::compile(pattern).map_err(invalid)?,
                    Replacement::compile(replacement).map_err(invalid)?,
                )
            }
            (None, _, Some(true)) => To::Https,
            _ => To::Nowhere,
        };
        let status = crate::answers::status("ret_code", config.ret_code)?;
        let port = ctx.attr.and_then(|attr| attr["https_port"].as_u64());
        Ok(Self {
            to,
            status,
            encode_uri: config.encode_uri,
            append_query: config.append_query_string,
            https_port: port.and_then(|port| port.try_into().ok()),
            scheme: VarName::parse("http_x_forwarded_proto"),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut status = self.status;
        let location = match &self.to {
            To::Nowhere => return Ok(Flow::Continue),
            To::Https if self.came_by_https(exchange) => return Ok(Flow::Continue),
            To::Https => {
                let kept = matches!(*exchange.client_method(), Method::GET | Method::HEAD);
                status = match kept {
                    true => StatusCode::MOVED_PERMANENTLY,
                    false => StatusCode::PERMANENT_REDIRECT,
                };
                self.https(exchange)
            }
            To::Uri(template) => template.render(exchange).into_owned(),
            To::Regex(pattern, replacement) => {
                match pattern.replace(exchange.uri(), replacement, false) {
                    Ok(Some(location)) => location,
                    Ok(None) => return Ok(Flow::Continue),
                    Err(cause) => {
                        error!(route = exchange.route_id(), %cause, "A path could not be matched for a redirect.");
                        return Ok(Flow::Respond(Response::page(
                            StatusCode::INTERNAL_SERVER_ERROR,
                        )));
                    }
                }
            }
        };
        let mark = location.iter().position(|byte| *byte == b'?');
        let mut location = match self.encode_uri {
            true => {
                let (path, query) = location.split_at(mark.unwrap_or(location.len()));
                let mut encoded = uri::escape_like_nginx(path).into_owned().into_bytes();
                encoded.extend_from_slice(query);
                encoded
            }
            false => location,
        };
        if self.append_query
            && let Some(query) = exchange.query().filter(|query| !query.is_empty())
        {
            location.push(if mark.is_some() { b'&' } else { b'?' });
            location.extend_from_slice(query);
        }
        let mut response = crate::answers::answer(status);
        // Control characters cannot stand in a field: they come from `$uri`, which is decoded.
        let location = match location.iter().any(u8::is_ascii_control) {
            true => uri::escape_query(&location).into_owned().into_bytes(),
            false => location,
        };
        response.headers.append("Location", &location);
        Ok(Flow::Respond(response))
    }
}

impl Redirect {
    fn came_by_https(&self, exchange: &Exchange) -> bool {
        let told = exchange.var(&self.scheme);
        match told.as_ref().and_then(|told| told.to_bytes()) {
            Some(told) => *told == *b"https",
            None => exchange.connection.tls.is_some(),
        }
    }

    /// The same address by HTTPS: on `https_port`, or on the port of a TLS listener here.
    fn https(&self, exchange: &Exchange) -> Vec<u8> {
        let listener = || exchange.settings.listen.iter().find(|listen| listen.tls);
        let port = self.https_port.or_else(|| listener().map(|listen| listen.addr.port()));
        let mut out = b"https://".to_vec();
        out.extend_from_slice(exchange.request.host().as_bytes());
        if let Some(port) = port.filter(|port| !matches!(port, 0 | 443)) {
            out.extend_from_slice(format!(":{port}").as_bytes());
        }
        let target = VarName::parse("request_uri");
        let target = exchange.var(&target);
        out.extend_from_slice(&target.as_ref().and_then(|uri| uri.to_bytes()).unwrap_or_default());
        out
    }
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    ret_code: u16,
    uri: Option<String>,
    regex_uri: Option<Vec<String>>,
    http_to_https: Option<bool>,
    encode_uri: bool,
    append_query_string: bool,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn the_new_address_is_made_of_the_old_one() {
        let regex = json!({"regex_uri": ["^/test/(.*)", "http://h.test/$1"], "ret_code": 301});
        for (config, target, status, location) in [
            (json!({"uri": "/new$uri", "ret_code": 301}), "/p?x=1", 301, Some("/new/p")),
            (json!({"uri": "https://$host.x${uri}"}), "/p", 302, Some("https://127.0.0.1.x/p")),
            (json!({"uri": "$uri/a"}), "/p%0D%0AX", 302, Some("/p%0D%0AX/a")),
            (json!({"uri": "/a b", "encode_uri": true}), "/", 302, Some("/a%20b")),
            (json!({"uri": "/\u{e9}?%41", "encode_uri": true}), "/", 302, Some("/%C3%A9?%41")),
            (json!({"uri": "/a", "append_query_string": true}), "/?x=1", 302, Some("/a?x=1")),
            (json!({"uri": "/a?b", "append_query_string": true}), "/?x=1", 302, Some("/a?b&x=1")),
            (json!({"uri": "/a", "append_query_string": true}), "/?", 302, Some("/a")),
            (regex.clone(), "/test/a/b", 301, Some("http://h.test/a/b")),
            (regex, "/other", 200, None),
            (json!({"http_to_https": true}), "/p?x=1", 301, Some("https://127.0.0.1/p?x=1")),
            (json!({"http_to_https": false}), "/p", 200, None),
        ] {
            let ran = PluginTest::<Redirect>::new()
                .config(config.clone())
                .request("GET", target)
                .request_header("Host", Some("127.0.0.1:9080"))
                .run();
            assert_eq!(ran.status, status, "{config}");
            assert_eq!(ran.response.header("location"), location, "{config}");
        }
    }

    #[test]
    fn https_keeps_the_method_and_asks_only_once() {
        let test = || PluginTest::<Redirect>::new().config(json!({"http_to_https": true}));
        let ran = test().request("POST", "/").request_body("a").run();
        assert_eq!(ran.status, 308);
        let ran = test().request_header("X-Forwarded-Proto", Some("https")).run();
        assert_eq!(ran.status, 301, "nobody said that this client is to be believed");
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<Redirect>::check_schema(&json!({"uri": "/a"}));
        for (config, error) in [
            (
                json!({"http_to_https": true, "append_query_string": true}),
                "only one of `http_to_https` and `append_query_string` can be configured.",
            ),
            (json!({"regex_uri": ["(", "/"]}), "invalid regex_uri ((, /), err:"),
            (json!({"uri": "/a", "ret_code": 1000}), "`ret_code` 1000 is not a status"),
            (json!({"uri": "/a", "http_to_https": true}), "value should match only one schema"),
        ] {
            let said = crate::tests::refusal::<Redirect>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

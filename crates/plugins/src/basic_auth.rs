//! `basic-auth`: tells who sends a request by a user name and a password (RFC 7617).
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/basic-auth/>

use std::any::Any;
use std::sync::Arc;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::consumer::Credential;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::plugin::{
    Auth, CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError,
};

use crate::auth::{Denied, Gate, GateConfig, find, same_secret, typed};
use crate::padding::BASE64;

/// The plugin, compiled.
pub struct BasicAuth {
    gate: Gate,
}

impl Plugin for BasicAuth {
    const NAME: &'static str = "basic-auth";
    const PRIORITY: i32 = 2520;
    const PHASES: Phases = Phases::REWRITE;
    const AUTH: Option<Auth> = Some(Auth { unique: Some("username") });
    type Config = Config;

    fn schema() -> Value {
        let mut schema = Gate::schema("basic", json!({}));
        schema["title"] = json!("work with route or service object");
        schema
    }

    fn consumer_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "title": "work with consumer object",
            "properties": {"username": {"type": "string"}, "password": {"type": "string"}},
            "encrypt_fields": ["password"],
            "required": ["username", "password"],
        }))
    }

    fn compile_consumer(config: Value) -> Result<Arc<dyn Any + Send + Sync>, ConfigError> {
        #[derive(Deserialize)]
        struct OfConsumer {
            password: String,
        }
        Ok(Arc::new(Password(typed::<OfConsumer>(config)?.password.into())))
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self { gate: Gate::new(Self::NAME, "Basic", config.gate) })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let found = who(exchange);
        Ok(self.gate.pass(exchange, found, |exchange| {
            exchange.request.headers.remove("Authorization");
        }))
    }
}

fn who(exchange: &Exchange) -> Result<Arc<Credential>, Denied> {
    let header = exchange.request.headers.get("Authorization");
    let header = header.ok_or(Denied::told("Missing authorization in request"))?;
    let pair =
        pair(header).map_err(|cause| Denied::because("Invalid authorization in request", cause))?;
    let known = known(exchange, &pair);
    let blanks = |part: &[u8]| part.iter().any(u8::is_ascii_whitespace);
    // As APISIX, which drops blanks before it compares: `echo user:password | base64` works.
    if known.is_err() && (blanks(&pair.0) || blanks(&pair.1)) {
        let bare = |part: Vec<u8>| part.into_iter().filter(|b| !b.is_ascii_whitespace()).collect();
        return self::known(exchange, &(bare(pair.0), bare(pair.1)));
    }
    known
}

fn known(
    exchange: &Exchange,
    (user, password): &(Vec<u8>, Vec<u8>),
) -> Result<Arc<Credential>, Denied> {
    let denied = "Invalid user authorization";
    let credential = find(exchange, BasicAuth::NAME, user, "invalid user")
        .map_err(|cause| Denied::because(denied, format!("failed to find user: {cause}")))?;
    match credential.conf::<Password>() {
        Some(Password(right)) if same_secret(right.expose().as_bytes(), password) => Ok(credential),
        _ => Err(Denied::told(denied)),
    }
}

/// User name and password of an `Authorization` value. What it holds is in no error: it may be a
/// password.
///
/// Differs: APISIX takes the part between the first and the second colon for the password, so that a
/// password with a colon in it never matches, and logs what it cannot read.
fn pair(header: &[u8]) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
    let scheme = header.get(..SCHEME.len()).ok_or("Invalid authorization header format")?;
    let rest = header.get(SCHEME.len()..).unwrap_or_default();
    let text = match rest.split_first() {
        Some((blank, text))
            if scheme.eq_ignore_ascii_case(SCHEME) && blank.is_ascii_whitespace() =>
        {
            text.trim_ascii()
        }
        _ => return Err("Invalid authorization header format"),
    };
    let plain = BASE64.decode(text).map_err(|_| "Failed to decode authentication header")?;
    let colon = plain.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or("Split authorization err: invalid decoded data")?;
    Ok((plain[..colon].to_vec(), plain[colon + 1..].to_vec()))
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    gate: GateConfig,
}

struct Password(Secret);

const SCHEME: &[u8] = b"Basic";

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;
    use crate::auth::tests::test;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<BasicAuth>::check_schema(&json!({}));
    }

    #[test]
    fn an_authorization_is_read_as_rfc_7617_has_it() {
        let format = Err("Invalid authorization header format");
        let coding = Err("Failed to decode authentication header");
        for (header, expected) in [
            ("Basic Zm9vOmJhcg==", Ok(("foo", "bar"))),
            ("bASIC Zm9vOmJhcg==", Ok(("foo", "bar"))),
            ("Basic  Zm9vOmJhcg== ", Ok(("foo", "bar"))),
            ("Basic Zm9vOmJhcg", Ok(("foo", "bar"))),
            ("Basic Zm9vOmI6Yw==", Ok(("foo", "b:c"))),
            ("Basic Zm9vOg==", Ok(("foo", ""))),
            ("Basic OmJhcg==", Ok(("", "bar"))),
            ("Basic YmFy", Err("Split authorization err: invalid decoded data")),
            ("Basic ", Err("Split authorization err: invalid decoded data")),
            ("Basic aca_a", coding),
            ("Basic", format),
            ("BasicZm9vOmJhcg==", format),
            ("Bearer Zm9vOmJhcg==", format),
            ("", format),
        ] {
            let expected = expected.map(|(user, password)| (user.into(), password.into()));
            assert_eq!(pair(header.as_bytes()), expected, "{header}");
        }
    }

    #[test]
    fn a_consumer_is_found_by_name_and_password() {
        let all = base64::engine::general_purpose::STANDARD;
        for (pair, outcome) in [
            (Some("jack:jack-pass"), Ok("jack")),
            (Some("rose:rose pass: ü"), Ok("rose")),
            (Some("jack:jack-pass\n"), Ok("jack")),
            (Some("jack:rose-pass"), Err("Invalid user authorization")),
            (Some("jack:"), Err("Invalid user authorization")),
            (Some("jack:jack-pass:more"), Err("Invalid user authorization")),
            (Some("nobody:jack-pass"), Err("Invalid user authorization")),
            (Some("jack"), Err("Invalid authorization in request")),
            (None, Err("Missing authorization in request")),
        ] {
            let header = pair.map(|pair| format!("Basic {}", all.encode(pair)));
            let ran = test::<BasicAuth>()
                .config(json!({"realm": "here", "hide_credentials": true}))
                .request_header("Authorization", header.as_deref())
                .run();
            match outcome {
                Ok(name) => {
                    assert_eq!(ran.sent_header("x-consumer-username"), Some(name), "{pair:?}");
                    assert_eq!(ran.sent_header("authorization"), None);
                }
                Err(message) => {
                    assert_eq!(ran.status, 401, "{pair:?}");
                    assert_eq!(ran.body(), format!("{{\"message\":\"{message}\"}}\n"));
                    let challenge = ran.response.header("www-authenticate");
                    assert_eq!(challenge, Some("Basic realm=\"here\""));
                }
            }
        }
    }
}

//! `jwt-auth`: tells who sends a request by a signed token in a header, the query or a cookie.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/jwt-auth/>
//!
//! Keys are read when a consumer is compiled. A token is verified by the algorithm its consumer has
//! and no other, whatever its header says.

mod verify;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_gateway::consumer::{Credential, JwtClaims};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::plugin::{
    Auth, CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError,
};

use crate::auth::{Denied, Gate, GateConfig, find, typed};
use crate::padding::BASE64;
use verify::{Algorithm, Key, Time, Token};

/// The plugin, compiled.
pub struct JwtAuth {
    gate: Gate,
    header: Box<str>,
    query: Box<str>,
    argument: VarName,
    cookie: Box<str>,
    cookie_var: VarName,
    key_claim: Box<str>,
    times: Box<[Time]>,
    store: bool,
}

impl Plugin for JwtAuth {
    const NAME: &'static str = "jwt-auth";
    const PRIORITY: i32 = 2510;
    const PHASES: Phases = Phases::REWRITE;
    const AUTH: Option<Auth> = Some(Auth { unique: Some("key") });
    type Config = Config;

    fn schema() -> Value {
        Gate::schema(
            "jwt",
            json!({
                "header": {"type": "string", "default": "authorization"},
                "query": {"type": "string", "default": "jwt"},
                "cookie": {"type": "string", "default": "jwt"},
                "key_claim_name": {"type": "string", "default": "key", "minLength": 1},
                "store_in_ctx": {"type": "boolean", "default": false},
                "claims_to_verify": {
                    "type": "array",
                    "items": {"type": "string", "enum": ["exp", "nbf"]},
                    "uniqueItems": true,
                },
            }),
        )
    }

    fn consumer_schema() -> Option<Value> {
        let shared = json!(["HS256", "HS384", "HS512"]);
        let public = json!([
            "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
            "EdDSA",
        ]);
        let mut all = shared.as_array().cloned().unwrap_or_default();
        all.extend(public.as_array().cloned().unwrap_or_default());
        Some(json!({
            "type": "object",
            "properties": {
                "key": {"type": "string", "minLength": 1},
                "secret": {"type": "string", "minLength": 1},
                "algorithm": {"type": "string", "enum": all, "default": "HS256"},
                "exp": {"type": "integer", "minimum": 1, "default": 86400},
                "base64_secret": {"type": "boolean", "default": false},
                "lifetime_grace_period": {"type": "integer", "minimum": 0, "default": 0},
            },
            "dependencies": {"algorithm": {"oneOf": [
                {"properties": {"algorithm": {"enum": shared, "default": "HS256"}}},
                {
                    "properties": {
                        "public_key": {"type": "string", "minLength": 1},
                        "algorithm": {"enum": public},
                    },
                    "required": ["public_key"],
                },
            ]}},
            "encrypt_fields": ["secret"],
            "required": ["key"],
        }))
    }

    fn compile_consumer(config: Value) -> Result<Arc<dyn Any + Send + Sync>, ConfigError> {
        let config: OfConsumer = typed(config)?;
        let algorithm = config.algorithm;
        let key = if algorithm.is_shared() {
            let secret = config.secret.ok_or_else(|| {
                let error = "property \"secret\" is required when using HS based algorithms";
                ConfigError(error.to_owned())
            })?;
            let secret = match config.base64_secret {
                false => Cow::Borrowed(secret.as_bytes()),
                true => Cow::Owned(BASE64.decode(&secret).map_err(|_| {
                    let error = "base64_secret required but the secret is not in base64 format";
                    ConfigError(error.to_owned())
                })?),
            };
            Key::shared(algorithm, &secret)
        } else {
            let pem =
                config.public_key.ok_or(ConfigError("missing valid public key".to_owned()))?;
            Key::public(algorithm, &pem).map_err(ConfigError)?
        };
        Ok(Arc::new(Known { key, grace: config.lifetime_grace_period as f64 }))
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            gate: Gate::new(Self::NAME, "Bearer", config.gate),
            header: config.header.into(),
            argument: VarName::Arg(config.query.as_str().into()),
            query: config.query.into(),
            cookie_var: VarName::Cookie(config.cookie.as_str().into()),
            cookie: config.cookie.into(),
            key_claim: config.key_claim_name.into(),
            times: config.claims_to_verify.into(),
            store: config.store_in_ctx,
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let found = self.who(exchange).map(|(credential, claims)| {
            if self.store {
                exchange.notes.set(JwtClaims(claims));
            }
            credential
        });
        // Differs: APISIX takes a token out of the first place that has one, before it knows whether
        // it is good: the next plugin of `multi-auth` then finds nothing there.
        Ok(self.gate.pass(exchange, found, |exchange| self.hide(exchange)))
    }
}

impl JwtAuth {
    fn who(&self, exchange: &Exchange) -> Result<(Arc<Credential>, Map<String, Value>), Denied> {
        let value = |name: &VarName| match exchange.var(name)? {
            sluicegate_gateway::expr::Value::Str(text) => Some(text),
            _ => None,
        };
        let token = match exchange.request.headers.get(&self.header) {
            Some(text) => Some(Cow::Borrowed(bearer(text))),
            None => value(&self.argument).or_else(|| value(&self.cookie_var)),
        };
        let token = token.ok_or(Denied::told("Missing JWT token in request"))?;
        let token = Token::read(&token).map_err(|cause| {
            Denied::because("JWT token invalid", format!("JWT token invalid: {cause}"))
        })?;
        let key = token.claims.get(&*self.key_claim);
        let key = key.ok_or(Denied::told("missing user key in JWT token"))?;
        let unknown = "Invalid user key in JWT token";
        let invalid = |cause| Denied::because(unknown, format!("failed to find consumer: {cause}"));
        let key = key.as_str().ok_or("invalid user key").map_err(invalid)?;
        let credential =
            find(exchange, Self::NAME, key.as_bytes(), "invalid user key").map_err(invalid)?;
        let not_verified = |cause| Denied::because("failed to verify jwt", cause);
        let known: &Known =
            credential.conf().ok_or_else(|| not_verified("its key is missing".to_owned()))?;
        token.verify(&known.key).map_err(not_verified)?;
        let now = sluicegate_gateway::core::now();
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as f64;
        token.check_times(&self.times, now, known.grace).map_err(not_verified)?;
        Ok((credential, token.claims))
    }

    fn hide(&self, exchange: &mut Exchange) {
        exchange.request.headers.remove(&self.header);
        exchange.remove_argument(self.query.as_bytes());
        let headers = &mut exchange.request.headers;
        if !headers.all("Cookie").any(|line| has_cookie(line, &self.cookie)) {
            return;
        }
        let kept: Vec<&[u8]> = headers
            .all("Cookie")
            .flat_map(|line| line.split(|byte| *byte == b';'))
            .map(<[u8]>::trim_ascii)
            .filter(|pair| !pair.is_empty() && !has_cookie(pair, &self.cookie))
            .collect();
        let kept = kept.join(&b"; "[..]);
        match kept.is_empty() {
            true => drop(headers.remove("Cookie")),
            false => headers.set("Cookie", &kept),
        }
    }
}

/// Is there a cookie of this name?
fn has_cookie(line: &[u8], name: &str) -> bool {
    line.split(|byte| *byte == b';').any(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        pair[..end].trim_ascii() == name.as_bytes()
    })
}

/// What a header holds, without its scheme.
fn bearer(text: &[u8]) -> &[u8] {
    match text.split_at_checked(BEARER.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => token,
        _ => text,
    }
}

/// What a consumer has.
struct Known {
    key: Key,
    grace: f64,
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    gate: GateConfig,
    header: String,
    query: String,
    cookie: String,
    key_claim_name: String,
    store_in_ctx: bool,
    #[serde(default)]
    claims_to_verify: Vec<Time>,
}

#[derive(Deserialize)]
struct OfConsumer {
    secret: Option<String>,
    public_key: Option<String>,
    algorithm: Algorithm,
    base64_secret: bool,
    lifetime_grace_period: u64,
}

const BEARER: &[u8] = b"Bearer ";

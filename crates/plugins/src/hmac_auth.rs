//! `hmac-auth`: tells who sends a request by a signature over parts of it.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/hmac-auth/>

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::StatusCode;
use base64::Engine as _;
use ring::{digest, hmac};
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::consumer::Credential;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::expr::{VarName, Vars};
use sluicegate_gateway::plugin::{
    Auth, CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError,
};

use crate::auth::{Denied, Gate, GateConfig, find, same_secret, typed};
use crate::padding::BASE64;

/// The plugin, compiled.
pub struct HmacAuth {
    gate: Gate,
    allowed: Box<[Algorithm]>,
    clock_skew: Duration,
    signed_headers: Box<[String]>,
    validate_body: bool,
    body_bytes_max: u64,
    request_uri: VarName,
}

impl Plugin for HmacAuth {
    const NAME: &'static str = "hmac-auth";
    const PRIORITY: i32 = 2530;
    const PHASES: Phases = Phases::REWRITE;
    const AUTH: Option<Auth> = Some(Auth { unique: Some("key_id") });
    type Config = Config;

    fn schema() -> Value {
        let algorithms = json!(["hmac-sha1", "hmac-sha256", "hmac-sha512"]);
        let mut schema = Gate::schema(
            "hmac",
            json!({
                "allowed_algorithms": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "enum": algorithms},
                    "default": algorithms,
                },
                "clock_skew": {"type": "integer", "default": 300, "minimum": 1},
                "signed_headers": {
                    "type": "array",
                    "default": ["date"],
                    "items": {"type": "string", "minLength": 1, "maxLength": 50},
                },
                "validate_request_body": {
                    "type": "boolean",
                    "description": "A boolean value telling the plugin to enable body validation",
                    "default": false,
                },
                "max_req_body_size": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 67_108_864,
                    "description": "Most bytes of a body whose digest is checked; 413 beyond.",
                },
            }),
        );
        schema["title"] = json!("work with route or service object");
        schema
    }

    fn consumer_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "title": "work with consumer object",
            "properties": {
                "key_id": {"type": "string", "minLength": 1, "maxLength": 256},
                "secret_key": {"type": "string", "minLength": 1, "maxLength": 256},
            },
            "encrypt_fields": ["secret_key"],
            "required": ["key_id", "secret_key"],
        }))
    }

    fn compile_consumer(config: Value) -> Result<Arc<dyn Any + Send + Sync>, ConfigError> {
        #[derive(Deserialize)]
        struct OfConsumer {
            secret_key: String,
        }
        let secret = typed::<OfConsumer>(config)?.secret_key;
        Ok(Arc::new(Keys(Algorithm::ALL.map(|algorithm| algorithm.key(secret.as_bytes())))))
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self {
            gate: Gate::new(Self::NAME, "hmac", config.gate),
            allowed: config.allowed_algorithms.into(),
            clock_skew: Duration::from_secs(config.clock_skew),
            signed_headers: config.signed_headers.into(),
            validate_body: config.validate_request_body,
            body_bytes_max: config.max_req_body_size,
            request_uri: VarName::parse("request_uri"),
        })
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut found = self.who(exchange);
        if self.validate_body && found.is_ok() {
            // The body is waited for only where who sends it is known.
            if let Err(denied) = self.check_body(exchange).await {
                found = Err(denied);
            }
        }
        Ok(self.gate.pass(exchange, found, |exchange| {
            exchange.request.headers.remove("Authorization");
        }))
    }
}

impl HmacAuth {
    fn who(&self, exchange: &Exchange) -> Result<Arc<Credential>, Denied> {
        let header = exchange.request.headers.get("Authorization");
        let params = header.ok_or("missing Authorization header").and_then(Params::read);
        // Clients are told this much.
        let params = params.map_err(|cause| {
            let told = format!("client request can't be validated: {cause}");
            Denied::because(told.clone(), told)
        })?;
        self.verify(exchange, &params).map_err(invalid)
    }

    fn verify(&self, exchange: &Exchange, params: &Params<'_>) -> Result<Arc<Credential>, String> {
        let headers = &exchange.request.headers;
        let (Some(key_id), Some(signature)) = (params.key_id, params.signature) else {
            return Err("keyId or signature missing".into());
        };
        let algorithm = params.algorithm.ok_or("algorithm missing")?;
        let credential = find(exchange, Self::NAME, key_id.as_bytes(), "Invalid key_id")?;
        let algorithm = Algorithm::ALL.into_iter().find(|known| known.name() == algorithm);
        let algorithm = algorithm.filter(|algorithm| self.allowed.contains(algorithm));
        let algorithm = algorithm.ok_or("Invalid algorithm")?;
        let date = headers.get_str("Date");
        let date = date.ok_or("Date header missing. failed to validate clock skew")?;
        let date = httpdate::parse_http_date(date).map_err(|_| "Invalid GMT format time")?;
        if apart(date, sluicegate_gateway::core::now()) > self.clock_skew {
            return Err("Clock skew exceeded".into());
        }
        let signed: Vec<&str> = params.headers.unwrap_or_default().split(' ').collect();
        if let Some(missing) =
            self.signed_headers.iter().find(|name| !signed.contains(&name.as_str()))
        {
            return Err(format!("expected header \"{missing}\" missing in signing"));
        }
        let key = credential.conf::<Keys>().map(|keys| &keys.0[algorithm as usize]);
        let key = key.ok_or("Invalid key_id")?;
        let signature = BASE64.decode(signature).map_err(|_| "Invalid signature")?;
        let right = |target: &[u8]| {
            let text = signing_string(exchange, key_id, &signed, target);
            hmac::verify(key, &text, &signature).is_ok()
        };
        // Differs: APISIX verifies the path in its normal form only, which is not what a client
        // signs whose path has escapes in it. Both are this request.
        let target = exchange.request.target();
        let normal = exchange.var(&self.request_uri);
        let normal = normal.as_ref().and_then(|value| value.to_bytes());
        let right =
            right(target) || normal.is_some_and(|normal| *normal != *target && right(&normal));
        if right { Ok(credential) } else { Err("Invalid signature".into()) }
    }

    async fn check_body(&self, exchange: &mut Exchange) -> Result<(), Denied> {
        let told = exchange.request.headers.get("Digest").map(<[u8]>::to_vec);
        let told = told.ok_or_else(|| invalid("Invalid digest".to_owned()))?;
        let limit = self.body_bytes_max;
        let body = match exchange.peek_body(limit).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                let message = match exchange.request.headers.get_str("Content-Length") {
                    Some(size) => format!(
                        "request size {size} is greater than the maximum size {limit} allowed"
                    ),
                    None => format!("request is greater than the maximum size {limit} allowed"),
                };
                let cause = format!("failed to read request body: {message}");
                return Err(
                    Denied::because(message, cause).with_status(StatusCode::PAYLOAD_TOO_LARGE)
                );
            }
            Err(error) => {
                let denied = Denied::because("failed to read request body", error);
                return Err(denied.with_status(StatusCode::BAD_REQUEST));
            }
        };
        let right = format!("SHA-256={}", BASE64.encode(digest::digest(&digest::SHA256, &body)));
        match same_secret(right.as_bytes(), &told) {
            true => Ok(()),
            false => Err(invalid("Invalid digest".to_owned())),
        }
    }
}

fn invalid(cause: String) -> Denied {
    let message = "client request can't be validated";
    Denied::because(message, format!("{message}: {cause}"))
}

/// What is signed: the key id, and a line for each header that is named and there.
fn signing_string(exchange: &Exchange, key_id: &str, headers: &[&str], target: &[u8]) -> Vec<u8> {
    let mut out = key_id.as_bytes().to_vec();
    for name in headers {
        if let Some(value) = exchange.request.headers.get(name) {
            out.push(b'\n');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
        } else if *name == "@request-target" {
            out.push(b'\n');
            out.extend_from_slice(exchange.request.method.as_str().as_bytes());
            out.push(b' ');
            out.extend_from_slice(target);
        }
    }
    out.push(b'\n');
    out
}

/// How far two moments are apart.
fn apart(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|error| error.duration())
}

/// What an `Authorization: Signature …` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Params<'a> {
    key_id: Option<&'a str>,
    algorithm: Option<&'a str>,
    signature: Option<&'a str>,
    headers: Option<&'a str>,
}

impl<'a> Params<'a> {
    /// Reads `name="value"` pairs with commas between them. Of a name that comes twice the last
    /// counts; what is no pair is passed over.
    fn read(header: &'a [u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(header).unwrap_or_default();
        let mut rest = text
            .strip_prefix("Signature")
            .ok_or("Authorization header does not start with 'Signature'")?;
        let mut params = Self::default();
        while let Some((name, after)) = rest.split_once("=\"") {
            let Some((value, after)) = after.split_once('"') else { break };
            let name = name.rsplit([',', ' ', '\t']).next().unwrap_or_default();
            let place = match name {
                "keyId" => Some(&mut params.key_id),
                "algorithm" => Some(&mut params.algorithm),
                "signature" => Some(&mut params.signature),
                "headers" => Some(&mut params.headers),
                _ => None,
            };
            if let Some(place) = place {
                *place = Some(value);
            }
            rest = after;
        }
        Ok(params)
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    gate: GateConfig,
    allowed_algorithms: Vec<Algorithm>,
    clock_skew: u64,
    signed_headers: Vec<String>,
    validate_request_body: bool,
    max_req_body_size: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Algorithm {
    #[serde(rename = "hmac-sha1")]
    Sha1,
    #[serde(rename = "hmac-sha256")]
    Sha256,
    #[serde(rename = "hmac-sha512")]
    Sha512,
}

impl Algorithm {
    /// In the order of their discriminants.
    const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "hmac-sha1",
            Self::Sha256 => "hmac-sha256",
            Self::Sha512 => "hmac-sha512",
        }
    }

    fn key(self, secret: &[u8]) -> hmac::Key {
        let hash = match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::Key::new(hash, secret)
    }
}

/// A consumer's secret, made ready for each algorithm.
struct Keys([hmac::Key; 3]);

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;
    use crate::auth::tests::test;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<HmacAuth>::check_schema(&json!({}));
    }

    #[test]
    fn an_authorization_is_read_pair_by_pair() {
        let all = Params {
            key_id: Some("a,b"),
            algorithm: Some("hmac-sha256"),
            signature: Some("c2ln=="),
            headers: Some("@request-target date"),
        };
        let text = "Signature keyId=\"a,b\",algorithm=\"hmac-sha256\", headers=\"@request-target date\",signature=\"c2ln==\"";
        assert_eq!(Params::read(text.as_bytes()), Ok(all));
        for (text, key_id) in [
            ("Signature keyId=\"a\"", Some("a")),
            ("Signature keyId=\"\"", Some("")),
            ("Signature keyId=\"a", None),
            ("Signature keyId=a", None),
            ("Signature other=\"x\",keyId=\"a\"", Some("a")),
            ("Signature keyId=\"a\",keyId=\"b\"", Some("b")),
            ("Signature", None),
        ] {
            let read = Params::read(text.as_bytes()).expect(text);
            assert_eq!(read.key_id, key_id, "{text}");
        }
        let error = "Authorization header does not start with 'Signature'";
        assert_eq!(Params::read(b"Basic x"), Err(error));
    }

    /// Signs `lines` for `jack` and gives the header.
    fn header(algorithm: Algorithm, headers: &str, lines: &str) -> String {
        let tag =
            hmac::sign(&algorithm.key(b"jack-secret"), format!("jack-id\n{lines}").as_bytes());
        format!(
            "Signature keyId=\"jack-id\",algorithm=\"{}\",headers=\"{headers}\",signature=\"{}\"",
            algorithm.name(),
            BASE64.encode(tag)
        )
    }

    #[track_caller]
    fn ask(config: Value, target: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut test = test::<HmacAuth>().config(config).request("POST", target).request_body(body);
        for (name, value) in headers {
            test = test.request_header(name, Some(value));
        }
        let ran = test.run();
        if ran.status == 200 {
            assert_eq!(ran.sent_header("x-consumer-username"), Some("jack"));
            assert_eq!(ran.sent().body, body.as_bytes());
            return (200, String::new());
        }
        (ran.status, ran.response.json()["message"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_signature_over_target_and_headers_tells_who_it_is() {
        let date = httpdate::fmt_http_date(sluicegate_gateway::core::now());
        let line = format!("date: {date}\n");
        let told = "client request can't be validated";
        for algorithm in Algorithm::ALL {
            for (target, headers, lines, config, outcome) in [
                ("/a?b=c", "date", line.clone(), json!({}), 200),
                (
                    "/a?b=c",
                    "@request-target date x-custom",
                    format!("POST /a?b=c\n{line}x-custom: 1\n"),
                    json!({"signed_headers": ["x-custom", "@request-target"]}),
                    200,
                ),
                ("/a%20b", "@request-target date", format!("POST /a%20b\n{line}"), json!({}), 200),
                ("/a%20b", "@request-target date", format!("POST /a b\n{line}"), json!({}), 200),
                ("/b", "@request-target date", format!("POST /a\n{line}"), json!({}), 401),
                ("/a", "date", line.clone(), json!({"signed_headers": ["x-custom"]}), 401),
                ("/a", "date x-none", line.clone(), json!({"signed_headers": ["x-none"]}), 200),
                ("/a", "date", "date: other\n".to_owned(), json!({}), 401),
                ("/a", "", String::new(), json!({"signed_headers": []}), 200),
            ] {
                let padded = header(algorithm, headers, &lines);
                let unpadded = format!("{}\"", padded.trim_end_matches(['"', '=']));
                for authorization in [padded, unpadded] {
                    let sent =
                        [("Authorization", &*authorization), ("Date", &*date), ("X-Custom", "1")];
                    let (status, message) = ask(config.clone(), target, &sent, "");
                    assert_eq!(status, outcome, "{target} {headers} {config}: {message}");
                    if status == 401 {
                        assert_eq!(message, told);
                    }
                }
            }
        }
        let only = json!({"allowed_algorithms": ["hmac-sha512"]});
        let sha1 = header(Algorithm::Sha1, "date", &line);
        assert_eq!(ask(only, "/", &[("Authorization", &sha1), ("Date", &date)], "").0, 401);
    }

    #[test]
    fn what_is_missing_is_told_and_an_old_date_is_refused() {
        let told = "client request can't be validated";
        let now = sluicegate_gateway::core::now();
        for (offset, config, outcome) in [
            (0, json!({}), 200),
            (280, json!({}), 200),
            (320, json!({}), 401),
            (30, json!({"clock_skew": 10}), 401),
        ] {
            for date in [now - Duration::from_secs(offset), now + Duration::from_secs(offset)] {
                let date = httpdate::fmt_http_date(date);
                let signed = header(Algorithm::Sha256, "date", &format!("date: {date}\n"));
                let sent = [("Authorization", &*signed), ("Date", &*date)];
                assert_eq!(ask(config.clone(), "/", &sent, "").0, outcome, "{offset} {config}");
            }
        }
        let missing = format!("{told}: missing Authorization header");
        assert_eq!(ask(json!({}), "/", &[], ""), (401, missing));
        let other = format!("{told}: Authorization header does not start with 'Signature'");
        assert_eq!(ask(json!({}), "/", &[("Authorization", "Basic x")], ""), (401, other));
        let signed = header(Algorithm::Sha256, "", "");
        for date in [None, Some("yesterday")] {
            let mut sent = vec![("Authorization", &*signed)];
            sent.extend(date.map(|date| ("Date", date)));
            let config = json!({"signed_headers": []});
            assert_eq!(ask(config, "/", &sent, ""), (401, told.to_owned()));
        }
    }

    #[test]
    fn a_body_is_compared_with_its_digest_and_limited() {
        let date = httpdate::fmt_http_date(sluicegate_gateway::core::now());
        let digest = |body: &str| {
            let sum = digest::digest(&digest::SHA256, body.as_bytes());
            format!("SHA-256={}", BASE64.encode(sum))
        };
        let signed = header(Algorithm::Sha256, "date", &format!("date: {date}\n"));
        let config = json!({"validate_request_body": true, "max_req_body_size": 10});
        let told = "client request can't be validated";
        let large = "request size 11 is greater than the maximum size 10 allowed";
        for (body, sum, outcome) in [
            ("0123456789", Some(digest("0123456789")), (200, "")),
            ("", Some(digest("")), (200, "")),
            ("0123456789", Some(digest("012345678")), (401, told)),
            ("0123456789", None, (401, told)),
            ("0123456789a", Some(digest("0123456789a")), (413, large)),
        ] {
            let mut sent = vec![("Authorization", &*signed), ("Date", &*date)];
            sent.extend(sum.as_deref().map(|sum| ("Digest", sum)));
            let (status, message) = ask(config.clone(), "/", &sent, body);
            assert_eq!((status, message.as_str()), outcome, "{body}");
        }
    }
}

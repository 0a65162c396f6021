//! `request-id`: give every request an id that upstream and client see.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/request-id/>
//!
//! A request that brings an id keeps it. The id is also the variable `apisix_request_id`.

use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, GivenId, Response};
use sluicegate_gateway::http::FieldName;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use smallvec::SmallVec;

/// The plugin, compiled.
pub struct RequestId {
    header: FieldName,
    in_response: bool,
    algorithm: Algorithm,
}

enum Algorithm {
    Uuid,
    UuidV7,
    Nanoid,
    Ksuid,
    Range { length: usize, chars: Vec<u8> },
}

impl Plugin for RequestId {
    const NAME: &'static str = "request-id";
    const PRIORITY: i32 = 12015;
    const PHASES: Phases = Phases::REWRITE.and(Phases::HEADER_FILTER);
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "header_name": {"type": "string", "default": "X-Request-Id"},
                "include_in_response": {"type": "boolean", "default": true},
                "algorithm": {
                    "type": "string",
                    "enum": ["uuid", "nanoid", "range_id", "ksuid", "uuidv7"],
                    "default": "uuid",
                },
                "range_id": {
                    "type": "object",
                    "properties": {
                        "length": {"type": "integer", "minimum": 6, "default": 16},
                        "char_set": {"type": "string", "minLength": 6, "default": CHARS},
                    },
                    "default": {"length": 16, "char_set": CHARS},
                },
            },
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let algorithm = match config.algorithm.as_str() {
            "uuidv7" => Algorithm::UuidV7,
            "nanoid" => Algorithm::Nanoid,
            "ksuid" => Algorithm::Ksuid,
            "range_id" => {
                let RangeId { length, char_set } = config.range_id;
                // Differs: APISIX takes any length, and characters that cannot stand in a field.
                if length > RANGE_LENGTH_MAX {
                    let text = format!("`range_id.length` {length} is over {RANGE_LENGTH_MAX}");
                    return Err(ConfigError(text));
                }
                if !char_set.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let text = "`range_id.char_set` may only have visible ASCII characters";
                    return Err(ConfigError(text.to_owned()));
                }
                Algorithm::Range { length, chars: char_set.into_bytes() }
            }
            _ => Algorithm::Uuid,
        };
        Ok(Self {
            header: config.header_name.as_str().into(),
            in_response: config.include_in_response,
            algorithm,
        })
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let given = exchange.request.headers.get_by(&self.header);
        let id = match given.filter(|id| !id.is_empty()) {
            Some(id) => SmallVec::from_slice(id),
            None => {
                let id = self.algorithm.id(exchange);
                exchange.request.headers.put_by(&self.header, &id);
                id
            }
        };
        let ids = &mut exchange.apisix_request_ids;
        if !ids.is_empty() {
            // One that is not told leaves that another one is, a global rule's for example.
            let stays = |given: &mut GivenId| {
                given.header != self.header || (given.told && !self.in_response)
            };
            ids.retain(stays);
        }
        ids.push(GivenId { header: self.header.clone(), id, told: self.in_response });
        Ok(Flow::Continue)
    }

    fn waits(&self) -> bool {
        false
    }

    fn phases(&self) -> Phases {
        if self.in_response { Self::PHASES } else { Phases::REWRITE }
    }

    fn header_filter(&self, exchange: &mut Exchange, response: &mut Response) {
        if response.headers.get_by(&self.header).is_some_and(|id| !id.is_empty()) {
            return;
        }
        let mut ids = exchange.apisix_request_ids.iter();
        if let Some(given) = ids.find(|given| given.told && given.header == self.header) {
            response.headers.put_by(&self.header, &given.id);
        }
    }
}

impl Algorithm {
    fn id(&self, exchange: &Exchange) -> SmallVec<[u8; 36]> {
        let core = &exchange.core;
        match self {
            Self::Uuid => {
                let mut raw = [0; 16];
                core.random(&mut raw);
                uuid(raw, 4).into()
            }
            Self::UuidV7 => {
                let mut raw = [0; 16];
                core.random(&mut raw[6..]);
                let millis = since_epoch(exchange).as_millis() as u64;
                raw[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
                uuid(raw, 7).into()
            }
            Self::Nanoid => {
                let mut raw = [0; NANOID_LENGTH];
                core.random(&mut raw);
                SmallVec::from_slice(&raw.map(|byte| NANOID_CHARS[usize::from(byte & 63)]))
            }
            Self::Ksuid => {
                let mut raw = [0; 20];
                core.random(&mut raw[4..]);
                let seconds = since_epoch(exchange).as_secs().saturating_sub(KSUID_EPOCH) as u32;
                raw[..4].copy_from_slice(&seconds.to_be_bytes());
                SmallVec::from_slice(ksuid(raw).as_bytes())
            }
            Self::Range { length, chars } => {
                let mut raw = vec![0; length * 4];
                core.random(&mut raw);
                // 32 random bits for each: what is left of evenness is beyond measure.
                let pick = |four: &[u8]| {
                    let random = u32::from_be_bytes([four[0], four[1], four[2], four[3]]);
                    let at = (u64::from(random) * chars.len() as u64) >> 32;
                    chars[at as usize]
                };
                raw.chunks_exact(4).map(pick).collect()
            }
        }
    }
}

/// The text of a UUID (RFC 9562).
pub(crate) fn uuid(mut raw: [u8; 16], version: u8) -> [u8; 36] {
    raw[6] = raw[6] & 0x0f | version << 4;
    raw[8] = raw[8] & 0x3f | 0x80;
    let mut digits = [0; 32];
    for (four, digits) in raw.as_chunks().0.iter().zip(digits.as_chunks_mut().0) {
        *digits = hex(*four);
    }
    let mut text = [b'-'; 36];
    text[..8].copy_from_slice(&digits[..8]);
    text[9..13].copy_from_slice(&digits[8..12]);
    text[14..18].copy_from_slice(&digits[12..16]);
    text[19..23].copy_from_slice(&digits[16..20]);
    text[24..].copy_from_slice(&digits[20..]);
    text
}

/// Four bytes as eight hexadecimal digits, made all at once.
fn hex(bytes: [u8; 4]) -> [u8; 8] {
    let each = |byte: u8| u64::from_ne_bytes([byte; 8]);
    let mut halves = u64::from(u32::from_be_bytes(bytes));
    halves = ((halves << 16) | halves) & 0x0000_ffff_0000_ffff;
    halves = ((halves << 8) | halves) & 0x00ff_00ff_00ff_00ff;
    halves = ((halves << 4) | halves) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((halves + each(6)) >> 4) & each(1);
    (halves + each(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

fn since_epoch(exchange: &Exchange) -> Duration {
    exchange.started_at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// 20 bytes in base 62, 27 digits (<https://github.com/segmentio/ksuid>).
fn ksuid(mut raw: [u8; 20]) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; 27];
    for digit in text.iter_mut().rev() {
        let mut rest = 0;
        for byte in &mut raw {
            let number = rest << 8 | u32::from(*byte);
            *byte = (number / 62) as u8;
            rest = number % 62;
        }
        *digit = DIGITS[rest as usize];
    }
    text.iter().copied().map(char::from).collect()
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    header_name: String,
    include_in_response: bool,
    algorithm: String,
    range_id: RangeId,
}

#[derive(Debug, Deserialize)]
struct RangeId {
    length: usize,
    char_set: String,
}

/// APISIX's letters; it has no `J`.
const CHARS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIGKLMNOPQRSTUVWXYZ0123456789";

const NANOID_CHARS: &[u8; 64] = b"-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const NANOID_LENGTH: usize = 21;

/// 2014-05-13, when KSUIDs begin to count.
const KSUID_EPOCH: u64 = 1_400_000_000;

/// Characters of a `range_id`.
const RANGE_LENGTH_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::{Client, request_bytes};
    use sluicegate_testkit::origin::Answer;
    use sluicegate_testkit::{InProcess, Origin, PluginTest};

    use super::*;
    use crate::key_auth::KeyAuth;
    use crate::pcre::Pcre;

    #[test]
    fn a_uuid_has_every_byte_in_its_place() {
        let low = std::array::from_fn(|at| 0x10 * at as u8 + 0x0f - at as u8);
        assert_eq!(uuid(low, 7), *b"0f1e2d3c-4b5a-7978-8796-a5b4c3d2e1f0");
        assert_eq!(uuid([0xff; 16], 4), *b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16], 4), *b"00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn every_algorithm_makes_ids_of_its_form() {
        let range =
            json!({"algorithm": "range_id", "range_id": {"length": 512, "char_set": "abcdef"}});
        for (config, form) in [
            (json!({}), "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
            (
                json!({"algorithm": "uuidv7"}),
                "^01[0-9a-f]{6}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
            ),
            (json!({"algorithm": "nanoid"}), "^[-_0-9A-Za-z]{21}$"),
            (json!({"algorithm": "ksuid"}), "^[0-9A-Za-z]{27}$"),
            (json!({"algorithm": "range_id"}), "^[0-9A-Za-z]{16}$"),
            (range, "^[abcdef]{512}$"),
        ] {
            let ids: HashSet<String> = (0..2)
                .map(|_| {
                    let ran = PluginTest::<RequestId>::new().config(config.clone()).run();
                    let id = ran.response.header("x-request-id").unwrap().to_owned();
                    assert!(Pcre::compile(form).unwrap().is_match(id.as_bytes()), "{config}: {id}");
                    assert_eq!(ran.sent_header("x-request-id"), Some(id.as_str()));
                    id
                })
                .collect();
            assert_eq!(ids.len(), 2, "{config}");
        }
    }

    #[test]
    fn ids_in_base_62_have_leading_zeros() {
        assert_eq!(ksuid([0; 20]), "0".repeat(27));
        assert_eq!(ksuid([255; 20]), "aWgEPTl1tmebfsQzFP4bxwgy80V");
    }

    #[test]
    fn an_id_that_is_there_stays() {
        for (config, sent, answered, upstream, shown) in [
            (json!({}), Some("mine"), None, Some("mine"), Some("mine")),
            (json!({}), Some("mine"), Some("theirs"), Some("mine"), Some("theirs")),
            (json!({}), Some("mine"), Some(""), Some("mine"), Some("mine")),
            (json!({"include_in_response": false}), Some("mine"), None, Some("mine"), None),
        ] {
            let mut test = PluginTest::<RequestId>::new()
                .config(config.clone())
                .request_header("X-Request-Id", sent);
            if let Some(answered) = answered {
                test = test.origin_answer(Answer::text("").header("X-Request-Id", answered));
            }
            let ran = test.run();
            assert_eq!(ran.sent_header("x-request-id"), upstream, "{config}");
            assert_eq!(ran.response.header("x-request-id"), shown, "{config}");
        }
        let ran = PluginTest::<RequestId>::new()
            .config(json!({"header_name": "X-Own"}))
            .request_header("X-Own", Some(""))
            .run();
        assert_eq!(ran.sent_header("x-own"), ran.response.header("x-own"));
        assert_eq!(ran.sent_header("x-own").map(str::len), Some(36));
    }

    #[test]
    fn whoever_gave_the_id_says_whether_the_client_is_told() {
        let mut registry = Registry::default();
        registry.add::<KeyAuth>();
        registry.add::<RequestId>();
        let origin = Origin::text("through");
        let route = |told: bool| {
            json!({
                "uri": format!("/{told}"),
                "plugins": {"key-auth": {}, "request-id": {"include_in_response": told}},
                "upstream": {"nodes": {origin.addr.to_string(): 1}},
            })
        };
        // The route's plugin gives the id, the consumer's, in its place, sees the response.
        let consumer = |name: &str, told: bool| {
            json!({
                "username": name,
                "plugins": {"key-auth": {"key": name}, "request-id": {"include_in_response": told}},
            })
        };
        let gateway = InProcess::start(
            registry,
            vec![
                (Kind::Routes, "true", route(true)),
                (Kind::Routes, "false", route(false)),
                (Kind::Consumers, "told", consumer("told", true)),
                (Kind::Consumers, "not", consumer("not", false)),
            ],
        );
        let mut client = Client::connect(gateway.addr);
        for (target, key, told) in
            [("/true", "told", true), ("/true", "not", false), ("/false", "told", false)]
        {
            client.send(request_bytes("GET", target, &[("apikey", key)], b""));
            let response = client.response();
            assert_eq!(response.status, 200);
            assert_eq!(response.header("x-request-id").is_some(), told, "{target} {key}");
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<RequestId>::check_schema(&json!({}));
        let range = |length: u32, chars: &str| json!({"algorithm": "range_id", "range_id": {"length": length, "char_set": chars}});
        for (config, error) in [
            (range(513, "abcdef"), "`range_id.length` 513 is over 512"),
            (range(6, "abcd\u{e9}f"), "`range_id.char_set` may only have visible ASCII"),
            (range(5, "abcdef"), "property \"range_id\" validation failed: property \"length\""),
            (json!({"algorithm": "snowflake"}), "property \"algorithm\" validation failed"),
        ] {
            let said = crate::tests::refusal::<RequestId>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

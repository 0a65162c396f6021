//! The JSON that etcd's gateway speaks: protobuf's JSON form, so bytes are base64 text and 64-bit
//! numbers are text too. What is zero or false may be left out, or null with newer versions.
//!
//! Rules: <https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

/// Bytes as a request carries them.
pub(super) fn text(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// The first key behind all that start with `prefix`.
pub(super) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// What must hold for a transaction to write.
pub(super) fn compare(key: &str, target: Target) -> Value {
    match target {
        Target::Absent => {
            json!({"key": text(key), "target": "VERSION", "result": "EQUAL", "version": "0"})
        }
        Target::Revision(revision) => json!({
            "key": text(key), "target": "MOD", "result": "EQUAL",
            "mod_revision": revision.to_string(),
        }),
        Target::NotAfter(revision) => json!({
            "key": text(key), "target": "MOD", "result": "LESS",
            "mod_revision": (revision + 1).to_string(),
        }),
    }
}

/// What [`compare`] compares with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Absent,
    Revision(u64),
    /// Not changed after this revision, or not there.
    NotAfter(u64),
}

/// The part of every answer that says as of when it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "int")]
    pub(super) cluster_id: u64,
    #[serde(default, deserialize_with = "int")]
    pub(super) revision: u64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Kv {
    #[serde(default, deserialize_with = "bytes")]
    pub(super) key: Bytes,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) value: Bytes,
    #[serde(default, deserialize_with = "int")]
    pub(super) create_revision: u64,
    #[serde(default, deserialize_with = "int")]
    pub(super) mod_revision: u64,
}

/// Answer of `/v3/kv/range`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Range {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) header: Header,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) kvs: Vec<Kv>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) more: bool,
}

/// Answer of `/v3/kv/txn`.
#[derive(Debug, Deserialize)]
pub(super) struct Txn {
    pub(super) header: Header,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) succeeded: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) responses: Vec<Done>,
}

/// What one operation of a transaction did.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Done {
    #[serde(default)]
    pub(super) response_range: Option<Range>,
    #[serde(default)]
    pub(super) response_put: Option<PutDone>,
    #[serde(default)]
    pub(super) response_delete_range: Option<DeleteDone>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct PutDone {
    #[serde(default)]
    pub(super) prev_kv: Option<Kv>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct DeleteDone {
    #[serde(default, deserialize_with = "int")]
    pub(super) deleted: u64,
}

/// Answer of `/v3/lease/grant`.
#[derive(Debug, Deserialize)]
pub(super) struct Lease {
    #[serde(rename = "ID", deserialize_with = "int")]
    pub(super) id: u64,
}

/// Answer of `/v3/auth/authenticate`.
#[derive(Deserialize)]
pub(super) struct Authenticated {
    pub(super) token: String,
}

/// One line of the answer of `/v3/watch`.
#[derive(Debug, Deserialize)]
pub(super) struct WatchLine {
    #[serde(default)]
    pub(super) result: Option<Watched>,
    #[serde(default)]
    pub(super) error: Option<Refusal>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Watched {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) header: Header,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) created: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) canceled: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) cancel_reason: String,
    #[serde(default, deserialize_with = "int")]
    pub(super) compact_revision: u64,
    /// More of the same revision follows.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) fragment: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) events: Vec<WatchEvent>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WatchEvent {
    /// `PUT` when left out.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub(super) kind: String,
    pub(super) kv: Kv,
}

/// An error as etcd words it. Which fields there are depends on its version.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Refusal {
    #[serde(default, alias = "grpc_code")]
    pub(super) code: i64,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    error: Option<String>,
}

impl Refusal {
    /// Reads an answer whose status says that it is an error.
    pub(super) fn parse(status: u16, body: &[u8]) -> Self {
        let mut refusal = serde_json::from_slice(body).unwrap_or_else(|_| Self {
            code: 0,
            message: format!(
                "status {status}: {}",
                String::from_utf8_lossy(body).chars().take(REASON_CHARS_MAX).collect::<String>()
            ),
            error: None,
        });
        if refusal.message.is_empty() {
            refusal.message = refusal.error.take().unwrap_or_else(|| format!("status {status}"));
        }
        refusal
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// A 64-bit number, which is text in this JSON. Signed ones are taken bit by bit: lease ids.
fn int<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    struct Int;
    impl de::Visitor<'_> for Int {
        type Value = u64;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a 64-bit number, as text or as a number")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            let signed = || text.parse::<i64>().map(i64::cast_unsigned);
            text.parse().or_else(|_| signed()).map_err(E::custom)
        }
        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }
        fn visit_i64<E>(self, number: i64) -> Result<u64, E> {
            Ok(number.cast_unsigned())
        }
        fn visit_unit<E>(self) -> Result<u64, E> {
            Ok(0)
        }
    }
    from.deserialize_any(Int)
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    struct Base64;
    impl de::Visitor<'_> for Base64 {
        type Value = Bytes;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("base64 text")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
            STANDARD.decode(text).map(Bytes::from).map_err(E::custom)
        }
        fn visit_unit<E>(self) -> Result<Bytes, E> {
            Ok(Bytes::new())
        }
    }
    from.deserialize_any(Base64)
}

/// How much of an answer that is no JSON an error repeats.
const REASON_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_behind_all_keys_with_the_prefix() {
        for (prefix, end) in
            [("/apisix/", &b"/apisix0"[..]), ("a", b"b"), ("", b"\0"), ("\u{7f}", b"\x80")]
        {
            assert_eq!(range_end(prefix), end, "{prefix}");
        }
    }

    #[test]
    fn what_is_left_out_and_what_is_null_are_zero() {
        for line in [
            r#"{"result":{"header":{"cluster_id":"7","revision":"5"},"events":[{"kv":{"key":"YQ==","mod_revision":"5"}}]}}"#,
            r#"{"result":{"header":{"cluster_id":7,"revision":5},"created":null,"canceled":false,"cancel_reason":"","compact_revision":"0","fragment":null,"events":[{"type":"PUT","kv":{"key":"YQ==","value":null,"create_revision":"0","mod_revision":"5"}}]},"error":null}"#,
        ] {
            let watched = serde_json::from_str::<WatchLine>(line).unwrap().result.unwrap();
            assert_eq!((watched.header.cluster_id, watched.header.revision), (7, 5));
            assert!(!watched.created && !watched.canceled && !watched.fragment);
            let event = &watched.events[0];
            assert_eq!((&event.kv.key[..], event.kv.mod_revision), (&b"a"[..], 5));
            assert!(event.kind != "DELETE");
        }
        let lease: Lease = serde_json::from_str(r#"{"ID":"-2","TTL":"1"}"#).unwrap();
        assert_eq!(lease.id.cast_signed(), -2);
    }

    #[test]
    fn errors_of_every_version_are_understood() {
        for (body, code, message) in [
            (
                r#"{"error":"etcdserver: x","message":"etcdserver: x","code":11}"#,
                11,
                "etcdserver: x",
            ),
            (r#"{"error":"etcdserver: x","code":7}"#, 7, "etcdserver: x"),
            (r#"{"code":7,"message":"etcdserver: x","details":[]}"#, 7, "etcdserver: x"),
            (r#"{"grpc_code":14,"http_code":503,"message":"m","http_status":"x"}"#, 14, "m"),
            ("404 page not found", 0, "status 404: 404 page not found"),
            ("{}", 0, "status 404"),
        ] {
            let refusal = Refusal::parse(404, body.as_bytes());
            assert_eq!((refusal.code, refusal.message.as_str()), (code, message), "{body}");
        }
    }
}

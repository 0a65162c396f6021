//! What may be kept, for how long, and for whom it is: functions from values to values.
//!
//! Rules of RFC 9111 as far as APISIX follows them; where it does not and an answer could reach
//! somebody it was not made for, RFC 9111 holds here.

use std::time::{SystemTime, UNIX_EPOCH};

use http::Method;
use ring::digest::{Context, SHA256};
use sluicegate_gateway::http::Headers;

/// A SHA-256 of length-prefixed parts: no two lists of parts have the same.
pub(super) type Digest = [u8; 32];

/// Makes a [`Digest`] out of parts.
pub(super) struct Parts(Context);

impl Parts {
    pub(super) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(super) fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub(super) fn digest(self) -> Digest {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.0.finish().as_ref());
        digest
    }
}

/// What `Cache-Control` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) only_if_cached: bool,
    pub(super) max_age: Option<u64>,
    pub(super) s_maxage: Option<u64>,
    pub(super) min_fresh: Option<u64>,
}

impl Directives {
    /// Reads every `Cache-Control` of a message. A number that is none counts as 0, the careful way.
    pub(super) fn of(headers: &Headers) -> Self {
        let mut all = Self::default();
        for value in headers.all("Cache-Control") {
            for directive in value.split(|byte| *byte == b',') {
                let mut sides = directive.splitn(2, |byte| *byte == b'=');
                let name = sides.next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
                let value = sides.next();
                let number = value.map_or(0, seconds);
                match &*name {
                    b"no-store" => all.no_store = true,
                    b"no-cache" => all.no_cache = true,
                    b"private" => all.private = true,
                    b"public" => all.public = true,
                    b"must-revalidate" => all.must_revalidate = true,
                    b"only-if-cached" => all.only_if_cached = true,
                    b"max-age" => all.max_age = Some(number),
                    b"s-maxage" => all.s_maxage = Some(number),
                    b"min-fresh" => all.min_fresh = Some(number),
                    _ => {}
                }
            }
        }
        all
    }

    /// May a cache that several clients share keep this answer?
    pub(super) fn forbids_keeping(&self) -> bool {
        self.private || self.no_store || self.no_cache
    }

    /// Does it say that an answer to a request with `Authorization` is for others too (RFC 9111,
    /// section 3.5)?
    pub(super) fn shares_authorized(&self) -> bool {
        self.public || self.must_revalidate || self.s_maxage.is_some()
    }
}

fn seconds(value: &[u8]) -> u64 {
    let value = value.trim_ascii();
    let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let text = std::str::from_utf8(value).unwrap_or_default();
    // Too many digits are a long time.
    text.parse().unwrap_or(SECONDS_MAX).min(SECONDS_MAX)
}

/// Seconds that an answer says it is good for, from the time it was made on. `None`: it does not say.
pub(super) fn lifetime_s(directives: &Directives, headers: &Headers, now_s: u64) -> Option<u64> {
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(seconds);
    }
    let expires = headers.all("Expires").last()?;
    let date = |value: &[u8]| {
        let time: SystemTime = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
        Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
    };
    // Whatever is no date is over already.
    Some(date(expires).map_or(0, |expires| expires.saturating_sub(now_s)))
}

/// nginx's `X-Accel-Expires`: seconds, or a moment behind `@`.
pub(super) fn accel_expires_s(headers: &Headers, now_s: u64) -> Option<u64> {
    let value = headers.get("X-Accel-Expires")?.trim_ascii();
    Some(match value.strip_prefix(b"@") {
        Some(moment) => seconds(moment).saturating_sub(now_s),
        None => seconds(value),
    })
}

/// How old an answer already is, as it says.
pub(super) fn age_s(headers: &Headers) -> u64 {
    headers.get("Age").map_or(0, seconds)
}

/// The request fields that an answer depends on: sorted, in small letters. `None`: it depends on more
/// than can be said, so it is for this request alone.
pub(super) fn vary(headers: &Headers) -> Option<Box<[Box<str>]>> {
    let mut names: Vec<Box<str>> = Vec::new();
    for value in headers.all("Vary") {
        for name in value.split(|byte| *byte == b',') {
            let name = std::str::from_utf8(name.trim_ascii()).ok()?;
            if name == "*" {
                return None;
            }
            if !name.is_empty() {
                names.push(name.to_ascii_lowercase().into());
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    (names.len() <= VARY_NAMES_MAX).then(|| names.into())
}

/// Which variant of a key a request asks for. The answer to a POST is never one for a GET.
pub(super) fn variant(vary: &[Box<str>], headers: &Headers, post: bool) -> Digest {
    let mut parts = Parts::new();
    parts.add(if post { b"POST" } else { b"GET" });
    for name in vary {
        parts.add(name.as_bytes());
        parts.add(&headers.all(name).count().to_le_bytes());
        for value in headers.all(name) {
            parts.add(value);
        }
    }
    parts.digest()
}

/// Does the client have this answer already? The stored one is a 200.
pub(super) fn has_it(method: &Method, request: &Headers, stored: &Headers) -> bool {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    let weak = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let mut tags = request.all("If-None-Match").peekable();
    if tags.peek().is_some() {
        let Some(stored) = stored.get("ETag").map(|tag| weak(tag.trim_ascii())) else {
            return false;
        };
        return tags.any(|list| {
            list.split(|byte| *byte == b',')
                .map(<[u8]>::trim_ascii)
                .any(|tag| tag == b"*" || weak(tag) == stored)
        });
    }
    // nginx wants the very date too.
    match (request.get("If-Modified-Since"), stored.get("Last-Modified")) {
        (Some(since), Some(modified)) => since.trim_ascii() == modified.trim_ascii(),
        _ => false,
    }
}

/// Is this field of an answer kept? What belongs to one connection, to one call or to a client's
/// quota is not.
pub(super) fn is_kept(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    !matches!(
        &*name,
        b"connection"
            | b"keep-alive"
            | b"proxy-authenticate"
            | b"proxy-authorization"
            | b"te"
            | b"trailer"
            | b"trailers"
            | b"transfer-encoding"
            | b"upgrade"
            | b"content-length"
            | b"age"
            | b"apisix-cache-status"
            | b"x-apisix-upstream-status"
    ) && !name.windows(RATE_LEFT.len()).any(|part| part == RATE_LEFT)
}

const RATE_LEFT: &[u8] = b"ratelimit-remaining";

/// 68 years: times beyond are as good as for ever.
const SECONDS_MAX: u64 = 1 << 31;

/// Most request fields that an answer may depend on and still be kept.
const VARY_NAMES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, value.as_bytes());
        }
        headers
    }

    fn directives(text: &str) -> Directives {
        Directives::of(&headers(&[("Cache-Control", text)]))
    }

    #[test]
    fn cache_control_is_read_whatever_its_case_and_blanks() {
        for (text, read) in [
            ("", Directives::default()),
            ("No-Store", Directives { no_store: true, ..Directives::default() }),
            (
                " private , max-age=600",
                Directives { private: true, max_age: Some(600), ..Directives::default() },
            ),
            (
                "public,s-maxage=\"5\"",
                Directives { public: true, s_maxage: Some(5), ..Directives::default() },
            ),
            ("max-age", Directives { max_age: Some(0), ..Directives::default() }),
            ("max-age=-1", Directives { max_age: Some(0), ..Directives::default() }),
            (
                "max-age=99999999999999999999",
                Directives { max_age: Some(SECONDS_MAX), ..Directives::default() },
            ),
            ("max-stale", Directives::default()),
            ("no-cache=\"set-cookie\"", Directives { no_cache: true, ..Directives::default() }),
        ] {
            assert_eq!(directives(text), read, "{text}");
        }
    }

    #[test]
    fn a_lifetime_comes_from_cache_control_and_else_from_the_last_expires() {
        let now = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
        for (fields, lifetime) in [
            (vec![], None),
            (vec![("Cache-Control", "max-age=5")], Some(5)),
            (vec![("Cache-Control", "max-age=5, s-maxage=7")], Some(7)),
            (vec![("Expires", "Sun, 06 Nov 1994 08:49:47 GMT")], Some(10)),
            (vec![("Expires", "Sun, 06 Nov 1994 08:49:27 GMT")], Some(0)),
            (vec![("Expires", "0")], Some(0)),
            (
                vec![
                    ("Expires", "Sun, 06 Nov 1994 08:49:47 GMT"),
                    ("Expires", "Sun, 06 Nov 1994 08:49:40 GMT"),
                ],
                Some(3),
            ),
        ] {
            let headers = headers(&fields);
            let directives = Directives::of(&headers);
            assert_eq!(lifetime_s(&directives, &headers, now), lifetime, "{fields:?}");
        }
        for (value, seconds) in [("0", 0), ("30", 30), ("@784111787", 10), ("@5", 0), ("x", 0)] {
            let headers = headers(&[("X-Accel-Expires", value)]);
            assert_eq!(accel_expires_s(&headers, now), Some(seconds), "{value}");
        }
    }

    #[test]
    fn vary_is_a_sorted_list_and_a_star_is_no_list() {
        let of = |values: &[&str]| {
            let fields: Vec<_> = values.iter().map(|value| ("Vary", *value)).collect();
            vary(&headers(&fields))
        };
        let list = |names: &[&str]| Some(names.iter().map(|name| Box::from(*name)).collect());
        assert_eq!(of(&[]), list(&[]));
        assert_eq!(of(&["B, a", " A ,,c"]), list(&["a", "b", "c"]));
        assert_eq!(of(&["a, *"]), None);
        let many = |n: usize| (0..n).map(|n| format!("x{n}")).collect::<Vec<_>>().join(",");
        assert!(of(&[&many(VARY_NAMES_MAX)]).is_some());
        assert!(of(&[&many(VARY_NAMES_MAX + 1)]).is_none());
    }

    #[test]
    fn different_requests_ask_for_different_variants() {
        let names: [Box<str>; 2] = ["a".into(), "b".into()];
        let all = [
            vec![],
            vec![("a", "1")],
            vec![("b", "1")],
            vec![("a", "1"), ("b", "1")],
            vec![("a", "1"), ("a", "1")],
            vec![("a", "")],
            vec![("a", "1, 1")],
        ];
        let mut seen: Vec<Digest> = Vec::new();
        for fields in &all {
            for post in [false, true] {
                let digest = variant(&names, &headers(fields), post);
                assert!(!seen.contains(&digest), "{fields:?} {post}");
                seen.push(digest);
            }
        }
        let same = |fields: &[(&str, &str)]| variant(&names, &headers(fields), false);
        assert_eq!(same(&[("A", "1"), ("c", "2")]), same(&[("c", "3"), ("a", "1")]));
    }

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let key = |parts: &[&str]| {
            let mut all = Parts::new();
            parts.iter().for_each(|part| all.add(part.as_bytes()));
            all.digest()
        };
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a", ""]), key(&["", "a"]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }

    #[test]
    fn a_client_that_has_the_answer_is_known_by_its_tag_or_date() {
        let stored = headers(&[("ETag", "\"e\""), ("Last-Modified", "Sun, 06 Nov 1994")]);
        for (field, value, has) in [
            ("If-None-Match", "\"e\"", true),
            ("If-None-Match", "\"a\", W/\"e\"", true),
            ("If-None-Match", "*", true),
            ("If-None-Match", "\"a\"", false),
            ("If-Modified-Since", "Sun, 06 Nov 1994", true),
            ("If-Modified-Since", "Mon, 07 Nov 1994", false),
            ("If-Match", "\"e\"", false),
        ] {
            let request = headers(&[(field, value)]);
            assert_eq!(has_it(&Method::GET, &request, &stored), has, "{field}: {value}");
            assert!(!has_it(&Method::POST, &request, &stored));
        }
    }
}

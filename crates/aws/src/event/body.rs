//! Whether a body goes into an event as text or in base64.
//!
//! Whatever the rules say, a body that is no UTF-8 goes in base64: what a function decodes is what
//! the client sent.

use super::fields::Headers;
use super::{EventRequest, EventSettingsError};

/// The rule of one route: the format's own, with two lists over it.
#[derive(Debug, Clone)]
pub(super) struct BodyRule {
    format: FormatRule,
    text: Vec<MediaPattern>,
    binary: Vec<MediaPattern>,
}

impl BodyRule {
    pub(super) fn compile(
        format: FormatRule,
        text: &[String],
        binary: &[String],
    ) -> Result<Self, EventSettingsError> {
        let compile = |field: &'static str, patterns: &[String]| {
            if patterns.len() > PATTERNS_MAX {
                return Err(EventSettingsError::TooManyMediaTypes { field });
            }
            patterns.iter().map(|pattern| MediaPattern::compile(field, pattern)).collect()
        };
        Ok(Self {
            format,
            text: compile("text_types", text)?,
            binary: compile("binary_types", binary)?,
        })
    }

    /// Whether this body goes in base64. A list beats the format's rule, and the binary list beats
    /// the one of texts and every encoding.
    pub(super) fn is_base64(&self, headers: &Headers<'_>, request: &EventRequest<'_>) -> bool {
        let body = request.body;
        if body.is_empty() {
            return false;
        }
        let media = headers.first("content-type").map(essence).unwrap_or_default();
        let listed = |list: &[MediaPattern]| {
            !media.is_empty() && list.iter().any(|pattern| pattern.matches(media))
        };
        let encoded = || {
            let mut encodings = headers.all("content-encoding");
            encodings.any(|value| !value.trim_ascii().eq_ignore_ascii_case(b"identity"))
        };
        let binary = listed(&self.binary)
            || encoded()
            || match self.format {
                _ if listed(&self.text) => false,
                FormatRule::ApiGateway => !media.is_empty() && !is_gateway_text(media),
                FormatRule::Alb => !media.is_empty() && !is_plain_text(media),
                FormatRule::Envoy => !is_plain_text(media) || request.chunked,
                FormatRule::Kong { encode: true } => !is_kong_text(media),
                FormatRule::Kong { encode: false } => false,
            };
        binary || std::str::from_utf8(body).is_err()
    }
}

/// What a format calls text.
#[derive(Debug, Clone, Copy)]
pub(super) enum FormatRule {
    /// Texts, JSON, XML, scripts and forms, also by suffix. Without a content type: text.
    ApiGateway,
    /// text/*, JSON, JavaScript, XML. Without a content type: text.
    Alb,
    /// The same. Without a content type, or with a transfer encoding: base64.
    Envoy,
    /// What Kong reads or passes on raw. With `encode` the rest goes in base64, and what has no
    /// content type.
    Kong { encode: bool },
}

/// `type/subtype`, `type/*` or `*/*`, in lower case.
#[derive(Debug, Clone)]
struct MediaPattern {
    kind: Box<str>,
    subtype: Box<str>,
}

impl MediaPattern {
    fn compile(field: &'static str, given: &str) -> Result<Self, EventSettingsError> {
        let refuse = || EventSettingsError::MediaType { field, given: given.to_owned() };
        let (kind, subtype) = given.split_once('/').ok_or_else(refuse)?;
        let legal = |text: &str| {
            text == "*"
                || (!text.is_empty()
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b)))
        };
        if !legal(kind) || !legal(subtype) || (kind == "*" && subtype != "*") {
            return Err(refuse());
        }
        Ok(Self {
            kind: kind.to_ascii_lowercase().into(),
            subtype: subtype.to_ascii_lowercase().into(),
        })
    }

    fn matches(&self, media: &[u8]) -> bool {
        let (kind, subtype) = split(media);
        (&*self.kind == "*" || kind.eq_ignore_ascii_case(self.kind.as_bytes()))
            && (&*self.subtype == "*" || subtype.eq_ignore_ascii_case(self.subtype.as_bytes()))
    }
}

/// A content type without its parameters.
pub(super) fn essence(value: &[u8]) -> &[u8] {
    let end = memchr::memchr(b';', value).unwrap_or(value.len());
    value[..end].trim_ascii()
}

fn split(media: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'/', media) {
        Some(at) => (&media[..at], &media[at + 1..]),
        None => (media, b""),
    }
}

fn is_one_of(media: &[u8], list: &[&str]) -> bool {
    list.iter().any(|name| media.eq_ignore_ascii_case(name.as_bytes()))
}

fn is_plain_text(media: &[u8]) -> bool {
    split(media).0.eq_ignore_ascii_case(b"text")
        || is_one_of(media, &["application/json", "application/javascript", "application/xml"])
}

fn is_gateway_text(media: &[u8]) -> bool {
    let subtype = split(media).1;
    let ends = |suffix: &[u8]| {
        subtype.len() > suffix.len()
            && subtype[subtype.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
    };
    is_plain_text(media)
        || ends(b"+json")
        || ends(b"+xml")
        || is_one_of(
            media,
            &["application/x-www-form-urlencoded", "application/graphql", "application/x-ndjson"],
        )
}

fn is_kong_text(media: &[u8]) -> bool {
    is_one_of(
        media,
        &[
            "application/json",
            "application/x-www-form-urlencoded",
            "text/plain",
            "text/html",
            "application/xml",
            "text/xml",
            "application/soap+xml",
        ],
    )
}

/// The most entries of each list.
const PATTERNS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_base64(rule: &BodyRule, headers: &[(&str, &str)], body: &[u8]) -> bool {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let request = EventRequest { headers: &headers, body, ..EventRequest::default() };
        rule.is_base64(&Headers::of(&request), &request)
    }

    #[test]
    fn content_type_and_encoding_decide_per_format() {
        use FormatRule::{Alb, ApiGateway, Envoy, Kong};
        let kong = Kong { encode: true };
        // Per content type: API Gateway, ALB, Envoy, Kong.
        for (media, base64) in [
            ("text/plain", [false, false, false, false]),
            ("TEXT/HTML; charset=utf-8", [false, false, false, false]),
            ("text/css", [false, false, false, true]),
            ("application/json", [false, false, false, false]),
            ("application/json;charset=utf-8", [false, false, false, false]),
            ("application/xml", [false, false, false, false]),
            ("application/javascript", [false, false, false, true]),
            ("application/problem+json", [false, true, true, true]),
            ("image/svg+xml", [false, true, true, true]),
            ("application/soap+xml", [false, true, true, false]),
            ("application/x-www-form-urlencoded", [false, true, true, false]),
            ("multipart/form-data; boundary=x", [true, true, true, true]),
            ("image/png", [true, true, true, true]),
            ("application/octet-stream", [true, true, true, true]),
            ("nonsense", [true, true, true, true]),
            ("", [false, false, true, true]),
        ] {
            for (format, base64) in [ApiGateway, Alb, Envoy, kong].into_iter().zip(base64) {
                let rule = BodyRule::compile(format, &[], &[]).unwrap();
                let header = [("Content-Type", media)];
                assert_eq!(is_base64(&rule, &header, b"x"), base64, "{format:?} {media}");
                assert!(!is_base64(&rule, &header, b""), "nothing needs no encoding");
                assert!(is_base64(&rule, &header, b"\xff"), "no UTF-8 is never text");
                let gzip = [("Content-Type", media), ("content-encoding", "gzip")];
                assert!(is_base64(&rule, &gzip, b"x"));
                let identity = [("Content-Type", media), ("content-encoding", "Identity")];
                assert_eq!(is_base64(&rule, &identity, b"x"), base64);
            }
        }
        let envoy = BodyRule::compile(Envoy, &[], &[]).unwrap();
        let headers: [(&str, &[u8]); 1] = [("content-type", b"text/plain")];
        for chunked in [false, true] {
            let request =
                EventRequest { headers: &headers, body: b"x", chunked, ..EventRequest::default() };
            assert_eq!(envoy.is_base64(&Headers::of(&request), &request), chunked);
        }
        let never = BodyRule::compile(Kong { encode: false }, &[], &[]).unwrap();
        assert!(!is_base64(&never, &[("content-type", "image/png")], b"x"));
    }

    #[test]
    fn the_lists_override_the_formats_rule() {
        let list =
            |patterns: &[&str]| patterns.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let text = list(&["application/x-own", "image/*"]);
        let binary = list(&["image/PNG", "application/json"]);
        let rule = BodyRule::compile(FormatRule::ApiGateway, &text, &binary).unwrap();
        for (media, base64) in [
            ("application/x-own; v=1", false),
            ("application/x-other", true),
            ("image/gif", false),
            ("image/png", true),
            ("application/json", true),
            ("", false),
        ] {
            assert_eq!(is_base64(&rule, &[("content-type", media)], b"x"), base64, "{media}");
        }
        let all = BodyRule::compile(FormatRule::ApiGateway, &[], &list(&["*/*"])).unwrap();
        assert!(is_base64(&all, &[("content-type", "text/plain")], b"x"));
        for wrong in ["json", "*/json", "a/", "/b", "a b/c", "text/plain; charset=utf-8"] {
            let error = BodyRule::compile(FormatRule::Alb, &list(&[wrong]), &[]).unwrap_err();
            assert!(error.to_string().contains("text_types"), "{error}");
        }
        let many = vec!["a/b".to_owned(); PATTERNS_MAX + 1];
        assert!(BodyRule::compile(FormatRule::Alb, &many[1..], &many[1..]).is_ok());
        assert!(BodyRule::compile(FormatRule::Alb, &many, &[]).is_err());
    }
}

//! Content codings: reading `gzip` and `br` bodies, and what a client accepts.

use std::io::Write;

use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response, Version};
use sluicegate_gateway::http::{Headers, Known};

/// Takes the content coding of a body away, piece by piece.
pub(crate) enum Decoder {
    /// There is none.
    Plain,
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
    Brotli(Box<::brotli::DecompressorWriter<Vec<u8>>>),
}

impl Decoder {
    /// For a message with these fields; `None`: its coding is not known here.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        let coding = match headers.get("Content-Encoding") {
            None => return Some(Self::Plain),
            Some(coding) => coding.trim_ascii().to_ascii_lowercase(),
        };
        match coding.as_slice() {
            b"" | b"identity" => Some(Self::Plain),
            b"gzip" | b"x-gzip" => {
                Some(Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new()))))
            }
            b"br" => Some(Self::Brotli(Box::new(::brotli::DecompressorWriter::new(
                Vec::new(),
                BROTLI_BUFFER_BYTES,
            )))),
            _ => None,
        }
    }

    /// Appends what a piece decodes to.
    ///
    /// # Errors
    /// The piece is not of this coding.
    pub(crate) fn decode(
        &mut self,
        piece: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        match self {
            Self::Plain => {
                out.extend_from_slice(piece);
                Ok(())
            }
            Self::Gzip(decoder) => {
                let done = decoder.write_all(piece).and_then(|()| match last {
                    true => decoder.try_finish(),
                    false => decoder.flush(),
                });
                out.append(decoder.get_mut());
                done
            }
            Self::Brotli(decoder) => {
                let done = decoder.write_all(piece).and_then(|()| decoder.flush());
                out.append(decoder.get_mut());
                done
            }
        }
    }
}

/// Which responses a compression is for.
pub(crate) struct Which {
    /// Media types; `None`: all.
    types: Option<Vec<String>>,
    length_min: u64,
    /// HTTP/1.0 clients too.
    http10: bool,
}

impl Which {
    /// The schema of `types`.
    pub(crate) fn types_schema() -> Value {
        json!({
            "anyOf": [
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
                {"enum": ["*"]},
            ],
            "default": ["text/html"],
        })
    }

    pub(crate) fn compile(types: &Value, length_min: u64, http_version: f64) -> Self {
        let types =
            types.as_array().map(|_| crate::headers::texts(types).map(str::to_owned).collect());
        Self { types, length_min, http10: http_version < 1.05 }
    }

    /// Is it for this one? A response without a type or of unknown length is as nginx takes it: the
    /// first never, the second always.
    pub(crate) fn has(&self, exchange: &Exchange, response: &Response) -> bool {
        let Some(media) = response.headers.known(Known::ContentType) else { return false };
        let media = media.split(|byte| *byte == b';').next().unwrap_or_default();
        let listed = |types: &Vec<String>| types.iter().any(|listed| listed.as_bytes() == media);
        self.types.as_ref().is_none_or(listed)
            && response.body.remaining().is_none_or(|length| length >= self.length_min)
            && (self.http10 || exchange.request.version != Version::Http10)
    }
}

/// Does the client take this coding?
pub(crate) fn asked(exchange: &Exchange, coding: &[u8]) -> bool {
    exchange.request.headers.get("Accept-Encoding").is_some_and(|text| accepts(text, coding))
}

/// An encoded body is another one byte for byte: its tag tells no more than that the content is the
/// same (RFC 9110 section 8.8.3). One that cannot say so is taken out.
pub(crate) fn weaken_etag(response: &mut Response) {
    let weak = match response.headers.get("ETag") {
        None => return,
        Some([b'W', b'/', b'"', tag @ .., b'"']) if !tag.contains(&b'"') => return,
        Some([b'"', tag @ .., b'"']) if !tag.contains(&b'"') => {
            Some([b"W/\"", tag, b"\""].concat())
        }
        Some(_) => None,
    };
    match weak {
        Some(weak) => response.headers.set("ETag", &weak),
        None => drop(response.headers.remove("ETag")),
    }
}

/// Does an `Accept-Encoding` of this text take this coding (RFC 9110 section 12.5.3)?
pub(crate) fn accepts(text: &[u8], coding: &[u8]) -> bool {
    let mut any = false;
    for item in text.split(|byte| *byte == b',') {
        let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let refused = parts.any(|part| {
            let weight = part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q="));
            weight.is_some_and(|weight| {
                weight.first() == Some(&b'0')
                    && weight[1..].iter().all(|b| matches!(b, b'.' | b'0'))
            })
        });
        if name.eq_ignore_ascii_case(coding) {
            return !refused;
        }
        any |= name == b"*" && !refused;
    }
    any
}

/// Bytes that a brotli decoder works with.
const BROTLI_BUFFER_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_becomes_weak_or_goes() {
        for (tag, weak) in [
            ("\"a\"", Some("W/\"a\"")),
            ("W/\"a\"", Some("W/\"a\"")),
            ("\"\"", Some("W/\"\"")),
            ("a", None),
            ("\"", None),
            ("\"12\"34\"", None),
            ("W/\"12\"34\"", None),
        ] {
            let mut response = Response::page(http::StatusCode::OK);
            response.headers.set("ETag", tag.as_bytes());
            weaken_etag(&mut response);
            assert_eq!(response.headers.get("ETag"), weak.map(str::as_bytes), "{tag}");
        }
    }

    #[test]
    fn a_coding_is_accepted_unless_it_is_left_out_or_weighs_nothing() {
        for (text, coding, accepted) in [
            ("gzip", "gzip", true),
            ("deflate, GZIP;q=0.5", "gzip", true),
            ("gzip;q=0", "gzip", false),
            ("gzip; q=0.000, *", "gzip", false),
            ("gzip;q=0.001", "gzip", true),
            ("*", "br", true),
            ("*;q=0", "br", false),
            ("br;q=0, *", "br", false),
            ("", "gzip", false),
            ("xgzip", "gzip", false),
        ] {
            assert_eq!(accepts(text.as_bytes(), coding.as_bytes()), accepted, "{text} {coding}");
        }
    }
}

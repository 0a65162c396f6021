//! Content codings: reading `gzip` and `br` bodies, and what a client accepts.

use std::io::Write;

use sluicegate_gateway::http::headers::Headers;

/// Takes the content coding of a body away, piece by piece.
pub(crate) enum Decoder {
    /// There is none.
    Plain,
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
    Brotli(Box<brotli::DecompressorWriter<Vec<u8>>>),
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
            b"br" => Some(Self::Brotli(Box::new(brotli::DecompressorWriter::new(
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

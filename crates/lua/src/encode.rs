//! What scripts make of bytes: escapes, arguments, hashes, base64.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use md5::{Digest, Md5};

/// What `ngx.escape_uri` makes: everything but unreserved characters escaped. `kind` 0 leaves what
/// may stand in a path.
pub(crate) fn escape_uri(text: &[u8], kind: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 4);
    for &byte in text {
        let plain = byte.is_ascii_alphanumeric()
            || b"-_.~".contains(&byte)
            || (kind == 2 && b"!'()*".contains(&byte))
            || (kind == 0 && b"!$&'()*+,/:;=@".contains(&byte));
        if plain {
            out.push(byte);
        } else {
            out.push(b'%');
            out.push(HEX_UPPER[usize::from(byte >> 4)]);
            out.push(HEX_UPPER[usize::from(byte & 15)]);
        }
    }
    out
}

/// Escapes resolved, `+` as a space; what is no escape stays.
pub(crate) fn unescape_uri(text: &[u8]) -> Vec<u8> {
    let hex = |at: usize| {
        let digit = char::from(*text.get(at)?).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'+' => out.push(b' '),
            b'%' => match (hex(at), hex(at + 1)) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            byte => out.push(byte),
        }
    }
    out
}

/// Arguments of a query or a form, in order: name, and value unless there is no `=`.
pub(crate) fn arguments(text: &[u8]) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> + '_ {
    text.split(|b| *b == b'&').filter(|part| !part.is_empty()).filter_map(|part| {
        let (name, value) = match part.iter().position(|b| *b == b'=') {
            Some(at) => (&part[..at], Some(unescape_uri(&part[at + 1..]))),
            None => (part, None),
        };
        (!name.is_empty()).then(|| (unescape_uri(name), value))
    })
}

/// The MD5 digest.
pub(crate) fn md5(data: &[u8]) -> [u8; 16] {
    Md5::digest(data).into()
}

/// The SHA-1 digest.
pub(crate) fn sha1(data: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, data).as_ref().to_vec()
}

/// HMAC with SHA-1.
pub(crate) fn hmac_sha1(key: &[u8], data: &[u8]) -> Vec<u8> {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    ring::hmac::sign(&key, data).as_ref().to_vec()
}

/// The CRC-32 of zip and PNG.
pub(crate) fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(data: &[u8]) -> String {
    let digit = |n: u8| char::from(HEX[usize::from(n)]);
    data.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Base64, padded or not.
pub(crate) fn encode_base64(data: &[u8], no_padding: bool) -> String {
    if no_padding { STANDARD_NO_PAD.encode(data) } else { STANDARD.encode(data) }
}

/// Base64 with or without its padding; `None`: it is none.
pub(crate) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    if text.len() - end > 2 {
        return None;
    }
    STANDARD_NO_PAD.decode(&text[..end]).ok()
}

/// Base64 as URLs take it.
pub(crate) fn encode_base64url(data: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(data)
}

/// The reverse of [`encode_base64url`].
pub(crate) fn decode_base64url(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    URL_SAFE_NO_PAD.decode(&text[..end]).ok()
}

/// A text as MySQL takes it, quotes included.
pub(crate) fn quote_sql(text: &[u8]) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in text {
        let escaped = match byte {
            0 => b'0',
            b'\n' => b'n',
            b'\r' => b'r',
            0x1a => b'Z',
            0x08 => b'b',
            b'\t' => b't',
            b'\\' | b'\'' | b'"' => byte,
            byte => {
                out.push(byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', escaped]);
    }
    out.push(b'\'');
    out
}

const HEX: &[u8; 16] = b"0123456789abcdef";
const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_their_specifications() {
        assert_eq!(hex(&md5(b"abc")), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(&sha1(b"abc")), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            hex(&hmac_sha1(b"key", b"The quick brown fox jumps over the lazy dog")),
            "de7c9b85b8b78aa6bc8a7a36f70a90701c9db4d9"
        );
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn escapes_go_both_ways() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape_uri(&escape_uri(&all, 2)), all);
        assert_eq!(escape_uri(b"a b/c?d", 2), b"a%20b%2Fc%3Fd");
        assert_eq!(escape_uri(b"a b/c?d", 0), b"a%20b/c%3Fd");
        assert_eq!(unescape_uri(b"%zz%4"), b"%zz%4");
        assert_eq!(decode_base64(b"aGk="), Some(b"hi".to_vec()));
        assert_eq!(decode_base64(b"aGk"), Some(b"hi".to_vec()));
        assert_eq!(decode_base64(b"!"), None);
        assert_eq!(quote_sql(b"a'b\n"), b"'a\\'b\\n'");
    }

    #[test]
    fn arguments_keep_their_order_and_tell_missing_values() {
        let all: Vec<_> = arguments(b"a=1&b&a=%202&=x&c=").collect();
        let text = |text: &str| text.as_bytes().to_vec();
        assert_eq!(
            all,
            [
                (text("a"), Some(text("1"))),
                (text("b"), None),
                (text("a"), Some(text(" 2"))),
                (text("c"), Some(text(""))),
            ]
        );
    }
}

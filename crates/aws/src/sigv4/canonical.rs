//! The canonical forms of path, query and header values, and the forms to send.
//!
//! Two readings of SigV4 exist for odd bytes: a verifier may encode what it received, or decode it
//! first. What [`wire_path`] and [`wire_query`] return gives the same canonical text either way
//! wherever changing the sent form does not change what the client asked for.
//!
//! Invariant: output is at most three bytes per input byte plus one per query argument, so the
//! limit on a request's head bounds every buffer here.

use std::borrow::Cow;

use smallvec::SmallVec;

/// How a service reads the path it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathRule {
    /// Every service but S3: dot segments and doubled slashes vanish, and each byte of the path as
    /// it was sent is encoded once more (`%3D` becomes `%253D`, `@` becomes `%40`).
    Normalised,
    /// S3: the path names an object, so it stays as it is and is encoded once.
    ObjectKey,
}

impl PathRule {
    /// The rule of a service by its signing name.
    pub fn of_service(service: &str) -> Self {
        match service {
            "s3" | "s3express" | "s3-object-lambda" | "s3-outposts" => Self::ObjectKey,
            _ => Self::Normalised,
        }
    }
}

/// The form of a path to send, so that every verifier computes the signature we computed.
///
/// Dot segments (`%2e` too) are resolved, because signers disagree on a trailing one; bytes that
/// RFC 3986 does not allow in a path, and a `%` that starts no escape, are escaped. Whatever is
/// legal stays as the client wrote it: escapes in either case, `:`, `@`, `+`, doubled slashes. For
/// these the published vectors say what is signed (`double-encode-path` sends a raw `@`).
pub fn wire_path(raw: &str) -> Cow<'_, str> {
    if is_wire_path(raw.as_bytes()) {
        return Cow::Borrowed(raw);
    }
    let mut segments = SmallVec::<[&str; 16]>::new();
    let mut parts = raw.strip_prefix('/').unwrap_or(raw).split('/').peekable();
    while let Some(part) = parts.next() {
        match dots(part.as_bytes()) {
            Dots::None => {
                segments.push(part);
                continue;
            }
            Dots::Stay => {}
            Dots::Up => {
                segments.pop();
            }
        }
        if parts.peek().is_none() {
            segments.push("");
        }
    }
    let mut out = Vec::with_capacity(raw.len() + 16);
    for segment in &segments {
        out.push(b'/');
        let bytes = segment.as_bytes();
        for (i, &byte) in bytes.iter().enumerate() {
            if is_path_char(byte) || (byte == b'%' && is_escape(&bytes[i..])) {
                out.push(byte);
            } else {
                push_escape(byte, &mut out);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Cow::Owned(String::from_utf8(out).expect("escaping leaves ASCII only"))
}

/// The form of a query to send: exactly the canonical query string.
///
/// `+` is read as a space and sent as `%20`, valueless arguments get their `=`, empty pieces
/// vanish, arguments are sorted. An empty result means that no `?` is sent.
pub fn wire_query(raw: &str) -> Cow<'_, str> {
    if is_canonical_query(raw.as_bytes()) {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len() + raw.len() / 2 + 16);
    write_odd_query(raw.as_bytes(), &mut out);
    Cow::Owned(String::from_utf8(out).expect("escaping leaves ASCII only"))
}

/// Appends the canonical path of `sent`, the path as it goes over the wire.
pub(crate) fn write_path(sent: &str, rule: PathRule, out: &mut Vec<u8>) {
    let bytes = sent.as_bytes();
    if is_plain_path(bytes) {
        out.extend_from_slice(bytes);
        return;
    }
    match rule {
        PathRule::Normalised => write_normalised(bytes, out),
        PathRule::ObjectKey => {
            if bytes.first() != Some(&b'/') {
                out.push(b'/');
            }
            for byte in Decoded::new(bytes, Plus::Literal) {
                match byte {
                    // An escaped slash belongs to the object's name as much as a raw one does.
                    b'/' => out.push(b'/'),
                    byte => push_encoded(byte, out),
                }
            }
        }
    }
}

/// Appends the canonical query of `raw`.
pub(crate) fn write_query(raw: &str, out: &mut Vec<u8>) {
    if is_canonical_query(raw.as_bytes()) {
        out.extend_from_slice(raw.as_bytes());
    } else {
        write_odd_query(raw.as_bytes(), out);
    }
}

/// Appends a header value without outer white space and with single spaces inside.
///
/// Tabs count as white space, as in botocore and the CRT; the Rust SDK keeps them.
pub(crate) fn write_value(value: &[u8], out: &mut Vec<u8>) {
    // Without an early exit the compiler looks at many bytes at once.
    if !value.iter().fold(false, |found, byte| found | is_space(*byte)) {
        out.extend_from_slice(value);
        return;
    }
    let start = out.len();
    for word in value.split(|byte| is_space(*byte)).filter(|word| !word.is_empty()) {
        if out.len() > start {
            out.push(b' ');
        }
        out.extend_from_slice(word);
    }
}

/// Segments are compared as sent: an escaped dot is a name like any other.
fn write_normalised(sent: &[u8], out: &mut Vec<u8>) {
    let mut segments = SmallVec::<[&[u8]; 16]>::new();
    for segment in sent.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    for segment in &segments {
        out.push(b'/');
        for &byte in *segment {
            push_encoded(byte, out);
        }
    }
    if segments.is_empty() || sent.ends_with(b"/") {
        out.push(b'/');
    }
}

fn write_odd_query(raw: &[u8], out: &mut Vec<u8>) {
    // Names and values are encoded into one buffer first; arguments are ranges of it.
    let mut encoded = Vec::with_capacity(raw.len() + raw.len() / 2);
    let mut arguments = SmallVec::<[(usize, usize, usize); 16]>::new();
    for piece in raw.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty()) {
        let (name, value) = match piece.iter().position(|byte| *byte == b'=') {
            Some(at) => (&piece[..at], &piece[at + 1..]),
            None => (piece, &b""[..]),
        };
        let start = encoded.len();
        Decoded::new(name, Plus::Space).for_each(|byte| push_encoded(byte, &mut encoded));
        let middle = encoded.len();
        Decoded::new(value, Plus::Space).for_each(|byte| push_encoded(byte, &mut encoded));
        arguments.push((start, middle, encoded.len()));
    }
    let parts = |&(start, middle, end): &(usize, usize, usize)| {
        (&encoded[start..middle], &encoded[middle..end])
    };
    arguments.sort_unstable_by(|a, b| parts(a).cmp(&parts(b)));
    for (i, argument) in arguments.iter().enumerate() {
        if i > 0 {
            out.push(b'&');
        }
        let (name, value) = parts(argument);
        out.extend_from_slice(name);
        out.push(b'=');
        out.extend_from_slice(value);
    }
}

/// Whether the path is its own canonical form under every rule.
fn is_plain_path(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        match byte {
            b'/' if after_slash => return false,
            b'.' if after_slash => return false,
            byte if byte != b'/' && !is_unreserved(byte) => return false,
            _ => {}
        }
        after_slash = byte == b'/';
    }
    path.first() == Some(&b'/')
}

fn is_wire_path(path: &[u8]) -> bool {
    let mut after_slash = false;
    for (i, &byte) in path.iter().enumerate() {
        match byte {
            b'/' => {}
            b'.' if after_slash => return false,
            b'%' if !is_escape(&path[i..]) => return false,
            b'%' if after_slash && path[i..].len() >= 3 && is_escaped_dot(&path[i..i + 3]) => {
                return false;
            }
            b'%' => {}
            byte if !is_path_char(byte) => return false,
            _ => {}
        }
        after_slash = byte == b'/';
    }
    path.first() == Some(&b'/')
}

fn is_canonical_query(query: &[u8]) -> bool {
    if query.is_empty() {
        return true;
    }
    let mut previous: Option<(&[u8], &[u8])> = None;
    for piece in query.split(|byte| *byte == b'&') {
        let Some(at) = piece.iter().position(|byte| *byte == b'=') else { return false };
        let argument = (&piece[..at], &piece[at + 1..]);
        if previous.is_some_and(|previous| previous > argument)
            || !is_encoded(argument.0)
            || !is_encoded(argument.1)
        {
            return false;
        }
        previous = Some(argument);
    }
    true
}

/// Whether decoding and encoding would give the same bytes.
fn is_encoded(text: &[u8]) -> bool {
    let mut i = 0;
    while let Some(&byte) = text.get(i) {
        if is_unreserved(byte) {
            i += 1;
        } else if byte == b'%' && is_escape(&text[i..]) {
            let digits = [text[i + 1], text[i + 2]];
            let value = hex_value(digits[0]) << 4 | hex_value(digits[1]);
            if is_unreserved(value) || digits.iter().any(u8::is_ascii_lowercase) {
                return false;
            }
            i += 3;
        } else {
            return false;
        }
    }
    true
}

enum Dots {
    None,
    Stay,
    Up,
}

/// Which dot segment this is, its dots raw or escaped.
fn dots(segment: &[u8]) -> Dots {
    let mut rest = segment;
    let mut count = 0;
    while !rest.is_empty() {
        if rest[0] == b'.' {
            rest = &rest[1..];
        } else if rest.len() >= 3 && is_escaped_dot(&rest[..3]) {
            rest = &rest[3..];
        } else {
            return Dots::None;
        }
        count += 1;
    }
    match count {
        1 => Dots::Stay,
        2 => Dots::Up,
        _ => Dots::None,
    }
}

fn is_escaped_dot(three: &[u8]) -> bool {
    three.eq_ignore_ascii_case(b"%2e")
}

/// Percent-decoded bytes; a `%` that starts no escape stands for itself.
struct Decoded<'a> {
    rest: &'a [u8],
    plus: Plus,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Space,
    Literal,
}

impl<'a> Decoded<'a> {
    fn new(rest: &'a [u8], plus: Plus) -> Self {
        Self { rest, plus }
    }
}

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        if byte == b'%' && is_escape(self.rest) {
            self.rest = &rest[2..];
            return Some(hex_value(rest[0]) << 4 | hex_value(rest[1]));
        }
        self.rest = rest;
        Some(if byte == b'+' && self.plus == Plus::Space { b' ' } else { byte })
    }
}

fn push_encoded(byte: u8, out: &mut Vec<u8>) {
    if is_unreserved(byte) { out.push(byte) } else { push_escape(byte, out) }
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[
        b'%',
        UPPER_HEX[usize::from(byte >> 4)],
        UPPER_HEX[usize::from(byte & 15)],
    ]);
}

/// Whether `text`, which starts with `%`, starts with an escape.
fn is_escape(text: &[u8]) -> bool {
    text.len() >= 3 && text[1].is_ascii_hexdigit() && text[2].is_ascii_hexdigit()
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn is_unreserved(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & UNRESERVED != 0
}

/// RFC 3986's `pchar` without the escape.
fn is_path_char(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & PATH_CHAR != 0
}

const UPPER_HEX: &[u8; 16] = b"0123456789ABCDEF";
const UNRESERVED: u8 = 1;
const PATH_CHAR: u8 = 2;

static CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let c = byte as u8;
        table[byte] = match c {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                UNRESERVED | PATH_CHAR
            }
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':'
            | b'@' => PATH_CHAR,
            _ => 0,
        };
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_path_encodes_what_is_sent_once_more() {
        for (sent, canonical) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/a/b", "/a/b"),
            ("a", "/a"),
            ("/a/", "/a/"),
            ("/a//b//", "/a/b/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/%2e%2e/x", "/%252e%252e/x"),
            ("/a%2Fb", "/a%252Fb"),
            ("/a%20b", "/a%2520b"),
            ("/a b", "/a%20b"),
            ("/a+b~c", "/a%2Bb~c"),
            ("/@connections/x%3D", "/%40connections/x%253D"),
            ("/ሴ", "/%E1%88%B4"),
            ("/arn%3Aaws%3Alambda", "/arn%253Aaws%253Alambda"),
        ] {
            check_path(sent, PathRule::Normalised, canonical);
        }
    }

    #[test]
    fn s3_path_is_encoded_once_and_never_normalised() {
        for (sent, canonical) in [
            ("", "/"),
            ("/a//b/../c/.", "/a//b/../c/."),
            ("/a%20b", "/a%20b"),
            ("/a b", "/a%20b"),
            ("/a:b%3ac", "/a%3Ab%3Ac"),
        ] {
            check_path(sent, PathRule::ObjectKey, canonical);
        }
    }

    #[track_caller]
    fn check_path(sent: &str, rule: PathRule, canonical: &str) {
        let mut out = Vec::new();
        write_path(sent, rule, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), canonical, "sent {sent:?}");
    }

    #[test]
    fn wire_path_escapes_what_may_not_be_sent_and_keeps_the_rest() {
        for (raw, wire) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("/a//b/", "/a//b/"),
            ("/a%2fb%7E%41", "/a%2fb%7E%41"),
            ("/a:b@c+d~e;f=g,h!$&'()*", "/a:b@c+d~e;f=g,h!$&'()*"),
            ("/a[1]|{x}\"^`\\<>", "/a%5B1%5D%7C%7Bx%7D%22%5E%60%5C%3C%3E"),
            ("/100%", "/100%25"),
            ("/%zz/%4", "/%25zz/%254"),
            ("/é", "/%C3%A9"),
            ("/a b", "/a%20b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2E%2e/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/../..", "/"),
            ("/a//../b", "/a/b"),
            ("/.well-known/%2ehidden/...", "/.well-known/%2ehidden/..."),
        ] {
            assert_eq!(wire_path(raw), wire, "raw {raw:?}");
        }
    }

    #[test]
    fn wire_query_is_sorted_and_encoded_the_one_way() {
        for (raw, wire) in [
            ("", ""),
            ("&&", ""),
            ("a=1&b=2", "a=1&b=2"),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1", "a=1&a=2"),
            ("flag", "flag="),
            ("flag&flag=", "flag=&flag="),
            ("=x", "=x"),
            ("a=b=c", "a=b%3Dc"),
            ("a=1+2", "a=1%202"),
            ("a=1%2b2", "a=1%2B2"),
            ("a=%7e%41", "a=~A"),
            ("a=100%", "a=100%25"),
            ("ሴ=bar", "%E1%88%B4=bar"),
            ("a-=1&a=2", "a=2&a-=1"),
            ("A=1&a=1", "A=1&a=1"),
            ("a=*'()", "a=%2A%27%28%29"),
            ("a=/:@?", "a=%2F%3A%40%3F"),
            ("a=1&", "a=1"),
        ] {
            assert_eq!(wire_query(raw), wire, "raw {raw:?}");
            assert_eq!(wire_query(wire), wire, "the form to send is stable");
            assert!(is_canonical_query(wire.as_bytes()), "and known to be so: {wire:?}");
        }
    }

    #[test]
    fn header_values_lose_needless_white_space() {
        for (value, canonical) in [
            ("", ""),
            ("  ", ""),
            ("a", "a"),
            (" a  b\t c ", "a b c"),
            ("value1\n  value2", "value1 value2"),
            ("\"a   b\"", "\"a b\""),
        ] {
            let mut out = b"x:".to_vec();
            write_value(value.as_bytes(), &mut out);
            assert_eq!(out, [b"x:", canonical.as_bytes()].concat(), "value {value:?}");
        }
    }
}

//! JSON, written straight into bytes.
//!
//! The writer is generic over a [`Sink`], so that one piece of code both writes an event and counts
//! its bytes: the two cannot disagree.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Takes the bytes of a document, or only counts them.
pub(super) trait Sink {
    fn raw(&mut self, bytes: &[u8]);
    fn base64(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn base64(&mut self, bytes: &[u8]) {
        let start = self.len();
        self.resize(start + base64_bytes(bytes.len()), 0);
        let written = STANDARD.encode_slice(bytes, &mut self[start..]);
        debug_assert_eq!(written.ok(), Some(self.len() - start));
    }
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Counter(pub(super) usize);

impl Sink for Counter {
    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn base64(&mut self, bytes: &[u8]) {
        self.0 += base64_bytes(bytes.len());
    }
}

fn base64_bytes(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// An object that is being written. Names are literals that need no escape, except through
/// [`Object::any_name`].
pub(super) struct Object<'s, S> {
    pub(super) out: &'s mut S,
    empty: bool,
}

impl<'s, S: Sink> Object<'s, S> {
    pub(super) fn open(out: &'s mut S) -> Self {
        out.raw(b"{");
        Self { out, empty: true }
    }

    pub(super) fn close(self) {
        self.out.raw(b"}");
    }

    pub(super) fn name(&mut self, name: &str) -> &mut S {
        self.out.raw(if self.empty { b"\"" } else { b",\"" });
        self.empty = false;
        self.out.raw(name.as_bytes());
        self.out.raw(b"\":");
        self.out
    }

    pub(super) fn any_name(&mut self, name: &[u8]) -> &mut S {
        if !self.empty {
            self.out.raw(b",");
        }
        self.empty = false;
        write_text(name, self.out);
        self.out.raw(b":");
        self.out
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        write_text(value.as_bytes(), self.name(name));
    }

    /// The text, or null.
    pub(super) fn text_or_null(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.text(name, value),
            None => self.null(name),
        }
    }

    pub(super) fn null(&mut self, name: &str) {
        self.name(name).raw(b"null");
    }

    pub(super) fn bool(&mut self, name: &str, value: bool) {
        self.name(name).raw(if value { b"true" } else { b"false" });
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        let mut buffer = itoa::Buffer::new();
        self.name(name).raw(buffer.format(value).as_bytes());
    }

    pub(super) fn object(&mut self, name: &str) -> Object<'_, S> {
        Object::open(self.name(name))
    }
}

/// Writes an array of texts.
pub(super) fn write_texts<'a, S: Sink>(texts: impl Iterator<Item = &'a [u8]>, out: &mut S) {
    out.raw(b"[");
    for (i, text) in texts.enumerate() {
        if i > 0 {
            out.raw(b",");
        }
        write_text(text, out);
    }
    out.raw(b"]");
}

/// Writes one text out of several, joined.
pub(super) fn write_joined<'a, S: Sink>(
    texts: impl Iterator<Item = &'a [u8]>,
    separator: &[u8],
    out: &mut S,
) {
    out.raw(b"\"");
    for (i, text) in texts.enumerate() {
        if i > 0 {
            out.raw(separator);
        }
        write_escaped(text, out);
    }
    out.raw(b"\"");
}

/// Writes bytes as a text. What is no UTF-8 becomes U+FFFD: JSON has no other way.
pub(super) fn write_text<S: Sink>(text: &[u8], out: &mut S) {
    out.raw(b"\"");
    write_escaped(text, out);
    out.raw(b"\"");
}

fn write_escaped<S: Sink>(text: &[u8], out: &mut S) {
    // Nearly always; looking for chunks takes ten times as long.
    if std::str::from_utf8(text).is_ok() {
        return write_escaped_utf8(text, out);
    }
    for chunk in text.utf8_chunks() {
        write_escaped_utf8(chunk.valid().as_bytes(), out);
        if !chunk.invalid().is_empty() {
            out.raw("\u{fffd}".as_bytes());
        }
    }
}

/// Eight bytes at a time: words without a byte to escape are copied in runs, the others are
/// rewritten in a small buffer, since JSON in JSON has a quote in every other word.
fn write_escaped_utf8<S: Sink>(text: &[u8], out: &mut S) {
    let (words, tail) = text.as_chunks::<8>();
    let mut clean_from = 0;
    for (i, word) in words.iter().enumerate() {
        if has_special(u64::from_le_bytes(*word)) {
            out.raw(&text[clean_from..i * 8]);
            clean_from = i * 8 + 8;
            write_rewritten(word, out);
        }
    }
    out.raw(&text[clean_from..words.len() * 8]);
    if tail.iter().all(|byte| ESCAPES[usize::from(*byte)] == 0) {
        out.raw(tail);
    } else {
        write_rewritten(tail, out);
    }
}

/// Writes up to eight bytes, each escaped if it must be.
fn write_rewritten<S: Sink>(bytes: &[u8], out: &mut S) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut buffer = [0; 8 * 6];
    let mut len = 0;
    for &byte in bytes {
        match ESCAPES[usize::from(byte)] {
            0 => {
                buffer[len] = byte;
                len += 1;
            }
            b'u' => {
                let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
                let escape = [b'\\', b'u', b'0', b'0', HEX[high], HEX[low]];
                buffer[len..len + 6].copy_from_slice(&escape);
                len += 6;
            }
            letter => {
                buffer[len..len + 2].copy_from_slice(&[b'\\', letter]);
                len += 2;
            }
        }
    }
    out.raw(&buffer[..len]);
}

/// Whether one of eight bytes must be escaped.
fn has_special(word: u64) -> bool {
    let zero_in = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
    let quote = zero_in(word ^ (ONES * u64::from(b'"')));
    let backslash = zero_in(word ^ (ONES * u64::from(b'\\')));
    below_space | quote | backslash != 0
}

/// What follows the backslash of each byte: 0 for none, `u` for four digits.
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_is_read_back_as_it_was(text in "\\PC{0,40}|[\\x00-\\x7f]{0,60}|.{0,80}") {
            let mut out = Vec::new();
            write_text(text.as_bytes(), &mut out);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            let mut counter = Counter::default();
            write_text(text.as_bytes(), &mut counter);
            prop_assert_eq!(counter.0, out.len());
        }

        #[test]
        fn bytes_that_are_no_text_become_what_the_standard_library_makes_of_them(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut out = Vec::new();
            write_text(&bytes, &mut out);
            let read: String = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&bytes));
            let (mut out, mut counter) = (Vec::new(), Counter::default());
            out.base64(&bytes);
            counter.base64(&bytes);
            prop_assert_eq!(counter.0, out.len());
            prop_assert_eq!(STANDARD.decode(&out).unwrap(), bytes);
        }
    }
}

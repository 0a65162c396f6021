//! A header block: the text in one buffer, and where each field lies in it.

use std::fmt;

use super::names::{FieldName, HOP_BY_HOP, Known, Marks, Name};
use super::sound::{is_name, is_value};

/// The fields of a message head, in order, names in the case they were sent in.
///
/// A value is bytes; names are compared without regard to ASCII case.
#[derive(Clone, Default)]
pub struct Headers {
    text: Vec<u8>,
    fields: Vec<Field>,
    /// The marks of the names of all fields, and of some that went: what is not in it is not there.
    names: Marks,
    /// How much of the text is the head that a peer sent.
    received: u32,
}

/// A number as the value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// This number.
    Whole(u64),
    /// So many hundredths, with two decimals at most: `1.5`, `2`.
    Hundredths(u64),
}

impl Number {
    fn write(self, out: &mut Vec<u8>) {
        let (whole, rest) = match self {
            Self::Whole(number) => (number, 0),
            Self::Hundredths(number) => (number / 100, (number % 100) as u8),
        };
        out.extend_from_slice(itoa::Buffer::new().format(whole).as_bytes());
        match (rest / 10, rest % 10) {
            (0, 0) => {}
            (tenths, 0) => out.extend_from_slice(&[b'.', b'0' + tenths]),
            (tenths, rest) => out.extend_from_slice(&[b'.', b'0' + tenths, b'0' + rest]),
        }
    }
}

#[derive(Clone, Copy)]
struct Field {
    name_at: u32,
    value_at: u32,
    value_len: u32,
    name_len: u16,
    known: Known,
    /// That of its [`Name`].
    mark: u8,
    /// The text has the whole line, `name: value` and its end, so that it is copied as it stands.
    line: bool,
}

impl Field {
    /// Has it this name? `text` is that of its block.
    #[inline]
    fn is(&self, text: &[u8], name: Name<'_>) -> bool {
        self.mark == name.mark && (name.known != Known::Other || self.is_written(text, name.text))
    }

    /// Is its name written as this one, in whatever case?
    #[inline(never)]
    fn is_written(&self, text: &[u8], name: &[u8]) -> bool {
        // Mostly both are written alike, and words are quicker compared than letters.
        let own = self.name_of(text).text;
        own == name || own.eq_ignore_ascii_case(name)
    }

    #[inline]
    fn name_of<'a>(&self, text: &'a [u8]) -> Name<'a> {
        let text = &text[self.name_at as usize..][..self.name_len as usize];
        Name { text, known: self.known, mark: self.mark }
    }
}

impl Headers {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets every field and keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
        self.names = Marks::NONE;
        self.received = 0;
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Is the block without fields?
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Is the memory behind it worth keeping for another head?
    pub(crate) fn is_small(&self) -> bool {
        self.text.capacity() <= KEPT_TEXT_MAX
    }

    /// Puts text before any field (a request target); says where it lies.
    pub(crate) fn push_text(&mut self, text: &[u8]) -> (usize, usize) {
        let at = self.text.len();
        self.text.extend_from_slice(text);
        (at, text.len())
    }

    /// Takes a raw head over; its fields are added with [`Headers::push_range`].
    pub(crate) fn reset_to(&mut self, raw: &[u8]) {
        self.text.clear();
        self.text.extend_from_slice(raw);
        self.fields.clear();
        self.names = Marks::NONE;
        self.received = raw.len() as u32;
    }

    /// Adds a field that lies in the raw head given to [`Headers::reset_to`].
    pub(crate) fn push_range(&mut self, name: (usize, usize), value: (usize, usize), known: Known) {
        let between = self.text.get(name.0 + name.1..value.0);
        let end = self.text.get(value.0 + value.1..value.0 + value.1 + 2);
        let told = Name::of_known(&self.text[name.0..name.0 + name.1], known);
        self.names.add(told.mark);
        self.fields.push(Field {
            name_at: name.0 as u32,
            name_len: name.1 as u16,
            value_at: value.0 as u32,
            value_len: value.1 as u32,
            known,
            mark: told.mark,
            line: between == Some(b": ") && end == Some(b"\r\n"),
        });
    }

    /// Bytes of the text buffer: a request line or status line kept beside the fields.
    pub(crate) fn text(&self, at: usize, len: usize) -> &[u8] {
        &self.text[at..at + len]
    }

    fn name_of(&self, field: &Field) -> &[u8] {
        &self.text[field.name_at as usize..][..field.name_len as usize]
    }

    fn value_of(&self, field: &Field) -> &[u8] {
        &self.text[field.value_at as usize..][..field.value_len as usize]
    }

    fn position(&self, name: Name<'_>) -> Option<usize> {
        if !self.names.has(name.mark) {
            return None;
        }
        self.fields.iter().position(|f| f.is(&self.text, name))
    }

    fn first(&self, name: Name<'_>) -> Option<&[u8]> {
        self.position(name).map(|at| self.value_of(&self.fields[at]))
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.first(Name::of(name.as_bytes()))
    }

    /// [`Headers::get`] by a name that was looked at before.
    pub fn get_by(&self, name: &FieldName) -> Option<&[u8]> {
        self.first(name.name())
    }

    /// The first value of a field, when it is text.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// The first value of a known field.
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        if !self.names.has(known as u8) {
            return None;
        }
        self.fields.iter().find(|f| f.known == known).map(|f| self.value_of(f))
    }

    /// Every value of a known field.
    pub fn all_known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let some = self.names.has(known as u8);
        let fields = if some { &self.fields[..] } else { &[] };
        fields.iter().filter(move |f| f.known == known).map(|f| self.value_of(f))
    }

    /// Every value of a field, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let name = Name::of(name.as_bytes());
        self.fields.iter().filter(move |f| f.is(&self.text, name)).map(|f| self.value_of(f))
    }

    /// Is there such a field?
    pub fn contains(&self, name: &str) -> bool {
        self.position(Name::of(name.as_bytes())).is_some()
    }

    /// Is there such a field that no peer sent: one put in since the head came?
    pub(crate) fn has_own(&self, name: &[u8]) -> bool {
        let name = Name::of(name);
        self.fields.iter().any(|f| f.name_at >= self.received && f.is(&self.text, name))
    }

    /// Every field in order: name, value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (self.name_of(f), self.value_of(f)))
    }

    /// Every field in order with what it is known as.
    pub fn iter_known(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.fields.iter().map(|f| (f.known, self.name_of(f), self.value_of(f)))
    }

    /// Adds a field behind the others. A name or value that cannot stand in a head
    /// (CR, LF or NUL in it, or longer than a head may be) is left out: no caller can
    /// split a message.
    pub fn append(&mut self, name: &str, value: &[u8]) {
        if is_name(name.as_bytes()) && self.may_have(value) {
            self.add(Name::of(name.as_bytes()), value);
        }
    }

    /// [`Headers::append`] by a name that was looked at before.
    pub fn append_by(&mut self, name: &FieldName, value: &[u8]) {
        if name.sound && self.may_have(value) {
            self.add(name.name(), value);
        }
    }

    fn add(&mut self, name: Name<'_>, value: &[u8]) {
        let field = self.store(name, |text| text.extend_from_slice(value));
        self.fields.push(field);
    }

    fn may_have(&self, value: &[u8]) -> bool {
        self.text.len() + value.len() < HEAD_TEXT_MAX && is_value(value)
    }

    /// Writes a line, its value by `write`.
    fn store(&mut self, name: Name<'_>, write: impl FnOnce(&mut Vec<u8>)) -> Field {
        if self.text.capacity() == 0 {
            self.text.reserve(FIRST_TEXT);
            self.fields.reserve(FIRST_FIELDS);
        }
        let name_at = self.text.len();
        self.text.extend_from_slice(name.text);
        self.text.extend_from_slice(b": ");
        let value_at = self.text.len();
        write(&mut self.text);
        let value_len = self.text.len() - value_at;
        self.text.extend_from_slice(b"\r\n");
        self.names.add(name.mark);
        Field {
            name_at: name_at as u32,
            name_len: name.text.len() as u16,
            value_at: value_at as u32,
            value_len: value_len as u32,
            known: name.known,
            mark: name.mark,
            line: true,
        }
    }

    /// Makes `name` have this one value, in the place of its first occurrence.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        if is_name(name.as_bytes()) && self.may_have(value) {
            self.put(Name::of(name.as_bytes()), value);
        }
    }

    /// [`Headers::set_by`] of some numbers.
    pub fn set_numbers_by<const N: usize>(&mut self, fields: [(&FieldName, Number); N]) {
        for (name, number) in fields {
            if name.sound && self.text.len() < HEAD_TEXT_MAX {
                self.put_written(name.name(), |text| number.write(text));
            }
        }
    }

    /// [`Headers::set`] by a name that was looked at before.
    pub fn set_by(&mut self, name: &FieldName, value: &[u8]) {
        if name.sound && self.may_have(value) {
            self.put(name.name(), value);
        }
    }

    /// [`Headers::set_by`] of a value that the gateway itself made, or that stood in a head before: no
    /// character is looked for in it.
    pub fn put_by(&mut self, name: &FieldName, value: &[u8]) {
        debug_assert!(self.may_have(value), "the value of {name:?} cannot stand in a head");
        if name.sound && self.text.len() + value.len() < HEAD_TEXT_MAX {
            self.put(name.name(), value);
        }
    }

    /// Adds the fields of another block. The first of a name takes the place of what there is of that
    /// name, the others come behind.
    pub fn take_over(&mut self, others: &Headers) {
        if self.text.len() + others.text.len() > 2 * HEAD_TEXT_MAX {
            return;
        }
        let start = self.text.len() as u32;
        self.text.extend_from_slice(&others.text);
        let moved = |other: &Field| Field {
            name_at: start + other.name_at,
            value_at: start + other.value_at,
            ..*other
        };
        if !self.names.any(others.names) {
            self.fields.extend(others.fields.iter().map(moved));
            self.names.add_all(others.names);
            return;
        }
        let mut before = Marks::NONE;
        for (nth, other) in others.fields.iter().enumerate() {
            let name = other.name_of(&others.text);
            let field = moved(other);
            let again = before.has(name.mark)
                && others.fields[..nth].iter().any(|f| f.is(&others.text, name));
            before.add(name.mark);
            match self.position(name).filter(|_| !again) {
                None => self.fields.push(field),
                Some(at) => self.replace(at, field),
            }
            self.names.add(name.mark);
        }
    }

    /// [`Headers::set`] for a name known as `known` and a value that the gateway itself made or checked.
    pub(crate) fn put_known(&mut self, known: Known, name: &[u8], value: &[u8]) {
        self.put(Name::of_known(name, known), value);
    }

    fn put(&mut self, name: Name<'_>, value: &[u8]) {
        self.put_written(name, |text| text.extend_from_slice(value));
    }

    fn put_written(&mut self, name: Name<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        let first = self.position(name);
        let field = self.store(name, write);
        match first {
            None => self.fields.push(field),
            Some(at) => self.replace(at, field),
        }
    }

    /// Puts `field` in the place of the one at `at`, and drops those of its name behind.
    fn replace(&mut self, at: usize, field: Field) {
        let name = field.name_of(&self.text);
        let mut next = at + 1;
        while next < self.fields.len() {
            if self.fields[next].is(&self.text, name) {
                self.fields.remove(next);
            } else {
                next += 1;
            }
        }
        self.fields[at] = field;
    }

    /// Removes every occurrence of a field; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.take_out(Name::of(name.as_bytes()))
    }

    /// [`Headers::remove`] by a name that was looked at before.
    pub fn remove_by(&mut self, name: &FieldName) -> bool {
        self.take_out(name.name())
    }

    /// Removes every occurrence of all of these.
    pub(crate) fn remove_all_by(&mut self, names: &[FieldName]) {
        let mut marks = Marks::NONE;
        for name in names {
            marks.add(name.mark);
        }
        if self.names.any(marks) {
            let Self { text, fields, .. } = self;
            fields.retain(|f| !names.iter().any(|name| f.is(text, name.name())));
        }
    }

    fn take_out(&mut self, name: Name<'_>) -> bool {
        let there = self.position(name).is_some();
        if there {
            let Self { text, fields, .. } = self;
            fields.retain(|f| !f.is(text, name));
        }
        there
    }

    /// Keeps the fields that `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(Known, &[u8], &[u8]) -> bool) {
        let Self { text, fields, .. } = self;
        fields.retain(|f| {
            keep(
                f.known,
                &text[f.name_at as usize..][..f.name_len as usize],
                &text[f.value_at as usize..][..f.value_len as usize],
            )
        });
    }

    /// Becomes a copy of the fields of `from` that `keep` says yes to. Their text is copied
    /// as a whole: it was checked when it came in.
    pub fn copy_from(&mut self, from: &Self, mut keep: impl FnMut(Known, &[u8]) -> bool) {
        self.text.clear();
        self.text.extend_from_slice(&from.text);
        self.fields.clear();
        self.names = from.names;
        self.received = from.received;
        self.fields.extend(from.fields.iter().filter(|f| keep(f.known, from.name_of(f))));
    }

    /// Drops what belongs to one connection only: the hop-by-hop fields and every
    /// field that `Connection` names (RFC 9110 section 7.6.1).
    pub fn remove_hop_by_hop(&mut self) {
        if !self.names.any(HOP_BY_HOP) {
            return;
        }
        let named: Vec<Vec<u8>> = self.named_by_connection().map(<[u8]>::to_vec).collect();
        self.retain(|known, name, _| {
            !known.is_hop_by_hop() && !named.iter().any(|n| name.eq_ignore_ascii_case(n))
        });
    }

    /// The fields that `Connection` names, beyond what is about the connection itself.
    pub(crate) fn named_by_connection(&self) -> impl Iterator<Item = &[u8]> {
        let usual = [b"keep-alive".as_slice(), b"close", b"upgrade", b"te"];
        let named = self.all_known(Known::Connection).flat_map(tokens);
        named.filter(move |token| !usual.iter().any(|usual| token.eq_ignore_ascii_case(usual)))
    }

    /// Does any `Connection` field carry this token?
    pub fn connection_has(&self, token: &str) -> bool {
        self.all_known(Known::Connection)
            .flat_map(tokens)
            .any(|t| t.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Writes `name: value` lines.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        self.write_kept(out, |_, _| true);
    }

    /// Writes the lines of the fields that `keep` says yes to.
    pub(crate) fn write_kept(&self, out: &mut Vec<u8>, mut keep: impl FnMut(Known, &[u8]) -> bool) {
        // Lines that follow each other in the text go out as one piece, which most heads are few of:
        // 3 % of a proxied request's instructions.
        let mut piece = 0..0;
        for field in &self.fields {
            if !keep(field.known, self.name_of(field)) {
                continue;
            }
            let start = field.name_at as usize;
            if !field.line || start != piece.end {
                out.extend_from_slice(&self.text[piece]);
                piece = start..start;
            }
            if field.line {
                piece.end = field.value_at as usize + field.value_len as usize + 2;
            } else {
                write_line(out, self.name_of(field), self.value_of(field));
            }
        }
        out.extend_from_slice(&self.text[piece]);
    }
}

/// Writes one header line.
pub(crate) fn write_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// May a field stand behind a body (RFC 9110 section 6.5.1)? One that frames or routes a message,
/// tells who sends it or what it holds must not: a recipient may take it for the head's.
pub(crate) fn may_trail(name: &[u8]) -> bool {
    use Known::*;
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let known = Known::of(name);
    let of_head = known.is_hop_by_hop()
        || matches!(known, Host | ContentLength | ContentType | Expect | Authorization | Cookie)
        || matches!(known, XForwardedFor | XForwardedProto | XForwardedHost | XForwardedPort)
        || matches!(known, XRealIp | Forwarded | XApiKey | XAmzDate);
    !of_head && !name.is_empty() && name.iter().all(token)
}

/// The comma-separated tokens of a list field, trimmed, empty ones left out.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

impl fmt::Debug for Headers {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(n, _)| String::from_utf8_lossy(n))).finish()
    }
}

/// Bytes of a header block's memory that is kept for the next.
const KEPT_TEXT_MAX: usize = 16 << 10;

/// What an empty block gets memory for with its first field: text and fields.
const FIRST_TEXT: usize = 384;
const FIRST_FIELDS: usize = 12;

/// Bytes one header block may grow to by what is added to it.
const HEAD_TEXT_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.append(name, value.as_bytes());
        }
        headers
    }

    fn text(headers: &Headers) -> String {
        let mut out = Vec::new();
        headers.write_to(&mut out);
        String::from_utf8(out).expect("tests use text")
    }

    #[test]
    fn set_replaces_in_place_and_drops_repeats() {
        let mut headers = block(&[("A", "1"), ("x-B", "2"), ("a", "3"), ("C", "4")]);
        headers.set("a", b"9");
        assert_eq!(text(&headers), "a: 9\r\nx-B: 2\r\nC: 4\r\n");
        headers.set("new", b"5");
        assert_eq!(headers.get("NEW"), Some(b"5".as_slice()));
    }

    #[test]
    fn names_keep_their_case_and_match_without_it() {
        let mut headers = block(&[("X-MiXed", "v"), ("HOST", "h")]);
        assert_eq!(headers.get("x-mixed"), Some(b"v".as_slice()));
        assert_eq!(headers.known(Known::Host), Some(b"h".as_slice()));
        assert!(headers.remove("x-mixed"));
        assert!(!headers.remove("x-mixed"));
        assert_eq!(text(&headers), "HOST: h\r\n");
    }

    #[test]
    fn what_belongs_to_a_head_may_not_trail() {
        for name in ["grpc-status", "X-Checksum", "Server-Timing", "etag"] {
            assert!(may_trail(name.as_bytes()), "{name}");
        }
        for name in [
            "Content-Length",
            "transfer-encoding",
            "HOST",
            "Cookie",
            "X-Real-IP",
            "",
            "a b",
            "a\t",
            "a\u{1}",
        ] {
            assert!(!may_trail(name.as_bytes()), "{name:?}");
        }
    }

    #[test]
    fn lines_are_written_as_they_stand_or_in_the_plain_form() {
        let raw = b"GET / HTTP/1.1\r\nA: 1\r\nB:2\r\nC: 3 \r\nD: 4\r\nE: 5\r\n\r\n";
        let mut headers = Headers::new();
        headers.reset_to(raw);
        for (name, value) in [(16, 19), (22, 24), (27, 30), (34, 37), (40, 43)] {
            headers.push_range((name, 1), (value, 1), Known::Other);
        }
        assert_eq!(text(&headers), "A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\n");
        headers.set("d", b"44");
        assert_eq!(text(&headers), "A: 1\r\nB: 2\r\nC: 3\r\nd: 44\r\nE: 5\r\n");
        let mut out = Vec::new();
        headers.write_kept(&mut out, |_, name| name != b"A" && name != b"d");
        assert_eq!(out, b"B: 2\r\nC: 3\r\nE: 5\r\n");
    }

    #[test]
    fn hop_by_hop_goes_with_what_connection_names() {
        let mut headers = block(&[
            ("Connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("TE", "trailers"),
            ("Keep-Alive", "timeout=5"),
            ("X-Stays", "1"),
        ]);
        headers.remove_hop_by_hop();
        assert_eq!(text(&headers), "X-Stays: 1\r\n");
    }

    #[test]
    fn a_copy_has_the_fields_that_were_kept() {
        let from = block(&[("A", "1"), ("Host", "h"), ("a", "2")]);
        let mut copy = block(&[("old", "x")]);
        copy.copy_from(&from, |known, _| known != Known::Host);
        copy.append("B", b"3");
        assert_eq!(text(&copy), "A: 1\r\na: 2\r\nB: 3\r\n");
        assert_eq!(copy.get("a"), Some(b"1".as_slice()));
    }

    #[test]
    fn a_byte_that_cannot_stand_is_found_wherever_it_stands() {
        for len in 1..40 {
            let good = "x".repeat(len);
            for at in 0..len {
                for byte in 0..=0x7f_u8 {
                    let mut text = good.clone().into_bytes();
                    text[at] = byte;
                    let text = String::from_utf8(text).expect("ASCII");
                    let mut headers = Headers::new();
                    headers.append(&text, b"v");
                    let names = byte > b' ' && byte != b':' && byte != 0x7f;
                    assert_eq!(!headers.is_empty(), names, "name {text:?}");
                    headers.clear();
                    headers.set("n", text.as_bytes());
                    assert_eq!(headers.is_empty(), b"\r\n\0".contains(&byte), "value {text:?}");
                }
            }
        }
        let mut headers = block(&[("ü", "\u{8d}\u{8a}\u{80}")]);
        headers.append("empty", b"");
        assert_eq!(text(&headers), "ü: \u{8d}\u{8a}\u{80}\r\nempty: \r\n");
    }

    #[test]
    fn what_a_block_has_is_found_and_nothing_else_whatever_their_marks() {
        let names: Vec<String> =
            (0..200).map(|n| format!("X-{n}-{}", "y".repeat(n % 17))).collect();
        let mut headers = Headers::new();
        headers.append("Host", b"h");
        for (n, name) in names.iter().enumerate() {
            assert_eq!(headers.get(name), None);
            headers.set(&name.to_uppercase(), n.to_string().as_bytes());
            assert_eq!(headers.get(&name.to_lowercase()), Some(n.to_string().as_bytes()));
        }
        let mut copy = Headers::new();
        copy.copy_from(&headers, |known, _| known == Known::Other);
        assert_eq!((copy.len(), copy.known(Known::Host)), (200, None));
        assert!(names.iter().all(|name| copy.remove(name) && !copy.contains(name)));
        assert_eq!(copy.all("x-5-yyyyy").count() + copy.all_known(Known::Host).count(), 0);
        headers.clear();
        assert!(!names.iter().any(|name| headers.contains(name)));
    }

    #[test]
    fn another_blocks_fields_take_the_places_of_their_names() {
        let mut headers = block(&[("Vary", "a"), ("X-B", "1"), ("vary", "b"), ("Server", "s")]);
        let mut others = block(&[("old", "x"), ("VARY", "c"), ("x-new", "2"), ("Vary", "d")]);
        others.remove("old");
        headers.take_over(&others);
        assert_eq!(text(&headers), "VARY: c\r\nX-B: 1\r\nServer: s\r\nx-new: 2\r\nVary: d\r\n");
        headers.take_over(&block(&[("server", "t"), ("Connection", "close")]));
        assert_eq!(headers.known(Known::Server), Some(b"t".as_slice()));
        assert_eq!(headers.known(Known::Connection), Some(b"close".as_slice()));
    }

    #[test]
    fn a_name_looked_at_before_does_what_its_text_does() {
        static VARY: FieldName = FieldName::of_static("Vary");
        for text in ["Vary", "content-TYPE", "X-Own", "", "a b", "a:b", "a\r", "\u{7f}", "ü"] {
            let name = FieldName::from(text);
            let (mut by_text, mut by_name) = (block(&[("A", "1")]), block(&[("A", "1")]));
            assert_eq!(name.as_str(), text);
            for value in ["2", "3\n", "4"] {
                by_text.append(text, value.as_bytes());
                by_name.append_by(&name, value.as_bytes());
            }
            assert_eq!(self::text(&by_text), self::text(&by_name), "{text:?}");
            assert_eq!(by_text.get(text), by_name.get_by(&name), "{text:?}");
            by_text.set(text, b"5");
            by_name.set_by(&name, b"5");
            assert_eq!(self::text(&by_text), self::text(&by_name), "{text:?}");
            by_text.set(text, b"18446744073709551615");
            by_name.set_numbers_by([(&name, Number::Whole(u64::MAX))]);
            assert_eq!(self::text(&by_text), self::text(&by_name), "{text:?}");
            assert_eq!(by_text.remove(text), by_name.remove_by(&name), "{text:?}");
            assert_eq!(self::text(&by_name), "A: 1\r\n", "{text:?}");
        }
        let headers = block(&[("vary", "x"), ("Content-Type", "y")]);
        assert_eq!(headers.get_by(&VARY), Some(b"x".as_slice()));
        assert_ne!(VARY, FieldName::from("Varied"));
        let long = FieldName::from("n".repeat(70_000).as_str());
        let mut headers = Headers::new();
        headers.set_by(&long, b"v");
        assert!(headers.is_empty());
    }

    #[test]
    fn a_value_that_would_split_the_message_is_left_out() {
        let mut headers = Headers::new();
        headers.append("a", b"1\r\nInjected: 2");
        headers.append("b\n", b"1");
        headers.append("c", b"\0");
        // Each is like a known name but for one bit of a control character.
        for name in ["content\rtype", "x-api\rkey", "user\ragent", "http\x12-settings", "a b", ""] {
            headers.append(name, b"x");
        }
        assert!(headers.is_empty());
    }
}

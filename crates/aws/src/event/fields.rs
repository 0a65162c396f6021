//! What several formats share: headers and arguments grouped by name, cookies, certificates, time.

use std::ops::Range;

use smallvec::SmallVec;

use super::json::{Object, Sink, write_joined, write_text, write_texts};
use super::{ClientCertificate, EventRequest};

/// The headers of an event, sorted by name so that equal names stand together; equal names in the
/// order they arrived.
#[derive(Debug)]
pub(super) struct Headers<'a> {
    list: SmallVec<[Header<'a>; 48]>,
}

#[derive(Debug, Clone, Copy)]
struct Header<'a> {
    name: &'a str,
    value: &'a [u8],
    at: usize,
}

impl<'a> Headers<'a> {
    /// The request's headers, with the gateway's own in place of theirs.
    pub(super) fn of(request: &EventRequest<'a>) -> Self {
        Self::collect(request, &[], |_| true)
    }

    /// For the formats of AWS: functions that know its fronts take the first address of
    /// `x-forwarded-for` for the client's, so that one alone is there.
    pub(super) fn of_one_client(request: &EventRequest<'a>, keep: impl Fn(&str) -> bool) -> Self {
        Self::collect(request, &[("X-Forwarded-For", request.client_ip)], keep)
    }

    fn collect(
        request: &EventRequest<'a>,
        forwarded: &[(&'static str, &'a str)],
        keep: impl Fn(&str) -> bool,
    ) -> Self {
        let own = || forwarded.iter().copied().chain(request.own_headers.iter().copied());
        let mut list = SmallVec::<[Header<'a>; 48]>::new();
        for &(name, value) in request.headers {
            // All own names start with `x` or `t`: most headers are past this by one byte.
            if keep(name) && !own().any(|(own, _)| own.eq_ignore_ascii_case(name)) {
                list.push(Header { name, value, at: list.len() });
            }
        }
        for (name, value) in own() {
            list.push(Header { name, value: value.as_bytes(), at: list.len() });
        }
        list.sort_unstable_by(|a, b| {
            let lower = |header: &Header<'a>| header.name.bytes().map(|b| b.to_ascii_lowercase());
            lower(a).cmp(lower(b)).then(a.at.cmp(&b.at))
        });
        Self { list }
    }

    /// Every value of one header.
    pub(super) fn all(&self, wanted: &str) -> impl Iterator<Item = &'a [u8]> {
        self.list
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(wanted))
            .map(|header| header.value)
    }

    pub(super) fn first(&self, wanted: &str) -> Option<&'a [u8]> {
        self.all(wanted).next()
    }

    fn groups(&self) -> impl Iterator<Item = &[Header<'a>]> {
        self.list.chunk_by(|a, b| a.name.eq_ignore_ascii_case(b.name))
    }

    /// `{lower-case name: values joined by a comma}`
    pub(super) fn write_joined<S: Sink>(&self, out: &mut S) {
        self.write(out, Case::Lower, |values, out| {
            write_joined(values.iter().map(|it| it.value), b",", out);
        });
    }

    /// `{name: last value}`
    pub(super) fn write_last<S: Sink>(&self, case: Case, out: &mut S) {
        self.write(out, case, |values, out| {
            write_text(values.last().map_or(b"", |it| it.value), out);
        });
    }

    /// `{name: [values]}`
    pub(super) fn write_all<S: Sink>(&self, case: Case, out: &mut S) {
        self.write(out, case, |values, out| write_texts(values.iter().map(|it| it.value), out));
    }

    /// `{lower-case name: value}`, or `[values]` where there are several.
    pub(super) fn write_one_or_all<S: Sink>(&self, out: &mut S) {
        self.write(out, Case::Lower, |values, out| match values {
            [one] => write_text(one.value, out),
            several => write_texts(several.iter().map(|it| it.value), out),
        });
    }

    fn write<S: Sink>(&self, out: &mut S, case: Case, write_value: impl Fn(&[Header<'a>], &mut S)) {
        let mut object = Object::open(out);
        for group in self.groups() {
            let name = group[0].name;
            let lower;
            let name = match case {
                Case::Lower if name.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                    lower = name.to_ascii_lowercase();
                    &lower
                }
                _ => name,
            };
            write_value(group, object.any_name(name.as_bytes()));
        }
        object.close();
    }
}

/// How names of headers are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Case {
    Lower,
    AsSent,
}

/// The arguments of a query, sorted by name as [`Headers`] are.
pub(super) struct Arguments<'a> {
    text: ArgumentText<'a>,
    list: SmallVec<[Argument; 16]>,
}

enum ArgumentText<'a> {
    AsSent(&'a [u8]),
    Decoded(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Argument {
    name: Range<usize>,
    /// None for an argument without `=`.
    value: Option<Range<usize>>,
}

impl<'a> Arguments<'a> {
    /// Names and values without their escapes.
    pub(super) fn decoded(query: &str) -> Self {
        let mut text = Vec::with_capacity(query.len());
        let list = split(query.as_bytes(), |piece| {
            let start = text.len();
            decode_into(&query.as_bytes()[piece], &mut text);
            start..text.len()
        });
        Self::sorted(ArgumentText::Decoded(text), list)
    }

    /// Names and values as they were sent.
    pub(super) fn as_sent(query: &'a str) -> Self {
        let list = split(query.as_bytes(), |piece| piece);
        Self::sorted(ArgumentText::AsSent(query.as_bytes()), list)
    }

    fn sorted(text: ArgumentText<'a>, mut list: SmallVec<[Argument; 16]>) -> Self {
        let bytes = match &text {
            ArgumentText::AsSent(bytes) => bytes,
            ArgumentText::Decoded(bytes) => bytes.as_slice(),
        };
        // Ranges grow in order of arrival, so they keep equal names in that order.
        list.sort_unstable_by(|a, b| {
            let name = |it: &Argument| &bytes[it.name.clone()];
            let arrival = |it: &Argument| (it.name.start, it.value.as_ref().map(|value| value.end));
            name(a).cmp(name(b)).then_with(|| arrival(a).cmp(&arrival(b)))
        });
        Self { text, list }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().map(|argument| self.bytes(&argument.name))
    }

    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        match &self.text {
            ArgumentText::AsSent(bytes) => &bytes[range.clone()],
            ArgumentText::Decoded(bytes) => &bytes[range.clone()],
        }
    }

    fn value(&self, argument: &Argument) -> &[u8] {
        argument.value.as_ref().map_or(b"", |range| self.bytes(range))
    }

    /// `{name: values joined by a comma}`
    pub(super) fn write_joined<S: Sink>(&self, out: &mut S) {
        self.write(out, |group, out| {
            write_joined(group.iter().map(|it| self.value(it)), b",", out);
        });
    }

    /// `{name: last value}`
    pub(super) fn write_last<S: Sink>(&self, out: &mut S) {
        self.write(out, |group, out| {
            write_text(group.last().map_or(b"", |it| self.value(it)), out);
        });
    }

    /// `{name: first value}`
    pub(super) fn write_first<S: Sink>(&self, out: &mut S) {
        self.write(out, |group, out| write_text(self.value(&group[0]), out));
    }

    /// `{name: [values]}`
    pub(super) fn write_all<S: Sink>(&self, out: &mut S) {
        self.write(out, |group, out| write_texts(group.iter().map(|it| self.value(it)), out));
    }

    /// As nginx's Lua tells arguments: `value`, `[values]`, and `true` for one without `=`.
    pub(super) fn write_lua<S: Sink>(
        &self,
        object: &mut Object<'_, S>,
        skip: impl Fn(&[u8]) -> bool,
    ) {
        for group in self.groups() {
            let name = self.bytes(&group[0].name);
            if skip(name) {
                continue;
            }
            let out = object.any_name(name);
            let several = group.len() > 1;
            for (i, argument) in group.iter().enumerate() {
                if several {
                    out.raw(if i == 0 { b"[" } else { b"," });
                }
                match &argument.value {
                    Some(value) => write_text(self.bytes(value), out),
                    None => out.raw(b"true"),
                }
            }
            if several {
                out.raw(b"]");
            }
        }
    }

    fn groups(&self) -> impl Iterator<Item = &[Argument]> {
        self.list.chunk_by(|a, b| self.bytes(&a.name) == self.bytes(&b.name))
    }

    fn write<S: Sink>(&self, out: &mut S, write_value: impl Fn(&[Argument], &mut S)) {
        let mut object = Object::open(out);
        for group in self.groups() {
            write_value(group, object.any_name(self.bytes(&group[0].name)));
        }
        object.close();
    }
}

/// Cuts a query into arguments; `piece` says where the text of a name or a value is kept.
fn split(
    query: &[u8],
    mut piece: impl FnMut(Range<usize>) -> Range<usize>,
) -> SmallVec<[Argument; 16]> {
    let mut list = SmallVec::new();
    let mut start = 0;
    while start < query.len() {
        let end = memchr::memchr(b'&', &query[start..]).map_or(query.len(), |at| start + at);
        if end > start {
            let equals = memchr::memchr(b'=', &query[start..end]).map(|at| start + at);
            let name = piece(start..equals.unwrap_or(end));
            let value = equals.map(|at| piece(at + 1..end));
            list.push(Argument { name, value });
        }
        start = end + 1;
    }
    list
}

/// Takes escapes out; `+` is a space, and what is no escape stays.
pub(super) fn decode_into(text: &[u8], out: &mut Vec<u8>) {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let escaped = match text.get(at..at + 3) {
            Some(&[b'%', high, low]) => hex(high).zip(hex(low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(if byte == b'+' { b' ' } else { byte });
            at += 1;
        }
    }
}

/// Every cookie of the request, one by one.
pub(super) fn cookies<'a>(request: &EventRequest<'a>) -> impl Iterator<Item = &'a [u8]> {
    request
        .headers
        .iter()
        .filter(|(name, _)| is_cookie(name))
        .flat_map(|(_, value)| value.split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|cookie| !cookie.is_empty())
}

pub(super) fn is_cookie(name: &str) -> bool {
    name.eq_ignore_ascii_case("cookie")
}

pub(super) fn write_pairs<S: Sink>(pairs: &[(&str, &str)], out: &mut S) {
    let mut object = Object::open(out);
    for (i, (name, value)) in pairs.iter().enumerate() {
        // A name that comes twice would make two members of one object: the last one stands.
        if !pairs[i + 1..].iter().any(|(later, _)| later == name) {
            write_text(value.as_bytes(), object.any_name(name.as_bytes()));
        }
    }
    object.close();
}

pub(super) fn write_certificate<S: Sink>(certificate: &ClientCertificate<'_>, out: &mut S) {
    let mut object = Object::open(out);
    object.text("clientCertPem", certificate.pem);
    object.text("subjectDN", certificate.subject_dn);
    object.text("issuerDN", certificate.issuer_dn);
    object.text("serialNumber", certificate.serial_number);
    let mut validity = object.object("validity");
    validity.text("notBefore", certificate.not_before);
    validity.text("notAfter", certificate.not_after);
    validity.close();
    object.close();
}

/// `22/Nov/2026:21:44:20 +0000`
pub(super) fn write_time<S: Sink>(time_ms: u64, out: &mut S) {
    let seconds = time_ms / 1000;
    // Civil date from days since 1970 in eras of 400 years that begin on 1 March.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 2 } else { shifted - 10 };
    let year = year_of_era + era * 400 + u64::from(month < 2);
    let two = |value: u64| [b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8];
    let mut buffer = itoa::Buffer::new();
    out.raw(b"\"");
    out.raw(&two(day));
    out.raw(b"/");
    out.raw(MONTHS[month as usize % 12]);
    out.raw(b"/");
    out.raw(buffer.format(year).as_bytes());
    for part in [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60] {
        out.raw(b":");
        out.raw(&two(part));
    }
    out.raw(b" +0000\"");
}

const MONTHS: [&[u8]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_api_gateway_tells_them() {
        for (time_ms, told) in [
            (0, "\"01/Jan/1970:00:00:00 +0000\""),
            (1_583_348_638_390, "\"04/Mar/2020:19:03:58 +0000\""),
            (1_582_934_400_000, "\"29/Feb/2020:00:00:00 +0000\""),
            (1_767_225_599_999, "\"31/Dec/2025:23:59:59 +0000\""),
            (4_107_542_400_000, "\"01/Mar/2100:00:00:00 +0000\""),
        ] {
            let mut out = Vec::new();
            write_time(time_ms, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), told);
        }
        // The last time there is does not overflow.
        write_time(u64::MAX, &mut Vec::new());
    }

    #[test]
    fn escapes_are_taken_out_and_halves_of_them_stay() {
        for (text, decoded) in [
            ("a+b%20c%2B", "a b c+"),
            ("%C3%a9", "é"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%%41", "%A"),
        ] {
            let mut out = Vec::new();
            decode_into(text.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), decoded, "{text}");
        }
    }
}

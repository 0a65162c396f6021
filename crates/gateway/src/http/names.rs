//! Field names: those the gateway acts on, those that configuration gives, and what tells them apart
//! quickly.

use std::sync::Arc;

use super::sound::is_sound_name;

/// Field names the gateway itself acts on; told apart once, when a head is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the field name it spells")]
pub enum Known {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    Te,
    Trailer,
    Upgrade,
    Expect,
    XForwardedFor,
    XForwardedProto,
    XForwardedHost,
    XForwardedPort,
    XRealIp,
    Forwarded,
    ContentType,
    Authorization,
    XApiKey,
    XAmzDate,
    Server,
    Date,
    Cookie,
    UserAgent,
    Referer,
    Http2Settings,
}

impl Known {
    /// Which known name `name`, a token, is, compared without regard to case.
    pub const fn of(name: &[u8]) -> Known {
        use Known::*;
        // On every field of every head, so names are compared by words, not byte by byte: 10 % of
        // the instructions of a proxied request.
        let word = folded(name);
        macro_rules! one_of {
            ($($text:literal => $known:expr),*) => {{
                $({
                    let known = const { folded($text) };
                    if word.0 == known.0 && word.1 == known.1 {
                        return $known;
                    }
                })*
                Other
            }};
        }
        match name.len() {
            2 => one_of!(b"te" => Te),
            4 => one_of!(b"host" => Host, b"date" => Date),
            6 => one_of!(b"server" => Server, b"cookie" => Cookie, b"expect" => Expect),
            7 => one_of!(b"upgrade" => Upgrade, b"referer" => Referer, b"trailer" => Trailer),
            9 => {
                one_of!(b"x-api-key" => XApiKey, b"x-real-ip" => XRealIp, b"forwarded" => Forwarded)
            }
            10 => one_of!(
                b"connection" => Connection,
                b"user-agent" => UserAgent,
                b"keep-alive" => KeepAlive,
                b"x-amz-date" => XAmzDate
            ),
            12 => one_of!(b"content-type" => ContentType),
            13 => one_of!(b"authorization" => Authorization),
            14 => one_of!(b"content-length" => ContentLength, b"http2-settings" => Http2Settings),
            15 => one_of!(b"x-forwarded-for" => XForwardedFor),
            16 => one_of!(
                b"x-forwarded-host" => XForwardedHost,
                b"x-forwarded-port" => XForwardedPort,
                b"proxy-connection" => ProxyConnection
            ),
            // Two words of eight leave out the byte in the middle.
            17 if name[8] == b'-' => one_of!(b"transfer-encoding" => TransferEncoding),
            17 if name[8] | FOLD as u8 == b'd' => one_of!(b"x-forwarded-proto" => XForwardedProto),
            _ => Other,
        }
    }

    /// Is the field about one connection only (RFC 9110 section 7.6.1, and the older
    /// names that peers still send)?
    pub fn is_hop_by_hop(self) -> bool {
        HOP_BY_HOP.has(self as u8)
    }
}

/// Fields about one connection only.
pub(super) const HOP_BY_HOP: Marks = {
    let mut marks = Marks::NONE;
    marks.add(Known::Connection as u8);
    marks.add(Known::KeepAlive as u8);
    marks.add(Known::ProxyConnection as u8);
    marks.add(Known::Te as u8);
    marks.add(Known::Trailer as u8);
    marks.add(Known::TransferEncoding as u8);
    marks.add(Known::Upgrade as u8);
    marks.add(Known::Http2Settings as u8);
    marks
};

/// The first and the last word of a name in lower case. Letters differ from their capitals in one
/// bit, which is set here; no two characters of a token that have another meaning become alike
/// (control characters do, so whoever takes names that were not parsed checks them).
const fn folded(name: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        return (u64::from_le_bytes(*first) | FOLD, u64::from_le_bytes(*last) | FOLD);
    }
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        return (u32::from_le_bytes(*first) as u64 | FOLD, u32::from_le_bytes(*last) as u64 | FOLD);
    }
    match name {
        [first, .., last] => (*first as u64 | FOLD, *last as u64 | FOLD),
        _ => (0, 0),
    }
}

/// The bit that tells small letters from capitals, in each byte.
const FOLD: u64 = 0x2020_2020_2020_2020;

/// Marks of field names: a bit for each known name, and one of some for each of the others. Most
/// questions are about fields that a head does not have, and this answers them at once.
#[derive(Clone, Copy, Default)]
pub(super) struct Marks([u64; 4]);

impl Marks {
    pub(super) const NONE: Self = Self([0; 4]);

    #[inline]
    pub(super) const fn add(&mut self, mark: u8) {
        self.0[(mark >> 6) as usize] |= 1 << (mark & 63);
    }

    #[inline]
    pub(super) const fn has(&self, mark: u8) -> bool {
        self.0[(mark >> 6) as usize] & (1 << (mark & 63)) != 0
    }

    #[inline]
    pub(super) fn add_all(&mut self, more: Self) {
        for (own, more) in self.0.iter_mut().zip(more.0) {
            *own |= more;
        }
    }

    #[inline]
    pub(super) fn any(&self, of: Self) -> bool {
        self.0.iter().zip(of.0).fold(0, |found, (own, of)| found | own & of) != 0
    }
}

/// A field name and what tells it from most others.
#[derive(Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) text: &'a [u8],
    pub(super) known: Known,
    /// Which bit of [`Marks`] is its own.
    pub(super) mark: u8,
}

impl<'a> Name<'a> {
    #[inline]
    pub(super) const fn of(text: &'a [u8]) -> Self {
        Self::of_known(text, Known::of(text))
    }

    /// A name that is known as `known`.
    #[inline]
    pub(super) const fn of_known(text: &'a [u8], known: Known) -> Self {
        let mark = match known {
            Known::Other => {
                let (first, last) = folded(text);
                let mixed = (first ^ last.rotate_left(29)).wrapping_mul(MIX) >> 32;
                MARKS_KNOWN + ((mixed * (256 - MARKS_KNOWN as u64)) >> 32) as u8
            }
            _ => known as u8,
        };
        Self { text, known, mark }
    }
}

/// A field name that was looked at when configuration changed, so that it costs less per request than
/// its text. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName {
    text: Text,
    known: Known,
    pub(super) mark: u8,
    /// It can stand in a head.
    pub(super) sound: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Text {
    Static(&'static str),
    Shared(Arc<str>),
}

impl FieldName {
    /// One that is no part of the configuration.
    pub const fn of_static(text: &'static str) -> Self {
        let Name { known, mark, .. } = Name::of(text.as_bytes());
        Self { text: Text::Static(text), known, mark, sound: is_sound_name(text.as_bytes()) }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        match &self.text {
            Text::Static(text) => text,
            Text::Shared(text) => text,
        }
    }

    #[inline]
    pub(super) fn name(&self) -> Name<'_> {
        Name { text: self.as_str().as_bytes(), known: self.known, mark: self.mark }
    }
}

impl From<&str> for FieldName {
    fn from(text: &str) -> Self {
        let Name { known, mark, .. } = Name::of(text.as_bytes());
        Self { text: Text::Shared(text.into()), known, mark, sound: is_sound_name(text.as_bytes()) }
    }
}

/// Bits of [`Marks`] that known names have, each its own.
const MARKS_KNOWN: u8 = 32;

/// Spreads names over the other marks: an odd number whose bits have no pattern (2^64 by the golden ratio).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_told_apart_in_any_case_and_from_their_likes() {
        for (name, known) in [
            ("TE", Known::Te),
            ("hOST", Known::Host),
            ("Cookie", Known::Cookie),
            ("Upgrade", Known::Upgrade),
            ("X-Real-IP", Known::XRealIp),
            ("USER-AGENT", Known::UserAgent),
            ("Content-Length", Known::ContentLength),
            ("X-Forwarded-For", Known::XForwardedFor),
            ("x-forwarded-HOST", Known::XForwardedHost),
            ("Transfer-Encoding", Known::TransferEncoding),
            ("X-Forwarded-Proto", Known::XForwardedProto),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
            for at in 0..name.len() {
                for other in [b'q', b'_', b'~', b'9'] {
                    let mut like = name.as_bytes().to_vec();
                    like[at] = other;
                    let text = String::from_utf8_lossy(&like).into_owned();
                    assert_eq!(Known::of(&like), Known::Other, "{text}");
                }
            }
        }
        assert_eq!(Known::of(b""), Known::Other);
    }
}

//! Request paths: nginx's normalised form, and the raw form that function plugins forward.
//!
//! Routes, the variable `uri` and plugins see a path as nginx rewrites it (`ngx_http_parse_complex_uri`):
//! percent-decoded once, dot segments resolved, runs of slashes merged; an encoded slash or dot counts
//! like a plain one. [`resolve_raw_rest`] goes the other way: it finds the part of the path as sent that
//! a route's `*` stands for, so that it can be forwarded with its escapes and doubled slashes.
//!
//! Invariant: for every path `normalize` accepts, and every prefix of the result, normalising
//! `join(prefix, resolve_raw_rest(path, prefix))` gives the same result again.

use std::{borrow::Cow, ops::Range};

use memchr::{memchr, memchr2};

/// Why a path is refused; each of them answers 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// `..` where no segment is left.
    #[error("the path climbs above the root")]
    AboveRoot,
    /// `%` without two hexadecimal digits behind it.
    #[error("the path has a malformed percent escape")]
    BadEscape,
    /// `%00`, or the byte itself.
    #[error("the path has a NUL byte")]
    Nul,
    /// A path that does not begin with a slash.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// `.;a` or `..;a`, refused by [`normalize_like_servlet`].
    #[error("the path has a dot segment with a parameter")]
    DotSegmentWithParameter,
    /// `;a` between two slashes, refused by [`normalize_like_servlet`].
    #[error("the path has an empty segment with parameters")]
    EmptySegmentWithParameter,
}

/// A request target (origin form) in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path as sent.
    pub path: &'a [u8],
    /// The query as sent, without `?`; `None` when there is no `?`.
    pub args: Option<&'a [u8]>,
}

impl<'a> Target<'a> {
    /// Splits a target at its `?`. A fragment, which no client should send, is left out as nginx does.
    pub fn split(target: &'a [u8]) -> Self {
        let target = match memchr(b'#', target) {
            Some(fragment) => &target[..fragment],
            None => target,
        };
        match memchr(b'?', target) {
            Some(query) => Self { path: &target[..query], args: Some(&target[query + 1..]) },
            None => Self { path: target, args: None },
        }
    }
}

/// Normalises a path as sent. Borrows when nothing changes, after one look at each byte.
///
/// A query or fragment that is still there is cut off; an empty path is the root.
pub fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>, UriError> {
    let path = path_only(path);
    match path.first() {
        None => return Ok(Cow::Borrowed(b"/")),
        Some(b'/') => {}
        Some(_) => return Err(UriError::NotAbsolute),
    }
    if is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    Ok(Cow::Owned(Resolved::new(path, Slashes::Decoded)?.uri))
}

/// Where an encoded slash is kept apart from a plain one, see [`keep_encoded_slash`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slashes {
    /// `%2F` is a slash.
    #[default]
    Decoded,
    /// `%2F` stays as these three characters.
    Kept,
}

/// The part of a path as sent that follows `prefix`, a prefix of the normalised path: what the `*` of a
/// route stands for.
///
/// Escapes and doubled slashes stay as sent; dot segments are resolved first, so the rest never leads
/// above the prefix. Neither does it include the slash that ends the prefix. What a URI may not carry
/// unescaped is escaped. `None` when the path is malformed or does not begin with the prefix.
pub fn resolve_raw_rest<'a>(path: &'a [u8], prefix: &[u8]) -> Option<Cow<'a, str>> {
    let path = path_only(path);
    if is_plain(path) {
        return path.starts_with(prefix).then(|| plain_rest(path, prefix.len()..path.len()));
    }
    let resolved = Resolved::new(path, Slashes::Decoded).ok()?;
    resolved.uri.starts_with(prefix).then_some(())?;
    resolved.rest(prefix.len()..resolved.uri.len())
}

/// Like [`resolve_raw_rest`], for a range of the normalised path: a parameter of the matched route.
///
/// `slashes` says in which form of the path the route was matched.
pub fn resolve_raw_range(
    path: &[u8],
    range: Range<usize>,
    slashes: Slashes,
) -> Option<Cow<'_, str>> {
    let path = path_only(path);
    if is_plain(path) {
        path.get(range.clone())?;
        return Some(plain_rest(path, range));
    }
    Resolved::new(path, slashes).ok()?.rest(range)
}

/// Puts `rest` under `path`, with one slash between them.
pub fn join(path: &str, rest: &str) -> String {
    let mut joined = String::with_capacity(path.len() + rest.len() + 1);
    joined.push_str(path);
    if !path.ends_with('/') {
        joined.push('/');
    }
    joined.push_str(rest);
    joined
}

/// The path to match when `apisix.match_uri_encoded_slash` is on and it differs from `uri`: `%2F` stays
/// encoded (in upper case), everything else is decoded.
///
/// Only a path that needed nothing but decoding qualifies, so nothing gets past a route this way.
pub fn keep_encoded_slash(path: &[u8], uri: &[u8]) -> Option<Vec<u8>> {
    let path = path_only(path);
    if !path.windows(3).any(is_encoded_slash) {
        return None;
    }
    let (mut decoded, mut kept) = (Vec::with_capacity(path.len()), Vec::with_capacity(path.len()));
    for token in tokens(path) {
        let token = token.ok()?;
        decoded.push(token.byte);
        match is_encoded_slash(token.raw) {
            true => kept.extend_from_slice(ENCODED_SLASH),
            false => kept.push(token.byte),
        }
    }
    (decoded == uri).then_some(kept)
}

/// `apisix.delete_uri_tail_slash`: the path without the slash at its end.
///
/// Differs: the root keeps its slash; APISIX leaves an empty path, which no route matches.
pub fn delete_uri_tail_slash(uri: &[u8]) -> &[u8] {
    match uri {
        [rest @ .., b'/'] if !rest.is_empty() => rest,
        uri => uri,
    }
}

/// `apisix.normalize_uri_like_servlet`: the path without the parameters (`;name=value`) of its segments.
///
/// Segments that would hide a dot segment or an empty one are refused. As in APISIX, a path that had
/// parameters also loses the slashes at its end.
pub fn normalize_like_servlet(uri: &[u8]) -> Result<Cow<'_, [u8]>, UriError> {
    if memchr(b';', uri).is_none() {
        return Ok(Cow::Borrowed(uri));
    }
    let end = uri.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    let mut plain = Vec::with_capacity(end);
    let mut segments = uri[..end].split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match memchr(b';', segment) {
            None => plain.extend_from_slice(segment),
            Some(parameter) => {
                let name = &segment[..parameter];
                if name == b"." || name == b".." {
                    return Err(UriError::DotSegmentWithParameter);
                }
                if name.eq_ignore_ascii_case(b"%2e") || name.eq_ignore_ascii_case(b"%2e%2e") {
                    return Err(UriError::DotSegmentWithParameter);
                }
                if name.is_empty() && !last {
                    return Err(UriError::EmptySegmentWithParameter);
                }
                plain.extend_from_slice(name);
            }
        }
        if !last {
            plain.push(b'/');
        }
    }
    Ok(Cow::Owned(plain))
}

/// Escapes a decoded path so that it can stand in a request line; `%`, `?` and `#` are data here.
pub fn escape(uri: &[u8]) -> Cow<'_, str> {
    escape_where(uri, |byte| byte == b'%' || !may_stand(byte))
}

/// Escapes what may not stand in a request line at all, in a query as sent: blanks, control characters
/// and bytes beyond ASCII. Escapes that are there stay as they are.
pub fn escape_query(query: &[u8]) -> Cow<'_, str> {
    escape_where(query, |byte| !byte.is_ascii_graphic())
}

/// Escapes a decoded path the way nginx does (`ngx_escape_uri`), which leaves more as it is than
/// [`escape`].
pub fn escape_like_nginx(uri: &[u8]) -> Cow<'_, str> {
    escape_where(uri, |byte| !byte.is_ascii_graphic() || b"\"#%<>?\\^`{|}".contains(&byte))
}

/// Escapes control characters and nothing else; what is not UTF-8 is replaced.
pub fn escape_controls(text: &[u8]) -> Cow<'_, str> {
    escape_where(text, |byte| byte.is_ascii_control() || byte >= 0x80)
}

fn path_only(path: &[u8]) -> &[u8] {
    match memchr2(b'?', b'#', path) {
        Some(end) => &path[..end],
        None => path,
    }
}

/// Whether normalising changes nothing: no escape, no doubled slash, no dot behind a slash.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        match byte {
            b'%' | 0 => return false,
            b'/' | b'.' if after_slash => return false,
            _ => after_slash = byte == b'/',
        }
    }
    path.first() == Some(&b'/')
}

fn plain_rest(path: &[u8], mut range: Range<usize>) -> Cow<'_, str> {
    if skips_slash(path, range.start) && range.start < range.end {
        range.start += 1;
    }
    escape_where(&path[range], |byte| !may_stand(byte))
}

/// Whether the byte at `start` is the slash between a prefix and its rest.
fn skips_slash(uri: &[u8], start: usize) -> bool {
    uri.get(start) == Some(&b'/') && (start == 0 || uri[start - 1] != b'/')
}

/// A path while dot segments are resolved: normalised, as sent, and how the two belong together.
struct Resolved {
    uri: Vec<u8>,
    raw: Vec<u8>,
    /// For each byte of `uri`, where the text it was sent as ends in `raw`.
    ends: Vec<usize>,
}

impl Resolved {
    fn new(path: &[u8], slashes: Slashes) -> Result<Self, UriError> {
        if path.first() != Some(&b'/') {
            return Err(UriError::NotAbsolute);
        }
        let mut resolved = Self {
            uri: Vec::with_capacity(path.len()),
            raw: Vec::with_capacity(path.len()),
            ends: Vec::with_capacity(path.len()),
        };
        let mut segment = Mark { uri: 0, raw: 0 };
        let mut above: Vec<Mark> = Vec::new();
        for token in tokens(path) {
            let token = token?;
            if slashes == Slashes::Kept && is_encoded_slash(token.raw) {
                resolved.push(ENCODED_SLASH, token.raw);
            } else if token.byte != b'/' {
                resolved.push(&[token.byte], token.raw);
            } else {
                // The slash behind a resolved dot segment goes with it.
                let resolves = resolved.end_segment(segment, &mut above)?;
                match resolved.uri.last() {
                    _ if resolves => {}
                    Some(b'/') => resolved.raw.extend_from_slice(token.raw),
                    _ => resolved.push(b"/", token.raw),
                }
                segment = Mark { uri: resolved.uri.len(), raw: resolved.raw.len() };
            }
        }
        resolved.end_segment(segment, &mut above)?;
        Ok(resolved)
    }

    fn push(&mut self, bytes: &[u8], raw: &[u8]) {
        self.raw.extend_from_slice(raw);
        self.uri.extend_from_slice(bytes);
        self.ends.resize(self.uri.len(), self.raw.len());
    }

    /// Resolves the last segment if it is made of dots, and says so; remembers where it starts if not.
    fn end_segment(&mut self, segment: Mark, above: &mut Vec<Mark>) -> Result<bool, UriError> {
        let back_to = match &self.uri[segment.uri..] {
            b"." => segment,
            b".." => above.pop().ok_or(UriError::AboveRoot)?,
            b"" => return Ok(false),
            _ => {
                above.push(segment);
                return Ok(false);
            }
        };
        self.uri.truncate(back_to.uri);
        self.ends.truncate(back_to.uri);
        self.raw.truncate(back_to.raw);
        Ok(true)
    }

    fn rest(&self, mut range: Range<usize>) -> Option<Cow<'static, str>> {
        self.uri.get(range.clone())?;
        if skips_slash(&self.uri, range.start) && range.start < range.end {
            range.start += 1;
        }
        let end_of = |index: usize| if index == 0 { 0 } else { self.ends[index - 1] };
        let end = if range.end == self.uri.len() { self.raw.len() } else { end_of(range.end) };
        let rest = self.raw.get(end_of(range.start)..end)?;
        Some(Cow::Owned(escape_where(rest, |byte| !may_stand(byte)).into_owned()))
    }
}

/// Where a segment starts, in both forms.
#[derive(Clone, Copy)]
struct Mark {
    uri: usize,
    raw: usize,
}

/// One byte of the decoded path, and the one or three bytes it was sent as.
struct Token<'a> {
    byte: u8,
    raw: &'a [u8],
}

fn tokens(path: &[u8]) -> impl Iterator<Item = Result<Token<'_>, UriError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let token = token(path.get(at..)?)?;
        at = token.as_ref().map_or(path.len(), |token| at + token.raw.len());
        Some(token)
    })
}

fn token(rest: &[u8]) -> Option<Result<Token<'_>, UriError>> {
    let (byte, raw) = match rest {
        [] => return None,
        [b'%', high, low, ..] => match (hex(*high), hex(*low)) {
            (Some(high), Some(low)) => (high << 4 | low, &rest[..3]),
            _ => return Some(Err(UriError::BadEscape)),
        },
        [b'%', ..] => return Some(Err(UriError::BadEscape)),
        [byte, ..] => (*byte, &rest[..1]),
    };
    Some(if byte == 0 { Err(UriError::Nul) } else { Ok(Token { byte, raw }) })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn is_encoded_slash(raw: &[u8]) -> bool {
    raw.eq_ignore_ascii_case(ENCODED_SLASH)
}

const ENCODED_SLASH: &[u8] = b"%2F";

/// Whether a byte may stand unescaped in a path (RFC 3986, section 3.3), or begins an escape.
fn may_stand(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/%-._~!$&'()*+,;=:@".contains(&byte)
}

fn escape_where(text: &[u8], escaped: impl Fn(u8) -> bool) -> Cow<'_, str> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if let Ok(plain) = std::str::from_utf8(text)
        && !text.iter().any(|&byte| escaped(byte))
    {
        return Cow::Borrowed(plain);
    }
    let mut output = String::with_capacity(text.len() + 8);
    for &byte in text {
        if escaped(byte) {
            output.push('%');
            output.push(char::from(DIGITS[usize::from(byte >> 4)]));
            output.push(char::from(DIGITS[usize::from(byte & 15)]));
        } else {
            output.push(char::from(byte));
        }
    }
    Cow::Owned(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result<Cow<'_, [u8]>, UriError>) -> Result<String, UriError> {
        result.map(|uri| String::from_utf8_lossy(&uri).into_owned())
    }

    #[test]
    fn paths_are_normalised_as_nginx_does() {
        use UriError::*;
        for (path, expected) in [
            ("/", Ok("/")),
            ("", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a/b/", Ok("/a/b/")),
            ("/a//b", Ok("/a/b")),
            ("//a", Ok("/a")),
            ("///", Ok("/")),
            ("/a/./b", Ok("/a/b")),
            ("/a/.", Ok("/a/")),
            ("/.", Ok("/")),
            ("/./", Ok("/")),
            ("/a/../b", Ok("/b")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/b/../", Ok("/a/")),
            ("/a//../b", Ok("/b")),
            ("/a/b/../../c", Ok("/c")),
            ("/a/.b", Ok("/a/.b")),
            ("/a/..b", Ok("/a/..b")),
            ("/a/...", Ok("/a/...")),
            ("/a/b.", Ok("/a/b.")),
            ("/..", Err(AboveRoot)),
            ("/../", Err(AboveRoot)),
            ("//..", Err(AboveRoot)),
            ("/a/../..", Err(AboveRoot)),
            ("/a/..%2f..", Err(AboveRoot)),
            ("/%2e%2e/a", Err(AboveRoot)),
            ("/a/%2e%2E/b", Ok("/b")),
            ("/a/.%2e/b", Ok("/b")),
            ("/a/%2e/b", Ok("/a/b")),
            ("/a%2Fb", Ok("/a/b")),
            ("/a%2f%2Fb", Ok("/a/b")),
            ("/a%2f../b", Ok("/b")),
            ("/%61ws", Ok("/aws")),
            ("/a%20b", Ok("/a b")),
            ("/a+b", Ok("/a+b")),
            ("/a%2Bb", Ok("/a+b")),
            ("/a%3Fb", Ok("/a?b")),
            ("/a%23b", Ok("/a#b")),
            ("/a%25b", Ok("/a%b")),
            ("/a%2541", Ok("/a%41")),
            ("/%C3%A9", Ok("/é")),
            ("/é", Ok("/é")),
            ("/a%0ab", Ok("/a\nb")),
            ("/a?b=/../..", Ok("/a")),
            ("/a#b", Ok("/a")),
            ("/a/..#b", Ok("/")),
            ("/a/.?b", Ok("/a/")),
            ("/a%00", Err(Nul)),
            ("/a\0", Err(Nul)),
            ("/a%zz", Err(BadEscape)),
            ("/a%4", Err(BadEscape)),
            ("/a%", Err(BadEscape)),
            ("/a%+1", Err(BadEscape)),
            ("a", Err(NotAbsolute)),
            ("*", Err(NotAbsolute)),
            ("%2Fa", Err(NotAbsolute)),
        ] {
            assert_eq!(text(normalize(path.as_bytes())), expected.map(str::to_owned), "{path}");
        }
        assert_eq!(normalize(b"/%FF\xfe").expect("bytes need not be text").as_ref(), b"/\xff\xfe");
    }

    #[test]
    fn a_path_in_normal_form_is_borrowed() {
        for path in ["/", "/a/b/", "/a.b/c..d", "/é", "/a;b=c", "/a?b//c%zz", "/a~b:@!$&'()*+,="] {
            assert!(matches!(normalize(path.as_bytes()), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn a_target_loses_its_fragment() {
        for (target, path, args) in [
            ("/a", "/a", None),
            ("/a?", "/a", Some("")),
            ("/a?b=1&c", "/a", Some("b=1&c")),
            ("/a?b?c", "/a", Some("b?c")),
            ("/a#b?c", "/a", None),
            ("/a?b#c", "/a", Some("b")),
        ] {
            let split = Target { path: path.as_bytes(), args: args.map(str::as_bytes) };
            assert_eq!(Target::split(target.as_bytes()), split, "{target}");
        }
    }

    #[test]
    fn the_rest_keeps_how_it_was_sent() {
        for (path, prefix, rest) in [
            ("/aws/fn", "/aws/", Some("fn")),
            ("/aws/fn/sub/", "/aws/", Some("fn/sub/")),
            ("/aws/", "/aws/", Some("")),
            ("/aws", "/aws/", None),
            ("/other/fn", "/aws/", None),
            ("/aws/a%2Fb", "/aws/", Some("a%2Fb")),
            ("/aws%2Fa%2fb", "/aws/", Some("a%2fb")),
            ("/aws/a%20b+c", "/aws/", Some("a%20b+c")),
            ("/aws/%C3%A9", "/aws/", Some("%C3%A9")),
            ("/aws/é", "/aws/", Some("%C3%A9")),
            ("/aws/a b|c", "/aws/", Some("a%20b%7Cc")),
            ("/aws/%7e%41", "/aws/", Some("%7e%41")),
            ("/%61ws/x", "/aws/", Some("x")),
            ("/%61ws/%61", "/aws/", Some("%61")),
            ("/aws//dbl", "/aws/", Some("/dbl")),
            ("//aws//x", "/aws/", Some("/x")),
            ("/aws///", "/aws/", Some("//")),
            ("/aws/a//b", "/aws/", Some("a//b")),
            ("/aws/./x/../y", "/aws/", Some("y")),
            ("/aws/x/..", "/aws/", Some("")),
            ("/aws/x/../", "/aws/", Some("")),
            ("/aws/x//../y", "/aws/", Some("y")),
            ("/aws/.//y", "/aws/", Some("/y")),
            ("/aws/x/..//y", "/aws/", Some("/y")),
            ("/x/../aws/y", "/aws/", Some("y")),
            ("/x/%2e%2e/aws/y", "/aws/", Some("y")),
            ("/aws/x/%2E%2e/y%2e", "/aws/", Some("y%2e")),
            ("/aws/..%2f..", "/aws/", None),
            ("/aws/../x", "/aws/", None),
            ("/aws/..", "/aws/", None),
            ("/aws/..%2faws/y", "/aws/", Some("y")),
            ("/aws/a%2f..%2fb", "/aws/", Some("b")),
            ("/aws/a/../../aws/b", "/aws/", Some("b")),
            ("/aws/%2e%2e%2faws%2fb", "/aws/", Some("b")),
            ("/aws/%zz", "/aws/", None),
            ("/aws/a%3Fb?c", "/aws/", Some("a%3Fb")),
            ("/aws/a#b", "/aws/", Some("a")),
            ("/a/b/c", "/", Some("a/b/c")),
            ("//a/b", "/", Some("/a/b")),
            ("/a/b", "", Some("a/b")),
            ("//a/b", "", Some("/a/b")),
            ("/aws/fn", "/aws", Some("fn")),
            ("/aws//fn", "/aws", Some("/fn")),
            ("/awsfn", "/aws", Some("fn")),
            ("/aws", "/aws", Some("")),
        ] {
            assert_eq!(
                resolve_raw_rest(path.as_bytes(), prefix.as_bytes()).as_deref(),
                rest,
                "{path}"
            );
        }
    }

    #[test]
    fn a_plain_rest_is_borrowed() {
        assert!(matches!(resolve_raw_rest(b"/aws/a/b", b"/aws/"), Some(Cow::Borrowed("a/b"))));
    }

    #[test]
    fn a_range_is_cut_in_either_form_of_the_path() {
        use Slashes::*;
        for (path, range, slashes, rest) in [
            ("/u/42/x", 3..5, Decoded, Some("42")),
            ("/u/%34%32/x", 3..5, Decoded, Some("%34%32")),
            ("/u/a%2fb/x", 3..6, Decoded, Some("a%2fb")),
            ("/u/a%2fb/x", 3..8, Kept, Some("a%2fb")),
            ("/u/a%2fb/x", 9..10, Kept, Some("x")),
            ("/u/x", 3..9, Decoded, None),
            ("/u/%41", 3..9, Decoded, None),
        ] {
            let found = resolve_raw_range(path.as_bytes(), range.clone(), slashes);
            assert_eq!(found.as_deref(), rest, "{path} {range:?}");
        }
    }

    #[test]
    fn joined_paths_have_one_slash_between_them() {
        for (path, rest, joined) in [
            ("/default", "fn", "/default/fn"),
            ("/default/", "fn", "/default/fn"),
            ("/default", "", "/default/"),
            ("", "fn", "/fn"),
            ("/", "", "/"),
            ("/default", "/dbl", "/default//dbl"),
        ] {
            assert_eq!(join(path, rest), joined);
        }
    }

    #[test]
    fn an_encoded_slash_is_kept_only_where_nothing_else_changed() {
        for (path, kept) in [
            ("/v1/te%2Fst/list", Some("/v1/te%2Fst/list")),
            ("/v1/te%2fst", Some("/v1/te%2Fst")),
            ("/v1/a%41%2Fb", Some("/v1/aA%2Fb")),
            ("/trailing/a%2Fb/", Some("/trailing/a%2Fb/")),
            ("/v1/test", None),
            ("/v1/te%41st", None),
            ("/x%2Fy/../..", None),
            ("/a%2Fb/%2e%2e", None),
            ("/a%2F%2Fb", None),
            ("/a//b%2F", None),
        ] {
            let uri = normalize(path.as_bytes()).expect("well-formed");
            let found = keep_encoded_slash(path.as_bytes(), &uri);
            assert_eq!(found.as_deref(), kept.map(str::as_bytes), "{path}");
        }
    }

    #[test]
    fn the_tail_slash_can_be_deleted() {
        for (uri, expected) in [("/a/", "/a"), ("/a", "/a"), ("/", "/"), ("", "")] {
            assert_eq!(delete_uri_tail_slash(uri.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn servlet_parameters_are_removed() {
        use UriError::*;
        for (uri, expected) in [
            ("/hello", Ok("/hello")),
            ("/hello/", Ok("/hello/")),
            ("/hello;world", Ok("/hello")),
            ("/hello;a=b/world;a/;", Ok("/hello/world/")),
            ("/a;b;c/d", Ok("/a/d")),
            ("/a;b/", Ok("/a")),
            ("/;a", Ok("/")),
            ("/;a/b", Err(EmptySegmentWithParameter)),
            ("/a/.;b/c", Err(DotSegmentWithParameter)),
            ("/a/..;/c", Err(DotSegmentWithParameter)),
            ("/a/%2E;/c", Err(DotSegmentWithParameter)),
            ("/a/%2e%2E;/c", Err(DotSegmentWithParameter)),
        ] {
            assert_eq!(
                text(normalize_like_servlet(uri.as_bytes())),
                expected.map(str::to_owned),
                "{uri}"
            );
        }
    }

    #[test]
    fn escaping_and_normalising_are_inverse() {
        for (uri, escaped) in [
            (&b"/a/b"[..], "/a/b"),
            (b"/a b%41?c#d", "/a%20b%2541%3Fc%23d"),
            (b"/\xff\n", "/%FF%0A"),
        ] {
            assert_eq!(escape(uri), escaped);
            assert_eq!(normalize(escaped.as_bytes()).expect("well-formed").as_ref(), uri);
        }
    }

    #[test]
    fn a_query_keeps_its_escapes() {
        for (query, escaped) in [
            (&b"a=%20b+c&d[]=1&e=/?"[..], "a=%20b+c&d[]=1&e=/?"),
            (b"a=b c\n", "a=b%20c%0A"),
            ("é=1".as_bytes(), "%C3%A9=1"),
        ] {
            assert_eq!(escape_query(query), escaped);
        }
    }

    /// nginx's own state machine, told again byte by byte, to compare with.
    fn nginx(path: &[u8]) -> Option<Vec<u8>> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            Usual,
            Slash,
            Dot,
            DotDot,
        }
        fn up(out: &mut Vec<u8>) -> Option<()> {
            out.truncate(out.len().checked_sub(4)? + 1);
            while out.pop()? != b'/' {}
            out.push(b'/');
            Some(())
        }
        let (mut state, mut out, mut at) = (State::Usual, Vec::new(), 0);
        while at < path.len() {
            let (mut byte, mut quoted) = (path[at], false);
            at += 1;
            if byte == b'%' {
                let digits = std::str::from_utf8(path.get(at..at + 2)?).ok()?;
                digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
                byte = u8::from_str_radix(digits, 16).ok()?;
                (at, quoted) = (at + 2, true);
            }
            if byte == 0 {
                return None;
            }
            let plain = quoted && matches!(byte, b'%' | b'#' | b'?');
            state = match (state, byte) {
                (State::Usual, b'/') => {
                    out.push(b'/');
                    State::Slash
                }
                (State::Slash, b'/') => State::Slash,
                (State::Dot, b'/') => {
                    out.pop();
                    State::Slash
                }
                (State::DotDot, b'/') => {
                    up(&mut out)?;
                    State::Slash
                }
                (State::Slash, b'.') if !plain => {
                    out.push(b'.');
                    State::Dot
                }
                (State::Dot, b'.') if !plain => {
                    out.push(b'.');
                    State::DotDot
                }
                _ => {
                    out.push(byte);
                    State::Usual
                }
            };
        }
        match state {
            State::Dot => drop(out.pop()),
            State::DotDot => up(&mut out)?,
            _ => {}
        }
        Some(out)
    }

    /// A small generator, so that a failing case can be found again by its number.
    fn random_path(seed: u64) -> Vec<u8> {
        const PIECES: [&[u8]; 20] = [
            b"/", b"/", b"/", b".", b".", b"..", b"a", b"b", b"aws", b"%2e", b"%2F", b"%2f",
            b"%41", b"%25", b"%3f", b"%", b"\xff", b" ", b"%00", b"x%C3%A9",
        ];
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        // Malformed pieces sit at the end: most paths leave them out.
        let kinds = if next(8) == 0 { 20 } else { 15 };
        let mut path = b"/".to_vec();
        for _ in 0..next(14) {
            path.extend_from_slice(PIECES[next(kinds)]);
        }
        path
    }

    #[test]
    fn random_paths_keep_the_promises() {
        for seed in 0..20_000 {
            let path = random_path(seed);
            let shown = String::from_utf8_lossy(&path).into_owned();
            let normal = normalize(&path);
            assert_eq!(normal.as_deref().ok(), nginx(&path).as_deref(), "#{seed} {shown}");
            let Ok(uri) = normal else {
                assert_eq!(resolve_raw_rest(&path, b"/"), None, "#{seed} {shown}");
                continue;
            };
            assert_eq!(normalize(escape(&uri).as_bytes()).as_deref(), Ok(&*uri), "#{seed} {shown}");
            for cut in (0..=uri.len()).filter(|&cut| uri[..cut].ends_with(b"/")) {
                let rest = resolve_raw_rest(&path, &uri[..cut]).expect("the prefix is there");
                let joined = join(&escape(&uri[..cut]), &rest);
                assert_eq!(
                    normalize(joined.as_bytes()).as_deref(),
                    Ok(&*uri),
                    "#{seed} {shown} at {cut}"
                );
                // Wherever the rest is put, it stays below.
                let moved = normalize(join("/deep/er", &rest).as_bytes()).map(Cow::into_owned);
                let moved = moved.expect("the rest does not climb");
                assert!(moved.starts_with(b"/deep/er/"), "#{seed} {shown} at {cut}");
            }
            for cut in 0..=uri.len() {
                assert!(resolve_raw_rest(&path, &uri[..cut]).is_some(), "#{seed} {shown} at {cut}");
            }
            if let Some(kept) = keep_encoded_slash(&path, &uri) {
                let whole = resolve_raw_range(&path, 1..kept.len(), Slashes::Kept);
                assert_eq!(
                    whole.as_deref().map(str::len),
                    Some(escape_where(&path, |b| !may_stand(b)).len() - 1)
                );
            }
        }
    }
}

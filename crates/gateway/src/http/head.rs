//! Reading a message head, strictly.
//!
//! `httparse` finds the parts; this module refuses what it lets through and what two
//! servers could read differently: bare LF, several or malformed `Content-Length`,
//! `Content-Length` beside `Transfer-Encoding`, several or missing `Host`, an
//! absolute-form target whose authority is not `Host` (RFC 9112 sections 2.2, 3.2, 6.1, 6.3).

use std::mem::MaybeUninit;

use http::{Method, StatusCode};

use super::framing::Framing;
use super::headers::tokens;
use super::{Headers, Known};

/// A parsed request head. The target's text lies in the header buffer.
#[derive(Debug)]
pub struct RequestHead {
    /// Bytes of the head, its final empty line included.
    pub len: usize,
    /// The method, as sent.
    pub method: Method,
    /// HTTP/1.1 (else 1.0).
    pub http11: bool,
    /// Where the request target lies in the head: start, length.
    pub target: (usize, usize),
    /// How the body is delimited.
    pub framing: Framing,
    /// The client leaves the connection open for another request.
    pub keep_alive: bool,
    /// `Expect: 100-continue` was sent.
    pub expects_continue: bool,
    /// A field's name has an underscore.
    pub has_underscores: bool,
}

/// A parsed response head.
#[derive(Debug)]
pub struct ResponseHead {
    /// Bytes of the head, its final empty line included.
    pub len: usize,
    /// The status code.
    pub status: StatusCode,
    /// How the body is delimited, had the request not been `HEAD`.
    pub framing: Framing,
    /// The server leaves the connection open.
    pub keep_alive: bool,
}

/// Why a head was refused. The connection is closed after the answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeadError {
    /// It breaks a rule of the grammar or of message framing: 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// The request line is longer than the head may be: 414.
    #[error("request target is longer than {0} bytes")]
    TargetTooLong(usize),
    /// The head has more bytes than allowed: 431.
    #[error("request header fields are larger than {0} bytes")]
    TooLarge(usize),
    /// The head has more fields than allowed: 431.
    #[error("more than {0} request header fields")]
    TooMany(usize),
    /// A major version other than 1: 505.
    #[error("HTTP version is not supported")]
    Version,
    /// A transfer coding other than chunked: 501.
    #[error("transfer coding is not supported")]
    TransferCoding,
}

impl HeadError {
    /// The status the client sees.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
            Self::TooLarge(_) | Self::TooMany(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

/// What a head may have at most.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the whole head.
    pub bytes: usize,
    /// Header fields.
    pub fields: usize,
}

/// Fields parsed without touching the heap.
const FIELDS_INLINE: usize = 64;

impl RequestHead {
    /// Parses the head at the front of `bytes` into `headers`. `Ok(None)`: not all of it
    /// is there yet.
    pub fn parse(
        bytes: &[u8],
        headers: &mut Headers,
        limits: HeadLimits,
    ) -> Result<Option<Self>, HeadError> {
        let mut inline = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_INLINE];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut inline);
        if parsed != Err(httparse::Error::TooManyHeaders) {
            return Self::finish(bytes, request, parsed, headers, limits);
        }
        let mut many = vec![MaybeUninit::<httparse::Header<'_>>::uninit(); limits.fields];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut many);
        Self::finish(bytes, request, parsed, headers, limits)
    }

    fn finish(
        bytes: &[u8],
        request: httparse::Request<'_, '_>,
        parsed: httparse::Result<usize>,
        headers: &mut Headers,
        limits: HeadLimits,
    ) -> Result<Option<Self>, HeadError> {
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => {
                no_bare_lf(bytes)?;
                if bytes.len() < limits.bytes {
                    return Ok(None);
                }
                return Err(too_large(bytes, limits));
            }
            Err(error) => return Err(refused(error, bytes, limits)),
        };
        if len > limits.bytes {
            return Err(too_large(bytes, limits));
        }
        let head = &bytes[..len];
        if request.headers.len() > limits.fields {
            return Err(HeadError::TooMany(limits.fields));
        }
        let base = bytes.as_ptr() as usize;
        no_bare_lf_between(base, head, request.headers)?;
        headers.reset_to(head);
        let has_underscores = copy_fields(base, request.headers, headers)?;
        let method = request.method.unwrap_or_default();
        let path = request.path.unwrap_or_default();
        let target = (path.as_ptr() as usize - base, path.len());
        let http11 = request.version == Some(1);
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| HeadError::Malformed("malformed method"))?;
        let framing = request_framing(headers, http11)?;
        check_host(&method, path, headers, http11)?;
        let keep_alive = if http11 {
            !headers.connection_has("close")
        } else {
            headers.connection_has("keep-alive")
        };
        let expects_continue = http11
            && headers
                .known(Known::Expect)
                .is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        Ok(Some(Self {
            len,
            method,
            http11,
            target,
            framing,
            keep_alive,
            expects_continue,
            has_underscores,
        }))
    }
}

impl ResponseHead {
    /// Parses the response head at the front of `bytes` into `headers`. `Ok(None)`: not
    /// all of it is there yet. Heads are limited in bytes by the caller's buffer.
    pub fn parse(
        bytes: &[u8],
        headers: &mut Headers,
        limits: HeadLimits,
    ) -> Result<Option<Self>, HeadError> {
        let mut inline = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_INLINE];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut inline);
        if parsed != Err(httparse::Error::TooManyHeaders) {
            return Self::finish(bytes, response, parsed, headers, limits);
        }
        let mut many = vec![MaybeUninit::<httparse::Header<'_>>::uninit(); limits.fields];
        let mut response = httparse::Response::new(&mut []);
        let parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut many);
        Self::finish(bytes, response, parsed, headers, limits)
    }

    fn finish(
        bytes: &[u8],
        response: httparse::Response<'_, '_>,
        parsed: httparse::Result<usize>,
        headers: &mut Headers,
        limits: HeadLimits,
    ) -> Result<Option<Self>, HeadError> {
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if bytes.len() < limits.bytes => return Ok(None),
            Ok(httparse::Status::Partial) => return Err(HeadError::TooLarge(limits.bytes)),
            Err(error) => return Err(refused(error, bytes, limits)),
        };
        headers.reset_to(&bytes[..len]);
        copy_fields(bytes.as_ptr() as usize, response.headers, headers)?;
        let status = StatusCode::from_u16(response.code.unwrap_or(0))
            .map_err(|_| HeadError::Malformed("status code out of range"))?;
        let http11 = response.version == Some(1);
        let framing = response_framing(status, headers)?;
        let keep_alive = framing != Framing::UntilClose
            && if http11 {
                !headers.connection_has("close")
            } else {
                headers.connection_has("keep-alive")
            };
        Ok(Some(Self { len, status, framing, keep_alive }))
    }
}

/// Says which part of a head is too large: its first line, or all of it.
fn too_large(bytes: &[u8], limits: HeadLimits) -> HeadError {
    match memchr::memchr(b'\n', bytes) {
        Some(line_end) if line_end < limits.bytes => HeadError::TooLarge(limits.bytes),
        _ => HeadError::TargetTooLong(limits.bytes),
    }
}

fn refused(error: httparse::Error, bytes: &[u8], limits: HeadLimits) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooMany(limits.fields),
        httparse::Error::Version if version_is_other(bytes) => HeadError::Version,
        httparse::Error::Version => HeadError::Malformed("malformed HTTP version"),
        httparse::Error::HeaderName => HeadError::Malformed("malformed header name"),
        httparse::Error::HeaderValue => HeadError::Malformed("malformed header value"),
        httparse::Error::NewLine => HeadError::Malformed("malformed line end"),
        _ => HeadError::Malformed("malformed request line"),
    }
}

/// Does the first line end in a well-formed version other than 1.x?
fn version_is_other(bytes: &[u8]) -> bool {
    let line = bytes.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
    let Some(at) = line.windows(5).rposition(|w| w == b"HTTP/") else { return false };
    matches!(&line[at + 5..], [major, b'.', minor] if major.is_ascii_digit() && *major != b'1' && minor.is_ascii_digit())
}

/// Says whether a name has an underscore.
fn copy_fields(
    base: usize,
    fields: &[httparse::Header<'_>],
    headers: &mut Headers,
) -> Result<bool, HeadError> {
    let mut has_underscores = false;
    for field in fields {
        let name = field.name.as_bytes();
        if name.len() > u16::MAX as usize {
            return Err(HeadError::Malformed("header name is too long"));
        }
        let known = Known::of(name);
        has_underscores |= known == Known::Other && name.contains(&b'_');
        headers.push_range(
            (name.as_ptr() as usize - base, name.len()),
            (field.value.as_ptr() as usize - base, field.value.len()),
            known,
        );
    }
    Ok(has_underscores)
}

/// `httparse` takes a lone LF as a line end; a proxy in front may not. In a head that it read
/// whole, lines end before a field's name and at the end only (looking at those ends in place of
/// every byte, and parsing before looking for the end, is 3 % of a proxied request's instructions).
fn no_bare_lf_between(
    base: usize,
    head: &[u8],
    fields: &[httparse::Header<'_>],
) -> Result<(), HeadError> {
    let ended = |at: usize| at >= 2 && head[at - 2..at] == *b"\r\n";
    let starts = fields.iter().map(|field| field.name.as_ptr() as usize - base);
    match head.ends_with(b"\r\n\r\n") && head[0] > b' ' && starts.into_iter().all(ended) {
        true => Ok(()),
        false => Err(HeadError::Malformed("bare LF")),
    }
}

/// The same for a head of which a part is there.
fn no_bare_lf(bytes: &[u8]) -> Result<(), HeadError> {
    for at in memchr::memchr_iter(b'\n', bytes) {
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(HeadError::Malformed("bare LF"));
        }
    }
    Ok(())
}

/// RFC 9112 section 6.3, with every ambiguity refused.
fn request_framing(headers: &Headers, http11: bool) -> Result<Framing, HeadError> {
    let length = content_length(headers)?;
    let mut codings = headers.all_known(Known::TransferEncoding);
    let Some(coding) = codings.next() else {
        return Ok(match length {
            None | Some(0) => Framing::Empty,
            Some(n) => Framing::Length(n),
        });
    };
    if length.is_some() {
        return Err(HeadError::Malformed("Content-Length beside Transfer-Encoding"));
    }
    if !http11 {
        return Err(HeadError::Malformed("Transfer-Encoding in an HTTP/1.0 request"));
    }
    if codings.next().is_some() {
        return Err(HeadError::Malformed("repeated Transfer-Encoding"));
    }
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let known = tokens(coding).all(|t| {
        [b"gzip".as_slice(), b"deflate", b"compress", b"x-gzip", b"x-compress", b"chunked"]
            .iter()
            .any(|k| t.eq_ignore_ascii_case(k))
    });
    Err(if known && tokens(coding).last().is_some_and(|t| t.eq_ignore_ascii_case(b"chunked")) {
        HeadError::TransferCoding
    } else {
        HeadError::Malformed("malformed Transfer-Encoding")
    })
}

fn response_framing(status: StatusCode, headers: &Headers) -> Result<Framing, HeadError> {
    if status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok(Framing::Empty);
    }
    let mut codings = headers.all_known(Known::TransferEncoding);
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(HeadError::TransferCoding);
        }
        if headers.known(Known::ContentLength).is_some() {
            return Err(HeadError::Malformed("Content-Length beside Transfer-Encoding"));
        }
        return Ok(Framing::Chunked);
    }
    Ok(match content_length(headers)? {
        None => Framing::UntilClose,
        Some(0) => Framing::Empty,
        Some(n) => Framing::Length(n),
    })
}

/// One well-formed length or none; equal repeats are refused too (RFC 9110 section 8.6
/// lets a recipient choose).
fn content_length(headers: &Headers) -> Result<Option<u64>, HeadError> {
    let mut lengths = headers.all_known(Known::ContentLength);
    let Some(text) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(HeadError::Malformed("repeated Content-Length"));
    }
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::Malformed("malformed Content-Length"));
    }
    Ok(Some(text.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'))))
}

/// RFC 9112 section 3.2: one Host, well formed, and the same as an absolute target's.
fn check_host(
    method: &Method,
    target: &str,
    headers: &Headers,
    http11: bool,
) -> Result<(), HeadError> {
    let mut hosts = headers.all_known(Known::Host);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HeadError::Malformed("repeated Host"));
    }
    match host {
        None if http11 => return Err(HeadError::Malformed("Host is missing")),
        Some(host) if !is_authority(host) => return Err(HeadError::Malformed("malformed Host")),
        _ => {}
    }
    if method == Method::CONNECT {
        return Err(HeadError::Malformed("CONNECT is not served"));
    }
    if target.starts_with('/') || (target == "*" && method == Method::OPTIONS) {
        return Ok(());
    }
    let Some(authority) = absolute_authority(target) else {
        return Err(HeadError::Malformed("malformed request target"));
    };
    match host {
        Some(host) if !host.eq_ignore_ascii_case(authority.as_bytes()) => {
            Err(HeadError::Malformed("the target's authority differs from Host"))
        }
        _ if !is_authority(authority.as_bytes()) || authority.is_empty() => {
            Err(HeadError::Malformed("malformed request target"))
        }
        _ => Ok(()),
    }
}

/// The authority of an absolute-form `http(s)://authority/…` target.
pub fn absolute_authority(target: &str) -> Option<&str> {
    let rest = strip_scheme(target, "http://").or_else(|| strip_scheme(target, "https://"))?;
    Some(&rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())])
}

/// Path and query of a target in any form; an absolute one without a path has `/`.
pub fn path_and_query(target: &str) -> &str {
    match absolute_authority(target) {
        _ if target.starts_with('/') => target,
        Some(authority) => {
            let after = authority.as_ptr() as usize - target.as_ptr() as usize + authority.len();
            &target[after..]
        }
        None => target,
    }
}

/// Does the end of a head lie in `bytes`, of which `scanned` were looked at before?
pub(crate) fn has_head_end(bytes: &[u8], scanned: usize) -> bool {
    let from = scanned.saturating_sub(3);
    memchr::memmem::find(&bytes[from..], b"\n\r\n").is_some()
        // A head of bare LFs, some or all, must be seen to be refused.
        || memchr::memmem::find(&bytes[from..], b"\n\n").is_some()
}

fn strip_scheme<'a>(target: &'a str, scheme: &str) -> Option<&'a str> {
    let head = target.as_bytes().get(..scheme.len())?;
    head.eq_ignore_ascii_case(scheme.as_bytes()).then(|| &target[scheme.len()..])
}

/// `uri-host [":" port]` of RFC 3986, without userinfo. Empty is allowed (RFC 9112 3.2).
pub fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', ..] => match memchr::memchr(b']', host) {
            Some(end) => (&host[..=end], &host[end + 1..]),
            None => return false,
        },
        _ => match memchr::memchr(b':', host) {
            Some(at) => (&host[..at], &host[at..]),
            None => (host, &host[host.len()..]),
        },
    };
    let name_ok = match name {
        [b'[', inner @ .., b']'] => {
            !inner.is_empty()
                && inner.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        }
        _ => name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(b)),
    };
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    name_ok && port_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 70 };

    fn parse(text: &str) -> Result<Option<RequestHead>, HeadError> {
        RequestHead::parse(text.as_bytes(), &mut Headers::new(), LIMITS)
    }

    #[track_caller]
    fn refused(text: &str, why: &'static str) {
        match parse(text) {
            Err(HeadError::Malformed(got)) => assert_eq!(got, why, "{text:?}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn what_two_servers_could_read_differently_is_refused() {
        let h = "Host: a\r\n";
        refused(
            &format!(
                "GET / HTTP/1.1\r\n{h}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            "Content-Length beside Transfer-Encoding",
        );
        refused(
            &format!("GET / HTTP/1.1\r\n{h}Content-Length: 1\r\nContent-Length: 1\r\n\r\n"),
            "repeated Content-Length",
        );
        refused(
            &format!("GET / HTTP/1.1\r\n{h}Content-Length: 1, 1\r\n\r\n"),
            "malformed Content-Length",
        );
        for bad in ["+1", "-1", "0x1", "1 1", "", "99999999999999999999"] {
            refused(
                &format!("GET / HTTP/1.1\r\n{h}Content-Length: {bad}\r\n\r\n"),
                "malformed Content-Length",
            );
        }
        refused(&format!("GET / HTTP/1.1\n{h}\r\n"), "bare LF");
        refused("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "bare LF");
        refused("GET / HTTP/1.1\r\nHost: a\r\n\n", "bare LF");
        refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", "malformed header name");
        refused("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", "malformed header name");
        refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", "malformed header value");
        refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "repeated Host");
        refused("GET / HTTP/1.1\r\nX: a\r\n\r\n", "Host is missing");
        refused("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "malformed Host");
        refused("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "malformed Host");
        refused(
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "the target's authority differs from Host",
        );
        refused("GET nopath HTTP/1.1\r\nHost: a\r\n\r\n", "malformed request target");
        refused(
            &format!(
                "GET / HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            "repeated Transfer-Encoding",
        );
        refused(
            &format!("GET / HTTP/1.1\r\n{h}Transfer-Encoding: xchunked\r\n\r\n"),
            "malformed Transfer-Encoding",
        );
        refused(
            &format!("GET / HTTP/1.1\r\n{h}Transfer-Encoding: chunked, identity\r\n\r\n"),
            "malformed Transfer-Encoding",
        );
        refused(
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding in an HTTP/1.0 request",
        );
    }

    #[test]
    fn well_formed_heads_are_understood() {
        let head = parse("POST /a?b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 12\r\n\r\nrest")
            .unwrap()
            .unwrap();
        assert_eq!((head.framing, head.keep_alive, head.http11), (Framing::Length(12), true, true));
        assert_eq!(head.target, (5, 4));
        let head = parse("GET http://A/x HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n")
            .unwrap()
            .unwrap();
        assert!(!head.keep_alive);
        let head = parse("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert!(!head.keep_alive && !head.http11);
        assert!(parse("GET / HTTP/1.1\r\nHo").unwrap().is_none());
        assert!(parse("GET / HTTP/1.1\r\nHost: [::1]:9080\r\n\r\n").unwrap().is_some());
    }

    #[test]
    fn heads_have_a_limit_in_bytes_and_in_fields() {
        let fields =
            |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(n - 1));
        assert!(parse(&fields(LIMITS.fields)).unwrap().is_some());
        assert_eq!(parse(&fields(LIMITS.fields + 1)).unwrap_err(), HeadError::TooMany(70));
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(5000));
        assert_eq!(parse(&long[..4096]).unwrap_err(), HeadError::TargetTooLong(4096));
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "a".repeat(5000));
        assert_eq!(parse(&long[..4096]).unwrap_err(), HeadError::TooLarge(4096));
        assert_eq!(parse("GET / HTTP/2.0\r\n\r\n").unwrap_err(), HeadError::Version);
    }

    #[test]
    fn path_and_query_comes_out_of_every_form() {
        for (target, expected) in [
            ("/a?b", "/a?b"),
            ("http://h", ""),
            ("http://h/a?b", "/a?b"),
            ("http://h?b", "?b"),
            ("*", "*"),
        ] {
            assert_eq!(path_and_query(target), expected);
        }
    }
}

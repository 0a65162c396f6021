//! The variables of a request: nginx's and APISIX's names, for route conditions, log
//! formats and plugins.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use ::http::Method;
use tracing::warn;

use crate::exchange::{Exchange, Response, Seen, Version};
use crate::expr::{BodyPath, Builtin, Value, VarName, Vars, body_path};
use crate::forwarded::Forwarded;
use crate::graphql::{self, GraphqlError};
use crate::http::{Headers, Known};
use crate::tls::CertificateField;
use crate::uri;

/// Variables that a plugin makes, for route conditions and log formats. A plugin leaves an
/// `Rc<dyn OtherVars>` in the request's [notes](Exchange::notes).
pub trait OtherVars {
    /// The value of a variable that nobody else knows.
    fn var(&self, exchange: &Exchange, name: &str) -> Option<Vec<u8>>;
}

impl Vars for Exchange {
    fn exchange(&self) -> Option<&Exchange> {
        Some(self)
    }

    fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
        match name {
            VarName::Arg(name) => argument(self.query()?, name.as_bytes()),
            VarName::Cookie(name) => cookie(&self.request.headers, name),
            VarName::Http(name) => match Forwarded::of(self).instead(self, name) {
                Some(seen) => seen.map(owned),
                None => header(&self.request.headers, name),
            },
            VarName::SentHttp(name) => header(self.sent.as_ref()?, name),
            VarName::UpstreamHttp(name) => {
                self.upstream.status?;
                header(self.sent.as_ref()?, name)
            }
            VarName::PostArg(name) => argument(self.form()?, name.as_bytes()),
            VarName::PostBody(path) => self.in_body(path),
            VarName::UriParam(name) => {
                let range = self.matched.param(name)?;
                Some(bytes(self.uri().get(range)?))
            }
            VarName::Builtin(builtin) => self.builtin(*builtin),
            VarName::Graphql(name) => self.graphql()?.var(name),
            VarName::Other(name) => {
                let others = self.notes.get::<Rc<dyn OtherVars>>()?;
                others.var(self, name).map(owned)
            }
        }
    }

    // What access logs hold by default, without memory of its own for each: it halves what a line
    // costs.
    fn write_plain(&self, name: &VarName, out: &mut Vec<u8>) -> bool {
        let VarName::Builtin(builtin) = name else { return false };
        let upstream = &self.upstream;
        match (builtin, &upstream.addrs[..], &upstream.failed[..]) {
            (Builtin::RemoteAddr, ..) => out.extend_from_slice(&self.remote_addr_text()),
            (Builtin::TimeLocal, ..) => self
                .core
                .with_local_time(self.started_at, |text| out.extend_from_slice(text.as_bytes())),
            (Builtin::Status, ..) => push_three(self.status.into(), out),
            (Builtin::BodyBytesSent, ..) => push_number(self.body_bytes_sent, out),
            (Builtin::BytesSent, ..) => push_number(self.bytes_sent, out),
            (Builtin::RequestLength | Builtin::BytesReceived, ..) => {
                push_number(self.bytes_received, out);
            }
            (Builtin::RequestTime, ..) => push_seconds(self.elapsed(), out),
            (Builtin::RequestId, ..) => {
                out.extend_from_slice(self.request_id().as_bytes());
            }
            (Builtin::UpstreamAddr, [addr], _) => {
                self.core.with_address_text(*addr, |text| out.extend_from_slice(text.as_bytes()))
            }
            (Builtin::UpstreamStatus, _, []) => match upstream.status {
                Some(status) => push_number(status.into(), out),
                None => return false,
            },
            (Builtin::UpstreamResponseTime, _, []) => match upstream.response_time {
                Some(time) => push_seconds(time, out),
                None => return false,
            },
            _ => return false,
        }
        true
    }
}

/// The variables of a request whose response is known but not sent yet: `status`, `sent_http_*` and
/// `upstream_http_*` are those of this response.
pub struct WithResponse<'a> {
    /// The request.
    pub exchange: &'a Exchange,
    /// Its response.
    pub response: &'a Response,
}

impl Vars for WithResponse<'_> {
    fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
        match name {
            VarName::SentHttp(name) => header(&self.response.headers, name),
            VarName::UpstreamHttp(name) => {
                self.exchange.upstream.status?;
                header(&self.response.headers, name)
            }
            VarName::Builtin(Builtin::Status) => Some(owned(self.response.status.as_str())),
            name => self.exchange.var(name),
        }
    }
}

fn bytes(text: &[u8]) -> Value<'_> {
    Value::Str(Cow::Borrowed(text))
}

fn owned<'a>(text: impl Into<Vec<u8>>) -> Value<'a> {
    Value::Str(Cow::Owned(text.into()))
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<Value<'a>> {
    let same = |found: &&[u8]| {
        found.len() == name.len()
            && found
                .iter()
                .zip(name.bytes())
                .all(|(a, b)| a.eq_ignore_ascii_case(&b) || (*a == b'_' && b == b'-'))
    };
    let mut values = headers.iter().filter(|(found, _)| same(found)).map(|(_, value)| value);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(bytes(first)) };
    // Repeated fields read as one list, as in nginx since 1.23.
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value);
    }
    Some(owned(all))
}

/// The first argument of a name, decoded; an argument without `=` is there and empty.
pub fn argument<'a>(query: &'a [u8], name: &[u8]) -> Option<Value<'a>> {
    query.split(|b| *b == b'&').filter(|part| !part.is_empty()).find_map(|part| {
        let (key, value) = match memchr::memchr(b'=', part) {
            Some(at) => (&part[..at], &part[at + 1..]),
            None => (part, &part[part.len()..]),
        };
        (*decoded(key) == *name).then(|| Value::Str(decoded(value)))
    })
}

/// Every argument of a name, decoded; one without `=` is true.
fn arguments<'a>(query: &'a [u8], name: &[u8]) -> Vec<Value<'a>> {
    let named = query.split(|b| *b == b'&').filter(|part| names(part, name));
    let value = |part: &'a [u8]| match memchr::memchr(b'=', part) {
        Some(at) => Value::Str(decoded(&part[at + 1..])),
        None => Value::Bool(true),
    };
    named.map(value).take(ARGUMENTS_MAX).collect()
}

/// Has this part of a query, `key` or `key=value`, the name?
pub(crate) fn names(part: &[u8], name: &[u8]) -> bool {
    let end = memchr::memchr(b'=', part).unwrap_or(part.len());
    !part.is_empty() && *decoded(&part[..end]) == *name
}

/// Percent-decoded, `+` as a space.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', text).is_none() {
        return Cow::Borrowed(text);
    }
    let hex = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&b) = text.get(at) {
        let escape =
            text.get(at + 1).copied().and_then(hex).zip(text.get(at + 2).copied().and_then(hex));
        match (b, escape) {
            (b'%', Some((high, low))) => {
                out.push(high << 4 | low);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(b),
        }
        at += 1;
    }
    Cow::Owned(out)
}

fn cookie<'a>(headers: &'a Headers, name: &str) -> Option<Value<'a>> {
    headers
        .all_known(Known::Cookie)
        .flat_map(|line| line.split(|b| *b == b';'))
        .map(<[u8]>::trim_ascii)
        .find_map(|pair| {
            let at = memchr::memchr(b'=', pair)?;
            (pair[..at].trim_ascii() == name.as_bytes()).then(|| bytes(&pair[at + 1..]))
        })
}

/// What nginx says of each try, in one text.
fn listed<'a>(mut all: impl Iterator<Item = Vec<u8>>) -> Option<Value<'a>> {
    let mut text = all.next()?;
    for one in all {
        text.extend_from_slice(b", ");
        text.extend_from_slice(&one);
    }
    Some(owned(text))
}

/// Seconds with three decimals, as nginx writes times.
fn seconds(time: Duration) -> Vec<u8> {
    let mut text = Vec::with_capacity(16);
    push_seconds(time, &mut text);
    text
}

fn push_seconds(time: Duration, out: &mut Vec<u8>) {
    push_number(time.as_secs(), out);
    out.push(b'.');
    push_three(time.subsec_millis(), out);
}

fn push_number(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// A number below 1000 with its leading zeros.
fn push_three(n: u32, out: &mut Vec<u8>) {
    for digit in [n / 100 % 10, n / 10 % 10, n % 10] {
        out.push(b"0123456789"[digit as usize]);
    }
}

impl Exchange {
    /// The body of an HTML form.
    fn form(&self) -> Option<&[u8]> {
        let media = self.request.headers.known(Known::ContentType)?;
        if !media.get(..FORM.len())?.eq_ignore_ascii_case(FORM) {
            return None;
        }
        match self.preview.body(self.settings.post_args_max) {
            Seen::Whole(body) => Some(body),
            Seen::NotYet | Seen::TooLarge => None,
        }
    }

    /// Asks for the body to be read, if it is of a kind that has variables.
    pub(crate) fn want_body(&self) {
        if self.request.headers.known(Known::ContentType).and_then(BodyKind::of).is_some() {
            let _ = self.preview.body(self.settings.post_args_max);
        }
    }

    /// What a path leads to in a body of a kind that can be read.
    fn in_body(&self, path: &BodyPath) -> Option<Value<'_>> {
        let media = self.request.headers.known(Known::ContentType)?;
        let kind = BodyKind::of(media)?;
        let Seen::Whole(body) = self.preview.body(self.settings.post_args_max) else { return None };
        match kind {
            BodyKind::Json => {
                // Conditions of many routes ask for the same few paths.
                let known = self.body_values.borrow().get(path).cloned();
                known.unwrap_or_else(|| {
                    let value = path.in_json(body);
                    self.body_values.borrow_mut().insert(path.clone(), value.clone());
                    value
                })
            }
            BodyKind::Form => path.in_fields(|name| arguments(body, name.as_bytes())),
            BodyKind::Multipart => path.in_fields(|name| {
                let all = body_path::parts(media, body);
                let last = all.into_iter().rfind(|(found, _)| *found == name.as_bytes());
                last.map(|(_, content)| bytes(content)).into_iter().collect()
            }),
        }
    }

    /// The GraphQL operation, which the first condition that asks for it has read.
    fn graphql(&self) -> Option<&graphql::Operation> {
        if let Some(known) = self.graphql.get() {
            return known.as_ref();
        }
        let request = &self.request;
        let limit = self.settings.graphql_max;
        let read = if request.method == Method::GET {
            graphql::from_query(request.query().unwrap_or_default())
        } else if request.method == Method::POST {
            match self.preview.body(limit) {
                Seen::NotYet => return None,
                Seen::TooLarge => Err(GraphqlError::TooLarge { limit }),
                Seen::Whole(body) => {
                    graphql::from_body(body, request.headers.known(Known::ContentType))
                }
            }
        } else {
            Err(GraphqlError::Method(request.method.to_string()))
        };
        let operation = read.inspect_err(|error| {
            warn!(client = %self.remote_addr, %error, "A request has no GraphQL that a route condition could look at.");
        });
        self.graphql.get_or_init(|| operation.ok()).as_ref()
    }

    fn builtin(&self, builtin: Builtin) -> Option<Value<'_>> {
        let request = &self.request;
        let tls = self.connection.tls.as_ref();
        let number = |n: u64| Some(owned(itoa::Buffer::new().format(n).as_bytes()));
        let took = |time: Option<Duration>| time.map(|t| owned(seconds(t)));
        match builtin {
            Builtin::Uri => Some(bytes(self.uri())),
            Builtin::RequestUri => Some(owned(self.request_uri())),
            Builtin::RealRequestUri => Some(bytes(request.target())),
            Builtin::Args => self.query().map(bytes),
            Builtin::IsArgs => {
                Some(bytes(if self.query().is_some_and(|q| !q.is_empty()) { b"?" } else { b"" }))
            }
            Builtin::Request | Builtin::RequestLine => {
                let mut line = self.client_method().as_str().as_bytes().to_vec();
                line.push(b' ');
                line.extend_from_slice(request.target());
                line.push(b' ');
                line.extend_from_slice(request.version.as_str().as_bytes());
                Some(owned(line))
            }
            Builtin::RequestMethod => Some(bytes(request.method.as_str().as_bytes())),
            Builtin::ServerProtocol => Some(bytes(request.version.as_str().as_bytes())),
            Builtin::Scheme => Some(bytes(self.connection.scheme().as_bytes())),
            Builtin::Https => Some(bytes(if tls.is_some() { b"on" } else { b"" })),
            Builtin::Host => Some(match request.host() {
                Cow::Borrowed(host) => bytes(host.as_bytes()),
                Cow::Owned(host) => owned(host),
            }),
            Builtin::Hostname => Some(bytes(hostname())),
            Builtin::ContentType => request.headers.known(Known::ContentType).map(bytes),
            Builtin::ContentLength => request.headers.known(Known::ContentLength).map(bytes),
            Builtin::RemoteAddr => Some(Value::Str(self.remote_addr_text())),
            Builtin::RemotePort => number(self.remote_port.into()),
            Builtin::RemoteUser => basic_user(&request.headers).map(owned),
            Builtin::BinaryRemoteAddr => Some(match self.remote_addr {
                std::net::IpAddr::V4(ip) => owned(ip.octets()),
                std::net::IpAddr::V6(ip) => owned(ip.octets()),
            }),
            Builtin::ProxyAddXForwardedFor => {
                let mut all = Vec::new();
                for value in request.headers.all_known(Known::XForwardedFor) {
                    all.extend_from_slice(value);
                    all.extend_from_slice(b", ");
                }
                all.extend_from_slice(&self.remote_addr_text());
                Some(owned(all))
            }
            Builtin::OriginalXForwardedFor => header(&request.headers, "x-forwarded-for"),
            Builtin::ServerAddr => Some(owned(self.connection.local.ip().to_string())),
            Builtin::ServerPort => number(self.connection.local.port().into()),
            Builtin::ServerName => Some(bytes(b"_")),
            Builtin::Connection => number(self.connection.number),
            Builtin::ConnectionRequests => number(self.connection_requests),
            Builtin::Pid => number(std::process::id().into()),
            Builtin::Pipe => Some(bytes(b".")),
            Builtin::NginxVersion => None,
            Builtin::ApisixRequestId => {
                let given = self.apisix_request_ids.last().map(|given| &*given.id);
                Some(bytes(given.unwrap_or_else(|| self.request_id().as_bytes())))
            }
            Builtin::RequestId => Some(bytes(self.request_id().as_bytes())),
            Builtin::RequestTime => Some(owned(seconds(self.elapsed()))),
            Builtin::RequestLength | Builtin::BytesReceived => number(self.bytes_received),
            Builtin::RequestCompletion => Some(bytes(if self.completed { b"OK" } else { b"" })),
            Builtin::Status => {
                let mut text = Vec::with_capacity(3);
                push_three(self.status.into(), &mut text);
                Some(owned(text))
            }
            Builtin::BodyBytesSent => number(self.body_bytes_sent),
            Builtin::BytesSent => number(self.bytes_sent),
            Builtin::TimeIso8601 => Some(owned(crate::observe::time::iso8601(self.started_at))),
            Builtin::TimeLocal => {
                Some(self.core.with_local_time(self.started_at, |text| owned(text)))
            }
            Builtin::Msec => {
                let now = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
                Some(owned(seconds(now + self.elapsed())))
            }
            Builtin::ConsumerName => self.consumer.as_ref().map(|c| bytes(c.name.as_bytes())),
            Builtin::ConsumerGroupId => {
                self.consumer.as_ref()?.group_id.as_ref().map(|id| bytes(id.as_bytes()))
            }
            Builtin::RouteId => self.route.as_ref().map(|r| bytes(r.id.as_bytes())),
            Builtin::RouteName => self.route.as_ref()?.name.as_ref().map(|n| bytes(n.as_bytes())),
            Builtin::ServiceId => {
                self.route.as_ref()?.service.as_ref().map(|s| bytes(s.0.as_bytes()))
            }
            Builtin::ServiceName => {
                self.route.as_ref()?.service.as_ref()?.1.as_ref().map(|n| bytes(n.as_bytes()))
            }
            Builtin::SslProtocol => tls.map(|t| bytes(t.protocol.as_bytes())),
            Builtin::SslCipher => tls.map(|t| bytes(t.cipher.as_bytes())),
            Builtin::SslClientVerify => tls.map(|t| owned(t.client_verify())),
            Builtin::SslClientSDn => self.client_certificate(CertificateField::Subject),
            Builtin::SslClientIDn => self.client_certificate(CertificateField::Issuer),
            Builtin::SslClientSerial => self.client_certificate(CertificateField::Serial),
            Builtin::SslClientFingerprint => self.client_certificate(CertificateField::Fingerprint),
            Builtin::SslServerName => tls?.sni.as_ref().map(|s| bytes(s.as_bytes())),
            Builtin::UpstreamAddr => {
                let text = |addr: &_| self.core.with_address_text(*addr, |text| text.into());
                listed(self.upstream.addrs.iter().map(text))
            }
            Builtin::BalancerIp => self.upstream.addrs.last().map(|a| owned(a.ip().to_string())),
            Builtin::BalancerPort => {
                self.upstream.addrs.last().and_then(|a| number(a.port().into()))
            }
            Builtin::UpstreamStatus => {
                let failed = self.upstream.failed.iter().map(|(status, _)| *status);
                listed(failed.chain(self.upstream.status).map(|status| status.to_string().into()))
            }
            Builtin::UpstreamHost => match &self.upstream.host {
                Some(host) => Some(bytes(host.as_bytes())),
                None => request.headers.known(Known::Host).map(bytes),
            },
            Builtin::UpstreamScheme if self.upstream.scheme.is_empty() => Some(bytes(b"http")),
            Builtin::UpstreamScheme => Some(bytes(self.upstream.scheme.as_bytes())),
            Builtin::UpstreamUri => {
                Some(bytes(self.upstream.uri.as_deref().unwrap_or_default().as_bytes()))
            }
            Builtin::UpstreamConnectTime => took(self.upstream.connect_time),
            Builtin::UpstreamHeaderTime => took(self.upstream.header_time),
            Builtin::UpstreamResponseTime | Builtin::ApisixUpstreamResponseTime => {
                let failed = self.upstream.failed.iter().map(|(_, time)| *time);
                listed(failed.chain(self.upstream.response_time).map(seconds))
            }
            _ => None,
        }
    }

    fn client_certificate(&self, field: CertificateField) -> Option<Value<'_>> {
        self.connection.tls.as_ref()?.client.as_ref()?.field(field).map(owned)
    }

    /// The client's address as text.
    pub(crate) fn remote_addr_text(&self) -> Cow<'_, [u8]> {
        match self.remote_addr == self.connection.peer.ip().to_canonical() {
            true => Cow::Borrowed(self.connection.peer_text.as_bytes()),
            false => Cow::Owned(self.remote_addr.to_string().into_bytes()),
        }
    }

    /// Since the first byte of the request; once it is over, until its end.
    fn elapsed(&self) -> Duration {
        let end = self.ended.unwrap_or_else(std::time::Instant::now);
        end.saturating_duration_since(self.started)
    }

    /// APISIX's `request_uri`: the normalised path with the query.
    fn request_uri(&self) -> Vec<u8> {
        let mut out = self.uri().to_vec();
        if let Some(query) = self.request.query() {
            out.push(b'?');
            out.extend_from_slice(query);
        }
        out
    }

    /// The arguments of the query in their order, decoded; a value is `None` where there is no `=`.
    pub fn arguments(&self) -> impl Iterator<Item = (Cow<'_, [u8]>, Option<Cow<'_, [u8]>>)> {
        let parts = self.query().unwrap_or_default().split(|b| *b == b'&');
        parts.filter(|part| !part.is_empty()).map(|part| match memchr::memchr(b'=', part) {
            Some(at) => (decoded(&part[..at]), Some(decoded(&part[at + 1..]))),
            None => (decoded(part), None),
        })
    }

    /// Is the client's request of HTTP/2?
    pub fn is_h2(&self) -> bool {
        self.request.version == Version::Http2
    }

    /// The rest of the path behind the route's `*`, raw, as a function's path gets it:
    /// dot segments resolved, everything else as sent. `None`: the route has no `*`.
    pub fn wildcard_rest(&self) -> Option<Cow<'_, str>> {
        let range = self.matched.ext()?;
        if self.settings.normalize_uri_like_servlet {
            // Parameters were cut out of the path: the raw one has other places.
            return self.uri().get(range).map(uri::escape);
        }
        let slashes =
            if self.matched_slashes_kept { uri::Slashes::Kept } else { uri::Slashes::Decoded };
        uri::resolve_raw_range(self.request.path(), range, slashes)
    }
}

fn basic_user(headers: &Headers) -> Option<Vec<u8>> {
    use base64::Engine;
    let value = headers.known(Known::Authorization)?;
    let coded = value.get(6..).filter(|_| value[..6].eq_ignore_ascii_case(b"basic "))?;
    let plain = base64::engine::general_purpose::STANDARD.decode(coded.trim_ascii()).ok()?;
    let end = memchr::memchr(b':', &plain)?;
    Some(plain[..end].to_vec())
}

fn hostname() -> &'static [u8] {
    static NAME: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    NAME.get_or_init(|| {
        std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default().trim_ascii().to_vec()
    })
}

/// The kinds of bodies that `post_arg.PATH` reads.
#[derive(Clone, Copy)]
enum BodyKind {
    Json,
    Form,
    Multipart,
}

impl BodyKind {
    fn of(media: &[u8]) -> Option<Self> {
        let media = media.to_ascii_lowercase();
        let has = |kind: &[u8]| memchr::memmem::find(&media, kind).is_some();
        if has(b"application/json") {
            Some(Self::Json)
        } else if has(FORM) {
            Some(Self::Form)
        } else if has(b"multipart/form-data") {
            Some(Self::Multipart)
        } else {
            None
        }
    }
}

/// The most arguments of one name that are looked at.
const ARGUMENTS_MAX: usize = 100;

/// The media type of HTML forms, whose fields are `post_arg_*`.
const FORM: &[u8] = b"application/x-www-form-urlencoded";

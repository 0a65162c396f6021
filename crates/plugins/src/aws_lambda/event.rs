//! The client's request as an event, and the id that ties its traces together.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde_json::{Value, json};
use sluicegate_aws::event::{ClientCertificate, EventEncoder, EventRequest, EventTooLarge};
use sluicegate_gateway::ForwardedFields;
use sluicegate_gateway::consumer::JwtClaims;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::{Headers, Known};
use sluicegate_gateway::tls::ToldCertificate;
use sluicegate_gateway::uri;
use smallvec::SmallVec;
use tracing::warn;

/// A request as events tell of it: one that came, or one that somebody asks about.
pub(super) struct Seen<'a> {
    pub(super) method: &'a str,
    /// The path with its dot segments resolved and its escapes kept.
    pub(super) path: Cow<'a, str>,
    pub(super) query: Cow<'a, str>,
    pub(super) headers: &'a Headers,
    /// What tells of the client, as an upstream would get it; nothing: it is among `headers`.
    pub(super) forwarded: Option<ForwardedFields>,
    /// Did the client send its body with a transfer encoding?
    pub(super) chunked: bool,
    pub(super) protocol: &'a str,
    pub(super) host: Cow<'a, str>,
    pub(super) client_ip: String,
    pub(super) request_id: &'a str,
    pub(super) started_at: SystemTime,
    pub(super) route_id: Option<&'a str>,
    pub(super) route_pattern: Option<&'a str>,
    /// What the route's pattern captured: named parameters, and `proxy` for a `*`.
    pub(super) parameters: Parameters<'a>,
    pub(super) consumer: Option<&'a str>,
    pub(super) claims: Option<Value>,
    pub(super) certificate: Option<ToldCertificate>,
}

/// Names and what stands for them.
pub(super) type Parameters<'a> = SmallVec<[(&'a str, Cow<'a, str>); 4]>;

impl<'a> Seen<'a> {
    /// The request that is being answered.
    pub(super) fn of(exchange: &'a Exchange) -> Self {
        let request = &exchange.request;
        let (path, query) = target(exchange);
        Self {
            method: request.method.as_str(),
            path,
            query: query.map_or(Cow::Borrowed(""), String::from_utf8_lossy),
            headers: &request.headers,
            protocol: request.version.as_str(),
            forwarded: Some(ForwardedFields::of(exchange)),
            chunked: is_chunked(exchange),
            host: request.host(),
            client_ip: exchange.remote_addr.to_string(),
            request_id: exchange.request_id(),
            started_at: exchange.started_at,
            route_id: Some(exchange.route_id()).filter(|id| !id.is_empty()),
            route_pattern: Some(exchange.matched.path()).filter(|path| !path.is_empty()),
            parameters: parameters(exchange),
            consumer: exchange.consumer.as_ref().map(|consumer| &*consumer.name),
            claims: exchange.notes.get::<JwtClaims>().map(|claims| Value::Object(claims.0.clone())),
            certificate: exchange
                .connection
                .tls
                .as_ref()
                .filter(|tls| tls.is_client_verified())
                .and_then(|tls| tls.client.as_ref()?.told()),
        }
    }
}

/// Writes the event of a request with this body. `drops` tells which of the client's fields are left
/// out beside those of one connection. What tells of the client is as an upstream would get it.
pub(super) fn encode(
    encoder: &EventEncoder,
    seen: &Seen<'_>,
    body: &[u8],
    trace_id: Option<&str>,
    drops: impl Fn(&str) -> bool,
    limit: usize,
) -> Result<Vec<u8>, EventTooLarge> {
    let for_connection = seen.headers.known(Known::Connection).is_some();
    let forwarded = seen.forwarded.as_ref();
    let mut headers: SmallVec<[(&str, &[u8]); 32]> = seen
        .headers
        .iter_known()
        .filter_map(|(known, name, value)| {
            let name = std::str::from_utf8(name).ok()?;
            let dropped = known.is_hop_by_hop()
                || for_connection && seen.headers.connection_has(name)
                || forwarded.is_some_and(|fields| fields.replaces(known))
                || drops(name);
            (!dropped).then_some((name, value))
        })
        .collect();
    headers.extend(forwarded.into_iter().flat_map(ForwardedFields::iter));
    let own: SmallVec<[(&str, &str); 1]> =
        trace_id.map(|id| ("x-amzn-trace-id", id)).into_iter().collect();
    let parameters: SmallVec<[(&str, &str); 4]> =
        seen.parameters.iter().map(|(name, value)| (*name, &**value)).collect();
    let time = seen.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let event = EventRequest {
        method: seen.method,
        path: &seen.path,
        query: &seen.query,
        headers: &headers,
        own_headers: &own,
        body,
        chunked: seen.chunked,
        protocol: seen.protocol,
        host: &seen.host,
        client_ip: &seen.client_ip,
        user_agent: seen.headers.get_str("user-agent"),
        request_id: seen.request_id,
        time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        route_id: seen.route_id,
        route_pattern: seen.route_pattern,
        path_parameters: &parameters,
        consumer: seen.consumer,
        claims: seen.claims.as_ref(),
        client_certificate: seen.certificate.as_ref().map(|told| ClientCertificate {
            pem: &told.pem,
            subject_dn: &told.subject,
            issuer_dn: &told.issuer,
            serial_number: &told.serial,
            not_before: &told.not_before,
            not_after: &told.not_after,
        }),
    };
    let mut out = Vec::new();
    encoder.encode(&event, limit, &mut out)?;
    Ok(out)
}

/// Path and query, as plugins left them: dot segments resolved, escapes kept. Adapters decode the path,
/// or make a URI of it.
fn target(exchange: &Exchange) -> (Cow<'_, str>, Option<&[u8]>) {
    match exchange.upstream.uri.as_deref() {
        Some(rewritten) => match rewritten.split_once('?') {
            Some((path, query)) => (path.into(), Some(query.as_bytes())),
            None => (rewritten.into(), None),
        },
        None => (path(exchange.request.path(), exchange.uri()), exchange.query()),
    }
}

/// The path as sent, if `uri` is what it says; else, as the configuration has `uri` cut, that one.
pub(super) fn path<'a>(sent: &'a [u8], uri: &'a [u8]) -> Cow<'a, str> {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%';
    match std::str::from_utf8(sent) {
        Ok(sent) if sent.as_bytes() == uri && uri.iter().all(is_plain) => return sent.into(),
        _ => {}
    }
    let says_the_same = uri::normalize(sent).is_ok_and(|normal| *normal == *uri);
    let rest = says_the_same.then(|| uri::resolve_raw_rest(sent, b"/")).flatten();
    rest.map_or_else(|| uri::escape(uri), |rest| format!("/{rest}").into())
}

fn parameters(exchange: &Exchange) -> Parameters<'_> {
    let path = exchange.uri();
    let all = exchange.matched.params().filter_map(|(name, range)| {
        let value = String::from_utf8_lossy(path.get(range)?);
        Some((if name == ":ext" { "proxy" } else { name }, value))
    });
    all.collect()
}

/// Did the client send its body with a transfer encoding?
fn is_chunked(exchange: &Exchange) -> bool {
    let mut encodings = exchange.request.headers.all_known(Known::TransferEncoding);
    encodings.any(|encoding| !encoding.trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// The event is over the limit, and nothing was sent.
pub(super) fn too_large(exchange: &Exchange, error: &EventTooLarge) -> Response {
    warn!(route = exchange.route_id(), %error, "A function was not called.");
    let EventTooLarge { size, limit } = error;
    let text = format!("The event would have {size} bytes, and the limit is {limit} bytes");
    Response::message(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error_msg": text}))
}

/// Whether a field is one that AWS reads: `x-amz-…`; or one that vouches for somebody, see
/// [`vouches`].
pub(super) fn is_amz(name: &str) -> bool {
    starts_with(name, "x-amz-") || vouches(name)
}

/// Whether a field is one of those in which a load balancer of AWS tells whom it has verified:
/// functions believe them.
pub(super) fn vouches(name: &str) -> bool {
    starts_with(name, "x-amzn-")
        && (starts_with(&name[7..], "oidc-") || starts_with(&name[7..], "mtls-"))
}

fn starts_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// `X-Amzn-Trace-Id`: the client's own, the one that its W3C `traceparent` stands for, or a new one.
pub(super) fn trace_id(headers: &Headers, started_at: SystemTime, request_id: &str) -> String {
    if let Some(own) = headers.get_str("x-amzn-trace-id")
        && own.len() <= TRACE_ID_MAX
        && own.contains("Root=")
    {
        return own.to_owned();
    }
    if let Some(id) = headers.get_str("traceparent").and_then(of_traceparent) {
        return id;
    }
    let seconds = started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("Root=1-{seconds:08x}-{}", request_id.get(..24).unwrap_or(request_id))
}

/// W3C Trace Context, section 3.2: version, trace id, parent id, flags.
fn of_traceparent(text: &str) -> Option<String> {
    let mut parts = text.trim().split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, digits: usize| {
        text.len() == digits
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_one = |text: &str| text.bytes().any(|b| b != b'0');
    let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !known || !hex(trace, 32) || !hex(parent, 16) || !hex(flags, 2) {
        return None;
    }
    if !is_one(trace) || !is_one(parent) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    let (start, rest) = trace.split_at(8);
    Some(format!("Root=1-{start}-{rest};Parent={parent};Sampled={sampled}"))
}

const TRACE_ID_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_becomes_the_same_trace_in_x_rays_words() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = "00f067aa0ba902b7";
        let x_ray = |sampled: u8| {
            Some(format!(
                "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent={parent};Sampled={sampled}"
            ))
        };
        for (text, id) in [
            (format!("00-{trace}-{parent}-01"), x_ray(1)),
            (format!("00-{trace}-{parent}-00"), x_ray(0)),
            (format!("01-{trace}-{parent}-03-more"), x_ray(1)),
            (format!("00-{trace}-{parent}-01-more"), None),
            (format!("ff-{trace}-{parent}-01"), None),
            (format!("00-{}-{parent}-01", "0".repeat(32)), None),
            (format!("00-{trace}-{}-01", "0".repeat(16)), None),
            (format!("00-{}-{parent}-01", trace.to_uppercase()), None),
            (format!("00-{trace}-{parent}"), None),
            (String::new(), None),
        ] {
            assert_eq!(of_traceparent(&text), id, "{text}");
        }
    }

    #[test]
    fn a_path_keeps_its_escapes_and_loses_its_dots() {
        for (sent, uri, told) in [
            ("/plain/x", "/plain/x", "/plain/x"),
            ("/a%20b/7%2F8", "/a b/7/8", "/a%20b/7%2F8"),
            ("/a/../users//7%2f8/./x", "/users/7/8/x", "/users//7%2f8/x"),
            ("/100%25", "/100%", "/100%25"),
            ("/caf\u{e9}", "/caf\u{e9}", "/caf%C3%A9"),
            ("/", "/", "/"),
            // apisix.delete_uri_tail_slash, apisix.normalize_uri_like_servlet
            ("/a%20b/", "/a b", "/a%20b"),
            ("/a;v=1/b", "/a/b", "/a/b"),
        ] {
            assert_eq!(path(sent.as_bytes(), uri.as_bytes()), told, "{sent}");
        }
    }

    #[test]
    fn names_that_aws_reads_are_told_in_any_case() {
        for (name, is) in [
            ("x-amz-date", true),
            ("X-Amz-Meta", true),
            ("x-amzn-trace-id", false),
            ("X-Amzn-Oidc-Data", true),
            ("x-amzn-mtls-clientcert", true),
            ("x-amzn-", false),
            ("x-am", false),
        ] {
            assert_eq!(is_amz(name), is, "{name}");
        }
    }
}

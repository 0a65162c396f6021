//! The client's request as an event, and the id that ties its traces together.

use std::borrow::Cow;
use std::time::UNIX_EPOCH;

use serde_json::Value;
use sluicegate_aws::event::{ClientCertificate, EventEncoder, EventRequest, EventTooLarge};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::http::headers::Known;
use sluicegate_gateway::uri;
use smallvec::SmallVec;

use crate::JwtClaims;

/// Writes the event of a request with this body. `keep` tells which of the client's fields with
/// `x-amz-` in front stay.
pub(super) fn encode(
    encoder: &EventEncoder,
    exchange: &Exchange,
    body: &[u8],
    trace_id: Option<&str>,
    keep: impl Fn(&str) -> bool,
    limit: usize,
) -> Result<Vec<u8>, EventTooLarge> {
    let request = &exchange.request;
    let (path, query) = target(exchange);
    let raw_path = match exchange.upstream.uri {
        Some(_) => path.clone(),
        None => String::from_utf8_lossy(request.path()),
    };
    let query = query.map_or(Cow::Borrowed(""), String::from_utf8_lossy);
    let for_connection = request.headers.known(Known::Connection).is_some();
    let headers: SmallVec<[(&str, &[u8]); 32]> = request
        .headers
        .iter_known()
        .filter_map(|(known, name, value)| {
            let name = std::str::from_utf8(name).ok()?;
            let dropped = known.is_hop_by_hop()
                || for_connection && request.headers.connection_has(name)
                || is_amz(name) && !keep(name);
            (!dropped).then_some((name, value))
        })
        .collect();
    let own: SmallVec<[(&str, &str); 1]> =
        trace_id.map(|id| ("x-amzn-trace-id", id)).into_iter().collect();
    let parameters = parameters(exchange);
    let parameters: SmallVec<[(&str, &str); 4]> =
        parameters.iter().map(|(name, value)| (*name, &**value)).collect();
    let claims = exchange.notes.get::<JwtClaims>().map(|claims| Value::Object(claims.0.clone()));
    let certificate = exchange
        .connection
        .tls
        .as_ref()
        .filter(|tls| tls.is_client_verified())
        .and_then(|tls| tls.client.as_ref()?.told());
    let time = exchange.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let host = request.host();
    let client_ip = exchange.remote_addr.to_string();
    let event = EventRequest {
        method: request.method.as_str(),
        raw_path: &raw_path,
        path: &path,
        query: &query,
        headers: &headers,
        own_headers: &own,
        body,
        protocol: request.version.as_str(),
        scheme: exchange.connection.scheme(),
        port: exchange.connection.local.port(),
        host: &host,
        client_ip: &client_ip,
        user_agent: request.headers.get_str("user-agent"),
        request_id: exchange.request_id(),
        time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        route_id: Some(exchange.route_id()).filter(|id| !id.is_empty()),
        route_pattern: Some(exchange.matched.path()).filter(|path| !path.is_empty()),
        path_parameters: &parameters,
        consumer: exchange.consumer.as_ref().map(|consumer| &*consumer.name),
        claims: claims.as_ref(),
        client_certificate: certificate.as_ref().map(|told| ClientCertificate {
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
fn path<'a>(sent: &'a [u8], uri: &'a [u8]) -> Cow<'a, str> {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%';
    match std::str::from_utf8(sent) {
        Ok(sent) if sent.as_bytes() == uri && uri.iter().all(is_plain) => return sent.into(),
        _ => {}
    }
    let says_the_same = uri::normalize(sent).is_ok_and(|normal| *normal == *uri);
    let rest = says_the_same.then(|| uri::resolve_raw_rest(sent, b"/")).flatten();
    rest.map_or_else(|| uri::escape(uri), |rest| format!("/{rest}").into())
}

/// What the route's pattern captured: named parameters, and `proxy` for a `*`.
fn parameters(exchange: &Exchange) -> SmallVec<[(&str, Cow<'_, str>); 4]> {
    let path = exchange.uri();
    let all = exchange.matched.params().filter_map(|(name, range)| {
        let value = String::from_utf8_lossy(path.get(range)?);
        Some((if name == ":ext" { "proxy" } else { name }, value))
    });
    all.collect()
}

/// Whether a field is one that AWS reads: `x-amz-…`.
pub(super) fn is_amz(name: &str) -> bool {
    name.get(..AMZ.len()).is_some_and(|start| start.eq_ignore_ascii_case(AMZ))
}

const AMZ: &str = "x-amz-";

/// `X-Amzn-Trace-Id`: the client's own, the one that its W3C `traceparent` stands for, or a new one.
pub(super) fn trace_id(exchange: &Exchange) -> String {
    let headers = &exchange.request.headers;
    if let Some(own) = headers.get_str("x-amzn-trace-id")
        && own.len() <= TRACE_ID_MAX
        && own.contains("Root=")
    {
        return own.to_owned();
    }
    if let Some(id) = headers.get_str("traceparent").and_then(of_traceparent) {
        return id;
    }
    let seconds = exchange.started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let random = exchange.request_id();
    format!("Root=1-{seconds:08x}-{}", random.get(..24).unwrap_or(random))
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
            ("x-am", false),
        ] {
            assert_eq!(is_amz(name), is, "{name}");
        }
    }
}

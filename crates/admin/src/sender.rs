//! Who is answered by the Control API: no web page.
//!
//! It asks for no key, because only this machine reaches it; but the browsers on this machine run pages
//! of strangers. A page's own requests name its origin (`Origin`), or that they come from another site
//! (`Sec-Fetch-Site`). A page whose name leads here since it was loaded (DNS rebinding) is of one origin with
//! us, and its reads carry neither: what is left is the name in `Host`.
//!
//! Differs: APISIX answers everybody who gets through to the port.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, Request},
    http::{HeaderMap, Method, StatusCode, header, uri::Authority},
};

use crate::answer::Answer;

/// Refuses what a web page may have had a browser send.
pub(crate) fn check(request: &Request) -> Result<(), Answer> {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) {
        return Err(refused("a browser sends `Origin`, and web pages are not answered"));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && matches!(text(headers, "sec-fetch-site"), "cross-site" | "same-site") {
        return Err(refused("`Sec-Fetch-Site` tells of a web page, and those are not answered"));
    }
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let is_local = peer.is_none_or(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    if is_local && host(headers).is_some_and(|host| anybody_may_own(&host)) {
        return Err(refused(
            "`Host` is a name that anybody may own and let lead here: ask for localhost or an address",
        ));
    }
    Ok(())
}

/// Refuses what does not ask for localhost or an address, and is not of this content type: for
/// questions that have calls signed and sent.
pub(crate) fn check_closely(headers: &HeaderMap) -> Result<(), Answer> {
    if !host(headers).is_some_and(|host| is_address(&host) || host == "localhost") {
        return Err(refused(
            "`Host` must be localhost or an address: other names may be anybody's",
        ));
    }
    let content = text(headers, "content-type").split(';').next().unwrap_or_default().trim();
    if !content.eq_ignore_ascii_case("application/json") {
        let why = "the question is JSON: send it with `Content-Type: application/json`";
        return Err(Answer::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    Ok(())
}

/// The host that was asked for, in lower case and without its port; what is none stays as it is.
fn host(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST)?;
    let host = String::from_utf8_lossy(host.as_bytes()).to_ascii_lowercase();
    Some(host.parse::<Authority>().map_or(host, |authority| authority.host().to_owned()))
}

fn is_address(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

/// Whether a name is one of the public DNS. Without a dot it is one of this machine or its network,
/// and some ends are nobody's ever.
fn anybody_may_own(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_reserved = || {
        RESERVED.iter().any(|end| name.strip_suffix(end).is_some_and(|rest| rest.ends_with('.')))
    };
    !is_address(host) && name.contains('.') && !is_reserved()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn refused(why: &str) -> Answer {
    Answer::error(StatusCode::FORBIDDEN, why)
}

/// Ends of names that nobody can register: RFC 6761, RFC 6762, RFC 8375, and ICANN's `internal`.
const RESERVED: [&str; 7] =
    ["localhost", "test", "example", "invalid", "local", "internal", "home.arpa"];

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn web_pages_are_not_answered_and_tools_are() {
        let from_here: SocketAddr = "127.0.0.1:5000".parse().expect("it is an address");
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:5000".parse().expect("it is an address");
        let from_afar: SocketAddr = "10.0.0.7:5000".parse().expect("it is an address");
        let local = ("host", "127.0.0.1:9090");
        let rebound = ("host", "rebound.attacker.com:9090");
        for (peer, method, fields, answered) in [
            (from_here, "GET", &[local][..], true),
            (from_here, "GET", &[], true),
            (from_here, "GET", &[("host", "[::1]:9090")], true),
            (from_here, "GET", &[("host", "LOCALHOST")], true),
            (from_here, "GET", &[("host", "localhost.:9090")], true),
            (from_here, "GET", &[("host", "control.apisix.internal")], true),
            (from_here, "GET", &[("host", "apisix:9090")], true),
            (from_here, "PUT", &[local], true),
            // A page that a person opens, or follows a link to.
            (from_here, "GET", &[local, ("sec-fetch-site", "none")], true),
            (from_here, "GET", &[local, ("sec-fetch-site", "cross-site")], true),
            (from_here, "PUT", &[local, ("sec-fetch-site", "same-origin")], true),
            // Pages of strangers.
            (from_here, "PUT", &[local, ("sec-fetch-site", "cross-site")], false),
            (from_here, "POST", &[local, ("sec-fetch-site", "same-site")], false),
            (from_here, "POST", &[local, ("origin", "https://attacker.com")], false),
            (from_here, "POST", &[local, ("origin", "null")], false),
            (from_here, "GET", &[local, ("origin", "http://127.0.0.1:9090")], false),
            (from_here, "GET", &[rebound], false),
            (mapped, "GET", &[rebound], false),
            (from_here, "PUT", &[rebound], false),
            (from_here, "GET", &[("host", "attacker.com.")], false),
            (from_here, "GET", &[("host", "notlocalhost.com")], false),
            (from_here, "GET", &[("host", "127.0.0.1.attacker.com")], false),
            (from_here, "GET", &[("host", "evil.com/:x")], false),
            // Opened to the network on purpose: names of services lead there.
            (from_afar, "GET", &[("host", "apisix-control.prod.svc:9090")], true),
            (from_afar, "GET", &[("host", "gateway.company.com")], true),
            (from_afar, "POST", &[local, ("origin", "https://attacker.com")], false),
        ] {
            let mut request = Request::builder().method(method).uri("/v1/routes");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.extension(ConnectInfo(peer)).body(Body::empty());
            let checked = check(&request.expect("it is valid"));
            assert_eq!(checked.is_ok(), answered, "{peer} {method} {fields:?}");
        }
    }
}

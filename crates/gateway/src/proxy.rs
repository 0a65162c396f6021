//! Sending a request to an upstream node and bringing its answer back.

use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode};
use smallvec::SmallVec;
use tracing::{error, warn};

use crate::body::Body;
use crate::client::{self, Answer, CallError, Outgoing, Received, Target, Timeouts};
use crate::exchange::{Exchange, Origin, Response, Version};
use crate::forwarded;
use crate::http::Known;
use crate::http::headers::write_line;
use crate::mirror;
use crate::plugin::{Flow, Phases, PluginError};
use crate::snapshot::Route;
use crate::upstream::{PassHost, Upstream};

/// Proxies the request to the route's upstream.
pub(crate) async fn proxy(
    exchange: &mut Exchange,
    route: &Arc<Route>,
) -> Result<Response, PluginError> {
    let chosen = exchange.chosen_upstream.clone();
    let Some(mut upstream) = chosen.or_else(|| route.upstream.clone()) else {
        error!(route = %route.id, "A route has neither an upstream nor a plugin that answers: add one of them.");
        return Ok(Response::page(StatusCode::SERVICE_UNAVAILABLE));
    };
    if let Some(discovered) = upstream.discovered() {
        let limit = route.timeouts.as_deref().copied().unwrap_or(upstream.timeouts).connect;
        upstream = match discovered.upstream(limit).await {
            Ok(upstream) => upstream,
            Err(cause) => {
                error!(route = %route.id, upstream = %upstream.id, cause, "An upstream has no nodes.");
                return Ok(Response::page(StatusCode::SERVICE_UNAVAILABLE));
            }
        };
    }
    if upstream.nodes.is_empty() {
        error!(route = %route.id, upstream = %upstream.id, "An upstream has no nodes.");
        return Ok(Response::page(StatusCode::SERVICE_UNAVAILABLE));
    }
    for chain in crate::handle::chains(exchange, Phases::BEFORE_PROXY) {
        if let Flow::Respond(response) = chain.before_proxy(exchange).await? {
            return Ok(response);
        }
    }
    let timeouts = route.timeouts.as_deref().copied().unwrap_or(upstream.timeouts);
    exchange.upstream.scheme = upstream.scheme.as_str();
    if !exchange.mirrors.is_empty() {
        let host = upstream.host_before_picking(exchange.host_for_upstream.as_ref());
        mirror::depart(exchange, None, host.as_deref().map(str::as_bytes));
    }
    exchange.upstream.began = Some(exchange.core.look());
    let answer = try_nodes(exchange, route, &upstream, timeouts).await;
    let began = exchange.upstream.began;
    Ok(match answer {
        Ok(received) => {
            exchange.upstream.status = Some(received.status.as_u16());
            exchange.upstream.header_time = began.map(|b| exchange.core.look() - b);
            respond(received, exchange.settings.show_upstream_status)
        }
        Err(error) => {
            let status = error.status();
            if matches!(error, CallError::RequestBody(_)) {
                warn!(route = %route.id, %error, "A client's request body did not arrive.");
                return Ok(Response::page(status));
            }
            exchange.core.counters.upstream_errors.add(1);
            exchange.upstream.status = Some(status.as_u16());
            exchange.upstream.response_time = began.map(|b| b.elapsed());
            error!(route = %route.id, upstream = %upstream.id, %error, "An upstream did not answer.");
            let mut response = Response::page(status);
            if !matches!(error, CallError::Resolve { .. }) {
                response.headers.append(UPSTREAM_STATUS, status.as_str().as_bytes());
            }
            response
        }
    })
}

/// Tries nodes until one answers, as far as that cannot run a request twice.
async fn try_nodes(
    exchange: &mut Exchange,
    route: &Route,
    upstream: &Upstream,
    timeouts: Timeouts,
) -> Result<Received, CallError> {
    let started = exchange.core.last_look();
    let mut tried = SmallVec::<[usize; 4]>::new();
    let mut body = std::mem::take(&mut exchange.request.body);
    let mut last_error = CallError::Closed;
    while tried.len() <= upstream.retries {
        if upstream.retry_timeout.is_some_and(|t| !tried.is_empty() && started.elapsed() >= t) {
            break;
        }
        let Some(at) = upstream.pick(&*exchange, &tried) else { break };
        tried.push(at);
        exchange.held = upstream.hold(at);
        match try_node(exchange, route, upstream, at, timeouts, &mut body).await {
            Ok(received) => {
                upstream.answered(at, received.status.as_u16());
                return Ok(received);
            }
            Err(Failed { error, again }) => {
                upstream.failed(at, &error);
                let more = again && tried.len() <= upstream.retries;
                if more {
                    warn!(route = %route.id, upstream = %upstream.id, node = %upstream.nodes[at].authority, %error, "A node did not answer; the next one is tried.");
                    let record = &mut exchange.upstream;
                    if record.addrs.len() > record.failed.len() {
                        let took = record.began.map_or(Duration::ZERO, |began| began.elapsed());
                        record.failed.push((error.status().as_u16(), took));
                    }
                    record.began = Some(exchange.core.look());
                }
                if !more {
                    // As in APISIX, the status that the client gets counts as well.
                    upstream.answered(at, error.status().as_u16());
                }
                last_error = error;
                if !more {
                    break;
                }
            }
        }
    }
    let record = &mut exchange.upstream;
    if record.failed.len() >= record.addrs.len() {
        // No try followed the last one after all.
        record.failed.pop();
    }
    // What was not sent is skipped, so that the connection can be kept.
    exchange.request.body = body;
    Err(last_error)
}

struct Failed {
    error: CallError,
    /// Another node may be tried: nothing was sent, or sending twice does no harm.
    again: bool,
}

async fn try_node(
    exchange: &mut Exchange,
    route: &Route,
    upstream: &Upstream,
    at: usize,
    timeouts: Timeouts,
    body: &mut Body,
) -> Result<Received, Failed> {
    let before = |error| Failed { error, again: true };
    let node = &upstream.nodes[at];
    let addr = match node.known_addr() {
        Some(addr) => addr,
        None => {
            let first = Box::pin(node.first_addr(timeouts.connect)).await.map_err(before)?;
            exchange.core.look();
            first
        }
    };
    exchange.upstream.addrs.push(addr);
    exchange.upstream.host = match &upstream.pass_host {
        PassHost::Pass => exchange.host_for_upstream.clone(),
        PassHost::Node => Some(node.authority.clone()),
        PassHost::Rewrite(host) => Some(host.clone()),
    };
    let tls = match upstream.scheme.is_tls() {
        false => None,
        true => {
            let name = crate::exchange::host_without_port(exchange.upstream_host());
            let name = if name.is_empty() { node.host() } else { &name };
            let name = name.trim_start_matches('[').trim_end_matches(']');
            let target = upstream.tls_target(name, &exchange.core.shared.tls_clients);
            Some(target.map_err(|cause| {
                before(CallError::Tls { addr, source: std::io::Error::other(cause) })
            })?)
        }
    };
    let target = Target { addr, via: None, tls, keepalive: Some(upstream.keepalive) };
    if upstream.scheme.is_h2() {
        return Box::pin(send_grpc(exchange, &target, timeouts, body)).await;
    }
    let idempotent = is_idempotent(&exchange.request.method);
    let mut fresh = false;
    loop {
        let conn = client::acquire(&exchange.core, &target, timeouts.connect, fresh)
            .await
            .map_err(before)?;
        exchange.upstream.connect_time = Some(conn.connect_time);
        let replay = body.replay();
        let may_upgrade = route.enable_websocket && forwarded::wants_upgrade(&exchange.request);
        let mut head = exchange.core.take_head();
        let host = exchange.upstream_host();
        let chunked = write_head(exchange, body, None, host, may_upgrade, &mut head);
        let outgoing = Outgoing {
            head,
            body: std::mem::take(body),
            chunked,
            no_answer_body: exchange.request.method == Method::HEAD,
            may_upgrade,
        };
        match client::send(&exchange.core, conn, outgoing, timeouts).await {
            Answer::Received(received) => return Ok(received),
            Answer::Failed { error, stale, untouched } => {
                let again = replay.is_some() && (untouched || idempotent);
                *body = replay.unwrap_or_default();
                // The node closed an idle connection just as we used it: that is no answer
                // of the node, so the same node gets the request again, once.
                if stale && again && !fresh {
                    fresh = true;
                    continue;
                }
                return Err(Failed { error, again });
            }
        }
    }
}

/// RFC 9110 section 9.2.2; nginx leaves out the same methods when it retries.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE
    )
}

/// Writes the upstream's request head, its target another one where `target` says so; says whether
/// the body goes out in chunks.
pub(crate) fn write_head(
    exchange: &Exchange,
    body: &Body,
    target: Option<&[u8]>,
    host: &[u8],
    upgrade: bool,
    out: &mut Vec<u8>,
) -> bool {
    let request = &exchange.request;
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    match target {
        None => write_target(exchange, out),
        Some(target) => out.extend_from_slice(target),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_line(out, b"Host", host);
    let named = forwarded::ConnectionTokens::of(&request.headers);
    let forward = forwarded::Forwarded::of(exchange);
    request.headers.write_kept(out, |known, name| {
        !(known.is_hop_by_hop()
            || matches!(known, Known::Host | Known::ContentLength | Known::Expect)
            || forward.replaces(known)
            || named.contains(name))
    });
    forward.write_proxied(exchange, out);
    if upgrade {
        write_line(out, b"Connection", b"upgrade");
        for value in request.headers.all_known(Known::Upgrade) {
            write_line(out, b"Upgrade", value);
        }
    }
    let chunked = write_framing(request, body, out);
    out.extend_from_slice(b"\r\n");
    chunked
}

/// Writes the target as the upstream gets it: what a plugin made of it, or the client's.
fn write_target(exchange: &Exchange, out: &mut Vec<u8>) {
    if let Some(uri) = &exchange.upstream.uri {
        return out.extend_from_slice(uri.as_bytes());
    }
    let (request, changed) = (&exchange.request, exchange.query_is_new());
    let target = if changed { request.path() } else { request.target() };
    if target.first() == Some(&b'?') {
        out.push(b'/');
    }
    out.extend_from_slice(target);
    if changed && let Some(query) = exchange.query() {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

impl Exchange {
    /// Path and query, raw, as an upstream would get them now.
    pub fn target_for_upstream(&self) -> Vec<u8> {
        let mut target = Vec::new();
        write_target(self, &mut target);
        target
    }
}

/// Writes `Content-Length` or `Transfer-Encoding` for a body; says which.
fn write_framing(request: &crate::exchange::Request, body: &Body, out: &mut Vec<u8>) -> bool {
    match body.remaining() {
        Some(0) => {
            let announced = request.headers.known(Known::ContentLength).is_some();
            if announced || request.method == Method::POST || request.method == Method::PUT {
                write_line(out, b"Content-Length", b"0");
            }
            false
        }
        Some(n) => {
            write_line(out, b"Content-Length", itoa::Buffer::new().format(n).as_bytes());
            false
        }
        None => {
            write_line(out, b"Transfer-Encoding", b"chunked");
            true
        }
    }
}

async fn send_grpc(
    exchange: &mut Exchange,
    target: &Target,
    timeouts: Timeouts,
    body: &mut Body,
) -> Result<Received, Failed> {
    let host = exchange.upstream_host();
    let head = grpc_head(exchange, target.tls.is_some(), None, host).map_err(|why| Failed {
        error: CallError::Send(std::io::Error::other(why)),
        again: false,
    })?;
    let core = exchange.core.clone();
    client::send_h2(&core, target, head, body, timeouts).await.map_err(|error| {
        let again = error.is_before_sending();
        Failed { error, again }
    })
}

/// The same for HTTP/2.
pub(crate) fn grpc_head(
    exchange: &Exchange,
    tls: bool,
    target: Option<&[u8]>,
    host: &[u8],
) -> Result<::http::Request<()>, ::http::Error> {
    let request = &exchange.request;
    let mut target_sent = Vec::new();
    match target {
        None => write_target(exchange, &mut target_sent),
        Some(target) => target_sent.extend_from_slice(target),
    }
    let path = String::from_utf8_lossy(&target_sent);
    let mut builder = ::http::Request::builder()
        .method(request.method.clone())
        .uri(
            ::http::Uri::builder()
                .scheme(if tls { "https" } else { "http" })
                .authority(host)
                .path_and_query(path.as_ref())
                .build()?,
        )
        .version(::http::Version::HTTP_2);
    let forward = forwarded::Forwarded::of(exchange);
    let named = forwarded::ConnectionTokens::of(&request.headers);
    for (known, name, value) in request.headers.iter_known() {
        let te_trailers = known == Known::Te && value.eq_ignore_ascii_case(b"trailers");
        let skip = (known.is_hop_by_hop() && !te_trailers)
            || matches!(known, Known::Host | Known::Expect)
            || forward.replaces(known)
            || named.contains(name);
        if !skip {
            builder = builder.header(name, value);
        }
    }
    for (name, value) in forward.proxied(exchange) {
        builder = builder.header(name, value);
    }
    builder.body(())
}

fn respond(received: Received, show_status: bool) -> Response {
    let mut response = Response::new(received.status);
    response.headers = received.headers;
    response.origin = Origin::Upstream;
    response.tunnel = received.tunnel;
    response.body = received.body;
    if response.tunnel.is_none() {
        response.headers.remove_hop_by_hop();
    }
    if show_status || received.status.is_server_error() {
        response.headers.set(UPSTREAM_STATUS, received.status.as_str().as_bytes());
    }
    response
}

/// Tells that a failure came from the upstream, as APISIX does for 5xx.
const UPSTREAM_STATUS: &str = "X-APISIX-Upstream-Status";

/// Does the client speak a version that has no chunks?
pub(crate) fn lacks_chunks(version: Version) -> bool {
    version == Version::Http10
}

//! Requests that a plugin makes to the gateway itself: they pass router, plugins and log as if they had
//! come in on a connection, without one.

use ::http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};

use crate::body::{Body, BodyError};
use crate::exchange::{Exchange, Version};
use crate::handle::{filter_piece, filters_body, handle, has_body};
use crate::http::{Headers, Known};
use crate::listen;

/// A request to the gateway itself.
pub struct SubRequest {
    /// The method.
    pub method: Method,
    /// The version it seems to come in.
    pub version: Version,
    /// Path and query as on a request line.
    pub target: Vec<u8>,
    /// Header fields. Without `Host` among them the outer request's is taken; those about framing and
    /// about one connection are left out.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Bytes,
}

/// What came of it.
pub struct SubResponse {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: Headers,
    /// The body; `None`: such a response has none.
    pub body: Option<Result<Bytes, BodyError>>,
}

/// Noted on requests that were made here.
pub struct Inner;

/// Runs a request for the client of `outer`. `None`: its target could not stand on a request line.
pub async fn run(outer: &Exchange, sub: SubRequest, body_max: u64) -> Option<SubResponse> {
    let plain = sub.target.iter().all(u8::is_ascii_graphic);
    if sub.target.first() != Some(&b'/') || !plain {
        return None;
    }
    let core = outer.core.clone();
    let mut headers = core.pool.headers();
    let at = headers.push_text(&sub.target);
    for (name, value) in &sub.fields {
        headers.append(name, value);
    }
    headers.remove_hop_by_hop();
    headers.retain(|known, _, _| !matches!(known, Known::ContentLength | Known::Expect));
    if headers.known(Known::Host).is_none() {
        let host = outer.request.headers.known(Known::Host).unwrap_or_default();
        headers.append("Host", host);
    }
    if !sub.body.is_empty() {
        headers.append("Content-Length", itoa::Buffer::new().format(sub.body.len()).as_bytes());
    }
    let body = Body::from_bytes(sub.body);
    let request = listen::request(sub.method, sub.version, headers, body, at);
    let (started, number) = (core.look(), outer.connection_requests);
    let mut exchange = Exchange::new(&core, &outer.connection, request, started, number);
    (exchange.remote_addr, exchange.remote_port) = (outer.remote_addr, outer.remote_port);
    exchange.notes.set(Inner);
    let mut response = handle(&mut exchange).await;
    listen::complete_head(&exchange, &mut response);
    response.headers.remove_hop_by_hop();
    exchange.status = response.status.as_u16();
    exchange.sent = Some(response.headers.clone());
    let body = match has_body(exchange.client_method(), response.status) {
        false => None,
        true => Some(read(&mut exchange, &mut response.body, body_max).await),
    };
    exchange.completed = !matches!(body, Some(Err(_)));
    listen::log(&mut exchange);
    Some(SubResponse { status: response.status, headers: response.headers, body })
}

/// Reads a response's body through the plugins' `body_filter`.
async fn read(exchange: &mut Exchange, body: &mut Body, limit: u64) -> Result<Bytes, BodyError> {
    if !filters_body(exchange) {
        return body.read_limited(limit).await;
    }
    let mut whole = BytesMut::new();
    loop {
        let n = body.fill().await?;
        let mut piece = Bytes::copy_from_slice(&body.data()[..n]);
        body.consume(n);
        filter_piece(exchange, &mut piece, n == 0);
        if (whole.len() + piece.len()) as u64 > limit {
            return Err(BodyError::TooLarge { limit, size: None });
        }
        whole.extend_from_slice(&piece);
        if n == 0 {
            return Ok(whole.freeze());
        }
    }
}

//! HTTP/2 towards clients: a task per stream, the connection's frames driven between them.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::h2::RecvStream;
use ::h2::server::SendResponse;
use ::http::{Method, Request as HttpRequest, Response as HttpResponse, StatusCode};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::{debug, info};

use super::{DISCARD_MAX, discard};
use crate::body::{Body, BodyError, Source};
use crate::client::{fields, poll_receive, pump};
use crate::core::Core;
use crate::exchange::{Connection, Exchange, Response, Version};
use crate::handle::{filter_piece, filters_body, handle, has_body};
use crate::http::head::{is_authority, path_and_query};
use crate::http::{Headers, Known};
use crate::io::{Buffer, LazyTimer, Stream, within};

/// Serves a connection until either side ends it.
pub(super) async fn serve(
    core: &Rc<Core>,
    stream: Stream,
    connection: Rc<Connection>,
    read: Buffer,
) {
    let settings = core.settings();
    let mut builder = ::h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.http2_streams)
        .max_header_list_size(u32::try_from(settings.client_head.bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let written = Rc::new(Cell::new(0_u64));
    let handshake =
        builder.handshake::<_, Bytes>(Rewound { read, stream, written: written.clone() });
    let mut session = match within(settings.client_header_timeout, handshake).await {
        Some(Ok(session)) => session,
        Some(Err(error)) => return debug!(%error, "An HTTP/2 connection did not begin."),
        None => return,
    };
    let open = Rc::new(Cell::new(0_usize));
    // A client whose request two servers could read differently gets its answer and no more.
    let refused = Rc::new(Cell::new(false));
    let mut timer = LazyTimer::default();
    let mut requests = 0;
    let mut leaving = false;
    let (mut seen_written, mut turns) = (0, LEAVE_TURNS);
    loop {
        let next = poll_fn(|cx| {
            if (core.is_draining() || refused.get()) && !leaving {
                leaving = true;
                session.graceful_shutdown();
                timer.disarm();
            }
            if let Poll::Ready(next) = session.poll_accept(cx) {
                return Poll::Ready(next);
            }
            if open.get() > 0 {
                timer.disarm();
                return Poll::Pending;
            }
            // No stream is open: the keep-alive limit counts, and after our goodbye the time in
            // which the client has to take what we still send it, and close.
            timer.arm_once(if leaving { LEAVE_TIME } else { settings.keepalive_timeout });
            if timer.poll_expired(cx).is_ready() {
                if leaving {
                    turns -= 1;
                    if turns == 0 || seen_written == written.get() {
                        return Poll::Ready(None);
                    }
                } else {
                    leaving = true;
                    session.graceful_shutdown();
                }
                seen_written = written.get();
                timer.disarm();
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        let (request, respond) = match next.await {
            Some(Ok(pair)) => pair,
            Some(Err(error)) => {
                debug!(%error, "An HTTP/2 connection ended.");
                return;
            }
            None => return,
        };
        requests += 1;
        timer.disarm();
        open.set(open.get() + 1);
        let (core, connection, open) = (core.clone(), connection.clone(), open.clone());
        let refused = refused.clone();
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        tokio::task::spawn_local(async move {
            serve_stream(&core, &connection, request, respond, requests, &refused).await;
            open.set(open.get() - 1);
            if open.get() == 0 || refused.get() {
                // The connection's task starts to count its idle time, or says goodbye.
                waker.wake();
            }
        });
    }
}

async fn serve_stream(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
    request: HttpRequest<RecvStream>,
    mut respond: SendResponse<Bytes>,
    requests: u64,
    refused: &Cell<bool>,
) {
    let _active = core.begin_request();
    let started = Instant::now();
    let (mut exchange, refusal) = match exchange(core, connection, request, started, requests) {
        Ok(exchange) => (exchange, None),
        Err((status, why, exchange)) => {
            core.counters.bad_requests.add(1);
            refused.set(refused.get() || status == StatusCode::BAD_REQUEST);
            info!(client = %connection.peer.ip(), why, "A request was refused.");
            (*exchange, Some(Response::page(status)))
        }
    };
    let was_served = refusal.is_none();
    let response = match refusal {
        Some(page) => Some(page),
        None => {
            let mut handling = pin!(handle(&mut exchange));
            poll_fn(|cx| {
                if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                    return Poll::Ready(Some(response));
                }
                // The client took its request back.
                respond.poll_reset(cx).map(|_| None)
            })
            .await
        }
    };
    let Some(mut response) = response else {
        exchange.status = 499;
        return super::log(&mut exchange);
    };
    if response.is_silence(&exchange) {
        respond.send_reset(h2::Reason::CANCEL);
        return super::log(&mut exchange);
    }
    super::complete_head(&exchange, &mut response);
    send(&mut exchange, &mut respond, response).await;
    super::log(&mut exchange);
    let Exchange { mut request, sent, .. } = exchange;
    core.pool.recycle(request.headers);
    // A short body that nobody read is taken all the same: some clients take the reset that
    // would end it for an error, whatever they were answered.
    if was_served && matches!(request.body.remaining(), Some(1..=DISCARD_MAX)) {
        let _ = within(DISCARD_TIME, discard(&mut request.body)).await;
    }
    if let Some(sent) = sent {
        core.pool.recycle(sent);
    }
}

type Refused = (StatusCode, &'static str, Box<Exchange>);

fn exchange(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
    request: HttpRequest<RecvStream>,
    started: Instant,
    requests: u64,
) -> Result<Exchange, Refused> {
    let settings = core.settings();
    let (parts, receiving) = request.into_parts();
    let mut headers = core.pool.headers();
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let target = headers.push_text(path_and_query(target).as_bytes());
    let mut refused = None;
    let authority = parts.uri.authority().map(|a| a.as_str());
    let host = parts.headers.get(::http::header::HOST);
    if parts.headers.get_all(::http::header::HOST).iter().count() > 1 {
        refused = Some((StatusCode::BAD_REQUEST, "repeated host"));
    }
    match (authority, host) {
        (Some(authority), Some(host))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) =>
        {
            refused = Some((StatusCode::BAD_REQUEST, ":authority differs from host"));
        }
        (Some(authority), _) => headers.append("host", authority.as_bytes()),
        (None, None) => refused = Some((StatusCode::BAD_REQUEST, ":authority is missing")),
        (None, Some(_)) => {}
    }
    if parts.headers.len() > settings.client_head.fields {
        refused = Some((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
    }
    if parts.method == Method::CONNECT {
        refused = Some((StatusCode::BAD_REQUEST, "CONNECT is not served"));
    }
    // Cookies may come in pieces; they go on as one (RFC 9113 section 8.2.3).
    let mut cookies: Vec<u8> = Vec::new();
    for (name, value) in &parts.headers {
        if name == ::http::header::COOKIE {
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes());
            continue;
        }
        if name == ::http::header::HOST && authority.is_some() {
            continue;
        }
        if !settings.underscores_in_headers && name.as_str().contains('_') {
            continue;
        }
        headers.append(name.as_str(), value.as_bytes());
    }
    if !cookies.is_empty() {
        headers.append("cookie", &cookies);
    }
    if !headers.known(Known::Host).is_none_or(is_authority) {
        refused = Some((StatusCode::BAD_REQUEST, "malformed host"));
    }
    let announced = headers
        .known(Known::ContentLength)
        .and_then(|v| std::str::from_utf8(v).ok())
        .and_then(|v| v.parse().ok());
    let body = match receiving.is_end_stream() {
        true => Body::Empty,
        false => Body::stream(StreamBody {
            receiving: Some(receiving),
            piece: Bytes::new(),
            left: announced,
            limit: settings.client_body_max,
            taken: 0,
            trailers: None,
            timer: LazyTimer::default(),
            timeout: settings.client_body_timeout,
        }),
    };
    let request = super::request(parts.method, Version::Http2, headers, body, target);
    let exchange = Exchange::new(core, connection, request, started, requests);
    match refused {
        Some((status, why)) => Err((status, why, Box::new(exchange))),
        None => Ok(exchange),
    }
}

/// Sends a response on its stream.
async fn send(exchange: &mut Exchange, respond: &mut SendResponse<Bytes>, mut response: Response) {
    exchange.status = response.status.as_u16();
    let status = response.status;
    let bodiless = !has_body(exchange.client_method(), status);
    if bodiless {
        response.body = Body::Empty;
    }
    let filtered = !bodiless && filters_body(exchange);
    response.headers.remove_hop_by_hop();
    match response.body.remaining() {
        Some(n) if !filtered && !bodiless => {
            response.headers.set("content-length", itoa::Buffer::new().format(n).as_bytes());
        }
        None => drop(response.headers.remove("content-length")),
        Some(_) if filtered => drop(response.headers.remove("content-length")),
        Some(_) => {}
    }
    let trailers_due = matches!(response.body, Body::Stream(_));
    let end = !filtered && response.body.is_empty() && !trailers_due;
    let head = http_head(&response);
    exchange.sent = Some(std::mem::take(&mut response.headers));
    let mut stream = match respond.send_response(head, end) {
        Ok(stream) => stream,
        Err(error) => {
            exchange.status = 499;
            return debug!(%error, "A client went away before its response was sent.");
        }
    };
    if end {
        exchange.completed = true;
        return;
    }
    let mut body = response.body;
    let mut timer = LazyTimer::default();
    let limit = exchange.settings.send_timeout;
    loop {
        if filtered {
            body = match next_filtered(exchange, body).await {
                Ok((piece, rest, last)) => {
                    let sent = send_piece(&mut stream, piece, last, limit).await;
                    if sent.is_err() || last {
                        exchange.completed = sent.is_ok();
                        return;
                    }
                    rest
                }
                Err(error) => return broke_off(exchange, &mut stream, &error),
            };
            continue;
        }
        let before = body.remaining();
        let mut armed = false;
        let step = poll_fn(|cx| {
            let polled = pump(&mut body, &mut stream, cx);
            if polled.is_pending() && !body.data().is_empty() {
                // Bytes are at hand and the client takes none.
                if !armed {
                    timer.arm(limit);
                    armed = true;
                }
                if timer.poll_expired(cx).is_ready() {
                    return Poll::Ready(Err(BodyError::NotTaken(limit)));
                }
                if let Poll::Ready(error) = body.poll_overdue(cx) {
                    return Poll::Ready(Err(error));
                }
            }
            polled
        });
        match step.await {
            Ok(more) => {
                if let (Some(before), Some(now)) = (before, body.remaining()) {
                    exchange.body_bytes_sent += before - now;
                }
                if !more {
                    exchange.completed = true;
                    exchange.bytes_sent = exchange.body_bytes_sent;
                    return;
                }
            }
            Err(BodyError::H2(error)) if error.is_reset() || error.is_remote() => {
                return debug!(%error, "A client went away before its response was sent.");
            }
            Err(error) => return broke_off(exchange, &mut stream, &error),
        }
    }
}

fn broke_off(exchange: &Exchange, stream: &mut ::h2::SendStream<Bytes>, error: &BodyError) {
    super::log_broken_body(exchange, error);
    stream.send_reset(::h2::Reason::INTERNAL_ERROR);
}

/// One piece of a body through the plugins' `body_filter`: the piece, the rest, the last?
async fn next_filtered(
    exchange: &mut Exchange,
    mut body: Body,
) -> Result<(Bytes, Body, bool), BodyError> {
    let n = body.fill().await?;
    let mut piece = Bytes::copy_from_slice(&body.data()[..n]);
    body.consume(n);
    filter_piece(exchange, &mut piece, n == 0);
    exchange.body_bytes_sent += piece.len() as u64;
    Ok((piece, body, n == 0))
}

async fn send_piece(
    stream: &mut ::h2::SendStream<Bytes>,
    piece: Bytes,
    last: bool,
    limit: Duration,
) -> Result<(), BodyError> {
    let mut one = Body::from_bytes(piece);
    while !one.is_empty() {
        stream.reserve_capacity(one.data().len());
        let granted = within(limit, poll_fn(|cx| stream.poll_capacity(cx))).await;
        let granted = granted.ok_or(BodyError::NotTaken(limit))?;
        let n = granted.ok_or(BodyError::Ended)??.min(one.data().len());
        let part = Bytes::copy_from_slice(&one.data()[..n]);
        one.consume(n);
        stream.send_data(part, false)?;
    }
    if last {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

fn http_head(response: &Response) -> HttpResponse<()> {
    let mut head = HttpResponse::new(());
    *head.status_mut() = response.status;
    let map = head.headers_mut();
    map.reserve(response.headers.len());
    for (name, value) in response.headers.iter() {
        if let (Ok(name), Ok(value)) =
            (::http::HeaderName::from_bytes(name), ::http::HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    head
}

/// A request body on a stream.
struct StreamBody {
    receiving: Option<RecvStream>,
    piece: Bytes,
    /// Announced bytes still to come.
    left: Option<u64>,
    limit: Option<u64>,
    taken: u64,
    trailers: Option<Headers>,
    timer: LazyTimer,
    timeout: Duration,
}

impl Source for StreamBody {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        while self.piece.is_empty() {
            let Some(receiving) = &mut self.receiving else { return Poll::Ready(Ok(0)) };
            match poll_receive(receiving, cx) {
                Poll::Ready(Some(piece)) => {
                    self.piece = piece?;
                    self.taken += self.piece.len() as u64;
                    if let Some(limit) = self.limit
                        && self.taken > limit
                    {
                        return Poll::Ready(Err(BodyError::TooLarge { limit, size: None }));
                    }
                }
                Poll::Ready(None) => {
                    match receiving.poll_trailers(cx) {
                        Poll::Ready(trailers) => self.trailers = fields(trailers?),
                        Poll::Pending => return Poll::Pending,
                    }
                    self.receiving = None;
                    self.left = Some(0);
                }
                Poll::Pending => {
                    self.timer.arm_once(self.timeout);
                    if self.timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(Err(BodyError::TimedOut(self.timeout)));
                    }
                    return Poll::Pending;
                }
            }
        }
        self.timer.disarm();
        Poll::Ready(Ok(self.piece.len()))
    }

    fn data(&self) -> &[u8] {
        &self.piece
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(n as u64);
        }
        if let Some(receiving) = &mut self.receiving {
            // Bytes that went on make room for the next.
            let _ = receiving.flow_control().release_capacity(n);
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.left
    }

    fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }
}

/// A stream whose first bytes were read already.
struct Rewound {
    read: Buffer,
    stream: Stream,
    /// Bytes the socket took.
    written: Rc<Cell<u64>>,
}

impl Rewound {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &polled {
            self.written.set(self.written.get() + *n as u64);
        }
        polled
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.read.is_empty() {
            let n = this.read.bytes().len().min(buf.remaining());
            buf.put_slice(&this.read.bytes()[..n]);
            this.read.consume(n);
            if this.read.is_empty() {
                this.read = Buffer::default();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.count(polled)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.count(polled)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Bytes a client may send ahead on one stream, and on all of a connection's together.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// How long an answered request waits for the rest of a short body.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Bytes of a response that its stream holds until the client takes them: what a client that reads nothing
/// costs, times the streams that it may have open.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// How long a connection that was told goodbye may take no byte before it is closed, and how
/// often that much time is given to one that does take some.
const LEAVE_TIME: Duration = Duration::from_secs(2);
const LEAVE_TURNS: u32 = 15;

//! HTTP/1.1 towards clients: a connection reads a head, has it handled, writes the answer,
//! and starts again.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::StatusCode;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::body::{Body, BodyError, Source};
use crate::core::Core;
use crate::exchange::{Connection, Exchange, Response, Version};
use crate::handle::{filter_piece, filters_body, handle, has_body};
use crate::http::framing::{Decoder, Framing, Step};
use crate::http::head::{RequestHead, has_head_end, path_and_query};
use crate::http::headers::write_line;
use crate::http::writer::{Sink, WriteError, Writer};
use crate::http::{Headers, Known};
use crate::io::{BUFFER_BYTES, Buffer, LazyTimer, Stream, within};
use crate::page;
use crate::proxy::lacks_chunks;

use super::tunnel::tunnel;
use super::{DISCARD_MAX, discard};

/// The client's side of a connection; the request body and the response share it.
struct ClientIo {
    stream: Stream,
    buffer: Buffer,
    timer: LazyTimer,
    /// The body of the current request has been read to its end.
    body_done: bool,
}

type Shared = Rc<RefCell<ClientIo>>;

impl Sink for Shared {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Sink::poll_write(&mut self.borrow_mut().stream, cx, slices)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Sink::poll_flush(&mut self.borrow_mut().stream, cx)
    }
}

/// What the wait for a head ended with.
enum Arrived {
    Head(RequestHead, Headers, Instant),
    Http2,
    Refused(crate::http::HeadError),
    TimedOut,
    Closed,
}

/// Serves a connection until either side ends it.
pub(super) async fn serve(
    core: &Rc<Core>,
    stream: Stream,
    connection: Rc<Connection>,
    buffer: Buffer,
) {
    let io = ClientIo { stream, buffer, timer: LazyTimer::default(), body_done: true };
    let io = Rc::new(RefCell::new(io));
    let mut requests = 0;
    loop {
        requests += 1;
        let keep = match next_head(core, &io, requests == 1).await {
            Arrived::Closed => break,
            Arrived::Head(head, headers, started) => {
                // Boxed: the state of a request is not kept by a connection that waits.
                Box::pin(serve_one(core, &io, &connection, head, headers, started, requests)).await
            }
            Arrived::Http2 => {
                let Some(io) = Rc::into_inner(io) else { return };
                let ClientIo { stream, buffer, .. } = io.into_inner();
                return Box::pin(super::h2::serve(core, stream, connection, buffer)).await;
            }
            Arrived::Refused(error) => {
                core.counters.bad_requests.add(1);
                info!(client = %connection.peer.ip(), %error, "A request was refused.");
                refuse(core, &io, error.status()).await;
                After::Close
            }
            Arrived::TimedOut => {
                refuse(core, &io, StatusCode::REQUEST_TIMEOUT).await;
                After::Close
            }
        };
        match keep {
            After::Keep => {}
            After::Close => break,
            After::Linger => {
                linger(&io).await;
                break;
            }
            After::Gone => return,
            After::Tunnel(far, mut exchange) => {
                let Some(io) = Rc::into_inner(io) else { return };
                let ClientIo { stream, buffer, .. } = io.into_inner();
                let (sent, received) = tunnel(stream, buffer, *far).await;
                exchange.bytes_sent += sent;
                exchange.body_bytes_sent += sent;
                exchange.bytes_received += received;
                return super::log(&mut exchange);
            }
        }
    }
    poll_fn(|cx| {
        let mut io = io.borrow_mut();
        let ClientIo { stream, buffer, .. } = &mut *io;
        buffer.consume(usize::MAX >> 1);
        buffer.give_back(&mut core.buffers.borrow_mut(), crate::core::BUFFERS_KEPT);
        // Goodbye, without waiting for it to be heard: the peer may be gone already.
        let _ = tokio::io::AsyncWrite::poll_shutdown(std::pin::Pin::new(stream), cx);
        Poll::Ready(())
    })
    .await;
}

/// What becomes of a connection after a request.
enum After {
    Keep,
    Close,
    /// Close, but let the client read the answer first: it is still sending.
    Linger,
    /// There is nothing left of it.
    Gone,
    /// Bytes pass both ways from now on; the log line comes after them.
    Tunnel(Box<crate::client::Tunnel>, Box<Exchange>),
}

/// Waits for the next request head.
async fn next_head(core: &Rc<Core>, io: &Shared, first: bool) -> Arrived {
    let settings = core.settings();
    let mut scanned = 0;
    let mut started = None;
    let idle = if first { settings.client_header_timeout } else { settings.keepalive_timeout };
    if !first && (idle.is_zero() || core.is_draining()) {
        return Arrived::Closed;
    }
    let mut armed = false;
    poll_fn(|cx| {
        let mut io = io.borrow_mut();
        let ClientIo { stream, buffer, timer, .. } = &mut *io;
        loop {
            let bytes = buffer.bytes();
            let mut preface_due = false;
            if first && settings.http2 && bytes.first() == Some(&b'P') {
                if bytes.starts_with(H2_PREFACE) {
                    return Poll::Ready(Arrived::Http2);
                }
                // Its first lines look like a whole head.
                preface_due = H2_PREFACE.starts_with(bytes);
                if !preface_due && bytes.starts_with(b"PRI ") {
                    let error = crate::http::HeadError::Malformed("malformed HTTP/2 preface");
                    return Poll::Ready(Arrived::Refused(error));
                }
            }
            // Most heads come whole and are parsed at once; one that did not is only parsed again
            // when its end is there, so that bytes one by one cost no more than their number.
            let whole = !preface_due && (scanned == 0 || has_head_end(bytes, scanned));
            if !bytes.is_empty() && (whole || bytes.len() >= settings.client_head.bytes) {
                // An empty line before a request is an old client's habit (RFC 9112 2.2).
                if bytes.starts_with(b"\r\n") {
                    buffer.consume(2);
                    scanned = 0;
                    continue;
                }
                let mut headers = core.pool.headers();
                match RequestHead::parse(bytes, &mut headers, settings.client_head) {
                    Ok(Some(head)) => {
                        buffer.consume(head.len);
                        let started = started.unwrap_or_else(|| core.look());
                        return Poll::Ready(Arrived::Head(head, headers, started));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Arrived::Refused(error)),
                }
            }
            scanned = bytes.len();
            if !bytes.is_empty() && started.is_none() {
                let moment = core.look();
                started = Some(moment);
                timer.arm_at(moment, settings.client_header_timeout);
                armed = true;
            }
            buffer.lend(&mut core.buffers.borrow_mut());
            match buffer.poll_read(stream, cx, settings.client_head.bytes.max(BUFFER_BYTES)) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Arrived::Closed),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    let waiting = buffer.is_empty();
                    if waiting {
                        buffer.give_back(&mut core.buffers.borrow_mut(), crate::core::BUFFERS_KEPT);
                        if core.is_draining() {
                            return Poll::Ready(Arrived::Closed);
                        }
                    }
                    if !armed {
                        // A request ends with a look at the clock.
                        let moment = if first { core.look() } else { core.last_look() };
                        timer.arm_at(moment, idle);
                        armed = true;
                    }
                    if timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(match waiting {
                            true => Arrived::Closed,
                            false => Arrived::TimedOut,
                        });
                    }
                    return Poll::Pending;
                }
            }
        }
    })
    .await
}

/// One request, from its parsed head to its log line.
async fn serve_one(
    core: &Rc<Core>,
    io: &Shared,
    connection: &Rc<Connection>,
    head: RequestHead,
    headers: Headers,
    started: Instant,
    requests: u64,
) -> After {
    let _active = core.begin_request();
    io.borrow_mut().timer.disarm();
    let mut exchange = exchange(core, io, connection, &head, headers, started, requests);
    let response = {
        let mut handling = pin!(handle(&mut exchange));
        poll_fn(|cx| {
            if let Poll::Ready(response) = handling.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            match client_gone(io, cx) {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        })
        .await
    };
    let Some(mut response) = response else {
        // nginx's status for a client that did not wait.
        exchange.status = 499;
        super::log(&mut exchange);
        return After::Gone;
    };
    if response.is_silence(&exchange) {
        super::log(&mut exchange);
        return After::Gone;
    }
    super::complete_head(&exchange, &mut response);
    let tunnelled = response.tunnel.take();
    let after = respond(core, io, &mut exchange, &head, response, tunnelled.is_some()).await;
    if let (Some(far), After::Keep) = (tunnelled, &after) {
        exchange.request.body = Body::Empty;
        return After::Tunnel(far, Box::new(exchange));
    }
    if let Framing::Length(n) = head.framing
        && io.borrow().body_done
    {
        exchange.bytes_received += n;
    }
    super::log(&mut exchange);
    let Exchange { request, sent, .. } = exchange;
    core.pool.recycle(request.headers);
    if let Some(sent) = sent {
        core.pool.recycle(sent);
    }
    after
}

/// Has the client closed, with nothing more to read from it?
fn client_gone(io: &Shared, cx: &mut Context<'_>) -> bool {
    let io = io.borrow();
    io.body_done && io.buffer.is_empty() && crate::client::poll_closed(&io.stream, cx).is_ready()
}

fn exchange(
    core: &Rc<Core>,
    io: &Shared,
    connection: &Rc<Connection>,
    head: &RequestHead,
    mut headers: Headers,
    started: Instant,
    requests: u64,
) -> Exchange {
    let settings = core.settings();
    if head.has_underscores && !settings.underscores_in_headers {
        headers.retain(|_, name, _| !name.contains(&b'_'));
    }
    let body = match head.framing {
        Framing::Empty => Body::Empty,
        // All of it came with the head.
        Framing::Length(n) if n <= BUFFER_BYTES as u64 && n <= io.borrow().buffer.len() as u64 => {
            let buffer = &mut io.borrow_mut().buffer;
            let n = n as usize;
            let body = Bytes::copy_from_slice(&buffer.bytes()[..n]);
            buffer.consume(n);
            Body::Bytes(body)
        }
        framing => {
            io.borrow_mut().body_done = false;
            let buffer = std::mem::take(&mut io.borrow_mut().buffer);
            Body::stream(ClientBody {
                io: io.clone(),
                buffer,
                decoder: Decoder::new(framing),
                piece: 0,
                continue_due: head.expects_continue.then(|| CONTINUE.to_vec()),
                limit: settings.client_body_max,
                taken: 0,
                timeout: settings.client_body_timeout,
                armed: false,
            })
        }
    };
    // Path and query of any form of target; the authority of an absolute one is the Host's.
    let raw = headers.text(head.target.0, head.target.1);
    let target = match raw.first() {
        Some(b'/') => head.target,
        _ => {
            let rest = std::str::from_utf8(raw).map_or(0, |text| path_and_query(text).len());
            (head.target.0 + head.target.1 - rest, rest)
        }
    };
    let version = if head.http11 { Version::Http11 } else { Version::Http10 };
    let request = super::request(head.method.clone(), version, headers, body, target);
    let mut exchange = Exchange::new(core, connection, request, started, requests);
    exchange.bytes_received = head.len as u64;
    exchange
}

/// Writes a response; says what becomes of the connection.
async fn respond(
    core: &Rc<Core>,
    io: &Shared,
    exchange: &mut Exchange,
    request: &RequestHead,
    mut response: Response,
    switching: bool,
) -> After {
    let settings = core.settings();
    let status = response.status;
    exchange.status = status.as_u16();
    let bodiless = !has_body(&request.method, status);
    let filtered = !bodiless && filters_body(exchange);
    let length = if filtered { None } else { response.body.remaining() };
    let body_read = io.borrow().body_done;
    // A body that was never asked for, or is too long to skip, ends the connection.
    let mut keep =
        request.keep_alive && !core.is_draining() && !settings.keepalive_timeout.is_zero();
    let left = match (&exchange.request.body, &response.body) {
        // A client that waits for `100 Continue` may or may not send what it announced.
        (Body::Stream(_), _) if request.expects_continue => None,
        (Body::Stream(body), _) => body.remaining(),
        // It still goes to the upstream while the answer comes.
        (_, Body::Stream(_)) => Some(0),
        // Whoever took it dropped it half read: its rest must not become the next request.
        _ => None,
    };
    let unread = !body_read && left.is_none_or(|n| n > DISCARD_MAX);
    keep &= !unread;
    keep |= switching;
    let mut chunked = false;
    if !bodiless {
        match length {
            Some(n) => {
                let mut text = itoa::Buffer::new();
                let text = text.format(n).as_bytes();
                let mut told = response.headers.all_known(Known::ContentLength);
                if (told.next(), told.next()) != (Some(text), None) {
                    drop(told);
                    response.headers.put_known(Known::ContentLength, b"Content-Length", text);
                }
            }
            None => {
                response.headers.remove("Content-Length");
                if lacks_chunks(exchange.request.version) {
                    keep = false;
                } else {
                    chunked = true;
                }
            }
        }
    } else if status.is_informational() || status == StatusCode::NO_CONTENT {
        response.headers.remove("Content-Length");
        response.body = Body::Empty;
    } else {
        // HEAD and 304 tell the length without having it.
        response.body = Body::Empty;
    }
    let mut head = core.take_head();
    write_status_line(status, response.reason.as_deref(), &mut head);
    response.headers.write_to(&mut head);
    if chunked {
        write_line(&mut head, b"Transfer-Encoding", b"chunked");
    }
    if !switching {
        if !keep {
            write_line(&mut head, b"Connection", b"close");
        } else if !request.http11 {
            write_line(&mut head, b"Connection", b"keep-alive");
        }
    }
    head.extend_from_slice(b"\r\n");
    let head_len = head.len() as u64;
    let mut writer = Writer::new(head, chunked && !bodiless);
    exchange.sent = Some(std::mem::take(&mut response.headers));
    let written = if filtered {
        write_filtered(io, exchange, &mut writer, response.body, settings.send_timeout).await
    } else {
        write(io, &mut writer, &mut response.body, settings.send_timeout).await
    };
    exchange.bytes_sent = writer.written;
    exchange.body_bytes_sent = writer.body_written;
    let whole = match written {
        Ok(()) => true,
        Err(WriteError::Body(error)) => {
            super::log_broken_body(exchange, &error);
            false
        }
        Err(WriteError::Io(error)) => {
            debug!(%error, "A client went away before its response was sent.");
            if writer.written < head_len {
                exchange.status = 499;
            }
            false
        }
    };
    exchange.completed = whole;
    core.give_head(writer.into_memory());
    if !whole {
        // The client must not take the part for the whole.
        return After::Close;
    }
    if unread {
        return After::Linger;
    }
    if !io.borrow().body_done {
        if !matches!(exchange.request.body, Body::Stream(_)) {
            // The answer was over before the upload was.
            return After::Linger;
        }
        if discard(&mut exchange.request.body).await.is_err() {
            return After::Close;
        }
    }
    if keep { After::Keep } else { After::Close }
}

fn write_status_line(status: StatusCode, reason: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.unwrap_or_else(|| page::reason(status)).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a message, watching the clock while the client does not read, and the client
/// while the body does not come.
async fn write(
    io: &Shared,
    writer: &mut Writer,
    body: &mut Body,
    limit: Duration,
) -> Result<(), WriteError> {
    let mut armed = 0;
    poll_fn(|cx| {
        let polled = writer.poll(&mut io.clone(), body, cx);
        if polled.is_ready() {
            return polled;
        }
        if !writer.stalled {
            armed = 0;
            return match client_gone(io, cx) {
                true => {
                    Poll::Ready(Err(WriteError::Io(std::io::ErrorKind::ConnectionReset.into())))
                }
                false => Poll::Pending,
            };
        }
        if let Poll::Ready(error) = body.poll_overdue(cx) {
            return Poll::Ready(Err(WriteError::Body(error)));
        }
        if armed != writer.written + 1 {
            io.borrow_mut().timer.arm(limit);
            armed = writer.written + 1;
        }
        let late = || WriteError::Io(std::io::ErrorKind::TimedOut.into());
        io.borrow_mut().timer.poll_expired(cx).map(|()| Err(late()))
    })
    .await
}

/// Writes a message whose body passes the plugins' `body_filter` piece by piece.
async fn write_filtered(
    io: &Shared,
    exchange: &mut Exchange,
    writer: &mut Writer,
    mut body: Body,
    limit: Duration,
) -> Result<(), WriteError> {
    loop {
        let n = body.fill().await.map_err(WriteError::Body)?;
        let mut piece = Bytes::copy_from_slice(&body.data()[..n]);
        body.consume(n);
        filter_piece(exchange, &mut piece, n == 0);
        let mut one = Body::from_bytes(piece);
        if n == 0 {
            return write(io, writer, &mut one, limit).await;
        }
        writer.hold_end(true);
        let written = write(io, writer, &mut one, limit).await;
        writer.hold_end(false);
        written?;
    }
}

/// A page for a request that has no exchange; the connection ends after it.
async fn refuse(core: &Rc<Core>, io: &Shared, status: StatusCode) {
    let mut head = core.take_head();
    write_refusal(core, status, &mut head);
    let mut writer = Writer::new(head, false);
    let limit = core.settings().send_timeout;
    if write(io, &mut writer, &mut Body::Empty, limit).await.is_ok() {
        linger(io).await;
    }
}

fn write_refusal(core: &Rc<Core>, status: StatusCode, out: &mut Vec<u8>) {
    let page = page::html(status);
    write_status_line(status, None, out);
    write_line(out, b"Server", core.settings().server.as_bytes());
    core.with_date(crate::core::now(), |date| write_line(out, b"Date", date));
    write_line(out, b"Content-Type", b"text/html; charset=utf-8");
    write_line(out, b"Content-Length", itoa::Buffer::new().format(page.len()).as_bytes());
    write_line(out, b"Connection", b"close");
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(page.as_bytes());
}

/// Answers plain HTTP on a TLS port.
pub(super) async fn refuse_plain(core: &Rc<Core>, mut tcp: TcpStream) {
    let mut answer = Vec::new();
    write_refusal(core, StatusCode::BAD_REQUEST, &mut answer);
    let _ = within(Duration::from_secs(1), tcp.write_all(&answer)).await;
    let _ = tcp.shutdown().await;
}

/// Reads and forgets what a client still sends, for a moment: closing at once would reset
/// the connection and take our answer away from it.
async fn linger(io: &Shared) {
    let drained = async {
        let mut left = LINGER_BYTES;
        {
            let mut io = io.borrow_mut();
            let _ = socket2::SockRef::from(io.stream.tcp()).shutdown(std::net::Shutdown::Write);
            io.buffer.consume(usize::MAX >> 1);
        }
        loop {
            let read = poll_fn(|cx| {
                let mut io = io.borrow_mut();
                let ClientIo { stream, buffer, .. } = &mut *io;
                buffer.poll_read(stream, cx, BUFFER_BYTES)
            });
            match read.await {
                Ok(n) if n > 0 && n < left => left -= n,
                _ => return,
            }
            io.borrow_mut().buffer.consume(usize::MAX >> 1);
        }
    };
    let _ = within(LINGER_TIME, drained).await;
}

/// A request body on its way in. It has the connection's read buffer until it ends.
struct ClientBody {
    io: Shared,
    buffer: Buffer,
    decoder: Decoder,
    piece: usize,
    /// `100 Continue`, to be written before the first read; what is left of it.
    continue_due: Option<Vec<u8>>,
    limit: Option<u64>,
    taken: u64,
    timeout: Duration,
    armed: bool,
}

impl ClientBody {
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Some(text) = &mut self.continue_due else { return Poll::Ready(Ok(())) };
        let mut io = self.io.borrow_mut();
        // A client that did not wait needs no leave.
        while !text.is_empty() && self.buffer.is_empty() {
            let stream = std::pin::Pin::new(&mut io.stream);
            match tokio::io::AsyncWrite::poll_write(stream, cx, text) {
                Poll::Ready(Ok(n)) => drop(text.drain(..n)),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
        let stream = std::pin::Pin::new(&mut io.stream);
        if tokio::io::AsyncWrite::poll_flush(stream, cx).is_pending() {
            return Poll::Pending;
        }
        self.continue_due = None;
        Poll::Ready(Ok(()))
    }
}

impl ClientBody {
    /// The body is over: what follows it in the buffer belongs to the connection.
    fn finish(&mut self) {
        let mut io = self.io.borrow_mut();
        if !io.body_done {
            io.body_done = true;
            io.buffer = std::mem::take(&mut self.buffer);
            io.timer.disarm();
        }
    }
}

impl Source for ClientBody {
    fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        if self.piece > 0 {
            return Poll::Ready(Ok(self.piece));
        }
        if let Some(limit) = self.limit
            && let Some(size) = self.decoder.remaining().map(|n| n + self.taken)
            && size > limit
        {
            return Poll::Ready(Err(BodyError::TooLarge { limit, size: Some(size) }));
        }
        if self.poll_continue(cx)?.is_pending() {
            return Poll::Pending;
        }
        let Self { io, decoder, buffer, .. } = self;
        let shared = io.clone();
        let mut io = shared.borrow_mut();
        let ClientIo { stream, timer, .. } = &mut *io;
        loop {
            while !buffer.is_empty() && !decoder.is_end() {
                match decoder.step(buffer.bytes())? {
                    Step::Skip(n) => buffer.consume(n),
                    Step::Data(n) => {
                        if let Some(limit) = self.limit
                            && self.taken + n as u64 > limit
                        {
                            return Poll::Ready(Err(BodyError::TooLarge { limit, size: None }));
                        }
                        self.piece = n;
                        return Poll::Ready(Ok(n));
                    }
                    Step::End => break,
                }
            }
            if decoder.is_end() {
                drop(io);
                self.finish();
                return Poll::Ready(Ok(0));
            }
            match buffer.poll_read_body(stream, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(BodyError::Ended)),
                Poll::Ready(Ok(_)) => self.armed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    if !self.armed {
                        timer.arm(self.timeout);
                        self.armed = true;
                    }
                    if timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(Err(BodyError::TimedOut(self.timeout)));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn data(&self) -> &[u8] {
        &self.buffer.bytes()[..self.piece]
    }

    fn consume(&mut self, n: usize) {
        self.buffer.consume(n);
        self.decoder.took(n);
        self.taken += n as u64;
        self.piece -= n;
        if self.decoder.is_end() {
            self.finish();
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.decoder.remaining()
    }
}

/// HTTP/2 by prior knowledge begins with this (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long, and for how many bytes, a closing connection is read on.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

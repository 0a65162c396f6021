//! An HTTP/1.1 call: the request goes out while the answer comes in.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::StatusCode;

use crate::body::{Body, BodyError, Source};
use crate::core::Core;
use crate::http::framing::{Decoder, Framing, Step};
use crate::http::head::{HeadError, HeadLimits, ResponseHead, has_head_end};
use crate::http::headers::{Headers, may_trail};
use crate::http::writer::{WriteError, Writer};

use super::{CallError, Conn, Received, Timeouts, Tunnel};

/// A request ready to be written.
pub struct Outgoing {
    /// The head, its final empty line included.
    pub head: Vec<u8>,
    /// The body.
    pub body: Body,
    /// The body goes out in chunks.
    pub chunked: bool,
    /// The answer has no body whatever its head says (`HEAD`).
    pub no_answer_body: bool,
    /// `101 Switching Protocols` is a possible answer.
    pub may_upgrade: bool,
}

/// What came of sending.
pub enum Answer {
    /// A response.
    Received(Received),
    /// None, and why.
    Failed {
        /// The cause.
        error: CallError,
        /// The connection had served before and nothing came back: the far side may have
        /// closed it while idle.
        stale: bool,
        /// Not one byte was written.
        untouched: bool,
    },
}

/// Sends a request over `conn` and waits for the response head.
pub async fn send(
    core: &Rc<Core>,
    conn: Box<Conn>,
    outgoing: Outgoing,
    timeouts: Timeouts,
) -> Answer {
    let reused = conn.reused;
    // In the box that the answer's body needs anyway.
    let mut call = Box::new(Call::new(core, conn, outgoing, timeouts));
    match poll_fn(|cx| call.poll_head(cx)).await {
        Ok((head, headers)) => Answer::Received(call.into_received(head, headers)),
        Err(error) => {
            // An interim answer is one, too.
            let quiet =
                call.interim == 0 && call.conn.as_ref().is_some_and(|c| c.buffer.is_empty());
            Answer::Failed {
                stale: reused
                    && quiet
                    && matches!(error, CallError::Closed | CallError::Send(_) | CallError::Read(_)),
                untouched: call.writer.is_untouched(),
                error,
            }
        }
    }
}

/// A request and its answer over one connection; as a [`Source`], the answer's body.
struct Call {
    core: Rc<Core>,
    /// `None` once the answer is complete and the connection back in the pool.
    conn: Option<Box<Conn>>,
    writer: Writer,
    request_body: Body,
    /// Writing is over: done, or given up because the far side took no more.
    sent: bool,
    /// Writing broke off; kept while an answer may still explain it.
    send_error: Option<CallError>,
    /// Bytes in the buffer that hold no whole head.
    scanned: usize,
    decoder: Decoder,
    keep: bool,
    no_body: bool,
    may_upgrade: bool,
    timeouts: Timeouts,
    armed: bool,
    /// The look at the clock that began the call still holds: nothing was waited for since.
    at_once: bool,
    limits: HeadLimits,
    /// `1xx` heads skipped so far.
    interim: usize,
    /// Length of the decoded piece at the front of the buffer.
    piece: usize,
    trailers: Option<Headers>,
}

impl Call {
    fn new(core: &Rc<Core>, mut conn: Box<Conn>, out: Outgoing, timeouts: Timeouts) -> Self {
        conn.requests += 1;
        conn.buffer.lend(&mut core.buffers.borrow_mut());
        Self {
            core: core.clone(),
            conn: Some(conn),
            writer: Writer::new(out.head, out.chunked),
            request_body: out.body,
            sent: false,
            send_error: None,
            scanned: 0,
            decoder: Decoder::new(Framing::Empty),
            keep: false,
            no_body: out.no_answer_body,
            may_upgrade: out.may_upgrade,
            timeouts,
            armed: false,
            at_once: true,
            limits: core.settings().upstream_head,
            interim: 0,
            piece: 0,
            trailers: None,
        }
    }

    /// Moves the request along; an error is kept until the answer's side has spoken.
    fn poll_send(&mut self, cx: &mut Context<'_>) {
        let Some(conn) = &mut self.conn else { return };
        if self.sent {
            return;
        }
        let before = self.writer.written;
        match self.writer.poll(&mut conn.stream, &mut self.request_body, cx) {
            Poll::Ready(Ok(())) => {
                self.sent = true;
                self.armed = false;
            }
            Poll::Ready(Err(error)) => {
                self.sent = true;
                self.armed = false;
                self.send_error = Some(match error {
                    WriteError::Io(error) => CallError::Send(error),
                    WriteError::Body(error) => CallError::RequestBody(error),
                });
            }
            Poll::Pending if self.writer.written != before => self.armed = false,
            Poll::Pending => {}
        }
    }

    fn arm(&mut self) -> Duration {
        let limit = if self.sent { self.timeouts.read } else { self.timeouts.send };
        let Some(conn) = &mut self.conn else { return limit };
        if !self.sent && !self.writer.stalled {
            // The client is waited for, not the far side: its own limit counts.
            conn.timer.disarm();
            self.armed = false;
        } else if !self.armed {
            let moment = if self.at_once { self.core.last_look() } else { Instant::now() };
            conn.timer.arm_at(moment, limit);
            self.armed = true;
        }
        self.at_once = false;
        limit
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, Headers), CallError>> {
        self.poll_send(cx);
        if let Some(CallError::RequestBody(_)) = self.send_error {
            // The client broke off: the far side must not take half a body for a whole.
            let error = self.send_error.take().unwrap_or(CallError::Closed);
            return Poll::Ready(Err(error));
        }
        loop {
            if let Some(found) = self.parse_head()? {
                return Poll::Ready(Ok(found));
            }
            let limit = self.arm();
            let Some(conn) = &mut self.conn else {
                return Poll::Ready(Err(CallError::Closed));
            };
            match conn.buffer.poll_read(&mut conn.stream, cx, self.limits.bytes) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(self.send_error.take().unwrap_or(CallError::Closed)));
                }
                Poll::Ready(Ok(_)) => self.armed = false,
                Poll::Ready(Err(error)) => {
                    let error = match error.kind() {
                        std::io::ErrorKind::Other => HeadError::TooLarge(self.limits.bytes).into(),
                        _ => self.send_error.take().unwrap_or(CallError::Read(error)),
                    };
                    return Poll::Ready(Err(error));
                }
                // A request that waits for its own body has that body's time limit.
                Poll::Pending if !self.sent && !self.writer.stalled => {
                    self.armed = false;
                    return Poll::Pending;
                }
                Poll::Pending => {
                    if conn.timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(Err(match self.sent {
                            true => CallError::ReadTimeout(limit),
                            false => CallError::SendTimeout(limit),
                        }));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn parse_head(&mut self) -> Result<Option<(ResponseHead, Headers)>, CallError> {
        loop {
            let Some(conn) = &mut self.conn else { return Ok(None) };
            let bytes = conn.buffer.bytes();
            // Most heads come whole and are parsed at once.
            let whole = self.scanned == 0 || has_head_end(bytes, self.scanned);
            if bytes.len() <= self.scanned || !whole {
                self.scanned = bytes.len();
                return Ok(None);
            }
            let mut headers = self.core.pool.headers();
            let Some(head) = ResponseHead::parse(bytes, &mut headers, self.limits)? else {
                self.scanned = bytes.len();
                return Ok(None);
            };
            conn.buffer.consume(head.len);
            self.scanned = 0;
            let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
            if switching && !self.may_upgrade {
                return Err(HeadError::Malformed("an upgrade that was not asked for").into());
            }
            if head.status.is_informational() && !switching {
                // 100 and 103 are between the far side and us. Each restarts its time limit.
                self.interim += 1;
                if self.interim > INTERIM_MAX {
                    return Err(HeadError::Malformed("too many interim answers").into());
                }
                self.core.pool.recycle(headers);
                continue;
            }
            return Ok(Some((head, headers)));
        }
    }

    fn into_received(mut self: Box<Self>, head: ResponseHead, headers: Headers) -> Received {
        let status = head.status;
        if status == StatusCode::SWITCHING_PROTOCOLS
            && let Some(conn) = self.conn.take()
        {
            let Conn { stream, buffer, .. } = *conn;
            let tunnel = Tunnel { stream, buffer, idle: self.timeouts.read };
            return Received { status, headers, body: Body::Empty, tunnel: Some(Box::new(tunnel)) };
        }
        let framing = if self.no_body { Framing::Empty } else { head.framing };
        self.keep = if self.no_body { !headers.connection_has("close") } else { head.keep_alive };
        self.decoder = Decoder::new(framing);
        if self.decoder.is_end() {
            // The rest of an upload nobody waits for is not sent.
            self.finish();
            return Received { status, headers, body: Body::Empty, tunnel: None };
        }
        Received { status, headers, body: Body::Stream(self), tunnel: None }
    }

    /// The answer is complete: the connection goes back, unless something is unfinished.
    fn finish(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        if self.keep && self.sent && self.send_error.is_none() {
            self.core.pool.put(conn, self.core.last_look());
        } else {
            let Conn { mut buffer, .. } = *conn;
            buffer.consume(usize::MAX >> 1);
            buffer.give_back(&mut self.core.buffers.borrow_mut(), crate::core::BUFFERS_KEPT);
        }
        let memory = std::mem::replace(&mut self.writer, Writer::new(Vec::new(), false));
        self.core.give_head(memory.into_memory());
    }

    fn ended(&mut self) -> usize {
        let lines = self.decoder.trailers();
        if !lines.is_empty() {
            self.trailers = parse_trailers(lines);
        }
        self.finish();
        0
    }
}

impl Source for Call {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        if self.piece > 0 {
            return Poll::Ready(Ok(self.piece));
        }
        self.poll_send(cx);
        loop {
            let Some(conn) = &mut self.conn else { return Poll::Ready(Ok(0)) };
            while !conn.buffer.is_empty() {
                match self.decoder.step(conn.buffer.bytes())? {
                    Step::Skip(n) => conn.buffer.consume(n),
                    Step::Data(n) => {
                        self.piece = n;
                        return Poll::Ready(Ok(n));
                    }
                    Step::End => break,
                }
            }
            if self.decoder.is_end() {
                return Poll::Ready(Ok(self.ended()));
            }
            let limit = self.arm();
            let Some(conn) = &mut self.conn else { return Poll::Ready(Ok(0)) };
            match conn.buffer.poll_read_body(&mut conn.stream, cx) {
                Poll::Ready(Ok(0)) if self.decoder.may_end_at_close() => {
                    self.keep = false;
                    return Poll::Ready(Ok(self.ended()));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(BodyError::Ended)),
                Poll::Ready(Ok(_)) => self.armed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    if conn.timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(Err(BodyError::TimedOut(limit)));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn data(&self) -> &[u8] {
        match &self.conn {
            Some(conn) => &conn.buffer.bytes()[..self.piece],
            None => &[],
        }
    }

    fn consume(&mut self, n: usize) {
        if let Some(conn) = &mut self.conn {
            conn.buffer.consume(n);
            self.decoder.took(n);
            self.piece -= n;
            if self.decoder.is_end() {
                self.ended();
            }
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.decoder.remaining()
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }
}

/// Trailer lines as fields; ill-formed ones are dropped.
fn parse_trailers(lines: &[u8]) -> Option<Headers> {
    let mut headers = Headers::new();
    for line in lines.split(|b| *b == b'\n') {
        let line = line.trim_ascii_end();
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let Ok(name) = std::str::from_utf8(&line[..colon]) else { continue };
        if may_trail(name.as_bytes()) {
            headers.append(name, line[colon + 1..].trim_ascii());
        }
    }
    (!headers.is_empty()).then_some(headers)
}

/// `1xx` heads taken before an answer.
const INTERIM_MAX: usize = 100;

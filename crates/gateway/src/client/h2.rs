//! HTTP/2 towards gRPC upstreams: one connection per core and target, many calls.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::h2::client::{ResponseFuture, SendRequest};
use ::h2::{RecvStream, SendStream};
use ::http::Request;
use bytes::{Buf, Bytes};

use crate::body::{Body, BodyError, Source};
use crate::core::Core;
use crate::http::headers::{Headers, may_trail};
use crate::io::{LazyTimer, within};

use super::connect::connect;
use super::{CallError, Received, Target, Timeouts};

/// The HTTP/2 connections of a core.
#[derive(Default)]
pub(crate) struct Multiplexed {
    open: RefCell<HashMap<Key, SendRequest<Bytes>>>,
    /// Held by the call that opens a connection; the others wait for it and share it.
    opening: RefCell<HashMap<Key, Rc<tokio::sync::Mutex<()>>>>,
}

/// An address, which TLS configuration is used with it, and which way through a proxy.
type Key = (SocketAddr, u64, u64);

impl Multiplexed {
    /// Forgets connections that have ended.
    pub(crate) fn sweep(&self) {
        self.open.borrow_mut().retain(|_, send| !poll_is_dead(send));
        self.opening.borrow_mut().retain(|_, turn| Rc::strong_count(turn) > 1);
    }

    /// Forgets all; calls under way finish.
    pub(crate) fn clear(&self) {
        self.open.borrow_mut().clear();
    }
}

fn poll_is_dead(send: &mut SendRequest<Bytes>) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    matches!(send.poll_ready(&mut cx), Poll::Ready(Err(_)))
}

async fn session(
    core: &Rc<Core>,
    target: &Target,
    timeouts: Timeouts,
) -> Result<SendRequest<Bytes>, CallError> {
    let via = target.via.as_ref().map_or(0, |via| via.id());
    let key = (target.addr, target.tls.as_ref().map_or(0, |t| t.id), via);
    if let Some(ready) = open_session(core, key).await {
        return Ok(ready);
    }
    let (addr, limit) = (target.addr, timeouts.connect);
    let late = || target.late(limit);
    let turn = core.pool.multiplexed.opening.borrow_mut().entry(key).or_default().clone();
    let _turn = within(limit, turn.lock()).await.ok_or_else(late)?;
    if let Some(ready) = open_session(core, key).await {
        return Ok(ready);
    }
    let stream = within(limit, connect(target)).await.unwrap_or_else(|| Err(late()))?;
    let (send, connection) = ::h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .max_header_list_size(core.settings().upstream_head.bytes as u32)
        .handshake::<_, Bytes>(stream)
        .await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%addr, %error, "An HTTP/2 upstream connection ended.");
        }
    });
    core.counters.upstream_connections.add(1);
    core.pool.multiplexed.open.borrow_mut().insert(key, send.clone());
    Ok(send.ready().await?)
}

/// The connection that is open already, once it takes another call.
async fn open_session(core: &Rc<Core>, key: Key) -> Option<SendRequest<Bytes>> {
    let mut send = core.pool.multiplexed.open.borrow().get(&key).cloned()?;
    if poll_is_dead(&mut send) {
        return None;
    }
    send.ready().await.ok()
}

/// Sends a request by HTTP/2 and waits for the response head.
pub async fn send_h2(
    core: &Rc<Core>,
    target: &Target,
    head: Request<()>,
    body: &mut Body,
    timeouts: Timeouts,
) -> Result<Received, CallError> {
    let mut send = session(core, target, timeouts).await?;
    let end = body.is_empty();
    let (response, stream) = send.send_request(head, end)?;
    let mut call = Call {
        response: Some(response),
        stream: (!end).then_some(stream),
        request_body: std::mem::take(body),
        receiving: None,
        piece: Bytes::new(),
        trailers: None,
        timer: LazyTimer::default(),
        read_limit: timeouts.read,
        body_error: None,
    };
    let parts = poll_fn(|cx| call.poll_head(cx)).await?;
    let mut headers = core.pool.headers();
    for (name, value) in &parts.headers {
        headers.append(name.as_str(), value.as_bytes());
    }
    let ended = call.receiving.as_ref().is_some_and(RecvStream::is_end_stream);
    let body = if ended { Body::Empty } else { Body::stream(call) };
    Ok(Received { status: parts.status, headers, body, tunnel: None })
}

struct Call {
    response: Option<ResponseFuture>,
    /// `None` once the request body is out.
    stream: Option<SendStream<Bytes>>,
    request_body: Body,
    receiving: Option<RecvStream>,
    piece: Bytes,
    trailers: Option<Headers>,
    timer: LazyTimer,
    read_limit: Duration,
    /// What was wrong with the request body.
    body_error: Option<BodyError>,
}

impl Call {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<::http::response::Parts, CallError>> {
        self.poll_send(cx);
        if let Some(error) = self.body_error.take() {
            return Poll::Ready(Err(CallError::RequestBody(error)));
        }
        self.timer.arm_once(self.read_limit);
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(CallError::Closed));
        };
        match std::pin::Pin::new(response).poll(cx) {
            Poll::Ready(Ok(response)) => {
                let (parts, receiving) = response.into_parts();
                self.response = None;
                self.receiving = Some(receiving);
                self.timer.disarm();
                Poll::Ready(Ok(parts))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending if self.timer.poll_expired(cx).is_ready() => {
                Poll::Ready(Err(CallError::ReadTimeout(self.read_limit)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Moves the request body into the stream, as far as its window allows.
    fn poll_send(&mut self, cx: &mut Context<'_>) {
        while let Some(stream) = &mut self.stream {
            if let Poll::Ready(Err(error)) = self.request_body.poll_fill(cx) {
                // The far side must not take half a body for a whole.
                stream.send_reset(::h2::Reason::CANCEL);
                self.stream = None;
                self.body_error = Some(error);
                return;
            }
            match pump(&mut self.request_body, stream, cx) {
                Poll::Pending => return,
                // The far side takes its time counted from the last byte it got.
                Poll::Ready(Ok(true)) => self.timer.disarm(),
                Poll::Ready(Ok(false)) => {
                    self.stream = None;
                    self.timer.disarm();
                }
                // The far side takes no more. Its answer, or the lack of one, says why.
                Poll::Ready(Err(_)) => {
                    self.stream = None;
                    self.timer.disarm();
                }
            }
        }
    }
}

/// Moves one piece of `body` into an HTTP/2 stream; `Ok(false)` after its last.
pub(crate) fn pump(
    body: &mut Body,
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, BodyError>> {
    if let Poll::Ready(reason) = stream.poll_reset(cx) {
        return Poll::Ready(Err(reason.map_or_else(BodyError::H2, |r| BodyError::H2(r.into()))));
    }
    let n = match body.poll_fill(cx) {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        Poll::Ready(Ok(n)) => n,
    };
    if n == 0 {
        match body.take_trailers() {
            Some(trailers) => stream.send_trailers(trailer_map(&trailers))?,
            None => stream.send_data(Bytes::new(), true)?,
        }
        return Poll::Ready(Ok(false));
    }
    stream.reserve_capacity(n.min(PIECE_BYTES));
    while stream.capacity() == 0 {
        match stream.poll_capacity(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
            Poll::Ready(None) => return Poll::Ready(Err(BodyError::Ended)),
        }
    }
    let n = n.min(stream.capacity()).min(PIECE_BYTES);
    let piece = match &mut *body {
        Body::Bytes(bytes) => bytes.split_to(n),
        other => {
            let piece = Bytes::copy_from_slice(&other.data()[..n]);
            other.consume(n);
            piece
        }
    };
    let last = body.is_empty() && matches!(body, Body::Bytes(_) | Body::Empty);
    stream.send_data(piece, last)?;
    Poll::Ready(Ok(!last))
}

fn trailer_map(trailers: &Headers) -> ::http::HeaderMap {
    let mut map = ::http::HeaderMap::new();
    for (name, value) in trailers.iter() {
        if let (Ok(name), Ok(value)) =
            (::http::HeaderName::from_bytes(name), ::http::HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

impl Source for Call {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        self.poll_send(cx);
        if let Some(error) = self.body_error.take() {
            return Poll::Ready(Err(error));
        }
        while self.piece.is_empty() {
            let Some(receiving) = &mut self.receiving else { return Poll::Ready(Ok(0)) };
            match poll_receive(receiving, cx) {
                Poll::Ready(Some(piece)) => self.piece = piece?,
                Poll::Ready(None) => {
                    match receiving.poll_trailers(cx) {
                        Poll::Ready(trailers) => self.trailers = fields(trailers?),
                        Poll::Pending => return Poll::Pending,
                    }
                    self.receiving = None;
                }
                Poll::Pending => {
                    self.timer.arm_once(self.read_limit);
                    if self.timer.poll_expired(cx).is_ready() {
                        return Poll::Ready(Err(BodyError::TimedOut(self.read_limit)));
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
        if let Some(receiving) = &mut self.receiving {
            // Bytes that went on make room for the next.
            let _ = receiving.flow_control().release_capacity(n);
        }
    }

    fn remaining(&self) -> Option<u64> {
        None
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }
}

/// The next piece that is not empty.
pub(crate) fn poll_receive(
    receiving: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, ::h2::Error>>> {
    loop {
        match receiving.poll_data(cx) {
            Poll::Ready(Some(Ok(piece))) if piece.is_empty() => {}
            other => return other,
        }
    }
}

/// Trailers as a header block; what may not stand in one is dropped.
pub(crate) fn fields(map: Option<::http::HeaderMap>) -> Option<Headers> {
    let map = map?;
    let mut headers = Headers::new();
    for (name, value) in map.iter().filter(|(name, _)| may_trail(name.as_str().as_bytes())) {
        headers.append(name.as_str(), value.as_bytes());
    }
    (!headers.is_empty()).then_some(headers)
}

/// Bytes an upstream may send ahead on one stream.
const WINDOW_BYTES: u32 = 256 << 10;

/// Bytes of a body copied into one DATA frame at most.
const PIECE_BYTES: usize = 16 << 10;

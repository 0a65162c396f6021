//! Copies of requests: each goes to another server beside the request itself, and nobody sees its
//! answer.
//!
//! A plugin puts a [`Mirror`] on the exchange; it goes out when the request does, to an upstream or to
//! a function, and not at all where a plugin refuses or answers the request. A copy never holds its
//! request up: it has a task of its own, and of a body that is still on its way it gets each piece as
//! it passes. What it cannot keep up with is dropped, counted and logged.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ::http::Method;
use bytes::{Buf, Bytes};
use tracing::warn;

use crate::body::{Body, BodyError, Overhear, Source};
use crate::client::{self, Answer, CallError, Keepalive, Outgoing, Timeouts};
use crate::core::Core;
use crate::endpoint::{Endpoint, EndpointOptions};
use crate::exchange::Exchange;
use crate::http::headers::Headers;
use crate::io::within;
use crate::plugin::{CompileCtx, ConfigError};
use crate::proxy::{self, is_idempotent};

/// A server that gets copies.
pub struct MirrorServer {
    endpoint: Endpoint,
    h2: bool,
}

impl MirrorServer {
    /// Compiles `scheme://host[:port]`, which the configuration has in `field`. The schemes are `http`,
    /// `https` and, for HTTP/2, `grpc` and `grpcs`. Certificates are not verified.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(
        field: &str,
        host: &str,
        timeouts: Timeouts,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        let options = EndpointOptions {
            egress: false,
            verify: false,
            keepalive: Some(Keepalive {
                size: KEEPALIVE_SIZE,
                idle_timeout: KEEPALIVE_IDLE,
                requests: u64::MAX,
            }),
            timeouts,
        };
        let (h2, url) = match host.strip_prefix("grpc") {
            Some(rest) => (true, format!("http{rest}")),
            None => (false, host.to_owned()),
        };
        Ok(Self { endpoint: Endpoint::compile_for(field, &url, &options, h2, ctx)?, h2 })
    }

    /// Does it speak HTTP/2?
    pub fn is_h2(&self) -> bool {
        self.h2
    }
}

/// A copy that goes out once the request does.
pub struct Mirror {
    /// Who gets it.
    pub server: Arc<MirrorServer>,
    /// Path and query, raw; `None`: those of the request as its upstream gets it.
    pub target: Option<Vec<u8>>,
}

/// What a core keeps of its copies.
#[derive(Default)]
pub(crate) struct Mirrors {
    in_flight: Cell<usize>,
    /// Bytes that wait for servers.
    waiting: Cell<usize>,
    /// Failures not logged yet, and when one last was.
    quiet: Cell<u64>,
    logged: Cell<Option<Instant>>,
}

/// Why a copy did not reach its server.
#[derive(Debug, thiserror::Error)]
enum MirrorError {
    #[error("{MIRRORS_MAX} copies are under way already")]
    TooMany,
    #[error("{WAITING_BYTES_MAX} bytes of bodies wait for these servers already")]
    NoRoom,
    #[error("the request cannot be written as HTTP/2: {0}")]
    Head(#[from] ::http::Error),
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Sends the copies of a request that is about to go out with the `Host` that `host` names, or its
/// client's. `held` is its body, where that was read already.
pub fn depart(exchange: &mut Exchange, held: Option<&Bytes>, host: Option<&[u8]>) {
    for mirror in std::mem::take(&mut exchange.mirrors) {
        let core = exchange.core.clone();
        if let Err(error) = send_one(exchange, &core, &mirror, held, host) {
            core.mirrors.failed(&core, &mirror.server, &error);
        }
    }
}

fn send_one(
    exchange: &mut Exchange,
    core: &Rc<Core>,
    mirror: &Mirror,
    held: Option<&Bytes>,
    host: Option<&[u8]>,
) -> Result<(), MirrorError> {
    let flight = Flight::begin(core).ok_or(MirrorError::TooMany)?;
    let mut room = Waiting { core: core.clone(), bytes: 0 };
    let at_hand = match (held, &exchange.request.body) {
        (Some(body), _) | (None, Body::Bytes(body)) => Some(body.clone()),
        (None, Body::Empty) => Some(Bytes::new()),
        (None, Body::Stream(_)) => None,
    };
    let body = match at_hand {
        Some(body) if room.take(body.len()) => Body::from_bytes(body),
        Some(_) => return Err(MirrorError::NoRoom),
        None => tap(exchange, core),
    };
    let server = mirror.server.clone();
    let host = host.unwrap_or_else(|| exchange.upstream_host());
    let host = if host.is_empty() { server.endpoint.authority().as_bytes() } else { host };
    let target = mirror.target.as_deref();
    let copy = if server.h2 {
        let tls = server.endpoint.scheme() == "https";
        Copy::Http2(Box::new(proxy::grpc_head(exchange, tls, target, host)?), body)
    } else {
        let mut head = core.take_head();
        let chunked = proxy::write_head(exchange, &body, target, host, false, &mut head);
        let no_answer_body = exchange.request.method == Method::HEAD;
        let again = is_idempotent(&exchange.request.method);
        Copy::Http1 {
            outgoing: Outgoing { head, body, chunked, no_answer_body, may_upgrade: false },
            again,
        }
    };
    core.counters.mirrors.add(1);
    let core = core.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = copy.send(&core, &server.endpoint).await {
            core.mirrors.failed(&core, &server, &error.into());
        }
        drop((room, flight));
    });
    Ok(())
}

/// A copy on its way.
enum Copy {
    Http1 {
        outgoing: Outgoing,
        /// It does no harm to send it twice.
        again: bool,
    },
    Http2(Box<::http::Request<()>>, Body),
}

impl Copy {
    /// Sends it, and throws the answer away.
    async fn send(self, core: &Rc<Core>, endpoint: &Endpoint) -> Result<(), CallError> {
        let (target, limit) = endpoint.target(core).await?;
        let timeouts = endpoint.timeouts();
        let received = match self {
            Self::Http2(head, mut body) => {
                client::send_h2(core, &target, *head, &mut body, timeouts).await?
            }
            Self::Http1 { mut outgoing, again } => {
                // A body that passes only once has a connection that cannot be stale.
                let mut fresh = matches!(outgoing.body, Body::Stream(_));
                loop {
                    let conn = client::acquire(core, &target, limit, fresh).await?;
                    let spare = match outgoing.body.replay() {
                        Some(body) if !fresh => {
                            Some(Outgoing { head: outgoing.head.clone(), body, ..outgoing })
                        }
                        _ => None,
                    };
                    match (client::send(core, conn, outgoing, timeouts).await, spare) {
                        (Answer::Received(received), _) => break received,
                        (Answer::Failed { stale: true, untouched, .. }, Some(spare))
                            if untouched || again =>
                        {
                            outgoing = spare;
                            fresh = true;
                        }
                        (Answer::Failed { error, .. }, _) => return Err(error),
                    }
                }
            }
        };
        let mut body = received.body;
        let mut left = ANSWER_BYTES_MAX;
        // An answer that does not end soon costs its connection, and nothing else.
        let _ = within(timeouts.read, async {
            while let Ok(n) = body.fill().await
                && n > 0
                && n <= left
            {
                left -= n;
                body.consume(n);
            }
        })
        .await;
        Ok(())
    }
}

impl Mirrors {
    /// Counts a copy that did not arrive, and tells of it, at most once a second.
    fn failed(&self, core: &Core, server: &MirrorServer, error: &MirrorError) {
        core.counters.mirror_errors.add(1);
        let now = core.look();
        if self.logged.get().is_some_and(|last| now - last < LOG_EVERY) {
            self.quiet.set(self.quiet.get() + 1);
            return;
        }
        self.logged.set(Some(now));
        let others = self.quiet.replace(0);
        warn!(host = &**server.endpoint.authority(), %error, others, "A copy of a request did not reach its server.");
    }
}

/// A copy under way.
struct Flight(Rc<Core>);

impl Flight {
    fn begin(core: &Rc<Core>) -> Option<Self> {
        let now = core.mirrors.in_flight.get();
        (now < MIRRORS_MAX).then(|| {
            core.mirrors.in_flight.set(now + 1);
            Self(core.clone())
        })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let now = &self.0.mirrors.in_flight;
        now.set(now.get().saturating_sub(1));
    }
}

/// Bytes that wait for a server.
struct Waiting {
    core: Rc<Core>,
    bytes: usize,
}

impl Waiting {
    /// Takes room for more, if there is any.
    fn take(&mut self, bytes: usize) -> bool {
        let all = &self.core.mirrors.waiting;
        let fits = all.get() + bytes <= WAITING_BYTES_MAX;
        if fits {
            all.set(all.get() + bytes);
            self.bytes += bytes;
        }
        fits
    }

    fn give_back(&mut self, bytes: usize) {
        let all = &self.core.mirrors.waiting;
        all.set(all.get().saturating_sub(bytes));
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// Has the pieces of the request's body copied as they pass; the copy.
fn tap(exchange: &mut Exchange, core: &Rc<Core>) -> Body {
    let body = std::mem::take(&mut exchange.request.body);
    let pipe = Rc::new(RefCell::new(Pipe {
        pieces: VecDeque::new(),
        room: Waiting { core: core.clone(), bytes: 0 },
        left: body.remaining(),
        state: State::Open,
        waker: None,
    }));
    exchange.request.body = body.overheard(Inlet(pipe.clone()));
    Body::stream(Outlet { pipe, piece: Bytes::new() })
}

/// Pieces of a body between the request and its copy.
struct Pipe {
    pieces: VecDeque<Bytes>,
    room: Waiting,
    /// Bytes that the copy still has to read, where that is known.
    left: Option<u64>,
    state: State,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The body is over.
    Whole,
    /// It broke off.
    Broken,
    /// More waits than may.
    Behind,
}

impl Pipe {
    fn become_state(&mut self, state: State) {
        if self.state == State::Open {
            self.state = state;
            if state != State::Whole {
                self.pieces.clear();
                self.room.give_back(self.room.bytes);
            }
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The request's side of a [`Pipe`].
struct Inlet(Rc<RefCell<Pipe>>);

impl Overhear for Inlet {
    fn piece(&mut self, piece: &[u8]) {
        // Nobody reads any more: what passes is not copied.
        if Rc::strong_count(&self.0) == 1 {
            return;
        }
        let mut pipe = self.0.borrow_mut();
        if pipe.state != State::Open {
            return;
        }
        if pipe.room.bytes + piece.len() > PIPE_BYTES_MAX || !pipe.room.take(piece.len()) {
            return pipe.become_state(State::Behind);
        }
        pipe.pieces.push_back(Bytes::copy_from_slice(piece));
        if let Some(waker) = pipe.waker.take() {
            waker.wake();
        }
    }

    fn end(&mut self, _: Option<&Headers>) {
        self.0.borrow_mut().become_state(State::Whole);
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.0.borrow_mut().become_state(State::Broken);
    }
}

/// The copy's side of a [`Pipe`].
struct Outlet {
    pipe: Rc<RefCell<Pipe>>,
    /// The piece being read.
    piece: Bytes,
}

impl Outlet {
    fn error(state: State) -> BodyError {
        match state {
            State::Behind => BodyError::Io(std::io::Error::other(format!(
                "the server takes it too slowly: more than {PIPE_BYTES_MAX} bytes wait"
            ))),
            _ => BodyError::Ended,
        }
    }
}

impl Source for Outlet {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        let mut pipe = self.pipe.borrow_mut();
        if self.piece.is_empty() {
            match (pipe.pieces.pop_front(), pipe.state) {
                (Some(piece), _) => self.piece = piece,
                (None, State::Open) => {
                    pipe.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                (None, State::Whole) => return Poll::Ready(Ok(0)),
                (None, state) => return Poll::Ready(Err(Self::error(state))),
            }
        }
        Poll::Ready(Ok(self.piece.len()))
    }

    fn data(&self) -> &[u8] {
        &self.piece
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
        let mut pipe = self.pipe.borrow_mut();
        pipe.room.give_back(n);
        pipe.left = pipe.left.map(|left| left.saturating_sub(n as u64));
    }

    fn remaining(&self) -> Option<u64> {
        self.pipe.borrow().left
    }
}

/// Copies under way at one time, on each core.
const MIRRORS_MAX: usize = 256;
/// Bytes of bodies that wait for servers, all copies of a core together.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Bytes of a body still on its way that wait for a server.
const PIPE_BYTES_MAX: usize = 1 << 20;
/// Bytes of an answer that are read so that its connection can be kept.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Idle connections to a server, on each core.
const KEEPALIVE_SIZE: usize = 32;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How often a failure is logged at most, on each core.
const LOG_EVERY: Duration = Duration::from_secs(1);

//! Idle upstream connections of one core.
//!
//! A target keeps `keepalive.size` connections. Those above it are not closed at once but
//! live for a short grace time, so that a burst finds them again and a quiet target
//! falls back to its number.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};

use crate::http::headers::Headers;
use crate::io::{Buffer, LazyTimer, Stream};

use super::{Keepalive, Target};

/// A connection to an upstream.
pub struct Conn {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    pub(crate) timer: LazyTimer,
    pub(crate) requests: u64,
    /// It has carried an earlier request.
    pub(crate) reused: bool,
    /// How long the request at hand waited for it: no time when it was kept, as nginx has it.
    pub(crate) connect_time: Duration,
    key: Option<Key>,
    keepalive: Keepalive,
}

impl Conn {
    /// A fresh connection to `target`.
    pub(crate) fn new(stream: Stream, target: &Target, connect_time: Duration) -> Self {
        let keepalive = target.keepalive.unwrap_or(Keepalive {
            size: 0,
            idle_timeout: Duration::ZERO,
            requests: 1,
        });
        Self {
            stream,
            buffer: Buffer::default(),
            timer: LazyTimer::default(),
            requests: 0,
            reused: false,
            connect_time,
            key: Key::of(target),
            keepalive,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    addr: SocketAddr,
    tls: u64,
    via: u64,
    size: usize,
}

impl Key {
    fn of(target: &Target) -> Option<Self> {
        let size = target.keepalive?.size;
        Some(Self {
            addr: target.addr,
            tls: target.tls.as_ref().map_or(0, |t| t.id),
            via: target.via.as_ref().map_or(0, |via| via.id()),
            size,
        })
    }
}

struct Idle {
    conn: Box<Conn>,
    since: Instant,
}

/// The idle connections of a core.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>, foldhash::fast::RandomState>>,
    pub(crate) multiplexed: super::h2::Multiplexed,
    spare_headers: RefCell<Vec<Headers>>,
}

impl Pool {
    /// Takes an idle connection that is still open.
    pub(crate) fn take(&self, target: &Target, now: Instant) -> Option<Box<Conn>> {
        let key = Key::of(target)?;
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&key)?;
        while let Some(Idle { mut conn, since }) = list.pop() {
            let idle = now.saturating_duration_since(since);
            if idle < conn.keepalive.idle_timeout && is_quiet(&mut conn) {
                conn.reused = true;
                conn.connect_time = Duration::ZERO;
                return Some(conn);
            }
        }
        None
    }

    /// Takes a connection back after a whole answer.
    pub(crate) fn put(&self, mut conn: Box<Conn>, now: Instant) {
        let Some(key) = conn.key else { return };
        if conn.requests >= conn.keepalive.requests || !conn.buffer.is_empty() {
            return;
        }
        conn.timer.disarm();
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() < key.size.max(IDLE_ABOVE_MAX) {
            list.push(Idle { conn, since: now });
        }
    }

    /// Closes what was idle for too long, and what is above the number for longer than
    /// `grace`. `lender` gets the read buffers of idle connections.
    pub(crate) fn sweep(&self, grace: Duration, lender: &mut Vec<Vec<u8>>, keep: usize) {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        idle.retain(|key, list| {
            let mut above = list.len().saturating_sub(key.size);
            // The front was used longest ago.
            list.retain_mut(|entry| {
                let age = now.duration_since(entry.since);
                if age >= entry.conn.keepalive.idle_timeout || !is_quiet(&mut entry.conn) {
                    above = above.saturating_sub(1);
                    return false;
                }
                if above > 0 && age >= grace {
                    above -= 1;
                    return false;
                }
                if age >= BUFFER_LENT_IDLE {
                    entry.conn.buffer.give_back(lender, keep);
                    entry.conn.timer.clear();
                }
                true
            });
            !list.is_empty()
        });
        self.multiplexed.sweep();
    }

    /// Idle connections now.
    pub fn idle_count(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    /// Closes every idle connection.
    pub(crate) fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.multiplexed.clear();
    }

    /// An empty header block with memory of an earlier one.
    pub fn headers(&self) -> Headers {
        self.spare_headers.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a header block's memory back.
    pub fn recycle(&self, mut headers: Headers) {
        let mut spare = self.spare_headers.borrow_mut();
        if spare.len() < SPARE_HEADERS_MAX && headers.is_small() {
            headers.clear();
            spare.push(headers);
        }
    }
}

/// Is an idle connection still open and silent? Bytes that nobody asked for would be taken
/// for the next answer. Costs no system call while nothing happened on the connection.
fn is_quiet(conn: &mut Conn) -> bool {
    let mut byte = [0_u8; 1];
    if let Stream::Tcp(tcp) = &conn.stream {
        let seen = tcp.try_read_peek(&mut byte);
        return seen.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    }
    // Only TLS can tell: a session ticket is nothing to give a connection up for, while bytes
    // of an answer may be deciphered already and no longer lie in the socket.
    let mut look = ReadBuf::new(&mut byte);
    let read = poll_fn(|cx| Pin::new(&mut conn.stream).poll_read(cx, &mut look));
    // Not held back by the task's budget: that would pass for silence.
    let read = pin!(tokio::task::unconstrained(read));
    read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

trait TryPeek {
    fn try_read_peek(&self, byte: &mut [u8]) -> std::io::Result<usize>;
}

impl TryPeek for tokio::net::TcpStream {
    /// Looks without taking: what is there belongs to TLS.
    fn try_read_peek(&self, byte: &mut [u8]) -> std::io::Result<usize> {
        self.try_io(tokio::io::Interest::READABLE, || {
            let mut look = [std::mem::MaybeUninit::<u8>::uninit(); 1];
            let n = socket2::SockRef::from(self).peek(&mut look)?;
            if n > 0 {
                byte[0] = 1;
            }
            Ok(n)
        })
    }
}

/// Ready once the far end has closed; costs no system call while nothing happens.
pub(crate) fn poll_closed(stream: &Stream, cx: &mut Context<'_>) -> Poll<()> {
    let tcp = stream.tcp();
    loop {
        match tcp.poll_read_ready(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) => {}
        }
        let mut byte = [0_u8; 1];
        match tcp.try_read_peek(&mut byte) {
            Ok(0) => return Poll::Ready(()),
            // Bytes of the next request: the far end is there.
            Ok(_) => return Poll::Pending,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Poll::Ready(()),
        }
    }
}

/// Idle connections a target may have above its number during the grace time.
const IDLE_ABOVE_MAX: usize = 1024;

/// A connection idle for this long gives its read buffer back.
const BUFFER_LENT_IDLE: Duration = Duration::from_secs(1);

/// Header blocks kept for reuse.
const SPARE_HEADERS_MAX: usize = 256;

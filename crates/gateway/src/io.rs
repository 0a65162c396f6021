//! Sockets, plain or TLS, their read buffers, and timers that cost nothing while
//! they do not fire.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// A connection to a client or to an upstream.
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS, this side being the server.
    ServerTls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS, this side being the client.
    ClientTls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// TLS in a tunnel through a proxy that is spoken TLS with.
    NestedTls(Box<NestedTls>),
}

type NestedTls = tokio_rustls::client::TlsStream<tokio_rustls::client::TlsStream<TcpStream>>;

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::ServerTls(tls) => tls.get_ref().0,
            Self::ClientTls(tls) => tls.get_ref().0,
            Self::NestedTls(tls) => tls.get_ref().0.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::ServerTls(s) => Pin::new(s).poll_read(cx, buf),
            Self::ClientTls(s) => Pin::new(s).poll_read(cx, buf),
            Self::NestedTls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::ServerTls(s) => Pin::new(s).poll_write(cx, buf),
            Self::ClientTls(s) => Pin::new(s).poll_write(cx, buf),
            Self::NestedTls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::ServerTls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::ClientTls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::NestedTls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::ServerTls(s) => Pin::new(s).poll_flush(cx),
            Self::ClientTls(s) => Pin::new(s).poll_flush(cx),
            Self::NestedTls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::ServerTls(s) => Pin::new(s).poll_shutdown(cx),
            Self::ClientTls(s) => Pin::new(s).poll_shutdown(cx),
            Self::NestedTls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// Bytes of a read buffer. One is lent to a connection while it has bytes to read.
pub const BUFFER_BYTES: usize = 16 << 10;

/// What the buffer of a body grows to while its bytes come faster than they are read: four times
/// fewer system calls (a MiB each way went from 1.2 to 0.6 times what it costs nginx).
pub const BODY_BUFFER_BYTES: usize = 64 << 10;

/// A stretch of received bytes: filled at the back, used up at the front.
#[derive(Default)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read took all the space there was.
    filled: bool,
}

impl Buffer {
    /// The bytes received and not used yet.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Are there no such bytes?
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Uses up `n` bytes at the front.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Holds bytes that were read elsewhere.
    pub fn holding(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self { memory: bytes, start: 0, end, filled: false }
    }

    /// Gives the memory to a connection that had none.
    pub fn lend(&mut self, lender: &mut Vec<Vec<u8>>) {
        if self.memory.is_empty() {
            self.memory = lender.pop().unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        }
    }

    /// Takes the memory of an empty buffer back; at most `keep` of them are kept.
    pub fn give_back(&mut self, lender: &mut Vec<Vec<u8>>, keep: usize) {
        if self.is_empty() && !self.memory.is_empty() {
            let memory = std::mem::take(&mut self.memory);
            (self.start, self.end) = (0, 0);
            if memory.len() == BUFFER_BYTES && lender.len() < keep {
                lender.push(memory);
            }
        }
    }

    /// Reads once. `Ok(0)` is the end of the stream. When the buffer is full it grows up
    /// to `max` bytes; a full buffer at `max` is an error of the caller's limit.
    pub fn poll_read(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        if self.memory.is_empty() {
            self.memory = vec![0; BUFFER_BYTES];
        }
        if self.end == self.memory.len() {
            if self.start > 0 {
                self.memory.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else if self.memory.len() < max {
                let size = (self.memory.len() * 2).min(max);
                self.memory.resize(size, 0);
            } else {
                return Poll::Ready(Err(io::Error::other("the read buffer is full")));
            }
        }
        let mut space = ReadBuf::new(&mut self.memory[self.end..]);
        ready!(Pin::new(stream).poll_read(cx, &mut space))?;
        let n = space.filled().len();
        self.filled = space.remaining() == 0;
        self.end += n;
        Poll::Ready(Ok(n))
    }
}

impl Buffer {
    /// [`Buffer::poll_read`] for body bytes, with larger reads while they come fast.
    pub fn poll_read_body(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.filled && self.is_empty() && self.memory.len() < BODY_BUFFER_BYTES {
            self.memory.resize(BODY_BUFFER_BYTES, 0);
        }
        self.poll_read(stream, cx, BODY_BUFFER_BYTES)
    }
}

/// A deadline that is moved ahead for every wait without touching the timer wheel: the
/// timer below is set again only when it fires too early or is too late.
#[derive(Default)]
pub struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    fires: Option<Instant>,
    deadline: Option<Instant>,
}

impl LazyTimer {
    /// Starts a wait that may take this long.
    pub fn arm(&mut self, limit: Duration) {
        self.arm_at(Instant::now(), limit);
    }

    /// Starts a wait that began at `moment` and may take this long.
    pub(crate) fn arm_at(&mut self, moment: Instant, limit: Duration) {
        let deadline = moment + limit;
        self.deadline = Some(deadline);
        // A timer that fires after the deadline would be too late; one before it is
        // set again when it fires.
        if self.fires.is_none_or(|f| f > deadline) {
            self.set(deadline);
        }
    }

    /// Starts a wait unless one is under way.
    pub fn arm_once(&mut self, limit: Duration) {
        if self.deadline.is_none() {
            self.arm(limit);
        }
    }

    /// Ends the wait.
    pub fn disarm(&mut self) {
        self.deadline = None;
    }

    fn set(&mut self, at: Instant) {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at.into()),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(at.into()))),
        }
        self.fires = Some(at);
    }

    /// Ready once the wait has lasted too long.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadline else { return Poll::Pending };
            let Some(sleep) = &mut self.sleep else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                self.fires = None;
                self.sleep = None;
                return Poll::Ready(());
            }
            self.set(deadline);
        }
    }

    /// Drops the timer: an idle connection keeps none.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Waits for `future`, at most `limit`; `None` when time ran out.
pub async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn a_lazy_timer_fires_at_its_latest_deadline_only() {
        let mut timer = LazyTimer::default();
        timer.arm(Duration::from_millis(100));
        timer.arm(Duration::from_millis(20));
        let fired =
            tokio::time::timeout(Duration::from_secs(5), poll_fn(|cx| timer.poll_expired(cx)));
        assert!(fired.await.is_ok());
        timer.arm(Duration::from_millis(10));
        timer.disarm();
        let fired =
            tokio::time::timeout(Duration::from_millis(50), poll_fn(|cx| timer.poll_expired(cx)));
        assert!(fired.await.is_err());
    }
}

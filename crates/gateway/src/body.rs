//! Message bodies, streamed: a body shows the bytes it has, and reads more when asked.
//!
//! Nothing is copied on the way: the writer writes from the reader's buffer. Only
//! [`Body::read_limited`] holds a body whole, up to a limit its caller names.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::http::headers::Headers;
use crate::io::within;

/// Where a streamed body comes from.
pub trait Source {
    /// Makes bytes available. `Ok(n)`: `n` bytes lie in [`Source::data`]; 0 is the end.
    /// While [`Source::data`] is not empty this returns at once.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>>;
    /// The bytes at hand.
    fn data(&self) -> &[u8];
    /// Uses up the first `n` bytes at hand.
    fn consume(&mut self, n: usize);
    /// Bytes still to come, where that is known.
    fn remaining(&self) -> Option<u64>;
    /// The most bytes it may have in all, where that can still be said: the body of a client.
    fn set_limit(&mut self, _limit: Option<u64>) {}
    /// The fields after the body, once it has ended.
    fn take_trailers(&mut self) -> Option<Headers> {
        None
    }
    /// Is the time for the whole of it over? For a reader that takes no bytes now, so that it hears
    /// of it all the same.
    fn poll_overdue(&mut self, _cx: &mut Context<'_>) -> Poll<BodyError> {
        Poll::Pending
    }
}

/// A body.
#[derive(Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// Bytes at hand.
    Bytes(Bytes),
    /// Bytes that are still to come.
    Stream(Box<dyn Source>),
}

/// Why a body did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer broke the framing.
    #[error(transparent)]
    Framing(#[from] crate::http::framing::FramingError),
    /// The connection ended first.
    #[error("the connection ended before the body did")]
    Ended,
    /// Nothing came for this long.
    #[error("no body bytes for {0:?}")]
    TimedOut(Duration),
    /// As [`BodyError::TimedOut`], for the answer of a call whose limit has a name.
    #[error(
        "`{name}` of {limit:?} ended while the answer came, and nothing more of it had come for so long: raise it if functions may pause for longer"
    )]
    Silent {
        /// The limit's name in configurations.
        name: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// Who it is for took none of it for this long.
    #[error("the client took no bytes for {0:?}")]
    NotTaken(Duration),
    /// It did not end within the time for all of it.
    #[error("`{name}` of {limit:?} ended before the body did")]
    Overdue {
        /// The limit's name in configurations.
        name: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// What the body is made from is broken; who makes it has logged why.
    #[error("{0}")]
    Broken(String),
    /// More bytes than allowed.
    #[error("{}", too_large(*.limit, *.size))]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
        /// What it has, where it says so.
        size: Option<u64>,
    },
    /// All buffered bodies together are over their limit.
    #[error(
        "the gateway holds too many buffered request bytes: the limit is {limit} (sluicegate.limits.buffered_body_bytes)"
    )]
    NoRoom {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The HTTP/2 stream failed.
    #[error(transparent)]
    H2(#[from] h2::Error),
}

fn too_large(limit: u64, size: Option<u64>) -> String {
    match size {
        Some(size) => format!("the body has {size} bytes, and {limit} are the most"),
        None => format!("the body is larger than {limit} bytes"),
    }
}

impl Body {
    /// A body of these bytes.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Bytes(bytes) }
    }

    /// A body from a source.
    pub fn stream(source: impl Source + 'static) -> Self {
        Self::Stream(Box::new(source))
    }

    /// See [`Source::poll_fill`].
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        match self {
            Self::Empty => Poll::Ready(Ok(0)),
            Self::Bytes(bytes) => Poll::Ready(Ok(bytes.len())),
            Self::Stream(source) => source.poll_fill(cx),
        }
    }

    /// See [`Source::data`].
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Bytes(bytes) => bytes,
            Self::Stream(source) => source.data(),
        }
    }

    /// See [`Source::consume`].
    pub fn consume(&mut self, n: usize) {
        match self {
            Self::Empty => {}
            Self::Bytes(bytes) => bytes.advance(n),
            Self::Stream(source) => source.consume(n),
        }
    }

    /// Bytes still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Stream(source) => source.remaining(),
        }
    }

    /// See [`Source::set_limit`].
    pub fn set_limit(&mut self, limit: Option<u64>) {
        if let Self::Stream(source) = self {
            source.set_limit(limit);
        }
    }

    /// See [`Source::take_trailers`].
    pub fn take_trailers(&mut self) -> Option<Headers> {
        match self {
            Self::Stream(source) => source.take_trailers(),
            _ => None,
        }
    }

    /// See [`Source::poll_overdue`].
    pub fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self {
            Self::Stream(source) => source.poll_overdue(cx),
            _ => Poll::Pending,
        }
    }

    /// Is it known that no byte will come?
    pub fn is_empty(&self) -> bool {
        self.remaining() == Some(0)
    }

    /// Can it be sent a second time, should the first try not get through?
    pub fn replay(&self) -> Option<Body> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Bytes(bytes) => Some(Self::Bytes(bytes.clone())),
            Self::Stream(_) => None,
        }
    }

    /// Waits for bytes; see [`Source::poll_fill`].
    pub async fn fill(&mut self) -> Result<usize, BodyError> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Reads the whole body into memory, at most `limit` bytes.
    pub async fn read_limited(&mut self, limit: u64) -> Result<Bytes, BodyError> {
        let expected = self.remaining();
        let too_large = BodyError::TooLarge { limit, size: expected };
        if expected.is_some_and(|n| n > limit) {
            return Err(too_large);
        }
        if let Self::Bytes(bytes) = self {
            return Ok(std::mem::take(bytes));
        }
        // What a peer announces is not allocated before it arrives.
        let mut whole = BytesMut::with_capacity(
            expected.map_or(0, |n| usize::try_from(n).unwrap_or(0).min(READ_AHEAD_BYTES)),
        );
        loop {
            let n = self.fill().await?;
            if n == 0 {
                return Ok(whole.freeze());
            }
            if whole.len() as u64 + n as u64 > limit {
                return Err(too_large);
            }
            whole.extend_from_slice(self.data());
            self.consume(n);
        }
    }
}

/// Hears what passes through a body; see [`Body::overheard`].
pub trait Overhear {
    /// Bytes that whoever reads the body has taken.
    fn piece(&mut self, piece: &[u8]);
    /// The body ended as it should, with these fields after it. Does not come where it broke off or
    /// was not read to its end.
    fn end(&mut self, trailers: Option<&Headers>);
}

impl Body {
    /// This body, with somebody who hears what passes.
    pub fn overheard(self, by: impl Overhear + 'static) -> Self {
        let mut overheard = Overheard { body: self, by, ended: false, trailers: None };
        if overheard.body.is_empty() {
            overheard.end();
        }
        Self::stream(overheard)
    }
}

struct Overheard<O> {
    body: Body,
    by: O,
    ended: bool,
    trailers: Option<Headers>,
}

impl<O: Overhear> Overheard<O> {
    fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            self.trailers = self.body.take_trailers();
            self.by.end(self.trailers.as_ref());
        }
    }
}

impl<O: Overhear> Source for Overheard<O> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        let filled = self.body.poll_fill(cx);
        if matches!(filled, Poll::Ready(Ok(0))) {
            self.end();
        }
        filled
    }

    fn data(&self) -> &[u8] {
        self.body.data()
    }

    fn consume(&mut self, n: usize) {
        self.by.piece(&self.body.data()[..n]);
        self.body.consume(n);
        // Where the length is known nobody may look once more.
        if self.body.is_empty() {
            self.end();
        }
    }

    fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    fn set_limit(&mut self, limit: Option<u64>) {
        self.body.set_limit(limit);
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take().or_else(|| self.body.take_trailers())
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.body.poll_overdue(cx)
    }
}

/// Part of the room there is for bodies held whole, given back when dropped.
pub struct Room {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Room {
    /// Takes `bytes` of `limit` bytes, of which `used` counts those taken.
    pub(crate) fn take(used: &Arc<AtomicU64>, bytes: u64, limit: u64) -> Result<Self, BodyError> {
        let before = used.fetch_add(bytes, Ordering::Relaxed);
        let room = Self { used: used.clone(), bytes };
        if before.saturating_add(bytes) > limit {
            Err(BodyError::NoRoom { limit })
        } else {
            Ok(room)
        }
    }
}

impl Room {
    /// Takes or gives back what makes it `bytes`. Without room for them it stays as it is.
    pub(crate) fn resize(&mut self, bytes: u64, limit: u64) -> Result<(), BodyError> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => {
                let mut more = Self::take(&self.used, more, limit)?;
                self.bytes += std::mem::take(&mut more.bytes);
            }
            None => {
                self.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
                self.bytes = bytes;
            }
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Body {
    /// Reads the whole body into memory, at most `limit` bytes of it and at most `total`
    /// bytes of all bodies that `used` counts. The room is taken for as long as the result
    /// is kept.
    pub async fn hold(
        &mut self,
        limit: u64,
        used: &Arc<AtomicU64>,
        total: u64,
    ) -> Result<(Bytes, Option<Room>), BodyError> {
        let size = self.remaining();
        if size.is_some_and(|n| n > limit) {
            return Err(BodyError::TooLarge { limit, size });
        }
        if let Self::Bytes(bytes) = self {
            let room = Room::take(used, bytes.len() as u64, total)?;
            return Ok((std::mem::take(bytes), Some(room)));
        }
        let whole = self.peek(limit, used, total).await?;
        // What was read of a body that is too large is of no use to anybody: its room is free
        // before the answer goes out.
        *self = Self::Empty;
        whole.ok_or(BodyError::TooLarge { limit, size })
    }

    /// Reads the whole body as [`Body::hold`] does, and leaves it to be read once more.
    /// `None`: it is larger than `limit`, and still all there.
    pub async fn peek(
        &mut self,
        limit: u64,
        used: &Arc<AtomicU64>,
        total: u64,
    ) -> Result<Option<(Bytes, Option<Room>)>, BodyError> {
        let expected = match self.remaining() {
            Some(0) => return Ok(Some((Bytes::new(), None))),
            Some(n) if n > limit => return Ok(None),
            expected => expected.unwrap_or(0),
        };
        if used.load(Ordering::Relaxed).saturating_add(expected) > total {
            return Err(BodyError::NoRoom { limit: total });
        }
        if let Self::Bytes(bytes) = self {
            return Ok(Some((bytes.clone(), Some(Room::take(used, expected, total)?))));
        }
        // What a peer announces takes neither room nor memory before it arrives: announcing
        // costs a peer nothing, and would keep others out.
        let mut room = Room::take(used, 0, total)?;
        let mut whole =
            BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0).min(READ_AHEAD_BYTES));
        loop {
            let n = self.fill().await?;
            if n == 0 {
                let whole = whole.freeze();
                *self = Self::from_bytes(whole.clone());
                return Ok(Some((whole, Some(room))));
            }
            let len = whole.len() as u64 + n as u64;
            if len > limit {
                let rest = std::mem::take(self);
                *self = Self::stream(PutBack { read: whole.freeze(), rest, _room: Some(room) });
                return Ok(None);
            }
            room.resize(len, total)?;
            whole.extend_from_slice(&self.data()[..n]);
            self.consume(n);
        }
    }
}

impl Body {
    /// The first bytes of the body, which stays to be read: all of it, or as much as comes within
    /// `wait` and passes `limit` first.
    pub async fn peek_start(&mut self, limit: usize, wait: Duration) -> Bytes {
        if let Self::Bytes(bytes) = self {
            return bytes.clone();
        }
        let mut read = BytesMut::new();
        let ended = within(wait, async {
            while read.len() <= limit {
                match self.fill().await {
                    Ok(0) => return Some(None),
                    Ok(n) => {
                        read.extend_from_slice(&self.data()[..n]);
                        self.consume(n);
                    }
                    Err(error) => return Some(Some(error)),
                }
            }
            None
        })
        .await
        .flatten();
        let read = read.freeze();
        let rest = match ended {
            Some(None) => {
                *self = Self::from_bytes(read.clone());
                return read;
            }
            Some(Some(error)) => Self::stream(Failed(Some(error))),
            None => std::mem::take(self),
        };
        *self = Self::stream(PutBack { read: read.clone(), rest, _room: None });
        read
    }
}

/// The end of a body that broke.
struct Failed(Option<BodyError>);

impl Source for Failed {
    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        Poll::Ready(Err(self.0.take().unwrap_or(BodyError::Ended)))
    }

    fn data(&self) -> &[u8] {
        &[]
    }

    fn consume(&mut self, _: usize) {}

    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// A body of which a part was read and then put back in front of the rest.
struct PutBack {
    read: Bytes,
    rest: Body,
    _room: Option<Room>,
}

impl Source for PutBack {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        if self.read.is_empty() {
            self.rest.poll_fill(cx)
        } else {
            Poll::Ready(Ok(self.read.len()))
        }
    }

    fn data(&self) -> &[u8] {
        if self.read.is_empty() { self.rest.data() } else { &self.read }
    }

    fn consume(&mut self, n: usize) {
        if self.read.is_empty() { self.rest.consume(n) } else { self.read.advance(n) }
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.rest.remaining()? + self.read.len() as u64)
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.rest.take_trailers()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({:?} bytes)", self.remaining())
    }
}

/// Bytes reserved at once for a body of announced length.
const READ_AHEAD_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn held_bodies_share_their_room_and_give_it_back() {
        let used = Arc::default();
        let hold = async |n: usize| Body::from_bytes(vec![0; n]).hold(100, &used, 150).await;
        let first = hold(100).await.expect("there is room");
        assert!(matches!(hold(51).await, Err(BodyError::NoRoom { limit: 150 })));
        let second = hold(50).await.expect("what was refused took nothing");
        drop((first, second));
        assert_eq!(used.load(Ordering::Relaxed), 0);
        assert!(matches!(
            hold(101).await,
            Err(BodyError::TooLarge { limit: 100, size: Some(101) })
        ));
    }

    /// Bytes in pieces, their number unknown before.
    struct Pieces(Vec<Bytes>);

    impl Source for Pieces {
        fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
            if self.0.first().is_some_and(Bytes::is_empty) {
                self.0.remove(0);
            }
            Poll::Ready(Ok(self.data().len()))
        }

        fn data(&self) -> &[u8] {
            self.0.first().map_or(&[], |piece| piece)
        }

        fn consume(&mut self, n: usize) {
            self.0[0].advance(n);
        }

        fn remaining(&self) -> Option<u64> {
            None
        }
    }

    #[tokio::test]
    async fn a_body_peeked_at_is_all_there_afterwards() {
        let used = Arc::default();
        let streamed = || Body::stream(Pieces(vec!["abc".into(), "def".into(), "gh".into()]));
        let at_hand = || Body::from_bytes("abcdefgh");
        for (mut body, limit, fits) in [
            (streamed(), 8, true),
            (streamed(), 7, false),
            (streamed(), 2, false),
            (at_hand(), 8, true),
            (at_hand(), 7, false),
        ] {
            let seen = body.peek(limit, &used, 8).await.expect("there is room");
            assert_eq!(
                seen.map(|(seen, _)| seen),
                fits.then(|| "abcdefgh".into()),
                "limit {limit}"
            );
            let whole = body.read_limited(8).await.expect("it is no longer than that");
            assert_eq!(whole, "abcdefgh", "limit {limit}");
            drop(body);
            assert_eq!(used.load(Ordering::Relaxed), 0, "limit {limit}");
        }
        assert!(matches!(streamed().peek(8, &used, 7).await, Err(BodyError::NoRoom { limit: 7 })));
        assert_eq!(used.load(Ordering::Relaxed), 0);
    }

    /// Pieces, and then what there is after them.
    struct Then(Pieces, Option<End>);

    type End = fn() -> Poll<Result<usize, BodyError>>;

    impl Source for Then {
        fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
            match (self.0.poll_fill(cx), self.1) {
                (Poll::Ready(Ok(0)), Some(then)) => then(),
                (other, _) => other,
            }
        }

        fn data(&self) -> &[u8] {
            self.0.data()
        }

        fn consume(&mut self, n: usize) {
            self.0.consume(n);
        }

        fn remaining(&self) -> Option<u64> {
            None
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_of_a_body_is_seen_in_time_and_the_body_is_all_there_afterwards() {
        let of = |then| Body::stream(Then(Pieces(vec!["abc".into(), "def".into()]), then));
        let second = Duration::from_secs(1);
        for (limit, seen) in [(100, "abcdef"), (3, "abcdef"), (2, "abc"), (0, "abc")] {
            let mut body = of(None);
            assert_eq!(body.peek_start(limit, second).await, seen, "limit {limit}");
            assert_eq!(body.read_limited(6).await.expect("it is short"), "abcdef", "{limit}");
        }
        // One that goes on later, and one that broke: what came is seen.
        let mut body = of(Some(|| Poll::Pending));
        assert_eq!(body.peek_start(100, second).await, "abcdef");
        assert_eq!(body.fill().await.expect("it was read"), 6);
        let mut body = of(Some(|| Poll::Ready(Err(BodyError::Ended))));
        assert_eq!(body.peek_start(100, second).await, "abcdef");
        assert!(matches!(body.read_limited(100).await, Err(BodyError::Ended)));
        assert_eq!(Body::Empty.peek_start(100, second).await, "");
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_not_past_it() {
        for (len, limit, fits) in [(0, 1, true), (10, 10, true), (11, 10, false)] {
            let mut body = Body::from_bytes(vec![7; len]);
            let read = body.read_limited(limit).await;
            assert_eq!(read.is_ok_and(|b| b.len() == len), fits, "{len} of {limit}");
        }
    }
}

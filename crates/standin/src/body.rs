//! Bodies of answers: at once, or piece by piece.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// The body of an answer.
pub(crate) struct Answer {
    pieces: VecDeque<Bytes>,
    /// How long the next piece waits for its turn.
    pause: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    whole: bool,
}

impl Answer {
    /// Everything at once, with its length in the head.
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let pieces = if bytes.is_empty() { VecDeque::new() } else { [bytes].into() };
        Self { pieces, pause: Duration::ZERO, waiting: None, whole: true }
    }

    /// Piece by piece, each but the first after a pause.
    pub(crate) fn streamed(pieces: Vec<Vec<u8>>, pause: Duration) -> Self {
        let pieces = pieces.into_iter().map(Bytes::from).collect();
        Self { pieces, pause, waiting: None, whole: false }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(waiting) = &mut self.waiting {
            if waiting.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
        }
        let Some(piece) = self.pieces.pop_front() else { return Poll::Ready(None) };
        if !self.pieces.is_empty() && !self.pause.is_zero() {
            self.waiting = Some(Box::pin(sleep(self.pause)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.whole {
            SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
        } else {
            SizeHint::default()
        }
    }
}

//! The body of a streamed answer: Lambda's frames come in, the function's bytes go out.
//!
//! Frames are read only when bytes are asked for, so a slow client slows the function down.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use sluicegate_aws::eventstream::{InvokeEvent, InvokeStreamDecoder};
use sluicegate_gateway::body::{Body, BodyError, Source};
use sluicegate_gateway::core::Core;
use tracing::error;

use super::refusals::AwsRefusals;

/// Why a stream is over before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The function failed.
    #[error("the function failed: {code}: {details}")]
    Function {
        /// `Unhandled`, a type of its own…
        code: String,
        /// What it says.
        details: String,
    },
    /// What came is no stream of Lambda's.
    #[error("the function's stream cannot be read: {0}")]
    Frames(#[from] sluicegate_aws::eventstream::InvokeStreamError),
    /// Nothing more came.
    #[error("the function's stream broke off: {0}")]
    Body(#[from] BodyError),
}

/// Reads the frames of one answer.
pub(super) struct Stream {
    body: Body,
    frames: InvokeStreamDecoder,
    piece: Bytes,
    core: Rc<Core>,
    refusals: Arc<AwsRefusals>,
    route: Arc<str>,
    request_id: Box<str>,
}

impl Stream {
    /// Over the body of AWS's answer.
    pub(super) fn new(
        body: Body,
        core: Rc<Core>,
        refusals: Arc<AwsRefusals>,
        route: Arc<str>,
        request_id: Box<str>,
    ) -> Self {
        let frames = InvokeStreamDecoder::default();
        Self { body, frames, piece: Bytes::new(), core, refusals, route, request_id }
    }

    /// The next bytes of the function, none at the end. They are handed out once.
    pub(super) async fn next(&mut self) -> Result<Bytes, Broken> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await?;
        Ok(std::mem::take(&mut self.piece))
    }

    /// Puts bytes that were handed out back in front.
    pub(super) fn put_back(&mut self, piece: Bytes) {
        self.piece = piece;
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.piece.is_empty() {
            match self.frames.next_event()? {
                Some(InvokeEvent::PayloadChunk(piece)) => self.piece = piece,
                Some(InvokeEvent::InvokeComplete(end)) if end.is_error() => {
                    return Poll::Ready(Err(Broken::Function {
                        code: end.error_code.unwrap_or_default(),
                        details: end
                            .error_details
                            .unwrap_or_default()
                            .chars()
                            .take(DETAILS_MAX)
                            .collect(),
                    }));
                }
                // What follows is the end, which gives the connection back.
                Some(InvokeEvent::InvokeComplete(_)) => {}
                None => {
                    let n = ready!(self.body.poll_fill(cx))?;
                    if n == 0 {
                        self.frames.finish()?;
                        return Poll::Ready(Ok(()));
                    }
                    self.frames.push(&self.body.data()[..n]);
                    self.body.consume(n);
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Source for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        match ready!(self.poll_piece(cx)) {
            Ok(()) => Poll::Ready(Ok(self.piece.len())),
            Err(broken) => {
                self.core.counters.function_streams_broken.add(1);
                self.refusals.note(&self.route, "broken_stream", &self.request_id);
                error!(route = %self.route, aws_request_id = %self.request_id, cause = %broken, "A streamed answer broke off after its beginning was sent: the client's connection or stream is reset.");
                Poll::Ready(Err(BodyError::Broken(broken.to_string())))
            }
        }
    }

    fn data(&self) -> &[u8] {
        &self.piece
    }

    fn consume(&mut self, n: usize) {
        self.piece.advance(n);
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// Characters of an error's details that are logged.
const DETAILS_MAX: usize = 1024;

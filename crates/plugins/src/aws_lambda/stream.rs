//! The body of a streamed answer: Lambda's frames come in, the function's bytes go out.
//!
//! Frames are read only when bytes are asked for, so a slow client slows the function down.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use sluicegate_aws::eventstream::{self, InvokeEvent, InvokeStreamDecoder};
use sluicegate_aws::response::{HTTP_PRELUDE_CONTENT_TYPE, PreludeDecoder, ReplyHead, UnwrapError};
use sluicegate_gateway::body::{Body, BodyError, Source};
use sluicegate_gateway::core::Core;
use sluicegate_gateway::http::headers::Headers;
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
    Frames(#[from] eventstream::InvokeStreamError),
    /// The function's own head cannot be read.
    #[error(transparent)]
    Head(#[from] UnwrapError),
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
    told: Told,
}

/// What is told of a stream that breaks.
pub(super) struct Told {
    pub(super) route: Arc<str>,
    pub(super) request_id: Box<str>,
    pub(super) refusals: Arc<AwsRefusals>,
    /// What configurations call the limit of its silence.
    pub(super) silence: Option<&'static str>,
}

/// What a function says its bytes are. AWS's own `Content-Type` is that of the frames, and the
/// function's stands beside it; emulators and the SDKs' model have it in `Content-Type`.
pub(super) fn content_type(headers: &Headers) -> Option<&[u8]> {
    let own = || headers.get("content-type").filter(|it| !is_type(it, eventstream::CONTENT_TYPE));
    headers.get("x-amzn-remapped-content-type").or_else(own)
}

/// Does a function of this content type send status and headers before its body?
pub(super) fn announces_prelude(content_type: &[u8]) -> bool {
    is_type(content_type, HTTP_PRELUDE_CONTENT_TYPE)
}

/// Compares without parameters.
fn is_type(value: &[u8], name: &str) -> bool {
    let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
    value[..end].trim_ascii().eq_ignore_ascii_case(name.as_bytes())
}

impl Stream {
    /// Over the body of AWS's answer.
    pub(super) fn new(body: Body, core: Rc<Core>, told: Told) -> Self {
        let frames = InvokeStreamDecoder::default();
        Self { body, frames, piece: Bytes::new(), core, told }
    }

    /// Waits for the first bytes; `with_prelude`, for the whole head that the function sends before
    /// its body. Until then, a failure still has a status of its own.
    pub(super) async fn begin(&mut self, with_prelude: bool) -> Result<Option<ReplyHead>, Broken> {
        let mut prelude = PreludeDecoder::default();
        loop {
            std::future::poll_fn(|cx| self.poll_piece(cx)).await?;
            if !with_prelude {
                return Ok(None);
            }
            if self.piece.is_empty() {
                return Err(prelude.finish().into());
            }
            if let Some((head, rest)) = prelude.push(&std::mem::take(&mut self.piece))? {
                self.piece = rest;
                return Ok(Some(head));
            }
        }
    }

    /// Tells that it broke after its beginning was sent on.
    fn broke_off(&self, broken: &Broken) -> BodyError {
        let Told { route, request_id, refusals, silence: _ } = &self.told;
        self.core.counters.function_streams_broken.add(1);
        refusals.note(route, "broken_stream", request_id);
        error!(route = %route, aws_request_id = %request_id, cause = %broken, "A streamed answer broke off after its beginning was sent: the client's connection or stream is reset.");
        BodyError::Broken(broken.to_string())
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
                    let n = match (ready!(self.body.poll_fill(cx)), self.told.silence) {
                        (Err(BodyError::TimedOut(limit)), Some(name)) => {
                            return Poll::Ready(Err(BodyError::Silent { name, limit }.into()));
                        }
                        (filled, _) => filled?,
                    };
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
            Err(broken) => Poll::Ready(Err(self.broke_off(&broken))),
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

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.body.poll_overdue(cx).map(|error| self.broke_off(&error.into()))
    }
}

/// Characters of an error's details that are logged.
const DETAILS_MAX: usize = 1024;

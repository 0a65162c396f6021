//! Writing a message: head and first body bytes in one system call, the rest straight
//! from the buffer it was read into.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::body::{Body, BodyError};
use crate::io::Stream;

/// What a message is written to. The socket is held during a call only: the body may need
/// it too (an upload that is read while its answer is written).
pub(crate) trait Sink {
    /// Writes some of the slices.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;
    /// Sends what a TLS layer holds back.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Sink for Stream {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(self);
        match slices {
            [one] => AsyncWrite::poll_write(stream, cx, one),
            many => stream.poll_write_vectored(cx, many),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(self), cx)
    }
}

/// A message on its way out.
pub(crate) struct Writer {
    /// Bytes before the next body bytes: the head, then chunk sizes.
    lead: Vec<u8>,
    lead_at: usize,
    /// Body bytes of the current piece still to write, and its line end.
    piece_left: usize,
    tail_left: usize,
    chunked: bool,
    /// The body has ended and its end is in `lead`.
    ended: bool,
    /// The body at hand is a part: its end is not the message's.
    hold_end: bool,
    part_ended: bool,
    /// The last wait was for the socket, not for the body.
    pub(crate) stalled: bool,
    /// Bytes written so far, and those of the body among them.
    pub(crate) written: u64,
    pub(crate) body_written: u64,
}

/// What stopped a message.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The socket we write to.
    Io(io::Error),
    /// The body we write.
    Body(BodyError),
}

impl Writer {
    /// Writes `head`, then a body; with `chunked`, in chunks.
    pub(crate) fn new(head: Vec<u8>, chunked: bool) -> Self {
        Self {
            lead: head,
            lead_at: 0,
            piece_left: 0,
            tail_left: 0,
            chunked,
            ended: false,
            hold_end: false,
            part_ended: false,
            stalled: false,
            written: 0,
            body_written: 0,
        }
    }

    /// While on, the end of a body is the end of a part of the message only.
    pub(crate) fn hold_end(&mut self, on: bool) {
        self.hold_end = on;
        self.part_ended = false;
    }

    /// Has anything reached the socket?
    pub(crate) fn is_untouched(&self) -> bool {
        self.written == 0
    }

    /// Gives the head's memory back for the next message.
    pub(crate) fn into_memory(mut self) -> Vec<u8> {
        self.lead.clear();
        self.lead
    }

    fn lead_done(&self) -> bool {
        self.lead_at == self.lead.len()
    }

    /// Takes the next piece of the body, if one is at hand; a waiting body does not hold
    /// up a head.
    fn next_piece(&mut self, body: &mut Body, cx: &mut Context<'_>) -> Result<(), WriteError> {
        match body.poll_fill(cx).map_err(WriteError::Body)? {
            Poll::Pending => {}
            Poll::Ready(0) if self.hold_end => self.part_ended = true,
            Poll::Ready(0) => {
                self.ended = true;
                if self.chunked {
                    self.drop_written_lead();
                    self.lead.extend_from_slice(b"0\r\n");
                    if let Some(trailers) = body.take_trailers() {
                        trailers.write_to(&mut self.lead);
                    }
                    self.lead.extend_from_slice(b"\r\n");
                }
            }
            Poll::Ready(n) => {
                self.piece_left = n;
                if self.chunked {
                    self.drop_written_lead();
                    push_hex(&mut self.lead, n);
                    self.lead.extend_from_slice(b"\r\n");
                    self.tail_left = 2;
                }
            }
        }
        Ok(())
    }

    fn drop_written_lead(&mut self) {
        if self.lead_done() {
            self.lead.clear();
            self.lead_at = 0;
        }
    }

    /// Writes as much as there is. Ready when the whole message is out.
    pub(crate) fn poll<S: Sink>(
        &mut self,
        sink: &mut S,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        self.stalled = false;
        loop {
            if self.piece_left == 0 && self.tail_left == 0 && !self.ended && !self.part_ended {
                self.next_piece(body, cx)?;
            }
            let idle = self.lead_done() && self.piece_left == 0 && self.tail_left == 0;
            if idle {
                // Flushing matters for TLS only: a record may wait in its buffer.
                let flushed = sink.poll_flush(cx).map_err(WriteError::Io)?;
                return match self.ended || self.part_ended {
                    true => flushed.map(Ok),
                    false => Poll::Pending,
                };
            }
            let data = &body.data()[..self.piece_left];
            let tail = &b"\r\n"[2 - self.tail_left..];
            let slices =
                [IoSlice::new(&self.lead[self.lead_at..]), IoSlice::new(data), IoSlice::new(tail)];
            let from = usize::from(self.lead_done());
            let to = if self.tail_left > 0 { 3 } else { 1 + usize::from(self.piece_left > 0) };
            self.stalled = true;
            let n = ready!(sink.poll_write(cx, &slices[from..to])).map_err(WriteError::Io)?;
            self.stalled = false;
            if n == 0 {
                return Poll::Ready(Err(WriteError::Io(io::ErrorKind::WriteZero.into())));
            }
            self.advance(n, body);
        }
    }

    fn advance(&mut self, n: usize, body: &mut Body) {
        self.written += n as u64;
        let lead = n.min(self.lead.len() - self.lead_at);
        self.lead_at += lead;
        let piece = (n - lead).min(self.piece_left);
        if piece > 0 {
            self.piece_left -= piece;
            self.body_written += piece as u64;
            body.consume(piece);
        }
        self.tail_left -= (n - lead - piece).min(self.tail_left);
    }
}

fn push_hex(out: &mut Vec<u8>, n: usize) {
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        out.push(b"0123456789abcdef"[n >> (at * 4) & 15]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_hexadecimal() {
        for (n, text) in [(1, "1"), (15, "f"), (16, "10"), (16384, "4000"), (0xabcde, "abcde")] {
            let mut out = Vec::new();
            push_hex(&mut out, n);
            assert_eq!(out, text.as_bytes());
        }
    }
}

//! Keeps the session token out of what a refusal tells the client.
//!
//! AWS answers a refused signature with the canonical request, the token in it; another server may
//! repeat it in words of its own.

use std::borrow::Cow;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use sluicegate_aws::lambda::hide_session_token;
use sluicegate_gateway::body::{Body, BodyError, Source};
use sluicegate_gateway::http::headers::Headers;

/// The body with stars in the places of the token, as many as it has bytes. Where the body is at
/// hand, whatever follows the token's name in AWS's text is masked, too.
pub(super) fn masked(mut body: Body, token: Option<&[u8]>) -> Body {
    if let Body::Bytes(bytes) = &body {
        let text = String::from_utf8_lossy(bytes);
        if let Cow::Owned(hidden) = hide_session_token(&text) {
            body = Body::from_bytes(hidden);
        }
    }
    let Some(token) = token.filter(|token| !token.is_empty()) else { return body };
    match body {
        Body::Empty => Body::Empty,
        Body::Bytes(bytes) => {
            let mut bytes = bytes.to_vec();
            mask(&mut bytes, token);
            Body::from_bytes(bytes)
        }
        stream @ Body::Stream(_) => Body::stream(Masked {
            body: stream,
            token: token.to_vec(),
            ready: Bytes::new(),
            held: BytesMut::new(),
        }),
    }
}

/// A body that is still to come, masked as it comes.
struct Masked {
    body: Body,
    token: Vec<u8>,
    /// What may be read.
    ready: Bytes,
    /// The last bytes that came: fewer than a token has, for it may end in the next ones.
    held: BytesMut,
}

impl Source for Masked {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
        while self.ready.is_empty() {
            let n = ready!(self.body.poll_fill(cx))?;
            if n == 0 {
                self.ready = self.held.split().freeze();
                break;
            }
            self.held.extend_from_slice(&self.body.data()[..n]);
            self.body.consume(n);
            mask(&mut self.held, &self.token);
            let kept = self.held.len().min(self.token.len() - 1);
            self.ready = self.held.split_to(self.held.len() - kept).freeze();
        }
        Poll::Ready(Ok(self.ready.len()))
    }

    fn data(&self) -> &[u8] {
        &self.ready
    }

    fn consume(&mut self, n: usize) {
        self.ready.advance(n);
    }

    fn remaining(&self) -> Option<u64> {
        Some(self.body.remaining()? + (self.ready.len() + self.held.len()) as u64)
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.body.take_trailers()
    }
}

fn mask(text: &mut [u8], token: &[u8]) {
    let mut from = 0;
    while let Some(at) = memchr::memmem::find(&text[from..], token) {
        text[from + at..][..token.len()].fill(b'*');
        from += at + token.len();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    struct Pieces(VecDeque<Bytes>);

    impl Source for Pieces {
        fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<usize, BodyError>> {
            while self.0.front().is_some_and(Bytes::is_empty) {
                self.0.pop_front();
            }
            Poll::Ready(Ok(self.data().len()))
        }

        fn data(&self) -> &[u8] {
            self.0.front().map_or(&[], |piece| piece)
        }

        fn consume(&mut self, n: usize) {
            self.0[0].advance(n);
        }

        fn remaining(&self) -> Option<u64> {
            None
        }
    }

    #[tokio::test]
    async fn a_token_is_masked_however_the_body_is_cut() {
        let text = "a=tok/en+==;tok/entok/en+==\nx-amz-security-token:other\n";
        let hidden = "a=*********;tok/en*********\nx-amz-security-token:other\n";
        for size in 1..=text.len() {
            let pieces = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
            let mut body = masked(Body::stream(Pieces(pieces)), Some(b"tok/en+=="));
            let whole = body.read_limited(1000).await.expect("it is short");
            assert_eq!(whole, hidden, "in pieces of {size}");
        }
        let mut whole = masked(Body::from_bytes(text), Some(b"tok/en+=="));
        let whole = whole.read_limited(1000).await.expect("it is short");
        assert_eq!(whole, hidden.replace("other", "*****"));
        let mut none = masked(Body::from_bytes("tok"), None);
        assert_eq!(none.read_limited(1000).await.expect("it is short"), "tok");
    }
}

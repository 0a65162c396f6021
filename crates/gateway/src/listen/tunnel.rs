//! Bytes both ways after `101 Switching Protocols`, until one side ends or both are silent
//! for too long.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::client::Tunnel;
use crate::io::{Buffer, LazyTimer, Stream};

/// One direction.
struct Way {
    buffer: Buffer,
    ended: bool,
    shut: bool,
    moved: u64,
}

impl Way {
    fn new(buffer: Buffer) -> Self {
        Self { buffer, ended: false, shut: false, moved: 0 }
    }

    /// Moves bytes while both sides are ready. Ready when this direction is over.
    fn poll(
        &mut self,
        from: &mut Stream,
        to: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.buffer.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, self.buffer.bytes()))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.consume(n);
                self.moved += n as u64;
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            match self.buffer.poll_read_body(from, cx) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Runs a tunnel to its end: bytes to the client, bytes from it.
pub(super) async fn tunnel(mut client: Stream, buffer: Buffer, far: Tunnel) -> (u64, u64) {
    let Tunnel { stream: mut upstream, buffer: far_buffer, idle } = far;
    let (mut up, mut down) = (Way::new(buffer), Way::new(far_buffer));
    let mut timer = LazyTimer::default();
    timer.arm(idle);
    let mut moved = 0;
    poll_fn(|cx| {
        let first = up.poll(&mut client, &mut upstream, cx);
        let second = down.poll(&mut upstream, &mut client, cx);
        if let (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) = (&first, &second) {
            tracing::debug!(%error, "A tunnel broke off.");
            return Poll::Ready(());
        }
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(());
        }
        if moved != up.moved + down.moved {
            moved = up.moved + down.moved;
            timer.arm(idle);
        }
        timer.poll_expired(cx)
    })
    .await;
    (down.moved, up.moved)
}

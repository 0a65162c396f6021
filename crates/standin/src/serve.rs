//! Sockets: accept, read a request within the limits, answer, stop.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::body::Answer;
use crate::front;

/// What a server answers.
pub(crate) trait Answers: Send + Sync + 'static {
    fn answer(&self, head: &Parts, body: &[u8]) -> Response<Answer>;
}

/// Serves until the sender of `stopped` is gone.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Arc<impl Answers>,
    mut stopped: watch::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (front, stopped) = (Arc::clone(&front), stopped.clone());
                connections.spawn(async move {
                    serve_connection(stream, front, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!(%error, "Connection not accepted.");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // What has not finished by then is cut off when `connections` is dropped.
    let _ = timeout(STOP_WAIT, async { while connections.join_next().await.is_some() {} }).await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, impl Sized + use<>)> {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

async fn serve_connection(
    stream: TcpStream,
    front: Arc<impl Answers>,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        let front = Arc::clone(&front);
        async move { Ok::<_, Infallible>(answer(&*front, request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WAIT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "Connection ended early.");
    }
}

async fn answer(front: &impl Answers, request: Request<Incoming>) -> Response<Answer> {
    let (head, body) = request.into_parts();
    match timeout(BODY_WAIT, read_limited(body)).await {
        Ok(Ok(body)) => front.answer(&head, &body),
        Ok(Err(ReadError::TooLarge)) => front::too_large(),
        Ok(Err(ReadError::Broken)) | Err(_) => front::bad_request(),
    }
}

async fn read_limited(mut body: Incoming) -> Result<Bytes, ReadError> {
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(ReadError::TooLarge);
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(|_| ReadError::Broken)?.into_data() else { continue };
        if read.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(ReadError::TooLarge);
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

enum ReadError {
    TooLarge,
    Broken,
}

/// The largest request body, in bytes: what Lambda takes in a synchronous call.
pub const BODY_BYTES_MAX: usize = 6 * 1024 * 1024;
/// The largest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most connections each server holds at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may wait for its next request head.
const HEAD_WAIT: Duration = Duration::from_secs(75);
/// How long a request body may take.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// How long running requests may take when the stand-in stops.
const STOP_WAIT: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

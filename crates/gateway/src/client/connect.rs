//! Getting a connection: an idle one, or a new one within the time limit.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::core::Core;
use crate::io::{Stream, within};

use super::{CallError, Conn, Target};

/// An idle connection to `target` if there is one and `fresh` does not forbid it, else a
/// new one.
pub async fn acquire(
    core: &Core,
    target: &Target,
    limit: Duration,
    fresh: bool,
) -> Result<Box<Conn>, CallError> {
    if !fresh && let Some(conn) = core.pool.take(target, core.last_look()) {
        return Ok(conn);
    }
    let addr = target.addr;
    let began = Instant::now();
    // Boxed: what a handshake needs is not part of every request.
    let stream = Box::pin(within(limit, connect(target)))
        .await
        .unwrap_or(Err(CallError::ConnectTimeout { addr, limit }))?;
    core.counters.upstream_connections.add(1);
    Ok(Box::new(Conn::new(stream, target, core.look() - began)))
}

pub(super) async fn connect(target: &Target) -> Result<Stream, CallError> {
    let addr = target.addr;
    let tcp =
        TcpStream::connect(addr).await.map_err(|source| CallError::Connect { addr, source })?;
    // Without it a head and its body could wait for each other's acknowledgement.
    tcp.set_nodelay(true).map_err(|source| CallError::Connect { addr, source })?;
    let Some(tls) = &target.tls else { return Ok(Stream::Tcp(tcp)) };
    let session = TlsConnector::from(tls.config.clone())
        .connect(tls.name.clone(), tcp)
        .await
        .map_err(|source| CallError::Tls { addr, source })?;
    Ok(Stream::ClientTls(Box::new(session)))
}

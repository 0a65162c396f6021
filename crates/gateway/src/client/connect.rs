//! Getting a connection: an idle one, or a new one within the time limit.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::core::Core;
use crate::io::{Stream, within};

use super::{CallError, Conn, Target, TlsTarget};

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
    let began = Instant::now();
    // Boxed: what a handshake needs is not part of every request.
    let stream = Box::pin(within(limit, connect(target)))
        .await
        .unwrap_or_else(|| Err(target.late(limit)))?;
    core.counters.upstream_connections.add(1);
    Ok(Box::new(Conn::new(stream, target, core.look() - began)))
}

pub(super) async fn connect(target: &Target) -> Result<Stream, CallError> {
    let addr = target.addr;
    if let Some(via) = &target.via {
        let tunnel = via.connect(addr).await?;
        let Some(tls) = &target.tls else { return Ok(tunnel) };
        let connector = TlsConnector::from(tls.config.clone());
        return session_in(tunnel, &connector, tls).await.map_err(|e| via.no_session(e).into());
    }
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

/// A TLS session in a tunnel, which may be in a TLS session with the proxy itself.
async fn session_in(
    tunnel: Stream,
    connector: &TlsConnector,
    tls: &TlsTarget,
) -> std::io::Result<Stream> {
    match tunnel {
        Stream::Tcp(tcp) => {
            let session = connector.connect(tls.name.clone(), tcp).await?;
            Ok(Stream::ClientTls(Box::new(session)))
        }
        Stream::ClientTls(outer) => {
            let session = connector.connect(tls.name.clone(), *outer).await?;
            Ok(Stream::NestedTls(Box::new(session)))
        }
        // Invariant: a tunnel is plain or in one TLS session, and this side is its client.
        Stream::ServerTls(_) | Stream::NestedTls(_) => {
            Err(std::io::Error::other("the tunnel is in a session already"))
        }
    }
}

impl Target {
    /// No connection within `limit`.
    pub(super) fn late(&self, limit: Duration) -> CallError {
        match &self.via {
            Some(via) => via.late(limit).into(),
            None => CallError::ConnectTimeout { addr: self.addr, limit },
        }
    }
}

//! Getting a connection: an idle one, or a new one within the time limit.

use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
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
    tune(&tcp).map_err(|source| CallError::Connect { addr, source })?;
    let Some(tls) = &target.tls else { return Ok(Stream::Tcp(tcp)) };
    let session = TlsConnector::from(tls.config.clone())
        .connect(tls.name.clone(), tcp)
        .await
        .map_err(|source| CallError::Tls { addr, source })?;
    Ok(Stream::ClientTls(Box::new(session)))
}

/// Sets what every outbound connection needs.
pub(super) fn tune(tcp: &TcpStream) -> std::io::Result<()> {
    // Without it a head and its body could wait for each other's acknowledgement.
    tcp.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    SockRef::from(tcp).set_tcp_keepalive(&probes)
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

/// A silent connection is probed after this: load balancers and NAT on AWS's side forget one after
/// 350 seconds without telling, and a function may think for 900.
const PROBE_AFTER: Duration = Duration::from_secs(120);
const PROBE_EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_connection_is_probed_before_aws_forgets_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let target = Target { addr, via: None, tls: None, keepalive: None };
        let Ok(Stream::Tcp(tcp)) = connect(&target).await else { panic!("it listens") };
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().expect("it is a socket"));
        let after = socket.tcp_keepalive_time().expect("it is a TCP socket");
        assert!(after < Duration::from_secs(350), "{after:?}");
    }
}

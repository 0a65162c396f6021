//! One probe: a connection, and for HTTP a request and the first line of its answer.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::{TlsClients, TlsRequest};

use super::checks::{Active, ProbeKind};
use super::target::{Seen, Target};

/// What came of a probe.
pub(super) enum Outcome {
    /// It counts as this.
    Seen(Seen, String),
    /// A status that says neither one nor the other.
    Neither,
}

/// Probes a target once.
pub(super) async fn probe(active: &Active, target: &Target, tls: &TlsClients) -> Outcome {
    match attempt(active, target, tls).await {
        Ok(None) => Outcome::Seen(Seen::Success, "connected".to_owned()),
        Ok(Some(status)) if active.healthy.has(status) => {
            Outcome::Seen(Seen::Success, format!("status {status}"))
        }
        Ok(Some(status)) if status == 0 || active.unhealthy.has(status) => {
            let text =
                if status == 0 { "no status".to_owned() } else { format!("status {status}") };
            Outcome::Seen(Seen::HttpFailure, text)
        }
        Ok(Some(_)) => Outcome::Neither,
        Err((seen, cause)) => Outcome::Seen(seen, cause),
    }
}

type Failed = (Seen, String);

/// The status of the answer, 0 where there is none; `None`: only a connection was asked for.
async fn attempt(
    active: &Active,
    target: &Target,
    tls: &TlsClients,
) -> Result<Option<u16>, Failed> {
    let limit = active.timeout;
    let addr = target.addr.first(limit).await.map_err(|e| (Seen::TcpFailure, e.to_string()))?;
    let tcp = within(limit, "connecting", TcpStream::connect(addr)).await?;
    // Head and body of a probe are one write: nothing could wait.
    let _ = tcp.set_nodelay(true);
    let id = &target.id;
    // Differs: in APISIX a node's name and `upstream_host` come before what is configured for probes.
    let host = active.host.as_deref().or(id.host_header.as_deref()).unwrap_or(&id.hostname);
    match active.kind {
        ProbeKind::Tcp => Ok(None),
        ProbeKind::Http => ask(active, host, tcp).await.map(Some),
        ProbeKind::Https => {
            let name = crate::exchange::host_without_port(host.as_bytes());
            let name = name.trim_start_matches('[').trim_end_matches(']');
            let target = tls
                .target(&TlsRequest {
                    server_name: name.to_owned(),
                    verify: active.verify,
                    h2: false,
                    client: None,
                })
                .map_err(|cause| (Seen::TcpFailure, cause))?;
            let session =
                TlsConnector::from(target.config.clone()).connect(target.name.clone(), tcp);
            let session = within(limit, "the TLS handshake", session).await;
            let session = session.map_err(|(_, cause)| (Seen::TcpFailure, cause))?;
            ask(active, host, session).await.map(Some)
        }
    }
}

async fn ask(
    active: &Active,
    host: &str,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<u16, Failed> {
    let Active { request, headers, body, timeout, .. } = active;
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let head = format!(
        "{request} HTTP/1.1\r\nConnection: close\r\n{headers}Host: {host}\r\n{length}\r\n{body}"
    );
    within(*timeout, "sending", stream.write_all(head.as_bytes())).await?;
    let line = within(*timeout, "waiting for an answer", first_line(&mut stream)).await?;
    Ok(status(&line).unwrap_or(0))
}

/// The first line, or as much of it as a status line may have.
async fn first_line(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(64);
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_MAX {
        if stream.read_buf(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(line)
}

/// The status of `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = line.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let (major, minor) = version.strip_prefix("HTTP/")?.split_once('.')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let code: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    (number(major) && number(minor)).then(|| code.parse().ok())?
}

/// Waits for one step of a probe.
async fn within<T>(
    limit: Duration,
    step: &str,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err((Seen::TcpFailure, format!("{step}: {error}"))),
        Err(_) => Err((Seen::Timeout, format!("{step} took longer than {limit:?}"))),
    }
}

/// Bytes read of an answer at most.
const STATUS_LINE_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_has_its_status() {
        for (line, expected) in [
            ("HTTP/1.1 200 OK\r\nA: b\r\n", Some(200)),
            ("HTTP/1.0  404\r\n", Some(404)),
            ("HTTP/2.0 503", Some(503)),
            ("HTTP/1.1 x\r\n", None),
            ("HTTP/1.1\r\n", None),
            ("HTTP/x.1 200\r\n", None),
            ("SSH-2.0-x\r\n", None),
            ("HTTP/1.1 99999999 OK\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_its_line_is_cut() {
        let mut endless = tokio::io::repeat(b'x');
        let line = first_line(&mut endless).await.expect("it can be read");
        assert!(line.len() < 2 * STATUS_LINE_MAX);
        let mut closed = tokio::io::empty();
        assert!(first_line(&mut closed).await.is_err());
    }
}

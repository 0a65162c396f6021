//! One exchange, its errors, its limits.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// What fetching needs from the gateway: its names and its trust.
pub trait Network: Send + Sync {
    /// An address of a host.
    fn address<'a>(&'a self, host: &'a str) -> NetworkFuture<'a, Result<IpAddr, String>>;

    /// How to speak TLS with a host, its certificate verified or not.
    ///
    /// # Errors
    /// When the host can be no name in a certificate, or there is nothing to verify with.
    fn tls(
        &self,
        host: &str,
        verify: bool,
    ) -> Result<(Arc<rustls::ClientConfig>, ServerName<'static>), String>;

    /// A connection to a host through a proxy; `None` where it is to be a direct one. `tls` says
    /// what will be spoken with the host, not with the proxy.
    fn tunnel<'a>(
        &'a self,
        tls: bool,
        host: &'a str,
        port: u16,
    ) -> Option<NetworkFuture<'a, Result<Box<dyn Connection>, String>>> {
        let _ = (tls, host, port);
        None
    }
}

/// What bytes go through.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Something a [`Network`] does.
pub type NetworkFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    tls: bool,
    /// The name or address, without brackets.
    host: String,
    port: u16,
    /// As it stands in the `Host` header.
    authority: String,
    /// The path of the URL, without a slash at its end.
    path: String,
}

impl Endpoint {
    /// Reads an `http` or `https` URL.
    ///
    /// # Errors
    /// When it is none, or carries a user name.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(format!("{url:?} does not begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| format!("{url:?} has no host"))?;
        if authority.as_str().contains('@') {
            return Err("a URL with a user name is not taken".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let has_port = authority.as_str().len() > authority.host().len();
        if host.is_empty() || (has_port && authority.port_u16().is_none()) {
            return Err(format!("{url:?} has no host or no valid port"));
        }
        Ok(Self {
            tls,
            host,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The host and, if it is not the scheme's own, the port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path of the URL, without a slash at its end.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// An answer, read whole.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// What one exchange may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From looking up the name to the last byte of the answer.
    pub time: Duration,
    /// The body of the answer.
    pub response_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: EXCHANGE_TIME_MAX, response_bytes: RESPONSE_BYTES_MAX }
    }
}

/// Sends `request`, whose URI is path and query only, and reads the answer. The `Host` and
/// `User-Agent` headers are set here. Redirects are not followed.
///
/// # Errors
/// When there is no whole answer within `limits`. An answer of any status is one.
pub async fn exchange(
    network: &dyn Network,
    endpoint: &Endpoint,
    verify: bool,
    request: Request<Full<Bytes>>,
    limits: Limits,
) -> Result<Answer, FetchError> {
    let exchanged = tokio::time::timeout(limits.time, async {
        let unreachable = |cause: String| FetchError::Unreachable {
            authority: endpoint.authority.clone(),
            cause,
        };
        let connection: Box<dyn Connection> =
            match network.tunnel(endpoint.tls, &endpoint.host, endpoint.port) {
                Some(tunnel) => tunnel.await.map_err(unreachable)?,
                None => {
                    let ip = match endpoint.host.parse() {
                        Ok(ip) => ip,
                        Err(_) => network.address(&endpoint.host).await.map_err(unreachable)?,
                    };
                    let tcp = TcpStream::connect(SocketAddr::new(ip, endpoint.port)).await;
                    Box::new(tcp.map_err(|error| unreachable(error.to_string()))?)
                }
            };
        if !endpoint.tls {
            return speak(endpoint, connection, request, limits).await;
        }
        let (config, name) = network.tls(&endpoint.host, verify).map_err(unreachable)?;
        let session = TlsConnector::from(config).connect(name, connection).await;
        let session = session.map_err(|error| unreachable(format!("TLS failed: {error}")))?;
        speak(endpoint, session, request, limits).await
    });
    match exchanged.await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(FetchError::TimedOut { authority: endpoint.authority.clone(), limit: limits.time })
        }
    }
}

async fn speak<S>(
    endpoint: &Endpoint,
    stream: S,
    mut request: Request<Full<Bytes>>,
    limits: Limits,
) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |error: hyper::Error| FetchError::Unreachable {
        authority: endpoint.authority.clone(),
        cause: error.to_string(),
    };
    let host = HeaderValue::from_str(&endpoint.authority)
        .map_err(|_| FetchError::Unusable("the host is no header value".to_owned()))?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(USER_AGENT, AGENT);
    let (mut sender, connection) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Dropped with this exchange, whatever its end.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let (head, mut received) = response.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = received.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        let limit = limits.response_bytes;
        if body.len() + data.len() > limit {
            return Err(FetchError::TooLarge { authority: endpoint.authority.clone(), limit });
        }
        body.extend_from_slice(&data);
    }
    Ok(Answer { status: head.status, headers: head.headers, body })
}

/// Why nothing was fetched, or what was fetched is of no use. The text names no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("cannot reach {authority}: {cause}")]
    Unreachable {
        /// The server's host.
        authority: String,
        /// What the network says.
        cause: String,
    },
    /// Nothing within the time allowed.
    #[error("no answer from {authority} within {limit:?}")]
    TimedOut {
        /// The server's host.
        authority: String,
        /// The time.
        limit: Duration,
    },
    /// The answer is larger than allowed.
    #[error("{authority} answered with more than {limit} bytes")]
    TooLarge {
        /// The server's host.
        authority: String,
        /// The size.
        limit: usize,
    },
    /// The server refused.
    #[error("{authority} answered {status}{cause}")]
    Refused {
        /// The server's host.
        authority: String,
        /// The status.
        status: u16,
        /// Its own words, if it said any that may be told, with `: ` in front.
        cause: String,
    },
    /// The answer, or what was asked for, cannot be used.
    #[error("{0}")]
    Unusable(String),
}

impl FetchError {
    /// A refusal; of `words` only the beginning is kept.
    pub fn refused(endpoint: &Endpoint, status: StatusCode, words: &str) -> Self {
        let words: String = words
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(REFUSAL_CHARS_MAX)
            .collect();
        let cause = if words.is_empty() { words } else { format!(": {words}") };
        let authority = endpoint.authority.clone();
        Self::Refused { authority, status: status.as_u16(), cause }
    }

    /// The server is down, as far as can be told: other requests to it will fail too.
    pub fn is_down(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::TooLarge { .. } | Self::Unusable(_) => false,
        }
    }
}

/// Writes a path segment with everything escaped that could end it. A `%` stays: it may be an
/// escape already.
pub fn push_segment(path: &mut String, segment: &str) {
    for &byte in segment.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => path.push(byte.into()),
            b'-' | b'.' | b'_' | b'~' | b'%' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'('
            | b')' | b'*' | b'+' | b',' | b';' | b'=' => path.push(byte.into()),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                path.push('%');
                path.push(HEX[usize::from(byte >> 4)].into());
                path.push(HEX[usize::from(byte & 15)].into());
            }
        }
    }
}

/// How long one exchange may take by default, connection and TLS included.
pub const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(5);

/// The largest answer that is read by default: managers allow secrets of 64 KiB (AWS, Google) to
/// 1 MiB (Vault).
pub const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// Characters of a server's refusal that are told.
const REFUSAL_CHARS_MAX: usize = 200;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("Sluicegate/", env!("CARGO_PKG_VERSION")));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_whole() {
        for (url, tls, host, port, authority, path) in [
            ("http://127.0.0.1:8200", false, "127.0.0.1", 8200, "127.0.0.1:8200", ""),
            ("https://vault.test", true, "vault.test", 443, "vault.test", ""),
            ("http://vault.test/base/", false, "vault.test", 80, "vault.test", "/base"),
            ("https://[::1]:8200/", true, "::1", 8200, "[::1]:8200", ""),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            let (host, authority, path) = (host.into(), authority.into(), path.into());
            assert_eq!(endpoint, Endpoint { tls, host, port, authority, path }, "{url}");
        }
        for url in ["127.0.0.1:8200", "ftp://a/", "http://u:p@a/", "http:///", "", "http://a:99999"]
        {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_segment_cannot_end_its_path() {
        let mut path = String::from("/");
        push_segment(&mut path, "a b?c#d/e%41é");
        assert_eq!(path, "/a%20b%3Fc%23d%2Fe%41%C3%A9");
    }
}

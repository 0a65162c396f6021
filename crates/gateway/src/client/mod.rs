//! Calls to upstreams and functions: connections kept per core, requests written and
//! answers read by the task of the request itself.

mod connect;
mod egress;
mod h1;
mod h2;
mod pool;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use rustls_pki_types::ServerName;

use crate::body::{Body, BodyError};
use crate::http::head::HeadError;
use crate::http::headers::Headers;
use crate::io::{Buffer, Stream};
use crate::upstream::resolve::NoAddress;

pub use connect::acquire;
pub use egress::{Egress, EgressError, EgressSettings, Tunnelled};
pub use h1::{Answer, Outgoing, send};
pub use h2::send_h2;
pub(crate) use h2::{fields, poll_receive, pump};
pub(crate) use pool::poll_closed;
pub use pool::{Conn, Pool};
pub(crate) use tls::parse_chain;
pub use tls::{TlsClients, TlsRequest};

/// Where a call goes and how its connection is kept.
#[derive(Clone)]
pub struct Target {
    /// The address to connect to: the proxy's where there is one.
    pub addr: SocketAddr,
    /// The proxy that has to open a tunnel first.
    pub via: Option<Arc<Tunnelled>>,
    /// TLS, with what it verifies and which name it asks for.
    pub tls: Option<Arc<TlsTarget>>,
    /// How idle connections are kept; `None`: each call has its own.
    pub keepalive: Option<Keepalive>,
}

/// A TLS client configuration and the name to ask for.
pub struct TlsTarget {
    /// Equal for equal configurations, through every change of the snapshot.
    pub id: u64,
    /// The configuration.
    pub config: Arc<rustls::ClientConfig>,
    /// The server's name: SNI, and what its certificate must be for.
    pub name: ServerName<'static>,
}

/// How many idle connections are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Idle connections kept per core and target. Those above it live for the grace time.
    pub size: usize,
    /// An idle connection is closed after this.
    pub idle_timeout: Duration,
    /// A connection is closed after this many requests.
    pub requests: u64,
}

/// Time limits of a call.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// Between two successful writes.
    pub send: Duration,
    /// Between two successful reads.
    pub read: Duration,
}

/// The upstream's side after `101 Switching Protocols`.
pub struct Tunnel {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    pub(crate) idle: Duration,
}

/// Why a call brought no response head.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The name has no address.
    #[error("{host} does not resolve: {cause}")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        cause: NoAddress,
    },
    /// No connection.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// No connection in time.
    #[error("no connection to {addr} within {limit:?}")]
    ConnectTimeout {
        /// The address.
        addr: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// No TLS session.
    #[error("TLS with {addr} failed: {source}")]
    Tls {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// No connection through the egress proxy.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The request could not be written.
    #[error("sending the request failed: {0}")]
    Send(io::Error),
    /// The peer did not take the request in time.
    #[error("the request was not taken within {0:?}")]
    SendTimeout(Duration),
    /// The peer closed before it answered.
    #[error("the connection was closed before an answer came")]
    Closed,
    /// Reading failed.
    #[error("reading the answer failed: {0}")]
    Read(io::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    ReadTimeout(Duration),
    /// The answer is not HTTP.
    #[error("the answer is malformed: {0}")]
    BadAnswer(#[from] HeadError),
    /// The client's body broke off while it was being sent.
    #[error("the request body: {0}")]
    RequestBody(BodyError),
    /// The answer's body broke off, or is larger than allowed.
    #[error("the answer's body: {0}")]
    AnswerBody(BodyError),
    /// HTTP/2 failed.
    #[error("HTTP/2 failed: {0}")]
    H2(#[from] ::h2::Error),
}

impl CallError {
    /// The status a proxied client sees; function plugins answer 503 for all.
    pub fn status(&self) -> StatusCode {
        match self {
            // A node without an address is no node, as in APISIX.
            Self::Resolve { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout { .. } | Self::SendTimeout(_) | Self::ReadTimeout(_) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Egress(error) => error.status(),
            Self::RequestBody(BodyError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestBody(BodyError::TimedOut(_)) => StatusCode::REQUEST_TIMEOUT,
            Self::RequestBody(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// Did the time to connect end, looking up names included?
    pub fn is_late_to_connect(&self) -> bool {
        match self {
            Self::ConnectTimeout { .. } | Self::Resolve { cause: NoAddress::Late(_), .. } => true,
            Self::Egress(error) => error.expired().is_some(),
            _ => false,
        }
    }

    /// Did the time for any of the steps end?
    pub fn is_late(&self) -> bool {
        self.is_late_to_connect() || matches!(self, Self::SendTimeout(_) | Self::ReadTimeout(_))
    }

    /// Is it certain that no byte of the request was taken?
    pub fn is_before_sending(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Tls { .. }
                | Self::Egress(_)
        )
    }
}

/// A response as it comes from a call.
pub struct Received {
    /// The status.
    pub status: StatusCode,
    /// The fields, hop-by-hop ones included.
    pub headers: Headers,
    /// The body, still to be read.
    pub body: Body,
    /// After `101`: the connection itself.
    pub tunnel: Option<Box<Tunnel>>,
}

//! The quickstart's stand-in for AWS: small HTTP/1.1 servers on loopback, so that a function
//! answers behind a route with no account and no network.
//!
//! - an API Gateway front that wants the API key,
//! - a function-URL front that wants a valid SigV4 signature,
//! - behind both, one [sample function](function),
//! - beside them a plain origin, for routes without a function.
//!
//! An [Invoke API](InvokeApi) is started on its own. Its functions are closures: a test brings its
//! own, the quickstart has [`samples`].
//!
//! It refuses what AWS refuses, with AWS's statuses and texts: whoever gets a call through here has
//! keys and signature right. It is no emulator: no presigned URLs, no TLS.

mod body;
mod front;
pub mod function;
mod invoke;
mod serve;
mod verify;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use sluicegate_aws::Secret;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use front::{Front, Kind};
pub use invoke::{
    Function, Invocation, InvocationKind, InvokeApi, InvokeSettings, Outcome, StreamEnd,
    StreamOutcome, samples,
};
pub use serve::{BODY_BYTES_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX};
pub use verify::SKEW_SECONDS_MAX;

/// The running servers. Dropping it stops them; [`Standin::stop`] waits until they have stopped.
#[derive(Debug)]
pub struct Standin {
    addrs: Addrs,
    stop: watch::Sender<()>,
    servers: Vec<JoinHandle<()>>,
}

impl Standin {
    /// Binds all servers, or none, and serves on the runtime this is called on.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let mut bound = Vec::new();
        for (kind, addr) in [
            (Kind::ApiGateway, settings.api_gateway),
            (Kind::FunctionUrl, settings.function_url),
            (Kind::Origin, settings.origin),
        ] {
            bound.push((kind, bind(kind.name(), addr).await?));
        }
        let local = |at: usize| {
            let (kind, listener): &(Kind, TcpListener) = &bound[at];
            listener.local_addr().map_err(|source| StartError::Bind { server: kind.name(), source })
        };
        let addrs = Addrs { api_gateway: local(0)?, function_url: local(1)?, origin: local(2)? };

        let (stop, stopped) = watch::channel(());
        let servers = bound
            .into_iter()
            .map(|(kind, listener)| {
                let front = Arc::new(Front { kind, settings: Arc::clone(&settings) });
                tokio::spawn(serve::serve(listener, front, stopped.clone()))
            })
            .collect();
        Ok(Self { addrs, stop, servers })
    }

    /// Where the servers listen; a port 0 in the settings is a real port here.
    pub fn addrs(&self) -> Addrs {
        self.addrs
    }

    /// Stops accepting, lets running requests finish for a short time, and returns when every
    /// socket is closed.
    pub async fn stop(self) {
        drop(self.stop);
        for server in self.servers {
            // A server that panicked has stopped, too.
            let _ = server.await;
        }
    }
}

/// What the stand-in is and accepts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API Gateway front listens. Loopback, as the others.
    pub api_gateway: SocketAddr,
    /// Where the function-URL front listens.
    pub function_url: SocketAddr,
    /// Where the plain origin listens.
    pub origin: SocketAddr,
    /// The API key the API Gateway front wants in `x-api-key`.
    pub api_key: Secret,
    /// The access key whose signatures the function-URL front accepts.
    pub access_key: String,
    /// Its secret.
    pub secret_key: Secret,
    /// The region signatures must be scoped to.
    pub region: String,
    /// The service signatures must be scoped to.
    pub service: String,
    /// Tells the time, in seconds since 1970.
    pub clock: fn() -> u64,
}

/// Where the servers listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addrs {
    /// The API Gateway front.
    pub api_gateway: SocketAddr,
    /// The function-URL front.
    pub function_url: SocketAddr,
    /// The plain origin.
    pub origin: SocketAddr,
}

/// Why the stand-in cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something else listens there.
    #[error("port {} is in use: the {server} cannot listen on {addr}", addr.port())]
    InUse {
        /// Which server wanted it.
        server: &'static str,
        /// The address with the port.
        addr: SocketAddr,
    },
    /// The example keys must not be offered to a network.
    #[error("the {server} listens on loopback only, and {addr} is not")]
    NotLoopback {
        /// Which server.
        server: &'static str,
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The system refuses the address for another reason.
    #[error("the {server} cannot listen")]
    Bind {
        /// Which server.
        server: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

async fn bind(server: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    if !addr.ip().is_loopback() {
        return Err(StartError::NotLoopback { server, addr });
    }
    TcpListener::bind(addr).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::InUse { server, addr },
        _ => StartError::Bind { server, source },
    })
}

//! The data plane: takes requests in, matches routes, runs plugins, proxies.
//!
//! Start reading in [`handle`]: the way of one request, top to bottom.

pub mod body;
pub mod chain;
pub mod client;
pub mod consumer;
pub mod core;
pub mod endpoint;
pub mod exchange;
pub mod expr;
mod forwarded;
pub mod graphql;
pub mod handle;
pub mod http;
pub mod invoker;
pub mod io;
pub mod listen;
pub mod mirror;
pub mod observe;
pub mod page;
pub mod plugin;
mod proxy;
pub mod reach;
mod real_ip;
pub mod router;
pub mod settings;
pub mod snapshot;
pub mod subrequest;
pub mod tls;
pub mod upstream;
pub mod uri;
mod vars;

pub use forwarded::{ForwardedFields, OwnForwarded};
pub use vars::{OtherVars, WithResponse, argument};

//! HTTP for what happens beside the requests: one HTTP/1.1 exchange on a connection of its own, with
//! a time limit and a size limit.
//!
//! It serves the secret managers and the sources of credentials and tokens, which are asked now and
//! then.
//! Calls of the data path have pools and belong to the gateway crate.

mod exchange;
mod jwt;

pub use exchange::{
    Answer, Connection, EXCHANGE_TIME_MAX, Endpoint, FetchError, Limits, Network, NetworkFuture,
    RESPONSE_BYTES_MAX, exchange, push_segment,
};
pub use jwt::{JWT_BEARER_FORM, JwtSigner};

//! What the gateway knows about AWS: signing requests.
//!
//! Invariant: nothing here opens a socket or reads a clock. Time and bytes come in as arguments,
//! headers and text go out.

pub mod credentials;
pub mod secret;
pub mod sigv4;

pub use secret::Secret;

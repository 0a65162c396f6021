//! What the gateway knows about AWS: signing requests, naming functions, writing their events and
//! reading their answers.
//!
//! | to | use |
//! | --- | --- |
//! | sign a request | [`sigv4::Signer`], [`sigv4::wire_path`], [`sigv4::wire_query`] |
//! | find host, path and query of a function | [`lambda::FunctionRef`], [`lambda::AllowedFunctions`] |
//! | write a request as an event | [`event::EventEncoder`], [`event::EventRequest`] |
//! | read a function's answer | [`response::unwrap`] |
//! | read a streamed answer | [`eventstream::InvokeStreamDecoder`], then [`response::PreludeDecoder`] |
//! | tell why AWS refused a call | [`lambda::classify`]; for a function's own error [`lambda::function_error`] |
//!
//! Invariant: nothing here opens a socket or reads a clock. Time and bytes come in as arguments,
//! headers and text go out.

pub mod credentials;
pub mod event;
pub mod eventstream;
pub mod lambda;
mod partition;
pub mod response;
pub mod secret;
pub mod sigv4;

pub use secret::Secret;

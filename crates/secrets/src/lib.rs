//! Secrets that are kept elsewhere: references in configurations, their values, and the managers
//! that hold them.
//!
//! - [`Reference`] reads `$env://NAME[/key]` and `$secret://manager/id/path`.
//! - [`Secrets`] knows the value of each reference in use. It fetches in a task of its own, so no
//!   request ever waits for a manager, and keeps the last value for as long as a manager is down.
//! - [`Resources`] puts values in the places of references before a configuration is compiled,
//!   and knows which resources to compile anew when a value changes.
//!
//! The managers are HashiCorp Vault, AWS Secrets Manager and Google Cloud Secret Manager, set up
//! by `secrets` resources as in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/terminology/secret/>
//!
//! Invariant: no value is written to a log, and none is part of an error's text.

mod aws;
mod gcp;
mod manager;
mod reference;
mod resources;
mod secrets;
mod vault;

pub use reference::{REFERENCE_BYTES_MAX, Reference, ReferenceError};
pub use resources::{Resource, Resources};
pub use secrets::{
    Counts, Environment, FETCHES_AT_ONCE, Lookup, REFERENCES_MAX, Secrets, Settings,
};
pub use sluicegate_fetch::{
    Connection, EXCHANGE_TIME_MAX, Endpoint, FetchError, Network, NetworkFuture, RESPONSE_BYTES_MAX,
};

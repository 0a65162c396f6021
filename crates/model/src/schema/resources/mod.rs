//! The schemas of APISIX's resources, one file per kind, written by hand with the meaning of
//! APISIX 3.18's `schema_def.lua`.
//!
//! Where a value can be wrong in several ways at once, the order of properties decides which is
//! named; it follows what a running APISIX was seen to name.

mod common;
mod consumer;
mod decoration;
mod global_rule;
mod plugin_config;
mod proto;
mod route;
mod secret;
mod service;
mod ssl;
mod stream_route;
mod upstream;

pub(crate) use self::consumer::{consumer, consumer_group, credential};
pub(crate) use self::decoration::graphql_cost_decoration;
pub(crate) use self::global_rule::global_rule;
pub(crate) use self::plugin_config::plugin_config;
pub(crate) use self::proto::proto;
pub(crate) use self::route::route;
pub(crate) use self::secret::{aws, gcp, vault};
pub(crate) use self::service::service;
pub(crate) use self::ssl::ssl;
pub(crate) use self::stream_route::stream_route;
pub use self::upstream::{hash_header, hash_vars};
pub(crate) use self::upstream::{hash_vars_combinations, upstream};

//! Resources as data: what APISIX's Admin API takes and gives, without any I/O, task or clock.
//!
//! A resource starts as JSON, is judged by its [`schema`](schema::Schema) and by
//! [`check`], is stored as it was sent, and becomes a typed view ([`route::Route`],
//! [`upstream::Upstream`], …) only once its defaults are filled in.
//! [`patch`] and [`encrypt`] are what the Admin API does to a value in between.

pub mod check;
pub mod encrypt;
pub mod kind;
pub mod patch;
pub mod plugin;
pub mod proto;
pub mod resource;
pub mod route;
pub mod schema;
pub mod service;
pub mod ssl;
pub mod upstream;

pub use kind::Kind;
pub use schema::Schema;

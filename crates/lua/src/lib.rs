//! Lua functions in the way of a request: `serverless-pre-function`, `serverless-post-function` and
//! `filter_func`.
//!
//! One Lua state per core ([`host`]), LuaJIT with its compiler off: only then is every instruction
//! counted, and a function can wait in the middle of a `pcall`. Functions see `ngx` and
//! `apisix.core` as far as `docs/plugins/serverless-functions.md` says; that library is
//! `lua/base.lua`, over what [`natives`] and [`request_api`] provide.
//!
//! Invariant: no script reaches the state's real globals, files, or a table that another script
//! uses; and none runs on once a limit ([`Limits`]) is passed.

mod dict;
mod encode;
mod filter;
mod host;
mod json;
mod kept;
mod limits;
mod natives;
mod pattern;
mod regex;
mod request;
mod request_api;
mod run;
mod timers;
mod web;

pub use dict::configure_zones;
pub use filter::FILTER_FUNCS;
pub use host::LuaError;
pub use limits::{Limits, configure};
pub use request::Phase;
pub use run::{Functions, Outcome};

//! What is written down about requests.

pub mod access_log;
pub mod time;

pub use access_log::{AccessLogger, Format};

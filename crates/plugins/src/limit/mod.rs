//! What the plugins that limit traffic share: whom they count by, where they count on this machine,
//! and how they count on a Redis that several gateways share.

pub(crate) mod amount;
pub(crate) mod key;
pub(crate) mod redis;
pub(crate) mod schema;
pub(crate) mod store;

use std::sync::OnceLock;
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::StatusCode;
use serde_json::json;
use sluicegate_gateway::exchange::Response;
use sluicegate_gateway::plugin::ConfigError;

/// What a request is told that is over a limit.
pub(crate) struct Refusal {
    status: StatusCode,
    message: Option<Box<str>>,
}

impl Refusal {
    /// Compiles `rejected_code` and `rejected_msg`.
    pub(crate) fn compile(code: u16, message: Option<String>) -> Result<Self, ConfigError> {
        let status = StatusCode::from_u16(code)
            .map_err(|_| ConfigError(format!("`rejected_code` is no status: {code}")))?;
        Ok(Self { status, message: message.map(Into::into) })
    }

    /// The answer.
    pub(crate) fn response(&self) -> Response {
        match &self.message {
            Some(message) => Response::message(self.status, &json!({"error_msg": message})),
            None => bare(self.status),
        }
    }
}

/// The answer of a plugin that names a status alone.
pub(crate) fn bare(status: StatusCode) -> Response {
    // As in nginx, only statuses from 300 on have a page.
    if status.as_u16() < 300 { Response::new(status) } else { Response::page(status) }
}

/// Milliseconds since 1970 by a clock that never goes back: the wall clock when the gateway
/// started, and the time since.
pub(crate) fn now_ms() -> u64 {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (start, wall) = START.get_or_init(|| {
        let wall = sluicegate_gateway::core::now().duration_since(UNIX_EPOCH);
        (Instant::now(), millis(wall.unwrap_or_default()))
    });
    wall.saturating_add(millis(start.elapsed()))
}

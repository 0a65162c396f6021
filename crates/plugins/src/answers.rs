//! Answers that are a status and nothing else, and the statuses that configurations name.

use http::StatusCode;
use sluicegate_gateway::exchange::Response;
use sluicegate_gateway::plugin::ConfigError;

/// A status that a configuration names.
pub(crate) fn status(field: &str, code: u16) -> Result<StatusCode, ConfigError> {
    // Differs: APISIX takes any number from 200 on, and fails when it is sent.
    StatusCode::from_u16(code).map_err(|_| ConfigError(format!("`{field}` {code} is not a status")))
}

/// An answer that is a status and nothing else: with the gateway's page if it is a redirect or an
/// error, as nginx makes it.
pub(crate) fn answer(status: StatusCode) -> Response {
    if status.as_u16() >= 300 {
        return Response::page(status);
    }
    let mut response = Response::new(status);
    response.headers.append("Content-Type", b"text/plain; charset=utf-8");
    response
}

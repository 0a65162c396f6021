//! The way of a request. Start reading here: [`handle`] names its steps in their order.

use std::sync::Arc;

use ::http::StatusCode;
use tracing::{debug, error, warn};

use crate::body::{Body, BodyError};
use crate::exchange::{Exchange, Response};
use crate::http::Known;
use crate::plugin::{Flow, PluginError};
use crate::router::Match;
use crate::snapshot::{Route, Snapshot};
use crate::{proxy, uri};

/// Brings a request to its response: route, `rewrite`, `access`, `before_proxy`, send,
/// `header_filter`. The listener then writes it, with `body_filter`, and runs `log`.
pub async fn handle(exchange: &mut Exchange) -> Response {
    let mut response = match answer(exchange).await {
        Ok(response) => response,
        Err(error) => Response::page(error.status),
    };
    if let Some(route) = exchange.route.clone() {
        route.chain.header_filter(exchange, &mut response);
    }
    response
}

async fn answer(exchange: &mut Exchange) -> Result<Response, PluginError> {
    if let Some(response) = normalise(exchange) {
        return Ok(response);
    }
    let snapshot = exchange.snapshot.clone();
    if snapshot.reads_forms
        && let Some(response) = read_form(exchange).await
    {
        return Ok(response);
    }
    let Some(route) = find_route(exchange, &snapshot) else {
        exchange.core.counters.not_found.add(1);
        return Ok(Response::message(
            StatusCode::NOT_FOUND,
            &serde_json::json!({"error_msg": "404 Route Not Found"}),
        ));
    };
    route.requests.add(exchange.core.index);
    exchange.route = Some(route.clone());
    if let Some((status, cause)) = &route.broken {
        warn!(route = %route.id, cause, "A route that cannot serve was asked for.");
        return Ok(Response::page(*status));
    }
    if let Some(response) = refuse_large_body(exchange) {
        return Ok(response);
    }
    if let Flow::Respond(response) = route.chain.rewrite(exchange).await? {
        return Ok(response);
    }
    if let Flow::Respond(response) = route.chain.access(exchange).await? {
        return Ok(response);
    }
    proxy::proxy(exchange, &route).await
}

/// Works out the variable `uri`. A path that cannot be one is answered here.
fn normalise(exchange: &mut Exchange) -> Option<Response> {
    let settings = exchange.core.settings();
    let normal = uri::normalize(exchange.request.path()).and_then(|path| {
        let mut path = match path {
            std::borrow::Cow::Borrowed(same) if same.len() == exchange.request.path().len() => None,
            path => Some(path.into_owned()),
        };
        if settings.delete_uri_tail_slash {
            let now = path.as_deref().unwrap_or(exchange.request.path());
            let cut = uri::delete_uri_tail_slash(now);
            if cut.len() != now.len() {
                path = Some(cut.to_vec());
            }
        }
        if settings.normalize_uri_like_servlet {
            let now = path.as_deref().unwrap_or(exchange.request.path());
            if let std::borrow::Cow::Owned(plain) = uri::normalize_like_servlet(now)? {
                path = Some(plain);
            }
        }
        Ok(path)
    });
    match normal {
        Ok(path) => {
            exchange.uri = path;
            None
        }
        // `OPTIONS *` has no path; no route can match it.
        Err(uri::UriError::NotAbsolute) => None,
        Err(error) => {
            debug!(%error, "A request path was refused.");
            Some(Response::page(StatusCode::BAD_REQUEST))
        }
    }
}

/// Reads a form body, because some route's `vars` ask for `post_arg_*`. One that is
/// announced too long stays unread and has no such variables.
async fn read_form(exchange: &mut Exchange) -> Option<Response> {
    let settings = exchange.core.settings();
    let is_form = exchange.request.headers.known(Known::ContentType).is_some_and(|t| {
        t.get(..FORM.len()).is_some_and(|t| t.eq_ignore_ascii_case(FORM))
    });
    let too_long = exchange.request.body.remaining().is_some_and(|n| n > settings.post_args_max);
    if !is_form || too_long {
        return None;
    }
    let used = exchange.core.shared.buffered.clone();
    let total = settings.buffered_body_bytes;
    match exchange.request.body.hold(settings.post_args_max, &used, total).await {
        Ok((form, room)) => {
            exchange.request.body = Body::from_bytes(form.clone());
            exchange.form = Some((form, room));
            None
        }
        Err(error) => {
            warn!(client = %exchange.remote_addr, %error, "A form could not be read.");
            Some(Response::page(match error {
                BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                BodyError::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
                BodyError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
                _ => StatusCode::BAD_REQUEST,
            }))
        }
    }
}

fn find_route(exchange: &mut Exchange, snapshot: &Snapshot) -> Option<Arc<Route>> {
    let mut matched = std::mem::take(&mut exchange.matched);
    let settings = exchange.core.settings();
    let kept = settings
        .match_uri_encoded_slash
        .then(|| uri::keep_encoded_slash(exchange.request.path(), exchange.uri()))
        .flatten();
    let host = exchange.request.host();
    let http_host = exchange.request.headers.get_str("host");
    let found = snapshot
        .router
        .find(
            &Match {
                path: kept.as_deref().unwrap_or_else(|| exchange.uri()),
                host: &host,
                http_host,
                method: exchange.request.method.as_str(),
                remote_addr: exchange.remote_addr,
            },
            &*exchange,
            &mut matched,
        )
        .cloned();
    exchange.matched = matched;
    exchange.matched_slashes_kept = kept.is_some();
    found
}

/// A body announced larger than allowed is refused before anything else is done with it.
fn refuse_large_body(exchange: &Exchange) -> Option<Response> {
    let limit = exchange.core.settings().client_body_max?;
    let announced = exchange.request.body.remaining()?;
    (announced > limit).then(|| {
        error!(announced, limit, route = exchange.route_id(), "A request body is larger than client_max_body_size allows.");
        Response::page(StatusCode::PAYLOAD_TOO_LARGE)
    })
}

/// The media type of HTML forms, whose fields are `post_arg_*`.
const FORM: &[u8] = b"application/x-www-form-urlencoded";

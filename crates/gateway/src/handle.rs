//! The way of a request. Start reading here: [`handle`] names its steps in their order.

use std::sync::Arc;

use ::http::{Method, StatusCode};
use bytes::Bytes;
use smallvec::SmallVec;
use tracing::{debug, error, warn};

use crate::body::BodyError;
use crate::chain::Chain;
use crate::exchange::{Exchange, Response};
use crate::http::Known;
use crate::plugin::{Flow, Phases, PluginError};
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
    for answered in std::mem::take(&mut exchange.on_answer) {
        answered(exchange, &mut response);
    }
    if !exchange.response_headers.is_empty() {
        let headers = std::mem::take(&mut exchange.response_headers);
        response.headers.take_over(&headers);
        exchange.core.pool.recycle(headers);
    }
    exchange.status = response.status.as_u16();
    let status = response.status;
    for chain in chains(exchange, Phases::HEADER_FILTER) {
        chain.header_filter(exchange, &mut response);
    }
    if response.status != status {
        response.reason = None;
    }
    if !exchange.encodings.is_empty() && has_body(exchange.client_method(), response.status) {
        let offers = std::mem::take(&mut exchange.encodings);
        let begun = offers.iter().find_map(|offer| offer.begin(exchange, &mut response));
        exchange.encoder = begun;
    }
    response
}

/// Has an answer to this method with this status a body?
pub(crate) fn has_body(method: &Method, status: StatusCode) -> bool {
    !(method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational())
}

/// Will the body of this response pass [`filter_piece`]?
pub(crate) fn filters_body(exchange: &Exchange) -> bool {
    exchange.encoder.is_some()
        || chains(exchange, Phases::BODY_FILTER).iter().any(|chain| chain.filters_body(exchange))
}

/// Brings a piece of the response's body through every `body_filter` and the encoder.
pub(crate) fn filter_piece(exchange: &mut Exchange, piece: &mut Bytes, last: bool) {
    for chain in chains(exchange, Phases::BODY_FILTER) {
        chain.body_filter(exchange, piece, last);
    }
    if let Some(encoder) = &mut exchange.encoder {
        encoder.piece(piece, last);
    }
}

/// The chains with plugins of a phase, in the order they run: that of the global
/// rules, then the route's.
pub(crate) fn chains(exchange: &Exchange, phase: Phases) -> SmallVec<[Arc<Chain>; 2]> {
    let own = exchange.merged.as_ref().or(exchange.route.as_ref().map(|route| &route.chain));
    in_order(&exchange.snapshot.global, own, phase).cloned().collect()
}

/// Those of these two chains that have plugins of a phase, in the order they run.
fn in_order<'a>(
    global: &'a Arc<Chain>,
    own: Option<&'a Arc<Chain>>,
    phase: Phases,
) -> impl Iterator<Item = &'a Arc<Chain>> {
    std::iter::once(global).chain(own).filter(move |chain| chain.runs(phase))
}

async fn answer(exchange: &mut Exchange) -> Result<Response, PluginError> {
    if let Some(response) = normalise(exchange) {
        return Ok(response);
    }
    if let Some(response) = refuse_unverified_client(exchange) {
        return Ok(response);
    }
    let snapshot = exchange.snapshot.clone();
    let found = match route(exchange, &snapshot).await {
        Ok(found) => found,
        Err(response) => return Ok(response),
    };
    if let Some(route) = &found {
        route.requests.add(exchange.core.index);
        exchange.route = Some(route.clone());
        if let Some((status, cause)) = route.broken.as_deref() {
            warn!(route = %route.id, cause, "A route that cannot serve was asked for.");
            return Ok(Response::page(*status));
        }
    }
    if let Some(response) = refuse_large_body(exchange) {
        return Ok(response);
    }
    let reads_body = |chain: &Arc<Chain>| chain.reads_body();
    if (reads_body(&snapshot.global)
        || found.as_ref().is_some_and(|route| reads_body(&route.chain)))
        && let Err(response) = read_ahead_for_plugins(exchange).await
    {
        return Ok(response);
    }
    let own = found.as_ref().map(|route| &route.chain);
    for chain in in_order(&snapshot.global, own, Phases::REWRITE) {
        if let Flow::Respond(response) = chain.rewrite(exchange).await? {
            return Ok(response);
        }
    }
    if let Some(response) = merge_consumer(exchange).await? {
        return Ok(response);
    }
    let merged = exchange.merged.clone();
    for chain in in_order(&snapshot.global, merged.as_ref().or(own), Phases::ACCESS) {
        if let Flow::Respond(response) = chain.access(exchange).await? {
            return Ok(response);
        }
    }
    match found {
        Some(route) => proxy::proxy(exchange, &route).await,
        None => Ok(not_found(exchange)),
    }
}

/// Merges the plugins of the consumer and of its group into the route's, if there is a consumer
/// that has any, and runs the `rewrite` of those that came with it.
async fn merge_consumer(exchange: &mut Exchange) -> Result<Option<Response>, PluginError> {
    let (Some(consumer), Some(route)) = (&exchange.consumer, &exchange.route) else {
        return Ok(None);
    };
    let group = match &consumer.group_id {
        None => None,
        Some(id) => match exchange.snapshot.consumers.group(id) {
            Some(group) => Some(group.clone()),
            None => {
                error!(route = %route.id, consumer = %consumer.name, group = %id, "A consumer is in a group that does not exist or cannot be used: see to the group, or take the consumer's group_id away.");
                return Ok(Some(Response::page(StatusCode::SERVICE_UNAVAILABLE)));
            }
        },
    };
    let idle = |chain: &Arc<Chain>| chain.changes_nothing();
    if idle(&consumer.chain) && group.as_ref().is_none_or(idle) {
        return Ok(None);
    }
    let merged = exchange.core.merged(&route.chain, group.as_ref(), &consumer.chain);
    exchange.merged = Some(merged.clone());
    if merged.reads_body()
        && let Err(response) = read_ahead_for_plugins(exchange).await
    {
        return Ok(Some(response));
    }
    Ok(match merged.rewrite_in_consumer(exchange).await? {
        Flow::Respond(response) => Some(response),
        Flow::Continue => None,
    })
}

/// No route matched; global rules have run all the same.
fn not_found(exchange: &Exchange) -> Response {
    exchange.core.counters.not_found.add(1);
    let message = serde_json::json!({"error_msg": "404 Route Not Found"});
    Response::message(StatusCode::NOT_FOUND, &message)
}

/// Works out the variable `uri`. A path that cannot be one is answered here.
fn normalise(exchange: &mut Exchange) -> Option<Response> {
    let settings = exchange.settings.clone();
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

/// Refuses a request for a name that is served to clients with certificates only, unless the
/// connection's handshake was about that very name and the client's certificate is believed: a
/// connection may be used for other names than the one it was made for.
fn refuse_unverified_client(exchange: &Exchange) -> Option<Response> {
    let tls = exchange.connection.tls.as_ref()?;
    let certificates = &exchange.snapshot.certificates;
    let cause = if let Some(auth) = &tls.client_auth
        && !tls.is_client_verified()
        && !auth.skips(exchange.uri())
    {
        tls.client_verify()
    } else if certificates.asks_clients()
        && let host = exchange.request.host()
        && let Some(auth) = certificates.client_auth(&host)
    {
        let name = tls.name.as_deref();
        let same = name.is_some_and(|name| name.eq_ignore_ascii_case(&host));
        match same {
            // The certificate was asked for after the connection was made, for example.
            true if tls.is_client_verified() || auth.skips(exchange.uri()) => return None,
            true => tls.client_verify(),
            false => format!("the handshake was about {name:?}, the host is {host:?}"),
        }
    } else {
        return None;
    };
    warn!(client = %exchange.remote_addr, cause, "A client without a certificate that is believed was refused.");
    Some(Response::page(StatusCode::BAD_REQUEST))
}

/// Looks for the route. Where a condition asks for the body, reads it and looks again.
async fn route(
    exchange: &mut Exchange,
    snapshot: &Snapshot,
) -> Result<Option<Arc<Route>>, Response> {
    loop {
        let found = find_route(exchange, snapshot);
        match exchange.preview.wanted() {
            Some(limit) => read_ahead(exchange, limit).await?,
            None => return Ok(found),
        }
    }
}

/// Reads the body for plugins whose configuration names a variable that is in it, unless route
/// conditions did. They see nothing of a body that is no form and no JSON, or too long.
async fn read_ahead_for_plugins(exchange: &mut Exchange) -> Result<(), Response> {
    exchange.want_body();
    match exchange.preview.wanted() {
        Some(limit) => read_ahead(exchange, limit).await,
        None => Ok(()),
    }
}

/// Reads a body of at most `limit` bytes for route conditions, and leaves it to be read once
/// more. Conditions see nothing of a longer one.
async fn read_ahead(exchange: &mut Exchange, limit: u64) -> Result<(), Response> {
    let total = exchange.settings.buffered_body_bytes;
    let used = exchange.core.shared.buffered.clone();
    match exchange.request.body.peek(limit, &used, total).await {
        Ok(whole) => {
            exchange.preview.put(limit, whole);
            Ok(())
        }
        Err(error) => {
            warn!(client = %exchange.remote_addr, %error, "A body that route conditions ask for could not be read.");
            Err(Response::page(match error {
                BodyError::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
                BodyError::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
                _ => StatusCode::BAD_REQUEST,
            }))
        }
    }
}

fn find_route(exchange: &mut Exchange, snapshot: &Snapshot) -> Option<Arc<Route>> {
    let mut matched = std::mem::take(&mut exchange.matched);
    let settings = exchange.settings.clone();
    let kept = settings
        .match_uri_encoded_slash
        .then(|| uri::keep_encoded_slash(exchange.request.path(), exchange.uri()))
        .flatten();
    let host = exchange.request.host();
    let http_host = exchange.request.headers.known(Known::Host);
    let http_host = http_host.and_then(|host| std::str::from_utf8(host).ok());
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
    let limit = exchange.settings.client_body_max?;
    let announced = exchange.request.body.remaining()?;
    (announced > limit).then(|| {
        error!(
            announced,
            limit,
            route = exchange.route_id(),
            "A request body is larger than client_max_body_size allows."
        );
        Response::page(StatusCode::PAYLOAD_TOO_LARGE)
    })
}

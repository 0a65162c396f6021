//! A request to the Admin API, top to bottom.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, Response, StatusCode, header, request::Parts},
};
use serde_json::{Value, json};
use sluicegate_model::{Kind, kind};

use crate::{
    AdminState, BODY_READ_MAX, Settings,
    answer::Answer,
    auth, discovery,
    query::{Args, segments},
    resource::{self, Operation},
};

pub(crate) async fn admin(
    State(state): State<Arc<AdminState>>,
    request: Request,
) -> Response<Body> {
    let settings = state.settings.load_full();
    let (parts, body) = request.into_parts();
    if !settings.allows(client_address(&parts)) {
        return Answer::page(StatusCode::FORBIDDEN).into_response(&settings.server, false);
    }
    let Some(path) = segments(parts.uri.path()) else {
        return Answer::page(StatusCode::BAD_REQUEST).into_response(&settings.server, false);
    };
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let Some(path) = path.strip_prefix(&["apisix", "admin"]) else {
        return Answer::page(StatusCode::NOT_FOUND).into_response(&settings.server, false);
    };
    let answer = match parts.method {
        Method::OPTIONS if settings.cors => Answer::preflight(),
        Method::HEAD if path.is_empty() => Answer::bare(StatusCode::OK, ""),
        _ => match under_admin(&state, &settings, &parts, path, body).await {
            Ok(answer) | Err(answer) => answer,
        },
    };
    answer.into_response(&settings.server, settings.cors)
}

/// Both sides are answers; an error is one that ended the request early.
async fn under_admin(
    state: &AdminState,
    settings: &Settings,
    parts: &Parts,
    path: &[&str],
    body: Body,
) -> Result<Answer, Answer> {
    let method = match parts.method {
        Method::GET => kind::Method::Get,
        Method::PUT => kind::Method::Put,
        Method::POST => kind::Method::Post,
        Method::PATCH => kind::Method::Patch,
        Method::DELETE => kind::Method::Delete,
        _ => return Err(Answer::page(StatusCode::NOT_FOUND)),
    };
    if path.is_empty() && !parts.uri.path().ends_with('/') {
        return Err(Answer::page(StatusCode::NOT_FOUND));
    }
    auth::check_key(settings, &parts.method, &parts.uri, &parts.headers).map_err(|why| {
        let body = json!({"error_msg": "failed to check token", "description": why});
        Answer::json(StatusCode::UNAUTHORIZED, body)
    })?;

    let args = Args::parse(&parts.uri);
    match (method, path) {
        (kind::Method::Get, ["plugins", "list"]) => return discovery::plugin_names(state, &args),
        (_, ["plugins", "reload"]) => return discovery::reload(state, &parts.method),
        (kind::Method::Post, ["schema", "validate", name]) => {
            let kind = known_kind(name)?;
            let body = read_json(settings, &parts.headers, body).await?;
            return discovery::validate(kind, body.as_ref());
        }
        _ => {}
    }

    match path {
        ["schema", "plugins", name @ ..] | ["plugins", name @ ..] => {
            only_get(method)?;
            read_json(settings, &parts.headers, body).await?;
            return Ok(discovery::plugin(state, name.first().copied(), &args).versioned());
        }
        ["schema", name @ ..] => {
            only_get(method)?;
            read_json(settings, &parts.headers, body).await?;
            return Ok(discovery::schema(name.first().copied().unwrap_or_default()).versioned());
        }
        _ => {}
    }
    let (name, path) = path.split_first().unwrap_or((&"", &[]));
    let kind = known_kind(name)?;
    let body = read_json(settings, &parts.headers, body).await?;
    check_ttl(method, &args)?;
    let (id, sub_path) = match path.split_first() {
        Some((id, rest)) => (Some((*id).to_owned()), rest.join("/")),
        None => (None, String::new()),
    };
    let operation = Operation { kind, id, sub_path, args, body };
    let done = resource::run(state, settings, method, operation).await;
    Ok(done.unwrap_or_else(|refusal| refusal).versioned())
}

fn client_address(parts: &Parts) -> Option<IpAddr> {
    let info = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    info.map(|ConnectInfo(address)| address.ip())
}

fn known_kind(name: &str) -> Result<Kind, Answer> {
    match Kind::from_plural(name) {
        Some(Kind::StreamRoutes) => {
            Err(Answer::refused("stream mode is disabled, can not add stream routes"))
        }
        Some(kind) if SERVED.contains(&kind) => Ok(kind),
        _ => {
            Err(Answer::error(StatusCode::NOT_FOUND, format!("Unsupported resource type: {name}")))
        }
    }
}

fn only_get(method: kind::Method) -> Result<(), Answer> {
    if method == kind::Method::Get {
        return Ok(());
    }
    Err(Answer::error(StatusCode::NOT_FOUND, "not found"))
}

// Differs: APISIX keeps a resource for `?ttl=` seconds. That comes with the stores issue; until
// then it is refused rather than kept for ever.
fn check_ttl(method: kind::Method, args: &Args) -> Result<(), Answer> {
    let Some(ttl) = args.get("ttl") else { return Ok(()) };
    if ttl.trim().parse::<f64>().is_err() {
        return Err(Answer::refused("invalid argument ttl: should be a number"));
    }
    match method {
        kind::Method::Get | kind::Method::Delete => Ok(()),
        _ => Err(Answer::refused("invalid argument ttl: not supported yet")),
    }
}

/// The body as JSON, `None` when there is none.
async fn read_json(
    settings: &Settings,
    headers: &HeaderMap,
    body: Body,
) -> Result<Option<Value>, Answer> {
    let limit = settings.body_bytes_max;
    let too_large = |size: String| {
        let text = format!(
            "invalid request body: request size {size}is greater than the maximum size {limit} allowed"
        );
        Err(Answer::refused(text))
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if let Some(length) = length.and_then(|length| length.parse::<u64>().ok())
        && length > limit as u64
    {
        return too_large(format!("{length} "));
    }
    let read = tokio::time::timeout(BODY_READ_MAX, axum::body::to_bytes(body, limit)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        // The length was not announced: it is too large, or the client went away and reads no
        // answer anyway.
        Ok(Err(_)) => return too_large(String::new()),
        Err(_) => return Err(Answer::page(StatusCode::REQUEST_TIMEOUT)),
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let why = malformed(&bytes, &error);
        let req_body = String::from_utf8_lossy(&bytes);
        let body =
            json!({"error_msg": format!("invalid request body: {why}"), "req_body": req_body});
        Answer::json(StatusCode::BAD_REQUEST, body)
    })
}

/// What is wrong with a text that is no JSON, in the words of APISIX's parser.
fn malformed(text: &[u8], error: &serde_json::Error) -> String {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let character = before + error.column();
    let reason = error.to_string();
    let expected = if reason.starts_with("recursion limit") {
        return format!(
            "Found too many nested data structures ({JSON_DEPTH_MAX}) at character {character}"
        );
    } else if reason.starts_with("key must be a string") {
        "object key string"
    } else if reason.starts_with("trailing characters") {
        "the end"
    } else if reason.starts_with("expected `:`") {
        "colon"
    } else if reason.starts_with("expected `,` or `}`") {
        "comma or object end"
    } else if reason.starts_with("expected `,` or `]`") {
        "comma or array end"
    } else {
        "value"
    };
    let found = if error.is_eof() { "T_END" } else { "invalid token" };
    format!(
        "Expected {expected} but found {found} at character {}",
        character + usize::from(error.is_eof())
    )
}

/// The kinds that are served. Consumers, protos and secrets come with the next issue.
const SERVED: [Kind; 8] = [
    Kind::Routes,
    Kind::Services,
    Kind::Upstreams,
    Kind::Ssls,
    Kind::GlobalRules,
    Kind::PluginConfigs,
    Kind::ConsumerGroups,
    Kind::PluginMetadata,
];
/// How deep JSON may be nested: the parser's own limit.
const JSON_DEPTH_MAX: usize = 128;

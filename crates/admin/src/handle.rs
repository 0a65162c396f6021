//! A request to the Admin API, top to bottom.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, Response, StatusCode, header, request::Parts},
};
use serde_json::{Value, json};
use sluicegate_model::{Kind, kind};

use crate::{
    AdminState, BODY_READ_MAX, NO_STREAMS, Settings,
    answer::Answer,
    auth, configs, discovery, openapi,
    query::{Args, segments},
    resource::{self, Operation},
    validate,
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
        _ if let Some(declared) = &state.declared => {
            return configs::run(&state, declared, &settings, &parts, path, body).await;
        }
        Method::GET if path == ["configs"] => {
            match configs::export(&state, &settings, &parts).await {
                Ok(response) => return response,
                Err(answer) => answer,
            }
        }
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
        (kind::Method::Get, ["openapi.json"]) => {
            return Ok(Answer::json(StatusCode::OK, openapi::document(&state.catalog.load())));
        }
        (kind::Method::Get, ["plugins", "list"]) => return discovery::plugin_names(state, &args),
        (_, ["plugins", "reload"]) => return discovery::reload(state, &parts.method),
        (kind::Method::Post, ["schema", "validate", name, ..]) => {
            let kind = kind_of_schema(name)?;
            let body = read_json(settings, &parts.headers, body).await?;
            return discovery::validate(kind, body.as_ref());
        }
        (kind::Method::Post, ["configs", "validate"]) => {
            let body = validate::body(settings, &parts.headers, body).await?;
            return validate::configuration(state, &body).await;
        }
        _ => {}
    }

    match path {
        ["schema", "plugins", name @ ..] | ["plugins", name @ ..] => {
            only_get(method)?;
            read_json(settings, &parts.headers, body).await?;
            ttl(&args)?;
            return Ok(discovery::plugin(state, name.first().copied(), &args).versioned());
        }
        ["schema", name @ ..] => {
            only_get(method)?;
            read_json(settings, &parts.headers, body).await?;
            ttl(&args)?;
            return Ok(discovery::schema(name.first().copied().unwrap_or_default()).versioned());
        }
        _ => {}
    }
    let Place { kind, parent, id, sub_path } = place(settings, path)?;
    let body = read_json(settings, &parts.headers, body).await?;
    let ttl = ttl(&args)?;
    if kind == Kind::GraphqlCostDecorations && parent.is_none() {
        return Err(Answer::refused("missing service id").versioned());
    }
    let operation = Operation { kind, parent, id, sub_path, args, ttl, body };
    let done = resource::run(state, settings, method, operation).await;
    Ok(done.unwrap_or_else(|refusal| refusal).versioned())
}

/// What a path under `/apisix/admin` names.
struct Place {
    kind: Kind,
    parent: Option<String>,
    id: Option<String>,
    /// What follows the id.
    sub_path: String,
}

fn place(settings: &Settings, path: &[&str]) -> Result<Place, Answer> {
    let (name, rest) = path.split_first().unwrap_or((&"", &[]));
    let kind = Kind::from_plural(name);
    let (kind, parent, rest) = match (kind.and_then(Kind::child), rest) {
        (Some(child), [parent, name, rest @ ..]) if child.plural() == *name => {
            (child, Some((*parent).to_owned()), rest)
        }
        _ => match kind {
            // Differs: APISIX answers 500 to credentials without a consumer, and lists consumers.
            None | Some(Kind::Credentials) => return Err(unsupported(name)),
            Some(Kind::StreamRoutes) if !settings.stream_proxy => {
                return Err(Answer::refused(NO_STREAMS));
            }
            Some(kind) => (kind, None, rest),
        },
    };
    // A secret's id has two segments, the manager and its own.
    let split = if kind == Kind::Secrets { 2 } else { 1 };
    let id = rest.get(..split).map(|id| id.join("/"));
    let sub_path = rest.get(split..).map(|rest| rest.join("/")).unwrap_or_default();
    Ok(Place { kind, parent, id, sub_path })
}

/// The kind whose schema is asked for.
fn kind_of_schema(name: &str) -> Result<Kind, Answer> {
    Kind::from_plural(name).ok_or_else(|| unsupported(name))
}

fn unsupported(name: &str) -> Answer {
    Answer::error(StatusCode::NOT_FOUND, format!("Unsupported resource type: {name}"))
}

fn client_address(parts: &Parts) -> Option<IpAddr> {
    let info = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    info.map(|ConnectInfo(address)| address.ip())
}

fn only_get(method: kind::Method) -> Result<(), Answer> {
    if method == kind::Method::Get {
        return Ok(());
    }
    Err(Answer::error(StatusCode::NOT_FOUND, "not found"))
}

/// `?ttl=`: after how many seconds what is written goes away.
// Differs: APISIX hands a number that is no time to etcd, which answers with an error of its own or
// takes two seconds for none.
fn ttl(args: &Args) -> Result<Option<Duration>, Answer> {
    let Some(ttl) = args.get("ttl") else { return Ok(None) };
    let refused = |why| Err(Answer::refused(format!("invalid argument ttl: should be {why}")));
    let Ok(seconds) = ttl.trim().parse::<f64>() else { return refused("a number") };
    if !(seconds > 0.0 && seconds <= TTL_SECONDS_MAX) {
        return refused("more than 0 and at most 9000000000 seconds");
    }
    Ok(Some(Duration::from_secs_f64(seconds)))
}

/// Reads JSON as APISIX's reader does: line ends and other control characters may stand in texts as
/// they are. Functions in Lua are written so.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|error| match controls_escaped(bytes) {
        Some(escaped) => serde_json::from_slice(&escaped).map_err(|_| error),
        None => Err(error),
    })
}

/// The text with the control characters in its strings escaped; `None`: there are none.
fn controls_escaped(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut escaped = Vec::with_capacity(bytes.len() + 64);
    let (mut inside, mut backslash, mut found) = (false, false, false);
    for &byte in bytes {
        if inside && byte < b' ' {
            found = true;
            escaped.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
        } else {
            escaped.push(byte);
        }
        match byte {
            _ if backslash => backslash = false,
            b'\\' => backslash = inside,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    found.then_some(escaped)
}

/// The body as JSON, `None` when there is none.
async fn read_json(
    settings: &Settings,
    headers: &HeaderMap,
    body: Body,
) -> Result<Option<Value>, Answer> {
    let bytes = read_body(settings, headers, body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    parse(&bytes).map(Some).map_err(|error| {
        let why = malformed(&bytes, &error);
        let req_body = String::from_utf8_lossy(&bytes);
        let body =
            json!({"error_msg": format!("invalid request body: {why}"), "req_body": req_body});
        Answer::json(StatusCode::BAD_REQUEST, body)
    })
}

/// The body, as far as it may reach.
pub(crate) async fn read_body(
    settings: &Settings,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Answer> {
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
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        // The length was not announced: it is too large, or the client went away and reads no
        // answer anyway.
        Ok(Err(_)) => too_large(String::new()),
        Err(_) => Err(Answer::page(StatusCode::REQUEST_TIMEOUT)),
    }
}

/// What is wrong with a text that is no JSON, in the words of APISIX's parser.
pub(crate) fn malformed(text: &[u8], error: &serde_json::Error) -> String {
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

/// The longest life that etcd grants.
const TTL_SECONDS_MAX: f64 = 9e9;
/// How deep JSON may be nested: the parser's own limit.
const JSON_DEPTH_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_may_stand_in_texts_and_nowhere_else() {
        for (text, value) in [
            ("{\"a\": \"b\nc\t\\\"\n\"}", Some(json!({"a": "b\nc\t\"\n"}))),
            ("\n[\"\\\\\", \"\r\"]\n", Some(json!(["\\", "\r"]))),
            ("{\"a\": \u{1}1}", None),
            ("{\"a\": \"b\n}", None),
        ] {
            assert_eq!(parse(text.as_bytes()).ok(), value, "{text:?}");
        }
    }
}

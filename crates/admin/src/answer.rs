//! What the Admin and Control APIs answer with, and how it becomes a response.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
};
use serde_json::{Value, json};

/// An answer before it has headers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content: Content,
    /// Whether it says `X-API-VERSION`: what a resource answered does, what ended earlier doesn't.
    pub(crate) versioned: bool,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// JSON and a line end.
    Json(Value),
    /// Text under a JSON content type, as APISIX sends it.
    Bare(&'static str),
    /// Text under its own content type.
    Text(&'static str),
    /// A page for browsers, named after the status.
    Page,
    /// The answer to a CORS preflight.
    Preflight,
}

impl Answer {
    pub(crate) fn json(status: StatusCode, value: Value) -> Self {
        Self { status, content: Content::Json(value), versioned: false }
    }

    pub(crate) fn error(status: StatusCode, text: impl Into<String>) -> Self {
        Self::json(status, json!({ "error_msg": text.into() }))
    }

    /// An error of 400.
    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self::error(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn key_not_found() -> Self {
        Self::json(StatusCode::NOT_FOUND, json!({"message": "Key not found"}))
    }

    pub(crate) fn bare(status: StatusCode, text: &'static str) -> Self {
        Self { status, content: Content::Bare(text), versioned: false }
    }

    pub(crate) fn text(status: StatusCode, text: &'static str) -> Self {
        Self { status, content: Content::Text(text), versioned: false }
    }

    pub(crate) fn page(status: StatusCode) -> Self {
        Self { status, content: Content::Page, versioned: false }
    }

    pub(crate) fn preflight() -> Self {
        Self { status: StatusCode::OK, content: Content::Preflight, versioned: false }
    }

    pub(crate) fn versioned(mut self) -> Self {
        self.versioned = true;
        self
    }

    /// The response, with `Server` and, for `cors`, the headers that let any page read it.
    pub(crate) fn into_response(self, server: &str, cors: bool) -> Response<Body> {
        let preflight = matches!(self.content, Content::Preflight);
        let (content_type, body) = match self.content {
            Content::Json(value) => (JSON, Body::from(format!("{value}\n"))),
            Content::Bare(text) => (JSON, Body::from(text)),
            Content::Text(text) => (TEXT, Body::from(text)),
            Content::Page => (HTML, Body::from(page(self.status))),
            Content::Preflight => (TEXT, Body::empty()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Ok(server) = HeaderValue::from_str(server) {
            headers.insert(header::SERVER, server);
        }
        if preflight {
            extend(headers, &CORS_PREFLIGHT);
        } else if cors {
            extend(headers, &CORS);
        }
        if self.versioned {
            headers.insert(X_API_VERSION, HeaderValue::from_static("v3"));
        }
        response
    }
}

fn extend(headers: &mut HeaderMap, more: &[(HeaderName, &'static str)]) {
    headers
        .extend(more.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))));
}

// Differs: APISIX's error pages name openresty and credit APISIX; ours name Sluicegate.
fn page(status: StatusCode) -> String {
    format!(
        "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n\
         <center><h1>{status}</h1></center>\r\n<hr><center>Sluicegate</center>\r\n\
         </body>\r\n</html>\r\n"
    )
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const X_API_VERSION: HeaderName = HeaderName::from_static("x-api-version");

const CORS: [(HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "*"),
    (header::ACCESS_CONTROL_MAX_AGE, "3600"),
];
const CORS_PREFLIGHT: [(HeaderName, &str); 5] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, PUT, OPTIONS, DELETE, PATCH"),
    (header::ACCESS_CONTROL_MAX_AGE, "3600"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "*"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
];

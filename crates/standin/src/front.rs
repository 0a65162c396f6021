//! What each server answers: a function from a request to a response.

use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use crate::body::Answer;
use crate::serve::Answers;
use crate::verify::{Accepted, Received, Refusal, verify};
use crate::{Settings, function};

pub(crate) struct Front {
    pub(crate) kind: Kind,
    pub(crate) settings: Arc<Settings>,
}

impl Answers for Front {
    fn answer(&self, head: &Parts, body: &[u8]) -> Response<Answer> {
        if head.headers.get_all(HOST).iter().count() != 1 {
            return bad_request();
        }
        let checked = match self.kind {
            Kind::Origin => return origin(head, body),
            Kind::ApiGateway => self.check_api_key(&head.headers),
            Kind::FunctionUrl => self.check_signature(head, body),
        };
        match checked {
            Ok(()) => call_function(head, body),
            Err(refusal) => {
                let mut response =
                    json_response(StatusCode::FORBIDDEN, &json!({ "message": refusal.message }));
                let kind = HeaderValue::from_static(refusal.error_type);
                response.headers_mut().insert(ERROR_TYPE, kind);
                with_request_id(response)
            }
        }
    }
}

impl Front {
    fn check_api_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut given = headers.get_all(API_KEY).iter();
        match (given.next(), given.next()) {
            (Some(key), None) if key.as_bytes() == self.settings.api_key.expose().as_bytes() => {
                Ok(())
            }
            _ => Err(Refusal { error_type: "ForbiddenException", message: "Forbidden".to_owned() }),
        }
    }

    fn check_signature(&self, head: &Parts, body: &[u8]) -> Result<(), Refusal> {
        let settings = &self.settings;
        let headers: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let received = Received {
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query().unwrap_or_default(),
            headers: &headers,
            body,
        };
        let accepted = Accepted {
            access_key: &settings.access_key,
            secret_key: &settings.secret_key,
            session_token: None,
            region: &settings.region,
            service: &settings.service,
        };
        verify(&received, &accepted, (settings.clock)())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ApiGateway,
    FunctionUrl,
    Origin,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ApiGateway => "API Gateway front",
            Self::FunctionUrl => "function-URL front",
            Self::Origin => "plain origin",
        }
    }
}

fn call_function(head: &Parts, body: &[u8]) -> Response<Answer> {
    let greeting = function::greet(head.uri.query().unwrap_or_default(), body);
    let mut response = json_response(StatusCode::OK, &Value::String(greeting));
    if let Ok(path) = HeaderValue::from_bytes(head.uri.path().as_bytes()) {
        response.headers_mut().insert(FUNCTION_PATH, path);
    }
    with_request_id(response)
}

/// Tells what arrived, as a plain origin for trying routes out.
fn origin(head: &Parts, body: &[u8]) -> Response<Answer> {
    let mut headers = serde_json::Map::new();
    for name in head.headers.keys() {
        let mut values: Vec<_> = head
            .headers
            .get_all(name)
            .iter()
            .map(|value| Value::from(String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        headers.insert(name.as_str().to_owned(), value);
    }
    let told = json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": headers,
        "body_bytes": body.len(),
    });
    json_response(StatusCode::OK, &told)
}

pub(crate) fn too_large() -> Response<Answer> {
    let mut response =
        json_response(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "message": "Request Too Long" }));
    let kind = HeaderValue::from_static("RequestTooLargeException");
    response.headers_mut().insert(ERROR_TYPE, kind);
    with_request_id(response)
}

pub(crate) fn bad_request() -> Response<Answer> {
    with_request_id(json_response(StatusCode::BAD_REQUEST, &json!({ "message": "Bad Request" })))
}

pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn with_request_id(mut response: Response<Answer>) -> Response<Answer> {
    let mut id = [0; 16];
    // Without random bytes the answer is still right; it only lacks its id.
    if SystemRandom::new().fill(&mut id).is_ok() {
        // The bits that make it a version 4 UUID.
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let groups =
            [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        if let Ok(value) = HeaderValue::from_str(&groups.join("-")) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
    }
    response
}

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
pub(crate) const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// The path the function was called with.
const FUNCTION_PATH: HeaderName = HeaderName::from_static("x-function-path");

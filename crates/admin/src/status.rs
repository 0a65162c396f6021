//! The Status API: whether the gateway runs, and whether it is ready, for orchestrators.
//!
//! `/status` and `/status/ready` answer as APISIX's do while all is well or nothing is served yet.
//! Ready means that configuration is loaded and requests are served by it. What is less than well
//! behind that (a resource that could not be compiled, a store that is out of reach while what was
//! read last goes on serving) does not take the gateway out of a balancer, but the answer says so.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header},
};
use serde_json::{Value, json};

use crate::answer::Answer;

/// The Status API over `state`.
pub fn router(state: Arc<StatusState>) -> axum::Router {
    axum::Router::new().fallback(status).with_state(state)
}

/// What the Status API works with.
pub struct StatusState {
    /// Tells how the gateway is doing, each time somebody asks.
    pub look: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// The `Server` header.
    pub server: String,
}

/// How the gateway is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Requests are not served, and why: it starts, or stops.
    Not(String),
    /// Requests are served.
    Serving {
        /// What was read last goes on serving, as the store shows nothing newer.
        stale: Option<Stale>,
        /// Resources that are not served as they are stored.
        broken: Vec<Broken>,
    },
}

/// A store out of reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// Since when.
    pub since: SystemTime,
    /// Why.
    pub reason: String,
}

impl Stale {
    /// As it is shown to people.
    pub fn shown(&self) -> Value {
        let since = self.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({"state": "stale", "since": since, "reason": self.reason})
    }
}

/// A resource that is not served as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Its kind: `routes`.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Why, and what serves in its place.
    pub cause: String,
}

impl Broken {
    /// As it is shown to people.
    pub fn shown(&self) -> Value {
        json!({"kind": self.kind, "id": self.id, "cause": self.cause})
    }
}

async fn status(State(state): State<Arc<StatusState>>, request: Request) -> Response<Body> {
    // Prefixes, whatever follows them and whatever the method, as APISIX's nginx takes them.
    let path = request.uri().path();
    let (status, body) = if path.starts_with("/status/ready") {
        ready((state.look)())
    } else if path.starts_with("/status") {
        (StatusCode::OK, json!({"status": "ok"}))
    } else {
        return Answer::page(StatusCode::NOT_FOUND).into_response(&state.server, false);
    };
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Ok(server) = HeaderValue::from_str(&state.server) {
        headers.insert(header::SERVER, server);
    }
    response
}

fn ready(readiness: Readiness) -> (StatusCode, Value) {
    let (stale, broken) = match readiness {
        Readiness::Not(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "error", "error": error}));
        }
        Readiness::Serving { stale, broken } => (stale, broken),
    };
    let mut body = json!({"status": "ok"});
    if let Some(stale) = stale {
        body["store"] = stale.shown();
    }
    if !broken.is_empty() {
        body["broken_total"] = broken.len().into();
        body["broken"] = broken.iter().take(BROKEN_SHOWN_MAX).map(Broken::shown).collect();
    }
    (StatusCode::OK, body)
}

/// Most broken resources that one answer names.
pub const BROKEN_SHOWN_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ready_means_that_requests_are_served_and_the_body_says_how_well() {
        let broken = |n: usize| {
            let one = |i| Broken { kind: "routes", id: format!("{i}"), cause: "no".to_owned() };
            (0..n).map(one).collect::<Vec<_>>()
        };
        let shown = json!({"kind": "routes", "id": "0", "cause": "no"});
        let stale = Stale { since: UNIX_EPOCH + Duration::from_secs(7), reason: "gone".to_owned() };
        for (readiness, status, body) in [
            (
                Readiness::Not("starting".to_owned()),
                503,
                json!({"status": "error", "error": "starting"}),
            ),
            (Readiness::Serving { stale: None, broken: vec![] }, 200, json!({"status": "ok"})),
            (
                Readiness::Serving { stale: Some(stale), broken: broken(1) },
                200,
                json!({
                    "status": "ok",
                    "store": {"state": "stale", "since": 7, "reason": "gone"},
                    "broken_total": 1,
                    "broken": [shown],
                }),
            ),
        ] {
            let label = format!("{readiness:?}");
            let (got_status, got) = ready(readiness);
            assert_eq!((got_status.as_u16(), got), (status, body), "{label}");
        }
    }

    #[test]
    fn an_answer_names_no_more_broken_resources_than_the_limit() {
        for (there, named) in [(BROKEN_SHOWN_MAX, BROKEN_SHOWN_MAX), (101, BROKEN_SHOWN_MAX)] {
            let one = Broken { kind: "routes", id: "1".to_owned(), cause: String::new() };
            let (_, body) = ready(Readiness::Serving { stale: None, broken: vec![one; there] });
            assert_eq!(body["broken_total"], there);
            assert_eq!(body["broken"].as_array().map(Vec::len), Some(named));
        }
    }
}

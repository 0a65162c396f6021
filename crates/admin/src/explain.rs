//! `POST /v1/aws-lambda/explain`: what the gateway would send for a request, of one route or of a
//! configuration that stands in the question.

use std::{future::Future, pin::Pin, sync::Arc};

use axum::{body::to_bytes, extract::Request, http::StatusCode};
use serde_json::{Map, Value, json};
use sluicegate_model::Kind;

use crate::{
    answer::Answer,
    control::ControlState,
    resource::{key, parse, store_failed},
    sender::check_closely,
};

/// Explains what `aws-lambda` does with a request.
pub type Explain = Arc<dyn Fn(Question) -> Explained + Send + Sync>;

/// What is explained.
pub struct Question {
    /// The plugin's configuration, secrets in the clear.
    pub config: Value,
    /// The pattern of its route.
    pub route_uri: Option<String>,
    /// The configuration stands in the question: nobody who may write routes has allowed it.
    pub is_given: bool,
    /// The request, as the client of the Control API described it.
    pub request: Value,
}

/// The explanation, or why there is none.
pub type Explained = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

impl ControlState {
    /// Answers the question in a request's body.
    pub(crate) async fn explain(&self, request: Request) -> Result<Answer, Answer> {
        check_closely(request.headers())?;
        let explain = self
            .explain
            .as_ref()
            .ok_or_else(|| Answer::error(StatusCode::NOT_FOUND, "this gateway explains nothing"))?;
        let body = to_bytes(request.into_body(), QUESTION_BYTES_MAX).await;
        let body = body.map_err(|_| Answer::refused("the question is larger than 1 MiB"))?;
        let asked: Value = serde_json::from_slice(&body)
            .map_err(|error| Answer::refused(format!("the question is no JSON: {error}")))?;
        let Value::Object(mut asked) = asked else {
            return Err(Answer::refused("the question is no JSON object"));
        };
        let given = asked.shift_remove("config");
        let route = asked.shift_remove("route_id");
        let is_given = given.is_some();
        let (config, route_uri) = match (given, route) {
            (Some(config), None) => (config, None),
            (None, Some(id)) => {
                let id = match id {
                    Value::String(id) => id,
                    other => other.to_string(),
                };
                self.of_route(&id, &asked).await?
            }
            _ => {
                return Err(Answer::refused(
                    "give `route_id`, or the plugin's configuration as `config`",
                ));
            }
        };
        let question = Question { config, route_uri, is_given, request: Value::Object(asked) };
        match explain(question).await {
            Ok(told) => Ok(Answer::json(StatusCode::OK, told)),
            Err(why) => Err(Answer::refused(why)),
        }
    }

    /// The plugin's configuration that a route has: its own, else its plugin config's, else its
    /// service's. And the pattern that the request matches.
    async fn of_route(
        &self,
        id: &str,
        asked: &Map<String, Value>,
    ) -> Result<(Value, Option<String>), Answer> {
        let route = self.opened(Kind::Routes, id).await?;
        let patterns: Vec<&str> = match (route["uri"].as_str(), route["uris"].as_array()) {
            (Some(uri), _) => vec![uri],
            (None, uris) => uris.into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        let path = asked.get("uri").and_then(Value::as_str).unwrap_or_default();
        let fits = |pattern: &&&str| {
            let start = pattern.split(['*', ':']).next().unwrap_or_default();
            path.starts_with(start)
        };
        let pattern = patterns.iter().find(fits).or(patterns.first());
        let pattern = pattern.map(|pattern| (*pattern).to_owned());
        let mut config = route["plugins"].get(PLUGIN).cloned();
        for (kind, field) in
            [(Kind::PluginConfigs, "plugin_config_id"), (Kind::Services, "service_id")]
        {
            let other = match &route[field] {
                Value::Null => continue,
                Value::String(id) => id.clone(),
                id => id.to_string(),
            };
            if config.is_none() {
                config = self.opened(kind, &other).await?["plugins"].get(PLUGIN).cloned();
            }
        }
        let config = config.ok_or_else(|| {
            Answer::refused(format!(
                "route [{id}] has no {PLUGIN}, and neither have its plugin config and its service"
            ))
        })?;
        Ok((config, pattern))
    }

    /// A resource with its secrets in the clear.
    async fn opened(&self, kind: Kind, id: &str) -> Result<Value, Answer> {
        let entry = self.store.get(&key(kind, id)).await.map_err(store_failed)?;
        let missing = || {
            let name = kind.plural();
            Answer::error(StatusCode::NOT_FOUND, format!("{name} [{id}] not found"))
        };
        let mut value = parse(&entry.ok_or_else(missing)?)?;
        self.catalog.load().decrypt_resource(&self.keyring, kind, &mut value);
        Ok(if value.is_object() { value } else { json!({}) })
    }
}

const PLUGIN: &str = "aws-lambda";
/// The largest question.
const QUESTION_BYTES_MAX: usize = 1 << 20;

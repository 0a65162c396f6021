//! References in configurations (`$secret://…`, `$env://…`), as the compiler meets them.
//!
//! Whoever feeds the compiler puts the values in their places before. Invariant: a reference that
//! is still there has no value, and what it stands in is not compiled: the literal is never used.

use std::sync::Arc;

use serde_json::{Map, Value};
use sluicegate_model::resource::is_secret_reference;
use sluicegate_model::ssl::Ssl;

use crate::exchange::Exchange;
use crate::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError, Registry};

/// What is known about references.
pub trait References: Send + Sync {
    /// Why this one has no value.
    fn cause(&self, reference: &str) -> String;

    /// A text for the log, with references in the places of their values.
    fn redact(&self, text: String) -> String;
}

/// Knows of none.
pub(super) struct Unknown;

impl References for Unknown {
    fn cause(&self, _reference: &str) -> String {
        "nobody resolves references here".into()
    }

    fn redact(&self, text: String) -> String {
        text
    }
}

/// Says which reference of these plugins, or of their metadata, has no value, and why. Plugins that will not run, as
/// they are unknown or switched off, do not count.
pub(super) fn unresolved<'a>(
    plugins: &Map<String, Value>,
    metadata: &dyn Fn(&str) -> Option<&'a Value>,
    registry: &Registry,
    references: &Arc<dyn References>,
) -> Option<String> {
    let runs = |(name, config): &(&String, &Value)| {
        registry.get(name).is_some()
            && config.pointer("/_meta/disable").and_then(Value::as_bool) != Some(true)
    };
    plugins.iter().filter(runs).find_map(|(name, config)| {
        let (reference, place) = match first(config) {
            Some(reference) => (reference, "plugin"),
            None => (first(metadata(name)?)?, "the metadata of plugin"),
        };
        let cause = references.cause(reference);
        Some(format!("{reference} in {place} {name} has no value: {cause}"))
    })
}

/// The same of a certificate or key.
pub(super) fn unresolved_ssl(ssl: &Ssl, references: &Arc<dyn References>) -> Option<String> {
    let mut texts = ssl.pairs().flat_map(|(cert, key)| [cert, key]);
    let reference = texts.find(|text| is_secret_reference(text))?;
    Some(format!("{reference} has no value: {}", references.cause(reference)))
}

/// The first reference in a value.
pub(crate) fn first(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => is_secret_reference(text).then_some(text),
        Value::Array(items) => items.iter().find_map(first),
        Value::Object(map) => map.values().find_map(first),
        _ => None,
    }
}

/// Answers 503 to everything: in the place of a global rule whose references have no value.
pub(super) struct Refuse(String);

impl Plugin for Refuse {
    const NAME: &'static str = "refuse";
    const PRIORITY: i32 = 0;
    const PHASES: Phases = Phases::REWRITE;
    type Config = String;

    fn schema() -> Value {
        Value::Object(Map::new())
    }

    fn compile(cause: String, _ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self(cause))
    }

    async fn rewrite(&self, _exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let cause = self.0.clone();
        tracing::warn!(cause, "A global rule cannot run, and nothing is served without it.");
        Err(PluginError { status: ::http::StatusCode::SERVICE_UNAVAILABLE, cause })
    }
}

impl Refuse {
    /// One that says `cause` in the log.
    pub(super) fn because(cause: String) -> Self {
        Self(cause)
    }
}

//! Bearer tokens for function plugins: whose a route may use, and the token of the moment.
//!
//! A route may bring keys of its own. Every other identity is the gateway's: config.yaml allows it
//! by `plugin_attr.NAME.allowed_providers`, and files and endpoints are named there or in the
//! environment of the process alone.

use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use http::StatusCode;
use serde_json::Value;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, PluginError};
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_identity::{IdentityStatus, SystemClock, TokenIdentity, TokenSource, Tokens};
use tracing::error;

/// Who a route's calls are made for. In a trial there is nobody yet.
pub(crate) struct Caller(Option<Arc<TokenIdentity>>);

impl Caller {
    /// Compiles an identity; a running gateway begins to fetch its token.
    pub(crate) fn compile(source: TokenSource, ctx: &CompileCtx<'_>) -> Self {
        let identity = ctx.deps.map(|deps| {
            let identity = tokens(deps).identity(source);
            identity.warm();
            identity
        });
        Self(identity)
    }

    /// Puts the token in a header of the call.
    ///
    /// # Errors
    /// 503 when there is none: nothing is called without it.
    pub(crate) async fn authorize(
        &self,
        exchange: &Exchange,
        headers: &mut sluicegate_gateway::http::headers::Headers,
        header: &str,
    ) -> Result<(), PluginError> {
        let now = sluicegate_gateway::core::now();
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let token = match &self.0 {
            Some(identity) => identity.token(now).await.map_err(|none| none.to_string()),
            None => Err("this configuration is only tried".to_owned()),
        };
        match token {
            Ok(token) => {
                headers.set(header, token.header().expose().as_bytes());
                Ok(())
            }
            Err(cause) => {
                error!(
                    route = exchange.route_id(),
                    cause, "A function was not called: there is no token."
                );
                Err(PluginError { status: StatusCode::SERVICE_UNAVAILABLE, cause })
            }
        }
    }
}

/// `plugin_attr` of config.yaml for a plugin that has identities.
pub(crate) struct Attr<'a> {
    plugin: &'static str,
    attr: Option<&'a Value>,
    /// What config.yaml says is not known: somewhere else than in a gateway.
    unknown: bool,
}

impl<'a> Attr<'a> {
    pub(crate) fn of(plugin: &'static str, ctx: &CompileCtx<'a>) -> Self {
        Self { plugin, attr: ctx.attr, unknown: ctx.attr.is_none() && ctx.deps.is_none() }
    }

    /// Whether a route may name a provider. `own` is the one whose keys stand in the route: it
    /// alone is allowed where config.yaml says nothing.
    pub(crate) fn allows(
        &self,
        provider: &str,
        own: &str,
        known: &[&str],
    ) -> Result<(), ConfigError> {
        if self.unknown {
            return Ok(());
        }
        let plugin = self.plugin;
        let key = format!("plugin_attr.{plugin}.allowed_providers in config.yaml");
        let allowed = match self.attr.and_then(|attr| attr.get("allowed_providers")) {
            None | Some(Value::Null) => vec![own],
            Some(Value::Array(names)) => {
                let names = names.iter().map(|name| name.as_str().unwrap_or_default());
                let names: Vec<&str> = names.collect();
                if let Some(wrong) = names.iter().find(|name| !known.contains(name)) {
                    let known = known.join(", ");
                    let why = format!("{key}: there is no provider {wrong:?}; there are {known}");
                    return Err(ConfigError(why));
                }
                names
            }
            Some(_) => return Err(ConfigError(format!("{key} is no list"))),
        };
        if allowed.contains(&provider) {
            return Ok(());
        }
        let allowed = allowed.join(", ");
        Err(ConfigError(format!(
            "provider {provider:?} is not allowed here: {key} names only [{allowed}]"
        )))
    }

    /// A text that config.yaml has, or else the environment.
    pub(crate) fn text(&self, key: &str, variable: Option<&str>) -> Option<String> {
        let own = self.attr.and_then(|attr| attr.get(key)).and_then(Value::as_str);
        let own = own.map(str::to_owned);
        let found = own.or_else(|| std::env::var(variable?).ok());
        found.filter(|text| !text.is_empty())
    }

    /// The URL of an endpoint, without a slash at its end.
    pub(crate) fn url(
        &self,
        key: &str,
        variable: Option<&str>,
    ) -> Result<Option<String>, ConfigError> {
        let Some(url) = self.text(key, variable) else { return Ok(None) };
        let checked = sluicegate_fetch::Endpoint::parse(&url);
        let plugin = self.plugin;
        checked.map_err(|why| ConfigError(format!("plugin_attr.{plugin}.{key}: {why}")))?;
        Ok(Some(url.trim_end_matches('/').to_owned()))
    }
}

/// Texts of a route that go into tokens, forms or paths.
pub(crate) fn plain(field: &str, text: &str) -> Result<(), ConfigError> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(ConfigError(format!("`{field}` is empty or has control characters")));
    }
    Ok(())
}

/// The identities of this gateway.
fn tokens(deps: &UpstreamDeps) -> Tokens {
    let kept: Arc<TokenIdentities> = deps.state.get();
    let make = || {
        let system = sluicegate_identity::System::new(Arc::new(deps.clone()));
        Tokens::new(Arc::new(system), Arc::new(SystemClock), deps.background.clone())
    };
    kept.0.get_or_init(make).clone()
}

/// The identities of all routes that have tokens, and how they stand. Kept for as long as the gateway
/// runs.
#[derive(Default)]
pub struct TokenIdentities(OnceLock<Tokens>);

impl TokenIdentities {
    /// How each identity in use stands.
    pub fn statuses(&self) -> Vec<IdentityStatus> {
        self.0.get().map(Tokens::statuses).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_provider_is_allowed_by_config_yaml_and_the_routes_own_keys_are_by_default() {
        let known = ["key", "metadata"];
        let ask = |attr: Option<Value>, provider| {
            let attr = Attr { plugin: "p", attr: attr.as_ref(), unknown: false };
            attr.allows(provider, "key", &known).map_err(|error| error.to_string())
        };
        let only = |names: &str| {
            format!(
                "is not allowed here: plugin_attr.p.allowed_providers in config.yaml names only {names}"
            )
        };
        for (attr, provider, expected) in [
            (None, "key", Ok(())),
            (Some(Value::Null), "key", Ok(())),
            (None, "metadata", Err(only("[key]"))),
            (Some(json!({"other": 1})), "metadata", Err(only("[key]"))),
            (Some(json!({"allowed_providers": ["metadata"]})), "metadata", Ok(())),
            (Some(json!({"allowed_providers": ["metadata"]})), "key", Err(only("[metadata]"))),
            (Some(json!({"allowed_providers": []})), "key", Err(only("[]"))),
            (
                Some(json!({"allowed_providers": ["metadata", "meta"]})),
                "metadata",
                Err("there is no provider \"meta\"; there are key, metadata".to_owned()),
            ),
            (
                Some(json!({"allowed_providers": "metadata"})),
                "metadata",
                Err("is no list".to_owned()),
            ),
        ] {
            match (ask(attr.clone(), provider), expected) {
                (Ok(()), Ok(())) => {}
                (Err(told), Err(expected)) if told.ends_with(&expected) => {}
                (told, expected) => panic!("{attr:?} {provider}: {told:?}, not {expected:?}"),
            }
        }
    }
}

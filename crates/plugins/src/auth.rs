//! What the plugins share that tell who sends a request: the challenge, the anonymous consumer, and
//! what a request is told that is not believed.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

use ::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::consumer::Credential;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{ConfigError, Flow};
use subtle::ConstantTimeEq;
use tracing::warn;

/// The members of a configuration that every such plugin has.
#[derive(Debug, Deserialize)]
pub(crate) struct GateConfig {
    realm: String,
    hide_credentials: bool,
    anonymous_consumer: Option<String>,
}

/// What becomes of a request once it is known who sends it, or that nobody can tell.
pub(crate) struct Gate {
    plugin: &'static str,
    /// The value of `WWW-Authenticate`.
    challenge: Box<str>,
    hide: bool,
    anonymous: Option<Box<str>>,
}

impl Gate {
    /// The JSON schema of [`GateConfig`]'s members.
    pub(crate) fn schema(realm: &str, mut properties: Value) -> Value {
        properties["hide_credentials"] = json!({"type": "boolean", "default": false});
        properties["realm"] = json!({
            "type": "string",
            "pattern": "^[ -!#-[\\]-~]+$",
            "default": realm,
            "minLength": 1,
            "maxLength": 128,
        });
        properties["anonymous_consumer"] = json!({"type": "string", "minLength": 1});
        json!({"type": "object", "properties": properties})
    }

    /// `scheme` is the authentication scheme that clients are told.
    pub(crate) fn new(plugin: &'static str, scheme: &str, config: GateConfig) -> Self {
        Self {
            plugin,
            challenge: format!("{scheme} realm=\"{}\"", config.realm).into(),
            hide: config.hide_credentials,
            anonymous: config.anonymous_consumer.map(Into::into),
        }
    }

    /// Lets the consumer in that was found; or else the anonymous one, or nobody. `hide` takes what
    /// the client showed out of the request, where the upstream is not to see it.
    pub(crate) fn pass(
        &self,
        exchange: &mut Exchange,
        found: Result<Arc<Credential>, Denied>,
        hide: impl FnOnce(&mut Exchange),
    ) -> Flow {
        let (consumer, credential) = match found {
            Ok(credential) => (credential.consumer.clone(), Some(credential)),
            Err(denied) if denied.status != StatusCode::UNAUTHORIZED => {
                return self.refuse(exchange, denied);
            }
            Err(denied) => {
                let Some(name) = &self.anonymous else { return self.refuse(exchange, denied) };
                match exchange.snapshot.consumers.named(name) {
                    Some(consumer) => (consumer.clone(), None),
                    None => {
                        let cause = format!("failed to get anonymous consumer {name}");
                        let denied = Denied::because("Invalid user authorization", cause);
                        return self.refuse(exchange, denied);
                    }
                }
            }
        };
        if self.hide {
            hide(exchange);
        }
        exchange.attach_consumer(consumer, credential.as_deref());
        Flow::Continue
    }

    fn refuse(&self, exchange: &mut Exchange, denied: Denied) -> Flow {
        let Denied { status, message, cause } = denied;
        match exchange.notes.get_mut::<Causes>() {
            Some(causes) => {
                let cause = cause.as_deref().unwrap_or(&message);
                causes.0.push(format!(
                    "{} failed to authenticate the request, code: {}. error: {cause}",
                    self.plugin,
                    status.as_u16()
                ));
            }
            None => {
                if let Some(cause) = cause {
                    warn!(
                        plugin = self.plugin,
                        route = exchange.route_id(),
                        client = %exchange.remote_addr,
                        cause,
                        "A request was not authenticated."
                    );
                }
            }
        }
        let mut response = Response::message(status, &json!({"message": message}));
        if status == StatusCode::UNAUTHORIZED {
            response.headers.set("WWW-Authenticate", self.challenge.as_bytes());
        }
        Flow::Respond(response)
    }
}

/// Why nobody can tell who sends a request.
#[derive(Debug)]
pub(crate) struct Denied {
    status: StatusCode,
    /// For the client.
    message: Cow<'static, str>,
    /// For the log, where it is more than the client learns. Never a secret.
    cause: Option<String>,
}

impl Denied {
    /// What the client is told says it all.
    pub(crate) fn told(message: &'static str) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, message: message.into(), cause: None }
    }

    /// The log tells more than the client.
    pub(crate) fn because(message: impl Into<Cow<'static, str>>, cause: impl Display) -> Self {
        let (message, cause) = (message.into(), Some(cause.to_string()));
        Self { status: StatusCode::UNAUTHORIZED, message, cause }
    }

    /// It is not about who sends the request, and the anonymous consumer is no way out.
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }
}

/// Collects why plugins did not know who sends a request, instead of the log: `multi-auth` asks
/// several.
#[derive(Default)]
pub(crate) struct Causes(pub(crate) Vec<String>);

/// The credential of `plugin` with this key, or why there is none.
pub(crate) fn find(
    exchange: &Exchange,
    plugin: &str,
    key: &[u8],
    unknown: &'static str,
) -> Result<Arc<Credential>, &'static str> {
    let consumers = &exchange.snapshot.consumers;
    match consumers.find(plugin, key) {
        Some(credential) => Ok(credential.clone()),
        None if consumers.any(plugin) => Err(unknown),
        None => Err("Missing related consumer"),
    }
}

/// Are these the same? Takes as long for every text of one length.
pub(crate) fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// A consumer's configuration as its own type; it passed its schema.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(config: Value) -> Result<T, ConfigError> {
    serde_json::from_value(config).map_err(|e| ConfigError(e.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::PluginTest;

    use sluicegate_gateway::plugin::Plugin;

    use super::*;
    use crate::KeyAuth;

    /// A request through a plugin of a gateway that knows [`people`].
    pub(crate) fn test<P: Plugin>() -> PluginTest<P> {
        PluginTest::new().registry(crate::registry()).resources(people())
    }

    /// Consumers `jack` and `rose`, who have something for every plugin, and `anyone`, who has not.
    pub(crate) fn people() -> Vec<(Kind, &'static str, Value)> {
        let plugins = |name: &str| {
            let password = if name == "rose" { "rose pass: ü" } else { "jack-pass" };
            json!({
                "key-auth": {"key": format!("{name}-key")},
                "basic-auth": {"username": name, "password": password},
                "jwt-auth": {"key": format!("{name}-jwt"), "secret": format!("{name}-secret")},
                "hmac-auth": {"key_id": format!("{name}-id"), "secret_key": format!("{name}-secret")},
            })
        };
        vec![
            (Kind::Consumers, "jack", json!({"username": "jack", "plugins": plugins("jack")})),
            (
                Kind::Consumers,
                "rose",
                json!({"username": "rose", "labels": {"custom_id": "42"}, "plugins": plugins("rose")}),
            ),
            (Kind::Consumers, "anyone", json!({"username": "anyone", "plugins": {}})),
        ]
    }

    #[test]
    fn a_realm_is_printable_and_stands_in_the_challenge() {
        let mut registry = sluicegate_gateway::plugin::Registry::default();
        registry.add::<KeyAuth>();
        let plugin = registry.get("key-auth").expect("it was added");
        for (realm, taken) in [
            ("a realm ]!~", true),
            ("", false),
            ("a\"b", false),
            ("a\\b", false),
            ("a\nb", false),
            ("ä", false),
            (&"r".repeat(128), true),
            (&"r".repeat(129), false),
        ] {
            let checked = (plugin.info.check)(&json!({"realm": realm}));
            assert_eq!(checked.is_ok(), taken, "{realm:?} {checked:?}");
        }
        let ran = PluginTest::<KeyAuth>::new().config(json!({"realm": "a realm ]!~"})).run();
        assert_eq!(ran.response.header("www-authenticate"), Some("apikey realm=\"a realm ]!~\""));
    }

    #[test]
    fn who_cannot_be_told_is_the_anonymous_consumer_where_there_is_one() {
        for (anonymous, key, status, name) in [
            ("anyone", None, 200, Some("anyone")),
            ("anyone", Some("wrong"), 200, Some("anyone")),
            ("anyone", Some("jack-key"), 200, Some("jack")),
            ("nobody", None, 401, None),
            ("nobody", Some("jack-key"), 200, Some("jack")),
        ] {
            let ran = test::<KeyAuth>()
                .config(json!({"anonymous_consumer": anonymous}))
                .request_header("apikey", key)
                .request_header("X-Consumer-Username", Some("root"))
                .request_header("X-Credential-Identifier", Some("root"))
                .request_header("X-Consumer-Custom-ID", Some("root"))
                .run();
            assert_eq!(ran.status, status, "{anonymous} {key:?}");
            if let Some(name) = name {
                let header = |name: &str| ran.sent_header(name);
                assert_eq!(header("x-consumer-username"), Some(name));
                assert_eq!(header("x-credential-identifier"), None);
                assert_eq!(header("x-consumer-custom-id"), None);
            } else {
                assert_eq!(ran.body(), "{\"message\":\"Invalid user authorization\"}\n");
            }
        }
    }

    #[test]
    fn the_upstream_learns_consumer_credential_and_custom_id() {
        let mut resources = people();
        let credential = json!({"plugins": {"key-auth": {"key": "second"}}});
        resources.push((Kind::Credentials, "rose/credentials/two", credential));
        for (key, credential) in [("rose-key", None), ("second", Some("two"))] {
            let ran = test::<KeyAuth>()
                .resources(resources.clone())
                .request_header("apikey", Some(key))
                .run();
            assert_eq!(ran.sent_header("x-consumer-username"), Some("rose"));
            assert_eq!(ran.sent_header("x-consumer-custom-id"), Some("42"));
            assert_eq!(ran.sent_header("x-credential-identifier"), credential);
        }
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        for (a, b, same) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "b", false),
            ("a", "", false),
            ("ab", "a", false),
        ] {
            assert_eq!(same_secret(a.as_bytes(), b.as_bytes()), same, "{a} {b}");
        }
    }
}

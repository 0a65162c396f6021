//! `consumer-restriction`: lets some consumers, groups, routes or services in and others not.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/consumer-restriction/>

use std::collections::{HashMap, HashSet};

use ::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct ConsumerRestriction {
    kind: Kind,
    blacklist: HashSet<Box<str>>,
    /// `None`: everybody.
    whitelist: Option<HashSet<Box<str>>>,
    /// Methods of each user that is named.
    methods: HashMap<Box<str>, Box<[Box<str>]>>,
    status: StatusCode,
    message: Box<str>,
}

impl Plugin for ConsumerRestriction {
    const NAME: &'static str = "consumer-restriction";
    const PRIORITY: i32 = 2400;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let names = json!({"type": "array", "minItems": 1, "items": {"type": "string"}});
        json!({
            "type": "object",
            "properties": {
                "type": {
                    "type": "string",
                    "enum": ["consumer_name", "service_id", "route_id", "consumer_group_id"],
                    "default": "consumer_name",
                },
                "blacklist": names,
                "whitelist": names,
                "allowed_by_methods": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "user": {"type": "string"},
                            "methods": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "description": "HTTP method",
                                    "type": "string",
                                    "enum": [
                                        "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD",
                                        "OPTIONS", "CONNECT", "TRACE", "PURGE",
                                    ],
                                },
                            },
                        },
                    },
                },
                "rejected_code": {"type": "integer", "minimum": 200, "default": 403},
                "rejected_msg": {"type": "string"},
            },
            "anyOf": [
                {"required": ["blacklist"]},
                {"required": ["whitelist"]},
                {"required": ["allowed_by_methods"]},
            ],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let code = config.rejected_code;
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        let status =
            status.ok_or_else(|| ConfigError(format!("`rejected_code` is no status: {code}")))?;
        let names = |list: Vec<String>| list.into_iter().map(Into::into).collect();
        let mut methods = HashMap::new();
        for allowed in config.allowed_by_methods {
            if let Some(user) = allowed.user {
                // As in APISIX, the first entry of a user counts.
                methods.entry(user.into()).or_insert_with(|| {
                    allowed.methods.into_iter().map(String::into_boxed_str).collect()
                });
            }
        }
        let message = config.rejected_msg;
        Ok(Self {
            kind: config.kind,
            blacklist: names(config.blacklist),
            whitelist: (!config.whitelist.is_empty()).then(|| names(config.whitelist)),
            methods,
            status,
            message: message
                .unwrap_or_else(|| format!("The {} is forbidden.", config.kind.name()))
                .into(),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let Some(value) = self.kind.of(exchange) else {
            let kind = self.kind.name();
            let message =
                format!("The request is rejected, please check the {kind} for this request");
            return Ok(refused(StatusCode::UNAUTHORIZED, &message));
        };
        let method = exchange.request.method.as_str();
        Ok(match self.allows(value, method) {
            true => Flow::Continue,
            false => refused(self.status, &self.message),
        })
    }
}

impl ConsumerRestriction {
    fn allows(&self, value: &str, method: &str) -> bool {
        if self.blacklist.contains(value) {
            return false;
        }
        match &self.whitelist {
            // Who is on the list may use every method.
            Some(list) => list.contains(value),
            None => match self.methods.get(value) {
                Some(methods) => methods.iter().any(|allowed| **allowed == *method),
                None => true,
            },
        }
    }
}

fn refused(status: StatusCode, message: &str) -> Flow {
    Flow::Respond(Response::message(status, &json!({"message": message})))
}

/// What is compared.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    ConsumerName,
    ServiceId,
    RouteId,
    ConsumerGroupId,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::ConsumerName => "consumer_name",
            Self::ServiceId => "service_id",
            Self::RouteId => "route_id",
            Self::ConsumerGroupId => "consumer_group_id",
        }
    }

    fn of(self, exchange: &Exchange) -> Option<&str> {
        match self {
            Self::ConsumerName => exchange.consumer.as_ref().map(|consumer| &*consumer.name),
            Self::ConsumerGroupId => exchange.consumer.as_ref()?.group_id.as_deref(),
            Self::RouteId => exchange.route.as_ref().map(|route| &*route.id),
            Self::ServiceId => Some(exchange.route.as_ref()?.service.as_ref()?.0.as_str()),
        }
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    blacklist: Vec<String>,
    #[serde(default)]
    whitelist: Vec<String>,
    #[serde(default)]
    allowed_by_methods: Vec<Allowed>,
    rejected_code: u64,
    rejected_msg: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Allowed {
    user: Option<String>,
    #[serde(default)]
    methods: Vec<String>,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;

    fn compiled(config: Value) -> ConsumerRestriction {
        let mut config = config;
        config["type"] = json!("consumer_name");
        config["rejected_code"] = json!(403);
        let ctx = CompileCtx { metadata: None, attr: None, owner: "", deps: None, upstreams: None };
        let config = serde_json::from_value(config).expect("it is whole");
        ConsumerRestriction::compile(config, &ctx).expect("it is right")
    }

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<ConsumerRestriction>::check_schema(&json!({"whitelist": ["a"]}));
    }

    #[test]
    fn the_black_list_comes_first_then_the_white_one_and_then_methods() {
        let black = json!({"blacklist": ["jack"]});
        let white = json!({"whitelist": ["jack"]});
        let both = json!({"whitelist": ["jack", "rose"], "blacklist": ["jack"]});
        let get = json!({"allowed_by_methods": [
            {"user": "jack", "methods": ["GET"]}, {"user": "jack", "methods": ["POST"]},
            {"user": "rose"},
        ]});
        let white_get = json!({
            "whitelist": ["rose"],
            "allowed_by_methods": [{"user": "jack", "methods": ["GET"]}, {"user": "rose", "methods": ["PUT"]}],
        });
        for (config, value, method, allowed) in [
            (&black, "jack", "GET", false),
            (&black, "rose", "GET", true),
            (&white, "jack", "GET", true),
            (&white, "rose", "GET", false),
            (&both, "jack", "GET", false),
            (&both, "rose", "GET", true),
            (&get, "jack", "GET", true),
            (&get, "jack", "POST", false),
            (&get, "rose", "GET", false),
            (&get, "else", "POST", true),
            (&white_get, "jack", "GET", false),
            (&white_get, "rose", "GET", true),
        ] {
            assert_eq!(compiled(config.clone()).allows(value, method), allowed, "{config} {value}");
        }
    }

    #[test]
    fn who_is_not_let_in_is_told_so() {
        for (config, status, message) in [
            (json!({"type": "route_id", "blacklist": ["1"]}), 403, "The route_id is forbidden."),
            (
                json!({"type": "route_id", "whitelist": ["2"], "rejected_code": 402, "rejected_msg": "no"}),
                402,
                "no",
            ),
            (
                json!({"whitelist": ["jack"]}),
                401,
                "The request is rejected, please check the consumer_name for this request",
            ),
            (
                json!({"type": "service_id", "whitelist": ["s"]}),
                401,
                "The request is rejected, please check the service_id for this request",
            ),
            (
                json!({"type": "consumer_group_id", "whitelist": ["g"]}),
                401,
                "The request is rejected, please check the consumer_group_id for this request",
            ),
        ] {
            let ran = PluginTest::<ConsumerRestriction>::new().config(config).run();
            assert_eq!(ran.status, status);
            assert_eq!(ran.response.json(), json!({"message": message}));
        }
        let config = json!({"type": "route_id", "whitelist": ["1"]});
        assert_eq!(PluginTest::<ConsumerRestriction>::new().config(config).run().status, 200);
    }

    #[test]
    fn a_status_that_is_none_is_refused() {
        let mut registry = sluicegate_gateway::plugin::Registry::default();
        registry.add::<ConsumerRestriction>();
        let plugin = registry.get(ConsumerRestriction::NAME).expect("it was added");
        let config = json!({"whitelist": ["a"], "rejected_code": 1000});
        let error = (plugin.info.check)(&config).expect_err("there is no such status");
        assert_eq!(error, "`rejected_code` is no status: 1000");
    }
}

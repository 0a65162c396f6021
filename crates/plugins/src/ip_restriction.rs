//! `ip-restriction`: only some addresses may use a route, or some may not.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/ip-restriction/>

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::IpSet;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct IpRestriction {
    addresses: IpSet,
    /// The addresses are those that may.
    allows: bool,
    status: StatusCode,
    message: Value,
}

impl Plugin for IpRestriction {
    const NAME: &'static str = "ip-restriction";
    const PRIORITY: i32 = 3000;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let addresses = json!({"type": "array", "items": {"anyOf": ip_schemas()}, "minItems": 1});
        json!({
            "type": "object",
            "properties": {
                "message": {
                    "type": "string", "minLength": 1, "maxLength": 1024,
                    "default": "Your IP address is not allowed",
                },
                "response_code": {"type": "integer", "minimum": 403, "maximum": 404, "default": 403},
                "whitelist": addresses,
                "blacklist": addresses,
            },
            "oneOf": [{"required": ["whitelist"]}, {"required": ["blacklist"]}],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let allows = config.whitelist.is_some();
        let addresses = config.whitelist.or(config.blacklist).unwrap_or_default();
        Ok(Self {
            addresses: IpSet::parse(&addresses).map_err(ConfigError)?,
            allows,
            // The schema has it 403 or 404.
            status: StatusCode::from_u16(config.response_code).unwrap_or(StatusCode::FORBIDDEN),
            message: json!({"message": config.message}),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        Ok(match self.addresses.contains(exchange.remote_addr) == self.allows {
            true => Flow::Continue,
            false => Flow::Respond(Response::message(self.status, &self.message)),
        })
    }
}

/// The forms of an address or a range of them, as APISIX's schemas have them.
pub(crate) fn ip_schemas() -> Value {
    const BYTE: &str = "([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])";
    const GROUP: &str = "[a-fA-F0-9]{0,4}";
    let v4 = [BYTE; 4].join(r"\.");
    json!([
        {"title": "IPv4", "type": "string", "format": "ipv4"},
        {"title": "IPv4/CIDR", "type": "string", "pattern": format!("^{v4}/([12]?[0-9]|3[0-2])$")},
        {"title": "IPv6", "type": "string", "format": "ipv6"},
        {
            "title": "IPv6/CIDR", "type": "string",
            "pattern": format!("^({GROUP}:){{1,8}}(:{GROUP}){{0,8}}({GROUP})?/[0-9]{{1,3}}$"),
        },
    ])
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    message: String,
    response_code: u16,
    whitelist: Option<Vec<String>>,
    blacklist: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn addresses_pass_by_the_list_they_are_on() {
        for (config, status, body) in [
            (json!({"whitelist": ["127.0.0.0/24", "10.0.0.1"]}), 200, ""),
            (
                json!({"whitelist": ["10.0.0.1", "::1"]}),
                403,
                "{\"message\":\"Your IP address is not allowed\"}\n",
            ),
            (json!({"blacklist": ["127.0.0.1"], "message": "no"}), 403, "{\"message\":\"no\"}\n"),
            (
                json!({"blacklist": ["127.0.0.1"], "response_code": 404}),
                404,
                "{\"message\":\"Your IP address is not allowed\"}\n",
            ),
            (json!({"blacklist": ["::/0"]}), 200, ""),
        ] {
            let ran = PluginTest::<IpRestriction>::new().config(config.clone()).run();
            assert_eq!((ran.status, ran.body().as_str()), (status, body), "{config}");
            if status != 200 {
                let kind = ran.response.header("content-type");
                assert_eq!(kind, Some("text/plain; charset=utf-8"));
            }
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<IpRestriction>::check_schema(&json!({"whitelist": ["::1"]}));
        for (config, error) in [
            (json!({"whitelist": ["::1", "::1/129"]}), "invalid ip address: ::1/129"),
            (
                json!({"blacklist": ["10.0.0.256"]}),
                "property \"blacklist\" validation failed: failed to validate item 1",
            ),
            (json!({"blacklist": ["127.0.0.1/33"]}), "property \"blacklist\" validation failed"),
            (json!({}), "value should match only one schema, but matches none"),
            (
                json!({"whitelist": ["::1"], "response_code": 500}),
                "property \"response_code\" validation failed",
            ),
        ] {
            let said = crate::tests::refusal::<IpRestriction>(&config);
            assert!(said.starts_with(error), "{config}: {said}");
        }
    }
}

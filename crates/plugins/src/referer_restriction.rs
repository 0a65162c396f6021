//! `referer-restriction`: only links from some sites lead to a route, or those from some do not.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/referer-restriction/>

use std::collections::HashSet;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::http::Known;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct RefererRestriction {
    hosts: HashSet<String>,
    /// Ends of hosts: `*.test` without its `*`.
    suffixes: Vec<String>,
    /// The hosts are those that may.
    allows: bool,
    bypass_missing: bool,
    message: Value,
}

impl Plugin for RefererRestriction {
    const NAME: &'static str = "referer-restriction";
    const PRIORITY: i32 = 2990;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let hosts = json!({
            "type": "array",
            "items": {"type": "string", "pattern": r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$"},
            "minItems": 1,
        });
        json!({
            "type": "object",
            "properties": {
                "bypass_missing": {"type": "boolean", "default": false},
                "whitelist": hosts,
                "blacklist": hosts,
                "message": {
                    "type": "string", "minLength": 1, "maxLength": 1024,
                    "default": "Your referer host is not allowed",
                },
            },
            "oneOf": [{"required": ["whitelist"]}, {"required": ["blacklist"]}],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let allows = config.whitelist.is_some();
        let (mut hosts, mut suffixes) = (HashSet::new(), Vec::new());
        for host in config.whitelist.or(config.blacklist).unwrap_or_default() {
            match host.strip_prefix('*') {
                // Differs: APISIX compares hosts with regard to case.
                Some(suffix) => suffixes.push(suffix.to_ascii_lowercase()),
                None => drop(hosts.insert(host.to_ascii_lowercase())),
            }
        }
        let message = json!({"message": config.message});
        Ok(Self { hosts, suffixes, allows, bypass_missing: config.bypass_missing, message })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let referer = exchange.request.headers.known(Known::Referer);
        let host = referer.and_then(|referer| host_of(std::str::from_utf8(referer).ok()?));
        let passes = match host {
            None => self.bypass_missing,
            Some(host) => {
                let host = host.to_ascii_lowercase();
                let listed = self.hosts.contains(&host)
                    || self.suffixes.iter().any(|suffix| host.ends_with(suffix.as_str()));
                listed == self.allows
            }
        };
        Ok(match passes {
            true => Flow::Continue,
            false => Flow::Respond(Response::message(StatusCode::FORBIDDEN, &self.message)),
        })
    }
}

/// The host of a URL, without port; `None`: it is none.
fn host_of(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    // Differs: APISIX takes a user name for the host, and knows no IPv6 address.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match authority.find(']') {
        Some(end) if authority.starts_with('[') => &authority[..=end],
        _ => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    bypass_missing: bool,
    whitelist: Option<Vec<String>>,
    blacklist: Option<Vec<String>>,
    message: String,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn hosts_are_found_in_urls() {
        for (url, host) in [
            ("http://a.test/x", Some("a.test")),
            ("https://a.test:81?x", Some("a.test")),
            ("HTTP://a.test", Some("a.test")),
            ("http://good.test@evil.test/", Some("evil.test")),
            ("http://[::1]:81/", Some("[::1]")),
            ("ftp://a.test", None),
            ("//a.test", None),
            ("http:///x", None),
            ("", None),
        ] {
            assert_eq!(host_of(url), host, "{url}");
        }
    }

    #[test]
    fn referers_pass_by_the_list_they_are_on() {
        let allow = json!({"whitelist": ["a.test", "*.b.test"]});
        let deny = json!({"blacklist": ["a.test"], "message": "no", "bypass_missing": true});
        for (config, referer, status) in [
            (&allow, Some("http://a.test/x"), 200),
            (&allow, Some("https://x.B.test"), 200),
            (&allow, Some("https://b.test"), 403),
            (&allow, Some("http://c.test"), 403),
            (&allow, Some("nonsense"), 403),
            (&allow, None, 403),
            (&deny, Some("http://a.test:80"), 403),
            (&deny, Some("http://c.test"), 200),
            (&deny, Some("nonsense"), 200),
            (&deny, None, 200),
        ] {
            let ran = PluginTest::<RefererRestriction>::new()
                .config(config.clone())
                .request_header("Referer", referer)
                .run();
            assert_eq!(ran.status, status, "{config} {referer:?}");
            if status == 403 {
                let message =
                    config["message"].as_str().unwrap_or("Your referer host is not allowed");
                assert_eq!(ran.response.json(), json!({"message": message}));
            }
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<RefererRestriction>::check_schema(&json!({"blacklist": ["a"]}));
        for config in [json!({"blacklist": ["a b"]}), json!({}), json!({"whitelist": []})] {
            assert!(!crate::tests::refusal::<RefererRestriction>(&config).is_empty());
        }
    }
}

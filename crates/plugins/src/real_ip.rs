//! `real-ip`: take the client's address from a variable, for one route.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/real-ip/>

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::expr::{IpSet, VarName, Vars};
use sluicegate_gateway::http::Known;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use tracing::debug;

use crate::ip_restriction::ip_schemas;

/// The plugin, compiled.
pub struct RealIp {
    /// Whom to believe; `None`: everybody.
    trusted: Option<IpSet>,
    source: Source,
    recursive: bool,
}

enum Source {
    ForwardedFor,
    Var(VarName),
}

impl Plugin for RealIp {
    const NAME: &'static str = "real-ip";
    const PRIORITY: i32 = 23000;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "trusted_addresses": {
                    "type": "array", "items": {"anyOf": ip_schemas()}, "minItems": 1,
                },
                "source": {"type": "string", "minLength": 1},
                "recursive": {"type": "boolean", "default": false},
            },
            "required": ["source"],
        })
    }

    fn compile(config: Config, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let trusted = config.trusted_addresses.map(IpSet::parse).transpose();
        Ok(Self {
            trusted: trusted.map_err(ConfigError)?,
            source: match config.source.as_str() {
                "http_x_forwarded_for" => Source::ForwardedFor,
                name => Source::Var(VarName::parse(name)),
            },
            recursive: config.recursive,
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if self.trusted.as_ref().is_some_and(|trusted| !trusted.contains(exchange.remote_addr)) {
            return Ok(Flow::Continue);
        }
        match self.found(exchange) {
            Some((addr, port)) => {
                exchange.remote_addr = addr;
                exchange.remote_port = port.unwrap_or(0);
            }
            None => {
                debug!(route = exchange.route_id(), "A request names no address of its client.")
            }
        }
        Ok(Flow::Continue)
    }
}

impl RealIp {
    fn found(&self, exchange: &Exchange) -> Option<(IpAddr, Option<u16>)> {
        match &self.source {
            Source::Var(name) => {
                let value = exchange.var(name);
                address(&value.as_ref()?.to_bytes()?)
            }
            Source::ForwardedFor => {
                let last = exchange.request.headers.all_known(Known::XForwardedFor).last()?;
                let mut list = last.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                let trusted = self.trusted.as_ref().filter(|_| self.recursive);
                let mut found = list.next()?;
                for next in list {
                    let believed = |trusted: &IpSet| {
                        address(found).is_some_and(|(addr, _)| trusted.contains(addr))
                    };
                    if !trusted.is_some_and(believed) {
                        break;
                    }
                    found = next;
                }
                address(found)
            }
        }
    }
}

/// An address with or without a port.
fn address(text: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Some((addr, None));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return (socket.port() != 0).then(|| (socket.ip(), Some(socket.port())));
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    Some((inner.parse().ok()?, None))
}

/// A configuration. Defaults come from the schema.
#[derive(Debug, Deserialize)]
pub struct Config {
    trusted_addresses: Option<Vec<String>>,
    source: String,
    recursive: bool,
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::plugin::PluginTest;

    use super::*;

    #[test]
    fn the_address_comes_from_its_source_if_the_peer_is_believed() {
        let arg = json!({"source": "arg_realip"});
        let far = json!({"source": "arg_realip", "trusted_addresses": ["10.0.0.0/8"]});
        let near = json!({"source": "arg_realip", "trusted_addresses": ["127.0.0.0/24"]});
        let list = json!({"source": "http_x_forwarded_for"});
        let deep = json!({"source": "http_x_forwarded_for", "recursive": true, "trusted_addresses": ["127.0.0.1", "192.0.2.0/24"]});
        for (config, target, forwarded, address) in [
            (&arg, "/?realip=1.2.3.4", None, "1.2.3.4"),
            (&arg, "/?realip=1.2.3.4:80", None, "1.2.3.4"),
            (&arg, "/?realip=[::2]:80", None, "::2"),
            (&arg, "/?realip=::2", None, "::2"),
            (&arg, "/?realip=[::2]", None, "::2"),
            (&arg, "/?realip=1.2.3.4:0", None, "127.0.0.1"),
            (&arg, "/?realip=1.2.3.4:99999", None, "127.0.0.1"),
            (&arg, "/?realip=x", None, "127.0.0.1"),
            (&arg, "/", None, "127.0.0.1"),
            (&far, "/?realip=1.2.3.4", None, "127.0.0.1"),
            (&near, "/?realip=1.2.3.4", None, "1.2.3.4"),
            (&list, "/", Some("1.1.1.1, 2.2.2.2"), "2.2.2.2"),
            (&list, "/", Some("1.1.1.1"), "1.1.1.1"),
            (&deep, "/", Some("1.1.1.1, 3.3.3.3,192.0.2.1, 192.0.2.7"), "3.3.3.3"),
            (&deep, "/", Some("192.0.2.9, 192.0.2.7"), "192.0.2.9"),
        ] {
            let ran = PluginTest::<RealIp>::new()
                .config(config.clone())
                .request("GET", target)
                .request_header("X-Forwarded-For", forwarded)
                .run();
            assert_eq!(
                ran.sent_header("x-real-ip"),
                Some(address),
                "{config} {target} {forwarded:?}"
            );
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        PluginTest::<RealIp>::check_schema(&json!({"source": "arg_a"}));
        for config in [json!({}), json!({"source": "a", "trusted_addresses": ["x"]})] {
            assert!(!crate::tests::refusal::<RealIp>(&config).is_empty());
        }
    }
}

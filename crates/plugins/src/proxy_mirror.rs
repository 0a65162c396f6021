//! `proxy-mirror`: send a copy of each request, or of some, to another server and forget its answer.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/proxy-mirror/>
//!
//! The copy goes out when the request does (see [`sluicegate_gateway::mirror`]), which also is where
//! its limits are.
//!
//! Differs: APISIX does not copy requests that a function answers, holds a request up until its body
//! is there whole, and does not let go of the client before the copy is answered.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::client::Timeouts;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::mirror::{Mirror, MirrorServer};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct ProxyMirror {
    server: Arc<MirrorServer>,
    target: Target,
    /// A request is copied when a random number is below it; `None`: always.
    sample_below: Option<u64>,
}

/// Which path a copy has.
enum Target {
    /// The request's.
    Same,
    /// This one in its place.
    Replaced(Box<str>),
    /// This one in front of it.
    Prefixed(Box<str>),
}

impl Plugin for ProxyMirror {
    const NAME: &'static str = "proxy-mirror";
    const PRIORITY: i32 = 1010;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "host": {
                    "type": "string",
                    "pattern":
                        r"^(http(s)?|grpc(s)?):\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?$",
                },
                "path": {"type": "string", "pattern": "^/[^?&]+$"},
                "path_concat_mode": {
                    "type": "string",
                    "default": "replace",
                    "enum": ["replace", "prefix"],
                    "description": "Whether path takes the place of the request's or stands before it.",
                },
                "sample_ratio": {
                    "type": "number", "minimum": 0.00001, "maximum": 1, "default": 1,
                },
            },
            "required": ["host"],
        })
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let timeouts = timeouts(ctx.attr.and_then(|attr| attr.get("timeout")))?;
        let server = MirrorServer::compile("host", &config.host, timeouts, ctx)?;
        // The path of a gRPC call names what is called.
        let path = config.path.filter(|_| !server.is_h2());
        Ok(Self {
            target: match (path, config.path_concat_mode) {
                (None, _) => Target::Same,
                (Some(path), Concat::Replace) => Target::Replaced(path.into()),
                (Some(path), Concat::Prefix) => Target::Prefixed(path.into()),
            },
            server: Arc::new(server),
            sample_below: below(config.sample_ratio),
        })
    }

    fn waits(&self) -> bool {
        false
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let sampled = self.sample_below.is_none_or(|below| {
            let mut random = [0; 8];
            exchange.core.random(&mut random);
            u64::from_ne_bytes(random) < below
        });
        if sampled {
            let mirror = Mirror { server: self.server.clone(), target: self.target(exchange) };
            exchange.mirrors.push(mirror);
        }
        Ok(Flow::Continue)
    }
}

impl ProxyMirror {
    /// As far as it is known now: what plugins behind this one make of path and query, a copy does
    /// not have, as in APISIX.
    fn target(&self, exchange: &Exchange) -> Option<Vec<u8>> {
        if self.server.is_h2() {
            return None;
        }
        Some(match &self.target {
            Target::Same => exchange.target_for_upstream(),
            Target::Prefixed(path) => [path.as_bytes(), &exchange.target_for_upstream()].concat(),
            Target::Replaced(path) => {
                let query = exchange.query().filter(|query| !query.is_empty());
                let mark: &[u8] = if query.is_some() { b"?" } else { b"" };
                [path.as_bytes(), mark, query.unwrap_or_default()].concat()
            }
        })
    }
}

/// The random number below which a request is copied; `None` for all of them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a ratio between 0 and 1 of all there are, as exact as it was written"
)]
fn below(ratio: f64) -> Option<u64> {
    (ratio < 1.0).then_some((ratio * u64::MAX as f64) as u64)
}

/// `plugin_attr.proxy-mirror.timeout`.
fn timeouts(attr: Option<&Value>) -> Result<Timeouts, ConfigError> {
    let of = |name: &str| match attr.and_then(|attr| attr.get(name)) {
        None | Some(Value::Null) => Ok(TIMEOUT),
        Some(value) => duration(value).ok_or_else(|| {
            ConfigError(format!("`plugin_attr.proxy-mirror.timeout.{name}` is no time: {value}"))
        }),
    };
    Ok(Timeouts { connect: of("connect")?, send: of("send")?, read: of("read")? })
}

/// A time as nginx writes it: `500ms`, `60s`, `1m`, or a number of seconds.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let time = Duration::from_millis(number.checked_mul(unit_ms)?);
    (!time.is_zero() && time <= TIMEOUT_MAX).then_some(time)
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    host: String,
    path: Option<String>,
    path_concat_mode: Concat,
    sample_ratio: f64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Concat {
    Replace,
    Prefix,
}

/// To connect, between two writes and between two reads.
const TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use sluicegate_gateway::plugin::Registry;
    use sluicegate_model::kind::Kind;
    use sluicegate_testkit::client::{Client, request_bytes};
    use sluicegate_testkit::{InProcess, Origin, PluginTest};

    use super::*;
    use crate::tests::refusal;

    #[test]
    fn a_copy_has_method_fields_body_and_the_path_that_was_asked_for() {
        for (config, target, copied) in [
            (json!({}), "/a%20b/c?x=1", "/a%20b/c?x=1"),
            (json!({"path": "/p"}), "/a?x=1", "/p?x=1"),
            (json!({"path": "/p"}), "/a", "/p"),
            (json!({"path": "/p"}), "/a?", "/p"),
            (json!({"path": "/p", "path_concat_mode": "prefix"}), "/a?x=1", "/p/a?x=1"),
        ] {
            let other = Origin::text("nobody sees this");
            let mut config = config;
            config["host"] = json!(format!("http://{}", other.addr));
            let (origin, mut registry) = (Origin::text("this"), Registry::default());
            registry.add::<ProxyMirror>();
            let route = json!({
                "id": "1",
                "uri": "/*",
                "plugins": {"proxy-mirror": config},
                "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
            });
            let gateway = InProcess::start(registry, vec![(Kind::Routes, "1", route)]);
            let fields = [("Host", "a.test"), ("X-Own", "1")];
            let mut client = Client::connect(gateway.addr);
            client.send(request_bytes("POST", target, &fields, b"a body"));
            let answer = client.response();
            assert_eq!((answer.status, answer.text().as_str()), (200, "this"), "{config}");
            let copy = other.wait_for(0);
            assert_eq!((copy.method.as_str(), copy.target.as_str()), ("POST", copied), "{config}");
            assert_eq!(copy.body, b"a body");
            assert_eq!(copy.header("host"), Some("a.test"));
            assert_eq!(copy.header("x-own"), Some("1"));
            assert_eq!(origin.last().target, target, "the request itself is as it was");
            assert_eq!(origin.last().body, b"a body");
            drop(client);
            gateway.stop();
        }
    }

    #[test]
    fn a_share_of_all_requests_is_below_its_number() {
        assert_eq!(below(1.0), None);
        let below = |ratio| below(ratio).expect("it is a share");
        assert!((u64::MAX / 2).abs_diff(below(0.5)) < 1 << 12);
        assert!(below(0.00001) > 0 && below(0.00001) < u64::MAX / 99_000);
    }

    #[test]
    fn a_time_is_read_as_nginx_does() {
        for (text, ms) in [
            (json!("60s"), Some(60_000)),
            (json!("2000ms"), Some(2_000)),
            (json!(5), Some(5_000)),
            (json!("1m"), Some(60_000)),
            (json!("0"), None),
            (json!("-1s"), None),
            (json!("1d"), None),
            (json!("s"), None),
            (json!("99999h"), None),
        ] {
            assert_eq!(duration(&text), ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_configuration_is_refused_with_the_words_of_apisix() {
        for (config, says) in [
            (json!({}), "property \"host\" is required"),
            (json!({"host": "ftp://127.0.0.1:1999"}), "failed to match pattern"),
            (json!({"host": "http://127.0.0.1::1999"}), "failed to match pattern"),
            (json!({"host": "127.0.0.1:1999"}), "failed to match pattern"),
            (json!({"host": "http://127.0.0.1:1999/a"}), "failed to match pattern"),
            (json!({"host": "http://a", "path": "a"}), "failed to match pattern"),
            (json!({"host": "http://a", "path": "/a?a=c"}), "failed to match pattern"),
            (
                json!({"host": "http://a", "sample_ratio": 10}),
                "property \"sample_ratio\" validation failed: expected 10 to be at most 1",
            ),
            (json!({"host": "http://a:99999"}), "`host` has no valid port"),
        ] {
            let error = refusal::<ProxyMirror>(&config);
            assert!(error.contains(says), "{config}: {error}");
        }
        PluginTest::<ProxyMirror>::check_schema(&json!({"host": "http://a"}));
    }

    #[test]
    fn every_host_of_apisix_is_taken() {
        for host in ["http://a", "https://ab.com", "http://[::1]", "grpc://[::1]:202", "grpcs://a"]
        {
            let mut registry = Registry::default();
            registry.add::<ProxyMirror>();
            let check = &registry.get(ProxyMirror::NAME).unwrap().info.check;
            assert_eq!(check(&json!({"host": host})), Ok(()), "{host}");
        }
    }
}

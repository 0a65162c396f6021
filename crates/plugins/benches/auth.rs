//! What it costs to find the consumer of a request, and to count the request: nanoseconds per request,
//! the best of several rounds. Keys are those of 1 and of 100,000 consumers, in an order that looks
//! random; requests are counted on the gateway (`limit-count` with `policy: local`).
//!
//! `cargo bench -p sluicegate-plugins --bench auth`

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::plugin::{
    CompileCtx, ConfigError, DynPlugin, Flow, Phases, Plugin, PluginError,
};
use sluicegate_model::kind::Kind;
use sluicegate_testkit::{InProcess, client};

fn main() {
    for count in [1, 100_000] {
        let mut registry = sluicegate_plugins::registry();
        registry.add::<Measuring>();
        let names: Vec<String> = (0..count).map(|n| format!("consumer_{n}")).collect();
        let route = json!({"id": "1", "uri": "/*", "plugins": {"measuring": {"consumers": count}}});
        let mut resources = vec![(Kind::Routes, "1", route)];
        resources.extend(names.iter().enumerate().map(|(n, name)| {
            let plugins = json!({"key-auth": {"key": key(n)}});
            (Kind::Consumers, name.as_str(), json!({"username": name, "plugins": plugins}))
        }));
        let gateway = InProcess::start(registry, resources);
        let mut client = client::Client::connect(gateway.addr);
        assert_eq!(client.get("/").status, 200, "the measuring plugin answers");
        drop(client);
        gateway.stop();
    }
}

fn key(n: usize) -> String {
    format!("{:016x}-key-{n}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Answers; the first time, it measures before.
struct Measuring {
    key_auth: Arc<dyn DynPlugin>,
    limit_count: Arc<dyn DynPlugin>,
    consumers: usize,
    measured: AtomicBool,
}

#[derive(Deserialize)]
struct Config {
    consumers: usize,
}

impl Plugin for Measuring {
    const NAME: &'static str = "measuring";
    const PRIORITY: i32 = 1;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let registry = sluicegate_plugins::registry();
        let compiled = |name: &str, config: Value| {
            let plugin = registry.get(name).expect("it is registered");
            plugin.compile(&config, ctx).map_err(ConfigError)
        };
        let limit = json!({"count": 1_000_000_000, "time_window": 86_400});
        Ok(Self {
            key_auth: compiled("key-auth", json!({}))?,
            limit_count: compiled("limit-count", limit)?,
            consumers: config.consumers,
            measured: AtomicBool::new(false),
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if !self.measured.swap(true, Ordering::Relaxed) {
            let keys: Vec<String> = (0..self.consumers).map(key).collect();
            let scattered = |i: usize| keys[i * SCATTER % keys.len()].as_bytes();
            let headers = best(|i| exchange.request.headers.set("apikey", scattered(i)));
            let whole = best(|i| {
                exchange.request.headers.set("apikey", scattered(i));
                let flow = ready(self.key_auth.rewrite(black_box(exchange)).outcome());
                assert!(matches!(flow, Ok(Flow::Continue)), "the consumer is known");
            });
            println!(
                "key-auth, {} consumers: {:.0} ns, of which {headers:.0} ns put the key in",
                self.consumers, whole
            );
            let counted = best(|_| {
                let flow = ready(self.limit_count.access(black_box(exchange)).outcome());
                assert!(matches!(flow, Ok(Flow::Continue)), "the limit is far away");
            });
            println!("limit-count, local: {counted:.0} ns");
        }
        Ok(Flow::Respond(Response::new(StatusCode::OK)))
    }
}

/// Nanoseconds of one call.
fn best(mut call: impl FnMut(usize)) -> f64 {
    let round = |round: usize, call: &mut dyn FnMut(usize)| {
        let start = Instant::now();
        for i in 0..CALLS {
            call(round * CALLS + i);
        }
        start.elapsed().as_nanos() as f64 / CALLS as f64
    };
    (0..ROUNDS).map(|n| round(n, &mut call)).fold(f64::MAX, f64::min)
}

/// What a future gives that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("there is nothing to wait for"),
    }
}

const ROUNDS: usize = 20;
const CALLS: usize = 50_000;

/// A large prime: its multiples, modulo a count, lie scattered.
const SCATTER: usize = 7_368_787;

//! Instructions per call of what a request and a configuration change are made of.
//!
//! `cargo xtask bench --check` runs this under valgrind's callgrind, which counts what happens inside
//! [`measured_case`] and nothing else, and compares the figures with bench/instructions.txt. Run by
//! itself, this only tells the names of the cases. Inputs are the same in every run.

use std::hint::black_box;
use std::io::Write as _;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, wire_path, wire_query,
};
use sluicegate_gateway::body::Body;
use sluicegate_gateway::exchange::{Exchange, Response};
use sluicegate_gateway::expr::{Expr, Value as VarValue, VarName, Vars};
use sluicegate_gateway::handle::handle;
use sluicegate_gateway::http::head::HeadLimits;
use sluicegate_gateway::http::{Headers, RequestHead, ResponseHead};
use sluicegate_gateway::invoker::{FunctionInvoker, InvokerConfig, InvokerOptions};
use sluicegate_gateway::plugin::{
    CompileCtx, ConfigError, DynPlugin, Flow, Phases, Plugin, PluginError, Registry,
};
use sluicegate_gateway::router::{Match, Matched, Mode, RouteInput, Router};
use sluicegate_gateway::snapshot::{Change, Compiler, Deps};
use sluicegate_model::kind::Kind;
use sluicegate_plugins::{KeyAuth, LimitCount, ServerlessPreFunction};
use sluicegate_testkit::{InProcess, client, plugin};

fn main() {
    router();
    heads();
    signing();
    inside_a_gateway();
    snapshot_update("snapshot/one-change-in-1k", 1_000);
    snapshot_update("snapshot/one-change-in-10k", 10_000);
}

/// Calls `call` once to warm up and `calls` times for the count; tells the case's name and `calls`.
fn measure(name: &str, calls: usize, mut call: impl FnMut(usize)) {
    call(0);
    measured_case(calls, &mut call);
    // Not through the test harness: this is what the counting side reads.
    writeln!(std::io::stdout(), "case {name} {calls}").expect("somebody reads the output");
}

/// Invariant: the one function of this name; callgrind counts from its start to its end.
#[inline(never)]
fn measured_case(calls: usize, call: &mut dyn FnMut(usize)) {
    for i in 0..calls {
        call(i);
    }
}

fn router() {
    let prefix = |n: usize| (format!("/r/{n:04}/*"), None, format!("/r/{n:04}/some/thing"));
    let host = |n: usize| {
        let host = format!("tenant-{n}.example.com");
        ("/api/*".to_owned(), Some(host), "/api/v1/items".to_owned())
    };
    find("router/1-route", 1, prefix);
    find("router/10k-prefixes", 10_000, prefix);
    find("router/100k-prefixes", 100_000, prefix);
    find("router/10k-hosts", 10_000, host);
}

/// A route's pattern and host, and a path that it matches.
type Case = (String, Option<String>, String);

/// Looks for routes in an order that looks random.
fn find(name: &str, count: usize, case: impl Fn(usize) -> Case) {
    let cases: Vec<Case> = (0..count).map(case).collect();
    let mut builder = Router::builder(Mode::HostUri);
    for (n, (pattern, host, _)) in cases.iter().enumerate() {
        let mut route = RouteInput::new(n.to_string(), pattern, n);
        route.hosts.extend(host.clone());
        builder.insert(route);
    }
    let router = builder.build();
    let mut matched = Matched::default();
    measure(name, 1_000, |i| {
        let n = i * SCATTER % count;
        let (_, host, path) = &cases[n];
        let host = host.as_deref().unwrap_or("api.example.com");
        let request = Match {
            path: path.as_bytes(),
            host,
            http_host: Some(host),
            method: "GET",
            remote_addr: IpAddr::from([127, 0, 0, 1]),
        };
        assert_eq!(router.find(&request, &NoVars, &mut matched), Some(&n));
    });
}

struct NoVars;

impl Vars for NoVars {
    fn var<'a>(&'a self, _: &VarName) -> Option<VarValue<'a>> {
        None
    }
}

fn heads() {
    let limits = HeadLimits { bytes: 64 << 10, fields: 1000 };
    let request = request_bytes();
    let mut headers = Headers::new();
    measure("head/parse-request", 100, |_| {
        let head = RequestHead::parse(black_box(&request), &mut headers, limits);
        black_box(head).expect("the head is valid").expect("the head is whole");
    });
    let mut copy = Headers::new();
    measure("head/copy-request-fields", 100, |_| {
        copy.copy_from(black_box(&headers), |known, _| !known.is_hop_by_hop());
        black_box(&copy);
    });
    let mut out = Vec::with_capacity(4096);
    measure("head/write-request-fields", 100, |_| {
        out.clear();
        black_box(&copy).write_to(&mut out);
        black_box(&out);
    });
    measure("head/parse-response", 100, |_| {
        let head = ResponseHead::parse(black_box(RESPONSE), &mut headers, limits);
        black_box(head).expect("the head is valid").expect("the head is whole");
    });
}

fn signing() {
    let credentials = Credentials {
        access_key: "AKIDEXAMPLE".to_owned(),
        secret_key: Secret::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        session_token: None,
    };
    let signer = Signer::new(credentials, "us-east-1", "execute-api").expect("texts are ASCII");
    let body = request_body();
    let mut signed = Signed::default();
    measure("sign/post-1-kib", 100, |_| {
        let (path, query) = (wire_path(black_box("/default/orders")), wire_query(black_box(QUERY)));
        let request = RequestToSign {
            method: "POST",
            path: &path,
            query: Some(&query),
            headers: [
                ("host", &b"abc123.execute-api.us-east-1.amazonaws.com"[..]),
                ("content-type", b"application/json"),
            ],
            payload: PayloadHash::Bytes(black_box(&body)),
        };
        signer.sign(1_440_938_160, request, &mut signed);
        black_box(signed.authorization());
    });
}

/// What needs a request: a plugin in a real gateway measures while it has one.
fn inside_a_gateway() {
    let mut registry = Registry::default();
    registry.add::<Mark>();
    registry.add::<Measuring>();
    let filter = json!([["arg_page", "==", "2"]]);
    let plugins =
        json!({"mark": {"_meta": {"filter": filter}}, "measuring": {"_meta": {"priority": 1}}});
    let route = json!({"id": "1", "uri": "/orders/*", "plugins": plugins});
    registry.add::<KeyAuth>();
    registry.add::<ServerlessPreFunction>();
    let names: Vec<String> = (0..CONSUMERS).map(|n| format!("consumer_{n}")).collect();
    let mut resources = vec![(Kind::Routes, "1", route)];
    resources.extend(names.iter().map(|name| {
        let plugins = json!({"key-auth": {"key": name}});
        (Kind::Consumers, name.as_str(), json!({"username": name, "plugins": plugins}))
    }));
    let gateway = InProcess::start(registry, resources);
    let mut client = client::Client::connect(gateway.addr);
    client.send(request_bytes());
    assert_eq!(client.response().status, 200, "the measuring plugin answers");
    drop(client);
    gateway.stop();
}

/// Answers; the first time, it measures before.
struct Measuring {
    invoker: FunctionInvoker,
    vars: Expr,
    key_auth: Arc<dyn DynPlugin>,
    lua: [(&'static str, Arc<dyn DynPlugin>); 2],
    limit_count: Arc<dyn DynPlugin>,
    measured: AtomicBool,
}

#[derive(Deserialize)]
struct NoConfig {}

impl Plugin for Measuring {
    const NAME: &'static str = "measuring";
    const PRIORITY: i32 = 1;
    const PHASES: Phases = Phases::ACCESS;
    type Config = NoConfig;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(_: NoConfig, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let invoker = InvokerConfig {
            function_uri: "http://127.0.0.1:9/default".to_owned(),
            options: InvokerOptions {
                timeout: 3000,
                ssl_verify: true,
                keepalive: true,
                keepalive_timeout: 60_000,
                keepalive_pool: 5,
                max_req_body_size: 1 << 20,
            },
        };
        let vars = json!([
            ["arg_page", "==", "2"],
            ["http_x_request_id", "~~", "^[0-9a-f]{16}$"],
            ["request_method", "in", ["PUT", "POST"]],
            ["remote_addr", "ipmatch", ["10.0.0.0/8", "127.0.0.0/8"]],
            ["cookie_session", "has", "x"],
        ]);
        let limit = json!({"count": 1_000_000_000, "time_window": 86_400});
        Ok(Self {
            invoker: FunctionInvoker::compile(&invoker, ctx)?,
            vars: Expr::compile(&vars).map_err(ConfigError)?,
            key_auth: compiled::<KeyAuth>(&json!({}), ctx)?,
            limit_count: compiled::<LimitCount>(&limit, ctx)?,
            lua: [
                ("lua/empty-function", lua("return function() end", ctx)?),
                ("lua/header-setting-function", lua(SETS_A_HEADER, ctx)?),
            ],
            measured: AtomicBool::new(false),
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        if !self.measured.swap(true, Ordering::Relaxed) {
            self.measure(exchange);
        }
        Ok(Flow::Respond(Response::new(http_ok())))
    }
}

impl Measuring {
    fn measure(&self, exchange: &mut Exchange) {
        measure("vars/five-conditions", 100, |_| {
            black_box(self.vars.eval(black_box(&*exchange)));
        });
        let body = Bytes::from(request_body());
        let mut prepare = || {
            exchange.request.body = Body::from_bytes(body.clone());
            let call = ready(self.invoker.prepare(exchange));
            call.expect("the call can be made")
        };
        measure("call/prepare", 100, |_| drop(black_box(prepare())));
        let call = prepare();
        let mut head = Vec::with_capacity(4096);
        measure("call/write-head", 100, |_| {
            head.clear();
            self.invoker.write_head(black_box(&call), &mut head);
            black_box(&head);
        });
        measure("chain/route-and-two-plugins", 100, |_| {
            assert_eq!(ready(handle(exchange)).status, http_ok());
        });
        let keys: Vec<String> = (0..CONSUMERS).map(|n| format!("consumer_{n}")).collect();
        measure("auth/key-auth-1k-consumers", 100, |i| {
            let key = &keys[i * SCATTER % CONSUMERS];
            exchange.request.headers.set("apikey", key.as_bytes());
            let flow = ready(self.key_auth.rewrite(black_box(exchange)).outcome());
            assert!(matches!(flow, Ok(Flow::Continue)), "the consumer is known");
        });
        for (name, function) in &self.lua {
            measure(name, 100, |_| {
                // As every request does, this one begins with nothing remembered.
                exchange.notes = Default::default();
                let flow = ready(function.access(black_box(exchange)).outcome());
                assert!(matches!(flow, Ok(Flow::Continue)), "the function lets it pass");
            });
        }
        measure("limit/limit-count-local", 100, |_| {
            let flow = ready(self.limit_count.access(black_box(exchange)).outcome());
            assert!(matches!(flow, Ok(Flow::Continue)), "the limit is far away");
        });
    }
}

fn lua(source: &str, ctx: &CompileCtx<'_>) -> Result<Arc<dyn DynPlugin>, ConfigError> {
    let mut registry = Registry::default();
    registry.add::<ServerlessPreFunction>();
    let known = registry.get(ServerlessPreFunction::NAME).expect("it was added");
    known.compile(&json!({"functions": [source]}), ctx).map_err(ConfigError)
}

fn compiled<P: Plugin>(
    config: &Value,
    ctx: &CompileCtx<'_>,
) -> Result<Arc<dyn DynPlugin>, ConfigError> {
    let mut registry = Registry::default();
    registry.add::<P>();
    let known = registry.get(P::NAME).expect("it was added");
    known.compile(config, ctx).map_err(ConfigError)
}

/// Marks what passes, both ways.
struct Mark;

impl Plugin for Mark {
    const NAME: &'static str = "mark";
    const PRIORITY: i32 = 2;
    const PHASES: Phases = Phases::REWRITE.and(Phases::HEADER_FILTER);
    type Config = NoConfig;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(_: NoConfig, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        exchange.request.headers.set("x-request-id", b"5f2c1c9e6d2f4f0c");
        Ok(Flow::Continue)
    }

    fn header_filter(&self, _: &mut Exchange, response: &mut Response) {
        response.headers.set("x-marked", b"yes");
    }
}

fn http_ok() -> http::StatusCode {
    http::StatusCode::OK
}

/// What a future gives that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("there is nothing to wait for"),
    }
}

/// One of many routes changes: what the store's watch sets off.
fn snapshot_update(name: &str, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
    let deps = plugin::deps(sluicegate_plugins::registry(), runtime.handle());
    let mut compiler = Compiler::new(Deps { router: Mode::HostUri, ..deps });
    let change = |n: usize, revision: u64| {
        let id = n.to_string();
        let value = json!({
            "id": id,
            "uri": format!("/r/{n:04}/*"),
            "name": format!("revision {revision}"),
            "plugins": {"aws-lambda": {
                "function_uri": "http://127.0.0.1:9/default",
                "authorization": {"apikey": "a-key"},
            }},
            "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:9": 1}},
        });
        // As the store hands it over.
        let text = Some(Arc::from(value.to_string().into_bytes()));
        let change = plugin::change(Kind::Routes, &id, value, revision);
        Change { text, created: n as u64 + 1, ..change }
    };
    let all = (0..count).map(|n| change(n, n as u64 + 1));
    let first = compiler.apply(all);
    assert_eq!(first.router.len(), count);
    let mut changes: Vec<Change> =
        (0..=CHANGES).map(|i| change(i * SCATTER % count, (count + i) as u64 + 1)).collect();
    // Like the gateway, this keeps the last snapshot.
    let mut kept = first;
    measure(name, CHANGES, |_| {
        let change = changes.pop().expect("there is one for each call");
        kept = compiler.apply([change]);
    });
    assert_eq!(kept.router.len(), count);
}

fn request_bytes() -> Vec<u8> {
    let body = request_body();
    let head = format!(
        "POST /orders/items?{QUERY} HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: curl/8.5.0\r\n\
         Accept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nContent-Type: application/json\r\n\
         X-Request-Id: 5f2c1c9e6d2f4f0c\r\nCookie: session=3b1f8a; theme=dark\r\n\
         X-Forwarded-For: 203.0.113.7\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn request_body() -> Vec<u8> {
    vec![b'x'; 1024]
}

/// What AWS sends in front of a function's answer.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/json\r\nContent-Length: 17\r\nConnection: keep-alive\r\n\
    x-amzn-RequestId: 6c5b5c8e-95c5-4d4a-8a3a-0d7f3a9a1b11\r\nx-amz-apigw-id: TZk3vFq2oAMEbVw=\r\n\
    X-Amzn-Trace-Id: Root=1-63f5c2a1-1b2c3d4e5f60718293a4b5c6;Sampled=0\r\n\r\n{\"hello\":\"there\"}";

/// A function that reads one header and sets another.
const SETS_A_HEADER: &str = "return function(conf, ctx) \
    ngx.req.set_header('X-Passed', ngx.var.http_x_request_id) end";

const QUERY: &str = "page=2&sort=name";
const CHANGES: usize = 20;
const CONSUMERS: usize = 1_000;

/// A large prime: its multiples, modulo a count, lie scattered.
const SCATTER: usize = 7_368_787;

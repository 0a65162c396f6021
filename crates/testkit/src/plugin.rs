//! One plugin in a real gateway: the phase runner, the router and the sockets are those that run
//! everywhere; only the configuration comes from the test.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_gateway::client::{Keepalive, TlsClients};
use sluicegate_gateway::core::Shared;
use sluicegate_gateway::http::head::HeadLimits;
use sluicegate_gateway::listen::{Gateway, Listeners};
use sluicegate_gateway::plugin::{Plugin, Registry};
use sluicegate_gateway::router::Mode;
use sluicegate_gateway::settings::{Listen, Settings, TlsSettings};
use sluicegate_gateway::snapshot::{Change, Compiler, Deps, UnknownPlugins};
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_gateway::upstream::resolve::Resolver;
use sluicegate_model::kind::Kind;

use crate::client::{self, Response};
use crate::origin::{Answer, Origin, Received};

/// A request through one plugin. `fn.test` in the configuration stands for an origin that records
/// what it gets; requests that the plugin lets through go there too.
///
/// ```no_run
/// # use serde_json::json;
/// # use sluicegate_gateway::plugin::Plugin;
/// # use sluicegate_testkit::PluginTest;
/// # fn test<P: Plugin>() {
/// let ran = PluginTest::<P>::new()
///     .config(json!({"function_uri": "http://fn.test/"}))
///     .request_header("x-api-key", Some("client"))
///     .run();
/// assert_eq!(ran.sent_header("x-api-key"), Some("client"));
/// # }
/// ```
pub struct PluginTest<P> {
    config: Value,
    metadata: Option<Value>,
    attr: Option<Value>,
    registry: Registry,
    resources: Vec<(Kind, &'static str, Value)>,
    route_uri: String,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    answer: Answer,
    plugin: PhantomData<P>,
}

impl<P: Plugin> PluginTest<P> {
    /// `GET /` with an empty configuration on a route that matches every path; the origin answers
    /// 200 with an empty body.
    #[expect(clippy::new_without_default, reason = "a test says what it tests")]
    pub fn new() -> Self {
        Self {
            config: json!({}),
            metadata: None,
            attr: None,
            registry: Registry::default(),
            resources: Vec::new(),
            route_uri: "/*".to_owned(),
            method: "GET".to_owned(),
            target: "/".to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            answer: Answer::text(""),
            plugin: PhantomData,
        }
    }

    /// The plugin's configuration.
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// The plugin's metadata.
    pub fn metadata(mut self, metadata: Option<&Value>) -> Self {
        self.metadata = metadata.cloned();
        self
    }

    /// `plugin_attr` of config.yaml for the plugin.
    pub fn attr(mut self, attr: Value) -> Self {
        self.attr = Some(attr);
        self
    }

    /// Other plugins there are, for resources that have some.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// Other resources (kind, id, value): consumers, say.
    pub fn resources(mut self, resources: Vec<(Kind, &'static str, Value)>) -> Self {
        self.resources = resources;
        self
    }

    /// The route's `uri`.
    pub fn route_uri(mut self, uri: &str) -> Self {
        self.route_uri = uri.to_owned();
        self
    }

    /// The request's method and target.
    pub fn request(mut self, method: &str, target: &str) -> Self {
        self.method = method.to_owned();
        self.target = target.to_owned();
        self
    }

    /// A header of the request; `None` leaves it out.
    pub fn request_header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    /// The request's body.
    pub fn request_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// What the origin answers.
    pub fn origin_answer(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }

    /// Sends the request.
    #[track_caller]
    pub fn run(self) -> Ran {
        let answer = self.answer.clone();
        let origin = Origin::start(move |_| answer.clone());
        let gateway = InProcess::with(&self, origin.addr);
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let bytes = client::request_bytes(&self.method, &self.target, &headers, &self.body);
        let mut client = client::Client::connect(gateway.addr);
        client.send(bytes);
        let response = if self.method == "HEAD" { client.head() } else { client.response() };
        drop(client);
        gateway.stop();
        Ran { status: response.status, response, sent: origin.requests() }
    }

    /// Compares the schema with what `Config` takes: what the schema's defaults make of
    /// `smallest` (the smallest valid configuration) must be taken, and a wrong type in any
    /// property of it must be refused by the schema before `Config` sees it.
    #[track_caller]
    pub fn check_schema(smallest: &Value) {
        let mut registry = Registry::default();
        registry.add::<P>();
        let plugin = registry.get(P::NAME).expect("it was added");
        (plugin.info.check)(smallest).expect("the smallest configuration is valid");
        let properties = P::schema()["properties"].as_object().cloned().unwrap_or_default();
        for name in properties.keys() {
            let mut wrong = smallest.clone();
            // No property of a plugin is an array of arrays; an empty one may be an empty object.
            wrong[name] = json!([[[]]]);
            let error = (plugin.info.check)(&wrong).expect_err(name);
            assert!(error.contains(&format!("property {name:?}")), "{name}: {error}");
        }
    }
}

/// What came of a request.
pub struct Ran {
    /// The status the client got.
    pub status: u16,
    /// The whole answer the client got.
    pub response: Response,
    /// What the origin got.
    pub sent: Vec<Received>,
}

impl Ran {
    /// A header of the one request that was sent on; panics unless there was exactly one.
    #[track_caller]
    pub fn sent_header(&self, name: &str) -> Option<&str> {
        self.sent().header(name)
    }

    /// The one request that was sent on.
    #[track_caller]
    pub fn sent(&self) -> &Received {
        match &self.sent[..] {
            [sent] => sent,
            all => panic!("{} requests were sent on, status {}", all.len(), self.status),
        }
    }

    /// The body the client got, as text.
    pub fn body(&self) -> String {
        self.response.text()
    }
}

/// A gateway with one request thread in this process, and the resources it was started with.
pub struct InProcess {
    /// Where it listens.
    pub addr: SocketAddr,
    gateway: Gateway,
    /// Resolves names; must outlive the gateway.
    _runtime: tokio::runtime::Runtime,
}

impl InProcess {
    /// Starts it with these plugins and resources (kind, id, value).
    #[track_caller]
    pub fn start(registry: Registry, resources: Vec<(Kind, &str, Value)>) -> Self {
        Self::with_attrs(registry, resources, Value::Null)
    }

    #[track_caller]
    fn with_attrs(registry: Registry, resources: Vec<(Kind, &str, Value)>, attrs: Value) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let deps = Deps { plugin_attr: attrs, ..deps(registry, runtime.handle()) };
        let tls = deps.upstream.tls.clone();
        let mut compiler = Compiler::new(deps);
        let settings = settings();
        let listeners = Listeners::bind(&settings).expect("loopback has a free port");
        let shared = Arc::new(Shared::new(settings, tls).expect("the settings are valid"));
        let changes = (1..).zip(resources);
        let changes =
            changes.map(|(revision, (kind, id, value))| change(kind, id, value, revision));
        shared.publish(compiler.apply(changes));
        let reports = compiler.reports();
        assert!(reports.is_empty(), "the configuration does not compile: {reports:?}");
        let gateway = Gateway::start(shared, listeners).expect("threads can be started");
        Self { addr: gateway.addrs[0].addr, gateway, _runtime: runtime }
    }

    #[track_caller]
    fn with<P: Plugin>(test: &PluginTest<P>, origin: SocketAddr) -> Self {
        let mut registry = test.registry.clone();
        if registry.get(P::NAME).is_none() {
            registry.add::<P>();
        }
        let config = test.config.to_string().replace(FUNCTION_HOST, &origin.to_string());
        let config: Value = serde_json::from_str(&config).expect("the origin's address is text");
        let mut resources = test.resources.clone();
        if let Some(metadata) = &test.metadata {
            resources.push((Kind::PluginMetadata, P::NAME, metadata.clone()));
        }
        let route = json!({
            "id": "1",
            "uri": test.route_uri,
            "plugins": {P::NAME: config},
            "upstream": {"type": "roundrobin", "nodes": {origin.to_string(): 1}},
        });
        resources.push((Kind::Routes, "1", route));
        let attrs = test.attr.as_ref().map_or(Value::Null, |attr| json!({P::NAME: attr}));
        Self::with_attrs(registry, resources, attrs)
    }

    /// Stops it, when what was asked has been answered and logged.
    pub fn stop(self) {
        self.gateway.drain(Duration::from_secs(1));
    }
}

/// What a snapshot of a test is compiled with; names are resolved on `runtime`.
pub fn deps(registry: Registry, runtime: &tokio::runtime::Handle) -> Deps {
    Deps {
        registry,
        unknown_plugins: UnknownPlugins::Refuse,
        plugin_attr: Value::Null,
        upstream: UpstreamDeps {
            known: Arc::default(),
            resolver: Resolver::new(runtime.clone(), &Default::default()),
            services: None,
            egress: None,
            keepalive: KEEPALIVE,
            tls: Arc::new(TlsClients::new(None)),
            state: Arc::default(),
            background: runtime.clone(),
        },
        router: Mode::Uri,
        workers: 1,
    }
}

/// A resource that is written for the first time.
pub fn change(kind: Kind, id: &str, value: Value, revision: u64) -> Change {
    Change { kind, id: id.to_owned(), value: Some(value), text: None, revision, created: revision }
}

fn settings() -> Settings {
    let patience = crate::wait::PATIENCE;
    let limits = HeadLimits { bytes: 64 << 10, fields: 1000 };
    Settings {
        listen: vec![Listen {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            proxy_protocol: false,
        }],
        http2: true,
        workers: 1,
        server: "Sluicegate".to_owned(),
        instance_id: "instance".into(),
        client_head: limits,
        upstream_head: limits,
        client_header_timeout: patience,
        client_body_timeout: patience,
        send_timeout: patience,
        keepalive_timeout: patience,
        client_body_max: None,
        post_args_max: 64 << 20,
        graphql_max: 1 << 20,
        underscores_in_headers: true,
        real_ip: Default::default(),
        trusted_addresses: None,
        router: Mode::Uri,
        delete_uri_tail_slash: false,
        normalize_uri_like_servlet: false,
        match_uri_encoded_slash: false,
        tls: TlsSettings { tls12: true, tls13: true, ..TlsSettings::default() },
        access_log: None,
        shutdown_timeout: patience,
        buffered_body_bytes: 1 << 30,
        idle_grace: Duration::from_secs(1),
        upstream_keepalive: KEEPALIVE,
        show_upstream_status: false,
        http2_streams: 128,
    }
}

/// Stands for the origin in a plugin's configuration.
pub const FUNCTION_HOST: &str = "fn.test";

const KEEPALIVE: Keepalive =
    Keepalive { size: 8, idle_timeout: Duration::from_secs(60), requests: 1000 };

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use sluicegate_gateway::exchange::{Exchange, Response};
    use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, PluginError};

    use super::*;

    /// Answers `/stop` itself, sends the rest on with a header, and marks every answer.
    struct Mark(String);

    #[derive(Deserialize)]
    struct Config {
        mark: String,
    }

    impl Plugin for Mark {
        const NAME: &'static str = "mark";
        const PRIORITY: i32 = 1;
        const PHASES: Phases = Phases::REWRITE.and(Phases::HEADER_FILTER);
        type Config = Config;

        fn schema() -> Value {
            json!({
                "type": "object",
                "properties": {"mark": {"type": "string", "default": "x"}},
            })
        }

        fn metadata_schema() -> Option<Value> {
            Some(json!({"type": "object"}))
        }

        fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
            let behind = ctx.metadata.and_then(|metadata| metadata["behind"].as_str());
            Ok(Self(config.mark + behind.unwrap_or_default()))
        }

        async fn rewrite(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
            if exchange.uri() == b"/stop" {
                let body = json!({"stopped": self.0});
                let status = 418.try_into().expect("418 is a status");
                return Ok(Flow::Respond(Response::message(status, &body)));
            }
            exchange.request.headers.set("x-mark", self.0.as_bytes());
            Ok(Flow::Continue)
        }

        async fn access(&self, _: &mut Exchange) -> Result<Flow, PluginError> {
            panic!("the phase is not in PHASES");
        }

        fn header_filter(&self, _: &mut Exchange, response: &mut Response) {
            response.headers.set("x-marked", self.0.as_bytes());
        }
    }

    #[test]
    fn a_request_passes_the_phases_that_the_plugin_names() {
        let test = || PluginTest::<Mark>::new().config(json!({"mark": "m"}));
        let ran = test()
            .request("POST", "/go?a=1")
            .request_header("x-twice", Some("1"))
            .request_header("x-none", None)
            .request_body("body")
            .origin_answer(Answer::status(201).body("from the origin"))
            .run();
        assert_eq!((ran.status, ran.body().as_str()), (201, "from the origin"));
        assert_eq!(ran.response.header("x-marked"), Some("m"));
        assert_eq!(ran.sent_header("x-mark"), Some("m"));
        assert_eq!(ran.sent_header("x-twice"), Some("1"));
        assert_eq!(ran.sent_header("x-none"), None);
        assert_eq!((ran.sent().target.as_str(), &ran.sent().body[..]), ("/go?a=1", &b"body"[..]));

        let ran = test().metadata(Some(&json!({"behind": "!"}))).request("GET", "/stop").run();
        assert_eq!((ran.status, ran.response.json()), (418, json!({"stopped": "m!"})));
        assert_eq!(ran.response.header("x-marked"), Some("m!"));
        assert!(ran.sent.is_empty(), "nothing was sent on");
    }

    #[test]
    fn defaults_come_from_the_schema() {
        let ran = PluginTest::<Mark>::new().run();
        assert_eq!(ran.sent_header("x-mark"), Some("x"));
        PluginTest::<Mark>::check_schema(&json!({}));
    }
}

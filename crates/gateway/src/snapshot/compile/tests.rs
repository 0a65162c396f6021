//! What a change does to a snapshot, with a plugin that refuses some configurations.

use std::cell::RefCell;

use serde_json::json;

use super::*;
use crate::client::{Keepalive, TlsClients};
use crate::expr::{Value as Var, VarName, Vars};
use crate::plugin::{Auth, CompileCtx, ConfigError, Phases, Plugin};
use crate::router::{Match, Matched};
use crate::upstream::resolve::Resolver;

/// A plugin whose configuration may be wrong in a way its schema does not see. It keeps its
/// configuration and metadata, to be looked at.
struct Picky;

impl Plugin for Picky {
    const NAME: &'static str = "picky";
    const PRIORITY: i32 = 1;
    const PHASES: Phases = Phases::HEADER_FILTER;
    type Config = Value;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {"word": {"type": "string"}, "more": {"type": "integer", "default": 7}},
        }))
    }

    fn compile(config: Value, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        COMPILED.with_borrow_mut(|all| {
            let metadata = ctx.metadata.map_or("none".to_owned(), Value::to_string);
            all.push(format!("{} {} {metadata}", ctx.owner, config["n"]));
        });
        match config.get("bad") {
            Some(_) => Err(ConfigError("`bad` is bad".into())),
            None => Ok(Self),
        }
    }
}

/// A plugin that is not enabled.
struct Off;

impl Plugin for Off {
    const NAME: &'static str = "off";
    const PRIORITY: i32 = 2;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Value;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(_: Value, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

/// A plugin that finds consumers by `key`.
struct Door;

impl Plugin for Door {
    const NAME: &'static str = "door";
    const PRIORITY: i32 = 3;
    const PHASES: Phases = Phases::REWRITE;
    const AUTH: Option<Auth> = Some(Auth { unique: Some("key") });
    type Config = Value;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn consumer_schema() -> Option<Value> {
        Some(
            json!({"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}),
        )
    }

    fn compile_consumer(
        config: Value,
    ) -> Result<Arc<dyn std::any::Any + Send + Sync>, ConfigError> {
        match config.get("bad") {
            Some(_) => Err(ConfigError("`bad` is bad".into())),
            None => Ok(Arc::new(config)),
        }
    }

    fn compile(_: Value, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

thread_local! {
    /// What [`Picky`] was compiled for: owner, `n` of its configuration, metadata.
    static COMPILED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn compiled() -> Vec<String> {
    COMPILED.take()
}

struct NoVars;
impl Vars for NoVars {
    fn var<'a>(&'a self, _: &VarName) -> Option<Var<'a>> {
        None
    }
}

struct Bench {
    compiler: Compiler,
    snapshot: Arc<Snapshot>,
    revision: u64,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let mut registry = Registry::default();
        registry.add::<Picky>();
        registry.add::<Off>();
        registry.add::<Door>();
        let registry = registry.only(&["picky".to_owned(), "door".to_owned()]);
        let keepalive =
            Keepalive { size: 1, idle_timeout: std::time::Duration::from_secs(1), requests: 1 };
        let compiler = Compiler::new(Deps {
            registry,
            unknown_plugins: UnknownPlugins::Refuse,
            plugin_attr: Value::Null,
            upstream: UpstreamDeps {
                known: Arc::default(),
                tls: Arc::new(TlsClients::new(None)),
                resolver: Resolver::new(runtime.handle().clone(), &Default::default()),
                services: None,
                egress: None,
                keepalive,
                state: Arc::default(),
                background: runtime.handle().clone(),
            },
            router: Mode::HostUri,
            workers: 1,
        });
        Self { compiler, snapshot: Arc::default(), revision: 0, _runtime: runtime }
    }

    fn put(&mut self, kind: Kind, id: &str, value: Value) {
        self.change(kind, id, Some(value));
    }

    fn delete(&mut self, kind: Kind, id: &str) {
        self.change(kind, id, None);
    }

    fn change(&mut self, kind: Kind, id: &str, value: Option<Value>) {
        self.revision += 1;
        let (revision, created) = (self.revision, self.revision);
        let change = Change { kind, id: id.to_owned(), value, text: None, revision, created };
        self.snapshot = self.compiler.apply([change]);
    }

    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        let request = Match {
            path: path.as_bytes(),
            host: "a.test",
            http_host: None,
            method: "GET",
            remote_addr: [127, 0, 0, 1].into(),
        };
        self.snapshot.router.find(&request, &NoVars, &mut Matched::default())
    }

    fn upstream_of(&self, path: &str) -> Arc<Upstream> {
        self.find(path).and_then(|route| route.upstream.clone()).expect("it has an upstream")
    }

    /// Who has a key: the consumer and the credential's id.
    fn who(&self, key: &str) -> Option<(String, Option<String>)> {
        let found = self.snapshot.consumers.find("door", key.as_bytes())?;
        Some((found.consumer.name.to_string(), found.id.as_ref().map(|id| id.to_string())))
    }

    /// What a path comes to: the route's status or its first node.
    fn hit(&self, path: &str) -> String {
        match self.find(path) {
            None => "none".into(),
            Some(route) => match (route.broken.as_deref(), &route.upstream) {
                (Some((status, _)), _) => status.as_str().to_owned(),
                (None, Some(upstream)) => upstream.nodes[0].authority.to_string(),
                (None, None) => "no upstream".into(),
            },
        }
    }
}

fn upstream(port: u16) -> Value {
    json!({"type": "roundrobin", "nodes": {format!("127.0.0.1:{port}"): 1}})
}

#[test]
fn a_change_reaches_every_route_that_depends_on_it() {
    let mut bench = Bench::new();
    bench.put(Kind::Upstreams, "u", upstream(1));
    bench.put(Kind::Services, "s", json!({"upstream_id": "u"}));
    bench.put(Kind::Routes, "by-service", json!({"uri": "/s", "service_id": "s"}));
    bench.put(Kind::Routes, "by-upstream", json!({"uri": "/u", "upstream_id": "u"}));
    bench.put(Kind::Routes, "own", json!({"uri": "/o", "upstream": upstream(9)}));
    for (port, expected) in [(1, "127.0.0.1:1"), (2, "127.0.0.1:2")] {
        bench.put(Kind::Upstreams, "u", upstream(port));
        assert_eq!([bench.hit("/s"), bench.hit("/u")], [expected, expected]);
    }
    bench.put(Kind::Services, "s", json!({"upstream": upstream(3)}));
    assert_eq!([bench.hit("/s"), bench.hit("/u")], ["127.0.0.1:3", "127.0.0.1:2"]);
    assert_eq!(bench.hit("/o"), "127.0.0.1:9");
    bench.delete(Kind::Routes, "own");
    assert_eq!(bench.hit("/o"), "none");
}

#[test]
fn what_is_gone_is_answered_as_apisix_answers() {
    let mut bench = Bench::new();
    bench.put(Kind::Upstreams, "u", upstream(1));
    bench.put(Kind::Services, "s", json!({"upstream": upstream(2)}));
    bench.put(Kind::Routes, "1", json!({"uri": "/u", "upstream_id": "u"}));
    bench.put(Kind::Routes, "2", json!({"uri": "/s", "service_id": "s"}));
    bench.put(Kind::Services, "t", json!({"upstream_id": "u"}));
    bench.put(Kind::Routes, "3", json!({"uri": "/t", "service_id": "t"}));
    bench.delete(Kind::Upstreams, "u");
    bench.delete(Kind::Services, "s");
    assert_eq!(["/u", "/s", "/t"].map(|path| bench.hit(path)), ["502", "404", "502"]);
    assert_eq!(bench.compiler.reports().len(), 4);
    bench.put(Kind::Upstreams, "u", upstream(4));
    assert_eq!(bench.hit("/u"), "127.0.0.1:4");
    assert_eq!(bench.compiler.reports().len(), 1);
}

#[test]
fn a_route_that_does_not_compile_keeps_its_good_version_or_answers_503() {
    let mut bench = Bench::new();
    let bad =
        |uri: &str| json!({"uri": uri, "upstream": upstream(2), "plugins": {"picky": {"bad": 1}}});
    bench.put(Kind::Routes, "all", json!({"uri": "/*", "upstream": upstream(7)}));
    bench.put(Kind::Routes, "new", bad("/new"));
    assert_eq!(bench.hit("/new"), "503", "it must not fall through to /*");
    bench.put(Kind::Routes, "old", json!({"uri": "/old", "upstream": upstream(1)}));
    bench.put(Kind::Routes, "old", bad("/moved"));
    assert_eq!(bench.hit("/old"), "127.0.0.1:1", "with its conditions too");
    bench.put(
        Kind::Routes,
        "vars",
        json!({"uri": "/vars", "vars": [["a", "zz", "b"]], "upstream": upstream(2)}),
    );
    assert_eq!(bench.hit("/vars"), "503", "a condition that cannot be read opens nothing");
    bench.put(Kind::Routes, "old", json!({"uri": "/old", "upstream": upstream(3)}));
    assert_eq!(bench.hit("/old"), "127.0.0.1:3");
}

#[test]
fn disabled_routes_do_not_match_and_lua_is_refused() {
    let mut bench = Bench::new();
    bench.put(Kind::Routes, "1", json!({"uri": "/a", "status": 0, "upstream": upstream(1)}));
    assert_eq!(bench.hit("/a"), "none");
    bench.put(
        Kind::Routes,
        "1",
        json!({"uri": "/a", "filter_func": "function() return false end", "upstream": upstream(1)}),
    );
    assert_eq!(bench.hit("/a"), "503");
}

#[test]
fn global_rules_come_and_go_and_a_bad_one_keeps_its_good_version() {
    let mut bench = Bench::new();
    bench.put(Kind::GlobalRules, "g", json!({"plugins": {"picky": {}}}));
    assert_eq!(bench.snapshot.global.names().count(), 1);
    bench.put(Kind::GlobalRules, "g", json!({"plugins": {"picky": {"bad": 1}}}));
    assert_eq!((bench.snapshot.global.names().count(), bench.compiler.reports().len()), (1, 1));
    assert_eq!(bench.compiler.known(), [(Kind::GlobalRules, "g".to_owned())]);
    bench.delete(Kind::GlobalRules, "g");
    assert_eq!((bench.snapshot.global.names().count(), bench.compiler.reports().len()), (0, 0));
}

#[test]
fn plugins_of_all_global_rules_run_in_the_order_of_their_priorities() {
    let mut bench = Bench::new();
    let names = |bench: &Bench| bench.snapshot.global.names().collect::<Vec<_>>();
    bench.put(Kind::GlobalRules, "1", json!({"plugins": {"picky": {}}}));
    bench.put(Kind::GlobalRules, "2", json!({"plugins": {"door": {}}}));
    assert_eq!(names(&bench), ["door", "picky"], "the second rule's comes first");
    bench.put(Kind::GlobalRules, "1", json!({"plugins": {"picky": {"_meta": {"priority": 9}}}}));
    assert_eq!(names(&bench), ["picky", "door"]);
    // What a store may hold and the Admin API does not take.
    compiled();
    bench.put(Kind::GlobalRules, "3", json!({"plugins": {"picky": {"n": 3}, "door": {}}}));
    assert_eq!(names(&bench), ["picky", "door", "door", "picky"], "none of them is lost");
    assert_eq!(compiled(), ["global rule 3 3 none"], "each is compiled for its own rule");
    // A rule that refuses does so before anything else.
    bench.put(Kind::GlobalRules, "3", json!({"plugins": {"no-such-auth": {}}}));
    assert_eq!(names(&bench), ["refuse", "picky", "door"]);
    bench.delete(Kind::GlobalRules, "3");
    bench.delete(Kind::GlobalRules, "1");
    assert_eq!(names(&bench), ["door"]);
}

#[test]
fn a_resource_may_come_before_what_it_refers_to_in_one_batch() {
    let mut bench = Bench::new();
    let changes = [
        (Kind::Routes, json!({"uri": "/s", "service_id": "1"})),
        (Kind::Services, json!({"upstream_id": "1"})),
        (Kind::Upstreams, upstream(5)),
    ];
    let changes = changes.into_iter().map(|(kind, value)| Change {
        kind,
        id: "1".into(),
        value: Some(value),
        text: None,
        revision: 1,
        created: 1,
    });
    bench.snapshot = bench.compiler.apply(changes);
    assert_eq!(bench.hit("/s"), "127.0.0.1:5");
    assert!(bench.compiler.reports().is_empty());
}

#[test]
fn a_new_client_certificate_reaches_everyone_who_shows_it() {
    let mut bench = Bench::new();
    let client = || {
        let made = rcgen::generate_simple_self_signed(vec!["c.test".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        json!({"type": "client", "cert": cert, "key": key})
    };
    let shows = json!({
        "type": "roundrobin", "scheme": "https", "nodes": {"127.0.0.1:1": 1},
        "tls": {"client_cert_id": "c"},
    });
    bench.put(Kind::Ssls, "c", client());
    bench.put(Kind::Upstreams, "u", shows.clone());
    bench.put(Kind::Services, "s", json!({"upstream": shows}));
    bench.put(Kind::Routes, "1", json!({"uri": "/1", "upstream_id": "u"}));
    bench.put(Kind::Routes, "2", json!({"uri": "/2", "service_id": "s"}));
    bench.put(Kind::Routes, "3", json!({"uri": "/3", "upstream": shows}));
    let before = ["/1", "/2", "/3"].map(|path| bench.upstream_of(path));
    bench.put(Kind::Ssls, "c", client());
    for (path, before) in ["/1", "/2", "/3"].into_iter().zip(before) {
        assert!(!Arc::ptr_eq(&before, &bench.upstream_of(path)), "{path}");
    }
}

#[test]
fn many_routes_at_once_serve_like_one_after_the_other() {
    let mut bench = Bench::new();
    let changes = (0..1000_u64).map(|n| Change {
        kind: Kind::Routes,
        id: n.to_string(),
        value: Some(json!({"uri": format!("/r/{n}"), "upstream": upstream(1)})),
        text: None,
        revision: n + 1,
        created: n + 1,
    });
    bench.snapshot = bench.compiler.apply(changes);
    assert_eq!(bench.snapshot.router.len(), 1000);
    assert_eq!((bench.hit("/r/999"), bench.hit("/r/1000")), ("127.0.0.1:1".into(), "none".into()));
}

#[test]
fn a_plugin_gets_its_metadata_and_those_who_use_it_follow_a_change() {
    let mut bench = Bench::new();
    let own = |n: u32| json!({"picky": {"n": n}});
    bench.put(Kind::Upstreams, "u", upstream(1));
    bench.put(Kind::PluginConfigs, "p", json!({"plugins": own(2)}));
    bench.put(Kind::Services, "s", json!({"plugins": own(3), "upstream_id": "u"}));
    bench.put(Kind::GlobalRules, "g", json!({"plugins": own(4)}));
    bench.put(Kind::Routes, "1", json!({"uri": "/1", "plugins": own(1), "upstream_id": "u"}));
    bench.put(Kind::Routes, "2", json!({"uri": "/2", "plugin_config_id": "p", "upstream_id": "u"}));
    bench.put(Kind::Routes, "3", json!({"uri": "/3", "service_id": "s"}));
    bench.put(Kind::Routes, "4", json!({"uri": "/4", "upstream_id": "u"}));
    let all = |metadata: &str| {
        ["global rule g 4", "route 1 1", "plugin config p 2", "service s 3"]
            .map(|used| format!("{used} {metadata}"))
            .to_vec()
    };
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    assert_eq!(sorted(compiled()), sorted(all("none")));
    bench.put(Kind::PluginMetadata, "picky", json!({"word": "a"}));
    assert_eq!(compiled(), all(r#"{"word":"a","more":7}"#));
    bench.put(Kind::PluginMetadata, "picky", json!({"word": 1}));
    assert_eq!(compiled(), all(r#"{"word":"a","more":7}"#), "the good version stays");
    assert_eq!(bench.compiler.reports()[0].kind, Kind::PluginMetadata);
    bench.put(Kind::PluginMetadata, "other", json!({"word": 1}));
    bench.delete(Kind::Routes, "1");
    assert_eq!(compiled(), Vec::<String>::new());
    bench.delete(Kind::PluginMetadata, "picky");
    assert_eq!(compiled(), ["global rule g 4 none", "plugin config p 2 none", "service s 3 none"]);
    assert!(bench.compiler.reports().is_empty());
}

#[test]
fn plugins_of_a_route_come_before_its_plugin_configs_and_those_before_its_services() {
    let mut bench = Bench::new();
    let own = |n: u32| json!({"picky": {"n": n}});
    bench.put(Kind::PluginConfigs, "p", json!({"plugins": own(2)}));
    bench.put(Kind::Services, "s", json!({"plugins": own(3), "upstream": upstream(1)}));
    for (route, expected) in [
        (json!({"plugins": own(1), "plugin_config_id": "p", "service_id": "s"}), "route 1 1 none"),
        (json!({"plugin_config_id": "p", "service_id": "s"}), "plugin config p 2 none"),
        (json!({"service_id": "s"}), "service s 3 none"),
    ] {
        let mut route = route;
        route["uri"] = "/1".into();
        compiled();
        bench.put(Kind::Routes, "1", route.clone());
        assert_eq!(
            (compiled(), bench.hit("/1")),
            (vec![expected.to_owned()], "127.0.0.1:1".into()),
            "{route}"
        );
    }
}

#[test]
fn unknown_plugins_answer_503_unless_they_only_observe_or_are_off() {
    let mut bench = Bench::new();
    let route = |plugins: Value| json!({"uri": "/a", "plugins": plugins, "upstream": upstream(1)});
    for (plugins, expected) in [
        (json!({"http-logger": {}, "prometheus": {"x": 1}, "picky": {}}), "127.0.0.1:1"),
        (json!({"no-such-auth": {}}), "503"),
        (json!({"no-such-auth": {"_meta": {"disable": true}}}), "127.0.0.1:1"),
        (json!({"picky": {}, "no-such-auth": {"_meta": {"disable": false}}}), "503"),
        (json!({"off": {}}), "127.0.0.1:1"),
    ] {
        bench.put(Kind::Routes, "a", route(plugins.clone()));
        assert_eq!(bench.hit("/a"), expected, "{plugins}");
        let causes: Vec<String> =
            bench.compiler.reports().iter().map(|r| r.cause.clone()).collect();
        let refused = (expected == "503").then(|| "unknown plugin [no-such-auth]".to_owned());
        assert_eq!(causes, Vec::from_iter(refused), "{plugins}");
    }
    bench.put(Kind::Routes, "a", route(json!({"no-such-auth": {}})));
    assert_eq!(bench.hit("/a"), "503", "nor does the version without the plugin serve");
    bench.put(Kind::GlobalRules, "g", json!({"plugins": {"no-such-auth": {}}}));
    assert!(bench.snapshot.global.runs(Phases::REWRITE), "it answers every request");

    let deps = Deps { unknown_plugins: UnknownPlugins::Skip, ..bench.compiler.deps.clone() };
    bench.snapshot = bench.compiler.rebuild(deps, []);
    assert_eq!(bench.hit("/a"), "127.0.0.1:1");
    assert!(!bench.snapshot.global.runs(Phases::REWRITE));
    assert!(bench.compiler.reports().is_empty());
}

#[test]
fn what_cannot_even_be_read_keeps_its_good_version_or_answers_503() {
    let mut bench = Bench::new();
    bench.put(Kind::Routes, "all", json!({"uri": "/*", "upstream": upstream(7)}));
    bench.put(
        Kind::Routes,
        "1",
        json!({"uri": "/a", "host": "a.test", "methods": ["GET"], "plugins": 5}),
    );
    assert_eq!(bench.hit("/a"), "503");
    bench.put(Kind::Routes, "1", json!({"uri": "/a", "host": "b.test", "plugins": 5}));
    assert_eq!(bench.hit("/a"), "127.0.0.1:7", "its conditions count");
    bench.put(Kind::Routes, "1", json!({"uri": "/a", "status": 0, "plugins": 5}));
    assert_eq!(bench.hit("/a"), "127.0.0.1:7");
    bench.put(Kind::Routes, "1", json!({"uri": "/a", "upstream": upstream(1)}));
    bench.put(Kind::Routes, "1", json!({"uri": "/b", "plugins": 5}));
    assert_eq!([bench.hit("/a"), bench.hit("/b")], ["127.0.0.1:1", "127.0.0.1:7"]);

    // A service's hosts are its routes' conditions, whether JSON has its id as text or number.
    bench.put(Kind::Services, "7", json!({"hosts": ["b.test"], "upstream": upstream(1)}));
    for id in [json!("7"), json!(7)] {
        bench.put(Kind::Routes, "n", json!({"uri": "/n", "service_id": id, "plugins": 5}));
        assert_eq!(bench.hit("/n"), "127.0.0.1:7", "{id}");
        bench.delete(Kind::Routes, "n");
    }
    bench.delete(Kind::Services, "7");

    let users = |bench: &mut Bench, kind, id: &str, value: Value| {
        bench.put(kind, id, value);
        ["/s", "/p", "/u"].map(|path| bench.hit(path))
    };
    bench.put(Kind::Services, "s", json!({"upstream": 5}));
    bench.put(Kind::PluginConfigs, "p", json!({"plugins": 5}));
    bench.put(Kind::Upstreams, "u", json!({"nodes": 5}));
    bench.put(Kind::Routes, "s", json!({"uri": "/s", "service_id": "s"}));
    bench.put(
        Kind::Routes,
        "p",
        json!({"uri": "/p", "plugin_config_id": "p", "upstream": upstream(2)}),
    );
    let hits = users(&mut bench, Kind::Routes, "u", json!({"uri": "/u", "upstream_id": "u"}));
    assert_eq!(hits, ["503", "503", "503"]);
    let hits = users(&mut bench, Kind::Services, "s", json!({"upstream": upstream(1)}));
    assert_eq!(hits, ["127.0.0.1:1", "503", "503"]);
    let hits = users(&mut bench, Kind::PluginConfigs, "p", json!({"plugins": {}}));
    assert_eq!(hits, ["127.0.0.1:1", "127.0.0.1:2", "503"]);
    let hits = users(&mut bench, Kind::Upstreams, "u", upstream(3));
    assert_eq!(hits, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
    assert_eq!(bench.compiler.reports().len(), 1, "{:?}", bench.compiler.reports());
    bench.put(Kind::Services, "s", json!({"upstream": 5}));
    bench.put(Kind::PluginConfigs, "p", json!({"plugins": 5}));
    let hits = users(&mut bench, Kind::Upstreams, "u", json!({"nodes": 5}));
    assert_eq!(hits, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
    assert_eq!(bench.compiler.reports().len(), 4);
    for (kind, id) in bench.compiler.known() {
        bench.delete(kind, &id);
    }
    assert!(bench.compiler.reports().is_empty() && bench.snapshot.router.is_empty());
}

#[test]
fn a_route_with_a_script_answers_503_with_the_reason() {
    let mut bench = Bench::new();
    bench.put(
        Kind::Services,
        "s",
        json!({"script": "return {access = 1}", "upstream": upstream(1)}),
    );
    bench.put(
        Kind::Routes,
        "1",
        json!({"uri": "/1", "script": "return {access = 1}", "upstream": upstream(1)}),
    );
    bench.put(Kind::Routes, "2", json!({"uri": "/2", "service_id": "s"}));
    for path in ["/1", "/2"] {
        let broken = bench.find(path).and_then(|route| route.broken.as_deref());
        let (status, cause) = broken.expect("it cannot serve");
        assert_eq!(
            (status.as_u16(), cause.as_str()),
            (503, "script is not served: use plugins"),
            "{path}"
        );
    }
}

#[test]
fn a_route_keeps_its_counters_and_a_reload_its_good_version() {
    let mut bench = Bench::new();
    let route = |plugins: Value| json!({"uri": "/a", "plugins": plugins, "upstream": upstream(1)});
    bench.put(Kind::Routes, "1", route(json!({})));
    bench.put(Kind::Routes, "2", json!({"uri": "/b", "upstream": upstream(2)}));
    let count = |bench: &Bench, path: &str| {
        let requests = &bench.find(path).expect("it is there").requests;
        requests.add(0);
        requests.total()
    };
    assert_eq!([count(&bench, "/a"), count(&bench, "/a"), count(&bench, "/b")], [1, 2, 1]);
    bench.put(Kind::Routes, "1", route(json!({"picky": {}})));
    assert_eq!(count(&bench, "/a"), 3);
    bench.put(Kind::Routes, "1", route(json!({"picky": {"bad": 1}})));
    let deps = Deps { router: Mode::UriWithParameter, ..bench.compiler.deps.clone() };
    bench.snapshot = bench.compiler.rebuild(deps, []);
    assert_eq!((count(&bench, "/a"), count(&bench, "/b")), (4, 2));
    assert_eq!(bench.snapshot.router.mode(), Mode::UriWithParameter);
    assert_eq!(bench.hit("/a"), "127.0.0.1:1");
}

#[test]
fn a_change_compiles_what_it_touches_and_nothing_else() {
    let mut bench = Bench::new();
    for n in 0..100 {
        bench.put(Kind::Upstreams, &n.to_string(), upstream(n + 1));
        let route =
            json!({"uri": format!("/{n}"), "upstream_id": n, "plugins": {"picky": {"n": n}}});
        bench.put(Kind::Routes, &n.to_string(), route);
    }
    compiled();
    bench.put(Kind::Upstreams, "7", upstream(1));
    assert_eq!(compiled(), ["route 7 7 none"]);
    bench.put(Kind::Upstreams, "new", upstream(1));
    assert_eq!(compiled(), Vec::<String>::new());
    bench.put(
        Kind::Routes,
        "8",
        json!({"uri": "/8", "upstream_id": "7", "plugins": {"picky": {}}}),
    );
    compiled();
    bench.put(Kind::Upstreams, "7", upstream(2));
    assert_eq!(compiled(), ["route 7 7 none", "route 8 null none"]);
    bench.put(Kind::Upstreams, "8", upstream(2));
    assert_eq!(compiled(), Vec::<String>::new());
}

/// References of which each is for a reason of its own without a value.
struct Hidden;

impl References for Hidden {
    fn cause(&self, reference: &str) -> String {
        format!("{} is gone", reference.len())
    }

    fn redact(&self, text: String) -> String {
        text.replace("hush", "$env://H")
    }
}

#[test]
fn a_reference_that_is_left_is_refused_wherever_it_stands() {
    let mut bench = Bench::new();
    bench.compiler = bench.compiler.with_references(Arc::new(Hidden));
    let route = |plugins: Value| json!({"uri": "/a", "plugins": plugins, "upstream": upstream(1)});
    let picky = |config: Value| route(json!({"picky": config}));
    bench.put(Kind::Routes, "1", picky(json!({})));
    assert_eq!(bench.hit("/a"), "127.0.0.1:1");
    // The version before does not serve in its place.
    bench.put(Kind::Routes, "1", picky(json!({"x": [{"y": "$env://A"}]})));
    assert_eq!(bench.hit("/a"), "503");
    let cause = "$env://A in plugin picky has no value: 8 is gone";
    assert_eq!(bench.compiler.reports()[0].cause, cause);
    for serves in [
        json!({"picky": {"x": "$env://A", "_meta": {"disable": true}}}),
        json!({"picky": {"x": "env://A", "$env://A": 1}}),
    ] {
        bench.put(Kind::Routes, "1", route(serves));
        assert_eq!(bench.hit("/a"), "127.0.0.1:1");
    }
    bench.put(Kind::PluginMetadata, "picky", json!({"word": "$env://WORD"}));
    assert_eq!(bench.hit("/a"), "503");
    bench.delete(Kind::PluginMetadata, "picky");
    assert_eq!(bench.hit("/a"), "127.0.0.1:1");
    // A rule for all requests refuses them all, and keeps no version before.
    bench.put(Kind::GlobalRules, "g", json!({"plugins": {"picky": {}}}));
    assert!(!bench.snapshot.global.refuses());
    bench.put(Kind::GlobalRules, "g", json!({"plugins": {"picky": {"x": "$secret://v/1/a/b"}}}));
    assert!(bench.snapshot.global.refuses());
    let ssl = json!({"cert": "$env://C", "key": "$env://K", "sni": "a.test"});
    bench.put(Kind::Ssls, "1", ssl);
    let reports = bench.compiler.reports();
    let of_ssl = reports.iter().find(|report| report.kind == Kind::Ssls);
    assert_eq!(of_ssl.map(|r| &*r.cause), Some("$env://C has no value: 8 is gone"));
}

#[test]
fn what_references_stand_for_is_in_no_report() {
    let mut bench = Bench::new();
    bench.compiler = bench.compiler.with_references(Arc::new(Hidden));
    let service = json!({"uri": "/a", "service_id": "hush"});
    bench.put(Kind::Routes, "1", service);
    assert_eq!(bench.compiler.reports()[0].cause, "service $env://H does not exist");
    let broken = &bench.find("/a").expect("it matches").broken;
    assert_eq!(broken.as_ref().map(|b| &*b.1), Some("service $env://H does not exist"));
}

fn keyed(key: &str) -> Value {
    json!({"plugins": {"door": {"key": key}}})
}

fn consumer(name: &str, plugins: Value) -> Value {
    json!({"username": name, "plugins": plugins})
}

fn jack(credential: Option<&str>) -> Option<(String, Option<String>)> {
    Some(("jack".to_owned(), credential.map(str::to_owned)))
}

#[test]
fn a_consumer_is_found_by_its_key_until_it_changes_or_goes() {
    let mut bench = Bench::new();
    bench.put(Kind::Consumers, "jack", consumer("jack", json!({"door": {"key": "a"}})));
    assert_eq!((bench.who("a"), bench.who("b")), (jack(None), None));
    let conf = bench.snapshot.consumers.find("door", b"a").expect("it is there");
    assert_eq!(conf.conf::<Value>().map(|conf| &conf["key"]), Some(&json!("a")));
    bench.put(Kind::Consumers, "jack", consumer("jack", json!({"door": {"key": "b"}})));
    assert_eq!((bench.who("a"), bench.who("b")), (None, jack(None)));
    let off = json!({"door": {"key": "b", "_meta": {"disable": true}}});
    bench.put(Kind::Consumers, "jack", consumer("jack", off));
    assert_eq!(bench.who("b"), None, "a key that is switched off opens nothing");
    assert!(bench.snapshot.consumers.named("jack").is_some());
    bench.put(Kind::Consumers, "jack", consumer("jack", json!({"door": {"key": "c"}})));
    bench.delete(Kind::Consumers, "jack");
    assert_eq!(bench.who("c"), None);
    assert!(bench.snapshot.consumers.named("jack").is_none());
    assert!(!bench.snapshot.consumers.any("door"));
    assert!(bench.compiler.reports().is_empty());
}

#[test]
fn a_consumer_that_does_not_compile_keeps_its_good_version_or_is_not_there() {
    let mut bench = Bench::new();
    for bad in
        [json!({"door": {"key": "b", "bad": 1}}), json!({"door": {}}), json!({"picky": {"bad": 1}})]
    {
        bench.put(Kind::Consumers, "jack", consumer("jack", bad.clone()));
        assert!(bench.snapshot.consumers.named("jack").is_none(), "{bad}");
        assert_eq!(bench.compiler.reports().len(), 1);
        bench.put(Kind::Consumers, "jack", consumer("jack", json!({"door": {"key": "a"}})));
        bench.put(Kind::Consumers, "jack", consumer("jack", bad.clone()));
        assert_eq!((bench.who("a"), bench.who("b")), (jack(None), None), "{bad}");
        assert_eq!(bench.compiler.reports().len(), 1);
        bench.delete(Kind::Consumers, "jack");
        assert_eq!(bench.who("a"), None);
    }
}

#[test]
fn credentials_come_and_go_with_their_consumer() {
    let mut bench = Bench::new();
    bench.put(Kind::Credentials, "jack/credentials/one", keyed("1"));
    assert_eq!(bench.who("1"), None, "it belongs to nobody");
    assert_eq!(bench.compiler.reports().len(), 1);
    bench.put(Kind::Consumers, "jack", json!({"username": "jack", "labels": {"custom_id": "7"}}));
    assert_eq!(bench.who("1"), jack(Some("one")));
    assert!(bench.compiler.reports().is_empty());
    bench.put(Kind::Credentials, "jack/credentials/two", keyed("2"));
    bench.put(Kind::Consumers, "jack", json!({"username": "jack", "group_id": "g"}));
    for key in ["1", "2"] {
        let found = bench.snapshot.consumers.find("door", key.as_bytes()).expect("it is there");
        assert_eq!(found.consumer.group_id.as_deref(), Some("g"), "it follows its consumer");
        assert_eq!(found.consumer.told(None).len(), 1);
    }
    bench.put(Kind::Credentials, "jack/credentials/two", keyed("3"));
    assert_eq!((bench.who("2"), bench.who("3")), (None, jack(Some("two"))));
    bench.delete(Kind::Credentials, "jack/credentials/one");
    assert_eq!((bench.who("1"), bench.who("3")), (None, jack(Some("two"))));
    bench.delete(Kind::Consumers, "jack");
    assert_eq!(bench.who("3"), None);
    bench.put(Kind::Consumers, "jack", json!({"username": "jack"}));
    assert_eq!(bench.who("3"), jack(Some("two")));
    // All at once, as at a start: the credential first.
    let mut fresh = Bench::new();
    let change = |kind, id: &str, value| Change {
        kind,
        id: id.to_owned(),
        value: Some(value),
        text: None,
        revision: 1,
        created: 1,
    };
    fresh.snapshot = fresh.compiler.apply([
        change(Kind::Credentials, "jack/credentials/one", keyed("1")),
        change(Kind::Consumers, "jack", json!({"username": "jack"})),
    ]);
    assert_eq!(fresh.who("1"), jack(Some("one")));
    fresh.snapshot = fresh.compiler.rebuild(fresh.compiler.deps.clone(), []);
    assert_eq!(fresh.who("1"), jack(Some("one")));
}

#[test]
fn a_key_that_two_have_belongs_to_the_later_and_then_to_the_other() {
    let mut bench = Bench::new();
    let own = |name: &str, key: &str| consumer(name, json!({"door": {"key": key}}));
    bench.put(Kind::Consumers, "jack", own("jack", "k"));
    bench.put(Kind::Consumers, "rose", own("rose", "k"));
    assert_eq!(bench.who("k").map(|(name, _)| name).as_deref(), Some("rose"));
    bench.put(Kind::Consumers, "rose", own("rose", "other"));
    assert_eq!(bench.who("k"), jack(None));
    // Two that exchange their keys, one after the other.
    bench.put(Kind::Consumers, "jack", own("jack", "other"));
    bench.put(Kind::Consumers, "rose", own("rose", "k"));
    assert_eq!(bench.who("other"), jack(None));
    assert_eq!(bench.who("k").map(|(name, _)| name).as_deref(), Some("rose"));
    bench.delete(Kind::Consumers, "rose");
    assert_eq!((bench.who("k"), bench.who("other")), (None, jack(None)));
}

#[test]
fn a_key_whose_reference_has_no_value_opens_nothing() {
    let mut bench = Bench::new();
    bench.compiler = bench.compiler.with_references(Arc::new(Hidden));
    bench.put(Kind::Consumers, "jack", consumer("jack", json!({"door": {"key": "a"}})));
    bench.put(Kind::Credentials, "jack/credentials/one", keyed("1"));
    // Nor does the version before.
    bench.put(Kind::Credentials, "jack/credentials/one", keyed("$env://A"));
    assert_eq!((bench.who("1"), bench.who("$env://A")), (None, None));
    assert_eq!(bench.who("a"), jack(None));
    bench.put(Kind::Consumers, "jack", consumer("jack", json!({"door": {"key": "$env://A"}})));
    assert_eq!((bench.who("a"), bench.who("$env://A")), (None, None));
    assert!(bench.snapshot.consumers.named("jack").is_none());
    let off = json!({"door": {"key": "$env://A", "_meta": {"disable": true}}});
    bench.put(Kind::Consumers, "jack", consumer("jack", off));
    assert_eq!(bench.who("$env://A"), None);
    assert!(bench.snapshot.consumers.named("jack").is_some());
}

#[test]
fn groups_come_and_go_and_a_bad_one_keeps_its_good_version() {
    let mut bench = Bench::new();
    let group = |plugins: Value| json!({"plugins": plugins});
    let there = |bench: &Bench| bench.snapshot.consumers.group("g").is_some();
    bench.put(Kind::ConsumerGroups, "g", group(json!({"picky": {"bad": 1}})));
    assert!(!there(&bench));
    bench.put(Kind::ConsumerGroups, "g", group(json!({"picky": {}})));
    assert!(there(&bench) && bench.compiler.reports().is_empty());
    bench.put(Kind::ConsumerGroups, "g", group(json!({"picky": {"bad": 1}})));
    assert!(there(&bench));
    bench.delete(Kind::ConsumerGroups, "g");
    assert!(!there(&bench) && bench.compiler.reports().is_empty());
}

#[test]
fn of_a_group_that_nothing_may_pass_without_no_version_before_serves() {
    let mut bench = Bench::new();
    bench.compiler = bench.compiler.with_references(Arc::new(Hidden));
    let there = |bench: &Bench| bench.snapshot.consumers.group("g").is_some();
    for (plugins, cause) in [
        (json!({"picky": {}, "no-such-auth": {}}), "unknown plugin [no-such-auth]"),
        (json!({"picky": {"x": "$env://A"}}), "$env://A in plugin picky has no value: 8 is gone"),
    ] {
        bench.put(Kind::ConsumerGroups, "g", json!({"plugins": {"picky": {}}}));
        assert!(there(&bench) && bench.compiler.reports().is_empty());
        bench.put(Kind::ConsumerGroups, "g", json!({"plugins": plugins}));
        assert!(!there(&bench), "{cause}");
        assert_eq!(bench.compiler.reports()[0].cause, cause);
    }
}

#[test]
fn with_other_plugins_resources_are_taken_as_they_are_read_with_them() {
    let mut bench = Bench::new();
    let route =
        |n: &str| json!({"uri": "/a", "plugins": {"off": {"n": n}}, "upstream": upstream(1)});
    bench.put(Kind::Routes, "1", route("sealed"));
    let deps = bench.compiler.deps.clone();
    let change = Change {
        kind: Kind::Routes,
        id: "1".into(),
        value: Some(route("opened")),
        text: None,
        revision: 1,
        created: 1,
    };
    bench.snapshot = bench.compiler.rebuild(deps, [change]);
    let text = bench.find("/a").expect("it is there").text.clone();
    assert!(String::from_utf8_lossy(&text).contains("opened"));
}

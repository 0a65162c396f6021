//! What a change does to a snapshot, with a plugin that refuses some configurations.

use serde_json::json;

use super::*;
use crate::client::{Keepalive, TlsClients};
use crate::expr::{Value as Var, VarName, Vars};
use crate::plugin::{CompileCtx, ConfigError, Phases, Plugin};
use crate::router::{Match, Matched};
use crate::upstream::resolve::Resolver;

/// A plugin whose configuration may be wrong in a way its schema does not see.
struct Picky;

impl Plugin for Picky {
    const NAME: &'static str = "picky";
    const PRIORITY: i32 = 1;
    const PHASES: Phases = Phases::HEADER_FILTER;
    type Config = Value;

    fn schema() -> Value {
        json!({"type": "object"})
    }

    fn compile(config: Value, _: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        match config.get("bad") {
            Some(_) => Err(ConfigError("`bad` is bad".into())),
            None => Ok(Self),
        }
    }
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
        let keepalive =
            Keepalive { size: 1, idle_timeout: std::time::Duration::from_secs(1), requests: 1 };
        let compiler = Compiler::new(Deps {
            registry,
            plugin_attr: Value::Null,
            upstream: UpstreamDeps {
                tls: Arc::new(TlsClients::new(None)),
                resolver: Resolver::new(runtime.handle().clone(), &Default::default()),
                keepalive,
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
        let change = Change { kind, id: id.to_owned(), value, revision, created };
        self.snapshot = self.compiler.apply(vec![change]);
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

    /// What a path comes to: the route's status or its first node.
    fn hit(&self, path: &str) -> String {
        match self.find(path) {
            None => "none".into(),
            Some(route) => match (&route.broken, &route.upstream) {
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
    bench.delete(Kind::Upstreams, "u");
    bench.delete(Kind::Services, "s");
    assert_eq!([bench.hit("/u"), bench.hit("/s")], ["502", "404"]);
    assert_eq!(bench.compiler.reports().len(), 2);
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
    assert_eq!(bench.snapshot.global.len(), 1);
    bench.put(Kind::GlobalRules, "g", json!({"plugins": {"picky": {"bad": 1}}}));
    assert_eq!((bench.snapshot.global.len(), bench.compiler.reports().len()), (1, 1));
    assert_eq!(bench.compiler.known(), [(Kind::GlobalRules, "g".to_owned())]);
    bench.delete(Kind::GlobalRules, "g");
    assert_eq!((bench.snapshot.global.len(), bench.compiler.reports().len()), (0, 0));
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
        revision: 1,
        created: 1,
    });
    bench.snapshot = bench.compiler.apply(changes.collect());
    assert_eq!((bench.hit("/s"), bench.compiler.reports()), ("127.0.0.1:5".into(), Vec::new()));
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
        revision: n + 1,
        created: n + 1,
    });
    bench.snapshot = bench.compiler.apply(changes.collect());
    assert_eq!(bench.snapshot.router.len(), 1000);
    assert_eq!((bench.hit("/r/999"), bench.hit("/r/1000")), ("127.0.0.1:1".into(), "none".into()));
}

//! The router against tables, against a plain list of rules, and against itself built anew.

use std::{fmt::Debug, net::Ipv4Addr};

use serde_json::json;

use super::*;
use crate::expr::{Value, VarName};

/// Variables of a request: the query `a=VALUE`.
struct Query(Option<&'static str>);

impl Vars for Query {
    fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
        (*name == VarName::Arg("a".into())).then_some(self.0?.into())
    }
}

#[derive(Clone, Copy)]
struct Request {
    target: &'static str,
    host: &'static str,
    method: &'static str,
    addr: [u8; 4],
}

fn get(target: &'static str) -> Request {
    Request { target, host: "any.test", method: "GET", addr: [127, 0, 0, 1] }
}

fn at(host: &'static str, target: &'static str) -> Request {
    Request { host, ..get(target) }
}

fn ask<T: Clone>(router: &Router<T>, request: Request, matched: &mut Matched) -> Option<T> {
    let (path, query) =
        request.target.split_once("?a=").map_or((request.target, None), |(p, q)| (p, Some(q)));
    let lower = request.host.to_ascii_lowercase();
    let host = match lower.rsplit_once(':') {
        Some((host, _)) if !lower.ends_with(']') => host,
        _ => &lower,
    };
    let wanted = Match {
        path: path.as_bytes(),
        host,
        http_host: Some(request.host),
        method: request.method,
        remote_addr: IpAddr::V4(Ipv4Addr::from(request.addr)),
    };
    router.find(&wanted, &Query(query), matched).cloned()
}

fn route(id: &'static str, uris: &[&str]) -> RouteInput<&'static str> {
    RouteInput {
        uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
        ..RouteInput::new(id, "", id)
    }
}

fn with_hosts(hosts: &[&str], route: RouteInput<&'static str>) -> RouteInput<&'static str> {
    RouteInput { hosts: hosts.iter().map(|&host| host.to_owned()).collect(), ..route }
}

fn with_priority(priority: i64, route: RouteInput<&'static str>) -> RouteInput<&'static str> {
    RouteInput { priority, ..route }
}

fn with_methods(methods: &[&str], route: RouteInput<&'static str>) -> RouteInput<&'static str> {
    RouteInput { methods: Methods::parse(methods).expect("known methods"), ..route }
}

fn with_addrs(addrs: &[&str], route: RouteInput<&'static str>) -> RouteInput<&'static str> {
    RouteInput { remote_addrs: Some(IpSet::parse(addrs).expect("well-formed")), ..route }
}

fn with_vars(vars: serde_json::Value, route: RouteInput<&'static str>) -> RouteInput<&'static str> {
    RouteInput { vars: Some(Expr::compile(&vars).expect("compiles")), ..route }
}

fn build(mode: Mode, routes: &[RouteInput<&'static str>]) -> Router<&'static str> {
    let mut builder = Router::builder(mode);
    for route in routes {
        builder.insert(route.clone());
    }
    builder.build()
}

const MODES: [Mode; 3] = [Mode::HostUri, Mode::Uri, Mode::UriWithParameter];

#[track_caller]
fn check(modes: &[Mode], routes: &[RouteInput<&'static str>], cases: &[(Request, Option<&str>)]) {
    for &mode in modes {
        let router = build(mode, routes);
        for &(request, expected) in cases {
            let found = ask(&router, request, &mut Matched::default());
            let Request { method, host, target, .. } = request;
            assert_eq!(found, expected, "{mode:?}: {method} {host} {target}");
        }
    }
}

#[test]
fn an_exact_uri_comes_before_a_prefix_and_a_longer_prefix_before_a_shorter() {
    let routes = [
        route("root", &["/"]),
        route("all", &["/*"]),
        route("aa", &["/aa"]),
        with_priority(9, route("aa*", &["/aa*"])),
        route("aa/bb*", &["/aa/bb*"]),
        route("several", &["/x", "/y/*"]),
    ];
    check(
        &MODES,
        &routes,
        &[
            (get("/"), Some("root")),
            (get("/aa"), Some("aa")),
            (get("/aa/"), Some("aa*")),
            (get("/aab"), Some("aa*")),
            (get("/aa/bb"), Some("aa/bb*")),
            (get("/aa/bb/cc"), Some("aa/bb*")),
            (get("/x"), Some("several")),
            (get("/x/"), Some("all")),
            (get("/y/z"), Some("several")),
            (get("/zz"), Some("all")),
            (get("/AA"), Some("all")),
        ],
    );
    check(
        &MODES,
        &[route("aa*", &["/aa*"])],
        &[(get("/"), None), (get("/a"), None), (get("/b"), None)],
    );
    check(&MODES, &[], &[(get("/"), None)]);
}

#[test]
fn priority_then_order_then_id_decide_between_equals() {
    let ordered = |order, route| RouteInput { order, ..route };
    check(&MODES, &[route("b", &["/a"]), route("a", &["/a"])], &[(get("/a"), Some("a"))]);
    check(
        &MODES,
        &[ordered(2, route("a", &["/a"])), ordered(1, route("b", &["/a"]))],
        &[(get("/a"), Some("b"))],
    );
    for uri in ["/a", "/a*"] {
        let low = ordered(1, with_priority(1, route("low", &[uri])));
        let high = ordered(2, with_priority(2, route("high", &[uri])));
        let below = with_priority(-1, route("below", &[uri]));
        check(&MODES, &[low.clone(), high.clone()], &[(get("/a"), Some("high"))]);
        check(&MODES, &[high, low], &[(get("/a"), Some("high"))]);
        check(&MODES, &[below, ordered(9, route("zero", &[uri]))], &[(get("/a"), Some("zero"))]);
    }
}

#[test]
fn a_candidate_whose_conditions_fail_is_passed_over() {
    let routes = [
        with_methods(&["POST", "PUT"], route("cc", &["/aa/bb/cc"])),
        with_methods(&["GET", "PURGE"], route("bb", &["/aa/bb*"])),
        with_addrs(&["10.0.0.0/8", "::1"], route("ten", &["/aa*"])),
        with_priority(-1, with_vars(json!([["arg_a", "==", "1"]]), route("one", &["/aa*"]))),
        with_vars(json!([]), route("rest", &["/*"])),
    ];
    let method = |method, target| Request { method, ..get(target) };
    let addr = |addr, target| Request { addr, ..get(target) };
    check(
        &MODES,
        &routes,
        &[
            (method("POST", "/aa/bb/cc"), Some("cc")),
            (method("GET", "/aa/bb/cc"), Some("bb")),
            (method("PURGE", "/aa/bb/cc"), Some("bb")),
            (method("OPTIONS", "/aa/bb/cc"), Some("rest")),
            (method("BREW", "/aa/bb/cc"), Some("rest")),
            (method("get", "/aa/bb/cc"), Some("rest")),
            (addr([10, 1, 2, 3], "/aa/x"), Some("ten")),
            (addr([11, 1, 2, 3], "/aa/x"), Some("rest")),
            (addr([11, 1, 2, 3], "/aa/x?a=1"), Some("one")),
            (addr([10, 1, 2, 3], "/aa/x?a=1"), Some("ten")),
            (method("DELETE", "/aa/bb?a=1"), Some("one")),
        ],
    );
}

#[test]
fn hosts_are_exact_or_wildcards_in_any_case_of_letters() {
    let routes = [
        with_hosts(&["Foo.com"], route("foo", &["/hello"])),
        with_hosts(&["*.bar.com", "bar.org"], route("bar", &["/hello"])),
    ];
    check(
        &MODES,
        &routes,
        &[
            (at("foo.com", "/hello"), Some("foo")),
            (at("FOO.com:9080", "/hello"), Some("foo")),
            (at("www.foo.com", "/hello"), None),
            (at("foo.com", "/none"), None),
            (at("bar.com", "/hello"), None),
            (at("www.bar.com", "/hello"), Some("bar")),
            (at("a.b.Bar.com", "/hello"), Some("bar")),
            (at(".bar.com", "/hello"), Some("bar")),
            (at("xbar.com", "/hello"), None),
            (at("bar.org", "/hello"), Some("bar")),
            (at("", "/hello"), None),
        ],
    );
    check(
        &MODES,
        &[with_hosts(&["*"], route("any", &["/a"]))],
        &[(at("x", "/a"), Some("any")), (at("", "/a"), Some("any"))],
    );
}

#[test]
fn a_host_with_a_port_is_compared_with_the_header_except_by_the_host_router() {
    let routes = [with_hosts(&["foo.com:9080", "[::1]"], route("port", &["/aa*"]))];
    let cases = [
        (at("foo.com:9080", "/aa"), Some("port")),
        (at("Foo.com:9080", "/aa"), Some("port")),
        (at("foo.com:9081", "/aa"), None),
        (at("foo.com", "/aa"), None),
        (at("[::1]:9080", "/aa"), Some("port")),
        (at("[::1]", "/aa"), Some("port")),
    ];
    check(&[Mode::Uri, Mode::UriWithParameter], &routes, &cases);
    check(&[Mode::HostUri], &routes, &[cases[2], cases[3], cases[4], cases[5], (cases[0].0, None)]);
}

#[test]
fn the_host_router_asks_the_exact_host_then_wildcards_then_routes_without_host() {
    let routes = [
        with_priority(99, route("hostless", &["/server_port"])),
        route("fallback", &["/*"]),
        with_hosts(&["www.test.com"], route("exact", &["/exact"])),
        with_hosts(&["*.test.com"], route("wild", &["/wild", "/server_port"])),
        with_hosts(&["*.com"], route("com", &["/*"])),
        with_methods(&["POST"], with_hosts(&["www.test.com"], route("post", &["/wild"]))),
    ];
    check(
        &[Mode::HostUri],
        &routes,
        &[
            (at("www.test.com", "/exact"), Some("exact")),
            (at("www.test.com", "/wild"), Some("wild")),
            (Request { method: "POST", ..at("www.test.com", "/wild") }, Some("post")),
            (at("www.test.com", "/server_port"), Some("wild")),
            (at("www.test.com", "/other"), Some("com")),
            (at("w3.test.com", "/exact"), Some("com")),
            (at("test.org", "/server_port"), Some("hostless")),
            (at("test.org", "/exact"), Some("fallback")),
        ],
    );
    // The other modes ask for the uri first.
    check(
        &[Mode::Uri],
        &routes,
        &[
            (at("www.test.com", "/exact"), Some("exact")),
            (at("www.test.com", "/server_port"), Some("hostless")),
            (at("w3.test.com", "/exact"), Some("com")),
        ],
    );
}

#[test]
fn a_colon_is_a_parameter_in_one_mode_only() {
    let routes = [
        route("file", &["/file:list"]),
        route("bar", &["/name/:name/bar"]),
        with_priority(-1, route("hello", &["/:name/hello"])),
        with_hosts(&["bar.com"], route("bar.com", &["/:name/hello"])),
        route("long", &["/api/:v/test/api/projects/:project/clusters/:cluster/nodes/?"]),
        route("medium", &["/api/:v/test/api/projects/:project"]),
        route("short", &["/api/:v/test/*sub"]),
    ];
    check(
        &[Mode::HostUri, Mode::Uri],
        &routes,
        &[
            (get("/file:list"), Some("file")),
            (get("/file:xx"), None),
            (get("/name/json/bar"), None),
            (get("/name/:name/bar"), Some("bar")),
        ],
    );
    check(
        &[Mode::UriWithParameter],
        &routes,
        &[
            (get("/file:xx"), Some("file")),
            (get("/name/json/bar"), Some("bar")),
            (get("/name/json2/foo"), None),
            (get("/name/json/"), None),
            (get("/john/hello"), Some("hello")),
            (at("bar.com", "/john/hello"), Some("bar.com")),
            (get("/api/v4/test/api/projects/saas/clusters/123/nodes/"), Some("long")),
            (get("/api/v4/test/api/projects/saas"), Some("medium")),
            (get("/api/v4/test/api"), Some("short")),
        ],
    );
}

#[test]
fn a_match_tells_how_it_came_about() {
    let routes = [
        with_hosts(&["foo.com", "*.COM", "*.foo.com"], route("1", &["/hello", "/a/*"])),
        route("2", &["/u/:id/*rest"]),
        route("3", &["*"]),
    ];
    let mut matched = Matched::default();
    for (mode, request, path, host, params) in [
        (Mode::HostUri, at("foo.com", "/hello"), "/hello", Some("foo.com"), ""),
        (Mode::HostUri, at("x.foo.com", "/a/b/c"), "/a/*", Some("*.foo.com"), ":ext=b/c"),
        (Mode::HostUri, at("x.com", "/hello"), "/hello", Some("*.com"), ""),
        (Mode::HostUri, at("x.org", "/hello"), "*", None, ":ext=/hello"),
        (Mode::Uri, at("foo.com", "/hello"), "/hello", Some("foo.com"), ""),
        (Mode::Uri, at("y.com", "/a/"), "/a/*", Some("*.com"), ":ext="),
        (Mode::Uri, at("y.org", "/a/"), "*", None, ":ext=/a/"),
        (Mode::UriWithParameter, get("/u/7/x/y"), "/u/:id/*rest", None, "id=7 rest=x/y"),
        (Mode::UriWithParameter, get("/u/7"), "*", None, ":ext=/u/7"),
    ] {
        let router = build(mode, &routes);
        assert!(ask(&router, request, &mut matched).is_some());
        let shown: Vec<_> = matched
            .params()
            .map(|(name, range)| format!("{name}={}", &request.target[range]))
            .collect();
        assert_eq!(
            (matched.path(), matched.host(), &*shown.join(" ")),
            (path, host, params),
            "{mode:?}"
        );
    }
    assert_eq!(matched.ext().map(|range| range.len()), Some(4));
    assert_eq!(ask(&build(Mode::Uri, &[]), get("/"), &mut matched), None);
    assert_eq!((matched.path(), matched.host(), matched.params().count()), ("", None, 0));
}

#[test]
fn a_route_without_uri_or_twice_with_one_does_no_harm() {
    let routes = [route("none", &[]), route("twice", &["/a", "/a", "/a*", "/a*"])];
    check(&MODES, &routes, &[(get("/a"), Some("twice")), (get("/ab"), Some("twice"))]);
    let router = build(Mode::Uri, &routes).updated(["twice", "unknown"], []);
    assert_eq!((router.len(), ask(&router, get("/a"), &mut Matched::default())), (1, None));
}

#[test]
fn hosts_of_the_same_routes_share_their_places() {
    let many = route("many", &["/a", "/b"]);
    let many = with_hosts(&["one.test", "two.test", "*.three.test"], many);
    let other = with_hosts(&["two.test"], route("other", &["/c"]));
    let places = |router: &Router<&'static str>, host: &str| {
        let host: Vec<u8> = host.bytes().rev().collect();
        router.hosts.exact(&host).expect("the host has a route").uris.address()
    };
    let empty = build(Mode::HostUri, &[]);
    for router in
        [build(Mode::HostUri, std::slice::from_ref(&many)), empty.updated([], [many.clone()])]
    {
        assert_eq!(places(&router, "one.test"), places(&router, "two.test"));
        let both = router.updated([], [other.clone()]);
        assert_ne!(places(&both, "one.test"), places(&both, "two.test"));
        let find = |router: &Router<&'static str>, host, uri| {
            ask(router, at(host, uri), &mut Matched::default())
        };
        for host in ["one.test", "two.test", "x.three.test"] {
            assert_eq!(find(&both, host, "/b"), Some("many"), "{host}");
            assert_eq!(find(&both, host, "/c"), (host == "two.test").then_some("other"), "{host}");
        }
        let rest = both.updated(["many"], []);
        assert_eq!(find(&rest, "two.test", "/c"), Some("other"));
        assert_eq!(find(&rest, "two.test", "/b"), None);
        assert!(rest.updated(["other"], []).hosts.is_empty());
    }
}

#[test]
fn the_last_route_with_an_id_counts() {
    let mut builder = Router::builder(Mode::Uri);
    builder.insert(RouteInput::new("1", "/old", 1)).insert(RouteInput::new("1", "/new", 2));
    let router = builder.build();
    assert_eq!((router.len(), router.get("1"), router.get("2")), (1, Some(&2), None));
    assert_eq!(ask(&router, get("/old"), &mut Matched::default()), None);
    assert_eq!(ask(&router, get("/new"), &mut Matched::default()), Some(2));
}

#[test]
fn methods_that_apisix_does_not_know_are_named() {
    assert_eq!(Methods::parse(["GET", "GETX"]), Err("invalid method 'GETX'".to_owned()));
    assert_eq!(Methods::parse::<[&str; 0]>([]), Ok(Methods::ANY));
    assert!(Methods::parse(NAMES).is_ok_and(|all| NAMES.iter().all(|name| all.admit(name))));
}

#[test]
fn modes_have_apisix_names() {
    assert_eq!(Mode::parse("radixtree_host_uri"), Some(Mode::HostUri));
    assert_eq!(Mode::parse("radixtree_uri"), Some(Mode::Uri));
    assert_eq!(Mode::parse("radixtree_uri_with_parameter"), Some(Mode::UriWithParameter));
    assert_eq!(Mode::parse("r3"), None);
}

/// What the router promises, over a plain list: every place of every route is rated, the best wins.
mod naive {
    use super::*;

    fn uri_rating(mode: Mode, uri: &str, path: &str) -> Option<(bool, usize)> {
        let colon = if mode == Mode::UriWithParameter { uri.find(':') } else { None };
        let Some(cut) = colon.or_else(|| uri.find('*')) else {
            return (uri == path).then_some((true, 0));
        };
        path.starts_with(&uri[..cut]).then_some(())?;
        let odd = uri.split('/').any(|segment| segment.starts_with([':', '*']));
        (!odd || fits(&uri.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>()))
            .then_some((false, cut))
    }

    fn fits(uri: &[&str], path: &[&str]) -> bool {
        match (uri.first(), path) {
            (None, []) => true,
            (None, _) | (Some(_), []) => false,
            (Some(star), _) if star.starts_with('*') => {
                (1..=path.len()).any(|many| fits(&uri[1..], &path[many..]))
            }
            (Some(name), [first, ..]) if name.starts_with(':') => {
                !first.is_empty() && fits(&uri[1..], &path[1..])
            }
            (Some(text), [first, ..]) => text == first && fits(&uri[1..], &path[1..]),
        }
    }

    /// Exact or not, and how long the host is.
    fn host_rating(pattern: &str, host: &str) -> Option<(bool, usize)> {
        match pattern.strip_prefix('*') {
            Some(text) => host.ends_with(text).then_some((false, text.len())),
            None => (pattern == host).then_some((true, host.len())),
        }
    }

    pub(super) fn find<T: Clone>(
        mode: Mode,
        routes: &[RouteInput<T>],
        request: Request,
    ) -> Option<T> {
        let (path, query) =
            request.target.split_once("?a=").map_or((request.target, None), |(p, q)| (p, Some(q)));
        let mut rated = Vec::new();
        for route in routes {
            let admitted = route.methods.admit(request.method)
                && route
                    .remote_addrs
                    .as_ref()
                    .is_none_or(|set| set.contains(IpAddr::from(request.addr)))
                && route.vars.as_ref().is_none_or(|expr| expr.eval(&Query(query)));
            let host = match route.hosts.is_empty() {
                true => Some((false, 0)),
                false => {
                    let ratings =
                        route.hosts.iter().filter_map(|host| host_rating(host, request.host));
                    ratings.map(|(exact, length)| (exact, length + 1)).max()
                }
            };
            let Some(host) = host.filter(|_| admitted) else { continue };
            let host = if mode == Mode::HostUri { host } else { (false, 0) };
            for uri in &route.uris {
                if let Some(rating) = uri_rating(mode, uri, path) {
                    let last = std::cmp::Reverse((route.order, route.id.clone()));
                    rated.push((
                        (host, rating, route.priority, uri.len(), last),
                        route.payload.clone(),
                    ));
                }
            }
        }
        rated.into_iter().max_by(|left, right| left.0.cmp(&right.0)).map(|(_, payload)| payload)
    }
}

/// A small generator, so that a failing case can be found again by its number.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn some<T: Copy + Debug>(&mut self, most: usize, all: &[T]) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| self.of(all)).collect()
    }

    fn route(&mut self) -> RouteInput<u64> {
        const URIS: [&str; 19] = [
            "/", "/*", "*", "/a", "/a*", "/a/*", "/a/b", "/a/b*", "/a/:x", "/a/:x/b", "/:x/b",
            "/a/:x/*", "/ab", "/ab/*", "/a/*/b", "/a:b", "/a*b", "/:x", "/a/*y",
        ];
        const HOSTS: [&str; 6] = ["a.com", "b.com", "*.com", "*.a.com", "*", "x.a.com"];
        let number = self.0;
        RouteInput {
            uris: [self.of(&URIS)]
                .into_iter()
                .chain(self.some(2, &URIS))
                .map(str::to_owned)
                .collect(),
            hosts: match self.below(2) {
                0 => Vec::new(),
                _ => self.some(2, &HOSTS).into_iter().map(str::to_owned).collect(),
            },
            methods: Methods::parse(match self.below(3) {
                0 => self.some(2, &["GET", "POST", "PURGE"]),
                _ => Vec::new(),
            })
            .expect("known methods"),
            remote_addrs: (self.below(5) == 0).then(|| {
                IpSet::parse([self.of(&["10.0.0.0/8", "127.0.0.1"])]).expect("well-formed")
            }),
            vars: (self.below(5) == 0).then(|| {
                Expr::compile(&json!([["arg_a", "==", self.of(&["1", "2"])]])).expect("compiles")
            }),
            priority: self.of(&[0, 0, 0, 1, -1]),
            order: self.below(3) as u64,
            ..RouteInput::new(self.below(12).to_string(), "", number)
        }
    }

    fn request(&mut self) -> Request {
        const TARGETS: [&str; 16] = [
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/a/b/",
            "/a/b/b",
            "/a//b",
            "/ab",
            "/ab/c",
            "/abc",
            "/b",
            "/b/b",
            "/a/c?a=1",
            "/a/c/d?a=2",
            "/a:b",
            "/a:c",
        ];
        Request {
            target: self.of(&TARGETS),
            host: self.of(&["a.com", "b.com", "x.a.com", "y.a.com", "c.org", ""]),
            method: self.of(&["GET", "POST", "PURGE", "BREW"]),
            addr: self.of(&[[127, 0, 0, 1], [10, 1, 1, 1], [8, 8, 8, 8]]),
        }
    }
}

#[test]
fn the_router_finds_what_a_plain_list_finds() {
    for seed in 0..1500 {
        let mut random = Random(seed);
        let mode = random.of(&MODES);
        let mut routes: Vec<RouteInput<u64>> = Vec::new();
        let mut builder = Router::builder(mode);
        for _ in 0..random.below(12) {
            let route = random.route();
            builder.insert(route.clone());
            routes.retain(|old| old.id != route.id);
            routes.push(route);
        }
        let router = builder.build();
        assert_eq!(router.len(), routes.len());
        for _ in 0..40 {
            let request = random.request();
            let found = ask(&router, request, &mut Matched::default());
            let Request { target, host, .. } = request;
            assert_eq!(
                found,
                naive::find(mode, &routes, request),
                "#{seed} {mode:?} {host}{target}\n{routes:#?}"
            );
        }
    }
}

#[test]
fn an_updated_router_is_the_router_built_anew() {
    for seed in 0..150 {
        let mut random = Random(seed);
        let mode = random.of(&MODES);
        let mut routes: Vec<RouteInput<u64>> = Vec::new();
        let mut router = Router::builder(mode).build();
        for step in 0..15 {
            let old = router.clone();
            let before = format!("{old:?}");
            let (mut gone, mut come) = (Vec::new(), Vec::new());
            for _ in 0..random.below(3) {
                gone.push(random.below(12).to_string());
            }
            for _ in 0..random.below(3) {
                come.push(random.route());
            }
            router = router.updated(gone.iter().map(String::as_str), come.clone());
            routes.retain(|old| !gone.iter().any(|id| **id == *old.id));
            for route in come {
                routes.retain(|old| old.id != route.id);
                routes.push(route);
            }
            let (mut builder, mut again) = (Router::builder(mode), Router::builder(mode));
            for route in &routes {
                builder.insert(route.clone());
                again.insert(router.input(&route.id).expect("it was put in"));
            }
            for anew in [builder.build(), again.build()] {
                assert_eq!(format!("{router:?}"), format!("{anew:?}"), "#{seed} step {step}");
            }
            assert_eq!(
                format!("{old:?}"),
                before,
                "#{seed} step {step}: the old router stays as it was"
            );
        }
    }
}

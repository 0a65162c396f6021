mod filters;
mod library;
mod limits;

use serde_json::json;
use sluicegate_testkit::plugin::Ran;
use sluicegate_testkit::{PluginTest, origin::Answer};

use super::*;

type Pre = ServerlessPreFunction;

fn test(phase: &str, script: &str) -> PluginTest<Pre> {
    PluginTest::<Pre>::new().config(json!({"phase": phase, "functions": [script]}))
}

#[track_caller]
fn run(script: &str) -> Ran {
    test("access", script).run()
}

/// Runs a function whose last line prints, and compares what the client gets.
#[track_caller]
fn says(script: &str, expected: &str) {
    let ran = run(&format!("return function(conf, ctx) {script} ngx.exit(200) end"));
    assert_eq!((ran.status, ran.body().as_str()), (200, expected), "{script}");
}

#[track_caller]
fn refused(config: &Value, text: &str) {
    assert_eq!(crate::tests::refusal::<Pre>(config), text);
}

/// The same zones for every test of this process.
fn with_zones() {
    crate::configure_lua(&Value::Null, &[("zone".to_owned(), 1 << 20), ("small".to_owned(), 1)])
        .unwrap();
}

#[test]
fn sources_are_checked_with_apisixs_words() {
    PluginTest::<Pre>::check_schema(&json!({"functions": ["return function() end"]}));
    for (source, text) in [
        ("local a = 123;", "only accept Lua function, the input code type is nil"),
        ("return 1", "only accept Lua function, the input code type is number"),
        ("return ngx.null", "only accept Lua function, the input code type is userdata"),
        ("a", "failed to loadstring: [string \"a\"]:1: '=' expected near '<eof>'"),
        ("zz(", "failed to loadstring: [string \"zz(\"]:1: unexpected symbol near '<eof>'"),
        ("error('no')", "pcall error: [string \"error('no')\"]:1: no"),
    ] {
        refused(&json!({"functions": [source]}), text);
    }
    refused(
        &json!({"functions": ["return function() end"], "phase": "abc"}),
        "property \"phase\" validation failed: matches none of the enum values",
    );
    refused(
        &json!({"functions": []}),
        "property \"functions\" validation failed: expect array to have at least 1 items",
    );
    refused(&json!({}), "property \"functions\" is required");
}

#[test]
fn what_a_function_returns_ends_the_request() {
    for (script, status, body) in [
        ("return 403, 'forbidden'", 403, "forbidden"),
        ("return 403, {message = 'no'}", 403, "{\"message\":\"no\"}\n"),
        ("return nil, 'only a body'", 200, "only a body"),
        ("return 'only a body'", 200, "only a body"),
        ("return 201", 201, ""),
        ("ngx.exit(201)", 201, ""),
        ("ngx.status = 418 ngx.say('teapot') ngx.exit(418)", 418, "teapot\n"),
        ("ngx.print('a', 1, true, nil, {'b', {2}})", 200, "a1truenilb2"),
        (
            "require('apisix.core').response.exit(402, {error_msg = 'pay'})",
            402,
            "{\"error_msg\":\"pay\"}\n",
        ),
        ("pcall(ngx.exit, 204) ngx.exit(500)", 204, ""),
    ] {
        let ran = run(&format!("return function(conf, ctx) {script} end"));
        assert_eq!((ran.status, ran.body().as_str()), (status, body), "{script}");
        assert!(ran.sent.is_empty(), "{script}");
        if status != 204 {
            let kind = ran.response.header("content-type");
            assert_eq!(kind, Some("text/plain; charset=utf-8"), "{script}");
        }
    }
}

#[test]
fn an_exit_without_a_body_answers_the_gateways_page() {
    let ran = run("return function() ngx.exit(403) end");
    assert_eq!(ran.status, 403);
    assert!(ran.body().contains("<title>403 Forbidden</title>"), "{}", ran.body());
    let ran = run(
        "return function() ngx.header['Location'] = 'https://foo.com' .. ngx.var.request_uri ngx.exit(ngx.HTTP_MOVED_PERMANENTLY) end",
    );
    assert_eq!(ran.status, 301);
    assert_eq!(ran.response.header("location"), Some("https://foo.com/"));
    let ran = run("return function() return ngx.redirect('/there') end");
    assert_eq!((ran.status, ran.response.header("location")), (302, Some("/there")));
}

#[test]
fn a_function_that_says_nothing_lets_the_request_pass() {
    for script in ["", "return nil", "ngx.exit(ngx.OK)", "return false", "ngx.exit(ngx.DECLINED)"] {
        let ran = run(&format!("return function(conf, ctx) {script} end"));
        assert_eq!((ran.status, ran.sent.len()), (200, 1), "{script}");
    }
}

#[test]
fn functions_run_in_turn_until_one_ends_the_request() {
    let ran = PluginTest::<Pre>::new()
        .config(json!({"functions": [
            "return function() ngx.ctx.n = 1 end",
            "return function() ngx.ctx.n = ngx.ctx.n + 1 end",
            "return function() return 200, 'n = ' .. ngx.ctx.n end",
            "return function() return 500, 'not reached' end",
        ]}))
        .run();
    assert_eq!((ran.status, ran.body().as_str()), (200, "n = 2"));
}

#[test]
fn errors_answer_500_and_no_more() {
    for script in ["error('secret')", "local x = nil; x.y = 1", "error({})", "cjson.decode('{')"] {
        let ran = run(&format!("return function() {script} end"));
        assert_eq!((ran.status, ran.sent.len()), (500, 0), "{script}");
        assert!(!ran.body().contains("secret"));
    }
}

#[test]
fn requests_are_changed_before_they_are_sent_on() {
    let ran = test(
        "rewrite",
        "return function(conf, ctx)
            local core = require('apisix.core')
            ngx.req.set_header('X-One', 1)
            ngx.req.set_header('X-Two', {'a', 'b'})
            core.request.set_header(ctx, 'X-Three', 'c')
            core.request.add_header(ctx, 'X-Four', 'd')
            ngx.req.clear_header('X-Gone')
            ngx.req.set_uri('/new path')
            ngx.req.set_uri_args({a = 'x y'})
            ngx.req.set_method(ngx.HTTP_PUT)
            ngx.req.read_body()
            ngx.req.set_body_data(ngx.req.get_body_data() .. ' and more')
        end",
    )
    .request("POST", "/old?b=1")
    .request_header("X-Gone", Some("here"))
    .request_body("body")
    .run();
    let sent = ran.sent();
    assert_eq!((sent.method.as_str(), sent.target.as_str()), ("PUT", "/new%20path?a=x%20y"));
    assert_eq!(sent.body, b"body and more");
    assert_eq!((sent.header("x-one"), sent.header("x-three")), (Some("1"), Some("c")));
    assert_eq!(sent.header("x-gone"), None);
    assert_eq!(sent.header("content-length"), Some("13"));
    let ran = run("return function(conf, ctx) ctx.var.upstream_uri = '/server_port' end");
    assert_eq!(ran.sent().target, "/server_port");
}

#[test]
fn the_request_is_seen_as_it_is() {
    let ran = test(
        "access",
        "return function(conf, ctx)
            local headers, args = ngx.req.get_headers(), ngx.req.get_uri_args()
            ngx.req.read_body()
            local post = ngx.req.get_post_args()
            ngx.say(ngx.var.request_method, ' ', ngx.var.uri, ' ', ngx.var.args, ' ', ngx.var.arg_a)
            ngx.say(headers['X-Some'], headers.x_some, headers['x-none'], #headers['x-twice'])
            ngx.say(args.a[1], args.a[2], args.b, args.c)
            ngx.say(post.p, ' ', ngx.req.get_method(), ' ', ngx.req.http_version())
            ngx.say(ngx.get_phase(), ' ', ngx.config.subsystem, ' ', ngx.worker.id())
            ngx.say(conf.phase, ' ', ctx.curr_req_matched._path, ' ', ctx.var.uri, ' ', ctx.route_id)
            ngx.say(ctx.matched_route.value.id, ' ', ctx.var.none, ' ', ngx.var.http_x_some)
            ngx.say(ngx.ctx.api_ctx == ctx, ' ', ngx.req.start_time() > 0, ' ', ngx.now() >= ngx.req.start_time())
            local mine = require('apisix.core').request
            ngx.say(mine.header(ctx, 'X-Some'), ' ', mine.get_method(), ' ', mine.get_uri_args(ctx).b, ' ', mine.get_body(100, ctx))
            ngx.say(mine.get_body(2, ctx))
            return ngx.exit(200)
        end",
    )
    .request("POST", "/p?a=1&b=%202&a=3&c")
    .request_header("X-Some", Some("value"))
    .request_header("X-Twice", Some("1"))
    .request_header("X-Twice", Some("2"))
    .request_header("Content-Type", Some("application/x-www-form-urlencoded"))
    .request_body("p=q%26")
    .run();
    assert_eq!(
        ran.body(),
        "POST /p a=1&b=%202&a=3&c 1\nvaluevaluenil2\n13 2true\nq& POST 1.1\naccess http 0\n\
         access /* /p 1\n1 nil value\ntrue true true\nvalue POST  2 p=q%26\nnil\
         request size 6 is greater than the maximum size 2 allowed\n"
    );
}

#[test]
fn upvalues_are_kept_from_request_to_request() {
    let config = json!({"functions": [
        "local count = 1 return function() count = count + 1 ngx.print(count) end",
    ]});
    let mut registry = sluicegate_gateway::plugin::Registry::default();
    registry.add::<Pre>();
    let route = json!({"id": "1", "uri": "/*", "plugins": {Pre::NAME: config}});
    let gateway = sluicegate_testkit::plugin::InProcess::start(
        registry,
        vec![(sluicegate_model::kind::Kind::Routes, "1", route)],
    );
    let mut client = sluicegate_testkit::client::Client::connect(gateway.addr);
    for expected in ["2", "3", "4"] {
        client.send(sluicegate_testkit::client::request_bytes("GET", "/", &[], b""));
        assert_eq!(client.response().text(), expected);
    }
    drop(client);
    gateway.stop();
}

/// However busy the machine is.
fn with_time() {
    sluicegate_lua::configure(sluicegate_lua::Limits {
        time: std::time::Duration::from_secs(60),
        ..sluicegate_lua::Limits::default()
    });
}

/// A gateway with one core and these routes, each with its script in the `access` phase.
fn gateway(scripts: &[(&'static str, &str)]) -> sluicegate_testkit::plugin::InProcess {
    let route = |id: &str, script: &str| json!({"id": id, "uri": format!("/{id}"), "plugins": {Pre::NAME: {"functions": [script]}}});
    let kind = sluicegate_model::kind::Kind::Routes;
    let routes = scripts.iter().map(|(id, script)| (kind, *id, route(id, script))).collect();
    sluicegate_testkit::plugin::InProcess::start(crate::registry(), routes)
}

#[test]
fn a_variable_that_a_function_sets_is_seen_by_other_plugins() {
    let route = json!({"id": "1", "uri": "/*", "plugins": {
        Pre::NAME: {"phase": "rewrite", "functions": [
            "return function(conf, ctx) ctx.var.my = ngx.req.get_uri_args().who ctx.var.n = 7 end"]},
        "response-rewrite": {
            "status_code": 418, "body": "no tea", "vars": [["my", "==", "eve"], ["n", "==", "7"]]},
        "mocking": {"response_status": 200, "response_example": "passed"},
    }});
    let kind = sluicegate_model::kind::Kind::Routes;
    let gateway =
        sluicegate_testkit::plugin::InProcess::start(crate::registry(), vec![(kind, "1", route)]);
    for (target, status) in [("/?who=eve", 418), ("/?who=ann", 200), ("/", 200)] {
        let answer = sluicegate_testkit::client::get(gateway.addr, target);
        assert_eq!(answer.status, status, "{target}");
    }
    gateway.stop();
}

#[test]
fn a_filter_func_is_one_of_a_routes_conditions() {
    let mut registry = crate::registry();
    registry.run_filter_funcs(sluicegate_lua::FILTER_FUNCS);
    let kind = sluicegate_model::kind::Kind::Routes;
    let route = |id: &str, priority: i64, filter: &str| {
        let say = format!("return function() return 200, '{id}' end");
        json!({"id": id, "uri": "/*", "priority": priority, "filter_func": filter,
            "plugins": {Pre::NAME: {"functions": [say]}}})
    };
    let gateway = sluicegate_testkit::plugin::InProcess::start(
        registry,
        vec![
            (kind, "fails", route("fails", 9, "function(vars) error('x') end")),
            (kind, "loops", route("loops", 8, "function(vars) while vars.arg_loop do end end")),
            (kind, "waits", route("waits", 7, "function(vars) ngx.sleep(1) return true end")),
            (
                kind,
                "args",
                route(
                    "args",
                    6,
                    "function(vars)\n return vars['arg_a1'] == 'a1' and vars.arg_a2 == 'a2' end",
                ),
            ),
            (
                kind,
                "header",
                route(
                    "header",
                    5,
                    "function(vars) return ngx.req.get_headers()['x-beta'] == 'yes' end",
                ),
            ),
            (kind, "all", route("all", 0, "function() return true end")),
        ],
    );
    for (target, header, found) in [
        ("/?a1=a1&a2=a2", None, "args"),
        ("/?a1=a1", None, "all"),
        ("/", Some("yes"), "header"),
        ("/?loop", None, "all"),
    ] {
        let headers: Vec<_> = header.map(|value| ("X-Beta", value)).into_iter().collect();
        let bytes = sluicegate_testkit::client::request_bytes("GET", target, &headers, b"");
        let mut client = sluicegate_testkit::client::Client::connect(gateway.addr);
        client.send(bytes);
        assert_eq!(client.response().text(), found, "{target}");
    }
    gateway.stop();
    let check = sluicegate_lua::FILTER_FUNCS.check;
    for (source, text) in [
        ("function(vars) return true end", ""),
        ("1", "'filter_func' should be a function"),
        ("nil", "'filter_func' should be a function"),
        ("function(", "failed to load 'filter_func' string: [string \"return function(\"]:1: "),
    ] {
        let error = check(source).err().unwrap_or_default();
        assert!(
            error.starts_with(text) && error.is_empty() == text.is_empty(),
            "{source}: {error}"
        );
    }
}

#[test]
fn the_host_that_an_upstream_sees_can_be_set() {
    for script in ["ngx.var.upstream_host = 'other.test'", "ctx.var.upstream_host = 'other.test'"] {
        let ran = run(&format!("return function(conf, ctx) {script} end"));
        assert_eq!((ran.status, ran.sent_header("host")), (200, Some("other.test")), "{script}");
    }
    let ran = run("return function() ngx.var.upstream_host = 'a\\r\\nx: y' end");
    assert_eq!(ran.status, 500);
}

#[test]
fn before_proxy_runs_last_and_may_end_the_request() {
    let ran =
        test("before_proxy", "return function() ngx.req.set_header('X-Late', ngx.get_phase()) end")
            .run();
    assert_eq!((ran.status, ran.sent_header("x-late")), (200, Some("access")));
    let ran = test("before_proxy", "return function() return 403, 'no' end").run();
    assert_eq!((ran.status, ran.sent.len(), ran.body().as_str()), (403, 0, "no"));
    let ran = test("before_proxy", "return function() ngx.sleep(0.001) error('x') end").run();
    assert_eq!((ran.status, ran.sent.len()), (500, 0));
}

#[test]
fn log_functions_see_what_was_sent() {
    with_zones();
    let log = "return function(conf, ctx)
        local said = pcall(ngx.say, 'x')
        ngx.shared.zone:set('logged', table.concat({ngx.status, ngx.get_phase(), ngx.header['X-From'], ctx.var.status, tostring(said)}, ' '))
        return 500, 'goes nowhere'
    end";
    let second = "return function() ngx.shared.zone:set('second', true) end";
    let ran = PluginTest::<Pre>::new()
        .config(json!({"phase": "log", "functions": [log, second]}))
        .origin_answer(Answer::status(201).header("X-From", "origin").body("b"))
        .run();
    assert_eq!((ran.status, ran.body().as_str()), (201, "b"));
    sluicegate_testkit::wait::until("the function ran", || {
        let told = run("return function() return 200, ngx.shared.zone:get('logged') or '' end");
        (told.body() == "201 log origin 201 false").then_some(())
    });
    says("ngx.print(tostring(ngx.shared.zone:get('second')))", "nil");
}

#[test]
fn a_timeout_longer_than_a_minute_is_kept() {
    let origin = sluicegate_testkit::origin::Origin::text("x");
    let script = format!(
        "return function() local c = require('resty.http').new() c:set_timeout(120000)
        return 200, c:request_uri('{}').body end",
        origin.url("/")
    );
    assert_eq!(run(&script).body(), "x");
}

#[test]
fn modules_are_read_where_package_path_allows_it() {
    let folder = std::env::temp_dir().join(format!("sluicegate-modules-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("a")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("plain.lua", "return {answer = 42, name = ...}");
    write("a/b.lua", "return function() return 'nested' end");
    write("wrong.lua", "return (");
    write("fails.lua", "error('no')");
    write("nothing.lua", "loaded = (loaded or 0) + 1");
    write("bytes.lua", "\x1bLJ\x02");
    write("most.lua", &format!("return 1 --{}", "x".repeat((1 << 20) - 11)));
    write("more.lua", &format!("return 1 --{}", "x".repeat((1 << 20) - 10)));
    std::fs::create_dir_all(folder.join("folder.lua")).unwrap();
    let script = |name: &str, then: &str| {
        format!("local ok, m = pcall(require, '{name}') ngx.print(tostring(ok), ' ', {then})")
    };
    says(&script("plain", "m:match('not found')"), "false not found");
    sluicegate_lua::configure(sluicegate_lua::Limits {
        package_path: vec!["/nowhere/?.lua".into(), folder.join("?.lua")],
        ..sluicegate_lua::Limits::default()
    });
    for (name, then, said) in [
        ("plain", "m.answer, m.name", "true 42plain"),
        ("a.b", "m()", "true nested"),
        ("nothing", "m, require('nothing'), loaded", "true truetrue1"),
        ("cjson", "type(m.encode)", "true function"),
        ("missing", "m:match('not found')", "false not found"),
        ("wrong", "m:match('unexpected symbol') or m", "false unexpected symbol"),
        ("fails", "m:match('no$')", "false no"),
        ("bytes", "m:match('not found')", "false not found"),
        ("most", "m", "true 1"),
        ("more", "m:match('larger than 1048576 bytes')", "false larger than 1048576 bytes"),
        ("folder", "m:match('this is no file')", "false this is no file"),
        (
            "../plain",
            "m:match('characters that no module has')",
            "false characters that no module has",
        ),
        ("a..b", "m:match('characters')", "false characters"),
        ("/etc/passwd", "m:match('characters')", "false characters"),
        ("pl\\0ain", "m:match('characters')", "false characters"),
    ] {
        says(&script(name, then), said);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

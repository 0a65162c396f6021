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
fn a_source_that_never_ends_is_refused() {
    // By its instructions or, where others keep the machine busy, by its time.
    let error = crate::tests::refusal::<Pre>(&json!({"functions": ["while true do end"]}));
    assert!(error.starts_with("pcall error: the script ran "), "{error}");
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
fn the_library_answers_as_openresty_does() {
    for (script, expected) in [
        (
            "ngx.print(ngx.md5('a'), ngx.encode_base64('hi'), ngx.decode_base64('aGk='))",
            "0cc175b9c0f1b6a831c399e269772661aGk=hi",
        ),
        ("ngx.print(ngx.escape_uri('a b/c'), ngx.unescape_uri('a%20b+c'))", "a%20b%2Fca b c"),
        ("ngx.print(ngx.encode_args({a = {1, 2}}), ngx.decode_args('x=1').x)", "a=1&a=21"),
        (
            "ngx.print(ngx.http_time(1547178736), ngx.parse_http_time('Thu, 18 Nov 2010 11:27:35 GMT'))",
            "Fri, 11 Jan 2019 03:52:16 GMT1290079655",
        ),
        ("ngx.print(ngx.cookie_time(1547178736))", "Fri, 11-Jan-19 03:52:16 GMT"),
        (
            "ngx.print(ngx.crc32_short('123456789'), ' ', #ngx.sha1_bin(''), #ngx.hmac_sha1('k', 'd'))",
            "3421780262 2020",
        ),
        (
            "ngx.print(#ngx.today(), #ngx.localtime(), #ngx.utctime(), ngx.time() > 1e9)",
            "101919true",
        ),
        ("ngx.print(ngx.HTTP_FORBIDDEN, ngx.ERR, tostring(ngx.null))", "4034userdata: NULL"),
        (
            "local m = ngx.re.match('hello, 1234', '([0-9])(?<rest>[0-9]+)', 'jo') ngx.print(m[0], m[1], m.rest)",
            "12341234",
        ),
        ("local from, to = ngx.re.find('hello, 1234', '[0-9]+') ngx.print(from, to)", "811"),
        (
            "local s, n = ngx.re.gsub('hello, 1234', '([0-9])', '[$1]') ngx.print(s, n)",
            "hello, [1][2][3][4]4",
        ),
        (
            "local s, n = ngx.re.sub('abc', '[a-z]', function(m) return '<' .. m[0] .. '>' end) ngx.print(s, n)",
            "<a>bc1",
        ),
        ("for m in ngx.re.gmatch('a1b2', '[0-9]') do ngx.print(m[0], ';') end", "1;2;"),
        ("ngx.print(ngx.re.match('a', '(')) ", "nilpcre_compile() failed"),
        ("ngx.print(table.concat(require('ngx.re').split('a,b,c', ','), '|'))", "a|b|c"),
        (
            "local c = require('cjson') ngx.print(c.encode({1, 2, {a = c.null}}), c.decode('[1,null]')[2] == ngx.null)",
            "[1,2,{\"a\":null}]true",
        ),
        (
            "local c = require('cjson.safe') ngx.print(c.decode('{'))",
            "nilExpected value but found invalid token",
        ),
        (
            "local c = require('cjson') ngx.print(pcall(c.decode, '{') == false, c.encode({}), c.encode(c.empty_array))",
            "true{}[]",
        ),
        (
            "local c = require('apisix.core') ngx.print(c.json.encode({a = 1.5}), c.json.decode('{\"b\":2}').b)",
            "{\"a\":1.5}2",
        ),
        (
            "local c = require('apisix.core') ngx.print(c.string.has_prefix('abc', 'ab'), c.string.find('a.b', '.'), c.table.nkeys({a = 1}))",
            "true21",
        ),
        (
            "local c = require('apisix.core') ngx.print(c.utils.resolve_var('$uri/${args}x', ctx.var), #c.utils.uuid())",
            "//x36",
        ),
        ("ngx.print(('x'):rep(3), ('a,b'):gsub(',', ';'))", "xxxa;b1"),
        (
            "ngx.print((('k=v'):gsub('(%w)=(%w)', function(k, v) return v .. k end)), ('abc'):match('b'))",
            "vkb",
        ),
        ("for k, v in ('a=1, b=2'):gmatch('(%w)=(%w)') do ngx.print(k, v) end", "a1b2"),
        (
            "ngx.print(string.format('%05.1f|%s', 3.14159, 'x'), ('x'):byte(), string.find('abc', 'b', 1, true))",
            "003.1|x12022",
        ),
        (
            "ngx.print(select('#', pcall(error, 'x')), type(os.time()), os.execute, io, debug, loadfile, dofile, getfenv)",
            "2numbernilnilnilnilnilnil",
        ),
        (
            "ngx.print(loadstring('return 1 + 1')(), load('syntax error here'))",
            "2nil[string \"syntax error here\"]:1: '=' expected near 'error'",
        ),
        (
            "ngx.print(require('bit').band(6, 3), require('table.new')(1, 1) ~= nil, require('resty.string').to_hex('a'))",
            "2true61",
        ),
        (
            "local co = coroutine.wrap(function() coroutine.yield(1) ngx.sleep(0.001) coroutine.yield(2) end) ngx.print(co(), co())",
            "12",
        ),
        (
            "ngx.print(pcall(function() ngx.sleep(0.001) error('after a wait', 0) end))",
            "falseafter a wait",
        ),
        ("ngx.print(ngx.timer.at(0, function() end))", "true"),
        ("coroutine.yield() ngx.print('on')", "on"),
        (
            "ngx.print(pcall(function() ngx.var.nothing = 1 end))",
            "false[string \"return function(conf, ctx) ngx.print(pcall(fu...\"]:1: variable \"nothing\" not found for writing; maybe it is a built-in variable that is not changeable",
        ),
        (
            "ngx.print(require('net.url').parse('args=%40%23%24%25%5E%26').path)",
            "args=@%23$%25%5E&",
        ),
    ] {
        let ran = run(&format!("return function(conf, ctx) {script} ngx.exit(200) end"));
        assert_eq!(ran.status, 200, "{script}: {}", ran.body());
        assert!(ran.body().starts_with(expected), "{script}: {}", ran.body());
    }
}

#[test]
fn no_script_changes_what_others_use() {
    for script in [
        "string.rep = nil; ('x'):rep(2)",
        "ngx.say = nil",
        "_G.pcall = nil",
        "math.floor = error",
        "rawset(string, 'format', nil)",
        "ngx.ctx = nil and nil or {}",
    ] {
        says(
            &format!("{script} ngx.print('fine')").replace("ngx.say = nil", "ngx.say = nil"),
            "fine",
        );
    }
    for script in [
        "ngx.req.get_headers = nil",
        "rawset(ngx.req, 'get_headers', 1)",
        "require('apisix.core').log.error = nil",
        "require('cjson').decode = nil",
        "getmetatable('').__index = {}",
        "setmetatable(ngx.req, {})",
        "setmetatable(_G, {})",
        "require('apisix.core').version.VERSION = '0'",
    ] {
        let script = format!("ngx.print(pcall(function() {script} end) == false)");
        says(&script, "true");
    }
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

#[test]
fn header_filters_change_the_head() {
    let answer = || Answer::text("body").header("X-From", "origin").header("X-Gone", "1");
    let ran = test(
        "header_filter",
        "return function(conf, ctx)
            ngx.header['X-Post'] = 1
            ngx.header.x_under = {'a', 'b'}
            ngx.header['X-Gone'] = nil
            ngx.header['X-Seen'] = ngx.header['X-From'] .. ngx.var.sent_http_x_from .. ngx.status
            require('apisix.core').response.set_header('X-Core', 'c')
            ngx.status = 202
        end",
    )
    .origin_answer(answer())
    .run();
    assert_eq!((ran.status, ran.body().as_str()), (202, "body"));
    for (name, value) in [
        ("x-post", Some("1")),
        ("x-gone", None),
        ("x-seen", Some("originorigin200")),
        ("x-core", Some("c")),
        ("content-length", Some("4")),
    ] {
        assert_eq!(ran.response.header(name), value, "{name}");
    }
    let ran =
        test("header_filter", "return function() error('x') end").origin_answer(answer()).run();
    assert_eq!(ran.status, 500);
    let ran =
        test("header_filter", "return function() ngx.sleep(1) end").origin_answer(answer()).run();
    assert_eq!(ran.status, 500);
    // A header set before the answer is known comes with it.
    let ran = run("return function() ngx.header['X-Early'] = {'1', '2'} end");
    let all: Vec<_> = ran
        .response
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-early"))
        .collect();
    assert_eq!((ran.status, all.len()), (200, 2));
}

#[test]
fn body_filters_change_the_body() {
    let origin = || Answer::text("{\"origin\":\"1.2.3.4\",\"url\":\"u\"}");
    let ran = test(
        "body_filter",
        "return function(conf, ctx)
            local cjson = require('cjson')
            local core = require('apisix.core')
            local body = core.response.hold_body_chunk(ctx)
            if not body then return end
            body = cjson.decode(body)
            body.origin = nil
            ngx.arg[1] = cjson.encode(body)
        end",
    )
    .origin_answer(origin())
    .run();
    assert_eq!((ran.status, ran.body().as_str()), (200, "{\"url\":\"u\"}"));
    let ran = test("body_filter", "return function() ngx.arg[1] = string.upper(ngx.arg[1]) end")
        .origin_answer(Answer::text("shout"))
        .run();
    assert_eq!(ran.body(), "SHOUT");
    let ran = test("body_filter", "return function() error('x') end").origin_answer(origin()).run();
    assert_eq!(ran.body(), "", "what was to be filtered does not go out unfiltered");
}

#[test]
fn lists_are_sorted_and_grow_as_ever() {
    says("local t = {3, 1, 2} table.sort(t) ngx.print(t)", "123");
    says("local t = {3, 1, 2} table.sort(t, function(a, b) return a > b end) ngx.print(t)", "321");
    says("local t = {1, 3} table.insert(t, 2, 2) table.insert(t, 4) ngx.print(t)", "1234");
    says("local t = {1} table.insert(t, 5, 2) ngx.print(t[5], table.maxn(t))", "25");
    says("ngx.print((pcall(table.sort, {1, 'a', 2})))", "false");
    says("ngx.print((pcall(table.sort, {1, 2}, 1)))", "false");
    for place in ["-1", "0 / 0", "2 ^ 31", "'-1e300'", "-math.huge"] {
        says(
            &format!("ngx.print(select(2, pcall(table.insert, {{}}, {place}, 1)))"),
            "bad argument #2 to 'insert' (position out of bounds)",
        );
    }
    says("ngx.print(#('x'):rep(1e5):upper():reverse(), ('%s'):format('a'))", "100000a");
}

#[test]
fn an_exit_that_did_not_end_its_function_is_not_taken_for_one_when_it_waits() {
    // Nothing yields across C.
    says(
        "pcall(table.sort, {3, 2, 1}, function() ngx.exit(403) end) ngx.sleep(0.001) ngx.print('on')",
        "on",
    );
}

#[test]
fn no_script_holds_the_gateway() {
    for script in [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "local function f() return pcall(f) end while true do f() end",
        "while true do xpcall(function() while true do end end, function() while true do end end) end",
        "error(setmetatable({}, {__tostring = function() while true do end end}))",
        "repeat local co = coroutine.wrap(function() while true do end end) pcall(co) until false",
        "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1000) .. i end",
        "local s = 'x' while true do s = s .. s end",
        "return ('x'):rep(1e9)",
        "while true do pcall(string.rep, 'x', 1e9) end",
        "return (('a'):rep(20000)):match('.-.-.-.-.-.-b')",
        "return assert(ngx.re.match(('a'):rep(5000) .. 'b', '^(a+)+(?=c)\\\\1$'))",
        "local function f() f() end f() error('stack')",
        "local function f() return 1 + f() end f()",
        "setmetatable({}, {__index = function(t, k) return t[k] end}).x()",
        "ngx.print(('x'):rep(9e6))",
        "local t = {} for i = 1, 1e6 do t[i] = i end while true do table.insert(t, 1, 0) end",
        "while true do coroutine.yield() end",
        "local t = {} t.t = t require('cjson').encode(t)",
        "local function f() return coroutine.wrap(f)() end f()",
        "local function f() return coroutine.resume(coroutine.create(f)) end while true do f() end",
        "local function f(a, b) table.sort({2, 1}, f) return false end f()",
        "return (require('cjson').decode(('['):rep(100000)))",
        "return loadstring('return ' .. ('('):rep(100000))()",
        "return assert(ngx.re.match('a', ('('):rep(20000)))",
        "return loadstring('while true do end')()",
        "for k in ('x'):rep(100):gmatch('') do while true do end end",
        "return (('x'):rep(100):gsub('', function() while true do end end))",
        "table.sort({3, 2, 1}, function() while true do end end)",
        // Work that is done outside of Lua, where no instruction is counted.
        "local t = {} for i = 1, 60 do t = {t, t} end return 200, t",
        "local t = {} for i = 1, 60 do t = {t, t} end require('cjson').encode(t)",
        "return assert(nil, require('cjson.safe').encode({('\\1'):rep(2e7)}) == nil and 'long')",
        "return ('x'):rep(1e6):gsub('.*', ('%0'):rep(1e6))",
        "return assert(ngx.re.gsub(('x'):rep(1e6), '.*', ('$0'):rep(1e6)))",
        "local v, t = ('v'):rep(1e6), {} for i = 1, 1e5 do t[i] = v end return 200, ngx.encode_args({a = t})",
        "local v, t = ('v'):rep(1e6), {} for i = 1, 1e5 do t[i] = v end ngx.req.set_header('X', t)",
        "local v, t = ('v'):rep(1e6), {} for i = 1, 1e5 do t[i] = v end ngx.header.x = t",
        "local v, t = ('v'):rep(1e6), {} for i = 1, 1e5 do t[i] = v end
            assert(require('resty.http').new():request_uri('http://127.0.0.1:1/', {headers = {a = t}}))",
        "return assert(ngx.re.match(('a'):rep(9e5), '(?:(?=a*)a)*'))",
        "return assert(ngx.re.gsub(('a'):rep(9e5), '(?=a*c)a', 'b'))",
        "return require('cjson').decode('[' .. ('1,'):rep(1.5e7) .. '1]')",
        // One call of C's that goes on for hours.
        "local t = {} table.insert(t, -2147483647, 1)",
        "local t = {} for i = 1, 1e6 do t[i] = i end while true do table.sort(t) end",
        "local s = ('x'):rep(1.5e7) local a, b, t = s .. 'a', s .. 'b', {}
            for i = 1, 1e5 do t[i] = i % 2 == 0 and a or b end table.sort(t)",
        // Each short, together long: the clock is looked at between them.
        "local s = ('x'):rep(1.5e7) local a, b, x = s .. 'a', s .. 'b' while true do x = a < b end",
        "local s = ('X'):rep(1.5e7) while true do local x = s:lower() end",
        "local s = ('\\0'):rep(4e6) while true do local x = ('%q'):format(s) end",
        "local s = ('\\255'):rep(2e7) while true do ngx.log(ngx.ERR, s) end",
        "local v = ('v'):rep(4e6) for i = 1, 500 do ngx.header['x' .. i] = v end",
        "local s = 'http://a/' .. ('x'):rep(1e7) while true do require('net.url').parse(s) end",
        "local s = ('X'):rep(2e7) while true do pcall(ngx.req.set_method, s) end",
        // More values than Rust can refer to at one time.
        "local t = {} for i = 1, 7000 do t[i] = 'v' .. i end
            for i = 1, 200 do ngx.timer.at(1000, print, unpack(t)) end error('done')",
        "local t = {} for i = 1, 7900 do t[i] = 'v' .. i end coroutine.yield(unpack(t))
            ngx.timer.at(0, error, unpack(t)) error('done')",
    ] {
        eprintln!("{script}");
        let began = std::time::Instant::now();
        let ran = run(&format!("return function(conf, ctx) {script} end"));
        assert_eq!(ran.status, 500, "{script}: {}", ran.body());
        assert!(began.elapsed().as_secs() < 20, "{script} took {:?}", began.elapsed());
    }
}

#[test]
fn a_source_that_never_ends_outside_of_lua_is_refused_and_all_share_one_limit() {
    let wild = "local t = {} for i = 1, 60 do t = {t, t} end require('cjson').encode(t)";
    let error = crate::tests::refusal::<Pre>(&json!({"functions": [wild]}));
    assert!(error.starts_with("pcall error: "), "{error}");
    let half = "for i = 1, 1e7 do end return function() end";
    let began = std::time::Instant::now();
    let error = crate::tests::refusal::<Pre>(&json!({"functions": vec![half; 200]}));
    assert!(error.starts_with("pcall error: the script ran "), "{error}");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

/// However busy the machine is.
fn with_time() {
    sluicegate_lua::configure(sluicegate_lua::Limits {
        time: std::time::Duration::from_secs(60),
        ..sluicegate_lua::Limits::default()
    });
}

#[test]
fn many_values_at_one_time_are_taken() {
    with_time();
    for (script, expected) in [
        (
            "local t = {} for i = 1, 20000 do t[i], t['k' .. i] = 'v' .. i, {} end
            ngx.print(#require('cjson').encode(t) > 5e5, #require('apisix.core').json.stably_encode(t) > 5e5)",
            "truetrue",
        ),
        (
            "local t = {} for i = 1, 20000 do t[i] = 'v' .. i end
            local back = require('cjson').decode(require('cjson').encode(t)) ngx.print(#back, back[20000])",
            "20000v20000",
        ),
        (
            "local t = {} for i = 1, 7900 do t[i] = 'v' .. i end coroutine.yield(unpack(t))
            ngx.print(ngx.md5(unpack(t)) == ngx.md5('v1'))",
            "true",
        ),
        (
            "local c = require('cjson') ngx.print(c.encode({setmetatable({}, c.array_mt), c.empty_array, {}, 1 / 4, -0.0, c.null}))",
            "[[],[],{},0.25,0,null]",
        ),
        (
            "ngx.print(require('cjson').decode('{\"a\":[1,-2.5e3,true,null,\"\\\\u00e9\"]}').a[5], require('cjson.safe').decode('[1] x') == nil)",
            "\u{e9}true",
        ),
    ] {
        says(script, expected);
    }
    let ran = run(
        "return function() local t = {} for i = 1, 7900 do t[i] = 'v' .. i end return unpack(t) end",
    );
    assert_eq!((ran.status, ran.body().as_str()), (200, "v1v2"));
    let ran = run("return function() return 200, {a = require('cjson').empty_array} end");
    assert_eq!(ran.body(), "{\"a\":[]}\n");
}

/// A gateway with one core and these routes, each with its script in the `access` phase.
fn gateway(scripts: &[(&'static str, &str)]) -> sluicegate_testkit::plugin::InProcess {
    let route = |id: &str, script: &str| json!({"id": id, "uri": format!("/{id}"), "plugins": {Pre::NAME: {"functions": [script]}}});
    let kind = sluicegate_model::kind::Kind::Routes;
    let routes = scripts.iter().map(|(id, script)| (kind, *id, route(id, script))).collect();
    sluicegate_testkit::plugin::InProcess::start(crate::registry(), routes)
}

#[test]
fn memory_that_is_kept_although_the_error_was_caught_is_taken_back() {
    with_time();
    let fill = "pcall(function() for i = 1, 1e7 do k[#k + 1] = ('x'):rep(1e4) .. i end end)";
    let keeps = format!("local k = {{}} return function() {fill} return 200 end");
    let waits = format!("local k = {{}} return function() {fill} ngx.sleep(3600) end");
    let honest =
        "return function() local t = {} for i = 1, 1e4 do t[i] = 'x' .. i end ngx.print(#t) end";
    let gateway = gateway(&[("keeps", &keeps), ("waits", &waits), ("honest", honest)]);
    for (target, status) in [
        ("/honest", 200),
        ("/keeps", 200),
        ("/honest", 200),
        ("/keeps", 200),
        ("/honest", 200),
        ("/waits", 500),
        ("/honest", 200),
    ] {
        let answer = sluicegate_testkit::client::get(gateway.addr, target);
        assert_eq!(answer.status, status, "{target}");
    }
    gateway.stop();
}

/// Rust has room for 8000 references to Lua. A call that waited once took three of them, and one more
/// ended the requests of a core in panics.
#[test]
fn thousands_of_calls_wait_at_one_time() {
    sluicegate_lua::configure(sluicegate_lua::Limits {
        timers: 9000,
        time: std::time::Duration::from_secs(60),
        ..sluicegate_lua::Limits::default()
    });
    let wait = "return function() ngx.sleep(8) return 200, 'waited' end";
    let timers = "return function()
        for i = 1, 9000 do assert(ngx.timer.at(0, function(premature, n) ngx.sleep(600) end, 'v' .. i)) end
        for i = 1, 6000 do
            if ngx.timer.running_count() == 9000 then break end
            ngx.sleep(0.01)
        end
        return 200, ngx.timer.running_count()
    end";
    let gateway = gateway(&[("wait", wait), ("timers", timers)]);
    let ask = || {
        let mut client = sluicegate_testkit::client::Client::connect(gateway.addr);
        client.send(sluicegate_testkit::client::request_bytes("GET", "/wait", &[], b""));
        client
    };
    let clients: Vec<_> = (0..3000).map(|_| ask()).collect();
    let timers = sluicegate_testkit::client::get(gateway.addr, "/timers");
    assert_eq!(timers.text(), "9000");
    for mut client in clients {
        assert_eq!(client.response().text(), "waited");
    }
    gateway.stop();
}

#[test]
fn no_configuration_changes_what_another_one_on_the_same_core_sees() {
    let victim = "return function(conf, ctx)
        local cjson, core = require('cjson'), require('apisix.core')
        ngx.print(tostring(ngx.req.get_headers().nothing), tostring(ngx.resp.get_headers().nothing),
            tostring(require('resty.http').new().nothing),
            tostring(ctx.nothing), tostring(ctx.var.arg_a), tostring(ctx.var.http_x), tostring(ctx.var.uri),
            tostring(ctx.var.own), tostring(rawget(core, 1)), tostring(core.nothing), #cjson.empty_array,
            tostring(cjson.array_mt.x), cjson.encode({setmetatable({1}, cjson.array_mt)}),
            cjson.encode(cjson.empty_array), tostring(setmetatable({}, cjson.array_mt).nothing),
            tostring(setmetatable({}, cjson.empty_array_mt).nothing), tostring(core.empty_tab[1]))
    end";
    let clean = "nilnilnilnil1nil/victimnilnilnil0nil[[1]][]nilnilnil";
    for attack in [
        "getmetatable(ngx.req.get_headers()).__index = f",
        "getmetatable(ngx.resp.get_headers()).__index = f",
        "getmetatable(require('resty.http').new()).__index = f",
        "getmetatable(ctx).__index = f",
        "getmetatable(ctx.var).__index = f",
        "cjson.array_mt.x = 'leaked'",
        "cjson.array_mt.__index = f",
        "cjson.empty_array_mt.__index = f",
        "cjson.empty_array[1] = 'leaked'",
        "table.insert(cjson.empty_array, 'leaked')",
        "table.insert(core, 'leaked')",
        "core.table.insert(core.empty_tab, 'leaked')",
        "table.insert(core, 1, 'leaked')",
        "core.table.insert_tail(core, 'leaked')",
        "core.table.merge(cjson.array_mt, {x = 'leaked'})",
        "rawset(cjson.array_mt, 'x', 'leaked')",
        "if not table.move then error('none') end table.move({'leaked'}, 1, 1, 1, core)",
        "ngx.re.match('a', 'a', '', nil, core)",
    ] {
        let attacker = format!(
            "return function(conf, ctx)
                local cjson, core = require('cjson'), require('apisix.core')
                local f = function() return 'leaked' end
                ngx.print(tostring(pcall(function() {attack} end)))
            end"
        );
        let gateway = gateway(&[("attacker", &attacker), ("victim", victim)]);
        let refused = sluicegate_testkit::client::get(gateway.addr, "/attacker");
        assert_eq!(refused.text(), "false", "{attack} is refused");
        let seen = sluicegate_testkit::client::get(gateway.addr, "/victim?a=1");
        assert_eq!(seen.text(), clean, "{attack}");
        gateway.stop();
    }
    // What a request registers and sets is its own.
    let attacker = "return function(conf, ctx)
        local f = function() return 'leaked' end
        for _, name in ipairs({'arg_a', 'http_x', 'uri', 'own', 'cookie_a'}) do
            require('apisix.core').ctx.register_var(name, f)
        end
        ctx.var.own2 = 'set'
        ngx.print(ctx.var.own, ctx.var.arg_a, ctx.var.uri, ctx.var.own2)
    end";
    let gateway = gateway(&[("attacker", attacker), ("victim", victim)]);
    let own = sluicegate_testkit::client::get(gateway.addr, "/attacker?a=1");
    assert_eq!(own.text(), "leaked1/attackerset");
    let seen = sluicegate_testkit::client::get(gateway.addr, "/victim?a=1");
    assert_eq!(seen.text(), clean);
    gateway.stop();
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
fn memory_that_scripts_keep_is_taken_back() {
    let mut registry = sluicegate_gateway::plugin::Registry::default();
    registry.add::<Pre>();
    let route = |id: &str, script: &str| json!({"id": id, "uri": format!("/{id}"), "plugins": {Pre::NAME: {"functions": [script]}}});
    let keeps = "local kept = {} return function() for i = 1, 1e7 do kept[#kept + 1] = ('x'):rep(10000) .. i end end";
    let honest =
        "return function() local t = {} for i = 1, 1e4 do t[i] = 'x' .. i end ngx.print(#t) end";
    let kind = sluicegate_model::kind::Kind::Routes;
    let gateway = sluicegate_testkit::plugin::InProcess::start(
        registry,
        vec![(kind, "keeps", route("keeps", keeps)), (kind, "honest", route("honest", honest))],
    );
    let mut client = sluicegate_testkit::client::Client::connect(gateway.addr);
    for (target, status) in
        [("/honest", 200), ("/keeps", 500), ("/honest", 200), ("/keeps", 500), ("/honest", 200)]
    {
        client.send(sluicegate_testkit::client::request_bytes("GET", target, &[], b""));
        assert_eq!(client.response().status, status, "{target}");
    }
    drop(client);
    gateway.stop();
}

#[test]
fn resty_http_calls_over_the_gateways_connections() {
    let asked = sluicegate_testkit::origin::Origin::start(|request| {
        Answer::status(203).header("X-Asked", "yes").body(format!(
            "{} {} {}",
            request.method,
            request.target,
            String::from_utf8_lossy(&request.body)
        ))
    });
    let script = format!(
        "return function(conf, ctx)
            local http = require('resty.http')
            local httpc = http.new()
            httpc:set_timeout(5000)
            local res, err = httpc:request_uri('http://{}/ask', {{method = 'POST', body = 'b', query = {{a = 1}}, headers = {{['X-Mine'] = 'm'}}}})
            if not res then return 500, err end
            httpc:set_keepalive()
            return 200, res.status .. ' ' .. res.headers['X-Asked'] .. ' ' .. res.body
        end",
        asked.addr
    );
    let ran = run(&script);
    assert_eq!((ran.status, ran.body().as_str()), (200, "203 yes POST /ask?a=1 b"));
    assert_eq!(asked.requests()[0].header("x-mine"), Some("m"));
    let ran = run(
        "return function() local ok, err = require('resty.http').new():request_uri('http://127.0.0.1:1/') ngx.print(ok, err) end",
    );
    assert!(ran.body().starts_with("nilcannot connect"), "{}", ran.body());
}

/// Random sources from the words that scripts are made of.
fn random_source(seed: &mut u64) -> String {
    let mut random = |n: usize| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        usize::try_from(*seed >> 33).unwrap_or(0) % n
    };
    const NAMES: [&str; 40] = [
        "ngx.say",
        "ngx.exit",
        "ngx.sleep",
        "ngx.log",
        "ngx.var.uri",
        "ngx.var",
        "ngx.header",
        "ngx.ctx",
        "ngx.req.get_headers",
        "ngx.req.set_header",
        "ngx.req.set_uri",
        "ngx.req.set_uri_args",
        "ngx.req.set_body_data",
        "ngx.req.read_body",
        "ngx.req.set_method",
        "ngx.re.match",
        "ngx.re.gsub",
        "ngx.decode_args",
        "ngx.encode_args",
        "ngx.decode_base64",
        "ngx.escape_uri",
        "ngx.redirect",
        "ngx.arg",
        "ngx.status",
        "ngx.null",
        "string.rep",
        "string.gsub",
        "string.find",
        "string.format",
        "table.concat",
        "table.insert",
        "table.sort",
        "pcall",
        "error",
        "coroutine.wrap",
        "coroutine.yield",
        "require('cjson').encode",
        "require('cjson.safe').decode",
        "require('apisix.core').response.exit",
        "setmetatable",
    ];
    const VALUES: [&str; 16] = [
        "1",
        "-1",
        "0/0",
        "1e300",
        "''",
        "'a'",
        "'%'",
        "('x'):rep(99)",
        "{}",
        "{1, 2}",
        "{a = {}}",
        "nil",
        "true",
        "function(...) return ... end",
        "'\\0\\r\\n'",
        "ngx.null",
    ];
    let mut source = String::new();
    for _ in 0..1 + random(6) {
        let name = NAMES[random(NAMES.len())];
        let other = NAMES[random(NAMES.len())];
        let (one, two) = (VALUES[random(VALUES.len())], VALUES[random(VALUES.len())]);
        source.push_str(&match random(8) {
            0 => format!("pcall({name}, {one}, {two})\n"),
            1 => format!("local v = {name} v[{one}] = {two}\n"),
            2 => format!("pcall(function() {name}({one}) end)\n"),
            3 => format!("pcall({name}, {other}, {one}, {two})\n"),
            4 => format!("for i = 1, 3 do pcall({name}, {one}, {two}, i) end\n"),
            5 => format!("if {one} then pcall({name}) end\n"),
            6 => format!("pcall(coroutine.wrap({name}), {one}, {two})\n"),
            _ => format!("{name}({one}, {two})\n"),
        });
    }
    source
}

#[test]
fn whatever_a_script_says_the_gateway_goes_on() {
    sluicegate_lua::configure(sluicegate_lua::Limits {
        instructions: 200_000,
        ..sluicegate_lua::Limits::default()
    });
    let mut registry = sluicegate_gateway::plugin::Registry::default();
    registry.add::<Pre>();
    let script = "return function(conf, ctx)
        ngx.req.read_body()
        local f = loadstring(ngx.req.get_body_data())
        if not f then return 400 end
        return f(conf, ctx)
    end";
    let kind = sluicegate_model::kind::Kind::Routes;
    let route = |id: &str, script: &str| json!({"id": id, "uri": format!("/{id}"), "plugins": {Pre::NAME: {"functions": [script]}}});
    let honest = "return function() return 200, ngx.md5('a') .. ('x'):rep(2) end";
    let gateway = sluicegate_testkit::plugin::InProcess::start(
        registry,
        vec![(kind, "any", route("any", script)), (kind, "honest", route("honest", honest))],
    );
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for round in 0..400 {
        let source = random_source(&mut seed);
        // Sleeps of minutes are not what is tried out here.
        let source = format!(
            "local ngx_sleep = ngx.sleep\nngx.sleep = function() ngx_sleep(0) end\n{source}"
        );
        let mut client = sluicegate_testkit::client::Client::connect(gateway.addr);
        client.send(sluicegate_testkit::client::request_bytes(
            "POST",
            "/any",
            &[],
            source.as_bytes(),
        ));
        let head = client.try_head();
        assert!(head.is_ok(), "round {round}:\n{source}");
        let answer = sluicegate_testkit::client::get(gateway.addr, "/honest");
        assert_eq!(answer.text(), "0cc175b9c0f1b6a831c399e269772661xx", "round {round}:\n{source}");
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

/// The same zones for every test of this process.
fn with_zones() {
    crate::configure_lua(&Value::Null, &[("zone".to_owned(), 1 << 20), ("small".to_owned(), 1)])
        .unwrap();
}

#[test]
fn zones_keep_values_for_all_functions() {
    with_zones();
    for (script, expected) in [
        (
            "local z = ngx.shared.zone
            ngx.say(z:set('k', 'v', 0, 5), ' ', z:get('k'), ' ', select(2, z:get('k')))",
            "true v 5\n",
        ),
        ("ngx.say(ngx.shared.zone:get('never'), ngx.shared.none)", "nilnil\n"),
        (
            "local z = ngx.shared['zone'] z:delete('n')
            ngx.say(z:incr('n', 1), ' ', select(2, z:incr('n', 1)), ' ', (z:incr('n', 2, 5)), ' ', z:incr('n', 1))",
            "nil not found 7 8\n",
        ),
        (
            "local z = ngx.shared.zone z:delete('a')
            ngx.say(z:add('a', true), ' ', select(2, z:add('a', 1)), ' ', z:get('a'), ' ', z:replace('a', 1.5), ' ', z:get('a'))",
            "true exists true true 1.5\n",
        ),
        (
            "local z = ngx.shared.zone
            ngx.say(z:rpush('l', 1), z:lpush('l', 'x'), ' ', z:lpop('l'), z:rpop('l'), tostring(z:rpop('l')), z:llen('l'))",
            "12 x1nil0\n",
        ),
        (
            "local z = ngx.shared.zone z:set('t', 1, 100) local t = z:ttl('t')
            ngx.say(t > 99 and t <= 100, ' ', z:expire('t', 0), ' ', z:ttl('t'))",
            "true true 0\n",
        ),
        (
            "local z = ngx.shared.small z:flush_all() z:flush_expired() z:set('one', 1) z:set('two', 2)
            local keys = z:get_keys(1) ngx.say(#keys, keys[1], ' ', #z:get_keys(), ' ', z:capacity())",
            "1two 2 8192\n",
        ),
        (
            "local z = ngx.shared.small local ok, err = z:set('x', ('v'):rep(9000))
            ngx.say(ok, ' ', err, ' ', select(2, z:set('x', {})), ' ', select(2, z:get(nil)))",
            "false no memory bad value type nil key\n",
        ),
        (
            "ngx.say(pcall(function() ngx.shared.zone.get = 1 end), pcall(function() ngx.shared.x = 1 end), pcall(ngx.shared.zone.get, {}, 'k'))",
            "falsefalsefalse[string \"return function(conf, ctx) ngx.say(pcall(func...\"]:1: bad \"zone\" argument\n",
        ),
    ] {
        let ran = run(&format!("return function(conf, ctx) {script} ngx.exit(200) end"));
        assert_eq!(ran.status, 200, "{script}");
        if script.contains("pcall") {
            assert!(ran.body().starts_with("false"), "{script}: {}", ran.body());
        } else {
            assert_eq!(ran.body(), expected, "{script}");
        }
    }
    // What one request left, another finds, on whatever core.
    run("return function() ngx.shared.zone:set('left', 'here') end");
    says("ngx.say(ngx.shared.zone:get('left'))", "here\n");
}

#[test]
fn a_timer_runs_later_without_a_request_and_may_wait() {
    with_zones();
    let ran = run("local z = ngx.shared.zone
        return function()
            z:delete('timer')
            local ok, err = ngx.timer.at(0, function(premature, a, b)
                ngx.sleep(0.01)
                local ok, err = pcall(function() return ngx.var.uri end)
                local said = pcall(ngx.say, 'x')
                z:set('timer', table.concat({tostring(premature), a, b, ngx.get_phase(), tostring(ok), tostring(said)}, ' '))
            end, 'one', 2)
            ngx.say(ok, ' ', err, ' ', z:get('timer'), ' ', ngx.timer.pending_count())
            for i = 1, 500 do
                ngx.sleep(0.005)
                if z:get('timer') then break end
            end
            ngx.say(z:get('timer'), ' ', ngx.timer.pending_count())
            ngx.exit(200)
        end");
    assert_eq!(ran.body(), "true nil nil 1\nfalse one 2 timer false false 0\n");
}

#[test]
fn timers_repeat_are_limited_and_fail_alone() {
    with_zones();
    let ran = run("local z = ngx.shared.zone
        return function()
            z:set('ticks', 0)
            ngx.timer.at(0, function() error('in a timer') end)
            ngx.timer.at(0, function() while true do end end)
            ngx.timer.every(0.002, function() z:incr('ticks', 1) end)
            ngx.timer.at(0, function() ngx.timer.at(0, function() z:set('nested', true) end) end)
            for i = 1, 1000 do
                ngx.sleep(0.005)
                if z:get('ticks') > 3 and z:get('nested') then break end
            end
            ngx.say(z:get('ticks') > 3, z:get('nested'))
            local made, why = 0
            for i = 1, 1000 do
                local ok, err = ngx.timer.at(1000, function() end)
                if not ok then why = err break end
                made = made + 1
            end
            ngx.say(made >= 250 and made <= 256, ' ', why)
            ngx.say(pcall(ngx.timer.at, -1, function() end), pcall(ngx.timer.at, 0, 1), ' ', select(2, ngx.timer.every(0, print)))
            ngx.exit(200)
        end");
    let expected = "truetrue\ntrue too many timers (plugin_attr.serverless.timers)\n";
    let body = ran.body();
    assert!(body.starts_with(expected), "{body}");
    assert!(body.ends_with("delay cannot be zero\n"), "{body}");
}

#[test]
fn a_source_cannot_make_timers_when_it_is_checked() {
    let source =
        "local ok, err = ngx.timer.at(0, print) if ok then return 1 end return function() end";
    let ran = run(source);
    assert_eq!(ran.status, 200);
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

/// Found by the test below: what is no part of a field's name went out in it.
#[test]
fn names_and_values_of_fields_are_escaped_as_openresty_escapes_them() {
    let ran = run("return function()
        ngx.req.set_header('X-A b:\\r\\n', 'c\\r\\nX-D: e')
        ngx.req.add_header('\\255', 'f') ngx.req.set_header('', 'g')
        ngx.header['X H'] = 'a\\nb' require('ngx.resp').add_header('Y:', 'z') ngx.header[''] = 'no'
    end");
    assert_eq!(ran.sent_header("x-a%20b%3A%0D%0A"), Some("c%0D%0AX-D: e"));
    assert_eq!((ran.sent_header("%FF"), ran.sent_header("x-d")), (Some("f"), None));
    assert_eq!(ran.response.header("X%20H"), Some("a%0Ab"));
    assert_eq!(ran.response.header("Y%3A"), Some("z"));
}

/// What the fuzz target of the Lua crate does, with inputs that it found and some that look random.
#[test]
fn whatever_scripts_call_the_library_stands() {
    use sluicegate_testkit::{Client, InProcess, client};
    let wild = include_str!("wild.lua").replace("= DATA", "= given");
    let source = format!(
        "return function(conf, ctx)
            ngx.req.read_body()
            local given = ngx.req.get_body_data() or ''
            return (function() {wild} end)()(conf, ctx)
        end"
    );
    let canary = "return function() ngx.say(('x'):rep(3), ngx.md5(''), require('cjson').encode({a = 1})) ngx.exit(200) end";
    let mut registry = sluicegate_gateway::plugin::Registry::default();
    registry.add::<Pre>();
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:9": 1}});
    let route = |id: &str, uri: &str, source: &str| {
        json!({
            "id": id, "uri": uri, "upstream": upstream,
            "plugins": {Pre::NAME: {"functions": [source]}},
        })
    };
    use sluicegate_model::kind::Kind;
    let resources = vec![
        (Kind::Routes, "1", route("1", "/wild", &source)),
        (Kind::Routes, "2", route("2", "/canary", canary)),
    ];
    let gateway = InProcess::start(registry, resources);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    let made = (0..150).map(|n| (0..n / 4).flat_map(|_| random()).collect::<Vec<u8>>());
    for data in FOUND.iter().map(|data| data.to_vec()).chain(made) {
        let mut client = Client::connect(gateway.addr);
        client.send(client::request_bytes("POST", "/wild", &[], &data));
        let status = client.response().status;
        assert!((200..1000).contains(&status), "{status}: {data:?}");
        let answer = client::get(gateway.addr, "/canary");
        let expected = "xxxd41d8cd98f00b204e9800998ecf8427e{\"a\":1}\n";
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{data:?}");
    }
    gateway.stop();
}

/// Inputs of the fuzz target that once did harm.
const FOUND: &[&[u8]] = &[];

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
fn what_a_filter_returns_only_ends_its_turn() {
    for (first, runs) in [
        ("return 403", false),
        ("return 403, 'no'", false),
        ("return nil, 'x'", false),
        ("return true", false),
        ("return false", true),
        ("return nil", true),
        ("return", true),
    ] {
        for phase in ["header_filter", "body_filter"] {
            let mark = match phase {
                "header_filter" => "ngx.header['X-Second'] = 'ran'",
                _ => "if ngx.arg[1] ~= '' then ngx.arg[1] = 'ran' end",
            };
            let ran = PluginTest::<Pre>::new()
                .config(json!({"phase": phase, "functions": [
                    format!("return function() {first} end"), format!("return function() {mark} end"),
                ]}))
                .origin_answer(Answer::text("body"))
                .run();
            let second = ran.response.header("x-second") == Some("ran") || ran.body() == "ran";
            assert_eq!((ran.status, second), (200, runs), "{phase}: {first}");
        }
    }
    let ran = test("header_filter", "return function() ngx.exit(202) end").run();
    assert_eq!(ran.status, 202);
}

/// A route with both plugins in the `body_filter` phase, and what the client gets of `body`.
fn filtered(pre: &str, post: &str, body: &'static str) -> String {
    let origin = sluicegate_testkit::origin::Origin::start(move |_| Answer::text(body));
    let functions = |source: &str| json!({"phase": "body_filter", "functions": [source]});
    let route = json!({
        "id": "1", "uri": "/*",
        "plugins": {
            "serverless-pre-function": functions(pre),
            "serverless-post-function": functions(post),
        },
        "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
    });
    let kind = sluicegate_model::kind::Kind::Routes;
    let gateway =
        sluicegate_testkit::plugin::InProcess::start(crate::registry(), vec![(kind, "1", route)]);
    let text = sluicegate_testkit::client::get(gateway.addr, "/").text();
    gateway.stop();
    text
}

#[test]
fn each_plugin_gathers_the_body_for_itself() {
    let hold = |arguments: &str, change: &str| {
        format!(
            "return function(conf, ctx)
                local body = require('apisix.core').response.hold_body_chunk(ctx{arguments})
                if body then {change} end
            end"
        )
    };
    for (pre, post, expected) in [
        (
            hold(", true", "ctx.seen = body"),
            hold("", "ngx.arg[1] = body .. '|' .. ctx.seen"),
            "hello|hello",
        ),
        (
            hold("", "ngx.arg[1] = body:upper()"),
            hold("", "ngx.arg[1] = '<' .. body .. '>'"),
            "<HELLO>",
        ),
        // What was seen of it is cut, the body is not.
        (
            hold(", true, 3", "ctx.seen = body"),
            hold("", "ngx.arg[1] = body .. '|' .. ctx.seen"),
            "hello|hel",
        ),
        (
            hold(", false, 3", "ngx.arg[1] = body"),
            hold("", "ngx.arg[1] = '<' .. body .. '>'"),
            "<hel>",
        ),
        // One plugin with two buffers.
        (
            hold(", true, nil, 'a'", "ctx.a = body"),
            hold(", false, nil, 'b'", "ngx.arg[1] = body .. ctx.a"),
            "hellohello",
        ),
    ] {
        assert_eq!(filtered(&pre, &post, "hello"), expected, "{pre}\n{post}");
    }
}

#[test]
fn a_body_ends_where_a_filter_says_so() {
    let cut = "return function() ngx.arg[1] = 'short' ngx.arg[2] = true end";
    let post = "return function() if ngx.arg[1] ~= '' then ngx.arg[1] = ngx.arg[1] .. tostring(ngx.arg[2]) end end";
    assert_eq!(filtered(cut, post, "a long body"), "shorttrue");
    let body = "x".repeat(1 << 20).leak();
    assert_eq!(filtered(cut, post, body), "shorttrue");
}

#[test]
fn bodies_are_taken_up_to_their_limit() {
    let origin = sluicegate_testkit::origin::Origin::start(|request| {
        Answer::text("x".repeat(request.path()[1..].parse().unwrap()))
    });
    sluicegate_lua::configure(sluicegate_lua::Limits {
        body_bytes: 10,
        ..sluicegate_lua::Limits::default()
    });
    for (n, taken) in [(10, true), (11, false)] {
        let status = if taken { 200 } else { 500 };
        for script in [
            format!("ngx.print(('x'):rep({n})) ngx.exit(200)"),
            format!("ngx.print('x') ngx.print(('x'):rep({n} - 1)) ngx.exit(200)"),
            format!("ngx.req.read_body() ngx.req.set_body_data(('x'):rep({n})) ngx.exit(200)"),
            format!(
                "assert(require('resty.http').new():request_uri('{}')) return 200",
                origin.url(&format!("/{n}"))
            ),
        ] {
            let ran = run(&format!("return function() {script} end"));
            assert_eq!(ran.status, status, "{script}: {}", ran.body());
        }
        let ran = test("access", "return function() ngx.req.read_body() return 200, tostring(ngx.req.get_body_data()) end")
            .request("POST", "/")
            .request_body("x".repeat(n))
            .run();
        let expected = if taken { "x".repeat(n) } else { "nil".to_owned() };
        assert_eq!(ran.body(), expected, "{n}");
    }
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

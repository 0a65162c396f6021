//! What scripts find: the library, zones, timers and calls.

use super::*;

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

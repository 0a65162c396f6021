//! What no script can do: hold a core, keep memory, or change what others see.

use super::*;

#[test]
fn a_source_that_never_ends_is_refused() {
    // By its instructions or, where others keep the machine busy, by its time.
    let error = crate::tests::refusal::<Pre>(&json!({"functions": ["while true do end"]}));
    assert!(error.starts_with("pcall error: the script ran "), "{error}");
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

/// What the fuzz target of the Lua crate does, with inputs that it found and some that look random.
#[test]
fn whatever_scripts_call_the_library_stands() {
    use sluicegate_testkit::{Client, InProcess, client};
    let wild = include_str!("../wild.lua").replace("= DATA", "= given");
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

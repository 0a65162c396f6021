//! Functions that see the answer.

use super::*;

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

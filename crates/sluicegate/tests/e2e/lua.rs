//! Functions in Lua: in front of an upstream and of a function, in logs, and as a route's condition.

use serde_json::{Value, json};
use sluicegate_testkit::client::{get, request};
use sluicegate_testkit::gateway::GatewayProcess;
use sluicegate_testkit::origin::Origin;

use crate::BINARY;

fn pre(phase: &str, source: &str) -> Value {
    json!({"serverless-pre-function": {"phase": phase, "functions": [source]}})
}

#[test]
fn a_function_stands_in_front_of_an_upstream_and_of_a_lambda_function() {
    let gateway = GatewayProcess::start(BINARY);
    let (upstream, lambda) = (Origin::text("from the upstream"), Origin::text("from the function"));
    let source = "return function(conf, ctx)
        if ngx.req.get_headers()['x-token'] ~= 'good' then
            return 401, {message = 'no token'}
        end
        ngx.req.set_header('X-User', ctx.var.arg_user)
        ngx.req.clear_header('X-Token')
        ngx.header['X-Passed'] = 'yes'
    end";
    let node = json!({"type": "roundrobin", "nodes": {upstream.addr.to_string(): 1}});
    gateway.set(
        "/routes/1",
        &json!({"uri": "/up", "plugins": pre("access", source), "upstream": node}),
    );
    let mut plugins = pre("access", source);
    plugins["aws-lambda"] =
        json!({"function_uri": lambda.url("/fn"), "authorization": {"apikey": "key"}});
    gateway.set("/routes/2", &json!({"uri": "/fn", "plugins": plugins}));
    for (path, origin, body) in
        [("/up", &upstream, "from the upstream"), ("/fn", &lambda, "from the function")]
    {
        let refused = get(gateway.http, &format!("{path}?user=eve"));
        assert_eq!((refused.status, refused.json()), (401, json!({"message": "no token"})));
        assert!(origin.requests().is_empty(), "{path}");
        let target = format!("{path}?user=ann");
        let passed = request(gateway.http, "GET", &target, &[("X-Token", "good")], b"");
        assert_eq!((passed.status, passed.text().as_str()), (200, body));
        assert_eq!(passed.header("x-passed"), Some("yes"));
        let sent = origin.last();
        assert_eq!((sent.header("x-user"), sent.header("x-token")), (Some("ann"), None));
    }
}

#[test]
fn a_function_finds_the_claims_of_a_token_where_jwt_auth_keeps_them() {
    let gateway = GatewayProcess::start(BINARY);
    let key = json!({"key": "k", "secret": "a-secret-for-tests"});
    gateway.set("/consumers/ann", &json!({"username": "ann", "plugins": {"jwt-auth": key}}));
    // {"key":"k","roles":["a","b"]}
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJrZXkiOiJrIiwicm9sZXMiOlsiYSIsImIiXX0.MqWMxNhQfvzXe4d6dRrc1untn7XbUuumbdF0xW1RGWc";
    let source = "return function(conf, ctx)
        local claims = ctx.jwt_auth_payload
        if not claims then return 403, 'none' end
        claims.seen = (claims.seen or 0) + 1
        return 200, claims.key .. claims.roles[2] .. ctx.jwt_auth_payload.seen
    end";
    for (store, status, said) in [(true, 200, "kb1"), (false, 403, "none")] {
        let mut plugins = pre("access", source);
        plugins["jwt-auth"] = json!({"store_in_ctx": store});
        gateway.set("/routes/1", &json!({"uri": "/jwt", "plugins": plugins}));
        let answer = request(gateway.http, "GET", "/jwt", &[("Authorization", token)], b"");
        assert_eq!((answer.status, answer.text().as_str()), (status, said), "{store}");
    }
}

#[test]
fn a_dollar_is_found_before_a_last_line_feed_unless_it_may_not() {
    let gateway = GatewayProcess::start(BINARY);
    let source = r#"return function(conf, ctx)
        local text, found = "ab\ncd\n", {}
        for _, one in ipairs({{"d$", ""}, {"d$", "D"}, {"b$", ""}, {"b$", "m"}}) do
            found[#found + 1] = ngx.re.find(text, one[1], one[2]) or "-"
        end
        return 200, table.concat(found, " ") .. " " .. ngx.re.sub(text, "d$", "x", "jo")
    end"#;
    gateway.set("/routes/1", &json!({"uri": "/re", "plugins": pre("access", source)}));
    assert_eq!(get(gateway.http, "/re").text(), "5 - - 2 ab\ncx\n");
}

#[test]
fn behind_proxy_rewrite_nginx_has_the_new_path_and_apisix_the_clients() {
    let gateway = GatewayProcess::start(BINARY);
    let say = "return function(conf, ctx) ngx.say(ngx.var.uri, ' ', ctx.var.uri) ngx.exit(200) end";
    for (rewrite, said) in [
        (json!({"uri": "/n w?x=1"}), "/n%20w /old\n"),
        (json!({"regex_uri": ["^/o(.*)", "/$1"]}), "/ld /old\n"),
        (json!({"headers": {"set": {"a": "b"}}}), "/old /old\n"),
    ] {
        let plugins = json!({
            "proxy-rewrite": rewrite,
            "serverless-post-function": {"phase": "access", "functions": [say]},
        });
        gateway.set("/routes/1", &json!({"uri": "/old", "plugins": plugins}));
        assert_eq!(get(gateway.http, "/old?b=1").text(), said, "{plugins}");
    }
}

#[test]
fn functions_log_with_source_line_and_failures_answer_500() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::text("x");
    let node = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    let pre_log = "return function() ngx.log(ngx.ERR, \"serverless pre function\"); end";
    let post_log = "return function(conf, ctx) ngx.log(ngx.ERR, \"match uri \", ctx.curr_req_matched and ctx.curr_req_matched._path); end";
    let mut plugins = pre("rewrite", pre_log);
    plugins["serverless-post-function"] = json!({"phase": "rewrite", "functions": [post_log]});
    gateway.set("/routes/1", &json!({"uri": "/anything", "plugins": plugins, "upstream": node}));
    assert_eq!(get(gateway.http, "/anything").status, 200);
    gateway.wait_for_error_line("[lua] [string \"return function() ngx.log(ngx.ERR, \"serverles...\"]:1: func(): serverless pre function");
    gateway.wait_for_error_line("func(): match uri /anything");
    let fails = "return function()\n  local t = nil\n  t.x = 1\nend";
    gateway.set("/routes/2", &json!({"uri": "/fails", "plugins": pre("access", fails)}));
    let loops = "return function()\n  local n = 0\n  while true do pcall(error) end\nend";
    gateway.set("/routes/3", &json!({"uri": "/loops", "plugins": pre("access", loops)}));
    for path in ["/fails", "/loops"] {
        assert_eq!(get(gateway.http, path).status, 500, "{path}");
    }
    gateway.wait_for_error_line(
        "[string \"return function()...\"]:3: attempt to index local 't' (a nil value)",
    );
    gateway
        .wait_for_error_line("[lua] [string \"return function()...\"]:3: func(): the script ran ");
    assert_eq!(get(gateway.http, "/anything").status, 200);
}

#[test]
fn a_filter_func_is_checked_when_written_and_chooses_the_route() {
    let gateway = GatewayProcess::start(BINARY);
    let (one, other) = (Origin::text("one"), Origin::text("other"));
    let node =
        |origin: &Origin| json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    let source = "function(vars)\n  return vars['arg_a1'] == 'a1' and vars['arg_a2'] == 'a2'\nend";
    gateway.set(
        "/routes/1",
        &json!({"uri": "/f", "priority": 1, "filter_func": source, "upstream": node(&one)}),
    );
    gateway.set("/routes/2", &json!({"uri": "/f", "upstream": node(&other)}));
    assert_eq!(get(gateway.http, "/f?a1=a1&a2=a2").text(), "one");
    assert_eq!(get(gateway.http, "/f?a1=a1").text(), "other");
    for (source, error) in [
        (
            "function(vars) oops",
            "failed to load 'filter_func' string: [string \"return function(vars) oops\"]:1: '=' expected near '<eof>'",
        ),
        ("function() end and 1", "'filter_func' should be a function"),
    ] {
        let (status, answer) = gateway
            .put("/routes/3", &json!({"uri": "/x", "filter_func": source, "upstream": node(&one)}));
        assert_eq!((status, answer), (400, json!({"error_msg": error})), "{source}");
    }
}

#[test]
fn a_variable_that_a_function_makes_comes_to_the_access_log() {
    let gateway = GatewayProcess::with(
        BINARY,
        json!({"nginx_config": {"http": {"access_log_format": "$uri labels=$a6_route_labels"}}}),
    );
    let origin = Origin::text("x");
    let source = "return function() local core = require \"apisix.core\" core.ctx.register_var(\"a6_route_labels\", function(ctx) local route = ctx.matched_route and ctx.matched_route.value if route and route.labels then return route.labels end return nil end); end";
    gateway.set(
        "/services/1",
        &json!({
            "plugins": pre("rewrite", source),
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
        }),
    );
    gateway.set("/routes/1", &json!({"uri": "/get", "service_id": "1", "labels": {"key": "test"}}));
    assert_eq!(get(gateway.http, "/get").status, 200);
    gateway.wait_for_access_line("/get labels={\\x22key\\x22:\\x22test\\x22}");
}

#[test]
fn a_field_is_taken_out_of_a_json_answer_as_apisixs_page_shows_it() {
    let gateway = GatewayProcess::start(BINARY);
    let origin = Origin::start(|_| {
        let body = r#"{"args": {}, "origin": "192.168.65.1", "url": "http://127.0.0.1/get"}"#;
        sluicegate_testkit::Answer::text(body).header("Content-Type", "application/json")
    });
    let node = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gateway.set("/routes/1", &json!({"uri": "/get", "upstream": node}));
    assert!(get(gateway.http, "/get").json().get("origin").is_some());
    let head = "return function(conf, ctx) local core = require(\"apisix.core\") core.response.clear_header_as_body_modified() end";
    let body = "return function(conf, ctx) local cjson = require(\"cjson\") local core = require(\"apisix.core\") local body = core.response.hold_body_chunk(ctx) if not body then return end body = cjson.decode(body) body.origin = nil body = cjson.encode(body) ngx.arg[1] = body end";
    let plugins = json!({"plugins": {
        "serverless-pre-function": {"phase": "header_filter", "functions": [head]},
        "serverless-post-function": {"phase": "body_filter", "functions": [body]},
    }});
    let (status, answer) = gateway.patch("/routes/1", &plugins);
    assert_eq!(status, 200, "{answer}");
    let answer = get(gateway.http, "/get");
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.json(), json!({"args": {}, "url": "http://127.0.0.1/get"}));
}

#[test]
fn zones_of_config_yaml_are_shared_by_all_cores_and_outlive_a_reload() {
    let zones = |size: &str| json!({"nginx_config": {"worker_processes": 2, "http": {"custom_lua_shared_dict": {"hits": size}}}});
    let gateway = GatewayProcess::with(BINARY, zones("1m"));
    let count =
        "return function() local n = ngx.shared.hits:incr('n', 1, 0) ngx.say(n) ngx.exit(200) end";
    gateway.set("/routes/1", &json!({"uri": "/n", "plugins": pre("access", count)}));
    for n in 1..=20 {
        // Each on a connection of its own, so on either core.
        assert_eq!(get(gateway.http, "/n").text(), format!("{n}\n"));
    }
    gateway
        .set("/routes/1", &json!({"uri": "/n", "desc": "anew", "plugins": pre("access", count)}));
    assert_eq!(get(gateway.http, "/n").text(), "21\n", "a configuration that changes keeps them");
    // A reload that changes a limit has every core begin with a new Lua state, but not with new zones.
    let mut reloaded = zones("1m");
    reloaded["plugin_attr"] = json!({"serverless": {"timers": 7}});
    gateway.write_config(&sluicegate_testkit::gateway::config(reloaded).to_string());
    gateway.signal(rustix::process::Signal::HUP);
    gateway.wait_for_error_line("The configuration was reloaded.");
    assert_eq!(get(gateway.http, "/n").text(), "22\n", "and so does a reload");
    gateway.write_config(&sluicegate_testkit::gateway::config(zones("2m")).to_string());
    gateway.signal(rustix::process::Signal::HUP);
    sluicegate_testkit::wait::until("a zone of another size begins empty", || {
        (get(gateway.http, "/n").text() == "1\n").then_some(())
    });
    let missing = "return function() ngx.say(tostring(ngx.shared.others)) ngx.exit(200) end";
    gateway.set("/routes/2", &json!({"uri": "/none", "plugins": pre("access", missing)}));
    assert_eq!(get(gateway.http, "/none").text(), "nil\n");
}

#[test]
fn limits_of_functions_follow_a_reload() {
    let with = |instructions: u64| json!({"plugin_attr": {"serverless": {"instructions": instructions, "time_ms": 30_000}}});
    let gateway = GatewayProcess::with(BINARY, with(10_000));
    let works = "return function() for i = 1, 20000 do end ngx.say('done') ngx.exit(200) end";
    gateway.set("/routes/1", &json!({"uri": "/w", "plugins": pre("access", works)}));
    assert_eq!(get(gateway.http, "/w").status, 500);
    gateway.write_config(&sluicegate_testkit::gateway::config(with(1_000_000)).to_string());
    gateway.signal(rustix::process::Signal::HUP);
    sluicegate_testkit::wait::until("the new limit holds", || {
        (get(gateway.http, "/w").status == 200).then_some(())
    });
}

#[test]
fn a_limit_that_is_misspelled_keeps_the_gateway_from_starting() {
    let with = |attr: Value| {
        let config = json!({"plugin_attr": {"serverless": attr}});
        let text = sluicegate_testkit::gateway::config(config).to_string();
        GatewayProcess::prepare(BINARY, &text)
    };
    for (attr, why) in [
        (
            json!({"instruction": 1000, "time_ms": 10}),
            "plugin_attr.serverless.instruction is not known",
        ),
        (json!({"time_ms": "1s"}), "plugin_attr.serverless.time_ms is not a number above 0"),
    ] {
        let gateway = with(attr);
        for command in ["start", "test"] {
            let output = gateway.command(&[command]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(why), "{command}: {said}");
        }
    }
    assert!(with(json!({"instructions": 1000})).command(&["test"]).status.success());
}

#[test]
fn a_reload_with_a_misspelled_limit_changes_nothing() {
    let with = |attr: Value| json!({"plugin_attr": {"serverless": attr}});
    let gateway = GatewayProcess::with(BINARY, with(json!({"instructions": 10_000})));
    let long = "return function() for i = 1, 20000 do end return 200 end";
    gateway.set("/routes/1", &json!({"uri": "/w", "plugins": pre("access", long)}));
    assert_eq!(get(gateway.http, "/w").status, 500);
    let wrong = with(json!({"instructionss": 10_000_000}));
    gateway.write_config(&sluicegate_testkit::gateway::config(wrong).to_string());
    gateway.signal(rustix::process::Signal::HUP);
    let line = gateway.wait_for_error_line("The configuration was not reloaded");
    assert!(line.contains("plugin_attr.serverless.instructionss is not known"), "{line}");
    assert_eq!(get(gateway.http, "/w").status, 500);
}

#[test]
fn timers_end_with_the_configuration_that_made_them_even_while_they_wait() {
    let zones = json!({"nginx_config": {"worker_processes": 1, "http": {"custom_lua_shared_dict": {"ticks": "1m"}}}});
    let gateway = GatewayProcess::with(BINARY, zones);
    let timer = "return function()
        ngx.timer.at(0, function() while true do ngx.sleep(0.01) ngx.shared.ticks:incr('loop', 1, 0) end end)
        ngx.timer.at(0, function() ngx.shared.ticks:incr('running', 1, 0) ngx.sleep(3600) end)
        return 200
    end";
    let tell = "return function()
        return 200, {n = ngx.shared.ticks:get('loop'), running = ngx.timer.running_count()}
    end";
    gateway.set("/routes/timer", &json!({"uri": "/timer", "plugins": pre("access", timer)}));
    gateway.set("/routes/tell", &json!({"uri": "/tell", "plugins": pre("access", tell)}));
    let told = || get(gateway.http, "/tell").json();
    assert_eq!(get(gateway.http, "/timer").status, 200);
    sluicegate_testkit::wait::until("the timers run", || {
        (told()["n"].as_f64() > Some(3.0) && told()["running"] == json!(2)).then_some(())
    });
    gateway.delete("/routes/timer");
    sluicegate_testkit::wait::until("both timers end", || {
        (told()["running"] == json!(0)).then_some(())
    });
    let after = told()["n"].clone();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(told()["n"], after);
}

#[test]
fn a_call_of_resty_http_does_not_hold_the_core() {
    let gateway = GatewayProcess::with(BINARY, json!({"nginx_config": {"worker_processes": 1}}));
    let (asked, answered) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let (tell, may) = (std::sync::Mutex::new(asked.0), std::sync::Mutex::new(answered.1));
    let slow = Origin::start(move |_| {
        tell.lock().unwrap().send(()).unwrap();
        // Until the other request has its answer.
        may.lock().unwrap().recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        sluicegate_testkit::Answer::text("slow")
    });
    let source = format!(
        "return function()
            local res, err = require('resty.http').new():request_uri('{}')
            return 200, res and res.body or err
        end",
        slow.url("/")
    );
    gateway.set("/routes/slow", &json!({"uri": "/slow", "plugins": pre("access", &source)}));
    let quick = "return function() return 200, 'quick' end";
    gateway.set("/routes/quick", &json!({"uri": "/quick", "plugins": pre("access", quick)}));
    let addr = gateway.http;
    let first = std::thread::spawn(move || get(addr, "/slow").text());
    asked.1.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
    assert_eq!(get(gateway.http, "/quick").text(), "quick");
    answered.0.send(()).unwrap();
    assert_eq!(first.join().unwrap(), "slow");
}

//! Consumers through the whole gateway: who they are found to be, whose plugins run for them, and
//! what stands in front of upstreams and of functions.

use serde_json::{Value, json};
use sluicegate_testkit::client::{Response, request};
use sluicegate_testkit::{Answer, GatewayProcess, Origin, wait};

use crate::BINARY;

fn gateway() -> (GatewayProcess, Origin) {
    (GatewayProcess::start(BINARY), Origin::text("through"))
}

fn upstream(origin: &Origin) -> Value {
    json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}})
}

fn ask(gate: &GatewayProcess, path: &str, key: &str) -> Response {
    let key = [("apikey", key)];
    let headers = if key[0].1.is_empty() { &key[..0] } else { &key[..] };
    request(gate.http, "GET", path, headers, "")
}

/// Waits until a request is answered with this status, as a change of the configuration is on its way.
#[track_caller]
fn becomes(gate: &GatewayProcess, path: &str, key: &str, status: u16) -> Response {
    wait::until(&format!("{path} to answer {status}"), || {
        Some(ask(gate, path, key)).filter(|answer| answer.status == status)
    })
}

#[test]
fn each_way_to_tell_who_it_is_works_before_an_upstream_and_a_function() {
    let (gate, origin) = gateway();
    gate.set(
        "/consumers/jack",
        &json!({"username": "jack", "labels": {"custom_id": "j-7"}, "plugins": {
            "basic-auth": {"username": "jack", "password": "pass:word"},
            "jwt-auth": {"key": "jack", "secret": "my-secret-key"},
        }}),
    );
    gate.set("/consumers/jack/credentials/one", &json!({"plugins": {"key-auth": {"key": "k-1"}}}));
    // {"key":"jack"} signed with my-secret-key, by openssl dgst -sha256 -hmac.
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJrZXkiOiJqYWNrIn0.PnzTo33DocgCqsspKjt8BaurfhQz7wd7FIXMSq-kflE";
    let basic = "Basic amFjazpwYXNzOndvcmQ=";
    let function = json!({"function_uri": origin.url("/")});
    let multi = json!({"auth_plugins": [{"basic-auth": {}}, {"key-auth": {}}]});
    for (plugin, config, header, value, credential) in [
        ("key-auth", json!({}), "apikey", "k-1", Some("one")),
        ("basic-auth", json!({}), "Authorization", basic, None),
        ("jwt-auth", json!({}), "Authorization", token, None),
        ("multi-auth", multi, "apikey", "k-1", Some("one")),
    ] {
        for (path, extra) in [("upstream", None), ("function", Some(&function))] {
            let mut plugins = json!({plugin: config});
            if let Some(function) = extra {
                plugins["aws-lambda"] = function.clone();
            }
            let uri = format!("/{plugin}/{path}");
            let route = json!({"uri": uri, "plugins": plugins, "upstream": upstream(&origin)});
            gate.set(&format!("/routes/{plugin}-{path}"), &route);
            let refused = request(gate.http, "GET", &uri, &[("X-Consumer-Username", "jack")], "");
            assert_eq!(refused.status, 401, "{uri}");
            assert!(!refused.all("www-authenticate").is_empty(), "{uri}");
            let sent = [(header, value), ("X-Consumer-Username", "root")];
            let answer = request(gate.http, "GET", &uri, &sent, "");
            assert_eq!((answer.status, answer.text().as_str()), (200, "through"), "{uri}");
            let seen = origin.last();
            assert_eq!(seen.all("x-consumer-username"), ["jack"], "{uri}");
            assert_eq!(seen.header("x-consumer-custom-id"), Some("j-7"), "{uri}");
            assert_eq!(seen.header("x-credential-identifier"), credential, "{uri}");
        }
    }
}

#[test]
fn a_signature_tells_who_it_is_before_an_upstream_and_a_function() {
    let (gate, origin) = gateway();
    gate.set(
        "/consumers/jack",
        &json!({"username": "jack", "plugins": {
            "hmac-auth": {"key_id": "jack-id", "secret_key": "jack-secret"},
        }}),
    );
    let hmac = json!({"hmac-auth": {"clock_skew": 9_999_999_999_u64}});
    for path in both(&gate, &origin, &hmac) {
        // printf 'jack-id\ndate: …\n' | openssl dgst -sha256 -hmac jack-secret -binary | base64
        let date = ("Date", "Tue, 19 Jan 2027 11:33:20 GMT");
        let signed = |signature: &str| {
            format!(
                r#"Signature keyId="jack-id",algorithm="hmac-sha256",headers="date",signature="{signature}""#
            )
        };
        let good = signed("VIL2Xw5uX24dEjmwEGwqI0Rl3pp1QKuP9RW2KifusTo=");
        let bad = signed("AIL2Xw5uX24dEjmwEGwqI0Rl3pp1QKuP9RW2KifusTo=");
        for (sent, status) in [
            (vec![date, ("Authorization", &*good)], 200),
            (vec![date, ("Authorization", &*bad)], 401),
            (vec![("Date", "Tue, 19 Jan 2027 11:33:21 GMT"), ("Authorization", &*good)], 401),
            (vec![date], 401),
        ] {
            let before = origin.requests().len();
            let answer = request(gate.http, "GET", path, &sent, "");
            assert_eq!(answer.status, status, "{path} {sent:?}: {}", answer.text());
            let came = origin.requests().len() - before;
            assert_eq!(came, usize::from(status == 200), "{path}");
            if status == 200 {
                assert_eq!(origin.last().all("x-consumer-username"), ["jack"], "{path}");
            }
        }
    }
}

#[test]
fn a_consumer_is_refused_before_an_upstream_and_a_function() {
    let (gate, origin) = gateway();
    for name in ["jack", "rose"] {
        let plugins = json!({"key-auth": {"key": name}});
        gate.set(&format!("/consumers/{name}"), &json!({"username": name, "plugins": plugins}));
    }
    let restricted = json!({"key-auth": {}, "consumer-restriction": {"whitelist": ["rose"]}});
    for path in both(&gate, &origin, &restricted) {
        let before = origin.requests().len();
        let refused = ask(&gate, path, "jack");
        let message = json!({"message": "The consumer_name is forbidden."});
        assert_eq!((refused.status, refused.json()), (403, message), "{path}");
        assert_eq!(origin.requests().len(), before, "{path}");
        assert_eq!(ask(&gate, path, "rose").status, 200, "{path}");
        assert_eq!(origin.last().header("x-consumer-username"), Some("rose"), "{path}");
    }
}

/// Routes `/upstream` and `/function` with these plugins, in front of `origin` as what they say;
/// their paths.
fn both(gate: &GatewayProcess, origin: &Origin, plugins: &Value) -> [&'static str; 2] {
    let route = json!({"uri": "/upstream", "plugins": plugins, "upstream": upstream(origin)});
    gate.set("/routes/upstream", &route);
    let mut plugins = plugins.clone();
    plugins["aws-lambda"] = json!({"function_uri": origin.url("/")});
    gate.set("/routes/function", &json!({"uri": "/function", "plugins": plugins}));
    ["/upstream", "/function"]
}

#[test]
fn a_consumers_plugins_come_before_its_groups_and_those_before_the_routes() {
    let (gate, origin) = gateway();
    let limit = |count: u32| json!({"count": count, "time_window": 3600, "rejected_code": 429});
    let limited = |count: u32| json!({"limit-count": limit(count)});
    gate.set("/consumer_groups/g", &json!({"plugins": limited(30)}));
    gate.set("/services/s", &json!({"plugins": limited(10), "upstream": upstream(&origin)}));
    gate.set("/plugin_configs/p", &json!({"plugins": limited(15)}));
    let auth = json!({"key-auth": {}});
    gate.set("/routes/service", &json!({"uri": "/service", "service_id": "s", "plugins": auth}));
    gate.set(
        "/routes/config",
        &json!({"uri": "/config", "service_id": "s", "plugin_config_id": "p", "plugins": auth}),
    );
    gate.set(
        "/routes/own",
        &json!({
            "uri": "/own", "service_id": "s", "plugin_config_id": "p",
            "plugins": {"key-auth": {}, "limit-count": limit(20)},
        }),
    );
    let off = json!({"limit-count": {"count": 1, "time_window": 1, "_meta": {"disable": true}}});
    for (name, group, plugins) in [
        ("plain", None, json!({})),
        ("grouped", Some("g"), json!({})),
        ("own", Some("g"), limited(40)),
        ("off", Some("g"), off),
    ] {
        let mut plugins = plugins;
        plugins["key-auth"] = json!({"key": format!("{name}-key")});
        let mut consumer = json!({"username": name, "plugins": plugins});
        if let Some(group) = group {
            consumer["group_id"] = json!(group);
        }
        gate.set(&format!("/consumers/{name}"), &consumer);
    }
    for (name, path, limit) in [
        ("plain", "/service", Some("10")),
        ("plain", "/config", Some("15")),
        ("plain", "/own", Some("20")),
        ("grouped", "/service", Some("30")),
        ("grouped", "/own", Some("30")),
        ("own", "/own", Some("40")),
        ("own", "/config", Some("40")),
        ("off", "/own", None),
    ] {
        let answer = ask(&gate, path, &format!("{name}-key"));
        assert_eq!(answer.status, 200, "{name} {path}");
        assert_eq!(answer.header("x-ratelimit-limit"), limit, "{name} {path}");
    }
}

#[test]
fn a_consumer_whose_group_is_gone_is_answered_503() {
    let (gate, origin) = gateway();
    let route = json!({"uri": "/a", "plugins": {"key-auth": {}}, "upstream": upstream(&origin)});
    gate.set("/routes/1", &route);
    gate.set("/consumer_groups/g", &json!({"plugins": {}}));
    let jack = json!({"username": "jack", "group_id": "g", "plugins": {"key-auth": {"key": "k"}}});
    gate.set("/consumers/jack", &jack);
    assert_eq!(ask(&gate, "/a", "k").status, 200);
    let (status, _) = gate.delete("/consumer_groups/g?force=true");
    assert_eq!(status, 200);
    becomes(&gate, "/a", "k", 503);
    gate.wait_for_error_line("A consumer is in a group that does not exist");
    gate.set("/consumer_groups/g", &json!({"plugins": {}}));
    becomes(&gate, "/a", "k", 200);
}

#[test]
fn names_and_anonymous_consumers_are_in_logs_and_limits() {
    let origin = Origin::text("through");
    let format = json!({"nginx_config": {"http": {
        "access_log_format": "who=$consumer_name group=$consumer_group_id uri=$request_uri",
    }}});
    let gate = GatewayProcess::with(BINARY, format);
    let limit = json!({
        "count": 1, "time_window": 3600, "rejected_code": 429,
        "key_type": "var", "key": "consumer_name",
    });
    let plugins = json!({"key-auth": {"anonymous_consumer": "anyone"}, "limit-count": limit});
    let route = json!({"uri": "/a", "plugins": plugins, "upstream": upstream(&origin)});
    gate.set("/routes/1", &route);
    gate.set("/consumer_groups/g", &json!({"plugins": {}}));
    gate.set("/consumers/anyone", &json!({"username": "anyone"}));
    for name in ["jack", "rose"] {
        let plugins = json!({"key-auth": {"key": name}});
        let consumer = json!({"username": name, "group_id": "g", "plugins": plugins});
        gate.set(&format!("/consumers/{name}"), &consumer);
    }
    for (key, statuses) in [("jack", [200, 429]), ("rose", [200, 429]), ("", [200, 429])] {
        for status in statuses {
            assert_eq!(ask(&gate, "/a", key).status, status, "{key}");
        }
    }
    gate.wait_for_access_line("who=jack group=g uri=/a");
    gate.wait_for_access_line("who=anyone group=- uri=/a");
    let restricted = json!({"key-auth": {}, "consumer-restriction": {"whitelist": ["rose"]}});
    let route = json!({"uri": "/b", "plugins": restricted, "upstream": upstream(&origin)});
    gate.set("/routes/2", &route);
    assert_eq!(ask(&gate, "/b", "rose").status, 200);
    let refused = ask(&gate, "/b", "jack");
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (403, "{\"message\":\"The consumer_name is forbidden.\"}\n")
    );
}

#[test]
fn keys_are_encrypted_at_rest_and_no_two_may_have_one() {
    let (gate, _) = gateway();
    let jack = json!({"username": "jack", "plugins": {"key-auth": {"key": "jack-key"}}});
    let (status, answer) = gate.put("/consumers/jack", &jack);
    assert_eq!(status, 201);
    assert!(!answer.to_string().contains("jack-key"), "the answer holds what was stored: {answer}");
    assert_eq!(gate.get("/consumers/jack").1["value"]["plugins"]["key-auth"]["key"], "jack-key");
    let rose = json!({"username": "rose", "plugins": {"key-auth": {"key": "jack-key"}}});
    let (status, answer) = gate.put("/consumers/rose", &rose);
    assert_eq!(status, 400, "{answer}");
    let jwt = json!({"username": "rose", "plugins": {"jwt-auth": {"key": "k"}}});
    let (status, answer) = gate.put("/consumers/rose", &jwt);
    assert_eq!(status, 400);
    let error = "invalid plugins configuration: failed to check the configuration of plugin jwt-auth err: property \"secret\" is required when using HS based algorithms";
    assert_eq!(answer["error_msg"], error);
}

#[test]
fn another_server_and_a_token_decide_before_an_upstream_and_a_function() {
    let (gate, origin) = gateway();
    let judge = Origin::start(|asked| match asked.target.as_str() {
        "/v1/data/p" => Answer::text(r#"{"result": {"allow": false, "reason": "no way"}}"#),
        _ if asked.header("x-pass").is_some() => Answer::text("").header("X-User", "seven"),
        _ => Answer::status(401).body("who?"),
    });
    let function = json!({"function_uri": origin.url("/")});
    let forward = json!({
        "uri": judge.url("/auth"), "request_headers": ["X-Pass"], "upstream_headers": ["X-User"],
    });
    let opa = json!({"host": judge.url(""), "policy": "p"});
    for (path, extra) in [("/upstream", None), ("/function", Some(&function))] {
        let set = |plugin: &str, config: &Value| {
            let mut plugins = json!({plugin: config});
            if let Some(function) = extra {
                plugins["aws-lambda"] = function.clone();
            }
            let route = json!({"uri": path, "plugins": plugins, "upstream": upstream(&origin)});
            gate.set("/routes/1", &route);
        };
        set("forward-auth", &forward);
        let refused = request(gate.http, "GET", path, &[("X-User", "root")], "");
        assert_eq!((refused.status, refused.text().as_str()), (401, "who?"), "{path}");
        let passed = request(gate.http, "GET", path, &[("X-Pass", "1"), ("X-User", "root")], "");
        assert_eq!(passed.status, 200, "{path}");
        assert_eq!(origin.last().all("x-user"), ["seven"], "{path}");
        set("opa", &opa);
        let refused = request(gate.http, "GET", path, &[], "");
        assert_eq!((refused.status, refused.text().as_str()), (403, "no way"), "{path}");
        set("csrf", &json!({"key": "k"}));
        let given = request(gate.http, "GET", path, &[], "");
        let cookie = given.header("set-cookie").and_then(|text| text.split(';').next());
        let cookie = cookie.expect("it brings a token").to_owned();
        let token = cookie.split_once('=').expect("it has a name").1.to_owned();
        let both = [("Cookie", &*cookie), ("apisix-csrf-token", &*token)];
        assert_eq!(request(gate.http, "POST", path, &both, "").status, 200, "{path}");
        assert_eq!(request(gate.http, "POST", path, &both[..1], "").status, 401, "{path}");
    }
}

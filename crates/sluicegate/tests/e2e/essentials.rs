//! The plugins that every route needs, each in front of a function and in front of an upstream.

use serde_json::{Value, json};
use sluicegate_testkit::client::{self, Response};
use sluicegate_testkit::gateway::GatewayProcess;
use sluicegate_testkit::origin::{Answer, Origin, Received};
use sluicegate_testkit::wait;

use crate::BINARY;

type Check = fn(&Response, Option<&Received>);

/// A plugin with its configuration, a request (method, query, fields, body), and what comes of it.
struct Row {
    plugin: &'static str,
    config: Value,
    method: &'static str,
    query: &'static str,
    fields: &'static [(&'static str, &'static str)],
    body: &'static str,
    check: Check,
}

fn row(plugin: &'static str, config: Value, check: Check) -> Row {
    Row { plugin, config, method: "GET", query: "", fields: &[], body: "", check }
}

fn rows() -> Vec<Row> {
    vec![
        row(
            "proxy-rewrite",
            json!({
                "method": "PUT",
                "uri": "/new/$arg_n?b=1",
                "headers": {"set": {"X-Who": "$remote_addr"}, "add": {"X-More": "1"}, "remove": ["X-Gone"]},
            }),
            |answer, sent| {
                let sent = sent.expect("it went on");
                assert_eq!(answer.status, 200);
                assert_eq!(sent.method, "PUT");
                assert_eq!(sent.target.trim_start_matches("/fn"), "/new/q?b=1&n=q");
                assert_eq!(
                    (sent.header("x-who"), sent.header("x-gone")),
                    (Some("127.0.0.1"), None)
                );
            },
        ),
        row(
            "response-rewrite",
            json!({
                "status_code": 202,
                "headers": {"set": {"X-Was": "$status"}},
                "filters": [{"regex": "origin", "replace": "gateway"}],
                "vars": [["status", "==", 200]],
            }),
            |answer, sent| {
                assert!(sent.is_some());
                assert_eq!((answer.status, answer.text().as_str()), (202, "from the gateway"));
                assert_eq!(answer.header("x-was"), Some("202"));
            },
        ),
        row("redirect", json!({"uri": "/moved$uri", "ret_code": 301}), |answer, sent| {
            assert!(sent.is_none());
            assert_eq!(answer.status, 301);
            assert!(answer.header("location").is_some_and(|to| to.starts_with("/moved/")));
        }),
        row("request-id", json!({"algorithm": "nanoid"}), |answer, sent| {
            let id = answer.header("x-request-id").expect("an id");
            assert_eq!((id.len(), sent.unwrap().header("x-request-id")), (21, Some(id)));
        }),
        row("cors", json!({"allow_origins": "http://a.test,http://b.test"}), |answer, sent| {
            assert!(sent.is_some());
            assert_eq!(answer.header("access-control-allow-origin"), Some("http://b.test"));
            assert_eq!(answer.header("vary"), Some("Origin"));
        }),
        row("ip-restriction", json!({"blacklist": ["127.0.0.0/8"]}), |answer, sent| {
            assert!(sent.is_none());
            assert_eq!(answer.status, 403);
            assert_eq!(answer.json(), json!({"message": "Your IP address is not allowed"}));
        }),
        row("ua-restriction", json!({"denylist": ["^bad"]}), |answer, sent| {
            assert_eq!((answer.status, sent.is_none()), (403, true));
        }),
        row("referer-restriction", json!({"whitelist": ["good.test"]}), |answer, sent| {
            assert_eq!((answer.status, sent.is_none()), (403, true));
        }),
        row(
            "uri-blocker",
            json!({"block_rules": ["n=q"], "rejected_msg": "no"}),
            |answer, sent| {
                assert!(sent.is_none());
                assert_eq!((answer.status, answer.json()), (403, json!({"error_msg": "no"})));
            },
        ),
        row("real-ip", json!({"source": "http_x_far"}), |answer, sent| {
            assert_eq!(answer.status, 200);
            // A function is told nothing about addresses, as in APISIX.
            if let Some(address) = sent.unwrap().header("x-real-ip") {
                assert_eq!(address, "192.0.2.1");
            }
        }),
        row("client-control", json!({"max_body_size": 3}), |answer, sent| {
            assert_eq!((answer.status, sent.is_none()), (413, true));
        }),
        row(
            "request-validation",
            json!({"body_schema": {"type": "object", "properties": {"a": {"default": 7}}}}),
            |answer, sent| {
                assert_eq!(answer.status, 200);
                assert_eq!(sent.unwrap().body, b"{\"b\":1,\"a\":7}");
            },
        ),
        row(
            "fault-injection",
            json!({"abort": {"http_status": 418, "body": "for $arg_n"}}),
            |answer, sent| {
                assert!(sent.is_none());
                assert_eq!((answer.status, answer.text().as_str()), (418, "for q"));
            },
        ),
        row("mocking", json!({"response_example": "{\"n\":\"$arg_n\"}"}), |answer, sent| {
            assert!(sent.is_none());
            assert_eq!((answer.status, answer.json()), (200, json!({"n": "q"})));
        }),
        row("echo", json!({"before_body": "<", "after_body": ">"}), |answer, sent| {
            assert!(sent.is_some());
            assert_eq!(answer.text(), "<from the origin>");
        }),
        row("gzip", json!({"min_length": 1, "types": ["text/plain"]}), |answer, sent| {
            assert!(sent.is_some());
            assert_eq!(answer.header("content-encoding"), Some("gzip"));
            assert_eq!(answer.body[..2], [0x1f, 0x8b]);
        }),
        row("brotli", json!({"min_length": 1, "types": "*"}), |answer, sent| {
            assert!(sent.is_some());
            assert_eq!(answer.header("content-encoding"), Some("br"));
            assert!(!answer.text().contains("from the origin") || answer.body.len() > 15);
        }),
    ]
}

#[test]
fn each_plugin_works_before_a_function_as_before_an_upstream() {
    let answer = |_: &Received| {
        Answer::status(200).header("Content-Type", "text/plain").body("from the origin")
    };
    let origin = Origin::start(answer);
    let gateway = GatewayProcess::start(BINARY);
    let node = origin.addr.to_string();
    for mut row in rows() {
        match row.plugin {
            "client-control" | "request-validation" => {
                (row.method, row.body) = ("POST", "{\"b\":1}");
                row.fields = &[("Content-Type", "application/json")];
            }
            _ => {
                row.query = "?n=q";
                row.fields = &[
                    ("Origin", "http://b.test"),
                    ("User-Agent", "bad/1"),
                    ("Referer", "http://bad.test"),
                    ("X-Far", "192.0.2.1"),
                    ("X-Gone", "1"),
                    ("Accept-Encoding", "gzip, br"),
                ];
            }
        }
        let function = json!({"function_uri": origin.url("/fn"), "authorization": {"apikey": "k"}});
        let path = format!("/{}", row.plugin);
        gateway.set(
            "/routes/function",
            &json!({"uri": format!("{path}/function"), "plugins": {"aws-lambda": function, row.plugin: row.config}}),
        );
        gateway.set(
            "/routes/upstream",
            &json!({
                "uri": format!("{path}/upstream"),
                "plugins": {row.plugin: row.config},
                "upstream": {"type": "roundrobin", "nodes": {&node: 1}},
            }),
        );
        for end in ["function", "upstream"] {
            origin.clear();
            let target = format!("{path}/{end}{}", row.query);
            let answer = client::request(gateway.http, row.method, &target, row.fields, row.body);
            let sent = origin.requests();
            assert!(sent.len() < 2, "{target}");
            if let Some(sent) = sent.first() {
                let key = sent.header("x-api-key");
                assert_eq!(key.is_some(), end == "function", "{target}");
            }
            eprintln!("{target}: {} {:?}", answer.status, answer.text());
            (row.check)(&answer, sent.first());
        }
    }
}

#[test]
fn real_ip_changes_the_address_before_a_function_as_before_an_upstream() {
    let origin = Origin::text("ok");
    let gateway = GatewayProcess::start(BINARY);
    let plugins = json!({
        "real-ip": {"source": "http_x_far"},
        "ip-restriction": {"blacklist": ["192.0.2.0/24"]},
        "response-rewrite": {"headers": {"set": {"X-From": "$remote_addr"}}},
    });
    for path in both(&gateway, &origin, &plugins) {
        for (far, status, from) in [
            ("192.0.2.1", 403, "192.0.2.1"),
            ("198.51.100.7", 200, "198.51.100.7"),
            ("", 200, "127.0.0.1"),
        ] {
            let fields = [("X-Far", far)];
            let fields = if far.is_empty() { &fields[..0] } else { &fields[..] };
            let answer = client::request(gateway.http, "GET", path, fields, "");
            assert_eq!((answer.status, answer.header("x-from")), (status, Some(from)), "{path}");
        }
    }
}

#[test]
fn meta_changes_the_order_of_plugins_and_what_refusals_say() {
    let origin = Origin::text("ok");
    let gateway = GatewayProcess::start(BINARY);
    let limit = |meta: Value| json!({"count": 5, "time_window": 3600, "_meta": meta});
    let restrict = |meta: Value| json!({"blacklist": ["127.0.0.1"], "_meta": meta});
    let message = json!({"message": "Your IP address is not allowed"});
    let own = json!({"code": 7, "why": "not you"});
    for (limit, restrict, counted, said) in [
        (limit(json!({})), restrict(json!({})), false, &message),
        (limit(json!({"priority": 3001})), restrict(json!({})), true, &message),
        (limit(json!({})), restrict(json!({"priority": 1001})), true, &message),
        (limit(json!({})), restrict(json!({"error_response": own})), false, &own),
    ] {
        let plugins = json!({"limit-count": limit, "ip-restriction": restrict});
        for path in both(&gateway, &origin, &plugins) {
            let answer = client::get(gateway.http, path);
            assert_eq!((answer.status, &answer.json()), (403, said), "{path} {plugins}");
            let limited = answer.header("x-ratelimit-limit").is_some();
            assert_eq!(limited, counted, "{path} {plugins}");
        }
    }
    // A text is the body as it is, and an answer that refuses nothing is left alone.
    let text = json!({"ip-restriction": restrict(json!({"error_response": "go away"}))});
    let fine = json!({"mocking": {"response_example": "fine", "_meta": {"error_response": "no"}}});
    for path in both(&gateway, &origin, &text) {
        assert_eq!(client::get(gateway.http, path).text(), "go away", "{path}");
    }
    for path in both(&gateway, &origin, &fine) {
        assert_eq!(client::get(gateway.http, path).text(), "fine", "{path}");
    }
}

#[test]
fn plugins_of_several_global_rules_run_by_priority() {
    let origin = Origin::text("ok");
    let gateway = GatewayProcess::start(BINARY);
    let limit = json!({"count": 2, "time_window": 3600, "rejected_code": 429});
    // By their ids the rule that limits comes first.
    gateway.set("/global_rules/1", &json!({"plugins": {"limit-count": limit}}));
    let restrict =
        json!({"blacklist": ["127.0.0.1"], "_meta": {"filter": [["arg_bad", "==", "1"]]}});
    gateway.set("/global_rules/2", &json!({"plugins": {"ip-restriction": restrict}}));
    let [upstream, function] = both(&gateway, &origin, &json!({}));
    for (target, status, left) in [
        (format!("{upstream}?bad=1"), 403, None),
        (format!("{function}?bad=1"), 403, None),
        (upstream.to_owned(), 200, Some("1")),
        (function.to_owned(), 200, Some("0")),
        (upstream.to_owned(), 429, Some("0")),
        ("/none".to_owned(), 429, Some("0")),
        ("/none?bad=1".to_owned(), 403, None),
    ] {
        let answer = client::get(gateway.http, &target);
        let header = answer.header("x-ratelimit-remaining");
        assert_eq!((answer.status, header), (status, left), "{target}");
    }
}

/// Routes `/upstream` and `/function` with these plugins, in front of `origin` as what they say;
/// their paths.
fn both(gateway: &GatewayProcess, origin: &Origin, plugins: &Value) -> [&'static str; 2] {
    let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    let route = json!({"uri": "/upstream", "plugins": plugins, "upstream": upstream});
    gateway.set("/routes/upstream", &route);
    let mut plugins = plugins.clone();
    plugins["aws-lambda"] = json!({"function_uri": origin.url("/fn")});
    gateway.set("/routes/function", &json!({"uri": "/function", "plugins": plugins}));
    ["/upstream", "/function"]
}

#[test]
fn plugins_of_a_route_work_together() {
    let origin = Origin::start(|_| {
        Answer::status(200).header("Content-Type", "text/html").body("hello hello hello hello")
    });
    let gateway = GatewayProcess::start(BINARY);
    let plugins = json!({
        "response-rewrite": {"filters": [{"regex": "hello", "replace": "hi", "scope": "global"}]},
        "gzip": {}, "brotli": {}, "echo": {"before_body": "<", "after_body": ">"},
        "cors": {}, "request-id": {},
    });
    let nodes = json!({origin.addr.to_string(): 1});
    gateway.set(
        "/routes/1",
        &json!({"uri": "/a", "plugins": plugins, "upstream": {"type": "roundrobin", "nodes": nodes}}),
    );
    gateway.set(
        "/global_rules/1",
        &json!({"plugins": {"response-rewrite": {"filters": [{"regex": "hi", "replace": "ho"}], "vars": [["arg_g", "==", "1"]]}}}),
    );
    let plain = client::request(gateway.http, "GET", "/a", &[], "");
    assert_eq!(plain.text(), "<hi hi hi hi>");
    assert_eq!(plain.header("content-encoding"), None);
    let global = client::request(gateway.http, "GET", "/a?g=1", &[], "");
    assert_eq!(global.text(), "<hi hi hi hi>", "the global rule came first, and found no hi");
    for (accept, coding) in [("gzip", "gzip"), ("gzip, br", "br")] {
        let coded = client::request(gateway.http, "GET", "/a", &[("Accept-Encoding", accept)], "");
        assert_eq!(coded.all("content-encoding"), [coding]);
        assert!(coded.header("x-request-id").is_some());
    }
}

#[test]
fn apis_of_plugins_are_served_where_a_route_lets_them() {
    let origin = Origin::start(|got| {
        Answer::status(200)
            .header("X-Seen", got.header("x-h").unwrap_or("none"))
            .body(got.target.clone())
    });
    // Neither is enabled by default, as in APISIX.
    let plugins = json!(["public-api", "batch-requests", "node-status", "fault-injection", "gzip"]);
    let named =
        GatewayProcess::with(BINARY, json!({"plugins": plugins, "apisix": {"id": "gate-1"}}));
    let shown = json!({"uri": "/status", "plugins": {"public-api": {"uri": "/apisix/status"}}});
    named.set("/routes/1", &shown);
    assert_eq!(client::get(named.http, "/status").json()["id"], "gate-1");
    let gateway = GatewayProcess::with(BINARY, json!({"plugins": plugins}));
    gateway.set_proxy("p", "/p*", origin.addr);
    gateway.set(
        "/routes/slow",
        &json!({"uri": "/slow", "plugins": {"fault-injection": {"delay": {"duration": 5}}},
            "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}}}),
    );
    let api = |id: &str, uri: &str, config: Value| {
        gateway
            .set(&format!("/routes/{id}"), &json!({"uri": uri, "plugins": {"public-api": config}}));
    };
    api("b", "/apisix/batch-requests", json!({}));
    api("s", "/status", json!({"uri": "/apisix/status"}));
    api("n", "/nothing", json!({}));
    assert_eq!(client::get(gateway.http, "/nothing").status, 404);
    // A request is counted when its answer is sent, which may be seen a little later.
    let status = wait::until("the requests to be counted", || {
        let status = client::get(gateway.http, "/status").json();
        let total = status["status"]["total"].as_str()?.parse::<u64>().ok()?;
        (total >= 2).then_some(status)
    });
    assert_eq!(status["id"].as_str().map(str::len), Some(36));
    assert_eq!(
        status["id"],
        gateway.read("conf/apisix.uid").trim(),
        "it is kept for the next start"
    );

    let batch = |body: Value| {
        client::request(
            gateway.http,
            "POST",
            "/apisix/batch-requests",
            &[("X-H", "outer")],
            body.to_string(),
        )
    };
    let answer = batch(json!({
        "headers": {"X-H": "batch"}, "query": {"q": "a b"}, "timeout": 300,
        "pipeline": [
            {"path": "/p/1"},
            {"path": "/p/2?x=1", "headers": {"x-h": "own"}, "query": {"q": 1}},
            {"path": "/none"},
            {"path": "/slow"},
            {"path": "/apisix/batch-requests", "method": "POST", "body": "{}"},
            {"path": "/p/3", "method": "HEAD"},
        ],
    }));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let all = answer.json();
    assert_eq!(
        (&all[0]["status"], &all[0]["body"], &all[0]["headers"]["X-Seen"]),
        (&json!(200), &json!("/p/1?q=a%20b"), &json!("batch"))
    );
    assert_eq!(
        (&all[1]["body"], &all[1]["headers"]["X-Seen"]),
        (&json!("/p/2?x=1&q=1"), &json!("own"))
    );
    assert_eq!((&all[2]["status"], &all[2]["reason"]), (&json!(404), &json!("Not Found")));
    assert_eq!(all[3], json!({"status": 504, "reason": "upstream timeout"}));
    assert_eq!((&all[4]["status"], all.as_array().map(Vec::len)), (&json!(400), Some(6)));
    assert_eq!((&all[5]["status"], all[5].get("body")), (&json!(200), None));
    for (body, status) in [(json!({}), 400), (json!({"pipeline": [{"path": "a\r\nb"}]}), 400)] {
        assert_eq!(batch(body).status, status);
    }
    gateway.set(
        "/plugin_metadata/batch-requests",
        &json!({"max_pipeline_items": 1, "max_body_size": 60}),
    );
    let two = json!({"pipeline": [{"path": "/p"}, {"path": "/p"}]});
    assert_eq!(
        batch(two).json()["error_msg"],
        "too many pipeline requests, 2 exceeds the maximum of 1"
    );
    let long = json!({"pipeline": [{"path": "/p".repeat(50)}]});
    let refused = batch(long.clone());
    let size = long.to_string().len();
    let text = format!("request size {size} is greater than the maximum size 60 allowed");
    assert_eq!((refused.status, refused.json()["error_msg"].as_str()), (413, Some(&*text)));
}

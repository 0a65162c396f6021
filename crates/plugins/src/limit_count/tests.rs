//! What clients of a route with `limit-count` see.

use std::sync::atomic::{AtomicU64, Ordering};

use sluicegate_gateway::http::Headers;
use sluicegate_gateway::plugin::Registry;
use sluicegate_model::kind::Kind;
use sluicegate_testkit::client::{Client, Response};
use sluicegate_testkit::{InProcess, Origin, PluginTest, Redis, wait};

use super::*;

/// A gateway with these routes (uri, plugin configuration), each in front of the same origin.
struct Setup {
    gateway: InProcess,
    _origin: Origin,
}

impl Setup {
    #[track_caller]
    fn with(routes: &[(&str, Value)], metadata: Option<Value>) -> Self {
        let origin = Origin::text("through");
        let mut registry = Registry::default();
        registry.add::<LimitCount>();
        let metadata = metadata.map(|metadata| (Kind::PluginMetadata, LimitCount::NAME, metadata));
        let route = |(uri, config): &(&'static str, Value)| {
            let route = json!({
                "id": uri[1..],
                "uri": uri,
                "plugins": {LimitCount::NAME: config},
                "upstream": {"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}},
            });
            (Kind::Routes, &uri[1..], route)
        };
        let routes: Vec<(&'static str, Value)> =
            routes.iter().map(|(uri, config)| (leaked(uri), config.clone())).collect();
        let resources = metadata.into_iter().chain(routes.iter().map(route)).collect();
        Self { gateway: InProcess::start(registry, resources), _origin: origin }
    }

    fn one(config: Value) -> Self {
        Self::with(&[("/a", config)], None)
    }

    #[track_caller]
    fn get(&self, target: &str, headers: &[(&str, &str)]) -> Response {
        let mut client = Client::connect(self.gateway.addr);
        client.send(sluicegate_testkit::client::request_bytes("GET", target, headers, b""));
        client.response()
    }

    #[track_caller]
    fn statuses(&self, targets: &[(&str, &[(&str, &str)])]) -> Vec<u16> {
        targets.iter().map(|(target, headers)| self.get(target, headers).status).collect()
    }
}

fn leaked(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn quota(response: &Response) -> [Option<&str>; 2] {
    ["X-RateLimit-Limit", "X-RateLimit-Remaining"].map(|name| response.header(name))
}

#[test]
fn requests_beyond_the_limit_are_refused_and_every_answer_tells_the_quota() {
    for window_type in ["fixed", "sliding"] {
        // A window that does not turn while the test runs.
        let setup =
            Setup::one(json!({"count": 2, "time_window": 86_400_000, "window_type": window_type}));
        for (status, remaining) in [(200, "1"), (200, "0"), (503, "0"), (503, "0")] {
            let response = setup.get("/a", &[]);
            assert_eq!(response.status, status, "{window_type}");
            assert_eq!(quota(&response), [Some("2"), Some(remaining)], "{window_type}");
            let reset: f64 = response.header("X-RateLimit-Reset").unwrap_or("").parse().unwrap();
            assert!(reset > 0.0 && reset <= 86_400_000.0, "{reset}");
        }
    }
}

#[test]
fn a_refusal_says_what_is_configured() {
    let refusing = |extra: Value| {
        let mut config = json!({"count": 1, "time_window": 3600});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let setup = Setup::one(config);
        assert_eq!(setup.get("/a", &[]).status, 200);
        setup.get("/a", &[])
    };
    let response = refusing(json!({"rejected_code": 429, "rejected_msg": "too many"}));
    assert_eq!((response.status, response.json()), (429, json!({"error_msg": "too many"})));
    let response = refusing(json!({"rejected_code": 429}));
    assert_eq!(response.status, 429);
    assert!(response.text().contains("429 Too Many Requests"), "{}", response.text());
    let response = refusing(json!({"rejected_code": 200, "show_limit_quota_header": false}));
    assert_eq!((response.status, response.text().as_str()), (200, ""));
    assert_eq!(quota(&response), [None, None]);
}

#[test]
fn requests_are_counted_by_what_the_key_finds_and_else_by_address() {
    let one: &[(&str, &str)] = &[("x-one", "1")];
    let other: &[(&str, &str)] = &[("x-one", "2"), ("x-two", "2")];
    for (key, key_type, statuses) in [
        ("http_x_one", "var", [200, 503, 200, 503, 200, 503]),
        ("$http_x_one-$http_x_two", "var_combination", [200, 503, 200, 503, 200, 503]),
        ("$http_x_two", "var_combination", [200, 503, 200, 503, 503, 503]),
        ("remote_addr", "var", [200, 503, 503, 503, 503, 503]),
        ("fixed", "constant", [200, 503, 503, 503, 503, 503]),
        // Nothing tells requests apart where there is no variable.
        ("fixed", "var_combination", [200, 503, 503, 503, 503, 503]),
    ] {
        let setup =
            Setup::one(json!({"count": 1, "time_window": 3600, "key": key, "key_type": key_type}));
        let got = setup.statuses(&[
            ("/a", one),
            ("/a", one),
            ("/a", other),
            ("/a", other),
            ("/a", &[]),
            ("/a", &[]),
        ]);
        assert_eq!(got, statuses, "{key_type} {key}");
    }
}

#[test]
fn limits_may_be_made_of_variables_and_what_cannot_be_one_is_refused() {
    let config = json!({"count": "${http_x_count ?? 1}", "time_window": "$http_x_window"});
    let window = ("x-window", "3600");
    let setup = Setup::one(config.clone());
    let response = setup.get("/a", &[window, ("x-count", "3")]);
    assert_eq!((response.status, quota(&response)), (200, [Some("3"), Some("2")]));
    let response = setup.get("/a", &[window]);
    assert_eq!((response.status, quota(&response)), (503, [Some("1"), Some("0")]));
    for wrong in ["0", "-1", "1.5", "ten", "9007199254740992"] {
        assert_eq!(setup.get("/a", &[window, ("x-count", wrong)]).status, 500, "{wrong}");
    }
    assert_eq!(setup.get("/a", &[]).status, 500, "there is no window");
    let mut degrading = config;
    degrading["allow_degradation"] = json!(true);
    assert_eq!(Setup::one(degrading).get("/a", &[]).status, 200);
}

#[test]
fn each_rule_that_finds_its_key_limits_by_itself() {
    let setup = Setup::one(json!({"rejected_code": 429, "rules": [
        {"key": "$http_user", "count": 1, "time_window": 3600},
        {"key": "$http_team", "count": 2, "time_window": 3600, "header_prefix": "Team"},
    ]}));
    let both: &[(&str, &str)] = &[("user", "a"), ("team", "t")];
    let response = setup.get("/a", both);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("X-1-RateLimit-Remaining"), Some("0"));
    assert_eq!(response.header("X-Team-RateLimit-Remaining"), Some("1"));
    assert_eq!(response.header("X-RateLimit-Remaining"), None);
    let got = setup.statuses(&[
        ("/a", both),
        ("/a", &[("team", "t")]),
        ("/a", &[("team", "t")]),
        ("/a", &[("user", "b")]),
        // No rule applies.
        ("/a", &[]),
    ]);
    assert_eq!(got, [429, 200, 429, 200, 500]);
}

#[test]
fn a_rule_that_cannot_be_made_out_leaves_the_counters_of_the_others_alone() {
    let setup = Setup::one(json!({"rules": [
        {"key": "$http_user", "count": 1, "time_window": 3600},
        {"key": "$http_team", "count": "${http_x_count ?? 5}", "time_window": 3600},
    ]}));
    let with = |count: &'static str| [("user", "a"), ("team", "t"), ("x-count", count)];
    assert_eq!(setup.get("/a", &with("ten")).status, 500);
    assert_eq!(setup.get("/a", &with("5")).status, 200);
    assert_eq!(setup.get("/a", &with("5")).status, 503);
}

#[test]
fn routes_of_a_group_share_their_quota_and_others_do_not() {
    let grouped = json!({"count": 1, "time_window": 3600, "group": "shared-by-two-routes"});
    let alone = json!({"count": 1, "time_window": 3600});
    let routes = [("/a", grouped.clone()), ("/b", grouped), ("/c", alone.clone()), ("/d", alone)];
    let setup = Setup::with(&routes, None);
    let got = setup.statuses(&[("/a", &[]), ("/b", &[]), ("/c", &[]), ("/d", &[]), ("/c", &[])]);
    assert_eq!(got, [200, 503, 200, 200, 503]);
}

#[test]
fn metadata_names_the_headers() {
    let metadata = json!({"limit_header": "X-Custom-RateLimit-Limit", "remaining_header": "Left"});
    let rules = json!({"rules": [{"key": "$uri", "count": 5, "time_window": 60}]});
    let plain = json!({"count": 5, "time_window": 60});
    let setup = Setup::with(&[("/a", plain), ("/b", rules)], Some(metadata));
    let response = setup.get("/a", &[]);
    assert_eq!(response.header("X-Custom-RateLimit-Limit"), Some("5"));
    assert_eq!(response.header("Left"), Some("4"));
    assert_eq!(response.header("X-RateLimit-Reset"), Some("60"));
    let response = setup.get("/b", &[]);
    assert_eq!(response.header("X-Custom-1-RateLimit-Limit"), Some("5"));
}

#[test]
fn the_schema_and_the_config_speak_of_the_same_fields() {
    PluginTest::<LimitCount>::check_schema(&json!({"count": 1, "time_window": 1}));
}

#[test]
fn a_configuration_that_cannot_work_is_refused_in_apisix_words() {
    let mut registry = Registry::default();
    registry.add::<LimitCount>();
    let check = |config: &Value| (registry.get("limit-count").unwrap().info.check)(config);
    let rule = json!({"count": 1, "time_window": 1, "key": "$uri"});
    for (config, error) in [
        (json!({"count": 1}), "value should match only one schema, but matches none"),
        (
            json!({"count": 0, "time_window": 1}),
            "property \"count\" validation failed: value should match only one schema, but matches none",
        ),
        (
            json!({"count": 1, "time_window": 1, "rules": [rule]}),
            "count/time_window and rules cannot be specified at the same time",
        ),
        (
            json!({"count": 1, "rules": [rule]}),
            "count/time_window and rules cannot be specified at the same time",
        ),
        (
            json!({"group": "g", "rules": [rule]}),
            "group and rules cannot be specified at the same time",
        ),
        (json!({"rules": [rule, rule]}), "duplicate key '$uri' in rules"),
        (json!({"count": 1, "time_window": 1, "policy": "redis"}), "then clause did not match"),
        (
            json!({"count": 1, "time_window": 1, "policy": "redis", "redis_host": "h1",
                "sync_interval": 0.05}),
            "sync_interval should not be smaller than 0.1",
        ),
        (
            json!({"count": 1, "time_window": 1, "policy": "redis", "redis_host": "h1",
                "sync_interval": 1}),
            "sync_interval should be smaller than time_window",
        ),
    ] {
        let got = check(&config).expect_err(&config.to_string());
        assert_eq!(got, error, "{config}");
    }
}

#[test]
fn seconds_are_written_as_lua_writes_them() {
    for (seconds, text) in
        [(60.0, "60"), (59.98, "59.98"), (59.9, "59.9"), (0.001, "0"), (0.05, "0.05"), (-1.0, "0")]
    {
        let (mut headers, name) = (Headers::new(), FieldName::of_static("Reset"));
        headers.set_numbers_by([(&name, cents(seconds))]);
        assert_eq!(headers.get_by(&name), Some(text.as_bytes()), "{seconds}");
    }
}

/// Configurations for a Redis and for a cluster, in which windows do not turn while a test runs.
fn remote(redis: &Redis, policy: &str, extra: Value) -> Value {
    let mut config = json!({
        "count": 3,
        "time_window": 86_400_000,
        "policy": policy,
        "redis_host": "127.0.0.1",
        "redis_port": redis.addr(0).port(),
        "redis_cluster_name": "c",
        "redis_cluster_nodes": redis.nodes(),
    });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config
}

#[test]
fn a_redis_counts_for_all_gateways_that_ask_it() {
    let (Some(one), Some(cluster)) = (Redis::start(&[]), Redis::cluster(3)) else { return };
    for (redis, policy) in [(&one, "redis"), (&cluster, "redis-cluster")] {
        for window_type in ["fixed", "sliding"] {
            for key in ["a", "b", "c"] {
                let extra = json!({"window_type": window_type, "key": key, "key_type": "constant"});
                let config = remote(redis, policy, extra);
                let gateways = [Setup::one(config.clone()), Setup::one(config)];
                let answers: Vec<Response> =
                    (0..4).map(|at| gateways[at % 2].get("/a", &[])).collect();
                let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
                assert_eq!(statuses, [200, 200, 200, 503], "{policy} {window_type} {key}");
                let left: Vec<_> =
                    answers.iter().map(|a| a.header("X-RateLimit-Remaining").unwrap()).collect();
                assert_eq!(left, ["2", "1", "0", "0"], "{policy} {window_type} {key}");
                let reset = answers[1].header("X-RateLimit-Reset").unwrap().parse::<f64>().unwrap();
                assert!(reset > 0.0 && reset <= 86_400_000.0, "{reset}");
            }
        }
    }
    let keys = one.command(0, "KEYS *");
    assert!(keys.contains("plugin-limit-count:v1:/apisix/routes/a:"), "{keys}");
    assert!(keys.contains(".counter"), "{keys}");
}

#[test]
fn a_redis_with_a_password_a_user_and_a_database_is_asked_with_them() {
    let Some(redis) =
        Redis::start(&["--requirepass", "secret", "--user", "me", "on", ">word", "~*", "+@all"])
    else {
        return;
    };
    for (extra, status) in [
        (json!({"redis_password": "secret", "redis_database": 1}), 200),
        (json!({"redis_username": "me", "redis_password": "word"}), 200),
        (json!({"redis_password": "wrong"}), 500),
        (json!({}), 500),
    ] {
        let setup = Setup::one(remote(&redis, "redis", extra.clone()));
        assert_eq!(setup.get("/a", &[]).status, status, "{extra}");
    }
}

#[test]
fn a_redis_that_is_gone_or_stuck_neither_hangs_requests_nor_lets_them_through() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let strict = Setup::one(remote(&redis, "redis", json!({"redis_timeout": 200})));
    let lenient = Setup::one(remote(
        &redis,
        "redis",
        json!({"redis_timeout": 200, "allow_degradation": true, "count": 2}),
    ));
    assert_eq!(strict.get("/a", &[]).status, 200);
    let signal = |signal: &str| {
        let pid = redis.pid(0).to_string();
        assert!(
            std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success()
        );
    };
    signal("-STOP");
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let response = strict.get("/a", &[]);
        assert_eq!(response.status, 500);
        assert_eq!(response.json(), json!({"error_msg": "failed to limit count"}));
        assert_eq!(lenient.get("/a", &[]).status, 200);
        assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
    }
    signal("-CONT");
    redis.kill(0);
    assert_eq!(strict.get("/a", &[]).status, 500);
    redis.launch(0);
    let back = wait::within(wait::PATIENCE, || (strict.get("/a", &[]).status == 200).then_some(()));
    assert!(back.is_some(), "a Redis that is back is asked again");
}

#[test]
fn with_delayed_sync_gateways_learn_of_each_other_after_a_while() {
    let Some(redis) = Redis::start(&[]) else { return };
    for window_type in ["fixed", "sliding"] {
        let extra = json!({"count": 5, "sync_interval": 0.2, "window_type": window_type});
        let config = remote(&redis, "redis", extra);
        let gateways = [Setup::one(config.clone()), Setup::one(config)];
        let left = |at: usize| {
            let response = gateways[at].get("/a", &[]);
            let left = response.header("X-RateLimit-Remaining").unwrap_or("").to_owned();
            (response.status, left)
        };
        // Both know five at first.
        assert_eq!(left(0), (200, "4".into()), "{window_type}");
        assert_eq!(left(0), (200, "3".into()), "{window_type}");
        assert_eq!(left(1), (200, "4".into()), "{window_type}");
        // Who counted tells the Redis, and learns what the others did.
        std::thread::sleep(std::time::Duration::from_millis(600));
        assert_eq!((left(0).0, left(1).0), (200, 200), "{window_type}: five are used up");
        // Of two reports only the later one learns of both; one request more may pass.
        std::thread::sleep(std::time::Duration::from_millis(600));
        let more = [left(0).0, left(1).0];
        assert!(more.contains(&503), "{window_type}: {more:?}");
        std::thread::sleep(std::time::Duration::from_millis(600));
        assert_eq!((left(0).0, left(1).0), (503, 503), "{window_type}");
    }
}

#[test]
fn two_questions_for_one_request_have_one_time_limit() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (port, delay_ms) = slowly(redis.addr(0));
    // A sliding window asks for the window before, then counts.
    let mut config = remote(&redis, "redis", json!({"redis_timeout": 400}));
    config["window_type"] = json!("sliding");
    config["redis_port"] = json!(port);
    let setup = Setup::one(config);
    assert_eq!(setup.get("/a", &[]).status, 200);
    delay_ms.store(300, Ordering::SeqCst);
    assert_eq!(setup.get("/a", &[]).status, 500, "one answer is in time, two are not");
    delay_ms.store(0, Ordering::SeqCst);
    let back = wait::within(wait::PATIENCE, || (setup.get("/a", &[]).status == 200).then_some(()));
    assert!(back.is_some());
}

/// A port behind which a server answers, each time as many milliseconds later as is set.
fn slowly(server: std::net::SocketAddr) -> (u16, Arc<AtomicU64>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let delay_ms: Arc<AtomicU64> = Arc::default();
    let copy =
        |mut from: std::net::TcpStream, mut to: std::net::TcpStream, delay: Arc<AtomicU64>| {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    let pause = delay.load(Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(pause));
                    if to.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
        };
    let delay = delay_ms.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = std::net::TcpStream::connect(server) else { continue };
            copy(client.try_clone().unwrap(), server.try_clone().unwrap(), Arc::default());
            copy(server, client, delay.clone());
        }
    });
    (port, delay_ms)
}

#[test]
fn a_sentinel_says_which_redis_counts() {
    let Some(redis) = Redis::sentinel() else { return };
    let config = json!({
        "count": 3, "time_window": 86_400_000, "policy": "redis-sentinel",
        "redis_sentinels": [{"host": "127.0.0.1", "port": redis.addr(1).port()}],
        "redis_master_name": "mymaster",
    });
    let gateways = [Setup::one(config.clone()), Setup::one(config.clone())];
    let statuses: Vec<u16> = (0..4).map(|at| gateways[at % 2].get("/a", &[]).status).collect();
    assert_eq!(statuses, [200, 200, 200, 503]);
    assert!(redis.command(0, "KEYS *").contains("plugin-limit-count:v1:/apisix/routes/a:"));
    let mut other = config;
    other["redis_master_name"] = json!("nobody");
    assert_eq!(Setup::one(other).get("/a", &[]).status, 500, "the sentinel knows no such server");
}

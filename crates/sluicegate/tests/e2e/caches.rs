//! `proxy-cache`: answers of upstreams and functions that are given again, from memory and from disk.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_testkit::client::{Client, Response, request};
use sluicegate_testkit::{Answer, GatewayProcess, Origin, wait};

#[test]
fn an_answer_is_given_again_in_front_of_an_upstream_and_of_a_function() {
    let gate = GatewayProcess::start(crate::BINARY);
    let origin = Origin::start(|_| {
        let answer = Answer::status(200).header("Content-Type", "text/x").header("ETag", "\"e\"");
        answer.header("Connection", "X-Hop").header("X-Hop", "1").body("an answer")
    });
    for (strategy, zone) in [("memory", "memory_cache"), ("disk", "disk_cache_one")] {
        let cache = json!({"cache_strategy": strategy, "cache_zone": zone, "cache_ttl": 60});
        routes(&gate, &origin, &cache);
        for path in ["/upstream", "/function"] {
            origin.clear();
            let path = &format!("{path}?{strategy}");
            assert_eq!(ask(&gate, "GET", path, &[]).0, "MISS", "{path}");
            let hit = until_hit(&gate, path, &[]);
            assert_eq!((hit.status, hit.text().as_str()), (200, "an answer"), "{path}");
            for (name, value) in [
                ("Content-Type", Some("text/x")),
                ("Content-Length", Some("9")),
                ("ETag", Some("\"e\"")),
                ("Age", Some("0")),
                ("X-Hop", None),
            ] {
                assert_eq!(hit.header(name), value, "{path} {name}");
            }
            let asked = origin.requests().len();
            let (status, unchanged) = ask(&gate, "GET", path, &[("If-None-Match", "\"e\"")]);
            assert_eq!((status.as_str(), unchanged.status, unchanged.body.len()), ("HIT", 304, 0));
            let mut client = Client::connect(gate.http);
            let head =
                client.send(format!("HEAD {path} HTTP/1.1\r\nHost: gate.test\r\n\r\n")).head();
            assert_eq!(head.header("apisix-cache-status"), Some("HIT"), "{path}");
            assert_eq!(head.header("content-length"), Some("9"), "{path}");
            assert_eq!(origin.requests().len(), asked, "nobody was asked: {path}");
            let statuses = ["PURGE", "PURGE"].map(|m| request(gate.http, m, path, &[], b"").status);
            assert_eq!(statuses, [200, 404], "{path}");
            assert_eq!(ask(&gate, "GET", path, &[]).0, "MISS", "{path}");
        }
    }
}

#[test]
fn what_is_for_one_client_or_one_time_is_not_kept() {
    let gate = GatewayProcess::start(crate::BINARY);
    // The query says which answer it is: a name and a value.
    let origin = Origin::start(|request| {
        let said = request.target.split_once('?').map_or("", |(_, query)| query);
        let (name, value) = said.split_once('=').unwrap_or(("X", "1"));
        match name {
            "status" => Answer::status(value.parse().unwrap_or(500)).body("odd"),
            name => Answer::text("some").header(name, &value.replace('_', " ")),
        }
    });
    for (strategy, zone) in [("memory", "memory_cache"), ("disk", "disk_cache_one")] {
        let cache = json!({
            "cache_strategy": strategy, "cache_zone": zone, "no_cache": ["$arg_skip", "$http_x_skip"],
            "cache_http_status": [200, 206],
        });
        routes(&gate, &origin, &cache);
        for query in [
            "Set-Cookie=a",
            "Cache-Control=private",
            "Cache-Control=max-age%5f5,_no-store",
            "cache-control=No-Cache",
            "Vary=*",
            "Vary=Accept,_*",
            "status=500",
            "status=206",
            "status=404",
            "Content-Range=bytes",
            "skip=1",
        ] {
            let path = &format!("/upstream?{query}");
            for _ in 0..3 {
                assert_eq!(ask(&gate, "GET", path, &[]).0, "MISS", "{strategy} {query}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let skip: &[(&str, &str)] = &[("X-Skip", "1")];
        assert_eq!(ask(&gate, "GET", "/upstream?a", skip).0, "MISS");
        assert_eq!(ask(&gate, "GET", "/upstream?a", skip).0, "MISS");
        assert_eq!(ask(&gate, "GET", "/upstream?skip=0", &[("X-Skip", "0")]).0, "MISS");
        until_hit(&gate, "/upstream?skip=0", &[]);
    }
    let cookies = json!({
        "cache_strategy": "memory", "cache_zone": "memory_cache", "cache_set_cookie": true,
    });
    routes(&gate, &origin, &cookies);
    assert_eq!(ask(&gate, "GET", "/upstream?Set-Cookie=b", &[]).0, "MISS");
    let hit = until_hit(&gate, "/upstream?Set-Cookie=b", &[]);
    assert_eq!(hit.header("set-cookie"), Some("b"), "as it was asked for");
}

#[test]
fn nobody_is_given_what_was_made_for_somebody_else() {
    let gate = GatewayProcess::start(crate::BINARY);
    let origin = Origin::start(|request| {
        let public = request.target.contains("public");
        let answer = Answer::text(format!(
            "for {} {} {}",
            request.header("X-Consumer-Username").unwrap_or("nobody"),
            request.header("Authorization").unwrap_or("nothing"),
            request.header("Accept-Language").unwrap_or("nowhere"),
        ));
        let answer = answer.header("Vary", "Accept-Language, Accept-Encoding");
        if public { answer.header("Cache-Control", "public") } else { answer }
    });
    for name in ["anna", "bert"] {
        let plugins = json!({"key-auth": {"key": format!("key-of-{name}")}});
        gate.set(&format!("/consumers/{name}"), &json!({"username": name, "plugins": plugins}));
    }
    let nodes = json!({origin.addr.to_string(): 1});
    for (strategy, zone) in [("memory", "memory_cache"), ("disk", "disk_cache_one")] {
        let cache = json!({"cache_strategy": strategy, "cache_zone": zone});
        let route = |uri: &str, plugins: Value| {
            let upstream = json!({"type": "roundrobin", "nodes": nodes});
            gate.set(
                &format!("/routes{uri}"),
                &json!({"uri": uri, "plugins": plugins, "upstream": upstream}),
            );
        };
        route("/keyed", json!({"key-auth": {}, "proxy-cache": cache}));
        route("/open", json!({"proxy-cache": cache}));
        let own = format!("/keyed?{strategy}");
        for name in ["anna", "bert"] {
            let key = &[("apikey", format!("key-of-{name}"))];
            let key: Vec<_> = key.iter().map(|(n, v)| (*n, v.as_str())).collect();
            assert_eq!(ask(&gate, "GET", &own, &key).0, "MISS", "{name}");
            let hit = until_hit(&gate, &own, &key);
            assert_eq!(hit.text(), format!("for {name} nothing nowhere"));
        }
        assert_eq!(ask(&gate, "GET", &own, &[]).1.status, 401, "a key is asked for all the same");

        // Whoever writes a name into Authorization has not shown that it is theirs.
        let path = format!("/open?{strategy}");
        for credential in
            ["Basic YW5uYTpzZWNyZXQ=", "Basic YW5uYTp3cm9uZw==", "Bearer a", "Bearer b"]
        {
            for _ in 0..3 {
                let (status, answer) = ask(&gate, "GET", &path, &[("Authorization", credential)]);
                assert_eq!(status, "MISS", "{credential}");
                assert_eq!(answer.text(), format!("for nobody {credential} nowhere"));
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let public = format!("/open?public&{strategy}");
        ask(&gate, "GET", &public, &[("Authorization", "Bearer a")]);
        until_hit(&gate, &public, &[("Authorization", "Bearer a")]);

        // Variants, and what takes them all away.
        for language in ["de", "fr"] {
            let fields = [("Accept-Language", language), ("X-Other", "1")];
            assert_eq!(ask(&gate, "GET", &path, &fields).0, "MISS", "{language}");
            let hit = until_hit(&gate, &path, &fields);
            assert_eq!(hit.text(), format!("for nobody nothing {language}"));
        }
        until_hit(&gate, &path, &[("Accept-Language", "de")]);
        assert_eq!(request(gate.http, "PURGE", &path, &[], b"").status, 200);
        for language in ["de", "fr"] {
            assert_eq!(ask(&gate, "GET", &path, &[("Accept-Language", language)]).0, "MISS");
        }
    }
}

#[test]
fn methods_do_not_answer_for_each_other() {
    let gate = GatewayProcess::start(crate::BINARY);
    let origin = Origin::start(|request| Answer::text(format!("to {}", request.method)));
    let cache = json!({
        "cache_strategy": "memory", "cache_zone": "memory_cache", "cache_method": ["GET", "HEAD", "POST"],
    });
    routes(&gate, &origin, &cache);
    let mut client = Client::connect(gate.http);
    for _ in 0..2 {
        client.send("HEAD /upstream HTTP/1.1\r\nHost: gate.test\r\n\r\n");
        assert_eq!(client.head().header("apisix-cache-status"), Some("MISS"));
    }
    assert_eq!(ask(&gate, "GET", "/upstream", &[]).0, "MISS", "a HEAD leaves nothing behind");
    assert_eq!(ask(&gate, "POST", "/upstream", &[]).0, "MISS");
    for method in ["GET", "POST"] {
        let (status, answer) = ask(&gate, method, "/upstream", &[]);
        assert_eq!((status.as_str(), answer.text()), ("HIT", format!("to {method}")));
    }
    assert_eq!(ask(&gate, "PUT", "/upstream", &[]).0, "MISS");
    assert_eq!(request(gate.http, "PURGE", "/upstream", &[], b"").status, 200);
    assert_eq!(ask(&gate, "POST", "/upstream", &[]).0, "MISS");
}

#[test]
fn a_client_says_how_old_an_answer_may_be_where_it_is_asked() {
    let gate = GatewayProcess::start(crate::BINARY);
    let origin = Origin::start(|request| {
        let answer = Answer::text("some");
        match request.target.contains("unsaid") {
            true => answer,
            false => answer.header("Cache-Control", "max-age=2").header("Expires", "0"),
        }
    });
    let cache = json!({
        "cache_strategy": "memory", "cache_zone": "memory_cache", "cache_control": true,
        "cache_bypass": ["$arg_bypass"], "hide_cache_headers": true,
    });
    routes(&gate, &origin, &cache);
    let with = |says: &str| ask(&gate, "GET", "/function", &[("Cache-Control", says)]).0;
    let (status, answer) = ask(&gate, "GET", "/function", &[("Cache-Control", "only-if-cached")]);
    assert_eq!((status.as_str(), answer.status), ("MISS", 504));
    let (status, answer) = ask(&gate, "GET", "/function", &[]);
    assert_eq!(status, "MISS");
    assert_eq!((answer.header("cache-control"), answer.header("expires")), (None, None));
    // An answer is kept when it is whole, which its client may know first.
    until_hit(&gate, "/function", &[("Cache-Control", "max-age=60")]);
    assert_eq!(with("min-fresh=300"), "STALE");
    assert_eq!(with("no-cache"), "BYPASS");
    assert_eq!(with("no-store"), "BYPASS");
    assert_eq!(ask(&gate, "GET", "/function?bypass=1", &[]).0, "BYPASS");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(with("max-age=60"), "EXPIRED");
    assert_eq!(with("max-age=60"), "HIT");
    for _ in 0..2 {
        assert_eq!(
            ask(&gate, "GET", "/function?unsaid", &[]).0,
            "MISS",
            "it does not say how long"
        );
    }
}

#[test]
fn plugins_change_a_kept_answer_anew_for_whoever_gets_it() {
    let gate = GatewayProcess::start(crate::BINARY);
    let text = "a text that is long enough to be made shorter ".repeat(20);
    let body = text.clone();
    let origin =
        Origin::start(move |_| Answer::text(body.clone()).header("Content-Type", "text/html"));
    let plugins = json!({
        "proxy-cache": {"cache_strategy": "memory", "cache_zone": "memory_cache"},
        "cors": {"allow_origins": "http://a.test,http://b.test"},
        "request-id": {},
        "gzip": {},
        "response-rewrite": {"headers": {"set": {"X-For": "$arg_for"}}},
    });
    let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gate.set("/routes/r", &json!({"uri": "/r", "plugins": plugins, "upstream": upstream}));
    let first =
        ask(&gate, "GET", "/r", &[("Origin", "http://a.test"), ("Accept-Encoding", "gzip")]);
    assert_eq!(first.0, "MISS");
    assert_eq!(first.1.header("content-encoding"), Some("gzip"));
    let (status, second) = ask(&gate, "GET", "/r", &[("Origin", "http://b.test")]);
    assert_eq!((status.as_str(), second.text()), ("HIT", text.clone()));
    assert_eq!(second.header("access-control-allow-origin"), Some("http://b.test"));
    assert_eq!(second.header("content-encoding"), None);
    assert_ne!(second.header("x-request-id"), first.1.header("x-request-id"));
    let (_, third) = ask(&gate, "GET", "/r", &[("Origin", "http://evil.test")]);
    assert_eq!(third.header("access-control-allow-origin"), None);
}

#[test]
fn files_serve_again_after_a_restart_and_what_is_no_answer_does_not() {
    let mut gate = GatewayProcess::start(crate::BINARY);
    let large: Vec<u8> = (0..5 << 20).map(|n: u32| (n % 251) as u8).collect();
    let body = large.clone();
    let origin = Origin::start(move |request| match request.path() {
        "/upstream" => Answer::text(body.clone()).header("Cache-Control", "max-age=600"),
        _ => Answer::status(200).header("Cache-Control", "max-age=600").chunk("one").chunk("two"),
    });
    routes(&gate, &origin, &json!({}));
    for path in ["/upstream", "/function", "/function?broken", "/function?cut"] {
        assert_eq!(ask(&gate, "GET", path, &[]).0, "MISS");
        until_hit(&gate, path, &[]);
    }
    assert!(until_hit(&gate, "/upstream", &[]).body == large);
    let folder = gate.path("data/disk_cache_one");
    let files = files(&folder);
    assert_eq!(files.len(), 4, "{files:?}");
    // One file is cut short while the gateway runs: the upstream answers.
    let small: Vec<_> = files.iter().filter(|file| size(file) < 1 << 20).collect();
    assert_eq!(small.len(), 3);
    for file in &small[..2] {
        let bytes = std::fs::read(file).expect("it can be read");
        std::fs::write(file, &bytes[..bytes.len() - 1]).expect("it can be written");
    }
    let odd = small[0].with_file_name("not-a-file-of-a-cache");
    std::fs::write(&odd, "x").expect("it can be written");
    let unfinished = small[0].with_extension("1.0.tmp");
    std::fs::write(&unfinished, "x").expect("it can be written");
    gate.restart();
    gate.wait_for_error_line("A cache of files is read in.");
    origin.clear();
    assert!(until_hit(&gate, "/upstream", &[]).body == large);
    assert_eq!(origin.requests().len(), 0, "nobody was asked");
    let mut statuses = ["/function", "/function?broken", "/function?cut"].map(|path| {
        let (status, answer) = ask(&gate, "GET", path, &[]);
        assert_eq!(answer.text(), "onetwo", "{path}");
        status
    });
    statuses.sort();
    assert_eq!(statuses, ["HIT", "MISS", "MISS"]);
    assert!(odd.exists(), "what is not a cache's stays");
    // At once: what lies in the folder has to be known before anything is said about it.
    gate.restart();
    assert_eq!(ask(&gate, "PURGE", "/upstream", &[]).1.status, 200);
    assert_eq!(ask(&gate, "GET", "/upstream", &[]).0, "MISS");
    wait::until("unfinished files are gone", || (!unfinished.exists()).then_some(()));
}

#[test]
fn a_folder_never_holds_more_than_it_may() {
    let zones = json!([{
        "name": "small", "memory_size": "1m", "disk_size": "1m", "disk_path": "small",
        "cache_levels": "2",
    }]);
    let gate =
        GatewayProcess::with(crate::BINARY, json!({"apisix": {"proxy_cache": {"zones": zones}}}));
    let origin = Origin::start(|_| Answer::text(vec![b'x'; 100_000]));
    routes(&gate, &origin, &json!({"cache_zone": "small"}));
    for n in 0..40 {
        let path = format!("/upstream?{n}");
        assert_eq!(ask(&gate, "GET", &path, &[]).0, "MISS");
        until_hit(&gate, &path, &[]);
    }
    let all = || files(&gate.path("small")).iter().map(size).sum::<u64>();
    wait::until("what made room is gone", || (all() <= 1 << 20).then_some(()));
    assert!(all() > 500_000);
}

#[test]
fn a_folder_that_cannot_be_used_costs_no_request() {
    let zones = json!([{"name": "bad", "disk_path": "/proc/no-folder"}, {"name": "memory_cache"}]);
    let gate =
        GatewayProcess::with(crate::BINARY, json!({"apisix": {"proxy_cache": {"zones": zones}}}));
    let origin = Origin::text("some");
    routes(&gate, &origin, &json!({"cache_zone": "bad"}));
    for path in ["/upstream", "/function"] {
        for _ in 0..3 {
            let (status, answer) = ask(&gate, "GET", path, &[]);
            assert_eq!((status.as_str(), answer.text().as_str()), ("MISS", "some"));
        }
    }
    gate.wait_for_error_line("A cache's folder cannot be used");
}

#[test]
fn a_zone_is_one_of_config_yaml_and_of_the_right_kind() {
    let gate = GatewayProcess::start(crate::BINARY);
    for (config, says) in [
        (json!({"cache_zone": "none"}), "cache_zone none not found"),
        (
            json!({"cache_strategy": "memory"}),
            "invalid or empty cache_zone for cache_strategy: memory",
        ),
        (
            json!({"cache_zone": "memory_cache"}),
            "invalid or empty cache_zone for cache_strategy: disk",
        ),
        (
            json!({"cache_key": ["$uri", "$request_method"]}),
            "cache_key variable $request_method unsupported",
        ),
    ] {
        let route = json!({"uri": "/", "plugins": {"proxy-cache": config}});
        let (status, answer) = gate.put("/routes/1", &route);
        let text = format!("failed to check the configuration of plugin proxy-cache err: {says}");
        assert_eq!((status, answer["error_msg"].as_str()), (400, Some(text.as_str())));
    }
}

/// Routes `/upstream` and `/function` with this configuration of the plugin.
fn routes(gate: &GatewayProcess, origin: &Origin, cache: &Value) {
    let upstream = json!({"type": "roundrobin", "nodes": {origin.addr.to_string(): 1}});
    gate.set(
        "/routes/upstream",
        &json!({"uri": "/upstream", "plugins": {"proxy-cache": cache}, "upstream": upstream}),
    );
    let function = json!({"function_uri": origin.url("/")});
    gate.set(
        "/routes/function",
        &json!({"uri": "/function", "plugins": {"proxy-cache": cache, "aws-lambda": function}}),
    );
}

/// What became of a request in the cache, and its answer.
fn ask(
    gate: &GatewayProcess,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
) -> (String, Response) {
    let answer = request(gate.http, method, path, fields, b"");
    (answer.header("apisix-cache-status").unwrap_or("none").to_owned(), answer)
}

/// Asks until the answer comes out of the cache: files are written behind the answer.
fn until_hit(gate: &GatewayProcess, path: &str, fields: &[(&str, &str)]) -> Response {
    wait::until("an answer out of the cache", || {
        let (status, answer) = ask(gate, "GET", path, fields);
        (status == "HIT").then_some(answer)
    })
}

/// Every file below a folder that has an answer in it.
fn files(folder: &PathBuf) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false if path.file_name().is_some_and(|name| name.len() == 64) => all.push(path),
            false => {}
        }
    }
    all
}

fn size(file: &PathBuf) -> u64 {
    std::fs::metadata(file).map_or(0, |data| data.len())
}

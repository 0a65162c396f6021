//! `sluicegate config export` and `import`, with a gateway that runs and one that does not.

use std::fs;
use std::process::Output;

use serde_json::json;
use sluicegate_testkit::certs::self_signed;
use sluicegate_testkit::gateway::{GatewayProcess, config};
use sluicegate_testkit::origin::{Answer, Origin, Received};

use crate::BINARY;

fn told(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text).unwrap()
}

/// Runs the command with a gateway that runs: it is told the port, which the system chose.
fn run(gateway: &GatewayProcess, words: &[&str]) -> Output {
    let addr = gateway.admin.to_string();
    let words = [&["config"], words, &["--admin", addr.as_str()]].concat();
    gateway.command(&words)
}

/// Runs the command while no gateway does.
#[track_caller]
fn succeed_alone(gateway: &GatewayProcess, words: &[&str]) -> String {
    let output = gateway.command(&[&["config"], words].concat());
    assert!(output.status.success(), "{words:?}: {}", told(&output));
    told(&output)
}

#[track_caller]
fn succeed(gateway: &GatewayProcess, words: &[&str]) -> String {
    let output = run(gateway, words);
    assert!(output.status.success(), "{words:?}: {}", told(&output));
    told(&output)
}

#[test]
fn what_is_exported_is_imported_elsewhere_and_is_the_same() {
    let mut from = GatewayProcess::start(BINARY);
    from.set(
        "/upstreams/u",
        &json!({"nodes": {"127.0.0.1:1": 1}, "type": "roundrobin", "desc": "${{HOME}}\n two"}),
    );
    from.set("/routes/r", &json!({"uri": "/r", "upstream_id": "u"}));
    from.set_lambda("f", "/f", json!({"function_uri": "http://127.0.0.1:1/", "authorization": {"apikey": "a-very-secret-key"}}));
    from.set("/consumers/jack", &json!({"username": "jack"}));
    let told_api = succeed(&from, &["export", from.path("all.yaml").to_str().unwrap()]);
    assert!(told_api.contains("exported 4 resources to "), "{told_api}");
    let by_api = from.read("all.yaml");
    assert!(by_api.ends_with("\n#END\n") && by_api.starts_with("routes:\n"), "{by_api}");
    assert!(!by_api.contains("a-very-secret-key"), "secrets stay as they are stored");
    from.kill();
    // The same words, now the file of the store itself is opened.
    succeed_alone(&from, &["export", from.path("direct.yaml").to_str().unwrap()]);
    assert_eq!(from.read("direct.yaml"), by_api);
    succeed_alone(&from, &["export", "--decrypt", from.path("open.yaml").to_str().unwrap()]);
    assert!(from.read("open.yaml").contains("a-very-secret-key"));

    // Into a store that nobody uses, then again through a running gateway.
    let mut to = GatewayProcess::prepare(BINARY, &config(json!({})).to_string());
    fs::copy(from.path("all.yaml"), to.path("all.yaml")).unwrap();
    let file = to.path("all.yaml");
    let file = file.to_str().unwrap();
    let told = succeed_alone(&to, &["import", file]);
    assert!(told.contains("4 created, 0 changed, 0 unchanged, 0 deleted"), "{told}");
    to.launch();
    let plain = |gateway: &GatewayProcess, path: &str| gateway.get(path).1["value"].clone();
    assert_eq!(
        plain(&to, "/routes/f")["plugins"]["aws-lambda"]["authorization"]["apikey"],
        "a-very-secret-key"
    );
    assert_eq!(plain(&to, "/upstreams/u")["desc"], "${{HOME}}\n two");
    assert_eq!(plain(&to, "/consumers/jack")["username"], "jack");
    let told = succeed(&to, &["import", file]);
    assert!(told.contains("0 created, 0 changed, 4 unchanged, 0 deleted"), "{told}");
    to.set("/routes/more", &json!({"uri": "/more", "upstream_id": "u"}));
    to.set("/routes/r", &json!({"uri": "/other", "upstream_id": "u"}));
    let told = succeed(&to, &["import", "--dry-run", "--replace", file]);
    assert!(told.contains("would be: 0 created, 1 changed, 3 unchanged, 1 deleted"), "{told}");
    assert_eq!(to.get("/routes/more").0, 200);
    let told = succeed(&to, &["import", "--replace", file]);
    assert!(told.contains("0 created, 1 changed, 3 unchanged, 1 deleted"), "{told}");
    assert_eq!(to.get("/routes/more").0, 404);
    assert_eq!(plain(&to, "/routes/r")["uri"], "/r");
    succeed(&to, &["export", to.path("again.yaml").to_str().unwrap()]);
    let without_times = |text: String| {
        text.lines()
            .filter(|line| !line.contains("_time:") && !line.contains("apikey:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(without_times(to.read("again.yaml")), without_times(by_api));
}

#[test]
fn an_import_checks_everything_before_it_changes_anything() {
    let gateway = GatewayProcess::start(BINARY);
    gateway.set(
        "/routes/old",
        &json!({"uri": "/old", "upstream": {"nodes": {"a:1": 1}, "type": "roundrobin"}}),
    );
    let import = |text: &str| {
        fs::write(gateway.path("all.yaml"), text).unwrap();
        let output =
            run(&gateway, &["import", "--replace", gateway.path("all.yaml").to_str().unwrap()]);
        assert!(!output.status.success(), "{text}");
        told(&output)
    };
    let good = "upstreams: [{id: u, type: roundrobin, nodes: {\"a:1\": 1}}]\n";
    let made = self_signed(&["a.test"]);
    let (cert, key) = (made.cert.replace('\n', "\\n"), made.key.replace('\n', "\\n"));
    for (text, why) in [
        (
            format!("{good}routes: [{{id: a, uri: /a, plugins: {{no-such: {{}}}}}}]\n#END"),
            "/routes/a: unknown plugin [no-such]",
        ),
        (
            format!("{good}routes: [{{id: a, uri: /a, upstream_id: gone}}]\n#END"),
            "/routes/a: failed to fetch upstream info by upstream id [gone], response code: 404",
        ),
        (
            format!("{good}routes: [{{id: a, uri: 1, upstream_id: u}}]\n#END"),
            "/routes/a: invalid configuration: property \"uri\" validation failed",
        ),
        (
            format!("{good}consumers: [{{id: a/credentials/b, plugins: {{}}}}]\n#END"),
            "/consumers/a/credentials/b: ",
        ),
        (
            format!(
                "{good}consumers: [{{username: a, plugins: {{key-auth: {{key: k}}}}}}, {{username: b}}, {{id: b/credentials/c, plugins: {{key-auth: {{key: k}}}}}}]\n#END"
            ),
            "/consumers/b/credentials/c: duplicate key of plugin key-auth found with consumer: a",
        ),
        (
            format!(
                "{good}ssls: [{{id: s, snis: [a.test], cert: \"{cert}\", key: \"{key}\"}}]\nroutes: [{{id: a, uri: /a, upstream: {{type: roundrobin, scheme: https, nodes: {{\"a:1\": 1}}, tls: {{client_cert_id: s}}}}}}]\n#END"
            ),
            "/routes/a: failed to fetch ssl info by ssl id [s], wrong ssl type",
        ),
        (
            format!(
                "{good}stream_routes: [{{id: s, upstream_id: u, protocol: {{name: p}}}}]\n#END"
            ),
            "/stream_routes/s: unknown protocol [p]",
        ),
        (
            format!("{good}stream_routes: [{{id: s, upstream_id: u}}]\n#END"),
            "/stream_routes/s: stream mode is disabled, can not add stream routes",
        ),
        (format!("{good}nonsense: []\n#END"), "nonsense: there is no such kind of resource"),
        (good.to_owned(), "missing valid end flag"),
        (format!("{good}routes: [\n#END"), "line 4, column 1"),
    ] {
        let told = import(&text);
        assert!(told.contains(why), "{told}");
        assert_eq!(gateway.get("/upstreams/u").0, 404, "{text}");
        assert_eq!(gateway.get("/routes/old").0, 200, "{text}");
    }
}

#[test]
fn what_only_one_may_have_moves_from_one_to_another_while_a_gateway_runs() {
    let gateway = GatewayProcess::start(BINARY);
    let file = gateway.path("all.yaml");
    let import = |words: &[&str], text: &str| {
        fs::write(&file, format!("{text}\n#END")).unwrap();
        run(&gateway, &[&["import", file.to_str().unwrap()], words].concat())
    };
    let keyed = |name: &str, key: &str| {
        format!("{{username: {name}, plugins: {{key-auth: {{key: {key}}}}}}}")
    };
    let key_of = |path: &str| {
        let (status, answer) = gateway.get(path);
        match status {
            200 => answer["value"]["plugins"]["key-auth"]["key"].as_str().unwrap().to_owned(),
            _ => status.to_string(),
        }
    };
    let consumers = |all: &[String]| format!("consumers: [{}]", all.join(", "));
    let d_of_a =
        |key: &str| format!("{{id: a/credentials/d, plugins: {{key-auth: {{key: {key}}}}}}}");
    // Each file is imported over what the one before left.
    for (what, words, file, told_at_end, a, b, c) in [
        (
            "two consumers",
            &[][..],
            consumers(&[keyed("a", "k1"), keyed("b", "k2")]),
            "2 created, 0 changed, 0 unchanged, 0 deleted",
            "k1",
            "k2",
            "404",
        ),
        (
            "a new one takes a key, and each other the next one's",
            &[],
            consumers(&[keyed("a", "k2"), keyed("b", "k3"), keyed("c", "k1")]),
            "1 created, 2 changed, 0 unchanged, 0 deleted",
            "k2",
            "k3",
            "k1",
        ),
        (
            "all three in a ring",
            &[],
            consumers(&[keyed("a", "k3"), keyed("b", "k1"), keyed("c", "k2")]),
            "0 created, 3 changed, 0 unchanged, 0 deleted",
            "k3",
            "k1",
            "k2",
        ),
        (
            "from one that goes",
            &["--replace"],
            consumers(&[keyed("a", "k2"), keyed("b", "k3")]),
            "0 created, 2 changed, 0 unchanged, 1 deleted",
            "k2",
            "k3",
            "404",
        ),
        (
            "to a credential",
            &[],
            consumers(&[keyed("a", "k4"), keyed("b", "k2"), d_of_a("k3")]),
            "1 created, 2 changed, 0 unchanged, 0 deleted",
            "k4",
            "k2",
            "404",
        ),
        (
            "between a consumer and another one's credential",
            &[],
            consumers(&[keyed("b", "k3"), d_of_a("k2")]),
            "0 created, 2 changed, 0 unchanged, 0 deleted",
            "k4",
            "k3",
            "404",
        ),
    ] {
        let output = import(words, &file);
        let told = told(&output);
        assert!(output.status.success() && told.contains(told_at_end), "{what}: {told}");
        let found = ["a", "b", "c"].map(|name| key_of(&format!("/consumers/{name}")));
        assert_eq!(found, [a, b, c], "{what}");
    }
    assert_eq!(key_of("/consumers/a/credentials/d"), "k2");

    let rule = |id: &str, plugin: &str| format!("{{id: {id}, plugins: {{{plugin}: {{}}}}}}");
    let rules = |all: &[String]| format!("global_rules: [{}]", all.join(", "));
    let output = import(&[], &rules(&[rule("b", "cors"), rule("c", "request-id")]));
    assert!(output.status.success(), "{}", told(&output));
    let output =
        import(&[], &rules(&[rule("a", "cors"), rule("b", "request-id"), rule("c", "gzip")]));
    let text = told(&output);
    assert!(output.status.success() && text.contains("1 created, 2 changed"), "{text}");

    // Two rules that swap: there is no order, and neither is left without its plugin on the way.
    let swapped = rules(&[rule("a", "request-id"), rule("b", "cors"), rule("d", "brotli")]);
    let output = import(&["--replace"], &swapped);
    let text = told(&output);
    assert!(!output.status.success(), "{text}");
    for part in [
        "the import stopped, 2 of 7 changes were made: the gateway refuses",
        "/global_rules/a: plugin 'request-id' already exists in global rule with id 'b'",
        "/global_rules/b: plugin 'cors' already exists in global rule with id 'a'",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(key_of("/consumers/a"), "k4", "what is to go stays when an import stops");
}

#[test]
fn a_text_that_json_would_fill_in_is_not_exported_to_json() {
    let gateway = GatewayProcess::start(BINARY);
    gateway.set(
        "/upstreams/u",
        &json!({"nodes": {"127.0.0.1:1": 1}, "type": "roundrobin", "desc": "${{ HOME }}"}),
    );
    let file = gateway.path("all.json");
    let output = run(&gateway, &["export", file.to_str().unwrap()]);
    let text = told(&output);
    assert!(
        !output.status.success() && text.contains("/upstreams/u: a text in it reads ${{NAME}}"),
        "{text}"
    );
    assert!(!file.exists());
}

#[test]
fn an_etcd_gets_no_user_that_its_url_does_not_name() {
    let stranger = Origin::start(|_| Answer::status(400));
    let etcd = json!({"deployment": {"etcd": {"user": "root", "password": "of-config-yaml"}}});
    let gateway = GatewayProcess::prepare(BINARY, &config(etcd).to_string());
    for (own, secret) in [("", None), ("jack:of-the-url@", Some("of-the-url"))] {
        stranger.clear();
        let url = format!("http://{own}{}", stranger.addr);
        let output = gateway.command(&["config", "export", "-", "--etcd", &url]);
        assert!(!output.status.success(), "{}", told(&output));
        assert!(!told(&output).contains("of-the-url"), "{}", told(&output));
        let said = |one: &Received| [&one.raw_head[..], &one.body].concat();
        let heard = stranger.requests().iter().map(said).collect::<Vec<_>>().concat();
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.contains("/v3"), "{heard}");
        assert!(!heard.contains("of-config-yaml") && !heard.contains("root"), "{heard}");
        assert_eq!(heard.contains("of-the-url"), secret.is_some(), "{heard}");
    }
}

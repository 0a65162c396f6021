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

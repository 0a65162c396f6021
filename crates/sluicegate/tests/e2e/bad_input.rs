//! Bad input at each door (config.yaml, Admin API, HTTP) gets a clear error, and what runs goes on
//! as it was.

use rustix::process::Signal;
use serde_json::{Value, json};
use sluicegate_testkit::certs::self_signed;
use sluicegate_testkit::client::{Client, get, request_bytes};
use sluicegate_testkit::gateway::{ADMIN_KEY, config};
use sluicegate_testkit::{GatewayProcess, Origin};

/// Wrong files, and the words that tell what is wrong: file, key and what was expected.
const WRONG_FILES: &[(&str, &[&str])] = &[
    ("apisix:\n  node_listen: many\n", &["config.yaml:2: apisix.node_listen:", "port"]),
    ("apisix:\n  node_listen: 70000\n", &["config.yaml:2: apisix.node_listen:", "65535"]),
    ("apisix:\n  enable_admin: maybe\n", &["config.yaml:2: apisix.enable_admin:", "true or false"]),
    ("apisix: [1]\n", &["config.yaml:1: apisix:", "map"]),
    ("apisix:\n  router: {http: radixtree}\n", &["apisix.router.http:", "radixtree_host_uri"]),
    ("apisix:\n  ssl: {ssl_protocols: TLSv1.1}\n", &["apisix.ssl.ssl_protocols:", "TLSv1.2"]),
    ("apisix:\n  data_encryption: {keyring: [short]}\n", &["apisix.data_encryption.keyring", "16"]),
    ("apisix:\n  trusted_addresses: [nowhere]\n", &["apisix.trusted_addresses", "network"]),
    (
        "nginx_config:\n  http:\n    keepalive_timeout: -1\n",
        &["config.yaml:3: nginx_config.http.keepalive_timeout:"],
    ),
    (
        "nginx_config:\n  http:\n    client_max_body_size: much\n",
        &["nginx_config.http.client_max_body_size:"],
    ),
    ("nginx_config:\n  worker_processes: 0\n", &["nginx_config.worker_processes:", "1"]),
    ("deployment:\n  role: data-plane\n", &["deployment.role:", "traditional"]),
    ("deployment:\n  etcd: {host: [\"127.0.0.1:2379\"]}\n", &["deployment.etcd.host:", "http://"]),
    (
        "deployment:\n  admin: {allow_admin: [300.0.0.1]}\n",
        &["deployment.admin.allow_admin", "network"],
    ),
    ("apisix: {\n", &["config.yaml:"]),
    ("apisix:\n\tnode_listen: 9080\n", &["config.yaml:2:"]),
    ("apisix:\n  node_listen: ${{NOT_SET_ANYWHERE}}\n", &["NOT_SET_ANYWHERE"]),
    ("a: &x [*x, *x]\n", &["config.yaml:1:"]),
    ("apisix:\n  enable_http2: true\n  enable_http2: false\n", &["config.yaml:3:", "enable_http2"]),
];

#[test]
fn a_wrong_configuration_is_refused_with_file_key_and_reason() {
    for (text, words) in WRONG_FILES {
        let gate = GatewayProcess::prepare(crate::BINARY, text);
        for command in ["test", "start"] {
            let output = gate.command(&[command]);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{command} {text:?} is taken: {told}");
            for word in *words {
                assert!(told.contains(word), "{command} {text:?}: {word:?} is not in {told:?}");
            }
            assert!(!told.contains("panicked"), "{told}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_a_configuration_is_refused() {
    let deep = format!("apisix: {}{}", "[".repeat(5000), "]".repeat(5000));
    let large = format!("# {}\n", "x".repeat(20 << 20));
    for (name, bytes) in [
        ("no text", &b"apisix: \xff\xfe\n"[..]),
        ("deep", deep.as_bytes()),
        ("large", large.as_bytes()),
        ("NUL", b"apisix: \0\n"),
    ] {
        let gate = GatewayProcess::prepare(crate::BINARY, "");
        std::fs::write(gate.path("conf/config.yaml"), bytes).expect("the prefix is ours");
        let output = gate.command(&["test"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {told}");
        assert!(told.contains("config.yaml"), "{name}: {told}");
    }
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    for (text, words) in [
        (
            "apisix:\n  node_listne: 9080\n",
            &["config.yaml:2", "apisix.node_listne", "apisix.node_listen"][..],
        ),
        ("apisx:\n  node_listen: 9080\n", &["config.yaml:1", "apisx", "apisix"]),
        (
            "deployment:\n  admin:\n    admin_keys: []\n",
            &["deployment.admin.admin_keys", "deployment.admin.admin_key"],
        ),
        (
            "nginx_config:\n  client_max_body_size: 1m\n",
            &["nginx_config.http.client_max_body_size"],
        ),
        ("apisix:\n  coffee: true\n", &["apisix.coffee"]),
        // A key that APISIX knows and we do not act on.
        (
            "nginx_config:\n  main_configuration_snippet: a\n",
            &["nginx_config.main_configuration_snippet"],
        ),
        ("plugins: [aws-lamda]\n", &["aws-lamda", "aws-lambda"]),
    ] {
        let gate = GatewayProcess::prepare(crate::BINARY, text);
        let output = gate.command(&["test"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text:?}: a warning, no error: {told}");
        for word in words {
            assert!(told.contains(word), "{text:?}: {word:?} is not in {told:?}");
        }
    }
}

#[test]
fn a_reload_of_a_wrong_file_changes_nothing() {
    let world = World::start();
    let before = world.state();
    for (n, (text, words)) in WRONG_FILES.iter().enumerate() {
        world.gate.write_config(text);
        world.gate.signal(Signal::HUP);
        let said =
            || world.gate.error_log().matches("The configuration was not reloaded").count() > n;
        sluicegate_testkit::wait::until("the refusal in the log", || said().then_some(()));
        let log = world.gate.error_log();
        let line = log.lines().rfind(|line| line.contains("was not reloaded")).unwrap_or_default();
        let rest = log.rsplit(line).next().unwrap_or_default();
        assert!(
            words.iter().all(|word| line.contains(word) || rest.contains(word)),
            "{text:?}: {line}"
        );
        assert_eq!(world.state(), before, "{text:?}");
    }
    // A good one is taken again.
    world
        .gate
        .write_config(&config(json!({"apisix": {"enable_server_tokens": false}})).to_string());
    world.gate.signal(Signal::HUP);
    sluicegate_testkit::wait::until("the good file to count", || {
        (get(world.gate.http, "/up").header("server") == Some("Sluicegate")).then_some(())
    });
}

#[test]
fn bad_resources_are_refused_with_a_reason_and_change_nothing() {
    let world = World::start();
    let before = world.state();
    let pair = self_signed(&["a.test"]);
    let other = self_signed(&["a.test"]);
    let lambda =
        |config: Value| json!({"uri": "/x", "plugins": {"aws-lambda": config}}).to_string();
    let deep =
        |n: usize| format!("{{\"uri\": \"/x\", \"vars\": {}{}}}", "[".repeat(n), "]".repeat(n));
    for (method, path, body, words) in [
        ("PUT", "/routes/1", "{".to_owned(), &["invalid request body"][..]),
        ("PUT", "/routes/1", "{\"uri\": \"/x\",}".to_owned(), &["invalid request body"]),
        ("PUT", "/routes/1", "\u{0}".to_owned(), &["invalid request body"]),
        ("PUT", "/routes/1", "[]".to_owned(), &["error_msg"]),
        ("PUT", "/routes/1", "17".to_owned(), &["error_msg"]),
        ("PUT", "/routes/1", String::new(), &["error_msg"]),
        ("PUT", "/routes/1", json!({"uri": 7}).to_string(), &["invalid configuration", "uri"]),
        ("PUT", "/routes/1", json!({"plugins": {}}).to_string(), &["invalid configuration"]),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "uris": ["/y"], "upstream": {}}).to_string(),
            &["invalid configuration"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "plugins": {}, "methods": ["FETCH"]}).to_string(),
            &["methods"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "plugins": {}, "remote_addr": "300.1.1.1"}).to_string(),
            &["remote_addr"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "plugins": {}, "vars": [["arg_a", "is", "b"]]}).to_string(),
            &["vars"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "plugins": {}, "vars": [["arg_a", "~~", "("]]}).to_string(),
            &["vars"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "upstream_id": "none"}).to_string(),
            &["upstream", "none"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "service_id": "none"}).to_string(),
            &["service", "none"],
        ),
        (
            "PUT",
            "/routes/1",
            json!({"uri": "/x", "plugins": {"no-such": {}}}).to_string(),
            &["unknown plugin [no-such]"],
        ),
        ("PUT", "/routes/1", lambda(json!({})), &["aws-lambda", "function_uri", "required"]),
        ("PUT", "/routes/1", lambda(json!({"function_uri": "no url"})), &["function_uri"]),
        ("PUT", "/routes/1", lambda(json!({"function_uri": "/run"})), &["function_uri"]),
        ("PUT", "/routes/1", lambda(json!({"function_uri": "ftp://a.test/"})), &["function_uri"]),
        (
            "PUT",
            "/routes/1",
            lambda(json!({"function_uri": "http://a.test/", "timeout": 99})),
            &["timeout", "100"],
        ),
        (
            "PUT",
            "/routes/1",
            lambda(json!({"function_uri": "http://a.test/", "keepalive_pool": 0})),
            &["keepalive_pool"],
        ),
        (
            "PUT",
            "/routes/1",
            lambda(json!({"function_uri": "http://a.test/", "authorization": {"iam": {}}})),
            &["authorization"],
        ),
        ("PUT", "/routes/a%20b", json!({"uri": "/x"}).to_string(), &["error_msg"]),
        ("PATCH", "/routes/none", json!({"uri": "/x"}).to_string(), &["Key not found"]),
        ("PATCH", "/routes/up", json!({"uri": 7}).to_string(), &["invalid configuration"]),
        ("PATCH", "/routes/up", "{".to_owned(), &["invalid request body"]),
        ("DELETE", "/routes/none", String::new(), &["Key not found"]),
        ("DELETE", "/upstreams/used", String::new(), &["route [up] is still using it"]),
        (
            "PUT",
            "/upstreams/1",
            json!({"nodes": {"127.0.0.1:80": -1}}).to_string(),
            &["invalid configuration"],
        ),
        (
            "PUT",
            "/upstreams/1",
            json!({"nodes": [{"host": "a"}], "scheme": "gopher"}).to_string(),
            &["error_msg"],
        ),
        (
            "PUT",
            "/ssls/1",
            json!({"cert": "x", "key": "y", "sni": "a.test"}).to_string(),
            &["error_msg"],
        ),
        (
            "PUT",
            "/ssls/1",
            json!({"cert": pair.cert, "key": other.key, "sni": "a.test"}).to_string(),
            &["error_msg"],
        ),
        ("PUT", "/ssls/1", json!({"cert": pair.cert, "key": pair.key}).to_string(), &["error_msg"]),
        ("PUT", "/nonsense/1", "{}".to_owned(), &["Unsupported resource type: nonsense"]),
        ("PUT", "/routes/1", deep(200), &["too many nested"]),
        ("PUT", "/routes/1", deep(100_000), &["too many nested"]),
        (
            "PUT",
            "/routes/1",
            format!("{{\"uri\": \"/x\", \"name\": \"{}\"}}", "x".repeat(2 << 20)),
            &["greater than the maximum size"],
        ),
    ] {
        let shown = format!("{method} {path} {}", &body[..body.len().min(120)]);
        let headers = [("X-API-KEY", ADMIN_KEY)];
        let answer = world.gate.admin_raw(method, path, &headers, &body);
        let told = answer.text();
        assert!((400..=404).contains(&answer.status), "{shown}: {} {told}", answer.status);
        for word in words {
            assert!(told.contains(word), "{shown}: {word:?} is not in {told:?}");
        }
    }
    assert_eq!(world.state(), before);
}

#[test]
fn bad_requests_to_the_admin_api_itself_are_refused() {
    let world = World::start();
    let before = world.state();
    let body = json!({"uri": "/x"}).to_string();
    for (key, status) in
        [(None, 401), (Some("wrong"), 401), (Some(""), 401), (Some("an-admin-key-for-test"), 401)]
    {
        let headers: Vec<(&str, &str)> = key.map(|key| ("X-API-KEY", key)).into_iter().collect();
        let answer = world.gate.admin_raw("PUT", "/routes/1", &headers, &body);
        assert_eq!(answer.status, status, "{key:?}");
    }
    for bytes in [
        "PUT /apisix/admin/routes/1 HTTP/1.1\r\n\r\n",
        "nonsense\r\n\r\n",
        "PUT /apisix/admin/routes/1 HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut client = Client::connect(world.gate.admin);
        client.send(bytes);
        client.end_sending();
        if let Ok(answer) = client.try_response() {
            assert!((400..=431).contains(&answer.status), "{bytes:?}: {}", answer.status);
        }
    }
    // A body that never comes whole changes nothing.
    let mut client = Client::connect(world.gate.admin);
    let head = format!(
        "PUT /apisix/admin/routes/1 HTTP/1.1\r\nHost: a\r\nX-API-KEY: {ADMIN_KEY}\r\nContent-Length: 100\r\n\r\n"
    );
    client.send(head).send("{\"uri\": \"/x\"");
    drop(client);
    assert_eq!(world.state(), before);
}

#[test]
fn a_storm_of_bad_bytes_on_every_port_leaves_the_gateway_as_it_was() {
    let world = World::start();
    let before = world.state();
    let seed = crate::random::Random::seed();
    println!("seed {seed}");
    let mut random = crate::random::Random::new(seed);
    let good =
        request_bytes("POST", "/up?a=b", &[("X-A", "b"), ("Transfer-Encoding", "chunked")], "");
    let good = [good.as_slice(), b"4\r\nabcd\r\n0\r\n\r\n"].concat();
    for round in 0..400 {
        // A good request with a few bytes changed, removed or doubled; or nothing but noise.
        let mut bytes = match round % 8 {
            7 => (0..random.below(3000)).map(|_| random.below(256) as u8).collect(),
            6 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x04\x01\x05\0\0\0\x01\x82\x86\x84\x41".to_vec(),
            _ => good.clone(),
        };
        for _ in 0..random.below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        let port = [world.gate.http, world.gate.https, world.gate.admin][round % 3];
        let mut client = Client::connect(port);
        let _ = client.try_send(&bytes);
        client.end_sending();
        client.is_ended_within(std::time::Duration::from_millis(1));
    }
    assert_eq!(world.state(), before);
    assert!(!world.gate.stderr().contains("panicked"), "{}", world.gate.stderr());
    assert!(!world.gate.error_log().contains("panicked"));
}

/// A gateway with some resources that work.
struct World {
    gate: GatewayProcess,
    origin: Origin,
}

impl World {
    fn start() -> Self {
        let world = Self {
            gate: GatewayProcess::with(crate::BINARY, json!({})),
            origin: Origin::text("up"),
        };
        let upstream = json!({"type": "roundrobin", "nodes": {world.origin.addr.to_string(): 1}});
        world.gate.set("/upstreams/used", &upstream);
        world.gate.set("/routes/up", &json!({"uri": "/up", "upstream_id": "used"}));
        world.gate.set("/routes/other", &json!({"uri": "/other", "upstream": upstream}));
        world
    }

    /// All resources, and what is served.
    #[track_caller]
    fn state(&self) -> Vec<Value> {
        let mut state: Vec<Value> = ["/routes", "/upstreams", "/services", "/ssls"]
            .map(|kind| self.gate.get(kind).1)
            .into();
        for path in ["/up", "/other", "/x", "/y"] {
            let answer = get(self.gate.http, path);
            state.push(json!([path, answer.status, answer.text()]));
        }
        state
    }
}

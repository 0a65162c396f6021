//! `aws-lambda` by function name: the whole gateway in front of an Invoke API that checks
//! signatures as AWS does.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use sluicegate_standin::{
    Invocation, InvokeApi, InvokeSettings, Outcome, StreamEnd, StreamOutcome, samples,
};
use sluicegate_testkit::certs::{self, Authority};
use sluicegate_testkit::client::Client;
use sluicegate_testkit::gateway::config;
use sluicegate_testkit::{Answer, GatewayProcess, Origin, client, wait};

use crate::BINARY;
use crate::wire::{RawOrigin, block_on, h2_connect};

#[test]
fn a_route_calls_a_function_by_its_name() {
    let lambda = Lambda::start(None);
    let gateway = GatewayProcess::start(BINARY);
    gateway.set_lambda("1", "/greet", lambda.config("greet", keys(None)));
    let answer = client::get(gateway.http, "/greet?name=Ada");
    assert_eq!((answer.status, answer.text().as_str()), (200, "Hello, Ada!"));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let id = answer.header("x-amzn-requestid").map(str::to_owned);
    assert!(id.is_some_and(|id| id.len() == 36), "{answer:?}");
    assert_eq!(lambda.only_call().event()["rawPath"], "/greet");
    // A function's failure has a line of its own, which says what the function said.
    gateway.set_lambda("2", "/crash", lambda.config("crash", keys(None)));
    assert_eq!(client::get(gateway.http, "/crash").status, 502);
    let line = gateway.wait_for_error_line("A function failed.");
    for part in [
        "route=2 function=crash",
        "function_error=Unhandled",
        "error_message=\"Task timed out after 3.00 seconds\"",
        "ran_out_of_time=true",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    gateway.set_lambda("3", "/gone", lambda.config("gone", keys(None)));
    assert_eq!(client::get(gateway.http, "/gone").status, 502);
    let line = gateway.wait_for_error_line("AWS refused a call of a function.");
    for part in ["route=3", "status=404", "kind=function_not_found", "likely_cause="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!gateway.error_log().contains(SECRET_KEY));
    // Where the request chooses the function, the line tells which it chose.
    let mut chosen = lambda.config("", keys(None));
    chosen["function"] = json!({
        "name_parameter": "*", "allowed_functions": ["fail"],
        "region": REGION, "endpoint": chosen["function"]["endpoint"],
    });
    gateway.set_lambda("4", "/fn/*", chosen);
    assert_eq!(client::get(gateway.http, "/fn/fail").status, 502);
    gateway.wait_for_error_line("route=4 function=fail");
    gateway.set_lambda("5", "/busy", lambda.config("throttled", keys(None)));
    assert_eq!(client::get(gateway.http, "/busy").header("retry-after"), Some("1"));
    let line = gateway.wait_for_error_line("route=5");
    let reason = "reason=ReservedFunctionConcurrentInvocationLimitExceeded";
    assert!(line.contains(reason), "{line}");
    let mut with_log = lambda.config("greet", keys(None));
    with_log["log_tail"] = json!(true);
    gateway.set_lambda("6", "/log", with_log);
    let answer = client::get(gateway.http, "/log");
    assert_eq!((answer.status, answer.header("x-amz-log-result")), (200, None));
    let line = gateway.wait_for_error_line("The end of a function's log.");
    assert!(line.contains("[info]") && line.contains("Billed Duration: 1 ms"), "{line}");
}

#[test]
fn a_call_that_was_sent_is_never_sent_again() {
    // Answers a connection's first call, takes its second and says nothing more.
    let heads = Arc::new(AtomicUsize::new(0));
    let seen = heads.clone();
    let silent = RawOrigin::start(move |peer, _| {
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ""] {
            let head = peer.head()?;
            peer.body(&head)?;
            seen.fetch_add(1, Ordering::SeqCst);
            peer.send(answer)?;
        }
        Ok(())
    });
    let gateway = GatewayProcess::start(BINARY);
    gateway.set_lambda(
        "1",
        "/fn",
        json!({
            "function": {
                "name": "f", "region": REGION, "endpoint": format!("http://{}", silent.addr),
            },
            "authorization": {"iam": keys(None)},
        }),
    );
    // One connection of the client is one thread of the gateway, and one of its pools.
    let mut client = Client::connect(gateway.http);
    assert_eq!(client.get("/fn").status, 200);
    assert_eq!(client.get("/fn").status, 503);
    assert_eq!((heads.load(Ordering::SeqCst), silent.accepted()), (2, 1));
    let line = gateway.wait_for_error_line("A function did not answer.");
    assert!(line.contains("may_have_run=true"), "{line}");
}

#[test]
fn a_provider_that_config_yaml_does_not_allow_is_refused_on_write() {
    let lambda = Lambda::start(None);
    let gateway = GatewayProcess::start(BINARY);
    for provider in ["env", "profile", "web_identity", "container", "imds", "chain"] {
        let route = json!({
            "uri": "/fn",
            "plugins": {"aws-lambda": lambda.config("greet", json!({"provider": provider}))},
        });
        let (status, answer) = gateway.put("/routes/1", &route);
        assert_eq!(status, 400, "{answer}");
        let text = answer["error_msg"].as_str().unwrap_or_default();
        let why = format!(
            "provider \"{provider}\" is not allowed here: plugin_attr.aws-lambda.allowed_providers in config.yaml names only [static]"
        );
        assert!(text.contains(&why), "{text}");
        assert_eq!(gateway.get("/routes/1").0, 404, "{provider}");
    }
}

#[test]
fn keys_of_the_environment_sign_where_config_yaml_allows_them() {
    let lambda = Lambda::start(Some(SESSION_TOKEN));
    for (variables, status) in [
        (
            vec![
                ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
                ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
                ("AWS_SESSION_TOKEN", SESSION_TOKEN),
            ],
            200,
        ),
        // A key of another session.
        (vec![("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)], 502),
        (vec![], 503),
    ] {
        let gateway = with_identity(json!({"allowed_providers": ["static", "env"]}), &variables);
        gateway.set_lambda("1", "/fn", lambda.config("greet", json!({"provider": "env"})));
        // A second route, whose keys are its own, is served in any case.
        gateway.set_lambda("2", "/own", lambda.config("greet", keys(Some(SESSION_TOKEN))));
        let answer = client::get(gateway.http, "/fn?name=Ada");
        assert_eq!(answer.status, status, "{variables:?}: {}", answer.text());
        assert_eq!(client::get(gateway.http, "/own").status, 200, "{variables:?}");
        if status == 503 {
            let line = gateway.wait_for_error_line("A function was not called");
            assert!(line.contains("AWS_ACCESS_KEY_ID is not set"), "{line}");
            assert!(line.contains("route=1"), "{line}");
            assert!(!answer.text().contains("AWS_"), "the client is not told: {}", answer.text());
        }
        for secret in [SECRET_KEY, SESSION_TOKEN] {
            assert!(!gateway.error_log().contains(secret), "{variables:?}");
        }
    }
}

#[test]
fn a_profile_comes_from_the_files_that_config_yaml_names() {
    let lambda = Lambda::start(None);
    let mut gateway = GatewayProcess::prepare(BINARY, "");
    let file = |name: &str| gateway.path(name).to_str().expect("it is a text").to_owned();
    let attr = json!({
        "allowed_providers": ["profile"],
        "profile": "functions",
        "config_file": file("aws-config"),
        "credentials_file": file("aws-credentials"),
    });
    for (name, text) in [
        ("aws-config", "[profile functions]\nregion = us-east-1\n".to_owned()),
        (
            "aws-credentials",
            format!(
                "[default]\naws_access_key_id = OTHER\naws_secret_access_key = other\n\
                 [functions]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
            ),
        ),
    ] {
        std::fs::write(gateway.path(name), text).expect("the prefix is ours");
    }
    gateway.write_config(&config(json!({"plugin_attr": {"aws-lambda": attr}})).to_string());
    without_aws(&mut gateway);
    gateway.launch();
    gateway.set_lambda("1", "/fn", lambda.config("greet", json!({"provider": "profile"})));
    assert_eq!(client::get(gateway.http, "/fn?name=Ada").text(), "Hello, Ada!");
    // What the list leaves out is refused, be it the default.
    let route = json!({"uri": "/x", "plugins": {"aws-lambda": lambda.config("greet", keys(None))}});
    let (status, answer) = gateway.put("/routes/2", &route);
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("names only [profile]"), "{answer}");
}

#[test]
fn a_session_token_and_an_external_id_are_encrypted_at_rest() {
    let lambda = Lambda::start(Some(SESSION_TOKEN));
    let mut gateway = GatewayProcess::start(BINARY);
    gateway.set_lambda("1", "/fn", lambda.config("greet", keys(Some(SESSION_TOKEN))));
    let mut with_role = keys(None);
    with_role["role_arn"] = json!("arn:aws:iam::123456789012:role/caller");
    with_role["external_id"] = json!(EXTERNAL_ID);
    // Nobody listens there: the role is asked for, in vain.
    with_role["sts_endpoint"] = json!("http://127.0.0.1:1");
    gateway.set_lambda("2", "/role", lambda.config("greet", with_role));
    for when in ["at once", "after a restart"] {
        let stored = std::fs::read(gateway.path("data/sluicegate.redb")).expect("it is there");
        let holds = |text: &str| stored.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("us-east-1"), "{when}: other fields are readable");
        for secret in [ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, EXTERNAL_ID] {
            assert!(!holds(secret), "{when}: {secret} is in the store's file");
        }
        let iam = |id: &str| {
            let (_, answer) = gateway.get(&format!("/routes/{id}"));
            answer["value"]["plugins"]["aws-lambda"]["authorization"]["iam"].clone()
        };
        assert_eq!(iam("1")["session_token"], SESSION_TOKEN, "{when}");
        assert_eq!(iam("2")["external_id"], EXTERNAL_ID, "{when}");
        assert_eq!(client::get(gateway.http, "/fn").status, 200, "{when}");
        assert_eq!(client::get(gateway.http, "/role").status, 503, "{when}");
        gateway.restart();
    }
}

#[test]
fn a_session_token_that_aws_repeats_reaches_neither_client_nor_log() {
    let gateway = GatewayProcess::start(BINARY);
    // As AWS does it: the canonical request, token and all.
    let origin = Origin::start(|request| {
        let token = request.header("x-amz-security-token").unwrap_or_default();
        let text = format!(
            "The request signature we calculated does not match the signature you provided.\n\nThe Canonical String for this request should have been\n'GET\n/\n\nhost:x\nx-amz-security-token:{token}\n\nhost'"
        );
        Answer::status(403)
            .header("x-amzn-ErrorType", "InvalidSignatureException")
            .body(json!({"message": text}).to_string())
    });
    let iam = keys(Some(SESSION_TOKEN));
    gateway.set_lambda(
        "1",
        "/fn",
        json!({"function_uri": origin.url("/"), "authorization": {"iam": iam}}),
    );
    let answer = client::get(gateway.http, "/fn");
    assert_eq!(answer.status, 403);
    assert_eq!(origin.last().header("x-amz-security-token"), Some(SESSION_TOKEN));
    let text = answer.text();
    assert!(text.contains("x-amz-security-token:***"), "{text}");
    let line = gateway.wait_for_error_line("AWS refused a call of a function.");
    for text in [&text, &line, &gateway.error_log()] {
        assert!(!text.contains(SESSION_TOKEN), "{text}");
    }
}

#[test]
fn the_status_tells_refusals_by_route_and_identities() {
    // An HTTP API refuses in its own few words, and passes those of functions on.
    let api = Origin::start(|request| {
        let said = if request.path() == "/own" { "Not yours" } else { "Forbidden" };
        let body = json!({"message": said}).to_string();
        Answer::status(403).header("apigw-requestid", "Abc1=").body(body)
    });
    let (mut changes, control) = crate::doctor::control();
    changes["plugin_attr"] = json!({"aws-lambda": {"allowed_providers": ["static", "env"]}});
    let mut gateway = GatewayProcess::prepare(BINARY, &config(changes).to_string());
    without_aws(&mut gateway);
    gateway.variable("AWS_ACCESS_KEY_ID", Some(ACCESS_KEY));
    gateway.variable("AWS_SECRET_ACCESS_KEY", Some(SECRET_KEY));
    gateway.launch();
    let lambda = Lambda::start(None);
    let other = json!({"accesskey": ACCESS_KEY, "secretkey": "another"});
    gateway.set_lambda("wrong-key", "/wrong", lambda.config("greet", other));
    gateway.set_lambda("env", "/env", lambda.config("greet", json!({"provider": "env"})));
    for (id, path) in [("http-api", "/"), ("http-own", "/own")] {
        let uri = api.url(path);
        let config = json!({"function_uri": uri, "authorization": {"iam": {"provider": "env"}}});
        gateway.set_lambda(id, &format!("/{id}"), config);
    }
    for (path, status) in
        [("/wrong", 502), ("/env", 200), ("/http-api", 403), ("/http-api", 403), ("/http-own", 403)]
    {
        assert_eq!(client::get(gateway.http, path).status, status, "{path}");
    }
    let line = gateway.wait_for_error_line("kind=access_denied");
    assert!(line.contains("aws_request_id=\"Abc1=\"") || line.contains("aws_request_id=Abc1="));
    assert!(line.contains("The HTTP API takes neither the signature nor the identity"), "{line}");
    let status = client::get(control, "/v1/status").json();
    assert_eq!(status["counters"]["function_refusals"], 3, "{status:#}");
    let refusals = status["aws_refusals"].as_array().cloned().unwrap_or_default();
    let told: Vec<_> = refusals
        .iter()
        .map(|it| (it["route"].as_str(), it["kind"].as_str(), it["count"].as_u64()))
        .collect();
    assert_eq!(
        told,
        [
            (Some("http-api"), Some("access_denied"), Some(2)),
            (Some("wrong-key"), Some("signature_mismatch"), Some(1)),
        ]
    );
    assert_eq!(refusals[0]["last_request_id"], "Abc1=");
    let identities = &status["aws_identities"];
    assert_eq!(identities.as_array().map(Vec::len), Some(1), "{identities:#}");
    assert_eq!(identities[0]["name"], "env");
    assert_eq!(identities[0]["ready"], true);
    assert!(!status.to_string().contains(SECRET_KEY));
}

#[test]
fn the_log_names_the_first_difference_of_a_refused_signature() {
    let origin = Origin::start(|request| {
        let date = request.header("x-amz-date").unwrap_or_default();
        let (host, empty) = (request.header("host").unwrap_or_default(), HASH_OF_NOTHING);
        let text = format!(
            "The request signature we calculated does not match the signature you provided.\n\nThe Canonical String for this request should have been\n'GET\n/stage/fn\n\nhost:{host}\nx-amz-date:{date}\n\nhost;x-amz-date\n{empty}'\n\nThe String-to-Sign should have been\n'x'\n"
        );
        Answer::status(403)
            .header("x-amzn-ErrorType", "InvalidSignatureException")
            .chunk(json!({"message": text}).to_string())
    });
    let gateway = GatewayProcess::start(BINARY);
    for (id, path, difference) in [
        ("path", "/fn", "path: we signed \\\"/fn\\\", AWS read \\\"/stage/fn\\\""),
        ("same", "/stage/fn", "none: the secret key is not that of the access key"),
    ] {
        let iam = keys(None);
        let config = json!({"function_uri": origin.url(path), "authorization": {"iam": iam}});
        gateway.set_lambda(id, &format!("/{id}"), config);
        assert_eq!(client::get(gateway.http, &format!("/{id}")).status, 403);
        let line = gateway.wait_for_error_line(&format!("route={id} "));
        assert!(line.contains(&format!("first_difference=\"{difference}\"")), "{line}");
    }
}

#[test]
fn a_parameter_of_the_path_names_the_function() {
    let lambda = Lambda::start(None);
    let (mut changes, control) = crate::doctor::control();
    changes["apisix"]["router"] = json!({"http": "radixtree_uri_with_parameter"});
    let gateway = GatewayProcess::with(BINARY, changes);
    let mut config = lambda.config("greet", keys(None));
    config["function"]["name"].take();
    config["function"] = json!({
        "name_parameter": "fn", "allowed_functions": ["greet"], "region": REGION,
        "endpoint": config["function"]["endpoint"],
    });
    gateway.set_lambda("1", "/tenants/:fn/run", config);
    for (path, status) in [("/tenants/greet/run", 200), ("/tenants/echo/run", 404)] {
        assert_eq!(client::get(gateway.http, path).status, status, "{path}");
        let question = json!({"route_id": "1", "uri": path}).to_string();
        let json = [("host", "localhost"), ("content-type", "application/json")];
        let told =
            client::request(control, "POST", "/v1/aws-lambda/explain", &json, question.as_bytes());
        let text = told.text();
        if status == 200 {
            assert_eq!(told.json()["path"], "/2015-03-31/functions/greet/invocations", "{text}");
        } else {
            assert!(told.status == 400 && text.contains("allowed_functions"), "{text}");
        }
    }
    assert_eq!(lambda.only_call().event()["pathParameters"]["fn"], "greet");
}

#[test]
fn a_stored_route_whose_provider_is_no_longer_allowed_answers_503() {
    let lambda = Lambda::start(None);
    let (mut changes, control) = crate::doctor::control();
    changes["plugin_attr"] = json!({"aws-lambda": {"allowed_providers": ["static", "env"]}});
    let mut gateway = GatewayProcess::prepare(BINARY, &config(changes.clone()).to_string());
    without_aws(&mut gateway);
    gateway.variable("AWS_ACCESS_KEY_ID", Some(ACCESS_KEY));
    gateway.variable("AWS_SECRET_ACCESS_KEY", Some(SECRET_KEY));
    gateway.launch();
    gateway.set_lambda("1", "/fn", lambda.config("greet", json!({"provider": "env"})));
    assert_eq!(client::get(gateway.http, "/fn").status, 200);
    changes["plugin_attr"] = json!({"aws-lambda": {"allowed_providers": ["static"]}});
    gateway.write_config(&config(changes).to_string());
    gateway.restart();
    assert_eq!(client::get(gateway.http, "/fn").status, 503);
    assert_eq!(lambda.api.recorded().len(), 1, "and nothing is sent");
    let status = client::get(control, "/v1/status").json();
    let broken = status["broken"].to_string();
    assert!(broken.contains("provider \\\"env\\\" is not allowed here"), "{broken}");
}

#[test]
fn a_consumer_and_the_claims_of_its_token_reach_the_event() {
    let lambda = Lambda::start(None);
    let gateway = GatewayProcess::start(BINARY);
    gateway.set(
        "/consumers/jack",
        &json!({"username": "jack", "plugins": {
            "key-auth": {"key": "k-1"},
            "jwt-auth": {"key": "jack", "secret": "my-secret-key"},
        }}),
    );
    // {"key":"jack"} signed with my-secret-key, by openssl dgst -sha256 -hmac.
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJrZXkiOiJqYWNrIn0.PnzTo33DocgCqsspKjt8BaurfhQz7wd7FIXMSq-kflE";
    for (n, (plugin, settings, header, v2, v1)) in [
        (
            "key-auth",
            json!({}),
            ("apikey", "k-1"),
            json!({"lambda": {"consumer": "jack"}}),
            json!({"principalId": "jack"}),
        ),
        (
            "jwt-auth",
            json!({"store_in_ctx": true}),
            ("Authorization", token),
            json!({
                "jwt": {"claims": {"key": "jack"}, "scopes": null},
                "lambda": {"consumer": "jack"},
            }),
            json!({"principalId": "jack", "claims": {"key": "jack"}, "scopes": null}),
        ),
        (
            "jwt-auth",
            json!({}),
            ("Authorization", token),
            json!({"lambda": {"consumer": "jack"}}),
            json!({"principalId": "jack"}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        for (format, expected) in [("apigw_v2", v2), ("apigw_v1", v1)] {
            let mut function = lambda.config("echo", keys(None));
            function["request_format"] = json!(format);
            let uri = format!("/{n}/{format}");
            gateway.set(
                &format!("/routes/{n}-{format}"),
                &json!({"uri": uri, "plugins": {plugin: settings, "aws-lambda": function}}),
            );
            assert_eq!(client::get(gateway.http, &uri).status, 401, "{uri}");
            let answer = client::request(gateway.http, "GET", &uri, &[header], "");
            assert_eq!(answer.status, 200, "{uri}: {}", answer.text());
            assert_eq!(answer.json()["requestContext"]["authorizer"], expected, "{uri}");
        }
    }
}

#[test]
fn a_clients_certificate_reaches_the_event() {
    let lambda = Lambda::start(None);
    let gateway = GatewayProcess::start(BINARY);
    let authority = Authority::new();
    let server = certs::self_signed(&["a.test"]);
    gateway.set(
        "/ssls/a",
        &json!({
            "cert": server.cert, "key": server.key, "sni": "a.test",
            "client": {"ca": authority.pem(), "skip_mtls_uri_regex": ["^/fn"]},
        }),
    );
    gateway.set_lambda("1", "/fn", lambda.config("echo", keys(None)));
    let files = tempfile::tempdir().expect("there is a place for files");
    let path = |name: &str| files.path().join(name).to_str().expect("it is a text").to_owned();
    let ask = |with: Option<(&str, &certs::Pair)>| {
        let port = gateway.https.port();
        let mut curl = Command::new("curl");
        curl.args(["-sSk", "--max-time", "15", "--resolve"])
            .arg(format!("a.test:{port}:127.0.0.1"))
            .arg(format!("https://a.test:{port}/fn"));
        if let Some((name, pair)) = with {
            let (cert, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
            std::fs::write(&cert, &pair.cert).expect("files can be written");
            std::fs::write(&key, &pair.key).expect("files can be written");
            curl.args(["--cert", &cert, "--key", &key]);
        }
        let output = curl.output().expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let event: Value = serde_json::from_slice(&output.stdout).expect("the event comes back");
        event["requestContext"].clone()
    };
    let pair = authority.issue(&["client.test"]);
    let told = &ask(Some(("good", &pair)))["authentication"]["clientCert"];
    assert_eq!(told["clientCertPem"].as_str().map(str::trim), Some(pair.cert.trim()));
    assert_eq!(told["subjectDN"], "CN=client.test");
    assert_eq!(told["issuerDN"], "CN=testkit authority");
    assert!(told["serialNumber"].as_str().is_some_and(|it| !it.is_empty()), "{told}");
    for end in ["notBefore", "notAfter"] {
        assert!(told["validity"][end].as_str().is_some_and(|it| it.ends_with(" GMT")), "{told}");
    }
    // Neither without one nor with one that the authority does not vouch for.
    let other = Authority::new().issue(&["client.test"]);
    for with in [None, Some(("bad", &other))] {
        assert_eq!(ask(with).get("authentication"), None);
    }
}

#[test]
fn a_streamed_answer_reaches_an_h2_client_piece_by_piece() {
    let lambda = Lambda::start(None);
    let gateway = GatewayProcess::start(BINARY);
    let mut function = lambda.config("slow", keys(None));
    function["invocation"] = json!("stream");
    function["timeouts"] = json!({"first_byte": 10_000, "total": 60_000});
    gateway.set_lambda("1", "/events", function);
    block_on(async {
        let mut send = h2_connect(gateway.http).await.expect("it connects");
        let began = Instant::now();
        let request = http::Request::get("http://gate.test/events").body(()).expect("it is valid");
        let (response, _) = send.send_request(request, true).expect("it can be sent");
        let response = response.await.expect("a head comes");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        let mut at = Vec::new();
        let mut text = Vec::new();
        while let Some(piece) = body.data().await {
            let piece: Bytes = piece.expect("the stream is whole");
            body.flow_control().release_capacity(piece.len()).expect("it was received");
            if !piece.is_empty() {
                text.extend_from_slice(&piece);
                at.push(began.elapsed());
            }
        }
        assert_eq!(String::from_utf8_lossy(&text), "data: 1\n\ndata: 2\n\ndata: 3\n\n");
        assert_eq!(at.len(), 3, "each in a frame of its own: {at:?}");
        assert!(at[0] < PAUSE && at[2] >= PAUSE * 2, "{at:?}");
    });
}

#[test]
fn a_stream_that_breaks_off_resets_the_h2_stream_and_leaves_its_neighbours_alone() {
    let lambda = Lambda::start(None);
    let gateway = GatewayProcess::start(BINARY);
    for (id, name) in [("1", "breaks"), ("2", "slow"), ("3", "is-cut"), ("4", "stream-fail")] {
        let mut function = lambda.config(name, keys(None));
        function["invocation"] = json!("stream");
        gateway.set_lambda(id, &format!("/{name}"), function);
    }
    block_on(async {
        let mut send = h2_connect(gateway.http).await.expect("it connects");
        let mut ask = |path: &str| {
            let request = http::Request::get(format!("http://gate.test/{path}")).body(());
            send.send_request(request.expect("it is valid"), true).expect("it can be sent").0
        };
        let read = async |response: h2::client::ResponseFuture| {
            let response = response.await.expect("a head comes");
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            let mut text = Vec::new();
            loop {
                match body.data().await {
                    Some(Ok(piece)) => {
                        let _ = body.flow_control().release_capacity(piece.len());
                        text.extend_from_slice(&piece);
                    }
                    Some(Err(error)) => return (text, Some(error)),
                    None => return (text, None),
                }
            }
        };
        let neighbour = ask("slow");
        let broken = [ask("breaks"), ask("is-cut")];
        let at_once = ask("stream-fail");
        for response in broken {
            let (text, error) = read(response).await;
            assert_eq!(text, b"half");
            let error = error.expect("the stream does not end as if it were whole");
            assert!(error.is_reset(), "{error}");
        }
        // Where the end comes with the beginning, the reset may go ahead of both.
        let reset = match at_once.await {
            Ok(response) => {
                let mut body = response.into_body();
                loop {
                    match body.data().await {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break error,
                        None => panic!("the stream ends as if it were whole"),
                    }
                }
            }
            Err(error) => error,
        };
        assert!(reset.is_reset(), "{reset}");
        let (text, error) = read(neighbour).await;
        assert!(error.is_none() && text.ends_with(b"data: 3\n\n"), "{error:?}");
    });
    let lines = wait::until("a line for each", || {
        let log = gateway.error_log();
        let lines: Vec<String> = log
            .lines()
            .filter(|line| line.contains("A streamed answer broke off"))
            .map(str::to_owned)
            .collect();
        (lines.len() == 3).then_some(lines)
    });
    assert!(lines.iter().any(|line| line.contains("half way")), "{lines:?}");
}

/// A gateway with this `plugin_attr.aws-lambda` and these variables, and no others of AWS.
fn with_identity(attr: Value, variables: &[(&str, &str)]) -> GatewayProcess {
    let text = config(json!({"plugin_attr": {"aws-lambda": attr}})).to_string();
    let mut gateway = GatewayProcess::prepare(BINARY, &text);
    without_aws(&mut gateway);
    for (name, value) in variables {
        gateway.variable(name, Some(value));
    }
    gateway.launch();
    gateway
}

/// Takes away what the machine that runs the tests may have.
fn without_aws(gateway: &mut GatewayProcess) {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| name.starts_with("AWS_")) {
        gateway.variable(&name, None);
    }
}

pub(crate) fn keys(session_token: Option<&str>) -> Value {
    let mut iam = json!({"accesskey": ACCESS_KEY, "secretkey": SECRET_KEY});
    if let Some(token) = session_token {
        iam["session_token"] = json!(token);
    }
    iam
}

/// An Invoke API with the samples and three functions more.
pub(crate) struct Lambda {
    api: InvokeApi,
    _runtime: tokio::runtime::Runtime,
}

impl Lambda {
    pub(crate) fn start(session_token: Option<&str>) -> Self {
        let mut functions = samples();
        let stream = |chunks: &[&[u8]], pause, end: StreamEnd| {
            let chunks = chunks.iter().map(|chunk| chunk.to_vec()).collect();
            let content_type = "text/event-stream".to_owned();
            Outcome::Stream(StreamOutcome { content_type, chunks, pause, end })
        };
        let slow = move |_: &Invocation| {
            let chunks = [&b"data: 1\n\n"[..], b"data: 2\n\n", b"data: 3\n\n"];
            stream(&chunks, PAUSE, StreamEnd::Complete)
        };
        let breaks = move |_: &Invocation| {
            let details = json!({"errorMessage": "half way"}).to_string();
            stream(&[b"half"], PAUSE, StreamEnd::Error("Unhandled".to_owned(), details))
        };
        let is_cut = move |_: &Invocation| {
            let (kind, text) = ("ServiceException".to_owned(), "gone".to_owned());
            stream(&[b"half"], PAUSE, StreamEnd::Exception(kind, text))
        };
        functions.insert("slow".to_owned(), Arc::new(slow));
        functions.insert("breaks".to_owned(), Arc::new(breaks));
        functions.insert("is-cut".to_owned(), Arc::new(is_cut));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let api = runtime.block_on(InvokeApi::start(InvokeSettings {
            addr: ([127, 0, 0, 1], 0).into(),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.into(),
            session_token: session_token.map(Into::into),
            region: REGION.to_owned(),
            account_id: "123456789012".to_owned(),
            clock: unix_now,
            functions,
        }));
        Self { api: api.expect("loopback has a free port"), _runtime: runtime }
    }

    /// The plugin's configuration for one of the functions.
    pub(crate) fn config(&self, name: &str, iam: Value) -> Value {
        let endpoint = format!("http://{}", self.api.addr());
        json!({
            "function": {"name": name, "region": REGION, "endpoint": endpoint},
            "authorization": {"iam": iam},
        })
    }

    #[track_caller]
    fn only_call(&self) -> Invocation {
        match &self.api.recorded()[..] {
            [call] => call.clone(),
            calls => panic!("{} calls", calls.len()),
        }
    }
}

pub(crate) fn unix_now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the stand-in checks signatures of today")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).expect("it is past 1970").as_secs()
}

const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SESSION_TOKEN: &str = "a-session-token-of-the-test";
const EXTERNAL_ID: &str = "an-external-id-of-the-test";
const REGION: &str = "us-east-1";
/// How long a piece of `slow` waits for its turn.
const PAUSE: Duration = Duration::from_millis(700);
const HASH_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

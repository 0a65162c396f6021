//! What becomes of a call that AWS refuses: repeated or not, compared, counted, and told to the client
//! without the session token.

use std::sync::Barrier;
use std::time::Duration;

use ring::digest;
use serde_json::{Value, json};
use sluicegate_aws::sigv4::{signed_time, wire_query};
use sluicegate_gateway::plugin::{CompileCtx, Registry};
use sluicegate_model::kind::Kind;
use sluicegate_testkit::client;
use sluicegate_testkit::{Answer, InProcess, Judge, Origin, Received};

use super::tests::{unix_now, with};
use super::*;

#[test]
fn a_post_to_a_url_is_not_sent_again_and_the_clock_is_learnt_all_the_same() {
    for (method, sent) in [("GET", 2), ("POST", 1)] {
        let origin = an_hour_ahead(|_| {});
        let config = json!({"function_uri": origin.url("/"), "authorization": {"iam": keys()}});
        let gateway = route("/*", config);
        let status = client::request(gateway.addr, method, "/", &[], b"").status;
        assert_eq!((status, origin.requests().len()), (if sent == 2 { 200 } else { 403 }, sent));
        let status = client::request(gateway.addr, method, "/", &[], b"").status;
        assert_eq!((status, origin.requests().len()), (200, sent + 1), "{method}");
    }
}

#[test]
fn calls_that_are_refused_for_their_time_together_are_all_sent_again() {
    let both = Barrier::new(2);
    let origin = an_hour_ahead(move |_| {
        both.wait();
    });
    let gateway = route("/*", by_name(&origin, json!({})));
    let addr = gateway.addr;
    std::thread::scope(|scope| {
        let calls = [(); 2].map(|()| scope.spawn(move || client::get(addr, "/").status));
        let statuses = calls.map(|call| call.join().expect("it does not panic"));
        assert_eq!(statuses, [200, 200]);
    });
    assert_eq!(origin.requests().len(), 4);
}

#[test]
fn a_session_token_in_a_refusal_does_not_reach_the_client_however_it_is_sent() {
    let canonical = format!("GET\n/\n\nhost:x\nx-amz-security-token:{TOKEN}\n\nhost\n{HASH}");
    let text = json!({"message": format!(
        "The request signature we calculated does not match the signature you provided.\n\n\
         The Canonical String for this request should have been\n'{canonical}'\n\n\
         The String-to-Sign should have been\n'AWS4-HMAC-SHA256\n20260102T030405Z\n\
         20260102/us-east-1/execute-api/aws4_request\n{HASH}'\n"
    )})
    .to_string();
    let (start, end) = text.split_at(text.find(TOKEN).expect("it is there") + 5);
    let long = format!("{}{TOKEN}{}", "x".repeat(100 << 10), "y".repeat(100 << 10));
    let refusal = || Answer::status(403).header("x-amzn-ErrorType", "InvalidSignatureException");
    for (answer, bytes) in [
        (refusal().body(text.as_str()), text.len()),
        (refusal().chunk(start).pause(Duration::from_millis(50)).chunk(end), text.len()),
        (refusal().chunk(long.as_str()), long.len()),
        (refusal().body(long.as_str()), long.len()),
    ] {
        let origin = Origin::start(move |_| answer.clone());
        let iam = with(keys(), json!({"session_token": TOKEN}));
        let config = json!({"function_uri": origin.url("/"), "authorization": {"iam": iam}});
        let said = client::get(route("/*", config).addr, "/");
        let text = said.text();
        assert_eq!((said.status, text.len()), (403, bytes));
        assert!(text.contains(&"*".repeat(TOKEN.len())), "the rest is there");
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[test]
fn an_id_longer_than_aws_has_any_is_logged_and_counted_by_its_beginning() {
    for (sent, told) in [("x".repeat(5_000), 128), ("é".repeat(99), 128), ("id-1".into(), 4)] {
        let mut headers = sluicegate_gateway::http::headers::Headers::new();
        headers.append("x-amzn-RequestId", sent.as_bytes());
        let received = sluicegate_gateway::client::Received {
            status: http::StatusCode::FORBIDDEN,
            headers,
            body: sluicegate_gateway::body::Body::Empty,
            tunnel: None,
        };
        let id = caller::request_id(&received);
        assert_eq!((id.len(), sent.starts_with(id)), (told, true), "{}", sent.len());
    }
}

#[test]
fn a_refusal_that_could_hold_the_token_and_cannot_be_read_has_no_body_for_the_client() {
    for (encoding, passes) in [("gzip", false), ("br, gzip", false), ("Identity", true)] {
        let origin = Origin::start(move |_| {
            let answer = Answer::status(403).header("Content-Encoding", encoding);
            answer.header("x-amzn-ErrorType", "InvalidSignatureException").body("compressed")
        });
        for (iam, has_token) in
            [(keys(), false), (with(keys(), json!({"session_token": TOKEN})), true)]
        {
            let config = json!({"function_uri": origin.url("/"), "authorization": {"iam": iam}});
            let said = client::get(route("/*", config).addr, "/");
            let passes = passes || !has_token;
            assert_eq!(said.status, 403);
            assert_eq!(
                said.text(),
                if passes { "compressed" } else { "" },
                "{encoding} {has_token}"
            );
            assert_eq!(said.header("content-encoding").is_some(), passes, "{encoding} {has_token}");
        }
    }
}

#[test]
fn an_event_that_was_refused_is_compared_but_for_its_body() {
    let origin = Origin::start(|_| Answer::text("{}"));
    let config = by_name(
        &origin,
        json!({
            "tenant_id": "$http_x_tenant-$arg_x", "client_context": {"custom": {"a": "b"}},
            "forward_amz_headers": ["x-amz-durable-execution-name"],
            "event": {"stage_variables": {"key": "kept"}},
        }),
    );
    let gateway = route("/fn/*", config.clone());
    let fields =
        [("x-tenant", "blue"), ("x-amz-durable-execution-name", "job"), ("x-amz-own", "x")];
    let answer = client::request(gateway.addr, "POST", "/fn/a%20b?x=1", &fields, b"hi");
    assert_eq!(answer.status, 200);
    let canonical = canonical(&origin.last());
    assert!(canonical.contains("x-amz-tenant-id:blue-1\n"), "{canonical}");
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let explain = |refusal: &str| {
        let request = ExplainRequest {
            method: Some("POST".to_owned()),
            uri: Some("/fn/a%20b?x=1".to_owned()),
            headers: fields
                .map(|(name, value)| (name.to_owned(), FieldValues::One(value.to_owned())))
                .into(),
            body: "hi".to_owned(),
            refusal: Some(printed(refusal)),
            ..ExplainRequest::default()
        };
        let deps = sluicegate_testkit::deps(Registry::default(), runtime.handle());
        let place = ExplainPlace { route_uri: Some("/fn/*"), ..ExplainPlace::default() };
        let told = runtime.block_on(explain(&config, place, &deps.upstream, &request));
        told.expect("it can be explained")
    };
    let told = explain(&canonical);
    assert_eq!(told["refusal"]["first_difference"], Value::Null, "{told:#}");
    assert!(told["refusal"]["not_compared"].as_str().is_some_and(|it| it.contains("the body")));
    let event: Value = serde_json::from_str(told["body"].as_str().unwrap_or_default()).unwrap();
    assert_eq!(event["pathParameters"]["proxy"], "a b");
    assert_eq!(event["headers"].get("x-amz-own"), None);
    assert_eq!(event["stageVariables"]["key"], "***");
    assert!(!told.to_string().contains("kept") && !told.to_string().contains("eyJj"), "{told:#}");
    for (from, to, part, theirs) in [
        ("/invocations\n", "/invocations/\n", "path", "/2015-03-31/functions/f/invocations/"),
        ("tenant-id:blue-1", "tenant-id:red", "header", "x-amz-tenant-id:red"),
    ] {
        let told = explain(&canonical.replace(from, to));
        let difference = &told["refusal"]["first_difference"];
        assert_eq!((&difference["part"], &difference["theirs"]), (&json!(part), &json!(theirs)));
    }
}

#[test]
fn what_compiles_in_a_trial_compiles_when_it_is_served() {
    let attr = json!({"allowed_providers": ["static", "imds"]});
    let role = "arn:aws:iam::123456789012:role/r";
    for (iam, why) in [
        (json!({"provider": "imds", "aws_region": "eu west"}), "the region must"),
        (json!({"provider": "imds", "service": "a\n"}), "the service must"),
        (with(keys(), json!({"accesskey": "A\n", "role_arn": role})), "the access key"),
        (with(keys(), json!({"session_token": "t\r", "role_arn": role})), "the session token"),
    ] {
        let mut config = json!({"function_uri": "http://fn.test/", "authorization": {"iam": iam}});
        let schema = sluicegate_model::schema::Schema::compile(&AwsLambda::schema()).unwrap();
        schema.fill_defaults(&mut config);
        let config = serde_json::from_value(config).expect("it passed the schema");
        let ctx = CompileCtx {
            metadata: None,
            attr: Some(&attr),
            owner: "trial",
            deps: None,
            upstreams: None,
        };
        let error = AwsLambda::compile(config, &ctx).err().map(|error| error.to_string());
        let error = error.expect(why);
        assert!(error.starts_with(&format!("`authorization.iam`: {why}")), "{error}");
    }
}

#[test]
fn a_configuration_out_of_a_question_borrows_nothing_of_the_gateways() {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let deps = sluicegate_testkit::deps(Registry::default(), runtime.handle());
    let attr = json!({"allowed_providers": ["static", "env"]});
    let place = ExplainPlace { attr: Some(&attr), is_given: true, ..ExplainPlace::default() };
    let role = "arn:aws:iam::123456789012:role/r";
    for (iam, checks, why) in [
        (json!({"provider": "env"}), false, "a `config` is explained with keys of its own"),
        (with(keys(), json!({"role_arn": role})), false, "a `config` is explained with keys of"),
        (keys(), true, "`checks` go with `route_id`"),
        (with(keys(), json!({"provider": "static"})), false, ""),
    ] {
        let config = json!({"function_uri": "http://127.0.0.1:1/", "authorization": {"iam": iam}});
        let request = ExplainRequest { checks, ..ExplainRequest::default() };
        let told = runtime.block_on(explain(&config, place, &deps.upstream, &request));
        match told {
            Ok(_) => assert_eq!(why, ""),
            Err(error) => assert!(!why.is_empty() && error.starts_with(why), "{error}"),
        }
    }
    assert!(deps.upstream.state.get::<AwsIdentities>().statuses().is_empty());
}

#[test]
fn signatures_of_an_identity_hold_before_the_judge() {
    let sts = Origin::start(|_| {
        Answer::text(
            "<R><AssumeRoleResult><Credentials><AccessKeyId>ASIA</AccessKeyId>\
             <SecretAccessKey>secret</SecretAccessKey><SessionToken>token/+=</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></R>",
        )
    });
    let arguments = ["--cred", "ASIA:secret:token/+=", "--control", "/_counts"];
    let Some(judge) = Judge::start(&arguments) else { return };
    let iam = with(
        keys(),
        json!({"role_arn": "arn:aws:iam::123456789012:role/r", "sts_endpoint": sts.url("/")}),
    );
    for (path, function) in [
        ("", json!({"name": "greet"})),
        ("/a~b/c", json!({"name": "greet", "qualifier": "live"})),
        ("", json!({"name_parameter": "*", "allowed_functions": ["gr*"]})),
    ] {
        let endpoint = format!("http://{}{path}", judge.addr);
        let config = json!({
            "function": with(function, json!({"region": "eu-central-1", "endpoint": endpoint})),
            "authorization": {"iam": iam},
            "forward_amz_headers": ["x-amz-durable-execution-name"],
        });
        let gateway = route("/fn/*", config.clone());
        let name = [("X-Amz-Durable-Execution-Name", "a  b")];
        let answer = client::request(gateway.addr, "POST", "/fn/greet", &name, b"{}");
        let counts = client::get(judge.addr, "/_counts").json();
        assert_eq!(counts["refused"], 0, "{config} {}", answer.text());
        assert_eq!(answer.status, 200, "{config} {}", answer.text());
    }
}

/// An origin whose clock is an hour ahead: it refuses signatures that do not know that, after `then`.
fn an_hour_ahead(then: impl Fn(&Received) + Send + Sync + 'static) -> Origin {
    Origin::start(move |request| {
        let stamp = request.header("x-amz-date").unwrap_or_default();
        let time = signed_time(&format!("x-amz-date:{stamp}")).unwrap_or_default();
        if time > unix_now() + 3000 {
            return Answer::text("{}");
        }
        then(request);
        let date =
            httpdate::fmt_http_date(sluicegate_gateway::core::now() + Duration::from_secs(3600));
        Answer::status(403)
            .header("x-amzn-ErrorType", "RequestTimeTooSkewed")
            .header("Date", &date)
            .body("{}")
    })
}

fn by_name(origin: &Origin, options: Value) -> Value {
    let config = json!({
        "function": {
            "name": "f", "region": "eu-central-1", "endpoint": format!("http://{}", origin.addr),
        },
        "authorization": {"iam": keys()},
    });
    with(config, options)
}

fn keys() -> Value {
    json!({"accesskey": "AKIDEXAMPLE", "secretkey": "secret"})
}

fn route(uri: &str, config: Value) -> InProcess {
    let mut registry = Registry::default();
    registry.add::<AwsLambda>();
    let route = json!({"id": "1", "uri": uri, "plugins": {"aws-lambda": config}});
    InProcess::start(registry, vec![(Kind::Routes, "1", route)])
}

/// The canonical request of what arrived, as its receiver makes it.
fn canonical(request: &Received) -> String {
    let authorization = request.header("authorization").expect("it is signed");
    let (_, names) = authorization.split_once("SignedHeaders=").expect("it names them");
    let names = names.split(',').next().unwrap_or_default();
    let fields: String = names
        .split(';')
        .map(|name| format!("{name}:{}\n", request.header(name).unwrap_or_default()))
        .collect();
    let hash = digest::digest(&digest::SHA256, &request.body);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    format!("{}\n{path}\n{}\n{fields}\n{names}\n{hash}", request.method, wire_query(query))
}

/// What AWS says of a signature that is not the one of this canonical request.
fn printed(canonical: &str) -> String {
    json!({"message": format!(
        "The request signature we calculated does not match the signature you provided.\n\n\
         The Canonical String for this request should have been\n'{canonical}'\n\n\
         The String-to-Sign should have been\n'x'\n"
    )})
    .to_string()
}

const TOKEN: &str = "FwoGZXIvYXdzEJr//////////wEaDH+abc==";
const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

//! The Admin API against its own description: schemathesis makes up requests from
//! `/apisix/admin/openapi.json` and judges the answers by it.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sluicegate_testkit::gateway::ADMIN_KEY;
use sluicegate_testkit::{GatewayProcess, judge};

use crate::BINARY;

/// How long the fuzzer goes on; `SLUICEGATE_FUZZ_SECONDS` says otherwise.
const SECONDS: &str = "30";

#[test]
fn no_request_made_from_the_description_gets_an_answer_that_is_not_in_it() {
    let Some(python) = judge::python("schemathesis") else { return };
    let gateway = GatewayProcess::start(BINARY);
    let seconds = std::env::var("SLUICEGATE_FUZZ_SECONDS").unwrap_or_else(|_| SECONDS.to_owned());
    let output = Command::new(python)
        .args(["-m", "schemathesis.cli", "run"])
        .arg(format!("http://{}/apisix/admin/openapi.json", gateway.admin))
        .args(["--header", &format!("X-API-KEY: {ADMIN_KEY}")])
        .args(["--checks", CHECKS, "--phases", "examples,fuzzing"])
        // One worker: some versions of Python fail at parsing in two threads.
        .args(["--max-time", &seconds, "--max-examples", "5", "--workers", "1"])
        // The same requests every time: a change that fails is to blame itself.
        .args(["--generation-deterministic", "--suppress-health-check", "all"])
        .args(["--request-timeout", "10", "--continue-on-failure", "--no-color"])
        .args(["--warnings", "off"])
        .current_dir(gateway.prefix())
        .stdin(Stdio::null())
        .output()
        .expect("Python can be run");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "schemathesis found something:\n{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // It has to have looked.
    assert!(told.contains("Test cases:"), "{told}");
    assert_eq!(gateway.get("/routes").0, 200, "the gateway goes on");
    assert!(!gateway.error_log().contains("panicked"), "{}", gateway.error_log());
}

#[test]
fn every_example_of_the_description_is_taken() {
    let gateway = GatewayProcess::start(BINARY);
    let (status, description) = gateway.get("/openapi.json");
    assert_eq!((status, &description["openapi"]), (200, &json!("3.1.0")));
    let mut taken = 0;
    // Owners come before what they own; stream routes need streams, which are off.
    let mut paths: Vec<(&String, &Value)> =
        description["paths"].as_object().expect("there are paths").iter().collect();
    paths.sort_by_key(|(path, _)| path.matches('/').count());
    for (path, item) in paths {
        let body = &item["put"]["requestBody"]["content"]["application/json"]["example"];
        if body.is_null() || path.contains("stream_routes") {
            continue;
        }
        let mut filled = path.strip_prefix("/apisix/admin").expect("all are below").to_owned();
        for parameter in item["parameters"].as_array().into_iter().flatten() {
            let [name, value] = ["name", "example"].map(|m| parameter[m].as_str().unwrap());
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        let (status, answer) = gateway.put(&filled, body);
        assert!(matches!(status, 200 | 201), "PUT {filled} {body}: {status} {answer}");
        taken += 1;
    }
    assert!(taken >= 15, "{taken} examples");
}

/// What makes a run fail: 5xx, and answers that the description does not have.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

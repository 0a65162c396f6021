//! Replays `transcript.md`, a recorded session with APISIX.

use axum::{body::Body, http::Request};
use serde_json::Value;

use crate::harness::{ADMIN, Harness, NOW, Reply};

#[tokio::test]
async fn a_session_with_apisix_goes_the_same_way_here() {
    let harness = Harness::new();
    let mut failures = Vec::new();
    let exchanges = exchanges(include_str!("transcript.md"));
    assert!(exchanges.len() > 100, "the transcript was read");
    for exchange in &exchanges {
        let (method, path) = (exchange.method, exchange.path);
        let request = Request::builder().method(method).uri(path).header("x-api-key", ADMIN);
        let body = Body::from(exchange.body.to_owned());
        let reply = harness.request(request.body(body).unwrap()).await;
        if let Err(difference) = compare(exchange, &reply) {
            failures.push(format!("{}\n    {difference}", exchange.line));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        exchanges.len(),
        failures.join("\n")
    );
}

struct Exchange<'a> {
    line: &'a str,
    method: &'a str,
    path: &'a str,
    body: &'a str,
    status: u16,
    versioned: bool,
    answer: &'a str,
}

fn exchanges(text: &str) -> Vec<Exchange<'_>> {
    let mut lines = text.lines().peekable();
    let mut exchanges = Vec::new();
    while let Some(line) = lines.next() {
        let Some(request) = line.strip_prefix("- ") else { continue };
        let start = METHODS.iter().filter_map(|method| request.find(method)).min();
        let request = &request[start.expect("a method")..];
        let (method, rest) = request.split_once(' ').unwrap();
        let (path, body) = rest.split_once(' ').unwrap_or((rest, ""));
        let head = lines.next().unwrap().trim().strip_prefix("[admin] ").expect("[admin]");
        let status = head[..3].parse().unwrap();
        let versioned = !head.contains("(no X-API-VERSION)");
        let answer = lines.next_if(|line| line.starts_with("    ")).unwrap_or_default().trim();
        exchanges.push(Exchange { line, method, path, body, status, versioned, answer });
    }
    exchanges
}

fn compare(expected: &Exchange<'_>, reply: &Reply) -> Result<(), String> {
    if reply.status.as_u16() != expected.status {
        return Err(format!("status {}: {}", reply.status, reply.text));
    }
    let version = if expected.versioned { "v3" } else { "" };
    for (name, value) in ADMIN_HEADERS.iter().chain(&[("x-api-version", version)]) {
        if reply.header(name) != *value {
            return Err(format!("{name}: {:?} instead of {value:?}", reply.header(name)));
        }
    }
    if !expected.answer.starts_with(['{', '[']) {
        let same = reply.text == expected.answer;
        return if same { Ok(()) } else { Err(format!("{:?}", reply.text)) };
    }
    if !reply.text.ends_with("}\n") && !reply.text.ends_with("]\n") {
        return Err(format!("no single line end: {:?}", reply.text));
    }
    let answer = ["<unix>", "<n>"].iter().fold(expected.answer.to_owned(), |answer, mark| {
        answer.replace(mark, &format!("\"{mark}\""))
    });
    let wanted: Value = serde_json::from_str(&answer).expect("the transcript has JSON");
    let found = reply.json();
    if same(&wanted, &found) { Ok(()) } else { Err(format!("{found}\n    instead of {wanted}")) }
}

fn same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::String(mark), _) if mark == "<unix>" => *found == NOW,
        (Value::String(mark), _) if mark == "<n>" => found.is_u64(),
        (Value::String(wanted), Value::String(found)) => match wanted.split_once("<id>") {
            Some((before, after)) => {
                let id = found.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                id.is_some_and(|id| id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_digit()))
            }
            None => wanted == found,
        },
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(found).all(|(w, f)| same(w, f))
        }
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.len() == found.len()
                && wanted.iter().all(|(name, w)| found.get(name).is_some_and(|f| same(w, f)))
        }
        _ => wanted == found,
    }
}

const METHODS: [&str; 5] = ["GET /", "PUT /", "POST /", "PATCH /", "DELETE /"];
/// `[admin]`, and the `Server` of the harness.
const ADMIN_HEADERS: [(&str, &str); 6] = [
    ("content-type", "application/json"),
    ("access-control-allow-origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("access-control-expose-headers", "*"),
    ("access-control-max-age", "3600"),
    ("server", "Sluicegate/9.8.7"),
];

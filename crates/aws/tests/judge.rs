//! Odd requests over a real socket, judged by botocore (`crates/testkit/judge/sigv4_origin.py`).
//!
//! The judge rebuilds the canonical request from the bytes it receives. It needs a Python that has
//! botocore: `SLUICEGATE_PYTHON`, else the virtual environment under `target/venv` that
//! `cargo xtask test` makes. Without one these tests are skipped with a line that says so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, wire_path, wire_query,
};

#[test]
fn every_odd_target_is_accepted_by_the_judge() {
    let Some(judge) = Judge::start(&[]) else { return };
    let (mut targets, mut refused) = (0, Vec::new());
    for path in ODD_PATHS {
        for query in ODD_QUERIES {
            // Every path with some query and every query with some path would do; all pairs
            // cost little.
            let (status, answer) = judge.send(&Request { path, query, ..Request::default() });
            targets += 1;
            if status != 200 {
                refused.push(format!("{path}?{query}: {status} {answer}"));
            }
        }
    }
    assert_eq!(targets, ODD_PATHS.len() * ODD_QUERIES.len());
    assert!(refused.is_empty(), "{} refused, first: {}", refused.len(), refused[0]);
}

#[test]
fn what_the_client_asked_for_arrives() {
    let Some(judge) = Judge::start(&[]) else { return };
    let query = "b=2&a=1+2&flag&a=%2B&%C3%A9=x%3Dy";
    let (status, answer) =
        judge.send(&Request { path: "/a%2fb//c:d@e/é", query, ..Request::default() });
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["path"], "/a%2fb//c:d@e/%C3%A9");
    let arguments =
        serde_json::json!([["a", "1 2"], ["a", "+"], ["b", "2"], ["flag", ""], ["é", "x=y"]]);
    let mut got = answer["args"].as_array().unwrap().clone();
    got.sort_by_key(Value::to_string);
    let mut wanted = arguments.as_array().unwrap().clone();
    wanted.sort_by_key(Value::to_string);
    assert_eq!(got, wanted);
}

#[test]
fn odd_headers_bodies_and_methods_are_accepted() {
    let Some(judge) = Judge::start(&[]) else { return };
    let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let requests = [
        Request { method: "POST", body: b"{\"name\":\"APISIX\"}", ..Request::default() },
        Request { method: "PUT", body: &binary, ..Request::default() },
        Request { method: "DELETE", ..Request::default() },
        Request {
            headers: &[("X-Amz-Meta", "  a   b "), ("x-amz-meta", "c"), ("X-AMZ-Empty", "")],
            ..Request::default()
        },
        Request { headers: &[("x-amz-tab", "a\t\tb")], ..Request::default() },
        Request {
            headers: &[("Content-Type", "text/plain;  charset=utf-8")],
            ..Request::default()
        },
        Request { headers: &[("x-amz-meta-text", "é☃")], ..Request::default() },
        Request {
            headers: &[("X-Amz-Date", "20000101T000000Z"), ("x-amz-content-sha256", "feed")],
            ..Request::default()
        },
    ];
    for request in requests {
        let (status, answer) = judge.send(&request);
        assert_eq!(status, 200, "{:?} {answer}", request.headers);
        assert_eq!(answer["body_bytes"], request.body.len());
    }
}

#[test]
fn a_session_token_is_accepted_and_signed() {
    let Some(judge) = Judge::start(&["--cred", "AKIDTOKEN:secret:To/k+en=="]) else { return };
    let (status, answer) = judge.send(&Request {
        credentials: ("AKIDTOKEN", "secret", Some("To/k+en==")),
        ..Request::default()
    });
    assert_eq!((status, &answer["auth"]["session_token_signed"]), (200, &Value::Bool(true)));
}

#[test]
fn a_changed_byte_is_refused() {
    let Some(judge) = Judge::start(&[]) else { return };
    let request =
        || Request { method: "POST", path: "/fn", query: "a=1", body: b"x", ..Request::default() };
    assert_eq!(judge.send(&request()).0, 200);
    for (changed, tamper) in [
        ("method", ("POST /fn", "PUTS /fn")),
        ("path", ("/fn?", "/fm?")),
        ("slash", ("/fn?", "/fn/?")),
        ("query", ("a=1", "a=2")),
        ("host", ("host: judge.test", "host: fudge.test")),
        ("body", ("\r\n\r\nx", "\r\n\r\ny")),
        ("content type", ("text/plain", "text/plaim")),
        ("amz header", ("x-amz-meta: a", "x-amz-meta: b")),
        ("scope", ("/us-east-1/", "/us-west-1/")),
        ("secret", ("", "")),
    ] {
        let mut request = request();
        request.headers = &[("content-type", "text/plain"), ("x-amz-meta", "a")];
        if changed == "secret" {
            request.credentials.1 = "another";
        }
        request.tamper = Some(tamper);
        let (status, answer) = judge.send(&request);
        assert_eq!(status, 403, "changed {changed}: {answer}");
    }
}

#[test]
fn the_judge_accepts_the_published_signatures_and_refuses_their_mutations() {
    let Some(python) = python() else { return };
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/sigv4-suite");
    if !suite.is_dir() {
        return println!("skipped: ../shared/sigv4-suite is not there");
    }
    let output = Command::new(python).arg(JUDGE).arg("--selftest").arg(suite).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("accepted 109, mutations refused 977"), "{told}");
}

const JUDGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/judge/sigv4_origin.py");

const ODD_PATHS: &[&str] = &[
    "",
    "/",
    "//",
    "/default/fn",
    "/default/fn/",
    "/a//b",
    "/a//",
    "//a",
    "/a%2Fb",
    "/a%2fb",
    "/a%20b",
    "/a+b",
    "/a%2Bb",
    "/~user",
    "/%7Euser",
    "/a:b",
    "/a@b",
    "/a:b@c",
    "/@connections/x%3D",
    "/é",
    "/%C3%A9",
    "/%c3%a9",
    "/☃/x",
    "/100%",
    "/100%25",
    "/%zz",
    "/a[1]",
    "/a%5B1%5D",
    "/a;p=1",
    "/a,b",
    "/a=b&c",
    "/a!$'()*",
    "/a|b^c`d{e}",
    "/a\"b<c>d\\e",
    "/.",
    "/..",
    "/a/.",
    "/a/..",
    "/a/./b/../c",
    "/a/%2e%2e/b",
    "/a/%2E/b",
    "/.well-known/x",
    "/...",
    "/a.b.",
    "/2015-03-31/functions/arn:aws:lambda:us-west-2:123456789012:function:my-fn/invocations",
    "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-west-2%3A123456789012%3Afunction%3Amy-fn/invocations",
    "/2015-03-31/functions/my-fn%3A%24LATEST/invocations",
];

const ODD_QUERIES: &[&str] = &[
    "",
    "name=APISIX",
    "b=2&a=1",
    "a=2&a=1&a=10",
    "a",
    "a=",
    "=a",
    "=",
    "a&b=&c",
    "&&a=1&&",
    "a=b=c",
    "a=1+2",
    "a=1%202",
    "a=1%2B2",
    "a=%2f",
    "a=/:@?",
    "a=~-_.",
    "a=%7E",
    "a=*'()!",
    "a=é",
    "a=%C3%A9",
    "a=%FF",
    "a=%00",
    "a=100%",
    "a=%zz",
    "a-=1&a=2",
    "A=1&a=2",
    "a%3Db=c",
    "a[]=1&a[]=2",
    "a;b=1",
    "X-Amz-Expires=1",
    "a=%0d%0a",
];

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    credentials: (&'a str, &'a str, Option<&'a str>),
    /// Replaced in the bytes to send after they were signed.
    tamper: Option<(&'a str, &'a str)>,
}

impl Default for Request<'_> {
    fn default() -> Self {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        Self {
            method: "GET",
            path: "/",
            query: "",
            headers: &[],
            body: b"",
            credentials: ("AKIDEXAMPLE", secret, None),
            tamper: None,
        }
    }
}

struct Judge {
    process: Child,
    address: String,
}

impl Judge {
    fn start(more: &[&str]) -> Option<Self> {
        let python = python()?;
        let mut process = Command::new(python)
            .args([JUDGE, "--listen", "127.0.0.1:0", "--quiet"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once('/').expect("the judge says where it listens").1;
        Some(Self { process, address: address.to_owned() })
    }

    fn send(&self, request: &Request<'_>) -> (u16, Value) {
        let (path, query) = (wire_path(request.path), wire_query(request.query));
        let (access_key, secret, token) = request.credentials;
        let credentials = Credentials {
            access_key: access_key.to_owned(),
            secret_key: Secret::from(secret),
            session_token: token.map(Secret::from),
        };
        let signer = Signer::new(credentials, "us-east-1", "execute-api").unwrap();
        let mut headers = vec![("host", "judge.test")];
        headers.extend_from_slice(request.headers);
        let mut signed = Signed::default();
        let now = unix_now();
        let to_sign = RequestToSign {
            method: request.method,
            path: &path,
            query: Some(&query),
            headers: headers.iter().map(|(name, value)| (*name, value.as_bytes())),
            payload: PayloadHash::Bytes(request.body),
        };
        signer.sign(now, to_sign, &mut signed);

        let mark = if query.is_empty() { "" } else { "?" };
        let mut head = format!("{} {path}{mark}{query} HTTP/1.1\r\n", request.method);
        let is_replaced = |name: &str| signed.headers().any(|own| own.0.eq_ignore_ascii_case(name));
        headers.retain(|(name, _)| !is_replaced(name));
        let own = signed.headers().map(|(name, value): (&str, &str)| (name, value));
        for (name, value) in headers.into_iter().chain(own) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n", request.body.len()));
        head.push_str("user-agent: not signed\r\nconnection: close\r\n\r\n");
        let mut bytes = [head.as_bytes(), request.body].concat();
        if let Some((from, to)) = request.tamper {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{from:?} is in {text}");
            bytes = text.replacen(from, to, 1).into_bytes();
        }

        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the judge compares with the real clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A Python with botocore, or a printed line.
fn python() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let python = std::env::var_os("SLUICEGATE_PYTHON").map_or(venv, PathBuf::from);
    let check =
        Command::new(&python).args(["-c", "import botocore"]).stderr(Stdio::null()).status();
    if !check.is_ok_and(|status| status.success()) {
        println!(
            "skipped: no Python with botocore (set SLUICEGATE_PYTHON or run cargo xtask test)"
        );
        return None;
    }
    Some(python)
}

//! The stand-in over real sockets: what it answers, and that it refuses what AWS would refuse.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, wire_path, wire_query,
};
use sluicegate_standin::{BODY_BYTES_MAX, SKEW_SECONDS_MAX, Settings, Standin, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

#[tokio::test]
async fn the_api_gateway_front_wants_the_one_api_key() {
    let standin = start().await;
    let front = standin.addrs().api_gateway;
    for (headers, status) in [
        ("", 403),
        ("x-api-key: \r\n", 403),
        ("x-api-key: my-api-kez\r\n", 403),
        ("x-api-key: my-api-key-and-more\r\n", 403),
        ("x-api-key: my-api-key\r\nx-api-key: my-api-key\r\n", 403),
        ("X-API-Key: my-api-key\r\n", 200),
    ] {
        let answer = send(front, &plain("GET", "/default/fn?name=APISIX", headers, b"")).await;
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.header("x-amzn-requestid").map(str::len), Some(36));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        if status == 200 {
            assert_eq!(answer.body, r#""Hello, APISIX!""#);
            assert_eq!(answer.header("x-function-path"), Some("/default/fn"));
        } else {
            assert_eq!(answer.body, r#"{"message":"Forbidden"}"#);
            assert_eq!(answer.header("x-amzn-errortype"), Some("ForbiddenException"));
        }
    }
    standin.stop().await;
}

#[tokio::test]
async fn the_function_greets_by_query_and_by_body() {
    let standin = start().await;
    let front = standin.addrs().api_gateway;
    let key = "x-api-key: my-api-key\r\n";
    for (method, target, body, greeting) in [
        ("GET", "/", "", "Hello, World!"),
        ("GET", "/?name=J%C3%BCrgen+K", "", "Hello, Jürgen K!"),
        ("POST", "/", r#"{"name":"body"}"#, "Hello, body!"),
        ("PUT", "/?name=query", r#"{"name":"body"}"#, "Hello, query!"),
    ] {
        let answer = send(front, &plain(method, target, key, body.as_bytes())).await;
        assert_eq!((answer.status, answer.json()), (200, json!(greeting)), "{method} {target}");
    }
    standin.stop().await;
}

#[tokio::test]
async fn the_origin_tells_what_arrived() {
    let standin = start().await;
    let headers = "X-One: 1\r\nX-Two: a\r\nx-two: b\r\n";
    let request = plain("POST", "/hello%2Fyou?a=1+2", headers, b"abc");
    let answer = send(standin.addrs().origin, &request).await;
    let told = answer.json();
    assert_eq!(answer.status, 200);
    assert_eq!(told["method"], "POST");
    assert_eq!(told["path"], "/hello%2Fyou");
    assert_eq!(told["query"], "a=1+2");
    assert_eq!(told["headers"]["x-one"], "1");
    assert_eq!(told["headers"]["x-two"], json!(["a", "b"]));
    assert_eq!(told["body_bytes"], 3);
    standin.stop().await;
}

#[tokio::test]
async fn the_function_url_front_accepts_what_the_aws_crate_signs() {
    let standin = start().await;
    let front = standin.addrs().function_url;
    for (path, query) in [
        ("/", ""),
        ("/default/fn/", "name=APISIX"),
        ("/a%2Fb//c:d@e+f~g/é[]", "b=2&a=1+2&flag&a=%2B&a[]=%zz&é"),
        ("/a/../%2e%2e/b%", "&&=&a=b=c"),
        ("/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A1%3Afunction%3Af/invocations", ""),
    ] {
        for (method, body) in [("GET", &b""[..]), ("POST", b"{\"name\":\"x\"}")] {
            let call = Call { method, path, query, body, ..Call::default() };
            let answer = send(front, &call.signed()).await;
            assert_eq!(answer.status, 200, "{method} {path}?{query}: {}", answer.body);
        }
    }
    standin.stop().await;
}

#[tokio::test]
async fn the_function_url_front_refuses_a_changed_byte() {
    let standin = start().await;
    let front = standin.addrs().function_url;
    let missing = send(front, &plain("GET", "/", "", b"")).await;
    assert_eq!(
        (missing.status, &*missing.body),
        (403, r#"{"message":"Missing Authentication Token"}"#)
    );
    assert_eq!(missing.header("x-amzn-errortype"), Some("MissingAuthenticationTokenException"));

    let call = Call {
        method: "POST",
        path: "/fn",
        query: "a=1",
        headers: &[("content-type", "text/plain"), ("x-amz-meta", "a")],
        body: b"x",
        ..Call::default()
    };
    assert_eq!(send(front, &call.signed()).await.status, 200);
    for (from, to) in [
        ("POST /fn", "PUTS /fn"),
        ("/fn?", "/fm?"),
        ("/fn?", "/fn/?"),
        ("a=1", "a=2"),
        ("a=1", "a=1&b="),
        ("host: standin.test", "host: another.test"),
        ("\r\n\r\nx", "\r\n\r\ny"),
        ("text/plain", "text/plaim"),
        ("x-amz-meta: a", "x-amz-meta: b"),
        ("x-amz-meta: a", "x-amz-meta: a\r\nx-amz-meta: b"),
        ("x-amz-meta: a", "x-amz-meta: a\r\nx-amz-more: b"),
        ("x-amz-meta: a\r\n", ""),
        ("/us-east-1/", "/us-west-1/"),
        ("/lambda/", "/execute-api/"),
        ("Credential=AKID", "Credential=AKIE"),
        ("authorization: ", "x-authorization: "),
        ("content-type: text/plain\r\n", "x-amz-security-token: T\r\ncontent-type: text/plain\r\n"),
    ] {
        let text = String::from_utf8(call.signed()).unwrap();
        assert!(text.contains(from), "{from:?} is in {text}");
        let answer = send(front, text.replacen(from, to, 1).as_bytes()).await;
        assert_eq!(answer.status, 403, "{from:?} became {to:?}");
        assert!(answer.header("x-amzn-errortype").is_some_and(|kind| kind.ends_with("Exception")));
        assert!(!answer.body.contains("Hello"), "{}", answer.body);
        assert!(!answer.body.contains(SECRET), "{}", answer.body);
    }
    let forged = Call { secret: "another", ..call };
    assert_eq!(send(front, &forged.signed()).await.status, 403);
    standin.stop().await;
}

#[tokio::test]
async fn a_signature_holds_for_five_minutes_either_way() {
    let standin = start().await;
    let front = standin.addrs().function_url;
    for (now, status, says) in [
        (NOON - SKEW_SECONDS_MAX, 200, "Hello"),
        (NOON + SKEW_SECONDS_MAX, 200, "Hello"),
        (NOON - SKEW_SECONDS_MAX - 1, 403, "Signature expired"),
        (NOON + SKEW_SECONDS_MAX + 1, 403, "Signature not yet current"),
    ] {
        let answer = send(front, &Call { now, ..Call::default() }.signed()).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.contains(says), "{}", answer.body);
    }
    standin.stop().await;
}

#[tokio::test]
async fn a_body_at_the_limit_passes_and_one_past_it_is_refused() {
    let standin = start().await;
    let origin = standin.addrs().origin;
    let body = vec![b'x'; BODY_BYTES_MAX + 1];
    let answer = send(origin, &plain("POST", "/", "", &body[1..])).await;
    assert_eq!((answer.status, &answer.json()["body_bytes"]), (200, &json!(BODY_BYTES_MAX)));
    // Only the head is sent: the length alone decides.
    let mut head = plain("POST", "/", "", &body);
    head.truncate(head.len() - body.len());
    let answer = send(origin, &head).await;
    assert_eq!((answer.status, &*answer.body), (413, r#"{"message":"Request Too Long"}"#));
    standin.stop().await;
}

#[tokio::test]
async fn a_request_without_one_host_is_refused() {
    let standin = start().await;
    for hosts in ["", "host: a\r\nhost: b\r\n"] {
        let request = format!("GET / HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        let answer = send(standin.addrs().origin, request.as_bytes()).await;
        assert_eq!(answer.status, 400, "{hosts:?}");
    }
    standin.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named_and_nothing_stays_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let free = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let error = Standin::start(Settings { api_gateway: free, origin: addr, ..settings() })
        .await
        .unwrap_err();
    assert!(matches!(&error, StartError::InUse { addr: named, .. } if *named == addr));
    assert!(error.to_string().contains(&format!("port {} is in use", addr.port())), "{error}");
    TcpListener::bind(free).await.expect("the first server's port is free again");
}

#[tokio::test]
async fn an_address_that_is_not_loopback_is_refused() {
    let settings = Settings { function_url: ([0, 0, 0, 0], 0).into(), ..settings() };
    let error = Standin::start(settings).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the function-URL front listens on loopback only, and 0.0.0.0:0 is not"
    );
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_frees_the_ports() {
    let standin = start().await;
    let addrs = standin.addrs();
    let mut idle = TcpStream::connect(addrs.origin).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_ne!(idle.read(&mut [0; 4096]).await.unwrap(), 0, "the connection is kept alive");
    timeout(DEADLINE, standin.stop()).await.expect("stopping is quick");
    let mut rest = Vec::new();
    timeout(DEADLINE, idle.read_to_end(&mut rest)).await.unwrap().unwrap();
    for addr in [addrs.api_gateway, addrs.function_url, addrs.origin] {
        TcpListener::bind(addr).await.expect("the port is free again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_botocore_signs_is_accepted() {
    let Some(python) = python() else { return };
    let standin = Standin::start(Settings { clock: unix_now, ..settings() }).await.unwrap();
    let url = format!("http://{}", standin.addrs().function_url);
    let told = tokio::task::spawn_blocking(move || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/botocore_client.py");
        Command::new(python).args([script, &url, "AKIDEXAMPLE", SECRET]).output().unwrap()
    })
    .await
    .unwrap();
    let told = String::from_utf8(told.stdout).unwrap() + &String::from_utf8_lossy(&told.stderr);
    assert!(told.contains("accepted 8, refused 8"), "{told}");
    standin.stop().await;
}

#[test]
fn debug_output_holds_no_secret() {
    let printed = format!("{:?}", settings());
    assert!(!printed.contains(SECRET) && !printed.contains("my-api-key"), "{printed}");
}

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOON: u64 = 1_440_938_160;
const DEADLINE: Duration = Duration::from_secs(10);

fn settings() -> Settings {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        api_gateway: any_port,
        function_url: any_port,
        origin: any_port,
        api_key: Secret::from("my-api-key"),
        access_key: "AKIDEXAMPLE".to_owned(),
        secret_key: Secret::from(SECRET),
        region: "us-east-1".to_owned(),
        service: "lambda".to_owned(),
        clock: || NOON,
    }
}

async fn start() -> Standin {
    Standin::start(settings()).await.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "botocore signs by the real clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn plain(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: standin.test\r\n{headers}content-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[derive(Clone, Copy)]
struct Call<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    secret: &'a str,
    now: u64,
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self {
            method: "GET",
            path: "/",
            query: "",
            headers: &[],
            body: b"",
            secret: SECRET,
            now: NOON,
        }
    }
}

impl Call<'_> {
    fn signed(&self) -> Vec<u8> {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Secret::from(self.secret),
            session_token: None,
        };
        let signer = Signer::new(credentials, "us-east-1", "lambda").unwrap();
        let (path, query) = (wire_path(self.path), wire_query(self.query));
        let host = ("host", "standin.test");
        let to_sign = RequestToSign {
            method: self.method,
            path: &path,
            query: Some(&query),
            headers: [host]
                .into_iter()
                .chain(self.headers.iter().copied())
                .map(|(name, value)| (name, value.as_bytes())),
            payload: PayloadHash::Bytes(self.body),
        };
        let mut signed = Signed::default();
        signer.sign(self.now, to_sign, &mut signed);
        let own = signed.headers().map(|(name, value): (&str, &str)| (name, value));
        let headers: String = own
            .chain(self.headers.iter().copied())
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        plain(self.method, &format!("{path}{mark}{query}"), &headers, self.body)
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, wanted: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn send(addr: SocketAddr, request: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = timeout(DEADLINE, exchange).await.expect("an answer comes in time");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
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

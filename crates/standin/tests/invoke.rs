//! The Invoke API over real sockets: called by botocore's Lambda client, and by our own signer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_aws::eventstream::{InvokeEvent, InvokeStreamDecoder};
use sluicegate_aws::lambda::{
    Answer, ApiCall, ErrorKind, FunctionRef, FunctionSettings, Target, classify, function_error,
};
use sluicegate_aws::response::{PreludeDecoder, ResponseFormat, unwrap};
use sluicegate_aws::sigv4::{Credentials, PayloadHash, RequestToSign, Signed, Signer};
use sluicegate_standin::{
    InvocationKind, InvokeApi, InvokeSettings, Outcome, StreamEnd, StreamOutcome, samples,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn botocores_client_calls_every_function() {
    let Some(python) = python() else { return };
    let api = start(InvokeSettings { clock: unix_now, ..settings() }).await;
    let url = format!("http://{}", api.addr());
    let told = tokio::task::spawn_blocking(move || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/botocore_invoke.py");
        Command::new(python).args([script, &url, "AKIDEXAMPLE", SECRET, TOKEN]).output().unwrap()
    })
    .await
    .unwrap();
    let errors = String::from_utf8_lossy(&told.stderr);
    let told: Value = serde_json::from_slice(&told.stdout).expect(&errors);
    let answer = |status, payload: &str, error: Value, version: Value| {
        json!({
            "status": status, "error": error, "version": version, "log": null, "payload": payload,
        })
    };
    let latest = || json!("$LATEST");
    assert_eq!(told["echo"]["payload"], r#"{"a":"é"}"#);
    assert!(told["echo"]["log"].as_str().is_some_and(|log| log.starts_with("UkVQT1JU")));
    assert_eq!(told["arn"], answer(200, "1", Value::Null, json!("live")));
    assert_eq!(told["qualified"], answer(200, "2", Value::Null, latest()));
    assert_eq!(told["event"], answer(202, "", Value::Null, Value::Null));
    assert_eq!(told["dry"], answer(204, "", Value::Null, Value::Null));
    assert_eq!(told["fail"]["error"], "Handled");
    assert_eq!(told["crash"]["error"], "Unhandled");
    assert_eq!(
        told["throttled"],
        json!([
            429,
            "TooManyRequestsException",
            "ReservedFunctionConcurrentInvocationLimitExceeded",
            "1",
        ])
    );
    assert_eq!(told["unknown"], json!([404, "ResourceNotFoundException", null, null]));
    assert_eq!(told["not_json"], json!([400, "InvalidRequestContentException", null, null]));
    assert_eq!(told["contradicted"], json!([400, "InvalidParameterValueException", null, null]));
    assert_eq!(
        told["stream"],
        json!({
            "type": "application/vnd.amazon.eventstream", "own_type": "application/octet-stream",
            "chunks": ["one,", "two,", "three"], "end": {},
        })
    );
    assert_eq!(
        told["stream_http"]["own_type"],
        "application/vnd.awslambda.http-integration-response"
    );
    assert_eq!(told["stream_fail"]["end"]["ErrorCode"], "Unhandled");
    // Its model names no exceptions of this stream, so botocore knows only that there was one.
    assert!(told["stream_exception"].is_object(), "{told}");

    // A name, a payload or a qualifier that is refused is no call.
    let recorded = api.recorded();
    assert_eq!(recorded.len(), 12, "{recorded:?}");
    assert_eq!(recorded[0].event(), json!({"a": "é"}));
    assert_eq!(recorded[1].qualifier.as_deref(), Some("live"));
    let kinds: Vec<_> = recorded.iter().map(|call| call.kind).collect();
    assert_eq!(kinds[3..5], [InvocationKind::Event, InvocationKind::DryRun]);
    assert!(recorded.iter().all(|call| call.header("authorization").is_none()));
    api.stop().await;
}

#[tokio::test]
async fn our_own_pieces_make_a_call_and_read_its_answer() {
    let api = start(settings()).await;
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:greet:live";
    let event = json!({"rawQueryString": "name=J%C3%BCrgen"}).to_string();
    let call = Call { arn, payload: event.as_bytes(), ..Call::default() };
    let answer = call.send(&api).await;
    assert_eq!((answer.status, answer.header("x-amz-executed-version")), (200, Some("live")));
    let reply = unwrap(ResponseFormat::Auto, answer.body.into()).unwrap();
    assert_eq!(reply.head.headers[0].1, "text/plain; charset=utf-8");
    assert_eq!(&reply.body[..], "Hello, Jürgen!".as_bytes());

    let crash = Call { arn: &arn.replace("greet", "crash"), ..Call::default() };
    let answer = crash.send(&api).await;
    let error = function_error(answer.header("x-amz-function-error").unwrap(), &answer.body);
    assert!(answer.status == 200 && error.unhandled && error.is_timeout());

    let recorded = api.recorded();
    assert_eq!(recorded.len(), 2);
    assert_eq!((&*recorded[0].function, &recorded[0].payload[..]), ("greet", event.as_bytes()));
    api.stop().await;
}

#[tokio::test]
async fn a_stream_is_read_frame_by_frame() {
    let api = start(settings()).await;
    let base = "arn:aws:lambda:us-east-1:123456789012:function:";
    for (function, body, error) in
        [("stream", "one,two,three", None), ("stream-fail", "half", Some("Unhandled"))]
    {
        let arn = format!("{base}{function}");
        let answer =
            Call { arn: &arn, api: Some(ApiCall::InvokeWithResponseStream), ..Call::default() }
                .send(&api)
                .await;
        let (read, end) = read_stream(&answer.body);
        assert_eq!(String::from_utf8(read).unwrap(), body);
        assert_eq!(end.unwrap().as_deref(), error);
    }
    let arn = format!("{base}stream-http");
    let answer =
        Call { arn: &arn, api: Some(ApiCall::InvokeWithResponseStream), ..Call::default() }
            .send(&api)
            .await;
    let (read, _) = read_stream(&answer.body);
    let (head, body) = PreludeDecoder::default().push(&read).unwrap().unwrap();
    assert_eq!((head.status, head.headers.len()), (201, 3));
    assert_eq!(&body[..], b"<p>hello</p>");

    let arn = format!("{base}stream-cut");
    let answer =
        Call { arn: &arn, api: Some(ApiCall::InvokeWithResponseStream), ..Call::default() }
            .send(&api)
            .await;
    let (read, end) = read_stream(&answer.body);
    assert_eq!(
        (&read[..], end),
        (&b"cut"[..], Err("the stream ended before `InvokeComplete`".into()))
    );
    api.stop().await;
}

#[tokio::test]
async fn refusals_are_told_apart_and_only_a_right_signature_is_recorded() {
    let api = start(settings()).await;
    let right = Call::default();
    for (call, kind) in [
        (Call { secret: "wrong", ..right }, ErrorKind::SignatureMismatch),
        (Call { token: None, ..right }, ErrorKind::UnknownAccessKey),
        (Call { token: Some("another"), ..right }, ErrorKind::UnknownAccessKey),
        (Call { service: "execute-api", ..right }, ErrorKind::WrongService),
        (Call { region: "eu-west-1", ..right }, ErrorKind::WrongRegion),
        (Call { now: NOON - 301, ..right }, ErrorKind::ClockSkew),
    ] {
        let answer = call.send(&api).await;
        let failure = classify(
            &Answer {
                status: answer.status,
                error_type: answer.header("x-amzn-errortype"),
                date: answer.header("date"),
                retry_after: answer.header("retry-after"),
                is_http_api: false,
                body: &answer.body,
            },
            &Target { region: call.region, service: call.service, signed: true },
        );
        assert_eq!(failure.kind, kind, "{failure:?}");
        if kind == ErrorKind::ClockSkew {
            assert_eq!(failure.skew_seconds(call.now), Some(301));
            // What was learnt is enough for a second try.
            let corrected = call.now.checked_add_signed(301).unwrap();
            assert_eq!(Call { now: corrected, ..call }.send(&api).await.status, 200);
        }
    }
    assert_eq!(api.recorded().len(), 1);
    let debug = format!("{:?}", settings());
    assert!(!debug.contains(SECRET) && !debug.contains(TOKEN), "{debug}");
    api.stop().await;
}

#[tokio::test]
async fn an_asynchronous_event_past_its_limit_is_refused() {
    let api = start(settings()).await;
    let payload = vec![b'1'; 1024 * 1024 + 1];
    let event = Call { kind: Some("Event"), ..Call::default() };
    let at = Call { payload: &payload[1..], ..event }.send(&api).await;
    let past = Call { payload: &payload, ..event }.send(&api).await;
    assert_eq!((at.status, past.status), (202, 413));
    let odd = Call { kind: Some("Sometimes"), ..Call::default() }.send(&api).await;
    assert_eq!(odd.status, 400);
    api.stop().await;
}

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLE";
const NOON: u64 = 1_440_938_160;
const DEADLINE: Duration = Duration::from_secs(10);

fn settings() -> InvokeSettings {
    let mut functions = samples();
    let ending = |end: StreamEnd| {
        move |_: &_| {
            Outcome::Stream(StreamOutcome {
                content_type: "application/octet-stream".to_owned(),
                chunks: vec![b"cut".to_vec()],
                pause: Duration::from_millis(1),
                end: end.clone(),
            })
        }
    };
    let exception = StreamEnd::Exception("ServiceException".to_owned(), "sorry".to_owned());
    functions.extend(HashMap::from([
        ("stream-cut".to_owned(), Arc::new(ending(StreamEnd::Missing)) as _),
        ("stream-exception".to_owned(), Arc::new(ending(exception)) as _),
    ]));
    InvokeSettings {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        access_key: "AKIDEXAMPLE".to_owned(),
        secret_key: Secret::from(SECRET),
        session_token: Some(Secret::from(TOKEN)),
        region: "us-east-1".to_owned(),
        account_id: "123456789012".to_owned(),
        clock: || NOON,
        functions,
    }
}

async fn start(settings: InvokeSettings) -> InvokeApi {
    InvokeApi::start(settings).await.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "botocore signs by the real clock")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The bytes of a stream, and how it ended: the error code, or why it cannot be read.
fn read_stream(bytes: &[u8]) -> (Vec<u8>, Result<Option<String>, String>) {
    let mut decoder = InvokeStreamDecoder::default();
    let mut read = Vec::new();
    let mut end = None;
    for piece in bytes.chunks(7) {
        decoder.push(piece);
        while let Some(event) = decoder.next_event().unwrap() {
            match event {
                InvokeEvent::PayloadChunk(chunk) => read.extend_from_slice(&chunk),
                InvokeEvent::InvokeComplete(completion) => end = completion.error_code,
            }
        }
    }
    (read, decoder.finish().map(|()| end).map_err(|error| error.to_string()))
}

#[derive(Clone, Copy)]
struct Call<'a> {
    arn: &'a str,
    api: Option<ApiCall>,
    kind: Option<&'a str>,
    payload: &'a [u8],
    secret: &'a str,
    token: Option<&'a str>,
    region: &'a str,
    service: &'a str,
    now: u64,
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self {
            arn: "arn:aws:lambda:us-east-1:123456789012:function:echo:$LATEST",
            api: None,
            kind: None,
            payload: b"{}",
            secret: SECRET,
            token: Some(TOKEN),
            region: "us-east-1",
            service: "lambda",
            now: NOON,
        }
    }
}

impl Call<'_> {
    async fn send(&self, api: &InvokeApi) -> Received {
        let named = FunctionSettings {
            arn: Some(self.arn.to_owned()),
            endpoint: Some(format!("http://{}", api.addr())),
            ..FunctionSettings::default()
        };
        let function = FunctionRef::parse(&named, None).unwrap();
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Secret::from(self.secret),
            session_token: self.token.map(Secret::from),
        };
        let signer = Signer::new(credentials, self.region, self.service).unwrap();
        let path = function.path(self.api.unwrap_or(ApiCall::Invoke));
        let authority = function.endpoint().authority();
        let mut headers = vec![("host", authority.as_bytes())];
        headers.extend(self.kind.map(|kind| ("x-amz-invocation-type", kind.as_bytes())));
        let mut signed = Signed::default();
        let to_sign = RequestToSign {
            method: "POST",
            path,
            query: function.query(),
            headers: headers.iter().copied(),
            payload: PayloadHash::Bytes(self.payload),
        };
        signer.sign(self.now, to_sign, &mut signed);
        // HTTP/1.0: the answer comes without chunks and ends with the connection.
        let target = match function.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let mut head = format!("POST {target} HTTP/1.0\r\n");
        let own = signed.headers().map(|(name, value): (&str, &str)| (name, value.as_bytes()));
        for (name, value) in headers.iter().copied().chain(own) {
            head += &format!("{name}: {}\r\n", String::from_utf8_lossy(value));
        }
        head += &format!("content-length: {}\r\n\r\n", self.payload.len());
        let exchange = async {
            let mut stream = TcpStream::connect(api.addr()).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(self.payload).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = timeout(DEADLINE, exchange).await.expect("an answer comes in time");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Received { status, head, body: answer[end + 4..].to_vec() }
    }
}

struct Received {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, wanted: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
    }
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

//! What would be sent for a request, and why a signature was refused: for people who search for what
//! is wrong. Keys are masked, and no function runs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_aws::credentials::ProviderKind;
use sluicegate_aws::lambda::{Answer, ApiCall, Target, classify};
use sluicegate_aws::sigv4::{
    Difference, first_difference, first_difference_before_body, printed_canonical_request,
    signed_time,
};
use sluicegate_fetch::{Endpoint, Limits, exchange};
use sluicegate_gateway::exchange::host_without_port;
use sluicegate_gateway::expr::{self, Builtin, VarName, Vars};
use sluicegate_gateway::http::headers::Headers;
use sluicegate_gateway::invoker::Call;
use sluicegate_gateway::plugin::{CompileCtx, Plugin as _};
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_gateway::{argument, reach, uri};
use sluicegate_model::schema::Schema;

use super::caller::Caller;
use super::event::{self, Seen};
use super::invoke::Invoke;
use super::{AwsLambda, Reach};

/// The request that is asked about.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExplainRequest {
    /// `GET` if not given.
    pub method: Option<String>,
    /// Path and query as a client would send them; the start of the route's pattern if not given.
    pub uri: Option<String>,
    /// Header fields of the client.
    pub headers: BTreeMap<String, FieldValues>,
    /// The body.
    pub body: String,
    /// The text of AWS's refusal, to be compared.
    pub refusal: Option<String>,
    /// Also look at name, port, certificate and clock, and ask Lambda for a dry run.
    pub checks: bool,
}

/// The value of a field, or the values of one that is repeated.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum FieldValues {
    /// Once.
    One(String),
    /// So many times.
    Many(Vec<String>),
}

impl FieldValues {
    fn all(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// Where the configuration that is asked about stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExplainPlace<'a> {
    /// `plugin_attr.aws-lambda` of config.yaml.
    pub attr: Option<&'a Value>,
    /// The pattern of its route.
    pub route_uri: Option<&'a str>,
    /// It stands in the question: whoever can ask wrote it, and nobody allowed it. It gets no
    /// identity of the gateway, and nothing is connected to for it.
    pub is_given: bool,
    /// The function's URL or name is a reference's value: neither path nor query are shown.
    pub hides_target: bool,
}

/// Explains what a configuration does with a request.
///
/// # Errors
/// What is wrong with the configuration or with the request.
pub async fn explain(
    config: &Value,
    place: ExplainPlace<'_>,
    deps: &UpstreamDeps,
    request: &ExplainRequest,
) -> Result<Value, String> {
    if place.is_given {
        check_given(config, request)?;
    }
    let verify = config.get("ssl_verify") != Some(&Value::Bool(false));
    let plugin = compile(config, place.attr, deps)?;
    let asked = Asked::read(request, place.route_uri)?;
    let (caller, mut call, sign, mut told) = match &plugin.0 {
        Reach::Front(front) => {
            let (call, sign) = front.call_for(&asked);
            (front.caller(), call, sign, json!({"reach": "function_uri"}))
        }
        Reach::Invoke(invoke) => {
            let (call, function) = invoke.call_for(&asked)?;
            (invoke.caller(), call, true, json!({"reach": "function", "function": function}))
        }
    };
    let shown = Shown { target: !place.hides_target, event: plugin.makes_events() };
    told["url"] = caller.invoker.url().into();
    told["signed"] = sign.into();
    told["body_bytes"] = call.body.len().into();
    told["body"] = shown.body(&call.body).into();
    told["method"] = call.method.as_str().into();
    if sign {
        sign_and_tell(caller, &mut call, request.refusal.as_deref(), shown, &mut told).await;
    } else if caller.signing.is_some() {
        told["unsigned_because"] =
            "a key goes out, or the client brings an Authorization of its own".into();
    }
    told["path"] = shown.target(&call.path).into();
    told["query"] = call.query.as_deref().map(|query| shown.target(query)).into();
    told["headers"] = Value::Object(headers_shown(&call.headers));
    if request.checks {
        // A signature has a time, which the other side compares with its own.
        let mut steps: Vec<_> = reach::steps(&caller.invoker.url(), verify, sign, deps)
            .await
            .into_iter()
            .map(|step| json!({"name": step.name, "ok": step.ok, "detail": step.detail}))
            .collect();
        if let Reach::Invoke(invoke) = &plugin.0
            && told.get("credentials_error").is_none()
        {
            steps.push(dry_run(invoke, &asked, verify, shown, deps).await);
        }
        told["checks"] = steps.into();
    }
    Ok(told)
}

/// The Control API asks nobody for a key: what somebody writes into a question borrows nothing of the
/// gateway's, neither its identities nor its place in the network.
fn check_given(config: &Value, request: &ExplainRequest) -> Result<(), String> {
    if request.checks {
        return Err("`checks` go with `route_id`: nothing is connected to for a `config`".into());
    }
    let iam = &config["authorization"]["iam"];
    let provider = iam["provider"].as_str().unwrap_or(ProviderKind::Static.name());
    if provider != ProviderKind::Static.name() || !iam["role_arn"].is_null() {
        return Err(
            "a `config` is explained with keys of its own only, not with a `provider` or a \
             `role_arn`: write the route and give its `route_id`"
                .into(),
        );
    }
    Ok(())
}

fn compile(config: &Value, attr: Option<&Value>, deps: &UpstreamDeps) -> Result<AwsLambda, String> {
    let schema = Schema::compile(&AwsLambda::schema()).map_err(|error| error.to_string())?;
    schema.check(config)?;
    let mut filled = config.clone();
    schema.fill_defaults(&mut filled);
    let config = serde_json::from_value(filled).map_err(|error| error.to_string())?;
    let ctx =
        CompileCtx { metadata: None, attr, owner: "explain", deps: Some(deps), upstreams: None };
    AwsLambda::compile(config, &ctx).map_err(|error| error.to_string())
}

/// A request that is asked about, as far as calls are made of it.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    /// The path as it is given.
    pub(super) path: &'a str,
    /// The path that routes are matched by.
    uri: Cow<'a, [u8]>,
    pub(super) query: Option<&'a str>,
    /// What the route's `*` stands for, with its escapes.
    pub(super) rest: Option<Cow<'a, str>>,
    route_uri: Option<&'a str>,
    /// What the parameters of the route's pattern stand for, `proxy` for a `*`.
    pub(super) parameters: Vec<(&'a str, String)>,
    pub(super) headers: Headers,
    /// The same as events have them, with what the gateway tells of the client: the request is one
    /// of this machine's own.
    told: Headers,
    pub(super) body: &'a [u8],
    at: SystemTime,
}

impl<'a> Asked<'a> {
    fn read(request: &'a ExplainRequest, route_uri: Option<&'a str>) -> Result<Self, String> {
        let method = request.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes());
        let method = method.map_err(|_| "`method` is no method of HTTP".to_owned())?;
        let start = route_uri.map_or("/", |uri| uri.split('*').next().unwrap_or(uri));
        let target = request.uri.as_deref().unwrap_or(start);
        if !target.starts_with('/') || target.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err("`uri` is no path: it starts with / and has no blanks".to_owned());
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let uri = uri::normalize(path.as_bytes()).map_err(|error| format!("`uri`: {error}"))?;
        let (parameters, prefix) = captured(route_uri.unwrap_or("/"), &uri);
        let rest = prefix.and_then(|end| uri::resolve_raw_rest(path.as_bytes(), &uri[..end]));
        let mut headers = Headers::new();
        for (name, values) in &request.headers {
            values.all().iter().for_each(|value| headers.append(name, value.as_bytes()));
        }
        let mut told = headers.clone();
        for (name, value) in [
            ("X-Real-IP", LOOPBACK),
            ("X-Forwarded-For", LOOPBACK),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Port", "80"),
        ] {
            told.set(name, value.as_bytes());
        }
        Ok(Self {
            method,
            path,
            uri,
            query,
            rest,
            route_uri,
            parameters,
            headers,
            told,
            body: request.body.as_bytes(),
            at: sluicegate_gateway::core::now(),
        })
    }

    /// As events tell of it.
    pub(super) fn seen(&self) -> Seen<'_> {
        let host = self.headers.get("host").unwrap_or(b"localhost");
        Seen {
            method: self.method.as_str(),
            path: event::path(self.path.as_bytes(), &self.uri),
            query: self.query.unwrap_or_default().into(),
            headers: &self.told,
            protocol: "HTTP/1.1",
            forwarded: None,
            chunked: false,
            host: host_without_port(host),
            client_ip: LOOPBACK.to_owned(),
            request_id: REQUEST_ID,
            started_at: self.at,
            route_id: None,
            route_pattern: self.route_uri,
            parameters: self
                .parameters
                .iter()
                .map(|(name, value)| (*name, Cow::Borrowed(value.as_str())))
                .collect(),
            consumer: None,
            claims: None,
            certificate: None,
        }
    }

    /// `X-Amzn-Trace-Id`, as for a request that came.
    pub(super) fn trace_id(&self) -> String {
        event::trace_id(&self.headers, self.at, REQUEST_ID)
    }

    /// The client's fields, those of one connection left out.
    pub(super) fn fields(&self) -> Headers {
        let mut headers = self.headers.clone();
        for name in ["Host", "Content-Length", "Expect"] {
            headers.remove(name);
        }
        headers.remove_hop_by_hop();
        headers
    }
}

/// What can be told of the request alone: no consumer, no route, no connection.
impl Vars for Asked<'_> {
    fn var<'v>(&'v self, name: &VarName) -> Option<expr::Value<'v>> {
        let text = |text: &'v [u8]| Some(expr::Value::Str(text.into()));
        match name {
            VarName::Http(name) => text(self.headers.get(name)?),
            VarName::Arg(name) => argument(self.query?.as_bytes(), name.as_bytes()),
            VarName::UriParam(name) => {
                let found = self.parameters.iter().find(|(known, _)| **known == **name);
                text(found?.1.as_bytes())
            }
            VarName::Builtin(Builtin::Uri) => text(&self.uri),
            VarName::Builtin(Builtin::Args) => text(self.query?.as_bytes()),
            VarName::Builtin(Builtin::RequestMethod) => text(self.method.as_str().as_bytes()),
            _ => None,
        }
    }
}

/// What a pattern's parameters stand for in a path, and where its `*` begins.
fn captured<'p>(pattern: &'p str, uri: &[u8]) -> (Vec<(&'p str, String)>, Option<usize>) {
    let (head, has_rest) = match pattern.split_once('*') {
        Some((head, _)) => (head, true),
        None => (pattern, false),
    };
    let mut found = Vec::new();
    let mut at = 0;
    for piece in head.split_inclusive('/') {
        let name = piece.strip_prefix(':').map(|name| name.trim_end_matches('/'));
        let left = &uri[at..];
        let Some(name) = name else {
            if !left.starts_with(piece.as_bytes()) {
                return (Vec::new(), None);
            }
            at += piece.len();
            continue;
        };
        let len = left.iter().position(|byte| *byte == b'/').unwrap_or(left.len());
        let slash = usize::from(piece.ends_with('/'));
        if left.len() < len + slash {
            return (Vec::new(), None);
        }
        found.push((name, String::from_utf8_lossy(&left[..len]).into_owned()));
        at += len + slash;
    }
    if has_rest {
        found.push(("proxy", String::from_utf8_lossy(&uri[at..]).into_owned()));
    }
    (found, has_rest.then_some(at))
}

async fn sign_and_tell(
    caller: &Caller,
    call: &mut Call,
    refusal: Option<&str>,
    shown: Shown,
    told: &mut Value,
) {
    let Some(signing) = &caller.signing else { return };
    let authority = caller.invoker.authority();
    let printed = refusal.and_then(printed_canonical_request);
    let at = printed.as_deref().and_then(signed_time);
    let explained = match signing.explain(call, authority, at).await {
        Ok(explained) => explained,
        Err(unavailable) => {
            told["credentials_error"] = unavailable.to_string().into();
            return;
        }
    };
    let (region, service) = signing.target();
    told["signing"] = json!({
        "region": region,
        "service": service,
        "credential_source": explained.source,
        "access_key": masked(&explained.access_key),
        "clock_offset_seconds": explained.clock_offset,
    });
    told["canonical_request"] = shown.canonical(&explained.canonical_request).into();
    told["string_to_sign"] = explained.string_to_sign.into();
    let Some(refusal) = refusal else { return };
    let Some(theirs) = printed else {
        let answer = Answer {
            status: 403,
            error_type: None,
            date: None,
            retry_after: None,
            is_http_api: false,
            body: refusal.as_bytes(),
        };
        let failure = classify(&answer, &Target { region, service, signed: true });
        told["refusal"] =
            json!({"kind": failure.kind.name(), "likely_cause": failure.likely_cause});
        return;
    };
    // An event has an id and a time of its own: the one that was sent cannot be made again.
    let compare = if shown.event { first_difference_before_body } else { first_difference };
    told["refusal"] = match compare(&explained.canonical_request, &theirs) {
        Some(difference) => {
            let Difference { part, ours, theirs } = shown.difference(difference);
            json!({"first_difference": {"part": part, "ours": ours, "theirs": theirs}})
        }
        None if shown.event => json!({
            "first_difference": null,
            "likely_cause": "both canonical requests are the same as far as they can be compared, so the secret key is not the one of this access key, or something changed the body on its way",
        }),
        None => json!({
            "first_difference": null,
            "likely_cause": "both canonical requests are the same, so the secret key is not the one of this access key",
        }),
    };
    if shown.event {
        told["refusal"]["not_compared"] =
            "the hash of the body: an event has an id and a time of its own".into();
    }
}

/// Has Lambda check parameters and permissions, without a run.
async fn dry_run(
    invoke: &Invoke,
    asked: &Asked<'_>,
    verify: bool,
    shown: Shown,
    deps: &UpstreamDeps,
) -> Value {
    let outcome = async {
        let (mut call, _) = invoke.call_for(asked)?;
        call.path = invoke.path_for(asked, ApiCall::Invoke)?;
        call.headers.set("X-Amz-Invocation-Type", b"DryRun");
        let caller = invoke.caller();
        let signing = caller.signing.as_ref().ok_or("nobody signs")?;
        let authority = caller.invoker.authority();
        signing.sign(&mut call, authority).await.map_err(|error| error.to_string())?;
        let endpoint = Endpoint::parse(&caller.invoker.url())?;
        let target = match &call.query {
            Some(query) => format!("{}?{query}", call.path),
            None => call.path.clone(),
        };
        let mut request = http::Request::builder().method(call.method.clone()).uri(target);
        for (name, value) in call.headers.iter() {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(call.body.clone())).map_err(|e| e.to_string())?;
        let limits = Limits { time: DRY_RUN_TIME, response_bytes: 64 << 10 };
        let answer = exchange(deps, &endpoint, verify, request, limits).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status.is_success() {
            return Ok(format!(
                "Lambda answered {}: parameters and permissions are right",
                answer.status.as_u16()
            ));
        }
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let (region, service) = signing.target();
        let read = Answer {
            status: answer.status.as_u16(),
            error_type: header("x-amzn-errortype"),
            date: header("date"),
            retry_after: None,
            is_http_api: false,
            body: &answer.body,
        };
        let failure = classify(&read, &Target { region, service, signed: true });
        let mut why =
            format!("{} {}: {}", failure.status, failure.error_type, failure.likely_cause);
        if let Some(printed) = printed_canonical_request(&String::from_utf8_lossy(&answer.body))
            && let Ok(explained) =
                signing.explain(&mut call, authority, signed_time(&printed)).await
            && let Some(difference) = first_difference(&explained.canonical_request, &printed)
        {
            why.push_str(&format!("; {}", shown.difference(difference)));
        }
        Err::<String, String>(why)
    };
    let outcome = outcome.await;
    json!({
        "name": "dry_run",
        "ok": outcome.is_ok(),
        "detail": outcome.unwrap_or_else(|why| why),
    })
}

/// What of a call is shown.
#[derive(Clone, Copy)]
struct Shown {
    /// Path and query.
    target: bool,
    /// The body is an event.
    event: bool,
}

impl Shown {
    fn target(self, text: &str) -> String {
        if self.target { text.to_owned() } else { MASK.to_owned() }
    }

    /// The beginning of the body; of an event without its stage variables, which hold what the
    /// configuration keeps from everybody else.
    fn body(self, body: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(body);
        if self.event
            && let Ok(mut event) = serde_json::from_slice::<Value>(body)
            && let Some(Value::Object(variables)) = event.get_mut("stageVariables")
        {
            variables.values_mut().for_each(|value| *value = MASK.into());
            text = event.to_string().into();
        }
        text.chars().take(BODY_SHOWN).collect()
    }

    fn canonical(self, canonical: &str) -> String {
        let line = |(at, line): (usize, &str)| match SECRET_LINES
            .iter()
            .find(|name| line.starts_with(**name))
        {
            Some(name) => format!("{name}{MASK}"),
            None if at == 1 || at == 2 && !line.is_empty() => self.target(line),
            None => line.to_owned(),
        };
        canonical.split('\n').enumerate().map(line).collect::<Vec<_>>().join("\n")
    }

    fn difference(self, mut difference: Difference) -> Difference {
        if matches!(difference.part, "path" | "query") {
            difference.ours = self.target(&difference.ours);
            difference.theirs = self.target(&difference.theirs);
        }
        difference
    }
}

/// Fields with everything secret masked; one that is repeated is a list.
fn headers_shown(headers: &Headers) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(value);
        let value = match name.as_str() {
            "x-api-key" | "x-amz-security-token" | "x-amz-client-context" | "cookie" => {
                MASK.to_owned()
            }
            "authorization" => match value.split_once(", SignedHeaders=") {
                Some((_, rest)) => {
                    let signed = rest.split(',').next().unwrap_or_default();
                    format!(
                        "AWS4-HMAC-SHA256 Credential=***, SignedHeaders={signed}, Signature=***"
                    )
                }
                None => MASK.to_owned(),
            },
            _ => value.into_owned(),
        };
        match all.get_mut(&name) {
            None => {
                all.insert(name, value.into());
            }
            Some(Value::Array(values)) => values.push(value.into()),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    all
}

/// The ends of an access key's id: enough to tell keys apart.
fn masked(key: &str) -> String {
    match (key.get(..4), key.len().checked_sub(4).and_then(|at| key.get(at..))) {
        (Some(start), Some(end)) if key.len() >= 12 => format!("{start}…{end}"),
        _ => "***".to_owned(),
    }
}

/// Lines of canonical requests that are masked.
const SECRET_LINES: [&str; 2] = ["x-amz-security-token:", "x-amz-client-context:"];
const MASK: &str = "***";
/// Stands for the id that a request would have.
const REQUEST_ID: &str = "00000000000000000000000000000000";
/// Where a request that is asked about comes from.
const LOOPBACK: &str = "127.0.0.1";
/// Characters of a body that are shown.
const BODY_SHOWN: usize = 4096;
/// How long a dry run may take.
const DRY_RUN_TIME: Duration = Duration::from_secs(10);

/// For [`Asked`]: a body as a call takes it.
pub(super) fn held(body: Vec<u8>) -> sluicegate_gateway::invoker::HeldBody {
    Bytes::from(body).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_field_is_shown_as_often_as_it_is_sent_and_secrets_never() {
        let mut headers = Headers::new();
        for (name, value) in [
            ("X-Tea", "green"),
            ("x-tea", "black"),
            ("X-TEA", "white"),
            ("accept", "*/*"),
            ("x-api-key", "k"),
            ("X-Amz-Client-Context", "YWJj"),
        ] {
            headers.append(name, value.as_bytes());
        }
        let shown = Value::Object(headers_shown(&headers));
        assert_eq!(
            shown,
            json!({
                "x-tea": ["green", "black", "white"], "accept": "*/*", "x-api-key": "***",
                "x-amz-client-context": "***",
            })
        );
    }

    #[test]
    fn parameters_of_a_pattern_are_found_as_routes_find_them() {
        for (pattern, path, expected, rest) in [
            ("/a", "/a", vec![], None),
            ("/fn/*", "/fn/a/b", vec![("proxy", "a/b")], Some(4)),
            ("/t/:fn/run", "/t/greet/run", vec![("fn", "greet")], None),
            ("/t/:fn", "/t/greet", vec![("fn", "greet")], None),
            ("/t/:a/:b/*", "/t/x/y/z", vec![("a", "x"), ("b", "y"), ("proxy", "z")], Some(7)),
            ("/t/:a/*", "/t/x", vec![], None),
            ("/fn/*", "/other", vec![], None),
        ] {
            let (found, at) = captured(pattern, path.as_bytes());
            let found: Vec<_> = found.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!((found, at), (expected, rest), "{pattern} {path}");
        }
    }

    #[test]
    fn what_a_reference_stands_for_is_not_shown_as_path_or_query() {
        let hidden = Shown { target: false, event: true };
        assert_eq!(
            hidden.canonical("GET\n/secret\na=b\nhost:h\nx-amz-security-token:t\nx-amz-client-context:c\n\nhost\nhash"),
            "GET\n***\n***\nhost:h\nx-amz-security-token:***\nx-amz-client-context:***\n\nhost\nhash"
        );
        let event = br#"{"version":"2.0","stageVariables":{"key":"value"},"body":"b"}"#;
        assert_eq!(
            hidden.body(event),
            r#"{"version":"2.0","stageVariables":{"key":"***"},"body":"b"}"#
        );
        assert_eq!(hidden.body(br#"{"stageVariables":null}"#), r#"{"stageVariables":null}"#);
        let difference =
            Difference { part: "path", ours: "/secret".into(), theirs: "/secret/".into() };
        let difference = hidden.difference(difference);
        assert_eq!((&*difference.ours, &*difference.theirs), ("***", "***"));
    }
}

//! What would be sent for a request, and why a signature was refused: for people who search for what
//! is wrong. Keys are masked, and no function runs.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_aws::event::EventRequest;
use sluicegate_aws::lambda::{Answer, ApiCall, Target, classify};
use sluicegate_aws::sigv4::{first_difference, printed_canonical_request, signed_time};
use sluicegate_fetch::{Endpoint, Limits, exchange};
use sluicegate_gateway::expr::{self, VarName, Vars};
use sluicegate_gateway::http::headers::Headers;
use sluicegate_gateway::invoker::Call;
use sluicegate_gateway::plugin::{CompileCtx, Plugin as _};
use sluicegate_gateway::reach;
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_model::schema::Schema;

use super::caller::Caller;
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
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// The text of AWS's refusal, to be compared.
    pub refusal: Option<String>,
    /// Also look at name, port, certificate and clock, and ask Lambda for a dry run.
    pub checks: bool,
}

/// Explains what a configuration does with a request. `route_uri` is the pattern of its route.
///
/// # Errors
/// What is wrong with the configuration or with the request.
pub async fn explain(
    config: &Value,
    attr: Option<&Value>,
    deps: &UpstreamDeps,
    route_uri: Option<&str>,
    request: &ExplainRequest,
) -> Result<Value, String> {
    let verify = config.get("ssl_verify") != Some(&Value::Bool(false));
    let plugin = compile(config, attr, deps)?;
    let asked = Asked::read(request, route_uri)?;
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
    told["url"] = caller.invoker.url().into();
    told["signed"] = sign.into();
    let body = String::from_utf8_lossy(&call.body);
    told["body_bytes"] = call.body.len().into();
    told["body"] = body.chars().take(BODY_SHOWN).collect::<String>().into();
    told["method"] = call.method.as_str().into();
    if sign {
        sign_and_tell(caller, &mut call, request.refusal.as_deref(), &mut told).await;
    } else if caller.signing.is_some() {
        told["unsigned_because"] =
            "a key goes out, or the client brings an Authorization of its own".into();
    }
    told["path"] = call.path.as_str().into();
    told["query"] = call.query.as_deref().into();
    told["headers"] = Value::Object(shown(&call.headers));
    if request.checks {
        let mut steps: Vec<_> = reach::steps(&caller.invoker.url(), verify, deps)
            .await
            .into_iter()
            .map(|step| json!({"name": step.name, "ok": step.ok, "detail": step.detail}))
            .collect();
        if let Reach::Invoke(invoke) = &plugin.0
            && told.get("credentials_error").is_none()
        {
            steps.push(dry_run(invoke, &asked, verify, deps).await);
        }
        told["checks"] = steps.into();
    }
    Ok(told)
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
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// What the route's `*` stands for.
    pub(super) rest: Option<&'a str>,
    pub(super) route_uri: Option<&'a str>,
    pub(super) headers: Vec<(&'a str, &'a [u8])>,
    pub(super) body: &'a [u8],
}

impl<'a> Asked<'a> {
    fn read(request: &'a ExplainRequest, route_uri: Option<&'a str>) -> Result<Self, String> {
        let method = request.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes());
        let method = method.map_err(|_| "`method` is no method of HTTP".to_owned())?;
        let start = route_uri.map_or("/", |uri| uri.split('*').next().unwrap_or(uri));
        let uri = request.uri.as_deref().unwrap_or(start);
        if !uri.starts_with('/') || uri.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err("`uri` is no path: it starts with / and has no blanks".to_owned());
        }
        let (path, query) = match uri.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (uri, None),
        };
        let rest = route_uri.and_then(|uri| path.strip_prefix(uri.strip_suffix('*')?));
        let headers: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let body = request.body.as_bytes();
        Ok(Self { method, path, query, rest, route_uri, headers, body })
    }

    /// The client's fields that get into an event, and those of the gateway: the request is one of
    /// this machine's own.
    pub(super) fn kept(&self, keep: impl Fn(&str) -> bool) -> Vec<(&str, &[u8])> {
        let told: [(&str, &[u8]); 4] = [
            ("X-Real-IP", LOOPBACK.as_bytes()),
            ("X-Forwarded-For", LOOPBACK.as_bytes()),
            ("X-Forwarded-Proto", b"http"),
            ("X-Forwarded-Port", b"80"),
        ];
        let client = self.headers.iter().copied();
        client
            .filter(|(name, _)| {
                keep(name) && !told.iter().any(|own| own.0.eq_ignore_ascii_case(name))
            })
            .chain(told)
            .collect()
    }

    /// As an event's encoder takes it.
    pub(super) fn event<'b>(
        &'b self,
        headers: &'b [(&'b str, &'b [u8])],
        parameters: &'b [(&'b str, &'b str)],
    ) -> EventRequest<'b> {
        EventRequest {
            method: self.method.as_str(),
            path: self.path,
            query: self.query.unwrap_or_default(),
            headers,
            body: self.body,
            host: "localhost",
            client_ip: LOOPBACK,
            request_id: "explain",
            route_pattern: self.route_uri,
            path_parameters: parameters,
            ..EventRequest::default()
        }
    }

    /// What a parameter of the route's pattern stands for; `*`: what the pattern ends in.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        if name == "*" {
            return self.rest;
        }
        let mut parts = self.route_uri?.split('/').zip(self.path.split('/'));
        parts.find(|(part, _)| part.strip_prefix(':') == Some(name)).map(|(_, value)| value)
    }

    /// The client's fields, those of one connection left out.
    pub(super) fn fields(&self) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in &self.headers {
            headers.append(name, value);
        }
        headers.remove("Host");
        headers.remove("Content-Length");
        headers.remove_hop_by_hop();
        headers
    }
}

/// What can be said of a request that did not come: its fields, its query, its path.
impl Vars for Asked<'_> {
    fn var<'a>(&'a self, name: &VarName) -> Option<expr::Value<'a>> {
        let value = match name {
            VarName::Http(name) => {
                self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name))?.1
            }
            VarName::Arg(name) => {
                let mut pairs = self.query?.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(own, _)| **own == **name)?.1.as_bytes()
            }
            VarName::UriParam(name) => self.parameter(name)?.as_bytes(),
            _ => return None,
        };
        Some(expr::Value::Str(value.into()))
    }
}

async fn sign_and_tell(caller: &Caller, call: &mut Call, refusal: Option<&str>, told: &mut Value) {
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
    told["canonical_request"] = without_token(&explained.canonical_request).into();
    told["string_to_sign"] = explained.string_to_sign.into();
    let Some(refusal) = refusal else { return };
    told["refusal"] = match printed {
        None => {
            let answer = Answer {
                status: 403,
                error_type: None,
                date: None,
                retry_after: None,
                body: refusal.as_bytes(),
            };
            let failure = classify(&answer, &Target { region, service });
            json!({"kind": failure.kind.name(), "likely_cause": failure.likely_cause})
        }
        Some(theirs) => match first_difference(&explained.canonical_request, &theirs) {
            Some(difference) if difference.ours.starts_with(TOKEN) => {
                json!({"first_difference": {"part": "session token", "ours": "***", "theirs": "***"}})
            }
            Some(difference) => json!({"first_difference": {
                "part": difference.part, "ours": difference.ours, "theirs": difference.theirs,
            }}),
            None => json!({
                "first_difference": null,
                "likely_cause": "both canonical requests are the same, so the secret key is not the one of this access key",
            }),
        },
    };
}

/// Has Lambda check parameters and permissions, without a run.
async fn dry_run(invoke: &Invoke, asked: &Asked<'_>, verify: bool, deps: &UpstreamDeps) -> Value {
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
            body: &answer.body,
        };
        let failure = classify(&read, &Target { region, service });
        let mut why =
            format!("{} {}: {}", failure.status, failure.error_type, failure.likely_cause);
        if let Some(printed) = printed_canonical_request(&String::from_utf8_lossy(&answer.body))
            && let Ok(explained) =
                signing.explain(&mut call, authority, signed_time(&printed)).await
            && let Some(difference) = first_difference(&explained.canonical_request, &printed)
            && !difference.ours.starts_with(TOKEN)
        {
            why.push_str(&format!("; {difference}"));
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

/// Fields with everything secret masked.
fn shown(headers: &Headers) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(value);
        let value = match name.as_str() {
            "x-api-key" | "x-amz-security-token" | "cookie" => "***".to_owned(),
            "authorization" => match value.split_once(", SignedHeaders=") {
                Some((_, rest)) => {
                    let signed = rest.split(',').next().unwrap_or_default();
                    format!(
                        "AWS4-HMAC-SHA256 Credential=***, SignedHeaders={signed}, Signature=***"
                    )
                }
                None => "***".to_owned(),
            },
            _ => value.into_owned(),
        };
        all.insert(name, value.into());
    }
    all
}

fn without_token(canonical: &str) -> String {
    let line = |line: &str| match line.starts_with(TOKEN) {
        true => format!("{TOKEN}***"),
        false => line.to_owned(),
    };
    canonical.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// The ends of an access key's id: enough to tell keys apart.
fn masked(key: &str) -> String {
    match (key.get(..4), key.len().checked_sub(4).and_then(|at| key.get(at..))) {
        (Some(start), Some(end)) if key.len() >= 12 => format!("{start}…{end}"),
        _ => "***".to_owned(),
    }
}

const TOKEN: &str = "x-amz-security-token:";
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

//! One call to AWS: signed, sent, and sent once more where a refusal says that it did not run and
//! what to do better.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluicegate_aws::lambda::{
    Answer, ErrorKind, Failure, HTTP_API_BODY_MAX, Target, classify, is_http_api_refusal,
};
use sluicegate_aws::sigv4::{first_difference, printed_canonical_request, signed_time};
use sluicegate_gateway::body::Body;
use sluicegate_gateway::client::Received;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{Call, FunctionInvoker};
use sluicegate_gateway::plugin::PluginError;
use tracing::{error, warn};

use super::identity::Signing;
use super::mask::masked;
use super::refusals::AwsRefusals;

/// How calls are signed and sent.
pub(super) struct Caller {
    pub(super) invoker: FunctionInvoker,
    pub(super) signing: Option<Signing>,
    /// The far side is the Invoke API: every status from 300 on is its own, not the function's.
    pub(super) is_api: bool,
    pub(super) refusals: Arc<AwsRefusals>,
}

/// What AWS answered.
pub(super) struct Answered {
    pub(super) received: Received,
    /// What the answer means, where AWS refused the call.
    pub(super) refusal: Option<Box<Failure>>,
}

impl Caller {
    /// Sends a call, signed if `sign`.
    pub(super) async fn send(
        &self,
        exchange: &mut Exchange,
        mut call: Call,
        sign: bool,
    ) -> Result<Answered, PluginError> {
        let signing = self.signing.as_ref().filter(|_| sign);
        let used = match signing {
            None => None,
            Some(signing) => match signing.sign(&mut call, self.invoker.authority()).await {
                Ok(version) => Some((signing, version)),
                Err(unavailable) => {
                    error!(route = exchange.route_id(), cause = %unavailable, "A function was not called: there are no credentials. docs/lambda-credentials.md has the causes.");
                    return Err(PluginError {
                        status: http::StatusCode::SERVICE_UNAVAILABLE,
                        cause: unavailable.to_string(),
                    });
                }
            },
        };
        let received = self.invoker.invoke(exchange, &call).await?;
        let Some(suspicion) = self.suspicion(&received) else {
            exchange.core.pool.recycle(call.headers);
            return Ok(Answered { received, refusal: None });
        };
        // Rare, and its state is not part of every request's.
        Box::pin(self.refused(exchange, call, received, suspicion, used)).await
    }

    /// Counts a call that AWS refused, or a function that failed.
    pub(super) fn note(&self, exchange: &Exchange, kind: &'static str, request_id: &str) {
        exchange.core.counters.function_refusals.add(1);
        self.refusals.note(exchange.route_id(), kind, request_id);
    }

    /// Whether an answer may be AWS's own, and why.
    fn suspicion(&self, received: &Received) -> Option<Suspicion> {
        let status = received.status.as_u16();
        if status >= 300 && self.is_api {
            return Some(Suspicion::Status);
        }
        if status < 400 {
            return None;
        }
        if received.headers.contains("x-amzn-errortype") {
            return Some(Suspicion::ErrorType);
        }
        let is_short = || received.body.remaining().is_some_and(|n| n <= HTTP_API_BODY_MAX);
        (received.headers.contains(HTTP_API_ID) && is_short()).then_some(Suspicion::HttpApi)
    }

    async fn refused(
        &self,
        exchange: &mut Exchange,
        mut call: Call,
        mut received: Received,
        suspicion: Suspicion,
        used: Option<(&Signing, super::identity::Version)>,
    ) -> Result<Answered, PluginError> {
        let signed = used.is_some();
        let Some((mut said, mut failure)) = self.read(&mut received, suspicion, signed).await
        else {
            return Ok(Answered { received, refusal: None });
        };
        if let Some((signing, version)) = used {
            let authority = self.invoker.authority();
            // Behind a URL a function may answer so itself, and must not run twice for it.
            let may_repeat = self.is_api || call.method.is_safe();
            if signing.sign_again(&failure, version, &mut call, authority, may_repeat).await {
                warn!(
                    route = exchange.route_id(), function = %authority, kind = failure.kind.name(),
                    "AWS refused a call, which is signed anew and sent once more."
                );
                drop(received);
                received = self.invoker.invoke(exchange, &call).await?;
                let again = match self.suspicion(&received) {
                    Some(suspicion) => self.read(&mut received, suspicion, signed).await,
                    None => None,
                };
                match again {
                    Some(again) => (said, failure) = again,
                    None => return Ok(Answered { received, refusal: None }),
                }
            }
        }
        self.note(exchange, failure.kind.name(), request_id(&received));
        // What AWS says may go on to the client, and the session token is not for it.
        let token = call.headers.get(TOKEN).filter(|_| signed).map(<[u8]>::to_vec);
        let is_compressed = |of: &Received| {
            of.headers
                .get("content-encoding")
                .is_some_and(|it| !it.eq_ignore_ascii_case(b"identity"))
        };
        if token.is_some() && is_compressed(&received) {
            // Nobody finds it in there.
            received.body = Body::Empty;
            received.headers.remove("Content-Encoding");
        }
        received.body = masked(std::mem::take(&mut received.body), token.as_deref());
        let difference = match (used, failure.kind) {
            (Some((signing, _)), ErrorKind::SignatureMismatch) => {
                let authority = self.invoker.authority();
                first_difference_to(signing, &mut call, authority, &said).await
            }
            _ => None,
        };
        error!(
            route = exchange.route_id(),
            function = %self.invoker.authority(),
            status = failure.status,
            kind = failure.kind.name(),
            aws_error_type = failure.error_type,
            aws_request_id = request_id(&received),
            aws_message = failure.message,
            likely_cause = failure.likely_cause,
            first_difference = difference.as_deref().unwrap_or_default(),
            reason = failure.reason.as_deref().unwrap_or_default(),
            "AWS refused a call of a function."
        );
        Ok(Answered { received, refusal: Some(Box::new(failure)) })
    }

    /// Reads what AWS says: the beginning of the body, which stays to be read. `None`: it is not
    /// AWS's own after all.
    async fn read(
        &self,
        received: &mut Received,
        suspicion: Suspicion,
        signed: bool,
    ) -> Option<(Bytes, Failure)> {
        let said = received.body.peek_start(REFUSAL_BYTES_MAX, REFUSAL_TIME_MAX).await;
        let status = received.status.as_u16();
        let is_http_api = suspicion == Suspicion::HttpApi;
        if is_http_api && !is_http_api_refusal(status, &said) {
            return None;
        }
        let headers = &received.headers;
        let answer = Answer {
            status,
            error_type: headers.get_str("x-amzn-errortype"),
            date: headers.get_str("date"),
            retry_after: headers.get_str("retry-after"),
            is_http_api,
            body: &said,
        };
        let (region, service) = self.signing.as_ref().map_or(("", ""), Signing::target);
        let failure = classify(&answer, &Target { region, service, signed });
        Some((said, failure))
    }
}

/// Why an answer may be AWS's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// The Invoke API has no other of such a status.
    Status,
    /// It names an error of AWS.
    ErrorType,
    /// It came through an HTTP API and is as short as those of the API itself.
    HttpApi,
}

/// Where the canonical request that AWS printed differs from the one that was signed.
async fn first_difference_to(
    signing: &Signing,
    call: &mut Call,
    authority: &str,
    said: &[u8],
) -> Option<String> {
    let printed = printed_canonical_request(&String::from_utf8_lossy(said))?;
    let explained = signing.explain(call, authority, signed_time(&printed)).await.ok()?;
    Some(match first_difference(&explained.canonical_request, &printed) {
        Some(difference) => difference.to_string(),
        None => "none: the secret key is not that of the access key".to_owned(),
    })
}

/// AWS's id of a request, or nothing; no more than its beginning, should it be longer than AWS's are.
pub(super) fn request_id(received: &Received) -> &str {
    let headers = &received.headers;
    let id = headers
        .get_str(REQUEST_ID)
        .or_else(|| headers.get_str("x-amz-apigw-id"))
        .or_else(|| headers.get_str(HTTP_API_ID))
        .unwrap_or_default();
    &id[..id.floor_char_boundary(REQUEST_ID_BYTES_MAX)]
}

/// Passes AWS's id on to the client, whatever becomes of the answer.
pub(super) fn tell_request_id(exchange: &mut Exchange, received: &Received) {
    if let Some(id) = received.headers.get(REQUEST_ID) {
        exchange.add_response_headers().set(REQUEST_ID, id);
    }
}

/// The field with AWS's id of a request.
pub(super) const REQUEST_ID: &str = "x-amzn-requestid";
/// The id of a request at an HTTP API, which its refusals and the answers of functions have.
const HTTP_API_ID: &str = "apigw-requestid";
/// The most of an id that is logged and counted. AWS's have 36 bytes, and some fronts' a few more.
const REQUEST_ID_BYTES_MAX: usize = 128;
const TOKEN: &str = "x-amz-security-token";
/// The most of a refusal's body that is looked at.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// How long the body of a refusal may take to come.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(3);

//! One call to AWS: signed, sent, and sent once more where a refusal says that it did not run and
//! what to do better.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_aws::lambda::{Answer, ErrorKind, Failure, Target, classify, hide_session_token};
use sluicegate_aws::sigv4::{first_difference, printed_canonical_request, signed_time};
use sluicegate_gateway::body::Body;
use sluicegate_gateway::client::Received;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{Call, FunctionInvoker};
use sluicegate_gateway::plugin::PluginError;
use tracing::{error, warn};

use super::identity::Signing;
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
        if !self.is_refusal(&received) {
            exchange.core.pool.recycle(call.headers);
            return Ok(Answered { received, refusal: None });
        }
        // Rare, and its state is not part of every request's.
        Box::pin(self.refused(exchange, call, received, used)).await
    }

    /// Counts a call that AWS refused, or a function that failed.
    pub(super) fn note(&self, exchange: &Exchange, kind: &'static str, request_id: &str) {
        exchange.core.counters.function_refusals.add(1);
        self.refusals.note(exchange.route_id(), kind, request_id);
    }

    fn is_refusal(&self, received: &Received) -> bool {
        let status = received.status.as_u16();
        status >= 300 && self.is_api
            || status >= 400 && received.headers.contains("x-amzn-errortype")
    }

    async fn refused(
        &self,
        exchange: &mut Exchange,
        mut call: Call,
        mut received: Received,
        used: Option<(&Signing, super::identity::Version)>,
    ) -> Result<Answered, PluginError> {
        let mut failure = self.read(&mut received).await;
        if let Some((signing, version)) = used {
            let authority = self.invoker.authority();
            if signing.sign_again(&failure, version, &mut call, authority).await {
                warn!(
                    route = exchange.route_id(), function = %authority, kind = failure.kind.name(),
                    "AWS refused a call, which is signed anew and sent once more."
                );
                drop(received);
                received = self.invoker.invoke(exchange, &call).await?;
                if !self.is_refusal(&received) {
                    return Ok(Answered { received, refusal: None });
                }
                failure = self.read(&mut received).await;
            }
        }
        self.note(exchange, failure.kind.name(), request_id(&received));
        let difference = match (used, failure.kind) {
            (Some((signing, _)), ErrorKind::SignatureMismatch) => {
                let authority = self.invoker.authority();
                first_difference_to(signing, &mut call, authority, &received.body).await
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
        // What AWS says may go on to the client, and the session token is not for it.
        let said = String::from_utf8_lossy(received.body.data());
        if let Cow::Owned(said) = hide_session_token(&said) {
            received.body = Body::from_bytes(said);
        }
        Ok(Answered { received, refusal: Some(Box::new(failure)) })
    }

    /// Reads what AWS says. A short body is taken and put back.
    async fn read(&self, received: &mut Received) -> Failure {
        let mut body = bytes::Bytes::new();
        if received.body.remaining().is_some_and(|n| n <= REFUSAL_BYTES_MAX) {
            let whole = received.body.read_limited(REFUSAL_BYTES_MAX);
            if let Ok(Ok(whole)) = tokio::time::timeout(REFUSAL_TIME_MAX, whole).await {
                body = whole;
            }
            received.body = Body::from_bytes(body.clone());
        }
        let headers = &received.headers;
        let answer = Answer {
            status: received.status.as_u16(),
            error_type: headers.get_str("x-amzn-errortype"),
            date: headers.get_str("date"),
            retry_after: headers.get_str("retry-after"),
            body: &body,
        };
        let (region, service) = self.signing.as_ref().map_or(("", ""), Signing::target);
        classify(&answer, &Target { region, service })
    }
}

/// Where the canonical request that AWS printed differs from the one that was signed.
async fn first_difference_to(
    signing: &Signing,
    call: &mut Call,
    authority: &str,
    said: &Body,
) -> Option<String> {
    let printed = printed_canonical_request(&String::from_utf8_lossy(said.data()))?;
    let explained = signing.explain(call, authority, signed_time(&printed)).await.ok()?;
    Some(match first_difference(&explained.canonical_request, &printed) {
        Some(difference) if difference.ours.starts_with("x-amz-security-token:") => {
            "the session token".to_owned()
        }
        Some(difference) => difference.to_string(),
        None => "none: the secret key is not that of the access key".to_owned(),
    })
}

/// AWS's id of a request, or nothing.
pub(super) fn request_id(received: &Received) -> &str {
    let headers = &received.headers;
    headers.get_str(REQUEST_ID).or_else(|| headers.get_str("x-amz-apigw-id")).unwrap_or_default()
}

/// Passes AWS's id on to the client, whatever becomes of the answer.
pub(super) fn tell_request_id(exchange: &mut Exchange, received: &Received) {
    if let Some(id) = received.headers.get(REQUEST_ID) {
        exchange.response_headers.set(REQUEST_ID, id);
    }
}

/// The field with AWS's id of a request.
pub(super) const REQUEST_ID: &str = "x-amzn-requestid";
/// The largest body of a refusal that is looked at.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;
/// How long the body of a refusal may take to come.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(3);

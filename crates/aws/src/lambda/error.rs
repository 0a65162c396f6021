//! What a refusal of AWS means: its kind, whether another try is safe, and one sentence that says
//! what to look at.
//!
//! The errors of the Invoke API: <https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html>.
//! The 403 texts of signature checks come from any AWS service, so fronts (API Gateway, function
//! URLs) are read here, too. A function's own failure is no refusal: it comes with status 200 and
//! is read by [`function_error`].

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

/// Reads an answer whose status is 300 or above.
///
/// ```
/// use sluicegate_aws::lambda::{Answer, ErrorKind, Target, classify};
///
/// let answer = Answer {
///     status: 403,
///     error_type: Some("InvalidSignatureException:http://internal.amazon.com/coral/"),
///     date: Some("Sun, 22 Nov 2026 12:00:00 GMT"),
///     retry_after: None,
///     is_http_api: false,
///     body: br#"{"message":"Signature expired: 20261122T110000Z is now earlier than ..."}"#,
/// };
/// let target = Target { region: "us-east-1", service: "lambda", signed: true };
/// let failure = classify(&answer, &target);
/// assert_eq!(failure.kind, ErrorKind::ClockSkew);
/// assert_eq!(failure.skew_seconds(1_795_345_200), Some(3600));
/// ```
pub fn classify(answer: &Answer<'_>, target: &Target<'_>) -> Failure {
    let said: Value = serde_json::from_slice(answer.body).unwrap_or_default();
    let text = |names: &[&str]| {
        let mut texts = names.iter().filter_map(|name| said.get(name)?.as_str());
        texts.find(|text| !text.is_empty())
    };
    let error_type = answer.error_type.or_else(|| text(&["__type", "code"]));
    let error_type = error_type.map(bare_type).unwrap_or_default();
    let message = limited(text(&["message", "Message", "errorMessage"]).unwrap_or_default());
    let reason = text(&["Reason"]).map(limited);
    let kind = kind_of(answer, target, &error_type, &message);
    let retry_after = answer
        .retry_after
        .and_then(|seconds| seconds.trim().parse().ok())
        .or_else(|| number(said.get("retryAfterSeconds")?))
        .map(|seconds: u64| Duration::from_secs(seconds.min(RETRY_AFTER_SECONDS_MAX)));
    let server_time = answer.date.and_then(|date| {
        let date = httpdate::parse_http_date(date).ok()?;
        Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
    });
    Failure {
        kind,
        retry: kind.retry(),
        likely_cause: cause_of_front(kind, answer, target, &error_type)
            .map_or_else(|| likely_cause(kind, &message, target), str::to_owned),
        status: answer.status,
        error_type,
        message,
        reason,
        retry_after,
        server_time,
    }
}

/// An answer of AWS, as far as it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// `x-amzn-errortype`.
    pub error_type: Option<&'a str>,
    /// `date`.
    pub date: Option<&'a str>,
    /// `retry-after`.
    pub retry_after: Option<&'a str>,
    /// An HTTP API of API Gateway says it ([`is_http_api_refusal`]), which names no error.
    pub is_http_api: bool,
    /// The body, or its beginning.
    pub body: &'a [u8],
}

/// What the call was signed for, if it was.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The region.
    pub region: &'a str,
    /// The service.
    pub service: &'a str,
    /// Whether it was signed here.
    pub signed: bool,
}

/// Whether an answer with `apigw-requestid` and no error type is one of an HTTP API itself, and not of
/// the function behind it: both have that header, so only the few bodies count that the API writes.
pub fn is_http_api_refusal(status: u16, body: &[u8]) -> bool {
    let text = match status {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => return false,
    };
    body.strip_prefix(b"{\"message\":\"")
        .and_then(|rest| rest.strip_suffix(b"\"}"))
        .is_some_and(|said| said == text.as_bytes())
}

/// The longest body that [`is_http_api_refusal`] takes for the API's own.
pub const HTTP_API_BODY_MAX: u64 = 64;

/// A refusal of AWS, read. Its texts are for logs; they come from AWS and are cut to 1 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it is.
    pub kind: ErrorKind,
    /// Whether the call may be sent again.
    pub retry: Retry,
    /// One sentence: what to look at first.
    pub likely_cause: String,
    /// The status of the answer.
    pub status: u16,
    /// AWS's name of the error, without what follows a `:`; empty when AWS gave none.
    pub error_type: String,
    /// AWS's text.
    pub message: String,
    /// Why a call was throttled.
    pub reason: Option<String>,
    /// How long AWS asks to wait, at most five minutes.
    pub retry_after: Option<Duration>,
    /// What AWS's clock said, in seconds since 1970.
    pub server_time: Option<u64>,
}

impl Failure {
    /// What to add to our clock to get AWS's. Only a clock error tells: elsewhere `Date` may come
    /// from a cache.
    pub fn skew_seconds(&self, now: u64) -> Option<i64> {
        if self.kind != ErrorKind::ClockSkew {
            return None;
        }
        Some(i64::try_from(self.server_time?).ok()? - i64::try_from(now).ok()?)
    }
}

/// What a refusal is. [`ErrorKind::name`] is a short label for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request carries no credentials, or the path names nothing at API Gateway.
    MissingAuthentication,
    /// The API key is missing, unknown or disabled.
    ApiKeyRefused,
    /// Signed for another region.
    WrongRegion,
    /// Signed for another service.
    WrongService,
    /// The time of the signature is too far from AWS's clock.
    ClockSkew,
    /// The signature is not the one AWS computes.
    SignatureMismatch,
    /// The access key is unknown, inactive or belongs to another partition.
    UnknownAccessKey,
    /// Temporary credentials are over.
    ExpiredCredentials,
    /// The identity lacks a permission.
    AccessDenied,
    /// Nothing of that name.
    FunctionNotFound,
    /// A parameter, a header or the payload is wrong.
    InvalidRequest,
    /// The call does not fit how the function is set up.
    InvalidState,
    /// The payload is too large.
    TooLarge,
    /// The content type is refused.
    UnsupportedMediaType,
    /// Too many calls; the function was not run.
    Throttled,
    /// A quota of the account is used up.
    QuotaExceeded,
    /// The function is being made ready.
    NotReady,
    /// A snapshot, a file system or a network device was not there in time; the function was not run.
    EnvironmentTimeout,
    /// A snapshot or a file system failed.
    EnvironmentFailed,
    /// The key that encrypts the function is disabled, denied or gone.
    EncryptionKey,
    /// The function's network, runtime, code or role is misconfigured.
    Misconfigured,
    /// The same durable execution runs already, with another payload.
    AlreadyStarted,
    /// AWS failed; the function may have run.
    Service,
    /// Nothing above.
    Unknown,
}

impl ErrorKind {
    /// A label: lower case, words joined by `_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingAuthentication => "missing_authentication",
            Self::ApiKeyRefused => "api_key_refused",
            Self::WrongRegion => "wrong_region",
            Self::WrongService => "wrong_service",
            Self::ClockSkew => "clock_skew",
            Self::SignatureMismatch => "signature_mismatch",
            Self::UnknownAccessKey => "unknown_access_key",
            Self::ExpiredCredentials => "expired_credentials",
            Self::AccessDenied => "access_denied",
            Self::FunctionNotFound => "function_not_found",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidState => "invalid_state",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Throttled => "throttled",
            Self::QuotaExceeded => "quota_exceeded",
            Self::NotReady => "not_ready",
            Self::EnvironmentTimeout => "environment_timeout",
            Self::EnvironmentFailed => "environment_failed",
            Self::EncryptionKey => "encryption_key",
            Self::Misconfigured => "misconfigured",
            Self::AlreadyStarted => "already_started",
            Self::Service => "service",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a call that ended so may be sent again.
    pub fn retry(self) -> Retry {
        match self {
            Self::ClockSkew => Retry::WithServerTime,
            Self::ExpiredCredentials | Self::UnknownAccessKey => Retry::WithFreshCredentials,
            Self::Throttled | Self::NotReady | Self::EnvironmentTimeout => Retry::Safe,
            Self::Service => Retry::IfIdempotent,
            _ => Retry::Never,
        }
    }
}

/// Whether a call may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The answer would be the same.
    Never,
    /// The function was not run.
    Safe,
    /// The function may have run: only a call that may run twice.
    IfIdempotent,
    /// Once, after the credentials were fetched anew.
    WithFreshCredentials,
    /// Once, signed with AWS's time ([`Failure::skew_seconds`]).
    WithServerTime,
}

/// Reads the payload of an answer with `X-Amz-Function-Error`.
pub fn function_error(header: &str, payload: &[u8]) -> FunctionError {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Payload {
        error_type: Value,
        error_message: Value,
    }
    let payload: Payload = serde_json::from_slice(payload).unwrap_or_default();
    // Whatever a function raises ends up there: not only texts.
    let text = |value: Value| match value {
        Value::Null => String::new(),
        Value::String(text) => limited(&text),
        other => limited(&other.to_string()),
    };
    FunctionError {
        unhandled: header == "Unhandled",
        error_type: text(payload.error_type),
        message: text(payload.error_message),
    }
}

/// How a function failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FunctionError {
    /// The header said exactly `Unhandled`: the function crashed or ran out of time or memory.
    pub unhandled: bool,
    /// `errorType`; empty when the function gave none.
    pub error_type: String,
    /// `errorMessage`; empty when the function gave none.
    pub message: String,
}

impl FunctionError {
    /// Whether the function ran out of time; Lambda says so in words only.
    pub fn is_timeout(&self) -> bool {
        self.error_type == "Sandbox.Timedout" || self.message.contains("Task timed out after")
    }
}

/// A number, be it written as a text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn kind_of(answer: &Answer<'_>, target: &Target<'_>, error_type: &str, message: &str) -> ErrorKind {
    let status = answer.status;
    // It says the same to a call without a signature, with a wrong one and without the permission.
    if answer.is_http_api && matches!(status, 401 | 403) {
        return ErrorKind::AccessDenied;
    }
    let named = error_type.strip_suffix("Exception").unwrap_or(error_type);
    // Both spellings occur in AWS's documents.
    let named = named.strip_suffix("Error").unwrap_or(named);
    match named {
        // An `Authorization` that is no signature: the client's own, where nothing was signed here.
        "IncompleteSignature" if !target.signed => ErrorKind::MissingAuthentication,
        "InvalidSignature"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "RequestTimeTooSkewed"
        | "RequestExpired" => signature_kind(named, message),
        "MissingAuthenticationToken" | "MissingAuthentication" => ErrorKind::MissingAuthentication,
        "UnrecognizedClient" | "InvalidClientTokenId" | "InvalidAccessKeyId" => {
            ErrorKind::UnknownAccessKey
        }
        "ExpiredToken" => ErrorKind::ExpiredCredentials,
        "AccessDenied" | "NotAuthorized" | "OptInRequired" => ErrorKind::AccessDenied,
        "Forbidden" if is_signature_text(message) => signature_kind(named, message),
        "Forbidden" if message.contains("not authorized") => ErrorKind::AccessDenied,
        "Forbidden" => ErrorKind::ApiKeyRefused,
        "ResourceNotFound" => ErrorKind::FunctionNotFound,
        "InvalidParameterValue"
        | "InvalidRequestContent"
        | "Validation"
        | "Serialization"
        | "RecursiveInvocation" => ErrorKind::InvalidRequest,
        "NoPublishedVersion"
        | "ModeNotSupported"
        | "CodeArtifactUserFailed"
        | "CodeArtifactUserDeleted"
        | "RuntimeVersionDeleted"
        | "ResourceConflict" => ErrorKind::InvalidState,
        "SnapStart" | "EFSIO" | "EFSMountFailure" | "S3FilesMountFailure" => {
            ErrorKind::EnvironmentFailed
        }
        "ServiceQuotaExceeded" => ErrorKind::QuotaExceeded,
        "SnapStartTimeout" | "EFSMountTimeout" | "EFSMountConnectivity" => {
            ErrorKind::EnvironmentTimeout
        }
        _ if status == 408 && named.starts_with("S3Files") => ErrorKind::EnvironmentTimeout,
        "SnapStartNotReady"
        | "CodeArtifactUserPending"
        | "ENINotReady"
        | "EC2Throttled"
        | "ResourceNotReady" => ErrorKind::NotReady,
        "DurableExecutionAlreadyStarted" => ErrorKind::AlreadyStarted,
        "RequestTooLarge" | "SerializedRequestEntityTooLarge" | "RequestEntityTooLarge" => {
            ErrorKind::TooLarge
        }
        "UnsupportedMediaType" => ErrorKind::UnsupportedMediaType,
        "TooManyRequests" | "Throttling" | "Throttled" | "LimitExceeded" => ErrorKind::Throttled,
        "Service" | "InternalFailure" | "InternalServer" | "ServiceUnavailable" => {
            ErrorKind::Service
        }
        "ENILimitReached"
        | "SubnetIPAddressLimitReached"
        | "InvalidSubnetID"
        | "InvalidSecurityGroupID"
        | "InvalidRuntime"
        | "InvalidZipFile"
        | "EC2AccessDenied"
        | "EC2Unexpected" => ErrorKind::Misconfigured,
        _ if named.starts_with("KMS") => ErrorKind::EncryptionKey,
        _ => kind_of_status(status, message),
    }
}

fn kind_of_status(status: u16, message: &str) -> ErrorKind {
    match status {
        401 | 403 if is_signature_text(message) => signature_kind("", message),
        // A function URL answers a refused caller with this text and no error type.
        403 if message.starts_with("Forbidden. For troubleshooting Function URL") => {
            ErrorKind::AccessDenied
        }
        403 if message == "Missing Authentication Token" => ErrorKind::MissingAuthentication,
        403 if message == "Forbidden" => ErrorKind::ApiKeyRefused,
        403 if message.contains("security token included in the request is expired") => {
            ErrorKind::ExpiredCredentials
        }
        403 if message.contains("security token included in the request is invalid") => {
            ErrorKind::UnknownAccessKey
        }
        401 | 403 => ErrorKind::AccessDenied,
        400 => ErrorKind::InvalidRequest,
        402 => ErrorKind::QuotaExceeded,
        404 => ErrorKind::FunctionNotFound,
        408 => ErrorKind::EnvironmentTimeout,
        409 => ErrorKind::InvalidState,
        413 => ErrorKind::TooLarge,
        415 => ErrorKind::UnsupportedMediaType,
        429 => ErrorKind::Throttled,
        500..=599 => ErrorKind::Service,
        _ => ErrorKind::Unknown,
    }
}

fn is_signature_text(message: &str) -> bool {
    message.contains("Credential should be scoped")
        || message.contains("Signature expired")
        || message.contains("Signature not yet current")
        || message.contains("signature we calculated")
}

fn signature_kind(named: &str, message: &str) -> ErrorKind {
    let skewed = ["Signature expired", "Signature not yet current", "too skewed"];
    if matches!(named, "RequestTimeTooSkewed" | "RequestExpired")
        || skewed.iter().any(|text| message.contains(text))
    {
        ErrorKind::ClockSkew
    } else if message.contains("scoped to a valid region") {
        ErrorKind::WrongRegion
    } else if message.contains("scoped to correct service") {
        ErrorKind::WrongService
    } else {
        ErrorKind::SignatureMismatch
    }
}

/// What is said of the answers of fronts that would mislead in the words of the Invoke API.
fn cause_of_front(
    kind: ErrorKind,
    answer: &Answer<'_>,
    target: &Target<'_>,
    error_type: &str,
) -> Option<&'static str> {
    if kind == ErrorKind::MissingAuthentication && error_type.starts_with("IncompleteSignature") {
        return Some(
            "The call was not signed: it carried the client's own Authorization, which is no signature \
             of AWS. With `authorization.iam`, `override_authorization` has it signed.",
        );
    }
    if !answer.is_http_api {
        return None;
    }
    Some(match (answer.status, target.signed) {
        (401 | 403, true) => {
            "The HTTP API takes neither the signature nor the identity: it says the same for a wrong key, \
             region or service, a wrong clock and a missing execute-api:Invoke."
        }
        (401 | 403, false) => {
            "The HTTP API wants an authorization that the call did not carry. With `authorization.iam` it is \
             signed; `override_authorization` has it signed where the client brings an Authorization of \
             its own."
        }
        (404, _) => "The HTTP API has no such stage, or no route of this method and path.",
        (500, _) => {
            "The function behind the HTTP API failed, or its answer is not one that API Gateway takes."
        }
        _ => return None,
    })
}

fn likely_cause(kind: ErrorKind, message: &str, target: &Target<'_>) -> String {
    let Target { region, service, .. } = *target;
    let fixed = match kind {
        ErrorKind::WrongRegion => {
            return format!(
                "The call was signed for region {region:?}, and this address belongs to another one."
            );
        }
        ErrorKind::WrongService => {
            // AWS names the right one: `... to correct service: 'lambda'.`
            let named = message.split_once("correct service: '").and_then(|(_, rest)| {
                let name = rest.split('\'').next()?;
                (!name.is_empty() && name.len() <= 64).then_some(name)
            });
            return match named {
                Some(right) => format!(
                    "The call was signed for service {service:?}, and this address is one of {right:?}."
                ),
                None => format!(
                    "The call was signed for service {service:?}, and this address belongs to another one \
                     (execute-api for API Gateway, lambda for the Invoke API and function URLs)."
                ),
            };
        }
        ErrorKind::AccessDenied => {
            let action = message
                .split_once("perform: ")
                .and_then(|(_, rest)| rest.split([' ', ',']).next())
                .filter(|action| action.contains(':') && action.len() <= 64);
            return match action {
                Some(action) => format!("The identity lacks the permission {action}."),
                None => {
                    "The identity lacks the permission: lambda:InvokeFunction for the Invoke API, \
                     lambda:InvokeFunctionUrl for a function URL, execute-api:Invoke for API Gateway."
                        .to_owned()
                }
            };
        }
        ErrorKind::MissingAuthentication => {
            "The URL lacks its path or stage, the method has no route there, or the call was not signed."
        }
        ErrorKind::ApiKeyRefused => {
            "The API key is missing, wrong, disabled or in no usage plan of this stage."
        }
        ErrorKind::ClockSkew => {
            "This machine's clock differs from AWS's by more than five minutes."
        }
        ErrorKind::SignatureMismatch => {
            "The secret key is not the access key's, or something between here and AWS changed the request."
        }
        ErrorKind::UnknownAccessKey => {
            "The access key is unknown, inactive, of another partition, or lacks its session token."
        }
        ErrorKind::ExpiredCredentials => "The temporary credentials have expired.",
        ErrorKind::FunctionNotFound => {
            "No function, version or alias of that name exists in this region and account."
        }
        ErrorKind::InvalidRequest => "Lambda cannot read the payload or one of the call's headers.",
        ErrorKind::InvalidState => {
            "The function's state does not allow the call: no published version, wrong mode, or being changed."
        }
        ErrorKind::TooLarge => "The event is larger than Lambda takes.",
        ErrorKind::UnsupportedMediaType => "Lambda takes JSON only.",
        ErrorKind::Throttled => {
            "The function or the account runs at its limit of concurrent or repeated calls."
        }
        ErrorKind::QuotaExceeded => "A quota of the AWS account is used up.",
        ErrorKind::NotReady => "The function is being made ready; the next call may succeed.",
        ErrorKind::EnvironmentTimeout => {
            "The function's snapshot or file system was not there in time; the function was not run."
        }
        ErrorKind::EnvironmentFailed => "The function's snapshot or file system failed.",
        ErrorKind::EncryptionKey => {
            "The KMS key of the function is disabled, deleted or not allowed to its role."
        }
        ErrorKind::Misconfigured => {
            "The function's network, runtime, code package or role is misconfigured."
        }
        ErrorKind::AlreadyStarted => {
            "A durable execution of that name runs already, with another payload."
        }
        ErrorKind::Service => "AWS failed; the function may have run.",
        ErrorKind::Unknown => "AWS refused the call for a reason that is not known here.",
    };
    fixed.to_owned()
}

/// `Name:uri` and `namespace#Name`, both of which occur, without their surroundings.
fn bare_type(kind: &str) -> String {
    let kind = kind.split(':').next().unwrap_or_default();
    let kind = kind.rsplit('#').next().unwrap_or_default().trim();
    let fine = kind.len() <= 128 && kind.bytes().all(|byte| byte.is_ascii_graphic());
    if fine { kind.to_owned() } else { String::new() }
}

/// A text of AWS, bytes and all, with stars in the place of a session token: a refused signature is
/// answered with the whole canonical request, and the token is part of that.
pub fn hide_session_token(text: &str) -> Cow<'_, str> {
    if !text.contains(TOKEN) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(TOKEN) {
        let (before, behind) = rest.split_at(at + TOKEN.len());
        out.push_str(before);
        // The end of the line, which is written in two characters where the text is still JSON.
        let ends = |(at, c): (usize, char)| {
            let escaped = c == '\\' && behind[at + 1..].starts_with(['n', 'r']);
            c.is_whitespace() || escaped || matches!(c, '\'' | '"')
        };
        let end = behind.char_indices().find(|it| ends(*it)).map_or(behind.len(), |(at, _)| at);
        out.extend(std::iter::repeat_n('*', end));
        rest = &behind[end..];
    }
    out.push_str(rest);
    out.into()
}

const TOKEN: &str = "x-amz-security-token:";

/// The beginning of a text, with nothing in it that is secret or breaks a line.
fn limited(text: &str) -> String {
    let text = hide_session_token(text);
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The most of AWS's texts that is kept.
const TEXT_BYTES_MAX: usize = 1024;
/// The longest wait that AWS may ask for.
const RETRY_AFTER_SECONDS_MAX: u64 = 300;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGET: Target<'static> = Target { region: "eu-west-1", service: "lambda", signed: true };

    fn read(status: u16, error_type: &str, body: &str) -> Failure {
        let error_type = (!error_type.is_empty()).then_some(error_type);
        classify(&answer(status, error_type, body), &TARGET)
    }

    fn answer<'a>(status: u16, error_type: Option<&'a str>, body: &'a str) -> Answer<'a> {
        let body = body.as_bytes();
        Answer { status, error_type, date: None, retry_after: None, is_http_api: false, body }
    }

    #[test]
    fn an_authorization_of_the_clients_own_is_no_wrong_key() {
        let text = r#"{"message":"'Bearer' not a valid key=value pair (missing equal-sign) in Authorization header"}"#;
        let said = answer(403, Some("IncompleteSignatureException"), text);
        let unsigned = classify(&said, &Target { signed: false, ..TARGET });
        assert_eq!(unsigned.kind, ErrorKind::MissingAuthentication);
        let cause = unsigned.likely_cause;
        assert!(cause.contains("`override_authorization`"), "{cause}");
        let signed = classify(&said, &TARGET);
        assert_eq!(signed.kind, ErrorKind::SignatureMismatch);
        assert!(!signed.likely_cause.contains("override_authorization"));
    }

    #[test]
    fn an_http_api_is_told_from_the_function_behind_it_by_its_own_few_bodies() {
        use ErrorKind as K;
        for (status, text, kind, cause) in [
            (401, "Unauthorized", K::AccessDenied, "execute-api:Invoke"),
            (403, "Forbidden", K::AccessDenied, "execute-api:Invoke"),
            (404, "Not Found", K::FunctionNotFound, "no route of this method"),
            (429, "Too Many Requests", K::Throttled, "limit"),
            (500, "Internal Server Error", K::Service, "The function behind"),
            (503, "Service Unavailable", K::Service, "may have run"),
        ] {
            let body = format!("{{\"message\":\"{text}\"}}");
            assert!(is_http_api_refusal(status, body.as_bytes()), "{body}");
            assert!(body.len() as u64 <= HTTP_API_BODY_MAX, "{body}");
            assert!(!is_http_api_refusal(status + 1, body.as_bytes()), "{body}");
            let said = Answer { is_http_api: true, ..answer(status, None, &body) };
            let failure = classify(&said, &TARGET);
            assert_eq!(failure.kind, kind, "{text}");
            assert!(failure.likely_cause.contains(cause), "{}", failure.likely_cause);
            assert_eq!(failure.message, text);
        }
        for own in ["", "{}", r#"{"message":"Forbidden","more":1}"#, r#"{"message":"forbidden"}"#] {
            assert!(!is_http_api_refusal(403, own.as_bytes()), "{own}");
        }
        let body = r#"{"message":"Forbidden"}"#;
        let said = Answer { is_http_api: true, ..answer(403, None, body) };
        let cause = classify(&said, &Target { signed: false, ..TARGET }).likely_cause;
        assert!(cause.contains("`override_authorization`"), "{cause}");
    }

    #[test]
    fn every_named_error_has_its_kind_and_its_retry() {
        use ErrorKind as K;
        for (status, error_type, kind, retry) in [
            (400, "InvalidParameterValueException", K::InvalidRequest, Retry::Never),
            (400, "InvalidRequestContentException", K::InvalidRequest, Retry::Never),
            (400, "NoPublishedVersionException", K::InvalidState, Retry::Never),
            (400, "RecursiveInvocationException", K::InvalidRequest, Retry::Never),
            (400, "ModeNotSupportedException", K::InvalidState, Retry::Never),
            (400, "SnapStartException", K::EnvironmentFailed, Retry::Never),
            (402, "ServiceQuotaExceededException", K::QuotaExceeded, Retry::Never),
            (403, "AccessDeniedException", K::AccessDenied, Retry::Never),
            (403, "UnrecognizedClientException", K::UnknownAccessKey, Retry::WithFreshCredentials),
            (403, "ExpiredTokenException", K::ExpiredCredentials, Retry::WithFreshCredentials),
            (403, "InvalidSignatureException", K::SignatureMismatch, Retry::Never),
            (403, "MissingAuthenticationTokenException", K::MissingAuthentication, Retry::Never),
            (403, "EFSMountFailureException", K::EnvironmentFailed, Retry::Never),
            (404, "ResourceNotFoundException", K::FunctionNotFound, Retry::Never),
            (408, "SnapStartTimeoutException", K::EnvironmentTimeout, Retry::Safe),
            (408, "EFSMountTimeoutException", K::EnvironmentTimeout, Retry::Safe),
            (408, "EFSMountConnectivityException", K::EnvironmentTimeout, Retry::Safe),
            (408, "S3FilesMountTimeoutException", K::EnvironmentTimeout, Retry::Safe),
            (403, "S3FilesMountFailureException", K::EnvironmentFailed, Retry::Never),
            (409, "ResourceConflictException", K::InvalidState, Retry::Never),
            (409, "SnapStartNotReadyException", K::NotReady, Retry::Safe),
            (409, "CodeArtifactUserPendingException", K::NotReady, Retry::Safe),
            (409, "CodeArtifactUserFailedException", K::InvalidState, Retry::Never),
            (409, "DurableExecutionAlreadyStartedException", K::AlreadyStarted, Retry::Never),
            (410, "EFSIOException", K::EnvironmentFailed, Retry::Never),
            (413, "RequestTooLargeException", K::TooLarge, Retry::Never),
            (413, "SerializedRequestEntityTooLargeException", K::TooLarge, Retry::Never),
            (415, "UnsupportedMediaTypeException", K::UnsupportedMediaType, Retry::Never),
            (429, "TooManyRequestsException", K::Throttled, Retry::Safe),
            (500, "ServiceException", K::Service, Retry::IfIdempotent),
            (502, "ENINotReadyException", K::NotReady, Retry::Safe),
            (502, "EC2ThrottledException", K::NotReady, Retry::Safe),
            (502, "ResourceNotReadyException", K::NotReady, Retry::Safe),
            (502, "ENILimitReachedException", K::Misconfigured, Retry::Never),
            (502, "SubnetIPAddressLimitReachedException", K::Misconfigured, Retry::Never),
            (502, "KMSDisabledException", K::EncryptionKey, Retry::Never),
            (502, "KMSAccessDeniedException", K::EncryptionKey, Retry::Never),
            (502, "InvalidSubnetIDException", K::Misconfigured, Retry::Never),
            (502, "InvalidSecurityGroupIDException", K::Misconfigured, Retry::Never),
            (502, "InvalidRuntimeException", K::Misconfigured, Retry::Never),
            (502, "InvalidZipFileException", K::Misconfigured, Retry::Never),
            (502, "EC2AccessDeniedException", K::Misconfigured, Retry::Never),
            (502, "EC2UnexpectedException", K::Misconfigured, Retry::Never),
            (400, "", K::InvalidRequest, Retry::Never),
            (403, "", K::AccessDenied, Retry::Never),
            (404, "", K::FunctionNotFound, Retry::Never),
            (503, "", K::Service, Retry::IfIdempotent),
            (302, "", K::Unknown, Retry::Never),
        ] {
            let plain = read(status, error_type, "{}");
            assert_eq!((plain.kind, plain.retry), (kind, retry), "{status} {error_type}");
            let surrounded = format!("com.amazonaws#{error_type}:http://internal.amazon.com/x/");
            assert_eq!(read(status, &surrounded, "{}").kind, kind, "{surrounded}");
            let in_body = format!("{{\"__type\":\"{error_type}\"}}");
            assert_eq!(read(status, "", &in_body).kind, kind, "{in_body}");
            assert!(!plain.likely_cause.is_empty() && plain.likely_cause.ends_with('.'));
            assert!(kind.name().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        }
    }

    #[test]
    fn the_texts_of_403_tell_the_likely_cause() {
        for (error_type, message, kind, cause) in [
            (
                "InvalidSignatureException",
                "Credential should be scoped to a valid region, not 'us-east-1'. ",
                ErrorKind::WrongRegion,
                "signed for region \"eu-west-1\"",
            ),
            (
                "InvalidSignatureException",
                "Credential should be scoped to correct service: 'execute-api'. ",
                ErrorKind::WrongService,
                "signed for service \"lambda\", and this address is one of \"execute-api\".",
            ),
            (
                "InvalidSignatureException",
                "Signature expired: 20261122T110000Z is now earlier than 20261122T115500Z",
                ErrorKind::ClockSkew,
                "clock",
            ),
            (
                "InvalidSignatureException",
                "Signature not yet current: 20261122T130000Z is still later than x",
                ErrorKind::ClockSkew,
                "clock",
            ),
            (
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided.",
                ErrorKind::SignatureMismatch,
                "secret key",
            ),
            (
                "AccessDeniedException",
                "User: arn:aws:iam::1:user/x is not authorized to perform: lambda:InvokeFunction on \
                 resource: y",
                ErrorKind::AccessDenied,
                "lacks the permission lambda:InvokeFunction.",
            ),
            ("ForbiddenException", "Forbidden", ErrorKind::ApiKeyRefused, "API key"),
            ("", "Forbidden", ErrorKind::ApiKeyRefused, "API key"),
            (
                "",
                "Forbidden. For troubleshooting Function URL authorization issues, see: x",
                ErrorKind::AccessDenied,
                "lambda:InvokeFunctionUrl",
            ),
            ("", "Missing Authentication Token", ErrorKind::MissingAuthentication, "path or stage"),
        ] {
            for field in ["message", "Message"] {
                let body = serde_json::json!({ field: message }).to_string();
                let failure = read(403, error_type, &body);
                assert_eq!(failure.kind, kind, "{message}");
                assert!(failure.likely_cause.contains(cause), "{}", failure.likely_cause);
                assert_eq!(failure.message, message);
            }
        }
    }

    #[test]
    fn a_session_token_is_never_repeated() {
        let canonical = |token: &str| {
            format!(
                "host:x\\nx-amz-security-token:{token}\\nx-amz-z:1\\n\\nhost;x-amz-security-token"
            )
        };
        let token = r"IQoJb3JpZ2\/luX2VjE+A//8=";
        let body = format!("{{\"message\": \"should have been '{}'\"}}", canonical(token));
        let stars = "*".repeat(token.len());
        assert_eq!(hide_session_token(&body), body.replace(token, &stars), "and no byte more");
        let failure = read(403, "InvalidSignatureException", &body);
        assert!(failure.message.contains("x-amz-security-token:***"), "{}", failure.message);
        assert!(!failure.message.contains("IQoJ"), "{}", failure.message);
        for text in ["", "x-amz-security-token", "x-amz-security-token:", "x-amz-security-token:\\"]
        {
            assert_eq!(hide_session_token(text).len(), text.len(), "{text}");
        }
    }

    #[test]
    fn what_is_written_otherwise_than_expected_hides_nothing_else() {
        for (body, message, wait) in [
            (r#"{"message":"a","Message":"b"}"#, "a", None),
            (r#"{"message":null,"Message":"b"}"#, "b", None),
            (r#"{"message":"","Message":"b"}"#, "b", None),
            (r#"{"message":{"no":"text"},"Message":"b","Reason":7}"#, "b", None),
            (r#"{"message":"a","retryAfterSeconds":9,"Reason":null}"#, "a", Some(9)),
            (r#"{"message":"a","retryAfterSeconds":" 9 ","code":5}"#, "a", Some(9)),
            (r#"["message"]"#, "", None),
            ("message", "", None),
        ] {
            let failure = read(429, "", body);
            assert_eq!(failure.message, message, "{body}");
            assert_eq!(failure.retry_after, wait.map(Duration::from_secs), "{body}");
            assert_eq!((failure.kind, failure.reason), (ErrorKind::Throttled, None), "{body}");
        }
        for (payload, error_type, message) in [
            (r#"{"errorType":"E","errorMessage":"m","trace":[]}"#, "E", "m"),
            (r#"{"errorType":"E","errorMessage":{"a":1}}"#, "E", r#"{"a":1}"#),
            (r#"{"errorType":null,"errorMessage":7}"#, "", "7"),
            (r#""E""#, "", ""),
        ] {
            let error = function_error("Unhandled", payload.as_bytes());
            assert_eq!((&*error.error_type, &*error.message), (error_type, message), "{payload}");
        }
    }

    #[test]
    fn a_throttle_tells_its_reason_and_its_wait() {
        let body = r#"{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User",
            "message":"Rate Exceeded.","retryAfterSeconds":"7"}"#;
        let failure = read(429, "TooManyRequestsException", body);
        assert_eq!(
            failure.reason.as_deref(),
            Some("ReservedFunctionConcurrentInvocationLimitExceeded")
        );
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
        let answer = Answer {
            status: 429,
            error_type: None,
            date: None,
            retry_after: Some("999999"),
            is_http_api: false,
            body: b"",
        };
        let failure = classify(&answer, &TARGET);
        assert_eq!(failure.retry_after, Some(Duration::from_secs(RETRY_AFTER_SECONDS_MAX)));
    }

    #[test]
    fn only_a_clock_error_tells_the_skew() {
        let now = 1_795_348_800; // 2026-11-22T12:00:00Z
        let answer = |error_type| Answer {
            status: 403,
            error_type: Some(error_type),
            date: Some("Sun, 22 Nov 2026 11:00:00 GMT"),
            retry_after: None,
            is_http_api: false,
            body: b"{\"message\":\"Signature not yet current: x\"}",
        };
        let failure = classify(&answer("InvalidSignatureException"), &TARGET);
        assert_eq!(failure.retry, Retry::WithServerTime);
        assert_eq!(failure.skew_seconds(now), Some(-3600));
        assert_eq!(classify(&answer("AccessDeniedException"), &TARGET).skew_seconds(now), None);
    }

    #[test]
    fn a_functions_failure_is_read_from_its_payload() {
        let error = function_error(
            "Unhandled",
            br#"{"errorMessage":"2026-11-22 x Task timed out after 3.00 seconds","stackTrace":[]}"#,
        );
        assert!(error.unhandled && error.is_timeout());
        let error = function_error("Handled", br#"{"errorType":"E","errorMessage":"m\n"}"#);
        assert_eq!((error.unhandled, &*error.error_type, &*error.message), (false, "E", "m "));
        assert_eq!(function_error("Unhandled", b"\xff").message, "");
    }

    proptest! {
        #[test]
        fn any_answer_is_classified(
            status in any::<u16>(),
            error_type in ".{0,40}",
            date in ".{0,40}",
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..100),
                ".{0,2000}".prop_map(|text| serde_json::json!({"message": text}).to_string().into_bytes()),
            ],
        ) {
            let answer = Answer {
                status,
                error_type: Some(&error_type),
                date: Some(&date),
                retry_after: Some(&date),
                is_http_api: false,
                body: &body,
            };
            let failure = classify(&answer, &TARGET);
            prop_assert!(failure.message.len() <= TEXT_BYTES_MAX);
            prop_assert!(!failure.likely_cause.contains('\n'));
        }
    }
}

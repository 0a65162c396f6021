//! `imds`: the role of the EC2 instance, from its metadata service.
//!
//! Version 2 (a session token first) is asked. Version 1 answers anyone who can make this machine
//! send a GET, so it is used only where the settings allow it.

use super::answers::refusal_words;
use super::{
    AnswerKind, CredentialError, FetchRequest, FetchResponse, Issued, METADATA_TIMEOUT,
    Surroundings, parse_answer,
};

pub(crate) async fn load(surroundings: Surroundings<'_>) -> Result<Issued, CredentialError> {
    let sources = surroundings.sources;
    if sources.var("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        let missing = "AWS_EC2_METADATA_DISABLED is set";
        return Err(CredentialError::not_configured(ORIGIN, missing));
    }
    let base = sources.imds_endpoint();
    let token = session_token(&base, surroundings).await?;
    let role = get(&format!("{base}{ROLES}"), token.as_deref(), surroundings).await?;
    let role = String::from_utf8_lossy(&role.body);
    let role = role.lines().next().unwrap_or_default().trim();
    if role.is_empty()
        || !role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b))
    {
        return Err(CredentialError::unusable(ORIGIN, "the instance has no role to name"));
    }
    let answer = get(&format!("{base}{ROLES}{role}"), token.as_deref(), surroundings).await?;
    let mut issued = parse_answer(AnswerKind::Imds, &answer.body)?;
    // AWS asks clients to go on with what IMDS serves while it cannot renew it.
    if let Some(expires) = &mut issued.expires
        && *expires < surroundings.now + IMDS_STALE_SECS
    {
        *expires = surroundings.now + IMDS_STALE_SECS;
    }
    Ok(issued)
}

/// The token of a version 2 session; `None` when version 1 is to be used.
async fn session_token(
    base: &str,
    surroundings: Surroundings<'_>,
) -> Result<Option<String>, CredentialError> {
    let request = FetchRequest::new("PUT", format!("{base}/latest/api/token"), METADATA_TIMEOUT)
        .header("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_TTL_SECS);
    let v1 = surroundings.sources.imds_v1_fallback;
    match surroundings.outside.fetch(request).await {
        Ok(FetchResponse { status: 200, body, .. }) => {
            let token = String::from_utf8(body).ok().map(|token| token.trim().to_owned());
            let token = token.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()));
            let unusable = || {
                CredentialError::unusable(ORIGIN, "the session token cannot be sent in a header")
            };
            token.map(Some).ok_or_else(unusable)
        }
        // A proxy or an old emulator in between; or, without an answer, a container beyond the
        // hop limit of the instance, where only version 1 gets through.
        Ok(FetchResponse { status: 403..=405, .. }) | Err(_) if v1 => Ok(None),
        Ok(answer) => {
            Err(CredentialError::refused(ORIGIN, answer.status, &refusal_words(&answer.body)))
        }
        Err(cause) => Err(CredentialError::Unreachable { provider: ORIGIN, cause }),
    }
}

async fn get(
    url: &str,
    token: Option<&str>,
    surroundings: Surroundings<'_>,
) -> Result<FetchResponse, CredentialError> {
    let mut request = FetchRequest::new("GET", url, METADATA_TIMEOUT);
    if let Some(token) = token {
        request = request.header("x-aws-ec2-metadata-token", token);
    }
    let answer = surroundings.outside.fetch(request).await;
    let answer =
        answer.map_err(|cause| CredentialError::Unreachable { provider: ORIGIN, cause })?;
    match answer.status {
        200 => Ok(answer),
        404 => Err(CredentialError::refused(ORIGIN, 404, "the instance has no role")),
        status => Err(CredentialError::refused(ORIGIN, status, &refusal_words(&answer.body))),
    }
}

const ORIGIN: &str = "iam-role";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// How long a session with the metadata service lasts, as in botocore.
const TOKEN_TTL_SECS: &str = "21600";

/// How long credentials that IMDS serves are used at least, although they end sooner or have
/// ended: it serves old ones only while it cannot get new ones, and AWS honours them then.
pub const IMDS_STALE_SECS: u64 = 900;

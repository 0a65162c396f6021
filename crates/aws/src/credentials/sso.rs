//! SSO (IAM Identity Center): the token that `aws sso login` left in the cache, exchanged for a
//! role's credentials.
//!
//! Left out: renewing the token with its refresh token. It needs a person now and then anyway.

use ring::digest;
use serde::Deserialize;

use super::answers::refusal_words;
use super::ini::Section;
use super::settings::is_region;
use super::sts::push_encoded;
use super::time::parse_time;
use super::{
    AnswerKind, CredentialError, FetchRequest, Issued, Profiles, STS_TIMEOUT, Surroundings,
    TOKEN_BYTES_MAX, parse_answer,
};
use crate::partition::Partition;

pub(crate) fn is_in(profile: &Section) -> bool {
    profile.contains_key("sso_account_id") || profile.contains_key("sso_role_name")
}

pub(crate) async fn load(
    profiles: &Profiles,
    name: &str,
    profile: &Section,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let unusable =
        |cause: String| CredentialError::unusable(ORIGIN, format!("profile {name:?}: {cause}"));
    let session_name = profile.get("sso_session");
    let session = match session_name {
        None => None,
        Some(session) => Some(
            profiles
                .sso_session(session)
                .ok_or_else(|| unusable(format!("there is no section [sso-session {session}]")))?,
        ),
    };
    let setting = |key: &str| {
        let (own, shared) = (profile.get(key), session.and_then(|session| session.get(key)));
        match (own, shared) {
            (Some(own), Some(shared)) if own != shared => {
                Err(unusable(format!("its `{key}` is not that of its sso-session")))
            }
            _ => own.or(shared).ok_or_else(|| unusable(format!("it has no `{key}`"))),
        }
    };
    let start_url = setting("sso_start_url")?;
    let region = setting("sso_region")?;
    let (role, account) = (setting("sso_role_name")?, setting("sso_account_id")?);
    if !is_region(region) {
        return Err(unusable("its `sso_region` is no region".to_owned()));
    }

    let token = token(session_name.unwrap_or(start_url), surroundings).await?;
    let mut url = match surroundings.sources.endpoint_variable("SSO") {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("https://portal.sso.{region}.{}", Partition::of_region(region).dns_suffix),
    };
    url.push_str("/federation/credentials?role_name=");
    push_encoded(&mut url, role);
    url.push_str("&account_id=");
    push_encoded(&mut url, account);
    let request =
        FetchRequest::new("GET", url, STS_TIMEOUT).header("x-amz-sso_bearer_token", token);
    let answer = surroundings.outside.fetch(request).await;
    let answer =
        answer.map_err(|cause| CredentialError::Unreachable { provider: ORIGIN, cause })?;
    match answer.status {
        200 => parse_answer(AnswerKind::Sso, &answer.body),
        401 => Err(CredentialError::refused(ORIGIN, 401, LOGIN)),
        status => Err(CredentialError::refused(ORIGIN, status, &refusal_words(&answer.body))),
    }
}

/// The token in the cache, while it lasts. The cache's file is named after the session.
async fn token(session: &str, surroundings: Surroundings<'_>) -> Result<String, CredentialError> {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, session.as_bytes());
    let name: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let path = surroundings.sources.expand(&format!("~/.aws/sso/cache/{name}.json"));
    let file = surroundings.outside.read_file(&path, TOKEN_BYTES_MAX).await;
    let file = file.map_err(|cause| CredentialError::Local { provider: ORIGIN, cause })?;
    let file = file.ok_or_else(|| CredentialError::unusable(ORIGIN, LOGIN))?;
    let cached: Cached = serde_json::from_slice(&file).map_err(|_| {
        let cause = format!("{} is not the JSON it should be", path.display());
        CredentialError::unusable(ORIGIN, cause)
    })?;
    let ends = parse_time(&cached.expires_at);
    if ends.is_none_or(|ends| ends <= surroundings.now) {
        return Err(CredentialError::unusable(ORIGIN, LOGIN));
    }
    if cached.access_token.is_empty() || !cached.access_token.bytes().all(|b| b.is_ascii_graphic())
    {
        let cause = "the cached token cannot be sent in a header";
        return Err(CredentialError::unusable(ORIGIN, cause));
    }
    Ok(cached.access_token)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    access_token: String,
    expires_at: String,
}

const ORIGIN: &str = "sso";
const LOGIN: &str = "there is no valid token in the SSO cache: run `aws sso login`";

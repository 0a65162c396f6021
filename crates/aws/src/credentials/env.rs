//! `env`: keys in environment variables.

use super::time::parse_time;
use super::{CredentialError, Issued, Surroundings, credentials};

pub(crate) fn load(surroundings: Surroundings<'_>) -> Result<Issued, CredentialError> {
    let var = |name| surroundings.sources.var(name);
    let Some(access_key) = var("AWS_ACCESS_KEY_ID") else {
        return Err(CredentialError::not_configured(ORIGIN, "AWS_ACCESS_KEY_ID is not set"));
    };
    let Some(secret_key) = var("AWS_SECRET_ACCESS_KEY") else {
        let cause = "AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not";
        return Err(CredentialError::unusable(ORIGIN, cause));
    };
    // The older name first, as botocore has it.
    let token = var("AWS_SECURITY_TOKEN").or_else(|| var("AWS_SESSION_TOKEN"));
    let expires = match var("AWS_CREDENTIAL_EXPIRATION") {
        None => None,
        Some(text) => Some(parse_time(text).ok_or_else(|| {
            CredentialError::unusable(ORIGIN, "AWS_CREDENTIAL_EXPIRATION is no ISO 8601 time")
        })?),
    };
    let credentials = credentials(ORIGIN, access_key, secret_key, token)?;
    Ok(Issued { credentials, expires, origin: ORIGIN })
}

const ORIGIN: &str = "env";

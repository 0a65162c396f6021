//! `web_identity`: a token from a file, exchanged for a role's credentials at STS. EKS sets the
//! three variables for a pod with a service account role (IRSA).

use std::path::Path;

use super::container::read_token;
use super::ini::Section;
use super::{CredentialError, Issued, Profiles, Surroundings, sts};

/// With what the environment names, or else the profile.
pub(crate) async fn load_configured(
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    if surroundings.sources.var(TOKEN_FILE).is_some() {
        return load(Environment::Used, None, surroundings).await;
    }
    let profiles = Profiles::load(surroundings).await?;
    load(Environment::Used, profiles.of(&surroundings.sources.profile_name().0), surroundings).await
}

/// Whether the variables count: a profile that was named on purpose goes before them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    Used,
    Ignored,
}

/// Each setting from the environment, if that is used, and else from `profile`.
pub(crate) async fn load(
    environment: Environment,
    profile: Option<&Section>,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let setting = |variable, key: &str| {
        let var = match environment {
            Environment::Used => surroundings.sources.var(variable),
            Environment::Ignored => None,
        };
        var.or_else(|| profile?.get(key).map(String::as_str))
    };
    let Some(path) = setting(TOKEN_FILE, "web_identity_token_file") else {
        let missing = "AWS_WEB_IDENTITY_TOKEN_FILE is not set";
        return Err(CredentialError::not_configured(ORIGIN, missing));
    };
    let Some(role_arn) = setting("AWS_ROLE_ARN", "role_arn") else {
        let cause = "a token file is named, a role is not: AWS_ROLE_ARN or `role_arn`";
        return Err(CredentialError::unusable(ORIGIN, cause));
    };
    let session_name = setting("AWS_ROLE_SESSION_NAME", "role_session_name");
    let region = profile.and_then(|profile| profile.get("region")).map(String::as_str);
    // Read each time: the cluster replaces the token long before the role's credentials end.
    let path = surroundings.sources.expand(path);
    let token = read_token(ORIGIN, Path::new(&path), surroundings).await?;
    sts::assume_role_with_web_identity(role_arn, session_name, &token, region, surroundings).await
}

const TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
pub(crate) const ORIGIN: &str = "assume-role-with-web-identity";

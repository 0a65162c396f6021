//! `profile`: what a profile of the shared files stands for.

use std::future::Future;
use std::pin::Pin;

use super::ini::Section;
use super::web_identity::{self, Environment};
use super::{
    CredentialError, Issued, Profiles, Role, Surroundings, container, credentials, env, imds,
    process, sso, sts,
};

/// The profile of the settings, and nothing beside it.
pub(crate) async fn load(surroundings: Surroundings<'_>) -> Result<Issued, CredentialError> {
    if let Some(line) = &surroundings.sources.credential_process {
        return process::load(line, surroundings).await;
    }
    let profiles = Profiles::load(surroundings).await?;
    resolve(&profiles, Environment::Ignored, surroundings).await
}

/// A role over another source first, then the profile's own sources.
pub(crate) async fn resolve(
    profiles: &Profiles,
    environment: Environment,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let (name, named) = surroundings.sources.profile_name();
    let profile = profiles.of(&name);
    if named && profile.is_none() {
        return Err(CredentialError::unusable(PROVIDER, format!("there is no profile {name:?}")));
    }
    if profile.is_some_and(has_role) {
        return assume(profiles, &name, &mut vec![name.clone()], surroundings).await;
    }
    own(profiles, &name, environment, surroundings).await
}

/// What a profile is without a role: web identity, SSO, keys, a process; in botocore's order.
async fn own(
    profiles: &Profiles,
    name: &str,
    environment: Environment,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let profile = profiles.of(name);
    match web_identity::load(environment, profile, surroundings).await {
        Err(CredentialError::NotConfigured { .. }) => {}
        outcome => return outcome,
    }
    if let Some(profile) = profile
        && sso::is_in(profile)
    {
        return sso::load(profiles, name, profile, surroundings).await;
    }
    if let Some(outcome) = profiles.in_credentials(name).and_then(|of| keys(of, CREDENTIALS_FILE)) {
        return outcome;
    }
    if let Some(line) = profile.and_then(|profile| profile.get("credential_process")) {
        return process::load(line, surroundings).await;
    }
    if let Some(outcome) = profiles.in_config(name).and_then(|of| keys(of, CONFIG_FILE)) {
        return outcome;
    }
    let missing = match profile {
        Some(_) => format!("profile {name:?} names no credentials"),
        None => format!("there is no profile {name:?}"),
    };
    Err(CredentialError::not_configured(PROVIDER, missing))
}

fn keys(section: &Section, origin: &'static str) -> Option<Result<Issued, CredentialError>> {
    let access_key = section.get("aws_access_key_id")?;
    let Some(secret_key) = section.get("aws_secret_access_key") else {
        let cause = "`aws_access_key_id` is there, `aws_secret_access_key` is not";
        return Some(Err(CredentialError::unusable(origin, cause)));
    };
    let token = section.get("aws_security_token").or_else(|| section.get("aws_session_token"));
    let credentials = credentials(origin, access_key, secret_key, token.map(String::as_str));
    Some(credentials.map(|credentials| Issued { credentials, expires: None, origin }))
}

fn assume<'a>(
    profiles: &'a Profiles,
    name: &'a str,
    visited: &'a mut Vec<String>,
    surroundings: Surroundings<'a>,
) -> Pin<Box<dyn Future<Output = Result<Issued, CredentialError>> + Send + 'a>> {
    Box::pin(async move {
        let unusable = |cause: &str| {
            CredentialError::unusable(ASSUME_ROLE, format!("profile {name:?}: {cause}"))
        };
        let empty = Section::new();
        let profile = profiles.of(name).unwrap_or(&empty);
        let setting = |key: &str| profile.get(key).cloned();
        if profile.contains_key("mfa_serial") {
            return Err(unusable("`mfa_serial` needs someone to type a code"));
        }
        let base = match (profile.get("credential_source"), profile.get("source_profile")) {
            (Some(_), Some(_)) => {
                return Err(unusable("both `credential_source` and `source_profile` are there"));
            }
            (None, None) => {
                return Err(unusable("`role_arn` needs `source_profile` or `credential_source`"));
            }
            (Some(source), None) => match source.to_ascii_lowercase().as_str() {
                "environment" => env::load(surroundings)?,
                "ec2instancemetadata" => imds::load(surroundings).await?,
                "ecscontainer" => container::load(surroundings).await?,
                _ => {
                    return Err(unusable(
                        "`credential_source` is none of Environment, Ec2InstanceMetadata, \
                         EcsContainer",
                    ));
                }
            },
            (None, Some(source)) => {
                let Some(source_section) = profiles.of(source) else {
                    return Err(unusable("its `source_profile` does not exist"));
                };
                let static_keys = has_keys(source_section);
                // A profile may name itself: its own keys, then its role.
                if visited.contains(source) && !(source == name && static_keys) {
                    return Err(unusable("`source_profile` goes in a circle"));
                }
                if visited.len() >= PROFILES_CHAINED_MAX {
                    return Err(unusable("too many profiles follow each other"));
                }
                visited.push(source.clone());
                if static_keys || !has_role(source_section) {
                    own(profiles, source, Environment::Ignored, surroundings).await?
                } else {
                    assume(profiles, source, visited, surroundings).await?
                }
            }
        };
        let role = Role {
            arn: setting("role_arn").unwrap_or_default(),
            session_name: setting("role_session_name"),
            external_id: setting("external_id"),
            duration_secs: setting("duration_seconds").and_then(|text| text.parse().ok()),
            region: surroundings.sources.region().map(str::to_owned).or_else(|| setting("region")),
            ..Role::default()
        };
        role.check().map_err(|error| unusable(&error.to_string()))?;
        sts::assume_role(&base.credentials, &role, surroundings).await
    })
}

/// As in botocore: a role with a token file is web identity's.
fn has_role(profile: &Section) -> bool {
    profile.contains_key("role_arn") && !profile.contains_key("web_identity_token_file")
}

fn has_keys(profile: &Section) -> bool {
    profile.contains_key("aws_access_key_id") || profile.contains_key("aws_secret_access_key")
}

const PROVIDER: &str = "profile";
const ASSUME_ROLE: &str = "assume-role";
const CREDENTIALS_FILE: &str = "shared-credentials-file";
const CONFIG_FILE: &str = "config-file";

/// How many profiles may name each other as source.
const PROFILES_CHAINED_MAX: usize = 8;

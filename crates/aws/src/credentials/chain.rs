//! `chain`: the first source that is configured, in botocore's order. A source that is configured
//! and fails ends the search: another identity than the one meant is worse than none.

use super::web_identity::Environment;
use super::{
    CredentialError, Issued, Profiles, Surroundings, container, env, imds, process, profile,
};

pub(crate) async fn load(surroundings: Surroundings<'_>) -> Result<Issued, CredentialError> {
    let mut missing = Vec::new();
    let mut next = |outcome: Result<Issued, CredentialError>| match outcome {
        Err(error @ CredentialError::NotConfigured { .. }) => {
            missing.push(error.to_string());
            None
        }
        outcome => Some(outcome),
    };
    // As in botocore: a profile named in the settings goes before keys in the environment.
    let environment = match surroundings.sources.profile {
        Some(_) => Environment::Ignored,
        None => Environment::Used,
    };
    if environment == Environment::Used
        && let Some(outcome) = next(env::load(surroundings))
    {
        return outcome;
    }
    let from_profile = match &surroundings.sources.credential_process {
        Some(line) => process::load(line, surroundings).await,
        None => {
            let profiles = Profiles::load(surroundings).await?;
            profile::resolve(&profiles, environment, surroundings).await
        }
    };
    if let Some(outcome) = next(from_profile) {
        return outcome;
    }
    if let Some(outcome) = next(container::load(surroundings).await) {
        return outcome;
    }
    match imds::load(surroundings).await {
        // No metadata service: this is no EC2 instance.
        Err(
            error @ (CredentialError::NotConfigured { .. } | CredentialError::Unreachable { .. }),
        ) => {
            missing.push(error.to_string());
            Err(CredentialError::NothingConfigured(missing.join("; ")))
        }
        outcome => outcome,
    }
}

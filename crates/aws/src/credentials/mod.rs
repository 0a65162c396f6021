//! Where AWS credentials come from: the sources, the files they read, the calls they make.
//!
//! [`load`] asks one [`Provider`] once, [`assume_role`] exchanges what it got for a role's
//! credentials. Neither keeps anything: refreshing ahead of expiry is what the identity crate
//! does with them. Which sources a route may name is decided by [`IdentitySettings`], read from
//! `plugin_attr.aws-lambda` of config.yaml.
//!
//! The order of the chain, the variables, the files and their quirks follow botocore 1.43, which
//! the tests of the identity crate run beside these sources. `Unlike botocore` says where not.
//!
//! Invariant: nothing here opens a socket, reads a file, starts a process or reads a clock. All
//! that is [`Outside`], and `now` is an argument.

mod answers;
mod chain;
mod container;
mod env;
mod error;
mod imds;
mod ini;
mod outside;
mod process;
mod profile;
mod profiles;
mod role;
mod settings;
mod skew;
mod sso;
mod sts;
mod time;
mod web_identity;

use std::fmt;

pub use answers::{AnswerKind, parse_answer};
pub use container::allowed_host;
pub use error::CredentialError;
pub use imds::IMDS_STALE_SECS;
pub use ini::{IniError, Section, parse as parse_ini, words};
pub use outside::{
    FILE_BYTES_MAX, FetchError, FetchRequest, FetchResponse, METADATA_TIMEOUT, Outside,
    OutsideError, OutsideFuture, PROCESS_TIMEOUT, RESPONSE_BYTES_MAX, STS_TIMEOUT, TOKEN_BYTES_MAX,
};
pub use profiles::Profiles;
pub use role::{Role, RoleError};
pub use settings::{
    AllowedProviders, Environment, IdentitySettings, NotAllowed, ProviderKind, SettingsError,
    Sources,
};
pub use skew::{SKEW_SECS_MAX, Skew};
pub use sts::{StsAnswer, parse_sts};
pub use time::parse_time;

use crate::Secret;
use crate::sigv4::Credentials;

/// Credentials as a source handed them out.
#[derive(Debug, Clone)]
pub struct Issued {
    /// What to sign with.
    pub credentials: Credentials,
    /// When they end, in seconds since 1970; `None` when they do not.
    pub expires: Option<u64>,
    /// Which source they are from, in botocore's words: `env`, `assume-role`, `iam-role`…
    pub origin: &'static str,
}

/// A source to ask.
#[derive(Debug, Clone)]
pub enum Provider {
    /// Keys that stand in the configuration itself.
    Static(Credentials),
    /// `AWS_ACCESS_KEY_ID` and its companions.
    Env,
    /// A profile of the shared files: a role over another profile, web identity, SSO, keys,
    /// `credential_process`.
    Profile,
    /// `AssumeRoleWithWebIdentity` with a token from a file (EKS's IRSA and its like).
    WebIdentity,
    /// The credentials endpoint of ECS or of EKS Pod Identity.
    Container,
    /// The role of the EC2 instance.
    Imds,
    /// The first that is configured, in botocore's order.
    Chain,
}

impl Provider {
    /// The name of the kind, as configurations spell it.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::Static(_) => ProviderKind::Static,
            Self::Env => ProviderKind::Env,
            Self::Profile => ProviderKind::Profile,
            Self::WebIdentity => ProviderKind::WebIdentity,
            Self::Container => ProviderKind::Container,
            Self::Imds => ProviderKind::Imds,
            Self::Chain => ProviderKind::Chain,
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

/// What a source works with: the world, its settings and the time.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Network, files and processes.
    pub outside: &'a dyn Outside,
    /// Environment, files, endpoints.
    pub sources: &'a Sources,
    /// Seconds since 1970, as the clock here says.
    pub now: u64,
    /// What is known of the difference to STS's clock; calls to STS, and no others, learn it.
    pub skew: &'a Skew,
}

impl fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Asks a source for credentials.
///
/// # Errors
/// When it has none. [`CredentialError::NotConfigured`] means that it was never set up.
pub async fn load(
    provider: &Provider,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    match provider {
        Provider::Static(credentials) => {
            Ok(Issued { credentials: credentials.clone(), expires: None, origin: "static" })
        }
        Provider::Env => env::load(surroundings),
        Provider::Profile => profile::load(surroundings).await,
        Provider::WebIdentity => web_identity::load_configured(surroundings).await,
        Provider::Container => container::load(surroundings).await,
        Provider::Imds => imds::load(surroundings).await,
        Provider::Chain => chain::load(surroundings).await,
    }
}

/// Exchanges credentials for those of a role.
///
/// # Errors
/// When STS refuses or cannot be reached.
pub async fn assume_role(
    base: &Credentials,
    role: &Role,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    sts::assume_role(base, role, surroundings).await
}

/// Credentials out of texts from outside; texts that could not be signed with are refused here.
fn credentials(
    provider: &'static str,
    access_key: &str,
    secret_key: &str,
    session_token: Option<&str>,
) -> Result<Credentials, CredentialError> {
    for (name, text) in [
        ("access key", access_key),
        ("secret key", secret_key),
        ("session token", session_token.unwrap_or("-")),
    ] {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let cause = format!("the {name} is empty or not visible ASCII");
            return Err(CredentialError::Unusable { provider, cause });
        }
    }
    Ok(Credentials {
        access_key: access_key.to_owned(),
        secret_key: Secret::from(secret_key),
        session_token: session_token.map(Secret::from),
    })
}

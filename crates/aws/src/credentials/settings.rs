//! What config.yaml says about identities: `plugin_attr.aws-lambda`.
//!
//! Whoever may write a route must not borrow the gateway's own identity. So a route names a kind
//! of source only if config.yaml allows it, and profiles, files, commands and metadata endpoints
//! are named in config.yaml (or the environment of the process) alone.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::sts::Url;

/// Environment variables, taken once at the start.
pub type Environment = Arc<BTreeMap<String, String>>;

/// Everything config.yaml says about identities.
#[derive(Debug, Clone, Default)]
pub struct IdentitySettings {
    /// Which kinds of source routes may name.
    pub allowed: AllowedProviders,
    /// What those sources work with.
    pub sources: Arc<Sources>,
}

impl IdentitySettings {
    /// Reads `plugin_attr.aws-lambda`; other keys of it are left to others.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn from_attr(
        attr: Option<&Value>,
        environment: Environment,
    ) -> Result<Self, SettingsError> {
        let attr = match attr {
            None | Some(Value::Null) => Attr::default(),
            Some(attr) => {
                Attr::deserialize(attr).map_err(|error| SettingsError(error.to_string()))?
            }
        };
        let allowed = match attr.allowed_providers {
            None => AllowedProviders::default(),
            Some(names) => AllowedProviders::parse(&names)?,
        };
        if attr.region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(SettingsError("`region` is no region".to_owned()));
        }
        let imds = attr.imds.unwrap_or_default();
        for (name, url) in [("sts_endpoint", &attr.sts_endpoint), ("imds.endpoint", &imds.endpoint)]
        {
            if let Some(Err(cause)) = url.as_deref().map(Url::parse) {
                return Err(SettingsError(format!("`{name}`: {cause}")));
            }
        }
        let sources = Sources {
            environment,
            config_file: attr.config_file,
            credentials_file: attr.credentials_file,
            profile: attr.profile,
            credential_process: attr.credential_process,
            region: attr.region,
            sts_endpoint: attr.sts_endpoint,
            imds_endpoint: imds.endpoint,
            imds_v1_fallback: imds.v1_fallback,
        };
        Ok(Self { allowed, sources: Arc::new(sources) })
    }
}

/// What the sources work with. `Debug` shows no variable's value.
#[derive(Clone, Default)]
pub struct Sources {
    /// The environment.
    pub environment: Environment,
    /// Instead of `AWS_CONFIG_FILE` and `~/.aws/config`.
    pub config_file: Option<String>,
    /// Instead of `AWS_SHARED_CREDENTIALS_FILE` and `~/.aws/credentials`.
    pub credentials_file: Option<String>,
    /// Instead of `AWS_PROFILE` and `default`. If it is named here, keys in the environment do
    /// not go before it.
    pub profile: Option<String>,
    /// A command to run instead of reading a profile.
    pub credential_process: Option<String>,
    /// The region whose STS is asked, instead of `AWS_REGION`.
    pub region: Option<String>,
    /// The STS to ask instead of the region's.
    pub sts_endpoint: Option<String>,
    /// The metadata service, instead of `AWS_EC2_METADATA_SERVICE_ENDPOINT` and the usual address.
    pub imds_endpoint: Option<String>,
    /// Whether version 1 of the metadata service may be asked when version 2 is not there.
    pub imds_v1_fallback: bool,
}

impl Sources {
    /// A variable that is set and not empty.
    pub(crate) fn var(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A path whose leading `~/` means the home directory.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), self.var("HOME")) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => PathBuf::from(path),
        }
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        let path = self.config_file.as_deref().or_else(|| self.var("AWS_CONFIG_FILE"));
        self.expand(path.unwrap_or("~/.aws/config"))
    }

    pub(crate) fn credentials_path(&self) -> PathBuf {
        let path = self.credentials_file.as_deref();
        let path = path.or_else(|| self.var("AWS_SHARED_CREDENTIALS_FILE"));
        self.expand(path.unwrap_or("~/.aws/credentials"))
    }

    /// The profile, and whether someone named it.
    pub(crate) fn profile_name(&self) -> (String, bool) {
        let named = self.profile.as_deref();
        // The older name first, as botocore has it.
        let named = named.or_else(|| self.var("AWS_DEFAULT_PROFILE"));
        match named.or_else(|| self.var("AWS_PROFILE")) {
            Some(name) => (name.to_owned(), true),
            None => ("default".to_owned(), false),
        }
    }

    /// Unlike botocore this knows `AWS_REGION`, which Lambda, EKS and the other SDKs use.
    pub(crate) fn region(&self) -> Option<&str> {
        let region = self.region.as_deref().or_else(|| self.var("AWS_REGION"));
        region.or_else(|| self.var("AWS_DEFAULT_REGION"))
    }

    /// The endpoint that the environment gives a service.
    pub(crate) fn endpoint_variable(&self, service: &str) -> Option<&str> {
        let ignored = self.var("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        if ignored.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let own = self.var(&format!("AWS_ENDPOINT_URL_{service}"));
        own.or_else(|| self.var("AWS_ENDPOINT_URL"))
    }

    pub(crate) fn imds_endpoint(&self) -> String {
        let given = self.imds_endpoint.as_deref();
        let given = given.or_else(|| self.var("AWS_EC2_METADATA_SERVICE_ENDPOINT"));
        let mode = self.var("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
        let ipv6 = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let usual = if ipv6 { IMDS_IPV6 } else { IMDS_IPV4 };
        given.unwrap_or(usual).trim_end_matches('/').to_owned()
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("config_file", &self.config_path())
            .field("credentials_file", &self.credentials_path())
            .field("profile", &self.profile_name().0)
            .field("region", &self.region())
            .finish_non_exhaustive()
    }
}

/// A kind of source, as `authorization.iam.provider` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// Keys in the configuration itself.
    Static,
    /// Environment variables.
    Env,
    /// A profile of the shared files.
    Profile,
    /// A token file, exchanged at STS.
    WebIdentity,
    /// The endpoint of ECS or EKS.
    Container,
    /// The instance metadata service.
    Imds,
    /// The first of them that is configured.
    Chain,
}

impl ProviderKind {
    /// All of them, in the order of the documentation; for a schema's `enum`.
    pub const ALL: [Self; 7] = [
        Self::Static,
        Self::Env,
        Self::Profile,
        Self::WebIdentity,
        Self::Container,
        Self::Imds,
        Self::Chain,
    ];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Env => "env",
            Self::Profile => "profile",
            Self::WebIdentity => "web_identity",
            Self::Container => "container",
            Self::Imds => "imds",
            Self::Chain => "chain",
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ProviderKind {
    type Err = SettingsError;

    fn from_str(name: &str) -> Result<Self, SettingsError> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            SettingsError(format!("there is no provider {name:?}; there are {known}"))
        })
    }
}

/// The kinds of source that routes may name: `plugin_attr.aws-lambda.allowed_providers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedProviders(Vec<ProviderKind>);

impl AllowedProviders {
    /// Reads the list.
    ///
    /// # Errors
    /// A name that is none.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, SettingsError> {
        let mut kinds: Vec<ProviderKind> =
            names.iter().map(|name| name.as_ref().parse()).collect::<Result<_, _>>().map_err(
                |SettingsError(cause)| SettingsError(format!("`allowed_providers`: {cause}")),
            )?;
        kinds.sort_unstable();
        kinds.dedup();
        Ok(Self(kinds))
    }

    /// Whether a route may name this kind.
    ///
    /// # Errors
    /// With the text that the Admin API answers with 400.
    pub fn check(&self, kind: ProviderKind) -> Result<(), NotAllowed> {
        if self.0.contains(&kind) {
            return Ok(());
        }
        Err(NotAllowed { kind, allowed: self.clone() })
    }
}

impl Default for AllowedProviders {
    /// `static` alone: a route brings its own keys or has none.
    fn default() -> Self {
        Self(vec![ProviderKind::Static])
    }
}

impl fmt::Display for AllowedProviders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|kind| kind.name()).collect();
        write!(f, "[{}]", names.join(", "))
    }
}

/// A route names a source that config.yaml does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "provider \"{kind}\" is not allowed here: plugin_attr.aws-lambda.allowed_providers in \
     config.yaml names only {allowed}"
)]
pub struct NotAllowed {
    /// What the route names.
    pub kind: ProviderKind,
    /// What it may name.
    pub allowed: AllowedProviders,
}

/// A key of `plugin_attr.aws-lambda` is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(
    /// Which and why.
    pub String,
);

#[derive(Default, Deserialize)]
struct Attr {
    allowed_providers: Option<Vec<String>>,
    config_file: Option<String>,
    credentials_file: Option<String>,
    profile: Option<String>,
    credential_process: Option<String>,
    region: Option<String>,
    sts_endpoint: Option<String>,
    imds: Option<Imds>,
}

#[derive(Default, Deserialize)]
struct Imds {
    endpoint: Option<String>,
    #[serde(default)]
    v1_fallback: bool,
}

/// Whether a text may stand in a host name in the place of a region.
pub(crate) fn is_region(region: &str) -> bool {
    (1..=64).contains(&region.len())
        && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

const IMDS_IPV4: &str = "http://169.254.169.254";
const IMDS_IPV6: &str = "http://[fd00:ec2::254]";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(attr: Value) -> Result<IdentitySettings, String> {
        IdentitySettings::from_attr(Some(&attr), Environment::default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_static_keys_are_allowed_unless_config_yaml_names_more() {
        let default = IdentitySettings::from_attr(None, Environment::default()).unwrap();
        for kind in ProviderKind::ALL {
            assert_eq!(default.allowed.check(kind).is_ok(), kind == ProviderKind::Static, "{kind}");
        }
        let named =
            settings(json!({"allowed_providers": ["imds", "web_identity", "imds"]})).unwrap();
        assert_eq!(named.allowed.check(ProviderKind::Imds), Ok(()));
        assert_eq!(
            named.allowed.check(ProviderKind::Static).unwrap_err().to_string(),
            "provider \"static\" is not allowed here: \
             plugin_attr.aws-lambda.allowed_providers in config.yaml names only \
             [web_identity, imds]"
        );
    }

    #[test]
    fn keys_that_are_wrong_are_named() {
        for (attr, expected) in [
            (
                json!({"allowed_providers": ["IMDS"]}),
                "`allowed_providers`: there is no provider \"IMDS\"; there are static, env, \
                 profile, web_identity, container, imds, chain",
            ),
            (json!({"region": "eu west"}), "`region` is no region"),
            (
                json!({"sts_endpoint": "sts.test"}),
                "`sts_endpoint`: it does not begin with http:// or https://",
            ),
        ] {
            assert_eq!(settings(attr).err().as_deref(), Some(expected));
        }
        assert!(settings(json!({"other": 1, "log_tail": "off"})).is_ok(), "others' keys");
    }

    #[test]
    fn names_and_files_come_from_config_yaml_then_the_environment() {
        let environment: BTreeMap<String, String> = [
            ("HOME", "/home/gw"),
            ("AWS_PROFILE", "env"),
            ("AWS_CONFIG_FILE", "~/aws.ini"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let environment = Environment::from(environment);
        let of = |attr: Value| {
            IdentitySettings::from_attr(Some(&attr), environment.clone()).unwrap().sources
        };
        let plain = of(json!({}));
        assert_eq!(plain.config_path(), PathBuf::from("/home/gw/aws.ini"));
        assert_eq!(plain.credentials_path(), PathBuf::from("/home/gw/.aws/credentials"));
        assert_eq!(plain.profile_name(), ("env".to_owned(), true));
        assert_eq!(plain.endpoint_variable("STS"), Some("http://127.0.0.1:2"));
        assert_eq!(plain.endpoint_variable("SSO"), Some("http://127.0.0.1:1"));
        let named = of(json!({"profile": "p", "region": "eu-north-1", "config_file": "/c"}));
        assert_eq!(named.profile_name(), ("p".to_owned(), true));
        assert_eq!(named.region(), Some("eu-north-1"));
        assert_eq!(named.config_path(), PathBuf::from("/c"));
        assert!(!format!("{plain:?}").contains("127.0.0.1"), "no variable is printed");
    }
}

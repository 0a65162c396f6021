//! Who signs: fixed keys, or an identity of the gateway that is kept fresh.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde_json::Value;
use sluicegate_aws::Secret;
use sluicegate_aws::credentials::{
    Environment, IdentitySettings, Provider, ProviderKind, Role, Skew, Sources,
};
use sluicegate_aws::lambda::{Failure, Retry};
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, is_signed, wire_path, wire_query,
};
use sluicegate_gateway::invoker::Call;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError};
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_identity::{
    Identities, IdentitySigner, IdentitySpec, IdentityStatus, System, SystemClock, Unavailable,
    VersionedSigner,
};

use super::config::Iam;

/// Signs the calls of one route.
pub(super) enum Signing {
    /// With keys that do not change.
    Fixed {
        /// The keys, for a region and a service.
        signer: Signer,
        /// What is known of AWS's clock.
        skew: Skew,
    },
    /// With whatever keys the identity has at the moment.
    Identity(Box<Own>),
    /// A trial compile: never asked.
    Nobody,
}

/// An identity of the gateway that calls to one authority are signed for.
pub(super) struct Own {
    signer: IdentitySigner,
    /// What is known of the authority's clock.
    skew: Arc<Skew>,
}

/// Which credentials and which clock a call was signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    credentials: u64,
    /// Seconds that the other side's clock was taken to be ahead.
    offset: i64,
}

impl Signing {
    /// Compiles `authorization.iam` for a region and a service at an authority.
    pub(super) fn compile(
        iam: Iam,
        region: &str,
        service: &str,
        authority: &str,
        ctx: &CompileCtx<'_>,
    ) -> Result<Self, ConfigError> {
        let bad =
            |error: &dyn std::fmt::Display| ConfigError(format!("`authorization.iam`: {error}"));
        let (spec, settings) = spec(iam, region, ctx.attr)?;
        let IdentitySpec { provider, role } = spec;
        match (provider, role) {
            (Provider::Static(credentials), None) => {
                let signer = Signer::new(credentials, region, service).map_err(|e| bad(&e))?;
                Ok(Self::Fixed { signer, skew: Skew::new() })
            }
            (provider, role) => {
                // All that can be wrong is found in a trial, too: what passes one is stored.
                if let Some(role) = &role {
                    role.check_over(provider.kind()).map_err(|error| bad(&error))?;
                }
                if let Provider::Static(credentials) = &provider {
                    Signer::new(credentials.clone(), region, service).map_err(|e| bad(&e))?;
                }
                IdentitySigner::check(region, service).map_err(|error| bad(&error))?;
                let Some(deps) = ctx.deps else { return Ok(Self::Nobody) };
                let known = deps.state.get::<AwsIdentities>();
                let identities = known.of(ctx.attr, settings.sources, deps);
                let identity = identities
                    .identity(IdentitySpec { provider, role })
                    .map_err(|error| bad(&error))?;
                identity.warm();
                let skew = identity.skew(authority);
                let signer = IdentitySigner::new(identity, region, service).map_err(|e| bad(&e))?;
                Ok(Self::Identity(Box::new(Own { signer, skew })))
            }
        }
    }

    /// Signs what is sent, byte for byte: path and query take the form that every reader of the
    /// signature arrives at.
    ///
    /// # Errors
    /// There are no credentials.
    pub(super) async fn sign(
        &self,
        call: &mut Call,
        authority: &str,
    ) -> Result<Version, Unavailable> {
        match self {
            Self::Fixed { signer, skew } => {
                let offset = skew.offset_secs();
                write_signature(signer, offset, call, authority);
                Ok(Version { credentials: 0, offset })
            }
            Self::Identity(own) => {
                let signer = match own.signer.ready(now()) {
                    Some(signer) => signer,
                    None => Box::pin(own.signer.signer(now())).await?,
                };
                let offset = own.skew.offset_secs();
                write_signature(&signer, offset, call, authority);
                Ok(Version { credentials: signer.version(), offset })
            }
            Self::Nobody => Err(trial()),
        }
    }

    /// AWS refused the call. What it says of its clock is learnt, and credentials that it no longer
    /// knows are fetched anew. If the call may be sent again and would be signed otherwise now, it
    /// is: then it is worth another try.
    pub(super) async fn sign_again(
        &self,
        failure: &Failure,
        used: Version,
        call: &mut Call,
        authority: &str,
        may_repeat: bool,
    ) -> bool {
        let Some(skew) = self.skew() else { return false };
        match (failure.retry, failure.server_time) {
            (Retry::WithServerTime, Some(theirs)) if skew.learn(theirs, now(), used.offset) => {}
            (Retry::WithFreshCredentials, _) => {
                let Self::Identity(own) = self else { return false };
                if !may_repeat {
                    own.signer.reject(used.credentials);
                    return false;
                }
                if own.signer.after_rejection(used.credentials).await.is_none() {
                    return false;
                }
            }
            _ => return false,
        }
        may_repeat && self.sign(call, authority).await.is_ok()
    }

    fn skew(&self) -> Option<&Skew> {
        match self {
            Self::Fixed { skew, .. } => Some(skew),
            Self::Identity(own) => Some(&own.skew),
            Self::Nobody => None,
        }
    }

    /// Every stage of a call's signature, made at another time if `at` tells one. The call is
    /// signed then.
    ///
    /// # Errors
    /// There are no credentials.
    pub(super) async fn explain(
        &self,
        call: &mut Call,
        authority: &str,
        at: Option<u64>,
    ) -> Result<Explained, Unavailable> {
        self.sign(call, authority).await?;
        let (signer, skew, source) = match self {
            Self::Fixed { signer, skew } => (Kept::Fixed(signer), skew, "static"),
            Self::Identity(own) => {
                let signer = own.signer.signer(now()).await?;
                let source = signer.origin();
                (Kept::Identity(signer), &*own.skew, source)
            }
            Self::Nobody => return Err(trial()),
        };
        let signer = match &signer {
            Kept::Fixed(signer) => signer,
            Kept::Identity(signer) => &***signer,
        };
        // What the signer itself adds is no part of what it is asked to sign.
        let own = ["x-amz-date", "x-amz-security-token", "x-amz-content-sha256"];
        let host = [("host", authority.as_bytes())];
        let fields = call.headers.iter().filter_map(|(name, value)| {
            let name = std::str::from_utf8(name).ok()?;
            let is_own = own.iter().any(|own| own.eq_ignore_ascii_case(name));
            (is_signed(name) && !is_own).then_some((name, value))
        });
        let request = RequestToSign {
            method: call.method.as_str(),
            path: &call.path,
            query: call.query.as_deref(),
            headers: host.into_iter().chain(fields),
            payload: PayloadHash::Bytes(&call.body),
        };
        let explained = signer.explain(at.unwrap_or_else(|| skew.apply(now())), request);
        let access_key = explained
            .authorization
            .split_once("Credential=")
            .and_then(|(_, rest)| rest.split('/').next())
            .unwrap_or_default();
        Ok(Explained {
            source,
            access_key: access_key.to_owned(),
            clock_offset: skew.offset_secs(),
            canonical_request: explained.canonical_request,
            string_to_sign: explained.string_to_sign,
        })
    }

    /// The region and the service that calls are signed for.
    pub(super) fn target(&self) -> (&str, &str) {
        match self {
            Self::Fixed { signer, .. } => (signer.region(), signer.service()),
            Self::Identity(own) => (own.signer.region(), own.signer.service()),
            Self::Nobody => ("", ""),
        }
    }
}

enum Kept<'a> {
    Fixed(&'a Signer),
    Identity(Arc<VersionedSigner>),
}

/// The stages of a signature. The canonical request holds the session token.
pub(super) struct Explained {
    /// Where the credentials are from.
    pub(super) source: &'static str,
    pub(super) access_key: String,
    /// Seconds that AWS's clock is ahead, as far as known.
    pub(super) clock_offset: i64,
    pub(super) canonical_request: String,
    pub(super) string_to_sign: String,
}

/// Who the configuration wants calls signed for, checked against what config.yaml allows.
fn spec(
    iam: Iam,
    region: &str,
    attr: Option<&Value>,
) -> Result<(IdentitySpec, IdentitySettings), ConfigError> {
    let settings = IdentitySettings::from_attr(attr, ENVIRONMENT.clone())
        .map_err(|error| ConfigError(format!("plugin_attr.aws-lambda in config.yaml: {error}")))?;
    let kind = iam.provider.unwrap_or(ProviderKind::Static);
    settings.allowed.check(kind).map_err(|error| ConfigError(error.to_string()))?;
    let missing = |name: &str| {
        // As APISIX's schema has it.
        ConfigError(format!(
            "property \"authorization\" validation failed: property \"iam\" validation failed: \
             property \"{name}\" is required"
        ))
    };
    let provider = match kind {
        ProviderKind::Static => Provider::Static(Credentials {
            secret_key: Secret::from(iam.secretkey.ok_or_else(|| missing("secretkey"))?),
            access_key: iam.accesskey.ok_or_else(|| missing("accesskey"))?,
            session_token: iam.session_token.filter(|token| !token.is_empty()).map(Secret::from),
        }),
        _ => {
            let given = [
                ("accesskey", &iam.accesskey),
                ("secretkey", &iam.secretkey),
                ("session_token", &iam.session_token),
            ];
            if let Some((name, _)) = given.into_iter().find(|(_, value)| value.is_some()) {
                return Err(ConfigError(format!(
                    "`authorization.iam.{name}` goes with `provider` static, and this is {kind}"
                )));
            }
            match kind {
                ProviderKind::Env => Provider::Env,
                ProviderKind::Profile => Provider::Profile,
                ProviderKind::WebIdentity => Provider::WebIdentity,
                ProviderKind::Container => Provider::Container,
                ProviderKind::Imds => Provider::Imds,
                ProviderKind::Static | ProviderKind::Chain => Provider::Chain,
            }
        }
    };
    let of_role = [
        ("session_name", iam.session_name.is_some()),
        ("external_id", iam.external_id.is_some()),
        ("duration", iam.duration.is_some()),
        ("tags", !iam.tags.is_empty()),
        ("transitive_tag_keys", !iam.transitive_tag_keys.is_empty()),
        ("sts_region", iam.sts_region.is_some()),
        ("sts_endpoint", iam.sts_endpoint.is_some()),
    ];
    let role = match iam.role_arn {
        None => {
            if let Some((name, _)) = of_role.into_iter().find(|(_, is_there)| *is_there) {
                return Err(ConfigError(format!(
                    "`authorization.iam.{name}` goes with `authorization.iam.role_arn`"
                )));
            }
            None
        }
        Some(arn) => Some(Role {
            arn,
            session_name: iam.session_name,
            external_id: iam.external_id,
            duration_secs: iam.duration,
            tags: iam.tags.into_iter().collect(),
            transitive_tag_keys: iam.transitive_tag_keys,
            region: iam.sts_region.or_else(|| Some(region.to_owned())),
            endpoint: iam.sts_endpoint,
        }),
    };
    Ok((IdentitySpec { provider, role }, settings))
}

/// The region that config.yaml or the environment names.
pub(super) fn default_region(attr: Option<&Value>) -> Option<String> {
    let of_attr = attr.and_then(|attr| attr.get("region")?.as_str()).map(str::to_owned);
    of_attr.or_else(|| {
        let named = ["AWS_REGION", "AWS_DEFAULT_REGION"];
        named.into_iter().find_map(|name| ENVIRONMENT.get(name).cloned())
    })
}

fn trial() -> Unavailable {
    Unavailable { identity: "nobody".to_owned(), reason: "this was a trial".to_owned() }
}

fn write_signature(signer: &Signer, offset: i64, call: &mut Call, authority: &str) {
    if let Cow::Owned(path) = wire_path(&call.path) {
        call.path = path;
    }
    if let Some(query) = &call.query
        && let Cow::Owned(query) = wire_query(query)
    {
        call.query = Some(query);
    }
    call.query = call.query.take().filter(|query| !query.is_empty());
    let host = [("host", authority.as_bytes())];
    let fields = call.headers.iter().filter_map(|(name, value)| {
        let name = if is_signed(name) { std::str::from_utf8(name).ok()? } else { return None };
        Some((name, value))
    });
    let request = RequestToSign {
        method: call.method.as_str(),
        path: &call.path,
        query: call.query.as_deref(),
        headers: host.into_iter().chain(fields),
        payload: PayloadHash::Bytes(&call.body),
    };
    let mut signed = SIGNED.take();
    signer.sign(now().saturating_add_signed(offset), request, &mut signed);
    for (name, value) in signed.headers() {
        call.headers.set(name, value.as_bytes());
    }
    SIGNED.set(signed);
}

fn now() -> u64 {
    let now = sluicegate_gateway::core::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The identities of all routes, and how they stand. Kept for as long as the gateway runs.
#[derive(Default)]
pub struct AwsIdentities(Mutex<HashMap<String, Identities>>);

impl AwsIdentities {
    /// Those of one `plugin_attr.aws-lambda`: when it changes, nothing of before is of use.
    fn of(&self, attr: Option<&Value>, sources: Arc<Sources>, deps: &UpstreamDeps) -> Identities {
        let key = attr.map(Value::to_string).unwrap_or_default();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identities) = known.get(&key) {
            return identities.clone();
        }
        known.clear();
        let outside = Arc::new(System::new(Arc::new(deps.clone())));
        let clock = Arc::new(SystemClock);
        let identities = Identities::new(outside, sources, clock, deps.background.clone());
        known.insert(key, identities.clone());
        identities
    }

    /// How each identity in use stands.
    pub fn statuses(&self) -> Vec<IdentityStatus> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().flat_map(Identities::statuses).collect()
    }
}

/// The variables of the process, as they were when they were first looked at.
static ENVIRONMENT: LazyLock<Environment> =
    LazyLock::new(|| Arc::new(std::env::vars_os().filter_map(text).collect()));

fn text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

thread_local! {
    /// The memory signatures are made in: one after the other on a thread, so one is enough.
    static SIGNED: RefCell<Signed> = RefCell::default();
}

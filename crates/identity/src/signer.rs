//! An identity as a signer for one service in one region.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{Credentials, Signer, SignerError};

use crate::identity::{Current, Identity, Unavailable};

/// Signs for whoever the identity is at the moment. A [`Signer`] is compiled once per version of
/// the credentials; between two versions, [`IdentitySigner::ready`] costs a few atomic operations.
pub struct IdentitySigner {
    identity: Arc<Identity>,
    region: String,
    service: String,
    compiled: ArcSwapOption<VersionedSigner>,
}

impl IdentitySigner {
    /// For one region and one service.
    ///
    /// # Errors
    /// When region or service could not stand in a header.
    pub fn new(
        identity: Arc<Identity>,
        region: impl Into<String>,
        service: impl Into<String>,
    ) -> Result<Self, SignerError> {
        let (region, service) = (region.into(), service.into());
        Self::check(&region, &service)?;
        Ok(Self { identity, region, service, compiled: ArcSwapOption::empty() })
    }

    /// Checks a region and a service where nobody is to sign yet.
    ///
    /// # Errors
    /// As [`IdentitySigner::new`].
    pub fn check(region: &str, service: &str) -> Result<(), SignerError> {
        let nobody = Credentials {
            access_key: "nobody".to_owned(),
            secret_key: Secret::default(),
            session_token: None,
        };
        Signer::new(nobody, region, service).map(drop)
    }

    /// The region it signs for.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The service it signs for.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Who it signs for.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The signer, if there are credentials that are valid at `now` (seconds since 1970).
    pub fn ready(&self, now: u64) -> Option<Arc<VersionedSigner>> {
        self.compile(&*self.identity.current(now)?).ok()
    }

    /// The signer; waits as [`Identity::credentials`] does.
    ///
    /// # Errors
    /// When there are no credentials: answer 503.
    pub async fn signer(&self, now: u64) -> Result<Arc<VersionedSigner>, Unavailable> {
        let current = self.identity.credentials(now).await?;
        self.compile(&current)
    }

    /// A signer with newer credentials than the refused ones; see [`Identity::after_rejection`].
    pub async fn after_rejection(&self, version: u64) -> Option<Arc<VersionedSigner>> {
        let newer = self.identity.after_rejection(version).await?;
        self.compile(&newer).ok()
    }

    /// As [`IdentitySigner::after_rejection`], for a call that is not to be sent again: waits for
    /// nothing.
    pub fn reject(&self, version: u64) {
        self.identity.reject(version);
    }

    fn compile(&self, current: &Current) -> Result<Arc<VersionedSigner>, Unavailable> {
        if let Some(compiled) = self.compiled.load_full()
            && compiled.version == current.version
        {
            return Ok(compiled);
        }
        let credentials = current.credentials.clone();
        let signer = Signer::new(credentials, self.region.as_str(), self.service.as_str());
        let signer = signer.map_err(|error| Unavailable {
            identity: self.identity.name().to_owned(),
            reason: error.to_string(),
        })?;
        let compiled = VersionedSigner { signer, version: current.version, origin: current.origin };
        let compiled = Arc::new(compiled);
        self.compiled.store(Some(Arc::clone(&compiled)));
        Ok(compiled)
    }
}

impl std::fmt::Debug for IdentitySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentitySigner")
            .field("identity", &self.identity)
            .field("region", &self.region)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// A signer, and which version of the credentials it holds.
#[derive(Debug)]
pub struct VersionedSigner {
    signer: Signer,
    version: u64,
    origin: &'static str,
}

impl VersionedSigner {
    /// The version, for [`IdentitySigner::after_rejection`].
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The source of the credentials, for explanations.
    pub fn origin(&self) -> &'static str {
        self.origin
    }
}

impl Deref for VersionedSigner {
    type Target = Signer;

    fn deref(&self) -> &Signer {
        &self.signer
    }
}

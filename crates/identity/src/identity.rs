//! One identity: its credentials, and the task that keeps them fresh.

use std::fmt;
use std::sync::Arc;

use sluicegate_aws::credentials::{Issued, Provider, Role, Skew, Surroundings, assume_role, load};
use sluicegate_aws::sigv4::Credentials;

use crate::hash::Hash;
use crate::identities::{IdentityStatus, Shared};
use crate::kept::{Common, Held, Kept, Known, Source};

/// Somebody that calls to AWS are signed for. Shared by all routes that configure the same; its
/// task ends when the last of them drops it.
pub struct Identity {
    kept: Kept<Aws>,
    skews: Known<Skew>,
}

impl Identity {
    pub(crate) fn new(name: String, ask: Ask, shared: Arc<Shared>) -> Self {
        let fixed = match &ask {
            Ask::Provider(Provider::Static(credentials)) => Some(credentials.clone()),
            _ => None,
        };
        let kept = Kept::new(name, Aws { ask, sts_skew: Skew::new(), shared });
        if let Some(credentials) = fixed {
            kept.put(Issued { credentials, expires: None, origin: "static" });
        }
        Self { kept, skews: Known::default() }
    }

    /// Begins to fetch, if that has not begun. Without it, the first request does.
    pub fn warm(&self) {
        if !self.is_fixed() {
            self.kept.warm();
        }
    }

    /// The credentials, if there are any that are valid at `now` (seconds since 1970).
    pub fn current(&self, now: u64) -> Option<Arc<Current>> {
        self.kept.current(now)
    }

    /// The credentials. Waits only while none have ever been asked for with an outcome, or when
    /// they ended without a refresh having failed (the machine slept); never longer than
    /// [`FIRST_WAIT_MAX`](crate::FIRST_WAIT_MAX).
    ///
    /// # Errors
    /// When there are none: answer 503.
    pub async fn credentials(&self, now: u64) -> Result<Arc<Current>, Unavailable> {
        let unavailable = |reason| Unavailable { identity: self.name().to_owned(), reason };
        self.kept.wait(now).await.map_err(unavailable)
    }

    /// AWS refused credentials of `version` as expired or unknown. Has them fetched anew, unless
    /// that happened within [`REJECTED_INTERVAL_SECS`](crate::REJECTED_INTERVAL_SECS), waits for
    /// the outcome and returns newer ones, if there are any: then the call is worth one more try.
    pub async fn after_rejection(&self, version: u64) -> Option<Arc<Current>> {
        if self.is_fixed() {
            return None;
        }
        self.kept.after_rejection(version).await
    }

    /// As [`Identity::after_rejection`], for a call that is not to be sent again: waits for nothing.
    pub fn reject(&self, version: u64) {
        if !self.is_fixed() {
            self.kept.reject(version);
        }
    }

    /// The difference between the clock of `authority` and ours, as far as calls of this identity to it
    /// learnt it. All routes to one authority share it, and only they: when credentials end is
    /// judged by the clock here and by what STS says of it.
    pub fn skew(&self, authority: &str) -> Arc<Skew> {
        let mut hash = Hash::new();
        hash.text(authority);
        self.skews.get(hash.finish(), Skew::new)
    }

    /// The difference between STS's clock and ours, as far as fetching credentials learnt it.
    pub fn sts_skew(&self) -> &Skew {
        &self.kept.source().sts_skew
    }

    /// What it is, in words for logs and explanations; no secrets.
    pub fn name(&self) -> &str {
        self.kept.name()
    }

    /// How it stands.
    pub fn status(&self) -> IdentityStatus {
        let held = self.kept.held();
        let (refreshed, failed, failure) = self.kept.counts();
        IdentityStatus {
            name: self.name().to_owned(),
            origin: held.as_ref().map(|held| held.origin),
            expires: held.as_ref().and_then(|held| held.expires),
            ready: self.kept.is_ready(),
            refreshed,
            failed,
            failure,
        }
    }

    /// Its credentials stand in the configuration: there is nothing to fetch.
    fn is_fixed(&self) -> bool {
        matches!(self.kept.source().ask, Ask::Provider(Provider::Static(_)))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.name()).finish()
    }
}

/// Credentials in use.
#[derive(Debug)]
pub struct Current {
    /// What to sign with.
    pub credentials: Credentials,
    /// When they end, in seconds since 1970.
    pub expires: Option<u64>,
    /// Which source they are from.
    pub origin: &'static str,
    /// Changes with the credentials, and only with them; what is derived from them is kept by it.
    pub version: u64,
}

impl Held for Current {
    fn expires(&self) -> Option<u64> {
        self.expires
    }

    fn version(&self) -> u64 {
        self.version
    }
}

/// There are no credentials. The text is for the log and for people who run the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no AWS credentials from {identity}: {reason}")]
pub struct Unavailable {
    /// Whose.
    pub identity: String,
    /// Why.
    pub reason: String,
}

/// What an identity asks.
pub(crate) enum Ask {
    Provider(Provider),
    Role { base: Arc<Identity>, role: Role },
}

struct Aws {
    ask: Ask,
    sts_skew: Skew,
    shared: Arc<Shared>,
}

impl Aws {
    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            outside: &*self.shared.outside,
            sources: &self.shared.sources,
            now: self.common().clock.now(),
            skew: &self.sts_skew,
        }
    }
}

impl Source for Aws {
    type Issued = Issued;
    type Held = Current;

    fn common(&self) -> &Common {
        &self.shared.common
    }

    fn skewed(&self, now: u64) -> u64 {
        self.sts_skew.apply(now)
    }

    async fn ask(&self) -> Result<Issued, String> {
        match &self.ask {
            Ask::Provider(provider) => {
                self.common().limited(load(provider, self.surroundings())).await
            }
            Ask::Role { base, role } => {
                let credentials = base.credentials(self.common().clock.now()).await;
                let over = credentials.map_err(|error| error.to_string())?;
                let asked = assume_role(&over.credentials, role, self.surroundings());
                let outcome = self.common().limited(asked).await;
                if let Err(reason) = &outcome
                    && ["ExpiredToken", "InvalidClientTokenId"].iter().any(|it| reason.contains(it))
                    && let Some(newer) = base.after_rejection(over.version).await
                {
                    let asked = assume_role(&newer.credentials, role, self.surroundings());
                    return self.common().limited(asked).await;
                }
                outcome
            }
        }
    }

    fn expires(issued: &Issued) -> Option<u64> {
        issued.expires
    }

    fn hold(&self, issued: Issued, before: Option<&Current>) -> Current {
        let Issued { credentials, expires, origin } = issued;
        let same = before.filter(|before| equal(&before.credentials, &credentials));
        let version = same.map_or_else(|| self.common().next_version(), |same| same.version);
        Current { credentials, expires, origin, version }
    }
}

fn equal(a: &Credentials, b: &Credentials) -> bool {
    let token = |of: &Credentials| of.session_token.as_ref().map(|token| token.expose().to_owned());
    a.access_key == b.access_key
        && a.secret_key.expose() == b.secret_key.expose()
        && token(a) == token(b)
}

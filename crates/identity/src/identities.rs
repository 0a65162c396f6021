//! All identities of the gateway: one for each that is configured.

use std::fmt;
use std::sync::Arc;

use sluicegate_aws::credentials::{Outside, Provider, Role, RoleError, Sources};
use sluicegate_aws::sigv4::Credentials;
use tokio::runtime::Handle;

use crate::Clock;
use crate::hash::Hash;
use crate::identity::{Ask, Identity};
use crate::kept::{Common, Key, Known};

/// Who a route wants its calls signed for.
#[derive(Debug, Clone)]
pub struct IdentitySpec {
    /// Where credentials come from.
    pub provider: Provider,
    /// The role to take with them, if any.
    pub role: Option<Role>,
}

/// Hands out identities. Clones share them.
#[derive(Clone)]
pub struct Identities {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) outside: Arc<dyn Outside>,
    pub(crate) sources: Arc<Sources>,
    pub(crate) common: Common,
    known: Known<Identity>,
}

impl Identities {
    /// Identities whose tasks run on `runtime`.
    pub fn new(
        outside: Arc<dyn Outside>,
        sources: Arc<Sources>,
        clock: Arc<dyn Clock>,
        runtime: Handle,
    ) -> Self {
        let common = Common::new(clock, runtime);
        let shared = Shared { outside, sources, common, known: Known::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The identity of a configuration: the same one for all that configure the same. Nothing is
    /// fetched until [`Identity::warm`] or the first request.
    ///
    /// # Errors
    /// When the role cannot be asked for.
    pub fn identity(&self, spec: IdentitySpec) -> Result<Arc<Identity>, RoleError> {
        let IdentitySpec { provider, role } = spec;
        if let Some(role) = &role {
            role.check_over(provider.kind())?;
        }
        let base = self.shared.known.get(key(&provider, None), || {
            Identity::new(provider.to_string(), Ask::Provider(provider.clone()), self.shared())
        });
        let Some(role) = role else { return Ok(base) };
        let name = format!("{} over {provider}", role.arn);
        Ok(self.shared.known.get(key(&provider, Some(&role)), || {
            Identity::new(name, Ask::Role { base, role: role.clone() }, self.shared())
        }))
    }

    /// How each identity in use stands, for metrics and the control API.
    pub fn statuses(&self) -> Vec<IdentityStatus> {
        let known = self.shared.known.all();
        let mut statuses: Vec<_> = known.iter().map(|identity| identity.status()).collect();
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identities")
    }
}

/// How an identity stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityStatus {
    /// What it is, in words.
    pub name: String,
    /// The source of the current credentials.
    pub origin: Option<&'static str>,
    /// When they end.
    pub expires: Option<u64>,
    /// Whether a request would get credentials.
    pub ready: bool,
    /// Refreshes that succeeded.
    pub refreshed: u64,
    /// Refreshes that failed.
    pub failed: u64,
    /// Why the last one failed, if it did.
    pub failure: Option<String>,
}

/// What tells identities apart: a hash of every input, so that no key lies about in a map.
///
/// The patterns name every field: one that is added does not compile until it counts here.
fn key(provider: &Provider, role: Option<&Role>) -> Key {
    let mut hash = Hash::new();
    hash.text(provider.kind().name());
    if let Provider::Static(Credentials { access_key, secret_key, session_token }) = provider {
        hash.text(access_key);
        hash.text(secret_key.expose());
        hash.optional(session_token.as_ref().map(|token| token.expose()));
    }
    if let Some(role) = role {
        let Role {
            arn,
            session_name,
            external_id,
            duration_secs,
            tags,
            transitive_tag_keys,
            region,
            endpoint,
        } = role;
        hash.text(arn);
        hash.optional(session_name.as_deref());
        hash.optional(external_id.as_deref());
        hash.optional(duration_secs.map(|secs| secs.to_string()).as_deref());
        hash.count(tags.len());
        for (key, value) in tags {
            hash.text(key);
            hash.text(value);
        }
        hash.count(transitive_tag_keys.len());
        for key in transitive_tag_keys {
            hash.text(key);
        }
        hash.optional(region.as_deref());
        hash.optional(endpoint.as_deref());
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use sluicegate_aws::Secret;

    use super::*;

    #[test]
    fn every_input_tells_identities_apart() {
        let keys = |access: &str, secret: &str, token: Option<&str>| {
            Provider::Static(Credentials {
                access_key: access.to_owned(),
                secret_key: Secret::from(secret),
                session_token: token.map(Secret::from),
            })
        };
        let text = |text: &str| Some(text.to_owned());
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let role = Role::default;
        let all = [
            (keys("a", "b", None), None),
            (keys("ab", "", None), None),
            (keys("a", "c", None), None),
            (keys("a", "b", Some("")), None),
            (keys("a", "b", Some("t")), None),
            (Provider::Env, None),
            (Provider::Chain, None),
            (Provider::Chain, Some(role())),
            (Provider::Imds, Some(role())),
            (Provider::Imds, Some(Role { arn: "a".to_owned(), ..role() })),
            (Provider::Imds, Some(Role { session_name: text("a"), ..role() })),
            (Provider::Imds, Some(Role { external_id: text("a"), ..role() })),
            (Provider::Imds, Some(Role { duration_secs: Some(900), ..role() })),
            (Provider::Imds, Some(Role { tags: vec![tag("a", "")], ..role() })),
            (Provider::Imds, Some(Role { tags: vec![tag("", "a")], ..role() })),
            (Provider::Imds, Some(Role { transitive_tag_keys: vec!["a".to_owned()], ..role() })),
            (Provider::Imds, Some(Role { region: text("a"), ..role() })),
            (Provider::Imds, Some(Role { endpoint: text("a"), ..role() })),
        ];
        let hashes: Vec<_> =
            all.iter().map(|(provider, role)| key(provider, role.as_ref())).collect();
        for (at, one) in hashes.iter().enumerate() {
            for (other_at, other) in hashes.iter().enumerate() {
                assert_eq!(at == other_at, one == other, "{:?} and {:?}", all[at], all[other_at]);
            }
        }
    }
}

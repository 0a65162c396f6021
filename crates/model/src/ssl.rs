//! `ssls`: certificates, by server name for clients, or our own towards an upstream.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::kind::Kind;
use crate::resource::{ViewError, optional_id, view};

/// Certificates and their keys.
///
/// Read it from a value whose defaults are filled in, or with [`Ssl::load`]. Keys are as stored:
/// [`Keyring::decrypt_pem`](crate::encrypt::Keyring::decrypt_pem) gives the PEM.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Ssl {
    /// Id.
    #[serde(deserialize_with = "optional_id")]
    pub id: Option<String>,
    /// Description for people.
    pub desc: Option<String>,
    /// Labels for people and controllers.
    pub labels: BTreeMap<String, String>,
    /// `server`, or `client` for one shown to upstreams.
    #[serde(rename = "type")]
    pub kind: String,
    /// Certificate chain, PEM.
    pub cert: String,
    /// Its private key.
    pub key: String,
    /// More certificates, for example of another key type.
    pub certs: Vec<String>,
    /// The keys of `certs`, in the same order.
    pub keys: Vec<String>,
    /// Server name, with `*.` in front for any subdomain. Either this or `snis`.
    pub sni: Option<String>,
    /// Several server names.
    pub snis: Vec<String>,
    /// 1: serves. 0: switched off.
    pub status: u8,
    /// Verification of clients.
    pub client: Option<Client>,
    /// TLS versions for these names instead of the global ones.
    pub ssl_protocols: Vec<String>,
}

impl Ssl {
    /// Reads stored certificates: defaults first.
    ///
    /// # Errors
    /// When the value does not pass its schema.
    pub fn load(value: &Value) -> Result<Self, ViewError> {
        view(Kind::Ssls, value)
    }

    /// Whether it is in use.
    pub fn is_enabled(&self) -> bool {
        self.status == 1
    }

    /// The server names, whichever way they were given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sni.iter().chain(&self.snis).map(String::as_str)
    }

    /// Certificates with their keys, the first pair first.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let more =
            self.certs.iter().zip(&self.keys).map(|(cert, key)| (cert.as_str(), key.as_str()));
        std::iter::once((self.cert.as_str(), self.key.as_str())).chain(more)
    }
}

impl fmt::Debug for Ssl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ssl")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("sni", &self.sni)
            .field("snis", &self.snis)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Verification of clients by their certificate.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Client {
    /// Who signs clients' certificates, PEM.
    pub ca: String,
    /// How long a chain may be.
    pub depth: u64,
    /// Paths that need no certificate.
    pub skip_mtls_uri_regex: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn certificates_are_read_with_their_defaults_and_keys_are_not_printed() {
        let (cert, key) = ("c".repeat(128), "k".repeat(64));
        let ssl = Ssl::load(&json!({
            "id": "1", "cert": cert, "key": key, "certs": [cert], "keys": [key],
            "snis": ["a.com", "*.b.com"], "client": {"ca": cert},
        }))
        .unwrap();
        assert_eq!((ssl.kind.as_str(), ssl.is_enabled()), ("server", true));
        assert_eq!(ssl.names().collect::<Vec<_>>(), ["a.com", "*.b.com"]);
        assert_eq!(ssl.pairs().count(), 2);
        assert_eq!(ssl.client.as_ref().map(|client| client.depth), Some(1));
        assert!(!format!("{ssl:?}").contains("kkk"));
    }
}

//! TLS towards clients: certificates by server name out of the snapshot, so that a changed
//! `ssls` resource serves the next handshake without a reload.

mod fixed;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use sluicegate_model::ssl::Ssl;

pub use fixed::{FixedError, FixedPem, fixed};

use crate::settings::{Settings, TlsSettings};

/// The certificates of one `ssls` resource.
#[derive(Debug)]
pub struct TlsEntry {
    /// Lower-case names; `*.` for any one label in front.
    names: Vec<String>,
    keys: Vec<Arc<CertifiedKey>>,
}

impl TlsEntry {
    /// Parses the certificates and keys of a resource and matches them with each other.
    /// A disabled resource, or one that is for upstreams, has no names here.
    pub fn compile(id: &str, ssl: &Ssl) -> Result<Self, String> {
        if ssl.client.is_some() {
            // Serving it without asking for the client's certificate would let everybody in.
            return Err(format!(
                "ssl {id}: client certificates (client.ca) are not verified by this version, so its names are not served"
            ));
        }
        let keys = ssl
            .pairs()
            .map(|(cert, key)| certified(cert, key).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let serves = ssl.is_enabled() && ssl.kind != "client";
        let names = ssl.names().filter(|_| serves).map(str::to_ascii_lowercase).collect();
        Ok(Self { names, keys })
    }
}

/// Checks that a PEM text holds at least one certificate.
pub fn parse_certificate(cert: &str) -> Result<(), String> {
    for cert in crate::client::parse_chain(cert)? {
        x509_parser::parse_x509_certificate(&cert)
            .map_err(|e| format!("the certificate cannot be read: {e}"))?;
    }
    Ok(())
}

/// Parses a private key.
pub fn parse_key(key: &str) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| format!("failed to parse key: PEM_read_bio_PrivateKey() failed: {e}"))?;
    provider::sign::any_supported_type(&key)
        .map_err(|e| format!("the private key cannot be used: {e}"))
}

/// Parses a certificate chain and its key, and checks that they belong together.
pub fn certified(cert: &str, key: &str) -> Result<CertifiedKey, String> {
    let chain = crate::client::parse_chain(cert)?;
    let certified = CertifiedKey::new(chain, parse_key(key)?);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(e) => Err(format!("the certificate and the private key do not belong together: {e}")),
    }
}

/// All certificates by server name.
#[derive(Debug, Default)]
pub struct Certificates {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what follows the `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    any: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Puts the certificates of many resources together.
    pub fn build(entries: impl Iterator<Item = Arc<TlsEntry>>) -> Self {
        let mut all = Self::default();
        for entry in entries {
            for name in &entry.names {
                let list = if name == "*" {
                    &mut all.any
                } else if let Some(rest) = name.strip_prefix("*.") {
                    all.wildcard.entry(rest.to_owned()).or_default()
                } else {
                    all.exact.entry(name.clone()).or_default()
                };
                list.extend(entry.keys.iter().cloned());
            }
        }
        all
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_empty()
    }

    fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        if let Some(found) = self.exact.get(name) {
            return found;
        }
        if let Some((_, rest)) = name.split_once('.')
            && let Some(found) = self.wildcard.get(rest)
        {
            return found;
        }
        &self.any
    }
}

/// TLS towards clients, replaced as a whole when the static configuration changes.
pub struct TlsServer {
    config: ArcSwap<ServerConfig>,
    resolver: Arc<Resolver>,
}

#[derive(Debug)]
struct Resolver {
    certificates: ArcSwap<Certificates>,
    fallback: ArcSwap<Option<String>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificates = self.certificates.load();
        let fallback = self.fallback.load();
        let asked = hello.server_name().map(str::to_ascii_lowercase);
        let name = asked.as_deref().or(fallback.as_deref())?;
        let schemes = hello.signature_schemes();
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        certificates.find(name).iter().find(fits).cloned()
    }
}

impl TlsServer {
    /// TLS as `settings` want it, with no certificate yet.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let resolver = Arc::new(Resolver {
            certificates: ArcSwap::default(),
            fallback: ArcSwap::from_pointee(settings.tls.fallback_sni.clone()),
        });
        let config = server_config(settings, resolver.clone())?;
        Ok(Self { config: ArcSwap::from_pointee(config), resolver })
    }

    /// New handshakes follow these settings.
    pub fn reload(&self, settings: &Settings) -> Result<(), String> {
        let config = server_config(settings, self.resolver.clone())?;
        self.resolver.fallback.store(Arc::new(settings.tls.fallback_sni.clone()));
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// New handshakes choose from these certificates.
    pub fn publish(&self, certificates: Arc<Certificates>) {
        self.resolver.certificates.store(certificates);
    }

    /// The configuration for a new handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }
}

fn server_config(settings: &Settings, resolver: Arc<Resolver>) -> Result<ServerConfig, String> {
    let mut provider_used = provider::default_provider();
    provider_used.cipher_suites = cipher_suites(&settings.tls.ciphers);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider_used))
        .with_protocol_versions(&versions(&settings.tls))
        .map_err(|e| format!("apisix.ssl.ssl_protocols: {e}"))?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = match settings.http2 {
        true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        false => vec![b"http/1.1".to_vec()],
    };
    if settings.tls.session_tickets {
        config.ticketer = provider::Ticketer::new().map_err(|e| e.to_string())?;
    } else {
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn versions(settings: &TlsSettings) -> Vec<&'static rustls::SupportedProtocolVersion> {
    let versions =
        [(settings.tls12, &rustls::version::TLS12), (settings.tls13, &rustls::version::TLS13)];
    versions.into_iter().filter(|(on, _)| *on).map(|(_, version)| version).collect()
}

/// The suites of TLS 1.3, and those of TLS 1.2 that `names` list in their order of preference.
fn cipher_suites(names: &[String]) -> Vec<rustls::SupportedCipherSuite> {
    let all = provider::ALL_CIPHER_SUITES;
    let of_12 = |name: &String| {
        let known = OPENSSL_NAMES.iter().find(|(openssl, _)| openssl.eq_ignore_ascii_case(name))?;
        all.iter().find(|suite| suite.suite() == known.1).copied()
    };
    let mut chosen: Vec<_> = names.iter().filter_map(of_12).collect();
    if chosen.is_empty() {
        return all.to_vec();
    }
    let of_13 = all.iter().filter(|suite| suite.tls13().is_some());
    chosen.extend(of_13);
    chosen
}

/// What OpenSSL, and so config.yaml, calls the TLS 1.2 suites that rustls has.
const OPENSSL_NAMES: [(&str, rustls::CipherSuite); 6] = {
    use rustls::CipherSuite as S;
    [
        ("ECDHE-ECDSA-AES256-GCM-SHA384", S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        ("ECDHE-RSA-AES256-GCM-SHA384", S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        ("ECDHE-RSA-AES128-GCM-SHA256", S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        ("ECDHE-RSA-CHACHA20-POLY1305", S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cipher_names_choose_the_suites_of_tls_1_2_only() {
        let names = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|n| (*n).to_owned()).collect();
            let suites = cipher_suites(&list);
            let old = suites.iter().filter(|s| s.tls13().is_none()).count();
            (old, suites.len() - old)
        };
        let (all, new) = names(&[]);
        assert!(all >= 6 && new >= 2);
        assert_eq!(names(&["ECDHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"]), (1, new));
        assert_eq!(names(&["HIGH", "!aNULL"]), (all, new));
    }
}

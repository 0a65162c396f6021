//! TLS towards clients: certificates by server name out of the snapshot, so that a changed
//! `ssls` resource serves the next handshake without a reload.

mod client_auth;
mod doubts;
mod fixed;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use sluicegate_model::ssl::Ssl;
use tracing::warn;

pub(crate) use doubts::doubt;

pub use client_auth::{CertificateField, ClientAuth, ClientCertificate, ToldCertificate};
pub use fixed::{FixedError, FixedPem, fixed};

use crate::settings::Settings;

/// One `ssls` resource.
#[derive(Debug)]
pub struct TlsEntry {
    /// Lower-case names; `*.` for any one label in front.
    names: Vec<String>,
    keys: Vec<Arc<CertifiedKey>>,
    /// Who may come in.
    client: Option<Arc<ClientAuth>>,
    /// Which of TLS 1.2 and 1.3 these names speak, if not what all speak.
    versions: Option<(bool, bool)>,
    /// The configuration of its own, and for which settings it was made.
    config: ArcSwapOption<(u64, Arc<ServerConfig>)>,
}

impl TlsEntry {
    /// Parses the certificates and keys of a resource and matches them with each other.
    /// A disabled resource, or one that is for upstreams, has no names here.
    pub fn compile(id: &str, ssl: &Ssl) -> Result<Self, String> {
        let keys = ssl
            .pairs()
            .map(|(cert, key)| certified(cert, key).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let serves = ssl.is_enabled() && ssl.kind != "client";
        let certs = ssl.pairs().filter(|_| ssl.is_enabled()).map(|(cert, _)| cert);
        for why in certs.filter_map(|cert| doubt(cert, serves)) {
            warn!(ssl = id, %why, "A certificate will not be believed by everybody it is shown to.");
        }
        let names = ssl.names().filter(|_| serves);
        let names = names.map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect();
        let versions = (!ssl.ssl_protocols.is_empty()).then(|| {
            let has = |version: &str| ssl.ssl_protocols.iter().any(|name| name == version);
            if has("TLSv1.1") {
                warn!(
                    ssl = id,
                    "TLSv1.1 is not served: this gateway speaks TLSv1.2 and TLSv1.3 only."
                );
            }
            (has("TLSv1.2"), has("TLSv1.3"))
        });
        if versions == Some((false, false)) {
            return Err(format!(
                "ssl {id}: `ssl_protocols` names no version that this gateway speaks: add TLSv1.2 or TLSv1.3"
            ));
        }
        let client = ssl.client.as_ref().map(ClientAuth::compile).transpose()?;
        Ok(Self { names, keys, client, versions, config: ArcSwapOption::empty() })
    }

    /// Needs it a configuration of its own?
    fn is_special(&self) -> bool {
        self.client.is_some() || self.versions.is_some()
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
    // rustls shows a certificate of version 1, and cannot read it itself.
    if let Some(own) = certified.cert.first()
        && let Ok((_, cert)) = x509_parser::parse_x509_certificate(own)
        && doubts::is_version_1(&cert)
    {
        let spki = certified.key.public_key();
        return match spki.is_none_or(|spki| *spki == *cert.public_key().raw) {
            true => Ok(certified),
            false => Err("the certificate and the private key do not belong together".to_owned()),
        };
    }
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(e) => Err(format!("the certificate and the private key do not belong together: {e}")),
    }
}

/// All certificates by server name.
///
/// A change makes a new version that shares everything with the one before but the few parts that
/// the change is about, so that it costs the same however many there are.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    exact: Names,
    /// By what follows the `*.`.
    wildcard: Names,
    any: Holders,
    /// Resources with a configuration of their own, and those of them that ask for certificates.
    special: usize,
    asking: usize,
}

/// Who has certificates for a name, by the resource's id: the first one serves.
type Holders = BTreeMap<Arc<str>, Arc<TlsEntry>>;

impl Certificates {
    /// Puts the certificates of a resource in the place of those it had before.
    pub fn change(
        &mut self,
        id: &Arc<str>,
        before: Option<&TlsEntry>,
        now: Option<&Arc<TlsEntry>>,
    ) {
        let counted = |entry: &TlsEntry| {
            let serves = !entry.names.is_empty();
            let special = usize::from(serves && entry.is_special());
            (special, usize::from(serves && entry.client.is_some()))
        };
        let (gone, come) =
            (before.map_or((0, 0), counted), now.map_or((0, 0), |entry| counted(entry)));
        self.special = (self.special + come.0).saturating_sub(gone.0);
        self.asking = (self.asking + come.1).saturating_sub(gone.1);
        for name in before.into_iter().flat_map(|entry| &entry.names) {
            self.holders(name, &mut |holders| drop(holders.remove(id)));
        }
        let Some(entry) = now else { return };
        for name in &entry.names {
            self.holders(name, &mut |holders| drop(holders.insert(id.clone(), entry.clone())));
        }
    }

    fn holders(&mut self, name: &str, change: &mut dyn FnMut(&mut Holders)) {
        if name == "*" {
            change(&mut self.any);
        } else if let Some(rest) = name.strip_prefix("*.") {
            self.wildcard.change(rest, change);
        } else {
            self.exact.change(name, change);
        }
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_empty()
    }

    /// Is any name served to clients with certificates only?
    pub(crate) fn asks_clients(&self) -> bool {
        self.asking > 0
    }

    /// Which certificates clients need for a name, if any.
    pub(crate) fn client_auth(&self, name: &str) -> Option<&Arc<ClientAuth>> {
        self.find(name).find_map(|entry| entry.client.as_ref())
    }

    /// What has a configuration of its own for a name. Of several, one that asks for certificates.
    fn special(&self, name: &str) -> Option<&Arc<TlsEntry>> {
        let asking = self.find(name).find(|entry| entry.client.is_some());
        asking.or_else(|| self.find(name).next().filter(|entry| entry.is_special()))
    }

    fn find(&self, name: &str) -> impl Iterator<Item = &Arc<TlsEntry>> {
        let wildcard = || name.split_once('.').and_then(|(_, rest)| self.wildcard.get(rest));
        let holders = self.exact.get(name).or_else(wildcard).unwrap_or(&self.any);
        holders.values()
    }
}

/// Names in parts, of which a change copies one.
#[derive(Debug, Clone)]
struct Names {
    parts: Box<[Arc<HashMap<String, Holders>>]>,
    hasher: RandomState,
}

impl Default for Names {
    fn default() -> Self {
        Self { parts: vec![Arc::default(); NAME_PARTS].into(), hasher: RandomState::new() }
    }
}

impl Names {
    fn part(&self, name: &str) -> usize {
        (self.hasher.hash_one(name) % NAME_PARTS as u64) as usize
    }

    fn get(&self, name: &str) -> Option<&Holders> {
        self.parts[self.part(name)].get(name)
    }

    fn change(&mut self, name: &str, change: &mut dyn FnMut(&mut Holders)) {
        let part = self.part(name);
        let names = Arc::make_mut(&mut self.parts[part]);
        let holders = names.entry(name.to_owned()).or_default();
        change(holders);
        if holders.is_empty() {
            names.remove(name);
        }
    }

    fn is_empty(&self) -> bool {
        self.parts.iter().all(|names| names.is_empty())
    }
}

/// TLS towards clients, replaced as a whole when the static configuration changes.
pub struct TlsServer {
    config: ArcSwap<ServerConfig>,
    /// The settings in force, and their number.
    settings: ArcSwap<(u64, Settings)>,
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
        certificates.find(name).flat_map(|entry| &entry.keys).find(fits).cloned()
    }
}

impl TlsServer {
    /// TLS as `settings` want it, with no certificate yet.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let resolver = Arc::new(Resolver {
            certificates: ArcSwap::default(),
            fallback: ArcSwap::from_pointee(settings.tls.fallback_sni.clone()),
        });
        let config = server_config(settings, resolver.clone(), None)?;
        Ok(Self {
            config: ArcSwap::from_pointee(config),
            settings: ArcSwap::from_pointee((0, settings.clone())),
            resolver,
        })
    }

    /// New handshakes follow these settings.
    pub fn reload(&self, settings: &Settings) -> Result<(), String> {
        let config = server_config(settings, self.resolver.clone(), None)?;
        let number = self.settings.load().0 + 1;
        self.settings.store(Arc::new((number, settings.clone())));
        self.resolver.fallback.store(Arc::new(settings.tls.fallback_sni.clone()));
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// New handshakes choose from these certificates.
    pub fn publish(&self, certificates: Arc<Certificates>) {
        self.resolver.certificates.store(certificates);
    }

    /// The configuration for a new handshake, unless the name it asks for has one of its own.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// The name of a handshake whose client asks for none.
    pub(crate) fn fallback(&self) -> Option<String> {
        self.resolver.fallback.load().as_ref().clone()
    }

    /// Has any name a configuration of its own?
    pub(crate) fn has_special(&self) -> bool {
        self.resolver.certificates.load().special > 0
    }

    /// The configuration for a handshake that asks for this name, and which certificates it asks
    /// the client for: as clients of which name.
    ///
    /// # Errors
    /// The settings and the resource do not go together.
    pub(crate) fn config_for(&self, name: Option<&str>) -> Result<Handshake, String> {
        let certificates = self.resolver.certificates.load();
        let fallback = self.resolver.fallback.load();
        let asked = name.map(str::to_ascii_lowercase);
        let name = asked.as_deref().or(fallback.as_deref());
        let special = name.and_then(|name| Some((name, certificates.special(name)?)));
        let Some((name, entry)) = special else { return Ok((self.config(), None)) };
        let client = || Some((entry.client.clone()?, Box::from(name)));
        let settings = self.settings.load();
        if let Some(made) = &*entry.config.load()
            && made.0 == settings.0
        {
            return Ok((made.1.clone(), client()));
        }
        let config = Arc::new(server_config(&settings.1, self.resolver.clone(), Some(entry))?);
        entry.config.store(Some(Arc::new((settings.0, config.clone()))));
        Ok((config, client()))
    }
}

/// How a handshake goes on: its configuration, and which certificates are asked for, as what is
/// served to clients of which name.
pub(crate) type Handshake = (Arc<ServerConfig>, Option<(Arc<ClientAuth>, Box<str>)>);

fn server_config(
    settings: &Settings,
    resolver: Arc<Resolver>,
    special: Option<&TlsEntry>,
) -> Result<ServerConfig, String> {
    let mut provider_used = provider::default_provider();
    provider_used.cipher_suites = cipher_suites(&settings.tls.ciphers)?;
    let (tls12, tls13) = special
        .and_then(|entry| entry.versions)
        .unwrap_or((settings.tls.tls12, settings.tls.tls13));
    let builder = ServerConfig::builder_with_provider(Arc::new(provider_used))
        .with_protocol_versions(&versions(tls12, tls13))
        .map_err(|e| format!("apisix.ssl.ssl_protocols: {e}"))?;
    let client = special.and_then(|entry| entry.client.as_ref());
    let builder = match client {
        Some(client) => {
            builder.with_client_cert_verifier(Arc::new(client_auth::Asking(client.clone())))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = match settings.http2 {
        true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        false => vec![b"http/1.1".to_vec()],
    };
    if client.is_some() {
        // A resumed session would bring back a certificate that is no longer trusted.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    } else if settings.tls.session_tickets {
        config.ticketer = provider::Ticketer::new().map_err(|e| e.to_string())?;
    } else {
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn versions(tls12: bool, tls13: bool) -> Vec<&'static rustls::SupportedProtocolVersion> {
    let versions = [(tls12, &rustls::version::TLS12), (tls13, &rustls::version::TLS13)];
    versions.into_iter().filter(|(on, _)| *on).map(|(_, version)| version).collect()
}

/// The suites of TLS 1.3, and those of TLS 1.2 that `names` list in their order of preference; all
/// where it lists nothing.
fn cipher_suites(names: &[String]) -> Result<Vec<rustls::SupportedCipherSuite>, String> {
    let all = provider::ALL_CIPHER_SUITES;
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let of_12 = |name: &String| {
        let known = OPENSSL_NAMES.iter().find(|(openssl, _)| openssl.eq_ignore_ascii_case(name))?;
        all.iter().find(|suite| suite.suite() == known.1).copied()
    };
    let mut chosen: Vec<_> = names.iter().filter_map(of_12).collect();
    // Never more than what is asked for.
    if chosen.is_empty() {
        return Err(format!("no cipher suite of TLS 1.2 is among {}", names.join(", ")));
    }
    let of_13 = all.iter().filter(|suite| suite.tls13().is_some());
    chosen.extend(of_13);
    Ok(chosen)
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

/// Into how many parts names are split: of 100,000, a change copies some 100.
const NAME_PARTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_served_by_the_first_resource_that_has_it_however_they_changed() {
        let key = |name: &str| {
            let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            let (cert, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
            Arc::new(certified(&cert, &key).unwrap())
        };
        let keys: Vec<_> = ["a", "b", "c", "d"].map(key).into();
        let entry = |names: &[&str], own: usize| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Arc::new(TlsEntry {
                names,
                keys: vec![keys[own].clone()],
                client: None,
                versions: None,
                config: ArcSwapOption::empty(),
            })
        };
        let found = |all: &Certificates, name: &str| {
            let first = all.find(name).next()?.keys[0].clone();
            keys.iter().position(|key| Arc::ptr_eq(key, &first))
        };
        let id = |id: &str| -> Arc<str> { id.into() };
        let mut all = Certificates::default();
        assert!(all.is_empty());
        let (one, two) = (entry(&["x.test", "*.y.test"], 0), entry(&["x.test", "*"], 1));
        all.change(&id("2"), None, Some(&two));
        all.change(&id("1"), None, Some(&one));
        let before = all.clone();
        for (name, expected) in [
            ("x.test", Some(0)),
            ("a.y.test", Some(0)),
            ("y.test", Some(1)),
            ("a.b.y.test", Some(1)),
            ("z.test", Some(1)),
        ] {
            assert_eq!(found(&all, name), expected, "{name}");
        }
        let new = entry(&["*.y.test"], 2);
        all.change(&id("1"), Some(&one), Some(&new));
        assert_eq!((found(&all, "x.test"), found(&all, "a.y.test")), (Some(1), Some(2)));
        all.change(&id("2"), Some(&two), None);
        assert_eq!((found(&all, "x.test"), found(&all, "z.test")), (None, None));
        all.change(&id("1"), Some(&new), None);
        assert!(all.is_empty());
        // What requests hold is not touched.
        assert_eq!(found(&before, "x.test"), Some(0));
    }

    #[test]
    fn a_certificate_of_version_1_is_served_with_its_own_key_only() {
        let (cert, key) =
            (include_str!("testdata/v1.cert.pem"), include_str!("testdata/v1.key.pem"));
        assert!(certified(cert, key).is_ok());
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(
            certified(cert, &other).unwrap_err(),
            "the certificate and the private key do not belong together"
        );
    }

    #[test]
    fn cipher_names_choose_the_suites_of_tls_1_2_only() {
        let names = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|n| (*n).to_owned()).collect();
            let suites = cipher_suites(&list).ok()?;
            let old = suites.iter().filter(|s| s.tls13().is_none()).count();
            Some((old, suites.len() - old))
        };
        let (all, new) = names(&[]).unwrap();
        assert!(all >= 6 && new >= 2);
        assert_eq!(
            names(&["ECDHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"]),
            Some((1, new))
        );
        assert_eq!(names(&["DHE-RSA-AES128-GCM-SHA256"]), None, "not all of them");
    }
}

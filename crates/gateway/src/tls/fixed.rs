//! TLS of a door with one certificate: the Admin API's.

use std::sync::Arc;

use rustls::crypto::ring as provider;
use rustls::server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::{RootCertStore, ServerConfig, sign::SingleCertAndKey};

use super::{certified, cipher_suites, versions};
use crate::settings::TlsSettings;

/// The files of such a door, as PEM texts.
#[derive(Clone, Copy)]
pub struct FixedPem<'a> {
    /// The certificate and what leads to its authority.
    pub cert: &'a str,
    /// Its private key.
    pub key: &'a str,
    /// The authorities of client certificates, where those are asked for.
    pub client_ca: Option<&'a str>,
}

/// TLS with one certificate for every name, HTTP/1.1 only.
///
/// With a client authority, a certificate of another one ends the handshake. A client that has
/// none gets through it, so that it can be told: whoever serves the connection looks for
/// [`peer_certificates`](rustls::CommonState::peer_certificates) first.
pub fn fixed(settings: &TlsSettings, pem: FixedPem<'_>) -> Result<ServerConfig, FixedError> {
    let key = certified(pem.cert, pem.key).map_err(FixedError::Certificate)?;
    let mut used = provider::default_provider();
    used.cipher_suites = cipher_suites(&settings.ciphers).map_err(FixedError::Certificate)?;
    let used = Arc::new(used);
    let clients: Arc<dyn ClientCertVerifier> = match pem.client_ca {
        None => Arc::new(NoClientAuth),
        Some(authorities) => {
            let chain = crate::client::parse_chain(authorities).map_err(FixedError::ClientCa)?;
            let mut roots = RootCertStore::empty();
            for one in chain {
                roots.add(one).map_err(|e| FixedError::ClientCa(e.to_string()))?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), used.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|e| FixedError::ClientCa(e.to_string()))?
        }
    };
    let mut config = ServerConfig::builder_with_provider(used)
        .with_protocol_versions(&versions(settings.tls12, settings.tls13))
        .map_err(|e| FixedError::Certificate(e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    // A resumed session would bring back a client certificate that is no longer trusted.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// What is wrong with the files of a door.
#[derive(Debug, thiserror::Error)]
pub enum FixedError {
    /// The certificate or its key.
    #[error("{0}")]
    Certificate(String),
    /// The authorities of client certificates.
    #[error("{0}")]
    ClientCa(String),
}

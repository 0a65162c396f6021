//! TLS towards upstreams: one configuration for each distinct set of demands, shared by
//! all that make them, so that a changed route does not cost another its connections.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::TlsTarget;

/// What a TLS connection has to be like.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TlsRequest {
    /// The name asked for and, when verifying, demanded.
    pub server_name: String,
    /// Verify the certificate.
    pub verify: bool,
    /// Offer HTTP/2 only (gRPC).
    pub h2: bool,
    /// A client certificate and its key, PEM.
    pub client: Option<(String, String)>,
}

/// The TLS client configurations in use.
pub struct TlsClients {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    /// Where they come from; `None`: from the system.
    trusted_pem: Option<Box<[u8]>>,
    /// Why there are no roots, if there are none.
    roots_error: Option<String>,
    made: Mutex<HashMap<TlsRequest, Arc<TlsTarget>>>,
    /// What has been warned about.
    warned: Mutex<HashSet<String>>,
    /// Ids are never given twice: 0 stands for no TLS.
    next_id: AtomicU64,
}

impl TlsClients {
    /// Uses the system's roots, or the certificates of a PEM text.
    pub fn new(trusted_pem: Option<&[u8]>) -> Self {
        let mut roots = RootCertStore::empty();
        let mut roots_error = None;
        match trusted_pem {
            Some(pem) => {
                for cert in CertificateDer::pem_slice_iter(pem).flatten() {
                    // A root rustls cannot read is one it could not use.
                    let _ = roots.add(cert);
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                roots_error = found.errors.first().map(ToString::to_string);
            }
        }
        if roots.is_empty() && roots_error.is_none() {
            roots_error = Some("no root certificate was found".into());
        }
        Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            roots: Arc::new(roots),
            trusted_pem: trusted_pem.map(Into::into),
            roots_error,
            made: Mutex::default(),
            warned: Mutex::default(),
            next_id: AtomicU64::new(1),
        }
    }

    /// The certificates that are trusted in the place of the system's.
    pub fn trusted_pem(&self) -> Option<&[u8]> {
        self.trusted_pem.as_deref()
    }

    /// Why certificates cannot be verified, if so.
    pub fn roots_error(&self) -> Option<&str> {
        self.roots_error.as_deref().filter(|_| self.roots.is_empty())
    }

    /// Is this the first time that something about `what` is to be warned about?
    pub fn first_warning(&self, what: &str) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        warned.len() < WARNINGS_KEPT && warned.insert(what.to_owned())
    }

    /// The target for these demands; the same one for the same demands.
    pub fn target(&self, request: &TlsRequest) -> Result<Arc<TlsTarget>, String> {
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(target) = made.get(request) {
            return Ok(target.clone());
        }
        if made.len() >= TLS_TARGETS_KEPT {
            made.retain(|_, target| Arc::strong_count(target) > 1);
        }
        let name = ServerName::try_from(request.server_name.clone())
            .map_err(|_| format!("{:?} is not a host name", request.server_name))?;
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let builder = if request.verify {
            builder.with_root_certificates(self.roots.clone())
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyServer(self.provider.clone())))
        };
        let mut config = match &request.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let own = crate::tls::certified(cert, key)
                    .map_err(|e| format!("the client certificate does not work: {e}"))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
            }
        };
        config.alpn_protocols =
            if request.h2 { vec![b"h2".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let target = Arc::new(TlsTarget { id, config: Arc::new(config), name });
        made.insert(request.clone(), target.clone());
        Ok(target)
    }
}

/// The certificates of a PEM text; at least one.
pub(crate) fn parse_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| format!("the certificate cannot be read: {e}"))?;
    if chain.is_empty() {
        return Err("there is no certificate in the PEM text".into());
    }
    Ok(chain)
}

/// Takes any certificate (`ssl_verify: false`, `tls.verify: false`); the handshake's own
/// signature is checked all the same.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Distinct warnings given.
const WARNINGS_KEPT: usize = 4096;

/// Configurations kept before unused ones are dropped.
const TLS_TARGETS_KEPT: usize = 1024;

//! TLS towards the Admin API of the gateway in the same folder, for `sluicegate config`.
//!
//! That gateway's certificate is in a file beside us, so that it is compared with the file: there is
//! no name to check, and no authority to trust.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sluicegate_config::AdminTls;
use tokio_rustls::TlsConnector;

use crate::cli::Place;
use crate::doors::{CERT, pem};

/// What a client shows where the Admin API asks for a certificate: PEM files.
pub(crate) type Client<'a> = Option<(&'a PathBuf, &'a PathBuf)>;

/// Connects to the gateway whose certificate is in `files`.
pub(crate) fn connector(
    files: &AdminTls,
    place: &Place,
    client: Client<'_>,
) -> anyhow::Result<TlsConnector> {
    let text = pem(place, &files.cert, CERT)?;
    let expected = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|error| anyhow!("{CERT}: {error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(ThisOne { expected, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = CertificateDer::pem_file_iter(cert)
                .and_then(|certs| certs.collect::<Result<Vec<_>, _>>())
                .with_context(|| format!("{} holds no certificate", cert.display()))?;
            let key = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("{} holds no private key", key.display()))?;
            config.with_client_auth_cert(chain, key).context("--admin-cert, --admin-cert-key")?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that goes with a certificate nobody looks for a name in.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
}

/// Takes one certificate and no other.
#[derive(Debug)]
struct ThisOne {
    expected: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ThisOne {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *certificate == self.expected {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

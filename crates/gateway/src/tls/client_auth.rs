//! Certificates of clients: what `ssls.client` asks for.
//!
//! Where some paths need none (`skip_mtls_uri_regex`), the handshake takes whatever certificate
//! comes and the request decides; else one that does not verify ends the handshake.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fancy_regex::Regex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring as provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use sluicegate_model::ssl::Client;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Which certificates are taken, and for which paths none is needed.
pub struct ClientAuth {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Authorities between a client's certificate and a trusted one, at most.
    depth: u64,
    skip: Vec<Regex>,
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth").field("depth", &self.depth).finish_non_exhaustive()
    }
}

impl ClientAuth {
    /// Compiles `client` of an ssl.
    ///
    /// # Errors
    /// Which field is wrong, and why.
    pub fn compile(client: &Client) -> Result<Arc<Self>, String> {
        let mut roots = RootCertStore::empty();
        for one in crate::client::parse_chain(&client.ca)
            .map_err(|e| format!("failed to validate client_cert: {e}"))?
        {
            roots.add(one).map_err(|e| format!("failed to validate client_cert: {e}"))?;
        }
        let provider = Arc::new(provider::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| format!("failed to validate client_cert: {e}"))?;
        let skip = client.skip_mtls_uri_regex.iter().map(|text| {
            Regex::new(text).map_err(|e| format!("`client.skip_mtls_uri_regex` {text:?}: {e}"))
        });
        Ok(Arc::new(Self { verifier, depth: client.depth, skip: skip.collect::<Result<_, _>>()? }))
    }

    /// Does the handshake take clients whose certificate does not verify, or who have none?
    pub fn is_optional(&self) -> bool {
        !self.skip.is_empty()
    }

    /// Needs this path no certificate?
    pub fn skips(&self, uri: &[u8]) -> bool {
        let Ok(uri) = std::str::from_utf8(uri) else { return false };
        // A pattern that gives up does not let anybody in.
        self.skip.iter().any(|pattern| pattern.is_match(uri).unwrap_or(false))
    }

    /// Verifies a chain, the client's own certificate first.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let now = crate::core::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.verify_at(chain, UnixTime::since_unix_epoch(now)).map_err(|e| e.to_string())
    }

    fn verify_at(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let Some((own, between)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        self.verifier.verify_client_cert(own, between, now)?;
        match self.depth_of(own, between) <= self.depth {
            true => Ok(()),
            false => Err(Error::General(format!(
                "more than {} authorities stand between the certificate and a trusted one",
                self.depth
            ))),
        }
    }

    /// How many of `between` lead from a certificate to one of the trusted authorities.
    fn depth_of(&self, own: &CertificateDer<'_>, between: &[CertificateDer<'_>]) -> u64 {
        let issuer_of = |der: &CertificateDer<'_>| {
            let (_, cert) = X509Certificate::from_der(der).ok()?;
            Some((cert.subject().as_raw().to_vec(), cert.issuer().as_raw().to_vec()))
        };
        let trusted = self.verifier.root_hint_subjects();
        let known: Vec<_> = between.iter().filter_map(issuer_of).collect();
        let Some((_, mut issuer)) = issuer_of(own) else { return u64::MAX };
        for depth in 0..=known.len() as u64 {
            if trusted.iter().any(|name| name.as_ref() == issuer) {
                return depth;
            }
            let next = known.iter().find(|(subject, above)| *subject == issuer && above != subject);
            match next {
                Some((_, above)) => issuer.clone_from(above),
                None => return u64::MAX,
            }
        }
        u64::MAX
    }
}

/// Asks for a certificate in the handshake.
#[derive(Debug)]
pub(super) struct Asking(pub(super) Arc<ClientAuth>);

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        !self.0.is_optional()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !self.0.is_optional() {
            let chain: Vec<_> = std::iter::once(own).chain(between).cloned().collect();
            self.0.verify_at(&chain, now)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verifier.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verifier.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.verifier.supported_verify_schemes()
    }
}

/// What a client showed in the handshake.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// The certificate, DER.
    pub der: CertificateDer<'static>,
    /// Why it is not believed; `None`: it is.
    pub failure: Option<String>,
}

impl ClientCertificate {
    /// The certificate in words; `None`: it cannot be read.
    pub fn told(&self) -> Option<ToldCertificate> {
        let (_, cert) = X509Certificate::from_der(&self.der).ok()?;
        let time = |at: x509_parser::time::ASN1Time| {
            let at = jiff::Timestamp::from_second(at.timestamp()).ok()?;
            Some(at.strftime("%b %e %H:%M:%S %Y GMT").to_string())
        };
        let pairs: Vec<_> = cert.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        let der = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &self.der);
        let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
        for line in der.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).unwrap_or_default());
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        Some(ToldCertificate {
            pem,
            subject: name(cert.subject()),
            issuer: name(cert.issuer()),
            serial: pairs.join(":"),
            not_before: time(cert.validity().not_before)?,
            not_after: time(cert.validity().not_after)?,
        })
    }

    /// A field of the certificate as nginx's variables have it.
    pub fn field(&self, field: CertificateField) -> Option<String> {
        let (_, cert) = X509Certificate::from_der(&self.der).ok()?;
        Some(match field {
            CertificateField::Subject => name(cert.subject()),
            CertificateField::Issuer => name(cert.issuer()),
            CertificateField::Serial => hex(cert.raw_serial()).to_ascii_uppercase(),
            CertificateField::Fingerprint => {
                let algorithm = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
                hex(ring::digest::digest(algorithm, &self.der).as_ref())
            }
        })
    }
}

/// A certificate in words.
#[derive(Debug, Clone)]
pub struct ToldCertificate {
    /// All of it, in PEM.
    pub pem: String,
    /// Whose it is (RFC 2253).
    pub subject: String,
    /// Who signed it (RFC 2253).
    pub issuer: String,
    /// Its number, hexadecimal, in pairs with colons between them.
    pub serial: String,
    /// Since when it holds: `May 28 12:30:02 2019 GMT`.
    pub not_before: String,
    /// Until when.
    pub not_after: String,
}

/// What of a certificate is asked for.
#[derive(Debug, Clone, Copy)]
pub enum CertificateField {
    /// Whose it is (RFC 2253).
    Subject,
    /// Who signed it (RFC 2253).
    Issuer,
    /// Its number, hexadecimal.
    Serial,
    /// SHA-1 of all of it, hexadecimal.
    Fingerprint,
}

/// A name, the most particular part first (RFC 2253).
fn name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let registry = x509_parser::objects::oid_registry();
    let parts = name.iter_rdn().map(|rdn| {
        let attributes = rdn.iter().map(|attribute| {
            let oid = attribute.attr_type();
            let key = x509_parser::objects::oid2abbrev(oid, registry)
                .map_or_else(|_| oid.to_id_string(), str::to_owned);
            let value = attribute.as_str().unwrap_or_default();
            let mut text = format!("{key}=");
            for c in value.chars() {
                if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
                    text.push('\\');
                }
                text.push(c);
            }
            text
        });
        attributes.collect::<Vec<_>>().join("+")
    });
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts.join(",")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Certificates for one test.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl Pair {
    /// The certificate, DER.
    pub fn der(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.cert.as_bytes())
            .expect("the certificate is PEM")
            .to_vec()
    }
}

/// A certificate for `names` (DNS names, wildcards or addresses) that only itself vouches for.
pub fn self_signed(names: &[&str]) -> Pair {
    let key = KeyPair::generate().expect("the system has random bytes");
    let cert = params(names).self_signed(&key).expect("the parameters are valid");
    Pair { cert: cert.pem(), key: key.serialize_pem() }
}

/// A certificate authority of its own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Makes one.
    #[allow(clippy::new_without_default, reason = "each one is different; private where included")]
    pub fn new() -> Self {
        let mut params = params(&[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "testkit authority");
        let key = KeyPair::generate().expect("the system has random bytes");
        Self(CertifiedIssuer::self_signed(params, key).expect("the parameters are valid"))
    }

    /// Its certificate, as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Another authority that it vouches for.
    pub fn intermediate(&self) -> Self {
        let mut params = params(&[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "testkit intermediate authority");
        let key = KeyPair::generate().expect("the system has random bytes");
        Self(CertifiedIssuer::signed_by(params, key, &self.0).expect("the parameters are valid"))
    }

    /// A certificate for `names` that it vouches for.
    pub fn issue(&self, names: &[&str]) -> Pair {
        let key = KeyPair::generate().expect("the system has random bytes");
        let cert = params(names).signed_by(&key, &self.0).expect("the parameters are valid");
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).expect("names are valid");
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(first) = names.first() {
        params.distinguished_name.push(DnType::CommonName, first.as_str());
    }
    params
}

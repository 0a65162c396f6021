//! What a certificate lacks that TLS libraries of today ask for.
//!
//! OpenSSL takes certificates of X.509 version 1, and names in the subject's CN. rustls believes
//! neither, and no more do browsers: who configures such a certificate is told.

use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::x509::X509Version;

/// Why a certificate may not be believed by those that it is shown to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It is of X.509 version 1.
    Version1,
    /// It names hosts in its subject only.
    NameInSubjectOnly,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version1 => "it is of X.509 version 1, which rustls and browsers refuse",
            Self::NameInSubjectOnly => {
                "it has no subjectAltName, only a subject (CN), which rustls and browsers do not read"
            }
        })
    }
}

/// What is doubtful about the first certificate of a PEM text. Servers are known by their names;
/// clients need none.
pub(crate) fn doubt(pem: &str, of_server: bool) -> Option<Doubt> {
    let chain = crate::client::parse_chain(pem).ok()?;
    let (_, cert) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    if is_version_1(&cert) {
        return Some(Doubt::Version1);
    }
    let names = cert.subject_alternative_name().ok().flatten();
    (of_server && names.is_none()).then_some(Doubt::NameInSubjectOnly)
}

/// Is it of the version that rustls cannot read?
pub(super) fn is_version_1(cert: &X509Certificate<'_>) -> bool {
    cert.version() == X509Version::V1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of version 1; rcgen makes none.
    const V1: &str = include_str!("testdata/v1.cert.pem");

    #[test]
    fn old_certificates_and_those_without_names_are_doubted() {
        let named = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
        let key = rcgen::KeyPair::generate().unwrap();
        let nameless = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        for (pem, of_server, expected) in [
            (V1, true, Some(Doubt::Version1)),
            (V1, false, Some(Doubt::Version1)),
            (&*named, true, None),
            (&*nameless, true, Some(Doubt::NameInSubjectOnly)),
            (&*nameless, false, None),
            ("", true, None),
        ] {
            assert_eq!(doubt(pem, of_server), expected, "{of_server} {pem}");
        }
    }
}

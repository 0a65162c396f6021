//! Tokens and their signatures (RFC 7515, RFC 7518, RFC 7519, RFC 8037). No I/O, no clock.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use p521::ecdsa::signature::Verifier as _;
use ring::{hmac, signature};
use serde::Deserialize;
use serde_json::{Map, Value};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

/// A token, read and not verified yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// Its algorithm.
    pub(super) alg: Option<String>,
    /// Its claims.
    pub(super) claims: Map<String, Value>,
    /// What the signature is about.
    signed: &'a [u8],
    /// `None`: it cannot be read.
    signature: Option<Vec<u8>>,
}

impl<'a> Token<'a> {
    /// Reads a token in its compact form.
    pub(super) fn read(text: &'a [u8]) -> Result<Self, &'static str> {
        let mut parts = text.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("a token has three parts");
        };
        let decoded = |part: &[u8]| BASE64URL.decode(part).ok();
        let object =
            |part: &[u8]| serde_json::from_slice::<Map<String, Value>>(&decoded(part)?).ok();
        let mut protected = object(header).ok_or("its header cannot be read")?;
        if protected.contains_key("crit") {
            return Err("its header has extensions that must be understood");
        }
        let alg = match protected.remove("alg") {
            Some(Value::String(alg)) => Some(alg),
            _ => None,
        };
        Ok(Self {
            alg,
            claims: object(claims).ok_or("its claims cannot be read")?,
            signed: &text[..header.len() + 1 + claims.len()],
            signature: decoded(signature),
        })
    }

    /// Did the owner of the key sign it, by the algorithm of the key and no other?
    pub(super) fn verify(&self, key: &Key) -> Result<(), String> {
        if self.alg.as_deref() != Some(key.algorithm.name()) {
            let expected = key.algorithm.name();
            return Err(format!("failed to verify jwt: algorithm mismatch, expected {expected}"));
        }
        match &self.signature {
            Some(signature) if key.verifies(self.signed, signature) => Ok(()),
            _ => Err("failed to verify jwt: signature mismatch".to_owned()),
        }
    }

    /// Is it its time? Claims in `required` must be there; without any, those that are there count.
    pub(super) fn check_times(
        &self,
        required: &[Time],
        now: f64,
        grace: f64,
    ) -> Result<(), String> {
        let all = if required.is_empty() { &[Time::Nbf, Time::Exp][..] } else { required };
        for time in all {
            let name = time.name();
            let claim = match self.claims.get(name) {
                Some(claim) => claim
                    .as_f64()
                    .ok_or_else(|| format!("failed to verify jwt: claim {name} is not a number"))?,
                None if required.is_empty() => continue,
                None => return Err(format!("failed to verify jwt: claim {name} is missing")),
            };
            let (right, what) = match time {
                // From that moment on, as RFC 7519 has it.
                Time::Nbf => (claim <= now + grace, "not valid before"),
                Time::Exp => (claim > now - grace, "expired at"),
            };
            if !right {
                return Err(format!("failed to verify jwt: '{name}' claim {what} {claim}"));
            }
        }
        Ok(())
    }
}

/// A claim about time.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Time {
    /// Not before.
    Nbf,
    /// Expires.
    Exp,
}

impl Time {
    fn name(self) -> &'static str {
        match self {
            Self::Nbf => "nbf",
            Self::Exp => "exp",
        }
    }
}

/// A key that tokens are verified with.
pub(super) struct Key {
    algorithm: Algorithm,
    material: Material,
}

enum Material {
    Shared(hmac::Key),
    Public(signature::UnparsedPublicKey<Vec<u8>>),
    P521(Box<p521::ecdsa::VerifyingKey>),
}

impl Key {
    /// A secret that both sides share.
    pub(super) fn shared(algorithm: Algorithm, secret: &[u8]) -> Self {
        let hash = match algorithm {
            Algorithm::HS384 => hmac::HMAC_SHA384,
            Algorithm::HS512 => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        Self { algorithm, material: Material::Shared(hmac::Key::new(hash, secret)) }
    }

    /// A public key in PEM. The text that is wrong is in no error: it may be a private key.
    ///
    /// Differs: APISIX takes any text here and refuses each token later; it takes RSA keys that are
    /// too short to be safe, private keys, and Ed448.
    pub(super) fn public(algorithm: Algorithm, pem: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`public_key` {why}");
        let (_, pem) =
            parse_x509_pem(pem.trim_start().as_bytes()).map_err(|_| wrong("is not a PEM text"))?;
        if pem.label.contains("PRIVATE KEY") {
            return Err(wrong("is a private key: give the public one"));
        }
        let info;
        let (kind, key) = match &*pem.label {
            "RSA PUBLIC KEY" => ("rsaEncryption", &*pem.contents),
            "PUBLIC KEY" => {
                (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents)
                    .map_err(|_| wrong("cannot be read"))?;
                let parameters = info.algorithm.parameters.as_ref();
                let curve = parameters.and_then(|any| any.as_oid().ok()).map(|oid| oid.to_string());
                let kind = match (info.algorithm.algorithm.to_string().as_str(), curve.as_deref()) {
                    ("1.2.840.113549.1.1.1", _) => "rsaEncryption",
                    ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => "P-256",
                    ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => "P-384",
                    ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => "P-521",
                    ("1.3.101.112", _) => "Ed25519",
                    _ => return Err(wrong("is of a kind that is not supported")),
                };
                (kind, &*info.subject_public_key.data)
            }
            _ => return Err(wrong("is not a public key")),
        };
        if kind != algorithm.key_kind() {
            let (name, needed) = (algorithm.name(), algorithm.key_kind());
            return Err(format!("`public_key` is of kind {kind}: {name} needs {needed}"));
        }
        if kind == "rsaEncryption" {
            let bits = match RSAPublicKey::from_der(key) {
                Ok((_, key)) => PublicKey::RSA(key).key_size(),
                Err(_) => return Err(wrong("cannot be read")),
            };
            if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
                return Err(format!(
                    "`public_key` has {bits} bits: RSA keys have {RSA_BITS_MIN} to {RSA_BITS_MAX}"
                ));
            }
        }
        let material = match algorithm.method() {
            Some(method) => {
                Material::Public(signature::UnparsedPublicKey::new(method, key.to_vec()))
            }
            None => Material::P521(Box::new(
                p521::ecdsa::VerifyingKey::from_sec1_bytes(key)
                    .map_err(|_| wrong("is not on its curve"))?,
            )),
        };
        Ok(Self { algorithm, material })
    }

    /// Takes as long for every signature of one length.
    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Shared(key) => hmac::verify(key, signed, signature).is_ok(),
            Material::Public(key) => key.verify(signed, signature).is_ok(),
            Material::P521(key) => p521::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(signed, &signature).is_ok()),
        }
    }
}

/// How a token is signed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    ES512,
    PS256,
    PS384,
    PS512,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// As it stands in a token's header.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Do both sides share a secret?
    pub(super) fn is_shared(self) -> bool {
        self.key_kind() == "secret"
    }

    fn key_kind(self) -> &'static str {
        match self {
            Self::HS256 | Self::HS384 | Self::HS512 => "secret",
            Self::RS256 | Self::RS384 | Self::RS512 => "rsaEncryption",
            Self::PS256 | Self::PS384 | Self::PS512 => "rsaEncryption",
            Self::ES256 => "P-256",
            Self::ES384 => "P-384",
            Self::ES512 => "P-521",
            Self::EdDsa => "Ed25519",
        }
    }

    /// `None`: it is not one of ring's.
    fn method(self) -> Option<&'static dyn signature::VerificationAlgorithm> {
        Some(match self {
            Self::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::EdDsa => &signature::ED25519,
            Self::HS256 | Self::HS384 | Self::HS512 | Self::ES512 => return None,
        })
    }
}

/// Padding may be there, though it must not.
pub(super) const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// RFC 7518 section 3.3 asks for this at least.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

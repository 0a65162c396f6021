//! Statements that a service account signs to ask for tokens (RFC 7523, RS256).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

/// An RSA key that signs JSON web tokens.
pub struct JwtSigner(RsaKeyPair);

impl JwtSigner {
    /// Reads a private key in PEM, PKCS#8 or PKCS#1.
    ///
    /// # Errors
    /// When it is none; the text does not repeat it.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let unusable = || "private_key is no RSA key in PEM".to_owned();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| unusable())?;
        let key = match &key {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err(unusable()),
        };
        key.map(Self).map_err(|_| unusable())
    }

    /// The token of these claims; `key_id` tells the reader which key to verify with.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, claims: &Value, key_id: Option<&str>) -> Result<String, String> {
        let mut header = json!({"alg": "RS256", "typ": "JWT"});
        if let Some(key_id) = key_id {
            header["kid"] = key_id.into();
        }
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let mut jwt = format!("{}.{}", encode(&header), encode(claims));
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), jwt.as_bytes(), &mut signature)
            .map_err(|_| "private_key cannot sign".to_owned())?;
        jwt.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut jwt);
        Ok(jwt)
    }
}

impl fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtSigner")
    }
}

/// What such a statement is posted with to a token endpoint; the token follows.
pub const JWT_BEARER_FORM: &str =
    "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";

//! Secrets at rest, in APISIX's form: AES-CBC with PKCS#7 padding, key and IV both the keyring's
//! text, base64 of the result. A 16 byte key means AES-128, one of 32 bytes AES-256.
//!
//! One key for all and no authentication: this hides secrets from a glance at the store, no more.
//! It stays as it is so that a store can be shared with APISIX, or taken over from it.

use std::fmt;

use aes::{Aes128, Aes256};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use serde_json::Value;

use crate::Kind;

/// The keys of `apisix.data_encryption.keyring`. The first encrypts, each may decrypt.
#[derive(Clone, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

impl Keyring {
    /// Takes the keys of the configuration. One that [`is_key`] refuses is left out; without any,
    /// nothing is encrypted.
    pub fn new(keys: Vec<String>) -> Self {
        Self { keys: keys.iter().filter_map(|text| Key::from_text(text)).collect() }
    }

    /// Whether there is no key, and secrets are kept as they are.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Encrypts a text with the first key.
    pub fn encrypt(&self, text: &str) -> String {
        match self.keys.first() {
            Some(key) => BASE64.encode(key.encrypt(text.as_bytes())),
            None => text.to_owned(),
        }
    }

    /// Decrypts a text with the first key that fits it. `None`: it was not encrypted, or with
    /// another key.
    pub fn decrypt(&self, text: &str) -> Option<String> {
        if self.keys.is_empty() {
            return Some(text.to_owned());
        }
        let bytes = BASE64.decode(text).ok()?;
        self.keys.iter().find_map(|key| String::from_utf8(key.decrypt(&bytes)?).ok())
    }

    /// Encrypts the texts at these dotted paths.
    ///
    /// A path goes through lists item by item, and ends at a text, a list of texts or a map of texts.
    pub fn encrypt_paths(&self, value: &mut Value, paths: &[&str]) {
        for path in paths {
            at_path(value, path, &|text| *text = self.encrypt(text));
        }
    }

    /// Decrypts the texts at these dotted paths; what does not decrypt stays as it is.
    pub fn decrypt_paths(&self, value: &mut Value, paths: &[&str]) {
        for path in paths {
            at_path(value, path, &|text| {
                if let Some(plain) = self.decrypt(text) {
                    *text = plain;
                }
            });
        }
    }

    /// Which of the secrets at `paths` look like what a keyring encrypted and do not open with
    /// this one.
    pub fn sealed_paths<'p>(&self, value: &Value, paths: &[&'p str]) -> Vec<&'p str> {
        let mut sealed = Vec::new();
        if self.is_empty() {
            // Nothing is encrypted, and plain text may look like anything.
            return sealed;
        }
        let mut value = value.clone();
        for path in paths {
            let found = std::cell::Cell::new(false);
            at_path(&mut value, path, &|text| found.set(found.get() || self.is_sealed(text)));
            if found.get() {
                sealed.push(*path);
            }
        }
        sealed
    }

    /// Whether a text looks like what a keyring encrypted and does not open with this one.
    pub fn is_sealed(&self, text: &str) -> bool {
        let blocks = BASE64
            .decode(text.as_bytes())
            .is_ok_and(|bytes| !bytes.is_empty() && bytes.len() % 16 == 0);
        !self.is_empty() && blocks && self.decrypt(text).is_none()
    }

    /// Encrypts a private key in PEM. Anything else passes through: it is encrypted already, or a
    /// reference to a secret.
    pub fn encrypt_pem(&self, text: &str) -> String {
        if is_pem(text) { self.encrypt(text) } else { text.to_owned() }
    }

    /// Decrypts what [`encrypt_pem`](Self::encrypt_pem) made; PEM passes through.
    pub fn decrypt_pem(&self, text: &str) -> Option<String> {
        if is_pem(text) { Some(text.to_owned()) } else { self.decrypt(text) }
    }

    /// Encrypts the private keys of an `ssls` resource: `key` and `keys`.
    pub fn encrypt_ssl(&self, ssl: &mut Value) {
        for name in ["key", "keys"] {
            at_path(ssl, name, &|text| *text = self.encrypt_pem(text));
        }
    }

    /// Encrypts the client key of an upstream: `tls.client_key`.
    pub fn encrypt_upstream(&self, upstream: &mut Value) {
        at_path(upstream, "tls.client_key", &|text| *text = self.encrypt_pem(text));
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

/// Visits the private keys of a resource: those of an `ssls`, and the client key of an upstream
/// that stands alone or in a route or service.
pub fn each_private_key(kind: Kind, value: &mut Value, mut each: impl FnMut(&mut String)) {
    let mut visit = |key: Option<&mut Value>| {
        if let Some(Value::String(key)) = key {
            each(key);
        }
    };
    match kind {
        Kind::Ssls => {
            visit(value.get_mut("key"));
            let keys = value.get_mut("keys").and_then(Value::as_array_mut);
            keys.into_iter().flatten().for_each(|key| visit(Some(key)));
        }
        Kind::Upstreams => visit(value.pointer_mut("/tls/client_key")),
        _ => visit(value.pointer_mut("/upstream/tls/client_key")),
    }
}

/// Whether a text can be a key: 16 or 32 bytes.
pub fn is_key(text: &str) -> bool {
    Key::from_text(text).is_some()
}

#[derive(Clone)]
enum Key {
    Aes128([u8; 16]),
    Aes256([u8; 32]),
}

impl Key {
    fn from_text(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        match bytes.len() {
            16 => bytes.try_into().ok().map(Self::Aes128),
            32 => bytes.try_into().ok().map(Self::Aes256),
            _ => None,
        }
    }

    fn encrypt(&self, plain: &[u8]) -> Vec<u8> {
        match self {
            Self::Aes128(key) => cbc::Encryptor::<Aes128>::new(key.into(), key.into())
                .encrypt_padded_vec::<Pkcs7>(plain),
            Self::Aes256(key) => cbc::Encryptor::<Aes256>::new(key.into(), &iv(key).into())
                .encrypt_padded_vec::<Pkcs7>(plain),
        }
    }

    fn decrypt(&self, secret: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Aes128(key) => cbc::Decryptor::<Aes128>::new(key.into(), key.into())
                .decrypt_padded_vec::<Pkcs7>(secret),
            Self::Aes256(key) => cbc::Decryptor::<Aes256>::new(key.into(), &iv(key).into())
                .decrypt_padded_vec::<Pkcs7>(secret),
        }
        .ok()
    }
}

/// An IV is one block long, however long the key.
fn iv(key: &[u8; 32]) -> [u8; 16] {
    let mut iv = [0; 16];
    iv.copy_from_slice(&key[..16]);
    iv
}

fn is_pem(text: &str) -> bool {
    text.starts_with("---")
}

/// Applies a change to the texts at a dotted path.
pub fn at_path(value: &mut Value, path: &str, change: &dyn Fn(&mut String)) {
    let Some(map) = value.as_object_mut() else { return };
    let Some((name, rest)) = path.split_once('.') else {
        match map.get_mut(path) {
            Some(Value::String(text)) => change(text),
            Some(Value::Array(items)) => items.iter_mut().for_each(|item| if_text(item, change)),
            Some(Value::Object(members)) => {
                members.values_mut().for_each(|item| if_text(item, change))
            }
            _ => {}
        }
        return;
    };
    match map.get_mut(name) {
        Some(Value::Array(items)) => items.iter_mut().for_each(|item| at_path(item, rest, change)),
        Some(inner) => at_path(inner, rest, change),
        None => {}
    }
}

fn if_text(value: &mut Value, change: &dyn Fn(&mut String)) {
    if let Value::String(text) = value {
        change(text);
    }
}

/// Base64 with padding, and taken without it, too, as nginx does.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// APISIX's default keyring, under which the answers below were observed.
    fn keyring() -> Keyring {
        Keyring::new(vec!["qeddd145sfvddff3".to_owned(), "edd1c9f0985e76a2".to_owned()])
    }

    #[test]
    fn secrets_of_another_keyring_are_told_apart() {
        let (old, new) = (
            Keyring::new(vec!["0123456789abcdef".into()]),
            Keyring::new(vec!["fedcba9876543210".into()]),
        );
        let value = serde_json::json!({"a": {"key": old.encrypt("secret")}, "b": "plain"});
        assert_eq!(new.sealed_paths(&value, &["a.key", "b", "none"]), ["a.key"]);
        assert!(old.sealed_paths(&value, &["a.key", "b"]).is_empty());
        assert!(Keyring::new(Vec::new()).sealed_paths(&value, &["a.key"]).is_empty());
    }

    #[test]
    fn secrets_are_encrypted_as_apisix_encrypts_them() {
        for (plain, secret) in [
            ("my-api-key", "oQteeIDgmA7a0d+9eNugyg=="),
            ("jack-key", "1jhUSuP5Dz3oF/IEiJ1SAg=="),
            ("pw", "XMVxUvTfswWoRcNSzwHuGw=="),
            ("mk", "UyyR2vM/Tin3Dq909onwCQ=="),
        ] {
            assert_eq!(keyring().encrypt(plain), secret);
            assert_eq!(keyring().decrypt(secret).as_deref(), Some(plain));
        }
    }

    #[test]
    fn the_first_key_encrypts_and_every_key_decrypts() {
        let old = Keyring::new(vec!["edd1c9f0985e76a2".to_owned()]);
        let secret = old.encrypt("sixteen bytes ok");
        assert_ne!(secret, keyring().encrypt("sixteen bytes ok"));
        assert_eq!(keyring().decrypt(&secret).as_deref(), Some("sixteen bytes ok"));
        let long = Keyring::new(vec!["0123456789abcdef0123456789abcdef".to_owned()]);
        assert_eq!(long.decrypt(&long.encrypt("é")).as_deref(), Some("é"));
        assert_eq!(long.decrypt(&secret), None);
        for text in [
            "",
            "a",
            "fifteen bytes..",
            "sixteen bytes ok",
            "a longer text, of several blocks in all",
        ] {
            assert_eq!(keyring().decrypt(&keyring().encrypt(text)).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_was_not_encrypted_does_not_decrypt() {
        for text in ["plain", "", "aGVsbG8=", "oQteeIDgmA7a0d+9eNugyA==", "ä"] {
            assert_eq!(keyring().decrypt(text), None, "{text:?}");
        }
    }

    #[test]
    fn keys_of_other_lengths_are_left_out_and_without_keys_texts_stay() {
        assert!(is_key("qeddd145sfvddff3") && !is_key("short"));
        let none = Keyring::new(vec!["short".to_owned()]);
        assert!(none.is_empty());
        assert_eq!(none.encrypt("x"), "x");
        assert_eq!(none.decrypt("x").as_deref(), Some("x"));
    }

    #[test]
    fn paths_lead_through_maps_and_lists() {
        let plain = json!({
            "authorization": {"apikey": "my-api-key", "iam": {"secretkey": "my-api-key"}},
            "list": [{"key": "pw"}, {"other": "pw"}, "pw", {"key": 5}],
            "texts": ["pw", 1, "mk"],
            "map": {"a": "pw", "b": {"c": "pw"}},
            "number": 5,
        });
        let paths = [
            "authorization.apikey",
            "authorization.iam.secretkey",
            "list.key",
            "texts",
            "map",
            "number",
            "no.way",
        ];
        let mut value = plain.clone();
        keyring().encrypt_paths(&mut value, &paths);
        let pw = "XMVxUvTfswWoRcNSzwHuGw==";
        assert_eq!(
            value,
            json!({
                "authorization": {
                    "apikey": "oQteeIDgmA7a0d+9eNugyg==",
                    "iam": {"secretkey": "oQteeIDgmA7a0d+9eNugyg=="},
                },
                "list": [{"key": pw}, {"other": "pw"}, "pw", {"key": 5}],
                "texts": [pw, 1, "UyyR2vM/Tin3Dq909onwCQ=="],
                "map": {"a": pw, "b": {"c": "pw"}},
                "number": 5,
            })
        );
        keyring().decrypt_paths(&mut value, &paths);
        assert_eq!(value, plain);
        keyring().decrypt_paths(&mut value, &paths);
        assert_eq!(value, plain, "what does not decrypt stays");
    }

    #[test]
    fn only_pem_is_encrypted_as_a_private_key() {
        let pem = "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n";
        let mut ssl = json!({"key": pem, "keys": [pem, "$secret://vault/1/key"], "cert": pem});
        keyring().encrypt_ssl(&mut ssl);
        let secret = keyring().encrypt(pem);
        assert_eq!(
            ssl,
            json!({"key": secret, "keys": [secret, "$secret://vault/1/key"], "cert": pem})
        );
        let before = ssl.clone();
        keyring().encrypt_ssl(&mut ssl);
        assert_eq!(ssl, before, "an encrypted key is not encrypted again");
        assert_eq!(keyring().decrypt_pem(&secret).as_deref(), Some(pem));
        assert_eq!(keyring().decrypt_pem(pem).as_deref(), Some(pem));
        let mut upstream = json!({"tls": {"client_key": pem}});
        keyring().encrypt_upstream(&mut upstream);
        assert_eq!(upstream, json!({"tls": {"client_key": secret}}));
    }

    #[test]
    fn a_keyring_never_prints_its_keys() {
        assert_eq!(format!("{:?}", keyring()), "Keyring(2 keys)");
    }
}

//! ID tokens of Google: what Cloud Run and Cloud Functions want of a caller.
//!
//! A service account's key signs a statement for the token endpoint
//! (<https://developers.google.com/identity/protocols/oauth2/service-account>, with
//! `target_audience` in the place of `scope`), or the metadata server of the machine is asked
//! (<https://cloud.google.com/compute/docs/instances/verifying-instance-identity>).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_aws::credentials::Outside;
use sluicegate_fetch::{JWT_BEARER_FORM, JwtSigner};

use super::{Issued, METADATA_TIMEOUT, post_form, push_field, read, refusal, request};
use crate::hash::Hash;
use crate::kept::Key;

/// Who asks, and for whom the token is.
#[derive(Debug, Clone)]
pub struct GoogleSource {
    /// Who asks.
    pub account: GoogleAccount,
    /// The `aud` of the token: the service's URL.
    pub audience: String,
}

/// A service account.
#[derive(Debug, Clone)]
pub enum GoogleAccount {
    /// By its key.
    Key(Arc<ServiceAccountKey>),
    /// By its key in a file, which is read for each token.
    KeyFile {
        /// The file that the console gives.
        path: PathBuf,
        /// The token endpoint, instead of the one in the file.
        token_uri: Option<String>,
    },
    /// The one of the machine.
    Metadata {
        /// The metadata server, without a slash at its end.
        endpoint: String,
    },
}

impl GoogleSource {
    pub(super) fn hash(&self, hash: &mut Hash) {
        let Self { account, audience } = self;
        hash.text("google");
        hash.text(audience);
        match account {
            GoogleAccount::Key(key) => {
                let ServiceAccountKey { email, signer: _, key_id, token_uri, digest } = &**key;
                hash.text("key");
                hash.text(email);
                hash.optional(key_id.as_deref());
                hash.text(token_uri);
                hash.text(&URL_SAFE_NO_PAD.encode(digest));
            }
            GoogleAccount::KeyFile { path, token_uri } => {
                hash.text("file");
                hash.text(&path.to_string_lossy());
                hash.optional(token_uri.as_deref());
            }
            GoogleAccount::Metadata { endpoint } => {
                hash.text("metadata");
                hash.text(endpoint);
            }
        }
    }

    pub(super) async fn ask(&self, outside: &dyn Outside, now: u64) -> Result<Issued, String> {
        match &self.account {
            GoogleAccount::Key(key) => self.exchange(key, outside, now).await,
            GoogleAccount::KeyFile { path, token_uri } => {
                let bytes = read(outside, path).await?;
                let key = ServiceAccountKey::from_json(&bytes, token_uri.as_deref());
                let key = key.map_err(|cause| format!("{}: {cause}", path.display()))?;
                self.exchange(&key, outside, now).await
            }
            GoogleAccount::Metadata { endpoint } => self.metadata(endpoint, outside).await,
        }
    }

    async fn exchange(
        &self,
        key: &ServiceAccountKey,
        outside: &dyn Outside,
        now: u64,
    ) -> Result<Issued, String> {
        let claims = json!({
            "iss": key.email,
            "sub": key.email,
            "aud": key.token_uri,
            "target_audience": self.audience,
            "iat": now,
            "exp": now + STATEMENT_SECS,
        });
        let statement = key.signer.sign(&claims, key.key_id.as_deref())?;
        let form = format!("{JWT_BEARER_FORM}{statement}");
        let answer = post_form(outside, &key.token_uri, form, &[&statement]).await?;
        let token = answer.get("id_token").and_then(Value::as_str);
        let token = token.ok_or("the token endpoint gave no `id_token`")?;
        self.read(token, "service-account")
    }

    async fn metadata(&self, endpoint: &str, outside: &dyn Outside) -> Result<Issued, String> {
        let mut query = String::new();
        push_field(&mut query, "audience", &self.audience);
        push_field(&mut query, "format", "full");
        let url = format!("{endpoint}{METADATA_PATH}?{query}");
        let mut request = request("GET", url, METADATA_TIMEOUT);
        request.headers.push(("metadata-flavor", "Google".to_owned()));
        let answer = outside.fetch(request).await.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(refusal(&answer, &[]));
        }
        let token = std::str::from_utf8(&answer.body).map_err(|_| "the answer is no token")?;
        self.read(token.trim(), "metadata")
    }

    /// Takes a token whose end it says itself.
    fn read(&self, token: &str, origin: &'static str) -> Result<Issued, String> {
        let claims = claims(token).ok_or("what was given is no ID token")?;
        if claims.aud != self.audience {
            return Err("the ID token is for another audience".to_owned());
        }
        Ok(Issued { token: Secret::from(token), expires: claims.exp, origin })
    }
}

impl fmt::Display for GoogleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.account {
            GoogleAccount::Key(key) => f.write_str(&key.email)?,
            GoogleAccount::KeyFile { path, .. } => write!(f, "the key in {}", path.display())?,
            GoogleAccount::Metadata { .. } => f.write_str("the metadata server")?,
        }
        write!(f, " for {}", self.audience)
    }
}

/// A service account's key.
pub struct ServiceAccountKey {
    email: String,
    signer: JwtSigner,
    key_id: Option<String>,
    token_uri: String,
    /// Tells keys apart.
    digest: Key,
}

impl ServiceAccountKey {
    /// The key of an account; `token_uri` is Google's own if it is left out.
    ///
    /// # Errors
    /// What is wrong with it; the key is not repeated.
    pub fn new(
        email: &str,
        private_key: &Secret,
        key_id: Option<&str>,
        token_uri: Option<&str>,
    ) -> Result<Self, String> {
        let pem = private_key.expose();
        let digest = digest(&SHA256, pem.as_bytes());
        Ok(Self {
            email: email.to_owned(),
            signer: JwtSigner::from_pem(pem)?,
            key_id: key_id.map(str::to_owned),
            token_uri: token_uri.unwrap_or(Self::TOKEN_URI).to_owned(),
            digest: digest.as_ref().try_into().expect("SHA-256 has 32 bytes"),
        })
    }

    /// Reads the JSON that Google's console gives; `token_uri` goes before the one in it.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(json: &[u8], token_uri: Option<&str>) -> Result<Self, String> {
        // serde's text may hold a field's value.
        let file: KeyFile = serde_json::from_slice(json)
            .map_err(|_| "this is no service account's key in JSON".to_owned())?;
        let KeyFile { client_email, private_key, private_key_id, token_uri: own } = file;
        let token_uri = token_uri.or(own.as_deref());
        Self::new(&client_email, &Secret::from(private_key), private_key_id.as_deref(), token_uri)
    }

    /// Google's token endpoint.
    pub const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey").field("email", &self.email).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct KeyFile {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    aud: String,
    exp: u64,
}

/// What a token says of itself. Its signature is for who gets it.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// How long the statement is valid; Google takes no longer one.
const STATEMENT_SECS: u64 = 3600;

const METADATA_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/identity";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_an_id_token_or_refused(text in "\\PC{0,40}(\\.[A-Za-z0-9_=-]{0,40}){0,3}") {
            if let Some(claims) = claims(&text) {
                prop_assert!(text.matches('.').count() == 2, "{}", claims.aud);
            }
        }
    }

    #[test]
    fn the_end_of_a_token_is_what_it_says() {
        let token = |claims: &str| format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims));
        let read = |token: &str| claims(token).map(|claims| (claims.aud, claims.exp));
        let expected = Some(("a".to_owned(), 7));
        assert_eq!(read(&token(r#"{"aud":"a","exp":7,"iss":"g"}"#)), expected);
        for wrong in [r#"{"aud":"a"}"#, r#"{"aud":"a","exp":-1}"#, r#"{"aud":1,"exp":7}"#, "", "x"]
        {
            assert_eq!(read(&token(wrong)), None, "{wrong}");
        }
        assert_eq!(read(&format!("{}.more", token(r#"{"aud":"a","exp":7}"#))), None);
    }
}

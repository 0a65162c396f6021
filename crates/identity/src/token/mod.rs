//! Bearer tokens of other clouds, kept fresh as AWS credentials are.
//!
//! [`Tokens`] hands out one [`TokenIdentity`] per distinct [`TokenSource`] (an identity and whom its
//! tokens are for), however many routes share it. Nothing here decides which sources a route may
//! name: that is the plugin's, by what config.yaml allows.

mod entra;
mod google;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_aws::Secret;
use sluicegate_aws::credentials::{FetchRequest, FetchResponse, Outside};
use tokio::runtime::Handle;

pub use entra::{EntraAccount, EntraSource, ManagedEndpoint};
pub use google::{GoogleAccount, GoogleSource, ServiceAccountKey};

use crate::Clock;
use crate::hash::Hash;
use crate::identities::IdentityStatus;
use crate::kept::{Common, Held, Kept, Key, Known, Source};

/// Hands out identities that have tokens. Clones share them.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<Shared>,
}

struct Shared {
    outside: Arc<dyn Outside>,
    common: Common,
    known: Known<TokenIdentity>,
}

impl Tokens {
    /// Identities whose tasks run on `runtime`.
    pub fn new(outside: Arc<dyn Outside>, clock: Arc<dyn Clock>, runtime: Handle) -> Self {
        let common = Common::new(clock, runtime);
        Self { shared: Arc::new(Shared { outside, common, known: Known::default() }) }
    }

    /// The identity of a configuration: the same one for all that configure the same. Nothing is
    /// fetched until [`TokenIdentity::warm`] or the first request.
    pub fn identity(&self, source: TokenSource) -> Arc<TokenIdentity> {
        self.shared.known.get(source.key(), || {
            let bearer = Bearer { shared: Arc::clone(&self.shared), source };
            TokenIdentity { kept: Kept::new(bearer.source.to_string(), bearer) }
        })
    }

    /// How each identity in use stands.
    pub fn statuses(&self) -> Vec<IdentityStatus> {
        let known = self.shared.known.all();
        let mut statuses: Vec<_> = known.iter().map(|identity| identity.status()).collect();
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// Whose tokens, and for whom.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// ID tokens of Google.
    Google(GoogleSource),
    /// Access tokens of Microsoft Entra.
    Entra(EntraSource),
}

impl TokenSource {
    fn key(&self) -> Key {
        let mut hash = Hash::new();
        match self {
            Self::Google(source) => source.hash(&mut hash),
            Self::Entra(source) => source.hash(&mut hash),
        }
        hash.finish()
    }
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Google(source) => source.fmt(f),
            Self::Entra(source) => source.fmt(f),
        }
    }
}

/// Somebody that has tokens for one audience. Shared by all routes that configure the same; its
/// task ends when the last of them drops it.
pub struct TokenIdentity {
    kept: Kept<Bearer>,
}

impl TokenIdentity {
    /// Begins to fetch, if that has not begun. Without it, the first request does.
    pub fn warm(&self) {
        self.kept.warm();
    }

    /// The token, if there is one that is valid at `now` (seconds since 1970).
    pub fn current(&self, now: u64) -> Option<Arc<Token>> {
        self.kept.current(now)
    }

    /// The token. Waits only while none has ever been asked for with an outcome, or when it ended
    /// without a refresh having failed (the machine slept); never longer than
    /// [`FIRST_WAIT_MAX`](crate::FIRST_WAIT_MAX).
    ///
    /// # Errors
    /// When there is none: answer 503.
    pub async fn token(&self, now: u64) -> Result<Arc<Token>, NoToken> {
        let missing = |reason| NoToken { identity: self.name().to_owned(), reason };
        self.kept.wait(now).await.map_err(missing)
    }

    /// What it is, in words for logs and explanations; no secrets.
    pub fn name(&self) -> &str {
        self.kept.name()
    }

    /// How it stands.
    pub fn status(&self) -> IdentityStatus {
        let held = self.kept.held();
        let (refreshed, failed, failure) = self.kept.counts();
        IdentityStatus {
            name: self.name().to_owned(),
            origin: held.as_ref().map(|held| held.origin),
            expires: held.as_ref().map(|held| held.expires),
            ready: self.kept.is_ready(),
            refreshed,
            failed,
            failure,
        }
    }
}

impl fmt::Debug for TokenIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenIdentity").field(&self.name()).finish()
    }
}

/// A token in use.
#[derive(Debug)]
pub struct Token {
    header: Secret,
    expires: u64,
    origin: &'static str,
    version: u64,
}

impl Token {
    /// `Bearer` and the token: the whole value of a header.
    pub fn header(&self) -> &Secret {
        &self.header
    }

    /// When it ends, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires
    }
}

impl Held for Token {
    fn expires(&self) -> Option<u64> {
        Some(self.expires)
    }

    fn version(&self) -> u64 {
        self.version
    }
}

/// There is no token. The text is for the log and for people who run the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no token from {identity}: {reason}")]
pub struct NoToken {
    /// Whose.
    pub identity: String,
    /// Why.
    pub reason: String,
}

struct Bearer {
    source: TokenSource,
    shared: Arc<Shared>,
}

impl Source for Bearer {
    type Issued = Issued;
    type Held = Token;

    fn common(&self) -> &Common {
        &self.shared.common
    }

    async fn ask(&self) -> Result<Issued, String> {
        let common = self.common();
        let (outside, clock) = (&*self.shared.outside, &*common.clock);
        let issued: Result<Issued, String> = match &self.source {
            TokenSource::Google(source) => common.limited(source.ask(outside, clock.now())).await,
            TokenSource::Entra(source) => common.limited(source.ask(outside, clock.now())).await,
        };
        let issued = issued?;
        let token = issued.token.expose();
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(format!("a token has 1 to {TOKEN_BYTES_MAX} bytes"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token has bytes that no token has".to_owned());
        }
        Ok(issued)
    }

    fn expires(issued: &Issued) -> Option<u64> {
        Some(issued.expires)
    }

    fn hold(&self, issued: Issued, before: Option<&Token>) -> Token {
        let Issued { token, expires, origin } = issued;
        let header = Secret::from(format!("Bearer {}", token.expose()));
        let same = before.filter(|before| before.header.expose() == header.expose());
        let version = same.map_or_else(|| self.common().next_version(), |same| same.version);
        Token { header, expires, origin, version }
    }
}

/// A token as it is handed out.
struct Issued {
    token: Secret,
    expires: u64,
    origin: &'static str,
}

/// A request for a token.
fn request(method: &'static str, url: String, timeout: Duration) -> FetchRequest {
    FetchRequest { method, url, headers: Vec::new(), body: Vec::new(), timeout }
}

/// Posts a form and takes the JSON of an answer with success.
async fn post_form(
    outside: &dyn Outside,
    url: &str,
    form: String,
    secrets: &[&str],
) -> Result<serde_json::Value, String> {
    let mut request = request("POST", url.to_owned(), TOKEN_TIMEOUT);
    request.headers.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
    request.headers.push(("accept", "application/json".to_owned()));
    request.body = form.into_bytes();
    let answer = outside.fetch(request).await.map_err(|error| error.to_string())?;
    json(&answer, secrets)
}

/// The JSON of an answer with success, or what a refusal says; never one of `secrets`.
fn json(answer: &FetchResponse, secrets: &[&str]) -> Result<serde_json::Value, String> {
    if answer.status != 200 {
        return Err(refusal(answer, secrets));
    }
    serde_json::from_slice(&answer.body).map_err(|_| "the answer is no JSON".to_owned())
}

/// What a server says that refuses (RFC 6749, section 5.2); only the beginning of it.
fn refusal(answer: &FetchResponse, secrets: &[&str]) -> String {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(serde_json::Value::as_str);
    let words = [text("error"), text("error_description")];
    let words = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let repeats = |secret: &&str| !secret.is_empty() && words.contains(*secret);
    if words.is_empty() || secrets.iter().any(repeats) {
        return format!("refused with {}", answer.status);
    }
    let words: String = words
        .chars()
        .take(REFUSAL_CHARS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("refused with {}: {words}", answer.status)
}

/// A whole small file.
async fn read(outside: &dyn Outside, path: &Path) -> Result<Vec<u8>, String> {
    let read = outside.read_file(path, KEY_FILE_BYTES_MAX).await;
    let read = read.map_err(|error| error.to_string())?;
    read.ok_or_else(|| format!("there is no {}", path.display()))
}

/// Adds a field to a form or a query.
fn push_field(form: &mut String, name: &str, value: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if !form.is_empty() {
        form.push('&');
    }
    form.push_str(name);
    form.push('=');
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                form.push(byte.into());
            }
            _ => {
                form.push('%');
                form.push(HEX[usize::from(byte >> 4)].into());
                form.push(HEX[usize::from(byte & 15)].into());
            }
        }
    }
}

/// How long a token endpoint may take for one answer.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a metadata server may take: it may have to ask for the token itself.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest token that is used: servers take no larger header.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The largest key file.
const KEY_FILE_BYTES_MAX: usize = 64 << 10;

/// Characters of a server's refusal that are told.
const REFUSAL_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_without_secrets_and_control_characters() {
        let of = |status, body: &str| {
            let answer = FetchResponse { status, date: None, body: body.as_bytes().to_vec() };
            refusal(&answer, &["s3cret", ""])
        };
        for (body, expected) in [
            (
                r#"{"error":"invalid_grant","error_description":"a\nb"}"#,
                "refused with 400: invalid_grant a b",
            ),
            (r#"{"error":"no s3cret here"}"#, "refused with 400"),
            (r#"{"error":{"code":1}}"#, "refused with 400"),
            ("<html>", "refused with 400"),
        ] {
            assert_eq!(of(400, body), expected, "{body}");
        }
    }

    #[test]
    fn fields_are_escaped_for_forms_and_queries() {
        let mut form = String::new();
        push_field(&mut form, "audience", "https://a.test/x y?z&é");
        push_field(&mut form, "format", "full");
        assert_eq!(form, "audience=https%3A%2F%2Fa.test%2Fx%20y%3Fz%26%C3%A9&format=full");
    }
}

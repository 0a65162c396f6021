//! Google Cloud Secret Manager: `$secret://gcp/id/name[/key]`, the latest version of a secret.
//!
//! A service account's key signs a JWT, the token endpoint gives an access token for it
//! (<https://developers.google.com/identity/protocols/oauth2/service-account>), and with that the
//! secret is read.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;

use crate::manager::pick;
use sluicegate_fetch::{
    Answer, Endpoint, FetchError, JWT_BEARER_FORM, JwtSigner, Limits, Network, exchange,
    push_segment,
};

pub(crate) struct Gcp {
    source: Source,
    verify: bool,
    /// Held while a token is fetched, so that many secrets ask for one.
    account: Mutex<Option<Account>>,
}

enum Source {
    Config(Box<AuthConfig>),
    File(String),
}

/// A service account, ready to sign, and the token it has.
struct Account {
    email: String,
    key: JwtSigner,
    project: String,
    token_uri: String,
    token_endpoint: Endpoint,
    entries: Endpoint,
    scope: String,
    token: Option<Token>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    /// Unix time up to which it is used.
    until: u64,
}

impl Gcp {
    pub(crate) fn compile(conf: Conf) -> Result<Self, String> {
        let source = match (conf.auth_config, conf.auth_file) {
            (Some(config), None) => Source::Config(Box::new(config)),
            (None, Some(file)) => Source::File(file),
            _ => return Err("either auth_config or auth_file is needed".to_owned()),
        };
        Ok(Self { source, verify: conf.ssl_verify.unwrap_or(true), account: Mutex::default() })
    }

    pub(crate) async fn fetch(
        &self,
        network: &dyn Network,
        path: &str,
        now: u64,
    ) -> Result<String, FetchError> {
        let (name, key) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err(FetchError::Unusable(format!("can't find main key, key: {path}")));
        }
        let (token, endpoint, target) = self.token(network, name, now, None).await?;
        let mut answer = self.access(network, &endpoint, &target, &token).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            // The token may have been withdrawn before its time.
            let (token, ..) = self.token(network, name, now, Some(&token)).await?;
            answer = self.access(network, &endpoint, &target, &token).await?;
        }
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if answer.status != StatusCode::OK {
            let words = body.as_ref().and_then(|body| body.pointer("/error/message")?.as_str());
            return Err(FetchError::refused(&endpoint, answer.status, words.unwrap_or_default()));
        }
        let data = body.as_ref().and_then(|body| body.pointer("/payload/data")?.as_str());
        let data = data.ok_or_else(|| unusable("the answer has no `payload.data`"))?;
        let text = STANDARD.decode(data).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| unusable("the secret is no text"))?;
        pick(text, Some(key).filter(|key| !key.is_empty())).map_err(FetchError::Unusable)
    }

    async fn access(
        &self,
        network: &dyn Network,
        endpoint: &Endpoint,
        target: &str,
        token: &HeaderValue,
    ) -> Result<Answer, FetchError> {
        let request = Request::get(target)
            .header(AUTHORIZATION, token.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::new()))
            .map_err(|_| unusable("the secret's name is no part of a URL"))?;
        exchange(network, endpoint, self.verify, request, Limits::default()).await
    }

    /// A token that is valid now and not the `refused` one, and where to read the secret.
    async fn token(
        &self,
        network: &dyn Network,
        name: &str,
        now: u64,
        refused: Option<&HeaderValue>,
    ) -> Result<(HeaderValue, Endpoint, String), FetchError> {
        let mut held = self.account.lock().await;
        let account = match &mut *held {
            Some(account) => account,
            empty => empty.insert(self.source.account().await.map_err(FetchError::Unusable)?),
        };
        let usable = |token: &&Token| now < token.until && Some(&token.header) != refused;
        let header = match account.token.as_ref().filter(usable) {
            Some(token) => token.header.clone(),
            None => {
                match account.fresh_token(network, self.verify, now).await {
                    Ok(fresh) => account.token.insert(fresh).header.clone(),
                    Err(error) => {
                        // The key file may hold another key by the next time.
                        *held = None;
                        return Err(error);
                    }
                }
            }
        };
        let mut target = format!("{}/projects/", account.entries.path());
        push_segment(&mut target, &account.project);
        target.push_str("/secrets/");
        push_segment(&mut target, name);
        target.push_str("/versions/latest:access");
        Ok((header, account.entries.clone(), target))
    }
}

impl Source {
    async fn account(&self) -> Result<Account, String> {
        match self {
            Self::Config(config) => Account::compile(config),
            Self::File(path) => {
                let unreadable = |error| format!("auth_file {path} cannot be read: {error}");
                let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
                let mut bytes = Vec::new();
                let limit = AUTH_FILE_BYTES_MAX + 1;
                file.take(limit).read_to_end(&mut bytes).await.map_err(unreadable)?;
                if bytes.len() as u64 >= limit {
                    return Err(format!(
                        "auth_file {path}: larger than {AUTH_FILE_BYTES_MAX} bytes"
                    ));
                }
                // serde's text may hold a field's value.
                let config: AuthConfig = serde_json::from_slice(&bytes)
                    .map_err(|_| format!("auth_file {path} is no service account's key"))?;
                Account::compile(&config)
            }
        }
    }
}

impl Account {
    fn compile(config: &AuthConfig) -> Result<Self, String> {
        let token_uri = config.token_uri.as_deref().unwrap_or(TOKEN_URI);
        let entries_uri = config.entries_uri.as_deref().unwrap_or(ENTRIES_URI);
        Ok(Self {
            email: config.client_email.clone(),
            key: JwtSigner::from_pem(config.private_key.expose())?,
            project: config.project_id.clone(),
            token_uri: token_uri.to_owned(),
            token_endpoint: Endpoint::parse(token_uri)
                .map_err(|cause| format!("token_uri: {cause}"))?,
            entries: Endpoint::parse(entries_uri)
                .map_err(|cause| format!("entries_uri: {cause}"))?,
            scope: match &config.scope {
                None => SCOPE.to_owned(),
                Some(Scope::One(scope)) => scope.clone(),
                Some(Scope::Many(scopes)) => scopes.join(" "),
            },
            token: None,
        })
    }

    async fn fresh_token(
        &self,
        network: &dyn Network,
        verify: bool,
        now: u64,
    ) -> Result<Token, FetchError> {
        let form = format!("{JWT_BEARER_FORM}{}", self.assertion(now)?);
        let path = self.token_endpoint.path();
        let request = Request::post(if path.is_empty() { "/" } else { path })
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .map_err(|_| unusable("token_uri is no URL"))?;
        let answer =
            exchange(network, &self.token_endpoint, verify, request, Limits::default()).await?;
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let text = |name: &str| body.as_ref()?.get(name)?.as_str();
        if answer.status != StatusCode::OK {
            let words = text("error_description").or_else(|| text("error")).unwrap_or_default();
            return Err(FetchError::refused(&self.token_endpoint, answer.status, words));
        }
        let token = text("access_token");
        let token = token.ok_or_else(|| unusable("the token endpoint gave no `access_token`"))?;
        let kind = text("token_type").unwrap_or("Bearer");
        let mut header = HeaderValue::from_str(&format!("{kind} {token}"))
            .map_err(|_| unusable("the access token is no header value"))?;
        header.set_sensitive(true);
        let lives = body.as_ref().and_then(|body| body.get("expires_in")?.as_u64());
        let lives = lives.unwrap_or(JWT_SECONDS).min(TOKEN_SECONDS_MAX);
        Ok(Token { header, until: now + lives.saturating_sub(TOKEN_MARGIN_SECONDS) })
    }

    /// The signed statement of who asks for what.
    fn assertion(&self, now: u64) -> Result<String, FetchError> {
        let claims = json!({
            "iss": self.email,
            "scope": self.scope,
            "aud": self.token_uri,
            "iat": now,
            "exp": now + JWT_SECONDS,
        });
        self.key.sign(&claims, None).map_err(FetchError::Unusable)
    }
}

#[derive(Deserialize)]
pub(crate) struct Conf {
    auth_config: Option<AuthConfig>,
    auth_file: Option<String>,
    ssl_verify: Option<bool>,
}

/// A service account's key, as Google's console gives it, or as the resource holds it.
#[derive(Deserialize)]
struct AuthConfig {
    client_email: String,
    #[serde(deserialize_with = "secret")]
    private_key: Secret,
    project_id: String,
    token_uri: Option<String>,
    scope: Option<Scope>,
    entries_uri: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scope {
    One(String),
    Many(Vec<String>),
}

impl fmt::Debug for Gcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gcp").finish_non_exhaustive()
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::from)
}

fn unusable(cause: &str) -> FetchError {
    FetchError::Unusable(cause.to_owned())
}

const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
const ENTRIES_URI: &str = "https://secretmanager.googleapis.com/v1";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long the statement is valid; Google takes no longer one.
const JWT_SECONDS: u64 = 3600;

/// A token is not used for longer than this, whatever it says.
const TOKEN_SECONDS_MAX: u64 = 24 * 3600;

/// A token is replaced this long before it ends.
const TOKEN_MARGIN_SECONDS: u64 = 60;

/// The largest key file of a service account.
const AUTH_FILE_BYTES_MAX: u64 = 64 << 10;

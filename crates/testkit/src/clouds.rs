//! Token endpoints of Google and Microsoft, and a function that wants their tokens, played as the
//! real ones answer: forms are read, statements verified with the account's public key, metadata
//! headers wanted, tokens end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::origin::{Answer, Origin, Received};

/// The private key of [`ACCOUNT`], in PEM.
pub const ACCOUNT_KEY: &str = include_str!("../../secrets/tests/data/service-account.pem");

/// The service account that the Google endpoint knows.
pub const ACCOUNT: &str = "caller@project.iam.gserviceaccount.com";

/// The tenant, client and secret that the Microsoft endpoint knows.
pub const CLIENT: [&str; 3] = ["tenant-1", "client-1", "s3cret/+&=~"];

/// What App Service puts in `IDENTITY_HEADER`.
pub const IDENTITY_HEADER: &str = "inside-853b9a84";

/// The endpoints. Their clock is moved by hand.
#[derive(Default)]
pub struct Clouds {
    now: AtomicU64,
    life: AtomicU64,
    down: AtomicU64,
    /// Tokens handed out, with their audience and end.
    issued: Mutex<BTreeMap<String, (String, u64)>>,
    /// Path and answer's status of every request for a token.
    asked: Mutex<Vec<(String, u16)>>,
}

impl Clouds {
    /// Endpoints whose clock stands at `now`; tokens last an hour.
    pub fn at(now: u64) -> Arc<Self> {
        let clouds = Self::default();
        clouds.now.store(now, Ordering::Relaxed);
        clouds.life.store(3600, Ordering::Relaxed);
        Arc::new(clouds)
    }

    /// Serves them on loopback.
    pub fn serve(self: &Arc<Self>) -> Origin {
        let clouds = Arc::clone(self);
        Origin::start(move |request| clouds.answer(request))
    }

    /// Sets the clock.
    pub fn set_now(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// Tokens from now on last so many seconds.
    pub fn set_life(&self, secs: u64) {
        self.life.store(secs, Ordering::Relaxed);
    }

    /// Whether every request for a token is answered with 503.
    pub fn set_down(&self, down: bool) {
        self.down.store(u64::from(down), Ordering::Relaxed);
    }

    /// Path and answer's status of every request for a token so far.
    pub fn asked(&self) -> Vec<(String, u16)> {
        self.asked.lock().expect("no test panics in here").clone()
    }

    /// Answers a request: for a token, or to the function under `/run`.
    pub fn answer(&self, request: &Received) -> Answer {
        if let Some(service) = request.path().strip_prefix("/run/") {
            return self.run(service, request);
        }
        let (status, body) = match self.down.load(Ordering::Relaxed) {
            0 => self.token(request).unwrap_or_else(|(status, error, words)| {
                (status, json!({"error": error, "error_description": words}).to_string())
            }),
            _ => (503, String::new()),
        };
        let mut asked = self.asked.lock().expect("no test panics in here");
        asked.push((request.path().to_owned(), status));
        Answer::status(status).header("Content-Type", "application/json").body(body)
    }

    /// The function: it wants a token for `service` that it knows and that has not ended.
    fn run(&self, service: &str, request: &Received) -> Answer {
        // As Cloud Run does: this header, if it is there, is the only one that is looked at.
        let given = request.header("x-serverless-authorization");
        let given = given.or_else(|| request.header("authorization")).unwrap_or_default();
        let issued = self.issued.lock().expect("no test panics in here");
        let known = given.strip_prefix("Bearer ").and_then(|token| issued.get(token));
        let valid = |(audience, end): &&(String, u64)| {
            *end > self.now.load(Ordering::Relaxed) && audience.ends_with(service)
        };
        match known.filter(valid) {
            Some(_) => {
                let forwarded = request.header("authorization").unwrap_or_default();
                Answer::text(json!({"called": service, "authorization": forwarded}).to_string())
            }
            None => Answer::status(401).body("Unauthorized"),
        }
    }

    fn token(&self, request: &Received) -> Result<(u16, String), Refusal> {
        let path = request.path();
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let query = fields(query);
        let body = String::from_utf8_lossy(&request.body);
        let form = || {
            let kind = request.header("content-type");
            let is_form = kind == Some("application/x-www-form-urlencoded");
            match request.method == "POST" && is_form {
                true => Ok(fields(&body)),
                false => Err((400, "invalid_request", "a form is wanted")),
            }
        };
        let now = self.now.load(Ordering::Relaxed);
        let life = self.life.load(Ordering::Relaxed);
        match path {
            "/token" => {
                let audience = self.statement(&form()?, request)?;
                Ok((200, json!({"id_token": self.id_token(&audience)}).to_string()))
            }
            "/computeMetadata/v1/instance/service-accounts/default/identity" => {
                if request.header("metadata-flavor") != Some("Google") {
                    return Err((403, "forbidden", "Missing Metadata-Flavor:Google header"));
                }
                let audience = of(&query, "audience");
                if audience.is_empty() || request.method != "GET" {
                    return Err((400, "bad_request", "non-empty audience parameter required"));
                }
                Ok((200, self.id_token(audience)))
            }
            "/tenant-1/oauth2/v2.0/token" => {
                let form = form()?;
                if of(&form, "grant_type") != "client_credentials" {
                    return Err((400, "unsupported_grant_type", "AADSTS70003"));
                }
                if [of(&form, "client_id"), of(&form, "client_secret")] != CLIENT[1..] {
                    return Err((401, "invalid_client", "AADSTS7000215: Invalid client secret"));
                }
                let scope = of(&form, "scope").strip_suffix("/.default");
                let scope = scope.ok_or((400, "invalid_scope", "AADSTS1002012"))?;
                let token = self.opaque(scope);
                Ok((
                    200,
                    json!({"token_type": "Bearer", "expires_in": life, "access_token": token})
                        .to_string(),
                ))
            }
            "/metadata/identity/oauth2/token" | "/msi/token" => {
                let imds = path != "/msi/token";
                let (header, proof, version) = match imds {
                    true => ("metadata", "true", "2018-02-01"),
                    false => ("x-identity-header", IDENTITY_HEADER, "2019-08-01"),
                };
                if request.header(header) != Some(proof)
                    || request.header("x-forwarded-for").is_some()
                {
                    return Err((400, "invalid_request", "Required metadata header not specified"));
                }
                if of(&query, "api-version") != version || of(&query, "resource").is_empty() {
                    return Err((400, "invalid_request", "api-version or resource"));
                }
                if !["", CLIENT[1]].contains(&of(&query, "client_id")) {
                    return Err((400, "invalid_request", "Identity not found"));
                }
                let token = self.opaque(of(&query, "resource"));
                let mut answer = json!({
                    "access_token": token, "token_type": "Bearer", "resource": of(&query, "resource"),
                    "expires_on": (now + life).to_string(),
                });
                if imds {
                    answer["expires_in"] = life.to_string().into();
                }
                Ok((200, answer.to_string()))
            }
            _ => Err((404, "not_found", "there is no such endpoint")),
        }
    }

    /// Verifies a service account's statement; the audience it asks a token for.
    fn statement(&self, form: &Fields, request: &Received) -> Result<String, Refusal> {
        let invalid = |words: &'static str| (400, "invalid_grant", words);
        if of(form, "grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
            return Err((400, "unsupported_grant_type", "Invalid grant_type"));
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| invalid("not base64"));
        let (signed, signature) =
            of(form, "assertion").rsplit_once('.').ok_or(invalid("Malformed auth code."))?;
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key());
        public
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| invalid("Invalid JWT Signature."))?;
        let (head, claims) = signed.split_once('.').ok_or(invalid("Malformed auth code."))?;
        let read =
            |part| serde_json::from_slice::<Value>(&decode(part)?).map_err(|_| invalid("JSON"));
        let (head, claims) = (read(head)?, read(claims)?);
        let now = self.now.load(Ordering::Relaxed);
        let number = |name: &str| claims[name].as_u64().unwrap_or_default();
        let host = request.header("host").unwrap_or_default();
        if head["alg"] != "RS256" || claims["iss"] != ACCOUNT {
            return Err(invalid("Invalid issuer"));
        }
        if claims["aud"] != format!("http://{host}/token") {
            return Err(invalid("Invalid JWT: Failed audience check."));
        }
        if number("iat") > now + 60 || number("exp") <= now || number("exp") > number("iat") + 3600
        {
            return Err(invalid("Invalid JWT: Token must be a short-lived token"));
        }
        claims["target_audience"].as_str().map(str::to_owned).ok_or((400, "invalid_scope", "none"))
    }

    fn id_token(&self, audience: &str) -> String {
        let now = self.now.load(Ordering::Relaxed);
        let end = now + self.life.load(Ordering::Relaxed);
        let number = self.asked.lock().expect("no test panics in here").len();
        let claims = json!({"aud": audience, "exp": end, "iat": now, "sub": "1", "jti": number});
        let encode = |part: &str| URL_SAFE_NO_PAD.encode(part);
        let token =
            format!("{}.{}.c2ln", encode(r#"{"alg":"RS256"}"#), encode(&claims.to_string()));
        self.issue(token, audience, end)
    }

    fn opaque(&self, audience: &str) -> String {
        let end = self.now.load(Ordering::Relaxed) + self.life.load(Ordering::Relaxed);
        let number = self.asked.lock().expect("no test panics in here").len();
        self.issue(format!("eyJ.{}.{number}", URL_SAFE_NO_PAD.encode(audience)), audience, end)
    }

    fn issue(&self, token: String, audience: &str, end: u64) -> String {
        let mut issued = self.issued.lock().expect("no test panics in here");
        issued.insert(token.clone(), (audience.to_owned(), end));
        token
    }
}

type Refusal = (u16, &'static str, &'static str);

type Fields = BTreeMap<String, String>;

fn of<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

fn fields(text: &str) -> Fields {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (unescape(name), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).expect("two hexadecimal digits follow a %")
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).expect("fields are UTF-8")
}

fn public_key() -> Vec<u8> {
    let text: String = ACCOUNT_KEY
        .lines()
        .skip_while(|line| !line.starts_with("-----BEGIN"))
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let der = STANDARD.decode(text).expect("the key is PEM");
    RsaKeyPair::from_pkcs8(&der).expect("the key is RSA").public_key().as_ref().to_vec()
}

//! AWS Secrets Manager: `$secret://aws/id/name[/key]`, the current version of a secret.
//!
//! Rules: <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>.
//! A name may hold slashes, so where it ends is found out by asking, as in APISIX 3.18: the
//! longest name first; while there is no such secret, a part moves from its end to the key.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::sigv4::{Credentials, PayloadHash, RequestToSign, Signed, Signer};

use crate::manager::pick;
use sluicegate_fetch::{Endpoint, FetchError, Limits, Network, exchange};

pub(crate) struct Aws {
    endpoint: Endpoint,
    signer: Signer,
}

impl Aws {
    pub(crate) fn compile(conf: Conf) -> Result<Self, String> {
        let url = conf
            .endpoint_url
            .unwrap_or_else(|| format!("https://secretsmanager.{}.amazonaws.com", conf.region));
        let endpoint = Endpoint::parse(&url).map_err(|cause| format!("endpoint_url: {cause}"))?;
        let credentials = Credentials {
            access_key: conf.access_key_id,
            secret_key: conf.secret_access_key.into(),
            session_token: conf.session_token.map(Into::into),
        };
        let signer = Signer::new(credentials, conf.region, "secretsmanager")
            .map_err(|error| error.to_string())?;
        Ok(Self { endpoint, signer })
    }

    pub(crate) async fn fetch(
        &self,
        network: &dyn Network,
        path: &str,
        now: u64,
    ) -> Result<String, FetchError> {
        if path.starts_with('/') {
            return Err(FetchError::Unusable(format!("can't find main key, key: {path}")));
        }
        let mut missing = None;
        let ends = path.rmatch_indices('/').map(|(at, _)| at);
        for end in std::iter::once(path.len()).chain(ends).take(NAMES_TRIED_MAX) {
            match self.secret(network, &path[..end], now).await {
                Ok(text) => {
                    let key = path.get(end + 1..).filter(|key| !key.is_empty());
                    return pick(text, key).map_err(FetchError::Unusable);
                }
                Err((error, true)) => missing = Some(error),
                Err((error, false)) => return Err(error),
            }
        }
        Err(missing.unwrap_or_else(|| FetchError::Unusable("there is no such secret".to_owned())))
    }

    /// The text of a secret; with an error, whether that is because there is no such secret.
    async fn secret(
        &self,
        network: &dyn Network,
        name: &str,
        now: u64,
    ) -> Result<String, (FetchError, bool)> {
        let other = |error| (error, false);
        let request = self.request(name, now).map_err(other)?;
        let answer = exchange(network, &self.endpoint, true, request, Limits::default())
            .await
            .map_err(other)?;
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let text = |name: &str| body.as_ref()?.get(name)?.as_str();
        if answer.status != StatusCode::OK {
            let kind = text("__type").unwrap_or_default();
            let kind = kind.rsplit('#').next().unwrap_or_default();
            let words = text("message").or_else(|| text("Message")).unwrap_or_default();
            let error =
                FetchError::refused(&self.endpoint, answer.status, &format!("{kind} {words}"));
            return Err((error, kind.contains("ResourceNotFoundException")));
        }
        let secret = text("SecretString");
        let none = || other(FetchError::Unusable("the secret has no `SecretString`".to_owned()));
        secret.map(str::to_owned).ok_or_else(none)
    }

    fn request(&self, name: &str, now: u64) -> Result<Request<Full<Bytes>>, FetchError> {
        let body = json!({"SecretId": name, "VersionStage": "AWSCURRENT"}).to_string();
        let mut signed = Signed::default();
        let headers = [
            ("host", self.endpoint.authority()),
            ("content-type", CONTENT),
            ("x-amz-target", ACTION),
        ];
        let headers = headers.map(|(name, value)| (name, value.as_bytes()));
        let to_sign = RequestToSign {
            method: "POST",
            path: "/",
            query: None,
            headers,
            payload: PayloadHash::Bytes(body.as_bytes()),
        };
        self.signer.sign(now, to_sign, &mut signed);
        let mut request = Request::post("/")
            .header(CONTENT_TYPE, CONTENT)
            .header(TARGET, ACTION)
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| FetchError::Unusable("the request cannot be made".to_owned()))?;
        for (name, value) in signed.headers() {
            let name = HeaderName::from_bytes(name.as_bytes());
            let (Ok(name), Ok(mut value)) = (name, HeaderValue::from_str(value)) else {
                return Err(FetchError::Unusable("a signed header cannot be sent".to_owned()));
            };
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        debug_assert!(request.headers().contains_key(AUTHORIZATION), "it is signed");
        Ok(request)
    }
}

#[derive(Deserialize)]
pub(crate) struct Conf {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    #[serde(default = "us_east_1")]
    region: String,
    endpoint_url: Option<String>,
}

fn us_east_1() -> String {
    "us-east-1".to_owned()
}

const CONTENT: &str = "application/x-amz-json-1.1";
const ACTION: &str = "secretsmanager.GetSecretValue";
const TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// Names tried for one reference: each is a request.
const NAMES_TRIED_MAX: usize = 8;

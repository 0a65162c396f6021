//! HashiCorp Vault, its key/value engine: `$secret://vault/id/path/key`.
//!
//! Follows APISIX 3.18, which reads version 1 of the engine: `GET uri/v1/prefix/path`.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::Value;
use sluicegate_aws::Secret;

use crate::manager::scalar;
use sluicegate_fetch::{Endpoint, FetchError, Limits, Network, exchange, push_segment};

pub(crate) struct Vault {
    endpoint: Endpoint,
    prefix: String,
    token: Secret,
    namespace: Option<String>,
}

impl Vault {
    pub(crate) fn compile(conf: Conf) -> Result<Self, String> {
        Ok(Self {
            endpoint: Endpoint::parse(&conf.uri).map_err(|cause| format!("uri: {cause}"))?,
            prefix: conf.prefix,
            token: conf.token.into(),
            namespace: conf.namespace,
        })
    }

    pub(crate) async fn fetch(
        &self,
        network: &dyn Network,
        path: &str,
    ) -> Result<String, FetchError> {
        let (path, key) = match path.rsplit_once('/') {
            None => return Err(unusable(format!("error key format, key: {path}"))),
            Some(("", _)) => return Err(unusable(format!("can't find main key, key: {path}"))),
            Some((_, "")) => return Err(unusable(format!("can't find sub key, key: {path}"))),
            Some(parts) => parts,
        };
        let mut target = format!("{}/v1", self.endpoint.path());
        for segment in self.prefix.split('/').chain(path.split('/')).filter(|s| !s.is_empty()) {
            if matches!(segment, "." | "..") {
                return Err(unusable("`.` and `..` are no parts of a secret's path".to_owned()));
            }
            target.push('/');
            push_segment(&mut target, segment);
        }
        let mut request =
            Request::get(target).header(TOKEN, header("token", self.token.expose(), true)?);
        if let Some(namespace) = &self.namespace {
            request = request.header(NAMESPACE, header("namespace", namespace, false)?);
        }
        let request = request
            .body(Full::new(Bytes::new()))
            .map_err(|_| unusable("the secret's path is no URL".to_owned()))?;
        let answer = exchange(network, &self.endpoint, true, request, Limits::default()).await?;
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if answer.status != StatusCode::OK {
            let words: Vec<&str> = body
                .as_ref()
                .and_then(|body| body.get("errors")?.as_array())
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            return Err(FetchError::refused(&self.endpoint, answer.status, &words.join(", ")));
        }
        let data = body.as_ref().and_then(|body| body.get("data"));
        let data = data.ok_or_else(|| unusable("the answer has no `data`".to_owned()))?;
        let value = data
            .get(key)
            .or_else(|| version_2(data)?.get(key))
            .ok_or_else(|| unusable(format!("the secret has no key {key:?}")))?;
        scalar(value).map_err(|what| unusable(format!("{key:?} is {what}, not a text")))
    }
}

/// The secret inside the data of an answer of the engine's version 2.
// Differs: APISIX reads version 1 only, and finds no key in such an answer.
fn version_2(data: &Value) -> Option<&Value> {
    data.get("metadata").filter(|metadata| metadata.is_object())?;
    data.get("data").filter(|data| data.is_object())
}

#[derive(Deserialize)]
pub(crate) struct Conf {
    uri: String,
    prefix: String,
    token: String,
    namespace: Option<String>,
}

fn header(name: &str, text: &str, secret: bool) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| unusable(format!("`{name}` has characters that no header may have")))?;
    value.set_sensitive(secret);
    Ok(value)
}

fn unusable(cause: String) -> FetchError {
    FetchError::Unusable(cause)
}

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

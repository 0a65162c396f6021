//! `aws-lambda`: answer a route from an AWS Lambda function behind an API Gateway or a
//! function URL.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/aws-lambda/>
//!
//! A call carries an API key or an AWS Signature Version 4. What the client brings itself
//! comes first: its `x-api-key` is not replaced, and its `Authorization` turns signing off.
//! With both kinds configured, the API key alone is sent. Everything else about the call
//! (path, body limit, time limit, pool) belongs to [`FunctionInvoker`].
//!
//! Differs: only `host`, `content-type` and `x-amz-*` are signed, since proxies on the way
//! may change the rest; paths are signed as AWS reads them (each segment encoded, the
//! trailing slash kept); a client's own `x-amz-date` is replaced; a request without a query
//! is sent without `?`.

use std::cell::RefCell;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_aws::sigv4::{
    Credentials, PayloadHash, RequestToSign, Signed, Signer, is_signed, wire_path, wire_query,
};
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{Call, FunctionInvoker, InvokerConfig};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};

/// The plugin, compiled.
pub struct AwsLambda {
    invoker: FunctionInvoker,
    apikey: Option<Secret>,
    signer: Option<Signer>,
}

impl Plugin for AwsLambda {
    const NAME: &'static str = "aws-lambda";
    const PRIORITY: i32 = -1899;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] =
        &["authorization.apikey", "authorization.iam.accesskey", "authorization.iam.secretkey"];
    type Config = Config;

    fn schema() -> Value {
        FunctionInvoker::schema(json!({
            "type": "object",
            "properties": {
                "apikey": {"type": "string"},
                "iam": {
                    "type": "object",
                    "properties": {
                        "secretkey": {"type": "string"},
                        "accesskey": {"type": "string"},
                        "aws_region": {"type": "string", "default": "us-east-1"},
                        "service": {"type": "string", "default": "execute-api"},
                    },
                    "required": ["secretkey", "accesskey"],
                },
            },
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let authorization = config.authorization.unwrap_or_default();
        // Differs: APISIX takes any text. What cannot stand in a header would be left out of the
        // call, and the call go without a key.
        if authorization.apikey.as_ref().is_some_and(|key| key.contains(char::is_control)) {
            return Err(ConfigError("`authorization.apikey` has control characters".into()));
        }
        let signer = authorization
            .iam
            .map(|iam| {
                let credentials = Credentials {
                    access_key: iam.accesskey,
                    secret_key: iam.secretkey.into(),
                    session_token: None,
                };
                Signer::new(credentials, iam.aws_region, iam.service)
                    .map_err(|e| ConfigError(format!("`authorization.iam`: {e}")))
            })
            .transpose()?;
        Ok(Self {
            invoker: FunctionInvoker::compile(&config.invoker, ctx)?,
            apikey: authorization.apikey.map(Secret::from),
            signer,
        })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut call = self.invoker.prepare(exchange).await?;
        match (&self.apikey, &self.signer) {
            (Some(apikey), _) if !call.headers.contains("x-api-key") => {
                call.headers.append("x-api-key", apikey.expose().as_bytes());
            }
            (_, Some(signer)) if !call.headers.contains("authorization") => {
                self.sign(signer, &mut call);
            }
            _ => {}
        }
        Ok(Flow::Respond(self.invoker.send(exchange, call).await?))
    }
}

impl AwsLambda {
    /// Signs what is sent, byte for byte: path and query take the form that every reader of
    /// the signature arrives at.
    fn sign(&self, signer: &Signer, call: &mut Call) {
        if let std::borrow::Cow::Owned(path) = wire_path(&call.path) {
            call.path = path;
        }
        if let Some(query) = &call.query
            && let std::borrow::Cow::Owned(query) = wire_query(query)
        {
            call.query = Some(query);
        }
        call.query = call.query.take().filter(|query| !query.is_empty());
        let now = sluicegate_gateway::core::now();
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let host = [("host", self.invoker.authority().as_bytes())];
        let fields = call.headers.iter().filter_map(|(name, value)| {
            let name = std::str::from_utf8(name).ok()?;
            is_signed(name).then_some((name, value))
        });
        let request = RequestToSign {
            method: call.method.as_str(),
            path: &call.path,
            query: call.query.as_deref(),
            headers: host.into_iter().chain(fields),
            payload: PayloadHash::Bytes(&call.body),
        };
        let mut signed = SIGNED.take();
        signer.sign(now, request, &mut signed);
        for (name, value) in signed.headers() {
            call.headers.set(name, value.as_bytes());
        }
        SIGNED.set(signed);
    }
}

thread_local! {
    /// The memory signatures are made in: one after the other on a thread, so one is enough.
    static SIGNED: RefCell<Signed> = RefCell::default();
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    invoker: InvokerConfig,
    authorization: Option<Authorization>,
}

#[derive(Default, Deserialize)]
struct Authorization {
    apikey: Option<String>,
    iam: Option<Iam>,
}

#[derive(Deserialize)]
struct Iam {
    accesskey: String,
    secretkey: String,
    aws_region: String,
    service: String,
}

impl std::fmt::Debug for Authorization {
    /// Keys are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;

    use super::*;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<AwsLambda>::check_schema(&json!({"function_uri": "http://fn.test/"}));
        PluginTest::<AwsLambda>::check_schema(&json!({
            "function_uri": "https://fn.test:8443/a?b=c",
            "authorization": {"apikey": "", "iam": {"accesskey": "A", "secretkey": "s"}},
        }));
    }

    #[test]
    fn the_clients_key_comes_before_the_configured_one_and_that_before_signing() {
        let iam = json!({"accesskey": "AKID", "secretkey": "secret"});
        for (client, authorization, sent, signed) in [
            (None, json!({}), None, false),
            (Some("client"), json!({}), Some("client"), false),
            (None, json!({"apikey": "ours"}), Some("ours"), false),
            (Some("client"), json!({"apikey": "ours"}), Some("client"), false),
            (None, json!({"iam": iam}), None, true),
            (Some("client"), json!({"iam": iam}), Some("client"), true),
            (None, json!({"apikey": "ours", "iam": iam}), Some("ours"), false),
            (Some("client"), json!({"apikey": "ours", "iam": iam}), Some("client"), true),
        ] {
            let ran = PluginTest::<AwsLambda>::new()
                .config(json!({"function_uri": "http://fn.test/", "authorization": authorization}))
                .request_header("X-Api-Key", client)
                .run();
            assert_eq!(ran.status, 200, "{client:?} {authorization}");
            assert_eq!(ran.sent_header("x-api-key"), sent, "{client:?} {authorization}");
            let has = ran.sent_header("authorization").is_some();
            assert_eq!(has, signed, "{client:?} {authorization}");
        }
    }

    #[test]
    fn a_clients_signature_headers_are_replaced_and_never_doubled() {
        let iam = json!({"accesskey": "AKID", "secretkey": "secret"});
        let ran = PluginTest::<AwsLambda>::new()
            .config(json!({"function_uri": "http://fn.test/", "authorization": {"iam": iam}}))
            .request_header("X-Amz-Date", Some("20000101T000000Z"))
            .request_header("x-amz-date", Some("20000102T000000Z"))
            .run();
        let date = ran.sent_header("x-amz-date").unwrap_or_default();
        assert!(date.len() == 16 && !date.starts_with("2000"), "{date}");
        let authorization = ran.sent_header("authorization").unwrap_or_default();
        assert!(authorization.contains("SignedHeaders=host;x-amz-date,"), "{authorization}");
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_field_and_value() {
        let mut registry = sluicegate_gateway::plugin::Registry::default();
        registry.add::<AwsLambda>();
        let plugin = registry.iter().next().expect("it was added");
        for (uri, why) in [
            ("nowhere", "`function_uri` does not begin with http:// or https://: \"nowhere\""),
            ("/run", "`function_uri` does not begin with http:// or https://: \"/run\""),
            ("ftp://a/", "`function_uri` does not begin with http:// or https://: \"ftp://a/\""),
            ("http://u:p@a/", "`function_uri` must not carry a user name"),
            ("http://a:99999/", "`function_uri` has no valid port: \"http://a:99999/\""),
            ("http:///x", "`function_uri` is not a URL"),
        ] {
            let error = (plugin.info.check)(&json!({"function_uri": uri})).expect_err(uri);
            assert!(error.starts_with(why), "{uri}: {error}");
        }
    }
}

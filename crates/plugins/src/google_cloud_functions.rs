//! `google-cloud-functions`: answer a route from a Google Cloud Function or a Cloud Run service.
//!
//! Apache APISIX has no such plugin. Its attributes are those of its function plugins; how Google
//! tells who calls stands in <https://cloud.google.com/run/docs/authenticating/service-to-service>
//! and <https://cloud.google.com/functions/docs/securing/authenticating>.
//!
//! A call carries an ID token for the function's URL, of an account whose key stands in the route,
//! or of the gateway's own where config.yaml allows it. Without `authorization` the call carries
//! nothing: the function is a public one. Everything else about the call belongs to
//! [`FunctionInvoker`].

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_fetch::Endpoint;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{FunctionInvoker, InvokerConfig};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_identity::{GoogleAccount, GoogleSource, ServiceAccountKey, TokenSource};

use crate::tokens::{Attr, Caller, plain};

/// The plugin, compiled.
pub struct GoogleCloudFunctions {
    invoker: FunctionInvoker,
    /// Who calls, and the header that says so.
    caller: Option<(Caller, &'static str)>,
}

impl Plugin for GoogleCloudFunctions {
    const NAME: &'static str = "google-cloud-functions";
    const PRIORITY: i32 = -1903;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] = &["authorization.service_account.private_key"];
    type Config = Config;

    fn schema() -> Value {
        FunctionInvoker::schema(json!({
            "type": "object",
            "properties": {
                "provider": {"type": "string", "enum": PROVIDERS, "default": KEY},
                "service_account": {
                    "type": "object",
                    "properties": {
                        "client_email": {"type": "string", "minLength": 1},
                        "private_key": {"type": "string", "minLength": 1},
                        "private_key_id": {"type": "string"},
                        "token_uri": {"type": "string"},
                    },
                    "required": ["client_email", "private_key"],
                },
                "audience": {"type": "string", "minLength": 1, "maxLength": 2048},
                "header": {
                    "type": "string",
                    "enum": ["Authorization", "X-Serverless-Authorization"],
                    "default": "Authorization",
                },
            },
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let invoker = FunctionInvoker::compile(&config.invoker, ctx)?;
        let caller = config.authorization.map(|authorization| {
            let header = match authorization.header.as_str() {
                "X-Serverless-Authorization" => SERVERLESS,
                _ => AUTHORIZATION,
            };
            let source = authorization.source(&invoker, ctx)?;
            Ok((Caller::compile(TokenSource::Google(source), ctx), header))
        });
        Ok(Self { caller: caller.transpose()?, invoker })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut call = self.invoker.prepare(exchange).await?;
        if let Some((caller, header)) = &self.caller {
            // Google looks at nothing else where it is there: a client must not choose who calls.
            call.headers.remove(SERVERLESS);
            caller.authorize(exchange, &mut call.headers, header).await?;
        }
        Ok(Flow::Respond(self.invoker.send(exchange, call).await?))
    }
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    invoker: InvokerConfig,
    authorization: Option<Authorization>,
}

#[derive(Deserialize)]
struct Authorization {
    provider: String,
    service_account: Option<ServiceAccount>,
    audience: Option<String>,
    header: String,
}

#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

impl Authorization {
    fn source(
        self,
        invoker: &FunctionInvoker,
        ctx: &CompileCtx<'_>,
    ) -> Result<GoogleSource, ConfigError> {
        let attr = Attr::of(GoogleCloudFunctions::NAME, ctx);
        attr.allows(&self.provider, KEY, &PROVIDERS)?;
        let token_uri = attr.url("token_uri", None)?;
        let account = match (self.provider.as_str(), self.service_account) {
            (KEY, Some(account)) => GoogleAccount::Key(Arc::new(account.key(token_uri)?)),
            (KEY, None) => {
                let why = "`authorization.service_account` is needed: the key of an account";
                return Err(ConfigError(why.into()));
            }
            (_, Some(_)) => {
                let why = "`authorization.service_account` goes with provider \"key\" alone";
                return Err(ConfigError(why.into()));
            }
            (KEY_FILE, None) => {
                let path = attr.text("key_file", Some("GOOGLE_APPLICATION_CREDENTIALS"));
                let path = match path {
                    Some(path) => path.into(),
                    None if ctx.deps.is_none() => Default::default(),
                    None => {
                        let why = "provider \"key_file\" needs plugin_attr.google-cloud-functions.key_file \
                             in config.yaml or GOOGLE_APPLICATION_CREDENTIALS";
                        return Err(ConfigError(why.into()));
                    }
                };
                GoogleAccount::KeyFile { path, token_uri }
            }
            _ => {
                let host = attr.url("metadata_endpoint", None)?;
                let named = || std::env::var("GCE_METADATA_HOST").ok().filter(|it| !it.is_empty());
                let endpoint = host.or_else(|| Some(format!("http://{}", named()?)));
                let endpoint = endpoint.unwrap_or_else(|| METADATA.to_owned());
                GoogleAccount::Metadata { endpoint }
            }
        };
        let audience = match self.audience {
            Some(audience) => {
                plain("authorization.audience", &audience)?;
                audience
            }
            None => invoker.origin(),
        };
        Ok(GoogleSource { account, audience })
    }
}

impl ServiceAccount {
    /// The key. Who may write a route must not have the gateway post where it likes: a route names
    /// Google's token endpoints, others are config.yaml's to name.
    fn key(self, token_uri: Option<String>) -> Result<ServiceAccountKey, ConfigError> {
        const FIELD: &str = "authorization.service_account";
        plain(&format!("{FIELD}.client_email"), &self.client_email)?;
        if token_uri.is_none()
            && let Some(own) = &self.token_uri
        {
            let endpoint = Endpoint::parse(own)
                .map_err(|why| ConfigError(format!("`{FIELD}.token_uri`: {why}")))?;
            let host = endpoint.authority();
            let google = host == "googleapis.com" || host.ends_with(".googleapis.com");
            if !own.starts_with("https://") || !google {
                return Err(ConfigError(format!(
                    "`{FIELD}.token_uri` is no endpoint of Google; another one is named by \
                     plugin_attr.google-cloud-functions.token_uri in config.yaml: {own:?}"
                )));
            }
        }
        let token_uri = token_uri.or(self.token_uri);
        let key = Secret::from(self.private_key);
        let key_id = self.private_key_id.as_deref();
        ServiceAccountKey::new(&self.client_email, &key, key_id, token_uri.as_deref())
            .map_err(|why| ConfigError(format!("`{FIELD}`: {why}")))
    }
}

impl std::fmt::Debug for Authorization {
    /// Keys are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// A service account's key in the route.
const KEY: &str = "key";

/// A service account's key in a file that config.yaml names.
const KEY_FILE: &str = "key_file";

const PROVIDERS: [&str; 3] = [KEY, KEY_FILE, "metadata"];

/// The metadata server: by address, so that no name server is believed.
const METADATA: &str = "http://169.254.169.254";

const AUTHORIZATION: &str = "authorization";
const SERVERLESS: &str = "x-serverless-authorization";

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;
    use sluicegate_testkit::clouds::{ACCOUNT, ACCOUNT_KEY, Clouds};

    use super::*;
    use crate::tests::refusal;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<GoogleCloudFunctions>::check_schema(
            &json!({"function_uri": "http://fn.test/"}),
        );
    }

    #[test]
    fn a_public_function_is_called_with_what_the_client_sends() {
        for client in [None, Some("Bearer client")] {
            let ran = PluginTest::<GoogleCloudFunctions>::new()
                .config(json!({"function_uri": "http://fn.test/a"}))
                .route_uri("/*")
                .request("POST", "/x?y=1")
                .request_header("Authorization", client)
                .request_body("body")
                .run();
            assert_eq!(ran.sent_header("authorization"), client);
            assert_eq!(
                (ran.sent().target.as_str(), &ran.sent().body[..]),
                ("/a/x?y=1", &b"body"[..])
            );
        }
    }

    #[test]
    fn the_token_is_for_the_functions_origin_or_the_audience_and_in_the_header_that_is_named() {
        let clouds = Clouds::at(now());
        let tokens = clouds.serve();
        let key = json!({"client_email": ACCOUNT, "private_key": ACCOUNT_KEY});
        for (audience, header, service, passed) in [
            (None, None, "", "Bearer"),
            (Some("https://old.test/fn"), None, "old.test/fn", "Bearer"),
            (None, Some("X-Serverless-Authorization"), "", "Basic client"),
        ] {
            let mut authorization = json!({"service_account": key});
            authorization["audience"] = audience.into();
            authorization["header"] = header.into();
            authorization.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            let ran = PluginTest::<GoogleCloudFunctions>::new()
                .config(json!({
                    "function_uri": tokens.url(&format!("/run/{service}")),
                    "authorization": authorization,
                }))
                .attr(json!({"token_uri": tokens.url("/token")}))
                .request_header("Authorization", Some("Basic client"))
                .request_header("X-Serverless-Authorization", Some("Bearer client"))
                .route_uri("/")
                .run();
            assert_eq!(ran.status, 200, "{audience:?} {header:?}: {}", ran.body());
            let forwarded = ran.response.json()["authorization"].as_str().unwrap().to_owned();
            assert!(forwarded.starts_with(passed), "{forwarded}");
        }
        assert!(clouds.asked().iter().all(|asked| *asked == ("/token".to_owned(), 200)));
    }

    #[test]
    fn without_a_token_nothing_is_called() {
        let clouds = Clouds::at(now());
        clouds.set_down(true);
        let tokens = clouds.serve();
        let ran = PluginTest::<GoogleCloudFunctions>::new()
            .config(json!({
                "function_uri": "http://fn.test/",
                "authorization": {"provider": "metadata"},
            }))
            .attr(json!({
                "allowed_providers": ["metadata"], "metadata_endpoint": tokens.url("/"),
            }))
            .run();
        assert_eq!((ran.status, ran.sent.len()), (503, 0));
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_field() {
        let key = |uri: &str| json!({"client_email": "a@b", "private_key": ACCOUNT_KEY, "token_uri": uri});
        for (authorization, expected) in [
            (json!({}), "`authorization.service_account` is needed: the key of an account"),
            (
                json!({"service_account": {"client_email": "a@b", "private_key": "s3cret"}}),
                "`authorization.service_account`: private_key is no RSA key in PEM",
            ),
            (
                json!({"service_account": key("http://oauth2.googleapis.com/token")}),
                "`authorization.service_account.token_uri` is no endpoint of Google; another one is \
                 named by plugin_attr.google-cloud-functions.token_uri in config.yaml: \
                 \"http://oauth2.googleapis.com/token\"",
            ),
            (
                json!({"service_account": key("https://oauth2.googleapis.com.evil.test/token")}),
                "`authorization.service_account.token_uri` is no endpoint of Google; another one is \
                 named by plugin_attr.google-cloud-functions.token_uri in config.yaml: \
                 \"https://oauth2.googleapis.com.evil.test/token\"",
            ),
            (
                json!({"provider": "metadata", "service_account": key("x")}),
                "`authorization.service_account` goes with provider \"key\" alone",
            ),
            (
                json!({"provider": "other"}),
                "property \"authorization\" validation failed: property \"provider\" validation \
                 failed: matches none of the enum values",
            ),
            (
                json!({"service_account": {"client_email": "a@b"}}),
                "property \"authorization\" validation failed: property \"service_account\" \
                 validation failed: property \"private_key\" is required",
            ),
        ] {
            let config = json!({"function_uri": "http://fn.test/", "authorization": authorization});
            assert_eq!(refusal::<GoogleCloudFunctions>(&config), expected);
        }
        let google = json!({
            "function_uri": "http://fn.test/",
            "authorization": {"service_account": key("https://oauth2.googleapis.com/token")},
        });
        PluginTest::<GoogleCloudFunctions>::check_schema(&google);
    }

    fn now() -> u64 {
        sluicegate_gateway::core::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    }
}

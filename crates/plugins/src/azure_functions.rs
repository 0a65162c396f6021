//! `azure-functions`: answer a route from an Azure Function.
//!
//! Follows the plugin of the same name in Apache APISIX 3.18:
//! <https://apisix.apache.org/docs/apisix/plugins/azure-functions/>
//!
//! Keys come from the first place that holds one: the client's own headers, this configuration, the
//! plugin's metadata. Beside them, and beyond APISIX, `authorization.entra` has the call carry an
//! access token of Microsoft Entra, for function apps that have their authentication turned on: of an
//! application whose secret stands in the route, or of the gateway's managed identity where
//! config.yaml allows it. Everything else about the call (path, body limit, time limit, pool) belongs to
//! [`FunctionInvoker`].

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_aws::Secret;
use sluicegate_gateway::exchange::Exchange;
use sluicegate_gateway::invoker::{FunctionInvoker, InvokerConfig};
use sluicegate_gateway::plugin::{CompileCtx, ConfigError, Flow, Phases, Plugin, PluginError};
use sluicegate_identity::{EntraAccount, EntraSource, ManagedEndpoint, TokenSource};

use crate::tokens::{Attr, Caller, plain};

/// The plugin, compiled.
pub struct AzureFunctions {
    invoker: FunctionInvoker,
    /// Header names, and what they are to say.
    keys: Vec<(&'static str, Secret)>,
    /// Who calls, as Entra says.
    caller: Option<Caller>,
}

impl Plugin for AzureFunctions {
    const NAME: &'static str = "azure-functions";
    const PRIORITY: i32 = -1900;
    const PHASES: Phases = Phases::ACCESS;
    const SECRETS: &'static [&'static str] =
        &["authorization.apikey", "authorization.entra.client_secret"];
    type Config = Config;

    fn schema() -> Value {
        FunctionInvoker::schema(json!({
            "type": "object",
            "properties": {
                "apikey": {"type": "string"},
                "clientid": {"type": "string"},
                "entra": {
                    "type": "object",
                    "properties": {
                        "provider": {"type": "string", "enum": PROVIDERS, "default": CLIENT_SECRET},
                        "tenant_id": {"type": "string", "pattern": "^[A-Za-z0-9.-]{1,253}$"},
                        "client_id": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
                        "client_secret": {"type": "string", "minLength": 1},
                        "resource": {"type": "string", "minLength": 1, "maxLength": 2048},
                        "authority": {"type": "string", "enum": AUTHORITIES},
                    },
                    "required": ["resource"],
                },
            },
        }))
    }

    fn metadata_schema() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                // Checked as the keys of a route are, so that no route fails because of them.
                "master_apikey": {"type": "string", "default": "", "pattern": KEY_PATTERN},
                "master_clientid": {"type": "string", "default": "", "pattern": KEY_PATTERN},
            },
            "encrypt_fields": ["master_apikey"],
        }))
    }

    fn compile(config: Config, ctx: &CompileCtx<'_>) -> Result<Self, ConfigError> {
        let mut caller = None;
        let place = if config.authorization.is_some() { "authorization." } else { "master_" };
        let (apikey, clientid) = match config.authorization {
            Some(own) => {
                if let Some(entra) = own.entra {
                    let source = TokenSource::Entra(entra.source(ctx)?);
                    caller = Some(Caller::compile(source, ctx));
                }
                (own.apikey, own.clientid)
            }
            None => {
                // Differs: APISIX sends an empty header for a master key that is not set.
                let master = |name: &str| {
                    let text = ctx.metadata?.get(name)?.as_str()?;
                    (!text.is_empty()).then(|| text.to_owned())
                };
                (master("master_apikey"), master("master_clientid"))
            }
        };
        let mut keys = Vec::new();
        for (header, field, key) in [(API_KEY, "apikey", apikey), (CLIENT_ID, "clientid", clientid)]
        {
            let Some(key) = key else { continue };
            // Differs: APISIX takes any text. What cannot stand in a header would be left out of
            // the call, and the call go without a key.
            if key.contains(|c: char| c.is_ascii_control()) {
                return Err(ConfigError(format!("`{place}{field}` has control characters")));
            }
            keys.push((header, Secret::from(key)));
        }
        Ok(Self { invoker: FunctionInvoker::compile(&config.invoker, ctx)?, keys, caller })
    }

    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, PluginError> {
        let mut call = self.invoker.prepare(exchange).await?;
        // A client that brings either key is trusted to bring what it needs: mixing its key with
        // ours would make the call for the wrong caller.
        if !call.headers.contains(API_KEY) && !call.headers.contains(CLIENT_ID) {
            for (name, key) in &self.keys {
                call.headers.append(name, key.expose().as_bytes());
            }
        }
        if let Some(caller) = &self.caller {
            caller.authorize(exchange, &mut call.headers, "authorization").await?;
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
    apikey: Option<String>,
    clientid: Option<String>,
    entra: Option<Entra>,
}

#[derive(Deserialize)]
struct Entra {
    provider: String,
    tenant_id: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
    resource: String,
    authority: Option<String>,
}

impl Entra {
    fn source(self, ctx: &CompileCtx<'_>) -> Result<EntraSource, ConfigError> {
        let attr = Attr::of(AzureFunctions::NAME, ctx);
        attr.allows(&self.provider, CLIENT_SECRET, &PROVIDERS)?;
        plain("authorization.entra.resource", &self.resource)?;
        let missing = |name: &str| {
            let provider = &self.provider;
            ConfigError(format!("`authorization.entra.{name}` is needed: provider {provider:?}"))
        };
        let account = if self.provider == CLIENT_SECRET {
            // Whoever gets a client's secret is that client: it is sent to no host that a route
            // names freely.
            let authority = attr.url("authority", None)?.or(self.authority);
            EntraAccount::Client {
                authority: authority.unwrap_or_else(|| AUTHORITIES[0].to_owned()),
                tenant: self.tenant_id.ok_or_else(|| missing("tenant_id"))?,
                client_id: self.client_id.ok_or_else(|| missing("client_id"))?,
                client_secret: self.client_secret.ok_or_else(|| missing("client_secret"))?.into(),
            }
        } else {
            if self.client_secret.is_some() {
                let why = "`authorization.entra.client_secret` goes with provider \"client_secret\" alone";
                return Err(ConfigError(why.into()));
            }
            let inside = attr.url("identity_endpoint", Some("IDENTITY_ENDPOINT"))?;
            let header = attr.text("identity_header", Some("IDENTITY_HEADER"));
            let endpoint = match (inside, header) {
                (Some(url), Some(header)) => {
                    ManagedEndpoint::AppService { url, header: header.into() }
                }
                _ => {
                    let imds = attr.url("imds_endpoint", None)?;
                    ManagedEndpoint::Imds(imds.unwrap_or_else(|| IMDS.to_owned()))
                }
            };
            EntraAccount::Managed { endpoint, client_id: self.client_id }
        };
        let resource = self.resource.strip_suffix("/.default").unwrap_or(&self.resource);
        Ok(EntraSource { account, resource: resource.to_owned() })
    }
}

impl std::fmt::Debug for Authorization {
    /// Keys are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").finish_non_exhaustive()
    }
}

const API_KEY: &str = "x-functions-key";
const CLIENT_ID: &str = "x-functions-clientid";

/// What can stand in a header.
const KEY_PATTERN: &str = r"\A[^[:cntrl:]]*\z";

/// An application's secret in the route.
const CLIENT_SECRET: &str = "client_secret";

const PROVIDERS: [&str; 2] = [CLIENT_SECRET, "managed_identity"];

/// Microsoft's clouds; the first is the public one.
const AUTHORITIES: [&str; 3] = [
    "https://login.microsoftonline.com",
    "https://login.microsoftonline.us",
    "https://login.partner.microsoftonline.cn",
];

/// The metadata service of virtual machines.
const IMDS: &str = "http://169.254.169.254";

#[cfg(test)]
mod tests {
    use sluicegate_testkit::PluginTest;
    use sluicegate_testkit::clouds::{CLIENT, Clouds, IDENTITY_HEADER};

    use super::*;
    use crate::tests::refusal;

    #[test]
    fn the_schema_and_the_config_speak_of_the_same_fields() {
        PluginTest::<AzureFunctions>::check_schema(&json!({"function_uri": "http://fn.test/"}));
    }

    #[test]
    fn keys_come_from_client_then_config_then_metadata() {
        let own = json!({"apikey": "config"});
        let both = json!({"apikey": "config", "clientid": "id"});
        let nothing = json!({});
        let metadata = json!({"master_apikey": "metadata", "master_clientid": "mid"});
        let empty = json!({});
        for (client, authorization, metadata, key, id) in [
            (Some("client"), Some(&both), Some(&metadata), Some("client"), None),
            (Some(""), Some(&both), Some(&metadata), Some(""), None),
            (None, Some(&own), Some(&metadata), Some("config"), None),
            (None, Some(&both), Some(&metadata), Some("config"), Some("id")),
            (None, Some(&nothing), Some(&metadata), None, None),
            (None, None, Some(&metadata), Some("metadata"), Some("mid")),
            (None, None, Some(&empty), None, None),
            (None, None, None, None, None),
        ] {
            let mut config = json!({"function_uri": "http://fn.test/api/fn"});
            if let Some(authorization) = authorization {
                config["authorization"] = authorization.clone();
            }
            let ran = PluginTest::<AzureFunctions>::new()
                .config(config)
                .metadata(metadata)
                .route_uri("/")
                .request_header("X-Functions-Key", client)
                .run();
            let case = format!("{client:?} {authorization:?} {metadata:?}");
            assert_eq!(ran.sent_header("x-functions-key"), key, "{case}");
            assert_eq!(ran.sent_header("x-functions-clientid"), id, "{case}");
            assert_eq!(ran.sent().target, "/api/fn", "{case}");
        }
    }

    #[test]
    fn a_client_that_brings_its_id_alone_gets_no_key_of_ours() {
        let ran = PluginTest::<AzureFunctions>::new()
            .config(json!({"function_uri": "http://fn.test/", "authorization": {"apikey": "k"}}))
            .request_header("X-Functions-ClientId", Some("theirs"))
            .run();
        assert_eq!(ran.sent_header("x-functions-clientid"), Some("theirs"));
        assert_eq!(ran.sent_header("x-functions-key"), None);
    }

    #[test]
    fn keys_with_control_characters_are_refused_where_they_are_written() {
        for (authorization, field) in [
            (json!({"apikey": "a\n"}), "apikey"),
            (json!({"clientid": "a\u{0}b"}), "clientid"),
            (json!({"apikey": "\u{7f}"}), "apikey"),
        ] {
            let config = json!({"function_uri": "http://fn.test/", "authorization": authorization});
            let expected = format!("`authorization.{field}` has control characters");
            assert_eq!(refusal::<AzureFunctions>(&config), expected);
        }
        let mut registry = sluicegate_gateway::plugin::Registry::default();
        registry.add::<AzureFunctions>();
        let catalog = registry.catalog();
        for (metadata, field) in [
            (json!({"master_apikey": "a\n"}), Some("master_apikey")),
            (json!({"master_clientid": "\u{7f}"}), Some("master_clientid")),
            (json!({"master_apikey": "a b\u{e9}", "master_clientid": ""}), None),
        ] {
            let checked = catalog.check_metadata(AzureFunctions::NAME, &metadata);
            match field {
                None => assert_eq!(checked, Ok(())),
                Some(field) => {
                    let error = checked.unwrap_err();
                    assert!(error.contains(&format!("property \"{field}\"")), "{error}");
                }
            }
        }
        // One that was stored before is named, too.
        let metadata = json!({"master_apikey": "a\n"});
        let ctx = CompileCtx {
            metadata: Some(&metadata),
            attr: None,
            owner: "route 1",
            deps: None,
            upstreams: None,
        };
        let config = json!({
            "function_uri": "http://fn.test/", "timeout": 3000, "ssl_verify": true, "keepalive": true,
            "keepalive_pool": 5, "keepalive_timeout": 60_000, "max_req_body_size": 1,
        });
        let error = AzureFunctions::compile(serde_json::from_value(config).unwrap(), &ctx).err();
        assert_eq!(error.unwrap().0, "`master_apikey` has control characters");
    }

    #[test]
    fn a_call_carries_a_token_of_entra_beside_the_keys() {
        let now = sluicegate_gateway::core::now().duration_since(std::time::UNIX_EPOCH);
        let clouds = Clouds::at(now.unwrap().as_secs());
        let tokens = clouds.serve();
        let [tenant, client, secret] = CLIENT;
        let own = json!({
            "tenant_id": tenant, "client_id": client, "client_secret": secret, "resource": "api://fn",
        });
        let managed = json!({"provider": "managed_identity", "resource": "api://fn"});
        let allowed = json!(["client_secret", "managed_identity"]);
        for (entra, attr, asked) in [
            (&own, json!({"authority": tokens.url("/")}), "/tenant-1/oauth2/v2.0/token"),
            (
                &managed,
                json!({"allowed_providers": allowed, "imds_endpoint": tokens.url("")}),
                "/metadata/identity/oauth2/token",
            ),
            (
                &managed,
                json!({
                    "allowed_providers": allowed, "identity_endpoint": tokens.url("/msi/token"),
                    "identity_header": IDENTITY_HEADER,
                }),
                "/msi/token",
            ),
        ] {
            let ran = PluginTest::<AzureFunctions>::new()
                .config(json!({
                    "function_uri": tokens.url("/run/fn"),
                    "authorization": {"apikey": "k", "entra": entra},
                }))
                .attr(attr)
                .route_uri("/")
                .request_header("Authorization", Some("Basic client"))
                .run();
            assert_eq!(ran.status, 200, "{entra}: {}", ran.body());
            assert_eq!(clouds.asked().last(), Some(&(asked.to_owned(), 200)));
            let called = tokens.requests().into_iter().rfind(|request| request.path() == "/run/fn");
            assert_eq!(called.unwrap().header("x-functions-key"), Some("k"));
        }
    }

    #[test]
    fn without_a_token_of_entra_nothing_is_called() {
        let clouds = Clouds::at(0);
        let tokens = clouds.serve();
        let entra = json!({
            "tenant_id": "tenant-1", "client_id": "client-1", "client_secret": "wrong", "resource": "r",
        });
        let ran = PluginTest::<AzureFunctions>::new()
            .config(json!({"function_uri": "http://fn.test/", "authorization": {"entra": entra}}))
            .attr(json!({"authority": tokens.url("")}))
            .run();
        assert_eq!((ran.status, ran.sent.len()), (503, 0));
    }

    #[test]
    fn an_identity_that_cannot_work_is_refused_with_the_field() {
        for (entra, expected) in [
            (
                json!({"resource": "r"}),
                "`authorization.entra.tenant_id` is needed: provider \"client_secret\"",
            ),
            (
                json!({"resource": "r", "provider": "managed_identity", "client_secret": "s"}),
                "`authorization.entra.client_secret` goes with provider \"client_secret\" alone",
            ),
            (
                json!({"resource": "a\nb", "provider": "managed_identity"}),
                "`authorization.entra.resource` is empty or has control characters",
            ),
            (
                json!({"resource": "r", "authority": "https://evil.test"}),
                "property \"authorization\" validation failed: property \"entra\" validation \
                 failed: property \"authority\" validation failed: matches none of the enum values",
            ),
            (
                json!({"resource": "r", "tenant_id": "../x"}),
                "property \"authorization\" validation failed: property \"entra\" validation \
                 failed: property \"tenant_id\" validation failed: failed to match pattern \
                 \"^[A-Za-z0-9.-]{1,253}$\" with \"../x\"",
            ),
        ] {
            let config =
                json!({"function_uri": "http://fn.test/", "authorization": {"entra": entra}});
            assert_eq!(refusal::<AzureFunctions>(&config), expected);
        }
    }
}

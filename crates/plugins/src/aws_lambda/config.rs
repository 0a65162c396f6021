//! The plugin's attributes: their schema, and what a configuration that passed it says.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluicegate_aws::credentials::ProviderKind;
use sluicegate_aws::event::{
    ASYNC_EVENT_BYTES_MAX, EventEncoder, EventFormat, EventSettings, KongForward,
    SYNC_EVENT_BYTES_MAX,
};
use sluicegate_aws::lambda::FunctionSettings;
use sluicegate_aws::response::ResponseFormat;
use sluicegate_gateway::invoker::{CallLimits, FunctionInvoker, InvokerOptions};
use sluicegate_gateway::plugin::ConfigError;

/// APISIX's attributes, and those of our own beside them. Which of them go together is checked when
/// they are compiled: a schema's error would name the wrong one.
pub(super) fn schema() -> Value {
    let text = || json!({"type": "string", "minLength": 1, "maxLength": TEXT_MAX});
    let texts = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let list = || json!({"type": "array", "maxItems": LIST_MAX, "items": text()});
    let millis = || json!({"type": "integer", "minimum": 1, "maximum": 900_000});
    let status = || json!({"type": "integer", "minimum": 200, "maximum": 599});
    let providers: Vec<_> = ProviderKind::ALL.iter().map(|kind| kind.name()).collect();
    let mut schema = FunctionInvoker::schema(json!({
        "type": "object",
        "properties": {
            "apikey": {"type": "string"},
            "apikey_with_iam": {"type": "boolean"},
            "override_authorization": {"type": "boolean"},
            "strip_client_apikey": {"type": "boolean"},
            "iam": {
                "type": "object",
                "properties": {
                    "secretkey": {"type": "string"},
                    "accesskey": {"type": "string"},
                    "session_token": {"type": "string"},
                    "aws_region": {"type": "string", "default": "us-east-1"},
                    "service": {"type": "string", "default": "execute-api"},
                    "provider": {"type": "string", "enum": providers},
                    "role_arn": text(),
                    "session_name": text(),
                    "external_id": {"type": "string", "minLength": 2, "maxLength": 1224},
                    "duration": {"type": "integer", "minimum": 900, "maximum": 43_200},
                    "tags": texts(),
                    "transitive_tag_keys": list(),
                    "sts_region": text(),
                    "sts_endpoint": text(),
                },
            },
        },
    }));
    let own = json!({
        "function": {
            "type": "object",
            "properties": {
                "arn": text(),
                "name": text(),
                "name_parameter": text(),
                "allowed_functions": {
                    "type": "array", "minItems": 1, "maxItems": LIST_MAX, "items": text(),
                },
                "qualifier": text(),
                "region": text(),
                "endpoint": text(),
                "account_id": text(),
            },
        },
        "invocation": {"type": "string", "enum": ["sync", "async", "dry_run", "stream"]},
        "async_reply": {"type": "string", "enum": ["empty", "request_id"]},
        "request_format": {
            "type": "string",
            "enum": ["raw", "apigw_v1", "apigw_v2", "alb", "kong", "envoy"],
        },
        "response_format": {
            "type": "string",
            "enum": ["raw", "apigw", "apigw_v1", "apigw_v2", "alb", "envoy", "auto"],
        },
        "event": {
            "type": "object",
            "properties": {
                "account_id": text(),
                "api_id": text(),
                "stage": text(),
                "stage_variables": texts(),
                "target_group_arn": text(),
                "text_types": list(),
                "binary_types": list(),
                "multi_value": {"type": "boolean"},
                "forward_request_method": {"type": "boolean"},
                "forward_request_uri": {"type": "boolean"},
                "forward_request_headers": {"type": "boolean"},
                "forward_request_body": {"type": "boolean"},
                "base64_encode_body": {"type": "boolean"},
            },
        },
        "max_event_bytes": {"type": "integer", "minimum": 1, "maximum": EVENT_BYTES_TOP},
        "timeouts": {
            "type": "object",
            "properties": {"connect": millis(), "first_byte": millis(), "total": millis()},
        },
        "on_function_error": status(),
        "unhandled_status": status(),
        "log_tail": {"type": "boolean"},
        "tenant_id": text(),
        "client_context": {"type": "object"},
        "forward_amz_headers": list(),
        "expose_amz_headers": list(),
    });
    if let (Some(schema), Value::Object(own)) = (schema.as_object_mut(), own) {
        schema.remove("required");
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.extend(own);
        }
    }
    schema
}

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
pub struct Config {
    pub(super) function_uri: Option<String>,
    pub(super) function: Option<FunctionConfig>,
    #[serde(flatten)]
    pub(super) options: InvokerOptions,
    #[serde(default)]
    pub(super) authorization: Authorization,
    timeouts: Option<Timeouts>,
    request_format: Option<RequestFormat>,
    response_format: Option<ResponseName>,
    event: Option<EventConfig>,
    #[serde(flatten)]
    pub(super) invocation: InvocationConfig,
}

/// What goes with `function` only.
#[derive(Debug, Default, Deserialize)]
pub(super) struct InvocationConfig {
    pub(super) invocation: Option<Invocation>,
    pub(super) async_reply: Option<AsyncReply>,
    pub(super) max_event_bytes: Option<usize>,
    pub(super) on_function_error: Option<u16>,
    pub(super) unhandled_status: Option<u16>,
    pub(super) log_tail: Option<bool>,
    pub(super) tenant_id: Option<String>,
    pub(super) client_context: Option<Map<String, Value>>,
    pub(super) forward_amz_headers: Option<Vec<String>>,
    pub(super) expose_amz_headers: Option<Vec<String>>,
}

impl InvocationConfig {
    /// The first attribute that is there.
    pub(super) fn first(&self) -> Option<&'static str> {
        let Self {
            invocation,
            async_reply,
            max_event_bytes,
            on_function_error,
            unhandled_status,
            log_tail,
            tenant_id,
            client_context,
            forward_amz_headers,
            expose_amz_headers,
        } = self;
        let all = [
            ("invocation", invocation.is_some()),
            ("async_reply", async_reply.is_some()),
            ("max_event_bytes", max_event_bytes.is_some()),
            ("on_function_error", on_function_error.is_some()),
            ("unhandled_status", unhandled_status.is_some()),
            ("log_tail", log_tail.is_some()),
            ("tenant_id", tenant_id.is_some()),
            ("client_context", client_context.is_some()),
            ("forward_amz_headers", forward_amz_headers.is_some()),
            ("expose_amz_headers", expose_amz_headers.is_some()),
        ];
        all.into_iter().find_map(|(name, is_there)| is_there.then_some(name))
    }

    /// The most bytes an event may have.
    pub(super) fn event_bytes_max(&self) -> usize {
        self.max_event_bytes.unwrap_or(match self.invocation {
            Some(Invocation::Async) => ASYNC_EVENT_BYTES_MAX,
            _ => SYNC_EVENT_BYTES_MAX,
        })
    }
}

/// Which function, and how a request may name it.
#[derive(Debug, Deserialize)]
pub(super) struct FunctionConfig {
    #[serde(flatten)]
    pub(super) settings: FunctionSettings,
    pub(super) name_parameter: Option<String>,
    pub(super) allowed_functions: Option<Vec<String>>,
}

/// Keys, and what becomes of the client's own.
#[derive(Default, Deserialize)]
pub(super) struct Authorization {
    pub(super) apikey: Option<String>,
    pub(super) iam: Option<Iam>,
    #[serde(default)]
    pub(super) apikey_with_iam: bool,
    #[serde(default)]
    pub(super) override_authorization: bool,
    #[serde(default)]
    pub(super) strip_client_apikey: bool,
}

impl std::fmt::Debug for Authorization {
    /// Keys are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization").finish_non_exhaustive()
    }
}

/// Who signs.
#[derive(Deserialize)]
pub(super) struct Iam {
    pub(super) accesskey: Option<String>,
    pub(super) secretkey: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) aws_region: String,
    pub(super) service: String,
    pub(super) provider: Option<ProviderKind>,
    pub(super) role_arn: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) duration: Option<u32>,
    #[serde(default)]
    pub(super) tags: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) transitive_tag_keys: Vec<String>,
    pub(super) sts_region: Option<String>,
    pub(super) sts_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Timeouts {
    connect: Option<u64>,
    first_byte: Option<u64>,
    total: Option<u64>,
}

/// How Lambda is to run a function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Invocation {
    /// The answer is waited for.
    #[default]
    Sync,
    /// Lambda queues the event.
    Async,
    /// Nothing runs: are parameters and permissions right?
    DryRun,
    /// The answer comes in pieces.
    Stream,
}

/// What a client of an asynchronous call gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AsyncReply {
    /// No body.
    #[default]
    Empty,
    /// `{"request_id": "…"}`
    RequestId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RequestFormat {
    Raw,
    ApigwV1,
    ApigwV2,
    Alb,
    Kong,
    Envoy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResponseName {
    Raw,
    Apigw,
    ApigwV1,
    ApigwV2,
    Alb,
    Envoy,
    Auto,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EventConfig {
    account_id: Option<String>,
    api_id: Option<String>,
    stage: Option<String>,
    stage_variables: BTreeMap<String, String>,
    target_group_arn: Option<String>,
    text_types: Vec<String>,
    binary_types: Vec<String>,
    multi_value: Option<bool>,
    forward_request_method: Option<bool>,
    forward_request_uri: Option<bool>,
    forward_request_headers: Option<bool>,
    forward_request_body: Option<bool>,
    base64_encode_body: Option<bool>,
}

/// How requests become events, and answers responses.
pub(super) struct Formats {
    /// `None`: the body goes as it is.
    pub(super) event: Option<EventEncoder>,
    pub(super) response: ResponseFormat,
}

impl Config {
    /// The formats; `account_id` is that of the function, `None` where there is a `function_uri`.
    pub(super) fn formats(
        &mut self,
        account_id: Option<Option<&str>>,
    ) -> Result<Formats, ConfigError> {
        let request = self.request_format.unwrap_or(match account_id {
            Some(_) => RequestFormat::ApigwV2,
            None => RequestFormat::Raw,
        });
        let response = match self.response_format {
            None if account_id.is_some() => ResponseFormat::Auto,
            None | Some(ResponseName::Raw) => ResponseFormat::Raw,
            Some(ResponseName::Apigw) if request == RequestFormat::ApigwV1 => {
                ResponseFormat::ApigwV1
            }
            Some(ResponseName::Apigw | ResponseName::ApigwV2) => ResponseFormat::ApigwV2,
            Some(ResponseName::ApigwV1) => ResponseFormat::ApigwV1,
            Some(ResponseName::Alb) => ResponseFormat::Alb,
            Some(ResponseName::Envoy) => ResponseFormat::Envoy,
            Some(ResponseName::Auto) => ResponseFormat::Auto,
        };
        let given = self.event.take();
        if request == RequestFormat::Raw {
            if given.is_some() {
                return Err(ConfigError(
                    "`event` goes with another `request_format` than raw".into(),
                ));
            }
            return Ok(Formats { event: None, response });
        }
        let event = given.unwrap_or_default();
        let kong = [
            ("forward_request_method", event.forward_request_method),
            ("forward_request_uri", event.forward_request_uri),
            ("forward_request_headers", event.forward_request_headers),
            ("forward_request_body", event.forward_request_body),
            ("base64_encode_body", event.base64_encode_body),
        ];
        let foreign = match request {
            RequestFormat::Kong => None,
            _ => {
                kong.into_iter().find(|(_, value)| value.is_some()).map(|(name, _)| (name, "kong"))
            }
        };
        let foreign = foreign.or(match request {
            RequestFormat::Alb => None,
            _ if event.multi_value.is_some() => Some(("multi_value", "alb")),
            _ if event.target_group_arn.is_some() => Some(("target_group_arn", "alb")),
            _ => None,
        });
        if let Some((name, format)) = foreign {
            return Err(ConfigError(format!("`event.{name}` goes with `request_format` {format}")));
        }
        let is = |value: Option<bool>| value == Some(true);
        let format = match request {
            RequestFormat::Raw => EventFormat::Raw,
            RequestFormat::ApigwV1 => EventFormat::ApigwV1,
            RequestFormat::ApigwV2 => EventFormat::ApigwV2,
            RequestFormat::Alb => EventFormat::Alb { multi_value: is(event.multi_value) },
            RequestFormat::Envoy => EventFormat::Envoy,
            RequestFormat::Kong => EventFormat::Kong(KongForward {
                method: is(event.forward_request_method),
                uri: is(event.forward_request_uri),
                headers: is(event.forward_request_headers),
                body: is(event.forward_request_body),
                base64_encode_body: event.base64_encode_body != Some(false),
            }),
        };
        let own_account = account_id.flatten().map(str::to_owned);
        let encoder = EventEncoder::compile(EventSettings {
            format,
            account_id: event.account_id.or(own_account),
            api_id: event.api_id,
            stage: event.stage,
            stage_variables: event.stage_variables.into_iter().collect(),
            target_group_arn: event.target_group_arn,
            text_types: event.text_types,
            binary_types: event.binary_types,
        });
        let event = Some(encoder.map_err(|error| ConfigError(format!("`event`: {error}")))?);
        Ok(Formats { event, response })
    }

    /// `timeouts`, compiled.
    pub(super) fn limits(&self) -> Option<CallLimits> {
        let Timeouts { connect, first_byte, total } = self.timeouts?;
        Some(CallLimits {
            connect: Duration::from_millis(connect.unwrap_or(self.options.timeout)),
            first_byte: first_byte.map(Duration::from_millis),
            total: total.map(Duration::from_millis),
        })
    }
}

/// Bytes of a text.
const TEXT_MAX: usize = 2048;
/// Entries of a list.
const LIST_MAX: usize = 100;
/// The most that `max_event_bytes` may say, and what an event for a URL may have: memory is not for
/// larger ones.
pub(super) const EVENT_BYTES_TOP: usize = 64 << 20;

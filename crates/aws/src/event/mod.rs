//! Events: an HTTP request in the JSON a function expects from the front it was written for.
//!
//! [`EventEncoder`] is compiled from [`EventSettings`] when configuration changes. Per request it
//! gets an [`EventRequest`], which only borrows, and writes the event straight into bytes.
//!
//! | format | written for | reference |
//! | --- | --- | --- |
//! | `raw` | functions that take the body itself | |
//! | `apigw_v1` | API Gateway REST APIs, HTTP APIs with payload 1.0 | <https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html> |
//! | `apigw_v2` | API Gateway HTTP APIs with payload 2.0, function URLs | <https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html> |
//! | `alb` | Application Load Balancers | <https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html> |
//! | `kong` | Kong's aws-lambda plugin | <https://docs.konghq.com/hub/kong-inc/aws-lambda/> |
//! | `envoy` | Envoy's AWS Lambda filter | <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/aws_lambda_filter> |
//!
//! Every field of a format is there; what the gateway cannot know is null (in `apigw_v2` absent,
//! as there). Paths keep their escapes in every format: what a function decodes twice is a fault
//! that people look for on the wrong side. Names in maps come sorted.
//!
//! Unlike there: a body that is no UTF-8 goes in base64 whatever the format's rule says, so that the
//! function gets the bytes the client sent; and `x-forwarded-for` of the API Gateway and ALB
//! formats holds the address the gateway believes and none of those that are told before it.

mod alb;
mod apigw_v1;
mod apigw_v2;
mod body;
mod envoy;
mod fields;
mod json;
mod kong;

use serde_json::Value;

use body::{BodyRule, FormatRule};
use json::{Counter, Object, Sink, write_text};

/// Writes the events of one route.
#[derive(Debug, Clone)]
pub struct EventEncoder {
    format: EventFormat,
    account_id: Option<String>,
    api_id: Option<String>,
    stage: Option<String>,
    /// The stage variables as JSON, if there are any.
    stage_variables: Option<String>,
    target_group_arn: Option<String>,
    body: BodyRule,
    /// The most bytes that the texts above take in an event.
    own_bytes: usize,
}

impl EventEncoder {
    /// Compiles the settings.
    pub fn compile(settings: EventSettings) -> Result<Self, EventSettingsError> {
        let rule = match settings.format {
            EventFormat::Raw | EventFormat::ApigwV1 | EventFormat::ApigwV2 => {
                FormatRule::ApiGateway
            }
            EventFormat::Alb { .. } => FormatRule::Alb,
            EventFormat::Kong(forward) => FormatRule::Kong { encode: forward.base64_encode_body },
            EventFormat::Envoy => FormatRule::Envoy,
        };
        if settings.stage_variables.len() > STAGE_VARIABLES_MAX {
            return Err(EventSettingsError::TooManyStageVariables);
        }
        let stage_variables = (!settings.stage_variables.is_empty()).then(|| {
            let mut out = Vec::new();
            let pairs: Vec<_> =
                settings.stage_variables.iter().map(|(name, value)| (&**name, &**value)).collect();
            fields::write_pairs(&pairs, &mut out);
            String::from_utf8(out).expect("names and values are texts, and escapes are ASCII")
        });
        let bytes = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        // The stage stands in the path of 1.0, too; stage variables are escaped already.
        let texts = bytes(&settings.account_id)
            + bytes(&settings.api_id)
            + bytes(&settings.stage) * 2
            + bytes(&settings.target_group_arn);
        Ok(Self {
            own_bytes: texts * ESCAPED_MAX + bytes(&stage_variables),
            body: BodyRule::compile(rule, &settings.text_types, &settings.binary_types)?,
            format: settings.format,
            account_id: settings.account_id,
            api_id: settings.api_id,
            stage: settings.stage,
            stage_variables,
            target_group_arn: settings.target_group_arn,
        })
    }

    /// Appends the event to `out`, unless it would have more than `limit` bytes. Nothing is
    /// written then, and the error tells the size it would have had.
    pub fn encode(
        &self,
        request: &EventRequest<'_>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), EventTooLarge> {
        let head = request.head_bytes();
        // Names stand at most twice.
        let around = head * (2 * ESCAPED_MAX + 2) + self.own_bytes + 4096;
        let surely_fits = request.body.len().saturating_mul(ESCAPED_MAX).saturating_add(around)
            <= limit
            && request.claims.is_none();
        if surely_fits {
            out.reserve(request.body.len() * 4 / 3 + head * 2 + self.own_bytes + 1024);
        } else {
            let size = self.encoded_size(request);
            if size > limit {
                return Err(EventTooLarge { size, limit });
            }
            out.reserve(size);
        }
        self.write(request, out);
        Ok(())
    }

    /// Whether an event holds the whole body, so that it is never shorter.
    pub fn holds_body(&self) -> bool {
        !matches!(self.format, EventFormat::Kong(KongForward { body: false, .. }))
    }

    /// How many bytes the event has, without writing it.
    pub fn encoded_size(&self, request: &EventRequest<'_>) -> usize {
        let mut counter = Counter::default();
        self.write(request, &mut counter);
        counter.0
    }

    fn write<S: Sink>(&self, request: &EventRequest<'_>, out: &mut S) {
        match self.format {
            EventFormat::Raw => out.raw(request.body),
            EventFormat::ApigwV1 => apigw_v1::write(self, request, out),
            EventFormat::ApigwV2 => apigw_v2::write(self, request, out),
            EventFormat::Alb { multi_value } => alb::write(self, request, multi_value, out),
            EventFormat::Kong(forward) => kong::write(self, request, forward, out),
            EventFormat::Envoy => envoy::write(self, request, out),
        }
    }

    /// `apiId`: what was configured, else the route.
    fn api_id<'a>(&'a self, request: &EventRequest<'a>) -> Option<&'a str> {
        self.api_id.as_deref().or(request.route_id)
    }

    fn stage(&self) -> &str {
        self.stage.as_deref().unwrap_or("$default")
    }
}

/// How the events of a route look.
#[derive(Debug, Clone, Default)]
pub struct EventSettings {
    /// The format.
    pub format: EventFormat,
    /// `requestContext.accountId`; usually [`FunctionRef::account_id`](crate::lambda::FunctionRef::account_id).
    pub account_id: Option<String>,
    /// `requestContext.apiId`; the route's id when absent.
    pub api_id: Option<String>,
    /// `requestContext.stage`; `$default` when absent.
    pub stage: Option<String>,
    /// The stage variables.
    pub stage_variables: Vec<(String, String)>,
    /// `requestContext.elb.targetGroupArn` of the ALB format.
    pub target_group_arn: Option<String>,
    /// Media types (`type/subtype`, `type/*`) that are text beside those of the format.
    pub text_types: Vec<String>,
    /// Media types that go in base64, whatever else is said.
    pub binary_types: Vec<String>,
}

/// The formats of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EventFormat {
    /// The body as it is.
    Raw,
    /// API Gateway's payload 1.0.
    ApigwV1,
    /// API Gateway's payload 2.0, also of function URLs.
    #[default]
    ApigwV2,
    /// An Application Load Balancer's.
    Alb {
        /// Lists of values in the place of single ones, as with the target group's attribute.
        multi_value: bool,
    },
    /// Kong's own.
    Kong(KongForward),
    /// Envoy's own.
    Envoy,
}

/// What Kong's format holds. With no `forward_request_*` at all it is the arguments of query and
/// body in one object, the body's over the query's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KongForward {
    /// `request_method`.
    pub method: bool,
    /// `request_uri` and `request_uri_args`.
    pub uri: bool,
    /// `request_headers`.
    pub headers: bool,
    /// `request_body`, `request_body_args`, and `request_body_base64` where it applies.
    pub body: bool,
    /// Bodies of types Kong does not know go in base64.
    pub base64_encode_body: bool,
}

impl Default for KongForward {
    fn default() -> Self {
        Self { method: false, uri: false, headers: false, body: false, base64_encode_body: true }
    }
}

/// A request, as far as events tell of it. All of it is borrowed, and [`Default`] is an empty
/// request, so that a caller fills in what it knows.
#[derive(Debug, Clone, Copy)]
pub struct EventRequest<'a> {
    /// `GET`.
    pub method: &'a str,
    /// The path, without the query: dot segments resolved, escapes kept.
    pub path: &'a str,
    /// The query as the client sent it, without its `?`.
    pub query: &'a str,
    /// The headers, in the order they came. Cookies are read from here. What the client says about
    /// itself (`x-forwarded-for` and its kin) is here as the gateway passes it on, its own words
    /// included.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Headers of the gateway's own, which replace the client's: trace headers, say.
    pub own_headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
    /// The body came with a transfer encoding: in chunks.
    pub chunked: bool,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'a str,
    /// The host the client asked for, without a port.
    pub host: &'a str,
    /// The client's address, resolved by real-ip, never by a header of the client.
    pub client_ip: &'a str,
    /// `user-agent`.
    pub user_agent: Option<&'a str>,
    /// The gateway's id of this request.
    pub request_id: &'a str,
    /// When it came, in milliseconds since 1970.
    pub time_ms: u64,
    /// The route's id.
    pub route_id: Option<&'a str>,
    /// The pattern of the route that matched: `/users/:id`, `/files/*`.
    pub route_pattern: Option<&'a str>,
    /// What the pattern's parameters matched.
    pub path_parameters: &'a [(&'a str, &'a str)],
    /// The name of the authenticated consumer.
    pub consumer: Option<&'a str>,
    /// The verified claims of a token: an object.
    pub claims: Option<&'a Value>,
    /// The verified certificate of the client.
    pub client_certificate: Option<ClientCertificate<'a>>,
}

impl Default for EventRequest<'_> {
    fn default() -> Self {
        Self {
            method: "GET",
            path: "/",
            query: "",
            headers: &[],
            own_headers: &[],
            body: b"",
            chunked: false,
            protocol: "HTTP/1.1",
            host: "",
            client_ip: "",
            user_agent: None,
            request_id: "",
            time_ms: 0,
            route_id: None,
            route_pattern: None,
            path_parameters: &[],
            consumer: None,
            claims: None,
            client_certificate: None,
        }
    }
}

impl<'a> EventRequest<'a> {
    /// The bytes of everything but body and claims.
    fn head_bytes(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let pairs = |pairs: &[(&str, &str)]| -> usize {
            pairs.iter().map(|(name, value)| name.len() + value.len() + 8).sum()
        };
        let certificate = self.client_certificate.map_or(0, |certificate| {
            certificate.pem.len() + certificate.subject_dn.len() + certificate.issuer_dn.len() + 200
        });
        let texts = [
            self.method,
            self.path,
            self.path,
            self.query,
            self.query,
            self.host,
            self.host,
            self.request_id,
            self.request_id,
            self.route_id.unwrap_or_default(),
            self.route_pattern.unwrap_or_default(),
            self.route_pattern.unwrap_or_default(),
            self.user_agent.unwrap_or_default(),
            self.consumer.unwrap_or_default(),
        ];
        headers
            + pairs(self.own_headers)
            + pairs(self.path_parameters)
            + certificate
            + texts.iter().map(|text| text.len()).sum::<usize>()
    }

    fn domain_prefix(&self) -> &'a str {
        self.host.split('.').next().unwrap_or_default()
    }

    /// The scopes of the claims: `scope` (a text of words), else `scp` (a text or a list).
    fn scopes(&self) -> Option<impl Iterator<Item = &'a str> + Clone> {
        let claims = self.claims?;
        let scopes = claims.get("scope").or_else(|| claims.get("scp"))?;
        let list = scopes.as_array().map(Vec::as_slice).unwrap_or_default();
        let words = scopes.as_str().unwrap_or_default();
        Some(words.split_whitespace().chain(list.iter().filter_map(Value::as_str)))
    }
}

/// A client's certificate, in the texts of events.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientCertificate<'a> {
    /// The certificate in PEM.
    pub pem: &'a str,
    /// Whom it names.
    pub subject_dn: &'a str,
    /// Who issued it.
    pub issuer_dn: &'a str,
    /// Its number.
    pub serial_number: &'a str,
    /// Since when it is valid: `May 28 12:30:02 2019 GMT`.
    pub not_before: &'a str,
    /// Until when.
    pub not_after: &'a str,
}

/// An event would be larger than the function's platform takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event would have {size} bytes, and {limit} are the most")]
pub struct EventTooLarge {
    /// The size it would have.
    pub size: usize,
    /// The most that is allowed.
    pub limit: usize,
}

/// Why settings cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventSettingsError {
    /// A media type is none.
    #[error("`{field}` holds {given:?}, which is no media type such as image/png or image/*")]
    MediaType {
        /// The list.
        field: &'static str,
        /// The entry.
        given: String,
    },
    /// Too many media types.
    #[error("`{field}` has more than 100 entries")]
    TooManyMediaTypes {
        /// The list.
        field: &'static str,
    },
    /// Too many stage variables.
    #[error("there are more than {STAGE_VARIABLES_MAX} stage variables")]
    TooManyStageVariables,
}

/// Writes `body` as the rule says and tells whether it went in base64.
fn write_body<S: Sink>(body: &[u8], base64: bool, out: &mut S) {
    if base64 {
        out.raw(b"\"");
        out.base64(body);
        out.raw(b"\"");
    } else {
        write_text(body, out);
    }
}

/// API Gateway's spelling of a route's pattern: `/users/{id}`, `/files/{proxy+}`.
fn write_resource<S: Sink>(pattern: &str, out: &mut S) {
    let mut resource = Vec::with_capacity(pattern.len() + 16);
    push_resource(pattern, &mut resource);
    write_text(&resource, out);
}

fn push_resource(pattern: &str, out: &mut Vec<u8>) {
    for (i, segment) in pattern.split('/').enumerate() {
        if i > 0 {
            out.push(b'/');
        }
        let (fixed, greedy) = match segment.split_once('*') {
            Some((fixed, name)) => (fixed, Some(if name.is_empty() { "proxy" } else { name })),
            None => (segment, None),
        };
        match fixed.strip_prefix(':') {
            Some(name) => out.extend([b"{", name.as_bytes(), b"}"].concat()),
            None => out.extend_from_slice(fixed.as_bytes()),
        }
        if let Some(name) = greedy {
            out.extend([b"{", name.as_bytes(), b"+}"].concat());
        }
    }
}

/// Writes claims as API Gateway does: every value a text, lists in brackets.
fn write_claims<S: Sink>(claims: &Value, out: &mut S) {
    let mut object = Object::open(out);
    for (name, value) in claims.as_object().into_iter().flatten() {
        let out = object.any_name(name.as_bytes());
        match value {
            Value::String(text) => write_text(text.as_bytes(), out),
            Value::Array(items) => {
                let items: Vec<_> = items
                    .iter()
                    .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
                    .collect();
                write_text(format!("[{}]", items.join(" ")).as_bytes(), out);
            }
            other => write_text(other.to_string().as_bytes(), out),
        }
    }
    object.close();
}

/// The most bytes that one byte becomes: `\u0000`.
const ESCAPED_MAX: usize = 6;
/// The most stage variables.
const STAGE_VARIABLES_MAX: usize = 200;
/// The most Lambda takes in a synchronous call.
pub const SYNC_EVENT_BYTES_MAX: usize = 6 * 1024 * 1024;
/// The most Lambda takes in an asynchronous call.
pub const ASYNC_EVENT_BYTES_MAX: usize = 1024 * 1024;

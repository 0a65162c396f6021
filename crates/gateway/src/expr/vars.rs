//! Variables: their names, parsed once, and the values a request gives them.
//!
//! The names are those of nginx and of APISIX's `ctx.var`. Parsing happens when configuration is
//! compiled; a request only ever sees a [`VarName`].

use std::{borrow::Cow, fmt};

use super::BodyPath;

/// Something that knows variables by name: a request, or a table in a test.
pub trait Vars {
    /// The value of a variable, `None` when it has none.
    fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>>;

    /// Writes a variable that needs no escaping in any kind of log, if it can do so without
    /// making its value first; `false`: nothing was written, see [`Vars::var`].
    fn write_plain(&self, _name: &VarName, _out: &mut Vec<u8>) -> bool {
        false
    }

    /// The request itself, where this is one.
    fn exchange(&self) -> Option<&crate::exchange::Exchange> {
        None
    }
}

/// The name of a variable, split into its family and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VarName {
    /// `arg_NAME`: the first query argument of that name, decoded; names are case-sensitive.
    Arg(Box<str>),
    /// `cookie_NAME`: a cookie.
    Cookie(Box<str>),
    /// `http_NAME`: a request header, here in lower case and with dashes (`x-forwarded-for`).
    Http(Box<str>),
    /// `sent_http_NAME`: a header of the answer, spelled as in [`VarName::Http`].
    SentHttp(Box<str>),
    /// `upstream_http_NAME`: a header of the upstream's answer, spelled as in [`VarName::Http`].
    UpstreamHttp(Box<str>),
    /// `post_arg_NAME`: the first argument of that name in a form body.
    PostArg(Box<str>),
    /// `post_arg.PATH`: a value out of a JSON body or a form.
    PostBody(BodyPath),
    /// `uri_param_NAME`: a parameter of the matched route's `uri`.
    UriParam(Box<str>),
    /// `graphql_NAME`: `name`, `operation` or `root_fields` of a GraphQL query.
    Graphql(Box<str>),
    /// A variable with a fixed name.
    Builtin(Builtin),
    /// Any other name: a variable that a plugin sets, or one that nobody knows.
    Other(Box<str>),
}

impl VarName {
    /// Splits a name as it is written in a configuration, without a leading `$`.
    ///
    /// The order of the families decides: `post_arg_x` is a form argument, `arg_post` a query one.
    pub fn parse(name: &str) -> Self {
        let header = |rest: &str| rest.to_ascii_lowercase().replace('_', "-").into_boxed_str();
        for (prefix, family) in FAMILIES {
            if let Some(rest) = name.strip_prefix(prefix) {
                return family(rest.into());
            }
        }
        if let Some(builtin) = Builtin::parse(name) {
            return Self::Builtin(builtin);
        }
        for (prefix, family) in HEADER_FAMILIES {
            if let Some(rest) = name.strip_prefix(prefix) {
                return family(header(rest));
            }
        }
        Self::Other(name.into())
    }
}

impl fmt::Display for VarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, name) = match self {
            Self::Arg(name) => ("arg_", name),
            Self::Cookie(name) => ("cookie_", name),
            Self::PostArg(name) => ("post_arg_", name),
            Self::PostBody(path) => return write!(f, "post_arg.{}", path.text()),
            Self::UriParam(name) => ("uri_param_", name),
            Self::Graphql(name) => ("graphql_", name),
            Self::Http(name) => return write!(f, "http_{}", name.replace('-', "_")),
            Self::SentHttp(name) => return write!(f, "sent_http_{}", name.replace('-', "_")),
            Self::UpstreamHttp(name) => {
                return write!(f, "upstream_http_{}", name.replace('-', "_"));
            }
            Self::Builtin(builtin) => return f.write_str(builtin.name()),
            Self::Other(name) => ("", name),
        };
        write!(f, "{prefix}{name}")
    }
}

type Family = fn(Box<str>) -> VarName;

const FAMILIES: [(&str, Family); 6] = [
    ("cookie_", VarName::Cookie),
    ("arg_", VarName::Arg),
    ("post_arg_", VarName::PostArg),
    ("post_arg.", |path| VarName::PostBody(BodyPath::parse(&path))),
    ("uri_param_", VarName::UriParam),
    ("graphql_", VarName::Graphql),
];

const HEADER_FAMILIES: [(&str, Family); 3] = [
    ("http_", VarName::Http),
    ("sent_http_", VarName::SentHttp),
    ("upstream_http_", VarName::UpstreamHttp),
];

/// A value, as Lua would see it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text; header and path bytes need not be UTF-8.
    Str(Cow<'a, [u8]>),
    /// A number, from a JSON body.
    Num(f64),
    /// A truth value, from a JSON body.
    Bool(bool),
    /// Several values, for `has`.
    List(Vec<Value<'a>>),
    /// Nothing; the same as a variable without a value.
    Nil,
}

impl<'a> Value<'a> {
    /// The value as bytes to print or to match: text itself, numbers and truth values as Lua
    /// writes them, nothing for lists and nil.
    pub fn to_bytes(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Str(text) => Some(Cow::Borrowed(text)),
            Self::Num(number) => Some(Cow::Owned(lua_text(*number).into_bytes())),
            Self::Bool(flag) => Some(Cow::Borrowed(if *flag { b"true" } else { b"false" })),
            Self::List(_) | Self::Nil => None,
        }
    }

    /// The value as Lua's `tonumber` reads it.
    pub fn to_number(&self) -> Option<f64> {
        match self {
            Self::Str(text) => lua_number(text),
            Self::Num(number) => Some(*number),
            Self::Bool(_) | Self::List(_) | Self::Nil => None,
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Str(Cow::Borrowed(text.as_bytes()))
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(text: &'a [u8]) -> Self {
        Self::Str(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Str(Cow::Owned(text.into_bytes()))
    }
}

impl From<f64> for Value<'_> {
    fn from(number: f64) -> Self {
        Self::Num(number)
    }
}

/// Reads text as Lua's `tonumber` does: blanks around it, a sign, decimal or hexadecimal.
pub(crate) fn lua_number(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}');
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let number = hex_number(hex)?;
        return Some(if negative { -number } else { number });
    }
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number: f64 = digits.parse().ok()?;
    Some(if negative { -number } else { number })
}

/// The part after `0x`: hexadecimal digits, a fraction, a binary exponent.
fn hex_number(text: &str) -> Option<f64> {
    let (mantissa, exponent) = match text.split_once(['p', 'P']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut number = 0.0;
    for digit in whole.chars().chain(fraction.chars()) {
        number = number * 16.0 + f64::from(digit.to_digit(16)?);
    }
    let fraction_bits = i32::try_from(fraction.len()).ok()?.checked_mul(4)?;
    Some(number * f64::powi(2.0, exponent.checked_sub(fraction_bits)?))
}

/// Writes a number as Lua does: whole numbers without a point.
pub(crate) fn lua_text(number: f64) -> String {
    const WHOLE_MAX: f64 = 1e14;
    if number.fract() == 0.0 && number.abs() < WHOLE_MAX {
        format!("{number:.0}")
    } else {
        format!("{number}")
    }
}

macro_rules! builtins {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// The variables with fixed names: those of nginx, and those APISIX adds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Builtin {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Builtin {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The variable's name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn parse(name: &str) -> Option<Self> {
                match name {
                    "method" => Some(Self::RequestMethod),
                    "document_uri" => Some(Self::Uri),
                    "query_string" => Some(Self::Args),
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

builtins! {
    ApisixRequestId "apisix_request_id",
    ApisixUpstreamResponseTime "apisix_upstream_response_time",
    Args "args",
    BalancerIp "balancer_ip",
    BalancerPort "balancer_port",
    BinaryRemoteAddr "binary_remote_addr",
    BodyBytesSent "body_bytes_sent",
    BytesReceived "bytes_received",
    BytesSent "bytes_sent",
    Connection "connection",
    ConnectionRequests "connection_requests",
    ConnectionTime "connection_time",
    ConsumerGroupId "consumer_group_id",
    ConsumerName "consumer_name",
    ContentLength "content_length",
    ContentType "content_type",
    Host "host",
    Hostname "hostname",
    Https "https",
    IsArgs "is_args",
    Msec "msec",
    NginxVersion "nginx_version",
    OriginalXForwardedFor "original_x_forwarded_for",
    Pid "pid",
    Pipe "pipe",
    ProxyAddXForwardedFor "proxy_add_x_forwarded_for",
    ProxyProtocolAddr "proxy_protocol_addr",
    ProxyProtocolPort "proxy_protocol_port",
    ProxyProtocolServerAddr "proxy_protocol_server_addr",
    ProxyProtocolServerPort "proxy_protocol_server_port",
    RealRequestUri "real_request_uri",
    RemoteAddr "remote_addr",
    RemotePort "remote_port",
    RemoteUser "remote_user",
    Request "request",
    RequestBody "request_body",
    RequestCompletion "request_completion",
    RequestId "request_id",
    RequestLength "request_length",
    RequestLine "request_line",
    RequestMethod "request_method",
    RequestTime "request_time",
    RequestUri "request_uri",
    RespBody "resp_body",
    RouteId "route_id",
    RouteName "route_name",
    Scheme "scheme",
    ServerAddr "server_addr",
    ServerName "server_name",
    ServerPort "server_port",
    ServerProtocol "server_protocol",
    ServiceId "service_id",
    ServiceName "service_name",
    SslCipher "ssl_cipher",
    SslClientFingerprint "ssl_client_fingerprint",
    SslClientIDn "ssl_client_i_dn",
    SslClientSDn "ssl_client_s_dn",
    SslClientSerial "ssl_client_serial",
    SslClientVerify "ssl_client_verify",
    SslProtocol "ssl_protocol",
    SslServerName "ssl_server_name",
    SslSessionReused "ssl_session_reused",
    Status "status",
    TimeIso8601 "time_iso8601",
    TimeLocal "time_local",
    UpstreamAddr "upstream_addr",
    UpstreamBytesReceived "upstream_bytes_received",
    UpstreamBytesSent "upstream_bytes_sent",
    UpstreamCacheStatus "upstream_cache_status",
    UpstreamConnectTime "upstream_connect_time",
    UpstreamHeaderTime "upstream_header_time",
    UpstreamHost "upstream_host",
    UpstreamResponseLength "upstream_response_length",
    UpstreamResponseTime "upstream_response_time",
    UpstreamScheme "upstream_scheme",
    UpstreamStatus "upstream_status",
    UpstreamUnresolvedHost "upstream_unresolved_host",
    UpstreamUri "upstream_uri",
    Uri "uri",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fall_into_their_families() {
        for (name, parsed) in [
            ("arg_name", VarName::Arg("name".into())),
            ("arg_Name", VarName::Arg("Name".into())),
            ("arg_", VarName::Arg("".into())),
            ("cookie_sid", VarName::Cookie("sid".into())),
            ("http_host", VarName::Http("host".into())),
            ("http_X-Api_Key", VarName::Http("x-api-key".into())),
            ("https", VarName::Builtin(Builtin::Https)),
            ("sent_http_content_type", VarName::SentHttp("content-type".into())),
            ("upstream_http_x_a", VarName::UpstreamHttp("x-a".into())),
            ("post_arg_name", VarName::PostArg("name".into())),
            ("post_arg.a.b[*].c", VarName::PostBody(BodyPath::parse("a.b[*].c"))),
            ("uri_param_id", VarName::UriParam("id".into())),
            ("graphql_root_fields", VarName::Graphql("root_fields".into())),
            ("request_method", VarName::Builtin(Builtin::RequestMethod)),
            ("method", VarName::Builtin(Builtin::RequestMethod)),
            ("uri", VarName::Builtin(Builtin::Uri)),
            ("a6_labels_zone", VarName::Other("a6_labels_zone".into())),
            ("", VarName::Other("".into())),
        ] {
            assert_eq!(VarName::parse(name), parsed, "{name}");
        }
    }

    #[test]
    fn a_printed_name_parses_to_itself() {
        let families =
            ["arg_a", "cookie_a", "http_a_b", "post_arg_a", "post_arg.a", "uri_param_a", "x_y"];
        let builtins = Builtin::ALL.iter().map(|builtin| builtin.name());
        for name in builtins.chain(families) {
            assert_eq!(VarName::parse(name).to_string(), name);
        }
    }

    #[test]
    fn text_becomes_a_number_as_in_lua() {
        for (text, number) in [
            ("10", Some(10.0)),
            (" 10\t", Some(10.0)),
            ("-1.5", Some(-1.5)),
            ("+3", Some(3.0)),
            ("1e3", Some(1000.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("0x10", Some(16.0)),
            ("-0X.8p1", Some(-1.0)),
            ("0x", None),
            ("0x1p", None),
            ("+-1", None),
            ("--1", None),
            ("", None),
            (" ", None),
            ("-", None),
            ("10a", None),
            ("1 0", None),
            ("1_0", None),
        ] {
            assert_eq!(lua_number(text.as_bytes()), number, "{text:?}");
        }
        assert_eq!(lua_number(b"1\xff"), None);
    }

    #[test]
    fn numbers_print_as_in_lua() {
        for (number, text) in [(10.0, "10"), (-0.5, "-0.5"), (1.25, "1.25"), (0.0, "0")] {
            assert_eq!(lua_text(number), text);
        }
    }
}

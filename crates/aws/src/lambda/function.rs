//! Which function, where: from a name or an ARN to host, path and query of the Invoke API.
//!
//! The forms of a name: <https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html>, parameter
//! `FunctionName`: a name, `name:qualifier`, `account:function:name`, `region:account:function:name`
//! and the whole ARN, each with a qualifier or without.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::partition::Partition;

/// How a function is named in a configuration; [`FunctionRef::parse`] reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FunctionSettings {
    /// The ARN, in full or in part.
    pub arn: Option<String>,
    /// The name. One of `arn` and `name` is given, unless the name comes with the request.
    pub name: Option<String>,
    /// A version, an alias or `$LATEST`.
    pub qualifier: Option<String>,
    /// The region, where no ARN tells it.
    pub region: Option<String>,
    /// Another place than AWS's own: a VPC endpoint, an emulator.
    pub endpoint: Option<String>,
    /// The account of a function that is named without an ARN and is not the caller's own.
    pub account_id: Option<String>,
}

/// A function that can be called: everything that does not change from call to call.
///
/// ```
/// use sluicegate_aws::lambda::{ApiCall, FunctionRef, FunctionSettings};
///
/// let arn = "arn:aws:lambda:eu-central-1:123456789012:function:greet:live".to_owned();
/// let settings = FunctionSettings { arn: Some(arn), ..FunctionSettings::default() };
/// let function = FunctionRef::parse(&settings, None)?;
/// assert_eq!(function.endpoint().host, "lambda.eu-central-1.amazonaws.com");
/// assert_eq!(
///     function.path(ApiCall::Invoke),
///     "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Agreet/invocations",
/// );
/// assert_eq!(function.query(), Some("Qualifier=live"));
/// # Ok::<(), sluicegate_aws::lambda::FunctionRefError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRef {
    name: String,
    qualifier: Option<String>,
    account_id: Option<String>,
    region: String,
    endpoint: Endpoint,
    identifier: Identifier,
    invoke_path: String,
    stream_path: String,
    query: Option<String>,
}

impl FunctionRef {
    /// Reads a configuration. `default_region` stands in when neither it nor an ARN names one.
    pub fn parse(
        settings: &FunctionSettings,
        default_region: Option<&str>,
    ) -> Result<Self, FunctionRefError> {
        let mut parts = match (present(&settings.arn), present(&settings.name)) {
            (Some(_), Some(_)) => return Err(FunctionRefError::Both),
            (None, None) => return Err(FunctionRefError::Neither),
            (Some(arn), None) => {
                let parts = Parts::parse(arn)?;
                if parts.account_id.is_none() {
                    return Err(FunctionRefError::NotAnArn { given: shown(arn) });
                }
                parts
            }
            (None, Some(name)) => Parts::parse(name)?,
        };
        agree("qualifier", &mut parts.qualifier, present(&settings.qualifier))?;
        agree("region", &mut parts.region, present(&settings.region))?;
        agree("account_id", &mut parts.account_id, present(&settings.account_id))?;
        if let Some(qualifier) = &parts.qualifier
            && !is_qualifier(qualifier)
        {
            return Err(FunctionRefError::Qualifier { given: shown(qualifier) });
        }
        if let Some(account) = &parts.account_id
            && !is_account(account)
        {
            return Err(FunctionRefError::Account { given: shown(account) });
        }
        let region = match parts.region.as_deref().or(default_region.filter(|it| !it.is_empty())) {
            Some(region) if is_region(region) => region.to_owned(),
            Some(region) => return Err(FunctionRefError::Region { given: shown(region) }),
            None => return Err(FunctionRefError::NoRegion),
        };
        let partition = Partition::of_region(&region);
        if let Some(stated) = parts.partition
            && stated != partition.name
        {
            return Err(FunctionRefError::Partition { stated, region });
        }
        let endpoint = match present(&settings.endpoint) {
            Some(endpoint) => Endpoint::parse(endpoint)?,
            None => Endpoint {
                scheme: Scheme::Https,
                host: format!("lambda.{region}.{}", partition.dns_suffix),
                port: None,
                path: String::new(),
            },
        };
        let identifier = match (&parts.account_id, parts.is_arn) {
            (Some(account), true) => Identifier::Arn {
                prefix: format!("arn:{}:lambda:{region}:{account}:function:", partition.name),
            },
            (Some(account), false) => Identifier::Arn { prefix: format!("{account}:function:") },
            (None, _) => Identifier::Name,
        };
        let mut function = Self {
            name: String::new(),
            query: parts.qualifier.as_deref().map(|qualifier| {
                let mut query = "Qualifier=".to_owned();
                push_encoded(qualifier, &mut query);
                query
            }),
            qualifier: parts.qualifier,
            account_id: parts.account_id,
            region,
            endpoint,
            identifier,
            invoke_path: String::new(),
            stream_path: String::new(),
        };
        function.set_name(parts.name);
        Ok(function)
    }

    /// The same function under another name, as it comes with a request. Only a plain name is
    /// taken: account, region and qualifier stay the configuration's. Ask [`AllowedFunctions`]
    /// before.
    pub fn with_name(&self, name: &str) -> Result<Self, FunctionRefError> {
        if !is_name(name) {
            return Err(FunctionRefError::Name { given: shown(name) });
        }
        let mut function = self.clone();
        function.set_name(name.to_owned());
        Ok(function)
    }

    /// The path of a call, as it is sent. The signer encodes it once more.
    pub fn path(&self, call: ApiCall) -> &str {
        match call {
            ApiCall::Invoke => &self.invoke_path,
            ApiCall::InvokeWithResponseStream => &self.stream_path,
        }
    }

    /// The query of every call: `Qualifier=` with an encoded value, or nothing.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Where calls go.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The region calls are signed for.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The function's name alone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version, alias or `$LATEST`, if one was asked for.
    pub fn qualifier(&self) -> Option<&str> {
        self.qualifier.as_deref()
    }

    /// The account that owns the function, where it is known.
    pub fn account_id(&self) -> Option<&str> {
        self.account_id.as_deref()
    }

    fn set_name(&mut self, name: String) {
        let mut identifier = String::new();
        if let Identifier::Arn { prefix } = &self.identifier {
            push_encoded(prefix, &mut identifier);
        }
        push_encoded(&name, &mut identifier);
        let base = &self.endpoint.path;
        self.invoke_path = format!("{base}/2015-03-31/functions/{identifier}/invocations");
        self.stream_path =
            format!("{base}/2021-11-15/functions/{identifier}/response-streaming-invocations");
        self.name = name;
    }
}

/// The two calls of the Invoke API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiCall {
    /// `Invoke`: synchronous, asynchronous or dry, as `X-Amz-Invocation-Type` says.
    Invoke,
    /// `InvokeWithResponseStream`: the answer comes as an event stream.
    InvokeWithResponseStream,
}

/// Where the Invoke API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// With TLS or without.
    pub scheme: Scheme,
    /// The host; an IPv6 address in its brackets.
    pub host: String,
    /// The port, where it is not the scheme's own.
    pub port: Option<u16>,
    /// What comes before the API's path: empty, or starting with `/` and not ending with one.
    pub path: String,
}

impl Endpoint {
    /// The host with its port, as `Host` is sent and signed.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// The port to connect to.
    pub fn port_to_dial(&self) -> u16 {
        self.port.unwrap_or(match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        })
    }

    fn parse(given: &str) -> Result<Self, FunctionRefError> {
        let refuse = |reason| FunctionRefError::Endpoint { given: shown(given), reason };
        let (scheme, rest) = match given.split_once("://") {
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("http", rest)) => (Scheme::Http, rest),
            _ => return Err(refuse("it starts with neither https:// nor http://")),
        };
        if rest.contains(['?', '#']) {
            return Err(refuse("it has a query"));
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(refuse("it holds a user"));
        }
        let after_host = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[after_host..].rfind(':') {
            Some(at) => {
                let (host, port) = authority.split_at(after_host + at);
                let port: u16 = port[1..].parse().map_err(|_| refuse("its port is no number"))?;
                (host, Some(port))
            }
            None => (authority, None),
        };
        let (inner, allowed): (_, fn(&u8) -> bool) = match host.strip_prefix('[') {
            Some(inner) => {
                let inner = inner.strip_suffix(']').ok_or_else(|| refuse("its host is broken"))?;
                (inner, |byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
            }
            None => (host, |byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)),
        };
        if inner.is_empty() {
            return Err(refuse("it has no host"));
        }
        if host.len() > HOST_BYTES_MAX || !inner.as_bytes().iter().all(allowed) {
            return Err(refuse("its host is broken"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%:@+".contains(&byte);
        if !path.bytes().all(plain) || path.contains("//") || path.split('/').any(is_dots) {
            return Err(refuse("its path is not plain"));
        }
        let own = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        Ok(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            port: port.filter(|port| *port != own),
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

/// With TLS or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain, for emulators.
    Http,
    /// TLS.
    Https,
}

/// The functions a request may name: names, or patterns in which `*` stands for any run of
/// characters and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedFunctions {
    patterns: Vec<Box<str>>,
}

impl AllowedFunctions {
    /// Compiles the list. An empty list is refused: it would allow nothing, and who leaves it empty
    /// means everything.
    pub fn compile<S: AsRef<str>>(patterns: &[S]) -> Result<Self, FunctionRefError> {
        if patterns.is_empty() {
            return Err(FunctionRefError::NoAllowed);
        }
        if patterns.len() > ALLOWED_MAX {
            return Err(FunctionRefError::TooManyAllowed { count: patterns.len() });
        }
        let patterns = patterns
            .iter()
            .map(|pattern| {
                let pattern = pattern.as_ref();
                let legal = |byte| is_name_byte(byte) || matches!(byte, b'*' | b'?');
                if (1..=NAME_BYTES_MAX).contains(&pattern.len()) && pattern.bytes().all(legal) {
                    Ok(pattern.into())
                } else {
                    Err(FunctionRefError::AllowedPattern { given: shown(pattern) })
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// Whether a request may call this function. What is no plain name is never allowed.
    pub fn allows(&self, name: &str) -> bool {
        is_name(name)
            && self.patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
    }
}

/// Why a configuration names no function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FunctionRefError {
    /// Nothing was given.
    #[error("`function` needs `arn` or `name`")]
    Neither,
    /// Two were given.
    #[error("`function` has both `arn` and `name`: give one")]
    Both,
    /// `arn` holds something else.
    #[error("`function.arn` is no ARN: {given:?} names no account")]
    NotAnArn {
        /// What was given.
        given: String,
    },
    /// The name or ARN has none of the known forms.
    #[error(
        "{given:?} is no function: expected a name (letters, digits, `-`, `_`), \
         `name:qualifier`, `account:function:name` or `arn:aws:lambda:region:account:function:name`"
    )]
    Name {
        /// What was given.
        given: String,
    },
    /// An ARN, but of another kind of resource.
    #[error("{given:?} is the ARN of something else than a Lambda function")]
    OtherResource {
        /// What was given.
        given: String,
    },
    /// The qualifier has no known form.
    #[error("`function.qualifier` {given:?} is no version, no alias and not `$LATEST`")]
    Qualifier {
        /// What was given.
        given: String,
    },
    /// The region has no known form.
    #[error("`function.region` {given:?} is no region such as us-east-1")]
    Region {
        /// What was given.
        given: String,
    },
    /// Nothing names the region.
    #[error("`function.region` is missing, and no ARN tells it")]
    NoRegion,
    /// The account is no account.
    #[error("`function.account_id` {given:?} is not twelve digits")]
    Account {
        /// What was given.
        given: String,
    },
    /// The ARN says one thing, the field beside it another.
    #[error("the function's ARN or name says {in_name:?}, and `function.{field}` says {given:?}")]
    Contradiction {
        /// The field.
        field: &'static str,
        /// What the name says.
        in_name: String,
        /// What the field says.
        given: String,
    },
    /// The ARN's partition does not hold its region.
    #[error("the ARN is of partition {stated:?}, which has no region {region:?}")]
    Partition {
        /// The ARN's partition.
        stated: String,
        /// The region.
        region: String,
    },
    /// The endpoint cannot be called.
    #[error("`function.endpoint` {given:?} cannot be called: {reason}")]
    Endpoint {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The list of allowed functions is empty.
    #[error("`allowed_functions` is empty: name at least one function or pattern")]
    NoAllowed,
    /// The list of allowed functions is too long.
    #[error("`allowed_functions` has {count} entries, {ALLOWED_MAX} are the most")]
    TooManyAllowed {
        /// How many there are.
        count: usize,
    },
    /// An entry could never match.
    #[error(
        "`allowed_functions` holds {given:?}: a pattern has letters, digits, `-`, `_`, `*` and `?`"
    )]
    AllowedPattern {
        /// The entry.
        given: String,
    },
}

/// What is sent where the API wants the function.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identifier {
    Name,
    /// An ARN without its name at the end.
    Arn {
        prefix: String,
    },
}

/// The pieces of a name in any of its forms.
#[derive(Debug, Default)]
struct Parts {
    is_arn: bool,
    partition: Option<String>,
    region: Option<String>,
    account_id: Option<String>,
    name: String,
    qualifier: Option<String>,
}

impl Parts {
    fn parse(given: &str) -> Result<Self, FunctionRefError> {
        let refuse = || FunctionRefError::Name { given: shown(given) };
        if given.len() > IDENTIFIER_BYTES_MAX {
            return Err(refuse());
        }
        let mut pieces = given.split(':').peekable();
        let mut parts = Self::default();
        if pieces.next_if_eq(&"arn").is_some() {
            parts.is_arn = true;
            parts.partition = Some(pieces.next().ok_or_else(refuse)?.to_owned());
            if pieces.next() != Some("lambda") {
                return Err(FunctionRefError::OtherResource { given: shown(given) });
            }
        }
        if parts.is_arn || given.split(':').nth(2) == Some("function") {
            parts.region = Some(pieces.next().ok_or_else(refuse)?.to_owned());
        }
        // `name:qualifier` has no `function` in its middle, so twelve digits are an account only
        // where `function` follows.
        let account = pieces.peek().is_some_and(|piece| is_account(piece));
        if parts.region.is_some() || (account && given.split(':').nth(1) == Some("function")) {
            parts.account_id = Some(pieces.next().ok_or_else(refuse)?.to_owned());
            if pieces.next() != Some("function") {
                return Err(if parts.is_arn {
                    FunctionRefError::OtherResource { given: shown(given) }
                } else {
                    refuse()
                });
            }
        } else if given.starts_with("function:") {
            pieces.next();
        }
        parts.name = pieces.next().ok_or_else(refuse)?.to_owned();
        parts.qualifier = pieces.next().map(str::to_owned);
        if pieces.next().is_some() || !is_name(&parts.name) {
            return Err(refuse());
        }
        Ok(parts)
    }
}

fn present(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

/// Fills `in_name` from the field beside it, or refuses when the two differ.
fn agree(
    field: &'static str,
    in_name: &mut Option<String>,
    given: Option<&str>,
) -> Result<(), FunctionRefError> {
    match (&in_name, given) {
        (Some(named), Some(given)) if named != given => Err(FunctionRefError::Contradiction {
            field,
            in_name: shown(named),
            given: shown(given),
        }),
        (None, Some(given)) => {
            *in_name = Some(given.to_owned());
            Ok(())
        }
        _ => Ok(()),
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn is_qualifier(qualifier: &str) -> bool {
    matches!(qualifier, "$LATEST" | "$LATEST.PUBLISHED")
        || ((1..=QUALIFIER_BYTES_MAX).contains(&qualifier.len())
            && qualifier.bytes().all(is_name_byte))
}

fn is_account(account: &str) -> bool {
    account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_region(region: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=REGION_BYTES_MAX).contains(&region.len())
        && region.bytes().all(legal)
        && !region.starts_with('-')
        && !region.ends_with('-')
}

fn is_dots(segment: &str) -> bool {
    matches!(segment, "." | "..")
}

/// Whether `name` has the shape of `pattern`. One position to return to is enough: an earlier `*`
/// never has to take more once a later one was reached.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, n) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn push_encoded(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// A text as errors show it: its beginning.
fn shown(text: &str) -> String {
    text[..text.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned()
}

/// The longest name of a function.
const NAME_BYTES_MAX: usize = 64;
/// The longest qualifier.
const QUALIFIER_BYTES_MAX: usize = 128;
/// The longest form of a name with everything before and after it.
const IDENTIFIER_BYTES_MAX: usize = 256;
const REGION_BYTES_MAX: usize = 32;
const HOST_BYTES_MAX: usize = 255;
/// The most entries of `allowed_functions`.
const ALLOWED_MAX: usize = 1000;
const SHOWN_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(arn: &str, name: &str) -> FunctionSettings {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        FunctionSettings { arn: given(arn), name: given(name), ..FunctionSettings::default() }
    }

    #[test]
    fn every_form_of_a_name_is_read() {
        let full = "arn:aws:lambda:eu-west-1:123456789012:function:";
        for (arn, name, region, sent, query) in [
            ("", "greet", "us-east-1", "greet", None),
            ("", "greet:live", "us-east-1", "greet", Some("Qualifier=live")),
            ("", "greet:$LATEST", "us-east-1", "greet", Some("Qualifier=%24LATEST")),
            ("", "function:greet", "us-east-1", "greet", None),
            ("", "function:greet:7", "us-east-1", "greet", Some("Qualifier=7")),
            ("", "function", "us-east-1", "function", None),
            ("", "function:7", "us-east-1", "7", None),
            ("", "123456789012", "us-east-1", "123456789012", None),
            ("", "123456789012:live", "us-east-1", "123456789012", Some("Qualifier=live")),
            (
                "",
                "123456789012:function:greet",
                "us-east-1",
                "123456789012%3Afunction%3Agreet",
                None,
            ),
            (
                "123456789012:function:greet:live",
                "",
                "us-east-1",
                "123456789012%3Afunction%3Agreet",
                Some("Qualifier=live"),
            ),
            (
                "eu-west-1:123456789012:function:greet",
                "",
                "eu-west-1",
                "123456789012%3Afunction%3Agreet",
                None,
            ),
            (
                &format!("{full}greet"),
                "",
                "eu-west-1",
                "arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Agreet",
                None,
            ),
            (
                &format!("{full}greet:$LATEST"),
                "",
                "eu-west-1",
                "arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Agreet",
                Some("Qualifier=%24LATEST"),
            ),
            (
                "",
                &format!("{full}greet_1-2"),
                "eu-west-1",
                "arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Agreet_1-2",
                None,
            ),
        ] {
            let function = FunctionRef::parse(&settings(arn, name), Some("us-east-1"))
                .unwrap_or_else(|error| panic!("{arn}{name}: {error}"));
            assert_eq!(function.region(), region, "{arn}{name}");
            assert_eq!(function.query(), query, "{arn}{name}");
            assert_eq!(
                function.path(ApiCall::Invoke),
                format!("/2015-03-31/functions/{sent}/invocations"),
            );
            assert_eq!(
                function.path(ApiCall::InvokeWithResponseStream),
                format!("/2021-11-15/functions/{sent}/response-streaming-invocations"),
            );
        }
    }

    #[test]
    fn every_partition_has_its_hosts() {
        for (region, partition, host) in [
            ("us-east-1", "aws", "lambda.us-east-1.amazonaws.com"),
            ("cn-north-1", "aws-cn", "lambda.cn-north-1.amazonaws.com.cn"),
            ("us-gov-west-1", "aws-us-gov", "lambda.us-gov-west-1.amazonaws.com"),
            ("us-iso-east-1", "aws-iso", "lambda.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "aws-iso-b", "lambda.us-isob-east-1.sc2s.sgov.gov"),
            ("eu-isoe-west-1", "aws-iso-e", "lambda.eu-isoe-west-1.cloud.adc-e.uk"),
            ("us-isof-south-1", "aws-iso-f", "lambda.us-isof-south-1.csp.hci.ic.gov"),
            ("eusc-de-east-1", "aws-eusc", "lambda.eusc-de-east-1.amazonaws.eu"),
        ] {
            let arn = format!("arn:{partition}:lambda:{region}:123456789012:function:f");
            let function = FunctionRef::parse(&settings(&arn, ""), None).unwrap();
            assert_eq!(function.endpoint().authority(), host);
            assert_eq!(function.endpoint().port_to_dial(), 443);
        }
        let arn = "arn:aws:lambda:cn-north-1:123456789012:function:f";
        assert_eq!(
            FunctionRef::parse(&settings(arn, ""), None).unwrap_err().to_string(),
            "the ARN is of partition \"aws\", which has no region \"cn-north-1\""
        );
    }

    #[test]
    fn what_names_no_function_is_refused_with_its_reason() {
        let long = "n".repeat(65);
        for (arn, name, reason) in [
            ("", "", "`function` needs `arn` or `name`"),
            ("x", "y", "`function` has both `arn` and `name`: give one"),
            ("greet", "", "`function.arn` is no ARN"),
            ("arn:aws:s3:::bucket", "", "something else than a Lambda function"),
            ("arn:aws:lambda:us-east-1:123456789012:layer:x:1", "", "something else"),
            ("arn:aws:lambda:us-east-1:1234:function:x", "", "`function.account_id` \"1234\""),
            ("arn:aws:lambda:us-east-1:123456789012:function:", "", "is no function"),
            ("arn:aws:lambda:us-east-1:123456789012:function:x:1:2", "", "is no function"),
            ("arn:aws:lambda", "", "is no function"),
            ("arn", "", "is no function"),
            ("", "a b", "is no function"),
            ("", "../x", "is no function"),
            ("", "x/y", "is no function"),
            ("", long.as_str(), "is no function"),
            ("", "x:y:z", "is no function"),
            ("", "x:$OTHER", "no version, no alias"),
            ("", "x:a.b", "no version, no alias"),
            ("", "x:", "no version, no alias"),
            ("arn:aws:lambda:US:123456789012:function:x", "", "is no region"),
        ] {
            let error = FunctionRef::parse(&settings(arn, name), Some("us-east-1")).unwrap_err();
            assert!(error.to_string().contains(reason), "{arn}{name}: {error}");
        }
        let error = FunctionRef::parse(&settings("", "x"), None).unwrap_err();
        assert_eq!(error.to_string(), "`function.region` is missing, and no ARN tells it");
    }

    #[test]
    fn a_field_may_repeat_what_the_arn_says_but_not_contradict_it() {
        let arn = "arn:aws:lambda:eu-west-1:123456789012:function:f:live";
        let same = FunctionSettings {
            qualifier: Some("live".into()),
            region: Some("eu-west-1".into()),
            account_id: Some("123456789012".into()),
            ..settings(arn, "")
        };
        FunctionRef::parse(&same, None).unwrap();
        for (other, says) in [
            (
                FunctionSettings { qualifier: Some("dev".into()), ..same.clone() },
                "says \"live\", and `function.qualifier` says \"dev\"",
            ),
            (
                FunctionSettings { region: Some("eu-west-2".into()), ..same.clone() },
                "says \"eu-west-1\", and `function.region` says \"eu-west-2\"",
            ),
            (
                FunctionSettings { account_id: Some("999999999999".into()), ..same },
                "`function.account_id` says \"999999999999\"",
            ),
        ] {
            let error = FunctionRef::parse(&other, None).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_endpoint_replaces_the_host_and_keeps_its_path() {
        for (given, authority, port, prefix) in [
            ("http://127.0.0.1:3002", "127.0.0.1:3002", 3002, ""),
            (
                "https://vpce-1.lambda.us-east-1.vpce.amazonaws.com/",
                "vpce-1.lambda.us-east-1.vpce.amazonaws.com",
                443,
                "",
            ),
            ("https://Proxy.Test:443/aws/", "proxy.test", 443, "/aws"),
            ("http://[::1]:80", "[::1]", 80, ""),
            ("http://[::1]:8080/a/b", "[::1]:8080", 8080, "/a/b"),
        ] {
            let with = FunctionSettings { endpoint: Some(given.into()), ..settings("", "f") };
            let function = FunctionRef::parse(&with, Some("us-east-1")).unwrap();
            assert_eq!(function.endpoint().authority(), authority);
            assert_eq!(function.endpoint().port_to_dial(), port);
            let path = format!("{prefix}/2015-03-31/functions/f/invocations");
            assert_eq!(function.path(ApiCall::Invoke), path);
        }
        for (given, reason) in [
            ("127.0.0.1:3002", "neither https:// nor http://"),
            ("ftp://x", "neither https:// nor http://"),
            ("http://", "no host"),
            ("http://:80", "no host"),
            ("http://a:b", "port is no number"),
            ("http://a:99999", "port is no number"),
            ("http://user@a", "holds a user"),
            ("http://a/?q", "has a query"),
            ("http://a b", "host is broken"),
            ("http://[::1", "host is broken"),
            ("http://a/../b", "path is not plain"),
            ("http://a/b\r\nc", "path is not plain"),
        ] {
            let with = FunctionSettings { endpoint: Some(given.into()), ..settings("", "f") };
            let error = FunctionRef::parse(&with, Some("us-east-1")).unwrap_err().to_string();
            assert!(error.contains(reason), "{given}: {error}");
        }
    }

    #[test]
    fn an_account_beside_a_name_is_sent_with_it() {
        let with = FunctionSettings {
            account_id: Some("123456789012".into()),
            qualifier: Some("$LATEST".into()),
            ..settings("", "f")
        };
        let function = FunctionRef::parse(&with, Some("us-east-1")).unwrap();
        assert!(function.path(ApiCall::Invoke).contains("/123456789012%3Afunction%3Af/"));
        assert_eq!(function.query(), Some("Qualifier=%24LATEST"));
    }

    #[test]
    fn a_name_from_a_request_must_be_plain_and_allowed() {
        let allowed = AllowedFunctions::compile(&["greet", "app-*-v?", "*_x"]).unwrap();
        for (name, fine) in [
            ("greet", true),
            ("greets", false),
            ("app--v1", true),
            ("app-a-v-b-v2", true),
            ("app-a-v", false),
            ("app-a-v12", false),
            ("_x", true),
            ("a_x_x", true),
            ("a_xx", false),
            ("greet:live", false),
            ("", false),
            ("../greet", false),
        ] {
            assert_eq!(allowed.allows(name), fine, "{name}");
        }
        assert!(AllowedFunctions::compile(&["*"]).unwrap().allows("anything"));
        assert!(!AllowedFunctions::compile(&["*"]).unwrap().allows("a:b"));
        assert_eq!(AllowedFunctions::compile::<&str>(&[]), Err(FunctionRefError::NoAllowed));
        assert!(AllowedFunctions::compile(&["a:b"]).is_err());
        assert!(AllowedFunctions::compile(&vec!["a"; ALLOWED_MAX]).is_ok());
        assert!(AllowedFunctions::compile(&vec!["a"; ALLOWED_MAX + 1]).is_err());

        let arn = "arn:aws:lambda:eu-west-1:123456789012:function:any:live";
        let function = FunctionRef::parse(&settings(arn, ""), None).unwrap();
        let other = function.with_name("other").unwrap();
        assert!(other.path(ApiCall::Invoke).contains("%3Afunction%3Aother/"));
        assert_eq!((other.name(), other.query()), ("other", Some("Qualifier=live")));
        assert!(function.with_name("other:dev").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}", other in "[a-z0-9:$-]{0,60}") {
            let arn = format!("arn:aws:lambda:us-east-1:123456789012:function:{other}");
            for text in [text, other, arn] {
                let with = FunctionSettings {
                    endpoint: Some(text.clone()),
                    ..settings("", "f")
                };
                let _ = FunctionRef::parse(&with, Some("us-east-1"));
                if let Ok(function) = FunctionRef::parse(&settings("", &text), Some("us-east-1")) {
                    prop_assert!(function.path(ApiCall::Invoke).bytes().all(|b| b.is_ascii_graphic()));
                }
            }
        }

        #[test]
        fn patterns_match_as_a_regular_expression_would(
            pattern in "[ab*?]{1,8}", name in "[ab]{1,8}",
        ) {
            fn slow(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern, name) {
                    ([], name) => name.is_empty(),
                    ([b'*', rest @ ..], name) => {
                        (0..=name.len()).any(|taken| slow(rest, &name[taken..]))
                    }
                    ([b'?', p @ ..], [_, n @ ..]) => slow(p, n),
                    ([a, p @ ..], [b, n @ ..]) => a == b && slow(p, n),
                    (_, []) => false,
                }
            }
            let allowed = AllowedFunctions::compile(&[&pattern]).unwrap();
            prop_assert_eq!(allowed.allows(&name), slow(pattern.as_bytes(), name.as_bytes()));
        }
    }
}

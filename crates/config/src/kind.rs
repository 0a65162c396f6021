//! The types a key can have: how a value is checked, named in errors, and read.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::error::{Problems, Warning};
use crate::keys::{Key, Status};
use crate::secret::Secret;
use crate::settings::LogTarget;
use crate::units::{parse_duration, parse_size};
use crate::yaml::{Content, Meaning, Node, Scalar, join};

/// A key's type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Bool,
    /// A boolean that nginx writes as `on` and `off`.
    OnOff,
    Int(i64, i64),
    /// The word `auto`, or a count.
    AutoOr(i64, i64),
    Size,
    Duration,
    Text,
    /// What may stand in a header field: visible ASCII and spaces.
    Field,
    Path,
    /// Text that no error shows. Digits alone are taken as text.
    Secret {
        chars_max: usize,
    },
    /// A secret of 16 or 32 characters: an AES key.
    AesKey,
    OneOf(&'static [&'static str]),
    Ip,
    Net,
    /// A network, or nginx's `unix:`.
    NetOrUnix,
    /// An address of a DNS server, with or without a port.
    Nameserver,
    /// A file, `/dev/stdout`, `/dev/stderr` or `off`.
    Log,
    /// TLS versions between blanks.
    TlsVersions,
    List(&'static Kind),
    /// A list, or a single value in place of a list of one.
    OneOrMore(&'static Kind),
    /// A map of the second kind, or a scalar of the first.
    ScalarOr(&'static Kind, &'static Kind),
    Object(&'static [Key]),
    /// A map whose keys are not ours to know.
    Map,
    Any,
}

/// A value that passed its [`Kind`].
#[derive(Clone, PartialEq)]
pub(crate) enum Parsed {
    Bool(bool),
    Int(i64),
    Auto,
    Size(u64),
    Duration(Duration),
    Text(String),
    Secret(Secret),
    Ip(IpAddr),
    Net(IpNet),
    Nameserver(SocketAddr),
    Log(LogTarget),
    List(Vec<Parsed>),
    Object(Vec<(&'static str, Parsed)>),
    Json(Value),
}

/// Where a check reports to.
pub(crate) struct Report<'a> {
    pub(crate) file: &'a str,
    pub(crate) problems: &'a mut Problems,
    pub(crate) warnings: &'a mut Vec<Warning>,
    /// Paths that APISIX knows and we do not act on.
    pub(crate) not_acted_on: &'a mut Vec<String>,
}

/// Most bytes of a header field's value.
pub(crate) const FIELD_BYTES_MAX: usize = 256;

/// Most entries of a list. Nothing in a configuration comes near.
pub const LIST_ITEMS_MAX: usize = 1_000;

/// The port DNS servers listen on.
const DNS_PORT: u16 = 53;

impl Kind {
    /// Reads a value, or reports why it cannot be one.
    pub(crate) fn parse(&self, node: &Node, path: &str, report: &mut Report<'_>) -> Option<Parsed> {
        match (self, &node.content) {
            (Self::Any, _) => return Some(Parsed::Json(node.to_json())),
            (Self::Map, Content::Map(_)) => return Some(Parsed::Json(node.to_json())),
            (Self::List(item) | Self::OneOrMore(item), Content::List(items)) => {
                if items.len() > LIST_ITEMS_MAX {
                    let reason = format!("more than {LIST_ITEMS_MAX} entries");
                    report.problems.add(Some(node.line), path, reason);
                    return None;
                }
                let parsed: Vec<_> = items
                    .iter()
                    .enumerate()
                    .map(|(index, node)| item.parse(node, &format!("{path}[{index}]"), report))
                    .collect();
                return parsed.into_iter().collect::<Option<_>>().map(Parsed::List);
            }
            (Self::OneOrMore(item), Content::Scalar(_)) => {
                if let Some(parsed) = item.scalar_of(node, path) {
                    return Some(Parsed::List(vec![parsed]));
                }
            }
            (Self::ScalarOr(_, object), Content::Map(_)) => {
                return object.parse(node, path, report);
            }
            (Self::Object(fields), Content::Map(_)) => {
                return object(fields, node, path, report);
            }
            (_, Content::Scalar(_)) => {
                if let Some(parsed) = self.scalar_of(node, path) {
                    return Some(parsed);
                }
            }
            _ => {}
        }
        let found = found(node, self.is_secret());
        let reason = format!("expected {}, got {found}", self.expected());
        report.problems.add(Some(node.line), path, reason);
        None
    }

    fn scalar_of(&self, node: &Node, path: &str) -> Option<Parsed> {
        let Content::Scalar(scalar) = &node.content else { return None };
        let text = scalar.text.as_str();
        let meaning = scalar.meaning();
        match *self {
            Self::Bool => scalar.boolean().map(Parsed::Bool),
            Self::OnOff => match text {
                "on" => Some(Parsed::Bool(true)),
                "off" => Some(Parsed::Bool(false)),
                _ => scalar.boolean().map(Parsed::Bool),
            },
            Self::Int(min, max) => integer(scalar, path, min, max).map(Parsed::Int),
            Self::AutoOr(min, max) => match meaning {
                Meaning::Text("auto") => Some(Parsed::Auto),
                _ => integer(scalar, path, min, max).map(Parsed::Int),
            },
            Self::Size => match meaning {
                Meaning::Int(_) | Meaning::Text(_) => parse_size(text.trim()).map(Parsed::Size),
                _ => None,
            },
            Self::Duration => match meaning {
                Meaning::Float(seconds) => Duration::try_from_secs_f64(seconds)
                    .ok()
                    .filter(|time| *time <= crate::units::DURATION_MAX)
                    .map(Parsed::Duration),
                Meaning::Int(_) | Meaning::Text(_) => parse_duration(text).map(Parsed::Duration),
                _ => None,
            },
            Self::Text => as_text(scalar).map(|text| Parsed::Text(text.into())),
            Self::Field => {
                let text = as_text(scalar)?;
                let usable = text.len() <= FIELD_BYTES_MAX
                    && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
                usable.then(|| Parsed::Text(text.trim().into()))
            }
            Self::Path => {
                let path = as_text(scalar)?;
                let usable = !path.is_empty() && !path.contains('\0');
                usable.then(|| Parsed::Text(path.into()))
            }
            Self::Secret { chars_max } => secret(scalar, |chars| chars <= chars_max),
            Self::AesKey => secret(scalar, |chars| chars == 16 || chars == 32),
            Self::OneOf(words) => {
                let text = as_text(scalar)?;
                words.contains(&text).then(|| Parsed::Text(text.into()))
            }
            Self::Ip => ip(as_text(scalar)?).map(Parsed::Ip),
            Self::Net => net(as_text(scalar)?).map(Parsed::Net),
            Self::NetOrUnix => match as_text(scalar)? {
                "unix:" => Some(Parsed::Text("unix:".into())),
                text => net(text).map(Parsed::Net),
            },
            Self::Nameserver => nameserver(as_text(scalar)?).map(Parsed::Nameserver),
            Self::Log => match as_text(scalar)? {
                "off" => Some(Parsed::Log(LogTarget::Off)),
                "/dev/stdout" => Some(Parsed::Log(LogTarget::Stdout)),
                "/dev/stderr" | "stderr" => Some(Parsed::Log(LogTarget::Stderr)),
                "" => None,
                text if text.contains('\0') || text.starts_with("syslog:") => None,
                text => Some(Parsed::Log(LogTarget::File(PathBuf::from(text)))),
            },
            Self::TlsVersions => {
                let words: Vec<_> = as_text(scalar)?.split_whitespace().collect();
                let known = !words.is_empty() && words.iter().all(|w| TLS_VERSIONS.contains(w));
                let list = || words.iter().map(|word| Parsed::Text((*word).into())).collect();
                known.then(|| Parsed::List(list()))
            }
            Self::ScalarOr(scalar, _) => scalar.scalar_of(node, path),
            Self::List(_) | Self::OneOrMore(_) | Self::Object(_) | Self::Map => None,
            Self::Any => Some(Parsed::Json(node.to_json())),
        }
    }

    /// What an error says was expected.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::OnOff => "\"on\" or \"off\"".into(),
            Self::Int(min, i64::MAX) => format!("a whole number from {min}"),
            Self::Int(min, max) => format!("a whole number from {min} to {max}"),
            Self::AutoOr(min, max) => format!("\"auto\" or a whole number from {min} to {max}"),
            Self::Size => "a size such as 16k, 1m or a number of bytes".into(),
            Self::Duration => {
                "a time such as 500ms, 60s, 1h or a number of seconds (at most 365d)".into()
            }
            Self::Text => "a string".into(),
            Self::Field => format!("at most {FIELD_BYTES_MAX} visible ASCII characters"),
            Self::Path => "the path of a file".into(),
            Self::Secret { chars_max } => format!("a string of at most {chars_max} characters"),
            Self::AesKey => "a string of 16 or 32 characters".into(),
            Self::OneOf(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                match quoted.as_slice() {
                    [one] => one.clone(),
                    [most @ .., last] => format!("{} or {last}", most.join(", ")),
                    [] => "nothing".into(),
                }
            }
            Self::Ip => "an IP address".into(),
            Self::Net => "an IP address or a network such as 10.0.0.0/8".into(),
            Self::NetOrUnix => "an IP address, a network such as 10.0.0.0/8, or \"unix:\"".into(),
            Self::Nameserver => "the IP address of a DNS server, with or without a port".into(),
            Self::Log => "a file, /dev/stdout, /dev/stderr or \"off\"".into(),
            Self::TlsVersions => format!("one or more of {}", TLS_VERSIONS.join(", ")),
            Self::List(item) => format!("a list (each: {})", item.expected()),
            Self::OneOrMore(item) => {
                format!("one value or a list (each: {})", item.expected())
            }
            Self::ScalarOr(scalar, object) => {
                format!("{}, or {}", scalar.expected(), object.expected())
            }
            Self::Object(fields) => {
                let names: Vec<_> = fields.iter().map(|field| field.path).collect();
                format!("a map of {}", names.join(", "))
            }
            Self::Map => "a map".into(),
            Self::Any => "anything".into(),
        }
    }

    /// What the documentation calls the type.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bool => "boolean".into(),
            Self::OnOff => "`on`, `off` or boolean".into(),
            Self::Int(i64::MIN, i64::MAX) => "integer".into(),
            Self::Int(min, i64::MAX) => format!("integer ≥ {min}"),
            Self::Int(min, max) => format!("integer {min}–{max}"),
            Self::AutoOr(min, max) => format!("`auto` or integer {min}–{max}"),
            Self::Size => "size".into(),
            Self::Duration => "duration".into(),
            Self::Text => "string".into(),
            Self::Field => format!("string ≤ {FIELD_BYTES_MAX} visible characters"),
            Self::Path => "path".into(),
            Self::Secret { chars_max } => format!("secret string ≤ {chars_max} characters"),
            Self::AesKey => "secret string of 16 or 32 characters".into(),
            Self::OneOf(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                quoted.join(", ")
            }
            Self::Ip => "IP address".into(),
            Self::Net => "IP address or CIDR".into(),
            Self::NetOrUnix => "IP address, CIDR or `unix:`".into(),
            Self::Nameserver => "IP address with optional port".into(),
            Self::Log => "path or `off`".into(),
            Self::TlsVersions => "TLS versions, blank between".into(),
            Self::List(item) => format!("list of {}", item.describe()),
            Self::OneOrMore(item) => format!("{0}, or list of {0}", item.describe()),
            Self::ScalarOr(scalar, object) => {
                format!("({} or {})", scalar.describe(), object.describe())
            }
            Self::Object(_) | Self::Map => "map".into(),
            Self::Any => "any".into(),
        }
    }

    /// The fields of a list's maps, for the documentation.
    pub(crate) fn fields(&self) -> &'static [Key] {
        match self {
            Self::List(item) | Self::OneOrMore(item) | Self::ScalarOr(_, item) => item.fields(),
            Self::Object(fields) => fields,
            _ => &[],
        }
    }

    fn is_secret(&self) -> bool {
        match self {
            Self::Secret { .. } | Self::AesKey => true,
            Self::List(item) | Self::OneOrMore(item) => item.is_secret(),
            _ => false,
        }
    }
}

fn object(
    fields: &'static [Key],
    node: &Node,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Parsed> {
    let mut values = Vec::new();
    let mut whole = true;
    for entry in node.entries().unwrap_or_default() {
        let path = join(path, &entry.key);
        let place = || format!("{}:{}", report.file, entry.key_line);
        let Some(field) = fields.iter().find(|field| field.path == entry.key) else {
            let names = fields.iter().map(|field| field.path);
            let suggestion = crate::keys::nearest(&entry.key, names).map(str::to_owned);
            let warning = Warning::UnknownKey { place: place(), path, suggestion };
            report.warnings.push(warning);
            continue;
        };
        if entry.value.is_null() {
            continue;
        }
        match field.status {
            Status::Acted => {}
            Status::Known => report.not_acted_on.push(path.clone()),
            Status::Deprecated(instead) => {
                let warning = Warning::Deprecated { place: place(), path: path.clone(), instead };
                report.warnings.push(warning);
            }
        }
        match field.kind.parse(&entry.value, &path, report) {
            Some(value) => values.push((field.path, value)),
            None => whole = false,
        }
    }
    for field in fields.iter().filter(|field| !field.default.is_empty()) {
        if whole && !values.iter().any(|(name, _)| *name == field.path) {
            values.push((field.path, crate::check::default_of(field)));
        }
    }
    whole.then_some(Parsed::Object(values))
}

/// A whole number in range. Under `nginx_config` it may be quoted, as nginx sees no difference.
fn integer(scalar: &Scalar, path: &str, min: i64, max: i64) -> Option<i64> {
    let number = match scalar.meaning() {
        Meaning::Int(number) => number,
        // Invariant: below 2^53 every whole float is exactly one integer.
        Meaning::Float(float) if float.fract() == 0.0 && float.abs() < 9.0e15 => float as i64,
        Meaning::Text(text) if path.starts_with("nginx_config.") => text.trim().parse().ok()?,
        _ => return None,
    };
    (min..=max).contains(&number).then_some(number)
}

/// Text, as long as it is not something else: a number in place of a name is a mistake.
fn as_text(scalar: &Scalar) -> Option<&str> {
    match scalar.meaning() {
        Meaning::Text(text) => Some(text),
        _ if scalar.substituted => Some(&scalar.text),
        _ => None,
    }
}

/// A secret of digits alone is still text: its spelling is what counts.
fn secret(scalar: &Scalar, fits: impl FnOnce(usize) -> bool) -> Option<Parsed> {
    let is_secret =
        !matches!(scalar.meaning(), Meaning::Null | Meaning::Bool(_)) || scalar.substituted;
    let fits = fits(scalar.text.chars().count());
    (is_secret && fits).then(|| Parsed::Secret(Secret::new(scalar.text.clone())))
}

fn ip(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bare {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

fn net(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => ip(text).map(IpNet::from),
    }
}

fn nameserver(text: &str) -> Option<SocketAddr> {
    match ip(text) {
        Some(ip) => Some(SocketAddr::new(ip, DNS_PORT)),
        None => text.parse().ok(),
    }
}

/// What an error says was found.
fn found(node: &Node, secret: bool) -> String {
    match &node.content {
        Content::List(_) => "a list".into(),
        Content::Map(_) => "a map".into(),
        Content::Scalar(scalar) => match scalar.meaning() {
            Meaning::Null => "nothing".into(),
            _ if secret => format!("{} characters", scalar.text.chars().count()),
            Meaning::Text(text) => {
                let mut shown: String = text.chars().take(FOUND_CHARS_MAX).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                format!("{shown:?}")
            }
            _ => scalar.text.chars().take(FOUND_CHARS_MAX).collect(),
        },
    }
}

/// Most characters of a wrong value that an error repeats.
const FOUND_CHARS_MAX: usize = 60;

/// The names nginx knows.
const TLS_VERSIONS: &[&str] = &["SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];

/// Reads a Rust value out of a [`Parsed`] one; `None` only where the table of keys gives the key
/// another kind.
pub(crate) trait FromParsed: Sized {
    fn from_parsed(parsed: &Parsed) -> Option<Self>;
}

macro_rules! from_parsed {
    ($($type:ty: $pattern:pat => $value:expr;)*) => {
        $(impl FromParsed for $type {
            fn from_parsed(parsed: &Parsed) -> Option<Self> {
                match parsed {
                    $pattern => $value,
                    _ => None,
                }
            }
        })*
    };
}

from_parsed! {
    bool: Parsed::Bool(bool) => Some(*bool);
    i64: Parsed::Int(int) => Some(*int);
    u16: Parsed::Int(int) => (*int).try_into().ok();
    u32: Parsed::Int(int) => (*int).try_into().ok();
    usize: Parsed::Int(int) => (*int).try_into().ok();
    u64: Parsed::Size(bytes) => Some(*bytes);
    Duration: Parsed::Duration(time) => Some(*time);
    String: Parsed::Text(text) => Some(text.clone());
    PathBuf: Parsed::Text(text) => Some(PathBuf::from(text));
    Secret: Parsed::Secret(secret) => Some(secret.clone());
    IpAddr: Parsed::Ip(ip) => Some(*ip);
    IpNet: Parsed::Net(net) => Some(*net);
    SocketAddr: Parsed::Nameserver(addr) => Some(*addr);
    LogTarget: Parsed::Log(target) => Some(target.clone());
    Value: Parsed::Json(value) => Some(value.clone());
}

impl<T: FromParsed> FromParsed for Vec<T> {
    fn from_parsed(parsed: &Parsed) -> Option<Self> {
        match parsed {
            Parsed::List(items) => items.iter().map(T::from_parsed).collect(),
            _ => None,
        }
    }
}

impl Parsed {
    /// A field of a map.
    pub(crate) fn field<T: FromParsed>(&self, name: &str) -> Option<T> {
        match self {
            Self::Object(fields) => {
                let (_, value) = fields.iter().find(|(field, _)| *field == name)?;
                T::from_parsed(value)
            }
            _ => None,
        }
    }
}

//! Answers of functions: the JSON envelope a function returns, read as an HTTP response.
//!
//! [`unwrap`] reads a whole payload, [`PreludeDecoder`] the prelude that a streaming function sends
//! before its body. Both give a [`ReplyHead`], in which every name and value is fit to be sent.
//!
//! | format | `statusCode` | without it |
//! | --- | --- | --- |
//! | `raw` | not looked for | the payload is the body |
//! | `apigw` 1.0 | required | malformed |
//! | `apigw` 2.0 | read | 200, `application/json`, the payload is the body |
//! | `alb` | required, with `statusDescription` | malformed |
//! | `envoy` | `status_code`, and names of this style | 200 |
//! | `auto` | read if it is an integer | 200, `application/json`, the payload is the body |
//!
//! In every envelope: `headers` and `multiValueHeaders` are merged, the latter winning where both
//! have a name; `cookies` become one `Set-Cookie` each; null is the same as absent; numbers and
//! booleans are fine as header values; `isBase64Encoded` is obeyed. Headers that belong to one
//! connection, and `Content-Length`, which is computed anew, are left out.
//!
//! Unlike there: API Gateway reads `cookies` in 2.0 and `multiValueHeaders` in 1.0 only, an ALB the map
//! that its attribute names only. Here whatever the function says is heard in each of them, since
//! what is ignored is a cookie lost.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, SET_COOKIE};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Reads a function's payload.
///
/// ```
/// use sluicegate_aws::response::{ResponseFormat, unwrap};
///
/// let payload = br#"{"statusCode":201,"cookies":["a=1","b=2"],"body":"{\"id\":7}"}"#;
/// let reply = unwrap(ResponseFormat::Auto, payload[..].into())?;
/// assert_eq!(reply.head.status, 201);
/// assert_eq!(reply.head.headers.len(), 3); // two cookies, and the default content type
/// assert_eq!(&reply.body[..], br#"{"id":7}"#);
/// # Ok::<(), sluicegate_aws::response::UnwrapError>(())
/// ```
pub fn unwrap(format: ResponseFormat, payload: Bytes) -> Result<Reply, UnwrapError> {
    let envelope = match format {
        ResponseFormat::Raw => {
            return Ok(Reply { head: ReplyHead::default(), body: payload });
        }
        ResponseFormat::Auto | ResponseFormat::ApigwV2 => match Envelope::read(&payload, false) {
            Ok(envelope) if envelope.is_reply(format) => envelope,
            Err(error @ UnwrapError::NotJson { .. }) if format == ResponseFormat::ApigwV2 => {
                return Err(error);
            }
            _ => return Ok(Reply::inferred(payload)),
        },
        ResponseFormat::ApigwV1 | ResponseFormat::Alb => {
            let envelope = Envelope::read(&payload, false)?;
            if envelope.status_code.is_none() {
                return Err(UnwrapError::NoStatus);
            }
            envelope
        }
        ResponseFormat::Envoy => Envelope::read(&payload, true)?,
    };
    let mut head = envelope.head()?;
    let body = envelope.body(&payload)?;
    // An ALB adds no content type of its own.
    let has_type = head.headers.iter().any(|(name, _)| *name == CONTENT_TYPE);
    if format != ResponseFormat::Alb && !has_type && !body.is_empty() {
        head.headers.push((CONTENT_TYPE, JSON));
    }
    Ok(Reply { head, body })
}

/// How payloads are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResponseFormat {
    /// Not at all: the payload is the body.
    Raw,
    /// API Gateway's payload 1.0.
    ApigwV1,
    /// API Gateway's payload 2.0, also of function URLs.
    ApigwV2,
    /// An Application Load Balancer's.
    Alb,
    /// Envoy's.
    Envoy,
    /// As 2.0 if the payload is an object with an integer `statusCode`.
    #[default]
    Auto,
}

/// A function's answer as an HTTP response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status and headers.
    pub head: ReplyHead,
    /// The body; a slice of the payload where that is possible.
    pub body: Bytes,
}

impl Reply {
    fn inferred(payload: Bytes) -> Self {
        let headers = if payload.is_empty() { Vec::new() } else { vec![(CONTENT_TYPE, JSON)] };
        Self { head: ReplyHead { headers, ..ReplyHead::default() }, body: payload }
    }
}

/// Status and headers of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyHead {
    /// From 200 to 599.
    pub status: u16,
    /// The reason phrase of `statusDescription`, where a function gave one.
    pub reason: Option<String>,
    /// Headers in the order of the envelope; cookies last.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Default for ReplyHead {
    fn default() -> Self {
        Self { status: 200, reason: None, headers: Vec::new() }
    }
}

/// Reads the prelude of a streamed answer: JSON, eight NUL bytes, then the body.
///
/// Functions send it with the content type [`HTTP_PRELUDE_CONTENT_TYPE`].
#[derive(Debug, Default)]
pub struct PreludeDecoder {
    buffer: BytesMut,
    /// Everything before this holds no separator.
    searched: usize,
}

impl PreludeDecoder {
    /// Takes the next bytes. Once the prelude is whole, gives the head and the bytes of the body
    /// that came with it; the decoder is used up then, and what follows is body.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<(ReplyHead, Bytes)>, UnwrapError> {
        self.buffer.extend_from_slice(bytes);
        // JSON holds no NUL, so the first eight are the separator.
        let from = self.searched.saturating_sub(SEPARATOR.len() - 1);
        let found = memchr::memmem::find(&self.buffer[from..], &SEPARATOR).map(|at| from + at);
        let Some(at) = found.filter(|at| *at <= PRELUDE_BYTES_MAX) else {
            self.searched = self.buffer.len();
            if self.buffer.len() > PRELUDE_BYTES_MAX + SEPARATOR.len() {
                return Err(UnwrapError::PreludeTooLarge);
            }
            return Ok(None);
        };
        let mut rest = std::mem::take(&mut self.buffer);
        self.searched = 0;
        let prelude = rest.split_to(at).freeze();
        let body = rest.split_off(SEPARATOR.len()).freeze();
        // A function that names nothing sends an empty prelude or an empty object.
        if prelude.trim_ascii().is_empty() {
            return Ok(Some((ReplyHead::default(), body)));
        }
        Ok(Some((Envelope::read(&prelude, false)?.head()?, body)))
    }

    /// To be called when the stream ends before the prelude did.
    pub fn finish(&self) -> UnwrapError {
        UnwrapError::PreludeCut { bytes: self.buffer.len() }
    }
}

/// Why an answer cannot be sent to a client. The client gets 502; the text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// The payload is no JSON.
    #[error("the function's answer is no JSON: {reason}")]
    NotJson {
        /// What the parser says.
        reason: String,
    },
    /// The payload is JSON, but no object.
    #[error("the function's answer is no JSON object")]
    NotAnObject,
    /// A format that requires one got no status.
    #[error("the function's answer has no `statusCode`")]
    NoStatus,
    /// The status is no number from 200 to 599.
    #[error("`statusCode` is {given}, and must be a number from 200 to 599")]
    Status {
        /// What the function said.
        given: String,
    },
    /// A field is of another type.
    #[error("`{field}` is not {expected}")]
    Type {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The name of a header cannot be sent.
    #[error("{name:?} is no name of a header")]
    HeaderName {
        /// The name.
        name: String,
    },
    /// The value of a header cannot be sent, or is neither text nor number nor boolean.
    #[error("the value of header {name:?} cannot be sent")]
    HeaderValue {
        /// The header's name.
        name: String,
    },
    /// Too many headers.
    #[error("the answer has more than {HEADERS_MAX} headers")]
    TooManyHeaders,
    /// Too long headers.
    #[error("the answer's headers have more than {HEADER_BYTES_MAX} bytes")]
    HeadersTooLarge,
    /// The body says it is base64, and is not.
    #[error("`isBase64Encoded` is true, and `body` is no base64")]
    Base64,
    /// The prelude does not end.
    #[error("the stream's prelude is longer than {PRELUDE_BYTES_MAX} bytes")]
    PreludeTooLarge,
    /// The stream ended inside its prelude.
    #[error("the stream ended inside its prelude, after {bytes} bytes")]
    PreludeCut {
        /// How much there is of it.
        bytes: usize,
    },
}

/// The fields of an answer that are there and not null; each is looked at only when it is needed.
#[derive(Default)]
struct Envelope<'a> {
    status_code: Option<&'a RawValue>,
    status_description: Option<&'a RawValue>,
    headers: Option<&'a RawValue>,
    multi_value_headers: Option<&'a RawValue>,
    cookies: Option<&'a RawValue>,
    body: Option<&'a RawValue>,
    is_base64_encoded: Option<&'a RawValue>,
}

/// Reads the members of an envelope. A name that comes twice counts as it does in the languages
/// functions are written in: the last one.
struct EnvelopeVisitor {
    /// Names in Envoy's style.
    envoy: bool,
}

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
        let mut envelope = Envelope::default();
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            let place = match (&*name, self.envoy) {
                ("statusCode", false) | ("status_code", true) => &mut envelope.status_code,
                ("statusDescription", false) => &mut envelope.status_description,
                ("headers", _) => &mut envelope.headers,
                ("multiValueHeaders", false) => &mut envelope.multi_value_headers,
                ("cookies", _) => &mut envelope.cookies,
                ("body", _) => &mut envelope.body,
                ("isBase64Encoded", false) | ("is_base64_encoded", true) => {
                    &mut envelope.is_base64_encoded
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = Some(map.next_value::<&RawValue>()?).filter(|value| value.get() != "null");
        }
        Ok(envelope)
    }
}

impl<'a> Envelope<'a> {
    fn read(payload: &'a [u8], envoy: bool) -> Result<Self, UnwrapError> {
        let not_json =
            |error: serde_json::Error| UnwrapError::NotJson { reason: error.to_string() };
        let text = std::str::from_utf8(payload)
            .map_err(|_| UnwrapError::NotJson { reason: "it is no UTF-8".to_owned() })?;
        if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => UnwrapError::NotAnObject,
                Err(error) => not_json(error),
            });
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let envelope = json.deserialize_map(EnvelopeVisitor { envoy }).map_err(not_json)?;
        json.end().map_err(not_json)?;
        Ok(envelope)
    }

    /// Whether this is an answer with a status, not just some JSON.
    fn is_reply(&self, format: ResponseFormat) -> bool {
        match (self.status_code, format) {
            (Some(status), ResponseFormat::Auto) => {
                let digits = status.get();
                let digits = digits.strip_prefix('-').unwrap_or(digits);
                digits.bytes().all(|byte| byte.is_ascii_digit())
            }
            (status, _) => status.is_some(),
        }
    }

    fn head(&self) -> Result<ReplyHead, UnwrapError> {
        let status = match self.status_code {
            Some(status) => read_status(status.get())?,
            None => 200,
        };
        let reason =
            match read::<Cow<'_, str>>(self.status_description, "statusDescription", "a text")? {
                Some(description) => reason_phrase(&description),
                None => None,
            };
        let mut headers = HeaderList::default();
        let single = read::<Value>(self.headers, "headers", "an object")?;
        let multi = read::<Value>(self.multi_value_headers, "multiValueHeaders", "an object")?;
        let members = |value: Option<Value>, field| match value {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members)),
            Some(_) => Err(UnwrapError::Type { field, expected: "an object" }),
        };
        let single = members(single, "headers")?;
        let multi = members(multi, "multiValueHeaders")?;
        // The value says whether `multiValueHeaders` has anything for the name.
        let won: HashMap<String, bool> = multi
            .iter()
            .flatten()
            .map(|(name, values)| (name.to_ascii_lowercase(), !values.is_null()))
            .collect();
        for (name, value) in single.iter().flatten() {
            if won.is_empty() || won.get(&name.to_ascii_lowercase()) != Some(&true) {
                headers.push_any(name, value)?;
            }
        }
        for (name, values) in multi.iter().flatten() {
            match values {
                Value::Null => {}
                Value::Array(values) => {
                    for value in values {
                        headers.push_any(name, value)?;
                    }
                }
                one => headers.push_any(name, one)?,
            }
        }
        let cookies = read::<Vec<Cow<'_, str>>>(self.cookies, "cookies", "a list of texts")?;
        for cookie in cookies.unwrap_or_default() {
            headers.push(SET_COOKIE, &cookie)?;
        }
        Ok(ReplyHead { status, reason, headers: headers.list })
    }

    fn body(&self, payload: &Bytes) -> Result<Bytes, UnwrapError> {
        let base64 = read::<bool>(self.is_base64_encoded, "isBase64Encoded", "true or false")?;
        let Some(Text(body)) = read::<Text<'_>>(self.body, "body", "a text")? else {
            return Ok(Bytes::new());
        };
        if base64 == Some(true) {
            // Encoders for MIME break lines; AWS takes that.
            let packed: Cow<'_, str> = if body.bytes().any(|byte| byte.is_ascii_whitespace()) {
                body.split_ascii_whitespace().collect::<String>().into()
            } else {
                body
            };
            return STANDARD
                .decode(packed.as_bytes())
                .map(Bytes::from)
                .map_err(|_| UnwrapError::Base64);
        }
        Ok(match body {
            Cow::Borrowed(text) => payload.slice_ref(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        })
    }
}

/// A text, borrowed where it has no escapes; `Cow` alone would copy it always.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Default)]
struct HeaderList {
    list: Vec<(HeaderName, HeaderValue)>,
    bytes: usize,
}

impl HeaderList {
    fn push_any(&mut self, name: &str, value: &Value) -> Result<(), UnwrapError> {
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(UnwrapError::HeaderName { name: shown(name) });
        };
        match value {
            Value::Null => Ok(()),
            Value::String(text) => self.push(parsed, text),
            Value::Number(_) | Value::Bool(_) => self.push(parsed, &value.to_string()),
            _ => Err(UnwrapError::HeaderValue { name: shown(name) }),
        }
    }

    fn push(&mut self, name: HeaderName, value: &str) -> Result<(), UnwrapError> {
        if OF_ONE_CONNECTION.contains(&name.as_str()) {
            return Ok(());
        }
        let trimmed = value.trim_matches([' ', '\t']);
        let Ok(value) = HeaderValue::from_bytes(trimmed.as_bytes()) else {
            return Err(UnwrapError::HeaderValue { name: name.as_str().to_owned() });
        };
        self.bytes += name.as_str().len() + value.len();
        if self.bytes > HEADER_BYTES_MAX {
            return Err(UnwrapError::HeadersTooLarge);
        }
        if self.list.len() == HEADERS_MAX {
            return Err(UnwrapError::TooManyHeaders);
        }
        self.list.push((name, value));
        Ok(())
    }
}

fn read<'a, T: Deserialize<'a>>(
    value: Option<&'a RawValue>,
    field: &'static str,
    expected: &'static str,
) -> Result<Option<T>, UnwrapError> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|_| UnwrapError::Type { field, expected })
}

/// A number, or a number in a text, as API Gateway takes both; `200.0` is a number, too.
fn read_status(json: &str) -> Result<u16, UnwrapError> {
    let digits = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(json);
    let digits = match digits.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => whole,
        _ => digits,
    };
    digits
        .parse()
        .ok()
        .filter(|status| digits.len() == 3 && (200..=599).contains(status))
        .ok_or_else(|| UnwrapError::Status { given: shown(json) })
}

/// `200 OK` without its number, if it can be sent.
fn reason_phrase(description: &str) -> Option<String> {
    let reason = description.trim_start_matches(|c: char| c.is_ascii_digit()).trim_matches(' ');
    let fine = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    (!reason.is_empty() && reason.len() <= REASON_BYTES_MAX && reason.bytes().all(fine))
        .then(|| reason.to_owned())
}

fn shown(text: &str) -> String {
    text[..text.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned()
}

/// The content type that announces a prelude.
pub const HTTP_PRELUDE_CONTENT_TYPE: &str = "application/vnd.awslambda.http-integration-response";
/// The longest prelude of a streamed answer, without its separator.
pub const PRELUDE_BYTES_MAX: usize = 512 * 1024;
/// The most headers an answer may have.
pub const HEADERS_MAX: usize = 500;
/// The most bytes of names and values an answer may have.
pub const HEADER_BYTES_MAX: usize = 256 * 1024;
const REASON_BYTES_MAX: usize = 200;
const SHOWN_BYTES_MAX: usize = 100;
const SEPARATOR: [u8; 8] = [0; 8];
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OF_ONE_CONNECTION: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use ResponseFormat::{Alb, ApigwV1, ApigwV2, Auto, Envoy, Raw};

    /// `status reason; name: value; … | body`
    fn told(reply: &Reply) -> String {
        let Reply { head, body } = reply;
        let mut text = head.status.to_string();
        if let Some(reason) = &head.reason {
            text += &format!(" {reason}");
        }
        for (name, value) in &head.headers {
            text += &format!("; {name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
        format!("{text} | {}", String::from_utf8_lossy(body))
    }

    #[track_caller]
    fn check(formats: &[ResponseFormat], payload: &str, expected: &str) {
        for format in formats {
            let got = match unwrap(*format, Bytes::copy_from_slice(payload.as_bytes())) {
                Ok(reply) => told(&reply),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expected, "{format:?} of {payload}");
        }
    }

    #[test]
    fn an_envelope_becomes_status_headers_and_body() {
        let all = &[ApigwV1, ApigwV2, Auto];
        check(all, r#"{"statusCode":204}"#, "204 | ");
        check(all, r#"{"statusCode":200,"body":"x"}"#, "200; content-type: application/json | x");
        check(all, r#"{"statusCode":200,"body":""}"#, "200 | ");
        check(
            all,
            r#"{"statusCode":404,"headers":{"Content-Type":"text/plain","X-N":7,"x-b":true,"x-null":null},"body":"\u00fc\n"}"#,
            "404; content-type: text/plain; x-n: 7; x-b: true | ü\n",
        );
        check(
            all,
            r#"{"statusCode":200,"isBase64Encoded":true,"headers":{"content-type":"a/b"},"body":"aGk="}"#,
            "200; content-type: a/b | hi",
        );
        check(
            all,
            r#"{"statusCode":200,"isBase64Encoded":true,"headers":{"content-type":"a/b"},"body":"aG\r\nk="}"#,
            "200; content-type: a/b | hi",
        );
        check(
            all,
            r#"{"statusCode":200,"headers":{"X-A":"one","x-b":"b","Set-Cookie":"h=1"},"multiValueHeaders":{"x-a":["1","2"],"x-b":null},"cookies":["c=1; Path=/","d=2"]}"#,
            "200; x-b: b; set-cookie: h=1; x-a: 1; x-a: 2; set-cookie: c=1; Path=/; set-cookie: d=2 | ",
        );
        check(
            all,
            r#"{"statusCode":200,"headers":null,"multiValueHeaders":null,"cookies":null,"body":null,"isBase64Encoded":null}"#,
            "200 | ",
        );
        check(
            all,
            r#"{"statusCode":200,"headers":{"Content-Length":"9","Transfer-Encoding":"chunked","Connection":"close"}}"#,
            "200 | ",
        );
    }

    #[test]
    fn without_a_status_each_format_has_its_own_rule() {
        let object = r#"{"message":"hi"}"#;
        check(
            &[ApigwV2, Auto],
            object,
            "200; content-type: application/json | {\"message\":\"hi\"}",
        );
        check(&[ApigwV1, Alb], object, "the function's answer has no `statusCode`");
        check(&[Envoy], object, "200 | ");
        check(&[Raw], object, "200 | {\"message\":\"hi\"}");
        check(&[ApigwV2, Auto], "\"Hello\"", "200; content-type: application/json | \"Hello\"");
        check(&[ApigwV2, Auto], "[1]", "200; content-type: application/json | [1]");
        check(&[ApigwV2, Auto], "null", "200; content-type: application/json | null");
        check(&[ApigwV1, Alb, Envoy], "[200]", "the function's answer is no JSON object");
        check(&[Auto], "not json", "200; content-type: application/json | not json");
        check(&[Auto, Raw], "", "200 | ");
        let text = r#"{"statusCode":"200","body":"x"}"#;
        check(&[ApigwV1, ApigwV2], text, "200; content-type: application/json | x");
        // `auto` wants an integer: anything else is some function's own JSON.
        check(
            &[Auto],
            text,
            "200; content-type: application/json | {\"statusCode\":\"200\",\"body\":\"x\"}",
        );
        check(&[ApigwV1], r#"{"statusCode":null}"#, "the function's answer has no `statusCode`");
    }

    #[test]
    fn the_last_of_two_members_counts() {
        check(
            &[Auto, ApigwV1],
            r#"{"statusCode":500,"body":"a","\u0062ody":"b","statusCode":201,"headers":{},"headers":null}"#,
            "201; content-type: application/json | b",
        );
    }

    #[test]
    fn alb_and_envoy_have_fields_of_their_own() {
        check(
            &[Alb],
            r#"{"statusCode":200,"statusDescription":"200 Fine","body":"x","isBase64Encoded":false}"#,
            "200 Fine | x",
        );
        check(&[Alb], r#"{"statusCode":200,"statusDescription":"200 \r\nX: y"}"#, "200 | ");
        check(
            &[Envoy],
            r#"{"status_code":201,"headers":{"x":"y"},"cookies":["a=1"],"body":"aGk=","is_base64_encoded":true}"#,
            "201; x: y; set-cookie: a=1; content-type: application/json | hi",
        );
    }

    #[test]
    fn a_malformed_answer_is_refused_with_its_reason() {
        let all = &[ApigwV1, ApigwV2, Alb];
        for (payload, reason) in [
            (r#"{"statusCode":99}"#, "`statusCode` is 99, and must be a number from 200 to 599"),
            (r#"{"statusCode":101}"#, "`statusCode` is 101, and must be a number from 200 to 599"),
            (r#"{"statusCode":600}"#, "`statusCode` is 600, and must be a number from 200 to 599"),
            (
                r#"{"statusCode":-200}"#,
                "`statusCode` is -200, and must be a number from 200 to 599",
            ),
            (r#"{"statusCode":200,"body":{}}"#, "`body` is not a text"),
            (r#"{"statusCode":200,"body":7}"#, "`body` is not a text"),
            (r#"{"statusCode":200,"headers":[]}"#, "`headers` is not an object"),
            (
                r#"{"statusCode":200,"multiValueHeaders":"x"}"#,
                "`multiValueHeaders` is not an object",
            ),
            (r#"{"statusCode":200,"cookies":"a=1"}"#, "`cookies` is not a list of texts"),
            (
                r#"{"statusCode":200,"isBase64Encoded":"yes"}"#,
                "`isBase64Encoded` is not true or false",
            ),
            (
                r#"{"statusCode":200,"isBase64Encoded":true,"body":"%"}"#,
                "`isBase64Encoded` is true, and `body` is no base64",
            ),
            (r#"{"statusCode":200,"headers":{"a b":"x"}}"#, "\"a b\" is no name of a header"),
            (r#"{"statusCode":200,"headers":{"":"x"}}"#, "\"\" is no name of a header"),
            (
                r#"{"statusCode":200,"headers":{"x":"a\r\ny: b"}}"#,
                "the value of header \"x\" cannot be sent",
            ),
            (
                r#"{"statusCode":200,"headers":{"x":{}}}"#,
                "the value of header \"x\" cannot be sent",
            ),
            (
                r#"{"statusCode":200,"cookies":["a\u0000"]}"#,
                "the value of header \"set-cookie\" cannot be sent",
            ),
        ] {
            check(all, payload, reason);
            check(&[Auto], payload, reason);
        }
        for status in ["\"2e2\"", "{}", "true", "200.5", "\"\"", "2e2"] {
            let payload = format!("{{\"statusCode\":{status}}}");
            check(
                all,
                &payload,
                &format!("`statusCode` is {status}, and must be a number from 200 to 599"),
            );
        }
        check(&[ApigwV1], r#"{"statusCode":200.0}"#, "200 | ");
        let cut = unwrap(ApigwV1, Bytes::from_static(b"{\"statusCode\":")).unwrap_err();
        assert!(matches!(cut, UnwrapError::NotJson { .. }));
        assert!(matches!(
            unwrap(ApigwV2, Bytes::from_static(b"\xff")),
            Err(UnwrapError::NotJson { .. })
        ));
    }

    #[test]
    fn the_limits_on_headers_hold_at_their_edge_and_not_past_it() {
        for (count, bytes, fine) in [
            (HEADERS_MAX, 1, true),
            (HEADERS_MAX + 1, 1, false),
            (1, HEADER_BYTES_MAX - 1, true),
            (1, HEADER_BYTES_MAX, false),
        ] {
            let values = vec!["v".repeat(bytes); count];
            let payload = json!({"statusCode": 200, "multiValueHeaders": {"a": values}});
            let reply = unwrap(Auto, Bytes::from(payload.to_string()));
            assert_eq!(reply.is_ok(), fine, "{count} headers of {bytes} bytes");
        }
    }

    #[test]
    fn a_body_without_escapes_is_not_copied() {
        let payload = Bytes::from_static(br#"{"statusCode":200,"body":"plain text"}"#);
        let reply = unwrap(Auto, payload.clone()).unwrap();
        assert!(payload.as_ptr_range().contains(&reply.body.as_ptr()));
    }

    #[test]
    fn a_prelude_is_read_however_it_is_cut() {
        let mut stream =
            br#"{"statusCode":201,"headers":{"content-type":"text/html"},"cookies":["a=1"]}"#
                .to_vec();
        stream.extend([0; 8]);
        stream.extend(b"<p>\0\0body");
        for size in 1..stream.len() {
            let mut decoder = PreludeDecoder::default();
            let mut pieces = stream.chunks(size);
            let (head, start) = loop {
                let piece = pieces.next().expect("the prelude ends inside the stream");
                if let Some(done) = decoder.push(piece).unwrap() {
                    break done;
                }
            };
            let body = [&start[..], &pieces.flatten().copied().collect::<Vec<_>>()].concat();
            assert_eq!(body, b"<p>\0\0body", "pieces of {size}");
            assert_eq!(
                told(&Reply { head, body: Bytes::new() }),
                "201; content-type: text/html; set-cookie: a=1 | "
            );
        }
        let mut decoder = PreludeDecoder::default();
        assert_eq!(
            decoder.push(&[b"{}".as_slice(), &[0; 8]].concat()).unwrap(),
            Some((ReplyHead::default(), Bytes::new())),
            "an empty body is fine"
        );
    }

    #[test]
    fn a_prelude_that_does_not_end_is_refused_at_its_limit() {
        let mut whole = json!({"pad": ""}).to_string().into_bytes();
        whole.resize(PRELUDE_BYTES_MAX, b' ');
        let mut decoder = PreludeDecoder::default();
        assert_eq!(decoder.push(&whole), Ok(None));
        assert!(decoder.push(&[0; 8]).unwrap().is_some());

        whole.push(b' ');
        let mut decoder = PreludeDecoder::default();
        assert_eq!(decoder.push(&whole), Ok(None));
        assert_eq!(decoder.finish(), UnwrapError::PreludeCut { bytes: whole.len() });
        assert_eq!(decoder.push(&[0; 8]), Err(UnwrapError::PreludeTooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_unwrapped_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..80)) {
            for format in [Raw, ApigwV1, ApigwV2, Alb, Envoy, Auto] {
                let _ = unwrap(format, Bytes::from(payload.clone()));
            }
            let mut decoder = PreludeDecoder::default();
            let _ = decoder.push(&payload);
        }

        #[test]
        fn what_a_function_says_arrives(
            status in 200..600u16,
            headers in proptest::collection::hash_map("x-[a-z]{1,8}", "[ -~é]{0,20}", 0..5),
            body in proptest::collection::vec(any::<u8>(), 0..100),
            text in ".{0,60}",
        ) {
            let payload = json!({
                "statusCode": status,
                "headers": headers,
                "isBase64Encoded": true,
                "body": STANDARD.encode(&body),
            });
            for format in [ApigwV1, ApigwV2, Alb, Auto] {
                let reply = unwrap(format, Bytes::from(payload.to_string())).unwrap();
                prop_assert_eq!(reply.head.status, status);
                prop_assert_eq!(&reply.body[..], &body[..]);
                for (name, value) in &headers {
                    let wanted = HeaderName::from_bytes(name.as_bytes()).unwrap();
                    let got = reply.head.headers.iter().find(|(name, _)| *name == wanted).unwrap();
                    prop_assert_eq!(got.1.as_bytes(), value.trim_matches(' ').as_bytes());
                }
            }
            let payload = json!({"statusCode": status, "body": text});
            let reply = unwrap(Auto, Bytes::from(payload.to_string())).unwrap();
            prop_assert_eq!(&reply.body[..], text.as_bytes());
        }
    }
}

//! Is this request signed? SigV4 from the receiver's side.
//!
//! It reads the bytes that arrived by itself and shares no code with the signer it judges: a rule
//! misread in one place is not misread in both. It is written to be checked, not to be fast.

use ring::{digest, hmac};
use sluicegate_aws::Secret;

use crate::function::decode;

/// Whether `received` is signed as `accepted` demands, at the time `now`.
pub(crate) fn verify(
    received: &Received<'_>,
    accepted: &Accepted<'_>,
    now: u64,
) -> Result<(), Refusal> {
    let mut given = received.all("authorization");
    let Some(authorization) = given.next() else {
        return Err(refuse("MissingAuthenticationTokenException", "Missing Authentication Token"));
    };
    if given.next().is_some() {
        return Err(invalid("Only one authentication mechanism may be used in a request."));
    }
    let claim = Claim::parse(&text(authorization))?;
    if claim.terminator != "aws4_request" {
        return Err(invalid(format!(
            "Credential should be scoped with a valid terminator: 'aws4_request', not '{}'.",
            claim.terminator
        )));
    }
    if claim.region != accepted.region {
        return Err(invalid(format!(
            "Credential should be scoped to a valid region, not '{}'. ",
            claim.region
        )));
    }
    if claim.service != accepted.service {
        return Err(invalid(format!(
            "Credential should be scoped to correct service: '{}'. ",
            accepted.service
        )));
    }
    let stamp = received.stamp()?;
    check_time(&stamp, &claim, now)?;
    let mut tokens = received.all("x-amz-security-token");
    let token = accepted.session_token.map(|token| token.expose().as_bytes());
    if claim.access_key != accepted.access_key || tokens.next() != token || tokens.next().is_some()
    {
        return Err(refuse(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ));
    }
    let signed: Vec<&str> = claim.signed_headers.split(';').collect();
    if !signed.contains(&"host") {
        return Err(invalid(
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
        ));
    }
    let amz = |name: &str| name.starts_with("x-amz-");
    if let Some((name, _)) =
        received.headers.iter().find(|(name, _)| amz(name) && !signed.contains(name))
    {
        return Err(invalid(format!(
            "There were headers present in the request which were not signed: {name}"
        )));
    }
    let payload_hash = hex(digest::digest(&digest::SHA256, received.body).as_ref());
    if received.all("x-amz-content-sha256").any(|stated| stated != payload_hash.as_bytes()) {
        return Err(invalid(
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        ));
    }

    let canonical_request = received.canonical_request(&signed, &payload_hash);
    let scope = format!("{}/{}/{}/aws4_request", claim.date, claim.region, claim.service);
    let hash = hex(digest::digest(&digest::SHA256, canonical_request.as_bytes()).as_ref());
    let string_to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}");
    let mut key = format!("AWS4{}", accepted.secret_key.expose()).into_bytes();
    for part in [&claim.date, &claim.region, &claim.service, "aws4_request"] {
        let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes());
        key = signed.as_ref().to_vec();
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = unhex(&claim.signature).unwrap_or_default();
    let missing = signed.iter().any(|name| received.all(name).next().is_none());
    // `hmac::verify` compares in constant time.
    if missing || hmac::verify(&key, string_to_sign.as_bytes(), &signature).is_err() {
        return Err(invalid(format!(
            "{MISMATCH}\n\nThe Canonical String for this request should have been\n\
             '{canonical_request}'\n\nThe String-to-Sign should have been\n'{string_to_sign}'\n"
        )));
    }
    Ok(())
}

/// A request as it arrived; header names in lower case.
pub(crate) struct Received<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a [u8])],
    pub(crate) body: &'a [u8],
}

impl<'a> Received<'a> {
    fn all(&self, wanted: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(name, _)| *name == wanted).map(|(_, value)| *value)
    }

    fn stamp(&self) -> Result<String, Refusal> {
        let mut given = self.all("x-amz-date");
        match (given.next(), given.next()) {
            (Some(stamp), None) => Ok(text(stamp)),
            // AWS reads `Date` instead; no signer of today relies on it.
            (None, _) => {
                Err(incomplete("Authorization header requires existence of a 'X-Amz-Date' header."))
            }
            _ => Err(incomplete("'X-Amz-Date' is repeated.")),
        }
    }

    fn canonical_request(&self, signed: &[&str], payload_hash: &str) -> String {
        let mut names = signed.to_vec();
        names.sort_unstable();
        names.dedup();
        let headers: String = names
            .iter()
            .map(|name| {
                let values: Vec<_> = self
                    .all(name)
                    .map(|value| text(value).split_whitespace().collect::<Vec<_>>().join(" "))
                    .collect();
                format!("{name}:{}\n", values.join(","))
            })
            .collect();
        let method = self.method.to_uppercase();
        let (path, query) = (canonical_path(self.path), canonical_query(self.query));
        let names = names.join(";");
        format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{payload_hash}")
    }
}

/// What a signature must be made with.
pub(crate) struct Accepted<'a> {
    pub(crate) access_key: &'a str,
    pub(crate) secret_key: &'a Secret,
    /// The token that must come along; without one, none may.
    pub(crate) session_token: Option<&'a Secret>,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

/// Why a request is refused: always with 403.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// AWS's name for it, sent as `x-amzn-errortype`.
    pub(crate) error_type: &'static str,
    /// AWS's text.
    pub(crate) message: String,
}

/// What the authorization header says.
#[derive(Default)]
struct Claim {
    access_key: String,
    date: String,
    region: String,
    service: String,
    terminator: String,
    signed_headers: String,
    signature: String,
}

impl Claim {
    fn parse(authorization: &str) -> Result<Self, Refusal> {
        let (algorithm, fields) = authorization.split_once(' ').unwrap_or((authorization, ""));
        if algorithm != "AWS4-HMAC-SHA256" {
            return Err(if algorithm.starts_with("AWS") {
                incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}'"))
            } else {
                not_key_value(fields, authorization)
            });
        }
        let mut claim = Self::default();
        let mut credential = String::new();
        for field in fields.split(',').map(str::trim) {
            let Some((name, value)) = field.split_once('=') else {
                return Err(not_key_value(field, authorization));
            };
            let place = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut claim.signed_headers,
                "Signature" => &mut claim.signature,
                _ => continue,
            };
            if !place.is_empty() {
                return Err(incomplete(format!(
                    "Authorization header has a repeated '{name}' parameter."
                )));
            }
            value.clone_into(place);
        }
        let lacking: Vec<_> = [
            ("Credential", &credential),
            ("SignedHeaders", &claim.signed_headers),
            ("Signature", &claim.signature),
        ]
        .iter()
        .filter(|(_, value)| value.is_empty())
        .map(|(name, _)| format!("Authorization header requires '{name}' parameter."))
        .collect();
        if !lacking.is_empty() {
            return Err(incomplete(format!(
                "{} Authorization=AWS4-HMAC-SHA256",
                lacking.join(" ")
            )));
        }
        // From the right: an access key may hold slashes, a scope may not.
        let parts: Vec<_> = credential.rsplitn(5, '/').map(str::to_owned).collect();
        let Ok([terminator, service, region, date, access_key]) = <[String; 5]>::try_from(parts)
        else {
            return Err(incomplete(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term, got '{credential}'"
            )));
        };
        Ok(Self { access_key, date, region, service, terminator, ..claim })
    }
}

fn check_time(stamp: &str, claim: &Claim, now: u64) -> Result<(), Refusal> {
    let Some(signed_at) = unix_seconds(stamp) else {
        return Err(incomplete(format!(
            "Date must be in ISO-8601 'basic format'. Got '{stamp}'. \
             See http://en.wikipedia.org/wiki/ISO_8601"
        )));
    };
    let day = &stamp[..8];
    if claim.date != day {
        return Err(invalid(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from \
             HTTP: '{}' != '{day}', from '{stamp}'.",
            claim.date
        )));
    }
    if signed_at + SKEW_SECONDS_MAX < now {
        let minutes = (now - signed_at) / 60;
        return Err(invalid(format!(
            "Signature expired: {stamp} is {minutes} minutes old, and {} is the most.",
            SKEW_SECONDS_MAX / 60
        )));
    }
    if signed_at > now + SKEW_SECONDS_MAX {
        let minutes = (signed_at - now) / 60;
        return Err(invalid(format!(
            "Signature not yet current: {stamp} is {minutes} minutes ahead, and {} is the most.",
            SKEW_SECONDS_MAX / 60
        )));
    }
    Ok(())
}

/// `20150830T123600Z` in seconds since 1970; `None` for anything else.
fn unix_seconds(stamp: &str) -> Option<u64> {
    let bytes = stamp.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().try_fold(0_u64, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
        })
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let month_days = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_index = usize::try_from(month.checked_sub(1)?).ok()?;
    if year < 1970 || hour > 23 || minute > 59 || second > 59 || day == 0 {
        return None;
    }
    if day > *month_days.get(month_index)? {
        return None;
    }
    let days = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum::<u64>()
        + month_days[..month_index].iter().sum::<u64>()
        + day
        - 1;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Dot segments and doubled slashes vanish; every byte sent is encoded once more.
fn canonical_path(sent: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in sent.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut path: String = kept.iter().map(|s| format!("/{}", encode(s.as_bytes()))).collect();
    if path.is_empty() || sent.ends_with('/') {
        path.push('/');
    }
    path
}

/// Names and values decoded, encoded the one way, sorted.
fn canonical_query(sent: &str) -> String {
    let mut arguments: Vec<_> = sent
        .split('&')
        .filter(|piece| !piece.is_empty())
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
        .map(|(name, value)| (encode(&decode(name)), encode(&decode(value))))
        .collect();
    arguments.sort();
    let arguments: Vec<_> =
        arguments.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    arguments.join("&")
}

fn encode(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// UTF-8, or else each byte as the character of its number.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower-case digits only, as signatures are written.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

fn refuse(error_type: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { error_type, message: message.into() }
}

fn invalid(message: impl Into<String>) -> Refusal {
    refuse("InvalidSignatureException", message)
}

fn incomplete(message: impl Into<String>) -> Refusal {
    refuse("IncompleteSignatureException", message)
}

fn not_key_value(field: &str, authorization: &str) -> Refusal {
    incomplete(format!(
        "'{field}' not a valid key=value pair (missing equal-sign) in Authorization header: \
         '{authorization}'."
    ))
}

/// How far the signer's clock may be from ours, in seconds.
pub const SKEW_SECONDS_MAX: u64 = 300;
const MISMATCH: &str = "The request signature we calculated does not match the signature you \
    provided. Check your AWS Secret Access Key and signing method. Consult the service \
    documentation for details.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_strictly() {
        for (stamp, seconds) in [
            ("19700101T000000Z", Some(0)),
            ("20000229T000000Z", Some(951_782_400)),
            ("20150830T123600Z", Some(1_440_938_160)),
            ("99991231T235959Z", Some(253_402_300_799)),
            ("20150229T000000Z", None),
            ("20151301T000000Z", None),
            ("20150001T000000Z", None),
            ("20150100T000000Z", None),
            ("20150101T240000Z", None),
            ("19691231T235959Z", None),
            ("20150830T123600", None),
            ("2015083aT123600Z", None),
            ("20150830T12360é", None),
            ("", None),
        ] {
            assert_eq!(unix_seconds(stamp), seconds, "{stamp}");
        }
    }

    #[test]
    fn the_published_example_verifies_and_nothing_near_it_does() {
        let secret = Secret::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let accepted = Accepted {
            session_token: None,
            access_key: "AKIDEXAMPLE",
            secret_key: &secret,
            region: "us-east-1",
            service: "service",
        };
        let good = "AWS4-HMAC-SHA256 \
            Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
            SignedHeaders=host;x-amz-date, \
            Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        let check = |authorization: &str| {
            let headers: &[(&str, &[u8])] = &[
                ("host", b"example.amazonaws.com"),
                ("x-amz-date", b"20150830T123600Z"),
                ("authorization", authorization.as_bytes()),
            ];
            let received = Received { method: "GET", path: "/", query: "", headers, body: b"" };
            verify(&received, &accepted, 1_440_938_160)
                .map_err(|refusal| (refusal.error_type, refusal.message))
        };
        assert_eq!(check(good), Ok(()));
        let (invalid, incomplete) = ("InvalidSignatureException", "IncompleteSignatureException");
        for (from, to, error_type, starts) in [
            ("f31", "f32", invalid, "The request signature we calculated"),
            ("f31", "f3", invalid, "The request signature we calculated"),
            ("f31", "f31f", invalid, "The request signature we calculated"),
            ("=5fa0", "=5FA0", invalid, "The request signature we calculated"),
            ("host;", "", invalid, "'Host' or ':authority' must be"),
            (";x-amz-date", "", invalid, "There were headers present"),
            ("host;", "a;host;", invalid, "The request signature we calculated"),
            (
                "/us-east-1/",
                "/us-west-1/",
                invalid,
                "Credential should be scoped to a valid region",
            ),
            ("/service/", "/s3/", invalid, "Credential should be scoped to correct service"),
            ("/aws4_request", "/aws4", invalid, "Credential should be scoped with a valid term"),
            ("/20150830/", "/20150829/", invalid, "Date in Credential scope does not match"),
            ("AKIDEXAMPLE", "AKIDOTHER", "UnrecognizedClientException", "The security token"),
            ("AKIDEXAMPLE/", "", incomplete, "Credential must have exactly 5"),
            ("AWS4-HMAC-SHA256", "AWS4-X", incomplete, "Unsupported AWS 'algorithm'"),
            ("AWS4-HMAC-SHA256", "Bearer", incomplete, "'Credential="),
            ("Signature=", "", incomplete, "'5fa00"),
            ("Signature=", "Signatur=", incomplete, "Authorization header requires 'Signature'"),
            ("Signature=", "Signature=00,Signature=", incomplete, "Authorization header has a rep"),
        ] {
            let (got_type, message) = check(&good.replacen(from, to, 1)).unwrap_err();
            assert_eq!(got_type, error_type, "{from} {to}");
            assert!(message.starts_with(starts), "{from} {to}: {message}");
        }
    }
}

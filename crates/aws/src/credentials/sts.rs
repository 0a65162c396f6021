//! STS: `AssumeRole`, signed with our own signer, and `AssumeRoleWithWebIdentity`, which needs no
//! signature.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>

use roxmltree::{Document, Node, ParsingOptions};

use super::time::parse_time;
use super::{
    CredentialError, FetchRequest, FetchResponse, Issued, Role, STS_TIMEOUT, Surroundings,
    credentials, settings, web_identity,
};
use crate::partition::Partition;
use crate::sigv4::{Credentials, PayloadHash, RequestToSign, Signed, Signer};

pub(crate) async fn assume_role(
    base: &Credentials,
    role: &Role,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let unusable = |cause: String| CredentialError::unusable(ORIGIN, cause);
    role.check().map_err(|error| unusable(error.to_string()))?;
    let target = Target::of(role.endpoint.as_deref(), role.region.as_deref(), surroundings)
        .map_err(unusable)?;
    let signer = Signer::new(base.clone(), target.region.as_str(), "sts");
    let signer = signer.map_err(|error| unusable(error.to_string()))?;
    let body = assume_role_form(role);
    let mut again = true;
    loop {
        let offset = surroundings.skew.offset_secs();
        let time = surroundings.now.saturating_add_signed(offset);
        let request = signed(&signer, &target, &body, time)?;
        let answer = surroundings.outside.fetch(request).await;
        let answer =
            answer.map_err(|cause| CredentialError::Unreachable { provider: ORIGIN, cause })?;
        let (status, date) = (answer.status, answer.date);
        match read(ORIGIN, answer)? {
            StsAnswer::Refused { code, message } => {
                // The time of the signature was wrong: AWS told its own, once more with that.
                let learn = |date| surroundings.skew.learn(date, surroundings.now, offset);
                let skewed = is_skew(&code, &message) && date.is_some_and(learn);
                if skewed && again {
                    again = false;
                    continue;
                }
                let words = format!("{code} {message}");
                return Err(CredentialError::refused(ORIGIN, status, words.trim()));
            }
            StsAnswer::Issued(issued) => return Ok(Issued { origin: ORIGIN, ..issued }),
        }
    }
}

pub(crate) async fn assume_role_with_web_identity(
    role_arn: &str,
    session_name: Option<&str>,
    token: &str,
    region: Option<&str>,
    surroundings: Surroundings<'_>,
) -> Result<Issued, CredentialError> {
    let provider = web_identity::ORIGIN;
    // Only the settings say where to: the token alone is enough to become the role.
    let region = surroundings.sources.region().or(region);
    let target = Target::of(None, region, surroundings)
        .map_err(|cause| CredentialError::unusable(provider, cause))?;
    let mut body = form("AssumeRoleWithWebIdentity");
    push_field(&mut body, "RoleArn", role_arn);
    push_field(&mut body, "RoleSessionName", session_name.unwrap_or(SESSION_NAME));
    push_field(&mut body, "WebIdentityToken", token);
    let mut request = FetchRequest::new("POST", target.url, STS_TIMEOUT)
        .header("content-type", FORM)
        .header("accept", "text/xml");
    request.body = body.into_bytes();
    let answer = surroundings.outside.fetch(request).await;
    let answer = answer.map_err(|cause| CredentialError::Unreachable { provider, cause })?;
    let status = answer.status;
    match read(provider, answer)? {
        StsAnswer::Issued(issued) => Ok(Issued { origin: provider, ..issued }),
        StsAnswer::Refused { code, message } => {
            let words = format!("{code} {message}");
            Err(CredentialError::refused(provider, status, words.trim()))
        }
    }
}

fn assume_role_form(role: &Role) -> String {
    let mut body = form("AssumeRole");
    push_field(&mut body, "RoleArn", &role.arn);
    let session = role.session_name.as_deref().unwrap_or(SESSION_NAME);
    push_field(&mut body, "RoleSessionName", session);
    if let Some(id) = &role.external_id {
        push_field(&mut body, "ExternalId", id);
    }
    if let Some(secs) = role.duration_secs {
        push_field(&mut body, "DurationSeconds", &secs.to_string());
    }
    for (index, (key, value)) in role.tags.iter().enumerate() {
        push_field(&mut body, &format!("Tags.member.{}.Key", index + 1), key);
        push_field(&mut body, &format!("Tags.member.{}.Value", index + 1), value);
    }
    for (index, key) in role.transitive_tag_keys.iter().enumerate() {
        push_field(&mut body, &format!("TransitiveTagKeys.member.{}", index + 1), key);
    }
    body
}

fn signed(
    signer: &Signer,
    target: &Target,
    body: &str,
    time: u64,
) -> Result<FetchRequest, CredentialError> {
    let headers = [("host", target.parsed_authority.as_str()), ("content-type", FORM)];
    let to_sign = RequestToSign {
        method: "POST",
        path: &target.path,
        query: None,
        headers: headers.map(|(name, value)| (name, value.as_bytes())),
        payload: PayloadHash::Bytes(body.as_bytes()),
    };
    let mut signed = Signed::default();
    signer.sign(time, to_sign, &mut signed);
    let mut request = FetchRequest::new("POST", target.url.as_str(), STS_TIMEOUT)
        .header("content-type", FORM)
        .header("accept", "text/xml");
    for (name, value) in signed.headers() {
        request = request.header(name, value);
    }
    request.body = body.as_bytes().to_vec();
    Ok(request)
}

/// Reads an answer of any status.
fn read(provider: &'static str, answer: FetchResponse) -> Result<StsAnswer, CredentialError> {
    let FetchResponse { status, body, .. } = answer;
    match std::str::from_utf8(&body).map_err(|_| "it is not UTF-8".to_owned()).and_then(parse_sts) {
        Ok(StsAnswer::Issued(_)) if status != 200 => {
            Err(CredentialError::refused(provider, status, ""))
        }
        Ok(answer) => Ok(answer),
        Err(cause) if status == 200 => {
            Err(CredentialError::unusable(provider, format!("the answer of STS: {cause}")))
        }
        // A balancer or a proxy says no in its own words.
        Err(_) => Err(CredentialError::refused(provider, status, "")),
    }
}

/// What STS says.
#[derive(Debug, Clone)]
pub enum StsAnswer {
    /// Credentials.
    Issued(Issued),
    /// An error.
    Refused {
        /// As in `AccessDenied`.
        code: String,
        /// The sentence.
        message: String,
    },
}

/// Reads the XML of an answer. Document types, hence entities of their own, are refused.
///
/// # Errors
/// When it is no answer of STS; the text does not repeat it.
pub fn parse_sts(xml: &str) -> Result<StsAnswer, String> {
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: XML_NODES_MAX, ..Default::default() };
    let document = Document::parse_with_options(xml, options)
        .map_err(|error| format!("no XML at line {}", error.pos().row))?;
    let root = document.root_element();
    if let Some(error) = child(root, "Error") {
        let code = text(error, "Code").unwrap_or_default();
        let message = text(error, "Message").unwrap_or_default();
        return Ok(StsAnswer::Refused { code, message });
    }
    let found = root
        .children()
        .filter(|node| node.tag_name().name().ends_with("Result"))
        .find_map(|result| child(result, "Credentials"))
        .ok_or("it holds no credentials")?;
    let field = |name: &str| text(found, name).ok_or_else(|| format!("it has no `{name}`"));
    let expiration = field("Expiration")?;
    let expires = parse_time(&expiration).ok_or("`Expiration` is no ISO 8601 time")?;
    let (id, key, token) =
        (field("AccessKeyId")?, field("SecretAccessKey")?, field("SessionToken")?);
    let credentials =
        credentials(ORIGIN, &id, &key, Some(&token)).map_err(|error| error.to_string())?;
    Ok(StsAnswer::Issued(Issued { credentials, expires: Some(expires), origin: ORIGIN }))
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.is_element() && child.tag_name().name() == name)
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name)?.text().map(|text| text.trim().to_owned())
}

fn is_skew(code: &str, message: &str) -> bool {
    matches!(code, "RequestTimeTooSkewed" | "RequestExpired")
        || (matches!(code, "SignatureDoesNotMatch" | "InvalidSignatureException")
            && (message.contains("Signature expired") || message.contains("not yet current")))
}

/// Where a call to STS goes, and the region its signature names.
struct Target {
    url: String,
    parsed_authority: String,
    path: String,
    region: String,
}

impl Target {
    /// The endpoint of the role, of the settings, of the environment, of the region; at last the
    /// global one.
    fn of(
        endpoint: Option<&str>,
        region: Option<&str>,
        surroundings: Surroundings<'_>,
    ) -> Result<Self, String> {
        let sources = surroundings.sources;
        let region = region.or_else(|| sources.region());
        if region.is_some_and(|region| !settings::is_region(region)) {
            return Err("the region is no region".to_owned());
        }
        let given = endpoint.or(sources.sts_endpoint.as_deref());
        let url = match given.or_else(|| sources.endpoint_variable("STS")) {
            Some(url) => url.to_owned(),
            None => match region {
                None => "https://sts.amazonaws.com".to_owned(),
                Some(region) => {
                    format!("https://sts.{region}.{}", Partition::of_region(region).dns_suffix)
                }
            },
        };
        let parsed = Url::parse(&url).map_err(|cause| format!("the STS endpoint: {cause}"))?;
        if parsed.path.contains('?') {
            return Err("the STS endpoint: it has a query".to_owned());
        }
        Ok(Self {
            parsed_authority: parsed.authority.to_owned(),
            path: if parsed.path.is_empty() { "/".to_owned() } else { parsed.path.to_owned() },
            region: region.unwrap_or("us-east-1").to_owned(),
            url,
        })
    }
}

/// The parts of an `http` or `https` URL without user, query and fragment.
pub(crate) struct Url<'a> {
    pub(crate) tls: bool,
    authority: &'a str,
    path: &'a str,
}

impl<'a> Url<'a> {
    pub(crate) fn parse(url: &'a str) -> Result<Self, &'static str> {
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("it does not begin with http:// or https://"),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if rest.bytes().any(|b| !b.is_ascii_graphic() || b"@#\\".contains(&b))
            || authority.contains('?')
        {
            return Err("it holds what it must not: white space, `@`, `#` or a query");
        }
        let url = Self { tls, authority, path };
        if url.host().is_empty() { Err("it has no host") } else { Ok(url) }
    }

    /// The host, without port and brackets.
    pub(crate) fn host(&self) -> &'a str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }
}

fn form(action: &str) -> String {
    format!("Action={action}&Version=2011-06-15")
}

fn push_field(body: &mut String, name: &str, value: &str) {
    body.push('&');
    push_encoded(body, name);
    body.push('=');
    push_encoded(body, value);
}

/// Writes everything but unreserved characters as escapes.
pub(crate) fn push_encoded(text: &mut String, value: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in value.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push('%');
            text.push(HEX[usize::from(byte >> 4)].into());
            text.push(HEX[usize::from(byte & 15)].into());
        }
    }
}

const ORIGIN: &str = "assume-role";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The name of sessions that were given none.
const SESSION_NAME: &str = "sluicegate";

/// Elements and texts of one answer; a whole one has about thirty.
const XML_NODES_MAX: u32 = 1_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"<?xml version="1.0"?>
<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleResult>
    <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/r/s</Arn></AssumedRoleUser>
    <Credentials>
      <AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s&#43;k/&amp;</SecretAccessKey>
      <SessionToken> tok== </SessionToken><Expiration>2026-11-22T10:00:00Z</Expiration>
    </Credentials>
  </AssumeRoleResult>
</AssumeRoleResponse>"#;

    #[test]
    fn credentials_are_read_out_of_an_answer() {
        let Ok(StsAnswer::Issued(issued)) = parse_sts(GOOD) else {
            panic!("{:?}", parse_sts(GOOD))
        };
        assert_eq!(issued.credentials.access_key, "ASIA");
        assert_eq!(issued.credentials.secret_key.expose(), "s+k/&");
        assert_eq!(issued.credentials.session_token.unwrap().expose(), "tok==");
        assert_eq!(issued.expires, Some(1_795_341_600));
    }

    #[test]
    fn an_error_is_told_in_its_words() {
        let xml = "<ErrorResponse xmlns=\"x\"><Error><Type>Sender</Type><Code>AccessDenied</Code>\
                   <Message>no &lt;way&gt;</Message></Error></ErrorResponse>";
        let Ok(StsAnswer::Refused { code, message }) = parse_sts(xml) else { panic!("{xml}") };
        assert_eq!((code.as_str(), message.as_str()), ("AccessDenied", "no <way>"));
    }

    #[test]
    fn other_xml_is_refused_without_repeating_it() {
        let entities = "<!DOCTYPE a [<!ENTITY b \"bbbb\">]><a>&b;</a>";
        let many = format!("<a>{}</a>", "<b/>".repeat(1_000));
        let no_end = GOOD.replace("Expiration>", "Ends>");
        let bad_key = GOOD.replace("ASIA", "AS IA");
        for xml in ["", "<a>", "<a/>", "{}", entities, &many, &no_end, &bad_key] {
            let error = parse_sts(xml).expect_err(xml);
            assert!(!error.contains("bbbb") && !error.contains("IA"), "{error}");
        }
    }

    #[test]
    fn a_role_is_asked_for_with_every_field_it_has() {
        let role = Role {
            arn: "arn:aws:iam::123456789012:role/r".to_owned(),
            external_id: Some("a/b".to_owned()),
            duration_secs: Some(900),
            tags: vec![("team".to_owned(), "a b&c".to_owned())],
            transitive_tag_keys: vec!["team".to_owned()],
            ..Role::default()
        };
        assert_eq!(
            assume_role_form(&role),
            "Action=AssumeRole&Version=2011-06-15\
             &RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fr&RoleSessionName=sluicegate\
             &ExternalId=a%2Fb&DurationSeconds=900&Tags.member.1.Key=team\
             &Tags.member.1.Value=a%20b%26c&TransitiveTagKeys.member.1=team"
        );
    }

    #[test]
    fn urls_are_taken_apart_or_refused() {
        for (url, tls, host) in [
            ("https://sts.amazonaws.com", true, "sts.amazonaws.com"),
            ("http://127.0.0.1:80/a", false, "127.0.0.1"),
            ("http://[::1]:80/a?b=c", false, "::1"),
        ] {
            let parsed = Url::parse(url).unwrap();
            assert_eq!((parsed.tls, parsed.host()), (tls, host), "{url}");
        }
        for url in [
            "sts",
            "http://",
            "http:///a",
            "http://a@b/",
            "http://127.0.0.1?.evil.test/",
            "http://a b",
            "http://127.0.0.1\\@evil.test",
        ] {
            assert!(Url::parse(url).is_err(), "{url}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|[<>/&;\"=]|Credentials|Error){0,120}") {
            let _ = parse_sts(&text);
        }

        #[test]
        fn keys_of_any_visible_ascii_come_through_the_xml(
            id in "[!-~]{1,40}", key in "[!-~]{1,40}", token in "[!-~]{1,80}",
        ) {
            let escape = |text: &str| {
                text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
            };
            let xml = format!(
                "<R><XResult><Credentials><AccessKeyId>{}</AccessKeyId>\
                 <SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
                 <Expiration>2026-11-22T10:00:00Z</Expiration></Credentials></XResult></R>",
                escape(&id), escape(&key), escape(&token)
            );
            let Ok(StsAnswer::Issued(issued)) = parse_sts(&xml) else { panic!("{xml}") };
            prop_assert_eq!(issued.credentials.access_key, id);
            prop_assert_eq!(issued.credentials.secret_key.expose(), key);
            let read = issued.credentials.session_token.unwrap();
            prop_assert_eq!(read.expose(), token);
        }
    }
}

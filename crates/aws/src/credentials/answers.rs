//! Credentials as JSON: from containers, IMDS, processes and SSO.

use serde::Deserialize;

use super::time::parse_time;
use super::{CredentialError, Issued, credentials};

/// Who wrote the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// The endpoint of ECS or of EKS Pod Identity.
    Container,
    /// The instance metadata service.
    Imds,
    /// A `credential_process`.
    Process,
    /// SSO's `GetRoleCredentials`.
    Sso,
}

impl AnswerKind {
    /// The origin of credentials read from such an answer, and the source that errors name.
    pub(crate) fn origin(self) -> &'static str {
        match self {
            Self::Container => "container-role",
            Self::Imds => "iam-role",
            Self::Process => "custom-process",
            Self::Sso => "sso",
        }
    }
}

/// Reads credentials out of an answer with success.
///
/// # Errors
/// When it is not what the kind writes; the text does not repeat it.
pub fn parse_answer(kind: AnswerKind, body: &[u8]) -> Result<Issued, CredentialError> {
    let provider = kind.origin();
    let unusable = |cause: String| CredentialError::Unusable { provider, cause };
    let lacks = |name: &str| unusable(format!("the answer has no `{name}`"));
    let json = |error: serde_json::Error| {
        unusable(format!("the answer is not the JSON it should be, line {}", error.line()))
    };
    if kind == AnswerKind::Sso {
        let Sso { role_credentials: of } = serde_json::from_slice(body).map_err(json)?;
        return Ok(Issued {
            credentials: credentials(
                provider,
                &of.access_key_id,
                &of.secret_access_key,
                Some(&of.session_token),
            )?,
            expires: Some(of.expiration / 1_000),
            origin: provider,
        });
    }
    let answer: Answer = serde_json::from_slice(body).map_err(json)?;
    match kind {
        AnswerKind::Process if answer.version != Some(1) => {
            return Err(unusable("only `Version` 1 of the output is known".to_owned()));
        }
        // IMDS says with status 200 that the role cannot be assumed.
        AnswerKind::Imds if answer.code.as_deref().is_some_and(|code| code != "Success") => {
            let words = [answer.code.as_deref(), answer.message.as_deref()];
            let words = words.map(Option::unwrap_or_default).join(" ");
            return Err(CredentialError::refused(provider, 200, words.trim()));
        }
        _ => {}
    }
    let access_key = answer.access_key_id.ok_or_else(|| lacks("AccessKeyId"))?;
    let secret_key = answer.secret_access_key.ok_or_else(|| lacks("SecretAccessKey"))?;
    let token = match kind {
        AnswerKind::Process => answer.session_token.filter(|token| !token.is_empty()),
        _ => Some(answer.token.ok_or_else(|| lacks("Token"))?),
    };
    let expires = match answer.expiration.as_deref() {
        Some(text) => {
            let unreadable = || unusable("`Expiration` is no ISO 8601 time".to_owned());
            Some(parse_time(text).ok_or_else(unreadable)?)
        }
        None if kind == AnswerKind::Process => None,
        None => return Err(lacks("Expiration")),
    };
    let credentials = credentials(provider, &access_key, &secret_key, token.as_deref())?;
    Ok(Issued { credentials, expires, origin: provider })
}

/// The `code` and `message` of a JSON refusal, however they are spelt.
pub(crate) fn refusal_words(body: &[u8]) -> String {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else {
        return String::new();
    };
    let text = |names: &[&str]| names.iter().find_map(|name| body.get(*name)?.as_str());
    let words = [text(&["code", "Code", "__type"]), text(&["message", "Message"])];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    version: Option<u32>,
    code: Option<String>,
    message: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    token: Option<String>,
    session_token: Option<String>,
    expiration: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sso {
    role_credentials: SsoCredentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SsoCredentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    /// In milliseconds.
    expiration: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYS: &str = r#""AccessKeyId":"AKIA","SecretAccessKey":"sk""#;

    #[track_caller]
    fn check(kind: AnswerKind, body: &str, expected: Result<(Option<&str>, Option<u64>), &str>) {
        let read = parse_answer(kind, body.as_bytes());
        let told = read.as_ref().map_err(ToString::to_string).map(|issued| {
            let token = issued.credentials.session_token.as_ref().map(|token| token.expose());
            (token, issued.expires)
        });
        assert_eq!(told, expected.map_err(str::to_owned), "{body}");
    }

    #[test]
    fn each_kind_of_answer_is_read_with_what_it_must_hold() {
        use AnswerKind::{Container, Imds, Process, Sso};
        let end = r#""Expiration":"2026-11-22T10:00:00Z""#;
        let at = Some(1_795_341_600);
        check(Container, &format!(r#"{{{KEYS},"Token":"t",{end}}}"#), Ok((Some("t"), at)));
        check(
            Container,
            &format!("{{{KEYS},{end}}}"),
            Err("container-role: the answer has no `Token`"),
        );
        check(
            Imds,
            &format!(r#"{{"Code":"Success",{KEYS},"Token":"t",{end}}}"#),
            Ok((Some("t"), at)),
        );
        check(
            Imds,
            r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"EC2 cannot assume\nthe role"}"#,
            Err(
                "iam-role: refused with 200: AssumeRoleUnauthorizedAccess EC2 cannot assume the role",
            ),
        );
        check(
            Imds,
            &format!(r#"{{{KEYS},"Token":"t"}}"#),
            Err("iam-role: the answer has no `Expiration`"),
        );
        check(Process, &format!(r#"{{"Version":1,{KEYS}}}"#), Ok((None, None)));
        check(
            Process,
            &format!(r#"{{"Version":1,{KEYS},"SessionToken":"t",{end}}}"#),
            Ok((Some("t"), at)),
        );
        check(
            Process,
            &format!("{{{KEYS}}}"),
            Err("custom-process: only `Version` 1 of the output is known"),
        );
        check(
            Process,
            &format!(r#"{{"Version":1,{KEYS},"Expiration":"soon"}}"#),
            Err("custom-process: `Expiration` is no ISO 8601 time"),
        );
        check(
            Process,
            r#"{"Version":1,"AccessKeyId":"A\n","SecretAccessKey":"s"}"#,
            Err("custom-process: the access key is empty or not visible ASCII"),
        );
        check(
            Sso,
            r#"{"roleCredentials":{"accessKeyId":"A","secretAccessKey":"s","sessionToken":"t","expiration":1795341600999}}"#,
            Ok((Some("t"), at)),
        );
        check(Sso, "{}", Err("sso: the answer is not the JSON it should be, line 1"));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused_and_never_repeated(
            body in "(\\PC|[{}\":,]|AccessKeyId){0,120}",
            mark in "[a-z]{12}",
        ) {
            for kind in [AnswerKind::Container, AnswerKind::Imds, AnswerKind::Process, AnswerKind::Sso] {
                let _ = parse_answer(kind, body.as_bytes());
                let wrong = format!(r#"{{"AccessKeyId":"A","SecretAccessKey":["{mark}"]}}"#);
                let error = parse_answer(kind, wrong.as_bytes()).unwrap_err();
                prop_assert!(!error.to_string().contains(&mark));
            }
        }
    }
}

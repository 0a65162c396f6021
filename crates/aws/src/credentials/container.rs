//! `container`: the credentials endpoint that ECS and EKS Pod Identity put beside a task.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::net::IpAddr;
use std::path::Path;

use super::answers::refusal_words;
use super::sts::Url;
use super::{
    AnswerKind, CredentialError, FetchRequest, Issued, METADATA_TIMEOUT, Surroundings,
    TOKEN_BYTES_MAX, parse_answer,
};

pub(crate) async fn load(surroundings: Surroundings<'_>) -> Result<Issued, CredentialError> {
    let url = url(surroundings)?;
    let mut request =
        FetchRequest::new("GET", url, METADATA_TIMEOUT * 2).header("accept", "application/json");
    if let Some(token) = token(surroundings).await? {
        request = request.header("authorization", token);
    }
    let answer = surroundings.outside.fetch(request).await;
    let answer =
        answer.map_err(|cause| CredentialError::Unreachable { provider: ORIGIN, cause })?;
    if answer.status != 200 {
        return Err(CredentialError::refused(ORIGIN, answer.status, &refusal_words(&answer.body)));
    }
    parse_answer(AnswerKind::Container, &answer.body)
}

fn url(surroundings: Surroundings<'_>) -> Result<String, CredentialError> {
    let var = |name| surroundings.sources.var(name);
    if let Some(path) = var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        if !path.starts_with('/') {
            let cause = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI does not begin with `/`";
            return Err(CredentialError::unusable(ORIGIN, cause));
        }
        return Ok(format!("http://{ECS_HOST}{path}"));
    }
    let Some(url) = var("AWS_CONTAINER_CREDENTIALS_FULL_URI") else {
        let missing = "neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor \
                       AWS_CONTAINER_CREDENTIALS_FULL_URI is set";
        return Err(CredentialError::not_configured(ORIGIN, missing));
    };
    let parsed = Url::parse(url).map_err(|cause| {
        CredentialError::unusable(ORIGIN, format!("AWS_CONTAINER_CREDENTIALS_FULL_URI: {cause}"))
    })?;
    if !parsed.tls && !allowed_host(parsed.host()) {
        let cause = format!(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI: without TLS only loopback addresses and {} are \
             asked, not {:?}",
            HOSTS.join(", "),
            parsed.host()
        );
        return Err(CredentialError::unusable(ORIGIN, cause));
    }
    Ok(url.to_owned())
}

/// The token to send. Its file is read each time: EKS replaces the token in it.
async fn token(surroundings: Surroundings<'_>) -> Result<Option<String>, CredentialError> {
    let var = |name| surroundings.sources.var(name);
    let token = match var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(path) => {
            let text = read_token(ORIGIN, Path::new(path), surroundings).await?;
            Some(text)
        }
        None => var("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
    };
    if let Some(token) = &token
        && token.bytes().any(|byte| byte.is_ascii_control() || !byte.is_ascii())
    {
        let cause = "the authorization token cannot be sent in a header";
        return Err(CredentialError::unusable(ORIGIN, cause));
    }
    Ok(token)
}

/// A token out of a file, without the white space at its ends.
///
/// Unlike botocore, which sends the line's end that an editor left and is refused.
pub(crate) async fn read_token(
    provider: &'static str,
    path: &Path,
    surroundings: Surroundings<'_>,
) -> Result<String, CredentialError> {
    let bytes = surroundings.outside.read_file(path, TOKEN_BYTES_MAX).await;
    let bytes = bytes.map_err(|cause| CredentialError::Local { provider, cause })?;
    let unusable = |what: &str| {
        CredentialError::unusable(provider, format!("token file {}: {what}", path.display()))
    };
    let text = bytes.ok_or_else(|| unusable("there is none"))?;
    let text = String::from_utf8(text).map_err(|_| unusable("it is not UTF-8"))?;
    let text = text.trim();
    if text.is_empty() { Err(unusable("it is empty")) } else { Ok(text.to_owned()) }
}

/// Whether credentials may be asked for at this host without TLS: it is this machine, or one of
/// the link-local addresses that ECS and EKS use.
pub fn allowed_host(host: &str) -> bool {
    HOSTS.contains(&host) || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

const ORIGIN: &str = "container-role";
const ECS_HOST: &str = "169.254.170.2";
const HOSTS: [&str; 4] = [ECS_HOST, "169.254.170.23", "fd00:ec2::23", "localhost"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_the_addresses_of_ecs_and_eks_are_asked_without_tls() {
        for host in ["127.0.0.1", "127.9.9.9", "::1", "localhost", ECS_HOST, "169.254.170.23"] {
            assert!(allowed_host(host), "{host}");
        }
        for host in
            ["169.254.169.254", "10.0.0.1", "localhost.evil.test", "127.0.0.1.evil.test", "", "0"]
        {
            assert!(!allowed_host(host), "{host}");
        }
    }
}

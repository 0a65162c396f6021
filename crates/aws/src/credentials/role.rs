//! A role to assume, over whatever credentials there are.

use super::settings::{ProviderKind, is_region};
use super::sts::Url;
use crate::partition::Partition;

/// What `AssumeRole` is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// The role.
    pub arn: String,
    /// How the session is called in logs and policies; `sluicegate` if not given.
    pub session_name: Option<String>,
    /// The secret-like word that the role's owner asks of third parties.
    pub external_id: Option<String>,
    /// How long the credentials shall last; AWS's default is an hour.
    pub duration_secs: Option<u32>,
    /// Session tags.
    pub tags: Vec<(String, String)>,
    /// Keys of tags that go on to the next role.
    pub transitive_tag_keys: Vec<String>,
    /// The region whose STS is asked; without one (and without an endpoint) that of the sources.
    pub region: Option<String>,
    /// Another STS: an interface endpoint, an emulator.
    pub endpoint: Option<String>,
}

impl Role {
    /// Checks what AWS would refuse, so that a configuration is refused rather than each request.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), RoleError> {
        let Self {
            arn,
            session_name,
            external_id,
            duration_secs,
            tags,
            transitive_tag_keys,
            region,
            endpoint,
        } = self;
        if !is_role_arn(arn) {
            return Err(RoleError::Arn(arn.clone()));
        }
        if let Some(name) = session_name
            && (!(2..=64).contains(&name.len()) || !name.bytes().all(is_name_byte))
        {
            return Err(RoleError::SessionName);
        }
        if let Some(id) = external_id
            && (!(2..=1224).contains(&id.len())
                || !id.bytes().all(|b| is_name_byte(b) || b":/".contains(&b)))
        {
            return Err(RoleError::ExternalId);
        }
        if duration_secs.is_some_and(|secs| !(900..=43_200).contains(&secs)) {
            return Err(RoleError::Duration);
        }
        let too_long = |(key, value): &(String, String)| {
            !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256
        };
        if tags.len() > TAGS_MAX || tags.iter().any(too_long) {
            return Err(RoleError::Tags);
        }
        if transitive_tag_keys.len() > TAGS_MAX
            || !transitive_tag_keys.iter().all(|key| tags.iter().any(|(known, _)| known == key))
        {
            return Err(RoleError::TransitiveTags);
        }
        if region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(RoleError::Region);
        }
        match endpoint.as_deref().map(Url::parse) {
            Some(Err(cause)) => Err(RoleError::Endpoint(cause)),
            _ => Ok(()),
        }
    }

    /// Checks a role that a route takes over an identity of the gateway, or over its own keys.
    ///
    /// A signed request can be sent on by whoever receives it, and STS would answer that one with
    /// the role's keys. So over an identity of the gateway a route may name STS itself only; other
    /// endpoints are named in config.yaml.
    ///
    /// # Errors
    /// As [`Role::check`], and when the endpoint is not one of AWS's.
    pub fn check_over(&self, kind: ProviderKind) -> Result<(), RoleError> {
        self.check()?;
        let foreign = |endpoint: &str| {
            Url::parse(endpoint).is_ok_and(|url| !(url.tls && is_sts_host(url.host())))
        };
        if kind != ProviderKind::Static && self.endpoint.as_deref().is_some_and(foreign) {
            return Err(RoleError::ForeignEndpoint);
        }
        Ok(())
    }
}

/// Why a role cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// Not `arn:PARTITION:iam::ACCOUNT:role/NAME`.
    #[error("{0:?} is no ARN of a role: arn:aws:iam::123456789012:role/name")]
    Arn(
        /// What was given.
        String,
    ),
    /// Length or characters.
    #[error("the session name must have 2 to 64 letters, digits or any of _+=,.@-")]
    SessionName,
    /// Length or characters.
    #[error("the external id must have 2 to 1224 letters, digits or any of _+=,.@:/-")]
    ExternalId,
    /// Out of AWS's range.
    #[error("the duration must be 900 to 43200 seconds")]
    Duration,
    /// Too many, or one too long.
    #[error("at most {TAGS_MAX} tags, keys of 1 to 128 and values of up to 256 characters")]
    Tags,
    /// One that is no tag.
    #[error("each transitive tag key must be the key of a tag")]
    TransitiveTags,
    /// Not the name of a region.
    #[error("the region must consist of lower-case letters, digits and `-`")]
    Region,
    /// Not a URL.
    #[error("the STS endpoint: {0}")]
    Endpoint(
        /// What is wrong.
        &'static str,
    ),
    /// Not an STS endpoint of AWS.
    #[error(
        "over an identity of the gateway the STS endpoint of a route must be AWS's own \
         (https://sts.REGION.amazonaws.com, an interface endpoint of STS); another one belongs in \
         plugin_attr.aws-lambda.sts_endpoint of config.yaml"
    )]
    ForeignEndpoint,
}

/// `sts.REGION.amazonaws.com` and its relatives in every partition. Other names below amazonaws.com may
/// be anybody's.
fn is_sts_host(host: &str) -> bool {
    let Some((rest, has)) = Partition::split(host) else { return false };
    let labels: Vec<&str> = rest.split('.').collect();
    // A bucket may be called `sts`, too: `sts.s3-eu-west-1.amazonaws.com`.
    let region =
        |name: &str| is_region(name) && name.contains('-') && !name.starts_with("s3") && has(name);
    match labels[..] {
        ["sts" | "sts-fips"] => true,
        ["sts" | "sts-fips", name] => region(name),
        [_, "sts" | "sts-fips", name, "vpce"] => region(name),
        _ => false,
    }
}

fn is_role_arn(arn: &str) -> bool {
    let mut parts = arn.splitn(6, ':');
    let mut part = || parts.next().unwrap_or_default();
    arn.len() <= 2048
        && arn.bytes().all(|byte| byte.is_ascii_graphic())
        && part() == "arn"
        && part().starts_with("aws")
        && part() == "iam"
        && part().is_empty()
        && matches!(part(), account if account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()))
        && part().strip_prefix("role/").is_some_and(|name| !name.is_empty())
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte)
}

/// Tags of one session, as AWS limits them.
const TAGS_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_aws_would_refuse_is_refused_before_it_is_asked_for() {
        let role =
            || Role { arn: "arn:aws:iam::123456789012:role/a/b".to_owned(), ..Role::default() };
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let good = Role {
            session_name: Some("ab".to_owned()),
            external_id: Some("x".repeat(1224)),
            duration_secs: Some(900),
            tags: vec![tag(&"k".repeat(128), &"v".repeat(256)); 50],
            transitive_tag_keys: vec!["k".repeat(128)],
            region: Some("eu-central-1".to_owned()),
            endpoint: Some("http://127.0.0.1:4566".to_owned()),
            ..role()
        };
        assert_eq!(good.check(), Ok(()));
        for (change, expected) in [
            (Role { arn: "role/a".to_owned(), ..role() }, RoleError::Arn("role/a".to_owned())),
            (Role { session_name: Some("a".to_owned()), ..role() }, RoleError::SessionName),
            (Role { session_name: Some("a b".to_owned()), ..role() }, RoleError::SessionName),
            (Role { external_id: Some("x".repeat(1225)), ..role() }, RoleError::ExternalId),
            (Role { duration_secs: Some(899), ..role() }, RoleError::Duration),
            (Role { duration_secs: Some(43_201), ..role() }, RoleError::Duration),
            (Role { tags: vec![tag("k", ""); 51], ..role() }, RoleError::Tags),
            (Role { tags: vec![tag(&"k".repeat(129), "")], ..role() }, RoleError::Tags),
            (Role { tags: vec![tag("", "v")], ..role() }, RoleError::Tags),
            (
                Role { transitive_tag_keys: vec!["k".to_owned()], ..role() },
                RoleError::TransitiveTags,
            ),
            (Role { region: Some("eu.evil.test/".to_owned()), ..role() }, RoleError::Region),
        ] {
            assert_eq!(change.check(), Err(expected), "{change:?}");
        }
        let role = Role { endpoint: Some("ftp://sts".to_owned()), ..role() };
        assert!(matches!(role.check(), Err(RoleError::Endpoint(_))));
    }

    #[test]
    fn over_an_identity_of_the_gateway_a_route_may_only_name_sts_itself() {
        let over = |kind, endpoint: &str| {
            let role = Role {
                arn: "arn:aws:iam::123456789012:role/r".to_owned(),
                endpoint: Some(endpoint.to_owned()),
                ..Role::default()
            };
            role.check_over(kind)
        };
        for endpoint in [
            "https://sts.amazonaws.com",
            "https://sts.eu-west-1.amazonaws.com/",
            "https://sts-fips.us-east-1.amazonaws.com",
            "https://sts.cn-north-1.amazonaws.com.cn",
            "https://sts.eu-west-1.api.aws",
            "https://vpce-1-2.sts.eu-west-1.vpce.amazonaws.com",
            "https://sts.us-iso-east-1.c2s.ic.gov",
            "https://sts.us-isob-east-1.sc2s.sgov.gov",
            "https://sts.eu-isoe-west-1.cloud.adc-e.uk",
            "https://sts.us-isof-south-1.csp.hci.ic.gov",
            "https://sts.eusc-de-east-1.amazonaws.eu",
            "https://sts.eusc-de-east-1.api.amazonwebservices.eu",
            "https://vpce-1-2.sts.cn-north-1.vpce.amazonaws.com.cn",
        ] {
            assert_eq!(over(ProviderKind::Imds, endpoint), Ok(()), "{endpoint}");
        }
        for endpoint in [
            "http://sts.eu-west-1.amazonaws.com",
            "https://sts.evil.test",
            "https://sts.amazonaws.com.evil.test",
            "https://abc.execute-api.eu-west-1.amazonaws.com",
            "https://sts.s3.amazonaws.com",
            "https://sts.s3-eu-west-1.amazonaws.com",
            "https://sts.a.b.amazonaws.com",
            "https://sts.eu-west-1.amazonaws.com.cn",
            "https://sts.eusc-de-east-1.amazonaws.com",
            "http://127.0.0.1:4566",
        ] {
            let refused = Err(RoleError::ForeignEndpoint);
            assert_eq!(over(ProviderKind::Chain, endpoint), refused, "{endpoint}");
            assert_eq!(over(ProviderKind::Static, endpoint), Ok(()), "{endpoint}");
        }
    }
}

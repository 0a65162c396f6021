//! Access tokens of Microsoft Entra: what an Azure function app wants that has its authentication
//! turned on.
//!
//! A client's secret is exchanged at the tenant's token endpoint
//! (<https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>), or the
//! endpoint of the machine's managed identity is asked
//! (<https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>,
//! on App Service <https://learn.microsoft.com/azure/app-service/overview-managed-identity>).

use std::fmt;

use serde_json::Value;
use sluicegate_aws::Secret;
use sluicegate_aws::credentials::Outside;

use super::{Issued, METADATA_TIMEOUT, json, post_form, push_field, request};
use crate::hash::Hash;

/// Who asks, and for whom the token is.
#[derive(Debug, Clone)]
pub struct EntraSource {
    /// Who asks.
    pub account: EntraAccount,
    /// The application's id or its URI (`api://…`), without `/.default`.
    pub resource: String,
}

/// An application or a managed identity.
#[derive(Debug, Clone)]
pub enum EntraAccount {
    /// An application with a secret.
    Client {
        /// `https://login.microsoftonline.com` or another cloud's, without a slash at its end.
        authority: String,
        /// The directory, by id or domain.
        tenant: String,
        /// The application's id.
        client_id: String,
        /// Its secret.
        client_secret: Secret,
    },
    /// The managed identity of the machine.
    Managed {
        /// Where it is asked for.
        endpoint: ManagedEndpoint,
        /// Which, if the machine has several.
        client_id: Option<String>,
    },
}

/// Where a managed identity is asked for.
#[derive(Debug, Clone)]
pub enum ManagedEndpoint {
    /// The instance metadata service of virtual machines; without a slash at its end.
    Imds(String),
    /// The one of App Service, Functions and Container Apps: `IDENTITY_ENDPOINT`.
    AppService {
        /// The URL.
        url: String,
        /// `IDENTITY_HEADER`, which proves that the asker is inside.
        header: Secret,
    },
}

impl EntraSource {
    pub(super) fn hash(&self, hash: &mut Hash) {
        let Self { account, resource } = self;
        hash.text("entra");
        hash.text(resource);
        match account {
            EntraAccount::Client { authority, tenant, client_id, client_secret } => {
                hash.text("client");
                hash.text(authority);
                hash.text(tenant);
                hash.text(client_id);
                hash.text(client_secret.expose());
            }
            EntraAccount::Managed { endpoint, client_id } => {
                hash.text("managed");
                hash.optional(client_id.as_deref());
                match endpoint {
                    ManagedEndpoint::Imds(url) => {
                        hash.text("imds");
                        hash.text(url);
                    }
                    ManagedEndpoint::AppService { url, header } => {
                        hash.text("app-service");
                        hash.text(url);
                        hash.text(header.expose());
                    }
                }
            }
        }
    }

    pub(super) async fn ask(&self, outside: &dyn Outside, now: u64) -> Result<Issued, String> {
        match &self.account {
            EntraAccount::Client { authority, tenant, client_id, client_secret } => {
                let url = format!("{authority}/{tenant}/oauth2/v2.0/token");
                let mut form = String::new();
                push_field(&mut form, "grant_type", "client_credentials");
                push_field(&mut form, "client_id", client_id);
                push_field(&mut form, "client_secret", client_secret.expose());
                push_field(&mut form, "scope", &format!("{}/.default", self.resource));
                let answer = post_form(outside, &url, form, &[client_secret.expose()]).await?;
                taken(&answer, now, "client-secret")
            }
            EntraAccount::Managed { endpoint, client_id } => {
                let (url, version, proof) = match endpoint {
                    ManagedEndpoint::Imds(url) => {
                        let proof = ("metadata", "true".to_owned());
                        (format!("{url}/metadata/identity/oauth2/token"), "2018-02-01", proof)
                    }
                    ManagedEndpoint::AppService { url, header } => {
                        let proof = ("x-identity-header", header.expose().to_owned());
                        (url.clone(), "2019-08-01", proof)
                    }
                };
                let mut query = String::new();
                push_field(&mut query, "api-version", version);
                push_field(&mut query, "resource", &self.resource);
                if let Some(client_id) = client_id {
                    push_field(&mut query, "client_id", client_id);
                }
                let mut request = request("GET", format!("{url}?{query}"), METADATA_TIMEOUT);
                let secret = proof.1.clone();
                request.headers.push(proof);
                let answer = outside.fetch(request).await.map_err(|error| error.to_string())?;
                let secrets = match endpoint {
                    ManagedEndpoint::Imds(_) => "",
                    ManagedEndpoint::AppService { .. } => &secret,
                };
                taken(&json(&answer, &[secrets])?, now, "managed-identity")
            }
        }
    }
}

impl fmt::Display for EntraSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.account {
            EntraAccount::Client { tenant, client_id, .. } => {
                write!(f, "client {client_id} of {tenant}")?;
            }
            EntraAccount::Managed { client_id: None, .. } => f.write_str("the managed identity")?,
            EntraAccount::Managed { client_id: Some(client_id), .. } => {
                write!(f, "the managed identity {client_id}")?;
            }
        }
        write!(f, " for {}", self.resource)
    }
}

/// Takes the token out of an answer. The endpoints write their numbers as numbers or as texts.
fn taken(answer: &Value, now: u64, origin: &'static str) -> Result<Issued, String> {
    let token = answer.get("access_token").and_then(Value::as_str);
    let token = token.ok_or("the answer has no `access_token`")?;
    let number = |name: &str| match answer.get(name)? {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    let expires = match (number("expires_in"), number("expires_on")) {
        (Some(secs), _) => now.saturating_add(secs),
        (None, Some(at)) => at,
        (None, None) => return Err("the answer says nothing about the token's end".to_owned()),
    };
    Ok(Issued { token: Secret::from(token), expires, origin })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_of_a_token_is_read_however_it_is_written() {
        for (answer, expected) in [
            (json!({"access_token": "t", "expires_in": 3599}), Ok(4599)),
            (json!({"access_token": "t", "expires_in": "3599", "expires_on": "9"}), Ok(4599)),
            (json!({"access_token": "t", "expires_on": "5000"}), Ok(5000)),
            (json!({"access_token": "t", "expires_in": u64::MAX}), Ok(u64::MAX)),
            (json!({"access_token": "t"}), Err("the answer says nothing about the token's end")),
            (json!({"access_token": 1, "expires_in": 1}), Err("the answer has no `access_token`")),
            (json!([]), Err("the answer has no `access_token`")),
        ] {
            let taken = taken(&answer, 1000, "x").map(|issued| issued.expires);
            assert_eq!(taken, expected.map_err(str::to_owned), "{answer}");
        }
    }
}
